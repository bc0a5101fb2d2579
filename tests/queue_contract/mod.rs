//! The contract of a queue: the same assertions about the in-memory queue, on a paused clock, and
//! about the SQS adapter with two real servers, so that one server's quirk does not become our
//! behaviour.
//!
//! `behaviour` lists the differences of a server from SQS, and they are asserted too: a test fails when
//! a server becomes more or less like SQS.

mod behaviour;
mod world;

use std::time::Duration;

use leasehold::adapters::local::memory::Kind;
use leasehold::job::delivery::{Delivery, ReceiptHandle, Redrive};
use leasehold::job::lease::CEILING;
use tokio::time::{Instant, sleep};

use crate::support::servers::{Ministack, Moto};
use behaviour::Answer;
use world::{Memory, On, World};

const S: Duration = Duration::from_secs(1);
/// Longer than any of these tests.
const LONG: Duration = Duration::from_mins(10);
/// No server reports when a poll has arrived.
const POLL_BEGUN: Duration = Duration::from_millis(200);

/// Turns each function into a test of the in-memory queue, and a test of the adapter for each
/// server.
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
    a_poll_of_an_empty_queue_ends_after_its_wait
    a_message_is_delivered_as_it_was_sent
    a_message_in_flight_is_not_delivered_again
    a_send_wakes_a_poll
    a_release_wakes_a_poll
    a_message_is_visible_again_after_its_timeout
    an_extension_counts_from_its_call
    an_extension_ends_at_the_next_receive
    a_release_makes_the_message_visible_at_once
    an_extension_after_the_timeout
    an_extension_after_a_delete_is_refused
    an_extension_by_the_handle_of_an_earlier_receive
    an_extension_past_the_ceiling
    the_ceiling_counts_from_the_receive
    an_invalid_handle_is_refused
    a_deleted_message_is_not_delivered_again
    a_delete_may_be_repeated
    a_delete_after_the_timeout_deletes
    a_delete_by_the_handle_of_an_earlier_receive
    a_delete_after_the_timeout_in_a_fifo_queue
    an_extension_after_the_timeout_in_a_fifo_queue
    a_message_in_flight_blocks_its_group_only
    a_group_keeps_its_order
    the_receive_after_the_last_moves_the_message_to_the_dead_letter_queue
    a_message_in_its_last_delivery_can_be_deleted
    the_redrive_policy_is_returned
    a_receive_returns_several_messages_at_once
    each_entry_of_a_batch_has_its_own_result
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

