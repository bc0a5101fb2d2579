//! `--prefetch` with the handlers that stay: the next message waits for its turn, and its lease is
//! held.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::cloud::{Cloud, Leasehold};
use crate::support::servers::free_port;

const WORKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/prefetch/worker.py");

/// Messages about `objects`, and a run with the handler `http` or `lambda`.
async fn start(handler: &str, objects: usize, hangs: bool) -> (Cloud, Leasehold) {
    let cloud = Cloud::new(5).await;
    for number in 0..objects {
        cloud.put(&format!("k{number}"), b"x").await;
    }
    if hangs {
        cloud.touch("hang");
    }
    let (handler, port) = match handler {
        "http" => {
            let port = free_port().to_string();
            (format!("http://127.0.0.1:{port}/"), port)
        }
        other => (other.to_owned(), String::new()),
    };
    let flags = format!(
        "--handler {handler} --input file --prefetch 1 --max-messages {objects} --wait 1s --visibility-timeout 15s"
    );
    let mut command = cloud.command(&[], &flags, &format!("exec python3 {WORKER} {port}"));
    command.env("RUST_LOG", "debug");
    let run = Leasehold::start(command);
    (cloud, run)
}

fn runs(cloud: &Cloud) -> usize {
    fs::read_to_string(cloud.dir.path().join("runs")).unwrap().lines().count()
}

#[tokio::test]
async fn the_next_object_is_downloaded_while_a_warm_worker_works() {
    for handler in ["http", "lambda"] {
        let (cloud, run) = start(handler, 3, false).await;
        let exited = run.expect_exit(0).await;
        assert_eq!((cloud.counts().await, runs(&cloud)), ((0, 0), 3), "{}", exited.stdout);
        let deleted = exited.log.iter().filter(|it| it["message"] == "message deleted");
        let succeeded = deleted.filter(|it| it["outcome"] == "succeeded").count();
        assert_eq!(succeeded, 3, "{handler}: {}", exited.stdout);
    }
}

#[tokio::test]
async fn a_message_that_waits_for_a_warm_worker_is_extended_and_released_in_a_stop() {
    for handler in ["http", "lambda"] {
        let (cloud, mut run) = start(handler, 2, true).await;
        cloud.file("prefetched").await;
        run.read_until(|log| extended(log).len() == 2).await;
        assert_eq!(cloud.counts().await, (0, 2), "{handler}: both leases are held");
        run.signal(Signal::SIGTERM);
        let exited = run.expect_exit(143).await;
        assert_eq!((cloud.counts().await, runs(&cloud)), ((2, 0), 1), "{}", exited.stdout);
        let kept = exited.log.iter().filter(|it| it["message"] == "message kept");
        let outcomes: Vec<_> = kept.map(|it| &it["outcome"]).collect();
        assert_eq!(outcomes, ["stopped"; 2], "{handler}: {}", exited.stdout);
    }
}

/// The messages whose leases were extended.
fn extended(log: &str) -> BTreeSet<String> {
    let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let records = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let extended = records.filter(|it| it["message"] == "lease extended");
    extended.map(|it| it["message_id"].as_str().unwrap().to_owned()).collect()
}
