//! Whole journeys through the real actors, on a paused clock.

use std::time::Duration;

use leasehold::job::delivery::Redrive;
use leasehold::job::lease::Strategy;
use leasehold::job::lifecycle::{ReceiveFailure, RunOutcome};
use leasehold::job::verdict::{KeepReason, OnStop, Retry};
use leasehold::ports::memory::{Fault, Kind, MemoryQueue};
use leasehold::ports::{DeleteError, FetchError, Queue, ReceiveError, VisibilityError};
use tokio::time::{Instant, sleep};

use crate::support::journey::{
    Does, FakeCommand, FakeTelemetry, GRACE, Journey, MINUTE, S, VISIBILITY, changes, deletes,
};
use crate::support::object_created;

fn queue_with(bodies: &[&str]) -> MemoryQueue {
    let redrive = Redrive::DeadLetter { max_receive_count: 3, queue: "dlq".to_owned() };
    let queue = MemoryQueue::new(Kind::Standard, redrive);
    for body in bodies {
        queue.send(*body);
    }
    queue
}

fn queue() -> MemoryQueue {
    queue_with(&[&object_created("k")])
}

fn exits(code: i32) -> FakeCommand {
    FakeCommand::new(Does::Exits(5 * S, code))
}

fn throttled() -> VisibilityError {
    VisibilityError::Transient("throttled".to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_success_is_deleted() {
    let (queue, command) = (queue(), exits(0));
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!(arrived.outcome, RunOutcome::Finished);
    assert_eq!(arrived.outcomes(), ["succeeded"]);
    assert!(queue.is_drained());
    assert_eq!(arrived.ended()[0].spent.command, 5 * S);
}

#[tokio::test(start_paused = true)]
async fn the_command_gets_what_the_contract_says() {
    let (queue, command) = (queue_with(&[&object_created("a+folder/r%C3%A9sum%C3%A9.csv")]), exits(0));
    Journey::new(&queue, &command).run().await;
    let env = command.last().command.env;
    let get = |name: &str| {
        let value = env.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.to_str());
        value.flatten().unwrap_or_else(|| panic!("{name} is not set")).to_owned()
    };
    assert_eq!(get("JOB_ID"), "job");
    assert_eq!(get("JOB_BUCKET"), "inbox");
    assert_eq!(get("JOB_KEY"), "a folder/résumé.csv");
    assert_eq!(get("JOB_EVENT"), "ObjectCreated:Put");
    assert_eq!(get("JOB_SIZE"), "4");
    assert_eq!(get("JOB_RECEIVE_COUNT"), "1");
    assert_eq!(get("JOB_MAX_RECEIVE_COUNT"), "3");
    assert_eq!(get("JOB_FINAL_ATTEMPT"), "false");
    assert!(get("JOB_INPUT").ends_with("/input/r_sum_.csv"), "{}", get("JOB_INPUT"));
    assert!(get("TMPDIR").ends_with("/tmp"));
    humantime::parse_rfc3339(&get("JOB_DEADLINE")).expect("RFC 3339");
    // Nobody would publish what is written there.
    assert!(!env.iter().any(|(name, _)| name == "JOB_OUTPUT_DIR"));
    assert!(!env.iter().any(|(name, _)| name == "JOB_CHECKPOINT_DIR"));
}

#[tokio::test(start_paused = true)]
async fn work_longer_than_its_lease_is_extended_each_third_and_stays_ours() {
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
    let started = Instant::now();
    let rival = tokio::spawn({
        let queue = queue.clone();
        async move {
            sleep(S).await;
            while started.elapsed() < 9 * MINUTE {
                let got = queue.receive(20 * S, VISIBILITY).await.expect("no fault is scripted");
                assert!(got.is_none(), "the rival got the message after {:?}", started.elapsed());
            }
        }
    });
    let arrived = Journey::new(&queue, &command).run().await;
    rival.await.expect("nobody else gets the message");
    assert_eq!(arrived.outcomes(), ["succeeded"]);
    let beats = changes(&queue, started);
    assert_eq!(beats.len(), 13, "{beats:?}");
    assert!(beats.iter().zip(1..).all(|((at, to), n)| *at == n * VISIBILITY / 3 && *to == VISIBILITY), "{beats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fixed_lease_is_one_extension() {
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.strategy = Strategy::Fixed(630 * S);
    let started = Instant::now();
    let arrived = journey.run().await;
    assert_eq!(arrived.outcomes(), ["succeeded"]);
    assert_eq!(changes(&queue, started), [(Duration::ZERO, 630 * S)]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_released_after_a_delay_and_ends_in_the_dead_letter_queue() {
    let (queue, command) = (queue(), exits(1));
    for attempt in 1..=3u32 {
        let mut journey = Journey::new(&queue, &command);
        journey.settings.polling.wait = 20 * MINUTE;
        let started = Instant::now();
        let arrived = journey.run().await;
        assert_eq!(arrived.outcome.exit_code(), 1);
        assert_eq!(arrived.ended()[0].subject.receive_count, attempt);
        let (_, delay) = *changes(&queue, started).last().expect("it was released");
        assert!((10 * S..=10 * S * 2u32.pow(attempt)).contains(&delay), "attempt {attempt} waits {delay:?}");
    }
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!(arrived.outcome, RunOutcome::Finished, "the queue looks empty while the message is hidden");
    sleep(2 * MINUTE).await;
    Journey::new(&queue, &command).run().await;
    assert_eq!((queue.dead_letters().len(), command.runs(), deletes(&queue)), (1, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_kept_message_says_in_plain_words_what_happens_next() {
    let (queue, command) = (queue(), exits(1));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.retry.retry = Retry::Backoff { min: 20 * S, max: 20 * S };
    let ended = journey.run().await.ended().remove(0);
    let noon = humantime::parse_rfc3339("2026-11-22T12:03:00Z").expect("a time");
    let next = "attempt 1 of 3, visible again 12:03:20Z, then dead-letter queue dlq";
    assert_eq!(ended.next(noon).as_deref(), Some(next));
    assert_eq!(ended.error().as_deref(), Some("the command failed with exit code 1"));
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_halts_the_command_and_nothing_is_called_any_more() {
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
    queue.fault_change_visibility(Fault::Error(VisibilityError::NotInFlight("received again".to_owned())));
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!(arrived.outcome, RunOutcome::Kept(KeepReason::LeaseLost("received again".to_owned())));
    assert_eq!(command.last().ended.expect("it ended") - started, VISIBILITY / 3);
    assert_eq!((changes(&queue, started).len(), deletes(&queue)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_keeps_failing_is_retried_until_the_lease_ends_and_then_it_is_lost() {
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
    for _ in 0..1000 {
        queue.fault_change_visibility(Fault::Error(throttled()));
    }
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["lease_lost"], 75));
    let ended = command.last().ended.expect("it ended") - started;
    assert_eq!(ended, VISIBILITY, "the command is halted when the lease ends");
    let tries = changes(&queue, started).len();
    assert!((5..50).contains(&tries), "{tries} tries");
    assert_eq!(deletes(&queue), 0);
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_fails_twice_costs_nothing() {
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
    queue.fault_change_visibility(Fault::Error(throttled()));
    queue.fault_change_visibility(Fault::AnswerLost(throttled()));
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!(arrived.outcomes(), ["succeeded"]);
}

#[tokio::test(start_paused = true)]
async fn work_over_its_limit_is_halted_and_retried() {
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["timed_out"], 1));
    assert_eq!(command.last().ended.expect("it ended") - started, 10 * MINUTE + 3 * S);
    assert_eq!(deletes(&queue), 0, "exit 0 after TERM proves nothing");
    assert!(changes(&queue, started).last().is_some_and(|(_, delay)| *delay >= 10 * S));
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_the_command_runs_releases_the_message_at_once_and_deletes_nothing() {
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run_and_stop_after(5 * MINUTE).await;
    assert_eq!((arrived.outcome.exit_code(), deletes(&queue)), (143, 0));
    assert_eq!(arrived.took, 5 * MINUTE + 3 * S);
    assert_eq!(changes(&queue, started).last(), Some(&(5 * MINUTE + 3 * S, Duration::ZERO)));
    assert_eq!(queue.counts().visible, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_may_leave_the_message_to_expire() {
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.retry.on_stop = OnStop::Expire;
    let arrived = journey.run_and_stop_after(S).await;
    assert_eq!((arrived.outcome.exit_code(), queue.counts().in_flight), (143, 1));
}

#[tokio::test(start_paused = true)]
async fn every_stop_fits_the_grace_whatever_hangs() {
    for does in [Does::EndsOnTerm(S, 1), Does::EndsOnTerm(5 * MINUTE, 0), Does::Hangs] {
        for dead_queue in [false, true] {
            let (queue, command) = (queue(), FakeCommand::new(does));
            for _ in 0..(if dead_queue { 1000 } else { 0 }) {
                queue.fault_change_visibility(Fault::RequestDelayed(24 * 60 * MINUTE));
            }
            let arrived = Journey::new(&queue, &command).run_and_stop_after(30 * S).await;
            assert!(arrived.took <= 30 * S + GRACE, "the stop took {:?}", arrived.took.checked_sub(30 * S));
            assert_eq!((arrived.outcome.exit_code(), deletes(&queue)), (143, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_the_long_poll_awaits_it() {
    let (queue, command) = (queue_with(&[]), exits(0));
    let arrived = Journey::new(&queue, &command).run_and_stop_after(2 * S).await;
    assert_eq!(arrived.outcome, RunOutcome::Finished);
    assert_eq!(arrived.took, 10 * S, "the request that is out is awaited, and no other is sent");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_after_the_stop_is_released_at_once() {
    let (queue, command) = (queue_with(&[]), exits(0));
    let sender = queue.clone();
    tokio::spawn(async move {
        sleep(5 * S).await;
        sender.send(object_created("late"));
    });
    let arrived = Journey::new(&queue, &command).run_and_stop_after(2 * S).await;
    assert_eq!((arrived.outcome.exit_code(), command.runs()), (143, 0));
    assert_eq!((arrived.took, queue.counts().visible), (5 * S, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_the_fetch_aborts_it() {
    let (queue, command) = (queue(), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.store.after = 5 * MINUTE;
    let arrived = journey.run_and_stop_after(30 * S).await;
    assert_eq!((arrived.outcome.exit_code(), command.runs(), arrived.took), (143, 0, 30 * S));
    assert_eq!(queue.counts().visible, 1);
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_is_on_the_wire_is_awaited_by_a_stop() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_delete(Fault::AnswerDelayed(3 * S));
    let arrived = Journey::new(&queue, &command).run_and_stop_after(6 * S).await;
    assert_eq!((arrived.outcome, arrived.took), (RunOutcome::Finished, 8 * S));
    assert!(queue.is_drained());
}

#[tokio::test(start_paused = true)]
async fn no_delete_is_retried_after_a_stop() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_delete(Fault::Error(DeleteError::Transient("503".to_owned())));
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run_and_stop_after(5 * S + Duration::from_millis(50)).await;
    assert_eq!((arrived.outcome.exit_code(), deletes(&queue)), (143, 1));
    assert_eq!(changes(&queue, started).last().map(|(_, to)| *to), Some(Duration::ZERO));
    assert_eq!(queue.counts().visible, 1);
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_fails_is_retried_while_the_lease_is_kept_alive() {
    let (queue, command) = (queue(), exits(0));
    for _ in 0..8 {
        queue.fault_delete(Fault::Error(DeleteError::Transient("503".to_owned())));
    }
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcome, deletes(&queue)), (RunOutcome::Finished, 9));
    assert!(!changes(&queue, started).is_empty(), "the lease was not kept alive between the tries");
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_never_works_keeps_the_message() {
    let (queue, command) = (queue(), exits(0));
    for _ in 0..1000 {
        queue.fault_delete(Fault::Error(DeleteError::Transient("503".to_owned())));
    }
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["delete_failed"], 75));
}

#[tokio::test(start_paused = true)]
async fn a_refused_delete_is_a_lost_lease() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_delete(Fault::Error(DeleteError::Refused("The receipt handle has expired".to_owned())));
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["lost_after_success"], 75));
    assert!(changes(&queue, started).is_empty(), "what may be somebody else's is not touched");
}

#[tokio::test(start_paused = true)]
async fn a_message_without_work_is_deleted() {
    let deleted_object = object_created("k").replace("ObjectCreated:Put", "ObjectRemoved:Delete");
    let test_event = r#"{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"inbox"}"#;
    let (queue, command) = (queue_with(&[&deleted_object, test_event]), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.max_messages = 10;
    let arrived = journey.run().await;
    assert_eq!((arrived.outcome.clone(), arrived.outcomes()), (RunOutcome::Finished, vec!["ignored", "test_event"]));
    assert!(queue.is_drained() && command.runs() == 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_no_notification_is_kept() {
    let (queue, command) = (queue_with(&["{\"job\": 1}"]), exits(0));
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["not_a_notification"], 65));
    assert_eq!((deletes(&queue), queue.counts().in_flight), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn every_record_is_worked_on_and_one_failure_keeps_them_all() {
    let record = |key: &str| {
        let body: serde_json::Value = serde_json::from_str(&object_created(key)).expect("JSON");
        body["Records"][0].clone()
    };
    let body = serde_json::json!({ "Records": [record("a"), record("b"), record("c")] }).to_string();
    let (queue, command) = (queue_with(&[&body]), exits(0));
    assert_eq!(Journey::new(&queue, &command).run().await.outcomes(), ["succeeded"]);
    assert_eq!(command.runs(), 3);

    let queue = queue_with(&[&body]);
    let command = FakeCommand::sequence([Does::Exits(S, 0), Does::Exits(S, 1)]);
    assert_eq!(Journey::new(&queue, &command).run().await.outcomes(), ["command_failed"]);
    assert_eq!((command.runs(), deletes(&queue)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn several_messages_are_drained_one_after_another() {
    let bodies: Vec<_> = (0..4).map(|n| object_created(&format!("k{n}"))).collect();
    let queue = queue_with(&bodies.iter().map(String::as_str).collect::<Vec<_>>());
    let command = FakeCommand::sequence([Does::Exits(S, 0), Does::Exits(S, 65), Does::Exits(S, 0)]);
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.max_messages = 3;
    let arrived = journey.run().await;
    assert_eq!(arrived.outcomes(), ["succeeded", "permanent", "succeeded"]);
    assert_eq!(arrived.outcome.exit_code(), 65);
    assert_eq!(queue.counts().visible, 1, "the fourth is for somebody else");
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_fetched_is_retried() {
    for (error, label, code) in [
        (FetchError::Retryable("503".to_owned()), "fetch_failed", 75),
        (FetchError::Permanent("archived".to_owned()), "unreadable", 65),
    ] {
        let (queue, command) = (queue(), exits(0));
        let mut journey = Journey::new(&queue, &command);
        journey.store.answer = Err(error);
        let arrived = journey.run().await;
        assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec![label], code));
        assert_eq!((command.runs(), deletes(&queue)), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_work_keeps_the_message_and_lets_it_go() {
    let (queue, command) = (queue(), FakeCommand::new(Does::Panics));
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["actor_died"], 70));
    assert_eq!((changes(&queue, started).len(), deletes(&queue)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_reporter_changes_nothing() {
    let (queue, command) = (queue(), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.telemetry = FakeTelemetry { panics: true, ..FakeTelemetry::default() }.into();
    let arrived = journey.run().await;
    assert_eq!(arrived.outcome, RunOutcome::Finished);
    assert!(queue.is_drained());
}

#[tokio::test(start_paused = true)]
async fn receiving_is_retried_for_a_while_and_not_in_a_hot_loop() {
    let (queue, command) = (queue(), exits(0));
    for _ in 0..1000 {
        queue.fault_receive(Fault::Error(ReceiveError::Transient("throttled".to_owned())));
    }
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!(arrived.outcome, RunOutcome::ReceiveFailed(ReceiveFailure::GaveUp("throttled".to_owned())));
    assert!((2 * MINUTE..3 * MINUTE).contains(&arrived.took), "it gave up after {:?}", arrived.took);
    assert!((5..25).contains(&queue.calls().len()), "{} requests", queue.calls().len());
}

#[tokio::test(start_paused = true)]
async fn a_missing_queue_ends_the_run_at_once() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_receive(Fault::Error(ReceiveError::Misconfigured("no such queue".to_owned())));
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcome.exit_code(), arrived.took), (78, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_release_that_fails_is_left_to_expire() {
    let (queue, command) = (queue(), exits(1));
    for _ in 0..1000 {
        queue.fault_change_visibility(Fault::Error(throttled()));
    }
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["command_failed"], 1));
    assert!(arrived.took < MINUTE, "it tried for {:?}", arrived.took);
}
