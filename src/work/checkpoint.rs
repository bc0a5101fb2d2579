//! Partial state: what a command left in `JOB_CHECKPOINT_DIR` is there again when the next delivery starts.
//!
//! A checkpoint is one tar archive, so a reader never sees half of one: `<prefix>/<message id>/<object>/<receive count>.tar`.
//! Each delivery writes under its own receive count: a pod that has lost its lease overwrites nothing of the one that has it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use walkdir::WalkDir;

use super::Item;
use super::fetch::{self, FetchPolicy};
use super::workspace::{WorkDir, Workspace};
use crate::job::delivery::Received;
use crate::job::notification::Object;
use crate::job::place::{Place, Values};
use crate::job::report::{Noted, Report, Subject};
use crate::job::route::{Checkpointing, Task};
use crate::job::verdict::{Completion, Failure, Settlement};
use crate::ports::clock::Clock;
use crate::ports::{Storage, Telemetry, Upload};

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
    /// How long earlier deliveries worked.
    pub worked: Duration,
    /// When this one began, on the run's clock.
    began_at: Duration,
    /// What was in the directory when it was last saved or restored.
    seen: Contents,
}

/// When there is something to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Save {
    /// If something in the directory has changed.
    Changes,
    /// Always: how long this delivery worked counts, too.
    Last,
}

/// The first entry of an archive.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    version: u32,
    /// By all deliveries until then, in seconds.
    worked_s: u64,
}

/// Enough to see that something has changed: length and time of change of each file.
type Contents = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

impl Checkpoints {
    /// Fills the workspace's checkpoint directory with what the last delivery saved, if one did.
    pub(super) async fn restore<'a>(
        &'a self,
        how: &Checkpointing,
        item: Item<'a>,
        work_dir: &'a WorkDir,
    ) -> Result<Checkpoint<'a>, Failure> {
        let Item { work, number, record, space, halt, .. } = item;
        let Received { delivery, received_at, .. } = &work.received;
        let place = how.place.place(Values {
            key: record.map(|record| record.object.key.as_str()),
            message_id: delivery.message_id.as_str(),
            job_type: &work.task.name,
        });
        let folder = place.key(&format!("{}/{number}/", delivery.message_id));
        let directory = space.checkpoint();
        fs::create_dir(&directory).map_err(|error| Failure::Start(work_dir.failed(&error)))?;
        let mut checkpoint = Checkpoint {
            of: self,
            interval: how.interval,
            work_dir,
            space,
            bucket: place.bucket,
            key: format!("{folder}{}.tar", delivery.receive_count),
            saved: None,
            worked: Duration::ZERO,
            began_at: *received_at,
            seen: Contents::new(),
        };
        let keys = self.storage.list(&checkpoint.bucket, &folder).await.map_err(Failure::Fetch)?;
        let count = |key: &String| key.strip_prefix(&folder)?.strip_suffix(".tar")?.parse::<u32>().ok();
        let before = keys.into_iter().filter(|key| count(key).is_some_and(|count| count < delivery.receive_count));
        let Some(last) = before.max_by_key(count) else { return Ok(checkpoint) };

        let bucket = checkpoint.bucket.clone();
        let object = Object {
            bucket: bucket.clone(),
            key: last.clone(),
            version_id: None,
            etag: None,
            size: None,
            sequencer: None,
        };
        let archive = space.archive();
        fetch::fetch(self.storage.as_ref(), &FetchPolicy::default(), work_dir, &object, &archive).await?;
        let (into, room, halt) = (directory.clone(), work_dir.clone(), halt.clone());
        let unpacked = tokio::task::spawn_blocking(move || {
            room.check_room(archive.metadata()?.len()).map_err(io::Error::other)?;
            let about = unpack(&archive, &into, &halt)?;
            fs::remove_file(archive)?;
            Ok((about, contents(&into)))
        });
        let unpacked = unpacked.await.map_err(io::Error::from).and_then(|unpacked| unpacked);
        let (about, seen) = unpacked.map_err(|error| {
            Failure::Fetch(format!(
                "the checkpoint s3://{bucket}/{last} cannot be restored: {error}; without it, the work starts afresh"
            ))
        })?;
        checkpoint.worked = Duration::from_secs(about.worked_s);
        info!(checkpoint = last, worked_s = about.worked_s, files = seen.len(), "going on from a checkpoint");
        checkpoint.seen = seen;
        checkpoint.saved = Some(last);
        Ok(checkpoint)
    }

    /// Drops what is there of a message that is done. What cannot be dropped is left to a lifecycle rule.
    async fn forget(&self, how: &Checkpointing, job_type: &str, subject: &Subject) {
        let message = &subject.message_id;
        let place = |key| how.place.place(Values { key, message_id: message.as_str(), job_type });
        let mut places: Vec<Place> = subject.objects.iter().map(|object| place(Some(object.key.as_str()))).collect();
        if places.is_empty() {
            places.push(place(None));
        }
        places.sort();
        places.dedup();
        let dropped = async {
            for place in places {
                for key in self.storage.list(&place.bucket, &place.key(&format!("{message}/"))).await? {
                    self.storage.delete(&place.bucket, &key).await?;
                }
            }
            Ok(())
        };
        if let Err(error) = timeout(FORGET_LIMIT, dropped).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
        {
            warn!(message_id = %message, error, "the checkpoints of a message that is done were not dropped");
        }
    }
}

