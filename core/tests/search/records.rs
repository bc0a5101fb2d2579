//! The record of the message's work, in the store and in a pod. The claim is the real one; its
//! inputs come as in `work/`.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use leasehold_core::backoff::NextTry;
use leasehold_core::claim::{
    Answer, Call, Claim, Input, Milestone, Next, RecordState, Report, Request, State, StoredRecord,
};
use leasehold_core::delivery::{DeliveryId, MessageId};
use leasehold_core::lifecycle::Event;
use leasehold_core::outcome::{CommandReport, Exit, Failure, Outcome};

use super::Setting;
use super::acting::Acting;
use super::invariants::Broken;
use super::pod::Command;
use super::world::World;

/// As long as a lease, so that its refresh is due at each tick.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(30);

/// The record in the store.
#[derive(Clone, Copy)]
pub struct Record {
    /// `None` until it is written.
    pub state: Option<RecordState>,
    /// Its owner: the number of a claim.
    pub by: u32,
    /// Its eTag, which changes with each write; 0 before the first.
    pub version: u32,
    pub written: Duration,
}

impl Record {
    pub const ABSENT: Self = Self { state: None, by: 0, version: 0, written: Duration::ZERO };

    pub fn is_in_progress(&self) -> bool {
        self.state == Some(RecordState::InProgress)
    }

    fn seen_by(&self, claim: u32, now: Duration) -> Option<StoredRecord> {
        self.state.map(|state| StoredRecord {
            state,
            is_ours: self.by == claim,
            owner: self.by.to_string(),
            etag: self.version.to_string(),
            age: now - self.written,
            time_to_live: TIME_TO_LIVE,
        })
    }
}

/// A conditional write of the record: if its version is still the one that was seen.
#[derive(Clone, Copy, PartialEq)]
pub struct Write {
    pub state: RecordState,
    pub by: u32,
    pub seen: u32,
}

/// The work of one pod on its message, from the claim to the record of its end.
#[derive(Clone)]
pub struct Work {
    pub number: u32,
    pub claim: Claim,
    pub stage: Stage,
    /// The store's answer to the request in flight, not yet delivered. `None` until the store gets
    /// the request.
    pub answer: Option<Answer>,
}

/// The current step of the work.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    Claim,
    Command,
    Publish,
    Record,
    /// It did not succeed: the result to report when the record is released.
    Release(Ended),
    /// The record is no longer ours, and the command is ending.
    Loss,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ended {
    Failed,
    Halted,
}

impl World {
    /// The store gets a write request.
    pub fn record(&mut self, write: Write) -> Result<Answer, Broken> {
        let old = self.record;
        if write.seen != old.version {
            return Ok(Answer::ConditionFailed);
        }
        if old.state == Some(RecordState::Done)
            && (write.by != old.by || write.state != RecordState::Done)
        {
            return Err(format!("claim {} overwrites a record of finished work", write.by));
        }
        if write.state == RecordState::Done && !self.finished.contains(&write.by) {
            return Err(format!(
                "claim {} is recorded as done, but its results are not published",
                write.by
            ));
        }
        let version = old.version + 1;
        self.record = Record { state: Some(write.state), by: write.by, version, written: self.now };
        Ok(Answer::Written(version.to_string()))
    }

    fn is_owner(&self, work: &Work) -> bool {
        self.record.by == work.number && self.record.is_in_progress()
    }
}

impl Work {
    pub fn call(&self) -> Option<Call> {
        self.claim.state().call
    }

    /// Is an action due at `now`, on the run's clock?
    pub fn acts(&self, now: Duration) -> bool {
        self.call().is_none() && !matches!(self.claim.clone().next(now), Next::Wait { .. })
    }

    /// Does the command run while its pod considers the record its own?
    pub fn owns(&self, now: Duration) -> bool {
        self.stage == Stage::Command && now < self.claim.state().expires_at
    }

    fn write(&self) -> Option<Write> {
        let State { call, etag, .. } = self.claim.state();
        let seen = etag.as_ref().map_or(0, |etag| etag.parse().expect("a version"));
        match call.as_ref()?.request {
            Request::Write(state) => Some(Write { state, by: self.number, seen }),
            Request::Read => None,
        }
    }

