//! The invariants of every world. Each check records a violation.

use std::time::Duration;

use leasehold::job::keep_reason::KeepReason;
use leasehold::job::stop::WorkStop;
use leasehold::job::verdict::{Return, Settlement};
use tokio::time::Instant;

use super::command::RESULTS;
use super::history::{History, Record, Saved, State};

/// A checkpoint stores the work time in whole seconds, so each delivery may gain one.
const ROUNDING: Duration = Duration::from_secs(10);

impl History {
    /// A message is deleted only after its command succeeded without a halt, its results were
    /// published and its success was recorded, if configured; or if a record has its work as done.
    pub fn check_delete_after_success(&mut self, pod: u32, message: &str) {
        let features = self.features();
        let object = self.objects[message].clone();
        let mut missing = Vec::new();
        if !self.has_succeeded(pod, message) {
            missing.push("a success");
        }
        if features.results && !self.has_published(pod, message) {
            missing.push("all its results");
        }
        // The work of earlier deliveries was checked when they recorded it.
        let recognised = features.records && self.is_done(&object);
        if !missing.is_empty() && !recognised {
            self.violation(pod, format!("deletes {message} without {}", missing.join(" and ")));
        }
        if features.records && !recognised {
            self.violation(
                pod,
                format!("deletes {message} without a record that its work is done"),
            );
        }
    }

    pub fn check_no_delete_after_stop(&mut self, pod: u32, message: &str) {
        if let Some(stop) = self.stops.get(&pod).filter(|stop| **stop < Instant::now()) {
            let late = stop.elapsed();
            self.violation(pod, format!("deletes {message} {late:?} after its stop"));
        }
    }

    pub fn check_delete_by_holder(&mut self, pod: u32, message: &str) {
        let holder = self.holder[message];
        if holder != pod {
            self.violation(pod, format!("deletes {message}, which pod {holder} holds"));
        }
    }

    pub fn check_delete_within_lease(&mut self, pod: u32, message: &str) {
        let lease = self.leases[&(pod, message.to_owned())];
        if lease <= Instant::now() {
            let late = lease.elapsed();
            self.violation(pod, format!("deletes {message} {late:?} after its lease"));
        }
    }

    /// An old handle could hide or release the message of another pod: after a release that may
    /// have succeeded, the pod makes no further call.
    pub fn check_change_by_holder(&mut self, pod: u32, message: &str) {
        let holder = self.holder[message];
        if holder != pod {
            self.violation(
                pod,
                format!(
                    "changes the visibility of {message}, which pod {holder} has received since"
                ),
            );
        }
    }

    /// Only a pod that lost its lease may still be ending its command.
    pub fn check_exclusive_work(&mut self, pod: u32, message: &str) {
        for other in self.running.get(message).cloned().unwrap_or_default() {
            if other != pod && Instant::now() < self.leases[&(other, message.to_owned())] {
                self.violation(pod, format!("works on {message}, whose lease pod {other} holds"));
            }
        }
    }

    pub fn check_not_done(&mut self, pod: u32, object: &str) {
        if self.is_done(object) {
            self.violation(pod, format!("works on {object}, which was recorded as done"));
        }
    }

    /// A pod starts a command or an upload only while its record is in progress.
    pub fn check_record_owner(&mut self, pod: u32, object: &str, what: &str) {
        let has = |record: &Record| record.pod == pod && record.state == "in_progress";
        if self.features().records && !self.records.get(object).is_some_and(has) {
            let record = self.records.get(object).cloned();
            self.violation(
                pod,
                format!("{what} of {object}, whose record belongs to another pod: {record:?}"),
            );
        }
    }

    /// A pod never claims the record of another pod whose command runs without a halt. A halted
    /// command may still be ending, so the work may run twice for the time of a stop.
    pub fn check_takeover(&mut self, pod: u32, object: &str, new: &Record) {
        let Some(old) = self.records.get(object).cloned().filter(|old| old.nonce != new.nonce)
        else {
            return;
        };
        if self.work_of(old.pod, &old.message).at_work {
            self.violation(
                pod,
                format!("claims the record of {object}, on which pod {} works", old.pod),
            );
        }
    }

    pub fn check_done_record_unchanged(&mut self, pod: u32, object: &str, new: &Record) {
        let is_other = |old: &&Record| old.nonce != new.nonce || new.state != "done";
        if self.is_done(object) && self.records.get(object).as_ref().is_some_and(is_other) {
            self.violation(
                pod,
                format!("writes {} over the record of {object}, which was done", new.state),
            );
        }
    }

    pub fn check_recorded_success(&mut self, pod: u32, message: &str) {
        if !self.has_succeeded(pod, message) {
            self.violation(pod, format!("records {message} as done without a success"));
        }
        if self.features().results && !self.has_published(pod, message) {
            self.violation(
                pod,
                format!("records {message} as done before its results were published"),
            );
        }
    }

