//! Why a message is kept, and the consequences: one row for each reason.

use std::fmt;

use super::outcome::Exit;

/// One of the supervisor's actors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Receiver,
    VisibilityHeartbeat,
    Processor,
    Reporter,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Receiver => "Receiver",
            Self::VisibilityHeartbeat => "VisibilityHeartbeat",
            Self::Processor => "Processor",
            Self::Reporter => "Reporter",
        })
    }
}

/// Why a message is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepReason {
    NotANotification(String),
    /// No command is configured for this message.
    NoJobType(String),
    FetchFailed(String),
    Unreadable(String),
    CommandNotStarted(String),
    /// A warm worker has ended several times before it took one.
    WorkerNotStarted(String),
    CommandFailed(Exit),
    /// The command reported that this input will never work (`--permanent-exit-codes`).
    Permanent(Exit),
    /// The command reported that a later attempt may work (exit code 75).
    Temporary(Exit),
    /// The handler of a program that embeds leasehold returned an error.
    HandlerFailed,
    /// The handler of a program that embeds leasehold panicked.
    HandlerPanicked,
    PublishFailed(String),
    /// The idempotency record could not be read or written (`--idempotency`).
    NotRecorded(String),
    /// The work succeeded, but the queue did not accept the delete.
    DeleteFailed(String),
    /// The work took longer than `--max-duration`.
    TimedOut,
    /// No output and no progress for `--stall-timeout`.
    Stalled,
    /// The command reached the memory limit (`--memory-guard`), or the kernel killed it there.
    OutOfMemory(String),
    /// The lease could no longer be proved while the work ran.
    LeaseLost(String),
    /// The work succeeded, but the lease ended before the delete.
    LostAfterSuccess,
    /// Near SQS's ceiling of 12 hours.
    LeaseExhausted,
    /// Near SQS's ceiling of 12 hours; the next pod resumes from the checkpoint.
    HandedOver,
    /// leasehold was asked to stop.
    Stopped,
    /// leasehold's own work on this message panicked; other messages are not affected.
    Bug(String),
    ActorDied(Role),
}

/// The consequences of a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its name in logs, metrics and the termination message; from a closed set.
    pub label: &'static str,
    /// The exit code of a run whose last kept message has this reason (from sysexits(3) where one
    /// fits).
    pub exit_code: u8,
    pub visible: Visible,
    /// Must this pod stop taking messages?
    pub ends_the_run: bool,
    pub severity: Severity,
}

/// When the message is visible again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// The next pod can continue, with another twelve hours.
    AtOnce,
    /// Set by `--on-stop`.
    AfterStop,
    /// At once, so that the message goes to the dead-letter queue soon: a wait does not help. After
    /// some seconds if the run receives more messages. Without such a queue, after a backoff.
    Soon,
    AfterBackoff,
    /// When its visibility timeout has run out: another pod may already have it.
    ByItself,
}

/// How serious a reason is to the reader of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Failure,
    /// Needs no attention.
    AsPlanned,
    /// A bug in leasehold: needs attention.
    Bug,
}

