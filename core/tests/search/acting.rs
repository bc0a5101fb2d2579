//! Applies a move to a pod, and carries out the effects of its core. The keeper of the lease is the
//! real one.

use std::collections::BTreeMap;
use std::time::Duration;

use leasehold_core::delivery::{
    Delivery, MessageId, ReceiptHandle, Received, Redrive, SqsAttributes,
};
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

/// A pod during a move.
pub struct Acting<'a> {
    pub setting: &'a Setting,
    pub world: &'a mut World,
    pub pod: Pod,
    /// The outcome of its run, if it ended.
    pub outcome: Option<RunOutcome>,
    /// Events for the supervisor, in order.
    pub events: Vec<Event>,
}

impl Acting<'_> {
    /// Does the pod keep running?
    #[expect(clippy::too_many_lines, reason = "a list of what can happen")]
    pub fn act(&mut self, chosen: PodMove) -> Result<bool, Broken> {
        match chosen {
            PodMove::PollArrives => {
                let brings = self.world.message.receive(self.setting, self.world.now);
                self.poll_mut().brings = brings;
            }
            PodMove::PollIsAnswered => {
                let poll = *self.poll_mut();
                self.pod.poll = None;
                self.events.push(
                    poll.brings.map_or(Event::QueueEmpty, |receipt| self.received(poll, receipt)),
                );
            }
            PodMove::PollFails if self.pod.finishing => {
                self.pod.poll = None;
                self.events.push(Event::QueueEmpty);
            }
            PodMove::PollFails => self.poll(),
            PodMove::PollingGivesUp => {
                self.pod.poll = None;
                self.events.push(Event::ReceiveFailed(ReceiveFailure::GaveUp(String::new())));
            }
            PodMove::CallArrives { hides_again } => {
                let receipt = self.holding().receipt;
                let request = self.holding().request().expect("a call is in flight");
                let answer = self.world.queue_gets(self.setting, receipt, request, hides_again)?;
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
                self.abandon_call();
                self.answered(keeper::Answer::Unclear(String::new()))?;
            }
            PodMove::CallHasNoEffect => self.answered(keeper::Answer::Failed(String::new()))?,
            PodMove::DeleteIsRefused => {
                self.answered(keeper::Answer::NotInFlight(String::new()))?;
            }
            PodMove::KeeperActs => self.keeper_acts()?,
            PodMove::CommandExits(code) => self.command_exits(code)?,
            PodMove::CommandStalls => self.events.push(Event::Stalled),
            PodMove::ClaimActs => self.claim_acts()?,
            PodMove::RequestArrives => self.request_arrives()?,
            PodMove::RequestIsAnswered => self.request_is_answered()?,
            PodMove::RequestFails => self.request_fails()?,
            PodMove::Publishes => self.publishes()?,
            PodMove::LimitExpires => {
                let limit = self.pod.limit.take().expect("one runs");
                if limit == Limit::Halt {
                    // Its own limit expires earlier.
                    self.abandon_publish()?;
                }
                self.events.push(Event::Overdue(limit));
            }
            PodMove::Stop => {
                self.pod.stopped = true;
                self.events.push(Event::StopRequested);
            }
            PodMove::Kill => {
                self.abandon_call();
                self.abandon_write();
                return Ok(false);
            }
            PodMove::ActorDies(role) => {
                match role {
                    Role::Receiver => self.pod.poll = None,
                    Role::VisibilityHeartbeat => {
                        self.abandon_call();
                        self.pod.holding = None;
                    }
                    Role::Processor => {
                        self.abandon_write();
                        (self.pod.command, self.pod.work) = (Command::None, None);
                    }
                    Role::Reporter => {}
                }
                self.events.push(Event::ActorDied(role));
            }
        }
        while !self.events.is_empty() {
            let event = self.events.remove(0);
            let now = self.world.now - self.pod.started_at;
            self.pod.core = self.setting.steps.after(&self.pod.core, now, event);
            self.carry_out()?;
        }
        if self.outcome.is_some() != (self.pod.core.job.phase() == "Done") {
            return Err("the phase Done without the end of the run, or the reverse".to_owned());
        }
        if self.outcome.is_some() {
            self.abandon_call();
            self.abandon_write();
        }
        Ok(self.outcome.is_none())
    }

    pub fn carry_out(&mut self) -> Result<(), Broken> {
        let core = self.pod.core.clone();
        for effect in &core.effects {
            match effect {
                Effect::Poll => {
                    if self.pod.stopped {
                        return Err("a message is requested after the stop".to_owned());
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
                    self.deliver_reports();
                }
                Effect::Process(_) if self.pod.stopped || self.pod.command != Command::None => {
                    return Err(
                        "a command is started after the stop, or in parallel to another one"
                            .to_owned(),
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
                Effect::AbortPublish => self.abandon_publish()?,
                Effect::Settle(verdict) => self.pass_to_keeper(Input::Verdict(verdict.clone())),
                Effect::Withdraw => self.pass_to_keeper(Input::Withdraw),
                Effect::Await(limit) => self.pod.limit = Some(*limit),
                Effect::Shorten(_) => self.pod.limit = Some(Limit::Work),
                Effect::Suspend => self.pod.limit = None,
                Effect::Report(_) | Effect::DropCheckpoints(..) => {}
                Effect::EndRun(outcome) => self.outcome = Some(outcome.clone()),
            }
        }
        Ok(())
    }

    /// Resets the run's clock to zero: the run may have begun at any time.
    fn poll(&mut self) {
        self.pod.started_at = self.world.now;
        self.pod.poll = Some(Poll { asked_at: self.world.now, brings: None });
    }

    fn poll_mut(&mut self) -> &mut Poll {
        self.pod.poll.as_mut().expect("a poll is in flight")
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
            payload_failed: None,
            receive_count: receipt,
            sent_at: None,
            first_received_at: None,
            group_id: None,
            deduplication_id: None,
            idempotency_key: None,
            traceparent: None,
            attributes: BTreeMap::new(),
            sqs: SqsAttributes::default(),
        };
        let redrive =
            Redrive::DeadLetter { max_receive_count: MAX_RECEIVES, queue: "dlq".to_owned() };
        let asked_at = poll.asked_at - self.pod.started_at;
        Event::Received(Box::new(Received { delivery, asked_at, received_at: asked_at, redrive }))
    }

    /// Many programs exit 0 on TERM with unfinished work.
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
        self.events.push(Event::Processed(Box::new(processed)));
    }

    /// The call in flight is no longer awaited.
    fn abandon_call(&mut self) {
        let Some(holding) = &self.pod.holding else { return };
        if let (Some(request), None) = (holding.request(), holding.answer) {
            self.world.strays.push((holding.receipt, request));
        }
    }

    /// Passes an input to the keeper. It takes none while a call is in flight, nor after its actor
    /// died.
    fn pass_to_keeper(&mut self, input: Input) {
        let now = self.now();
        let Some(holding) = &mut self.pod.holding else { return };
        if holding.keeper.state().call.is_some() {
            holding.inputs.push(input);
        } else {
            holding.keeper.handle(now, input);
            self.deliver_reports();
        }
    }

    /// Delivers the keeper's reports immediately.
    fn deliver_reports(&mut self) {
        let now = self.now();
        let Some(holding) = &mut self.pod.holding else { return };
        loop {
            let mut after = holding.keeper.clone();
            match after.next(now) {
                Next::Report(event) => self.events.push(event),
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

    /// The keeper takes its next action.
    fn keeper_acts(&mut self) -> Result<(), Broken> {
        let now = self.now();
        let (succeeded, stopped) = (self.pod.succeeded, self.pod.stopped);
        let holds = self.pod.held_receipt(self.world.now).is_some();
        let holding = self.pod.holding.as_mut().expect("a message is held");
        match holding.keeper.next(now) {
            Next::Report(event) => self.events.push(event),
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
                    return Err(
                        "a message is reported as deleted without an answer from the queue"
                            .to_owned(),
                    );
                }
                self.pod.holding = None;
                self.events.push(Event::Settled(settlement));
            }
            Next::Extend { .. } | Next::Release { .. } | Next::Observe(_) => {}
            Next::Wait { .. } => {
                return Err("an action was due, and the keeper waits".to_owned());
            }
        }
        self.deliver_reports();
        Ok(())
    }

    /// The call in flight has ended.
    fn answered(&mut self, answer: keeper::Answer) -> Result<(), Broken> {
        let now = self.now();
        let holding = self.holding();
        holding.answer = None;
        if holding.keeper.state().call == Some(Call::Delete) && answer == keeper::Answer::Accepted {
            // The delete was sent while the lease was held. If the answer comes after its end,
            // another pod may have the message, and an accepted delete proves nothing: the message
            // is reported as deleted and is delivered again.
            let is_held = holding.keeper.state().lease.is_held(now);
            if is_held && self.world.message.queue_state != QueueState::Deleted {
                return Err(
                    "the queue accepted the delete in time, and the message is not deleted"
                        .to_owned(),
                );
            }
            self.holding().delete_was_accepted = true;
        }
        let is_over = matches!(answer, keeper::Answer::NotInFlight(_));
        self.holding().keeper.handle(now, Input::Answered(answer));
        if is_over && self.pod.held_receipt(self.world.now).is_some() {
            return Err(
                "the queue reports that the delivery has ended, and the lease counts as held"
                    .to_owned(),
            );
        }
        let holding = self.holding();
        for input in std::mem::take(&mut holding.inputs) {
            holding.keeper.handle(now, input);
        }
        self.deliver_reports();
        Ok(())
    }
}
