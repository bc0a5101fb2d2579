//! 9 Reported: what logs, metrics and the termination message are made from.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::delivery::{DeliveryId, MessageId, Redrive};
use super::keep_reason::{KeepReason, Role};
use super::notification::Object;
use super::outcome::{Exit, NoWorkReason, WorkRecord};
use super::verdict::{Completion, Return, Settlement};

/// One thing to tell.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// A message is in hand and its work begins.
    Started(Arc<Subject>),
    /// The lease of the message lasts longer than before.
    Held(Box<Held>),
    /// The command says how far it is; told about once a second, if there is something new.
    Progressed(Box<Progressed>),
    /// The message in hand will not be deleted: its work is being ended, or it is being released.
    Releasing(MessageId),
    /// A message is settled.
    Ended(Box<Ended>),
}

/// Something that is worth a count but no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// A request for a message brought none.
    ReceivedNothing,
    /// A request for a message failed, and may be repeated.
    ReceiveFailed,
    /// An extension was answered, or was not.
    Extend(ExtendResult),
    /// A message that was to be deleted.
    Delete(DeleteResult),
    /// How much of the lease was left when the verdict came.
    LeaseLeft(Duration),
}

/// What became of an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtendResult {
    Extended,
    /// It may be repeated while the lease lasts.
    Failed,
    LeaseLost,
    AtCeiling,
}

impl ExtendResult {
    pub fn label(self) -> &'static str {
        match self {
            Self::Extended => "extended",
            Self::Failed => "failed",
            Self::LeaseLost => "lease_lost",
            Self::AtCeiling => "at_ceiling",
        }
    }
}

/// What became of a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteResult {
    Deleted,
    /// It may be repeated while the lease lasts.
    Failed,
    Refused,
    /// Not sent: the lease had ended.
    LeaseLost,
    /// Not sent: a stop came first.
    Withdrawn,
}

impl DeleteResult {
    pub fn label(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::LeaseLost => "lease_lost",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// Which message it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub message_id: MessageId,
    /// 1 = first.
    pub receive_count: u32,
    pub redrive: Redrive,
    /// By the queue's clock.
    pub sent_at: Option<SystemTime>,
    /// What the sender calls this piece of work, see [`Delivery`](super::delivery::Delivery).
    pub idempotency_key: Option<String>,
    pub traceparent: Option<String>,
    /// SHA-256 of the body in hexadecimal; the body itself is told to nobody.
    pub body_sha256: String,
    /// `default` if there is no other; `None` if there is nothing to run.
    pub job_type: Option<String>,
    /// The objects to work on, in order; empty if there is nothing to do.
    pub objects: Vec<Object>,
}

impl Subject {
    pub fn delivery(&self) -> DeliveryId {
        DeliveryId { message_id: self.message_id.clone(), receive_count: self.receive_count }
    }

    /// `attempt 2 of 5`
    pub fn attempt(&self) -> String {
        match self.redrive.max_receive_count() {
            Some(max) => format!("attempt {} of {max}", self.receive_count),
            None => format!("attempt {}", self.receive_count),
        }
    }
}

/// A message that stays hidden.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub subject: Arc<Subject>,
    /// If nobody extends the lease again.
    pub remaining: Duration,
}

/// How far the work on a message is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progressed {
    pub subject: Arc<Subject>,
    pub progress: Progress,
}

/// What the command says of its progress, see `JOB_RESULT_FILE`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// How much of the message's work is done, all its objects counted alike: from 0 to 1.
    pub share: Option<f64>,
    pub text: Option<String>,
}

/// One message, from its receive to its end with us.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    pub subject: Arc<Subject>,
    pub settlement: Settlement,
    /// What the command said last of its progress.
    pub progress: Option<Progress>,
    pub work: WorkRecord,
}

