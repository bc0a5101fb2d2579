//! The place on the disk where the files of one object live while it is worked on.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytesize::ByteSize;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, open};
use nix::sys::stat::Mode;
use nix::sys::statvfs::statvfs;
use nix::unistd::{UnlinkatFlags, unlinkat};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;
use tracing::warn;
use walkdir::WalkDir;

/// Where workspaces are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkDir {
    pub path: PathBuf,
    /// How many bytes may be in it, if somebody counts them: an emptyDir's limit is seen in no file
    /// system.
    pub limit: Option<u64>,
}

impl WorkDir {
    /// Is there room for a file of so many bytes? Says what is missing, and what to change. Blocks.
    pub fn check_room(&self, bytes: u64) -> Result<(), String> {
        let free = statvfs(&self.path).map_err(|errno| self.failed(&errno.into()))?;
        // The types differ between systems.
        #[expect(clippy::useless_conversion, reason = "not on every system")]
        let free = u64::from(free.blocks_available()).saturating_mul(free.fragment_size().into());
        if bytes > free {
            let free = ByteSize(free);
            return Err(self.said(&format!("{free} are free: enlarge its volume")));
        }
        let Some(limit) = self.limit else { return Ok(()) };
        let used = self.used();
        if used.saturating_add(bytes) > limit {
            let (used, limit) = (ByteSize(used), ByteSize(limit));
            let advice = "raise the limit together with the volume's sizeLimit";
            return Err(
                self.said(&format!("{used} of --work-dir-limit {limit} are used: {advice}"))
            );
        }
        Ok(())
    }

    /// A new file at `path`, somewhere in here, with room for so many bytes that nobody else takes.
    /// Blocks.
    pub fn new_file(&self, path: &Path, bytes: u64) -> Result<File, String> {
        let _alone = allocation_lock();
        self.check_room(bytes)?;
        let file = File::create_new(path).map_err(|error| self.failed(&error))?;
        self.take_room(&file, 0, bytes)?;
        Ok(file)
    }

    /// Room for so many bytes more of a file in here, from `at` on, that nobody else takes. Blocks.
    pub fn extend(&self, file: &File, at: u64, bytes: u64) -> Result<(), String> {
        let _alone = allocation_lock();
        self.check_room(bytes)?;
        self.take_room(file, at, bytes)
    }

    fn take_room(&self, file: &File, at: u64, bytes: u64) -> Result<(), String> {
        let length = i64::try_from(bytes).ok().filter(|length| *length > 0);
        let (Ok(at), Some(length)) = (i64::try_from(at), length) else { return Ok(()) };
        match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, at, length) {
            // Not every file system can: then it is as it comes.
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(self.failed(&errno.into())),
        }
    }

    /// On the disk, in bytes. What goes away while it is counted does not count.
    fn used(&self) -> u64 {
        const BLOCK: u64 = 512; // stat(2)
        let entries = WalkDir::new(&self.path).into_iter().flatten();
        entries
            .filter_map(|entry| entry.metadata().ok())
            .map(|metadata| metadata.blocks() * BLOCK)
            .sum()
    }

    pub fn failed(&self, error: &io::Error) -> String {
        self.said(&error.to_string())
    }

    fn said(&self, what: &str) -> String {
        format!("--work-dir {}: {what}", self.path.display())
    }
}

/// Only one at a time takes room, or else two would see the same side by side (`--concurrency`);
/// and nobody removes a workspace in which a file is just being made for work that was halted
/// meanwhile.
fn allocation_lock() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removed when dropped, on every path out. It is ours alone (0700), for the command runs as the
/// same user.
///
/// ```text
/// leasehold-XXXXXX/
/// ├── job.json          JOB_FILE
/// ├── input/NAME        JOB_INPUT
/// ├── output/           JOB_OUTPUT_DIR
/// ├── result.jsonl      JOB_RESULT_FILE, if the command writes it
/// ├── checkpoint/       JOB_CHECKPOINT_DIR
/// ├── checkpoint.tar    the same on its way
/// └── tmp/              TMPDIR
/// ```
pub struct Workspace {
    root: TempDir,
    name: String,
}

impl Workspace {
    /// A fresh place below `work_dir` for the object `key`; the error names the directory and the
    /// flag.
    pub fn create(work_dir: &WorkDir, key: &str) -> Result<Self, String> {
        let create = || {
            let root = tempfile::Builder::new().prefix("leasehold-").tempdir_in(&work_dir.path)?;
            for directory in ["input", "output", "tmp"] {
                fs::create_dir(root.path().join(directory))?;
            }
            Ok(Self { root, name: file_name(key) })
        };
        create().map_err(|error: io::Error| work_dir.failed(&error))
    }

    pub fn job_file(&self) -> PathBuf {
        self.root.path().join("job.json")
    }

    pub fn input(&self) -> PathBuf {
        self.root.path().join("input").join(&self.name)
    }

    pub fn output(&self) -> PathBuf {
        self.root.path().join("output")
    }

    pub fn result_file(&self) -> PathBuf {
        self.root.path().join("result.jsonl")
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.root.path().join("checkpoint")
    }

    /// An empty one, which nobody keeps: a command that writes there must work all the same.
    pub fn add_checkpoint(&self) -> io::Result<()> {
        fs::create_dir(self.checkpoint())
    }

