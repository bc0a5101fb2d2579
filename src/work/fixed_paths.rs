//! Symbolic links at the paths that an image expects (`--input-at`, `--output-at`).
//!
//! Every message has its own directory, so no two messages share a file. A link at a fixed path
//! exists only while the command runs.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use tracing::warn;

use crate::job::route::Task;

/// The links for one command. Dropping them removes them.
#[derive(Debug)]
pub struct FixedPaths {
    /// Only for its drop.
    _input: Option<Link>,
    output: Option<Link>,
}

impl FixedPaths {
    /// Creates the links of the task; the error names the flag. `input` is `None` if the command
    /// gets none.
    pub fn create(task: &Task, input: Option<&Path>, output: &Path) -> Result<Self, String> {
        let link = |flag: &str, at: Option<&PathBuf>, to: Option<&Path>| {
            let link = at.zip(to).map(|(at, to)| {
                Link::create(at, to).map_err(|why| format!("{flag} {}: {why}", at.display()))
            });
            link.transpose()
        };
        Ok(Self {
            _input: link("--input-at", task.input_at.as_ref(), input)?,
            output: link("--output-at", task.output_at.as_ref(), Some(output))?,
        })
    }

    /// Creates and removes the links once, since only that proves that it is possible.
    pub fn check(task: &Task, work_dir: &Path) -> Result<(), String> {
        for (flag, at) in [("--input-at", &task.input_at), ("--output-at", &task.output_at)] {
            if let Some(at) = at.as_ref().filter(|at| work_dir.starts_with(at)) {
                let (at, work_dir) = (at.display(), work_dir.display());
                return Err(format!("{flag} {at}: --work-dir {work_dir} must not be in it"));
            }
        }
        let workspace = work_dir.join("leasehold-check0");
        Self::create(task, Some(&workspace.join("input/check")), &workspace.join("output"))
            .map(drop)
    }

    /// An error if the command replaced the link to its output: its results are elsewhere.
    pub fn check_output(&self) -> Result<(), String> {
        match &self.output {
            Some(link) if !link.is_intact() => Err(format!(
                "--output-at {}: the command replaced this link, so its results are not in JOB_OUTPUT_DIR",
                link.at.display()
            )),
            Some(_) | None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Link {
    at: PathBuf,
    to: PathBuf,
    /// The permissions of the empty directory that was here.
    replaced: Option<Permissions>,
}

impl Link {
    fn create(at: &Path, to: &Path) -> Result<Self, String> {
        let not_writable = |error| not_writable(at, &error);
        fs::create_dir_all(parent(at)).map_err(not_writable)?;
        let replaced = make_room(at)?;
        let link = Self { at: at.to_owned(), to: to.to_owned(), replaced };
        // On an error, dropping it restores the directory.
        symlink(to, at).map_err(not_writable)?;
        Ok(link)
    }

    fn is_intact(&self) -> bool {
        fs::read_link(&self.at).is_ok_and(|to| to == self.to)
    }

    fn remove(&self) -> io::Result<()> {
        if self.is_intact() {
            fs::remove_file(&self.at)?;
        }
        if let Some(permissions) = &self.replaced
            && fs::symlink_metadata(&self.at).is_err()
        {
            fs::create_dir(&self.at)?;
            fs::set_permissions(&self.at, permissions.clone())?;
        }
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            warn!(path = %self.at.display(), %error, "the link for the command cannot be removed");
        }
    }
}

/// A fixed path is not the root, so it has a parent.
fn parent(at: &Path) -> &Path {
    at.parent().unwrap_or(at)
}

fn not_writable(at: &Path, error: &io::Error) -> String {
    format!("{error}: mount a writable volume, such as an emptyDir, at {}", parent(at).display())
}

/// Removes an empty directory, whose permissions it returns, or a link that a killed leasehold left.
/// Everything else is an error.
fn make_room(at: &Path) -> Result<Option<Permissions>, String> {
    let found = match fs::symlink_metadata(at) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if found.is_dir() {
        return match fs::remove_dir(at) {
            Ok(()) => Ok(Some(found.permissions())),
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                Err("the directory is not empty: choose a path that does not exist yet".to_owned())
            }
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => Err(format!(
                "it is a mount point, which a link cannot replace: mount the volume at {}",
                parent(at).display()
            )),
            Err(error) => {
                Err(format!("the empty directory cannot be replaced: {}", not_writable(at, &error)))
            }
        };
    }
    if found.is_symlink() && fs::read_link(at).is_ok_and(|to| is_in_workspace(&to)) {
        return fs::remove_file(at).map(|()| None).map_err(|error| error.to_string());
    }
    Err("it exists already: choose a path that does not exist yet".to_owned())
}

/// `…/leasehold-KAl1pM/input/NAME` or `…/leasehold-KAl1pM/output`.
fn is_in_workspace(target: &Path) -> bool {
    let Some(folder) = target.parent() else { return false };
    let root = if folder.ends_with("input") {
        folder.parent()
    } else {
        target.ends_with("output").then_some(folder)
    };
    let name = root.and_then(Path::file_name).and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix("leasehold-")).is_some_and(|random| random.len() == 6)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn error(at: &Path) -> String {
        Link::create(at, Path::new("/w/leasehold-KAl1pM/output")).unwrap_err()
    }

