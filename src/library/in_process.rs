//! Runs a handler as the work of leasehold, in place of a command.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error, info_span, warn};

use super::failure::{self, Class, Error};
use super::handler::{AnyHandler, JobHandler, JobsHandler};
use super::job::Job;
use super::threads::Threads;
use crate::adapters::batching::{Batch, Batching, Joined, Member, OpenBatches, Work};
use crate::job::outcome::{Exit, Handled};
use crate::ports::{Activity, Command, Exited, Runner, StartError};
use crate::telemetry::panics;

/// Runs the handler on these threads.
pub fn runner(handler: AnyHandler, threads: Threads, batching: Batching) -> Arc<dyn Runner> {
    match handler {
        AnyHandler::Job(handler) => Arc::new(InProcess { handler, threads }),
        AnyHandler::Batch(handler) => {
            let batches = Arc::new(OpenBatches::new(batching));
            Arc::new(InBatches { handler, threads, batches })
        }
    }
}

/// Runs a handler for each job.
struct InProcess {
    handler: JobHandler,
    threads: Threads,
}

/// Runs a handler for several jobs at once.
struct InBatches {
    handler: JobsHandler,
    threads: Threads,
    batches: Arc<OpenBatches<Waiting>>,
}

/// A job that waits for the handler, and its span.
struct Waiting(Job, Span);

impl Work for Waiting {
    type Answer = Result<Ended, StartError>;

    fn goes_with(&self, _: &Self) -> bool {
        true
    }

    /// The wait does not count for the deadline.
    fn has_waited(&mut self, time: Duration) {
        self.0.deadline += time;
    }
}

/// How the handler ended, for one job.
enum Ended {
    Returned(Returned),
    Panicked(String),
    /// Only a runtime that ends cancels its tasks.
    ShutDown,
}

#[async_trait]
impl Runner for InProcess {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_in_process(&self) -> bool {
        true
    }

    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        let stop_grace = command.stop_grace;
        let job = Job::new(command, halt.clone(), activity.clone());
        let handler = self.handler.clone();
        let working = caught(async move { returned(handler(job).await) });
        let mut running = self.threads.spawn(working).await.map_err(|error| not_started(&error))?;
        let task = &mut running.task;
        let ended = tokio::select! {
            ended = &mut *task => Some(ended),
            () = halt.cancelled() => timeout(stop_grace, task).await.ok(),
        };
        if ended.is_none() {
            error!("the handler did not end within the stop grace and is dropped");
        }
        Ok(exited(
            &activity,
            ended.map(|ended| match ended {
                Ok(Ok(ended)) => ended,
                Ok(Err(Panic(text))) => Ended::Panicked(text),
                Err(_) => Ended::ShutDown,
            }),
        ))
    }
}

#[async_trait]
impl Runner for InBatches {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_in_process(&self) -> bool {
        true
    }

    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        let stop_grace = command.stop_grace;
        let job = Job::new(command, halt.clone(), activity.clone());
        let (handler, threads) = (self.handler.clone(), self.threads.clone());
        let call = move |batch| call(handler, threads, batch);
        let waiting = Waiting(job, Span::current());
        let mut joined = self.batches.join(waiting, halt.clone(), call);
        let Joined { answered, place } = &mut joined;
        let given_up = async {
            halt.cancelled().await;
            if !place.leave() {
                sleep(stop_grace).await;
                error!(
                    "the handler did not end within the stop grace: its result no longer counts"
                );
            }
        };
        let ended = tokio::select! {
            biased;
            // An error: a bug in leasehold, after which nothing is known about the work.
            ended = answered => Some(ended.unwrap_or(Ok(Ended::ShutDown))?),
            () = given_up => None,
            () = place.sets_waiting(&activity) => None,
        };
        Ok(exited(&activity, ended))
    }
}

