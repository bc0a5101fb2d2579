//! 86 to 88: what happens to the object after its work succeeded (`--on-success`).

use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use aws_sdk_s3::types::{
    BucketVersioningStatus, NotificationConfiguration, VersioningConfiguration,
};
use leasehold::job::notification::Object;
use leasehold::job::on_success::{ActedOn, OnSuccess};
use leasehold::ports::{FetchError, ObjectBody, ObjectStore, RangeBody};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::configured;
use crate::support::cloud::{Cloud, Leasehold};
use crate::support::journey::{
    Does, FakeCommand, FakeStore, Journey, MINUTE, S, deletes, exits, queue,
};
use crate::support::records::MemoryRecords;
use crate::support::servers::{Ministack, Moto};

/// Each action takes ten seconds, and is counted at its end. The first ones may fail.
#[derive(Default)]
struct SlowStore {
    objects: FakeStore,
    failures: Mutex<u32>,
    begun: Mutex<u32>,
    done: Mutex<u32>,
}

#[async_trait]
impl ObjectStore for SlowStore {
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError> {
        self.objects.open(object).await
    }

    async fn open_range(&self, object: &Object, of: Range<u64>) -> Result<RangeBody, FetchError> {
        self.objects.open_range(object, of).await
    }

    async fn act_on(&self, _: &Object, _: &OnSuccess) -> Result<ActedOn, String> {
        *self.begun.lock().unwrap() += 1;
        sleep(10 * S).await;
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err("no permission".to_owned());
        }
        *self.done.lock().unwrap() += 1;
        Ok(ActedOn::Object)
    }
}

impl SlowStore {
    fn counts(&self) -> (u32, u32) {
        (*self.begun.lock().unwrap(), *self.done.lock().unwrap())
    }
}

fn pod(mut journey: Journey, store: &Arc<SlowStore>, records: &MemoryRecords) -> Journey {
    (journey.store, journey.records) = (store.clone(), Some(records.clone()));
    let task = journey.settings.policy.task.as_mut().expect("a task");
    Arc::make_mut(task).on_success = Some(OnSuccess::Delete);
    journey.settings.polling.wait = 10 * MINUTE;
    journey
}

/// A stop withdraws the action, as it withdraws the delete of the message. The next delivery knows
/// that the work is done, and acts.
#[tokio::test(start_paused = true)]
async fn s86_a_stop_withdraws_the_action_and_the_next_delivery_repeats_it() {
    let (queue, command, records) = (queue(), exits(0), MemoryRecords::default());
    let store = Arc::new(SlowStore::default());
    // The command takes five seconds.
    let journey = Journey::new(&queue, &command);
    let stopped = pod(journey, &store, &records).run_and_stop_after(8 * S).await;
    assert_eq!((stopped.outcomes(), stopped.outcome.exit_code()), (vec!["stopped"], 143));
    assert_eq!((store.counts(), deletes(&queue)), ((1, 0), 0));
    assert!(stopped.took < 9 * S, "the stop waited for the action: {:?}", stopped.took);

    let next = pod(Journey::new(&queue, &command), &store, &records).run().await;
    assert_eq!((next.outcomes(), store.counts()), (vec!["already_done"], (2, 1)));
    assert_eq!((command.runs(), deletes(&queue)), (1, 1));
}

/// A stop while the command works begins no action, even if the command then exits with 0.
#[tokio::test(start_paused = true)]
async fn s86_halted_work_has_no_action() {
    let (queue, records) = (queue(), MemoryRecords::default());
    let (command, store) =
        (FakeCommand::new(Does::EndsOnTerm(S, 0)), Arc::new(SlowStore::default()));
    let stopped =
        pod(Journey::new(&queue, &command), &store, &records).run_and_stop_after(2 * S).await;
    assert_eq!((stopped.outcomes(), store.counts(), deletes(&queue)), (vec!["stopped"], (0, 0), 0));
}

/// The message is deleted only after the action. The retry repeats the action, not the work.
#[tokio::test(start_paused = true)]
async fn s87_a_failed_action_keeps_the_message() {
    let (queue, command, records) = (queue(), exits(0), MemoryRecords::default());
    let store = Arc::new(SlowStore { failures: 1.into(), ..SlowStore::default() });
    let failed = pod(Journey::new(&queue, &command), &store, &records).run().await;
    assert_eq!((failed.outcomes(), deletes(&queue)), (vec!["publish_failed"], 0));
    let error = failed.ended()[0].error().unwrap();
    assert!(error.ends_with("--on-success delete: no permission"), "{error}");
    let next = pod(Journey::new(&queue, &command), &store, &records).run().await;
    assert_eq!((next.outcomes(), command.runs()), (vec!["already_done"], 1));
    assert_eq!((store.counts(), deletes(&queue)), ((2, 1), 1));
}

