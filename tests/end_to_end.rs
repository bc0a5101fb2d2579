//! The real binary, real servers, real signals.

use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::time::Instant;

use crate::support::cloud::{Cloud, ExitedRun, Leasehold, eventually};

#[tokio::test]
async fn an_object_in_the_bucket_is_processed_and_its_message_is_deleted() {
    let cloud = Cloud::new(5).await;
    cloud.put("in/Zürich + Genève.csv", b"a,b\n1,2\n").await;
    let exited = cloud
        .run("", r#"cat "$JOB_INPUT" > seen; echo "$JOB_KEY"; echo oops >&2"#)
        .expect_exit(0)
        .await;
    assert_eq!(cloud.counts().await, (0, 0));
    assert_eq!(
        std::fs::read(cloud.dir.path().join("seen")).expect("the command wrote it"),
        b"a,b\n1,2\n"
    );

    let ended = exited.record("message deleted");
    assert_eq!((&ended["outcome"], &ended["exit_code"]), (&"succeeded".into(), &0.into()));
    assert_eq!((&ended["key"], &ended["size"]), (&"in/Zürich + Genève.csv".into(), &8.into()));
    assert_eq!((&ended["receive_count"], &ended["max_receive_count"]), (&1.into(), &5.into()));
    assert!(ended["cpu_s"].is_f64());
    let line = exited
        .log
        .iter()
        .find(|record| record["stream"] == "stdout")
        .expect("the output is logged");
    assert_eq!(
        (&line["line"], &line["message_id"]),
        (&"in/Zürich + Genève.csv".into(), &ended["message_id"])
    );
    assert!(
        exited.log.iter().any(|record| record["stream"] == "stderr" && record["line"] == "oops")
    );
    assert!(
        exited
            .log
            .iter()
            .all(|record| record["job_id"].is_string() && record["pod_name"].is_string())
    );
    assert!(exited.log.iter().all(|record| record.get("body").is_none()));

    let termination =
        std::fs::read_to_string(cloud.dir.path().join("termination-log")).expect("readable");
    let termination: serde_json::Value = serde_json::from_str(&termination).expect("JSON");
    assert_eq!(termination["outcome"], "succeeded");
    let remains: Vec<_> =
        std::fs::read_dir(cloud.dir.path()).expect("readable").flatten().collect();
    assert_eq!(remains.len(), 2, "only the two files of the test: {remains:?}");
}

#[tokio::test]
async fn a_failing_message_is_retried_and_ends_in_the_dead_letter_queue() {
    let cloud = Cloud::new(2).await;
    cloud.put("k", b"x").await;
    let flags = "--retry-min 1s --retry-max 1s";
    let started = Instant::now();
    let exited = cloud.run(flags, "exit 3").expect_exit(1).await;
    let kept = exited.record("message kept");
    assert_eq!((&kept["outcome"], &kept["exit_code"]), (&"command_failed".into(), &3.into()));
    let next = kept["next"].as_str().expect("the next attempt");
    assert!(next.starts_with("attempt 1 of 2, visible again "), "{next}");
    assert!(
        next.ends_with(&format!(
            "after the last attempt it goes to dead-letter queue {}-dlq",
            cloud.bucket
        )),
        "{next}"
    );
    assert_eq!(cloud.counts().await, (0, 1), "the message is hidden for its delay");

    // A long poll returns the message as soon as it is visible again.
    let exited = cloud.run(flags, "exit 3").expect_exit(1).await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    let kept = exited.record("message kept");
    assert_eq!((&kept["receive_count"], &kept["level"]), (&2.into(), &"ERROR".into()));

    eventually("the message is visible again", async || {
        (cloud.counts().await == (1, 0)).then_some(())
    })
    .await;
    cloud.run("--wait 0s", "exit 3").expect_exit(0).await;
    assert_eq!((cloud.counts().await, cloud.dead_letters().await), ((0, 0), (1, 0)));
}

/// With a backoff of an hour, a delay would leave the message hidden.
#[tokio::test]
async fn a_permanent_failure_reaches_the_dead_letter_queue_without_a_delay() {
    let cloud = Cloud::new(3).await;
    cloud.put("k", b"x").await;
    let queue = format!("dead-letter queue {}-dlq", cloud.bucket);
    for (n, then) in [
        (1, format!("goes to {queue} after 2 more receives")),
        (2, format!("goes to {queue} after 1 more receive")),
        (3, format!("this was the last attempt: the next receive moves it to {queue}")),
    ] {
        let exited = cloud.run("--retry-min 1h --retry-max 1h", "exit 65").expect_exit(65).await;
        let kept = exited.record("message kept");
        assert_eq!(kept["next"], format!("attempt {n} of 3, visible again now, {then}"));
    }
    cloud.run("--wait 0s", "exit 65").expect_exit(0).await;
    assert_eq!((cloud.counts().await, cloud.dead_letters().await), ((0, 0), (1, 0)));
}

#[tokio::test]
async fn sigterm_while_the_queue_is_empty_ends_the_run() {
    let cloud = Cloud::new(5).await;
    let run = cloud.run("--wait 2s", "exit 0");
    // The program installs its signal handlers before it polls, without a log record; so poll /proc
    // until it handles TERM.
    eventually("it handles TERM", async || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", run.pid())).ok()?;
        let caught =
            status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?.trim().to_owned();
        let caught = u64::from_str_radix(&caught, 16).ok()?;
        (caught & (1 << (Signal::SIGTERM as u32 - 1)) != 0).then_some(())
    })
    .await;
    let asked = Instant::now();
    run.signal(Signal::SIGTERM);
    run.expect_exit(0).await;
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
}

