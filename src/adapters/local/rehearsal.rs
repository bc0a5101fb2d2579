//! Faults of a cluster, simulated once for each message: for `leasehold local --rehearse`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::memory::MemoryQueue;
use crate::job::delivery::{Delivery, ReceiptHandle, Redrive};
use crate::job::verdict::DeletePermit;
use crate::ports::{DeleteError, Queue, ReceiveError, VisibilityError};

/// The rehearsed fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The first extension of each message is refused, as if another pod had received it
    LostLease,
    /// Each message is delivered again after it succeeded
    Redelivery,
    /// The pod of each message is killed one second after it starts
    Kill,
}

/// A queue in memory with a fault, as one pod sees it.
#[derive(Clone)]
pub struct Rehearsal {
    queue: MemoryQueue,
    fault: Option<Fault>,
    /// Receipt handles of first receives to which the fault has not happened yet.
    pending: Arc<Mutex<HashSet<String>>>,
    received: Arc<Notify>,
}

impl Rehearsal {
    pub fn new(queue: MemoryQueue, fault: Option<Fault>) -> Self {
        Self { queue, fault, pending: Arc::default(), received: Arc::default() }
    }

    /// Starts a new pod, which knows nothing of the messages of the pod before.
    pub fn begin(&self) {
        self.pending().clear();
    }

    /// Returns when the pod must be killed; never, unless that is rehearsed.
    pub async fn until_killed(&self) {
        if self.fault != Some(Fault::Kill) {
            return std::future::pending().await;
        }
        while self.pending().is_empty() {
            self.received.notified().await;
        }
        sleep(UNTIL_KILLED).await;
    }

    /// Makes the messages of a killed pod visible, without the wait for their visibility timeout.
    pub async fn release_all(&self) {
        let held: Vec<_> = self.pending().drain().collect();
        for receipt in held {
            // The message may have been deleted meanwhile.
            let _ =
                self.queue.change_visibility(&ReceiptHandle::new(receipt), Duration::ZERO).await;
        }
    }

    /// True once for each message, if this fault is rehearsed.
    fn happens(&self, fault: Fault, receipt: &ReceiptHandle) -> bool {
        self.fault == Some(fault) && self.pending().remove(receipt.expose())
    }

    fn pending(&self) -> MutexGuard<'_, HashSet<String>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a pod works before it is killed.
const UNTIL_KILLED: Duration = Duration::from_secs(1);

#[async_trait]
impl Queue for Rehearsal {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        let received = self.queue.receive(wait, visibility).await;
        if let Ok(Some(delivery)) = &received
            && delivery.receive_count == 1
        {
            self.pending().insert(delivery.receipt.expose().to_owned());
            self.received.notify_one();
        }
        received
    }

    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError> {
        if visibility > Duration::ZERO && self.happens(Fault::LostLease, receipt) {
            self.queue.change_visibility(receipt, Duration::ZERO).await?;
            return Err(VisibilityError::NotInFlight(
                "rehearsed: another pod has received the message".to_owned(),
            ));
        }
        self.queue.change_visibility(receipt, visibility).await
    }

    async fn delete(
        &self,
        receipt: &ReceiptHandle,
        permit: DeletePermit,
    ) -> Result<(), DeleteError> {
        if self.happens(Fault::Redelivery, receipt) {
            // At-least-once delivery: the delete succeeds, and the message is delivered again.
            let _ = self.queue.change_visibility(receipt, Duration::ZERO).await;
            return Ok(());
        }
        self.queue.delete(receipt, permit).await
    }

    async fn redrive(&self) -> Result<Redrive, String> {
        self.queue.redrive().await
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::super::memory::Kind;
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_killed_for_its_own_first_receive_only() {
        let queue = MemoryQueue::new(Kind::Standard, Redrive::None);
        queue.send("a");
        let pod = Rehearsal::new(queue, Some(Fault::Kill));
        pod.begin();
        pod.receive(S, 60 * S).await.unwrap().unwrap();
        timeout(2 * S, pod.until_killed()).await.expect("it is killed");
        // The new pod has received no message.
        pod.begin();
        timeout(60 * S, pod.until_killed()).await.unwrap_err();
    }
}
