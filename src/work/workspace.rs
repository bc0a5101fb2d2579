//! The directory for the files of one object while it is processed.

mod folders;
mod on_demand;

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use bytesize::ByteSize;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, open};
use nix::sys::stat::Mode;
use nix::sys::statvfs::statvfs;
use nix::unistd::{UnlinkatFlags, unlinkat};
use tokio::task::spawn_blocking;
use tracing::{dispatcher, warn};
use walkdir::WalkDir;

use crate::ports::JobFolders;
use folders::{FOLDERS, Folders, Stamp};
use on_demand::OnDemand;

/// The parent directory of workspaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkDir {
    pub path: PathBuf,
    /// The most bytes in it, if limited: the file system does not show the limit of an emptyDir.
    pub limit: Option<u64>,
}

impl WorkDir {
    /// Checks that a file of this size fits. The error says what to change. Blocks.
    pub fn check_room(&self, bytes: u64) -> Result<(), String> {
        let free = statvfs(&self.path).map_err(|errno| self.failed(&errno.into()))?;
        // The types differ between systems.
        #[expect(clippy::useless_conversion, reason = "not on every system")]
        let free = u64::from(free.blocks_available()).saturating_mul(free.fragment_size().into());
        if bytes > free {
            let free = ByteSize(free);
            return Err(self.describe(&format!("{free} are free: enlarge its volume")));
        }
        let Some(limit) = self.limit else { return Ok(()) };
        let used = self.used();
        if used.saturating_add(bytes) > limit {
            let (used, limit) = (ByteSize(used), ByteSize(limit));
            let advice = "raise the limit together with the volume's sizeLimit";
            return Err(
                self.describe(&format!("{used} of --work-dir-limit {limit} are used: {advice}"))
            );
        }
        Ok(())
    }

    /// Creates a file at `path`, below this directory, and reserves `bytes` for it. Blocks.
    pub fn new_file(&self, path: &Path, bytes: u64) -> Result<File, String> {
        let _lock = allocation_lock();
        self.check_room(bytes)?;
        let file = File::create_new(path).map_err(|error| self.failed(&error))?;
        self.reserve(&file, 0, bytes)?;
        Ok(file)
    }

    /// Reserves `bytes` more for a file below this directory, from `at` on. Blocks.
    pub fn extend(&self, file: &File, at: u64, bytes: u64) -> Result<(), String> {
        let _lock = allocation_lock();
        self.check_room(bytes)?;
        self.reserve(file, at, bytes)
    }

    fn reserve(&self, file: &File, at: u64, bytes: u64) -> Result<(), String> {
        let length = i64::try_from(bytes).ok().filter(|length| *length > 0);
        let (Ok(at), Some(length)) = (i64::try_from(at), length) else { return Ok(()) };
        match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, at, length) {
            // Not every file system supports this: then nothing is reserved.
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(self.failed(&errno.into())),
        }
    }

    /// The bytes on the disk. Files that are removed during the count do not count.
    fn used(&self) -> u64 {
        const BLOCK: u64 = 512; // stat(2)
        let entries = WalkDir::new(&self.path).into_iter().flatten();
        entries
            .filter_map(|entry| entry.metadata().ok())
            .map(|metadata| metadata.blocks() * BLOCK)
            .sum()
    }

    pub fn failed(&self, error: &io::Error) -> String {
        self.describe(&error.to_string())
    }

    fn describe(&self, what: &str) -> String {
        format!("--work-dir {}: {what}", self.path.display())
    }
}

/// Only one thread at a time reserves space, because otherwise two could count on the same space
/// (`--concurrency`). It also keeps a workspace from being removed while a file is created in it
/// for work that was halted meanwhile.
fn allocation_lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removed when dropped. Its modes follow the umask, because a command may change its user.
///
/// ```text
/// leasehold-XXXXXX/
/// ├── job.json          JOB_FILE
/// ├── body              JOB_BODY_FILE
/// ├── input/NAME        JOB_INPUT
/// ├── output/           JOB_OUTPUT_DIR
/// ├── result.jsonl      JOB_RESULT_FILE, if the command writes it
/// ├── checkpoint/       JOB_CHECKPOINT_DIR
/// ├── checkpoint.tar    its archive, during a save or restore
/// └── tmp/              TMPDIR
/// ```
///
/// Work in this process gets only the folders that it asks for.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
    name: String,
    /// `None` if it serves only one object.
    folders: Option<Folders>,
    /// Whether no process of its command can write to it.
    is_left: AtomicBool,
    /// Set while it is empty.
    emptied: Option<Stamp>,
    /// If its folders are made when they are first needed.
    on_demand: Option<Arc<OnDemand>>,
    is_removed: bool,
}

