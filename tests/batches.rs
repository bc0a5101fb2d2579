//! The calls of concurrent runs go together: how many requests there are, and that each call keeps
//! its own result.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use leasehold::adapters::batches::{Batches, PATIENCE};
use leasehold::adapters::local::memory::Kind;
use leasehold::job::delivery::{Delivery, ReceiptHandle, Redrive};
use leasehold::job::lease::{Lease, Strategy};
use leasehold::job::outcome::Outcome;
use leasehold::job::report::DeleteResult;
use leasehold::job::run_outcome::RunOutcome;
use leasehold::job::verdict::{DeletePermit, OnStop, Retry, RetryPolicy, Verdict};
use leasehold::ports::clock::Clock;
use leasehold::ports::{BatchQueue, DeleteError, Queue, ReceiveError, VisibilityError};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::journey::{
    Does, FakeCommand, Journey, MINUTE, S, deletes, queue_of, queue_with, throttled,
};
use crate::support::logs::Logs;
use crate::support::object_created;
use crate::support::wire::{Call, Fault, Request, WiredQueue};

const MS: Duration = Duration::from_millis(1);
/// The time of a request, shorter than a call waits.
const LATENCY: Duration = Duration::from_millis(20);

/// A pod with several runs.
struct Pod {
    wire: WiredQueue,
    batches: Batches,
    stop: CancellationToken,
}

impl Pod {
    fn of(wire: WiredQueue, fifo: bool) -> Self {
        let stop = CancellationToken::new();
        let batches = Batches::new(Arc::new(wire.clone()), Clock::start(), fifo, 10, stop.clone());
        Self { wire, batches, stop }
    }

    fn with(messages: &[&str]) -> Self {
        Self::of(queue_with(messages), false)
    }

    /// Receives each message before the test.
    async fn holding(messages: &[&str]) -> (Self, Vec<Delivery>) {
        let pod = Self::with(messages);
        let mut held = Vec::new();
        for _ in messages {
            held.push(pod.batches.receive(S, MINUTE).await.unwrap().unwrap());
        }
        (pod, held)
    }

    async fn delete(&self, delivery: &Delivery) -> Result<(), DeleteError> {
        self.batches.delete(&delivery.receipt, permit(delivery, MINUTE)).await
    }

    /// Calls after the first one was sent.
    async fn delete_a_little_later(&self, delivery: &Delivery) -> Result<(), DeleteError> {
        sleep(MS).await;
        self.delete(delivery).await
    }

    fn requests(&self, kind: fn(usize) -> Request) -> Vec<usize> {
        let entries = |request: Request| {
            let (Request::Receive(n) | Request::ChangeVisibility(n) | Request::Delete(n)) = request;
            (request == kind(n)).then_some(n)
        };
        self.wire.requests().into_iter().filter_map(entries).collect()
    }
}

/// A permit for a lease of this length, since the start of the clock.
fn permit(delivery: &Delivery, lease: Duration) -> DeletePermit {
    let policy =
        RetryPolicy { retry: Retry::Expire, on_stop: OnStop::Expire, permanent_exit_codes: vec![] };
    let judged = policy.judge(&delivery.id(), &Redrive::None, Outcome::Finished);
    let Verdict::Delete(completed) = judged else { panic!("not completed") };
    let lease = Lease::taken(Strategy::Heartbeat, lease, Duration::ZERO);
    completed.permit(&lease, Duration::ZERO).unwrap()
}

#[tokio::test(start_paused = true)]
async fn calls_that_come_during_a_request_go_together() {
    let (pod, held) = Pod::holding(&["a", "b", "c", "d"]).await;
    pod.wire.fault_delete(Fault::AnswerDelayed(LATENCY));
    let rest = join_all(held[1..].iter().map(|it| pod.delete_a_little_later(it)));
    let (first, rest) = tokio::join!(pod.delete(&held[0]), rest);
    assert_eq!((first, rest), (Ok(()), vec![Ok(()); 3]));
    assert_eq!(pod.requests(Request::Delete), [1, 3]);
    assert!(pod.wire.is_drained());
}

