//! `Worker` beside other tasks of a program, on real servers; and whole programs as processes.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use aws_sdk_sqs::types::{Message, MessageSystemAttributeName};
use leasehold::prometheus::{Registry, TextEncoder};
use leasehold::{
    CancellationToken, Error, Failure, Handler, Job, Outcome, RunError, SettingsError, Worker,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tracing::Subscriber;
use tracing::instrument::WithSubscriber;
use tracing::span::Id;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::library::batch;
use crate::support::cloud::{Cloud, ExitedRun, LIMIT, Leasehold, eventually};
use crate::support::servers::free_port;

/// A `tracing` subscriber that a program brings along.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + 'static {
        // As in support::logs: a test without a subscriber would disable callsites for this one.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
        let out = self.clone();
        tracing_subscriber::fmt().json().with_writer(move || out.clone()).finish()
    }

    fn records(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Where a worker finds its messages, and its folder for files.
fn of<K>(cloud: &Cloud, worker: Worker<K>) -> Worker<K> {
    worker
        .queue_url(&cloud.queue_url)
        .sdk_config(&crate::support::aws::config(&cloud.endpoint))
        .work_dir(cloud.dir.path())
}

fn worker(cloud: &Cloud, handler: impl Handler) -> Worker {
    of(cloud, Worker::new(handler))
}

async fn succeed(_: Job) -> Result<(), Error> {
    Ok(())
}

/// This test has a current-thread runtime and a subscriber of its own, and keeps both.
#[tokio::test]
async fn a_worker_uses_the_runtime_and_the_subscriber_of_its_caller() {
    let cloud = Cloud::new(5).await;
    for key in ["a", "b", "c"] {
        cloud.put(key, b"data").await;
    }
    let (log, registry, stop) = (Written::default(), Registry::new(), CancellationToken::new());
    let caller = std::thread::current().id();
    let handler = move |job: Job| async move {
        assert_eq!(std::thread::current().id(), caller, "it runs on the caller's thread");
        let bytes = job.bytes().await?;
        tracing::info!(bytes = bytes.len(), "handled");
        match job.key.as_deref() {
            Some("c") if job.receive_count == 1 => Err("not today".into()),
            _ => Ok::<_, Error>(()),
        }
    };
    let of_both =
        |worker: Worker| worker.registry(&registry).stop_when(stop.clone().cancelled_owned());
    let running = of_both(worker(&cloud, handler).concurrency(2)).run();
    // The second worker of a program registers its metrics, too.
    let other = worker(&cloud, handler).queue_url(format!("{}-dlq", cloud.queue_url));
    let other = of_both(other).run();
    let watching = async {
        eventually("all messages are gone", async || {
            (cloud.counts().await == (0, 0)).then_some(())
        })
        .await;
        let metrics = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        stop.cancel();
        metrics
    };
    let running = running.with_subscriber(log.subscriber());
    let (ended, other, metrics) = tokio::join!(running, other, watching);
    let summary = ended.unwrap();
    assert_eq!((summary.succeeded, summary.kept), (3, 1), "{summary:?}");
    assert_eq!(summary.last_kept, Some(Outcome::HandlerFailed));
    assert_eq!(other.unwrap(), leasehold::Summary::default());

    let records = log.records();
    let logged = records.iter().filter(|record| record["fields"]["message"] == "handled");
    let spans: Vec<_> = logged.map(|record| record["span"]["key"].as_str().unwrap()).collect();
    assert_eq!(spans.len(), 4, "{records:?}");
    let ended = |record: &&Value| record["fields"]["message"] == "message deleted";
    assert_eq!(records.iter().filter(ended).count(), 3);
    assert!(registry.gather().is_empty(), "they are removed at the end of the run");
    let queue = cloud.queue_url.rsplit('/').next().unwrap();
    let received = format!("leasehold_messages_received_total{{queue=\"{queue}\"}} 4");
    assert!(metrics.contains(&received), "{metrics}");
    assert!(metrics.contains(&format!("{{queue=\"{queue}-dlq\"}} 0")), "{metrics}");
}

/// The names of the threads that worked on a message.
#[derive(Clone, Default)]
struct WorkedOn(Arc<Mutex<BTreeSet<String>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for WorkedOn {
    fn on_enter(&self, span: &Id, context: Context<'_, S>) {
        if context.span(span).is_some_and(|span| span.name() == "work") {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            self.0.lock().unwrap().insert(name);
        }
    }
}

/// Sets what a worker does, with a location for it.
type Setting = fn(Worker, &str) -> Worker;

/// To wake it takes longer than much of the work of a handler.
#[tokio::test]
async fn only_work_that_may_block_uses_the_thread_for_that() {
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
    let cloud = Cloud::new(5).await;
    let output = format!("s3://{}/out", cloud.bucket);
    let cases: [(Setting, bool); 4] = [
        (|worker, _| worker.fetch_on_demand(), false),
        (|worker, _| worker, true),
        (|worker, output| worker.fetch_on_demand().output(output), true),
        (|worker, output| worker.fetch_on_demand().checkpoint(output), true),
    ];
    for (set, is_used) in cases {
        cloud.put("k", b"data").await;
        let threads = WorkedOn::default();
        let subscriber = tracing_subscriber::registry().with(threads.clone());
        let handler = async |job: Job| {
            job.progress(0.5);
            assert_eq!(job.bytes().await?, b"data");
            Ok::<_, Error>(())
        };
        let worker = set(worker(&cloud, handler).max_messages(1).until_empty(LIMIT), &output);
        let summary = worker.run().with_subscriber(subscriber).await.unwrap();
        assert_eq!((summary.succeeded, summary.kept), (1, 0));
        let threads = threads.0.lock().unwrap();
        assert_eq!(threads.contains("leasehold-work"), is_used, "{threads:?}");
        assert_eq!(threads.contains("leasehold"), !is_used, "{threads:?}");
    }
}

/// An error that notes which threads make its text and drop it.
#[derive(Debug)]
struct Noting(Arc<Mutex<Vec<ThreadId>>>);

impl Noting {
    fn note(&self) {
        self.0.lock().unwrap().push(std::thread::current().id());
    }
}

impl fmt::Display for Noting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.note();
        f.write_str("noted")
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        self.note();
    }
}

