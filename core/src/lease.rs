//! Our belief that the message is in flight for us, and for how long.

use std::time::Duration;

/// SQS hides a message for at most 12 hours from its receive, extensions included. It refuses a
/// request beyond that instead of shortening it (AWS, "Amazon SQS visibility timeout").
pub const CEILING: Duration = Duration::from_hours(12);

/// How a lease is held while the work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// A short lease, extended at each third of it.
    Heartbeat,
    /// One extension to this length, right after the receive; then none.
    Fixed(Duration),
}

/// A lease on one delivery. All points in time are on the run's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    strategy: Strategy,
    visibility: Duration,
    /// How long the message may be hidden in total.
    ceiling: Duration,
    asked_at: Duration,
    extend_at: Option<Duration>,
    /// `None` once lost: a lost lease is never trusted again, whatever the queue answers later.
    expires_at: Option<Duration>,
}

impl Lease {
    /// The lease from a receive: `visibility` long, counted from before the request.
    #[must_use]
    pub fn taken(strategy: Strategy, visibility: Duration, asked_at: Duration) -> Self {
        let extend_at = match strategy {
            Strategy::Heartbeat => asked_at + visibility / 3,
            Strategy::Fixed(_) => asked_at,
        };
        let (extend_at, expires_at) = (Some(extend_at), Some(asked_at + visibility));
        Self { strategy, visibility, ceiling: CEILING, asked_at, extend_at, expires_at }
    }

    /// The same lease with another ceiling than SQS's, for a rehearsal.
    #[must_use]
    pub fn with_ceiling(self, ceiling: Duration) -> Self {
        Self { ceiling, ..self }
    }

    /// The same lease, to be extended by `visibility`. If the receive gave another length, the
    /// first extension is due immediately.
    #[must_use]
    pub fn extended_by(self, visibility: Duration) -> Self {
        match self.strategy {
            Strategy::Heartbeat if visibility != self.visibility => {
                Self { visibility, extend_at: Some(self.asked_at), ..self }
            }
            Strategy::Heartbeat | Strategy::Fixed(_) => self,
        }
    }

    /// When to request the next extension; `None` if no more are due.
    pub fn extend_at(&self) -> Option<Duration> {
        self.extend_at
    }

    /// From then on another pod may have the message; `None` once it is lost.
    pub fn expires_at(&self) -> Option<Duration> {
        self.expires_at
    }

    /// Can we still prove that the message is ours?
    pub fn is_held(&self, now: Duration) -> bool {
        self.expires_at.is_some_and(|expires_at| now < expires_at)
    }

    /// How long it lasts without another extension.
    pub fn remaining(&self, now: Duration) -> Duration {
        self.expires_at.unwrap_or_default().saturating_sub(now)
    }

    /// When to halt the work, so that it ends before SQS's ceiling even if it takes `stop` to end.
    pub fn halt_by(&self, stop: Duration) -> Duration {
        (self.asked_at + self.ceiling).saturating_sub(ON_ITS_WAY + stop)
    }

    /// The visibility timeout to request at `now`, in whole seconds; `None` if it would not
    /// lengthen the lease: SQS's ceiling is near, or a fixed length is less than the receive gave.
    /// Only the first extension of a job type with shorter leases shortens it.
    pub fn extension(&self, now: Duration) -> Option<Duration> {
        let want = match self.strategy {
            Strategy::Heartbeat => self.visibility,
            Strategy::Fixed(length) => length,
        };
        let ask = want.min(self.room(now));
        let shortens =
            self.strategy == Strategy::Heartbeat && self.extend_at == Some(self.asked_at);
        self.expires_at.is_some_and(|expires_at| now + ask > expires_at || shortens).then_some(ask)
    }

    /// `delay`, in whole seconds rounded up, at most what SQS allows at `now`.
    pub fn release_delay(&self, delay: Duration, now: Duration) -> Duration {
        let whole = Duration::from_secs(delay.as_secs() + u64::from(delay.subsec_nanos() > 0));
        whole.min(self.room(now))
    }

    /// The extension requested at `asked_at` was accepted. It counts from the request, not from the
    /// answer, so a pod never assumes a longer lease than SQS does.
    #[must_use]
    pub fn extended(&self, asked_at: Duration, by: Duration) -> Self {
        let extend_at = match self.strategy {
            Strategy::Heartbeat => Some(asked_at + by.min(self.visibility) / 3),
            Strategy::Fixed(_) => None,
        };
        Self { extend_at, expires_at: Some(asked_at + by), ..*self }
    }

