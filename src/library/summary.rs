//! What a worker did, which is counted while it runs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::outcome::Outcome;
use crate::job::keep_reason::KeepReason;
use crate::job::lifecycle::MOST_NOT_STARTED;
use crate::job::report::{Observation, Report};
use crate::job::verdict::{Completion, Settlement};
use crate::ports::Telemetry;
use crate::telemetry::PodTelemetry;

/// What a worker did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Messages whose handler succeeded.
    pub succeeded: u64,
    /// Messages that were deleted without a handler: there was nothing to do.
    pub skipped: u64,
    /// Messages that were kept, to be retried.
    pub kept: u64,
    /// Why the last of them was kept.
    pub last_kept: Option<Outcome>,
}

/// Telemetry that counts messages, and stops a worker whose handler cannot be started.
pub(super) struct Counted {
    pod: PodTelemetry,
    stop: CancellationToken,
    counts: Mutex<Counts>,
}

/// Of all runs of a worker: one after another and at the same time.
#[derive(Default)]
struct Counts {
    summary: Summary,
    /// Messages in a row.
    not_started: u32,
    /// Why the handler cannot be started.
    failed: Option<String>,
}

impl Counted {
    pub(super) fn new(pod: PodTelemetry, stop: CancellationToken) -> Self {
        Self { pod, stop, counts: Mutex::default() }
    }

    /// What the worker did; or why the handler cannot be started.
    pub(super) fn summary(&self) -> Result<Summary, String> {
        let counts = self.counts();
        counts.failed.clone().map_or_else(|| Ok(counts.summary.clone()), Err)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Telemetry for Counted {
    async fn report(&self, report: &Report) {
        if let Report::Ended(ended) = report {
            self.counts().add(&ended.settlement);
            // Each further message would use up a receive.
            if self.summary().is_err() {
                self.stop.cancel();
            }
        }
        self.pod.report(report).await;
    }

    fn record(&self, observation: Observation) {
        self.pod.record(observation);
    }
}

impl Counts {
    fn add(&mut self, settlement: &Settlement) {
        self.summary.add(settlement);
        let Settlement::Kept(
            KeepReason::CommandNotStarted(why) | KeepReason::WorkerNotStarted(why),
            _,
        ) = settlement
        else {
            self.not_started = 0;
            return;
        };
        self.not_started += 1;
        if self.not_started >= MOST_NOT_STARTED {
            self.failed.get_or_insert_with(|| why.clone());
        }
    }
}

impl Summary {
    fn add(&mut self, settlement: &Settlement) {
        match settlement {
            Settlement::Deleted(Completion::Succeeded) => self.succeeded += 1,
            Settlement::Deleted(Completion::NothingToDo(_) | Completion::AlreadyDone) => {
                self.skipped += 1;
            }
            Settlement::Kept(..) => {
                self.kept += 1;
                self.last_kept = Some(Outcome::of(settlement));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::verdict::Return;

    #[test]
    fn a_handler_cannot_be_started_after_three_failures_in_a_row() {
        let kept = |why| Settlement::Kept(why, Return::Unknown);
        let not_started = || kept(KeepReason::CommandNotStarted("no directory".to_owned()));
        for (between, failed) in [
            (None, Some("no directory".to_owned())),
            (Some(kept(KeepReason::HandlerFailed)), None),
            (Some(Settlement::Deleted(Completion::Succeeded)), None),
        ] {
            let mut counts = Counts::default();
            counts.add(&not_started());
            counts.add(&not_started());
            assert_eq!(counts.failed, None);
            if let Some(settlement) = &between {
                counts.add(settlement);
            }
            counts.add(&not_started());
            assert_eq!(counts.failed, failed);
        }
    }
}
