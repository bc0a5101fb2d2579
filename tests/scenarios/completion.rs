//! 13 to 22, 71 and 83: success and failure.

use std::sync::Arc;
use std::time::Duration;

use leasehold::adapters::local::memory::{Kind, MemoryQueue};
use leasehold::job::delivery::Redrive;
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
    Does, FakeCommand, FakeTelemetry, HookedQueue, Journey, MINUTE, S, VISIBILITY, changes,
    deletes, exits, queue, queue_of, queue_with,
};
use crate::support::logs::Logs;
use crate::support::object_created;
use crate::support::wire::{Call, Fault, Wire, WiredQueue};

fn unavailable() -> DeleteError {
    DeleteError::Transient("503".to_owned())
}

/// A fixed lease of six seconds, a command that exits half a second before its end, and a delete
/// that takes a second to arrive.
fn a_late_delete(kind: Kind) -> (WiredQueue, Journey) {
    let (queue, command) =
        (queue_of(kind, 3, &[&object_created("k")]), FakeCommand::new(Does::Exits(11 * S / 2, 0)));
    queue.fault_delete(Fault::RequestDelayed(S));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.limits.visibility = 6 * S;
    journey.settings.policy.limits.strategy = Strategy::Fixed(6 * S);
    (queue, journey)
}

/// A command that exits 0 after its lease was lost has not succeeded: nothing is deleted, and the
/// reason is reported.
#[tokio::test(start_paused = true)]
async fn s13_an_exit_0_after_a_lost_lease_deletes_nothing() {
    let logs = Logs::default();
    let _logging = logs.capture();
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    queue.fault_change_visibility(Fault::Error(VisibilityError::NotInFlight(
        "received again".to_owned(),
    )));
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["lease_lost"], 75));
    assert_eq!(result.ended()[0].work.exit, Some(Exit::Code(0)), "otherwise this proves nothing");
    assert_eq!(result.ended()[0].error().as_deref(), Some("the lease was lost: received again"));
    assert_eq!(deletes(&queue), 0);
}

/// A failed delete is retried, with heartbeats between the tries; after its success there are no
/// more calls. If it always fails, the message is kept and becomes visible again.
#[tokio::test(start_paused = true)]
async fn s14_a_delete_that_fails_is_retried_while_the_lease_is_kept_alive() {
    let (queue, command) = (queue(), exits(0));
    for _ in 0..8 {
        queue.fault_delete(Fault::Error(unavailable()));
    }
    let started = Instant::now();
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!((result.outcome, deletes(&queue)), (RunOutcome::Finished, 9));
    let extensions = changes(&queue, started);
    assert!(!extensions.is_empty(), "no heartbeat between the tries");
    assert!(extensions.iter().all(|(_, to)| *to == VISIBILITY), "{extensions:?}");
    assert_eq!(queue.calls().last().map(|entry| entry.call), Some(Call::Delete));
}

#[tokio::test(start_paused = true)]
async fn s14_a_delete_that_always_fails_keeps_the_message() {
    let (queue, command) = (queue(), exits(0));
    for _ in 0..1000 {
        queue.fault_delete(Fault::Error(unavailable()));
    }
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["delete_failed"], 75));
    assert!(
        (VISIBILITY..3 * VISIBILITY).contains(&result.took),
        "it gave up after {:?}",
        result.took
    );
    assert!(deletes(&queue) < 25, "{} tries", deletes(&queue));
    assert_eq!(queue.counts().in_flight, 1, "the message is hidden for a delay");
}

/// A stop between success and delete: a delete in flight is awaited, never cancelled …
#[tokio::test(start_paused = true)]
async fn s15_a_stop_waits_for_a_delete_in_flight() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_delete(Fault::AnswerDelayed(3 * S));
    let result = Journey::new(&queue, &command).run_and_stop_after(6 * S).await;
    assert_eq!((result.outcome, result.took), (RunOutcome::Finished, 8 * S));
    assert!(queue.is_drained());
}

/// … a failed one is not retried …
#[tokio::test(start_paused = true)]
async fn s15_no_delete_is_retried_after_a_stop() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_delete(Fault::Error(unavailable()));
    let started = Instant::now();
    let result =
        Journey::new(&queue, &command).run_and_stop_after(5 * S + Duration::from_millis(50)).await;
    assert_eq!((result.outcome.exit_code(), deletes(&queue)), (143, 1));
    assert_eq!(changes(&queue, started).last().map(|(_, to)| *to), Some(Duration::ZERO));
    assert_eq!(queue.counts().visible, 1);
}

