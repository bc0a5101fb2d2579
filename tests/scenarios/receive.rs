//! 36 to 42, and 72: receiving, and the queue.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use leasehold::adapters::aws::sqs::Sqs;
use leasehold::adapters::local::memory::{Kind, MemoryQueue};
use leasehold::job::delivery::Redrive;
use leasehold::job::run_outcome::{ReceiveFailure, RunOutcome};
use leasehold::ports::{Queue, ReceiveError};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::support::aws;
use crate::support::cloud::{Cloud, Leasehold, eventually};
use crate::support::http::Http;
use crate::support::journey::{
    Does, FakeCommand, HookedQueue, Journey, MINUTE, S, changes, deletes, exits, queue, queue_of,
    queue_with,
};
use crate::support::logs::Logs;
use crate::support::object_created;
use crate::support::wire::{Call, Fault, Wire};

fn transient(why: &str) -> ReceiveError {
    ReceiveError::Transient(why.to_owned())
}

/// A pod that finds no message (too many were started, the counts are approximate) soon exits 0,
/// without a warning.
#[tokio::test]
async fn s36_an_empty_queue_ends_the_run_soon_with_0() {
    let cloud = Cloud::new(5).await;
    let started = Instant::now();
    let exited = cloud.run("--wait 1s", "exit 1").expect_exit(0).await;
    assert!(started.elapsed() < 10 * S, "it took {:?}", started.elapsed());
    assert!(exited.log.iter().all(|record| record["level"] == "INFO"), "{}", exited.stdout);
    let termination = std::fs::read_to_string(cloud.dir.path().join("termination-log")).unwrap();
    assert!(termination.contains("nothing_received"), "{termination}");
}

/// While a kept message is hidden for its delay, the scaler may count it and start pods for it:
/// each polls once, finds the queue empty, and exits 0.
#[tokio::test(start_paused = true)]
async fn s37_pods_exit_0_while_a_kept_message_is_hidden() {
    let (queue, command) = (queue(), exits(75));
    let started = Instant::now();
    Journey::new(&queue, &command).run().await;
    let (_, delay) = changes(&queue, started)[0];
    for _ in 0..3 {
        let mut journey = Journey::new(&queue, &command);
        journey.settings.polling.wait = Duration::ZERO;
        let calls = queue.calls().len();
        let result = journey.run().await;
        assert_eq!((result.outcome, result.took), (RunOutcome::Finished, Duration::ZERO));
        assert_eq!((queue.calls().len() - calls, command.runs()), (1, 1));
    }
    sleep(delay).await;
    Journey::new(&queue, &command).run().await;
    assert_eq!(command.got("JOB_RECEIVE_COUNT"), ["1", "2"]);
}

/// Failed receives (throttled, over the limit, KMS, network) are retried with backoff, never in a
/// hot loop. If they keep failing, the run ends with 69 and the cause, and no message was touched.
#[tokio::test(start_paused = true)]
async fn s38_failed_receives_are_retried_with_backoff() {
    let (held, command) = (queue(), exits(0));
    for _ in 0..1000 {
        held.fault_receive(Fault::Error(transient("throttled")));
    }
    let result = Journey::new(&held, &command).run().await;
    assert_eq!(
        result.outcome,
        RunOutcome::ReceiveFailed(ReceiveFailure::GaveUp("throttled".to_owned()))
    );
    assert_eq!(result.outcome.exit_code(), 69);
    assert!((2 * MINUTE..3 * MINUTE).contains(&result.took), "it gave up after {:?}", result.took);
    let calls = held.calls();
    assert!((5..25).contains(&calls.len()), "{} requests", calls.len());
    assert!(
        calls.windows(2).all(|two| two[1].asked_at - two[0].asked_at >= S / 2),
        "a hot loop: {calls:?}"
    );
    assert!(calls.iter().all(|entry| entry.call == Call::Receive));

    let queue = queue();
    for why in ["OverLimit", "KMS.AccessDeniedException", "connection reset", "503"] {
        queue.fault_receive(Fault::Error(transient(why)));
    }
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!((result.outcomes(), queue.is_drained()), (vec!["succeeded"], true));
}

/// The limit counts the time of consecutive errors: a good answer starts it again.
#[tokio::test(start_paused = true)]
async fn s38_errors_with_good_answers_between_them_do_not_add_up() {
    let (queue, command) = (queue_with(&[]), exits(0));
    queue.fault_receive(Fault::Error(transient("503")));
    for _ in 0..20 {
        queue.fault_receive(Fault::RequestDelayed(Duration::ZERO));
    }
    queue.fault_receive(Fault::Error(transient("503")));
    let mut journey = Journey::new(&queue, &command);
    journey.settings.polling.wait = 5 * MINUTE;
    let result = journey.run().await;
    assert_eq!((result.outcome, queue.calls().len()), (RunOutcome::Finished, 32));
}

