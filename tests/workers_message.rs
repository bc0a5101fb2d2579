//! What a command learns about its message, and messages that are not S3 notifications: from a real
//! queue, and with the workers of `examples/workers`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName};
use leasehold::job::route::{JobType, Match, Task};
use leasehold::settings::job_types::JobTypesFile;
use serde_json::{Value, json};

use crate::support::cloud::{Cloud, ExitedRun, Leasehold};
use crate::support::journey::{FakeCommand, Journey, deletes, exits, queue_with};
use crate::support::{settings, task};

const TRACEPARENT: &str = "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01";

fn text(value: &str) -> MessageAttributeValue {
    MessageAttributeValue::builder().data_type("String").string_value(value).build().unwrap()
}

/// The content of a file that the command wrote.
fn written(cloud: &Cloud, name: &str) -> String {
    fs::read_to_string(cloud.dir.path().join(name)).unwrap()
}

#[tokio::test]
async fn the_command_gets_all_of_the_message() {
    let mut cloud = Cloud::new(5).await;
    let fifo = cloud.sqs.create_queue().queue_name(format!("{}.fifo", cloud.bucket));
    let fifo = fifo.attributes(QueueAttributeName::FifoQueue, "true").send().await.unwrap();
    cloud.queue_url = fifo.queue_url.unwrap();
    cloud.put("in/a.csv", b"a").await;
    let body = json!({ "Records": [{
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "eu-west-1",
        "eventTime": "2026-11-29T22:37:29.000Z",
        "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": cloud.bucket },
                "object": { "key": "in/a.csv", "sequencer": "0055AED6DCD90281E5" } },
    }] })
    .to_string();
    let number = MessageAttributeValue::builder().data_type("Number").string_value("42");
    let binary = MessageAttributeValue::builder().data_type("Binary");
    let binary = binary.binary_value(aws_sdk_sqs::primitives::Blob::new(*b"\0\xff"));
    let send = cloud.sqs.send_message().queue_url(&cloud.queue_url).message_body(&body);
    send.message_group_id("group 7")
        .message_deduplication_id("once")
        .message_attributes("content.type", text("text/csv"))
        .message_attributes("size", number.build().unwrap())
        .message_attributes("bytes", binary.build().unwrap())
        .message_attributes("two-lines", text("1\n2"))
        .message_attributes("traceparent", text(TRACEPARENT))
        .message_attributes("tracestate", text("vendor=1"))
        .message_attributes("baggage", text("tenant=7"))
        .send()
        .await
        .unwrap();
    let script = r#"cp "$JOB_FILE" job.json; cp "$JOB_BODY_FILE" body; env -0 > env; echo > done"#;
    let exited = cloud.run("", script).expect_exit(0).await;

    let job: Value = serde_json::from_str(&written(&cloud, "job.json")).unwrap();
    let attributes = json!({
        "content.type": "text/csv",
        "size": "42",
        "bytes": "AP8=",
        "two-lines": "1\n2",
        "traceparent": TRACEPARENT,
        "tracestate": "vendor=1",
        "baggage": "tenant=7",
    });
    assert_eq!(job["attributes"], attributes);
    let expected = [
        ("message_group_id", "group 7"),
        ("message_deduplication_id", "once"),
        ("queue_url", &cloud.queue_url),
        ("region", "eu-west-1"),
        ("event_time", "2026-11-29T22:37:29.000Z"),
        ("sequencer", "0055AED6DCD90281E5"),
    ];
    let environment = written(&cloud, "env");
    let variables: Vec<_> = environment.split('\0').collect();
    for (name, value) in expected {
        assert_eq!(job[name], value);
        let variable = format!("JOB_{}={value}", name.to_uppercase());
        assert!(variables.contains(&&*variable), "{variable}");
    }
    let time = |name: &str| humantime::parse_rfc3339(job[name].as_str().unwrap()).unwrap();
    assert!(time("sent_at") <= time("first_received_at"));
    let trace = format!("TRACEPARENT={TRACEPARENT}");
    for variable in [&*trace, "TRACESTATE=vendor=1", "BAGGAGE=tenant=7"] {
        assert!(variables.contains(&variable), "{variable}");
    }
    assert!(!environment.contains("text/csv"), "an attribute is in the environment");
    assert_eq!(written(&cloud, "body"), body);
    // Neither the log nor the command gets what the sender did not mean for it.
    let receipt = ["receipt", "ReceiptHandle"];
    assert!(!receipt.iter().any(|it| job.to_string().contains(it) || environment.contains(it)));
    assert!(!exited.stdout.contains("text/csv"), "an attribute is in the log");
}

