//! Writes the checkpoint directory into an archive.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::iter::once;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::{fs, io};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};
use tokio_util::sync::CancellationToken;
use walkdir::WalkDir;

use super::format::{
    ArchiveInfo, BLOCK, BUFFER, DATA, INFO_FILE, Identity, MAX_ENTRIES, MAX_PARTS, OUT_OF_TIME,
    Packed, stays_inside, why,
};

/// Writes all files below `directory` into an archive. A file that changes meanwhile is saved with
/// the length that it had at first. It is an error if the directory is removed or replaced
/// meanwhile, because the archive's content is then unknown.
pub fn pack(
    directory: &Path,
    info: ArchiveInfo,
    archive: &Path,
    give_up: &CancellationToken,
) -> Result<Packed, String> {
    let identity = Identity::of(directory)?;
    let packed = write(directory, info, archive, give_up);
    if give_up.is_cancelled() {
        return Err(OUT_OF_TIME.to_owned());
    }
    if Identity::of(directory)? != identity {
        return Err("it was replaced while it was saved".to_owned());
    }
    packed
}

fn write(
    directory: &Path,
    info: ArchiveInfo,
    archive: &Path,
    give_up: &CancellationToken,
) -> Result<Packed, String> {
    let file = File::create(archive).map_err(|error| why(&error))?;
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(BUFFER, file));
    let text = serde_json::to_vec(&info).expect("its fields are numbers");
    let mut header = Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    tar.append_data(&mut header, INFO_FILE, text.as_slice()).map_err(|error| why(&error))?;

    let mut links_left_out = 0;
    for (number, entry) in WalkDir::new(directory)
        .follow_root_links(false)
        .min_depth(1)
        .sort_by_file_name()
        .into_iter()
        .enumerate()
    {
        if number >= MAX_ENTRIES {
            return Err(format!("it has more than {MAX_ENTRIES} files"));
        }
        let entry = match entry.map_err(io::Error::from) {
            // A file that was removed after it was listed is no longer state.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entry => entry.map_err(|error| why(&error))?,
        };
        let name = entry.path().strip_prefix(directory).expect("a walk stays below its root");
        let appended = if entry.file_type().is_symlink() {
            match fs::read_link(entry.path()) {
                Ok(target) if stays_inside(name, &target) => {
                    append_link(&mut tar, entry.path(), name, &target)
                }
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
    let file =
        tar.into_inner().and_then(|file| file.into_inner().map_err(io::IntoInnerError::into_error));
    let bytes = file
        .and_then(|mut file| file.flush().and_then(|()| file.metadata()))
        .map_err(|error| why(&error))?;
    Ok(Packed { bytes: bytes.len(), links_left_out })
}

fn append_link<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &Path,
    name: &Path,
    target: &Path,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_metadata(&fs::symlink_metadata(path)?);
    tar.append_link(&mut header, Path::new(DATA).join(name), target)
}

fn append_directory<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &Path,
    name: &Path,
) -> io::Result<()> {
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
    // The file may have become a pipe since it was listed, which must not block.
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
        && let Some(data) = data_ranges(&file, length)?
    {
        extension = set_sparse(&mut header, &data, length);
        parts = data.into();
    }
    let data = Data { file: &file, parts, give_up };
    tar.append_data(&mut header, Path::new(DATA).join(name), extension.as_slice().chain(data))
}

/// The ranges with data in a file with holes. `None` if the file system does not report them, or if
/// they are too many for the headers of an archive.
fn data_ranges(file: &File, length: u64) -> io::Result<Option<Vec<Range<u64>>>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < length {
        let seek = |from: u64, whence| lseek(file, i64::try_from(from).unwrap_or(i64::MAX), whence);
        let start = match seek(at, Whence::SeekData) {
            // The rest is a hole.
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(None),
            start => u64::try_from(start?).unwrap_or_default(),
        };
        let end = match seek(start, Whence::SeekHole) {
            Err(Errno::ENXIO) => break,
            end => u64::try_from(end?).unwrap_or_default().min(length),
        };
        // The file may be changing.
        if start < at || end <= start {
            break;
        }
        parts.push(start..end);
        if parts.len() > MAX_PARTS {
            return Ok(None);
        }
        at = end;
    }
    Ok(Some(parts))
}

/// Turns the header into that of a sparse file (GNU tar manual, "Old GNU Format"). Returns the
/// headers that follow it.
fn set_sparse(header: &mut Header, data: &[Range<u64>], length: u64) -> Vec<u8> {
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(data.iter().map(|part| part.end - part.start).sum());
    // A last, empty part marks the end of the file.
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

/// The bytes of some parts of a file: always as many as the header announces, also if the file
/// changes.
pub(super) struct Data<'a> {
    pub(super) file: &'a File,
    pub(super) parts: VecDeque<Range<u64>>,
    pub(super) give_up: &'a CancellationToken,
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.give_up.is_cancelled() {
            return Err(io::Error::other(OUT_OF_TIME));
        }
        while self.parts.front().is_some_and(Range::is_empty) {
            self.parts.pop_front();
        }
        let Some(part) = self.parts.front_mut() else { return Ok(0) };
        let wanted = usize::try_from(part.end - part.start).unwrap_or(usize::MAX).min(buffer.len());
        let read = match self.file.read_at(&mut buffer[..wanted], part.start)? {
            // The file has become shorter.
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
