//! Progress and checkpoints: a long job that continues where an earlier attempt stopped.

use std::time::Duration;

use leasehold::{Error, Job};
use tokio::fs;
use tokio::time::sleep;

const STEPS: u32 = 10;

pub async fn render(job: Job) -> Result<(), Error> {
    let state = job.checkpoint_dir().await?.join("steps");
    let done = fs::read_to_string(&state).await.unwrap_or_default();
    for step in done.parse().unwrap_or(0)..STEPS {
        tokio::select! {
            () = job.cancelled() => return Err(format!("cancelled at step {step}").into()),
            () = sleep(Duration::from_mins(1)) => {}
        }
        fs::write(&state, (step + 1).to_string()).await?;
        job.progress(f64::from(step + 1) / f64::from(STEPS));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use leasehold::Outcome;
    use leasehold::testing::TestWorker;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stopped_job_continues() {
        let started = Instant::now();
        let worker = TestWorker::new(render).object("film", "").max_duration(20 * MINUTE);
        let worker = worker.checkpoint("s3://state/films").stop_after(5 * MINUTE + MINUTE / 2);
        let run = worker.run().await;
        assert_eq!(run.outcomes(), [Outcome::Stopped, Outcome::Succeeded]);
        assert_eq!(run.attempts()[0].progress, Some(0.5));
        assert_eq!(run.attempts()[1].progress, Some(1.0));
        // Only the step that was interrupted was repeated.
        assert!(started.elapsed() < 11 * MINUTE, "{:?}", started.elapsed());
    }

    const MINUTE: Duration = Duration::from_mins(1);
}