    /// Versions and claims matter only relative to the record, and points in time only relative to
    /// now.
    pub fn hash(
        &self,
        setting: &Setting,
        record: &Record,
        now: Duration,
        hasher: &mut impl Hasher,
    ) {
        let tick = setting.tick.as_nanos();
        let ticks = |at: Duration| at.saturating_sub(now).as_nanos().div_ceil(tick);
        let is_last = |etag: &String| *etag == record.version.to_string();
        let Self { number, claim, stage, answer } = self;
        let State {
            phase,
            etag,
            expires_at,
            refresh_at,
            next_try: NextTry { at, failures },
            unchanged,
            mismatch,
            call,
        } = claim.state();
        (
            stage,
            *number == record.by,
            phase,
            etag.as_ref().map(is_last),
            mismatch,
            failures,
            unchanged,
        )
            .hash(hasher);
        (ticks(*expires_at), ticks(*refresh_at), ticks(*at)).hash(hasher);
        call.map(|call| (call.request, (now - call.asked_at).min(TIME_TO_LIVE))).hash(hasher);
        match answer {
            None | Some(Answer::Read(None)) => answer.is_some().hash(hasher),
            Some(Answer::Read(Some(seen))) => {
                (seen.state, seen.is_ours, is_last(&seen.etag), seen.age).hash(hasher);
            }
            Some(Answer::Written(etag)) => ("written", is_last(etag)).hash(hasher),
            Some(Answer::ConditionFailed) => "refused".hash(hasher),
            Some(
                Answer::Refused(_)
                | Answer::Unreadable(_)
                | Answer::Unsupported(_)
                | Answer::Failed(_),
            ) => {
                unreachable!("never given")
            }
        }
    }
}

