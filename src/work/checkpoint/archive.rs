//! A checkpoint as one file: a tar archive of `JOB_CHECKPOINT_DIR`.
//!
//! ```text
//! leasehold.json   version, and how long the command has worked
//! data/…           what was in the directory
//! ```
//!
//! An archive may have been written by anybody with access to the bucket. It is checked while it is read, so that it
//! neither leads to another place nor uses up the pod's memory. An error says what is wrong with which entry; it never
//! quotes names or bytes of the state.

use std::cell::Cell;
use std::collections::VecDeque;
use std::error::Error;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::iter::once;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path};
use std::rc::Rc;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};
use tokio_util::sync::CancellationToken;
use walkdir::WalkDir;

use crate::work::workspace::WorkDir;

/// The first entry of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    version: u32,
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

/// Writes all below `directory` into an archive. A file that changes meanwhile is saved as far as it was when it was
/// looked at. An error if the directory is removed or replaced meanwhile: then nobody knows what is in the archive.
pub fn pack(directory: &Path, about: About, archive: &Path, give_up: &CancellationToken) -> Result<Packed, String> {
    let identity = Identity::of(directory)?;
    let packed = write(directory, about, archive, give_up);
    if give_up.is_cancelled() {
        return Err(NO_TIME.to_owned());
    }
    if Identity::of(directory)? != identity {
        return Err("it was replaced while it was saved".to_owned());
    }
    packed
}

fn write(directory: &Path, about: About, archive: &Path, give_up: &CancellationToken) -> Result<Packed, String> {
    let file = File::create(archive).map_err(|error| why(&error))?;
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(BUFFER, file));
    let text = serde_json::to_vec(&about).expect("its fields are numbers");
    let mut header = Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    tar.append_data(&mut header, ABOUT, text.as_slice()).map_err(|error| why(&error))?;

    let mut links_left_out = 0;
    for (number, entry) in
        WalkDir::new(directory).follow_root_links(false).min_depth(1).sort_by_file_name().into_iter().enumerate()
    {
        if number >= MOST_ENTRIES {
            return Err(format!("it has more than {MOST_ENTRIES} files"));
        }
        let entry = match entry.map_err(io::Error::from) {
            // What is gone since it was listed is not state any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entry => entry.map_err(|error| why(&error))?,
        };
        let name = entry.path().strip_prefix(directory).expect("a walk stays below its root");
        let appended = if entry.file_type().is_symlink() {
            match fs::read_link(entry.path()) {
                Ok(target) if stays_inside(name, &target) => append_link(&mut tar, entry.path(), name, &target),
                Ok(_) => {
                    links_left_out += 1;
                    Ok(())
                }
                Err(error) => Err(error),
            }
        } else if entry.file_type().is_file() {
            append_file(&mut tar, entry.path(), name, give_up)
        } else if entry.file_type().is_dir() {
            append_directory(&mut tar, entry.path(), name)
        } else {
            // Sockets and pipes are not state.
            Ok(())
        };
        match appended {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            appended => appended.map_err(|error| why(&error))?,
        }
    }
    let file = tar.into_inner().and_then(|file| file.into_inner().map_err(io::IntoInnerError::into_error));
    let bytes = file.and_then(|mut file| file.flush().and_then(|()| file.metadata())).map_err(|error| why(&error))?;
    Ok(Packed { bytes: bytes.len(), links_left_out })
}

fn append_link<W: Write>(tar: &mut tar::Builder<W>, path: &Path, name: &Path, target: &Path) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_metadata(&fs::symlink_metadata(path)?);
    tar.append_link(&mut header, Path::new(DATA).join(name), target)
}

fn append_directory<W: Write>(tar: &mut tar::Builder<W>, path: &Path, name: &Path) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_metadata(&fs::symlink_metadata(path)?);
    tar.append_data(&mut header, Path::new(DATA).join(name), io::empty())
}

fn append_file<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &Path,
    name: &Path,
    give_up: &CancellationToken,
) -> io::Result<()> {
    // What has become a pipe since it was listed must not be waited for.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(());
    }
    let length = metadata.len();
    let mut header = Header::new_gnu();
    header.set_metadata(&metadata);
    let (mut extension, mut parts) = (Vec::new(), once(0..length).collect::<VecDeque<_>>());
    if metadata.blocks().saturating_mul(BLOCK) < length
        && let Some(data) = data_of(&file, length)?
    {
        extension = set_sparse(&mut header, &data, length);
        parts = data.into();
    }
    let data = Data { file: &file, parts, give_up };
    tar.append_data(&mut header, Path::new(DATA).join(name), extension.as_slice().chain(data))
}

