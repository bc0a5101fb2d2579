//! Records in memory, on tokio's clock, that obey the store's rules; with scripted faults.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::ports::{Condition, Entry, RecordError, Records};
use tokio::time::{Instant, sleep};

/// One pod's way to the records. A clone is the same way; [`MemoryRecords::another`] is another
/// pod's.
#[derive(Clone, Default)]
pub struct MemoryRecords {
    shelf: Arc<Mutex<Shelf>>,
    /// This pod cannot reach them.
    pub unreachable: Arc<AtomicBool>,
    /// To this pod nothing is ever read.
    pub silent: Arc<AtomicBool>,
}

#[derive(Default)]
struct Shelf {
    records: BTreeMap<String, Record>,
    writes: u64,
    faults: VecDeque<Fault>,
}

#[derive(Clone)]
struct Record {
    bytes: Vec<u8>,
    etag: String,
    written: Instant,
}

/// What happens to a write.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    None,
    /// Nothing is written.
    Refused,
    /// Nothing is written, as if somebody else had written.
    ConditionFailed,
    /// The store is seen to write whether or not the condition holds.
    ConditionsUnsupported,
    /// It is written, but nobody is told.
    AnswerLost,
    AnswerDelayed(Duration),
}

impl MemoryRecords {
    pub fn another(&self) -> Self {
        Self { shelf: self.shelf.clone(), ..Self::default() }
    }

    /// One after another for the next writes.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.locked().faults.extend(faults);
    }

    /// The one record there is: its `state`.
    pub fn state(&self) -> Option<String> {
        let kept = self.locked();
        assert!(kept.records.len() <= 1, "there are several");
        let record: serde_json::Value =
            serde_json::from_slice(&kept.records.values().next()?.bytes).expect("JSON");
        Some(record["state"].as_str().expect("it has a state").to_owned())
    }

    /// The bytes of the one record there is.
    pub fn one(&self) -> Vec<u8> {
        self.locked().records.values().next().expect("there is one").bytes.clone()
    }

    /// Another pod claims the one record there is, and this is what it wrote.
    pub fn claimed_by_another(&self) -> Vec<u8> {
        let mut claim: serde_json::Value = serde_json::from_slice(&self.one()).expect("JSON");
        claim["nonce"] = "another".into();
        let mut kept = self.locked();
        kept.writes += 1;
        let etag = format!("\"{}\"", kept.writes);
        let record = kept.records.values_mut().next().expect("there is one");
        (record.bytes, record.etag) = (claim.to_string().into_bytes(), etag);
        record.bytes.clone()
    }

    /// Somebody else writes over the one record there is.
    pub fn overwrite(&self, bytes: &[u8]) {
        for record in self.locked().records.values_mut() {
            record.bytes = bytes.to_vec();
        }
    }

    /// What is there now, whatever the weather.
    pub fn now(&self, bucket: &str, key: &str) -> Option<Entry> {
        let found = self.locked().records.get(&format!("{bucket}/{key}")).cloned();
        found.map(|Record { bytes, etag, written }| {
            let age = Duration::from_secs(written.elapsed().as_secs());
            Entry { bytes, etag, age }
        })
    }

    /// Writes at once, whatever the weather.
    pub fn write_now(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        condition: Condition<'_>,
    ) -> Result<String, RecordError> {
        let mut kept = self.locked();
        let key = format!("{bucket}/{key}");
        let is_met = match (condition, kept.records.get(&key)) {
            (Condition::Absent, found) => found.is_none(),
            (Condition::Unchanged(etag), found) => found.is_some_and(|found| found.etag == etag),
        };
        if !is_met {
            return Err(RecordError::ConditionFailed);
        }
        kept.writes += 1;
        let etag = format!("\"{}\"", kept.writes);
        kept.records.insert(key, Record { bytes, etag: etag.clone(), written: Instant::now() });
        Ok(etag)
    }

    pub fn len(&self) -> usize {
        self.locked().records.len()
    }

    fn locked(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("not poisoned")
    }

    fn reach(&self) -> Result<(), RecordError> {
        let is_reached = !self.unreachable.load(Ordering::Relaxed);
        is_reached
            .then_some(())
            .ok_or_else(|| RecordError::Retryable("no route to host".to_owned()))
    }
}

#[async_trait]
impl Records for MemoryRecords {
    async fn read(&self, bucket: &str, key: &str) -> Result<Option<Entry>, RecordError> {
        self.reach()?;
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok(self.now(bucket, key))
    }

    async fn write(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        condition: Condition<'_>,
    ) -> Result<String, RecordError> {
        self.reach()?;
        let fault = self.locked().faults.pop_front().unwrap_or(Fault::None);
        if let Fault::Refused = fault {
            return Err(RecordError::Retryable("503 SlowDown".to_owned()));
        }
        if let Fault::ConditionFailed = fault {
            return Err(RecordError::ConditionFailed);
        }
        let etag = self.write_now(bucket, key, bytes, condition)?;
        match fault {
            Fault::ConditionsUnsupported => Err(RecordError::ConditionsUnsupported(
                "the store ignores If-None-Match".to_owned(),
            )),
            Fault::AnswerLost => Err(RecordError::Retryable("the connection was reset".to_owned())),
            Fault::AnswerDelayed(time) => {
                sleep(time).await;
                Ok(etag)
            }
            Fault::None | Fault::Refused | Fault::ConditionFailed => Ok(etag),
        }
    }
}
