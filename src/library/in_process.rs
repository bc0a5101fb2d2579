//! Runs a handler as the work of leasehold, in place of a command.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use async_trait::async_trait;
use futures_util::FutureExt;
use serde_json::json;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::instrument::WithSubscriber;
use tracing::{Instrument, error, warn};

use super::failure::{self, Class, Error};
use super::handler::AnyHandler;
use super::job::Job;
use crate::job::outcome::{Exit, Handled};
use crate::ports::{Activity, Command, Exited, Runner, StartError};
use crate::telemetry::panics;

/// Runs a handler like a command.
pub struct InProcess {
    /// The handler.
    pub handler: AnyHandler,
    /// Where it runs.
    pub threads: Threads,
}

/// The threads on which a handler runs.
#[derive(Debug, Clone)]
pub enum Threads {
    /// New threads for each job. A busy handler cannot delay a heartbeat, which tokio does not
    /// guarantee among tasks of one runtime; and a handler that never ends blocks nothing.
    Dedicated,
    /// The threads of the embedding program, whose connections belong to its runtime. leasehold
    /// itself has its own.
    Of(Handle),
}

impl Threads {
    fn start(&self) -> std::io::Result<Started> {
        Ok(match self {
            Self::Dedicated => {
                let mut builder = Builder::new_multi_thread();
                builder.thread_name("handler").on_thread_start(panics::mark_handlers);
                Started::Own(OwnRuntime::start(builder)?)
            }
            Self::Of(handle) => Started::Others(handle.clone()),
        })
    }
}

enum Started {
    Own(OwnRuntime),
    Others(Handle),
}

impl Started {
    fn handle(&self) -> &Handle {
        match self {
            Self::Own(runtime) => runtime.handle(),
            Self::Others(handle) => handle,
        }
    }
}

/// A runtime that may be dropped anywhere: its tasks are abandoned then.
pub(super) struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    pub(super) fn start(mut builder: Builder) -> std::io::Result<Self> {
        Ok(Self(Some(builder.enable_all().build()?)))
    }

    pub(super) fn handle(&self) -> &Handle {
        self.0.as_ref().expect("it is taken only when dropped").handle()
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A panic of the handler, as a text.
struct Panic(String);

#[async_trait]
impl Runner for InProcess {
    fn name(&self) -> &'static str {
        "the handler"
    }

    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        let stop_grace = command.stop_grace;
        let job = Job::new(command, halt.clone(), activity);
        let (handler, of_handler) = (self.handler.clone(), job.clone());
        let working = async move {
            let working = AssertUnwindSafe(async move { handler.call(of_handler).await });
            working.catch_unwind().await.map_err(|panic| described(panic.as_ref()))
        };
        let threads = self.threads.start().map_err(|error| StartError {
            program: "the handler".to_owned(),
            why: format!("its threads could not be started: {error}"),
            ends_the_run: false,
        })?;
        let working = working.in_current_span().with_current_subscriber();
        let mut working = AbortOnDropHandle::new(threads.handle().spawn(working));
        let ended = tokio::select! {
            ended = &mut working => Some(ended),
            () = halt.cancelled() => timeout(stop_grace, &mut working).await.ok(),
        };
        let (how, reason) = match ended {
            Some(Ok(Ok(Ok(())))) => (Handled::Succeeded, None),
            Some(Ok(Ok(Err(error)))) => failed(&job, &error),
            Some(Ok(Err(Panic(text)))) => (Handled::Panicked, Some(text)),
            // Only a runtime that ends cancels its tasks.
            Some(Err(_)) => (Handled::Dropped, Some("its runtime was shut down".to_owned())),
            None => {
                error!("the handler did not end within the stop grace and is dropped");
                (Handled::Dropped, None)
            }
        };
        if let Some(reason) = &reason {
            job.report(&json!({ "reason": reason }));
        }
        Ok(Exited {
            exit: Exit::Handler(how),
            stderr_tail: reason.into_iter().collect(),
            ..Exited::killed()
        })
    }
}

/// The class of an error, and its text. The log has all of it; other reports are shorter.
fn failed(job: &Job, error: &Error) -> (Handled, Option<String>) {
    let text = failure::causes(&**error);
    warn!(error = text, "the handler returned an error");
    let how = match failure::class(&**error) {
        None => Handled::Failed,
        Some(Class::Permanent) => Handled::Permanent,
        Some(Class::Retry { after }) => {
            if let Some(delay) = after {
                job.report(&json!({ "retry_after": delay.as_secs_f64() }));
            }
            Handled::Temporary
        }
    };
    (how, Some(text))
}

/// Called in the thread that panicked, right after the panic.
fn described(panic: &(dyn Any + Send)) -> Panic {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is not a text");
    match panics::take_place() {
        Some(place) => Panic(format!("{text}, at {place}")),
        None => Panic(text.to_owned()),
    }
}
