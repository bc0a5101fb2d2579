//! Connects the work of a pod, or of an embedding program, to AWS.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::handlers::for_handler;
use crate::adapters::aws::s3::S3;
use crate::adapters::aws::sqs::Sqs;
use crate::adapters::aws::{self, SdkConfig};
use crate::adapters::batches::Batches;
use crate::adapters::lambda::Source;
use crate::adapters::memory_limit::MemoryCgroup;
use crate::adapters::payloads::Payloads;
use crate::adapters::publish::S3Outbox;
use crate::ports::clock::Clock;
use crate::ports::{Queue, Runner};
use crate::settings::environment;
use crate::settings::resolve::RunConfig;
use crate::telemetry::attempts::{AttemptHistory, HistoryStore, SILENCE};
use crate::telemetry::metrics::Metrics;
use crate::work::checkpoint::Checkpoints;
use crate::work::idempotency::Idempotency;
use crate::work::{CommandWorker, Worker};

pub struct Connected {
    pub queue: Arc<dyn Queue>,
    pub worker: Arc<dyn Worker>,
    /// Part of the worker. It is finished after the runs.
    pub runner: Arc<dyn Runner>,
    pub attempts: Option<AttemptHistory>,
    /// How many runs share them.
    pub runs: usize,
}

/// `given` replaces the configuration from the environment; `attempt_limit` is the time limit of an
/// attempt record at the end of an attempt.
pub async fn connect(
    config: &RunConfig,
    given: Option<&SdkConfig>,
    processes: impl FnOnce() -> Result<Arc<dyn Runner>, String>,
    clock: Clock,
    metrics: Option<&Arc<Metrics>>,
    attempt_limit: impl Fn() -> Duration + Send + Sync + 'static,
    stop: &CancellationToken,
) -> Result<Connected, String> {
    let RunConfig { queue_url, records, work, .. } = config;
    let (variables, ca_bundle) = (environment::aws(), environment::ca_bundle());
    let aws = match given {
        Some(given) => aws::with_own_connections(given, ca_bundle.clone()),
        None => aws::load(queue_url, ca_bundle.clone(), &variables).await,
    };
    let aws = aws.map_err(|error| error.to_string())?;
    let aws_s3 = aws::load_s3(&aws, config.s3_profile.as_deref(), ca_bundle, &variables)
        .await
        .map_err(|error| error.to_string())?;
    let s3 = Arc::new(S3::with_options(&aws_s3, config.s3.clone()));
    let attempts = records.attempts.clone().map(|location| {
        let cgroup = MemoryCgroup::of_this_process();
        let store = HistoryStore {
            storage: s3.clone(),
            records: s3.clone(),
            location,
            identity: work.identity.clone(),
            memory: cgroup.map(|cgroup| Box::new(move || cgroup.in_use()) as _),
            metrics: metrics.cloned(),
            silence: SILENCE,
        };
        AttemptHistory::new(store, attempt_limit)
    });
    let idempotency = records.idempotency.clone().map(|location| Idempotency {
        records: s3.clone(),
        location,
        queue: queue_url.clone(),
        owner: work.identity.pod_name.clone(),
        clock,
    });
    let source = Source::new(Some(queue_url), aws.region().map(AsRef::as_ref));
    let runner = for_handler(processes()?, work, config.concurrency, source, stop);
    let (runs, turns) = runs_and_turns(config.concurrency * work.batch.size, config.prefetch);
    let payloads = Payloads {
        store: s3.clone(),
        policy: work.settings.policy.clone(),
        buckets: work.fetch.buckets.clone(),
        stop: stop.clone(),
    };
    let worker = CommandWorker {
        checkpoints: Some(Checkpoints { storage: s3.clone(), clock }),
        idempotency,
        store: s3.clone(),
        runner: runner.clone(),
        turns,
        fetch: work.fetch.clone(),
        outbox: Some(Arc::new(S3Outbox { writer: s3 })),
        work_dir: work.work_dir.clone(),
        job_id: work.identity.job_id.clone(),
        queue_url: Some(queue_url.clone()),
        clock,
    };
    let sqs = Sqs::new(&aws, queue_url.clone()).with_key_attribute(config.idempotency_key.clone());
    let sqs = if work.handler.is_warm() { sqs.with_all_attributes() } else { sqs };
    let queue: Arc<dyn Queue> = if runs > 1 {
        let fifo = work.settings.policy.fifo;
        Arc::new(Batches::new(Arc::new(sqs), clock, fifo, runs, stop.clone()))
    } else {
        Arc::new(sqs)
    };
    let queue = payloads.read_for(queue);
    Ok(Connected { queue, worker: Arc::new(worker), runner, attempts, runs })
}

/// How many runs the pod has, and how many of their commands may run at the same time: with
/// `--prefetch`, further runs download in advance, and wait for their turn.
fn runs_and_turns(concurrency: usize, prefetch: usize) -> (usize, Option<Arc<Semaphore>>) {
    let turns = (prefetch > 0).then(|| Arc::new(Semaphore::new(concurrency)));
    (concurrency + prefetch, turns)
}
