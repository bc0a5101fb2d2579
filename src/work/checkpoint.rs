//! Partial state: the next delivery starts with the files that the command left in
//! `JOB_CHECKPOINT_DIR`.
//!
//! A checkpoint is one tar archive, so a reader never sees half of one: `<prefix>/<message
//! id>/<object>/<receive count>.tar`. Each delivery writes under its own receive count, so a pod
//! that has lost its lease cannot overwrite the checkpoint of the pod that holds it.

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
use archive::{ArchiveInfo, Identity, OUT_OF_TIME, Packed, Unpacked};

/// Saves and restores checkpoints, at the locations of the tasks.
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
    /// The key for this delivery's checkpoint.
    key: String,
    /// The key of the checkpoint that the next delivery would restore: ours, or the one that we
    /// restored.
    saved: Option<String>,
    /// How long the commands of earlier deliveries ran.
    pub worked: Duration,
    /// How long the command of this delivery has run.
    runtime: &'a Runtime,
    /// The identity of the directory that we created.
    identity: Identity,
    /// The directory's content at the last save or restore.
    seen: Contents,
    /// Was the directory saved after the command ended?
    is_final: bool,
    /// Were links that are not saved reported?
    links_reported: bool,
}

/// When to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Save {
    /// If something in the directory has changed.
    Changes,
    /// Always, because the command's run time has changed.
    Last,
}

/// The content of the directory.
#[derive(Debug, Clone, Default)]
struct Contents {
    /// Length and modification time of each file, to detect changes.
    files: BTreeMap<PathBuf, (u64, Option<SystemTime>)>,
    /// In bytes. Holes take no space, neither here nor in an archive.
    on_disk: u64,
}

impl Checkpoints {
    /// Restores the last checkpoint, if any, into the workspace's checkpoint directory.
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
        let last = self.last_before(subject.receive_count, &checkpoint.bucket, &folder).await?;
        let Some(last) = last else { return Ok(checkpoint) };

