//! What the subcommands run on.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use async_trait::async_trait;
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use super::signals::{hear_others, since_stop};
use crate::adapters::process::Processes;
use crate::job::lifecycle::Policy;
use crate::job::stop::StopPlan;
use crate::ports::{Activity, Command, Exited, Runner, StartError};
use crate::telemetry::logs::{LogFormat, Style};

/// What the log may take at the end depends on when that is.
pub fn flush_limit(stop: StopPlan) -> impl Fn() -> Duration + 'static {
    move || stop.log(since_stop())
}

/// Text on a terminal, unless it is said otherwise. Coloured as other programs decide it: on a
/// terminal, without `NO_COLOR`, or with `CLICOLOR_FORCE`.
pub fn log_style(format: Option<LogFormat>, out: &impl RawStream) -> Style {
    let default = if out.is_terminal() { LogFormat::Text } else { LogFormat::Json };
    Style { format: format.unwrap_or(default), is_coloured: is_coloured(out) }
}

pub fn is_coloured(out: &impl RawStream) -> bool {
    AutoStream::choice(out) != ColorChoice::Never
}

/// Runs it to its end. A thread that is still busy for it then (removing files, asking a name
/// server that does not answer) has so much time, and is left behind.
///
/// Two threads, so that what is busy for a moment in one does not delay a beat in the other. It is
/// no licence to block: tokio does not promise that the other one takes over.
pub fn block_on<T>(work: impl Future<Output = T>, patience: Duration) -> Result<T, String> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("the runtime could not be started: {error}"))?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(patience);
    Ok(done)
}

pub fn runner() -> Result<Arc<dyn Runner>, String> {
    let processes = Processes::guarded().map_err(|error| {
        format!("leasehold could not prepare to reap orphaned processes: {error}")
    })?;
    Ok(Arc::new(Commands(processes)))
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
        hear_others();
        self.0.run(command, halt, activity).await
    }
}

/// What a command may take between TERM and KILL, whichever it is.
pub fn longest_stop_grace(policy: &Policy) -> Duration {
    let of_types = policy.job_types.iter().map(|job_type| job_type.limits.stop_grace);
    of_types.fold(policy.limits.stop_grace, Duration::max)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_that_is_stuck_does_not_hold_up_the_exit() {
        let (stuck, until_released) = mpsc::channel::<()>();
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            let work = async {
                tokio::task::spawn_blocking(move || until_released.recv());
                7
            };
            let _ = done.send(block_on(work, Duration::from_millis(50)));
        });
        assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(Ok(7)));
        drop(stuck);
    }
}
