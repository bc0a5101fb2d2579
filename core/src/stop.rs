//! 8 Stopped: how the time of a stop is divided. Every part of a stop takes its limit from here;
//! what is smaller has limits of its own within these.
//!
//! ```text
//! TERM                                                                              terminationGracePeriodSeconds
//!  ├── stop grace: the work ends ──────────────────┬── reserve: all that comes after it ──────────────────┤
//!  │   command │ checkpoint │ release its record   │ reap │ release │ actors │ report │ push │ tidy │ log │
//!  │   or publish, and record that it is done      │
//! ```

use std::time::Duration;

/// What a pod has for a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopPlan {
    /// From TERM to the kubelet's KILL.
    pub termination_grace: Duration,
    /// What of it is kept for everything after the work.
    pub reserve: Duration,
}

/// How a `--stop-grace` is divided. Each of these is a time after TERM, but for `release`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkStop {
    /// The command is KILLed.
    pub command: Duration,
    /// Results that are being published are given up.
    pub publish: Duration,
    /// A checkpoint that is being saved is given up.
    pub save: Duration,
    /// What was finished in time counts as recorded, or as not recorded.
    pub record: Duration,
    /// How long the release of an idempotency record may take.
    pub release: Duration,
}

/// When each part of a stop is over at the latest, after TERM. `None` for what there is nothing of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeline {
    pub killed: Duration,
    pub saved: Option<Duration>,
    pub record_released: Option<Duration>,
    /// The message is visible again.
    pub released: Duration,
    pub reported: Duration,
    pub pushed: Duration,
    pub exited: Duration,
}

impl StopPlan {
    /// A third is kept for what comes after the work, but no more than ten seconds.
    pub fn new(termination_grace: Duration) -> Self {
        Self { termination_grace, reserve: (termination_grace / 3).min(LONGEST_RESERVE) }
    }

    /// From TERM to the exit, when the work, or the last request for a message, may take as long as
    /// `stop_grace`.
    pub fn total(&self, stop_grace: Duration) -> Duration {
        stop_grace + self.reserve
    }

    /// Until a Processor that was told to halt counts as dead.
    pub fn halt(&self, stop_grace: Duration) -> Duration {
        stop_grace + self.reap()
    }

    /// Until a Receiver whose last request may take as long as `longest_poll` counts as dead.
    pub fn last_poll(&self, longest_poll: Duration) -> Duration {
        longest_poll + self.reap()
    }

    /// From KILL to a command that is gone.
    fn reap(&self) -> Duration {
        self.reserve / 10
    }

    /// Joining an extension and releasing the message.
    pub fn settle(&self) -> Duration {
        self.reserve * 2 / 5
    }

    /// Stopping each of the three actors that end before the Reporter.
    pub fn actor(&self) -> Duration {
        self.actors() / 3
    }

    /// All of the end: of the three actors, and of the report.
    pub fn end(&self) -> Duration {
        self.actors() + self.report()
    }

    fn actors(&self) -> Duration {
        self.reserve / 20
    }

    /// The final report.
    pub fn report(&self) -> Duration {
        self.reserve * 3 / 20
    }

    /// Dropping the checkpoints of a message that is deleted, beside its report: what is not
    /// dropped by then is left to a lifecycle rule of the bucket.
    pub fn checkpoint_drop(&self) -> Duration {
        self.report() * 2 / 3
    }

    /// The record of a failed attempt, which in a stop is part of the final report.
    pub fn attempt_record(&self, in_a_stop: bool) -> Duration {
        if in_a_stop { self.report() * 2 / 3 } else { ATTEMPT_RECORD }
    }

    /// The last push of the metrics, after the run.
    pub fn push(&self) -> Duration {
        self.reserve / 5
    }

    /// What still runs on other threads, above all the removal of files; what is not done by then
    /// is left.
    pub fn tidy(&self) -> Duration {
        self.reserve / 20
    }

    /// The log's last lines, which are written after everything else: whatever is left but for a
    /// margin, up to a second. `since_term` is `None` if nobody asked for a stop: then there is no
    /// hurry.
    pub fn log(&self, since_term: Option<Duration>) -> Duration {
        let margin = self.reserve / 20;
        let remaining = since_term
            .map_or(LONGEST_FLUSH, |since| self.termination_grace.saturating_sub(since + margin));
        remaining.clamp((margin / 2).min(LONGEST_FLUSH), LONGEST_FLUSH)
    }

