//! 13 to 22, and 71: success, failure, and everything in between.

use std::sync::Arc;
use std::time::Duration;

use leasehold::adapters::local::memory::Kind;
use leasehold::job::keep_reason::Role;
use leasehold::job::lease::Strategy;
use leasehold::job::outcome::Exit;
use leasehold::job::run_outcome::RunOutcome;
use leasehold::job::verdict::{Completion, Settlement};
use leasehold::ports::{DeleteError, VisibilityError};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use crate::support::cloud::{Cloud, is_alive};
use crate::support::journey::{
    Around, Does, FakeCommand, FakeTelemetry, Journey, MINUTE, S, VISIBILITY, changes, deletes,
    exits, queue, queue_of, queue_with,
};
use crate::support::logs::Logs;
use crate::support::object_created;
use crate::support::wire::{Call, Fault, WiredQueue};

fn unavailable() -> DeleteError {
    DeleteError::Transient("503".to_owned())
}

/// A queue whose one message we hold for six seconds, and no longer; a command that is done half a
/// second before that; a delete that takes a second to come through.
fn a_delete_that_comes_too_late(kind: Kind) -> (WiredQueue, Journey) {
    let (queue, command) =
        (queue_of(kind, 3, &[&object_created("k")]), FakeCommand::new(Does::Exits(11 * S / 2, 0)));
    queue.fault_delete(Fault::RequestDelayed(S));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.limits.visibility = 6 * S;
    journey.settings.policy.limits.strategy = Strategy::Fixed(6 * S);
    (queue, journey)
}

/// A command that exits 0 when its lease is lost already has not succeeded: nothing is deleted, and
/// that is told.
#[tokio::test(start_paused = true)]
async fn s13_an_exit_0_after_the_lease_was_lost_deletes_nothing() {
    let logs = Logs::default();
    let _logging = logs.capture();
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    queue.fault_change_visibility(Fault::Error(VisibilityError::NotInFlight(
        "received again".to_owned(),
    )));
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["lease_lost"], 75));
    assert_eq!(arrived.ended()[0].work.exit, Some(Exit::Code(0)), "else this proves nothing");
    assert_eq!(arrived.ended()[0].error().as_deref(), Some("the lease was lost: received again"));
    assert_eq!(deletes(&queue), 0);
}

/// A delete that fails is retried, and the lease is kept alive between the tries; once it has come
/// through, nothing is called any more. If it never does, the message is kept and comes back.
#[tokio::test(start_paused = true)]
async fn s14_a_delete_that_fails_is_retried_while_the_lease_is_kept_alive() {
    let (queue, command) = (queue(), exits(0));
    for _ in 0..8 {
        queue.fault_delete(Fault::Error(unavailable()));
    }
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcome, deletes(&queue)), (RunOutcome::Finished, 9));
    let beats = changes(&queue, started);
    assert!(!beats.is_empty(), "the lease was not kept alive between the tries");
    assert!(beats.iter().all(|(_, to)| *to == VISIBILITY), "{beats:?}");
    assert_eq!(queue.calls().last().map(|entry| entry.call), Some(Call::Delete));
}

#[tokio::test(start_paused = true)]
async fn s14_a_delete_that_never_works_keeps_the_message() {
    let (queue, command) = (queue(), exits(0));
    for _ in 0..1000 {
        queue.fault_delete(Fault::Error(unavailable()));
    }
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["delete_failed"], 75));
    assert!(
        (VISIBILITY..3 * VISIBILITY).contains(&arrived.took),
        "it gave up after {:?}",
        arrived.took
    );
    assert!(deletes(&queue) < 25, "{} tries", deletes(&queue));
    assert_eq!(queue.counts().in_flight, 1, "it comes back after a delay");
}

