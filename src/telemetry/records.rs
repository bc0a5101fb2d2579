//! The log records about a message and about the end of the run.

use std::time::SystemTime;

use serde_json::{Value, json};
use tracing::{error, info, warn};

use crate::job::keep_reason::Severity;
use crate::job::notification::Object;
use crate::job::outcome::{CommandMetrics, Exit, Manifest, Published, WorkRecord};
use crate::job::report::{Ended, Subject, truncate_for_json};
use crate::job::run_outcome::RunOutcome;
use crate::job::verdict::Settlement;

/// Logs the record at the start of a message.
pub fn log_started(subject: &Subject) {
    let object = subject.objects.first();
    info!(
        message_id = %subject.message_id,
        receive_count = subject.receive_count,
        max_receive_count = subject.redrive.max_receive_count(),
        bucket = object.map(|object| object.bucket.as_str()),
        key = object.map(|object| object.key.as_str()),
        size = object.and_then(|object| object.size),
        objects = subject.objects.len(),
        job_type = subject.job_type,
        body_sha256 = subject.body_sha256,
        trace_id = trace_id(subject),
        "message started"
    );
}

/// Logs the wide record at the end of a message, `now`.
pub fn log_ended(ended: &Ended, now: SystemTime) {
    // `stderr_tail` is already in the log.
    let Ended { subject, settlement, progress, work } = ended;
    let WorkRecord {
        exit,
        reason,
        last_error: _,
        stderr_tail: _,
        timings,
        usage: used,
        published,
        metrics: reported,
    } = work;
    let object: Option<&Object> = subject.objects.first();
    let error = ended.error();
    // A macro, since tracing needs the level at compile time.
    macro_rules! record {
        ($level:ident, $text:literal) => {
            $level!(
                message_id = %subject.message_id,
                receive_count = subject.receive_count,
                max_receive_count = subject.redrive.max_receive_count(),
                bucket = object.map(|object| object.bucket.as_str()),
                key = object.map(|object| object.key.as_str()),
                size = object.and_then(|object| object.size),
                objects = subject.objects.len(),
                job_type = subject.job_type,
                body_sha256 = subject.body_sha256,
                trace_id = trace_id(subject),
                outcome = ended.outcome(),
                exit_code = exit.and_then(exit_code),
                signal = exit.and_then(signal),
                reason = reason.as_deref(),
                progress = progress.as_ref().and_then(|progress| progress.share),
                error = error.as_deref().map(|error| truncate_for_json(error, LONGEST_ERROR)),
                next = ended.next(now),
                receive_s = timings.receive.as_secs_f64(),
                fetch_s = timings.fetch.as_secs_f64(),
                turn_s = (!timings.turn.is_zero()).then(|| timings.turn.as_secs_f64()),
                command_s = timings.command.as_secs_f64(),
                publish_s = timings.publish.as_secs_f64(),
                settle_s = timings.settle.as_secs_f64(),
                total_s = timings.total.as_secs_f64(),
                cpu_s = used.map(|used| used.cpu.as_secs_f64()),
                peak_memory_bytes = used.and_then(|used| used.peak_memory),
                published = published.as_ref().map(|published| published.files),
                published_bytes = published.as_ref().map(|published| published.bytes),
                manifest = published.as_ref().map(manifest),
                metrics = (!reported.is_empty()).then(|| metrics(reported).to_string()),
                $text
            )
        };
    }
    let is_final = subject.redrive.is_final(subject.receive_count);
    match settlement {
        Settlement::Deleted(_) => record!(info, "message deleted"),
        Settlement::Kept(why, _) => match why.row().severity {
            Severity::AsPlanned => record!(info, "message kept"),
            Severity::Bug => record!(error, "message kept"),
            Severity::Failure if is_final => record!(error, "message kept"),
            Severity::Failure => record!(warn, "message kept"),
        },
    }
}

