//! What a queue does: the same assertions about the queue in memory, on a paused clock, and about the SQS
//! adapter against two real servers, so that one server's quirk does not become our behaviour.
//!
//! Where a server is not like SQS, [`MINISTACK`] and [`MOTO`] say how, and the difference itself is asserted: a
//! server that becomes more like SQS fails the test, as does one that becomes less so.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;
use leasehold::job::delivery::{Delivery, ReceiptHandle, Redrive};
use leasehold::job::lease::{CEILING, Lease, Strategy};
use leasehold::job::verdict::{OnStop, Outcome, Retry, RetryPolicy, Verdict};
use leasehold::ports::memory::{Kind, MemoryQueue};
use leasehold::ports::sqs::Sqs;
use leasehold::ports::{DeleteError, Queue, VisibilityError};
use tokio::time::{Instant, sleep};

use crate::support::aws;
use crate::support::servers::{Ministack, Moto};

const S: Duration = Duration::from_secs(1);
/// Longer than any of these tests.
const LONG: Duration = Duration::from_mins(10);
/// No server tells when a poll has come to it.
const POLL_BEGUN: Duration = Duration::from_millis(200);

/// How a call was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Ok,
    NotInFlight,
    AtCeiling,
    Refused,
    Transient,
}

/// What one may disagree about.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an observation of its own")]
struct Truth {
    /// A ChangeMessageVisibility after the message's time ran out, before anybody received it again.
    late_extension: Answer,
    late_extension_hides_again: bool,
    late_extension_in_fifo: Answer,
    /// One with the handle of an earlier receive.
    superseded_extension: Answer,
    superseded_extension_extends: bool,
    /// One for more than 12 hours.
    extension_over_ceiling: Answer,
    /// One past 12 hours from the receive.
    extension_past_ceiling: Answer,
    /// One within 12 hours from the receive, but past 12 hours from the send.
    extension_of_an_old_message: Answer,
    repeated_delete: Answer,
    superseded_delete: Answer,
    superseded_delete_deletes: bool,
    /// A delete after the message's time ran out, before anybody received it again.
    late_delete_in_fifo: Answer,
    late_delete_in_fifo_deletes: bool,
}

/// SQS, as recorded or documented; `memory.rs` names the sources and what is disputed.
const SQS: Truth = Truth {
    late_extension: Answer::Ok,
    late_extension_hides_again: false,
    late_extension_in_fifo: Answer::NotInFlight,
    superseded_extension: Answer::Ok,
    superseded_extension_extends: false,
    extension_over_ceiling: Answer::AtCeiling,
    extension_past_ceiling: Answer::AtCeiling,
    extension_of_an_old_message: Answer::Ok,
    repeated_delete: Answer::Ok,
    superseded_delete: Answer::Ok,
    superseded_delete_deletes: false,
    late_delete_in_fifo: Answer::Refused,
    late_delete_in_fifo_deletes: false,
};

/// ministack 1.5.33: kinder than SQS about time, stricter about old handles.
const MINISTACK: Truth = Truth {
    late_extension_hides_again: true,
    late_extension_in_fifo: Answer::Ok,
    superseded_extension: Answer::NotInFlight,
    extension_over_ceiling: Answer::Ok,
    extension_past_ceiling: Answer::Ok,
    repeated_delete: Answer::Refused,
    superseded_delete: Answer::Refused,
    late_delete_in_fifo: Answer::Ok,
    late_delete_in_fifo_deletes: true,
    ..SQS
};

/// moto 5.2.5: kinder than SQS about time and about old handles, which keep all their power; and it counts the 12
/// hours from the send.
const MOTO: Truth = Truth {
    late_extension_hides_again: true,
    late_extension_in_fifo: Answer::Ok,
    superseded_extension_extends: true,
    // In words of its own, of which SQS has none.
    extension_over_ceiling: Answer::Transient,
    extension_of_an_old_message: Answer::AtCeiling,
    superseded_delete_deletes: true,
    late_delete_in_fifo: Answer::Ok,
    late_delete_in_fifo_deletes: true,
    ..SQS
};

