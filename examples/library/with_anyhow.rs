//! `anyhow`: errors with context; a `Failure` keeps its class below any context.

use std::time::Duration;

use anyhow::{Context, bail};
use leasehold::{Failure, Job};

pub async fn import(job: Job) -> anyhow::Result<()> {
    let text = job.text().await.context("reading the file")?;
    let count: u32 = text.trim().parse().with_context(|| format!("{text:?} is not a count"))?;
    if count > 100 {
        bail!(Failure::retry("the service takes no more today").after(Duration::from_mins(5)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use leasehold::Outcome;
    use leasehold::testing::TestWorker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_report_has_all_causes() {
        let run = TestWorker::new(import).object("a", "x").max_receive_count(1).run().await;
        let expected = "the handler failed: \"x\" is not a count: invalid digit found in string";
        assert_eq!(run.attempts()[0].error.as_deref(), Some(expected));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_chooses_when_to_retry() {
        let run = TestWorker::new(import).object("a", "101").max_receive_count(1).run().await;
        assert_eq!(run.outcomes(), [Outcome::Temporary]);
        assert_eq!(run.attempts()[0].retry_after, Some(Duration::from_mins(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_class_is_kept_below_a_context() {
        let run = TestWorker::new(import).object("a", [0xff]).max_receive_count(1).run().await;
        assert_eq!(run.outcomes(), [Outcome::Permanent]);
        let error = run.attempts()[0].error.as_deref().unwrap();
        assert!(error.contains("reading the file: invalid utf-8"), "{error}");
    }
}
