//! What a run tells, and where: log records, metrics, the termination message that Kubernetes shows, the probes' answers.

pub mod attempts;
pub mod bars;
pub mod listen;
pub mod logs;
pub mod metrics;
pub mod plain;
pub mod push;
pub mod termination;
mod text;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use serde_json::{Value, json};
use tracing::{error, info, warn};

use crate::job::delivery::MessageId;
use crate::job::keep_reason::Severity;
use crate::job::notification::Object;
use crate::job::outcome::{Exit, Manifest, Published, WorkRecord};
use crate::job::report::{Ended, Held, Observation, Report, Subject, as_json_fits};
use crate::job::run_outcome::RunOutcome;
use crate::job::verdict::Settlement;
use crate::ports::Telemetry;
use attempts::AttemptHistory;
use listen::Readiness;
use metrics::Metrics;
use termination::{TerminationLog, TerminationMessage};

/// A pod's telemetry.
pub struct PodTelemetry {
    termination_log: TerminationLog,
    attempts: Option<AttemptHistory>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    messages: Mutex<Messages>,
}

/// What the termination message may be about.
#[derive(Default)]
struct Messages {
    /// The first that was received first, each with the time when it is visible again if nothing happens any more.
    in_progress: Vec<(Subject, Option<SystemTime>)>,
    /// The last that was kept. It stays, whatever else succeeds: it is why the pod fails.
    kept: Option<TerminationMessage>,
    /// The last that was deleted.
    deleted: Option<TerminationMessage>,
}

impl Messages {
    /// What a pod that ends here is to leave behind; `None` if nothing was received.
    fn termination_message(&self) -> Option<Cow<'_, TerminationMessage>> {
        let ended = self.kept.as_ref().or(self.deleted.as_ref()).map(Cow::Borrowed);
        self.in_progress.first().map_or(ended, |(subject, visible_at)| {
            let others = self.in_progress.len() - 1;
            Some(Cow::Owned(TerminationMessage::in_progress(subject, others, *visible_at)))
        })
    }

    fn forget(&mut self, message: &MessageId) {
        self.in_progress.retain(|(subject, _)| subject.message_id != *message);
    }
}

impl PodTelemetry {
    pub fn new(
        termination_log: TerminationLog,
        attempts: Option<AttemptHistory>,
        metrics: Arc<Metrics>,
        readiness: Arc<Readiness>,
    ) -> Self {
        Self { termination_log, attempts, metrics, readiness, messages: Mutex::default() }
    }

    /// The last thing that is told: how all runs of the pod have ended together.
    pub fn left(&self, outcome: &RunOutcome) {
        log_left(outcome);
        let message = {
            let mut messages = self.messages();
            // Who is in the middle of something has died, and the outcome says so.
            messages.in_progress.clear();
            match outcome {
                RunOutcome::Finished => messages.termination_message().map(Cow::into_owned),
                RunOutcome::Kept(_) => messages.kept.clone(),
                RunOutcome::ReceiveFailed(_) | RunOutcome::ActorDied(_) | RunOutcome::SupervisorDied => None,
            }
        };
        self.termination_log.write(&message.unwrap_or_else(|| TerminationMessage::left(outcome)));
    }

    fn started(&self, subject: &Subject) {
        let mut messages = self.messages();
        messages.in_progress.push((subject.clone(), None));
        self.write(&messages);
    }

    fn held(&self, held: &Held, now: SystemTime) {
        let mut messages = self.messages();
        let message = messages.in_progress.iter_mut().find(|(it, _)| it.message_id == held.subject.message_id);
        if let Some((_, visible_at)) = message {
            *visible_at = Some(now + held.remaining);
            self.write(&messages);
        }
    }

    fn ended(&self, ended: &Ended, now: SystemTime) {
        let mut messages = self.messages();
        messages.forget(&ended.subject.message_id);
        let message = Some(TerminationMessage::ended(ended, now));
        match ended.settlement {
            Settlement::Deleted(_) => messages.deleted = message,
            Settlement::Kept(..) => messages.kept = message,
        }
        self.write(&messages);
    }

    fn write(&self, messages: &Messages) {
        if let Some(message) = messages.termination_message() {
            self.termination_log.write(&message);
        }
    }

