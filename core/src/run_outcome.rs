//! How a run of the program ended, and its exit code.

use std::fmt;

use super::keep_reason::{KeepReason, Role};

/// Why nothing was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiveFailure {
    /// `--receive-give-up` is over.
    GaveUp(String),
    /// Trying again is pointless.
    Misconfigured(String),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunOutcome {
    /// Nothing was kept: all messages succeeded, or there was none.
    Finished,
    /// The last message that was kept was kept for this reason.
    Kept(KeepReason),
    ReceiveFailed(ReceiveFailure),
    ActorDied(Role),
    /// A bug in the supervisor itself.
    SupervisorDied,
}

impl RunOutcome {
    /// How several runs ended together, of which `other` ended last: the worst kind counts, and of
    /// two of a kind the last.
    #[must_use]
    pub fn and_then(self, other: Self) -> Self {
        let badness = |outcome: &Self| match outcome {
            Self::Finished => 0,
            Self::Kept(_) => 1,
            Self::ReceiveFailed(_) => 2,
            Self::ActorDied(_) => 3,
            Self::SupervisorDied => 4,
        };
        if badness(&self) > badness(&other) { self } else { other }
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
    fn of_several_runs_the_worst_counts_and_of_a_kind_the_last() {
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
