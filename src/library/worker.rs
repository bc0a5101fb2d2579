//! A handler beside other tasks: no command line, no global state.

use std::fmt;
use std::future::{Future, pending};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::{Builder, Handle};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::dispatcher::{self, Dispatch};
use tracing::info;
use tracing::subscriber::NoSubscriber;

use super::failure::Error;
use super::handler::{AnyHandler, BatchHandler, Batches, Handler, OneJob};
use super::in_process;
use super::settings::{batch_setters, queue_setters, setters};
use super::summary::{Counted, Summary};
use super::threads::{DroppableRuntime, Threads};
use crate::actors::supervisor::{self, World};
use crate::adapters::aws::SdkConfig;
use crate::adapters::aws::sqs::queue_url::queue_name;
use crate::job::run_outcome::{ReceiveFailure, RunOutcome};
use crate::job::settings::Settings;
use crate::ports::Runner;
use crate::ports::clock::Clock;
use crate::ports::health::Health;
use crate::settings::error::SettingError;
use crate::settings::given::{Refused, Values};
use crate::settings::in_code::{as_code, flags, has, run_settings};
use crate::settings::no_effect::{self, NEEDS_AN_END};
use crate::settings::resolve::RunConfig;
use crate::telemetry::PodTelemetry;
use crate::telemetry::metrics::{Collected, Metrics};
use crate::telemetry::panics;
use crate::telemetry::readiness::Readiness;
use crate::wiring::connect::{Connected, connect};
use crate::wiring::machine::check_machine;
use crate::work::threads::{SeparateThreads, WorkThreads};

/// Receives messages and runs a handler for each, inside any tokio runtime and with any `tracing`
/// subscriber.
///
/// ```no_run
/// use leasehold::{Error, Job, Worker};
/// use std::time::Duration;
///
/// async fn resize(job: Job) -> Result<(), Error> {
///     let image = job.bytes().await?;
///     tracing::info!(bytes = image.len(), "resizing");
///     Ok(())
/// }
///
/// # async fn run() -> Result<(), Error> {
/// let summary = Worker::new(resize)
///     .queue_url("https://sqs.eu-west-1.amazonaws.com/123456789012/uploads")
///     .max_duration(Duration::from_hours(2))
///     .stop_on_signals()
///     .run()
///     .await?;
/// tracing::info!(?summary, "stopped");
/// # Ok(())
/// # }
/// ```
///
/// The handler runs on the caller's runtime, so it may use connections of that runtime. Leases are
/// extended on a thread of leasehold: a handler that blocks does not lose its message.
#[must_use]
pub struct Worker<K = OneJob> {
    handler: AnyHandler,
    values: Values,
    until: Until,
    stop: BoxFuture<'static, ()>,
    on_signals: bool,
    report_panics: bool,
    registry: Option<prometheus::Registry>,
    aws: Option<SdkConfig>,
    kind: PhantomData<fn() -> K>,
}

/// When a worker ends without a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    Stopped,
    /// No message came for `--wait`, or `--max-messages` were processed.
    Empty,
}

/// A setting of a [`Worker`] that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", as_code(&.0.text))]
pub struct SettingsError(Refused);

impl SettingsError {
    /// The setting, by the name that [`Worker::setting`] takes: `max-duration`.
    pub fn setting(&self) -> Option<&str> {
        self.0.setting.as_deref()
    }
}

/// Why a worker ended before it was stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A setting cannot work; [`Worker::check`] finds it, too.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// This process cannot run a worker: a thread, a signal's handler or the metrics.
    #[error("{what}")]
    #[non_exhaustive]
    Process {
        /// What failed.
        what: &'static str,
        /// Why.
        source: Error,
    },
    /// A retry cannot succeed: no such queue, no credentials, no work directory.
    #[error("{0}")]
    Misconfigured(String),
    /// Receive requests kept failing for `receive-give-up`.
    #[error("no message could be received: {0}")]
    Unavailable(String),
    /// The handler could not be started for three messages in a row, such as without the work directory:
    /// each further message would use up a receive.
    #[error("the handler could not be started: {0}")]
    NotStarted(String),
    /// A bug in leasehold. The message is kept, as always.
    #[error("{0}")]
    Bug(String),
}

impl RunError {
    fn process<E: Into<Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Process { what, source: error.into() }
    }

    fn bug(died: &JoinError) -> Self {
        Self::Bug(format!("a bug in leasehold: {died}"))
    }
}

