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

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use serde_json::{Value, json};
use tracing::{error, info, warn};

use crate::job::notification::Object;
use crate::job::report::{Ended, Manifest, Noted, Published, Report, Subject};
use crate::job::verdict::{Exit, KeepReason, RunOutcome, Settlement};
use crate::ports::Telemetry;
use attempts::AttemptHistory;
use listen::Readiness;
use metrics::Metrics;
use termination::{TerminationLog, TerminationMessage};

/// A pod's telemetry.
pub struct Told {
    termination_log: TerminationLog,
    attempts: Option<AttemptHistory>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    recorded: Mutex<Recorded>,
}

/// What the termination message is about.
#[derive(Default, PartialEq)]
enum Recorded {
    #[default]
    Nothing,
    /// A message that was deleted, the last of them.
    Deleted,
    /// The last message that was kept. It stays, whatever else succeeds: it is why the pod fails.
    Kept,
}

impl Told {
    pub fn new(
        termination_log: TerminationLog,
        attempts: Option<AttemptHistory>,
        metrics: Arc<Metrics>,
        readiness: Arc<Readiness>,
    ) -> Self {
        Self { termination_log, attempts, metrics, readiness, recorded: Mutex::default() }
    }

    /// The last thing that is told: how all runs of the pod have ended together.
    pub fn left(&self, outcome: &RunOutcome) {
        log_left(outcome);
        let recorded = self.recorded();
        let is_told = match outcome {
            RunOutcome::Finished => *recorded != Recorded::Nothing,
            RunOutcome::Kept(_) => *recorded == Recorded::Kept,
            RunOutcome::ReceiveFailed(_) | RunOutcome::ActorDied(_) | RunOutcome::SupervisorDied => false,
        };
        if !is_told {
            self.termination_log.write(&TerminationMessage::left(outcome));
        }
    }

    fn record(&self, ended: &Ended, now: SystemTime) {
        let mut recorded = self.recorded();
        let new = match ended.settlement {
            Settlement::Deleted(_) => Recorded::Deleted,
            Settlement::Kept(..) => Recorded::Kept,
        };
        if *recorded != Recorded::Kept || new == Recorded::Kept {
            self.termination_log.write(&TerminationMessage::ended(ended, now));
            *recorded = new;
        }
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Telemetry for Told {
    async fn tell(&self, report: &Report) {
        match report {
            Report::Started(subject) => {
                self.readiness.hold(&subject.message_id);
                self.metrics.started(subject, SystemTime::now());
                log_started(subject);
            }
            // The log has it already, but not as often.
            Report::Progressed(progressed) => self.metrics.progressed(progressed),
            Report::LettingGo(message) => self.readiness.let_go(message),
            Report::Ended(ended) => {
                let now = SystemTime::now();
                self.readiness.let_go(&ended.subject.message_id);
                self.metrics.ended(ended);
                log_ended(ended, now);
                self.record(ended, now);
                if let Some(attempts) = &self.attempts {
                    attempts.add(ended, now).await;
                }
            }
        }
    }

    fn note(&self, noted: Noted) {
        self.metrics.note(noted);
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
    let Ended { subject, settlement, exit, said, last_error: _, progress, last_words: _, spent, used, published } =
        ended;
    let object: Option<&Object> = subject.objects.first();
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
                error = ended.error(),
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
                manifest = published.as_ref().map(|published| manifest(published).to_string()),
                $text
            )
        };
    }
    match settlement {
        Settlement::Deleted(_) => record!(info, "message deleted"),
        Settlement::Kept(KeepReason::Stopped | KeepReason::HandedOver, _) => record!(info, "message kept"),
        Settlement::Kept(KeepReason::ActorDied(_), _) => record!(error, "message kept"),
        Settlement::Kept(..) if subject.redrive.is_final(subject.receive_count) => record!(error, "message kept"),
        Settlement::Kept(..) => record!(warn, "message kept"),
    }
}

/// The first of the published files.
fn manifest(published: &Manifest) -> Value {
    let entry =
        |file: &Published| json!({ "to": file.to, "bytes": file.bytes, "checksum": file.checksum, "etag": file.etag });
    published.first.iter().map(entry).collect()
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