#[tokio::test]
async fn a_tracestate_without_its_traceparent_is_not_passed_on() {
    let cloud = Cloud::new(5).await;
    let send = cloud.sqs.send_message().queue_url(&cloud.queue_url).message_body("raw");
    send.message_attributes("traceparent", text("not a traceparent"))
        .message_attributes("tracestate", text("vendor=1"))
        .send()
        .await
        .unwrap();
    let script = r#"echo "${TRACEPARENT-none} ${TRACESTATE-none}" > trace; cmp "$JOB_INPUT" "$JOB_BODY_FILE""#;
    cloud.run("--accept-raw", script).expect_exit(0).await;
    assert_eq!(cloud.file("trace").await, "none none");
}

/// Runs a worker of `examples/workers` as its manifest does, with its own bucket and queue.
async fn worker(name: &str, cloud: &Cloud, code: i32) -> ExitedRun {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/workers").join(name);
    let manifest = fs::read_to_string(home.join("scaledjob.yaml")).unwrap();
    let manifest: Value = serde_saphyr::from_str(&manifest).unwrap();
    let container = &manifest["spec"]["jobTargetRef"]["template"]["spec"]["containers"][0];
    let words = ["command", "args"].map(|field| container[field].as_array().unwrap().clone());
    let words = words.concat().into_iter().map(|word| {
        let word = word.as_str().unwrap().replace("/app", home.to_str().unwrap());
        word.replace("bucket=texts", &format!("bucket={}", cloud.bucket))
            .replace("s3://results", &format!("s3://{}/results", cloud.bucket))
    });
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(words.skip(1)).env("LEASEHOLD_WORK_DIR", cloud.dir.path());
    command.env(container["env"][0]["name"].as_str().unwrap(), &cloud.queue_url);
    command.env("AWS_ENDPOINT_URL", &cloud.endpoint).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    Leasehold::start(command).expect_exit(code).await
}

/// A bucket with this object, and a queue without its event.
async fn cloud_with(key: &str, bytes: &[u8]) -> Cloud {
    let cloud = Cloud::new(5).await;
    cloud.put(key, bytes).await;
    cloud.remove_notification().await;
    cloud
}

