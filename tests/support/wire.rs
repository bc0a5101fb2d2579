//! A wrapper between a pod and its queue: it logs every call, and injects faults that the tests
//! script.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::adapters::local::memory::MemoryQueue;
use leasehold::job::delivery::{Delivery, MessageId, ReceiptHandle, Redrive};
use leasehold::job::verdict::DeletePermit;
use leasehold::ports::{BatchQueue, DeleteError, Queue, ReceiveError, VisibilityError};
use tokio::time::{Instant, sleep};

/// A queue with a call log and faults. Clones share them.
#[derive(Clone)]
pub struct Wire<Q> {
    queue: Q,
    state: Arc<Mutex<State>>,
}

/// The queue of most tests.
pub type WiredQueue = Wire<MemoryQueue>;

/// The kind of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Receive,
    ChangeVisibility(Duration),
    Delete,
}

/// One call, for assertions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub call: Call,
    /// The message of the call; `None` for an unknown handle, or an empty receive.
    pub message_id: Option<MessageId>,
    pub asked_at: Instant,
    /// When the queue carried out or refused the request; for a receive, when it ended.
    pub acted_at: Option<Instant>,
}

/// A request, with its number of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Receive(usize),
    ChangeVisibility(usize),
    Delete(usize),
}

/// A fault of one call. In a batch, errors concern their entry, and delays the whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault<E> {
    /// The request has no effect, and this is the answer.
    Error(E),
    /// The request arrives after this delay, even if the caller no longer waits for its answer.
    RequestDelayed(Duration),
    /// The request arrives at once, its answer after this delay.
    AnswerDelayed(Duration),
    /// The request arrives, but this error replaces its answer.
    AnswerLost(E),
}

#[derive(Default)]
struct State {
    log: Vec<Entry>,
    requests: Vec<Request>,
    /// The message of each handle.
    receipts: HashMap<String, MessageId>,
    receive_faults: VecDeque<Fault<ReceiveError>>,
    change_faults: VecDeque<Fault<VisibilityError>>,
    delete_faults: VecDeque<Fault<DeleteError>>,
}

impl<Q> Wire<Q> {
    pub fn to(queue: Q) -> Self {
        Self { queue, state: Arc::default() }
    }

    /// All calls so far, in the order of their requests.
    pub fn calls(&self) -> Vec<Entry> {
        self.lock().log.clone()
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// Adds a fault; each receive takes the next one.
    pub fn fault_receive(&self, fault: Fault<ReceiveError>) {
        self.lock().receive_faults.push_back(fault);
    }

    pub fn fault_change_visibility(&self, fault: Fault<VisibilityError>) {
        self.lock().change_faults.push_back(fault);
    }

    pub fn fault_delete(&self, fault: Fault<DeleteError>) {
        self.lock().delete_faults.push_back(fault);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    fn asked(&self, call: Call, receipt: Option<&ReceiptHandle>) -> usize {
        let mut state = self.lock();
        let message_id = receipt.and_then(|receipt| state.receipts.get(receipt.expose()).cloned());
        state.log.push(Entry { call, message_id, asked_at: Instant::now(), acted_at: None });
        state.log.len() - 1
    }

    fn requested(&self, request: Request) {
        self.lock().requests.push(request);
    }

    fn acted(&self, entry: usize) {
        self.lock().log[entry].acted_at = Some(Instant::now());
    }
}

/// Direct access to the queue, for the test.
impl<Q> Deref for Wire<Q> {
    type Target = Q;

    fn deref(&self) -> &Q {
        &self.queue
    }
}

#[async_trait]
impl<Q: Queue + Clone + 'static> Queue for Wire<Q> {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        self.requested(Request::Receive(1));
        let (wire, entry) = (self.clone(), self.asked(Call::Receive, None));
        let fault = self.lock().receive_faults.pop_front();
        send_with_fault(fault, async move {
            let received = wire.queue.receive(wait, visibility).await;
            if let Ok(Some(delivery)) = &received {
                let mut state = wire.lock();
                state
                    .receipts
                    .insert(delivery.receipt.expose().to_owned(), delivery.message_id.clone());
                state.log[entry].message_id = Some(delivery.message_id.clone());
            }
            wire.acted(entry);
            received
        })
        .await
    }

    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError> {
        self.requested(Request::ChangeVisibility(1));
        let (wire, entry) =
            (self.clone(), self.asked(Call::ChangeVisibility(visibility), Some(receipt)));
        let fault = self.lock().change_faults.pop_front();
        let receipt = receipt.for_request();
        send_with_fault(fault, async move {
            let changed = wire.queue.change_visibility(&receipt, visibility).await;
            wire.acted(entry);
            changed
        })
        .await
    }

