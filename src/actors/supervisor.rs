//! Receives all events in one order; `job::lifecycle` decides what follows from them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ractor::rpc::CallResult;
use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, ActorStatus, RpcReplyPort,
    SupervisionEvent,
};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error};

use super::heartbeat::{self, VisibilityHeartbeat};
use super::processor::{self, Processor};
use super::receiver::{self, Receiver};
use super::reporter::{self, Reporter};
use crate::job::keep_reason::Role;
use crate::job::lifecycle::{Effect, Event, Job, Limit, Step};
use crate::job::route::Limits;
use crate::job::run_outcome::RunOutcome;
use crate::job::settings::Settings;
use crate::ports::clock::Clock;
use crate::ports::health::{Health, Ping};
use crate::ports::{Queue, Telemetry};
use crate::work::threads::WorkThreads;
use crate::work::workspaces::Workspaces;
use crate::work::{HALTED_REMOVAL, Worker};

/// The interfaces that a run uses.
#[derive(Clone)]
pub struct World {
    pub queue: Arc<dyn Queue>,
    pub worker: Arc<dyn Worker>,
    pub telemetry: Arc<dyn Telemetry>,
    pub clock: Clock,
    pub work_threads: WorkThreads,
    /// The supervisor registers here for health checks.
    pub health: Health,
}

/// Several concurrent runs in one pod. They share `world`, and together receive at most
/// `--max-messages`. A stop ends all of them at the same time, within the same limits.
pub async fn run_concurrently(
    world: World,
    settings: Settings,
    concurrency: usize,
    stop: CancellationToken,
) -> RunOutcome {
    if stop.is_cancelled() {
        // Request no message after a stop.
        return RunOutcome::Finished;
    }
    let remaining = message_permits(&settings);
    let runs = (0..concurrency).map(|_| {
        run_with_permits(
            world.clone(),
            settings.clone(),
            remaining.clone(),
            stop.clone().cancelled_owned(),
        )
    });
    let mut runs: JoinSet<RunOutcome> = runs.collect();
    let mut outcome = RunOutcome::Finished;
    while let Some(ended) = runs.join_next().await {
        outcome = outcome.and_then(ended.unwrap_or(RunOutcome::SupervisorDied));
    }
    outcome
}

/// One pod's run, from its first receive request to its final report. `stop` requests a graceful
/// shutdown.
pub async fn run(
    world: World,
    settings: Settings,
    stop: impl Future<Output = ()> + Send + 'static,
) -> RunOutcome {
    let remaining = message_permits(&settings);
    run_with_permits(world, settings, remaining, stop).await
}

fn message_permits(settings: &Settings) -> Arc<Semaphore> {
    let limit = usize::try_from(settings.policy.max_messages).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)))
}

async fn run_with_permits(
    world: World,
    settings: Settings,
    remaining: Arc<Semaphore>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> RunOutcome {
    let (done, outcome) = oneshot::channel();
    let workspaces = Workspaces::new(settings.policy.max_messages > 1, world.work_threads.clone());
    let health = world.health.clone();
    let supervisor = Supervisor { world, settings, remaining, workspaces: workspaces.clone() };
    let Ok((supervisor, ended)) = Actor::spawn(None, supervisor, done).await else {
        return RunOutcome::SupervisorDied;
    };
    let _registered = health.register(Arc::new(Alive(supervisor.clone())));
    let _alive = KillOnDrop(supervisor.clone());
    let stopper = AbortOnDropHandle::new(tokio::spawn(async move {
        stop.await;
        // Fails only if the run has ended already.
        let _ = supervisor.cast(Event::StopRequested.into());
    }));
    let outcome = outcome.await.unwrap_or(RunOutcome::SupervisorDied);
    let _ = ended.await;
    // A stop must not wait for the removal of a hundred thousand files.
    tokio::select! {
        () = workspaces.close() => {}
        _ = stopper => drop(timeout(HALTED_REMOVAL, workspaces.close()).await),
    }
    outcome
}

/// A dropped run ends immediately with all its actors, like a pod that is KILLed.
struct KillOnDrop(ActorRef<Message>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // The supervisor first: it would take the deaths of the others for a bug.
        let actors = self.0.get_children();
        self.0.kill();
        for actor in actors {
            actor.kill();
        }
    }
}

struct Alive(ActorRef<Message>);

