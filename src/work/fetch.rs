//! Fetched: the object, exactly as the event told of it, as a file.

use std::fs::File;
use std::future::Future;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::StreamExt;
use futures_util::future::{Either, ready, try_join, try_join_all};
use tokio::task::JoinError;
use tracing::{debug, info, warn};

use super::workspace::WorkDir;
use crate::job::notification::Object;
use crate::job::verdict::Failure;
use crate::ports::checksum::{Algorithm, Checksum, Hasher};
use crate::ports::{ByteStream, FetchError, ObjectBody, ObjectStore};

/// What to make of an object that is gone, or no longer the one that the event told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MissingObject {
    /// Keep the message: it may come back
    Retry,
    /// Keep the message: redrive takes it to the dead-letter queue
    Fail,
    /// There is nothing to do: delete the message
    Ignore,
}

/// Which objects are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPolicy {
    /// Where nothing is said, a missing object is retried, and one that was overwritten is a failure.
    pub missing: Option<MissingObject>,
    /// The buckets to read from; any if it is empty.
    pub buckets: Vec<String>,
    /// How many connections a large object is worth.
    pub streams: usize,
}

impl Default for FetchPolicy {
    fn default() -> Self {
        Self { missing: None, buckets: Vec::new(), streams: STREAMS }
    }
}

/// Is there a file now?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    Here,
    Gone,
}

/// Streams the object into a new file at `path`, somewhere in `work_dir`; all of it or an error.
pub async fn fetch(
    store: &dyn ObjectStore,
    policy: &FetchPolicy,
    work_dir: &WorkDir,
    object: &Object,
    path: &Path,
) -> Result<Fetched, Failure> {
    check_bucket(policy, object)?;
    let fetched = match store.open(object).await {
        Ok(body) => save(store, policy.streams, work_dir, object, body, path).await,
        Err(error) => Err(error),
    };
    let (missing, why) = match fetched {
        Ok(()) => return Ok(Fetched::Here),
        Err(FetchError::Missing(why)) => (policy.missing.unwrap_or(MissingObject::Retry), why),
        Err(FetchError::Overwritten(why)) => (policy.missing.unwrap_or(MissingObject::Fail), why),
        Err(FetchError::Retryable(why)) => return Err(Failure::Fetch(why)),
        Err(FetchError::Permanent(why)) => return Err(Failure::Unreadable(why)),
    };
    match missing {
        MissingObject::Retry => Err(Failure::Fetch(why)),
        MissingObject::Fail => Err(Failure::Unreadable(why)),
        MissingObject::Ignore => {
            info!(why, "no work on an object that is gone (--missing-object ignore)");
            Ok(Fetched::Gone)
        }
    }
}

/// Whether the object is read or not: it is from a bucket that we are to touch.
pub fn check_bucket(policy: &FetchPolicy, object: &Object) -> Result<(), Failure> {
    if policy.buckets.is_empty() || policy.buckets.contains(&object.bucket) {
        return Ok(());
    }
    let buckets = policy.buckets.join(",");
    Err(Failure::Unreadable(format!("bucket {} is none of --buckets {buckets}", object.bucket)))
}

/// Writes what was opened to the disk, and compares it with what was told of it.
async fn save(
    store: &dyn ObjectStore,
    streams: usize,
    work_dir: &WorkDir,
    object: &Object,
    body: ObjectBody,
    path: &Path,
) -> Result<(), FetchError> {
    let ObjectBody { size, etag, checksum, bytes } = body;
    let name = format!("s3://{}/{}", object.bucket, object.key);
    let new_file = {
        let (work_dir, path) = (work_dir.clone(), path.to_owned());
        move || work_dir.new_file(&path, size)
    };
    let file = tokio::task::spawn_blocking(new_file).await.unwrap_or_else(|panic| Err(panic.to_string()));
    let download = Download {
        store,
        work_dir,
        // What the first answer was about is what all others must be about.
        object: Object { etag: object.etag.clone().or(etag), ..object.clone() },
        algorithm: checksum.as_ref().map(|checksum| checksum.algorithm),
        file: Arc::new(file.map_err(|why| FetchError::Retryable(format!("{name} is {}: {why}", ByteSize(size))))?),
        unclaimed: Mutex::new(0..size),
    };
    let first = download.part(0, Extent::UntilMet, Some(bytes));
    let streams = if is_divisible(size, &download.object, download.algorithm) { streams } else { 1 };
    let others = (1..streams).map(|_| download.parts_from_the_end());
    let (first, others) = try_join(first, try_join_all(others)).await?;

    let Some(Checksum { algorithm, value }) = checksum else { return Ok(()) };
    let mut parts = [vec![first], others.concat()].concat();
    parts.sort_by_key(|part| part.start);
    let whole = parts.into_iter().filter_map(|part| part.hasher).reduce(|mut whole, part| {
        whole.append(&part);
        whole
    });
    let got = whole.map(Hasher::value).unwrap_or_default();
    if got != value {
        let why = format!("{name}: {algorithm} of its {size} bytes is {got}, and should be {value}");
        return Err(FetchError::Retryable(why));
    }
    debug!(object = name, size, %algorithm, value, "the bytes are those that were stored");
    Ok(())
}

