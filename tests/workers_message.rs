//! What a command learns about its message: attributes, times, ids and the body, from a real queue.

use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName};
use serde_json::{Value, json};

use crate::support::cloud::Cloud;

const TRACEPARENT: &str = "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01";

fn text(value: &str) -> MessageAttributeValue {
    MessageAttributeValue::builder().data_type("String").string_value(value).build().unwrap()
}

/// The content of a file that the command wrote.
fn written(cloud: &Cloud, name: &str) -> String {
    std::fs::read_to_string(cloud.dir.path().join(name)).unwrap()
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
