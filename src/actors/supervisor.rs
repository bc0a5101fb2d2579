//! All events meet here, in one order; what they mean is decided in `job::lifecycle`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, ActorStatus, RpcReplyPort, SupervisionEvent};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error};

use super::heartbeat::{self, VisibilityHeartbeat};
use super::processor::{self, Processor};
use super::receiver::{self, Polling, Receiver};
use super::reporter::{self, Reporter};
use super::vitals::Vitals;
use crate::job::keep_reason::Role;
use crate::job::lifecycle::{Effect, Event, Job, Limit, Policy, Step};
use crate::job::route::Limits;
use crate::job::run_outcome::RunOutcome;
use crate::job::stop::StopPlan;
use crate::ports::clock::Clock;
use crate::ports::{Queue, Telemetry};
use crate::work::Worker;

/// What a run is decided by.
#[derive(Debug, Clone)]
pub struct Settings {
    pub policy: Policy,
    pub polling: Polling,
    pub stop: StopPlan,
}

/// The world that a run acts on.
#[derive(Clone)]
pub struct World {
    pub queue: Arc<dyn Queue>,
    pub worker: Arc<dyn Worker>,
    pub telemetry: Arc<dyn Telemetry>,
    pub clock: Clock,
    /// Who wants to know whether the actors live finds them there.
    pub vitals: Vitals,
}

/// So many runs side by side in one pod. They share the world, and together they receive `--max-messages`; each is
/// stopped within the same budget, all at the same time.
pub async fn run_side_by_side(
    world: World,
    settings: Settings,
    concurrency: usize,
    stop: CancellationToken,
) -> RunOutcome {
    if stop.is_cancelled() {
        // Nobody wants a message any more: none is asked for.
        return RunOutcome::Finished;
    }
    let left = may_be_received(&settings);
    let runs =
        (0..concurrency).map(|_| run_of(world.clone(), settings.clone(), left.clone(), stop.clone().cancelled_owned()));
    let mut runs: JoinSet<RunOutcome> = runs.collect();
    let mut outcome = RunOutcome::Finished;
    while let Some(ended) = runs.join_next().await {
        outcome = outcome.and_then(ended.unwrap_or(RunOutcome::SupervisorDied));
    }
    outcome
}

/// One pod's run, from its first request for a message to its last word. `stop` is a request to stop in order.
pub async fn run(world: World, settings: Settings, stop: impl Future<Output = ()> + Send + 'static) -> RunOutcome {
    let left = may_be_received(&settings);
    run_of(world, settings, left, stop).await
}

fn may_be_received(settings: &Settings) -> Arc<Semaphore> {
    let most = usize::try_from(settings.policy.max_messages).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)))
}

async fn run_of(
    world: World,
    settings: Settings,
    left: Arc<Semaphore>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> RunOutcome {
    let (done, outcome) = oneshot::channel();
    let vitals = world.vitals.clone();
    let supervisor = Supervisor { world, settings, left };
    let Ok((supervisor, ended)) = Actor::spawn(None, supervisor, done).await else {
        return RunOutcome::SupervisorDied;
    };
    vitals.add(supervisor.clone());
    let _alive = Alive { supervisor: supervisor.clone(), vitals };
    let _stopper = AbortOnDropHandle::new(tokio::spawn(async move {
        stop.await;
        // A run that is over has nothing to stop.
        let _ = supervisor.cast(Event::StopRequested.into());
    }));
    let outcome = outcome.await.unwrap_or(RunOutcome::SupervisorDied);
    let _ = ended.await;
    outcome
}

/// A run that is dropped ends at once, as a pod that is KILLed does: nothing of it lives on.
struct Alive {
    supervisor: ActorRef<Message>,
    vitals: Vitals,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.vitals.remove(&self.supervisor);
        for hand in self.supervisor.get_children() {
            hand.kill();
        }
        self.supervisor.kill();
    }
}

/// What a supervisor hears.
#[derive(Debug)]
pub(super) enum Message {
    Happened(Event),
    /// Do all hands live?
    AreYouWell(RpcReplyPort<bool>),
}

