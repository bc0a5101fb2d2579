//! 1 to 12, and 66: the lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::types::QueueAttributeName;
use leasehold::adapters::local::memory::Kind;
use leasehold::job::keep_reason::KeepReason;
use leasehold::job::lease::{CEILING, Lease};
use leasehold::job::route::Limits;
use leasehold::job::run_outcome::RunOutcome;
use leasehold::job::verdict::{Retry, Return, Settlement};
use leasehold::ports::{
    Activity, Command, DeleteError, Exited, Queue, Runner, StartError, VisibilityError,
};
use nix::sys::signal::Signal;
use tokio::time::{Instant, advance, sleep};
use tokio_util::sync::CancellationToken;

use super::configured;
use crate::support::cloud::{Cloud, eventually};
use crate::support::journey::{
    Does, FakeCommand, HookedQueue, Journey, MINUTE, S, VISIBILITY, changes, deletes, exits, queue,
    queue_of, queue_with, throttled,
};
use crate::support::logs::Logs;
use crate::support::object_created;
use crate::support::wire::{Call, Fault, WiredQueue};

/// The delete waits for a heartbeat in flight. No heartbeat follows the delete, and no error of one
/// is logged.
#[tokio::test(start_paused = true)]
async fn s01_no_heartbeat_fires_after_the_delete() {
    let logs = Logs::default();
    let _logging = logs.capture();
    let queue = queue_with(&[&object_created("a"), &object_created("b")]);
    let extend_at = VISIBILITY / 3;
    let command =
        FakeCommand::sequence([Does::Exits(extend_at + S, 0), Does::Exits(9 * MINUTE, 0)]);
    queue.fault_change_visibility(Fault::AnswerDelayed(3 * S));
    queue.fault_delete(Fault::AnswerDelayed(4 * S));
    let started = Instant::now();
    let mut journey = Journey::new(&queue, &command);
    journey.settings.policy.max_messages = 2;
    assert_eq!(journey.run().await.outcomes(), ["succeeded", "succeeded"]);

    let calls = queue.calls();
    let (first, second) = (calls[0].message_id.clone(), calls.last().unwrap().message_id.clone());
    let of_first: Vec<_> = calls.iter().filter(|entry| entry.message_id == first).skip(1).collect();
    let [extended, deleted] = of_first[..] else {
        panic!("one extension, then one delete, then nothing: {of_first:?}")
    };
    assert_eq!(
        (extended.call, extended.asked_at - started),
        (Call::ChangeVisibility(VISIBILITY), extend_at)
    );
    assert_eq!((deleted.call, deleted.asked_at - started), (Call::Delete, extend_at + 3 * S));
    assert!(
        calls.iter().filter(|entry| entry.message_id == second).count() > 10,
        "the process lived on"
    );
    assert_eq!(logs.complaints(), [""; 0]);
}

/// A heartbeat in flight does not undo the delay of a failure: one actor makes all calls, one after
/// another.
#[tokio::test(start_paused = true)]
async fn s02_a_heartbeat_does_not_undo_the_delay_of_a_failure() {
    for fault in [Fault::RequestDelayed(3 * S), Fault::AnswerDelayed(3 * S)] {
        let (queue, command) = (queue(), FakeCommand::new(Does::Exits(VISIBILITY / 3 + S, 1)));
        queue.fault_change_visibility(fault);
        let mut journey = Journey::new(&queue, &command);
        journey.settings.policy.limits.retry.retry = Retry::Backoff { min: 20 * S, max: 20 * S };
        let started = Instant::now();
        let result = journey.run().await;
        assert_eq!(
            result.took,
            VISIBILITY / 3 + 3 * S,
            "the release waits for the extension's answer"
        );
        let extension_then_release = [(VISIBILITY / 3, VISIBILITY), (result.took, 20 * S)];
        assert_eq!(changes(&queue, started), extension_then_release);
        let back =
            queue.receive(20 * S, VISIBILITY).await.unwrap().expect("a redelivery after the delay");
        assert_eq!((back.receive_count, started.elapsed() - result.took), (2, 20 * S));
    }
}

