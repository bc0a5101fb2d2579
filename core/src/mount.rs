//! Buckets that are mounted as directories (`--mount`).

use std::fmt;
use std::path::{Path, PathBuf};

use super::notification::Object;
use super::s3_location::S3Location;

/// A directory with the objects of a location: the object `PREFIX/a/b` is its file `a/b`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub location: S3Location,
    pub directory: PathBuf,
}

impl Mount {
    /// The key below the location, if the object is there.
    fn key_below<'a>(&self, object: &'a Object) -> Option<&'a str> {
        let S3Location { bucket, prefix } = &self.location;
        let key = Some(object.key.as_str()).filter(|_| *bucket == object.bucket)?;
        if prefix.is_empty() { Some(key) } else { key.strip_prefix(prefix)?.strip_prefix('/') }
    }
}

/// As in the flag.
impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let S3Location { bucket, prefix } = &self.location;
        let slash = if prefix.is_empty() { "" } else { "/" };
        write!(f, "s3://{bucket}{slash}{prefix}={}", self.directory.display())
    }
}

/// The directory of the longest location that has the object, and the object's path below it. The
/// error is the reason why the object can have no path.
pub fn find<'a>(mounts: &'a [Mount], object: &Object) -> Result<(&'a Path, PathBuf), String> {
    let covering = mounts.iter().filter_map(|mount| Some((mount, mount.key_below(object)?)));
    let Some((mount, key)) = covering.min_by_key(|(_, key)| key.len()) else {
        return Err(format!("no --mount has s3://{}/{}", object.bucket, object.key));
    };
    // Nothing that a file system would resolve: a key is text, and may come from an attacker.
    let is_name = |part: &str| {
        !["", ".", ".."].contains(&part) && !part.contains('\0') && part.len() <= LONGEST_NAME
    };
    if !key.split('/').all(is_name) {
        return Err(format!(
            "s3://{}/{} cannot be a file below a mount: a part of its key is empty, . or .., contains a NUL character, or is \
             longer than {LONGEST_NAME} bytes",
            object.bucket, object.key
        ));
    }
    Ok((&mount.directory, mount.directory.join(key)))
}

/// `NAME_MAX` of Linux, in bytes.
const LONGEST_NAME: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts() -> Vec<Mount> {
        [("s3://in", "/in"), ("s3://in/raw", "/raw"), ("s3://in/raw/big", "/big")]
            .map(|(location, directory)| Mount {
                location: location.parse().unwrap(),
                directory: directory.into(),
            })
            .to_vec()
    }

    fn path(bucket: &str, key: &str) -> Result<PathBuf, String> {
        let object = Object { is_from_aws: true, ..Object::named(bucket, key) };
        find(&mounts(), &object).map(|(_, path)| path)
    }

    #[test]
    fn the_longest_location_has_the_object() {
        for (key, at) in [
            ("a/b.csv", "/in/a/b.csv"),
            ("raw/b.csv", "/raw/b.csv"),
            ("raw/big/b", "/big/b"),
            ("rawer/b", "/in/rawer/b"),
            ("raw", "/in/raw"),
            ("ü b/..c", "/in/ü b/..c"),
        ] {
            assert_eq!(path("in", key), Ok(at.into()), "{key}");
        }
        assert_eq!(path("other", "k").unwrap_err(), "no --mount has s3://other/k");
    }

    #[test]
    fn no_key_leaves_the_mount() {
        let long = "x".repeat(LONGEST_NAME + 1);
        for key in [
            "../etc/passwd",
            "a/../../b",
            "..",
            ".",
            "a/./b",
            "/etc/passwd",
            "raw//etc/passwd",
            "a//b",
            "folder/",
            "",
            "a\0b",
            &long,
        ] {
            assert!(
                path("in", key).unwrap_err().contains("cannot be a file below a mount"),
                "{key}"
            );
        }
    }

    #[test]
    fn a_mount_is_written_as_in_the_flag() {
        let texts: Vec<_> = mounts().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["s3://in=/in", "s3://in/raw=/raw", "s3://in/raw/big=/big"]);
    }
}