impl Ended {
    /// What became of it, in one word from a closed set.
    pub fn outcome(&self) -> &'static str {
        outcome_label(&self.settlement)
    }

    /// Why it was kept, with the command's own word for it if it gave one, and with what kept
    /// failing until then.
    pub fn error(&self) -> Option<String> {
        let Settlement::Kept(reason, _) = &self.settlement else { return None };
        let said =
            self.work.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let last_error = self.work.last_error.as_ref().map(|why| format!("; last error: {why}"));
        Some(format!("{reason}{said}{}", last_error.unwrap_or_default()))
    }

    /// What happens to the message next, in plain words, as seen at `now`; `None` if it is gone.
    pub fn next(&self, now: SystemTime) -> Option<String> {
        let Settlement::Kept(_, comes_back) = &self.settlement else { return None };
        let attempt = self.subject.attempt();
        let visible = match comes_back {
            Return::After(delay) if delay.is_zero() => "visible again now".to_owned(),
            Return::After(delay) => format!("visible again {}", clock_time(now + *delay)),
            Return::Within(remaining) => {
                format!("visible again by {}", clock_time(now + *remaining))
            }
            Return::Unknown => "visible again when its visibility timeout ends".to_owned(),
        };
        let then = match &self.subject.redrive {
            Redrive::DeadLetter { queue, .. }
                if self.subject.redrive.is_final(self.subject.receive_count) =>
            {
                format!(
                    "this was the last attempt: the next receive moves it to dead-letter queue {queue}"
                )
            }
            Redrive::DeadLetter { queue, .. } => {
                format!("after the last attempt it goes to dead-letter queue {queue}")
            }
            Redrive::None => {
                "retried until it expires: the queue has no dead-letter queue".to_owned()
            }
            Redrive::Unknown => return Some(format!("{attempt}, {visible}")),
        };
        Some(format!("{attempt}, {visible}, {then}"))
    }
}

/// What became of a message, in one word from a closed set.
pub fn outcome_label(settlement: &Settlement) -> &'static str {
    match settlement {
        Settlement::Deleted(Completion::Succeeded) => "succeeded",
        Settlement::Deleted(Completion::NothingToDo(NoWorkReason::TestEvent)) => "test_event",
        Settlement::Deleted(Completion::NothingToDo(NoWorkReason::Ignored)) => "ignored",
        Settlement::Deleted(Completion::NothingToDo(NoWorkReason::ObjectsGone)) => "objects_gone",
        Settlement::Deleted(Completion::AlreadyDone) => "already_done",
        Settlement::Kept(reason, _) => reason.label(),
    }
}

/// One of each reason to keep a message, for tables; with an ellipsis where a reason has details.
pub fn keep_reasons() -> Vec<KeepReason> {
    let why = || "…".to_owned();
    vec![
        KeepReason::NotANotification(why()),
        KeepReason::NoJobType(why()),
        KeepReason::FetchFailed(why()),
        KeepReason::Unreadable(why()),
        KeepReason::CommandNotStarted(why()),
        KeepReason::CommandFailed(Exit::Code(1)),
        KeepReason::Permanent(Exit::Code(65)),
        KeepReason::Temporary,
        KeepReason::PublishFailed(why()),
        KeepReason::NotRecorded(why()),
        KeepReason::DeleteFailed(why()),
        KeepReason::TimedOut,
        KeepReason::Stalled,
        KeepReason::LeaseLost(why()),
        KeepReason::LostAfterSuccess,
        KeepReason::LeaseExhausted,
        KeepReason::HandedOver,
        KeepReason::Stopped,
        KeepReason::Panicked(why()),
        KeepReason::ActorDied(Role::Processor),
    ]
}

/// As much of a text as takes so many bytes within a JSON string.
pub fn as_json_fits(text: &str, most: usize) -> &str {
    let mut length = 0;
    let end = text.char_indices().find(|(_, c)| {
        length += match c {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..'\u{20}' => 6,
            _ => c.len_utf8(),
        };
        length > most
    });
    end.map_or(text, |(end, _)| &text[..end])
}

/// `12:03:20Z`
pub fn clock_time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().split_off("2026-11-22T".len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_reasons_is_complete() {
        let next = |reason: &KeepReason| {
            use KeepReason::{
                ActorDied, CommandFailed, CommandNotStarted, DeleteFailed, FetchFailed, HandedOver,
                LeaseExhausted, LeaseLost, LostAfterSuccess, NoJobType, NotANotification,
                NotRecorded, Panicked, Permanent, PublishFailed, Stalled, Stopped, Temporary,
                TimedOut, Unreadable,
            };
            // Of a new reason, the compiler asks here where it comes.
            match reason {
                NotANotification(_) => 0,
                NoJobType(_) => 1,
                FetchFailed(_) => 2,
                Unreadable(_) => 3,
                CommandNotStarted(_) => 4,
                CommandFailed(_) => 5,
                Permanent(_) => 6,
                Temporary => 7,
                PublishFailed(_) => 8,
                NotRecorded(_) => 9,
                DeleteFailed(_) => 10,
                TimedOut => 11,
                Stalled => 12,
                LeaseLost(_) => 13,
                LostAfterSuccess => 14,
                LeaseExhausted => 15,
                HandedOver => 16,
                Stopped => 17,
                Panicked(_) => 18,
                ActorDied(_) => 19,
            }
        };
        let all: Vec<_> = keep_reasons().iter().map(next).collect();
        assert_eq!(all, (0..20).collect::<Vec<_>>());
    }
}
