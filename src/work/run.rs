//! The work on an object: fetch, run the command, publish its output.

use std::borrow::Cow;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use super::contract::JobContext;
use super::fetch::mounted::{self, MountedObject};
use super::fetch::{self, Fetched, FetchedObject};
use super::fixed_paths::FixedPaths;
use super::liveness::Watch;
use super::object_work::{Done, ObjectWork, Until};
use super::{CommandWorker, unless_halted};
use crate::job::lifecycle::Event;
use crate::job::notification::{Object, Record};
use crate::job::outcome::{CommandReport, Exit, Failure, WorkRecord};
use crate::job::route::{Input, LambdaEvent, MissingObject};
use crate::job::s3_event::s3_record;
use crate::ports::{Command, Exited, FetchInput, OnDemand, OutOfMemory, Outbox, Results};

/// The input of the command.
struct Provided<'a> {
    /// The object that was fetched, which may differ from the event. `None` for a body.
    record: Option<Cow<'a, Record>>,
    /// `None` with `--input none`.
    path: Option<PathBuf>,
}

impl CommandWorker {
    pub(super) async fn run(
        &self,
        object: ObjectWork<'_>,
        until: Until<'_>,
        facts: &mut WorkRecord,
    ) -> Result<Done, Failure> {
        let provided = match self.provide_input(object, until, &mut facts.timings.fetch).await? {
            Some(provided) => provided,
            None if until.halt.is_cancelled() => return Err(Failure::Halted),
            None => return Ok(Done::Gone),
        };
        let record = provided.record.as_deref();
        let turn = self.turn(object, until, &mut facts.timings.turn).await?;
        // The wait does not count as the work's time.
        let until = Until { deadline_at: until.deadline_at + facts.timings.turn, ..until };
        let (exit, report) = self.run_command(object, until, &provided, facts).await?;
        drop(turn);
        let was_halted = until.halt.is_cancelled();
        let outbox = self.outbox_of(&object.work.task);
        tokio::select! {
            biased;
            () = self.warn_about_unsaved_files(object, outbox.is_some()) => {}
            // A disk that hangs must not keep finished work from its halt.
            () = until.halt.cancelled() => {}
        }
        if !exit.is_success() {
            return Err(Failure::Exit(exit, report));
        }
        // Many programs exit 0 on TERM with unfinished work: that proves nothing.
        if was_halted {
            return Err(Failure::Halted);
        }
        if let Some(outbox) = outbox {
            self.publish(outbox, object, until, record, facts).await?;
        }
        Ok(Done::Succeeded)
    }

    /// Waits until the command may run; dropping the result lets the next one run.
    async fn turn(
        &self,
        object: ObjectWork<'_>,
        until: Until<'_>,
        waited: &mut Duration,
    ) -> Result<Option<OwnedSemaphorePermit>, Failure> {
        let Some(turns) = self.turns.clone() else { return Ok(None) };
        if let Ok(turn) = turns.clone().try_acquire_owned() {
            return Ok(Some(turn));
        }
        let report = object.watch.report_event;
        report(Event::WaitsForTurn);
        let mut this = Duration::ZERO;
        let turn = unless_halted(until.halt, self.timed(&mut this, turns.acquire_owned())).await;
        *waited += this;
        let turn = turn?.expect("the semaphore is never closed");
        report(Event::HasTurn(this));
        Ok(Some(turn))
    }

    /// How the command ended, and its report.
    async fn run_command(
        &self,
        object: ObjectWork<'_>,
        until: Until<'_>,
        provided: &Provided<'_>,
        facts: &mut WorkRecord,
    ) -> Result<(Exit, CommandReport), Failure> {
        let ObjectWork { work, space, watch, runtime, .. } = object;
        let command = self.command(object, until, provided)?;
        if until.halt.is_cancelled() {
            return Err(Failure::Halted);
        }
        let input = provided.path.is_some().then(|| space.input());
        let links = FixedPaths::create(&work.task, input.as_deref(), &space.output())
            .map_err(Failure::Start)?;
        let running = self.runner.run(command, until.halt.clone(), watch.activity.clone());
        runtime.begins(self.clock.now());
        let mut waited = Duration::ZERO;
        let running = watch.watch(running, &mut waited);
        let ended = self.timed(&mut facts.timings.command, running).await;
        runtime.ends(self.clock.now());
        facts.timings.command = facts.timings.command.saturating_sub(waited);
        facts.timings.turn += waited;
        let mut ended = ended.map_err(|error| {
            let why = error.to_string();
            if error.ends_the_run { Failure::WorkerNotStarted(why) } else { Failure::Start(why) }
        })?;
        if ended.left_no_writer {
            space.is_left_by_all();
        }
        let report = self.record(&mut ended, watch, facts);
        match ended.out_of_memory.filter(|_| !until.halt.is_cancelled()) {
            Some(OutOfMemory::Guard(why)) => return Err(Failure::OutOfMemory(why)),
            Some(OutOfMemory::Kernel(why)) => {
                let exit = ended.exit;
                return Err(Failure::KilledAtMemoryLimit { why, exit, report });
            }
            None => {}
        }
        if ended.exit.is_success() {
            links.check_output().map_err(Failure::Publish)?;
        }
        Ok((ended.exit, report))
    }

