//! A folder for results.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::folder::{NO_PATH, below, files_below};
use crate::job::outcome::{Manifest, Published};
use crate::ports::{Outbox, PublishError, Results};

/// A folder for results, with a subfolder for each object, named by its key.
///
/// The results of an object appear atomically and replace earlier ones. Leftovers of a crash are in
/// folders whose names start with `.leasehold-`.
#[derive(Debug, Clone)]
pub struct FolderOutbox {
    root: PathBuf,
}

impl FolderOutbox {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
}

#[async_trait]
impl Outbox for FolderOutbox {
    async fn publish(
        &self,
        results: &Results<'_>,
        halt: &CancellationToken,
    ) -> Result<Manifest, PublishError> {
        let key = results.object.map_or(results.message_id.as_str(), |object| &object.key);
        let failed = |why: String| PublishError(format!("{key}: {why}"));
        let target = below(&self.root, key).ok_or_else(|| failed(NO_PATH.into()))?;
        let directory = results.directory.to_owned();
        // If this future is dropped, the caller may remove the directory, so nothing may be
        // published from then on.
        let given_up = CancellationToken::new();
        let _on_drop = given_up.clone().drop_guard();
        let published =
            tokio::task::spawn_blocking(move || replace(&target, &directory, &given_up));
        let published =
            halt.run_until_cancelled(published).await.ok_or_else(|| failed("halted".into()))?;
        published
            .map_err(io::Error::from)
            .and_then(|done| done)
            .map_err(|error| failed(error.to_string()))
    }
}

/// Replaces `target` by a copy of `directory`.
fn replace(target: &Path, directory: &Path, given_up: &CancellationToken) -> io::Result<Manifest> {
    let parent = target.parent().expect("a target is below its root");
    fs::create_dir_all(parent)?;
    let workshop = tempfile::Builder::new().prefix(".leasehold-").tempdir_in(parent)?;
    let (new, old) = (workshop.path().join("new"), workshop.path().join("old"));
    let mut manifest = Manifest::default();
    fs::create_dir(&new)?;
    for file in files_below(directory)? {
        let (from, to) = (directory.join(&file.name), new.join(&file.name));
        fs::create_dir_all(to.parent().expect("it is below the new folder"))?;
        let bytes = fs::copy(from, to)?;
        let to = target.join(&file.name).display().to_string();
        manifest.add(Published { to, bytes, checksum: None, etag: None });
    }
    if given_up.is_cancelled() {
        return Err(io::Error::other("cancelled"));
    }
    match fs::symlink_metadata(target) {
        Ok(earlier) if earlier.is_dir() => fs::rename(target, &old)?,
        Ok(_) => {
            return Err(io::Error::other(format!(
                "{} exists and is not a folder",
                target.display()
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::rename(&new, target).inspect_err(|_| {
        // The earlier result is better than none; the caller gets the first error.
        let _ = fs::rename(&old, target);
    })?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use walkdir::WalkDir;

    use super::super::folder::tests::{folder_with, object};
    use super::*;
    use crate::job::delivery::MessageId;
    use crate::job::object_attributes::ObjectAttributes;

    /// All files in the folder, hidden or not, with their contents.
    fn tree(root: &Path) -> Vec<String> {
        let files = WalkDir::new(root).sort_by_file_name().into_iter().map(Result::unwrap);
        let files = files.filter(|entry| entry.file_type().is_file());
        files
            .map(|file| {
                let name = file.path().strip_prefix(root).unwrap().display();
                format!("{name}: {}", fs::read_to_string(file.path()).unwrap())
            })
            .collect()
    }

    async fn publish(
        outbox: &FolderOutbox,
        key: &str,
        directory: &Path,
    ) -> Result<Manifest, PublishError> {
        let (object, message_id) = (object(key), MessageId::new("m"));
        let results = Results {
            object: Some(&object),
            message_id: &message_id,
            job_type: "default",
            to: None,
            attributes: &ObjectAttributes::default(),
            directory,
        };
        outbox.publish(&results, &CancellationToken::new()).await
    }

    #[tokio::test]
    async fn a_result_replaces_the_whole_earlier_one() {
        let out = tempfile::tempdir().unwrap();
        let outbox = FolderOutbox::new(out.path().join("results"));
        let (first, second) =
            (folder_with(&[("x", "1"), ("only/first", "1")]), folder_with(&[("x", "2")]));
        publish(&outbox, "in/a.txt", first.path()).await.unwrap();
        assert_eq!(tree(out.path()), ["results/in/a.txt/only/first: 1", "results/in/a.txt/x: 1"]);
        publish(&outbox, "in/a.txt", second.path()).await.unwrap();
        assert_eq!(tree(out.path()), ["results/in/a.txt/x: 2"]);
    }

    #[tokio::test]
    async fn a_result_that_cannot_be_copied_does_not_replace_the_earlier_one() {
        let out = tempfile::tempdir().unwrap();
        let outbox = FolderOutbox::new(out.path());
        let (first, second) = (folder_with(&[("x", "1")]), folder_with(&[("x", "2")]));
        std::os::unix::fs::symlink("x", second.path().join("z")).unwrap();
        publish(&outbox, "a", first.path()).await.unwrap();
        publish(&outbox, "a", second.path()).await.unwrap_err();
        assert_eq!(tree(out.path()), ["a/x: 1"]);
    }

    #[tokio::test]
    async fn nothing_is_published_outside_or_over_a_file() {
        let out = folder_with(&[("a.txt", "input"), ("results/kept", "")]);
        let result = folder_with(&[("x", "1")]);
        let before = tree(out.path());
        for (root, key) in
            [("results", "../a"), ("results", "/a"), ("results", "a//b"), ("", "a.txt")]
        {
            let outbox = FolderOutbox::new(out.path().join(root));
            publish(&outbox, key, result.path()).await.unwrap_err();
        }
        assert_eq!(tree(out.path()), before);
    }

    #[test]
    fn a_cancelled_result_is_not_published() {
        let out = tempfile::tempdir().unwrap();
        let given_up = CancellationToken::new();
        given_up.cancel();
        replace(&out.path().join("a"), folder_with(&[("x", "1")]).path(), &given_up).unwrap_err();
        assert_eq!(tree(out.path()), [""; 0]);
    }
}
