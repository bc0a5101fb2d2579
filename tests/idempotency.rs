//! Finished work is recognised, and two pods never do the same work at the same time: runs on a
//! paused clock; then the same rules on real servers.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::types::QueueAttributeName;
use leasehold::adapters::aws::s3::S3;
use leasehold::adapters::aws::sqs::Sqs;
use leasehold::job::delivery::{MessageId, Redrive, SqsAttributes};
use leasehold::job::outcome::Failure;
use leasehold::job::report::{Ended, Subject};
use leasehold::job::route::{JobType, Match};
use leasehold::job::run_outcome::RunOutcome;
use leasehold::ports::clock::Clock;
use leasehold::ports::{Condition, Entry, Queue, RecordError, Records};
use leasehold::work::idempotency::{Claimed, Idempotency};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::aws;
use crate::support::cloud::Cloud;
use crate::support::http::Http;
use crate::support::journey::{
    Does, FakeCommand, Journey, MINUTE, RunResult, S, VISIBILITY, deletes, exits, queue, queue_with,
};
use crate::support::object_created;
use crate::support::records::{Fault, MemoryRecords};
use crate::support::servers::{Ministack, Moto};
use crate::support::wire::WiredQueue;

fn pod(queue: &WiredQueue, command: &FakeCommand, records: &MemoryRecords) -> Journey {
    let mut journey = Journey::new(queue, command);
    journey.records = Some(records.clone());
    journey
}

/// Two notifications of one upload, as S3 may send.
fn duplicate_notifications() -> WiredQueue {
    queue_with(&[&object_created("k"), &object_created("k")])
}

/// A notification of this event about `k`.
fn event(name: &str, sequencer: Option<&str>) -> String {
    let mut body: Value = serde_json::from_str(&object_created("k")).unwrap();
    body["Records"][0]["eventName"] = name.into();
    body["Records"][0]["s3"]["object"]["sequencer"] = sequencer.into();
    body.to_string()
}

fn outcomes(result: &RunResult) -> Vec<&'static str> {
    result.ended().iter().map(Ended::outcome).collect()
}

#[tokio::test(start_paused = true)]
async fn a_redelivery_of_finished_work_is_deleted_without_running() {
    let (queue, command, records) = (duplicate_notifications(), exits(0), MemoryRecords::default());
    let mut first = pod(&queue, &command, &records);
    first.settings.policy.max_messages = 2;
    let result = first.run().await;
    assert_eq!(
        (result.outcome.clone(), outcomes(&result)),
        (RunOutcome::Finished, vec!["succeeded", "already_done"])
    );
    assert_eq!((command.runs(), deletes(&queue), records.state().as_deref()), (1, 2, Some("done")));
}

#[tokio::test(start_paused = true)]
async fn failed_work_is_retried_at_once() {
    let (queue, records) = (queue(), MemoryRecords::default());
    let command = FakeCommand::sequence([Does::Exits(S, 1), Does::Exits(S, 0)]);
    assert_eq!(outcomes(&pod(&queue, &command, &records).run().await), ["command_failed"]);
    assert_eq!(records.state().as_deref(), Some("released"));
    let mut second = pod(&queue, &command, &records);
    second.settings.polling.wait = MINUTE;
    let result = second.run().await;
    assert_eq!((outcomes(&result), result.ended()[0].work.timings.total), (vec!["succeeded"], S));
    assert_eq!(records.state().as_deref(), Some("done"));
}

/// A release would use up receives; and the waiting pod has the newest handle, the owner's may be
/// stale.
#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_a_living_owner_and_keeps_its_lease() {
    let (queue, records) = (duplicate_notifications(), MemoryRecords::default());
    let command = FakeCommand::new(Does::Exits(7 * MINUTE, 0));
    let (first, second) = tokio::join!(pod(&queue, &command, &records).run(), async {
        sleep(S).await;
        pod(&queue, &command, &records).run().await
    });
    assert_eq!((outcomes(&first), outcomes(&second)), (vec!["succeeded"], vec!["already_done"]));
    assert_eq!((command.runs(), second.ended()[0].subject.receive_count), (1, 1));
    assert!((7 * MINUTE..7 * MINUTE + 15 * S).contains(&second.took), "{:?}", second.took);
    assert!(queue.is_drained());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_pod_stops_in_time_and_without_running() {
    let (queue, records) = (duplicate_notifications(), MemoryRecords::default());
    let command = FakeCommand::new(Does::Exits(7 * MINUTE, 0));
    let (_, second) = tokio::join!(pod(&queue, &command, &records).run(), async {
        sleep(S).await;
        pod(&queue, &command, &records).run_and_stop_after(MINUTE).await
    });
    assert_eq!((outcomes(&second), command.runs()), (vec!["stopped"], 1));
    assert!(second.took < MINUTE + S, "{:?}", second.took);
}