/// Failed extensions (throttled, lost, no answer) are retried with jitter inside the lease; each
/// failure is logged, and the work goes on.
#[tokio::test(start_paused = true)]
async fn s03_a_failed_extension_is_retried_with_jitter() {
    let mut tries = Vec::new();
    for earlier_messages in [0, 1] {
        let logs = Logs::default();
        let _logging = logs.capture();
        let queue = queue_with(&vec![object_created("k").as_str(); earlier_messages + 1]);
        for _ in 0..earlier_messages {
            queue.receive(S, CEILING).await.unwrap().expect("another pod has it");
        }
        let command = FakeCommand::new(Does::Exits(9 * MINUTE, 0));
        queue.fault_change_visibility(Fault::Error(throttled()));
        queue
            .fault_change_visibility(Fault::AnswerLost(VisibilityError::Unclear("503".to_owned())));
        queue.fault_change_visibility(Fault::Error(VisibilityError::Transient(
            "no such host".to_owned(),
        )));
        queue.fault_change_visibility(Fault::RequestDelayed(MINUTE));
        let started = Instant::now();
        let result = Journey::new(&queue, &command).run().await;
        assert_eq!(result.outcomes(), ["succeeded"]);
        assert_eq!(logs.complaints(), ["extending the lease failed and will be retried"; 4]);
        let extensions = changes(&queue, started);
        assert!(extensions.iter().all(|(_, to)| *to == VISIBILITY), "{extensions:?}");
        tries.push(extensions[1..5].iter().map(|(at, _)| *at).collect::<Vec<_>>());
    }
    assert!(tries.iter().flatten().all(|at| *at < VISIBILITY), "not inside the lease: {tries:?}");
    assert_ne!(
        tries[0], tries[1],
        "two messages are retried at the same moments: there is no jitter"
    );
}

/// If extensions fail or get no answer until our own deadline, the lease is lost: the command is
/// halted at that instant, and the message is neither deleted nor released, since another pod may
/// hold it.
#[tokio::test(start_paused = true)]
async fn s04_an_extension_that_fails_until_the_deadline_loses_the_lease() {
    for (seed, fault) in (0..10).flat_map(|seed| {
        [Fault::Error(throttled()), Fault::RequestDelayed(24 * 60 * MINUTE)]
            .map(|fault| (seed, fault))
    }) {
        fastrand::seed(seed);
        let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
        for _ in 0..1000 {
            queue.fault_change_visibility(fault.clone());
        }
        let started = Instant::now();
        let result = Journey::new(&queue, &command).run().await;
        assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["lease_lost"], 75));
        assert_eq!(
            command.ended() - started,
            VISIBILITY,
            "the command is halted when the lease ends"
        );
        let tries = changes(&queue, started);
        assert!((5..50).contains(&tries.len()), "{} tries", tries.len());
        assert!(
            tries.iter().all(|(at, to)| *at < VISIBILITY && *to == VISIBILITY),
            "no release: {tries:?}"
        );
        assert_eq!(deletes(&queue), 0);
    }
}

/// An extension that is granted, but answered after the old deadline, proves nothing: another pod
/// may have received the message in between. (Here the process is frozen during the call.)
#[tokio::test(start_paused = true)]
async fn s05_an_extension_answered_after_the_deadline_loses_the_lease() {
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    let mut around = HookedQueue::new(&queue);
    around.after = Box::new(|call| {
        Box::pin(async move {
            if matches!(call, Call::ChangeVisibility(_)) {
                advance(VISIBILITY).await;
            }
        })
    });
    let mut journey = Journey::new(&queue, &command);
    journey.queue = Arc::new(around);
    let started = Instant::now();
    let result = journey.run().await;
    let why = "the extension was answered after the lease had ended".to_owned();
    assert_eq!(result.outcome, RunOutcome::Kept(KeepReason::LeaseLost(why)));
    assert_eq!((changes(&queue, started).len(), deletes(&queue)), (1, 0), "no further calls");
    assert_eq!(
        command.ended() - started,
        VISIBILITY / 3 + VISIBILITY + 3 * S,
        "the command is halted"
    );
}

