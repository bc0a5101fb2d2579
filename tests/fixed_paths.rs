//! `--input-at` and `--output-at`: links at the paths that an image expects.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::process::Command;

use crate::scenarios::configured;
use crate::support::cloud::{Cloud, ExitedRun, Leasehold};

#[test]
fn paths_that_cannot_work_are_refused_at_start() {
    for (flags, complaint) in [
        ("--input-at data.csv", "it must be an absolute path without .."),
        ("--output-at /opt/../etc", "it must be an absolute path without .."),
        ("--input-at /opt/in --input none", "--input none passes no input"),
        ("--input-at /opt/ml/in --output-at /opt/ml", "neither may be in the other"),
        (
            "--output-at /opt/out --concurrency 2 --max-messages 2",
            "process 2 messages at the same time",
        ),
    ] {
        let error = configured(flags).unwrap_err();
        assert!(error.contains(complaint), "{flags}: {error}");
    }
    assert!(configured("--input-at /opt/in --output-at /opt/input --max-messages 9").is_ok());
}

/// Two files, and the paths for the links.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("inbox")).unwrap();
        for name in ["a", "b"] {
            fs::write(home.path().join("inbox").join(name), name).unwrap();
        }
        Self(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    async fn local(&self, script: &str, code: i32) -> ExitedRun {
        let mut leasehold = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        leasehold.arg("local").arg(self.path("inbox")).arg("--outbox").arg(self.path("outbox"));
        leasehold.args(["--max-receive-count", "1", "--max-messages", "2", "--input-at"]);
        leasehold.arg(self.path("opt/in/data")).arg("--output-at").arg(self.path("opt/out"));
        leasehold.args(["--", "sh", "-c", script]).current_dir(self.0.path());
        Leasehold::start(leasehold).expect_exit(code).await
    }
}

#[tokio::test]
async fn each_message_has_its_own_files_at_the_fixed_paths() {
    let folder = Folder::new();
    folder.local("cat opt/in/data > opt/out/copy && cmp opt/in/data \"$JOB_INPUT\"", 0).await;
    for name in ["a", "b"] {
        let copy = folder.path("outbox").join(name).join("copy");
        assert_eq!(fs::read_to_string(copy).unwrap(), name);
    }
    assert!(fs::symlink_metadata(folder.path("opt/in/data")).is_err());
    assert!(fs::symlink_metadata(folder.path("opt/out")).is_err());
}

#[tokio::test]
async fn a_command_that_replaces_the_link_to_its_results_has_not_succeeded() {
    let folder = Folder::new();
    let exited = folder.local("rm opt/out; mkdir opt/out; echo > opt/out/lost", 1).await;
    assert!(exited.stderr.contains("the command replaced this link"), "{}", exited.stderr);
    assert!(exited.stdout.contains("0 of 2 files succeeded"), "{}", exited.stdout);
}

#[tokio::test]
async fn a_path_that_cannot_be_used_is_refused_before_a_message_is_received() {
    let folder = Folder::new();
    fs::create_dir_all(folder.path("opt/in/data")).unwrap();
    fs::write(folder.path("opt/in/data/file"), "").unwrap();
    let exited = folder.local("true", 78).await;
    assert!(exited.stderr.contains("opt/in/data: the directory is not empty"), "{}", exited.stderr);

    fs::remove_dir_all(folder.path("opt")).unwrap();
    fs::write(folder.path("opt"), "").unwrap();
    let exited = folder.local("true", 78).await;
    assert!(exited.stderr.contains("mount a writable volume"), "{}", exited.stderr);
}

#[tokio::test]
async fn a_stopped_run_removes_its_links() {
    let cloud = Cloud::new(5).await;
    cloud.put("a.csv", b"1,2").await;
    let at = cloud.dir.path().join("opt/in/a.csv");
    let flags = format!("--input-at {}", at.display());
    let run = cloud.run(&flags, "cat opt/in/a.csv > got; echo >> got; exec sleep 600");
    assert_eq!(cloud.file("got").await, "1,2");
    assert!(fs::symlink_metadata(&at).unwrap().is_symlink());
    run.signal(nix::sys::signal::Signal::SIGTERM);
    run.expect_exit(143).await;
    assert!(fs::symlink_metadata(&at).is_err());
    assert_eq!(fs::metadata(at.parent().unwrap()).unwrap().permissions().mode() & 0o700, 0o700);
}
