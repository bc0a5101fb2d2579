//! Work that is a Rust function: its results, and their effects.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use leasehold::job::outcome::Exit;
use leasehold::library::{InProcess, Threads};
use leasehold::ports::job_facts::JobFacts;
use leasehold::ports::{Activity, Command, Runner};
use leasehold::{Failure, Job, Work, async_trait};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::facts;
use crate::support::journey::{Journey, MINUTE, RunResult, S, exits, queue};
use crate::support::wire::Call;

/// Runs one function.
struct FunctionWork<F>(F);

#[async_trait]
impl<F: AsyncFnTask> Work for FunctionWork<F> {
    async fn process(&self, job: Job) -> Result<(), Failure> {
        self.0.call(job).await
    }
}

#[async_trait]
trait AsyncFnTask: Send + Sync + 'static {
    async fn call(&self, job: Job) -> Result<(), Failure>;
}

macro_rules! work {
    (|$job:ident| $body:expr) => {{
        struct It;
        #[async_trait]
        impl AsyncFnTask for It {
            async fn call(&self, $job: Job) -> Result<(), Failure> {
                $body
            }
        }
        FunctionWork(It)
    }};
}

async fn journey(work: impl Work, stop_after: Duration) -> (RunResult, Vec<Call>) {
    let queue = queue();
    let mut journey = Journey::new(&queue, &exits(0));
    journey.command = Arc::new(InProcess { work: Arc::new(work), threads: Threads::Shared });
    let result = journey.run_and_stop_after(stop_after).await;
    (result, queue.calls().into_iter().map(|entry| entry.call).collect())
}

#[tokio::test(start_paused = true)]
async fn success_deletes() {
    let work = work!(|job| {
        assert_eq!(std::fs::read(job.input()?)?, b"data");
        assert_eq!((job.key.as_deref(), job.receive_count, job.size), (Some("k"), 1, Some(4)));
        Ok(())
    });
    let (result, calls) = journey(work, MINUTE).await;
    assert_eq!((result.outcomes(), calls.contains(&Call::Delete)), (vec!["succeeded"], true));
}

#[tokio::test(start_paused = true)]
async fn numbers_are_reported() {
    let work = work!(|job| {
        job.metric("rows", 4.0);
        job.metric("rows", 5.0);
        job.metric("Not valid", 1.0);
        job.metric("not_finite", f64::NAN);
        Ok(())
    });
    let (result, _) = journey(work, MINUTE).await;
    let ended = result.ended().remove(0);
    assert_eq!(ended.outcome(), "succeeded");
    assert_eq!(ended.work.metrics.iter().collect::<Vec<_>>(), [("rows", 5.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_temporary_failure_chooses_its_delay() {
    let work = work!(|_job| Err(Failure::Temporary {
        reason: "the database is down".to_owned(),
        retry_after: Some(90 * S)
    }));
    let (result, calls) = journey(work, MINUTE).await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["temporary"], 75));
    assert!(
        calls.contains(&Call::ChangeVisibility(90 * S)) && !calls.contains(&Call::Delete),
        "{calls:?}"
    );
    let error = result.ended()[0].error().unwrap();
    assert!(error.ends_with(": the database is down"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_kept_for_the_dead_letter_queue() {
    let (result, calls) =
        journey(work!(|_job| Err(Failure::Permanent("no image".to_owned()))), MINUTE).await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["permanent"], 65));
    assert!(!calls.contains(&Call::Delete));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_any_kind_and_a_panic_are_failures() {
    let (result, _) =
        journey(work!(|_job| Ok(std::fs::read("/nonexistent").map(drop)?)), MINUTE).await;
    assert_eq!(result.outcomes(), ["command_failed"]);
    assert!(result.ended()[0].error().unwrap().contains("No such file"));
    let (result, calls) = journey(work!(|_job| panic!("a bug in the work")), MINUTE).await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["command_failed"], 1));
    assert!(!calls.contains(&Call::Delete));
}

#[tokio::test(start_paused = true)]
async fn a_success_after_a_stop_does_not_count() {
    let work = work!(|job| {
        job.halt.cancelled().await;
        Ok(())
    });
    let (result, calls) = journey(work, MINUTE).await;
    assert_eq!((result.outcomes(), result.took), (vec!["stopped"], MINUTE));
    assert!(!calls.contains(&Call::Delete));
}

#[tokio::test(start_paused = true)]
async fn work_that_ignores_a_stop_is_dropped() {
    let work = work!(|_job| {
        sleep(60 * MINUTE).await;
        Ok(())
    });
    let (result, calls) = journey(work, MINUTE).await;
    assert_eq!((result.outcomes(), result.took), (vec!["stopped"], MINUTE + 20 * S));
    assert!(!calls.contains(&Call::Delete));
}

#[tokio::test(start_paused = true)]
async fn progress_is_reported() {
    let work = work!(|job| {
        for step in 1..=4 {
            sleep(3 * S).await;
            job.progress(f64::from(step) / 4.0, "resizing");
        }
        Ok(())
    });
    let (result, _) = journey(work, MINUTE).await;
    let shares: Vec<_> =
        result.telemetry.progress().into_iter().filter_map(|progress| progress.share).collect();
    assert_eq!(shares, [0.25, 0.5, 0.75, 1.0]);
}

/// Blocks a thread forever, except at its last call.
struct Blocks(Arc<AtomicUsize>);

#[async_trait]
impl Work for Blocks {
    async fn process(&self, _: Job) -> Result<(), Failure> {
        if self.0.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Ok(());
        }
        loop {
            std::thread::park();
        }
    }
}

#[tokio::test]
async fn functions_that_never_end_do_not_block_others() {
    let room = tempfile::tempdir().unwrap();
    let threads = std::thread::available_parallelism().unwrap().get();
    let remaining = Arc::new(AtomicUsize::new(threads));
    let work = InProcess { work: Arc::new(Blocks(remaining.clone())), threads: Threads::Dedicated };
    let run = |halt: &CancellationToken| {
        let command = Command {
            program: "the work".into(),
            args: Vec::new(),
            job: JobFacts { result_file: room.path().join("result.jsonl"), ..facts() },
            variables: None,
            stdin: None,
            stop_grace: Duration::from_millis(50),
        };
        work.run(command, halt.clone(), Activity::default())
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
        assert_eq!(ended.unwrap().exit, Exit::Signal(9));
    }
    let last = timeout(MINUTE, run(&CancellationToken::new()))
        .await
        .expect("the blocked threads do not delay it");
    assert_eq!(last.unwrap().exit, Exit::Code(0));
}
