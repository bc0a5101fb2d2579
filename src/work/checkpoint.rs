//! Partial state: what a command left in `JOB_CHECKPOINT_DIR` is there again when the next delivery
//! starts.
//!
//! A checkpoint is one tar archive, so a reader never sees half of one: `<prefix>/<message
//! id>/<object>/<receive count>.tar`. Each delivery writes under its own receive count: a pod that
//! has lost its lease overwrites nothing of the one that has it.

mod archive;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use walkdir::WalkDir;

use super::fetch::{self, FetchPolicy};
use super::object_work::{ObjectWork, Runtime};
use super::workspace::{WorkDir, Workspace};
use crate::job::notification::Object;
use crate::job::outcome::Failure;
use crate::job::report::Subject;
use crate::job::route::Checkpointing;
use crate::job::s3_location::{S3Location, Values};
use crate::ports::clock::Clock;
use crate::ports::{Storage, Upload};
use archive::{About, Identity, NO_TIME, Packed, Unpacked};

/// Whoever keeps the checkpoints, at the places that tasks name.
#[derive(Clone)]
pub struct Checkpoints {
    pub storage: Arc<dyn Storage>,
    pub clock: Clock,
}

/// The checkpoint of one object's work.
pub struct Checkpoint<'a> {
    of: &'a Checkpoints,
    interval: Option<Duration>,
    work_dir: &'a WorkDir,
    space: &'a Workspace,
    bucket: String,
    /// Where this delivery saves.
    key: String,
    /// What is there now that the next delivery would find: ours, or the one that was restored.
    saved: Option<String>,
    /// How long the commands of earlier deliveries ran.
    pub worked: Duration,
    /// That of this one.
    runtime: &'a Runtime,
    /// The directory as it was made.
    identity: Identity,
    /// What was in the directory when it was last saved or restored.
    seen: Contents,
    /// Is what the command left saved?
    is_final: bool,
    /// Was it reported that there are links which are not saved?
    links_reported: bool,
}

/// When there is something to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Save {
    /// If something in the directory has changed.
    Changes,
    /// Always: how long this delivery's command ran counts, too.
    Last,
}

/// What is in the directory.
#[derive(Debug, Clone, Default)]
struct Contents {
    /// Enough to see that something has changed: length and time of change of each file.
    files: BTreeMap<PathBuf, (u64, Option<SystemTime>)>,
    /// In bytes. A hole takes no room, neither here nor in an archive.
    on_disk: u64,
}

