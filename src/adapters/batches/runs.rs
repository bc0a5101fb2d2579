//! What the runs of the pod do now: are further calls to be expected soon?

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

pub(super) struct Runs {
    all: usize,
    now: Mutex<Now>,
    changed: Notify,
}

#[derive(Default)]
struct Now {
    receiving: usize,
    deleting: usize,
    /// Messages without a delete or a release. One that is left to expire counts until all other
    /// runs receive or delete.
    in_work: usize,
    /// The start of the last receive that brought a message.
    asked_at: Option<Instant>,
    /// Runs between a delete and the next receive of any run.
    between: usize,
    /// The end of the last delete.
    deleted_at: Option<Instant>,
}

impl Runs {
    pub(super) fn new(all: usize) -> Self {
        Self { all, now: Mutex::default(), changed: Notify::new() }
    }

    /// Until the result is dropped, a run waits for a message.
    pub(super) fn receives(&self) -> Until<'_> {
        self.change(|now| {
            now.between = now.between.saturating_sub(1);
            now.receiving += 1;
        });
        Until { runs: self, end: |now| now.receiving -= 1 }
    }

    pub(super) fn has_received(&self, asked_at: Instant) {
        self.change(|now| {
            now.in_work += 1;
            now.asked_at = Some(asked_at);
        });
    }

    /// A run has ended its work, and no delete follows.
    pub(super) fn releases(&self) {
        self.change(|now| now.in_work = now.in_work.saturating_sub(1));
    }

    /// Until the result is dropped, a run waits for its delete.
    pub(super) fn deletes(&self) -> Until<'_> {
        self.change(|now| {
            now.in_work = now.in_work.saturating_sub(1);
            now.deleting += 1;
        });
        let end = |now: &mut Now| {
            now.deleting -= 1;
            now.between += 1;
            now.deleted_at = Some(Instant::now());
        };
        Until { runs: self, end }
    }

    /// When the receive of the last message began; `None` if no run works on a message.
    pub(super) fn works_since(&self) -> Option<Instant> {
        let now = self.now();
        now.asked_at.filter(|_| now.in_work > 0)
    }

    /// A receive is sent. It waited for the runs that deleted before; those that did not come may have
    /// ended.
    pub(super) fn sends_receive(&self) {
        self.change(|now| now.between = 0);
    }

    /// The end of the last delete, while a run has not received since its own.
    pub(super) fn receives_since(&self) -> Option<Instant> {
        let now = self.now();
        now.deleted_at.filter(|_| now.between > 0)
    }

    /// Completes after the next change, or if there was one since this call.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    fn change(&self, change: impl Fn(&mut Now)) {
        let mut now = self.now();
        change(&mut now);
        let rest = self.all.saturating_sub(now.receiving + now.deleting);
        now.in_work = now.in_work.min(rest);
        now.between = now.between.min(rest - now.in_work);
        drop(now);
        self.changed.notify_waiters();
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that a run does, until this is dropped.
pub(super) struct Until<'a> {
    runs: &'a Runs,
    end: fn(&mut Now),
}

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.runs.change(self.end);
    }
}