/// A queue, fresh and empty, and what only its maker can do with it.
trait World: Sized {
    const TRUTH: Truth;

    /// `max_receive_count` if it has a dead-letter queue.
    async fn with_queue(kind: Kind, max_receive_count: Option<u32>) -> Self;
    fn queue(&self) -> &dyn Queue;
    fn dead_letter_queue(&self) -> String;
    /// Returns the message's id. A standard queue makes nothing of the group.
    async fn send(&self, body: &str, group: &str) -> String;
    /// Their bodies.
    async fn dead_letters(&self) -> Vec<String>;

    async fn receive(&self, wait: Duration, visibility: Duration) -> Option<Delivery> {
        self.queue().receive(wait, visibility).await.unwrap()
    }

    /// What is visible now.
    async fn look(&self) -> Option<Delivery> {
        self.receive(Duration::ZERO, LONG).await
    }

    async fn change(&self, delivery: &Delivery, visibility: Duration) -> Answer {
        match self.queue().change_visibility(&delivery.receipt, visibility).await {
            Ok(()) => Answer::Ok,
            Err(VisibilityError::NotInFlight(_)) => Answer::NotInFlight,
            Err(VisibilityError::AtCeiling(_)) => Answer::AtCeiling,
            Err(VisibilityError::Transient(_)) => Answer::Transient,
        }
    }

    async fn release(&self, delivery: &Delivery) {
        assert_eq!(self.change(delivery, Duration::ZERO).await, Answer::Ok);
    }

    async fn delete(&self, delivery: &Delivery) -> Answer {
        let policy = RetryPolicy { retry: Retry::Expire, on_stop: OnStop::Expire, permanent_exit_codes: vec![] };
        let Verdict::Delete(completed) = policy.judge(delivery, Outcome::Finished) else { panic!("not completed") };
        let lease = Lease::taken(Strategy::Heartbeat, LONG, Duration::ZERO);
        match self.queue().delete(completed.permit(&lease, Duration::ZERO).unwrap()).await {
            Ok(()) => Answer::Ok,
            Err(DeleteError::Refused(_)) => Answer::Refused,
            Err(DeleteError::Transient(_)) => Answer::Transient,
        }
    }
}

struct Memory(MemoryQueue);

impl World for Memory {
    const TRUTH: Truth = SQS;

    async fn with_queue(kind: Kind, max_receive_count: Option<u32>) -> Self {
        let dead_letter = |max_receive_count| Redrive::DeadLetter { max_receive_count, queue: "dead".into() };
        Self(MemoryQueue::new(kind, max_receive_count.map_or(Redrive::None, dead_letter)))
    }

    fn queue(&self) -> &dyn Queue {
        &self.0
    }

    fn dead_letter_queue(&self) -> String {
        "dead".into()
    }

    async fn send(&self, body: &str, group: &str) -> String {
        self.0.send_in_group(body, group).to_string()
    }

    async fn dead_letters(&self) -> Vec<String> {
        self.0.dead_letters().into_iter().map(|letter| letter.body).collect()
    }
}

trait Server {
    const TRUTH: Truth;

    async fn endpoint() -> String;
}

impl Server for Ministack {
    const TRUTH: Truth = MINISTACK;

    async fn endpoint() -> String {
        Self::shared().await.endpoint()
    }
}

impl Server for Moto {
    const TRUTH: Truth = MOTO;

    async fn endpoint() -> String {
        Self::shared().await.endpoint()
    }
}

struct On<S> {
    client: aws_sdk_sqs::Client,
    kind: Kind,
    queue: Sqs,
    queue_url: String,
    dead_letter_queue_url: String,
    server: PhantomData<S>,
}

impl<S: Server> World for On<S> {
    const TRUTH: Truth = S::TRUTH;

