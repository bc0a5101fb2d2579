//! The download of an object to the disk, over as many connections as necessary.

use std::fs::File;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::task::{consume_budget, spawn_blocking};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::ramp::{MIN_SAMPLE, Next, Ramp, Sample};
use crate::job::notification::Object;
use crate::ports::checksum::{Algorithm, Hasher};
use crate::ports::{ByteStream, FetchError, ObjectStore, RangeBody};
use crate::work::SMALL;
use crate::work::last_error::{recovered, retrying};
use crate::work::workspace::WorkDir;

/// A download in progress.
///
/// The first stream goes forward from the start. It is opened without a range, because only such an
/// answer has the checksum of the whole. For large objects, more streams take parts from the end
/// until they meet the first, as many as [`Ramp`] finds useful: no byte is fetched twice, and it
/// does not matter which stream is slow.
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
    pub(super) counts: Counts,
}

/// What all streams together have done so far.
#[derive(Default)]
pub(super) struct Counts {
    bytes: AtomicU64,
    /// Microseconds of writing, in which a stream did not wait for bytes.
    writing: AtomicU64,
    /// Parts, the first stream's included.
    begun: AtomicUsize,
    /// Parts that got an answer.
    answered: AtomicUsize,
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
    /// Fetches the whole object with up to `most` streams, of which `opened` is the first.
    pub(super) async fn run(&self, opened: ByteStream, most: usize) -> Result<Downloaded, Stopped> {
        let (mut ramp, mut is_settled) = (Ramp::new(most), most == 1);
        let mut sample = pin!(self.sample(Duration::ZERO, MIN_SAMPLE));
        let first = self.part(0, Extent::UntilMet, Some(opened));
        let (mut streams, mut parts) = (FuturesUnordered::from_iter([first]), Vec::new());
        loop {
            tokio::select! {
                biased;
                part = streams.next() => match part {
                    Some(part) => parts.push(part?),
                    None => break,
                },
                taken = &mut sample, if !is_settled && streams.len() <= ramp.streams() => {
                    match ramp.handle(taken) {
                        Next::Sample { pause, length } => sample.set(self.sample(pause, length)),
                        Next::Settled => is_settled = true,
                    }
                    debug!(object = self.name(), ?taken, streams = ramp.streams(), "measured");
                }
            }
            // A stream too many ends with its part, which is small until the number is final.
            let longest = if is_settled { MAX_PART } else { MIN_PART };
            while streams.len() < ramp.streams()
                && let Some(Range { start, end }) = self.claim_part(ramp.streams(), longest)
            {
                streams.push(self.part(start, Extent::To(end), None));
            }
        }
        parts.sort_by_key(|part| part.start);
        let whole = parts.into_iter().filter_map(|part| part.hasher).reduce(|mut whole, part| {
            whole.append(&part);
            whole
        });
        let size = self.size.unwrap_or_else(|| self.unclaimed().end);
        Ok(Downloaded { size, hash: whole.map(Hasher::value) })
    }

    /// Measures all streams for some time, after a pause and once each has an answer.
    async fn sample(&self, pause: Duration, length: Duration) -> Sample {
        sleep(pause).await;
        let begun = self.counts.begun.load(Ordering::Relaxed);
        while self.counts.answered.load(Ordering::Relaxed) < begun {
            sleep(MIN_SAMPLE / 10).await;
        }
        let bytes = || self.counts.bytes.load(Ordering::Relaxed);
        let writing = || self.counts.writing.load(Ordering::Relaxed);
        let (start, bytes_before, writing_before) = (Instant::now(), bytes(), writing());
        sleep(length).await;
        let remaining = self.unclaimed().clone();
        Sample {
            bytes: bytes() - bytes_before,
            time: start.elapsed(),
            writing: Duration::from_micros(writing() - writing_before),
            remaining: remaining.end.saturating_sub(remaining.start),
        }
    }

