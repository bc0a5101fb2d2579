//! A handler as a type, and every kind of test: retry, stop, lost lease, redelivery, a direct call.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use leasehold::{Error, Failure, Handler, Job};
use tokio::time::sleep;

/// Delivers an object to a service that is closed at first.
#[derive(Default)]
pub struct Deliver {
    sent: AtomicU32,
    closed: AtomicU32,
}

impl Handler for Deliver {
    async fn handle(&self, job: Job) -> Result<(), Error> {
        if job.receive_count <= self.closed.load(Ordering::Relaxed) {
            return Err(Failure::retry("it is closed").after(Duration::from_mins(5)).into());
        }
        sleep(Duration::from_mins(1)).await;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use leasehold::Outcome;
    use leasehold::testing::TestWorker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn success_deletes_the_message() {
        let run = TestWorker::new(Deliver::default()).object("a", "data").run().await;
        assert_eq!(run.outcomes(), [Outcome::Succeeded]);
        assert!(run.dead_letters().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_service_is_retried_after_five_minutes() {
        let deliver = Deliver { closed: 1.into(), ..Deliver::default() };
        let run = TestWorker::new(deliver).object("a", "data").run().await;
        assert_eq!(run.outcomes(), [Outcome::Temporary, Outcome::Succeeded]);
        assert_eq!(run.attempts()[0].retry_after, Some(Duration::from_mins(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_keeps_the_message_for_the_next_worker() {
        let worker = TestWorker::new(Deliver::default()).object("a", "data");
        let run = worker.stop_after(Duration::from_secs(30)).run().await;
        assert_eq!(run.outcomes(), [Outcome::Stopped, Outcome::Succeeded]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_keeps_the_message_for_the_other_worker() {
        let run = TestWorker::new(Deliver::default()).object("a", "data").lose_leases().run().await;
        assert_eq!(run.outcomes(), [Outcome::LeaseLost, Outcome::Succeeded]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_redelivery_is_recognised_by_its_record() {
        let worker = TestWorker::new(Deliver::default()).object("a", "data").redeliver();
        let run = worker.idempotency("s3://state/done").run().await;
        assert_eq!(run.outcomes(), [Outcome::Succeeded, Outcome::AlreadyDone]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_can_be_called_directly() {
        let deliver = Deliver::default();
        deliver.handle(Job::builder("a").object("data").build()).await.unwrap();
        assert_eq!(deliver.sent.load(Ordering::Relaxed), 1);
    }
}