    pub fn check_publish_after_success(&mut self, pod: u32, message: &str) {
        if !self.has_succeeded(pod, message) {
            self.violation(pod, format!("publishes results of {message} without a success"));
        }
    }

    pub fn check_publish_within_lease(&mut self, pod: u32, message: &str) {
        let lease = self.leases[&(pod, message.to_owned())];
        if lease < Instant::now() {
            let late = lease.elapsed();
            self.violation(pod, format!("publishes results of {message} {late:?} after its lease"));
        }
    }

    /// After a stop, work that had succeeded before is published and recorded within the grace,
    /// unless the store failed or the message was lost.
    pub fn check_finished_work_is_published(
        &mut self,
        pod: u32,
        message: &str,
        settlement: &Settlement,
        grace: Duration,
    ) {
        // A released message was not lost.
        let Settlement::Kept(KeepReason::Stopped, Return::After(_)) = settlement else { return };
        let Some(stop) = self.stops.get(&pod).copied() else { return };
        let object = self.objects[message].clone();
        let features = self.features();
        let is_lost =
            features.records && self.records.get(&object).is_none_or(|record| record.pod != pod);
        let had_succeeded =
            self.has_succeeded(pod, message) && self.work_of(pod, message).ended_before_the_stop;
        let time = WorkStop::new(grace, features.records, features.state).publish;
        let is_excused =
            is_lost || self.work_of(pod, message).store_failed || stop.elapsed() >= time;
        if !had_succeeded || is_excused {
            return;
        }
        let after = stop.elapsed();
        if features.results && !self.has_published(pod, message) {
            self.violation(
                pod,
                format!(
                    "does not publish results of {message} {after:?} after its stop, of {grace:?}"
                ),
            );
        } else if features.records && !self.is_done(&object) {
            self.violation(
                pod,
                format!(
                    "does not write the record of {message} {after:?} after its stop, of {grace:?}"
                ),
            );
        }
    }

    fn has_published(&mut self, pod: u32, message: &str) -> bool {
        RESULTS.iter().all(|name| self.work_of(pod, message).published.contains(*name))
    }

    /// A restored checkpoint is a complete one of an earlier delivery, and not older than the
    /// latest one that was in the store at the receive.
    pub fn check_restored_checkpoint(
        &mut self,
        pod: u32,
        message: &str,
        receive: u32,
        found: Option<State>,
    ) {
        let received = self.work_of(pod, message).received.expect("a received message");
        let all = self.saved.get(message).cloned().unwrap_or_default();
        let earlier = || all.iter().filter(|saved| saved.by < receive);
        let mut there = earlier().filter(|saved| saved.until.is_none_or(|until| until >= received));
        let latest = earlier().filter(|saved| saved.from <= received && saved.until.is_none());
        let latest = latest.map(|saved| saved.by).max();
        let matches_state =
            |saved: &Saved| saved.state == found && latest.is_none_or(|latest| saved.by >= latest);
        if !there.any(matches_state) && (found.is_some() || latest.is_some()) {
            self.violation(
                pod,
                format!(
                    "resumes {message} from {found:?}; the last save was by {latest:?}: {all:?}"
                ),
            );
        }
    }

    /// No command runs without a halt for longer than the part of `--max-duration` that earlier
    /// deliveries, and the earlier phases of this one, left.
    pub fn check_max_duration(&mut self, pod: u32, message: &str, max_duration: Duration) {
        let started = self.work_of(pod, message).started.expect("a running command");
        let remaining = max_duration.saturating_sub(self.total(pod, message, started));
        if started.elapsed() > remaining + ROUNDING {
            let (ran, worked) = (started.elapsed(), self.work_of(pod, message).worked);
            self.violation(
                pod,
                format!(
                    "works on {message} for {ran:?}, of {max_duration:?} less {worked:?}: {remaining:?}"
                ),
            );
        }
    }

    /// Work times out only after its full time.
    pub fn check_timeout_not_early(
        &mut self,
        pod: u32,
        message: &str,
        settlement: &Settlement,
        max_duration: Duration,
    ) {
        let Settlement::Kept(KeepReason::TimedOut, _) = settlement else { return };
        let Some(halted) = self.work_of(pod, message).halted else { return };
        let total = self.total(pod, message, halted);
        if total < max_duration {
            self.violation(
                pod,
                format!("halts {message} after {total:?} in total, of {max_duration:?}"),
            );
        }
    }

    fn total(&mut self, pod: u32, message: &str, until: Instant) -> Duration {
        let work = self.work_of(pod, message);
        work.worked + (until - work.received.expect("a received message"))
    }

    pub fn check_stop_within_grace(&mut self, pod: u32, grace: Duration) {
        if let Some(stop) = self.stops.get(&pod)
            && stop.elapsed() > grace
        {
            let took = stop.elapsed();
            self.violation(pod, format!("stopped in {took:?}, its grace is {grace:?}"));
        }
    }
}
