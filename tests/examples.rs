//! The examples behave as their READMEs describe.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::support::cloud::{Cloud, ExitedRun, Leasehold, eventually};

fn examples() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"))
}

/// `leasehold local examples/NAME/inbox -- COMMAND`, in the repository.
async fn local(name: &str, command: &[&str], code: i32) -> (ExitedRun, TempDir) {
    let outbox = tempfile::tempdir().unwrap();
    let mut leasehold = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    leasehold.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "local",
        "-v",
        &format!("examples/{name}/inbox"),
        "--outbox",
    ]);
    leasehold.arg(outbox.path()).arg("--").args(command);
    (Leasehold::start(leasehold).expect_exit(code).await, outbox)
}

/// The row of a file in the table.
fn row<'a>(exited: &'a ExitedRun, file: &str) -> &'a str {
    exited
        .stdout
        .lines()
        .find(|line| line.contains(file) && line.contains("  "))
        .expect("a row of the table")
}

#[tokio::test]
async fn the_bash_example_compresses_a_file_and_refuses_an_empty_one() {
    let (exited, outbox) = local("compress", &["bash", "examples/compress/compress.sh"], 1).await;
    assert!(exited.stdout.contains("1 of 2 files succeeded"), "{}", exited.stdout);
    assert!(row(&exited, "empty.txt").contains("dead letter: permanent  3"), "{}", exited.stdout);
    assert!(exited.stderr.contains("the object is empty"), "{}", exited.stderr);
    let mut check = Command::new("sh");
    check.args(["-c", "sha256sum --check --quiet *.sha256 && gunzip --stdout notes.txt.gz"]);
    let checked = check.current_dir(outbox.path().join("notes.txt")).output().await.unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert_eq!(checked.stdout, fs::read(examples().join("compress/inbox/notes.txt")).unwrap());
}

#[tokio::test]
async fn a_refused_import_reports_a_reason_and_succeeds_after_its_delay() {
    let (exited, _outbox) = local("import", &["python3", "examples/import/import.py"], 0).await;
    assert!(row(&exited, "many.csv").contains("succeeded  2"), "{}", exited.stdout);
    assert!(row(&exited, "few.csv").contains("succeeded  1"), "{}", exited.stdout);
    assert!(
        exited.stderr.contains("the service takes no more orders for 1 s"),
        "{}",
        exited.stderr
    );
}

#[tokio::test]
async fn the_node_example_counts_words() {
    // Only this example needs Node.js, so `tests/run` does not install it.
    if Command::new("node").arg("--version").output().await.is_err() {
        return eprintln!("node is not installed: skipping its example");
    }
    let (_exited, outbox) = local("node", &["node", "examples/node/count.mjs"], 0).await;
    let words = fs::read_to_string(outbox.path().join("zug.txt/words.json")).unwrap();
    let words: Value = serde_json::from_str(&words).unwrap();
    assert_eq!(words, serde_json::json!({ "der": 2, "fährt": 1, "hält": 1, "zug": 2 }));
}

#[tokio::test]
async fn transcoding_succeeds_at_once_if_nothing_interrupts_it() {
    let (exited, outbox) =
        local("transcode", &["python3", "examples/transcode/transcode.py"], 0).await;
    assert!(exited.stdout.contains("2 of 2 files succeeded"), "{}", exited.stdout);
    assert!(fs::metadata(outbox.path().join("short.film/film.out")).unwrap().len() > 0);
}

