//! How a graceful shutdown divides its time. Every part of a stop takes its limit from here;
//! smaller steps have their own limits within these.
//!
//! ```text
//! TERM                                                                              terminationGracePeriodSeconds
//!  ├── stop grace: the work ends ──────────────────┬── reserve: all that comes after it ──────────────────┤
//!  │   command │ checkpoint │ release its record   │ reap │ release │ actors │ report │ push │ tidy │ log │
//!  │   or publish, and record that it is done      │
//! ```

use std::time::Duration;

/// The time that a pod has for a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopPlan {
    /// From TERM to the kubelet's KILL.
    pub termination_grace: Duration,
    /// The part of it for everything after the work.
    pub reserve: Duration,
}

/// How a `--stop-grace` is divided. Each field except `release` is a time after TERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkStop {
    /// The command is KILLed.
    pub command: Duration,
    /// An unfinished upload of results is given up.
    pub publish: Duration,
    /// An unfinished upload of a checkpoint is given up.
    pub save: Duration,
    /// The result is recorded as done, or counts as not recorded.
    pub record: Duration,
    /// How long the release of an idempotency record may take.
    pub release: Duration,
}

/// The latest end of each part of a stop, after TERM. `None` for parts that do not apply.
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
    /// Reserves a third for everything after the work, at most ten seconds.
    pub fn new(termination_grace: Duration) -> Self {
        Self { termination_grace, reserve: (termination_grace / 3).min(LONGEST_RESERVE) }
    }

    /// From TERM to the exit, if the work, or the last receive request, may take `stop_grace`.
    pub fn total(&self, stop_grace: Duration) -> Duration {
        stop_grace + self.reserve
    }

    /// Until a Processor that was asked to halt counts as dead.
    pub fn halt(&self, stop_grace: Duration) -> Duration {
        stop_grace + self.reap()
    }

    /// Until a Receiver whose last request may take `longest_poll` counts as dead.
    pub fn last_poll(&self, longest_poll: Duration) -> Duration {
        longest_poll + self.reap()
    }

    /// From KILL until the command is gone.
    fn reap(&self) -> Duration {
        self.reserve / 10
    }

    /// For the end of an extension and the release of the message.
    pub fn settle(&self) -> Duration {
        self.reserve * 2 / 5
    }

    /// For stopping each of the three actors that end before the Reporter.
    pub fn actor(&self) -> Duration {
        self.actors() / 3
    }

    /// For stopping the three actors, and for the report.
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

    /// For dropping the checkpoints of a deleted message, in parallel to its report. A lifecycle
    /// rule of the bucket deletes the others.
    pub fn checkpoint_drop(&self) -> Duration {
        self.report() * 2 / 3
    }

    /// For the record of a failed attempt, which in a stop is part of the final report.
    pub fn attempt_record(&self, in_a_stop: bool) -> Duration {
        if in_a_stop { self.report() * 2 / 3 } else { ATTEMPT_RECORD }
    }

    /// For the last push of metrics, after the run.
    pub fn push(&self) -> Duration {
        self.reserve / 5
    }

    /// For tasks on other threads, mainly the removal of files; unfinished tasks are abandoned.
    pub fn tidy(&self) -> Duration {
        self.reserve / 20
    }

    /// For the log's last lines, which are written after everything else: the remaining time less a
    /// margin, up to a second. `since_term` is `None` if no stop was requested: then the full
    /// second.
    pub fn log(&self, since_term: Option<Duration>) -> Duration {
        let margin = self.reserve / 20;
        let remaining = since_term
            .map_or(LONGEST_FLUSH, |since| self.termination_grace.saturating_sub(since + margin));
        remaining.clamp((margin / 2).min(LONGEST_FLUSH), LONGEST_FLUSH)
    }

    /// The timeline of a pod whose work ends within `stop_grace`.
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
        // The checkpoint gets the second half, and the rest of the command's half if the command
        // ends earlier.
        let command = if is_checkpointed { rest / 2 } else { rest };
        let save = if is_checkpointed { command + upload(command) } else { Duration::ZERO };
        Self { command, publish: upload(rest), save, record: stop_grace, release }
    }
}

/// The time limit of an upload within its part of the stop: an abandoned upload needs time to clean
/// up.
fn upload(of_the_stop: Duration) -> Duration {
    of_the_stop.saturating_sub(TIDYING_UP).max(of_the_stop / 2)
}

/// How long the release of an idempotency record may take outside a stop.
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
        /// With all settings, the parts follow one another and fit the grace period.
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

            // A stop while a receive request is in flight.
            prop_assert!(plan.last_poll(stop_grace) + (exited - plan.halt(stop_grace)) <= plan.termination_grace);
        }
    }

    #[test]
    fn the_log_gets_the_remaining_time() {
        let plan = StopPlan::new(Duration::from_secs(6));
        let ms = Duration::from_millis;
        assert_eq!(plan.log(None), ms(1000));
        assert_eq!(plan.log(Some(ms(2000))), ms(1000));
        assert_eq!(plan.log(Some(ms(5300))), ms(600));
        assert_eq!(plan.log(Some(ms(6000))), ms(50));
    }
}
