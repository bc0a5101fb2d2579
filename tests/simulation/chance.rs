//! Random choices from a seed, and the level of faults.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone)]
pub struct Chance(Arc<Mutex<fastrand::Rng>>);

impl Chance {
    pub fn of(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    pub fn one_in(&self, n: u32) -> bool {
        self.number(0..n) == 0
    }

    pub fn number(&self, range: Range<u32>) -> u32 {
        self.0.lock().unwrap().u32(range)
    }

    pub fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.0.lock().unwrap().u64(range))
    }
}

/// The level of faults of a world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultLevel {
    /// No call fails, and no pod is stopped.
    None,
    /// Calls fail and are slow, but each answer is faster than a lease.
    Moderate,
    /// Answers may be later than a lease, and pods are KILLed.
    Severe,
}
