//! What a move makes of a pod, and what its core then wishes for. The owner of the lease is the
//! real one.

use std::time::Duration;

use leasehold_core::delivery::{Delivery, MessageId, ReceiptHandle, Received, Redrive};
use leasehold_core::keep_reason::Role;
use leasehold_core::keeper::{self, Call, Input, Keeper, Next};
use leasehold_core::lease::Lease;
use leasehold_core::lifecycle::{Effect, Event, Hold, Limit, Processed};
use leasehold_core::outcome::{CommandReport, Exit, Failure, Outcome, WorkRecord};
use leasehold_core::run_outcome::{ReceiveFailure, RunOutcome};
use leasehold_core::verdict::Settlement;

use super::invariants::Broken;
use super::message::{Answer, MAX_RECEIVES, QueueState};
use super::moves::PodMove;
use super::pod::{Command, Holding, Pod, Poll};
use super::world::World;
use super::{RESERVE, Setting};
use crate::support::object_created;

/// A pod while it does something.
pub struct Acting<'a> {
    pub setting: &'a Setting,
    pub world: &'a mut World,
    pub pod: Pod,
    /// How its run ended.
    pub over: Option<RunOutcome>,
    /// To the supervisor, in order.
    pub told: Vec<Event>,
}

impl Acting<'_> {
    /// Does the pod go on after this?
    #[expect(clippy::too_many_lines, reason = "a list of what can happen")]
    pub fn act(&mut self, chosen: PodMove) -> Result<bool, Broken> {
        match chosen {
            PodMove::PollComesThrough => {
                let brings = self.world.message.receive(self.setting, self.world.now);
                self.poll_mut().brings = brings;
            }
            PodMove::PollIsAnswered => {
                let poll = *self.poll_mut();
                self.pod.poll = None;
                self.told.push(
                    poll.brings.map_or(Event::QueueEmpty, |receipt| self.received(poll, receipt)),
                );
            }
            PodMove::PollFails if self.pod.finishing => {
                self.pod.poll = None;
                self.told.push(Event::QueueEmpty);
            }
            PodMove::PollFails => self.poll(),
            PodMove::PollingGivesUp => {
                self.pod.poll = None;
                self.told.push(Event::ReceiveFailed(ReceiveFailure::GaveUp(String::new())));
            }
            PodMove::CallComesThrough { hides_again } => {
                let receipt = self.holding().receipt;
                let request = self.holding().request().expect("a call is out");
                let answer =
                    self.world.comes_through(self.setting, receipt, request, hides_again)?;
                self.holding().answer = Some(answer);
            }
            PodMove::CallIsAnswered => {
                let answer = self.holding().answer.expect("the queue has answered");
                self.answered(match answer {
                    Answer::Ok => keeper::Answer::Accepted,
                    Answer::NotInFlight | Answer::Refused => {
                        keeper::Answer::NotInFlight(String::new())
                    }
                    Answer::AtCeiling => keeper::Answer::AtCeiling(String::new()),
                })?;
            }
            PodMove::CallFails => {
                self.let_stray();
                self.answered(keeper::Answer::Unclear(String::new()))?;
            }
            PodMove::ReleaseIsRefused => self.answered(keeper::Answer::Failed(String::new()))?,
            PodMove::DeleteIsRefused => {
                self.answered(keeper::Answer::NotInFlight(String::new()))?;
            }
            PodMove::Keeps => self.keeps()?,
            PodMove::CommandExits(code) => self.command_exits(code)?,
            PodMove::CommandStalls => self.told.push(Event::Stalled),
            PodMove::Claims => self.claims()?,
            PodMove::RequestArrives => self.request_arrives()?,
            PodMove::RequestIsAnswered => self.request_is_answered()?,
            PodMove::RequestFails => self.request_fails()?,
            PodMove::Publishes => self.publishes()?,
            PodMove::LimitIsOver => {
                let limit = self.pod.limit.take().expect("one runs");
                if limit == Limit::Halt {
                    // Its own limit is over before.
                    self.publish_is_given_up()?;
                }
                self.told.push(Event::Overdue(limit));
            }
            PodMove::Stop => {
                self.pod.stopped = true;
                self.told.push(Event::StopRequested);
            }
            PodMove::Kill => {
                self.let_stray();
                self.let_write_stray();
                return Ok(false);
            }
            PodMove::Dies(role) => {
                match role {
                    Role::Receiver => self.pod.poll = None,
                    Role::VisibilityHeartbeat => {
                        self.let_stray();
                        self.pod.holding = None;
                    }
                    Role::Processor => {
                        self.let_write_stray();
                        (self.pod.command, self.pod.work) = (Command::None, None);
                    }
                    Role::Reporter => {}
                }
                self.told.push(Event::ActorDied(role));
            }
        }
        while !self.told.is_empty() {
            let event = self.told.remove(0);
            let now = self.world.now - self.pod.started_at;
            self.pod.core = self.setting.steps.after(&self.pod.core, now, event);
            self.carry_out()?;
        }
        if self.over.is_some() != (self.pod.core.job.phase() == "Done") {
            return Err("done without leaving, or the other way round".to_owned());
        }
        if self.over.is_some() {
            self.let_stray();
            self.let_write_stray();
        }
        Ok(self.over.is_none())
    }

    pub fn carry_out(&mut self) -> Result<(), Broken> {
        let core = self.pod.core.clone();
        for effect in &core.effects {
            match effect {
                Effect::Poll => {
                    if self.pod.stopped {
                        return Err("a message is asked for after the stop".to_owned());
                    }
                    self.pod.limit = None;
                    self.poll();
                }
                Effect::StopPolling => self.pod.finishing = true,
                Effect::Hold(hold) => {
                    let Hold { delivery, asked_at, limits, .. } = hold.as_ref();
                    let receipt = delivery.receive_count;
                    let lease = Lease::taken(limits.strategy, self.setting.visibility(), *asked_at)
                        .with_ceiling(limits.ceiling);
                    self.pod.succeeded = false;
                    self.pod.work = None;
                    let lease = lease.extended_by(limits.visibility);
                    let visibility = self.setting.visibility();
                    let keeper = Keeper::new(
                        delivery.clone(),
                        lease,
                        visibility,
                        limits.stop_grace + RESERVE,
                    );
                    self.pod.holding = Some(Holding {
                        receipt,
                        keeper,
                        answer: None,
                        inputs: Vec::new(),
                        delete_was_accepted: false,
                    });
                    self.reports();
                }
                Effect::Process(_) if self.pod.stopped || self.pod.command != Command::None => {
                    return Err(
                        "a command is started after the stop, or beside another one".to_owned()
                    );
                }
                Effect::Process(_) if self.setting.records => self.claim()?,
                Effect::Process(_) => self.pod.command = Command::Running,
                Effect::Halt => {
                    if self.pod.command == Command::Running {
                        self.pod.command = Command::Halting;
                    }
                    self.work_is_halted();
                }
                Effect::AbortPublish => self.publish_is_given_up()?,
                Effect::Settle(verdict) => self.hand_in(Input::Verdict(verdict.clone())),
                Effect::Withdraw => self.hand_in(Input::Withdraw),
                Effect::Await(limit) => self.pod.limit = Some(*limit),
                Effect::Shorten(_) => self.pod.limit = Some(Limit::Work),
                Effect::Report(_) | Effect::DropCheckpoints(..) => {}
                Effect::Leave(outcome) => self.over = Some(outcome.clone()),
            }
        }
        Ok(())
    }

    /// The run's clock is set to zero: it may have begun at any time.
    fn poll(&mut self) {
        self.pod.started_at = self.world.now;
        self.pod.poll = Some(Poll { asked_at: self.world.now, brings: None });
    }

    fn poll_mut(&mut self) -> &mut Poll {
        self.pod.poll.as_mut().expect("a poll is out")
    }

    fn holding(&mut self) -> &mut Holding {
        self.pod.holding.as_mut().expect("a message is held")
    }

    pub fn now(&self) -> Duration {
        self.world.now - self.pod.started_at
    }

    fn received(&self, poll: Poll, receipt: u32) -> Event {
        let delivery = Delivery {
            message_id: MessageId::new("m"),
            receipt: ReceiptHandle::new(receipt.to_string()),
            body: object_created("k"),
            receive_count: receipt,
            sent_at: None,
            idempotency_key: None,
            traceparent: None,
        };
        let redrive =
            Redrive::DeadLetter { max_receive_count: MAX_RECEIVES, queue: "dlq".to_owned() };
        let asked_at = poll.asked_at - self.pod.started_at;
        Event::Received(Box::new(Received { delivery, asked_at, received_at: asked_at, redrive }))
    }

    /// Many programs exit 0 on TERM, half way.
    fn command_exits(&mut self, code: i32) -> Result<(), Broken> {
        let was_halted =
            std::mem::replace(&mut self.pod.command, Command::None) == Command::Halting;
        let succeeded = code == 0 && !was_halted;
        if succeeded {
            self.pod.succeeded = true;
            if let Some(holding) = &self.pod.holding {
                self.world.successes |= 1 << holding.receipt;
            }
        }
        if self.pod.work.is_some() {
            return self.command_has_exited(succeeded, was_halted);
        }
        let exit = Exit::Code(code);
        self.processed(if code == 0 {
            Outcome::Finished
        } else {
            Outcome::Failed(Failure::Exit(exit, CommandReport::default()))
        });
        Ok(())
    }

    pub fn processed(&mut self, outcome: Outcome) {
        let processed = Processed { outcome, work: WorkRecord::default() };
        self.told.push(Event::Processed(Box::new(processed)));
    }

    /// Nobody waits any more for the call that is out.
    fn let_stray(&mut self) {
        let Some(holding) = &self.pod.holding else { return };
        if let (Some(request), None) = (holding.request(), holding.answer) {
            self.world.strays.push((holding.receipt, request));
        }
    }

    /// To the owner of the lease. While a call is out it hears nothing; and an actor that died
    /// never does.
    fn hand_in(&mut self, input: Input) {
        let now = self.now();
        let Some(holding) = &mut self.pod.holding else { return };
        if holding.keeper.state().call.is_some() {
            holding.inputs.push(input);
        } else {
            holding.keeper.handle(now, input);
            self.reports();
        }
    }

    /// What it has to report, it reports at once.
    fn reports(&mut self) {
        let now = self.now();
        let Some(holding) = &mut self.pod.holding else { return };
        loop {
            let mut after = holding.keeper.clone();
            match after.next(now) {
                Next::Report(event) => self.told.push(event),
                Next::Observe(_) => {}
                Next::Extend { .. }
                | Next::Release { .. }
                | Next::Delete { .. }
                | Next::Settled(_)
                | Next::Wait { .. } => return,
            }
            holding.keeper = after;
        }
    }

    /// The owner of the lease does what is to be done now.
    fn keeps(&mut self) -> Result<(), Broken> {
        let now = self.now();
        let (succeeded, stopped) = (self.pod.succeeded, self.pod.stopped);
        let holds = self.pod.believes(self.world.now).is_some();
        let holding = self.pod.holding.as_mut().expect("a message is held");
        match holding.keeper.next(now) {
            Next::Report(event) => self.told.push(event),
            Next::Delete { .. } => {
                if !(holds && succeeded && !stopped) {
                    return Err("a delete without a success, without the lease or after the stop"
                        .to_owned());
                }
            }
            Next::Release { .. } if holding.receipt != self.world.message.receives => {
                return Err("a release is sent for a message that another pod has received since"
                    .to_owned());
            }
            Next::Settled(settlement) => {
                if matches!(settlement, Settlement::Deleted(_)) && !holding.delete_was_accepted {
                    return Err("a message is reported as deleted, and nobody said so".to_owned());
                }
                self.pod.holding = None;
                self.told.push(Event::Settled(settlement));
            }
            Next::Extend { .. } | Next::Release { .. } | Next::Observe(_) => {}
            Next::Wait { .. } => {
                return Err("there was something to be done, and it is not done".to_owned());
            }
        }
        self.reports();
        Ok(())
    }

    /// The call that is out has ended.
    fn answered(&mut self, answer: keeper::Answer) -> Result<(), Broken> {
        let now = self.now();
        let holding = self.holding();
        holding.answer = None;
        if holding.keeper.state().call == Some(Call::Delete) && answer == keeper::Answer::Accepted {
            // Asked for while the lease was held; but if the answer comes after its end, then the
            // message may be somebody else's, and this yes means nothing. Then the message is
            // reported as deleted, and comes back.
            let is_held = holding.keeper.state().lease.is_held(now);
            if is_held && self.world.message.queue_state != QueueState::Deleted {
                return Err(
                    "the queue said in time that the message is deleted, and it is not".to_owned()
                );
            }
            self.holding().delete_was_accepted = true;
        }
        let is_over = matches!(answer, keeper::Answer::NotInFlight(_));
        self.holding().keeper.handle(now, Input::Answered(answer));
        if is_over && self.pod.believes(self.world.now).is_some() {
            return Err(
                "the queue says that the delivery is over, and the lease is believed".to_owned()
            );
        }
        let holding = self.holding();
        for input in std::mem::take(&mut holding.inputs) {
            holding.keeper.handle(now, input);
        }
        self.reports();
        Ok(())
    }
}
