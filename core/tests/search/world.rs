//! The message and two pods, and the effect of a move on them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use leasehold_core::claim::RecordState;
use leasehold_core::lifecycle::Job;

use super::Setting;
use super::acting::Acting;
use super::invariants::Broken;
use super::message::{Answer, Message, QueueState, Request};
use super::moves::Move;
use super::pod::{Command, Pod, room};
use super::records::{Record, TIME_TO_LIVE, Write};
use super::steps::Core;

/// The complete state.
#[derive(Clone)]
pub struct World {
    pub now: Duration,
    pub message: Message,
    pub pods: [Option<Pod>; 2],
    /// Requests whose answers are no longer awaited; the queue may still get them.
    pub strays: Vec<(u32, Request)>,
    pub record: Record,
    /// The number of claims so far.
    pub claims: u32,
    /// The claims whose results are published.
    pub finished: Vec<u32>,
    /// As `strays`, to the store.
    pub stray_writes: Vec<Write>,
    /// Receipts under which a command succeeded, as bits.
    pub successes: u32,
    /// The number of faults that may still happen; [`World::NO_LIMIT`] does not decrease.
    pub faults: u32,
}

impl World {
    pub const NO_LIMIT: u32 = u32::MAX;

    pub fn new(faults: u32) -> Self {
        let message =
            Message { queue_state: QueueState::Visible, receives: 0, received_at: Duration::ZERO };
        Self {
            now: Duration::ZERO,
            message,
            pods: [None, None],
            strays: Vec::new(),
            record: Record::ABSENT,
            claims: 0,
            finished: Vec::new(),
            stray_writes: Vec::new(),
            successes: 0,
            faults,
        }
    }

    /// The world after a move, or the guarantee that it broke.
    pub fn after(&self, setting: &Setting, chosen: Move) -> Result<Self, Broken> {
        let mut world = self.apply(setting, chosen)?;
        if setting.records {
            let prompt = |world: &Self| {
                let of = |(i, pod): (usize, &Option<Pod>)| {
                    Some(Move::Of(i, pod.as_ref()?.prompt_move(world)?))
                };
                world.pods.iter().enumerate().find_map(of)
            };
            while let Some(prompt) = prompt(&world) {
                world = world.apply(setting, prompt)?;
            }
        }
        Ok(world)
    }

    fn apply(&self, setting: &Setting, chosen: Move) -> Result<Self, Broken> {
        let mut world = self.clone();
        match chosen {
            Move::Tick => world.now += setting.tick,
            Move::StrayArrives(i) => {
                let (receipt, request) = world.strays.remove(i);
                world.queue_gets(setting, receipt, request, false)?;
            }
            Move::StrayWriteArrives(i) => {
                let write = world.stray_writes.remove(i);
                let _ = world.record(write)?;
            }
            Move::Start(i) => {
                let pod = Pod {
                    started_at: world.now,
                    core: Core::of(Job::start(setting.policy.clone())),
                    poll: None,
                    finishing: false,
                    holding: None,
                    command: Command::None,
                    work: None,
                    limit: None,
                    succeeded: false,
                    stopped: false,
                };
                let mut acting =
                    Acting { setting, world: &mut world, pod, outcome: None, events: Vec::new() };
                acting.carry_out()?;
                let pod = acting.pod;
                world.pods[i] = Some(pod);
            }
            Move::Of(i, chosen) => {
                let pod = world.pods[i].take().expect("only a running pod has moves");
                if chosen.is_fault() && world.faults != Self::NO_LIMIT {
                    world.faults = world.faults.saturating_sub(1);
                }
                let mut acting =
                    Acting { setting, world: &mut world, pod, outcome: None, events: Vec::new() };
                let lives = acting.act(chosen)?;
                let pod = acting.pod;
                world.pods[i] = lives.then_some(pod);
            }
        }
        world.tidy();
        world.check(setting)?;
        Ok(world)
    }

    pub fn queue_gets(
        &mut self,
        setting: &Setting,
        receipt: u32,
        request: Request,
        hides_again: bool,
    ) -> Result<Answer, Broken> {
        let was_gone = self.message.is_gone();
        let answer = self.message.answer(setting.kind, self.now, receipt, request, hides_again);
        if self.message.queue_state == QueueState::Deleted
            && !was_gone
            && self.successes & (1 << receipt) == 0
        {
            return Err(format!("receipt {receipt} deleted the message without a success"));
        }
        if setting.records
            && self.message.queue_state == QueueState::Deleted
            && self.record.state != Some(RecordState::Done)
        {
            return Err(format!(
                "the message is deleted, and its record is {:?}",
                self.record.state
            ));
        }
        Ok(answer)
    }

    /// Normalises the state, so that worlds with the same future become equal.
    fn tidy(&mut self) {
        if matches!(self.message.queue_state, QueueState::Hidden { until } if until <= self.now) {
            self.message.queue_state = QueueState::Visible;
        }
        let (is_gone, receives) = (self.message.is_gone(), self.message.receives);
        self.strays.retain(|(receipt, _)| !is_gone && *receipt == receives);
        self.strays.sort_unstable_by_key(|(_, request)| match request {
            Request::Change(to) => Some(*to),
            Request::Delete => None,
        });
        self.strays.dedup();
        let version = self.record.version;
        self.stray_writes.retain(|write| !is_gone && write.seen == version);
    }

    /// Points in time matter only relative to now, and the order of the two pods does not matter.
    pub fn key(&self, setting: &Setting) -> u64 {
        let mut pods = self
            .pods
            .each_ref()
            .map(|pod| pod.as_ref().map(|pod| pod.key(setting, &self.record, self.now)));
        pods.sort_unstable();
        let mut hasher = DefaultHasher::new();
        let queue_state = match self.message.queue_state {
            QueueState::Hidden { until } => QueueState::Hidden { until: until - self.now },
            same @ (QueueState::Visible | QueueState::Deleted | QueueState::Dead) => same,
        };
        let room = room(setting, self.now, self.message.received_at);
        // Only the last receipt deletes.
        let has_succeeded = self.successes & (1 << self.message.receives) != 0;
        (queue_state, self.message.receives, room, has_succeeded, &self.strays, self.faults, pods)
            .hash(&mut hasher);
        let age = (self.now - self.record.written).min(2 * TIME_TO_LIVE);
        let mut strays: Vec<_> =
            self.stray_writes.iter().map(|write| self.stray_key(setting, write)).collect();
        strays.sort_unstable();
        (self.record.state, self.record.is_in_progress().then_some(age), strays).hash(&mut hasher);
        hasher.finish()
    }

    /// The owner of the write matters only if it is a running pod.
    fn stray_key(&self, setting: &Setting, write: &Write) -> u64 {
        let living = |pod: &Pod| pod.work.as_ref().is_some_and(|work| work.number == write.by);
        let pod = self.pods.iter().flatten().find(|pod| living(pod));
        let mut hasher = DefaultHasher::new();
        let pod = pod.map(|pod| pod.key(setting, &self.record, self.now));
        (write.state, write.by == self.record.by, self.finished.contains(&write.by), pod)
            .hash(&mut hasher);
        hasher.finish()
    }
}
