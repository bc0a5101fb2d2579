//! Runs the user's command: the only file that starts or signals a process.
//!
//! Three rules make "nothing of the command is left" safe to promise.
//!
//! - A command is a process group, and its leader is reaped last of all: as long as the leader is a zombie,
//!   the kernel gives the group's number to nobody else, so a signal to the group cannot hit a stranger.
//! - What leaves the group (`setsid`, a double fork) comes to us once its parent has ended, because we are
//!   PID 1 or a child subreaper. To whom such an orphan belonged cannot be told any more, so orphans are
//!   KILLed when no other command runs.
//! - Reaping happens under the lock that is held across a start, and a command's leader is reaped by its own
//!   run only. So no exit status is ever taken by the reaper, and no pid is reused between look and KILL.
//!
//! Not `tokio::process` then: its `wait` reaps.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{self, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, fmt, fs, io};

use async_trait::async_trait;
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgrp, getpid};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::signal::unix::{self, SignalKind};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, info, warn};
use wait4::{ResUse, try_wait4_pid};

use super::{Command, Exited, Pulse, Runner, StartError};
use crate::job::report::Used;
use crate::job::verdict::Exit;

/// How long output may still come after the command has ended. What was written before its end is read in
/// milliseconds; after that, something the command left behind holds the pipe, perhaps for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// How long to wait for what was KILLed. It goes in milliseconds, unless it hangs in the kernel (a dead NFS server).
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// How long a forwarded line may be, in bytes; the rest of it is dropped.
const MAX_LINE: usize = 8 * 1024;

/// How many of the last lines of the standard error are kept, and how much of each, in characters.
const LAST_LINES: usize = 20;
const LAST_LINE_LENGTH: usize = 1000;

/// The next look, if no SIGCHLD comes before: while waiting for an end that may be hours away …
const SLOW_TICK: Duration = Duration::from_millis(500);
/// … and for ends that we asked for, of processes that are not our children and so send us no SIGCHLD.
const QUICK_TICK: Duration = Duration::from_millis(20);

/// The leaders that run or are not reaped yet. Children belong to the process, not to a value, and so does this.
static LEADERS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn leaders() -> MutexGuard<'static, BTreeSet<i32>> {
    LEADERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs commands, any number of them at a time.
pub struct Processes {
    reaper: Option<AbortOnDropHandle<()>>,
}

impl Processes {
    /// Touches only what it started itself: what leaves its command's group lives on, and the leader of a dropped run
    /// stays a zombie.
    ///
    /// For a process that has children of its own, a test for example.
    #[expect(clippy::new_without_default, reason = "`adopting` is what a program wants; it should not be missed")]
    pub fn new() -> Self {
        Self { reaper: None }
    }

    /// Becomes the subreaper of all that its commands start, reaps orphans, and KILLs those that outlive the commands.
    ///
    /// For a process in which nothing else starts processes: they would be taken for orphans. Only what is in our
    /// own process group is spared (helpers of a wrapper script that ended with `exec leasehold`). As PID 1 that
    /// goes for all orphans of the container, those of a debugging session too.
    pub fn adopting() -> io::Result<Self> {
        set_child_subreaper(true)?;
        let reaper = tokio::spawn(reap_orphans(unix::signal(SignalKind::child())?));
        Ok(Self { reaper: Some(AbortOnDropHandle::new(reaper)) })
    }

    #[expect(clippy::disallowed_methods, reason = "the command inherits the environment, less what is ours")]
    fn start(&self, command: &Command, pulse: &Pulse) -> io::Result<(Running, Output)> {
        // Before the start, so that no end is missed.
        let signals = unix::signal(SignalKind::child())?;
        let stdin = command.stdin.as_ref().map(File::open).transpose()?.map_or_else(Stdio::null, Stdio::from);
        let mut program = process::Command::new(&command.program);
        program.args(&command.args).process_group(0);
        program.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"LEASEHOLD_")) {
            program.env_remove(name);
        }
        program.envs(command.env.iter().map(|(name, value)| (name, value)));

        let mut leaders = leaders();
        let mut child = program.spawn()?;
        let leader = i32::try_from(child.id()).expect("a pid is a positive i32");
        leaders.insert(leader);
        drop(leaders);

        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let running = Running { leader, signals, adopting: self.reaper.is_some() };
        let stdout = ChildStdout::from_std(stdout.expect("stdout is piped"))?;
        let stderr = ChildStderr::from_std(stderr.expect("stderr is piped"))?;
        Ok((running, Output::of(stdout, stderr, pulse)))
    }
}

