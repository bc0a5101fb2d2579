//! In-memory records on tokio's clock, with the store's conditions and scripted faults.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::ports::{Condition, Entry, RecordError, Records};
use tokio::time::{Instant, sleep};

/// One pod's access to the records. Clones share it; [`MemoryRecords::for_another_pod`] returns the
/// access of another pod.
#[derive(Clone, Default)]
pub struct MemoryRecords {
    store: Arc<Mutex<Store>>,
    /// This pod cannot reach the store.
    pub unreachable: Arc<AtomicBool>,
    /// This pod's reads are never answered.
    pub silent: Arc<AtomicBool>,
}

#[derive(Default)]
struct Store {
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
    /// Nothing is written, as if another pod had written.
    ConditionFailed,
    /// The store is found to ignore conditions.
    ConditionsUnsupported,
    /// The record is written, but the answer is lost.
    AnswerLost,
    AnswerDelayed(Duration),
}

impl MemoryRecords {
    pub fn for_another_pod(&self) -> Self {
        Self { store: self.store.clone(), ..Self::default() }
    }

    /// Adds faults; each write takes the next one.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// The `state` of the only record.
    pub fn state(&self) -> Option<String> {
        let store = self.lock();
        assert!(store.records.len() <= 1, "several records");
        let record: serde_json::Value =
            serde_json::from_slice(&store.records.values().next()?.bytes).expect("JSON");
        Some(record["state"].as_str().expect("a state").to_owned())
    }

    /// The bytes of the only record.
    pub fn only_record(&self) -> Vec<u8> {
        self.lock().records.values().next().expect("a record").bytes.clone()
    }

    /// Another pod claims the only record; returns the bytes that it wrote.
    pub fn claimed_by_another(&self) -> Vec<u8> {
        let mut claim: serde_json::Value =
            serde_json::from_slice(&self.only_record()).expect("JSON");
        claim["nonce"] = "another".into();
        let mut store = self.lock();
        store.writes += 1;
        let etag = format!("\"{}\"", store.writes);
        let record = store.records.values_mut().next().expect("a record");
        (record.bytes, record.etag) = (claim.to_string().into_bytes(), etag);
        record.bytes.clone()
    }

    /// Another writer overwrites the only record.
    pub fn overwrite(&self, bytes: &[u8]) {
        for record in self.lock().records.values_mut() {
            record.bytes = bytes.to_vec();
        }
    }

    /// Reads without faults.
    pub fn read_without_faults(&self, bucket: &str, key: &str) -> Option<Entry> {
        let found = self.lock().records.get(&format!("{bucket}/{key}")).cloned();
        found.map(|Record { bytes, etag, written }| {
            let age = Duration::from_secs(written.elapsed().as_secs());
            Entry { bytes, etag, age }
        })
    }

    /// Writes without faults.
    pub fn write_without_faults(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        condition: Condition<'_>,
    ) -> Result<String, RecordError> {
        let mut store = self.lock();
        let key = format!("{bucket}/{key}");
        let is_met = match (condition, store.records.get(&key)) {
            (Condition::Absent, found) => found.is_none(),
            (Condition::Unchanged(etag), found) => found.is_some_and(|found| found.etag == etag),
        };
        if !is_met {
            return Err(RecordError::ConditionFailed);
        }
        store.writes += 1;
        let etag = format!("\"{}\"", store.writes);
        store.records.insert(key, Record { bytes, etag: etag.clone(), written: Instant::now() });
        Ok(etag)
    }

    pub fn remove(&self, bucket: &str, key: &str) {
        self.lock().records.remove(&format!("{bucket}/{key}"));
    }

    pub fn len(&self) -> usize {
        self.lock().records.len()
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("not poisoned")
    }

    fn check_reachable(&self) -> Result<(), RecordError> {
        let is_reachable = !self.unreachable.load(Ordering::Relaxed);
        is_reachable
            .then_some(())
            .ok_or_else(|| RecordError::Retryable("no route to host".to_owned()))
    }
}

#[async_trait]
impl Records for MemoryRecords {
    async fn read(&self, bucket: &str, key: &str) -> Result<Option<Entry>, RecordError> {
        self.check_reachable()?;
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok(self.read_without_faults(bucket, key))
    }

    async fn write(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        condition: Condition<'_>,
    ) -> Result<String, RecordError> {
        self.check_reachable()?;
        let fault = self.lock().faults.pop_front().unwrap_or(Fault::None);
        if let Fault::Refused = fault {
            return Err(RecordError::Retryable("503 SlowDown".to_owned()));
        }
        if let Fault::ConditionFailed = fault {
            return Err(RecordError::ConditionFailed);
        }
        let etag = self.write_without_faults(bucket, key, bytes, condition)?;
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