impl Checkpoint<'_> {
    /// Saves every interval, if there is one, until it is `over`. A save that is on its way then is finished: it may be all
    /// that there is time for.
    pub async fn save_until(&mut self, over: &CancellationToken, give_up: &CancellationToken) {
        let Some(interval) = self.interval else { return };
        while over.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            match self.save(Save::Changes, give_up).await {
                Ok(()) => {}
                Err(_) if give_up.is_cancelled() => {}
                Err(error) => warn!(error, "the checkpoint was not saved, and this will be tried again"),
            }
        }
    }

    /// Saves what is in the directory now. Given up when `give_up` is cancelled.
    ///
    /// All or nothing: until the new one is there, the one before it is what the next delivery finds.
    pub async fn save(&mut self, save: Save, give_up: &CancellationToken) -> Result<(), String> {
        let (directory, archive) = (self.space.checkpoint(), self.space.archive());
        let worked = self.worked + self.of.clock.now().saturating_sub(self.began_at);
        let about = About { version: 1, worked_s: worked.as_secs() };
        let (packed, room, seen) = (archive.clone(), self.work_dir.clone(), self.seen.clone());
        let too_late = give_up.clone();
        let packed = tokio::task::spawn_blocking(move || {
            let contents = contents(&directory);
            if save == Save::Changes && contents == seen {
                return Ok(None);
            }
            room.check_room(contents.values().map(|(bytes, _)| bytes).sum()).map_err(io::Error::other)?;
            pack(&directory, &about, &packed, &too_late).map(|bytes| Some((contents, bytes)))
        });
        // Of very many files even the list takes its time. The thread ends soon after.
        let packed = give_up.run_until_cancelled(packed).await.ok_or(NO_TIME)?;
        let packed = packed.map_err(io::Error::from).and_then(|packed| packed);
        let Some((contents, bytes)) = packed.map_err(|error| format!("JOB_CHECKPOINT_DIR: {error}"))? else {
            return Ok(());
        };

        let bucket = &self.bucket;
        let upload = Upload { bucket, key: &self.key, path: &archive, bytes, content_type: "application/x-tar" };
        let uploaded = self.of.storage.upload(&upload, give_up).await;
        // The workspace is removed as a whole soon: room is all that this is about.
        let _ = fs::remove_file(&archive);
        uploaded?;
        self.seen = contents;
        let before = self.saved.replace(self.key.clone()).filter(|before| *before != self.key);
        info!(checkpoint = self.key, bytes, worked_s = worked.as_secs(), "checkpoint saved");
        if let Some(before) = before {
            // A second one is no harm: the one with the greatest receive count is restored.
            let _ = give_up.run_until_cancelled(self.of.storage.delete(bucket, &before)).await;
        }
        Ok(())
    }
}

fn contents(directory: &Path) -> Contents {
    let entries = WalkDir::new(directory).min_depth(1).into_iter().flatten();
    let known = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        let name = entry.path().strip_prefix(directory).ok()?.to_owned();
        Some((name, (metadata.len(), metadata.modified().ok())))
    });
    known.collect()
}

