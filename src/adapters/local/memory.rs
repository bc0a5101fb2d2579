//! A queue in memory that follows SQS's rules, on tokio's clock, so also on a paused one.
//!
//! `leasehold local`, our journey tests and users' offline tests use it. The rules are those that
//! LocalStack's tests recorded against AWS, else those of AWS's documentation. If both are silent
//! or disagree, the queue gives the worst answer for the caller, since a fake that is kinder than
//! SQS hides bugs. `tests/queue_contract` asserts the same of this queue and of a real server.
//!
//! Not simulated: retention, delayed sends, deduplication, the reordering and duplicates of standard
//! queues, and several messages of one group in one answer.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::job::delivery::{Delivery, MessageId, ReceiptHandle, Redrive, SqsAttributes};
use crate::job::lease::CEILING;
use crate::job::verdict::DeletePermit;
#[cfg(any(feature = "aws", feature = "internals"))]
use crate::ports::BatchQueue;
use crate::ports::{DeleteError, Queue, ReceiveError, VisibilityError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Standard,
    #[cfg_attr(
        not(feature = "internals"),
        expect(dead_code, reason = "a local run uses a standard queue; tests use both")
    )]
    Fifo,
}

/// A queue in memory. Its clones are the same queue.
#[derive(Clone)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

/// A message in the dead-letter queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub message_id: MessageId,
    pub body: String,
    /// How often it was received.
    pub receive_count: u32,
}

/// The states for which the caller that starts workers waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueState {
    /// A receive would return a message at once, or move it to the dead letters.
    Visible,
    /// No message remains, neither visible nor in flight.
    Drained,
}

struct Shared {
    /// Never held over an await.
    state: Mutex<State>,
    /// Notified whenever a message was sent, hidden, released or deleted.
    changed: Notify,
}

struct State {
    kind: Kind,
    redrive: Redrive,
    /// How long a message may be hidden in total.
    ceiling: Duration,
    /// How many messages were sent; numbers them, from 1.
    sent: u64,
    /// By number, so in sending order.
    messages: BTreeMap<u64, Message>,
    dead_letters: Vec<DeadLetter>,
}

struct Message {
    body: String,
    group: String,
    receive_count: u32,
    /// In flight until then.
    visible_at: Instant,
    /// The time of the latest receive; before the first, of the send.
    received_at: Instant,
}

impl MemoryQueue {
    pub fn new(kind: Kind, redrive: Redrive) -> Self {
        let (messages, dead_letters) = (BTreeMap::new(), Vec::new());
        let state = State { kind, redrive, ceiling: CEILING, sent: 0, messages, dead_letters };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// Replaces SQS's ceiling of 12 hours, for a rehearsal.
    #[must_use]
    pub fn with_ceiling(self, ceiling: Duration) -> Self {
        self.lock().ceiling = ceiling;
        self
    }

    /// In a FIFO queue, all these messages belong to one group.
    pub fn send(&self, body: impl Into<String>) -> MessageId {
        self.send_in_group(body, "")
    }

    /// A standard queue ignores the group.
    pub fn send_in_group(&self, body: impl Into<String>, group: impl Into<String>) -> MessageId {
        let (body, group) = (body.into(), group.into());
        self.change(|state, now| {
            state.sent += 1;
            let message =
                Message { body, group, receive_count: 0, visible_at: now, received_at: now };
            state.messages.insert(state.sent, message);
            message_id(state.sent)
        })
    }

    /// In the order of their arrival.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.lock().dead_letters.clone()
    }

    /// Waits, without limit, until a receive would act at once or no message remains.
    pub async fn visible_or_drained(&self) -> QueueState {
        let look = |state: &mut State, now| match state.first_visible(now) {
            Some(_) => Some(QueueState::Visible),
            None => state.messages.is_empty().then_some(QueueState::Drained),
        };
        self.watch(None, look).await.expect("a watch without a limit ends with a state")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let changed = change(&mut self.lock(), Instant::now());
        self.shared.changed.notify_waiters();
        changed
    }

