//! The reports of a run: log records, metrics, the termination message that Kubernetes shows, and
//! the answers to probes.

pub mod attempts;
#[cfg(feature = "local")]
pub mod bars;
#[cfg(feature = "cli")]
mod json;
#[cfg(feature = "listen")]
pub mod listen;
#[cfg(feature = "cli")]
pub mod logs;
pub mod metrics;
pub mod panics;
pub mod plain;
#[cfg(feature = "pushgateway")]
pub mod push;
pub mod readiness;
pub mod records;
pub mod termination;
#[cfg(feature = "cli")]
mod text;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use serde::Deserialize;

use crate::job::delivery::MessageId;
use crate::job::report::{Ended, Held, Observation, Report, Subject};
use crate::job::run_outcome::RunOutcome;
use crate::job::verdict::Settlement;
use crate::ports::Telemetry;
use attempts::AttemptHistory;
use metrics::Metrics;
use readiness::Readiness;
use records::{log_ended, log_exiting, log_started};
use termination::{TerminationLog, TerminationMessage};

/// The identity of the pod, in every record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub job_id: String,
    pub pod_name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    Json,
    Text,
}

/// A pod's telemetry.
pub struct PodTelemetry {
    /// `None` if the pod is not only ours.
    termination_log: Option<TerminationLog>,
    attempts: Option<AttemptHistory>,
    /// None if they are neither served nor pushed.
    metrics: Option<Arc<Metrics>>,
    readiness: Arc<Readiness>,
    messages: Mutex<Messages>,
}

/// The candidates for the termination message.
#[derive(Default)]
struct Messages {
    /// In the order of their receive, each with the time when it becomes visible if the pod dies.
    in_progress: Vec<(Subject, Option<SystemTime>)>,
    /// The last kept message. It stays, even if others succeed, since it is why the pod fails.
    kept: Option<TerminationMessage>,
    /// The last deleted message.
    deleted: Option<TerminationMessage>,
}

impl Messages {
    /// The message of a pod that ends now; `None` if it received no message.
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
        termination_log: Option<TerminationLog>,
        attempts: Option<AttemptHistory>,
        metrics: Option<Arc<Metrics>>,
        readiness: Arc<Readiness>,
    ) -> Self {
        Self { termination_log, attempts, metrics, readiness, messages: Mutex::default() }
    }

    /// The final report: the common outcome of the pod's runs.
    pub fn exiting(&self, outcome: &RunOutcome) {
        log_exiting(outcome);
        let message = {
            let mut messages = self.messages();
            // If a message is still in progress, its actor has died, and the outcome reports that.
            messages.in_progress.clear();
            match outcome {
                RunOutcome::Finished => messages.termination_message().map(Cow::into_owned),
                RunOutcome::Kept(_) => messages.kept.clone(),
                RunOutcome::ReceiveFailed(_)
                | RunOutcome::ActorDied(_)
                | RunOutcome::SupervisorDied => None,
            }
        };
        if let Some(log) = &self.termination_log {
            log.write(&message.unwrap_or_else(|| TerminationMessage::exiting(outcome)));
        }
    }

    fn count(&self, what: impl FnOnce(&Metrics)) {
        self.metrics.as_deref().map(what).unwrap_or_default();
    }

    fn started(&self, subject: &Subject) {
        let mut messages = self.messages();
        messages.in_progress.push((subject.clone(), None));
        self.write(&messages);
    }

    fn held(&self, held: &Held, now: SystemTime) {
        let mut messages = self.messages();
        let message = messages
            .in_progress
            .iter_mut()
            .find(|(it, _)| it.message_id == held.subject.message_id);
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
        let Some(log) = &self.termination_log else { return };
        if let Some(message) = messages.termination_message() {
            log.write(&message);
        }
    }

    fn messages(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Telemetry for PodTelemetry {
    async fn report(&self, report: &Report) {
        match report {
            Report::Started(subject) => {
                self.readiness.hold(&subject.message_id);
                self.count(|metrics| metrics.started(subject, SystemTime::now()));
                log_started(subject);
                self.started(subject);
                if let Some(attempts) = &self.attempts {
                    attempts.begin(subject);
                }
            }
            Report::Held(held) => self.held(held, SystemTime::now()),
            // The work logs its progress itself, less often.
            Report::Progressed(progressed) => self.count(|metrics| metrics.progressed(progressed)),
            Report::Releasing(message) => self.readiness.release(message),
            Report::Ended(ended) => {
                let now = SystemTime::now();
                self.readiness.release(&ended.subject.message_id);
                self.count(|metrics| metrics.ended(ended));
                log_ended(ended, now);
                self.ended(ended, now);
                if let Some(attempts) = &self.attempts {
                    attempts.end(ended, now).await;
                }
            }
        }
    }

    fn record(&self, observation: Observation) {
        self.count(|metrics| metrics.record(observation));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::records::testing::{ended, subject};
    use super::*;
    use crate::job::keep_reason::KeepReason;
    use crate::job::verdict::{Completion, Return};

    /// Message, outcome, and how many others are in progress.
    fn reported(messages: &Messages) -> (String, String, u64) {
        let line = messages.termination_message().unwrap().to_line();
        let fields: Value = serde_json::from_str(&line).unwrap();
        let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
        (
            text("message_id"),
            text("outcome"),
            fields["others_in_progress"].as_u64().unwrap_or_default(),
        )
    }

    #[test]
    fn the_termination_message_prefers_messages_in_progress_to_kept_and_kept_to_deleted() {
        let home = tempfile::tempdir().unwrap();
        let readiness = Arc::new(Readiness::new(tokio_util::sync::CancellationToken::new()));
        let log = Some(TerminationLog::At(home.path().join("log")));
        let telemetry = PodTelemetry::new(log, None, None, readiness);
        let now = SystemTime::now();
        let kept = || Settlement::Kept(KeepReason::Stalled, Return::After(Duration::ZERO));
        let deleted = || Settlement::Deleted(Completion::Succeeded);
        let report = |id: &str, outcome: &str, others| (id.to_owned(), outcome.to_owned(), others);
        let is_now = |expected| {
            assert_eq!(reported(&telemetry.messages()), expected);
            let written = std::fs::read_to_string(home.path().join("log")).unwrap();
            assert_eq!(written, telemetry.messages().termination_message().unwrap().to_line());
        };

        for key in ["a", "b", "c"] {
            telemetry.started(&subject(key));
        }
        is_now(report("a", "in_progress", 2));
        telemetry.ended(&ended("a", kept()), now);
        is_now(report("b", "in_progress", 1));
        telemetry.ended(&ended("b", deleted()), now);
        is_now(report("c", "in_progress", 0));
        telemetry.held(
            &Held { subject: Arc::new(subject("c")), remaining: Duration::from_mins(2) },
            now,
        );
        telemetry.held(
            &Held { subject: Arc::new(subject("a")), remaining: Duration::from_mins(2) },
            now,
        );
        is_now(report("c", "in_progress", 0));
        telemetry.ended(&ended("c", deleted()), now);
        is_now(report("a", "stalled", 0));
        // The next message of the same pod (`--max-messages`).
        telemetry.started(&subject("d"));
        is_now(report("d", "in_progress", 0));
        telemetry.ended(&ended("d", deleted()), now);
        is_now(report("a", "stalled", 0));
        telemetry.exiting(&RunOutcome::Kept(KeepReason::Stalled));
        is_now(report("a", "stalled", 0));
    }
}