#[tokio::test(start_paused = true)]
async fn the_work_of_a_dead_pod_is_taken_over_when_its_record_expires() {
    let (queue, records) = (duplicate_notifications(), MemoryRecords::default());
    let command = FakeCommand::new(Does::Exits(5 * MINUTE, 0));
    let started = Instant::now();
    let dead = pod(&queue, &command, &records).run_for(MINUTE, std::future::pending()).await;
    assert!(dead.is_none());
    assert_eq!(records.state().as_deref(), Some("in_progress"));
    let result = pod(&queue, &command, &records).run().await;
    assert_eq!((outcomes(&result), command.runs()), (vec!["succeeded"], 2));
    // The last refresh of the record was after a third of its lease.
    let taken_over = started.elapsed() - 5 * MINUTE;
    let expires = VISIBILITY / 3 + VISIBILITY;
    assert!((expires..expires + 15 * S).contains(&taken_over), "{taken_over:?}");
}

/// The lease may be the job type's.
#[tokio::test(start_paused = true)]
async fn a_record_lasts_as_long_as_the_lease_of_its_message() {
    let (queue, records) = (queue(), MemoryRecords::default());
    let command = FakeCommand::new(Does::Exits(5 * MINUTE, 0));
    let pod = || {
        let mut pod = pod(&queue, &command, &records);
        let policy = &mut pod.settings.policy;
        let mut limits = policy.limits.clone();
        limits.visibility = MINUTE;
        policy.job_types = vec![JobType {
            matches: Match::default(),
            object_from: None,
            task: policy.task.clone().unwrap(),
            limits,
        }];
        policy.limits.visibility = 60 * MINUTE;
        pod.settings.polling.wait = 5 * MINUTE;
        pod
    };
    let dead = pod().run_for(MINUTE / 2, std::future::pending()).await;
    assert!(dead.is_none());
    let result = pod().run().await;
    assert_eq!(
        (outcomes(&result), result.ended()[0].subject.receive_count),
        (vec!["succeeded"], 2)
    );
    assert!(result.took < MINUTE + 5 * MINUTE + 15 * S, "{:?}", result.took);
}

/// The pod may get errors whenever it reads the record; transient ones do not add up.
#[tokio::test(start_paused = true)]
async fn a_waiting_pod_survives_transient_errors() {
    let (queue, records) = (duplicate_notifications(), MemoryRecords::default());
    let command = FakeCommand::new(Does::Exits(9 * MINUTE, 0));
    let waiting = records.for_another_pod();
    let outages = async {
        for _ in 0..8 {
            sleep(MINUTE).await;
            waiting.unreachable.store(true, Ordering::Relaxed);
            sleep(11 * S).await;
            waiting.unreachable.store(false, Ordering::Relaxed);
        }
    };
    let (first, second, ()) = tokio::join!(
        pod(&queue, &command, &records).run(),
        async {
            sleep(S).await;
            pod(&queue, &command, &waiting).run().await
        },
        outages
    );
    assert_eq!((outcomes(&first), outcomes(&second)), (vec!["succeeded"], vec!["already_done"]));
    assert_eq!(command.runs(), 1);
}

/// For each write: the claim, a refresh, the final one.
#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_is_recognised_as_our_own() {
    for lost in 0..4 {
        let (queue, records) = (queue(), MemoryRecords::default());
        // Long enough for two refreshes.
        let command = FakeCommand::new(Does::Exits(MINUTE + 30 * S, 0));
        records
            .script((0..lost).map(|_| Fault::None).chain([Fault::AnswerLost, Fault::AnswerLost]));
        let result = pod(&queue, &command, &records).run().await;
        assert_eq!((outcomes(&result), command.runs()), (vec!["succeeded"], 1), "write {lost}");
        assert_eq!((records.state().as_deref(), records.len()), (Some("done"), 1), "write {lost}");
    }
}

