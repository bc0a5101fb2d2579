//! `--handler lambda`: functions that stay for many messages, with a client that misbehaves
//! (`tests/lambda/client.py`). [`clients`] has AWS's own clients.

mod clients;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use leasehold::adapters::batching::Batching;
use leasehold::adapters::lambda::{Function, Lambda, Source};
use leasehold::adapters::memory_limit::{MemoryCgroup, MemoryLimited};
use leasehold::adapters::process::Processes;
use leasehold::adapters::warm::WarmProcesses;
use leasehold::job::outcome::Exit;
use leasehold::job::route::Input;
use leasehold::ports::job_facts::JobFacts;
use leasehold::ports::{Activity, Command, Exited, OutOfMemory, Runner, StartError};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::scenarios::configured;
use crate::support::cloud::{Cloud, ExitedRun, LIMIT, Leasehold, eventually, is_alive};
use crate::support::facts;

/// Kept messages stay hidden until the end of a test.
const FLAGS: &str = "--handler lambda --accept-raw --retry-min 1h --retry-max 1h";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lambda").join(name)
}

/// Starts `leasehold run` with the client that does what the messages say.
fn run(cloud: &Cloud, flags: &str) -> Leasehold {
    cloud.run(&format!("{FLAGS} {flags}"), &client(cloud.dir.path()))
}

fn client(home: &Path) -> String {
    format!("exec python3 '{}' '{}'", file("client.py").display(), home.display())
}