impl Acting<'_> {
    fn work(&mut self) -> &mut Work {
        self.pod.work.as_mut().expect("the pod has work")
    }

    pub fn claim(&mut self) -> Result<(), Broken> {
        self.world.claims += 1;
        let claim = Claim::new(
            DeliveryId { message_id: MessageId::new("m"), receive_count: 1 },
            TIME_TO_LIVE,
            self.now(),
        );
        self.pod.work =
            Some(Work { number: self.world.claims, claim, stage: Stage::Claim, answer: None });
        self.deliver_claim_reports()
    }

    /// The claim takes its next action.
    pub fn claim_acts(&mut self) -> Result<(), Broken> {
        let now = self.now();
        match self.work().claim.next(now) {
            Next::Read { .. } | Next::Write { .. } => Ok(()),
            Next::Report(report) => self.reported(report),
            Next::Wait { .. } => Err("an action was due, and the claim waits".to_owned()),
        }
    }

    pub fn request_arrives(&mut self) -> Result<(), Broken> {
        let work = self.pod.work.as_ref().expect("the pod has work");
        let answer = match work.write() {
            Some(write) => self.world.record(write)?,
            None => Answer::Read(self.world.record.seen_by(work.number, self.world.now)),
        };
        self.work().answer = Some(answer);
        Ok(())
    }

    pub fn request_is_answered(&mut self) -> Result<(), Broken> {
        let answer = self.work().answer.take().expect("the store has answered");
        self.pass_to_claim(Input::Answered(answer))
    }

    /// No answer in time.
    pub fn request_fails(&mut self) -> Result<(), Broken> {
        self.abandon_write();
        self.pass_to_claim(Input::Answered(Answer::Failed(String::new())))
    }

    /// The request in flight is no longer awaited.
    pub fn abandon_write(&mut self) {
        let Some(work) = &mut self.pod.work else { return };
        if work.answer.take().is_none() {
            self.world.stray_writes.extend(work.write());
        }
    }

    fn pass_to_claim(&mut self, input: Input) -> Result<(), Broken> {
        let now = self.now();
        self.work().claim.handle(now, input);
        self.deliver_claim_reports()
    }

    /// Delivers the claim's reports immediately. After a lost record, no command starts.
    fn deliver_claim_reports(&mut self) -> Result<(), Broken> {
        let now = self.now();
        while let Some(work) = &mut self.pod.work {
            let mut after = work.claim.clone();
            let Next::Report(report) = after.next(now) else { break };
            work.claim = after;
            self.reported(report)?;
        }
        let begins = self.pod.work.as_ref().is_some_and(|work| work.stage == Stage::Command);
        if begins && self.pod.command == Command::None {
            self.pod.command = Command::Running;
            let work = self.pod.work.as_ref().expect("it begins");
            if work.owns(now) && !self.world.is_owner(work) {
                return Err(format!(
                    "a command is started, and the record is {:?}",
                    self.world.record.state
                ));
            }
        }
        Ok(())
    }

    fn reported(&mut self, report: Report) -> Result<(), Broken> {
        let stage = self.work().stage;
        match report {
            Report::Waiting { .. } | Report::Retrying(_) | Report::RefreshFailed(_) => {}
            Report::Reached(Milestone::Claimed) => self.work().stage = Stage::Command,
            Report::Reached(Milestone::AlreadyDone) => {
                self.pod.succeeded = true;
                if let Some(holding) = &self.pod.holding {
                    self.world.successes |= 1 << holding.receipt;
                }
                self.end_work(Outcome::AlreadyDone);
            }
            Report::Reached(Milestone::Lost(why)) => {
                self.events.push(Event::LeaseLost(why));
                self.work().stage = Stage::Loss;
                match (stage, self.pod.command) {
                    (Stage::Command, Command::Running) => self.pod.command = Command::Halting,
                    (Stage::Command, Command::Halting) => {}
                    _ => self.end_work(Outcome::Failed(Failure::Superseded(String::new()))),
                }
            }
            Report::Reached(Milestone::Finished(result)) => match (stage, result) {
                (Stage::Release(ended), _) => self.released(ended),
                (Stage::Record, Ok(())) => self.end_work(Outcome::Finished),
                (_, Err(failure)) => self.end_work(Outcome::Failed(failure)),
                (_, Ok(())) => return Err("the record is finished before the work".to_owned()),
            },
        }
        Ok(())
    }

    /// The loss of the record is handled before any other event.
    fn loses_record(&mut self) -> Result<bool, Broken> {
        let now = self.now();
        let work = self.work();
        if work.stage != Stage::Loss && work.claim.state().expires_at <= now {
            self.abandon_write();
            self.work().claim.handle(now, Input::Answered(Answer::Failed(String::new())));
            self.deliver_claim_reports()?;
        }
        Ok(self.pod.work.as_ref().is_none_or(|work| work.stage == Stage::Loss))
    }

    /// The command has exited; it `succeeded` only if it was not asked to end.
    pub fn command_has_exited(&mut self, succeeded: bool, was_halted: bool) -> Result<(), Broken> {
        if self.loses_record()? {
            if self.pod.work.is_some() {
                self.end_work(Outcome::Failed(Failure::Superseded(String::new())));
            }
            return Ok(());
        }
        if !succeeded {
            return self.release_record(if was_halted { Ended::Halted } else { Ended::Failed });
        }
        let work = self.pod.work.as_ref().expect("it is not lost");
        if !self.world.is_owner(work) {
            return Err(format!(
                "results are published, and the record is {:?}",
                self.world.record.state
            ));
        }
        self.work().stage = Stage::Publish;
        Ok(())
    }

    pub fn publishes(&mut self) -> Result<(), Broken> {
        let number = self.work().number;
        self.world.finished.push(number);
        if self.loses_record()? {
            return Ok(());
        }
        self.abandon_write();
        self.work().stage = Stage::Record;
        self.pass_to_claim(Input::Succeeded)
    }

    /// Ends the work.
    pub fn work_is_halted(&mut self) {
        // Successful work may still be published and recorded.
        if self.pod.work.as_ref().is_some_and(|work| work.stage == Stage::Claim) {
            self.abandon_write();
            self.end_work(Outcome::Failed(Failure::Halted));
        }
    }

    /// Ends an unfinished upload of results.
    pub fn abandon_publish(&mut self) -> Result<(), Broken> {
        let publishes = self.pod.work.as_ref().is_some_and(|work| work.stage == Stage::Publish);
        if publishes { self.release_record(Ended::Halted) } else { Ok(()) }
    }

    fn release_record(&mut self, ended: Ended) -> Result<(), Broken> {
        self.abandon_write();
        self.work().stage = Stage::Release(ended);
        self.pass_to_claim(Input::Ended)
    }

    fn released(&mut self, ended: Ended) {
        self.end_work(Outcome::Failed(match ended {
            Ended::Failed => Failure::Exit(Exit::Code(1), CommandReport::default()),
            Ended::Halted => Failure::Halted,
        }));
    }

    fn end_work(&mut self, outcome: Outcome) {
        self.pod.work = None;
        self.processed(outcome);
    }
}
