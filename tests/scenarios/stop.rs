//! 23 to 35, 64 and 65: the stop. Some of these are about how the program is deployed; then its
//! part is that the stop is safe at whatever instant it comes, and however little time there is for
//! it.

use std::sync::Arc;
use std::time::Duration;

use leasehold::adapters::local::memory::Kind;
use leasehold::job::run_outcome::RunOutcome;
use leasehold::ports::Queue;
use leasehold::ports::ReceiveError;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use super::configured;
use crate::support::cloud::{Cloud, Leasehold, is_alive};
use crate::support::journey::{
    Around, Arrived, Does, FakeCommand, FakeStore, GRACE, Journey, MINUTE, S, VISIBILITY, changes,
    deletes, exits, queue, queue_of, queue_with,
};
use crate::support::logs::Logs;
use crate::support::object_created;
use crate::support::wire::{Call, Fault, WiredQueue};

const MS: Duration = Duration::from_millis(1);

/// TERM during an empty long poll: the request that is out is awaited, for a message may be on its
/// way to it, and no other is sent.
#[tokio::test(start_paused = true)]
async fn s23_a_stop_during_the_long_poll_awaits_it() {
    for wait in [10 * S, MINUTE] {
        let (queue, command) = (queue_with(&[]), exits(0));
        let mut journey = Journey::new(&queue, &command);
        journey.settings.polling.wait = wait;
        let arrived = journey.run_and_stop_after(2 * S).await;
        assert_eq!(arrived.outcome, RunOutcome::Finished);
        assert_eq!((arrived.took, queue.calls().len()), (10 * S, 1));
    }
}

/// A message that comes then is released at once, and worked on by somebody else.
#[tokio::test(start_paused = true)]
async fn s23_a_message_that_comes_after_the_stop_is_released_at_once() {
    let (queue, command) = (queue_with(&[]), exits(0));
    let sender = queue.clone();
    tokio::spawn(async move {
        sleep(5 * S).await;
        sender.send(object_created("late"));
    });
    let arrived = Journey::new(&queue, &command).run_and_stop_after(2 * S).await;
    assert_eq!((arrived.outcome.exit_code(), command.runs()), (143, 0));
    assert_eq!((arrived.took, queue.counts().visible), (5 * S, 1));
}

/// TERM between two requests that fail: there is nothing to wait for, and no further request.
#[tokio::test(start_paused = true)]
async fn s23_a_stop_while_receiving_fails_ends_at_once() {
    let (queue, command) = (queue(), exits(0));
    for _ in 0..1000 {
        queue.fault_receive(Fault::Error(ReceiveError::Transient("503".to_owned())));
    }
    let arrived = Journey::new(&queue, &command).run_and_stop_after(30 * S).await;
    assert_eq!((arrived.outcome, arrived.took, command.runs()), (RunOutcome::Finished, 30 * S, 0));
}

/// An answer that never comes is not waited for any longer than an empty one would have taken.
#[tokio::test(start_paused = true)]
async fn s23_a_poll_that_is_never_answered_does_not_outlast_the_grace() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_receive(Fault::RequestDelayed(24 * 60 * MINUTE));
    let arrived = Journey::new(&queue, &command).run_and_stop_after(2 * S).await;
    assert_eq!(
        (arrived.outcome, command.runs(), queue.counts().visible),
        (RunOutcome::Finished, 0, 1)
    );
    assert!(
        (12 * S..2 * S + GRACE).contains(&arrived.took),
        "the stop took {:?}",
        arrived.took - 2 * S
    );
}

