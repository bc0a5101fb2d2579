//! The start record of an attempt, and its signs of life.

use std::future::pending;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{HistoryStore, REQUEST, STARTED, VERSION, limited, record};
use crate::job::report::{Subject, clock_time};
use crate::ports::MemoryUse;
use crate::telemetry::Identity;

/// How often the start record is written again.
pub const SIGN_OF_LIFE: Duration = Duration::from_mins(1);

/// It is also written when the memory in use reaches one of these shares for the first time, in
/// percent of the limit.
const SHARES: [u64; 3] = [80, 90, 95];

/// When a failed sign of life is tried again: an attempt without one for `SILENCE` counts as dead.
const RETRY: Duration = Duration::from_secs(5);

/// How often the memory is read.
const LOOK: Duration = Duration::from_secs(1);

impl HistoryStore {
    /// Writes the start record, and rewrites it as a sign of life until the attempt has `ended`.
    pub(super) async fn show_life(&self, subject: &Subject, ended: &CancellationToken) {
        let key = self.key(subject, subject.receive_count);
        let started = SystemTime::now();
        let (mut highest, mut has_failed) = (0, false);
        loop {
            let memory = self.memory();
            highest = highest.max(reached(memory));
            let record = record(
                subject,
                subject.receive_count,
                &self.identity,
                STARTED,
                fields(started, SystemTime::now(), memory),
            );
            let put = self.storage.put(&self.location.bucket, &key, record);
            if let Err(error) = limited(REQUEST, put).await {
                if !has_failed {
                    has_failed = true;
                    warn!(message_id = %subject.message_id, error, "the start of the attempt was not recorded");
                }
                if ended.run_until_cancelled(sleep(RETRY)).await.is_none() {
                    return;
                }
                continue;
            }
            if ended.run_until_cancelled(self.until_next_sign(highest)).await.is_none() {
                return;
            }
        }
    }

    async fn until_next_sign(&self, highest: usize) {
        let rises = async {
            if self.memory.is_none() {
                pending::<()>().await;
            }
            while reached(self.memory()) <= highest {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = sleep(SIGN_OF_LIFE) => {}
            () = rises => {}
        }
    }

    fn memory(&self) -> Option<MemoryUse> {
        self.memory.as_ref().and_then(|memory| memory())
    }
}

/// How many of the [`SHARES`] are reached.
fn reached(memory: Option<MemoryUse>) -> usize {
    let Some(MemoryUse { used, limit }) = memory else { return 0 };
    SHARES.iter().filter(|share| used >= limit / 100 * **share).count()
}

fn fields(
    started: SystemTime,
    last_seen: SystemTime,
    memory: Option<MemoryUse>,
) -> serde_json::Value {
    let time = |at| humantime::format_rfc3339_seconds(at).to_string();
    json!({
        "started": time(started),
        "last_seen": time(last_seen),
        "memory_bytes": memory.map(|memory| memory.used),
        "memory_limit_bytes": memory.map(|memory| memory.limit),
    })
}

/// The start record of another pod.
#[derive(Debug)]
pub(super) struct StartRecord {
    pub(super) pod: Identity,
    started: SystemTime,
    last_seen: SystemTime,
    memory: Option<MemoryUse>,
}

#[derive(Deserialize)]
struct Fields {
    version: u32,
    outcome: String,
    message_id: String,
    receive_count: u32,
    job_id: String,
    pod_name: String,
    started: String,
    last_seen: String,
    memory_bytes: Option<u64>,
    memory_limit_bytes: Option<u64>,
}

impl StartRecord {
    /// `None` if this is not the start record of the attempt.
    pub(super) fn parse(bytes: &[u8], subject: &Subject, receive_count: u32) -> Option<Self> {
        let fields: Fields = serde_json::from_slice(bytes).ok()?;
        let is_it = (fields.version, fields.outcome.as_str()) == (VERSION, STARTED)
            && fields.message_id == subject.message_id.as_str()
            && fields.receive_count == receive_count;
        let is_name = |name: &String| name.len() <= LONGEST && !name.contains(char::is_control);
        if !is_it || ![&fields.job_id, &fields.pod_name].into_iter().all(is_name) {
            return None;
        }
        let memory = fields.memory_bytes.zip(fields.memory_limit_bytes);
        Some(Self {
            pod: Identity { job_id: fields.job_id, pod_name: fields.pod_name },
            started: humantime::parse_rfc3339(&fields.started).ok()?,
            last_seen: humantime::parse_rfc3339(&fields.last_seen).ok()?,
            memory: memory.map(|(used, limit)| MemoryUse { used, limit }),
        })
    }

