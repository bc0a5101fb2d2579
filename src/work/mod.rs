//! What the Processor does with a message, as plain async functions: fetch, run, publish.

pub mod checkpoint;
pub mod contract;
pub mod fetch;
pub mod halt;
pub mod idempotency;
mod last_error;
pub mod liveness;
pub mod publish;
pub mod result_file;
pub mod workspace;

use std::borrow::Cow;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::job::lifecycle::{Event, Processed, Work};
use crate::job::notification::{Object, Record};
use crate::job::outcome::{Exit, Failure, Outcome, WorkRecord};
use crate::job::route::{Checkpointing, Content, Input, Task};
use crate::job::stop::{RECORD_RELEASE, WorkStop};
use crate::ports::clock::Clock;
use crate::ports::{Command, ObjectStore, Outbox, Pulse, Results, Runner};
use checkpoint::{Checkpoints, Save, SaveLimits};
use contract::Given;
use fetch::{FetchPolicy, Fetched, FetchedObject};
use halt::{Deadline, Halt};
use idempotency::{Claimed, Idempotency};
use last_error::with_last_error;
use liveness::Watch;
use result_file::ResultFile;
use workspace::{WorkDir, Workspace};

/// Somebody who does the work on a message.
#[async_trait]
pub trait Worker: Send + Sync {
    /// Works on every object of the message, one after another, until the first failure or until halted. When this
    /// returns, or is dropped, nothing of the work goes on.
    async fn process(&self, work: Work, halt: Halt, tell: &Tell) -> Processed;
}

/// Hears what happens while the work goes on: progress, or a stall.
pub type Tell = dyn Fn(Event) + Send + Sync;

/// The worker that runs the user's command: everything that it needs, laid out.
pub struct Bench {
    pub store: Arc<dyn ObjectStore>,
    pub runner: Arc<dyn Runner>,
    pub fetch: FetchPolicy,
    /// Who keeps partial state, if somebody does.
    pub checkpoints: Option<Checkpoints>,
    /// Where finished work is recorded, if it is.
    pub idempotency: Option<Idempotency>,
    /// Who publishes what the command wrote, if somebody does.
    pub outbox: Option<Arc<dyn Outbox>>,
    pub work_dir: WorkDir,
    pub job_id: String,
    pub clock: Clock,
}

/// What is known of the work so far.
#[derive(Default)]
struct Progress {
    /// Was an object's work recognised as done?
    already_done: bool,
    /// Had the last object's command succeeded before anybody halted it, and was all of it published?
    in_time: bool,
    record: WorkRecord,
}

/// One thing to work on.
#[derive(Clone, Copy)]
struct Item<'a> {
    work: &'a Work,
    /// Of those in the message, from 0.
    number: usize,
    /// `None` for the message's body itself.
    record: Option<&'a Record>,
    space: &'a Workspace,
    watch: &'a Watch<'a>,
    runtime: &'a Runtime,
    /// Cancelled when a command that runs is to end, and nothing more is to begin.
    halt: &'a CancellationToken,
    /// Cancelled when what is being published is to be given up.
    publish_halt: &'a CancellationToken,
    stop: WorkStop,
    /// When the work will be halted, on the run's clock.
    deadline_at: Duration,
}

/// When the command of an object ran, on the run's clock. What a store takes, to give or to take, is not its work.
#[derive(Default)]
struct Runtime {
    began_at: OnceLock<Duration>,
    ended_at: OnceLock<Duration>,
    ended: CancellationToken,
}

impl Runtime {
    fn begins(&self, now: Duration) {
        let _ = self.began_at.set(now);
    }

    fn ends(&self, now: Duration) {
        let _ = self.ended_at.set(now);
        self.ended.cancel();
    }

    /// How long it has run until then, or did run; `None` if it has not begun.
    fn until(&self, now: Duration) -> Option<Duration> {
        let ended_at = self.ended_at.get().copied().unwrap_or(now);
        self.began_at.get().map(|began_at| ended_at.saturating_sub(*began_at))
    }
}

/// What the command works on.
enum Provided<'a> {
    /// As it was fetched, which the event may say otherwise.
    Object(Cow<'a, Record>),
    /// The message's body.
    Body,
    /// The object is gone, and that is as it should be.
    Nothing,
}

