//! `--pushgateway` and `leasehold sweep`, with a real Pushgateway.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use leasehold::adapters::http::Http as Client;
use nix::sys::signal::Signal;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::Instant;

use super::{get, value};
use crate::support::cloud::{Cloud, ExitedRun, GREEDY, Leasehold, eventually};
use crate::support::http::Http;
use crate::support::servers::Pushgateway;

/// The series of one pod.
async fn pushed(gateway: &Pushgateway, pod: &str) -> String {
    let all = get(&format!("{}/metrics", gateway.url())).await.unwrap().body;
    let of_pod = format!(r#"instance="{pod}""#);
    all.split_inclusive('\n').filter(|line| line.contains(&of_pod)).collect()
}

fn sweep(gateway: &Pushgateway, flags: &str) -> Leasehold {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(["sweep", "--pushgateway", &gateway.url()]).args(flags.split_whitespace());
    Leasehold::start(command)
}

fn swept(exited: &ExitedRun) -> (u64, u64) {
    let record = exited.record("swept");
    (record["found"].as_u64().unwrap(), record["deleted"].as_u64().unwrap())
}

#[tokio::test]
async fn a_finished_pod_has_pushed_its_metrics() {
    let gateway = Pushgateway::start(None).await;
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"12345").await;
    let flags = format!("--pushgateway {} --namespace files --pod-name pod-1", gateway.url());
    cloud.run(&flags, &format!("{GREEDY}; sleep 0.1")).expect_exit(0).await;
    let text = pushed(&gateway, "pod-1").await;
    let of = |series: &str| value(&text, &format!("leasehold_{series}"));
    assert_eq!(
        of(r#"messages_processed_total{outcome="succeeded",job="leasehold",namespace="files"}"#),
        Some(1.0)
    );
    assert_eq!((of("jobs_launched_total"), of("run_exit_code")), (Some(1.0), Some(0.0)));
    assert_eq!((of("object_bytes_total"), of("push_interval_seconds")), (Some(5.0), Some(15.0)));
    assert_eq!(of(r#"deletes_total{result="deleted"}"#), Some(1.0));
    assert!(of(r#"phase_seconds_total{phase="command"}"#).unwrap() >= 0.1, "{text}");
    assert!(of("lease_remaining_seconds").unwrap() > 100.0, "{text}");
    assert_eq!(of("first_receive_lag_seconds_count"), Some(1.0));
    assert!(of("command_peak_memory_bytes").unwrap() > 256e6, "{text}");
    let (started, finished) =
        (of("run_started_timestamp_seconds"), of("run_finished_timestamp_seconds"));
    assert!(finished.unwrap() - started.unwrap() >= 0.1, "{text}");
}

#[tokio::test]
async fn a_long_running_pod_pushes_while_it_works() {
    let gateway = Pushgateway::start(None).await;
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let flags = format!("--pushgateway {} --push-interval 1s --pod-name pod-1", gateway.url());
    let run = cloud.run(&flags, "until [ -e go ]; do sleep 0.05; done");
    eventually("the metrics of a working pod are pushed", async || {
        (value(&pushed(&gateway, "pod-1").await, "leasehold_messages_in_flight") == Some(1.0))
            .then_some(())
    })
    .await;
    assert_eq!(
        value(&pushed(&gateway, "pod-1").await, "leasehold_run_finished_timestamp_seconds"),
        None
    );
    cloud.touch("go");
    run.expect_exit(0).await;
    assert_eq!(value(&pushed(&gateway, "pod-1").await, "leasehold_messages_in_flight"), Some(0.0));
}

/// With a dead, silent, or refusing gateway, outcomes, exit codes and the stop are as without one.
#[tokio::test]
async fn a_failing_gateway_changes_nothing() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let refusing = Http::start(|_| (400, "inconsistent help".to_owned())).await;
    let dead = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let gateways = [
        (format!("http://{dead}"), "refused"),
        (format!("http://{}", silent.local_addr().unwrap()), "within"),
        (refusing.endpoint.clone(), "HTTP 400: inconsistent help"),
    ];
    for (url, why) in gateways {
        let cloud = Cloud::new(5).await;
        cloud.put("k", b"x").await;
        cloud.put("l", b"x").await;
        let flags = format!("--pushgateway {url} --push-interval 1s");
        let exited = cloud.run(&flags, "exit 0").expect_exit(0).await;
        assert!(exited.stdout.contains(why), "no {why:?} in\n{}", exited.stdout);

        let run = cloud
            .run(&format!("{flags} --wait 1s --termination-grace 9s"), "echo up > up; sleep 60");
        cloud.file("up").await;
        let asked_at = Instant::now();
        run.signal(Signal::SIGTERM);
        run.expect_exit(143).await;
        assert!(asked_at.elapsed() < Duration::from_secs(9), "{url}: {:?}", asked_at.elapsed());
        assert_eq!(cloud.counts().await, (1, 0), "{url}");
    }
}

#[tokio::test]
async fn a_gateway_may_require_tls_and_a_password() {
    let secrets = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(secrets.path().join(name), text).unwrap();
        secrets.path().join(name).display().to_string()
    };
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) =
        (file("cert.pem", &made.cert.pem()), file("key.pem", &made.signing_key.serialize_pem()));
    // bcrypt, cost 4, of "secret".
    let password = "$2b$04$Ct3BCZW5JI84mtWJLaE2sOC4IzT3N/b7KmiXU.BsqzjIBqs3UnrdC";
    let config = format!(
        "tls_server_config:\n  cert_file: {certificate}\n  key_file: {key}\nbasic_auth_users:\n  pod: {password}\n"
    );
    let gateway = Pushgateway::start(Some(Path::new(&file("web.yml", &config)))).await;
    let url = gateway.url().replace("http:", "https:");

    let cloud = Cloud::new(5).await;
    for (content, finds_group) in [("pod:wrong", false), ("pod:secret\n", true)] {
        cloud.put("k", b"x").await;
        let auth = file("auth", content);
        let flags =
            format!("--pushgateway {url} --pushgateway-basic-auth-file {auth} --pod-name pod-1");
        let mut command = cloud.command(&[], &flags, "exit 0");
        command.env("AWS_CA_BUNDLE", &certificate);
        let exited = Leasehold::start(command).expect_exit(0).await;
        assert_eq!(exited.stdout.contains("HTTP 401"), !finds_group, "{}", exited.stdout);

        let http = Client::new(Some(certificate.clone().into()));
        let authorization = [("authorization", "Basic cG9kOnNlY3JldA==".to_owned())];
        let asked = http
            .send("GET", &format!("{url}/metrics"), &authorization, "", Duration::from_secs(5))
            .await;
        assert_eq!(asked.unwrap().body.contains(r#"instance="pod-1""#), finds_group);
    }
}

#[tokio::test]
async fn a_sweep_deletes_only_the_groups_of_finished_or_dead_pods() {
    let gateway = Pushgateway::start(None).await;
    let cloud = Cloud::new(5).await;
    let flags = format!("--pushgateway {} --wait 0s --pod-name", gateway.url());
    cloud.run(&format!("{flags} finished"), "exit 0").expect_exit(0).await;
    cloud.run(&format!("{flags} other-job --pushgateway-job other"), "exit 0").expect_exit(0).await;
    cloud.put("k", b"x").await;
    let killed = cloud.run(&format!("{flags} a/killed:pod"), "echo up > up; sleep 60");
    cloud.file("up").await;
    eventually("the metrics are pushed", async || {
        (!pushed(&gateway, "a/killed:pod").await.is_empty()).then_some(())
    })
    .await;
    killed.signal(Signal::SIGKILL);
    let _ = killed.wait_without_reading().await;

    // No group is old enough.
    assert_eq!(swept(&sweep(&gateway, "").expect_exit(0).await), (2, 0));
    // One pod has finished; the other has not been silent for 20 of its intervals.
    assert_eq!(swept(&sweep(&gateway, "--older-than 0s").expect_exit(0).await), (2, 1));
    assert_eq!(pushed(&gateway, "finished").await, "");
    assert!(!pushed(&gateway, "a/killed:pod").await.is_empty());
    assert!(!pushed(&gateway, "other-job").await.is_empty());

    // The same pod with a shorter push interval.
    let text = "# TYPE leasehold_push_interval_seconds gauge\nleasehold_push_interval_seconds 0\n";
    let group = format!("{}/metrics/job/leasehold/instance@base64/YS9raWxsZWQ6cG9k", gateway.url());
    let push = Client::new(None).send("PUT", &group, &[], text, Duration::from_secs(5)).await;
    assert_eq!(push.unwrap().status, 200);
    assert_eq!(swept(&sweep(&gateway, "--older-than 0s").expect_exit(0).await), (1, 1));
    assert_eq!(pushed(&gateway, "a/killed:pod").await, "");
    assert!(!pushed(&gateway, "other-job").await.is_empty());
}

#[tokio::test]
async fn a_sweep_without_a_gateway_fails() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let dead = silent.local_addr().unwrap();
    drop(silent);
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(["sweep", "--pushgateway", &format!("http://{dead}")]);
    assert_eq!(
        Leasehold::start(command)
            .expect_exit(69)
            .await
            .record("the Pushgateway could not be swept")["level"],
        "ERROR"
    );
}

#[tokio::test]
async fn invalid_settings_are_refused() {
    let cloud = Cloud::new(5).await;
    for (flags, why) in [
        ("--pushgateway gateway:9091", "--pushgateway \"gateway:9091\" is not the URL of a server"),
        ("--pushgateway http://user:s3cr3t@gateway:9091", "set --pushgateway-basic-auth-file"),
        (
            "--pushgateway user:s3cr3t@gateway:9091",
            "\"[redacted]@gateway:9091\" contains a user and a password",
        ),
        ("--pushgateway http://gateway:9091/?token=s3cr3t", "must not contain a query"),
        ("--pushgateway http://user:1#s3cr3t@gateway:9091", "must not contain a query"),
        (
            "--pushgateway http://user:s3cr3t/@gateway:9091",
            "\"http://[redacted]@gateway:9091\" is not the URL of a server",
        ),
        (
            "--pushgateway http://127.0.0.1:1 --pushgateway-bearer-token-file /nonexistent",
            "'--pushgateway-bearer-token-file <FILE>': No such file",
        ),
        ("--push-interval 100ms", "--push-interval 100ms must be at least 1s"),
    ] {
        let exited = cloud.run(flags, "exit 0").expect_exit(78).await;
        assert!(
            exited.stderr.contains(why) && !exited.stderr.contains("s3cr3t"),
            "{}",
            exited.stderr
        );
    }
}

#[tokio::test]
async fn the_help_does_not_show_the_values_of_urls() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(["run", "--help"]);
    command
        .env("LEASEHOLD_PUSHGATEWAY", "http://user:s3cr3t@gateway")
        .env("LEASEHOLD_QUEUE_URL", "http://user:s3cr3t@sqs");
    let exited = Leasehold::start(command).expect_exit(0).await;
    assert!(
        exited.stdout.contains("LEASEHOLD_PUSHGATEWAY") && !exited.stdout.contains("s3cr3t"),
        "{}",
        exited.stdout
    );
}

/// The log has the gateway's refusal, but not the password that it repeats.
#[tokio::test]
async fn a_password_in_an_answer_is_redacted() {
    let echoes = Http::start(|request| {
        let authorization =
            request.lines().find_map(|line| line.strip_prefix("authorization: ")).unwrap_or("none");
        (400, format!("no user for {authorization}, \u{1b}[31mthat is user:s3cr3t"))
    })
    .await;
    let secrets = tempfile::tempdir().unwrap();
    let cloud = Cloud::new(5).await;
    for (flag, content) in [("basic-auth-file", "user:s3cr3t\n"), ("bearer-token-file", "s3cr3t")] {
        let file = secrets.path().join(flag);
        std::fs::write(&file, content).unwrap();
        let flags =
            format!("--pushgateway {} --pushgateway-{flag} {}", echoes.endpoint, file.display());
        let exited = cloud.run(&format!("{flags} --wait 0s"), "exit 0").expect_exit(0).await;
        let error = exited.record("the last metrics could not be pushed")["error"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            error.starts_with("HTTP 400: no user for ") && error.contains("[redacted]"),
            "{error}"
        );
        for secret in ["s3cr3t", "dXNlcjpzM2NyM3", "czNjcjN0", "\u{1b}"] {
            assert!(!exited.stdout.contains(secret), "{}", exited.stdout);
        }
    }
}

#[tokio::test]
async fn an_answer_is_read_up_to_a_limit() {
    let long = Http::start(|_| (200, "x".repeat(3 << 20))).await;
    let answer = Client::new(None)
        .send("GET", &long.endpoint, &[], "", Duration::from_secs(30))
        .await
        .unwrap();
    assert_eq!((answer.body.len(), answer.is_whole), (1 << 20, false));
    let short = Http::start(|_| (200, "x".repeat(1 << 20))).await;
    let answer = Client::new(None)
        .send("GET", &short.endpoint, &[], "", Duration::from_secs(30))
        .await
        .unwrap();
    assert_eq!((answer.body.len(), answer.is_whole), (1 << 20, true));
}

/// A metric called `labels` replaces the labels in the gateway's answer.
#[tokio::test]
async fn a_sweep_accepts_unexpected_groups() {
    let gateway = Pushgateway::start(None).await;
    let put = async |group: &str, text: &str| {
        let url = format!("{}/metrics/{group}", gateway.url());
        let put =
            Client::new(None).send("PUT", &url, &[], text.to_owned(), Duration::from_secs(5)).await;
        assert_eq!(put.unwrap().status, 200);
    };
    let finished = "# TYPE leasehold_run_finished_timestamp_seconds gauge\nleasehold_run_finished_timestamp_seconds 1000\n";
    put("job/leasehold/instance/old", finished).await;
    put("job/other/instance/x", "# TYPE labels gauge\nlabels{kind=\"a\"} 3\n").await;
    put(
        "job/other/instance/y",
        "# TYPE push gauge\npush NaN\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
    )
    .await;
    put(
        "job/leasehold/instance/strange",
        "# TYPE leasehold_run_finished_timestamp_seconds gauge\nleasehold_run_finished_timestamp_seconds NaN\n",
    )
    .await;
    assert_eq!(swept(&sweep(&gateway, "").expect_exit(0).await), (2, 1));
    assert_eq!(pushed(&gateway, "old").await, "");
    assert!(!pushed(&gateway, "x").await.is_empty());
}

/// Numbers of an attempt that failed are logged; only those of a success are pushed.
#[tokio::test]
async fn the_numbers_of_a_command_are_in_the_end_record_and_at_the_pushgateway() {
    let gateway = Pushgateway::start(None).await;
    let cloud = Cloud::new(5).await;
    // A bucket of its own: the events of these records would be messages.
    let attempts = format!("{}-attempts", cloud.bucket);
    cloud.s3.create_bucket().bucket(&attempts).send().await.unwrap();
    for (code, pod) in [(3, "pod-1"), (0, "pod-2")] {
        cloud.put("k", b"x").await;
        let flags = format!(
            "--pushgateway {} --namespace files --pod-name {pod} --retry expire --attempts s3://{attempts}/a",
            gateway.url(),
        );
        let script = format!(
            r#"echo '{{"metrics":{{"rows":4,"share":0.25,"Bad name":1}}}}' >> "$JOB_RESULT_FILE"
            printf '{{"metrics":{{"rows":5}}}}' >> "$JOB_RESULT_FILE"; exit {code}"#
        );
        let exited = cloud.run(&flags, &script).expect_exit(i32::from(code != 0)).await;
        let end = if code == 0 { "message deleted" } else { "message kept" };
        let expected = serde_json::json!({ "rows": 5.0, "share": 0.25 });
        assert_eq!(exited.record(end)["metrics"], expected);
        let warnings: Vec<_> = exited
            .log
            .iter()
            .filter(|it| it["error"].as_str().is_some_and(|error| error.contains("Bad name")))
            .collect();
        assert_eq!(warnings.len(), 1, "{}", exited.stdout);
        let text = pushed(&gateway, pod).await;
        let of = |name: &str| {
            let labels = format!("job_type=\"default\",name=\"{name}\"");
            value(&text, &format!("leasehold_command_result{{{labels}}}"))
        };
        let is_success = code == 0;
        assert_eq!(
            (of("rows"), of("share")),
            (is_success.then_some(5.0), is_success.then_some(0.25)),
            "{text}"
        );
        if !is_success {
            let keys = cloud.s3.list_objects_v2().bucket(&attempts).send().await.unwrap();
            let get = cloud.s3.get_object().bucket(&attempts);
            let record = get.key(keys.contents()[0].key().unwrap()).send().await.unwrap();
            let record = record.body.collect().await.unwrap().into_bytes();
            let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
            assert_eq!(record["metrics"], expected);
        }
    }
}
