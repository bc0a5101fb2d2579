//! How many streams the download of a large object uses: as many as make it faster.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fastrand::Rng;
use futures_util::stream::{self, StreamExt};
use leasehold::adapters::aws::s3::S3;
use leasehold::job::notification::Object;
use leasehold::ports::checksum::{Algorithm, Checksum, Hasher};
use leasehold::ports::{ByteStream, FetchError, ObjectBody, ObjectStore, RangeBody};
use leasehold::work::fetch::{FetchPolicy, Fetched, fetch};
use leasehold::work::workspace::WorkDir;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::support::aws;

const MIB: usize = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// The rate at which bytes may pass.
struct Limit {
    per_second: u32,
    /// When the next bytes may pass.
    free_at: Mutex<Instant>,
}

impl Limit {
    fn new(per_second: u32) -> Arc<Self> {
        Arc::new(Self { per_second, free_at: Mutex::new(Instant::now()) })
    }

    async fn pass(&self, bytes: usize) {
        let at = {
            let mut free_at = self.free_at.lock().unwrap();
            let time = SECOND * u32::try_from(bytes).unwrap() / self.per_second;
            // Timers are late, so some bytes may catch up.
            *free_at = (*free_at).max(Instant::now() - Duration::from_millis(10)) + time;
            *free_at
        };
        sleep_until(at).await;
    }
}