/// Starts the script without leasehold, in directories that outlive it.
fn transcode(home: &Path, seconds_each: &str) -> Child {
    let mut command = Command::new("python3");
    command.arg(examples().join("transcode/transcode.py")).env("SECONDS_EACH", seconds_each);
    command
        .env("JOB_INPUT", examples().join("transcode/inbox/short.film"))
        .env("PYTHONUNBUFFERED", "1");
    for (variable, name) in [("JOB_CHECKPOINT_DIR", "checkpoint"), ("JOB_OUTPUT_DIR", "output")] {
        fs::create_dir_all(home.join(name)).unwrap();
        command.env(variable, home.join(name));
    }
    command.env("JOB_RESULT_FILE", home.join("result.jsonl"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

#[tokio::test]
async fn transcoding_continues_with_the_first_missing_segment() {
    let room = tempfile::tempdir().unwrap();
    let segment = |number: u32| room.path().join(format!("checkpoint/{number:05}.segment"));
    let first = transcode(room.path(), "0.5");
    eventually("two segments are done", async || segment(1).exists().then_some(())).await;
    let pid = Pid::from_raw(i32::try_from(first.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let stopped = first.wait_with_output().await.unwrap();
    assert_eq!(stopped.status.code(), Some(1));
    assert!(!segment(5).exists(), "the script was too quick for this test");
    let report = fs::read_to_string(room.path().join("result.jsonl")).unwrap();
    assert!(report.contains(r#""reason": "stopped after "#), "{report}");
    assert!(!room.path().join("output/film.out").exists());

    let kept = fs::metadata(segment(0)).unwrap().modified().unwrap();
    let resumed = transcode(room.path(), "0").wait_with_output().await.unwrap();
    let stdout = String::from_utf8(resumed.stdout).unwrap();
    assert!(
        resumed.status.success() && stdout.contains("segment 2 of 6 already exists"),
        "{stdout}"
    );
    assert!(stdout.ends_with("6 segments joined\n"), "{stdout}");
    assert_eq!(
        fs::metadata(segment(0)).unwrap().modified().unwrap(),
        kept,
        "the segment was made again"
    );

    let whole = tempfile::tempdir().unwrap();
    assert!(transcode(whole.path(), "0").wait_with_output().await.unwrap().status.success());
    let film = |room: &TempDir| fs::read(room.path().join("output/film.out")).unwrap();
    assert_eq!(film(&room), film(&whole));
}

#[tokio::test]
async fn a_pod_continues_the_transcoding_of_a_stopped_pod() {
    let cloud = Cloud::new(5).await;
    cloud
        .put("short.film", &fs::read(examples().join("transcode/inbox/short.film")).unwrap())
        .await;
    let state = format!("{}-state", cloud.bucket);
    cloud.s3.create_bucket().bucket(&state).send().await.unwrap();
    let script = |seconds: &str| {
        let program = examples().join("transcode/transcode.py");
        format!("export SECONDS_EACH={seconds}; exec python3 {}", program.display())
    };
    let flags = format!("--checkpoint s3://{state}/transcode --retry-min 1s --retry-max 1s");
    let stopped = cloud.run(&flags, &script("0.5"));
    eventually("a segment is done", async || {
        let mut files = walkdir::WalkDir::new(cloud.dir.path()).into_iter().filter_map(Result::ok);
        files.any(|file| file.path().extension().is_some_and(|it| it == "segment")).then_some(())
    })
    .await;
    stopped.signal(Signal::SIGTERM);
    stopped.expect_exit(143).await;
    let exited = cloud.run(&flags, &script("0")).expect_exit(0).await;
    let lines: Vec<_> = exited.log.iter().filter_map(|record| record["line"].as_str()).collect();
    assert!(lines.contains(&"segment 1 of 6 already exists"), "{lines:?}");
    assert!(lines.contains(&"6 segments joined"), "{lines:?}");
}

/// The test cannot build the image: its base comes from a registry.
#[test]
fn the_image_with_dependencies_copies_existing_files_and_handles_signals() {
    let home = examples().join("pip");
    let dockerfile = fs::read_to_string(home.join("Dockerfile")).unwrap();
    let copies = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|it| !it.starts_with("--from"));
    let files: Vec<_> = copies.map(|words| words.split(' ').next().unwrap()).collect();
    assert_eq!(files, ["requirements.txt", "totals.py"]);
    assert!(files.iter().all(|name| home.join(name).exists()));
    assert!(dockerfile.contains("COPY --from=leasehold /leasehold /usr/local/bin/\n"));
    for instruction in ["ENTRYPOINT", "CMD"] {
        let line = dockerfile.lines().find_map(|line| line.strip_prefix(instruction)).unwrap();
        let words: Vec<String> =
            serde_json::from_str(line).expect("a list, so that no shell is between");
        assert!(words.len() > 1);
    }
    let requirements = fs::read_to_string(home.join("requirements.txt")).unwrap();
    assert!(requirements.lines().all(|line| line.contains("==")), "{requirements}");
    let compiled = std::process::Command::new("python3")
        .args(["-c", "import ast, sys; ast.parse(open(sys.argv[1]).read())"])
        .arg(home.join("totals.py"))
        .status();
    assert!(compiled.unwrap().success());
}

#[test]
fn every_example_has_a_short_readme_and_a_line_in_the_list() {
    let list = fs::read_to_string(examples().join("README.md")).unwrap();
    let folders = fs::read_dir(examples()).unwrap().map(|entry| entry.unwrap().path());
    let named = ["inbox", "library", "poison", "workers"];
    let mut count = 0;
    for folder in folders.filter(|path| path.is_dir()) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(list.contains(&format!("{name}/")), "examples/README.md does not name {name}");
        if named.contains(&name) {
            continue;
        }
        count += 1;
        let readme = fs::read_to_string(folder.join("README.md")).unwrap();
        let lines =
            readme.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        assert_eq!(lines, 5, "{name}/README.md");
    }
    assert_eq!(count, 6);
}

#[tokio::test]
async fn the_emulator_example_processes_its_uploads() {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv");
    let mut run = Command::new(venv.join("moto/bin/python"));
    run.arg(examples().join("emulator/run.py")).env("LEASEHOLD", env!("CARGO_BIN_EXE_leasehold"));
    run.env("MINISTACK", venv.join("ministack/bin/ministack")).kill_on_drop(true);
    let ran = run.output().await.unwrap();
    let printed = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{printed}{}", String::from_utf8_lossy(&ran.stderr));
    for day in ["monday", "tuesday"] {
        assert!(printed.contains(&format!("s3://results/{day}/totals.json:")), "{printed}");
    }
}
