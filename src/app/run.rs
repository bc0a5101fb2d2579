//! `leasehold run`: wires up a pod.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::machine::{check_machine, check_threads};
use super::runtime::{
    block_on, check_handler, flush_limit, for_handler, log_style, longest_stop_grace, runner,
};
use super::signals::{Reaction, since_stop, stop_requested};
use super::sweep::pushgateway;
use crate::actors::supervisor::{self, World};
use crate::actors::work_threads::WorkThreads;
use crate::adapters::aws;
use crate::adapters::aws::s3::S3;
use crate::adapters::aws::sqs::{Sqs, queue_url};
use crate::adapters::batches::Batches;
use crate::adapters::lambda::Source;
use crate::adapters::memory_limit::{MemoryCgroup, MemoryLimited};
use crate::adapters::publish::S3Outbox;
use crate::ports::clock::Clock;
use crate::ports::health::Health;
use crate::ports::{Queue, Runner};
use crate::settings::environment;
use crate::settings::resolve::RunConfig;
use crate::telemetry::PodTelemetry;
use crate::telemetry::attempts::{AttemptHistory, HistoryStore, SILENCE};
use crate::telemetry::listen::{self, Pages};
use crate::telemetry::logs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::push::Pusher;
use crate::telemetry::readiness::Readiness;
use crate::work::CommandWorker;
use crate::work::checkpoint::Checkpoints;
use crate::work::idempotency::Idempotency;

pub fn run(config: RunConfig, in_process: Option<Arc<dyn Runner>>) -> Result<ExitCode, String> {
    check_threads()?;
    check_machine(&config.work, in_process.is_none())?;
    check_handler(&config.work, in_process.is_some())?;
    let style = log_style(config.work.log_format, &std::io::stdout());
    let plan = config.work.settings.stop;
    let filter = logs::filter(environment::log_filter().as_deref(), "info")?;
    let logs =
        logs::start(style, &config.work.identity, filter, std::io::stdout(), flush_limit(plan));
    let run = |work_threads| async {
        // The metrics are created only if they are served or pushed.
        let is_read = config.metrics.listen.is_some() || config.pushgateway.is_some();
        let queue = queue_url::queue_name(&config.queue_url);
        let metrics =
            is_read.then(|| Arc::new(Metrics::new(queue, logs.dropped(), SystemTime::now())));
        let stop_grace = longest_stop_grace(&config.work.settings.policy);
        let stop = stop_requested(metrics.as_ref(), &Reaction { stop_grace, kill: None })?;
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
    let RunConfig { queue_url, records, work, metrics: reporting, pushgateway: gateway, .. } =
        config;
    let (plan, clock, health) = (work.settings.stop, Clock::start(), Health::default());
    let readiness = Arc::new(Readiness::new(stop.clone()));
    let pages = Pages {
        metrics: metrics.clone().filter(|_| gateway.is_none()),
        readiness: readiness.clone(),
        health: health.clone(),
    };
    let _listening = listen(reporting.listen, pages).await?;
    let (variables, ca_bundle) = (environment::aws(), environment::ca_bundle());
    let aws = aws::load(&queue_url, ca_bundle.clone(), &variables)
        .await
        .map_err(|error| error.to_string())?;
    let aws_s3 = aws::load_s3(&aws, config.s3_profile.as_deref(), ca_bundle, &variables)
        .await
        .map_err(|error| error.to_string())?;
    let s3 = Arc::new(S3::with_options(&aws_s3, config.s3));
    let attempts = records.attempts.map(|location| {
        let cgroup = MemoryCgroup::of_this_process();
        let store = HistoryStore {
            storage: s3.clone(),
            records: s3.clone(),
            location,
            identity: work.identity.clone(),
            memory: cgroup.map(|cgroup| Box::new(move || cgroup.in_use()) as _),
            metrics: metrics.clone(),
            silence: SILENCE,
        };
        AttemptHistory::new(store, move || plan.attempt_record(since_stop().is_some()))
    });
    let idempotency = records.idempotency.map(|location| Idempotency {
        records: s3.clone(),
        location,
        queue: queue_url.clone(),
        owner: work.identity.pod_name.clone(),
        clock,
    });
    let processes = within_memory_limit(in_process.map_or_else(runner, Ok)?, config.memory_guard)?;
    let source = Source::new(Some(&queue_url), aws.region().map(AsRef::as_ref));
    let runner = for_handler(processes, &work, config.concurrency, source, &stop);
    let (runs, turns) = runs_and_turns(config.concurrency * work.batch.size, config.prefetch);
    let sqs = Sqs::new(&aws, queue_url.clone()).with_key_attribute(config.idempotency_key);
    let sqs = if work.handler.stays() { sqs.with_all_attributes() } else { sqs };
    let worker = CommandWorker {
        checkpoints: Some(Checkpoints { storage: s3.clone(), clock }),
        idempotency,
        store: s3.clone(),
        runner: runner.clone(),
        turns,
        fetch: work.fetch,
        outbox: Some(Arc::new(S3Outbox { writer: s3 })),
        work_dir: work.work_dir,
        job_id: work.identity.job_id,
        queue_url: Some(queue_url),
        clock,
    };
    let telemetry =
        Arc::new(PodTelemetry::new(work.termination_log, attempts, metrics.clone(), readiness));
    let world = World {
        queue: combined(sqs, runs, clock, work.settings.policy.fifo, &stop),
        worker: Arc::new(worker),
        telemetry: telemetry.clone(),
        clock,
        work_threads,
        health,
    };
    let namespace = reporting.namespace.or_else(pods_namespace);
    let pod_name = work.identity.pod_name;
    let pusher = gateway.zip(metrics.clone()).map(|(gateway, metrics)| {
        let interval = reporting.push_interval;
        Pusher::start(pushgateway(gateway), metrics, namespace, pod_name, interval, plan.push())
    });
    let outcome = supervisor::run_concurrently(world, work.settings, runs, stop).await;
    runner.finish().await;
    telemetry.exiting(&outcome);
    if let Some(metrics) = metrics {
        metrics.finished(outcome.exit_code(), SystemTime::now());
    }
    if let Some(pusher) = pusher {
        pusher.finish().await;
    }
    Ok(ExitCode::from(outcome.exit_code()))
}

/// The calls of concurrent runs are combined.
fn combined(
    sqs: Sqs,
    runs: usize,
    clock: Clock,
    fifo: bool,
    stop: &CancellationToken,
) -> Arc<dyn Queue> {
    if runs > 1 {
        Arc::new(Batches::new(Arc::new(sqs), clock, fifo, stop.clone()))
    } else {
        Arc::new(sqs)
    }
}

/// How many runs the pod has, and how many of their commands may run at the same time: with
/// `--prefetch`, further runs download in advance, and wait for their turn.
fn runs_and_turns(concurrency: usize, prefetch: usize) -> (usize, Option<Arc<Semaphore>>) {
    let turns = (prefetch > 0).then(|| Arc::new(Semaphore::new(concurrency)));
    (concurrency + prefetch, turns)
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
