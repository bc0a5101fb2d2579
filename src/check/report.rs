//! Formats the findings as text, and as SARIF for programs that show them next to the code.

use std::fmt;

use anstyle::{AnsiColor, Style};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Value, json};

use super::{Finding, Findings, Rule, Severity};
use crate::telemetry::plain::Plain;

/// Writes a finding, in the colour of its severity if `is_coloured`.
fn write(finding: &Finding, is_coloured: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Finding { severity, id, .. } = finding;
    let colour = match severity {
        Severity::Error => AnsiColor::Red,
        Severity::Warning => AnsiColor::Yellow,
        Severity::Unchecked => AnsiColor::Cyan,
    };
    let style = if is_coloured { colour.on_default().bold() } else { Style::new() };
    write!(f, "{style}{severity}[{id}]{style:#} ")?;
    if let Some(file) = &finding.file {
        write!(f, "{}:", Plain(file))?;
        if let Some(line) = finding.line {
            write!(f, "{line}:")?;
        }
        f.write_str(" ")?;
    }
    let [place, what, change] =
        [&finding.place, &finding.what, &finding.change].map(|text| Plain(text));
    write!(f, "{place}: {what}\n    help: {change}")
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self, false, f)
    }
}

/// All findings as text.
pub struct Text<'a> {
    pub findings: &'a Findings,
    pub is_coloured: bool,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { findings, is_coloured } = *self;
        for finding in &findings.findings {
            write(finding, is_coloured, f)?;
            writeln!(f)?;
        }
        for stop in &findings.stops {
            writeln!(f, "{stop}")?;
        }
        let [errors, warnings, unchecked] =
            [Severity::Error, Severity::Warning, Severity::Unchecked]
                .map(|severity| findings.count(severity));
        write!(f, "errors: {errors}, warnings: {warnings}, could not be checked: {unchecked}")
    }
}

/// Characters that must be encoded in the path of a URI (RFC 3986, section 3.3).
const NOT_IN_A_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A log of SARIF 2.1.0 (OASIS, "Static Analysis Results Interchange Format"), which code hosts
/// show next to the manifest.
pub fn sarif(findings: &Findings) -> Value {
    let rules: Vec<Value> = Rule::ALL
        .iter()
        .map(|rule| {
            json!({
                "id": rule.id(),
                "name": rule.name(),
                "shortDescription": { "text": rule.summary() },
                "help": { "text": rule.explanation(), "markdown": rule.explanation() },
                "defaultConfiguration": { "level": level(rule.severity()) },
            })
        })
        .collect();
    let driver = json!({ "name": "leasehold", "semanticVersion": env!("CARGO_PKG_VERSION"), "rules": rules });
    let results: Vec<Value> = findings.findings.iter().map(result).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{ "tool": { "driver": driver }, "results": results }],
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Unchecked => "note",
    }
}

fn result(finding: &Finding) -> Value {
    let [place, what, change] =
        [&finding.place, &finding.what, &finding.change].map(|text| Plain(text).to_string());
    let mut location = json!({ "logicalLocations": [{ "fullyQualifiedName": place }] });
    if let Some(file) = &finding.file {
        let path = utf8_percent_encode(file, NOT_IN_A_PATH).to_string();
        let uri = if file.starts_with('/') { format!("file://{path}") } else { path };
        location["physicalLocation"] = json!({ "artifactLocation": { "uri": uri } });
        if let Some(line) = finding.line {
            location["physicalLocation"]["region"] = json!({ "startLine": line });
        }
    }
    json!({
        "ruleId": finding.id,
        "ruleIndex": finding.rule as usize,
        "level": level(finding.severity),
        "message": { "text": format!("{place}: {what}\nHelp: {change}") },
        "locations": [location],
    })
}

#[cfg(test)]
mod tests {
    use super::super::StopTimeline;
    use super::*;

    #[test]
    fn control_characters_in_a_manifest_are_escaped() {
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
        let mut finding =
            Finding::new(Rule::Paused, "job \u{1b}[2J", "what\n\u{9b}2J", "ch\u{202e}ange");
        finding.file = Some("\u{1b}c.yaml".to_owned());
        finding.line = Some(7);
        let findings = Findings { findings: vec![finding], stops: vec![stop] };
        let text = Text { findings: &findings, is_coloured: false }.to_string();
        let first = r"warning[LH223] \u{1b}c.yaml:7: job \u{1b}[2J: what\n\u{9b}2J";
        assert!(text.starts_with(&format!("{first}\n    help: ch\\u{{202e}}ange\n")), "{text}");
        assert!(text.contains(r"stop      job \u{1b}[2J: TERM"), "{text}");
        assert_eq!(text.lines().count(), 4, "{text}");
        let coloured = Text { findings: &findings, is_coloured: true }.to_string();
        assert!(
            coloured.starts_with("\u{1b}[1m\u{1b}[33mwarning[LH223]\u{1b}[0m "),
            "{coloured:?}"
        );
        assert_eq!(coloured.matches('\u{1b}').count(), 3, "{coloured:?}");
        assert_eq!(
            sarif(&findings)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
                ["uri"],
            "%1Bc.yaml"
        );
    }
}