impl Checkpoints {
    /// Fills the workspace's checkpoint directory with what the last delivery saved, if one did.
    pub(super) async fn restore<'a>(
        &'a self,
        how: &Checkpointing,
        object: ObjectWork<'a>,
        halt: &CancellationToken,
        work_dir: &'a WorkDir,
    ) -> Result<Checkpoint<'a>, Failure> {
        let ObjectWork { work, number, record, space, runtime, .. } = object;
        let subject = &work.subject;
        let location = how.location.fill(Values {
            key: record.map(|record| record.object.key.as_str()),
            message_id: subject.message_id.as_str(),
            job_type: &work.task.name,
        });
        let folder = location.key(&format!("{}/{number}/", subject.message_id));
        let directory = space.checkpoint();
        fs::create_dir(&directory).map_err(|error| Failure::Start(work_dir.failed(&error)))?;
        let identity = Identity::of(&directory)
            .map_err(|why| Failure::Start(format!("JOB_CHECKPOINT_DIR: {why}")))?;
        let mut checkpoint = Checkpoint {
            of: self,
            interval: how.interval,
            work_dir,
            space,
            bucket: location.bucket,
            key: format!("{folder}{}.tar", subject.receive_count),
            saved: None,
            worked: Duration::ZERO,
            runtime,
            identity,
            seen: Contents::default(),
            is_final: false,
            links_reported: false,
        };
        let keys = self.storage.list(&checkpoint.bucket, &folder).await.map_err(Failure::Fetch)?;
        let count =
            |key: &String| key.strip_prefix(&folder)?.strip_suffix(".tar")?.parse::<u32>().ok();
        let before = keys
            .into_iter()
            .filter(|key| count(key).is_some_and(|count| count < subject.receive_count));
        let Some(last) = before.max_by_key(count) else { return Ok(checkpoint) };

        let bucket = checkpoint.bucket.clone();
        let object = Object {
            bucket: bucket.clone(),
            key: last.clone(),
            version_id: None,
            etag: None,
            size: None,
            sequencer: None,
            is_from_aws: false,
        };
        let archive = space.archive();
        fetch::fetch(
            self.storage.as_ref(),
            &FetchPolicy::default(),
            None,
            work_dir,
            &object,
            None,
            &archive,
        )
        .await?;
        let (into, room, halt) = (directory.clone(), work_dir.clone(), halt.clone());
        let unpacked = tokio::task::spawn_blocking(move || {
            let unpacked = archive::unpack(&archive, &into, &room, &halt)?;
            // The workspace is removed as a whole soon: room is all that this is about.
            let _ = fs::remove_file(archive);
            Ok((unpacked, Contents::of(&into)))
        });
        let unpacked =
            unpacked.await.unwrap_or_else(|panic| Err(io::Error::from(panic).to_string()));
        let (Unpacked { about, links_left_out }, seen) = unpacked.map_err(|why| {
            Failure::Fetch(format!(
                "the checkpoint s3://{bucket}/{last} cannot be restored: {why}; delete it to start the work from the beginning"
            ))
        })?;
        checkpoint.worked = Duration::from_secs(about.worked_s);
        let files = seen.files.len();
        info!(checkpoint = last, worked_s = about.worked_s, files, "resuming from a checkpoint");
        if links_left_out > 0 {
            warn!(
                links_left_out,
                "symbolic links that point out of JOB_CHECKPOINT_DIR were not restored"
            );
        }
        checkpoint.seen = seen;
        checkpoint.saved = Some(last);
        Ok(checkpoint)
    }

    /// Drops what is there of a message that is done. What cannot be dropped is left to a lifecycle
    /// rule.
    pub(super) async fn drop_all(
        &self,
        how: &Checkpointing,
        job_type: &str,
        subject: &Subject,
        limit: Duration,
    ) {
        let message = &subject.message_id;
        let location =
            |key| how.location.fill(Values { key, message_id: message.as_str(), job_type });
        let mut locations: Vec<S3Location> =
            subject.objects.iter().map(|object| location(Some(object.key.as_str()))).collect();
        if locations.is_empty() {
            locations.push(location(None));
        }
        locations.sort();
        locations.dedup();
        let dropped = async {
            for location in locations {
                for key in self
                    .storage
                    .list(&location.bucket, &location.key(&format!("{message}/")))
                    .await?
                {
                    self.storage.delete(&location.bucket, &key).await?;
                }
            }
            Ok(())
        };
        if let Err(error) =
            timeout(limit, dropped).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
        {
            warn!(message_id = %message, error, "the checkpoints of a finished message were not deleted");
        }
    }
}