    async fn with_queue(kind: Kind, max_receive_count: Option<u32>) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let config = aws::config(&S::endpoint().await);
        let client = aws_sdk_sqs::Client::new(&config);
        let name = format!("contract-{}", MADE.fetch_add(1, Ordering::Relaxed));
        let create = async |name: String, redrive: Option<String>| {
            let (name, fifo) = match kind {
                Kind::Standard => (name, None),
                Kind::Fifo => (format!("{name}.fifo"), Some("true")),
            };
            let request = client.create_queue().queue_name(name);
            let request = request.set_attributes(Some(
                [
                    (QueueAttributeName::FifoQueue, fifo.map(str::to_owned)),
                    (QueueAttributeName::RedrivePolicy, redrive),
                ]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect(),
            ));
            request.send().await.unwrap().queue_url.unwrap()
        };
        let dead_letter_queue_url = create(format!("{name}-dead"), None).await;
        let asked = client.get_queue_attributes().queue_url(&dead_letter_queue_url);
        let asked = asked.attribute_names(QueueAttributeName::QueueArn).send().await.unwrap();
        let arn = asked.attributes.unwrap().remove(&QueueAttributeName::QueueArn).unwrap();
        let redrive = max_receive_count.map(|max_receive_count| {
            format!(r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":{max_receive_count}}}"#)
        });
        let queue_url = create(name, redrive).await;
        let queue = Sqs::new(&config, queue_url.clone());
        Self { client, kind, queue, queue_url, dead_letter_queue_url, server: PhantomData }
    }

    fn queue(&self) -> &dyn Queue {
        &self.queue
    }

    fn dead_letter_queue(&self) -> String {
        last_part(&self.dead_letter_queue_url).to_owned()
    }

    async fn send(&self, body: &str, group: &str) -> String {
        let message = self.client.send_message().queue_url(&self.queue_url).message_body(body);
        let message = match self.kind {
            Kind::Standard => message,
            Kind::Fifo => message.message_group_id(group).message_deduplication_id(body),
        };
        message.send().await.unwrap().message_id.unwrap()
    }

    async fn dead_letters(&self) -> Vec<String> {
        let receive = self.client.receive_message().queue_url(&self.dead_letter_queue_url).max_number_of_messages(10);
        let messages = receive.send().await.unwrap().messages.unwrap_or_default();
        messages.into_iter().filter_map(|message| message.body).collect()
    }
}

fn last_part(url: &str) -> &str {
    url.rsplit('/').next().unwrap()
}

/// Each of these functions becomes a test about the queue in memory, and one about the adapter for each server.
macro_rules! contract {
    ($($sentence:ident)*) => {
        mod in_memory {
            $(#[tokio::test(start_paused = true)]
            async fn $sentence() {
                super::$sentence::<super::Memory>().await;
            })*
        }
        mod on_ministack {
            $(#[tokio::test]
            async fn $sentence() {
                super::$sentence::<super::On<super::Ministack>>().await;
            })*
        }
        mod on_moto {
            $(#[tokio::test]
            async fn $sentence() {
                super::$sentence::<super::On<super::Moto>>().await;
            })*
        }
    };
}

contract! {
    a_poll_ends_empty_handed_when_its_time_is_over
    a_message_is_delivered_as_it_was_sent
    a_message_in_flight_is_delivered_to_nobody_else
    a_send_wakes_a_poll
    a_release_wakes_a_poll
    a_message_comes_back_when_its_time_runs_out
    an_extension_counts_from_its_call
    an_extension_is_forgotten_at_the_next_receive
    a_release_makes_the_message_visible_at_once
    an_extension_after_the_time_ran_out
    an_extension_after_a_delete_is_refused
    an_extension_by_the_handle_of_an_earlier_receive
    an_extension_past_the_ceiling
    the_ceiling_counts_from_the_receive
    a_handle_of_no_message_is_refused
    a_deleted_message_does_not_come_back
    a_delete_may_be_repeated
    a_delete_after_the_time_ran_out_deletes
    a_delete_by_the_handle_of_an_earlier_receive
    a_delete_after_the_time_ran_out_in_a_fifo_queue
    an_extension_after_the_time_ran_out_in_a_fifo_queue
    a_message_in_flight_blocks_its_group_only
    a_group_keeps_its_order
    the_receive_after_the_last_moves_the_message_to_the_dead_letters
    a_message_in_flight_for_the_last_time_can_be_deleted
    the_redrive_policy_is_told
}

