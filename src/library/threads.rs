//! The threads on which handlers run.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;
use tracing::instrument::WithSubscriber;
use tracing::{Instrument, warn};

use crate::telemetry::panics;

/// The threads on which handlers run. A clone is the same threads.
#[derive(Clone)]
pub enum Threads {
    /// One runtime for all jobs, beside the threads of leasehold: a busy handler cannot delay a
    /// heartbeat, which tokio does not guarantee among tasks of one runtime.
    Dedicated(DedicatedThreads),
    /// The threads of the embedding program, whose connections belong to its runtime.
    Shared(Handle),
}

/// A runtime that starts with the first job, and stays for the following ones.
#[derive(Clone)]
pub struct DedicatedThreads {
    workers: usize,
    current: Arc<Mutex<Option<Arc<Handlers>>>>,
}

/// A runtime for handlers.
struct Handlers {
    runtime: DroppableRuntime,
    /// Cancelled when a handler that was dropped has ended.
    dropped: Mutex<Vec<CancellationToken>>,
}

/// A handler that runs. Dropping it drops the handler at its next `.await`.
pub(super) struct Running<T> {
    pub(super) task: AbortOnDropHandle<T>,
    ended: CancellationToken,
    /// For [`Threads::Dedicated`]: the runtime stays until its last handler has ended.
    on: Option<Arc<Handlers>>,
}

impl Threads {
    /// Threads for so many calls of a handler at the same time, each of which may block one.
    pub fn dedicated(calls: usize) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        // One more, for connections and tasks of the handler.
        Self::Dedicated(DedicatedThreads { workers: cores.max(calls + 1), current: Arc::default() })
    }

    /// Runs `work` in the current span.
    pub(super) async fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<Running<T>> {
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let work = ends(work, guard).in_current_span().with_current_subscriber();
        Ok(match self {
            Self::Shared(handle) => {
                Running { task: AbortOnDropHandle::new(handle.spawn(work)), ended, on: None }
            }
            Self::Dedicated(threads) => {
                let handlers = threads.handlers().await?;
                let task = AbortOnDropHandle::new(handlers.runtime.handle().spawn(work));
                Running { task, ended, on: Some(handlers) }
            }
        })
    }
}

async fn ends<T>(work: impl Future<Output = T>, _ended: DropGuard) -> T {
    work.await
}

/// How long a new job waits for the end of handlers that were dropped.
const PATIENCE: Duration = Duration::from_secs(1);

impl DedicatedThreads {
    /// The runtime for a new job. A handler that was dropped and still blocks a thread would soon
    /// block all of them, so the jobs after it get a new runtime.
    async fn handlers(&self) -> io::Result<Arc<Handlers>> {
        let current = lock(&self.current).clone();
        if let Some(current) = &current
            && current.has_no_remains().await
        {
            return Ok(current.clone());
        }
        let mut next = lock(&self.current);
        let is_replaced = |next: &&Arc<Handlers>| {
            current.as_ref().is_none_or(|current| !Arc::ptr_eq(current, next))
        };
        if let Some(next) = next.as_ref().filter(is_replaced) {
            return Ok(next.clone());
        }
        if next.is_some() {
            warn!(
                "a handler that was dropped still blocks a thread: later jobs run on new threads, without the connections of the old ones"
            );
        }
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(self.workers).thread_name("handler");
        builder.on_thread_start(panics::mark_handlers);
        let runtime = DroppableRuntime::start(builder)?;
        let started = Arc::new(Handlers { runtime, dropped: Mutex::default() });
        *next = Some(started.clone());
        Ok(started)
    }
}

impl Handlers {
    /// Have all handlers that were dropped ended?
    async fn has_no_remains(&self) -> bool {
        let dropped = lock(&self.dropped).clone();
        let all_ended = join_all(dropped.iter().map(CancellationToken::cancelled));
        let have_ended = dropped.is_empty() || timeout(PATIENCE, all_ended).await.is_ok();
        lock(&self.dropped).retain(|it| !it.is_cancelled());
        have_ended
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if let Some(handlers) = self.on.as_ref().filter(|_| !self.ended.is_cancelled()) {
            lock(&handlers.dropped).push(self.ended.clone());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A runtime that may be dropped anywhere: its tasks are abandoned then.
pub(super) struct DroppableRuntime(Option<Runtime>);

impl DroppableRuntime {
    pub(super) fn start(mut builder: Builder) -> io::Result<Self> {
        Ok(Self(Some(builder.enable_all().build()?)))
    }

    pub(super) fn handle(&self) -> &Handle {
        self.0.as_ref().expect("it is taken only when dropped").handle()
    }
}

impl Drop for DroppableRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
