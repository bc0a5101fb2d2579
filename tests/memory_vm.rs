//! The memory limit on a node with cgroup v2, where the kubelet lets the kernel kill all processes
//! of a container together. A virtual machine has it, whatever this machine has.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::process::Command;

use crate::support::cloud::{Cloud, eventually};
use crate::support::servers::static_binary;

/// What one command did in its container.
struct Ran {
    code: i32,
    text: String,
    /// The kernel's `memory.events`, and `peak`, the most memory that it counted.
    counts: String,
}

impl Ran {
    /// `console` has `== NAME`, the output of the command, and `== CODE COUNTS`.
    fn find(console: &str, name: &str) -> Self {
        let find = || {
            let (_, rest) = console.split_once(&format!("== {name}\n"))?;
            let (text, rest) = rest.split_once("== ")?;
            let (code, counts) = rest.lines().next()?.split_once(' ')?;
            Some(Self {
                code: code.parse().ok()?,
                text: text.to_owned(),
                counts: counts.to_owned(),
            })
        };
        find().unwrap_or_else(|| panic!("{name} has not ended; the console:\n{console}"))
    }

    fn record(&self, message: &str) -> Value {
        let mut records = self.text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let found = records.find(|record: &Value| record["message"] == message);
        found.unwrap_or_else(|| panic!("no record '{message}' in\n{}", self.text))
    }

    fn count(&self, name: &str) -> u64 {
        let mut words = self.counts.split_whitespace().skip_while(|word| *word != name);
        words.nth(1).unwrap_or_else(|| panic!("no {name} in {}", self.counts)).parse().unwrap()
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Runs a script in a virtual machine, and returns its console.
async fn boot(script: &str) -> String {
    let prepared = path(".venv/vm/ready").exists();
    assert!(prepared, ".venv/vm is missing: run the tests by tests/run, which prepares it");
    let files = tempfile::tempdir().unwrap();
    let script_path = files.path().join("script");
    fs::write(&script_path, script).unwrap();
    let mut boot = Command::new(path("tests/vm/boot"));
    boot.arg(static_binary()).arg(script_path).arg(files.path());
    // The script limits its time.
    let booted = boot.output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let console = text(&booted.stdout);
    assert!(booted.status.success(), "{}\n{console}{}", booted.status, text(&booted.stderr));
    console
}

/// A line of the script: leasehold handles the message of `cloud` in a container with 128 MiB.
fn container(name: &str, oom_group: u8, cloud: &Cloud, flags: &str, command: &str) -> String {
    let queue = &cloud.queue_url;
    format!(
        "container {name} 128M {oom_group} leasehold run --queue-url {queue} --work-dir /disk {flags} -- {command}\n"
    )
}

/// Takes 4 MiB of memory at a time, up to 400 MiB.
fn greedy(pause: &str) -> String {
    let block = r#"block = sprintf("%4194304s", "")"#;
    format!("awk 'BEGIN {{ {block}; while (++n < 100) {{ taken[n] = block n; {pause} }} }}'")
}

const SLOWLY: &str = r#"system("sleep 0.02")"#;

#[tokio::test]
async fn on_cgroup_v2_the_guard_acts_before_the_kernel_kills_leasehold_too() {
    if let Ok(why) = fs::read_to_string(path(".venv/vm/skipped")) {
        eprintln!("{why}");
        return;
    }
    let cloud = async || {
        let cloud = Cloud::new(5).await;
        cloud.put("in/key", b"x").await;
        cloud
    };
    let (killed, guarded, alone, files) =
        (cloud().await, cloud().await, cloud().await, cloud().await);
    let port = killed.endpoint.rsplit_once(':').unwrap().1;
    let writes = "sh -c 'dd if=/dev/zero of=big bs=1M count=300 && cat big >/dev/null && rm big'";
    let script = [
        format!("export AWS_ENDPOINT_URL=http://10.0.2.2:{port} AWS_REGION=us-east-1\n"),
        "export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test\n".to_owned(),
        container("killed", 1, &killed, "--visibility-timeout 20s", &greedy("")),
        container(
            "guarded",
            1,
            &guarded,
            "--memory-guard 90% --visibility-timeout 10m --retry-min 0s",
            &greedy(SLOWLY),
        ),
        container("alone", 0, &alone, "--visibility-timeout 10m --retry-min 0s", &greedy("")),
        container("files", 1, &files, "--memory-guard 80% --visibility-timeout 10m", writes),
    ];
    let console = boot(&script.concat()).await;

    let ran = Ran::find(&console, "killed");
    assert_eq!((ran.code, ran.count("oom_group_kill")), (137, 1), "leasehold died, too");
    assert!(ran.text.contains("message started") && !ran.text.contains("message kept"));
    eventually("the message is visible again", async || {
        (killed.counts().await == (1, 0)).then_some(())
    })
    .await;
    let next = killed.run("", "test $JOB_RECEIVE_COUNT = 2").expect_exit(0).await;
    assert_eq!(next.record("message deleted")["outcome"], "succeeded");

    let ran = Ran::find(&console, "guarded");
    let kept = ran.record("message kept");
    assert_eq!((ran.code, ran.count("oom_kill")), (1, 0), "{kept}");
    assert_eq!((&kept["outcome"], &kept["signal"]), (&"out_of_memory".into(), &15.into()));
    let error = kept["error"].as_str().unwrap();
    assert!(error.contains("of 128.0 MiB are in use"), "{error}");
    assert_eq!(guarded.counts().await, (1, 0), "the message is released");

    let ran = Ran::find(&console, "alone");
    let kept = ran.record("message kept");
    assert_eq!((ran.code, ran.count("oom_group_kill")), (1, 0), "{kept}");
    assert_eq!((&kept["outcome"], &kept["signal"]), (&"out_of_memory".into(), &9.into()));
    let error = kept["error"].as_str().unwrap();
    assert!(error.contains("the kernel killed a process at the container's limit of 128.0 MiB"));
    assert_eq!(alone.counts().await, (1, 0), "the message is released");

    let ran = Ran::find(&console, "files");
    assert_eq!(ran.record("message deleted")["outcome"], "succeeded");
    assert!(ran.count("peak") > 120 << 20, "the page cache filled the container: {}", ran.counts);
    assert_eq!(files.counts().await, (0, 0));
}
