//! The message, as a model of SQS's rules: those of `ports/memory.rs`.

use std::time::Duration;

use leasehold_core::lease::CEILING;

use super::Setting;

/// The kind of queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Standard,
    Fifo,
}

/// After this many receives the next one makes it a dead letter.
pub const MAX_RECEIVES: u32 = 2;

/// The state of the message in SQS.
#[derive(Clone, Hash)]
pub struct Message {
    pub queue_state: QueueState,
    /// How often it was received. A delivery's receipt is the count that it had.
    pub receives: u32,
    pub received_at: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum QueueState {
    Visible,
    Hidden { until: Duration },
    Deleted,
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Request {
    Change(Duration),
    Delete,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    Ok,
    NotInFlight,
    AtCeiling,
    Refused,
}

impl Message {
    pub fn receive(&mut self, setting: &Setting, now: Duration) -> Option<u32> {
        if self.queue_state != QueueState::Visible {
            return None;
        }
        if self.receives == MAX_RECEIVES {
            self.queue_state = QueueState::Dead;
            return None;
        }
        self.queue_state = QueueState::Hidden { until: now + setting.visibility() };
        self.receives += 1;
        self.received_at = now;
        Some(self.receives)
    }

    /// `hides_again`: sources disagree on whether a late extension hides the message again.
    pub fn answer(
        &mut self,
        kind: Kind,
        now: Duration,
        receipt: u32,
        request: Request,
        hides_again: bool,
    ) -> Answer {
        let stale = receipt != self.receives;
        match (request, self.queue_state) {
            (Request::Change(_), QueueState::Deleted | QueueState::Dead) => Answer::NotInFlight,
            (Request::Change(to), QueueState::Hidden { .. }) if !stale => {
                if now + to > self.received_at + CEILING {
                    return Answer::AtCeiling;
                }
                self.hide(now, to);
                Answer::Ok
            }
            (Request::Delete, QueueState::Hidden { .. }) if !stale => {
                self.queue_state = QueueState::Deleted;
                Answer::Ok
            }
            (Request::Change(_), QueueState::Hidden { .. } | QueueState::Visible)
                if kind == Kind::Fifo =>
            {
                Answer::NotInFlight
            }
            (Request::Delete, QueueState::Hidden { .. } | QueueState::Visible)
                if kind == Kind::Fifo =>
            {
                Answer::Refused
            }
            (Request::Change(to), QueueState::Visible) if !stale && hides_again => {
                self.hide(now, to);
                Answer::Ok
            }
            (Request::Delete, QueueState::Visible) if !stale => {
                self.queue_state = QueueState::Deleted;
                Answer::Ok
            }
            // Accepted without effect.
            (Request::Change(_) | Request::Delete, _) => Answer::Ok,
        }
    }

    fn hide(&mut self, now: Duration, to: Duration) {
        self.queue_state =
            if to.is_zero() { QueueState::Visible } else { QueueState::Hidden { until: now + to } };
    }

    pub fn is_gone(&self) -> bool {
        matches!(self.queue_state, QueueState::Deleted | QueueState::Dead)
    }
}
