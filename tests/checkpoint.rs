//! Checkpoints: work resumes where the last delivery ended. Runs on a paused clock; then the real
//! binary.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use leasehold::adapters::aws::s3::S3;
use leasehold::adapters::http::OneClient;
use leasehold::job::run_outcome::RunOutcome;
use leasehold::ports::Storage;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::scenarios::configured;
use crate::support::aws;
use crate::support::bucket::MemoryBucket;
use crate::support::cloud::Cloud;
use crate::support::http::Http;
use crate::support::journey::{
    Does, FakeCommand, FakeStore, GRACE, Journey, MINUTE, S, queue, queue_with,
};
use crate::support::object_created;
use crate::support::records::MemoryRecords;
use crate::support::wire::WiredQueue;

const HOUR: Duration = Duration::from_hours(1);

fn pod(queue: &WiredQueue, command: &FakeCommand, bucket: &MemoryBucket) -> Journey {
    let mut journey = Journey::new(queue, command);
    journey.checkpoints = Some((bucket.clone(), None));
    journey.settings.polling.wait = 20 * MINUTE;
    journey
}

#[tokio::test(start_paused = true)]
async fn stopped_work_resumes_from_its_checkpoint() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
    let stopped = pod(&queue, &command, &bucket).run_and_stop_after(4 * MINUTE + 30 * S).await;
    assert_eq!(stopped.outcomes(), ["stopped"]);
    assert_eq!(bucket.keys(), ["of/message-1/0/1.tar"]);

    let resumed = pod(&queue, &command, &bucket).run().await;
    assert_eq!((resumed.outcomes(), resumed.took), (vec!["succeeded"], 4 * MINUTE));
    assert!(queue.is_drained());
    assert_eq!(bucket.keys(), Vec::<String>::new(), "finished work has no checkpoint");
}

/// SQS hides a message for 12 hours at most; `--max-duration` covers all deliveries.
#[tokio::test(start_paused = true)]
async fn a_job_of_13_hours_finishes_across_two_pods() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(HOUR, 13));
    let long = |mut journey: Journey| {
        journey.settings.policy.limits.max_duration = 20 * HOUR;
        journey
    };
    let started = Instant::now();
    let first = long(pod(&queue, &command, &bucket)).run().await;
    assert_eq!((first.outcomes(), first.outcome.exit_code()), (vec!["handed_over"], 75));
    assert!(first.took > 11 * HOUR && first.took < 12 * HOUR, "{:?}", first.took);

    let second = long(pod(&queue, &command, &bucket)).run().await;
    assert_eq!(
        (second.outcome.clone(), second.outcomes()),
        (RunOutcome::Finished, vec!["succeeded"])
    );
    // Only the interrupted step was repeated.
    assert_eq!(second.took, 2 * HOUR);
    assert!(started.elapsed() < 14 * HOUR && command.runs() == 2);
    assert!(queue.is_drained() && bucket.keys().is_empty());
}

