//! The interfaces to the outside: a queue, an object store, a command runner, a clock.
//!
//! Errors are classified here; a variant exists only if the program handles it differently.

mod activity;
pub mod causes;
pub mod checksum;
pub mod clock;
pub mod health;
pub mod job_facts;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio_util::sync::CancellationToken;

use crate::job::delivery::{Delivery, MessageId, ReceiptHandle, Redrive};
use crate::job::notification::Object;
use crate::job::object_attributes::ObjectAttributes;
use crate::job::on_success::{ActedOn, OnSuccess};
use crate::job::outcome::{Exit, Failure, Manifest, ResourceUsage};
use crate::job::report::{Observation, Report};
use crate::job::s3_location::LocationTemplate;
use crate::job::verdict::DeletePermit;
pub use activity::Activity;
use checksum::Checksum;
use job_facts::JobFacts;

/// A queue with SQS's semantics: at least once, a visibility timeout, a receipt handle per
/// delivery.
///
/// Every call is a single attempt. The caller limits its time and retries it.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Waits up to `wait` (at most 20 s) for one message and hides it for `visibility` (whole
    /// seconds).
    ///
    /// Never drop the returned future: SQS may already have sent a message to it.
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError>;

    /// Hides the message for `visibility` from now on, replacing the remaining time; zero makes it
    /// visible.
    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError>;

    /// Makes the message visible after `delay`. No other call for this delivery follows, unless the
    /// answer shows that nothing was changed.
    async fn release(
        &self,
        receipt: &ReceiptHandle,
        delay: Duration,
    ) -> Result<(), VisibilityError> {
        self.change_visibility(receipt, delay).await
    }

    async fn delete(
        &self,
        receipt: &ReceiptHandle,
        permit: DeletePermit,
    ) -> Result<(), DeleteError>;

    /// The queue's redrive policy; [`Redrive::Unknown`] with a warning if it can never be read.
    /// After an error, with the reason, a retry may succeed.
    async fn redrive(&self) -> Result<Redrive, String>;
}

