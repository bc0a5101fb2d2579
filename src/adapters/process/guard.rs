//! The guard: a process that waits for our end and kills the commands if we get SIGKILL.
//!
//! As PID 1 we need no guard, since the kernel kills the whole container with us. Otherwise (a
//! shell around us, a shared process namespace, `leasehold local`) the commands would continue
//! without a lease. A parent-death signal reaches only a command's first process, is cleared when
//! that process changes its user, and needs a fork for every command instead of a posix_spawn,
//! which takes ten times as long.
//!
//! We report each start and each reap of a command to the guard. When its standard input ends, we
//! have ended.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{self, Child, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use tracing::warn;

use super::orphans::{Commands, Family, Stage, attribute, commands};
use super::pace::{KILL_LIMIT, QUICK_TICK};
use super::table::Process;

/// The argument that makes `leasehold` the guard of another one.
const ARGUMENT: &str = "end-commands-with-us";

/// The other end of a guard's standard input.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    news: Mutex<UnixStream>,
}

impl Guard {
    /// Starts our own program, even if its file was replaced or deleted.
    pub(super) fn start() -> io::Result<Self> {
        // Closed on exec: if a command held it, the guard would not see our end.
        let (news, its_end) = UnixStream::pair()?;
        // A guard that does not read must not block the start of commands.
        news.set_nonblocking(true)?;
        let mut program = process::Command::new("/proc/self/exe");
        program.arg(ARGUMENT).env_clear().process_group(0);
        program.stdin(OwnedFd::from(its_end)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut commands = commands();
        let child = program.spawn()?;
        let pid = child.id().cast_signed();
        commands.insert(pid, Family::new(pid, Stage::Guards, None));
        Ok(Self { child, news: Mutex::new(news) })
    }

    /// `mark` is the variable that only this command's processes have. The guard cannot read it
    /// from /proc: a process shows no environment while its program is being loaded.
    pub(super) fn report_start(&self, leader: i32, mark: Option<&[u8]>) {
        self.send(leader, mark.unwrap_or_default());
    }

    pub(super) fn report_reap(&self, leader: i32) {
        self.send(-leader, &[]);
    }

    fn send(&self, leader: i32, mark: &[u8]) {
        let length = u32::try_from(mark.len()).unwrap_or(u32::MAX);
        let message = [&leader.to_ne_bytes(), &length.to_ne_bytes(), mark].concat();
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        // A few hundred bytes fit into an empty socket, so an error means that it is broken.
        if let Err(error) = news.write_all(&message) {
            warn!(%error, "the guard process died: if leasehold gets SIGKILL, the command keeps running");
        }
    }
}

impl Drop for Guard {
    /// The guard ends before we do, and kills only the remains of dropped runs.
    fn drop(&mut self) {
        let news = self.news.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = news.shutdown(std::net::Shutdown::Both);
        let mut commands = commands();
        // After a reap, another process may have the number.
        if commands.remove(&self.child.id().cast_signed()).is_none() {
            return;
        }
        let looks =
            if commands.is_empty() { 0 } else { KILL_LIMIT.as_millis() / QUICK_TICK.as_millis() };
        for _ in 0..looks {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(QUICK_TICK);
        }
        // A guard that was stopped (SIGSTOP) would never end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the guard until its end, if the argument asks for it.
pub fn guard(argument: Option<&OsStr>) -> Option<ExitCode> {
    (argument == Some(OsStr::new(ARGUMENT))).then(|| {
        // A signal to all processes must not end the guard before the commands.
        let _ = SigSet::all().thread_block();
        let mut commands = Commands::new();
        let mut news = io::stdin().lock();
        while let Ok((leader, mark)) = receive(&mut news) {
            update(&mut commands, leader, mark);
        }
        end(&mut commands);
        ExitCode::SUCCESS
    })
}

/// A command's pid and mark when it starts; the negative pid when it is reaped.
fn receive(news: &mut impl Read) -> io::Result<(i32, Vec<u8>)> {
    let (mut leader, mut length, mut mark) = ([0; 4], [0; 4], Vec::new());
    news.read_exact(&mut leader)?;
    news.read_exact(&mut length)?;
    news.take(u32::from_ne_bytes(length).into()).read_to_end(&mut mark)?;
    Ok((i32::from_ne_bytes(leader), mark))
}

fn update(commands: &mut Commands, leader: i32, mark: Vec<u8>) {
    if leader > 0 {
        let mark = Some(mark).filter(|mark| !mark.is_empty());
        commands.insert(leader, Family::of_leader(leader, mark));
    } else {
        commands.remove(&-leader);
    }
}

/// Kills all processes of the commands, until none remains.
fn end(commands: &mut Commands) {
    let us = process::id().cast_signed();
    let (mut looks, mut in_vain) = (0..KILL_LIMIT.as_millis() / QUICK_TICK.as_millis(), 0);
    // Twice, since a process may move to another parent during a look.
    while !commands.is_empty() && in_vain < 2 && looks.next().is_some() {
        let processes: Vec<_> = Process::all().collect();
        // From the first processes of the machine or the container, which have no parent.
        attribute(commands, &processes, 0);
        let is_theirs = |it: &&Process| commands.values().any(|family| family.includes(it));
        let alive = processes.iter().filter(|it| !it.is_zombie && it.pid != us).filter(is_theirs);
        let killed =
            alive.filter(|it| kill(Pid::from_raw(it.pid), Signal::SIGKILL).is_ok()).count();
        in_vain = if killed == 0 { in_vain + 1 } else { 0 };
        thread::sleep(QUICK_TICK / 4);
    }
}
