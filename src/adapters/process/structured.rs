//! A line of the command's output that is one JSON object: a log record of the command.

use serde_json::{Map, Value};
use tracing::{Level, error, info, warn};

use super::output::MAX_LINE;
use crate::job::report::truncate_for_json;

/// How deeply its values may be nested.
const MAX_DEPTH: usize = 8;

/// The names under which programs write the level and the message, in any case; the first one
/// counts.
const LEVELS: [&str; 3] = ["level", "severity", "lvl"];
const MESSAGES: [&str; 2] = ["message", "msg"];

/// The texts of leasehold's own records. A command must not imitate them.
const OURS: [&str; 4] = ["message started", "message deleted", "message kept", "exiting"];

#[derive(Debug, PartialEq)]
pub(super) struct StructuredLine {
    level: Level,
    message: Option<String>,
    /// The other fields, as a JSON object.
    event: String,
}

impl StructuredLine {
    /// `None` if the line is something else, has no field, or is too long or nested too deeply.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        if !(line.starts_with('{') && line.ends_with('}')) {
            return None;
        }
        let mut fields: Map<String, Value> = serde_json::from_str(line).ok()?;
        if fields.is_empty() || fields.values().any(|value| !is_within(value, MAX_DEPTH - 1)) {
            return None;
        }
        let level = find(&fields, &LEVELS, |word| level_of(word).is_some());
        let (level, word) = level
            .and_then(|(name, word)| Some((level_of(&word)?, Some((name, word)))))
            .unwrap_or((Level::INFO, None));
        // Other words say more than the level of the record, and stay.
        if let Some((name, _)) = word.filter(|(_, word)| word.eq_ignore_ascii_case(level.as_str()))
        {
            fields.remove(&name);
        }
        let message = find(&fields, &MESSAGES, |text| !OURS.contains(&text.trim()));
        let message = message.map(|(name, text)| {
            fields.remove(&name);
            text
        });
        let event = Value::Object(fields).to_string();
        // Written out, a number may be longer than it was.
        let most = MAX_LINE.checked_sub(event.len())?;
        let fits = message.as_ref().is_none_or(|it| truncate_for_json(it, most) == it.as_str());
        fits.then_some(Self { level, message, event })
    }

    /// Logs it with its own level. A filter for errors or warnings applies to it; its lower levels
    /// are only shown, because the command itself decides what it prints.
    pub(super) fn log(&self, stream: &'static str) {
        let Self { level, message, event } = self;
        let (message, event) = (message.as_deref(), event.as_str());
        match *level {
            Level::ERROR => error!(target: "command", stream, event, message),
            Level::WARN => warn!(target: "command", stream, event, message),
            level => {
                let command_level = (level != Level::INFO).then_some(level.as_str());
                info!(target: "command", stream, event, message, command_level);
            }
        }
    }
}

/// The first of these fields whose text is accepted: its name as written, and its text.
fn find(
    fields: &Map<String, Value>,
    names: &[&str],
    accepts: impl Fn(&str) -> bool,
) -> Option<(String, String)> {
    names.iter().find_map(|known| {
        let mut same = fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case(known));
        same.find_map(|(name, value)| {
            let text = value.as_str().filter(|text| accepts(text))?;
            Some((name.clone(), text.to_owned()))
        })
    })
}

/// Numbers are not understood: 30 is a warning in Python and information in Node.js.
fn level_of(word: &str) -> Option<Level> {
    Some(match word.to_ascii_lowercase().as_str() {
        "trace" | "verbose" => Level::TRACE,
        "debug" => Level::DEBUG,
        "info" | "information" | "informational" | "notice" => Level::INFO,
        "warn" | "warning" => Level::WARN,
        "error" | "err" | "severe" | "critical" | "crit" | "fatal" | "panic" | "alert"
        | "emergency" | "emerg" => Level::ERROR,
        _ => return None,
    })
}

fn is_within(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(values) => depth > 0 && values.iter().all(|it| is_within(it, depth - 1)),
        Value::Object(fields) => depth > 0 && fields.values().all(|it| is_within(it, depth - 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<(Level, Option<String>, String)> {
        StructuredLine::parse(line).map(|it| (it.level, it.message, it.event))
    }

    #[test]
    fn level_and_message_are_taken_over() {
        for (line, level, message, event) in [
            (r#"{"rows":5}"#, Level::INFO, None, r#"{"rows":5}"#),
            (
                r#" {"level":"warn","msg":"slow","rows":5} "#,
                Level::WARN,
                Some("slow"),
                r#"{"rows":5}"#,
            ),
            (r#"{"LEVEL":"ERROR","Message":"no"}"#, Level::ERROR, Some("no"), "{}"),
            (
                r#"{"severity":"Critical","message":"no"}"#,
                Level::ERROR,
                Some("no"),
                r#"{"severity":"Critical"}"#,
            ),
            (
                r#"{"lvl":"debug","message":"a","msg":"b"}"#,
                Level::DEBUG,
                Some("a"),
                r#"{"msg":"b"}"#,
            ),
            (r#"{"level":30,"msg":["a"]}"#, Level::INFO, None, r#"{"level":30,"msg":["a"]}"#),
            (r#"{"level":"loud","severity":"warn"}"#, Level::WARN, None, r#"{"level":"loud"}"#),
            (r#"{"message":"message kept"}"#, Level::INFO, None, r#"{"message":"message kept"}"#),
            (r#"{"key":"k","outcome":"x"}"#, Level::INFO, None, r#"{"key":"k","outcome":"x"}"#),
        ] {
            let expected = (level, message.map(str::to_owned), event.to_owned());
            assert_eq!(parsed(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn a_line_that_is_not_one_small_object_stays_a_line() {
        let nested = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        assert!(parsed(&nested(MAX_DEPTH)).is_some());
        // Each number becomes longer than it was written.
        let growing = format!("{{\"a\":[{}1]}}", "1e15,".repeat(1_600));
        assert!(growing.len() < MAX_LINE);
        for line in [
            "",
            "{}",
            "[1]",
            "{'a':1}",
            "{\"a\":1} {\"b\":2}",
            "{\"a\":1",
            "{\"a\":1e999}",
            "text {\"a\":1}",
            &nested(MAX_DEPTH + 1),
            &nested(1_000),
            &growing,
        ] {
            assert_eq!(parsed(line), None, "{line}");
        }
    }
}
