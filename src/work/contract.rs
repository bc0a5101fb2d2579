//! What the command is given: with [`result_file`](super::result_file) the public interface between leasehold and programs in
//! any language, version 1.

use std::ffi::OsString;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::workspace::Workspace;
use crate::job::delivery::Redrive;
use crate::job::notification::Record;
use crate::job::report::Subject;
use crate::job::route::{Input, Task};

/// What a command is told about its job.
pub struct JobContext<'a> {
    pub job_id: &'a str,
    pub subject: &'a Subject,
    /// `None` if the body itself is the work.
    pub record: Option<&'a Record>,
    pub task: &'a Task,
    /// When the work will be halted.
    pub deadline: SystemTime,
    pub space: &'a Workspace,
}

impl JobContext<'_> {
    /// Writes `JOB_FILE` and returns the environment: the same facts, each as `JOB_<NAME>`.
    pub fn write(&self) -> Result<Vec<(OsString, OsString)>, String> {
        let facts = self.facts();
        let job_file = self.space.job_file();
        std::fs::write(&job_file, Value::Object(facts.clone()).to_string())
            .map_err(|error| format!("{}: {error}", job_file.display()))?;

        let variable = |(name, value): (String, Value)| {
            let value = match value {
                Value::String(text) => text,
                other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                    other.to_string()
                }
            };
            (OsString::from(format!("JOB_{}", name.to_uppercase())), OsString::from(value))
        };
        let mut env: Vec<_> = facts.into_iter().filter(|(name, _)| name != "version").map(variable).collect();
        // An S3 key may hold a NUL, which no environment can: such a fact is in the file only.
        env.retain(|(_, value)| !value.as_encoded_bytes().contains(&0));
        env.push(("JOB_FILE".into(), job_file.into()));
        env.push(("TMPDIR".into(), self.space.tmp().into()));
        if let Some(traceparent) = &self.subject.traceparent {
            env.push(("TRACEPARENT".into(), traceparent.into()));
        }
        Ok(env)
    }

    /// Only what is known is there: a name without a value is left out.
    fn facts(&self) -> Map<String, Value> {
        let Subject { message_id, receive_count, redrive, .. } = self.subject;
        let (event, object) = self.record.map(|record| (&record.event, &record.object)).unzip();
        let path = |path: &Path| json!(path.to_string_lossy());
        let facts = [
            ("version", json!(1)),
            ("id", json!(self.job_id)),
            ("type", json!(self.task.name)),
            ("message_id", json!(message_id.as_str())),
            ("event", json!(event)),
            ("bucket", json!(object.map(|object| &object.bucket))),
            ("key", json!(object.map(|object| &object.key))),
            ("version_id", json!(object.and_then(|object| object.version_id.as_ref()))),
            ("etag", json!(object.and_then(|object| object.etag.as_ref()))),
            ("size", json!(object.and_then(|object| object.size))),
            ("receive_count", json!(receive_count)),
            ("max_receive_count", json!(redrive.max_receive_count())),
            ("final_attempt", json!((*redrive != Redrive::Unknown).then(|| redrive.is_final(*receive_count)))),
            ("deadline", json!(humantime::format_rfc3339_seconds(self.deadline).to_string())),
            ("input", if self.task.input == Input::None { Value::Null } else { path(&self.space.input()) }),
            ("output_dir", path(&self.space.output())),
            ("checkpoint_dir", path(&self.space.checkpoint())),
            ("result_file", path(&self.space.result_file())),
        ];
        facts.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
