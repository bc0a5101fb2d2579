//! What must hold in every world, whatever happens there. Each is named after what it says, and
//! tells what was broken.

use std::time::Duration;

use leasehold::job::keep_reason::KeepReason;
use leasehold::job::stop::WorkStop;
use leasehold::job::verdict::{Return, Settlement};
use tokio::time::Instant;

use super::chronicle::{Chronicle, Record, Saved, State};
use super::command::RESULTS;

/// Whole seconds are what a checkpoint tells of how long was worked, so each delivery may gain one.
const ROUNDING: Duration = Duration::from_secs(10);

impl Chronicle {
    /// Of a message only that is deleted whose command succeeded, unhalted; whose results were
    /// published before, and whose success was recorded, where that is asked for. Or that of which
    /// a record says that it was done.
    pub fn deletes_only_what_is_done(&mut self, pod: u32, message: &str) {
        let features = self.features();
        let object = self.objects[message].clone();
        let mut missing = Vec::new();
        if !self.has_succeeded(pod, message) {
            missing.push("a success");
        }
        if features.results && !self.has_published(pod, message) {
            missing.push("all its results");
        }
        // What earlier deliveries did was looked at when they recorded it.
        let recognised = features.records && self.is_done(&object);
        if !missing.is_empty() && !recognised {
            self.breaks(pod, format!("deletes {message} without {}", missing.join(" and ")));
        }
        if features.records && !recognised {
            self.breaks(
                pod,
                format!("deletes {message}, and no record says that its work is done"),
            );
        }
    }

    pub fn deletes_nothing_after_its_stop(&mut self, pod: u32, message: &str) {
        if let Some(stop) = self.stops.get(&pod).filter(|stop| **stop < Instant::now()) {
            let late = stop.elapsed();
            self.breaks(pod, format!("deletes {message} {late:?} after its stop"));
        }
    }

    pub fn deletes_only_what_it_holds(&mut self, pod: u32, message: &str) {
        let holder = self.holder[message];
        if holder != pod {
            self.breaks(pod, format!("deletes {message}, which pod {holder} holds"));
        }
    }

    /// With an old handle it would hide or free what somebody else has: after a release that may
    /// have come through nothing is asked of the queue any more.
    pub fn changes_only_what_it_holds(&mut self, pod: u32, message: &str) {
        let holder = self.holder[message];
        if holder != pod {
            self.breaks(
                pod,
                format!(
                    "changes the visibility of {message}, which pod {holder} has received since"
                ),
            );
        }
    }

    /// Whose lease was lost, by force of the weather, may still be ending its command. Nobody else.
    pub fn works_on_nothing_that_another_holds(&mut self, pod: u32, message: &str) {
        for other in self.running.get(message).cloned().unwrap_or_default() {
            if other != pod && Instant::now() < self.leases[&(other, message.to_owned())] {
                self.breaks(pod, format!("works on {message}, whose lease pod {other} holds"));
            }
        }
    }

    pub fn does_nothing_again_that_is_recorded_as_done(&mut self, pod: u32, object: &str) {
        if self.is_done(object) {
            self.breaks(pod, format!("works on {object}, which was recorded as done"));
        }
    }

    /// Nothing is begun, no command and no upload of a result, but by the pod whose record says
    /// that the work is in progress.
    pub fn has_the_record(&mut self, pod: u32, object: &str, what: &str) {
        let has = |record: &Record| record.pod == pod && record.state == "in_progress";
        if self.features().records && !self.records.get(object).is_some_and(has) {
            let record = self.records.get(object).cloned();
            self.breaks(pod, format!("{what} of {object}, whose record is another's: {record:?}"));
        }
    }

    /// The record of who works on, without having been told to end, is never claimed by another. A
    /// command that was told so may still be ending: the work may run twice, for as long as a stop
    /// may take.
    pub fn takes_over_nothing_that_is_worked_on(&mut self, pod: u32, object: &str, new: &Record) {
        let Some(old) = self.records.get(object).cloned().filter(|old| old.nonce != new.nonce)
        else {
            return;
        };
        if self.seen(old.pod, &old.message).at_work {
            self.breaks(
                pod,
                format!("claims the record of {object}, at which pod {} works", old.pod),
            );
        }
    }

    pub fn leaves_a_record_that_is_done(&mut self, pod: u32, object: &str, new: &Record) {
        let is_other = |old: &&Record| old.nonce != new.nonce || new.state != "done";
        if self.is_done(object) && self.records.get(object).as_ref().is_some_and(is_other) {
            self.breaks(
                pod,
                format!("writes {} over the record of {object}, which was done", new.state),
            );
        }
    }

    pub fn records_only_what_is_done(&mut self, pod: u32, message: &str) {
        if !self.has_succeeded(pod, message) {
            self.breaks(pod, format!("records {message} as done without a success"));
        }
        if self.features().results && !self.has_published(pod, message) {
            self.breaks(
                pod,
                format!("records {message} as done before its results were published"),
            );
        }
    }

