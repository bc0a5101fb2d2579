//! 4 Held: what the owner of a lease does next.
//!
//! ```text
//!              verdict: keep
//! Holding ─────────────────────► Releasing ──► settled: kept
//!  │   ▲
//!  │   └── not deleted: a stop came first, the lease ended, or the queue kept failing
//!  │                             │
//!  └───────────────────────► Deleting ───────► settled: deleted
//!        verdict: delete
//! ```
//!
//! It extends the lease in time, also between the tries of a delete, and makes every call that
//! takes the receipt handle, one after another: so a late extension cannot undo a release, and none
//! is in flight when a release or a delete is sent.
//!
//! [`Keeper::handle`] takes what happened and calls nobody; [`Keeper::next`] says what to do now.
//! Whoever carries it out hands in all that has happened before they ask what is next.
//!
//! Architecture invariant: a delete is sent from [`Keeper::next`] only, and only with the proof,
//! before any stop, and while the lease is held.

use std::collections::VecDeque;
use std::time::Duration;

use super::backoff::{Again, FIRST_PAUSE};
use super::delivery::DeliveryId;
use super::keep_reason::KeepReason;
use super::lease::Lease;
use super::lifecycle::{Event, NotDeleted};
use super::report::{DeleteResult, ExtendResult, Observation};
use super::verdict::{Completed, DeletePermit, Release, Return, Settlement, Verdict};

/// The owner of the lease of one message. All points in time are on the run's clock.
#[derive(Debug, Clone)]
pub struct Keeper {
    delivery: DeliveryId,
    /// The least that the lease is long when it is new.
    visibility: Duration,
    state: State,
    /// What is not reported yet, in order.
    reports: VecDeque<Report>,
}

/// All that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub lease: Lease,
    pub phase: Phase,
    /// No delete is sent any more.
    pub withdrawn: bool,
    /// When to say that SQS's ceiling is near; `None` once that was said.
    pub halt_by: Option<Duration>,
    /// After extensions that failed.
    pub extend_again: Option<Again>,
    /// The call that is out.
    pub call: Option<Call>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// There is no verdict, or the core has not yet heard that its last one could not be carried
    /// out.
    Holding,
    Deleting {
        completed: Completed,
        give_up_at: Duration,
        again: Again,
    },
    Releasing {
        why: KeepReason,
        delay: Duration,
        give_up_at: Duration,
        again: Again,
    },
    /// Left to its visibility timeout.
    Expiring(KeepReason),
    /// To be said at once.
    Settled(Settlement),
    /// That was said.
    Over,
}

/// A call that is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// ChangeMessageVisibility to `by`, asked for at `asked_at`.
    Extend {
        by: Duration,
        asked_at: Duration,
    },
    /// ChangeMessageVisibility to this delay.
    Release(Duration),
    Delete,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Verdict(Verdict),
    /// The pod stops: no delete is sent from now on.
    Withdraw,
    /// To the call that [`Keeper::next`] asked for last.
    Answered(Answer),
}

/// What the queue says to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    /// This delivery is over: expired, deleted or received again.
    NotInFlight(String),
    /// Hidden for 12 hours in all would be exceeded.
    AtCeiling(String),
    /// Nothing was changed; the same call may succeed later.
    Failed(String),
    /// No answer, or none that says whether something was changed.
    Unclear(String),
}

/// What to do now.
#[derive(Debug)]
pub enum Next {
    /// Hide the message for `by`. Without an answer within `limit` the call is [`Answer::Unclear`];
    /// so for all calls.
    Extend {
        by: Duration,
        limit: Duration,
    },
    /// Make the message visible after `delay`.
    Release {
        delay: Duration,
        limit: Duration,
    },
    Delete {
        permit: DeletePermit,
        limit: Duration,
    },
    /// To the supervisor.
    Report(Event),
    Observe(Observation),
    /// The message is settled, and there is nothing more to do.
    Settled(Settlement),
    /// For an input, and if there is none, until then.
    Wait {
        until: Option<Duration>,
    },
}

