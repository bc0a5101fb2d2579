//! Tests of a handler without AWS, and without waiting: feature `testing`.
//!
//! ```
//! use leasehold::testing::TestWorker;
//! use leasehold::{Error, Failure, Job, Outcome};
//!
//! async fn import(job: Job) -> Result<(), Error> {
//!     if job.text().await?.is_empty() {
//!         return Err(Failure::permanent("the file is empty").into());
//!     }
//!     Ok(())
//! }
//!
//! # let _ = r#"
//! #[tokio::test(start_paused = true)]
//! # "#;
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! async fn an_empty_file_goes_to_the_dead_letter_queue() {
//!     let run = TestWorker::new(import).object("empty.csv", "").run().await;
//!     assert_eq!(run.outcomes(), [Outcome::Permanent; 3]);
//!     assert_eq!(run.dead_letters(), ["empty.csv"]);
//! }
//! # an_empty_file_goes_to_the_dead_letter_queue().await });
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::handler::{AnyHandler, BatchHandler, Batches, Handler, OneJob};
use super::in_process::runner;
use super::job::Job;
use super::outcome::Outcome;
use super::settings::{batch_setters, setters};
use super::threads::Threads;
use crate::actors::supervisor::{self, World};
use crate::adapters::local::folder::{Folder, Listing};
use crate::adapters::local::memory::{Kind, MemoryQueue, QueueState};
use crate::adapters::local::outbox::FolderOutbox;
use crate::adapters::local::rehearsal::{Fault, Rehearsal};
use crate::adapters::local::store::FolderStore;
use crate::job::delivery::Redrive;
use crate::job::report::{Ended, Observation, Report};
use crate::job::s3_location::is_bucket_name;
use crate::job::settings::Settings;
use crate::job::verdict::{Return, Settlement};
use crate::ports::clock::Clock;
use crate::ports::health::Health;
use crate::ports::job_facts::{JobFacts, MessageFacts, ObjectFacts};
use crate::ports::{Activity, Command, Telemetry};
use crate::settings::given::Values;
use crate::settings::in_code::{as_code, local_settings};
use crate::settings::resolve::LocalConfig;
use crate::telemetry::records::{log_ended, log_started};
use crate::work::CommandWorker;
use crate::work::checkpoint::Checkpoints;
use crate::work::idempotency::Idempotency;
use crate::work::threads::WorkThreads;

/// Runs a handler as a worker does, with a queue in memory and a folder as a bucket: retries,
/// stops, lost leases, results and checkpoints. With `#[tokio::test(start_paused = true)]`, no
/// delay takes time.
#[must_use]
pub struct TestWorker<K = OneJob> {
    handler: AnyHandler,
    values: Values,
    bucket: String,
    objects: Vec<(String, Vec<u8>)>,
    messages: Vec<String>,
    max_receive_count: u32,
    fault: Option<Fault>,
    stop_after: Option<Duration>,
    kind: PhantomData<fn() -> K>,
}

impl TestWorker {
    /// A worker without messages.
    pub fn new(handler: impl Handler) -> Self {
        Self::with(AnyHandler::new(handler))
    }

    /// A worker without messages, whose handler takes several jobs at once: up to 10, or
    /// [`batch_size`](TestWorker::batch_size). A [`batch_window`](TestWorker::batch_window) of a
    /// second puts the first messages of the test into one batch.
    pub fn batch(handler: impl BatchHandler) -> TestWorker<Batches> {
        TestWorker::with(AnyHandler::batch(handler))
    }
}

impl TestWorker<Batches> {
    batch_setters!();
}

impl<K> TestWorker<K> {
    fn with(handler: AnyHandler) -> Self {
        Self {
            handler,
            values: Vec::new(),
            bucket: "inbox".to_owned(),
            objects: Vec::new(),
            messages: Vec::new(),
            max_receive_count: 3,
            fault: None,
            stop_after: None,
            kind: PhantomData,
        }
    }

    fn values_mut(&mut self) -> &mut Values {
        &mut self.values
    }

    setters!();

    /// The bucket of all objects, for `buckets` and job types; `inbox` by default. A name that no
    /// bucket can have panics in [`run`](Self::run).
    pub fn bucket(mut self, name: impl Into<String>) -> Self {
        self.bucket = name.into();
        self
    }

    /// Adds an object, and a message about it.
    pub fn object(mut self, key: impl Into<String>, bytes: impl AsRef<[u8]>) -> Self {
        self.objects.push((key.into(), bytes.as_ref().to_vec()));
        self
    }

    /// Adds a message that is not an S3 notification; see `accept_raw`.
    pub fn message(mut self, body: impl Into<String>) -> Self {
        self.messages.push(body.into());
        self
    }

    /// After how many receives a message becomes a dead letter; 3 by default.
    pub fn max_receive_count(mut self, receives: u32) -> Self {
        self.max_receive_count = receives;
        self
    }

    /// Stops the first worker gracefully after this time; another one continues.
    pub fn stop_after(mut self, time: Duration) -> Self {
        self.stop_after = Some(time);
        self
    }

    /// Refuses the first extension of each lease, as if another worker had received the message.
    pub fn lose_leases(mut self) -> Self {
        self.fault = Some(Fault::LostLease);
        self
    }

    /// Delivers each message again after it succeeded.
    pub fn redeliver(mut self) -> Self {
        self.fault = Some(Fault::Redelivery);
        self
    }

    /// Runs until every message is deleted or a dead letter. A setting that cannot work panics.
    pub async fn run(self) -> TestRun {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| home.path().join(name);
        let inbox = write_all(&path("buckets"), &self.bucket, &self.objects)
            .expect("the keys are file names");
        let takes_batches = self.handler.takes_batches();
        let settings = local_settings(&self.values, takes_batches)
            .and_then(|args| Ok(LocalConfig::try_from(args)?));
        let LocalConfig { mut work, records, .. } =
            settings.unwrap_or_else(|why| panic!("{}", as_code(&why.text)));
        let lanes = work.batch.size;
        if takes_batches {
            // All of them belong to one worker.
            work.settings.policy.max_messages = u32::MAX;
        }
        let queue = MemoryQueue::new(
            Kind::Standard,
            Redrive::DeadLetter {
                max_receive_count: self.max_receive_count,
                queue: "dead-letters".to_owned(),
            },
        );
        let folder = Folder::new(&inbox).expect("the inbox exists");
        let Listing { files, .. } = folder.list().expect("the inbox is readable");
        let mut names = BTreeMap::new();
        for (key, _) in &self.objects {
            let file = files.iter().find(|file| file.object.key == *key).expect("it was written");
            names.insert(queue.send(file.notification()).as_str().to_owned(), key.clone());
        }
        for body in &self.messages {
            names.insert(queue.send(body.clone()).as_str().to_owned(), body.clone());
        }
        let store = Arc::new(FolderStore::new(&path("state")).expect("a new folder"));
        let clock = Clock::start();
        let telemetry = Arc::new(Recorded(Mutex::default()));
        let runner =
            runner(self.handler, Threads::Shared(Handle::current()), work.batch.sharing(1));
        let worker = CommandWorker {
            checkpoints: Some(Checkpoints { storage: store.clone(), clock }),
            idempotency: records.idempotency.map(|location| Idempotency {
                records: store.clone(),
                location,
                queue: "test".to_owned(),
                owner: "test".to_owned(),
                clock,
            }),
            store: Arc::new(folder.with_moved(Some((*store).clone()))),
            runner,
            turns: None,
            fetch: work.fetch,
            outbox: Some(Arc::new(FolderOutbox::new(path("outbox")))),
            work_dir: work.work_dir,
            job_id: work.identity.job_id,
            queue_url: None,
            clock,
        };
        let pod = Rehearsal::new(queue.clone(), self.fault);
        let world = World {
            queue: Arc::new(pod.clone()),
            worker: Arc::new(worker),
            telemetry: telemetry.clone(),
            clock,
            work_threads: WorkThreads::Shared,
            health: Health::default(),
        };
        run_workers(&queue, &pod, &world, &work.settings, lanes, self.stop_after).await;
        let attempts = telemetry.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let dead = queue.dead_letters().into_iter();
        let dead_letters = dead.filter_map(|it| names.get(it.message_id.as_str()).cloned());
        TestRun { attempts, dead_letters: dead_letters.collect(), home }
    }
}

impl<K> fmt::Debug for TestWorker<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestWorker").finish_non_exhaustive()
    }
}

