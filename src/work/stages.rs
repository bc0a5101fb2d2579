//! What is around the work on an object: the claim on its record, and its partial state.

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
    /// Works on it, unless an earlier delivery has done so; and sees to it that no other pod does
    /// at the same time.
    pub(super) async fn claimed(
        &self,
        object: ObjectWork<'_>,
        until: Until<'_>,
        record_deadline: &CancellationToken,
        facts: &mut WorkRecord,
    ) -> Result<Done, Failure> {
        let Some(idempotency) = &self.idempotency else {
            return self.resumed(object, until, facts).await;
        };
        let ObjectWork { work, number, record, watch, stop, .. } = object;
        let Until { halt, publish_halt, .. } = until;
        let claim = idempotency.claim(&work.subject, number, record, work.visibility);
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
            let mut processing = Box::pin(self.resumed(object, while_ours, facts));
            loop {
                tokio::select! {
                    // Nothing is begun, neither a command nor an upload, by who has lost the record
                    // meanwhile.
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
            // It was done before any stop, which has time enough to say so.
            (None, Ok(done)) => unless_halted(record_deadline, own.done()).await?.map(|()| done),
        }
    }

    /// Goes on from the last checkpoint, if there is one, and sees to it that there is one for the
    /// next delivery.
    async fn resumed(
        &self,
        object: ObjectWork<'_>,
        until: Until<'_>,
        facts: &mut WorkRecord,
    ) -> Result<Done, Failure> {
        let Some((checkpoints, how)) = self.checkpointing(&object.work.task) else {
            return self.run(object, until, facts).await;
        };
        let halt = until.halt;
        let restored = checkpoints.restore(how, object, halt, &self.work_dir);
        let restored = unless_halted(halt, self.timed(&mut facts.timings.fetch, restored)).await?;
        let mut checkpoint = restored?;
        let until =
            Until { deadline_at: until.deadline_at.saturating_sub(checkpoint.worked), ..until };
        if !checkpoint.worked.is_zero() {
            (object.watch.tell)(Event::Resumed(checkpoint.worked));
        }
        let save_deadline = Deadline::after(halt, object.stop.save, &CancellationToken::new());
        let give_up = &save_deadline.passed;
        let over = CancellationToken::new();
        let limits = SaveLimits { give_up, over: &over, halt, deadline_at: until.deadline_at };
        let working = async {
            let done = self.run(object, until, facts).await;
            over.cancel();
            if done.is_ok() {
                // Nobody goes on from what is done.
                give_up.cancel();
            }
            done
        };
        let (done, ()) = tokio::join!(working, checkpoint.save_until_over(&limits));
        if done.is_err()
            && let Err(error) = checkpoint.save(Save::Last, &limits).await
        {
            warn!(
                error,
                "the checkpoint was not saved: the next delivery resumes from an earlier checkpoint, if there is one"
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
