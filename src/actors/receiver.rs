//! Receives one message at a time from the queue.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, DerivedActorRef};
use tokio::sync::{Semaphore, SetOnce};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::{backoff, report_when_done};
use crate::job::delivery::{Received, Redrive};
use crate::job::keep_reason::Role;
use crate::job::lifecycle::Event;
use crate::job::report::Observation;
use crate::job::run_outcome::ReceiveFailure;
use crate::job::settings::Polling;
use crate::ports::clock::Clock;
use crate::ports::{Queue, ReceiveError, Telemetry};

#[derive(Debug)]
pub enum Message {
    /// Poll until a message comes, or until the queue counts as empty.
    Poll,
    /// Send no further request; still report the answer to the last one.
    Finish,
}

#[derive(Clone)]
pub struct Receiver {
    pub queue: Arc<dyn Queue>,
    pub clock: Clock,
    pub supervisor: DerivedActorRef<Event>,
    pub telemetry: Arc<dyn Telemetry>,
    /// The visibility timeout of a receive.
    pub visibility: Duration,
    pub polling: Polling,
    /// A permit for each message that may be received.
    pub remaining: Arc<Semaphore>,
}

#[derive(Default)]
pub struct State {
    finish: CancellationToken,
    /// Set once it is known.
    redrive: Arc<SetOnce<Redrive>>,
    /// Cancelled by the first message.
    has_received: CancellationToken,
    poll: Option<AbortOnDropHandle<()>>,
    reading_redrive: Option<AbortOnDropHandle<()>>,
}

impl Actor for Receiver {
    type Msg = Message;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<State, ActorProcessingErr> {
        Ok(State::default())
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Poll => {
                let redrive = state.redrive.clone();
                let poll = poll(
                    self.clone(),
                    state.finish.clone(),
                    redrive.clone(),
                    state.has_received.clone(),
                );
                state.poll = Some(report_when_done(
                    self.supervisor.clone(),
                    Role::Receiver,
                    tokio::spawn(poll),
                ));
                if state.reading_redrive.is_none() {
                    let (queue, known, supervisor) =
                        (self.queue.clone(), redrive, self.supervisor.clone());
                    let has_received = state.has_received.clone();
                    state.reading_redrive =
                        Some(AbortOnDropHandle::new(tokio::spawn(async move {
                            // During a long poll, so that it delays no message. A pod that finds
                            // the queue empty does not need it.
                            let _ =
                                tokio::time::timeout(REDRIVE_DELAY, has_received.cancelled()).await;
                            let redrive = read_redrive(queue).await;
                            let _ = known.set(redrive.clone());
                            // For a message that was received before.
                            let _ = supervisor.cast(Event::RedriveKnown(redrive));
                        })));
                }
            }
            Message::Finish => state.finish.cancel(),
        }
        Ok(())
    }

    /// A request in flight is awaited, never cancelled: SQS may already have sent a message to it.
    async fn post_stop(
        &self,
        _: ActorRef<Message>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.finish.cancel();
        state.reading_redrive = None;
        if let Some(poll) = state.poll.take() {
            let _ = poll.await;
        }
        Ok(())
    }
}

/// Polls until a message comes, the wait ends, or errors persist.
async fn poll(
    receiver: Receiver,
    finish: CancellationToken,
    redrive: Arc<SetOnce<Redrive>>,
    has_received: CancellationToken,
) -> Event {
    let Receiver { queue, clock, visibility, polling, telemetry, remaining: permits, .. } =
        receiver;
    let Ok(permit) = permits.try_acquire() else {
        return Event::QueueEmpty;
    };
    let mut remaining = polling.wait;
    let mut failing_since = None;
    let mut pause = backoff(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let asked_at = clock.now();
        let wait = remaining.min(polling.longest_poll);
        match queue.receive(wait, visibility).await {
            Ok(Some(delivery)) => {
                permit.forget();
                has_received.cancel();
                let received_at = clock.now();
                let redrive = tokio::time::timeout(REDRIVE_PATIENCE, redrive.wait()).await;
                let redrive = redrive.cloned().unwrap_or(Redrive::Unknown);
                return Event::Received(Box::new(Received {
                    delivery,
                    asked_at,
                    received_at,
                    redrive,
                }));
            }
            Ok(None) => {
                telemetry.record(Observation::ReceivedNothing);
                failing_since = None;
                // The requested time counts, not the elapsed time: a server that answers early must
                // not cause a hot loop.
                remaining = remaining.saturating_sub(wait);
                if remaining.is_zero() || finish.is_cancelled() {
                    return Event::QueueEmpty;
                }
            }
            Err(ReceiveError::Misconfigured(why)) => {
                return Event::ReceiveFailed(ReceiveFailure::Misconfigured(why));
            }
            Err(ReceiveError::Transient(why)) => {
                telemetry.record(Observation::ReceiveFailed);
                let failing_since = *failing_since.get_or_insert(asked_at);
                if clock.now().saturating_sub(failing_since) >= polling.give_up {
                    return Event::ReceiveFailed(ReceiveFailure::GaveUp(why));
                }
                let pause = pause.next().unwrap_or(LONGEST_PAUSE);
                warn!(
                    error = why,
                    retry_in_s = pause.as_secs_f64(),
                    "receiving failed and will be retried"
                );
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(pause) => {}
                    () = finish.cancelled() => return Event::QueueEmpty,
                }
            }
        }
    }
}

/// Retries until there is an answer: the last attempt before the dead-letter queue must be known as
/// such.
async fn read_redrive(queue: Arc<dyn Queue>) -> Redrive {
    let mut pause = backoff(FIRST_PAUSE, LONGEST_PAUSE);
    let redrive = loop {
        let answer = tokio::time::timeout(REDRIVE_LIMIT, queue.redrive()).await;
        let why = match answer {
            Ok(Ok(redrive)) => break redrive,
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {REDRIVE_LIMIT:?}"),
        };
        debug!(why, "reading the queue's RedrivePolicy failed and will be retried");
        tokio::time::sleep(pause.next().unwrap_or(LONGEST_PAUSE)).await;
    };
    match &redrive {
        Redrive::None => {
            warn!(
                "the queue has no dead-letter queue: a message that always fails is retried until it expires"
            );
        }
        Redrive::DeadLetter { max_receive_count, .. } if *max_receive_count < FEWEST_RECEIVES => {
            warn!(
                max_receive_count,
                "maxReceiveCount is low: every pod stop also uses up one receive"
            );
        }
        Redrive::DeadLetter { .. } | Redrive::Unknown => {}
    }
    redrive
}

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// With fewer, a deployment and a spot reclaim are enough to move a good message to the dead-letter
/// queue.
const FEWEST_RECEIVES: u32 = 3;

/// A receive request without an answer by then is a long poll.
const REDRIVE_DELAY: Duration = Duration::from_millis(250);

/// How long a message waits for the redrive policy: well below a third of the shortest lease.
const REDRIVE_PATIENCE: Duration = Duration::from_millis(800);

/// The time limit for one answer.
const REDRIVE_LIMIT: Duration = Duration::from_secs(10);
