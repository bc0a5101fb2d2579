//! 23 to 35, 64 and 65: the stop. Some of these depend on the deployment; the program's part is a
//! stop that is safe at any instant and with any grace.

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
    Does, FakeCommand, FakeStore, GRACE, HookedQueue, Journey, MINUTE, RunResult, S, VISIBILITY,
    changes, deletes, exits, queue, queue_of, queue_with,
};
use crate::support::logs::Logs;
use crate::support::object_created;
use crate::support::wire::{Call, Fault, WiredQueue};

const MS: Duration = Duration::from_millis(1);

/// TERM during an empty long poll: the request in flight is awaited, since it may bring a message,
/// and no other is sent.
#[tokio::test(start_paused = true)]
async fn s23_a_stop_waits_for_the_long_poll() {
    for wait in [10 * S, MINUTE] {
        let (queue, command) = (queue_with(&[]), exits(0));
        let mut journey = Journey::new(&queue, &command);
        journey.settings.polling.wait = wait;
        let result = journey.run_and_stop_after(2 * S).await;
        assert_eq!(result.outcome, RunOutcome::Finished);
        assert_eq!((result.took, queue.calls().len()), (10 * S, 1));
    }
}

/// A message that it brings is released at once.
#[tokio::test(start_paused = true)]
async fn s23_a_message_received_after_the_stop_is_released_at_once() {
    let (queue, command) = (queue_with(&[]), exits(0));
    let sender = queue.clone();
    tokio::spawn(async move {
        sleep(5 * S).await;
        sender.send(object_created("late"));
    });
    let result = Journey::new(&queue, &command).run_and_stop_after(2 * S).await;
    assert_eq!((result.outcome.exit_code(), command.runs()), (143, 0));
    assert_eq!((result.took, queue.counts().visible), (5 * S, 1));
}

/// TERM between two failed requests: the run ends at once, without a further request.
#[tokio::test(start_paused = true)]
async fn s23_a_stop_while_receiving_fails_ends_at_once() {
    let (queue, command) = (queue(), exits(0));
    for _ in 0..1000 {
        queue.fault_receive(Fault::Error(ReceiveError::Transient("503".to_owned())));
    }
    let result = Journey::new(&queue, &command).run_and_stop_after(30 * S).await;
    assert_eq!((result.outcome, result.took, command.runs()), (RunOutcome::Finished, 30 * S, 0));
}

/// A missing answer is waited for no longer than an empty poll takes.
#[tokio::test(start_paused = true)]
async fn s23_a_poll_without_an_answer_does_not_outlast_the_grace() {
    let (queue, command) = (queue(), exits(0));
    queue.fault_receive(Fault::RequestDelayed(24 * 60 * MINUTE));
    let result = Journey::new(&queue, &command).run_and_stop_after(2 * S).await;
    assert_eq!(
        (result.outcome, command.runs(), queue.counts().visible),
        (RunOutcome::Finished, 0, 1)
    );
    assert!(
        (12 * S..2 * S + GRACE).contains(&result.took),
        "the stop took {:?}",
        result.took - 2 * S
    );
}

/// TERM during the download: the download is aborted, the command is not started, and the message
/// is released at once.
#[tokio::test(start_paused = true)]
async fn s24_a_stop_during_the_fetch_aborts_it() {
    let (queue, command) = (queue(), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.store = Arc::new(FakeStore { after: 5 * MINUTE, ..FakeStore::default() });
    let result = journey.run_and_stop_after(30 * S).await;
    assert_eq!((result.outcome.exit_code(), command.runs(), result.took), (143, 0, 30 * S));
    assert_eq!((deletes(&queue), queue.counts().visible), (0, 1));
}

/// TERM while the command works: the heartbeats go on during its grace, so no other pod receives
/// the message before the command has ended. Whatever its exit code, nothing is deleted, and the
/// message is released.
#[tokio::test(start_paused = true)]
async fn s25_a_stop_keeps_the_lease_until_the_command_has_exited_and_deletes_nothing() {
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
        let result = journey.run_and_stop_after(5 * MINUTE).await;
        assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["stopped"], 143));
        assert_eq!(result.took, 5 * MINUTE + 15 * S);
        assert_eq!(changes(&queue, started).last(), Some(&(result.took, Duration::ZERO)));
        assert_eq!((rival.await.unwrap(), deletes(&queue)), (result.took, 0));
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
    let child: i32 = cloud.file("child").await.parse().unwrap();
    let command: i32 = cloud.file("command").await.parse().unwrap();
    let asked = Instant::now();
    run.signal(Signal::SIGTERM);
    let exited = run.expect_exit(143).await;
    let took = asked.elapsed();
    assert!(4 * S <= took && took < 6 * S, "the stop took {took:?}");
    assert!(!is_alive(child) && !is_alive(command), "a process of the command is still alive");
    assert_eq!(exited.record("message kept")["signal"], 9);
    assert_eq!(cloud.counts().await, (1, 0), "the message is visible at once");
}