/// Writes all below `directory` into an archive; returns the archive's length, in bytes. A file that changes meanwhile is
/// saved as far as it was when it was looked at.
fn pack(directory: &Path, about: &About, archive: &Path, give_up: &CancellationToken) -> io::Result<u64> {
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(BUFFER, File::create(archive)?));
    let text = serde_json::to_vec(about)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    tar.append_data(&mut header, ABOUT, text.as_slice())?;

    for entry in WalkDir::new(directory).min_depth(1).sort_by_file_name() {
        // What is gone since it was listed is no state any more.
        let entry = match entry {
            Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => continue,
            entry => entry?,
        };
        let path = entry.path();
        let name = Path::new(DATA).join(path.strip_prefix(directory).map_err(io::Error::other)?);
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&metadata);
        let kind = entry.file_type();
        if kind.is_file() {
            let file = match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            // No more and no less than the header says, whatever becomes of the file.
            let bytes = file.take(metadata.len()).chain(io::repeat(0)).take(metadata.len());
            tar.append_data(&mut header, name, Until { bytes, give_up })?;
        } else if kind.is_symlink() {
            tar.append_link(&mut header, name, fs::read_link(path)?)?;
        } else if kind.is_dir() {
            tar.append_data(&mut header, name, io::empty())?;
        }
        // Sockets and pipes are no state.
    }
    let mut file = tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.flush()?;
    Ok(file.metadata()?.len())
}

fn unpack(archive: &Path, directory: &Path, give_up: &CancellationToken) -> io::Result<About> {
    let bytes = io::BufReader::with_capacity(BUFFER, Until { bytes: File::open(archive)?, give_up });
    let mut archive = tar::Archive::new(bytes);
    archive.set_preserve_mtime(true);
    let mut entries = archive.entries()?;
    let first = entries.next().ok_or_else(|| io::Error::other("it is empty"))??;
    if first.path()? != Path::new(ABOUT) {
        return Err(io::Error::other(format!("it does not begin with {ABOUT}")));
    }
    let about: About = serde_json::from_reader(first)?;
    for entry in entries {
        let mut entry = entry?;
        let name = entry.path()?.strip_prefix(DATA).map_err(io::Error::other)?.to_owned();
        entry.set_preserve_permissions(true);
        let kind = entry.header().entry_type();
        let to = directory.join(&name);
        // Whoever may write to the bucket may not write to everything here.
        let leads_elsewhere = !name.components().all(|part| matches!(part, Component::Normal(_)))
            || name.ancestors().skip(1).any(|parent| directory.join(parent).is_symlink())
            || !(kind.is_file() || kind.is_dir() || kind.is_symlink());
        if leads_elsewhere {
            return Err(io::Error::other(format!("it has {}, which may lead elsewhere", name.display())));
        }
        if kind.is_dir() { fs::create_dir_all(&to)? } else { entry.unpack(&to).map(drop)? }
    }
    Ok(about)
}

const NO_TIME: &str = "there was no time for all of it";

/// Bytes that end with an error when it is too late for them.
struct Until<'a, R> {
    bytes: R,
    give_up: &'a CancellationToken,
}

impl<R: Read> Read for Until<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.give_up.is_cancelled() {
            return Err(io::Error::other(NO_TIME));
        }
        self.bytes.read(buffer)
    }
}

/// How long a save may take that has so much of a stop: an upload that is given up has to tidy up, too.
pub fn limit(of_the_stop: Duration) -> Duration {
    of_the_stop.saturating_sub(TIDYING_UP).max(of_the_stop / 2)
}

const TIDYING_UP: Duration = Duration::from_secs(2);

/// The names of what is in an archive.
const ABOUT: &str = "leasehold.json";
const DATA: &str = "data";

const BUFFER: usize = 256 << 10;

/// Tidying up is not worth more of a pod's last seconds.
const FORGET_LIMIT: Duration = Duration::from_secs(1);

/// Passes on all that is told, and drops the checkpoints of messages that are done: only then, since until its message is
/// deleted a job may have to be done again.
pub struct Forgetting {
    pub checkpoints: Checkpoints,
    pub tasks: Vec<Arc<Task>>,
    pub told: Arc<dyn Telemetry>,
}

