//! The format that pack and unpack share.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};
use std::time::SystemTime;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::ports::causes;

/// The first entry of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveInfo {
    pub(super) version: u32,
    /// Run time of all deliveries so far, in seconds.
    pub worked_s: u64,
}

impl ArchiveInfo {
    pub fn new(worked_s: u64) -> Self {
        Self { version: VERSION, worked_s }
    }
}

/// The result of packing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Its length.
    pub bytes: u64,
    /// The number of links that were not saved, because they point out of the directory.
    pub links_left_out: u64,
}

/// The result of unpacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    pub info: ArchiveInfo,
    /// The number of links that were not restored, because they point out of the directory.
    pub links_left_out: u64,
}

/// Identifies a directory, to detect that another one replaced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    /// Needed because inodes are reused.
    created: Option<SystemTime>,
}

impl Identity {
    /// The error is the reason if it is not a directory.
    pub fn of(directory: &Path) -> Result<Self, String> {
        let metadata = fs::symlink_metadata(directory).map_err(|error| {
            let is_gone = error.kind() == io::ErrorKind::NotFound;
            if is_gone { "it was removed".to_owned() } else { why(&error) }
        })?;
        if !metadata.is_dir() {
            return Err("it is no longer a directory".to_owned());
        }
        Ok(Self { device: metadata.dev(), inode: metadata.ino(), created: metadata.created().ok() })
    }
}

/// Does a link at `name` point below the directory, also through other links that passed this
/// check?
///
/// `..` is allowed only at the beginning, where it leads from a real directory to its parent: after
/// a name that is a link, it would lead to the parent of the link's target.
pub(super) fn stays_inside(name: &Path, target: &Path) -> bool {
    let mut depth = name.components().count().saturating_sub(1);
    let mut target = target.components().skip_while(|part| *part == Component::CurDir).peekable();
    while target.next_if_eq(&Component::ParentDir).is_some() {
        let Some(above) = depth.checked_sub(1) else { return false };
        depth = above;
    }
    target.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The operating system's error text; those of the libraries quote names.
pub(super) fn why(error: &io::Error) -> String {
    let code =
        causes::chain(error).find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    code.map_or_else(
        || error.kind().to_string(),
        |code| io::Error::from_raw_os_error(code).to_string(),
    )
}

pub(super) const VERSION: u32 = 1;

/// The names in an archive.
pub(super) const INFO_FILE: &str = "leasehold.json";
pub(super) const DATA: &str = "data";

pub const OUT_OF_TIME: &str = "it could not be written completely in time";
pub(super) const TRUNCATED: &str = "its end is missing";
pub(super) const NOT_AN_ARCHIVE: &str = "it is not an archive that leasehold wrote";
pub(super) const POINTS_OUTSIDE: &str = "may point out of JOB_CHECKPOINT_DIR";

/// SQS keeps a message for 14 days at most; in seconds.
pub(super) const MAX_WORKED: u64 = 14 * 24 * 60 * 60;

pub(super) const MAX_ENTRIES: usize = 1_000_000;

/// The most bytes between the data of two files, including long names and the map of a sparse file.
pub(super) const MAX_HEADER: u64 = 8 << 20;

/// The most parts of a sparse file: their map must fit the header limit.
pub(super) const MAX_PARTS: usize = 100_000;

pub(super) const MAX_INFO: u64 = 4096;

/// The unit of `st_blocks` (stat(2)), and of an archive.
pub(super) const BLOCK: u64 = 512;

/// How many bytes are written between two checks of the free space.
pub(super) const CHECK_EVERY: u64 = 64 << 20;

pub(super) const BUFFER: usize = 256 << 10;
