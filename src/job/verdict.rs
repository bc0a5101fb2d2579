//! 5 Judged: what became of the work, and so what becomes of the message.
//!
//! Architecture invariant: the default of everything is *keep*. [`Completed`] is the only way to a
//! delete; it is made in this file, from success and nothing else, and it is no longer worth anything
//! without a lease that is still held ([`Completed::permit`]).

use std::fmt;
use std::time::Duration;

use super::backoff::backoff;
use super::delivery::{Delivery, ReceiptHandle};
use super::lease::Lease;

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
pub struct Said {
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
    Exit(Exit, Said),
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

/// One of the supervisor's hands.
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

/// Why there was nothing to do for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nothing {
    /// `s3:TestEvent`, which S3 sends when notifications are configured.
    TestEvent,
    /// No event in it is work (`--events`).
    Ignored,
    /// The objects are gone, and that is as it should be (`--missing-object ignore`).
    ObjectsGone,
}

/// Why a message may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// The command exited 0 while nobody had asked it to stop.
    Succeeded,
    NothingToDo(Nothing),
    /// A record says that the command exited 0 for an earlier delivery.
    AlreadyDone,
}

/// Why a message is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepReason {
    NotANotification(String),
    /// No command is for this message.
    NoJobType(String),
    FetchFailed(String),
    Unreadable(String),
    CommandNotStarted(String),
    CommandFailed(Exit),
    /// The command said that this input will never work (`--permanent-exit-codes`).
    Permanent(Exit),
    /// The command said that it may work later (exit code 75).
    Temporary,
    PublishFailed(String),
    /// What is done, or under way, could not be recorded (`--idempotency`).
    NotRecorded(String),
    /// The work succeeded, but the queue did not take the delete.
    DeleteFailed(String),
    /// Over `--max-duration`.
    TimedOut,
    /// No output and no progress for `--stall-timeout`.
    Stalled,
    /// The lease could not be proved any more while the work ran.
    LeaseLost(String),
    /// The work succeeded, but the lease ended before the delete.
    LostAfterSuccess,
    /// Near SQS's ceiling of 12 hours.
    LeaseExhausted,
    /// Near SQS's ceiling of 12 hours, and the next pod goes on from the checkpoint.
    HandedOver,
    /// We were asked to stop.
    Stopped,
    /// The work on this message panicked; nothing is wrong with the others.
    Panicked(String),
    ActorDied(Role),
}

