//! The public API: work that is a Rust function instead of a command.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use async_trait::async_trait;
use serde_json::json;
use tokio::runtime::{Handle, Runtime};
use tokio::time::timeout;
pub use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, error};

use crate::app;
use crate::job::outcome::Exit;
use crate::ports::job_facts::{JobFacts, ObjectFacts};
use crate::ports::{Activity, Command, Exited, Runner, StartError};
use crate::settings::command_line;

/// Work on one object.
#[async_trait]
pub trait Work: Send + Sync + 'static {
    /// When this succeeds for all objects of a message, the message is deleted. A panic is a
    /// failure.
    async fn process(&self, job: Job) -> Result<(), Failure>;
}

/// Why the message is kept.
#[derive(Debug)]
pub enum Failure {
    /// May succeed later: retried after this delay, or after the usual backoff.
    Temporary { reason: String, retry_after: Option<Duration> },
    /// Can never succeed with this input: redrive moves the message to the dead-letter queue.
    Permanent(String),
    /// Anything else: retried with backoff.
    Failed(String),
}

/// Unexpected errors are retried.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The work to do: the same facts that a command finds in `JOB_FILE`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Job {
    pub id: String,
    pub job_type: String,
    pub message_id: String,
    /// The sender's message attributes, by name; binary values in Base64.
    pub attributes: BTreeMap<String, String>,
    pub message_group_id: Option<String>,
    pub message_deduplication_id: Option<String>,
    /// By the queue's clock.
    pub sent_at: Option<SystemTime>,
    /// By the queue's clock.
    pub first_received_at: Option<SystemTime>,
    pub queue_url: Option<String>,
    /// A file with the message's body, as it was sent.
    pub body_file: PathBuf,
    /// 1 = first attempt.
    pub receive_count: u32,
    /// The queue's `maxReceiveCount`, if it is known.
    pub max_receive_count: Option<u32>,
    /// Whether this is the last attempt before the dead-letter queue, if it is known.
    pub final_attempt: Option<bool>,
    /// This and the fields of the object are `None` if the message is not an S3 notification
    /// (`--accept-raw`).
    pub bucket: Option<String>,
    pub key: Option<String>,
    pub version_id: Option<String>,
    pub etag: Option<String>,
    /// In bytes.
    pub size: Option<u64>,
    pub event: Option<String>,
    /// When the event happened, as its sender writes it: RFC 3339.
    pub event_time: Option<String>,
    pub region: Option<String>,
    /// Orders the events of one key; hexadecimal.
    pub sequencer: Option<String>,
    /// When the work will be stopped, RFC 3339.
    pub deadline: String,
    input: Option<PathBuf>,
    /// The directory for results. Always set; its files are dropped unless `--output` is set.
    pub output_dir: Option<PathBuf>,
    /// The directory for partial state. Always set; its files are dropped unless `--checkpoint` is
    /// set.
    pub checkpoint_dir: Option<PathBuf>,
    result_file: PathBuf,
    /// Cancelled when the work must end: a stop, a lost lease, `--max-duration`. A later success is
    /// ignored.
    pub halt: CancellationToken,
    activity: Activity,
}

impl Job {
    fn new(facts: JobFacts, halt: CancellationToken, activity: Activity) -> Self {
        let deadline = humantime::format_rfc3339_seconds(facts.deadline).to_string();
        let JobFacts {
            id,
            job_type,
            message_id,
            message,
            receive_count,
            max_receive_count,
            final_attempt,
            ..
        } = facts;
        let JobFacts { object, input, output_dir, checkpoint_dir, result_file, body_file, .. } =
            facts;
        let of_object =
            |text: fn(&ObjectFacts) -> Option<&String>| object.as_ref().and_then(text).cloned();
        let (output_dir, checkpoint_dir) = (Some(output_dir), Some(checkpoint_dir));
        Self {
            id,
            job_type,
            message_id,
            attributes: message.attributes,
            message_group_id: message.message_group_id,
            message_deduplication_id: message.message_deduplication_id,
            sent_at: message.sent_at,
            first_received_at: message.first_received_at,
            queue_url: message.queue_url,
            body_file,
            receive_count,
            max_receive_count,
            final_attempt,
            bucket: of_object(|it| Some(&it.bucket)),
            key: of_object(|it| Some(&it.key)),
            version_id: of_object(|it| it.version_id.as_ref()),
            etag: of_object(|it| it.etag.as_ref()),
            size: object.as_ref().and_then(|it| it.size),
            event: of_object(|it| Some(&it.event)),
            event_time: of_object(|it| it.event_time.as_ref()),
            region: of_object(|it| it.region.as_ref()),
            sequencer: of_object(|it| it.sequencer.as_ref()),
            deadline,
            input,
            output_dir,
            checkpoint_dir,
            result_file,
            halt,
            activity,
        }
    }

    /// The object as a file; an error with `--input none`.
    pub fn input(&self) -> Result<&Path, Failure> {
        self.input.as_deref().ok_or_else(|| {
            Failure::Failed("the object was not downloaded: --input is none".to_owned())
        })
    }

