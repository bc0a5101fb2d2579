//! What the command is given and what it may say: the public interface between leasehold and programs in
//! any language, version 1.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::workspace::Workspace;
use crate::job::delivery::{Received, Redrive};
use crate::job::notification::Record;
use crate::job::report::Progress;
use crate::job::route::{Input, Task};
use crate::job::verdict::Said;

/// What a command is told about its job.
pub struct Given<'a> {
    pub job_id: &'a str,
    pub received: &'a Received,
    /// `None` if the body itself is the work.
    pub record: Option<&'a Record>,
    pub task: &'a Task,
    /// When the work will be halted.
    pub deadline: SystemTime,
    pub space: &'a Workspace,
    /// Will somebody publish what is written to `JOB_OUTPUT_DIR`?
    pub publishes: bool,
    /// Is what is written to `JOB_CHECKPOINT_DIR` there again for the next delivery?
    pub resumes: bool,
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
        let (event, object) = self.record.map(|record| (&record.event, &record.object)).unzip();
        let path = |path: &Path| json!(path.to_string_lossy());
        let facts = [
            ("version", json!(1)),
            ("id", json!(self.job_id)),
            ("type", json!(self.task.name)),
            ("message_id", json!(delivery.message_id.as_str())),
            ("event", json!(event)),
            ("bucket", json!(object.map(|object| &object.bucket))),
            ("key", json!(object.map(|object| &object.key))),
            ("version_id", json!(object.and_then(|object| object.version_id.as_ref()))),
            ("etag", json!(object.and_then(|object| object.etag.as_ref()))),
            ("size", json!(object.and_then(|object| object.size))),
            ("receive_count", json!(delivery.receive_count)),
            ("max_receive_count", json!(redrive.max_receive_count())),
            ("final_attempt", json!((*redrive != Redrive::Unknown).then(|| redrive.is_final(delivery.receive_count)))),
            ("deadline", json!(humantime::format_rfc3339_seconds(self.deadline).to_string())),
            ("input", if self.task.input == Input::None { Value::Null } else { path(&self.space.input()) }),
            ("output_dir", if self.publishes { path(&self.space.output()) } else { Value::Null }),
            ("checkpoint_dir", if self.resumes { path(&self.space.checkpoint()) } else { Value::Null }),
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
    #[serde(default, deserialize_with = "share")]
    progress: Option<f64>,
    text: Option<String>,
}

/// What the command left in its result file.
#[derive(Debug, Default, PartialEq)]
pub struct ResultFile {
    pub said: Said,
    pub progress: Option<Progress>,
}

/// What the complete lines of the result file say: of each field the last value counts, and a line that is not what it
/// should be says nothing. Only the file's end is read, however long it is.
pub fn read_result_file(path: &Path) -> ResultFile {
    let tail = || {
        // What the command put there may be a pipe, and opening or reading that may wait for ever.
        let mut file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LONGEST_TAIL)))?;
        let mut tail = Vec::new();
        file.take(LONGEST_TAIL).read_to_end(&mut tail)?;
        std::io::Result::Ok(String::from_utf8_lossy(&tail).into_owned())
    };
    let tail = tail().unwrap_or_default();
    let complete = tail.rfind('\n').map_or("", |end| &tail[..end]);
    let lines: Vec<ResultLine> = complete.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let short = |text: &String| text.chars().take(LONGEST_TEXT).collect();
    let share = lines.iter().rev().find_map(|line| line.progress);
    let text = lines.iter().rev().find_map(|line| line.text.as_ref().map(short));
    ResultFile {
        said: Said {
            retry_after: lines.iter().rev().find_map(|line| line.retry_after),
            reason: lines.iter().rev().find_map(|line| line.reason.as_ref().map(short)),
        },
        progress: (share.is_some() || text.is_some()).then_some(Progress { share, text }),
    }
}

/// A number from 0 to 1.
fn share<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    match Option::<f64>::deserialize(deserializer)? {
        Some(share) if !(0.0..=1.0).contains(&share) => Err(serde::de::Error::custom("not from 0 to 1")),
        share => Ok(share),
    }
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
const LONGEST_TEXT: usize = 500;

/// In bytes: thousands of lines.
const LONGEST_TAIL: u64 = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> ResultFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_result_file(file.path())
    }

    #[test]
    fn of_each_field_the_last_complete_line_wins() {
        let minutes = |n| Some(Duration::from_mins(n));
        let said = |text| read(text).said;
        assert_eq!(said("{\"retry_after\":\"5m\"}\n{\"retry_after\":120}\n").retry_after, minutes(2));
        assert_eq!(said("{\"retry_after\":\"5m\"}\n{\"retry_after\":\"9").retry_after, minutes(5));
        assert_eq!(said("{\"retry_after\":\"5m\"}\nnonsense\n").retry_after, minutes(5));
        assert_eq!(said("{\"reason\":\"no columns\"}\n{\"progress\":1}\n").reason.as_deref(), Some("no columns"));
        assert_eq!(read("{\"retry_after\":-1}\n"), ResultFile::default());
        assert_eq!(read_result_file(Path::new("/nonexistent")), ResultFile::default());
    }

    #[test]
    fn progress_is_a_number_from_0_to_1_and_a_text() {
        let progress = |text: &str| read(text).progress.map(|progress| (progress.share, progress.text));
        let loading = Some("loading".to_owned());
        assert_eq!(progress("{\"progress\":0.4,\"text\":\"loading\"}\n"), Some((Some(0.4), loading.clone())));
        assert_eq!(progress("{\"text\":\"loading\"}\n{\"progress\":1}\n"), Some((Some(1.0), loading)));
        for nonsense in ["40", "-0.1", "\"0.4\"", "1e999"] {
            assert_eq!(progress(&format!("{{\"progress\":{nonsense}}}\n")), None, "{nonsense}");
        }
        assert_eq!(progress("{\"reason\":\"no columns\"}\n"), None);
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let pipe = home.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(read_result_file(&pipe)));
        assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(ResultFile::default()));
    }

    #[test]
    fn only_the_end_of_a_long_file_is_read() {
        let lines = "{\"reason\":\"first\"}\n".to_owned() + &"{\"progress\":0.5}\n".repeat(100_000);
        assert_eq!(read(&lines).said.reason, None);
        assert_eq!(read(&lines).progress.and_then(|progress| progress.share), Some(0.5));
    }
}