#[async_trait]
impl Runner for Processes {
    async fn run(&self, command: Command, halt: CancellationToken, pulse: Pulse) -> Result<Exited, StartError> {
        let (mut running, mut output) =
            self.start(&command, &pulse).map_err(|err| start_error(&command.program, &err))?;
        let halted = tokio::select! {
            () = running.leader_has_ended() => false,
            () = halt.cancelled() => true,
        };
        if halted {
            // All of the group, also when the leader is gone: a shell that TERM ends at once must not cost the
            // program it started the time to save its state.
            running.signal(Signal::SIGTERM);
            if timeout(command.stop_grace, running.group_has_ended()).await.is_err() {
                warn!(grace = ?command.stop_grace, "the command did not end in time after TERM; killing it");
            }
        } else {
            tokio::select! {
                () = output.drain() => {}
                () = halt.cancelled() => {}
            }
        }
        let (exit, used) = running.end().await;
        output.drain().await;
        Ok(Exited { exit, used: Some(used), last_words: output.last_words() })
    }
}

/// A command that is not reaped yet. Dropping it KILLs its group.
struct Running {
    /// Its pid, which is its group's number too.
    leader: i32,
    signals: unix::Signal,
    adopting: bool,
}

impl Running {
    /// To the whole group. Only while the leader is not reaped.
    fn signal(&self, signal: Signal) {
        // An error says that nobody is left who may be signalled.
        let _ = killpg(Pid::from_raw(self.leader), signal);
    }

    fn leader_ended(&self) -> bool {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        // Not only `Exited` and `Signaled`: nix has no word for an end by a real-time signal and returns an error.
        waitid(Id::Pid(Pid::from_raw(self.leader)), peek) != Ok(WaitStatus::StillAlive)
    }

    /// The group but its leader, as far as it lives.
    fn members(&self) -> Vec<Process> {
        Process::all().filter(|it| it.group == self.leader && it.pid != self.leader && !it.is_zombie).collect()
    }

    async fn leader_has_ended(&mut self) {
        while !self.leader_ended() {
            self.child_ended(SLOW_TICK).await;
        }
    }

    async fn group_has_ended(&mut self) {
        self.leader_has_ended().await;
        while !self.members().is_empty() {
            self.child_ended(QUICK_TICK).await;
        }
    }

    /// Waits until a child may have ended, and no longer than `tick`.
    async fn child_ended(&mut self, tick: Duration) {
        let _ = timeout(tick, self.signals.recv()).await;
    }

    /// KILLs whatever is left of the command, waits until it is gone, and only then reaps the leader.
    async fn end(&mut self) -> (Exit, Used) {
        if let Some(ended) = self.end_at_once() {
            return ended;
        }
        let mut left = self.kill();
        if self.leader_ended() && !left.is_empty() {
            warn!(processes = %Names(&left), "the command has ended but left processes running; killing them");
        }
        let killed_at = Instant::now();
        while !self.leader_ended() || (!left.is_empty() && killed_at.elapsed() < KILL_LIMIT) {
            self.child_ended(QUICK_TICK).await;
            left = self.kill();
        }
        if !left.is_empty() {
            warn!(processes = %Names(&left), "KILL did not end what the command left running");
        }
        self.reap(&mut leaders())
    }

    /// The usual end, without a look at every process of the machine: the leader has ended, and a subreaper whose
    /// children are all leaders has no orphan, so nobody is left of the command.
    fn end_at_once(&self) -> Option<(Exit, Used)> {
        let mut leaders = leaders();
        // In this order: from its end on, what the leader has left is our child.
        let at_once = self.adopting && self.leader_ended() && {
            let children = children();
            children.contains(&self.leader) && children.iter().all(|child| leaders.contains(child))
        };
        at_once.then(|| self.reap(&mut leaders))
    }