#[tokio::test]
async fn s38_an_unreachable_queue_ends_the_run_with_69() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    // No server listens on port 1.
    command.args([
        "run",
        "--queue-url",
        "http://127.0.0.1:1/000000000000/q",
        "--receive-give-up",
        "1s",
        "--",
        "true",
    ]);
    command
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_REGION", "us-east-1");
    let exited = Leasehold::start(command).expect_exit(69).await;
    assert!(exited.stdout.contains("127.0.0.1:1"), "{}", exited.stdout);
}

/// A lost answer may have carried a message, which then blocks its group. On a FIFO queue the retry
/// has the same attempt id, so that SQS returns the same message (SQS API,
/// `ReceiveRequestAttemptId`); after an answer, the next request gets a new id.
#[tokio::test]
async fn s38_a_retried_receive_on_a_fifo_queue_has_the_same_attempt_id() {
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let server = Http::start({
        let attempts = attempts.clone();
        move |request| {
            let (_, body) = request.split_once("\r\n\r\n").unwrap();
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            let mut attempts = attempts.lock().unwrap();
            attempts.push(body["ReceiveRequestAttemptId"].as_str().map(str::to_owned));
            if attempts.len() < 3 { (503, String::new()) } else { (200, "{}".to_owned()) }
        }
    })
    .await;
    let receive = async |queue: &Sqs| queue.receive(Duration::ZERO, 30 * S).await;
    let fifo = Sqs::new(
        &aws::config(&server.endpoint),
        format!("{}/000000000000/q.fifo", server.endpoint),
    );
    assert!(receive(&fifo).await.is_err() && receive(&fifo).await.is_err());
    assert!(receive(&fifo).await.is_ok() && receive(&fifo).await.is_ok());
    let standard =
        Sqs::new(&aws::config(&server.endpoint), format!("{}/000000000000/q", server.endpoint));
    assert!(receive(&standard).await.is_ok());

    let attempts = attempts.lock().unwrap();
    let [Some(first), Some(second), Some(third), Some(next), None] = &attempts[..] else {
        panic!("{attempts:?}")
    };
    assert!(first == second && second == third && third != next, "{attempts:?}");
}

/// Credentials that expire while the command works are renewed. If that fails, the lease can no
/// longer be extended and is lost at its deadline: the command is halted, and nothing is deleted.
#[tokio::test]
async fn s39_credentials_are_renewed_and_without_them_the_lease_is_lost() {
    let (loaded, revoked) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let agent = Http::start({
        let (loaded, revoked) = (loaded.clone(), revoked.clone());
        move |_| {
            if revoked.load(Ordering::Relaxed) {
                return (404, "no credentials today".to_owned());
            }
            loaded.fetch_add(1, Ordering::Relaxed);
            let expiration = humantime::format_rfc3339_seconds(SystemTime::now() + 2 * S).to_string();
            let credentials = serde_json::json!({
                "AccessKeyId": "test", "SecretAccessKey": "test", "Token": "t", "Expiration": expiration,
            });
            (200, credentials.to_string())
        }
    })
    .await;
    let start = |cloud: &Cloud| {
        let script = "echo > started; until [ -e go ]; do sleep 0.05; done";
        let mut command = cloud.command(&[], "--visibility-timeout 3s", script);
        command
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .env("HOME", "/nonexistent");
        command
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/credentials", agent.endpoint));
        Leasehold::start(command)
    };
    let renewed = async |cloud: &Cloud| {
        cloud.file("started").await;
        let before = loaded.load(Ordering::Relaxed);
        eventually("the credentials are renewed", async || {
            (loaded.load(Ordering::Relaxed) > before + 2).then_some(())
        })
        .await;
    };

    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let run = start(&cloud);
    renewed(&cloud).await;
    cloud.touch("go");
    run.expect_exit(0).await;
    assert_eq!(cloud.counts().await, (0, 0));

    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let run = start(&cloud);
    renewed(&cloud).await;
    revoked.store(true, Ordering::Relaxed);
    let exited = run.expect_exit(75).await;
    assert_eq!(exited.record("message kept")["outcome"], "lease_lost");
    assert!(
        exited.stdout.contains("no credentials at the moment"),
        "the log lacks the cause: {}",
        exited.stdout
    );
    eventually("the message is visible again", async || {
        (cloud.counts().await == (1, 0)).then_some(())
    })
    .await;
}

