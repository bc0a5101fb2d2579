//! The possible next moves.

use super::message::Kind;
use leasehold_core::keep_reason::Role;
use leasehold_core::keeper::{Call, Phase};

use super::Setting;
use super::message::QueueState;
use super::pod::{Command, Pod};
use super::records::{Stage, Work};
use super::world::World;

/// A possible next move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Move {
    Tick,
    StrayArrives(usize),
    StrayWriteArrives(usize),
    Start(usize),
    Of(usize, PodMove),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PodMove {
    PollArrives,
    PollIsAnswered,
    PollFails,
    PollingGivesUp,
    CallArrives {
        hides_again: bool,
    },
    CallIsAnswered,
    /// No answer in time, or an inconclusive one. The request may have succeeded, or may succeed
    /// later.
    CallFails,
    /// The queue refuses a call temporarily, or it was not sent: nothing was changed.
    CallHasNoEffect,
    /// The queue reports that the delivery has ended, as after a purge.
    DeleteIsRefused,
    /// The keeper of the lease takes its next action.
    KeeperActs,
    CommandExits(i32),
    CommandStalls,
    /// The claim of the record takes its next action.
    ClaimActs,
    RequestArrives,
    RequestIsAnswered,
    /// As [`PodMove::CallFails`].
    RequestFails,
    Publishes,
    LimitExpires,
    Stop,
    Kill,
    ActorDies(Role),
}

impl PodMove {
    /// Is this a fault?
    pub fn is_fault(self) -> bool {
        match self {
            Self::PollFails
            | Self::PollingGivesUp
            | Self::CallFails
            | Self::CallHasNoEffect
            | Self::DeleteIsRefused
            | Self::CommandStalls
            | Self::RequestFails
            | Self::LimitExpires
            | Self::Kill
            | Self::ActorDies(_) => true,
            Self::CallArrives { hides_again } => hides_again,
            Self::PollArrives
            | Self::PollIsAnswered
            | Self::CallIsAnswered
            | Self::KeeperActs
            | Self::CommandExits(_)
            | Self::ClaimActs
            | Self::RequestArrives
            | Self::RequestIsAnswered
            | Self::Publishes
            | Self::Stop => false,
        }
    }
}

impl World {
    /// All possible next moves.
    pub fn moves(&self, setting: &Setting) -> Vec<Move> {
        let mut moves = Vec::new();
        if self.message.is_gone() && self.pods.iter().all(Option::is_none) {
            return moves;
        }
        moves.push(Move::Tick);
        moves.extend((0..self.strays.len()).map(Move::StrayArrives));
        moves.extend((0..self.stray_writes.len()).map(Move::StrayWriteArrives));
        let is_wanted = if setting.records {
            self.message.queue_state == QueueState::Visible
        } else {
            !self.message.is_gone()
        };
        if let Some(free) = self.pods.iter().position(Option::is_none)
            && is_wanted
        {
            moves.push(Move::Start(free));
        }
        for (i, pod) in self.pods.iter().enumerate() {
            if let Some(pod) = pod {
                pod.moves(self, setting, |pod_move| {
                    if self.faults > 0 || !pod_move.is_fault() {
                        moves.push(Move::Of(i, pod_move));
                    }
                });
            }
        }
        moves
    }
}

impl Pod {
    /// The queue's moves in a search with records: it answers immediately, and no answer is lost.
    pub fn prompt_move(&self, world: &World) -> Option<PodMove> {
        if let Some(poll) = &self.poll {
            let is_there =
                poll.brings.is_none() && world.message.queue_state == QueueState::Visible;
            return Some(if is_there { PodMove::PollArrives } else { PodMove::PollIsAnswered });
        }
        let holding = self.holding.as_ref()?;
        match (holding.request(), holding.answer) {
            (Some(_), None) => Some(PodMove::CallArrives { hides_again: false }),
            (Some(_), Some(_)) => Some(PodMove::CallIsAnswered),
            // Not an extension, which may be late.
            (None, _) => {
                let keeps = !matches!(holding.keeper.state().phase, Phase::Holding);
                (keeps && holding.acts(world.now - self.started_at)).then_some(PodMove::KeeperActs)
            }
        }
    }

    /// The moves of the work, its record and the pod's end; all other moves are prompt.
    fn moves_of_work(&self, work: Option<&Work>, world: &World, mut add: impl FnMut(PodMove)) {
        if self.holding.as_ref().is_some_and(|holding| holding.acts(world.now - self.started_at)) {
            add(PodMove::KeeperActs);
        }
        if self.command != Command::None {
            add(PodMove::CommandExits(0));
            add(PodMove::CommandExits(1));
        }
        if let Some(work) = work {
            match (work.call(), &work.answer) {
                (Some(_), None) => {
                    add(PodMove::RequestArrives);
                    add(PodMove::RequestFails);
                }
                (Some(_), Some(_)) => {
                    add(PodMove::RequestIsAnswered);
                    add(PodMove::RequestFails);
                }
                (None, _) if work.acts(world.now - self.started_at) => add(PodMove::ClaimActs),
                (None, _) => {}
            }
            if work.stage == Stage::Publish {
                add(PodMove::Publishes);
            }
        }
        if self.limit.is_some() {
            add(PodMove::LimitExpires);
        }
        if !self.stopped {
            add(PodMove::Stop);
        }
        add(PodMove::Kill);
    }

    fn moves(&self, world: &World, setting: &Setting, mut add: impl FnMut(PodMove)) {
        if setting.records {
            return self.moves_of_work(self.work.as_ref(), world, add);
        }
        if let Some(poll) = &self.poll {
            if poll.brings.is_none() && world.message.queue_state == QueueState::Visible {
                add(PodMove::PollArrives);
            }
            add(PodMove::PollIsAnswered);
            add(PodMove::PollFails);
            add(PodMove::PollingGivesUp);
        }
        if let Some(holding) = &self.holding {
            match (holding.keeper.state().call, holding.answer) {
                (Some(call), None) => {
                    add(PodMove::CallArrives { hides_again: false });
                    let is_late = world.message.queue_state == QueueState::Visible
                        && world.message.receives == holding.receipt;
                    if is_late && call != Call::Delete && setting.kind == Kind::Standard {
                        add(PodMove::CallArrives { hides_again: true });
                    }
                    match call {
                        Call::Release(_) => add(PodMove::CallHasNoEffect),
                        Call::Delete => add(PodMove::DeleteIsRefused),
                        Call::Extend { .. } => {}
                    }
                    add(PodMove::CallFails);
                }
                (Some(_), Some(_)) => {
                    add(PodMove::CallIsAnswered);
                    add(PodMove::CallFails);
                }
                (None, _) if holding.acts(world.now - self.started_at) => add(PodMove::KeeperActs),
                (None, _) => {}
            }
        }
        if self.command != Command::None {
            add(PodMove::CommandExits(0));
            add(PodMove::CommandExits(1));
        }
        if self.command == Command::Running {
            add(PodMove::CommandStalls);
        }
        if self.limit.is_some() {
            add(PodMove::LimitExpires);
        }
        if !self.stopped {
            add(PodMove::Stop);
        }
        add(PodMove::Kill);
        for role in [Role::Receiver, Role::VisibilityHeartbeat, Role::Processor] {
            add(PodMove::ActorDies(role));
        }
    }
}