/// An extension counts from before its request was sent, since the queue may count from then.
#[tokio::test(start_paused = true)]
async fn s05_an_extension_counts_from_before_its_request() {
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    queue.fault_change_visibility(Fault::AnswerDelayed(3 * S));
    for _ in 0..1000 {
        queue.fault_change_visibility(Fault::Error(throttled()));
    }
    let started = Instant::now();
    assert_eq!(Journey::new(&queue, &command).run().await.outcomes(), ["lease_lost"]);
    assert_eq!(changes(&queue, started)[1].0, 2 * VISIBILITY / 3, "the next extension");
    assert_eq!(
        command.ended() - started,
        VISIBILITY / 3 + VISIBILITY + 3 * S,
        "the lease's end, and TERM"
    );
}

/// "Message does not exist or is not available" ends the lease at once: the command is halted, and
/// no further request goes to the queue.
#[tokio::test(start_paused = true)]
async fn s06_a_lost_lease_stops_the_command_and_all_calls() {
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
    queue.fault_change_visibility(Fault::Error(VisibilityError::NotInFlight(
        "received again".to_owned(),
    )));
    let started = Instant::now();
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!(
        result.outcome,
        RunOutcome::Kept(KeepReason::LeaseLost("received again".to_owned()))
    );
    assert_eq!(result.outcome.exit_code(), 75);
    assert_eq!(command.ended() - started, VISIBILITY / 3);
    assert_eq!((changes(&queue, started).len(), deletes(&queue)), (1, 0));
}

/// A visibility timeout too short for a heartbeat is refused at the start. The heartbeat period is
/// derived from it, so it is never longer, and never zero.
#[tokio::test(start_paused = true)]
async fn s07_a_too_short_visibility_timeout_is_refused_and_the_period_is_derived() {
    for seconds in 0..=2 {
        let refused = configured(&format!("--visibility-timeout {seconds}s")).unwrap_err();
        assert!(
            refused.contains("--visibility-timeout") && refused.contains("at least 3s"),
            "{refused}"
        );
    }
    for seconds in (3..=60).chain([600, 43_200]) {
        let settings = configured(&format!("--visibility-timeout {seconds}s --wait 10m"))
            .unwrap()
            .work
            .settings;
        let Limits { strategy, visibility, .. } = settings.policy.limits;
        let extend_at = Lease::taken(strategy, visibility, Duration::ZERO).extend_at().unwrap();
        assert!(
            extend_at >= S && extend_at <= visibility / 3,
            "{visibility:?} is extended after {extend_at:?}"
        );
        // The lease counts from before the poll, which the queue answers within 20 s.
        let poll = settings.polling.longest_poll;
        assert!(
            poll >= S && poll <= visibility / 3 && poll <= 20 * S,
            "with {visibility:?} the poll takes {poll:?}"
        );
    }
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
    let mut journey = Journey::new(&queue, &command);
    journey.settings = configured("--visibility-timeout 3s").unwrap().work.settings;
    let started = Instant::now();
    assert_eq!(journey.run().await.outcomes(), ["succeeded"]);
    let extensions = changes(&queue, started).len();
    assert!((539..=540).contains(&extensions), "{extensions} extensions");
}

/// The queue's default visibility timeout, shorter than the time until the first heartbeat, does
/// not matter: each receive sets its own.
#[tokio::test]
async fn s08_a_receive_overrides_the_default_timeout_of_the_queue() {
    let cloud = Cloud::new(5).await;
    let set = cloud.sqs.set_queue_attributes().queue_url(&cloud.queue_url);
    set.attributes(QueueAttributeName::VisibilityTimeout, "1").send().await.unwrap();
    cloud.put("k", b"x").await;
    // The first heartbeat comes after 10 s.
    let run = cloud.run("--visibility-timeout 30s", "echo > started; sleep 2.5");
    cloud.file("started").await;
    assert_eq!(cloud.wait_while_another_polls(run).await.code(), 0);
    assert_eq!(cloud.counts().await, (0, 0));
}

