//! The facts about a job for its command. With [`result_file`](crate::work::result_file), this is
//! the public interface between leasehold and programs in any language, version 1.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::job::delivery::SqsAttributes;

/// Unknown values are left out. A command finds the facts in `JOB_FILE` and, as `JOB_<NAME>`, in
/// its environment, except the message attributes and the values that [do not fit](fits) there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobFacts {
    pub version: u32,
    pub id: String,
    #[serde(rename = "type")]
    pub job_type: String,
    pub message_id: String,
    #[serde(flatten)]
    pub message: MessageFacts,
    /// `None` if the body itself is the work.
    #[serde(flatten)]
    pub object: Option<ObjectFacts>,
    /// 1 = first attempt.
    pub receive_count: u32,
    /// The queue's `maxReceiveCount`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_receive_count: Option<u32>,
    /// Is this the last attempt before the dead-letter queue?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_attempt: Option<bool>,
    /// When the work will be halted.
    #[serde(serialize_with = "rfc3339")]
    pub deadline: SystemTime,
    /// `None` if the object is not fetched.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_path")]
    pub input: Option<PathBuf>,
    #[serde(serialize_with = "path")]
    pub output_dir: PathBuf,
    #[serde(serialize_with = "path")]
    pub checkpoint_dir: PathBuf,
    #[serde(serialize_with = "path")]
    pub result_file: PathBuf,
    #[serde(serialize_with = "path")]
    pub body_file: PathBuf,
    /// The record of S3's event, for a Lambda function with `--lambda-event s3`.
    #[serde(skip)]
    pub s3_record: Option<Value>,
    /// This and the following fields are in the environment only.
    #[serde(skip)]
    pub job_file: PathBuf,
    #[serde(skip)]
    pub temporary: PathBuf,
    /// W3C Trace Context.
    #[serde(skip)]
    pub traceparent: Option<String>,
    /// The sender's `tracestate`, if the traceparent is the sender's, too.
    #[serde(skip)]
    pub tracestate: Option<String>,
    /// W3C Baggage, from the sender.
    #[serde(skip)]
    pub baggage: Option<String>,
}

/// The facts about the message that its sender and the queue add to the body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MessageFacts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_group_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_deduplication_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_rfc3339")]
    pub sent_at: Option<SystemTime>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_rfc3339")]
    pub first_received_at: Option<SystemTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_url: Option<String>,
    /// The sender's message attributes; binary values in Base64. They are in `JOB_FILE` only: two
    /// names such as `a-b` and `a.b` would become one variable.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// For a Lambda function, which gets them in its event.
    #[serde(skip)]
    pub sqs: SqsAttributes,
}

/// The facts about the object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObjectFacts {
    pub event: String,
    /// As the event has it: RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    pub bucket: String,
    pub key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Orders the events of one key; hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequencer: Option<String>,
}

impl JobFacts {
    /// The variables of this interface whose names begin with `JOB_`. Other names with this prefix
    /// belong to the user.
    pub const VARIABLES: [&str; 28] = [
        "JOB_BODY_FILE",
        "JOB_BUCKET",
        "JOB_CHECKPOINT_DIR",
        "JOB_DEADLINE",
        "JOB_ETAG",
        "JOB_EVENT",
        "JOB_EVENT_TIME",
        "JOB_FILE",
        "JOB_FINAL_ATTEMPT",
        "JOB_FIRST_RECEIVED_AT",
        "JOB_ID",
        "JOB_INPUT",
        "JOB_KEY",
        "JOB_MAX_RECEIVE_COUNT",
        "JOB_MESSAGE_DEDUPLICATION_ID",
        "JOB_MESSAGE_GROUP_ID",
        "JOB_MESSAGE_ID",
        "JOB_OUTPUT_DIR",
        Self::PROGRESS_URL,
        "JOB_QUEUE_URL",
        "JOB_RECEIVE_COUNT",
        "JOB_REGION",
        "JOB_RESULT_FILE",
        "JOB_SENT_AT",
        "JOB_SEQUENCER",
        "JOB_SIZE",
        "JOB_TYPE",
        "JOB_VERSION_ID",
    ];

    /// Where a Lambda function reports progress; it stays the same for all of its jobs.
    pub const PROGRESS_URL: &str = "JOB_PROGRESS_URL";

    /// The content of `JOB_FILE`.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a struct of texts and numbers is an object")
    }

    /// The same facts as variables.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let variable = |(name, value): (String, Value)| {
            let value = match value {
                Value::String(text) => text,
                number @ (Value::Bool(_) | Value::Number(_)) => number.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => return None,
            };
            fits(&value).then(|| (variable_of(&name).into(), value.into()))
        };
        let fields = self.fields().into_iter().filter(|(name, _)| name != "version");
        let mut env: Vec<_> = fields.filter_map(variable).collect();
        env.push(("JOB_FILE".into(), self.job_file.clone().into()));
        env.push(("TMPDIR".into(), self.temporary.clone().into()));
        // OpenTelemetry, "Environment variables as context propagation carriers".
        for (name, value) in [
            ("TRACEPARENT", &self.traceparent),
            ("TRACESTATE", &self.tracestate),
            ("BAGGAGE", &self.baggage),
        ] {
            env.extend(value.iter().filter(|it| fits(it)).map(|it| (name.into(), it.into())));
        }
        env
    }

    fn fields(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            other => unreachable!("a struct of texts and numbers is an object: {other:?}"),
        }
    }
}