/// The lines that the client wrote to a file.
fn lines(home: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(home.join(name)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn pids(home: &Path) -> BTreeSet<i64> {
    lines(home, "calls").iter().map(|call| call["pid"].as_i64().unwrap()).collect()
}

fn reasons(exited: &ExitedRun) -> Vec<String> {
    let kept = exited.log.iter().filter(|record| record["message"] == "message kept");
    kept.map(|record| format!("{}: {}", record["outcome"], record["reason"])).collect()
}

#[test]
fn handlers_and_batches_that_cannot_work_are_refused_at_start() {
    for (flags, complaint) in [
        ("--handler python", "write command, lambda, or a URL"),
        ("--batch-size 0", "--batch-size must be greater than zero"),
        (
            "--batch-size 2 --max-messages 9",
            "--batch-size has an effect only with --handler lambda",
        ),
        ("--batch-window 1s", "--batch-window has an effect only with --handler lambda"),
        ("--handler lambda --batch-window 1s", "no effect with --batch-size 1"),
        ("--handler lambda --batch-size 11 --max-messages 99", "is over 10"),
        (
            "--handler lambda --batch-size 2 --max-messages 9 --max-duration 11h --batch-window 1h",
            "--batch-window 1h is too long: SQS hides a message for at most 12h, and only 59m",
        ),
        (
            "--handler lambda --batch-size 5 --concurrency 2 --max-messages 9",
            "must not be greater than --max-messages 9",
        ),
        (
            "--handler lambda --batch-size 2 --max-messages 9 --visibility fixed",
            "--batch-size does not work with --visibility fixed",
        ),
        ("--lambda-event s3", "--lambda-event has an effect only with --handler lambda"),
        (
            "--handler lambda --lambda-event s3 --batch-size 2 --max-messages 9",
            "set --batch-size 1, or --lambda-event sqs",
        ),
        (
            "--handler lambda --lambda-event s3 --accept-raw",
            "with --accept-raw a message may have none",
        ),
        ("--handler lambda --lambda-event sns", "invalid value 'sns'"),
        (
            "--handler lambda --batch-size 2 --max-messages 9 --output-at /out/x",
            "process 2 messages at the same time",
        ),
        ("--handler lambda --permanent-exit-codes 65,3", "has no effect with --handler lambda"),
        ("--handler lambda --input stdin", "set --input file"),
    ] {
        let error = configured(flags).unwrap_err();
        assert!(error.contains(complaint), "{flags}: {error}");
    }
    let inputs = |flags: &str| -> Vec<_> {
        let config = configured(flags).unwrap();
        config.work.settings.policy.tasks().map(|task| task.input).collect()
    };
    assert_eq!(inputs("--handler lambda --accept-raw"), [Input::None]);
    assert_eq!(inputs("--handler lambda --input file"), [Input::File]);
    assert_eq!(inputs(""), [Input::File]);
}

#[tokio::test]
async fn one_process_works_on_many_messages() {
    let cloud = Cloud::new(5).await;
    for number in 0..5 {
        cloud.send(format!("message {number}")).await;
    }
    let exited = run(&cloud, "--max-messages 5").expect_exit(0).await;
    assert_eq!(cloud.counts().await, (0, 0), "{}", exited.stdout);
    let calls = lines(cloud.dir.path(), "calls");
    assert_eq!((calls.len(), pids(cloud.dir.path()).len()), (5, 1));
    assert!(!is_alive(i32::try_from(calls[0]["pid"].as_i64().unwrap()).unwrap()));

    let record = &calls[0]["records"][0];
    assert_eq!(record["eventSource"], "aws:sqs");
    assert_eq!(record["eventSourceARN"], cloud.queue_arn().await);
    assert_eq!(record["attributes"]["ApproximateReceiveCount"], "1");
    assert!(record["attributes"]["SenderId"].is_string(), "{record}");
    let left = calls[0]["deadline"].as_f64().unwrap();
    assert!((1.0..24.0 * 3600.0).contains(&left), "{left}");

    let printed = exited.log.iter().filter(|it| it["line"] == "working on 1");
    let ids: BTreeSet<_> = printed.map(|it| it["message_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 5, "each line belongs to its message: {}", exited.stdout);
    let environment = &lines(cloud.dir.path(), "env")[0];
    let names = environment.as_object().unwrap().keys();
    let of_jobs: Vec<_> =
        names.filter(|it| it.starts_with("JOB_") || it.starts_with("LEASEHOLD_")).collect();
    assert_eq!(of_jobs, ["JOB_PROGRESS_URL"]);
}

#[tokio::test]
async fn every_failure_of_a_function_keeps_its_message() {
    let cloud = Cloud::new(5).await;
    let failures = [
        ("error", "command_failed", "ValueError: bad row | in handler"),
        ("crash", "command_failed", "ended before it answered: exit code 0"),
        ("exit65", "command_failed", "ended before it answered: exit code 65"),
        ("no answer", "command_failed", "asked for the next event without an answer"),
        ("large", "command_failed", "over 6 MiB"),
        ("not json", "command_failed", "not JSON"),
        ("unknown item", "command_failed", "not the messageId of a record"),
        ("fail", "command_failed", "in batchItemFailures"),
        ("stream", "command_failed", "streams its response"),
        ("encoded twice", "command_failed", "return the object"),
        ("late", "command_failed", "after a late answer"),
    ];
    cloud.send("good".to_owned()).await;
    for (body, _, _) in failures {
        cloud.send(body.to_owned()).await;
    }
    cloud.send("good".to_owned()).await;
    let exited = run(&cloud, "--max-messages 13").wait().await;
    let reasons = reasons(&exited);
    for (body, outcome, why) in failures {
        let is_it = |reason: &&String| reason.contains(outcome) && reason.contains(why);
        assert!(reasons.iter().any(|reason| is_it(&reason)), "{body}: {reasons:#?}");
    }
    assert_eq!((reasons.len(), cloud.counts().await), (11, (0, 11)), "{}", exited.stdout);
    // A late answer is accepted, an unknown one and an extension are not.
    assert_eq!(lines(cloud.dir.path(), "statuses")[0], serde_json::json!([202, 400, 404]));
    assert!(pids(cloud.dir.path()).len() >= 3, "a crashed process is replaced");
}

#[tokio::test]
async fn a_function_that_hangs_is_halted_and_replaced() {
    let cloud = Cloud::new(5).await;
    cloud.send("hang".to_owned()).await;
    cloud.send("good".to_owned()).await;
    let exited = run(&cloud, "--max-messages 2 --max-duration 12s").wait().await;
    assert!(reasons(&exited)[0].contains("timed_out"), "{}", exited.stdout);
    assert_eq!(cloud.counts().await, (0, 1), "{}", exited.stdout);
    assert_eq!(pids(cloud.dir.path()).len(), 2);
}

#[tokio::test]
async fn a_function_that_never_starts_ends_the_pod() {
    for (how, why) in [("init-error", "ImportError: no module"), ("exit", "exit code 0")] {
        let cloud = Cloud::new(5).await;
        fs::write(cloud.dir.path().join("start"), how).unwrap();
        for _ in 0..5 {
            cloud.send("good".to_owned()).await;
        }
        let exited = run(&cloud, "--max-messages 5").expect_exit(1).await;
        let reasons = reasons(&exited);
        assert_eq!(reasons.len(), 3, "{}", exited.stdout);
        assert!(reasons[..2].iter().all(|reason| reason.contains(why)), "{reasons:#?}");
        assert!(reasons[2].contains("worker_not_started"), "{reasons:#?}");
        assert_eq!(cloud.counts().await, (2, 3), "the others keep their receives");
    }
}

#[tokio::test]
async fn a_stop_ends_an_idle_process() {
    let cloud = Cloud::new(5).await;
    cloud.send("good".to_owned()).await;
    let running = run(&cloud, "--max-messages 2 --wait 15s");
    let pid = eventually("the message is deleted", async || {
        let calls = lines(cloud.dir.path(), "calls");
        let pid = calls.first()?["pid"].as_i64()?;
        (cloud.counts().await == (0, 0)).then_some(pid)
    })
    .await;
    running.signal(Signal::SIGTERM);
    running.expect_exit(0).await;
    assert!(!is_alive(i32::try_from(pid).unwrap()));
}

#[tokio::test]
async fn a_success_after_sigterm_proves_nothing() {
    let cloud = Cloud::new(5).await;
    cloud.send("sigterm".to_owned()).await;
    let running = run(&cloud, "");
    eventually("it works", async || cloud.dir.path().join("waits").exists().then_some(())).await;
    running.signal(Signal::SIGTERM);
    let exited = running.expect_exit(143).await;
    assert_eq!(exited.record("message kept")["outcome"], "stopped");
    assert_eq!(cloud.counts().await, (1, 0), "released at once");
}

#[tokio::test]
async fn messages_of_a_batch_succeed_and_fail_one_by_one() {
    let cloud = Cloud::new(5).await;
    for body in ["good", "fail", "good", "fail"] {
        cloud.send(body.to_owned()).await;
    }
    // The window is longer than the receives take on a busy machine; a full batch does not wait.
    let flags = "--batch-size 4 --batch-window 40s --max-messages 4 --wait 15s";
    let exited = run(&cloud, flags).expect_exit(1).await;
    let calls = lines(cloud.dir.path(), "calls");
    assert_eq!(calls.len(), 1, "{}", exited.stdout);
    assert_eq!(calls[0]["records"].as_array().unwrap().len(), 4);
    assert_eq!((reasons(&exited).len(), cloud.counts().await), (2, (0, 2)), "{}", exited.stdout);
}

/// The functions of a pod, without its supervisors.
struct Pod {
    home: TempDir,
    lambda: Arc<Lambda>,
    stop_grace: Duration,
}

/// The work on one message.
struct Lane {
    halt: CancellationToken,
    activity: Activity,
    result_file: PathBuf,
    running: JoinHandle<Result<Exited, StartError>>,
}

impl Pod {
    fn new(runner: Arc<dyn Runner>, batching: Batching, stop_grace: Duration) -> Self {
        let home = tempfile::tempdir().unwrap();
        let processes = WarmProcesses::new(runner, home.path(), &CancellationToken::new());
        let function =
            Function { source: Source::new(None, None), memory_limit: None, is_set: |_| false };
        Self { home, lambda: Arc::new(Lambda::new(processes, function, batching)), stop_grace }
    }

    fn lane(&self, message_id: &str, body: &str) -> Lane {
        let body_file = self.home.path().join(message_id);
        fs::write(&body_file, body).unwrap();
        let command = Command {
            program: "sh".into(),
            args: vec!["-c".into(), client(self.home.path()).into()],
            job: JobFacts { message_id: message_id.to_owned(), body_file, ..facts() },
            variables: None,
            stdin: None,
            fetch: None,
            on_demand: None,
            stop_grace: self.stop_grace,
        };
        let (halt, activity) = (CancellationToken::new(), Activity::default());
        let (lambda, halted, of_message) = (self.lambda.clone(), halt.clone(), activity.clone());
        let result_file = command.job.result_file.clone();
        let running = tokio::spawn(async move { lambda.run(command, halted, of_message).await });
        Lane { halt, activity, result_file, running }
    }

    async fn works(&self) {
        eventually("it works", async || self.home.path().join("waits").exists().then_some(()))
            .await;
    }
}

impl Lane {
    async fn ended(self) -> Exited {
        timeout(LIMIT, self.running).await.unwrap().unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_message_that_is_given_up_does_not_end_the_work_on_the_others() {
    let batching = Batching { size: 2, window: LIMIT, calls: 1 };
    let pod = Pod::new(Arc::new(Processes::new()), batching, Duration::ZERO);
    let (given_up, kept) = (pod.lane("a", "wait"), pod.lane("b", "wait"));
    pod.works().await;
    given_up.halt.cancel();
    assert_eq!(given_up.ended().await.exit, Exit::Signal(9));
    assert!(!kept.running.is_finished());
    fs::write(pod.home.path().join("go"), "").unwrap();
    assert_eq!(kept.ended().await.exit, Exit::Code(0));
    assert_eq!(lines(pod.home.path(), "calls").len(), 1);

    // The process stays for the next batch, of which all messages are given up: that ends it.
    fs::remove_file(pod.home.path().join("go")).unwrap();
    fs::remove_file(pod.home.path().join("waits")).unwrap();
    let (one, other) = (pod.lane("c", "wait"), pod.lane("d", "wait"));
    pod.works().await;
    assert_eq!(pids(pod.home.path()).len(), 1);
    one.halt.cancel();
    other.halt.cancel();
    for lane in [one, other] {
        let ended = lane.ended().await;
        assert!(matches!(ended.exit, Exit::Signal(9 | 15)), "{ended:?}");
    }
    timeout(LIMIT, pod.lambda.finish()).await.unwrap();
}

#[tokio::test]
async fn a_success_after_the_memory_guard_proves_nothing() {
    let cgroup = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(cgroup.path().join(name), text).unwrap();
    write("memory.max", "1000000");
    write("memory.events", "oom_kill 0\n");
    write("memory.stat", "inactive_file 0\n");
    write("memory.current", "1000");
    let found = MemoryCgroup::find(cgroup.path(), "0::/").unwrap();
    let limited = MemoryLimited::new(Arc::new(Processes::new()), found, Some(90));
    let batching = Batching { size: 1, window: Duration::ZERO, calls: 1 };
    let pod = Pod::new(Arc::new(limited), batching, LIMIT);

    let lane = pod.lane("a", "sigterm");
    pod.works().await;
    write("memory.current", "920000");
    let ended = lane.ended().await;
    assert_eq!(ended.exit, Exit::Code(1));
    assert!(matches!(ended.out_of_memory, Some(OutOfMemory::Guard(_))), "{ended:?}");
    write("memory.current", "1000");
    assert_eq!(pod.lane("b", "good").ended().await.exit, Exit::Code(0));
    assert_eq!(pids(pod.home.path()).len(), 2, "the process is not used again");
    timeout(LIMIT, pod.lambda.finish()).await.unwrap();
}

/// A function that never asks for an event, and needs all of its stop grace and a moment more.
struct Hangs;

const STOP_GRACE: Duration = Duration::from_secs(25);
const MOMENT: Duration = Duration::from_millis(300);

#[async_trait]
impl Runner for Hangs {
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        _: Activity,
    ) -> Result<Exited, StartError> {
        halt.cancelled().await;
        sleep(command.stop_grace + MOMENT).await;
        Ok(Exited::killed())
    }
}

fn hangs(size: usize, window: Duration) -> Pod {
    Pod::new(Arc::new(Hangs), Batching { size, window, calls: 1 }, STOP_GRACE)
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_given_up_alone_is_returned_at_the_end_of_the_stop_grace() {
    let pod = hangs(2, LIMIT);
    let (alone, other) = (pod.lane("a", ""), pod.lane("b", ""));
    sleep(MOMENT).await;
    let began_at = Instant::now();
    alone.halt.cancel();
    alone.ended().await;
    let took = began_at.elapsed();
    assert!((STOP_GRACE..STOP_GRACE + MOMENT).contains(&took), "{took:?}");
    assert!(!other.running.is_finished());
}

#[tokio::test(start_paused = true)]
async fn messages_that_are_given_up_together_wait_for_the_end_of_the_process() {
    let pod = hangs(2, LIMIT);
    let (one, other) = (pod.lane("a", ""), pod.lane("b", ""));
    sleep(MOMENT).await;
    let began_at = Instant::now();
    one.halt.cancel();
    sleep(Duration::from_millis(50)).await;
    other.halt.cancel();
    one.ended().await;
    other.ended().await;
    assert!(began_at.elapsed() >= STOP_GRACE + MOMENT, "{:?}", began_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_message_leaves_the_window_of_its_batch_at_once() {
    let pod = hangs(3, Duration::from_mins(5));
    let (first, second) = (pod.lane("a", ""), pod.lane("b", ""));
    sleep(Duration::from_secs(1)).await;
    let began_at = Instant::now();
    first.halt.cancel();
    first.ended().await;
    assert!(!second.running.is_finished());
    // As with the death of its actor.
    second.running.abort();
    pod.lambda.finish().await;
    assert!(began_at.elapsed() < Duration::from_secs(1), "{:?}", began_at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_message_reports_that_it_waits_for_the_function() {
    let pod = hangs(1, Duration::ZERO);
    let busy = pod.lane("a", "");
    let waits = busy.activity.waiting();
    sleep(MOMENT).await;
    assert!(!waits.has_changed().unwrap(), "it did not wait");
    let other = pod.lane("b", "");
    sleep(Duration::from_mins(3)).await;
    assert!(*other.activity.waiting().borrow());
    busy.halt.cancel();
    busy.ended().await;
    sleep(MOMENT).await;
    assert!(!*other.activity.waiting().borrow(), "the function has it");
}

/// Each message takes 13 s. The second one arrives while the function works on the first one.
#[tokio::test]
async fn the_wait_for_a_busy_function_does_not_count_for_the_longest_duration() {
    let cloud = Cloud::new(5).await;
    cloud.send("13 s".to_owned()).await;
    let running = run(&cloud, "--batch-size 2 --max-messages 2 --max-duration 22s --wait 15s");
    let home = cloud.dir.path();
    eventually("it works", async || (lines(home, "calls").len() == 1).then_some(())).await;
    cloud.send("13 s".to_owned()).await;
    let exited = running.expect_exit(0).await;
    assert_eq!(cloud.counts().await, (0, 0), "{}", exited.stdout);
    let calls = lines(cloud.dir.path(), "calls");
    assert_eq!((calls.len(), pids(cloud.dir.path()).len()), (2, 1), "{}", exited.stdout);
    let deadlines: Vec<_> = calls.iter().map(|call| call["deadline"].as_f64().unwrap()).collect();
    assert!(deadlines.iter().all(|left| (13.0..22.0).contains(left)), "{deadlines:?}");
    let of_messages = exited.log.iter().filter(|record| record["message"] == "message deleted");
    let waited = of_messages.filter(|record| record["turn_s"].as_f64() > Some(5.0)).count();
    assert_eq!(waited, 1, "{}", exited.stdout);
}

#[tokio::test]
async fn a_function_reports_its_progress_until_it_answers() {
    let batching = Batching { size: 1, window: Duration::ZERO, calls: 1 };
    let pod = Pod::new(Arc::new(Processes::new()), batching, Duration::ZERO);
    fs::write(pod.home.path().join("go"), "").unwrap();
    assert_eq!(pod.lane("a", "report").ended().await.exit, Exit::Code(0));
    fs::remove_file(pod.home.path().join("go")).unwrap();
    fs::remove_file(pod.home.path().join("waits")).unwrap();
    let lane = pod.lane("b", "report");
    let result_file = lane.result_file.clone();
    pod.works().await;
    assert!(lane.activity.take(), "a report is a sign of life");
    fs::write(pod.home.path().join("go"), "").unwrap();
    assert_eq!(lane.ended().await.exit, Exit::Code(0));
    let report = fs::read_to_string(result_file).unwrap();
    assert_eq!(report, "{\"metrics\":{\"rows\":5},\"progress\":0.5}\n");
    // One about the event before is refused.
    assert_eq!(lines(pod.home.path(), "statuses")[1], serde_json::json!([204, 404]));
    timeout(LIMIT, pod.lambda.finish()).await.unwrap();
}

#[tokio::test]
async fn local_files_are_events_too() {
    let home = tempfile::tempdir().unwrap();
    let inbox = home.path().join("inbox");
    fs::create_dir(&inbox).unwrap();
    for name in ["a.csv", "b.csv", "c.csv"] {
        fs::write(inbox.join(name), "x").unwrap();
    }
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold"));
    program.arg("local").arg(&inbox).args(["--handler", "lambda", "--", "sh", "-c"]);
    program.arg(client(home.path())).kill_on_drop(true);
    let output = timeout(LIMIT, program.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let calls = lines(home.path(), "calls");
    assert_eq!((calls.len(), pids(home.path()).len()), (3, 1));
    let body: Value =
        serde_json::from_str(calls[0]["records"][0]["body"].as_str().unwrap()).unwrap();
    assert!(body["Records"][0]["s3"]["object"]["key"].is_string(), "{body}");
}