/// Otherwise each redelivery would fail, because its object is gone.
#[test]
fn s88_removing_the_object_needs_a_way_to_recognise_a_redelivery() {
    for action in ["delete", "move=s3://done/in"] {
        let flags = format!("--on-success {action}");
        for more in ["", " --missing-object retry", " --missing-object ignore --input none"] {
            let refused = configured(&format!("{flags}{more}")).unwrap_err();
            assert!(refused.contains("set --idempotency, or --missing-object ignore"), "{refused}");
        }
        for more in [" --idempotency s3://state/done", " --missing-object ignore"] {
            configured(&format!("{flags}{more}")).unwrap();
        }
    }
    configured("--on-success tag=state:done").unwrap();
    for (action, why) in [("tag=aws:x:y", "aws:"), ("move=s3://b/{key}", "placeholders")] {
        let refused = configured(&format!("--on-success {action}")).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
}

async fn keys(cloud: &Cloud, prefix: &str) -> Vec<String> {
    let list = cloud.s3.list_objects_v2().bucket(&cloud.bucket).prefix(prefix);
    let answer = list.send().await.unwrap();
    answer.contents().iter().map(|object| object.key().unwrap().to_owned()).collect()
}

async fn tags(cloud: &Cloud, key: &str) -> Vec<String> {
    let get = cloud.s3.get_object_tagging().bucket(&cloud.bucket).key(key);
    let answer = get.send().await.unwrap();
    let mut tags: Vec<_> =
        answer.tag_set().iter().map(|tag| format!("{}={}", tag.key(), tag.value())).collect();
    tags.sort();
    tags
}

/// With it, a record recognises the event in another message.
const SEQUENCER: &str = "0055AED6DCD90281E5";

/// A notification of this object.
async fn notify(cloud: &Cloud, key: &str, version: Option<&str>) {
    let get = cloud.s3.head_object().bucket(&cloud.bucket).key(key);
    let head = get.set_version_id(version.map(str::to_owned)).send().await.unwrap();
    let object = json!({
        "key": key, "size": head.content_length(), "eTag": head.e_tag().unwrap().trim_matches('"'),
        "versionId": version, "sequencer": SEQUENCER,
    });
    let record = json!({
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": cloud.bucket }, "object": object },
    });
    cloud.send(json!({ "Records": [record] }).to_string()).await;
}

/// A bucket that does not notify the queue itself.
async fn quiet_cloud(endpoint: String) -> Cloud {
    let cloud = Cloud::at(endpoint, 5).await;
    let put = cloud.s3.put_bucket_notification_configuration().bucket(&cloud.bucket);
    let none = NotificationConfiguration::builder().build();
    put.notification_configuration(none).send().await.unwrap();
    cloud
}

/// Returns the version, if the bucket has versions.
async fn put_tagged(cloud: &Cloud, key: &str, bytes: &[u8], tags: &str) -> Option<String> {
    let put = cloud.s3.put_object().bucket(&cloud.bucket).key(key).body(bytes.to_vec().into());
    put.tagging(tags).send().await.unwrap().version_id
}

fn outcome(exited: &crate::support::cloud::ExitedRun) -> &Value {
    &exited.record("message deleted")["outcome"]
}

#[tokio::test]
async fn s87_a_tag_keeps_the_others_and_fails_when_there_are_ten() {
    let cloud = quiet_cloud(Ministack::shared().await.endpoint()).await;
    put_tagged(&cloud, "k", b"x", "team=a&state=new").await;
    for _ in 0..2 {
        notify(&cloud, "k", None).await;
        cloud.run("--on-success tag=state:done", "exit 0").expect_exit(0).await;
        assert_eq!(tags(&cloud, "k").await, ["state=done", "team=a"]);
    }
    let ten: Vec<_> = (0..10).map(|n| format!("t{n}=1")).collect();
    put_tagged(&cloud, "full", b"x", &ten.join("&")).await;
    notify(&cloud, "full", None).await;
    let exited = cloud.run("--on-success tag=state:done", "exit 0").expect_exit(75).await;
    let kept = exited.record("message kept");
    assert_eq!(kept["outcome"], "publish_failed");
    assert!(kept["error"].as_str().unwrap().contains("it has 10 tags"), "{kept}");
    assert_eq!(tags(&cloud, "full").await, ten);
}

/// An event may leave out the size.
#[tokio::test]
async fn s87_an_empty_object_has_its_action() {
    let cloud = quiet_cloud(Moto::shared().await.endpoint()).await;
    put_tagged(&cloud, "empty", b"", "").await;
    for (action, left) in
        [("tag=state:done", ["state=done"].as_slice()), ("delete --missing-object ignore", &[])]
    {
        let object = json!({ "key": "empty", "eTag": "d41d8cd98f00b204e9800998ecf8427e" });
        let record = json!({
            "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
            "s3": { "bucket": { "name": cloud.bucket }, "object": object },
        });
        cloud.send(json!({ "Records": [record] }).to_string()).await;
        let exited = cloud.run(&format!("--on-success {action}"), "exit 0").expect_exit(0).await;
        assert_eq!(outcome(&exited), "succeeded");
        if left.is_empty() {
            assert_eq!(keys(&cloud, "").await, [""; 0]);
        } else {
            assert_eq!(tags(&cloud, "empty").await, left);
        }
    }
}

/// A second delivery of the message finds no object, and is recognised.
#[tokio::test]
async fn s88_a_redelivery_after_a_move_or_a_delete_is_recognised() {
    for (recognise, second) in [
        ("--missing-object ignore", "objects_gone"),
        ("--idempotency s3://BUCKET/records", "already_done"),
    ] {
        let cloud = quiet_cloud(Ministack::shared().await.endpoint()).await;
        let recognise = recognise.replace("BUCKET", &cloud.bucket);
        for (key, to) in [("in/a b+ü%.csv", true), ("in/k", false)] {
            put_tagged(&cloud, key, b"content", "team=a").await;
            notify(&cloud, key, None).await;
            let action =
                if to { format!("move=s3://{}/done", cloud.bucket) } else { "delete".to_owned() };
            let flags = format!("--on-success {action} {recognise}");
            let script = r#"echo run >> runs; cat "$JOB_INPUT" >> got"#;
            for expected in ["succeeded", second] {
                let exited = cloud.run(&flags, script).expect_exit(0).await;
                assert_eq!(outcome(&exited), expected, "{key}: {}", exited.stdout);
                if expected == "succeeded" {
                    redeliver(&cloud, key).await;
                }
            }
            assert_eq!(keys(&cloud, "in/").await, [""; 0]);
        }
        let moved = format!("done/{}", "in/a b+ü%.csv");
        assert_eq!(keys(&cloud, "done/").await, [moved.as_str()]);
        let get = cloud.s3.get_object().bucket(&cloud.bucket).key(&moved).send().await.unwrap();
        assert_eq!(get.body.collect().await.unwrap().into_bytes(), "content".as_bytes());
        assert_eq!(tags(&cloud, &moved).await, ["team=a"]);
        let runs = std::fs::read_to_string(cloud.dir.path().join("runs")).unwrap();
        assert_eq!(runs.lines().count(), 2, "one for each object");
    }
}

/// Another message about the same event.
async fn redeliver(cloud: &Cloud, key: &str) {
    let body = json!({ "Records": [{
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": cloud.bucket }, "object": {
            "key": key, "size": 7, "eTag": "9a0364b9e99bb480dd25e1f0284c8555", "sequencer": SEQUENCER,
        }},
    }]});
    cloud.send(body.to_string()).await;
}

