//! From the outcome of the work to the verdict on the message.
//!
//! Architecture invariant: the default is always *keep*. Only [`Completed`] permits a delete, and
//! only with a lease that is still held ([`Completed::permit`]). It has one constructor for each
//! [`Completion`].

use std::time::Duration;

use super::backoff::backoff;
use super::delivery::{DeliveryId, Redrive};
use super::keep_reason::{KeepReason, Visible};
use super::lease::Lease;
use super::outcome::{CommandReport, Exit, Failure, Handled, NoWorkReason, Outcome};

/// Why a message may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// The work succeeded, and no stop came first.
    Succeeded,
    NothingToDo(NoWorkReason),
    /// According to its idempotency record, the work succeeded for an earlier delivery.
    AlreadyDone,
}

/// Proof that the message may be deleted: its work succeeded, there was nothing to do, or a record
/// shows that an earlier delivery finished it. Only the core constructs it, which the compiler
/// checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    delivery: DeliveryId,
    why: Completion,
}

impl Completed {
    fn succeeded(delivery: &DeliveryId) -> Self {
        Self::new(delivery, Completion::Succeeded)
    }

    pub(super) fn nothing_to_do(delivery: &DeliveryId, why: NoWorkReason) -> Self {
        Self::new(delivery, Completion::NothingToDo(why))
    }

    fn already_done(delivery: &DeliveryId) -> Self {
        Self::new(delivery, Completion::AlreadyDone)
    }

    fn new(delivery: &DeliveryId, why: Completion) -> Self {
        Self { delivery: delivery.clone(), why }
    }

    pub fn is_for(&self, delivery: &DeliveryId) -> bool {
        self.delivery == *delivery
    }

    pub fn why(&self) -> Completion {
        self.why
    }

    /// The right to send one DeleteMessage now; `None` once the lease can no longer be proved, so
    /// that a process that was frozen between success and delete does not delete a message that
    /// another pod works on.
    pub fn permit(&self, lease: &Lease, now: Duration) -> Option<DeletePermit> {
        let until = lease.expires_at().filter(|until| now < *until)?;
        Some(DeletePermit { until })
    }
}

/// The right to send one DeleteMessage, which consumes it. `Queue::delete` requires it beside the
/// receipt handle; the [`Keeper`](super::keeper::Keeper) has checked that both belong to the same
/// delivery ([`Completed::is_for`]).
#[derive(Debug)]
pub struct DeletePermit {
    /// The end of the lease, on the run's clock.
    until: Duration,
}

impl DeletePermit {
    /// May the delete still be sent at `now`? A queue checks it if it lets a delete wait.
    pub fn is_valid(&self, now: Duration) -> bool {
        now < self.until
    }
}

/// The request to make for a kept message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// ChangeMessageVisibility to this delay.
    After(Duration),
    /// None: its visibility timeout runs out.
    Expire,
}

/// The decision about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Delete(Completed),
    Keep(KeepReason, Release),
}

impl Verdict {
    /// For a run that receives more messages. If a permanent failure were visible at once, SQS
    /// could send it to this run again and again, in place of the queue's other messages.
    pub(super) fn behind_other_messages(self) -> Self {
        match self {
            Self::Keep(why, Release::After(delay)) if why.row().visible == Visible::Soon => {
                Self::Keep(why, Release::After(delay.max(BEHIND_OTHERS)))
            }
            verdict @ (Self::Delete(_) | Self::Keep(..)) => verdict,
        }
    }
}

/// How long a run that receives more messages hides a permanent failure.
const BEHIND_OTHERS: Duration = Duration::from_secs(5);

/// How a message was settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    Deleted(Completion),
    Kept(KeepReason, Return),
}

/// What is known after a release about when the message is visible again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// It was released with this delay.
    After(Duration),
    /// Its visibility timeout runs out in this time, or sooner if a release succeeded and its
    /// answer was lost.
    Within(Duration),
    /// Another pod may already have it.
    Unknown,
}

