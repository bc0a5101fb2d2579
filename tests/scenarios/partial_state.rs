//! 57, 67 and 68: checkpoints (`--checkpoint`) that are half written, lost, or foreign.

use std::time::Duration;

use crate::support::bucket::MemoryBucket;
use crate::support::journey::{Does, FakeCommand, Journey, MINUTE, Replacement, S, deletes, queue};
use crate::support::wire::WiredQueue;

fn pod(queue: &WiredQueue, command: &FakeCommand, bucket: &MemoryBucket) -> Journey {
    let mut journey = Journey::new(queue, command);
    journey.checkpoints = Some((bucket.clone(), Some(90 * S)));
    journey.settings.polling.wait = 20 * MINUTE;
    journey
}

/// A pod dies during a save: the next one resumes from the last complete checkpoint, and deletes it
/// after its success.
#[tokio::test(start_paused = true)]
async fn s57_a_half_saved_checkpoint_is_not_restored() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
    // One save after 90 seconds, with one step; the save after 180 seconds, with three steps, does
    // not complete.
    let (dead, ()) = tokio::join!(
        pod(&queue, &command, &bucket).run_for(4 * MINUTE, std::future::pending()),
        async {
            tokio::time::sleep(2 * MINUTE).await;
            bucket.uploads_take(10 * MINUTE);
        }
    );
    assert!(dead.is_none());
    assert_eq!(bucket.keys(), ["of/message-1/0/1.tar"]);

    bucket.uploads_take(Duration::ZERO);
    let second = pod(&queue, &command, &bucket).run().await;
    assert_eq!(
        (second.outcomes(), second.ended()[0].work.timings.command),
        (vec!["succeeded"], 7 * MINUTE)
    );
    assert!(queue.is_drained() && bucket.keys().is_empty());
}

/// An incomplete archive is not restored: no command runs, and the message is kept until an
/// operator removes the archive.
#[tokio::test(start_paused = true)]
async fn s57_half_an_archive_is_not_restored() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
    pod(&queue, &command, &bucket).run_and_stop_after(100 * S).await;
    let key = "of/message-1/0/1.tar";
    let whole = bucket.get(key).unwrap();
    bucket.insert(key, &whole[..whole.len() / 2]);
    let second = pod(&queue, &command, &bucket).run().await;
    assert_eq!((second.outcomes(), command.runs(), deletes(&queue)), (vec!["fetch_failed"], 1, 0));

    bucket.insert(key, &whole);
    assert_eq!(pod(&queue, &command, &bucket).run().await.outcomes(), ["succeeded"]);
}

/// A command that removes or replaces its checkpoint directory does not thereby delete its state.
#[tokio::test(start_paused = true)]
async fn s67_a_removed_or_replaced_checkpoint_directory_overwrites_nothing() {
    for replaced in [Replacement::None, Replacement::File, Replacement::Link, Replacement::Empty] {
        let (queue, bucket) = (queue(), MemoryBucket::default());
        let command = FakeCommand::sequence([
            Does::Resumes(MINUTE, 8),
            // Long enough for a save.
            Does::LosesState(replaced, 2 * MINUTE, 75),
            Does::Resumes(MINUTE, 8),
        ]);
        pod(&queue, &command, &bucket).run_and_stop_after(3 * MINUTE + 30 * S).await;
        let key = "of/message-1/0/1.tar";
        let good = bucket.get(key).unwrap();
        assert_eq!(pod(&queue, &command, &bucket).run().await.outcomes(), ["temporary"]);
        assert_eq!(
            (bucket.keys(), bucket.get(key).unwrap()),
            (vec![key.to_owned()], good),
            "{replaced:?}"
        );

        let third = pod(&queue, &command, &bucket).run().await;
        assert_eq!(
            (third.outcomes(), third.ended()[0].work.timings.command),
            (vec!["succeeded"], 5 * MINUTE)
        );
    }
}

/// An archive from another version of leasehold or from an attacker is not restored, and no error
/// quotes its content.
#[tokio::test(start_paused = true)]
async fn s68_a_foreign_archive_is_not_restored() {
    for (about, problem) in [
        (r#"{"version":9,"worked_s":0}"#, "it has version 9"),
        (r#"{"version":1,"worked_s":18446744073709551615}"#, "longer than the 14 days"),
        (r#"{"version":1,"worked_s":"hidden"}"#, "no worked_s in seconds"),
    ] {
        let (queue, bucket) = (queue(), MemoryBucket::default());
        let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
        pod(&queue, &command, &bucket).run_and_stop_after(100 * S).await;
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(about.len() as u64);
        tar.append_data(&mut header, "leasehold.json", about.as_bytes()).unwrap();
        bucket.insert("of/message-1/0/1.tar", &tar.into_inner().unwrap());
        let second = pod(&queue, &command, &bucket).run().await;
        assert_eq!(
            (second.outcomes(), command.runs(), deletes(&queue)),
            (vec!["fetch_failed"], 1, 0)
        );
        let error = second.ended()[0].error().unwrap();
        assert!(error.contains(problem) && !error.contains("hidden"), "{error}");
    }
}