    /// Calls `look` at once, at every change, and when a visibility timeout expires; `None` at
    /// `until`.
    async fn watch<T>(
        &self,
        until: Option<Instant>,
        look: impl Fn(&mut State, Instant) -> Option<T>,
    ) -> Option<T> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that no change between the look and the wait is missed.
            changed.as_mut().enable();
            let now = Instant::now();
            let expiry = {
                let mut state = self.lock();
                if let Some(found) = look(&mut state, now) {
                    return Some(found);
                }
                state
                    .messages
                    .values()
                    .map(|message| message.visible_at)
                    .filter(|at| *at > now)
                    .min()
            };
            if until.is_some_and(|until| until <= now) {
                return None;
            }
            match [until, expiry].into_iter().flatten().min() {
                Some(at) => drop(timeout_at(at, changed).await),
                None => changed.await,
            }
        }
    }
}

impl MemoryQueue {
    async fn poll(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Delivery>, ReceiveError> {
        for (parameter, value, limit) in
            [("WaitTimeSeconds", wait, MAX_WAIT), ("VisibilityTimeout", visibility, CEILING)]
        {
            if value > limit {
                return Err(ReceiveError::Misconfigured(out_of_range(parameter, value, limit)));
            }
        }
        let queue = self.clone();
        // A separate task: once sent, a request succeeds, even if the caller no longer waits for
        // the answer.
        let polled = tokio::spawn(async move {
            let until = Instant::now() + whole_seconds(wait);
            let receive = |state: &mut State, now| {
                let next = || state.receive(now, whole_seconds(visibility));
                let received: Vec<_> = std::iter::from_fn(next).take(most).collect();
                Some(received).filter(|received| !received.is_empty())
            };
            let received = queue.watch(Some(until), receive).await;
            // The other watchers must now wait for the expiry of these deliveries.
            queue.shared.changed.notify_waiters();
            received.unwrap_or_default()
        });
        Ok(polled.await.expect("a poll neither panics nor is aborted"))
    }
}

/// For tests.
#[cfg(feature = "internals")]
impl MemoryQueue {
    pub fn counts(&self) -> Counts {
        let now = Instant::now();
        let state = self.lock();
        let in_flight = state.messages.values().filter(|message| message.is_in_flight(now)).count();
        Counts { visible: state.messages.len() - in_flight, in_flight }
    }

    /// Whether no message remains, neither visible nor in flight.
    pub fn is_drained(&self) -> bool {
        self.lock().messages.is_empty()
    }
}

/// The numbers of messages; in SQS `ApproximateNumberOfMessages` and `…NotVisible`.
#[cfg(feature = "internals")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub visible: usize,
    pub in_flight: usize,
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        Ok(self.poll(1, wait, visibility).await?.pop())
    }

    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError> {
        self.change(|state, now| state.change_visibility(receipt, now, whole_seconds(visibility)))
    }

    async fn delete(&self, receipt: &ReceiptHandle, _: DeletePermit) -> Result<(), DeleteError> {
        self.change(|state, now| state.delete(receipt, now))
    }

    async fn redrive(&self) -> Result<Redrive, String> {
        Ok(self.lock().redrive.clone())
    }
}

