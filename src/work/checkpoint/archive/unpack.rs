//! Restores a checkpoint directory from an archive, which somebody else may have written.

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
    ABOUT, About, BLOCK, BUFFER, CUT_OFF, DATA, EACH_LOOK, LEADS_ELSEWHERE, LONGEST_ABOUT,
    LONGEST_HEADER, LONGEST_WORK, MOST_ENTRIES, NO_TIME, NOT_ONE, Unpacked, VERSION, stays_inside,
    why,
};
use crate::work::workspace::WorkDir;

/// Restores an archive into `directory`, which is empty and somewhere in `work_dir`.
pub fn unpack(
    archive: &Path,
    directory: &Path,
    work_dir: &WorkDir,
    give_up: &CancellationToken,
) -> Result<Unpacked, String> {
    let file = File::open(archive).map_err(|error| why(&error))?;
    work_dir.check_room(file.metadata().map_err(|error| why(&error))?.len())?;
    let meter = Rc::new(Meter { budget: Cell::new(LONGEST_HEADER), stopped: Cell::new(None) });
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
    let about = about(first.map_err(|_| NOT_ONE)?)?;

    let (mut links_left_out, mut modes) = (0, Vec::new());
    let mut disk = Disk { work_dir, written: 0 };
    for number in 1_usize.. {
        meter.budget.set(LONGEST_HEADER);
        let Some(entry) = entries.next() else { break };
        meter.budget.set(u64::MAX);
        if number > MOST_ENTRIES {
            return Err(format!("it has more than {MOST_ENTRIES} entries"));
        }
        let of_entry = |problem: &str| format!("entry {number} {problem}");
        let failed = |error: io::Error| of_entry(&format!("cannot be restored: {}", why(&error)));
        let mut entry = entry.map_err(|_| of_entry("cannot be read"))?;
        let kind = entry.header().entry_type();
        let name = entry.path().map_err(|_| of_entry(LEADS_ELSEWHERE))?;
        let name = name.strip_prefix(DATA).map_err(|_| of_entry(LEADS_ELSEWHERE))?.to_owned();
        let to = directory.join(&name);
        let is_plain = name.components().all(|part| matches!(part, Component::Normal(_)));
        let is_known = kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_gnu_sparse();
        // What a link leads to is looked at where the link is, so nothing may come by way of one.
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
            return Err(of_entry(LEADS_ELSEWHERE));
        }
        if kind.is_dir() {
            fs::create_dir_all(&to).map_err(failed)?;
            // Set at the end: nothing could be put into a directory that is read-only by then.
            modes.push((to.clone(), entry.header().mode().unwrap_or(0o700)));
        } else if kind.is_symlink() {
            let target = entry
                .link_name()
                .ok()
                .flatten()
                .ok_or_else(|| of_entry("is a link without a target"))?;
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
    if meter.is_at_its_end() {
        return Err(CUT_OFF.to_owned());
    }
    for (path, mode) in modes.into_iter().rev() {
        let permissions = Permissions::from_mode(mode & 0o777);
        fs::set_permissions(path, permissions).map_err(|error| why(&error))?;
    }
    Ok(Unpacked { about, links_left_out })
}

fn about(entry: tar::Entry<'_, impl Read>) -> Result<About, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let is_it = entry.header().entry_type().is_file()
        && entry.path().is_ok_and(|path| path == Path::new(ABOUT));
    if !is_it {
        return Err(NOT_ONE.to_owned());
    }
    let mut text = Vec::new();
    entry.take(LONGEST_ABOUT).read_to_end(&mut text).map_err(|error| why(&error))?;
    let Version { version } =
        serde_json::from_slice(&text).map_err(|_| format!("its {ABOUT} has no version"))?;
    if version != VERSION {
        return Err(format!(
            "it has version {version}, but this leasehold reads only version {VERSION}"
        ));
    }
    let about: About = serde_json::from_slice(&text)
        .map_err(|_| format!("its {ABOUT} has no worked_s in seconds"))?;
    if about.worked_s > LONGEST_WORK {
        return Err(format!(
            "its worked_s is {}, longer than the 14 days for which SQS keeps a message",
            about.worked_s
        ));
    }
    Ok(about)
}

/// Sees to it that there is room for what is restored: small files take more of a disk than of an
/// archive.
struct Disk<'a> {
    work_dir: &'a WorkDir,
    /// Since the last look, in bytes.
    written: u64,
}

impl Disk<'_> {
    fn wrote(&mut self, path: &Path) -> Result<(), String> {
        let metadata = fs::symlink_metadata(path).map_err(|error| why(&error))?;
        // An inode of its own is not counted in blocks.
        self.written = self
            .written
            .saturating_add(BLOCK)
            .saturating_add(metadata.blocks().saturating_mul(BLOCK));
        if self.written > EACH_LOOK {
            self.written = 0;
            self.work_dir.check_room(EACH_LOOK)?;
        }
        Ok(())
    }
}

/// The bytes of an archive; an error when it is too late for them, or when a header is too long.
struct Metered<'a> {
    bytes: io::BufReader<File>,
    meter: Rc<Meter>,
    give_up: &'a CancellationToken,
}

struct Meter {
    /// How many more bytes may be read.
    budget: Cell<u64>,
    /// Why no more is read.
    stopped: Cell<Option<&'static str>>,
}

impl Meter {
    fn stop(&self, why: &'static str) -> io::Error {
        self.stopped.set(Some(why));
        io::Error::other(why)
    }

    /// An archive ends with blocks of zeros, so nobody reads up to the end of the file.
    fn is_at_its_end(&self) -> bool {
        self.stopped.get() == Some(CUT_OFF)
    }
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.give_up.is_cancelled() {
            return Err(self.meter.stop(NO_TIME));
        }
        let budget = self.meter.budget.get();
        if budget == 0 {
            return Err(self.meter.stop("one of its headers is too long"));
        }
        let most = usize::try_from(budget).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.bytes.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            self.meter.stopped.set(Some(CUT_OFF));
        }
        self.meter.budget.set(budget - read as u64);
        Ok(read)
    }
}
