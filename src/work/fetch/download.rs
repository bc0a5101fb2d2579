//! The download of an object to the disk, over as many connections as necessary.

use std::fs::File;
use std::future::Future;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{Either, ready, try_join, try_join_all};
use tokio::task::JoinError;
use tracing::warn;

use crate::job::notification::Object;
use crate::ports::checksum::{Algorithm, Hasher};
use crate::ports::{ByteStream, FetchError, ObjectStore, RangeBody};
use crate::work::last_error::{recovered, retrying};
use crate::work::workspace::WorkDir;

/// A download in progress.
///
/// The first stream goes forward from the start. It is opened without a range, because only such an
/// answer has the checksum of the whole. For large objects, more streams take parts from the end
/// until they meet the first: no byte is fetched twice, and it does not matter which stream is
/// slow.
pub(super) struct Download<'a> {
    pub(super) store: &'a dyn ObjectStore,
    pub(super) work_dir: &'a WorkDir,
    /// Pinned to the object of the first answer.
    pub(super) object: Object,
    pub(super) algorithm: Option<Algorithm>,
    pub(super) file: Arc<File>,
    /// From the position of the first stream to the first part of the others; the end is `UNKNOWN`
    /// until the size is known.
    pub(super) unclaimed: Mutex<Range<u64>>,
    /// The announced size in bytes.
    pub(super) size: Option<u64>,
}

/// The end of an object of unknown size.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// A complete download: its size, and its hash if there is one to compare.
pub(super) struct Downloaded {
    pub(super) size: u64,
    pub(super) hash: Option<String>,
}

/// Why a download failed.
pub(super) enum Stopped {
    /// The store does not support ranges: only one stream can fetch the object.
    NoRanges,
    Failed(FetchError),
}

impl From<FetchError> for Stopped {
    fn from(error: FetchError) -> Self {
        Self::Failed(error)
    }
}

/// Where a stream ends.
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

/// Why a stream ended.
enum End {
    /// All bytes of its extent have arrived.
    Reached,
    Broken(String),
}

