//! `leasehold local`: the same supervisor and actors, with a folder as the bucket and a queue in
//! memory.
//!
//! This file does KEDA's part: while messages are visible, it starts up to `--concurrency` runs at
//! the same time, each as short-lived as a pod.

mod stores;
mod summary;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use indicatif::MultiProgress;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::actors::supervisor::{self, World};
use crate::adapters::local::folder::{Folder, FolderError, Listed, Listing, OUTBOX};
use crate::adapters::local::memory::{Kind, MemoryQueue, QueueState};
use crate::adapters::local::rehearsal::Rehearsal;
use crate::job::delivery::{MessageId, Redrive};
use crate::job::report::{Ended, Observation, Report};
use crate::ports::clock::Clock;
use crate::ports::health::Health;
use crate::ports::{Activity, Command, Exited, Runner, StartError, Telemetry};
use crate::settings::resolve::LocalConfig;
use crate::telemetry::attempts::AttemptHistory;
use crate::telemetry::bars::Bars;
use crate::telemetry::records::{log_ended, log_started};
use crate::work::threads::WorkThreads;
use crate::work::{CommandWorker, Worker};
use stores::Stores;
use summary::{Fate, File};
pub use summary::{Page, Summary};

/// Processes the inbox until every file has succeeded or is a dead letter, or until `stop`.
pub async fn run(
    config: LocalConfig,
    runner: Arc<dyn Runner>,
    work_threads: WorkThreads,
    screen: MultiProgress,
    stop: CancellationToken,
) -> Result<Summary, FolderError> {
    let LocalConfig { inbox, outbox, max_receive_count, ceiling, work, .. } = &config;
    let folder = Folder::new(inbox)?;
    if let Some(outbox) = outbox {
        folder.check_outside(OUTBOX, outbox)?;
    }
    let Listing { files, skipped } = folder.list()?;
    let dead_letters = "dead-letters".to_owned();
    let redrive =
        Redrive::DeadLetter { max_receive_count: *max_receive_count, queue: dead_letters };
    let queue = MemoryQueue::new(Kind::Standard, redrive).with_ceiling(*ceiling);
    let clock = Clock::start();
    let stores = Stores::of(&config, &folder, clock)?;
    let send =
        |file: &Listed| (queue.send(file.notification()), File::new(file.object.key.clone()));
    let telemetry = Arc::new(LocalTelemetry {
        files: Mutex::new(files.iter().map(send).collect()),
        bars: Bars::new(screen, files.len()),
        attempts: stores.attempts,
    });
    let worker: Arc<dyn Worker> = Arc::new(CommandWorker {
        checkpoints: stores.checkpoints,
        idempotency: stores.idempotency,
        store: Arc::new(folder.with_moved(stores.moved)),
        runner,
        turns: None,
        fetch: work.fetch.clone(),
        outbox: Some(Arc::new(stores.outbox)),
        work_dir: work.work_dir.clone(),
        job_id: work.identity.job_id.clone(),
        queue_url: None,
        clock,
    });
    let world = |pod: &Rehearsal| World {
        queue: Arc::new(pod.clone()),
        worker: worker.clone(),
        telemetry: telemetry.clone(),
        clock,
        work_threads: work_threads.clone(),
        health: Health::default(),
    };
    run_pods(&config, files.len(), &queue, world, &stop).await;

    telemetry.bars.clear();
    let mut summary = Summary { files: telemetry.files().clone(), skipped };
    for dead in queue.dead_letters() {
        summary.mark_dead(&dead.message_id);
    }
    Ok(summary)
}

/// Runs pods until the queue is drained, or until `stop`; each slot runs one pod at a time.
async fn run_pods(
    config: &LocalConfig,
    files: usize,
    queue: &MemoryQueue,
    world: impl Fn(&Rehearsal) -> World,
    stop: &CancellationToken,
) {
    let mut slots = JoinSet::new();
    let lanes = config.concurrency * config.work.batch.size;
    for _ in 0..lanes.min(files) {
        let pod = Rehearsal::new(queue.clone(), config.fault);
        let (world, settings) = (world(&pod), config.work.settings.clone());
        let (queue, stop) = (queue.clone(), stop.clone());
        slots.spawn(async move {
            while let Some(QueueState::Visible) =
                stop.run_until_cancelled(queue.visible_or_drained()).await
            {
                pod.begin();
                let run = supervisor::run(
                    world.clone(),
                    settings.clone(),
                    stop.clone().cancelled_owned(),
                );
                let is_killed = tokio::select! {
                    _ = run => false,
                    () = pod.until_killed() => true,
                };
                if is_killed {
                    warn!("rehearsed: the pod was killed");
                    pod.release_all().await;
                }
            }
        });
    }
    slots.join_all().await;
}

/// Runs commands with `runner`, and kills them at once when `kill` is cancelled.
pub struct Killable {
    pub runner: Arc<dyn Runner>,
    pub kill: CancellationToken,
}

#[async_trait]
impl Runner for Killable {
    fn name(&self) -> &'static str {
        self.runner.name()
    }

    fn is_in_process(&self) -> bool {
        self.runner.is_in_process()
    }

    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        // Dropping a run kills its command.
        let ended = self.kill.run_until_cancelled(self.runner.run(command, halt, activity)).await;
        ended.unwrap_or_else(|| Ok(Exited::killed()))
    }
}

/// Logs like a pod, draws bars, and counts the results.
struct LocalTelemetry {
    files: Mutex<HashMap<MessageId, File>>,
    bars: Bars,
    attempts: Option<AttemptHistory>,
}

impl LocalTelemetry {
    fn files(&self) -> MutexGuard<'_, HashMap<MessageId, File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self, ended: &Ended) {
        let mut files = self.files();
        // Every message was sent for a file.
        let Some(file) = files.get_mut(&ended.subject.message_id) else { return };
        file.ended(ended);
        let succeeded = files.values().filter(|file| file.fate == Fate::Succeeded).count();
        info!(succeeded, files = files.len(), "progress");
    }
}

#[async_trait]
impl Telemetry for LocalTelemetry {
    async fn report(&self, report: &Report) {
        match report {
            Report::Started(subject) => {
                log_started(subject);
                self.bars.started(subject);
                if let Some(attempts) = &self.attempts {
                    attempts.begin(subject);
                }
            }
            Report::Progressed(progressed) => self.bars.progressed(progressed),
            Report::Ended(ended) => {
                let now = SystemTime::now();
                log_ended(ended, now);
                self.bars.ended(ended);
                self.ended(ended);
                if let Some(attempts) = &self.attempts {
                    attempts.end(ended, now).await;
                }
            }
            // A local run has no termination message and no readiness.
            Report::Held(_) | Report::Releasing(_) => {}
        }
    }

    fn record(&self, _: Observation) {}
}
