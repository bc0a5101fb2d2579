//! `--listen`.

use nix::sys::signal::Signal;

use super::{get, value};
use crate::support::cloud::{Cloud, eventually};
use crate::support::servers::free_port;

/// Until it answers with this status.
async fn answers(url: &str, status: u16) {
    eventually(&format!("{url} answers {status}"), async || {
        get(url).await.ok().filter(|got| got.status == status)
    })
    .await;
}

/// KEDA counts a pod that is not Ready as pending: one that has not received yet, and one that is
/// about to leave.
#[tokio::test]
async fn a_pod_is_ready_while_it_holds_a_message_and_no_stop_was_asked_for() {
    let cloud = Cloud::new(5).await;
    let at = format!("http://127.0.0.1:{}", free_port());
    let listen = at.trim_start_matches("http://");
    let script = "trap 'touch termed' TERM; echo up > up; until [ -e go ]; do sleep 0.05; done";
    let run = cloud.run(&format!("--wait 60s --termination-grace 180s --listen {listen}"), script);
    answers(&format!("{at}/readyz"), 503).await;
    answers(&format!("{at}/healthz"), 200).await;

    cloud.put("k", b"x").await;
    assert_eq!(cloud.file("up").await, "up");
    answers(&format!("{at}/readyz"), 200).await;
    let scraped = get(&format!("{at}/metrics")).await.unwrap().body;
    assert_eq!(value(&scraped, "leasehold_messages_in_flight"), Some(1.0));
    assert_eq!(value(&scraped, "leasehold_messages_received_total"), Some(1.0));

    run.signal(Signal::SIGTERM);
    answers(&format!("{at}/readyz"), 503).await;
    // The command takes its time, and the pod keeps running.
    answers(&format!("{at}/healthz"), 200).await;
    let scraped = get(&format!("{at}/metrics")).await.unwrap().body;
    assert_eq!(value(&scraped, r#"leasehold_stops_total{signal="SIGTERM"}"#), Some(1.0));
    assert_eq!(value(&scraped, "leasehold_messages_in_flight"), Some(1.0));
    cloud.touch("go");
    run.expect_exit(143).await;
}

/// The message is let go while the command still ends.
#[tokio::test]
async fn a_pod_that_gives_its_message_up_is_not_ready_any_more() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let at = format!("http://127.0.0.1:{}", free_port());
    let listen = at.trim_start_matches("http://");
    let script = "trap 'echo up > up' TERM; until [ -e go ]; do sleep 0.05; done";
    let run = cloud.run(&format!("--max-duration 1s --listen {listen}"), script);
    cloud.file("up").await;
    answers(&format!("{at}/readyz"), 503).await;
    cloud.touch("go");
    run.expect_exit(1).await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_refused_before_anything_is_received() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let exited = cloud.run(&format!("--listen {address}"), "exit 0").expect_exit(78).await;
    assert!(exited.stderr.contains(&format!("--listen {address}: ")), "{}", exited.stderr);
    assert_eq!(cloud.counts().await, (1, 0));
}
