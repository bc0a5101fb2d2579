//! What happens to an object after its work succeeded (`--on-success`).

use tracing::info;

use super::object_work::{Done, ObjectWork, Until};
use super::{CommandWorker, unless_halted};
use crate::job::notification::Object;
use crate::job::on_success::ActedOn;
use crate::job::outcome::{Failure, WorkRecord};

impl CommandWorker {
    /// Acts on the object of finished work, also if an earlier delivery finished it: that one may
    /// have been stopped before. A stop withdraws the action; the message is kept then, and its
    /// next delivery acts.
    pub(super) async fn act_on_object(
        &self,
        ObjectWork { work, record, .. }: ObjectWork<'_>,
        until: Until<'_>,
        done: Done,
        facts: &mut WorkRecord,
    ) -> Result<(), Failure> {
        let (Some(action), Some(record)) = (&work.task.on_success, record) else { return Ok(()) };
        if done == Done::Gone {
            return Ok(());
        }
        // A sender that does not encode its keys: see `fetch`.
        let undecoded = record.key_as_sent.iter();
        let undecoded = undecoded.map(|key| Object { key: key.clone(), ..record.object.clone() });
        let mut acted_on = ActedOn::Missing;
        for object in std::iter::once(record.object.clone()).chain(undecoded) {
            let acting = self.store.act_on(&object, action);
            let acting = self.timed(&mut facts.timings.publish, acting);
            acted_on = unless_halted(until.halt, acting)
                .await?
                .map_err(|why| Failure::Publish(format!("--on-success {action}: {why}")))?;
            if acted_on == ActedOn::Object {
                info!(%action, "--on-success: done");
                return Ok(());
            }
        }
        let why = match acted_on {
            ActedOn::Overwritten => "another object has replaced it",
            ActedOn::Missing | ActedOn::Object => "it no longer exists",
        };
        info!(%action, why, "--on-success: the object is left as it is");
        Ok(())
    }
}
