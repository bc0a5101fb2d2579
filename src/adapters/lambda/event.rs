//! A message as Lambda's event source mapping for SQS passes it to a function.
//!
//! See <https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html>.

use std::time::{SystemTime, UNIX_EPOCH};

use md5::{Digest, Md5};
use serde_json::{Map, Value, json};

use super::function::Source;
use crate::ports::job_facts::JobFacts;

/// Functions must not delete their messages: leasehold deletes them, while the lease is held.
const NO_RECEIPT_HANDLE: &str = "leasehold-deletes-this-message";

/// SQS sends this attribute; a queue in memory does not.
const UNKNOWN_SENDER: &str = "unknown";

/// The record of one message.
pub(super) fn record(job: &JobFacts, body: &str, source: &Source) -> Value {
    json!({
        "messageId": job.message_id,
        "receiptHandle": NO_RECEIPT_HANDLE,
        "body": body,
        "attributes": attributes(job),
        "messageAttributes": message_attributes(job),
        "md5OfBody": hex::encode(Md5::digest(body)),
        "eventSource": "aws:sqs",
        "eventSourceARN": source.queue_arn,
        "awsRegion": source.region,
    })
}

/// The event with these records.
pub(super) fn event<'a>(records: impl Iterator<Item = &'a Value>) -> String {
    json!({ "Records": records.collect::<Vec<_>>() }).to_string()
}

/// The queue's attributes. Those that leasehold knows itself are there without SQS, too.
fn attributes(job: &JobFacts) -> Map<String, Value> {
    let of_queue = job.message.sqs.system.iter();
    let mut all: Map<String, Value> =
        of_queue.map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let message = &job.message;
    let known = [
        ("ApproximateReceiveCount", Some(job.receive_count.to_string())),
        ("SentTimestamp", message.sent_at.map(milliseconds)),
        ("ApproximateFirstReceiveTimestamp", message.first_received_at.map(milliseconds)),
        ("MessageGroupId", message.message_group_id.clone()),
        ("MessageDeduplicationId", message.message_deduplication_id.clone()),
        ("SenderId", Some(UNKNOWN_SENDER.to_owned())),
    ];
    for (name, value) in known {
        if let Some(value) = value {
            all.entry(name).or_insert_with(|| value.into());
        }
    }
    all
}

fn milliseconds(at: SystemTime) -> String {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis().to_string()
}

/// The sender's attributes. Lambda sends the two lists, too, and always empty.
fn message_attributes(job: &JobFacts) -> Map<String, Value> {
    let of = |(name, value): (&String, &String)| {
        let data_type = job.message.sqs.types.get(name).map_or("String", String::as_str);
        let is_binary = data_type == "Binary" || data_type.starts_with("Binary.");
        let field = if is_binary { "binaryValue" } else { "stringValue" };
        let attribute = json!({
            field: value, "stringListValues": [], "binaryListValues": [], "dataType": data_type,
        });
        (name.clone(), attribute)
    };
    job.message.attributes.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{job, source};
    use super::*;

    fn text_map<const N: usize>(
        pairs: [(&str, &str); N],
    ) -> std::collections::BTreeMap<String, String> {
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    /// The sample of a FIFO queue in AWS's documentation, "Using Lambda with Amazon SQS", with a
    /// message attribute from its page about message attributes.
    #[test]
    fn the_event_has_the_fields_of_awss_sample() {
        let mut facts = job("11d6ee51-4cc7-4302-9e22-7cd8afdaadf5");
        facts.message.sqs.system = text_map([
            ("ApproximateReceiveCount", "1"),
            ("SentTimestamp", "1573251510774"),
            ("SequenceNumber", "18849496460467696128"),
            ("MessageGroupId", "1"),
            ("SenderId", "AIDAIO23YVJENQZJOL4VO"),
            ("MessageDeduplicationId", "1"),
            ("ApproximateFirstReceiveTimestamp", "1573251510774"),
        ]);
        facts.message.sqs.types = text_map([("myAttribute", "String"), ("bytes", "Binary.png")]);
        facts.message.attributes = text_map([("myAttribute", "myValue"), ("bytes", "MTEwMA==")]);
        let event = event([record(&facts, "Test message.", &source())].iter());
        let expected = json!({ "Records": [{
            "messageId": "11d6ee51-4cc7-4302-9e22-7cd8afdaadf5",
            "receiptHandle": NO_RECEIPT_HANDLE,
            "body": "Test message.",
            "attributes": {
                "ApproximateReceiveCount": "1",
                "SentTimestamp": "1573251510774",
                "SequenceNumber": "18849496460467696128",
                "MessageGroupId": "1",
                "SenderId": "AIDAIO23YVJENQZJOL4VO",
                "MessageDeduplicationId": "1",
                "ApproximateFirstReceiveTimestamp": "1573251510774",
            },
            "messageAttributes": {
                "myAttribute": {
                    "stringValue": "myValue",
                    "stringListValues": [],
                    "binaryListValues": [],
                    "dataType": "String",
                },
                "bytes": {
                    "binaryValue": "MTEwMA==",
                    "stringListValues": [],
                    "binaryListValues": [],
                    "dataType": "Binary.png",
                },
            },
            "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:us-east-2:123456789012:my-queue",
            "awsRegion": "us-east-2",
        }]});
        assert_eq!(serde_json::from_str::<Value>(&event).unwrap(), expected);
    }

    #[test]
    fn a_message_without_sqs_has_the_attributes_that_every_function_may_expect() {
        let mut facts = job("m");
        facts.receive_count = 2;
        facts.message.sent_at = Some(UNIX_EPOCH + Duration::from_millis(1_500));
        assert_eq!(
            record(&facts, "", &source())["attributes"],
            json!({ "ApproximateReceiveCount": "2", "SentTimestamp": "1500", "SenderId": "unknown" })
        );
    }
}
