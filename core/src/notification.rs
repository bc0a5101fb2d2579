//! The events and objects in a message body.
//!
//! Architecture invariant: only this file knows the quirks of envelopes and encodings. A body is
//! one of these, recognised by its keys; any other is kept without guessing:
//!
//! | Sent by | Keys | Its object keys are |
//! |---|---|---|
//! | S3, or S3 through SNS with raw delivery | `Records` | form-url-encoded |
//! | S3, when notifications are configured | `Event`: `s3:TestEvent` | |
//! | EventBridge | `detail-type`, `detail` | plain |
//! | SQS's or SNS's Extended Client | an array: the class of its pointer, `s3BucketName` and `s3Key` | plain |
//! | SNS | `Type`: `Notification`, `Message` | as in its message, which is one of the above |
//!
//! [`ObjectFrom`](super::object_from::ObjectFrom) finds the objects of other bodies.
//!
//! Sources: S3 User Guide, "Event message structure" and "EventBridge event message structure"; SNS
//! Developer Guide, "Parsing message formats"; `PayloadS3Pointer` of
//! awslabs/payload-offloading-java-common-lib-for-aws. Both S3 pages define versions in the same
//! way: the major version must be the known one; a new minor version adds fields and event types,
//! to be ignored.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::s3_location::is_bucket_name;

/// A parsed message body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// `s3:TestEvent`.
    Test,
    /// One entry per record, in order; never empty.
    Records(Vec<Record>),
    /// Objects that the message names without an event, in order; never empty. They are always
    /// work.
    Objects(Vec<Record>),
}

/// An event of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// S3's name without its `s3:`, such as `ObjectCreated:Put`; [`CUSTOM`] without an event.
    pub event: String,
    /// When it happened, as its sender writes it: RFC 3339.
    pub time: Option<String>,
    /// The region of the bucket.
    pub region: Option<String>,
    pub object: Object,
    /// The object's key as sent, if decoding changed it. A sender that does not encode means this
    /// one, and a key such as `a+b` does not show which is meant.
    pub key_as_sent: Option<String>,
}

/// The event of an object that a message names without an event.
pub const CUSTOM: &str = "Custom";

/// An object as the event describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub bucket: String,
    /// Decoded, if its sender encodes keys.
    pub key: String,
    pub version_id: Option<String>,
    /// Without quotes.
    pub etag: Option<String>,
    /// In bytes.
    pub size: Option<u64>,
    /// Orders the events of one key; hexadecimal.
    pub sequencer: Option<String>,
    /// The event names AWS as its source, or the message has no event. Other stores name themselves,
    /// and some send a wrong size.
    pub is_from_aws: bool,
}

impl Object {
    /// Checks that the object is in one of these buckets; without buckets, any is right.
    pub fn check_bucket(&self, buckets: &[String]) -> Result<(), String> {
        if buckets.is_empty() || buckets.contains(&self.bucket) {
            return Ok(());
        }
        Err(format!("bucket {} is not in --buckets {}", self.bucket, buckets.join(",")))
    }

    /// An object of which only the name is known.
    pub fn named(bucket: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            key: key.into(),
            version_id: None,
            etag: None,
            size: None,
            sequencer: None,
            is_from_aws: false,
        }
    }
}

/// Why a body is not an S3 notification. Never quotes the body, which may contain private data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotANotification(pub String);

/// Parses a message body: all of its records, or the first reason why it is not an S3 notification.
///
/// An empty `Records` is such a reason: S3 never sends it, so it does not prove that no work is
/// needed.
pub fn parse(body: &str) -> Result<Notification, NotANotification> {
    match unwrapped(body)? {
        (message, Sender::Sns) => {
            notification(&message).map_err(|why| invalid(format!("in SNS's Message: {why}")))
        }
        (body, Sender::Other) => notification(&body),
    }
}

/// The JSON of a message: the body, or the `Message` of SNS in it.
pub fn message(body: &str) -> Result<Value, NotANotification> {
    unwrapped(body).map(|(message, _)| message)
}

/// Where the Extended Client has moved the body, if it is a pointer of that client, also inside
/// SNS's `Message`.
pub fn payload(body: &str) -> Option<Object> {
    // Most bodies are not pointers, and are not parsed here.
    if !POINTER_CLASSES.iter().any(|class| body.contains(class)) {
        return None;
    }
    let pointer = extended_client_pointer(&message(body).ok()?)?;
    pointer.ok().map(|record| record.object)
}

enum Sender {
    Sns,
    Other,
}

