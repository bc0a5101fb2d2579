//! What is decided before a run begins.

use std::time::Duration;

use super::lifecycle::Policy;
use super::stop::StopPlan;

/// What a run is decided by.
#[derive(Debug, Clone)]
pub struct Settings {
    pub policy: Policy,
    pub polling: Polling,
    pub stop: StopPlan,
}

/// How to ask for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polling {
    /// How long to wait before the queue counts as empty.
    pub wait: Duration,
    /// The longest a single request may wait.
    pub longest_poll: Duration,
    /// How long transient errors are retried.
    pub give_up: Duration,
}