/// Runs one worker after another, until every message is deleted or a dead letter. The first one is
/// stopped after this time.
async fn run_workers(
    queue: &MemoryQueue,
    pod: &Rehearsal,
    world: &World,
    settings: &Settings,
    lanes: usize,
    mut stop_after: Option<Duration>,
) {
    while queue.visible_or_drained().await == QueueState::Visible {
        pod.begin();
        let stop = CancellationToken::new();
        let _stopper = stop_after.take().map(|time| {
            let stop = stop.clone();
            AbortOnDropHandle::new(tokio::spawn(async move {
                sleep(time).await;
                stop.cancel();
            }))
        });
        supervisor::run_concurrently(world.clone(), settings.clone(), lanes, stop).await;
    }
}

/// What a [`TestWorker`] did.
#[derive(Debug)]
pub struct TestRun {
    attempts: Vec<Attempt>,
    dead_letters: Vec<String>,
    home: TempDir,
}

/// One attempt at a message.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Attempt {
    /// The key of the object; `None` without one.
    pub key: Option<String>,
    /// Success, or why the message was kept.
    pub outcome: Outcome,
    /// Why the message was kept, with all causes of the handler's error.
    pub error: Option<String>,
    /// When the message is visible again, if it was released.
    pub retry_after: Option<Duration>,
    /// The last progress that the handler reported.
    pub progress: Option<f64>,
    /// The numbers that the handler reported.
    pub metrics: BTreeMap<String, f64>,
}

