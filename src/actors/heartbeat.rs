//! 4 Held: extends the message's visibility while the work runs; then deletes the message or lets it go.
//!
//! It is the one owner of the receipt handle: every call that takes it is made here, one after another.
//! So a late beat cannot undo a release, none is in flight when a release or a delete is sent, and while a
//! delete has to be retried the same hand keeps the lease alive.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, DerivedActorRef};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::{pauses, tell_when_done};
use crate::job::delivery::Received;
use crate::job::lease::Lease;
use crate::job::lifecycle::{Event, NotDeleted};
use crate::job::report::{Delete, Extension, Noted};
use crate::job::route::Limits;
use crate::job::verdict::{Completed, Release, Return, Role, Settlement, Verdict};
use crate::ports::clock::Clock;
use crate::ports::{DeleteError, Queue, Telemetry, VisibilityError};

#[derive(Debug)]
pub enum Message {
    Hold(Box<Received>, Limits),
    Settle(Verdict),
    /// Send no delete from now on.
    Withdraw,
}

#[derive(Clone)]
pub struct VisibilityHeartbeat {
    pub queue: Arc<dyn Queue>,
    pub clock: Clock,
    pub supervisor: DerivedActorRef<Event>,
    pub telemetry: Arc<dyn Telemetry>,
    /// For how long a receive hides a message.
    pub received_for: Duration,
    /// How long a stop may take after the command's end.
    pub reserve: Duration,
}

#[derive(Default)]
pub struct State {
    held: Option<Held>,
}

struct Held {
    verdicts: mpsc::UnboundedSender<Verdict>,
    withdrawn: CancellationToken,
    _keeper: AbortOnDropHandle<()>,
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
            Message::Hold(received, limits) => {
                let (verdicts, verdicts_in) = mpsc::unbounded_channel();
                let withdrawn = CancellationToken::new();
                let lease = Lease::taken(limits.strategy, self.received_for, received.asked_at);
                let lease = lease.extended_by(limits.visibility);
                let keeper = Keeper {
                    hand: self.clone(),
                    received: *received,
                    lease,
                    visibility: limits.visibility.min(self.received_for),
                    halt_by: Some(lease.halt_by(limits.stop_grace + self.reserve)),
                    withdrawn: withdrawn.clone(),
                };
                let keeper =
                    tell_when_done(self.supervisor.clone(), Role::VisibilityHeartbeat, keeper.keep(verdicts_in));
                state.held = Some(Held { verdicts, withdrawn, _keeper: keeper });
            }
            Message::Settle(verdict) => {
                let held = state.held.as_ref().expect("the core settles only what it had held");
                // A keeper that is gone has told its death: the core knows.
                let _ = held.verdicts.send(verdict);
            }
            Message::Withdraw => {
                if let Some(held) = &state.held {
                    held.withdrawn.cancel();
                }
            }
        }
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.held = None;
        Ok(())
    }
}

/// Holds one message until it is settled.
struct Keeper {
    hand: VisibilityHeartbeat,
    received: Received,
    lease: Lease,
    /// The least that the lease is long when it is new.
    visibility: Duration,
    /// When to say that SQS's ceiling is near; `None` once that was said.
    halt_by: Option<Duration>,
    withdrawn: CancellationToken,
}

impl Keeper {
    async fn keep(mut self, mut verdicts: mpsc::UnboundedReceiver<Verdict>) -> Event {
        self.report_lease();
        loop {
            let verdict = self.beat_until_judged(&mut verdicts).await;
            self.note(Noted::LeaseLeft(self.lease.left(self.hand.clock.now())));
            match verdict {
                Verdict::Keep(why, release) => {
                    return Event::Settled(Settlement::Kept(why, self.release(release).await));
                }
                Verdict::Delete(completed) => match self.delete(&completed).await {
                    Ok(()) => return Event::Settled(Settlement::Deleted(completed.why())),
                    // What becomes of it then is for the core to say.
                    Err(not_deleted) => self.tell(Event::NotDeleted(not_deleted)),
                },
            }
        }
    }

    /// Beats until there is a verdict.
    async fn beat_until_judged(&mut self, verdicts: &mut mpsc::UnboundedReceiver<Verdict>) -> Verdict {
        let mut beats = Beats::default();
        loop {
            let Some(beat_at) = beats.next_at(&self.lease) else {
                return judged(verdicts).await;
            };
            let halt_by = self.halt_by;
            tokio::select! {
                // A verdict first: a beat that is not needed any more is not sent.
                biased;
                verdict = judged(verdicts) => return verdict,
                () = self.hand.clock.sleep_until(halt_by.unwrap_or_default()), if halt_by.is_some() => self.exhausted(),
                () = self.hand.clock.sleep_until(beat_at) => self.beat(&mut beats).await,
            }
        }
    }

