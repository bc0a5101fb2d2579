//! The place on the disk where the files of one object live while it is worked on.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Removed when dropped, on every path out.
///
/// ```text
/// leasehold-XXXXXX/
/// ├── job.json          JOB_FILE
/// ├── input/NAME        JOB_INPUT
/// ├── output/           JOB_OUTPUT_DIR
/// ├── result.jsonl      JOB_RESULT_FILE, if the command writes it
/// └── tmp/              TMPDIR
/// ```
pub struct Workspace {
    root: TempDir,
    name: String,
}

impl Workspace {
    /// A fresh place below `work_dir` for the object `key`; the error names the directory and the flag.
    pub fn create(work_dir: &Path, key: &str) -> Result<Self, String> {
        let create = || {
            let root = tempfile::Builder::new().prefix("leasehold-").tempdir_in(work_dir)?;
            for directory in ["input", "output", "tmp"] {
                std::fs::create_dir(root.path().join(directory))?;
            }
            Ok(Self { root, name: file_name(key) })
        };
        create().map_err(|error: std::io::Error| format!("--work-dir {}: {error}", work_dir.display()))
    }

    pub fn job_file(&self) -> PathBuf {
        self.root.path().join("job.json")
    }

    pub fn input(&self) -> PathBuf {
        self.root.path().join("input").join(&self.name)
    }

    pub fn output(&self) -> PathBuf {
        self.root.path().join("output")
    }

    pub fn result_file(&self) -> PathBuf {
        self.root.path().join("result.jsonl")
    }

    pub fn tmp(&self) -> PathBuf {
        self.root.path().join("tmp")
    }

    /// Removes everything without holding up the runtime, however much it is.
    pub async fn remove(self) {
        // A panic in there has nothing left to clean.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

/// A name for the file that is like the key's last part and harmless everywhere: a key may hold `..`, slashes,
/// control characters and 1024 bytes of Unicode.
fn file_name(key: &str) -> String {
    const LONGEST: usize = 100;
    let last = key.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let harmless = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = last.trim_start_matches(['.', '-']).chars().map(harmless).collect();
    // The end of a name says what kind of file it is.
    let name = &name[name.len().saturating_sub(LONGEST)..];
    if name.is_empty() { "object".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_is_never_the_raw_key() {
        for (key, name) in [
            ("inbox/report.csv", "report.csv"),
            ("a b/ü+%2F.txt", "___2F.txt"),
            ("../../etc/passwd", "passwd"),
            ("..", "object"),
            ("folder/", "folder"),
            ("/", "object"),
            ("-rf", "rf"),
            (".hidden", "hidden"),
            ("a\0b\nc", "a_b_c"),
        ] {
            assert_eq!(file_name(key), name, "{key:?}");
        }
        let long = file_name(&format!("{}.tar.gz", "x".repeat(1000)));
        assert!(long.len() <= 100 && long.ends_with(".tar.gz"), "{long}");
    }

    #[test]
    fn nothing_is_left_behind() {
        let home = tempfile::tempdir().unwrap();
        let space = Workspace::create(home.path(), "k").unwrap();
        std::fs::write(space.input(), "x").unwrap();
        drop(space);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_work_dir_is_named() {
        let error = Workspace::create(Path::new("/nonexistent/work"), "k").err().unwrap();
        assert!(error.starts_with("--work-dir /nonexistent/work: "), "{error}");
    }
}