/// TERM while the object is fetched: the download is aborted, the command is not started, the
/// message is there for the next at once.
#[tokio::test(start_paused = true)]
async fn s24_a_stop_during_the_fetch_aborts_it() {
    let (queue, command) = (queue(), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.store = Arc::new(FakeStore { after: 5 * MINUTE, ..FakeStore::default() });
    let arrived = journey.run_and_stop_after(30 * S).await;
    assert_eq!((arrived.outcome.exit_code(), command.runs(), arrived.took), (143, 0, 30 * S));
    assert_eq!((deletes(&queue), queue.counts().visible), (0, 1));
}

/// TERM while the command works: it gets its grace with the heartbeat still on, so nobody else has
/// the message before it has ended; whatever it says then, nothing is deleted, and the message is
/// released.
#[tokio::test(start_paused = true)]
async fn s25_a_stop_while_the_command_works_keeps_the_lease_until_it_has_ended_and_deletes_nothing()
{
    for code in [0, 1, 65, 75] {
        let (queue, command) = (queue(), FakeCommand::new(Does::EndsOnTerm(15 * S, code)));
        let mut journey = Journey::new(&queue, &command);
        journey.settings.policy.limits.visibility = 6 * S;
        let started = Instant::now();
        let rival = tokio::spawn({
            let queue = queue.clone();
            async move {
                sleep(S).await;
                while queue.receive(S, VISIBILITY).await.unwrap().is_none() {}
                started.elapsed()
            }
        });
        let arrived = journey.run_and_stop_after(5 * MINUTE).await;
        assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["stopped"], 143));
        assert_eq!(arrived.took, 5 * MINUTE + 15 * S);
        assert_eq!(changes(&queue, started).last(), Some(&(arrived.took, Duration::ZERO)));
        assert_eq!((rival.await.unwrap(), deletes(&queue)), (arrived.took, 0));
    }
}

/// A command that ignores TERM is killed with its group in time for the rest of the stop.
#[tokio::test]
async fn s26_a_command_that_ignores_term_is_killed_with_its_group_in_time() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let script = "trap '' TERM; (while :; do sleep 0.05; done) & echo $! > child; echo $$ > command; \
                  while :; do sleep 0.05; done";
    let run = cloud.run("--termination-grace 6s --wait 1s", script);
    let child: i32 = cloud.note("child").await.parse().unwrap();
    let command: i32 = cloud.note("command").await.parse().unwrap();
    let asked = Instant::now();
    run.signal(Signal::SIGTERM);
    let left = run.run_to(143).await;
    let took = asked.elapsed();
    assert!(4 * S <= took && took < 6 * S, "the stop took {took:?}");
    assert!(!is_alive(child) && !is_alive(command), "something of the command is left");
    assert_eq!(left.record("message kept")["signal"], 9);
    assert_eq!(cloud.counts().await, (1, 0), "it is visible again at once");
}

/// The same if not even KILL helps, or the queue does not answer any more: the stop is over within
/// the grace.
#[tokio::test(start_paused = true)]
async fn s26_every_stop_fits_the_grace_whatever_hangs() {
    for does in [Does::EndsOnTerm(S, 1), Does::EndsOnTerm(5 * MINUTE, 0), Does::Hangs] {
        for dead_queue in [false, true] {
            let (queue, command) = (queue(), FakeCommand::new(does));
            for _ in 0..(if dead_queue { 1000 } else { 0 }) {
                queue.fault_change_visibility(Fault::RequestDelayed(24 * 60 * MINUTE));
            }
            let arrived = Journey::new(&queue, &command).run_and_stop_after(30 * S).await;
            assert!(
                arrived.took <= 30 * S + GRACE,
                "the stop took {:?}",
                arrived.took.checked_sub(30 * S)
            );
            assert_eq!((arrived.outcome.exit_code(), deletes(&queue)), (143, 0));
        }
    }
}

/// A budget that does not fit the pod's grace is refused at the start; whatever grace is accepted
/// is kept, though everything hangs: the command, the queue, and the telemetry.
#[tokio::test(start_paused = true)]
async fn s27_a_budget_over_the_grace_is_refused_and_every_accepted_one_is_kept() {
    for (flags, complaint) in [
        ("--termination-grace 30s --stop-grace 21s", "--stop-grace 21s is too long"),
        ("--termination-grace 3s --stop-grace 3s --wait 0s", "--stop-grace 3s is too long"),
        ("--termination-grace 12s --wait 9s", "--wait 9s is too long"),
        ("--termination-grace 0s", "--termination-grace must be greater than zero"),
    ] {
        let refused = configured(flags).unwrap_err();
        assert!(refused.contains(complaint), "{flags}: {refused}");
    }
    for grace in [1, 2, 3, 5, 10, 29, 30, 60, 300] {
        for hangs in [Does::Hangs, Does::EndsOnTerm(60 * MINUTE, 0)] {
            let (queue, command) = (queue(), FakeCommand::new(hangs));
            for _ in 0..1000 {
                queue.fault_change_visibility(Fault::RequestDelayed(24 * 60 * MINUTE));
            }
            let mut journey = Journey::new(&queue, &command);
            journey.settings = configured(&format!("--termination-grace {grace}s --wait 0s"))
                .unwrap()
                .work
                .settings;
            Arc::get_mut(&mut journey.telemetry).unwrap().hangs = true;
            let arrived = journey.run_and_stop_after(30 * S).await;
            let took = arrived.took - 30 * S;
            assert!(took <= grace * S, "of {grace} s the stop took {took:?}");
            assert_eq!((arrived.outcome.exit_code(), deletes(&queue)), (143, 0));
        }
    }
}