/// Calls the handler, and drops it when all jobs are gone.
async fn call(handler: JobsHandler, threads: Threads, batch: Batch<Waiting>) {
    let mut members = batch.members;
    let jobs: Vec<Job> = members.iter().map(|member| member.work.0.clone()).collect();
    let span = match &*members {
        [member] => member.work.1.clone(),
        several => info_span!(parent: None, "batch", messages = several.len()),
    };
    let working = caught(async move {
        let results = handler(jobs).await;
        results.into_iter().map(returned).collect::<Vec<_>>()
    });
    let mut running = match threads.spawn(working).instrument(span).await {
        Ok(running) => running,
        Err(error) => {
            let error = not_started(&error);
            for member in members {
                member.answer(Err(error.clone()));
            }
            return;
        }
    };
    let all_gone = join_all(members.iter_mut().map(Member::is_gone));
    let ended = tokio::select! {
        biased;
        ended = &mut running.task => ended,
        _ = all_gone => return,
    };
    let each: Vec<Ended> = match ended {
        Ok(Ok(results)) if results.len() == members.len() => results,
        Ok(Ok(results)) => {
            let (results, jobs) = (results.len(), members.len());
            let why = || {
                format!(
                    "the batch handler returned {results} results for {jobs} jobs: return one for each job, in their order"
                )
            };
            let failed = || Returned { how: Handled::Failed, text: Some(why()), retry_after: None };
            members.iter().map(|_| Ended::Returned(failed())).collect()
        }
        Ok(Err(Panic(text))) => members.iter().map(|_| Ended::Panicked(text.clone())).collect(),
        Err(_) => members.iter().map(|_| Ended::ShutDown).collect(),
    };
    for (member, ended) in members.into_iter().zip(each) {
        member.answer(Ok(ended));
    }
}

const NAME: &str = "the handler";

fn not_started(error: &std::io::Error) -> StartError {
    let why = format!("its threads could not be started: {error}");
    StartError { program: NAME.to_owned(), why, ends_the_run: false }
}

/// The end of a job; `None` if the handler was dropped.
fn exited(activity: &Activity, ended: Option<Ended>) -> Exited {
    let (how, reason) = match ended {
        Some(Ended::Returned(Returned { how, text, retry_after })) => {
            if let Some(error) = &text {
                warn!(error, "the handler returned an error");
            }
            if let Some(delay) = retry_after {
                activity.report("retry_after", delay.as_secs_f64().into());
            }
            (how, text)
        }
        Some(Ended::Panicked(text)) => (Handled::Panicked, Some(text)),
        Some(Ended::ShutDown) => (Handled::Dropped, Some("its runtime was shut down".to_owned())),
        None => (Handled::Dropped, None),
    };
    if let Some(reason) = &reason {
        activity.report("reason", reason.as_str().into());
    }
    Exited {
        exit: Exit::Handler(how),
        stderr_tail: reason.into_iter().collect(),
        ..Exited::killed()
    }
}

/// What a handler returned for a job.
struct Returned {
    how: Handled,
    /// The error. The log has all of it; other reports are shorter.
    text: Option<String>,
    retry_after: Option<Duration>,
}

impl From<Result<(), Error>> for Returned {
    /// For the handler's thread: an error's text, its causes and its drop are code of the user, which
    /// may panic or block.
    fn from(result: Result<(), Error>) -> Self {
        let Err(error) = result else {
            return Self { how: Handled::Succeeded, text: None, retry_after: None };
        };
        let (how, retry_after) = match failure::class(&*error) {
            None => (Handled::Failed, None),
            Some(Class::Permanent) => (Handled::Permanent, None),
            Some(Class::Retry { after }) => (Handled::Temporary, after),
        };
        Self { how, text: Some(failure::causes(&*error)), retry_after }
    }
}

/// Each result by itself: a panic in the text of one error does not affect the others.
fn returned(result: Result<(), Error>) -> Ended {
    catch_unwind(AssertUnwindSafe(|| Returned::from(result)))
        .map_or_else(|panic| Ended::Panicked(described(panic.as_ref()).0), Ended::Returned)
}

/// A panic of the handler, as a text.
struct Panic(String);

/// The result of the handler, or its panic.
async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panic> {
    let mut work = pin!(AssertUnwindSafe(work).catch_unwind());
    let ended = poll_fn(|context| {
        // The place of a panic that was caught elsewhere is not the place of the next one.
        panics::take_place();
        work.as_mut().poll(context).map_err(|panic| described(panic.as_ref()))
    });
    ended.await
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
