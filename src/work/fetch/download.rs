//! An object on its way to the disk, over as many connections as it takes.

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

/// An object on its way to the disk.
///
/// The first stream, which was opened without a range because only such an answer tells the
/// checksum of the whole, goes forward from the start. Where it is worth it, more streams take
/// parts from the end until they meet: nothing is fetched twice, and it does not matter which of
/// them is slow.
pub(super) struct Download<'a> {
    pub(super) store: &'a dyn ObjectStore,
    pub(super) work_dir: &'a WorkDir,
    /// Pinned to what the first answer was about.
    pub(super) object: Object,
    pub(super) algorithm: Option<Algorithm>,
    pub(super) file: Arc<File>,
    /// From where the first stream is to where the others' parts begin; to `UNKNOWN` until the size
    /// is known.
    pub(super) unclaimed: Mutex<Range<u64>>,
    /// How many bytes the object has, as it was said.
    pub(super) size: Option<u64>,
}

/// Where an object ends of which nobody says where.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// What came: how many bytes, and their hash if one is to be compared.
pub(super) struct Whole {
    pub(super) size: u64,
    pub(super) hash: Option<String>,
}

/// Why there is no file.
pub(super) enum Stopped {
    /// The store does not know ranges: only one stream can bring the object.
    NoRanges,
    Failed(FetchError),
}

impl From<FetchError> for Stopped {
    fn from(error: FetchError) -> Self {
        Self::Failed(error)
    }
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

/// Why a stream brings no more.
enum End {
    /// All is here.
    Reached,
    Broken(String),
}

impl Download<'_> {
    /// Fetches all of it: what the first answer brings, and the rest by `streams` in all.
    pub(super) async fn run(&self, opened: ByteStream, streams: usize) -> Result<Whole, Stopped> {
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
        Ok(Whole { size, hash: whole.map(Hasher::value) })
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

    /// Fetches the bytes from `start` on, over as many connections as it takes: one that breaks is
    /// followed by another, which goes on from there, until several in a row have brought nothing.
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
            let (begun_at, end) = (sink.at, self.end(extent));
            let stream = match opened.take() {
                Some(stream) => Ok(stream),
                None if begun_at == end => return Ok(Part { start, hasher: sink.hasher }),
                None => self.open_at(begun_at, end, extent).await,
            };
            let why = match stream {
                Ok(stream) => {
                    recovered();
                    let ended;
                    (sink, ended) = self.pour(stream, extent, sink).await?;
                    match ended {
                        End::Reached => return Ok(Part { start, hasher: sink.hasher }),
                        End::Broken(why) => why,
                    }
                }
                Err(Stopped::Failed(FetchError::Retryable(why))) => why,
                Err(error) => return Err(error),
            };
            if sink.at > begun_at {
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

    /// What follows a stream that broke.
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
            Extent::To(_) | Extent::UntilMet => Ok(from(bytes, at - start)),
        }
    }

    /// Writes what comes, to the end of the extent or until the stream breaks. The next batch is
    /// read while one is written: no thread of the runtime waits for the disk.
    async fn pour(
        &self,
        mut stream: ByteStream,
        extent: Extent,
        sink: Sink,
    ) -> Result<(Sink, End), FetchError> {
        let mut at = sink.at;
        let mut writing = Either::Left(ready(Ok(Ok(sink))));
        loop {
            let (mut batch, begun_at) = (Vec::new(), at);
            let ended = loop {
                let end = self.end(extent);
                if at == end && Some(at) != self.size {
                    break Some(End::Reached);
                }
                if at - begun_at >= BATCH {
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
                    // All is here, or it is for the others to bring.
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

    /// What is not the object that was announced is no part of one.
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

/// The stream without its first bytes, so many.
fn from(bytes: ByteStream, mut skip: u64) -> ByteStream {
    let rest = move |chunk: Bytes| {
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= skipped as u64;
        chunk.slice(skipped..)
    };
    let mut rest = rest;
    bytes.map(move |chunk| chunk.map(&mut rest)).boxed()
}

/// Where a part goes, and how far it has come.
struct Sink {
    file: Arc<File>,
    at: u64,
    hasher: Option<Hasher>,
    /// Where room is taken as the bytes come, because nobody says before how many there are.
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

/// Between connections that bring nothing.
fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .with_max_times(5)
        .with_jitter()
        .build()
}

/// What a stream takes at a time, in bytes.
const PART: u64 = 8 << 20;

/// What is written at a time, in bytes, and less than a stream's next chunk more.
const BATCH: u64 = 512 << 10;