    /// The same lease, not extended again.
    #[must_use]
    pub fn without_extensions(&self) -> Self {
        Self { extend_at: None, ..*self }
    }

    #[must_use]
    pub fn lost(&self) -> Self {
        Self { extend_at: None, expires_at: None, ..*self }
    }

    /// The longest visibility timeout that SQS would still accept, in whole seconds.
    fn room(&self, now: Duration) -> Duration {
        let room = self.ceiling.saturating_sub(now.saturating_sub(self.asked_at) + ON_ITS_WAY);
        Duration::from_secs(room.as_secs())
    }
}

/// How long a request may take to reach SQS.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn heartbeat() -> Lease {
        Lease::taken(Strategy::Heartbeat, 120 * S, 10 * S)
    }

    #[test]
    fn an_extension_is_due_at_each_third() {
        assert_eq!(heartbeat().extend_at(), Some(50 * S));
        assert_eq!(heartbeat().extended(50 * S, 120 * S).extend_at(), Some(90 * S));
    }

    #[test]
    fn an_extension_counts_from_its_request() {
        let lease = heartbeat().extended(50 * S, 120 * S);
        assert!(lease.is_held(170 * S - Duration::from_nanos(1)));
        assert!(!lease.is_held(170 * S));
    }

    #[test]
    fn no_extension_beyond_twelve_hours_is_requested() {
        let mut lease = heartbeat();
        let mut asked = 0;
        while let Some(at) = lease.extend_at() {
            let Some(by) = lease.extension(at) else { break };
            assert!(at + by < 10 * S + CEILING, "SQS would refuse {by:?} at {at:?}");
            lease = lease.extended(at, by);
            asked += 1;
        }
        assert!(asked >= 12 * 60 * 60 / 41, "the lease lasted {asked} extensions only");
        assert!(
            lease.expires_at() >= Some(10 * S + CEILING - 3 * S),
            "held until {:?} only",
            lease.expires_at()
        );
    }

    #[test]
    fn a_fixed_lease_is_extended_once_and_immediately() {
        let lease = Lease::taken(Strategy::Fixed(640 * S), 120 * S, 10 * S);
        assert_eq!(lease.extend_at(), Some(10 * S));
        assert_eq!(lease.extension(11 * S), Some(640 * S));
        let lease = lease.extended(11 * S, 640 * S);
        assert_eq!((lease.extend_at(), lease.expires_at()), (None, Some(651 * S)));
    }

    #[test]
    fn a_fixed_lease_that_is_long_enough_is_not_extended() {
        let lease = Lease::taken(Strategy::Fixed(640 * S), 900 * S, 10 * S);
        assert_eq!(lease.extension(11 * S), None);
        assert_eq!(
            (lease.without_extensions().extend_at(), lease.without_extensions().expires_at()),
            (None, Some(910 * S))
        );
    }

    #[test]
    fn another_length_than_the_receive_gave_is_requested_immediately() {
        for length in [30 * S, 600 * S] {
            let lease = heartbeat().extended_by(length);
            assert_eq!((lease.extend_at(), lease.expires_at()), (Some(10 * S), Some(130 * S)));
            assert_eq!(lease.extension(11 * S), Some(length));
            let lease = lease.extended(11 * S, length);
            assert_eq!(
                (lease.extend_at(), lease.expires_at()),
                (Some(11 * S + length / 3), Some(11 * S + length))
            );
        }
        assert_eq!(heartbeat().extended_by(120 * S), heartbeat());
    }

    #[test]
    fn work_is_halted_in_time_for_the_ceiling() {
        assert_eq!(heartbeat().halt_by(30 * S), 10 * S + CEILING - 31 * S);
    }

    #[test]
    fn a_lost_lease_stays_lost() {
        let lost = heartbeat().lost();
        assert!(!lost.is_held(Duration::ZERO));
        assert_eq!(
            (lost.extend_at(), lost.extension(20 * S), lost.remaining(20 * S)),
            (None, None, Duration::ZERO)
        );
    }

    #[test]
    fn a_release_is_whole_seconds_within_the_ceiling() {
        let lease = heartbeat();
        assert_eq!(lease.release_delay(Duration::from_millis(1500), 20 * S), 2 * S);
        assert_eq!(lease.release_delay(Duration::ZERO, 20 * S), Duration::ZERO);
        assert_eq!(lease.release_delay(13 * 3600 * S, 20 * S), CEILING - 11 * S);
        assert_eq!(lease.release_delay(900 * S, 10 * S + CEILING), Duration::ZERO);
    }
}