    /// One beat. An error that may pass is retried while the lease lasts.
    async fn beat(&mut self, beats: &mut Beats) {
        let asked_at = self.hand.clock.now();
        if !self.lease.is_held(asked_at) {
            return self.lose("it ended before it was extended".to_owned());
        }
        let Some(by) = self.lease.extension(asked_at) else {
            self.lease = self.lease.without_beats();
            return beats.succeeded();
        };
        match self.change_visibility(by).await {
            Ok(()) if self.lease.is_held(self.hand.clock.now()) => {
                debug!(message_id = %self.received.delivery.message_id, visibility_s = by.as_secs(), "lease extended");
                self.lease = self.lease.extended(asked_at, by);
                self.note(Noted::Extension(Extension::Extended));
                self.report_lease();
                beats.succeeded();
            }
            // Somebody else may have received the message in between; this answer does not tell.
            Ok(()) => self.lose("the extension was answered after the lease had ended".to_owned()),
            Err(VisibilityError::NotInFlight(why)) => self.lose(why),
            Err(VisibilityError::AtCeiling(_)) => {
                self.note(Noted::Extension(Extension::AtCeiling));
                self.lease = self.lease.without_beats();
                beats.succeeded();
                self.exhausted();
            }
            Err(VisibilityError::Transient(why) | VisibilityError::Unclear(why)) => {
                self.note(Noted::Extension(Extension::Failed));
                let now = self.hand.clock.now();
                beats.failed(now, self.visibility / 6);
                let lease_left_s = self.lease.left(now).as_secs_f64();
                warn!(message_id = %self.received.delivery.message_id, error = why, lease_left_s, "extending the lease failed and will be retried");
            }
        }
    }

    fn lose(&mut self, why: String) {
        self.note(Noted::Extension(Extension::LeaseLost));
        self.lease = self.lease.lost();
        self.tell(Event::LeaseLost(why));
    }

    fn exhausted(&mut self) {
        self.halt_by = None;
        self.tell(Event::LeaseExhausted);
    }

    /// Deletes, and beats between the tries. Gives up after as long as one lease.
    async fn delete(&mut self, completed: &Completed) -> Result<(), NotDeleted> {
        let VisibilityHeartbeat { queue, clock, .. } = self.hand.clone();
        let give_up_at = clock.now() + self.visibility;
        let mut pause = pauses(FIRST_PAUSE, self.visibility / 3);
        let mut beats = Beats::default();
        loop {
            if self.withdrawn.is_cancelled() {
                self.note(Noted::Delete(Delete::Withdrawn));
                return Err(NotDeleted::Withdrawn);
            }
            let Some(permit) = completed.permit(&self.lease, clock.now()) else {
                self.note(Noted::Delete(Delete::LeaseLost));
                return Err(NotDeleted::LeaseLost);
            };
            let why = match tokio::time::timeout(self.try_limit(), queue.delete(permit)).await {
                Ok(Ok(())) => {
                    self.note(Noted::Delete(Delete::Deleted));
                    return Ok(());
                }
                Ok(Err(DeleteError::Refused(why))) => {
                    self.note(Noted::Delete(Delete::Refused));
                    warn!(message_id = %self.received.delivery.message_id, error = why, "the queue refused the delete: the message will come back");
                    self.lease = self.lease.lost();
                    return Err(NotDeleted::LeaseLost);
                }
                Ok(Err(DeleteError::Transient(why))) => why,
                Err(_) => format!("no answer within {:?}", self.try_limit()),
            };
            self.note(Noted::Delete(Delete::Failed));
            if clock.now() >= give_up_at {
                return Err(NotDeleted::GaveUp(why));
            }
            warn!(message_id = %self.received.delivery.message_id, error = why, "the delete failed and will be retried");
            let retry_at = clock.now() + pause.next().unwrap_or(FIRST_PAUSE);
            while let Some(beat_at) = beats.next_at(&self.lease) {
                tokio::select! {
                    biased;
                    () = self.withdrawn.cancelled() => break,
                    () = clock.sleep_until(retry_at) => break,
                    () = clock.sleep_until(beat_at) => self.beat(&mut beats).await,
                }
            }
        }
    }