async fn standard<W: World>() -> W {
    W::with_queue(Kind::Standard, None).await
}

async fn fifo<W: World>() -> W {
    W::with_queue(Kind::Fifo, None).await
}

/// Sends one message and receives it, for `visibility`.
async fn delivered<W: World>(world: &W, visibility: Duration) -> Delivery {
    world.send("body", "group").await;
    world.receive(Duration::ZERO, visibility).await.expect("the message just sent")
}

async fn a_poll_ends_empty_handed_when_its_time_is_over<W: World>() {
    let world: W = standard().await;
    let asked_at = Instant::now();
    assert_eq!(world.receive(S, LONG).await, None);
    assert!((S..3 * S).contains(&asked_at.elapsed()), "after {:?}", asked_at.elapsed());
}

async fn a_message_is_delivered_as_it_was_sent<W: World>() {
    let world: W = standard().await;
    let id = world.send("böd\ny", "").await;
    let delivery = world.look().await.unwrap();
    assert_eq!(delivery.message_id.as_str(), id);
    assert_eq!(delivery.body, "böd\ny");
    assert_eq!(delivery.receive_count, 1);
}

async fn a_message_in_flight_is_delivered_to_nobody_else<W: World>() {
    let world: W = standard().await;
    world.send("only one", "").await;
    let (one, other) = tokio::join!(world.receive(S, LONG), world.receive(S, LONG));
    assert!(one.is_some() != other.is_some(), "{one:?} and {other:?}");
}

async fn a_send_wakes_a_poll<W: World>() {
    let world: W = standard().await;
    let asked_at = Instant::now();
    let send = async {
        sleep(POLL_BEGUN).await;
        world.send("body", "").await
    };
    let (received, _) = tokio::join!(world.receive(20 * S, LONG), send);
    assert!(received.is_some());
    assert!(asked_at.elapsed() < 5 * S, "after {:?}", asked_at.elapsed());
}

async fn a_release_wakes_a_poll<W: World>() {
    let world: W = standard().await;
    let delivery = delivered(&world, LONG).await;
    let asked_at = Instant::now();
    let release = async {
        sleep(POLL_BEGUN).await;
        world.release(&delivery).await;
    };
    let (received, ()) = tokio::join!(world.receive(20 * S, LONG), release);
    assert!(received.is_some());
    assert!(asked_at.elapsed() < 5 * S, "after {:?}", asked_at.elapsed());
}

async fn a_message_comes_back_when_its_time_runs_out<W: World>() {
    let world: W = standard().await;
    let asked_at = Instant::now();
    let first = delivered(&world, S).await;
    let second = world.receive(20 * S, LONG).await.unwrap();
    assert!((S..4 * S).contains(&asked_at.elapsed()), "after {:?}", asked_at.elapsed());
    assert_eq!((&second.message_id, second.receive_count), (&first.message_id, 2));
    assert!(second.receipt != first.receipt, "each delivery has a handle of its own");
}

async fn an_extension_counts_from_its_call<W: World>() {
    let check = async |visibility| {
        let world: W = standard().await;
        let delivery = delivered(&world, visibility).await;
        let asked_at = Instant::now();
        assert_eq!(world.change(&delivery, 2 * S).await, Answer::Ok);
        assert!(world.receive(20 * S, LONG).await.is_some());
        assert!((2 * S..5 * S).contains(&asked_at.elapsed()), "after {:?}", asked_at.elapsed());
    };
    tokio::join!(check(S), check(LONG));
}