    fn reap(&self, leaders: &mut BTreeSet<i32>) -> (Exit, Used) {
        let reaped = try_wait4_pid(self.leader.unsigned_abs()).ok().flatten();
        let ResUse { status, rusage } = reaped.expect("the leader has ended, and nobody else reaps it");
        leaders.remove(&self.leader);
        let exit = status.code().map(Exit::Code).or(status.signal().map(Exit::Signal));
        let used = Used { cpu: rusage.utime + rusage.stime, peak_memory: rusage.maxrss };
        (exit.expect("ended by exit or by a signal"), used)
    }

    /// KILLs the group and, if no other command runs, the orphans. Returns who lived until now, less the leader.
    fn kill(&self) -> Vec<Process> {
        let leaders = leaders();
        let mut left = self.members();
        self.signal(Signal::SIGKILL);
        if self.adopting {
            left.extend(sweep(&leaders, Some(self.leader)).into_iter().filter(|it| it.group != self.leader));
        }
        left
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // If it was reaped, then the number may be somebody else's by now.
        if leaders().contains(&self.leader) {
            self.kill();
            // From here on it is an orphan like any other, and the reaper's.
            leaders().remove(&self.leader);
        }
    }
}

/// Reaps orphans, and ends what commands left behind whose run was dropped.
async fn reap_orphans(mut signals: unix::Signal) {
    loop {
        sweep_if_due(&leaders());
        let _ = timeout(SLOW_TICK, signals.recv()).await;
        // A storm of orphans costs some looks a second, not one for each of them.
        sleep(QUICK_TICK).await;
    }
}

/// Asks the kernel first, which is much cheaper than a look at every process: has an orphan ended, or, while no command
/// runs, is there any?
fn sweep_if_due(leaders: &BTreeSet<i32>) {
    let is_due = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
        Err(Errno::ECHILD) => false,
        Ok(WaitStatus::StillAlive) => leaders.is_empty(),
        // A leader is reaped by its own run; who stands behind it in the kernel's list is seen at the next look.
        Ok(status) => status.pid().is_none_or(|pid| !leaders.contains(&pid.as_raw())),
        // nix has no word for an end by a real-time signal.
        Err(_) => true,
    };
    if is_due {
        sweep(leaders, None);
    }
}

/// Our children, ended or not; empty if the kernel does not list them (`CONFIG_PROC_CHILDREN`).
fn children() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    // What a thread that has ended since had started is another thread's now, and may be missing here; orphans are the
    // first thread's, which never ends before us.
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Reaps the orphans that have ended; if no command runs but the one that is `ending`, KILLs the others. Returns those.
fn sweep(leaders: &BTreeSet<i32>, ending: Option<i32>) -> Vec<Process> {
    let idle = leaders.iter().all(|&leader| Some(leader) == ending);
    let (us, our_group) = (getpid().as_raw(), getpgrp().as_raw());
    let orphans = Process::all().filter(|it| it.parent == us && !leaders.contains(&it.pid));
    let killed = orphans.filter(|orphan| {
        let pid = Pid::from_raw(orphan.pid);
        // The kernel's word that this is our child, alive, and so its number its own; everything else is reaped by this.
        let lives = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) == Ok(WaitStatus::StillAlive);
        lives && idle && orphan.group != our_group && kill(pid, Signal::SIGKILL).is_ok()
    });
    killed.collect()
}

/// A line of `/proc/<pid>/stat`, see proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    name: String,
    is_zombie: bool,
    parent: i32,
    group: i32,
}

impl Process {
    fn all() -> impl Iterator<Item = Self> {
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
struct Names<'a>(&'a [Process]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.0.len())?;
        self.0.iter().take(5).try_for_each(|it| write!(f, " {} ({})", it.name, it.pid))
    }
}

/// The command's output on its way into the log.
struct Output {
    forwarders: JoinSet<()>,
    enough: CancellationToken,
    last_words: LastWords,
}

/// The last lines of the standard error.
#[derive(Clone, Default)]
struct LastWords(Arc<Mutex<VecDeque<String>>>);

impl LastWords {
    fn add(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line.chars().take(LAST_LINE_LENGTH).collect());
    }
}

