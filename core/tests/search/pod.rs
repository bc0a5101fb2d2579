//! One pod: a real job and a real keeper of its lease, and their pending inputs.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use leasehold_core::backoff::NextTry;
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
    /// Only in searches with records.
    pub work: Option<Work>,
    pub limit: Option<Limit>,
    /// The command has succeeded under the held receipt.
    pub succeeded: bool,
    pub stopped: bool,
}

/// A receive request in flight.
#[derive(Clone, Copy, Hash)]
pub struct Poll {
    pub asked_at: Duration,
    /// The receipt in its answer, if it brings the message.
    pub brings: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    None,
    Running,
    Halting,
}

/// The VisibilityHeartbeat's task: its state, and its pending inputs.
#[derive(Clone)]
pub struct Holding {
    pub receipt: u32,
    pub keeper: Keeper,
    /// The queue's answer to the call in flight, not yet delivered. `None` until the queue gets the
    /// call.
    pub answer: Option<Answer>,
    /// Inputs that wait for the end of the call in flight, in order.
    pub inputs: Vec<Input>,
    /// Has the queue accepted the delete?
    pub delete_was_accepted: bool,
}

impl Pod {
    /// The receipt under which this pod considers the message its own and does not release it.
    pub fn held_receipt(&self, now: Duration) -> Option<u32> {
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
        // A poll that is older than its lease gives none, whatever its exact age.
        self.poll
            .map(|poll| (poll.brings, (now - poll.asked_at).min(setting.visibility())))
            .hash(&mut hasher);
        if let Some(holding) = &self.holding {
            holding.hash(setting, now - self.started_at, &mut hasher);
        }
        hasher.finish()
    }
}

/// The remaining part of the twelve hours, capped: far above a lease, the exact value makes no
/// difference.
pub fn room(setting: &Setting, now: Duration, received_at: Duration) -> Duration {
    CEILING.saturating_sub(now - received_at).min(100 * setting.visibility())
}

impl Holding {
    /// Is an action due at `now`, on the run's clock?
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

    /// Points in time matter only relative to now. A failed try is repeated at some tick, however
    /// often it has failed.
    fn hash(&self, setting: &Setting, now: Duration, hasher: &mut impl Hasher) {
        let tick = setting.tick.as_nanos();
        let ticks = |at: Duration| at.saturating_sub(now).as_nanos().div_ceil(tick);
        let Self { receipt, keeper, answer, inputs, delete_was_accepted } = self;
        let State { lease, phase, withdrawn, halt_by, extend_retry, call } = keeper.state();
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
        extend_retry.map(|NextTry { at, .. }| ticks(at)).hash(hasher);
        match call {
            // An extension that is older than its length gives no lease, whatever its exact age.
            Some(Call::Extend { by, asked_at }) => (by, (now - *asked_at).min(*by)).hash(hasher),
            Some(Call::Release(delay)) => delay.hash(hasher),
            Some(Call::Delete) | None => call.is_some().hash(hasher),
        }
        match phase {
            Phase::Holding | Phase::Done => matches!(phase, Phase::Done).hash(hasher),
            Phase::Deleting { completed, give_up_at, next_try } => {
                (print(&completed.why()), ticks(*give_up_at), ticks(next_try.at)).hash(hasher);
            }
            Phase::Releasing { why, delay, give_up_at, next_try } => {
                (why.label(), delay, ticks(*give_up_at), ticks(next_try.at)).hash(hasher);
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
                Input::Answered(_) => unreachable!("a call is in flight"),
            }
        }
    }
}
