//! Real processes, real groups, the real clock: what `adapters::process` promises about the
//! command.
//!
//! Tests about a whole process (orphans, memory) run in a separate process, see [`in_own_process`].

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use leasehold::adapters::process::{Processes, find_program};
use leasehold::job::outcome::Exit;
use leasehold::ports::job_facts::JobFacts;
use leasehold::ports::{Activity, Command, Runner, StartError};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::{Pid, getpgrp};
use tokio::signal::unix::{self, SignalKind};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::facts;
use crate::support::logs::{Logs, capture};

const S: Duration = Duration::from_secs(1);
/// For fast operations, on a busy machine.
const SOON: Duration = Duration::from_secs(20);
const MIB: u64 = 1024 * 1024;
/// Longer than any test.
const LONG: Duration = Duration::from_mins(10);

#[tokio::test]
async fn the_exit_of_the_command_is_reported() {
    for (script, exit) in [
        ("exit 0", Exit::Code(0)),
        ("exit 75", Exit::Code(75)),
        ("exit 255", Exit::Code(255)),
        ("kill -TERM $$", Exit::Signal(15)),
        ("kill -KILL $$", Exit::Signal(9)),
        // A real-time signal, which nix does not name.
        ("kill -40 $$", Exit::Signal(40)),
    ] {
        assert_eq!(run(script).await, exit, "{script}");
    }
}

/// In a separate process, because only a peak above our own is measured.
#[tokio::test]
async fn the_usage_includes_the_descendants() {
    in_own_process("the_usage_includes_the_descendants", &[], async {
        let processes = Processes::new();
        let used = async |script| {
            let running = processes.run(sh(script), CancellationToken::new(), Activity::default());
            in_time(running).await.unwrap().usage.unwrap()
        };
        let greedy = used("dd if=/dev/zero of=/dev/null bs=256M count=2; exit 0").await;
        let modest = used("exit 0").await;
        assert!(
            greedy.peak_memory.is_some_and(|bytes| (256 * MIB..300 * MIB).contains(&bytes)),
            "{greedy:?}"
        );
        assert_eq!(modest.peak_memory, None, "a shell uses less memory than this process");
        assert!(greedy.cpu > modest.cpu + Duration::from_millis(10), "{greedy:?} {modest:?}");

        drop(std::hint::black_box(vec![1_u8; usize::try_from(400 * MIB).unwrap()]));
        assert_eq!(
            used("dd if=/dev/zero of=/dev/null bs=256M count=2; exit 0").await.peak_memory,
            None
        );
    })
    .await;
}

