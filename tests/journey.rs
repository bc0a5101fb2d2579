//! Complete runs through the real actors, on a paused clock.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leasehold::job::delivery::MessageId;
use leasehold::job::lease::Strategy;
use leasehold::job::outcome::ResourceUsage;
use leasehold::job::report::Progress;
use leasehold::job::route::{Input, Task};
use leasehold::job::run_outcome::RunOutcome;
use leasehold::job::verdict::{OnStop, Retry};
use leasehold::ports::{FetchError, Queue};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::support::journey::{
    Does, FakeCommand, FakeStore, GRACE, Journey, MINUTE, S, USED, VISIBILITY, changes, deletes,
    exits, queue, queue_with, task, throttled,
};
use crate::support::object_created;
use crate::support::wire::{Call, Fault, WiredQueue};

#[tokio::test(start_paused = true)]
async fn a_success_is_deleted() {
    let (queue, command) = (queue(), exits(0));
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!(result.outcome, RunOutcome::Finished);
    assert_eq!(result.outcomes(), ["succeeded"]);
    assert!(queue.is_drained());
    assert_eq!(result.ended()[0].work.timings.command, 5 * S);
}

#[tokio::test(start_paused = true)]
async fn the_usage_of_a_message_is_the_total_cpu_time_and_the_highest_peak_memory() {
    let (queue, command) =
        (queue_with(&[include_str!("../core/tests/fixtures/s3-many-records.json")]), exits(0));
    let result = Journey::new(&queue, &command).run().await;
    let used = ResourceUsage { cpu: 2 * USED.cpu, peak_memory: USED.peak_memory };
    assert_eq!((command.runs(), result.ended()[0].work.usage), (2, Some(used)));
}

#[tokio::test(start_paused = true)]
async fn the_command_gets_the_documented_variables() {
    let (queue, command) =
        (queue_with(&[&object_created("a+folder/r%C3%A9sum%C3%A9.csv")]), exits(0));
    Journey::new(&queue, &command).run().await;
    let env = command.last().command.job.environment();
    let get = |name: &str| {
        let value =
            env.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.to_str());
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
    // The directories exist also without `--output` and `--checkpoint`.
    assert!(
        get("JOB_OUTPUT_DIR").ends_with("/output")
            && get("JOB_CHECKPOINT_DIR").ends_with("/checkpoint")
    );
}

