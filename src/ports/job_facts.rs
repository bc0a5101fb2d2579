//! The facts about a job for its command. With [`result_file`](crate::work::result_file), this is
//! the public interface between leasehold and programs in any language, version 1.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// Unknown values are left out. A command finds the facts in `JOB_FILE` and, as `JOB_<NAME>`, in
/// its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobFacts {
    pub version: u32,
    pub id: String,
    #[serde(rename = "type")]
    pub job_type: String,
    pub message_id: String,
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
    /// This and the following fields are in the environment only.
    #[serde(skip)]
    pub job_file: PathBuf,
    #[serde(skip)]
    pub temporary: PathBuf,
    /// W3C Trace Context.
    #[serde(skip)]
    pub traceparent: Option<String>,
}

/// The facts about the object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObjectFacts {
    pub event: String,
    pub bucket: String,
    pub key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

impl JobFacts {
    /// The content of `JOB_FILE`.
    pub fn to_json(&self) -> String {
        Value::Object(self.fields()).to_string()
    }

    /// The same facts as variables.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let variable = |(name, value): (String, Value)| {
            let value = match value {
                Value::String(text) => text,
                other @ (Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::Array(_)
                | Value::Object(_)) => other.to_string(),
            };
            (OsString::from(format!("JOB_{}", name.to_uppercase())), OsString::from(value))
        };
        let mut env: Vec<_> =
            self.fields().into_iter().filter(|(name, _)| name != "version").map(variable).collect();
        // An S3 key may contain a NUL, which the environment cannot: such a fact is in the file
        // only.
        env.retain(|(_, value)| !value.as_encoded_bytes().contains(&0));
        env.push(("JOB_FILE".into(), self.job_file.clone().into()));
        env.push(("TMPDIR".into(), self.temporary.clone().into()));
        if let Some(traceparent) = &self.traceparent {
            env.push(("TRACEPARENT".into(), traceparent.into()));
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

fn rfc3339<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_rfc3339_seconds(*at))
}

fn path<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

#[expect(clippy::ref_option, reason = "serde gives the field")]
fn some_path<S: Serializer>(of: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    path(of.as_deref().unwrap_or(Path::new("")), to)
}
