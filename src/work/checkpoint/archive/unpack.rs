//! Restores a checkpoint directory from an archive that is not trusted.

use std::cell::Cell;
use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path};
use std::rc::Rc;
use std::{fs, io};

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::format::{
    ArchiveInfo, BLOCK, BUFFER, CHECK_EVERY, DATA, INFO_FILE, MAX_ENTRIES, MAX_HEADER, MAX_INFO,
    MAX_WORKED, NOT_AN_ARCHIVE, OUT_OF_TIME, POINTS_OUTSIDE, TRUNCATED, Unpacked, VERSION,
    stays_inside, why,
};
use crate::work::workspace::WorkDir;

/// Restores an archive into `directory`, which is empty and below `work_dir`.
pub fn unpack(
    archive: &Path,
    directory: &Path,
    work_dir: &WorkDir,
    give_up: &CancellationToken,
) -> Result<Unpacked, String> {
    let file = File::open(archive).map_err(|error| why(&error))?;
    work_dir.check_room(file.metadata().map_err(|error| why(&error))?.len())?;
    let meter = Rc::new(Meter { budget: Cell::new(MAX_HEADER), stopped: Cell::new(None) });
    let bytes = Metered {
        bytes: io::BufReader::with_capacity(BUFFER, file),
        meter: meter.clone(),
        give_up,
    };
    let unpacked = read(tar::Archive::new(bytes), directory, work_dir, &meter);
    match meter.stopped.get() {
        Some(stopped) => Err(stopped.to_owned()),
        None => unpacked,
    }
}

fn read(
    mut archive: tar::Archive<Metered<'_>>,
    directory: &Path,
    work_dir: &WorkDir,
    meter: &Meter,
) -> Result<Unpacked, String> {
    archive.set_preserve_mtime(true);
    let mut entries = archive.entries().map_err(|error| why(&error))?;
    let Some(first) = entries.next() else { return Err("it is empty".to_owned()) };
    let info = info(first.map_err(|_| NOT_AN_ARCHIVE)?)?;

    let (mut links_left_out, mut modes) = (0, Vec::new());
    let mut disk = Disk { work_dir, written: 0 };
    for number in 1_usize.. {
        meter.budget.set(MAX_HEADER);
        let Some(entry) = entries.next() else { break };
        meter.budget.set(u64::MAX);
        if number > MAX_ENTRIES {
            return Err(format!("it has more than {MAX_ENTRIES} entries"));
        }
        let entry_error = |problem: &str| format!("entry {number} {problem}");
        let failed =
            |error: io::Error| entry_error(&format!("cannot be restored: {}", why(&error)));
        let mut entry = entry.map_err(|_| entry_error("cannot be read"))?;
        let kind = entry.header().entry_type();
        let name = entry.path().map_err(|_| entry_error(POINTS_OUTSIDE))?;
        let name = name.strip_prefix(DATA).map_err(|_| entry_error(POINTS_OUTSIDE))?.to_owned();
        let to = directory.join(&name);
        let is_plain = name.components().all(|part| matches!(part, Component::Normal(_)));
        let is_known = kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_gnu_sparse();
        // A link's target is checked only at the link itself, so no path may pass through a link.
        let is_behind_a_link = || {
            let above = name.ancestors().skip(usize::from(!kind.is_dir()));
            above
                .filter(|part| !part.as_os_str().is_empty())
                .any(|part| directory.join(part).is_symlink())
        };
        if !is_plain
            || !is_known
            || (name.as_os_str().is_empty() && !kind.is_dir())
            || is_behind_a_link()
        {
            return Err(entry_error(POINTS_OUTSIDE));
        }
        if kind.is_dir() {
            fs::create_dir_all(&to).map_err(failed)?;
            // Set at the end: no file could be created in a read-only directory.
            modes.push((to.clone(), entry.header().mode().unwrap_or(0o700)));
        } else if kind.is_symlink() {
            let target = entry
                .link_name()
                .ok()
                .flatten()
                .ok_or_else(|| entry_error("is a link without a target"))?;
            if !stays_inside(&name, &target) {
                links_left_out += 1;
                continue;
            }
            entry.unpack(&to).map_err(failed)?;
        } else {
            entry.unpack(&to).map_err(failed)?;
        }
        disk.wrote(&to)?;
    }
    if meter.is_truncated() {
        return Err(TRUNCATED.to_owned());
    }
    for (path, mode) in modes.into_iter().rev() {
        let permissions = Permissions::from_mode(mode & 0o777);
        fs::set_permissions(path, permissions).map_err(|error| why(&error))?;
    }
    Ok(Unpacked { info, links_left_out })
}