impl KeepReason {
    /// Its name in logs, metrics and the termination message: from a closed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotANotification(_) => "not_a_notification",
            Self::NoJobType(_) => "no_job_type",
            Self::FetchFailed(_) => "fetch_failed",
            Self::Unreadable(_) => "unreadable",
            Self::CommandNotStarted(_) => "command_not_started",
            Self::CommandFailed(_) => "command_failed",
            Self::Permanent(_) => "permanent",
            Self::Temporary => "temporary",
            Self::PublishFailed(_) => "publish_failed",
            Self::NotRecorded(_) => "not_recorded",
            Self::DeleteFailed(_) => "delete_failed",
            Self::TimedOut => "timed_out",
            Self::Stalled => "stalled",
            Self::LeaseLost(_) => "lease_lost",
            Self::LostAfterSuccess => "lost_after_success",
            Self::LeaseExhausted => "lease_exhausted",
            Self::HandedOver => "handed_over",
            Self::Stopped => "stopped",
            Self::Panicked(_) => "panicked",
            Self::ActorDied(_) => "actor_died",
        }
    }

    /// The exit code of a run whose last kept message was kept for this reason (sysexits(3) where it has a word).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotANotification(_) | Self::NoJobType(_) | Self::Unreadable(_) | Self::Permanent(_) => 65,
            Self::FetchFailed(_)
            | Self::PublishFailed(_)
            | Self::NotRecorded(_)
            | Self::DeleteFailed(_)
            | Self::Temporary
            | Self::LeaseLost(_)
            | Self::LostAfterSuccess
            | Self::LeaseExhausted
            | Self::HandedOver => 75,
            Self::CommandNotStarted(_) | Self::CommandFailed(_) | Self::TimedOut | Self::Stalled => 1,
            Self::Stopped => 143,
            Self::Panicked(_) | Self::ActorDied(_) => 70,
        }
    }

    /// Is there no more sense in working for this pod?
    pub fn ends_the_run(&self) -> bool {
        match self {
            Self::LeaseLost(_)
            | Self::LostAfterSuccess
            | Self::LeaseExhausted
            | Self::HandedOver
            | Self::Stopped
            | Self::ActorDied(_) => true,
            Self::NotANotification(_)
            | Self::NoJobType(_)
            | Self::FetchFailed(_)
            | Self::Unreadable(_)
            | Self::CommandNotStarted(_)
            | Self::CommandFailed(_)
            | Self::Permanent(_)
            | Self::Temporary
            | Self::PublishFailed(_)
            | Self::NotRecorded(_)
            | Self::DeleteFailed(_)
            | Self::TimedOut
            | Self::Stalled
            | Self::Panicked(_) => false,
        }
    }
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotANotification(why) => {
                write!(f, "the message is not an S3 notification that leasehold understands: {why}")
            }
            Self::NoJobType(why) => write!(f, "the message is of no job type: {why}"),
            Self::FetchFailed(why) => write!(f, "the object could not be fetched: {why}"),
            Self::Unreadable(why) => write!(f, "the object cannot be read: {why}"),
            Self::CommandNotStarted(why) => write!(f, "the command was not started: {why}"),
            Self::CommandFailed(exit) => write!(f, "the command failed with {exit}"),
            Self::Permanent(exit) => write!(f, "the command says that this input will never work ({exit})"),
            Self::Temporary => f.write_str("the command asks to be retried later (exit code 75)"),
            Self::PublishFailed(why) => write!(f, "the command's output could not be published: {why}"),
            Self::NotRecorded(why) => write!(f, "the idempotency record failed: {why}"),
            Self::DeleteFailed(why) => write!(f, "the work succeeded but the message could not be deleted: {why}"),
            Self::TimedOut => f.write_str("the work took longer than --max-duration"),
            Self::Stalled => f.write_str("the command printed nothing and made no progress for --stall-timeout; if it prints, its output waits in a \
                 buffer: flush it, or start it with stdbuf -oL",
            ),
            Self::LeaseLost(why) => write!(f, "the lease was lost: {why}"),
            Self::LostAfterSuccess => {
                f.write_str("the work succeeded, but the lease had ended before the message could be deleted")
            }
            Self::LeaseExhausted => f.write_str("SQS hides a message for 12 hours at most, and they are over"),
            Self::HandedOver => {
                f.write_str("SQS hides a message for 12 hours at most: the next pod goes on from the checkpoint")
            }
            Self::Stopped => f.write_str("asked to stop"),
            Self::Panicked(why) => write!(f, "a bug in leasehold: the work on this message panicked: {why}"),
            Self::ActorDied(role) => write!(f, "a bug in leasehold: its {role} died"),
        }
    }
}

/// Proof that the work succeeded while nobody had asked it to stop.
///
/// Its fields are private and its only constructor is private to the core: "delete only on success" is checked by the compiler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    receipt: ReceiptHandle,
    why: Completion,
}

impl Completed {
    pub(super) fn new(delivery: &Delivery, why: Completion) -> Self {
        Self { receipt: delivery.receipt.clone(), why }
    }

    pub fn why(&self) -> Completion {
        self.why
    }

    /// The right to send one DeleteMessage now; `None` once the lease cannot be proved any more, so that a
    /// process that was frozen between success and delete does not delete what somebody else works on.
    pub fn permit(&self, lease: &Lease, now: Duration) -> Option<DeletePermit<'_>> {
        lease.is_held(now).then_some(DeletePermit { receipt: &self.receipt })
    }
}

/// The right to send one DeleteMessage. `Queue::delete` takes nothing else.
#[derive(Debug)]
pub struct DeletePermit<'a> {
    receipt: &'a ReceiptHandle,
}

impl DeletePermit<'_> {
    pub fn receipt(&self) -> &ReceiptHandle {
        self.receipt
    }
}

/// When a kept message becomes visible again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// By a ChangeMessageVisibility to this delay.
    After(Duration),
    /// By itself, when its visibility timeout runs out.
    Expire,
}

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Delete(Completed),
    Keep(KeepReason, Release),
}

/// What became of a message with us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    Deleted(Completion),
    Kept(KeepReason, Return),
}

/// When a kept message is visible again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// It was released with this delay.
    After(Duration),
    /// Its visibility timeout runs out in this time, or sooner if a release came through whose answer was lost.
    Within(Duration),
    /// It may be somebody else's already.
    Unknown,
}

/// How a kept message comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    pub retry: Retry,
    pub on_stop: OnStop,
    /// Exit codes with which a command says "never for this input".
    pub permanent_exit_codes: Vec<i32>,
}

/// After a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Released after a delay that doubles with the receive count.
    Backoff { min: Duration, max: Duration },
    /// Left to its visibility timeout.
    Expire,
}

/// After a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    Release,
    Expire,
}

