//! 6 Ended: how the work on a message ended, and the facts about it.

use std::fmt;
use std::time::Duration;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            // Out of memory is by far the most frequent cause of a KILL from outside.
            Self::Signal(9) => f.write_str("signal 9 (KILL; out of memory?)"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// The command's report in `JOB_RESULT_FILE`: its last complete line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandReport {
    pub retry_after: Option<Duration>,
    pub reason: Option<String>,
}

/// The outcome of the work on all objects of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command exited 0 for each object, and its output was published.
    Finished,
    /// All objects are gone (`--missing-object ignore`).
    ObjectsGone,
    /// According to its record, an earlier delivery finished the work (`--idempotency`).
    AlreadyDone,
    /// The first failure; nothing after it was tried.
    Failed(Failure),
}

/// The first failure in the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The object could not be read this time.
    Fetch(String),
    /// The object can never be used: archived, overwritten since the event, or with a key that no
    /// argument can hold.
    Unreadable(String),
    /// The command did not run: no work directory, or no such command.
    Start(String),
    Exit(Exit, CommandReport),
    /// The command reached the memory limit (`--memory-guard`), or the kernel killed it there.
    OutOfMemory(String),
    Publish(String),
    /// The idempotency record could not be read or written.
    Record(String),
    /// Another pod has claimed the work.
    Superseded(String),
    /// Halted on request.
    Halted,
    /// A bug in leasehold or one of its libraries, triggered by this message.
    Panicked(String),
}

/// Why there was nothing to do for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoWorkReason {
    /// `s3:TestEvent`, which S3 sends when notifications are configured.
    TestEvent,
    /// None of its events is work (`--events`).
    Ignored,
    /// The objects are gone, which is not an error (`--missing-object ignore`).
    ObjectsGone,
}

/// The facts about the work on a message, beside its outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkRecord {
    /// How the last command ended, if one ran.
    pub exit: Option<Exit>,
    /// The command's own reason, see `JOB_RESULT_FILE`.
    pub reason: Option<String>,
    /// The error that kept occurring when the work was halted.
    pub last_error: Option<String>,
    /// The last lines of the last command's standard error, the oldest first.
    pub stderr_tail: Vec<String>,
    pub timings: Timings,
    /// `None` if no command ran.
    pub usage: Option<ResourceUsage>,
    /// `None` if publishing was not configured or not reached.
    pub published: Option<Manifest>,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From the receive request to its answer; mostly waiting.
    pub receive: Duration,
    pub fetch: Duration,
    pub command: Duration,
    pub publish: Duration,
    /// From the verdict to the queue's last answer.
    pub settle: Duration,
    /// From the receive to the end.
    pub total: Duration,
}

/// The resources that the commands of a message used, as `wait4(2)` counts them: each command's
/// first process and all descendants that were waited for. A process whose parent did not wait for
/// it is not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceUsage {
    /// User and system time together, of all commands.
    pub cpu: Duration,
    /// The largest resident set of one process, in bytes. `None` if it was no larger than
    /// leasehold's own: until a process becomes the command, the kernel counts our memory as its
    /// memory.
    pub peak_memory: Option<u64>,
}

impl ResourceUsage {
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, peak_memory: self.peak_memory.max(other.peak_memory) }
    }
}

/// The published output of the commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Number of files.
    pub files: u64,
    /// Their total size.
    pub bytes: u64,
    /// The first [`Manifest::LONGEST`] of them, which limits the size of reports.
    pub first: Vec<Published>,
}

/// A file that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its location: `s3://bucket/key`, or a path.
    pub to: String,
    pub bytes: u64,
    /// Such as `CRC64NVME:sB0ELBDWEWM=`, if one was computed.
    pub checksum: Option<String>,
    /// Without quotes, if the store gave one.
    pub etag: Option<String>,
}

impl Manifest {
    /// The most files that are listed.
    pub const LONGEST: usize = 20;

    pub fn add(&mut self, published: Published) {
        self.files += 1;
        self.bytes += published.bytes;
        if self.first.len() < Self::LONGEST {
            self.first.push(published);
        }
    }

    pub fn append(&mut self, more: Self) {
        self.files += more.files;
        self.bytes += more.bytes;
        self.first.extend(more.first);
        self.first.truncate(Self::LONGEST);
    }
}