    async fn delete(
        &self,
        receipt: &ReceiptHandle,
        permit: DeletePermit,
    ) -> Result<(), DeleteError> {
        self.requested(Request::Delete(1));
        let (wire, entry) = (self.clone(), self.asked(Call::Delete, Some(receipt)));
        let fault = self.lock().delete_faults.pop_front();
        let receipt = receipt.for_request();
        send_with_fault(fault, async move {
            let deleted = wire.queue.delete(&receipt, permit).await;
            wire.acted(entry);
            deleted
        })
        .await
    }

    async fn redrive(&self) -> Result<Redrive, String> {
        self.queue.redrive().await
    }
}

#[async_trait]
impl<Q: BatchQueue + Clone + 'static> BatchQueue for Wire<Q> {
    async fn receive_batch(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Result<Delivery, ReceiveError>>, ReceiveError> {
        self.requested(Request::Receive(most));
        let (wire, first) = (self.clone(), self.asked(Call::Receive, None));
        let fault = self.lock().receive_faults.pop_front();
        send_with_fault(fault, async move {
            let received = wire.queue.receive_batch(most, wait, visibility).await;
            for (number, delivery) in received.iter().flatten().flatten().enumerate() {
                let entry = if number == 0 { first } else { wire.asked(Call::Receive, None) };
                let (receipt, id) = (delivery.receipt.expose(), &delivery.message_id);
                let mut state = wire.lock();
                state.receipts.insert(receipt.to_owned(), id.clone());
                state.log[entry].message_id = Some(id.clone());
                state.log[entry].acted_at = Some(Instant::now());
            }
            wire.acted(first);
            received
        })
        .await
    }

    async fn change_visibility_batch(
        &self,
        changes: &[(ReceiptHandle, Duration)],
    ) -> Vec<Result<(), VisibilityError>> {
        self.requested(Request::ChangeVisibility(changes.len()));
        let entry = |(receipt, to): &(ReceiptHandle, Duration)| {
            let entry = self.asked(Call::ChangeVisibility(*to), Some(receipt));
            let fault = self.lock().change_faults.pop_front();
            (entry, fault, (receipt.for_request(), *to))
        };
        let (wire, entries) = (self.clone(), changes.iter().map(entry).collect());
        send_batch_with_faults(entries, async move |log, changes: Vec<_>| {
            let results = wire.queue.change_visibility_batch(&changes).await;
            for entry in log {
                wire.acted(entry);
            }
            results
        })
        .await
    }

    async fn delete_batch(
        &self,
        deletes: Vec<(ReceiptHandle, DeletePermit)>,
    ) -> Vec<Result<(), DeleteError>> {
        self.requested(Request::Delete(deletes.len()));
        let entry = |(receipt, permit): (ReceiptHandle, _)| {
            let entry = self.asked(Call::Delete, Some(&receipt));
            (entry, self.lock().delete_faults.pop_front(), (receipt, permit))
        };
        let (wire, entries) = (self.clone(), deletes.into_iter().map(entry).collect());
        send_batch_with_faults(entries, async move |log, deletes: Vec<_>| {
            let results = wire.queue.delete_batch(deletes).await;
            for entry in log {
                wire.acted(entry);
            }
            results
        })
        .await
    }
}

/// An entry of a batch: its number in the log, its fault, and what it asks for.
type Faulty<T, E> = (usize, Option<Fault<E>>, T);