/// The same if even KILL does not help, or if the queue no longer answers: the stop ends within the
/// grace.
#[tokio::test(start_paused = true)]
async fn s26_every_stop_fits_the_grace() {
    for does in [Does::EndsOnTerm(S, 1), Does::EndsOnTerm(5 * MINUTE, 0), Does::Hangs] {
        for dead_queue in [false, true] {
            let (queue, command) = (queue(), FakeCommand::new(does));
            for _ in 0..(if dead_queue { 1000 } else { 0 }) {
                queue.fault_change_visibility(Fault::RequestDelayed(24 * 60 * MINUTE));
            }
            let result = Journey::new(&queue, &command).run_and_stop_after(30 * S).await;
            assert!(
                result.took <= 30 * S + GRACE,
                "the stop took {:?}",
                result.took.checked_sub(30 * S)
            );
            assert_eq!((result.outcome.exit_code(), deletes(&queue)), (143, 0));
        }
    }
}

/// A budget that does not fit the pod's grace is refused at the start; an accepted one is kept even
/// if the command, the queue and the telemetry hang.
#[tokio::test(start_paused = true)]
async fn s27_a_budget_over_the_grace_is_refused_and_each_accepted_one_is_kept() {
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
            let result = journey.run_and_stop_after(30 * S).await;
            let took = result.took - 30 * S;
            assert!(took <= grace * S, "the stop took {took:?} of {grace} s");
            assert_eq!((result.outcome.exit_code(), deletes(&queue)), (143, 0));
        }
    }
}

/// Further signals during a stop change nothing: the stop neither starts again, nor ends early, nor
/// hangs.
#[tokio::test]
async fn s28_further_signals_neither_restart_nor_shorten_the_stop() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    // A child of the command that ignores TERM, and the command itself, which ends slowly.
    let script = "sh -c 'trap \"\" TERM; echo $$ > child; sleep 1000' & \
                  trap 'sleep 1.5; echo > saved; exit 0' TERM; echo $$ > command; while :; do sleep 0.05; done";
    let run = cloud.run("--termination-grace 6s --wait 1s", script);
    let child: i32 = cloud.file("child").await.parse().unwrap();
    let command: i32 = cloud.file("command").await.parse().unwrap();
    assert!(is_alive(child) && is_alive(command));

    let asked = Instant::now();
    for signal in
        [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT]
    {
        run.signal(signal);
        sleep(Duration::from_millis(600)).await;
    }
    let exited = run.expect_exit(143).await;
    let took = asked.elapsed();
    assert!(
        4 * S <= took && took < 6 * S,
        "the stop took {took:?}: the child has four seconds, from the first TERM"
    );
    assert!(!is_alive(child) && !is_alive(command), "a process of the command is still alive");
    cloud.file("saved").await;
    assert_eq!(
        (&exited.record("message kept")["outcome"], cloud.counts().await),
        (&"stopped".into(), (1, 0))
    );
    let again =
        exited.log.iter().filter(|record| record["message"] == "already shutting down").count();
    assert!(again > 0, "no further signal was logged: {}", exited.stdout);
}

/// A shell that waits for its program does not forward signals. TERM goes to the whole group, so
/// the program gets it too, and has its grace although the shell exits at once.
#[tokio::test]
async fn s29_a_shell_does_not_keep_sigterm_from_its_program() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let program =
        "trap 'sleep 0.5; echo > saved; exit 0' TERM; echo > up; while :; do sleep 0.05; done";
    let run = cloud.run("--wait 1s", &format!("sh -c \"{program}\"; echo > went-on"));
    cloud.file("up").await;
    let asked = Instant::now();
    run.signal(Signal::SIGTERM);
    run.expect_exit(143).await;
    assert!(asked.elapsed() < 15 * S, "the stop took {:?} of 20 s", asked.elapsed());
    cloud.file("saved").await;
    assert!(!cloud.dir.path().join("went-on").exists());
    assert_eq!(cloud.counts().await, (1, 0));
}

const AS_PID_1: [&str; 7] =
    ["unshare", "--user", "--map-root-user", "--fork", "--kill-child", "--pid", "--mount-proc"];

