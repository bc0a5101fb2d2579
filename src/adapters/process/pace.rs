//! How long to wait for a process, and how often to look.

use std::time::Duration;

/// How long to wait for what was KILLed. It goes in milliseconds, unless it hangs in the kernel (a
/// dead NFS server).
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(2);

/// The next look, if no SIGCHLD comes before: while waiting for an end that may be hours away, and
/// that causes a SIGCHLD …
pub(super) const SLOW_TICK: Duration = Duration::from_secs(15);
/// … for changes that cause no SIGCHLD and can wait …
pub(super) const TICK: Duration = Duration::from_millis(500);
/// … and for ends that we asked for, of processes that are not our children and so send us no
/// SIGCHLD.
pub(super) const QUICK_TICK: Duration = Duration::from_millis(20);