/// The delays after a failure and after a stop, and which exit codes are permanent failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    pub retry: Retry,
    pub on_stop: OnStop,
    /// Exit codes that mean "this input will never work".
    pub permanent_exit_codes: Vec<i32>,
}

/// After a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Released after a random delay between `min` and a limit that doubles with each receive, at
    /// most `max`.
    Backoff { min: Duration, max: Duration },
    /// When its visibility timeout runs out.
    Expire,
}

/// After a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "settings", derive(serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum OnStop {
    /// Make the message visible at once
    Release,
    /// Let its visibility timeout run out
    Expire,
}

/// The exit code for "try again later", EX_TEMPFAIL of sysexits(3).
const TEMPORARY: i32 = 75;

impl RetryPolicy {
    /// The verdict on work that ended without being halted.
    pub fn judge(&self, delivery: &DeliveryId, redrive: &Redrive, outcome: Outcome) -> Verdict {
        let failure = match outcome {
            Outcome::Finished => return Verdict::Delete(Completed::succeeded(delivery)),
            Outcome::ObjectsGone => {
                let why = NoWorkReason::ObjectsGone;
                return Verdict::Delete(Completed::nothing_to_do(delivery, why));
            }
            Outcome::AlreadyDone => return Verdict::Delete(Completed::already_done(delivery)),
            // The command's own decision is worth more than the kernel's count.
            Outcome::Failed(Failure::KilledAtMemoryLimit { exit, report, .. })
                if self.is_decided(exit) =>
            {
                Failure::Exit(exit, report)
            }
            Outcome::Failed(failure) => failure,
        };
        let (reason, report) = match failure {
            Failure::Fetch(why) => (KeepReason::FetchFailed(why), CommandReport::default()),
            Failure::Unreadable(why) => (KeepReason::Unreadable(why), CommandReport::default()),
            Failure::Start(why) => (KeepReason::CommandNotStarted(why), CommandReport::default()),
            Failure::WorkerNotStarted(why) => {
                (KeepReason::WorkerNotStarted(why), CommandReport::default())
            }
            Failure::Publish(why) => (KeepReason::PublishFailed(why), CommandReport::default()),
            Failure::Record(why) => (KeepReason::NotRecorded(why), CommandReport::default()),
            Failure::Superseded(why) => (KeepReason::LeaseLost(why), CommandReport::default()),
            Failure::Exit(Exit::Handler(handled), report) => (of_handler(handled), report),
            Failure::Exit(exit @ Exit::Code(TEMPORARY), report) => {
                (KeepReason::Temporary(exit), report)
            }
            Failure::Exit(exit @ Exit::Code(code), report)
                if self.permanent_exit_codes.contains(&code) =>
            {
                (KeepReason::Permanent(exit), report)
            }
            Failure::Exit(exit, report) => (KeepReason::CommandFailed(exit), report),
            Failure::OutOfMemory(why) | Failure::KilledAtMemoryLimit { why, .. } => {
                (KeepReason::OutOfMemory(why), CommandReport::default())
            }
            // Work is halted only during a stop; if this happens otherwise, it is not a success.
            Failure::Halted => (KeepReason::Stopped, CommandReport::default()),
            Failure::Panicked(why) => (KeepReason::Bug(why), CommandReport::default()),
        };
        match (&reason, report.retry_after) {
            (KeepReason::Temporary(_), Some(delay)) => Verdict::Keep(reason, Release::After(delay)),
            _ => self.keep(delivery, redrive, reason),
        }
    }

    /// Whether the command, or the handler, says what is to happen with the message.
    fn is_decided(&self, exit: Exit) -> bool {
        match exit {
            Exit::Code(code) => code == TEMPORARY || self.permanent_exit_codes.contains(&code),
            Exit::Handler(handled) => matches!(handled, Handled::Temporary | Handled::Permanent),
            Exit::Signal(_) => false,
        }
    }

