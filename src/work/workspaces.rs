//! The workspaces of one run, one after another.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::task::TaskTracker;

use super::threads::WorkThreads;
use super::workspace::{WorkDir, Workspace};

/// Removes workspaces, or empties them for the next message, in parallel to the delete and the next
/// receive: a message with a hundred thousand files is deleted as soon as its work is done.
#[derive(Clone)]
pub struct Workspaces {
    removals: TaskTracker,
    emptied: Arc<Mutex<Option<Workspace>>>,
    /// Whether a workspace may serve more than one message.
    are_lasting: bool,
    threads: WorkThreads,
}

impl Workspaces {
    pub fn new(are_lasting: bool, threads: WorkThreads) -> Self {
        let removals = TaskTracker::new();
        // A closed tracker can be awaited, and still accepts tasks.
        removals.close();
        Self { removals, emptied: Arc::default(), are_lasting, threads }
    }

    /// A workspace for the object `key`: the last one, if it is as new, else another one.
    pub fn create(&self, work_dir: &WorkDir, key: &str) -> Result<Workspace, String> {
        if let Some(mut space) = self.take() {
            if space.is_empty() {
                space.serve(key);
                return Ok(space);
            }
            self.remove(space);
        }
        if self.are_lasting {
            Workspace::create_lasting(work_dir, key)
        } else {
            Workspace::create(work_dir, key)
        }
    }

    /// Removes or empties the workspace. If the work failed, some of its downloads may still create
    /// files. Folders that were made on demand serve only one message: most messages need none.
    pub fn put_back(&self, space: Workspace, has_succeeded: bool) {
        if space.close_unused() {
            return;
        }
        let this = self.clone();
        let removal = async move { this.remove_or_empty(space, has_succeeded) };
        self.removals.spawn_on(removal, &self.threads.handle());
    }

    /// A small input is removed on the thread of the work, the rest on another one.
    fn remove_or_empty(&self, space: Workspace, has_succeeded: bool) {
        let is_small = space.has_small_input();
        if has_succeeded && is_small && space.has_only_input() {
            space.remove();
        } else if !(self.are_lasting && has_succeeded) {
            self.remove(space);
        } else if is_small {
            self.empty(space);
        } else {
            let this = self.clone();
            self.removals.spawn_blocking(move || this.empty(space));
        }
    }

    /// After the last message: removes the empty workspace, and waits until all removals are done.
    pub async fn close(&self) {
        self.finished().await;
        if let Some(space) = self.take() {
            self.remove(space);
            self.finished().await;
        }
    }

    /// Waits until all removals are done. The next workspace waits for this, so that a run uses no more
    /// of the disk (or of `--work-dir-limit`) than one message needs.
    pub async fn finished(&self) {
        self.removals.wait().await;
    }

    fn empty(&self, mut space: Workspace) {
        if space.empty().is_ok() {
            let last = self.emptied.lock().unwrap_or_else(PoisonError::into_inner).replace(space);
            debug_assert!(last.is_none(), "a run has one workspace at a time");
        } else {
            self.remove(space);
        }
    }

    /// On another thread: it may have many files.
    fn remove(&self, space: Workspace) {
        self.removals.spawn_blocking(move || space.remove());
    }

    fn take(&self) -> Option<Workspace> {
        self.emptied.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};

    use rustix::fs::{XattrFlags, setxattr};
    use tempfile::TempDir;
    use walkdir::WalkDir;

    use super::*;

    type Change<'a> = &'a dyn Fn(&Workspace);

    struct Room {
        home: TempDir,
        workspaces: Workspaces,
        place: WorkDir,
    }

    impl Room {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let place = WorkDir { path: home.path().to_owned(), limit: None };
            Self { home, workspaces: Workspaces::new(true, WorkThreads::Shared), place }
        }

        fn create(&self, key: &str) -> Workspace {
            self.workspaces.create(&self.place, key).unwrap()
        }

        /// A workspace with the files that each command has.
        fn used(&self, key: &str) -> Workspace {
            let space = self.create(key);
            for file in [space.job_file(), space.body_file(), space.input()] {
                fs::write(file, "x").unwrap();
            }
            space.is_left_by_all();
            space
        }

        async fn put_back(&self, space: Workspace) {
            self.workspaces.put_back(space, true);
            self.workspaces.finished().await;
        }