    /// The command, with its facts and the files that it needs beside its input.
    fn command(
        &self,
        object: ObjectWork<'_>,
        until: Until<'_>,
        provided: &Provided<'_>,
    ) -> Result<Command, Failure> {
        let ObjectWork { work, record, space, stop, .. } = object;
        let on_demand =
            space.folders().map(|folders| Arc::new(OnDemand { body: work.body.clone(), folders }));
        if on_demand.is_none() {
            std::fs::write(space.body_file(), &work.body)
                .map_err(|error| Failure::Start(self.work_dir.failed(&error)))?;
        }
        let context = JobContext {
            job_id: &self.job_id,
            queue_url: self.queue_url.as_deref(),
            subject: &work.subject,
            record: provided.record.as_deref(),
            task: &work.task,
            input: provided.path.as_deref(),
            deadline: self.wall_clock(until.deadline_at),
            space,
        };
        let mut job = context.facts();
        if work.task.lambda_event == LambdaEvent::S3 {
            job.s3_record = record.map(|record| s3_record(&work.body, record));
        }
        Ok(Command {
            program: work.task.command.program.clone(),
            args: context.arguments(&job).map_err(|why| Failure::Unreadable(why.to_string()))?,
            job,
            variables: None,
            stdin: provided.path.clone().filter(|_| work.task.input == Input::Stdin),
            fetch: self.fetch_later(object, provided),
            on_demand,
            stop_grace: stop.command,
        })
    }

    /// Adds what the command reported and used to the facts.
    fn record(
        &self,
        ended: &mut Exited,
        watch: &Watch<'_>,
        facts: &mut WorkRecord,
    ) -> CommandReport {
        facts.exit = Some(ended.exit);
        facts.stderr_tail = std::mem::take(&mut ended.stderr_tail);
        facts.usage = match (facts.usage, ended.usage) {
            (Some(before), Some(more)) => Some(before.and(more)),
            (before, more) => before.or(more),
        };
        let result = watch.result();
        for error in &result.complaints {
            let of = if self.runner.is_in_process() {
                "the handler's reports"
            } else {
                "JOB_RESULT_FILE"
            };
            warn!(error, "ignoring a part of {of} that is not valid");
        }
        facts.reason.clone_from(&result.report.reason);
        facts.metrics.append(result.metrics);
        result.report
    }

    async fn warn_about_unsaved_files(&self, object: ObjectWork<'_>, is_published: bool) {
        let (name, space) = (self.runner.name(), object.space);
        if !is_published && space.has_files(&space.output()).await {
            warn!(
                "{name} wrote into JOB_OUTPUT_DIR, but the files are not published: set --output (or, with local, --outbox)"
            );
        }
        let is_saved = self.checkpointing(&object.work.task).is_some();
        if !is_saved && space.has_files(&space.checkpoint()).await {
            warn!(
                "{name} wrote into JOB_CHECKPOINT_DIR, but the files are not saved: set --checkpoint"
            );
        }
    }

    async fn publish(
        &self,
        outbox: &dyn Outbox,
        ObjectWork { work, space, .. }: ObjectWork<'_>,
        until: Until<'_>,
        record: Option<&Record>,
        facts: &mut WorkRecord,
    ) -> Result<(), Failure> {
        let results = Results {
            object: record.map(|record| &record.object),
            message_id: &work.subject.message_id,
            job_type: &work.task.name,
            to: work.task.output.as_ref(),
            attributes: &work.task.output_attributes,
            directory: &space.output(),
        };
        space
            .make(&space.output())
            .map_err(|error| Failure::Publish(self.work_dir.failed(&error)))?;
        // It handles the halt itself, to clean up unfinished uploads.
        match self
            .timed(&mut facts.timings.publish, outbox.publish(&results, until.publish_halt))
            .await
        {
            Ok(manifest) => facts.published.get_or_insert_default().append(manifest),
            Err(_) if until.publish_halt.is_cancelled() => return Err(Failure::Halted),
            Err(error) => return Err(Failure::Publish(error.to_string())),
        }
        Ok(())
    }