/// Further signals during a stop change nothing: it is neither begun anew, nor cut short, nor does
/// it hang.
#[tokio::test]
async fn s28_further_signals_neither_restart_the_stop_nor_cut_it_short() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    // A child of the command that ignores TERM, and the command itself, which takes its time.
    let script = "sh -c 'trap \"\" TERM; echo $$ > child; sleep 1000' & \
                  trap 'sleep 1.5; echo > saved; exit 0' TERM; echo $$ > command; while :; do sleep 0.05; done";
    let run = cloud.run("--termination-grace 6s --wait 1s", script);
    let child: i32 = cloud.note("child").await.parse().unwrap();
    let command: i32 = cloud.note("command").await.parse().unwrap();
    assert!(is_alive(child) && is_alive(command));

    let asked = Instant::now();
    for signal in
        [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT]
    {
        run.signal(signal);
        sleep(Duration::from_millis(600)).await;
    }
    let left = run.run_to(143).await;
    let took = asked.elapsed();
    assert!(
        4 * S <= took && took < 6 * S,
        "the stop took {took:?}: the child has four seconds, from the first TERM"
    );
    assert!(!is_alive(child) && !is_alive(command), "something of the command is left");
    cloud.note("saved").await;
    assert_eq!(
        (&left.record("message kept")["outcome"], cloud.counts().await),
        (&"stopped".into(), (1, 0))
    );
    let again =
        left.log.iter().filter(|record| record["message"] == "already shutting down").count();
    assert!(again > 0, "no further signal was heard: {}", left.stdout);
}

/// A shell that waits for its program passes no signal on: TERM goes to the whole group, so the
/// program gets it too, and has its grace although the shell is gone at once.
#[tokio::test]
async fn s29_a_shell_does_not_keep_the_signal_from_its_program() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let program =
        "trap 'sleep 0.5; echo > saved; exit 0' TERM; echo > up; while :; do sleep 0.05; done";
    let run = cloud.run("--wait 1s", &format!("sh -c \"{program}\"; echo > went-on"));
    cloud.note("up").await;
    let asked = Instant::now();
    run.signal(Signal::SIGTERM);
    run.run_to(143).await;
    assert!(asked.elapsed() < 15 * S, "of 20 s the stop took {:?}", asked.elapsed());
    cloud.note("saved").await;
    assert!(!cloud.notes.path().join("went-on").exists());
    assert_eq!(cloud.counts().await, (1, 0));
}

/// As PID 1 of its container the program reaps whatever is orphaned while the command works, and
/// the command's own status is not lost by that.
#[tokio::test]
async fn s30_as_pid_1_no_zombie_is_left_and_the_exit_is_the_commands() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let script = "[ $PPID = 1 ] || exit 8; \
                  for i in 1 2 3 4 5 6 7 8 9 10; do (setsid sleep 0.2 &); done; sleep 0.4; i=0; \
                  while grep -qs '^State:.Z' /proc/[0-9]*/status; do \
                  i=$((i + 1)); [ $i -lt 200 ] || exit 9; sleep 0.05; done; exit 3";
    let own_world =
        ["unshare", "--user", "--map-root-user", "--fork", "--kill-child", "--pid", "--mount-proc"];
    let left = Leasehold::start(cloud.command(&own_world, "", script)).run_to(1).await;
    assert_eq!(left.record("message kept")["exit_code"], 3);
    assert!(
        left.log
            .iter()
            .all(|record| record["level"] != "WARN" || record["message"] == "message kept")
    );
}

