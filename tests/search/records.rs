//! The record of the message's work: as the store has it, and what a pod does with it, played as `work/mod.rs` and
//! `work/idempotency.rs` do it.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use leasehold::job::lifecycle::Event;
use leasehold::job::verdict::{Exit, Failure, Outcome, Said};

use super::S;
use super::hands::Acting;
use super::invariants::Broken;
use super::pod::Command;
use super::world::World;

/// As long as a lease, so that its refresh is due at each tick.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    Absent,
    InProgress,
    Released,
    Done,
}

/// As the store has it.
#[derive(Clone, Copy)]
pub struct Record {
    pub state: State,
    /// Whose it is: the number of a claim.
    pub by: u32,
    /// Its eTag; another one with each write.
    pub version: u32,
    pub written: Duration,
}

impl Record {
    pub const ABSENT: Self = Self { state: State::Absent, by: 0, version: 0, written: Duration::ZERO };

    /// Must whoever wants to claim it wait? Ages are whole seconds.
    pub fn is_taken(&self, now: Duration) -> bool {
        self.state == State::InProgress && now - self.written <= TIME_TO_LIVE + S
    }
}

/// A request to write the record, if it still is as it was seen.
#[derive(Clone, Copy, PartialEq)]
pub struct Write {
    pub state: State,
    pub by: u32,
    pub seen: u32,
    pub asked_at: Duration,
    /// Given by the store and on its way back: the new version, or a refusal. None as long as it has not come through.
    pub answer: Option<Result<u32, ()>>,
}

/// The work of one pod on its message, from the claim to the record of its end.
#[derive(Clone, Copy)]
pub struct Work {
    pub claim: u32,
    pub stage: Stage,
    /// The request that is out.
    pub write: Option<Write>,
    /// What the record was when it was last written or read.
    pub seen: u32,
    /// Until when the record is believed to be ours.
    pub expires_at: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    Claiming,
    Looking,
    /// The command runs.
    Working,
    Publishing,
    Recording,
    /// It did not succeed: what is told when the record is released.
    Releasing(Ended),
    /// The record is not ours any more, and the command is ending.
    Lost,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ended {
    Failed,
    Halted,
}

impl World {
    /// A request comes through.
    pub fn record(&mut self, write: Write) -> Result<Result<u32, ()>, Broken> {
        let old = self.record;
        if write.seen != old.version {
            return Ok(Err(()));
        }
        if old.state == State::Done && (write.by != old.by || write.state != State::Done) {
            return Err(format!("claim {} writes over a record that was done", write.by));
        }
        if write.state == State::Done && !self.finished.contains(&write.by) {
            return Err(format!("claim {} is recorded as done, and its results are not published", write.by));
        }
        let version = old.version + 1;
        self.record = Record { state: write.state, by: write.by, version, written: self.now };
        Ok(Ok(version))
    }

    fn is_owner(&self, work: &Work) -> bool {
        self.record.by == work.claim && self.record.state == State::InProgress
    }
}

impl Work {
    pub fn is_believed(&self, now: Duration) -> bool {
        now < self.expires_at
    }

    /// Versions and claims matter only as what they are to the record.
    pub fn hash(&self, record: &Record, now: Duration, hasher: &mut impl Hasher) {
        (self.stage, self.claim == record.by, self.seen == record.version).hash(hasher);
        self.expires_at.saturating_sub(now).hash(hasher);
        let answer = |answer: Result<u32, ()>| answer.map(|version| version == record.version);
        self.write
            .map(|write| {
                let age = (now - write.asked_at).min(TIME_TO_LIVE);
                (write.state, write.seen == record.version, age, write.answer.map(answer))
            })
            .hash(hasher);
    }
}

impl Acting<'_> {
    fn work(&mut self) -> &mut Work {
        self.pod.work.as_mut().expect("there is work")
    }

    pub fn claim(&mut self) {
        self.world.claims += 1;
        let (claim, now) = (self.world.claims, self.world.now);
        self.pod.work = Some(Work { claim, stage: Stage::Claiming, write: None, seen: 0, expires_at: now });
        self.write(State::InProgress);
    }

    fn write(&mut self, state: State) {
        let asked_at = self.world.now;
        let work = self.work();
        work.write = Some(Write { state, by: work.claim, seen: work.seen, asked_at, answer: None });
    }

    pub fn write_arrives(&mut self) -> Result<(), Broken> {
        let write = self.work().write.expect("one is out");
        let answer = self.world.record(write)?;
        self.work().write = Some(Write { answer: Some(answer), ..write });
        Ok(())
    }

    pub fn write_is_answered(&mut self) -> Result<(), Broken> {
        let record = self.world.record;
        let work = self.work();
        let write = work.write.take().expect("one is out");
        match (write.answer.expect("it is answered"), work.stage) {
            (Ok(version), _) => {
                (work.seen, work.expires_at) = (version, write.asked_at + TIME_TO_LIVE);
                match work.stage {
                    Stage::Claiming => self.starts()?,
                    Stage::Recording => self.over(Outcome::Finished),
                    Stage::Releasing(ended) => self.released(ended),
                    Stage::Working | Stage::Publishing | Stage::Lost => {}
                    Stage::Looking => unreachable!("nothing is written"),
                }
            }
            (Err(()), Stage::Claiming) => work.stage = Stage::Looking,
            // Written by us, and nobody told.
            (Err(()), _) if record.by == work.claim => {
                work.seen = record.version;
                self.write(write.state);
            }
            (Err(()), Stage::Working | Stage::Publishing) => self.loses_the_record(),
            (Err(()), Stage::Recording) => self.over(Outcome::Failed(Failure::Superseded(String::new()))),
            (Err(()), Stage::Releasing(ended)) => self.released(ended),
            (Err(()), Stage::Lost) => {}
            (Err(()), Stage::Looking) => unreachable!("nothing is written"),
        }
        Ok(())
    }