/// … also if it fails only after the stop, and the log does not say otherwise …
#[tokio::test(start_paused = true)]
async fn s15_a_delete_that_fails_after_a_stop_is_not_retried() {
    let logs = Logs::default();
    let _logging = logs.capture();
    let (queue, command) = (queue(), exits(0));
    queue.fault_delete(Fault::AnswerDelayed(MINUTE));
    let result = Journey::new(&queue, &command).run_and_stop_after(6 * S).await;
    assert_eq!((result.outcome.exit_code(), deletes(&queue)), (143, 1));
    let complaints = logs.complaints();
    assert!(
        complaints.contains(&"the delete failed and is not retried during a stop".to_owned()),
        "{complaints:?}"
    );
    assert!(!complaints.iter().any(|it| it.contains("will be retried")), "{complaints:?}");
}

/// … and the message is released without waiting for the next try or heartbeat …
#[tokio::test(start_paused = true)]
async fn s15_a_stop_between_two_tries_of_a_delete_releases_the_message() {
    let (queue, command) = (queue(), exits(0));
    for _ in 0..1000 {
        queue.fault_delete(Fault::Error(unavailable()));
    }
    let result = Journey::new(&queue, &command).run_and_stop_after(MINUTE).await;
    assert_eq!((result.outcome.exit_code(), result.took, queue.counts().visible), (143, MINUTE, 1));
}

/// … and one that was still waiting for an extension's answer is no longer sent.
#[tokio::test(start_paused = true)]
async fn s15_no_delete_is_sent_after_a_stop() {
    let extend_at = VISIBILITY / 3;
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(extend_at + S, 0)));
    queue.fault_change_visibility(Fault::AnswerDelayed(3 * S));
    let result = Journey::new(&queue, &command).run_and_stop_after(extend_at + 2 * S).await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["stopped"], 143));
    assert_eq!(result.ended()[0].work.exit, Some(Exit::Code(0)));
    assert_eq!((deletes(&queue), queue.counts().visible), (0, 1));
}

/// A FIFO queue refuses a delete after the lease's end ("The receipt handle has expired"): the
/// message was not deleted and will be redelivered, and its visibility is not changed, since
/// another pod may hold it.
#[tokio::test(start_paused = true)]
async fn s16_a_delete_that_a_fifo_queue_refuses_is_reported_as_not_deleted() {
    let (queue, journey) = a_late_delete(Kind::Fifo);
    let started = Instant::now();
    let result = journey.run().await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["lost_after_success"], 75));
    assert_eq!((deletes(&queue), changes(&queue, started)), (1, vec![]));
    assert_eq!(queue.counts().visible, 1, "it will be redelivered");
}

/// A refusal is final, even if the lease has not expired by our own clock: there is no retry and no
/// further heartbeat.
#[tokio::test(start_paused = true)]
async fn s16_a_refused_delete_is_not_retried() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_delete(Fault::Error(DeleteError::Refused(
        "the receipt handle has expired".to_owned(),
    )));
    let started = Instant::now();
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!((result.outcomes(), result.took), (vec!["lost_after_success"], 5 * S));
    assert_eq!((deletes(&queue), changes(&queue, started)), (1, vec![]));
    let next = result.ended()[0].next(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(next.contains("visible again when its visibility timeout ends"), "{next}");
}

/// A standard queue answers a delete by an old handle with success, and deletes nothing; the client
/// cannot detect this. So a successful delete never means "exactly once": the other pod, which
/// holds the message by then, processes it too.
#[tokio::test(start_paused = true)]
async fn s17_a_delete_by_an_old_handle_succeeds_and_the_other_delivery_is_processed_too() {
    let (queue, journey) = a_late_delete(Kind::Standard);
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
        "as the queue reported"
    );
    assert_eq!(
        (other.outcomes(), second.got("JOB_RECEIVE_COUNT")),
        (vec!["succeeded"], vec!["2".to_owned()])
    );
    let deletes: Vec<_> =
        queue.calls().into_iter().filter(|entry| entry.call == Call::Delete).collect();
    assert!(queue.is_drained() && deletes.len() == 2, "{deletes:?}");
}