#[tokio::test]
async fn work_may_take_longer_than_three_leases() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let run = cloud.run("--visibility-timeout 3s", "echo > started; sleep 10");
    cloud.file("started").await;
    let exited = cloud.wait_while_another_polls(run).await;
    assert_eq!((exited.code(), cloud.counts().await), (0, (0, 0)));
    let ended = exited.record("message deleted");
    assert!(ended["command_s"].as_f64().expect("a number") >= 10.0);
}

#[tokio::test]
async fn a_fixed_lease_holds_without_extensions() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let flags = "--visibility fixed --visibility-timeout 3s --max-duration 30s";
    let run = cloud.run(flags, "echo > started; sleep 5");
    cloud.file("started").await;
    assert_eq!(run.wait().await.code(), 0);
    assert_eq!(cloud.counts().await, (0, 0));
}

#[tokio::test]
async fn any_message_can_be_the_standard_input() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"an object").await;
    cloud.run("--input stdin", "cat > seen").expect_exit(0).await;
    assert_eq!(
        std::fs::read(cloud.dir.path().join("seen")).expect("the command wrote it"),
        b"an object"
    );

    cloud.send("no JSON, but \u{1f980}".to_owned()).await;
    let script = r#"cat > seen; cmp seen "$JOB_INPUT" && [ -z "$JOB_BUCKET" ]"#;
    let exited = cloud.run("--accept-raw --input stdin", script).expect_exit(0).await;
    assert_eq!(exited.record("message deleted")["outcome"], "succeeded");
    assert_eq!(
        std::fs::read_to_string(cloud.dir.path().join("seen")).unwrap(),
        "no JSON, but \u{1f980}"
    );
}

#[tokio::test]
async fn several_messages_are_processed_side_by_side() {
    let cloud = Cloud::new(5).await;
    for n in 0..6 {
        cloud.put(&format!("k{n}"), b"x").await;
    }
    // Each command waits until three have started.
    let script = r#"echo > "at-$JOB_KEY"; until [ $(ls at-* | wc -l) -ge 3 ]; do sleep 0.05; done; setsid sleep 600 &"#;
    let exited =
        cloud.run("--concurrency 3 --max-messages 5 --wait 1s", script).expect_exit(0).await;
    let deleted = exited.log.iter().filter(|record| record["message"] == "message deleted").count();
    assert_eq!((deleted, cloud.counts().await), (5, (1, 0)));
}

