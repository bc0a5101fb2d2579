//! The state machine that owns a lease.
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
//! It extends the lease in time, also between tries of a delete. It makes every call with the
//! receipt handle, one after another, so no extension is in flight when a release or delete is
//! sent, and a late extension cannot undo a release.
//!
//! [`Keeper::handle`] takes an input and makes no call; [`Keeper::next`] returns the next action.
//! The caller passes in all pending inputs before it asks for the next action.
//!
//! Architecture invariant: only [`Keeper::next`] sends a delete, and only with a [`Completed`],
//! before any stop, and while the lease is held.

use std::collections::VecDeque;
use std::time::Duration;

use super::backoff::{FIRST_PAUSE, NextTry};
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
    /// The minimum length of a new lease.
    visibility: Duration,
    state: State,
    /// Reports that are not yet sent, in order.
    reports: VecDeque<Report>,
}

/// The mutable part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub lease: Lease,
    pub phase: Phase,
    /// No more deletes are sent.
    pub withdrawn: bool,
    /// When to report that SQS's ceiling is near; `None` once reported.
    pub halt_by: Option<Duration>,
    /// The next try after failed extensions.
    pub extend_retry: Option<NextTry>,
    /// The call in flight.
    pub call: Option<Call>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// No verdict yet, or the core has not yet handled the failure of the last one.
    Holding,
    Deleting {
        completed: Completed,
        give_up_at: Duration,
        next_try: NextTry,
    },
    Releasing {
        why: KeepReason,
        delay: Duration,
        give_up_at: Duration,
        next_try: NextTry,
    },
    /// Visible when its visibility timeout runs out.
    Expiring(KeepReason),
    /// To be reported next.
    Settled(Settlement),
    /// The settlement was reported.
    Done,
}

/// A call in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// ChangeMessageVisibility to `by`, sent at `asked_at`.
    Extend {
        by: Duration,
        asked_at: Duration,
    },
    /// ChangeMessageVisibility to this delay.
    Release(Duration),
    Delete,
}

/// An input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Verdict(Verdict),
    /// The pod is shutting down: send no more deletes.
    Withdraw,
    /// The answer to the last call from [`Keeper::next`].
    Answered(Answer),
}

/// The queue's answer to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    /// This delivery has ended: expired, deleted or received again.
    NotInFlight(String),
    /// The call would exceed SQS's maximum of 12 hours.
    AtCeiling(String),
    /// Nothing was changed; the same call may succeed later.
    Failed(String),
    /// The delete was not sent, because a stop or the end of the lease came first.
    NotSent(String),
    /// No answer, or one that does not show whether something was changed.
    Unclear(String),
}