/// A pod with two job types: only the one with a checkpoint hands over.
#[tokio::test(start_paused = true)]
async fn only_job_types_with_a_checkpoint_are_handed_over() {
    let room = tempfile::tempdir().unwrap();
    let types = room.path().join("types.yaml");
    let text = r#"job-types:
  - name: long
    match: { key: "long/**" }
    checkpoint: s3://state/{job_type}/{stem}
    max-duration: 20h
  - name: short
    match: { key: "short/**" }
    max-duration: 11h
"#;
    std::fs::write(&types, text).unwrap();
    let bucket = MemoryBucket::default();
    let pod = |queue: &WiredQueue, command: &FakeCommand| {
        let mut journey = Journey::new(queue, command);
        journey.settings =
            configured(&format!("--job-types {}", types.display())).unwrap().work.settings;
        journey.checkpoints = Some((bucket.clone(), None));
        journey
    };

    let (queue, command) =
        (queue_with(&[&object_created("long/k.csv")]), FakeCommand::new(Does::Resumes(HOUR, 13)));
    let first = pod(&queue, &command).run().await;
    assert_eq!(first.outcomes(), ["handed_over"]);
    assert!(first.took > 11 * HOUR && first.took < 12 * HOUR, "{:?}", first.took);
    assert_eq!(bucket.keys(), ["long/k/message-1/0/1.tar"]);
    let second = pod(&queue, &command).run().await;
    assert_eq!((second.outcomes(), second.took), (vec!["succeeded"], 2 * HOUR));
    assert!(queue.is_drained() && bucket.keys().is_empty());

    for (max_duration, outcome) in [(None, "timed_out"), (Some(20 * HOUR), "lease_exhausted")] {
        let queue = queue_with(&[&object_created("short/k.csv")]);
        let command = FakeCommand::new(Does::Exits(13 * HOUR, 0));
        let mut journey = pod(&queue, &command);
        let limits = &mut journey.settings.policy.job_types[1].limits;
        // A file must not set more than the ceiling; it applies anyway.
        limits.max_duration = max_duration.unwrap_or(limits.max_duration);
        assert_eq!(journey.run().await.outcomes(), [outcome]);
        assert_eq!(bucket.keys(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn max_duration_covers_all_deliveries() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
    let short = |mut journey: Journey| {
        journey.settings.policy.limits.max_duration = 6 * MINUTE;
        journey
    };
    let first = short(pod(&queue, &command, &bucket)).run_and_stop_after(4 * MINUTE + 30 * S).await;
    assert_eq!(first.outcomes(), ["stopped"]);
    let second = short(pod(&queue, &command, &bucket)).run().await;
    assert_eq!((second.outcomes(), second.took), (vec!["timed_out"], MINUTE + 30 * S));
}

/// Otherwise a hanging command, which writes no state, would have twelve hours at each delivery.
#[tokio::test(start_paused = true)]
async fn the_time_of_a_delivery_counts_even_without_saved_state() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Exits(HOUR, 0));
    let short = |mut journey: Journey| {
        journey.settings.policy.limits.max_duration = 6 * MINUTE;
        journey
    };
    let first = short(pod(&queue, &command, &bucket)).run_and_stop_after(4 * MINUTE).await;
    assert_eq!((first.outcomes(), bucket.keys().len()), (vec!["stopped"], 1));
    let second = short(pod(&queue, &command, &bucket)).run().await;
    assert_eq!((second.outcomes(), second.took), (vec!["timed_out"], 2 * MINUTE));
}

/// The grace may be too short for another save.
#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_a_save_in_progress() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
    bucket.uploads_take(12 * S);
    let mut first = pod(&queue, &command, &bucket);
    first.checkpoints = Some((bucket.clone(), Some(100 * S)));
    let first = first.run_and_stop_after(105 * S).await;
    assert_eq!((first.outcomes(), bucket.keys().len()), (vec!["stopped"], 1));
    assert!(first.took < 105 * S + GRACE, "{:?}", first.took);

    let second = pod(&queue, &command, &bucket).run().await;
    assert_eq!((second.outcomes(), second.took), (vec!["succeeded"], 7 * MINUTE));
}

#[tokio::test(start_paused = true)]
async fn a_success_does_not_wait_for_a_save() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    bucket.uploads_take(HOUR);
    let mut pod = pod(&queue, &FakeCommand::new(Does::Resumes(MINUTE, 2)), &bucket);
    pod.checkpoints = Some((bucket.clone(), Some(100 * S)));
    let ended = pod.run().await;
    assert_eq!(
        (ended.outcomes(), ended.took, bucket.keys().len()),
        (vec!["succeeded"], 2 * MINUTE, 0)
    );
}

/// A store that does not answer neither delays a failure nor changes its outcome.
#[tokio::test(start_paused = true)]
async fn a_failure_does_not_wait_for_a_stuck_save() {
    // Also during a save of the interval, and near the end of the command's time.
    for (interval, max_duration) in
        [(None, 10 * MINUTE), (Some(100 * S), 10 * MINUTE), (None, 2 * MINUTE + 3 * S)]
    {
        let (queue, bucket) = (queue(), MemoryBucket::default());
        let command = FakeCommand::new(Does::ResumesAndExits(MINUTE, 2, 1));
        bucket.uploads_take(HOUR);
        let mut pod = pod(&queue, &command, &bucket);
        pod.checkpoints = Some((bucket.clone(), interval));
        pod.settings.policy.limits.max_duration = max_duration;
        let ended = pod.run().await;
        assert_eq!(
            (ended.outcomes(), bucket.keys().len()),
            (vec!["command_failed"], 0),
            "{interval:?} {max_duration:?}"
        );
        assert!(ended.took <= 2 * MINUTE + 10 * S, "{:?}", ended.took);
    }
}

