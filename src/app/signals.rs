//! The signals that request a graceful shutdown, and those that must not end us.
//!
//! The kernel drops a signal that reaches PID 1 before PID 1 has a handler for it (signal(7),
//! pid_namespaces(7)), and Kubernetes sends SIGTERM once. A *blocked* signal stays pending instead.
//! So [`block`] is the first line of `main`, and pending signals are delivered as soon as
//! [`stop_requested`] has its handlers. A command starts with an empty mask, which the runner sets.

use std::fs;
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use nix::libc::{SIGRTMAX, SIGRTMIN};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::telemetry::metrics::Metrics;

/// When a graceful shutdown was requested, and by which signal. Global, since signals belong to the
/// process.
static STOP_REQUESTED: OnceLock<(Instant, Signal)> = OnceLock::new();

/// The time since a graceful shutdown was requested, if it was.
pub fn since_stop() -> Option<Duration> {
    STOP_REQUESTED.get().map(|(at, _)| at.elapsed())
}

/// The exit code by the shells' convention (128 + signal), if a signal requested a graceful
/// shutdown.
pub fn exit_code() -> Option<u8> {
    STOP_REQUESTED.get().and_then(|(_, signal)| u8::try_from(128 + *signal as i32).ok())
}

/// The target of this file's log records, for a filter: the log must always answer a Ctrl-C.
pub const TARGET: &str = module_path!();

/// These request a graceful shutdown. As PID 1 we receive them only with a handler.
const STOPS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];

/// These are not blocked or handled here: our own faults, the runtime's signals, and a terminal's
/// job control.
const UNCHANGED: [Signal; 16] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGTRAP,
    Signal::SIGSYS,
    Signal::SIGABRT,
    Signal::SIGCHLD,
    Signal::SIGPIPE,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGCONT,
    Signal::SIGWINCH,
    Signal::SIGURG,
    Signal::SIGXCPU,
];

/// The mask of signals that the process was started with.
#[derive(Debug, Clone, Copy)]
pub struct Inherited(SigSet);

/// Blocks every signal that would end this process without a shutdown, in this thread and in those
/// it starts, and no other: the parent may have blocked SIGCHLD, by which the end of a command is
/// noticed.
#[must_use]
pub fn block() -> Inherited {
    let mut blocked = SigSet::all();
    for signal in UNCHANGED {
        blocked.remove(signal);
    }
    // The call fails only for an invalid argument, and this one is constant.
    Inherited(blocked.thread_swap_mask(SigmaskHow::SIG_SETMASK).unwrap_or_else(|_| SigSet::empty()))
}

impl Inherited {
    /// For subcommands that hold no message: Ctrl-C ends them.
    pub fn restore(self) {
        let _ = self.0.thread_set_mask();
    }
}

/// The reaction to a signal that requests a graceful shutdown.
#[derive(Debug, Clone)]
pub struct Reaction {
    /// The name of what works: the command, or a handler.
    pub work: &'static str,
    /// How long it may take.
    pub stop_grace: Duration,
    /// Cancelled by a second Ctrl-C at a keyboard. In a pod, a second signal has no effect: the
    /// kubelet sends SIGKILL.
    pub kill: Option<CancellationToken>,
}

impl Reaction {
    fn to_first(&self, signal: Signal) {
        let (work, stop_grace_s) = (self.work, self.stop_grace.as_secs_f64());
        if self.kill.is_some() {
            info!(
                "shutting down: waiting up to {stop_grace_s} s for {work}; press Ctrl-C again to kill it"
            );
        } else {
            info!(
                signal = signal.as_str(),
                stop_grace_s, "shutting down: no more messages will be deleted"
            );
        }
    }

    fn to_further(&self, signal: Signal) {
        match &self.kill {
            Some(kill) if signal == Signal::SIGINT => {
                info!("killing {}: Ctrl-C was pressed again", self.work);
                kill.cancel();
            }
            Some(_) | None => info!(signal = signal.as_str(), "already shutting down"),
        }
    }
}

/// Returns a token that is cancelled by the first signal that requests a graceful shutdown. Must be
/// called in the main thread, to which signals are delivered: other threads block them.
pub fn stop_requested(
    metrics: Option<&Arc<Metrics>>,
    reaction: &Reaction,
) -> Result<CancellationToken, String> {
    let requested = CancellationToken::new();
    for kind in
        STOPS.into_iter().filter(|kind| *kind != Signal::SIGHUP || !is_ignored(Signal::SIGHUP))
    {
        let name = kind.as_str();
        let mut signals = signal(SignalKind::from_raw(kind as i32))
            .map_err(|error| format!("a handler for {name} could not be installed: {error}"))?;
        let (requested, metrics, reaction) =
            (requested.clone(), metrics.cloned(), reaction.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if let Some(metrics) = &metrics {
                    metrics.stopped(name);
                }
                if requested.is_cancelled() {
                    reaction.to_further(kind);
                } else {
                    reaction.to_first(kind);
                    STOP_REQUESTED.get_or_init(|| (Instant::now(), kind));
                    requested.cancel();
                }
            }
        });
    }
    let stops = STOPS.into_iter().collect::<SigSet>();
    stops.thread_unblock().map_err(|errno| format!("signals could not be unblocked: {errno}"))?;
    Ok(requested)
}

/// Installs handlers without effect for all other signals that would end a run and leave its
/// message hidden. Before, these signals are blocked; but the mask is empty while a command is
/// started, and an ignored signal would stay ignored in the command. Done for the first command and
/// not earlier, since it takes more instructions than a request.
///
/// Linux drops a signal that has no handler in PID 1, but gVisor does not (google/gvisor#11836).
pub fn handle_other_signals() {
    static HANDLED: Once = Once::new();
    HANDLED.call_once(|| {
        let others =
            Signal::iterator().filter(|kind| !UNCHANGED.contains(kind) && !STOPS.contains(kind));
        for number in others.map(|kind| kind as i32).chain(SIGRTMIN()..=SIGRTMAX()) {
            // SIGKILL and SIGSTOP cannot have handlers.
            let _ = signal(SignalKind::from_raw(number));
        }
    });
}

/// Whether our parent process made us ignore the signal, as nohup(1) does with SIGHUP. From
/// `SigIgn` in proc_pid_status(5), a hexadecimal mask whose lowest bit is signal 1.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal as u32 - 1) & 1 == 1
}
