//! The state machine that owns an idempotency record.
//!
//! ```text
//!            free                  written, or read: it is ours             the work succeeded
//! Reading ────────► Claiming ─────────────────────────────────► Held ──────────────────────────► Recording ──► recorded
//!  ▲   │               │                                         │ │
//!  │   └► done         │                                         │ └──────────────────────────► Releasing ──► released
//!  └───────────────────┘                                         ▼  the work failed, or was halted
//!      another pod was faster                                      lost
//! ```
//!
//! Every write has a condition: no record exists, or it has the eTag that was seen last. A pod that
//! claims the record changes its eTag, so the next refresh by its earlier owner fails: that **is**
//! a lost lease. A write without an answer may have succeeded: the record is then read, and our own
//! nonce in it is recognised.
//!
//! [`Claim::handle`] takes an input and makes no call; [`Claim::next`] returns the next action.

use std::collections::VecDeque;
use std::time::Duration;

use super::backoff::NextTry;
use super::delivery::DeliveryId;
use super::outcome::Failure;

/// The state machine that owns the record of one piece of work. All points in time are on the run's
/// clock.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Seeds the jitter between tries.
    delivery: DeliveryId,
    /// How long a record lasts without a refresh.
    time_to_live: Duration,
    state: State,
    /// Reports that are not yet sent, in order.
    reports: VecDeque<Report>,
}

/// The mutable part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub phase: Phase,
    /// The record's eTag when it was last seen or written; `None` if no record existed.
    pub etag: Option<String>,
    /// When our record expires, counted from before the request that wrote it.
    pub expires_at: Duration,
    pub refresh_at: Duration,
    /// The next try, after failures or while another pod owns the record.
    pub next_try: NextTry,
    /// How often the store refused to overwrite a record that had not changed.
    pub unchanged: u32,
    /// Whether our own record had an unexpected eTag.
    pub mismatch: Mismatch,
    /// The request in flight.
    pub call: Option<Call>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    Claiming,
    /// `waits`: another pod is doing this work.
    Reading {
        waits: bool,
    },
    Held,
    Recording,
    Releasing,
    Done,
}

/// A write over our own record was refused: another pod claimed it, or an earlier write of ours
/// succeeded although its answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mismatch {
    None,
    /// The record must be read.
    Unread,
    /// It was ours; after another refusal it no longer is.
    Read,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub request: Request,
    pub asked_at: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    Read,
    Write(RecordState),
}

/// The state of the work, as the record has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordState {
    InProgress,
    /// A pod worked on it and stopped: it may be claimed immediately.
    Released,
    /// It succeeded and is not repeated.
    Done,
}

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    pub state: RecordState,
    /// Does it contain our nonce?
    pub is_ours: bool,
    /// The pod that wrote it.
    pub owner: String,
    pub etag: String,
    /// How long ago it was written, by the store's clock: whole seconds, rounded down.
    pub age: Duration,
    /// How long it lasts.
    pub time_to_live: Duration,
}

/// An input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Answered(Answer),
    /// The work succeeded. A request in flight is not awaited.
    Succeeded,
    /// The work failed, or was halted. A request in flight is not awaited.
    Ended,
}

/// The store's answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Read(Option<StoredRecord>),
    /// The record now has this eTag.
    Written(String),
    /// The condition of the write was not met.
    ConditionFailed,
    /// Not permitted or not possible until the configuration changes.
    Refused(String),
    /// The object is not a record that this version can read.
    Unreadable(String),
    /// The store ignores conditions, so its records prove nothing.
    Unsupported(String),
    /// No answer, or an inconclusive one. A write may still have succeeded.
    Failed(String),
}

/// The next action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// For reads and writes, no answer within `limit` means [`Answer::Failed`].
    Read {
        limit: Duration,
    },
    /// The condition: the record has this eTag, or if `None`, no record exists.
    Write {
        state: RecordState,
        if_match: Option<String>,
        limit: Duration,
    },
    Wait {
        until: Duration,
    },
    Report(Report),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Another pod is doing the work: wait until it ends.
    Waiting {
        owner: String,
    },
    /// A request failed, and the work waits for the next try.
    Retrying(String),
    /// A refresh failed; the work continues meanwhile.
    RefreshFailed(String),
    Reached(Milestone),
}

