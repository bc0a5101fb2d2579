//! What the command is given and what it may say: the public interface between leasehold and programs in
//! any language, version 1.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::workspace::Workspace;
use crate::job::delivery::Received;
use crate::job::notification::Record;
use crate::job::verdict::Said;

/// What a command is told about its job.
pub struct Given<'a> {
    pub job_id: &'a str,
    pub received: &'a Received,
    pub record: &'a Record,
    /// When the work will be halted.
    pub deadline: SystemTime,
    pub space: &'a Workspace,
    /// Will somebody publish what is written to `JOB_OUTPUT_DIR`?
    pub publishes: bool,
}

impl Given<'_> {
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
        if let Some(traceparent) = &self.received.delivery.traceparent {
            env.push(("TRACEPARENT".into(), traceparent.into()));
        }
        Ok(env)
    }

    /// Only what is known is there: a name without a value is left out.
    fn facts(&self) -> Map<String, Value> {
        let Received { delivery, redrive, .. } = self.received;
        let Record { event, object } = self.record;
        let path = |path: &Path| json!(path.to_string_lossy());
        let facts = [
            ("version", json!(1)),
            ("id", json!(self.job_id)),
            ("message_id", json!(delivery.message_id.as_str())),
            ("event", json!(event)),
            ("bucket", json!(object.bucket)),
            ("key", json!(object.key)),
            ("version_id", json!(object.version_id)),
            ("etag", json!(object.etag)),
            ("size", json!(object.size)),
            ("receive_count", json!(delivery.receive_count)),
            ("max_receive_count", json!(redrive.max_receive_count())),
            ("final_attempt", json!(redrive.is_final(delivery.receive_count))),
            ("deadline", json!(humantime::format_rfc3339_seconds(self.deadline).to_string())),
            ("input", path(&self.space.input())),
            ("output_dir", if self.publishes { path(&self.space.output()) } else { Value::Null }),
            ("result_file", path(&self.space.result_file())),
        ];
        facts.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// One line of `JOB_RESULT_FILE`.
#[derive(Deserialize)]
struct ResultLine {
    #[serde(default, deserialize_with = "duration")]
    retry_after: Option<Duration>,
    reason: Option<String>,
}

/// What the command left in its result file: the last complete line that is what it should be. A command
/// that says nothing, or nonsense, has said nothing.
pub fn said(result_file: &Path) -> Said {
    let Ok(text) = std::fs::read(result_file) else { return Said::default() };
    let text = String::from_utf8_lossy(&text);
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    let last = complete.lines().rev().find_map(|line| serde_json::from_str::<ResultLine>(line).ok());
    last.map_or_else(Said::default, |line| Said {
        retry_after: line.retry_after,
        reason: line.reason.map(|reason| reason.chars().take(LONGEST_REASON).collect()),
    })
}

/// `"5m"` or a number of seconds.
fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Raw {
        Text(String),
        Seconds(f64),
    }
    match Option::<Raw>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Raw::Text(text)) => humantime::parse_duration(&text).map(Some).map_err(serde::de::Error::custom),
        Some(Raw::Seconds(seconds)) => Duration::try_from_secs_f64(seconds).map(Some).map_err(serde::de::Error::custom),
    }
}

/// In characters: a reason goes into logs and a termination message of 4096 bytes.
const LONGEST_REASON: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    fn said_in(text: &str) -> Said {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        said(file.path())
    }

    #[test]
    fn the_last_complete_line_wins() {
        let minutes = |n| Some(Duration::from_mins(n));
        assert_eq!(said_in("{\"retry_after\":\"5m\"}\n{\"retry_after\":120}\n").retry_after, minutes(2));
        assert_eq!(said_in("{\"retry_after\":\"5m\"}\n{\"retry_after\":\"9").retry_after, minutes(5));
        assert_eq!(said_in("{\"retry_after\":\"5m\"}\nnonsense\n").retry_after, minutes(5));
        assert_eq!(said_in("{\"reason\":\"no columns\"}\n").reason.as_deref(), Some("no columns"));
        assert_eq!(said_in("{\"retry_after\":-1}\n"), Said::default());
        assert_eq!(said(Path::new("/nonexistent")), Said::default());
    }
}