impl From<Event> for Message {
    fn from(event: Event) -> Self {
        Self::Happened(event)
    }
}

/// The way back, which ractor wants for a [`ractor::DerivedActorRef`].
impl TryFrom<Message> for Event {
    type Error = Message;

    fn try_from(message: Message) -> Result<Self, Message> {
        match message {
            Message::Happened(event) => Ok(event),
            Message::AreYouWell(_) => Err(message),
        }
    }
}

struct Supervisor {
    world: World,
    settings: Settings,
    /// A permit for each message that may be received, by all runs of the pod together.
    left: Arc<Semaphore>,
}

struct State {
    job: Option<Job>,
    /// Of the message in hand.
    limits: Limits,
    hands: Hands,
    /// Tells that the current limit is over; at most one runs.
    limit: Option<AbortOnDropHandle<()>>,
    done: Option<oneshot::Sender<RunOutcome>>,
}

struct Hands {
    receiver: ActorRef<receiver::Message>,
    heartbeat: ActorRef<heartbeat::Message>,
    processor: ActorRef<processor::Message>,
    reporter: ActorRef<reporter::Message>,
}

impl Hands {
    fn live(&self) -> bool {
        let hands =
            [self.receiver.get_cell(), self.heartbeat.get_cell(), self.processor.get_cell(), self.reporter.get_cell()];
        hands.iter().all(|hand| hand.get_status() < ActorStatus::Stopping)
    }

    fn role(&self, id: ActorId) -> Option<Role> {
        [
            (self.receiver.get_id(), Role::Receiver),
            (self.heartbeat.get_id(), Role::VisibilityHeartbeat),
            (self.processor.get_id(), Role::Processor),
            (self.reporter.get_id(), Role::Reporter),
        ]
        .into_iter()
        .find_map(|(hand, role)| (hand == id).then_some(role))
    }
}

impl Actor for Supervisor {
    type Msg = Message;
    type State = State;
    type Arguments = oneshot::Sender<RunOutcome>;

