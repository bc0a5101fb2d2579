//! Settings of a run that are valid but can do harm.

use std::time::Duration;

use super::{Finding, Location, Rule};
use crate::job::lease::Strategy;
use crate::settings::resolve::RunConfig;

/// The lease must outlive a slow request and its retry.
const SHORT_LEASE: Duration = Duration::from_secs(30);

/// Findings about valid settings. `at` returns the location of a flag.
pub fn findings(at: &dyn Fn(&str) -> Location, config: &RunConfig) -> Vec<Finding> {
    let settings = &config.work.settings;
    let mut findings = Vec::new();
    if settings.polling.wait < Duration::from_secs(1) {
        findings.push(Finding::new(
            Rule::ShortPoll,
            at("--wait"),
            "a short poll asks only some of SQS's servers, and may find no message although there is one",
            "set it to 1s or more",
        ));
    }
    let limits = &settings.policy.limits;
    if limits.strategy == Strategy::Heartbeat && limits.visibility < SHORT_LEASE {
        findings.push(Finding::new(
            Rule::ShortLease,
            at("--visibility-timeout"),
            format!("with {:?}, one slow request is enough to lose the lease", limits.visibility),
            "set it to 30s or more; it is extended each time a third of it has passed",
        ));
    }
    findings
}
