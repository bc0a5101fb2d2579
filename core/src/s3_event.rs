//! The record of an object as S3 sends it to a Lambda function (`--lambda-event s3`).
//!
//! Source: S3 User Guide, "Event message structure".

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde_json::{Map, Value, json};

use super::notification::{CUSTOM, Record, from_s3, message, secondary};

/// The record of S3's notification in the body, as it was received. If the body is not such a
/// notification, a record with only those fields whose values the message has.
pub fn s3_record(body: &str, record: &Record) -> Value {
    let message = message(body).unwrap_or_default();
    let sent = message["Records"].as_array().into_iter().flatten();
    // Two records with the same values are the same event of the same object.
    let own = sent.into_iter().find(|sent| from_s3(sent).as_ref() == Ok(record));
    own.cloned().unwrap_or_else(|| built(&message, record))
}

/// The objects that S3 always sends are present even if they are empty: functions with a type for
/// the event need them.
fn built(message: &Value, Record { event, time, region, object, .. }: &Record) -> Value {
    let of_eventbridge = |path: &str| secondary(message, path);
    let text = |text: &Option<String>| text.clone().map(Value::from);
    let known = |fields: Vec<(&str, Option<Value>)>| -> Value {
        let known = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(known.collect::<Map<_, _>>())
    };
    let event = Some(event).filter(|event| *event != CUSTOM);
    let arn = region.as_ref().map(|it| format!("arn:{}:s3:::{}", partition(it), object.bucket));
    known(vec![
        ("eventVersion", Some("2.1".into())),
        ("eventSource", Some("aws:s3".into())),
        ("awsRegion", text(region)),
        ("eventTime", text(time)),
        ("eventName", event.map(|event| event.as_str().into())),
        ("userIdentity", Some(json!({}))),
        (
            "requestParameters",
            Some(known(vec![(
                "sourceIPAddress",
                text(&of_eventbridge("detail.source-ip-address")),
            )])),
        ),
        (
            "responseElements",
            Some(known(vec![("x-amz-request-id", text(&of_eventbridge("detail.request-id")))])),
        ),
        (
            "s3",
            Some(json!({
                "s3SchemaVersion": "1.0",
                "bucket": known(vec![("name", Some(object.bucket.as_str().into())), ("arn", text(&arn))]),
                "object": known(vec![
                    ("key", Some(encoded(&object.key).into())),
                    ("size", object.size.map(Value::from)),
                    ("eTag", text(&object.etag)),
                    ("versionId", text(&object.version_id)),
                    ("sequencer", text(&object.sequencer)),
                ]),
            })),
        ),
    ])
}

/// The part of AWS that has the region.
pub fn partition(region: &str) -> &'static str {
    match region {
        china if china.starts_with("cn-") => "aws-cn",
        government if government.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// Encodes a key as S3 does in its notifications, and as functions decode it.
fn encoded(key: &str) -> String {
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'_')
        .remove(b'.')
        .remove(b'*')
        .remove(b'/')
        .remove(b' ');
    percent_encode(key.as_bytes(), ENCODED).to_string().replace(' ', "+")
}

#[cfg(test)]
mod tests {
    use super::super::notification::{Notification, parse};
    use super::super::object_from::ObjectFrom;
    use super::*;

