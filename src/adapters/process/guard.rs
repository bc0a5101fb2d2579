//! Ends the commands when we are KILLed: a process that does nothing else but wait for our end.
//!
//! As PID 1 we need none, for the kernel KILLs the whole container with us. Elsewhere (a shell
//! around us, a shared process namespace, `leasehold local`) the commands would go on without a
//! lease. A parent-death signal reaches no more than a command's first process, is forgotten when
//! that changes its user, and would need a fork for every command in place of a posix_spawn: ten
//! times as long.
//!
//! It is told of each command when it starts and when it is reaped. When its standard input ends,
//! we have.

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

/// What `leasehold` is called with to be the guard of another one.
const ARGUMENT: &str = "end-commands-with-us";

/// The other end of a guard's standard input.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    news: Mutex<UnixStream>,
}

impl Guard {
    /// The program is ours, whatever has become of its file.
    pub(super) fn start() -> io::Result<Self> {
        // Closed in every command: as long as one of them held it, nothing would seem to end.
        let (news, its_end) = UnixStream::pair()?;
        // A guard that does not read must not keep us from starting commands.
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

    /// `mark` is the variable that only this command's processes have. Read from /proc it would be
    /// nothing for a while: a process shows no environment from the moment that its program is
    /// loaded until that begins.
    pub(super) fn starts(&self, leader: i32, mark: Option<&[u8]>) {
        self.send(leader, mark.unwrap_or_default());
    }

    pub(super) fn reaped(&self, leader: i32) {
        self.send(-leader, &[]);
    }

    fn send(&self, leader: i32, mark: &[u8]) {
        let length = u32::try_from(mark.len()).unwrap_or(u32::MAX);
        let message = [&leader.to_ne_bytes(), &length.to_ne_bytes(), mark].concat();
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        // Some hundred bytes, into a socket that is empty or broken.
        if let Err(error) = news.write_all(&message) {
            warn!(%error, "the guard process died: if leasehold gets SIGKILL, the command keeps running");
        }
    }
}

impl Drop for Guard {
    /// It is gone before we are, and has nothing to end but what a dropped run may have left.
    fn drop(&mut self) {
        let news = self.news.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = news.shutdown(std::net::Shutdown::Both);
        let mut commands = commands();
        // If it was reaped, then the number may be somebody else's by now.
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
        // Stopped (SIGSTOP), it would never end by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole of a guard's life, if this process is to be one.
pub fn guard(argument: Option<&OsStr>) -> Option<ExitCode> {
    (argument == Some(OsStr::new(ARGUMENT))).then(|| {
        // Whoever asks all processes to end does not mean the one that waits for that.
        let _ = SigSet::all().thread_block();
        let mut commands = Commands::new();
        let mut news = io::stdin().lock();
        while let Ok((leader, mark)) = receive(&mut news) {
            hear(&mut commands, leader, mark);
        }
        end(&mut commands);
        ExitCode::SUCCESS
    })
}

/// A command's number and mark when it starts; its negative when it is reaped.
fn receive(news: &mut impl Read) -> io::Result<(i32, Vec<u8>)> {
    let (mut leader, mut length, mut mark) = ([0; 4], [0; 4], Vec::new());
    news.read_exact(&mut leader)?;
    news.read_exact(&mut length)?;
    news.take(u32::from_ne_bytes(length).into()).read_to_end(&mut mark)?;
    Ok((i32::from_ne_bytes(leader), mark))
}

fn hear(commands: &mut Commands, leader: i32, mark: Vec<u8>) {
    if leader > 0 {
        let mark = Some(mark).filter(|mark| !mark.is_empty());
        commands.insert(leader, Family::of_leader(leader, mark));
    } else {
        commands.remove(&-leader);
    }
}

/// KILLs all that belongs to the commands, until nothing of them is left.
fn end(commands: &mut Commands) {
    let us = process::id().cast_signed();
    let (mut looks, mut in_vain) = (0..KILL_LIMIT.as_millis() / QUICK_TICK.as_millis(), 0);
    // Twice, since a process may move to another parent while we look from one to the next.
    while !commands.is_empty() && in_vain < 2 && looks.next().is_some() {
        let processes: Vec<_> = Process::all().collect();
        // From the first processes of the machine or the container on, whose parent is nobody.
        attribute(commands, &processes, 0);
        let is_theirs = |it: &&Process| commands.values().any(|family| family.includes(it));
        let left = processes.iter().filter(|it| !it.is_zombie && it.pid != us).filter(is_theirs);
        let killed = left.filter(|it| kill(Pid::from_raw(it.pid), Signal::SIGKILL).is_ok()).count();
        in_vain = if killed == 0 { in_vain + 1 } else { 0 };
        thread::sleep(QUICK_TICK / 4);
    }
}
