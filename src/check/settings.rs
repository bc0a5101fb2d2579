//! Settings of a run that are valid but can do harm.

use std::time::Duration;

use super::{Finding, Location, Rule};
use crate::job::lease::Strategy;
use crate::job::route::Task;
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
    if config.work.handler.is_warm() {
        findings.extend(of_warm_workers(at, config));
    }
    findings
}

fn of_warm_workers(at: &dyn Fn(&str) -> Location, config: &RunConfig) -> Vec<Finding> {
    let policy = &config.work.settings.policy;
    let mut findings = Vec::new();
    if policy.max_messages == 1 {
        findings.push(Finding::new(
            Rule::WarmOnce,
            at("--max-messages"),
            "the process of --handler stays for many messages, but the pod ends after one",
            "set it to the number of messages that a pod should process",
        ));
    }
    let sees_results = |task: &Task| task.output.is_none() || task.output_at.is_some();
    if config.work.handler.is_http() {
        return findings;
    }
    let unseen = policy.tasks().find_map(|task| match (&task.checkpoint, sees_results(task)) {
        (Some(_), _) => Some("--checkpoint"),
        (None, false) => Some("--output"),
        (None, true) => None,
    });
    if let Some(flag) = unseen {
        findings.push(Finding::new(
            Rule::FilesUnseen,
            at(flag),
            "the function does not know the directory whose files it stores, so it stores nothing",
            "remove it, or for --output also set --output-at",
        ));
    }
    findings
}