    /// Releases the message. What cannot be released runs out by itself; and so does what may have been released, because a
    /// second release would act on the pod that received the message after the first.
    async fn release(&mut self, release: Release) -> Return {
        let Release::After(delay) = release else {
            return self.runs_out();
        };
        let mut pause = pauses(FIRST_PAUSE, FIRST_PAUSE * 8);
        let give_up_at = self.hand.clock.now() + RELEASE_LIMIT;
        loop {
            let now = self.hand.clock.now();
            if !self.lease.is_held(now) {
                // It may be somebody else's, and hiding it from them is not ours to do.
                return Return::Unknown;
            }
            let delay = self.lease.release_delay(delay, now);
            let why = match self.change_visibility(delay).await {
                Ok(()) => return Return::After(delay),
                Err(VisibilityError::NotInFlight(_)) => return Return::Unknown,
                Err(VisibilityError::AtCeiling(_)) => return self.runs_out(),
                Err(VisibilityError::Transient(why)) => why,
                Err(VisibilityError::Unclear(why)) => {
                    warn!(message_id = %self.received.delivery.message_id, error = why, "the release was not answered: the message is visible again when its visibility timeout ends, or sooner");
                    return self.within(delay);
                }
            };
            if self.hand.clock.now() >= give_up_at {
                warn!(message_id = %self.received.delivery.message_id, error = why, "the message could not be released: its visibility timeout has to run out");
                return self.runs_out();
            }
            tokio::time::sleep(pause.next().unwrap_or(FIRST_PAUSE)).await;
        }
    }

    fn runs_out(&self) -> Return {
        let now = self.hand.clock.now();
        if self.lease.is_held(now) { Return::Within(self.lease.left(now)) } else { Return::Unknown }
    }

    /// After the lease, or after `delay` if the queue was asked for that and may have heard it.
    fn within(&self, delay: Duration) -> Return {
        Return::Within(self.lease.left(self.hand.clock.now()).max(delay))
    }

    /// Not waited for past the lease's end: by then the answer tells nothing.
    async fn change_visibility(&self, visibility: Duration) -> Result<(), VisibilityError> {
        let limit = self.try_limit().min(self.lease.left(self.hand.clock.now()));
        let call = self.hand.queue.change_visibility(&self.received.delivery.receipt, visibility);
        tokio::time::timeout(limit, call)
            .await
            .unwrap_or_else(|_| Err(VisibilityError::Unclear(format!("no answer within {limit:?}"))))
    }

    /// No single try may use up the time of the next beat.
    fn try_limit(&self) -> Duration {
        LONGEST_TRY.min(self.visibility / 3)
    }

    fn note(&self, noted: Noted) {
        self.hand.telemetry.note(noted);
    }

    fn report_lease(&self) {
        if let Some(until) = self.lease.expires_at() {
            self.tell(Event::Held(until));
        }
    }

    fn tell(&self, event: Event) {
        // The supervisor outlives its hands; if it is gone there is nobody to tell.
        let _ = self.hand.supervisor.cast(event);
    }
}

/// When to beat next: as the lease says, or sooner after a failure.
#[derive(Default)]
struct Beats {
    retry: Option<Retry>,
}

struct Retry {
    at: Duration,
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
}

impl Beats {
    /// On the run's clock; `None` if the lease is lost. Its end is something to wake for too.
    fn next_at(&self, lease: &Lease) -> Option<Duration> {
        let next_at = self.retry.as_ref().map(|retry| retry.at).or(lease.next_beat_at());
        lease.expires_at().map(|expires_at| next_at.unwrap_or(expires_at).min(expires_at))
    }

    fn failed(&mut self, now: Duration, longest: Duration) {
        let retry = self.retry.get_or_insert_with(|| Retry { at: now, pauses: Box::new(pauses(FIRST_PAUSE, longest)) });
        retry.at = now + retry.pauses.next().unwrap_or(longest);
    }

    fn succeeded(&mut self) {
        self.retry = None;
    }
}

/// The next verdict. Waits for ever if there can be none any more: then this task is about to be dropped.
async fn judged(verdicts: &mut mpsc::UnboundedReceiver<Verdict>) -> Verdict {
    match verdicts.recv().await {
        Some(verdict) => verdict,
        None => std::future::pending().await,
    }
}

/// The longest a single call may take.
const LONGEST_TRY: Duration = Duration::from_secs(5);

/// The pause after the first failed try.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// How long a release is retried; what is left then runs out by itself.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);