#[derive(Debug, Clone)]
enum Report {
    Held(Duration),
    LeaseLost(String),
    LeaseExhausted,
    NotDeleted(NotDeleted),
    Observation(Observation),
}

impl Keeper {
    /// Takes the lease of a message, which is `visibility` long when it is new. The work has to be
    /// halted `stop` before SQS's ceiling.
    pub fn new(delivery: DeliveryId, lease: Lease, visibility: Duration, stop: Duration) -> Self {
        let state = State {
            lease,
            phase: Phase::Holding,
            withdrawn: false,
            halt_by: Some(lease.halt_by(stop)),
            extend_again: None,
            call: None,
        };
        let mut keeper = Self { delivery, visibility, state, reports: VecDeque::new() };
        keeper.report_lease();
        keeper
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Something happened at `now`.
    pub fn handle(&mut self, now: Duration, input: Input) {
        match input {
            Input::Withdraw => self.state.withdrawn = true,
            // There is one already, or it is about another message.
            Input::Verdict(_) if self.state.phase != Phase::Holding => {}
            Input::Verdict(Verdict::Delete(completed)) if !completed.is_of(&self.delivery) => {}
            Input::Verdict(verdict) => self.judged(now, verdict),
            Input::Answered(answer) => match self.state.call.take() {
                Some(Call::Extend { by, asked_at }) => {
                    self.extend_answered(now, by, asked_at, answer);
                }
                Some(Call::Release(delay)) => self.release_answered(now, delay, &answer),
                Some(Call::Delete) => self.delete_answered(now, answer),
                None => {}
            },
        }
    }

    /// What to do at `now`. While a call is out there is nothing else to do.
    pub fn next(&mut self, now: Duration) -> Next {
        loop {
            if let Some(report) = self.reports.pop_front() {
                return match report {
                    Report::Held(until) => Next::Report(Event::Held(until)),
                    Report::LeaseLost(why) => Next::Report(Event::LeaseLost(why)),
                    Report::LeaseExhausted => Next::Report(Event::LeaseExhausted),
                    Report::NotDeleted(why) => Next::Report(Event::NotDeleted(why)),
                    Report::Observation(observation) => Next::Observe(observation),
                };
            }
            if self.state.call.is_some() {
                return Next::Wait { until: None };
            }
            let again_at = match &self.state.phase {
                Phase::Holding if self.is_exhausted(now) => {
                    self.exhausted();
                    continue;
                }
                Phase::Holding => self.state.halt_by,
                Phase::Deleting { .. } if self.state.withdrawn => {
                    self.not_deleted(NotDeleted::Withdrawn);
                    continue;
                }
                Phase::Deleting { .. } if !self.state.lease.is_held(now) => {
                    self.state.lease = self.state.lease.lost();
                    self.not_deleted(NotDeleted::LeaseLost);
                    continue;
                }
                Phase::Deleting { again, .. } if again.at <= now => return self.delete(now),
                Phase::Deleting { again, .. } => Some(again.at),
                Phase::Releasing { why, .. } if !self.state.lease.is_held(now) => {
                    // It may be somebody else's, and hiding it from them is not ours to do.
                    self.state.phase =
                        Phase::Settled(Settlement::Kept(why.clone(), Return::Unknown));
                    continue;
                }
                Phase::Releasing { delay, again, .. } if again.at <= now => {
                    let delay = self.state.lease.release_delay(*delay, now);
                    return self.release(now, delay);
                }
                Phase::Releasing { again, .. } => return Next::Wait { until: Some(again.at) },
                Phase::Expiring(why) => {
                    self.state.phase =
                        Phase::Settled(Settlement::Kept(why.clone(), self.runs_out(now)));
                    continue;
                }
                Phase::Settled(settlement) => {
                    let settlement = settlement.clone();
                    self.state.phase = Phase::Over;
                    return Next::Settled(settlement);
                }
                Phase::Over => return Next::Wait { until: None },
            };
            let Some(extend_at) = self.extend_at() else { return Next::Wait { until: None } };
            if now < extend_at {
                return Next::Wait {
                    until: Some(again_at.map_or(extend_at, |at| at.min(extend_at))),
                };
            }
            if !self.state.lease.is_held(now) {
                self.lose("it ended before it was extended".to_owned());
            } else if let Some(by) = self.state.lease.extension(now) {
                self.state.call = Some(Call::Extend { by, asked_at: now });
                return Next::Extend { by, limit: self.change_limit(now) };
            } else {
                self.state.lease = self.state.lease.without_extensions();
                self.state.extend_again = None;
            }
        }
    }

    /// When to extend next, or to see that the lease has ended; `None` if it is lost.
    fn extend_at(&self) -> Option<Duration> {
        let State { lease, extend_again, .. } = &self.state;
        let extend_at = extend_again.map(|again| again.at).or(lease.extend_at());
        lease.expires_at().map(|expires_at| extend_at.unwrap_or(expires_at).min(expires_at))
    }

    fn delete(&mut self, now: Duration) -> Next {
        let limit = self.try_limit();
        let State { lease, phase: Phase::Deleting { completed, .. }, call, .. } = &mut self.state
        else {
            unreachable!("a delete is sent after a verdict only")
        };
        let permit = completed.permit(lease, now).expect("the lease was looked at");
        *call = Some(Call::Delete);
        Next::Delete { permit, limit }
    }

    fn release(&mut self, now: Duration, delay: Duration) -> Next {
        self.state.call = Some(Call::Release(delay));
        Next::Release { delay, limit: self.change_limit(now) }
    }

    fn judged(&mut self, now: Duration, verdict: Verdict) {
        self.observe(Observation::LeaseLeft(self.state.lease.remaining(now)));
        let again = Again { at: now, failures: 0 };
        self.state.phase = match verdict {
            Verdict::Delete(completed) => {
                Phase::Deleting { completed, give_up_at: now + self.visibility, again }
            }
            Verdict::Keep(why, Release::After(delay)) => {
                Phase::Releasing { why, delay, give_up_at: now + RELEASE_LIMIT, again }
            }
            Verdict::Keep(why, Release::Expire) => Phase::Expiring(why),
        };
    }

    fn extend_answered(&mut self, now: Duration, by: Duration, asked_at: Duration, answer: Answer) {
        match answer {
            Answer::Accepted if self.state.lease.is_held(now) => {
                self.state.lease = self.state.lease.extended(asked_at, by);
                self.state.extend_again = None;
                self.observe(Observation::Extend(ExtendResult::Extended));
                self.report_lease();
            }
            // Somebody else may have received the message in between; this answer does not tell.
            Answer::Accepted => {
                self.lose("the extension was answered after the lease had ended".to_owned());
            }
            Answer::NotInFlight(why) => self.lose(why),
            Answer::AtCeiling(_) => {
                self.observe(Observation::Extend(ExtendResult::AtCeiling));
                self.state.lease = self.state.lease.without_extensions();
                self.state.extend_again = None;
                self.exhausted();
            }
            Answer::Failed(_) | Answer::Unclear(_) => {
                self.observe(Observation::Extend(ExtendResult::Failed));
                let again = self.state.extend_again.unwrap_or_default();
                self.state.extend_again =
                    Some(again.after(now, self.visibility / 6, &self.delivery));
            }
        }
    }

    fn delete_answered(&mut self, now: Duration, answer: Answer) {
        let Phase::Deleting { completed, give_up_at, again } = &mut self.state.phase else {
            return;
        };
        match answer {
            Answer::Accepted => {
                self.state.phase = Phase::Settled(Settlement::Deleted(completed.why()));
                self.observe(Observation::Delete(DeleteResult::Deleted));
            }
            Answer::NotInFlight(_) => {
                self.state.lease = self.state.lease.lost();
                self.refused();
            }
            Answer::AtCeiling(why) | Answer::Failed(why) | Answer::Unclear(why) => {
                let gives_up = *give_up_at <= now;
                *again = again.after(now, self.visibility / 3, &self.delivery);
                self.observe(Observation::Delete(DeleteResult::Failed));
                if gives_up {
                    self.keeps_holding(NotDeleted::GaveUp(why));
                }
            }
        }
    }

    /// What cannot be released runs out by itself; and so does what may have been released, because
    /// a second release would act on the pod that received the message after the first.
    fn release_answered(&mut self, now: Duration, delay: Duration, answer: &Answer) {
        let runs_out = self.runs_out(now);
        let Phase::Releasing { why, give_up_at, again, .. } = &mut self.state.phase else { return };
        let comes_back = match answer {
            Answer::Accepted => Return::After(delay),
            Answer::NotInFlight(_) => Return::Unknown,
            Answer::AtCeiling(_) => runs_out,
            Answer::Failed(_) if *give_up_at <= now => runs_out,
            Answer::Failed(_) => {
                *again = again.after(now, FIRST_PAUSE * 8, &self.delivery);
                return;
            }
            // After the lease, or after the delay if the queue heard of it.
            Answer::Unclear(_) => Return::Within(self.state.lease.remaining(now).max(delay)),
        };
        self.state.phase = Phase::Settled(Settlement::Kept(why.clone(), comes_back));
    }

    fn runs_out(&self, now: Duration) -> Return {
        let lease = &self.state.lease;
        if lease.is_held(now) { Return::Within(lease.remaining(now)) } else { Return::Unknown }
    }

    fn lose(&mut self, why: String) {
        self.observe(Observation::Extend(ExtendResult::LeaseLost));
        self.state.lease = self.state.lease.lost();
        self.report(Report::LeaseLost(why));
    }

    /// Is SQS's ceiling near, of a lease that is not lost?
    fn is_exhausted(&self, now: Duration) -> bool {
        self.state.halt_by.is_some_and(|at| at <= now) && self.state.lease.expires_at().is_some()
    }

    /// To be said once.
    fn exhausted(&mut self) {
        if self.state.halt_by.take().is_some() {
            self.report(Report::LeaseExhausted);
        }
    }

    fn refused(&mut self) {
        self.observe(Observation::Delete(DeleteResult::Refused));
        self.keeps_holding(NotDeleted::LeaseLost);
    }

    /// The delete is not sent.
    fn not_deleted(&mut self, why: NotDeleted) {
        self.observe(Observation::Delete(match why {
            NotDeleted::Withdrawn => DeleteResult::Withdrawn,
            NotDeleted::LeaseLost | NotDeleted::GaveUp(_) => DeleteResult::LeaseLost,
        }));
        self.keeps_holding(why);
    }

    /// What becomes of the message then is for the core to say.
    fn keeps_holding(&mut self, why: NotDeleted) {
        self.state.phase = Phase::Holding;
        self.report(Report::NotDeleted(why));
    }

    fn report_lease(&mut self) {
        if let Some(until) = self.state.lease.expires_at() {
            self.report(Report::Held(until));
        }
    }

    fn report(&mut self, report: Report) {
        self.reports.push_back(report);
    }

    fn observe(&mut self, observation: Observation) {
        self.report(Report::Observation(observation));
    }

    /// Not waited for past the lease's end: by then the answer tells nothing.
    fn change_limit(&self, now: Duration) -> Duration {
        self.try_limit().min(self.state.lease.remaining(now))
    }

    /// No single try may use up the time of the next extension.
    fn try_limit(&self) -> Duration {
        LONGEST_TRY.min(self.visibility / 3)
    }
}

/// The longest a single call may take.
const LONGEST_TRY: Duration = Duration::from_secs(5);

/// How long a release is retried; what is left then runs out by itself.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);
