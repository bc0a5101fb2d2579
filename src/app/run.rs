//! `leasehold run`: wires up a pod.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::InProcess;
use super::connect::{Connected, connect};
use super::machine::{check_machine, check_threads};
use super::runtime::{
    block_on, check_handler, finish, flush_limit, log_style, longest_stop_grace, runner,
};
use super::signals::{Reaction, since_stop, stop_requested};
use super::sweep::pushgateway;
use crate::actors::supervisor::{self, World};
use crate::actors::work_threads::WorkThreads;
use crate::adapters::aws::sqs::queue_url;
use crate::adapters::memory_limit::{MemoryCgroup, MemoryLimited};
use crate::ports::Runner;
use crate::ports::clock::Clock;
use crate::ports::health::Health;
use crate::settings::environment;
use crate::settings::resolve::RunConfig;
use crate::telemetry::PodTelemetry;
use crate::telemetry::listen::{self, Pages};
use crate::telemetry::logs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::panics;
use crate::telemetry::push::Pusher;
use crate::telemetry::readiness::Readiness;

pub fn run(config: RunConfig, in_process: Option<InProcess>) -> Result<ExitCode, String> {
    let in_process = in_process.map(|make| make(config.work.batch.sharing(config.concurrency)));
    check_threads()?;
    check_machine(&config.work, in_process.is_none())?;
    check_handler(&config.work, in_process.is_some())?;
    let style = log_style(config.work.log_format, &std::io::stdout());
    let plan = config.work.settings.stop;
    let filter = logs::filter(environment::log_filter().as_deref(), "info")?;
    let logs =
        logs::start(style, &config.work.identity, filter, std::io::stdout(), flush_limit(plan));
    panics::log_panics(in_process.is_some());
    let run = |work_threads| async {
        // The metrics are created only if they are served or pushed.
        let is_read = config.metrics.listen.is_some() || config.pushgateway.is_some();
        let queue = queue_url::queue_name(&config.queue_url);
        let metrics =
            is_read.then(|| Arc::new(Metrics::new(queue, logs.dropped(), SystemTime::now())));
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
    let pages = Pages {
        metrics: metrics.clone().filter(|_| config.pushgateway.is_none()),
        readiness: readiness.clone(),
        health: health.clone(),
    };
    let _listening = listen(config.metrics.listen, pages).await?;
    let guard = config.memory_guard;
    let processes = || within_memory_limit(in_process.map_or_else(runner, Ok)?, guard);
    let limit = move || plan.attempt_record(since_stop().is_some());
    let Connected { queue, worker, runner, attempts, runs } =
        connect(&config, None, processes, clock, metrics.as_ref(), limit, &stop).await?;
    let RunConfig { work, metrics: reporting, pushgateway: gateway, .. } = config;
    let log = Some(work.termination_log);
    let telemetry = Arc::new(PodTelemetry::new(log, attempts, metrics.clone(), readiness));
    let world = World { queue, worker, telemetry: telemetry.clone(), clock, work_threads, health };
    let namespace = reporting.namespace.or_else(pods_namespace);
    let pod_name = work.identity.pod_name;
    let pusher = gateway.zip(metrics.clone()).map(|(gateway, metrics)| {
        let interval = reporting.push_interval;
        Pusher::start(pushgateway(gateway), metrics, namespace, pod_name, interval, plan.push())
    });
    let longest = longest_stop_grace(&work.settings.policy) + plan.actor();
    let outcome = supervisor::run_concurrently(world, work.settings, runs, stop).await;
    finish(runner.as_ref(), longest).await;
    telemetry.exiting(&outcome);
    if let Some(metrics) = metrics {
        metrics.finished(outcome.exit_code(), SystemTime::now());
    }
    if let Some(pusher) = pusher {
        pusher.finish().await;
    }
    Ok(ExitCode::from(outcome.exit_code()))
}

/// Serves the pages at `--listen` until the result is dropped.
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
