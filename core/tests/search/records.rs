//! The record of the message's work: as the store has it, and what a pod does with it. Its owner is
//! the real one; what it is told, and when, is as in `work/`.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use leasehold_core::backoff::Again;
use leasehold_core::claim::{
    Answer, Call, Claim, Input, Milestone, Next, RecordState, Report, Request, Seen, State,
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

/// As the store has it.
#[derive(Clone, Copy)]
pub struct Record {
    /// `None` as long as there is none.
    pub state: Option<RecordState>,
    /// Whose it is: the number of a claim.
    pub by: u32,
    /// Its eTag; another one with each write, and 0 without any.
    pub version: u32,
    pub written: Duration,
}

impl Record {
    pub const ABSENT: Self = Self { state: None, by: 0, version: 0, written: Duration::ZERO };

    pub fn is_in_progress(&self) -> bool {
        self.state == Some(RecordState::InProgress)
    }

    fn seen_by(&self, claim: u32, now: Duration) -> Option<Seen> {
        self.state.map(|state| Seen {
            state,
            is_ours: self.by == claim,
            owner: self.by.to_string(),
            etag: self.version.to_string(),
            age: now - self.written,
            time_to_live: TIME_TO_LIVE,
        })
    }
}

/// A request to write the record, if it still is as it was seen.
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
    /// To the request that is out: given by the store and on its way back. None as long as the
    /// request has not come through.
    pub answer: Option<Answer>,
}

/// What the work waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    Claim,
    Command,
    Publish,
    Record,
    /// It did not succeed: what is reported when the record is released.
    Release(Ended),
    /// The record is not ours any more, and the command is ending.
    Loss,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ended {
    Failed,
    Halted,
}

