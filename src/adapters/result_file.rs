//! Writes to the result file of a job, as a command does.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NONBLOCK;
use serde_json::Value;

/// Appends a line, unless the file has more than `longest` bytes. Only to a file: the opening of a pipe that the command has put there would block.
pub(super) fn append(result_file: &Path, line: &Value, longest: u64) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.append(true).create(true).custom_flags(O_NONBLOCK).open(result_file)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if metadata.len() > longest {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    // One write, since the program may append lines of its own.
    file.write_all(format!("{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_goes_to_a_file_only() {
        let home = tempfile::tempdir().unwrap();
        let (file, pipe) = (home.path().join("file"), home.path().join("pipe"));
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        append(&file, &json!({ "reason": "a" }), 0).unwrap();
        append(&file, &json!({ "reason": "b" }), 15).unwrap();
        append(&file, &json!({ "reason": "c" }), 29).unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), "{\"reason\":\"a\"}\n{\"reason\":\"b\"}\n");
        append(&pipe, &json!({}), 0).unwrap_err();
        // With a reader, it opens.
        let _reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
        append(&pipe, &json!({}), 0).unwrap_err();
    }
}