/// The exit code that says "try again later", EX_TEMPFAIL of sysexits(3).
const TEMPORARY: i32 = 75;

impl RetryPolicy {
    /// The verdict on work that ended by itself.
    pub fn judge(&self, delivery: &Delivery, outcome: Outcome) -> Verdict {
        let failure = match outcome {
            Outcome::Finished => return Verdict::Delete(Completed::new(delivery, Completion::Succeeded)),
            Outcome::ObjectsGone => {
                let why = Completion::NothingToDo(Nothing::ObjectsGone);
                return Verdict::Delete(Completed::new(delivery, why));
            }
            Outcome::AlreadyDone => return Verdict::Delete(Completed::new(delivery, Completion::AlreadyDone)),
            Outcome::Failed(failure) => failure,
        };
        let (reason, said) = match failure {
            Failure::Fetch(why) => (KeepReason::FetchFailed(why), Said::default()),
            Failure::Unreadable(why) => (KeepReason::Unreadable(why), Said::default()),
            Failure::Start(why) => (KeepReason::CommandNotStarted(why), Said::default()),
            Failure::Publish(why) => (KeepReason::PublishFailed(why), Said::default()),
            Failure::Record(why) => (KeepReason::NotRecorded(why), Said::default()),
            Failure::Superseded(why) => (KeepReason::LeaseLost(why), Said::default()),
            Failure::Exit(Exit::Code(TEMPORARY), said) => (KeepReason::Temporary, said),
            Failure::Exit(exit @ Exit::Code(code), said) if self.permanent_exit_codes.contains(&code) => {
                (KeepReason::Permanent(exit), said)
            }
            Failure::Exit(exit, said) => (KeepReason::CommandFailed(exit), said),
            // Nobody halts work that is not being stopped; if it happens all the same, it is no success.
            Failure::Halted => (KeepReason::Stopped, Said::default()),
            Failure::Panicked(why) => (KeepReason::Panicked(why), Said::default()),
        };
        match (&reason, said.retry_after) {
            (KeepReason::Temporary, Some(delay)) => Verdict::Keep(reason, Release::After(delay)),
            _ => self.keep(delivery, reason),
        }
    }

    /// Keep, and come back when this reason says so.
    pub fn keep(&self, delivery: &Delivery, reason: KeepReason) -> Verdict {
        let release = match &reason {
            // It may be somebody else's by now.
            KeepReason::LeaseLost(_) | KeepReason::LostAfterSuccess => Release::Expire,
            // The next pod can go on at once, with twelve hours of its own.
            KeepReason::LeaseExhausted | KeepReason::HandedOver => Release::After(Duration::ZERO),
            KeepReason::Stopped => match self.on_stop {
                OnStop::Release => Release::After(Duration::ZERO),
                OnStop::Expire => Release::Expire,
            },
            // Waiting makes nothing better, so the dead-letter queue may have it soon.
            KeepReason::NotANotification(_)
            | KeepReason::NoJobType(_)
            | KeepReason::Unreadable(_)
            | KeepReason::Permanent(_) => match self.retry {
                Retry::Backoff { min, .. } => Release::After(min),
                Retry::Expire => Release::Expire,
            },
            KeepReason::FetchFailed(_)
            | KeepReason::CommandNotStarted(_)
            | KeepReason::CommandFailed(_)
            | KeepReason::Temporary
            | KeepReason::PublishFailed(_)
            | KeepReason::NotRecorded(_)
            | KeepReason::DeleteFailed(_)
            | KeepReason::TimedOut
            | KeepReason::Stalled
            | KeepReason::Panicked(_)
            | KeepReason::ActorDied(_) => match self.retry {
                Retry::Backoff { min, max } => {
                    Release::After(backoff(min, max, &delivery.message_id, delivery.receive_count))
                }
                Retry::Expire => Release::Expire,
            },
        };
        Verdict::Keep(reason, release)
    }
}

/// Why nothing was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiveFailure {
    /// `--receive-give-up` is over.
    GaveUp(String),
    /// Trying again is pointless.
    Misconfigured(String),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunOutcome {
    /// Nothing was kept: all messages succeeded, or there was none.
    Finished,
    /// The last message that was kept was kept for this reason.
    Kept(KeepReason),
    ReceiveFailed(ReceiveFailure),
    ActorDied(Role),
    /// A bug in the supervisor itself.
    SupervisorDied,
}

