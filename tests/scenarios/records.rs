//! 53 to 56, 61, 69 and 70: recorded work (`--idempotency`), and crashes and stops at the worst
//! moments.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold::adapters::publish::S3Outbox;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::record;
use crate::support::bucket::MemoryBucket;
use crate::support::journey::{
    Does, FakeCommand, HookedQueue, Journey, MINUTE, RunResult, S, VISIBILITY, deletes, exits,
    queue, queue_with,
};
use crate::support::object_created;
use crate::support::records::{Fault, MemoryRecords};
use crate::support::wire::{Call, WiredQueue};

const HOUR: Duration = Duration::from_hours(1);

/// A pod that records its work and publishes its results.
fn pod(
    queue: &WiredQueue,
    command: &FakeCommand,
    records: &MemoryRecords,
    results: &MemoryBucket,
) -> Journey {
    let mut journey = Journey::new(queue, command);
    journey.records = Some(records.clone());
    journey.outbox = Some(Arc::new(S3Outbox { writer: Arc::new(results.clone()) }));
    let task = journey.settings.policy.task.as_mut().expect("a task");
    Arc::make_mut(task).output = Some("s3://results/{key}".parse().unwrap());
    journey.settings.polling.wait = 10 * MINUTE;
    journey
}

/// Two notifications of one upload, as S3 may send.
fn duplicate_notifications() -> WiredQueue {
    queue_with(&[&object_created("k"), &object_created("k")])
}

/// Each object has its own record, so the finished ones are not processed again.
#[tokio::test(start_paused = true)]
async fn s47_recorded_objects_are_skipped_at_the_redelivery() {
    let body = json!({ "Records": [record("a"), record("b"), record("c")] }).to_string();
    let (queue, records) = (queue_with(&[&body]), MemoryRecords::default());
    let command = FakeCommand::sequence([Does::Exits(S, 0), Does::Exits(S, 1), Does::Exits(S, 0)]);
    for outcome in ["command_failed", "succeeded"] {
        let pod = pod(&queue, &command, &records, &MemoryBucket::default());
        assert_eq!(pod.run().await.outcomes(), [outcome]);
    }
    assert_eq!(command.got("JOB_KEY"), ["a", "b", "b", "c"]);
    assert!(queue.is_drained());
}

/// A stop between success and delete: the record is still written as done. So the message is
/// released, and the next delivery has nothing to do.
#[tokio::test(start_paused = true)]
async fn s15_a_stop_after_success_records_the_work_as_done() {
    let (queue, command, records) = (queue(), exits(0), MemoryRecords::default());
    // The claim, and the final write, which is tried twice.
    records.script([Fault::None, Fault::Refused, Fault::AnswerDelayed(3 * S)]);
    let results = MemoryBucket::default();
    let stopped =
        pod(&queue, &command, &records, &results).run_and_stop_after(5 * S + S / 20).await;
    assert_eq!((stopped.outcomes(), records.state().as_deref()), (vec!["stopped"], Some("done")));
    assert_eq!((deletes(&queue), queue.counts().visible), (0, 1));
    assert!(stopped.took < 10 * S, "{:?}", stopped.took);
    assert_eq!(pod(&queue, &command, &records, &results).run().await.outcomes(), ["already_done"]);
    assert_eq!((command.runs(), queue.is_drained()), (1, true));
}

/// A store that does not answer loses the record, but does not delay the stop.
#[tokio::test(start_paused = true)]
async fn s15_a_failing_record_does_not_delay_a_stop() {
    let (queue, records, results) = (queue(), MemoryRecords::default(), MemoryBucket::default());
    records.script([Fault::None].into_iter().chain([Fault::AnswerDelayed(HOUR); 40]));
    let stopped = pod(&queue, &exits(0), &records, &results).run_and_stop_after(6 * S).await;
    assert_eq!((stopped.outcomes(), stopped.outcome.exit_code()), (vec!["stopped"], 143));
    // All of --stop-grace.
    assert!(stopped.took <= 26 * S, "{:?}", stopped.took);
    assert_eq!((deletes(&queue), queue.counts().visible), (0, 1));
}

