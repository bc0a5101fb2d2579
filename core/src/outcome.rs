//! How the work on a message ended, and the facts about it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How a command ended, or the handler of a program that embeds leasehold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    Handler(Handled),
}

/// How a handler ended: a function that does the work instead of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    Succeeded,
    Failed,
    /// A later attempt may succeed.
    Temporary,
    /// This input will never work.
    Permanent,
    Panicked,
    /// Dropped, because it did not end within the stop grace.
    Dropped,
}

impl Exit {
    pub fn is_success(self) -> bool {
        matches!(self, Self::Code(0) | Self::Handler(Handled::Succeeded))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            // Out of memory is by far the most frequent cause of a KILL from outside.
            Self::Signal(9) => f.write_str("signal 9 (KILL; out of memory?)"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Handler(handled) => f.write_str(match handled {
                Handled::Succeeded => "success",
                Handled::Failed => "an error",
                Handled::Temporary => "a temporary failure",
                Handled::Permanent => "a permanent failure",
                Handled::Panicked => "a panic",
                Handled::Dropped => "its cancellation",
            }),
        }
    }
}

/// The command's report in `JOB_RESULT_FILE`: the last valid value of each field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandReport {
    pub retry_after: Option<Duration>,
    pub reason: Option<String>,
}

/// The outcome of the work on all objects of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command exited 0 for each object, and its output was published.
    Finished,
    /// All objects are gone (`--missing-object ignore`).
    ObjectsGone,
    /// According to its record, an earlier delivery finished the work (`--idempotency`).
    AlreadyDone,
    /// The first failure; nothing after it was tried.
    Failed(Failure),
}

/// The first failure in the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The object could not be read this time.
    Fetch(String),
    /// The object can never be used: archived, overwritten since the event, or with a key that no
    /// argument can hold.
    Unreadable(String),
    /// The command did not run: no work directory, or no such command.
    Start(String),
    /// A warm worker has ended several times before it took one.
    WorkerNotStarted(String),
    Exit(Exit, CommandReport),
    /// The command reached `--memory-guard` and was ended.
    OutOfMemory(String),
    /// The kernel killed a process of the command at the memory limit. The command itself may have
    /// noticed that, and decided how to exit.
    KilledAtMemoryLimit {
        why: String,
        exit: Exit,
        report: CommandReport,
    },
    Publish(String),
    /// The idempotency record could not be read or written.
    Record(String),
    /// Another pod has claimed the work.
    Superseded(String),
    /// Halted on request.
    Halted,
    /// A bug in leasehold or one of its libraries, triggered by this message.
    Panicked(String),
}

/// Why there was nothing to do for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoWorkReason {
    /// `s3:TestEvent`, which S3 sends when notifications are configured.
    TestEvent,
    /// None of its events is work (`--events`).
    Ignored,
    /// The objects are gone, which is not an error (`--missing-object ignore`).
    ObjectsGone,
}

/// The facts about the work on a message, beside its outcome.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkRecord {
    /// How the last command ended, if one ran.
    pub exit: Option<Exit>,
    /// The command's own reason, see `JOB_RESULT_FILE`.
    pub reason: Option<String>,
    /// The error that kept occurring when the work was halted.
    pub last_error: Option<String>,
    /// The last lines of the last command's standard error, the oldest first.
    pub stderr_tail: Vec<String>,
    pub timings: Timings,
    /// `None` if no command ran.
    pub usage: Option<ResourceUsage>,
    /// `None` if publishing was not configured or not reached.
    pub published: Option<Manifest>,
    pub metrics: CommandMetrics,
}

/// The numbers that the commands of a message reported, by name. Names become labels of a metric,
/// so they are few and plain.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CommandMetrics(BTreeMap<String, f64>);

impl CommandMetrics {
    /// The most names.
    pub const MOST: usize = 8;
    const LONGEST_NAME: usize = 40;