    /// The sample of S3's User Guide, with values of Lambda's Developer Guide, "Process Amazon S3
    /// event notifications with Lambda".
    fn sample(key: &str) -> Value {
        json!({
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "awsRegion": "us-east-2",
            "eventTime": "2019-09-03T19:37:27.192Z",
            "eventName": "ObjectCreated:Put",
            "userIdentity": { "principalId": "AWS:AIDAINPONIXQXHT3IKHL2" },
            "requestParameters": { "sourceIPAddress": "205.255.255.255" },
            "responseElements": { "x-amz-request-id": "D82B88E5F771F645", "x-amz-id-2": "vlR7PnpV2Ce81l0PRw6j" },
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": "828aa6fc-f7b5-4305-8584-487c791949c1",
                "bucket": {
                    "name": "amzn-s3-demo-bucket",
                    "ownerIdentity": { "principalId": "A3I5XTEXAMAI3E" },
                    "arn": "arn:aws:s3:::amzn-s3-demo-bucket",
                },
                "object": {
                    "key": key,
                    "size": 1_305_107,
                    "eTag": "b21b84d653bb07b05b1e6b33684dc11b",
                    "versionId": "096fKKXTRTtl3on89fVO.nfljtsv6qko",
                    "sequencer": "0C0F6F405D6ED209E1",
                },
            },
        })
    }

    fn records(body: &Value) -> Vec<Record> {
        match parse(&body.to_string()).unwrap() {
            Notification::Records(records) | Notification::Objects(records) => records,
            Notification::Test => unreachable!("it names objects"),
        }
    }

    #[test]
    fn each_object_gets_its_own_record_of_a_notification_as_it_was_received() {
        let sent = ["red+flower.jpg", "b%2Bc", "unencoded é"].map(sample);
        let body = json!({ "Records": sent });
        let through_sns = json!({ "Type": "Notification", "Message": body.to_string() });
        for body in [body, through_sns] {
            let of_objects = records(&body).into_iter().rev();
            for (record, sent) in of_objects.zip(sent.iter().rev()) {
                assert_eq!(s3_record(&body.to_string(), &record), *sent);
            }
        }
    }

    /// Every path of a JSON value.
    fn paths(value: &Value, at: &str) -> Vec<String> {
        let Value::Object(fields) = value else { return vec![at.to_owned()] };
        let mut all: Vec<_> =
            fields.iter().flat_map(|(name, it)| paths(it, &format!("{at}/{name}"))).collect();
        if all.is_empty() {
            all.push(at.to_owned());
        }
        all
    }

    #[test]
    fn an_event_of_eventbridge_becomes_the_record_without_the_fields_that_it_does_not_have() {
        let body = json!({
            "detail-type": "Object Created", "source": "aws.s3",
            "time": "2025-03-14T09:26:53Z", "region": "eu-central-1",
            "detail": {
                "bucket": { "name": "amzn-s3-demo-bucket" },
                "object": {
                    "key": "a b+c/é*(1).csv", "size": 5, "etag": "b1946ac92492d2347c6235b4d2611184",
                    "version-id": "IYV3p45BT0ac8hjHg1houSdS1a.Mro8e", "sequencer": "617f08299329d189",
                },
                "request-id": "N4N7GDK58NMKJ12R", "requester": "123456789012",
                "source-ip-address": "203.0.113.7", "reason": "PutObject",
            },
        });
        let built = s3_record(&body.to_string(), &records(&body)[0]);
        let expected = json!({
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "awsRegion": "eu-central-1",
            "eventTime": "2025-03-14T09:26:53Z",
            "eventName": "ObjectCreated:Put",
            "userIdentity": {},
            "requestParameters": { "sourceIPAddress": "203.0.113.7" },
            "responseElements": { "x-amz-request-id": "N4N7GDK58NMKJ12R" },
            "s3": {
                "s3SchemaVersion": "1.0",
                "bucket": { "name": "amzn-s3-demo-bucket", "arn": "arn:aws:s3:::amzn-s3-demo-bucket" },
                "object": {
                    "key": "a+b%2Bc/%C3%A9*%281%29.csv",
                    "size": 5,
                    "eTag": "b1946ac92492d2347c6235b4d2611184",
                    "versionId": "IYV3p45BT0ac8hjHg1houSdS1a.Mro8e",
                    "sequencer": "617f08299329d189",
                },
            },
        });
        assert_eq!(built, expected);
        let (built, sample) = (paths(&built, ""), paths(&sample("k"), ""));
        let missing: Vec<_> = sample.iter().filter(|path| !built.contains(path)).collect();
        assert_eq!(
            missing,
            [
                "/responseElements/x-amz-id-2",
                "/s3/bucket/ownerIdentity/principalId",
                "/s3/configurationId",
                "/userIdentity/principalId",
            ]
        );
        // A function decodes the key, as leasehold does.
        let again = json!({ "Records": [expected] });
        assert_eq!(records(&again)[0].object.key, "a b+c/é*(1).csv");
    }

    #[test]
    fn an_object_without_an_event_has_a_record_of_what_is_known() {
        let from: ObjectFrom = "uri=/file".parse().unwrap();
        let body = json!({ "file": "s3://uploads/in/a b.csv" });
        let record = from.records(&body).unwrap().remove(0);
        assert_eq!(
            s3_record(&body.to_string(), &record),
            json!({
                "eventVersion": "2.1",
                "eventSource": "aws:s3",
                "userIdentity": {},
                "requestParameters": {},
                "responseElements": {},
                "s3": {
                    "s3SchemaVersion": "1.0",
                    "bucket": { "name": "uploads" },
                    "object": { "key": "in/a+b.csv" },
                },
            })
        );
    }
}
