//! Records, checkpoints and results as one pod reaches them: late, in vain, or without an answer.

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

use super::chance::{Chance, FaultyRecords};
use super::chronicle::{Chronicle, Record, Saved};
use crate::support::bucket::MemoryBucket;
use crate::support::records::MemoryRecords;

/// What all pods of a world share.
#[derive(Clone, Default)]
pub struct Shelves {
    records: MemoryRecords,
    state: MemoryBucket,
    results: MemoryBucket,
}

impl Shelves {
    pub fn checkpoints(&self) -> Vec<String> {
        self.state.keys()
    }
}

/// How one pod ends that does not end by itself.
#[derive(Clone)]
pub struct Fate {
    pub chance: Chance,
    pub weather: FaultyRecords,
    pub stop: CancellationToken,
    pub kill: CancellationToken,
}

impl Fate {
    /// What is about to happen happens just before a stop; or after a KILL, and then it does not.
    pub async fn may_end(&self) {
        if self.weather != FaultyRecords::Calm && self.chance.one_in(50) {
            self.stop.cancel();
        }
        if self.weather == FaultyRecords::Wild && self.chance.one_in(50) {
            self.kill.cancel();
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Clone)]
pub struct Store {
    pub shelves: Shelves,
    pub pod: u32,
    pub fate: Fate,
    /// This pod does not reach the store then.
    pub cut_off: Option<Range<Instant>>,
    pub chronicle: Arc<Mutex<Chronicle>>,
}

impl Store {
    /// Sends a request on its way: it comes through, some time later, also if nobody waits for it
    /// any more.
    async fn carry<T: Send + 'static>(
        &self,
        does: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let Fate { chance, weather, .. } = &self.fate;
        self.fate.may_end().await;
        let delay = || match weather {
            FaultyRecords::Wild if chance.one_in(12) => chance.millis(0..300_000),
            FaultyRecords::Rough | FaultyRecords::Wild if chance.one_in(2) => chance.millis(0..800),
            FaultyRecords::Calm | FaultyRecords::Rough | FaultyRecords::Wild => Duration::ZERO,
        };
        let (there, back) = (delay(), delay());
        let luck = if *weather == FaultyRecords::Calm { 9 } else { chance.number(0..16) };
        if luck == 0
            || self.cut_off.as_ref().is_some_and(|cut_off| cut_off.contains(&Instant::now()))
        {
            pass(there).await;
            return Err("503 SlowDown".to_owned());
        }
        let done = tokio::spawn(async move {
            pass(there).await;
            does()
        });
        let done = done.await.expect("the test's own code does not panic");
        self.fate.may_end().await;
        pass(back).await;
        if luck == 1 { Err("the connection was reset".to_owned()) } else { Ok(done) }
    }

    fn note(&self, what: impl AsRef<str>) {
        self.chronicle.lock().unwrap().note(self.pod, what);
    }
}

