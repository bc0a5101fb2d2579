//! The world, in our own words: a queue, a store of objects, a way to run a command, a clock.
//!
//! Errors are classified here, at the border; a variant exists only if somebody acts on it.

pub mod checksum;
pub mod clock;
pub mod health;
pub mod job_facts;

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio_util::sync::CancellationToken;

use crate::job::delivery::{Delivery, MessageId, ReceiptHandle, Redrive};
use crate::job::notification::Object;
use crate::job::outcome::{Exit, Manifest, ResourceUsage};
use crate::job::report::{Observation, Report};
use crate::job::s3_location::LocationTemplate;
use crate::job::verdict::DeletePermit;
use checksum::Checksum;
use job_facts::JobFacts;

/// A queue with SQS's semantics: at least once, a visibility timeout, a receipt handle per
/// delivery.
///
/// Every call is a single attempt, limited in time by whoever calls: retries are the callers'
/// business.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Waits up to `wait` (at most 20 s) for one message and hides it for `visibility` (whole
    /// seconds).
    ///
    /// Never drop the returned future: a message may be on its way to it.
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError>;

    /// Hides the message for `visibility` from now on, in place of what was left; zero makes it
    /// visible.
    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError>;

    async fn delete(
        &self,
        receipt: &ReceiptHandle,
        permit: DeletePermit,
    ) -> Result<(), DeleteError>;

    /// The queue's redrive policy; [`Redrive::Unknown`] with a warning if it cannot ever be read.
    /// The error says why there was no answer, and is worth asking again.
    async fn redrive(&self) -> Result<Redrive, String>;
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// Worth asking again: throttled, 5xx, network, KMS.
    #[error("{0}")]
    Transient(String),
    /// Asking again is pointless: no such queue, malformed URL, no credentials.
    #[error("{0}")]
    Misconfigured(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VisibilityError {
    /// The queue says that this delivery is over: expired, deleted or received again.
    #[error("the message is no longer in flight for this receipt handle: {0}")]
    NotInFlight(String),
    /// Hidden for 12 hours in all would be exceeded.
    #[error("SQS's limit of 12 hours is reached: {0}")]
    AtCeiling(String),
    /// Nothing was changed; the same call may succeed later.
    #[error("{0}")]
    Transient(String),
    /// No answer, or none that says whether something was changed. An extension may be repeated. A
    /// release may not: it may have made the message visible, and then a second one acts on whoever
    /// received it since.
    #[error("{0}")]
    Unclear(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeleteError {
    /// The queue refused for good: the handle expired (FIFO queues say so) or never was one.
    #[error("the queue refused the delete: {0}")]
    Refused(String),
    #[error("{0}")]
    Transient(String),
}

/// Where the objects are.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// Opens exactly the object that the event told of: its version, else its eTag.
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError>;

    /// Opens some bytes of it, which are there; all from `range.start` on if `range.end` is
    /// `u64::MAX`. Without a version or an eTag it may have become another one.
    async fn open_range(&self, object: &Object, range: Range<u64>)
    -> Result<RangeBody, FetchError>;
}

/// Bytes as they come; none after an error.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// An object's bytes, and what the store tells of them before they come.
pub struct ObjectBody {
    /// In bytes; `None` if the answer does not say it: then the bytes end where the object does, or
    /// with an error.
    pub size: Option<u64>,
    /// Without quotes.
    pub etag: Option<String>,
    /// If it is one that can be compared with that of the bytes.
    pub checksum: Option<Checksum>,
    pub bytes: ByteStream,
}

/// Some of an object's bytes, or all of them from a store that does not know ranges.
pub struct RangeBody {
    /// Where in the object they begin: where it was asked for, or before.
    pub start: u64,
    /// The object's, in bytes, if the answer says it.
    pub size: Option<u64>,
    pub bytes: ByteStream,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// There is none (404): deleted since, or, as S3's events can outrun a replication, not there
    /// yet.
    #[error("{0}")]
    Missing(String),
    /// There is another one (412): overwritten since the event.
    #[error("{0}")]
    Overwritten(String),
    /// May work later.
    #[error("{0}")]
    Retryable(String),
    /// Will never work: archived, encrypted with a customer's own key, a delete marker, or a name
    /// that is none.
    #[error("{0}")]
    Permanent(String),
}

/// Where records and files can be left.
#[async_trait]
pub trait ObjectWriter: Send + Sync {
    /// Writes the object, in place of an earlier one; the error says why not.
    async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> Result<(), String>;

    /// Writes a file as an object, in place of an earlier one; the error says why not. When `halt`
    /// is cancelled, it is given up, and the earlier one stays.
    async fn upload(
        &self,
        upload: &Upload<'_>,
        halt: &CancellationToken,
    ) -> Result<Uploaded, String>;
}

/// A file, and which object it is to be.
#[derive(Debug, Clone, Copy)]
pub struct Upload<'a> {
    pub bucket: &'a str,
    pub key: &'a str,
    pub path: &'a Path,
    /// How many there are in the file.
    pub bytes: u64,
    /// Its MIME type.
    pub content_type: &'a str,
}

/// What the store says of a file that it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// Without quotes.
    pub etag: Option<String>,
    pub checksum: Checksum,
}

