//! 5 Claimed: what the owner of an idempotency record does next.
//!
//! ```text
//!            free                  written, or read: it is ours             the work succeeded
//! Looking ────────► Claiming ─────────────────────────────────► Held ──────────────────────────► Recording ──► recorded
//!  ▲   │               │                                         │ │
//!  │   └► done         │                                         │ └──────────────────────────► Releasing ──► released
//!  └───────────────────┘                                         ▼  the work failed, or was halted
//!      somebody was faster                                      lost
//! ```
//!
//! A record is written on a condition only: there is none, or it has the eTag that was seen last.
//! Whoever claims it anew changes its eTag, and then the refresh of the one before fails: that
//! **is** a lost lease. So a write is never believed to have failed: if its answer is lost, the
//! record is read, and our own nonce in it is recognised.
//!
//! [`Claim::handle`] takes what happened and calls nobody; [`Claim::next`] says what to do now.

use std::collections::VecDeque;
use std::time::Duration;

use super::backoff::Again;
use super::delivery::DeliveryId;
use super::outcome::Failure;

/// The owner of the record of one piece of work. All points in time are on the run's clock.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The pauses between tries depend on it.
    delivery: DeliveryId,
    /// How long a record lasts that is not refreshed.
    time_to_live: Duration,
    state: State,
    /// What is not reported yet, in order.
    reports: VecDeque<Report>,
}

/// All that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub phase: Phase,
    /// Of the record as it was last seen or written; `None` if there was none.
    pub etag: Option<String>,
    /// Until when the record is ours, counted from before the request that wrote it.
    pub expires_at: Duration,
    pub refresh_at: Duration,
    /// When to ask next, after failures or while the record is another's.
    pub again: Again,
    /// How often the store refused to write over a record that had not changed.
    pub unchanged: u32,
    /// Our own record had another eTag than we knew.
    pub surprise: Surprise,
    /// The request that is out.
    pub call: Option<Call>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    Claiming,
    /// `waits`: another pod is at this work.
    Looking {
        waits: bool,
    },
    Held,
    Recording,
    Releasing,
    Over,
}

/// A write over our own record was refused: somebody else claimed it, or an earlier write of ours
/// came through unheard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Surprise {
    None,
    /// The record has to be read.
    Unread,
    /// It was ours; the next refusal means that it is not any more.
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

/// What a record says of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordState {
    InProgress,
    /// Somebody worked on it, and does not any more: it may be claimed at once.
    Released,
    /// It succeeded, and is not done again.
    Done,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub state: RecordState,
    /// Does it have our nonce?
    pub is_ours: bool,
    /// Who wrote it.
    pub owner: String,
    pub etag: String,
    /// How long ago it was written, by the store's clock: whole seconds, rounded down.
    pub age: Duration,
    /// How long it lasts.
    pub time_to_live: Duration,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Answered(Answer),
    /// The work succeeded. A request that is out is not waited for.
    Succeeded,
    /// The work failed, or was halted. A request that is out is not waited for.
    Ended,
}

/// What the store says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Read(Option<Seen>),
    /// With this eTag.
    Written(String),
    /// The record is not as the condition of the write says.
    ConditionFailed,
    /// Not allowed, or not possible, until somebody changes that.
    Refused(String),
    /// What is there is not a record that we can read.
    Unreadable(String),
    /// The store does not heed conditions, so that its records prove nothing.
    Unsupported(String),
    /// No answer, or one that says nothing. A write may have come through all the same.
    Failed(String),
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Without an answer within `limit` it is [`Answer::Failed`]; so for a write.
    Read {
        limit: Duration,
    },
    /// If the record has this eTag, or if there is none.
    Write {
        state: RecordState,
        over: Option<String>,
        limit: Duration,
    },
    Wait {
        until: Duration,
    },
    Report(Report),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Another pod is at the work: its end is waited for.
    Waiting {
        owner: String,
    },
    /// It failed, and the work waits for it.
    Retrying(String),
    /// It failed, and the work goes on meanwhile.
    RefreshFailed(String),
    Reached(Milestone),
}

/// What the work has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Milestone {
    /// The record is ours.
    Claimed,
    /// An earlier delivery finished the work. Nothing more is done.
    AlreadyDone,
    /// The record is not ours any more, and so the work is not. Nothing more is done.
    Lost(String),
    /// It is recorded or released, or could not be claimed, recorded or released. Nothing more is
    /// done.
    Over(Result<(), Failure>),
}

