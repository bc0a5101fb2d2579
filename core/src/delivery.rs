//! One delivery of a message by the queue.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use super::keep_reason::KeepReason;

/// The queue's ID of a message; the same at every delivery.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MessageId(String);

impl MessageId {
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key to one delivery, with which the message can be extended, released or deleted. So it is
/// never printed, and not `Clone`: one owner makes all calls with it.
#[derive(PartialEq, Eq)]
pub struct ReceiptHandle(String);

impl ReceiptHandle {
    pub fn new(handle: impl Into<String>) -> Self {
        Self(handle.into())
    }

    /// A copy for a request that may outlive the owner's call.
    #[must_use]
    pub fn for_request(&self) -> Self {
        Self(self.0.clone())
    }

    /// The handle itself, only for requests to the queue.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ReceiptHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReceiptHandle(..)")
    }
}

/// A message and the number of its delivery.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeliveryId {
    pub message_id: MessageId,
    /// 1 = first.
    pub receive_count: u32,
}

/// One delivery of a message.
#[derive(PartialEq, Eq)]
pub struct Delivery {
    pub message_id: MessageId,
    pub receipt: ReceiptHandle,
    /// As sent, or the payload of the Extended Client's pointer if objects are found in it.
    pub body: String,
    /// The body is a pointer of the Extended Client, and its payload could not be read.
    pub payload_failed: Option<KeepReason>,
    /// How often the message has been received, including this time: 1 = first (SQS's
    /// `ApproximateReceiveCount`).
    pub receive_count: u32,
    /// When it was sent, by the queue's clock (SQS's `SentTimestamp`).
    pub sent_at: Option<SystemTime>,
    /// When it was received for the first time, by the queue's clock (SQS's
    /// `ApproximateFirstReceiveTimestamp`).
    pub first_received_at: Option<SystemTime>,
    /// SQS's `MessageGroupId`, if the sender set it.
    pub group_id: Option<String>,
    /// SQS's `MessageDeduplicationId`; only in FIFO queues.
    pub deduplication_id: Option<String>,
    /// The sender's key for this piece of work (`--idempotency-key`, or SQS's
    /// `MessageDeduplicationId` if the sender set it).
    pub idempotency_key: Option<String>,
    /// W3C trace context, from the sender's `traceparent` attribute or SQS's `AWSTraceHeader`.
    pub traceparent: Option<String>,
    /// The sender's message attributes, by name; binary values in Base64.
    pub attributes: BTreeMap<String, String>,
    pub sqs: SqsAttributes,
}

/// The rest of what SQS knows about a message, for the event of a Lambda function. Empty for a
/// message from another queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SqsAttributes {
    /// SQS's own attributes, as it sends them.
    pub system: BTreeMap<String, String>,
    /// The types of the sender's message attributes, such as `Number`, by their names.
    pub types: BTreeMap<String, String>,
}

impl Delivery {
    pub fn id(&self) -> DeliveryId {
        DeliveryId { message_id: self.message_id.clone(), receive_count: self.receive_count }
    }
}

/// The body may contain private data, so it is not printed either.
impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message_id", &self.message_id)
            .field("receive_count", &self.receive_count)
            .finish_non_exhaustive()
    }
}

/// A delivery and when it was received.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    pub delivery: Delivery,
    /// Just before the receive request was sent. SQS hid the message no earlier, so a lease counted
    /// from here never outlasts SQS's own.
    pub asked_at: Duration,
    /// When the answer came; `--max-duration` counts from here.
    pub received_at: Duration,
    /// The queue's redrive policy, as far as it is known.
    pub redrive: Redrive,
}

/// The queue's `RedrivePolicy`, read once per run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redrive {
    /// After `max_receive_count` receives the next one moves the message to `queue`.
    DeadLetter { max_receive_count: u32, queue: String },
    /// Not configured: a message that always fails is retried until its retention ends.
    None,
    /// Not permitted to read it, or no answer; only messages to the user lack it.
    Unknown,
}

impl Redrive {
    pub fn max_receive_count(&self) -> Option<u32> {
        match self {
            Self::DeadLetter { max_receive_count, .. } => Some(*max_receive_count),
            Self::None | Self::Unknown => None,
        }
    }

    /// How many more receives a message gets before the next one moves it to the dead-letter queue.
    /// `None` if there is no such queue, or it should have the message already: then it may have
    /// been deleted.
    pub fn remaining_receives(&self, receive_count: u32) -> Option<u32> {
        self.max_receive_count()?.checked_sub(receive_count)
    }

    /// Is a delivery with this receive count the last before the dead-letter queue?
    pub fn is_final(&self, receive_count: u32) -> bool {
        self.max_receive_count().is_some_and(|max| receive_count >= max)
    }
}

/// The W3C form of an X-Ray header
/// (`Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1`).
///
/// `None` if the header has no root or parent; the trace id is the two hexadecimal parts of the
/// root, joined.
pub fn traceparent_from_xray(header: &str) -> Option<String> {
    let field = |name: &str| {
        header.split(';').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
    };
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let trace_id: String = field("Root")?.strip_prefix("1-")?.split('-').collect();
    let parent = field("Parent")?;
    let sampled = if field("Sampled") == Some("1") { "01" } else { "00" };
    (is_hex(&trace_id, 32) && is_hex(parent, 16))
        .then(|| format!("00-{trace_id}-{parent}-{sampled}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xray_header_becomes_a_traceparent() {
        assert_eq!(
            traceparent_from_xray(
                "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
            )
            .as_deref(),
            Some("00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01")
        );
        assert_eq!(
            traceparent_from_xray("Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"),
            None
        );
        assert_eq!(traceparent_from_xray("nonsense"), None);
    }

    #[test]
    fn secrets_are_not_printed() {
        let delivery = Delivery {
            message_id: MessageId::new("m"),
            receipt: ReceiptHandle::new("secret-handle"),
            body: "secret-body".into(),
            payload_failed: None,
            receive_count: 1,
            sent_at: None,
            first_received_at: None,
            group_id: None,
            deduplication_id: None,
            idempotency_key: None,
            traceparent: None,
            attributes: BTreeMap::from([("secret".into(), "secret".into())]),
            sqs: SqsAttributes {
                system: BTreeMap::from([("SenderId".into(), "secret".into())]),
                types: BTreeMap::new(),
            },
        };
        assert!(!format!("{delivery:?} {:?}", delivery.receipt).contains("secret"));
    }
}