/// A stop between success and delete: a delete that is on the wire is awaited, never cancelled …
#[tokio::test(start_paused = true)]
async fn s15_a_delete_that_is_on_the_wire_is_awaited_by_a_stop() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_delete(Fault::AnswerDelayed(3 * S));
    let arrived = Journey::new(&queue, &command).run_and_stop_after(6 * S).await;
    assert_eq!((arrived.outcome, arrived.took), (RunOutcome::Finished, 8 * S));
    assert!(queue.is_drained());
}

/// … one that failed before is not retried …
#[tokio::test(start_paused = true)]
async fn s15_no_delete_is_retried_after_a_stop() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_delete(Fault::Error(unavailable()));
    let started = Instant::now();
    let arrived =
        Journey::new(&queue, &command).run_and_stop_after(5 * S + Duration::from_millis(50)).await;
    assert_eq!((arrived.outcome.exit_code(), deletes(&queue)), (143, 1));
    assert_eq!(changes(&queue, started).last().map(|(_, to)| *to), Some(Duration::ZERO));
    assert_eq!(queue.counts().visible, 1);
}

/// … nor is its next try, or any beat until then, waited for: the message is let go at once …
#[tokio::test(start_paused = true)]
async fn s15_a_stop_between_two_tries_of_a_delete_lets_the_message_go_at_once() {
    let (queue, command) = (queue(), exits(0));
    for _ in 0..1000 {
        queue.fault_delete(Fault::Error(unavailable()));
    }
    let arrived = Journey::new(&queue, &command).run_and_stop_after(MINUTE).await;
    assert_eq!(
        (arrived.outcome.exit_code(), arrived.took, queue.counts().visible),
        (143, MINUTE, 1)
    );
}

/// … and one that was not sent yet, because a beat was still on its way, is not sent any more.
#[tokio::test(start_paused = true)]
async fn s15_a_delete_that_was_not_sent_when_the_stop_came_is_not_sent_any_more() {
    let beat = VISIBILITY / 3;
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(beat + S, 0)));
    queue.fault_change_visibility(Fault::AnswerDelayed(3 * S));
    let arrived = Journey::new(&queue, &command).run_and_stop_after(beat + 2 * S).await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["stopped"], 143));
    assert_eq!(arrived.ended()[0].work.exit, Some(Exit::Code(0)));
    assert_eq!((deletes(&queue), queue.counts().visible), (0, 1));
}

/// A FIFO queue refuses a delete that comes after the lease's end ("The receipt handle has
/// expired"): the message was not deleted and will be redelivered, and what may be somebody else's
/// is not touched.
#[tokio::test(start_paused = true)]
async fn s16_a_delete_that_a_fifo_queue_refuses_is_told_as_not_deleted() {
    let (queue, journey) = a_delete_that_comes_too_late(Kind::Fifo);
    let started = Instant::now();
    let arrived = journey.run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["lost_after_success"], 75));
    assert_eq!((deletes(&queue), changes(&queue, started)), (1, vec![]));
    assert_eq!(queue.counts().visible, 1, "it will be redelivered");
}

/// A refusal is final, whatever our own clock says of the lease: it is not asked again, and no
/// lease is believed in.
#[tokio::test(start_paused = true)]
async fn s16_a_delete_that_is_refused_is_not_tried_again() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_delete(Fault::Error(DeleteError::Refused(
        "the receipt handle has expired".to_owned(),
    )));
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), arrived.took), (vec!["lost_after_success"], 5 * S));
    assert_eq!((deletes(&queue), changes(&queue, started)), (1, vec![]));
    let next = arrived.ended()[0].next(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(next.contains("visible again when its visibility timeout ends"), "{next}");
}

