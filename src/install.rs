//! `leasehold install`: this very binary, put where another container of the pod runs it.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Copies the running binary to `folder`/leasehold, for everybody to execute, and tells where that
/// is.
///
/// Whoever looks sees the old file or the whole new one. Nothing but the kernel is needed: no
/// shell, no `cp`.
pub fn install(folder: &Path) -> io::Result<PathBuf> {
    let place = folder.join("leasehold");
    // Not the path that the binary was started by: that may be relative, or be another file by now.
    let mut running = File::open("/proc/self/exe")?;
    let mut copy = NamedTempFile::new_in(folder)?;
    io::copy(&mut running, &mut copy)?;
    copy.as_file().set_permissions(Permissions::from_mode(0o755))?;
    copy.persist(&place)?;
    Ok(place)
}