/// A queue that takes several calls in one request.
///
/// Each entry has its own result, in the order of the entries. An error of the whole request is the
/// result of each of them; an entry that the answer does not mention has not succeeded.
#[cfg(any(feature = "aws", feature = "internals"))]
#[async_trait]
pub trait BatchQueue: Queue {
    /// Waits as [`Queue::receive`] does, until at least one message comes, and returns up to `most`.
    async fn receive_batch(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Result<Delivery, ReceiveError>>, ReceiveError>;

    async fn change_visibility_batch(
        &self,
        changes: &[(ReceiptHandle, Duration)],
    ) -> Vec<Result<(), VisibilityError>>;

    async fn delete_batch(
        &self,
        deletes: Vec<(ReceiptHandle, DeletePermit)>,
    ) -> Vec<Result<(), DeleteError>>;
}

/// How many entries a request may have (AWS, "Amazon SQS message quotas").
#[cfg(any(feature = "aws", feature = "internals"))]
pub const BATCH: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// A retry may succeed: throttled, 5xx, network, KMS.
    #[error("{0}")]
    Transient(String),
    /// A retry cannot succeed: no such queue, malformed URL, no credentials.
    #[error("{0}")]
    Misconfigured(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VisibilityError {
    /// The queue reports that this delivery has ended: expired, deleted or received again.
    #[error("the message is no longer in flight for this receipt handle: {0}")]
    NotInFlight(String),
    /// The call would exceed SQS's maximum of 12 hours.
    #[error("SQS's limit of 12 hours is reached: {0}")]
    AtCeiling(String),
    /// Nothing was changed; the same call may succeed later.
    #[error("{0}")]
    Transient(String),
    /// No answer, or one that does not show whether something was changed. An extension may be
    /// repeated. A release may not: it may have made the message visible, and a second one would
    /// act on the pod that has received it since.
    #[error("{0}")]
    Unclear(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeleteError {
    /// The queue refused permanently: the handle expired (only FIFO queues report this) or is
    /// invalid.
    #[error("the queue refused the delete: {0}")]
    Refused(String),
    #[error("{0}")]
    Transient(String),
    /// A queue that lets a delete wait did not send it: a stop or the end of the lease came first.
    #[error("not sent: {0}")]
    NotSent(&'static str),
}

/// The store of the objects to work on.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// Opens exactly the object of the event: its version, or else its eTag.
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError>;

    /// Opens an existing range of its bytes; all from `range.start` on if `range.end` is
    /// `u64::MAX`. Without a version or an eTag, another object may have replaced it.
    async fn open_range(&self, object: &Object, range: Range<u64>)
    -> Result<RangeBody, FetchError>;

    /// Acts on exactly the object of the event, after its work succeeded. An object that has
    /// replaced it stays as it is. May be repeated; the error is the reason.
    async fn act_on(&self, _: &Object, action: &OnSuccess) -> Result<ActedOn, String> {
        Err(format!("this store does not support {action}"))
    }
}

/// A stream of bytes; it ends after an error.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// An object's bytes, and what the store sends about them in advance.
pub struct ObjectBody {
    /// In bytes; `None` if the answer does not contain it: then the stream ends at the object's
    /// end, or with an error.
    pub size: Option<u64>,
    /// Without quotes.
    pub etag: Option<String>,
    /// Only if it can be compared with a checksum of the bytes.
    pub checksum: Option<Checksum>,
    pub bytes: ByteStream,
}

/// A range of an object's bytes, or all of them from a store without ranges.
pub struct RangeBody {
    /// Their offset in the object: the requested one, or a smaller one.
    pub start: u64,
    /// The object's size in bytes, if the answer contains it.
    pub size: Option<u64>,
    pub bytes: ByteStream,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No such object (404): deleted since the event, or not yet replicated.
    #[error("{0}")]
    Missing(String),
    /// Another object (412): overwritten since the event.
    #[error("{0}")]
    Overwritten(String),
    /// A later attempt may succeed.
    #[error("{0}")]
    Retryable(String),
    /// No attempt can succeed: archived, encrypted with a customer's own key, a delete marker, or
    /// an invalid name.
    #[error("{0}")]
    Permanent(String),
}

/// A store to write records and files to.
#[async_trait]
pub trait ObjectWriter: Send + Sync {
    /// Writes the object, replacing an earlier one; the error is the reason.
    async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> Result<(), String>;

    /// Writes a file as an object, replacing an earlier one; the error is the reason. When `halt`
    /// is cancelled, the upload is abandoned, and the earlier object stays.
    async fn upload(
        &self,
        upload: &Upload<'_>,
        halt: &CancellationToken,
    ) -> Result<Uploaded, String>;
}

/// A file, and the object to write it to.
#[derive(Debug, Clone, Copy)]
pub struct Upload<'a> {
    pub bucket: &'a str,
    pub key: &'a str,
    pub path: &'a Path,
    /// The file's size.
    pub bytes: u64,
    /// Its MIME type.
    pub content_type: &'a str,
    /// The store's defaults if `None`.
    pub attributes: Option<&'a ObjectAttributes>,
}

/// The store's answer to an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// Without quotes.
    pub etag: Option<String>,
    pub checksum: Checksum,
}

/// All operations on objects.
#[async_trait]
pub trait Storage: ObjectStore + ObjectWriter {
    /// All keys that begin with `prefix`; the error is the reason.
    async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, String>;

    /// Deletes the object; succeeds also if it does not exist. The error is the reason.
    async fn delete(&self, bucket: &str, key: &str) -> Result<(), String>;
}

/// Small objects that several pods read and write. Each write has a condition, so that one of two
/// concurrent writes fails.
#[async_trait]
pub trait Records: Send + Sync {
    /// `None` if there is no such record.
    async fn read(&self, bucket: &str, key: &str) -> Result<Option<Entry>, RecordError>;

    /// Writes the record if the condition holds, and returns its new eTag. If an error does not
    /// show whether it was written, the caller must read it.
    async fn write(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        condition: Condition<'_>,
    ) -> Result<String, RecordError>;
}

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub bytes: Vec<u8>,
    pub etag: String,
    /// How long ago it was written, in whole seconds by the store's clock; zero if the store does
    /// not report it.
    pub age: Duration,
}

/// When a record may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition<'a> {
    /// No record exists.
    Absent,
    /// The record has this eTag.
    Unchanged(&'a str),
}

impl Condition<'_> {
    /// The eTag that the record must have, if one must exist.
    pub fn etag(&self) -> Option<&str> {
        match self {
            Self::Absent => None,
            Self::Unchanged(etag) => Some(etag),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("another pod wrote the record")]
    ConditionFailed,
    /// Not permitted or not possible: a retry cannot succeed until the configuration changes.
    #[error("{0}")]
    Refused(String),
    /// The store ignores conditions, so its records prove nothing, or it refuses conditions.
    #[error("{0}")]
    ConditionsUnsupported(String),
    #[error("{0}")]
    Retryable(String),
}

/// Publishes the files that the command wrote into `JOB_OUTPUT_DIR`.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Does it publish results for a task with this output location, or with none?
    fn accepts(&self, _: Option<&LocationTemplate>) -> bool {
        true
    }

    /// Publishes all files below the directory, or returns an error. A symbolic link, or anything
    /// else that is neither a file nor a folder, is an error. When `halt` is cancelled, it stops
    /// with an error.
    async fn publish(
        &self,
        results: &Results<'_>,
        halt: &CancellationToken,
    ) -> Result<Manifest, PublishError>;
}

