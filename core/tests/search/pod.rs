//! One pod: a real job and a real keeper of its lease, and what is on its way to them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use leasehold_core::backoff::Again;
use leasehold_core::keeper::{Call, Input, Keeper, Next, Phase, State};
use leasehold_core::lease::CEILING;
use leasehold_core::lifecycle::Limit;
use leasehold_core::verdict::{Settlement, Verdict};

use super::Setting;
use super::message::{Answer, Request};
use super::records::{Record, Work};
use super::steps::{Core, print};

/// One pod: a job and its actors. Points in time within the job and its lease are on the run's
/// clock.
#[derive(Clone)]
pub struct Pod {
    pub started_at: Duration,
    pub core: Rc<Core>,
    pub poll: Option<Poll>,
    pub finishing: bool,
    pub holding: Option<Holding>,
    pub command: Command,
    /// With records only.
    pub work: Option<Work>,
    pub limit: Option<Limit>,
    /// The command has succeeded under the receipt that is held.
    pub succeeded: bool,
    pub stopped: bool,
}

/// A request for a message is out.
#[derive(Clone, Copy, Hash)]
pub struct Poll {
    pub asked_at: Duration,
    /// The receipt on its way back, if it brings the message.
    pub brings: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    None,
    Running,
    Halting,
}

/// The VisibilityHeartbeat's task: what it has, and what is on its way to it.
#[derive(Clone)]
pub struct Holding {
    pub receipt: u32,
    pub keeper: Keeper,
    /// To the call that is out: given by the queue and on its way back. None as long as the call
    /// has not come through.
    pub answer: Option<Answer>,
    /// What happened while a call is out, in order.
    pub inputs: Vec<Input>,
    /// Has the queue said that the message is deleted?
    pub delete_was_accepted: bool,
}

impl Pod {
    /// The receipt under which this pod believes that the message is its own, and does not release
    /// it.
    pub fn believes(&self, now: Duration) -> Option<u32> {
        let Holding { keeper, receipt, .. } = self.holding.as_ref()?;
        let state = keeper.state();
        let holds = matches!(state.phase, Phase::Holding | Phase::Deleting { .. });
        (holds && state.lease.is_held(now - self.started_at)).then_some(*receipt)
    }

    pub fn key(&self, setting: &Setting, record: &Record, now: Duration) -> u64 {
        let mut hasher = DefaultHasher::new();
        let limit = self.limit.map(|limit| limit as u8);
        (self.core.print, self.finishing, self.command, limit, self.succeeded, self.stopped)
            .hash(&mut hasher);
        if let Some(work) = &self.work {
            work.hash(setting, record, now - self.started_at, &mut hasher);
        }
        // A lease that was asked for longer ago than it lasts is none, however long ago it was.
        self.poll
            .map(|poll| (poll.brings, (now - poll.asked_at).min(setting.visibility())))
            .hash(&mut hasher);
        if let Some(holding) = &self.holding {
            holding.hash(setting, now - self.started_at, &mut hasher);
        }
        hasher.finish()
    }
}

/// What is left of the twelve hours; as long as it is far more than a lease, how much makes no
/// difference.
pub fn room(setting: &Setting, now: Duration, received_at: Duration) -> Duration {
    CEILING.saturating_sub(now - received_at).min(100 * setting.visibility())
}

impl Holding {
    /// Is anything to be done at `now`, on the run's clock?
    pub fn acts(&self, now: Duration) -> bool {
        !matches!(self.keeper.clone().next(now), Next::Wait { .. })
    }

    pub fn request(&self) -> Option<Request> {
        self.keeper.state().call.map(|call| match call {
            Call::Extend { by, .. } => Request::Change(by),
            Call::Release(delay) => Request::Change(delay),
            Call::Delete => Request::Delete,
        })
    }

    /// Points in time matter only as seen from now. A try that failed is made again at some tick,
    /// however often it has failed.
    fn hash(&self, setting: &Setting, now: Duration, hasher: &mut impl Hasher) {
        let tick = setting.tick.as_nanos();
        let ticks = |at: Duration| at.saturating_sub(now).as_nanos().div_ceil(tick);
        let Self { receipt, keeper, answer, inputs, delete_was_accepted } = self;
        let State { lease, phase, withdrawn, halt_by, extend_again, call } = keeper.state();
        (
            delete_was_accepted,
            receipt,
            answer,
            withdrawn,
            lease.expires_at().map(ticks),
            lease.extend_at().map(ticks),
        )
            .hash(hasher);
        let room = room(setting, now, Duration::ZERO);
        (room, halt_by.map(|at| at.saturating_sub(now).min(100 * setting.visibility())))
            .hash(hasher);
        extend_again.map(|Again { at, .. }| ticks(at)).hash(hasher);
        match call {
            // One that was asked for longer ago than it lasts gives no lease, however long ago it
            // was.
            Some(Call::Extend { by, asked_at }) => (by, (now - *asked_at).min(*by)).hash(hasher),
            Some(Call::Release(delay)) => delay.hash(hasher),
            Some(Call::Delete) | None => call.is_some().hash(hasher),
        }
        match phase {
            Phase::Holding | Phase::Over => matches!(phase, Phase::Over).hash(hasher),
            Phase::Deleting { completed, give_up_at, again } => {
                (print(&completed.why()), ticks(*give_up_at), ticks(again.at)).hash(hasher);
            }
            Phase::Releasing { why, delay, give_up_at, again } => {
                (why.label(), delay, ticks(*give_up_at), ticks(again.at)).hash(hasher);
            }
            Phase::Expiring(why) => ("expiring", why.label()).hash(hasher),
            Phase::Settled(Settlement::Kept(why, _)) => ("settled", why.label()).hash(hasher),
            Phase::Settled(Settlement::Deleted(why)) => print(why).hash(hasher),
        }
        for input in inputs {
            match input {
                Input::Withdraw => 0.hash(hasher),
                Input::Verdict(Verdict::Keep(why, release)) => {
                    (why.label(), print(release)).hash(hasher);
                }
                Input::Verdict(Verdict::Delete(completed)) => print(&completed.why()).hash(hasher),
                Input::Answered(_) => unreachable!("the call is out"),
            }
        }
    }
}
