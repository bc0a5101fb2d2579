//! The runtime, the log style and the runner of the subcommands.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use async_trait::async_trait;
use tokio::runtime::Builder;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::signals::{handle_other_signals, since_stop};
use crate::adapters::process::Processes;
use crate::job::policy::Policy;
use crate::job::stop::StopPlan;
use crate::ports::{Activity, Command, Exited, Runner, StartError};
use crate::settings::resolve::WorkConfig;
use crate::telemetry::logs::{LogFormat, Style};
use crate::telemetry::panics;
use crate::work::threads::{SeparateThreads, WorkThreads};

/// How long the log may take at the end: less during a shutdown.
pub fn flush_limit(stop: StopPlan) -> impl Fn() -> Duration + 'static {
    move || stop.log(since_stop())
}

/// By default text on a terminal, else JSON. Coloured by the usual rules: on a terminal without
/// `NO_COLOR`, or with `CLICOLOR_FORCE`.
pub fn log_style(format: Option<LogFormat>, out: &impl RawStream) -> Style {
    let default = if out.is_terminal() { LogFormat::Text } else { LogFormat::Json };
    Style { format: format.unwrap_or(default), is_coloured: is_coloured(out) }
}

pub fn is_coloured(out: &impl RawStream) -> bool {
    AutoStream::choice(out) != ColorChoice::Never
}

/// Runs `work` to its end on this thread. Other threads that are still busy then (removing files, waiting for a DNS
/// server) get `patience`, and are abandoned after that.
///
/// This thread must not block: it extends visibility timeouts. What may block (files) belongs to
/// the threads that `work` gets.
pub fn block_on<F: Future>(
    work: impl FnOnce(WorkThreads) -> F,
    patience: Duration,
) -> Result<F::Output, String> {
    panics::mark_ours();
    let runtime = Builder::new_current_thread()
        .on_thread_start(panics::mark_ours)
        .enable_all()
        .build()
        .map_err(|error| format!("the runtime could not be started: {error}"))?;
    let threads = SeparateThreads::new(panics::mark_ours);
    let done = runtime.block_on(work(WorkThreads::Separate(threads.clone())));
    let ended = Instant::now();
    threads.shut_down(patience);
    runtime.shutdown_timeout(patience.saturating_sub(ended.elapsed()));
    Ok(done)
}

pub fn runner() -> Result<Arc<dyn Runner>, String> {
    let processes = Processes::guarded().map_err(|error| {
        format!("leasehold could not prepare to reap orphaned processes: {error}")
    })?;
    Ok(Arc::new(Commands(processes)))
}

/// Ends processes that stay. One that cannot be killed (a dead NFS) must not keep the pod.
pub async fn finish(runner: &dyn Runner, limit: Duration) {
    if timeout(limit, runner.finish()).await.is_err() {
        warn!("the process did not end within {limit:?}");
    }
}

/// A function that is part of the program needs no handler.
pub fn check_handler(work: &WorkConfig, is_in_process: bool) -> Result<(), String> {
    if is_in_process && work.handler.is_warm() {
        return Err(
            "--handler has no effect: the work is part of this program; remove it".to_owned()
        );
    }
    Ok(())
}

/// Runs commands while every signal has its handler.
struct Commands(Processes);

#[async_trait]
impl Runner for Commands {
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        handle_other_signals();
        self.0.run(command, halt, activity).await
    }
}

/// The longest time between SIGTERM and SIGKILL of any job type.
pub fn longest_stop_grace(policy: &Policy) -> Duration {
    let of_types = policy.job_types.iter().map(|job_type| job_type.limits.stop_grace);
    of_types.fold(policy.limits.stop_grace, Duration::max)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_stuck_thread_does_not_delay_the_exit() {
        let (stuck, until_released) = mpsc::channel::<()>();
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            let work = async {
                tokio::task::spawn_blocking(move || until_released.recv());
                7
            };
            let _ = done.send(block_on(|_| work, Duration::from_millis(50)));
        });
        assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(Ok(7)));
        drop(stuck);
    }
}