/// The results of a command, and their job.
#[derive(Debug, Clone, Copy)]
pub struct Results<'a> {
    /// `None` if the message's body itself was the work.
    pub object: Option<&'a Object>,
    pub message_id: &'a MessageId,
    pub job_type: &'a str,
    /// The task's output location in S3.
    pub to: Option<&'a LocationTemplate>,
    pub attributes: &'a ObjectAttributes,
    pub directory: &'a Path,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PublishError(pub String);

/// A way to run the user's command, or to do its work.
#[async_trait]
pub trait Runner: Send + Sync {
    /// The name of what it runs, for messages.
    fn name(&self) -> &'static str {
        "the command"
    }

    /// Does this process do the work? Then the job's files are made when it asks for them.
    fn is_in_process(&self) -> bool {
        false
    }

    /// Runs the command to its end. When `halt` is cancelled, the command's whole process group
    /// gets TERM, and KILL after `stop_grace`; when the returned future is dropped, it gets KILL.
    /// When this returns, all processes of the command have ended.
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError>;

    /// Ends the processes that stay for later messages. Called once, after all runs.
    async fn finish(&self) {}
}

/// Fetches the object of a job later, as a file in its workspace (`--input none`).
#[derive(Clone)]
pub struct FetchInput(Arc<dyn Fn() -> BoxFuture<'static, Result<PathBuf, Failure>> + Send + Sync>);

impl FetchInput {
    pub fn new(
        fetch: impl Fn() -> BoxFuture<'static, Result<PathBuf, Failure>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(fetch))
    }

    pub async fn fetch(&self) -> Result<PathBuf, Failure> {
        (self.0)().await
    }
}

impl fmt::Debug for FetchInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FetchInput")
    }
}

/// Makes the folders of a job.
pub trait JobFolders: Send + Sync + fmt::Debug {
    /// Makes the folder, unless it was made before.
    fn make(&self, folder: &Path) -> io::Result<()>;
}

/// What work in this process gets in place of files: most of it needs none.
#[derive(Debug, Clone)]
pub struct OnDemand {
    /// The message's body.
    pub body: String,
    pub folders: Arc<dyn JobFolders>,
}

/// A command.
#[derive(Debug, Clone)]
pub struct Command {
    pub program: OsString,
    pub args: Vec<OsString>,
    /// Added to our own environment (without `LEASEHOLD_*` and the variables of these facts), and
    /// written to `JOB_FILE`.
    pub job: JobFacts,
    /// Of a process that outlives the job: these variables instead of the job's, and no `JOB_FILE`.
    pub variables: Option<Vec<(OsString, OsString)>>,
    /// The file for its standard input; empty if `None`.
    pub stdin: Option<PathBuf>,
    /// Fetches the object, if it was not fetched in advance. A process cannot use it.
    pub fetch: Option<FetchInput>,
    /// If the job's files do not exist yet, and its folders are made when they are needed.
    pub on_demand: Option<Arc<OnDemand>>,
    /// How long it may take to end after TERM.
    pub stop_grace: Duration,
}

/// A command that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    pub exit: Exit,
    /// `None` if it was not measured.
    pub usage: Option<ResourceUsage>,
    /// The last lines of its standard error, the oldest first.
    pub stderr_tail: Vec<String>,
    /// How it ran out of memory, if it did.
    pub out_of_memory: Option<OutOfMemory>,
    /// Whether it is certain that nothing writes files for this job later: none of its processes
    /// remain, or a warm worker has finished it.
    pub left_no_writer: bool,
}

/// Both have the details as a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutOfMemory {
    /// `--memory-guard` ended the command.
    Guard(String),
    /// The kernel killed one of its processes.
    Kernel(String),
}

impl Exited {
    /// A run that was dropped, which kills the command.
    pub fn killed() -> Self {
        Self {
            exit: Exit::Signal(9),
            usage: None,
            stderr_tail: Vec::new(),
            out_of_memory: None,
            left_no_writer: false,
        }
    }
}

/// The memory of a container that the kernel cannot reclaim, and its limit, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    pub used: u64,
    pub limit: u64,
}

/// The command could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{program}: {why}")]
pub struct StartError {
    pub program: String,
    pub why: String,
    /// A warm worker has ended several times in a row before it took a message: the next
    /// messages would fail, too.
    pub ends_the_run: bool,
}

/// Receives the reports of a run. Reporting never affects an outcome.
#[async_trait]
pub trait Telemetry: Send + Sync {
    /// Returns when the report is sent or given up; the next report waits for that.
    async fn report(&self, report: &Report);

    /// Counts an observation. Returns immediately.
    fn record(&self, observation: Observation);
}
