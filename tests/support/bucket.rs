//! An in-memory bucket for results and checkpoints.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use leasehold::job::notification::Object;
use leasehold::ports::checksum::{Algorithm, Checksum, Hasher};
use leasehold::ports::{
    FetchError, ObjectBody, ObjectStore, ObjectWriter, RangeBody, Storage, Upload, Uploaded,
};
use tokio_util::sync::CancellationToken;

#[derive(Clone, Default)]
pub struct MemoryBucket {
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
    upload_takes: Arc<Mutex<Duration>>,
    uploads: Arc<AtomicUsize>,
}

impl MemoryBucket {
    pub fn keys(&self) -> Vec<String> {
        self.objects.lock().expect("not poisoned").keys().cloned().collect()
    }

    pub fn insert(&self, key: &str, bytes: &[u8]) {
        self.objects
            .lock()
            .expect("not poisoned")
            .insert(key.to_owned(), Bytes::copy_from_slice(bytes));
    }

    pub fn uploads_take(&self, time: Duration) {
        *self.upload_takes.lock().expect("not poisoned") = time;
    }

    /// The number of finished uploads.
    pub fn uploads(&self) -> usize {
        self.uploads.load(Ordering::Relaxed)
    }

    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.objects.lock().expect("not poisoned").get(key).cloned()
    }

    pub fn remove(&self, key: &str) {
        self.objects.lock().expect("not poisoned").remove(key);
    }

    /// The answer to a request for an object with these bytes.
    pub fn body(bytes: Bytes) -> ObjectBody {
        ObjectBody {
            size: Some(bytes.len() as u64),
            etag: None,
            checksum: None,
            bytes: stream::iter([Ok(bytes)]).boxed(),
        }
    }
}

#[async_trait]
impl ObjectStore for MemoryBucket {
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError> {
        let bytes = self
            .get(&object.key)
            .ok_or_else(|| FetchError::Missing(format!("no {}", object.key)))?;
        Ok(Self::body(bytes))
    }

    async fn open_range(&self, _: &Object, _: Range<u64>) -> Result<RangeBody, FetchError> {
        unreachable!("its streams do not break")
    }
}

#[async_trait]
impl ObjectWriter for MemoryBucket {
    async fn put(&self, _: &str, key: &str, bytes: Vec<u8>) -> Result<(), String> {
        self.insert(key, &bytes);
        Ok(())
    }

    async fn upload(
        &self,
        upload: &Upload<'_>,
        halt: &CancellationToken,
    ) -> Result<Uploaded, String> {
        let time = *self.upload_takes.lock().expect("not poisoned");
        halt.run_until_cancelled(tokio::time::sleep(time)).await.ok_or("halted")?;
        let bytes = std::fs::read(Path::new(upload.path)).map_err(|error| error.to_string())?;
        assert_eq!(bytes.len() as u64, upload.bytes);
        self.insert(upload.key, &bytes);
        self.uploads.fetch_add(1, Ordering::Relaxed);
        let value = Hasher::new(Algorithm::Crc64Nvme).value();
        Ok(Uploaded { etag: None, checksum: Checksum { algorithm: Algorithm::Crc64Nvme, value } })
    }
}

#[async_trait]
impl Storage for MemoryBucket {
    async fn list(&self, _: &str, prefix: &str) -> Result<Vec<String>, String> {
        Ok(self.keys().into_iter().filter(|key| key.starts_with(prefix)).collect())
    }

    async fn delete(&self, _: &str, key: &str) -> Result<(), String> {
        self.remove(key);
        Ok(())
    }
}