/// The stable fields of log records; the record at a message's end has nearly all of them. Other
/// records have further fields, which may change with their texts.
pub const FIELDS: [(&str, &str); 44] = [
    ("timestamp", "The time, RFC 3339"),
    ("level", "ERROR means that a person must act"),
    ("target", "The module that writes the record, or command for the command's output"),
    ("job_id", "The value of --job-id"),
    ("pod_name", "The value of --pod-name"),
    ("message_id", "The SQS message id"),
    ("receive_count", "How often the message was received; 1 is the first time"),
    ("max_receive_count", "The queue's maxReceiveCount"),
    ("bucket", "The bucket of the first object"),
    ("key", "The key of the first object, decoded"),
    ("size", "The size of the first object, in bytes"),
    ("objects", "How many objects the message is about"),
    ("job_type", "The job type, or default"),
    ("body_sha256", "The SHA-256 of the message's body, in hexadecimal"),
    ("trace_id", "The trace id of the sender's W3C trace context"),
    ("outcome", "What happened to the message, see the outcomes"),
    ("exit_code", "The exit code of the last command"),
    ("signal", "The signal that ended the last command"),
    ("reason", "The reason that the command wrote into JOB_RESULT_FILE"),
    ("progress", "The last progress that the command reported, from 0 to 1"),
    ("error", "Why the message was kept"),
    ("next", "What happens to the message next"),
    ("receive_s", "Duration of the receive request, in seconds"),
    ("fetch_s", "Duration of the downloads, in seconds"),
    (
        "turn_s",
        "How long the command had to wait for others to end, with --prefetch or --batch-size, in seconds",
    ),
    ("command_s", "Duration of the commands, in seconds"),
    ("publish_s", "Duration of the uploads, in seconds"),
    ("settle_s", "Duration of the delete or the release, in seconds"),
    ("total_s", "Duration from the receive to the end, in seconds"),
    ("cpu_s", "User and system CPU time of the commands, in seconds"),
    ("peak_memory_bytes", "Peak memory of the largest process of the commands, in bytes"),
    ("published", "How many files were uploaded"),
    ("published_bytes", "The total size of the uploaded files, in bytes"),
    ("manifest", "The first uploaded files, as JSON: to, bytes, checksum, etag"),
    ("metrics", "The numbers that the commands reported, as an object"),
    (
        "message",
        "The text of the record: message started, message deleted, message kept, exiting and others",
    ),
    ("stream", "For a line of the command's output: stdout or stderr"),
    ("line", "For a line of the command's output: the line"),
    (
        "event",
        "For a line of the command's output that is a JSON object: its fields, without message and level",
    ),
    ("name", "work, in records that are logged while the work runs"),
    ("text", "The text that the command reported with its progress"),
    (
        "stop_grace_s",
        "In the first record of a shutdown: how long the command has after SIGTERM, in seconds",
    ),
    ("exit", "In the record exiting: the exit code of leasehold itself"),
    (
        "dropped_lines",
        "In the last record: how many records were lost because the log was not read fast enough",
    ),
];

/// As JSON within JSON, in bytes. A container runtime splits records of more than 16 KiB, and a key
/// may take 6.
const LONGEST_MANIFEST: usize = 4 * 1024;
const LONGEST_ERROR: usize = 1536;

/// The first published files, as many as fit.
pub(super) fn manifest(published: &Manifest) -> String {
    let entry = |file: &Published| json!({ "to": file.to, "bytes": file.bytes, "checksum": file.checksum, "etag": file.etag });
    let mut entries: Vec<Value> = Vec::new();
    let mut manifest = Value::from(entries.clone()).to_string();
    for file in &published.first {
        entries.push(entry(file));
        let longer = Value::from(entries.clone()).to_string();
        if truncate_for_json(&longer, LONGEST_MANIFEST).len() < longer.len() {
            break;
        }
        manifest = longer;
    }
    manifest
}

/// A number is always written as a float (`5.0`), so that log systems give a field one type.
pub(super) fn metrics(reported: &CommandMetrics) -> Value {
    reported.iter().collect()
}

