//! 49, 58 to 60 and 73: the download of an object.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fastrand::Rng;
use futures_util::stream::{self, StreamExt};
use leasehold::adapters::aws::s3::S3;
use leasehold::job::notification::{Notification, Object, Record, parse};
use leasehold::job::outcome::Failure;
use leasehold::ports::checksum::{Algorithm, Checksum, Hasher};
use leasehold::ports::{ByteStream, FetchError, ObjectBody, ObjectStore, RangeBody};
use leasehold::work::fetch::{FetchPolicy, Fetched, FetchedObject, fetch};
use leasehold::work::workspace::WorkDir;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::aws;
use crate::support::cloud::{Cloud, Leasehold};
use crate::support::journey::{FakeStore, Journey, MINUTE, S, exits, queue};
use crate::support::servers::Microburst;

/// An object that does not fit the disk is a failed fetch, which another pod retries; the disk is
/// empty afterwards.
#[tokio::test]
async fn s49_a_full_disk_is_a_failed_fetch() {
    static LARGE: [u8; 200_000] = [b'x'; 200_000];
    let cloud = Cloud::new(5).await;
    cloud.put("large", &LARGE).await;
    let disk = tempfile::tempdir().unwrap();
    // A disk of 64 KiB that only this run sees.
    let small_disk = r#"mount -t tmpfs -o size=64k tmpfs "$DISK" || exit 99
        "$@" --work-dir "$DISK" -- true; code=$?; ls -A "$DISK" > remaining; exit $code"#;
    let mut command = tokio::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", small_disk, "sh"]);
    command.args([env!("CARGO_BIN_EXE_leasehold"), "run", "--queue-url", &cloud.queue_url]);
    command.env("DISK", disk.path()).current_dir(cloud.dir.path());
    command.env("AWS_ENDPOINT_URL", &cloud.endpoint).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    let exited = Leasehold::start(command).expect_exit(75).await;
    let kept = exited.record("message kept");
    assert_eq!(kept["outcome"], "fetch_failed");
    let error = kept["error"].as_str().unwrap();
    let (disk, name) = (disk.path().display(), format!("s3://{}/large", cloud.bucket));
    assert!(
        error.ends_with(&format!(
            "{name} is 195.3 KiB: --work-dir {disk}: 64.0 KiB are free: enlarge its volume"
        )),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(cloud.dir.path().join("remaining")).unwrap(), "");
    assert_eq!(cloud.counts().await, (0, 1), "the message is hidden for its delay");
}

/// No file system shows the limit of an emptyDir, so there is a flag for it; a download that would
/// exceed it is not started.
#[tokio::test]
async fn s49_an_object_over_the_work_dirs_limit_is_a_failed_fetch() {
    let cloud = Cloud::new(5).await;
    cloud.put("large", &vec![b'x'; 200_000]).await;
    let exited = cloud.run("--work-dir-limit 100Ki", "exit 0").expect_exit(75).await;
    let kept = exited.record("message kept");
    assert_eq!(kept["outcome"], "fetch_failed");
    let error = kept["error"].as_str().unwrap();
    assert!(
        error.contains("/large is 195.3 KiB: ")
            && error.contains(" of --work-dir-limit 100.0 KiB are used"),
        "{error}"
    );
}

/// An object whose streams break.
struct BreakingStore {
    bytes: Bytes,
    /// How many bytes a stream brings before it breaks.
    breaks_after: usize,
    /// Before each chunk.
    pause: Duration,
    /// Whether it ends as if it were complete, instead of with an error.
    ends: bool,
    checksum: Option<Checksum>,
    /// The Content-Length of the answer.
    says: Option<u64>,
    /// Whether it answers a range request with that range, or with the whole object.
    knows_ranges: bool,
    /// The error that range requests get.
    becomes: Option<FetchError>,
    /// The requests: object, range and time.
    asked: Mutex<Vec<(Object, Range<u64>, Instant)>>,
}

impl BreakingStore {
    fn new(bytes: impl Into<Bytes>, breaks_after: usize) -> Self {
        let (checksum, becomes, asked, bytes) = (None, None, Mutex::default(), bytes.into());
        let says = Some(bytes.len() as u64);
        Self {
            bytes,
            breaks_after,
            pause: Duration::ZERO,
            ends: false,
            checksum,
            says,
            knows_ranges: true,
            becomes,
            asked,
        }
    }