/// A state that the work reacts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Milestone {
    /// The record is ours.
    Claimed,
    /// Final: an earlier delivery finished the work.
    AlreadyDone,
    /// Final: the record is no longer ours, and neither is the work.
    Lost(String),
    /// Final: recorded or released, or the attempt to claim, record or release failed.
    Finished(Result<(), Failure>),
}

impl Claim {
    pub fn new(delivery: DeliveryId, time_to_live: Duration, now: Duration) -> Self {
        let state = State {
            phase: Phase::Claiming,
            etag: None,
            expires_at: Duration::ZERO,
            refresh_at: Duration::ZERO,
            next_try: NextTry { at: now, failures: 0 },
            unchanged: 0,
            mismatch: Mismatch::None,
            call: None,
        };
        Self { delivery, time_to_live, state, reports: VecDeque::new() }
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Handles an input at `now`.
    pub fn handle(&mut self, now: Duration, input: Input) {
        let call = self.state.call.take();
        match input {
            Input::Succeeded => self.begin(Phase::Recording, now, call),
            Input::Ended => self.begin(Phase::Releasing, now, call),
            Input::Answered(answer) => {
                let Some(Call { asked_at, .. }) = call else { return };
                match (self.state.phase, answer) {
                    (_, Answer::Written(etag)) => self.written(now, asked_at, etag),
                    (Phase::Claiming, Answer::ConditionFailed) => {
                        self.state.phase = Phase::Reading { waits: false };
                        self.state.next_try = NextTry { at: now, failures: 0 };
                    }
                    (Phase::Reading { waits }, Answer::Read(found)) => {
                        self.record_read(now, asked_at, found, waits);
                    }
                    (
                        Phase::Claiming | Phase::Reading { .. },
                        Answer::Refused(why) | Answer::Unreadable(why) | Answer::Unsupported(why),
                    ) => {
                        self.finish(Milestone::Finished(Err(Failure::Record(why))));
                    }
                    (Phase::Claiming | Phase::Reading { .. }, Answer::Failed(why)) => {
                        self.retry(now, why);
                    }
                    (
                        Phase::Claiming | Phase::Reading { .. },
                        Answer::ConditionFailed | Answer::Read(_),
                    )
                    | (Phase::Done, _) => {}
                    (Phase::Held | Phase::Recording | Phase::Releasing, answer) => {
                        self.own_record_answered(now, answer);
                    }
                }
            }
        }
    }

    /// The next action at `now`. While a request is in flight, it is to wait.
    pub fn next(&mut self, now: Duration) -> Next {
        if let Some(report) = self.reports.pop_front() {
            return Next::Report(report);
        }
        if self.state.call.is_some() {
            return Next::Wait { until: Duration::MAX };
        }
        let expires_at = self.state.expires_at;
        let due_at = match self.state.phase {
            Phase::Held if expires_at <= now => {
                return self.finish_with(Milestone::Lost(
                    "the idempotency record could not be refreshed in time".to_owned(),
                ));
            }
            Phase::Recording if expires_at <= now => {
                let why =
                    "the idempotency record expired before the work could be recorded".to_owned();
                return self.finish_with(Milestone::Finished(Err(Failure::Superseded(why))));
            }
            Phase::Held if self.state.mismatch == Mismatch::None => {
                self.state.refresh_at.min(expires_at)
            }
            Phase::Held | Phase::Recording => self.state.next_try.at.min(expires_at),
            Phase::Claiming | Phase::Reading { .. } | Phase::Releasing => self.state.next_try.at,
            Phase::Done => Duration::MAX,
        };
        if now < due_at {
            return Next::Wait { until: due_at };
        }
        let (request, limit) = match self.state.phase {
            Phase::Reading { .. } => (Request::Read, TRY_LIMIT),
            Phase::Claiming => (Request::Write(RecordState::InProgress), TRY_LIMIT),
            // Another pod may claim an expired record, so the work must not outlast it.
            Phase::Held => {
                (self.rewrite_request(RecordState::InProgress), TRY_LIMIT.min(expires_at - now))
            }
            Phase::Recording => (self.rewrite_request(RecordState::Done), TRY_LIMIT),
            Phase::Releasing | Phase::Done => {
                (self.rewrite_request(RecordState::Released), TRY_LIMIT)
            }
        };
        self.state.call = Some(Call { request, asked_at: now });
        match request {
            Request::Read => Next::Read { limit },
            Request::Write(state) => {
                Next::Write { state, if_match: self.state.etag.clone(), limit }
            }
        }
    }

    fn rewrite_request(&self, state: RecordState) -> Request {
        match self.state.mismatch {
            Mismatch::Unread => Request::Read,
            Mismatch::None | Mismatch::Read => Request::Write(state),
        }
    }

    fn begin(&mut self, phase: Phase, now: Duration, unanswered: Option<Call>) {
        if self.state.phase != Phase::Held {
            let why = "the idempotency record no longer belongs to this pod".to_owned();
            return self.finish(Milestone::Finished(Err(Failure::Superseded(why))));
        }
        if unanswered.is_some() {
            self.may_be_written();
        }
        self.state.phase = phase;
        self.state.next_try = NextTry { at: now, failures: 0 };
    }

    fn written(&mut self, now: Duration, asked_at: Duration, etag: String) {
        self.is_ours(now, asked_at, etag);
        match self.state.phase {
            Phase::Claiming => {
                self.state.phase = Phase::Held;
                self.report(Report::Reached(Milestone::Claimed));
            }
            Phase::Recording | Phase::Releasing => self.finish(Milestone::Finished(Ok(()))),
            Phase::Reading { .. } | Phase::Held | Phase::Done => {}
        }
    }

    fn is_ours(&mut self, now: Duration, asked_at: Duration, etag: String) {
        self.state.etag = Some(etag);
        self.state.expires_at = asked_at + self.time_to_live;
        self.state.refresh_at = asked_at + self.time_to_live / 3;
        self.state.next_try = NextTry { at: now, failures: 0 };
        self.state.mismatch = Mismatch::None;
    }

    /// The record was read in order to claim it.
    fn record_read(
        &mut self,
        now: Duration,
        asked_at: Duration,
        found: Option<StoredRecord>,
        waits: bool,
    ) {
        let Some(found) = found else { return self.unclaimed(now, None) };
        // Ages are rounded down.
        let time_to_live = found.time_to_live + SECOND;
        match found.state {
            RecordState::Done => self.finish(Milestone::AlreadyDone),
            RecordState::InProgress if found.is_ours => {
                // A write of ours had succeeded although its answer was lost. It was written `age`
                // before the read, or up to a second earlier.
                self.is_ours(
                    now,
                    asked_at.saturating_sub(found.age).saturating_sub(SECOND),
                    found.etag,
                );
                self.state.phase = Phase::Held;
                self.report(Report::Reached(Milestone::Claimed));
            }
            RecordState::InProgress if found.age <= time_to_live => {
                let remaining = time_to_live.saturating_sub(found.age) + SECOND;
                self.state.next_try = NextTry { at: now + remaining.min(MAX_WAIT), failures: 0 };
                self.state.phase = Phase::Reading { waits: true };
                if !waits {
                    self.report(Report::Waiting { owner: found.owner });
                }
            }
            RecordState::Released | RecordState::InProgress => {
                self.unclaimed(now, Some(found.etag));
            }
        }
    }

    /// No pod is doing the work.
    fn unclaimed(&mut self, now: Duration, etag: Option<String>) {
        self.state.phase = Phase::Claiming;
        if etag != self.state.etag {
            self.state.etag = etag;
            self.state.next_try = NextTry { at: now, failures: 0 };
            return;
        }
        let refused = NextTry { at: now, failures: self.state.unchanged }.after_failure(
            now,
            MAX_PAUSE,
            &self.delivery,
        );
        let why = "the store refuses to write the idempotency record, although it has not changed"
            .to_owned();
        if self.state.unchanged == MAX_FAILURES {
            return self.finish(Milestone::Finished(Err(Failure::Record(why))));
        }
        self.state.unchanged = refused.failures;
        self.state.next_try = NextTry { at: refused.at, failures: 0 };
        self.report(Report::Retrying(why));
    }

    /// Handles answers about our own record other than a successful write.
    fn own_record_answered(&mut self, now: Duration, answer: Answer) {
        match answer {
            Answer::Read(Some(found)) if found.is_ours => {
                self.state.etag = Some(found.etag);
                self.state.mismatch = Mismatch::Read;
            }
            Answer::ConditionFailed if self.state.mismatch == Mismatch::None => {
                self.state.mismatch = Mismatch::Unread;
                self.state.next_try.at = now;
            }
            // A record that we cannot read was not written by us.
            Answer::Read(_) | Answer::Unreadable(_) | Answer::ConditionFailed => {
                let why = "another pod has claimed the idempotency record".to_owned();
                self.not_ours(Failure::Superseded(why.clone()), why);
            }
            Answer::Unsupported(why) => self.not_ours(Failure::Record(why.clone()), why),
            Answer::Refused(why) | Answer::Failed(why) => {
                self.may_be_written();
                self.failed(now, why);
            }
            Answer::Written(_) => {}
        }
    }

    /// A write of ours may have succeeded although its answer was lost, so another eTag may be ours
    /// again.
    fn may_be_written(&mut self) {
        if self.state.mismatch == Mismatch::Read {
            self.state.mismatch = Mismatch::None;
        }
    }

    fn failed(&mut self, now: Duration, why: String) {
        match self.state.phase {
            // A permission may be restored while the work runs.
            Phase::Held => {
                self.state.next_try =
                    self.state.next_try.after_failure(now, MAX_PAUSE, &self.delivery);
                self.state.refresh_at = self.state.next_try.at;
                self.report(Report::RefreshFailed(why));
            }
            Phase::Releasing => self.finish(Milestone::Finished(Err(Failure::Record(why)))),
            Phase::Claiming | Phase::Reading { .. } | Phase::Recording | Phase::Done => {
                self.retry(now, why);
            }
        }
    }

    fn not_ours(&mut self, failure: Failure, why: String) {
        self.finish(match self.state.phase {
            Phase::Held => Milestone::Lost(why),
            Phase::Claiming
            | Phase::Reading { .. }
            | Phase::Recording
            | Phase::Releasing
            | Phase::Done => Milestone::Finished(Err(failure)),
        });
    }

    /// Schedules the next try, up to a limit.
    fn retry(&mut self, now: Duration, why: String) {
        if self.state.next_try.failures == MAX_FAILURES {
            return self.finish(Milestone::Finished(Err(Failure::Record(why))));
        }
        self.state.next_try = self.state.next_try.after_failure(now, MAX_PAUSE, &self.delivery);
        self.report(Report::Retrying(why));
    }

    fn report(&mut self, report: Report) {
        self.reports.push_back(report);
    }

    fn finish(&mut self, milestone: Milestone) {
        self.state.phase = Phase::Done;
        self.report(Report::Reached(milestone));
    }

    fn finish_with(&mut self, milestone: Milestone) -> Next {
        self.state.phase = Phase::Done;
        Next::Report(Report::Reached(milestone))
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// The longest a single request may take.
const TRY_LIMIT: Duration = Duration::from_secs(5);

/// The longest pause after a failed try.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How often in a row a request may fail while the work waits for it.
const MAX_FAILURES: u32 = 8;

/// How long until another pod's record is read again.
const MAX_WAIT: Duration = Duration::from_secs(10);
