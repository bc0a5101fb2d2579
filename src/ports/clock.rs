//! The run's clock.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Counts from the start of the run; time in which the machine was suspended counts too.
///
/// `CLOCK_MONOTONIC`, on which timers run, stands still while a machine is suspended; SQS's clock
/// does not. What `CLOCK_BOOTTIME` has more than `CLOCK_MONOTONIC` is that time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    suspended_before: Duration,
}

impl Clock {
    pub fn start() -> Self {
        Self { started: Instant::now(), suspended_before: suspended() }
    }

    /// Time since the run began.
    pub fn now(&self) -> Duration {
        let suspended = suspended().saturating_sub(self.suspended_before);
        self.started.elapsed() + if suspended < NOISE { Duration::ZERO } else { suspended }
    }

    /// Sleeps until `at` on this clock; returns at once if that is past.
    pub async fn sleep_until(&self, at: Duration) {
        loop {
            let left = at.saturating_sub(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// Two clocks cannot be read at the same instant; a difference below this is no suspension.
const NOISE: Duration = Duration::from_secs(1);

/// Since boot.
fn suspended() -> Duration {
    let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
    let monotonic = read(ClockId::CLOCK_MONOTONIC);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(monotonic)
}
