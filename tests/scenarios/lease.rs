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
    Around, Does, FakeCommand, Journey, MINUTE, S, VISIBILITY, changes, deletes, exits, queue,
    queue_of, queue_with, throttled,
};
use crate::support::logs::Logs;
use crate::support::object_created;
use crate::support::wire::{Call, Fault, WiredQueue};

/// A beat that is on its way when the work succeeds is awaited before the delete, and after the
/// delete there is none, however long this process lives on; no error of it is told.
#[tokio::test(start_paused = true)]
async fn s01_no_heartbeat_fires_after_the_delete() {
    let logs = Logs::default();
    let _logging = logs.capture();
    let queue = queue_with(&[&object_created("a"), &object_created("b")]);
    let beat = VISIBILITY / 3;
    let command = FakeCommand::sequence([Does::Exits(beat + S, 0), Does::Exits(9 * MINUTE, 0)]);
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
        panic!("one beat, then one delete, then nothing: {of_first:?}")
    };
    assert_eq!(
        (extended.call, extended.asked_at - started),
        (Call::ChangeVisibility(VISIBILITY), beat)
    );
    assert_eq!((deleted.call, deleted.asked_at - started), (Call::Delete, beat + 3 * S));
    assert!(
        calls.iter().filter(|entry| entry.message_id == second).count() > 10,
        "the process lived on"
    );
    assert_eq!(logs.complaints(), [""; 0]);
}

/// A failure's delay is not undone by a beat that was on its way: one hand makes all calls, one
/// after another.
#[tokio::test(start_paused = true)]
async fn s02_a_heartbeat_does_not_undo_the_delay_of_a_failure() {
    for fault in [Fault::RequestDelayed(3 * S), Fault::AnswerDelayed(3 * S)] {
        let (queue, command) = (queue(), FakeCommand::new(Does::Exits(VISIBILITY / 3 + S, 1)));
        queue.fault_change_visibility(fault);
        let mut journey = Journey::new(&queue, &command);
        journey.settings.policy.limits.retry.retry = Retry::Backoff { min: 20 * S, max: 20 * S };
        let started = Instant::now();
        let arrived = journey.run().await;
        assert_eq!(arrived.took, VISIBILITY / 3 + 3 * S, "the release waits for the beat's answer");
        let beat_then_release = [(VISIBILITY / 3, VISIBILITY), (arrived.took, 20 * S)];
        assert_eq!(changes(&queue, started), beat_then_release);
        let back =
            queue.receive(20 * S, VISIBILITY).await.unwrap().expect("it is back after its delay");
        assert_eq!((back.receive_count, started.elapsed() - arrived.took), (2, 20 * S));
    }
}

/// Extensions that fail for a while (throttled, lost, no answer) are retried with jitter inside the
/// lease; each failure is told, and the work goes on.
#[tokio::test(start_paused = true)]
async fn s03_a_transient_failure_of_an_extension_is_retried_with_jitter_and_costs_nothing() {
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
        let arrived = Journey::new(&queue, &command).run().await;
        assert_eq!(arrived.outcomes(), ["succeeded"]);
        assert_eq!(logs.complaints(), ["extending the lease failed and will be retried"; 4]);
        let beats = changes(&queue, started);
        assert!(beats.iter().all(|(_, to)| *to == VISIBILITY), "{beats:?}");
        tries.push(beats[1..5].iter().map(|(at, _)| *at).collect::<Vec<_>>());
    }
    assert!(tries.iter().flatten().all(|at| *at < VISIBILITY), "not inside the lease: {tries:?}");
    assert_ne!(
        tries[0], tries[1],
        "two messages are retried at the same moments: there is no jitter"
    );
}

/// When extensions fail, or are not answered at all, until our own deadline, the lease is lost: the
/// command is ended at that instant, and the message is neither deleted nor released, since
/// somebody else may hold it.
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
        let arrived = Journey::new(&queue, &command).run().await;
        assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["lease_lost"], 75));
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

/// An extension that is granted, but whose answer comes after the old deadline, proves nothing:
/// somebody may have had the message in between. (We are frozen while the call is out.)
#[tokio::test(start_paused = true)]
async fn s05_an_extension_answered_after_the_deadline_is_a_loss() {
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    let mut around = Around::new(&queue);
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
    let arrived = journey.run().await;
    let why = "the extension was answered after the lease had ended".to_owned();
    assert_eq!(arrived.outcome, RunOutcome::Kept(KeepReason::LeaseLost(why)));
    assert_eq!(
        (changes(&queue, started).len(), deletes(&queue)),
        (1, 0),
        "nothing is called any more"
    );
    assert_eq!(
        command.ended() - started,
        VISIBILITY / 3 + VISIBILITY + 3 * S,
        "the command is halted"
    );
}