    /// Reports progress, from 0 to 1, for the log and the metrics. It also resets
    /// `--stall-timeout`.
    pub fn progress(&self, share: f64, text: &str) {
        self.activity.record();
        self.append_result(&json!({ "progress": share.clamp(0.0, 1.0), "text": text }));
    }

    /// Reports a number about this work, such as its rows, for the log and the metrics: see
    /// `metrics` in `JOB_RESULT_FILE` for valid names. The last value of a name counts.
    pub fn metric(&self, name: &str, value: f64) {
        self.append_result(&json!({ "metrics": { name: value } }));
    }

    /// Appends a line to the result file. An error must not fail the work.
    fn append_result(&self, line: &serde_json::Value) {
        let file = OpenOptions::new().append(true).create(true).open(&self.result_file);
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }
}

/// Runs a whole program around `work`: command line, environment, signals, exit code.
pub fn main(work: impl Work) -> ExitCode {
    Program::new(work).main()
}

/// A program with its own name and defaults.
///
/// ```no_run
/// # use leasehold::{Failure, Job, Program, Work, async_trait};
/// # struct Resize;
/// # #[async_trait]
/// # impl Work for Resize {
/// #     async fn process(&self, _: Job) -> Result<(), Failure> { Ok(()) }
/// # }
/// fn main() -> std::process::ExitCode {
///     Program::new(Resize).name("resize").default("max-duration", "2h").default("input", "file").main()
/// }
/// ```
pub struct Program {
    work: Arc<dyn Work>,
    name: &'static str,
    defaults: Vec<(&'static str, &'static str)>,
}

impl Program {
    pub fn new(work: impl Work) -> Self {
        Self { work: Arc::new(work), name: "leasehold", defaults: Vec::new() }
    }

    /// The program's name in its help.
    #[must_use]
    pub fn name(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// The default of `--flag`, if neither the command line nor `LEASEHOLD_FLAG` sets it, in the
    /// same format. [`main`](Self::main) refuses a flag that does not exist.
    #[must_use]
    pub fn default(mut self, flag: &'static str, value: &'static str) -> Self {
        self.defaults.push((flag, value));
        self
    }

    /// Runs the program to its end. Return the exit code from your `main`: the pod's restarts
    /// depend on it.
    pub fn main(self) -> ExitCode {
        let signals = app::signals::block();
        let Self { work, name, defaults } = self;
        let parse =
            || command_line::parse_without_command(name, &defaults, std::env::args_os().collect());
        app::main(signals, parse, Some(Arc::new(InProcess { work, threads: Threads::Dedicated })))
    }
}

/// Runs work like a command: its result becomes an exit code, so that both have the same contract.
pub struct InProcess {
    pub work: Arc<dyn Work>,
    pub threads: Threads,
}

/// The threads on which a function runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// New threads for each call. A busy function cannot delay a heartbeat, which tokio does not
    /// guarantee among tasks of one runtime; and a function that never ends blocks nothing.
    Dedicated,
    /// The caller's threads, for tests.
    #[cfg_attr(
        not(feature = "internals"),
        expect(dead_code, reason = "for tests on a paused clock")
    )]
    Shared,
}

impl Threads {
    fn start(self) -> std::io::Result<Started> {
        let dedicated = (self == Self::Dedicated).then(Runtime::new).transpose()?;
        Ok(Started(dedicated))
    }
}

/// A dedicated runtime, if any. Dropping it does not wait for its tasks.
struct Started(Option<Runtime>);

impl Started {
    fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[async_trait]
impl Runner for InProcess {
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        let start_error =
            |why| StartError { program: "the work".to_owned(), why, ends_the_run: false };
        let job = Job::new(command.job, halt.clone(), activity);
        let (work, working_on) = (self.work.clone(), job.clone());
        let working = async move { work.process(working_on).await }.in_current_span();
        let threads = self.threads.start().map_err(|error| start_error(error.to_string()))?;
        let mut working = AbortOnDropHandle::new(threads.handle().spawn(working));
        let ended = tokio::select! {
            ended = &mut working => Some(ended),
            () = halt.cancelled() => timeout(command.stop_grace, &mut working).await.ok(),
        };
        let (code, reason, retry_after) = match ended {
            Some(Ok(Ok(()))) => (0, None, None),
            Some(Ok(Err(Failure::Temporary { reason, retry_after }))) => {
                (75, Some(reason), retry_after)
            }
            Some(Ok(Err(Failure::Permanent(reason)))) => (65, Some(reason), None),
            Some(Ok(Err(Failure::Failed(reason)))) => (1, Some(reason), None),
            Some(Err(panic)) => (101, Some(format!("the work panicked: {panic}")), None),
            None => {
                error!("the work did not end within --stop-grace and is cancelled");
                return Ok(Exited::killed());
            }
        };
        if reason.is_some() || retry_after.is_some() {
            let retry_after = retry_after.map(|delay| delay.as_secs_f64());
            job.append_result(&json!({ "reason": reason, "retry_after": retry_after }));
        }
        Ok(Exited {
            exit: Exit::Code(code),
            usage: None,
            stderr_tail: reason.into_iter().collect(),
            out_of_memory: None,
        })
    }
}