/// An object on its way to the disk.
///
/// The first stream, which was opened without a range because only such an answer tells the checksum of the whole,
/// goes forward from the start. Where it is worth it, more streams take parts from the end until they meet: nothing is
/// fetched twice, and it does not matter which of them is slow.
struct Download<'a> {
    store: &'a dyn ObjectStore,
    work_dir: &'a WorkDir,
    object: Object,
    algorithm: Option<Algorithm>,
    file: Arc<File>,
    /// From where the first stream is to where the others' parts begin.
    unclaimed: Mutex<Range<u64>>,
}

/// How far a stream goes.
#[derive(Clone, Copy)]
enum Extent {
    UntilMet,
    To(u64),
}

/// Bytes on the disk, from `start` to where the next part starts.
#[derive(Clone)]
struct Part {
    start: u64,
    hasher: Option<Hasher>,
}

impl Download<'_> {
    fn unclaimed(&self) -> MutexGuard<'_, Range<u64>> {
        self.unclaimed.lock().expect("nothing panics while holding it")
    }

    fn end(&self, extent: Extent) -> u64 {
        match extent {
            Extent::UntilMet => self.unclaimed().end,
            Extent::To(end) => end,
        }
    }

    /// How many of `length` bytes that have come for byte `at` and those after it are wanted.
    fn claim(&self, extent: Extent, at: u64, length: usize) -> usize {
        let wanted = |end: u64| usize::try_from(end - at).unwrap_or(usize::MAX).min(length);
        match extent {
            Extent::UntilMet => {
                let mut unclaimed = self.unclaimed();
                let wanted = wanted(unclaimed.end);
                unclaimed.start = at + wanted as u64;
                wanted
            }
            Extent::To(end) => wanted(end),
        }
    }

    /// Fetches part after part, from the end of what is unclaimed, until nothing is.
    async fn parts_from_the_end(&self) -> Result<Vec<Part>, FetchError> {
        let claim = || {
            let mut unclaimed = self.unclaimed();
            let start = unclaimed.end.saturating_sub(PART).max(unclaimed.start);
            let end = mem::replace(&mut unclaimed.end, start);
            (start < end).then_some((start, end))
        };
        let mut parts = Vec::new();
        while let Some((start, end)) = claim() {
            parts.push(self.part(start, Extent::To(end), None).await?);
        }
        Ok(parts)
    }

    /// Fetches the bytes from `start` on, over as many connections as it takes: one that breaks is followed by another,
    /// which goes on from there, until several in a row have brought nothing.
    async fn part(&self, start: u64, extent: Extent, mut opened: Option<ByteStream>) -> Result<Part, FetchError> {
        let hasher = self.algorithm.map(Hasher::new);
        let mut sink = Sink { file: self.file.clone(), at: start, hasher };
        let mut pauses = pauses();
        loop {
            let (begun_at, end) = (sink.at, self.end(extent));
            let stream = match opened.take() {
                Some(stream) => Ok(stream),
                None if begun_at == end => return Ok(Part { start, hasher: sink.hasher }),
                None => self.store.open_range(&self.object, begun_at..end).await,
            };
            let why = match stream {
                Ok(stream) => {
                    let broken;
                    (sink, broken) = self.pour(stream, extent, sink).await?;
                    match broken {
                        None => return Ok(Part { start, hasher: sink.hasher }),
                        Some(why) => why,
                    }
                }
                Err(FetchError::Retryable(why)) => why,
                Err(error @ (FetchError::Missing(_) | FetchError::Overwritten(_) | FetchError::Permanent(_))) => {
                    return Err(error);
                }
            };
            if sink.at > begun_at {
                pauses = self::pauses();
            }
            let Object { bucket, key, .. } = &self.object;
            let why = format!("s3://{bucket}/{key} broke off at byte {}: {why}", sink.at);
            let Some(pause) = pauses.next() else { return Err(FetchError::Retryable(why)) };
            warn!(why, ?pause, "the fetch goes on from there");
            tokio::time::sleep(pause).await;
        }
    }

    /// Writes what comes, to the end of the extent or until the stream breaks; then also says why it did. The next
    /// batch is read while one is written: no thread of the runtime waits for the disk.
    async fn pour(
        &self,
        mut stream: ByteStream,
        extent: Extent,
        sink: Sink,
    ) -> Result<(Sink, Option<String>), FetchError> {
        let mut at = sink.at;
        let mut writing = Either::Left(ready(Ok(Ok(sink))));
        loop {
            let (mut batch, begun_at) = (Vec::new(), at);
            let ended = loop {
                if at == self.end(extent) {
                    break Some(None);
                }
                if at - begun_at >= BATCH {
                    break None;
                }
                match stream.next().await {
                    Some(Ok(mut chunk)) => {
                        chunk.truncate(self.claim(extent, at, chunk.len()));
                        at += chunk.len() as u64;
                        batch.push(chunk);
                    }
                    Some(Err(error)) => break Some(Some(error.to_string())),
                    None => break Some(Some("it ended too soon".to_owned())),
                }
            };
            let sink = self.written(writing).await?;
            writing = Either::Right(tokio::task::spawn_blocking(move || sink.write(&batch)));
            if let Some(broken) = ended {
                return Ok((self.written(writing).await?, broken));
            }
        }
    }

    async fn written(
        &self,
        writing: impl Future<Output = Result<io::Result<Sink>, JoinError>>,
    ) -> Result<Sink, FetchError> {
        let written = writing.await.map_err(io::Error::from).and_then(|written| written);
        written.map_err(|error| FetchError::Retryable(self.work_dir.failed(&error)))
    }
}

