//! The data of logs, metrics and the termination message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::delivery::{DeliveryId, MessageId, Redrive, SqsAttributes};
use super::keep_reason::{KeepReason, Role, Visible};
use super::notification::Object;
use super::outcome::{Exit, NoWorkReason, WorkRecord};
use super::verdict::{Completion, Return, Settlement};

/// One report of the run.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// A message was received and its work begins.
    Started(Arc<Subject>),
    /// The lease of the message lasts longer than before.
    Held(Box<Held>),
    /// The command reported new progress; sent about once a second.
    Progressed(Box<Progressed>),
    /// The message in flight will not be deleted: its work is being ended, or it is being released.
    Releasing(MessageId),
    /// A message is settled.
    Ended(Box<Ended>),
}

/// An observation for metrics only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// A receive request returned no message.
    ReceivedNothing,
    /// A receive request failed and may be retried.
    ReceiveFailed,
    /// The result of an extension.
    Extend(ExtendResult),
    /// The result of a delete.
    Delete(DeleteResult),
    /// How much of the lease remained when the verdict came.
    LeaseRemaining(Duration),
}

/// The result of an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtendResult {
    Extended,
    /// It may be retried while the lease lasts.
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

/// The result of a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteResult {
    Deleted,
    /// It may be retried while the lease lasts.
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

/// The message of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub message_id: MessageId,
    /// 1 = first.
    pub receive_count: u32,
    pub redrive: Redrive,
    /// By the queue's clock.
    pub sent_at: Option<SystemTime>,
    /// By the queue's clock.
    pub first_received_at: Option<SystemTime>,
    pub group_id: Option<String>,
    pub deduplication_id: Option<String>,
    /// The sender's key for this piece of work, see [`Delivery`](super::delivery::Delivery).
    pub idempotency_key: Option<String>,
    pub traceparent: Option<String>,
    /// The sender's message attributes; never reported, as they may contain private data.
    pub attributes: BTreeMap<String, String>,
    /// Never reported either.
    pub sqs: SqsAttributes,
    /// SHA-256 of the body in hexadecimal; the body itself is never reported.
    pub body_sha256: String,
    /// `default` for messages without a job type; `None` if no command runs.
    pub job_type: Option<String>,
    /// The objects to work on, in order; empty without work.
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
    /// Without another extension.
    pub remaining: Duration,
}

/// Progress of the work on a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Progressed {
    pub subject: Arc<Subject>,
    pub progress: Progress,
}

/// The progress that the command reported, see `JOB_RESULT_FILE`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// The finished share of the message's work, from 0 to 1; each object counts the same.
    pub share: Option<f64>,
    pub text: Option<String>,
}

/// One message, from its receive until it was settled.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    pub subject: Arc<Subject>,
    pub settlement: Settlement,
    /// The last progress that the command reported.
    pub progress: Option<Progress>,
    pub work: WorkRecord,
}

impl Ended {
    /// The outcome label, from a closed set.
    pub fn outcome(&self) -> &'static str {
        outcome_label(&self.settlement)
    }

    /// Why it was kept, with the command's own reason and the last error, if any.
    pub fn error(&self) -> Option<String> {
        let Settlement::Kept(reason, _) = &self.settlement else { return None };
        let reason_given =
            self.work.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let last_error = self.work.last_error.as_ref().map(|why| format!("; last error: {why}"));
        Some(format!("{reason}{reason_given}{}", last_error.unwrap_or_default()))
    }

    /// A sentence about what happens to the message next, as of `now`; `None` if it was deleted.
    pub fn next(&self, now: SystemTime) -> Option<String> {
        let Settlement::Kept(reason, comes_back) = &self.settlement else { return None };
        let Subject { redrive, receive_count, .. } = &*self.subject;
        let attempt = self.subject.attempt();
        let visible = match comes_back {
            Return::After(delay) if delay.is_zero() => "visible again now".to_owned(),
            Return::After(delay) => format!("visible again {}", clock_time(now + *delay)),
            Return::Within(remaining) => {
                format!("visible again by {}", clock_time(now + *remaining))
            }
            Return::Unknown => "visible again when its visibility timeout ends".to_owned(),
        };
        let then = match redrive {
            Redrive::DeadLetter { queue, .. } if redrive.is_final(*receive_count) => {
                format!(
                    "this was the last attempt: the next receive moves it to dead-letter queue {queue}"
                )
            }
            Redrive::DeadLetter { queue, max_receive_count }
                if reason.row().visible == Visible::Soon =>
            {
                let more = max_receive_count - receive_count;
                let receives = if more == 1 { "receive" } else { "receives" };
                format!("goes to dead-letter queue {queue} after {more} more {receives}")
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

/// The outcome label of a message, from a closed set.
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

/// One example of each reason to keep a message, for tables; details are an ellipsis.
pub fn keep_reasons() -> Vec<KeepReason> {
    let why = || "…".to_owned();
    vec![
        KeepReason::NotANotification(why()),
        KeepReason::NoJobType(why()),
        KeepReason::FetchFailed(why()),
        KeepReason::Unreadable(why()),
        KeepReason::CommandNotStarted(why()),
        KeepReason::WorkerNotStarted(why()),
        KeepReason::CommandFailed(Exit::Code(1)),
        KeepReason::Permanent(Exit::Code(65)),
        KeepReason::Temporary(Exit::Code(75)),
        KeepReason::HandlerFailed,
        KeepReason::HandlerPanicked,
        KeepReason::PublishFailed(why()),
        KeepReason::NotRecorded(why()),
        KeepReason::DeleteFailed(why()),
        KeepReason::TimedOut,
        KeepReason::Stalled,
        KeepReason::OutOfMemory(why()),
        KeepReason::LeaseLost(why()),
        KeepReason::LostAfterSuccess,
        KeepReason::LeaseExhausted,
        KeepReason::HandedOver,
        KeepReason::Stopped,
        KeepReason::Bug(why()),
        KeepReason::ActorDied(Role::Processor),
    ]
}

/// The longest beginning of a text that takes at most `most` bytes within a JSON string.
pub fn truncate_for_json(text: &str, most: usize) -> &str {
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
                ActorDied, Bug, CommandFailed, CommandNotStarted, DeleteFailed, FetchFailed,
                HandedOver, HandlerFailed, HandlerPanicked, LeaseExhausted, LeaseLost,
                LostAfterSuccess, NoJobType, NotANotification, NotRecorded, OutOfMemory, Permanent,
                PublishFailed, Stalled, Stopped, Temporary, TimedOut, Unreadable, WorkerNotStarted,
            };
            // The compiler fails here for a new reason until it is listed.
            match reason {
                NotANotification(_) => 0,
                NoJobType(_) => 1,
                FetchFailed(_) => 2,
                Unreadable(_) => 3,
                CommandNotStarted(_) => 4,
                WorkerNotStarted(_) => 5,
                CommandFailed(_) => 6,
                Permanent(_) => 7,
                Temporary(_) => 8,
                HandlerFailed => 9,
                HandlerPanicked => 10,
                PublishFailed(_) => 11,
                NotRecorded(_) => 12,
                DeleteFailed(_) => 13,
                TimedOut => 14,
                Stalled => 15,
                OutOfMemory(_) => 16,
                LeaseLost(_) => 17,
                LostAfterSuccess => 18,
                LeaseExhausted => 19,
                HandedOver => 20,
                Stopped => 21,
                Bug(_) => 22,
                ActorDied(_) => 23,
            }
        };
        let all: Vec<_> = keep_reasons().iter().map(next).collect();
        assert_eq!(all, (0..24).collect::<Vec<_>>());
    }
}
