//! One pod's access to records, checkpoints and results: requests are late, fail, or get no answer.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::job::notification::Object;
use leasehold::ports::checksum::{Algorithm, Checksum, Hasher};
use leasehold::ports::{
    Condition, Entry, FetchError, ObjectBody, ObjectStore, ObjectWriter, RangeBody, RecordError,
    Records, Storage, Upload, Uploaded,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::chance::{Chance, FaultLevel};
use super::history::{History, Record, Saved};
use crate::support::bucket::MemoryBucket;
use crate::support::records::MemoryRecords;

/// The stores that all pods of a world share.
#[derive(Clone, Default)]
pub struct SharedStores {
    records: MemoryRecords,
    state: MemoryBucket,
    results: MemoryBucket,
}

impl SharedStores {
    pub fn checkpoints(&self) -> Vec<String> {
        self.state.keys()
    }
}

/// The unplanned end of one pod.
#[derive(Clone)]
pub struct Fate {
    pub chance: Chance,
    pub faults: FaultLevel,
    pub stop: CancellationToken,
    pub kill: CancellationToken,
}

impl Fate {
    /// Perhaps stops the pod just before the next step, or KILLs it, so that the step does not
    /// happen.
    pub async fn maybe_end(&self) {
        if self.faults != FaultLevel::None && self.chance.one_in(50) {
            self.stop.cancel();
        }
        if self.faults == FaultLevel::Severe && self.chance.one_in(50) {
            self.kill.cancel();
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Clone)]
pub struct Store {
    pub stores: SharedStores,
    pub pod: u32,
    pub fate: Fate,
    /// During this time the pod cannot reach the store.
    pub cut_off: Option<Range<Instant>>,
    pub history: Arc<Mutex<History>>,
}

impl Store {
    /// Sends a request: it arrives later, even if the caller no longer waits for it.
    async fn send<T: Send + 'static>(
        &self,
        request: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let Fate { chance, faults, .. } = &self.fate;
        self.fate.maybe_end().await;
        let delay = || match faults {
            FaultLevel::Severe if chance.one_in(12) => chance.millis(0..300_000),
            FaultLevel::Moderate | FaultLevel::Severe if chance.one_in(2) => chance.millis(0..800),
            FaultLevel::None | FaultLevel::Moderate | FaultLevel::Severe => Duration::ZERO,
        };
        let (there, back) = (delay(), delay());
        let luck = if *faults == FaultLevel::None { 9 } else { chance.number(0..16) };
        if luck == 0
            || self.cut_off.as_ref().is_some_and(|cut_off| cut_off.contains(&Instant::now()))
        {
            delay_by(there).await;
            return Err("503 SlowDown".to_owned());
        }
        let done = tokio::spawn(async move {
            delay_by(there).await;
            request()
        });
        let done = done.await.expect("a request does not panic");
        self.fate.maybe_end().await;
        delay_by(back).await;
        if luck == 1 { Err("the connection was reset".to_owned()) } else { Ok(done) }
    }

    fn log(&self, what: impl AsRef<str>) {
        self.history.lock().unwrap().log(self.pod, what);
    }
}

async fn delay_by(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

/// The message of a checkpoint, from `of/MESSAGE/OBJECT/RECEIVE.tar`.
fn message_of(key: &str) -> String {
    key.split('/').nth(1).expect("a message").to_owned()
}

#[async_trait]
impl Records for Store {
    async fn read(&self, bucket: &str, key: &str) -> Result<Option<Entry>, RecordError> {
        let (records, bucket, key) =
            (self.stores.records.clone(), bucket.to_owned(), key.to_owned());
        let read = self.send(move || records.read_without_faults(&bucket, &key)).await;
        self.log(format!(
            "has read a record: {:?}",
            read.as_ref().map(|entry| entry.as_ref().map(|entry| entry.age))
        ));
        read.map_err(RecordError::Retryable)
    }

    async fn write(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        condition: Condition<'_>,
    ) -> Result<String, RecordError> {
        let content: serde_json::Value = serde_json::from_slice(&bytes).expect("a record is JSON");
        let text = |name: &str| content[name].as_str().expect("a text").to_owned();
        let new = Record {
            pod: self.pod,
            message: text("message_id"),
            nonce: text("nonce"),
            state: text("state"),
        };
        let (object, message) = (text("key"), text("message_id"));
        {
            let mut history = self.history.lock().unwrap();
            history.log(self.pod, format!("writes {} into the record of {object}", new.state));
            if new.state == "done" {
                history.check_recorded_success(self.pod, &new.message);
            }
        }
        let if_match = match condition {
            Condition::Absent => None,
            Condition::Unchanged(etag) => Some(etag.to_owned()),
        };
        let (records, history, pod) = (self.stores.records.clone(), self.history.clone(), self.pod);
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let written = self.send(move || {
            let condition = if_match.as_deref().map_or(Condition::Absent, Condition::Unchanged);
            let written = records.write_without_faults(&bucket, &key, bytes, condition);
            let mut history = history.lock().unwrap();
            history.log(
                pod,
                format!("'s {} arrives at the record of {object}: {}", new.state, written.is_ok()),
            );
            if written.is_ok() {
                history.check_takeover(pod, &object, &new);
                history.check_done_record_unchanged(pod, &object, &new);
                history.records.insert(object, new);
            }
            written
        });
        let written = written.await;
        self.history.lock().unwrap().work_of(self.pod, &message).store_failed |= written.is_err();
        written.unwrap_or_else(|why| Err(RecordError::Retryable(why)))
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError> {
        let (state, history, pod) = (self.stores.state.clone(), self.history.clone(), self.pod);
        let key = object.key.clone();
        let opened = self.send(move || {
            let bytes = state.get(&key);
            if bytes.is_some() {
                history.lock().unwrap().restored(pod, &message_of(&key), &key);
            }
            bytes.ok_or_else(|| FetchError::Missing(format!("no {key}")))
        });
        let opened = opened.await.unwrap_or_else(|why| Err(FetchError::Retryable(why)));
        self.log(format!("has opened {}: {}", object.key, opened.is_ok()));
        opened.map(MemoryBucket::body)
    }

    async fn open_range(&self, _: &Object, _: Range<u64>) -> Result<RangeBody, FetchError> {
        unreachable!("its streams do not break")
    }
}

#[async_trait]
impl ObjectWriter for Store {
    async fn put(&self, _: &str, _: &str, _: Vec<u8>) -> Result<(), String> {
        unreachable!("no attempts are recorded")
    }

    async fn upload(
        &self,
        upload: &Upload<'_>,
        halt: &CancellationToken,
    ) -> Result<Uploaded, String> {
        if halt.is_cancelled() {
            return Err("halted".to_owned());
        }
        let bytes = std::fs::read(upload.path).map_err(|error| error.to_string())?;
        let mut hasher = Hasher::new(Algorithm::Crc64Nvme);
        hasher.update(&bytes);
        let checksum = Checksum { algorithm: Algorithm::Crc64Nvme, value: hasher.value() };
        let key = upload.key.to_owned();
        let (history, pod) = (self.history.clone(), self.pod);
        self.log(format!("uploads {key}"));
        let uploaded = if upload.bucket == "state" {
            let message = message_of(&key);
            let saved = {
                let mut history = history.lock().unwrap();
                let work = history.work_of(pod, &message);
                let worked = work.worked + work.ran();
                let by =
                    key.rsplit('/').next().and_then(|name| name.strip_suffix(".tar")?.parse().ok());
                let by = by.expect("a receive count");
                Saved {
                    key: key.clone(),
                    by,
                    state: work.state,
                    worked,
                    from: Instant::now(),
                    until: None,
                }
            };
            let state = self.stores.state.clone();
            let sent = self.send(move || {
                state.insert(&key, &bytes);
                let mut history = history.lock().unwrap();
                history.log(
                    pod,
                    format!("'s checkpoint arrives: {:?} after {:?}", saved.state, saved.worked),
                );
                history.saved(&message, Saved { from: Instant::now(), ..saved });
            });
            halt.run_until_cancelled(sent).await
        } else {
            // `KEY/MESSAGE/NAME`
            let mut parts = key.rsplit('/');
            let name = parts.next().expect("a name").to_owned();
            let message = parts.next().expect("a message").to_owned();
            {
                let mut history = history.lock().unwrap();
                let object = history.objects[&message].clone();
                history.check_publish_after_success(pod, &message);
                history.check_publish_within_lease(pod, &message);
                history.check_record_owner(pod, &object, "publishes results");
            }
            // A stop during the upload, more often than by chance.
            if self.fate.faults != FaultLevel::None && self.fate.chance.one_in(8) {
                self.fate.stop.cancel();
            }
            let results = self.stores.results.clone();
            let (taken, of) = (history.clone(), message.clone());
            let sent = self.send(move || {
                results.insert(&key, &bytes);
                taken.lock().unwrap().work_of(pod, &of).published.insert(name);
            });
            let uploaded = halt.run_until_cancelled(sent).await;
            history.lock().unwrap().work_of(pod, &message).store_failed |=
                matches!(uploaded, Some(Err(_)));
            uploaded
        };
        self.log(format!("has uploaded {}: {uploaded:?}", upload.key));
        uploaded.unwrap_or_else(|| Err("halted".to_owned()))?;
        Ok(Uploaded { etag: None, checksum })
    }
}

#[async_trait]
impl Storage for Store {
    async fn list(&self, _: &str, prefix: &str) -> Result<Vec<String>, String> {
        let (state, below) = (self.stores.state.clone(), prefix.to_owned());
        let listed = self
            .send(move || state.keys().into_iter().filter(|key| key.starts_with(&below)).collect())
            .await;
        self.log(format!("has listed {prefix}: {listed:?}"));
        listed
    }

    async fn delete(&self, _: &str, key: &str) -> Result<(), String> {
        let (state, history, key) =
            (self.stores.state.clone(), self.history.clone(), key.to_owned());
        self.log(format!("deletes {key}"));
        self.send(move || {
            state.remove(&key);
            history.lock().unwrap().deleted(&message_of(&key), &key);
        })
        .await
    }
}