/// The published file of the only message.
async fn result(cloud: &Cloud, exited: &ExitedRun, name: &str) -> String {
    let ended = exited.record("message deleted");
    let key = format!("results/{}/{name}", ended["message_id"].as_str().unwrap());
    let object = cloud.s3.get_object().bucket(&cloud.bucket).key(key).send().await.unwrap();
    String::from_utf8(object.body.collect().await.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn the_worker_with_its_own_json_counts_words() {
    let cloud = cloud_with("d+7%20.txt", b"the quick brown fox is an animal").await;
    let body = |uri: &str, length: Value| {
        json!({ "documentId": "d-7", "s3Uri": uri, "minLength": length }).to_string()
    };
    let uri = format!("s3://{}/d+7%20.txt", cloud.bucket);
    cloud.send(body(&uri, json!(3))).await;
    let exited = worker("own-json", &cloud, 0).await;
    let words: Value = serde_json::from_str(&result(&cloud, &exited, "words.json").await).unwrap();
    assert_eq!(words, json!({ "documentId": "d-7", "words": 5 }));
    assert_eq!(exited.record("message deleted")["key"], "d+7%20.txt");
    // The result's bucket also sends events.
    cloud.remove_notification().await;
    for (message, outcome) in [
        (body(&uri, json!("3")), "permanent"),
        (json!({ "documentId": "d-8" }).to_string(), "not_a_notification"),
    ] {
        cloud.sqs.purge_queue().queue_url(&cloud.queue_url).send().await.unwrap();
        cloud.send(message).await;
        let exited = worker("own-json", &cloud, 65).await;
        let kept = exited.record("message kept");
        assert_eq!(kept["outcome"], outcome);
        let is_named = kept["error"].as_str().is_some_and(|it| it.contains("/s3Uri is missing"));
        assert_eq!(is_named, outcome == "not_a_notification", "{kept}");
    }
}

#[tokio::test]
async fn the_worker_with_message_attributes_converts_texts() {
    let cloud = cloud_with("in/a.txt", b"Zug").await;
    let send = || {
        let send = cloud.sqs.send_message().queue_url(&cloud.queue_url);
        send.message_body(r#"{"file": "in/a.txt"}"#)
    };
    let upper = send().message_attributes("operation", text("upper"));
    upper.message_attributes("tenant", text("seven")).send().await.unwrap();
    let exited = worker("attributes", &cloud, 0).await;
    assert_eq!(result(&cloud, &exited, "text").await, "ZUG");
    assert!(exited.log.iter().any(|record| record["line"] == "converted for seven"));
    cloud.remove_notification().await;
    send().message_attributes("operation", text("reverse")).send().await.unwrap();
    assert_eq!(
        worker("attributes", &cloud, 65).await.record("message kept")["outcome"],
        "permanent"
    );
}

#[test]
fn the_workers_have_five_lines_about_them() {
    for name in ["own-json", "attributes"] {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/workers").join(name);
        let readme = fs::read_to_string(home.join("README.md")).unwrap();
        let lines = readme.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        assert_eq!(lines.count(), 5, "{name}");
        let manifest = fs::read_to_string(home.join("scaledjob.yaml")).unwrap();
        assert_eq!(manifest.lines().count(), 10, "{name}");
    }
}

/// The payload is the object of the job, and it is not deleted with the message.
#[tokio::test]
async fn a_pointer_of_the_extended_client_is_followed_to_its_payload() {
    let cloud = cloud_with("payload", b"a very long message").await;
    let class = "software.amazon.payloadoffloading.PayloadS3Pointer";
    let pointer = json!([class, { "s3BucketName": cloud.bucket, "s3Key": "payload" }]);
    cloud.send(pointer.to_string()).await;
    let script = r#"[ "$JOB_EVENT" = Custom ] || exit 9; cat "$JOB_INPUT" > seen"#;
    cloud.run("--events ObjectRestore:Completed", script).expect_exit(0).await;
    assert_eq!(written(&cloud, "seen"), "a very long message");
    assert_eq!(cloud.counts().await, (0, 0));
    cloud.s3.head_object().bucket(&cloud.bucket).key("payload").send().await.unwrap();
}

/// The pointer of the Extended Client to the object `payload`.
fn pointer_to_payload(bucket: &str) -> String {
    let class = "software.amazon.payloadoffloading.PayloadS3Pointer";
    json!([class, { "s3BucketName": bucket, "s3Key": "payload" }]).to_string()
}

/// The message is processed as if the payload were its body, for both names of the pointer's class
/// and through SNS.
#[tokio::test]
async fn a_payload_that_is_a_notification_is_the_body() {
    let cloud = cloud_with("in/a.csv", b"hello").await;
    let event = json!({ "Records": [{
        "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": cloud.bucket }, "object": { "key": "in/a.csv" } },
    }] })
    .to_string();
    cloud.put("payload", event.as_bytes()).await;
    cloud.remove_notification().await;
    let pointer = pointer_to_payload(&cloud.bucket);
    let class_of_version_1 = "com.amazon.sqs.javamessaging.MessageS3Pointer";
    for body in [
        pointer.replace("software.amazon.payloadoffloading.PayloadS3Pointer", class_of_version_1),
        json!({ "Type": "Notification", "Message": pointer }).to_string(),
        pointer,
    ] {
        cloud.sqs.purge_queue().queue_url(&cloud.queue_url).send().await.unwrap();
        cloud.send(body).await;
        let script = r#"cat "$JOB_INPUT" > seen; cat "$JOB_BODY_FILE" > body"#;
        let flags = format!("--buckets {}", cloud.bucket);
        let exited = cloud.run(&flags, script).expect_exit(0).await;
        assert_eq!(exited.record("message deleted")["key"], "in/a.csv");
        assert_eq!(
            (written(&cloud, "seen"), written(&cloud, "body")),
            ("hello".to_owned(), event.clone())
        );
    }
}

#[tokio::test]
async fn object_from_finds_the_object_in_a_payload() {
    let cloud = cloud_with("a b+c", b"hello").await;
    let body = json!({ "uri": format!("s3://{}/a b+c", cloud.bucket) }).to_string();
    cloud.put("payload", body.as_bytes()).await;
    cloud.remove_notification().await;
    cloud.send(pointer_to_payload(&cloud.bucket)).await;
    let script = r#"cat "$JOB_INPUT" > seen"#;
    cloud.run("--object-from uri=/uri", script).expect_exit(0).await;
    assert_eq!(written(&cloud, "seen"), "hello");
}

/// The command must not run on the pointer's object, and nothing is deleted.
#[tokio::test]
async fn a_message_whose_payload_cannot_be_read_is_kept() {
    let cloud = cloud_with("another", b"x").await;
    for (flags, code, outcome) in [
        ("--missing-object ignore --retry-min 0s --retry-max 0s", 75, "fetch_failed"),
        ("--buckets another-bucket", 65, "unreadable"),
    ] {
        cloud.sqs.purge_queue().queue_url(&cloud.queue_url).send().await.unwrap();
        cloud.send(pointer_to_payload(&cloud.bucket)).await;
        let exited = cloud.run(flags, "echo > ran").expect_exit(code).await;
        let kept = exited.record("message kept");
        assert_eq!(kept["outcome"], outcome);
        assert!(kept["error"].as_str().unwrap().contains("payload of the message"), "{kept}");
        assert!(!cloud.dir.path().join("ran").exists());
        assert_eq!(cloud.counts().await, (1, 0), "{outcome}");
    }
}

fn typed(name: &str, from: Option<&str>, key: Option<&str>) -> JobType {
    JobType {
        matches: Match { key: key.map(|it| it.parse().unwrap()), ..Match::default() },
        object_from: from.map(|it| it.parse().unwrap()),
        task: Arc::new(Task { name: name.to_owned(), ..task() }),
        limits: settings().policy.limits,
    }
}

/// One run with these job types and `--object-from`, and a command for other messages.
async fn routed(types: &[JobType], from: Option<&str>, body: &str) -> (String, FakeCommand, usize) {
    let (queue, command) = (queue_with(&[body]), exits(0));
    let mut journey = Journey::new(&queue, &command);
    let policy = &mut journey.settings.policy;
    policy.job_types = types.to_vec();
    policy.object_from = from.map(|it| it.parse().unwrap());
    let outcome = journey.run().await.outcomes().concat();
    (outcome, command, deletes(&queue))
}

#[tokio::test(start_paused = true)]
async fn job_types_find_their_objects_in_the_order_of_the_file() {
    let types = [
        typed("numbers", Some("bucket=b,key=/number"), Some("*.num")),
        typed("words", Some("bucket=b,key=/word"), None),
        typed("events", None, None),
    ];
    for (body, job_type, key) in [
        (json!({ "number": "1.num", "word": "w" }), "numbers", "1.num"),
        (json!({ "number": "1.txt", "word": "w" }), "words", "w"),
        (json!({ "uri": "s3://b/x" }), "default", "x"),
    ] {
        let (outcome, command, _) = routed(&types, Some("uri=/uri"), &body.to_string()).await;
        assert_eq!(outcome, "succeeded", "{body}");
        assert_eq!(command.got("JOB_TYPE"), [job_type], "{body}");
        assert_eq!(
            (command.got("JOB_KEY"), command.got("JOB_EVENT")),
            (vec![key.to_owned()], vec!["Custom".to_owned()])
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_documented_job_type_finds_scanned_objects() {
    let (_, page) = include_str!("../docs/messages.md").split_once("### Only objects").unwrap();
    let (_, block) = page.split_once("```yaml\n").unwrap();
    let block = block.split("```").next().unwrap().to_owned();
    let mut types = JobTypesFile::parse("types.yaml", || Ok(block)).unwrap().job_types;
    let mut scanned = typed("scanned", None, None);
    scanned.object_from = types.remove(0).object_from;
    let result = include_str!("../core/tests/fixtures/bad-guardduty.json");
    let (outcome, command, _) = routed(&[scanned], None, result).await;
    assert_eq!(outcome, "succeeded");
    assert_eq!(command.got("JOB_KEY"), ["in/invoice+1.pdf"]);
    assert_eq!(command.got("JOB_VERSION_ID"), ["d41d8cd98f00b204e9800998eEXAMPLE"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_object_is_not_found_is_kept() {
    let numbers = || typed("numbers", Some("list=/all,bucket=b,key="), Some("*.num"));
    for (types, from, body, outcome) in [
        (vec![], Some("uri=/uri"), json!({ "Uri": "s3://b/k" }), "not_a_notification"),
        (vec![], Some("uri=/uri"), json!({ "uri": "s3://b/" }), "not_a_notification"),
        (vec![], Some("list=/all,uri="), json!({ "all": [] }), "not_a_notification"),
        (vec![], None, json!({ "uri": "s3://b/k" }), "not_a_notification"),
        (vec![numbers()], None, json!({ "all": ["a"] }), "no_job_type"),
        (vec![numbers()], None, json!({ "all": ["a", "1.num"] }), "no_job_type"),
        (vec![numbers()], Some("uri=/uri"), json!({ "al": ["1.num"] }), "not_a_notification"),
    ] {
        let (kept, command, deleted) = routed(&types, from, &body.to_string()).await;
        assert_eq!((kept.as_str(), command.runs(), deleted), (outcome, 0, 0), "{body}");
    }
}
