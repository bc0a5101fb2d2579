//! One object of a message, how long the work on it may go on, and how it ended.

use std::sync::OnceLock;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::liveness::Watch;
use super::workspace::Workspace;
use crate::job::lifecycle::Work;
use crate::job::notification::Record;
use crate::job::stop::WorkStop;

/// One thing to work on.
#[derive(Clone, Copy)]
pub(super) struct ObjectWork<'a> {
    pub(super) work: &'a Work,
    /// Of those in the message, from 0.
    pub(super) number: usize,
    /// `None` for the message's body itself.
    pub(super) record: Option<&'a Record>,
    pub(super) space: &'a Workspace,
    pub(super) watch: &'a Watch<'a>,
    pub(super) runtime: &'a Runtime,
    pub(super) stop: WorkStop,
}

/// For how long it may be worked on. Each stage may have less than the one around it.
#[derive(Clone, Copy)]
pub(super) struct Until<'a> {
    /// Cancelled when a command that runs is to end, and nothing more is to begin.
    pub(super) halt: &'a CancellationToken,
    /// Cancelled when what is being published is to be given up.
    pub(super) publish_halt: &'a CancellationToken,
    /// When the work will be halted, on the run's clock.
    pub(super) deadline_at: Duration,
}

/// Why nothing is left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// The command succeeded before anybody halted it, and all of what it wrote was published.
    Succeeded,
    /// An earlier delivery had done it.
    Earlier,
    /// The object is gone, and that is as it should be.
    Gone,
}

/// When the command of an object ran, on the run's clock. What a store takes, to give or to take,
/// is not its work.
#[derive(Default)]
pub(super) struct Runtime {
    began_at: OnceLock<Duration>,
    ended_at: OnceLock<Duration>,
    pub(super) ended: CancellationToken,
}

impl Runtime {
    pub(super) fn begins(&self, now: Duration) {
        let _ = self.began_at.set(now);
    }

    pub(super) fn ends(&self, now: Duration) {
        let _ = self.ended_at.set(now);
        self.ended.cancel();
    }

    /// How long it has run until then, or did run; `None` if it has not begun.
    pub(super) fn until(&self, now: Duration) -> Option<Duration> {
        let ended_at = self.ended_at.get().copied().unwrap_or(now);
        self.began_at.get().map(|began_at| ended_at.saturating_sub(*began_at))
    }
}
