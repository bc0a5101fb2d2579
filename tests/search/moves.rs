//! What may happen next, whatever came before.

use leasehold::job::verdict::Role;
use leasehold::ports::memory::Kind;

use super::Setting;
use super::message::{Request, Standing};
use super::pod::{Call, Command, Doing, Pod};
use super::world::World;

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Move {
    Tick,
    StrayComesThrough(usize),
    Start(usize),
    Of(usize, PodMove),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PodMove {
    PollComesThrough,
    PollIsAnswered,
    PollFails,
    PollingGivesUp,
    CallComesThrough {
        hides_again: bool,
    },
    CallIsAnswered,
    /// No answer, in time or at all, or one that says nothing. The request may have come through, or may later.
    CallFails,
    Beats,
    RetriesDelete,
    CommandExits(i32),
    CommandStalls,
    LimitIsOver,
    Stop,
    Kill,
    Dies(Role),
}

impl PodMove {
    /// Is this something that goes wrong?
    pub fn is_fault(self) -> bool {
        match self {
            Self::PollFails
            | Self::PollingGivesUp
            | Self::CallFails
            | Self::CommandStalls
            | Self::LimitIsOver
            | Self::Kill
            | Self::Dies(_) => true,
            Self::CallComesThrough { hides_again } => hides_again,
            Self::PollComesThrough
            | Self::PollIsAnswered
            | Self::CallIsAnswered
            | Self::Beats
            | Self::RetriesDelete
            | Self::CommandExits(_)
            | Self::Stop => false,
        }
    }
}

impl World {
    /// All that may happen next.
    pub fn moves(&self, setting: &Setting) -> Vec<Move> {
        let mut moves = Vec::new();
        if self.message.is_gone() && self.pods.iter().all(Option::is_none) {
            return moves;
        }
        moves.push(Move::Tick);
        moves.extend((0..self.strays.len()).map(Move::StrayComesThrough));
        if let Some(free) = self.pods.iter().position(Option::is_none)
            && !self.message.is_gone()
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
    fn moves(&self, world: &World, setting: &Setting, mut add: impl FnMut(PodMove)) {
        if let Some(poll) = &self.poll {
            if poll.brings.is_none() && world.message.standing == Standing::Visible {
                add(PodMove::PollComesThrough);
            }
            add(PodMove::PollIsAnswered);
            add(PodMove::PollFails);
            add(PodMove::PollingGivesUp);
        }
        if let Some(keeper) = &self.keeper {
            match &keeper.call {
                Some(Call { answer: None, request, .. }) => {
                    add(PodMove::CallComesThrough { hides_again: false });
                    let is_late =
                        world.message.standing == Standing::Visible && world.message.receives == keeper.receipt;
                    if is_late && *request != Request::Delete && setting.kind == Kind::Standard {
                        add(PodMove::CallComesThrough { hides_again: true });
                    }
                    add(PodMove::CallFails);
                }
                Some(Call { answer: Some(_), .. }) => {
                    add(PodMove::CallIsAnswered);
                    add(PodMove::CallFails);
                }
                None => {
                    if keeper.next_beat_at().is_some_and(|at| at <= world.now - self.started_at) {
                        add(PodMove::Beats);
                    }
                    if matches!(keeper.doing, Doing::Deleting { .. }) {
                        add(PodMove::RetriesDelete);
                    }
                }
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
            add(PodMove::LimitIsOver);
        }
        if !self.stopped {
            add(PodMove::Stop);
        }
        add(PodMove::Kill);
        for role in [Role::Receiver, Role::VisibilityHeartbeat, Role::Processor] {
            add(PodMove::Dies(role));
        }
    }
}