    fn stream(&self, object: &Object, range: Range<usize>) -> ByteStream {
        let requested = range.start as u64..range.end as u64;
        self.asked.lock().unwrap().push((object.clone(), requested, Instant::now()));
        let breaks_after = self.breaks_after.min(range.len());
        let pause = self.pause;
        let chunks: Vec<_> = self.bytes.slice(range)[..breaks_after]
            .chunks(300_000)
            .map(Bytes::copy_from_slice)
            .map(Ok)
            .collect();
        let breaks = (breaks_after == self.breaks_after && !self.ends)
            .then(|| Err(io::ErrorKind::ConnectionReset.into()));
        let paused = move |chunk| async move {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            chunk
        };
        stream::iter(chunks.into_iter().chain(breaks)).then(paused).boxed()
    }

    fn ranges(&self) -> Vec<Range<u64>> {
        self.asked.lock().unwrap().iter().map(|(_, range, _)| range.clone()).collect()
    }
}

#[async_trait]
impl ObjectStore for BreakingStore {
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError> {
        let (etag, checksum) = (Some("of-the-answer".to_owned()), self.checksum.clone());
        let bytes = self.stream(object, 0..self.bytes.len());
        Ok(ObjectBody { size: self.says, etag, checksum, bytes })
    }

    async fn open_range(
        &self,
        object: &Object,
        range: Range<u64>,
    ) -> Result<RangeBody, FetchError> {
        let end = range.end.min(self.bytes.len() as u64);
        let range = usize::try_from(range.start).unwrap()..usize::try_from(end).unwrap();
        assert!(!range.is_empty());
        let range = if self.knows_ranges { range } else { 0..self.bytes.len() };
        match &self.becomes {
            Some(error) => Err(error.clone()),
            None => Ok(RangeBody {
                start: range.start as u64,
                size: self.says,
                bytes: self.stream(object, range),
            }),
        }
    }
}

/// Fetches the object and returns the bytes on the disk.
async fn fetched(store: &BreakingStore, object: &Object) -> Result<Vec<u8>, Failure> {
    let home = tempfile::tempdir().unwrap();
    let (work_dir, path) =
        (WorkDir { path: home.path().to_owned(), limit: None }, home.path().join("k"));
    let fetched =
        fetch(store, &FetchPolicy::default(), None, &work_dir, object, None, &path).await?;
    let bytes = std::fs::read(path).unwrap();
    let etag = Some("of-the-answer".to_owned());
    assert_eq!(
        fetched,
        Fetched::Here(FetchedObject { key: object.key.clone(), size: bytes.len() as u64, etag })
    );
    Ok(bytes)
}

fn object(version_id: Option<&str>, etag: Option<&str>) -> Object {
    let (version_id, etag) = (version_id.map(str::to_owned), etag.map(str::to_owned));
    Object { version_id, etag, ..Object::named("b", "k") }
}

/// Random bytes.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Rng::with_seed(49).fill(&mut bytes);
    bytes
}

fn checksum(algorithm: Algorithm, bytes: &[u8]) -> Checksum {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    Checksum { algorithm, value: hasher.value() }
}

/// A broken stream is resumed where it broke, of the same object version; as often as necessary
/// while there is progress.
#[tokio::test(start_paused = true)]
async fn s49_a_broken_stream_is_resumed_where_it_broke() {
    for (from_event, pinned) in [
        (object(None, None), object(None, Some("of-the-answer"))),
        (object(None, Some("e")), object(None, Some("e"))),
        (object(Some("v"), None), object(Some("v"), Some("of-the-answer"))),
    ] {
        for ends in [false, true] {
            let bytes = noise(100);
            let crc = Some(checksum(Algorithm::Crc64Nvme, &bytes));
            let store =
                BreakingStore { ends, checksum: crc, ..BreakingStore::new(bytes.clone(), 7) };
            assert_eq!(fetched(&store, &from_event).await, Ok(bytes));
            let starts: Vec<_> = (0..100).step_by(7).map(|start| start..100).collect();
            assert_eq!(store.ranges(), starts);
            assert!(store.asked.lock().unwrap()[1..].iter().all(|(object, ..)| *object == pinned));
        }
    }
}

/// Streams that bring no bytes are retried a few times; then the fetch fails and reports its
/// position.
#[tokio::test(start_paused = true)]
async fn s49_streams_without_progress_are_a_failed_fetch() {
    let store = BreakingStore::new(noise(100), 0);
    let began = Instant::now();
    let Err(Failure::Fetch(why)) = fetched(&store, &object(None, None)).await else {
        panic!("it was fetched")
    };
    assert_eq!(why, "the download of s3://b/k was interrupted at byte 0: connection reset");
    assert_eq!(store.ranges(), vec![0..100; 6]);
    assert!(S < began.elapsed() && began.elapsed() < 15 * S, "{:?}", began.elapsed());
}