impl std::error::Error for Noting {}

fn of_one_message<K>(worker: Worker<K>) -> Worker<K> {
    let worker = worker.fetch_on_demand().max_messages(1).until_empty(LIMIT);
    worker.retry(Duration::ZERO, Duration::ZERO)
}

/// It may take long, or panic.
#[tokio::test]
async fn the_code_of_an_error_runs_on_the_thread_of_the_handler() {
    let cloud = Cloud::new(5).await;
    let threads = Arc::<Mutex<Vec<ThreadId>>>::default();
    for is_batch in [false, true] {
        cloud.put("k", b"data").await;
        let of_error = threads.clone();
        let fails = move || Err::<(), Error>(Noting(of_error.clone()).into());
        let summary = if is_batch {
            let handler = move |jobs: Vec<Job>| {
                let fails = fails.clone();
                async move { jobs.iter().map(|_| fails()).collect::<Vec<_>>() }
            };
            of_one_message(of(&cloud, Worker::batch(handler))).run().await
        } else {
            let handler = move |_: Job| std::future::ready(fails());
            of_one_message(worker(&cloud, handler)).run().await
        };
        assert_eq!(summary.unwrap().last_kept, Some(Outcome::HandlerFailed));
        let threads = std::mem::take(&mut *threads.lock().unwrap());
        assert!(threads.len() >= 2, "it is shown and dropped: {threads:?}");
        let ours = std::thread::current().id();
        assert!(threads.iter().all(|thread| *thread == ours), "{threads:?}, {ours:?}");
    }
}