#[async_trait]
impl Worker for Bench {
    /// When this returns, the command is gone, and what it left on the disk is gone or going.
    async fn process(&self, work: Work, halt: Halt, tell: &Tell) -> Processed {
        let is_checkpointed = self.checkpointing(&work.task).is_some();
        let stop = WorkStop::new(work.stop_grace, self.idempotency.is_some(), is_checkpointed);
        let publish_deadline = Deadline::after(&halt.requested, stop.publish, &halt.publish_aborted);
        let record_deadline = Deadline::after(&halt.requested, stop.record, &CancellationToken::new());
        let mut progress = Progress::default();
        let mut outcome = Outcome::Finished;
        let items: Vec<Option<&Record>> = match &work.content {
            Content::Objects(records) => records.iter().map(Some).collect(),
            Content::Body(_) => vec![None],
        };
        for (done, record) in items.iter().copied().enumerate() {
            let object = record.map(|record| &record.object);
            let span = info_span!(
                parent: None, "work",
                message_id = %work.subject.message_id,
                receive_count = work.subject.receive_count,
                bucket = object.map(|object| &object.bucket),
                key = object.map(|object| &object.key),
            );
            let space = match Workspace::create(&self.work_dir, object.map_or("message", |object| &object.key)) {
                Ok(space) => space,
                Err(why) => {
                    outcome = Outcome::Failed(Failure::Start(why));
                    break;
                }
            };
            let watch = Watch {
                clock: self.clock,
                stall_timeout: work.task.stall_timeout,
                result_file: &space.result_file(),
                pulse: Pulse::default(),
                objects: (done, items.len()),
                tell,
            };
            let runtime = Runtime::default();
            let item = Item {
                work: &work,
                number: done,
                record,
                space: &space,
                watch: &watch,
                runtime: &runtime,
                halt: &halt.requested,
                publish_halt: &publish_deadline.passed,
                stop,
                deadline_at: work.deadline_at,
            };
            let work = self.claimed(item, &record_deadline.passed, &mut progress).instrument(span);
            let (processed, failed_last) = Box::pin(with_last_error(work)).await;
            let removed = space.remove();
            // Who is to end has no time to wait for a hundred thousand files.
            let patience = if halt.requested.is_cancelled() { REMOVAL } else { Duration::MAX };
            let _ = timeout(patience, removed).await;
            if let Err(failure) = processed {
                // Every other failure says itself what went wrong.
                progress.record.last_error = failed_last.filter(|_| failure == Failure::Halted);
                outcome = Outcome::Failed(failure);
                break;
            }
        }
        if outcome == Outcome::Finished && progress.record.exit.is_none() {
            outcome = if progress.already_done { Outcome::AlreadyDone } else { Outcome::ObjectsGone };
        }
        Processed { outcome, work: progress.record }
    }
}

impl Bench {
    /// Works on it, unless an earlier delivery has done so; and sees to it that no other pod does at the same time.
    async fn claimed(
        &self,
        mut item: Item<'_>,
        record_deadline: &CancellationToken,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let Some(idempotency) = &self.idempotency else {
            return self.resumed(item, progress).await;
        };
        let Item { work, number, record, watch, halt, publish_halt, stop, .. } = item;
        let claim = idempotency.claim(&work.subject, number, record, work.visibility);
        let mut own = match unless_halted(halt, claim).await?? {
            Claimed::Ours(own) => own,
            Claimed::AlreadyDone => {
                info!("an earlier delivery has finished this work: it is not done again");
                progress.already_done = true;
                return Ok(());
            }
        };
        let ours = Halt { requested: halt.child_token(), publish_aborted: publish_halt.child_token() };
        (item.halt, item.publish_halt) = (&ours.requested, &ours.publish_aborted);
        let mut lost = None;
        let processed = {
            let mut processing = Box::pin(self.resumed(item, progress));
            loop {
                tokio::select! {
                    // Nothing is begun, neither a command nor an upload, by who has lost the record meanwhile.
                    biased;
                    why = own.refresh(), if lost.is_none() => {
                        (watch.tell)(Event::LeaseLost(why.clone()));
                        ours.abort();
                        lost = Some(why);
                    }
                    processed = &mut processing => break processed,
                }
            }
        };
        match (lost, processed) {
            (Some(why), _) => Err(Failure::Superseded(why)),
            (None, Err(failure)) => {
                let release = if halt.is_cancelled() { stop.release } else { RECORD_RELEASE };
                own.release(release).await;
                Err(failure)
            }
            // It may have ended by the TERM that was sent to it.
            (None, Ok(())) if !progress.in_time => {
                own.release(stop.release).await;
                Err(Failure::Halted)
            }
            // It was done before any stop, which has time enough to say so.
            (None, Ok(())) => unless_halted(record_deadline, own.done()).await?,
        }
    }

