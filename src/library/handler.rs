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

/// A handler of any type.
#[derive(Clone)]
pub struct AnyHandler(Arc<dyn Fn(Job) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>);

impl AnyHandler {
    /// Wraps the handler.
    pub fn new(handler: impl Handler) -> Self {
        let handler = Arc::new(handler);
        Self(Arc::new(move |job| {
            let handler = handler.clone();
            async move { handler.handle(job).await }.boxed()
        }))
    }

    pub(super) fn call(&self, job: Job) -> BoxFuture<'static, Result<(), Error>> {
        (self.0)(job)
    }
}
