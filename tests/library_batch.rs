//! Handlers that take several jobs at once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use leasehold::adapters::batching::Batching;
use leasehold::job::outcome::{Exit, Handled};
use leasehold::library::handler::AnyHandler;
use leasehold::library::in_process::runner;
use leasehold::library::threads::Threads;
use leasehold::ports::Activity;
use leasehold::testing::{TestRun, TestWorker};
use leasehold::{Error, Failure, Job, Outcome};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::library::command;
use crate::support::journey::{MINUTE, S};

type Results = Vec<Result<(), Error>>;

/// The outcomes of each key, in the order of its attempts.
fn by_key(run: &TestRun) -> BTreeMap<&str, Vec<Outcome>> {
    let mut outcomes: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for attempt in run.attempts() {
        outcomes.entry(attempt.key.as_deref().unwrap()).or_default().push(attempt.outcome);
    }
    outcomes
}

fn of_key<'a>(run: &'a TestRun, key: &str) -> &'a leasehold::testing::Attempt {
    run.attempts().iter().find(|attempt| attempt.key.as_deref() == Some(key)).unwrap()
}

fn all_succeed(jobs: &[Job]) -> Results {
    jobs.iter().map(|_| Ok(())).collect()
}

fn key(job: &Job) -> &str {
    job.key.as_deref().unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_job_has_its_own_result_and_reports() {
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = sizes.clone();
    let handler = move |jobs: Vec<Job>| {
        seen.lock().unwrap().push(jobs.len());
        async move {
            let result = |job: &Job| match key(job) {
                _ if job.receive_count > 1 => Ok(()),
                "good" => {
                    job.progress(0.5);
                    job.metric("rows", 3.0);
                    Ok(())
                }
                "closed" => Err(Failure::retry("the shop is closed").after(5 * MINUTE).into()),
                "bad" => Err(Failure::permanent("not an order").into()),
                _ => Err(Error::from("the disk is full")),
            };
            jobs.iter().map(result).collect::<Results>()
        }
    };
    let worker = TestWorker::batch(handler).batch_window(S).object("bad", "");
    let run = worker.object("closed", "").object("good", "").object("other", "").run().await;
    let outcomes = by_key(&run);
    assert_eq!(outcomes["good"], [Outcome::Succeeded]);
    assert_eq!(outcomes["closed"], [Outcome::Temporary, Outcome::Succeeded]);
    assert_eq!(outcomes["bad"], [Outcome::Permanent, Outcome::Succeeded]);
    assert_eq!(outcomes["other"], [Outcome::HandlerFailed, Outcome::Succeeded]);
    assert_eq!(of_key(&run, "closed").retry_after, Some(5 * MINUTE));
    assert!(of_key(&run, "other").error.as_deref().unwrap().contains("the disk is full"));
    assert_eq!(of_key(&run, "good").progress, Some(0.5));
    assert_eq!(of_key(&run, "good").metrics, [("rows".to_owned(), 3.0)].into());
    assert_eq!(of_key(&run, "bad").progress, None);
    assert_eq!(sizes.lock().unwrap()[0], 4, "the first batch has all jobs");
}

#[tokio::test(start_paused = true)]
async fn a_panic_keeps_all_messages_of_the_batch() {
    let handler = |jobs: Vec<Job>| async move {
        assert!(jobs[0].receive_count > 1, "no shelf");
        all_succeed(&jobs)
    };
    let worker = TestWorker::batch(handler).batch_window(S).object("a", "").object("b", "");
    let run = worker.run().await;
    assert_eq!(by_key(&run)["a"], [Outcome::Panicked, Outcome::Succeeded]);
    assert_eq!(by_key(&run)["b"], [Outcome::Panicked, Outcome::Succeeded]);
    let error = of_key(&run, "b").error.as_deref().unwrap();
    assert!(error.starts_with("the handler panicked: no shelf"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn too_few_or_too_many_results_keep_all_messages_of_the_batch() {
    let handler = |jobs: Vec<Job>| async move {
        let results = match jobs[0].receive_count {
            1 => 1,
            2 => jobs.len() + 1,
            _ => jobs.len(),
        };
        (0..results).map(|_| Ok(())).collect::<Results>()
    };
    // Retries after the same delay, so that both are in one batch again.
    let worker = TestWorker::batch(handler).batch_window(5 * S).retry(MINUTE, MINUTE);
    let run = worker.object("a", "").object("b", "").max_receive_count(4).run().await;
    for outcomes in by_key(&run).values() {
        assert_eq!(outcomes[..2], [Outcome::HandlerFailed, Outcome::HandlerFailed]);
    }
    let error = of_key(&run, "a").error.as_deref().unwrap();
    assert!(error.contains("returned 1 results for 2 jobs: return one for each job"), "{error}");
}

#[derive(Debug)]
struct PanicsWhenShown;

impl fmt::Display for PanicsWhenShown {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("no text")
    }
}

impl std::error::Error for PanicsWhenShown {}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_text_of_an_error_fails_only_its_job() {
    let result = |job: &Job| match key(job) {
        "bad" if job.receive_count == 1 => Err(PanicsWhenShown.into()),
        _ => Ok(()),
    };
    let handler = move |jobs: Vec<Job>| async move { jobs.iter().map(result).collect::<Results>() };
    let run = TestWorker::batch(handler).batch_window(S).object("bad", "").object("good", "");
    let run = run.run().await;
    assert_eq!(by_key(&run)["good"], [Outcome::Succeeded]);
    assert_eq!(by_key(&run)["bad"], [Outcome::Panicked, Outcome::Succeeded]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_cancelled_is_kept_and_the_others_go_on() {
    let handler = |jobs: Vec<Job>| async move {
        let each = jobs.iter().map(|job| async move {
            if job.receive_count == 1 && key(job) == "hangs" {
                job.cancelled().await;
                return;
            }
            for step in 1..=4 {
                sleep(50 * S).await;
                job.progress(f64::from(step) / 4.0);
            }
        });
        join_all(each).await;
        all_succeed(&jobs)
    };
    let worker = TestWorker::batch(handler).batch_window(S).stall_timeout(MINUTE);
    let run = worker.object("hangs", "").object("works", "").run().await;
    assert_eq!(by_key(&run)["works"], [Outcome::Succeeded]);
    assert_eq!(by_key(&run)["hangs"], [Outcome::Stalled, Outcome::Succeeded]);
}

#[tokio::test(start_paused = true)]
async fn lost_leases_keep_the_messages_whatever_the_handler_returns() {
    let handler = |jobs: Vec<Job>| async move {
        if jobs[0].receive_count == 1 {
            join_all(jobs.iter().map(Job::cancelled)).await;
        }
        all_succeed(&jobs)
    };
    let worker = TestWorker::batch(handler).batch_window(S).object("a", "").object("b", "");
    let run = worker.lose_leases().run().await;
    assert_eq!(by_key(&run)["a"], [Outcome::LeaseLost, Outcome::Succeeded]);
    assert_eq!(by_key(&run)["b"], [Outcome::LeaseLost, Outcome::Succeeded]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_cancels_all_jobs_and_deletes_nothing() {
    let handler = |jobs: Vec<Job>| async move {
        if jobs[0].receive_count == 1 {
            join_all(jobs.iter().map(Job::cancelled)).await;
        }
        all_succeed(&jobs)
    };
    let worker = TestWorker::batch(handler).batch_window(S).object("a", "").object("b", "");
    let run = worker.stop_after(MINUTE).run().await;
    assert_eq!(by_key(&run)["a"], [Outcome::Stopped, Outcome::Succeeded]);
    assert_eq!(by_key(&run)["b"], [Outcome::Stopped, Outcome::Succeeded]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_handler_that_ignores_a_stop_is_dropped() {
    struct Counts(Arc<AtomicUsize>);
    impl Drop for Counts {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (started, dropped) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let count = dropped.clone();
    let handler = move |jobs: Vec<Job>| {
        let counts = Counts(count.clone());
        async move {
            let _counts = counts;
            if jobs[0].receive_count == 1 {
                sleep(60 * MINUTE).await;
            }
            all_succeed(&jobs)
        }
    };
    let worker = TestWorker::batch(handler).batch_window(S).object("a", "").object("b", "");
    let run = worker.stop_after(MINUTE).run().await;
    assert_eq!(by_key(&run)["a"], [Outcome::Stopped, Outcome::Succeeded]);
    assert_eq!(by_key(&run)["b"], [Outcome::Stopped, Outcome::Succeeded]);
    assert!(started.elapsed() < 3 * MINUTE, "{:?}", started.elapsed());
    assert!(dropped.load(Ordering::Relaxed) >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_the_window_calls_no_handler() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let handler = move |jobs: Vec<Job>| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            assert_eq!(jobs[0].receive_count, 2);
            all_succeed(&jobs)
        }
    };
    let worker = TestWorker::batch(handler).batch_window(5 * MINUTE).stall_timeout(MINUTE);
    let run = worker.object("a", "").object("b", "").stop_after(2 * MINUTE).run().await;
    assert_eq!(by_key(&run)["a"], [Outcome::Stopped, Outcome::Succeeded]);
    assert_eq!(by_key(&run)["b"], [Outcome::Stopped, Outcome::Succeeded]);
    assert!(calls.load(Ordering::Relaxed) >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_at_most_its_size_and_one_runs_at_a_time() {
    let (sizes, running) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let (seen, count) = (sizes.clone(), running.clone());
    let handler = move |jobs: Vec<Job>| {
        let (seen, count) = (seen.clone(), count.clone());
        async move {
            assert_eq!(count.fetch_add(1, Ordering::Relaxed), 0);
            seen.lock().unwrap().push(jobs.len());
            sleep(S).await;
            count.fetch_sub(1, Ordering::Relaxed);
            all_succeed(&jobs)
        }
    };
    let worker = TestWorker::batch(handler).batch_size(2).batch_window(S);
    let worker = ["a", "b", "c", "d", "e"].into_iter().fold(worker, |it, key| it.object(key, ""));
    let run = worker.run().await;
    assert_eq!(run.outcomes(), [Outcome::Succeeded; 5]);
    let sizes = sizes.lock().unwrap();
    assert!(sizes.iter().all(|size| *size <= 2) && sizes.contains(&2), "{sizes:?}");
}

/// One of three jobs is halted, as after a lost lease.
#[tokio::test(start_paused = true)]
async fn a_job_without_its_lease_returns_after_the_stop_grace_and_leaves_the_others() {
    let handler = AnyHandler::batch(|jobs: Vec<Job>| async move {
        jobs[1].cancelled().await;
        assert!(!jobs[0].is_cancelled() && !jobs[2].is_cancelled());
        sleep(MINUTE).await;
        all_succeed(&jobs)
    });
    let batching = Batching { size: 3, window: S, calls: 1 };
    let work = runner(handler, Threads::Shared(Handle::current()), batching);
    let halts = [(); 3].map(|()| CancellationToken::new());
    let runs = halts.iter().map(|halt| {
        let work = work.clone();
        async move {
            let ended = work.run(command(10 * S), halt.clone(), Activity::default()).await;
            (ended.unwrap().exit, Instant::now())
        }
    });
    let halting = async {
        sleep(5 * S).await;
        halts[1].cancel();
        Instant::now()
    };
    let (ends, halted_at) = tokio::join!(join_all(runs), halting);
    let (good, lost) = (Exit::Handler(Handled::Succeeded), Exit::Handler(Handled::Dropped));
    assert_eq!([ends[0].0, ends[1].0, ends[2].0], [good, lost, good]);
    assert_eq!(ends[1].1 - halted_at, 10 * S);
    assert_eq!(ends[0].1 - halted_at, MINUTE);
}

/// There is one call at a time.
#[tokio::test(start_paused = true)]
async fn the_wait_for_a_call_does_not_shorten_the_time_for_the_job() {
    let (times, kept) = (Arc::new(Mutex::new(Vec::new())), Activity::default());
    let seen = times.clone();
    let handler = AnyHandler::batch(move |jobs: Vec<Job>| {
        seen.lock().unwrap().push(jobs[0].time_left());
        async move {
            sleep(5 * MINUTE).await;
            all_succeed(&jobs)
        }
    });
    let batching = Batching { size: 1, window: Duration::ZERO, calls: 1 };
    let work = runner(handler, Threads::Shared(Handle::current()), batching);
    let run = |activity: Activity| {
        let mut command = command(S);
        command.job.deadline = SystemTime::now() + 10 * MINUTE;
        work.run(command, CancellationToken::new(), activity)
    };
    let looks = async {
        sleep(MINUTE).await;
        assert!(*kept.waiting().borrow());
        sleep(5 * MINUTE).await;
        assert!(!*kept.waiting().borrow());
    };
    let (first, second, ()) = tokio::join!(run(Activity::default()), run(kept.clone()), looks);
    let good = Exit::Handler(Handled::Succeeded);
    assert_eq!((first.unwrap().exit, second.unwrap().exit), (good, good));
    let times = times.lock().unwrap();
    assert!(times.iter().all(|left| *left > 9 * MINUTE) && times.len() == 2, "{times:?}");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the handler takes one job; use a batch handler")]
async fn a_size_of_batches_needs_a_batch_handler() {
    let handler = |_: Job| async { Ok::<_, Error>(()) };
    TestWorker::new(handler).setting("batch-size", "2").run().await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "batch_size 11 is over 10")]
async fn a_batch_has_at_most_ten_jobs() {
    let handler = |jobs: Vec<Job>| async move { all_succeed(&jobs) };
    TestWorker::batch(handler).batch_size(11).run().await;
}