async fn an_extension_is_forgotten_at_the_next_receive<W: World>() {
    let world: W = standard().await;
    let first = delivered(&world, S).await;
    assert_eq!(world.change(&first, LONG).await, Answer::Ok);
    world.release(&first).await;
    world.receive(Duration::ZERO, S).await.unwrap();
    assert!(world.receive(20 * S, LONG).await.is_some());
}

async fn a_release_makes_the_message_visible_at_once<W: World>() {
    let world: W = standard().await;
    let delivery = delivered(&world, LONG).await;
    assert_eq!(world.look().await, None);
    world.release(&delivery).await;
    assert_eq!(world.look().await.unwrap().receive_count, 2);
}

async fn an_extension_after_the_time_ran_out<W: World>() {
    let world: W = standard().await;
    let delivery = delivered(&world, LONG).await;
    world.release(&delivery).await;
    assert_eq!(world.change(&delivery, LONG).await, W::TRUTH.late_extension);
    assert_eq!(world.look().await.is_none(), W::TRUTH.late_extension_hides_again);
}

async fn an_extension_after_a_delete_is_refused<W: World>() {
    let world: W = standard().await;
    let delivery = delivered(&world, LONG).await;
    assert_eq!(world.delete(&delivery).await, Answer::Ok);
    assert_eq!(world.change(&delivery, LONG).await, Answer::NotInFlight);
}

async fn an_extension_by_the_handle_of_an_earlier_receive<W: World>() {
    let world: W = standard().await;
    let first = delivered(&world, LONG).await;
    world.release(&first).await;
    world.receive(Duration::ZERO, S).await.unwrap();
    assert_eq!(world.change(&first, LONG).await, W::TRUTH.superseded_extension);
    let third = world.receive(4 * S, LONG).await.map(|delivery| delivery.receive_count);
    assert_eq!(third, (!W::TRUTH.superseded_extension_extends).then_some(3));
}

async fn an_extension_past_the_ceiling<W: World>() {
    let world: W = standard().await;
    let delivery = delivered(&world, LONG).await;
    // A second passes.
    assert_eq!(world.receive(S, LONG).await, None);
    assert_eq!(world.change(&delivery, CEILING + S).await, W::TRUTH.extension_over_ceiling);
    assert_eq!(world.change(&delivery, CEILING).await, W::TRUTH.extension_past_ceiling);
    assert_eq!(world.change(&delivery, LONG).await, Answer::Ok);
}

async fn the_ceiling_counts_from_the_receive<W: World>() {
    let world: W = standard().await;
    world.send("body", "").await;
    sleep(3 * S).await;
    let delivery = world.look().await.unwrap();
    assert_eq!(world.change(&delivery, CEILING - 2 * S).await, W::TRUTH.extension_of_an_old_message);
}

async fn a_handle_of_no_message_is_refused<W: World>() {
    for kind in [Kind::Standard, Kind::Fifo] {
        let world = W::with_queue(kind, None).await;
        let delivery = Delivery { receipt: ReceiptHandle::new("garbage"), ..delivered(&world, LONG).await };
        assert_eq!(world.change(&delivery, LONG).await, Answer::NotInFlight);
        assert_eq!(world.delete(&delivery).await, Answer::Refused);
    }
}

async fn a_deleted_message_does_not_come_back<W: World>() {
    let check = async |kind| {
        let world = W::with_queue(kind, None).await;
        let delivery = delivered(&world, S).await;
        assert_eq!(world.delete(&delivery).await, Answer::Ok);
        assert_eq!(world.receive(2 * S, LONG).await, None);
    };
    tokio::join!(check(Kind::Standard), check(Kind::Fifo));
}

async fn a_delete_may_be_repeated<W: World>() {
    let world: W = standard().await;
    let delivery = delivered(&world, LONG).await;
    assert_eq!(world.delete(&delivery).await, Answer::Ok);
    assert_eq!(world.delete(&delivery).await, W::TRUTH.repeated_delete);
}

