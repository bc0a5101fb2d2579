//! A minimal consumer with the SDK: the maximum rate of the server, for `benches/compare-drain`.
//!
//! `bare_drain QUEUE_URL CONCURRENCY`

use aws_config::BehaviorVersion;
use serde_json::Value;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

fn main() {
    let mut args = std::env::args().skip(1);
    let mut arg = || args.next().expect("bare_drain QUEUE_URL CONCURRENCY");
    let (queue, concurrency) = (arg(), arg().parse().expect("a number"));
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async {
            let http = aws_smithy_http_client::Builder::new().build_http();
            let shared =
                aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await;
            let sqs = aws_sdk_sqs::Client::new(&shared);
            let s3 = aws_sdk_s3::config::Builder::from(&shared).force_path_style(true).build();
            let s3 = aws_sdk_s3::Client::from_conf(s3);
            let mut workers = JoinSet::new();
            for _ in 0..concurrency {
                workers.spawn(drain(sqs.clone(), s3.clone(), queue.clone()));
            }
            workers.join_all().await;
        });
}

async fn drain(sqs: aws_sdk_sqs::Client, s3: aws_sdk_s3::Client, queue: String) {
    loop {
        let received =
            sqs.receive_message().queue_url(&queue).max_number_of_messages(1).send().await;
        let Some(message) =
            received.expect("an answer").messages.and_then(|messages| messages.into_iter().next())
        else {
            return;
        };
        let body: Value = serde_json::from_str(message.body().expect("a body")).expect("JSON");
        let text = |path: &str| body.pointer(path).and_then(Value::as_str).expect(path).to_owned();
        let (bucket, key) = (text("/Records/0/s3/bucket/name"), text("/Records/0/s3/object/key"));
        let object = s3.get_object().bucket(bucket).key(key).send().await.expect("an object");
        object.body.collect().await.expect("the object's bytes");
        let handle = message.receipt_handle.expect("a handle");
        sqs.delete_message()
            .queue_url(&queue)
            .receipt_handle(handle)
            .send()
            .await
            .expect("deleted");
    }
}