/// A handler that blocks the only thread of the runtime does not lose its lease, which ends several
/// times meanwhile without an extension.
#[tokio::test]
async fn leases_are_extended_while_a_handler_blocks_the_runtime() {
    let cloud = Cloud::new(5).await;
    cloud.put("a", b"data").await;
    let handler = |job: Job| async move {
        assert_eq!(job.receive_count, 1);
        std::thread::sleep(Duration::from_secs(13));
        Ok::<_, Error>(())
    };
    let worker = worker(&cloud, handler).visibility_timeout(Duration::from_secs(6));
    let summary = worker.max_messages(1).run().await.unwrap();
    assert_eq!((summary.succeeded, summary.kept), (1, 0), "{summary:?}");
    assert_eq!(cloud.counts().await, (0, 0));
}

#[tokio::test]
async fn a_stopped_worker_keeps_the_message_of_a_running_handler() {
    let cloud = Cloud::new(5).await;
    cloud.put("a", b"data").await;
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let handler = move |job: Job| {
        let stop = stop.clone();
        async move {
            stop.cancel();
            job.cancelled().await;
            Ok::<_, Error>(())
        }
    };
    let summary = worker(&cloud, handler).stop_when(stopped).run().await.unwrap();
    assert_eq!((summary.succeeded, summary.kept), (0, 1), "{summary:?}");
    assert_eq!(summary.last_kept, Some(Outcome::Stopped));
    assert_eq!(cloud.counts().await, (1, 0));
}

#[tokio::test]
async fn a_worker_runs_a_batch_handler() {
    let cloud = Cloud::new(5).await;
    for key in ["a", "b", "c", "d"] {
        cloud.put(key, b"data").await;
    }
    let (log, sizes) = (Written::default(), Arc::new(Mutex::new(Vec::new())));
    let seen = sizes.clone();
    let handler = move |jobs: Vec<Job>| {
        seen.lock().unwrap().push(jobs.len());
        async move {
            assert!(jobs[0].receive_count > 1, "no shelf");
            jobs.iter().map(|_| Ok::<_, Error>(())).collect::<Vec<_>>()
        }
    };
    let worker = of(&cloud, Worker::batch(handler)).batch_window(Duration::from_secs(5));
    let worker = worker.report_panics().retry(Duration::from_secs(1), Duration::from_secs(1));
    let worker = worker.until_empty(Duration::from_secs(8));
    let summary = worker.run().with_subscriber(log.subscriber()).await.unwrap();
    assert!(summary.succeeded == 4 && summary.kept > 0, "{summary:?}");
    assert_eq!(cloud.counts().await, (0, 0));
    assert!(sizes.lock().unwrap().iter().any(|size| *size > 1), "{sizes:?}");
    let records = log.records();
    let kept = records.iter().find(|it| it["fields"]["message"] == "message kept").unwrap();
    let error = kept["fields"]["error"].as_str().unwrap();
    let place = "the handler panicked: no shelf, at tests/library_worker.rs:";
    assert!(error.starts_with(place), "{error}");
}

/// The example of a batch.
#[tokio::test]
async fn a_worker_ends_when_the_queue_is_empty() {
    let cloud = Cloud::new(5).await;
    for key in ["a", "b", "c", "d", "e"] {
        cloud.put(key, b"data").await;
    }
    let aws = crate::support::aws::config(&cloud.endpoint);
    let summary = batch::drain(&cloud.queue_url, &aws).await.unwrap();
    assert_eq!((summary.succeeded, summary.kept), (5, 0));
}