#[tokio::test]
async fn a_command_that_cannot_start_has_a_reason() {
    let room = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8], mode: u32| {
        let path = room.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let huge = vec!["x".repeat(100_000); 100];
    for (program, args, why) in [
        (PathBuf::from("no-such-program"), vec![], "not found in PATH"),
        (room.path().join("missing"), vec![], "no such file"),
        (room.path().to_owned(), vec![], "is a directory"),
        (file("data", b"", 0o644), vec![], "not executable"),
        (file("script", b"#!/no/such/interpreter\n", 0o755), vec![], "interpreter"),
        (file("garbage", b"\x7fELF\x02\x01\x01", 0o755), vec![], "processor"),
        (PathBuf::from("true"), huge, "too large"),
    ] {
        let command = Command {
            program: program.into(),
            args: args.into_iter().map(OsString::from).collect(),
            ..sh("")
        };
        let refused = in_time(ran_to(&Processes::new(), command, CancellationToken::new()))
            .await
            .unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
}

#[test]
fn a_missing_command_is_found_before_any_work() {
    assert!(find_program("sh".as_ref()).unwrap().is_absolute());
    assert!(find_program("/bin/sh".as_ref()).is_ok());
    let refusal = |program: &Path| find_program(program.as_os_str()).unwrap_err().to_string();
    assert_eq!(refusal(Path::new("no-such-program")), "no-such-program: not found in PATH");
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(refusal(file.path()).contains("not executable"));
}

#[tokio::test]
async fn the_command_gets_the_environment_without_our_settings() {
    in_own_process("the_command_gets_the_environment_without_our_settings", &[], async {
        let logs = Logs::default();
        let _logging = logs.capture();
        let script = r#"echo "[$LEASEHOLD_TEST]"; echo "[$THEIRS]"; echo "[$JOB_ID]"; echo "[${PATH:+path}]""#;
        let command = sh(script);
        let command = Command { job: JobFacts { id: "a b".to_owned(), ..command.job }, ..command };
        assert_eq!(exit_of(command).await, Exit::Code(0));
        assert_eq!(logs.lines("stdout"), ["[]", "[theirs]", "[a b]", "[path]"]);
    })
    .await;
}

/// A stale `JOB_KEY` would name the object of another job.
#[tokio::test]
async fn a_value_of_another_job_is_not_inherited() {
    let names = JobFacts::VARIABLES.map(|name| format!("{name}=stale"));
    let mut environment = vec!["env", "JOB_NAME=theirs"];
    environment.extend(names.iter().map(String::as_str));
    in_own_process("a_value_of_another_job_is_not_inherited", &environment, async {
        let logs = Logs::default();
        let _logging = logs.capture();
        let command = sh(r#"env | grep -c '^JOB_.*=stale'; echo "[$JOB_NAME] [$JOB_ID]""#);
        let command = Command { job: JobFacts { id: "id".to_owned(), ..command.job }, ..command };
        assert_eq!(exit_of(command).await, Exit::Code(0));
        assert_eq!(logs.lines("stdout"), ["0", "[theirs] [id]"]);
    })
    .await;
}

/// By default Python buffers its output to a pipe.
#[tokio::test]
async fn python_output_is_unbuffered() {
    in_own_process("python_output_is_unbuffered", &["env", "-u", "PYTHONUNBUFFERED"], async {
        assert_eq!(run("[ $PYTHONUNBUFFERED = 1 ]").await, Exit::Code(0));
    })
    .await;
}

#[tokio::test]
async fn an_existing_python_setting_is_kept() {
    in_own_process("an_existing_python_setting_is_kept", &["env", "PYTHONUNBUFFERED="], async {
        assert_eq!(run("[ \"${PYTHONUNBUFFERED-unset}\" = '' ]").await, Exit::Code(0));
    })
    .await;
}

#[tokio::test]
async fn output_becomes_log_lines_in_the_span_of_the_caller() {
    use tracing::Instrument;
    let logs = Logs::default();
    let _logging = logs.capture();
    let span = tracing::info_span!("work", message_id = "m-1");
    let script = r"echo one; echo two >&2; echo; printf 'four\377\000 \033[31m and no newline'";
    assert_eq!(run(script).instrument(span).await, Exit::Code(0));
    assert_eq!(logs.lines("stdout"), ["one", "", "four\u{fffd}\0 \u{1b}[31m and no newline"]);
    assert_eq!(logs.lines("stderr"), ["two"]);
    for event in logs.events().iter().filter(|event| event["target"] == "command") {
        assert_eq!(event["level"], "INFO");
        assert_eq!(event["span"]["message_id"], "m-1");
    }
}

#[tokio::test]
async fn a_long_line_is_truncated_and_the_next_one_is_complete() {
    let logs = Logs::default();
    let _logging = logs.capture();
    assert_eq!(run("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo next").await, Exit::Code(0));
    let lines = logs.lines("stdout");
    assert_eq!(
        lines[0],
        format!("{} [truncated: {} more bytes]", "x".repeat(8192), 1_000_000 - 8192)
    );
    assert_eq!(lines[1..], ["next"]);
}

#[tokio::test]
async fn binary_output_is_accepted() {
    let logs = Logs::default();
    let _logging = logs.capture();
    assert_eq!(
        run("head -c 300000 /dev/urandom; head -c 300000 /dev/urandom >&2; exit 3").await,
        Exit::Code(3)
    );
    assert!(!logs.lines("stdout").is_empty());
}

#[tokio::test]
async fn any_output_is_a_sign_of_life() {
    for (script, is_sign) in [("printf .", true), ("echo oops >&2", true), ("exit 0", false)] {
        let (processes, activity) = (Processes::new(), Activity::default());
        in_time(processes.run(sh(script), CancellationToken::new(), activity.clone()))
            .await
            .unwrap();
        assert_eq!(activity.take(), is_sign, "{script}");
        assert!(!activity.take(), "only new output counts");
    }
}

#[tokio::test]
async fn a_command_may_close_its_output() {
    assert_eq!(run("exec >&- 2>&-; sleep 0.1; exit 4").await, Exit::Code(4));
}

/// The command may run as another user by then.
#[tokio::test]
async fn a_command_may_open_its_output_by_name() {
    let logs = Logs::default();
    let _logging = logs.capture();
    let is_open = |fd: u8| format!("[ $(stat -Lc %a /proc/$$/fd/{fd}) = 666 ]");
    let script = format!(
        "{} && {} && echo out > /dev/stdout && echo err > /dev/stderr",
        is_open(1),
        is_open(2)
    );
    assert_eq!(run(&script).await, Exit::Code(0));
    assert_eq!(
        (logs.lines("stdout"), logs.lines("stderr")),
        (vec!["out".to_owned()], vec!["err".to_owned()])
    );
}

#[tokio::test]
async fn a_command_has_no_input() {
    in_own_process("a_command_has_no_input", &[], async {
        let ours = fs::read_link("/proc/self/fd/0").unwrap();
        assert_ne!(ours, Path::new("/dev/null"), "otherwise this proves nothing");
        assert_eq!(run("[ $(readlink /proc/$$/fd/0) = /dev/null ]").await, Exit::Code(0));
    })
    .await;
}

#[tokio::test]
async fn a_command_may_have_a_file_as_its_input() {
    let room = tempfile::tempdir().unwrap();
    let stdin = room.path().join("stdin");
    fs::write(&stdin, "some bytes\n").unwrap();
    let command = |stdin| Command {
        stdin: Some(stdin),
        ..sh("read -r line; [ \"$line\" = 'some bytes' ] && ! read -r line")
    };
    assert_eq!(exit_of(command(stdin)).await, Exit::Code(0));
    let missing = command(room.path().join("missing"));
    assert!(in_time(ran_to(&Processes::new(), missing, CancellationToken::new())).await.is_err());
}

#[tokio::test]
async fn a_flood_of_output_neither_blocks_nor_uses_memory() {
    in_own_process("a_flood_of_output_neither_blocks_nor_uses_memory", &[], async {
        assert_eq!(run("echo warm up").await, Exit::Code(0));
        let before = peak_memory();
        assert_eq!(run("yes $(printf %0999d 0) | head -c 200000000").await, Exit::Code(0));
        assert_eq!(run("head -c 200000000 /dev/zero >&2").await, Exit::Code(0));
        let grown = peak_memory() - before;
        assert!(grown < 8 << 20, "grew by {grown} bytes");
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_output_does_not_starve_other_tasks() {
    let (logged, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = logged.clone();
    let _logging = capture(move || {
        count.fetch_add(1, Ordering::Relaxed);
        io::sink()
    });
    let highest = most.clone();
    let other = tokio::spawn(async move {
        loop {
            highest.fetch_max(logged.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(run("yes | head -c 400000; yes | head -c 400000 >&2").await, Exit::Code(0));
    other.abort();
    let most = most.load(Ordering::Relaxed);
    assert!((1..1000).contains(&most), "{most} lines were logged while a ready task waited");
}

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
async fn the_wait_for_a_grandchild_that_holds_the_output_is_limited() {
    let room = tempfile::tempdir().unwrap();
    let logs = Logs::default();
    let _logging = logs.capture();
    let started = Instant::now();
    let script = "sleep 600 & echo $! > child; printf 'the last word'";
    assert_eq!(exit_of(in_room(room.path(), script)).await, Exit::Code(0));
    let took = started.elapsed();
    assert!((2 * S..SOON).contains(&took), "{took:?}");
    assert!(!is_running(room.path(), "child"));
    assert_eq!(logs.lines("stdout"), ["the last word"]);
    assert_eq!(logs.warnings(), 1, "the leak is logged");
}

#[tokio::test]
async fn output_written_just_before_the_end_is_not_lost() {
    let logs = Logs::default();
    let _logging = logs.capture();
    assert_eq!(run("seq 1 10000; exit 0").await, Exit::Code(0));
    assert_eq!(logs.lines("stdout").len(), 10000);
    assert_eq!(logs.warnings(), 0);
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

#[tokio::test]
async fn a_daemon_does_not_outlive_the_command() {
    in_own_process("a_daemon_does_not_outlive_the_command", &[], async {
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
        let halted = Halted::by(
            &processes,
            room.path(),
            &format!("{DAEMON}; wait_for_ever"),
            S,
            &["daemon_up"],
        )
        .await;
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
async fn a_daemon_ends_with_its_command_while_others_run() {
    in_own_process("a_daemon_ends_with_its_command_while_others_run", &[], async {
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
    in_own_process("a_halt_signals_descendants_in_other_groups", &[], async {
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
    in_own_process("a_descendant_in_another_group_is_killed_after_the_grace", &[], async {
        let room = tempfile::tempdir().unwrap();
        let processes = Processes::adopting().unwrap();
        let script = "setsid sh -c 'trap \"\" TERM; echo $$ > child; touch up; sleep 600' & wait";
        let halted = Halted::by(&processes, room.path(), script, S, &["up"]).await;
        assert_eq!(halted.exit, Exit::Signal(15));
        assert!(halted.took >= S, "{:?}", halted.took);
        assert!(!is_running(room.path(), "child"));
        until("all are reaped", || children().is_empty()).await;
    })
    .await;
}

/// A daemon without the variable and without a parent that had it.
#[tokio::test]
async fn a_daemon_of_unknown_origin_ends_with_the_last_command_that_may_have_started_it() {
    let name = "a_daemon_of_unknown_origin_ends_with_the_last_command_that_may_have_started_it";
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
    in_own_process("the_command_of_a_daemon_stays_known_when_its_environment_changes", &[], async {
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
    in_own_process("a_halt_signals_a_daemon_that_only_one_command_can_have_started", &[], async {
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

/// A child inherits blocked and ignored signals, unless its parent resets them.
#[tokio::test]
async fn the_command_gets_all_signals_whatever_we_handle() {
    in_own_process("the_command_gets_all_signals_whatever_we_handle", &[], signals_of_a_command())
        .await;
}

#[tokio::test]
async fn as_pid_1_the_command_gets_all_signals_whatever_we_handle() {
    in_own_process("as_pid_1_the_command_gets_all_signals_whatever_we_handle", &AS_PID_1, async {
        assert_eq!(std::process::id(), 1);
        signals_of_a_command().await;
    })
    .await;
}

async fn signals_of_a_command() {
    let kinds = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::user_defined1(),
    ];
    let _handled: Vec<_> = kinds.iter().map(|kind| unix::signal(*kind).unwrap()).collect();
    SigSet::all().thread_block().unwrap();
    let logs = Logs::default();
    let _logging = logs.capture();
    assert_eq!(run("exec grep -E '^Sig(Blk|Ign):' /proc/self/status").await, Exit::Code(0));
    let mask =
        |line: &str| u64::from_str_radix(line.rsplit(':').next().unwrap().trim(), 16).unwrap();
    let masks: Vec<_> = logs.lines("stdout").iter().map(|line| mask(line)).collect();
    // Signals that were ignored before the start, as in background jobs of a shell, stay ignored;
    // SIGPIPE does not.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = mask(status.lines().find(|line| line.starts_with("SigIgn:")).unwrap());
    let inherited = ignored & !(1 << (Signal::SIGPIPE as u32 - 1));
    // Signals 32 and 33 belong to the C library, which ignores them in spawned processes.
    assert_eq!((masks[0], masks[1] & 0x7fff_ffff & !inherited), (0, 0), "{masks:x?}");
}

#[tokio::test]
async fn a_helper_in_our_group_is_not_killed() {
    in_own_process("a_helper_in_our_group_is_not_killed", &[], async {
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
    in_own_process("a_commands_own_process_in_our_group_ends_with_the_command", &[], async {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_exit_status_is_right_and_all_zombies_are_reaped() {
    in_own_process(
        "every_exit_status_is_right_and_all_zombies_are_reaped",
        &[],
        many_commands_with_orphans(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn as_pid_1_every_exit_status_is_right_and_all_zombies_are_reaped() {
    in_own_process(
        "as_pid_1_every_exit_status_is_right_and_all_zombies_are_reaped",
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
