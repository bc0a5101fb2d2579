//! The guarantees for each world, and for its possible futures.

use std::collections::HashSet;

use leasehold_core::verdict::OnStop;

use super::Setting;
use super::message::QueueState;
use super::moves::{Move, PodMove};
use super::pod::{Command, Pod, Poll};
use super::records::{Stage, Work};
use super::world::World;

/// A description of the broken guarantee.
pub type Broken = String;

impl World {
    /// The guarantees.
    pub fn check(&self, setting: &Setting) -> Result<(), Broken> {
        if let QueueState::Hidden { until } = self.message.queue_state
            && until > self.now + setting.longest_hidden()
        {
            return Err(format!("the message is hidden until {until:?}"));
        }
        let mut working = 0;
        let owners = self.pods.iter().flatten().filter(|pod| {
            pod.work.as_ref().is_some_and(|work| work.owns(self.now - pod.started_at))
        });
        if owners.count() > 1 {
            return Err("two commands run while both pods consider the record theirs".to_owned());
        }
        for pod in self.pods.iter().flatten() {
            if let Some(receipt) = pod.held_receipt(self.now) {
                let is_so = match self.message.queue_state {
                    // By this pod, which has no answer yet: the delete has been checked already.
                    QueueState::Deleted => true,
                    QueueState::Hidden { .. } => receipt == self.message.receives,
                    QueueState::Visible | QueueState::Dead => false,
                };
                if !is_so {
                    return Err(format!(
                        "receipt {receipt} counts as held, but the message is {:?}",
                        self.message.queue_state
                    ));
                }
                working += u32::from(pod.command != Command::None);
            }
            let lost = pod
                .holding
                .as_ref()
                .is_some_and(|holding| holding.keeper.state().lease.expires_at().is_none());
            if lost && pod.core.job.phase() == "Processing" {
                return Err("the lease is lost, and the work continues".to_owned());
            }
            if pod.stopped && pod.command == Command::Running {
                return Err("the pod was asked to stop, and the work continues".to_owned());
            }
        }
        if working > 1 {
            return Err("two commands run while both pods consider the message theirs".to_owned());
        }
        Ok(())
    }
}

/// The next move in a world without faults: every request is answered, the work succeeds, and every
/// wait ends.
fn fault_free_move(world: &World) -> Option<Move> {
    let kind = |(i, pod): (usize, &Option<Pod>)| {
        let pod = pod.as_ref()?;
        if let Some(chosen) =
            pod.work.as_ref().and_then(|work| fault_free_move_of_work(world, pod, work))
        {
            return chosen.map(|chosen| Move::Of(i, chosen));
        }
        let holding = pod.holding.as_ref();
        let call =
            holding.filter(|holding| holding.request().is_some()).map(|holding| holding.answer);
        let acts = holding.is_some_and(|holding| holding.acts(world.now - pod.started_at));
        let chosen = match (pod.poll, call, pod.command) {
            (Some(Poll { brings: None, .. }), _, _)
                if world.message.queue_state == QueueState::Visible =>
            {
                PodMove::PollArrives
            }
            (Some(_), _, _) => PodMove::PollIsAnswered,
            (None, Some(None), _) => PodMove::CallArrives { hides_again: false },
            (None, Some(Some(_)), _) => PodMove::CallIsAnswered,
            (None, None, _) if acts => PodMove::KeeperActs,
            (None, None, Command::Running | Command::Halting) => PodMove::CommandExits(0),
            (None, None, Command::None) if pod.limit.is_some() => PodMove::LimitExpires,
            // Only time helps: a call is repeated later.
            (None, None, Command::None) => return None,
        };
        Some(Move::Of(i, chosen))
    };
    world.pods.iter().enumerate().find_map(kind)
}

