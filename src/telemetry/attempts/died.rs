//! Finds earlier attempts that ended without a report.

use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::start::StartRecord;
use super::{DIED, HistoryStore, REQUEST, limited, record};
use crate::job::report::Subject;
use crate::ports::{Condition, RecordError};

/// How many earlier attempts are looked at.
const MOST: u32 = 10;
const NO_CONDITIONS: &str = "the store does not support conditional writes, so an attempt that died cannot be recorded: \
     keep the records (--attempts) in a store that does, such as S3";

impl HistoryStore {
    /// Records the earlier attempts on this message whose pods died, until this one has `ended`.
    pub(super) async fn find_dead(&self, subject: &Subject, ended: &CancellationToken) {
        for attempt in subject.receive_count.saturating_sub(MOST).max(1)..subject.receive_count {
            if ended.is_cancelled() {
                return;
            }
            if let Err(error) = self.judge(subject, attempt, ended).await {
                warn!(
                    message_id = %subject.message_id,
                    error,
                    "the record of an earlier attempt could not be read or written"
                );
                return;
            }
        }
    }

    /// A pod that lost its lease still shows life while it ends its command, and then writes its
    /// own record, which replaces one that was written here.
    async fn judge(
        &self,
        subject: &Subject,
        attempt: u32,
        ended: &CancellationToken,
    ) -> Result<(), String> {
        let (bucket, key) = (&self.location.bucket, self.key(subject, attempt));
        let mut seen = None;
        let (start, etag) = loop {
            let read = limited(REQUEST, self.records.read(bucket, &key)).await?;
            let Some(entry) = read else { return Ok(()) };
            let Some(start) = StartRecord::parse(&entry.bytes, subject, attempt) else {
                return Ok(());
            };
            if entry.age >= self.silence || seen.as_ref() == Some(&entry.etag) {
                break (start, entry.etag);
            }
            let rest = self.silence - entry.age;
            seen = Some(entry.etag);
            if ended.run_until_cancelled(sleep(rest)).await.is_none() {
                return Ok(());
            }
        };
        let error = format!("attempt {attempt} did not report its end: {}", start.last_seen());
        let mut more = start.fields();
        if let Value::Object(fields) = &mut more {
            fields.insert("error".to_owned(), json!(error));
        }
        let record = record(subject, attempt, &start.pod, DIED, more);
        let write = async {
            match self.records.write(bucket, &key, record, Condition::Unchanged(&etag)).await {
                Ok(_) => Ok(true),
                Err(RecordError::ConditionFailed) => Ok(false),
                Err(RecordError::ConditionsUnsupported(_)) => Err(NO_CONDITIONS.to_owned()),
                Err(RecordError::Refused(why) | RecordError::Retryable(why)) => Err(why),
            }
        };
        if limited(REQUEST, write).await? {
            warn!(
                message_id = %subject.message_id,
                receive_count = attempt,
                outcome = DIED,
                error,
                "an earlier attempt died"
            );
            if let Some(metrics) = &self.metrics {
                metrics.died(subject, attempt);
            }
        }
        Ok(())
    }
}
