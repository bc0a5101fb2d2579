//! The job of a handler: the facts about its message and its object, and how to report.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncSeek};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use crate::job::outcome;
use crate::ports::job_facts::{JobFacts, ObjectFacts};
use crate::ports::{Activity, Command, FetchInput, OnDemand};

/// One object to work on, and the message about it. A clone is the same job.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Job {
    /// The value of `--job-id`.
    pub id: String,
    /// The name of the job type, or `default`.
    pub job_type: String,
    /// The id that SQS gave the message.
    pub message_id: String,
    /// The sender's message attributes, by name; binary values in Base64.
    pub attributes: BTreeMap<String, String>,
    /// The message's group, in a FIFO queue.
    pub message_group_id: Option<String>,
    /// The message's deduplication id, in a FIFO queue.
    pub message_deduplication_id: Option<String>,
    /// When the message was sent, by the queue's clock.
    pub sent_at: Option<SystemTime>,
    /// When the message was first received, by the queue's clock.
    pub first_received_at: Option<SystemTime>,
    /// `None` with `local`.
    pub queue_url: Option<String>,
    /// 1 = first attempt.
    pub receive_count: u32,
    /// The queue's `maxReceiveCount`, if it is known.
    pub max_receive_count: Option<u32>,
    /// Whether this is the last attempt before the dead-letter queue, if it is known.
    pub final_attempt: Option<bool>,
    /// The object's bucket. This and the following fields are `None` if the message names no object
    /// (`--accept-raw`).
    pub bucket: Option<String>,
    /// The object's key, decoded.
    pub key: Option<String>,
    /// The object's version, in a bucket with versions.
    pub version_id: Option<String>,
    /// The object's eTag, without quotes.
    pub etag: Option<String>,
    /// The object's size in bytes.
    pub size: Option<u64>,
    /// The name of the S3 event.
    pub event: Option<String>,
    /// When the event happened, by its sender's clock; also `None` if that time is not RFC 3339 in
    /// UTC.
    pub event_time: Option<SystemTime>,
    /// The bucket's region.
    pub region: Option<String>,
    /// Orders the events of one key; hexadecimal.
    pub sequencer: Option<String>,
    pub(super) deadline: Instant,
    pub(super) inner: Arc<Inner>,
}

/// What the clones of a job share.
#[derive(Debug)]
pub(super) struct Inner {
    /// Set once the object is on the disk.
    input: OnceCell<PathBuf>,
    fetch: Option<FetchInput>,
    /// `None` if all files exist.
    on_demand: Option<Arc<OnDemand>>,
    output_dir: PathBuf,
    checkpoint_dir: PathBuf,
    body_file: PathBuf,
    halt: CancellationToken,
    activity: Activity,
    /// Of a job that a test builds; removed with the job.
    #[cfg(feature = "testing")]
    home: Option<tempfile::TempDir>,
}

/// The most bytes that [`Job::bytes`] reads into memory.
const LARGEST: u64 = 256 << 20;

impl Job {
    pub(super) fn new(command: Command, halt: CancellationToken, activity: Activity) -> Self {
        let Command { job: facts, fetch, on_demand, .. } = command;
        let JobFacts { message, object, .. } = facts;
        let of_object =
            |text: fn(&ObjectFacts) -> Option<&String>| object.as_ref().and_then(text).cloned();
        let remaining = facts.deadline.duration_since(SystemTime::now()).unwrap_or_default();
        let inner = Inner {
            input: OnceCell::new_with(facts.input),
            fetch,
            on_demand,
            output_dir: facts.output_dir,
            checkpoint_dir: facts.checkpoint_dir,
            body_file: facts.body_file,
            halt,
            activity,
            #[cfg(feature = "testing")]
            home: None,
        };
        Self {
            id: facts.id,
            job_type: facts.job_type,
            message_id: facts.message_id,
            attributes: message.attributes,
            message_group_id: message.message_group_id,
            message_deduplication_id: message.message_deduplication_id,
            sent_at: message.sent_at,
            first_received_at: message.first_received_at,
            queue_url: message.queue_url,
            receive_count: facts.receive_count,
            max_receive_count: facts.max_receive_count,
            final_attempt: facts.final_attempt,
            bucket: of_object(|it| Some(&it.bucket)),
            key: of_object(|it| Some(&it.key)),
            version_id: of_object(|it| it.version_id.as_ref()),
            etag: of_object(|it| it.etag.as_ref()),
            size: object.as_ref().and_then(|it| it.size),
            event: of_object(|it| Some(&it.event)),
            event_time: of_object(|it| it.event_time.as_ref())
                .and_then(|time| humantime::parse_rfc3339(&time).ok()),
            region: of_object(|it| it.region.as_ref()),
            sequencer: of_object(|it| it.sequencer.as_ref()),
            deadline: Instant::now() + remaining,
            inner: Arc::new(inner),
        }
    }

