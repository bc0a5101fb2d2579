//! Combines the calls of concurrent runs into batches, so that a pod with `--concurrency` sends fewer
//! requests.
//!
//! ```text
//! run 1 ── delete ──► sent at once ───────────► answer
//! run 2 ──── delete ──► waits ─────────────────┐
//! run 3 ─────── delete ──► waits ──────────────┴► one request for both ──► two answers
//! ```
//!
//! A call is sent at once if no request of its kind is in flight. Otherwise it waits for the answer
//! to that request, and is sent together with all others that wait. A delete also waits for those of
//! other runs that work on messages, about as long as a message takes; and the next receive waits for
//! the runs whose deletes were answered, which then receive together, too. No call waits longer than
//! [`PATIENCE`]: a long poll or a slow request delays neither a receive nor a heartbeat, and a slow run
//! hardly delays the others.
//!
//! Architecture invariant: a delete is sent only before a stop of the pod, and while its permit is
//! valid, however long it waited.

mod line;
mod runs;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::select_all;
use tokio::sync::{OnceCell, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::job::delivery::{Delivery, ReceiptHandle, Redrive};
use crate::job::verdict::DeletePermit;
use crate::ports::clock::Clock;
use crate::ports::{BATCH, BatchQueue, DeleteError, Queue, ReceiveError, VisibilityError};
use line::{Kind, Line, Pending};
use runs::Runs;

/// A queue whose calls are combined. When it is dropped, its requests end, too.
pub struct Batches {
    shared: Arc<Shared>,
    _ended: DropGuard,
}

struct Shared {
    queue: Arc<dyn BatchQueue>,
    clock: Clock,
    fifo: bool,
    runs: Runs,
    /// The pod is shutting down: receive and delete nothing more.
    stop: CancellationToken,
    ended: CancellationToken,
    receives: Line<Receive>,
    changes: Line<Change>,
    deletes: Line<Delete>,
    redrive: OnceCell<Redrive>,
}

/// How long a call may wait for another request: longer than SQS usually takes, and short compared
/// with the shortest interval of heartbeats, one second.
pub const PATIENCE: Duration = Duration::from_millis(50);

impl Batches {
    /// `clock` is that of the `runs`. Receives from a FIFO queue are not combined: one answer may have
    /// several messages of a group, and the runs would work on them at the same time.
    pub fn new(
        queue: Arc<dyn BatchQueue>,
        clock: Clock,
        fifo: bool,
        runs: usize,
        stop: CancellationToken,
    ) -> Self {
        let ended = CancellationToken::new();
        let shared = Shared {
            queue,
            clock,
            fifo,
            runs: Runs::new(runs),
            stop,
            ended: ended.clone(),
            receives: Line::default(),
            changes: Line::default(),
            deletes: Line::default(),
            redrive: OnceCell::new(),
        };
        Self { shared: Arc::new(shared), _ended: ended.drop_guard() }
    }
}

#[async_trait]
impl Queue for Batches {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        let Shared { fifo, queue, runs, .. } = &*self.shared;
        let asked_at = Instant::now();
        let waiting = runs.receives();
        let received = if *fifo {
            queue.receive(wait, visibility).await
        } else {
            // Without a request, no message was received.
            self.shared.answer_to(Receive { wait, visibility }).await.unwrap_or(Ok(None))
        };
        drop(waiting);
        if matches!(received, Ok(Some(_))) {
            runs.has_received(asked_at);
        }
        received
    }

    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError> {
        self.shared.change(receipt, visibility, Purpose::Extend).await
    }

    async fn release(
        &self,
        receipt: &ReceiptHandle,
        delay: Duration,
    ) -> Result<(), VisibilityError> {
        self.shared.runs.releases();
        self.shared.change(receipt, delay, Purpose::Release).await
    }

    async fn delete(
        &self,
        receipt: &ReceiptHandle,
        permit: DeletePermit,
    ) -> Result<(), DeleteError> {
        let _deletes = self.shared.runs.deletes();
        let delete = Delete { receipt: receipt.for_request(), permit };
        let failed = || Err(DeleteError::Transient(NO_ANSWER.to_owned()));
        self.shared.answer_to(delete).await.unwrap_or_else(failed)
    }

    async fn redrive(&self) -> Result<Redrive, String> {
        self.shared.redrive.get_or_try_init(|| self.shared.queue.redrive()).await.cloned()
    }
}

const NO_ANSWER: &str = "the request ended without an answer";

impl Shared {
    async fn change(
        self: &Arc<Self>,
        receipt: &ReceiptHandle,
        visibility: Duration,
        purpose: Purpose,
    ) -> Result<(), VisibilityError> {
        let change = Change { receipt: receipt.for_request(), visibility, purpose };
        let unclear = || Err(VisibilityError::Unclear(NO_ANSWER.to_owned()));
        self.answer_to(change).await.unwrap_or_else(unclear)
    }

