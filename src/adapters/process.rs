//! Runs the user's command. Only this module and its submodules start or signal processes.
//!
//! Three rules guarantee that no process of the command remains.
//!
//! - A command is a process group, and its leader is reaped last: while the leader is a zombie, the
//!   kernel does not reuse the group's number, so a signal to the group cannot hit another process.
//! - A process that leaves the group (`setsid`, a double fork) becomes our child once its parent
//!   has ended, because we are PID 1 or a child subreaper, and is killed with its command: see
//!   `orphans.rs`.
//! - Reaping takes the lock that is held during a start, and only a command's own run reaps its
//!   leader. So the reaper never takes a command's exit status, and no pid is reused between look
//!   and SIGKILL.
//!
//! `tokio::process` does not fit, since its `wait` reaps.
//!
//! No process outlives us, even if we get SIGKILL: see `guard.rs`.

mod guard;
mod orphans;
mod output;
mod pace;
mod program;
mod structured;
mod table;

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{self, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpid};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;
use wait4::{ResUse, try_wait4_pid};

use crate::job::outcome::{Exit, ResourceUsage};
use crate::ports::job_facts::JobFacts;
use crate::ports::{Activity, Command, Exited, Runner, StartError};
use guard::Guard;
pub use guard::guard;
use orphans::{Commands, Family, MARKS, Stage, commands, reap_orphans, sweep};
use output::Output;
use pace::{KILL_LIMIT, QUICK_TICK, SLOW_TICK};
pub use program::find_program;
use program::{is_executable, is_path, start_error};
use table::{Names, Process};

/// Set for the command, unless it is already set.
const UNBUFFERED: &str = "PYTHONUNBUFFERED";

/// Runs commands, any number of them at a time.
pub struct Processes {
    is_adopting: bool,
    /// Started with the first command, on the threads of the work: it waits while a command is being
    /// started, which a file system may delay.
    reaper: OnceLock<AbortOnDropHandle<()>>,
    is_guarded: bool,
    /// Started with the first command: a pod that finds no message needs none.
    guard: OnceLock<Option<Arc<Guard>>>,
    /// The programs that were found in PATH.
    found: Mutex<BTreeMap<OsString, PathBuf>>,
}

