//! How a command and its group end.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use leasehold::adapters::process::Processes;
use leasehold::job::outcome::Exit;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgrp};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::logs::Logs;

use super::{
    DAEMON, Halted, LONG, S, SOON, children, exit_of, in_own_process, in_room, in_time, is_running,
    job, ran_to, sh, until,
};

#[tokio::test]
async fn a_halt_signals_the_whole_group_and_waits_for_the_grace() {
    let room = tempfile::tempdir().unwrap();
    let script = "trap 'sleep 0.3; touch saved; exit 7' TERM; (trap 'touch asked; exit' TERM; touch in; wait_for_ever) & \
        touch up; wait_for_ever";
    let halted = Halted::once(room.path(), script, LONG, &["in", "up"]).await;
    assert_eq!(halted.exit, Exit::Code(7));
    assert!(room.path().join("asked").exists() && room.path().join("saved").exists());
}

#[tokio::test]
async fn a_program_keeps_its_grace_when_its_shell_ends_at_once() {
    let room = tempfile::tempdir().unwrap();
    let script = "sh -c 'trap \"sleep 0.5; touch saved; exit\" TERM; touch up; while :; do sleep 0.1; done' & wait";
    let halted = Halted::once(room.path(), script, LONG, &["up"]).await;
    assert_eq!(halted.exit, Exit::Signal(15));
    assert!(room.path().join("saved").exists());
}

#[tokio::test]
async fn a_command_that_ignores_the_halt_is_killed_with_its_group_after_the_grace() {
    let room = tempfile::tempdir().unwrap();
    let script = "trap '' TERM; sh -c 'echo $$ > child; touch up; sleep 600' & wait_for_ever";
    let halted = Halted::once(room.path(), script, S, &["up"]).await;
    assert_eq!(halted.exit, Exit::Signal(9));
    assert!(halted.took >= S, "{:?}", halted.took);
    assert!(!is_running(room.path(), "child"));
}

#[tokio::test]
async fn a_halt_before_the_start_ends_the_command_too() {
    let halt = CancellationToken::new();
    halt.cancel();
    assert_eq!(
        in_time(ran_to(&Processes::new(), sh("sleep 600"), halt)).await,
        Ok(Exit::Signal(15))
    );
}

#[tokio::test]
async fn a_stopped_command_is_killed() {
    let room = tempfile::tempdir().unwrap();
    let script = "(until grep -q '^State:.T' /proc/$$/status; do sleep 0.01; done; touch up) & kill -STOP $$; exit 0";
    let halted = Halted::once(room.path(), script, S, &["up"]).await;
    assert_eq!(halted.exit, Exit::Signal(9));
}

#[tokio::test]
async fn a_grandchild_does_not_outlive_the_command() {
    let room = tempfile::tempdir().unwrap();
    let logs = Logs::default();
    let _logging = logs.capture();
    // The grandchild ignores TERM and holds no output, so only the KILL of the group ends it.
    let started = Instant::now();
    let script = "(trap '' TERM; exec sleep 600) >&- 2>&- & echo $! > child; exit 3";
    assert_eq!(exit_of(in_room(room.path(), script)).await, Exit::Code(3));
    assert!(!is_running(room.path(), "child"));
    assert!(started.elapsed() < SOON);
    assert_eq!(logs.warnings(), 1, "the leak is logged");
}

#[tokio::test]
async fn a_dropped_run_kills_the_whole_group() {
    let room = tempfile::tempdir().unwrap();
    let script = "echo $$ > leader; sh -c 'echo $$ > child; touch up; sleep 600' & wait_for_ever";
    let command = in_room(room.path(), script);
    let running =
        tokio::spawn(
            async move { ran_to(&Processes::new(), command, CancellationToken::new()).await },
        );
    until("it runs", || room.path().join("up").exists()).await;
    assert!(is_running(room.path(), "leader") && is_running(room.path(), "child"));
    running.abort();
    assert!(in_time(running).await.unwrap_err().is_cancelled());
    until("all processes have ended", || {
        !is_running(room.path(), "leader") && !is_running(room.path(), "child")
    })
    .await;
}