#[tokio::test]
async fn what_cannot_work_is_an_error_and_ends_no_process() {
    let refused = |worker: &Worker, setting: &str| {
        let error: SettingsError = worker.check().unwrap_err();
        assert_eq!(error.setting(), Some(setting), "{error}");
        error.to_string()
    };
    assert_eq!(refused(&Worker::new(succeed), "queue-url"), "queue_url is required");
    let ended = Worker::new(succeed).run().await;
    assert!(matches!(ended, Err(RunError::Settings(_))), "{ended:?}");
    let worker = || Worker::new(succeed).queue_url("https://sqs.us-east-1.amazonaws.com/1/q");
    let short = worker().visibility_timeout(Duration::from_secs(1));
    let short = refused(&short, "visibility-timeout");
    assert!(short.starts_with("visibility_timeout 1s is too short"), "{short}");
    let long = refused(&worker().max_duration(Duration::from_hours(13)), "max-duration");
    assert!(long.starts_with("max_duration 13h") && !long.contains("--"), "{long}");
    let wrong = refused(&worker().setting("receive-give-up", "--wait"), "receive-give-up");
    assert!(wrong.contains("for receive_give_up"), "{wrong}");
    for (flag, value, instead) in [
        ("listen", ":9464", "in a Worker, use registry"),
        ("max-messages", "5", "use Worker::max_messages or until_empty"),
        ("wait", "5s", "use Worker::max_messages or until_empty"),
        ("batch-size", "2", "use a batch handler"),
    ] {
        let unused = refused(&worker().setting(flag, value), flag);
        let name = flag.replace('-', "_");
        let expected = format!("{name} has no effect here: ");
        assert!(unused.starts_with(&expected) && unused.contains(instead), "{unused}");
    }
    assert!(worker().max_messages(5).check().is_ok());

    let cloud = Cloud::new(5).await;
    let nowhere = self::worker(&cloud, succeed).queue_url(format!("{}-none", cloud.queue_url));
    let ended = nowhere.run().await;
    assert!(matches!(ended, Err(RunError::Misconfigured(_))), "{ended:?}");
}

/// Each further message would use up a receive.
#[tokio::test]
async fn a_worker_whose_work_directory_vanishes_ends_after_three_messages() {
    let cloud = Cloud::new(5).await;
    let work_dir = cloud.dir.path().join("work");
    std::fs::create_dir(&work_dir).unwrap();
    for number in 0..7 {
        cloud.put(&format!("{number}"), b"data").await;
    }
    let vanishing = work_dir.clone();
    let handler = move |_: Job| std::future::ready(std::fs::remove_dir_all(&vanishing));
    let worker = worker(&cloud, handler).work_dir(&work_dir);
    let worker = worker.retry(Duration::from_hours(1), Duration::from_hours(1));
    let ended = timeout(LIMIT, worker.run()).await.unwrap();
    let RunError::NotStarted(why) = ended.unwrap_err() else { panic!("another error") };
    assert!(why.starts_with("work_dir ") && why.contains("No such file"), "{why}");

    let (left, waiting) = cloud.counts().await;
    assert!(left >= 3 && left + waiting <= 7, "{left} and {waiting}");
    let received = cloud
        .sqs
        .receive_message()
        .queue_url(&cloud.queue_url)
        .max_number_of_messages(10)
        .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
        .send()
        .await
        .unwrap();
    let count = |message: &Message| {
        let attributes = message.attributes.as_ref().unwrap();
        attributes[&MessageSystemAttributeName::ApproximateReceiveCount].clone()
    };
    let counts: Vec<_> = received.messages().iter().map(count).collect();
    assert!(!counts.is_empty() && counts.iter().all(|count| count == "1"), "{counts:?}");
}

#[tokio::test]
async fn a_panic_of_the_future_that_stops_a_worker_stops_it() {
    let cloud = Cloud::new(5).await;
    let worker = worker(&cloud, succeed).stop_when(async { panic!("no telephone") });
    let summary = timeout(LIMIT, worker.run()).await.unwrap().unwrap();
    assert_eq!(summary, leasehold::Summary::default());
}

/// A future that is dropped is like a killed pod: nothing is deleted.
#[tokio::test]
async fn a_dropped_worker_deletes_nothing() {
    let cloud = Cloud::new(5).await;
    cloud.put("a", b"data").await;
    let (start, started) = tokio::sync::oneshot::channel();
    let start = Arc::new(Mutex::new(Some(start)));
    let handler = move |_: Job| {
        let start = start.lock().unwrap().take();
        async move {
            start.map(|start| start.send(()));
            std::future::pending::<Result<(), Failure>>().await
        }
    };
    let running = worker(&cloud, handler).run();
    tokio::select! {
        ended = running => panic!("{ended:?}"),
        has_started = timeout(LIMIT, started) => has_started.unwrap().unwrap(),
    }
    assert_eq!(cloud.counts().await, (0, 1), "the message is still hidden");
}