#[cfg(any(feature = "aws", feature = "internals"))]
#[async_trait]
impl BatchQueue for MemoryQueue {
    async fn receive_batch(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Result<Delivery, ReceiveError>>, ReceiveError> {
        Ok(self.poll(most, wait, visibility).await?.into_iter().map(Ok).collect())
    }

    async fn change_visibility_batch(
        &self,
        changes: &[(ReceiptHandle, Duration)],
    ) -> Vec<Result<(), VisibilityError>> {
        self.change(|state, now| {
            let change =
                |(receipt, to): &_| state.change_visibility(receipt, now, whole_seconds(*to));
            changes.iter().map(change).collect()
        })
    }

    async fn delete_batch(
        &self,
        deletes: Vec<(ReceiptHandle, DeletePermit)>,
    ) -> Vec<Result<(), DeleteError>> {
        self.change(|state, now| {
            deletes.iter().map(|(receipt, _)| state.delete(receipt, now)).collect()
        })
    }
}

/// The state of a receipt handle. The numbers are those of the messages.
enum HandleState {
    /// Not a handle of this queue.
    Invalid,
    /// Its message was deleted, or is a dead letter.
    Gone,
    /// Its message was received again since.
    Superseded,
    /// It expired or released its message, which was not received since.
    Expired(u64),
    InFlight(u64),
}

impl State {
    fn receive(&mut self, now: Instant, visibility: Duration) -> Option<Delivery> {
        loop {
            let number = self.first_visible(now)?;
            let message = self.messages.get_mut(&number).expect("it was found just now");
            if self.redrive.is_final(message.receive_count) {
                let Message { body, receive_count, .. } = self.messages.remove(&number)?;
                self.dead_letters.push(DeadLetter {
                    message_id: message_id(number),
                    body,
                    receive_count,
                });
                continue;
            }
            message.receive_count += 1;
            message.received_at = now;
            message.visible_at = now + visibility;
            return Some(Delivery {
                message_id: message_id(number),
                receipt: ReceiptHandle::new(format!("{number}-{}", message.receive_count)),
                body: message.body.clone(),
                payload_failed: None,
                receive_count: message.receive_count,
                sent_at: None,
                first_received_at: None,
                group_id: None,
                deduplication_id: None,
                idempotency_key: None,
                traceparent: None,
                attributes: BTreeMap::new(),
                sqs: SqsAttributes::default(),
            });
        }
    }

    /// The first message that a receive would act on. In a FIFO queue a message in flight blocks
    /// its group.
    fn first_visible(&self, now: Instant) -> Option<u64> {
        let blocked: HashSet<&str> = match self.kind {
            Kind::Standard => HashSet::new(),
            Kind::Fifo => {
                let in_flight = self.messages.values().filter(|message| message.is_in_flight(now));
                in_flight.map(|message| message.group.as_str()).collect()
            }
        };
        let mut visible = self.messages.iter().filter(|(_, message)| !message.is_in_flight(now));
        visible
            .find(|(_, message)| !blocked.contains(message.group.as_str()))
            .map(|(number, _)| *number)
    }

    fn change_visibility(
        &mut self,
        receipt: &ReceiptHandle,
        now: Instant,
        visibility: Duration,
    ) -> Result<(), VisibilityError> {
        match (self.handle_state(receipt, now), self.kind) {
            (HandleState::InFlight(number), Kind::Standard | Kind::Fifo) => {
                let ceiling = self.ceiling;
                let message = self.messages.get_mut(&number).expect("a message in flight is there");
                if visibility > CEILING || now + visibility > message.received_at + ceiling {
                    return Err(VisibilityError::AtCeiling(past_ceiling(visibility)));
                }
                message.visible_at = now + visibility;
                Ok(())
            }
            // Recorded against AWS: the call succeeds. Whether the message is then hidden again is
            // disputed (LocalStack issue 9632: no, NServiceBus: yes). "No" is worse for the caller,
            // who believes that he holds the message. The case that another caller has received the
            // message is not recorded.
            (HandleState::Expired(_) | HandleState::Superseded, Kind::Standard) => Ok(()),
            // The same answer as for a delete; not recorded for this call.
            (HandleState::Expired(_) | HandleState::Superseded, Kind::Fifo) => {
                Err(VisibilityError::NotInFlight(EXPIRED.into()))
            }
            (HandleState::Gone, Kind::Standard | Kind::Fifo) => {
                Err(VisibilityError::NotInFlight(GONE.into()))
            }
            (HandleState::Invalid, Kind::Standard | Kind::Fifo) => {
                Err(VisibilityError::NotInFlight(INVALID.into()))
            }
        }
    }

