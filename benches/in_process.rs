//! One run of `benches/compare-in-process`: a `Worker` whose handler does nothing, or the SDK alone.
//!
//! `in_process worker|sdk QUEUE_URL LANES MESSAGES` prints the seconds of the run without the
//! start of the process. The SDK receives and deletes LANES messages at a
//! time, in turn. The AWS configuration comes from the environment.

use std::time::{Duration, Instant};

use aws_config::BehaviorVersion;
use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry;
use leasehold::{Error, Job, Worker};

const USAGE: &str = "in_process worker|sdk QUEUE_URL LANES MESSAGES";

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let mut arg = || args.next().expect(USAGE);
    let (kind, queue) = (arg(), arg());
    let (lanes, messages): (u32, u32) = (arg().parse().expect(USAGE), arg().parse().expect(USAGE));
    let started = Instant::now();
    match kind.as_str() {
        "sdk" => drain(&queue, lanes, messages).await,
        _ => work(&queue, lanes, messages).await,
    }
    println!("{}", started.elapsed().as_secs_f64());
}

async fn work(queue: &str, lanes: u32, messages: u32) {
    let worker = Worker::new(|_: Job| async { Ok::<_, Error>(()) })
        .queue_url(queue)
        .concurrency(lanes as usize)
        .max_messages(messages)
        .until_empty(Duration::ZERO)
        .fetch_on_demand();
    let summary = worker.run().await.expect("a summary");
    assert_eq!(summary.succeeded, u64::from(messages), "{summary:?}");
}

async fn drain(queue: &str, lanes: u32, messages: u32) {
    let http = aws_smithy_http_client::Builder::new().build_http();
    let shared = aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await;
    let sqs = aws_sdk_sqs::Client::new(&shared);
    let most = i32::try_from(lanes).expect("at most 10 lanes");
    let mut deleted = 0;
    while deleted < messages as usize {
        let received = sqs.receive_message().queue_url(queue).max_number_of_messages(most).send();
        let received = received.await.expect("an answer").messages.expect("messages");
        deleted += received.len();
        let handles = received.into_iter().map(|message| message.receipt_handle.expect("a handle"));
        if lanes == 1 {
            for handle in handles {
                let delete = sqs.delete_message().queue_url(queue).receipt_handle(handle);
                delete.send().await.expect("deleted");
            }
            continue;
        }
        let entries = handles.enumerate().map(|(id, handle)| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(id.to_string());
            entry.receipt_handle(handle).build().expect("a complete entry")
        });
        let delete =
            sqs.delete_message_batch().queue_url(queue).set_entries(Some(entries.collect()));
        assert!(delete.send().await.expect("an answer").failed.is_empty());
    }
}
