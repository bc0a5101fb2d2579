//! `leasehold local`: the same supervisor and actors, with a folder as the bucket and a queue in memory.
//!
//! This file plays KEDA's part: while a message is visible it starts runs, up to as many side by side as
//! `--concurrency` says, each as short-lived as a pod.

mod summary;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use indicatif::MultiProgress;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::actors::supervisor::{self, World};
use crate::adapters::local::folder::{Folder, FolderError, Listed, Listing};
use crate::adapters::local::memory::{Kind, MemoryQueue, Standing};
use crate::adapters::local::outbox::FolderOutbox;
use crate::job::delivery::{MessageId, Redrive};
use crate::job::outcome::Exit;
use crate::job::report::{Ended, Observation, Report};
use crate::job::route::JobType;
use crate::ports::clock::Clock;
use crate::ports::health::Health;
use crate::ports::{Command, Exited, Outbox, Pulse, Runner, StartError, Telemetry};
use crate::settings::resolve::LocalConfig;
use crate::telemetry::bars::Bars;
use crate::telemetry::records::{log_ended, log_started};
use crate::work::CommandWorker;
use summary::{Fate, File};
pub use summary::{Page, Summary};

/// How often a file is tried before it counts as poison.
const MAX_RECEIVE_COUNT: u32 = 3;

/// Works through the inbox until every file has succeeded or is a dead letter, or until `stop`.
pub async fn run(
    config: LocalConfig,
    runner: Arc<dyn Runner>,
    screen: MultiProgress,
    stop: CancellationToken,
) -> Result<Summary, FolderError> {
    let LocalConfig { inbox, outbox, concurrency, verbosity: _, mut work } = config;
    without_checkpoints(&mut work.settings.policy.job_types);
    let folder = Folder::new(&inbox)?;
    if let Some(outbox) = &outbox {
        folder.check_outbox(outbox)?;
    }
    let Listing { files, skipped } = folder.list()?;
    let dead_letters = "dead-letters".to_owned();
    let redrive = Redrive::DeadLetter { max_receive_count: MAX_RECEIVE_COUNT, queue: dead_letters };
    let queue = MemoryQueue::new(Kind::Standard, redrive);
    let send = |file: &Listed| (queue.send(file.notification()), File::new(file.object.key.clone()));
    let telemetry =
        Arc::new(Watch { files: Mutex::new(files.iter().map(send).collect()), bars: Bars::new(screen, files.len()) });

    let clock = Clock::start();
    let worker = CommandWorker {
        checkpoints: None,
        idempotency: None,
        store: Arc::new(folder),
        runner,
        fetch: work.fetch,
        outbox: outbox.map(|outbox| Arc::new(FolderOutbox::new(outbox)) as Arc<dyn Outbox>),
        work_dir: work.work_dir,
        job_id: work.identity.job_id,
        clock,
    };
    let world = World {
        queue: Arc::new(queue.clone()),
        worker: Arc::new(worker),
        telemetry: telemetry.clone(),
        clock,
        health: Health::default(),
    };

    let mut pods = JoinSet::new();
    for _ in 0..concurrency.min(files.len()) {
        let (world, settings, queue, stop) = (world.clone(), work.settings.clone(), queue.clone(), stop.clone());
        pods.spawn(async move {
            while let Some(Standing::Visible) = stop.run_until_cancelled(queue.visible_or_drained()).await {
                supervisor::run(world.clone(), settings.clone(), stop.clone().cancelled_owned()).await;
            }
        });
    }
    pods.join_all().await;

    telemetry.bars.clear();
    let mut summary = Summary { files: telemetry.files().clone(), skipped };
    for dead in queue.dead_letters() {
        summary.is_dead(&dead.message_id);
    }
    Ok(summary)
}

/// Without checkpoints there is nothing to resume, so a job type must not hand over.
fn without_checkpoints(job_types: &mut [JobType]) {
    let mut stateless = Vec::new();
    for job_type in job_types.iter_mut().filter(|job_type| job_type.task.checkpoint.is_some()) {
        Arc::make_mut(&mut job_type.task).checkpoint = None;
        stateless.push(job_type.task.name.as_str());
    }
    if !stateless.is_empty() {
        let job_types = stateless.join(", ");
        warn!(job_types, "no partial state is kept here: each attempt starts afresh, and may take 12 hours at most");
    }
}

/// Runs commands as `runner` does, and KILLs them at once when `kill` is cancelled.
pub struct Killable {
    pub runner: Arc<dyn Runner>,
    pub kill: CancellationToken,
}

#[async_trait]
impl Runner for Killable {
    async fn run(&self, command: Command, halt: CancellationToken, pulse: Pulse) -> Result<Exited, StartError> {
        // What is dropped is KILLed.
        let ended = self.kill.run_until_cancelled(self.runner.run(command, halt, pulse)).await;
        ended.unwrap_or_else(|| Ok(Exited { exit: Exit::Signal(9), usage: None, stderr_tail: Vec::new() }))
    }
}

/// Logs as a pod does, draws bars, and keeps count.
struct Watch {
    files: Mutex<HashMap<MessageId, File>>,
    bars: Bars,
}

impl Watch {
    fn files(&self) -> MutexGuard<'_, HashMap<MessageId, File>> {
        self.files.lock().expect("nothing panics while holding it")
    }

    fn ended(&self, ended: &Ended) {
        let mut files = self.files();
        // Each message that there is was sent for a file.
        let Some(file) = files.get_mut(&ended.subject.message_id) else { return };
        file.ended(ended);
        let succeeded = files.values().filter(|file| file.fate == Fate::Succeeded).count();
        info!(succeeded, files = files.len(), "progress");
    }
}

#[async_trait]
impl Telemetry for Watch {
    async fn report(&self, report: &Report) {
        match report {
            Report::Started(subject) => {
                log_started(subject);
                self.bars.started(subject);
            }
            Report::Progressed(progressed) => self.bars.progressed(progressed),
            Report::Ended(ended) => {
                log_ended(ended, SystemTime::now());
                self.bars.ended(ended);
                self.ended(ended);
            }
            // A run is not worth a word here, only its message is.
            Report::Held(_) | Report::Releasing(_) => {}
        }
    }

    fn record(&self, _: Observation) {}
}