fn info(entry: tar::Entry<'_, impl Read>) -> Result<ArchiveInfo, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let is_info = entry.header().entry_type().is_file()
        && entry.path().is_ok_and(|path| path == Path::new(INFO_FILE));
    if !is_info {
        return Err(NOT_AN_ARCHIVE.to_owned());
    }
    let mut text = Vec::new();
    entry.take(MAX_INFO).read_to_end(&mut text).map_err(|error| why(&error))?;
    let Version { version } =
        serde_json::from_slice(&text).map_err(|_| format!("its {INFO_FILE} has no version"))?;
    if version != VERSION {
        return Err(format!(
            "it has version {version}, but this leasehold reads only version {VERSION}"
        ));
    }
    let info: ArchiveInfo = serde_json::from_slice(&text)
        .map_err(|_| format!("its {INFO_FILE} has no worked_s in seconds"))?;
    if info.worked_s > MAX_WORKED {
        return Err(format!(
            "its worked_s is {}, longer than the 14 days for which SQS keeps a message",
            info.worked_s
        ));
    }
    Ok(info)
}

/// Checks the free space while restoring: small files take more space on a disk than in an archive.
struct Disk<'a> {
    work_dir: &'a WorkDir,
    /// Since the last check, in bytes.
    written: u64,
}

impl Disk<'_> {
    fn wrote(&mut self, path: &Path) -> Result<(), String> {
        let metadata = fs::symlink_metadata(path).map_err(|error| why(&error))?;
        // The inode itself is not counted in blocks.
        self.written = self
            .written
            .saturating_add(BLOCK)
            .saturating_add(metadata.blocks().saturating_mul(BLOCK));
        if self.written > CHECK_EVERY {
            self.written = 0;
            self.work_dir.check_room(CHECK_EVERY)?;
        }
        Ok(())
    }
}

/// The bytes of an archive; an error when time has run out, or when a header is too long.
struct Metered<'a> {
    bytes: io::BufReader<File>,
    meter: Rc<Meter>,
    give_up: &'a CancellationToken,
}

struct Meter {
    /// The remaining bytes that may be read.
    budget: Cell<u64>,
    /// Why reading stopped.
    stopped: Cell<Option<&'static str>>,
}

impl Meter {
    fn stop(&self, why: &'static str) -> io::Error {
        self.stopped.set(Some(why));
        io::Error::other(why)
    }

    /// A complete archive ends with blocks of zeros, so only a truncated one is read to the end of
    /// the file.
    fn is_truncated(&self) -> bool {
        self.stopped.get() == Some(TRUNCATED)
    }
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.give_up.is_cancelled() {
            return Err(self.meter.stop(OUT_OF_TIME));
        }
        let budget = self.meter.budget.get();
        if budget == 0 {
            return Err(self.meter.stop("one of its headers is too long"));
        }
        let limit = usize::try_from(budget).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.bytes.read(&mut buffer[..limit])?;
        if read == 0 && limit > 0 {
            self.meter.stopped.set(Some(TRUNCATED));
        }
        self.meter.budget.set(budget - read as u64);
        Ok(read)
    }
}