/// The lease counts from before the request. So after a slow answer the first heartbeat comes
/// sooner, and if the answer takes as long as the lease, the lease has expired.
#[tokio::test(start_paused = true)]
async fn s08_a_lease_counts_from_before_the_receive_request() {
    for (send_with_fault, first_beat) in [(S, VISIBILITY / 3), (MINUTE, MINUTE)] {
        let (queue, command) = (queue(), FakeCommand::new(Does::Exits(3 * MINUTE, 0)));
        queue.fault_receive(Fault::AnswerDelayed(send_with_fault));
        let started = Instant::now();
        assert_eq!(Journey::new(&queue, &command).run().await.outcomes(), ["succeeded"]);
        assert_eq!(changes(&queue, started)[0], (first_beat, VISIBILITY));
    }
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    queue.fault_receive(Fault::AnswerDelayed(VISIBILITY));
    let started = Instant::now();
    let result = Journey::new(&queue, &command).run().await;
    assert_eq!(result.outcomes(), ["lease_lost"]);
    assert!(result.took <= VISIBILITY + 3 * S, "the run took {:?}", result.took);
    assert_eq!((changes(&queue, started), deletes(&queue)), (vec![], 0));
}

/// A message that waits in this pod would use up its lease; other pods can receive those that are
/// still in the queue.
#[tokio::test]
async fn s09_one_message_is_received_at_a_time() {
    let cloud = Cloud::new(5).await;
    for key in ["a", "b", "c"] {
        cloud.put(key, b"x").await;
    }
    let script =
        "echo $JOB_RECEIVE_COUNT >> counts; echo > started; until [ -e go ]; do sleep 0.05; done";
    let run = cloud.run("--max-messages 3", script);
    cloud.file("started").await;
    assert_eq!(cloud.counts().await, (2, 1));
    cloud.touch("go");
    run.expect_exit(0).await;
    assert_eq!((cloud.counts().await, cloud.file("counts").await.as_str()), ((0, 0), "1\n1\n1"));
}

/// SQS hides a message for 12 hours at most. A longer limit is refused; work that takes longer
/// anyway is halted early enough to end before that, and the message is released to the next pod,
/// which has twelve hours again.
#[tokio::test(start_paused = true)]
async fn s10_work_beyond_twelve_hours_is_halted_before_the_ceiling() {
    let refused = configured("--max-duration 12h").unwrap_err();
    assert!(refused.contains("--max-duration 12h is over"), "{refused}");

    for visibility in [3 * S, VISIBILITY, 20 * MINUTE, 11 * 60 * MINUTE, CEILING] {
        let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(15 * S, 0)));
        let mut journey = Journey::new(&queue, &command);
        journey.settings.policy.limits.max_duration = 24 * 60 * MINUTE;
        journey.settings.policy.limits.visibility = visibility;
        let stop = journey.settings.policy.limits.stop_grace + journey.settings.stop.reserve;
        let started = Instant::now();
        let result = journey.run().await;
        assert_eq!(
            (result.outcomes(), result.outcome.exit_code()),
            (vec!["lease_exhausted"], 75),
            "{visibility:?}"
        );
        let ended = command.ended() - started;
        assert!(
            ended < CEILING,
            "with a visibility of {visibility:?} the command outlived the twelve hours"
        );
        let halted = ended - 15 * S;
        let earliest = CEILING - stop - 2 * S;
        assert!(
            halted > earliest,
            "with a visibility of {visibility:?} it was already halted after {halted:?}"
        );
        assert_eq!((deletes(&queue), queue.counts().visible), (0, 1));
    }
}

/// The same limit does not halt work that has enough time: under a fixed lease, or a long one that
/// can no longer be extended.
#[tokio::test(start_paused = true)]
async fn s10_a_lease_that_covers_the_work_is_not_exhausted() {
    for (flags, work) in [
        ("--visibility fixed --visibility-timeout 1h --max-duration 10m", 9 * MINUTE),
        ("--visibility fixed --visibility-timeout 10m30s --max-duration 10m", 9 * MINUTE),
        ("--visibility-timeout 11h --max-duration 11h50m", 11 * 60 * MINUTE + 40 * MINUTE),
        ("--visibility-timeout 12h --max-duration 11h50m", 11 * 60 * MINUTE + 40 * MINUTE),
        ("--visibility fixed --max-duration 11h59m", 11 * 60 * MINUTE + 58 * MINUTE),
    ] {
        let (queue, command) = (queue(), FakeCommand::new(Does::Exits(work, 0)));
        let mut journey = Journey::new(&queue, &command);
        journey.settings = configured(flags).unwrap().work.settings;
        assert_eq!(journey.run().await.outcomes(), ["succeeded"], "{flags}");
    }
}

