//! Orphans: processes that left their command's group. They are reaped when they have ended, and
//! killed with their command.
//!
//! A process becomes our child once its parent has ended. If several commands run, its inherited
//! environment or its ancestors show to which command it belongs. A process that shows neither
//! (another user's, or a daemon that cleared its environment and whose parent is gone) is killed
//! when no command runs that started before it.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, iter};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgrp, getpid};
use tokio::signal::unix;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::pace::{QUICK_TICK, SLOW_TICK, TICK};
use super::table::{Process, ProcessId};

/// The commands that are running or not yet reaped, by their leaders' pids.
pub(super) type Commands = BTreeMap<i32, Family>;

/// The start of the variable that only one command's processes have: its value is in a folder that
/// no other command uses. A process that outlives its job has no `JOB_FILE`.
pub(super) const MARKS: [&[u8]; 2] = [b"JOB_FILE=", b"TMPDIR="];

/// How long a process that ended in our own group stays for its starter to reap it.
const UNCLAIMED: Duration = Duration::from_secs(2);

/// Global, since children belong to the process and not to a value.
static COMMANDS: Mutex<Commands> = Mutex::new(Commands::new());

pub(super) fn commands() -> MutexGuard<'static, Commands> {
    COMMANDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The processes of a command.
pub(super) struct Family {
    pub(super) stage: Stage,
    leader: i32,
    /// Read when it is needed: most commands leave no orphans.
    since: OnceCell<u64>,
    /// A variable that only this command's processes have, as the kernel shows it: `NAME=value`.
    mark: Option<Vec<u8>>,
    /// Processes that once had the mark or a member as their parent.
    members: BTreeSet<ProcessId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Runs,
    /// All its processes must end.
    Ends,
    /// The same, but only the reaper waits for it.
    Dropped,
    /// Our guard process: neither a command nor an orphan.
    Guards,
}

impl Family {
    /// For a leader that is not reaped yet.
    pub(super) fn new(leader: i32, stage: Stage, mark: Option<Vec<u8>>) -> Self {
        Self { stage, leader, since: OnceCell::new(), mark, members: BTreeSet::new() }
    }

    /// When its leader was started, in ticks since the machine's start. Older processes do not
    /// belong to this command.
    fn since(&self) -> u64 {
        *self.since.get_or_init(|| Process::of(self.leader).map_or(0, |leader| leader.started))
    }

    /// For the guard, which did not start the leader.
    pub(super) fn of_leader(leader: i32, mark: Option<Vec<u8>>) -> Self {
        let members = Process::of(leader).iter().map(Process::id).collect();
        Self { members, ..Self::new(leader, Stage::Runs, mark) }
    }

    pub(super) fn includes(&self, process: &Process) -> bool {
        self.members.contains(&process.id())
    }

    /// Whether the command is running, and was when this process was started.
    fn may_have_started(&self, process: &Process) -> bool {
        self.stage == Stage::Runs && self.since() <= process.started
    }

    fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Ends | Stage::Dropped)
    }

    fn is_guard(&self) -> bool {
        self.stage == Stage::Guards
    }

    fn has(&self, process: &Process, environment: &[u8]) -> bool {
        let is_marked =
            |mark: &Vec<u8>| environment.split(|byte| *byte == 0).any(|variable| variable == mark);
        self.includes(process) || self.mark.as_ref().is_some_and(is_marked)
    }
}

/// A command was started or reaped, or its run was dropped.
static CHANGED: Notify = Notify::const_new();

/// Makes [`reap_orphans`] look now, and recompute its interval.
pub(super) fn wake_reaper() {
    CHANGED.notify_one();
}

/// Reaps orphans, and ends the remaining processes of dropped runs.
pub(super) async fn reap_orphans(mut signals: unix::Signal) {
    let mut helper = None;
    loop {
        let tick = {
            let mut commands = commands();
            sweep_if_due(&mut commands);
            reap_helper(&mut helper);
            tick(&commands, helper.is_some())
        };
        let seen = async {
            tokio::select! {
                _ = signals.recv() => {}
                () = CHANGED.notified() => {}
            }
        };
        if timeout(tick, seen).await.is_ok() {
            // Limits the looks per second if many orphans end.
            sleep(QUICK_TICK).await;
        }
    }
}