/// Each command lists its directory, and then leaves something in it.
#[tokio::test]
async fn a_message_sees_nothing_of_the_one_before() {
    let cloud = Cloud::new(5).await;
    let keys = ["file", "mode", "moved", "link", "process", "socket", "nothing", "none"];
    for key in keys {
        cloud.put(key, b"x").await;
    }
    let script = r#"here=${JOB_FILE%/job.json}
        (cd "$here" && find . -printf '%P %M\n' | sed 's|^input/[^ ]*|input/NAME|' | sort) > "list.$JOB_KEY"
        case $JOB_KEY in
            file) touch "$TMPDIR/left" ;;
            mode) chmod 777 "$JOB_CHECKPOINT_DIR" ;;
            moved) mv "$here" "$here.moved" && mkdir -p "$here/tmp" ;;
            link) rmdir "$TMPDIR" && ln -s / "$TMPDIR" ;;
            process) cd "$TMPDIR" && setsid sh -c 'while :; do echo x > late; done' >&- 2>&- & ;;
            socket) mkfifo "$here/fifo" ;;
        esac"#;
    let exited = cloud.run("--max-messages 8 --wait 1s", script).expect_exit(0).await;
    assert_eq!(cloud.counts().await, (0, 0), "{:?}", exited.log);
    let list = |key: &str| {
        std::fs::read_to_string(cloud.dir.path().join(format!("list.{key}"))).expect("a list")
    };
    assert_eq!(list("none").lines().count(), 8, "{}", list("none"));
    for key in keys {
        assert_eq!(list(key), list("none"), "{key}");
    }
}