/// The process freezes for longer than the lease when its command has exited.
struct FrozenAfterwards(FakeCommand);

#[async_trait]
impl Runner for FrozenAfterwards {
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        let exited = self.0.run(command, halt, activity).await;
        advance(2 * VISIBILITY).await;
        exited
    }
}

/// A process that is frozen between success and delete (no CPU, a suspended machine) checks its
/// deadline before it deletes: by then another pod may hold the message.
#[tokio::test(start_paused = true)]
async fn s11_a_process_frozen_for_longer_than_its_lease_does_not_delete() {
    for kind in [Kind::Standard, Kind::Fifo] {
        let (queue, command) = (queue_of(kind, 3, &[&object_created("k")]), exits(0));
        let rival = tokio::spawn({
            let queue = queue.clone();
            async move {
                sleep(S).await;
                loop {
                    if let Some(delivery) = queue.receive(20 * S, 9 * MINUTE).await.unwrap() {
                        return delivery;
                    }
                }
            }
        });
        let mut journey = Journey::new(&queue, &command);
        journey.command = Arc::new(FrozenAfterwards(command.clone()));
        let result = journey.run().await;
        assert_eq!(result.outcome.exit_code(), 75, "{:?}", result.outcome);
        assert!(
            matches!(result.outcomes()[..], ["lease_lost" | "lost_after_success"]),
            "{:?}",
            result.outcomes()
        );
        assert_eq!((rival.await.unwrap().receive_count, deletes(&queue)), (2, 0));
        assert_eq!(queue.counts().in_flight, 1, "the other pod holds it");
    }
}

/// A queue whose client freezes during each extension, a while after the queue granted it.
fn frozen_during_an_extension(queue: &WiredQueue) -> HookedQueue {
    let mut around = HookedQueue::new(queue);
    around.after = Box::new(|call| {
        Box::pin(async move {
            if matches!(call, Call::ChangeVisibility(_)) {
                sleep(3 * S).await;
                advance(2 * VISIBILITY).await;
            }
        })
    });
    around
}

/// The same if the process freezes while the delete waits for an extension, or for its next try.
#[tokio::test(start_paused = true)]
async fn s11_a_process_frozen_just_before_its_delete_does_not_delete() {
    let (held, command) = (queue(), FakeCommand::new(Does::Exits(VISIBILITY / 3 + S, 0)));
    let mut journey = Journey::new(&held, &command);
    journey.queue = Arc::new(frozen_during_an_extension(&held));
    let result = journey.run().await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["lost_after_success"], 75));
    assert_eq!((deletes(&held), held.counts().visible), (0, 1));

    let (held, command) = (queue(), exits(0));
    held.fault_delete(Fault::Error(DeleteError::Transient("503".to_owned())));
    let mut frozen_in_a_delete = HookedQueue::new(&held);
    frozen_in_a_delete.after = Box::new(|call| {
        Box::pin(async move {
            if call == Call::Delete {
                advance(VISIBILITY - 3 * S).await;
            }
        })
    });
    let mut journey = Journey::new(&held, &command);
    journey.queue = Arc::new(frozen_in_a_delete);
    let result = journey.run().await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["lost_after_success"], 75));
    assert_eq!((deletes(&held), held.counts().visible), (1, 1), "only the one that failed");
}

/// The same before a release: only the pod that holds the message may change its visibility.
#[tokio::test(start_paused = true)]
async fn s11_a_process_frozen_just_before_its_release_does_not_release() {
    for kind in [Kind::Standard, Kind::Fifo] {
        let (held, command) = (
            queue_of(kind, 3, &[&object_created("k")]),
            FakeCommand::new(Does::Exits(VISIBILITY / 3 + S, 1)),
        );
        let mut journey = Journey::new(&held, &command);
        journey.queue = Arc::new(frozen_during_an_extension(&held));
        let started = Instant::now();
        let result = journey.run().await;
        assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["command_failed"], 1));
        assert_eq!(
            changes(&held, started),
            [(VISIBILITY / 3, VISIBILITY)],
            "an extension, and no release"
        );
        assert_eq!(held.counts().visible, 1);
    }
}

