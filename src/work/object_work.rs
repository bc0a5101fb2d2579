//! One object of a message, the limits of the work on it, and how it ended.

use std::sync::OnceLock;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::liveness::Watch;
use super::workspace::Workspace;
use crate::job::lifecycle::Work;
use crate::job::notification::Record;
use crate::job::stop::WorkStop;

/// The work on one object.
#[derive(Clone, Copy)]
pub(super) struct ObjectWork<'a> {
    pub(super) work: &'a Work,
    /// The object's index in the message.
    pub(super) number: usize,
    /// `None` for the message's body itself.
    pub(super) record: Option<&'a Record>,
    pub(super) space: &'a Workspace,
    pub(super) watch: &'a Watch<'a>,
    pub(super) runtime: &'a Runtime,
    pub(super) stop: WorkStop,
}

/// The limits of the work. An inner stage may have shorter ones.
#[derive(Clone, Copy)]
pub(super) struct Until<'a> {
    /// Cancelled to end a running command and start nothing more.
    pub(super) halt: &'a CancellationToken,
    /// Cancelled to abandon an unfinished upload of results.
    pub(super) publish_halt: &'a CancellationToken,
    /// When the work will be halted, on the run's clock.
    pub(super) deadline_at: Duration,
}

/// How the work was finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// The command succeeded without being halted, and all of its output was published.
    Succeeded,
    /// An earlier delivery did the work.
    Earlier,
    /// The object is gone, which is not an error.
    Gone,
}

/// When the command of an object ran, on the run's clock. Downloads and uploads do not count.
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

    /// How long the command has run until `now`; `None` if it has not started.
    pub(super) fn until(&self, now: Duration) -> Option<Duration> {
        let ended_at = self.ended_at.get().copied().unwrap_or(now);
        self.began_at.get().map(|began_at| ended_at.saturating_sub(*began_at))
    }
}