/// The state of a failed command is saved if the store is only slow.
#[tokio::test(start_paused = true)]
async fn a_failure_waits_for_a_slow_save() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::ResumesAndExits(MINUTE, 2, 1));
    bucket.uploads_take(4 * S);
    let ended = pod(&queue, &command, &bucket).run().await;
    assert_eq!(
        (ended.outcomes(), ended.took, bucket.keys().len()),
        (vec!["command_failed"], 2 * MINUTE + 4 * S, 1)
    );
}

/// A stuck save does not prevent the next ones.
#[tokio::test(start_paused = true)]
async fn a_stuck_save_is_aborted_while_the_command_runs() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(MINUTE, 9));
    bucket.uploads_take(HOUR);
    let mut first = pod(&queue, &command, &bucket);
    first.checkpoints = Some((bucket.clone(), Some(MINUTE)));
    let (dead, ()) = tokio::join!(first.run_for(6 * MINUTE, std::future::pending()), async {
        tokio::time::sleep(90 * S).await;
        bucket.uploads_take(S);
    });
    assert!(dead.is_none());
    assert_eq!(bucket.keys(), ["of/message-1/0/1.tar"]);
}

/// The time of saves and fetches does not reduce the time of later deliveries.
#[tokio::test(start_paused = true)]
async fn only_the_time_of_the_command_counts() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::ResumesAndExits(MINUTE, 6, 1));
    let slow = |store: Duration| {
        let mut pod = pod(&queue, &command, &bucket);
        pod.settings.policy.limits.max_duration = 10 * MINUTE;
        pod.store = Arc::new(FakeStore { after: store, ..FakeStore::default() });
        pod
    };
    // The time limit ends before the command has started.
    let first = slow(HOUR).run().await;
    assert_eq!((first.outcomes(), bucket.keys().len()), (vec!["timed_out"], 0));
    // The store takes three minutes, the command six.
    let second = slow(3 * MINUTE).run().await;
    assert_eq!(
        (second.outcomes(), second.ended()[0].work.timings.total),
        (vec!["command_failed"], 9 * MINUTE)
    );
    // So four minutes remain.
    let third = slow(5 * MINUTE).run().await;
    assert_eq!(
        (third.outcomes(), third.ended()[0].work.timings.total),
        (vec!["timed_out"], 4 * MINUTE)
    );
    let saved = bucket.get("of/message-1/0/2.tar").unwrap();
    let mut archive = tar::Archive::new(saved.as_ref());
    let about: serde_json::Value =
        serde_json::from_reader(archive.entries().unwrap().next().unwrap().unwrap()).unwrap();
    assert_eq!(about["worked_s"], 360);
}

/// After a KILL only the last save of the interval exists.
#[tokio::test(start_paused = true)]
async fn work_of_a_killed_pod_resumes_from_the_last_save() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
    let mut first = pod(&queue, &command, &bucket);
    first.checkpoints = Some((bucket.clone(), Some(100 * S)));
    assert!(first.run_for(4 * MINUTE + 10 * S, std::future::pending()).await.is_none());

    let second = pod(&queue, &command, &bucket).run().await;
    // The last save was after 3 minutes and 20 seconds, with 3 of 8 steps; the message is visible
    // again within two minutes.
    assert_eq!(second.outcomes(), ["succeeded"]);
    assert_eq!(second.ended()[0].work.timings.command, 5 * MINUTE);
}

#[tokio::test(start_paused = true)]
async fn failed_work_resumes_from_its_checkpoint() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::sequence([Does::Resumes(MINUTE, 8), Does::Resumes(MINUTE, 8)]);
    let mut first = pod(&queue, &command, &bucket);
    first.settings.policy.limits.max_duration = 5 * MINUTE + 30 * S;
    assert_eq!(first.run().await.outcomes(), ["timed_out"]);
    assert_eq!(
        pod(&queue, &command, &bucket).run().await.ended()[0].work.timings.command,
        3 * MINUTE
    );
}

/// A store that is too slow loses only the new state: the stop ends in time, and the previous
/// checkpoint stays.
#[tokio::test(start_paused = true)]
async fn a_slow_save_is_aborted_within_the_grace() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
    let first = pod(&queue, &command, &bucket).run_and_stop_after(2 * MINUTE + 30 * S).await;
    assert_eq!((first.outcomes(), bucket.keys().len()), (vec!["stopped"], 1));

    bucket.uploads_take(HOUR);
    let second = pod(&queue, &command, &bucket).run_and_stop_after(2 * MINUTE + 30 * S).await;
    assert_eq!(
        (second.outcomes(), bucket.keys()),
        (vec!["stopped"], vec!["of/message-1/0/1.tar".to_owned()])
    );
    assert!(second.took < 2 * MINUTE + 30 * S + GRACE, "{:?}", second.took);

    bucket.uploads_take(Duration::ZERO);
    let third = pod(&queue, &command, &bucket).run().await;
    assert_eq!((third.outcomes(), third.took), (vec!["succeeded"], 6 * MINUTE));
}

