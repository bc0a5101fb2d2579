//! The server is the process that the command starts: the real binary and a real server.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::cloud::{Cloud, eventually, is_alive};
use crate::support::journey::MINUTE;

const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/http_handler/server.py");

/// A folder with an inbox, and a port for the server.
struct Fixture {
    home: TempDir,
    port: u16,
}

struct ExitedRun {
    code: Option<i32>,
    log: String,
}

fn free_port() -> u16 {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    free.local_addr().unwrap().port()
}

impl Fixture {
    fn new(files: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("inbox")).unwrap();
        for file in files {
            fs::write(home.path().join("inbox").join(file), "1,2").unwrap();
        }
        Self { home, port: free_port() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Runs `leasehold local` with the handler, and this command as the server.
    async fn local(&self, flags: &str, command: &[&str]) -> ExitedRun {
        let mut program = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        program.arg("local").arg(self.path("inbox")).args(["-v", "--log-format", "text"]);
        if !flags.contains("--handler") {
            program.args(["--handler", &format!("http://127.0.0.1:{}/work", self.port)]);
        }
        program.args(["--retry-min", "0s", "--retry-max", "0s"]).args(flags.split_whitespace());
        program.args(["--outbox".as_ref(), self.path("outbox").as_os_str()]);
        if !command.is_empty() {
            program.arg("--").args(command);
        }
        program.env("TEST_RUNS", self.path("runs")).current_dir(self.home.path());
        let output = timeout(5 * MINUTE, program.kill_on_drop(true).output());
        let output = output.await.expect("the program exits within the limit").unwrap();
        let log = [output.stderr, output.stdout].concat();
        ExitedRun { code: output.status.code(), log: String::from_utf8_lossy(&log).into_owned() }
    }

    async fn serve(&self, flags: &str) -> ExitedRun {
        self.local(flags, &["python3", SERVER, &self.port.to_string()]).await
    }

    /// The name of the object and the server's process, for each request.
    fn runs(&self) -> Vec<(String, i32)> {
        let runs = fs::read_to_string(self.path("runs")).unwrap_or_default();
        let run = |line: &str| {
            let (name, pid) = line.split_once(' ').unwrap();
            (name.to_owned(), pid.parse().unwrap())
        };
        runs.lines().map(run).collect()
    }

    fn processes(&self) -> usize {
        let mut pids: Vec<_> = self.runs().into_iter().map(|(_, pid)| pid).collect();
        pids.sort_unstable();
        pids.dedup();
        assert!(pids.iter().all(|pid| !is_alive(*pid)), "a server still runs");
        pids.len()
    }
}

#[tokio::test]
async fn one_process_works_on_all_messages_and_ends_with_the_run() {
    let fixture = Fixture::new(&["a", "b-result", "progress"]);
    let exited = fixture.serve("").await;
    assert_eq!((exited.code, fixture.runs().len()), (Some(0), 3), "{}", exited.log);
    assert_eq!(fixture.processes(), 1, "{}", exited.log);
    assert_eq!(fs::read_to_string(fixture.path("outbox/b-result/size")).unwrap(), "3");
    // The output of the server belongs to the message that it works on.
    for key in ["a", "b-result"] {
        assert!(exited.log.contains(&format!("{key} | working on {key}")), "{}", exited.log);
    }
    for metric in ["rows_by_put", "rows_by_file"] {
        assert!(exited.log.contains(metric), "{metric}: {}", exited.log);
    }
}

#[tokio::test]
async fn a_crash_fails_one_message_and_the_next_one_gets_a_new_process() {
    let fixture = Fixture::new(&["a", "crash", "z"]);
    let exited = fixture.serve("").await;
    assert_eq!((exited.code, fixture.runs().len()), (Some(0), 4), "{}", exited.log);
    assert_eq!(fixture.processes(), 2, "{}", exited.log);
    let why = "the server ended with exit code 0 before its answer was complete";
    assert!(exited.log.contains(why), "{}", exited.log);
}

#[tokio::test]
async fn a_crash_after_the_status_of_a_success_is_a_failure() {
    let fixture = Fixture::new(&["crash-in-body", "crash-in-head"]);
    let exited = fixture.serve("").await;
    assert_eq!((exited.code, fixture.runs().len()), (Some(0), 4), "{}", exited.log);
    assert_eq!(fixture.processes(), 3, "{}", exited.log);
    let why = "the server ended with exit code 0 before its answer was complete";
    assert!(exited.log.contains(why), "{}", exited.log);
}

#[tokio::test]
async fn a_crash_in_another_container_after_the_status_of_a_success_is_a_failure() {
    let fixture = Fixture::new(&["crash-in-head"]);
    let mut server = Command::new("python3");
    server.args([SERVER, &fixture.port.to_string()]).env("TEST_RUNS", fixture.path("runs"));
    let _server = server.kill_on_drop(true).spawn().unwrap();
    let exited = fixture.local("--max-receive-count 1", &[]).await;
    assert_eq!((exited.code, fixture.runs().len()), (Some(1), 1), "{}", exited.log);
    let why = "the server ended before its answer was complete";
    assert!(exited.log.contains(why), "{}", exited.log);
}

#[tokio::test]
async fn a_slow_start_has_its_own_limit_and_is_not_a_stall() {
    let fixture = Fixture::new(&["a"]);
    let server = format!("sleep 5; exec python3 {SERVER} {}", fixture.port);
    let flags = "--stall-timeout 2s --max-receive-count 1";
    let exited = fixture.local(flags, &["sh", "-c", &server]).await;
    assert_eq!((exited.code, fixture.runs().len()), (Some(0), 1), "{}", exited.log);
}

#[tokio::test]
async fn a_hanging_server_is_ended_and_started_again() {
    let fixture = Fixture::new(&["hang"]);
    let exited = fixture.serve("--max-duration 5s").await;
    assert_eq!((exited.code, fixture.runs().len()), (Some(0), 2), "{}", exited.log);
    assert_eq!(fixture.processes(), 2, "{}", exited.log);
    assert!(exited.log.contains("timed_out"), "{}", exited.log);
}

#[tokio::test]
async fn a_lost_lease_ends_the_work_of_the_server() {
    let fixture = Fixture::new(&["hang"]);
    // The lease is lost after a third of its length: enough time for the start of the server.
    let exited = fixture.serve("--rehearse lost-lease --visibility-timeout 45s").await;
    assert_eq!((exited.code, fixture.runs().len()), (Some(0), 2), "{}", exited.log);
    assert_eq!(fixture.processes(), 2, "{}", exited.log);
    assert!(exited.log.contains("lease_lost"), "{}", exited.log);
}

#[tokio::test]
async fn lanes_share_the_process_and_a_halted_request_does_not_end_the_others() {
    let fixture = Fixture::new(&["a", "hang", "slow", "z"]);
    let exited = fixture.serve("--concurrency 3 --max-duration 10s").await;
    assert_eq!((exited.code, fixture.runs().len()), (Some(0), 5), "{}", exited.log);
    assert_eq!(fixture.processes(), 2, "{}", exited.log);
}

#[tokio::test]
async fn a_server_that_ends_at_its_start_is_not_started_without_end() {
    let fixture = Fixture::new(&["a", "b", "c", "d"]);
    let exited =
        fixture.local("", &["sh", "-c", "echo x >> starts; echo no model >&2; exit 3"]).await;
    assert_eq!(exited.code, Some(1), "{}", exited.log);
    let starts = fs::read_to_string(fixture.path("starts")).unwrap();
    assert_eq!(starts.lines().count(), 3, "{}", exited.log);
    let why = "the server ended with exit code 3 before it accepted connections";
    assert!(exited.log.contains(why) && exited.log.contains("no model"), "{}", exited.log);
}

#[tokio::test]
async fn a_port_that_another_server_has_is_an_error() {
    let fixture = Fixture::new(&["a"]);
    let _other = TcpListener::bind((Ipv4Addr::LOCALHOST, fixture.port)).unwrap();
    let exited = fixture.serve("--max-receive-count 1").await;
    assert_eq!((exited.code, fixture.runs().len()), (Some(1), 0), "{}", exited.log);
    assert!(exited.log.contains("another server accepts connections at"), "{}", exited.log);
}

#[tokio::test]
async fn a_stop_ends_the_server_and_deletes_nothing() {
    for is_working in [true, false] {
        let cloud = Cloud::new(5).await;
        cloud.put("first", b"x").await;
        let port = free_port();
        let flags = format!("--handler http://127.0.0.1:{port}/ --max-messages 2 --wait 20s");
        let mut command = cloud.command(&[], &flags, &format!("exec python3 {SERVER} {port}"));
        command.env("TEST_RUNS", cloud.dir.path().join("runs"));
        let run = crate::support::cloud::Leasehold::start(command);
        let runs = async |count: usize| {
            let last = eventually("the server got a request", async || {
                let runs = fs::read_to_string(cloud.dir.path().join("runs")).ok()?;
                runs.lines().nth(count - 1).filter(|_| runs.ends_with('\n')).map(str::to_owned)
            });
            last.await.rsplit_once(' ').unwrap().1.parse::<i32>().unwrap()
        };
        let mut server = runs(1).await;
        eventually("the first message is deleted", async || {
            (cloud.counts().await == (0, 0)).then_some(())
        })
        .await;
        if is_working {
            cloud.put("hang", b"x").await;
            server = runs(2).await;
        }
        run.signal(Signal::SIGTERM);
        let exited = run.wait().await;
        let code = if is_working { 143 } else { 0 };
        assert_eq!(exited.code(), code, "{}{}", exited.stdout, exited.stderr);
        assert!(!is_alive(server), "the server still runs");
        let remaining = if is_working { (1, 0) } else { (0, 0) };
        assert_eq!(cloud.counts().await, remaining, "{}", exited.stdout);
    }
}

#[tokio::test]
async fn another_container_may_have_the_server() {
    let fixture = Fixture::new(&["a", "b"]);
    let mut server = Command::new("python3");
    server.args([SERVER, &fixture.port.to_string()]).env("TEST_RUNS", fixture.path("runs"));
    let mut server = server.env("TEST_START", "1").kill_on_drop(true).spawn().unwrap();
    let exited = fixture.local("", &[]).await;
    assert_eq!((exited.code, fixture.runs().len()), (Some(0), 2), "{}", exited.log);
    assert!(server.try_wait().unwrap().is_none(), "it is not leasehold's process");
    server.kill().await.unwrap();
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_start() {
    let fixture = Fixture::new(&["a"]);
    for (flags, command, why) in [
        ("--input stdin", &["x"][..], "--input stdin"),
        ("--permanent-exit-codes 66", &["x"], "--permanent-http-codes"),
        ("--permanent-http-codes 200", &[], "300 to 599"),
        ("--ready-timeout 0s", &[], "--ready-timeout"),
        ("", &["sh", "-c", "x", "sh", "{key}"], "placeholder"),
        ("--handler http://10.0.0.1/", &[], "127.0.0.1"),
        ("--handler command --http-body job", &["x"], "--http-body"),
        ("--handler command", &[], "COMMAND"),
    ] {
        let exited = fixture.local(flags, command).await;
        assert_eq!(exited.code, Some(78), "{flags}: {}", exited.log);
        assert!(exited.log.contains(why), "{flags}: {}", exited.log);
    }
}

/// The example's server in the place of its sidecar, and the flags of its manifest.
#[tokio::test]
async fn the_example_counts_words_and_refuses_other_files() {
    let fixture = Fixture::new(&["text"]);
    fs::write(fixture.path("inbox/binary"), b"\xff\xfe").unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/workers/http-server");
    let manifest = fs::read_to_string(format!("{example}/scaledjob.yaml")).unwrap();
    assert!(manifest.contains("--permanent-http-codes, \"422\""), "{manifest}");
    let mut server = Command::new("python3");
    server.arg(format!("{example}/server.py")).arg(fixture.port.to_string());
    let _server = server.kill_on_drop(true).spawn().unwrap();
    let exited = fixture.local("--permanent-http-codes 422 --max-receive-count 2", &[]).await;
    assert_eq!(exited.code, Some(1), "{}", exited.log);
    let words = fs::read_to_string(fixture.path("outbox/text/words.json")).unwrap();
    assert_eq!(words, r#"{"words": 1, "rare": 0}"#);
    assert!(exited.log.contains("dead letter: permanent"), "{}", exited.log);
    assert!(exited.log.contains("not UTF-8"), "{}", exited.log);

    let mut check = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    check.args(["check", "--manifest", &format!("{example}/scaledjob.yaml")]);
    let checked = check.env_clear().output().await.unwrap();
    let findings = String::from_utf8(checked.stdout).unwrap();
    assert!(findings.contains("errors: 0, warnings: 0"), "{findings}");
}