/// The same with the real program: stopped by SIGSTOP while its command succeeds, and continued
/// after the lease has expired.
#[tokio::test]
async fn s11_a_program_stopped_for_longer_than_its_lease_does_not_delete() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let script = "echo > started; until [ -e go ]; do sleep 0.05; done; echo > done";
    let run = cloud.run("--visibility-timeout 3s", script);
    cloud.file("started").await;
    run.signal(Signal::SIGSTOP);
    cloud.touch("go");
    cloud.file("done").await;
    eventually("the lease expires", async || (cloud.counts().await == (1, 0)).then_some(())).await;
    run.signal(Signal::SIGCONT);
    let exited = run.expect_exit(75).await;
    let outcome = &exited.record("message kept")["outcome"];
    assert!(outcome == "lease_lost" || outcome == "lost_after_success", "{outcome}");
    assert_eq!(cloud.counts().await, (1, 0), "it is still in the queue");
}

/// A second pod receives the message while the first, cut off from the queue, still runs: the first
/// stops at its own deadline and deletes nothing; the second sees receive count 2, and its success
/// counts.
#[tokio::test(start_paused = true)]
async fn s12_a_second_pod_receives_a_message_that_the_first_still_works_on() {
    let queue = queue();
    let (first, second) = (FakeCommand::new(Does::EndsOnTerm(3 * S, 0)), exits(0));
    let mut cut_off = HookedQueue::new(&queue);
    let tried = Arc::new(AtomicU32::new(0));
    cut_off.before = Box::new({
        let tried = tried.clone();
        move |call| {
            let tried = tried.clone();
            Box::pin(async move {
                if matches!(call, Call::ChangeVisibility(_)) {
                    tried.fetch_add(1, Ordering::Relaxed);
                    std::future::pending::<()>().await;
                }
            })
        }
    });
    let mut one = Journey::new(&queue, &first);
    one.queue = Arc::new(cut_off);
    let started = Instant::now();
    let one = tokio::spawn(one.run());
    sleep(S).await;
    let mut other = Journey::new(&queue, &second);
    other.settings.polling.wait = 5 * MINUTE;
    let (one, other) = tokio::join!(one, other.run());
    let one = one.unwrap();

    assert_eq!((one.outcomes(), one.outcome.exit_code()), (vec!["lease_lost"], 75));
    assert!(tried.load(Ordering::Relaxed) > 3, "it never tried");
    assert_eq!(first.ended() - started, VISIBILITY + 3 * S, "halted exactly at the deadline");
    assert_eq!((other.outcomes(), other.outcome.exit_code()), (vec!["succeeded"], 0));
    assert_eq!(first.got("JOB_RECEIVE_COUNT"), ["1"]);
    assert_eq!(second.got("JOB_RECEIVE_COUNT"), ["2"]);
    assert!(queue.is_drained() && deletes(&queue) == 1);
}

/// A release whose answer is lost may have succeeded, and then another pod may hold the message: it
/// is not sent again, and the reported time of return holds either way.
#[tokio::test(start_paused = true)]
async fn s66_a_release_without_an_answer_is_not_sent_again() {
    let unclear = || VisibilityError::Unclear("reset".to_owned());
    for fault in
        [Fault::AnswerLost(unclear()), Fault::Error(unclear()), Fault::RequestDelayed(MINUTE)]
    {
        let logs = Logs::default();
        let _logging = logs.capture();
        let (queue, command) = (queue(), exits(1));
        queue.fault_change_visibility(fault.clone());
        let started = Instant::now();
        let result = Journey::new(&queue, &command).run().await;
        assert_eq!(result.outcomes(), ["command_failed"]);
        assert_eq!(changes(&queue, started).len(), 1, "{fault:?}");
        let Settlement::Kept(_, Return::Within(within)) = result.ended()[0].settlement else {
            panic!("{fault:?}")
        };
        let back = queue.receive(20 * S, VISIBILITY).await;
        let mut back = back.unwrap();
        while back.is_none() {
            back = queue.receive(20 * S, VISIBILITY).await.unwrap();
        }
        assert!(
            Instant::now() <= started + result.took + within,
            "{fault:?}: it was to return within {within:?}"
        );
        let complaint = "no answer to the release: the message is visible again when its visibility timeout ends, or sooner";
        assert_eq!(logs.complaints(), [complaint]);
    }
}
