//! The queue of one pod; every call is checked against the invariants. A pod with several messages at
//! a time is several runs, each with a number of its own, and what they send together is checked
//! again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::job::delivery::{Delivery, ReceiptHandle, Redrive};
use leasehold::job::verdict::DeletePermit;
use leasehold::ports::{BatchQueue, DeleteError, Queue, ReceiveError, VisibilityError};
use tokio::time::{Instant, sleep};

use super::history::History;
use super::store::Fate;
use crate::support::wire::WiredQueue;

pub struct CheckedQueue {
    pub queue: Arc<dyn Queue>,
    pub pod: u32,
    pub fate: Fate,
    pub history: Arc<Mutex<History>>,
}

/// What several runs send together.
pub struct CheckedBatches {
    pub queue: WiredQueue,
    pub history: Arc<Mutex<History>>,
}

/// The minimal time of a call. The paused clock advances only after all file removals, so the order
/// of the pods does not depend on the speed of the disk.
const MOMENT: Duration = Duration::from_millis(1);

impl CheckedQueue {
    async fn change(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
        call: impl Future<Output = Result<(), VisibilityError>>,
    ) -> Result<(), VisibilityError> {
        let asked_at = Instant::now();
        {
            let mut history = self.history.lock().unwrap();
            let message = history.receipts[receipt.expose()].clone();
            history.check_change_by_holder(self.pod, &message);
        }
        sleep(MOMENT).await;
        let answer = call.await;
        let mut history = self.history.lock().unwrap();
        let message = history.receipts[receipt.expose()].clone();
        history.log(self.pod, format!("hides {message} for {visibility:?}: {answer:?}"));
        let lease = history.leases.get_mut(&(self.pod, message)).expect("a received message");
        match answer {
            // A late success does not extend the lease.
            Ok(()) if Instant::now() < *lease => *lease = asked_at + visibility,
            Err(VisibilityError::NotInFlight(_)) => *lease = Instant::now(),
            Ok(())
            | Err(
                VisibilityError::AtCeiling(_)
                | VisibilityError::Transient(_)
                | VisibilityError::Unclear(_),
            ) => {}
        }
        answer
    }
}

#[async_trait]
impl Queue for CheckedQueue {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        let asked_at = Instant::now();
        sleep(MOMENT).await;
        let got = self.queue.receive(wait, visibility).await?;
        if let Some(delivery) = &got {
            let mut history = self.history.lock().unwrap();
            let id = delivery.message_id.to_string();
            history
                .log(self.pod, format!("receives {id}, for the {}. time", delivery.receive_count));
            let receipt = delivery.receipt.expose().to_owned();
            history.receipts.insert(receipt.clone(), id.clone());
            history.owners.insert(receipt, self.pod);
            history.leases.insert((self.pod, id.clone()), asked_at + visibility);
            history.received(self.pod, &id);
        }
        Ok(got)
    }

    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError> {
        self.change(receipt, visibility, self.queue.change_visibility(receipt, visibility)).await
    }

    async fn release(
        &self,
        receipt: &ReceiptHandle,
        delay: Duration,
    ) -> Result<(), VisibilityError> {
        self.change(receipt, delay, self.queue.release(receipt, delay)).await
    }

    async fn delete(
        &self,
        receipt: &ReceiptHandle,
        permit: DeletePermit,
    ) -> Result<(), DeleteError> {
        self.fate.maybe_end().await;
        let message = {
            let mut history = self.history.lock().unwrap();
            let message = history.receipts[receipt.expose()].clone();
            history.log(self.pod, format!("deletes {message}"));
            history.check_delete_after_success(self.pod, &message);
            history.check_no_delete_after_stop(self.pod, &message);
            history.check_delete_by_holder(self.pod, &message);
            message
        };
        sleep(MOMENT).await;
        let answer = self.queue.delete(receipt, permit).await;
        self.history.lock().unwrap().log(self.pod, format!("has deleted {message}: {answer:?}"));
        answer
    }

    async fn redrive(&self) -> Result<Redrive, String> {
        self.queue.redrive().await
    }
}

impl CheckedBatches {
    /// A call may have waited since its run made it.
    fn check_delete(&self, receipt: &ReceiptHandle) {
        let mut history = self.history.lock().unwrap();
        let (pod, message) = history.owner(receipt).expect("a received message");
        history.check_no_delete_after_stop(pod, &message);
        history.check_delete_by_holder(pod, &message);
        history.check_delete_within_lease(pod, &message);
    }

    fn check_change(&self, receipt: &ReceiptHandle) {
        let mut history = self.history.lock().unwrap();
        // Messages that no run waited for are released.
        if let Some((pod, message)) = history.owner(receipt) {
            history.check_change_by_holder(pod, &message);
        }
    }
}

#[async_trait]
impl Queue for CheckedBatches {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        self.queue.receive(wait, visibility).await
    }

    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError> {
        self.check_change(receipt);
        self.queue.change_visibility(receipt, visibility).await
    }

    async fn delete(
        &self,
        receipt: &ReceiptHandle,
        permit: DeletePermit,
    ) -> Result<(), DeleteError> {
        self.check_delete(receipt);
        self.queue.delete(receipt, permit).await
    }

    async fn redrive(&self) -> Result<Redrive, String> {
        self.queue.redrive().await
    }
}

#[async_trait]
impl BatchQueue for CheckedBatches {
    async fn receive_batch(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Result<Delivery, ReceiveError>>, ReceiveError> {
        self.queue.receive_batch(most, wait, visibility).await
    }

    async fn change_visibility_batch(
        &self,
        changes: &[(ReceiptHandle, Duration)],
    ) -> Vec<Result<(), VisibilityError>> {
        for (receipt, _) in changes {
            self.check_change(receipt);
        }
        self.queue.change_visibility_batch(changes).await
    }

    async fn delete_batch(
        &self,
        deletes: Vec<(ReceiptHandle, DeletePermit)>,
    ) -> Vec<Result<(), DeleteError>> {
        for (receipt, _) in &deletes {
            self.check_delete(receipt);
        }
        self.queue.delete_batch(deletes).await
    }
}
