//! `leasehold local` rehearses a pod: checkpoints, records, results, and occasional failures of a
//! cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;
use walkdir::WalkDir;

use crate::support::journey::MINUTE;

/// A temporary folder with an inbox of one file.
struct Fixture(TempDir);

struct ExitedRun {
    code: Option<i32>,
    log: String,
}

impl Fixture {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("inbox")).unwrap();
        fs::write(home.path().join("inbox/orders.csv"), "1,2").unwrap();
        Self(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the script on the file and counts its runs.
    async fn local(&self, flags: &str, script: &str) -> ExitedRun {
        let script = format!("echo >> '{}'; {script}", self.path("runs").display());
        let mut program = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        program
            .arg("local")
            .arg(self.path("inbox"))
            .args(["--state".as_ref(), self.path("state").as_os_str()]);
        program.args(["--retry-min", "0s", "--retry-max", "0s"]).args(flags.split_whitespace());
        program.args(["--", "sh", "-c", &script]).kill_on_drop(true).current_dir(self.0.path());
        let output = timeout(5 * MINUTE, program.output())
            .await
            .expect("the program exits within the limit")
            .unwrap();
        ExitedRun {
            code: output.status.code(),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.path("runs")).unwrap_or_default().lines().count()
    }

    /// The files of the state folder, as relative paths.
    fn kept(&self) -> Vec<String> {
        let state = self.path("state");
        let files = WalkDir::new(&state)
            .into_iter()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_file());
        let name = |path: &Path| path.strip_prefix(&state).unwrap().to_str().unwrap().to_owned();
        let mut kept: Vec<_> =
            files.map(|file| name(file.path())).filter(|name| name != ".lock").collect();
        kept.sort();
        kept
    }
}

#[tokio::test]
async fn a_failed_job_resumes_from_its_checkpoint_and_deletes_it() {
    let fixture = Fixture::new();
    let script =
        r#"[ -e "$JOB_CHECKPOINT_DIR/half" ] && exit 0; touch "$JOB_CHECKPOINT_DIR/half"; exit 1"#;
    let exited = fixture.local("--checkpoint s3://bucket/of/{name}", script).await;
    assert_eq!((exited.code, fixture.runs()), (Some(0), 2), "{}", exited.log);
    // The deletion has a second, which may be too short on a busy machine.
    let in_time = !exited.log.contains("the checkpoints of a finished message were not deleted");
    assert!(fixture.kept().is_empty() || !in_time, "{}", exited.log);
}

#[tokio::test]
async fn a_job_near_the_ceiling_is_handed_over_to_the_next_pod() {
    let fixture = Fixture::new();
    let flags = "--checkpoint s3://bucket/of --ceiling 12s --visibility-timeout 3s --termination-grace 3s --max-duration 5m";
    // The script counts to 30 in half seconds, which takes two deliveries of 8 seconds.
    let script = r#"cd "$JOB_CHECKPOINT_DIR"; n=$(cat n 2>/dev/null || echo 0)
        while [ "$n" -lt 30 ]; do sleep 0.5; n=$((n + 1)); echo $n > new; mv new n; done"#;
    let exited = fixture.local(flags, script).await;
    assert_eq!(exited.code, Some(0), "{}", exited.log);
    assert!(
        fixture.runs() >= 2 && exited.log.contains("handed_over"),
        "{} {}",
        fixture.runs(),
        exited.log
    );
}

#[tokio::test]
async fn a_redelivery_is_recognised_with_a_record_and_repeated_without_one() {
    for (flags, runs) in [("--idempotency s3://bucket/done", 1), ("", 2)] {
        let fixture = Fixture::new();
        let exited = fixture.local(&format!("--rehearse redelivery {flags}"), "true").await;
        assert_eq!((exited.code, fixture.runs()), (Some(0), runs), "{flags}: {}", exited.log);
        assert_eq!(fixture.kept().len(), 2 - runs, "{:?}", fixture.kept());
    }
}

#[tokio::test]
async fn a_lost_lease_and_a_killed_pod_use_up_one_attempt() {
    for (flags, script, outcome) in [
        ("--rehearse lost-lease --visibility-timeout 3s", "sleep 2", "lease_lost"),
        ("--rehearse kill", "sleep 2", "the pod was killed"),
    ] {
        let fixture = Fixture::new();
        let exited = fixture.local(flags, script).await;
        assert_eq!((exited.code, fixture.runs()), (Some(0), 2), "{flags}: {}", exited.log);
        assert!(exited.log.contains(outcome), "{flags}: {}", exited.log);
        assert!(!exited.log.contains("a bug in leasehold"), "{flags}: {}", exited.log);
    }
}

