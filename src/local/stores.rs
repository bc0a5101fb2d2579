//! The stores of a local run: a folder in place of the buckets of a pod.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::adapters::local::folder::{Folder, FolderError};
use crate::adapters::local::outbox::FolderOutbox;
use crate::adapters::local::rehearsal::Fault;
use crate::adapters::local::store::FolderStore;
use crate::adapters::publish::S3Outbox;
use crate::job::on_success::OnSuccess;
use crate::job::outcome::Manifest;
use crate::job::s3_location::LocationTemplate;
use crate::ports::clock::Clock;
use crate::ports::{Outbox, PublishError, Results};
use crate::settings::resolve::LocalConfig;
use crate::telemetry::attempts::{AttemptHistory, HistoryStore, SILENCE};
use crate::work::checkpoint::Checkpoints;
use crate::work::idempotency::Idempotency;

/// The folder is created only if a setting needs it.
pub struct Stores {
    pub checkpoints: Option<Checkpoints>,
    pub idempotency: Option<Idempotency>,
    pub attempts: Option<AttemptHistory>,
    pub outbox: LocalOutbox,
    /// In place of the buckets to which files are moved.
    pub moved: Option<FolderStore>,
}

impl Stores {
    pub fn of(config: &LocalConfig, inbox: &Folder, clock: Clock) -> Result<Self, FolderError> {
        let LocalConfig { outbox, state, records, work, .. } = config;
        let is_needed = records.idempotency.is_some()
            || records.attempts.is_some()
            || work.settings.policy.tasks().any(|task| {
                let moves = matches!(task.on_success, Some(OnSuccess::Move(_)));
                task.checkpoint.is_some() || task.output.is_some() || moves
            });
        if is_needed {
            inbox.check_outside("--state", state)?;
        }
        let failed = |error| FolderError(format!("--state {}: {error}", state.display()));
        let store =
            is_needed.then(|| FolderStore::new(state)).transpose().map_err(failed)?.map(Arc::new);
        let plan = work.settings.stop;
        Ok(Self {
            moved: store.as_deref().cloned(),
            checkpoints: store.clone().map(|storage| Checkpoints { storage, clock }),
            idempotency: records.idempotency.clone().zip(store.clone()).map(
                |(location, records)| Idempotency {
                    records,
                    location,
                    queue: "local".to_owned(),
                    owner: work.identity.pod_name.clone(),
                    clock,
                },
            ),
            attempts: records.attempts.clone().zip(store.clone()).map(|(location, store)| {
                let store = HistoryStore {
                    storage: store.clone(),
                    records: store,
                    location,
                    identity: work.identity.clone(),
                    memory: None,
                    metrics: None,
                    // A pod whose kill is rehearsed is certainly dead.
                    silence: match config.fault {
                        Some(Fault::Kill) => Duration::ZERO,
                        Some(Fault::LostLease | Fault::Redelivery) | None => SILENCE,
                    },
                };
                AttemptHistory::new(store, move || plan.attempt_record(false))
            }),
            outbox: LocalOutbox {
                folder: outbox.as_ref().map(FolderOutbox::new),
                locations: store.map(|writer| S3Outbox { writer }),
            },
        })
    }
}

/// Results go to the task's location, else into the outbox folder.
pub struct LocalOutbox {
    folder: Option<FolderOutbox>,
    locations: Option<S3Outbox>,
}

impl LocalOutbox {
    fn of(&self, to: Option<&LocationTemplate>) -> Option<&dyn Outbox> {
        let locations = self
            .locations
            .as_ref()
            .filter(|_| to.is_some())
            .map(|locations| locations as &dyn Outbox);
        locations.or(self.folder.as_ref().map(|folder| folder as &dyn Outbox))
    }
}

#[async_trait]
impl Outbox for LocalOutbox {
    fn accepts(&self, to: Option<&LocationTemplate>) -> bool {
        self.of(to).is_some()
    }

    async fn publish(
        &self,
        results: &Results<'_>,
        halt: &CancellationToken,
    ) -> Result<Manifest, PublishError> {
        match self.of(results.to) {
            Some(outbox) => outbox.publish(results, halt).await,
            None => Ok(Manifest::default()),
        }
    }
}
