//! The files of a memory cgroup, of version 1 or 2.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::ports::MemoryUse;

/// The memory cgroup of this process. Its files stay open: opening one costs more than reading it.
#[derive(Debug)]
pub struct MemoryCgroup {
    /// The names of two versions of the same things.
    names: &'static Names,
    limit: File,
    current: File,
    stat: File,
    events: File,
}

/// See <https://docs.kernel.org/admin-guide/cgroup-v2.html> and the page of version 1 beside it.
#[derive(Debug)]
struct Names {
    limit: &'static str,
    current: &'static str,
    events: &'static str,
    /// The lines of `memory.stat` that count memory which the kernel takes back before it kills.
    reclaimable: &'static [&'static str],
}

const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    current: "memory.usage_in_bytes",
    events: "memory.oom_control",
    reclaimable: &["total_inactive_file", "total_active_file"],
};
const V2: Names = Names {
    limit: "memory.max",
    current: "memory.current",
    events: "memory.events",
    reclaimable: &["inactive_file", "active_file", "slab_reclaimable"],
};

/// Version 1 writes "no limit" as the largest multiple of a page.
const NO_LIMIT: u64 = i64::MAX as u64 / 2;

impl MemoryCgroup {
    /// `None` if the kernel does not show one.
    pub fn of_this_process() -> Option<Self> {
        let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
        Self::find(Path::new("/sys/fs/cgroup"), &membership)
    }

    /// `membership` is as in `/proc/self/cgroup`: lines of `number:controllers:path`.
    pub fn find(root: &Path, membership: &str) -> Option<Self> {
        let (mut v1, mut v2) = (None, None);
        for line in membership.lines() {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                v2 = Some((root.to_owned(), path));
            } else if controllers.split(',').any(|it| it == "memory") {
                v1 = Some((root.join("memory"), path));
            }
        }
        // A container may see only its own cgroup, as the root, and the path outside of it.
        let open = |names: &'static Names, (root, path): (PathBuf, &str)| {
            Self::open(names, &root.join(path)).or_else(|_| Self::open(names, &root)).ok()
        };
        v1.and_then(|at| open(&V1, at)).or_else(|| v2.and_then(|at| open(&V2, at)))
    }

    fn open(names: &'static Names, folder: &Path) -> io::Result<Self> {
        let file = |name: &str| File::open(folder.join(name));
        Ok(Self {
            names,
            limit: file(names.limit)?,
            current: file(names.current)?,
            stat: file("memory.stat")?,
            events: file(names.events)?,
        })
    }

    /// In bytes; it may change while the container runs.
    pub fn limit(&self) -> Option<u64> {
        number(&self.limit).filter(|limit| (1..NO_LIMIT).contains(limit))
    }

    /// `None` without a limit.
    pub fn in_use(&self) -> Option<MemoryUse> {
        let limit = self.limit()?;
        Some(MemoryUse { used: self.unreclaimable(0), limit })
    }

    /// The memory that the kernel cannot take back: at the limit it drops the page cache before it
    /// kills. Reads the cheaper of two files if that is already below `threshold`.
    pub(super) fn unreclaimable(&self, threshold: u64) -> u64 {
        let current = number(&self.current).unwrap_or_default();
        if current < threshold {
            return current;
        }
        let reclaimable =
            self.names.reclaimable.iter().filter_map(|name| field(&self.stat, name)).sum();
        current.saturating_sub(reclaimable)
    }

    /// How many processes the kernel has killed at the limit. `None` before Linux 4.13.
    pub(super) fn oom_kills(&self) -> Option<u64> {
        field(&self.events, "oom_kill")
    }
}

/// The number in a file of one line; `None` for `max`.
fn number(file: &File) -> Option<u64> {
    text(file)?.trim().parse().ok()
}

/// The number in a line `name number`.
fn field(file: &File, name: &str) -> Option<u64> {
    let text = text(file)?;
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

fn text(file: &File) -> Option<String> {
    // `memory.stat` has about 2 KiB.
    let mut buffer = vec![0; 8 << 10];
    let length = file.read_at(&mut buffer, 0).ok()?;
    buffer.truncate(length);
    String::from_utf8(buffer).ok()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const STAT: &str =
        "anon 700\nfile 250\ninactive_file 100\nactive_file 50\nslab_reclaimable 20\n";

    #[test]
    fn version_2_is_read() {
        let root = folder(&[
            ("memory.max", "1000\n"),
            ("memory.current", "900\n"),
            ("memory.stat", STAT),
            ("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 1\n"),
        ]);
        let cgroup = MemoryCgroup::find(root.path(), "0::/\n").unwrap();
        assert_eq!(cgroup.limit(), Some(1000));
        assert_eq!(cgroup.unreclaimable(901), 900, "memory.stat is not needed");
        assert_eq!(cgroup.unreclaimable(900), 730);
        assert_eq!(cgroup.oom_kills(), Some(2));
        fs::write(root.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(cgroup.limit(), None);
    }

    #[test]
    fn version_1_is_read_below_its_path_or_at_the_root() {
        let files = |below: &str| {
            [
                (format!("memory{below}/memory.limit_in_bytes"), "2000\n"),
                (format!("memory{below}/memory.usage_in_bytes"), "1500\n"),
                (
                    format!("memory{below}/memory.stat"),
                    "inactive_file 9\ntotal_inactive_file 300\ntotal_active_file 200\n",
                ),
                (format!("memory{below}/memory.oom_control"), "under_oom 0\noom_kill 7\n"),
            ]
        };
        for below in ["", "/kubepods/pod1"] {
            let files = files(below);
            let root = folder(&files.each_ref().map(|(name, text)| (name.as_str(), *text)));
            let membership = "3:cpu,cpuacct:/kubepods/pod1\n2:memory:/kubepods/pod1\n0::/\n";
            let cgroup = MemoryCgroup::find(root.path(), membership).unwrap();
            assert_eq!(cgroup.limit(), Some(2000));
            assert_eq!(cgroup.unreclaimable(0), 1000);
            assert_eq!(cgroup.oom_kills(), Some(7));
        }
    }

    #[test]
    fn a_process_without_a_memory_cgroup_has_none() {
        let root = folder(&[]);
        assert!(MemoryCgroup::find(root.path(), "0::/\n").is_none());
        assert!(MemoryCgroup::find(root.path(), "nonsense").is_none());
    }
}
