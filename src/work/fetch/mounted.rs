//! Objects of a mounted bucket, which need no download (`--input mount`).

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{FetchPolicy, check_bucket, judge};
use crate::job::mount::{self, Mount};
use crate::job::notification::Object;
use crate::job::outcome::Failure;
use crate::job::route::MissingObject;
use crate::ports::FetchError;

/// An object as a file of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedObject {
    pub key: String,
    /// In bytes.
    pub size: u64,
    pub path: PathBuf,
}

/// Finds the object below the mounts; `None` if it is gone, which is not an error. If it is missing
/// or differs from the event, tries `key_as_sent`, if given.
pub async fn find(
    policy: &FetchPolicy,
    missing: Option<MissingObject>,
    object: &Object,
    key_as_sent: Option<&str>,
) -> Result<Option<MountedObject>, Failure> {
    check_bucket(policy, object)?;
    let (mounts, object) = (policy.mounts.clone(), object.clone());
    let other = key_as_sent.map(|key| Object { key: key.to_owned(), ..object.clone() });
    // A mount is a network: an answer may take long.
    let looking = tokio::task::spawn_blocking(move || {
        let found = look(&mounts, &object);
        match (&found, other.filter(|other| other.size.is_some())) {
            (Err(FetchError::Missing(_) | FetchError::Overwritten(_)), Some(other)) => {
                look(&mounts, &other).or(found)
            }
            (Ok(_) | Err(_), _) => found,
        }
    });
    let found = looking.await.unwrap_or_else(|panic| Err(FetchError::Retryable(panic.to_string())));
    judge(missing, found)
}

/// A mount has only the newest version, and no eTag, so the size is all that can be compared.
fn look(mounts: &[Mount], object: &Object) -> Result<MountedObject, FetchError> {
    let (directory, path) = mount::find(mounts, object).map_err(FetchError::Permanent)?;
    let retryable =
        |error: io::Error| FetchError::Retryable(format!("{}: {error}", path.display()));
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(missing(directory, &path));
        }
        Err(error) if error.raw_os_error() == Some(Errno::ENAMETOOLONG as i32) => {
            return Err(FetchError::Permanent(format!("{}: {error}", path.display())));
        }
        Err(error) => return Err(retryable(error)),
    };
    // A symbolic link could lead out of the mount.
    let real = fs::canonicalize(&path).map_err(retryable)?;
    let root = fs::canonicalize(directory).map_err(retryable)?;
    if !real.starts_with(root) || !metadata.is_file() {
        let path = path.display();
        return Err(FetchError::Permanent(format!("{path} is not a regular file below the mount")));
    }
    // Some stores send a size of 0 for objects that are not empty.
    let expected = object.size.filter(|size| *size > 0 || object.is_from_aws);
    let size = metadata.len();
    if let Some(expected) = expected.filter(|expected| *expected != size) {
        let path = path.display();
        return Err(FetchError::Overwritten(format!(
            "{path} has {size} bytes, and the object of the event had {expected}"
        )));
    }
    Ok(MountedObject { key: object.key.clone(), size, path })
}

/// In an empty directory every object looks missing, and `--missing-object ignore` would delete
/// every message: then the volume is probably not mounted.
fn missing(directory: &Path, path: &Path) -> FetchError {
    match fs::read_dir(directory).map(|mut entries| entries.next().is_some()) {
        Ok(true) => FetchError::Missing(format!("{} does not exist", path.display())),
        Ok(false) => FetchError::Retryable(format!(
            "{} does not exist, and {} is empty: is the bucket mounted there?",
            path.display(),
            directory.display()
        )),
        Err(error) => FetchError::Retryable(format!("{}: {error}", directory.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn object(key: &str, size: Option<u64>) -> Object {
        Object { size, is_from_aws: true, ..Object::named("in", key) }
    }

    #[test]
    fn an_object_is_the_file_of_its_key_and_its_size() {
        let room = tempfile::tempdir().unwrap();
        let directory = room.path().join("in");
        fs::create_dir_all(directory.join("a")).unwrap();
        let mounts = [Mount { location: "s3://in".parse().unwrap(), directory: directory.clone() }];
        let look = |key: &str, size| look(&mounts, &object(key, size));
        assert!(matches!(look("a.csv", None), Err(FetchError::Missing(_))));
        fs::write(directory.join("a/b.csv"), "1,2").unwrap();
        assert_eq!(look("a/b.csv", Some(3)).unwrap().path, directory.join("a/b.csv"));
        assert_eq!(look("a/b.csv", None).unwrap().size, 3);
        assert!(matches!(look("a/b.csv", Some(4)), Err(FetchError::Overwritten(_))));
        assert!(matches!(look("a/b.csv", Some(0)), Err(FetchError::Overwritten(_))));
        assert!(matches!(look("a/b.csv/c", None), Err(FetchError::Missing(_))));
        assert!(matches!(look("a", None), Err(FetchError::Permanent(_))));
        fs::write(room.path().join("secret"), "x").unwrap();
        symlink(room.path().join("secret"), directory.join("link")).unwrap();
        symlink("a/b.csv", directory.join("inside")).unwrap();
        assert!(matches!(look("link", None), Err(FetchError::Permanent(_))));
        assert!(look("inside", Some(3)).is_ok());
    }

    #[test]
    fn an_object_is_not_missing_if_the_mount_is() {
        let room = tempfile::tempdir().unwrap();
        for directory in [room.path().to_owned(), room.path().join("nothing")] {
            let mounts = [Mount { location: "s3://in".parse().unwrap(), directory }];
            assert!(matches!(look(&mounts, &object("a", None)), Err(FetchError::Retryable(_))));
        }
    }
}