impl RunOutcome {
    /// How several runs ended together, of which `other` ended last: the worst kind counts, and of two of a kind the last.
    #[must_use]
    pub fn and_then(self, other: Self) -> Self {
        let badness = |outcome: &Self| match outcome {
            Self::Finished => 0,
            Self::Kept(_) => 1,
            Self::ReceiveFailed(_) => 2,
            Self::ActorDied(_) => 3,
            Self::SupervisorDied => 4,
        };
        if badness(&self) > badness(&other) { self } else { other }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Finished => 0,
            Self::Kept(reason) => reason.exit_code(),
            Self::ReceiveFailed(ReceiveFailure::GaveUp(_)) => 69,
            Self::ReceiveFailed(ReceiveFailure::Misconfigured(_)) => 78,
            Self::ActorDied(_) | Self::SupervisorDied => 70,
        }
    }
}

impl fmt::Display for RunOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("nothing was kept"),
            Self::Kept(reason) => reason.fmt(f),
            Self::ReceiveFailed(ReceiveFailure::GaveUp(why)) => write!(f, "no message could be received: {why}"),
            Self::ReceiveFailed(ReceiveFailure::Misconfigured(why)) => why.fmt(f),
            Self::ActorDied(role) => KeepReason::ActorDied(*role).fmt(f),
            Self::SupervisorDied => f.write_str("a bug in leasehold: its supervisor died"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::delivery::MessageId;

    const S: Duration = Duration::from_secs(1);

    fn delivery(id: &str, receive_count: u32) -> Delivery {
        Delivery {
            message_id: MessageId::new(id),
            receipt: ReceiptHandle::new("r"),
            body: String::new(),
            receive_count,
            sent_at: None,
            idempotency_key: None,
            traceparent: None,
        }
    }

    fn policy() -> RetryPolicy {
        RetryPolicy {
            retry: Retry::Backoff { min: 10 * S, max: 900 * S },
            on_stop: OnStop::Release,
            permanent_exit_codes: vec![65, 66],
        }
    }

    fn exited(code: i32, retry_after: Option<Duration>) -> Outcome {
        Outcome::Failed(Failure::Exit(Exit::Code(code), Said { retry_after, reason: None }))
    }

    #[test]
    fn the_exit_code_contract() {
        let judged = |outcome| match policy().judge(&delivery("m", 1), outcome) {
            Verdict::Delete(completed) => (format!("{:?}", completed.why()), 0, None),
            Verdict::Keep(reason, release) => (reason.label().to_owned(), reason.exit_code(), Some(release)),
        };
        assert_eq!(judged(Outcome::Finished), ("Succeeded".into(), 0, None));
        assert_eq!(judged(exited(66, None)), ("permanent".into(), 65, Some(Release::After(10 * S))));
        assert_eq!(judged(exited(75, Some(300 * S))), ("temporary".into(), 75, Some(Release::After(300 * S))));
        // Only a temporary failure may choose its delay.
        assert_eq!(judged(exited(65, Some(300 * S))).2, Some(Release::After(10 * S)));
        let (label, code, release) = judged(exited(1, None));
        assert_eq!((label.as_str(), code), ("command_failed", 1));
        assert!(matches!(release, Some(Release::After(delay)) if (10 * S..=20 * S).contains(&delay)));
        assert_eq!(judged(Outcome::Failed(Failure::Exit(Exit::Signal(9), Said::default()))).1, 1);
        assert_eq!(judged(Outcome::Failed(Failure::Fetch("503".into()))).1, 75);
    }

    #[test]
    fn of_several_runs_the_worst_counts_and_of_a_kind_the_last() {
        use RunOutcome::{ActorDied, Finished, Kept, ReceiveFailed, SupervisorDied};
        let failed = || ReceiveFailed(ReceiveFailure::GaveUp("503".into()));
        let ascending = [Finished, Kept(KeepReason::Stopped), failed(), ActorDied(Role::Receiver), SupervisorDied];
        for (i, better) in ascending.iter().enumerate() {
            for worse in &ascending[i..] {
                assert_eq!(better.clone().and_then(worse.clone()), *worse);
                assert_eq!(worse.clone().and_then(better.clone()), *worse);
            }
        }
        assert_eq!(Kept(KeepReason::Stopped).and_then(Kept(KeepReason::TimedOut)), Kept(KeepReason::TimedOut));
    }

    #[test]
    fn a_proof_is_worth_nothing_without_the_lease() {
        use crate::job::lease::{Lease, Strategy};
        let completed = Completed::new(&delivery("m", 1), Completion::Succeeded);
        let lease = Lease::taken(Strategy::Heartbeat, 30 * S, Duration::ZERO);
        assert!(completed.permit(&lease, 29 * S).is_some());
        assert!(completed.permit(&lease, 30 * S).is_none());
    }
}