/// Is it large enough for several streams, and can it be put together? What nothing pins could be another object in each
/// of them, and a hash that is not made of its parts' hashes needs the bytes in order.
fn is_divisible(size: u64, object: &Object, algorithm: Option<Algorithm>) -> bool {
    let is_pinned = object.version_id.is_some() || object.etag.is_some();
    size >= PARALLEL_FROM && is_pinned && algorithm.is_none_or(Algorithm::is_of_parts)
}

/// Where a part goes, and how far it has come.
struct Sink {
    file: Arc<File>,
    at: u64,
    hasher: Option<Hasher>,
}

impl Sink {
    fn write(mut self, chunks: &[Bytes]) -> io::Result<Self> {
        for chunk in chunks {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(chunk);
            }
            self.file.write_all_at(chunk, self.at)?;
            self.at += chunk.len() as u64;
        }
        Ok(self)
    }
}

/// Between connections that bring nothing.
fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .with_max_times(5)
        .with_jitter()
        .build()
}

/// In bytes; an object of this size or more is fetched by several streams.
const PARALLEL_FROM: u64 = 64 << 20;

const STREAMS: usize = 8;

/// What a stream takes at a time, in bytes.
const PART: u64 = 8 << 20;

/// What is written at a time, in bytes, and less than a stream's next chunk more.
const BATCH: u64 = 512 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_large_object_that_can_be_put_together_is_divided() {
        let object = |version_id: Option<&str>, etag: Option<&str>| {
            let (version_id, etag) = (version_id.map(str::to_owned), etag.map(str::to_owned));
            Object { bucket: "b".into(), key: "k".into(), version_id, etag, size: None, sequencer: None }
        };
        let (etag, version) = (object(None, Some("e")), object(Some("v"), None));
        assert!(is_divisible(PARALLEL_FROM, &etag, None));
        assert!(is_divisible(PARALLEL_FROM, &version, Some(Algorithm::Crc64Nvme)));
        assert!(!is_divisible(PARALLEL_FROM - 1, &etag, None));
        assert!(!is_divisible(PARALLEL_FROM, &object(None, None), None));
        assert!(!is_divisible(PARALLEL_FROM, &etag, Some(Algorithm::Sha256)));
    }
}