    async fn pre_start(&self, me: ActorRef<Message>, done: Self::Arguments) -> Result<State, ActorProcessingErr> {
        let World { queue, worker, telemetry, clock, .. } = self.world.clone();
        let Settings { ref policy, polling, stop } = self.settings;
        let visibility = policy.limits.visibility;
        let cell = me.get_cell();
        let (reporter, _) =
            Actor::spawn_linked(None, Reporter { telemetry: telemetry.clone() }, (), cell.clone()).await?;
        let heartbeat = VisibilityHeartbeat {
            queue: queue.clone(),
            clock,
            supervisor: me.get_derived(),
            telemetry: telemetry.clone(),
            received_for: visibility,
            stop,
        };
        let (heartbeat, _) = Actor::spawn_linked(None, heartbeat, (), cell.clone()).await?;
        let (processor, _) =
            Actor::spawn_linked(None, Processor { worker, supervisor: me.get_derived() }, (), cell.clone()).await?;
        let receiver = Receiver {
            queue,
            clock,
            supervisor: me.get_derived(),
            telemetry,
            visibility,
            polling,
            left: self.left.clone(),
        };
        let (receiver, _) = Actor::spawn_linked(None, receiver, (), cell).await?;

        let mut state = State {
            job: None,
            limits: policy.limits.clone(),
            hands: Hands { receiver, heartbeat, processor, reporter },
            limit: None,
            done: Some(done),
        };
        self.carry_out(&me, &mut state, Job::start(policy.clone())).await;
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Happened(event) => self.happened(&me, event, state).await,
            Message::AreYouWell(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(state.hands.live());
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (died, why) = match event {
            SupervisionEvent::ActorTerminated(cell, _, why) => (cell, why.unwrap_or_default()),
            SupervisionEvent::ActorFailed(cell, why) => (cell, why.to_string()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        let role = state.hands.role(died.get_id());
        // Once the sender is taken, the hands are being stopped.
        if let Some(role) = role.filter(|_| state.done.is_some()) {
            error!(actor = %role, error = why, "an actor died: this is a bug in leasehold");
            self.happened(&me, Event::ActorDied(role), state).await;
        }
        Ok(())
    }
}

impl Supervisor {
    async fn happened(&self, me: &ActorRef<Message>, event: Event, state: &mut State) {
        let job = state.job.take().expect("a step gives a job back");
        debug!(phase = job.phase(), ?event);
        let step = job.step(self.world.clock.now(), event);
        self.carry_out(me, state, step).await;
    }

    async fn carry_out(&self, me: &ActorRef<Message>, state: &mut State, step: Step) {
        state.job = Some(step.job);
        for effect in step.effects {
            let hands = &state.hands;
            let heard = match effect {
                Effect::Poll => {
                    // The limits of a message end with it.
                    state.limit = None;
                    hands.receiver.cast(receiver::Message::Poll).is_ok()
                }
                Effect::StopPolling => hands.receiver.cast(receiver::Message::Finish).is_ok(),
                Effect::Hold(hold) => {
                    state.limits = hold.limits.clone();
                    hands.heartbeat.cast(heartbeat::Message::Hold(hold)).is_ok()
                }
                Effect::Process(work) => hands.processor.cast(processor::Message::Process(work)).is_ok(),
                Effect::Halt => hands.processor.cast(processor::Message::Halt).is_ok(),
                Effect::AbortPublish => hands.processor.cast(processor::Message::AbortPublish).is_ok(),
                Effect::Settle(verdict) => hands.heartbeat.cast(heartbeat::Message::Settle(verdict)).is_ok(),
                Effect::Withdraw => hands.heartbeat.cast(heartbeat::Message::Withdraw).is_ok(),
                Effect::Report(report) => hands.reporter.cast(reporter::Message::Tell(report)).is_ok(),
                Effect::Await(limit) => {
                    state.limit = Some(self.tell_when_over(me, limit, &state.limits));
                    true
                }
                Effect::Shorten(left) => {
                    state.limit = Some(tell_after(me, left, Limit::Work));
                    true
                }
                Effect::Leave(outcome) => {
                    state.limit = None;
                    self.stop_hands(hands).await;
                    if let Some(done) = state.done.take() {
                        let _ = done.send(outcome);
                    }
                    me.stop(None);
                    true
                }
            };
            if !heard {
                // It is dead, and its death is an event of its own.
                debug!("an actor that is gone was told something");
            }
        }
    }

    fn tell_when_over(&self, me: &ActorRef<Message>, limit: Limit, limits: &Limits) -> AbortOnDropHandle<()> {
        let Settings { polling, stop, .. } = &self.settings;
        let length = match limit {
            Limit::Work => limits.max_duration,
            Limit::Halt => stop.halt(limits.stop_grace),
            Limit::Settle => stop.settle(),
            Limit::LastPoll => stop.last_poll(polling.longest_poll),
        };
        tell_after(me, length, limit)
    }

    /// In order, each within its limit: a hand that does not end by then is killed.
    async fn stop_hands(&self, hands: &Hands) {
        let order: [ActorCell; 3] = [
            hands.receiver.get_cell(),  // nothing new comes in
            hands.processor.get_cell(), // the command is gone
            hands.heartbeat.get_cell(), // no call is made any more
        ];
        for hand in order {
            if hand.stop_and_wait(None, Some(self.settings.stop.actor())).await.is_err() {
                hand.kill();
            }
        }
        // The last word is said.
        let reporter = hands.reporter.get_cell();
        if reporter.drain_and_wait(Some(self.settings.stop.report())).await.is_err() {
            reporter.kill();
        }
    }
}

fn tell_after(me: &ActorRef<Message>, length: Duration, limit: Limit) -> AbortOnDropHandle<()> {
    let me = me.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::time::sleep(length).await;
        let _ = me.cast(Event::Overdue(limit).into());
    }))
}
