//! `leasehold local`: the same supervisor and actors, with a folder as the bucket and a queue in memory.
//!
//! This file plays KEDA's part: while a message is visible it starts runs, up to as many side by side as
//! `--concurrency` says, each as short-lived as a pod.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use comfy_table::{Table, presets};
use indicatif::MultiProgress;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::actors::supervisor::{self, World};
use crate::adapters::local::folder::{Folder, FolderError, FolderOutbox};
use crate::adapters::local::memory::{Kind, MemoryQueue, Standing};
use crate::job::delivery::Redrive;
use crate::job::report::{Ended, Observation, Report};
use crate::job::verdict::Settlement;
use crate::ports::clock::Clock;
use crate::ports::health::Health;
use crate::ports::{Outbox, Runner, Telemetry};
use crate::settings::resolve::LocalConfig;
use crate::telemetry::bars::Bars;
use crate::telemetry::plain::Plain;
use crate::telemetry::records::{log_ended, log_started};
use crate::work::CommandWorker;

/// How often a file is tried before it counts as poison.
const MAX_RECEIVE_COUNT: u32 = 3;

/// Works through the inbox until every file has succeeded or is a dead letter, or until `stop`.
pub async fn run(
    config: LocalConfig,
    runner: Arc<dyn Runner>,
    screen: MultiProgress,
    stop: CancellationToken,
) -> Result<Summary, FolderError> {
    let LocalConfig { inbox, outbox, concurrency, mut work } = config;
    let mut stateless = Vec::new();
    for job_type in &mut work.settings.policy.job_types {
        // Without checkpoints there is nothing to resume, so a job type must not hand over.
        if job_type.task.checkpoint.is_some() {
            Arc::make_mut(&mut job_type.task).checkpoint = None;
            stateless.push(job_type.task.name.as_str());
        }
    }
    if !stateless.is_empty() {
        let job_types = stateless.join(", ");
        warn!(job_types, "no partial state is kept here: each attempt starts afresh, and may take 12 hours at most");
    }
    let folder = Folder::new(&inbox)?;
    let files = folder.list()?;
    let dead_letters = "dead-letters".to_owned();
    let redrive = Redrive::DeadLetter { max_receive_count: MAX_RECEIVE_COUNT, queue: dead_letters };
    let queue = MemoryQueue::new(Kind::Standard, redrive);
    let telemetry =
        Arc::new(Watch::new(files.iter().map(|file| file.object.key.clone()), Bars::new(screen, files.len())));
    for file in &files {
        queue.send(file.notification());
    }

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

    let mut summary = telemetry.summary();
    for dead in queue.dead_letters() {
        summary.is_dead(dead.message_id.as_str());
    }
    Ok(summary)
}

/// Logs as a pod does, draws bars, and keeps count.
struct Watch {
    files: Mutex<BTreeMap<String, File>>,
    bars: Bars,
}

/// What became of one file.
#[derive(Debug, Clone, Default)]
struct File {
    message_id: String,
    /// `None` until its first attempt has ended.
    outcome: Option<String>,
    succeeded: bool,
    attempts: u32,
    /// In all its attempts.
    worked: Duration,
}

impl Watch {
    fn new(keys: impl Iterator<Item = String>, bars: Bars) -> Self {
        Self { files: Mutex::new(keys.map(|key| (key, File::default())).collect()), bars }
    }

    fn ended(&self, ended: &Ended) {
        let mut files = self.files.lock().expect("nothing panics while holding it");
        // In here a message is about one file, or, if `--events` leaves nothing of it, about none.
        let Some(file) = ended.subject.objects.first().and_then(|object| files.get_mut(&object.key)) else { return };
        ended.subject.message_id.as_str().clone_into(&mut file.message_id);
        file.succeeded = matches!(ended.settlement, Settlement::Deleted(_));
        file.outcome = Some(ended.outcome().to_owned());
        file.attempts = ended.subject.receive_count;
        file.worked += ended.work.timings.total;
        let done = files.values().filter(|file| file.succeeded).count();
        info!(succeeded = done, files = files.len(), "progress");
    }

    fn summary(&self) -> Summary {
        Summary { files: self.files.lock().expect("nothing panics while holding it").clone() }
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

/// What became of every file.
#[derive(Debug, Clone)]
pub struct Summary {
    files: BTreeMap<String, File>,
}

impl Summary {
    pub fn all_succeeded(&self) -> bool {
        self.files.values().all(|file| file.succeeded)
    }

    fn is_dead(&mut self, message_id: &str) {
        for file in self.files.values_mut().filter(|file| file.message_id == message_id) {
            file.outcome = Some(format!("dead letter: {}", file.outcome.as_deref().unwrap_or_default()));
        }
    }
}

/// A table, and a line that sums it up.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(["FILE", "OUTCOME", "ATTEMPTS", "DURATION"]);
        for (key, file) in &self.files {
            table.add_row([
                Plain(key).to_string(),
                file.outcome.clone().unwrap_or_else(|| "not started".to_owned()),
                file.attempts.to_string(),
                format!("{:.1} s", file.worked.as_secs_f64()),
            ]);
        }
        if !self.files.is_empty() {
            writeln!(f, "{table}\n")?;
        }
        let succeeded = self.files.values().filter(|file| file.succeeded).count();
        write!(f, "{succeeded} of {} files succeeded", self.files.len())
    }
}
