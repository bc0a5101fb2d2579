//! The memory limit: the guard on a paused clock, and real cgroups of this machine, version 1 or 2.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::adapters::memory_limit::{MemoryCgroup, MemoryLimited};
use leasehold::job::outcome::Exit;
use leasehold::ports::{Activity, Command, Exited, OutOfMemory, Runner, StartError};
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::cloud::{Cloud, ExitedRun, Leasehold};
use crate::support::command;

const LIMIT: u64 = 1000 << 20;

/// Runs until it is halted, then for another minute.
#[derive(Default)]
struct Stubborn {
    is_terminated: AtomicBool,
}

#[async_trait]
impl Runner for Stubborn {
    async fn run(
        &self,
        _: Command,
        halt: CancellationToken,
        _: Activity,
    ) -> Result<Exited, StartError> {
        halt.cancelled().await;
        self.is_terminated.store(true, Ordering::Relaxed);
        sleep(Duration::from_mins(1)).await;
        Ok(Exited { exit: Exit::Code(143), ..Exited::killed() })
    }
}

struct Container {
    root: TempDir,
    runner: Arc<Stubborn>,
}

impl Container {
    fn new() -> Self {
        let this = Self { root: tempfile::tempdir().unwrap(), runner: Arc::default() };
        this.write("memory.max", &LIMIT.to_string());
        this.write("memory.events", "oom_kill 0\n");
        this.uses(1, 0);
        this
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.root.path().join(name), text).unwrap();
    }

    /// In percent of the limit.
    fn uses(&self, anonymous: u64, page_cache: u64) {
        let bytes = |percent: u64| LIMIT / 100 * percent;
        self.write("memory.stat", &format!("inactive_file {}\n", bytes(page_cache)));
        self.write("memory.current", &bytes(anonymous + page_cache).to_string());
    }

    async fn run(&self, guard: Option<u8>) -> Exited {
        let cgroup = MemoryCgroup::find(self.root.path(), "0::/").unwrap();
        let command = command("true");
        let limited = MemoryLimited::new(self.runner.clone(), cgroup, guard);
        limited.run(command, CancellationToken::new(), Activity::default()).await.unwrap()
    }

    fn is_terminated(&self) -> bool {
        self.runner.is_terminated.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_at_the_guard_gets_sigterm() {
    let container = Container::new();
    let grows = async {
        container.uses(89, 10);
        sleep(Duration::from_secs(5)).await;
        assert!(!container.is_terminated());
        container.uses(90, 5);
        sleep(Duration::from_secs(1)).await;
        assert!(container.is_terminated());
    };
    let (exited, ()) = tokio::join!(container.run(Some(90)), grows);
    assert_eq!(exited.exit, Exit::Code(143));
    let Some(OutOfMemory::Guard(why)) = exited.out_of_memory else { panic!("{exited:?}") };
    assert!(why.starts_with("900.0 MiB of 1000.0 MiB are in use"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_command_that_grows_after_sigterm_is_killed() {
    let container = Container::new();
    container.uses(92, 0);
    let grows = async {
        sleep(Duration::from_secs(5)).await;
        assert!(container.is_terminated());
        container.uses(95, 0);
    };
    let began_at = tokio::time::Instant::now();
    let (exited, ()) = tokio::join!(container.run(Some(90)), grows);
    assert_eq!(exited.exit, Exit::Signal(9));
    assert!(began_at.elapsed() < Duration::from_secs(10), "within the grace of a minute");
}

#[tokio::test(start_paused = true)]
async fn the_page_cache_never_trips_the_guard() {
    let container = Container::new();
    container.uses(50, 50);
    let hour = tokio::time::timeout(Duration::from_hours(1), container.run(Some(90)));
    assert!(hour.await.is_err(), "it runs on");
    assert!(!container.is_terminated());
}

/// A memory cgroup with a limit, removed at the end. As in a container, leasehold and its command
/// are in it together.
struct Cgroup {
    folder: PathBuf,
}

const MEBIBYTE: u64 = 1 << 20;

impl Cgroup {
    fn new(name: &str, limit: Option<u64>) -> Self {
        let root = PathBuf::from("/sys/fs/cgroup");
        let is_v1 = root.join("memory/memory.limit_in_bytes").exists();
        let (root, file) = if is_v1 {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            (root, "memory.max")
        };
        let folder = root.join(format!("leasehold-{name}-{}", std::process::id()));
        fs::create_dir(&folder).expect("only root may create a cgroup");
        if let Some(limit) = limit {
            fs::write(folder.join(file), limit.to_string()).expect("the controller is enabled");
        }
        Self { folder }
    }

    /// Sends one message, and runs leasehold on it until it exits.
    async fn run(&self, flags: &str, script: &str) -> (Cloud, ExitedRun) {
        let cloud = Cloud::new(5).await;
        cloud.put("in/key", b"x").await;
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.folder.display());
        let exited = Leasehold::start(cloud.command(&["sh", "-c", &enter, "sh"], flags, script))
            .wait()
            .await;
        (cloud, exited)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It is busy until the kernel has reaped the last process.
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Takes memory, a few MiB at a time, up to 300 MiB.
const GREEDY: &str = r"exec python3 -c '
import time
taken = []
while len(taken) < 75:
    taken.append(bytearray(4 << 20))
    time.sleep(PAUSE)
'";

#[tokio::test]
async fn a_command_that_reaches_the_guard_is_kept_with_its_reason() {
    let cgroup = Cgroup::new("guard", Some(200 * MEBIBYTE));
    let script = GREEDY.replace("PAUSE", "0.02");
    let (cloud, exited) = cgroup.run("--memory-guard 70% --retry-min 0s", &script).await;
    assert_eq!(exited.status.code(), Some(1), "{:?}", exited.log);
    let kept = exited.record("message kept");
    assert_eq!(kept["outcome"], "out_of_memory");
    let error = kept["error"].as_str().unwrap();
    assert!(error.contains("of 200.0 MiB are in use"), "{error}");
    // SIGTERM, which Python does not handle.
    assert_eq!(kept["signal"], 15, "{kept}");
    assert_eq!(cloud.counts().await, (1, 0), "the message is released");
}

#[tokio::test]
async fn files_that_a_command_writes_do_not_trip_the_guard() {
    let cgroup = Cgroup::new("files", Some(100 * MEBIBYTE));
    let script = "head -c 300M /dev/zero > big && cat big > /dev/null; rm big";
    let (_cloud, exited) = cgroup.run("--memory-guard 80%", script).await;
    assert_eq!(exited.record("message deleted")["outcome"], "succeeded");
}

/// Where the kernel kills only the command (cgroup v1, or v2 without memory.oom.group).
#[tokio::test]
async fn a_command_that_the_kernel_killed_ran_out_of_memory() {
    let cgroup = Cgroup::new("kill", Some(100 * MEBIBYTE));
    let (_cloud, exited) = cgroup.run("", &GREEDY.replace("PAUSE", "0")).await;
    let kept = exited.record("message kept");
    assert_eq!((&kept["outcome"], &kept["signal"]), (&"out_of_memory".into(), &9.into()));
    let error = kept["error"].as_str().unwrap();
    assert!(error.contains("the kernel killed a process at the container's limit of 100.0 MiB"));
}

/// The command noticed that the kernel killed its child, and decided.
#[tokio::test]
async fn an_exit_code_that_decides_counts_more_than_a_kill_of_the_kernel() {
    for (code, outcome) in [(65, "permanent"), (75, "temporary"), (3, "out_of_memory")] {
        let cgroup = Cgroup::new(&format!("decides-{code}"), Some(100 * MEBIBYTE));
        let child = GREEDY.replace("PAUSE", "0");
        let script = format!(
            "({child}); [ $? = 137 ] || exit 1; echo '{{\"retry_after\":\"1h\"}}' > \"$JOB_RESULT_FILE\"; exit {code}"
        );
        let (cloud, exited) = cgroup.run("--retry-min 1s --retry-max 1s", &script).await;
        let kept = exited.record("message kept");
        let ended = (&kept["outcome"], &kept["exit_code"]);
        assert_eq!(ended, (&outcome.into(), &code.into()), "{}", exited.stdout);
        if code == 75 {
            let next = kept["next"].as_str().unwrap();
            assert!(next.starts_with("attempt 1 of 5, visible again "), "{next}");
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(cloud.counts().await, (0, 1), "it is hidden for its own delay");
        }
    }
}

#[tokio::test]
async fn a_guard_without_a_limit_is_refused_at_the_start() {
    let cgroup = Cgroup::new("none", None);
    let (cloud, exited) = cgroup.run("--memory-guard 90%", "true").await;
    assert_eq!(exited.status.code(), Some(78));
    assert!(exited.stderr.contains("this container has no memory limit"), "{}", exited.stderr);
    assert_eq!(cloud.counts().await, (1, 0), "nothing was received");
}