#[tokio::test(start_paused = true)]
async fn transient_errors_are_retried() {
    let (queue, records, command) = (queue(), MemoryRecords::default(), exits(0));
    records.script([Fault::Refused, Fault::Refused, Fault::None, Fault::Refused, Fault::Refused]);
    let result = pod(&queue, &command, &records).run().await;
    assert_eq!((outcomes(&result), records.state().as_deref()), (vec!["succeeded"], Some("done")));
}

#[tokio::test(start_paused = true)]
async fn without_the_records_nothing_runs_and_nothing_is_deleted() {
    let (queue, records, command) = (queue(), MemoryRecords::default(), exits(0));
    records.unreachable.store(true, Ordering::Relaxed);
    let result = pod(&queue, &command, &records).run().await;
    assert_eq!((outcomes(&result), result.outcome.exit_code()), (vec!["not_recorded"], 75));
    assert_eq!((command.runs(), deletes(&queue)), (0, 0));
}

/// Other pods cannot see that the work is done, so the message is kept and the work repeated.
#[tokio::test(start_paused = true)]
async fn unrecorded_work_is_kept() {
    let (queue, records, command) = (queue(), MemoryRecords::default(), exits(0));
    let down = records.unreachable.clone();
    let (result, ()) = tokio::join!(pod(&queue, &command, &records).run(), async {
        sleep(S).await;
        down.store(true, Ordering::Relaxed);
    });
    assert_eq!((outcomes(&result), deletes(&queue)), (vec!["not_recorded"], 0));
}

/// An exit 0 after SIGTERM does not count as finished.
#[tokio::test(start_paused = true)]
async fn an_exit_0_after_term_is_not_recorded_as_done() {
    let (queue, records) = (queue(), MemoryRecords::default());
    let command = FakeCommand::sequence([Does::Succeeds(MINUTE, S), Does::Exits(S, 0)]);
    let stopped = pod(&queue, &command, &records).run_and_stop_after(30 * S).await;
    assert_eq!(
        (outcomes(&stopped), records.state().as_deref()),
        (vec!["stopped"], Some("released"))
    );
    let again = pod(&queue, &command, &records).run().await;
    assert_eq!((outcomes(&again), command.runs()), (vec!["succeeded"], 2));
}

/// Different objects, and a message of several objects.
#[tokio::test(start_paused = true)]
async fn each_object_is_separate_work() {
    let many = include_str!("../core/tests/fixtures/s3-many-records.json");
    let (queue, records, command) =
        (queue_with(&[many, many, &object_created("k")]), MemoryRecords::default(), exits(0));
    let mut journey = pod(&queue, &command, &records);
    journey.settings.policy.max_messages = 3;
    assert_eq!(outcomes(&journey.run().await), ["succeeded", "already_done", "succeeded"]);
    assert_eq!((command.runs(), records.len()), (3, 3));
}

/// S3 numbers only puts and deletes. Without a number, two events cannot be distinguished from two
/// notifications of one event.
#[tokio::test(start_paused = true)]
async fn each_event_about_an_object_is_separate_work() {
    let events = [
        event("ObjectCreated:Put", Some("1")),
        event("ObjectCreated:Put", Some("2")),
        event("ObjectCreated:Copy", Some("2")),
        event("ObjectTagging:Put", None),
        event("ObjectTagging:Put", None),
        event("ObjectRestore:Completed", None),
    ];
    let (records, command) = (MemoryRecords::default(), exits(0));
    let mut journey = pod(&queue_with(&events.each_ref().map(String::as_str)), &command, &records);
    journey.settings.policy.selection.events =
        "ObjectCreated:*,ObjectTagging:*,ObjectRestore:Completed".parse().unwrap();
    journey.settings.policy.max_messages = 6;
    assert_eq!(outcomes(&journey.run().await), ["succeeded"; 6]);
    assert_eq!((command.runs(), records.len()), (6, 6));
}

/// Custom senders may provide only the key.
#[tokio::test(start_paused = true)]
async fn uploads_with_only_a_key_are_separate_work() {
    let minimal = include_str!("../core/tests/fixtures/minimal.json");
    let (records, command) = (MemoryRecords::default(), exits(0));
    let mut journey = pod(&queue_with(&[minimal, minimal]), &command, &records);
    journey.settings.policy.max_messages = 2;
    assert_eq!(outcomes(&journey.run().await), ["succeeded", "succeeded"]);
}