    /// Goes on from the last checkpoint, if there is one, and sees to it that there is one for the next delivery.
    async fn resumed(&self, mut item: Item<'_>, progress: &mut Progress) -> Result<(), Failure> {
        let Some((checkpoints, how)) = self.checkpointing(&item.work.task) else {
            return self.process_item(item, progress).await;
        };
        let Item { watch, halt, .. } = item;
        let restored = checkpoints.restore(how, item, &self.work_dir);
        let restored = unless_halted(halt, self.timed(&mut progress.record.timings.fetch, restored)).await?;
        let mut checkpoint = restored?;
        if !checkpoint.worked.is_zero() {
            (watch.tell)(Event::Resumed(checkpoint.worked));
            item.deadline_at = item.deadline_at.saturating_sub(checkpoint.worked);
        }
        let save_deadline = Deadline::after(halt, item.stop.save, &CancellationToken::new());
        let give_up = &save_deadline.passed;
        let over = CancellationToken::new();
        let limits = SaveLimits { give_up, over: &over, halt, deadline_at: item.deadline_at };
        let working = async {
            let processed = self.process_item(item, progress).await;
            over.cancel();
            if processed.is_ok() && progress.in_time {
                // Nobody goes on from what is done.
                give_up.cancel();
            }
            processed
        };
        let (processed, ()) = tokio::join!(working, checkpoint.save_until_over(&limits));
        if (processed.is_err() || !progress.in_time)
            && let Err(error) = checkpoint.save(Save::Last, &limits).await
        {
            warn!(
                error,
                "the checkpoint was not saved: the next delivery goes on from the one before, if there is one"
            );
        }
        processed
    }