/// A pod that lost its lease saves its state too, but does not overwrite the state of the pod that
/// received the message.
#[tokio::test(start_paused = true)]
async fn the_checkpoint_of_the_newest_delivery_is_restored() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
    for stop_after in [90 * S, 150 * S] {
        pod(&queue, &command, &bucket).run_and_stop_after(stop_after).await;
    }
    assert_eq!(bucket.keys(), ["of/message-1/0/2.tar"], "the previous one is deleted");
    // A late save of the first delivery, with older state.
    bucket.insert("of/message-1/0/1.tar", b"no archive");
    let third = pod(&queue, &command, &bucket).run().await;
    assert_eq!((third.outcomes(), third.took), (vec!["succeeded"], 5 * MINUTE));
    assert_eq!(bucket.keys(), Vec::<String>::new());
}

/// Two notifications of one upload: the checkpoint of the first is also deleted when the second has
/// finished the work.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_of_already_finished_work_is_deleted() {
    let (queue, bucket, records) = (
        queue_with(&[&object_created("k"), &object_created("k")]),
        MemoryBucket::default(),
        MemoryRecords::default(),
    );
    let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
    let pod = || {
        let mut pod = pod(&queue, &command, &bucket);
        pod.records = Some(records.clone());
        pod
    };
    let mut first = pod();
    first.settings.policy.limits.max_duration = 90 * S;
    assert_eq!(
        (first.run().await.outcomes(), bucket.keys()),
        (vec!["timed_out"], vec!["of/message-1/0/1.tar".to_owned()])
    );
    let mut second = pod();
    second.settings.policy.max_messages = 2;
    assert_eq!(second.run().await.outcomes(), ["succeeded", "already_done"]);
    assert_eq!(bucket.keys(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_invalid_checkpoint_keeps_the_message_and_is_named() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
    pod(&queue, &command, &bucket).run_and_stop_after(90 * S).await;
    bucket.insert("of/message-1/0/1.tar", b"half of one");
    let second = pod(&queue, &command, &bucket).run().await;
    assert_eq!((second.outcomes(), command.runs()), (vec!["fetch_failed"], 1));
    let error = second.ended()[0].error().unwrap();
    assert!(error.contains("s3://state/of/message-1/0/1.tar cannot be restored"), "{error}");
}

#[tokio::test]
async fn the_binary_resumes_from_a_checkpoint() {
    let cloud = Cloud::new(5).await;
    let state = format!("{}-state", cloud.bucket);
    cloud.s3.create_bucket().bucket(&state).send().await.expect("the bucket is created");
    cloud.put("k", b"x").await;
    let flags = format!("--checkpoint s3://{state}/of --checkpoint-interval 1h");
    let script = r#"cd "$JOB_CHECKPOINT_DIR"; if [ -e deep/state ]; then cat deep/state; ls -l deep/tool; exit 0; fi
        mkdir deep; echo half way > deep/state; touch deep/tool; chmod 755 deep/tool; ln -s state deep/link
        echo up > "$OLDPWD/up"; sleep 60"#;
    let run = cloud.run(&flags, script);
    cloud.file("up").await;
    run.signal(Signal::SIGTERM);
    let exited = run.expect_exit(143).await;
    assert_eq!(exited.record("checkpoint saved")["worked_s"], 0);

    let exited = cloud.run(&flags, script).expect_exit(0).await;
    let lines: Vec<_> = exited.log.iter().filter_map(|record| record["line"].as_str()).collect();
    assert!(lines[0] == "half way" && lines[1].starts_with("-rwxr-xr-x"), "{lines:?}");
    assert_eq!(exited.record("resuming from a checkpoint")["files"], 4);
    let kept = cloud.s3.list_objects_v2().bucket(&state).send().await.unwrap();
    assert_eq!(kept.key_count, Some(0), "finished work has no checkpoint");
}

#[tokio::test]
async fn a_job_type_has_its_own_checkpoint_location() {
    let cloud = Cloud::new(5).await;
    let state = format!("{}-state", cloud.bucket);
    cloud.s3.create_bucket().bucket(&state).send().await.expect("the bucket is created");
    let types = cloud.dir.path().join("types.yaml");
    let text = "job-types:
  - name: long
    match: { key: 'long/**' }
    checkpoint: s3://STATE/{job_type}/{stem}
    checkpoint-interval: 1h
    max-duration: 20h
";
    std::fs::write(&types, text.replace("STATE", &state)).unwrap();
    let flags = format!("--job-types {}", types.display());
    let script = r#"[ "$JOB_TYPE" = long ] || { [ -z "$(ls -A "$JOB_CHECKPOINT_DIR")" ]; exit; }
        cd "$JOB_CHECKPOINT_DIR"; if [ -e state ]; then cat state; exit 0; fi
        echo half way > state; echo up > "$OLDPWD/up"; sleep 60"#;
    cloud.put("long/film.mp4", b"x").await;
    let run = cloud.run(&flags, script);
    cloud.file("up").await;
    run.signal(Signal::SIGTERM);
    let exited = run.expect_exit(143).await;
    let saved = exited.record("checkpoint saved")["checkpoint"].as_str().unwrap().to_owned();
    assert!(saved.starts_with("long/film/") && saved.ends_with("/0/1.tar"), "{saved}");
    cloud.s3.head_object().bucket(&state).key(&saved).send().await.expect("the checkpoint exists");

    let exited = cloud.run(&flags, script).expect_exit(0).await;
    assert_eq!(exited.record("resuming from a checkpoint")["checkpoint"], saved);
    assert!(exited.log.iter().any(|record| record["line"] == "half way"));
    let kept = cloud.s3.list_objects_v2().bucket(&state).send().await.unwrap();
    assert_eq!(kept.key_count, Some(0), "finished work has no checkpoint");

    cloud.put("short/k", b"x").await;
    let exited = cloud.run(&flags, script).expect_exit(0).await;
    assert_eq!(exited.record("message deleted")["job_type"], "default");
}

#[tokio::test]
async fn a_listing_is_complete_and_an_endless_one_is_an_error() {
    let page = |names: std::ops::Range<u32>, next: Option<&str>| {
        let contents = names.map(|name| format!("<Contents><Key>of/{name}.tar</Key></Contents>"));
        let contents = contents.collect::<Vec<_>>().concat();
        let next =
            next.map(|next| format!("<NextContinuationToken>{next}</NextContinuationToken>"));
        let truncated = next.is_some();
        format!(
            "<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{contents}{}</ListBucketResult>",
            next.unwrap_or_default()
        )
    };
    let pages = Http::start(move |request| {
        let second = request.lines().next().unwrap().contains("continuation-token=more");
        (200, if second { page(1000..1500, None) } else { page(0..1000, Some("more")) })
    })
    .await;
    let listed = S3::new(&aws::config(&pages.endpoint), None).list("b", "of/").await.unwrap();
    assert_eq!((listed.len(), listed.last().unwrap().as_str()), (1500, "of/1499.tar"));

    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let endless = Http::start(move |_| {
        let token = count.fetch_add(1, Ordering::Relaxed).to_string();
        (200, page(0..0, Some(&token)))
    })
    .await;
    S3::new(&aws::config(&endless.endpoint), None).list("b", "of/").await.unwrap_err();
    assert_eq!(asked.load(Ordering::Relaxed), 100);

    // A single page has a size limit too, since it is read into memory.
    let long = Http::start(|_| (200, format!("<ListBucketResult>{}", " ".repeat(17 << 20)))).await;
    let config =
        aws::config(&long.endpoint).into_builder().http_client(OneClient::new(None)).build();
    let error = S3::new(&config, None).list("b", "of/").await.unwrap_err();
    assert!(error.contains("length limit exceeded"), "{error}");
}

/// What a command writes when it is stopped is a usual case.
#[tokio::test]
async fn files_that_are_not_saved_are_named_also_after_a_stop() {
    let cloud = Cloud::new(5).await;
    cloud.put("k", b"x").await;
    let script = "trap 'echo half > $JOB_CHECKPOINT_DIR/state; exit 0' TERM; echo > began; \
                  while :; do sleep 0.05; done";
    let pod = cloud.run("", script);
    cloud.file("began").await;
    pod.signal(Signal::SIGTERM);
    let ended = pod.wait().await;
    let warning =
        "the command wrote into JOB_CHECKPOINT_DIR, but the files are not saved: set --checkpoint";
    assert_eq!(ended.record(warning)["level"], "WARN");
    assert_eq!(cloud.counts().await, (1, 0));
}
