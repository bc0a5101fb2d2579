//! What the command wrote is published, all of it, before the message is deleted; or the message is kept.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::job::report::Manifest;
use leasehold::ports::checksum::{Algorithm, Hasher};
use leasehold::ports::s3::S3;
use leasehold::ports::{ObjectWriter, Outbox, PublishError, Results, Upload};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::support::aws;
use crate::support::cloud::{Cloud, Leasehold, eventually};
use crate::support::journey::{GRACE, Journey, MINUTE, S, deletes, exits, queue};
use crate::support::servers::{Microburst, Moto};

/// A bucket for results, which sends no notifications.
async fn results_of(cloud: &Cloud) -> String {
    let bucket = format!("{}-results", cloud.bucket);
    cloud.s3.create_bucket().bucket(&bucket).send().await.unwrap();
    bucket
}

async fn keys(cloud: &Cloud, bucket: &str) -> Vec<String> {
    let listed = cloud.s3.list_objects_v2().bucket(bucket).send().await.unwrap();
    listed.contents.unwrap_or_default().into_iter().map(|object| object.key.unwrap()).collect()
}

#[tokio::test]
async fn results_are_published_as_they_lie_in_the_folder_and_the_report_names_them() {
    let cloud = Cloud::new(5).await;
    let bucket = results_of(&cloud).await;
    cloud.put("in/orders.csv", b"x").await;
    let script = r#"cd "$JOB_OUTPUT_DIR"; mkdir -p "by day/ü"; echo '{}' > totals.json; echo '1;2' > "by day/ü/1.csv"; touch none"#;
    let left = cloud.run(&format!("--output s3://{bucket}/{{job_type}}/{{stem}}/"), script).run_to(0).await;

    let below = "default/orders";
    let expected = ["by day/ü/1.csv", "none", "totals.json"].map(|name| format!("{below}/{name}"));
    assert_eq!(keys(&cloud, &bucket).await, expected);
    let get = cloud.s3.get_object().bucket(&bucket).key(format!("{below}/totals.json")).send().await.unwrap();
    assert_eq!(get.content_type(), Some("application/json"));
    assert_eq!(get.body.collect().await.unwrap().to_vec(), b"{}\n");
    let get = cloud.s3.get_object().bucket(&bucket).key(format!("{below}/none")).send().await.unwrap();
    assert_eq!(get.content_type(), Some("application/octet-stream"));

    let ended = left.record("message deleted");
    assert_eq!((&ended["published"], &ended["published_bytes"]), (&3.into(), &7.into()));
    let manifest: Vec<Value> = serde_json::from_str(ended["manifest"].as_str().unwrap()).unwrap();
    let named: Vec<_> = manifest.iter().map(|file| file["to"].as_str().unwrap().to_owned()).collect();
    assert_eq!(named, expected.map(|key| format!("s3://{bucket}/{key}")));
    let mut hasher = Hasher::new(Algorithm::Crc64Nvme);
    hasher.update(b"{}\n");
    assert_eq!(manifest[2]["checksum"], format!("CRC64NVME:{}", hasher.value()));
    assert!(manifest.iter().all(|file| file["etag"].is_string()));
}