/// With a single command, all orphans belong to it, however late they are found. With several
/// commands, orphans must be attributed before their parents end or overwrite the environment.
fn tick(commands: &Commands, has_helper: bool) -> Duration {
    let is_dropped = commands.values().any(|family| family.stage == Stage::Dropped);
    let count = commands.values().filter(|family| !family.is_guard()).count();
    if has_helper || is_dropped || count > 1 { TICK } else { SLOW_TICK }
}

/// Reaps helpers of a wrapper script that ended with `exec leasehold`, which have no other parent.
/// Code of ours that starts a process in our group reaps it much sooner.
fn reap_helper(seen: &mut Option<(Pid, Instant)>) {
    let ours = Id::PGid(getpgrp());
    let ended = waitid(ours, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT);
    let pid = ended.ok().and_then(|status| status.pid());
    *seen = pid.map(|pid| {
        seen.filter(|(before, _)| *before == pid).unwrap_or_else(|| (pid, Instant::now()))
    });
    if let Some((pid, _)) = seen.filter(|(_, since)| since.elapsed() >= UNCLAIMED) {
        let _ = wait(pid.as_raw(), WaitPidFlag::empty());
    }
}

/// Asks the kernel first, which is much cheaper than a look at every process. A sweep is due if an
/// orphan has ended or is not attributed to a command, or, while no command runs, if any exists.
fn sweep_if_due(commands: &mut Commands) {
    if commands.values().any(|family| family.stage == Stage::Dropped) {
        return end_dropped(commands);
    }
    let is_due =
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
            Err(Errno::ECHILD) => false,
            Ok(WaitStatus::StillAlive) if is_idle(commands) => may_have_orphans(commands),
            // Attributed early: a process that changes its title overwrites its environment.
            Ok(WaitStatus::StillAlive) => !are_attributed(commands),
            // A leader is reaped by its own run; processes behind it in the kernel's list are found
            // at the next look.
            Ok(status) => status
                .pid()
                .is_none_or(|pid| commands.get(&pid.as_raw()).is_none_or(Family::is_guard)),
            // nix cannot represent an end by a real-time signal.
            Err(_) => true,
        };
    if is_due {
        sweep(commands);
    }
}

/// Kills the commands whose run was dropped, and reaps their leaders once no other process of them
/// remains.
fn end_dropped(commands: &mut Commands) {
    let dropped: Vec<_> = commands
        .iter()
        .filter(|(_, family)| family.stage == Stage::Dropped)
        .map(|(leader, _)| *leader)
        .collect();
    for leader in &dropped {
        let _ = killpg(Pid::from_raw(*leader), Signal::SIGKILL);
    }
    if !sweep(commands).is_empty() {
        return;
    }
    for leader in dropped {
        let leader_lives = || wait(leader, WaitPidFlag::WNOWAIT) == Ok(WaitStatus::StillAlive);
        if Process::in_group(leader).is_empty() && !leader_lives() {
            let _ = wait(leader, WaitPidFlag::empty());
            commands.remove(&leader);
        }
    }
}

/// Whether no command is running, except for those that are ending.
pub(super) fn is_idle(commands: &Commands) -> bool {
    commands.values().all(|family| family.stage != Stage::Runs)
}

/// Whether this child of ours has ended.
fn wait(pid: i32, more: WaitPidFlag) -> nix::Result<WaitStatus> {
    waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | more)
}

/// Whether orphans may exist. Lists only our children, which is cheap; an orphan is one of them.
pub(super) fn may_have_orphans(commands: &Commands) -> bool {
    let our_group = getpgrp().as_raw();
    // A helper that is older than every command belongs to no command.
    let is_older = |it: &Process| {
        let mut ours = commands.values().filter(|family| !family.is_guard());
        ours.all(|family| it.started < family.since())
    };
    !all_children_are_leaders_or(commands, |it| it.group == our_group && is_older(it))
}

/// Whether all orphans are attributed to commands.
fn are_attributed(commands: &Commands) -> bool {
    let our_group = getpgrp().as_raw();
    all_children_are_leaders_or(commands, |it| it.group == our_group || is_included(commands, it))
}