async fn a_delete_after_the_time_ran_out_deletes<W: World>() {
    let world: W = standard().await;
    let delivery = delivered(&world, LONG).await;
    world.release(&delivery).await;
    assert_eq!(world.delete(&delivery).await, Answer::Ok);
    assert_eq!(world.look().await, None);
}

async fn a_delete_by_the_handle_of_an_earlier_receive<W: World>() {
    let world: W = standard().await;
    let first = delivered(&world, LONG).await;
    world.release(&first).await;
    let second = world.look().await.unwrap();
    assert_eq!(world.delete(&first).await, W::TRUTH.superseded_delete);
    let deletes = W::TRUTH.superseded_delete_deletes;
    assert_eq!(world.change(&second, Duration::ZERO).await, if deletes { Answer::NotInFlight } else { Answer::Ok });
    assert_eq!(world.look().await.is_none(), deletes);
}

async fn a_delete_after_the_time_ran_out_in_a_fifo_queue<W: World>() {
    let world: W = fifo().await;
    let delivery = delivered(&world, LONG).await;
    world.release(&delivery).await;
    assert_eq!(world.delete(&delivery).await, W::TRUTH.late_delete_in_fifo);
    assert_eq!(world.look().await.is_none(), W::TRUTH.late_delete_in_fifo_deletes);
}

async fn an_extension_after_the_time_ran_out_in_a_fifo_queue<W: World>() {
    let world: W = fifo().await;
    let delivery = delivered(&world, LONG).await;
    world.release(&delivery).await;
    assert_eq!(world.change(&delivery, LONG).await, W::TRUTH.late_extension_in_fifo);
}

async fn a_message_in_flight_blocks_its_group_only<W: World>() {
    let world: W = fifo().await;
    for (body, group) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        world.send(body, group).await;
    }
    let a1 = world.look().await.unwrap();
    assert_eq!(a1.body, "a1");
    assert_eq!(world.look().await.unwrap().body, "b1");
    assert_eq!(world.look().await, None);
    assert_eq!(world.delete(&a1).await, Answer::Ok);
    assert_eq!(world.look().await.unwrap().body, "a2");
}

async fn a_group_keeps_its_order<W: World>() {
    let world: W = fifo().await;
    world.send("1", "a").await;
    world.send("2", "a").await;
    let first = world.look().await.unwrap();
    world.release(&first).await;
    assert_eq!(world.look().await.unwrap().body, "1");
}

async fn the_receive_after_the_last_moves_the_message_to_the_dead_letters<W: World>() {
    for kind in [Kind::Standard, Kind::Fifo] {
        let world = W::with_queue(kind, Some(2)).await;
        let first = delivered(&world, LONG).await;
        world.release(&first).await;
        let second = world.look().await.unwrap();
        assert_eq!(second.receive_count, 2);
        world.release(&second).await;
        assert_eq!(world.dead_letters().await, [""; 0]);
        assert_eq!(world.look().await, None);
        assert_eq!(world.dead_letters().await, ["body"]);
    }
}

async fn a_message_in_flight_for_the_last_time_can_be_deleted<W: World>() {
    let world = W::with_queue(Kind::Standard, Some(1)).await;
    let delivery = delivered(&world, S).await;
    assert_eq!(world.look().await, None);
    assert_eq!(world.delete(&delivery).await, Answer::Ok);
    assert_eq!(world.receive(2 * S, LONG).await, None);
    assert_eq!(world.dead_letters().await, [""; 0]);
}

async fn the_redrive_policy_is_told<W: World>() {
    let world: W = standard().await;
    assert_eq!(world.queue().redrive().await, Redrive::None);
    let world = W::with_queue(Kind::Standard, Some(3)).await;
    let queue = world.dead_letter_queue();
    assert_eq!(world.queue().redrive().await, Redrive::DeadLetter { max_receive_count: 3, queue });
}