impl Worker {
    /// A worker that does its work with `handler`. It needs the [`queue_url`](Self::queue_url).
    pub fn new(handler: impl Handler) -> Self {
        Self::with(AnyHandler::new(handler))
    }

    /// A worker whose handler takes several jobs at once: up to 10, or
    /// [`batch_size`](Worker::batch_size).
    pub fn batch(handler: impl BatchHandler) -> Worker<Batches> {
        Worker::with(AnyHandler::batch(handler))
    }
}

impl Worker<Batches> {
    batch_setters!();
}

impl<K> Worker<K> {
    fn with(handler: AnyHandler) -> Self {
        Self {
            handler,
            values: Vec::new(),
            until: Until::Stopped,
            stop: pending().boxed(),
            on_signals: false,
            report_panics: false,
            registry: None,
            aws: None,
            kind: PhantomData,
        }
    }

    fn values_mut(&mut self) -> &mut Values {
        &mut self.values
    }

    setters!();
    queue_setters!();

    /// Ends after this many messages, or as [`until_empty`](Self::until_empty) does, with 10 seconds.
    pub fn max_messages(mut self, messages: u32) -> Self {
        self.until = Until::Empty;
        self.setting("max-messages", messages.to_string())
    }

    /// Ends when no message comes for `wait`, in whole seconds, instead of only when it is stopped.
    ///
    /// Messages may be left: each of the [`concurrency`](Self::concurrency) loops also ends after a
    /// message whose lease ended (`lease_lost`, `lost_after_success`, `lease_exhausted`,
    /// `handed_over`), and in a FIFO queue after each message that was kept.
    pub fn until_empty(mut self, wait: Duration) -> Self {
        self.until = Until::Empty;
        self.setting("wait", super::settings::time(wait))
    }

    /// Stops the worker gracefully when this future completes, or panics: running handlers get the stop
    /// grace, and no message is deleted after that. A [`CancellationToken`] gives
    /// `token.cancelled_owned()`. The last future that was set counts. It runs on the caller's
    /// runtime: a handler that blocks that runtime delays the stop.
    pub fn stop_when(mut self, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop = stop.boxed();
        self
    }

    /// SIGTERM and SIGINT stop the worker gracefully, too. Without this, it handles no signals.
    pub fn stop_on_signals(mut self) -> Self {
        self.on_signals = true;
        self
    }

    /// Adds the place of a panic, such as `src/main.rs:7`, to the text of the outcome `panicked`. For
    /// this, the first run installs a panic hook, once, which calls the hook before it. Without this,
    /// no hook is installed.
    pub fn report_panics(mut self) -> Self {
        self.report_panics = true;
        self
    }

    /// Registers the metrics of docs/observability.md here, with the label `queue`. They are
    /// removed at the end of the run.
    pub fn registry(mut self, registry: &prometheus::Registry) -> Self {
        self.registry = Some(registry.clone());
        self
    }

    /// The credentials, the region and the endpoints of SQS and S3, instead of those of the
    /// environment. Connections are not shared.
    pub fn sdk_config(mut self, config: &SdkConfig) -> Self {
        self.aws = Some(config.clone());
        self
    }

    /// Checks the settings, as [`run`](Self::run) does. One that has no effect is refused, too. It
    /// blocks while it reads the file of `job-types`, if that is set.
    pub fn check(&self) -> Result<(), SettingsError> {
        config(self.values.clone(), self.until, self.handler.takes_batches()).map(drop)
    }

    /// Runs until it is stopped, or as the settings say. Dropping the future is like a kill: the
    /// handler is dropped, and its message is visible again after the visibility timeout.
    pub async fn run(self) -> Result<Summary, RunError> {
        let Self { handler, values, until, stop: stop_when, on_signals, registry, aws, .. } = self;
        let callers = Handle::try_current()
            .map_err(RunError::process("a worker needs a tokio runtime of its caller"))?;
        let takes_batches = handler.takes_batches();
        // The file of job types may be on a slow disk.
        let config = callers.spawn_blocking(move || config(values, until, takes_batches));
        let config = config.await.map_err(|died| RunError::bug(&died))??;
        if self.report_panics {
            panics::record_places();
        }
        let batching = config.work.batch.sharing(config.concurrency);
        let stop = CancellationToken::new();
        let _stopper = AbortOnDropHandle::new(callers.spawn({
            // Also after a panic: otherwise, nothing could stop the worker.
            let stops = stop.clone().drop_guard();
            async move {
                stop_when.await;
                drop(stops);
            }
        }));
        let runner = in_process::runner(handler, Threads::Shared(callers), batching);
        let on_start = with_subscriber(dispatcher::get_default(Clone::clone));
        let work = WorkThread(SeparateThreads::new(on_start.clone()));
        let own = own_runtime(on_start)?;
        let run = Run { config, until, stop, on_signals, registry, aws };
        let running = AbortOnDropHandle::new(own.handle().spawn(run.on(runner, work.0.clone())));
        running.await.unwrap_or_else(|died| Err(RunError::bug(&died)))
    }
}