/// A TERM that comes before the handlers are installed is heard: nothing is deleted after it. Here
/// it is pending when the program starts, which is as early as a signal can come.
#[tokio::test]
async fn s64_a_term_before_the_handlers_are_there_is_heard() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let early = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); \
                 os.kill(os.getpid(), signal.SIGTERM); os.execv(sys.argv[1], sys.argv[1:])";
    let run =
        Leasehold::start(cloud.command(&["python3", "-c", early], "--wait 10s", "echo > ran"));
    let left = run.left().await;
    assert!(left.code() == 0 || left.code() == 143, "{}{}", left.stdout, left.stderr);
    left.record("shutting down: no more messages will be deleted");
    assert!(!cloud.notes.path().join("ran").exists(), "the command ran after a stop was asked for");
    assert_eq!(cloud.counts().await, (1, 0));
}

/// HUP is a request to stop like TERM; signals that ask for nothing change nothing, although by
/// default they kill.
#[tokio::test]
async fn s65_a_hangup_stops_and_other_signals_change_nothing() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    cloud.put("l", b"x").await;
    let script = "[ -e first ] || { echo up > first; until [ -e go ]; do sleep 0.05; done; exit 0; }; \
                  trap 'echo > termed; exit 1' TERM; echo $$ > command; while :; do sleep 0.05; done";
    // These tests may themselves have been started by nohup.
    let heard = ["env", "--default-signal=HUP"];
    let run = Leasehold::start(cloud.command(&heard, "--wait 1s --max-messages 2", script));
    cloud.note("first").await;
    for signal in [
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
    ] {
        run.signal(signal);
    }
    // One that only waits would be delivered when the next command is started.
    cloud.tell("go");
    let command: i32 = cloud.note("command").await.parse().unwrap();
    run.signal(Signal::SIGHUP);
    let left = run.run_to(143).await;
    cloud.note("termed").await;
    assert!(!is_alive(command), "the command is left");
    assert_eq!(
        (&left.record("message kept")["outcome"], cloud.counts().await),
        (&"stopped".into(), (1, 0))
    );
}

/// What nohup(1) wants ignored stays ignored: the run outlives the terminal that it was started
/// from.
#[tokio::test]
async fn s65_a_hangup_that_is_to_be_ignored_is() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let run = Leasehold::start(cloud.command(
        &["nohup"],
        "--wait 1s",
        "echo > up; until [ -e go ]; do sleep 0.05; done",
    ));
    cloud.note("up").await;
    run.signal(Signal::SIGHUP);
    cloud.tell("go");
    run.run_to(0).await;
    assert_eq!(cloud.counts().await, (0, 0));
}

/// A queue, and one pod that passes through everything that a stop can meet: a poll until the
/// message comes after a second, two seconds of download, five of work, one and a half until the
/// delete is answered, and a beat now and then that takes half a second. Told to end, the command
/// takes a second and a half and says 0.
fn eventful(flags: &str, max_receive_count: u32) -> (WiredQueue, FakeCommand, Journey) {
    let queue = queue_of(Kind::Standard, max_receive_count, &[]);
    let sender = queue.clone();
    tokio::spawn(async move {
        sleep(S).await;
        sender.send(object_created("k"));
    });
    let command = FakeCommand::new(Does::Succeeds(5 * S, 3 * S / 2));
    let mut journey = pod(&queue, &command, &format!("--wait 2s {flags}"));
    let mut slow = Around::new(&queue);
    slow.after = Box::new(|call| {
        Box::pin(sleep(match call {
            Call::Receive => Duration::ZERO,
            Call::ChangeVisibility(_) => S / 2,
            Call::Delete => 3 * S / 2,
        }))
    });
    journey.queue = Arc::new(slow);
    (queue, command, journey)
}

fn pod(queue: &WiredQueue, command: &FakeCommand, flags: &str) -> Journey {
    let mut journey = Journey::new(queue, command);
    journey.settings =
        configured(&format!("--visibility-timeout 6s {flags}")).unwrap().work.settings;
    journey.store = Arc::new(FakeStore { after: 2 * S, ..FakeStore::default() });
    journey
}

/// Ten seconds in steps, with the instants just before and after each second, at which things
/// happen.
fn instants(step: Duration) -> impl Iterator<Item = Duration> {
    let steps = (0..).map(move |n| n * step).take_while(|at| *at <= 11 * S);
    steps.chain((1..=10).flat_map(|second| [second * S - MS, second * S + MS]))
}