/// Where there are bytes in a file that has holes. `None` if the file system does not tell, or if they are too many for
/// the headers of an archive.
fn data_of(file: &File, length: u64) -> io::Result<Option<Vec<Range<u64>>>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < length {
        let seek = |from: u64, whence| lseek(file, i64::try_from(from).unwrap_or(i64::MAX), whence);
        let start = match seek(at, Whence::SeekData) {
            // There is nothing but a hole.
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(None),
            start => u64::try_from(start?).unwrap_or_default(),
        };
        let end = match seek(start, Whence::SeekHole) {
            Err(Errno::ENXIO) => break,
            end => u64::try_from(end?).unwrap_or_default().min(length),
        };
        // It may be written to meanwhile.
        if start < at || end <= start {
            break;
        }
        parts.push(start..end);
        if parts.len() > MOST_PARTS {
            return Ok(None);
        }
        at = end;
    }
    Ok(Some(parts))
}

/// Makes the header that of a sparse file (GNU tar manual, "Old GNU Format"). Returns the headers that follow it.
fn set_sparse(header: &mut Header, data: &[Range<u64>], length: u64) -> Vec<u8> {
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(data.iter().map(|part| part.end - part.start).sum());
    // The last one, of no bytes, says where the file ends.
    let mut parts = data.iter().cloned().chain(once(length..length));
    let mut fill = |sparse: &mut [GnuSparseHeader]| {
        for (sparse, part) in sparse.iter_mut().zip(&mut parts) {
            sparse.set_offset(part.start);
            sparse.set_length(part.end - part.start);
        }
    };
    let gnu = header.as_gnu_mut().expect("it was made as one");
    gnu.set_real_size(length);
    fill(&mut gnu.sparse);
    let more = (data.len() + 1).saturating_sub(gnu.sparse.len());
    gnu.set_is_extended(more > 0);
    let mut extension = Vec::new();
    let each = GnuExtSparseHeader::new().sparse().len();
    let headers = more.div_ceil(each);
    for number in 1..=headers {
        let mut next = GnuExtSparseHeader::new();
        fill(next.sparse_mut());
        next.set_is_extended(number < headers);
        extension.extend_from_slice(next.as_bytes());
    }
    extension
}

/// The bytes of some parts of a file: no more and no fewer than a header says, whatever becomes of the file.
struct Data<'a> {
    file: &'a File,
    parts: VecDeque<Range<u64>>,
    give_up: &'a CancellationToken,
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.give_up.is_cancelled() {
            return Err(io::Error::other(NO_TIME));
        }
        while self.parts.front().is_some_and(Range::is_empty) {
            self.parts.pop_front();
        }
        let Some(part) = self.parts.front_mut() else { return Ok(0) };
        let wanted = usize::try_from(part.end - part.start).unwrap_or(usize::MAX).min(buffer.len());
        let read = match self.file.read_at(&mut buffer[..wanted], part.start)? {
            // It has become shorter.
            0 => {
                buffer[..wanted].fill(0);
                wanted
            }
            read => read,
        };
        part.start += read as u64;
        Ok(read)
    }
}

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
    let bytes = Metered { bytes: io::BufReader::with_capacity(BUFFER, file), meter: meter.clone(), give_up };
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
            above.filter(|part| !part.as_os_str().is_empty()).any(|part| directory.join(part).is_symlink())
        };
        if !is_plain || !is_known || (name.as_os_str().is_empty() && !kind.is_dir()) || is_behind_a_link() {
            return Err(of_entry(LEADS_ELSEWHERE));
        }
        if kind.is_dir() {
            fs::create_dir_all(&to).map_err(failed)?;
            // Set at the end: nothing could be put into a directory that is read-only by then.
            modes.push((to.clone(), entry.header().mode().unwrap_or(0o700)));
        } else if kind.is_symlink() {
            let target = entry.link_name().ok().flatten().ok_or_else(|| of_entry("is a link to nothing"))?;
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
    let is_it = entry.header().entry_type().is_file() && entry.path().is_ok_and(|path| path == Path::new(ABOUT));
    if !is_it {
        return Err(NOT_ONE.to_owned());
    }
    let mut text = Vec::new();
    entry.take(LONGEST_ABOUT).read_to_end(&mut text).map_err(|error| why(&error))?;
    let Version { version } = serde_json::from_slice(&text).map_err(|_| format!("its {ABOUT} has no version"))?;
    if version != VERSION {
        return Err(format!("it is of version {version}, and this leasehold reads version {VERSION} only"));
    }
    let about: About = serde_json::from_slice(&text).map_err(|_| format!("its {ABOUT} has no worked_s in seconds"))?;
    if about.worked_s > LONGEST_WORK {
        return Err(format!(
            "its worked_s is {}, longer than the 14 days for which SQS keeps a message",
            about.worked_s
        ));
    }
    Ok(about)
}

