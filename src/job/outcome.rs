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