#[async_trait]
impl Ping for Alive {
    async fn ping(&self) -> bool {
        matches!(self.0.call(Message::Ping, Some(PING_LIMIT)).await, Ok(CallResult::Success(true)))
    }
}

/// Short, because a supervisor's handlers return immediately.
const PING_LIMIT: Duration = Duration::from_secs(1);

/// A message to the supervisor.
#[derive(Debug)]
enum Message {
    Happened(Event),
    /// Are all actors alive?
    Ping(RpcReplyPort<bool>),
}

impl From<Event> for Message {
    fn from(event: Event) -> Self {
        Self::Happened(event)
    }
}

/// The reverse conversion, which ractor requires for a [`ractor::DerivedActorRef`].
impl TryFrom<Message> for Event {
    type Error = Message;

    fn try_from(message: Message) -> Result<Self, Message> {
        match message {
            Message::Happened(event) => Ok(event),
            Message::Ping(_) => Err(message),
        }
    }
}

struct Supervisor {
    world: World,
    settings: Settings,
    /// A permit for each message that may be received, by all runs of the pod together.
    remaining: Arc<Semaphore>,
    workspaces: Workspaces,
}

struct State {
    job: Option<Job>,
    /// The limits of the message in flight.
    limits: Limits,
    actors: Actors,
    /// The timer of the current limit; at most one runs.
    limit: Option<AbortOnDropHandle<()>>,
    done: Option<oneshot::Sender<RunOutcome>>,
}

struct Actors {
    receiver: ActorRef<receiver::Message>,
    heartbeat: ActorRef<heartbeat::Message>,
    processor: ActorRef<processor::Message>,
    reporter: ActorRef<reporter::Message>,
}

impl Actors {
    fn are_alive(&self) -> bool {
        let actors = [
            self.receiver.get_cell(),
            self.heartbeat.get_cell(),
            self.processor.get_cell(),
            self.reporter.get_cell(),
        ];
        actors.iter().all(|actor| actor.get_status() < ActorStatus::Stopping)
    }

    fn role(&self, id: ActorId) -> Option<Role> {
        [
            (self.receiver.get_id(), Role::Receiver),
            (self.heartbeat.get_id(), Role::VisibilityHeartbeat),
            (self.processor.get_id(), Role::Processor),
            (self.reporter.get_id(), Role::Reporter),
        ]
        .into_iter()
        .find_map(|(actor, role)| (actor == id).then_some(role))
    }
}

impl Actor for Supervisor {
    type Msg = Message;
    type State = State;
    type Arguments = oneshot::Sender<RunOutcome>;

    async fn pre_start(
        &self,
        me: ActorRef<Message>,
        done: Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let World { queue, worker, telemetry, clock, work_threads, .. } = self.world.clone();
        let Settings { ref policy, polling, stop } = self.settings;
        let visibility = policy.limits.visibility;
        let cell = me.get_cell();
        let (reporter, _) =
            Actor::spawn_linked(None, Reporter { telemetry: telemetry.clone() }, (), cell.clone())
                .await?;
        let heartbeat = VisibilityHeartbeat {
            queue: queue.clone(),
            clock,
            supervisor: me.get_derived(),
            telemetry: telemetry.clone(),
            receive_visibility: visibility,
            stop,
        };
        let (heartbeat, _) = Actor::spawn_linked(None, heartbeat, (), cell.clone()).await?;
        let processor = Processor {
            worker,
            supervisor: me.get_derived(),
            workspaces: self.workspaces.clone(),
            threads: work_threads,
            checkpoint_drop: stop.checkpoint_drop(),
        };
        let (processor, _) = Actor::spawn_linked(None, processor, (), cell.clone()).await?;
        let receiver = Receiver {
            queue,
            clock,
            supervisor: me.get_derived(),
            telemetry,
            visibility,
            polling,
            remaining: self.remaining.clone(),
        };
        let (receiver, _) = Actor::spawn_linked(None, receiver, (), cell).await?;

        let mut state = State {
            job: None,
            limits: policy.limits.clone(),
            actors: Actors { receiver, heartbeat, processor, reporter },
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
            Message::Ping(reply) => {
                // Fails only if the caller has stopped waiting.
                let _ = reply.send(state.actors.are_alive());
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
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {
                return Ok(());
            }
        };
        let role = state.actors.role(died.get_id());
        // Without the sender, the actors are being stopped.
        if let Some(role) = role.filter(|_| state.done.is_some()) {
            error!(actor = %role, error = why, "an actor died: this is a bug in leasehold");
            self.happened(&me, Event::ActorDied(role), state).await;
        }
        Ok(())
    }
}

impl Supervisor {
    async fn happened(&self, me: &ActorRef<Message>, event: Event, state: &mut State) {
        let job = state.job.take().expect("every step returns a job");
        debug!(phase = job.phase(), ?event);
        let step = job.step(self.world.clock.now(), event);
        self.carry_out(me, state, step).await;
    }

