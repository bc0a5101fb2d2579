//! Messages that share one call of a function: each one joins a batch, and waits for its own answer.
//!
//! ```text
//! join ─► an open batch ── full, or the window has passed; and a call may begin ──► the call ──► an answer for each
//! leave ◄───────┘ a message that is given up
//! ```

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::ports::Activity;

/// How messages share calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// The most messages of a call.
    pub size: usize,
    /// How long a call waits for more messages.
    pub window: Duration,
    /// The most calls at the same time.
    pub calls: usize,
}

/// What a call does for one message.
pub trait Work: Send + 'static {
    type Answer: Send;

    /// Can one call work on both?
    fn goes_with(&self, other: &Self) -> bool;

    /// The call begins after this wait.
    fn has_waited(&mut self, time: Duration);
}

/// A message of a batch.
pub struct Member<W: Work> {
    pub work: W,
    halt: CancellationToken,
    joined_at: Instant,
    answer: oneshot::Sender<W::Answer>,
}

/// Messages for one call.
pub struct Batch<W: Work> {
    pub members: Vec<Member<W>>,
    pub progress: Arc<Progress>,
}

/// How far a batch is.
#[derive(Default)]
pub struct Progress {
    /// It takes no more messages: it is full, or all of its messages have left it.
    is_closed: Notify,
    /// The call has begun.
    is_sent: CancellationToken,
    /// All its messages were given up, so the call is being ended.
    pub halted_at: OnceLock<Instant>,
}

/// The batches of one pod.
pub struct OpenBatches<W: Work> {
    batching: Batching,
    /// Those that take more messages.
    open: Mutex<Vec<Batch<W>>>,
    /// One for each call.
    slots: Semaphore,
}

/// A message in a batch. Dropping it leaves the batch; a call that has begun goes on without it.
pub struct Joined<W: Work> {
    pub answered: oneshot::Receiver<W::Answer>,
    pub place: Place<W>,
}

pub struct Place<W: Work> {
    batches: Arc<OpenBatches<W>>,
    pub progress: Arc<Progress>,
}

impl<W: Work> Member<W> {
    pub fn is_given_up(&self) -> bool {
        self.halt.is_cancelled() || self.answer.is_closed()
    }

    pub async fn given_up(&mut self) {
        tokio::select! {
            () = self.halt.cancelled() => {}
            () = self.answer.closed() => {}
        }
    }

    /// Completes when the message no longer waits for an answer: at the latest after its stop grace.
    pub async fn is_gone(&mut self) {
        self.answer.closed().await;
    }

    pub fn answer(self, answer: W::Answer) {
        // Fails only for a message that is gone.
        let _ = self.answer.send(answer);
    }
}

impl<W: Work> OpenBatches<W> {
    pub fn new(batching: Batching) -> Self {
        Self { batching, open: Mutex::default(), slots: Semaphore::new(batching.calls) }
    }

    /// How many more calls may begin.
    pub fn free_calls(&self) -> usize {
        self.slots.available_permits()
    }

    /// Returns when no call is in progress.
    pub async fn finished(&self) {
        let calls = u32::try_from(self.batching.calls).unwrap_or(u32::MAX);
        let _all = self.slots.acquire_many(calls).await;
    }

    /// Adds the message to an open batch. If there is none, opens one, for which `call` is called.
    /// Must be called in a task.
    pub fn join<F: Future<Output = ()> + Send>(
        self: &Arc<Self>,
        work: W,
        halt: CancellationToken,
        call: impl FnOnce(Batch<W>) -> F + Send + 'static,
    ) -> Joined<W> {
        let (answer, answered) = oneshot::channel();
        let (progress, is_new) = self.add(Member { work, halt, joined_at: Instant::now(), answer });
        let place = Place { batches: self.clone(), progress };
        if is_new {
            let (batches, progress) = (self.clone(), place.progress.clone());
            // Not in the span of one message.
            tokio::spawn(async move {
                let Some((batch, _slot)) = batches.complete(&progress).await else { return };
                call(batch).await;
            });
        }
        Joined { answered, place }
    }

    fn open(&self) -> MutexGuard<'_, Vec<Batch<W>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The progress of the message's batch, and whether the batch is new.
    fn add(&self, member: Member<W>) -> (Arc<Progress>, bool) {
        let size = self.batching.size;
        let mut open = self.open();
        let with_room = |batch: &&mut Batch<W>| {
            let first = batch.members.first();
            batch.members.len() < size && first.is_some_and(|it| it.work.goes_with(&member.work))
        };
        if let Some(batch) = open.iter_mut().find(with_room) {
            batch.members.push(member);
            if batch.members.len() == size {
                batch.progress.is_closed.notify_one();
            }
            return (batch.progress.clone(), false);
        }
        let progress = Arc::<Progress>::default();
        if size == 1 {
            progress.is_closed.notify_one();
        }
        open.push(Batch { members: vec![member], progress: progress.clone() });
        (progress, true)
    }

    /// Waits until a call may begin, and for more messages. `None` if all have left.
    async fn complete(
        &self,
        progress: &Arc<Progress>,
    ) -> Option<(Batch<W>, tokio::sync::SemaphorePermit<'_>)> {
        let due_at = Instant::now() + self.batching.window;
        let slot = self.slots.acquire().await.ok()?;
        tokio::select! {
            () = progress.is_closed.notified() => {}
            () = sleep_until(due_at) => {}
        }
        let mut batch = self.take(progress)?;
        batch.members.retain(|member| !member.is_given_up());
        if batch.members.is_empty() {
            return None;
        }
        progress.is_sent.cancel();
        for Member { work, joined_at, .. } in &mut batch.members {
            work.has_waited(joined_at.elapsed());
        }
        Some((batch, slot))
    }

    fn take(&self, progress: &Arc<Progress>) -> Option<Batch<W>> {
        let mut open = self.open();
        let place = open.iter().position(|batch| Arc::ptr_eq(&batch.progress, progress))?;
        Some(open.remove(place))
    }
}

impl<W: Work> Place<W> {
    /// Removes the messages that were given up from the batch, if it is still open; returns whether
    /// it is.
    pub fn leave(&self) -> bool {
        let mut open = self.batches.open();
        let is_it = |batch: &Batch<W>| Arc::ptr_eq(&batch.progress, &self.progress);
        let Some(place) = open.iter().position(is_it) else { return false };
        open[place].members.retain(|member| !member.is_given_up());
        if open[place].members.is_empty() {
            open.remove(place);
            self.progress.is_closed.notify_one();
        }
        true
    }

    /// The wait for a call and for more messages is not the work's time. Never returns.
    pub async fn sets_waiting(&self, activity: &Activity) {
        let is_sent = &self.progress.is_sent;
        if timeout(AT_ONCE, is_sent.cancelled()).await.is_err() {
            activity.set_waiting(true);
            is_sent.cancelled().await;
            activity.set_waiting(false);
        }
        std::future::pending::<()>().await;
    }
}

/// Most messages find a call that may begin: a wait that is shorter than this is not reported.
const AT_ONCE: Duration = Duration::from_millis(10);

impl<W: Work> Drop for Joined<W> {
    fn drop(&mut self) {
        self.answered.close();
        self.place.leave();
    }
}