impl Workspace {
    /// Creates a workspace below `work_dir` for the object `key`; the error names the directory and
    /// the flag.
    pub fn create(work_dir: &WorkDir, key: &str) -> Result<Self, String> {
        let create = || {
            let root = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&work_dir.path)?;
            for directory in FOLDERS {
                fs::create_dir(root.path().join(directory))?;
            }
            Ok(Self::at(root.keep(), key, None))
        };
        create().map_err(|error: io::Error| work_dir.failed(&error))
    }

    fn at(root: PathBuf, key: &str, on_demand: Option<Arc<OnDemand>>) -> Self {
        let (name, is_left) = (file_name(key), AtomicBool::new(false));
        Self { root, name, folders: None, is_left, emptied: None, on_demand, is_removed: false }
    }

    /// A workspace whose folders are made when they are first needed.
    pub(super) fn on_demand(work_dir: &WorkDir, key: &str) -> Self {
        let root = work_dir.path.join(format!("{PREFIX}{:032x}", fastrand::u128(..)));
        let on_demand = Some(Arc::new(OnDemand::new(root.clone())));
        Self::at(root, key, on_demand)
    }

    /// `None` if all folders exist.
    pub(super) fn folders(&self) -> Option<Arc<dyn JobFolders>> {
        self.on_demand.clone().map(|it| it as _)
    }

    /// Makes the folder, unless it exists.
    pub(super) fn make(&self, folder: &Path) -> io::Result<()> {
        self.on_demand.as_ref().map_or(Ok(()), |it| it.make(folder))
    }

    /// Whether no folder of it was made, and none will be.
    pub(super) fn close_unused(&self) -> bool {
        self.on_demand.as_ref().is_some_and(|it| it.close_unused())
    }

    /// Whether the work has left files in this folder.
    pub(super) async fn has_files(&self, folder: &Path) -> bool {
        let has_files = |folder: &Path| {
            fs::read_dir(folder).is_ok_and(|mut entries| matches!(entries.next(), Some(Ok(_))))
        };
        let Some(on_demand) = self.on_demand.clone() else { return has_files(folder) };
        if !on_demand.is_used() {
            return false;
        }
        let folder = folder.to_owned();
        // This may be the thread of the actors.
        let look = move || on_demand.made().contains(&folder) && has_files(&folder);
        spawn_blocking(look).await.unwrap_or_default()
    }

    /// Whether a small input is all that may be in it, and it serves only one object.
    pub(super) fn has_only_input(&self) -> bool {
        let is_usual = |made: &PathBuf| *made == self.root || *made == self.input_folder();
        let made = self.on_demand.as_ref().and_then(|it| it.made_now());
        made.is_some_and(|made| made.iter().all(is_usual))
    }

    /// Creates one that may serve another object later, if this file system shows all that it needs
    /// to know.
    pub(super) fn create_lasting(work_dir: &WorkDir, key: &str) -> Result<Self, String> {
        let mut space = Self::create(work_dir, key)?;
        space.folders = Folders::of(&space.root).ok();
        Ok(space)
    }

    /// The command has ended, and nothing of it writes here later.
    pub fn is_left_by_all(&self) {
        self.is_left.store(true, Ordering::Relaxed);
    }

    /// Removes the files of its object and gives it another name: a path that a program remembered
    /// leads nowhere. An error means that it must be removed.
    pub(super) fn empty(&mut self) -> io::Result<()> {
        let is_left = std::mem::take(self.is_left.get_mut());
        let Some(folders) = self.folders.as_ref().filter(|_| is_left) else {
            return Err(io::Error::other("it serves only one object"));
        };
        self.remove_files()?;
        match self.remove_input_file() {
            Err(Errno::ENOENT) | Ok(()) => {}
            Err(errno) => return Err(errno.into()),
        }
        let stamp = folders.if_as_new(&self.root)?;
        let stamp = stamp.ok_or_else(|| io::Error::other("the command changed its folders"))?;
        self.root = rename(&self.root)?;
        self.emptied = stamp.renamed(&self.root)?;
        self.emptied.as_ref().map(drop).ok_or_else(|| io::Error::other("it was replaced"))
    }

    /// Whether it is still empty: commands of other messages might have changed it, too.
    pub(super) fn is_empty(&self) -> bool {
        self.emptied.is_some() && Stamp::of(&self.root).ok() == self.emptied
    }

    /// The same workspace for another object.
    pub(super) fn serve(&mut self, key: &str) {
        (self.name, self.emptied) = (file_name(key), None);
    }

    pub fn job_file(&self) -> PathBuf {
        self.root.join("job.json")
    }

    pub fn body_file(&self) -> PathBuf {
        self.root.join("body")
    }

    pub fn input_folder(&self) -> PathBuf {
        self.root.join("input")
    }

    pub fn input(&self) -> PathBuf {
        self.input_folder().join(&self.name)
    }

    pub(super) fn has_small_input(&self) -> bool {
        fs::symlink_metadata(self.input()).map_or(true, |input| input.len() <= super::SMALL)
    }

    pub fn output(&self) -> PathBuf {
        self.root.join("output")
    }

    pub fn result_file(&self) -> PathBuf {
        self.root.join("result.jsonl")
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint")
    }

    pub fn archive(&self) -> PathBuf {
        self.root.join("checkpoint.tar")
    }

    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Removes the usual files and folders by name: most workspaces contain nothing else, and
    /// listing the folders takes four times as many calls. An error means that something remains.
    fn remove_usual(&self) -> io::Result<()> {
        let input = self.input_folder();
        if self.emptied.is_none() {
            self.remove_files()?;
        }
        if fs::remove_dir(&input).is_err() {
            self.remove_input_file()?;
            fs::remove_dir(input)?;
        }
        for folder in [self.output(), self.checkpoint(), self.tmp()] {
            fs::remove_dir(folder)?;
        }
        fs::remove_dir(&self.root)
    }

    /// The same for folders that were made on demand.
    fn remove_made(&self, made: &[PathBuf]) -> io::Result<()> {
        if made.contains(&self.input_folder()) {
            match self.remove_input_file() {
                Err(Errno::ENOENT) | Ok(()) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        // The root is the last one.
        made.iter().rev().try_for_each(fs::remove_dir)
    }

    fn remove_files(&self) -> io::Result<()> {
        // Most commands do not write one.
        let _ = fs::remove_file(self.result_file());
        // A warm worker gets the facts in a request.
        match fs::remove_file(self.job_file()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
        fs::remove_file(self.body_file())
    }

    /// Does not follow a symbolic link that the command put in place of the folder.
    fn remove_input_file(&self) -> nix::Result<()> {
        let folder = open(
            &self.input_folder(),
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        unlinkat(folder, self.name.as_str(), UnlinkatFlags::NoRemoveDir)
    }
}

const PREFIX: &str = "leasehold-";

/// Gives the directory another random name, and returns its new path. A workspace is never empty, so
/// it cannot replace another one.
fn rename(root: &Path) -> io::Result<PathBuf> {
    let parent = root.parent().unwrap_or(root);
    let renamed =
        tempfile::Builder::new().prefix(PREFIX).make_in(parent, |path| fs::rename(root, path))?;
    Ok(renamed.into_temp_path().keep()?)
}

impl Drop for Workspace {
    /// Work that is dropped may be on the actors' thread if its folders are made on demand. Then they
    /// are removed on another one.
    fn drop(&mut self) {
        if self.is_removed {
            return;
        }
        let Some(on_demand) = self.on_demand.take() else { return self.remove_now() };
        if on_demand.close_unused() {
            return;
        }
        let mut remains = Self::at(std::mem::take(&mut self.root), "", Some(on_demand));
        (remains.name, remains.is_removed) = (std::mem::take(&mut self.name), true);
        let (path, subscriber) = (remains.root.clone(), dispatcher::get_default(Clone::clone));
        let removal = Builder::new()
            .name("leasehold-files".to_owned())
            .spawn(move || dispatcher::with_default(&subscriber, || remains.remove_now()));
        if let Err(error) = removal {
            warn!(path = %path.display(), %error, "the files of a job stay until the end of the pod: no thread can be started to remove them");
        }
    }
}

impl Workspace {
    /// Removes it on this thread.
    pub(super) fn remove(mut self) {
        self.remove_now();
        self.is_removed = true;
    }

    fn remove_now(&self) {
        let made = self.on_demand.as_ref().map(|it| it.close());
        if made.as_ref().is_some_and(Vec::is_empty) {
            return;
        }
        let _lock = allocation_lock();
        let root = &self.root;
        let removed = made.map_or_else(|| self.remove_usual(), |made| self.remove_made(&made));
        let removed = removed.or_else(|_| fs::remove_dir_all(root)).or_else(|_| {
            make_writable(root);
            fs::remove_dir_all(root)
        });
        // Files that cannot be removed go with the pod.
        if let Err(error) = removed.or_else(|error| if root.exists() { Err(error) } else { Ok(()) })
        {
            warn!(path = %root.display(), %error, "the files that the command left in the work directory cannot be removed");
        }
    }
}

/// Makes all folders writable, because files in a read-only folder cannot be removed. Go's module
/// cache has such folders.
fn make_writable(root: &Path) {
    const OURS: u32 = 0o700;
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(mode) = folder.symlink_metadata().map(|metadata| metadata.mode()) else { continue };
        if mode & OURS != OURS {
            // A failure is reported when the removal fails.
            let _ = fs::set_permissions(&folder, Permissions::from_mode(mode | OURS));
        }
        // Only now is the folder readable.
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(below.map(|entry| entry.path()));
    }
}

/// A safe file name like the key's last part: a key may contain `..`, slashes, control characters
/// and 1024 bytes of Unicode.
fn file_name(key: &str) -> String {
    const MAX_LENGTH: usize = 100;
    let last = key.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let harmless = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = last.trim_start_matches(['.', '-']).chars().map(harmless).collect();
    // Keep the end of a name, which has the extension.
    let name = &name[name.len().saturating_sub(MAX_LENGTH)..];
    if name.is_empty() { "object".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn work_dir(path: &Path, limit: Option<u64>) -> WorkDir {
        WorkDir { path: path.to_owned(), limit }
    }

    #[test]
    fn room_is_limited_by_the_disk_and_by_the_setting() {
        let home = tempfile::tempdir().unwrap();
        let empty = work_dir(home.path(), None).used();
        let limited = work_dir(home.path(), Some(empty + 10_000));
        assert_eq!((limited.check_room(0), limited.check_room(10_000)), (Ok(()), Ok(())));
        let error = limited.check_room(10_001).unwrap_err();
        assert!(error.contains(" of --work-dir-limit ") && error.contains("sizeLimit"), "{error}");
        let mut file = File::create(home.path().join("x")).unwrap();
        file.write_all(&[1; 4096]).and_then(|()| file.sync_all()).unwrap();
        limited.check_room(10_000).unwrap_err();
        limited.check_room(10_000 - 4096).unwrap();

        let error = work_dir(home.path(), None).check_room(u64::MAX).unwrap_err();
        let named = format!("--work-dir {}: ", home.path().display());
        assert!(
            error.starts_with(&named) && error.ends_with("are free: enlarge its volume"),
            "{error}"
        );
    }

    #[test]
    fn room_is_reserved_for_one_file_only() {
        let home = tempfile::tempdir().unwrap();
        let empty = work_dir(home.path(), None).used();
        let limited = work_dir(home.path(), Some(empty + 1_500_000));
        let first = limited.new_file(&home.path().join("first"), 1_000_000).unwrap();
        assert_eq!(first.metadata().unwrap().len(), 0);
        let error = limited.new_file(&home.path().join("second"), 1_000_000).unwrap_err();
        assert!(error.contains("--work-dir-limit"), "{error}");
        limited.new_file(&home.path().join("none"), 0).unwrap();
    }

    #[test]
    fn a_file_name_is_never_the_raw_key() {
        for (key, name) in [
            ("inbox/report.csv", "report.csv"),
            ("a b/ü+%2F.txt", "___2F.txt"),
            ("../../etc/passwd", "passwd"),
            ("..", "object"),
            ("folder/", "folder"),
            ("/", "object"),
            ("-rf", "rf"),
            (".hidden", "hidden"),
            ("a\0b\nc", "a_b_c"),
        ] {
            assert_eq!(file_name(key), name, "{key:?}");
        }
        let long = file_name(&format!("{}.tar.gz", "x".repeat(1000)));
        assert!(long.len() <= 100 && long.ends_with(".tar.gz"), "{long}");
    }

    #[test]
    fn a_dropped_workspace_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let space = Workspace::create(&work_dir(home.path(), None), "k").unwrap();
        fs::write(space.input(), "x").unwrap();
        drop(space);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_workspace_is_removed_without_its_link_targets() {
        let home = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let kept = elsewhere.path().join("k");
        fs::write(&kept, "x").unwrap();
        let place = work_dir(home.path(), None);
        let workspace = || {
            let space = Workspace::create(&place, "k").unwrap();
            fs::write(space.job_file(), "{}").unwrap();
            fs::write(space.body_file(), "{}").unwrap();
            space
        };
        let input = |space: &Workspace| space.input().parent().unwrap().to_owned();
        let changes: [&dyn Fn(&Workspace); 8] = [
            &|_| {},
            &|space| fs::write(space.input(), "x").unwrap(),
            &|space| fs::write(space.result_file(), "x").unwrap(),
            &|space| fs::write(input(space).join("more"), "x").unwrap(),
            &|space| fs::write(space.tmp().join("more"), "x").unwrap(),
            &|space| fs::remove_file(space.job_file()).unwrap(),
            &|space| {
                fs::remove_dir(input(space)).unwrap();
                std::os::unix::fs::symlink(elsewhere.path(), input(space)).unwrap();
            },
            &|space| {
                fs::remove_dir(space.output()).unwrap();
                std::os::unix::fs::symlink(elsewhere.path(), space.output()).unwrap();
            },
        ];
        for (number, change) in changes.iter().enumerate() {
            let space = workspace();
            change(&space);
            drop(space);
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "{number}");
            assert!(kept.exists(), "{number}");
        }
    }

    /// Root could remove them anyway, so the test checks the modes.
    #[test]
    fn folders_without_permissions_get_them_before_removal() {
        let home = tempfile::tempdir().unwrap();
        let deep = home.path().join("go/mod/x");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "x").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        let set =
            |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        set(&deep.join("file"), 0o400);
        for folder in [&deep, &home.path().join("go/mod"), &home.path().join("go")] {
            set(folder, 0o0);
            std::os::unix::fs::symlink(
                folder,
                home.path().join(format!("link{}", folder.components().count())),
            )
            .unwrap();
        }
        make_writable(home.path());
        assert!(
            [&*deep, &home.path().join("go/mod"), &home.path().join("go")]
                .iter()
                .all(|it| mode(it) == 0o700)
        );
        assert_eq!(mode(&deep.join("file")), 0o400, "files need no permissions to be removed");
    }

    #[test]
    fn a_file_created_during_the_removal_is_removed() {
        let home = tempfile::tempdir().unwrap();
        for _ in 0..3000 {
            let place = work_dir(home.path(), None);
            let space = Workspace::create(&place, "k").unwrap();
            let input = space.input();
            std::thread::scope(|scope| {
                scope.spawn(move || drop(place.new_file(&input, 1)));
                scope.spawn(move || drop(space));
            });
        }
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_work_dir_is_named() {
        let error =
            Workspace::create(&work_dir(Path::new("/nonexistent/work"), None), "k").err().unwrap();
        assert!(error.starts_with("--work-dir /nonexistent/work: "), "{error}");
    }
}