        fn entries(&self) -> usize {
            fs::read_dir(self.home.path()).unwrap().count()
        }
    }

    fn root(space: &Workspace) -> PathBuf {
        space.output().parent().unwrap().to_owned()
    }

    /// Each path below the workspace, with its mode, its size and the length of the names of its
    /// extended attributes.
    fn content(space: &Workspace) -> Vec<(PathBuf, u32, u64, usize)> {
        let root = root(space);
        let entries = WalkDir::new(&root).sort_by_file_name().into_iter().map(Result::unwrap);
        let shown = |path: &Path| {
            let attributes = rustix::fs::llistxattr(path, &mut [0_u8; 1024]).unwrap_or(0);
            let path_inside = path.strip_prefix(&root).unwrap().to_owned();
            let status = path.symlink_metadata().unwrap();
            (path_inside, status.mode(), status.size(), attributes)
        };
        entries.map(|entry| shown(entry.path())).collect()
    }

    /// The default access control list of a folder applies to the files that are made in it.
    #[tokio::test]
    async fn a_changed_access_control_list_does_not_apply_to_the_next() {
        const NAME: &str = "system.posix_acl_default";
        // The owner, the group and all others (linux/posix_acl_xattr.h).
        let list = |others: u16| {
            let entries = [(0x01, 7), (0x04, 5), (0x20, others)];
            let entries = entries.map(|(tag, mode): (u16, u16)| {
                [&tag.to_le_bytes()[..], &mode.to_le_bytes(), &[0xff; 4]].concat()
            });
            [&2_u32.to_le_bytes()[..], &entries.concat()].concat()
        };
        let room = Room::new();
        match setxattr(room.home.path(), NAME, &list(5), XattrFlags::empty()) {
            Err(rustix::io::Errno::NOTSUP) => return,
            set => set.unwrap(),
        }
        let space = room.used("k");
        setxattr(space.tmp(), NAME, &list(7), XattrFlags::empty()).unwrap();
        room.put_back(space).await;
        let mut found = [0; 64];
        let length = rustix::fs::getxattr(room.create("k").tmp(), NAME, &mut found).unwrap();
        assert_eq!(found[..length], list(5));
    }

    /// The inode cannot be used again while the folder is open.
    fn inode(space: &Workspace) -> (File, u64) {
        let folder = File::open(space.output()).unwrap();
        let inode = folder.metadata().unwrap().ino();
        (folder, inode)
    }

    #[tokio::test]
    async fn the_next_message_gets_the_same_folders_under_another_path() {
        let room = Room::new();
        let first = room.used("in/a.csv");
        let (path, (_open, before)) = (root(&first), inode(&first));
        room.put_back(first).await;
        assert!(!path.exists());
        let next = room.create("in/b.csv");
        assert_eq!(inode(&next).1, before);
        assert!(next.input().ends_with("input/b.csv"));
        assert_eq!(content(&next), content(&Room::new().create("k")));
        room.put_back(next).await;
        room.workspaces.close().await;
        assert_eq!(room.entries(), 0);
    }

    /// A folder does not shrink when its files are removed.
    fn enlarge(folder: &Path) {
        let files: Vec<_> = (0..1000).map(|n| folder.join(format!("{n:0100}"))).collect();
        for file in &files {
            fs::write(file, "").unwrap();
        }
        for file in &files {
            fs::remove_file(file).unwrap();
        }
    }

    #[tokio::test]
    async fn nothing_of_one_message_is_seen_by_the_next() {
        let elsewhere = tempfile::tempdir().unwrap();
        let outside = elsewhere.path();
        fs::write(outside.join("kept"), "x").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        let changes: [(&str, Change); 15] = [
            ("a file", &|it| fs::write(it.tmp().join(".hidden"), "x").unwrap()),
            ("a file beside", &|it| fs::write(root(it).join("more"), "x").unwrap()),
            ("a folder", &|it| fs::create_dir(it.input().with_file_name("more")).unwrap()),
            ("a socket", &|it| drop(UnixListener::bind(it.output().join("socket")).unwrap())),
            ("a link", &|it| symlink(outside, it.checkpoint().join("link")).unwrap()),
            ("a mode", &|it| mode(&it.output(), 0o777).unwrap()),
            ("the mode of the root", &|it| mode(&root(it), 0o777).unwrap()),
            ("an attribute", &|it| {
                setxattr(it.tmp(), "user.x", b"x", XattrFlags::empty()).unwrap();
            }),
            ("the size of a folder", &|it| enlarge(&it.tmp())),
            ("no folder", &|it| fs::remove_dir(it.tmp()).unwrap()),
            ("another folder", &|it| {
                // It stays, so that the new folder gets another inode.
                fs::rename(it.output(), outside.join("moved")).unwrap();
                fs::create_dir(it.output()).unwrap();
            }),
            ("a link to a folder", &|it| {
                fs::remove_dir(it.output()).unwrap();
                symlink(outside, it.output()).unwrap();
            }),
            ("a link to the input", &|it| {
                let input = it.input().parent().unwrap().to_owned();
                fs::rename(&input, outside.join("input")).unwrap();
                symlink(outside, input).unwrap();
            }),
            ("another root", &|it| {
                fs::rename(root(it), outside.join("root")).unwrap();
                for folder in ["input", "output", "tmp", "checkpoint"] {
                    fs::create_dir_all(root(it).join(folder)).unwrap();
                }
                fs::write(it.job_file(), "x").unwrap();
                fs::write(it.body_file(), "x").unwrap();
            }),
            ("no job file", &|it| fs::remove_file(it.job_file()).unwrap()),
        ];
        let new = content(&Room::new().create("k"));
        for (what, change) in changes {
            let room = Room::new();
            // In the first and in a later use.
            for _ in 0..2 {
                let space = room.used("k");
                change(&space);
                room.put_back(space).await;
                let next = room.create("k");
                assert_eq!(content(&next), new, "{what}");
                room.workspaces.finished().await;
                assert_eq!(room.entries(), 1, "{what}");
                next.is_left_by_all();
                for file in [next.job_file(), next.body_file()] {
                    fs::write(file, "x").unwrap();
                }
                room.put_back(next).await;
                for moved in ["moved", "input", "root"] {
                    let _ = fs::remove_dir_all(outside.join(moved));
                }
            }
            assert!(outside.join("kept").exists(), "{what}");
        }
    }

    #[tokio::test]
    async fn folders_are_not_used_again_if_something_may_still_write_to_them() {
        for (is_left, has_succeeded, are_lasting) in
            [(false, true, true), (true, false, true), (true, true, false)]
        {
            let room = Room {
                workspaces: Workspaces::new(are_lasting, WorkThreads::Shared),
                ..Room::new()
            };
            let space = room.create("k");
            let (_open, before) = inode(&space);
            for file in [space.job_file(), space.body_file()] {
                fs::write(file, "x").unwrap();
            }
            if is_left {
                space.is_left_by_all();
            }
            room.workspaces.put_back(space, has_succeeded);
            room.workspaces.finished().await;
            assert_eq!(room.entries(), 0);
            assert_ne!(inode(&room.create("k")).1, before, "{is_left} {has_succeeded}");
        }
    }

    #[tokio::test]
    async fn one_use_does_not_prove_the_next() {
        let room = Room::new();
        room.put_back(room.used("k")).await;
        let next = room.create("k");
        for file in [next.job_file(), next.body_file()] {
            fs::write(file, "x").unwrap();
        }
        room.put_back(next).await;
        assert_eq!(room.entries(), 0, "a process of the second command may remain");
    }

    #[tokio::test]
    async fn folders_that_changed_while_they_waited_are_replaced() {
        let changes: [&dyn Fn(&Path); 3] = [
            &|root| fs::write(root.join("tmp/x"), "x").unwrap(),
            &|root| fs::remove_dir_all(root).unwrap(),
            &|root| {
                fs::set_permissions(root.join("output"), Permissions::from_mode(0o700)).unwrap();
            },
        ];
        let new = content(&Room::new().create("k"));
        for change in changes {
            let place = Room::new();
            place.put_back(place.used("k")).await;
            // The change time has the resolution of the kernel's clock.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let root = fs::read_dir(place.home.path()).unwrap().next().unwrap().unwrap().path();
            change(&root);
            let next = place.create("k");
            assert_eq!(content(&next), new);
            place.workspaces.finished().await;
            assert_eq!(place.entries(), 1);
        }
    }

    #[tokio::test]
    async fn finished_waits_for_all_removals() {
        let room = Room::new();
        room.workspaces.finished().await;
        for _ in 0..20 {
            let space = Workspace::create(&room.place, "k").unwrap();
            room.workspaces.put_back(space, false);
        }
        room.workspaces.finished().await;
        assert_eq!(room.entries(), 0);
    }
}
