//! Attempt records: pods that end, die, or lose their lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use leasehold::job::delivery::{MessageId, Redrive, SqsAttributes};
use leasehold::job::keep_reason::KeepReason;
use leasehold::job::notification::Object;
use leasehold::job::outcome::{Exit, WorkRecord};
use leasehold::job::report::{Ended, Subject};
use leasehold::job::verdict::{Completion, Return, Settlement};
use leasehold::ports::{
    Condition, FetchError, MemoryUse, ObjectBody, ObjectStore, ObjectWriter, RangeBody, Storage,
    Upload, Uploaded,
};
use leasehold::telemetry::attempts::{AttemptHistory, HistoryStore, SILENCE};
use leasehold::telemetry::logs::Identity;
use leasehold::telemetry::metrics::Metrics;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::cloud::{Cloud, eventually};
use crate::support::records::MemoryRecords;

const S: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

/// A bucket as one pod reaches it.
#[derive(Clone, Default)]
struct Bucket {
    records: MemoryRecords,
    puts: Arc<AtomicU64>,
    /// How long each put takes, in milliseconds.
    delay: Arc<AtomicU64>,
}

impl Bucket {
    fn for_another_pod(&self) -> Self {
        Self { records: self.records.for_another_pod(), ..Self::default() }
    }

    fn record(&self, receive_count: u32) -> Option<Value> {
        let key = format!("attempts/m/{receive_count}.json");
        let entry = self.records.read_without_faults("b", &key)?;
        Some(serde_json::from_slice(&entry.bytes).unwrap())
    }

    fn outcome(&self, receive_count: u32) -> Option<String> {
        self.record(receive_count).map(|record| record["outcome"].as_str().unwrap().to_owned())
    }

    /// The history of a pod whose container uses this share of its memory, in percent.
    fn history(
        &self,
        pod: &str,
        memory: &Arc<AtomicU64>,
        metrics: &Arc<Metrics>,
    ) -> AttemptHistory {
        let used = memory.clone();
        let memory = move || Some(MemoryUse { used: used.load(Ordering::Relaxed), limit: 100 });
        let store = HistoryStore {
            storage: Arc::new(self.clone()),
            records: Arc::new(self.records.clone()),
            location: "s3://b/attempts".parse().unwrap(),
            identity: Identity { job_id: "job".to_owned(), pod_name: pod.to_owned() },
            memory: Some(Box::new(memory)),
            metrics: Some(metrics.clone()),
            silence: SILENCE,
        };
        AttemptHistory::new(store, || 2 * S)
    }
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn open(&self, _: &Object) -> Result<ObjectBody, FetchError> {
        unreachable!("records are not opened")
    }

    async fn open_range(
        &self,
        _: &Object,
        _: std::ops::Range<u64>,
    ) -> Result<RangeBody, FetchError> {
        unreachable!("records are not opened")
    }
}

#[async_trait]
impl ObjectWriter for Bucket {
    async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> Result<(), String> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(self.delay.load(Ordering::Relaxed))).await;
        if self.records.unreachable.load(Ordering::Relaxed) {
            return Err("no route to host".to_owned());
        }
        let found = self.records.read_without_faults(bucket, key);
        let condition =
            found.as_ref().map_or(Condition::Absent, |entry| Condition::Unchanged(&entry.etag));
        self.records.write_without_faults(bucket, key, bytes, condition).unwrap();
        Ok(())
    }

    async fn upload(&self, _: &Upload<'_>, _: &CancellationToken) -> Result<Uploaded, String> {
        unreachable!("records are no files")
    }
}

#[async_trait]
impl Storage for Bucket {
    async fn list(&self, _: &str, _: &str) -> Result<Vec<String>, String> {
        unreachable!("records are not listed")
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<(), String> {
        self.records.remove(bucket, key);
        Ok(())
    }
}

fn subject(receive_count: u32) -> Arc<Subject> {
    Arc::new(Subject {
        message_id: MessageId::new("m"),
        receive_count,
        redrive: Redrive::DeadLetter { max_receive_count: 3, queue: "dlq".to_owned() },
        sent_at: None,
        first_received_at: None,
        group_id: None,
        deduplication_id: None,
        idempotency_key: None,
        traceparent: None,
        attributes: BTreeMap::new(),
        sqs: SqsAttributes::default(),
        body_sha256: String::new(),
        job_type: Some("default".to_owned()),
        objects: Vec::new(),
    })
}

fn ended(receive_count: u32, settlement: Settlement) -> Ended {
    let work = WorkRecord::default();
    Ended { subject: subject(receive_count), settlement, progress: None, work }
}

fn kept(receive_count: u32, reason: KeepReason) -> Ended {
    ended(receive_count, Settlement::Kept(reason, Return::Unknown))
}

fn deleted(receive_count: u32) -> Ended {
    ended(receive_count, Settlement::Deleted(Completion::Succeeded))
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new("orders", Some(Box::new(|| 0)), SystemTime::UNIX_EPOCH))
}