    /// Keeps the message; the reason decides when it is visible again.
    pub fn keep(&self, delivery: &DeliveryId, redrive: &Redrive, reason: KeepReason) -> Verdict {
        let DeliveryId { message_id, receive_count } = delivery;
        let release = match (reason.row().visible, self.retry) {
            (Visible::ByItself, _) | (Visible::Soon | Visible::AfterBackoff, Retry::Expire) => {
                Release::Expire
            }
            (Visible::AtOnce, _) => Release::After(Duration::ZERO),
            (Visible::AfterStop, _) => match self.on_stop {
                OnStop::Release => Release::After(Duration::ZERO),
                OnStop::Expire => Release::Expire,
            },
            // Without a dead-letter queue, a message that returns at once would do so without end.
            (Visible::Soon, _) if redrive.remaining_receives(*receive_count).is_some() => {
                Release::After(Duration::ZERO)
            }
            (Visible::Soon | Visible::AfterBackoff, Retry::Backoff { min, max }) => {
                Release::After(backoff(min, max, message_id, *receive_count))
            }
        };
        Verdict::Keep(reason, release)
    }
}

/// Why the message of a handler that failed is kept.
fn of_handler(handled: Handled) -> KeepReason {
    let exit = Exit::Handler(handled);
    match handled {
        Handled::Temporary => KeepReason::Temporary(exit),
        Handled::Permanent => KeepReason::Permanent(exit),
        Handled::Panicked => KeepReason::HandlerPanicked,
        // A failure never counts as a success, whatever it is called.
        Handled::Failed | Handled::Dropped | Handled::Succeeded => KeepReason::HandlerFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::MessageId;

    const S: Duration = Duration::from_secs(1);

    fn delivery(id: &str, receive_count: u32) -> DeliveryId {
        DeliveryId { message_id: MessageId::new(id), receive_count }
    }

    fn policy() -> RetryPolicy {
        RetryPolicy {
            retry: Retry::Backoff { min: 10 * S, max: 900 * S },
            on_stop: OnStop::Release,
            permanent_exit_codes: vec![65, 66],
        }
    }

    fn exited(code: i32, retry_after: Option<Duration>) -> Outcome {
        Outcome::Failed(Failure::Exit(
            Exit::Code(code),
            CommandReport { retry_after, reason: None },
        ))
    }

    #[test]
    fn the_exit_code_contract() {
        let dead_letter = Redrive::DeadLetter { max_receive_count: 3, queue: "dlq".to_owned() };
        let judged = |outcome| match policy().judge(&delivery("m", 1), &dead_letter, outcome) {
            Verdict::Delete(completed) => (format!("{:?}", completed.why()), 0, None),
            Verdict::Keep(reason, release) => {
                (reason.label().to_owned(), reason.exit_code(), Some(release))
            }
        };
        assert_eq!(judged(Outcome::Finished), ("Succeeded".into(), 0, None));
        assert_eq!(
            judged(exited(66, None)),
            ("permanent".into(), 65, Some(Release::After(Duration::ZERO)))
        );
        assert_eq!(
            judged(exited(75, Some(300 * S))),
            ("temporary".into(), 75, Some(Release::After(300 * S)))
        );
        // Only a temporary failure may choose its delay.
        assert_eq!(judged(exited(65, Some(300 * S))).2, Some(Release::After(Duration::ZERO)));
        let (label, code, release) = judged(exited(1, None));
        assert_eq!((label.as_str(), code), ("command_failed", 1));
        assert!(
            matches!(release, Some(Release::After(delay)) if (10 * S..=20 * S).contains(&delay))
        );
        assert_eq!(
            judged(Outcome::Failed(Failure::Exit(Exit::Signal(9), CommandReport::default()))).1,
            1
        );
        assert_eq!(judged(Outcome::Failed(Failure::Fetch("503".into()))).1, 75);
    }

    #[test]
    fn a_handler_chooses_its_outcome_and_never_an_exit_code() {
        // 65 is a permanent exit code of this policy.
        let judged = |handled, retry_after| {
            let report = CommandReport { retry_after, reason: None };
            let failed = Outcome::Failed(Failure::Exit(Exit::Handler(handled), report));
            match policy().judge(&delivery("m", 1), &Redrive::Unknown, failed) {
                Verdict::Delete(_) => panic!("a failure is deleted"),
                Verdict::Keep(reason, release) => (reason.label(), reason.exit_code(), release),
            }
        };
        let backoff = Release::After(backoff(10 * S, 900 * S, &MessageId::new("m"), 1));
        let delay = Some(300 * S);
        for (handled, retry_after, label, exit_code, release) in [
            (Handled::Failed, delay, "handler_failed", 1, backoff),
            (Handled::Panicked, delay, "panicked", 1, backoff),
            (Handled::Temporary, None, "temporary", 75, backoff),
            (Handled::Temporary, delay, "temporary", 75, Release::After(300 * S)),
            (Handled::Permanent, None, "permanent", 65, backoff),
            (Handled::Dropped, None, "handler_failed", 1, backoff),
            (Handled::Succeeded, None, "handler_failed", 1, backoff),
        ] {
            assert_eq!(judged(handled, retry_after), (label, exit_code, release), "{handled:?}");
        }
    }

    #[test]
    fn a_decision_of_the_command_counts_more_than_a_kill_at_the_memory_limit() {
        let judged = |exit| {
            let report = CommandReport { retry_after: Some(300 * S), reason: None };
            let failure = Failure::KilledAtMemoryLimit { why: "full".to_owned(), exit, report };
            let outcome = Outcome::Failed(failure);
            match policy().judge(&delivery("m", 1), &Redrive::Unknown, outcome) {
                Verdict::Delete(_) => unreachable!("a failure is kept"),
                Verdict::Keep(reason, release) => (reason.label(), release),
            }
        };
        assert_eq!(judged(Exit::Code(75)), ("temporary", Release::After(300 * S)));
        assert_eq!(judged(Exit::Code(65)).0, "permanent");
        assert_eq!(judged(Exit::Code(66)).0, "permanent");
        for exit in [Exit::Code(0), Exit::Code(1), Exit::Code(137), Exit::Signal(9)] {
            assert_eq!(judged(exit).0, "out_of_memory", "{exit}");
        }
    }

    #[test]
    fn a_permanent_failure_returns_at_once_only_on_its_way_to_a_dead_letter_queue() {
        let dead_letter = Redrive::DeadLetter { max_receive_count: 3, queue: "dlq".to_owned() };
        let release = |policy: RetryPolicy, redrive: &Redrive, receive_count| match policy.judge(
            &delivery("m", receive_count),
            redrive,
            exited(65, None),
        ) {
            Verdict::Keep(_, release) => release,
            Verdict::Delete(_) => panic!("a failure is deleted"),
        };
        for receive_count in 1..=3 {
            let at_once = Release::After(Duration::ZERO);
            assert_eq!(release(policy(), &dead_letter, receive_count), at_once);
        }
        let expire = RetryPolicy { retry: Retry::Expire, ..policy() };
        assert_eq!(release(expire.clone(), &Redrive::None, 1), Release::Expire);
        // A fourth receive: the queue did not move it, so it would return without end.
        for (redrive, receive_count) in
            [(&dead_letter, 4), (&Redrive::None, 1), (&Redrive::Unknown, 9)]
        {
            let delay = backoff(10 * S, 900 * S, &MessageId::new("m"), receive_count);
            assert_eq!(release(policy(), redrive, receive_count), Release::After(delay));
            assert!(delay >= 10 * S, "{redrive:?}");
        }
    }

    #[test]
    fn a_proof_gives_no_permit_without_the_lease() {
        use crate::lease::{Lease, Strategy};
        let completed = Completed::new(&delivery("m", 1), Completion::Succeeded);
        let lease = Lease::taken(Strategy::Heartbeat, 30 * S, Duration::ZERO);
        assert!(completed.permit(&lease, 29 * S).is_some());
        assert!(completed.permit(&lease, 30 * S).is_none());
    }
}