/// Only one level: S3 and EventBridge never send a Message within a Message.
fn unwrapped(body: &str) -> Result<(Value, Sender), NotANotification> {
    // Some tools write a byte order mark; RFC 8259, 8.1 permits ignoring it.
    let body = json(body.strip_prefix('\u{feff}').unwrap_or(body), "the body")?;
    match text(&body, "Type")?.as_deref() {
        Some("Notification") => {
            Ok((json(&required(&body, "Message")?, "SNS's Message")?, Sender::Sns))
        }
        Some("SubscriptionConfirmation") => {
            Err(invalid("it is an SNS subscription confirmation; confirm the subscription"))
        }
        Some(_) | None => Ok((body, Sender::Other)),
    }
}

fn notification(body: &Value) -> Result<Notification, NotANotification> {
    if let Some(records) = body.get("Records") {
        let records = records.as_array().ok_or_else(|| invalid("Records is not an array"))?;
        if records.is_empty() {
            return Err(invalid("Records is empty"));
        }
        let numbered = records.iter().enumerate();
        numbered
            .map(|(i, record)| {
                from_s3(record).map_err(|why| invalid(format!("in Records[{i}]: {why}")))
            })
            .collect::<Result<_, _>>()
            .map(Notification::Records)
    } else if let Some(pointer) = extended_client_pointer(body) {
        Ok(Notification::Objects(vec![pointer?]))
    } else if body["Event"] == "s3:TestEvent" {
        Ok(Notification::Test)
    } else if body.get("detail-type").is_some() {
        Ok(Notification::Records(vec![from_eventbridge(body)?]))
    } else {
        Err(invalid(
            "it has neither Records (S3), nor detail-type (EventBridge), nor Event (S3's test event)",
        ))
    }
}

/// One entry of S3's `Records`.
pub(super) fn from_s3(record: &Value) -> Result<Record, NotANotification> {
    // Other stores use their own name (`minio:s3`, `ceph:s3`) and their own versions; messages
    // written by hand may have neither.
    let source = text(record, "eventSource")?;
    if source.as_ref().is_some_and(|source| !source.ends_with(":s3")) {
        return Err(invalid("eventSource is not aws:s3"));
    }
    let is_from_aws = source.as_ref().is_some_and(|source| source == "aws:s3");
    if is_from_aws || source.is_none() {
        require_major(record, "eventVersion", "2")?;
    }
    let event = required(record, "eventName")?;
    let sent = required(record, "s3.object.key")?;
    let key = within_limits(decoded(&sent))?;
    Ok(Record {
        event: event
            .strip_prefix("s3:")
            .filter(|name| !name.is_empty())
            .unwrap_or(&event)
            .to_owned(),
        time: secondary(record, "eventTime"),
        region: secondary(record, "awsRegion"),
        key_as_sent: (key != sent).then(|| sent.into_owned()),
        object: Object {
            bucket: bucket(required(record, "s3.bucket.name")?)?,
            key,
            version_id: header_value(record, "s3.object.versionId")?,
            etag: header_value(record, "s3.object.eTag")?.and_then(|etag| unquoted(&etag)),
            size: size(record, "s3.object.size"),
            sequencer: secondary(record, "s3.object.sequencer"),
            is_from_aws,
        },
    })
}

/// EventBridge's only entry.
///
/// Its key is not decoded. AWS's page does not document this, but a program that tried both with
/// keys such as `%2B%20%%%.png` found that only this works
/// (aws-solutions-library-samples/guidance-for-medialake-on-aws#21).
fn from_eventbridge(body: &Value) -> Result<Record, NotANotification> {
    if text(body, "source")?.as_deref() != Some("aws.s3") {
        return Err(invalid("source is not aws.s3"));
    }
    require_major(body, "detail.event-version", "1")?;
    let (reason, deletion) = (text(body, "detail.reason")?, text(body, "detail.deletion-type")?);
    Ok(Record {
        event: s3_name(&required(body, "detail-type")?, reason.as_deref(), deletion.as_deref())
            .into_owned(),
        time: secondary(body, "time"),
        region: secondary(body, "region"),
        key_as_sent: None,
        object: Object {
            bucket: bucket(required(body, "detail.bucket.name")?)?,
            key: within_limits(required(body, "detail.object.key")?.into_owned())?,
            version_id: header_value(body, "detail.object.version-id")?,
            etag: header_value(body, "detail.object.etag")?.and_then(|etag| unquoted(&etag)),
            size: size(body, "detail.object.size"),
            sequencer: secondary(body, "detail.object.sequencer"),
            is_from_aws: true,
        },
    })
}

/// The Extended Client's names for its pointer: the present one, and that of version 1.
const POINTER_CLASSES: [&str; 2] = [
    "software.amazon.payloadoffloading.PayloadS3Pointer",
    "com.amazon.sqs.javamessaging.MessageS3Pointer",
];