impl Processes {
    /// Signals and reaps only processes that it started: processes that leave their command's group
    /// survive, and the leader of a dropped run stays a zombie.
    ///
    /// For a process with other children, such as a test.
    #[cfg(feature = "internals")]
    #[expect(
        clippy::new_without_default,
        reason = "a program needs `adopting`, and must not get this by default"
    )]
    pub fn new() -> Self {
        Self::that_adopts(false)
    }

    fn that_adopts(is_adopting: bool) -> Self {
        Self {
            is_adopting,
            reaper: OnceLock::new(),
            is_guarded: false,
            guard: OnceLock::new(),
            found: Mutex::default(),
        }
    }

    /// Becomes the subreaper of its commands' processes, reaps orphans, and kills those that
    /// outlive the commands.
    ///
    /// For a process in which nothing else starts processes: they would be taken for orphans. Only
    /// processes in our own process group are spared (helpers of a wrapper script that ended with
    /// `exec leasehold`). As PID 1 we reap and kill all orphans of the container, including those
    /// of a debugging session.
    pub fn adopting() -> io::Result<Self> {
        set_child_subreaper(true)?;
        Ok(Self::that_adopts(true))
    }

    /// The same, and no process of a command outlives us, whatever ends us. Only for `leasehold`
    /// itself, because it starts its own program a second time, which calls [`guard()`].
    pub fn guarded() -> io::Result<Self> {
        Ok(Self { is_guarded: getpid().as_raw() != 1, ..Self::adopting()? })
    }

    fn guard(&self) -> Option<Arc<Guard>> {
        let start = || match Guard::start() {
            Ok(guard) => Some(Arc::new(guard)),
            Err(error) => {
                warn!(%error, "the guard process could not be started: if leasehold gets SIGKILL, the command keeps running");
                None
            }
        };
        if self.is_guarded { self.guard.get_or_init(start).clone() } else { None }
    }

    /// The program's file: otherwise the child calls execve for each directory of PATH. If no file is
    /// found, the kernel reports the reason.
    fn path_of(&self, program: &OsStr) -> PathBuf {
        if is_path(program) {
            return program.into();
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = found.get(program).filter(|path| is_executable(path)) {
            return path.clone();
        }
        match find_program(program) {
            Ok(path) => found.entry(program.to_owned()).insert_entry(path).get().clone(),
            Err(_) => program.into(),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the command inherits the environment, without our variables"
    )]
    fn start(&self, command: &Command, activity: &Activity) -> io::Result<(Running, Output)> {
        // Before the start, so that no exit is missed.
        let signals = unix::signal(SignalKind::child())?;
        if self.is_adopting {
            let of_orphans = unix::signal(SignalKind::child())?;
            self.reaper
                .get_or_init(|| AbortOnDropHandle::new(tokio::spawn(reap_orphans(of_orphans))));
        }
        let stdin = command
            .stdin
            .as_ref()
            .map(File::open)
            .transpose()?
            .map_or_else(Stdio::null, Stdio::from);
        let mut program = process::Command::new(self.path_of(&command.program));
        program.arg0(&command.program).args(&command.args).process_group(0);
        let ((stdout, its_stdout), (stderr, its_stderr)) = (output_pipe()?, output_pipe()?);
        program.stdin(stdin).stdout(its_stdout).stderr(its_stderr);
        for (name, _) in env::vars_os().filter(|(name, _)| is_ours(name)) {
            program.env_remove(name);
        }
        // Python would buffer its output until it has 8 KiB.
        if env::var_os(UNBUFFERED).is_none() {
            program.env(UNBUFFERED, "1");
        }
        let environment = command.variables.clone().unwrap_or_else(|| command.job.environment());
        let mark = mark(&environment);
        program.envs(environment);

        let guard = self.guard();
        let mut commands = commands();
        let child = spawn(&mut program)?;
        let leader = child.id().cast_signed();
        commands.insert(leader, Family::new(leader, Stage::Runs, mark.clone()));
        drop(commands);
        orphans::wake_reaper();
        if let Some(guard) = &guard {
            guard.report_start(leader, mark.as_deref());
        }

        let running = Running { leader, signals, adopting: self.is_adopting, guard };
        let stdout = ChildStdout::from_std(OwnedFd::from(stdout).into())?;
        let stderr = ChildStderr::from_std(OwnedFd::from(stderr).into())?;
        Ok((running, Output::of(stdout, stderr, activity)))
    }
}

/// Whether the command must not inherit this variable: a setting of leasehold, or the value of
/// another job, such as the `JOB_KEY` of a process that started leasehold.
fn is_ours(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"LEASEHOLD_")
        || JobFacts::VARIABLES.iter().any(|variable| name == *variable)
}

/// The peak memory of a command, if it is its own: a process that we start counts our own peak as its
/// own until its exec. Ours only grows, so it is read only if it may be too old.
fn own_peak(peak: u64) -> Option<u64> {
    static OURS: AtomicU64 = AtomicU64::new(0);
    if peak <= OURS.load(Ordering::Relaxed) {
        return None;
    }
    let ours = our_peak();
    OURS.store(ours, Ordering::Relaxed);
    Some(peak).filter(|peak| *peak > ours)
}

/// Our own peak memory in bytes, see proc_pid_status(5). `getrusage(2)` would include the peak of our
/// parent in the same way.
fn our_peak() -> u64 {
    const KIBIBYTE: u64 = 1024;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    // The kernel counts pages per processor, and adds the counts up now and then: add some slack.
    peak.map_or(u64::MAX, |kibibytes: u64| kibibytes.saturating_mul(KIBIBYTE) + (1 << 20))
}

/// A pipe belongs to its creator, but the command may have changed its user (gosu, su-exec) when it
/// reopens the pipe as /dev/stdout.
fn output_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (ours, its) = io::pipe()?;
    fchmod(&its, Mode::from_bits_truncate(0o666))?;
    Ok((ours, its))
}

/// Starts the program with no signal blocked: `std` passes on the thread's signal mask.
fn spawn(program: &mut process::Command) -> io::Result<process::Child> {
    let ours = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let child = program.spawn();
    ours.thread_set_mask()?;
    child
}

/// The variable that only the processes of this command have in their environment.
fn mark(environment: &[(OsString, OsString)]) -> Option<Vec<u8>> {
    let variable = |(name, value): &(OsString, OsString)| {
        [name.as_encoded_bytes(), b"=", value.as_encoded_bytes()].concat()
    };
    let has =
        |mark: &[u8]| environment.iter().map(variable).find(|variable| variable.starts_with(mark));
    MARKS.into_iter().find_map(has)
}