    fn delete(&mut self, receipt: &ReceiptHandle, now: Instant) -> Result<(), DeleteError> {
        match (self.handle_state(receipt, now), self.kind) {
            (HandleState::InFlight(number), Kind::Standard | Kind::Fifo)
            | (HandleState::Expired(number), Kind::Standard) => {
                self.messages.remove(&number);
                Ok(())
            }
            // A delete may be repeated. With the handle of an earlier receive "the message might
            // not be deleted" (AWS, DeleteMessage), and here it is not.
            (HandleState::Gone, Kind::Standard | Kind::Fifo)
            | (HandleState::Superseded, Kind::Standard) => Ok(()),
            (HandleState::Expired(_) | HandleState::Superseded, Kind::Fifo) => {
                Err(DeleteError::Refused(EXPIRED.into()))
            }
            (HandleState::Invalid, Kind::Standard | Kind::Fifo) => {
                Err(DeleteError::Refused(INVALID.into()))
            }
        }
    }

    fn handle_state(&self, receipt: &ReceiptHandle, now: Instant) -> HandleState {
        let Some((number, receive_count)) = self.receive_of(receipt) else {
            return HandleState::Invalid;
        };
        match self.messages.get(&number) {
            None => HandleState::Gone,
            Some(message) if message.receive_count != receive_count => HandleState::Superseded,
            Some(message) if message.is_in_flight(now) => HandleState::InFlight(number),
            Some(_) => HandleState::Expired(number),
        }
    }

    /// The message number and the receive count of a handle; `None` if it is not a handle of this
    /// queue.
    fn receive_of(&self, receipt: &ReceiptHandle) -> Option<(u64, u32)> {
        let (number, receive_count) = receipt.expose().split_once('-')?;
        let (number, receive_count) = (number.parse().ok()?, receive_count.parse().ok()?);
        (1..=self.sent).contains(&number).then_some((number, receive_count))
    }
}

impl Message {
    fn is_in_flight(&self, now: Instant) -> bool {
        now < self.visible_at
    }
}

fn message_id(number: u64) -> MessageId {
    MessageId::new(format!("message-{number}"))
}

/// SQS's API has whole seconds.
fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs())
}

/// The longest poll (AWS, ReceiveMessage, `WaitTimeSeconds`).
const MAX_WAIT: Duration = Duration::from_secs(20);

// SQS's texts without the receipt handle, which SQS quotes and we never do.
const INVALID: &str = "The input receipt handle is not a valid receipt handle.";
const EXPIRED: &str =
    "Value … for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.";
const GONE: &str = "Value … for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not \
                    available for visibility timeout change.";

fn past_ceiling(visibility: Duration) -> String {
    format!(
        "Value {} for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for the message is \
         beyond the limit [{} seconds]",
        visibility.as_secs(),
        CEILING.as_secs()
    )
}

