//! `--listen`.

use nix::sys::signal::Signal;

use super::{get, value};
use crate::support::cloud::{Cloud, eventually};
use crate::support::servers::free_port;

/// Waits until the URL answers with this status.
async fn wait_for_status(url: &str, status: u16) {
    eventually(&format!("{url} answers {status}"), async || {
        get(url).await.ok().filter(|got| got.status == status)
    })
    .await;
}

/// KEDA counts a pod that is not Ready as pending: before its first receive, and while it shuts
/// down.
#[tokio::test]
async fn a_pod_is_ready_while_it_holds_a_message_until_a_stop() {
    let cloud = Cloud::new(5).await;
    let at = format!("http://127.0.0.1:{}", free_port());
    let listen = at.trim_start_matches("http://");
    let script = "trap 'touch termed' TERM; echo up > up; until [ -e go ]; do sleep 0.05; done";
    let run = cloud.run(&format!("--wait 60s --termination-grace 180s --listen {listen}"), script);
    wait_for_status(&format!("{at}/readyz"), 503).await;
    wait_for_status(&format!("{at}/healthz"), 200).await;

    cloud.put("k", b"x").await;
    assert_eq!(cloud.file("up").await, "up");
    wait_for_status(&format!("{at}/readyz"), 200).await;
    let scraped = get(&format!("{at}/metrics")).await.unwrap().body;
    assert_eq!(value(&scraped, "leasehold_messages_in_flight"), Some(1.0));
    assert_eq!(value(&scraped, "leasehold_messages_received_total"), Some(1.0));

    run.signal(Signal::SIGTERM);
    wait_for_status(&format!("{at}/readyz"), 503).await;
    // The command ends slowly, so the pod keeps running.
    wait_for_status(&format!("{at}/healthz"), 200).await;
    let scraped = get(&format!("{at}/metrics")).await.unwrap().body;
    assert_eq!(value(&scraped, r#"leasehold_stops_total{signal="SIGTERM"}"#), Some(1.0));
    assert_eq!(value(&scraped, "leasehold_messages_in_flight"), Some(1.0));
    cloud.touch("go");
    run.expect_exit(143).await;
}

/// The pod is no longer Ready while the command ends.
#[tokio::test]
async fn a_pod_that_halts_its_command_is_no_longer_ready() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let at = format!("http://127.0.0.1:{}", free_port());
    let listen = at.trim_start_matches("http://");
    let script = "trap 'echo up > up' TERM; until [ -e go ]; do sleep 0.05; done";
    let run = cloud.run(&format!("--max-duration 1s --listen {listen}"), script);
    cloud.file("up").await;
    wait_for_status(&format!("{at}/readyz"), 503).await;
    cloud.touch("go");
    run.expect_exit(1).await;
}

#[tokio::test]
async fn an_address_in_use_is_refused_before_a_receive() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let exited = cloud.run(&format!("--listen {address}"), "exit 0").expect_exit(78).await;
    assert!(exited.stderr.contains(&format!("--listen {address}: ")), "{}", exited.stderr);
    assert_eq!(cloud.counts().await, (1, 0));
}
