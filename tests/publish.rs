//! All results of the command are published before the message is deleted; otherwise the message is
//! kept.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::adapters::aws::s3::S3;
use leasehold::job::outcome::Manifest;
use leasehold::job::verdict::OnStop;
use leasehold::ports::checksum::{Algorithm, Hasher};
use leasehold::ports::{ObjectWriter, Outbox, PublishError, Results, Upload, VisibilityError};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::support::aws;
use crate::support::bucket::MemoryBucket;
use crate::support::cloud::{Cloud, ExitedRun, Leasehold, eventually};
use crate::support::journey::{
    Does, FakeCommand, GRACE, Journey, MINUTE, S, deletes, exits, queue,
};
use crate::support::servers::{Microburst, Moto};
use crate::support::wire::Fault;

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
async fn results_keep_their_paths_and_the_report_names_them() {
    let cloud = Cloud::new(5).await;
    let bucket = results_of(&cloud).await;
    cloud.put("in/orders.csv", b"x").await;
    let script = r#"cd "$JOB_OUTPUT_DIR"; mkdir -p "by day/ü"; echo '{}' > totals.json; echo '1;2' > "by day/ü/1.csv"; touch none"#;
    let exited = cloud
        .run(&format!("--output s3://{bucket}/{{job_type}}/{{stem}}/"), script)
        .expect_exit(0)
        .await;

    let below = "default/orders";
    let expected = ["by day/ü/1.csv", "none", "totals.json"].map(|name| format!("{below}/{name}"));
    assert_eq!(keys(&cloud, &bucket).await, expected);
    let get = cloud
        .s3
        .get_object()
        .bucket(&bucket)
        .key(format!("{below}/totals.json"))
        .send()
        .await
        .unwrap();
    assert_eq!(get.content_type(), Some("application/json"));
    assert_eq!(get.body.collect().await.unwrap().to_vec(), b"{}\n");
    let get =
        cloud.s3.get_object().bucket(&bucket).key(format!("{below}/none")).send().await.unwrap();
    assert_eq!(get.content_type(), Some("application/octet-stream"));

    let ended = exited.record("message deleted");
    assert_eq!((&ended["published"], &ended["published_bytes"]), (&3.into(), &7.into()));
    let manifest: Vec<Value> = serde_json::from_str(ended["manifest"].as_str().unwrap()).unwrap();
    let named: Vec<_> =
        manifest.iter().map(|file| file["to"].as_str().unwrap().to_owned()).collect();
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
        (
            Some(()),
            r#"ln -s /etc/passwd "$JOB_OUTPUT_DIR/x""#,
            "/output/x: it is neither a file nor a folder",
        ),
        (Some(()), r#"mkfifo "$JOB_OUTPUT_DIR/x""#, "/output/x: it is neither a file nor a folder"),
    ] {
        let cloud = Cloud::new(5).await;
        let bucket =
            if bucket.is_some() { results_of(&cloud).await } else { "no-such-bucket".to_owned() };
        cloud.put("k", b"x").await;
        let exited =
            cloud.run(&format!("--output s3://{bucket}/out"), script).expect_exit(75).await;
        let kept = exited.record("message kept");
        assert_eq!((&kept["outcome"], &kept["exit_code"]), (&"publish_failed".into(), &0.into()));
        assert!(kept["error"].as_str().unwrap().contains(complaint), "{kept}");
        assert_eq!(cloud.counts().await, (0, 1));
    }
}