impl Output {
    fn of(stdout: ChildStdout, stderr: ChildStderr, pulse: &Pulse) -> Self {
        let (mut forwarders, enough) = (JoinSet::new(), CancellationToken::new());
        let last_words = LastWords::default();
        forwarders.spawn(forward(stdout, "stdout", enough.clone(), pulse.clone(), None).in_current_span());
        forwarders.spawn(
            forward(stderr, "stderr", enough.clone(), pulse.clone(), Some(last_words.clone())).in_current_span(),
        );
        Self { forwarders, enough, last_words }
    }

    fn last_words(&self) -> Vec<String> {
        self.last_words.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Waits until both streams have been closed and forwarded, and no longer than [`DRAIN`].
    async fn drain(&mut self) {
        if timeout(DRAIN, async { while self.forwarders.join_next().await.is_some() {} }).await.is_err() {
            self.enough.cancel();
            while self.forwarders.join_next().await.is_some() {}
        }
    }
}

/// Logs line by line until the stream is closed or it is `enough`. Never holds more than one line and one chunk.
async fn forward(
    pipe: impl AsyncRead + Unpin,
    stream: &'static str,
    enough: CancellationToken,
    pulse: Pulse,
    last_words: Option<LastWords>,
) {
    let mut pipe = BufReader::new(pipe);
    let (mut line, mut cut) = (Vec::new(), 0);
    loop {
        let chunk = tokio::select! {
            chunk = pipe.fill_buf() => chunk,
            () = enough.cancelled() => break,
        };
        let Ok(chunk @ [_, ..]) = chunk else { break };
        pulse.beat();
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let kept = text.len().min(MAX_LINE - line.len());
            line.extend_from_slice(&text[..kept]);
            cut += text.len() - kept;
            if text.len() < piece.len() {
                tell(stream, &line, cut, last_words.as_ref());
                line.clear();
                cut = 0;
                // A flood must not keep this thread from the heartbeat.
                tokio::task::coop::consume_budget().await;
            }
        }
        let read = chunk.len();
        pipe.consume(read);
    }
    if !line.is_empty() {
        tell(stream, &line, cut, last_words.as_ref());
    }
}

fn tell(stream: &'static str, line: &[u8], cut: usize, last_words: Option<&LastWords>) {
    let text = String::from_utf8_lossy(line);
    if let Some(last_words) = last_words {
        last_words.add(&text);
    }
    let marker = if cut > 0 { format!(" [cut here: {cut} more bytes]") } else { String::new() };
    info!(target: "command", stream, line = %format_args!("{text}{marker}"));
}

/// The file that will be run: looked for in PATH, unless `program` has a slash in it. For a check before any work.
pub fn find_program(program: &OsStr) -> Result<PathBuf, StartError> {
    which::which(program).map_err(|_| {
        let why = if file_of(program).is_some() { Errno::EACCES } else { Errno::ENOENT };
        start_error(program, &why.into())
    })
}

/// Executable or not.
#[expect(clippy::disallowed_methods, reason = "PATH is searched as the kernel would")]
fn file_of(program: &OsStr) -> Option<PathBuf> {
    if is_path(program) {
        return Some(PathBuf::from(program)).filter(|file| file.exists());
    }
    env::split_paths(&env::var_os("PATH")?).map(|directory| directory.join(program)).find(|file| file.is_file())
}

fn is_path(program: &OsStr) -> bool {
    program.as_encoded_bytes().contains(&b'/')
}

/// What the kernel says, in words that tell what to change.
fn start_error(program: &OsStr, err: &io::Error) -> StartError {
    let file = file_of(program);
    let why = match err.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) if file.is_some() => "what runs it is missing in this image: the interpreter in its first \
            line (#!), or its dynamic loader"
            .into(),
        Some(Errno::ENOENT) if is_path(program) => "no such file".into(),
        Some(Errno::ENOENT) => "not found in PATH".into(),
        Some(Errno::EACCES) if file.is_some_and(|file| file.is_dir()) => "is a directory".into(),
        Some(Errno::EACCES) => "not executable; try `chmod +x`, and a volume that is not mounted noexec".into(),
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
        Some(Errno::EAGAIN) => "no more processes are allowed here: the pod's or the user's limit is reached".into(),
        _ => err.to_string(),
    };
    StartError { program: program.to_string_lossy().into_owned(), why }
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
