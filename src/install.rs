//! `leasehold install`: copies this binary to a folder from which another container runs it.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Copies the running binary to the file `name` in `folder`, executable for all users, and returns
/// its path.
///
/// The new file replaces an old one atomically. The image needs no shell and no `cp`.
pub fn install(folder: &Path, name: &str) -> io::Result<PathBuf> {
    let path = folder.join(name);
    // The path of the start may be relative, or lead to another file by now.
    let mut running = File::open("/proc/self/exe")?;
    let mut copy = NamedTempFile::new_in(folder)?;
    io::copy(&mut running, &mut copy)?;
    copy.as_file().set_permissions(Permissions::from_mode(0o755))?;
    copy.persist(&path)?;
    Ok(path)
}