impl TestRun {
    /// In the order of their ends.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// The outcomes of all attempts.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.attempts.iter().map(|attempt| attempt.outcome).collect()
    }

    /// The keys (or bodies) of the messages that became dead letters. All others were deleted.
    pub fn dead_letters(&self) -> &[String] {
        &self.dead_letters
    }

    /// A result of the handler: the file `name` in `Job::output_dir`, for the object `key`.
    pub fn output(&self, key: &str, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.home.path().join("outbox").join(key).join(name)).ok()
    }
}

/// Writes the objects into the folder of a bucket, and returns it.
fn write_all(buckets: &Path, bucket: &str, objects: &[(String, Vec<u8>)]) -> io::Result<PathBuf> {
    assert!(is_bucket_name(bucket), "{bucket:?} is not the name of a bucket");
    let folder = buckets.join(bucket);
    std::fs::create_dir_all(&folder)?;
    for (key, bytes) in objects {
        let path = folder.join(key);
        std::fs::create_dir_all(path.parent().unwrap_or(&folder))?;
        std::fs::write(path, bytes)?;
    }
    Ok(folder)
}

struct Recorded(Mutex<Vec<Attempt>>);

impl Recorded {
    fn add(&self, ended: &Ended) {
        let retry_after = match ended.settlement {
            Settlement::Kept(_, Return::After(delay)) => Some(delay),
            Settlement::Kept(..) | Settlement::Deleted(_) => None,
        };
        let metrics = ended.work.metrics.iter();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Attempt {
            key: ended.subject.objects.first().map(|object| object.key.clone()),
            outcome: Outcome::of(&ended.settlement),
            error: ended.error(),
            retry_after,
            progress: ended.progress.as_ref().and_then(|progress| progress.share),
            metrics: metrics.map(|(name, value)| (name.to_owned(), value)).collect(),
        });
    }
}

#[async_trait]
impl Telemetry for Recorded {
    async fn report(&self, report: &Report) {
        match report {
            Report::Started(subject) => log_started(subject),
            Report::Ended(ended) => {
                log_ended(ended, SystemTime::now());
                self.add(ended);
            }
            Report::Held(_) | Report::Progressed(_) | Report::Releasing(_) => {}
        }
    }

    fn record(&self, _: Observation) {}
}

/// Builds a [`Job`] for a direct call of a handler.
#[derive(Debug)]
#[must_use]
pub struct JobBuilder {
    key: String,
    object: Option<Vec<u8>>,
    body: String,
    attributes: BTreeMap<String, String>,
    receive_count: u32,
    time_left: Duration,
}

impl Job {
    /// A job about the object `key`, for a test that calls its handler itself.
    ///
    /// ```
    /// # use leasehold::{Error, Job};
    /// # async fn import(job: Job) -> Result<(), Error> {
    /// #     assert_eq!((job.text().await?.as_str(), job.receive_count), ("a;b", 2));
    /// #     Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let job = Job::builder("orders.csv").object("a;b").receive_count(2).build();
    /// import(job).await.unwrap();
    /// # });
    /// ```
    pub fn builder(key: impl Into<String>) -> JobBuilder {
        JobBuilder {
            key: key.into(),
            object: None,
            body: String::new(),
            attributes: BTreeMap::new(),
            receive_count: 1,
            time_left: Duration::from_mins(10),
        }
    }
}

impl JobBuilder {
    /// The object's bytes. Without them, [`Job::path`] fails.
    pub fn object(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.object = Some(bytes.as_ref().to_vec());
        self
    }

    /// The message's body.
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }

    /// A message attribute.
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(name.into(), value.into());
        self
    }

    /// The number of this attempt; 1 by default.
    pub fn receive_count(mut self, receives: u32) -> Self {
        self.receive_count = receives;
        self
    }

    /// The time until the job's deadline; 10 minutes by default.
    pub fn time_left(mut self, time: Duration) -> Self {
        self.time_left = time;
        self
    }

    /// The job. Its files are removed with its last clone.
    pub fn build(self) -> Job {
        let Self { key, object, body, attributes, receive_count, time_left } = self;
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| home.path().join(name);
        for folder in ["output", "checkpoint"] {
            std::fs::create_dir(path(folder)).expect("a new folder");
        }
        std::fs::write(path("body"), body).expect("writable");
        let input = object.as_ref().map(|bytes| {
            std::fs::write(path("input"), bytes).expect("writable");
            path("input")
        });
        let size = object.map(|bytes| bytes.len() as u64);
        let facts = JobFacts {
            message: MessageFacts { attributes, ..MessageFacts::default() },
            object: Some(ObjectFacts { size, ..ObjectFacts::example(&key) }),
            receive_count,
            deadline: SystemTime::now() + time_left,
            input,
            ..JobFacts::example("message-1", home.path())
        };
        let command = Command {
            program: "the handler".into(),
            args: Vec::new(),
            job: facts,
            stdin: None,
            variables: None,
            fetch: None,
            on_demand: None,
            stop_grace: Duration::ZERO,
        };
        Job::new(command, CancellationToken::new(), Activity::default()).in_folder(home)
    }
}
