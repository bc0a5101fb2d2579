//! The answer of `/readyz`.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::job::delivery::MessageId;

/// Whether a message is held. Ends at a stop request, and when the message is being released.
///
/// For KEDA's `pendingPodConditions: ["ContainersReady"]`: a pod that has not received a message
/// yet counts as pending, and so does one that is about to exit.
#[derive(Debug)]
pub struct Readiness {
    held: Mutex<HashSet<MessageId>>,
    stop: CancellationToken,
}

impl Readiness {
    /// `stop` is cancelled by a stop request.
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