pub fn log_exiting(outcome: &RunOutcome) {
    let exit = outcome.exit_code();
    match outcome {
        RunOutcome::Finished => info!(exit, "exiting"),
        RunOutcome::Kept(why) => info!(exit, outcome = why.label(), "exiting"),
        RunOutcome::ReceiveFailed(_) | RunOutcome::ActorDied(_) | RunOutcome::SupervisorDied => {
            error!(exit, error = %outcome, "exiting");
        }
    }
}

fn trace_id(subject: &Subject) -> Option<&str> {
    subject.traceparent.as_deref()?.split('-').nth(1)
}

pub(super) fn exit_code(exit: Exit) -> Option<i32> {
    match exit {
        Exit::Code(code) => Some(code),
        Exit::Signal(_) | Exit::Handler(_) => None,
    }
}

pub(super) fn signal(exit: Exit) -> Option<i32> {
    match exit {
        Exit::Code(_) | Exit::Handler(_) => None,
        Exit::Signal(signal) => Some(signal),
    }
}

/// Messages with a given key, for tests.
#[cfg(test)]
pub(super) mod testing {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::job::delivery::{MessageId, Redrive, SqsAttributes};

    pub fn subject(key: &str) -> Subject {
        Subject {
            message_id: MessageId::new(key),
            receive_count: 2,
            redrive: Redrive::Unknown,
            sent_at: None,
            first_received_at: None,
            group_id: None,
            deduplication_id: None,
            idempotency_key: None,
            traceparent: None,
            attributes: BTreeMap::new(),
            sqs: SqsAttributes::default(),
            body_sha256: String::new(),
            job_type: None,
            objects: Vec::new(),
        }
    }

    pub fn ended(key: &str, settlement: Settlement) -> Ended {
        Ended {
            subject: Arc::new(subject(key)),
            settlement,
            progress: None,
            work: WorkRecord::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::testing::ended;
    use super::*;
    use crate::job::keep_reason::KeepReason;
    use crate::job::verdict::Return;

    /// With the longest values.
    #[test]
    fn a_record_is_not_split_by_a_container_runtime() {
        let published = |n: u64| Published {
            to: format!("s3://results/{}/{n}", "ü".repeat(400)),
            bytes: u64::MAX,
            checksum: Some("CRC64NVME:sB0ELBDWEWM=".to_owned()),
            etag: Some("x".repeat(40)),
        };
        let object = Object {
            bucket: "b".repeat(63),
            key: "\u{1}".repeat(1024),
            version_id: None,
            etag: None,
            size: Some(u64::MAX),
            sequencer: None,
            is_from_aws: false,
        };
        let settlement =
            Settlement::Kept(KeepReason::FetchFailed("\"".repeat(100_000)), Return::Unknown);
        let mut ended = ended("m", settlement);
        Arc::make_mut(&mut ended.subject).objects = vec![object];
        ended.work.reason = Some("\u{1}".repeat(500));
        for n in 0..CommandMetrics::MOST {
            ended.work.metrics.set(&format!("{n:n>40}"), -1.234_567_890_123_456_7e-300).unwrap();
        }
        ended.work.published =
            Some(Manifest { files: 20, bytes: 1, first: (0..20).map(published).collect() });
        let record: Arc<Mutex<Vec<u8>>> = Arc::default();
        let out = record.clone();
        let writer = move || Shared(out.clone());
        tracing::subscriber::with_default(
            tracing_subscriber::fmt().json().with_writer(writer).finish(),
            || {
                log_ended(&ended, SystemTime::now());
            },
        );
        let record = record.lock().unwrap();
        // Without the identity, which every record has.
        assert!((10_000..15_800).contains(&record.len()), "{} bytes", record.len());
        let fields: Value = serde_json::from_slice(&record).unwrap();
        let known = |name: &String| FIELDS.iter().any(|(field, _)| field == name);
        assert!(fields["fields"].as_object().unwrap().keys().all(known), "{}", fields["fields"]);
        let manifest: Value =
            serde_json::from_str(fields["fields"]["manifest"].as_str().unwrap()).unwrap();
        assert_eq!(manifest.as_array().map(Vec::len), Some(4));
    }

    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