impl<K> fmt::Debug for Worker<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

/// Reads and checks the settings. Blocks while it reads the file of job types.
fn config(
    mut values: Values,
    until: Until,
    takes_batches: bool,
) -> Result<RunConfig, SettingsError> {
    let refused = |error: SettingError| SettingsError(error.into());
    if until == Until::Stopped {
        no_effect::refuse(&NEEDS_AN_END, flags(&values)).map_err(refused)?;
    }
    if !has(&values, "max-messages") {
        values.push(("max-messages", u32::MAX.to_string().into()));
    }
    let settings = run_settings(&values, takes_batches).map_err(SettingsError)?;
    RunConfig::try_from(settings).map_err(refused)
}

/// A worker whose settings are checked.
struct Run {
    config: RunConfig,
    until: Until,
    stop: CancellationToken,
    on_signals: bool,
    registry: Option<prometheus::Registry>,
    aws: Option<SdkConfig>,
}

impl Run {
    /// Runs on leasehold's own thread.
    async fn on(self, runner: Arc<dyn Runner>, work: SeparateThreads) -> Result<Summary, RunError> {
        let Self { config, until, stop, on_signals, registry, aws } = self;
        check_machine(&config.work, false).map_err(|why| RunError::Misconfigured(as_code(&why)))?;
        let _signals = on_signals.then(|| stop_on_signals(&stop)).transpose()?;
        let queue = queue_name(&config.queue_url).to_owned();
        let metrics =
            registry.as_ref().map(|_| Arc::new(Metrics::new(&queue, None, SystemTime::now())));
        let _registered = registry
            .zip(metrics.clone())
            .map(|(registry, metrics)| Registered::new(registry, metrics, &queue))
            .transpose()?;
        let (plan, clock) = (config.work.settings.stop, Clock::start());
        let is_stopping = stop.clone();
        let limit = move || plan.attempt_record(is_stopping.is_cancelled());
        let Connected { queue, worker, attempts, runs, runner: _ } =
            connect(&config, aws.as_ref(), || Ok(runner), clock, metrics.as_ref(), limit, &stop)
                .await
                .map_err(RunError::Misconfigured)?;
        let readiness = Arc::new(Readiness::new(stop.clone()));
        let pod = PodTelemetry::new(None, attempts, metrics, readiness);
        let telemetry = Arc::new(Counted::new(pod, stop.clone()));
        let health = Health::default();
        let world = World {
            queue,
            worker,
            telemetry: telemetry.clone(),
            clock,
            work_threads: WorkThreads::Separate(work),
            health,
        };
        let settings = config.work.settings;
        let outcome = match until {
            Until::Empty => supervisor::run_concurrently(world, settings, runs, stop).await,
            Until::Stopped => run_until_stopped(&world, &settings, runs, &stop).await,
        };
        match outcome {
            RunOutcome::Finished | RunOutcome::Kept(_) => {
                telemetry.summary().map_err(|why| RunError::NotStarted(as_code(&why)))
            }
            RunOutcome::ReceiveFailed(ReceiveFailure::GaveUp(why)) => {
                Err(RunError::Unavailable(why))
            }
            RunOutcome::ReceiveFailed(ReceiveFailure::Misconfigured(why)) => {
                Err(RunError::Misconfigured(why))
            }
            RunOutcome::ActorDied(_) | RunOutcome::SupervisorDied => {
                Err(RunError::Bug(outcome.to_string()))
            }
        }
    }
}

/// Called in each thread of leasehold: it gets the caller's subscriber, if that is one of the
/// caller's thread only.
fn with_subscriber(subscriber: Dispatch) -> impl Fn() + Clone + Send + Sync + 'static {
    move || {
        // Without one, the thread uses a global subscriber, which may be set later.
        if !subscriber.is::<NoSubscriber>() {
            // The thread keeps it to its end.
            std::mem::forget(dispatcher::set_default(&subscriber));
        }
    }
}