/// One that is granted in time counts from before it was asked for: the queue may have counted from
/// then.
#[tokio::test(start_paused = true)]
async fn s05_an_extension_counts_from_before_it_was_asked_for() {
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    queue.fault_change_visibility(Fault::AnswerDelayed(3 * S));
    for _ in 0..1000 {
        queue.fault_change_visibility(Fault::Error(throttled()));
    }
    let started = Instant::now();
    assert_eq!(Journey::new(&queue, &command).run().await.outcomes(), ["lease_lost"]);
    assert_eq!(changes(&queue, started)[1].0, 2 * VISIBILITY / 3, "the next beat");
    assert_eq!(
        command.ended() - started,
        VISIBILITY / 3 + VISIBILITY + 3 * S,
        "the lease's end, and TERM"
    );
}

/// "Message does not exist or is not available" is the end of a lease at once: the command is
/// ended, and nothing more is asked of the queue.
#[tokio::test(start_paused = true)]
async fn s06_a_message_that_is_not_ours_any_more_halts_the_command_and_nothing_is_called_any_more()
{
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
    queue.fault_change_visibility(Fault::Error(VisibilityError::NotInFlight(
        "received again".to_owned(),
    )));
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!(
        arrived.outcome,
        RunOutcome::Kept(KeepReason::LeaseLost("received again".to_owned()))
    );
    assert_eq!(arrived.outcome.exit_code(), 75);
    assert_eq!(command.ended() - started, VISIBILITY / 3);
    assert_eq!((changes(&queue, started).len(), deletes(&queue)), (1, 0));
}

/// A visibility timeout too short for any beat is refused at the start. All others have a period
/// that is derived, so it is never longer than they are, and never nothing.
#[tokio::test(start_paused = true)]
async fn s07_a_visibility_shorter_than_a_beat_is_refused_and_the_period_is_derived() {
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
        let beat = Lease::taken(strategy, visibility, Duration::ZERO).extend_at().unwrap();
        assert!(beat >= S && beat <= visibility / 3, "{visibility:?} is extended after {beat:?}");
        // The lease counts from before the poll, which the queue answers within 20 s.
        let poll = settings.polling.longest_poll;
        assert!(
            poll >= S && poll <= visibility / 3 && poll <= 20 * S,
            "{visibility:?} is polled for {poll:?}"
        );
    }
    let (queue, command) = (queue(), FakeCommand::new(Does::Exits(9 * MINUTE, 0)));
    let mut journey = Journey::new(&queue, &command);
    journey.settings = configured("--visibility-timeout 3s").unwrap().work.settings;
    let started = Instant::now();
    assert_eq!(journey.run().await.outcomes(), ["succeeded"]);
    let beats = changes(&queue, started).len();
    assert!((539..=540).contains(&beats), "{beats} beats");
}

/// The queue's own visibility timeout, shorter than the time of the first beat, is not the lease:
/// each receive names its own, and the first beat is derived from that.
#[tokio::test]
async fn s08_a_short_default_timeout_of_the_queue_does_not_cost_the_lease() {
    let cloud = Cloud::new(5).await;
    let set = cloud.sqs.set_queue_attributes().queue_url(&cloud.queue_url);
    set.attributes(QueueAttributeName::VisibilityTimeout, "1").send().await.unwrap();
    cloud.put("k", b"x").await;
    // The first beat comes after 10 s.
    let run = cloud.run("--visibility-timeout 30s", "echo > started; sleep 2.5");
    cloud.note("started").await;
    assert_eq!(cloud.left_alone(run).await.code(), 0);
    assert_eq!(cloud.counts().await, (0, 0));
}

/// Nor does an answer that is long on its way: the lease counts from before the request, so its
/// first beat is due so much sooner; and if the answer takes as long as the lease, then nothing was
/// ever held.
#[tokio::test(start_paused = true)]
async fn s08_a_lease_counts_from_before_the_message_was_asked_for() {
    for (on_its_way, first_beat) in [(S, VISIBILITY / 3), (MINUTE, MINUTE)] {
        let (queue, command) = (queue(), FakeCommand::new(Does::Exits(3 * MINUTE, 0)));
        queue.fault_receive(Fault::AnswerDelayed(on_its_way));
        let started = Instant::now();
        assert_eq!(Journey::new(&queue, &command).run().await.outcomes(), ["succeeded"]);
        assert_eq!(changes(&queue, started)[0], (first_beat, VISIBILITY));
    }
    let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(3 * S, 0)));
    queue.fault_receive(Fault::AnswerDelayed(VISIBILITY));
    let started = Instant::now();
    let arrived = Journey::new(&queue, &command).run().await;
    assert_eq!(arrived.outcomes(), ["lease_lost"]);
    assert!(
        arrived.took <= VISIBILITY + 3 * S,
        "whether the command had begun or not: {:?}",
        arrived.took
    );
    assert_eq!((changes(&queue, started), deletes(&queue)), (vec![], 0));
}

