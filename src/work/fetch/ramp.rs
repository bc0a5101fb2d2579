//! How many streams a download uses: as many as make it faster.

use std::time::Duration;

/// Doubles the number of streams while that makes the download faster, and takes the last doubling
/// back if it does not.
///
/// S3 limits the rate of each connection, and a long way to the store does, too: there, twice the
/// streams are nearly twice as fast. Where the processor, the disk or the network is the limit,
/// more streams only cost.
#[derive(Debug)]
pub(super) struct Ramp {
    most: usize,
    streams: usize,
    /// The state before the last increase, if its effect is not known yet.
    before: Option<Measured>,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    streams: usize,
    /// In bytes per second.
    rate: u64,
}

/// What all streams together received in some time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) bytes: u64,
    pub(super) time: Duration,
    /// The bytes that no stream has begun to fetch.
    pub(super) remaining: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Take another sample of this length, after a pause and once all streams have an answer.
    Sample { pause: Duration, length: Duration },
    /// The number of streams is final.
    Settled,
}

impl Ramp {
    pub(super) fn new(most: usize) -> Self {
        Self { most, streams: 1, before: None }
    }

    /// How many streams to use.
    pub(super) fn streams(&self) -> usize {
        self.streams
    }

    pub(super) fn handle(&mut self, sample: Sample) -> Next {
        let milliseconds = u64::try_from(sample.time.as_millis()).unwrap_or(u64::MAX).max(1);
        let now = Measured { streams: self.streams, rate: sample.bytes * 1000 / milliseconds };
        let remaining = Duration::from_millis(sample.remaining / (now.rate / 1000).max(1));
        let length = (remaining / 200).clamp(MIN_SAMPLE, MAX_SAMPLE);
        let next = |pause| Next::Sample { pause, length };
        match self.before.take() {
            Some(before) if !is_gain(before, now) => {
                self.streams = before.streams;
                return next(REST);
            }
            _ if self.streams >= self.most || remaining < MIN_REMAINING => return Next::Settled,
            // Too short for what depends on it.
            None if 2 * sample.time <= length => return next(Duration::ZERO),
            Some(_) | None => {}
        }
        self.before = Some(now);
        self.streams = (2 * self.streams).min(self.most);
        next(Duration::ZERO)
    }
}

/// Was it worth it? An increase by less than a doubling needs a smaller gain.
fn is_gain(before: Measured, now: Measured) -> bool {
    let (old, new) = (before.streams as u64, now.streams as u64);
    now.rate * 100 * old > before.rate * (100 * old + MIN_GAIN_PERCENT * (new - old))
}

/// The length of a sample: the longer the download, the more exact.
pub(super) const MIN_SAMPLE: Duration = Duration::from_millis(100);
const MAX_SAMPLE: Duration = Duration::from_millis(500);

/// How much faster twice the streams must be.
const MIN_GAIN_PERCENT: u64 = 25;

/// After an increase without a gain, until the next attempt: the limit may have changed.
const REST: Duration = Duration::from_secs(5);

/// More streams do not pay off if the download ends so soon without them.
const MIN_REMAINING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of streams of a long download, where this many streams have this rate in MiB/s.
    fn ramp(most: usize, rate: impl Fn(u64) -> u64) -> Vec<usize> {
        let mut ramp = Ramp::new(most);
        let mut streams = vec![1];
        loop {
            let bytes = rate(ramp.streams() as u64) << 19;
            let next = ramp.handle(Sample { bytes, time: MAX_SAMPLE, remaining: 100 << 30 });
            streams.push(ramp.streams());
            if !matches!(next, Next::Sample { pause: Duration::ZERO, .. }) {
                return streams;
            }
        }
    }

    #[test]
    fn streams_are_doubled_while_each_has_a_limit_of_its_own() {
        assert_eq!(ramp(8, |streams| 64 * streams), [1, 2, 4, 8, 8]);
        assert_eq!(ramp(6, |streams| 64 * streams), [1, 2, 4, 6, 6]);
        assert_eq!(ramp(1, |_| 64), [1, 1]);
    }

    #[test]
    fn a_doubling_without_a_real_gain_is_taken_back() {
        assert_eq!(ramp(8, |_| 1000), [1, 2, 1]);
        assert_eq!(ramp(8, |streams| 1000 + 100 * streams), [1, 2, 1]);
        assert_eq!(ramp(8, |streams| 1000 / streams), [1, 2, 1]);
        assert_eq!(ramp(8, |streams| (64 * streams).min(256)), [1, 2, 4, 8, 4]);
    }

    #[test]
    fn a_smaller_increase_needs_a_smaller_gain() {
        let rates = |three: u64| move |streams| if streams == 3 { three } else { 50 * streams };
        assert_eq!(ramp(3, rates(113)), [1, 2, 3, 3]);
        assert_eq!(ramp(3, rates(112)), [1, 2, 3, 2]);
    }

    #[test]
    fn after_a_pause_the_next_attempt_is_compared_with_a_new_rate() {
        let mut ramp = Ramp::new(8);
        let mut handle = |mib: u64| {
            let sample = Sample { bytes: mib << 19, time: MAX_SAMPLE, remaining: 100 << 30 };
            (ramp.handle(sample), ramp.streams())
        };
        let after = |pause| Next::Sample { pause, length: MAX_SAMPLE };
        assert_eq!(handle(100), (after(Duration::ZERO), 2));
        assert_eq!(handle(100), (after(REST), 1));
        assert_eq!(handle(10), (after(Duration::ZERO), 2));
        assert_eq!(handle(20), (after(Duration::ZERO), 4));
    }

    #[test]
    fn a_long_download_is_measured_again_for_longer() {
        let handle = |seconds: u64| {
            let mut ramp = Ramp::new(8);
            let sample =
                Sample { bytes: 1000 << 10, time: MIN_SAMPLE, remaining: seconds * 10_240_000 };
            let Next::Sample { length, .. } = ramp.handle(sample) else { panic!("{seconds}") };
            (length.as_millis(), ramp.streams())
        };
        assert_eq!(handle(20), (100, 2));
        assert_eq!(handle(40), (200, 1));
        assert_eq!(handle(800), (500, 1));
    }

    #[test]
    fn the_end_of_a_download_gets_no_more_streams() {
        let streams = |remaining: u64| {
            let mut ramp = Ramp::new(8);
            let next = ramp.handle(Sample { bytes: 100 << 20, time: MIN_SAMPLE, remaining });
            (next == Next::Settled, ramp.streams())
        };
        assert_eq!(streams(999 << 20), (true, 1));
        assert_eq!(streams(1001 << 20), (false, 2));
    }

    #[test]
    fn without_any_bytes_more_streams_are_tried_once() {
        let mut ramp = Ramp::new(8);
        let nothing = Sample { bytes: 0, time: MAX_SAMPLE, remaining: 1 << 30 };
        let streams = [(); 3].map(|()| {
            ramp.handle(nothing);
            ramp.streams()
        });
        assert_eq!(streams, [2, 1, 2]);
    }
}
