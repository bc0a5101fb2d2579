//! The threads of work that may block, apart from the thread of the actors.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tracing::warn;

/// Where the Processor's work runs if it may block.
///
/// Most work uses the file system, which may block for seconds (NFS). On a thread of its own it cannot
/// delay a visibility timeout's extension, which tokio does not guarantee among tasks of one
/// runtime. A pod that finds the queue empty starts no such thread.
#[derive(Clone)]
pub enum WorkThreads {
    /// The actors' threads, for tests on a paused clock.
    #[cfg_attr(
        not(any(feature = "internals", feature = "testing")),
        expect(dead_code, reason = "for tests on a paused clock")
    )]
    Shared,
    Separate(SeparateThreads),
}

/// Started for the first work that may block.
#[derive(Clone)]
pub struct SeparateThreads {
    runtime: Arc<Mutex<Option<Runtime>>>,
    /// Called in each thread.
    on_start: Arc<dyn Fn() + Send + Sync>,
}

impl WorkThreads {
    pub fn handle(&self) -> Handle {
        match self {
            Self::Shared => Handle::current(),
            Self::Separate(threads) => threads.handle(),
        }
    }
}

impl SeparateThreads {
    pub fn new(on_start: impl Fn() + Send + Sync + 'static) -> Self {
        Self { runtime: Arc::default(), on_start: Arc::new(on_start) }
    }

    fn handle(&self) -> Handle {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if runtime.is_none() {
            let on_start = self.on_start.clone();
            let mut builder = Builder::new_multi_thread();
            builder
                .worker_threads(1)
                .thread_name("leasehold-work")
                .on_thread_start(move || on_start())
                .enable_all();
            match builder.build() {
                Ok(started) => *runtime = Some(started),
                Err(error) => warn!(%error, "no thread could be started for the work"),
            }
        }
        runtime.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }

    /// Ends the threads. Those that are still busy get `patience`, and are abandoned after that.
    pub fn shut_down(self, patience: Duration) {
        if let Some(runtime) = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take() {
            runtime.shutdown_timeout(patience);
        }
    }
}
