//! How long to wait for a process, and how often to look.

use std::time::Duration;

/// How long to wait for killed processes. They end within milliseconds, unless they hang in the
/// kernel (a dead NFS server).
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(2);

/// The interval of looks while waiting for a process that may run for hours: its end causes a
/// SIGCHLD, which triggers a look at once.
pub(super) const SLOW_TICK: Duration = Duration::from_mins(1);
/// The interval for changes that cause no SIGCHLD and are not urgent.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// The interval while waiting for the end of signalled processes, which are not our children and so
/// cause no SIGCHLD.
pub(super) const QUICK_TICK: Duration = Duration::from_millis(20);
