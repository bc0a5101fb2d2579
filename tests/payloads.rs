//! The payloads of the Extended Client, read from stores that fail, hang, or have other objects.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::pending;
use leasehold::adapters::local::memory::{Kind, MemoryQueue};
use leasehold::adapters::payloads::Payloads;
use leasehold::job::delivery::{Delivery, Redrive};
use leasehold::job::keep_reason::KeepReason;
use leasehold::job::notification::Object;
use leasehold::ports::checksum::{Algorithm, Checksum};
use leasehold::ports::{FetchError, ObjectBody, ObjectStore, RangeBody};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::bucket::MemoryBucket;
use crate::support::{S, VISIBILITY, object_created, settings};

/// A store that gives these answers in order, and then none.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<VecDeque<Result<ObjectBody, FetchError>>>>);

impl Answers {
    fn new(answers: impl IntoIterator<Item = Result<ObjectBody, FetchError>>) -> Self {
        Self(Arc::new(Mutex::new(answers.into_iter().collect())))
    }

    fn remaining(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

#[async_trait]
impl ObjectStore for Answers {
    async fn open(&self, _: &Object) -> Result<ObjectBody, FetchError> {
        let answer = self.0.lock().unwrap().pop_front();
        match answer {
            Some(answer) => answer,
            None => pending().await,
        }
    }

    async fn open_range(&self, _: &Object, _: Range<u64>) -> Result<RangeBody, FetchError> {
        unreachable!("a payload is read as a whole")
    }
}

fn body(bytes: impl Into<Vec<u8>>) -> ObjectBody {
    MemoryBucket::body(bytes.into().into())
}

fn payloads(store: &Answers) -> Payloads {
    Payloads {
        store: Arc::new(store.clone()),
        policy: settings().policy,
        buckets: vec!["long-messages".to_owned()],
        stop: CancellationToken::new(),
    }
}

fn pointer_into(bucket: &str) -> String {
    let class = "software.amazon.payloadoffloading.PayloadS3Pointer";
    json!([class, { "s3BucketName": bucket, "s3Key": "payload" }]).to_string()
}

fn pointer() -> String {
    pointer_into("long-messages")
}

/// The delivery of a message with this body.
async fn received(payloads: Payloads, body: &str, visibility: Duration) -> Delivery {
    let queue = MemoryQueue::new(Kind::Standard, Redrive::None);
    queue.send(body);
    payloads.read_for(Arc::new(queue)).receive(S, visibility).await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_names_objects_is_the_body() {
    let test_event = json!({ "Event": "s3:TestEvent" }).to_string();
    for payload in [object_created("k"), test_event] {
        let store = Answers::new([Ok(body(payload.clone()))]);
        let delivery = received(payloads(&store), &pointer(), VISIBILITY).await;
        assert_eq!((delivery.body, delivery.payload_failed), (payload, None));
    }
}

#[tokio::test(start_paused = true)]
async fn any_other_payload_is_an_object() {
    let mut too_long = object_created("k");
    too_long.push_str(&" ".repeat(4 << 20));
    let of_unknown_size = ObjectBody { size: None, ..body(too_long.clone()) };
    for answer in [
        body("text"),
        body(*b"\xff\xfe"),
        body(r#"{"uri": "s3://b/k"}"#),
        // It is not followed.
        body(pointer()),
        body(too_long),
        of_unknown_size,
    ] {
        let store = Answers::new([Ok(answer)]);
        let delivery = received(payloads(&store), &pointer(), VISIBILITY).await;
        assert_eq!((delivery.body, delivery.payload_failed), (pointer(), None));
        assert_eq!(store.remaining(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_pointer_reads_nothing() {
    let event = object_created("k");
    let store = Answers::default();
    for body in [&*event, "[]", "hello", &pointer().replace("payload\"", "\"")] {
        let started = Instant::now();
        let delivery = received(payloads(&store), body, VISIBILITY).await;
        assert_eq!((&*delivery.body, delivery.payload_failed), (body, None));
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_cannot_be_read_is_a_reason_to_keep_the_message() {
    let missing = || FetchError::Missing("404".to_owned());
    let archived = || FetchError::Permanent("archived".to_owned());
    let refused = || FetchError::Retryable("403".to_owned());
    for (answers, expected) in [
        (vec![missing()], KeepReason::FetchFailed("payload of the message: 404".to_owned())),
        (vec![archived()], KeepReason::Unreadable("payload of the message: archived".to_owned())),
        (
            vec![refused(), refused(), refused(), refused()],
            KeepReason::FetchFailed("payload of the message: 403".to_owned()),
        ),
    ] {
        let store = Answers::new(answers.into_iter().map(Err));
        let delivery = received(payloads(&store), &pointer(), VISIBILITY).await;
        assert_eq!(delivery.payload_failed, Some(expected));
        assert_eq!(store.remaining(), 0);
    }
    let store = Answers::new([Ok(body(object_created("k")))]);
    let delivery = received(payloads(&store), &pointer_into("elsewhere"), VISIBILITY).await;
    let why = "payload of the message: bucket elsewhere is not in --buckets long-messages";
    assert_eq!(delivery.payload_failed, Some(KeepReason::Unreadable(why.to_owned())));
    assert_eq!(store.remaining(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_arrives_incomplete_or_changed_is_read_again() {
    let event = object_created("k");
    let checksum = Checksum { algorithm: Algorithm::Sha256, value: "of other bytes".to_owned() };
    let changed = ObjectBody { checksum: Some(checksum), ..body(event.clone()) };
    let incomplete = ObjectBody { size: Some(1000), ..body(event.clone()) };
    let store = Answers::new([Ok(changed), Ok(incomplete), Ok(body(event.clone()))]);
    let delivery = received(payloads(&store), &pointer(), VISIBILITY).await;
    assert_eq!((delivery.body, delivery.payload_failed), (event, None));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_delays_a_message_only_for_a_part_of_its_visibility_timeout() {
    for (visibility, limit) in [(20 * S, 5 * S), (VISIBILITY, 10 * S)] {
        let started = Instant::now();
        let delivery = received(payloads(&Answers::default()), &pointer(), visibility).await;
        assert!((limit..limit + S).contains(&started.elapsed()));
        let uri = "s3://long-messages/payload";
        let why = format!("payload of the message: {uri} was not read within {limit:?}");
        assert_eq!(delivery.payload_failed, Some(KeepReason::FetchFailed(why)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_payload() {
    let payloads = payloads(&Answers::default());
    payloads.stop.cancel();
    let started = Instant::now();
    let delivery = received(payloads, &pointer(), VISIBILITY).await;
    assert_eq!(delivery.payload_failed, Some(KeepReason::Stopped));
    assert_eq!(started.elapsed(), Duration::ZERO);
}