fn out_of_range(parameter: &str, value: Duration, limit: Duration) -> String {
    format!(
        "Value {} for parameter {parameter} is invalid. Reason: Must be >= 0 and <= {}, if provided.",
        value.as_secs(),
        limit.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::job::lease::{Lease, Strategy};
    use crate::job::outcome::Outcome;
    use crate::job::verdict::{OnStop, Retry, RetryPolicy, Verdict};

    const S: Duration = Duration::from_secs(1);

    fn queue_with(kind: Kind, bodies: &[&str]) -> MemoryQueue {
        let queue = MemoryQueue::new(kind, Redrive::None);
        for body in bodies {
            queue.send(*body);
        }
        queue
    }

    async fn receive(queue: &MemoryQueue, visibility: Duration) -> Delivery {
        queue.receive(20 * S, visibility).await.unwrap().unwrap()
    }

    async fn queue_state(queue: &MemoryQueue) -> QueueState {
        timeout(CEILING, queue.visible_or_drained()).await.unwrap()
    }

    async fn delete(queue: &MemoryQueue, delivery: &Delivery) -> Result<(), DeleteError> {
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
        queue.delete(&delivery.receipt, completed.permit(&lease, Duration::ZERO).unwrap()).await
    }

    #[tokio::test(start_paused = true)]
    async fn each_delivery_lasts_twelve_hours_at_most() {
        let queue = queue_with(Kind::Standard, &["a"]);
        let received_at = Instant::now();
        let first = receive(&queue, CEILING).await;
        sleep(CEILING / 2).await;
        queue.change_visibility(&first.receipt, CEILING / 2).await.unwrap();
        sleep((CEILING / 2).saturating_sub(S)).await;
        let refused = queue.change_visibility(&first.receipt, 2 * S).await.unwrap_err();
        assert!(
            matches!(&refused, VisibilityError::AtCeiling(why) if why.contains("beyond the limit [43200 seconds]"))
        );
        queue.change_visibility(&first.receipt, S).await.unwrap();
        let second = receive(&queue, S).await;
        assert_eq!(received_at.elapsed(), CEILING);
        queue.change_visibility(&second.receipt, CEILING).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_receive_out_of_range_is_refused() {
        let queue = queue_with(Kind::Standard, &["a"]);
        for (wait, visibility) in [(21 * S, S), (S, CEILING + S)] {
            let answer = queue.receive(wait, visibility).await;
            assert!(matches!(answer, Err(ReceiveError::Misconfigured(_))), "{answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn fractions_of_a_second_are_dropped() {
        let queue = queue_with(Kind::Standard, &["a"]);
        let asked_at = Instant::now();
        receive(&queue, Duration::from_millis(1900)).await;
        receive(&queue, S).await;
        assert_eq!(asked_at.elapsed(), S);
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_poll_still_takes_its_message() {
        let queue = queue_with(Kind::Standard, &[]);
        timeout(S, queue.receive(20 * S, 30 * S)).await.unwrap_err();
        queue.send("a");
        assert_eq!(queue_state(&queue).await, QueueState::Visible);
        sleep(S).await;
        assert_eq!(queue.counts(), Counts { visible: 0, in_flight: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_drained_when_its_last_message_is_deleted() {
        let queue = queue_with(Kind::Standard, &["a"]);
        assert_eq!(queue_state(&queue).await, QueueState::Visible);
        let delivery = receive(&queue, 60 * S).await;
        let delete_later = async {
            sleep(10 * S).await;
            delete(&queue, &delivery).await
        };
        let asked_at = Instant::now();
        let (queue_state, deleted) = tokio::join!(queue_state(&queue), delete_later);
        assert_eq!((queue_state, deleted), (QueueState::Drained, Ok(())));
        assert_eq!(asked_at.elapsed(), 10 * S);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_behind_another_of_its_group_is_not_visible() {
        let queue = queue_with(Kind::Fifo, &["a", "b"]);
        receive(&queue, 60 * S).await;
        let asked_at = Instant::now();
        assert_eq!(queue_state(&queue).await, QueueState::Visible);
        assert_eq!(asked_at.elapsed(), 60 * S);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_letter_is_removed_from_the_queue() {
        let queue = MemoryQueue::new(
            Kind::Standard,
            Redrive::DeadLetter { max_receive_count: 1, queue: "dead".into() },
        );
        let message_id = queue.send("a");
        receive(&queue, S).await;
        sleep(S).await;
        assert_eq!(queue_state(&queue).await, QueueState::Visible);
        assert_eq!(queue.receive(Duration::ZERO, S).await, Ok(None));
        assert_eq!(queue_state(&queue).await, QueueState::Drained);
        assert_eq!(
            queue.dead_letters(),
            [DeadLetter { message_id, body: "a".into(), receive_count: 1 }]
        );
    }
}