    #[test]
    fn a_link_exists_while_the_command_runs() {
        let room = tempfile::tempdir().unwrap();
        let at = room.path().join("opt/ml/input");
        let to = room.path().join("data");
        fs::write(&to, "1").unwrap();
        let link = Link::create(&at, &to).unwrap();
        assert_eq!(fs::read_to_string(&at).unwrap(), "1");
        drop(link);
        assert!(fs::symlink_metadata(&at).is_err() && at.parent().unwrap().is_dir());
        assert_eq!(fs::read_to_string(&to).unwrap(), "1");
    }

    #[test]
    fn an_empty_directory_is_restored_with_its_permissions() {
        let room = tempfile::tempdir().unwrap();
        let at = room.path().join("output");
        fs::create_dir(&at).unwrap();
        fs::set_permissions(&at, Permissions::from_mode(0o711)).unwrap();
        let link = Link::create(&at, Path::new("/nowhere")).unwrap();
        assert!(fs::symlink_metadata(&at).unwrap().is_symlink());
        drop(link);
        let found = fs::symlink_metadata(&at).unwrap();
        assert!(found.is_dir() && found.permissions().mode() & 0o777 == 0o711);
    }

    #[test]
    fn existing_files_are_refused_and_kept() {
        let room = tempfile::tempdir().unwrap();
        let at = room.path().join("data");
        fs::write(&at, "image").unwrap();
        assert!(error(&at).contains("exists already"));
        assert_eq!(fs::read_to_string(&at).unwrap(), "image");
        assert!(error(room.path()).contains("not empty"));
        let link = room.path().join("link");
        symlink("data", &link).unwrap();
        assert!(error(&link).contains("exists already"), "a link of the image");
        assert!(error(&at.join("below/a/file")).contains("mount a writable volume"));
    }

    #[test]
    fn a_link_of_a_killed_run_is_replaced() {
        let room = tempfile::tempdir().unwrap();
        let at = room.path().join("x");
        for stale in ["/w/leasehold-KAl1pM/output", "/w/leasehold-KAl1pM/input/a.csv"] {
            symlink(stale, &at).unwrap();
            drop(Link::create(&at, Path::new("/w/leasehold-000000/output")).unwrap());
            assert!(fs::symlink_metadata(&at).is_err(), "{stale}");
        }
        for foreign in ["/data/leasehold-output", "/w/leasehold-KAl1pM/tmp", "output", "/"] {
            assert!(!is_in_workspace(Path::new(foreign)), "{foreign}");
        }
    }

    #[test]
    fn a_replaced_link_is_noticed_and_kept() {
        let room = tempfile::tempdir().unwrap();
        let at = room.path().join("output");
        let links = |link| FixedPaths { _input: None, output: Some(link) };
        let links = links(Link::create(&at, room.path()).unwrap());
        assert_eq!(links.check_output(), Ok(()));
        fs::remove_file(&at).unwrap();
        fs::create_dir(&at).unwrap();
        assert!(links.check_output().unwrap_err().contains("replaced this link"));
        drop(links);
        assert!(at.is_dir());
    }
}