/// A command that ignores TERM is KILLed early enough to release its record, and a slow store is
/// not waited for: otherwise the Processor would count as dead.
#[tokio::test(start_paused = true)]
async fn s26_a_record_that_cannot_be_released_does_not_delay_the_end() {
    let (queue, records) = (queue(), MemoryRecords::default());
    records.script([Fault::None].into_iter().chain([Fault::AnswerDelayed(HOUR); 40]));
    let mut pod = pod(
        &queue,
        &FakeCommand::new(Does::EndsOnTerm(MINUTE, 0)),
        &records,
        &MemoryBucket::default(),
    );
    pod.settings.policy.limits.max_duration = MINUTE;
    pod.settings.stop.reserve = 5 * S;
    let result = pod.run().await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["timed_out"], 1));
    assert_eq!((result.took, deletes(&queue)), (MINUTE + 20 * S, 0));
}

/// A stop during an upload aborts it at the end of the grace. Nothing is deleted or recorded as
/// done; the record is released at once, so the next delivery does not wait for its expiry, and
/// publishes all results.
#[tokio::test(start_paused = true)]
async fn s53_a_publish_longer_than_the_stop_keeps_the_message_and_releases_its_record() {
    let (queue, records, results) = (queue(), MemoryRecords::default(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Writes(5 * S));
    results.uploads_take(MINUTE);
    let stopped = pod(&queue, &command, &records, &results).run_and_stop_after(30 * S).await;
    // Of the 20 seconds, one is reserved for the record and two for the cleanup.
    assert_eq!((stopped.outcomes(), stopped.took), (vec!["stopped"], 47 * S));
    assert_eq!((deletes(&queue), records.state().as_deref()), (0, Some("released")));
    assert_eq!(results.keys(), Vec::<String>::new());

    results.uploads_take(Duration::ZERO);
    let again = pod(&queue, &command, &records, &results).run().await;
    assert_eq!(
        (again.outcomes(), again.ended()[0].work.timings.total.as_secs()),
        (vec!["succeeded"], 5)
    );
    assert_eq!((command.runs(), records.state().as_deref()), (2, Some("done")));
    assert_eq!(results.keys(), ["k/results.csv"]);
    assert!(queue.is_drained());
}

/// If the command succeeded before the stop, its results are published and recorded within the
/// grace. The stop deletes nothing, and the redelivery is recognised.
#[tokio::test(start_paused = true)]
async fn s69_a_stop_lets_finished_work_be_published_and_recorded() {
    for concurrency in [1, 2] {
        let (queue, records, results) =
            (queue(), MemoryRecords::default(), MemoryBucket::default());
        let command = FakeCommand::new(Does::Writes(5 * S));
        results.uploads_take(30 * S);
        let mut first = pod(&queue, &command, &records, &results);
        first.concurrency = concurrency;
        first.settings.policy.max_messages = u32::try_from(concurrency).unwrap();
        first.settings.polling.wait = S;
        first.settings.polling.longest_poll = S;
        let stopped = first.run_and_stop_after(20 * S).await;
        assert_eq!(
            (stopped.outcomes(), stopped.took, stopped.outcome.exit_code()),
            (vec!["stopped"], 35 * S, 143)
        );
        assert_eq!((deletes(&queue), queue.counts().visible), (0, 1));
        assert_eq!(
            (records.state().as_deref(), results.keys()),
            (Some("done"), vec!["k/results.csv".to_owned()])
        );

        let again = pod(&queue, &command, &records, &results).run().await;
        assert_eq!(
            (again.outcomes(), command.runs(), results.uploads()),
            (vec!["already_done"], 1, 1)
        );
        assert!(queue.is_drained());
    }
}

/// Without a record the redelivery repeats the work, but the results are published.
#[tokio::test(start_paused = true)]
async fn s69_a_stop_lets_finished_work_be_published_without_a_record() {
    let (queue, results) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Writes(5 * S));
    results.uploads_take(10 * S);
    let mut journey = pod(&queue, &command, &MemoryRecords::default(), &results);
    journey.records = None;
    let stopped = journey.run_and_stop_after(10 * S).await;
    assert_eq!((stopped.outcomes(), stopped.took, deletes(&queue)), (vec!["stopped"], 15 * S, 0));
    assert_eq!(results.keys(), ["k/results.csv"]);
}

