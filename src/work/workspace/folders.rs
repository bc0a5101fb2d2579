//! The folders of a workspace, and whether they are as new.
//!
//! Making and removing folders takes a fifth of the CPU time of a small message, so the next message
//! gets the same folders. The next command must not see anything of the last one, so each folder must
//! be the one that was made (a command may move it away, or put a link in its place), with the same
//! permissions, owner, flags and extended attributes (an access control list applies to new files),
//! without an entry, and of the same size (the folders of ext4 do not shrink).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::{io, iter};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, Statx, StatxFlags};
use rustix::fs::{fgetxattr, flistxattr, openat, statx};
use rustix::io::Errno;

/// The folders below the root.
pub(super) const FOLDERS: [&str; 4] = ["input", "output", "tmp", "checkpoint"];

/// What a folder was like when it was made: the root, then [`FOLDERS`].
#[derive(Debug)]
pub(super) struct Folders([Folder; 1 + FOLDERS.len()]);

#[derive(Debug, PartialEq, Eq)]
struct Folder {
    identity: Identity,
    /// In bytes, and in blocks.
    size: (u64, u64),
    /// The names of its extended attributes, with a NUL after each, and then their values.
    attributes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    device: (u32, u32),
    inode: u64,
    mode: u16,
    owner: (u32, u32),
    flags: u64,
}

/// The identities of all folders, and when each was changed: an entry, its mode or an attribute. The
/// root comes first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp(Vec<(Identity, Time)>);

/// Seconds and nanoseconds since 1970.
type Time = (i64, u32);

impl Folders {
    /// The folders of a new workspace.
    pub(super) fn of(root: &Path) -> io::Result<Self> {
        let root = open(CWD, root)?;
        let folder = |name: &str| Folder::of(&open(&root, name)?);
        let [input, output, tmp, checkpoint] = FOLDERS.map(folder);
        Ok(Self([Folder::of(&root)?, input?, output?, tmp?, checkpoint?]))
    }

    /// The stamp of these folders, if nothing is in them, and nothing of them has changed.
    pub(super) fn if_as_new(&self, root: &Path) -> io::Result<Option<Stamp>> {
        let Self([this, inner @ ..]) = self;
        let root = open(CWD, root)?;
        let Some(this) = this.stamp_if_as_made(&root, &FOLDERS)? else { return Ok(None) };
        let mut stamp = vec![this];
        for (name, folder) in FOLDERS.into_iter().zip(inner) {
            let Some(of_folder) = folder.stamp_if_as_made(&open(&root, name)?, &[])? else {
                return Ok(None);
            };
            stamp.push(of_folder);
        }
        Ok(Some(Stamp(stamp)))
    }
}

impl Stamp {
    pub(super) fn of(root: &Path) -> io::Result<Self> {
        let paths = iter::once(root.to_owned()).chain(FOLDERS.map(|name| root.join(name)));
        Ok(Self(paths.map(|path| stamp_at(&path)).collect::<io::Result<_>>()?))
    }

    /// After a rename of the root, which only changes the root; `None` if another folder is there.
    pub(super) fn renamed(mut self, root: &Path) -> io::Result<Option<Self>> {
        let now = stamp_at(root)?;
        let is_same = now.0 == self.0[0].0;
        self.0[0] = now;
        Ok(is_same.then_some(self))
    }
}

fn stamp_at(path: &Path) -> io::Result<(Identity, Time)> {
    let it = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    Ok((Identity::of(&it), changed_at(&it)))
}

fn changed_at(it: &Statx) -> Time {
    (it.stx_ctime.tv_sec, it.stx_ctime.tv_nsec)
}

impl Folder {
    fn of(folder: &OwnedFd) -> io::Result<Self> {
        Ok(Self::with_time(folder)?.0)
    }

    /// `None` if it differs, or has an entry without one of these names.
    fn stamp_if_as_made(
        &self,
        folder: &OwnedFd,
        entries: &[&str],
    ) -> io::Result<Option<(Identity, Time)>> {
        let (now, changed_at) = Self::with_time(folder)?;
        let is_as_made = now == *self && has_only(folder, entries)?;
        Ok(is_as_made.then_some((now.identity, changed_at)))
    }

    fn with_time(folder: &OwnedFd) -> io::Result<(Self, Time)> {
        let status = statx(folder, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        let size = (status.stx_size, status.stx_blocks);
        let folder =
            Self { identity: Identity::of(&status), size, attributes: attributes(folder)? };
        Ok((folder, changed_at(&status)))
    }
}

fn attributes(folder: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 1024];
    let names = match flistxattr(folder, &mut buffer) {
        Ok(length) => buffer[..length].to_vec(),
        // This file system has none.
        Err(Errno::NOTSUP) => Vec::new(),
        Err(errno) => return Err(errno.into()),
    };
    let mut all = names.clone();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let length = fgetxattr(folder, name, &mut buffer)?;
        all.extend_from_slice(&buffer[..length]);
    }
    Ok(all)
}

impl Identity {
    fn of(it: &Statx) -> Self {
        Self {
            device: (it.stx_dev_major, it.stx_dev_minor),
            inode: it.stx_ino,
            mode: it.stx_mode,
            owner: (it.stx_uid, it.stx_gid),
            flags: it.stx_attributes.bits(),
        }
    }
}

fn open(below: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(below, path, flags, Mode::empty())?)
}

/// Whether all entries have one of these names.
fn has_only(folder: &OwnedFd, names: &[&str]) -> io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if ![".", ".."].iter().chain(names).any(|known| known.as_bytes() == name) {
            return Ok(false);
        }
    }
    Ok(true)
}
