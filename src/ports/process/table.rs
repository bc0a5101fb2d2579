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
}

impl Process {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
            entry.file_name().to_str()?.parse::<i32>().ok()?;
            Self::parse(&String::from_utf8_lossy(&fs::read(entry.path().join("stat")).ok()?))
        })
    }

    fn parse(stat: &str) -> Option<Self> {
        // A name may hold anything, spaces and parentheses too.
        let (pid, rest) = stat.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let mut rest = rest.split(' ');
        Some(Self {
            pid: pid.parse().ok()?,
            name: name.to_owned(),
            is_zombie: matches!(rest.next()?, "Z" | "X"),
            parent: rest.next()?.parse().ok()?,
            group: rest.next()?.parse().ok()?,
        })
    }
}

/// For the log: the first few, and how many there are.
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
        let parsed = Process::parse("12 (a) Z (b) S 3 4 5 6 7");
        assert_eq!(parsed, Some(Process { pid: 12, name: "a) Z (b".into(), is_zombie: false, parent: 3, group: 4 }));
    }
}
