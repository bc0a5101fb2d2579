//! The memory limit of the container: stops a command before the kernel does, and recognises that
//! the kernel did.
//!
//! At the limit, the kernel of a node with cgroup v1 kills one process. With cgroup v2, the kubelet
//! sets `memory.oom.group`, and the kernel kills every process of the container at once, leasehold
//! included: no report, no release.

mod cgroup;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use cgroup::MemoryCgroup;

use crate::ports::{Activity, Command, Exited, MemoryUse, OutOfMemory, Runner, StartError};

/// Runs commands of another runner within the memory limit.
pub struct MemoryLimited {
    runner: Arc<dyn Runner>,
    cgroup: MemoryCgroup,
    /// `--memory-guard`, in percent of the limit.
    guard: Option<u8>,
}

/// Between the guard's first signal, SIGTERM, and SIGKILL, the command may use half of the rest.
#[derive(Clone, Copy)]
enum Threshold {
    Guard,
    Kill,
}

/// The fastest allocation that the guard expects: the time until the next look is the time that
/// this takes to the threshold. Faulting in new pages is slower on most machines.
const BYTES_PER_SECOND: u64 = 4 << 30;
/// Looks this often cost less than a thousandth of a processor.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const LONGEST_INTERVAL: Duration = Duration::from_secs(1);

impl MemoryLimited {
    pub fn new(runner: Arc<dyn Runner>, cgroup: MemoryCgroup, guard: Option<u8>) -> Self {
        Self { runner, cgroup, guard }
    }

    /// Waits until the command uses too much memory: without a guard or a limit, this never ends.
    async fn reaches(&self, threshold: Threshold) -> MemoryUse {
        let Some(percent) = self.guard else { return std::future::pending().await };
        loop {
            let Some(limit) = self.cgroup.limit() else { return std::future::pending().await };
            let guard = limit / 100 * u64::from(percent);
            let threshold = match threshold {
                Threshold::Guard => guard,
                Threshold::Kill => guard + (limit - guard) / 2,
            };
            let used = self.cgroup.unreclaimable(threshold);
            if used >= threshold {
                return MemoryUse { used, limit };
            }
            let gap = Duration::from_nanos(
                (threshold - used).saturating_mul(1_000_000_000) / BYTES_PER_SECOND,
            );
            sleep(gap.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)).await;
        }
    }

    /// Adds the kernel's kills since `before` to a command that failed.
    fn with_kills(&self, ended: Exited, before: Option<u64>) -> Exited {
        if ended.exit.is_success() {
            return ended;
        }
        let now = self.cgroup.oom_kills();
        if now.zip(before).is_none_or(|(now, before)| now <= before) {
            return ended;
        }
        let limit = self.cgroup.limit().map_or_else(|| "unknown".to_owned(), shown);
        let why = format!("the kernel killed a process at the container's limit of {limit}");
        Exited { out_of_memory: Some(OutOfMemory::Kernel(why)), ..ended }
    }
}

#[async_trait]
impl Runner for MemoryLimited {
    fn name(&self) -> &'static str {
        self.runner.name()
    }

    fn is_in_process(&self) -> bool {
        self.runner.is_in_process()
    }

    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        let kills = self.cgroup.oom_kills();
        // A warm worker must know that the guard ends it: its next answer proves nothing, and
        // it gets no other message. For a command, this token is only the halt of its message.
        let halt = if command.variables.is_some() { halt } else { halt.child_token() };
        let mut running = pin!(self.runner.run(command, halt.clone(), activity));
        let MemoryUse { used, limit } = tokio::select! {
            biased;
            ended = &mut running => return Ok(self.with_kills(ended?, kills)),
            exceeded = self.reaches(Threshold::Guard) => exceeded,
        };
        let percent = self.guard.unwrap_or_default();
        let why = format!(
            "{} of {} are in use (without the page cache), the limit of --memory-guard is {percent}%",
            shown(used),
            shown(limit)
        );
        warn!(used, limit, "{} reached --memory-guard; ending it", self.name());
        halt.cancel();
        let ended = tokio::select! {
            biased;
            ended = &mut running => ended?,
            MemoryUse { used, .. } = self.reaches(Threshold::Kill) => {
                warn!(used, limit, "{} uses more memory after SIGTERM; killing it", self.name());
                Exited::killed()
            }
        };
        Ok(Exited { out_of_memory: Some(OutOfMemory::Guard(why)), ..ended })
    }
}

fn shown(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}
