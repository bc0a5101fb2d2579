//! The real binary at a terminal, and with pipes that are closed.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::cloud::is_alive;

/// For steps that take seconds, on a busy machine.
const LIMIT: Duration = Duration::from_mins(2);

/// So high that no line scrolls away.
const ROWS: u16 = 400;

/// The binary, without environment variables that change its output.
fn leasehold(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(arguments).env("TERM", "xterm").env("HOME", "/nonexistent").stdin(Stdio::null());
    for name in
        ["RUST_LOG", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI", "AWS_PROFILE", "AWS_REGION"]
    {
        command.env_remove(name);
    }
    command
}

/// `leasehold local` with the flags, on a folder.
fn local(inbox: &Path, flags: &str, script: &str) -> Command {
    let mut command = leasehold(&["local"]);
    command.arg(inbox).args(flags.split_whitespace()).args([
        "--retry-min",
        "100ms",
        "--retry-max",
        "100ms",
    ]);
    command.args(["--", "sh", "-c", script]);
    command
}

fn inbox(files: &[&str]) -> TempDir {
    let inbox = tempfile::tempdir().unwrap();
    for file in files {
        let path = inbox.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    inbox
}

fn output(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// The binary at a terminal.
struct TerminalSession {
    child: Child,
    keyboard: File,
    screen: Arc<(Mutex<Screen>, Condvar)>,
}

struct Screen {
    written: Vec<u8>,
    shown: vt100::Parser,
    has_ended: bool,
}

impl TerminalSession {
    fn start(columns: u16, mut command: Command) -> Self {
        let size = Winsize { ws_row: ROWS, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).unwrap();
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        command.stdin(end(&slave)).stdout(end(&slave)).stderr(Stdio::from(slave));
        let child = command.spawn().unwrap();
        let (keyboard, mut output) = (File::from(master.try_clone().unwrap()), File::from(master));
        let shown =
            vt100::Parser::new(NonZero::new(ROWS).unwrap(), NonZero::new(columns).unwrap(), 0);
        let screen = Arc::new((
            Mutex::new(Screen { written: Vec::new(), shown, has_ended: false }),
            Condvar::new(),
        ));
        let reading = screen.clone();
        thread::spawn(move || {
            let (screen, changed) = &*reading;
            let mut some = [0; 4096];
            // A terminal without a writer returns an error.
            while let Ok(read @ 1..) = output.read(&mut some) {
                let mut screen = screen.lock().unwrap();
                screen.written.extend_from_slice(&some[..read]);
                screen.shown.process(&some[..read]);
                changed.notify_all();
            }
            screen.lock().unwrap().has_ended = true;
            changed.notify_all();
        });
        Self { child, keyboard, screen }
    }

    fn wait(&self, what: &str, until: impl Fn(&Screen) -> bool) {
        let (screen, changed) = &*self.screen;
        let waiting = changed
            .wait_timeout_while(screen.lock().unwrap(), LIMIT, |screen| !until(screen))
            .unwrap();
        assert!(
            !waiting.1.timed_out(),
            "timed out waiting for {what}:\n{}",
            waiting.0.shown.screen().contents()
        );
    }

    fn shows(&self, text: &str) {
        self.wait(text, |screen| screen.shown.screen().contents().contains(text));
    }

    /// As a terminal does: it shows `^C` and sends the signal.
    fn ctrl_c(&mut self) {
        self.keyboard.write_all(b"\x03").unwrap();
        self.shows("^C");
        self.signal(Signal::SIGINT);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn ends(mut self) -> Seen {
        self.wait("its end", |screen| screen.has_ended);
        let code = self.child.wait().unwrap().code();
        let screen = self.screen.0.lock().unwrap();
        let written = String::from_utf8_lossy(&screen.written).into_owned();
        Seen { code, written, screen: screen.shown.screen().contents() }
    }
}

impl Drop for TerminalSession {
    fn drop(&mut self) {
        // If the process is still running here, the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Seen {
    code: Option<i32>,
    /// All output.
    written: String,
    /// The final content of the screen.
    screen: String,
}

fn seen(columns: u16, command: Command) -> Seen {
    TerminalSession::start(columns, command).ends()
}

#[test]
fn a_closed_pipe_changes_nothing() {
    let inbox = inbox(&["a.csv"]);
    let check = || {
        let mut command =
            leasehold(&["check", "--manifest", "deploy/kustomize/base/scaled-job.yaml"]);
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command
    };
    let local = |flags: &'static str| local(inbox.path(), flags, "seq 20000");
    let commands: [&dyn Fn() -> Command; 8] = [
        &|| leasehold(&["schema"]),
        &|| leasehold(&["--help"]),
        &|| leasehold(&["run", "--help"]),
        &|| leasehold(&["--version"]),
        &|| leasehold(&["run"]),
        &check,
        &|| local(""),
        &|| local("--log-format text -v"),
    ];
    for command in commands {
        let closed_pipe = || Stdio::from(std::io::pipe().unwrap().1);
        let code = command().output().unwrap().status.code();
        let mut unread = command();
        let stderr = unread.stdout(closed_pipe()).stderr(Stdio::piped()).output().unwrap();
        let complaints = String::from_utf8(stderr.stderr).unwrap();
        assert_eq!(stderr.status.code(), code, "{unread:?}: {complaints}");
        assert!(
            !complaints.contains("panicked") && !complaints.contains("a bug"),
            "{unread:?}: {complaints}"
        );
        let status = command().stdout(closed_pipe()).stderr(closed_pipe()).status().unwrap();
        assert_eq!(status.code(), code, "{unread:?}");
    }
}

#[test]
fn bars_disappear_and_the_summary_is_last() {
    let inbox = inbox(&["a.csv", "below/b.csv", "c.csv", "d.csv"]);
    for (columns, script, succeeded) in [(100, "exit 3", 0), (44, "exit 3", 0), (100, "exit 0", 4)]
    {
        let seen = seen(columns, local(inbox.path(), "--concurrency 2 -v", script));
        assert!(
            seen.written.contains("of 4 files \r") || seen.written.contains("of 4 files  "),
            "{}",
            seen.written
        );
        assert!(!seen.screen.contains('%') && !seen.screen.contains("===="), "{}", seen.screen);
        assert_eq!(seen.screen.matches("of 4 files").count(), 1, "{}", seen.screen);
        let (_, summary) = seen.screen.split_once(" FILE ").expect("the table");
        assert!(
            summary.contains(&format!("\n{succeeded} of 4 files succeeded")),
            "{}",
            seen.screen
        );
        for of_the_log in ["message", "INFO", "WARN", "ERROR"] {
            assert!(!summary.contains(of_the_log), "{}", seen.screen);
        }
    }
}

#[test]
fn each_line_names_its_file() {
    let inbox = inbox(&["a.csv", "below/b.csv"]);
    let seen = seen(80, local(inbox.path(), "--concurrency 2", "echo hello; echo oops >&2"));
    for line in
        ["a.csv | hello\n", "a.csv ! oops\n", "below/b.csv | hello\n", "below/b.csv ! oops\n"]
    {
        assert!(seen.screen.contains(line), "{}", seen.screen);
    }
    let (_, stdout, stderr) =
        output(local(inbox.path(), "--log-format text -q", "echo hello; exit 3"));
    assert!(!stderr.contains("hello") && stderr.contains("ERROR"), "{stderr}");
    assert_eq!(stdout, "0 of 2 files succeeded\n2 failed\n");
}

#[test]
fn the_first_ctrl_c_waits_and_the_second_kills() {
    let (inbox, notes) = (inbox(&["a.csv", "b.csv", "c.csv"]), tempfile::tempdir().unwrap());
    let script = format!(
        r#"trap "" TERM; setsid sleep 600 & echo $! > "{}/$JOB_KEY"; echo ready $JOB_KEY; wait"#,
        notes.path().display()
    );
    let flags = "--concurrency 2 --termination-grace 10m";
    let mut run = TerminalSession::start(80, local(inbox.path(), flags, &script));
    run.shows("ready a.csv");
    run.shows("ready b.csv");
    run.ctrl_c();
    run.shows("shutting down: waiting up to 590 s for the command; press Ctrl-C again to kill it");
    run.shows("0% a.csv");
    run.ctrl_c();
    let seen = run.ends();
    assert_eq!(seen.code, Some(130), "{}", seen.screen);
    assert!(
        seen.screen.trim_end().ends_with("0 of 3 files succeeded\n2 stopped, 1 not started"),
        "{}",
        seen.screen
    );
    assert!(!seen.screen.contains('%'), "a bar remains: {}", seen.screen);
    for file in ["a.csv", "b.csv"] {
        let pid: i32 =
            std::fs::read_to_string(notes.path().join(file)).unwrap().trim().parse().unwrap();
        // KILL was sent; on a busy machine the kernel may be slow.
        let has_ended = (0..6000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            !is_alive(pid)
        });
        assert!(has_ended, "a descendant of the command for {file} is alive");
    }
}

#[test]
fn the_exit_code_shows_the_signal() {
    let inbox = inbox(&["a.csv"]);
    // Under nohup(1), the program ignores SIGHUP, as these tests do then.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    let ignores_hangup = u64::from_str_radix(ignored, 16).unwrap() & 1 == 1;
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        if signal == Signal::SIGHUP && ignores_hangup {
            continue;
        }
        let run = TerminalSession::start(80, local(inbox.path(), "", "echo ready; exec sleep 600"));
        run.shows("ready");
        run.signal(signal);
        let seen = run.ends();
        assert_eq!(seen.code, Some(code), "{}", seen.screen);
        assert!(seen.screen.contains("shutting down: waiting up to 20 s"), "{}", seen.screen);
    }
}

#[test]
fn colours_are_for_terminals_by_default() {
    let inbox = inbox(&["a.csv"]);
    let with = |script: &str, variables: &[(&str, &str)]| {
        let mut command = local(inbox.path(), "-v", script);
        command.envs(variables.iter().copied());
        command
    };
    let (red, green) = ("\u{1b}[31mERROR", "\u{1b}[32mINFO");
    let (red_cell, green_cell) = ("\u{1b}[38;5;9m", "\u{1b}[38;5;10m");
    let failed = seen(200, with("exit 3", &[])).written;
    assert!(
        failed.contains(red) && failed.contains(red_cell) && failed.contains("\u{1b}[33mWARN"),
        "{failed}"
    );
    let succeeded = seen(200, with("exit 0", &[])).written;
    assert!(succeeded.contains(green) && succeeded.contains(green_cell), "{succeeded}");
    let plain = seen(200, with("exit 3", &[("NO_COLOR", "1")])).written;
    assert!(plain.contains("ERROR") && !plain.contains("\u{1b}[3"), "{plain}");

    let mut text = with("exit 3", &[]);
    text.env("LEASEHOLD_LOG_FORMAT", "text");
    let (_, stdout, stderr) = output(text);
    assert!(!stdout.contains('\u{1b}') && !stderr.contains('\u{1b}'), "{stdout}{stderr}");
    let (_, stdout, stderr) =
        output(with("exit 3", &[("CLICOLOR_FORCE", "1"), ("LEASEHOLD_LOG_FORMAT", "text")]));
    assert!(stdout.contains(red_cell) && stderr.contains(red), "{stdout}{stderr}");

    let refused = seen(80, leasehold(&["local", "/nonexistent", "--", "true"]));
    assert!(
        refused.written.contains("\u{1b}[31mleasehold:\u{1b}[0m /nonexistent"),
        "{}",
        refused.written
    );
}

#[test]
fn only_failures_have_a_row_unless_verbose() {
    let names: Vec<_> = (0..30).map(|n| format!("file-{n:02}.csv")).collect();
    let inbox = inbox(&names.iter().map(|name| &**name).collect::<Vec<_>>());
    let script = r#"[ "$JOB_KEY" != file-07.csv ]"#;
    let normal = seen(80, local(inbox.path(), "--concurrency 4", script));
    let (_, summary) = normal.screen.split_once(" FILE ").expect("the table");
    let rows: Vec<_> = summary.lines().filter(|line| line.contains(".csv")).collect();
    assert!(
        matches!(&rows[..], [row] if row.contains("file-07.csv") && row.contains("dead letter: command_failed"))
    );
    assert!(
        !normal.screen.contains("message deleted") && normal.screen.contains("message kept"),
        "{}",
        normal.screen
    );
    assert!(
        summary.trim_end().ends_with("29 of 30 files succeeded\n1 failed"),
        "{}",
        normal.screen
    );

    let all = seen(80, local(inbox.path(), "--concurrency 4 -v", "true"));
    let (log, summary) = all.screen.split_once(" FILE ").expect("the table");
    assert_eq!(summary.lines().filter(|line| line.contains(".csv")).count(), 30, "{}", all.screen);
    assert!(log.contains("message deleted"), "{}", all.screen);
    let nothing = seen(80, local(inbox.path(), "--concurrency 4", "true"));
    assert_eq!(nothing.screen.trim(), "30 of 30 files succeeded");
}

#[test]
fn the_table_fits_a_narrow_terminal() {
    let inbox = inbox(&["a/name/that/is/longer/than/the/terminal/is/wide.csv", "b.csv"]);
    let narrow = seen(44, local(inbox.path(), "", "exit 3"));
    let (_, table) = narrow.screen.split_once(" FILE ").expect("the table");
    let names = table.lines().filter(|line| line.contains(".csv")).collect::<Vec<_>>();
    assert!(names.len() == 2 && names[0].contains('…'), "{table}");
    assert_eq!(table.matches("dead letter:").count(), 2, "{table}");
    assert_eq!(table.matches("command_failed").count(), 2, "{table}");
    let wide = seen(120, local(inbox.path(), "", "exit 3"));
    assert!(
        wide.screen.contains("terminal/is/wide.csv  dead letter: command_failed  3 "),
        "{}",
        wide.screen
    );
}

#[test]
fn a_file_without_a_matching_event_is_ignored() {
    let inbox = inbox(&["a.csv", "b.csv"]);
    let (code, stdout, _) =
        output(local(inbox.path(), "--events ObjectRemoved:* --input none -v", "exit 3"));
    assert_eq!(code, Some(0), "{stdout}");
    assert!(
        stdout.ends_with("0 of 2 files succeeded\n2 ignored\n")
            && stdout.contains("a.csv  ignored"),
        "{stdout}"
    );
}

#[test]
fn the_inbox_may_be_a_file_and_must_not_contain_the_outbox() {
    let inbox = inbox(&["a.csv", ".hidden", ".git/config", "b/c.csv"]);
    std::os::unix::fs::symlink("a.csv", inbox.path().join("link")).unwrap();
    let (code, stdout, _) = output(local(inbox.path(), "", "true"));
    assert_eq!(code, Some(0));
    assert_eq!(stdout, "2 of 2 files succeeded\n3 skipped: hidden files, links and pipes\n");
    let (code, stdout, _) =
        output(local(&inbox.path().join("a.csv"), "", r#"[ "$JOB_KEY" = a.csv ]"#));
    assert_eq!((code, &*stdout), (Some(0), "1 of 1 files succeeded\n"));

    for outbox in ["", "b", "new"] {
        let outbox = inbox.path().join(outbox).display().to_string();
        let (code, stdout, stderr) =
            output(local(inbox.path(), &format!("--outbox {outbox}"), "true"));
        assert_eq!((code, &*stdout), (Some(78), ""), "{stderr}");
        assert!(stderr.contains("--outbox") && stderr.contains("inbox"), "{stderr}");
    }
    assert!(!inbox.path().join("new").exists());
}

#[test]
fn an_invalid_log_filter_is_refused() {
    let inbox = inbox(&["a.csv"]);
    let run = || leasehold(&["run", "--queue-url", "http://127.0.0.1:9/1/q", "--", "true"]);
    let sweep = || leasehold(&["sweep", "--pushgateway", "http://127.0.0.1:9"]);
    let commands: [&dyn Fn() -> Command; 3] = [&run, &sweep, &|| local(inbox.path(), "", "true")];
    for command in commands {
        let mut command = command();
        command.env("RUST_LOG", "lout");
        let (code, stdout, stderr) = output(command);
        assert_eq!((code, &*stdout), (Some(78), ""), "{stderr}");
        assert!(stderr.contains(r#"RUST_LOG="lout""#), "{stderr}");
    }
    for (filter, is_asked_for) in [("debug", false), ("debug,ractor=debug", true)] {
        let mut command = local(inbox.path(), "", "true");
        command.env("RUST_LOG", filter);
        let (code, _, stderr) = output(command);
        assert_eq!(code, Some(0));
        assert_eq!(stderr.contains(r#""name":"Actor""#), is_asked_for, "{filter}: {stderr}");
        assert!(
            stderr.contains(r#""level":"DEBUG""#)
                && stderr.contains(r#""target":"leasehold::actors"#),
            "{stderr}"
        );
    }
}

#[test]
fn a_missing_setting_is_reported_in_one_line() {
    let run = |region: Option<&str>| {
        let mut command =
            leasehold(&["run", "--queue-url", "http://127.0.0.1:9/1/q", "--", "true"]);
        // No metadata service listens there.
        command
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
            .env_remove("AWS_EC2_METADATA_DISABLED");
        command.envs(region.map(|region| ("AWS_REGION", region)));
        output(command)
    };
    let (code, stdout, stderr) = run(None);
    assert_eq!((code, &*stdout), (Some(78), ""), "{stderr}");
    assert_eq!(stderr, "leasehold: the AWS region is not set: set AWS_REGION\n");
    let (code, stdout, _) = run(Some("us-east-1"));
    assert_eq!(code, Some(78), "{stdout}");
    let last = stdout.lines().last().expect("a record");
    assert!(last.contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{stdout}");
    assert!(stdout.lines().all(|line| line.len() < 500), "{stdout}");
}

#[test]
fn a_sweep_without_a_pushgateway_is_refused() {
    let (code, stdout, stderr) = output(leasehold(&["sweep"]));
    assert_eq!(
        (code, &*stdout, &*stderr),
        (Some(78), "", "leasehold: --pushgateway is required\n")
    );
}

#[test]
fn records_begin_with_the_most_important_fields() {
    let inbox = inbox(&["a.csv"]);
    let (_, _, json) = output(local(inbox.path(), "", "echo hello; exit 3"));
    let kept = json.lines().find(|line| line.contains("message kept")).expect("a kept message");
    let names: Vec<_> =
        kept.split("\",\"").map(|field| field.split('"').find(|part| part.len() > 1)).collect();
    let first: Vec<_> = names.into_iter().flatten().take(5).collect();
    assert_eq!(first, ["timestamp", "level", "message", "outcome", "key"], "{kept}");
    let line: serde_json::Value = serde_json::from_str(
        json.lines().find(|line| line.contains("hello")).expect("the logged line"),
    )
    .unwrap();
    assert_eq!(
        (&line["key"], &line["stream"], &line["target"]),
        (&"a.csv".into(), &"stdout".into(), &"command".into())
    );
    assert!(
        line["job_id"].is_string() && line["pod_name"].is_string() && line["timestamp"].is_string(),
        "{line}"
    );

    let (_, _, text) = output(local(inbox.path(), "--log-format text", "true"));
    let record = text.lines().next().expect("a record");
    let time: String =
        record.chars().take(13).map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(time, "00:00:00Z INF", "{record}");
}