#[async_trait]
impl Runner for Processes {
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        if command.variables.is_none() {
            let job_file = &command.job.job_file;
            std::fs::write(job_file, command.job.to_json()).map_err(|error| StartError {
                program: command.program.to_string_lossy().into_owned(),
                why: format!("its JOB_FILE {}: {error}", job_file.display()),
                ends_the_run: false,
            })?;
        }
        let (mut running, mut output) =
            self.start(&command, &activity).map_err(|err| start_error(&command.program, &err))?;
        let halted = output
            .forward_during(async {
                tokio::select! {
                    () = running.wait_for_leader() => false,
                    () = halt.cancelled() => true,
                }
            })
            .await;
        if halted {
            // Waits for all processes, even after the leader has exited: a shell ends at once at
            // SIGTERM, but the program that it started needs time to save its state.
            running.terminate();
            let ending = output.forward_during(running.wait_for_family());
            if timeout(command.stop_grace, ending).await.is_err() {
                warn!(grace = ?command.stop_grace, "the command did not exit within --stop-grace after SIGTERM; killing it");
            }
        } else if !output.is_forwarded() {
            let ending = async { tokio::join!(output.drain(), running.end_escaped()) };
            tokio::select! {
                _ = ending => {}
                () = halt.cancelled() => {}
            }
        }
        let Ended { exit, used, left_no_writer } = output.forward_during(running.end()).await;
        output.drain().await;
        Ok(Exited {
            exit,
            usage: Some(used),
            stderr_tail: output.stderr_tail(),
            out_of_memory: None,
            left_no_writer,
        })
    }
}

/// How a command ended that is reaped.
struct Ended {
    exit: Exit,
    used: ResourceUsage,
    /// Whether it is certain that none of its processes remain.
    left_no_writer: bool,
}

/// A command that is not reaped yet. Dropping it kills its group.
struct Running {
    /// Its pid, which is also its group's number.
    leader: i32,
    signals: unix::Signal,
    adopting: bool,
    guard: Option<Arc<Guard>>,
}

impl Running {
    /// Signals the whole group. Only while the leader is not reaped.
    fn signal(&self, signal: Signal) {
        // An error means that no process remains that may be signalled.
        let _ = killpg(Pid::from_raw(self.leader), signal);
    }

    fn has_leader_ended(&self) -> bool {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        // Not only `Exited` and `Signaled`: nix cannot represent an end by a real-time signal and
        // returns an error.
        waitid(Id::Pid(Pid::from_raw(self.leader)), peek) != Ok(WaitStatus::StillAlive)
    }

    async fn wait_for_leader(&mut self) {
        while !self.has_leader_ended() {
            self.wait_for_child(SLOW_TICK).await;
        }
    }

    async fn wait_for_family(&mut self) {
        self.wait_for_leader().await;
        while !self.family(&mut commands()).is_empty() {
            self.wait_for_child(QUICK_TICK).await;
        }
    }

    /// Waits until a child may have ended, but no longer than `tick`.
    async fn wait_for_child(&mut self, tick: Duration) {
        let _ = timeout(tick, self.signals.recv()).await;
    }