/// A standard queue says yes to a delete by an old handle, and deletes nothing: that cannot be
/// found out. So a delete that worked is never taken for "exactly once": the other pod, which has
/// the message by then, works on it as well.
#[tokio::test(start_paused = true)]
async fn s17_a_delete_by_an_old_handle_says_yes_and_the_other_delivery_is_worked_on_too() {
    let (queue, journey) = a_delete_that_comes_too_late(Kind::Standard);
    let second = exits(0);
    let mut other = Journey::new(&queue, &second);
    other.settings.polling.wait = MINUTE;
    let other = async {
        sleep(S).await;
        other.run().await
    };
    let (one, other) = tokio::join!(journey.run(), other);
    assert_eq!(
        one.ended()[0].settlement,
        Settlement::Deleted(Completion::Succeeded),
        "as the queue said"
    );
    assert_eq!(
        (other.outcomes(), second.got("JOB_RECEIVE_COUNT")),
        (vec!["succeeded"], vec!["2".to_owned()])
    );
    let deletes: Vec<_> =
        queue.calls().into_iter().filter(|entry| entry.call == Call::Delete).collect();
    assert!(queue.is_drained() && deletes.len() == 2, "{deletes:?}");
}

/// A command that exits 0 but leaves somebody who holds its output: waited for only so long, then
/// the group is killed and the exit counts; the leak is told.
#[tokio::test]
async fn s18_a_descendant_that_holds_the_output_is_killed_and_the_exit_counts() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let started = Instant::now();
    let left = cloud.run("", "sleep 1000 & echo $! > child; echo done").run_to(0).await;
    let child: i32 = cloud.note("child").await.parse().unwrap();
    assert!(!is_alive(child), "it outlived the command");
    assert!(started.elapsed() < 30 * S, "it took {:?}", started.elapsed());
    assert_eq!(
        (&left.record("message deleted")["exit_code"], cloud.counts().await),
        (&0.into(), (0, 0))
    );
    let leak = left.log.iter().find(|record| record["level"] == "WARN").expect("the leak is told");
    let text = leak["message"].as_str().unwrap();
    assert!(text.starts_with("the command has exited but left processes running"), "{leak}");
}

/// Every exit that nobody gave a meaning, and every signal, is retryable: never deleted, back after
/// a delay.
#[tokio::test(start_paused = true)]
async fn s19_an_unknown_exit_is_retried_and_never_deleted() {
    let codes = (1..=255).filter(|code| ![65, 75].contains(code)).map(|code| Does::Exits(S, code));
    let signals = [1, 2, 6, 9, 11, 15, 40].map(|signal| Does::Dies(S, signal));
    for does in codes.chain(signals) {
        let (queue, command) = (queue(), FakeCommand::new(does));
        let started = Instant::now();
        let arrived = Journey::new(&queue, &command).run().await;
        assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["command_failed"], 1));
        let released = changes(&queue, started);
        assert!(
            matches!(released[..], [(_, delay)] if (10 * S..=20 * S).contains(&delay)),
            "{released:?}"
        );
        assert_eq!((deletes(&queue), queue.counts().in_flight), (0, 1));
    }
}

/// A command that says "never for this input" deletes nothing and moves nothing: the message is
/// back soon, and the queue's own redrive takes it to the dead-letter queue after as many receives
/// as it allows.
#[tokio::test(start_paused = true)]
async fn s20_a_permanent_failure_is_left_to_redrive() {
    let (queue, command) = (queue(), exits(65));
    for attempt in 1..=3 {
        let started = Instant::now();
        let arrived = Journey::new(&queue, &command).run().await;
        assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["permanent"], 65));
        assert_eq!(
            changes(&queue, started).last(),
            Some(&(5 * S, 10 * S)),
            "not later at each attempt"
        );
        let last = arrived.ended()[0].next(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(last.contains("this was the last"), attempt == 3, "{last}");
        sleep(10 * S).await;
    }
    assert_eq!(Journey::new(&queue, &command).run().await.outcome, RunOutcome::Finished);
    assert_eq!((queue.dead_letters().len(), command.runs(), deletes(&queue)), (1, 3, 0));
}

