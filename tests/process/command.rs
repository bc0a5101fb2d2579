//! What the command gets, and what is reported about its end.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leasehold::adapters::process::{Processes, find_program};
use leasehold::job::outcome::Exit;
use leasehold::ports::job_facts::JobFacts;
use leasehold::ports::{Activity, Command, Runner};
use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix;
use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;

use crate::support::logs::Logs;

use super::{AS_PID_1, MIB, exit_of, in_own_process, in_time, ran_to, run, sh};

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
    in_own_process("command::the_usage_includes_the_descendants", &[], async {
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
    assert!(refusal(Path::new("")).contains("the name of the program is empty"));
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(refusal(file.path()).contains("not executable"));
}

#[tokio::test]
async fn the_command_gets_the_environment_without_our_settings() {
    in_own_process("command::the_command_gets_the_environment_without_our_settings", &[], async {
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
    in_own_process("command::a_value_of_another_job_is_not_inherited", &environment, async {
        let logs = Logs::default();
        let _logging = logs.capture();
        let command = sh(r#"env | grep -c '^JOB_.*=stale'; echo "[$JOB_NAME] [$JOB_ID]""#);
        let command = Command { job: JobFacts { id: "id".to_owned(), ..command.job }, ..command };
        assert_eq!(exit_of(command).await, Exit::Code(0));
        assert_eq!(logs.lines("stdout"), ["0", "[theirs] [id]"]);
    })
    .await;
}

#[tokio::test]
async fn a_command_has_no_input() {
    in_own_process("command::a_command_has_no_input", &[], async {
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

/// A child inherits blocked and ignored signals, unless its parent resets them.
#[tokio::test]
async fn the_command_gets_all_signals_whatever_we_handle() {
    in_own_process(
        "command::the_command_gets_all_signals_whatever_we_handle",
        &[],
        signals_of_a_command(),
    )
    .await;
}

#[tokio::test]
async fn as_pid_1_the_command_gets_all_signals_whatever_we_handle() {
    in_own_process(
        "command::as_pid_1_the_command_gets_all_signals_whatever_we_handle",
        &AS_PID_1,
        async {
            assert_eq!(std::process::id(), 1);
            signals_of_a_command().await;
        },
    )
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