/// All that can be done with objects.
#[async_trait]
pub trait Storage: ObjectStore + ObjectWriter {
    /// All keys that begin with `prefix`. The error says why not.
    async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, String>;

    /// The object is gone afterwards, also if there was none; the error says why not.
    async fn delete(&self, bucket: &str, key: &str) -> Result<(), String>;
}

/// Small objects that several pods read and write: each write on a condition, so that of two at the
/// same time one fails.
#[async_trait]
pub trait Records: Send + Sync {
    /// `None` if there is no such record.
    async fn read(&self, bucket: &str, key: &str) -> Result<Option<Entry>, RecordError>;

    /// Writes the record if the condition holds, and returns its new eTag. If an error leaves it
    /// open whether it was written, who wants to know has to read it.
    async fn write(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        condition: Condition<'_>,
    ) -> Result<String, RecordError>;
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub bytes: Vec<u8>,
    pub etag: String,
    /// How long ago it was written, in whole seconds, by the store's own clock; zero if the store
    /// does not tell.
    pub age: Duration,
}

/// When a record may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition<'a> {
    /// There is none.
    Absent,
    /// It has this eTag.
    Unchanged(&'a str),
}

impl Condition<'_> {
    /// Which one it must have, if there must be one.
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
    /// Not allowed, or not possible: asking again is pointless until somebody changes that.
    #[error("{0}")]
    Refused(String),
    /// The store writes whether or not a condition holds, so that its records prove nothing, or
    /// refuses conditions.
    #[error("{0}")]
    ConditionsUnsupported(String),
    #[error("{0}")]
    Retryable(String),
}

/// Where results go: somebody who publishes what the command wrote into `JOB_OUTPUT_DIR`.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Would it publish something, if the task says this place for results, or none?
    fn takes(&self, _: Option<&LocationTemplate>) -> bool {
        true
    }

    /// Publishes all files below the directory; all of them or an error. A symbolic link, or
    /// anything else that is neither a file nor a folder, is an error. When `halt` is cancelled, it
    /// is given up, with an error.
    async fn publish(
        &self,
        results: &Results<'_>,
        halt: &CancellationToken,
    ) -> Result<Manifest, PublishError>;
}

/// What a command wrote, and for which job.
#[derive(Debug, Clone, Copy)]
pub struct Results<'a> {
    /// `None` if the message's body itself was the work.
    pub object: Option<&'a Object>,
    pub message_id: &'a MessageId,
    pub job_type: &'a str,
    /// The place in S3 that the task says.
    pub to: Option<&'a LocationTemplate>,
    pub directory: &'a Path,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PublishError(pub String);

/// A way to run the user's command.
#[async_trait]
pub trait Runner: Send + Sync {
    /// Runs the command to its end. When `halt` is cancelled, or the returned future is dropped,
    /// the command's whole process group is ended: in the first case by TERM, `stop_grace`, KILL;
    /// in the second by KILL. When this returns, nothing of the command is left.
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError>;
}

/// Beats whenever a command prints something.
#[derive(Debug, Clone, Default)]
pub struct Activity(Arc<AtomicBool>);

impl Activity {
    pub fn record(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Has it beaten since it was last asked?
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// A command, as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub program: OsString,
    pub args: Vec<OsString>,
    /// Added to our own environment (less `LEASEHOLD_*`, which is ours alone), and written to
    /// `JOB_FILE`.
    pub job: JobFacts,
    /// What it reads from its standard input; nothing if `None`.
    pub stdin: Option<PathBuf>,
    /// How long it may take to end after TERM.
    pub stop_grace: Duration,
}

/// A command that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    pub exit: Exit,
    /// `None` if nobody counted.
    pub usage: Option<ResourceUsage>,
    /// The last lines that it wrote to its standard error, the oldest first.
    pub stderr_tail: Vec<String>,
}

/// The command could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{program}: {why}")]
pub struct StartError {
    pub program: String,
    pub why: String,
}

/// Somebody who passes on what a run has to tell. Nothing waits for it, and nothing depends on it.
#[async_trait]
pub trait Telemetry: Send + Sync {
    /// Returns when it is told, or given up; the next report waits for that.
    async fn report(&self, report: &Report);

    /// Counts. Returns at once.
    fn record(&self, observation: Observation);
}