    fn messages(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Telemetry for PodTelemetry {
    async fn tell(&self, report: &Report) {
        match report {
            Report::Started(subject) => {
                self.readiness.hold(&subject.message_id);
                self.metrics.started(subject, SystemTime::now());
                log_started(subject);
                self.started(subject);
            }
            Report::Held(held) => self.held(held, SystemTime::now()),
            // The log has it already, but not as often.
            Report::Progressed(progressed) => self.metrics.progressed(progressed),
            Report::LettingGo(message) => self.readiness.let_go(message),
            Report::Ended(ended) => {
                let now = SystemTime::now();
                self.readiness.let_go(&ended.subject.message_id);
                self.metrics.ended(ended);
                log_ended(ended, now);
                self.ended(ended, now);
                if let Some(attempts) = &self.attempts {
                    attempts.add(ended, now).await;
                }
            }
        }
    }

    fn record(&self, observation: Observation) {
        self.metrics.record(observation);
    }
}

/// One record at the start of a message.
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

/// One wide record at the end of a message, `now`.
pub fn log_ended(ended: &Ended, now: SystemTime) {
    // The last words were logged when they were said.
    let Ended { subject, settlement, progress, work } = ended;
    let WorkRecord { exit, reason: said, last_error: _, stderr_tail: _, timings: spent, usage: used, published } = work;
    let object: Option<&Object> = subject.objects.first();
    let error = ended.error();
    // tracing wants a level at compile time, and the fields each time.
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
                said = said.as_deref(),
                progress = progress.as_ref().and_then(|progress| progress.share),
                error = error.as_deref().map(|error| as_json_fits(error, LONGEST_ERROR)),
                next = ended.next(now),
                receive_s = spent.receive.as_secs_f64(),
                fetch_s = spent.fetch.as_secs_f64(),
                command_s = spent.command.as_secs_f64(),
                publish_s = spent.publish.as_secs_f64(),
                settle_s = spent.settle.as_secs_f64(),
                total_s = spent.total.as_secs_f64(),
                cpu_s = used.map(|used| used.cpu.as_secs_f64()),
                peak_memory_bytes = used.and_then(|used| used.peak_memory),
                published = published.as_ref().map(|published| published.files),
                published_bytes = published.as_ref().map(|published| published.bytes),
                manifest = published.as_ref().map(manifest),
                $text
            )
        };
    }
    let is_final = subject.redrive.is_final(subject.receive_count);
    match settlement {
        Settlement::Deleted(_) => record!(info, "message deleted"),
        Settlement::Kept(reason, _) => match reason.row().severity {
            Severity::AsPlanned => record!(info, "message kept"),
            Severity::Bug => record!(error, "message kept"),
            Severity::Failure if is_final => record!(error, "message kept"),
            Severity::Failure => record!(warn, "message kept"),
        },
    }
}

/// As JSON within JSON, in bytes. A container runtime cuts a record of more than 16 KiB in two, and a key alone may take 6.
const LONGEST_MANIFEST: usize = 4 * 1024;
const LONGEST_ERROR: usize = 2 * 1024;

/// The first of the published files, as many as fit.
fn manifest(published: &Manifest) -> String {
    let entry =
        |file: &Published| json!({ "to": file.to, "bytes": file.bytes, "checksum": file.checksum, "etag": file.etag });
    let mut entries: Vec<Value> = Vec::new();
    let mut manifest = Value::from(entries.clone()).to_string();
    for file in &published.first {
        entries.push(entry(file));
        let longer = Value::from(entries.clone()).to_string();
        if as_json_fits(&longer, LONGEST_MANIFEST).len() < longer.len() {
            break;
        }
        manifest = longer;
    }
    manifest
}

fn log_left(outcome: &RunOutcome) {
    let exit = outcome.exit_code();
    match outcome {
        RunOutcome::Finished => info!(exit, "leaving"),
        RunOutcome::Kept(why) => info!(exit, outcome = why.label(), "leaving"),
        RunOutcome::ReceiveFailed(_) | RunOutcome::ActorDied(_) | RunOutcome::SupervisorDied => {
            error!(exit, error = %outcome, "leaving");
        }
    }
}

fn trace_id(subject: &Subject) -> Option<&str> {
    subject.traceparent.as_deref()?.split('-').nth(1)
}

fn exit_code(exit: Exit) -> Option<i32> {
    match exit {
        Exit::Code(code) => Some(code),
        Exit::Signal(_) => None,
    }
}

