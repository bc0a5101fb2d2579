//! A folder as a bucket: the input of `leasehold local`.
//!
//! The events are real S3 notifications, so that a local run uses the same parser as a pod.

use std::fs::Metadata;
use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures_util::StreamExt;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;
use tracing::info;
use walkdir::{DirEntry, WalkDir};

use super::store::FolderStore;
use crate::job::notification::Object;
use crate::job::on_success::{ActedOn, OnSuccess};
use crate::job::s3_location::is_bucket_name;
use crate::ports::{FetchError, ObjectBody, ObjectStore, RangeBody};

/// A folder, or one file of it, as a bucket. An object's key is its path below the folder, with `/`
/// between the names.
#[derive(Debug, Clone)]
pub struct Folder {
    /// Canonical.
    root: PathBuf,
    /// The only object, if the input is one file. Canonical.
    only: Option<PathBuf>,
    bucket: String,
    /// In place of the buckets to which files are moved (`--on-success move`).
    moved: Option<FolderStore>,
}

/// The contents of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Sorted by key.
    pub files: Vec<Listed>,
    /// How many hidden files or folders, links and pipes were skipped.
    pub skipped: usize,
}

/// A file of the folder, as an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub object: Object,
    pub modified: SystemTime,
}

/// Why the folder cannot be used as a bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FolderError(pub String);

impl Folder {
    /// The bucket's name is derived from the folder's.
    pub fn new(root: &Path) -> Result<Self, FolderError> {
        let failed =
            |why: &dyn std::fmt::Display| FolderError(format!("{}: {why}", root.display()));
        let path = root.canonicalize().map_err(|error| failed(&error))?;
        let (root, only) = if path.is_file() {
            (path.parent().unwrap_or(&path).to_owned(), Some(path))
        } else if path.is_dir() {
            (path, None)
        } else {
            return Err(failed(&"it is neither a folder nor a file"));
        };
        let bucket = bucket_name(&root.file_name().unwrap_or_default().to_string_lossy());
        Ok(Self { root, only, bucket, moved: None })
    }

    #[must_use]
    pub fn with_moved(self, moved: Option<FolderStore>) -> Self {
        Self { moved, ..self }
    }

    /// Lists all regular files, without files and folders whose names start with a dot. Blocks.
    pub fn list(&self) -> Result<Listing, FolderError> {
        let (mut files, mut skipped) = (Vec::new(), 0);
        let mut walk = WalkDir::new(self.only.as_ref().unwrap_or(&self.root)).into_iter();
        while let Some(entry) = walk.next() {
            let entry = entry.map_err(|error| FolderError(error.to_string()))?;
            let is_hidden =
                entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".");
            if is_hidden && entry.file_type().is_dir() {
                walk.skip_current_dir();
            }
            if entry.file_type().is_file() && !is_hidden {
                files.push(self.listed(&entry)?);
            } else if is_hidden || !entry.file_type().is_dir() {
                skipped += 1;
            }
        }
        files.sort_by(|a, b| a.object.key.cmp(&b.object.key));
        Ok(Listing { files, skipped })
    }

    /// Refuses a folder of `flag`, for results or state, from which the next run would read files as input. It need
    /// not exist yet.
    pub fn check_outside(&self, flag: &str, folder: &Path) -> Result<(), FolderError> {
        let failed = |why: String| FolderError(format!("{flag} {}: {why}", folder.display()));
        let absolute = std::path::absolute(folder).map_err(|error| failed(error.to_string()))?;
        let mut existing = absolute
            .ancestors()
            .filter_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
        let (ancestor, canonical) =
            existing.next().ok_or_else(|| failed("no such folder".to_owned()))?;
        let to_create = absolute.strip_prefix(ancestor).expect("an ancestor is a prefix");
        if to_create.components().any(|name| name == Component::ParentDir) {
            return Err(failed("it contains .. after a folder that does not exist".to_owned()));
        }
        let folder = canonical.join(to_create);
        let root = self.root.display();
        let is_hidden = |path: &Path| {
            path.components().any(|name| name.as_os_str().as_encoded_bytes().starts_with(b"."))
        };
        match &self.only {
            Some(file) if flag == OUTBOX && folder == self.root => Err(failed(format!(
                "the folder for its results would be {}, the input file itself",
                file.display()
            ))),
            None if folder == self.root => {
                Err(failed("it is the inbox itself: choose another folder".to_owned()))
            }
            None => match folder.strip_prefix(&self.root) {
                Ok(below) if !is_hidden(below) => Err(failed(format!(
                    "it is inside the inbox {root}, so the next run would process its files: set {flag} to another folder"
                ))),
                Ok(_) | Err(_) => Ok(()),
            },
            Some(_) => Ok(()),
        }
    }

    fn listed(&self, entry: &DirEntry) -> Result<Listed, FolderError> {
        let failed = |why: String| FolderError(format!("{}: {why}", entry.path().display()));
        let below = entry.path().strip_prefix(&self.root).expect("a walk stays below its root");
        let key = below
            .to_str()
            .ok_or_else(|| failed("the name is not UTF-8, so it cannot be a key".into()))?;
        let metadata = entry.metadata().map_err(|error| failed(error.to_string()))?;
        let modified = metadata.modified().map_err(|error| failed(error.to_string()))?;
        let object = Object {
            bucket: self.bucket.clone(),
            key: key.to_owned(),
            version_id: None,
            etag: Some(etag(&metadata)),
            size: Some(metadata.len()),
            sequencer: Some(format!("{:018X}", nanoseconds(modified))),
            is_from_aws: false,
        };
        Ok(Listed { object, modified })
    }
}

