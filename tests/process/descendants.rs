//! Processes that left the group of their command: daemons, orphans, zombies.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use leasehold::adapters::process::Processes;
use leasehold::job::outcome::Exit;
use leasehold::ports::{Activity, Command, Runner};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    AS_PID_1, DAEMON, Halted, LONG, S, children, in_own_process, in_room, in_time, is_running, job,
    ran_to, remove_daemon_files, sh, until,
};

#[tokio::test]
async fn a_daemon_does_not_outlive_the_command() {
    in_own_process("descendants::a_daemon_does_not_outlive_the_command", &[], async {
        let room = tempfile::tempdir().unwrap();
        let processes = Processes::adopting().unwrap();
        let run = |script: &str| {
            ran_to(&processes, in_room(room.path(), script), CancellationToken::new())
        };

        assert_eq!(in_time(run(&format!("{DAEMON}; exit 3"))).await, Ok(Exit::Code(3)));
        assert!(
            !is_running(room.path(), "daemon") && !is_running(room.path(), "its_child"),
            "it outlived the command"
        );

        remove_daemon_files(room.path());
        let waits = format!("{DAEMON}; wait_for_ever");
        let halted = Halted::by(&processes, room.path(), &waits, S, &["daemon_up"]);
        let halted = Box::pin(halted).await;
        assert_eq!(halted.exit, Exit::Signal(15));
        assert!(
            !is_running(room.path(), "daemon") && !is_running(room.path(), "its_child"),
            "it outlived a halt"
        );

        remove_daemon_files(room.path());
        let dropped = timeout(S, run(&format!("{DAEMON}; wait_for_ever"))).await;
        assert!(dropped.is_err() && room.path().join("daemon_up").exists());
        let has_ended =
            || !is_running(room.path(), "daemon") && !is_running(room.path(), "its_child");
        until("the daemon of a dropped run has ended", has_ended).await;
        until("all are reaped", || children().is_empty()).await;
    })
    .await;
}

#[tokio::test]
async fn remaining_processes_are_reported() {
    in_own_process("descendants::remaining_processes_are_reported", &[], async {
        let room = tempfile::tempdir().unwrap();
        let left_no_writer = async |processes: &Processes, script: &str| {
            let command = in_room(room.path(), script);
            let running = processes.run(command, CancellationToken::new(), Activity::default());
            in_time(running).await.unwrap().left_no_writer
        };
        let processes = Processes::adopting().unwrap();
        assert!(left_no_writer(&processes, "true").await);
        assert!(left_no_writer(&processes, "sleep 0.1 & wait; exit 3").await);
        assert!(!left_no_writer(&processes, DAEMON).await, "it had to be killed");
        assert!(!left_no_writer(&processes, "sleep 600 >&- 2>&- &").await);
        assert!(left_no_writer(&processes, "true").await);
        assert!(!left_no_writer(&Processes::new(), "true").await, "daemons are not seen");
    })
    .await;
}

#[tokio::test]
async fn a_daemon_ends_with_its_command_while_others_run() {
    in_own_process("descendants::a_daemon_ends_with_its_command_while_others_run", &[], async {
        let home = tempfile::tempdir().unwrap();
        let processes = Arc::new(Processes::adopting().unwrap());
        let other = home.path().join("other");
        fs::create_dir(&other).unwrap();
        let halt = CancellationToken::new();
        let running = tokio::spawn({
            let (processes, halt) = (processes.clone(), halt.clone());
            let script = format!("{DAEMON}; touch up; wait_for_ever");
            let command = Command { stop_grace: S, ..job(&other, "other", &script) };
            async move { ran_to(&processes, command, halt).await }
        });
        until("the other runs", || other.join("up").exists()).await;
        let without_mark = DAEMON.replace("setsid sh -c", "setsid env -u JOB_FILE sh -c");
        let below_a_marked_one = DAEMON.replace("sleep 600 &", "env -u JOB_FILE sleep 600 &");
        let holds_the_output = DAEMON.replace(">&- 2>&-", "");
        for (name, daemon, end) in [
            ("it", DAEMON, "exit 3"),
            ("its child", &below_a_marked_one, "exit 3"),
            ("it holds the output", &holds_the_output, "exit 3"),
            ("halted", DAEMON, "touch up; wait_for_ever"),
            (
                "halted, without a mark",
                &without_mark.replace("(setsid", "setsid").replace("&);", "&"),
                "touch up; wait_for_ever",
            ),
        ] {
            let room = home.path().join(name);
            fs::create_dir(&room).unwrap();
            let halt = CancellationToken::new();
            let script = format!("{daemon}; date +%s.%N > ended; {end}");
            let command = Command { stop_grace: S, ..job(&room, name, &script) };
            let halting = async {
                until("it runs", || room.join("ended").exists()).await;
                if end != "exit 3" {
                    halt.cancel();
                }
            };
            let (exit, ()) =
                in_time(async { tokio::join!(ran_to(&processes, command, halt.clone()), halting) })
                    .await;
            assert_eq!(
                exit,
                Ok(if end == "exit 3" { Exit::Code(3) } else { Exit::Signal(15) }),
                "{name}"
            );
            assert!(!is_running(&room, "daemon") && !is_running(&room, "its_child"), "{name}");
        }
        let room = home.path().join("dropped");
        fs::create_dir(&room).unwrap();
        let command = job(&room, "dropped", &format!("{DAEMON}; touch up; wait_for_ever"));
        let dropped = tokio::spawn({
            let processes = processes.clone();
            async move { ran_to(&processes, command, CancellationToken::new()).await }
        });
        until("it runs", || room.join("up").exists()).await;
        dropped.abort();
        until("the daemon has ended", || {
            !is_running(&room, "daemon") && !is_running(&room, "its_child")
        })
        .await;

        assert!(
            is_running(&other, "daemon") && is_running(&other, "its_child"),
            "they belong to the other command"
        );
        halt.cancel();
        assert_eq!(in_time(running).await.unwrap(), Ok(Exit::Signal(15)));
        assert!(!is_running(&other, "daemon") && !is_running(&other, "its_child"));
        until("all are reaped", || children().is_empty()).await;
    })
    .await;
}