/// An object that is overwritten or deleted during the fetch is treated as if that had happened
/// before.
#[tokio::test(start_paused = true)]
async fn s49_an_object_that_changes_during_the_fetch_is_not_mixed() {
    let text = || "why".to_owned();
    for (becomes, failure) in [
        (FetchError::Overwritten(text()), Failure::Unreadable(text())),
        (FetchError::Missing(text()), Failure::Fetch(text())),
    ] {
        let store = BreakingStore { becomes: Some(becomes), ..BreakingStore::new(noise(100), 7) };
        assert_eq!(fetched(&store, &object(None, None)).await, Err(failure));
    }
}

/// Bytes that do not match the stored checksum are a failed fetch, for each algorithm.
#[tokio::test(start_paused = true)]
async fn s49_a_wrong_checksum_is_a_failed_fetch() {
    let bytes = noise(2_000_000);
    let mut changed = bytes.clone();
    changed[1_500_000] ^= 1;
    for algorithm in [
        Algorithm::Crc64Nvme,
        Algorithm::Crc32,
        Algorithm::Crc32C,
        Algorithm::Sha1,
        Algorithm::Sha256,
    ] {
        let checksum = Some(checksum(algorithm, &bytes));
        let store = BreakingStore {
            checksum: checksum.clone(),
            ..BreakingStore::new(bytes.clone(), usize::MAX)
        };
        assert_eq!(fetched(&store, &object(None, None)).await.unwrap(), bytes);
        let store = BreakingStore { checksum, ..BreakingStore::new(changed.clone(), usize::MAX) };
        let Err(Failure::Fetch(why)) = fetched(&store, &object(None, None)).await else {
            panic!("{algorithm:?}")
        };
        assert!(
            why.starts_with(&format!("s3://b/k: {algorithm} of its 2000000 bytes is ")),
            "{why}"
        );
    }
}

/// A large object is fetched over several connections, each of which may break; its checksum is
/// verified.
#[tokio::test(start_paused = true)]
async fn s49_a_large_object_is_fetched_in_parallel_and_verified() {
    let bytes = Bytes::from(noise(65 << 20));
    let checksum = Some(checksum(Algorithm::Crc64Nvme, &bytes));
    let pause = Duration::from_millis(20);
    let store = BreakingStore { pause, checksum, ..BreakingStore::new(bytes.clone(), 5_000_000) };
    assert!(fetched(&store, &object(None, None)).await.unwrap() == bytes, "they differ");
    let (ranges, size) = (store.ranges(), bytes.len() as u64);
    assert_eq!(ranges[0], 0..size);
    let is_a_part = |range: &&Range<u64>| range.end < size;
    let (parts, resumed) = ranges.iter().partition::<Vec<_>, _>(is_a_part);
    assert!(parts.len() > 1 && resumed.len() > 1, "{ranges:?}");
}

/// An answer without a length is read to its end, whatever size the event reports; a broken one is
/// resumed.
#[tokio::test(start_paused = true)]
async fn s58_an_answer_without_a_length_is_read_to_its_end() {
    for size in [None, Some(0), Some(3), Some(1_000_000)] {
        let from_event = Object { size, ..object(None, Some("e")) };
        for (length, breaks_after) in
            [(0, 1), (5, 100), (2_000_000, usize::MAX), (2_000_000, 700_000)]
        {
            let bytes = noise(length);
            let whole =
                BreakingStore { says: None, ..BreakingStore::new(bytes.clone(), breaks_after) };
            assert!(
                fetched(&whole, &from_event).await.unwrap() == bytes,
                "{size:?} {length} {breaks_after}"
            );
            let checked = BreakingStore {
                checksum: Some(checksum(Algorithm::Crc32, &bytes)),
                says: None,
                ..BreakingStore::new(bytes, breaks_after)
            };
            fetched(&checked, &from_event).await.unwrap();
        }
    }
}

/// Bytes after the announced length are not cut off: this is not the announced object.
#[tokio::test(start_paused = true)]
async fn s58_an_object_longer_than_its_content_length_is_a_failed_fetch() {
    for says in [0, 3, 99] {
        let store =
            BreakingStore { says: Some(says), ..BreakingStore::new(noise(100), usize::MAX) };
        let failed = fetched(&store, &object(None, Some("e"))).await;
        let why = format!("s3://b/k is longer than its expected {says} bytes");
        assert_eq!(failed, Err(Failure::Fetch(why)));
    }
}