impl Listed {
    /// The event that S3 sends when the object is created (AWS, "Event message structure").
    pub fn notification(&self) -> String {
        let object = &self.object;
        json!({ "Records": [{
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "awsRegion": "local",
            "eventTime": humantime::format_rfc3339_millis(self.modified).to_string(),
            "eventName": "ObjectCreated:Put",
            "userIdentity": { "principalId": "leasehold" },
            "requestParameters": { "sourceIPAddress": "127.0.0.1" },
            "responseElements": {},
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": "leasehold-local",
                "bucket": {
                    "name": object.bucket,
                    "ownerIdentity": { "principalId": "leasehold" },
                    "arn": format!("arn:aws:s3:::{}", object.bucket),
                },
                "object": {
                    "key": form_urlencoded(&object.key),
                    "size": object.size,
                    "eTag": object.etag,
                    "sequencer": object.sequencer,
                },
            },
        }] })
        .to_string()
    }
}

#[async_trait]
impl ObjectStore for Folder {
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError> {
        let (file, size, etag) = self.file(object).await?;
        Ok(ObjectBody {
            size: Some(size),
            etag: Some(etag),
            checksum: None,
            bytes: ReaderStream::with_capacity(file, CHUNK).boxed(),
        })
    }

    async fn open_range(
        &self,
        object: &Object,
        range: Range<u64>,
    ) -> Result<RangeBody, FetchError> {
        let (mut file, size, _) = self.file(object).await?;
        let retryable =
            |error: io::Error| FetchError::Retryable(format!("{}: {error}", object.key));
        file.seek(io::SeekFrom::Start(range.start)).await.map_err(retryable)?;
        let bytes = ReaderStream::with_capacity(file.take(range.end - range.start), CHUNK).boxed();
        Ok(RangeBody { start: range.start, size: Some(size), bytes })
    }

    async fn act_on(&self, object: &Object, action: &OnSuccess) -> Result<ActedOn, String> {
        match self.file(object).await {
            Ok(_) => {}
            Err(FetchError::Missing(_)) => return Ok(ActedOn::Missing),
            Err(FetchError::Overwritten(_)) => return Ok(ActedOn::Overwritten),
            Err(error) => return Err(error.to_string()),
        }
        let path = below(&self.root, &object.key).ok_or(NO_PATH)?;
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        match action {
            OnSuccess::Tag { .. } => {
                info!(%action, "a file has no tags");
                return Ok(ActedOn::Object);
            }
            OnSuccess::Move(to) => {
                let moved = self.moved.as_ref().ok_or("there is no folder to move it to")?;
                moved.copy_file(&to.bucket, &to.key(&object.key), &path).await.map_err(failed)?;
            }
            OnSuccess::Delete => {}
        }
        tokio::fs::remove_file(&path).await.map_err(failed)?;
        Ok(ActedOn::Object)
    }
}

impl Folder {
    /// Opens the file; returns it with its size and its etag.
    async fn file(&self, object: &Object) -> Result<(File, u64, String), FetchError> {
        let retryable = |error: io::Error| {
            let why = format!("{}: {error}", object.key);
            if error.kind() == io::ErrorKind::NotFound {
                FetchError::Missing(why)
            } else {
                FetchError::Retryable(why)
            }
        };
        let permanent = |why: &str| FetchError::Permanent(format!("{}: {why}", object.key));
        let path = below(&self.root, &object.key).ok_or_else(|| permanent(NO_PATH))?;
        // Resolves symbolic links, which may lead out of the folder.
        let path = tokio::fs::canonicalize(path).await.map_err(retryable)?;
        if !path.starts_with(&self.root) {
            return Err(permanent("it is outside the folder"));
        }
        let file = File::open(path).await.map_err(retryable)?;
        let metadata = file.metadata().await.map_err(retryable)?;
        if !metadata.is_file() {
            return Err(permanent("not a file"));
        }
        let etag = etag(&metadata);
        if object.etag.as_ref().is_some_and(|expected| *expected != etag) {
            return Err(FetchError::Overwritten(format!(
                "{}: it was overwritten since the inbox was read",
                object.key
            )));
        }
        Ok((file, metadata.len(), etag))
    }
}

