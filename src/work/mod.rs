//! The work on a message: one object after another, each in stages.
//!
//! ```text
//! claim its record ─► restore its checkpoint ─► fetch ─► run the command ─► publish ─► record that it is done ─► act on the object
//! ```

pub mod checkpoint;
pub mod contract;
pub mod fetch;
pub mod fixed_paths;
pub mod halt;
pub mod idempotency;
mod last_error;
pub mod liveness;
mod object_work;
mod on_success;
pub mod result_file;
mod run;
mod stages;
pub mod threads;
pub mod workspace;
pub mod workspaces;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use crate::job::lifecycle::{Processed, Work};
use crate::job::notification::Record;
use crate::job::outcome::{Failure, Outcome, WorkRecord};
use crate::job::report::Subject;
use crate::job::route::{Content, Input, Task};
use crate::job::stop::WorkStop;
use crate::ports::clock::Clock;
use crate::ports::{Activity, ObjectStore, Outbox, Runner};
use checkpoint::Checkpoints;
use fetch::FetchPolicy;
use halt::{Deadline, Halt};
use idempotency::Idempotency;
use last_error::with_last_error;
pub use liveness::ReportEvent;
use liveness::Watch;
use object_work::{Done, ObjectWork, Runtime, Until};
use workspace::{WorkDir, Workspace};
use workspaces::Workspaces;

/// Does the work on a message.
#[async_trait]
pub trait Worker: Send + Sync {
    /// Works on every object of the message, one after another, until the first failure or until
    /// halted. After this returns, or is dropped, only the removal of files in `workspaces`
    /// continues.
    async fn process(
        &self,
        work: Work,
        halt: Halt,
        report_event: &ReportEvent,
        workspaces: &Workspaces,
    ) -> Processed;

    /// Whether the work may block its thread, as files do.
    fn may_block(&self, _: &Work) -> bool {
        true
    }

    /// Drops the checkpoints of a deleted message; those not dropped within `limit` stay.
    async fn drop_checkpoints(&self, _: &Subject, _: &Task, _limit: Duration) {}
}

/// The worker that runs the user's command.
pub struct CommandWorker {
    pub store: Arc<dyn ObjectStore>,
    pub runner: Arc<dyn Runner>,
    /// How many commands may run at the same time; `None` if each message's may run at once.
    pub turns: Option<Arc<Semaphore>>,
    pub fetch: FetchPolicy,
    /// Stores partial state, if configured.
    pub checkpoints: Option<Checkpoints>,
    /// Records finished work, if configured.
    pub idempotency: Option<Idempotency>,
    /// Publishes the command's output, if configured.
    pub outbox: Option<Arc<dyn Outbox>>,
    pub work_dir: WorkDir,
    pub job_id: String,
    /// `None` without SQS.
    pub queue_url: Option<String>,
    pub clock: Clock,
}

#[async_trait]
impl Worker for CommandWorker {
    /// When this returns, the command has ended, and its files are removed or being removed.
    async fn process(
        &self,
        work: Work,
        halt: Halt,
        report_event: &ReportEvent,
        workspaces: &Workspaces,
    ) -> Processed {
        let mut facts = WorkRecord::default();
        let all = self.process_all(&work, &halt, report_event, workspaces, &mut facts);
        let outcome = all.await.unwrap_or_else(Outcome::Failed);
        Processed { outcome, work: facts }
    }

    /// A handler runs on threads of its own, and so does what it asks for. Work that does nothing
    /// else uses no files.
    fn may_block(&self, work: &Work) -> bool {
        let task = &work.task;
        let fetches = task.input != Input::None && work.content != Content::Body;
        let does_more = task.on_success.is_some()
            || self.idempotency.is_some()
            || self.outbox_of(task).is_some();
        fetches || does_more || !self.makes_folders_on_demand(task)
    }

    async fn drop_checkpoints(&self, subject: &Subject, task: &Task, limit: Duration) {
        if let (Some(checkpoints), Some(how)) = (&self.checkpoints, &task.checkpoint) {
            checkpoints.drop_all(how, &task.name, subject, limit).await;
        }
    }
}