impl Download<'_> {
    /// Fetches the whole object with `streams` streams, of which `opened` is the first.
    pub(super) async fn run(
        &self,
        opened: ByteStream,
        streams: usize,
    ) -> Result<Downloaded, Stopped> {
        let first = self.part(0, Extent::UntilMet, Some(opened));
        let others = (1..streams).map(|_| self.parts_from_the_end());
        let (first, others) = try_join(first, try_join_all(others)).await?;
        let mut parts = [vec![first], others.concat()].concat();
        parts.sort_by_key(|part| part.start);
        let whole = parts.into_iter().filter_map(|part| part.hasher).reduce(|mut whole, part| {
            whole.append(&part);
            whole
        });
        let size = self.size.unwrap_or_else(|| self.unclaimed().end);
        Ok(Downloaded { size, hash: whole.map(Hasher::value) })
    }

    fn unclaimed(&self) -> MutexGuard<'_, Range<u64>> {
        self.unclaimed.lock().expect("nothing panics while holding it")
    }

    fn end(&self, extent: Extent) -> u64 {
        match extent {
            Extent::UntilMet => self.unclaimed().end,
            Extent::To(end) => end,
        }
    }

    /// Claims up to `length` received bytes from `at` on; returns how many belong to this stream.
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

    /// Fetches part after part from the end of the unclaimed range, until it is empty.
    async fn parts_from_the_end(&self) -> Result<Vec<Part>, Stopped> {
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

    /// Fetches the bytes from `start` on. A broken connection is followed by another that resumes
    /// there, until several in a row bring no bytes.
    async fn part(
        &self,
        start: u64,
        extent: Extent,
        mut opened: Option<ByteStream>,
    ) -> Result<Part, Stopped> {
        let hasher = self.algorithm.map(Hasher::new);
        let room = self.size.is_none().then(|| self.work_dir.clone());
        let mut sink = Sink { file: self.file.clone(), at: start, hasher, room };
        let mut pauses = backoff();
        loop {
            let (began_at, end) = (sink.at, self.end(extent));
            let stream = match opened.take() {
                Some(stream) => Ok(stream),
                None if began_at == end => return Ok(Part { start, hasher: sink.hasher }),
                None => self.open_at(began_at, end, extent).await,
            };
            let why = match stream {
                Ok(stream) => {
                    recovered();
                    let ended;
                    (sink, ended) = self.write_stream(stream, extent, sink).await?;
                    match ended {
                        End::Reached => return Ok(Part { start, hasher: sink.hasher }),
                        End::Broken(why) => why,
                    }
                }
                Err(Stopped::Failed(FetchError::Retryable(why))) => why,
                Err(error) => return Err(error),
            };
            if sink.at > began_at {
                pauses = self::backoff();
            }
            let why = format!(
                "the download of {} was interrupted at byte {}: {why}",
                self.name(),
                sink.at
            );
            let Some(pause) = pauses.next() else { return Err(FetchError::Retryable(why).into()) };
            warn!(why, ?pause, "resuming the download");
            retrying(why);
            tokio::time::sleep(pause).await;
        }
    }

    /// Opens the next stream after a broken one.
    async fn open_at(&self, at: u64, end: u64, extent: Extent) -> Result<ByteStream, Stopped> {
        let RangeBody { start, size, bytes } = self.store.open_range(&self.object, at..end).await?;
        if start > at {
            let why = format!("requested bytes {at}-, but the answer begins at {start}");
            return Err(FetchError::Retryable(why).into());
        }
        match (self.size, size) {
            (Some(was), Some(is)) if was != is => {
                let why = format!("{} had {was} bytes and now has {is}", self.name());
                return Err(FetchError::Retryable(why).into());
            }
            (None, Some(size)) if matches!(extent, Extent::UntilMet) => self.unclaimed().end = size,
            (Some(_) | None, _) => {}
        }
        match extent {
            Extent::To(_) if start < at => Err(Stopped::NoRanges),
            Extent::To(_) | Extent::UntilMet => Ok(skip_bytes(bytes, at - start)),
        }
    }

    /// Writes the stream to the disk, to the end of the extent or until it breaks. Reads the next
    /// batch while one is written, so that no thread of the runtime waits for the disk.
    async fn write_stream(
        &self,
        mut stream: ByteStream,
        extent: Extent,
        sink: Sink,
    ) -> Result<(Sink, End), FetchError> {
        let mut at = sink.at;
        let mut writing = Either::Left(ready(Ok(Ok(sink))));
        loop {
            let (mut batch, began_at) = (Vec::new(), at);
            let ended = loop {
                let end = self.end(extent);
                if at == end && Some(at) != self.size {
                    break Some(End::Reached);
                }
                if at - began_at >= BATCH {
                    break None;
                }
                match stream.next().await {
                    Some(Ok(chunk)) if at == end && !chunk.is_empty() => {
                        return Err(self.too_long(end));
                    }
                    Some(Ok(mut chunk)) => {
                        let claimed = self.claim(extent, at, chunk.len());
                        at += claimed as u64;
                        if claimed < chunk.len()
                            && Some(at) == self.size
                            && matches!(extent, Extent::UntilMet)
                        {
                            return Err(self.too_long(at));
                        }
                        chunk.truncate(claimed);
                        batch.push(chunk);
                    }
                    // Complete: the other streams fetch the rest, if any.
                    Some(Err(_)) | None if at == end => break Some(End::Reached),
                    Some(Err(error)) => break Some(End::Broken(error.to_string())),
                    None if end == UNKNOWN => {
                        self.unclaimed().end = at;
                        break Some(End::Reached);
                    }
                    None => break Some(End::Broken("it ended too soon".to_owned())),
                }
            };
            let sink = self.written(writing).await?;
            writing = Either::Right(tokio::task::spawn_blocking(move || sink.write(&batch)));
            if let Some(end) = ended {
                return Ok((self.written(writing).await?, end));
            }
        }
    }

    /// The error for an object that is longer than announced.
    fn too_long(&self, size: u64) -> FetchError {
        FetchError::Retryable(format!("{} is longer than its expected {size} bytes", self.name()))
    }

    async fn written(
        &self,
        writing: impl Future<Output = Result<Result<Sink, SinkError>, JoinError>>,
    ) -> Result<Sink, FetchError> {
        let written = writing
            .await
            .map_err(|error| SinkError::Disk(error.into()))
            .and_then(|written| written);
        written.map_err(|error| {
            FetchError::Retryable(match error {
                SinkError::Disk(error) => self.work_dir.failed(&error),
                SinkError::Room(why) => format!("{}: {why}", self.name()),
            })
        })
    }

    fn name(&self) -> String {
        format!("s3://{}/{}", self.object.bucket, self.object.key)
    }
}

/// The stream without its first `skip` bytes.
fn skip_bytes(bytes: ByteStream, mut skip: u64) -> ByteStream {
    let rest = move |chunk: Bytes| {
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= skipped as u64;
        chunk.slice(skipped..)
    };
    let mut rest = rest;
    bytes.map(move |chunk| chunk.map(&mut rest)).boxed()
}

/// Writes a part to the file.
struct Sink {
    file: Arc<File>,
    at: u64,
    hasher: Option<Hasher>,
    /// For reserving space as the bytes arrive, if the size is not known in advance.
    room: Option<WorkDir>,
}

enum SinkError {
    Disk(io::Error),
    Room(String),
}

impl Sink {
    fn write(mut self, chunks: &[Bytes]) -> Result<Self, SinkError> {
        if let Some(work_dir) = &self.room {
            let bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum();
            work_dir.extend(&self.file, self.at, bytes).map_err(SinkError::Room)?;
        }
        for chunk in chunks {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(chunk);
            }
            self.file.write_all_at(chunk, self.at).map_err(SinkError::Disk)?;
            self.at += chunk.len() as u64;
        }
        Ok(self)
    }
}

/// The pauses between connections without progress.
fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .with_max_times(5)
        .with_jitter()
        .build()
}

/// The size of a part, in bytes.
const PART: u64 = 8 << 20;

/// A batch is written once it has this many bytes; its last chunk may exceed them.
const BATCH: u64 = 128 << 10;