/// Examples, for tests of leasehold and of handlers.
#[cfg(any(test, feature = "testing"))]
impl JobFacts {
    /// The facts of a job without an object. Its files are in `home`.
    pub fn example(message_id: &str, home: &Path) -> Self {
        Self {
            version: 1,
            id: "test".to_owned(),
            job_type: "default".to_owned(),
            message_id: message_id.to_owned(),
            message: MessageFacts::default(),
            object: None,
            receive_count: 1,
            max_receive_count: None,
            final_attempt: None,
            deadline: SystemTime::UNIX_EPOCH,
            input: None,
            output_dir: home.join("output"),
            checkpoint_dir: home.join("checkpoint"),
            result_file: home.join("result.jsonl"),
            body_file: home.join("body"),
            s3_record: None,
            job_file: home.join("job.json"),
            temporary: home.to_owned(),
            traceparent: None,
            tracestate: None,
            baggage: None,
        }
    }

    /// An example in which every fact is known.
    #[cfg(any(test, feature = "internals"))]
    pub fn complete_example() -> Self {
        let text = || Some("x".to_owned());
        Self {
            message: MessageFacts {
                message_group_id: text(),
                message_deduplication_id: text(),
                sent_at: Some(SystemTime::UNIX_EPOCH),
                first_received_at: Some(SystemTime::UNIX_EPOCH),
                queue_url: text(),
                ..MessageFacts::default()
            },
            object: Some(ObjectFacts {
                event_time: text(),
                region: text(),
                version_id: text(),
                etag: text(),
                size: Some(1),
                sequencer: text(),
                ..ObjectFacts::example("k")
            }),
            max_receive_count: Some(5),
            final_attempt: Some(false),
            input: Some("input".into()),
            traceparent: text(),
            tracestate: text(),
            baggage: text(),
            ..Self::example("m", Path::new(""))
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl ObjectFacts {
    /// A new object of the bucket `test`.
    pub fn example(key: &str) -> Self {
        Self {
            event: "ObjectCreated:Put".to_owned(),
            event_time: None,
            region: None,
            bucket: "test".to_owned(),
            key: key.to_owned(),
            version_id: None,
            etag: None,
            size: None,
            sequencer: None,
        }
    }
}

fn variable_of(name: &str) -> String {
    ["JOB_", &name.to_ascii_uppercase()].concat()
}

/// May the value be in the environment? An environment cannot hold a NUL, a line break could begin
/// another line in a script, and the kernel limits the size. Other values are in the file only.
///
/// W3C Baggage, section 3.3.2, asks for 8,192 bytes; no other value needs more.
fn fits(value: &str) -> bool {
    const LONGEST: usize = 8192;
    value.len() <= LONGEST && !value.contains(char::is_control)
}

fn rfc3339<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_rfc3339_seconds(*at))
}

/// With milliseconds, which SQS counts.
#[expect(clippy::ref_option, reason = "serde gives the field")]
fn some_rfc3339<S: Serializer>(at: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => to.collect_str(&humantime::format_rfc3339_millis(*at)),
        None => to.serialize_none(),
    }
}

fn path<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

#[expect(clippy::ref_option, reason = "serde gives the field")]
fn some_path<S: Serializer>(of: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    path(of.as_deref().unwrap_or(Path::new("")), to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(key: &str) -> JobFacts {
        let attributes = [("k", "v"), ("bucket", "other"), ("A", "1\n2")];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        JobFacts {
            message: MessageFacts { attributes, ..MessageFacts::default() },
            object: Some(ObjectFacts::example(key)),
            tracestate: Some("a=1\nLD_PRELOAD=x".to_owned()),
            baggage: Some("b".repeat(8193)),
            ..JobFacts::example("m", Path::new(""))
        }
    }

    fn variable(facts: &JobFacts, name: &str) -> Option<OsString> {
        facts.environment().into_iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }

    #[test]
    fn long_values_and_control_characters_are_in_the_file_only() {
        for (key, is_variable) in [
            ("a b", true),
            ("", true),
            ("ü\u{2028}", true),
            ("a\nb", false),
            ("a\0b", false),
            ("a\u{1b}[2J", false),
            ("a\u{9b}b", false),
        ] {
            let facts = facts(key);
            assert_eq!(variable(&facts, "JOB_KEY").is_some(), is_variable, "{key:?}");
            let file: Value = serde_json::from_str(&facts.to_json()).unwrap();
            assert_eq!(file["key"], key);
        }
        let facts = facts("k");
        assert_eq!((variable(&facts, "TRACESTATE"), variable(&facts, "BAGGAGE")), (None, None));
    }

    #[test]
    fn a_job_with_all_facts_sets_every_variable() {
        let facts = JobFacts::complete_example();
        let mut names: Vec<_> = facts.environment().into_iter().map(|(name, _)| name).collect();
        names.retain(|name| name.as_encoded_bytes().starts_with(b"JOB_"));
        names.push(JobFacts::PROGRESS_URL.into());
        names.sort();
        assert_eq!(names, JobFacts::VARIABLES);
    }

    #[test]
    fn attributes_are_one_object_of_the_file_and_no_variables() {
        let facts = facts("k");
        let file: Value = serde_json::from_str(&facts.to_json()).unwrap();
        assert_eq!(
            file["attributes"],
            serde_json::json!({"k": "v", "bucket": "other", "A": "1\n2"})
        );
        assert_eq!(file["bucket"], "test");
        let names: Vec<_> = facts.environment().into_iter().map(|(name, _)| name).collect();
        for name in ["JOB_ATTRIBUTES", "JOB_K", "JOB_A", "JOB_ATTRIBUTES_K"] {
            assert!(!names.contains(&name.into()), "{name}");
        }
        assert_eq!(variable(&facts, "JOB_BUCKET"), Some("test".into()));
    }
}