/// `timeout` moves to its own group, and so do the jobs of a shell with job control.
#[tokio::test]
async fn a_halt_signals_descendants_in_other_groups() {
    in_own_process("descendants::a_halt_signals_descendants_in_other_groups", &[], async {
        let home = tempfile::tempdir().unwrap();
        let processes = Arc::new(Processes::adopting().unwrap());
        let other = home.path().join("other");
        fs::create_dir(&other).unwrap();
        let worker = |name: &str| {
            format!(
                "sh -c 'trap \"sleep 0.5; touch {name}_saved; exit\" TERM; touch {name}; while :; do sleep 0.05; done'"
            )
        };
        let halt_other = CancellationToken::new();
        let running = tokio::spawn({
            let (processes, halt) = (processes.clone(), halt_other.clone());
            let command = job(&other, "other", &format!("setsid {} & wait", worker("other")));
            async move { ran_to(&processes, command, halt).await }
        });
        until("the other runs", || other.join("other").exists()).await;

        let (timed, daemon) = (worker("timed"), worker("daemon"));
        let script = format!("(setsid {daemon} &); timeout 600 setsid {timed}; exit 1");
        let halted = job(home.path(), "halted", &script);
        let halt = CancellationToken::new();
        let halting = async {
            until("all are ready", || ["timed", "daemon"].iter().all(|file| home.path().join(file).exists())).await;
            halt.cancel();
        };
        let (exit, ()) = in_time(async { tokio::join!(ran_to(&processes, halted, halt.clone()), halting) }).await;
        assert_eq!(exit, Ok(Exit::Signal(15)));
        assert!(["timed_saved", "daemon_saved"].iter().all(|file| home.path().join(file).exists()));
        assert!(!other.join("other_saved").exists(), "it belongs to another command");

        halt_other.cancel();
        assert_eq!(in_time(running).await.unwrap(), Ok(Exit::Signal(15)));
        assert!(other.join("other_saved").exists());
        until("all are reaped", || children().is_empty()).await;
    })
    .await;
}

#[tokio::test]
async fn a_descendant_in_another_group_is_killed_after_the_grace() {
    in_own_process(
        "descendants::a_descendant_in_another_group_is_killed_after_the_grace",
        &[],
        async {
            let room = tempfile::tempdir().unwrap();
            let processes = Processes::adopting().unwrap();
            let script =
                "setsid sh -c 'trap \"\" TERM; echo $$ > child; touch up; sleep 600' & wait";
            let halted = Halted::by(&processes, room.path(), script, S, &["up"]).await;
            assert_eq!(halted.exit, Exit::Signal(15));
            assert!(halted.took >= S, "{:?}", halted.took);
            assert!(!is_running(room.path(), "child"));
            until("all are reaped", || children().is_empty()).await;
        },
    )
    .await;
}

