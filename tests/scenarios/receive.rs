//! 36 to 42, and 72: receiving, the queue, and who starts us.

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
    Around, Does, FakeCommand, Journey, MINUTE, S, changes, deletes, exits, queue, queue_of,
    queue_with,
};
use crate::support::logs::Logs;
use crate::support::object_created;
use crate::support::wire::{Call, Fault, Wire};

fn transient(why: &str) -> ReceiveError {
    ReceiveError::Transient(why.to_owned())
}

/// A pod that finds no message (too many were started, the counts are approximate) leaves soon,
/// with 0 and without a complaint.
#[tokio::test]
async fn s36_an_empty_queue_ends_the_run_soon_with_0_and_no_complaint() {
    let cloud = Cloud::new(5).await;
    let started = Instant::now();
    let left = cloud.run("--wait 1s", "exit 1").run_to(0).await;
    assert!(started.elapsed() < 10 * S, "it took {:?}", started.elapsed());
    assert!(left.log.iter().all(|record| record["level"] == "INFO"), "{}", left.stdout);
    let termination = std::fs::read_to_string(cloud.notes.path().join("termination-log")).unwrap();
    assert!(termination.contains("nothing_received"), "{termination}");
}

/// While a kept message is hidden for its delay the scaler may count it and start pods for it: each
/// asks once, finds the queue empty, and leaves with 0. (What the scaler counts is for the
/// deployment to say.)
#[tokio::test(start_paused = true)]
async fn s37_pods_that_come_while_a_kept_message_is_hidden_leave_with_0() {
    let (queue, command) = (queue(), exits(75));
    let started = Instant::now();
    Journey::new(&queue, &command).run().await;
    let (_, delay) = changes(&queue, started)[0];
    for _ in 0..3 {
        let mut journey = Journey::new(&queue, &command);
        journey.settings.polling.wait = Duration::ZERO;
        let calls = queue.calls().len();
        let arrived = journey.run().await;
        assert_eq!((arrived.outcome, arrived.took), (RunOutcome::Finished, Duration::ZERO));
        assert_eq!((queue.calls().len() - calls, command.runs()), (1, 1));
    }
    sleep(delay).await;
    Journey::new(&queue, &command).run().await;
    assert_eq!(command.got("JOB_RECEIVE_COUNT"), ["1", "2"]);
}

/// Receives that fail (throttled, over the limit, KMS, network) are retried with growing pauses,
/// never in a hot loop; if that passes, nothing happened; if it does not, the run ends with 69 and
/// the cause, and no message was touched.
#[tokio::test(start_paused = true)]
async fn s38_receiving_is_retried_for_a_while_and_not_in_a_hot_loop() {
    let (held, command) = (queue(), exits(0));
    for _ in 0..1000 {
        held.fault_receive(Fault::Error(transient("throttled")));
    }
    let arrived = Journey::new(&held, &command).run().await;
    assert_eq!(
        arrived.outcome,
        RunOutcome::ReceiveFailed(ReceiveFailure::GaveUp("throttled".to_owned()))
    );
    assert_eq!(arrived.outcome.exit_code(), 69);
    assert!(
        (2 * MINUTE..3 * MINUTE).contains(&arrived.took),
        "it gave up after {:?}",
        arrived.took
    );
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
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcomes(), queue.is_drained()), (vec!["succeeded"], true));
}

/// What counts is how long nothing but errors came: two with good answers between them are two
/// short ones.
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
    let arrived = journey.run().await;
    assert_eq!((arrived.outcome, queue.calls().len()), (RunOutcome::Finished, 32));
}

#[tokio::test]
async fn s38_a_queue_that_does_not_answer_ends_the_run_with_69() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    // Port 1 of this machine: nobody listens there.
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
    let left = Leasehold::start(command).run_to(69).await;
    assert!(left.stdout.contains("127.0.0.1:1"), "{}", left.stdout);
}