    fn unclaimed(&self) -> MutexGuard<'_, Range<u64>> {
        self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner)
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
        let claimed = match extent {
            Extent::UntilMet => {
                let mut unclaimed = self.unclaimed();
                let wanted = wanted(unclaimed.end);
                unclaimed.start = at + wanted as u64;
                wanted
            }
            Extent::To(end) => wanted(end),
        };
        self.counts.bytes.fetch_add(claimed as u64, Ordering::Relaxed);
        claimed
    }

    /// Claims the last part of the unclaimed range, up to `longest` bytes, unless it is empty. At first,
    /// large parts save requests; at the end, small ones let all streams end at about the same time.
    fn claim_part(&self, streams: usize, longest: u64) -> Option<Range<u64>> {
        let mut unclaimed = self.unclaimed();
        let length = unclaimed.end.saturating_sub(unclaimed.start) / (4 * streams as u64);
        let start = unclaimed.end.saturating_sub(length.clamp(MIN_PART, longest));
        // Stores read whole blocks.
        let start = start.next_multiple_of(MIN_PART).max(unclaimed.start);
        let end = mem::replace(&mut unclaimed.end, start);
        (start < end).then_some(start..end)
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
        let mut is_answered = false;
        self.counts.begun.fetch_add(1, Ordering::Relaxed);
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
                    if !mem::replace(&mut is_answered, true) {
                        self.counts.answered.fetch_add(1, Ordering::Relaxed);
                    }
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
            sleep(pause).await;
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

    /// Writes the stream to the disk, to the end of the extent or until it breaks.
    async fn write_stream(
        &self,
        mut stream: ByteStream,
        extent: Extent,
        mut sink: Sink,
    ) -> Result<(Sink, End), FetchError> {
        loop {
            let (mut batch, mut at, began_at) = (Vec::new(), sink.at, sink.at);
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
            let start = Instant::now();
            sink = self.write(sink, batch).await?;
            let time = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.counts.writing.fetch_add(time, Ordering::Relaxed);
            if let Some(end) = ended {
                return Ok((sink, end));
            }
            // A stream that always has bytes must not keep the thread.
            consume_budget().await;
        }
    }

    /// Writes a small object on this thread, like the other small files of a message. Another thread
    /// writes the bytes of a large one: this thread must be able to halt commands while the disk
    /// hangs, or the kernel lets writers wait for it.
    async fn write(&self, sink: Sink, batch: Vec<Bytes>) -> Result<Sink, FetchError> {
        let written = if self.size.is_some_and(|size| size <= SMALL) {
            sink.write(&batch)
        } else {
            let writing = spawn_blocking(move || sink.write(&batch));
            writing.await.unwrap_or_else(|panic| Err(SinkError::Disk(panic.into())))
        };
        written.map_err(|error| {
            FetchError::Retryable(match error {
                SinkError::Disk(error) => self.work_dir.failed(&error),
                SinkError::Room(why) => format!("{}: {why}", self.name()),
            })
        })
    }

    /// The error for an object that is longer than announced.
    fn too_long(&self, size: u64) -> FetchError {
        FetchError::Retryable(format!("{} is longer than its expected {size} bytes", self.name()))
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

/// The smallest and the largest part, in bytes.
const MIN_PART: u64 = 8 << 20;
const MAX_PART: u64 = 64 << 20;

/// The bytes of a batch for another thread; its last chunk may exceed them.
const BATCH: u64 = 256 << 10;

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures_util::stream;

    use super::*;
    use crate::ports::ObjectBody;

    struct NoStore;

    #[async_trait]
    impl ObjectStore for NoStore {
        async fn open(&self, _: &Object) -> Result<ObjectBody, FetchError> {
            Err(FetchError::Permanent("not opened here".to_owned()))
        }

        async fn open_range(&self, _: &Object, _: Range<u64>) -> Result<RangeBody, FetchError> {
            Err(FetchError::Permanent("not opened here".to_owned()))
        }
    }

    fn download(work_dir: &WorkDir, size: u64) -> Download<'_> {
        Download {
            store: &NoStore,
            work_dir,
            object: Object::named("b", "k"),
            algorithm: None,
            file: Arc::new(File::create(work_dir.path.join("k")).unwrap()),
            unclaimed: Mutex::new(0..size),
            size: Some(size),
            counts: Counts::default(),
        }
    }

    /// In real time, however long that is.
    #[tokio::test]
    async fn the_time_of_writing_is_counted() {
        let home = tempfile::tempdir().unwrap();
        let work_dir = WorkDir { path: home.path().to_owned(), limit: None };
        let bytes = Bytes::from(vec![7; 4 << 20]);
        let download = download(&work_dir, bytes.len() as u64);
        let opened = stream::iter([Ok(bytes)]).boxed();
        assert!(download.run(opened, 1).await.is_ok());
        assert!(download.counts.writing.load(Ordering::Relaxed) > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sample_has_what_happened_meanwhile() {
        let home = tempfile::tempdir().unwrap();
        let work_dir = WorkDir { path: home.path().to_owned(), limit: None };
        let download = download(&work_dir, 1000);
        let write = |bytes, micros| {
            download.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
            download.counts.writing.fetch_add(micros, Ordering::Relaxed);
        };
        let writes = async {
            write(1, 1);
            sleep(MIN_SAMPLE / 2).await;
            write(20, 3000);
        };
        let ((), sample) = tokio::join!(writes, download.sample(Duration::ZERO, MIN_SAMPLE));
        assert_eq!((sample.bytes, sample.writing), (20, Duration::from_millis(3)));
        assert_eq!((sample.time, sample.remaining), (MIN_SAMPLE, 1000));
    }
}