    /// `None` if the call was withdrawn.
    async fn answer_to<K: Kind>(self: &Arc<Self>, call: K) -> Option<K::Answer> {
        let (number, mut answer) = K::line(self).join(call);
        self.send_waiting::<K>(|line| line.is_idle());
        if let Ok(answer) = timeout(PATIENCE, &mut answer).await {
            return answer.ok();
        }
        self.send_waiting::<K>(|line| line.waits(number));
        answer.await.ok()
    }

    /// Starts a task that sends what waits, if `must_start`.
    fn send_waiting<K: Kind>(self: &Arc<Self>, must_start: impl Fn(&mut line::Waiting<K>) -> bool) {
        if K::line(self).begin(must_start) {
            let shared = self.clone();
            tokio::spawn(async move {
                shared.ended.run_until_cancelled(shared.send_all::<K>()).await;
            });
        }
    }

    async fn send_all<K: Kind>(self: &Arc<Self>) {
        // Calls that are made in the same moment go together.
        tokio::task::yield_now().await;
        loop {
            self.gather::<K>().await;
            let calls = K::line(self).take(|calls| K::next(self, calls));
            let Some(calls) = calls else { return };
            K::send(self, calls).await;
        }
    }

    /// Waits for calls that are expected soon.
    async fn gather<K: Kind>(&self) {
        loop {
            let changed = self.runs.changed();
            let until = K::line(self).look(|waiting| K::gathers_until(self, waiting));
            let Some(until) = until.filter(|until| *until > Instant::now()) else { return };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = sleep_until(until) => return,
                () = changed => {}
            }
        }
    }
}

/// Removes the calls of a request: the first one, and those after it that are alike.
fn next_alike<K: Kind, T: PartialEq>(
    waiting: &mut line::Calls<K>,
    by: impl Fn(&K) -> T,
) -> Vec<Pending<K>> {
    let first = waiting.front().map(|first| by(&first.call));
    let alike = |next: &mut Pending<K>| first.as_ref() == Some(&by(&next.call));
    let next = || waiting.pop_front_if(alike);
    std::iter::from_fn(next).take(BATCH).collect()
}

/// A ReceiveMessage for one run.
struct Receive {
    wait: Duration,
    visibility: Duration,
}

impl Kind for Receive {
    type Answer = Result<Option<Delivery>, ReceiveError>;

    fn line(shared: &Shared) -> &Line<Self> {
        &shared.receives
    }

    /// Runs whose deletes were answered together also receive together: a receive waits for the others
    /// as long again as it came after that answer.
    fn gathers_until(shared: &Shared, waiting: &line::Calls<Self>) -> Option<Instant> {
        let since = shared.runs.receives_since()?;
        line::as_long_again(waiting, since)
    }

    fn next(shared: &Shared, waiting: &mut line::Calls<Self>) -> Vec<Pending<Self>> {
        if shared.stop.is_cancelled() {
            waiting.clear();
        }
        next_alike(waiting, |receive| receive.visibility)
    }

    async fn send(shared: &Arc<Shared>, calls: Vec<Pending<Self>>) {
        let Some(first) = calls.first() else { return };
        let visibility = first.call.visibility;
        shared.runs.sends_receive();
        // No run may wait longer than it asked for.
        let waits = calls.iter().map(|call| call.call.wait);
        let wait = Duration::from_secs(waits.min().unwrap_or_default().as_secs());
        let asked_at = Instant::now();
        let queue = &shared.queue;
        let answer = if calls.len() == 1 {
            queue.receive(wait, visibility).await.map(|one| one.into_iter().map(Ok).collect())
        } else {
            queue.receive_batch(calls.len(), wait, visibility).await
        };
        let received = match answer {
            Ok(received) => received,
            Err(error) => {
                for call in calls {
                    call.answer(Err(error.clone()));
                }
                return;
            }
        };
        // An early answer without a message counts as a full wait: it must not cause a hot loop.
        let is_empty = received.is_empty();
        let waited = if is_empty { wait } else { asked_at.elapsed() };
        let mut calls = calls.into_iter();
        let mut unclaimed = Vec::new();
        for delivery in received {
            let mut answer = Some(delivery.map(Some));
            while let Some(given) = answer.take() {
                let Some(call) = calls.next() else {
                    unclaimed.extend(given.ok().flatten());
                    break;
                };
                answer = call.try_answer(given).err();
            }
        }
        for Pending { call, number, since, reply } in calls {
            let wait = call.wait.saturating_sub(waited);
            if is_empty && wait.as_secs() == 0 {
                let _ = reply.send(Ok(None));
            } else {
                let call = Receive { wait, ..call };
                Self::line(shared).join_again(Pending { call, number, since, reply });
            }
        }
        release(shared, unclaimed).await;
    }
}

