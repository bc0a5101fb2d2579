//! The machine's processes, as /proc lists them.

use std::{fmt, fs};

/// A line of `/proc/<pid>/stat`, see proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) name: String,
    pub(super) is_zombie: bool,
    pub(super) parent: i32,
    pub(super) group: i32,
    /// In ticks since the machine's start.
    pub(super) started: u64,
}

/// Pid and start time: unlike the pid, they are never reused.
pub(super) type ProcessId = (i32, u64);

impl Process {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let names =
            fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| Self::of(name.to_str()?.parse().ok()?))
    }

    pub(super) fn of(pid: i32) -> Option<Self> {
        Self::parse(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
    }

    /// The living processes of a group, without its leader.
    pub(super) fn in_group(leader: i32) -> Vec<Self> {
        Self::all().filter(|it| it.group == leader && it.pid != leader && !it.is_zombie).collect()
    }

    pub(super) fn id(&self) -> ProcessId {
        (self.pid, self.started)
    }

    /// The environment at its start, `NAME=value` and a NUL each; empty if we may not read it.
    pub(super) fn environment(&self) -> Vec<u8> {
        fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default()
    }

    fn parse(stat: &str) -> Option<Self> {
        // A name may contain any character, even spaces and parentheses.
        let (pid, rest) = stat.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let mut rest = rest.split(' ');
        Some(Self {
            pid: pid.parse().ok()?,
            name: name.to_owned(),
            is_zombie: matches!(rest.next()?, "Z" | "X"),
            parent: rest.next()?.parse().ok()?,
            group: rest.next()?.parse().ok()?,
            // The 22nd field of the line.
            started: rest.nth(16)?.parse().ok()?,
        })
    }
}

/// For the log: the number of processes and the first few names.
pub(super) struct Names<'a>(pub(super) &'a [Process]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.0.len())?;
        self.0.iter().take(5).try_for_each(|it| write!(f, " {} ({})", it.name, it.pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "12 (a) Z (b) S 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 2222 23 24";
        let process = Process::parse(stat).unwrap();
        assert_eq!((process.name.as_str(), process.parent, process.group), ("a) Z (b", 3, 4));
        assert_eq!((process.id(), process.is_zombie), ((12, 2222), false));
    }
}
