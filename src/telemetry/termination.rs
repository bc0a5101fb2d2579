//! The termination message, which `kubectl describe pod` shows for a terminated container.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use nix::fcntl::OFlag;
use serde_json::{Map, Value, json};
use tracing::warn;

use super::records::{exit_code, signal};
use crate::job::report::{Ended, Subject, clock_time};
use crate::job::run_outcome::RunOutcome;

/// The most that Kubernetes reads of a termination message, in bytes.
const MOST: usize = 4096;

/// The target of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminationLog {
    /// `/dev/termination-log`, which exists only in Kubernetes.
    Kubernetes,
    At(PathBuf),
}

impl TerminationLog {
    /// Replaces the previous message. An error only logs a warning.
    pub fn write(&self, message: &TerminationMessage) {
        let (path, create) = match self {
            Self::Kubernetes => (PathBuf::from("/dev/termination-log"), false),
            Self::At(path) => (path.clone(), true),
        };
        let write = || {
            let mut options = OpenOptions::new();
            // Truncated after the write: if we are killed in between, an old message is better than
            // none.
            options.write(true).truncate(false).create(create);
            // A FIFO without a reader, or with a slow one, must not block the run.
            options.custom_flags(OFlag::O_NONBLOCK.bits());
            let mut file = options.open(&path)?;
            let line = message.to_line();
            file.write_all(line.as_bytes())?;
            if file.metadata()?.is_file() { file.set_len(line.len() as u64) } else { Ok(()) }
        };
        match write() {
            Err(error) if create || error.kind() != std::io::ErrorKind::NotFound => {
                warn!(path = %path.display(), %error, "the termination message was not written");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// One JSON object.
#[derive(Debug, Clone)]
pub struct TerminationMessage {
    /// The most important first: if the message is too long, later fields are left out.
    fields: Vec<(&'static str, Value)>,
}

impl TerminationMessage {
    pub fn ended(ended: &Ended, now: SystemTime) -> Self {
        let subject = &ended.subject;
        let object = subject.objects.first();
        let fields = vec![
            ("outcome", json!(ended.outcome())),
            ("exit_code", json!(ended.work.exit.and_then(exit_code))),
            ("signal", json!(ended.work.exit.and_then(signal))),
            ("message_id", json!(subject.message_id.as_str())),
            ("receive_count", json!(subject.receive_count)),
            ("total_s", json!(ended.work.timings.total.as_secs_f64())),
            ("next", json!(ended.next(now))),
            ("bucket", json!(object.map(|object| &object.bucket))),
            ("key", json!(object.map(|object| &object.key))),
            ("error", json!(ended.error())),
            ("job_type", json!(subject.job_type)),
            ("size", json!(object.and_then(|object| object.size))),
            ("body_sha256", json!(subject.body_sha256)),
        ];
        Self { fields }
    }

    /// Written while the work runs: a killed pod cannot write another message.
    pub fn in_progress(subject: &Subject, others: usize, visible_at: Option<SystemTime>) -> Self {
        let object = subject.objects.first();
        let visible = match visible_at {
            Some(at) => format!("by {}", clock_time(at)),
            None => "when its visibility timeout ends".to_owned(),
        };
        let attempt = subject.attempt();
        let next = format!(
            "{attempt}; if this is the final report, the pod was killed and the message is visible again {visible}"
        );
        let fields = vec![
            ("outcome", json!("in_progress")),
            ("message_id", json!(subject.message_id.as_str())),
            ("receive_count", json!(subject.receive_count)),
            ("next", json!(next)),
            ("bucket", json!(object.map(|object| &object.bucket))),
            ("key", json!(object.map(|object| &object.key))),
            ("job_type", json!(subject.job_type)),
            ("size", json!(object.and_then(|object| object.size))),
            ("body_sha256", json!(subject.body_sha256)),
            ("others_in_progress", json!(Some(others).filter(|others| *others > 0))),
        ];
        Self { fields }
    }

    pub fn exiting(outcome: &RunOutcome) -> Self {
        let label = match outcome {
            RunOutcome::Finished => "nothing_received",
            RunOutcome::Kept(why) => why.label(),
            RunOutcome::ReceiveFailed(_) => "receive_failed",
            RunOutcome::ActorDied(_) | RunOutcome::SupervisorDied => "actor_died",
        };
        Self::new(label, outcome.exit_code(), &outcome.to_string())
    }

    /// For a run that ended before its first receive.
    pub fn new(outcome: &'static str, exit: u8, error: &str) -> Self {
        Self {
            fields: vec![
                ("outcome", json!(outcome)),
                ("exit", json!(exit)),
                ("error", json!(error)),
            ],
        }
    }

    /// The message as one line of valid JSON that is never too long: fields that do not fit are
    /// left out.
    pub fn to_line(&self) -> String {
        let mut line = Map::new();
        let mut length = "{}".len();
        for (name, value) in self.fields.iter().filter(|(_, value)| !value.is_null()) {
            // A comma follows, or the line's end.
            let more = name.len() + value.to_string().len() + "\"\":,".len();
            if length + more <= MOST {
                line.insert((*name).to_owned(), value.clone());
                length += more;
            }
        }
        Value::Object(line).to_string() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_uses_the_limit_of_kubernetes_but_does_not_exceed_it() {
        let line =
            |length: usize| TerminationMessage::new("x", 1, &"x".repeat(length)).to_line().len();
        let lengths: Vec<_> = (3900..4200).map(line).collect();
        assert_eq!(lengths.iter().max(), Some(&MOST));
    }

    #[test]
    fn a_shorter_message_replaces_a_longer_one_completely() {
        let home = tempfile::tempdir().unwrap();
        let log = TerminationLog::At(home.path().join("log"));
        for length in [1000, 10] {
            let message = TerminationMessage::new("x", 1, &"x".repeat(length));
            log.write(&message);
            assert_eq!(
                std::fs::read_to_string(home.path().join("log")).unwrap(),
                message.to_line()
            );
        }
    }

    #[test]
    fn a_fifo_gets_the_message_if_it_has_a_reader_and_never_blocks() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let message = TerminationMessage::new("x", 1, "y");
        let write = || {
            let (done, is_done) = std::sync::mpsc::channel();
            let (log, message) = (TerminationLog::At(path.clone()), message.clone());
            std::thread::spawn(move || {
                log.write(&message);
                let _ = done.send(());
            });
            is_done.recv_timeout(std::time::Duration::from_mins(1)).expect("the write returns");
        };
        write();
        let flags = OFlag::O_NONBLOCK.bits();
        let mut reader = OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
        write();
        let mut seen = String::new();
        std::io::Read::read_to_string(&mut reader, &mut seen).unwrap();
        assert_eq!(seen, message.to_line());
    }

    #[test]
    fn a_field_that_does_not_fit_is_left_out() {
        for length in [10, 4000, 4096, 100_000] {
            let fields = vec![
                ("outcome", json!("x")),
                ("error", json!("\u{1}".repeat(length))),
                ("size", json!(7)),
            ];
            let line = TerminationMessage { fields }.to_line();
            assert!(line.len() <= MOST, "{} bytes", line.len());
            let parsed: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(parsed["outcome"], "x");
            assert_eq!(parsed["size"], 7);
            assert_eq!(parsed.get("error").is_some(), length == 10, "length {length}");
        }
    }
}
