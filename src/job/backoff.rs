//! How long to wait before a call is made again.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::delivery::MessageId;

/// A delay between `min` and `min * 2^tries`, at most `max`: exponential, with full jitter
/// (AWS Architecture Blog, "Exponential Backoff And Jitter").
///
/// The jitter is derived from the message and the number of the try: messages that failed together spread out, and a journey can be
/// replayed.
pub fn backoff(min: Duration, max: Duration, message: &MessageId, tries: u32) -> Duration {
    let most = 2u32.checked_pow(tries).map_or(max, |factor| min.saturating_mul(factor)).min(max);
    let mut hasher = DefaultHasher::new();
    (message, tries).hash(&mut hasher);
    let share = f64::from((hasher.finish() >> 32) as u32) / f64::from(u32::MAX);
    min + most.saturating_sub(min).mul_f64(share)
}

/// When a call is made, and how often it has failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Again {
    /// On the run's clock.
    pub at: Duration,
    pub failures: u32,
}

impl Again {
    /// It has failed once more.
    pub(super) fn after(self, now: Duration, longest: Duration, message: &MessageId) -> Self {
        let failures = self.failures.saturating_add(1);
        Self { at: now + backoff(FIRST_PAUSE.min(longest), longest, message, failures), failures }
    }
}

/// The least pause after a failed try.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn the_backoff_doubles_is_jittered_and_capped() {
        for tries in 1..20 {
            let most = (10 * S * 2u32.pow(tries)).min(900 * S);
            let delay = |i| backoff(10 * S, 900 * S, &MessageId::new(format!("m{i}")), tries);
            let delays: Vec<_> = (0..200).map(delay).collect();
            assert!(delays.iter().all(|delay| (10 * S..=most).contains(delay)), "try {tries}: {delays:?}");
            let (low, high) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
            assert!(*high - *low > (most - 10 * S).mul_f64(0.9), "try {tries} is not spread: {low:?} to {high:?}");
        }
        assert!(backoff(10 * S, 900 * S, &MessageId::new("m"), u32::MAX) <= 900 * S);
    }
}
