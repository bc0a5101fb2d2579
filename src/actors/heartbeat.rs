//! Carries out the actions of [`job::keeper`](crate::job::keeper): extends the message's visibility
//! while the work runs, then deletes or releases the message.
//!
//! It owns the receipt handle, and makes every call with it, one after another. Only the combined
//! requests of concurrent runs have a copy (`adapters::batches`), while such a call waits.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, DerivedActorRef};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::report_when_done;
use crate::job::delivery::{MessageId, ReceiptHandle};
use crate::job::keep_reason::Role;
use crate::job::keeper::{Answer, Call, Input, Keeper, Next, Phase};
use crate::job::lease::Lease;
use crate::job::lifecycle::{Event, Hold};
use crate::job::stop::StopPlan;
use crate::job::verdict::Verdict;
use crate::ports::clock::Clock;
use crate::ports::{DeleteError, Queue, Telemetry, VisibilityError};

#[derive(Debug)]
pub enum Message {
    Hold(Box<Hold>),
    Settle(Verdict),
    /// Send no more deletes.
    Withdraw,
}

#[derive(Clone)]
pub struct VisibilityHeartbeat {
    pub queue: Arc<dyn Queue>,
    pub clock: Clock,
    pub supervisor: DerivedActorRef<Event>,
    pub telemetry: Arc<dyn Telemetry>,
    /// The visibility timeout of a receive.
    pub receive_visibility: Duration,
    pub stop: StopPlan,
}

#[derive(Default)]
pub struct State {
    held: Option<Held>,
}

struct Held {
    inputs: mpsc::UnboundedSender<Input>,
    _holding: AbortOnDropHandle<()>,
}

impl Held {
    fn send(&self, input: Input) {
        // Fails only if the task has died, which it has reported to the core.
        let _ = self.inputs.send(input);
    }
}

impl Actor for VisibilityHeartbeat {
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
            Message::Hold(hold) => state.held = Some(self.hold(*hold)),
            Message::Settle(verdict) => {
                let held = state.held.as_ref().expect("the core settles only a held message");
                held.send(Input::Verdict(verdict));
            }
            Message::Withdraw => {
                if let Some(held) = &state.held {
                    held.send(Input::Withdraw);
                }
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<Message>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.held = None;
        Ok(())
    }
}

impl VisibilityHeartbeat {
    fn hold(&self, Hold { delivery, receipt, asked_at, limits }: Hold) -> Held {
        let lease = Lease::taken(limits.strategy, self.receive_visibility, asked_at)
            .extended_by(limits.visibility)
            .with_ceiling(limits.ceiling);
        let visibility = limits.visibility.min(self.receive_visibility);
        let message_id = delivery.message_id.clone();
        let keeper = Keeper::new(delivery, lease, visibility, self.stop.total(limits.stop_grace));
        let (inputs, inputs_in) = mpsc::unbounded_channel();
        let holding =
            Holding { actor: self.clone(), message_id, receipt, keeper, inputs: inputs_in };
        let holding = report_when_done(
            self.supervisor.clone(),
            Role::VisibilityHeartbeat,
            tokio::spawn(holding.until_settled()),
        );
        Held { inputs, _holding: holding }
    }
}

/// Holds one message until it is settled.
struct Holding {
    actor: VisibilityHeartbeat,
    message_id: MessageId,
    receipt: ReceiptHandle,
    keeper: Keeper,
    inputs: mpsc::UnboundedReceiver<Input>,
}

