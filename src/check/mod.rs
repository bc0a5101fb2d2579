//! `leasehold check`: what is wrong before the first message is lost.
//!
//! Facts in, findings out: [`manifest`], [`queue`], [`policy`], [`places`] and [`settings`] are pure, and [`live`] is what asks the
//! world. It consumes no message.

pub mod live;
pub mod manifest;
pub mod places;
pub mod policy;
pub mod queue;
pub mod settings;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

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
    /// Nobody could see whether it is right.
    Unchecked,
}

/// One thing that is wrong or could not be seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// The queue, the flag or the field.
    #[serde(rename = "where")]
    pub place: String,
    pub what: String,
    pub change: String,
}

impl Finding {
    pub fn error(place: impl Into<String>, what: impl Into<String>, change: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place: place.into(), what: what.into(), change: change.into() }
    }

    pub fn warning(place: impl Into<String>, what: impl Into<String>, change: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, what, change) }
    }

    pub fn unchecked(place: impl Into<String>, what: impl Into<String>, change: impl Into<String>) -> Self {
        Self { severity: Severity::Unchecked, ..Self::error(place, what, change) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Unchecked => "unchecked",
        };
        let [place, what, change] = [&self.place, &self.what, &self.change].map(|text| Plain(text));
        write!(f, "{severity:<9} {place}: {what}: {change}")
    }
}

/// A stop while a command runs, in seconds after SIGTERM: when each part of it is over at the latest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StopTimeline {
    /// Whose settings.
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
        let timeline = settings.stop.timeline(stop_grace, config.records.idempotency.is_some(), is_checkpointed);
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

/// All that was found, worst first.
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

    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

impl From<Vec<Finding>> for Findings {
    fn from(findings: Vec<Finding>) -> Self {
        Self { findings, stops: Vec::new() }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        for stop in &self.stops {
            writeln!(f, "{stop}")?;
        }
        let [errors, warnings, unchecked] =
            [Severity::Error, Severity::Warning, Severity::Unchecked].map(|severity| self.count(severity));
        write!(f, "errors: {errors}, warnings: {warnings}, could not be checked: {unchecked}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_from_a_manifest_does_not_reach_the_terminal_as_it_is() {
        let stop = StopTimeline {
            place: "job \u{1b}[2J".to_owned(),
            kill_by_s: 20.0,
            checkpoint_by_s: None,
            record_by_s: None,
            released_by_s: 25.0,
            reported_by_s: 27.0,
            pushed_by_s: None,
            exit_by_s: 30.0,
        };
        let findings = vec![Finding::error("job \u{1b}[2J", "what\n\u{9b}2J", "ch\u{202e}ange")];
        let text = Findings { findings, stops: vec![stop] }.to_string();
        assert!(text.starts_with(r"error     job \u{1b}[2J: what\n\u{9b}2J: ch\u{202e}ange"), "{text}");
        assert!(text.contains(r"stop      job \u{1b}[2J: TERM"), "{text}");
        assert_eq!(text.lines().count(), 3, "{text}");
    }
}
