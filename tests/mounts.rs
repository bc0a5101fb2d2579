//! `--input mount`: objects of a mounted bucket, which here is a directory.

use std::fs;
use std::sync::Arc;

use leasehold::job::mount::Mount;
use leasehold::job::route::{Input, MissingObject, Task};
use leasehold::ports::FetchError;
use tempfile::TempDir;

use crate::scenarios::configured;
use crate::support::cloud::Cloud;
use crate::support::journey::{FakeStore, Journey, deletes, exits, queue_with, task};
use crate::support::object_created;

#[test]
fn mounts_that_cannot_work_are_refused_at_start() {
    for (flags, complaint) in [
        ("--input mount", "--input mount needs --mount"),
        ("--mount s3://in=/in", "--mount has no effect without --input mount"),
        ("--input mount --mount s3://in=in", "write for example s3://bucket/prefix=/mnt/bucket"),
        ("--input mount --mount s3://in=/a,s3://in=/b", "twice"),
        ("--input mount --mount s3://in=/a --events ObjectRemoved:*", "was deleted"),
    ] {
        let error = configured(flags).unwrap_err();
        assert!(error.contains(complaint), "{flags}: {error}");
    }
    let config = configured("--input mount --mount s3://in=/in --mount s3://out/x=/out").unwrap();
    assert_eq!(config.work.fetch.mounts.len(), 2);
}

/// The bucket `inbox`, whose object `k` has the four bytes that the event says.
fn bucket() -> TempDir {
    let bucket = tempfile::tempdir().unwrap();
    fs::write(bucket.path().join("k"), "data").unwrap();
    fs::write(bucket.path().join("short"), "dat").unwrap();
    bucket
}

#[tokio::test(start_paused = true)]
async fn the_command_gets_the_path_below_the_mount() {
    let bucket = bucket();
    for (key, location, missing, outcome) in [
        ("k", "s3://inbox", None, "succeeded"),
        ("gone", "s3://inbox", None, "fetch_failed"),
        ("gone", "s3://inbox", Some(MissingObject::Fail), "unreadable"),
        ("gone", "s3://inbox", Some(MissingObject::Ignore), "objects_gone"),
        ("short", "s3://inbox", None, "unreadable"),
        ("short", "s3://inbox", Some(MissingObject::Retry), "fetch_failed"),
        ("../k", "s3://inbox", Some(MissingObject::Ignore), "unreadable"),
        ("a%00", "s3://inbox", None, "unreadable"),
        ("k", "s3://other", Some(MissingObject::Ignore), "unreadable"),
        ("k", "s3://inbox/k", None, "unreadable"),
    ] {
        let (queue, command) = (queue_with(&[&object_created(key)]), exits(0));
        let mut journey = Journey::new(&queue, &command);
        let not_asked = Err(FetchError::Permanent("S3 is not asked".to_owned()));
        journey.store = Arc::new(FakeStore { answer: not_asked, ..FakeStore::default() });
        let mounted =
            Mount { location: location.parse().unwrap(), directory: bucket.path().to_owned() };
        journey.fetch.mounts = vec![mounted];
        let task = Task { input: Input::Mount, missing_object: missing, ..task() };
        journey.settings.policy.task = Some(Arc::new(task));
        let result = journey.run().await;
        let error = result.ended()[0].error();
        assert_eq!(result.outcomes(), [outcome], "{key} {location} {missing:?}: {error:?}");
        let is_deleted = ["succeeded", "objects_gone"].contains(&outcome);
        assert_eq!(deletes(&queue), usize::from(is_deleted), "{key}");
        if outcome == "succeeded" {
            assert_eq!(command.last().command.job.input, Some(bucket.path().join("k")));
            assert_eq!(command.got("JOB_SIZE"), ["4"]);
        } else {
            assert_eq!(command.runs(), 0, "{key}");
        }
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_mounted_loses_no_message() {
    let cloud = Cloud::new(5).await;
    cloud.put("in/a.csv", b"1,2").await;
    let directory = cloud.dir.path().join("mnt");
    let at = cloud.dir.path().join("opt/data.csv");
    let flags = format!(
        "--input mount --mount s3://{}/in={} --missing-object ignore --retry-min 0s --retry-max 0s --input-at {}",
        cloud.bucket,
        directory.display(),
        at.display()
    );
    let refused = cloud.run(&flags, "true").expect_exit(78).await;
    assert!(refused.stderr.contains("mount the bucket there"), "{}", refused.stderr);

    fs::create_dir(&directory).unwrap();
    let kept = cloud.run(&flags, "true").expect_exit(75).await;
    assert!(kept.stdout.contains("is the bucket mounted there?"), "{}", kept.stdout);

    fs::write(directory.join("a.csv"), "1,2").unwrap();
    let script = "cat \"$JOB_INPUT\" opt/data.csv > got && echo \" $JOB_INPUT\" >> got";
    cloud.run(&flags, script).expect_exit(0).await;
    assert_eq!(cloud.file("got").await, format!("1,21,2 {}", directory.join("a.csv").display()));
    assert_eq!(cloud.counts().await, (0, 0));
    assert!(fs::symlink_metadata(&at).is_err() && directory.join("a.csv").exists());
}