    pub(super) fn fields(&self) -> serde_json::Value {
        fields(self.started, self.last_seen, self.memory)
    }

    /// `pod orders-x7k2p-9fq4d was last seen at 12:00:31Z, 5m after its start, …`
    pub(super) fn last_seen(&self) -> String {
        let lived = self.last_seen.duration_since(self.started).unwrap_or_default();
        let memory = self.memory.map(|MemoryUse { used, limit }| {
            let shown = |bytes| ByteSize::b(bytes).display().iec().to_string();
            let guess = if reached(self.memory) > 0 { " (out of memory?)" } else { "" };
            format!(", with {} of {} memory in use{guess}", shown(used), shown(limit))
        });
        format!(
            "pod {} was last seen at {}, {} after its start{}",
            self.pod.pod_name,
            clock_time(self.last_seen),
            humantime::format_duration(Duration::from_secs(lived.as_secs())),
            memory.unwrap_or_default()
        )
    }
}

/// Names of Kubernetes have at most 253 characters.
const LONGEST: usize = 1024;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::telemetry::records::testing::subject;

    fn record() -> Value {
        json!({
            "version": 1, "outcome": "started", "message_id": "m", "receive_count": 1, "job_id": "j",
            "pod_name": "p", "started": "2026-11-29T11:55:31Z", "last_seen": "2026-11-29T12:00:31Z",
            "memory_bytes": 4_187_593_113_u64, "memory_limit_bytes": 4_u64 << 30,
        })
    }

    fn parse(record: &Value) -> Option<StartRecord> {
        StartRecord::parse(record.to_string().as_bytes(), &subject("m"), 1)
    }

    #[test]
    fn the_last_sign_of_life_is_described() {
        let mut record = record();
        let text = parse(&record).unwrap().last_seen();
        let begin = "pod p was last seen at 12:00:31Z, 5m after its start";
        let memory = ", with 3.9 GiB of 4.0 GiB memory in use (out of memory?)";
        assert_eq!(text, format!("{begin}{memory}"));
        record["memory_bytes"] = (1_u64 << 30).into();
        let text = parse(&record).unwrap().last_seen();
        assert_eq!(text, format!("{begin}, with 1.0 GiB of 4.0 GiB memory in use"));
        record["memory_bytes"] = Value::Null;
        assert_eq!(parse(&record).unwrap().last_seen(), begin);
    }

    #[test]
    fn only_the_start_record_of_the_attempt_is_one() {
        for (field, value) in [
            ("version", json!(2)),
            ("version", json!("1")),
            ("outcome", json!("command_failed")),
            ("message_id", json!("another")),
            ("receive_count", json!(2)),
            ("receive_count", json!(-1)),
            ("pod_name", json!("a\nb")),
            ("job_id", json!("x".repeat(1025))),
            ("started", json!("yesterday")),
            ("last_seen", json!(12)),
            ("memory_bytes", json!(-1)),
            ("memory_bytes", json!(1e300)),
        ] {
            let mut record = record();
            record[field] = value;
            assert!(parse(&record).is_none(), "{record}");
        }
        for bytes in ["", "{", "[]", "null", "{}", "\u{0}", &"[".repeat(10_000)] {
            assert!(StartRecord::parse(bytes.as_bytes(), &subject("m"), 1).is_none(), "{bytes}");
        }
    }

    #[test]
    fn absurd_numbers_are_described_without_a_panic() {
        let mut record = record();
        (record["memory_bytes"], record["memory_limit_bytes"]) = (u64::MAX.into(), 0.into());
        record["last_seen"] = "1970-01-01T00:00:00Z".into();
        record["started"] = "9999-12-31T23:59:59Z".into();
        let text = parse(&record).unwrap().last_seen();
        assert!(text.starts_with("pod p was last seen at 00:00:00Z, 0s after its start"), "{text}");
    }
}
