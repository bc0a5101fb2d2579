//! How an attempt at a message ended, as a value of the API.

use std::fmt;

use crate::job::keep_reason::KeepReason;
use crate::job::outcome::NoWorkReason;
use crate::job::verdict::{Completion, Settlement};

/// How an attempt at a message ended. Its text is that of the log and the metrics; README.md lists
/// all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The handler succeeded, and the message was deleted.
    Succeeded,
    /// Deleted: the message is S3's test event.
    TestEvent,
    /// Deleted: by the settings, the message is not work.
    Ignored,
    /// Deleted: the objects do not exist any longer, which is ignored.
    ObjectsGone,
    /// Deleted: an earlier delivery has done the work.
    AlreadyDone,
    /// Kept: the message is not an S3 notification.
    NotANotification,
    /// Kept: no job type matches the message.
    NoJobType,
    /// Kept: the object could not be downloaded.
    FetchFailed,
    /// Kept: the object cannot be used.
    Unreadable,
    /// Kept: the handler was not started.
    CommandNotStarted,
    /// Kept: the server or the Lambda function was not started.
    WorkerNotStarted,
    /// Kept: the command failed.
    CommandFailed,
    /// Kept: the handler reported that no retry can succeed.
    Permanent,
    /// Kept: the handler reported that a retry may succeed.
    Temporary,
    /// Kept: the handler returned another error.
    HandlerFailed,
    /// Kept: the handler panicked.
    Panicked,
    /// Kept: the results could not be uploaded.
    PublishFailed,
    /// Kept: the idempotency record could not be read or written.
    NotRecorded,
    /// Kept: the work succeeded, but the queue did not accept the delete.
    DeleteFailed,
    /// Kept: the work took longer than `max_duration`.
    TimedOut,
    /// Kept: there was no progress for `stall_timeout`.
    Stalled,
    /// Kept: the command reached the memory limit.
    OutOfMemory,
    /// Kept: the lease ended during the work.
    LeaseLost,
    /// Kept: the work succeeded, but the lease ended before the delete.
    LostAfterSuccess,
    /// Kept: SQS hides a message for at most 12 hours.
    LeaseExhausted,
    /// Kept: near these 12 hours, to continue from the checkpoint.
    HandedOver,
    /// Kept: the worker was stopped.
    Stopped,
    /// Kept: a bug in leasehold.
    Bug,
    /// Kept: a bug in leasehold, which ended the run.
    ActorDied,
}

impl Outcome {
    /// The text, such as `already_done`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::TestEvent => "test_event",
            Self::Ignored => "ignored",
            Self::ObjectsGone => "objects_gone",
            Self::AlreadyDone => "already_done",
            Self::NotANotification => "not_a_notification",
            Self::NoJobType => "no_job_type",
            Self::FetchFailed => "fetch_failed",
            Self::Unreadable => "unreadable",
            Self::CommandNotStarted => "command_not_started",
            Self::WorkerNotStarted => "worker_not_started",
            Self::CommandFailed => "command_failed",
            Self::Permanent => "permanent",
            Self::Temporary => "temporary",
            Self::HandlerFailed => "handler_failed",
            Self::Panicked => "panicked",
            Self::PublishFailed => "publish_failed",
            Self::NotRecorded => "not_recorded",
            Self::DeleteFailed => "delete_failed",
            Self::TimedOut => "timed_out",
            Self::Stalled => "stalled",
            Self::OutOfMemory => "out_of_memory",
            Self::LeaseLost => "lease_lost",
            Self::LostAfterSuccess => "lost_after_success",
            Self::LeaseExhausted => "lease_exhausted",
            Self::HandedOver => "handed_over",
            Self::Stopped => "stopped",
            Self::Bug => "bug",
            Self::ActorDied => "actor_died",
        }
    }

    pub(super) fn of(settlement: &Settlement) -> Self {
        match settlement {
            Settlement::Deleted(Completion::Succeeded) => Self::Succeeded,
            Settlement::Deleted(Completion::NothingToDo(why)) => match why {
                NoWorkReason::TestEvent => Self::TestEvent,
                NoWorkReason::Ignored => Self::Ignored,
                NoWorkReason::ObjectsGone => Self::ObjectsGone,
            },
            Settlement::Deleted(Completion::AlreadyDone) => Self::AlreadyDone,
            Settlement::Kept(reason, _) => Self::kept(reason),
        }
    }

    fn kept(reason: &KeepReason) -> Self {
        match reason {
            KeepReason::NotANotification(_) => Self::NotANotification,
            KeepReason::NoJobType(_) => Self::NoJobType,
            KeepReason::FetchFailed(_) => Self::FetchFailed,
            KeepReason::Unreadable(_) => Self::Unreadable,
            KeepReason::CommandNotStarted(_) => Self::CommandNotStarted,
            KeepReason::WorkerNotStarted(_) => Self::WorkerNotStarted,
            KeepReason::CommandFailed(_) => Self::CommandFailed,
            KeepReason::Permanent(_) => Self::Permanent,
            KeepReason::Temporary(_) => Self::Temporary,
            KeepReason::HandlerFailed => Self::HandlerFailed,
            KeepReason::HandlerPanicked => Self::Panicked,
            KeepReason::PublishFailed(_) => Self::PublishFailed,
            KeepReason::NotRecorded(_) => Self::NotRecorded,
            KeepReason::DeleteFailed(_) => Self::DeleteFailed,
            KeepReason::TimedOut => Self::TimedOut,
            KeepReason::Stalled => Self::Stalled,
            KeepReason::OutOfMemory(_) => Self::OutOfMemory,
            KeepReason::LeaseLost(_) => Self::LeaseLost,
            KeepReason::LostAfterSuccess => Self::LostAfterSuccess,
            KeepReason::LeaseExhausted => Self::LeaseExhausted,
            KeepReason::HandedOver => Self::HandedOver,
            KeepReason::Stopped => Self::Stopped,
            KeepReason::Bug(_) => Self::Bug,
            KeepReason::ActorDied(_) => Self::ActorDied,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::report::{keep_reasons, outcome_label};
    use crate::job::verdict::Return;

    #[test]
    fn an_outcome_has_the_text_of_the_log() {
        let deleted = [
            Completion::Succeeded,
            Completion::NothingToDo(NoWorkReason::TestEvent),
            Completion::NothingToDo(NoWorkReason::Ignored),
            Completion::NothingToDo(NoWorkReason::ObjectsGone),
            Completion::AlreadyDone,
        ];
        let kept = keep_reasons().into_iter().map(|why| Settlement::Kept(why, Return::Unknown));
        for settlement in deleted.map(Settlement::Deleted).into_iter().chain(kept) {
            let outcome = Outcome::of(&settlement);
            assert_eq!(outcome.to_string(), outcome_label(&settlement));
        }
    }
}