/// The number of attempts that were found dead.
fn found_dead(metrics: &Metrics) -> usize {
    metrics.text().lines().filter(|line| line.contains(r#"outcome="died""#)).count()
}

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

#[tokio::test(start_paused = true)]
async fn an_attempt_that_died_is_named_by_the_next_one() {
    let (bucket, memory, metrics) = (Bucket::default(), Arc::new(AtomicU64::new(50)), metrics());
    let first = bucket.history("pod-1", &memory, &metrics);
    first.begin(&subject(1));
    sleep(10 * S).await;
    memory.store(97, Ordering::Relaxed);
    sleep(10 * S).await;
    let start = bucket.record(1).unwrap();
    assert_eq!((&start["outcome"], &start["memory_bytes"]), (&"started".into(), &97.into()));
    // Killed.
    drop(first);
    sleep(SILENCE).await;

    let second = bucket.history("pod-2", &memory, &metrics);
    second.begin(&subject(2));
    sleep(S).await;
    let died = bucket.record(1).unwrap();
    assert_eq!((&died["outcome"], &died["pod_name"]), (&"died".into(), &"pod-1".into()));
    let error = died["error"].as_str().unwrap();
    assert!(error.starts_with("attempt 1 did not report its end: pod pod-1 was last seen at "));
    assert!(error.ends_with("with 97 B of 100 B memory in use (out of memory?)"), "{error}");
    assert_eq!((found_dead(&metrics), bucket.outcome(2)), (1, Some("started".to_owned())));

    // A success leaves the history of the earlier attempts, and no start record.
    second.end(&deleted(2), NOW).await;
    assert_eq!((bucket.outcome(1), bucket.outcome(2)), (Some("died".to_owned()), None));
}

/// The pods die before they can find the attempt before theirs.
#[tokio::test(start_paused = true)]
async fn attempts_that_died_soon_are_named_by_a_later_one() {
    let (bucket, memory, metrics) = (Bucket::default(), Arc::default(), metrics());
    for n in 1..=3 {
        let history = bucket.history("pod", &memory, &metrics);
        history.begin(&subject(n));
        sleep(30 * S).await;
    }
    let last = bucket.history("pod", &memory, &metrics);
    last.begin(&subject(4));
    sleep(2 * MINUTE).await;
    for n in 1..=3 {
        assert_eq!(bucket.outcome(n).unwrap(), "died", "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_lost_its_lease_is_not_found_dead() {
    let (bucket, memory, metrics) = (Bucket::default(), Arc::default(), metrics());
    let first = bucket.history("pod-1", &memory, &metrics);
    first.begin(&subject(1));
    sleep(10 * S).await;
    let second = bucket.history("pod-2", &memory, &metrics);
    second.begin(&subject(2));
    sleep(10 * MINUTE).await;
    assert_eq!(bucket.outcome(1).unwrap(), "started", "it shows life");
    first.end(&kept(1, KeepReason::LeaseLost("expired".to_owned())), NOW).await;
    sleep(10 * MINUTE).await;
    assert_eq!((bucket.outcome(1).unwrap().as_str(), found_dead(&metrics)), ("lease_lost", 0));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_returns_after_it_was_found_dead_has_the_last_word() {
    let (bucket, memory, metrics) = (Bucket::default(), Arc::default(), metrics());
    let isolated = bucket.for_another_pod();
    let first = isolated.history("pod-1", &memory, &metrics);
    first.begin(&subject(1));
    sleep(10 * S).await;
    isolated.records.unreachable.store(true, Ordering::Relaxed);
    sleep(2 * MINUTE).await;
    let second = bucket.history("pod-2", &memory, &metrics);
    second.begin(&subject(2));
    sleep(S).await;
    assert_eq!(bucket.outcome(1).unwrap(), "died");
    isolated.records.unreachable.store(false, Ordering::Relaxed);
    first.end(&kept(1, KeepReason::LeaseLost("expired".to_owned())), NOW).await;
    sleep(10 * MINUTE).await;
    assert_eq!(bucket.outcome(1).unwrap(), "lease_lost");
}

/// A message may be visible before its end record is written.
#[tokio::test(start_paused = true)]
async fn an_end_record_that_is_still_being_written_is_awaited() {
    let (bucket, memory, metrics) = (Bucket::default(), Arc::default(), metrics());
    let first = bucket.history("pod-1", &memory, &metrics);
    first.begin(&subject(1));
    sleep(S).await;
    let slow = async {
        sleep(S).await;
        first.end(&kept(1, KeepReason::Permanent(Exit::Code(65))), NOW).await;
    };
    let second = bucket.history("pod-2", &memory, &metrics);
    second.begin(&subject(2));
    slow.await;
    sleep(10 * MINUTE).await;
    assert_eq!((bucket.outcome(1).unwrap().as_str(), found_dead(&metrics)), ("permanent", 0));
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_come_once_a_minute_and_when_memory_rises() {
    let (bucket, memory, metrics) = (Bucket::default(), Arc::default(), metrics());
    let history = bucket.history("pod", &memory, &metrics);
    history.begin(&subject(1));
    sleep(60 * MINUTE + S).await;
    assert_eq!(bucket.puts.load(Ordering::Relaxed), 61);
    // It rises and falls every few seconds.
    for share in [70, 81, 85, 70, 89, 91, 70, 92, 94, 96, 70, 99, 70, 97] {
        memory.store(share, Ordering::Relaxed);
        sleep(3 * S).await;
    }
    assert_eq!(bucket.puts.load(Ordering::Relaxed), 64);
}

#[tokio::test(start_paused = true)]
async fn a_slow_start_record_never_replaces_the_end() {
    for millis in [800, 100_000] {
        let (bucket, memory, metrics) = (Bucket::default(), Arc::default(), metrics());
        bucket.delay.store(millis, Ordering::Relaxed);
        let history = bucket.history("pod", &memory, &metrics);
        history.begin(&subject(1));
        tokio::task::yield_now().await;
        let began_at = tokio::time::Instant::now();
        history.end(&deleted(1), NOW).await;
        assert!(began_at.elapsed() <= 2 * S, "{:?}", began_at.elapsed());
        sleep(10 * MINUTE).await;
        assert_eq!(bucket.outcome(1), None, "{millis}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_without_work_has_only_an_end_record() {
    let (bucket, memory, metrics) = (Bucket::default(), Arc::default(), metrics());
    let history = bucket.history("pod", &memory, &metrics);
    let mut ended = kept(1, KeepReason::NotANotification("empty".to_owned()));
    Arc::make_mut(&mut ended.subject).job_type = None;
    history.begin(&ended.subject);
    sleep(MINUTE).await;
    assert_eq!(bucket.outcome(1), None);
    history.end(&ended, NOW).await;
    assert_eq!(bucket.outcome(1).unwrap(), "not_a_notification");
}

/// A read that is never answered delays nothing.
#[tokio::test(start_paused = true)]
async fn a_silent_store_delays_an_attempt_by_its_limit_only() {
    let (bucket, memory, metrics) = (Bucket::default(), Arc::default(), metrics());
    bucket.records.silent.store(true, Ordering::Relaxed);
    let history = bucket.history("pod", &memory, &metrics);
    history.begin(&subject(2));
    sleep(S).await;
    let began_at = tokio::time::Instant::now();
    history.end(&kept(2, KeepReason::Stopped), NOW).await;
    assert!(began_at.elapsed() <= 2 * S, "{:?}", began_at.elapsed());
    assert_eq!(bucket.outcome(2).unwrap(), "stopped");
}

/// A bucket of its own for the attempts: their events would be messages.
async fn attempts_of(cloud: &Cloud) -> String {
    let name = format!("{}-attempts", cloud.bucket);
    cloud.s3.create_bucket().bucket(&name).send().await.expect("the bucket is created");
    name
}

/// The records below the prefix, by the last part of their keys.
async fn records(cloud: &Cloud, bucket: &str) -> BTreeMap<String, (String, Value)> {
    let listed = cloud.s3.list_objects_v2().bucket(bucket).send().await.expect("an answer");
    let mut records = BTreeMap::new();
    for object in listed.contents() {
        let key = object.key().expect("a key").to_owned();
        let get = cloud.s3.get_object().bucket(bucket).key(&key).send().await;
        let Ok(answer) = get else { continue };
        let bytes = answer.body.collect().await.expect("readable").into_bytes();
        let record = serde_json::from_slice(&bytes).unwrap_or_default();
        let (_, name) = key.rsplit_once('/').expect("a message id");
        records.insert(name.to_owned(), (key.clone(), record));
    }
    records
}

#[tokio::test]
async fn the_pod_after_a_killed_one_names_its_attempt() {
    let cloud = Cloud::new(5).await;
    let bucket = attempts_of(&cloud).await;
    cloud.put("k", b"x").await;
    let flags = format!(
        "--visibility-timeout 3s --termination-grace 20s --attempts s3://{bucket}/a --pod-name"
    );
    let first = cloud.run(&format!("{flags} pod-1"), "echo > started; sleep 600");
    cloud.file("started").await;
    eventually("the start is recorded", async || {
        records(&cloud, &bucket).await.contains_key("1.json").then_some(())
    })
    .await;
    first.signal(Signal::SIGKILL);
    first.wait().await;
    let (_, start) = records(&cloud, &bucket).await.remove("1.json").unwrap();
    assert_eq!((&start["outcome"], &start["pod_name"]), (&"started".into(), &"pod-1".into()));
    sleep(SILENCE + S).await;

    let second = cloud.run(&format!("{flags} pod-2"), "until [ -e found ]; do sleep 0.1; done");
    let died = eventually("the attempt is named", async || {
        let (_, record) = records(&cloud, &bucket).await.remove("1.json")?;
        (record["outcome"] == "died").then_some(record)
    })
    .await;
    assert_eq!((&died["pod_name"], &died["receive_count"]), (&"pod-1".into(), &1.into()));
    assert_eq!((&died["key"], &died["bucket"]), (&"k".into(), &cloud.bucket.clone().into()));
    cloud.touch("found");
    let exited = second.expect_exit(0).await;
    let warning = exited.record("an earlier attempt died");
    assert_eq!((&warning["error"], &warning["level"]), (&died["error"], &"WARN".into()));
    let left: Vec<_> = records(&cloud, &bucket).await.into_keys().collect();
    // The deletion has two seconds, which may be too short on a busy machine.
    let in_time = !exited.stdout.contains("the attempt was not recorded");
    assert!(left == ["1.json"] || !in_time, "a success leaves no start record: {left:?}");
}

/// Each attempt finds another object in the place of the record before its own.
#[tokio::test]
async fn a_record_with_hostile_content_changes_nothing() {
    let cloud = Cloud::new(10).await;
    let bucket = attempts_of(&cloud).await;
    cloud.put("k", b"x").await;
    let flags = format!("--retry-min 1s --retry-max 1s --attempts s3://{bucket}/a");
    let hostile = [
        vec![b' '; 8 << 20],
        b"not JSON".to_vec(),
        b"[1]".to_vec(),
        br#"{"outcome":"started","version":1}"#.to_vec(),
        "[".repeat(60_000).into_bytes(),
    ];
    for (n, bytes) in (1..).zip(&hostile) {
        let exited = cloud.run(&flags, "sleep 1; exit 3").expect_exit(1).await;
        let kept = exited.record("message kept");
        assert_eq!(
            (&kept["receive_count"], &kept["outcome"]),
            (&n.into(), &"command_failed".into())
        );
        assert!(!exited.stdout.contains("an earlier attempt died"), "{}", exited.stdout);
        let id = kept["message_id"].as_str().unwrap();
        let put = cloud.s3.put_object().bucket(&bucket).key(format!("a/{id}/{n}.json"));
        put.body(bytes.clone().into()).send().await.unwrap();
    }
    cloud.run(&flags, "sleep 1").expect_exit(0).await;
    let mut left = records(&cloud, &bucket).await;
    for n in 1..=hostile.len() {
        let (_, record) = left.remove(&format!("{n}.json")).unwrap();
        assert!(record.is_null() || record["error"].is_null(), "{record}");
    }
}
