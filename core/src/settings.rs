//! Settings of a run.

use std::time::Duration;

use super::policy::Policy;
use super::stop::StopPlan;

/// The settings of a run.
#[derive(Debug, Clone)]
pub struct Settings {
    pub policy: Policy,
    pub polling: Polling,
    pub stop: StopPlan,
}

/// How to request a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polling {
    /// How long to wait for a message before the queue counts as empty.
    pub wait: Duration,
    /// The longest a single request may wait.
    pub longest_poll: Duration,
    /// How long transient errors are retried.
    pub give_up: Duration,
}
