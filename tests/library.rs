//! The library: what a Rust program that embeds leasehold expects of it.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use leasehold::adapters::batching::Batching;
use leasehold::job::outcome::{Exit, Handled};
use leasehold::library::handler::AnyHandler;
use leasehold::library::in_process::runner;
use leasehold::library::threads::Threads;
use leasehold::ports::{Activity, Command, Runner};
use leasehold::testing::TestWorker;
use leasehold::{Error, Failure, Job, MissingObject, OnSuccess, Outcome};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use walkdir::WalkDir;

use crate::support::journey::{MINUTE, S};
use crate::support::{self, object_created};

#[path = "../examples/library/batch.rs"]
pub mod batch;
#[path = "../examples/library/bulk.rs"]
mod bulk;
#[path = "../examples/library/checkpoint.rs"]
mod checkpoint;
#[path = "../examples/library/closure.rs"]
mod closure;
#[path = "../examples/library/json.rs"]
mod json;
#[path = "../examples/library/tested.rs"]
mod tested;
#[path = "../examples/library/with_anyhow.rs"]
mod with_anyhow;

#[tokio::test(start_paused = true)]
async fn a_handler_gets_the_object_and_the_facts_about_it() {
    let handler = |job: Job| async move {
        assert_eq!((job.bytes().await?, job.text().await?), (b"data".to_vec(), "data".to_owned()));
        assert_eq!((job.key.as_deref(), job.receive_count, job.size), (Some("k"), 1, Some(4)));
        let mut read = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut job.stream().await?, &mut read).await?;
        assert_eq!((read.as_str(), std::fs::read(job.path().await?)?), ("data", b"data".to_vec()));
        assert!(job.body().await?.contains("ObjectCreated"));
        assert!(job.event_time.is_some_and(|time| time > SystemTime::UNIX_EPOCH));
        assert!(!job.is_cancelled());
        Ok::<_, Error>(())
    };
    let run = TestWorker::new(handler).object("k", "data").run().await;
    assert_eq!(run.outcomes(), [Outcome::Succeeded], "{:?}", run.attempts());
}

/// The folders and files below the work directory, by name.
fn below(work_dir: &Path) -> Vec<String> {
    let entries = WalkDir::new(work_dir).min_depth(1).sort_by_file_name();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let names = entries.into_iter().map(|entry| name(entry.unwrap().path()));
    names.filter(|name| !name.starts_with("leasehold-")).collect()
}

