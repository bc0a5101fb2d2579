//! The floor of `benches/run table` and `benches/compare-drain`: the minimum with the SDK for Rust.
//!
//! `floor QUEUE_URL CONCURRENCY [SIZE]` receives until the queue is empty, writes each object to a
//! file, computes its SHA-256, and deletes the message. It downloads nothing if SIZE is 0. No lease, no command, no report. The AWS
//! configuration comes from the environment, as in a pod.

use std::fs::File;
use std::io::Write;

use aws_config::BehaviorVersion;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

fn main() {
    let mut args = std::env::args().skip(1);
    let mut arg = || args.next().expect("floor QUEUE_URL CONCURRENCY");
    let (queue, concurrency): (_, usize) = (arg(), arg().parse().expect("a number"));
    let is_downloading = std::env::args().nth(3).is_none_or(|size| size != "0");
    Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(async {
        let http = aws_smithy_http_client::Builder::new().build_http();
        let shared = aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await;
        let sqs = aws_sdk_sqs::Client::new(&shared);
        let s3 = aws_sdk_s3::config::Builder::from(&shared).force_path_style(true).build();
        let mut workers = JoinSet::new();
        for number in 0..concurrency {
            workers.spawn(drain(
                sqs.clone(),
                is_downloading.then(|| s3.clone()),
                queue.clone(),
                number,
            ));
        }
        workers.join_all().await;
    });
}

async fn drain(
    sqs: aws_sdk_sqs::Client,
    s3: Option<aws_sdk_s3::config::Config>,
    queue: String,
    number: usize,
) {
    let path = std::env::temp_dir().join(format!("floor-{}-{number}", std::process::id()));
    // An empty queue needs no client for S3.
    let mut client = None;
    loop {
        let received =
            sqs.receive_message().queue_url(&queue).max_number_of_messages(1).send().await;
        let Some(message) =
            received.expect("an answer").messages.and_then(|messages| messages.into_iter().next())
        else {
            break;
        };
        if let Some(s3) = &s3 {
            let body: Value = serde_json::from_str(message.body().expect("a body")).expect("JSON");
            let text =
                |path: &str| body.pointer(path).and_then(Value::as_str).expect(path).to_owned();
            let (bucket, key) =
                (text("/Records/0/s3/bucket/name"), text("/Records/0/s3/object/key"));
            let s3 = client.get_or_insert_with(|| aws_sdk_s3::Client::from_conf(s3.clone()));
            let mut object =
                s3.get_object().bucket(bucket).key(key).send().await.expect("an object");
            let (mut file, mut digest) = (File::create(&path).expect("a file"), Sha256::new());
            while let Some(chunk) = object.body.next().await {
                let chunk = chunk.expect("bytes");
                digest.update(&chunk);
                file.write_all(&chunk).expect("written");
            }
            std::hint::black_box(digest.finalize());
        }
        let handle = message.receipt_handle.expect("a handle");
        sqs.delete_message()
            .queue_url(&queue)
            .receipt_handle(handle)
            .send()
            .await
            .expect("deleted");
    }
    if client.is_some() {
        std::fs::remove_file(path).expect("the file");
    }
}