/// The same for a batch. `request` gets the numbers in the log, and the entries that arrive.
async fn send_batch_with_faults<T, E, R>(
    entries: Vec<Faulty<T, E>>,
    request: impl FnOnce(Vec<usize>, Vec<T>) -> R + Send + 'static,
) -> Vec<Result<(), E>>
where
    T: Send + 'static,
    E: Send + 'static,
    R: Future<Output = Vec<Result<(), E>>> + Send,
{
    let sent = tokio::spawn(async move {
        let (mut before, mut after) = (Duration::ZERO, Duration::ZERO);
        let (mut log, mut arriving, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (number, fault, entry) in entries {
            let (arrives, error) = match fault {
                Some(Fault::Error(error)) => (false, Some(error)),
                Some(Fault::AnswerLost(error)) => (true, Some(error)),
                Some(Fault::RequestDelayed(by)) => {
                    before = before.max(by);
                    (true, None)
                }
                Some(Fault::AnswerDelayed(by)) => {
                    after = after.max(by);
                    (true, None)
                }
                None => (true, None),
            };
            if arrives {
                log.push(number);
                arriving.push(entry);
            }
            errors.push((arrives, error));
        }
        sleep(before).await;
        let mut results = request(log, arriving).await.into_iter();
        sleep(after).await;
        let result = |(arrived, error): (bool, Option<E>)| {
            let result = if arrived { results.next().expect("a result") } else { Ok(()) };
            result.and(error.map_or(Ok(()), Err))
        };
        errors.into_iter().map(result).collect()
    });
    sent.await.expect("a request neither panics nor is aborted")
}

/// Sends a request and waits for its answer. The request is a separate task: once sent, it arrives
/// even if the caller no longer waits for the answer.
async fn send_with_fault<T, E>(
    fault: Option<Fault<E>>,
    request: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: Send + 'static,
{
    let sent = tokio::spawn(async move {
        match fault {
            None => request.await,
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::RequestDelayed(by)) => {
                sleep(by).await;
                request.await
            }
            Some(Fault::AnswerDelayed(by)) => {
                let answer = request.await;
                sleep(by).await;
                answer
            }
            Some(Fault::AnswerLost(error)) => request.await.and(Err(error)),
        }
    });
    sent.await.expect("a request neither panics nor is aborted")
}

#[cfg(test)]
mod tests {
    use leasehold::adapters::local::memory::{Counts, Kind, QueueState};
    use leasehold::job::lease::{Lease, Strategy};
    use leasehold::job::outcome::Outcome;
    use leasehold::job::verdict::{OnStop, Retry, RetryPolicy, Verdict};
    use tokio::time::timeout;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn with_one_message() -> WiredQueue {
        let wire = Wire::to(MemoryQueue::new(Kind::Standard, Redrive::None));
        wire.send("a");
        wire
    }

    async fn receive(wire: &WiredQueue) -> Delivery {
        wire.receive(20 * S, 60 * S).await.unwrap().unwrap()
    }

    async fn delete(wire: &WiredQueue, delivery: &Delivery) -> Result<(), DeleteError> {
        let policy = RetryPolicy {
            retry: Retry::Expire,
            on_stop: OnStop::Expire,
            permanent_exit_codes: vec![],
        };
        let Verdict::Delete(completed) =
            policy.judge(&delivery.id(), &Redrive::None, Outcome::Finished)
        else {
            panic!("not completed")
        };
        let lease = Lease::taken(Strategy::Heartbeat, S, Duration::ZERO);
        wire.delete(&delivery.receipt, completed.permit(&lease, Duration::ZERO).unwrap()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_request_arrives_after_its_sender_gave_up() {
        let queue = with_one_message();
        let delivery = receive(&queue).await;
        queue.fault_change_visibility(Fault::RequestDelayed(10 * S));
        let asked_at = Instant::now();
        timeout(S, queue.change_visibility(&delivery.receipt, Duration::ZERO)).await.unwrap_err();
        assert_eq!(queue.counts(), Counts { visible: 0, in_flight: 1 });
        assert_eq!(queue.visible_or_drained().await, QueueState::Visible);
        assert_eq!(asked_at.elapsed(), 10 * S);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_has_no_effect_and_a_lost_answer_hides_an_effect() {
        let queue = with_one_message();
        let delivery = receive(&queue).await;
        queue.fault_delete(Fault::Error(DeleteError::Transient("503".into())));
        queue.fault_delete(Fault::AnswerLost(DeleteError::Transient("reset".into())));
        assert_eq!(delete(&queue, &delivery).await, Err(DeleteError::Transient("503".into())));
        assert!(!queue.is_drained());
        assert_eq!(delete(&queue, &delivery).await, Err(DeleteError::Transient("reset".into())));
        assert!(queue.is_drained());
        assert_eq!(delete(&queue, &delivery).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_answer_reports_an_immediate_effect() {
        let queue = with_one_message();
        queue.fault_receive(Fault::AnswerDelayed(5 * S));
        let asked_at = Instant::now();
        let delivery = receive(&queue).await;
        assert_eq!(asked_at.elapsed(), 5 * S);
        let received = Entry {
            call: Call::Receive,
            message_id: Some(delivery.message_id),
            asked_at,
            acted_at: Some(asked_at),
        };
        assert_eq!(queue.calls(), [received]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_has_every_call_and_whether_it_arrived() {
        let queue = with_one_message();
        let delivery = receive(&queue).await;
        queue.fault_change_visibility(Fault::Error(VisibilityError::Transient("503".into())));
        queue.change_visibility(&delivery.receipt, 30 * S).await.unwrap_err();
        sleep(S).await;
        queue.change_visibility(&ReceiptHandle::new("2-1"), S).await.unwrap_err();
        delete(&queue, &delivery).await.unwrap();
        let log: Vec<_> = queue
            .calls()
            .into_iter()
            .map(|e| (e.call, e.message_id.is_some(), e.acted_at.is_some()))
            .collect();
        assert_eq!(
            log,
            [
                (Call::Receive, true, true),
                (Call::ChangeVisibility(30 * S), true, false),
                (Call::ChangeVisibility(S), false, true),
                (Call::Delete, true, true),
            ]
        );
    }
}