/// The thread of the actors, which extends leases and never blocks.
fn own_runtime(on_start: impl Fn() + Send + Sync + 'static) -> Result<DroppableRuntime, RunError> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).thread_name("leasehold").on_thread_start(on_start);
    DroppableRuntime::start(builder)
        .map_err(RunError::process("the threads of leasehold could not be started"))
}

/// The thread of downloads and uploads. Dropping it does not wait for its tasks.
struct WorkThread(SeparateThreads);

impl Drop for WorkThread {
    fn drop(&mut self) {
        self.0.clone().shut_down(Duration::ZERO);
    }
}

/// Runs one run after another in each of `runs` slots: a run ends when the queue is empty,
/// and after a lost lease.
async fn run_until_stopped(
    world: &World,
    settings: &Settings,
    runs: usize,
    stop: &CancellationToken,
) -> RunOutcome {
    let mut slots = JoinSet::new();
    for _ in 0..runs {
        let (world, settings, stop) = (world.clone(), settings.clone(), stop.clone());
        slots.spawn(async move {
            while !stop.is_cancelled() {
                let stopped = stop.clone().cancelled_owned();
                match supervisor::run(world.clone(), settings.clone(), stopped).await {
                    // `Counted` cancels the token if the handler cannot be started.
                    RunOutcome::Finished | RunOutcome::Kept(_) => {}
                    failed @ (RunOutcome::ReceiveFailed(_)
                    | RunOutcome::ActorDied(_)
                    | RunOutcome::SupervisorDied) => {
                        // The other slots would fail, too. They end their work first.
                        stop.cancel();
                        return failed;
                    }
                }
            }
            RunOutcome::Finished
        });
    }
    let mut outcome = RunOutcome::Finished;
    while let Some(ended) = slots.join_next().await {
        outcome = outcome.and_then(ended.unwrap_or(RunOutcome::SupervisorDied));
    }
    outcome
}

/// Cancels the token at SIGTERM or SIGINT, until the result is dropped.
fn stop_on_signals(stop: &CancellationToken) -> Result<AbortOnDropHandle<()>, RunError> {
    use tokio::signal::unix::{SignalKind, signal};

    let on =
        |kind| signal(kind).map_err(RunError::process("a signal's handler could not be installed"));
    let (mut term, mut int) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let stop = stop.clone();
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        info!("shutting down: no more messages will be deleted");
        stop.cancel();
    })))
}

/// Metrics in the caller's registry. Dropping it removes them, so that the next worker for this
/// queue can register its own.
struct Registered {
    registry: prometheus::Registry,
    metrics: Arc<Metrics>,
    queue: String,
}

impl Registered {
    fn new(
        registry: prometheus::Registry,
        metrics: Arc<Metrics>,
        queue: &str,
    ) -> Result<Self, RunError> {
        let collected = Collected::new(metrics.clone(), queue);
        registry
            .register(Box::new(collected))
            .map_err(RunError::process("the metrics could not be registered"))?;
        Ok(Self { registry, metrics, queue: queue.to_owned() })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let collected = Collected::new(self.metrics.clone(), &self.queue);
        // Fails only if the caller has removed them.
        let _ = self.registry.unregister(Box::new(collected));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::Job;

    #[test]
    fn the_setters_of_a_worker_are_settings_of_run() {
        let worker = Worker::new(async |_: Job| Ok::<_, Error>(()))
            .queue_url("https://sqs.us-east-1.amazonaws.com/1/q")
            .concurrency(2)
            .prefetch(3)
            .attempts("s3://bucket/attempts");
        let read = |worker: &Worker| config(worker.values.clone(), worker.until, false).unwrap();
        let config = read(&worker);
        assert_eq!((config.concurrency, config.prefetch), (2, 3));
        assert_eq!(config.work.settings.policy.max_messages, u32::MAX);
        assert!(config.records.attempts.is_some());
        let config = read(&worker.max_messages(7));
        assert_eq!(config.work.settings.policy.max_messages, 7);
    }

    #[test]
    fn the_next_worker_of_a_queue_can_register_its_metrics() {
        let registry = prometheus::Registry::new();
        let register = || {
            let metrics = Arc::new(Metrics::new("q", None, SystemTime::UNIX_EPOCH));
            Registered::new(registry.clone(), metrics, "q")
        };
        let first = register().unwrap();
        assert!(!registry.gather().is_empty());
        assert!(register().is_err(), "two workers of one queue at the same time");
        assert!(!registry.gather().is_empty());
        drop(first);
        assert!(registry.gather().is_empty());
        assert!(register().is_ok());
    }
}
