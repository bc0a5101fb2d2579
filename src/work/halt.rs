//! Halted: how the work is asked to end early.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Two ways to end the work, the second one faster.
///
/// A halt ends a running command and starts nothing new. Results of a command that succeeded before
/// are still published and recorded, within the stop grace: otherwise the next delivery would
/// repeat all of the work. An abort ends that too: the lease can no longer be proved.
#[derive(Debug, Clone, Default)]
pub struct Halt {
    pub requested: CancellationToken,
    /// Publish nothing more.
    pub publish_aborted: CancellationToken,
}

impl Halt {
    pub fn request(&self) {
        self.requested.cancel();
    }

    pub fn abort(&self) {
        self.requested.cancel();
        self.publish_aborted.cancel();
    }

    /// A guard that aborts the work when it is dropped.
    pub fn on_drop(self) -> HaltOnDrop {
        HaltOnDrop(self)
    }
}

/// See [`Halt::on_drop`].
#[derive(Debug)]
pub struct HaltOnDrop(Halt);

impl HaltOnDrop {
    pub fn halt(&self) -> &Halt {
        &self.0
    }
}

impl Drop for HaltOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A token that is cancelled some time after a halt was requested, or together with its parent.
pub struct Deadline {
    pub passed: CancellationToken,
    _timer: AbortOnDropHandle<()>,
}

impl Deadline {
    pub fn after(halt: &CancellationToken, time: Duration, parent: &CancellationToken) -> Self {
        let passed = parent.child_token();
        let (halt, token) = (halt.clone(), passed.clone());
        let timer = tokio::spawn(async move {
            halt.cancelled().await;
            tokio::time::sleep(time).await;
            token.cancel();
        });
        Self { passed, _timer: AbortOnDropHandle::new(timer) }
    }
}