/// Then the message id is part of the idempotency key.
#[tokio::test(start_paused = true)]
async fn without_a_sequencer_a_redelivery_is_recognised_by_its_message() {
    let tagged = |key: &str| {
        let mut body: Value = serde_json::from_str(&event("ObjectTagging:Put", None)).unwrap();
        body["Records"][0]["s3"]["object"]["key"] = key.into();
        body["Records"][0].take()
    };
    let body = json!({ "Records": [tagged("a"), tagged("a"), tagged("b")] }).to_string();
    let (queue, records) = (queue_with(&[&body]), MemoryRecords::default());
    let command = FakeCommand::sequence([
        Does::Exits(S, 0),
        Does::Exits(S, 0),
        Does::Exits(S, 1),
        Does::Exits(S, 0),
    ]);
    for outcome in ["command_failed", "succeeded"] {
        let mut journey = pod(&queue, &command, &records);
        journey.settings.policy.selection.events = "ObjectTagging:*".parse().unwrap();
        journey.settings.polling.wait = MINUTE;
        assert_eq!(outcomes(&journey.run().await), [outcome]);
    }
    assert_eq!(command.got("JOB_KEY"), ["a", "a", "b", "b"]);
}

/// From S3, from an S3-compatible store, and from EventBridge.
#[tokio::test(start_paused = true)]
async fn an_upload_is_the_same_work_from_every_sender() {
    let eventbridge = json!({
        "source": "aws.s3",
        "detail-type": "Object Created",
        "detail": {
            "bucket": { "name": "inbox" },
            "object": { "key": "k", "size": 4, "etag": "e", "sequencer": "1" },
            "reason": "PutObject",
        },
    });
    let notifications =
        [object_created("k"), event("s3:ObjectCreated:Put", Some("1")), eventbridge.to_string()];
    let (records, command) = (MemoryRecords::default(), exits(0));
    let mut journey =
        pod(&queue_with(&notifications.each_ref().map(String::as_str)), &command, &records);
    journey.settings.policy.max_messages = 3;
    assert_eq!(outcomes(&journey.run().await), ["succeeded", "already_done", "already_done"]);
}

/// A record of another program, or of another version of leasehold, must not cause a delete.
#[tokio::test(start_paused = true)]
async fn a_foreign_record_keeps_the_message_and_is_not_quoted() {
    let (queue, records, command) = (queue(), MemoryRecords::default(), exits(0));
    let mut first = pod(&queue, &command, &records);
    first.settings.policy.limits.max_duration = S;
    first.run().await;
    let ours: Value = serde_json::from_slice(&records.only_record()).unwrap();
    for (field, value, problem) in [
        ("version", json!(9), "has version 9, but this leasehold reads only version 1"),
        ("version", json!("hidden"), "not an idempotency record"),
        ("version", json!(null), "not an idempotency record"),
        ("state", json!("hidden"), "not an idempotency record"),
        ("time_to_live", json!(u64::MAX), "longer than the 12 hours of a lease"),
        ("time_to_live", json!(-1), "not an idempotency record"),
    ] {
        let (mut record, queue) = (ours.clone(), queue_with(&[&object_created("k")]));
        (record["state"], record[field]) = (json!("done"), value);
        records.overwrite(record.to_string().as_bytes());
        let result = pod(&queue, &command, &records).run().await;
        assert_eq!((outcomes(&result), deletes(&queue)), (vec!["not_recorded"], 0), "{record}");
        let error = result.ended()[0].error().unwrap();
        assert!(error.contains(problem) && !error.contains("hidden"), "{error}");
    }
    assert_eq!(command.runs(), 1);
}

