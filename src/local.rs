//! `leasehold local`: the same supervisor and actors, with a folder as the bucket and a queue in
//! memory.
//!
//! This file plays KEDA's part: while a message is visible it starts runs, up to as many side by
//! side as `--concurrency` says, each as short-lived as a pod.

mod kept;
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
use crate::adapters::local::memory::{Kind, MemoryQueue, QueueState};
use crate::adapters::local::rehearsal::Rehearsal;
use crate::job::delivery::{MessageId, Redrive};
use crate::job::outcome::Exit;
use crate::job::report::{Ended, Observation, Report};
use crate::ports::clock::Clock;
use crate::ports::health::Health;
use crate::ports::{Activity, Command, Exited, Runner, StartError, Telemetry};
use crate::settings::resolve::LocalConfig;
use crate::telemetry::attempts::AttemptHistory;
use crate::telemetry::bars::Bars;
use crate::telemetry::records::{log_ended, log_started};
use crate::work::{CommandWorker, Worker};
use kept::Kept;
use summary::{Fate, File};
pub use summary::{Page, Summary};

/// Works through the inbox until every file has succeeded or is a dead letter, or until `stop`.
pub async fn run(
    config: LocalConfig,
    runner: Arc<dyn Runner>,
    screen: MultiProgress,
    stop: CancellationToken,
) -> Result<Summary, FolderError> {
    let LocalConfig {
        inbox, outbox, concurrency, max_receive_count, mishap, ceiling, work, ..
    } = &config;
    let folder = Folder::new(inbox)?;
    if let Some(outbox) = outbox {
        folder.check_outbox(outbox)?;
    }
    let Listing { files, skipped } = folder.list()?;
    let dead_letters = "dead-letters".to_owned();
    let redrive =
        Redrive::DeadLetter { max_receive_count: *max_receive_count, queue: dead_letters };
    let queue = MemoryQueue::new(Kind::Standard, redrive).with_ceiling(*ceiling);
    let clock = Clock::start();
    let kept = Kept::of(&config, clock)?;
    let send =
        |file: &Listed| (queue.send(file.notification()), File::new(file.object.key.clone()));
    let telemetry = Arc::new(Watch {
        files: Mutex::new(files.iter().map(send).collect()),
        bars: Bars::new(screen, files.len()),
        attempts: kept.attempts,
    });
    let worker: Arc<dyn Worker> = Arc::new(CommandWorker {
        checkpoints: kept.checkpoints,
        idempotency: kept.idempotency,
        store: Arc::new(folder),
        runner,
        fetch: work.fetch.clone(),
        outbox: Some(Arc::new(kept.outbox)),
        work_dir: work.work_dir.clone(),
        job_id: work.identity.job_id.clone(),
        clock,
    });
    let mut pods = JoinSet::new();
    for _ in 0..(*concurrency).min(files.len()) {
        let pod = Rehearsal::new(queue.clone(), *mishap);
        let world = World {
            queue: Arc::new(pod.clone()),
            worker: worker.clone(),
            telemetry: telemetry.clone(),
            clock,
            health: Health::default(),
        };
        let (settings, queue, stop) = (work.settings.clone(), queue.clone(), stop.clone());
        pods.spawn(async move {
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
    pods.join_all().await;

    telemetry.bars.clear();
    let mut summary = Summary { files: telemetry.files().clone(), skipped };
    for dead in queue.dead_letters() {
        summary.is_dead(&dead.message_id);
    }
    Ok(summary)
}

/// Runs commands as `runner` does, and KILLs them at once when `kill` is cancelled.
pub struct Killable {
    pub runner: Arc<dyn Runner>,
    pub kill: CancellationToken,
}

#[async_trait]
impl Runner for Killable {
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        // What is dropped is KILLed.
        let ended = self.kill.run_until_cancelled(self.runner.run(command, halt, activity)).await;
        ended.unwrap_or_else(|| {
            Ok(Exited { exit: Exit::Signal(9), usage: None, stderr_tail: Vec::new() })
        })
    }
}

/// Logs as a pod does, draws bars, and keeps count.
struct Watch {
    files: Mutex<HashMap<MessageId, File>>,
    bars: Bars,
    attempts: Option<AttemptHistory>,
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
                let now = SystemTime::now();
                log_ended(ended, now);
                self.bars.ended(ended);
                self.ended(ended);
                if let Some(attempts) = &self.attempts {
                    attempts.add(ended, now).await;
                }
            }
            // A run is not worth a word here, only its message is.
            Report::Held(_) | Report::Releasing(_) => {}
        }
    }

    fn record(&self, _: Observation) {}
}
