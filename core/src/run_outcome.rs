//! How a run of the program ended, and its exit code.

use std::fmt;

use super::keep_reason::{KeepReason, Role};

/// Why nothing was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiveFailure {
    /// Requests kept failing for `--receive-give-up`.
    GaveUp(String),
    /// A retry cannot succeed.
    Misconfigured(String),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunOutcome {
    /// No message was kept: all succeeded, or none came.
    Finished,
    /// The last message that was kept was kept for this reason.
    Kept(KeepReason),
    ReceiveFailed(ReceiveFailure),
    ActorDied(Role),
    /// A bug in the supervisor itself.
    SupervisorDied,
}

impl RunOutcome {
    /// The combined outcome of two runs, of which `other` ended last: the worse one, and the last
    /// of two of the same kind.
    #[must_use]
    pub fn and_then(self, other: Self) -> Self {
        let rank = |outcome: &Self| match outcome {
            Self::Finished => 0,
            Self::Kept(_) => 1,
            Self::ReceiveFailed(_) => 2,
            Self::ActorDied(_) => 3,
            Self::SupervisorDied => 4,
        };
        if rank(&self) > rank(&other) { self } else { other }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Finished => 0,
            Self::Kept(reason) => reason.exit_code(),
            Self::ReceiveFailed(ReceiveFailure::GaveUp(_)) => 69,
            Self::ReceiveFailed(ReceiveFailure::Misconfigured(_)) => 78,
            Self::ActorDied(_) | Self::SupervisorDied => 70,
        }
    }
}

impl fmt::Display for RunOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("no message was kept"),
            Self::Kept(reason) => reason.fmt(f),
            Self::ReceiveFailed(ReceiveFailure::GaveUp(why)) => {
                write!(f, "no message could be received: {why}")
            }
            Self::ReceiveFailed(ReceiveFailure::Misconfigured(why)) => why.fmt(f),
            Self::ActorDied(role) => KeepReason::ActorDied(*role).fmt(f),
            Self::SupervisorDied => f.write_str("a bug in leasehold: its supervisor died"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_outcome_counts_and_the_last_of_a_kind() {
        use RunOutcome::{ActorDied, Finished, Kept, ReceiveFailed, SupervisorDied};
        let failed = || ReceiveFailed(ReceiveFailure::GaveUp("503".into()));
        let ascending = [
            Finished,
            Kept(KeepReason::Stopped),
            failed(),
            ActorDied(Role::Receiver),
            SupervisorDied,
        ];
        for (i, better) in ascending.iter().enumerate() {
            for worse in &ascending[i..] {
                assert_eq!(better.clone().and_then(worse.clone()), *worse);
                assert_eq!(worse.clone().and_then(better.clone()), *worse);
            }
        }
        assert_eq!(
            Kept(KeepReason::Stopped).and_then(Kept(KeepReason::TimedOut)),
            Kept(KeepReason::TimedOut)
        );
    }
}