/// An example of this package, built with the features of this test.
async fn example(name: &str) -> PathBuf {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    let folder = BUILT.get_or_init(async || {
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).unwrap().to_owned();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--features", "internals,testing"]);
        cargo.args(["--example", "embedded", "--example", "in_runtime", "--example", "service"]);
        cargo.args(["--example", "in_batches"]);
        cargo.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().await.unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        profile.join("examples")
    });
    folder.await.join(name)
}

async fn program(name: &str, words: &[&str]) -> Leasehold {
    let mut command = Command::new(example(name).await);
    command.args(words).env("LEASEHOLD_RETRY_MIN", "1s").env("LEASEHOLD_RETRY_MAX", "1s");
    Leasehold::start(command)
}

#[tokio::test]
async fn a_program_speaks_under_its_own_name() {
    let version = program("embedded", &["--version"]).await.expect_exit(0).await;
    assert_eq!(version.stdout, format!("embedded {}\n", env!("CARGO_PKG_VERSION")));
    let help = program("embedded", &["--help"]).await.expect_exit(0).await;
    assert!(help.stdout.starts_with("Counts the lines of files\n"), "{}", help.stdout);
    assert!(help.stdout.contains("limits") && help.stdout.contains("embedded local ./inbox"));
    let of_local = program("embedded", &["local", "--help"]).await.expect_exit(0).await;
    assert!(of_local.stdout.contains("--min-lines") && !of_local.stdout.contains("COMMAND"));
    let wrong = program("embedded", &["local", "/nonexistent"]).await.expect_exit(78).await;
    assert!(wrong.stderr.starts_with("embedded: /nonexistent"), "{}", wrong.stderr);
    let completions = program("embedded", &["completions", "bash"]).await.expect_exit(0).await;
    assert!(
        completions.stdout.contains("_embedded()") && !completions.stdout.contains("leasehold)")
    );
    let limits = program("embedded", &["limits"]).await.expect_exit(0).await;
    assert_eq!(limits.stdout, "files of any size\n");

    let room = tempfile::tempdir().unwrap();
    let folder = room.path().to_str().unwrap();
    let installed = program("embedded", &["install", folder]).await.expect_exit(0).await;
    assert_eq!(installed.stdout, format!("installed {folder}/embedded\n"));
    assert!(room.path().join("embedded").exists());
}

/// Runs a program on a folder with these files.
async fn local(name: &str, files: &[(&str, &str)], words: &[&str], code: i32) -> ExitedRun {
    let inbox = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(inbox.path().join(name), text).unwrap();
    }
    let words = [&["local", inbox.path().to_str().unwrap()], words].concat();
    program(name, &words).await.expect_exit(code).await
}

#[tokio::test]
async fn a_program_has_a_flag_of_its_own_and_its_log_has_only_records() {
    let files = [("long.txt", "a\nb\nc"), ("short.txt", "a")];
    let words = ["--min-lines", "2", "--log-format", "json"];
    let exited = local("embedded", &files, &words, 1).await;
    assert!(exited.stdout.contains("1 of 2 files succeeded"), "{}", exited.stdout);
    let lines = exited.stderr.lines();
    let records: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    let counted = records.iter().find(|record| record["message"] == "counted").unwrap();
    assert_eq!((&counted["lines"], &counted["key"]), (&3.into(), &"long.txt".into()));
    let kept = records.iter().find(|record| record["message"] == "message kept").unwrap();
    let error = "the handler reported a permanent failure: the file has only 1 lines";
    assert_eq!((&kept["error"], &kept["outcome"]), (&error.into(), &"permanent".into()));
}