/// Does a link at `name` lead to a place below the directory, whatever other links like this one are on its way?
///
/// `..` only comes first, where it leads from one real directory to the one above: behind a name it would lead from
/// wherever that name leads.
fn stays_inside(name: &Path, target: &Path) -> bool {
    let mut depth = name.components().count().saturating_sub(1);
    let mut target = target.components().skip_while(|part| *part == Component::CurDir).peekable();
    while target.next_if_eq(&Component::ParentDir).is_some() {
        let Some(above) = depth.checked_sub(1) else { return false };
        depth = above;
    }
    target.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Sees to it that there is room for what is restored: small files take more of a disk than of an archive.
struct Disk<'a> {
    work_dir: &'a WorkDir,
    /// Since the last look, in bytes.
    written: u64,
}

impl Disk<'_> {
    fn wrote(&mut self, path: &Path) -> Result<(), String> {
        let metadata = fs::symlink_metadata(path).map_err(|error| why(&error))?;
        // An inode of its own is not counted in blocks.
        self.written = self.written.saturating_add(BLOCK).saturating_add(metadata.blocks().saturating_mul(BLOCK));
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

/// Why it failed, by the system's own words: those of the libraries quote names.
fn why(error: &io::Error) -> String {
    let mut causes = std::iter::successors(Some(error as &(dyn Error + 'static)), |&cause| cause.source());
    let code = causes.find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    code.map_or_else(|| error.kind().to_string(), |code| io::Error::from_raw_os_error(code).to_string())
}

const VERSION: u32 = 1;

/// The names of what is in an archive.
const ABOUT: &str = "leasehold.json";
const DATA: &str = "data";

pub const NO_TIME: &str = "there was no time for all of it";
const CUT_OFF: &str = "its end is missing";
const NOT_ONE: &str = "it is not an archive that leasehold wrote";
const LEADS_ELSEWHERE: &str = "may lead out of JOB_CHECKPOINT_DIR";

/// SQS keeps a message for 14 days at most; in seconds.
const LONGEST_WORK: u64 = 14 * 24 * 60 * 60;

const MOST_ENTRIES: usize = 1_000_000;

/// What is read from the end of one file's bytes to the next one's, long names and the map of a sparse file included.
const LONGEST_HEADER: u64 = 8 << 20;

/// Parts of a sparse file: their map has room in a header.
const MOST_PARTS: usize = 100_000;

const LONGEST_ABOUT: u64 = 4096;

/// The unit of `st_blocks` (stat(2)), and of an archive.
const BLOCK: u64 = 512;

/// So many bytes may be written until the room is looked at again.
const EACH_LOOK: u64 = 64 << 20;

const BUFFER: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    struct Place {
        home: TempDir,
        archive: PathBuf,
        into: PathBuf,
    }

    fn place() -> Place {
        let home = tempfile::tempdir().unwrap();
        let (archive, into) = (home.path().join("a.tar"), home.path().join("into"));
        fs::create_dir(&into).unwrap();
        Place { home, archive, into }
    }

    impl Place {
        fn unpack(&self) -> Result<Unpacked, String> {
            let work_dir = WorkDir { path: self.home.path().to_owned(), limit: None };
            unpack(&self.archive, &self.into, &work_dir, &CancellationToken::new())
        }

        /// What is there afterwards, if it can be restored.
        fn packed_and_unpacked(&self, directory: &Path) -> (Packed, Unpacked) {
            let packed = pack(directory, About::new(7), &self.archive, &CancellationToken::new()).unwrap();
            assert_eq!(packed.bytes, fs::metadata(&self.archive).unwrap().len());
            (packed, self.unpack().unwrap())
        }
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let from = tempfile::tempdir().unwrap();
        let deep = "x".repeat(90);
        fs::create_dir_all(from.path().join("empty")).unwrap();
        fs::create_dir_all(from.path().join(&deep).join(&deep)).unwrap();
        let long = from.path().join(&deep).join(&deep).join("file");
        fs::write(&long, vec![7; 1 << 20]).unwrap();
        fs::write(from.path().join("nothing"), "").unwrap();
        symlink("nothing", from.path().join("link")).unwrap();
        let place = place();
        let (packed, unpacked) = place.packed_and_unpacked(from.path());
        assert_eq!((packed.links_left_out, unpacked.links_left_out, unpacked.about.worked_s), (0, 0, 7));
        let into = &place.into;
        assert_eq!(WalkDir::new(into).min_depth(1).into_iter().count(), 6);
        assert_eq!(fs::read(into.join(&deep).join(&deep).join("file")).unwrap(), vec![7; 1 << 20]);
        assert_eq!(fs::read_link(into.join("link")).unwrap(), Path::new("nothing"));
    }

    #[test]
    fn modes_are_kept_also_of_directories_that_nobody_may_write_to() {
        let from = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let (closed, inside) = (from.path().join("closed"), from.path().join("closed/inside"));
        fs::create_dir(&closed).unwrap();
        fs::write(&inside, "x").unwrap();
        set(&inside, 0o640);
        set(&closed, 0o510);
        let place = place();
        place.packed_and_unpacked(from.path());
        let (closed_again, inside_again) = (place.into.join("closed"), place.into.join("closed/inside"));
        assert_eq!((mode(&closed_again), mode(&inside_again)), (0o510, 0o640));
        for path in [&closed, &closed_again] {
            set(path, 0o700);
        }
    }

    #[test]
    fn a_sparse_file_stays_sparse() {
        const END: u64 = 1 << 40;
        let from = tempfile::tempdir().unwrap();
        let (few, many, none) = (from.path().join("few"), from.path().join("many"), from.path().join("none"));
        File::create(&few).and_then(|file| file.set_len(END).and_then(|()| file.write_all_at(b"few", 0))).unwrap();
        File::create(&none).and_then(|file| file.set_len(END)).unwrap();
        let file = File::create(&many).unwrap();
        for part in 0..60_u64 {
            file.write_all_at(&[u8::try_from(part).unwrap() + 1; 4096], part << 20).unwrap();
        }
        let place = place();
        let (packed, _) = place.packed_and_unpacked(from.path());
        if fs::metadata(&none).unwrap().blocks() == 0 {
            assert!(packed.bytes < 1 << 20, "the archive has {} bytes", packed.bytes);
        }
        for path in ["few", "none"] {
            let metadata = fs::metadata(place.into.join(path)).unwrap();
            assert_eq!(metadata.len(), END);
            assert!(metadata.blocks() * BLOCK < 1 << 20, "it takes {} blocks", metadata.blocks());
        }
        let mut start = [0; 4];
        File::open(place.into.join("few")).unwrap().read_exact(&mut start).unwrap();
        assert_eq!(&start, b"few\0");
        assert!(fs::read(&many).unwrap() == fs::read(place.into.join("many")).unwrap());
    }

    #[test]
    fn a_file_is_as_long_as_its_header_says_whatever_becomes_of_it() {
        let from = tempfile::tempdir().unwrap();
        let path = from.path().join("file");
        fs::write(&path, "longer").unwrap();
        let file = File::open(&path).unwrap();
        fs::write(&path, "lo").unwrap();
        let mut bytes = Vec::new();
        let give_up = CancellationToken::new();
        Data { file: &file, parts: vec![0..3, 4..6].into(), give_up: &give_up }.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"lo\0\0\0");
    }

    #[test]
    fn a_directory_that_is_gone_or_replaced_is_not_an_empty_one() {
        let from = tempfile::tempdir().unwrap();
        let directory = from.path().join("state");
        let archive = from.path().join("a.tar");
        let packed = || pack(&directory, About::new(0), &archive, &CancellationToken::new());
        assert_eq!(packed(), Err("it was removed".to_owned()));
        fs::write(&directory, "x").unwrap();
        assert_eq!(packed(), Err("it is not a directory any more".to_owned()));
        fs::remove_file(&directory).unwrap();
        symlink("/", &directory).unwrap();
        assert_eq!(packed(), Err("it is not a directory any more".to_owned()));
        assert!(!archive.exists());
        fs::remove_file(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        let before = Identity::of(&directory).unwrap();
        assert_eq!(Identity::of(&directory), Ok(before));
        fs::rename(&directory, from.path().join("old")).unwrap();
        fs::create_dir(&directory).unwrap();
        assert_ne!(Identity::of(&directory), Ok(before));
    }

    #[test]
    fn a_link_stays_inside_if_every_way_from_it_does() {
        for (name, target) in
            [("l", "x"), ("l", "./x/y"), ("l", "."), ("a/l", ".."), ("a/b/l", "../../blobs/x"), ("l", "missing/x")]
        {
            assert!(stays_inside(Path::new(name), Path::new(target)), "{name} -> {target}");
        }
        for (name, target) in
            [("l", ".."), ("l", "/"), ("l", "/etc/passwd"), ("a/l", "../../x"), ("a/l", "x/../../y"), ("l", "a/..")]
        {
            assert!(!stays_inside(Path::new(name), Path::new(target)), "{name} -> {target}");
        }
    }

    #[test]
    fn a_link_that_leads_out_is_neither_saved_nor_restored() {
        let from = tempfile::tempdir().unwrap();
        symlink("/etc/passwd", from.path().join("out")).unwrap();
        symlink("in", from.path().join("inside")).unwrap();
        let place = place();
        let (packed, unpacked) = place.packed_and_unpacked(from.path());
        assert_eq!((packed.links_left_out, unpacked.links_left_out), (1, 0));
        let link = |to: &str| Added { kind: EntryType::Symlink, name: "data/link".into(), to: to.into(), bytes: b"" };
        for (to, left_out) in [("/etc", 1), ("../x", 1), ("x", 0)] {
            let place = self::place();
            place.write(&[ours(), link(to)]);
            assert_eq!(place.unpack().unwrap().links_left_out, left_out, "{to}");
            assert_eq!(place.into.join("link").is_symlink(), left_out == 0);
        }
    }

    struct Added {
        kind: EntryType,
        name: String,
        to: PathBuf,
        bytes: &'static [u8],
    }

    fn file(name: &str, bytes: &'static [u8]) -> Added {
        Added { kind: EntryType::Regular, name: name.into(), to: PathBuf::new(), bytes }
    }

    fn ours() -> Added {
        file(ABOUT, br#"{"version":1,"worked_s":0}"#)
    }

    impl Place {
        /// An archive with these entries: anything that somebody else may have written.
        fn write(&self, entries: &[Added]) {
            let mut tar = tar::Builder::new(File::create(&self.archive).unwrap());
            for Added { kind, name, to, bytes } in entries {
                let mut header = Header::new_gnu();
                header.set_entry_type(*kind);
                header.set_size(bytes.len() as u64);
                header.set_mode(0o755);
                // As `append_data` would refuse it.
                header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
                if !to.as_os_str().is_empty() {
                    header.set_link_name(to).unwrap();
                }
                header.set_cksum();
                tar.append(&header, *bytes).unwrap();
            }
            tar.finish().unwrap();
        }
    }

    #[test]
    fn an_archive_leads_nowhere_else() {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "safe").unwrap();
        let special = |kind, name: &str, to: &Path| Added { kind, name: name.into(), to: to.into(), bytes: b"" };
        let link = |name: &str, to: &str| special(EntryType::Symlink, name, Path::new(to));
        let out = outside.path().to_str().unwrap();
        let file = |name: &str| self::file(name, b"evil");
        let bad = [
            vec![file("data/../../x")],
            vec![file(&format!("{out}/evil"))],
            vec![file("elsewhere")],
            vec![file("data")],
            vec![link("data", out), file("data/evil")],
            vec![link("data/l", out), file("data/l/evil")],
            vec![link("data/l", "x"), file("data/l/evil")],
            vec![special(EntryType::Directory, "data/x", Path::new("")), link("data/l", "x"), file("data/l/evil")],
            vec![link("data/l", "."), special(EntryType::Directory, "data/l", Path::new(""))],
            vec![special(EntryType::Link, "data/h", &victim)],
            vec![special(EntryType::Fifo, "data/f", Path::new(""))],
            vec![special(EntryType::Char, "data/c", Path::new(""))],
        ];
        for entries in bad {
            let names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
            let place = place();
            place.write(&[vec![ours()], entries].into_iter().flatten().collect::<Vec<_>>());
            let error = place.unpack().expect_err(&names.join(", "));
            assert!(error.starts_with("entry ") && !error.contains("evil"), "{error}");
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        }
        // A file in the place of a link replaces the link.
        let place = place();
        place.write(&[ours(), link("data/l", "x"), self::file("data/x", b"x"), file("data/l")]);
        place.unpack().unwrap();
        assert_eq!(fs::read(place.into.join("x")).unwrap(), b"x");
        assert_eq!(fs::read(&victim).unwrap(), b"safe");
    }

    #[test]
    fn only_a_whole_archive_of_our_own_version_is_restored() {
        let with = |about: &'static [u8]| {
            let place = place();
            place.write(&[file(ABOUT, about), file("data/secret", b"hidden")]);
            place.unpack().map(|unpacked| unpacked.about.worked_s)
        };
        assert_eq!(with(br#"{"version":1,"worked_s":9,"more":true}"#), Ok(9));
        for (about, problem) in [
            (&br#"{"version":9,"worked_s":0}"#[..], "it is of version 9, and this leasehold reads version 1 only"),
            (br#"{"version":0,"worked_s":0}"#, "it is of version 0, and"),
            (br#"{"version":9}"#, "it is of version 9, and"),
            (br#"{"worked_s":0}"#, "has no version"),
            (br#"{"version":"hidden"}"#, "has no version"),
            (b"hidden", "has no version"),
            (br#"{"version":1,"worked_s":"hidden"}"#, "has no worked_s in seconds"),
            (br#"{"version":1,"worked_s":-1}"#, "has no worked_s in seconds"),
            (br#"{"version":1,"worked_s":18446744073709551615}"#, "longer than the 14 days"),
        ] {
            let error = with(about).unwrap_err();
            assert!(error.contains(problem) && !error.contains("hidden"), "{error}");
        }

        let place = place();
        place.write(&[ours(), file("data/one", b"1"), file("data/two", b"2")]);
        let whole = fs::read(&place.archive).unwrap();
        for length in (0..whole.len() - 1024).step_by(128) {
            let place = self::place();
            fs::write(&place.archive, &whole[..length]).unwrap();
            place.unpack().expect_err(&format!("cut off at {length}"));
        }
        place.write(&[file("data/one", b"1"), ours()]);
        assert_eq!(place.unpack(), Err(NOT_ONE.to_owned()));
    }

    #[test]
    fn a_header_without_an_end_is_not_read() {
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
            let place = place();
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(1 << 30);
            header.set_cksum();
            place.write(&[ours()]);
            let length = fs::metadata(&place.archive).unwrap().len() - 1024;
            let file = OpenOptions::new().write(true).open(&place.archive).unwrap();
            file.write_all_at(header.as_bytes(), length).unwrap();
            file.set_len(1 << 30).unwrap();
            assert_eq!(place.unpack(), Err("one of its headers is too long".to_owned()));
        }
    }

    #[test]
    fn what_it_is_too_late_for_is_given_up_between_two_blocks() {
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("file"), "x").unwrap();
        let place = place();
        place.packed_and_unpacked(from.path());
        let too_late = CancellationToken::new();
        too_late.cancel();
        let again = self::place();
        let work_dir = WorkDir { path: again.home.path().to_owned(), limit: None };
        for given_up in [
            pack(from.path(), About::new(7), &again.archive, &too_late).map(drop),
            unpack(&place.archive, &again.into, &work_dir, &too_late).map(drop),
        ] {
            assert_eq!(given_up, Err(NO_TIME.to_owned()));
        }
    }
}
