//! Chance, from a seed, and the weather that is made of it.

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

/// How rough a world is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultyRecords {
    /// Nothing fails, nobody is stopped.
    Calm,
    /// Calls fail and are slow, but no answer takes as long as a lease.
    Rough,
    /// Answers later than a lease, pods KILLed.
    Wild,
}
