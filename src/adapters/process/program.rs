//! Finds the file of a command's program, and explains why it cannot be started.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, io};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::ports::StartError;

/// The file that will run: searched in PATH, unless `program` contains a slash. For a check before
/// any work.
pub fn find_program(program: &OsStr) -> Result<PathBuf, StartError> {
    if program.is_empty() {
        let why = "the name of the program is empty".to_owned();
        return Err(StartError { program: "''".to_owned(), why, ends_the_run: false });
    }
    which::which(program).map_err(|_| {
        let why = if file_of(program).is_some() { Errno::EACCES } else { Errno::ENOENT };
        start_error(program, &why.into())
    })
}

/// The program's file, even if it is not executable.
#[expect(clippy::disallowed_methods, reason = "PATH is searched as the kernel would")]
fn file_of(program: &OsStr) -> Option<PathBuf> {
    if is_path(program) {
        return Some(PathBuf::from(program)).filter(|file| file.exists());
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

pub(super) fn is_executable(file: &Path) -> bool {
    access(file, AccessFlags::X_OK).is_ok()
}

pub(super) fn is_path(program: &OsStr) -> bool {
    program.as_encoded_bytes().contains(&b'/')
}

/// The kernel's error, with advice on what to change.
pub(super) fn start_error(program: &OsStr, err: &io::Error) -> StartError {
    let file = file_of(program);
    let why = match err.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) if file.is_some() => {
            "its interpreter (first line, #!) or its dynamic loader is missing in this image".into()
        }
        Some(Errno::ENOENT) if is_path(program) => "no such file".into(),
        Some(Errno::ENOENT) => "not found in PATH".into(),
        Some(Errno::EACCES) if file.is_some_and(|file| file.is_dir()) => "is a directory".into(),
        Some(Errno::EACCES) => "not executable; try `chmod +x`, or a volume that is not mounted with noexec".into(),
        Some(Errno::ENOEXEC) => {
            let arch = env::consts::ARCH;
            format!(
                "neither a program for this processor ({arch}) nor a script with an interpreter in its first line (#!)"
            )
        }
        Some(Errno::E2BIG) => {
            "its arguments and environment are too large for the kernel; read data from a file (JOB_FILE) instead"
                .into()
        }
        Some(Errno::EAGAIN) => "the pod's or the user's limit of processes is reached".into(),
        _ => err.to_string(),
    };
    StartError { program: program.to_string_lossy().into_owned(), why, ends_the_run: false }
}