    /// Of a pod whose work ends within `stop_grace`.
    pub fn timeline(
        &self,
        stop_grace: Duration,
        is_recorded: bool,
        is_checkpointed: bool,
    ) -> Timeline {
        let work = WorkStop::new(stop_grace, is_recorded, is_checkpointed);
        let released = self.halt(stop_grace) + self.settle();
        let reported = released + self.end();
        Timeline {
            killed: work.command,
            saved: is_checkpointed.then_some(work.save),
            record_released: is_recorded.then_some(stop_grace),
            released,
            reported,
            pushed: reported + self.push(),
            exited: self.total(stop_grace),
        }
    }
}

impl WorkStop {
    pub fn new(stop_grace: Duration, is_recorded: bool, is_checkpointed: bool) -> Self {
        let release =
            if is_recorded { (stop_grace / 10).min(RECORD_RELEASE) } else { Duration::ZERO };
        let rest = stop_grace - release;
        // What the command does not need of its half, and the other half, is the checkpoint's.
        let command = if is_checkpointed { rest / 2 } else { rest };
        let save = if is_checkpointed { command + upload(command) } else { Duration::ZERO };
        Self { command, publish: upload(rest), save, record: stop_grace, release }
    }
}

/// How long an upload may take that has so much of a stop: one that is given up has to tidy up,
/// too.
fn upload(of_the_stop: Duration) -> Duration {
    of_the_stop.saturating_sub(TIDYING_UP).max(of_the_stop / 2)
}

/// How long the release of an idempotency record may take, when there is no hurry.
pub const RECORD_RELEASE: Duration = Duration::from_secs(1);

const LONGEST_RESERVE: Duration = Duration::from_secs(10);
const LONGEST_FLUSH: Duration = Duration::from_secs(1);
const ATTEMPT_RECORD: Duration = Duration::from_secs(2);
const TIDYING_UP: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the settings: each part has its time, one after another, and all of it fits.
        #[test]
        fn every_path_of_a_stop_fits_the_grace(grace_ms in 1000u64..7_200_000, part in 0.01f64..1.0, recorded: bool, checkpointed: bool) {
            let plan = StopPlan::new(Duration::from_millis(grace_ms));
            let stop_grace = (plan.termination_grace - plan.reserve).mul_f64(part);
            let work = WorkStop::new(stop_grace, recorded, checkpointed);
            prop_assert!(work.command + work.release <= stop_grace && work.publish + work.release <= stop_grace);
            prop_assert!(work.save + work.release <= stop_grace && work.record <= stop_grace);
            prop_assert!(!checkpointed || work.command < work.save);

            let Timeline { killed, saved, record_released, released, reported, pushed, exited } =
                plan.timeline(stop_grace, recorded, checkpointed);
            let all = [Some(killed), saved, record_released, Some(released), Some(reported), Some(pushed), Some(exited)];
            let all: Vec<_> = all.into_iter().flatten().collect();
            prop_assert!(all.is_sorted(), "{all:?}");
            let at_the_end = plan.tidy() + plan.log(Some(plan.termination_grace));
            // Divisions are rounded down, each by less than a nanosecond.
            prop_assert!(pushed + at_the_end <= exited && exited <= plan.termination_grace, "{all:?}");
            prop_assert!(plan.attempt_record(true) < plan.report());
            prop_assert!(plan.checkpoint_drop() < plan.report());

            // A stop while a request for a message is out.
            prop_assert!(plan.last_poll(stop_grace) + (exited - plan.halt(stop_grace)) <= plan.termination_grace);
        }
    }

    #[test]
    fn the_log_has_what_is_left() {
        let plan = StopPlan::new(Duration::from_secs(6));
        let ms = Duration::from_millis;
        assert_eq!(plan.log(None), ms(1000));
        assert_eq!(plan.log(Some(ms(2000))), ms(1000));
        assert_eq!(plan.log(Some(ms(5300))), ms(600));
        assert_eq!(plan.log(Some(ms(6000))), ms(50));
    }
}