/// An object of unknown size does not exceed the limit of the work directory.
#[tokio::test(start_paused = true)]
async fn s58_an_object_of_unknown_length_stays_within_the_work_dirs_limit() {
    let home = tempfile::tempdir().unwrap();
    let (work_dir, path) =
        (WorkDir { path: home.path().to_owned(), limit: Some(2 << 20) }, home.path().join("k"));
    let store = BreakingStore { says: None, ..BreakingStore::new(noise(4 << 20), usize::MAX) };
    let failed = fetch(
        &store,
        &FetchPolicy::default(),
        None,
        &work_dir,
        &object(None, Some("e")),
        None,
        &path,
    )
    .await;
    let Err(Failure::Fetch(why)) = failed else { panic!("{failed:?}") };
    assert!(
        why.starts_with("s3://b/k: --work-dir ")
            && why.contains(" of --work-dir-limit 2.0 MiB are used"),
        "{why}"
    );
    assert!(path.metadata().unwrap().len() <= 2 << 20);
}

/// A server without ranges answers with the whole object: a broken stream is resumed where it
/// broke, and a large object is fetched over one connection.
#[tokio::test(start_paused = true)]
async fn s59_a_store_without_ranges_is_read_over_one_connection() {
    let small = noise(1000);
    let store =
        BreakingStore { knows_ranges: false, ..BreakingStore::new(small.clone(), usize::MAX) };
    assert_eq!(fetched(&store, &object(None, None)).await, Ok(small.clone()));
    // Each stream breaks at the same byte, so none makes progress.
    let broken = BreakingStore { knows_ranges: false, ..BreakingStore::new(small, 700) };
    let Err(Failure::Fetch(why)) = fetched(&broken, &object(None, None)).await else {
        panic!("it was fetched")
    };
    assert_eq!(why, "the download of s3://b/k was interrupted at byte 700: connection reset");

    let large = Bytes::from(noise(65 << 20));
    let checksum = Some(checksum(Algorithm::Crc64Nvme, &large));
    let store = BreakingStore {
        checksum,
        knows_ranges: false,
        pause: Duration::from_millis(20),
        ..BreakingStore::new(large.clone(), usize::MAX)
    };
    assert!(fetched(&store, &object(None, None)).await.unwrap() == large, "they differ");
    // The first stream, the attempt with a second one, and all bytes again.
    assert_eq!(store.ranges(), vec![0..large.len() as u64; 3]);
}

/// A fetch that runs out of time reports its last error, if there was one.
#[tokio::test(start_paused = true)]
async fn s60_a_fetch_that_runs_out_of_time_reports_its_last_error() {
    // A fixed seed for the jitter: otherwise a pause may end in the same millisecond as the time
    // limit.
    fastrand::seed(1);
    let silent = Arc::new(FakeStore { after: 10 * MINUTE, ..FakeStore::default() });
    let broken = BreakingStore { knows_ranges: true, ..BreakingStore::new(noise(100_000), 10_000) };
    let whole = BreakingStore::new(noise(100), usize::MAX);
    let stores: [(Arc<dyn ObjectStore>, Duration, Option<&str>); 4] = [
        (silent.clone(), S, None),
        (silent, 10 * S, Some("; last error: s3://inbox/k: no answer yet")),
        (Arc::new(broken), S, Some("was interrupted at byte ")),
        (Arc::new(whole), 2 * S, None),
    ];
    for (store, max_duration, why) in stores {
        let mut journey = Journey::new(&queue(), &exits(0));
        journey.store = store;
        journey.settings.policy.limits.max_duration = max_duration;
        let result = journey.run().await;
        assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["timed_out"], 1));
        let error = result.ended()[0].error().unwrap();
        let begins = "the work took longer than --max-duration";
        match why {
            Some(why) => assert!(error.starts_with(begins) && error.contains(why), "{error}"),
            None => assert_eq!(error, begins),
        }
    }
}