/// `None` if the next move is the queue's or the command's; `Some(None)` if only time helps.
#[expect(clippy::option_option, reason = "the two cases above")]
fn fault_free_move_of_work(world: &World, pod: &Pod, work: &Work) -> Option<Option<PodMove>> {
    let now = world.now - pod.started_at;
    let chosen = match (work.call(), &work.answer) {
        _ if pod.holding.as_ref().is_some_and(|holding| holding.request().is_some()) => {
            return None;
        }
        _ if pod.holding.as_ref().is_some_and(|holding| holding.acts(now)) => PodMove::KeeperActs,
        (Some(_), None) => PodMove::RequestArrives,
        (Some(_), Some(_)) => PodMove::RequestIsAnswered,
        (None, _) if work.acts(now) => PodMove::ClaimActs,
        (None, _) if work.stage == Stage::Publish => PodMove::Publishes,
        (None, _) if pod.command != Command::None => return None,
        // Waiting for the end of another pod's record, or of a pause.
        (None, _) => return Some(None),
    };
    Some(Some(chosen))
}

/// The next move if no more answers come and the command does not end: only time passes.
fn dead_move(world: &World, i: usize) -> Move {
    let limited = world.pods[i].as_ref().is_some_and(|pod| pod.limit.is_some());
    if limited { Move::Of(i, PodMove::LimitExpires) } else { Move::Tick }
}

/// After a stop request a pod ends: without faults within the same tick, and without answers by its
/// limits alone. A message in flight is then visible immediately, if so configured.
pub fn check_stop(setting: &Setting, before: &World, i: usize) -> Result<(), Broken> {
    let stopped = before.after(setting, Move::Of(i, PodMove::Stop))?;
    let mut dead = stopped.clone();
    for _ in 0..6 {
        if dead.pods[i].is_some() {
            dead = dead.after(setting, dead_move(&dead, i))?;
        }
    }
    let mut kind = stopped;
    for _ in 0..12 {
        // A call that is repeated after a pause is not awaited.
        let over = || {
            let limited = kind.pods[i].as_ref().is_some_and(|pod| pod.limit.is_some());
            limited.then_some(Move::Of(i, PodMove::LimitExpires))
        };
        if let Some(chosen) = fault_free_move(&kind).or_else(over) {
            kind = kind.after(setting, chosen)?;
        }
    }
    if dead.pods[i].is_some() || kind.pods[i].is_some() {
        return Err("a pod that was asked to stop does not end".to_owned());
    }
    let comes_back = before.pods[i].as_ref().is_some_and(|pod| match pod.core.job.phase() {
        // Unless the answer that brought it was lost: then no pod has its receipt.
        "Receiving" => pod.poll.is_some_and(|poll| {
            let may_bring = poll.brings == Some(before.message.receives)
                || before.message.queue_state == QueueState::Visible;
            may_bring && before.now < poll.asked_at + setting.visibility()
        }),
        "Processing" => pod.held_receipt(before.now).is_some(),
        _ => false,
    });
    let is_hidden = matches!(kind.message.queue_state, QueueState::Hidden { .. });
    if comes_back && is_hidden && setting.policy.limits.retry.on_stop == OnStop::Release {
        return Err("a pod that was asked to stop left its message hidden".to_owned());
    }
    Ok(())
}

/// Without further faults the message ends: deleted after a success, or as a dead letter. `ends`
/// are the worlds for which that is known.
pub fn check_end(setting: &Setting, world: &World, ends: &mut HashSet<u64>) -> Result<(), Broken> {
    let mut world = world.clone();
    if world.faults != World::NO_LIMIT {
        world.faults = 0;
    }
    let mut path = Vec::new();
    for _ in 0..100 {
        let key = world.key(setting);
        path.push(key);
        let chosen = match (fault_free_move(&world), world.message.queue_state) {
            _ if ends.contains(&key) => None,
            (Some(chosen), _) => Some(chosen),
            (None, _) if world.pods.iter().any(Option::is_some) => Some(Move::Tick),
            (None, QueueState::Visible) => Some(Move::Start(0)),
            (None, QueueState::Hidden { .. }) => Some(Move::Tick),
            (None, QueueState::Deleted | QueueState::Dead) => None,
        };
        let Some(chosen) = chosen else {
            ends.extend(path);
            return Ok(());
        };
        world = world.after(setting, chosen)?;
    }
    Err("the message does not end without faults".to_owned())
}