/// The next action.
#[derive(Debug)]
pub enum Next {
    /// Hide the message for `by`. For every call, no answer within `limit` means
    /// [`Answer::Unclear`].
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
    /// The message is settled; no further action follows.
    Settled(Settlement),
    /// Wait for an input, at most until then.
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

impl From<Report> for Next {
    fn from(report: Report) -> Self {
        match report {
            Report::Held(until) => Self::Report(Event::Held(until)),
            Report::LeaseLost(why) => Self::Report(Event::LeaseLost(why)),
            Report::LeaseExhausted => Self::Report(Event::LeaseExhausted),
            Report::NotDeleted(why) => Self::Report(Event::NotDeleted(why)),
            Report::Observation(observation) => Self::Observe(observation),
        }
    }
}

impl Keeper {
    /// Takes the lease of a message; a new lease is `visibility` long. The work must be halted
    /// `stop` before SQS's ceiling.
    pub fn new(delivery: DeliveryId, lease: Lease, visibility: Duration, stop: Duration) -> Self {
        let state = State {
            lease,
            phase: Phase::Holding,
            withdrawn: false,
            halt_by: Some(lease.halt_by(stop)),
            extend_retry: None,
            call: None,
        };
        let mut keeper = Self { delivery, visibility, state, reports: VecDeque::new() };
        keeper.report_lease();
        keeper
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Handles an input at `now`.
    pub fn handle(&mut self, now: Duration, input: Input) {
        match input {
            Input::Withdraw => self.state.withdrawn = true,
            // A verdict exists already, or this one is about another message.
            Input::Verdict(_) if self.state.phase != Phase::Holding => {}
            Input::Verdict(Verdict::Delete(completed)) if !completed.is_for(&self.delivery) => {}
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

    /// The next action at `now`. While a call is in flight, it is to wait.
    pub fn next(&mut self, now: Duration) -> Next {
        loop {
            if let Some(report) = self.reports.pop_front() {
                return report.into();
            }
            if self.state.call.is_some() {
                return Next::Wait { until: None };
            }
            let due_at = match &self.state.phase {
                Phase::Holding if self.is_exhausted(now) => {
                    self.report_exhausted();
                    continue;
                }
                Phase::Holding => self.state.halt_by,
                Phase::Deleting { .. } if self.state.withdrawn => {
                    self.not_deleted(DeleteResult::Withdrawn, NotDeleted::Withdrawn);
                    continue;
                }
                Phase::Deleting { .. } if !self.state.lease.is_held(now) => {
                    self.state.lease = self.state.lease.lost();
                    self.not_deleted(DeleteResult::LeaseLost, NotDeleted::LeaseLost);
                    continue;
                }
                Phase::Deleting { next_try, .. } if next_try.at <= now => return self.delete(now),
                Phase::Deleting { next_try, .. } => Some(next_try.at),
                Phase::Releasing { why, .. } if !self.state.lease.is_held(now) => {
                    // Another pod may have received it, and a release would act on that pod's
                    // lease.
                    self.state.phase =
                        Phase::Settled(Settlement::Kept(why.clone(), Return::Unknown));
                    continue;
                }
                Phase::Releasing { delay, next_try, .. } if next_try.at <= now => {
                    let delay = self.state.lease.release_delay(*delay, now);
                    return self.release(now, delay);
                }
                Phase::Releasing { next_try, .. } => {
                    let ends_at = self.state.lease.expires_at().unwrap_or(now);
                    return Next::Wait { until: Some(next_try.at.min(ends_at)) };
                }
                Phase::Expiring(why) => {
                    self.state.phase =
                        Phase::Settled(Settlement::Kept(why.clone(), self.expiry(now)));
                    continue;
                }
                Phase::Settled(settlement) => {
                    let settlement = settlement.clone();
                    self.state.phase = Phase::Done;
                    return Next::Settled(settlement);
                }
                Phase::Done => return Next::Wait { until: None },
            };
            let Some(extend_at) = self.extend_at() else { return Next::Wait { until: None } };
            if now < extend_at {
                let until = due_at.map_or(extend_at, |at| at.min(extend_at));
                return Next::Wait { until: Some(until) };
            }
            if !self.state.lease.is_held(now) {
                self.lose("it expired before it was extended".to_owned());
            } else if let Some(by) = self.state.lease.extension(now) {
                self.state.call = Some(Call::Extend { by, asked_at: now });
                return Next::Extend { by, limit: self.visibility_call_limit(now) };
            } else {
                self.state.lease = self.state.lease.without_extensions();
                self.state.extend_retry = None;
            }
        }
    }

    /// When to extend the lease next, or when it expires; `None` if it is lost.
    fn extend_at(&self) -> Option<Duration> {
        let State { lease, extend_retry, .. } = &self.state;
        let extend_at = extend_retry.map(|next_try| next_try.at).or(lease.extend_at());
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
        Next::Release { delay, limit: self.visibility_call_limit(now) }
    }

    fn judged(&mut self, now: Duration, verdict: Verdict) {
        self.observe(Observation::LeaseRemaining(self.state.lease.remaining(now)));
        let next_try = NextTry { at: now, failures: 0 };
        self.state.phase = match verdict {
            Verdict::Delete(completed) => {
                Phase::Deleting { completed, give_up_at: now + self.visibility, next_try }
            }
            Verdict::Keep(why, Release::After(delay)) => {
                Phase::Releasing { why, delay, give_up_at: now + RELEASE_LIMIT, next_try }
            }
            Verdict::Keep(why, Release::Expire) => Phase::Expiring(why),
        };
    }

    fn extend_answered(&mut self, now: Duration, by: Duration, asked_at: Duration, answer: Answer) {
        match answer {
            Answer::Accepted if self.state.lease.is_held(now) => {
                self.state.lease = self.state.lease.extended(asked_at, by);
                self.state.extend_retry = None;
                self.observe(Observation::Extend(ExtendResult::Extended));
                self.report_lease();
            }
            // Another pod may have received the message in between; the answer does not show that.
            Answer::Accepted => {
                self.lose("the extension was answered after the lease had ended".to_owned());
            }
            Answer::NotInFlight(why) => self.lose(why),
            Answer::AtCeiling(_) => {
                self.observe(Observation::Extend(ExtendResult::AtCeiling));
                self.state.lease = self.state.lease.without_extensions();
                self.state.extend_retry = None;
                self.report_exhausted();
            }
            Answer::Failed(_) | Answer::NotSent(_) | Answer::Unclear(_) => {
                self.observe(Observation::Extend(ExtendResult::Failed));
                let next_try = self.state.extend_retry.unwrap_or_default();
                self.state.extend_retry =
                    Some(next_try.after_failure(now, self.visibility / 6, &self.delivery));
            }
        }
    }

    fn delete_answered(&mut self, now: Duration, answer: Answer) {
        let Phase::Deleting { completed, give_up_at, next_try } = &mut self.state.phase else {
            return;
        };
        let was_sent = !matches!(answer, Answer::NotSent(_));
        match answer {
            Answer::Accepted => {
                self.state.phase = Phase::Settled(Settlement::Deleted(completed.why()));
                self.observe(Observation::Delete(DeleteResult::Deleted));
            }
            Answer::NotInFlight(_) => {
                self.state.lease = self.state.lease.lost();
                self.delete_refused();
            }
            Answer::AtCeiling(why)
            | Answer::Failed(why)
            | Answer::NotSent(why)
            | Answer::Unclear(why) => {
                let gives_up = *give_up_at <= now;
                *next_try = next_try.after_failure(now, self.visibility / 3, &self.delivery);
                // Before the next try, `next` handles and counts what prevented the request.
                if was_sent || gives_up {
                    self.observe(Observation::Delete(DeleteResult::Failed));
                }
                if gives_up {
                    self.hold_again(NotDeleted::GaveUp(why));
                }
            }
        }
    }

    /// A message that cannot be released becomes visible when its timeout ends. So does one that
    /// may have been released, because a second release could act on the pod that received it after
    /// the first.
    fn release_answered(&mut self, now: Duration, delay: Duration, answer: &Answer) {
        let expiry = self.expiry(now);
        let Phase::Releasing { why, give_up_at, next_try, .. } = &mut self.state.phase else {
            return;
        };
        let visible_again = match answer {
            Answer::Accepted => Return::After(delay),
            Answer::NotInFlight(_) => Return::Unknown,
            Answer::AtCeiling(_) => expiry,
            Answer::Failed(_) | Answer::NotSent(_) if *give_up_at <= now => expiry,
            Answer::Failed(_) | Answer::NotSent(_) => {
                *next_try = next_try.after_failure(now, FIRST_PAUSE * 8, &self.delivery);
                return;
            }
            // After the lease, or after the delay if the queue got the request.
            Answer::Unclear(_) => Return::Within(self.state.lease.remaining(now).max(delay)),
        };
        self.state.phase = Phase::Settled(Settlement::Kept(why.clone(), visible_again));
    }

    fn expiry(&self, now: Duration) -> Return {
        let lease = &self.state.lease;
        if lease.is_held(now) { Return::Within(lease.remaining(now)) } else { Return::Unknown }
    }

    fn lose(&mut self, why: String) {
        self.observe(Observation::Extend(ExtendResult::LeaseLost));
        self.state.lease = self.state.lease.lost();
        self.report(Report::LeaseLost(why));
    }

    /// Is SQS's ceiling near, for a lease that is not lost?
    fn is_exhausted(&self, now: Duration) -> bool {
        self.state.halt_by.is_some_and(|at| at <= now) && self.state.lease.expires_at().is_some()
    }

    /// Reports it once.
    fn report_exhausted(&mut self) {
        if self.state.halt_by.take().is_some() {
            self.report(Report::LeaseExhausted);
        }
    }

    fn delete_refused(&mut self) {
        self.not_deleted(DeleteResult::Refused, NotDeleted::LeaseLost);
    }

    fn not_deleted(&mut self, result: DeleteResult, why: NotDeleted) {
        self.observe(Observation::Delete(result));
        self.hold_again(why);
    }

    /// The core then decides about the message.
    fn hold_again(&mut self, why: NotDeleted) {
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

    /// At most until the lease ends: a later answer proves nothing.
    fn visibility_call_limit(&self, now: Duration) -> Duration {
        self.try_limit().min(self.state.lease.remaining(now))
    }

    /// No single try may use up the time of the next extension.
    fn try_limit(&self) -> Duration {
        MAX_TRY.min(self.visibility / 3)
    }
}

/// The longest a single call may take.
const MAX_TRY: Duration = Duration::from_secs(5);

/// How long a release is retried; after that, the visibility timeout runs out.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);