    pub fn publishes_only_a_success(&mut self, pod: u32, message: &str) {
        if !self.has_succeeded(pod, message) {
            self.breaks(pod, format!("publishes results of {message} without a success"));
        }
    }

    pub fn publishes_only_while_it_holds_the_message(&mut self, pod: u32, message: &str) {
        let lease = self.leases[&(pod, message.to_owned())];
        if lease < Instant::now() {
            let late = lease.elapsed();
            self.breaks(pod, format!("publishes results of {message} {late:?} after its lease"));
        }
    }

    /// A stop leaves its grace to work that had succeeded before, unless the store failed or the
    /// message was lost.
    pub fn finishes_what_had_succeeded(
        &mut self,
        pod: u32,
        message: &str,
        settlement: &Settlement,
        grace: Duration,
    ) {
        // What could be released had not been lost.
        let Settlement::Kept(KeepReason::Stopped, Return::After(_)) = settlement else { return };
        let Some(stop) = self.stops.get(&pod).copied() else { return };
        let object = self.objects[message].clone();
        let features = self.features();
        let is_lost =
            features.records && self.records.get(&object).is_none_or(|record| record.pod != pod);
        let had_succeeded =
            self.has_succeeded(pod, message) && self.seen(pod, message).ended_before_the_stop;
        let time = WorkStop::new(grace, features.records, features.state).publish;
        let is_excused = is_lost || self.seen(pod, message).store_failed || stop.elapsed() >= time;
        if !had_succeeded || is_excused {
            return;
        }
        let after = stop.elapsed();
        if features.results && !self.has_published(pod, message) {
            self.breaks(
                pod,
                format!("gives up results of {message} {after:?} after its stop, of {grace:?}"),
            );
        } else if features.records && !self.is_done(&object) {
            self.breaks(
                pod,
                format!("gives up the record of {message} {after:?} after its stop, of {grace:?}"),
            );
        }
    }

    fn has_published(&mut self, pod: u32, message: &str) -> bool {
        RESULTS.iter().all(|name| self.seen(pod, message).published.contains(*name))
    }

    /// What a command finds in its checkpoint directory was there as a whole when an earlier
    /// delivery saved it; and of what is in the store since before the message was received, it is
    /// that of the latest delivery.
    pub fn goes_on_from_what_was_saved_last(
        &mut self,
        pod: u32,
        message: &str,
        receive: u32,
        found: Option<State>,
    ) {
        let received = self.seen(pod, message).received.expect("it was received");
        let all = self.saved.get(message).cloned().unwrap_or_default();
        let earlier = || all.iter().filter(|saved| saved.by < receive);
        let mut there = earlier().filter(|saved| saved.until.is_none_or(|until| until >= received));
        let latest = earlier().filter(|saved| saved.from <= received && saved.until.is_none());
        let latest = latest.map(|saved| saved.by).max();
        let is_of =
            |saved: &Saved| saved.state == found && latest.is_none_or(|latest| saved.by >= latest);
        if !there.any(is_of) && (found.is_some() || latest.is_some()) {
            self.breaks(
                pod,
                format!("goes on with {message} from {found:?}; the last to save was {latest:?}: {all:?}"),
            );
        }
    }

    /// No command runs on, without being told to end, for longer than what earlier deliveries, and
    /// what came before it in this one, have left of `--max-duration`.
    pub fn ends_within_its_max_duration(
        &mut self,
        pod: u32,
        message: &str,
        max_duration: Duration,
    ) {
        let started = self.seen(pod, message).started.expect("it runs");
        let remaining = max_duration.saturating_sub(self.total(pod, message, started));
        if started.elapsed() > remaining + ROUNDING {
            let (ran, worked) = (started.elapsed(), self.seen(pod, message).worked);
            self.breaks(
                pod,
                format!(
                    "works on {message} for {ran:?}, of {max_duration:?} less {worked:?}: {remaining:?}"
                ),
            );
        }
    }

    /// What timed out has had its time.
    pub fn times_out_in_its_time(
        &mut self,
        pod: u32,
        message: &str,
        settlement: &Settlement,
        max_duration: Duration,
    ) {
        let Settlement::Kept(KeepReason::TimedOut, _) = settlement else { return };
        let Some(halted) = self.seen(pod, message).halted else { return };
        let total = self.total(pod, message, halted);
        if total < max_duration {
            self.breaks(
                pod,
                format!("halts {message} after {total:?} in all, of {max_duration:?}"),
            );
        }
    }

    fn total(&mut self, pod: u32, message: &str, until: Instant) -> Duration {
        let seen = self.seen(pod, message);
        seen.worked + (until - seen.received.expect("it was received"))
    }

    pub fn stops_within_its_grace(&mut self, pod: u32, grace: Duration) {
        if let Some(stop) = self.stops.get(&pod)
            && stop.elapsed() > grace
        {
            let took = stop.elapsed();
            self.breaks(pod, format!("stopped in {took:?}, its grace is {grace:?}"));
        }
    }
}
