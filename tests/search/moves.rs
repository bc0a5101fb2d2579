//! What may happen next, whatever came before.

use leasehold::job::verdict::Role;
use leasehold::ports::memory::Kind;

use super::Setting;
use super::message::{Request, Standing};
use super::pod::{Call, Command, Doing, Keeper, Pod};
use super::records::{Stage, TIME_TO_LIVE, Work, Write};
use super::world::World;

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Move {
    Tick,
    StrayComesThrough(usize),
    StrayWriteArrives(usize),
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
    /// The queue says no for now, to a release: nothing was changed.
    ReleaseIsRefused,
    Beats,
    RetriesDelete,
    CommandExits(i32),
    CommandStalls,
    WriteArrives,
    WriteIsAnswered,
    /// As [`PodMove::CallFails`].
    WriteFails,
    Looks,
    Refreshes,
    RecordExpires,
    Publishes,
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
            | Self::ReleaseIsRefused
            | Self::CommandStalls
            | Self::WriteFails
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
            | Self::WriteArrives
            | Self::WriteIsAnswered
            | Self::Looks
            | Self::Refreshes
            | Self::RecordExpires
            | Self::Publishes
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
        moves.extend((0..self.stray_writes.len()).map(Move::StrayWriteArrives));
        let is_wanted =
            if setting.records { self.message.standing == Standing::Visible } else { !self.message.is_gone() };
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
    /// What happens at once where the queue is no matter: it answers, and nothing gets lost.
    pub fn prompt_move(&self, world: &World) -> Option<PodMove> {
        if let Some(poll) = &self.poll {
            let is_there = poll.brings.is_none() && world.message.standing == Standing::Visible;
            return Some(if is_there { PodMove::PollComesThrough } else { PodMove::PollIsAnswered });
        }
        let keeper = self.keeper.as_ref()?;
        match &keeper.call {
            Some(Call { answer: None, .. }) => Some(PodMove::CallComesThrough { hides_again: false }),
            Some(Call { answer: Some(_), .. }) => Some(PodMove::CallIsAnswered),
            None => matches!(keeper.doing, Doing::Deleting { .. }).then_some(PodMove::RetriesDelete),
        }
    }

    /// The work, its record and the pod's end; all else is prompt.
    fn moves_of_work(&self, work: Option<&Work>, world: &World, mut add: impl FnMut(PodMove)) {
        let beat_at = self.keeper.as_ref().and_then(Keeper::next_beat_at);
        if beat_at.is_some_and(|at| at <= world.now - self.started_at) {
            add(PodMove::Beats);
        }
        if self.command != Command::None {
            add(PodMove::CommandExits(0));
            add(PodMove::CommandExits(1));
        }
        if let Some(work) = work {
            match work.write {
                Some(Write { answer: None, .. }) => {
                    add(PodMove::WriteArrives);
                    add(PodMove::WriteFails);
                }
                Some(Write { answer: Some(_), .. }) => {
                    add(PodMove::WriteIsAnswered);
                    add(PodMove::WriteFails);
                }
                None => {}
            }
            let is_held = matches!(work.stage, Stage::Working | Stage::Publishing);
            let is_due = work.is_believed(world.now) && world.now + TIME_TO_LIVE * 2 / 3 >= work.expires_at;
            match work.stage {
                Stage::Looking => add(PodMove::Looks),
                Stage::Publishing => add(PodMove::Publishes),
                Stage::Claiming | Stage::Working | Stage::Recording | Stage::Releasing(_) | Stage::Lost => {}
            }
            if is_held && is_due && work.write.is_none() {
                add(PodMove::Refreshes);
            }
            if is_held && !work.is_believed(world.now) {
                add(PodMove::RecordExpires);
            }
        }
        if self.limit.is_some() {
            add(PodMove::LimitIsOver);
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
                    if matches!(keeper.doing, Doing::Releasing { .. }) {
                        add(PodMove::ReleaseIsRefused);
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
