//! The attempt history: an object in S3 for each failed attempt on a message.
//!
//! SQS messages cannot be changed, so a dead-letter queue has only the sent messages. The history
//! has the outcome of each delivery, in `<prefix>/<message id>/<receive count>.json`. (The idea is
//! RabbitMQ's `x-death`.)

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tracing::warn;

use super::logs::Identity;
use super::records::{exit_code, manifest, metrics, signal};
use crate::job::report::Ended;
use crate::job::s3_location::S3Location;
use crate::job::verdict::Settlement;
use crate::ports::ObjectWriter;

/// Writes one object for each failed attempt.
pub struct AttemptHistory {
    pub writer: Arc<dyn ObjectWriter>,
    pub location: S3Location,
    pub identity: Identity,
    /// How long writing a record may take: a stopping pod has little time.
    pub limit: Box<dyn Fn() -> Duration + Send + Sync>,
}

impl AttemptHistory {
    /// Adds an attempt that ended `now`, if it failed. An error only logs a warning.
    pub async fn add(&self, ended: &Ended, now: SystemTime) {
        let Some(record) = self.record(ended, now) else { return };
        let subject = &ended.subject;
        let limit = (self.limit)();
        let key =
            self.location.key(&format!("{}/{}.json", subject.message_id, subject.receive_count));
        let written = tokio::time::timeout(
            limit,
            self.writer.put(&self.location.bucket, &key, record.to_string().into_bytes()),
        )
        .await;
        if let Err(error) = written.unwrap_or_else(|_| Err(format!("no answer within {limit:?}"))) {
            warn!(message_id = %subject.message_id, error, "the attempt was not recorded");
        }
    }

    fn record(&self, ended: &Ended, now: SystemTime) -> Option<Value> {
        let Settlement::Kept(..) = &ended.settlement else { return None };
        let subject = &ended.subject;
        let object = subject.objects.first();
        Some(json!({
            "version": 1,
            "ended": humantime::format_rfc3339_seconds(now).to_string(),
            "message_id": subject.message_id.as_str(),
            "receive_count": subject.receive_count,
            "max_receive_count": subject.redrive.max_receive_count(),
            "final_attempt": subject.redrive.is_final(subject.receive_count),
            "job_id": self.identity.job_id,
            "pod_name": self.identity.pod_name,
            "bucket": object.map(|object| &object.bucket),
            "key": object.map(|object| &object.key),
            "job_type": subject.job_type,
            "outcome": ended.outcome(),
            "exit_code": ended.work.exit.and_then(exit_code),
            "signal": ended.work.exit.and_then(signal),
            "error": ended.error(),
            "next": ended.next(now),
            "total_s": ended.work.timings.total.as_secs_f64(),
            "stderr": ended.work.stderr_tail,
            "metrics": metrics(&ended.work.metrics),
            "published": ended.work.published.as_ref().map(manifest),
        }))
    }
}