impl Holding {
    async fn until_settled(mut self) -> Event {
        let VisibilityHeartbeat { queue, clock, supervisor, telemetry, .. } = self.actor.clone();
        let queue = queue.as_ref();
        loop {
            // All inputs first, so that a stop comes before a delete.
            self.take_inputs(clock.now());
            let answer = match self.keeper.next(clock.now()) {
                Next::Extend { by, limit } => {
                    answered(limit, queue.change_visibility(&self.receipt, by)).await
                }
                Next::Release { delay, limit } => {
                    answered(limit, queue.release(&self.receipt, delay)).await
                }
                Next::Delete { permit, limit } => {
                    answered(limit, queue.delete(&self.receipt, permit)).await
                }
                Next::Report(event) => {
                    // Fails only if the supervisor has ended, which outlives its actors.
                    let _ = supervisor.cast(event);
                    continue;
                }
                Next::Observe(observation) => {
                    telemetry.record(observation);
                    continue;
                }
                Next::Settled(settlement) => return Event::Settled(settlement),
                Next::Wait { until } => {
                    tokio::select! {
                        biased;
                        Some(input) = self.inputs.recv() => self.keeper.handle(clock.now(), input),
                        () = clock.sleep_until(until.unwrap_or_default()), if until.is_some() => {}
                        // The sender is gone: this task is about to be dropped.
                        else => std::future::pending().await,
                    }
                    continue;
                }
            };
            // A delete that failed is not repeated if a stop came meanwhile.
            self.take_inputs(clock.now());
            let call = self.keeper.state().call.expect("the answer is that of a call");
            self.keeper.handle(clock.now(), Input::Answered(answer.clone()));
            self.log(call, &answer);
        }
    }

    fn take_inputs(&mut self, now: Duration) {
        while let Ok(input) = self.inputs.try_recv() {
            self.keeper.handle(now, input);
        }
    }

    /// Logs the result of a call, unless the core reports it.
    fn log(&self, call: Call, answer: &Answer) {
        let (message_id, state) = (&self.message_id, self.keeper.state());
        let lease_remaining_s = state.lease.remaining(self.actor.clock.now()).as_secs_f64();
        let is_deleting = matches!(state.phase, Phase::Deleting { .. });
        match (call, answer) {
            (Call::Extend { .. }, Answer::Failed(error) | Answer::Unclear(error)) => {
                warn!(%message_id, error, lease_remaining_s, "extending the lease failed and will be retried");
            }
            (Call::Extend { .. }, Answer::Accepted) if state.lease.expires_at().is_some() => {
                debug!(%message_id, lease_remaining_s, "lease extended");
            }
            (Call::Delete, Answer::NotInFlight(error)) => {
                warn!(%message_id, error, "the queue refused the delete: the message will be delivered again");
            }
            (Call::Delete, Answer::Failed(error) | Answer::Unclear(error))
                if is_deleting && state.withdrawn =>
            {
                warn!(%message_id, error, "the delete failed and is not retried during a stop");
            }
            (Call::Delete, Answer::Failed(error) | Answer::Unclear(error)) if is_deleting => {
                warn!(%message_id, error, "the delete failed and will be retried");
            }
            (Call::Release(_), Answer::Unclear(error)) => {
                warn!(%message_id, error, "no answer to the release: the message is visible again when its visibility timeout ends, or sooner");
            }
            (Call::Release(_), Answer::Failed(error))
                if matches!(state.phase, Phase::Settled(_)) =>
            {
                warn!(%message_id, error, "the message could not be released: it is visible again when its visibility timeout ends");
            }
            (Call::Extend { .. } | Call::Delete | Call::Release(_), _) => {}
        }
    }
}

async fn answered<E: Into<Answer>>(
    limit: Duration,
    call: impl Future<Output = Result<(), E>>,
) -> Answer {
    match timeout(limit, call).await {
        Ok(Ok(())) => Answer::Accepted,
        Ok(Err(error)) => error.into(),
        Err(_) => Answer::Unclear(format!("no answer within {limit:?}")),
    }
}

impl From<VisibilityError> for Answer {
    fn from(error: VisibilityError) -> Self {
        match error {
            VisibilityError::NotInFlight(why) => Self::NotInFlight(why),
            VisibilityError::AtCeiling(why) => Self::AtCeiling(why),
            VisibilityError::Transient(why) => Self::Failed(why),
            VisibilityError::Unclear(why) => Self::Unclear(why),
        }
    }
}

impl From<DeleteError> for Answer {
    fn from(error: DeleteError) -> Self {
        match error {
            DeleteError::Refused(why) => Self::NotInFlight(why),
            DeleteError::Transient(why) => Self::Failed(why),
            DeleteError::NotSent(why) => Self::NotSent(why.to_owned()),
        }
    }
}
