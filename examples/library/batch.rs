//! A worker that processes four messages at the same time, and ends when the queue is empty.

use std::time::Duration;

use leasehold::{Error, Job, Summary, Worker};

async fn process(job: Job) -> Result<(), Error> {
    let bytes = job.bytes().await?;
    tracing::info!(key = job.key, bytes = bytes.len(), "processing");
    Ok(())
}

pub async fn drain(queue_url: &str, aws: &aws_config::SdkConfig) -> Result<Summary, Error> {
    let worker = Worker::new(process).queue_url(queue_url).sdk_config(aws).concurrency(4);
    Ok(worker.until_empty(Duration::from_secs(1)).run().await?)
}
