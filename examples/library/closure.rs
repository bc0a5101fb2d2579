//! A closure with state: every clone of the handler's state is cheap.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use leasehold::{Error, Handler, Job};

/// Adds the size of every object to `total`.
pub fn measure(total: Arc<AtomicU64>) -> impl Handler {
    move |job: Job| {
        let total = total.clone();
        async move {
            total.fetch_add(job.bytes().await?.len() as u64, Ordering::Relaxed);
            Ok::<_, Error>(())
        }
    }
}

#[cfg(test)]
mod tests {
    use leasehold::Outcome;
    use leasehold::testing::TestWorker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sizes_are_added() {
        let total = Arc::new(AtomicU64::new(0));
        let worker = TestWorker::new(measure(total.clone()));
        let run = worker.object("a.txt", "12345").object("b.txt", "12").run().await;
        assert_eq!(run.outcomes(), [Outcome::Succeeded, Outcome::Succeeded]);
        assert_eq!(total.load(Ordering::Relaxed), 7);
    }
}