async fn pass(time: Duration) {
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
            (self.shelves.records.clone(), bucket.to_owned(), key.to_owned());
        let read = self.carry(move || records.read_without_faults(&bucket, &key)).await;
        self.note(format!(
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
        let text = |name: &str| content[name].as_str().expect("it is there").to_owned();
        let new = Record {
            pod: self.pod,
            message: text("message_id"),
            nonce: text("nonce"),
            state: text("state"),
        };
        let (object, message) = (text("key"), text("message_id"));
        {
            let mut chronicle = self.chronicle.lock().unwrap();
            chronicle.note(self.pod, format!("writes {} into the record of {object}", new.state));
            if new.state == "done" {
                chronicle.records_only_what_is_done(self.pod, &new.message);
            }
        }
        let if_match = match condition {
            Condition::Absent => None,
            Condition::Unchanged(etag) => Some(etag.to_owned()),
        };
        let (records, chronicle, pod) =
            (self.shelves.records.clone(), self.chronicle.clone(), self.pod);
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let written = self.carry(move || {
            let condition = if_match.as_deref().map_or(Condition::Absent, Condition::Unchanged);
            let written = records.write_without_faults(&bucket, &key, bytes, condition);
            let mut chronicle = chronicle.lock().unwrap();
            chronicle.note(
                pod,
                format!("'s {} comes to the record of {object}: {}", new.state, written.is_ok()),
            );
            if written.is_ok() {
                chronicle.takes_over_nothing_that_is_worked_on(pod, &object, &new);
                chronicle.leaves_a_record_that_is_done(pod, &object, &new);
                chronicle.records.insert(object, new);
            }
            written
        });
        let written = written.await;
        self.chronicle.lock().unwrap().seen(self.pod, &message).store_failed |= written.is_err();
        written.unwrap_or_else(|why| Err(RecordError::Retryable(why)))
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError> {
        let (state, chronicle, pod) =
            (self.shelves.state.clone(), self.chronicle.clone(), self.pod);
        let key = object.key.clone();
        let opened = self.carry(move || {
            let bytes = state.get(&key);
            if bytes.is_some() {
                chronicle.lock().unwrap().restored(pod, &message_of(&key), &key);
            }
            bytes.ok_or_else(|| FetchError::Missing(format!("no {key}")))
        });
        let opened = opened.await.unwrap_or_else(|why| Err(FetchError::Retryable(why)));
        self.note(format!("has opened {}: {}", object.key, opened.is_ok()));
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
        let (chronicle, pod) = (self.chronicle.clone(), self.pod);
        self.note(format!("uploads {key}"));
        let uploaded = if upload.bucket == "state" {
            let message = message_of(&key);
            let saved = {
                let mut chronicle = chronicle.lock().unwrap();
                let seen = chronicle.seen(pod, &message);
                let worked = seen.worked + seen.ran();
                let by =
                    key.rsplit('/').next().and_then(|name| name.strip_suffix(".tar")?.parse().ok());
                let by = by.expect("a receive count");
                Saved {
                    key: key.clone(),
                    by,
                    state: seen.state,
                    worked,
                    from: Instant::now(),
                    until: None,
                }
            };
            let state = self.shelves.state.clone();
            let carried = self.carry(move || {
                state.insert(&key, &bytes);
                let mut chronicle = chronicle.lock().unwrap();
                chronicle.note(
                    pod,
                    format!("'s checkpoint comes: {:?} after {:?}", saved.state, saved.worked),
                );
                chronicle.saved(&message, Saved { from: Instant::now(), ..saved });
            });
            halt.run_until_cancelled(carried).await
        } else {
            // `KEY/MESSAGE/NAME`
            let mut parts = key.rsplit('/');
            let name = parts.next().expect("a name").to_owned();
            let message = parts.next().expect("a message").to_owned();
            {
                let mut chronicle = chronicle.lock().unwrap();
                let object = chronicle.objects[&message].clone();
                chronicle.publishes_only_a_success(pod, &message);
                chronicle.publishes_only_while_it_holds_the_message(pod, &message);
                chronicle.has_the_record(pod, &object, "publishes results");
            }
            // A stop while results are on their way, more often than it would come by itself.
            if self.fate.weather != FaultyRecords::Calm && self.fate.chance.one_in(8) {
                self.fate.stop.cancel();
            }
            let results = self.shelves.results.clone();
            let (taken, of) = (chronicle.clone(), message.clone());
            let carried = self.carry(move || {
                results.insert(&key, &bytes);
                taken.lock().unwrap().seen(pod, &of).published.insert(name);
            });
            let uploaded = halt.run_until_cancelled(carried).await;
            chronicle.lock().unwrap().seen(pod, &message).store_failed |=
                matches!(uploaded, Some(Err(_)));
            uploaded
        };
        self.note(format!("has uploaded {}: {uploaded:?}", upload.key));
        uploaded.unwrap_or_else(|| Err("halted".to_owned()))?;
        Ok(Uploaded { etag: None, checksum })
    }
}

#[async_trait]
impl Storage for Store {
    async fn list(&self, _: &str, prefix: &str) -> Result<Vec<String>, String> {
        let (state, below) = (self.shelves.state.clone(), prefix.to_owned());
        let listed = self
            .carry(move || state.keys().into_iter().filter(|key| key.starts_with(&below)).collect())
            .await;
        self.note(format!("has listed {prefix}: {listed:?}"));
        listed
    }

    async fn delete(&self, _: &str, key: &str) -> Result<(), String> {
        let (state, chronicle, key) =
            (self.shelves.state.clone(), self.chronicle.clone(), key.to_owned());
        self.note(format!("drops {key}"));
        self.carry(move || {
            state.remove(&key);
            chronicle.lock().unwrap().dropped(&message_of(&key), &key);
        })
        .await
    }
}