/// One message is fetched at a time, so none waits in our hands for its lease to run out: the
/// others are anybody's.
#[tokio::test]
async fn s09_messages_that_wait_for_their_turn_are_not_fetched() {
    let cloud = Cloud::new(5).await;
    for key in ["a", "b", "c"] {
        cloud.put(key, b"x").await;
    }
    let script =
        "echo $JOB_RECEIVE_COUNT >> counts; echo > started; until [ -e go ]; do sleep 0.05; done";
    let run = cloud.run("--max-messages 3", script);
    cloud.note("started").await;
    assert_eq!(cloud.counts().await, (2, 1));
    cloud.tell("go");
    run.run_to(0).await;
    assert_eq!((cloud.counts().await, cloud.note("counts").await.as_str()), ((0, 0), "1\n1\n1"));
}

/// SQS hides a message for 12 hours at most. A limit past that is refused; work that is longer all
/// the same is halted in time for its end to be inside, and the message is there at once for the
/// next pod, with twelve hours of its own.
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
        let arrived = journey.run().await;
        assert_eq!(
            (arrived.outcomes(), arrived.outcome.exit_code()),
            (vec!["lease_exhausted"], 75),
            "{visibility:?}"
        );
        let ended = command.ended() - started;
        assert!(
            ended < CEILING,
            "with leases of {visibility:?} the command outlived the twelve hours"
        );
        let halted = ended - 15 * S;
        let earliest = CEILING - stop - 2 * S;
        assert!(
            halted > earliest,
            "with leases of {visibility:?} it was halted after {halted:?} already"
        );
        assert_eq!((deletes(&queue), queue.counts().visible), (0, 1));
    }
}

/// The same limit does not end work that has time enough: a fixed lease that needs no extension, or
/// a long one that cannot be lengthened any more, is no reason to halt.
#[tokio::test(start_paused = true)]
async fn s10_a_lease_that_is_long_enough_is_not_exhausted() {
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

/// A command that is done just when we are frozen for longer than the lease.
struct ThenFrozen(FakeCommand);

#[async_trait]
impl Runner for ThenFrozen {
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

/// A process that is frozen between success and delete (no CPU, a machine suspended) looks at its
/// deadline before it deletes: by then the message is another pod's.
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
        journey.command = Arc::new(ThenFrozen(command.clone()));
        let arrived = journey.run().await;
        assert_eq!(arrived.outcome.exit_code(), 75, "{:?}", arrived.outcome);
        assert!(
            matches!(arrived.outcomes()[..], ["lease_lost" | "lost_after_success"]),
            "{:?}",
            arrived.outcomes()
        );
        assert_eq!((rival.await.unwrap().receive_count, deletes(&queue)), (2, 0));
        assert_eq!(queue.counts().in_flight, 1, "it is the other pod's");
    }
}

/// A queue whose user is frozen during each beat, a while after the queue took it.
fn frozen_in_a_beat(queue: &WiredQueue) -> Around {
    let mut around = Around::new(queue);
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

/// The same when the delete is all that is left to do: it waits for a beat, or for its next try,
/// and that is when we are frozen.
#[tokio::test(start_paused = true)]
async fn s11_a_process_frozen_just_before_its_delete_does_not_delete() {
    let (held, command) = (queue(), FakeCommand::new(Does::Exits(VISIBILITY / 3 + S, 0)));
    let mut journey = Journey::new(&held, &command);
    journey.queue = Arc::new(frozen_in_a_beat(&held));
    let arrived = journey.run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["lost_after_success"], 75));
    assert_eq!((deletes(&held), held.counts().visible), (0, 1));

    let (held, command) = (queue(), exits(0));
    held.fault_delete(Fault::Error(DeleteError::Transient("503".to_owned())));
    let mut frozen_in_a_delete = Around::new(&held);
    frozen_in_a_delete.after = Box::new(|call| {
        Box::pin(async move {
            if call == Call::Delete {
                advance(VISIBILITY - 3 * S).await;
            }
        })
    });
    let mut journey = Journey::new(&held, &command);
    journey.queue = Arc::new(frozen_in_a_delete);
    let arrived = journey.run().await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["lost_after_success"], 75));
    assert_eq!(
        (deletes(&held), held.counts().visible),
        (1, 1),
        "the one that failed, and no other"
    );
}