fn signal(exit: Exit) -> Option<i32> {
    match exit {
        Exit::Code(_) => None,
        Exit::Signal(signal) => Some(signal),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::job::delivery::Redrive;
    use crate::job::keep_reason::KeepReason;
    use crate::job::verdict::{Completion, Return};

    fn subject(key: &str) -> Subject {
        Subject {
            message_id: MessageId::new(key),
            receive_count: 2,
            redrive: Redrive::Unknown,
            sent_at: None,
            idempotency_key: None,
            traceparent: None,
            body_sha256: String::new(),
            job_type: None,
            objects: Vec::new(),
        }
    }

    fn ended(key: &str, settlement: Settlement) -> Ended {
        Ended { subject: Arc::new(subject(key)), settlement, progress: None, work: WorkRecord::default() }
    }

    /// Message, outcome, and how many others are in progress.
    fn left_behind(messages: &Messages) -> (String, String, u64) {
        let line = messages.termination_message().unwrap().to_line();
        let fields: Value = serde_json::from_str(&line).unwrap();
        let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
        (text("message_id"), text("outcome"), fields["others_in_progress"].as_u64().unwrap_or_default())
    }

    #[test]
    fn what_is_in_progress_comes_before_what_was_kept_and_that_before_what_was_deleted() {
        let home = tempfile::tempdir().unwrap();
        let (log, _writing) = tracing_appender::non_blocking(std::io::sink());
        let metrics = Arc::new(Metrics::new("q", log.error_counter(), SystemTime::now()));
        let readiness = Arc::new(Readiness::new(tokio_util::sync::CancellationToken::new()));
        let told = PodTelemetry::new(TerminationLog::At(home.path().join("log")), None, metrics, readiness);
        let now = SystemTime::now();
        let kept = || Settlement::Kept(KeepReason::Stalled, Return::After(Duration::ZERO));
        let deleted = || Settlement::Deleted(Completion::Succeeded);
        let said = |id: &str, outcome: &str, others| (id.to_owned(), outcome.to_owned(), others);
        let is_now = |expected| {
            assert_eq!(left_behind(&told.messages()), expected);
            let written = std::fs::read_to_string(home.path().join("log")).unwrap();
            assert_eq!(written, told.messages().termination_message().unwrap().to_line());
        };

        for key in ["a", "b", "c"] {
            told.started(&subject(key));
        }
        is_now(said("a", "in_progress", 2));
        told.ended(&ended("a", kept()), now);
        is_now(said("b", "in_progress", 1));
        told.ended(&ended("b", deleted()), now);
        is_now(said("c", "in_progress", 0));
        told.held(&Held { subject: Arc::new(subject("c")), remaining: Duration::from_mins(2) }, now);
        told.held(&Held { subject: Arc::new(subject("a")), remaining: Duration::from_mins(2) }, now);
        is_now(said("c", "in_progress", 0));
        told.ended(&ended("c", deleted()), now);
        is_now(said("a", "stalled", 0));
        // The next message of the same pod (`--max-messages`).
        told.started(&subject("d"));
        is_now(said("d", "in_progress", 0));
        told.ended(&ended("d", deleted()), now);
        is_now(said("a", "stalled", 0));
        told.left(&RunOutcome::Kept(KeepReason::Stalled));
        is_now(said("a", "stalled", 0));
    }

    /// The end of a message with everything that is long.
    #[test]
    fn a_record_is_whole_for_a_container_runtime() {
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
        let settlement = Settlement::Kept(KeepReason::FetchFailed("\"".repeat(100_000)), Return::Unknown);
        let mut ended = ended("m", settlement);
        Arc::make_mut(&mut ended.subject).objects = vec![object];
        ended.work.reason = Some("\u{1}".repeat(500));
        ended.work.published = Some(Manifest { files: 20, bytes: 1, first: (0..20).map(published).collect() });
        let record: Arc<Mutex<Vec<u8>>> = Arc::default();
        let out = record.clone();
        let writer = move || Shared(out.clone());
        tracing::subscriber::with_default(tracing_subscriber::fmt().json().with_writer(writer).finish(), || {
            log_ended(&ended, SystemTime::now());
        });
        let record = record.lock().unwrap();
        // Less what every record has: who speaks.
        assert!((10_000..15_800).contains(&record.len()), "{} bytes", record.len());
        let fields: Value = serde_json::from_slice(&record).unwrap();
        let manifest: Value = serde_json::from_str(fields["fields"]["manifest"].as_str().unwrap()).unwrap();
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
