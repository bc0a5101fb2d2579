//! Real processes, real groups, the real clock: what `adapters::process` promises about the
//! command.
//!
//! Tests about a whole process (orphans, memory) run in a separate process, see [`in_own_process`].

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use leasehold::adapters::process::Processes;
use leasehold::job::outcome::Exit;
use leasehold::ports::job_facts::JobFacts;
use leasehold::ports::{Activity, Command, Runner, StartError};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::facts;

mod command;
mod descendants;
mod halt;
mod output;

const S: Duration = Duration::from_secs(1);
/// For fast operations, on a busy machine.
const SOON: Duration = Duration::from_secs(20);
const MIB: u64 = 1024 * 1024;
/// Longer than any test.
const LONG: Duration = Duration::from_mins(10);

/// A shell with a helper function for the scripts.
fn sh(script: &str) -> Command {
    let script = format!("wait_for_ever() {{ while :; do sleep 0.05; done; }}; {script}");
    let job = facts();
    Command {
        program: "sh".into(),
        args: vec!["-c".into(), script.into()],
        job,
        variables: None,
        stdin: None,
        fetch: None,
        on_demand: None,
        stop_grace: LONG,
    }
}

/// The same, in a directory.
fn in_room(room: &Path, script: &str) -> Command {
    sh(&format!("cd '{}'; {script}", room.display()))
}

/// The same, as the command of a job.
fn job(room: &Path, name: &str, script: &str) -> Command {
    let command = in_room(room, script);
    Command {
        job: JobFacts { job_file: room.join(name).with_extension("job"), ..command.job },
        ..command
    }
}

/// A daemon that leaves the group and the process tree of the command, and writes its pids to
/// files.
const DAEMON: &str = "(setsid sh -c 'trap \"\" TERM HUP; sleep 600 & echo $! > its_child; echo $$ > daemon; touch daemon_up; \
    wait' >&- 2>&- &); until [ -e daemon_up ]; do sleep 0.01; done";

fn remove_daemon_files(room: &Path) {
    for file in ["daemon", "its_child", "daemon_up"] {
        fs::remove_file(room.join(file)).unwrap();
    }
}

async fn run(script: &str) -> Exit {
    exit_of(sh(script)).await
}

async fn exit_of(command: Command) -> Exit {
    in_time(ran_to(&Processes::new(), command, CancellationToken::new())).await.unwrap()
}

struct Halted {
    exit: Exit,
    /// The time since the halt.
    took: Duration,
}

impl Halted {
    /// Runs the script and halts it when these files exist.
    async fn once(room: &Path, script: &str, stop_grace: Duration, files: &[&str]) -> Self {
        Self::by(&Processes::new(), room, script, stop_grace, files).await
    }

    async fn by(
        processes: &Processes,
        room: &Path,
        script: &str,
        stop_grace: Duration,
        files: &[&str],
    ) -> Self {
        let halt = CancellationToken::new();
        let halting = async {
            until("the command is ready", || files.iter().all(|file| room.join(file).exists()))
                .await;
            halt.cancel();
            Instant::now()
        };
        let running =
            ran_to(processes, Command { stop_grace, ..in_room(room, script) }, halt.clone());
        let (exit, halted_at) = in_time(async { tokio::join!(running, halting) }).await;
        Self { exit: exit.unwrap(), took: halted_at.elapsed() }
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    timeout(3 * SOON, work).await.expect("within the limit")
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < SOON, "waited too long until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Whether the process whose pid is in this file is alive.
fn is_running(room: &Path, file: &str) -> bool {
    let pid = fs::read_to_string(room.join(file)).unwrap();
    let stat = fs::read(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The children of this process, including zombies.
fn children() -> Vec<String> {
    let us = std::process::id().to_string();
    let stats = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("stat")).ok());
    let stats = stats.map(|stat| String::from_utf8_lossy(&stat).into_owned());
    stats
        .filter(|stat| {
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(&us))
        })
        .collect()
}

/// The peak memory of this process, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

const AS_PID_1: [&str; 6] =
    ["unshare", "--user", "--map-root-user", "--fork", "--pid", "--mount-proc"];

/// Set in the separate process of a test.
const SEPARATE: &str = "THEIRS";

/// Runs the test called `name` in a separate process, by executing the test binary again.
async fn in_own_process(name: &str, through: &[&str], test: impl Future<Output = ()>) {
    #[expect(
        clippy::disallowed_methods,
        reason = "the environment of the test, not of the program"
    )]
    if std::env::var_os(SEPARATE).is_some() {
        return in_time(test).await;
    }
    let us = std::env::current_exe().unwrap();
    let name = format!("process::{name}");
    let words: Vec<_> =
        through.iter().map(OsString::from).chain([us.into(), name.into()]).collect();
    let mut command = tokio::process::Command::new(&words[0]);
    command
        .args(&words[1..])
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .kill_on_drop(true);
    command.stdin(Stdio::piped()).env(SEPARATE, "theirs").env("LEASEHOLD_TEST", "ours");
    let output =
        timeout(6 * SOON, command.output()).await.expect("the test has its own limit").unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}\n{stderr}");
}

async fn ran_to(
    processes: &Processes,
    command: Command,
    halt: CancellationToken,
) -> Result<Exit, StartError> {
    processes.run(command, halt, Activity::default()).await.map(|exited| exited.exit)
}
