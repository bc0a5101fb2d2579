//! The run's clock.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Time since the start of the run, including time in which the machine was suspended.
///
/// `CLOCK_MONOTONIC`, which timers use, stops while a machine is suspended; SQS's clock does not.
/// The difference between `CLOCK_BOOTTIME` and `CLOCK_MONOTONIC` is the suspended time.
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

    /// Sleeps until `at` on this clock; returns immediately if that has passed.
    pub async fn sleep_until(&self, at: Duration) {
        loop {
            let remaining = at.saturating_sub(self.now());
            if remaining.is_zero() {
                return;
            }
            tokio::time::sleep(remaining).await;
        }
    }
}

/// Two clocks cannot be read at the same instant, so a smaller difference is not a suspension.
const NOISE: Duration = Duration::from_secs(1);

/// The suspended time since boot.
fn suspended() -> Duration {
    let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
    let monotonic = read(ClockId::CLOCK_MONOTONIC);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(monotonic)
}
