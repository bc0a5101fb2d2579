//! What has left its command's group: reaped when it has ended, and ended when nobody runs to whom it may belong.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgrp, getpid};
use tokio::signal::unix;
use tokio::time::{sleep, timeout};

use super::table::Process;
use super::{QUICK_TICK, SLOW_TICK};

/// The leaders that run or are not reaped yet. Children belong to the process, not to a value, and so does this.
static LEADERS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

pub(super) fn leaders() -> MutexGuard<'static, BTreeSet<i32>> {
    LEADERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reaps orphans, and ends what commands left behind whose run was dropped.
pub(super) async fn reap_orphans(mut signals: unix::Signal) {
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
pub(super) fn children() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    // What a thread that has ended since had started is another thread's now, and may be missing here; orphans are the
    // first thread's, which never ends before us.
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Reaps the orphans that have ended; if no command runs but the one that is `ending`, KILLs the others. Returns those.
pub(super) fn sweep(leaders: &BTreeSet<i32>, ending: Option<i32>) -> Vec<Process> {
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