/// Results that cannot all be published are a failure that says why; the message is kept.
#[tokio::test]
async fn results_that_cannot_be_published_keep_the_message() {
    for (bucket, script, complaint) in [
        (None, r#"echo x > "$JOB_OUTPUT_DIR/x""#, "NoSuchBucket"),
        (Some(()), r#"ln -s /etc/passwd "$JOB_OUTPUT_DIR/x""#, "/output/x: it is neither a file nor a folder"),
        (Some(()), r#"mkfifo "$JOB_OUTPUT_DIR/x""#, "/output/x: it is neither a file nor a folder"),
    ] {
        let cloud = Cloud::new(5).await;
        let bucket = if bucket.is_some() { results_of(&cloud).await } else { "no-such-bucket".to_owned() };
        cloud.put("k", b"x").await;
        let left = cloud.run(&format!("--output s3://{bucket}/out"), script).run_to(75).await;
        let kept = left.record("message kept");
        assert_eq!((&kept["outcome"], &kept["exit_code"]), (&"publish_failed".into(), &0.into()));
        assert!(kept["error"].as_str().unwrap().contains(complaint), "{kept}");
        assert_eq!(cloud.counts().await, (0, 1));
    }
}

/// A body is no object, but what comes of it is a result all the same.
#[tokio::test]
async fn what_comes_of_a_message_that_is_no_notification_is_published_too() {
    let cloud = Cloud::new(5).await;
    let bucket = results_of(&cloud).await;
    cloud.send("a body".to_owned()).await;
    let flags = format!("--accept-raw --output s3://{bucket}/{{job_type}}/{{message_id}}");
    let left = cloud.run(&flags, r#"cp "$JOB_INPUT" "$JOB_OUTPUT_DIR/seen""#).run_to(0).await;
    let ended = left.record("message deleted");
    let key = format!("default/{}/seen", ended["message_id"].as_str().unwrap());
    assert_eq!((ended["published"].as_u64(), keys(&cloud, &bucket).await), (Some(1), vec![key.clone()]));
    let get = cloud.s3.get_object().bucket(&bucket).key(key).send().await.unwrap();
    assert_eq!(get.body.collect().await.unwrap().to_vec(), b"a body");
}

/// Without `--output` nobody publishes, and the command is not told of a place for results.
#[tokio::test]
async fn without_an_outbox_there_is_no_place_for_results() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let left = cloud.run("", r#"[ -z "${JOB_OUTPUT_DIR+set}" ]"#).run_to(0).await;
    assert!(left.record("message deleted").get("published").is_none());
}

/// Where large results of `cloud`'s jobs go: moto, because ministack hashes in Python, byte by byte.
async fn large_results_of(cloud: &Cloud) -> (aws_sdk_s3::Client, String) {
    let config = aws::config(&Moto::shared().await.endpoint());
    let moto = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
    let (moto, bucket) = (aws_sdk_s3::Client::from_conf(moto), format!("{}-results", cloud.bucket));
    moto.create_bucket().bucket(&bucket).send().await.unwrap();
    (moto, bucket)
}

/// Large files go up in parts, each with its checksum, and the checksum of the whole is made of the parts' ones.
#[tokio::test]
async fn a_large_file_is_uploaded_in_parts() {
    const BYTES: u64 = 40 << 20;
    let cloud = Cloud::new(5).await;
    let (moto, bucket) = large_results_of(&cloud).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(BYTES).unwrap();
    let whole = Hasher::of_file(Algorithm::Crc64Nvme, file.path(), 0..BYTES).unwrap().value();
    let upload = Upload { bucket: &bucket, key: "k", path: file.path(), bytes: BYTES, content_type: "text/plain" };
    let s3 = S3::new(&aws::config(&Moto::shared().await.endpoint()), None);
    let uploaded = s3.upload(&upload, &CancellationToken::new()).await.unwrap();
    assert_eq!((uploaded.checksum.algorithm, &uploaded.checksum.value), (Algorithm::Crc64Nvme, &whole));
    let head = moto.head_object().bucket(&bucket).key("k").send().await.unwrap();
    assert_eq!(head.content_length(), Some(i64::try_from(BYTES).unwrap()));
    assert_eq!(head.content_type(), Some("text/plain"));
    assert!(head.e_tag().unwrap().ends_with("-3\""), "{head:?}");
    assert_eq!(uploaded.etag.as_deref(), head.e_tag().map(|etag| etag.trim_matches('"')));
}

/// A part that fails for good fails the publishing, and leaves no parts behind; the next attempt writes the same keys.
/// A stop while parts are on their way deletes nothing, and leaves no parts behind either.
#[tokio::test]
async fn an_upload_that_fails_or_is_stopped_leaves_nothing_half_done_and_keeps_the_message() {
    let (failing, slow) = (Cloud::new(5).await, Cloud::new(5).await);
    let ((moto, failing_results), (_, slow_results)) =
        (large_results_of(&failing).await, large_results_of(&slow).await);
    // microburst takes UploadPart for PutObject.
    let rule = |bucket: &str| json!({ "service": "s3", "operation": "PutObject", "resource": bucket });
    let (mut fails, mut waits) = (rule(&failing_results), rule(&slow_results));
    fails["error"] = json!({ "code": "InternalError", "status": 500 });
    waits["latency"] = 60_000.into();
    let direct = Moto::shared().await.endpoint();
    let network = Microburst::start(&direct, &[fails, waits]).await;
    let broken = network.endpoint();
    aws::warm_up(&broken).await;

    let run = |cloud: &Cloud, results: &str, endpoint: &str| {
        let flags = format!("--retry-min 1s --retry-max 1s --output s3://{results}/{{message_id}}");
        let mut command = cloud.command(&[], &flags, r#"head -c 40000000 /dev/zero > "$JOB_OUTPUT_DIR/large""#);
        command.env("AWS_ENDPOINT_URL_S3", endpoint);
        Leasehold::start(command)
    };
    let unfinished = async |bucket: &str| {
        let listed = moto.list_multipart_uploads().bucket(bucket).send().await.unwrap();
        listed.uploads.unwrap_or_default().len()
    };
    // An object of no bytes is in moto too.
    let put = async |cloud: &Cloud| {
        cloud.put("k", b"").await;
        moto.create_bucket().bucket(&cloud.bucket).send().await.unwrap();
        moto.put_object().bucket(&cloud.bucket).key("k").send().await.unwrap();
    };

    put(&failing).await;
    let left = run(&failing, &failing_results, &broken).run_to(75).await;
    let kept = left.record("message kept");
    assert_eq!(kept["outcome"], "publish_failed");
    assert!(kept["error"].as_str().unwrap().contains("/large: InternalError"), "{kept}");
    assert_eq!(unfinished(&failing_results).await, 0);
    let left = run(&failing, &failing_results, &direct).run_to(0).await;
    let ended = left.record("message deleted");
    assert_eq!((&ended["published"], &ended["published_bytes"]), (&1.into(), &40_000_000.into()));
    let key = format!("{}/large", ended["message_id"].as_str().unwrap());
    let head = moto.head_object().bucket(&failing_results).key(&key).send().await.unwrap();
    assert_eq!(head.content_length(), Some(40_000_000));

    put(&slow).await;
    let running = run(&slow, &slow_results, &broken);
    eventually("parts are on their way", async || (unfinished(&slow_results).await > 0).then_some(())).await;
    let asked = Instant::now();
    running.signal(Signal::SIGTERM);
    let left = running.run_to(143).await;
    assert!(asked.elapsed() < Duration::from_secs(20), "it took {:?}", asked.elapsed());
    assert_eq!(left.record("message kept")["outcome"], "stopped");
    assert_eq!((unfinished(&slow_results).await, slow.counts().await), (0, (1, 0)));
}

/// An outbox that never gets done, and cleans up when it is halted.
#[derive(Default)]
struct Endless {
    cleaned_up: Mutex<Option<Instant>>,
}

#[async_trait]
impl Outbox for Endless {
    async fn publish(&self, results: &Results<'_>, halt: &CancellationToken) -> Result<Manifest, PublishError> {
        assert!(results.directory.ends_with(Path::new("output")) && results.job_type == "default");
        halt.cancelled().await;
        sleep(2 * S).await;
        *self.cleaned_up.lock().unwrap() = Some(Instant::now());
        Err(PublishError("halted".to_owned()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_the_outbox_to_clean_up_and_releases_the_message() {
    let (queue, command, outbox) = (queue(), exits(0), Arc::new(Endless::default()));
    let mut journey = Journey::new(&queue, &command);
    journey.outbox = Some(outbox.clone());
    let began = Instant::now();
    let arrived = journey.run_and_stop_after(MINUTE).await;
    assert_eq!((arrived.outcomes(), arrived.outcome.exit_code()), (vec!["stopped"], 143));
    assert_eq!(outbox.cleaned_up.lock().unwrap().map(|at| at - began), Some(MINUTE + 2 * S));
    assert!(arrived.took < MINUTE + GRACE);
    assert_eq!((deletes(&queue), queue.counts().visible), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn publishing_that_takes_too_long_is_halted_and_retried() {
    let (queue, command) = (queue(), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.outbox = Some(Arc::new(Endless::default()));
    assert_eq!(journey.run().await.outcomes(), ["timed_out"]);
    assert_eq!(deletes(&queue), 0);
}