impl Claim {
    pub fn new(delivery: DeliveryId, time_to_live: Duration, now: Duration) -> Self {
        let state = State {
            phase: Phase::Claiming,
            etag: None,
            expires_at: Duration::ZERO,
            refresh_at: Duration::ZERO,
            again: Again { at: now, failures: 0 },
            unchanged: 0,
            surprise: Surprise::None,
            call: None,
        };
        Self { delivery, time_to_live, state, reports: VecDeque::new() }
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Something happened at `now`.
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
                        self.state.phase = Phase::Looking { waits: false };
                        self.state.again = Again { at: now, failures: 0 };
                    }
                    (Phase::Looking { waits }, Answer::Read(seen)) => {
                        self.looked(now, asked_at, seen, waits);
                    }
                    (
                        Phase::Claiming | Phase::Looking { .. },
                        Answer::Refused(why) | Answer::Unreadable(why) | Answer::Unsupported(why),
                    ) => {
                        self.over(Milestone::Over(Err(Failure::Record(why))));
                    }
                    (Phase::Claiming | Phase::Looking { .. }, Answer::Failed(why)) => {
                        self.retry(now, why);
                    }
                    (
                        Phase::Claiming | Phase::Looking { .. },
                        Answer::ConditionFailed | Answer::Read(_),
                    )
                    | (Phase::Over, _) => {}
                    (Phase::Held | Phase::Recording | Phase::Releasing, answer) => {
                        self.answered(now, answer);
                    }
                }
            }
        }
    }

    /// What to do at `now`. While a request is out there is nothing else to do.
    pub fn next(&mut self, now: Duration) -> Next {
        if let Some(report) = self.reports.pop_front() {
            return Next::Report(report);
        }
        if self.state.call.is_some() {
            return Next::Wait { until: Duration::MAX };
        }
        let expires_at = self.state.expires_at;
        let begins_at = match self.state.phase {
            Phase::Held if expires_at <= now => {
                return self.ends(Milestone::Lost(
                    "the idempotency record could not be refreshed in time".to_owned(),
                ));
            }
            Phase::Recording if expires_at <= now => {
                let why =
                    "the idempotency record expired before the work could be recorded".to_owned();
                return self.ends(Milestone::Over(Err(Failure::Superseded(why))));
            }
            Phase::Held if self.state.surprise == Surprise::None => {
                self.state.refresh_at.min(expires_at)
            }
            Phase::Held | Phase::Recording => self.state.again.at.min(expires_at),
            Phase::Claiming | Phase::Looking { .. } | Phase::Releasing => self.state.again.at,
            Phase::Over => Duration::MAX,
        };
        if now < begins_at {
            return Next::Wait { until: begins_at };
        }
        let (request, limit) = match self.state.phase {
            Phase::Looking { .. } => (Request::Read, TRY_LIMIT),
            Phase::Claiming => (Request::Write(RecordState::InProgress), TRY_LIMIT),
            // Once it has expired it may be claimed by another: then the work is not to go on.
            Phase::Held => {
                (self.rewrites(RecordState::InProgress), TRY_LIMIT.min(expires_at - now))
            }
            Phase::Recording => (self.rewrites(RecordState::Done), TRY_LIMIT),
            Phase::Releasing | Phase::Over => (self.rewrites(RecordState::Released), TRY_LIMIT),
        };
        self.state.call = Some(Call { request, asked_at: now });
        match request {
            Request::Read => Next::Read { limit },
            Request::Write(state) => Next::Write { state, over: self.state.etag.clone(), limit },
        }
    }

    fn rewrites(&self, state: RecordState) -> Request {
        match self.state.surprise {
            Surprise::Unread => Request::Read,
            Surprise::None | Surprise::Read => Request::Write(state),
        }
    }

    fn begin(&mut self, phase: Phase, now: Duration, unanswered: Option<Call>) {
        if self.state.phase != Phase::Held {
            let why = "the idempotency record no longer belongs to this pod".to_owned();
            return self.over(Milestone::Over(Err(Failure::Superseded(why))));
        }
        if unanswered.is_some() {
            self.may_be_written();
        }
        self.state.phase = phase;
        self.state.again = Again { at: now, failures: 0 };
    }

    fn written(&mut self, now: Duration, asked_at: Duration, etag: String) {
        self.is_ours(now, asked_at, etag);
        match self.state.phase {
            Phase::Claiming => {
                self.state.phase = Phase::Held;
                self.report(Report::Reached(Milestone::Claimed));
            }
            Phase::Recording | Phase::Releasing => self.over(Milestone::Over(Ok(()))),
            Phase::Looking { .. } | Phase::Held | Phase::Over => {}
        }
    }

    fn is_ours(&mut self, now: Duration, asked_at: Duration, etag: String) {
        self.state.etag = Some(etag);
        self.state.expires_at = asked_at + self.time_to_live;
        self.state.refresh_at = asked_at + self.time_to_live / 3;
        self.state.again = Again { at: now, failures: 0 };
        self.state.surprise = Surprise::None;
    }

    /// The record was read by who wants to claim it.
    fn looked(&mut self, now: Duration, asked_at: Duration, seen: Option<Seen>, waits: bool) {
        let Some(seen) = seen else { return self.free(now, None) };
        // Ages are rounded down.
        let time_to_live = seen.time_to_live + SECOND;
        match seen.state {
            RecordState::Done => self.over(Milestone::AlreadyDone),
            RecordState::InProgress if seen.is_ours => {
                // A write of ours had come through unheard, so long before it was asked for, or a
                // little longer.
                self.is_ours(
                    now,
                    asked_at.saturating_sub(seen.age).saturating_sub(SECOND),
                    seen.etag,
                );
                self.state.phase = Phase::Held;
                self.report(Report::Reached(Milestone::Claimed));
            }
            RecordState::InProgress if seen.age <= time_to_live => {
                let remaining = time_to_live.saturating_sub(seen.age) + SECOND;
                self.state.again = Again { at: now + remaining.min(LONGEST_WAIT), failures: 0 };
                self.state.phase = Phase::Looking { waits: true };
                if !waits {
                    self.report(Report::Waiting { owner: seen.owner });
                }
            }
            RecordState::Released | RecordState::InProgress => self.free(now, Some(seen.etag)),
        }
    }

    /// Nobody is at the work.
    fn free(&mut self, now: Duration, etag: Option<String>) {
        self.state.phase = Phase::Claiming;
        if etag != self.state.etag {
            self.state.etag = etag;
            self.state.again = Again { at: now, failures: 0 };
            return;
        }
        let refused = Again { at: now, failures: self.state.unchanged }.after(
            now,
            LONGEST_PAUSE,
            &self.delivery,
        );
        let why = "the store refuses to write the idempotency record, although it has not changed"
            .to_owned();
        if self.state.unchanged == MOST_FAILURES {
            return self.over(Milestone::Over(Err(Failure::Record(why))));
        }
        self.state.unchanged = refused.failures;
        self.state.again = Again { at: refused.at, failures: 0 };
        self.report(Report::Retrying(why));
    }

    /// What came of a request about our own record, if it was not written.
    fn answered(&mut self, now: Duration, answer: Answer) {
        match answer {
            Answer::Read(Some(seen)) if seen.is_ours => {
                self.state.etag = Some(seen.etag);
                self.state.surprise = Surprise::Read;
            }
            Answer::ConditionFailed if self.state.surprise == Surprise::None => {
                self.state.surprise = Surprise::Unread;
                self.state.again.at = now;
            }
            // Who wrote what we cannot read was not us.
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

    /// A write of ours may have come through unheard: then its eTag is a surprise again.
    fn may_be_written(&mut self) {
        if self.state.surprise == Surprise::Read {
            self.state.surprise = Surprise::None;
        }
    }

    fn failed(&mut self, now: Duration, why: String) {
        match self.state.phase {
            // A permission may be given again while the work runs.
            Phase::Held => {
                self.state.again = self.state.again.after(now, LONGEST_PAUSE, &self.delivery);
                self.state.refresh_at = self.state.again.at;
                self.report(Report::RefreshFailed(why));
            }
            Phase::Releasing => self.over(Milestone::Over(Err(Failure::Record(why)))),
            Phase::Claiming | Phase::Looking { .. } | Phase::Recording | Phase::Over => {
                self.retry(now, why);
            }
        }
    }

    fn not_ours(&mut self, failure: Failure, why: String) {
        self.over(match self.state.phase {
            Phase::Held => Milestone::Lost(why),
            Phase::Claiming
            | Phase::Looking { .. }
            | Phase::Recording
            | Phase::Releasing
            | Phase::Over => Milestone::Over(Err(failure)),
        });
    }

    /// Asks again after a while, but not for ever.
    fn retry(&mut self, now: Duration, why: String) {
        if self.state.again.failures == MOST_FAILURES {
            return self.over(Milestone::Over(Err(Failure::Record(why))));
        }
        self.state.again = self.state.again.after(now, LONGEST_PAUSE, &self.delivery);
        self.report(Report::Retrying(why));
    }

    fn report(&mut self, report: Report) {
        self.reports.push_back(report);
    }

    fn over(&mut self, milestone: Milestone) {
        self.state.phase = Phase::Over;
        self.report(Report::Reached(milestone));
    }

    fn ends(&mut self, milestone: Milestone) -> Next {
        self.state.phase = Phase::Over;
        Next::Report(Report::Reached(milestone))
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// The longest a single request may take.
const TRY_LIMIT: Duration = Duration::from_secs(5);

/// The longest pause after a failed try.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// So often in a row a request may fail that the work waits for.
const MOST_FAILURES: u32 = 8;

/// How long until a record that is another pod's is looked at again.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