/// The object that the Extended Client wrote in place of a long message. [`payload`] finds it
/// before the message is parsed; here, it is the job's object, because its content is not a message
/// that names objects. `None` if the body is not such a pointer.
fn extended_client_pointer(body: &Value) -> Option<Result<Record, NotANotification>> {
    let [class, pointer] = body.as_array()?.as_slice() else { return None };
    class.as_str().filter(|class| POINTER_CLASSES.contains(class))?;
    let object = || {
        named(Sent {
            bucket: bucket(required(pointer, "s3BucketName")?)?,
            key: required(pointer, "s3Key")?.into_owned(),
            version_id: None,
            etag: None,
            size: None,
        })
    };
    Some(object())
}

/// An object as a message without an event names it.
pub(super) struct Sent {
    pub bucket: String,
    pub key: String,
    pub version_id: Option<String>,
    pub etag: Option<String>,
    pub size: Option<u64>,
}

/// An object that a message names without an event.
pub(super) fn named(sent: Sent) -> Result<Record, NotANotification> {
    let Sent { bucket, key, version_id, etag, size } = sent;
    Ok(Record {
        event: CUSTOM.to_owned(),
        time: None,
        region: None,
        key_as_sent: None,
        object: Object {
            bucket,
            key: within_limits(key)?,
            version_id,
            etag,
            size,
            sequencer: None,
            is_from_aws: true,
        },
    })
}

/// S3's own name for an event from EventBridge.
///
/// An unknown reason stays in its family, as `Other`. An unknown event type keeps its name, without
/// spaces; its message is kept.
fn s3_name<'a>(detail_type: &'a str, reason: Option<&str>, deletion: Option<&str>) -> Cow<'a, str> {
    let name = match (detail_type, reason, deletion) {
        ("Object Created", Some("PutObject"), _) => "ObjectCreated:Put",
        ("Object Created", Some("POST Object"), _) => "ObjectCreated:Post",
        ("Object Created", Some("CopyObject"), _) => "ObjectCreated:Copy",
        ("Object Created", Some("CompleteMultipartUpload"), _) => {
            "ObjectCreated:CompleteMultipartUpload"
        }
        ("Object Created", _, _) => "ObjectCreated:Other",
        ("Object Deleted", Some("Lifecycle Expiration"), Some("Permanently Deleted")) => {
            "LifecycleExpiration:Delete"
        }
        ("Object Deleted", Some("Lifecycle Expiration"), Some("Delete Marker Created")) => {
            "LifecycleExpiration:DeleteMarkerCreated"
        }
        ("Object Deleted", Some("Lifecycle Expiration"), _) => "LifecycleExpiration:Other",
        ("Object Deleted", _, Some("Permanently Deleted")) => "ObjectRemoved:Delete",
        ("Object Deleted", _, Some("Delete Marker Created")) => "ObjectRemoved:DeleteMarkerCreated",
        ("Object Deleted", _, _) => "ObjectRemoved:Other",
        ("Object Restore Initiated", _, _) => "ObjectRestore:Post",
        ("Object Restore Completed", _, _) => "ObjectRestore:Completed",
        ("Object Restore Expired", _, _) => "ObjectRestore:Delete",
        ("Object Storage Class Changed", _, _) => "LifecycleTransition",
        ("Object Access Tier Changed", _, _) => "IntelligentTiering",
        ("Object ACL Updated", _, _) => "ObjectAcl:Put",
        ("Object Tags Added", _, _) => "ObjectTagging:Put",
        ("Object Tags Deleted", _, _) => "ObjectTagging:Delete",
        ("Object Annotation Created", _, _) => "ObjectAnnotation:Put",
        ("Object Annotation Removed", _, _) => "ObjectAnnotation:Delete",
        (other, _, _) => return other.replace(' ', "").into(),
    };
    name.into()
}

/// Decodes a key once, as S3 encodes it: a space as `+`, and all unusual characters as `%` and the
/// hexadecimal bytes of their UTF-8.
///
/// Some stores and senders do not encode. A key with a character that every encoder replaces is not
/// decoded, because the result would be the key of another object.
fn decoded(key: &str) -> String {
    let is_unencoded_byte = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte);
    let begins_with_hex = |text: &str| {
        text.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    };
    let is_encoded =
        key.bytes().all(is_unencoded_byte) && key.split('%').skip(1).all(begins_with_hex);
    if !is_encoded {
        return key.to_owned();
    }
    // S3's keys are UTF-8: a key that decodes to anything else was not encoded.
    percent_decode_str(&key.replace('+', " "))
        .decode_utf8()
        .map_or_else(|_| key.to_owned(), Cow::into_owned)
}

