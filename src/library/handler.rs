//! The function that does the work.

use std::future::Future;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::failure::Error;
use super::job::Job;

/// Does the work of one job. When it succeeds for all objects of a message, the message is deleted.
///
/// Every function `async fn(Job) -> Result<(), E>` is a handler, and every closure like it; any
/// error type is possible. Implement the trait for a type that owns its state:
///
/// ```
/// use leasehold::{Error, Handler, Job};
///
/// struct Resize { width: u32 }
///
/// impl Handler for Resize {
///     async fn handle(&self, job: Job) -> Result<(), Error> {
///         let image = job.bytes().await?;
///         tracing::info!(bytes = image.len(), width = self.width, "resizing");
///         Ok(())
///     }
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// An error or a panic keeps the message; see [`Failure`](crate::Failure). When
    /// [`Job::cancelled`] completes, it must end soon, and a success no longer counts.
    fn handle(&self, job: Job) -> impl Future<Output = Result<(), Error>> + Send;
}

impl<F, Fut, E> Handler for F
where
    F: Fn(Job) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Into<Error>,
{
    async fn handle(&self, job: Job) -> Result<(), Error> {
        self(job).await.map_err(Into::into)
    }
}

/// Does the work of several jobs at once, such as one insert into a database, and returns a result
/// for each of them.
///
/// Every function `async fn(Vec<Job>) -> Vec<Result<(), E>>` is a batch handler, and every closure
/// like it; any error type is possible.
///
/// ```
/// use leasehold::{BatchHandler, Error, Job};
///
/// struct Import { table: String }
///
/// impl BatchHandler for Import {
///     async fn handle(&self, jobs: Vec<Job>) -> Vec<Result<(), Error>> {
///         let mut results = Vec::new();
///         for job in &jobs {
///             results.push(job.text().await.map_err(Error::from).map(drop));
///         }
///         tracing::info!(jobs = jobs.len(), self.table, "importing");
///         results
///     }
/// }
/// ```
pub trait BatchHandler: Send + Sync + 'static {
    /// Returns one result for each job, in the order of the jobs. Otherwise, or after a panic, all
    /// of their messages are kept. Each job has its own lease and its own [`Job::cancelled`]: when
    /// that completes, the job's success no longer counts, and the other jobs go on.
    fn handle(&self, jobs: Vec<Job>) -> impl Future<Output = Vec<Result<(), Error>>> + Send;
}

impl<F, Fut, E> BatchHandler for F
where
    F: Fn(Vec<Job>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<Result<(), E>>> + Send,
    E: Into<Error>,
{
    async fn handle(&self, jobs: Vec<Job>) -> Vec<Result<(), Error>> {
        self(jobs).await.into_iter().map(|result| result.map_err(Into::into)).collect()
    }
}

/// Marks a program or a worker whose handler takes one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OneJob {}

/// Marks a program or a worker whose handler takes several jobs at once: only it has `batch_size` and
/// `batch_window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batches {}

/// A handler of any type.
#[derive(Clone)]
pub enum AnyHandler {
    /// For one job.
    Job(JobHandler),
    /// For several jobs at once.
    Batch(JobsHandler),
}

type Function<I, O> = Arc<dyn Fn(I) -> BoxFuture<'static, O> + Send + Sync>;
/// A [`Handler`].
pub type JobHandler = Function<Job, Result<(), Error>>;
/// A [`BatchHandler`].
pub type JobsHandler = Function<Vec<Job>, Vec<Result<(), Error>>>;

impl AnyHandler {
    /// Wraps a handler of one job.
    pub fn new(handler: impl Handler) -> Self {
        let handler = Arc::new(handler);
        Self::Job(Arc::new(move |job| {
            let handler = handler.clone();
            async move { handler.handle(job).await }.boxed()
        }))
    }

    /// Wraps a handler of several jobs.
    pub fn batch(handler: impl BatchHandler) -> Self {
        let handler = Arc::new(handler);
        Self::Batch(Arc::new(move |jobs| {
            let handler = handler.clone();
            async move { handler.handle(jobs).await }.boxed()
        }))
    }

    pub(super) fn takes_batches(&self) -> bool {
        match self {
            Self::Job(_) => false,
            Self::Batch(_) => true,
        }
    }
}
