//! 57: what a command has done so far (`--checkpoint`), half written.

use std::time::Duration;

use leasehold::ports::memory::MemoryQueue;

use crate::support::bucket::MemoryBucket;
use crate::support::journey::{Does, FakeCommand, Journey, MINUTE, S, deletes, queue};

fn pod(queue: &MemoryQueue, command: &FakeCommand, bucket: &MemoryBucket) -> Journey {
    let mut journey = Journey::new(queue, command);
    journey.checkpoints = Some((bucket.clone(), Some(90 * S)));
    journey.settings.polling.wait = 20 * MINUTE;
    journey
}

/// The pod is gone while it saves: the next one goes on from what was saved as a whole before, and drops it when it is done.
#[tokio::test(start_paused = true)]
async fn s57_a_checkpoint_that_was_half_saved_when_the_pod_died_is_not_seen() {
    let (queue, bucket) = (queue(), MemoryBucket::default());
    let command = FakeCommand::new(Does::Resumes(MINUTE, 8));
    // Saved after 90 seconds, with one step; and, but for the end of that, after 180 and with three.
    let (dead, ()) = tokio::join!(pod(&queue, &command, &bucket).run_for(4 * MINUTE, std::future::pending()), async {
        tokio::time::sleep(2 * MINUTE).await;
        bucket.uploads_take(10 * MINUTE);
    });
    assert!(dead.is_none());
    assert_eq!(bucket.keys(), ["of/message-1/0/1.tar"]);

    bucket.uploads_take(Duration::ZERO);
    let second = pod(&queue, &command, &bucket).run().await;
    assert_eq!((second.outcomes(), second.ended()[0].spent.command), (vec!["succeeded"], 7 * MINUTE));
    assert!(queue.is_drained() && bucket.keys().is_empty());
}

/// Wherever an archive ends that is none, it is not taken for one: nothing of it is worked on, and the message is kept until
/// somebody removes it.
#[tokio::test(start_paused = true)]
async fn s57_half_of_an_archive_is_not_gone_on_from() {
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