/// A daemon without the variable and without a parent that had it.
#[tokio::test]
async fn a_daemon_of_unknown_origin_ends_with_the_last_command_that_may_have_started_it() {
    let name = "descendants::a_daemon_of_unknown_origin_ends_with_the_last_command_that_may_have_started_it";
    in_own_process(name, &[], async {
        let [one, two, three] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let processes = Arc::new(Processes::adopting().unwrap());
        let waits = |room: &Path, halt: &CancellationToken| {
            let command = Command { stop_grace: S, ..in_room(room, "touch up; wait_for_ever") };
            let (processes, halt) = (processes.clone(), halt.clone());
            tokio::spawn(async move { ran_to(&processes, command, halt).await })
        };
        let (halt, halt_later) = (CancellationToken::new(), CancellationToken::new());
        let earlier = waits(two.path(), &halt);
        until("the other runs", || two.path().join("up").exists()).await;
        // Started by this process: it looks like the orphan of an ended command.
        let daemon = in_room(one.path(), DAEMON);
        drop(
            std::process::Command::new(daemon.program)
                .args(daemon.args)
                .stdin(Stdio::null())
                .spawn()
                .unwrap(),
        );
        until("the daemon runs", || one.path().join("daemon_up").exists()).await;
        // The kernel counts start times in ticks of 10 ms, and the third must have a later one.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let later = waits(three.path(), &halt_later);
        until("the third runs", || three.path().join("up").exists()).await;
        assert!(is_running(one.path(), "daemon"));
        halt.cancel();
        assert_eq!(in_time(earlier).await.unwrap(), Ok(Exit::Signal(15)));
        until("the daemon has ended", || {
            !is_running(one.path(), "daemon") && !is_running(one.path(), "its_child")
        })
        .await;
        assert!(!later.is_finished(), "it started after the daemon");
        halt_later.cancel();
        assert_eq!(in_time(later).await.unwrap(), Ok(Exit::Signal(15)));
    })
    .await;
}

/// For example a server that shows its state in its title.
#[tokio::test]
async fn the_command_of_a_daemon_stays_known_when_its_environment_changes() {
    in_own_process("descendants::the_command_of_a_daemon_stays_known_when_its_environment_changes", &[], async {
        let home = tempfile::tempdir().unwrap();
        let processes = Arc::new(Processes::adopting().unwrap());
        let (other, command) = (processes.clone(), in_room(home.path(), "touch up; wait_for_ever"));
        let other = tokio::spawn(async move { ran_to(&other, command, CancellationToken::new()).await });
        until("the other runs", || home.path().join("up").exists()).await;
        let mut ended = false;
        // A busy machine may see the environment late; so try longer times.
        for seconds in [1, 5, 15] {
            let room = tempfile::tempdir_in(home.path()).unwrap();
            let daemon =
                format!("echo $$ > daemon; sleep {seconds}; exec env -i sh -c \"touch cleared; sleep 600; true\"");
            let script = format!("(setsid sh -c '{daemon}' >&- 2>&- &); until [ -e cleared ]; do sleep 0.01; done");
            assert_eq!(
                in_time(ran_to(&processes, job(room.path(), "it", &script), CancellationToken::new())).await,
                Ok(Exit::Code(0))
            );
            ended = !is_running(room.path(), "daemon");
            if ended {
                break;
            }
        }
        assert!(ended && !other.is_finished());
        other.abort();
    })
    .await;
}

#[tokio::test]
async fn a_halt_signals_a_daemon_that_only_one_command_can_have_started() {
    in_own_process("descendants::a_halt_signals_a_daemon_that_only_one_command_can_have_started", &[], async {
        let room = tempfile::tempdir().unwrap();
        let processes = Processes::adopting().unwrap();
        let daemon =
            "trap \"sleep 0.5; touch saved; exit\" TERM; touch up; while :; do sleep 0.05; done";
        let script =
            format!("(env -i PATH=\"$PATH\" setsid sh -c '{daemon}' >&- 2>&- &); wait_for_ever");
        let halted = Halted::by(&processes, room.path(), &script, LONG, &["up"]).await;
        assert_eq!(halted.exit, Exit::Signal(15));
        assert!(room.path().join("saved").exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_exit_status_is_right_and_all_zombies_are_reaped() {
    in_own_process(
        "descendants::every_exit_status_is_right_and_all_zombies_are_reaped",
        &[],
        many_commands_with_orphans(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn as_pid_1_every_exit_status_is_right_and_all_zombies_are_reaped() {
    in_own_process(
        "descendants::as_pid_1_every_exit_status_is_right_and_all_zombies_are_reaped",
        &AS_PID_1,
        async {
            assert_eq!(std::process::id(), 1);
            many_commands_with_orphans().await;
        },
    )
    .await;
}

async fn many_commands_with_orphans() {
    let processes = Arc::new(Processes::adopting().unwrap());
    let mut running = JoinSet::new();
    for code in 0..200 {
        let processes = processes.clone();
        // Orphans that end before the command, at about the same time, and never.
        let script = format!(
            "setsid true & setsid sleep 0.01 & (setsid sleep 600 >&- 2>&- &) ; sleep 0.01; exit {code}"
        );
        running.spawn(async move {
            (code, ran_to(&processes, sh(&script), CancellationToken::new()).await)
        });
        if running.len() >= 8 {
            let (code, exit) = in_time(running.join_next()).await.unwrap().unwrap();
            assert_eq!(exit, Ok(Exit::Code(code)));
        }
    }
    while let Some(ended) = in_time(running.join_next()).await {
        let (code, exit) = ended.unwrap();
        assert_eq!(exit, Ok(Exit::Code(code)));
    }
    until("no child remains", || children().is_empty()).await;
}