    /// No answer, in time or at all.
    pub fn write_fails(&mut self) {
        let now = self.world.now;
        self.let_write_stray();
        let work = *self.work();
        match work.stage {
            Stage::Claiming => self.write(State::InProgress),
            Stage::Recording if work.is_believed(now) => self.write(State::Done),
            Stage::Recording => self.over(Outcome::Failed(Failure::Superseded(String::new()))),
            Stage::Releasing(ended) => self.released(ended),
            Stage::Looking | Stage::Working | Stage::Publishing | Stage::Lost => {}
        }
    }

    pub fn let_write_stray(&mut self) {
        let write = self.pod.work.as_mut().and_then(|work| work.write.take());
        self.world.stray_writes.extend(write.filter(|write| write.answer.is_none()));
    }

    pub fn looks(&mut self) -> Result<(), Broken> {
        let (now, record) = (self.world.now, self.world.record);
        let work = self.work();
        work.seen = record.version;
        if record.state == State::Done {
            self.pod.succeeded = true;
            if let Some(keeper) = &self.pod.keeper {
                self.world.successes |= 1 << keeper.receipt;
            }
            self.over(Outcome::AlreadyDone);
        } else if record.by == work.claim && record.state == State::InProgress {
            work.expires_at = record.written + TIME_TO_LIVE;
            self.starts()?;
        } else if !record.is_taken(now) {
            work.stage = Stage::Claiming;
            self.write(State::InProgress);
        }
        Ok(())
    }

    pub fn refreshes(&mut self) {
        self.write(State::InProgress);
    }

    /// The record is ours; unless the answer that says so comes too late.
    fn starts(&mut self) -> Result<(), Broken> {
        let work = *self.work();
        if !work.is_believed(self.world.now) {
            self.told.push(Event::LeaseLost(String::new()));
            self.over(Outcome::Failed(Failure::Superseded(String::new())));
            return Ok(());
        }
        if !self.world.is_owner(&work) {
            return Err(format!("a command is started, and the record is {:?}", self.world.record.state));
        }
        self.work().stage = Stage::Working;
        self.pod.command = Command::Running;
        Ok(())
    }

    pub fn loses_the_record(&mut self) {
        self.let_write_stray();
        self.told.push(Event::LeaseLost(String::new()));
        let stage = std::mem::replace(&mut self.work().stage, Stage::Lost);
        match (stage, self.pod.command) {
            (Stage::Working, Command::Running) => self.pod.command = Command::Halting,
            (Stage::Working, Command::Halting) => {}
            _ => self.over(Outcome::Failed(Failure::Superseded(String::new()))),
        }
    }

    /// The command has exited, and it was not told to end if it `succeeded`.
    pub fn command_has_exited(&mut self, succeeded: bool, was_halted: bool) -> Result<(), Broken> {
        self.let_write_stray();
        let work = *self.work();
        if work.stage == Stage::Lost {
            self.over(Outcome::Failed(Failure::Superseded(String::new())));
        } else if !work.is_believed(self.world.now) {
            self.loses_the_record();
        } else if succeeded {
            if !self.world.is_owner(&work) {
                return Err(format!("results are published, and the record is {:?}", self.world.record.state));
            }
            self.work().stage = Stage::Publishing;
        } else {
            self.release_record(if was_halted { Ended::Halted } else { Ended::Failed });
        }
        Ok(())
    }

    pub fn publishes(&mut self) {
        self.let_write_stray();
        let claim = self.work().claim;
        self.world.finished.push(claim);
        let now = self.world.now;
        if self.work().is_believed(now) {
            self.work().stage = Stage::Recording;
            self.write(State::Done);
        } else {
            self.loses_the_record();
        }
    }

    /// The work is to be ended.
    pub fn work_is_halted(&mut self) {
        let Some(work) = self.pod.work else { return };
        match work.stage {
            Stage::Claiming | Stage::Looking => {
                self.let_write_stray();
                self.over(Outcome::Failed(Failure::Halted));
            }
            // What has succeeded may still be published and recorded.
            Stage::Working | Stage::Publishing | Stage::Recording | Stage::Releasing(_) | Stage::Lost => {}
        }
    }

    /// Nothing more may be published.
    pub fn publish_is_given_up(&mut self) {
        if self.pod.work.is_some_and(|work| work.stage == Stage::Publishing) {
            self.let_write_stray();
            self.release_record(Ended::Halted);
        }
    }

    fn release_record(&mut self, ended: Ended) {
        self.work().stage = Stage::Releasing(ended);
        self.write(State::Released);
    }

    fn released(&mut self, ended: Ended) {
        self.over(Outcome::Failed(match ended {
            Ended::Failed => Failure::Exit(Exit::Code(1), Said::default()),
            Ended::Halted => Failure::Halted,
        }));
    }

    fn over(&mut self, outcome: Outcome) {
        self.pod.work = None;
        self.processed(outcome);
    }
}