/// An answer that is lost may have brought a message, whose group then waits behind it. On a FIFO
/// queue the retry is the same attempt by name, so SQS gives the same message to it (SQS API,
/// `ReceiveRequestAttemptId`); what was answered is followed by an attempt of its own.
#[tokio::test]
async fn s38_a_receive_that_is_retried_on_a_fifo_queue_is_the_same_attempt() {
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

/// Credentials that expire while the command works are renewed, and nobody notices; if they cannot
/// be had any more, the lease ends at its deadline like any that cannot be extended: the command is
/// ended, nothing is deleted.
#[tokio::test]
async fn s39_credentials_are_renewed_and_their_loss_is_the_loss_of_the_lease() {
    let (loaded, gone) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let agent = Http::start({
        let (loaded, gone) = (loaded.clone(), gone.clone());
        move |_| {
            if gone.load(Ordering::Relaxed) {
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
        cloud.note("started").await;
        let before = loaded.load(Ordering::Relaxed);
        eventually("they are renewed", async || {
            (loaded.load(Ordering::Relaxed) > before + 2).then_some(())
        })
        .await;
    };

    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let run = start(&cloud);
    renewed(&cloud).await;
    cloud.tell("go");
    run.run_to(0).await;
    assert_eq!(cloud.counts().await, (0, 0));

    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let run = start(&cloud);
    renewed(&cloud).await;
    gone.store(true, Ordering::Relaxed);
    let left = run.run_to(75).await;
    assert_eq!(left.record("message kept")["outcome"], "lease_lost");
    assert!(
        left.stdout.contains("no credentials at the moment"),
        "the cause is told: {}",
        left.stdout
    );
    eventually("it is back", async || (cloud.counts().await == (1, 0)).then_some(())).await;
}

/// A queue that is not there is a mistake in the configuration, found at the first request; it is
/// not created.
#[tokio::test]
async fn s40_a_wrong_queue_fails_fast_and_is_not_created() {
    let cloud = Cloud::new(5).await;
    let wrong = format!("{}-not", cloud.queue_url);
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(["run", "--queue-url", &wrong, "--", "true"]);
    command.env("AWS_ENDPOINT_URL", &cloud.endpoint).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    let started = Instant::now();
    let left = Leasehold::start(command).run_to(78).await;
    assert!(started.elapsed() < 10 * S, "it took {:?}", started.elapsed());
    assert!(
        left.stdout.contains("check --queue-url, its account and its region"),
        "{}",
        left.stdout
    );
    let queues = cloud.sqs.list_queues().send().await.unwrap().queue_urls.unwrap_or_default();
    assert!(queues.contains(&cloud.queue_url) && !queues.contains(&wrong), "{queues:?}");
}

#[tokio::test(start_paused = true)]
async fn s40_a_missing_queue_ends_the_run_at_once() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_receive(Fault::Error(ReceiveError::Misconfigured("no such queue".to_owned())));
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!((arrived.outcome.exit_code(), arrived.took), (78, Duration::ZERO));
}

/// A message that the queue forgets while we work on it (its retention is over; here, a purge)
/// cannot be extended any more: that is the loss of the lease.
#[tokio::test]
async fn s41_a_message_that_expires_while_it_is_in_flight_is_a_lost_lease() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let run = cloud.run("--visibility-timeout 6s", "echo $$ > started; exec sleep 1000");
    cloud.note("started").await;
    cloud.sqs.purge_queue().queue_url(&cloud.queue_url).send().await.unwrap();
    let left = run.run_to(75).await;
    let kept = left.record("message kept");
    assert_eq!((&kept["outcome"], &kept["signal"]), (&"lease_lost".into(), &15.into()));
}

/// A message that fails each time is released with a growing delay and ends in the dead-letter
/// queue after as many receives as the queue allows; we never delete or move it.
#[tokio::test(start_paused = true)]
async fn s42_a_poison_message_ends_in_the_dead_letter_queue() {
    let (queue, command) = (queue(), exits(1));
    for attempt in 1..=3u32 {
        let mut journey = Journey::new(&queue, &command);
        journey.settings.polling.wait = 20 * MINUTE;
        let started = Instant::now();
        let arrived = journey.run().await;
        assert_eq!(arrived.outcome.exit_code(), 1);
        assert_eq!(arrived.ended()[0].subject.receive_count, attempt);
        let (_, delay) = *changes(&queue, started).last().expect("it was released");
        assert!(
            (10 * S..=10 * S * 2u32.pow(attempt)).contains(&delay),
            "attempt {attempt} waits {delay:?}"
        );
    }
    sleep(2 * MINUTE).await;
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!(arrived.outcome, RunOutcome::Finished);
    assert_eq!((queue.dead_letters().len(), command.runs(), deletes(&queue)), (1, 3, 0));
}

/// A queue without a dead-letter queue would retry a poison message without end: that is a loud
/// warning.
#[tokio::test(start_paused = true)]
async fn s42_a_queue_without_a_dead_letter_queue_is_warned_about() {
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

/// A redrive policy that the queue is slow to tell costs the message no time, and is asked for
/// again while the work runs: that it was the last attempt is known at the end.
#[tokio::test(start_paused = true)]
async fn s72_a_redrive_policy_that_comes_late_is_known_at_the_end() {
    let (queue, command) = (queue_of(Kind::Standard, 1, &[&object_created("k")]), exits(1));
    let mut slow = Around::new(&queue);
    (slow.silent_about_redrive, slow.redrive_takes) = (2.into(), S);
    let mut journey = Journey::new(&queue, &command);
    journey.queue = Arc::new(slow);
    let arrived = journey.run().await;
    assert_eq!(command.got("JOB_FINAL_ATTEMPT"), [] as [&str; 0], "it was not known yet");
    assert!(arrived.took < 6 * S + S, "the message waited for it: {:?}", arrived.took);
    let next = arrived.ended()[0].next(SystemTime::UNIX_EPOCH).unwrap();
    assert!(
        next.ends_with(
            "this was the last attempt: the next receive moves it to dead-letter queue dlq"
        ),
        "{next}"
    );
}