/// As PID 1 of its container the program reaps orphans while the command works, and does not lose
/// the command's own status.
#[tokio::test]
async fn s30_pid_1_reaps_zombies_and_keeps_the_exit_code_of_the_command() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let script = "[ $PPID = 1 ] || exit 8; \
                  for i in 1 2 3 4 5 6 7 8 9 10; do (setsid sleep 0.2 &); done; sleep 0.4; i=0; \
                  while grep -qs '^State:.Z' /proc/[0-9]*/status; do \
                  i=$((i + 1)); [ $i -lt 200 ] || exit 9; sleep 0.05; done; exit 3";
    let exited = Leasehold::start(cloud.command(&AS_PID_1, "", script)).expect_exit(1).await;
    assert_eq!(exited.record("message kept")["exit_code"], 3);
    assert!(
        exited
            .log
            .iter()
            .all(|record| record["level"] != "WARN" || record["message"] == "message kept")
    );
}

/// A TERM that comes before the handlers are installed still stops the run: nothing is deleted
/// after it. Here it is already pending when the program starts.
#[tokio::test]
async fn s64_a_term_before_the_handlers_are_installed_stops_the_run() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let early = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); \
                 os.kill(os.getpid(), signal.SIGTERM); os.execv(sys.argv[1], sys.argv[1:])";
    let run =
        Leasehold::start(cloud.command(&["python3", "-c", early], "--wait 10s", "echo > ran"));
    let exited = run.wait().await;
    assert!(exited.code() == 0 || exited.code() == 143, "{}{}", exited.stdout, exited.stderr);
    exited.record("shutting down: no more messages will be deleted");
    assert!(!cloud.dir.path().join("ran").exists(), "the command ran after a stop request");
    assert_eq!(cloud.counts().await, (1, 0));
}

/// HUP is a request to stop like TERM; other signals change nothing, although by default they kill.
#[tokio::test]
async fn s65_a_hangup_stops_and_other_signals_change_nothing() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    cloud.put("l", b"x").await;
    let script = "[ -e first ] || { echo up > first; until [ -e go ]; do sleep 0.05; done; exit 0; }; \
                  trap 'echo > termed; exit 1' TERM; echo $$ > command; while :; do sleep 0.05; done";
    // The tests themselves may run under nohup.
    let default_hup = ["env", "--default-signal=HUP"];
    let run = Leasehold::start(cloud.command(&default_hup, "--wait 1s --max-messages 2", script));
    cloud.file("first").await;
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
    // A pending signal would be delivered when the next command is started.
    cloud.touch("go");
    let command: i32 = cloud.file("command").await.parse().unwrap();
    run.signal(Signal::SIGHUP);
    let exited = run.expect_exit(143).await;
    cloud.file("termed").await;
    assert!(!is_alive(command), "the command is still alive");
    assert_eq!(
        (&exited.record("message kept")["outcome"], cloud.counts().await),
        (&"stopped".into(), (1, 0))
    );
}

#[tokio::test]
async fn s65_other_signals_change_nothing_for_pid_1() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    cloud.put("l", b"x").await;
    // A pending signal would be delivered when the next command is started. 40 is a real-time signal.
    let script = "for signal in USR1 USR2 ALRM VTALRM PROF IO 40; do kill -$signal $PPID || exit 9; done; \
                  [ $PPID = 1 ]";
    let flags = "--wait 1s --max-messages 2";
    Leasehold::start(cloud.command(&AS_PID_1, flags, script)).expect_exit(0).await;
    assert_eq!(cloud.counts().await, (0, 0));
}

/// Under nohup(1) SIGHUP stays ignored: the run outlives the terminal that it was started from.
#[tokio::test]
async fn s65_a_hangup_is_ignored_under_nohup() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let run = Leasehold::start(cloud.command(
        &["nohup"],
        "--wait 1s",
        "echo > up; until [ -e go ]; do sleep 0.05; done",
    ));
    cloud.file("up").await;
    run.signal(Signal::SIGHUP);
    cloud.touch("go");
    run.expect_exit(0).await;
    assert_eq!(cloud.counts().await, (0, 0));
}

