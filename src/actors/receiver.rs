//! 1 Received: asks the queue for one message at a time.

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
    /// Ask until there is a message, or until there is none.
    Poll,
    /// Send no further request; the answer to the last one is still told.
    Finish,
}

#[derive(Clone)]
pub struct Receiver {
    pub queue: Arc<dyn Queue>,
    pub clock: Clock,
    pub supervisor: DerivedActorRef<Event>,
    pub telemetry: Arc<dyn Telemetry>,
    /// How long the message is hidden at first.
    pub visibility: Duration,
    pub polling: Polling,
    /// A permit for each message that may be received.
    pub remaining: Arc<Semaphore>,
}

#[derive(Default)]
pub struct State {
    finish: CancellationToken,
    /// Once it is known.
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
                state.poll = Some(report_when_done(self.supervisor.clone(), Role::Receiver, poll));
                if state.reading_redrive.is_none() {
                    let (queue, known, supervisor) =
                        (self.queue.clone(), redrive, self.supervisor.clone());
                    let has_received = state.has_received.clone();
                    state.reading_redrive =
                        Some(AbortOnDropHandle::new(tokio::spawn(async move {
                            // Beside a long poll, so that it delays no message. A pod that finds
                            // the queue empty does without.
                            let _ =
                                tokio::time::timeout(REDRIVE_DELAY, has_received.cancelled()).await;
                            let redrive = read_redrive(queue).await;
                            let _ = known.set(redrive.clone());
                            // For the message that did not wait for it.
                            let _ = supervisor.cast(Event::RedriveKnown(redrive));
                        })));
                }
            }
            Message::Finish => state.finish.cancel(),
        }
        Ok(())
    }

    /// A request that is out is awaited, never cancelled: SQS may be handing a message to it.
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

/// Asks until there is a message, the wait is over, or the errors do not end.
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
                // What was asked for counts, not what passed: a server that answers early is not
                // asked in a hot loop.
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

/// Asks until there is an answer: a last attempt that is not known as one helps nobody.
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

/// With fewer, a deployment and a spot reclaim take an innocent message to the dead-letter queue.
const FEWEST_RECEIVES: u32 = 3;

/// A request for a message that is not answered by then is a long poll.
const REDRIVE_DELAY: Duration = Duration::from_millis(250);

/// A message may wait this long for its redrive policy: well inside a third of the shortest lease.
const REDRIVE_PATIENCE: Duration = Duration::from_millis(800);

/// For one answer.
const REDRIVE_LIMIT: Duration = Duration::from_secs(10);
