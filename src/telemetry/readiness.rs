//! What `/readyz` answers.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::job::delivery::MessageId;

/// Is a message held? Not any more once a stop was asked for, or once it is being let go.
///
/// For KEDA's `pendingPodConditions: ["ContainersReady"]`: a pod that has not received yet counts
/// as pending, and so does one that is about to leave.
#[derive(Debug)]
pub struct Readiness {
    held: Mutex<HashSet<MessageId>>,
    stop: CancellationToken,
}

impl Readiness {
    /// `stop` is cancelled when a stop is asked for.
    pub fn new(stop: CancellationToken) -> Self {
        Self { held: Mutex::default(), stop }
    }

    pub(super) fn hold(&self, message: &MessageId) {
        self.held().insert(message.clone());
    }

    pub(super) fn release(&self, message: &MessageId) {
        self.held().remove(message);
    }

    pub fn is_ready(&self) -> bool {
        !self.stop.is_cancelled() && !self.held().is_empty()
    }

    fn held(&self) -> MutexGuard<'_, HashSet<MessageId>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
