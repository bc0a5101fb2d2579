//! The work on an object: fetch, run the command, publish its output.

use std::borrow::Cow;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tracing::warn;

use super::contract::JobContext;
use super::fetch::{self, Fetched, FetchedObject};
use super::object_work::{Done, ObjectWork, Until};
use super::result_file::ResultFile;
use super::{CommandWorker, unless_halted};
use crate::job::notification::{Object, Record};
use crate::job::outcome::{CommandReport, Exit, Failure, WorkRecord};
use crate::job::route::{Content, Input};
use crate::ports::{Command, Outbox, Results};

/// The input of the command.
enum Provided<'a> {
    /// The object that was fetched, which may differ from the event.
    Object(Cow<'a, Record>),
    /// The message's body.
    Body,
    /// The object is gone, which is not an error.
    Nothing,
}

impl CommandWorker {
    pub(super) async fn run(
        &self,
        object: ObjectWork<'_>,
        until: Until<'_>,
        facts: &mut WorkRecord,
    ) -> Result<Done, Failure> {
        let record = match self.provide_input(object, until, &mut facts.timings.fetch).await? {
            Provided::Object(record) => Some(record),
            Provided::Body => None,
            Provided::Nothing if until.halt.is_cancelled() => return Err(Failure::Halted),
            Provided::Nothing => return Ok(Done::Gone),
        };
        let (exit, report) = self.run_command(object, until, record.as_deref(), facts).await?;
        let was_halted = until.halt.is_cancelled();
        let outbox =
            self.outbox.as_ref().filter(|outbox| outbox.accepts(object.work.task.output.as_ref()));
        self.warn_about_unsaved_files(object, outbox.is_some()).await;
        if exit != Exit::Code(0) {
            return Err(Failure::Exit(exit, report));
        }
        // Many programs exit 0 on TERM with unfinished work: that proves nothing.
        if was_halted {
            return Err(Failure::Halted);
        }
        if let Some(outbox) = outbox {
            self.publish(outbox.as_ref(), object, until, record.as_deref(), facts).await?;
        }
        Ok(Done::Succeeded)
    }

    /// How the command ended, and its report.
    async fn run_command(
        &self,
        object: ObjectWork<'_>,
        until: Until<'_>,
        record: Option<&Record>,
        facts: &mut WorkRecord,
    ) -> Result<(Exit, CommandReport), Failure> {
        let ObjectWork { work, space, watch, runtime, stop, .. } = object;
        if self.checkpointing(&work.task).is_none() {
            space.add_checkpoint().map_err(|error| Failure::Start(self.work_dir.failed(&error)))?;
        }
        let context = JobContext {
            job_id: &self.job_id,
            subject: &work.subject,
            record,
            task: &work.task,
            deadline: self.wall_clock(until.deadline_at),
            space,
        };
        let command = Command {
            program: work.task.command.program.clone(),
            args: work.task.command.args.clone(),
            job: context.facts(),
            stdin: (work.task.input == Input::Stdin).then(|| space.input()),
            stop_grace: stop.command,
        };
        if until.halt.is_cancelled() {
            return Err(Failure::Halted);
        }
        let running = self.runner.run(command, until.halt.clone(), watch.activity.clone());
        runtime.begins(self.clock.now());
        let ended = self.timed(&mut facts.timings.command, watch.watch(running)).await;
        runtime.ends(self.clock.now());
        let ended = ended.map_err(|error| Failure::Start(error.to_string()))?;
        facts.exit = Some(ended.exit);
        facts.stderr_tail = ended.stderr_tail;
        facts.usage = match (facts.usage, ended.usage) {
            (Some(before), Some(more)) => Some(before.and(more)),
            (before, more) => before.or(more),
        };
        let result = ResultFile::read(&space.result_file());
        for error in &result.complaints {
            warn!(error, "ignoring a part of JOB_RESULT_FILE that is not valid");
        }
        facts.reason.clone_from(&result.report.reason);
        Ok((ended.exit, result.report))
    }

    async fn warn_about_unsaved_files(&self, object: ObjectWork<'_>, is_published: bool) {
        if !is_published && has_files(&object.space.output()).await {
            warn!(
                "the command wrote into JOB_OUTPUT_DIR, but the files are not published: set --output (or, with local, --outbox)"
            );
        }
        if self.checkpointing(&object.work.task).is_none()
            && has_files(&object.space.checkpoint()).await
        {
            warn!(
                "the command wrote into JOB_CHECKPOINT_DIR, but the files are not saved: set --checkpoint"
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

    /// Writes the command's input to the workspace.
    async fn provide_input<'a>(
        &self,
        object: ObjectWork<'a>,
        until: Until<'_>,
        spent: &mut Duration,
    ) -> Result<Provided<'a>, Failure> {
        let ObjectWork { work, record, space, .. } = object;
        let input = space.input();
        let Some(record) = record else {
            let body = if let Content::Body(body) = &work.content { body.as_str() } else { "" };
            return std::fs::write(&input, body).map(|()| Provided::Body).map_err(|error| {
                Failure::Fetch(format!("the message's body: {}: {error}", input.display()))
            });
        };
        let Record { event, object, key_as_sent } = record;
        if work.task.input == Input::None {
            fetch::check_bucket(&self.fetch, object)?;
            return Ok(Provided::Object(Cow::Borrowed(record)));
        }
        let store = self.store.as_ref();
        let fetched = fetch::fetch(
            store,
            &self.fetch,
            work.task.missing_object,
            &self.work_dir,
            object,
            key_as_sent.as_deref(),
            &input,
        );
        Ok(match unless_halted(until.halt, self.timed(spent, fetched)).await?? {
            Fetched::Here(FetchedObject { key, size, etag }) => {
                let object = Object { key, size: Some(size), etag, ..object.clone() };
                Provided::Object(Cow::Owned(Record {
                    event: event.clone(),
                    object,
                    key_as_sent: None,
                }))
            }
            Fetched::Gone => Provided::Nothing,
        })
    }

    fn wall_clock(&self, at: Duration) -> SystemTime {
        SystemTime::now() + at.saturating_sub(self.clock.now())
    }
}

async fn has_files(directory: &Path) -> bool {
    let Ok(mut entries) = tokio::fs::read_dir(directory).await else { return false };
    matches!(entries.next_entry().await, Ok(Some(_)))
}
