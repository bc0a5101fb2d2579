//! What pack and unpack agree on.

use std::error::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};
use std::time::SystemTime;
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// The first entry of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub(super) version: u32,
    /// By all deliveries until then, in seconds.
    pub worked_s: u64,
}

impl About {
    pub fn new(worked_s: u64) -> Self {
        Self { version: VERSION, worked_s }
    }
}

/// An archive that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Its length.
    pub bytes: u64,
    /// How many links are not in it, because they lead out of the directory.
    pub links_left_out: u64,
}

/// An archive that was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    pub about: About,
    /// How many links were not restored, because they lead out of the directory.
    pub links_left_out: u64,
}

/// Tells a directory from another one that was put in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    /// Inodes are used again.
    created: Option<SystemTime>,
}

impl Identity {
    /// The error says what is there instead of a directory.
    pub fn of(directory: &Path) -> Result<Self, String> {
        let metadata = fs::symlink_metadata(directory).map_err(|error| {
            let is_gone = error.kind() == io::ErrorKind::NotFound;
            if is_gone { "it was removed".to_owned() } else { why(&error) }
        })?;
        if !metadata.is_dir() {
            return Err("it is not a directory any more".to_owned());
        }
        Ok(Self { device: metadata.dev(), inode: metadata.ino(), created: metadata.created().ok() })
    }
}

/// Does a link at `name` lead to a place below the directory, whatever other links like this one
/// are on its way?
///
/// `..` only comes first, where it leads from one real directory to the one above: behind a name it
/// would lead from wherever that name leads.
pub(super) fn stays_inside(name: &Path, target: &Path) -> bool {
    let mut depth = name.components().count().saturating_sub(1);
    let mut target = target.components().skip_while(|part| *part == Component::CurDir).peekable();
    while target.next_if_eq(&Component::ParentDir).is_some() {
        let Some(above) = depth.checked_sub(1) else { return false };
        depth = above;
    }
    target.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Why it failed, by the system's own words: those of the libraries quote names.
pub(super) fn why(error: &io::Error) -> String {
    let mut causes =
        std::iter::successors(Some(error as &(dyn Error + 'static)), |&cause| cause.source());
    let code = causes.find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    code.map_or_else(
        || error.kind().to_string(),
        |code| io::Error::from_raw_os_error(code).to_string(),
    )
}

pub(super) const VERSION: u32 = 1;

/// The names of what is in an archive.
pub(super) const ABOUT: &str = "leasehold.json";
pub(super) const DATA: &str = "data";

pub const NO_TIME: &str = "it could not be written completely in time";
pub(super) const CUT_OFF: &str = "its end is missing";
pub(super) const NOT_ONE: &str = "it is not an archive that leasehold wrote";
pub(super) const LEADS_ELSEWHERE: &str = "may point out of JOB_CHECKPOINT_DIR";

/// SQS keeps a message for 14 days at most; in seconds.
pub(super) const LONGEST_WORK: u64 = 14 * 24 * 60 * 60;

pub(super) const MOST_ENTRIES: usize = 1_000_000;

/// What is read from the end of one file's bytes to the next one's, long names and the map of a
/// sparse file included.
pub(super) const LONGEST_HEADER: u64 = 8 << 20;

/// Parts of a sparse file: their map has room in a header.
pub(super) const MOST_PARTS: usize = 100_000;

pub(super) const LONGEST_ABOUT: u64 = 4096;

/// The unit of `st_blocks` (stat(2)), and of an archive.
pub(super) const BLOCK: u64 = 512;

/// So many bytes may be written until the room is looked at again.
pub(super) const EACH_LOOK: u64 = 64 << 20;

pub(super) const BUFFER: usize = 256 << 10;