    /// Writes the command's input to the workspace, or finds it; `None` if the object is gone, which
    /// is not an error.
    async fn provide_input<'a>(
        &self,
        object: ObjectWork<'a>,
        until: Until<'_>,
        spent: &mut Duration,
    ) -> Result<Option<Provided<'a>>, Failure> {
        let ObjectWork { work, record, space, .. } = object;
        let path = space.input();
        let Some(record) = record else {
            if space.folders().is_some() {
                return Ok(Some(Provided { record: None, path: None }));
            }
            std::fs::write(&path, &work.body).map_err(|error| {
                Failure::Fetch(format!("the message's body: {}: {error}", path.display()))
            })?;
            return Ok(Some(Provided { record: None, path: Some(path) }));
        };
        let (policy, missing) = (&self.fetch, work.task.missing_object);
        let (object, key_as_sent) = (&record.object, record.key_as_sent.as_deref());
        let (object, path) = match work.task.input {
            Input::None => {
                fetch::check_bucket(policy, object)?;
                return Ok(Some(Provided { record: Some(Cow::Borrowed(record)), path: None }));
            }
            Input::Mount => {
                let found = mounted::find(policy, missing, object, key_as_sent);
                let found = unless_halted(until.halt, self.timed(spent, found)).await??;
                let Some(MountedObject { key, size, path }) = found else { return Ok(None) };
                // For a link at a fixed path, which leads to the workspace.
                symlink(&path, space.input())
                    .map_err(|error| Failure::Start(self.work_dir.failed(&error)))?;
                (Object { key, size: Some(size), ..object.clone() }, path)
            }
            Input::File | Input::Stdin => {
                let store = self.store.as_ref();
                space
                    .make(&space.input_folder())
                    .map_err(|error| Failure::Start(self.work_dir.failed(&error)))?;
                // In a box: work without a download is not moved with its size.
                let fetched = Box::pin(fetch::fetch(
                    store,
                    policy,
                    missing,
                    &self.work_dir,
                    object,
                    key_as_sent,
                    &path,
                ));
                match unless_halted(until.halt, self.timed(spent, fetched)).await?? {
                    Fetched::Gone => return Ok(None),
                    Fetched::Here(FetchedObject { key, size, etag }) => {
                        (Object { key, size: Some(size), etag, ..object.clone() }, path)
                    }
                }
            }
        };
        let record = Record { object, key_as_sent: None, ..record.clone() };
        Ok(Some(Provided { record: Some(Cow::Owned(record)), path: Some(path) }))
    }

    /// Fetches the object of the event later, with `--input none`. A missing object is then never
    /// ignored: the work has begun, so it ends as a failure.
    fn fetch_later(&self, object: ObjectWork<'_>, provided: &Provided<'_>) -> Option<FetchInput> {
        let ObjectWork { work, record, space, .. } = object;
        if provided.path.is_some() {
            return None;
        }
        let Some(record) = record else { return self.write_body_later(object) };
        let (folders, input_folder) = (space.folders(), space.input_folder());
        let missing = work.task.missing_object.filter(|it| *it != MissingObject::Ignore);
        let (store, policy, work_dir) =
            (self.store.clone(), self.fetch.clone(), self.work_dir.clone());
        let (object, key_as_sent) = (record.object.clone(), record.key_as_sent.clone());
        let path = space.input();
        Some(FetchInput::new(move || {
            let (store, policy, work_dir) = (store.clone(), policy.clone(), work_dir.clone());
            let (object, key_as_sent) = (object.clone(), key_as_sent.clone());
            let path = path.clone();
            let made = folders.as_ref().map_or(Ok(()), |it| it.make(&input_folder));
            async move {
                made.map_err(|error| Failure::Fetch(work_dir.failed(&error)))?;
                // A download that failed before may have left a part of the object.
                let _ = tokio::fs::remove_file(&path).await;
                let (store, key) = (store.as_ref(), key_as_sent.as_deref());
                let fetched = fetch::fetch(store, &policy, missing, &work_dir, &object, key, &path);
                match fetched.await? {
                    Fetched::Here(_) => Ok(path),
                    Fetched::Gone => Err(Failure::Fetch("the object is gone".to_owned())),
                }
            }
            .boxed()
        }))
    }

    /// Writes the message's body when the work asks for its input.
    fn write_body_later(
        &self,
        ObjectWork { work, space, .. }: ObjectWork<'_>,
    ) -> Option<FetchInput> {
        let folders = space.folders()?;
        let (input_folder, path) = (space.input_folder(), space.input());
        let (body, work_dir) = (work.body.clone(), self.work_dir.clone());
        Some(FetchInput::new(move || {
            let made = folders.make(&input_folder);
            let (path, body, work_dir) = (path.clone(), body.clone(), work_dir.clone());
            async move {
                let failed = |error| Failure::Fetch(work_dir.failed(&error));
                made.map_err(failed)?;
                tokio::fs::write(&path, body).await.map_err(failed)?;
                Ok(path)
            }
            .boxed()
        }))
    }

    fn wall_clock(&self, at: Duration) -> SystemTime {
        SystemTime::now() + at.saturating_sub(self.clock.now())
    }
}