/// With the binary, since it is KILLed: alone, and with its process group.
#[tokio::test]
async fn a_command_does_not_outlive_leasehold() {
    for (signal, group) in
        [(Signal::SIGKILL, false), (Signal::SIGKILL, true), (Signal::SIGABRT, false)]
    {
        let room = tempfile::tempdir().unwrap();
        fs::create_dir(room.path().join("inbox")).unwrap();
        fs::write(room.path().join("inbox/file"), "x").unwrap();
        let in_group = "sh -c 'echo $$ > in_group; while :; do sleep 0.05; done' &";
        let script = format!(
            "cd $OUT; {in_group} {DAEMON}; echo $$ > leader; touch up; while :; do sleep 0.05; done"
        );
        let mut us = tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold"));
        us.arg("local")
            .arg(room.path().join("inbox"))
            .args(["--", "sh", "-c", &script])
            .env("OUT", room.path());
        let mut us =
            us.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("it runs", || ["up", "in_group"].iter().all(|file| room.path().join(file).exists()))
            .await;
        let all = ["leader", "in_group", "daemon", "its_child"];
        assert!(all.iter().all(|file| is_running(room.path(), file)));
        let pid = Pid::from_raw(us.id().unwrap().cast_signed());
        if group {
            killpg(pid, signal).unwrap();
        } else {
            kill(pid, signal).unwrap();
        }
        assert_eq!(in_time(us.wait()).await.unwrap().signal(), Some(signal as i32));
        until("all processes have ended", || !all.iter().any(|file| is_running(room.path(), file)))
            .await;
    }
}

/// For example after a SIGSTOP to all processes.
#[tokio::test]
async fn a_stopped_guard_does_not_block_the_exit() {
    let room = tempfile::tempdir().unwrap();
    fs::create_dir(room.path().join("inbox")).unwrap();
    fs::write(room.path().join("inbox/file"), "x").unwrap();
    let script = "for pid in $(cat /proc/$PPID/task/*/children); do \
        if [ $pid != $$ ] && grep -q end-commands /proc/$pid/cmdline; then kill -STOP $pid; echo $pid > $OUT/guard; fi; done";
    let mut us = tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold"));
    us.arg("local")
        .arg(room.path().join("inbox"))
        .args(["--", "sh", "-c", script])
        .env("OUT", room.path());
    let mut us = us.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let ended = timeout(SOON, us.wait()).await;
    let guard = fs::read_to_string(room.path().join("guard")).expect("the guard was stopped");
    if is_running(room.path(), "guard") {
        kill(Pid::from_raw(guard.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    }
    assert_eq!(ended.expect("the process exits within the limit").unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_helper_in_our_group_is_not_killed() {
    in_own_process("halt::a_helper_in_our_group_is_not_killed", &[], async {
        let mut helper = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let processes = Processes::adopting().unwrap();
        let ended = ran_to(&processes, sh("exit 0"), CancellationToken::new());
        assert_eq!(in_time(ended).await, Ok(Exit::Code(0)));
        assert_eq!(helper.try_wait().unwrap(), None);
        helper.kill().unwrap();
        until("the helper is reaped", || children().is_empty()).await;
    })
    .await;
}

/// Unlike a helper, it has the variable of its command.
#[tokio::test]
async fn a_commands_own_process_in_our_group_ends_with_the_command() {
    in_own_process("halt::a_commands_own_process_in_our_group_ends_with_the_command", &[], async {
        let room = tempfile::tempdir().unwrap();
        let processes = Processes::adopting().unwrap();
        let python = "import os, sys, time; os.setpgid(0, int(sys.argv[1])); open(\"up\", \"w\"); time.sleep(600)";
        let script = format!(
            "(python3 -c '{python}' {} >&- 2>&- & echo $! > child); until [ -e up ]; do sleep 0.01; done",
            getpgrp()
        );
        let ended = ran_to(&processes, job(room.path(), "it", &script), CancellationToken::new());
        assert_eq!(in_time(ended).await, Ok(Exit::Code(0)));
        assert!(!is_running(room.path(), "child"));
        until("the child is reaped", || children().is_empty()).await;
    })
    .await;
}