    fn checkpointing<'a>(&'a self, task: &'a Task) -> Option<(&'a Checkpoints, &'a Checkpointing)> {
        self.checkpoints.as_ref().zip(task.checkpoint.as_ref())
    }

    async fn process_item(&self, item: Item<'_>, progress: &mut Progress) -> Result<(), Failure> {
        let Item { work, space, watch, runtime, halt, publish_halt, stop, deadline_at, .. } = item;
        let Progress {
            record: WorkRecord { exit, reason, stderr_tail, timings, usage, published, .. }, in_time, ..
        } = progress;
        let (input, output) = (space.input(), space.output());
        let outbox = self.outbox.as_ref().filter(|outbox| outbox.takes(work.task.output.as_ref()));

        let Task { command, input: how, .. } = work.task.as_ref();
        let record = match self.provide_input(item, &mut timings.fetch).await? {
            Provided::Object(record) => Some(record),
            Provided::Body => None,
            Provided::Nothing => {
                *in_time = !halt.is_cancelled();
                return Ok(());
            }
        };

        let given = Given {
            job_id: &self.job_id,
            subject: &work.subject,
            record: record.as_deref(),
            task: &work.task,
            deadline: self.wall_clock(deadline_at),
            space,
        };
        let is_resumed = self.checkpointing(&work.task).is_some();
        if !is_resumed {
            space.add_checkpoint().map_err(|error| Failure::Start(self.work_dir.failed(&error)))?;
        }
        let command = Command {
            program: command.program.clone(),
            args: command.args.clone(),
            env: given.write().map_err(Failure::Start)?,
            stdin: (*how == Input::Stdin).then_some(input),
            stop_grace: stop.command,
        };
        if halt.is_cancelled() {
            return Err(Failure::Halted);
        }
        let running = self.runner.run(command, halt.clone(), watch.pulse.clone());
        runtime.begins(self.clock.now());
        let ended = self.timed(&mut timings.command, watch.over(running)).await;
        runtime.ends(self.clock.now());
        let was_halted = halt.is_cancelled();
        let ended = ended.map_err(|error| Failure::Start(error.to_string()))?;
        *stderr_tail = ended.stderr_tail;
        *usage = usage.zip(ended.usage).map(|(before, more)| before.and(more)).or(*usage).or(ended.usage);
        let ended = ended.exit;
        *exit = Some(ended);
        let result = ResultFile::read(&space.result_file());
        for error in &result.complaints {
            warn!(error, "JOB_RESULT_FILE: what is not understood is ignored");
        }
        reason.clone_from(&result.said.reason);
        if outbox.is_none() && has_files(&output).await {
            warn!(
                "the command wrote into JOB_OUTPUT_DIR, and nobody publishes it: --output (of local: --outbox) says where to"
            );
        }
        if !is_resumed && has_files(&space.checkpoint()).await {
            warn!(
                "the command wrote into JOB_CHECKPOINT_DIR, and nobody keeps it: --checkpoint says where to (local keeps none)"
            );
        }
        if ended != Exit::Code(0) {
            return Err(Failure::Exit(ended, result.said));
        }
        // Many programs exit 0 on TERM, half way: that proves nothing.
        if was_halted {
            return Err(Failure::Halted);
        }

        if let Some(outbox) = outbox {
            let results = Results {
                object: record.as_deref().map(|record| &record.object),
                message_id: &work.subject.message_id,
                job_type: &work.task.name,
                to: work.task.output.as_ref(),
                directory: &output,
            };
            // It ends by itself when it is halted: what is half published is cleaned up.
            match self.timed(&mut timings.publish, outbox.publish(&results, publish_halt)).await {
                Ok(manifest) => published.get_or_insert_default().append(manifest),
                Err(_) if publish_halt.is_cancelled() => return Err(Failure::Halted),
                Err(error) => return Err(Failure::Publish(error.to_string())),
            }
        }
        *in_time = true;
        Ok(())
    }

    /// Puts what the command works on where it finds it.
    async fn provide_input<'a>(&self, item: Item<'a>, spent: &mut Duration) -> Result<Provided<'a>, Failure> {
        let Item { work, record, space, halt, .. } = item;
        let input = space.input();
        let Some(record) = record else {
            let body = if let Content::Body(body) = &work.content { body.as_str() } else { "" };
            return std::fs::write(&input, body)
                .map(|()| Provided::Body)
                .map_err(|error| Failure::Fetch(format!("the message's body: {}: {error}", input.display())));
        };
        let Record { event, object, key_as_sent } = record;
        if work.task.input == Input::None {
            fetch::check_bucket(&self.fetch, object)?;
            return Ok(Provided::Object(Cow::Borrowed(record)));
        }
        let store = self.store.as_ref();
        let fetched = fetch::fetch(store, &self.fetch, &self.work_dir, object, key_as_sent.as_deref(), &input);
        Ok(match unless_halted(halt, self.timed(spent, fetched)).await?? {
            Fetched::Here(FetchedObject { key, size, etag }) => {
                let object = Object { key, size: Some(size), etag, ..object.clone() };
                Provided::Object(Cow::Owned(Record { event: event.clone(), object, key_as_sent: None }))
            }
            Fetched::Gone => Provided::Nothing,
        })
    }

    /// Adds the time that `work` takes to `spent`, also if it is dropped half way.
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

    fn wall_clock(&self, at: Duration) -> SystemTime {
        SystemTime::now() + at.saturating_sub(self.clock.now())
    }
}

async fn has_files(directory: &Path) -> bool {
    let Ok(mut entries) = tokio::fs::read_dir(directory).await else { return false };
    matches!(entries.next_entry().await, Ok(Some(_)))
}

/// How long a halt waits for the files to be removed: small beside a tenth of the shortest reserve, within which all must
/// be over.
const REMOVAL: Duration = Duration::from_millis(30);

async fn unless_halted<T>(halt: &CancellationToken, work: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = halt.cancelled() => Err(Failure::Halted),
        done = work => {
            last_error::recovered();
            Ok(done)
        }
    }
}