/// A bug of our own, a panic wherever it is: the command is ended, nothing is deleted, and the exit
/// is not 0.
#[tokio::test(start_paused = true)]
async fn s21_a_panic_anywhere_keeps_the_message() {
    type At = fn(Call) -> bool;
    let panics_at: [(At, Role); 3] = [
        (|call| call == Call::Receive, Role::Receiver),
        (|call| matches!(call, Call::ChangeVisibility(_)), Role::VisibilityHeartbeat),
        (|call| call == Call::Delete, Role::VisibilityHeartbeat),
    ];
    for (bad, role) in panics_at {
        let (queue, command) = (queue(), FakeCommand::new(Does::Exits(VISIBILITY, 0)));
        let mut around = Around::new(&queue);
        around.before = Box::new(move |call| {
            Box::pin(async move {
                assert!(!bad(call), "a bug, made on purpose");
            })
        });
        let mut journey = Journey::new(&queue, &command);
        journey.queue = Arc::new(around);
        let arrived = journey.run().await;
        assert_eq!(
            (arrived.outcome.clone(), arrived.outcome.exit_code()),
            (RunOutcome::ActorDied(role), 70)
        );
        assert_eq!((deletes(&queue), queue.is_drained()), (0, false));
        if command.runs() > 0 {
            assert!(command.last().ended.is_some(), "the command is still running");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn s21_a_panic_in_the_work_keeps_the_message_and_lets_it_go() {
    let (queue, command) = (queue(), FakeCommand::new(Does::Panics));
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["panicked"], 70));
    assert_eq!((changes(&queue, started).len(), deletes(&queue)), (1, 0));
}

/// What one message brings to light is not the others' end: they are worked on, and the run says
/// that there was a bug.
#[tokio::test(start_paused = true)]
async fn s71_a_panic_at_one_message_does_not_end_the_good_ones_behind_it() {
    let queue = queue_with(&["a", "b", "c"].map(object_created).each_ref().map(String::as_str));
    let command = FakeCommand::sequence([Does::Panics, Does::Exits(S, 0)]);
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.max_messages = 3;
    let arrived = journey.run().await;
    assert_eq!(arrived.outcomes(), ["panicked", "succeeded", "succeeded"]);
    assert_eq!((arrived.outcome.exit_code(), deletes(&queue)), (70, 2));
    assert!(arrived.outcome.to_string().contains("a bug, made on purpose"), "{}", arrived.outcome);
}

/// A panic in an actor itself, not in what it has started, is heard too, and told as the bug it is.
#[tokio::test(start_paused = true)]
async fn s21_the_death_of_an_actor_is_told() {
    let logs = Logs::default();
    let _logging = logs.capture();
    let (queue, command) = (queue(), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.telemetry = FakeTelemetry { panics: true, ..FakeTelemetry::default() }.into();
    assert_eq!(journey.run().await.outcome, RunOutcome::Finished, "nobody needs the Reporter");
    let complaints = logs.complaints();
    assert!(
        complaints.contains(&"an actor died: this is a bug in leasehold".to_owned()),
        "{complaints:?}"
    );
}

/// Killed from outside (out of memory, the node gone): nothing of us runs any more, so the lease
/// ends by itself, and it is short.
#[tokio::test]
async fn s22_after_sigkill_the_message_comes_back_when_its_lease_ends() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let run = cloud.run("--visibility-timeout 3s", "echo $$ > command; exec sleep 1000");
    let command: i32 = cloud.note("command").await.parse().expect("a pid");
    let killed = Instant::now();
    run.signal(Signal::SIGKILL);
    let left = run.left().await;
    assert_eq!(left.status.code(), None);
    // Nobody was there to end it; in a pod the kernel ends the whole container.
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(command), Signal::SIGKILL)
        .expect("it still ran");

    cloud.run("--visibility-timeout 3s", "exit 0").run_to(0).await;
    assert_eq!(cloud.counts().await, (0, 0));
    let back_after = killed.elapsed();
    assert!(back_after < Duration::from_secs(8), "the message came back after {back_after:?}");
}