#[tokio::test]
async fn attempts_and_results_have_the_same_keys_as_in_s3() {
    let fixture = Fixture::new();
    let flags =
        "--attempts s3://bucket/attempts --output s3://results/{stem} --max-receive-count 2";
    let exited = fixture
        .local(flags, r#"echo 1 > "$JOB_OUTPUT_DIR/rows"; [ "$JOB_RECEIVE_COUNT" = 2 ]"#)
        .await;
    assert_eq!((exited.code, fixture.runs()), (Some(0), 2), "{}", exited.log);
    assert_eq!(fixture.kept(), ["bucket/attempts/message-1/1.json", "results/orders/rows"]);
    let dead = Fixture::new();
    let exited = dead.local(flags, "exit 1").await;
    assert_eq!((exited.code, dead.runs(), dead.kept().len()), (Some(1), 2, 2), "{}", exited.log);
}

#[tokio::test]
async fn a_killed_pod_and_a_lost_lease_have_their_records() {
    for (fault, outcome) in [("kill", "died"), ("lost-lease --visibility-timeout 3s", "lease_lost")]
    {
        let fixture = Fixture::new();
        let flags = format!("--attempts s3://bucket/attempts --rehearse {fault}");
        let exited = fixture.local(&flags, "sleep 2").await;
        assert_eq!((exited.code, fixture.runs()), (Some(0), 2), "{flags}: {}", exited.log);
        // The second attempt succeeded.
        assert_eq!(fixture.kept(), ["bucket/attempts/message-1/1.json"], "{flags}");
        let record = fs::read(fixture.path("state/bucket/attempts/message-1/1.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        assert_eq!(record["outcome"], outcome, "{record}");
        let is_found = exited.log.contains("attempt 1 did not report its end");
        assert_eq!(is_found, outcome == "died", "{}", exited.log);
    }
}

/// Without state to keep, no folder is created.
#[tokio::test]
async fn without_state_no_folder_is_created() {
    let fixture = Fixture::new();
    assert_eq!(fixture.local("", "true").await.code, Some(0));
    assert!(!fixture.path("state").exists());
    let exited = fixture.local("--ceiling 13h", "true").await;
    assert!(
        exited.code == Some(78) && exited.log.contains("--ceiling 13h must be"),
        "{}",
        exited.log
    );
}

/// A redelivery after it is recognised.
#[tokio::test]
async fn files_are_moved_and_deleted_after_success() {
    for recognise in ["--idempotency s3://bucket/done", "--missing-object ignore"] {
        for (action, kept) in
            [("move=s3://bucket/moved", vec!["bucket/moved/orders.csv"]), ("delete", vec![])]
        {
            let fixture = Fixture::new();
            let flags = format!("--rehearse redelivery {recognise} --on-success {action}");
            let exited = fixture.local(&flags, "true").await;
            assert_eq!((exited.code, fixture.runs()), (Some(0), 1), "{flags}: {}", exited.log);
            let mut files = fixture.kept();
            files.retain(|name| !name.starts_with("bucket/done/"));
            assert_eq!(files, kept, "{flags}");
            assert!(!fixture.path("inbox/orders.csv").exists(), "{flags}");
        }
        let failing = Fixture::new();
        let exited = failing.local(&format!("--on-success delete {recognise}"), "exit 1").await;
        assert_eq!(exited.code, Some(1), "{}", exited.log);
        assert!(failing.path("inbox/orders.csv").exists());
    }
    let tagged = Fixture::new();
    assert_eq!(tagged.local("--on-success tag=a:b", "true").await.code, Some(0));
    assert!(tagged.path("inbox/orders.csv").exists());
}

#[tokio::test]
async fn a_program_that_is_gone_is_searched_again() {
    let fixture = Fixture::new();
    fs::write(fixture.path("inbox/more.csv"), "3,4").unwrap();
    let home = fixture.0.path().display();
    for (folder, script) in [("one", "rm \"$0\"; echo one"), ("other", "echo other")] {
        fs::create_dir(fixture.path(folder)).unwrap();
        let program = fixture.path(folder).join("tool");
        fs::write(&program, format!("#!/bin/sh\n{script} >> '{home}/runs'\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut program = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    program.arg("local").arg(fixture.path("inbox")).args(["--", "tool"]).kill_on_drop(true);
    program.env("PATH", format!("{home}/one:{home}/other:/usr/bin:/bin"));
    let output = timeout(5 * MINUTE, program.output()).await.expect("in time").unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(fixture.path("runs")).unwrap(), "one\nother\n");
}
