//! `leasehold local` rehearses what a pod does: state, records, results, and what goes wrong in a
//! cluster now and then.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;
use walkdir::WalkDir;

use crate::support::journey::MINUTE;

/// A folder with one file in its inbox.
struct Desk(TempDir);

struct Left {
    code: Option<i32>,
    log: String,
}

impl Desk {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("inbox")).unwrap();
        fs::write(home.path().join("inbox/orders.csv"), "1,2").unwrap();
        Self(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the script on the file; each run of it is counted.
    async fn local(&self, flags: &str, script: &str) -> Left {
        let script = format!("echo >> '{}'; {script}", self.path("runs").display());
        let mut program = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        program
            .arg("local")
            .arg(self.path("inbox"))
            .args(["--state".as_ref(), self.path("state").as_os_str()]);
        program.args(["--retry-min", "0s", "--retry-max", "0s"]).args(flags.split_whitespace());
        program.args(["--", "sh", "-c", &script]).kill_on_drop(true).current_dir(self.0.path());
        let output = timeout(5 * MINUTE, program.output()).await.expect("it ends").unwrap();
        Left {
            code: output.status.code(),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.path("runs")).unwrap_or_default().lines().count()
    }

    /// Everything that is kept, by its path in the state.
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
async fn a_job_that_fails_half_way_goes_on_from_its_checkpoint_and_leaves_none() {
    let desk = Desk::new();
    let script =
        r#"[ -e "$JOB_CHECKPOINT_DIR/half" ] && exit 0; touch "$JOB_CHECKPOINT_DIR/half"; exit 1"#;
    let left = desk.local("--checkpoint s3://bucket/of/{name}", script).await;
    assert_eq!((left.code, desk.runs()), (Some(0), 2), "{}", left.log);
    assert_eq!(desk.kept(), Vec::<String>::new());
}

#[tokio::test]
async fn a_job_near_the_ceiling_is_handed_over_to_the_next_pod() {
    let desk = Desk::new();
    let flags = "--checkpoint s3://bucket/of --ceiling 12s --visibility-timeout 3s --termination-grace 3s --max-duration 5m";
    // It counts to 30 in half seconds, which takes two deliveries of 8 seconds.
    let script = r#"cd "$JOB_CHECKPOINT_DIR"; n=$(cat n 2>/dev/null || echo 0)
        while [ "$n" -lt 30 ]; do sleep 0.5; n=$((n + 1)); echo $n > new; mv new n; done"#;
    let left = desk.local(flags, script).await;
    assert_eq!(left.code, Some(0), "{}", left.log);
    assert!(desk.runs() >= 2 && left.log.contains("handed_over"), "{} {}", desk.runs(), left.log);
}

#[tokio::test]
async fn a_redelivery_is_recognised_by_its_record_and_done_twice_without_one() {
    for (flags, runs) in [("--idempotency s3://bucket/done", 1), ("", 2)] {
        let desk = Desk::new();
        let left = desk.local(&format!("--rehearse redelivery {flags}"), "true").await;
        assert_eq!((left.code, desk.runs()), (Some(0), runs), "{flags}: {}", left.log);
        assert_eq!(desk.kept().len(), 2 - runs, "{:?}", desk.kept());
    }
}

#[tokio::test]
async fn a_lease_that_is_lost_and_a_pod_that_is_killed_cost_one_attempt() {
    for (flags, script, outcome) in [
        ("--rehearse lost-lease --visibility-timeout 3s", "sleep 2", "lease_lost"),
        ("--rehearse kill", "sleep 2", "the pod was killed"),
    ] {
        let desk = Desk::new();
        let left = desk.local(flags, script).await;
        assert_eq!((left.code, desk.runs()), (Some(0), 2), "{flags}: {}", left.log);
        assert!(left.log.contains(outcome), "{flags}: {}", left.log);
    }
}

#[tokio::test]
async fn attempts_and_results_go_where_they_go_in_s3() {
    let desk = Desk::new();
    let flags =
        "--attempts s3://bucket/attempts --output s3://results/{stem} --max-receive-count 2";
    let left =
        desk.local(flags, r#"echo 1 > "$JOB_OUTPUT_DIR/rows"; [ "$JOB_RECEIVE_COUNT" = 2 ]"#).await;
    assert_eq!((left.code, desk.runs()), (Some(0), 2), "{}", left.log);
    assert_eq!(desk.kept(), ["bucket/attempts/message-1/1.json", "results/orders/rows"]);
    let dead = Desk::new();
    let left = dead.local(flags, "exit 1").await;
    assert_eq!((left.code, dead.runs(), dead.kept().len()), (Some(1), 2, 2), "{}", left.log);
}

/// Where nothing is kept, nothing is made.
#[tokio::test]
async fn without_state_there_is_no_folder_for_it() {
    let desk = Desk::new();
    assert_eq!(desk.local("", "true").await.code, Some(0));
    assert!(!desk.path("state").exists());
    let left = desk.local("--ceiling 13h", "true").await;
    assert!(left.code == Some(78) && left.log.contains("--ceiling 13h must be"), "{}", left.log);
}
