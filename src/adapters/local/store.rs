//! A folder as an S3 store: each bucket is a folder in it, each object a file. Conditional writes
//! work, also between several processes.
//!
//! `leasehold local` keeps checkpoints, idempotency records, attempts and results here, where a pod
//! uses buckets.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use walkdir::WalkDir;

use super::folder::below;
use crate::job::notification::Object;
use crate::ports::checksum::{Algorithm, Checksum, Hasher};
use crate::ports::{
    Condition, Entry, FetchError, ObjectBody, ObjectStore, ObjectWriter, RangeBody, RecordError,
    Records, Storage, Upload, Uploaded,
};

/// In bytes.
const CHUNK: usize = 256 << 10;

/// The file that writers lock.
const LOCK: &str = ".lock";

#[derive(Debug, Clone)]
pub struct FolderStore {
    root: PathBuf,
}

impl FolderStore {
    /// Creates the folder if it does not exist.
    pub fn new(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        Ok(Self { root: root.canonicalize()? })
    }

    fn path(&self, bucket: &str, key: &str) -> io::Result<PathBuf> {
        let path = below(&self.root, bucket).and_then(|bucket| below(&bucket, key));
        let why = || {
            format!(
                "s3://{bucket}/{key} cannot be stored as a file: a part of its key is empty, `.` or `..`"
            )
        };
        path.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, why()))
    }

    /// Stores a copy of the file as an object, replacing an earlier one.
    pub async fn copy_file(&self, bucket: &str, key: &str, file: &Path) -> io::Result<()> {
        let (store, path, file) = (self.clone(), self.path(bucket, key)?, file.to_owned());
        blocking(move || {
            let mut source = File::open(file)?;
            store.replace(&path, |copy| io::copy(&mut source, copy)).map(drop)
        })
        .await
    }

    /// Held until it is dropped.
    fn lock(&self) -> io::Result<File> {
        let lock = File::create(self.root.join(LOCK))?;
        lock.lock()?;
        Ok(lock)
    }

    /// Replaces an object atomically.
    fn replace(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut File) -> io::Result<u64>,
    ) -> io::Result<u64> {
        fs::create_dir_all(path.parent().expect("an object is in a bucket"))?;
        let mut new = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.root)?;
        let bytes = fill(new.as_file_mut())?;
        new.persist(path)?;
        Ok(bytes)
    }

    fn write_if(
        &self,
        path: &Path,
        bytes: &[u8],
        condition: Condition<'_>,
    ) -> io::Result<Option<String>> {
        let _lock = self.lock()?;
        let current = read(path)?.map(|bytes| etag(&bytes));
        let holds = match condition {
            Condition::Absent => current.is_none(),
            Condition::Unchanged(etag) => current.as_deref() == Some(etag),
        };
        if !holds {
            return Ok(None);
        }
        self.replace(path, |file| io::copy(&mut &bytes[..], file))?;
        Ok(Some(etag(bytes)))
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn etag(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// On a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::from)?
}

#[async_trait]
impl ObjectStore for FolderStore {
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError> {
        let whole = self.open_range(object, 0..u64::MAX).await?;
        Ok(ObjectBody { size: whole.size, etag: None, checksum: None, bytes: whole.bytes })
    }

    async fn open_range(
        &self,
        object: &Object,
        range: Range<u64>,
    ) -> Result<RangeBody, FetchError> {
        let failed = |error: io::Error| {
            let why = format!("s3://{}/{}: {error}", object.bucket, object.key);
            if error.kind() == io::ErrorKind::NotFound {
                FetchError::Missing(why)
            } else {
                FetchError::Retryable(why)
            }
        };
        let path = self.path(&object.bucket, &object.key).map_err(failed)?;
        let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
        let size = file.metadata().await.map_err(failed)?.len();
        file.seek(io::SeekFrom::Start(range.start)).await.map_err(failed)?;
        let bytes = ReaderStream::with_capacity(file.take(range.end - range.start), CHUNK).boxed();
        Ok(RangeBody { start: range.start, size: Some(size), bytes })
    }
}

#[async_trait]
impl ObjectWriter for FolderStore {
    async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> Result<(), String> {
        let (store, path) =
            (self.clone(), self.path(bucket, key).map_err(|error| error.to_string())?);
        let written = blocking(move || {
            let _lock = store.lock()?;
            store.replace(&path, |file| io::copy(&mut &bytes[..], file))
        });
        written.await.map(drop).map_err(|error| error.to_string())
    }

    async fn upload(
        &self,
        upload: &Upload<'_>,
        halt: &CancellationToken,
    ) -> Result<Uploaded, String> {
        let path = self.path(upload.bucket, upload.key).map_err(|error| error.to_string())?;
        let (store, from, halt) = (self.clone(), upload.path.to_owned(), halt.clone());
        let uploaded = blocking(move || {
            let bytes = store.replace(&path, |file| {
                let bytes = io::copy(&mut File::open(&from)?, file)?;
                // An error here leaves the object unchanged.
                if halt.is_cancelled() { Err(io::Error::other("halted")) } else { Ok(bytes) }
            })?;
            Hasher::hash_file(Algorithm::Crc64Nvme, &path, 0..bytes)
        });
        let value = uploaded.await.map_err(|error| error.to_string())?.value();
        Ok(Uploaded { etag: None, checksum: Checksum { algorithm: Algorithm::Crc64Nvme, value } })
    }
}

#[async_trait]
impl Storage for FolderStore {
    async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, String> {
        let bucket = below(&self.root, bucket)
            .ok_or_else(|| format!("{bucket:?} cannot be the name of a folder"))?;
        let prefix = prefix.to_owned();
        let listed = blocking(move || {
            if !bucket.exists() {
                return Ok(Vec::new());
            }
            let files = WalkDir::new(&bucket).into_iter().filter_map(|entry| match entry {
                Ok(entry) if entry.file_type().is_file() => Some(Ok(entry.path().to_owned())),
                Ok(_) => None,
                Err(error) => Some(Err(io::Error::from(error))),
            });
            let key = |path: PathBuf| {
                let key = path
                    .strip_prefix(&bucket)
                    .expect("a walk stays below its root")
                    .to_string_lossy()
                    .into_owned();
                key.starts_with(&prefix).then_some(key)
            };
            files.filter_map(|path| path.map(key).transpose()).collect()
        });
        listed.await.map_err(|error| error.to_string())
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<(), String> {
        let path = self.path(bucket, key).map_err(|error| error.to_string())?;
        match tokio::fs::remove_file(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

#[async_trait]
impl Records for FolderStore {
    async fn read(&self, bucket: &str, key: &str) -> Result<Option<Entry>, RecordError> {
        let path =
            self.path(bucket, key).map_err(|error| RecordError::Refused(error.to_string()))?;
        let entry = blocking(move || {
            let Some(bytes) = read(&path)? else { return Ok(None) };
            let age = fs::metadata(&path)?.modified()?.elapsed().unwrap_or_default();
            Ok(Some(Entry { etag: etag(&bytes), bytes, age: Duration::from_secs(age.as_secs()) }))
        });
        entry.await.map_err(|error| RecordError::Retryable(error.to_string()))
    }

    async fn write(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        condition: Condition<'_>,
    ) -> Result<String, RecordError> {
        let path =
            self.path(bucket, key).map_err(|error| RecordError::Refused(error.to_string()))?;
        let (store, unchanged) = (self.clone(), condition.etag().map(str::to_owned));
        let written = blocking(move || {
            let condition = unchanged.as_deref().map_or(Condition::Absent, Condition::Unchanged);
            store.write_if(&path, &bytes, condition)
        });
        match written.await {
            Ok(Some(etag)) => Ok(etag),
            Ok(None) => Err(RecordError::ConditionFailed),
            Err(error) => Err(RecordError::Retryable(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;

    fn store() -> (tempfile::TempDir, FolderStore) {
        let home = tempfile::tempdir().unwrap();
        let store = FolderStore::new(&home.path().join("state")).unwrap();
        (home, store)
    }

    #[tokio::test]
    async fn one_of_several_conditional_writes_succeeds() {
        let (_home, store) = store();
        let write = |n: u8, condition| {
            let store = store.clone();
            async move { store.write("b", "a/record", vec![n], condition).await }
        };
        let first =
            futures_util::future::join_all((0..8).map(|n| write(n, Condition::Absent))).await;
        let etags: Vec<_> = first.into_iter().flatten().collect();
        assert_eq!(etags.len(), 1);
        let second = futures_util::future::join_all(
            (10..18).map(|n| write(n, Condition::Unchanged(&etags[0]))),
        )
        .await;
        assert_eq!(second.iter().filter(|written| written.is_ok()).count(), 1);
        assert!(second.contains(&Err(RecordError::ConditionFailed)));
        let entry = store.read("b", "a/record").await.unwrap().unwrap();
        assert!((10..18).contains(&entry.bytes[0]) && entry.age.is_zero());
        assert_eq!(store.read("b", "another").await, Ok(None));
    }

    #[tokio::test]
    async fn objects_are_listed_by_prefix_and_read_back() {
        let (home, store) = store();
        store.put("b", "p/1", b"one".to_vec()).await.unwrap();
        let file = home.path().join("file");
        fs::write(&file, "two").unwrap();
        let upload = Upload {
            bucket: "b",
            key: "p/2",
            path: &file,
            bytes: 3,
            content_type: "text/plain",
            attributes: None,
        };
        store.upload(&upload, &CancellationToken::new()).await.unwrap();
        let halted = CancellationToken::new();
        halted.cancel();
        store.upload(&Upload { key: "p/3", ..upload }, &halted).await.unwrap_err();
        let mut keys = store.list("b", "p/").await.unwrap();
        keys.sort();
        assert_eq!(keys, ["p/1", "p/2"]);
        assert!(
            store.list("b", "q").await.unwrap().is_empty()
                && store.list("none", "").await.unwrap().is_empty()
        );
        let object = |key: &str| Object::named("b", key);
        let body = store.open(&object("p/2")).await.unwrap();
        assert_eq!(body.bytes.try_collect::<Vec<_>>().await.unwrap().concat(), b"two");
        store.delete("b", "p/2").await.unwrap();
        store.delete("b", "p/2").await.unwrap();
        assert!(matches!(store.open(&object("p/2")).await, Err(FetchError::Missing(_))));
    }

    #[tokio::test]
    async fn no_key_leads_out_of_the_folder() {
        let (home, store) = store();
        for (bucket, key) in [("b", "../../x"), ("..", "x"), ("b", "a//b"), ("", "x"), ("b", "")] {
            assert!(store.put(bucket, key, b"x".to_vec()).await.is_err(), "{bucket} {key}");
        }
        assert!(!home.path().join("x").exists());
    }
}