/// Whether all children are leaders, or meet `is_exempt`. False if the children are unknown.
fn all_children_are_leaders_or(commands: &Commands, is_exempt: impl Fn(&Process) -> bool) -> bool {
    let holds = |pid: &i32| {
        commands.contains_key(pid) || Process::of(*pid).is_some_and(|it| is_exempt(&it))
    };
    children().is_some_and(|children| children.iter().all(holds))
}

fn is_included(commands: &Commands, process: &Process) -> bool {
    commands.values().any(|family| family.includes(process))
}

/// Whether this is an orphan that is not attributed, and no other running command may have started
/// it.
pub(super) fn may_belong_to(leader: i32, commands: &Commands, process: &Process) -> bool {
    let is_orphan = process.parent == getpid().as_raw()
        && process.group != getpgrp().as_raw()
        && ![process.pid, process.group].iter().any(|pid| commands.contains_key(pid));
    let may_be = |family: &Family| family.may_have_started(process);
    is_orphan
        && !is_included(commands, process)
        && commands.get(&leader).is_some_and(|family| family.since() <= process.started)
        && !commands.iter().any(|(other, family)| *other != leader && may_be(family))
}

/// The children of our first thread, ended or not. The kernel gives orphans to that thread, which
/// never ends before us. `None` if the kernel does not list them (`CONFIG_PROC_CHILDREN`).
fn children() -> Option<Vec<i32>> {
    let list = fs::read_to_string(format!("/proc/self/task/{}/children", getpid())).ok()?;
    Some(list.split(' ').filter_map(|pid| pid.parse().ok()).collect())
}

/// Reaps the orphans that have ended, and kills those that belong to ending commands and those that
/// no running command can have started. Returns the killed ones.
///
/// The run that ends a command handles the processes in the command's group.
pub(super) fn sweep(commands: &mut Commands) -> Vec<Process> {
    let (us, our_group) = (getpid().as_raw(), getpgrp().as_raw());
    // A guard that has ended is an orphan like any other.
    commands.retain(|pid, family| {
        !family.is_guard() || wait(*pid, WaitPidFlag::WNOWAIT) == Ok(WaitStatus::StillAlive)
    });
    let processes: Vec<_> = Process::all().collect();
    if !is_idle(commands) {
        attribute(commands, &processes, us);
    }
    let must_end = |it: &Process| {
        commands.values().any(|family| family.is_ending() && family.includes(it))
            || !commands.values().any(|family| family.may_have_started(it))
    };
    // Our own group has processes that other code here has started and waits for, such as a
    // profile's `credential_process`.
    let is_of_other_code = |it: &Process| it.group == our_group && !is_included(commands, it);
    let is_spared = |it: &Process| is_of_other_code(it) || commands.contains_key(&it.pid);
    let orphans = processes.into_iter().filter(|it| it.parent == us && !is_spared(it));
    let killed = orphans.filter(|orphan| {
        // The kernel confirms that this is our living child, so that the pid is not reused. If it
        // has ended, this reaps it.
        let lives = wait(orphan.pid, WaitPidFlag::empty()) == Ok(WaitStatus::StillAlive);
        lives
            && !commands.contains_key(&orphan.group)
            && must_end(orphan)
            && kill(Pid::from_raw(orphan.pid), Signal::SIGKILL).is_ok()
    });
    killed.collect()
}

/// Attributes the processes below `root` to commands, while their parents live and show their
/// descent.
pub(super) fn attribute(commands: &mut Commands, processes: &[Process], root: i32) {
    let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
    for process in processes {
        children.entry(process.parent).or_default().push(process);
    }
    let below = |parent: i32, of: Option<i32>| {
        children.get(&parent).into_iter().flatten().copied().zip(iter::repeat(of))
    };
    let mut open: Vec<(&Process, Option<i32>)> = below(root, None).collect();
    while let Some((process, of)) = open.pop() {
        let of = of.or_else(|| family_of(commands, process));
        if let Some(family) = of.and_then(|leader| commands.get_mut(&leader)) {
            family.members.insert(process.id());
        }
        open.extend(below(process.pid, of));
    }
}

fn family_of(commands: &Commands, process: &Process) -> Option<i32> {
    let by_group =
        [process.pid, process.group].into_iter().find(|leader| commands.contains_key(leader));
    by_group.or_else(|| {
        let environment = process.environment();
        commands
            .iter()
            .find_map(|(leader, family)| family.has(process, &environment).then_some(*leader))
    })
}
