//! The queue as one pod sees it, with every call held against the rules.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::job::delivery::{Delivery, ReceiptHandle, Redrive};
use leasehold::job::verdict::DeletePermit;
use leasehold::ports::{DeleteError, Queue, ReceiveError, VisibilityError};
use tokio::time::{Instant, sleep};

use super::chronicle::Chronicle;
use super::store::Fate;
use crate::support::wire::WiredQueue;

pub struct Watched {
    pub queue: WiredQueue,
    pub pod: u32,
    pub fate: Fate,
    pub chronicle: Arc<Mutex<Chronicle>>,
}

/// How long a call takes at least. The paused clock goes on only when no thread is removing files
/// any more: without it, whether a pod or another one is next would depend on how fast that is.
const MOMENT: Duration = Duration::from_millis(1);

#[async_trait]
impl Queue for Watched {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        let asked_at = Instant::now();
        let got = self.queue.receive(wait, visibility).await?;
        if let Some(delivery) = &got {
            let mut chronicle = self.chronicle.lock().unwrap();
            let id = delivery.message_id.to_string();
            chronicle
                .note(self.pod, format!("receives {id}, for the {}. time", delivery.receive_count));
            chronicle.receipts.insert(delivery.receipt.expose().to_owned(), id.clone());
            chronicle.leases.insert((self.pod, id.clone()), asked_at + visibility);
            chronicle.received(self.pod, &id);
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
            let mut chronicle = self.chronicle.lock().unwrap();
            let message = chronicle.receipts[receipt.expose()].clone();
            chronicle.changes_only_what_it_holds(self.pod, &message);
        }
        sleep(MOMENT).await;
        let answer = self.queue.change_visibility(receipt, visibility).await;
        let mut chronicle = self.chronicle.lock().unwrap();
        let message = chronicle.receipts[receipt.expose()].clone();
        chronicle.note(self.pod, format!("hides {message} for {visibility:?}: {answer:?}"));
        let lease =
            chronicle.leases.get_mut(&(self.pod, message)).expect("it received what it extends");
        match answer {
            // A success that comes too late tells nothing.
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
        self.fate.may_end().await;
        let message = {
            let mut chronicle = self.chronicle.lock().unwrap();
            let message = chronicle.receipts[receipt.expose()].clone();
            chronicle.note(self.pod, format!("deletes {message}"));
            chronicle.deletes_only_what_is_done(self.pod, &message);
            chronicle.deletes_nothing_after_its_stop(self.pod, &message);
            chronicle.deletes_only_what_it_holds(self.pod, &message);
            message
        };
        sleep(MOMENT).await;
        let answer = self.queue.delete(receipt, permit).await;
        self.chronicle.lock().unwrap().note(self.pod, format!("has deleted {message}: {answer:?}"));
        answer
    }

    async fn redrive(&self) -> Result<Redrive, String> {
        self.queue.redrive().await
    }
}
