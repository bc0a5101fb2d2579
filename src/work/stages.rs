//! The stages around the work on an object: the claim of its record, and its checkpoints.

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::checkpoint::{Checkpoints, Save, SaveLimits};
use super::halt::{Deadline, Halt};
use super::idempotency::Claimed;
use super::object_work::{Done, ObjectWork, Until};
use super::{CommandWorker, unless_halted};
use crate::job::lifecycle::Event;
use crate::job::outcome::{Failure, WorkRecord};
use crate::job::route::{Checkpointing, Task};
use crate::job::stop::RECORD_RELEASE;

impl CommandWorker {
    /// Works on the object unless an earlier delivery has done so, and ensures that no other pod
    /// does so at the same time.
    pub(super) async fn run_claimed(
        &self,
        object: ObjectWork<'_>,
        until: Until<'_>,
        record_deadline: &CancellationToken,
        facts: &mut WorkRecord,
    ) -> Result<Done, Failure> {
        let Some(idempotency) = &self.idempotency else {
            return self.run_resumed(object, until, facts).await;
        };
        let ObjectWork { work, number, record, watch, stop, .. } = object;
        let Until { halt, publish_halt, .. } = until;
        // In boxes, because most work has no record, and is moved with the size of all of this.
        let claim = Box::pin(idempotency.claim(&work.subject, number, record, work.visibility));
        let mut own = match unless_halted(halt, claim).await?? {
            Claimed::Ours(own) => own,
            Claimed::AlreadyDone => {
                info!("an earlier delivery finished this work: skipping it");
                return Ok(Done::Earlier);
            }
        };
        let ours =
            Halt { requested: halt.child_token(), publish_aborted: publish_halt.child_token() };
        let while_ours =
            Until { halt: &ours.requested, publish_halt: &ours.publish_aborted, ..until };
        let mut lost = None;
        let processed = {
            let mut processing = Box::pin(self.run_resumed(object, while_ours, facts));
            loop {
                tokio::select! {
                    // The record first: a pod that lost it starts no command and no upload.
                    biased;
                    why = own.refresh(), if lost.is_none() => {
                        (watch.report_event)(Event::LeaseLost(why.clone()));
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
                Box::pin(own.release(release)).await;
                Err(failure)
            }
            // The work succeeded before any stop, and a stop reserves time for the record.
            (None, Ok(done)) => {
                unless_halted(record_deadline, Box::pin(own.done())).await?.map(|()| done)
            }
        }
    }

    /// Resumes from the last checkpoint, if any, and saves checkpoints for the next delivery.
    async fn run_resumed(
        &self,
        object: ObjectWork<'_>,
        until: Until<'_>,
        facts: &mut WorkRecord,
    ) -> Result<Done, Failure> {
        let Some((checkpoints, how)) = self.checkpointing(&object.work.task) else {
            return self.run(object, until, facts).await;
        };
        let halt = until.halt;
        // In boxes, because most work has no checkpoint, and is moved with the size of all of this.
        let restored = Box::pin(checkpoints.restore(how, object, halt, &self.work_dir));
        let restored = unless_halted(halt, self.timed(&mut facts.timings.fetch, restored)).await?;
        let mut checkpoint = restored?;
        let until =
            Until { deadline_at: until.deadline_at.saturating_sub(checkpoint.worked), ..until };
        if !checkpoint.worked.is_zero() {
            (object.watch.report_event)(Event::Resumed(checkpoint.worked));
        }
        let save_deadline = Deadline::after(halt, object.stop.save, &CancellationToken::new());
        let give_up = &save_deadline.passed;
        let ended = CancellationToken::new();
        let limits = SaveLimits { give_up, ended: &ended, halt, deadline_at: until.deadline_at };
        let working = Box::pin(async {
            let done = self.run(object, until, facts).await;
            ended.cancel();
            if done.is_ok() {
                // Finished work needs no checkpoint.
                give_up.cancel();
            }
            done
        });
        let saving = Box::pin(checkpoint.save_periodically(&limits));
        let (done, ()) = tokio::join!(working, saving);
        if done.is_err()
            && let Err(error) = Box::pin(checkpoint.save(Save::Last, &limits)).await
        {
            warn!(
                error,
                "the checkpoint was not saved: the next delivery resumes from an earlier checkpoint, if any"
            );
        }
        done
    }

    pub(super) fn checkpointing<'a>(
        &'a self,
        task: &'a Task,
    ) -> Option<(&'a Checkpoints, &'a Checkpointing)> {
        self.checkpoints.as_ref().zip(task.checkpoint.as_ref())
    }
}