#[tokio::test]
async fn the_next_message_is_prefetched_and_waits_for_its_turn() {
    let cloud = Cloud::new(5).await;
    for n in 0..3 {
        cloud.put(&format!("k{n}"), b"x").await;
    }
    // Fails if another command runs, and ends when another object is there.
    let script = r"mkdir running || exit 1
        until [ $(ls -d leasehold-*/input/* | wc -l) -ge 2 ] || [ -e prefetched ]; do sleep 0.05; done
        touch prefetched; sleep 0.2; rmdir running";
    let exited = cloud.run("--prefetch 1 --max-messages 3 --wait 1s", script).expect_exit(0).await;
    let deleted = exited.log.iter().filter(|record| record["message"] == "message deleted");
    assert_eq!(deleted.filter(|record| record["outcome"] == "succeeded").count(), 3);
    let waited = exited.log.iter().filter_map(|record| record["turn_s"].as_f64());
    assert!(waited.sum::<f64>() > 0.1, "the second waited for the first");
}

#[tokio::test]
async fn a_stalled_command_is_halted_and_its_progress_is_reported() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let script = r#"echo '{"progress":0.4,"text":"loading"}' >> "$JOB_RESULT_FILE"; sleep 600"#;
    let exited =
        cloud.run("--stall-timeout 2s --retry-min 1s --retry-max 1s", script).expect_exit(1).await;
    let progress = exited.record("progress");
    assert_eq!(
        (&progress["progress"], &progress["text"], &progress["key"]),
        (&0.4.into(), &"loading".into(), &"k".into())
    );
    let kept = exited.record("message kept");
    assert_eq!((&kept["outcome"], &kept["progress"]), (&"stalled".into(), &0.4.into()));
    assert_eq!(cloud.counts().await.1, 1);
}

#[tokio::test]
async fn each_failed_attempt_is_recorded_with_its_reason() {
    let cloud = Cloud::new(2).await;
    cloud.put("k", b"x").await;
    let flags = format!("--retry-min 1s --retry-max 1s --attempts s3://{}/attempts", cloud.bucket);
    // The attempts are in the same bucket; their events do not affect the message under test.
    let first = cloud.run(&flags, "echo disk on fire >&2; exit 3").expect_exit(1).await;
    let id = first.record("message kept")["message_id"].as_str().expect("an id").to_owned();
    let get = cloud
        .s3
        .get_object()
        .bucket(&cloud.bucket)
        .key(format!("attempts/{id}/1.json"))
        .send()
        .await;
    let bytes =
        get.expect("the record was written").body.collect().await.expect("readable").into_bytes();
    let record: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!((&record["outcome"], &record["exit_code"]), (&"command_failed".into(), &3.into()));
    assert_eq!(
        (&record["stderr"], &record["receive_count"]),
        (&serde_json::json!(["disk on fire"]), &1.into())
    );
    assert_eq!(record["final_attempt"], false);
}

#[tokio::test]
async fn a_failed_record_of_an_attempt_changes_nothing() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let exited =
        cloud.run("--attempts s3://no-such-bucket/attempts", "exit 3").expect_exit(1).await;
    assert!(
        exited.log.iter().any(|record| record["message"] == "the attempt was not recorded"),
        "{}",
        exited.stdout
    );
}

#[tokio::test]
async fn invalid_settings_are_refused_before_a_receive() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    for (flags, complaint) in [
        ("--no-such-flag", "--no-such-flag"),
        ("--visibility-timeout 2s", "--visibility-timeout 2s is too short"),
        ("--visibility-timeout soon", "--visibility-timeout"),
        ("--max-duration 12h", "--max-duration 12h is over"),
        ("--termination-grace 9s --stop-grace 7s", "--stop-grace 7s is too long"),
        ("--termination-grace 9s", "--wait 10s is too long"),
        ("--retry-min 1h --retry-max 1m", "--retry-min 1h is over --retry-max 1m"),
        ("--permanent-exit-codes 0", "--permanent-exit-codes: 0 cannot be permanent"),
        ("--concurrency 0", "--concurrency must be greater than zero"),
        ("--concurrency 2", "--concurrency 2 must not be greater than --max-messages 1"),
        (
            "--prefetch 1",
            "--prefetch 1 and --concurrency 1 together must not be greater than --max-messages 1",
        ),
        ("--prefetch 11 --max-messages 100", "--prefetch 11 is too much: it must be at most 10"),
        ("--prefetch 1 --max-messages 9 --input none", "--prefetch has no effect"),
        (
            "--prefetch 1 --max-messages 9 --output-at /opt/out",
            "--prefetch does not work with --output-at",
        ),
        (
            "--prefetch 1 --max-messages 9 --checkpoint s3://state/p",
            "--prefetch does not work with --checkpoint",
        ),
        ("--stall-timeout 0s", "--stall-timeout must be greater than zero"),
        ("--stall-timeout 10m", "--stall-timeout 10m has no effect"),
        ("--accept-raw --input none", "--input none passes no input"),
        ("--accept-raw --output s3://results/{stem}", "--output contains {key}, {name} or {stem}"),
        ("--events ObjectCreate:*", "did you mean ObjectCreated:*?"),
        ("--max-messages 0", "--max-messages"),
        ("--queue-url orders", "--queue-url"),
        ("--work-dir /nonexistent", "--work-dir /nonexistent"),
        ("--work-dir-limit much", "write for example 500Mi or 20Gi"),
        ("--output results", "write for example s3://bucket/prefix"),
        (
            "--output s3://results/{keys}",
            "unknown placeholder {keys}; the placeholders are {key}, {name}, {stem}, {message_id}, {job_type}",
        ),
    ] {
        let exited = refused(&cloud, flags).await;
        assert!(exited.stderr.contains(complaint), "{flags}: {}", exited.stderr);
    }
    assert_eq!(cloud.counts().await, (1, 0), "nothing was received");
}

async fn refused(cloud: &Cloud, flags: &str) -> ExitedRun {
    // A duplicate flag would be refused for another reason.
    let own_queue = flags.contains("--queue-url");
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.arg("run");
    if !own_queue {
        command.args(["--queue-url", &cloud.queue_url]);
    }
    command.args(flags.split_whitespace()).args(["--", "true"]);
    command.env("AWS_ENDPOINT_URL", &cloud.endpoint).env("AWS_REGION", "us-east-1");
    Leasehold::start(command).expect_exit(78).await
}

#[tokio::test]
async fn a_wrong_queue_missing_credentials_or_a_missing_command_end_with_78() {
    let cloud = Cloud::new(5).await;
    let run = |queue_url: String, program: &str, credentials: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        command.args(["run", "--queue-url", &queue_url, "--", program]);
        command
            .env("AWS_ENDPOINT_URL", &cloud.endpoint)
            .env("AWS_REGION", "us-east-1")
            .env("HOME", "/nonexistent");
        if credentials {
            command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        }
        Leasehold::start(command)
    };
    let exited = run(format!("{}-not", cloud.queue_url), "true", true).expect_exit(78).await;
    assert!(exited.stdout.contains("NonExistentQueue"), "{}", exited.stdout);
    let exited = run(cloud.queue_url.clone(), "true", false).expect_exit(78).await;
    assert!(exited.stdout.contains("credentials"), "{}", exited.stdout);
    let exited = run(cloud.queue_url.clone(), "no-such-program", true).expect_exit(78).await;
    assert!(exited.stderr.contains("no-such-program"), "{}", exited.stderr);
}

#[tokio::test]
async fn a_misspelt_variable_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(["run", "--queue-url", "http://127.0.0.1:1/0/q", "--", "true"]);
    command.env("LEASEHOLD_MAX_DURATON", "5m").env("LEASEHOLD_SERVICE_HOST", "10.0.0.1");
    let exited = Leasehold::start(command).expect_exit(78).await;
    assert!(exited.stderr.contains("did you mean 'LEASEHOLD_MAX_DURATION'?"), "{}", exited.stderr);
}

/// `leasehold local` as in the README, in the repository.
fn local(arguments: &[&str], outbox: &Path) -> Leasehold {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("local")
        .arg("--outbox")
        .arg(outbox)
        .args(arguments);
    Leasehold::start(command)
}

#[tokio::test]
async fn all_examples_succeed_one_at_its_second_attempt() {
    let outbox = tempfile::tempdir().expect("a temporary directory");
    let exited =
        local(&["-v", "examples/inbox", "--", "python3", "examples/summarize.py"], outbox.path())
            .expect_exit(0)
            .await;
    assert!(exited.stdout.contains("4 of 4 files succeeded"), "{}", exited.stdout);
    let twice = exited
        .stdout
        .lines()
        .find(|line| line.contains("wednesday.csv"))
        .expect("a row of the table");
    assert!(twice.contains("succeeded  2"), "{twice}");
    let totals = outbox.path().join("europe/Zürich + Genève.csv/totals.json");
    let totals: serde_json::Value =
        serde_json::from_slice(&std::fs::read(totals).expect("a published file")).expect("JSON");
    assert_eq!(totals, serde_json::json!({ "CHF": "88.00", "EUR": "14.00" }));
}

#[tokio::test]
async fn a_poison_file_becomes_a_dead_letter() {
    let outbox = tempfile::tempdir().expect("a temporary directory");
    let arguments =
        ["examples/poison", "--concurrency", "2", "--", "python3", "examples/summarize.py"];
    let exited = local(&arguments, outbox.path()).expect_exit(1).await;
    let poison =
        exited.stdout.lines().find(|line| line.contains("broken.csv")).expect("a row of the table");
    assert!(poison.contains("dead letter: permanent  3"), "{poison}");
    assert!(exited.stdout.contains("1 of 2 files succeeded"), "{}", exited.stdout);
}

#[tokio::test]
async fn ctrl_c_rehearses_the_graceful_stop() {
    let outbox = tempfile::tempdir().expect("a temporary directory");
    let marker = outbox.path().join("started");
    let script =
        format!("trap 'exit 0' TERM; echo > {}; while :; do sleep 0.05; done", marker.display());
    let run =
        local(&["examples/inbox", "--concurrency", "2", "--", "sh", "-c", &script], outbox.path());
    eventually("a command runs", async || marker.exists().then_some(())).await;
    run.signal(Signal::SIGINT);
    let exited = run.expect_exit(130).await;
    assert!(exited.stdout.contains("0 of 4 files succeeded"), "{}", exited.stdout);
    assert!(
        exited.stdout.contains("stopped") && exited.stdout.contains("not started"),
        "{}",
        exited.stdout
    );
}

#[tokio::test]
async fn a_terminal_shows_a_bar_for_each_file_and_one_for_all() {
    let outbox = tempfile::tempdir().expect("a temporary directory");
    let seen = outbox.path().join("seen");
    let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(Some(&size), None).expect("a terminal");
    let script = format!(
        r#"echo '{{"progress":0.45,"text":"loading"}}' >> "$JOB_RESULT_FILE"; until [ -e {} ]; do sleep 0.05; done"#,
        seen.display()
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "local",
        "examples/inbox",
        "-v",
        "--",
        "sh",
        "-c",
        &script,
    ]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(slave))
        .env("TERM", "xterm");
    let mut child = command.kill_on_drop(true).spawn().expect("the binary starts");
    drop(command);
    let reader = tokio::task::spawn_blocking(move || {
        let (mut master, mut screen, mut some) =
            (std::fs::File::from(master), String::new(), [0; 4096]);
        // A terminal without a writer returns an error.
        while let Ok(read @ 1..) = master.read(&mut some) {
            screen.push_str(&String::from_utf8_lossy(&some[..read]));
            if screen.contains("45%") {
                std::fs::write(&seen, "").expect("writable");
            }
        }
        screen
    });
    let ended = tokio::time::timeout(Duration::from_mins(1), child.wait())
        .await
        .expect("the process exits within the limit")
        .expect("an exit status");
    let screen = reader.await.expect("no panic");
    assert!(ended.success(), "{screen}");
    assert!(screen.contains("loading") && screen.contains("1 of 4 files"), "{screen}");
    assert!(screen.contains("message deleted"), "the log is above the bars: {screen}");
}