#[async_trait]
impl Telemetry for Forgetting {
    async fn tell(&self, report: &Report) {
        self.told.tell(report).await;
        if let Report::Ended(ended) = report
            && let Settlement::Deleted(Completion::Succeeded | Completion::AlreadyDone) = ended.settlement
            && let Some(task) = self.tasks.iter().find(|task| Some(&task.name) == ended.subject.job_type.as_ref())
            && let Some(how) = &task.checkpoint
        {
            self.checkpoints.forget(how, &task.name, &ended.subject).await;
        }
    }

    fn note(&self, noted: Noted) {
        self.told.note(noted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed_and_unpacked(directory: &Path) -> io::Result<(tempfile::TempDir, About)> {
        let home = tempfile::tempdir()?;
        let (archive, into) = (home.path().join("a.tar"), home.path().join("into"));
        fs::create_dir(&into)?;
        let never = CancellationToken::new();
        let bytes = pack(directory, &About { version: 1, worked_s: 7 }, &archive, &never)?;
        assert_eq!(bytes, fs::metadata(&archive)?.len());
        let about = unpack(&archive, &into, &never)?;
        Ok((home, about))
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let from = tempfile::tempdir().unwrap();
        let deep = "x".repeat(90);
        fs::create_dir_all(from.path().join("empty")).unwrap();
        fs::create_dir_all(from.path().join(&deep).join(&deep)).unwrap();
        let (long, nothing) = (from.path().join(&deep).join(&deep).join("file"), from.path().join("nothing"));
        fs::write(&long, vec![7; 1 << 20]).unwrap();
        fs::write(nothing, "").unwrap();
        std::os::unix::fs::symlink("nothing", from.path().join("link")).unwrap();
        let (home, about) = packed_and_unpacked(from.path()).unwrap();
        let into = home.path().join("into");
        assert_eq!((contents(&into).len(), about.worked_s), (6, 7));
        assert_eq!(fs::read(into.join(&deep).join(&deep).join("file")).unwrap(), vec![7; 1 << 20]);
        assert_eq!(fs::read_link(into.join("link")).unwrap(), Path::new("nothing"));
    }

    /// An archive with these files, then a link to a folder outside, and then a file behind that link.
    fn with_a_link_and(names: &[&str]) -> (tempfile::TempDir, io::Result<About>) {
        let home = tempfile::tempdir().unwrap();
        let (archive, into, outside) =
            (home.path().join("a.tar"), home.path().join("into"), home.path().join("outside"));
        fs::create_dir(&into).unwrap();
        fs::create_dir(&outside).unwrap();
        let mut tar = tar::Builder::new(File::create(&archive).unwrap());
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            // As `append_data` would refuse it.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, bytes).unwrap();
        };
        add(ABOUT, &serde_json::to_vec(&About { version: 1, worked_s: 0 }).unwrap());
        for name in names {
            add(name, b"x");
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, "data/link", &outside).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        tar.append_data(&mut header, "data/link/file", b"x".as_slice()).unwrap();
        tar.finish().unwrap();
        let unpacked = unpack(&archive, &into, &CancellationToken::new());
        (home, unpacked)
    }

    #[test]
    fn an_archive_leads_nowhere_else() {
        for (names, culprit) in [(&["data/../../outside/file"][..], "outside/file"), (&[], "link/file")] {
            let (home, unpacked) = with_a_link_and(names);
            let error = unpacked.unwrap_err().to_string();
            assert!(error.contains(culprit), "{error}");
            assert_eq!(fs::read_dir(home.path().join("outside")).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_it_is_too_late_for_is_given_up_between_two_blocks() {
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("file"), "x").unwrap();
        let too_late = CancellationToken::new();
        let about = About { version: 1, worked_s: 7 };
        let archive = from.path().with_extension("tar");
        pack(from.path(), &about, &archive, &too_late).unwrap();
        too_late.cancel();
        for given_up in [
            pack(from.path(), &about, &archive, &too_late).map(drop),
            unpack(&archive, from.path(), &too_late).map(drop),
        ] {
            assert!(given_up.unwrap_err().to_string().contains("no time"));
        }
        fs::remove_file(archive).unwrap();
    }
}