#[tokio::test(start_paused = true)]
async fn the_command_gets_its_input_as_configured() {
    for input in [Input::File, Input::Stdin, Input::None] {
        let (queue, command) = (queue(), exits(0));
        let mut journey = Journey::new(&queue, &command);
        journey.settings.policy.task = Some(Arc::new(Task { input, ..task() }));
        assert_eq!(journey.run().await.outcomes(), ["succeeded"]);
        let path = command.got("JOB_INPUT").pop().map(PathBuf::from);
        assert_eq!(path.is_some(), input != Input::None);
        assert_eq!(command.last().command.stdin, path.filter(|_| input == Input::Stdin));
        assert_eq!(command.got("JOB_KEY"), ["k"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unwanted_object_is_not_fetched_but_its_bucket_is_checked() {
    for (buckets, outcome) in [(vec![], "succeeded"), (vec!["other".to_owned()], "unreadable")] {
        let (queue, command) = (queue(), exits(0));
        let mut journey = Journey::new(&queue, &command);
        let gone = Err(FetchError::Missing("404".to_owned()));
        journey.store = Arc::new(FakeStore { answer: gone, ..FakeStore::default() });
        journey.settings.policy.task = Some(Arc::new(Task { input: Input::None, ..task() }));
        journey.fetch.buckets = buckets;
        assert_eq!(journey.run().await.outcomes(), [outcome]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_a_notification_is_work_if_configured() {
    let (queue, command) = (queue_with(&["hello"]), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.accept_raw = true;
    let result = journey.run().await;
    assert_eq!((result.outcomes(), command.runs()), (vec!["succeeded"], 1));
    assert!(queue.is_drained());
    for (name, known) in [
        ("JOB_MESSAGE_ID", 1),
        ("JOB_INPUT", 1),
        ("JOB_BUCKET", 0),
        ("JOB_KEY", 0),
        ("JOB_EVENT", 0),
    ] {
        assert_eq!(command.got(name).len(), known, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_extended_each_third_of_its_time() {
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
    let result = Journey::new(&queue, &command).run().await;
    rival.await.expect("the rival gets no message");
    assert_eq!(result.outcomes(), ["succeeded"]);
    let extensions = changes(&queue, started);
    assert_eq!(extensions.len(), 13, "{extensions:?}");
    assert!(
        extensions
            .iter()
            .zip(1..)
            .all(|((at, to), n)| *at == n * VISIBILITY / 3 && *to == VISIBILITY),
        "{extensions:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_fixed_lease_is_one_extension() {
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.limits.strategy = Strategy::Fixed(630 * S);
    let started = Instant::now();
    let result = journey.run().await;
    assert_eq!(result.outcomes(), ["succeeded"]);
    assert_eq!(changes(&queue, started), [(Duration::ZERO, 630 * S)]);
}

#[tokio::test(start_paused = true)]
async fn a_kept_message_reports_the_next_attempt() {
    let (queue, command) = (queue(), exits(1));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.limits.retry.retry = Retry::Backoff { min: 20 * S, max: 20 * S };
    let ended = journey.run().await.ended().remove(0);
    let noon = humantime::parse_rfc3339("2026-11-22T12:03:00Z").expect("a time");
    let next = "attempt 1 of 3, visible again 12:03:20Z, after the last attempt it goes to dead-letter queue dlq";
    assert_eq!(ended.next(noon).as_deref(), Some(next));
    assert_eq!(ended.error().as_deref(), Some("the command failed with exit code 1"));
}

#[tokio::test(start_paused = true)]
async fn work_over_its_limit_is_halted_and_retried() {
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    let started = Instant::now();
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["timed_out"], 1));
    assert_eq!(command.last().ended.expect("an ended run") - started, 10 * MINUTE + 3 * S);
    assert_eq!(deletes(&queue), 0, "exit 0 after TERM proves nothing");
    assert!(changes(&queue, started).last().is_some_and(|(_, delay)| *delay >= 10 * S));
}

#[tokio::test(start_paused = true)]
async fn a_stalled_command_is_halted_and_retried() {
    let (queue, command) = (queue(), FakeCommand::new(Does::Prints(50 * S, 3)));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.task = Some(Arc::new(Task { stall_timeout: Some(MINUTE), ..task() }));
    let started = Instant::now();
    let result = journey.run().await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["stalled"], 1));
    let halted = command.ended() - started;
    assert!(
        (210 * S..=212 * S).contains(&halted),
        "halted after {halted:?}; the last line came after 150s"
    );
    assert_eq!(deletes(&queue), 0, "exit 0 after TERM proves nothing");
    assert!(changes(&queue, started).last().is_some_and(|(_, delay)| *delay >= 10 * S));
}

#[tokio::test(start_paused = true)]
async fn progress_is_a_sign_of_life_and_is_reported() {
    let body = include_str!("../core/tests/fixtures/s3-many-records.json");
    let (queue, command) = (queue_with(&[body]), FakeCommand::new(Does::Progresses(50 * S, 2)));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.task = Some(Arc::new(Task { stall_timeout: Some(MINUTE), ..task() }));
    let result = journey.run().await;
    assert_eq!((result.outcomes(), command.runs()), (vec!["succeeded"], 2));
    let progress = |share| Progress { share: Some(share), text: Some("loading".to_owned()) };
    assert_eq!(
        result.telemetry.progress(),
        [progress(0.25), progress(0.5), progress(0.75), progress(1.0)]
    );
    assert_eq!(result.ended()[0].progress, Some(progress(1.0)));
}

#[tokio::test(start_paused = true)]
async fn a_stop_may_let_the_lease_expire() {
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.limits.retry.on_stop = OnStop::Expire;
    let result = journey.run_and_stop_after(S).await;
    assert_eq!((result.outcome.exit_code(), queue.counts().in_flight), (143, 1));
}

#[tokio::test(start_paused = true)]
async fn several_messages_are_drained_one_after_another() {
    let bodies: Vec<_> = (0..4).map(|n| object_created(&format!("k{n}"))).collect();
    let queue = queue_with(&bodies.iter().map(String::as_str).collect::<Vec<_>>());
    let command = FakeCommand::sequence([Does::Exits(S, 0), Does::Exits(S, 65), Does::Exits(S, 0)]);
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.max_messages = 3;
    let result = journey.run().await;
    assert_eq!(result.outcomes(), ["succeeded", "permanent", "succeeded"]);
    assert_eq!(result.outcome.exit_code(), 65);
    assert_eq!(queue.counts().visible, 2, "the second is back, the fourth was not received");
}

/// A run over this many messages, four at a time.
fn side_by_side(
    messages: usize,
    max_messages: u32,
    does: Does,
) -> (WiredQueue, FakeCommand, Journey) {
    let bodies: Vec<_> = (0..messages).map(|n| object_created(&format!("k{n}"))).collect();
    let queue = queue_with(&bodies.iter().map(String::as_str).collect::<Vec<_>>());
    let command = FakeCommand::new(does);
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.max_messages = max_messages;
    journey.concurrency = 4;
    (queue, command, journey)
}

#[tokio::test(start_paused = true)]
async fn messages_are_drained_side_by_side() {
    let (queue, command, journey) = side_by_side(10, 100, Does::Exits(5 * S, 0));
    let started = Instant::now();
    let result = journey.run().await;
    assert_eq!((result.outcome, command.runs()), (RunOutcome::Finished, 10));
    assert!(queue.is_drained());
    assert_eq!(command.ended() - started, 15 * S, "ten of 5 s, four at a time");
}

#[tokio::test(start_paused = true)]
async fn max_messages_limits_the_receives_of_a_run() {
    for max_messages in [1, 6] {
        let (queue, command, journey) = side_by_side(10, max_messages, Does::Exits(5 * S, 1));
        let result = journey.run().await;
        assert_eq!(result.outcome.exit_code(), 1);
        assert_eq!(
            (result.outcomes().len(), command.runs()),
            (max_messages as usize, max_messages as usize)
        );
        assert_eq!(
            queue.counts().visible,
            10 - max_messages as usize,
            "the others were never received"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_of_several_messages_takes_no_longer_than_of_one() {
    let (queue, command, journey) = side_by_side(10, 100, Does::EndsOnTerm(15 * S, 0));
    let result = journey.run_and_stop_after(7 * S).await;
    assert_eq!((result.outcome.exit_code(), result.outcomes()), (143, vec!["stopped"; 4]));
    assert!(result.took <= 7 * S + GRACE, "{:?}", result.took);
    assert_eq!((command.runs(), deletes(&queue), queue.counts().visible), (4, 0, 10));
}

/// Runs two at a time, of which one command may run; each object takes 3 s, and each command 5 s.
fn prefetching(messages: usize) -> (WiredQueue, FakeCommand, Journey) {
    let (queue, command, mut journey) = side_by_side(messages, 100, Does::Exits(5 * S, 0));
    journey.concurrency = 2;
    journey.turns = Some(Arc::new(Semaphore::new(1)));
    journey.store = Arc::new(FakeStore { after: 3 * S, ..FakeStore::default() });
    (queue, command, journey)
}

#[tokio::test(start_paused = true)]
async fn the_next_object_is_downloaded_while_the_command_works() {
    let (queue, command, mut journey) = prefetching(3);
    // Enough for a download and a command, but not for the wait between them.
    journey.settings.policy.limits.max_duration = 9 * S;
    let started = Instant::now();
    let result = journey.run().await;
    assert_eq!(
        (result.outcome.clone(), result.outcomes()),
        (RunOutcome::Finished, vec!["succeeded"; 3])
    );
    assert!(queue.is_drained());
    assert_eq!(command.ended() - started, 18 * S, "one download, and three commands");
    let turns: Vec<_> = result.ended().iter().map(|ended| ended.work.timings.turn).collect();
    assert_eq!(turns, [Duration::ZERO, 5 * S, 2 * S]);
    for ended in result.ended() {
        let timings = ended.work.timings;
        assert_eq!((timings.fetch, timings.command), (3 * S, 5 * S));
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_waits_for_its_turn_is_extended_and_released_in_a_stop() {
    let (queue, _, mut journey) = prefetching(2);
    journey.command = Arc::new(FakeCommand::new(Does::EndsOnTerm(Duration::ZERO, 0)));
    let result = journey.run_and_stop_after(2 * MINUTE).await;
    assert_eq!((result.outcome.exit_code(), result.outcomes()), (143, vec!["stopped"; 2]));
    assert_eq!((deletes(&queue), queue.counts().visible), (0, 2));
    assert!(result.took < 2 * MINUTE + S, "{:?}", result.took);
    let extended = |number: u32| {
        let id = MessageId::new(format!("message-{number}"));
        let is_extension = |call| matches!(call, Call::ChangeVisibility(to) if !to.is_zero());
        let calls = queue.calls();
        calls.iter().filter(|it| is_extension(it.call) && it.message_id == Some(id.clone())).count()
    };
    assert!(extended(1) > 1 && extended(2) == extended(1), "{} and {}", extended(1), extended(2));
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_release_the_lease_expires() {
    let (queue, command) = (queue(), exits(1));
    for _ in 0..1000 {
        queue.fault_change_visibility(Fault::Error(throttled()));
    }
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["command_failed"], 1));
    assert!(result.took < MINUTE, "it tried for {:?}", result.took);
}