/// Makes messages visible that no run waits for: each run that asked has ended, or the queue returned
/// more than it was asked for.
async fn release(shared: &Shared, unclaimed: Vec<Delivery>) {
    let changes: Vec<_> =
        unclaimed.into_iter().take(BATCH).map(|it| (it.receipt, Duration::ZERO)).collect();
    if !changes.is_empty() {
        // After an error, they are visible when their visibility timeout ends.
        let _ = shared.queue.change_visibility_batch(&changes).await;
    }
}

/// A ChangeMessageVisibility for one run.
struct Change {
    receipt: ReceiptHandle,
    visibility: Duration,
    purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Extend,
    Release,
}

impl Kind for Change {
    type Answer = Result<(), VisibilityError>;

    fn line(shared: &Shared) -> &Line<Self> {
        &shared.changes
    }

    /// Either extensions or releases, because their requests end differently.
    fn next(_: &Shared, waiting: &mut line::Calls<Self>) -> Vec<Pending<Self>> {
        next_alike(waiting, |change| change.purpose)
    }

    async fn send(shared: &Arc<Shared>, calls: Vec<Pending<Self>>) {
        let Some(purpose) = calls.first().map(|first| first.call.purpose) else { return };
        let (changes, replies): (Vec<_>, Vec<_>) = calls
            .into_iter()
            .map(|Pending { call: Change { receipt, visibility, .. }, reply, .. }| {
                ((receipt, visibility), reply)
            })
            .unzip();
        let request = async {
            match &changes[..] {
                [(receipt, to)] => vec![shared.queue.change_visibility(receipt, *to).await],
                changes => shared.queue.change_visibility_batch(changes).await,
            }
        };
        let is_final = async {
            if purpose == Purpose::Extend {
                std::future::pending::<()>().await;
            }
        };
        answer_all(request, replies, is_final).await;
    }
}

/// A DeleteMessage for one run.
struct Delete {
    receipt: ReceiptHandle,
    permit: DeletePermit,
}

impl Kind for Delete {
    type Answer = Result<(), DeleteError>;

    fn line(shared: &Shared) -> &Line<Self> {
        &shared.deletes
    }

    /// While other runs work on messages, further deletes may come soon: after as much time as the
    /// last message has taken since its receive.
    fn gathers_until(shared: &Shared, waiting: &line::Calls<Self>) -> Option<Instant> {
        let since = shared.runs.works_since()?;
        line::as_long_again(waiting, since)
    }

    fn next(shared: &Shared, waiting: &mut line::Calls<Self>) -> Vec<Pending<Self>> {
        let (now, is_stopping) = (shared.clock.now(), shared.stop.is_cancelled());
        let mut calls = Vec::new();
        while calls.len() < BATCH
            && let Some(call) = waiting.pop_front()
        {
            let why = if is_stopping {
                "the pod is stopping"
            } else if !call.call.permit.is_valid(now) {
                "the lease ended before"
            } else {
                calls.push(call);
                continue;
            };
            call.answer(Err(DeleteError::NotSent(why)));
        }
        calls
    }

    async fn send(shared: &Arc<Shared>, calls: Vec<Pending<Self>>) {
        let (mut deletes, replies): (Vec<_>, Vec<_>) = calls
            .into_iter()
            .map(|Pending { call: Delete { receipt, permit }, reply, .. }| {
                ((receipt, permit), reply)
            })
            .unzip();
        let request = async {
            if deletes.len() > 1 {
                return shared.queue.delete_batch(deletes).await;
            }
            let Some((receipt, permit)) = deletes.pop() else { return Vec::new() };
            vec![shared.queue.delete(&receipt, permit).await]
        };
        answer_all(request, replies, shared.stop.cancelled()).await;
    }
}

/// Passes each result to its run. The request ends when the first run gives it up, as a single call
/// does: it may not have been sent yet, and an extension that is sent afterwards would undo the run's
/// release. The other runs repeat their extensions and deletes.
///
/// Once `is_final`, the request ends when the last run gives it up. A run repeats no release without
/// an answer, and no delete in a stop; and it makes no further call that a late release could undo.
async fn answer_all<T>(
    request: impl Future<Output = Vec<T>>,
    mut replies: Vec<oneshot::Sender<T>>,
    is_final: impl Future<Output = ()>,
) {
    let given_up = async {
        tokio::select! {
            biased;
            () = is_final => {}
            _ = select_all(replies.iter_mut().map(|reply| Box::pin(reply.closed()))) => return,
        }
        for reply in &mut replies {
            reply.closed().await;
        }
    };
    let results = tokio::select! {
        biased;
        results = request => results,
        () = given_up => return,
    };
    for (reply, result) in replies.into_iter().zip(results) {
        // Fails if the run stopped waiting.
        let _ = reply.send(result);
    }
}