/// A raw message has no object, but its results are published too.
#[tokio::test]
async fn results_of_a_raw_message_are_published() {
    let cloud = Cloud::new(5).await;
    let bucket = results_of(&cloud).await;
    cloud.send("a body".to_owned()).await;
    let flags = format!("--accept-raw --output s3://{bucket}/{{job_type}}/{{message_id}}");
    let exited =
        cloud.run(&flags, r#"cp "$JOB_INPUT" "$JOB_OUTPUT_DIR/seen""#).expect_exit(0).await;
    let ended = exited.record("message deleted");
    let key = format!("default/{}/seen", ended["message_id"].as_str().unwrap());
    assert_eq!(
        (ended["published"].as_u64(), keys(&cloud, &bucket).await),
        (Some(1), vec![key.clone()])
    );
    let get = cloud.s3.get_object().bucket(&bucket).key(key).send().await.unwrap();
    assert_eq!(get.body.collect().await.unwrap().to_vec(), b"a body");
}

/// The directories always exist, so that a script works on a laptop and in a pod.
#[tokio::test]
async fn unpublished_results_and_state_are_dropped_with_one_warning() {
    let cloud = Cloud::new(5).await;
    let dropped = |exited: &ExitedRun| {
        let warnings =
            exited.log.iter().filter(|record| record["level"] == "WARN" && record["key"] == "k");
        warnings.map(|record| record["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let write = r#"for n in 1 2 3; do echo x > "$JOB_OUTPUT_DIR/$n"; echo x > "$JOB_CHECKPOINT_DIR/$n"; done"#;
    for (script, warnings) in
        [(r#"cd "$JOB_OUTPUT_DIR" && cd "$JOB_CHECKPOINT_DIR""#, 0), (write, 2)]
    {
        cloud.put("k", b"x").await;
        let exited = cloud.run("", script).expect_exit(0).await;
        assert!(exited.record("message deleted").get("published").is_none());
        assert_eq!(dropped(&exited).len(), warnings, "{:?}", dropped(&exited));
        assert!(
            dropped(&exited)
                .iter()
                .zip(["--output", "--checkpoint"])
                .all(|(text, flag)| text.contains(flag))
        );
    }
}

/// A bucket for large results of `cloud`'s jobs, in moto, because ministack hashes in Python, byte
/// by byte.
async fn large_results_of(cloud: &Cloud) -> (aws_sdk_s3::Client, String) {
    let config = aws::config(&Moto::shared().await.endpoint());
    let moto = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
    let (moto, bucket) = (aws_sdk_s3::Client::from_conf(moto), format!("{}-results", cloud.bucket));
    moto.create_bucket().bucket(&bucket).send().await.unwrap();
    (moto, bucket)
}

/// Large files are uploaded in parts, each with its checksum; the checksum of the file is combined
/// from them.
#[tokio::test]
async fn a_large_file_is_uploaded_in_parts() {
    const BYTES: u64 = 40 << 20;
    let cloud = Cloud::new(5).await;
    let (moto, bucket) = large_results_of(&cloud).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(BYTES).unwrap();
    let whole = Hasher::hash_file(Algorithm::Crc64Nvme, file.path(), 0..BYTES).unwrap().value();
    let upload = Upload {
        bucket: &bucket,
        key: "k",
        path: file.path(),
        bytes: BYTES,
        content_type: "text/plain",
        attributes: None,
    };
    let s3 = S3::new(&aws::config(&Moto::shared().await.endpoint()), None);
    let uploaded = s3.upload(&upload, &CancellationToken::new()).await.unwrap();
    assert_eq!(
        (uploaded.checksum.algorithm, &uploaded.checksum.value),
        (Algorithm::Crc64Nvme, &whole)
    );
    let head = moto.head_object().bucket(&bucket).key("k").send().await.unwrap();
    assert_eq!(head.content_length(), Some(i64::try_from(BYTES).unwrap()));
    assert_eq!(head.content_type(), Some("text/plain"));
    assert!(head.e_tag().unwrap().ends_with("-3\""), "{head:?}");
    assert_eq!(uploaded.etag.as_deref(), head.e_tag().map(|etag| etag.trim_matches('"')));
}

/// A part that fails permanently fails the publishing, and the upload is aborted; the next attempt
/// writes the same keys. A stop during the upload aborts it too, and deletes nothing.
#[tokio::test]
async fn a_failed_or_stopped_upload_is_aborted_and_keeps_the_message() {
    let (failing, slow) = (Cloud::new(5).await, Cloud::new(5).await);
    let ((moto, failing_results), (_, slow_results)) =
        (large_results_of(&failing).await, large_results_of(&slow).await);
    // microburst treats UploadPart as PutObject.
    let rule =
        |bucket: &str| json!({ "service": "s3", "operation": "PutObject", "resource": bucket });
    let (mut fails, mut waits) = (rule(&failing_results), rule(&slow_results));
    fails["error"] = json!({ "code": "InternalError", "status": 500 });
    waits["latency"] = 60_000.into();
    let direct = Moto::shared().await.endpoint();
    let network = Microburst::start(&direct, &[fails, waits]).await;
    let broken = network.endpoint();
    aws::warm_up(&broken).await;

    let run = |cloud: &Cloud, results: &str, endpoint: &str| {
        let flags = format!(
            "--retry-min 1s --retry-max 1s --stop-grace 4s --output s3://{results}/{{message_id}}"
        );
        let mut command =
            cloud.command(&[], &flags, r#"head -c 40000000 /dev/zero > "$JOB_OUTPUT_DIR/large""#);
        command.env("AWS_ENDPOINT_URL_S3", endpoint);
        Leasehold::start(command)
    };
    let unfinished = async |bucket: &str| {
        let listed = moto.list_multipart_uploads().bucket(bucket).send().await.unwrap();
        listed.uploads.unwrap_or_default().len()
    };
    // moto also needs the empty input object.
    let put = async |cloud: &Cloud| {
        cloud.put("k", b"").await;
        moto.create_bucket().bucket(&cloud.bucket).send().await.unwrap();
        moto.put_object().bucket(&cloud.bucket).key("k").send().await.unwrap();
    };

    put(&failing).await;
    let exited = run(&failing, &failing_results, &broken).expect_exit(75).await;
    let kept = exited.record("message kept");
    assert_eq!(kept["outcome"], "publish_failed");
    assert!(kept["error"].as_str().unwrap().contains("/large: InternalError"), "{kept}");
    assert_eq!(unfinished(&failing_results).await, 0);
    let exited = run(&failing, &failing_results, &direct).expect_exit(0).await;
    let ended = exited.record("message deleted");
    assert_eq!((&ended["published"], &ended["published_bytes"]), (&1.into(), &40_000_000.into()));
    let key = format!("{}/large", ended["message_id"].as_str().unwrap());
    let head = moto.head_object().bucket(&failing_results).key(&key).send().await.unwrap();
    assert_eq!(head.content_length(), Some(40_000_000));

    put(&slow).await;
    let running = run(&slow, &slow_results, &broken);
    eventually("the upload has started", async || {
        (unfinished(&slow_results).await > 0).then_some(())
    })
    .await;
    let asked = Instant::now();
    running.signal(Signal::SIGTERM);
    let exited = running.expect_exit(143).await;
    assert!(asked.elapsed() < Duration::from_secs(20), "it took {:?}", asked.elapsed());
    assert_eq!(exited.record("message kept")["outcome"], "stopped");
    assert_eq!((unfinished(&slow_results).await, slow.counts().await), (0, (1, 0)));
}

/// A slow outbox that takes two seconds to clean up after a halt.
struct SlowOutbox {
    takes: Duration,
    cleaned_up: Mutex<Option<Instant>>,
}

impl SlowOutbox {
    fn of(takes: Duration) -> Arc<Self> {
        Arc::new(Self { takes, cleaned_up: Mutex::default() })
    }

    fn cleaned_up_after(&self, began: Instant) -> Option<Duration> {
        self.cleaned_up.lock().unwrap().map(|at| at - began)
    }
}

#[async_trait]
impl Outbox for SlowOutbox {
    async fn publish(
        &self,
        results: &Results<'_>,
        halt: &CancellationToken,
    ) -> Result<Manifest, PublishError> {
        assert!(results.directory.ends_with(Path::new("output")) && results.job_type == "default");
        if halt.run_until_cancelled(sleep(self.takes)).await.is_some() {
            return Ok(Manifest { files: 1, ..Manifest::default() });
        }
        sleep(2 * S).await;
        *self.cleaned_up.lock().unwrap() = Some(Instant::now());
        Err(PublishError("halted".to_owned()))
    }
}

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_the_outbox_to_clean_up_and_releases_the_message() {
    let (queue, command, outbox) = (queue(), exits(0), SlowOutbox::of(HOUR));
    let mut journey = Journey::new(&queue, &command);
    journey.outbox = Some(outbox.clone());
    let began = Instant::now();
    let result = journey.run_and_stop_after(MINUTE).await;
    assert_eq!((result.outcomes(), result.outcome.exit_code()), (vec!["stopped"], 143));
    // All of --stop-grace, of 20 seconds.
    assert_eq!(outbox.cleaned_up_after(began), Some(MINUTE + 20 * S));
    assert!(result.took < MINUTE + GRACE);
    assert_eq!((deletes(&queue), queue.counts().visible), (0, 1));
}

/// Publishing ends at the moment when the lease is lost.
#[tokio::test(start_paused = true)]
async fn a_lost_lease_ends_publishing_at_once() {
    for lost_after in [30 * S, 65 * S] {
        let (queue, command, outbox) = (queue(), exits(0), SlowOutbox::of(HOUR));
        let mut journey = Journey::new(&queue, &command);
        journey.outbox = Some(outbox.clone());
        journey.settings.policy.limits.visibility = 6 * S;
        journey.settings.policy.limits.retry.on_stop = OnStop::Expire;
        let began = Instant::now();
        let (result, ()) = tokio::join!(journey.run_and_stop_after(MINUTE), async {
            sleep(lost_after).await;
            // The next extension is refused.
            queue.fault_change_visibility(Fault::Error(VisibilityError::NotInFlight(
                "received again".to_owned(),
            )));
        });
        let outcome = if lost_after < MINUTE { "lease_lost" } else { "stopped" };
        assert_eq!((result.outcomes(), deletes(&queue)), (vec![outcome], 0));
        let cleaned_up = outbox.cleaned_up_after(began).unwrap();
        assert!(cleaned_up <= lost_after + 2 * S + 2 * S, "{cleaned_up:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn publishing_that_takes_too_long_is_halted_and_retried() {
    let (queue, command) = (queue(), exits(0));
    let mut journey = Journey::new(&queue, &command);
    journey.outbox = Some(SlowOutbox::of(HOUR));
    assert_eq!(journey.run().await.outcomes(), ["timed_out"]);
    assert_eq!(deletes(&queue), 0);
}

/// Without an interval, the state of the command would otherwise be lost.
#[tokio::test(start_paused = true)]
async fn a_stop_during_the_publishing_saves_the_checkpoint() {
    for (takes, keys) in [(HOUR, 1), (5 * MINUTE, 0)] {
        let (queue, bucket) = (queue(), MemoryBucket::default());
        let command = FakeCommand::new(Does::Resumes(MINUTE, 2));
        let mut journey = Journey::new(&queue, &command);
        journey.outbox = Some(SlowOutbox::of(takes));
        journey.checkpoints = Some((bucket.clone(), None));
        bucket.uploads_take(10 * S);
        let result = journey.run_and_stop_after(2 * MINUTE + 5 * MINUTE - 5 * S).await;
        assert_eq!((result.outcomes(), bucket.keys().len()), (vec!["stopped"], keys));
    }
}