#[tokio::test]
async fn a_program_within_a_runtime_logs_a_panic_as_the_handlers() {
    let files = [("panic.txt", "")];
    let words = ["--max-receive-count", "1", "--log-format", "json"];
    let exited = local("in_runtime", &files, &words, 1).await;
    let records: Vec<Value> =
        exited.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kept = records.iter().find(|record| record["message"] == "message kept").unwrap();
    let error = kept["error"].as_str().unwrap();
    assert!(error.starts_with("the handler panicked: no such film, at "), "{error}");
    assert!(error.contains("tests/programs/in_runtime.rs:7"), "{error}");
    assert_eq!((&kept["outcome"], &kept["level"]), (&"panicked".into(), &"ERROR".into()));
    assert!(records.iter().any(|record| record["message"] == "the handler panicked"));
    assert!(!exited.stderr.contains("a bug in leasehold"), "{}", exited.stderr);
}

#[tokio::test]
async fn a_program_with_a_batch_handler_has_flags_for_batches() {
    let help = program("in_batches", &["local", "--help"]).await.expect_exit(0).await.stdout;
    assert!(help.contains("in one call of the handler, up to 10"), "{help}");
    let other = program("embedded", &["local", "--help"]).await.expect_exit(0).await.stdout;
    assert!(!other.contains("--batch-size"), "{other}");

    let files = [("a.txt", ""), ("b.txt", ""), ("c.txt", "")];
    let words = ["--batch-size", "3", "--batch-window", "1m", "--log-format", "json"];
    let exited = local("in_batches", &files, &words, 0).await;
    assert!(exited.stdout.contains("3 of 3 files succeeded"), "{}", exited.stdout);
    assert!(exited.stderr.contains(r#""jobs":3"#), "{}", exited.stderr);
    let refused = local("in_batches", &files, &["--batch-size", "11"], 78).await;
    assert!(refused.stderr.contains("--batch-size 11 is over 10"), "{}", refused.stderr);
    let refused = local("embedded", &files, &["--batch-size", "2"], 78).await;
    assert!(refused.stderr.contains("with a batch handler"), "{}", refused.stderr);
}

#[tokio::test]
async fn what_a_handler_prints_is_between_the_records_of_the_log() {
    let cloud = Cloud::new(5).await;
    cloud.put("a.txt", b"").await;
    let mut command = Command::new(example("in_batches").await);
    command.args(["run", "--queue-url", &cloud.queue_url, "--batch-size=1", "--max-messages=1"]);
    command.envs(cloud.environment());
    let exited = Leasehold::start(command).expect_exit(0).await;
    let is_record = |line: &&str| serde_json::from_str::<Value>(line).is_ok();
    let (records, others): (Vec<_>, Vec<_>) = exited.stdout.lines().partition(is_record);
    assert_eq!(others, ["printed by the handler"]);
    assert!(records.iter().any(|it| it.contains("message deleted")), "{records:?}");
}

#[tokio::test]
async fn a_program_with_a_subscriber_of_its_own_keeps_it() {
    let exited = local("in_runtime", &[("a.txt", "")], &["-v"], 0).await;
    // The format of tracing-subscriber, for both.
    assert!(exited.stderr.contains("in_runtime: handled"), "{}", exited.stderr);
    assert!(exited.stderr.contains("message deleted"), "{}", exited.stderr);
}

async fn get(port: u16, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut connection = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}

/// The example of a service: an HTTP server and a worker, which SIGTERM ends together.
#[tokio::test]
async fn a_service_has_an_http_server_beside_its_worker() {
    let cloud = Cloud::new(5).await;
    cloud.put("a", b"1\n2\n3").await;
    cloud.put("b", b"1\n2").await;
    let port = free_port();
    let mut command = Command::new(example("service").await);
    command.arg(&cloud.queue_url).arg(format!("127.0.0.1:{port}"));
    command.envs(cloud.environment());
    let service = Leasehold::start(command);
    eventually("both files are counted", async || {
        (get(port, "/lines").await? == "5").then_some(())
    })
    .await;
    let metrics = get(port, "/metrics").await.unwrap();
    assert!(metrics.contains("leasehold_messages_received_total"), "{metrics}");
    service.signal(Signal::SIGTERM);
    let exited = service.expect_exit(0).await;
    assert!(exited.stdout.contains("shutting down"), "{}", exited.stdout);
    assert!(exited.stdout.contains("succeeded: 2"), "{}", exited.stdout);
    assert_eq!(cloud.counts().await, (0, 0));
}
