//! The queue of one pod; every call is checked against the invariants.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::job::delivery::{Delivery, ReceiptHandle, Redrive};
use leasehold::job::verdict::DeletePermit;
use leasehold::ports::{DeleteError, Queue, ReceiveError, VisibilityError};
use tokio::time::{Instant, sleep};

use super::history::History;
use super::store::Fate;
use crate::support::wire::WiredQueue;

pub struct CheckedQueue {
    pub queue: WiredQueue,
    pub pod: u32,
    pub fate: Fate,
    pub history: Arc<Mutex<History>>,
}

/// The minimal time of a call. The paused clock advances only after all file removals, so the order
/// of the pods does not depend on the speed of the disk.
const MOMENT: Duration = Duration::from_millis(1);

#[async_trait]
impl Queue for CheckedQueue {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        let asked_at = Instant::now();
        let got = self.queue.receive(wait, visibility).await?;
        if let Some(delivery) = &got {
            let mut history = self.history.lock().unwrap();
            let id = delivery.message_id.to_string();
            history
                .log(self.pod, format!("receives {id}, for the {}. time", delivery.receive_count));
            history.receipts.insert(delivery.receipt.expose().to_owned(), id.clone());
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
        let asked_at = Instant::now();
        {
            let mut history = self.history.lock().unwrap();
            let message = history.receipts[receipt.expose()].clone();
            history.check_change_by_holder(self.pod, &message);
        }
        sleep(MOMENT).await;
        let answer = self.queue.change_visibility(receipt, visibility).await;
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