    /// Replaces an earlier value. The error says what is wrong with the name or the value.
    pub fn set(&mut self, name: &str, value: f64) -> Result<(), &'static str> {
        let is_plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_');
        if !(name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(is_plain)) {
            return Err("the name must have lower-case letters, digits and _, a letter first");
        }
        if name.len() > Self::LONGEST_NAME {
            return Err("the name is longer than 40 characters");
        }
        if !value.is_finite() {
            return Err("the value must be a finite number");
        }
        if self.0.len() == Self::MOST && !self.0.contains_key(name) {
            return Err("there are 8 names already");
        }
        self.0.insert(name.to_owned(), value);
        Ok(())
    }

    /// Adds the values of the next command, which replace earlier ones.
    pub fn append(&mut self, more: Self) {
        for (name, value) in more.0 {
            // The first names win.
            let _ = self.set(&name, value);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From the receive request to its answer; mostly waiting.
    pub receive: Duration,
    pub fetch: Duration,
    /// From the download to the command, while other messages' commands ran.
    pub turn: Duration,
    pub command: Duration,
    pub publish: Duration,
    /// From the verdict to the queue's last answer.
    pub settle: Duration,
    /// From the receive to the end.
    pub total: Duration,
}

/// The resources that the commands of a message used, as `wait4(2)` counts them: each command's
/// first process and all descendants that were waited for. A process whose parent did not wait for
/// it is not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceUsage {
    /// User and system time together, of all commands.
    pub cpu: Duration,
    /// The largest resident set of one process, in bytes. `None` if it was no larger than
    /// leasehold's own: until a process becomes the command, the kernel counts our memory as its
    /// memory.
    pub peak_memory: Option<u64>,
}

impl ResourceUsage {
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, peak_memory: self.peak_memory.max(other.peak_memory) }
    }
}

/// The published output of the commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Number of files.
    pub files: u64,
    /// Their total size.
    pub bytes: u64,
    /// The first [`Manifest::LONGEST`] of them, which limits the size of reports.
    pub first: Vec<Published>,
}

/// A file that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its location: `s3://bucket/key`, or a path.
    pub to: String,
    pub bytes: u64,
    /// Such as `CRC64NVME:sB0ELBDWEWM=`, if one was computed.
    pub checksum: Option<String>,
    /// Without quotes, if the store gave one.
    pub etag: Option<String>,
}

impl Manifest {
    /// The most files that are listed.
    pub const LONGEST: usize = 20;

    pub fn add(&mut self, published: Published) {
        self.files += 1;
        self.bytes += published.bytes;
        if self.first.len() < Self::LONGEST {
            self.first.push(published);
        }
    }

    pub fn append(&mut self, more: Self) {
        self.files += more.files;
        self.bytes += more.bytes;
        self.first.extend(more.first);
        self.first.truncate(Self::LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_has_a_plain_name_and_a_finite_value() {
        let mut metrics = CommandMetrics::default();
        let longest = "a".repeat(40);
        for (name, value) in [("rows", 1.0), ("rows", 5.0), ("p95_ms", -0.5), (&longest, 1e308)] {
            assert_eq!(metrics.set(name, value), Ok(()), "{name}");
        }
        let too_long = "a".repeat(41);
        for name in ["", "Rows", "5rows", "_rows", "ro ws", "ro\nws", "ro\0ws", "röws", &too_long]
        {
            assert!(metrics.set(name, 1.0).is_err(), "{name:?}");
        }
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(metrics.set("rows", value).is_err(), "{value}");
        }
        let all: Vec<_> = metrics.iter().collect();
        assert_eq!(all, [(&*longest, 1e308), ("p95_ms", -0.5), ("rows", 5.0)]);
    }

    #[test]
    fn a_message_has_at_most_eight_metrics() {
        let mut metrics = CommandMetrics::default();
        for n in 0..CommandMetrics::MOST {
            metrics.set(&format!("n{n}"), 0.0).unwrap();
        }
        assert!(metrics.set("one_more", 0.0).is_err());
        assert_eq!(metrics.set("n7", 7.0), Ok(()));
        let mut more = CommandMetrics::default();
        for (name, value) in [("one_more", 1.0), ("n0", 1.0)] {
            more.set(name, value).unwrap();
        }
        metrics.append(more);
        let known = |name| metrics.iter().find(|(it, _)| *it == name).map(|(_, value)| value);
        assert_eq!((metrics.iter().count(), known("n0"), known("one_more")), (8, Some(1.0), None));
    }
}
