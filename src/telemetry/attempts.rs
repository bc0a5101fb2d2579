//! The attempt history: an object in S3 for each attempt on a message that did not succeed.
//!
//! SQS messages cannot be changed, so a dead-letter queue has only the sent messages. The history
//! has the outcome of each delivery, in `<prefix>/<message id>/<receive count>.json`. (The idea is
//! RabbitMQ's `x-death`.)
//!
//! A pod that is killed reports nothing. So the object is written when the work begins, and
//! replaced or deleted when it ends (`start.rs`). A later attempt finds the start record of a pod
//! that was killed, and records that (`died.rs`).

mod died;
mod start;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::Identity;
use super::metrics::Metrics;
use super::records::{exit_code, manifest, metrics, signal};
use crate::job::delivery::DeliveryId;
use crate::job::report::{Ended, Subject};
use crate::job::s3_location::S3Location;
use crate::job::verdict::Settlement;
use crate::ports::{MemoryUse, Records, Storage};

/// After this time without a sign of life, a pod is taken for dead: the interval of the signs, and
/// time for a slow write.
pub const SILENCE: Duration = start::SIGN_OF_LIFE.saturating_add(Duration::from_secs(15));

/// The outcomes of records that no pod wrote at the end of its own attempt.
pub const STARTED: &str = "started";
pub const DIED: &str = "died";

/// The limit of a request that the work does not wait for.
const REQUEST: Duration = Duration::from_secs(10);

/// Where the history is kept, and by which pod.
pub struct HistoryStore {
    pub storage: Arc<dyn Storage>,
    /// The same store.
    pub records: Arc<dyn Records>,
    pub location: S3Location,
    pub identity: Identity,
    /// The memory of the container; `None` if that is unknown.
    pub memory: Option<Box<dyn Fn() -> Option<MemoryUse> + Send + Sync>>,
    pub metrics: Option<Arc<Metrics>>,
    /// [`SILENCE`], or less where a pod is known to be dead.
    pub silence: Duration,
}

/// Writes the objects.
pub struct AttemptHistory {
    store: Arc<HistoryStore>,
    /// How long writing a record may take at the end of an attempt: a stopping pod has little time.
    limit: Box<dyn Fn() -> Duration + Send + Sync>,
    in_progress: Mutex<HashMap<DeliveryId, InProgress>>,
}

/// The requests during an attempt.
struct InProgress {
    ended: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl InProgress {
    /// Lets the requests in flight finish: a start record must not arrive after the end record.
    async fn end(self, limit: Duration) {
        self.ended.cancel();
        let _ = timeout(limit, self.task).await;
    }
}

impl AttemptHistory {
    pub fn new(store: HistoryStore, limit: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { store: Arc::new(store), limit: Box::new(limit), in_progress: Mutex::default() }
    }

    /// An attempt begins. Returns immediately.
    pub fn begin(&self, subject: &Arc<Subject>) {
        if subject.job_type.is_none() {
            // Without work, the end record comes at once.
            return;
        }
        let (store, subject) = (self.store.clone(), subject.clone());
        let (delivery, ended) = (subject.delivery(), CancellationToken::new());
        let until = ended.clone();
        let task = tokio::spawn(async move {
            tokio::join!(store.show_life(&subject, &until), store.find_dead(&subject, &until));
        });
        let mut in_progress = self.in_progress();
        // With `leasehold local`, a pod that was killed has left its own here. In a real pod, an
        // attempt that has lost its lease may still end its command.
        if self.store.silence < SILENCE {
            in_progress.retain(|other, _| other.message_id != delivery.message_id);
        }
        in_progress.insert(delivery, InProgress { ended, task: AbortOnDropHandle::new(task) });
    }

    /// An attempt ended `now`: its record is replaced if the message was kept, and deleted
    /// otherwise. An error only logs a warning.
    pub async fn end(&self, ended: &Ended, now: SystemTime) {
        let subject = &ended.subject;
        let limit = (self.limit)();
        let in_progress = self.in_progress().remove(&subject.delivery());
        let has_begun = in_progress.is_some();
        let writing = async {
            if let Some(in_progress) = in_progress {
                in_progress.end(limit / 2).await;
            }
            match ended.settlement {
                Settlement::Kept(..) => self.store.put_end(ended, now).await,
                Settlement::Deleted(_) if has_begun => {
                    let key = self.store.key(subject, subject.receive_count);
                    self.store.storage.delete(&self.store.location.bucket, &key).await
                }
                Settlement::Deleted(_) => Ok(()),
            }
        };
        if let Err(error) = limited(limit, writing).await {
            warn!(message_id = %subject.message_id, error, "the attempt was not recorded");
        }
    }

    fn in_progress(&self) -> MutexGuard<'_, HashMap<DeliveryId, InProgress>> {
        self.in_progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HistoryStore {
    fn key(&self, subject: &Subject, receive_count: u32) -> String {
        self.location.key(&format!("{}/{receive_count}.json", subject.message_id))
    }

    async fn put_end(&self, ended: &Ended, now: SystemTime) -> Result<(), String> {
        let subject = &ended.subject;
        let record = record(
            subject,
            subject.receive_count,
            &self.identity,
            ended.outcome(),
            json!({
                "ended": humantime::format_rfc3339_seconds(now).to_string(),
                "exit_code": ended.work.exit.and_then(exit_code),
                "signal": ended.work.exit.and_then(signal),
                "error": ended.error(),
                "next": ended.next(now),
                "total_s": ended.work.timings.total.as_secs_f64(),
                "stderr": ended.work.stderr_tail,
                "metrics": metrics(&ended.work.metrics),
                "published": ended.work.published.as_ref().map(manifest),
            }),
        );
        let key = self.key(subject, subject.receive_count);
        self.storage.put(&self.location.bucket, &key, record).await
    }
}

/// The JSON of a record about an attempt of this pod or of another one.
fn record(
    subject: &Subject,
    receive_count: u32,
    pod: &Identity,
    outcome: &str,
    more: Value,
) -> Vec<u8> {
    let object = subject.objects.first();
    let mut record = json!({
        "version": VERSION,
        "message_id": subject.message_id.as_str(),
        "receive_count": receive_count,
        "max_receive_count": subject.redrive.max_receive_count(),
        "final_attempt": subject.redrive.is_final(receive_count),
        "job_id": pod.job_id,
        "pod_name": pod.pod_name,
        "bucket": object.map(|object| &object.bucket),
        "key": object.map(|object| &object.key),
        "job_type": subject.job_type,
        "outcome": outcome,
    });
    if let (Value::Object(fields), Value::Object(more)) = (&mut record, more) {
        fields.extend(more);
    }
    record.to_string().into_bytes()
}

const VERSION: u32 = 1;

async fn limited<T, E: ToString>(
    limit: Duration,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match timeout(limit, request).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}