/// A retry does not help without permission, and the error would not reach the report.
#[tokio::test]
async fn a_permanent_refusal_is_reported_at_once() {
    let refuses = Http::start(|_| {
        (403, "<Error><Code>AccessDenied</Code><Message>No.</Message></Error>".into())
    })
    .await;
    let s3 = S3::new(&aws::config(&refuses.endpoint), None);
    let read = s3.read("b", "k").await.unwrap_err();
    let written = s3.write("b", "k", Vec::new(), Condition::Absent).await.unwrap_err();
    for (error, permission) in [(read, "s3:GetObject"), (written, "s3:PutObject")] {
        assert!(matches!(error, RecordError::Refused(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("AccessDenied") && text.contains(permission), "{text}");
    }
}

#[tokio::test]
async fn an_endless_record_is_not_read() {
    let long = Http::start(|_| (200, "x".repeat(1 << 20))).await;
    let error =
        S3::new(&aws::config(&long.endpoint), None).read("b", "k").await.unwrap_err().to_string();
    assert!(
        error.contains("s3://b/k: it is longer than 65536 bytes, the limit of a record"),
        "{error}"
    );
}

/// If a store refuses every write, the retries end, and the work is not done without a record.
#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_every_write_keeps_the_message() {
    let (queue, command) = (queue(), exits(0));
    let records = MemoryRecords::default();
    records.script([Fault::ConditionFailed; 20]);
    let result = pod(&queue, &command, &records).run().await;
    assert_eq!((outcomes(&result), command.runs()), (vec!["not_recorded"], 0));
}

/// The conditions that every store of records must obey.
async fn assert_record_conditions(records: &dyn Records, bucket: &str) {
    assert_eq!(records.read(bucket, "p/a").await, Ok(None));
    let stale = records.write(bucket, "p/a", b"0".to_vec(), Condition::Unchanged("\"none\"")).await;
    assert_eq!(stale, Err(RecordError::ConditionFailed), "there is no record yet");

    let etag = records.write(bucket, "p/a", b"1".to_vec(), Condition::Absent).await.unwrap();
    assert_eq!(
        records.write(bucket, "p/a", b"2".to_vec(), Condition::Absent).await,
        Err(RecordError::ConditionFailed)
    );
    let Entry { bytes, etag: read, age } = records.read(bucket, "p/a").await.unwrap().unwrap();
    assert_eq!((bytes.as_slice(), &read), (b"1".as_slice(), &etag));
    assert!(age <= 2 * S, "{age:?}");

    let newer =
        records.write(bucket, "p/a", b"3".to_vec(), Condition::Unchanged(&etag)).await.unwrap();
    let stale = records.write(bucket, "p/a", b"4".to_vec(), Condition::Unchanged(&etag)).await;
    assert_eq!(stale, Err(RecordError::ConditionFailed));
    let entry = records.read(bucket, "p/a").await.unwrap().unwrap();
    assert_eq!((entry.bytes, entry.etag), (b"3".to_vec(), newer));

    let claims = (0..8).map(|n: u8| records.write(bucket, "p/b", vec![n], Condition::Absent));
    let claims = futures_util::future::join_all(claims).await;
    assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1, "{claims:?}");

    // The age of a record grows by the store's clock.
    let older = async {
        loop {
            let entry = records.read(bucket, "p/a").await.unwrap().unwrap();
            if entry.age >= S {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(10 * S, older).await.expect("the age grows");
}

#[tokio::test(start_paused = true)]
async fn records_in_memory_obey_conditions() {
    assert_record_conditions(&MemoryRecords::default(), "records").await;
}

async fn assert_s3_records(endpoint: &str) {
    let config = aws::config(endpoint);
    let bucket = format!("records-{:x}", std::process::id());
    let s3 = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
    aws_sdk_s3::Client::from_conf(s3)
        .create_bucket()
        .bucket(&bucket)
        .send()
        .await
        .expect("the bucket is created");
    assert_record_conditions(&S3::new(&config, None), &bucket).await;
}

#[tokio::test]
async fn records_in_ministack_obey_conditions() {
    assert_s3_records(&Ministack::shared().await.endpoint()).await;
}

#[tokio::test]
async fn records_in_moto_obey_conditions() {
    assert_s3_records(&Moto::shared().await.endpoint()).await;
}

/// A content-based deduplication id is not an idempotency key: the same body on another day is
/// other work.
async fn assert_fifo_idempotency_keys(endpoint: &str) {
    let config = aws::config(endpoint);
    let client = aws_sdk_sqs::Client::new(&config);
    let create = client.create_queue().queue_name(format!("names-{:x}.fifo", std::process::id()));
    let create = create.attributes(QueueAttributeName::FifoQueue, "true");
    let create = create.attributes(QueueAttributeName::ContentBasedDeduplication, "true");
    let url = create.send().await.expect("the queue is created").queue_url.expect("a URL");
    for (group, body, id) in [("a", "é", None), ("b", "named", Some("order-7"))] {
        let send = client.send_message().queue_url(&url).message_group_id(group).message_body(body);
        send.set_message_deduplication_id(id.map(str::to_owned))
            .send()
            .await
            .expect("the message is sent");
    }
    let queue = Sqs::new(&config, url);
    let mut names = Vec::new();
    for _ in 0..2 {
        let delivery = queue.receive(5 * S, MINUTE).await.expect("an answer").expect("a message");
        names.push((delivery.body, delivery.idempotency_key));
    }
    names.sort();
    assert_eq!(names, [("named".to_owned(), Some("order-7".to_owned())), ("é".to_owned(), None)]);
}

#[tokio::test]
async fn a_content_based_deduplication_id_is_not_a_key_in_ministack() {
    assert_fifo_idempotency_keys(&Ministack::shared().await.endpoint()).await;
}

#[tokio::test]
async fn a_content_based_deduplication_id_is_not_a_key_in_moto() {
    assert_fifo_idempotency_keys(&Moto::shared().await.endpoint()).await;
}

#[tokio::test]
async fn the_binary_does_not_repeat_finished_work() {
    let cloud = Cloud::new(5).await;
    let records = format!("{}-records", cloud.bucket);
    cloud.s3.create_bucket().bucket(&records).send().await.expect("the bucket is created");
    for _ in 0..2 {
        cloud
            .send(
                object_created("k").replace("inbox", &cloud.bucket).replace("\"eTag\":\"e\",", ""),
            )
            .await;
    }
    let put =
        cloud.s3.put_object().bucket(&cloud.bucket).key("k").body(b"x".to_vec().into()).send();
    put.await.expect("the object is put");
    let flags = format!("--idempotency s3://{records}/done --max-messages 2");
    let exited = cloud.run(&flags, "echo ran >> runs").expect_exit(0).await;
    let settled = exited.log.iter().filter(|record| record["message"] == "message deleted");
    let outcomes: Vec<_> = settled.map(|record| record["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["succeeded", "already_done"], "{}", exited.stdout);
    assert_eq!(std::fs::read_to_string(cloud.dir.path().join("runs")).unwrap(), "ran\n");
}

/// One pod's access to the records, with random faults: requests and answers are late or lost.
struct FaultyRecords {
    records: MemoryRecords,
    chance: Mutex<fastrand::Rng>,
}

impl FaultyRecords {
    /// Whether the request is carried out, and whether its answer arrives.
    async fn passes(&self) -> (bool, bool) {
        let (slow, luck) = {
            let mut chance = self.chance.lock().unwrap();
            (
                Duration::from_millis(chance.u64(0..4000) * u64::from(chance.bool())),
                chance.u8(0..10),
            )
        };
        sleep(slow).await;
        (luck > 0, luck > 1)
    }
}

fn reset() -> RecordError {
    RecordError::Retryable("the connection was reset".to_owned())
}

#[async_trait]
impl Records for FaultyRecords {
    async fn read(&self, bucket: &str, key: &str) -> Result<Option<Entry>, RecordError> {
        let (_, is_answered) = self.passes().await;
        let read = self.records.read(bucket, key).await;
        if is_answered { read } else { Err(reset()) }
    }

    async fn write(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        on: Condition<'_>,
    ) -> Result<String, RecordError> {
        let (arrives, is_answered) = self.passes().await;
        if !arrives {
            return Err(reset());
        }
        let written = self.records.write(bucket, key, bytes, on).await;
        let (_, is_in_time) = self.passes().await;
        if is_answered && is_in_time { written } else { Err(reset()) }
    }
}

/// The history of one piece of work in one world.
#[derive(Default)]
struct Log {
    at_work: usize,
    done: usize,
    broken: Vec<&'static str>,
}

/// A message with the idempotency key `k`.
fn subject() -> Subject {
    Subject {
        message_id: MessageId::new("m"),
        receive_count: 1,
        redrive: Redrive::Unknown,
        sent_at: None,
        first_received_at: None,
        group_id: None,
        deduplication_id: None,
        idempotency_key: Some("k".to_owned()),
        traceparent: None,
        attributes: BTreeMap::new(),
        sqs: SqsAttributes::default(),
        body_sha256: String::new(),
        job_type: None,
        objects: Vec::new(),
    }
}

fn idempotency(records: impl Records + 'static) -> Idempotency {
    Idempotency {
        records: Arc::new(records),
        location: "s3://records/done".parse().unwrap(),
        queue: "queue".to_owned(),
        owner: "pod".to_owned(),
        clock: Clock::start(),
    }
}

/// At its expiry, not when the request in flight ends.
#[tokio::test(start_paused = true)]
async fn a_record_that_expires_during_a_request_is_lost_at_once() {
    for seed in 0..8 {
        fastrand::seed(seed);
        let records = MemoryRecords::default();
        records.script([Fault::None].into_iter().chain([Fault::AnswerDelayed(10 * MINUTE); 100]));
        let Ok(Claimed::Ours(mut held)) =
            idempotency(records).claim(&subject(), 0, None, VISIBILITY).await
        else {
            panic!("taken")
        };
        let claimed = Instant::now();
        assert_eq!(held.refresh().await, "the idempotency record could not be refreshed in time");
        assert_eq!(claimed.elapsed(), VISIBILITY, "seed {seed}");
    }
}

/// Independently of any clock, a pod that finds another claim in the record has lost it and does
/// not write.
#[tokio::test(start_paused = true)]
async fn a_record_claimed_by_another_pod_is_not_overwritten() {
    let records = MemoryRecords::default();
    let Ok(Claimed::Ours(held)) =
        idempotency(records.clone()).claim(&subject(), 0, None, VISIBILITY).await
    else {
        panic!("taken")
    };
    let theirs = records.claimed_by_another();
    assert!(matches!(held.done().await, Err(Failure::Superseded(_))));
    assert_eq!(records.only_record(), theirs);
}

/// A read without an answer counts as failed.
#[tokio::test(start_paused = true)]
async fn a_silent_store_is_not_waited_for_forever() {
    let records = MemoryRecords::default();
    assert!(idempotency(records.clone()).claim(&subject(), 0, None, VISIBILITY).await.is_ok());
    records.silent.store(true, Ordering::Relaxed);
    let (other, subject) = (idempotency(records), subject());
    let claim = tokio::time::timeout(2 * MINUTE, other.claim(&subject, 0, None, VISIBILITY)).await;
    assert!(matches!(claim.expect("the claim ends"), Err(Failure::Record(_))));
}

/// A pod that claims the work, and succeeds, fails, loses its record or dies.
async fn random_pod(idempotency: Idempotency, mut chance: fastrand::Rng, log: Arc<Mutex<Log>>) {
    sleep(Duration::from_secs(chance.u64(0..300))).await;
    let Ok(Claimed::Ours(mut held)) = idempotency.claim(&subject(), 0, None, VISIBILITY).await
    else {
        return;
    };
    {
        let mut log = log.lock().unwrap();
        log.at_work += 1;
        if log.at_work > 1 {
            log.broken.push("two pods do the same work at the same time");
        }
        if log.done > 0 {
            log.broken.push("recorded work is repeated");
        }
    }
    let length = Duration::from_secs(chance.u64(0..600));
    let is_kept = tokio::select! {
        _ = held.refresh() => false,
        () = sleep(length) => true,
    };
    log.lock().unwrap().at_work -= 1;
    match chance.u8(0..4) {
        _ if !is_kept => {}
        // The pod dies without a release.
        0 => {}
        1 => held.release(S).await,
        _ => {
            if held.done().await.is_ok() {
                log.lock().unwrap().done += 1;
            }
        }
    }
}

/// Random worlds of three pods at a time and one piece of work. A seed determines its world.
#[test]
fn with_random_faults_no_work_is_done_twice() {
    const WORLDS: usize = 1000;
    let mut finished = 0;
    for seed in (0u64..).take(WORLDS) {
        // This also seeds the jitter of the retries.
        fastrand::seed(seed);
        let mut chance = fastrand::Rng::with_seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let log = Arc::new(Mutex::new(Log::default()));
        runtime.block_on(async {
            let records = MemoryRecords::default();
            for _ in 0..4 {
                let pods = (0..3).map(|_| {
                    let weather = FaultyRecords {
                        records: records.for_another_pod(),
                        chance: Mutex::new(chance.fork()),
                    };
                    random_pod(idempotency(weather), chance.fork(), log.clone())
                });
                futures_util::future::join_all(pods.collect::<Vec<_>>()).await;
            }
        });
        let log = log.lock().unwrap();
        assert!(
            log.broken.is_empty() && log.done <= 1,
            "seed {seed}: {:?}, done {} times",
            log.broken,
            log.done
        );
        finished += log.done;
    }
    assert!(finished > WORLDS / 2, "only {finished} of {WORLDS} worlds finished their work");
}