/// What must be true of a stop at `stop`, whenever that was: no delete is sent from then on; one
/// that was sent before belongs to a success; and if there was none, the message is still there for
/// another pod, which gets it done.
async fn assert_safe(queue: &WiredQueue, command: &FakeCommand, stop: Instant) {
    let calls = queue.calls();
    let deletes: Vec<_> = calls.iter().filter(|entry| entry.call == Call::Delete).collect();
    for delete in &deletes {
        assert!(
            delete.asked_at <= stop,
            "a delete was sent {:?} after the stop",
            delete.asked_at - stop
        );
        assert!(
            command.last().ended.is_some_and(|ended| ended <= delete.asked_at),
            "nothing had succeeded"
        );
    }
    if deletes.is_empty() {
        let rescue = FakeCommand::new(Does::Succeeds(5 * S, S));
        let rescued = pod(queue, &rescue, "--wait 20s").run().await;
        assert_eq!(
            (rescued.outcomes(), rescue.runs()),
            (vec!["succeeded"], 1),
            "the message is lost"
        );
    }
    assert!(queue.is_drained() && queue.dead_letters().is_empty());
}

/// A pre-stop hook (or anybody else) eats the grace: TERM comes late, and KILL long before the stop
/// is over. Whenever both come, nothing is deleted that did not succeed before, and the lease's end
/// brings the message back.
#[tokio::test(start_paused = true)]
async fn s31_a_kill_in_the_middle_of_the_stop_loses_nothing() {
    for stop_after in instants(S / 4) {
        for killed_after in [Duration::ZERO, MS, S / 2, S, 2 * S] {
            let (queue, command, journey) = eventful("--termination-grace 30s", 5);
            let started = Instant::now();
            let ended = journey.run_for(stop_after + killed_after, sleep(stop_after)).await;
            if ended.is_none() {
                // Its tasks are dropped one after another.
                sleep(MS).await;
                let calls = queue.calls().len();
                sleep(10 * S).await;
                assert_eq!(queue.calls().len(), calls, "something lives on after the KILL");
            }
            if started.elapsed() < S {
                sleep(S).await;
            }
            assert_safe(&queue, &command, started + stop_after).await;
        }
    }
}

/// A node is reclaimed, drained, or consolidated away: TERM at any instant, with a grace that is
/// long or short. The stop is over in time, the exit says what happened, and a message that is kept
/// is visible at once.
#[tokio::test(start_paused = true)]
async fn s32_a_stop_is_safe_at_any_instant_with_grace_long_and_short() {
    let mut exits = [0; 3];
    for grace in [4, 30, 3600] {
        for stop_after in instants(S / 10) {
            let (queue, command, journey) = eventful(&format!("--termination-grace {grace}s"), 5);
            let started = Instant::now();
            let arrived = journey.run_and_stop_after(stop_after).await;
            if arrived.took > stop_after {
                assert!(
                    arrived.took <= stop_after + grace * S,
                    "the stop took {:?}",
                    arrived.took - stop_after
                );
            }
            match (arrived.outcome.exit_code(), queue.counts().visible) {
                // All done, or nothing received.
                (0, 0) => exits[0] += 1,
                (143, 1) => exits[1] += 1,
                // Left before the delete was answered, as far as a short grace allows: it may have
                // come through.
                (75, 0) if grace == 4 => exits[2] += 1,
                other => panic!("stopped after {stop_after:?}: {other:?}"),
            }
            if started.elapsed() < S {
                sleep(S).await;
            }
            assert_safe(&queue, &command, started + stop_after).await;
        }
    }
    assert!(exits.iter().all(|count| *count > 5), "not all ends were met: {exits:?}");
}