impl World {
    /// A request comes through.
    pub fn record(&mut self, write: Write) -> Result<Answer, Broken> {
        let old = self.record;
        if write.seen != old.version {
            return Ok(Answer::ConditionFailed);
        }
        if old.state == Some(RecordState::Done)
            && (write.by != old.by || write.state != RecordState::Done)
        {
            return Err(format!("claim {} writes over a record that was done", write.by));
        }
        if write.state == RecordState::Done && !self.finished.contains(&write.by) {
            return Err(format!(
                "claim {} is recorded as done, and its results are not published",
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

    /// Is anything to be done at `now`, on the run's clock?
    pub fn acts(&self, now: Duration) -> bool {
        self.call().is_none() && !matches!(self.claim.clone().next(now), Next::Wait { .. })
    }

    /// Does the command run while its pod believes that the record is its own?
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

    /// Versions and claims matter only as what they are to the record, and points in time only as
    /// seen from now.
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
            again: Again { at, failures },
            unchanged,
            surprise,
            call,
        } = claim.state();
        (
            stage,
            *number == record.by,
            phase,
            etag.as_ref().map(is_last),
            surprise,
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
        self.pod.work.as_mut().expect("there is work")
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
        self.milestones()
    }

    /// The owner of the record does what is to be done now.
    pub fn claims(&mut self) -> Result<(), Broken> {
        let now = self.now();
        match self.work().claim.next(now) {
            Next::Read { .. } | Next::Write { .. } => Ok(()),
            Next::Report(report) => self.reported(report),
            Next::Wait { .. } => {
                Err("there was something to be done, and it is not done".to_owned())
            }
        }
    }

    pub fn request_arrives(&mut self) -> Result<(), Broken> {
        let work = self.pod.work.as_ref().expect("there is work");
        let answer = match work.write() {
            Some(write) => self.world.record(write)?,
            None => Answer::Read(self.world.record.seen_by(work.number, self.world.now)),
        };
        self.work().answer = Some(answer);
        Ok(())
    }

    pub fn request_is_answered(&mut self) -> Result<(), Broken> {
        let answer = self.work().answer.take().expect("the store has answered");
        self.hand_in_to_claim(Input::Answered(answer))
    }

    /// No answer, in time or at all.
    pub fn request_fails(&mut self) -> Result<(), Broken> {
        self.let_write_stray();
        self.hand_in_to_claim(Input::Answered(Answer::Failed(String::new())))
    }

    /// Nobody waits any more for the request that is out.
    pub fn let_write_stray(&mut self) {
        let Some(work) = &mut self.pod.work else { return };
        if work.answer.take().is_none() {
            self.world.stray_writes.extend(work.write());
        }
    }

    fn hand_in_to_claim(&mut self, input: Input) -> Result<(), Broken> {
        let now = self.now();
        self.work().claim.handle(now, input);
        self.milestones()
    }

    /// What its owner has to report, it reports at once; and a record that is lost is no reason to
    /// begin.
    fn milestones(&mut self) -> Result<(), Broken> {
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
                self.over(Outcome::AlreadyDone);
            }
            Report::Reached(Milestone::Lost(why)) => {
                self.told.push(Event::LeaseLost(why));
                self.work().stage = Stage::Loss;
                match (stage, self.pod.command) {
                    (Stage::Command, Command::Running) => self.pod.command = Command::Halting,
                    (Stage::Command, Command::Halting) => {}
                    _ => self.over(Outcome::Failed(Failure::Superseded(String::new()))),
                }
            }
            Report::Reached(Milestone::Over(result)) => match (stage, result) {
                (Stage::Release(ended), _) => self.released(ended),
                (Stage::Record, Ok(())) => self.over(Outcome::Finished),
                (_, Err(failure)) => self.over(Outcome::Failed(failure)),
                (_, Ok(())) => return Err("it is over before the work is".to_owned()),
            },
        }
        Ok(())
    }

    /// Whoever has lost the record hears of that before anything else.
    fn has_lost_the_record(&mut self) -> Result<bool, Broken> {
        let now = self.now();
        let work = self.work();
        if work.stage != Stage::Loss && work.claim.state().expires_at <= now {
            self.let_write_stray();
            self.work().claim.handle(now, Input::Answered(Answer::Failed(String::new())));
            self.milestones()?;
        }
        Ok(self.pod.work.as_ref().is_none_or(|work| work.stage == Stage::Loss))
    }

    /// The command has exited, and it was not told to end if it `succeeded`.
    pub fn command_has_exited(&mut self, succeeded: bool, was_halted: bool) -> Result<(), Broken> {
        if self.has_lost_the_record()? {
            if self.pod.work.is_some() {
                self.over(Outcome::Failed(Failure::Superseded(String::new())));
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
        if self.has_lost_the_record()? {
            return Ok(());
        }
        self.let_write_stray();
        self.work().stage = Stage::Record;
        self.hand_in_to_claim(Input::Succeeded)
    }

    /// The work is to be ended.
    pub fn work_is_halted(&mut self) {
        // What has succeeded may still be published and recorded.
        if self.pod.work.as_ref().is_some_and(|work| work.stage == Stage::Claim) {
            self.let_write_stray();
            self.over(Outcome::Failed(Failure::Halted));
        }
    }

    /// Nothing more may be published.
    pub fn publish_is_given_up(&mut self) -> Result<(), Broken> {
        let publishes = self.pod.work.as_ref().is_some_and(|work| work.stage == Stage::Publish);
        if publishes { self.release_record(Ended::Halted) } else { Ok(()) }
    }

    fn release_record(&mut self, ended: Ended) -> Result<(), Broken> {
        self.let_write_stray();
        self.work().stage = Stage::Release(ended);
        self.hand_in_to_claim(Input::Ended)
    }

    fn released(&mut self, ended: Ended) {
        self.over(Outcome::Failed(match ended {
            Ended::Failed => Failure::Exit(Exit::Code(1), CommandReport::default()),
            Ended::Halted => Failure::Halted,
        }));
    }

    fn over(&mut self, outcome: Outcome) {
        self.pod.work = None;
        self.processed(outcome);
    }
}
