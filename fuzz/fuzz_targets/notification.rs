//! Parsing any message body never panics, and an invalid body is never deleted.

#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leasehold_core::delivery::{Delivery, MessageId, ReceiptHandle, Received, Redrive, SqsAttributes};
use leasehold_core::lease::{CEILING, Strategy};
use leasehold_core::lifecycle::{Effect, Event, Job};
use leasehold_core::notification::{CUSTOM, Notification, parse};
use leasehold_core::object_attributes::ObjectAttributes;
use leasehold_core::policy::Policy;
use leasehold_core::route::{CommandLine, Content, Input, Limits, Route, Selection, Task, route};
use leasehold_core::verdict::{Completion, OnStop, Retry, RetryPolicy, Verdict};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let body = String::from_utf8_lossy(bytes);
    let read = parse(&body);
    assert_eq!(read, parse(&body), "the same body parses the same");
    if let Ok(Notification::Records(records)) = &read {
        assert!(!records.is_empty(), "an empty list of records must be an error");
        for record in records {
            assert!(![&record.event, &record.object.bucket, &record.object.key].iter().any(|text| text.is_empty()));
        }
    }

    let selection = Selection::default();
    let policy = Policy {
        selection: selection.clone(),
        accept_raw: false,
        object_from: Some("bucket=/bucket,key=/key".parse().expect("pointers")),
        job_types: Vec::new(),
        task: Some(Arc::new(Task {
            name: Task::DEFAULT.to_owned(),
            command: CommandLine { program: "true".into(), args: Vec::new() },
            input: Input::File,
            input_at: None,
            output_at: None,
            missing_object: None,
            stall_timeout: None,
            output: None,
            output_attributes: ObjectAttributes::default(),
            on_success: None,
            checkpoint: None,
        })),
        limits: Limits {
            ceiling: CEILING,
            strategy: Strategy::Heartbeat,
            visibility: Duration::from_secs(120),
            max_duration: Duration::from_secs(600),
            stop_grace: Duration::from_secs(20),
            retry: RetryPolicy { retry: Retry::Expire, on_stop: OnStop::Release, permanent_exit_codes: vec![65] },
        },
        max_messages: 1,
        fifo: false,
    };
    let delivery = Delivery {
        message_id: MessageId::new("m"),
        receipt: ReceiptHandle::new("r"),
        body: body.into_owned(),
        receive_count: 1,
        sent_at: None,
        first_received_at: None,
        group_id: None,
        deduplication_id: None,
        idempotency_key: None,
        traceparent: None,
        attributes: BTreeMap::new(),
        sqs: SqsAttributes::default(),
    };
    let (asked_at, received_at, redrive) = (Duration::ZERO, Duration::ZERO, Redrive::Unknown);
    let received = Received { delivery, asked_at, received_at, redrive };
    let effects = Job::start(policy).job.step(Duration::ZERO, Event::Received(Box::new(received))).effects;

    let decided = effects.iter().find_map(|effect| match effect {
        Effect::Process(work) => Some(Ok(work.content.clone())),
        Effect::Settle(verdict) => Some(Err(verdict)),
        _ => None,
    });
    let routed = read.map_err(|why| why.to_string()).and_then(|notification| route(notification, &selection));
    match (routed, decided) {
        (Err(_), Some(Err(Verdict::Keep(..)))) => {}
        (Err(_), Some(Ok(Content::Objects(records)))) => {
            assert!(!records.is_empty() && records.iter().all(|record| record.event == CUSTOM));
        }
        (Ok(Route::Nothing(why)), Some(Err(Verdict::Delete(proof)))) => {
            assert_eq!(proof.why(), Completion::NothingToDo(why));
        }
        (Ok(Route::Work(content)), Some(Ok(work))) => assert_eq!(content, work),
        (read, decided) => panic!("{read:?}, but {decided:?}"),
    }
});
