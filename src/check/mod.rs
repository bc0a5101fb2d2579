//! `leasehold check`: finds problems before they cost a message.
//!
//! Facts in, findings out: [`manifest`], [`queue`], [`policy`], [`write_targets`] and [`settings`]
//! are pure, and [`live`] sends the requests. It consumes no message.

pub mod live;
pub mod manifest;
pub mod policy;
pub mod queue;
pub mod report;
pub mod rules;
pub mod settings;
pub mod write_targets;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

pub use self::rules::Rule;
use crate::settings::resolve::RunConfig;
use crate::telemetry::plain::Plain;

/// Worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Something does not work, or loses a message.
    Error,
    /// Something wastes pods, attempts or time.
    Warning,
    /// It could not be checked.
    Unchecked,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Unchecked => "unchecked",
        })
    }
}

/// The queue, the flag or the field that a finding is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub name: String,
    /// In the manifest, from 1.
    pub line: Option<u64>,
}

impl From<String> for Location {
    fn from(name: String) -> Self {
        Self { name, line: None }
    }
}

impl From<&str> for Location {
    fn from(name: &str) -> Self {
        name.to_owned().into()
    }
}

impl From<&Location> for Location {
    fn from(location: &Location) -> Self {
        location.clone()
    }
}

/// One problem, or one thing that could not be checked. Ordered as printed: worst first, then by
/// file and line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// The manifest, if the finding is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    pub id: &'static str,
    pub rule: Rule,
    /// The name of the location.
    #[serde(rename = "where")]
    pub place: String,
    pub what: String,
    pub change: String,
}

impl Finding {
    pub fn new(
        rule: Rule,
        location: impl Into<Location>,
        what: impl Into<String>,
        change: impl Into<String>,
    ) -> Self {
        let Location { name: place, line } = location.into();
        let (severity, id) = (rule.severity(), rule.id());
        Self {
            severity,
            file: None,
            line,
            id,
            rule,
            place,
            what: what.into(),
            change: change.into(),
        }
    }

    /// With another severity than its rule has.
    #[must_use]
    pub fn with_severity(self, severity: Severity) -> Self {
        Self { severity, ..self }
    }
}

/// A stop while a command runs: the latest end of each part, in seconds after SIGTERM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StopTimeline {
    /// The source of the settings.
    #[serde(rename = "where")]
    pub place: String,
    pub kill_by_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_by_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_by_s: Option<f64>,
    pub released_by_s: f64,
    pub reported_by_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pushed_by_s: Option<f64>,
    pub exit_by_s: f64,
}

impl StopTimeline {
    pub fn of(place: impl Into<String>, config: &RunConfig) -> Self {
        let settings = &config.work.settings;
        let of_types = settings.policy.job_types.iter().map(|job_type| job_type.limits.stop_grace);
        let stop_grace = of_types.fold(settings.policy.limits.stop_grace, Duration::max);
        let is_checkpointed = settings.policy.tasks().any(|task| task.checkpoint.is_some());
        let timeline = settings.stop.timeline(
            stop_grace,
            config.records.idempotency.is_some(),
            is_checkpointed,
        );
        Self {
            place: place.into(),
            kill_by_s: timeline.killed.as_secs_f64(),
            checkpoint_by_s: timeline.saved.map(|by| by.as_secs_f64()),
            record_by_s: timeline.record_released.map(|by| by.as_secs_f64()),
            released_by_s: timeline.released.as_secs_f64(),
            reported_by_s: timeline.reported.as_secs_f64(),
            pushed_by_s: config.pushgateway.as_ref().map(|_| timeline.pushed.as_secs_f64()),
            exit_by_s: timeline.exited.as_secs_f64(),
        }
    }
}

impl fmt::Display for StopTimeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("KILL", Some(self.kill_by_s)),
            ("checkpoint", self.checkpoint_by_s),
            ("record", self.record_by_s),
            ("released", Some(self.released_by_s)),
            ("reported", Some(self.reported_by_s)),
            ("pushed", self.pushed_by_s),
            ("exit", Some(self.exit_by_s)),
        ];
        write!(f, "stop      {}: TERM 0 s", Plain(&self.place))?;
        parts
            .iter()
            .filter_map(|(what, by)| Some((what, (*by)?)))
            .try_for_each(|(what, by)| write!(f, " → {what} by {by} s"))
    }
}

/// All findings, worst first.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Findings {
    pub findings: Vec<Finding>,
    pub stops: Vec<StopTimeline>,
}

impl Findings {
    pub fn add(&mut self, other: Self) {
        self.findings.extend(other.findings);
        self.stops.extend(other.stops);
        self.findings.sort();
        self.findings.dedup();
    }

    /// Removes the findings of these rules.
    pub fn ignore(&mut self, rules: &[Rule]) {
        self.findings.retain(|finding| !rules.contains(&finding.rule));
    }

    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

impl From<Vec<Finding>> for Findings {
    fn from(findings: Vec<Finding>) -> Self {
        Self { findings, stops: Vec::new() }
    }
}
