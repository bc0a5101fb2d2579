//! How many streams a download uses: as many as make it faster.

use std::time::Duration;

/// While the streams wait for bytes, doubles their number, as long as that makes the download
/// faster. While they mostly write, halves it, unless that makes the download slower.
///
/// S3 limits the rate of each connection, and a long way to the store does, too: there, twice the
/// streams are nearly twice as fast. Where the processor, the disk or the network is the limit,
/// more streams only cost. The first rate says little: a server may need some time until it
/// delivers bytes as fast as it can, so that any number of streams seems a gain.
#[derive(Debug)]
pub(super) struct Ramp {
    most: usize,
    streams: usize,
    /// The state before the last change, if its effect is not known yet.
    before: Option<Measured>,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    streams: usize,
    /// In bytes per second.
    rate: u64,
}

/// What all streams together did in some time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) bytes: u64,
    pub(super) time: Duration,
    /// How long the streams wrote instead of waiting for bytes: the sum.
    pub(super) writing: Duration,
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
        if let Some(before) = self.before.take() {
            let (few, many) =
                if before.streams < now.streams { (before, now) } else { (now, before) };
            self.streams = if is_gain(few, many) { many.streams } else { few.streams };
            // Only a gain suggests that twice as many are even faster.
            if self.streams <= before.streams {
                return next(REST);
            }
        } else if 2 * sample.time <= length {
            // Too short for what depends on it.
            return next(Duration::ZERO);
        }
        let streams = match (self.streams, is_busy(now.streams, sample)) {
            (1, true) => return next(Duration::ZERO),
            (streams, true) => streams / 2,
            (streams, false) if streams >= self.most || remaining < MIN_REMAINING => {
                return Next::Settled;
            }
            (streams, false) => (2 * streams).min(self.most),
        };
        self.before = Some(now);
        self.streams = streams;
        next(Duration::ZERO)
    }
}

/// Do the streams write for more than half of the time? Twice as many would only halve the other
/// part, and so be faster by a third at most.
fn is_busy(streams: usize, sample: Sample) -> bool {
    let streams = u32::try_from(streams).unwrap_or(u32::MAX);
    2 * sample.writing > sample.time * streams
}

/// Are the additional streams worth it? Less than a doubling needs a smaller gain.
fn is_gain(few: Measured, many: Measured) -> bool {
    let (less, more) = (few.streams as u64, many.streams as u64);
    many.rate * 100 * less > few.rate * (100 * less + MIN_GAIN_PERCENT * (more - less))
}

/// The length of a sample: the longer the download, the more exact.
pub(super) const MIN_SAMPLE: Duration = Duration::from_millis(100);
const MAX_SAMPLE: Duration = Duration::from_millis(500);

/// How much faster twice the streams must be.
const MIN_GAIN_PERCENT: u64 = 25;

/// After a change that was taken back, or a halving, until the next attempt: the limit may have
/// changed.
const REST: Duration = Duration::from_secs(5);

/// More streams do not pay off if the download ends so soon without them.
const MIN_REMAINING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Duration = Duration::ZERO;

    /// Of streams that always wait.
    fn sample(bytes: u64, time: Duration, remaining: u64) -> Sample {
        Sample { bytes, time, writing: Duration::ZERO, remaining }
    }

    /// What follows each sample of a long download in MiB, in which each stream wrote for so many
    /// of 500 milliseconds.
    fn after(ramp: &mut Ramp, samples: &[(u64, u32)]) -> Vec<(usize, Duration)> {
        let after = |&(mib, writing): &(u64, u32)| {
            let streams = u32::try_from(ramp.streams()).unwrap();
            let writing = Duration::from_millis(1) * writing * streams;
            let sample = Sample { writing, ..sample(mib << 20, MAX_SAMPLE, 100 << 30) };
            let Next::Sample { pause, .. } = ramp.handle(sample) else { panic!("settled") };
            (ramp.streams(), pause)
        };
        samples.iter().map(after).collect()
    }

    /// The numbers of streams of a long download, where this many streams have this rate in MiB/s.
    fn ramp(most: usize, rate: impl Fn(u64) -> u64) -> Vec<usize> {
        let mut ramp = Ramp::new(most);
        let mut streams = vec![1];
        loop {
            let bytes = rate(ramp.streams() as u64) << 19;
            let next = ramp.handle(sample(bytes, MAX_SAMPLE, 100 << 30));
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
        let next = after(&mut ramp, &[(100, 0), (100, 0), (10, 0), (20, 0)]);
        assert_eq!(next, [(2, NONE), (1, REST), (2, NONE), (4, NONE)]);
    }

    #[test]
    fn a_stream_that_mostly_writes_stays_alone() {
        let mut ramp = Ramp::new(8);
        let next = after(&mut ramp, &[(100, 251), (100, 500), (100, 250)]);
        assert_eq!(next, [(1, NONE), (1, NONE), (2, NONE)]);
    }

    /// The rate of the first sample is far below the later one.
    #[test]
    fn after_a_slow_beginning_one_stream_is_tried_again() {
        let mut ramp = Ramp::new(8);
        let next = after(&mut ramp, &[(20, 50), (300, 450), (400, 400)]);
        assert_eq!(next, [(2, NONE), (1, NONE), (1, REST)]);
    }

    #[test]
    fn busy_streams_stay_if_half_of_them_are_slower() {
        let mut ramp = Ramp::new(4);
        let next = after(&mut ramp, &[(20, 150), (40, 200), (70, 300), (40, 200), (70, 300)]);
        assert_eq!(next, [(2, NONE), (4, NONE), (2, NONE), (4, REST), (2, NONE)]);
    }

    #[test]
    fn three_busy_streams_are_compared_with_one() {
        let mut ramp = Ramp::new(3);
        let next = after(&mut ramp, &[(20, 0), (40, 0), (60, 300), (39, 300)]);
        assert_eq!(next, [(2, NONE), (3, NONE), (1, NONE), (3, REST)]);
    }

    #[test]
    fn a_long_download_is_measured_again_for_longer() {
        let handle = |seconds: u64| {
            let mut ramp = Ramp::new(8);
            let sample = sample(1000 << 10, MIN_SAMPLE, seconds * 10_240_000);
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
            let next = ramp.handle(sample(100 << 20, MIN_SAMPLE, remaining));
            (next == Next::Settled, ramp.streams())
        };
        assert_eq!(streams(999 << 20), (true, 1));
        assert_eq!(streams(1001 << 20), (false, 2));
    }

    #[test]
    fn without_any_bytes_more_streams_are_tried_once() {
        let mut ramp = Ramp::new(8);
        let streams = [(); 3].map(|()| {
            ramp.handle(sample(0, MAX_SAMPLE, 1 << 30));
            ramp.streams()
        });
        assert_eq!(streams, [2, 1, 2]);
    }
}