impl KeepReason {
    #[rustfmt::skip]
    pub fn row(&self) -> Row {
        use Severity::{AsPlanned, Bug, Failure};
        use Visible::{AfterBackoff, AfterStop, AtOnce, ByItself, Soon};

        let row = |label, exit_code, visible, ends_the_run, severity| Row { label, exit_code, visible, ends_the_run, severity };
        match self {
            // label exit visible ends severity
            Self::NotANotification(_)  => row("not_a_notification",  65, Soon,         false, Failure),
            Self::NoJobType(_)         => row("no_job_type",         65, Soon,         false, Failure),
            Self::FetchFailed(_)       => row("fetch_failed",        75, AfterBackoff, false, Failure),
            Self::Unreadable(_)        => row("unreadable",          65, Soon,         false, Failure),
            Self::CommandNotStarted(_) => row("command_not_started",  1, AfterBackoff, false, Failure),
            Self::WorkerNotStarted(_)  => row("worker_not_started",   1, AfterBackoff, true,  Failure),
            Self::CommandFailed(_)     => row("command_failed",       1, AfterBackoff, false, Failure),
            Self::Permanent(_)         => row("permanent",           65, Soon,         false, Failure),
            Self::Temporary(_)         => row("temporary",           75, AfterBackoff, false, Failure),
            Self::HandlerFailed        => row("handler_failed",       1, AfterBackoff, false, Failure),
            Self::HandlerPanicked      => row("panicked",             1, AfterBackoff, false, Failure),
            Self::PublishFailed(_)     => row("publish_failed",      75, AfterBackoff, false, Failure),
            Self::NotRecorded(_)       => row("not_recorded",        75, AfterBackoff, false, Failure),
            Self::DeleteFailed(_)      => row("delete_failed",       75, AfterBackoff, false, Failure),
            Self::TimedOut             => row("timed_out",            1, AfterBackoff, false, Failure),
            Self::Stalled              => row("stalled",              1, AfterBackoff, false, Failure),
            Self::OutOfMemory(_)       => row("out_of_memory",        1, AfterBackoff, false, Failure),
            Self::LeaseLost(_)         => row("lease_lost",          75, ByItself,     true,  Failure),
            Self::LostAfterSuccess     => row("lost_after_success",  75, ByItself,     true,  Failure),
            Self::LeaseExhausted       => row("lease_exhausted",     75, AtOnce,       true,  Failure),
            Self::HandedOver           => row("handed_over",         75, AtOnce,       true,  AsPlanned),
            Self::Stopped              => row("stopped",            143, AfterStop,    true,  AsPlanned),
            Self::Bug(_)               => row("bug",                 70, AfterBackoff, false, Bug),
            Self::ActorDied(_)         => row("actor_died",          70, AfterBackoff, true,  Bug),
        }
    }

    pub fn label(&self) -> &'static str {
        self.row().label
    }

    pub fn exit_code(&self) -> u8 {
        self.row().exit_code
    }
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotANotification(why) => {
                write!(f, "the message is not an S3 notification that leasehold understands: {why}")
            }
            Self::NoJobType(why) => write!(f, "the message has no job type: {why}"),
            Self::FetchFailed(why) => write!(f, "the object could not be fetched: {why}"),
            Self::Unreadable(why) => write!(f, "the object cannot be used: {why}"),
            Self::CommandNotStarted(why) => write!(f, "the command was not started: {why}"),
            Self::WorkerNotStarted(why) => write!(f, "the worker was not started: {why}"),
            Self::CommandFailed(exit) => write!(f, "the command failed with {exit}"),
            Self::Permanent(Exit::Handler(_)) => f.write_str("the handler reported a permanent failure"),
            Self::Permanent(exit) => write!(f, "the command reported a permanent failure ({exit})"),
            Self::Temporary(Exit::Handler(_)) => f.write_str("the handler reported a temporary failure"),
            Self::Temporary(exit) => write!(f, "the command reported a temporary failure ({exit})"),
            Self::HandlerFailed => f.write_str("the handler failed"),
            Self::HandlerPanicked => f.write_str("the handler panicked"),
            Self::PublishFailed(why) => write!(f, "the command's output could not be published: {why}"),
            Self::NotRecorded(why) => write!(f, "the idempotency record could not be read or written: {why}"),
            Self::DeleteFailed(why) => write!(f, "the work succeeded, but the message could not be deleted: {why}"),
            Self::TimedOut => f.write_str("the work took longer than --max-duration"),
            Self::Stalled => f.write_str("there was no output and no progress for --stall-timeout; if a command does print, its output is buffered: flush it, or start the command with stdbuf -oL"),
            Self::OutOfMemory(why) => write!(f, "the command ran out of memory: {why}"),
            Self::LeaseLost(why) => write!(f, "the lease was lost: {why}"),
            Self::LostAfterSuccess => {
                f.write_str("the work succeeded, but the lease had ended before the message could be deleted")
            }
            Self::LeaseExhausted => f.write_str("SQS hides a message for at most 12 hours after a receive, and that time has run out"),
            Self::HandedOver => {
                f.write_str("SQS hides a message for at most 12 hours after a receive: the next pod resumes from the checkpoint")
            }
            Self::Stopped => f.write_str("leasehold was asked to stop"),
            Self::Bug(why) => write!(f, "a bug in leasehold: its work on this message panicked: {why}"),
            Self::ActorDied(role) => write!(f, "a bug in leasehold: its {role} actor died"),
        }
    }
}