/// And when a release is all that is left to do: to hide the message, or to show it, is the other
/// pod's affair by then.
#[tokio::test(start_paused = true)]
async fn s11_a_process_frozen_just_before_its_release_does_not_release() {
    for kind in [Kind::Standard, Kind::Fifo] {
        let (held, command) = (
            queue_of(kind, 3, &[&object_created("k")]),
            FakeCommand::new(Does::Exits(VISIBILITY / 3 + S, 1)),
        );
        let mut journey = Journey::new(&held, &command);
        journey.queue = Arc::new(frozen_in_a_beat(&held));
        let started = Instant::now();
        let arrived = journey.run().await;
        assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["command_failed"], 1));
        assert_eq!(
            changes(&held, started),
            [(VISIBILITY / 3, VISIBILITY)],
            "the beat, and no release"
        );
        assert_eq!(held.counts().visible, 1);
    }
}

/// The same with the real program: stopped (SIGSTOP) while its command succeeds, and continued when
/// the lease is over.
#[tokio::test]
async fn s11_a_program_stopped_for_longer_than_its_lease_does_not_delete() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let script = "echo > started; until [ -e go ]; do sleep 0.05; done; echo > done";
    let run = cloud.run("--visibility-timeout 3s", script);
    cloud.note("started").await;
    run.signal(Signal::SIGSTOP);
    cloud.tell("go");
    cloud.note("done").await;
    eventually("the lease is over", async || (cloud.counts().await == (1, 0)).then_some(())).await;
    run.signal(Signal::SIGCONT);
    let left = run.run_to(75).await;
    let outcome = &left.record("message kept")["outcome"];
    assert!(outcome == "lease_lost" || outcome == "lost_after_success", "{outcome}");
    assert_eq!(cloud.counts().await, (1, 0), "it is still there, for anybody");
}

/// A second pod has the message while the first still runs: the first, which the queue does not
/// hear any more, stops at its own deadline and deletes nothing; the second knows that it is the
/// second, and its success counts.
#[tokio::test(start_paused = true)]
async fn s12_a_second_pod_receives_what_the_first_still_works_on() {
    let queue = queue();
    let (first, second) = (FakeCommand::new(Does::EndsOnTerm(3 * S, 0)), exits(0));
    let mut cut_off = Around::new(&queue);
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
    assert_eq!(first.ended() - started, VISIBILITY + 3 * S, "told to end at the very deadline");
    assert_eq!((other.outcomes(), other.outcome.exit_code()), (vec!["succeeded"], 0));
    assert_eq!(first.got("JOB_RECEIVE_COUNT"), ["1"]);
    assert_eq!(second.got("JOB_RECEIVE_COUNT"), ["2"]);
    assert!(queue.is_drained() && deletes(&queue) == 1);
}

/// A release whose answer is lost may have come through, and then the message is somebody else's:
/// it is not sent again, and what is said of the message's return holds either way.
#[tokio::test(start_paused = true)]
async fn s66_a_release_that_may_have_come_through_is_not_sent_again() {
    let unclear = || VisibilityError::Unclear("reset".to_owned());
    for fault in
        [Fault::AnswerLost(unclear()), Fault::Error(unclear()), Fault::RequestDelayed(MINUTE)]
    {
        let logs = Logs::default();
        let _logging = logs.capture();
        let (queue, command) = (queue(), exits(1));
        queue.fault_change_visibility(fault.clone());
        let started = Instant::now();
        let arrived = Journey::new(&queue, &command).run().await;
        assert_eq!(arrived.outcomes(), ["command_failed"]);
        assert_eq!(changes(&queue, started).len(), 1, "{fault:?}");
        let Settlement::Kept(_, Return::Within(left)) = arrived.ended()[0].settlement else {
            panic!("{fault:?}")
        };
        let back = queue.receive(20 * S, VISIBILITY).await;
        let mut back = back.unwrap();
        while back.is_none() {
            back = queue.receive(20 * S, VISIBILITY).await.unwrap();
        }
        assert!(
            Instant::now() <= started + arrived.took + left,
            "{fault:?}: it was said to be back within {left:?}"
        );
        let complaint = "no answer to the release: the message is visible again when its visibility timeout ends, or sooner";
        assert_eq!(logs.complaints(), [complaint]);
    }
}