/// The work directory of a handler while it works: each of these calls adds to it.
#[tokio::test(start_paused = true)]
async fn a_job_has_the_folders_and_files_that_its_handler_asks_for() {
    let work_dir = tempfile::tempdir().unwrap();
    let here = Arc::new(work_dir.path().to_owned());
    let kept = Arc::new(Mutex::new(None));
    let keeps = kept.clone();
    let handler = move |job: Job| {
        let (here, keeps) = (here.clone(), keeps.clone());
        async move {
            assert_eq!(std::fs::read_dir(&*here)?.count(), 0);
            assert!(job.body().await?.contains("ObjectCreated"));
            assert_eq!(std::fs::read_dir(&*here)?.count(), 0);
            job.progress(0.5);
            assert_eq!(std::fs::read_dir(&*here)?.count(), 0);
            std::fs::write(job.output_dir().await?.join("row"), "1")?;
            assert_eq!(below(&here), ["output", "row"]);
            assert_eq!((job.bytes().await?, job.bytes().await?), (b"data".into(), b"data".into()));
            assert_eq!(below(&here), ["input", "k", "output", "row"]);
            std::fs::create_dir(job.checkpoint_dir().await?.join("deep"))?;
            std::fs::write(job.output_dir().await?.join("row"), "2")?;
            *keeps.lock().unwrap() = Some(job);
            Ok::<_, Error>(())
        }
    };
    let worker = TestWorker::new(handler).fetch_on_demand().work_dir(work_dir.path());
    let run = worker.object("k", "data").run().await;
    assert_eq!(run.outcomes(), [Outcome::Succeeded], "{:?}", run.attempts());
    assert_eq!(run.output("k", "row").as_deref(), Some(b"2".as_slice()));
    let job = kept.lock().unwrap().take().unwrap();
    job.progress(1.0);
    let failure = job.output_dir().await.unwrap_err();
    assert!(format!("{failure:#}").contains("the job has ended"), "{failure:?}");
    assert_eq!(std::fs::read_dir(work_dir.path()).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_file_of_the_input_is_removed_with_all_that_is_beside_it() {
    let work_dir = tempfile::tempdir().unwrap();
    let handler = |job: Job| async move {
        std::fs::write(job.path().await?.with_file_name("beside"), "x")?;
        if job.receive_count == 1 { Err(Error::from("not yet")) } else { Ok(()) }
    };
    let run = TestWorker::new(handler).work_dir(work_dir.path()).object("k", "data").run().await;
    assert_eq!(
        run.outcomes(),
        [Outcome::HandlerFailed, Outcome::Succeeded],
        "{:?}",
        run.attempts()
    );
    assert_eq!(std::fs::read_dir(work_dir.path()).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_no_notification_is_the_input() {
    let handler = |job: Job| async move {
        let body: serde_json::Value = job.body_json().await?;
        assert_eq!((job.json::<serde_json::Value>().await?, job.key), (body, None));
        Ok::<_, Error>(())
    };
    let worker = TestWorker::new(handler).accept_raw().max_receive_count(1);
    let run = worker.message(r#"{"a": 1}"#).message("{").run().await;
    assert_eq!(run.outcomes(), [Outcome::Succeeded, Outcome::Permanent]);
    assert_eq!(run.dead_letters(), ["{"]);
}

#[tokio::test(start_paused = true)]
async fn numbers_are_reported() {
    let handler = |job: Job| async move {
        job.metric("rows", 4.0);
        job.metric("rows", 5.0);
        job.metric("Not valid", 1.0);
        job.metric("not_finite", f64::NAN);
        Ok::<_, Error>(())
    };
    let run = TestWorker::new(handler).object("k", "").run().await;
    assert_eq!(run.outcomes(), [Outcome::Succeeded]);
    assert_eq!(run.attempts()[0].metrics, [("rows".to_owned(), 5.0)].into());
}

/// An error type that is not a failure.
#[derive(Debug)]
struct NoSpace(std::io::Error);

impl fmt::Display for NoSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no space")
    }
}

impl StdError for NoSpace {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

/// An error type that decides when to retry.
#[derive(Debug)]
struct Closed;

impl From<Closed> for Failure {
    fn from(_: Closed) -> Self {
        Self::retry("the service is closed").after(5 * MINUTE)
    }
}

#[tokio::test(start_paused = true)]
async fn every_type_of_error_can_be_returned() {
    async fn of_io(_: Job) -> Result<(), std::io::Error> {
        tokio::fs::read("/nonexistent").await.map(drop)
    }
    async fn own(_: Job) -> Result<(), NoSpace> {
        Err(NoSpace(std::io::Error::other("quota")))
    }
    async fn boxed(_: Job) -> Result<(), Error> {
        let number: u8 = "x".parse()?;
        unreachable!("{number} is a number");
    }
    async fn classified(_: Job) -> Result<(), Failure> {
        Err(Closed)?
    }
    async fn permanent(_: Job) -> Result<(), Error> {
        std::fs::read("/nonexistent").map_err(Failure::permanent)?;
        Ok(())
    }
    let worker = |handler: TestWorker| handler.object("k", "").max_receive_count(1).run();
    for (run, outcome, error) in [
        (worker(TestWorker::new(of_io)).await, Outcome::HandlerFailed, "No such file"),
        (worker(TestWorker::new(own)).await, Outcome::HandlerFailed, "there is no space: quota"),
        (worker(TestWorker::new(boxed)).await, Outcome::HandlerFailed, "invalid digit found"),
        (worker(TestWorker::new(classified)).await, Outcome::Temporary, "the service is closed"),
        (worker(TestWorker::new(permanent)).await, Outcome::Permanent, "No such file"),
    ] {
        assert_eq!(run.outcomes(), [outcome]);
        let text = run.attempts()[0].error.as_deref().unwrap();
        assert!(text.contains(error) && !text.contains("command"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_temporary_failure_chooses_its_delay() {
    let handler = |_: Job| async { Err(Failure::retry("the database is down").after(5 * MINUTE)) };
    let started = Instant::now();
    let run = TestWorker::new(handler).object("k", "").max_receive_count(2).run().await;
    assert_eq!(run.outcomes(), [Outcome::Temporary, Outcome::Temporary]);
    assert_eq!(run.attempts()[0].retry_after, Some(5 * MINUTE));
    assert_eq!(
        run.attempts()[0].error.as_deref(),
        Some("the handler reported a temporary failure: the database is down")
    );
    assert!(started.elapsed() >= 10 * MINUTE);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_of_the_handler_and_no_bug_of_leasehold() {
    let handler = |job: Job| async move {
        assert!(job.receive_count > 1, "no film before the second attempt");
        Ok::<_, Error>(())
    };
    let run = TestWorker::new(handler).object("k", "").run().await;
    assert_eq!(run.outcomes(), [Outcome::Panicked, Outcome::Succeeded]);
    let error = run.attempts()[0].error.as_deref().unwrap();
    assert!(error.starts_with("the handler panicked: no film before"), "{error}");
    assert!(!error.contains("bug") && run.attempts()[0].retry_after.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_success_after_a_stop_does_not_count() {
    let handler = |job: Job| async move {
        if job.receive_count == 1 {
            job.cancelled().await;
            assert!(job.is_cancelled() && job.cancellation_token().is_cancelled());
        }
        Ok::<_, Error>(())
    };
    let run = TestWorker::new(handler).object("k", "").stop_after(MINUTE).run().await;
    assert_eq!(run.outcomes(), [Outcome::Stopped, Outcome::Succeeded]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_ignores_a_stop_is_dropped() {
    let started = Instant::now();
    let handler = |job: Job| async move {
        if job.receive_count == 1 {
            sleep(60 * MINUTE).await;
        }
        Ok::<_, Error>(())
    };
    let run = TestWorker::new(handler).object("k", "").stop_after(MINUTE).run().await;
    assert_eq!(run.outcomes(), [Outcome::Stopped, Outcome::Succeeded]);
    assert!(started.elapsed() < 2 * MINUTE);
}

#[tokio::test(start_paused = true)]
async fn a_job_knows_its_deadline_and_ends_at_it() {
    let handler = |job: Job| async move {
        let left = job.time_left();
        assert!(left <= 5 * MINUTE && left > 5 * MINUTE - 5 * S, "{left:?}");
        assert!(timeout(6 * MINUTE, job.cancelled()).await.is_ok());
        assert!(job.time_left() < 5 * S && job.deadline() < Instant::now() + 5 * S);
        Ok::<_, Error>(())
    };
    let worker = TestWorker::new(handler).object("k", "").max_receive_count(1);
    let run = worker.max_duration(5 * MINUTE).run().await;
    assert_eq!(run.outcomes(), [Outcome::TimedOut]);
}

#[tokio::test(start_paused = true)]
async fn progress_prevents_a_stall() {
    let handler = |job: Job| async move {
        for step in 1..=4 {
            sleep(50 * S).await;
            if job.receive_count == 2 {
                job.progress(f64::from(step) / 4.0);
                job.status("resizing");
            }
        }
        Ok::<_, Error>(())
    };
    let run = TestWorker::new(handler).object("k", "").stall_timeout(MINUTE).run().await;
    assert_eq!(run.outcomes(), [Outcome::Stalled, Outcome::Succeeded]);
    assert_eq!(run.attempts()[1].progress, Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn an_object_is_fetched_when_the_handler_asks_for_it() {
    let fetched = Arc::new(AtomicU32::new(0));
    let count = fetched.clone();
    let handler = move |job: Job| {
        let count = count.clone();
        async move {
            let folder = job.output_dir().await?.with_file_name("input");
            assert!(!folder.exists(), "it was not fetched before");
            if job.key.as_deref() == Some("wanted") {
                let (first, again) = tokio::join!(job.bytes(), job.text());
                assert_eq!((first?, again?), (b"data".to_vec(), "data".to_owned()));
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Error>(())
        }
    };
    let worker = TestWorker::new(handler).object("wanted", "data").object("unwanted", "data");
    let run = worker.fetch_on_demand().run().await;
    assert_eq!(run.outcomes(), [Outcome::Succeeded, Outcome::Succeeded], "{:?}", run.attempts());
    assert_eq!(fetched.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_fetched_on_demand_keeps_the_message() {
    let handler = |job: Job| async move { job.bytes().await.map(drop) };
    let gone = object_created("gone");
    let worker = TestWorker::new(handler).message(&gone).max_receive_count(1).fetch_on_demand();
    let run = worker.missing_object(MissingObject::Ignore).run().await;
    assert_eq!(run.outcomes(), [Outcome::Temporary], "the handler has begun, so it is a failure");
    assert!(run.attempts()[0].error.as_deref().unwrap().contains("No such file"));
    assert_eq!(run.dead_letters(), [gone]);

    let worker = TestWorker::new(handler).object("k", "data").max_receive_count(1);
    let run = worker.fetch_on_demand().buckets(["another-bucket"]).run().await;
    assert_eq!(run.outcomes(), [Outcome::Unreadable], "the rule holds before the handler starts");
}

#[tokio::test(start_paused = true)]
async fn a_test_has_the_buckets_of_production() {
    let handler = |job: Job| async move {
        assert_eq!(job.bucket.as_deref(), Some("orders"));
        job.bytes().await.map(drop)
    };
    let worker = || TestWorker::new(handler).object("k", "data").max_receive_count(1);
    let run = worker().bucket("orders").buckets(["orders", "returns"]).run().await;
    assert_eq!(run.outcomes(), [Outcome::Succeeded], "{:?}", run.attempts());
    let run = worker().buckets(["orders", "returns"]).run().await;
    assert_eq!(run.outcomes(), [Outcome::Unreadable]);
}

/// The setters of enums write what the flags read.
#[tokio::test(start_paused = true)]
async fn what_happens_to_an_object_is_a_typed_setting() {
    let handler = |job: Job| async move { job.bytes().await.map(drop) };
    let gone = || TestWorker::new(handler).message(object_created("gone"));
    for (treatment, outcomes) in [
        (MissingObject::Retry, vec![Outcome::FetchFailed; 3]),
        (MissingObject::Fail, vec![Outcome::Unreadable; 3]),
        (MissingObject::Ignore, vec![Outcome::ObjectsGone]),
    ] {
        assert_eq!(gone().missing_object(treatment).run().await.outcomes(), outcomes);
    }
    let tag = OnSuccess::Tag { key: "state".to_owned(), value: "done".to_owned() };
    for action in [tag, OnSuccess::Move("s3://bucket/done".to_owned()), OnSuccess::Delete] {
        let worker = TestWorker::new(handler).object("k", "data");
        let run = worker.on_success(action).idempotency("s3://state/done").run().await;
        assert_eq!(run.outcomes(), [Outcome::Succeeded], "{:?}", run.attempts());
    }
}

#[tokio::test]
async fn a_job_for_a_test_has_what_the_test_sets() {
    let job = Job::builder("orders.csv").object("a;b").attribute("tenant", "t1").body("{}");
    let job = job.receive_count(2).time_left(MINUTE).build();
    assert_eq!((job.text().await.unwrap().as_str(), job.receive_count), ("a;b", 2));
    assert_eq!(
        (job.attributes["tenant"].as_str(), job.body().await.unwrap().as_str()),
        ("t1", "{}")
    );
    assert!(job.time_left() <= MINUTE && job.checkpoint_dir().await.unwrap().is_dir());
    let folder = job.output_dir().await.unwrap().to_owned();
    std::fs::write(folder.join("result"), "1").unwrap();
    drop(job);
    assert!(!folder.exists());
    let failure = Job::builder("k").build().bytes().await.unwrap_err();
    assert!(failure.is_permanent() && format!("{failure:#}").contains("no object"), "{failure:?}");
}

/// Each call of the handler is one job.
pub fn of_jobs(handler: AnyHandler, threads: Threads) -> Arc<dyn Runner> {
    runner(handler, threads, Batching { size: 1, window: Duration::ZERO, calls: 1 })
}

/// A job for a runner.
pub fn command(stop_grace: Duration) -> Command {
    Command { stop_grace, ..support::command("the work") }
}

/// Blocks a thread forever, except at its last call.
fn blocks(remaining: Arc<AtomicUsize>) -> AnyHandler {
    AnyHandler::new(move |_: Job| {
        let remaining = remaining.clone();
        async move {
            if remaining.fetch_sub(1, Ordering::Relaxed) == 0 {
                return Ok::<_, Error>(());
            }
            loop {
                std::thread::park();
            }
        }
    })
}

#[tokio::test]
async fn handlers_that_never_end_do_not_block_others() {
    let threads = std::thread::available_parallelism().unwrap().get() + 1;
    let remaining = Arc::new(AtomicUsize::new(threads));
    let work = of_jobs(blocks(remaining.clone()), Threads::dedicated(1));
    let run = |halt: &CancellationToken| {
        work.run(command(Duration::from_millis(50)), halt.clone(), Activity::default())
    };
    for blocked in 0..threads {
        let halt = CancellationToken::new();
        let once_it_blocks = async {
            while remaining.load(Ordering::Relaxed) == threads - blocked {
                sleep(Duration::from_millis(5)).await;
            }
            halt.cancel();
        };
        let (ended, ()) = tokio::join!(run(&halt), once_it_blocks);
        assert_eq!(ended.unwrap().exit, Exit::Handler(Handled::Dropped));
    }
    let last = timeout(MINUTE, run(&CancellationToken::new()))
        .await
        .expect("the blocked threads do not delay it");
    assert_eq!(last.unwrap().exit, Exit::Handler(Handled::Succeeded));
}

/// Sends each of its lines back, to one client after another.
fn echo_server() -> (std::net::SocketAddr, Arc<AtomicU32>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, clients) = (listener.local_addr().unwrap(), Arc::new(AtomicU32::new(0)));
    let count = clients.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            count.fetch_add(1, Ordering::Relaxed);
            let client = client.unwrap();
            let _ = std::io::copy(&mut client.try_clone().unwrap(), &mut &client);
        }
    });
    (address, clients)
}

/// What a handler keeps from one job to the next: a connection, and a task that uses it.
type Kept = tokio::sync::mpsc::Sender<tokio::sync::oneshot::Sender<u8>>;

async fn connected(address: std::net::SocketAddr) -> Kept {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    let (kept, mut asked) = tokio::sync::mpsc::channel::<tokio::sync::oneshot::Sender<u8>>(1);
    tokio::spawn(async move {
        while let Some(answer) = asked.recv().await {
            connection.write_u8(7).await.unwrap();
            answer.send(connection.read_u8().await.unwrap()).unwrap();
        }
    });
    kept
}

#[tokio::test]
async fn a_connection_and_a_task_of_the_first_job_serve_all_jobs_of_a_program() {
    let (address, clients) = echo_server();
    let kept = Arc::new(tokio::sync::OnceCell::new());
    let handler = AnyHandler::new(move |job: Job| {
        let kept = kept.clone();
        async move {
            let kept: &Kept = kept.get_or_init(|| connected(address)).await;
            let (answer, answered) = tokio::sync::oneshot::channel();
            kept.send(answer).await?;
            assert_eq!(answered.await?, 7);
            if job.receive_count == 2 {
                std::future::pending::<()>().await;
            }
            Ok::<_, Error>(())
        }
    });
    let work = of_jobs(handler, Threads::dedicated(1));
    for (attempt, end) in [(1, Handled::Succeeded), (2, Handled::Dropped), (3, Handled::Succeeded)]
    {
        let halt = CancellationToken::new();
        if end == Handled::Dropped {
            halt.cancel();
        }
        let mut command = command(S);
        command.job.receive_count = attempt;
        let ended = timeout(MINUTE, work.run(command, halt, Activity::default())).await.unwrap();
        assert_eq!(ended.unwrap().exit, Exit::Handler(end), "{attempt}");
    }
    assert_eq!(clients.load(Ordering::Relaxed), 1);
}
