//! Fetched: exactly the object of the event, as a file.

mod download;
pub mod mounted;
mod ramp;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytesize::ByteSize;
use tracing::{debug, info};

use super::last_error::{recovered, watched};
use super::workspace::WorkDir;
use crate::job::mount::Mount;
use crate::job::notification::Object;
use crate::job::outcome::Failure;
use crate::job::route::MissingObject;
use crate::ports::checksum::{Algorithm, Checksum};
use crate::ports::{FetchError, ObjectBody, ObjectStore};
use download::{Counts, Download, Downloaded, Stopped, UNKNOWN};

/// The settings for reading objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPolicy {
    /// The buckets to read from; any if it is empty.
    pub buckets: Vec<String>,
    /// The most connections for a large object.
    pub streams: usize,
    /// The mounted buckets.
    pub mounts: Vec<Mount>,
}

impl Default for FetchPolicy {
    fn default() -> Self {
        Self { buckets: Vec::new(), streams: STREAMS, mounts: Vec::new() }
    }
}

/// The result of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    Here(FetchedObject),
    Gone,
}

/// The facts about the fetched object, which may differ from the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedObject {
    pub key: String,
    /// In bytes.
    pub size: u64,
    /// Without quotes.
    pub etag: Option<String>,
}

/// Streams the object into a new file at `path`, below `work_dir`; all of it or an error. If the
/// object is missing or differs from the event, tries `key_as_sent`, if given.
pub async fn fetch(
    store: &dyn ObjectStore,
    policy: &FetchPolicy,
    missing: Option<MissingObject>,
    work_dir: &WorkDir,
    object: &Object,
    key_as_sent: Option<&str>,
    path: &Path,
) -> Result<Fetched, Failure> {
    check_bucket(policy, object)?;
    let mut saved = save(store, policy.streams, work_dir, object, path).await;
    // Another object under the decoded key looks overwritten.
    if let (Err(FetchError::Missing(_) | FetchError::Overwritten(_)), Some(key)) =
        (&saved, key_as_sent)
    {
        let other = Object { key: key.to_owned(), ..object.clone() };
        if let Some(fetched) = save_undecoded(store, policy.streams, work_dir, &other, path).await {
            saved = Ok(fetched);
        }
    }
    judge(missing, saved).map(|it| it.map_or(Fetched::Gone, Fetched::Here))
}

/// What to do without the object; `None` if it is gone, which is not an error.
fn judge<T>(
    missing: Option<MissingObject>,
    fetched: Result<T, FetchError>,
) -> Result<Option<T>, Failure> {
    let (missing, why) = match fetched {
        Ok(fetched) => return Ok(Some(fetched)),
        Err(FetchError::Missing(why)) => (missing.unwrap_or(MissingObject::Retry), why),
        Err(FetchError::Overwritten(why)) => (missing.unwrap_or(MissingObject::Fail), why),
        Err(FetchError::Retryable(why)) => return Err(Failure::Fetch(why)),
        Err(FetchError::Permanent(why)) => return Err(Failure::Unreadable(why)),
    };
    match missing {
        MissingObject::Retry => Err(Failure::Fetch(why)),
        MissingObject::Fail => Err(Failure::Unreadable(why)),
        MissingObject::Ignore => {
            info!(why, "skipping an object that no longer exists (--missing-object ignore)");
            Ok(None)
        }
    }
}

/// Saves the object under the undecoded key. To be the one of the event, and not another one of
/// that name, it must have the event's version or eTag, or, if the event has neither, its size.
async fn save_undecoded(
    store: &dyn ObjectStore,
    streams: usize,
    work_dir: &WorkDir,
    object: &Object,
    path: &Path,
) -> Option<FetchedObject> {
    let is_pinned = object.version_id.is_some() || object.etag.is_some();
    if !is_pinned && object.size.is_none() {
        return None;
    }
    let fetched = save(store, streams, work_dir, object, path).await.ok()?;
    if !is_pinned && object.size != Some(fetched.size) {
        return None;
    }
    info!(
        key = object.key,
        "the object was found under the undecoded key of the event: the sender does not URL-encode keys"
    );
    Some(fetched)
}

/// Checks that the object's bucket is in `--buckets`, also if the object is not read.
pub fn check_bucket(policy: &FetchPolicy, object: &Object) -> Result<(), Failure> {
    object.check_bucket(&policy.buckets).map_err(Failure::Unreadable)
}

