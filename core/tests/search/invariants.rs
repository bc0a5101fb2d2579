//! The guarantees: of each world, and of what can still come of it.

use std::collections::HashSet;

use leasehold_core::verdict::OnStop;

use super::Setting;
use super::message::QueueState;
use super::moves::{Move, PodMove};
use super::pod::{Command, Pod, Poll};
use super::records::{Stage, Work};
use super::world::World;

/// What is not as it was promised.
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
            return Err(
                "two commands run while both pods believe that the record is theirs".to_owned()
            );
        }
        for pod in self.pods.iter().flatten() {
            if let Some(believed) = pod.believes(self.now) {
                let is_so = match self.message.queue_state {
                    // By this pod, whose answer is still out: a delete has been checked already.
                    QueueState::Deleted => true,
                    QueueState::Hidden { .. } => believed == self.message.receives,
                    QueueState::Visible | QueueState::Dead => false,
                };
                if !is_so {
                    return Err(format!(
                        "receipt {believed} is believed held, but the message is {:?}",
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
                return Err("the lease is lost, and the work goes on".to_owned());
            }
            if pod.stopped && pod.command == Command::Running {
                return Err("the pod was asked to stop, and the work goes on".to_owned());
            }
        }
        if working > 1 {
            return Err(
                "two commands run while both pods believe that the message is theirs".to_owned()
            );
        }
        Ok(())
    }
}

/// The moves of a kind world: everything asked is answered, the work succeeds, and nobody waits in
/// vain.
fn kind_move(world: &World) -> Option<Move> {
    let kind = |(i, pod): (usize, &Option<Pod>)| {
        let pod = pod.as_ref()?;
        if let Some(chosen) = pod.work.as_ref().and_then(|work| kind_move_of_work(world, pod, work))
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
                PodMove::PollComesThrough
            }
            (Some(_), _, _) => PodMove::PollIsAnswered,
            (None, Some(None), _) => PodMove::CallComesThrough { hides_again: false },
            (None, Some(Some(_)), _) => PodMove::CallIsAnswered,
            (None, None, _) if acts => PodMove::Keeps,
            (None, None, Command::Running | Command::Halting) => PodMove::CommandExits(0),
            (None, None, Command::None) if pod.limit.is_some() => PodMove::LimitIsOver,
            // Only time helps: a call is made again after a while.
            (None, None, Command::None) => return None,
        };
        Some(Move::Of(i, chosen))
    };
    world.pods.iter().enumerate().find_map(kind)
}

/// `None` if it is the command's move, or the record's: then it is no matter of the work. Within,
/// `None` if only time helps.
#[expect(clippy::option_option, reason = "as said")]
fn kind_move_of_work(world: &World, pod: &Pod, work: &Work) -> Option<Option<PodMove>> {
    let now = world.now - pod.started_at;
    let chosen = match (work.call(), &work.answer) {
        _ if pod.holding.as_ref().is_some_and(|holding| holding.request().is_some()) => {
            return None;
        }
        _ if pod.holding.as_ref().is_some_and(|holding| holding.acts(now)) => PodMove::Keeps,
        (Some(_), None) => PodMove::RequestArrives,
        (Some(_), Some(_)) => PodMove::RequestIsAnswered,
        (None, _) if work.acts(now) => PodMove::Claims,
        (None, _) if work.stage == Stage::Publish => PodMove::Publishes,
        (None, _) if pod.command != Command::None => return None,
        // For the end of another pod's record, or of a pause.
        (None, _) => return Some(None),
    };
    Some(Some(chosen))
}

/// Nothing is answered any more and the command does not end: only time goes on.
fn dead_move(world: &World, i: usize) -> Move {
    let limited = world.pods[i].as_ref().is_some_and(|pod| pod.limit.is_some());
    if limited { Move::Of(i, PodMove::LimitIsOver) } else { Move::Tick }
}

/// Once asked to stop a pod ends: without any further tick in a kind world, and by its limits alone
/// in a dead one. A message in hand, or on its way, is then visible at once, if that was asked for.
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
        // A call that is made again after a pause is not waited for.
        let over = || {
            let limited = kind.pods[i].as_ref().is_some_and(|pod| pod.limit.is_some());
            limited.then_some(Move::Of(i, PodMove::LimitIsOver))
        };
        if let Some(chosen) = kind_move(&kind).or_else(over) {
            kind = kind.after(setting, chosen)?;
        }
    }
    if dead.pods[i].is_some() || kind.pods[i].is_some() {
        return Err("a pod that was asked to stop does not end".to_owned());
    }
    let comes_back = before.pods[i].as_ref().is_some_and(|pod| match pod.core.job.phase() {
        // Unless the answer that brought it was lost: then nobody has its receipt.
        "Receiving" => pod.poll.is_some_and(|poll| {
            let may_bring = poll.brings == Some(before.message.receives)
                || before.message.queue_state == QueueState::Visible;
            may_bring && before.now < poll.asked_at + setting.visibility()
        }),
        "Processing" => pod.believes(before.now).is_some(),
        _ => false,
    });
    let is_hidden = matches!(kind.message.queue_state, QueueState::Hidden { .. });
    if comes_back && is_hidden && setting.policy.limits.retry.on_stop == OnStop::Release {
        return Err("a pod that was asked to stop leaves its message hidden".to_owned());
    }
    Ok(())
}

/// If from here on all goes well, then the message ends: deleted after a success, or as a dead
/// letter. `ends` are the worlds of which that is known.
pub fn check_end(setting: &Setting, world: &World, ends: &mut HashSet<u64>) -> Result<(), Broken> {
    let mut world = world.clone();
    if world.faults != World::NO_LIMIT {
        world.faults = 0;
    }
    let mut path = Vec::new();
    for _ in 0..100 {
        let key = world.key(setting);
        path.push(key);
        let chosen = match (kind_move(&world), world.message.queue_state) {
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
    Err("the message does not end, although all goes well".to_owned())
}