/// The requests of a download, and how many were answered at the same time.
#[derive(Default)]
struct Seen {
    ranges: Mutex<Vec<Range<usize>>>,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl Seen {
    fn opens(self: &Arc<Self>, range: Range<usize>) -> Open {
        self.ranges.lock().unwrap().push(range);
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_open.fetch_max(open, Ordering::Relaxed);
        Open(self.clone())
    }

    fn most_open(&self) -> usize {
        self.most_open.load(Ordering::Relaxed)
    }

    fn requests(&self) -> usize {
        self.ranges.lock().unwrap().len()
    }
}

/// An answer that is being sent.
struct Open(Arc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A store in virtual time, with a limit for each answer and one for all together.
struct LimitedStore {
    bytes: Bytes,
    of_each: u32,
    of_all: Arc<Limit>,
    latency: Duration,
    seen: Arc<Seen>,
}

impl LimitedStore {
    /// The limits are in MiB/s.
    fn new(size: usize, of_each: u32, of_all: u32, latency: Duration) -> Self {
        let bytes = noise(size).into();
        let (of_each, of_all) = (of_each << 20, Limit::new(of_all << 20));
        Self { bytes, of_each, of_all, latency, seen: Arc::default() }
    }

    async fn stream(&self, range: Range<usize>) -> ByteStream {
        let open = self.seen.opens(range.clone());
        sleep(self.latency).await;
        let (own, of_all) = (Limit::new(self.of_each), self.of_all.clone());
        let rest = self.bytes.slice(range);
        stream::unfold((rest, open), move |(mut rest, open)| {
            let (own, of_all) = (own.clone(), of_all.clone());
            async move {
                if rest.is_empty() {
                    return None;
                }
                let chunk = rest.split_to(rest.len().min(8 << 10));
                tokio::join!(own.pass(chunk.len()), of_all.pass(chunk.len()));
                Some((Ok(chunk), (rest, open)))
            }
        })
        .boxed()
    }
}

#[async_trait]
impl ObjectStore for LimitedStore {
    async fn open(&self, _: &Object) -> Result<ObjectBody, FetchError> {
        Ok(ObjectBody {
            size: Some(self.bytes.len() as u64),
            etag: Some("e".to_owned()),
            checksum: Some(checksum(&self.bytes)),
            bytes: self.stream(0..self.bytes.len()).await,
        })
    }

    async fn open_range(&self, _: &Object, range: Range<u64>) -> Result<RangeBody, FetchError> {
        let Range { start, end } = range;
        let (from, to) = (usize::try_from(start).unwrap(), usize::try_from(end).unwrap());
        let size = Some(self.bytes.len() as u64);
        Ok(RangeBody { start, size, bytes: self.stream(from..to).await })
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Rng::with_seed(49).fill(&mut bytes);
    bytes
}

fn checksum(bytes: &[u8]) -> Checksum {
    let algorithm = Algorithm::Crc64Nvme;
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    Checksum { algorithm, value: hasher.value() }
}

/// Downloads the object, compares its bytes, and returns the time that the download took.
async fn time_of_download(store: &dyn ObjectStore, bytes: &[u8]) -> Duration {
    let home: TempDir = tempfile::tempdir().unwrap();
    let (work_dir, path) =
        (WorkDir { path: home.path().to_owned(), limit: None }, home.path().join("k"));
    let object = Object::named("b", "k");
    let began = Instant::now();
    let policy = FetchPolicy::default();
    let fetched = fetch(store, &policy, None, &work_dir, &object, None, &path).await;
    assert!(matches!(fetched, Ok(Fetched::Here(_))), "{fetched:?}");
    let time = began.elapsed();
    assert!(std::fs::read(path).unwrap() == bytes, "the file differs from the object");
    time
}

#[tokio::test(start_paused = true)]
async fn a_store_that_limits_each_stream_gets_eight_of_them() {
    let store = LimitedStore::new(65 * MIB, 1, 1000, Duration::from_millis(20));
    let time = time_of_download(&store, &store.bytes).await;
    assert_eq!(store.seen.most_open(), 8, "{:?}", store.seen.ranges);
    // One stream takes 65 s; eight from the start on take 8.1 s.
    assert!(time < 12 * SECOND, "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_limits_all_streams_together_gets_no_more_than_two() {
    let store = LimitedStore::new(65 * MIB, 1000, 1, Duration::from_millis(20));
    let time = time_of_download(&store, &store.bytes).await;
    assert_eq!(store.seen.most_open(), 2, "{:?}", store.seen.ranges);
    // One stream takes 65 s.
    assert!(time < 67 * SECOND, "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn more_streams_than_the_network_can_feed_are_given_up() {
    let store = LimitedStore::new(130 * MIB, 1, 4, Duration::from_millis(20));
    let time = time_of_download(&store, &store.bytes).await;
    // Four are enough; eight are tried again from time to time.
    assert_eq!(store.seen.most_open(), 8, "{:?}", store.seen.ranges);
    assert!(time < 35 * SECOND, "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn a_quick_download_uses_one_stream() {
    let store = LimitedStore::new(65 * MIB, 200, 200, Duration::from_millis(1));
    time_of_download(&store, &store.bytes).await;
    assert_eq!(store.seen.requests(), 1, "{:?}", store.seen.ranges);
}

/// A server with one object, in real time.
struct LimitedServer {
    endpoint: String,
    seen: Arc<Seen>,
    _serving: AbortOnDropHandle<()>,
}

impl LimitedServer {
    async fn start(bytes: Bytes, per_connection: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (seen, crc) = (Arc::<Seen>::default(), checksum(&bytes).value);
        let connections = (seen.clone(), crc);
        let serving = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (bytes, (seen, crc)) = (bytes.clone(), connections.clone());
                let limit = Limit::new(per_connection);
                // The client closes connections whose rest another stream fetches.
                tokio::spawn(async move { serve(connection, &bytes, &crc, &limit, &seen).await });
            }
        });
        Self { endpoint, seen, _serving: AbortOnDropHandle::new(serving) }
    }
}

async fn serve(
    mut connection: TcpStream,
    object: &Bytes,
    crc: &str,
    limit: &Limit,
    seen: &Arc<Seen>,
) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let size = object.len();
        let asked = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
        let (range, headers) = if let Some(asked) = asked {
            assert!(head.contains("if-match: \"e\""), "a part of another object may come: {head}");
            let (first, last) = asked.split_once('-').unwrap();
            let range = first.parse().unwrap()..last.parse::<usize>().unwrap() + 1;
            let headers = format!("206 Partial Content\r\nContent-Range: bytes {asked}/{size}");
            (range, headers)
        } else {
            (0..size, format!("200 OK\r\nx-amz-checksum-crc64nvme: {crc}"))
        };
        let length = range.len();
        let head = format!("HTTP/1.1 {headers}\r\nETag: \"e\"\r\nContent-Length: {length}\r\n\r\n");
        let _open = seen.opens(range.clone());
        connection.write_all(head.as_bytes()).await?;
        for chunk in object[range].chunks(64 << 10) {
            limit.pass(chunk.len()).await;
            connection.write_all(chunk).await?;
        }
    }
}

/// Over real connections, with a real clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_limits_each_connection_gets_several() {
    let bytes = Bytes::from(noise(64 * MIB));
    let server = LimitedServer::start(bytes.clone(), 8 << 20).await;
    let s3 = S3::new(&aws::config(&server.endpoint), None);
    time_of_download(&s3, &bytes).await;
    assert!(server.seen.most_open() > 1, "{:?}", server.seen.ranges);
}
