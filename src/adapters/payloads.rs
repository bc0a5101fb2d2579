//! Reads the bodies that the Extended Client of SQS or SNS has moved to S3.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::job::delivery::{Delivery, ReceiptHandle, Redrive};
use crate::job::keep_reason::KeepReason;
use crate::job::notification::{Object, payload};
use crate::job::policy::Policy;
use crate::job::verdict::DeletePermit;
use crate::ports::checksum::{Checksum, Hasher};
use crate::ports::{
    DeleteError, FetchError, ObjectBody, ObjectStore, Queue, ReceiveError, VisibilityError,
};

/// Where payloads are, and which of them are bodies.
pub struct Payloads {
    pub store: Arc<dyn ObjectStore>,
    pub policy: Policy,
    /// The buckets to read from; any if it is empty.
    pub buckets: Vec<String>,
    /// A stop does not wait for a payload.
    pub stop: CancellationToken,
}

/// The largest body, in bytes: four times that of SQS. As JSON, it may need fifty times its size in
/// memory.
const MOST: usize = 4 << 20;

/// The longest time for one payload.
const LONGEST: Duration = Duration::from_secs(10);

impl Payloads {
    /// The same queue, with the payload in place of each pointer whose payload names objects.
    pub fn read_for(self, queue: Arc<dyn Queue>) -> Arc<dyn Queue> {
        Arc::new(QueueWithPayloads { queue, payloads: self })
    }

    /// The payload as a body; `None` if it is an object to work on.
    async fn body(&self, object: &Object, limit: Duration) -> Result<Option<String>, KeepReason> {
        let Object { bucket, key, .. } = object;
        let of_message = |why| format!("payload of the message: {why}");
        let checked = object.check_bucket(&self.buckets);
        checked.map_err(|why| KeepReason::Unreadable(of_message(why)))?;
        let read = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(KeepReason::Stopped),
            read = timeout(limit, self.text(object)) => read,
        };
        match read {
            Ok(Ok(text)) => Ok(text.filter(|text| self.policy.understands(text))),
            Ok(Err(FetchError::Missing(why) | FetchError::Retryable(why))) => {
                Err(KeepReason::FetchFailed(of_message(why)))
            }
            Ok(Err(FetchError::Overwritten(why) | FetchError::Permanent(why))) => {
                Err(KeepReason::Unreadable(of_message(why)))
            }
            Err(_) => {
                let why = format!("s3://{bucket}/{key} was not read within {limit:?}");
                Err(KeepReason::FetchFailed(of_message(why)))
            }
        }
    }

    /// Retries a few times.
    async fn text(&self, object: &Object) -> Result<Option<String>, FetchError> {
        let mut pauses = backoff();
        loop {
            let why = match self.text_once(object).await {
                Err(FetchError::Retryable(why)) => why,
                other => return other,
            };
            let Some(pause) = pauses.next() else { return Err(FetchError::Retryable(why)) };
            warn!(why, ?pause, "reading the payload of a message failed and will be retried");
            sleep(pause).await;
        }
    }

    /// `None` if it is too long for a body, or not UTF-8.
    async fn text_once(&self, object: &Object) -> Result<Option<String>, FetchError> {
        let name = || format!("s3://{}/{}", object.bucket, object.key);
        let ObjectBody { size, etag: _, checksum, bytes: mut chunks } =
            self.store.open(object).await?;
        if size.is_some_and(|size| size > MOST as u64) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk =
                chunk.map_err(|error| FetchError::Retryable(format!("{}: {error}", name())))?;
            if bytes.len() + chunk.len() > MOST {
                return Ok(None);
            }
            bytes.extend_from_slice(&chunk);
        }
        if let Some(size) = size.filter(|size| *size != bytes.len() as u64) {
            let why = format!("{}: received {} of {size} bytes", name(), bytes.len());
            return Err(FetchError::Retryable(why));
        }
        if let Some(Checksum { algorithm, value }) = checksum {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(&bytes);
            let got = hasher.value();
            if got != value {
                let why = format!("{}: {algorithm} is {got}, expected {value}", name());
                return Err(FetchError::Retryable(why));
            }
        }
        Ok(String::from_utf8(bytes).ok())
    }
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_times(3)
        .with_jitter()
        .build()
}

struct QueueWithPayloads {
    queue: Arc<dyn Queue>,
    payloads: Payloads,
}

#[async_trait]
impl Queue for QueueWithPayloads {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        let Some(mut delivery) = self.queue.receive(wait, visibility).await? else {
            return Ok(None);
        };
        if let Some(object) = payload(&delivery.body) {
            // The poll took up to a third of the visibility timeout, and heartbeats begin after
            // the receive.
            match self.payloads.body(&object, LONGEST.min(visibility / 4)).await {
                Ok(Some(body)) => delivery.body = body,
                Ok(None) => {}
                Err(why) => delivery.payload_failed = Some(why),
            }
        }
        Ok(Some(delivery))
    }

    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError> {
        self.queue.change_visibility(receipt, visibility).await
    }

    async fn release(
        &self,
        receipt: &ReceiptHandle,
        delay: Duration,
    ) -> Result<(), VisibilityError> {
        self.queue.release(receipt, delay).await
    }

    async fn delete(
        &self,
        receipt: &ReceiptHandle,
        permit: DeletePermit,
    ) -> Result<(), DeleteError> {
        self.queue.delete(receipt, permit).await
    }

    async fn redrive(&self) -> Result<Redrive, String> {
        self.queue.redrive().await
    }
}