    /// Sends SIGTERM to the command and to its processes outside its group: `timeout`, job control
    /// and daemons leave the group.
    fn terminate(&self) {
        // The lock keeps us from reaping them before the signal. Other parents may still reap them.
        let mut commands = commands();
        let family = self.family(&mut commands);
        self.signal(Signal::SIGTERM);
        for process in family.iter().filter(|it| it.group != self.leader) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGTERM);
        }
    }

    /// The living processes of the command, without the leader. Remembers its descendants, which
    /// are hard to find once it has ended.
    fn family(&self, commands: &mut Commands) -> Vec<Process> {
        let mut processes: Vec<_> = Process::all().collect();
        if self.adopting {
            orphans::attribute(commands, &processes, getpid().as_raw());
        }
        let family = commands.get(&self.leader);
        let is_of = |it: &Process| {
            it.group == self.leader
                || family.is_some_and(|family| family.includes(it))
                || (self.adopting && orphans::may_belong_to(self.leader, commands, it))
        };
        processes.retain(|it| it.pid != self.leader && !it.is_zombie && is_of(it));
        processes
    }

    /// Kills the processes outside the group of a command whose leader has ended. Processes in the
    /// group may still write their last lines.
    async fn end_escaped(&mut self) {
        let began_at = Instant::now();
        let mut escaped = self.kill_escaped();
        if !escaped.is_empty() {
            warn!(processes = %Names(&escaped), "the command has exited but left processes running; killing them");
        }
        while !escaped.is_empty() && began_at.elapsed() < KILL_LIMIT {
            self.wait_for_child(QUICK_TICK).await;
            escaped = self.kill_escaped();
        }
    }

    fn kill_escaped(&self) -> Vec<Process> {
        let mut commands = commands();
        self.set(&mut commands, Stage::Ends);
        if !self.adopting || !orphans::may_have_orphans(&commands) {
            Vec::new()
        } else {
            sweep(&mut commands)
        }
    }

    /// Kills the remaining processes of the command, waits until they are gone, and only then reaps
    /// the leader.
    async fn end(&mut self) -> Ended {
        if let Some((exit, used)) = self.end_at_once() {
            return Ended { exit, used, left_no_writer: true };
        }
        // In this order: processes of a leader that ends during the look would not be found.
        let mut ended = self.has_leader_ended();
        let mut remaining = self.kill();
        if ended && !remaining.is_empty() {
            warn!(processes = %Names(&remaining), "the command has exited but left processes running; killing them");
        }
        let killed_at = Instant::now();
        while !ended || (!remaining.is_empty() && killed_at.elapsed() < KILL_LIMIT) {
            self.wait_for_child(QUICK_TICK).await;
            ended = self.has_leader_ended();
            remaining = self.kill();
        }
        if !remaining.is_empty() {
            warn!(processes = %Names(&remaining), "SIGKILL did not end the processes that the command left running");
        }
        let (exit, used) = self.reap(&mut commands());
        Ended { exit, used, left_no_writer: false }
    }

    /// The usual end, without a look at every process of the machine: the leader has ended, and a
    /// subreaper whose children are all leaders has no orphan, so no process of the command
    /// remains.
    fn end_at_once(&self) -> Option<(Exit, ResourceUsage)> {
        let mut commands = commands();
        // In this order: once the leader has ended, its remaining processes are our children.
        let at_once =
            self.adopting && self.has_leader_ended() && !orphans::may_have_orphans(&commands);
        at_once.then(|| self.reap(&mut commands))
    }

    fn reap(&self, commands: &mut Commands) -> (Exit, ResourceUsage) {
        let reaped = try_wait4_pid(self.leader.unsigned_abs()).ok().flatten();
        let ResUse { status, rusage } =
            reaped.expect("the leader has ended, and only its run reaps it");
        commands.remove(&self.leader);
        if !orphans::is_idle(commands) {
            // An orphan that only this command can have started must end now, and no SIGCHLD
            // triggers the look.
            orphans::wake_reaper();
        }
        if let Some(guard) = &self.guard {
            guard.report_reap(self.leader);
        }
        let exit = status.code().map(Exit::Code).or(status.signal().map(Exit::Signal));
        let (cpu, peak_memory) = (rusage.utime + rusage.stime, own_peak(rusage.maxrss));
        let used = ResourceUsage { cpu, peak_memory };
        (exit.expect("ended by exit or by a signal"), used)
    }

    /// Kills the group and the processes that left it. Returns those that were alive, without the
    /// leader.
    fn kill(&self) -> Vec<Process> {
        let mut commands = commands();
        self.set(&mut commands, Stage::Ends);
        // A process outside the group whose parent lives is not an orphan yet: a later look kills
        // it, once the parent is gone.
        let mut remaining = self.family(&mut commands);
        self.signal(Signal::SIGKILL);
        if self.adopting {
            let orphans = sweep(&mut commands);
            remaining.retain(|it| !orphans.contains(it));
            remaining.extend(orphans);
        }
        remaining
    }

    fn set(&self, commands: &mut Commands, stage: Stage) {
        if let Some(family) = commands.get_mut(&self.leader) {
            family.stage = stage;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After a reap, another process may have the number.
        if commands().contains_key(&self.leader) {
            self.kill();
            let mut commands = commands();
            if self.adopting {
                // The reaper ends the rest.
                self.set(&mut commands, Stage::Dropped);
                orphans::wake_reaper();
            } else {
                commands.remove(&self.leader);
            }
        }
    }
}