/// An exit 0 after SIGTERM proves nothing: results are neither published nor recorded.
#[tokio::test(start_paused = true)]
async fn s69_work_that_ends_by_the_stop_is_not_published() {
    let (queue, records, results) = (queue(), MemoryRecords::default(), MemoryBucket::default());
    let command = FakeCommand::new(Does::EndsOnTerm(S, 0));
    let stopped = pod(&queue, &command, &records, &results).run_and_stop_after(10 * S).await;
    assert_eq!((stopped.outcomes(), stopped.took), (vec!["stopped"], 11 * S));
    assert_eq!((records.state().as_deref(), results.uploads()), (Some("released"), 0));
}

/// Another pod claims the record while a stop publishes finished work: the publishing ends.
#[tokio::test(start_paused = true)]
async fn s70_a_record_lost_during_a_stop_ends_the_publishing() {
    let (queue, records, results) = (queue(), MemoryRecords::default(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Writes(5 * S));
    results.uploads_take(MINUTE);
    let mut journey = pod(&queue, &command, &records, &results);
    // The record is refreshed every three seconds.
    journey.settings.policy.limits.visibility = 9 * S;
    let (stopped, ()) = tokio::join!(journey.run_and_stop_after(10 * S), async {
        sleep(12 * S).await;
        records.claimed_by_another();
    });
    assert_eq!((stopped.outcomes(), results.uploads(), deletes(&queue)), (vec!["stopped"], 0, 0));
    assert!(stopped.took <= 16 * S, "{:?}", stopped.took);
    assert_eq!(records.state().as_deref(), Some("in_progress"), "it belongs to the other pod");
}

/// A pod dies after it published its results, and before it recorded that: the work is repeated and
/// overwrites the results, after the record of the dead pod has expired.
#[tokio::test(start_paused = true)]
async fn s54_a_crash_between_publish_and_record_repeats_the_work() {
    let (queue, records, results) = (queue(), MemoryRecords::default(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Writes(5 * S));
    records.script([Fault::None, Fault::Refused, Fault::Refused, Fault::Refused]);
    let started = Instant::now();
    let dead = pod(&queue, &command, &records, &results)
        .run_for(5 * S + S / 2, std::future::pending())
        .await;
    assert!(dead.is_none());
    assert_eq!(
        (results.keys(), records.state().as_deref()),
        (vec!["k/results.csv".to_owned()], Some("in_progress"))
    );
    assert_eq!(deletes(&queue), 0);

    let again = pod(&queue, &command, &records, &results).run().await;
    assert_eq!((again.outcomes(), records.state().as_deref()), (vec!["succeeded"], Some("done")));
    assert!(started.elapsed() > VISIBILITY + 5 * S, "{:?}", started.elapsed());
    assert_eq!((command.runs(), results.keys()), (2, vec!["k/results.csv".to_owned()]));
    assert!(queue.is_drained());
}

/// A pod dies between the record and the delete: the redelivery is recognised and deleted without
/// running.
#[tokio::test(start_paused = true)]
async fn s55_a_crash_between_record_and_delete_does_not_repeat_the_work() {
    let (queue, records, results) = (queue(), MemoryRecords::default(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Writes(5 * S));
    let mut first = pod(&queue, &command, &records, &results);
    let mut frozen = HookedQueue::new(&queue);
    frozen.before = Box::new(|call| {
        Box::pin(async move {
            if call == Call::Delete {
                std::future::pending::<()>().await;
            }
        })
    });
    first.queue = Arc::new(frozen);
    assert!(first.run_for(6 * S, std::future::pending()).await.is_none());
    assert_eq!((records.state().as_deref(), deletes(&queue)), (Some("done"), 0));

    let second = pod(&queue, &command, &records, &results).run().await;
    assert_eq!((second.outcomes(), command.runs()), (vec!["already_done"], 1));
    assert_eq!((queue.is_drained(), deletes(&queue)), (true, 1));
}

/// Of several pods that wait for a dead pod's record, one does the work and publishes.
#[tokio::test(start_paused = true)]
async fn s56_a_takeover_has_one_winner() {
    let bodies = vec![object_created("k"); 6];
    let queue = queue_with(&bodies.iter().map(String::as_str).collect::<Vec<_>>());
    let (records, results) = (MemoryRecords::default(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Writes(4 * MINUTE));
    let pod = || {
        let mut pod = pod(&queue, &command, &records, &results);
        pod.settings.polling.wait = 10 * S;
        pod
    };
    assert!(pod().run_for(MINUTE, std::future::pending()).await.is_none());
    let waiting = (0..5).map(|_| pod().run());
    let result = futures_util::future::join_all(waiting).await;
    let mut outcomes: Vec<_> = result.iter().flat_map(RunResult::outcomes).collect();
    outcomes.sort_unstable();
    assert_eq!(
        outcomes,
        ["already_done", "already_done", "already_done", "already_done", "succeeded"]
    );
    assert_eq!((command.runs(), results.uploads()), (2, 1));
}

/// The owner lives, but can no longer reach the store: it gives up before another pod may claim the
/// record, although its SQS lease is good. So only the other pod publishes. The same if the store
/// never answers.
#[tokio::test(start_paused = true)]
async fn s56_an_owner_without_access_to_its_record_stops_before_the_takeover() {
    for is_silent in [false, true] {
        let (queue, records, results) =
            (duplicate_notifications(), MemoryRecords::default(), MemoryBucket::default());
        let cut_off = records.for_another_pod();
        if is_silent {
            // Two claims; and a refresh whose answer is lost, so that the owner has to read the
            // record.
            records.script([Fault::None, Fault::None, Fault::AnswerLost]);
        }
        let (slow, quick) = (
            FakeCommand::new(Does::Succeeds(9 * MINUTE, 2 * S)),
            FakeCommand::new(Does::Writes(S)),
        );
        let (first, second) = tokio::join!(pod(&queue, &slow, &cut_off, &results).run(), async {
            sleep(S).await;
            if is_silent { &cut_off.silent } else { &cut_off.unreachable }
                .store(true, Ordering::Relaxed);
            pod(&queue, &quick, &records, &results).run().await
        });
        assert_eq!((first.outcomes(), second.outcomes()), (vec!["lease_lost"], vec!["succeeded"]));
        assert!(
            slow.ended() - 2 * S < quick.ended() - S,
            "it was not halted before the other began"
        );
        assert_eq!((records.state().as_deref(), results.uploads()), (Some("done"), 1));
    }
}

/// A store that ignores conditions would give the same work to two pods: nothing runs, and there is
/// no retry.
#[tokio::test(start_paused = true)]
async fn s61_a_store_that_ignores_conditions_runs_nothing() {
    let (queue, command, records) = (queue(), exits(0), MemoryRecords::default());
    records.script([Fault::ConditionsUnsupported]);
    let result = pod(&queue, &command, &records, &MemoryBucket::default()).run().await;
    assert_eq!(
        (result.outcomes(), result.outcome.exit_code(), command.runs()),
        (vec!["not_recorded"], 75, 0)
    );
    let error = result.ended()[0].error().unwrap();
    assert!(error.ends_with("the store ignores If-None-Match"), "{error}");
    assert!(result.took < S, "there was a retry: {:?}", result.took);
}