/// S3 User Guide, "Naming Amazon S3 objects": a key is 1 to 1,024 bytes long.
fn within_limits(key: String) -> Result<String, NotANotification> {
    const LONGEST: usize = 1024;
    match key.len() {
        1..=LONGEST => Ok(key),
        bytes => {
            Err(invalid(format!("the object's key has {bytes} bytes; S3 allows 1 to {LONGEST}")))
        }
    }
}

/// Only a plain name: with an ARN, or a name with a slash, the message would choose the host that
/// gets the request.
pub(super) fn bucket(name: Cow<'_, str>) -> Result<String, NotANotification> {
    if is_bucket_name(&name) {
        Ok(name.into_owned())
    } else {
        Err(invalid("the bucket's name is not valid"))
    }
}

/// A version's id or an eTag. Both go into a request, and the SDK panics on values that are not
/// valid there. S3 User Guide, "How S3 Versioning works": an id is at most 1,024 bytes long.
fn header_value(json: &Value, path: &str) -> Result<Option<String>, NotANotification> {
    for_header(text(json, path)?, path)
}

pub(super) fn for_header(
    value: Option<Cow<'_, str>>,
    path: &str,
) -> Result<Option<String>, NotANotification> {
    match value {
        Some(value) if value.len() > 1024 || value.chars().any(char::is_control) => Err(invalid(
            format!("{path} is longer than 1,024 bytes or contains control characters"),
        )),
        value => Ok(value.map(Cow::into_owned)),
    }
}

/// Not needed for the work, so an invalid value is not a reason to refuse the message.
pub(super) fn secondary(json: &Value, path: &str) -> Option<String> {
    text(json, path).ok().flatten().map(Cow::into_owned)
}

/// S3's HTTP answers quote eTags, and some stores copy the quotes into their events; a proxy may
/// have made the eTag weak.
pub(super) fn unquoted(etag: &str) -> Option<String> {
    Some(etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"'))
        .filter(|etag| !etag.is_empty())
        .map(str::to_owned)
}

/// In Ceph's manual, sizes are text. An invalid size is not a reason to refuse the message.
fn size(json: &Value, path: &str) -> Option<u64> {
    size_of(at(json, path)?)
}

pub(super) fn size_of(size: &Value) -> Option<u64> {
    size.as_u64().or_else(|| size.as_str()?.parse().ok())
}

/// Refuses another major version than `major`. In messages written by hand the version may be
/// missing or a number.
fn require_major(json: &Value, path: &str, major: &str) -> Result<(), NotANotification> {
    let version = match at(json, path) {
        Some(Value::Number(number)) => Some(Cow::Owned(number.to_string())),
        Some(_) | None => text(json, path)?,
    };
    match version {
        Some(version) if version.split('.').next() != Some(major) => {
            Err(invalid(format!("{path} is not {major}.x")))
        }
        Some(_) | None => Ok(()),
    }
}

fn required<'a>(json: &'a Value, path: &str) -> Result<Cow<'a, str>, NotANotification> {
    text(json, path)?.ok_or_else(|| invalid(format!("{path} is missing")))
}

/// The text at a path such as `s3.bucket.name`; `None` if it is absent, null or empty. A whole
/// number counts as its digits, because some tools turn a text of digits into a number.
fn text<'a>(json: &'a Value, path: &str) -> Result<Option<Cow<'a, str>>, NotANotification> {
    text_of(at(json, path), path)
}

/// The same for a value that was found at `path`.
pub(super) fn text_of<'a>(
    value: Option<&'a Value>,
    path: &str,
) -> Result<Option<Cow<'a, str>>, NotANotification> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => {
            Ok(Some(Cow::Borrowed(text.as_str())).filter(|text| !text.is_empty()))
        }
        Some(Value::Number(number)) if !number.is_f64() => Ok(Some(Cow::Owned(number.to_string()))),
        Some(_) => Err(invalid(format!("{path} is not a string"))),
    }
}

fn at<'a>(json: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(json, |json, key| json.get(key)).filter(|value| !value.is_null())
}

/// Parses JSON. The error has a position but not serde_json's own text, which may quote the body.
fn json(text: &str, what: &str) -> Result<Value, NotANotification> {
    serde_json::from_str(text).map_err(|error| {
        invalid(format!(
            "{what} is not valid JSON (line {}, column {})",
            error.line(),
            error.column()
        ))
    })
}

pub(super) fn invalid(why: impl Into<String>) -> NotANotification {
    NotANotification(why.into())
}