/// A rollout ends all pods at the same instant and starts others beside them, three times in a row:
/// each message is done in the end, and none is a dead letter for it.
#[tokio::test(start_paused = true)]
async fn s33_rollouts_that_end_all_pods_at_once_lose_nothing() {
    for instant in instants(S / 2) {
        let bodies: Vec<_> = (0..4).map(|n| object_created(&format!("k{n}"))).collect();
        let queue =
            queue_of(Kind::Standard, 5, &bodies.iter().map(String::as_str).collect::<Vec<_>>());
        let command = FakeCommand::new(Does::Succeeds(5 * S, 3 * S / 2));
        let mut pods = tokio::task::JoinSet::new();
        for rollout in 1..=4u32 {
            let ends_at = Instant::now() + if rollout < 4 { instant } else { 60 * MINUTE };
            for _ in 0..4 {
                pods.spawn(pod(&queue, &command, "--wait 20s").run_until(sleep_until(ends_at)));
            }
            if rollout < 4 {
                sleep_until(ends_at).await;
            }
        }
        let arrived: Vec<Arrived> = pods.join_all().await;
        for arrived in &arrived {
            assert!([0, 143].contains(&arrived.outcome.exit_code()), "{:?}", arrived.outcome);
        }
        let succeeded = arrived
            .iter()
            .flat_map(Arrived::outcomes)
            .filter(|outcome| *outcome == "succeeded")
            .count();
        assert_eq!((succeeded, deletes(&queue)), (4, 4), "rollouts each {instant:?}");
        assert!(queue.is_drained() && queue.dead_letters().is_empty());
    }
}

/// The release is uninstalled, and its pods go with it, in order or by force, with nobody to
/// follow: whatever was not done is still in the queue, to be worked on when there are pods again.
#[tokio::test(start_paused = true)]
async fn s34_pods_that_nobody_follows_leave_their_messages_in_the_queue() {
    for (instant, by_force) in instants(S).flat_map(|instant| [(instant, false), (instant, true)]) {
        let bodies: Vec<_> = (0..3).map(|n| object_created(&format!("k{n}"))).collect();
        let queue =
            queue_of(Kind::Standard, 5, &bodies.iter().map(String::as_str).collect::<Vec<_>>());
        // One is quicker than the others.
        let command = FakeCommand::sequence([Does::Succeeds(2 * S, S), Does::Succeeds(7 * S, S)]);
        let grace = if by_force { Duration::ZERO } else { GRACE };
        let mut pods = tokio::task::JoinSet::new();
        for _ in 0..3 {
            pods.spawn(pod(&queue, &command, "").run_for(instant + grace, sleep(instant)));
        }
        pods.join_all().await;
        if by_force {
            sleep(6 * S).await;
        }
        let counts = queue.counts();
        assert_eq!(
            (counts.visible + deletes(&queue), counts.in_flight),
            (3, 0),
            "{instant:?}, by force: {by_force}"
        );
        assert!(queue.dead_letters().is_empty());

        let mut again = pod(&queue, &FakeCommand::new(Does::Succeeds(S, S)), "");
        again.settings.policy.max_messages = 3;
        again.run().await;
        assert!(queue.is_drained());
    }
}

/// Each stop costs one receive, which only the queue counts: an innocent message gets nearer to the
/// dead-letter queue, and every pod knows how near by what the queue says. A queue that allows few
/// receives is warned about.
#[tokio::test(start_paused = true)]
async fn s35_each_stop_costs_exactly_one_receive_and_only_the_queue_counts() {
    let queue = queue_of(Kind::Standard, 5, &[&object_created("k")]);
    let command =
        FakeCommand::sequence([Does::EndsOnTerm(S, 0); 4].into_iter().chain([Does::Exits(S, 0)]));
    for _ in 0..4 {
        assert_eq!(
            Journey::new(&queue, &command).run_and_stop_after(30 * S).await.outcome.exit_code(),
            143
        );
    }
    assert_eq!(Journey::new(&queue, &command).run().await.outcomes(), ["succeeded"]);
    assert_eq!(command.got("JOB_RECEIVE_COUNT"), ["1", "2", "3", "4", "5"]);
    assert_eq!(command.got("JOB_FINAL_ATTEMPT"), ["false", "false", "false", "false", "true"]);
    assert!(queue.is_drained());

    let logs = Logs::default();
    let _logging = logs.capture();
    let queue = queue_of(Kind::Standard, 2, &[&object_created("k")]);
    let command = FakeCommand::new(Does::EndsOnTerm(S, 0));
    for _ in 0..3 {
        Journey::new(&queue, &command).run_and_stop_after(30 * S).await;
    }
    assert_eq!(
        (command.runs(), queue.dead_letters()[0].receive_count),
        (2, 2),
        "two stops were enough"
    );
    let warned = "maxReceiveCount is low: every pod stop also uses up one receive";
    assert!(
        logs.complaints().iter().any(|complaint| complaint == warned),
        "{:?}",
        logs.complaints()
    );
}