/// The newer object has its own message.
#[tokio::test]
async fn s88_an_object_that_was_overwritten_meanwhile_is_never_lost() {
    for action in ["delete", "move=s3://BUCKET/done", "tag=state:done"] {
        let cloud = quiet_cloud(Ministack::shared().await.endpoint()).await;
        put_tagged(&cloud, "in/k", b"old", "").await;
        notify(&cloud, "in/k", None).await;
        let action = action.replace("BUCKET", &cloud.bucket);
        let flags = format!("--on-success {action} --missing-object ignore");
        let script = "echo up > up; until [ -e go ]; do sleep 0.05; done";
        let run: Leasehold = cloud.run(&flags, script);
        cloud.file("up").await;
        put_tagged(&cloud, "in/k", b"new", "").await;
        cloud.touch("go");
        let exited = run.expect_exit(0).await;
        assert_eq!(outcome(&exited), "succeeded");
        assert!(exited.stdout.contains("another object has replaced it"), "{}", exited.stdout);
        assert_eq!(
            (keys(&cloud, "").await, tags(&cloud, "in/k").await),
            (vec!["in/k".to_owned()], vec![])
        );
    }
}

/// A delete leaves a delete marker, and all versions. A version that is not the latest stays.
#[tokio::test]
async fn s88_in_a_versioned_bucket_no_version_is_lost() {
    // ministack tags the latest version, whichever is named.
    let cloud = quiet_cloud(Moto::shared().await.endpoint()).await;
    let enabled =
        VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
    let put = cloud.s3.put_bucket_versioning().bucket(&cloud.bucket);
    put.versioning_configuration(enabled).send().await.unwrap();
    let first = put_tagged(&cloud, "in/k", b"first", "").await;
    let second = put_tagged(&cloud, "in/k", b"second", "").await;
    let flags = "--on-success delete --missing-object ignore";
    for (version, is_latest) in [(first.as_deref(), false), (second.as_deref(), true)] {
        assert!(version.is_some(), "the bucket has no versions");
        notify(&cloud, "in/k", version).await;
        let exited = cloud.run(flags, "exit 0").expect_exit(0).await;
        assert_eq!(outcome(&exited), "succeeded");
        let list = cloud.s3.list_object_versions().bucket(&cloud.bucket).send().await.unwrap();
        assert_eq!((list.versions().len(), list.delete_markers().len()), (2, is_latest.into()));
    }
    let tag = "--on-success tag=state:done";
    notify(&cloud, "in/k", first.as_deref()).await;
    cloud.run(tag, "exit 0").expect_exit(0).await;
    let get = cloud.s3.get_object_tagging().bucket(&cloud.bucket).key("in/k");
    let answer = get.version_id(first.unwrap()).send().await.unwrap();
    assert_eq!(answer.tag_set()[0].value(), "done");
}