/// Writes the object to the disk, and verifies its checksum.
async fn save(
    store: &dyn ObjectStore,
    streams: usize,
    work_dir: &WorkDir,
    object: &Object,
    path: &Path,
) -> Result<FetchedObject, FetchError> {
    let name = format!("s3://{}/{}", object.bucket, object.key);
    let body = watched(store.open(object), || format!("{name}: no answer yet")).await?;
    recovered();
    let new_file = {
        let (work_dir, path, size) = (work_dir.clone(), path.to_owned(), body.size.unwrap_or(0));
        move || work_dir.new_file(&path, size)
    };
    let file =
        tokio::task::spawn_blocking(new_file).await.unwrap_or_else(|panic| Err(panic.to_string()));
    let file = file.map_err(|why| {
        let size = body.size.map(|size| format!(" is {}", ByteSize(size))).unwrap_or_default();
        FetchError::Retryable(format!("{name}{size}: {why}"))
    })?;
    let file = Arc::new(file);
    match Box::pin(download(store, streams, work_dir, object, body, &file)).await {
        Ok(fetched) => Ok(fetched),
        Err(Stopped::Failed(error)) => Err(error),
        Err(Stopped::NoRanges) => {
            debug!(
                object = name,
                "the store does not support ranges: downloading over one connection"
            );
            let body = store.open(object).await?;
            file.set_len(0).map_err(|error| FetchError::Retryable(work_dir.failed(&error)))?;
            match Box::pin(download(store, 1, work_dir, object, body, &file)).await {
                Ok(fetched) => Ok(fetched),
                Err(Stopped::Failed(error)) => Err(error),
                Err(Stopped::NoRanges) => {
                    Err(FetchError::Retryable(format!("{name}: the store does not support ranges")))
                }
            }
        }
    }
}

async fn download(
    store: &dyn ObjectStore,
    streams: usize,
    work_dir: &WorkDir,
    object: &Object,
    body: ObjectBody,
    file: &Arc<File>,
) -> Result<FetchedObject, Stopped> {
    let ObjectBody { size, etag, checksum, bytes } = body;
    let download = Download {
        store,
        work_dir,
        // All other answers must be about the same object as the first.
        object: Object { etag: object.etag.clone().or(etag.clone()), ..object.clone() },
        algorithm: checksum.as_ref().map(|checksum| checksum.algorithm),
        file: file.clone(),
        unclaimed: Mutex::new(0..size.unwrap_or(UNKNOWN)),
        size,
        counts: Counts::default(),
    };
    let streams =
        if is_parallelizable(size, &download.object, download.algorithm) { streams } else { 1 };
    let Downloaded { size, hash } = download.run(bytes, streams).await?;
    let fetched =
        FetchedObject { key: object.key.clone(), size, etag: etag.or_else(|| object.etag.clone()) };

    let Some(Checksum { algorithm, value }) = checksum else { return Ok(fetched) };
    let got = hash.unwrap_or_default();
    let name = format!("s3://{}/{}", object.bucket, object.key);
    if got != value {
        let why = format!("{name}: {algorithm} of its {size} bytes is {got}, expected {value}");
        return Err(FetchError::Retryable(why).into());
    }
    debug!(object = name, size, %algorithm, value, "checksum verified");
    Ok(fetched)
}

/// Can it be fetched by several streams? It must be large. Without a version or eTag, each stream
/// could get another object. A hash that cannot be combined from parts needs the bytes in order.
fn is_parallelizable(size: Option<u64>, object: &Object, algorithm: Option<Algorithm>) -> bool {
    let is_pinned = object.version_id.is_some() || object.etag.is_some();
    size.is_some_and(|size| size >= MIN_PARALLEL_SIZE)
        && is_pinned
        && algorithm.is_none_or(Algorithm::is_composable)
}

/// The smallest size in bytes for several streams.
const MIN_PARALLEL_SIZE: u64 = 64 << 20;

const STREAMS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_large_pinned_object_with_a_composable_hash_is_divided() {
        let object = |version_id: Option<&str>, etag: Option<&str>| {
            let (version_id, etag) = (version_id.map(str::to_owned), etag.map(str::to_owned));
            Object { version_id, etag, ..Object::named("b", "k") }
        };
        let (etag, version) = (object(None, Some("e")), object(Some("v"), None));
        assert!(is_parallelizable(Some(MIN_PARALLEL_SIZE), &etag, None));
        assert!(is_parallelizable(Some(MIN_PARALLEL_SIZE), &version, Some(Algorithm::Crc64Nvme)));
        assert!(!is_parallelizable(Some(MIN_PARALLEL_SIZE - 1), &etag, None));
        assert!(!is_parallelizable(None, &etag, None));
        assert!(!is_parallelizable(Some(MIN_PARALLEL_SIZE), &object(None, None), None));
        assert!(!is_parallelizable(Some(MIN_PARALLEL_SIZE), &etag, Some(Algorithm::Sha256)));
    }
}