/// A command exits 0, but a descendant holds its output: after a limited wait the group is killed,
/// the exit code counts, and the leak is logged.
#[tokio::test]
async fn s18_a_descendant_that_holds_the_output_is_killed_and_the_exit_counts() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let started = Instant::now();
    let exited = cloud.run("", "sleep 1000 & echo $! > child; echo done").expect_exit(0).await;
    let child: i32 = cloud.file("child").await.parse().unwrap();
    assert!(!is_alive(child), "it outlived the command");
    assert!(started.elapsed() < 30 * S, "it took {:?}", started.elapsed());
    assert_eq!(
        (&exited.record("message deleted")["exit_code"], cloud.counts().await),
        (&0.into(), (0, 0))
    );
    let leak =
        exited.log.iter().find(|record| record["level"] == "WARN").expect("the leak is logged");
    let text = leak["message"].as_str().unwrap();
    assert!(text.starts_with("the command has exited but left processes running"), "{leak}");
}

/// Every exit code without a meaning, and every signal, is retried after a delay and never deleted.
#[tokio::test(start_paused = true)]
async fn s19_an_unknown_exit_is_retried() {
    let codes = (1..=255).filter(|code| ![65, 75].contains(code)).map(|code| Does::Exits(S, code));
    let signals = [1, 2, 6, 9, 11, 15, 40].map(|signal| Does::Dies(S, signal));
    for does in codes.chain(signals) {
        let (queue, command) = (queue(), FakeCommand::new(does));
        let started = Instant::now();
        let result = Journey::new(&queue, &command).run().await;
        assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["command_failed"], 1));
        let released = changes(&queue, started);
        assert!(
            matches!(released[..], [(_, delay)] if (10 * S..=20 * S).contains(&delay)),
            "{released:?}"
        );
        assert_eq!((deletes(&queue), queue.counts().in_flight), (0, 1));
    }
}

/// A permanent failure deletes nothing and moves nothing: the message is visible again at once, and
/// redrive moves it to the dead-letter queue after maxReceiveCount receives.
#[tokio::test(start_paused = true)]
async fn s20_a_permanent_failure_is_left_to_redrive() {
    let (queue, command) = (queue(), exits(65));
    let next = [
        "attempt 1 of 3, visible again now, goes to dead-letter queue dlq after 2 more receives",
        "attempt 2 of 3, visible again now, goes to dead-letter queue dlq after 1 more receive",
        "attempt 3 of 3, visible again now, this was the last attempt: the next receive moves it to dead-letter queue dlq",
    ];
    for next in next {
        let started = Instant::now();
        let result = Journey::new(&queue, &command).run().await;
        assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["permanent"], 65));
        assert_eq!(changes(&queue, started).last(), Some(&(5 * S, Duration::ZERO)));
        let ended = result.ended().remove(0);
        assert_eq!(ended.next(std::time::SystemTime::UNIX_EPOCH).as_deref(), Some(next));
    }
    assert_eq!(Journey::new(&queue, &command).run().await.outcome, RunOutcome::Finished);
    assert_eq!((queue.dead_letters().len(), command.runs(), deletes(&queue)), (1, 3, 0));
}