    pub fn archive(&self) -> PathBuf {
        self.root.path().join("checkpoint.tar")
    }

    pub fn tmp(&self) -> PathBuf {
        self.root.path().join("tmp")
    }

    /// Removes the files and folders that nearly every workspace has, by name: most have nothing
    /// else, and listing the folders takes four times as many calls. An error means that something
    /// is left.
    fn remove_usual(&self) -> io::Result<()> {
        // Most commands do not write one.
        let _ = fs::remove_file(self.result_file());
        fs::remove_file(self.job_file())?;
        self.remove_input()?;
        for folder in [self.output(), self.checkpoint(), self.tmp()] {
            fs::remove_dir(folder)?;
        }
        fs::remove_dir(self.root.path())
    }

    /// If the command replaced the folder with a symbolic link, nothing behind the link is ours.
    fn remove_input(&self) -> io::Result<()> {
        let path = self.root.path().join("input");
        if fs::remove_dir(&path).is_ok() {
            return Ok(());
        }
        let folder =
            open(&path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?;
        unlinkat(folder, self.name.as_str(), UnlinkatFlags::NoRemoveDir)?;
        fs::remove_dir(path)
    }
}

/// The removals of one run's workspaces. They go on beside the delete and the next receive, so that
/// a message with a hundred thousand files is deleted as soon as its work is done.
#[derive(Debug, Clone)]
pub struct Removals(TaskTracker);

impl Default for Removals {
    fn default() -> Self {
        let removals = TaskTracker::new();
        // A closed tracker can be waited for, and still accepts tasks.
        removals.close();
        Self(removals)
    }
}

impl Removals {
    /// Removes everything on another thread.
    pub fn begin(&self, space: Workspace) {
        self.0.spawn_blocking(move || drop(space));
    }

    /// Waits until all removals are done. The next workspace waits for that, so that a run never
    /// uses more of the disk (or of `--work-dir-limit`) than one message needs.
    pub async fn finished(&self) {
        self.0.wait().await;
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _alone = allocation_lock();
        // Otherwise it would be removed twice.
        self.root.disable_cleanup(true);
        let root = self.root.path();
        let removed = self.remove_usual().or_else(|_| fs::remove_dir_all(root)).or_else(|_| {
            open_folders(root);
            fs::remove_dir_all(root)
        });
        // What cannot be removed goes with the pod.
        if let Err(error) = removed.or_else(|error| if root.exists() { Err(error) } else { Ok(()) })
        {
            warn!(path = %root.display(), %error, "the files that the command left in the work directory cannot be removed");
        }
    }
}

/// Without write permission for a folder nothing in it can be removed, and Go's module cache is
/// left so.
fn open_folders(root: &Path) {
    const OURS: u32 = 0o700;
    // A folder comes before what is in it.
    let folders =
        WalkDir::new(root).into_iter().flatten().filter(|entry| entry.file_type().is_dir());
    for folder in folders {
        let Ok(mode) = folder.metadata().map(|metadata| metadata.mode()) else { continue };
        if mode & OURS != OURS {
            // What follows from that is told when it cannot be removed.
            let _ = fs::set_permissions(folder.path(), Permissions::from_mode(mode | OURS));
        }
    }
}

/// A name for the file that is like the key's last part and harmless everywhere: a key may hold
/// `..`, slashes, control characters and 1024 bytes of Unicode.
fn file_name(key: &str) -> String {
    const LONGEST: usize = 100;
    let last = key.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let harmless = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = last.trim_start_matches(['.', '-']).chars().map(harmless).collect();
    // The end of a name says what kind of file it is.
    let name = &name[name.len().saturating_sub(LONGEST)..];
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
    fn room_is_what_is_free_and_what_the_limit_leaves() {
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
    fn room_is_given_to_one_only() {
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
    fn nothing_is_left_behind() {
        let home = tempfile::tempdir().unwrap();
        let space = Workspace::create(&work_dir(home.path(), None), "k").unwrap();
        fs::write(space.input(), "x").unwrap();
        drop(space);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn whatever_is_in_a_workspace_goes_with_it_and_nothing_that_it_links_to() {
        let home = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let kept = elsewhere.path().join("k");
        fs::write(&kept, "x").unwrap();
        let place = work_dir(home.path(), None);
        let workspace = || {
            let space = Workspace::create(&place, "k").unwrap();
            space.add_checkpoint().unwrap();
            fs::write(space.job_file(), "{}").unwrap();
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

    #[tokio::test]
    async fn removals_are_over_when_all_of_them_are() {
        let home = tempfile::tempdir().unwrap();
        let removals = Removals::default();
        removals.finished().await;
        for _ in 0..20 {
            removals.begin(Workspace::create(&work_dir(home.path(), None), "k").unwrap());
        }
        removals.finished().await;
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    /// As root nothing of this stands in the way.
    #[test]
    fn folders_without_permissions_are_opened_before_they_are_removed() {
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
        open_folders(home.path());
        assert!(
            [&*deep, &home.path().join("go/mod"), &home.path().join("go")]
                .iter()
                .all(|it| mode(it) == 0o700)
        );
        assert_eq!(mode(&deep.join("file")), 0o400, "it stands in nobody's way");
    }

    #[test]
    fn a_file_that_is_made_while_all_is_removed_goes_too() {
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
