//! Delays between retries.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::delivery::{DeliveryId, MessageId};

/// A delay between `min` and `min * 2^tries`, at most `max`: exponential, with full jitter
/// above the minimum (AWS Architecture Blog, "Exponential Backoff And Jitter").
///
/// The jitter is derived from the message and the number of the try, so that messages that failed
/// together spread out and a run can be replayed.
pub fn backoff(min: Duration, max: Duration, message: &MessageId, tries: u32) -> Duration {
    let limit = 2u32.checked_pow(tries).map_or(max, |factor| min.saturating_mul(factor)).min(max);
    min + limit.saturating_sub(min).mul_f64(share((message, tries)))
}

/// A number from 0 to 1 that looks random.
fn share(of: impl Hash) -> f64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    f64::from((hasher.finish() >> 32) as u32) / f64::from(u32::MAX)
}

/// When a call is tried next, and how often it has failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NextTry {
    /// On the run's clock.
    pub at: Duration,
    pub failures: u32,
}

impl NextTry {
    /// Schedules the next try after one more failure. The pause doubles up to `longest`, and jitter
    /// adds up to the same again: so a number of failures takes a minimum time. Two deliveries,
    /// also of the same message, do not try at the same moments.
    pub(super) fn after_failure(
        self,
        now: Duration,
        longest: Duration,
        delivery: &DeliveryId,
    ) -> Self {
        let pause = 2u32
            .checked_pow(self.failures)
            .map_or(longest, |factor| FIRST_PAUSE.saturating_mul(factor))
            .min(longest);
        let failures = self.failures.saturating_add(1);
        Self { at: now + pause + pause.mul_f64(share((delivery, failures))), failures }
    }
}

/// The shortest pause after a failed try.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn the_backoff_doubles_is_jittered_and_capped() {
        for tries in 1..20 {
            let limit = (10 * S * 2u32.pow(tries)).min(900 * S);
            let delay = |i| backoff(10 * S, 900 * S, &MessageId::new(format!("m{i}")), tries);
            let delays: Vec<_> = (0..200).map(delay).collect();
            assert!(
                delays.iter().all(|delay| (10 * S..=limit).contains(delay)),
                "try {tries}: {delays:?}"
            );
            let (low, high) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
            assert!(
                *high - *low > (limit - 10 * S).mul_f64(0.9),
                "try {tries} is not spread: {low:?} to {high:?}"
            );
        }
        assert!(backoff(10 * S, 900 * S, &MessageId::new("m"), u32::MAX) <= 900 * S);
    }

    #[test]
    fn eight_failures_take_21_to_43_seconds() {
        let time = |receive_count| {
            let delivery = DeliveryId { message_id: MessageId::new("m"), receive_count };
            (0..8)
                .fold(NextTry::default(), |next_try, _| {
                    next_try.after_failure(next_try.at, 5 * S, &delivery)
                })
                .at
        };
        let times: Vec<_> = (1..200).map(time).collect();
        assert!(times.iter().all(|time| (21 * S..43 * S).contains(time)), "{times:?}");
        assert!(times[0] != times[1], "two deliveries of a message ask at the same moments");
        let delivery = DeliveryId { message_id: MessageId::new("m"), receive_count: 1 };
        assert!(
            NextTry { at: S, failures: u32::MAX }.after_failure(S, 5 * S, &delivery).at <= 11 * S
        );
    }
}