/// A run of several messages does not receive the same permanent failure again and again in place of
/// the others.
#[tokio::test(start_paused = true)]
async fn a_permanent_failure_leaves_the_run_to_the_other_messages() {
    let good: Vec<_> = (0..6).map(|number| object_created(&number.to_string())).collect();
    let bodies: Vec<_> = ["hello"].into_iter().chain(good.iter().map(String::as_str)).collect();
    let queue = queue_of(Kind::Standard, 20, &bodies);
    let command = FakeCommand::new(Does::Exits(S / 2, 0));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.max_messages = 7;
    let result = journey.run().await;
    assert_eq!((command.runs(), deletes(&queue)), (6, 6));
    assert_eq!((result.outcomes()[0], result.outcome.exit_code()), ("not_a_notification", 65));
    let next = result.ended().remove(0).next(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(next.starts_with("attempt 1 of 20, visible again 00:00:05Z, goes to"), "{next}");
}

/// Without a dead-letter queue, a permanent failure that returned at once would keep pods busy
/// until the queue's retention ends.
#[tokio::test(start_paused = true)]
async fn s83_without_a_dead_letter_queue_a_permanent_failure_backs_off() {
    let queue = Wire::to(MemoryQueue::new(Kind::Standard, Redrive::None));
    queue.send(object_created("k"));
    for receive_count in 1..=6 {
        let started = Instant::now();
        let result = Journey::new(&queue, &exits(65)).run().await;
        assert_eq!((result.outcomes(), deletes(&queue)), (vec!["permanent"], 0));
        let released = *changes(&queue, started).last().expect("a release");
        let most = 10 * S * 2u32.pow(receive_count);
        assert!((10 * S..=most).contains(&released.1), "{receive_count}: {released:?}");
        sleep(most).await;
    }
}

/// A panic anywhere in leasehold: the command is halted, nothing is deleted, and the exit code is
/// not 0.
#[tokio::test(start_paused = true)]
async fn s21_a_panic_anywhere_keeps_the_message() {
    type At = fn(Call) -> bool;
    let panics: [(At, Role); 3] = [
        (|call| call == Call::Receive, Role::Receiver),
        (|call| matches!(call, Call::ChangeVisibility(_)), Role::VisibilityHeartbeat),
        (|call| call == Call::Delete, Role::VisibilityHeartbeat),
    ];
    for (bad, role) in panics {
        let (queue, command) = (queue(), FakeCommand::new(Does::Exits(VISIBILITY, 0)));
        let mut around = HookedQueue::new(&queue);
        around.before = Box::new(move |call| {
            Box::pin(async move {
                assert!(!bad(call), "a bug, made on purpose");
            })
        });
        let mut journey = Journey::new(&queue, &command);
        journey.queue = Arc::new(around);
        let result = journey.run().await;
        assert_eq!(
            (result.outcome.clone(), result.outcome.exit_code()),
            (RunOutcome::ActorDied(role), 70)
        );
        assert_eq!((deletes(&queue), queue.is_drained()), (0, false));
        if command.runs() > 0 {
            assert!(command.last().ended.is_some(), "the command is still running");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn s21_a_panic_in_the_work_releases_the_message() {
    let (queue, command) = (queue(), FakeCommand::new(Does::Panics));
    let started = Instant::now();
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["bug"], 70));
    assert_eq!((changes(&queue, started).len(), deletes(&queue)), (1, 0));
}

/// A panic at one message does not end the run: the other messages are processed, and the run
/// reports the bug.
#[tokio::test(start_paused = true)]
async fn s71_messages_after_a_panic_are_processed() {
    let queue = queue_with(&["a", "b", "c"].map(object_created).each_ref().map(String::as_str));
    let command = FakeCommand::sequence([Does::Panics, Does::Exits(S, 0)]);
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.max_messages = 3;
    let result = journey.run().await;
    assert_eq!(result.outcomes(), ["bug", "succeeded", "succeeded"]);
    assert_eq!((result.outcome.exit_code(), deletes(&queue)), (70, 2));
    assert!(result.outcome.to_string().contains("a bug, made on purpose"), "{}", result.outcome);
}

/// A panic in an actor itself, not in a task that it started, is noticed too and logged as a bug.
#[tokio::test(start_paused = true)]
async fn s21_the_death_of_an_actor_is_logged() {
    let logs = Logs::default();
    let _logging = logs.capture();
    let (queue, command) = (queue(), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.telemetry = FakeTelemetry { panics: true, ..FakeTelemetry::default() }.into();
    assert_eq!(
        journey.run().await.outcome,
        RunOutcome::Finished,
        "a run does not need the Reporter"
    );
    let complaints = logs.complaints();
    assert!(
        complaints.contains(&"an actor died: this is a bug in leasehold".to_owned()),
        "{complaints:?}"
    );
}

/// After SIGKILL (out of memory, a lost node) no heartbeat follows, so the short lease expires.
#[tokio::test]
async fn s22_after_sigkill_the_message_returns_when_its_lease_ends() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let run = cloud.run("--visibility-timeout 3s", "echo $$ > command; exec sleep 1000");
    let command: i32 = cloud.file("command").await.parse().expect("a pid");
    let killed = Instant::now();
    run.signal(Signal::SIGKILL);
    let exited = run.wait().await;
    assert_eq!(exited.status.code(), None);
    // The command survived; in a pod the kernel ends the whole container.
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(command), Signal::SIGKILL)
        .expect("a running command");

    cloud.run("--visibility-timeout 3s", "exit 0").expect_exit(0).await;
    assert_eq!(cloud.counts().await, (0, 0));
    let back_after = killed.elapsed();
    assert!(back_after < Duration::from_secs(8), "the message returned after {back_after:?}");
}