        let bucket = checkpoint.bucket.clone();
        let object = Object::named(bucket.clone(), last.clone());
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
            // Only to free space: the whole workspace is removed soon.
            let _ = fs::remove_file(archive);
            Ok((unpacked, Contents::of(&into)))
        });
        let unpacked =
            unpacked.await.unwrap_or_else(|panic| Err(io::Error::from(panic).to_string()));
        let (Unpacked { info, links_left_out }, seen) = unpacked.map_err(|why| {
            Failure::Fetch(format!(
                "the checkpoint s3://{bucket}/{last} cannot be restored: {why}; delete it to start the work from the beginning"
            ))
        })?;
        checkpoint.worked = Duration::from_secs(info.worked_s);
        let files = seen.files.len();
        info!(checkpoint = last, worked_s = info.worked_s, files, "resuming from a checkpoint");
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

    /// The key of the last checkpoint of an earlier delivery.
    async fn last_before(
        &self,
        receive_count: u32,
        bucket: &str,
        folder: &str,
    ) -> Result<Option<String>, Failure> {
        let keys = self.storage.list(bucket, folder).await.map_err(Failure::Fetch)?;
        let count =
            |key: &String| key.strip_prefix(folder)?.strip_suffix(".tar")?.parse::<u32>().ok();
        let before =
            keys.into_iter().filter(|key| count(key).is_some_and(|count| count < receive_count));
        Ok(before.max_by_key(count))
    }

    /// Deletes the checkpoints of a finished message. A lifecycle rule deletes the others.
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
    /// Saves at every interval, if configured, until the work ends. A save in progress at that
    /// moment is completed, within its limit, because there may be no time for another.
    ///
    /// A stop while results are published may have no time remaining afterwards, so the checkpoint
    /// is saved in parallel.
    pub async fn save_periodically(&mut self, limits: &SaveLimits<'_>) {
        let (runtime, interval) = (self.runtime, self.interval);
        let mut stopped_while_publishing = pin!(async {
            runtime.ended.cancelled().await;
            limits.halt.cancelled().await;
        });
        loop {
            let interval_ends = async {
                match interval {
                    Some(interval) => tokio::time::sleep(interval).await,
                    None => std::future::pending().await,
                }
            };
            let save = tokio::select! {
                biased;
                () = limits.ended.cancelled() => return,
                () = &mut stopped_while_publishing => Save::Last,
                () = interval_ends => Save::Changes,
            };
            match self.save(save, limits).await {
                Ok(()) => {}
                Err(_) if limits.give_up.is_cancelled() => return limits.ended.cancelled().await,
                Err(error) => warn!(error, "saving the checkpoint failed and will be retried"),
            }
            if save == Save::Last {
                return limits.ended.cancelled().await;
            }
        }
    }

    /// Saves the directory, if a command has run.
    ///
    /// Atomic: until the new checkpoint is complete, the next delivery restores the previous one.
    pub async fn save(&mut self, save: Save, limits: &SaveLimits<'_>) -> Result<(), String> {
        if self.is_final {
            return Ok(());
        }
        let clock = self.of.clock;
        let Some(runtime) = self.runtime.until(clock.now()) else { return Ok(()) };
        let worked = self.worked.saturating_add(runtime);
        let give_up = limits.give_up;
        let (directory, archive) = (self.space.checkpoint(), self.space.archive());
        let info = ArchiveInfo::new(worked.as_secs());
        let (packed, room, seen) = (archive.clone(), self.work_dir.clone(), self.seen.clone());
        let (identity, too_late) = (self.identity, give_up.clone());
        let packed = tokio::task::spawn_blocking(move || {
            // Check this first: a removed directory must not count as an empty one.
            let is_another = Identity::of(&directory)? != identity;
            let contents = Contents::of(&directory);
            if save == Save::Changes && contents.files == seen.files {
                return Ok(None);
            }
            if is_another && contents.files.is_empty() && !seen.files.is_empty() {
                return Err("it was replaced by an empty one".to_owned());
            }
            room.check_room(contents.on_disk)?;
            archive::pack(&directory, info, &packed, &too_late)
                .map(|packed| Some((contents, packed)))
        });
        // Even listing very many files takes time. The thread ends soon after.
        let packed = give_up.run_until_cancelled(packed).await.ok_or(OUT_OF_TIME)?;
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
            attributes: None,
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
        // Only to free space: the whole workspace is removed soon.
        let _ = fs::remove_file(&archive);
        uploaded?;
        self.seen = contents;
        self.is_final = save == Save::Last;
        let before = self.saved.replace(self.key.clone()).filter(|before| *before != self.key);
        info!(checkpoint = self.key, bytes, worked_s = worked.as_secs(), "checkpoint saved");
        if let Some(before) = before {
            // A remaining old one does no harm: the one with the highest receive count is restored.
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

/// The limits of a save.
#[derive(Clone, Copy)]
pub struct SaveLimits<'a> {
    /// Cancelled when no save is needed, or when a stop has no more time for one.
    pub give_up: &'a CancellationToken,
    /// Cancelled when the work has ended, with or without success.
    pub ended: &'a CancellationToken,
    /// Cancelled when the work is asked to end; then only `give_up` limits a save.
    pub halt: &'a CancellationToken,
    /// When the work will be halted, on the run's clock.
    pub deadline_at: Duration,
}

impl SaveLimits<'_> {
    /// Returns when an upload of `bytes` has taken too long. While the command runs, it delays
    /// nothing; afterwards the message waits for it.
    async fn expire(&self, clock: Clock, bytes: u64) {
        let for_bytes = Duration::from_secs(bytes / MIN_RATE);
        tokio::select! {
            () = tokio::time::sleep(LIMIT_WHILE_RUNNING.saturating_add(for_bytes)) => return,
            () = self.ended.cancelled() => {}
        }
        if self.halt.is_cancelled() {
            return std::future::pending().await;
        }
        let until = clock.now().saturating_add(LIMIT_AFTER_END).saturating_add(for_bytes);
        clock.sleep_until(until.min(self.deadline_at.saturating_sub(DEADLINE_MARGIN))).await;
    }
}

/// The time for an upload, plus a second for each `MIN_RATE` bytes.
const LIMIT_WHILE_RUNNING: Duration = Duration::from_mins(1);
const LIMIT_AFTER_END: Duration = Duration::from_secs(5);

/// The slowest acceptable upload, in bytes per second.
const MIN_RATE: u64 = 1 << 20;

/// An upload must fail before the work counts as timed out.
const DEADLINE_MARGIN: Duration = Duration::from_secs(1);