    async fn carry_out(&self, me: &ActorRef<Message>, state: &mut State, step: Step) {
        state.job = Some(step.job);
        for effect in step.effects {
            let actors = &state.actors;
            let delivered = match effect {
                Effect::Poll => {
                    // A message's limit ends with the message.
                    state.limit = None;
                    actors.receiver.cast(receiver::Message::Poll).is_ok()
                }
                Effect::StopPolling => actors.receiver.cast(receiver::Message::Finish).is_ok(),
                Effect::Hold(hold) => {
                    state.limits = hold.limits.clone();
                    actors.heartbeat.cast(heartbeat::Message::Hold(hold)).is_ok()
                }
                Effect::Process(work) => {
                    actors.processor.cast(processor::Message::Process(work)).is_ok()
                }
                Effect::Halt => actors.processor.cast(processor::Message::Halt).is_ok(),
                Effect::AbortPublish => {
                    actors.processor.cast(processor::Message::AbortPublish).is_ok()
                }
                Effect::Settle(verdict) => {
                    actors.heartbeat.cast(heartbeat::Message::Settle(verdict)).is_ok()
                }
                Effect::Withdraw => actors.heartbeat.cast(heartbeat::Message::Withdraw).is_ok(),
                Effect::DropCheckpoints(subject, task) => actors
                    .processor
                    .cast(processor::Message::DropCheckpoints(subject, task))
                    .is_ok(),
                Effect::Report(report) => {
                    actors.reporter.cast(reporter::Message::Report(report)).is_ok()
                }
                Effect::Await(limit) => {
                    state.limit = Some(self.start_limit(me, limit, &state.limits));
                    true
                }
                Effect::Shorten(remaining) => {
                    state.limit = Some(report_overdue_after(me, remaining, Limit::Work));
                    true
                }
                Effect::Suspend => {
                    state.limit = None;
                    true
                }
                Effect::EndRun(outcome) => {
                    state.limit = None;
                    self.stop_actors(actors).await;
                    if let Some(done) = state.done.take() {
                        let _ = done.send(outcome);
                    }
                    me.stop(None);
                    true
                }
            };
            if !delivered {
                // The actor is dead; its death is a separate event.
                debug!("a message to a dead actor was dropped");
            }
        }
    }

    fn start_limit(
        &self,
        me: &ActorRef<Message>,
        limit: Limit,
        limits: &Limits,
    ) -> AbortOnDropHandle<()> {
        let Settings { polling, stop, .. } = &self.settings;
        let length = match limit {
            Limit::Work => limits.max_duration,
            Limit::Halt => stop.halt(limits.stop_grace),
            Limit::Settle => stop.settle(),
            Limit::LastPoll => stop.last_poll(polling.longest_poll),
        };
        report_overdue_after(me, length, limit)
    }

    /// Stops the actors one after another, each within its limit: an actor that does not end by
    /// then is killed.
    async fn stop_actors(&self, actors: &Actors) {
        let (clock, plan) = (self.world.clock, self.settings.stop);
        let end = clock.now() + plan.end();
        let order: [(ActorCell, Duration); 3] = [
            (actors.receiver.get_cell(), plan.actor()), // no new message
            (actors.processor.get_cell(), plan.actor() + plan.checkpoint_drop()), // the command has ended
            (actors.heartbeat.get_cell(), plan.actor()),                          // no more calls
        ];
        for (actor, limit) in order {
            if actor.stop_and_wait(None, Some(limit)).await.is_err() {
                actor.kill();
            }
        }
        // The final report may run in parallel to the end of the others.
        let reporter = actors.reporter.get_cell();
        if reporter.drain_and_wait(Some(end.saturating_sub(clock.now()))).await.is_err() {
            reporter.kill();
        }
    }
}

fn report_overdue_after(
    me: &ActorRef<Message>,
    length: Duration,
    limit: Limit,
) -> AbortOnDropHandle<()> {
    let me = me.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::time::sleep(length).await;
        let _ = me.cast(Event::Overdue(limit).into());
    }))
}
