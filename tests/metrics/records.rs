//! Log records and the termination message of the real binary.

use std::collections::BTreeSet;

use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeNameForSends, MessageSystemAttributeValue,
};
use leasehold::telemetry::records::FIELDS;
use serde_json::Value;

use crate::support::cloud::{Cloud, ExitedRun, GREEDY, eventually};

const TRACE_ID: &str = "5759e988bd862e3fe1be46a994272793";

fn notification(cloud: &Cloud, key: &str) -> String {
    serde_json::json!({ "Records": [{
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": cloud.bucket }, "object": { "key": key, "size": 5 } },
    }]})
    .to_string()
}

/// Sends a message about the object `k`, instead of S3's own notification.
async fn send_traced(cloud: &Cloud, name: &str, value: &str) {
    cloud.put("k", b"12345").await;
    cloud.remove_notification().await;
    let send =
        cloud.sqs.send_message().queue_url(&cloud.queue_url).message_body(notification(cloud, "k"));
    let send = if name == "AWSTraceHeader" {
        let header = MessageSystemAttributeValue::builder()
            .data_type("String")
            .string_value(value)
            .build()
            .unwrap();
        send.message_system_attributes(MessageSystemAttributeNameForSends::AwsTraceHeader, header)
    } else {
        let attribute = MessageAttributeValue::builder()
            .data_type("String")
            .string_value(value)
            .build()
            .unwrap();
        send.message_attributes(name, attribute)
    };
    send.send().await.unwrap();
}

#[tokio::test]
async fn a_trace_id_is_logged_and_passed_to_the_command() {
    let traceparent = format!("00-{TRACE_ID}-53995c3f42cd8ad8-01");
    for (name, value) in [
        ("traceparent", &*traceparent),
        (
            "AWSTraceHeader",
            "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
        ),
    ] {
        let cloud = Cloud::new(5).await;
        send_traced(&cloud, name, value).await;
        let exited = cloud.run("", r#"echo "$TRACEPARENT" > trace"#).expect_exit(0).await;
        assert_eq!(cloud.file("trace").await, traceparent, "{name}");
        for record in ["message started", "message deleted"] {
            assert_eq!(exited.record(record)["trace_id"], TRACE_ID, "{name}, {record}");
        }
    }
}

/// The fields of a record that are not null.
fn fields(record: &Value) -> impl Iterator<Item = String> {
    record
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, _)| name.clone())
}

#[tokio::test]
async fn the_documentation_has_every_field_of_a_messages_records() {
    let documented: BTreeSet<_> = FIELDS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let page = include_str!("../../docs/observability.md");
    let (_, table) = page.split_once("| field | meaning |\n").unwrap();
    let rows = table.lines().take_while(|line| line.starts_with('|')).skip(1);
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2));
    assert_eq!(names.map(str::to_owned).collect::<BTreeSet<_>>(), documented);

    let cloud = Cloud::new(5).await;
    let mut logged = BTreeSet::new();
    let output = format!("--output s3://{}/results", cloud.bucket);
    let progress =
        r#"echo '{"progress":0.5,"text":"half","metrics":{"rows":5}}' >> "$JOB_RESULT_FILE""#;
    let scripts = [
        (
            0,
            format!(
                "{GREEDY}; echo done; echo '{{\"rows\":5}}'; {progress}; echo 1 > \"$JOB_OUTPUT_DIR/a\"; sleep 2"
            ),
        ),
        (1, r#"echo '{"reason":"no such column"}' >> "$JOB_RESULT_FILE"; exit 3"#.to_owned()),
        (1, "kill -KILL $$".to_owned()),
    ];
    for (code, script) in scripts {
        send_traced(&cloud, "traceparent", &format!("00-{TRACE_ID}-53995c3f42cd8ad8-01")).await;
        let exited: ExitedRun = cloud.run(&output, &script).expect_exit(code).await;
        logged.extend(exited.log.iter().flat_map(fields));
    }
    // Other tests cover these fields: an unread log, a stop, and --prefetch.
    logged.extend(["dropped_lines", "stop_grace_s", "turn_s"].map(str::to_owned));
    assert_eq!(logged, documented);
}