#[tokio::test(start_paused = true)]
async fn calls_of_the_same_moment_go_together() {
    let (pod, held) = Pod::holding(&["a", "b", "c"]).await;
    let extended = held.iter().map(|it| pod.batches.change_visibility(&it.receipt, 30 * S));
    assert_eq!(join_all(extended).await, vec![Ok(()); 3]);
    assert_eq!(pod.requests(Request::ChangeVisibility), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_request_has_ten_entries_at_most() {
    let bodies: Vec<_> = (0..23).map(|n| n.to_string()).collect();
    let pod = Pod::with(&bodies.iter().map(String::as_str).collect::<Vec<_>>());
    let held = join_all((0..23).map(|_| pod.batches.receive(S, MINUTE))).await;
    let held: Vec<_> = held.into_iter().map(|it| it.unwrap().unwrap()).collect();
    let deleted = join_all(held.iter().map(|it| pod.delete(it))).await;
    assert_eq!(deleted, vec![Ok(()); 23]);
    assert_eq!(pod.requests(Request::Receive), [10, 10, 3]);
    assert_eq!(pod.requests(Request::Delete), [10, 10, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_request_delays_the_next_call_only_briefly() {
    let (pod, held) = Pod::holding(&["a", "b"]).await;
    pod.wire.fault_change_visibility(Fault::AnswerDelayed(5 * S));
    let extend = async |held: &Delivery| {
        let asked_at = Instant::now();
        pod.batches.change_visibility(&held.receipt, 30 * S).await.unwrap();
        asked_at.elapsed()
    };
    let second = async {
        sleep(MS).await;
        extend(&held[1]).await
    };
    let (first, second) = tokio::join!(extend(&held[0]), second);
    assert_eq!(first, 5 * S);
    assert!((PATIENCE..PATIENCE + 2 * MS).contains(&second), "{second:?}");
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_fails_fails_alone() {
    let (pod, held) = Pod::holding(&["a", "b", "c"]).await;
    let late = |what: &str| DeleteError::Transient(what.to_owned());
    pod.wire.fault_delete(Fault::Error(late("503")));
    pod.wire.fault_delete(Fault::AnswerDelayed(LATENCY));
    pod.wire.fault_delete(Fault::AnswerLost(late("reset")));
    let deleted = join_all(held.iter().map(|it| pod.delete(it))).await;
    assert_eq!(deleted, [Err(late("503")), Ok(()), Err(late("reset"))]);
    assert_eq!(pod.requests(Request::Delete), [3]);
    assert_eq!(pod.wire.counts().in_flight, 1, "the first is still in the queue");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_receive_is_that_of_each_run() {
    let pod = Pod::with(&[]);
    let error = ReceiveError::Misconfigured("no such queue".to_owned());
    pod.wire.fault_receive(Fault::Error(error.clone()));
    let received = join_all((0..3).map(|_| pod.batches.receive(S, MINUTE))).await;
    assert_eq!(received, [Err(error.clone()), Err(error.clone()), Err(error)]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_withdraws_deletes_that_wait_and_prevents_later_ones() {
    let (pod, held) = Pod::holding(&["a", "b", "c"]).await;
    pod.wire.fault_delete(Fault::AnswerDelayed(LATENCY));
    let stop = async {
        sleep(LATENCY / 2).await;
        pod.stop.cancel();
        pod.delete(&held[2]).await
    };
    let second = pod.delete_a_little_later(&held[1]);
    let (first, second, third) = tokio::join!(pod.delete(&held[0]), second, stop);
    let not_sent = Err(DeleteError::NotSent("the pod is stopping"));
    assert_eq!((first, second, third), (Ok(()), not_sent.clone(), not_sent));
    assert_eq!(pod.requests(Request::Delete), [1]);
    assert_eq!(pod.wire.counts().in_flight, 2);
}

#[tokio::test(start_paused = true)]
async fn after_a_stop_messages_are_released_and_none_is_received() {
    let (pod, held) = Pod::holding(&["a", "b"]).await;
    pod.stop.cancel();
    let released = held.iter().map(|it| pod.batches.change_visibility(&it.receipt, Duration::ZERO));
    assert_eq!(join_all(released).await, vec![Ok(()); 2]);
    assert_eq!(pod.batches.receive(10 * S, MINUTE).await, Ok(None));
    assert_eq!((pod.requests(Request::Receive), pod.wire.counts().visible), (vec![1, 1], 2));
}

#[tokio::test(start_paused = true)]
async fn a_delete_whose_lease_ends_while_it_waits_is_not_sent() {
    let (pod, held) = Pod::holding(&["a", "b"]).await;
    pod.wire.fault_delete(Fault::AnswerDelayed(LATENCY));
    let second = async {
        sleep(MS).await;
        pod.batches.delete(&held[1].receipt, permit(&held[1], LATENCY / 2)).await
    };
    let (first, second) = tokio::join!(pod.delete(&held[0]), second);
    let not_sent = DeleteError::NotSent("the lease ended before");
    assert_eq!((first, second), (Ok(()), Err(not_sent)));
    assert_eq!((pod.requests(Request::Delete), pod.wire.counts().in_flight), (vec![1], 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_while_it_waits_is_not_sent() {
    let (pod, held) = Pod::holding(&["a", "b"]).await;
    pod.wire.fault_delete(Fault::AnswerDelayed(LATENCY));
    let given_up = timeout(LATENCY / 2, pod.delete_a_little_later(&held[1]));
    let (first, given_up) = tokio::join!(pod.delete(&held[0]), given_up);
    assert!(first.is_ok() && given_up.is_err());
    sleep(S).await;
    assert_eq!((pod.requests(Request::Delete), pod.wire.counts().in_flight), (vec![1], 1));
}

/// A queue whose changes and deletes need a connection first.
struct Connecting(WiredQueue);

const CONNECT: Duration = Duration::from_secs(3);

#[async_trait]
impl Queue for Connecting {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        self.0.receive(wait, visibility).await
    }

    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError> {
        sleep(CONNECT).await;
        self.0.change_visibility(receipt, visibility).await
    }

    async fn delete(
        &self,
        receipt: &ReceiptHandle,
        permit: DeletePermit,
    ) -> Result<(), DeleteError> {
        sleep(CONNECT).await;
        self.0.delete(receipt, permit).await
    }

    async fn redrive(&self) -> Result<Redrive, String> {
        self.0.redrive().await
    }
}

#[async_trait]
impl BatchQueue for Connecting {
    async fn receive_batch(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Result<Delivery, ReceiveError>>, ReceiveError> {
        self.0.receive_batch(most, wait, visibility).await
    }

    async fn change_visibility_batch(
        &self,
        changes: &[(ReceiptHandle, Duration)],
    ) -> Vec<Result<(), VisibilityError>> {
        sleep(CONNECT).await;
        self.0.change_visibility_batch(changes).await
    }

    async fn delete_batch(
        &self,
        deletes: Vec<(ReceiptHandle, DeletePermit)>,
    ) -> Vec<Result<(), DeleteError>> {
        sleep(CONNECT).await;
        self.0.delete_batch(deletes).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_before_its_batch_is_sent_has_no_effect() {
    let (pod, held) = Pod::holding(&["a", "b"]).await;
    let (clock, stop) = (Clock::start(), CancellationToken::new());
    let queue = Arc::new(Connecting(pod.wire.clone()));
    let batches = Batches::new(queue, clock, false, 2, stop);
    let extend = async |held: &Delivery| batches.change_visibility(&held.receipt, 30 * S).await;
    let delete = async |held: &Delivery| batches.delete(&held.receipt, permit(held, MINUTE)).await;

    let (given_up, other) = tokio::join!(timeout(S, extend(&held[0])), extend(&held[1]));
    assert!(given_up.is_err() && matches!(other, Err(VisibilityError::Unclear(_))), "{other:?}");
    let (given_up, other) = tokio::join!(timeout(S, delete(&held[0])), delete(&held[1]));
    let no_answer = DeleteError::Transient("the request ended without an answer".to_owned());
    assert!(given_up.is_err());
    assert_eq!(other, Err(no_answer));
    sleep(MINUTE / 2).await;
    assert_eq!(pod.wire.calls().len(), 2, "the two receives: {:?}", pod.wire.calls());
    // The other run repeats its calls.
    assert_eq!(extend(&held[1]).await, Ok(()));
    assert_eq!(delete(&held[1]).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_release_gets_its_answer_although_other_calls_are_given_up() {
    let (pod, held) = Pod::holding(&["a", "b", "c"]).await;
    let (clock, stop) = (Clock::start(), CancellationToken::new());
    let queue = Arc::new(Connecting(pod.wire.clone()));
    let batches = Batches::new(queue, clock, false, 3, stop);
    let extend = timeout(S, batches.change_visibility(&held[0].receipt, 30 * S));
    let given_up = timeout(S, batches.release(&held[1].receipt, 5 * S));
    let release = timeout(5 * S, batches.release(&held[2].receipt, 10 * S));
    let (extended, given_up, released) = tokio::join!(extend, given_up, release);
    assert!(extended.is_err() && given_up.is_err());
    assert_eq!(released, Ok(Ok(())));
    assert_eq!(pod.requests(Request::ChangeVisibility), [2], "the extension was not sent");
}

#[tokio::test(start_paused = true)]
async fn a_release_that_all_have_given_up_is_not_sent() {
    let (pod, held) = Pod::holding(&["a", "b"]).await;
    let queue = Arc::new(Connecting(pod.wire.clone()));
    let batches = Batches::new(queue, Clock::start(), false, 2, CancellationToken::new());
    let release = |held| timeout(S, batches.release(held, Duration::ZERO));
    let given_up = tokio::join!(release(&held[0].receipt), release(&held[1].receipt));
    assert!(given_up.0.is_err() && given_up.1.is_err());
    sleep(MINUTE / 2).await;
    assert!(pod.requests(Request::ChangeVisibility).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_was_sent_before_a_stop_gets_its_answer_although_another_is_given_up() {
    let (pod, held) = Pod::holding(&["a", "b"]).await;
    pod.wire.fault_delete(Fault::AnswerDelayed(2 * S));
    let stop = async {
        sleep(S / 2).await;
        pod.stop.cancel();
    };
    let (given_up, other) = (timeout(S, pod.delete(&held[0])), pod.delete(&held[1]));
    let (given_up, other, ()) = tokio::join!(given_up, other, stop);
    assert!(given_up.is_err());
    assert_eq!((other, pod.requests(Request::Delete)), (Ok(()), vec![2]));
    assert!(pod.wire.is_drained());
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_does_not_keep_another_run_from_receiving() {
    let pod = Pod::with(&[]);
    let later = async {
        sleep(S).await;
        pod.batches.receive(20 * S, MINUTE).await
    };
    let send = async {
        sleep(2 * S).await;
        pod.wire.send("a");
        pod.wire.send("b");
    };
    let asked_at = Instant::now();
    let (one, other, ()) = tokio::join!(pod.batches.receive(20 * S, MINUTE), later, send);
    assert!(one.unwrap().is_some() && other.unwrap().is_some());
    assert_eq!(asked_at.elapsed(), 2 * S);
}

#[tokio::test(start_paused = true)]
async fn runs_without_a_message_wait_for_the_rest_of_their_time() {
    let pod = Pod::with(&[]);
    let receive = async || {
        let asked_at = Instant::now();
        (pod.batches.receive(10 * S, MINUTE).await.unwrap().is_some(), asked_at.elapsed())
    };
    let send = async {
        sleep(3500 * MS).await;
        pod.wire.send("a");
    };
    let (mut received, ()) = tokio::join!(join_all((0..3).map(|_| receive())), send);
    received.sort();
    // Requests have whole seconds: 6 of the remaining 6.5.
    let nothing = (false, 9500 * MS);
    assert_eq!(received, [nothing, nothing, (true, 3500 * MS)]);
    assert_eq!(pod.requests(Request::Receive), [3, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_short_poll_that_found_some_messages_is_repeated() {
    let pod = Pod::with(&["a"]);
    pod.wire.fault_receive(Fault::AnswerDelayed(LATENCY));
    let send = async {
        sleep(MS).await;
        pod.wire.send("b");
    };
    let polls = join_all((0..3).map(|_| pod.batches.receive(Duration::ZERO, MINUTE)));
    let (received, ()) = tokio::join!(polls, send);
    assert_eq!(received.iter().flatten().flatten().count(), 2);
    assert_eq!(pod.requests(Request::Receive), [3, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_message_for_a_run_that_has_ended_is_released() {
    let pod = Pod::with(&[]);
    let ended = timeout(S, pod.batches.receive(10 * S, MINUTE));
    let (one, ended) = tokio::join!(
        async {
            let received = pod.batches.receive(10 * S, MINUTE);
            let send = async {
                sleep(2 * S).await;
                pod.wire.send("a");
                pod.wire.send("b");
            };
            tokio::join!(received, send).0
        },
        ended
    );
    assert!(one.unwrap().is_some() && ended.is_err());
    sleep(MS).await;
    let counts = pod.wire.counts();
    assert_eq!((counts.visible, counts.in_flight), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_fifo_queue_is_asked_for_one_message_at_a_time() {
    let pod = Pod::of(queue_of(Kind::Fifo, 3, &[]), true);
    for group in ["g1", "g1", "g2"] {
        pod.wire.send_in_group("a", group);
    }
    let held = join_all((0..3).map(|_| pod.batches.receive(Duration::ZERO, MINUTE))).await;
    let held: Vec<_> = held.into_iter().filter_map(|it| it.unwrap()).collect();
    assert_eq!((held.len(), pod.requests(Request::Receive)), (2, vec![1, 1, 1]));
    assert_eq!(join_all(held.iter().map(|it| pod.delete(it))).await, vec![Ok(()); 2]);
    assert_eq!(pod.requests(Request::Delete), [2]);
}

/// How many requests ten runs need for 100 messages. Single calls would be 200.
async fn requests_of_a_drain(latency: Duration, command: impl Fn(u32) -> Duration) -> usize {
    const MESSAGES: u32 = 100;
    let bodies: Vec<_> = (0..MESSAGES).map(|n| object_created(&format!("k{n}"))).collect();
    let pod = Pod::with(&bodies.iter().map(String::as_str).collect::<Vec<_>>());
    for _ in 0..2 * MESSAGES {
        pod.wire.fault_receive(Fault::AnswerDelayed(latency));
        pod.wire.fault_delete(Fault::AnswerDelayed(latency));
    }
    let does = (0..MESSAGES).map(|n| Does::Exits(command(n), 0));
    let command = FakeCommand::sequence(does);
    let Pod { wire, batches, .. } = pod;
    let mut journey = Journey::new(&wire, &command);
    journey.queue = Arc::new(batches);
    journey.settings.policy.max_messages = MESSAGES;
    journey.concurrency = 10;
    let result = journey.run().await;
    assert_eq!((result.outcome, command.runs()), (RunOutcome::Finished, 100));
    assert!(wire.is_drained());
    let deletes = wire.calls().iter().filter(|it| it.call == Call::Delete).count();
    assert_eq!(deletes, 100);
    wire.requests().len()
}

/// Without a wait for other deletes, there would be about 114, 59, 186, 108 and 142 requests.
#[tokio::test(start_paused = true)]
async fn a_pod_that_drains_a_queue_sends_few_requests() {
    let short = |n| (1 + 7 * n % 5) * MS;
    let longer = |n| (45 + 7 * n % 10) * MS;
    let mixed = |n| if n % 2 == 0 { 5 * MS } else { (50 + 37 * n % 100) * MS };
    for (what, latency, command, most) in [
        ("short", MS / 4, short as fn(u32) -> Duration, 40),
        ("short", 10 * MS, short, 40),
        ("longer", MS / 4, longer, 40),
        ("longer", 10 * MS, longer, 40),
        ("mixed", 10 * MS, mixed, 90),
    ] {
        let requests = requests_of_a_drain(latency, command).await;
        assert!(requests <= most, "{what} commands, {latency:?}: {requests}");
    }
}

#[tokio::test(start_paused = true)]
async fn runs_whose_deletes_went_together_receive_together() {
    let (pod, held) = Pod::holding(&["a", "b"]).await;
    pod.wire.send("c");
    pod.wire.send("d");
    let next = async |held, later| {
        pod.delete(held).await.unwrap();
        sleep(later).await;
        pod.batches.receive(S, MINUTE).await.unwrap().is_some()
    };
    let next = tokio::join!(next(&held[0], 4 * MS), next(&held[1], 7 * MS));
    assert_eq!((next, pod.requests(Request::Delete)), ((true, true), vec![2]));
    assert_eq!(pod.requests(Request::Receive), [1, 1, 2]);
}

/// The other run may have ended, so the next receive does not wait.
#[tokio::test(start_paused = true)]
async fn a_receive_waits_for_another_run_as_long_again_as_it_came_after_the_delete() {
    let (pod, held) = Pod::holding(&["a", "b"]).await;
    pod.wire.send("c");
    let deleted = join_all(held.iter().map(|it| pod.delete(it))).await;
    assert_eq!(deleted, vec![Ok(()); 2]);
    sleep(4 * MS).await;
    for (found, waits) in [(true, 4 * MS), (false, Duration::ZERO), (false, Duration::ZERO)] {
        let asked_at = Instant::now();
        let received = pod.batches.receive(Duration::ZERO, MINUTE).await.unwrap();
        assert!((waits..waits + 2 * MS).contains(&asked_at.elapsed()), "{:?}", asked_at.elapsed());
        assert_eq!(received.is_some(), found);
    }
}

/// The other runs wait for messages, so no other delete can come.
#[tokio::test(start_paused = true)]
async fn the_only_message_of_a_pod_is_deleted_at_once() {
    let pod = Pod::with(&["a"]);
    let works = async {
        let held = pod.batches.receive(20 * S, MINUTE).await.unwrap().unwrap();
        sleep(S).await;
        let done_at = Instant::now();
        pod.delete(&held).await.unwrap();
        done_at.elapsed()
    };
    let others = join_all((0..9).map(|_| pod.batches.receive(20 * S, MINUTE)));
    let (took, _) = tokio::join!(works, others);
    assert_eq!(took, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_delete_does_not_wait_for_a_message_that_was_released() {
    let (pod, held) = Pod::holding(&["a", "b"]).await;
    sleep(S).await;
    assert_eq!(pod.batches.release(&held[0].receipt, S).await, Ok(()));
    let done_at = Instant::now();
    assert_eq!(pod.delete(&held[1]).await, Ok(()));
    assert_eq!(done_at.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_delete_waits_for_other_runs_only_briefly_and_not_in_a_stop() {
    let (pod, held) = Pod::holding(&["a", "b", "c", "d"]).await;
    sleep(10 * MS).await;
    let done_at = Instant::now();
    let second = async {
        sleep(5 * MS).await;
        pod.delete(&held[1]).await
    };
    // The second came 15 ms after the receive, so both wait for another 15 ms.
    assert_eq!(tokio::join!(pod.delete(&held[0]), second), (Ok(()), Ok(())));
    assert_eq!((done_at.elapsed(), pod.requests(Request::Delete)), (20 * MS, vec![2]));
    sleep(S).await;
    let done_at = Instant::now();
    assert_eq!(pod.delete(&held[2]).await, Ok(()));
    assert_eq!((done_at.elapsed(), pod.requests(Request::Delete)), (PATIENCE, vec![2, 1]));

    let (pod, held) = Pod::holding(&["a", "b"]).await;
    sleep(S).await;
    let done_at = Instant::now();
    let stop = async {
        sleep(MS).await;
        pod.stop.cancel();
    };
    let (deleted, ()) = tokio::join!(pod.delete(&held[0]), stop);
    assert_eq!(deleted, Err(DeleteError::NotSent("the pod is stopping")));
    assert_eq!((done_at.elapsed(), pod.requests(Request::Delete)), (MS, vec![]));
}

/// The queue did not fail: there is no warning, and the delete is counted once.
#[tokio::test(start_paused = true)]
async fn a_delete_that_a_stop_withdraws_while_it_waits_is_not_a_failure() {
    let logs = Logs::default();
    let _capturing = logs.capture();
    let pod = Pod::with(&[&object_created("done"), &object_created("works")]);
    let command = FakeCommand::sequence([Does::Exits(5 * S, 0), Does::Exits(5 * MINUTE, 0)]);
    let Pod { wire, batches, stop } = pod;
    let mut journey = Journey::new(&wire, &command);
    journey.queue = Arc::new(batches);
    journey.settings.policy.max_messages = 2;
    journey.concurrency = 2;
    let stopped = async move {
        sleep(5 * S + PATIENCE / 2).await;
        stop.cancel();
        // The runs learn of the stop after the answer of the delete.
        sleep(MS).await;
    };
    let result = journey.run_until(stopped).await;
    assert_eq!((result.outcomes(), wire.counts().visible), (vec!["stopped"; 2], 2));
    assert_eq!(deletes(&wire), 0);
    assert_eq!(result.telemetry.delete_results(), [DeleteResult::Withdrawn]);
    assert!(!logs.complaints().iter().any(|it| it.contains("delete")), "{:?}", logs.complaints());
}

/// An extension that fails is retried by its run, like that of a pod with one message.
#[tokio::test(start_paused = true)]
async fn each_run_extends_its_own_lease() {
    let bodies: Vec<_> = (0..3).map(|n| object_created(&format!("k{n}"))).collect();
    let pod = Pod::with(&bodies.iter().map(String::as_str).collect::<Vec<_>>());
    pod.wire.fault_change_visibility(Fault::Error(throttled()));
    pod.wire.fault_change_visibility(Fault::AnswerLost(VisibilityError::Unclear("503".into())));
    let command = FakeCommand::new(Does::Exits(5 * MINUTE, 0));
    let Pod { wire, batches, .. } = pod;
    let mut journey = Journey::new(&wire, &command);
    journey.queue = Arc::new(batches);
    journey.settings.policy.max_messages = 3;
    journey.concurrency = 3;
    let result = journey.run().await;
    assert_eq!(
        (result.outcome, result.telemetry.outcomes()),
        (RunOutcome::Finished, vec!["succeeded"; 3])
    );
    assert!(wire.is_drained());
}