/// In bytes.
/// The flag whose folder gets one for the results of each input file.
pub const OUTBOX: &str = "--outbox";

const CHUNK: usize = 256 * 1024;

/// A file below a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Its path below the folder, with `/` between the names.
    pub name: String,
    pub bytes: u64,
}

/// All files below a folder, sorted by name. Links and pipes are errors: a link may lead anywhere,
/// and a pipe has no end. Blocks.
pub fn files_below(folder: &Path) -> io::Result<Vec<ListedFile>> {
    let mut files = Vec::new();
    for entry in WalkDir::new(folder) {
        let entry = entry?;
        let failed = |why: &str| io::Error::other(format!("{}: {why}", entry.path().display()));
        if entry.file_type().is_file() {
            let name = entry.path().strip_prefix(folder).expect("a walk stays below its root");
            let name = name.to_str().ok_or_else(|| failed("its name is not UTF-8"))?.to_owned();
            files.push(ListedFile { name, bytes: entry.metadata()?.len() });
        } else if !entry.file_type().is_dir() {
            return Err(failed("it is neither a file nor a folder"));
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

pub(super) const NO_PATH: &str =
    "a part of the key is empty, `.` or `..`, so it is not a path in the folder";

/// The path of `key` below `root`; `None` if it would lead out of `root`, or to the same file as
/// another key.
pub(super) fn below(root: &Path, key: &str) -> Option<PathBuf> {
    let plain = key.split('/').all(|name| !matches!(name, "" | "." | ".."));
    plain.then(|| root.join(key))
}

/// Changes with the file's size and modification time.
fn etag(metadata: &Metadata) -> String {
    format!("{:x}-{:x}", metadata.len(), metadata.modified().map_or(0, nanoseconds))
}

/// Since 1970.
fn nanoseconds(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}

/// Encodes a key as S3 does in its events.
fn form_urlencoded(key: &str) -> String {
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'/')
        .remove(b' ')
        .remove(b'.')
        .remove(b'-')
        .remove(b'*')
        .remove(b'_');
    utf8_percent_encode(key, ENCODED).to_string().replace(' ', "+")
}

/// A folder may have any name, but a bucket may not.
fn bucket_name(folder: &str) -> String {
    if is_bucket_name(folder) {
        return folder.to_owned();
    }
    let sound = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let name: String = folder.chars().map(sound).take(255).collect();
    if name.is_empty() { "root".to_owned() } else { name }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use futures_util::TryStreamExt;

    use super::*;
    pub(in super::super) fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    pub(in super::super) fn object(key: &str) -> Object {
        Object::named("b", key)
    }

    async fn content(folder: &Folder, object: &Object) -> Result<String, FetchError> {
        let chunks: Vec<_> = folder.open(object).await?.bytes.try_collect().await.unwrap();
        Ok(String::from_utf8(chunks.concat()).unwrap())
    }

    #[test]
    fn a_bucket_name_is_derived_from_its_folder() {
        for (folder, bucket) in [
            ("inbox", "inbox"),
            ("My Files", "My-Files"),
            ("ü", "-"),
            ("a%20b", "a-20b"),
            (".hidden", "-hidden"),
            ("..", "--"),
            ("arn:aws:s3:::x", "arn-aws-s3---x"),
            ("", "root"),
        ] {
            assert_eq!(bucket_name(folder), bucket, "{folder}");
            assert!(is_bucket_name(&bucket_name(folder)), "{folder}");
        }
    }

    #[tokio::test]
    async fn a_folder_lists_its_visible_files_by_key_and_opens_each() {
        let root = folder_with(&[
            ("b/c.txt", "c"),
            ("b-a.txt", "ab"),
            (".hidden", ""),
            (".git/config", ""),
            ("z", ""),
        ]);
        std::os::unix::fs::symlink(root.path().join("z"), root.path().join("link")).unwrap();
        let folder = Folder::new(root.path()).unwrap();
        let Listing { files: listed, skipped } = folder.list().unwrap();
        let keys: Vec<_> =
            listed.iter().map(|file| (file.object.key.as_str(), file.object.size)).collect();
        assert_eq!(keys, [("b-a.txt", Some(2)), ("b/c.txt", Some(1)), ("z", Some(0))]);
        assert_eq!(skipped, 3, "a hidden file, a hidden folder and a link");
        assert_eq!(content(&folder, &listed[1].object).await.as_deref(), Ok("c"));
        let part: Vec<_> = folder
            .open_range(&listed[0].object, 1..2)
            .await
            .unwrap()
            .bytes
            .try_collect()
            .await
            .unwrap();
        assert_eq!(part.concat(), b"b");
    }

    #[tokio::test]
    async fn one_file_can_be_the_input() {
        let root = folder_with(&[("in/a.txt", "a"), ("in/b.txt", "b"), ("in/.env", "e")]);
        for (name, text) in [("a.txt", "a"), (".env", "e")] {
            let folder = Folder::new(&root.path().join("in").join(name)).unwrap();
            let Listing { files, skipped } = folder.list().unwrap();
            assert_eq!((files.len(), skipped, files[0].object.bucket.as_str()), (1, 0, "in"));
            assert_eq!(content(&folder, &files[0].object).await.as_deref(), Ok(text));
        }
        let pipe = Folder::new(Path::new("/dev/null")).unwrap_err();
        assert!(pipe.to_string().contains("neither a folder nor a file"), "{pipe}");
    }

    #[test]
    fn a_folder_in_the_inbox_is_refused_unless_the_listing_skips_it() {
        let root = folder_with(&[("in/a.txt", ""), ("in/below/b.txt", ""), ("inbox-2/c", "")]);
        std::os::unix::fs::symlink(root.path().join("in"), root.path().join("link")).unwrap();
        let place = |name: &str| root.path().join(name);
        let answer = |inbox: &str, outbox: &str| {
            Folder::new(&place(inbox))
                .unwrap()
                .check_outside(OUTBOX, &place(outbox))
                .map_err(|why| why.to_string())
        };
        for outbox in ["in", "in/new", "in/below/new/er", "link", "link/new", "inbox-2/../in"] {
            assert!(answer("in", outbox).unwrap_err().contains("inbox"), "{outbox}");
        }
        assert!(answer("in", "out/../in").unwrap_err().contains(".."));
        for outbox in ["out", "out/new", "inbox-2", "", "in/.hidden", "in/.hidden/new"] {
            assert_eq!(answer("in", outbox), Ok(()), "{outbox}");
        }
        assert!(answer("in/a.txt", "in").unwrap_err().contains("a.txt"));
        assert_eq!(answer("in/a.txt", "in/results"), Ok(()));
    }

    #[test]
    fn a_name_that_is_not_utf8_is_an_error() {
        use std::os::unix::ffi::OsStrExt;
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.txt")), "").unwrap();
        let error = Folder::new(root.path()).unwrap().list().unwrap_err().to_string();
        assert!(error.contains("caf") && error.contains("not UTF-8"), "{error}");
    }

    #[test]
    fn a_notification_has_the_fields_of_s3() {
        let root = folder_with(&[("in/a b+c.txt", "four")]);
        let listed = Folder::new(root.path()).unwrap().list().unwrap().files.remove(0);
        let body: serde_json::Value = serde_json::from_str(&listed.notification()).unwrap();
        let record = &body["Records"][0];
        assert_eq!(record["eventVersion"], "2.1");
        assert_eq!(record["eventName"], "ObjectCreated:Put");
        assert_eq!(record["s3"]["bucket"]["name"], listed.object.bucket);
        assert_eq!(record["s3"]["object"]["key"], "in/a+b%2Bc.txt");
        assert_eq!(record["s3"]["object"]["size"], 4);
        assert_eq!(record["s3"]["object"]["eTag"], listed.object.etag.unwrap());
    }

    #[test]
    fn a_key_is_encoded_as_s3_encodes_it() {
        assert_eq!(form_urlencoded("a b/ü_(1)~x:%.tar-*"), "a+b/%C3%BC_%281%29%7Ex%3A%25.tar-*");
    }

    #[tokio::test]
    async fn no_key_leads_out_of_the_folder() {
        let outside = folder_with(&[("secret", "s"), ("in/a", "a")]);
        std::os::unix::fs::symlink(outside.path().join("secret"), outside.path().join("in/link"))
            .unwrap();
        let folder = Folder::new(&outside.path().join("in")).unwrap();
        let absolute = outside.path().join("secret").display().to_string();
        for key in ["../secret", "x/../../secret", &absolute, "link", "", "a/"] {
            let answer = content(&folder, &object(key)).await;
            assert!(matches!(answer, Err(FetchError::Permanent(_))), "{key:?}: {answer:?}");
        }
        assert!(matches!(content(&folder, &object("missing")).await, Err(FetchError::Missing(_))));
    }

    #[tokio::test]
    async fn a_file_that_changed_since_its_event_is_refused() {
        let root = folder_with(&[("a", "old")]);
        let folder = Folder::new(root.path()).unwrap();
        let listed = folder.list().unwrap().files.remove(0);
        fs::write(root.path().join("a"), "newer").unwrap();
        assert!(matches!(content(&folder, &listed.object).await, Err(FetchError::Overwritten(_))));
    }
}
