//! Folders that are made when they are first needed: most handlers of a Rust program need none.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ports::JobFolders;

/// The root of a workspace, and the folders in it.
#[derive(Debug)]
pub(super) struct OnDemand {
    root: PathBuf,
    /// Never locked while a folder is made, which takes as long as the disk hangs.
    usage: Mutex<Usage>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Usage {
    /// No folder was asked for.
    Unused,
    Used,
    Closed,
}

#[derive(Debug, Default)]
struct State {
    /// In the order in which they were made: the root comes first.
    made: Vec<PathBuf>,
    is_closed: bool,
}

impl OnDemand {
    /// The path of the root must be free.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, usage: Mutex::new(Usage::Unused), state: Mutex::default() }
    }

    /// Was a folder asked for, and is it not closed? Never blocks.
    pub(super) fn is_used(&self) -> bool {
        *lock(&self.usage) == Usage::Used
    }

    /// Makes no folders if none was asked for until now, and returns whether that is so. Never
    /// blocks.
    pub(super) fn close_unused(&self) -> bool {
        let mut usage = lock(&self.usage);
        if *usage == Usage::Unused {
            *usage = Usage::Closed;
        }
        *usage == Usage::Closed
    }

    /// `None` while a folder is made.
    pub(super) fn made_now(&self) -> Option<Vec<PathBuf>> {
        self.state.try_lock().ok().map(|state| state.made.clone())
    }

    /// Blocks while a folder is made.
    pub(super) fn made(&self) -> Vec<PathBuf> {
        lock(&self.state).made.clone()
    }

    /// Makes no more folders, and returns those that were made. Blocks while one is made.
    pub(super) fn close(&self) -> Vec<PathBuf> {
        let mut state = lock(&self.state);
        state.is_closed = true;
        std::mem::take(&mut state.made)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl JobFolders for OnDemand {
    fn make(&self, folder: &Path) -> io::Result<()> {
        let ended = || io::Error::other("the job has ended, and its files are removed");
        {
            let mut usage = lock(&self.usage);
            if *usage == Usage::Closed {
                return Err(ended());
            }
            *usage = Usage::Used;
        }
        let mut state = lock(&self.state);
        if state.is_closed {
            return Err(ended());
        }
        for path in [&*self.root, folder] {
            if !state.made.iter().any(|made| made == path) {
                // An error if it exists: another user may have made it.
                DirBuilder::new().mode(0o700).create(path)?;
                state.made.push(path.to_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_is_made_once_and_not_after_the_end() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("root");
        let (output, tmp) = (root.join("output"), root.join("tmp"));
        let folders = OnDemand::new(root.clone());
        assert!(!folders.is_used() && folders.made().is_empty() && !root.exists());
        for _ in 0..2 {
            folders.make(&output).unwrap();
            folders.make(&root).unwrap();
        }
        assert!(folders.is_used() && !folders.close_unused());
        assert_eq!(folders.close(), [root, output]);
        folders.make(&tmp).unwrap_err();
        assert!(!tmp.exists());
    }

    #[test]
    fn unused_folders_are_closed_without_a_wait() {
        let home = tempfile::tempdir().unwrap();
        let folders = OnDemand::new(home.path().join("root"));
        assert!(folders.close_unused() && folders.close_unused());
        folders.make(&home.path().join("root/output")).unwrap_err();
        assert!(!folders.is_used() && !home.path().join("root").exists());
    }

    #[test]
    fn a_folder_that_was_already_there_is_not_used() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("root");
        fs::create_dir(&root).unwrap();
        let folders = OnDemand::new(root.clone());
        folders.make(&root.join("output")).unwrap_err();
        assert!(folders.close().is_empty() && !root.join("output").exists());
    }
}
