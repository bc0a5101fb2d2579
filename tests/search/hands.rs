//! The hands of a pod, played as `actors/` do it: what a move makes of the pod, and what it then wishes for.

use std::rc::Rc;
use std::time::Duration;

use leasehold::job::delivery::{Delivery, MessageId, ReceiptHandle, Received, Redrive};
use leasehold::job::lease::Lease;
use leasehold::job::lifecycle::{Effect, Event, Limit, NotDeleted, Processed};
use leasehold::job::report::{Report, Spent};
use leasehold::job::verdict::{
    Exit, Failure, KeepReason, Outcome, ReceiveFailure, Release, Return, Role, RunOutcome, Said, Settlement, Verdict,
};

use super::invariants::Broken;
use super::message::{Answer, MAX_RECEIVES, Request, Standing};
use super::moves::PodMove;
use super::pod::{Call, Command, Doing, Keeper, Pod, Poll};
use super::steps::Core;
use super::world::World;
use super::{S, Setting};
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
    pub delete_was_answered: bool,
}

impl Acting<'_> {
    /// Does the pod go on after this?
    pub fn act(&mut self, chosen: PodMove) -> Result<bool, Broken> {
        match chosen {
            PodMove::PollComesThrough => {
                let brings = self.world.message.receive(self.setting, self.world.now);
                self.poll_mut().brings = brings;
            }
            PodMove::PollIsAnswered => {
                let poll = *self.poll_mut();
                self.pod.poll = None;
                self.told.push(poll.brings.map_or(Event::QueueEmpty, |receipt| self.received(poll, receipt)));
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
                let (receipt, request) = (self.keeper().receipt, self.call().request);
                let answer = self.world.comes_through(self.setting, receipt, request, hides_again)?;
                self.call().answer = Some(answer);
            }
            PodMove::CallIsAnswered => {
                let answer = self.call().answer;
                self.answered(answer)?;
            }
            PodMove::CallFails => {
                self.let_stray();
                self.answered(None)?;
            }
            PodMove::ReleaseIsRefused => self.release_is_refused()?,
            PodMove::Beats => {
                self.beat();
                self.after_beat()?;
            }
            PodMove::RetriesDelete => self.delete()?,
            PodMove::CommandExits(code) => self.command_exits(code)?,
            PodMove::CommandStalls => self.told.push(Event::Stalled),
            PodMove::WriteArrives => self.write_arrives()?,
            PodMove::WriteIsAnswered => self.write_is_answered()?,
            PodMove::WriteFails => self.write_fails(),
            PodMove::Looks => self.looks()?,
            PodMove::Refreshes => self.refreshes(),
            PodMove::RecordExpires => self.loses_the_record(),
            PodMove::Publishes => self.publishes(),
            PodMove::LimitIsOver => {
                let limit = self.pod.limit.take().expect("one runs");
                if limit == Limit::Halt {
                    // Its own limit is over before.
                    self.publish_is_given_up();
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
                        self.pod.keeper = None;
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
            self.pod.core = self.setting.steps.after(&self.pod.core, now, &event);
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
                Effect::Hold(received, limits) => {
                    let receipt = received.delivery.receive_count;
                    let lease = Lease::taken(limits.strategy, self.setting.visibility(), received.asked_at);
                    self.pod.succeeded = false;
                    self.pod.work = None;
                    self.pod.keeper = Some(Keeper {
                        receipt,
                        lease,
                        withdrawn: false,
                        verdict: None,
                        doing: Doing::Holding,
                        call: None,
                    });
                }
                Effect::Process(_) if self.pod.stopped || self.pod.command != Command::None => {
                    return Err("a command is started after the stop, or beside another one".to_owned());
                }
                Effect::Process(_) if self.setting.records => self.claim(),
                Effect::Process(_) => self.pod.command = Command::Running,
                Effect::Halt => {
                    if self.pod.command == Command::Running {
                        self.pod.command = Command::Halting;
                    }
                    self.work_is_halted();
                }
                Effect::AbortPublish => self.publish_is_given_up(),
                Effect::Settle(_) => self.settle(core.clone())?,
                Effect::Withdraw => self.withdraw()?,
                Effect::Await(limit) => self.pod.limit = Some(*limit),
                Effect::Shorten(_) => self.pod.limit = Some(Limit::Work),
                Effect::Report(Report::Ended(ended)) => {
                    let is_deleted = matches!(ended.settlement, Settlement::Deleted(_));
                    if is_deleted && !self.delete_was_answered {
                        return Err("a message is told to be deleted, and nobody said so".to_owned());
                    }
                }
                Effect::Report(_) => {}
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

    fn keeper(&mut self) -> &mut Keeper {
        self.pod.keeper.as_mut().expect("a message is held")
    }

    fn call(&mut self) -> &mut Call {
        self.keeper().call.as_mut().expect("a call is out")
    }

    fn now(&self) -> Duration {
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
        let redrive = Redrive::DeadLetter { max_receive_count: MAX_RECEIVES, queue: "dlq".to_owned() };
        let asked_at = poll.asked_at - self.pod.started_at;
        Event::Received(Box::new(Received { delivery, asked_at, received_at: asked_at, redrive }))
    }

    /// Many programs exit 0 on TERM, half way.
    fn command_exits(&mut self, code: i32) -> Result<(), Broken> {
        let was_halted = std::mem::replace(&mut self.pod.command, Command::None) == Command::Halting;
        let succeeded = code == 0 && !was_halted;
        if succeeded {
            self.pod.succeeded = true;
            if let Some(keeper) = &self.pod.keeper {
                self.world.successes |= 1 << keeper.receipt;
            }
        }
        if self.pod.work.is_some() {
            return self.command_has_exited(succeeded, was_halted);
        }
        let exit = Exit::Code(code);
        self.processed(if code == 0 {
            Outcome::Finished
        } else {
            Outcome::Failed(Failure::Exit(exit, Said::default()))
        });
        Ok(())
    }

    pub fn processed(&mut self, outcome: Outcome) {
        let exit = match &outcome {
            Outcome::Finished => Some(Exit::Code(0)),
            Outcome::Failed(Failure::Exit(exit, _)) => Some(*exit),
            Outcome::Failed(_) | Outcome::ObjectsGone | Outcome::AlreadyDone => None,
        };
        let (said, last_words, spent) = (None, Vec::new(), Spent::default());
        let (used, published, last_error) = (None, None, None);
        let processed = Processed { outcome, exit, said, last_error, last_words, spent, used, published };
        self.told.push(Event::Processed(Box::new(processed)));
    }

    /// Nobody waits any more for the call that is out.
    fn let_stray(&mut self) {
        let Some(keeper) = &mut self.pod.keeper else { return };
        if let Some(Call { request, answer: None, .. }) = keeper.call.take() {
            self.world.strays.push((keeper.receipt, request));
        }
    }

    fn send(&mut self, request: Request) {
        let asked_at = self.now();
        self.keeper().call = Some(Call { request, asked_at, answer: None });
    }

    // From here on as `Keeper` in `actors/heartbeat.rs`.

    fn settle(&mut self, verdict: Rc<Core>) -> Result<(), Broken> {
        // An actor that died hears nothing.
        let Some(keeper) = &mut self.pod.keeper else { return Ok(()) };
        keeper.verdict = Some(verdict);
        if keeper.call.is_none() { self.judged() } else { Ok(()) }
    }

    fn judged(&mut self) -> Result<(), Broken> {
        let now = self.now();
        let Some(verdict) = self.keeper().verdict.take() else { return Ok(()) };
        match verdict.verdict() {
            Verdict::Keep(why, Release::Expire) => self.kept(why.clone(), Return::Unknown),
            Verdict::Keep(why, Release::After(delay)) => {
                let (why, delay) = (why.clone(), *delay);
                self.keeper().doing = Doing::Releasing { why, delay, give_up_at: now + 10 * S };
                self.release()?;
            }
            Verdict::Delete(_) => {
                let give_up_at = now + self.setting.visibility();
                self.keeper().doing = Doing::Deleting { verdict, give_up_at };
                self.delete()?;
            }
        }
        Ok(())
    }

    fn kept(&mut self, why: KeepReason, comes_back: Return) {
        self.pod.keeper = None;
        self.told.push(Event::Settled(Settlement::Kept(why, comes_back)));
    }

    fn withdraw(&mut self) -> Result<(), Broken> {
        let Some(keeper) = &mut self.pod.keeper else { return Ok(()) };
        keeper.withdrawn = true;
        if keeper.call.is_none() && matches!(keeper.doing, Doing::Deleting { .. }) { self.delete() } else { Ok(()) }
    }

    fn not_deleted(&mut self, why: NotDeleted) {
        self.keeper().doing = Doing::Holding;
        self.told.push(Event::NotDeleted(why));
    }

    fn delete(&mut self) -> Result<(), Broken> {
        let now = self.now();
        let keeper = self.pod.keeper.as_ref().expect("a message is held");
        let Doing::Deleting { verdict, .. } = &keeper.doing else { unreachable!("there was a verdict") };
        if keeper.withdrawn {
            self.not_deleted(NotDeleted::Withdrawn);
        } else if let Some(permit) = verdict.completed().permit(&keeper.lease, now) {
            let its_own = permit.receipt().expose() == keeper.receipt.to_string();
            let holds = self.pod.believes(self.world.now).is_some();
            if !(its_own && holds && self.pod.succeeded && !self.pod.stopped) {
                return Err("a delete without a success, without the lease or after the stop".to_owned());
            }
            self.send(Request::Delete);
        } else {
            self.not_deleted(NotDeleted::LeaseLost);
        }
        Ok(())
    }

    fn release_is_refused(&mut self) -> Result<(), Broken> {
        let now = self.now();
        let keeper = self.keeper();
        keeper.call = None;
        let Doing::Releasing { why, give_up_at, .. } = &keeper.doing else { unreachable!("it is released") };
        if now >= *give_up_at {
            let why = why.clone();
            self.kept(why, Return::Unknown);
            return Ok(());
        }
        self.release()
    }

    fn release(&mut self) -> Result<(), Broken> {
        let now = self.now();
        let keeper = self.pod.keeper.as_ref().expect("a message is held");
        let Doing::Releasing { why, delay, .. } = &keeper.doing else { unreachable!("there was a verdict") };
        if keeper.lease.is_held(now) {
            if keeper.receipt != self.world.message.receives {
                return Err("a release is sent for a message that another pod has received since".to_owned());
            }
            let delay = keeper.lease.release_delay(*delay, now);
            self.send(Request::Change(delay));
        } else {
            let why = why.clone();
            self.kept(why, Return::Unknown);
        }
        Ok(())
    }

    fn beat(&mut self) {
        let now = self.now();
        let keeper = self.keeper();
        if !keeper.lease.is_held(now) {
            self.lose();
        } else if let Some(by) = keeper.lease.extension(now) {
            self.send(Request::Change(by));
        } else {
            self.exhausted();
        }
    }

    fn lose(&mut self) {
        self.keeper().lease = self.keeper().lease.lost();
        self.told.push(Event::LeaseLost(String::new()));
    }

    fn exhausted(&mut self) {
        self.keeper().lease = self.keeper().lease.without_beats();
        self.told.push(Event::LeaseExhausted);
    }

    /// The call that is out has ended: with the queue's answer, or with none that says anything.
    fn answered(&mut self, answer: Option<Answer>) -> Result<(), Broken> {
        let now = self.now();
        let keeper = self.keeper();
        let call = keeper.call.take();
        match (&keeper.doing, call.map(|call| call.request), answer) {
            (Doing::Releasing { why, delay, .. }, _, answer) => {
                let (why, delay) = (why.clone(), *delay);
                match answer {
                    Some(Answer::Ok) => self.kept(why, Return::After(delay)),
                    // Without an answer it may have come through: a second one would act on whoever received the message since.
                    Some(Answer::NotInFlight | Answer::AtCeiling | Answer::Refused) | None => {
                        self.kept(why, Return::Unknown);
                    }
                }
                Ok(())
            }
            (Doing::Deleting { verdict, give_up_at }, None | Some(Request::Delete), answer) => match answer {
                Some(Answer::Ok) => {
                    let why = verdict.completed().why();
                    // Asked for while the lease was held; but if the answer comes after its end, then the message may be
                    // somebody else's, and this yes means nothing. Then the message is told to be deleted, and comes back.
                    if keeper.lease.is_held(now) && self.world.message.standing != Standing::Deleted {
                        return Err("the queue said in time that the message is deleted, and it is not".to_owned());
                    }
                    self.delete_was_answered = true;
                    self.pod.keeper = None;
                    self.told.push(Event::Settled(Settlement::Deleted(why)));
                    Ok(())
                }
                Some(Answer::Refused | Answer::NotInFlight | Answer::AtCeiling) => {
                    self.not_deleted(NotDeleted::LeaseLost);
                    Ok(())
                }
                None if now >= *give_up_at => {
                    self.not_deleted(NotDeleted::GaveUp(String::new()));
                    Ok(())
                }
                None => self.after_beat(),
            },
            (Doing::Holding | Doing::Deleting { .. }, _, answer) => {
                match (answer, call) {
                    (Some(Answer::Ok), Some(Call { request: Request::Change(by), asked_at, .. }))
                        if keeper.lease.is_held(now) =>
                    {
                        keeper.lease = keeper.lease.extended(asked_at, by);
                    }
                    (Some(Answer::Ok | Answer::NotInFlight | Answer::Refused), _) => self.lose(),
                    (Some(Answer::AtCeiling), _) => self.exhausted(),
                    (None, _) => {}
                }
                self.after_beat()
            }
        }
    }

    fn after_beat(&mut self) -> Result<(), Broken> {
        let keeper = self.keeper();
        if keeper.call.is_some() {
            return Ok(());
        }
        match keeper.doing {
            Doing::Holding => self.judged(),
            Doing::Deleting { .. } if keeper.withdrawn || keeper.next_beat_at().is_none() => self.delete(),
            Doing::Deleting { .. } | Doing::Releasing { .. } => Ok(()),
        }
    }
}