/// Kubernetes truncates a longer message, which would break the JSON.
#[tokio::test]
async fn a_termination_message_is_one_line_of_json_within_the_size_limit() {
    let cloud = Cloud::new(5).await;
    // In JSON a control character takes six bytes.
    for (length, fits) in [(10, true), (1_000, false)] {
        let key = "%01".repeat(length);
        cloud.send(notification(&cloud, &key)).await;
        cloud.run("--input none --retry expire", "exit 65").expect_exit(65).await;
        let message = std::fs::read_to_string(cloud.dir.path().join("termination-log")).unwrap();
        assert!(
            message.len() <= 4096 && message.lines().count() == 1 && message.ends_with('\n'),
            "{message}"
        );
        let fields: Value = serde_json::from_str(&message).unwrap();
        assert_eq!((&fields["outcome"], &fields["exit_code"]), (&"permanent".into(), &65.into()));
        assert_eq!(
            fields.get("key").and_then(Value::as_str),
            fits.then_some(&*"\u{1}".repeat(length))
        );
        assert!(fields["error"].as_str().unwrap().contains("permanent failure"), "{message}");
    }
}

#[tokio::test]
async fn the_termination_message_is_about_a_failure_even_if_others_succeeded() {
    let cloud = Cloud::new(5).await;
    for key in ["bad", "good"] {
        cloud.send(notification(&cloud, key)).await;
    }
    let script = r#"[ "$JOB_KEY" = good ] || exit 65; sleep 1"#;
    let exited = cloud
        .run("--input none --concurrency 2 --max-messages 2 --retry expire", script)
        .expect_exit(65)
        .await;
    assert_eq!(exited.record("message deleted")["key"], "good");
    let exiting: Vec<_> =
        exited.log.iter().filter(|record| record["message"] == "exiting").collect();
    assert_eq!((exiting.len(), &exiting[0]["exit"]), (1, &65.into()));
    let message = std::fs::read_to_string(cloud.dir.path().join("termination-log")).unwrap();
    let fields: Value = serde_json::from_str(&message).unwrap();
    assert_eq!((&fields["key"], &fields["outcome"]), (&"bad".into(), &"permanent".into()));
}

/// A killed pod cannot write another message; so each heartbeat updates the time at which the
/// message is visible again.
#[tokio::test]
async fn a_pod_that_is_killed_leaves_a_message_about_its_work() {
    let cloud = Cloud::new(5).await;
    let path = cloud.dir.path().join("termination-log");
    let read_message = || {
        let message = std::fs::read_to_string(&path).ok()?;
        serde_json::from_str::<Value>(&message)
            .ok()
            .filter(|fields| fields["next"].as_str().is_some())
    };
    cloud.send(notification(&cloud, "a/b c")).await;
    let run = cloud.run("--input none --visibility-timeout 3s", "echo up > up; sleep 600");
    cloud.file("up").await;
    let visible = |fields: &Value| {
        fields["next"].as_str()?.split_once(" visible again by ").map(|(_, at)| at.to_owned())
    };
    let first =
        eventually("the message has the end of the lease", async || visible(&read_message()?))
            .await;
    let later = eventually("a heartbeat updates it", async || {
        visible(&read_message()?).filter(|at| *at != first)
    })
    .await;
    assert!(later.len() == "12:03:20Z".len() && later.ends_with('Z'), "{later}");
    run.signal(nix::sys::signal::Signal::SIGKILL);
    let _ = run.wait_without_reading().await;
    let fields = read_message().expect("a complete message");
    assert_eq!((&fields["outcome"], &fields["key"]), (&"in_progress".into(), &"a/b c".into()));
    assert_eq!(
        (&fields["bucket"], &fields["receive_count"]),
        (&(&*cloud.bucket).into(), &1.into())
    );
    let next = fields["next"].as_str().unwrap();
    assert!(
        next.starts_with("attempt 1 of 5; if this is the final report, the pod was killed"),
        "{next}"
    );
}
