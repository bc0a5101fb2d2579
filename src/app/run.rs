//! `leasehold run`: wires up a pod.

#[cfg(feature = "listen")]
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;
#[cfg(feature = "listen")]
use tokio_util::task::AbortOnDropHandle;

use super::InProcess;
use super::runtime::{
    block_on, check_handler, finish, flush_limit, log_style, longest_stop_grace, runner,
};
use super::signals::{Reaction, since_stop, stop_requested};
#[cfg(feature = "pushgateway")]
use super::sweep::pushgateway;
use crate::actors::supervisor::{self, World};
use crate::adapters::aws::sqs::queue_url;
use crate::adapters::memory_limit::{MemoryCgroup, MemoryLimited};
use crate::ports::Runner;
use crate::ports::clock::Clock;
use crate::ports::health::Health;
use crate::settings::environment;
use crate::settings::resolve::RunConfig;
use crate::telemetry::PodTelemetry;
#[cfg(feature = "listen")]
use crate::telemetry::listen::{self, Pages};
use crate::telemetry::logs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::panics;
#[cfg(feature = "pushgateway")]
use crate::telemetry::push::Pusher;
use crate::telemetry::readiness::Readiness;
use crate::wiring::connect::{Connected, connect};
use crate::wiring::machine::{ThreadCheck, check_machine, check_threads};
use crate::work::threads::WorkThreads;

pub fn run(
    config: RunConfig,
    in_process: Option<InProcess>,
    threads: Option<ThreadCheck>,
) -> Result<ExitCode, String> {
    let in_process = in_process.map(|make| make(config.work.batch.sharing(config.concurrency)));
    check_machine(&config.work, in_process.is_none())?;
    check_handler(&config.work, in_process.is_some())?;
    let style = log_style(config.work.log_format, &std::io::stdout());
    let plan = config.work.settings.stop;
    let filter = logs::filter(environment::log_filter().as_deref(), "info")?;
    threads.map_or_else(check_threads, ThreadCheck::finish)?;
    let logs =
        logs::start(style, &config.work.identity, filter, std::io::stdout(), flush_limit(plan));
    panics::log_panics(in_process.is_some());
    let run = |work_threads| async {
        let queue = queue_url::queue_name(&config.queue_url);
        let metrics = are_read(&config)
            .then(|| Arc::new(Metrics::new(queue, logs.dropped(), SystemTime::now())));
        let stop_grace = longest_stop_grace(&config.work.settings.policy);
        let work = in_process.as_ref().map_or("the command", |runner| runner.name());
        let stop = stop_requested(metrics.as_ref(), &Reaction { work, stop_grace, kill: None })?;
        Box::pin(run_pod(config, in_process, metrics, work_threads, stop)).await
    };
    block_on(run, plan.tidy())?
}

async fn run_pod(
    config: RunConfig,
    in_process: Option<Arc<dyn Runner>>,
    metrics: Option<Arc<Metrics>>,
    work_threads: WorkThreads,
    stop: CancellationToken,
) -> Result<ExitCode, String> {
    let (plan, clock, health) = (config.work.settings.stop, Clock::start(), Health::default());
    let readiness = Arc::new(Readiness::new(stop.clone()));
    #[cfg(feature = "listen")]
    let _listening = {
        let pages = Pages {
            metrics: metrics.clone().filter(|_| !are_pushed(&config)),
            readiness: readiness.clone(),
            health: health.clone(),
        };
        listen(config.metrics.listen, pages).await?
    };
    let guard = config.memory_guard;
    let processes = || within_memory_limit(in_process.map_or_else(runner, Ok)?, guard);
    let limit = move || plan.attempt_record(since_stop().is_some());
    let Connected { queue, worker, runner, attempts, runs } =
        connect(&config, None, processes, clock, metrics.as_ref(), limit, &stop).await?;
    #[cfg(feature = "pushgateway")]
    let pusher = pusher(&config, metrics.as_ref());
    let RunConfig { work, .. } = config;
    let log = Some(work.termination_log);
    let telemetry = Arc::new(PodTelemetry::new(log, attempts, metrics.clone(), readiness));
    let world = World { queue, worker, telemetry: telemetry.clone(), clock, work_threads, health };
    let longest = longest_stop_grace(&work.settings.policy) + plan.actor();
    let outcome = supervisor::run_concurrently(world, work.settings, runs, stop).await;
    finish(runner.as_ref(), longest).await;
    telemetry.exiting(&outcome);
    if let Some(metrics) = metrics {
        metrics.finished(outcome.exit_code(), SystemTime::now());
    }
    #[cfg(feature = "pushgateway")]
    if let Some(pusher) = pusher {
        pusher.finish().await;
    }
    Ok(ExitCode::from(outcome.exit_code()))
}

/// The metrics are created only if they are served or pushed.
fn are_read(config: &RunConfig) -> bool {
    #[cfg(feature = "listen")]
    if config.metrics.listen.is_some() {
        return true;
    }
    are_pushed(config)
}

fn are_pushed(config: &RunConfig) -> bool {
    #[cfg(feature = "pushgateway")]
    return config.pushgateway.is_some();
    #[cfg(not(feature = "pushgateway"))]
    false
}

/// Pushes the metrics to `--pushgateway`.
#[cfg(feature = "pushgateway")]
fn pusher(config: &RunConfig, metrics: Option<&Arc<Metrics>>) -> Option<Pusher> {
    let (gateway, metrics) = config.pushgateway.clone().zip(metrics.cloned())?;
    let namespace = config.metrics.namespace.clone().or_else(pods_namespace);
    let (pod_name, interval) =
        (config.work.identity.pod_name.clone(), config.metrics.push_interval);
    let limit = config.work.settings.stop.push();
    Some(Pusher::start(pushgateway(gateway), metrics, namespace, pod_name, interval, limit))
}

/// Serves the pages at `--listen` until the result is dropped.
#[cfg(feature = "listen")]
async fn listen(
    address: Option<SocketAddr>,
    pages: Pages,
) -> Result<Option<AbortOnDropHandle<()>>, String> {
    let Some(address) = address else { return Ok(None) };
    let serving = listen::serve(address, pages)
        .await
        .map_err(|error| format!("--listen {address}: {error}"))?;
    Ok(Some(serving))
}

/// The pod's namespace, from a file that Kubernetes mounts.
#[cfg(feature = "pushgateway")]
fn pods_namespace() -> Option<String> {
    let namespace =
        std::fs::read_to_string("/var/run/secrets/kubernetes.io/serviceaccount/namespace").ok()?;
    Some(namespace.trim().to_owned()).filter(|namespace| !namespace.is_empty())
}

/// A guard needs a limit. Without one, or without a cgroup, commands run as they are.
fn within_memory_limit(
    runner: Arc<dyn Runner>,
    guard: Option<u8>,
) -> Result<Arc<dyn Runner>, String> {
    let cgroup = MemoryCgroup::of_this_process().filter(|cgroup| cgroup.limit().is_some());
    match (cgroup, guard) {
        (Some(cgroup), guard) => Ok(Arc::new(MemoryLimited::new(runner, cgroup, guard))),
        (None, None) => Ok(runner),
        (None, Some(_)) => {
            Err("--memory-guard has no effect: this container has no memory limit; \
             set resources.limits.memory, or remove the flag"
                .to_owned())
        }
    }
}
