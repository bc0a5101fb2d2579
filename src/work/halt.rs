//! Halted: how the work is told to end before it has ended by itself.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Two ways to end, the second one faster.
///
/// A halt ends a command that runs, and begins nothing new. What a command wrote that had succeeded
/// before is still published and recorded, within the stop's grace: without that, the next delivery
/// would do all of it again. It ends at once when nobody can prove any more that the message is
/// ours.
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

    /// Dropping it ends everything.
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