/// The same over real connections to a real server: a cut connection is resumed, and corrupt bytes
/// are detected before the command sees them.
#[tokio::test]
async fn s49_cut_connections_are_resumed_and_corrupt_bytes_are_detected() {
    let (cut, changed) = (Cloud::new(5).await, Cloud::new(5).await);
    let rule = |cloud: &Cloud, response| json!({ "service": "s3", "operation": "GetObject", "resource": cloud.bucket, "times": 2, "response": response });
    let rules =
        [rule(&cut, json!({ "abort_frac": 0.5 })), rule(&changed, json!({ "corrupt_bytes": 8 }))];
    let network = Microburst::start(&cut.endpoint, &rules).await;
    aws::warm_up(&network.endpoint()).await;
    let run = |cloud: &Cloud| {
        let mut command = cloud.command(&[], "", r#"cp "$JOB_INPUT" got"#);
        command.env("AWS_ENDPOINT_URL_S3", network.endpoint());
        Leasehold::start(command)
    };

    let bytes = noise(3_000_000);
    cut.put("k", &bytes).await;
    let exited = run(&cut).expect_exit(0).await;
    assert!(std::fs::read(cut.dir.path().join("got")).unwrap() == bytes, "they differ");
    let resumed = exited.log.iter().filter(|record| record["message"] == "resuming the download");
    assert_eq!(resumed.count(), 2, "{}", exited.stdout);

    changed.put("k", &bytes).await;
    let exited = run(&changed).expect_exit(75).await;
    let kept = exited.record("message kept");
    assert_eq!(kept["outcome"], "fetch_failed");
    assert!(kept["error"].as_str().unwrap().contains("CRC32 of its 3000000 bytes is "), "{kept}");
    assert!(!changed.dir.path().join("got").exists());
}

/// Some senders do not encode keys: their `a+b` means `a+b`. If there is no object under the
/// decoded key, the key as sent is tried; the object must match the event.
#[tokio::test]
async fn s73_a_key_without_encoding_is_found() {
    let cloud = Cloud::new(5).await;
    let config = aws::config(&cloud.endpoint);
    let s3 = S3::new(&config, None);
    cloud.put("1+1=2%20.txt", b"hello").await;
    let head =
        cloud.s3.head_object().bucket(&cloud.bucket).key("1+1=2%20.txt").send().await.unwrap();
    let etag = head.e_tag.unwrap().trim_matches('"').to_owned();

    let event = |etag: Option<&str>, size: Option<u64>| {
        let object = serde_json::json!({ "key": "1+1=2%20.txt", "eTag": etag, "size": size });
        let s3 = serde_json::json!({ "bucket": { "name": cloud.bucket }, "object": object });
        let body =
            serde_json::json!({ "Records": [{ "eventName": "ObjectCreated:Put", "s3": s3 }] });
        let Ok(Notification::Records(mut records)) = parse(&body.to_string()) else {
            panic!("{body}")
        };
        records.remove(0)
    };
    let home = tempfile::tempdir().unwrap();
    let work_dir = WorkDir { path: home.path().to_owned(), limit: None };
    for (n, (etag, size, is_found)) in [
        (Some(etag.as_str()), Some(5), true),
        (Some(etag.as_str()), None, true),
        (None, Some(5), true),
        (None, Some(6), false),
        (None, None, false),
        (Some("0123456789abcdef0123456789abcdef"), Some(5), false),
    ]
    .into_iter()
    .enumerate()
    {
        let Record { object, key_as_sent, .. } = event(etag, size);
        assert_eq!(object.key, "1 1=2 .txt");
        let path = home.path().join(n.to_string());
        let fetched = fetch(
            &s3,
            &FetchPolicy::default(),
            None,
            &work_dir,
            &object,
            key_as_sent.as_deref(),
            &path,
        )
        .await;
        match fetched {
            Ok(Fetched::Here(fetched)) => {
                assert_eq!((fetched.key.as_str(), is_found), ("1+1=2%20.txt", true));
            }
            Err(Failure::Fetch(why)) => {
                assert!(!is_found && why.contains("1 1=2 .txt is missing"), "{n}: {why}");
            }
            other => panic!("{n}: {other:?}"),
        }
    }

    // Also if another object has the decoded key.
    cloud.put("1 1=2 .txt", b"another one").await;
    let Record { object, key_as_sent, .. } = event(Some(&etag), Some(5));
    let path = home.path().join("beside");
    let fetched = fetch(
        &s3,
        &FetchPolicy::default(),
        None,
        &work_dir,
        &object,
        key_as_sent.as_deref(),
        &path,
    )
    .await;
    let Ok(Fetched::Here(fetched)) = fetched else { panic!("{fetched:?}") };
    assert_eq!((fetched.key.as_str(), fetched.size), ("1+1=2%20.txt", 5));
}
