//! 6 Ended: how the work on a message ended, and what is known of it.

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
            // By far the most frequent cause of a KILL that nobody here sent.
            Self::Signal(9) => f.write_str("signal 9 (KILL; out of memory?)"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// What a command left in `JOB_RESULT_FILE`: its last complete line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandReport {
    pub retry_after: Option<Duration>,
    pub reason: Option<String>,
}

/// What became of the work on all objects of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command exited 0 for each object, and what it wrote was published.
    Finished,
    /// No object is left to work on (`--missing-object ignore`).
    ObjectsGone,
    /// A record says that an earlier delivery finished the work (`--idempotency`).
    AlreadyDone,
    /// The first thing that went wrong; nothing after it was tried.
    Failed(Failure),
}

/// The first thing that went wrong in the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The object could not be read, for now.
    Fetch(String),
    /// The object cannot be read as it is: archived, or overwritten since the event.
    Unreadable(String),
    /// No work directory, no such command: the command did not run.
    Start(String),
    Exit(Exit, CommandReport),
    Publish(String),
    /// The idempotency record could not be read or written.
    Record(String),
    /// Another pod has claimed the work since.
    Superseded(String),
    /// Halted on request before it ended by itself.
    Halted,
    /// A bug in leasehold, or in a library of it, that this message brought to light.
    Panicked(String),
}

/// Why there was nothing to do for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoWorkReason {
    /// `s3:TestEvent`, which S3 sends when notifications are configured.
    TestEvent,
    /// No event in it is work (`--events`).
    Ignored,
    /// The objects are gone, and that is as it should be (`--missing-object ignore`).
    ObjectsGone,
}

/// What is known of the work on a message, beside its outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkRecord {
    /// How the last command ended, if one ran.
    pub exit: Option<Exit>,
    /// What the command said of itself, see `JOB_RESULT_FILE`.
    pub reason: Option<String>,
    /// What kept failing when the work was halted.
    pub last_error: Option<String>,
    /// The last lines of the last command's standard error, the oldest first.
    pub stderr_tail: Vec<String>,
    pub timings: Timings,
    /// `None` if no command ran.
    pub usage: Option<ResourceUsage>,
    /// `None` if nothing was to be published, or it did not come to that.
    pub published: Option<Manifest>,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From asking for a message to having it; most of it is waiting.
    pub receive: Duration,
    pub fetch: Duration,
    pub command: Duration,
    pub publish: Duration,
    /// From the verdict to the queue's last answer.
    pub settle: Duration,
    /// From the receive to the end.
    pub total: Duration,
}

/// What the commands of a message took from the machine, as `wait4(2)` counts it: each command's
/// first process and all below it that were waited for. A process whose parent did not wait for it
/// is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceUsage {
    /// User and system time together, of all commands.
    pub cpu: Duration,
    /// The most that one process had in memory at a time (its resident set), in bytes. `None` if
    /// that was no more than we had ourselves: until a process becomes the command the kernel
    /// counts our memory as its own.
    pub peak_memory: Option<u64>,
}

impl ResourceUsage {
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, peak_memory: self.peak_memory.max(other.peak_memory) }
    }
}

/// What was published of what the commands wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// How many files.
    pub files: u64,
    /// All of them together.
    pub bytes: u64,
    /// The first of them: a report has to end somewhere.
    pub first: Vec<Published>,
}

/// A file that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Where it is now: `s3://bucket/key`, or a path.
    pub to: String,
    pub bytes: u64,
    /// Such as `CRC64NVME:sB0ELBDWEWM=`, if one was made.
    pub checksum: Option<String>,
    /// Without quotes, if the store gave one.
    pub etag: Option<String>,
}

impl Manifest {
    /// How many files are named.
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