/// A queue that does not exist is a configuration error, found at the first request; it is not
/// created.
#[tokio::test]
async fn s40_a_wrong_queue_fails_fast_and_is_not_created() {
    let cloud = Cloud::new(5).await;
    let wrong = format!("{}-not", cloud.queue_url);
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(["run", "--queue-url", &wrong, "--", "true"]);
    command.env("AWS_ENDPOINT_URL", &cloud.endpoint).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    let started = Instant::now();
    let exited = Leasehold::start(command).expect_exit(78).await;
    assert!(started.elapsed() < 10 * S, "it took {:?}", started.elapsed());
    assert!(
        exited.stdout.contains("check --queue-url, its account and its region"),
        "{}",
        exited.stdout
    );
    let queues = cloud.sqs.list_queues().send().await.unwrap().queue_urls.unwrap_or_default();
    assert!(queues.contains(&cloud.queue_url) && !queues.contains(&wrong), "{queues:?}");
}

#[tokio::test(start_paused = true)]
async fn s40_a_missing_queue_ends_the_run_at_once() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_receive(Fault::Error(ReceiveError::Misconfigured("no such queue".to_owned())));
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!((result.outcome.exit_code(), result.took), (78, Duration::ZERO));
}

/// A message that the queue drops while it is in flight (at the end of its retention; here, by a
/// purge) can no longer be extended: the lease is lost.
#[tokio::test]
async fn s41_a_message_that_expires_in_flight_is_a_lost_lease() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let run = cloud.run("--visibility-timeout 6s", "echo $$ > started; exec sleep 1000");
    cloud.file("started").await;
    cloud.sqs.purge_queue().queue_url(&cloud.queue_url).send().await.unwrap();
    let exited = run.expect_exit(75).await;
    let kept = exited.record("message kept");
    assert_eq!((&kept["outcome"], &kept["signal"]), (&"lease_lost".into(), &15.into()));
}

/// A message that always fails is released with a growing delay and ends in the dead-letter queue
/// after maxReceiveCount receives; leasehold never deletes or moves it.
#[tokio::test(start_paused = true)]
async fn s42_a_poison_message_ends_in_the_dead_letter_queue() {
    let (queue, command) = (queue(), exits(1));
    for attempt in 1..=3u32 {
        let mut journey = Journey::new(&queue, &command);
        journey.settings.polling.wait = 20 * MINUTE;
        let started = Instant::now();
        let result = journey.run().await;
        assert_eq!(result.outcome.exit_code(), 1);
        assert_eq!(result.ended()[0].subject.receive_count, attempt);
        let (_, delay) = *changes(&queue, started).last().expect("a release");
        assert!(
            (10 * S..=10 * S * 2u32.pow(attempt)).contains(&delay),
            "attempt {attempt} has a delay of {delay:?}"
        );
    }
    sleep(2 * MINUTE).await;
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!(result.outcome, RunOutcome::Finished);
    assert_eq!((queue.dead_letters().len(), command.runs(), deletes(&queue)), (1, 3, 0));
}

/// Without a dead-letter queue a poison message is retried until it expires, so there is a warning.
#[tokio::test(start_paused = true)]
async fn s42_a_queue_without_a_dead_letter_queue_causes_a_warning() {
    let logs = Logs::default();
    let _logging = logs.capture();
    let queue = Wire::to(MemoryQueue::new(Kind::Standard, Redrive::None));
    queue.send(object_created("k"));
    let command = FakeCommand::new(Does::Exits(S, 1));
    let ended = Journey::new(&queue, &command).run().await.ended().remove(0);
    let warned = "the queue has no dead-letter queue: a message that always fails is retried until it expires";
    assert!(logs.complaints().contains(&warned.to_owned()), "{:?}", logs.complaints());
    assert!(ended.next(SystemTime::UNIX_EPOCH).unwrap().contains("retried until it expires"));

    let logs = Logs::default();
    let _logging = logs.capture();
    Journey::new(&queue_with(&[]), &command).run().await;
    assert_eq!(logs.complaints(), [""; 0]);
}

/// A slow answer about the redrive policy does not delay the message. The policy is requested again
/// while the work runs, so at the end the last attempt is recognised.
#[tokio::test(start_paused = true)]
async fn s72_a_late_redrive_policy_is_known_at_the_end() {
    let (queue, command) = (queue_of(Kind::Standard, 1, &[&object_created("k")]), exits(1));
    let mut slow = HookedQueue::new(&queue);
    (slow.redrive_failures, slow.redrive_delay) = (2.into(), S);
    let mut journey = Journey::new(&queue, &command);
    journey.queue = Arc::new(slow);
    let result = journey.run().await;
    assert_eq!(command.got("JOB_FINAL_ATTEMPT"), [] as [&str; 0], "the policy was not known yet");
    assert!(result.took < 6 * S + S, "the message waited for it: {:?}", result.took);
    let next = result.ended()[0].next(SystemTime::UNIX_EPOCH).unwrap();
    assert!(
        next.ends_with(
            "this was the last attempt: the next receive moves it to dead-letter queue dlq"
        ),
        "{next}"
    );
}