impl Checkpoint<'_> {
    /// Saves every interval, if there is one, until the work is over. A save that is on its way
    /// then is finished, within its limit: it may be all that there is time for.
    ///
    /// A stop while results are published may have no time left afterwards. So what the command
    /// left is saved beside them.
    pub async fn save_until_over(&mut self, limits: &SaveLimits<'_>) {
        let (runtime, interval) = (self.runtime, self.interval);
        let mut stopped_while_publishing = pin!(async {
            runtime.ended.cancelled().await;
            limits.halt.cancelled().await;
        });
        loop {
            let interval_is_over = async {
                match interval {
                    Some(interval) => tokio::time::sleep(interval).await,
                    None => std::future::pending().await,
                }
            };
            let save = tokio::select! {
                biased;
                () = limits.over.cancelled() => return,
                () = &mut stopped_while_publishing => Save::Last,
                () = interval_is_over => Save::Changes,
            };
            match self.save(save, limits).await {
                Ok(()) => {}
                Err(_) if limits.give_up.is_cancelled() => return limits.over.cancelled().await,
                Err(error) => warn!(error, "saving the checkpoint failed and will be retried"),
            }
            if save == Save::Last {
                return limits.over.cancelled().await;
            }
        }
    }

    /// Saves what is in the directory now, if a command has run.
    ///
    /// All or nothing: until the new one is there, the one before it is what the next delivery
    /// finds.
    pub async fn save(&mut self, save: Save, limits: &SaveLimits<'_>) -> Result<(), String> {
        if self.is_final {
            return Ok(());
        }
        let clock = self.of.clock;
        let Some(runtime) = self.runtime.until(clock.now()) else { return Ok(()) };
        let worked = self.worked.saturating_add(runtime);
        let give_up = limits.give_up;
        let (directory, archive) = (self.space.checkpoint(), self.space.archive());
        let about = About::new(worked.as_secs());
        let (packed, room, seen) = (archive.clone(), self.work_dir.clone(), self.seen.clone());
        let (identity, too_late) = (self.identity, give_up.clone());
        let packed = tokio::task::spawn_blocking(move || {
            // Looked at first: a directory that was removed must not be taken for one that is
            // empty.
            let is_another = Identity::of(&directory)? != identity;
            let contents = Contents::of(&directory);
            if save == Save::Changes && contents.files == seen.files {
                return Ok(None);
            }
            if is_another && contents.files.is_empty() && !seen.files.is_empty() {
                return Err("it was replaced by an empty one".to_owned());
            }
            room.check_room(contents.on_disk)?;
            archive::pack(&directory, about, &packed, &too_late)
                .map(|packed| Some((contents, packed)))
        });
        // Of very many files even the list takes its time. The thread ends soon after.
        let packed = give_up.run_until_cancelled(packed).await.ok_or(NO_TIME)?;
        let packed = packed.unwrap_or_else(|panic| Err(io::Error::from(panic).to_string()));
        let Some((contents, Packed { bytes, links_left_out })) =
            packed.map_err(|why| format!("JOB_CHECKPOINT_DIR: {why}"))?
        else {
            return Ok(());
        };
        if links_left_out > 0 && !std::mem::replace(&mut self.links_reported, true) {
            warn!(
                links_left_out,
                "symbolic links that point out of JOB_CHECKPOINT_DIR were not saved"
            );
        }

        let bucket = &self.bucket;
        let upload = Upload {
            bucket,
            key: &self.key,
            path: &archive,
            bytes,
            content_type: "application/x-tar",
        };
        let too_late = give_up.child_token();
        let uploaded = {
            let mut uploading = pin!(self.of.storage.upload(&upload, &too_late));
            tokio::select! {
                uploaded = &mut uploading => uploaded,
                () = limits.expire(clock, bytes) => {
                    too_late.cancel();
                    uploading.await.map_err(|_| "the store took too long".to_owned())
                }
            }
        };
        // The workspace is removed as a whole soon: room is all that this is about.
        let _ = fs::remove_file(&archive);
        uploaded?;
        self.seen = contents;
        self.is_final = save == Save::Last;
        let before = self.saved.replace(self.key.clone()).filter(|before| *before != self.key);
        info!(checkpoint = self.key, bytes, worked_s = worked.as_secs(), "checkpoint saved");
        if let Some(before) = before {
            // A second one is no harm: the one with the greatest receive count is restored.
            let _ = give_up.run_until_cancelled(self.of.storage.delete(bucket, &before)).await;
        }
        Ok(())
    }
}

impl Contents {
    fn of(directory: &Path) -> Self {
        let mut contents = Self::default();
        for entry in
            WalkDir::new(directory).follow_root_links(false).min_depth(1).into_iter().flatten()
        {
            let (Ok(metadata), Ok(name)) = (entry.metadata(), entry.path().strip_prefix(directory))
            else {
                continue;
            };
            let on_disk = metadata.blocks().saturating_mul(512).min(metadata.len());
            contents.on_disk = contents.on_disk.saturating_add(on_disk);
            contents.files.insert(name.to_owned(), (metadata.len(), metadata.modified().ok()));
        }
        contents
    }
}

/// When a save is given up.
#[derive(Clone, Copy)]
pub struct SaveLimits<'a> {
    /// Cancelled when no save is of any use, or when a stop has no more time for one.
    pub give_up: &'a CancellationToken,
    /// Cancelled when the work has ended, with or without success.
    pub over: &'a CancellationToken,
    /// Cancelled when the work was told to end: then `give_up` is what counts.
    pub halt: &'a CancellationToken,
    /// When the work would be halted, on the run's clock.
    pub deadline_at: Duration,
}

impl SaveLimits<'_> {
    /// Until an upload of so many bytes has taken too long. While the command runs it holds up
    /// nobody; afterwards the message, whose outcome is known, waits for it.
    async fn expire(&self, clock: Clock, bytes: u64) {
        let for_bytes = Duration::from_secs(bytes / FLOOR);
        tokio::select! {
            () = tokio::time::sleep(WHILE_IT_RUNS.saturating_add(for_bytes)) => return,
            () = self.over.cancelled() => {}
        }
        if self.halt.is_cancelled() {
            return std::future::pending().await;
        }
        let until = clock.now().saturating_add(AFTER_ITS_END).saturating_add(for_bytes);
        clock.sleep_until(until.min(self.deadline_at.saturating_sub(BEFORE_THE_DEADLINE))).await;
    }
}

/// What an upload may take, and a second more for each `FLOOR` bytes.
const WHILE_IT_RUNS: Duration = Duration::from_mins(1);
const AFTER_ITS_END: Duration = Duration::from_secs(5);

/// No upload is as slow as this, in bytes a second.
const FLOOR: u64 = 1 << 20;

/// What has failed by itself has not timed out.
const BEFORE_THE_DEADLINE: Duration = Duration::from_secs(1);