async fn a_poll_of_an_empty_queue_ends_after_its_wait<W: World>() {
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

async fn a_message_in_flight_is_not_delivered_again<W: World>() {
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

async fn a_message_is_visible_again_after_its_timeout<W: World>() {
    let world: W = standard().await;
    let asked_at = Instant::now();
    let first = delivered(&world, S).await;
    let second = world.receive(20 * S, LONG).await.unwrap();
    assert!((S..4 * S).contains(&asked_at.elapsed()), "after {:?}", asked_at.elapsed());
    assert_eq!((&second.message_id, second.receive_count), (&first.message_id, 2));
    assert!(second.receipt != first.receipt, "each delivery has its own handle");
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

async fn an_extension_ends_at_the_next_receive<W: World>() {
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

async fn an_extension_after_the_timeout<W: World>() {
    let world: W = standard().await;
    let delivery = delivered(&world, LONG).await;
    world.release(&delivery).await;
    assert_eq!(world.change(&delivery, LONG).await, W::BEHAVIOUR.late_extension);
    assert_eq!(world.look().await.is_none(), W::BEHAVIOUR.late_extension_hides_again);
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
    assert_eq!(world.change(&first, LONG).await, W::BEHAVIOUR.superseded_extension);
    let third = world.receive(4 * S, LONG).await.map(|delivery| delivery.receive_count);
    assert_eq!(third, (!W::BEHAVIOUR.superseded_extension_extends).then_some(3));
}

async fn an_extension_past_the_ceiling<W: World>() {
    let world: W = standard().await;
    let delivery = delivered(&world, LONG).await;
    // Wait a second.
    assert_eq!(world.receive(S, LONG).await, None);
    assert_eq!(world.change(&delivery, CEILING + S).await, W::BEHAVIOUR.extension_over_ceiling);
    assert_eq!(world.change(&delivery, CEILING).await, W::BEHAVIOUR.extension_past_ceiling);
    assert_eq!(world.change(&delivery, LONG).await, Answer::Ok);
}

async fn the_ceiling_counts_from_the_receive<W: World>() {
    let world: W = standard().await;
    world.send("body", "").await;
    sleep(3 * S).await;
    let delivery = world.look().await.unwrap();
    assert_eq!(
        world.change(&delivery, CEILING - 2 * S).await,
        W::BEHAVIOUR.extension_of_an_old_message
    );
}

async fn an_invalid_handle_is_refused<W: World>() {
    for kind in [Kind::Standard, Kind::Fifo] {
        let world = W::with_queue(kind, None).await;
        let delivery =
            Delivery { receipt: ReceiptHandle::new("garbage"), ..delivered(&world, LONG).await };
        assert_eq!(world.change(&delivery, LONG).await, Answer::NotInFlight);
        assert_eq!(world.delete(&delivery).await, Answer::Refused);
    }
}

async fn a_deleted_message_is_not_delivered_again<W: World>() {
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
    assert_eq!(world.delete(&delivery).await, W::BEHAVIOUR.repeated_delete);
}

async fn a_delete_after_the_timeout_deletes<W: World>() {
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
    assert_eq!(world.delete(&first).await, W::BEHAVIOUR.superseded_delete);
    let deletes = W::BEHAVIOUR.superseded_delete_deletes;
    assert_eq!(
        world.change(&second, Duration::ZERO).await,
        if deletes { Answer::NotInFlight } else { Answer::Ok }
    );
    assert_eq!(world.look().await.is_none(), deletes);
}

async fn a_delete_after_the_timeout_in_a_fifo_queue<W: World>() {
    let world: W = fifo().await;
    let delivery = delivered(&world, LONG).await;
    world.release(&delivery).await;
    assert_eq!(world.delete(&delivery).await, W::BEHAVIOUR.late_delete_in_fifo);
    assert_eq!(world.look().await.is_none(), W::BEHAVIOUR.late_delete_in_fifo_deletes);
}

async fn an_extension_after_the_timeout_in_a_fifo_queue<W: World>() {
    let world: W = fifo().await;
    let delivery = delivered(&world, LONG).await;
    world.release(&delivery).await;
    assert_eq!(world.change(&delivery, LONG).await, W::BEHAVIOUR.late_extension_in_fifo);
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

async fn the_receive_after_the_last_moves_the_message_to_the_dead_letter_queue<W: World>() {
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

async fn a_message_in_its_last_delivery_can_be_deleted<W: World>() {
    let world = W::with_queue(Kind::Standard, Some(1)).await;
    let delivery = delivered(&world, S).await;
    assert_eq!(world.look().await, None);
    assert_eq!(world.delete(&delivery).await, Answer::Ok);
    assert_eq!(world.receive(2 * S, LONG).await, None);
    assert_eq!(world.dead_letters().await, [""; 0]);
}

async fn the_redrive_policy_is_returned<W: World>() {
    let world: W = standard().await;
    assert_eq!(world.queue().redrive().await, Ok(Redrive::None));
    let world = W::with_queue(Kind::Standard, Some(3)).await;
    let queue = world.dead_letter_queue();
    assert_eq!(
        world.queue().redrive().await,
        Ok(Redrive::DeadLetter { max_receive_count: 3, queue })
    );
}

async fn a_receive_returns_several_messages_at_once<W: World>() {
    let world: W = standard().await;
    for body in ["1", "2", "3"] {
        world.send(body, "").await;
    }
    let mut bodies = Vec::new();
    // SQS may return fewer than it has.
    while bodies.len() < 3 {
        let most = 3 - bodies.len();
        let received = world.queue().receive_batch(most, S, LONG).await.unwrap();
        assert!((1..=most).contains(&received.len()), "{received:?}");
        bodies.extend(received.into_iter().map(|delivery| delivery.unwrap().body));
    }
    bodies.sort();
    assert_eq!(bodies, ["1", "2", "3"]);
    assert_eq!(world.look().await, None);
}

async fn each_entry_of_a_batch_has_its_own_result<W: World>() {
    let world: W = standard().await;
    let garbage = async || Delivery {
        receipt: ReceiptHandle::new("garbage"),
        ..delivered(&world, LONG).await
    };
    let all = [delivered(&world, LONG).await, garbage().await, delivered(&world, LONG).await];
    let answers = world.change_all(&all, Duration::ZERO).await;
    assert_eq!(answers, [Answer::Ok, Answer::NotInFlight, Answer::Ok]);
    let all = [world.look().await.unwrap(), garbage().await, world.look().await.unwrap()];
    let answers = world.delete_all(&all).await;
    assert_eq!(answers, [Answer::Ok, Answer::Refused, Answer::Ok]);
    assert_eq!(world.look().await, None, "the two with an invalid handle are in flight");
}
