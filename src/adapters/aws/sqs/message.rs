//! Converts an SQS message into a delivery.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use aws_sdk_sqs::types::{Message, MessageSystemAttributeName};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use md5::Md5;
use sha2::{Digest, Sha256};

use crate::job::delivery::{
    Delivery, MessageId, ReceiptHandle, SqsAttributes, traceparent_from_xray,
};
use crate::ports::ReceiveError;

/// The message attribute with a sender's W3C trace context.
const TRACEPARENT: &str = "traceparent";

pub(super) fn delivery(
    message: Message,
    key_attribute: Option<&str>,
) -> Result<Delivery, ReceiveError> {
    let system = |name| message.attributes().and_then(|all| all.get(&name)).map(String::as_str);
    let sent = message.message_attributes().and_then(|all| all.get(TRACEPARENT)?.string_value());
    let traceparent = sent.filter(|sent| is_traceparent(sent)).map(str::to_owned);
    let traceparent = traceparent.or_else(|| {
        system(MessageSystemAttributeName::AwsTraceHeader).and_then(traceparent_from_xray)
    });
    let count = system(MessageSystemAttributeName::ApproximateReceiveCount)
        .and_then(|count| count.parse().ok());
    let named =
        key_attribute.and_then(|name| message.message_attributes()?.get(name)?.string_value());
    let is_chosen =
        |id: &&str| *id != hex::encode(Sha256::digest(message.body().unwrap_or_default()));
    let chosen_id = system(MessageSystemAttributeName::MessageDeduplicationId).filter(is_chosen);
    let idempotency_key = named.or(chosen_id).map(str::to_owned);
    // In milliseconds since 1970.
    let time = |name| {
        let milliseconds = system(name)?.parse().ok().filter(|since| *since <= LATEST)?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds))
    };
    let sent_at = time(MessageSystemAttributeName::SentTimestamp);
    let first_received_at = time(MessageSystemAttributeName::ApproximateFirstReceiveTimestamp);
    let group_id = system(MessageSystemAttributeName::MessageGroupId).map(str::to_owned);
    let deduplication_id =
        system(MessageSystemAttributeName::MessageDeduplicationId).map(str::to_owned);
    let sqs = sqs_attributes(&message);
    let attributes = attributes(&message);
    let body = message.body.unwrap_or_default();
    let (Some(id), Some(receipt)) = (message.message_id, message.receipt_handle) else {
        return Err(ReceiveError::Transient(
            "the queue sent a message without an id or a receipt handle".into(),
        ));
    };
    // The SDKs for Java and Go check this, too: a corrupted body must not start any work.
    if message
        .md5_of_body
        .is_some_and(|md5| !md5.eq_ignore_ascii_case(&hex::encode(Md5::digest(&body))))
    {
        return Err(ReceiveError::Transient(format!(
            "message {id}: the body does not match its MD5"
        )));
    }
    Ok(Delivery {
        message_id: MessageId::new(id),
        receipt: ReceiptHandle::new(receipt),
        body,
        payload_failed: None,
        receive_count: count.unwrap_or(1),
        sent_at,
        first_received_at,
        group_id,
        deduplication_id,
        idempotency_key,
        traceparent,
        attributes,
        sqs,
    })
}

/// The end of the year 9999, the last that RFC 3339 can express.
const LATEST: u64 = 253_402_300_799_999;

/// The sender's message attributes: a string and a number as they were sent, bytes in Base64.
fn attributes(message: &Message) -> BTreeMap<String, String> {
    let sent = message.message_attributes().into_iter().flatten();
    sent.filter_map(|(name, value)| {
        let bytes = || value.binary_value().map(|bytes| BASE64_STANDARD.encode(bytes));
        Some((name.clone(), value.string_value().map(str::to_owned).or_else(bytes)?))
    })
    .collect()
}

fn sqs_attributes(message: &Message) -> SqsAttributes {
    let system = message.attributes().into_iter().flatten();
    let system = system.map(|(name, value)| (name.as_str().to_owned(), value.clone()));
    let types = message.message_attributes().into_iter().flatten();
    let types = types.map(|(name, value)| (name.clone(), value.data_type().to_owned()));
    SqsAttributes { system: system.collect(), types: types.collect() }
}

/// Version, trace id, parent id and flags, in hexadecimal (W3C Trace Context, section 3.2).
fn is_traceparent(text: &str) -> bool {
    let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([2, 32, 16, 2]) && parts.into_iter().all(is_hex)
}