impl CommandWorker {
    /// Works on all objects until the first failure.
    async fn process_all(
        &self,
        work: &Work,
        halt: &Halt,
        report_event: &ReportEvent,
        workspaces: &Workspaces,
        facts: &mut WorkRecord,
    ) -> Result<Outcome, Failure> {
        let is_checkpointed = self.checkpointing(&work.task).is_some();
        let stop = WorkStop::new(work.stop_grace, self.idempotency.is_some(), is_checkpointed);
        let publish_deadline =
            Deadline::after(&halt.requested, stop.publish, &halt.publish_aborted);
        let record_deadline =
            Deadline::after(&halt.requested, stop.record, &CancellationToken::new());
        let until = Until {
            halt: &halt.requested,
            publish_halt: &publish_deadline.passed,
            deadline_at: work.deadline_at,
        };
        let records: Vec<Option<&Record>> = match &work.content {
            Content::Objects(records) => records.iter().map(Some).collect(),
            Content::Body => vec![None],
        };
        let mut done = Vec::new();
        for (number, record) in records.iter().copied().enumerate() {
            let object = record.map(|record| &record.object);
            let span = info_span!(
                parent: None, "work",
                message_id = %work.subject.message_id,
                receive_count = work.subject.receive_count,
                bucket = object.map(|object| &object.bucket),
                key = object.map(|object| &object.key),
            );
            let name = object.map_or("message", |object| &object.key);
            let space = self.workspace(&work.task, name, halt, workspaces).await?;
            let result_file = (!self.runner.is_in_process()).then(|| space.result_file());
            let watch = Watch {
                clock: self.clock,
                stall_timeout: work.task.stall_timeout,
                result_file: result_file.as_deref(),
                activity: Activity::default(),
                objects: (number, records.len()),
                report_event,
            };
            let runtime = Runtime::default();
            let object = ObjectWork {
                work,
                number,
                record,
                space: &space,
                watch: &watch,
                runtime: &runtime,
                stop,
            };
            let working = Box::pin(async {
                let done = self.run_claimed(object, until, &record_deadline.passed, facts).await?;
                self.act_on_object(object, until, done, facts).await?;
                Ok(done)
            });
            let (ended, failed_last) = with_last_error(working.instrument(span)).await;
            workspaces.put_back(space, ended.is_ok());
            // A stop must not wait for the removal of a hundred thousand files.
            if halt.requested.is_cancelled() {
                let _ = timeout(HALTED_REMOVAL, workspaces.finished()).await;
            }
            match ended {
                Ok(how) => done.push(how),
                Err(failure) => {
                    // Every other failure has its own reason.
                    facts.last_error = failed_last.filter(|_| failure == Failure::Halted);
                    return Err(failure);
                }
            }
        }
        Ok(outcome_of_all(&done))
    }

    /// The directory for one object, after those of earlier objects are removed.
    async fn workspace(
        &self,
        task: &Task,
        name: &str,
        halt: &Halt,
        workspaces: &Workspaces,
    ) -> Result<Workspace, Failure> {
        let is_on_demand = self.makes_folders_on_demand(task);
        // A handler may need no file, so it does not wait for a disk that hangs.
        let limit = if is_on_demand { ON_DEMAND_WAIT } else { Duration::MAX };
        let removed = timeout(limit, workspaces.finished());
        if halt.requested.run_until_cancelled(removed).await.is_none() {
            return Err(Failure::Halted);
        }
        if is_on_demand {
            return Ok(Workspace::on_demand(&self.work_dir, name));
        }
        workspaces.create(&self.work_dir, name).map_err(Failure::Start)
    }

    /// Where the task's output goes, if it is published.
    fn outbox_of(&self, task: &Task) -> Option<&dyn Outbox> {
        self.outbox.as_deref().filter(|outbox| outbox.accepts(task.output.as_ref()))
    }

    /// Whether the work may ask for its folders, and nothing else needs them before it.
    fn makes_folders_on_demand(&self, task: &Task) -> bool {
        let has_links =
            task.input == Input::Mount || task.input_at.is_some() || task.output_at.is_some();
        self.runner.is_in_process() && !has_links && self.checkpointing(task).is_none()
    }

    /// Adds the time that `work` takes to `spent`, also if it is dropped early.
    async fn timed<T>(&self, spent: &mut Duration, work: impl Future<Output = T>) -> T {
        struct Stopwatch<'a>(&'a Clock, Duration, &'a mut Duration);
        impl Drop for Stopwatch<'_> {
            fn drop(&mut self) {
                *self.2 += self.0.now().saturating_sub(self.1);
            }
        }
        let _stopwatch = Stopwatch(&self.clock, self.clock.now(), spent);
        work.await
    }
}

fn outcome_of_all(done: &[Done]) -> Outcome {
    if done.contains(&Done::Succeeded) {
        Outcome::Finished
    } else if done.contains(&Done::Earlier) {
        Outcome::AlreadyDone
    } else {
        Outcome::ObjectsGone
    }
}

/// A file of at most this many bytes is written and removed on the thread of the work: that takes less
/// time than to wake another thread.
const SMALL: u64 = 1 << 20;

/// How long work with folders on demand waits for the removal of the last ones.
const ON_DEMAND_WAIT: Duration = Duration::from_secs(1);

/// How long a halt waits for the removal of files: short compared to a tenth of the shortest
/// reserve, which is the limit for everything then.
pub const HALTED_REMOVAL: Duration = Duration::from_millis(30);

async fn unless_halted<T>(
    halt: &CancellationToken,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = halt.cancelled() => Err(Failure::Halted),
        done = work => {
            last_error::recovered();
            Ok(done)
        }
    }
}