    /// The object as a complete, verified file. With `--input none`, the first call downloads it.
    /// Without an object (`--accept-raw`), the file has the message's body.
    pub async fn path(&self) -> Result<&Path, Failure> {
        let fetched = self.inner.input.get_or_try_init(|| async {
            let fetch = self.inner.fetch.as_ref().ok_or_else(|| {
                Failure::permanent("this job has no object; the message's body is Job::body")
            })?;
            let fetched = self.inner.halt.run_until_cancelled(fetch.fetch()).await;
            let halted = || Failure::retry("the job was cancelled during the download");
            fetched.ok_or_else(halted)?.map_err(of_fetch)
        });
        fetched.await.map(PathBuf::as_path)
    }

    /// The object as a stream: for objects of any size.
    pub async fn stream(
        &self,
    ) -> Result<impl AsyncRead + AsyncSeek + Send + Sync + Unpin + use<>, Failure> {
        File::open(self.path().await?).await.map_err(Failure::retry)
    }

    /// The object in memory, up to 256 MiB; a larger one is a permanent failure.
    pub async fn bytes(&self) -> Result<Vec<u8>, Failure> {
        let path = self.path().await?;
        let size = tokio::fs::metadata(path).await.map_err(Failure::retry)?.len();
        if size > LARGEST {
            let why = format!(
                "the object has {size} bytes, and Job::bytes reads at most {LARGEST}: use Job::stream or Job::path"
            );
            return Err(Failure::permanent(why));
        }
        tokio::fs::read(path).await.map_err(Failure::retry)
    }

    /// The object as text; if it is not UTF-8, that is a permanent failure.
    pub async fn text(&self) -> Result<String, Failure> {
        String::from_utf8(self.bytes().await?).map_err(Failure::permanent)
    }

    /// The object as JSON; if it is not a `T`, that is a permanent failure.
    pub async fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.bytes().await?).map_err(Failure::permanent)
    }

    /// The body of the message, as it was sent.
    pub async fn body(&self) -> Result<String, Failure> {
        match &self.inner.on_demand {
            Some(on_demand) => Ok(on_demand.body.clone()),
            None => tokio::fs::read_to_string(&self.inner.body_file).await.map_err(Failure::retry),
        }
    }

    /// The body of the message as JSON; if it is not a `T`, that is a permanent failure.
    pub async fn body_json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_str(&self.body().await?).map_err(Failure::permanent)
    }

    /// The directory for results, which the first call makes. Its files are dropped unless `--output`
    /// is set (or `--outbox`, with `local`).
    pub async fn output_dir(&self) -> Result<&Path, Failure> {
        self.inner.made(&self.inner.output_dir).await
    }

    /// The directory for partial state, which the first call makes, with the files of the attempt
    /// before. They are dropped unless `--checkpoint` is set.
    pub async fn checkpoint_dir(&self) -> Result<&Path, Failure> {
        self.inner.made(&self.inner.checkpoint_dir).await
    }

    /// When the job will be cancelled, by `--max-duration`.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The time until [`deadline`](Self::deadline).
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Completes when the job must end: a stop, a lost lease, `--max-duration`. After that, the
    /// handler has the stop grace, and a success no longer counts.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + use<> {
        self.inner.halt.clone().cancelled_owned()
    }

    /// Whether the job must end now; see [`cancelled`](Self::cancelled).
    pub fn is_cancelled(&self) -> bool {
        self.inner.halt.is_cancelled()
    }

    /// A token that is cancelled with the job, to pass on.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.inner.halt.child_token()
    }

    /// Reports progress, from 0 to 1, for the log and the metrics. It also resets
    /// `--stall-timeout`.
    pub fn progress(&self, share: f64) {
        self.inner.activity.report("progress", share.clamp(0.0, 1.0).into());
    }

    /// Reports what the handler does at the moment, such as `resizing`. It also resets
    /// `--stall-timeout`.
    pub fn status(&self, text: &str) {
        self.inner.activity.report("text", text.into());
    }

    /// Reports a number about this work, such as its rows, for the log and the metrics. Names have
    /// lower-case letters, digits and `_`; the last value of a name counts.
    pub fn metric(&self, name: &str, value: f64) {
        self.inner.activity.report_metric(name, value);
    }

    /// The same job, which owns the folder of its files.
    #[cfg(feature = "testing")]
    pub(super) fn in_folder(mut self, home: tempfile::TempDir) -> Self {
        Arc::get_mut(&mut self.inner).expect("it has no clone yet").home = Some(home);
        self
    }
}

impl Inner {
    /// Makes the folder, if it does not exist yet, on a thread that may wait for the disk. Also for a
    /// job that was cancelled: it may save its partial state.
    async fn made<'a>(&self, folder: &'a Path) -> Result<&'a Path, Failure> {
        if let Some(on_demand) = self.on_demand.clone() {
            let path = folder.to_owned();
            let made = spawn_blocking(move || on_demand.folders.make(&path)).await;
            let failed =
                |error| Failure::retry(format!("{} cannot be made: {error}", folder.display()));
            made.map_err(Failure::retry)?.map_err(failed)?;
        }
        Ok(folder)
    }
}

fn of_fetch(why: outcome::Failure) -> Failure {
    if let outcome::Failure::Unreadable(why) = why {
        return Failure::permanent(why);
    }
    if let outcome::Failure::Fetch(why) = why {
        return Failure::retry(why);
    }
    // A fetch ends in no other way.
    Failure::retry("the object could not be fetched")
}