/// A queue, and one pod that passes through every phase in which a stop can come: one second of
/// polling until the message comes, two of download, five of work, one and a half until the delete
/// is answered, and now and then a heartbeat of half a second. After TERM the command takes a
/// second and a half and exits 0.
fn eventful(flags: &str, max_receive_count: u32) -> (WiredQueue, FakeCommand, Journey) {
    let queue = queue_of(Kind::Standard, max_receive_count, &[]);
    let sender = queue.clone();
    tokio::spawn(async move {
        sleep(S).await;
        sender.send(object_created("k"));
    });
    let command = FakeCommand::new(Does::Succeeds(5 * S, 3 * S / 2));
    let mut journey = pod(&queue, &command, &format!("--wait 2s {flags}"));
    let mut slow = HookedQueue::new(&queue);
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

/// Ten seconds in steps, and the instants just before and after each second, when most events
/// happen.
fn instants(step: Duration) -> impl Iterator<Item = Duration> {
    let steps = (0..).map(move |n| n * step).take_while(|at| *at <= 11 * S);
    steps.chain((1..=10).flat_map(|second| [second * S - MS, second * S + MS]))
}

/// The rules for a stop at `stop`, at any instant: no delete is sent afterwards; a delete that was
/// sent before belongs to a success; and without a delete, another pod can process the message.
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
            "the command had not succeeded"
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

/// A pre-stop hook uses up the grace: TERM comes late, and KILL long before the stop has ended.
/// Whenever both come, only a success is deleted; otherwise the message returns when its lease
/// ends.
#[tokio::test(start_paused = true)]
async fn s31_a_kill_in_the_middle_of_the_stop_loses_nothing() {
    for stop_after in instants(S / 4) {
        for killed_after in [Duration::ZERO, MS, S / 2, S, 2 * S] {
            let (queue, command, journey) = eventful("--termination-grace 30s", 5);
            let started = Instant::now();
            let ended = journey.run_for(stop_after + killed_after, sleep(stop_after)).await;
            if ended.is_none() {
                // The tasks are dropped one after another.
                sleep(MS).await;
                let calls = queue.calls().len();
                sleep(10 * S).await;
                assert_eq!(queue.calls().len(), calls, "a task survived the KILL");
            }
            if started.elapsed() < S {
                sleep(S).await;
            }
            assert_safe(&queue, &command, started + stop_after).await;
        }
    }
}

/// A node is reclaimed, drained, or consolidated away: TERM at any instant, with a long or a short
/// grace. The stop ends in time, the exit code is right, and a kept message is visible at once.
#[tokio::test(start_paused = true)]
async fn s32_a_stop_is_safe_at_any_instant_with_any_grace() {
    let mut exits = [0; 3];
    for grace in [4, 30, 3600] {
        for stop_after in instants(S / 10) {
            let (queue, command, journey) = eventful(&format!("--termination-grace {grace}s"), 5);
            let started = Instant::now();
            let result = journey.run_and_stop_after(stop_after).await;
            if result.took > stop_after {
                assert!(
                    result.took <= stop_after + grace * S,
                    "the stop took {:?}",
                    result.took - stop_after
                );
            }
            match (result.outcome.exit_code(), queue.counts().visible) {
                // All done, or nothing received.
                (0, 0) => exits[0] += 1,
                (143, 1) => exits[1] += 1,
                // A short grace ended before the delete was answered: it may have succeeded.
                (75, 0) if grace == 4 => exits[2] += 1,
                other => panic!("stopped after {stop_after:?}: {other:?}"),
            }
            if started.elapsed() < S {
                sleep(S).await;
            }
            assert_safe(&queue, &command, started + stop_after).await;
        }
    }
    assert!(exits.iter().all(|count| *count > 5), "not all exit codes occurred: {exits:?}");
}

/// A rollout ends all pods at the same instant and starts new ones, three times in a row: each
/// message is processed in the end, and none goes to the dead-letter queue.
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
        let result: Vec<RunResult> = pods.join_all().await;
        for result in &result {
            assert!([0, 143].contains(&result.outcome.exit_code()), "{:?}", result.outcome);
        }
        let succeeded = result
            .iter()
            .flat_map(RunResult::outcomes)
            .filter(|outcome| *outcome == "succeeded")
            .count();
        assert_eq!((succeeded, deletes(&queue)), (4, 4), "a rollout each {instant:?}");
        assert!(queue.is_drained() && queue.dead_letters().is_empty());
    }
}

/// The Helm release is uninstalled, and its pods end, gracefully or by force, without successors:
/// unfinished messages stay in the queue until there are pods again.
#[tokio::test(start_paused = true)]
async fn s34_messages_of_deleted_pods_stay_in_the_queue() {
    for (instant, by_force) in instants(S).flat_map(|instant| [(instant, false), (instant, true)]) {
        let bodies: Vec<_> = (0..3).map(|n| object_created(&format!("k{n}"))).collect();
        let queue =
            queue_of(Kind::Standard, 5, &bodies.iter().map(String::as_str).collect::<Vec<_>>());
        // The first command is quicker than the others.
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

/// Each stop uses up one receive of maxReceiveCount, which only the queue counts: a message without
/// a defect gets nearer to the dead-letter queue, and each pod reads the count from the queue. A
/// low maxReceiveCount causes a warning.
#[tokio::test(start_paused = true)]
async fn s35_each_stop_uses_up_one_receive_and_only_the_queue_counts() {
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
