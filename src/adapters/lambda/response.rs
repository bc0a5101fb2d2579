//! The answer of a function: which messages of an invocation succeeded.
//!
//! See "Implementing partial batch responses" in
//! <https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html>.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

/// What counts of a response that is an object; the rest is not kept in memory.
#[derive(Deserialize)]
struct Response {
    #[serde(rename = "batchItemFailures")]
    failures: Option<Vec<Failure>>,
}

#[derive(Deserialize)]
#[serde(try_from = "BTreeMap<String, Box<RawValue>>")]
struct Failure {
    id: String,
}

impl TryFrom<BTreeMap<String, Box<RawValue>>> for Failure {
    type Error = &'static str;

    fn try_from(entry: BTreeMap<String, Box<RawValue>>) -> Result<Self, Self::Error> {
        let id = entry.get("itemIdentifier").and_then(|id| serde_json::from_str(id.get()).ok());
        match id {
            Some(id) if !String::is_empty(&id) => Ok(Self { id }),
            Some(_) | None => Err("an entry has no itemIdentifier"),
        }
    }
}

/// The ids of the messages that failed. The error is the reason why all of them failed.
pub(super) fn failed_messages(
    response: &[u8],
    message_ids: &BTreeSet<String>,
) -> Result<BTreeSet<String>, String> {
    let text = std::str::from_utf8(response)
        .map_err(|error| format!("the function's response is not JSON: {error}"))?;
    let failures = match text.trim_ascii().as_bytes().first() {
        None => None,
        Some(b'{') => failures(text)?,
        Some(b'"') => {
            let inner: String = serde_json::from_str(text).map_err(|error| malformed(&error))?;
            if lists_failures(&inner) {
                return Err(ENCODED_TWICE.to_owned());
            }
            None
        }
        Some(_) => {
            let _: IgnoredAny = serde_json::from_str(text).map_err(|error| malformed(&error))?;
            None
        }
    };
    let ids = failures.into_iter().flatten().map(|Failure { id }| {
        if message_ids.contains(&id) {
            return Ok(id);
        }
        let id: String = id.chars().take(100).collect();
        Err(format!("batchItemFailures has {id:?}, which is not the messageId of a record"))
    });
    ids.collect()
}

const ENCODED_TWICE: &str = "the function's response is a string that contains batchItemFailures: return the object, not its JSON text";

/// The list in a response that is an object.
fn failures(object: &str) -> Result<Option<Vec<Failure>>, String> {
    let response: Response = serde_json::from_str(object).map_err(|error| malformed(&error))?;
    Ok(response.failures)
}

/// Is it the text of an object with a list of failures, or with something else in its place?
fn lists_failures(text: &str) -> bool {
    text.trim_ascii().starts_with('{')
        && match serde_json::from_str::<Response>(text) {
            Ok(response) => response.failures.is_some(),
            Err(error) => error.is_data(),
        }
}

fn malformed(error: &serde_json::Error) -> String {
    if error.is_data() {
        format!(
            "batchItemFailures of the function's response is not a list of objects, each with the messageId of a record as itemIdentifier: {error}"
        )
    } else {
        format!("the function's response is not JSON: {error}")
    }
}

/// An error that a function or its runtime reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FunctionError {
    /// In one line.
    pub(super) reason: String,
    pub(super) stack: Vec<String>,
}

/// The body of an error, as far as the runtimes of all languages agree.
#[derive(Deserialize)]
struct ErrorBody {
    #[serde(rename = "errorType")]
    kind: Option<String>,
    #[serde(rename = "errorMessage")]
    message: Option<String>,
    /// A list of lines in most languages.
    #[serde(rename = "stackTrace", alias = "trace")]
    stack: Option<Value>,
}

/// A reason of the command may have this many characters.
const LONGEST_REASON: usize = 500;
/// The lines of a stack trace that are kept, and how much of each.
const MOST_LINES: usize = 20;
const LONGEST_LINE: usize = 1000;

impl FunctionError {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: in_one_line(&reason.into()), stack: Vec::new() }
    }

    /// `kind` is the error type from a header, for a body without one.
    pub(super) fn parse(body: &[u8], kind: Option<&str>) -> Self {
        let parsed = serde_json::from_slice(body).unwrap_or_else(|_| ErrorBody {
            kind: None,
            message: Some(String::from_utf8_lossy(body).into_owned()),
            stack: None,
        });
        let stack = lines(parsed.stack.as_ref());
        let kind = parsed.kind.as_deref().filter(|it| !it.is_empty()).or(kind);
        let parts = [kind, parsed.message.as_deref().filter(|it| !it.is_empty())];
        let named: Vec<_> = parts.into_iter().flatten().collect();
        let what = if named.is_empty() {
            "an error without a message".to_owned()
        } else {
            named.join(": ")
        };
        let reason = [what].into_iter().chain(stack.iter().take(3).cloned());
        Self { reason: in_one_line(&reason.collect::<Vec<_>>().join("\n")), stack }
    }
}

fn lines(stack: Option<&Value>) -> Vec<String> {
    let texts: Vec<&str> = match stack {
        Some(Value::Array(entries)) => entries.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => {
            Vec::new()
        }
    };
    let lines = texts.into_iter().flat_map(str::lines).filter(|line| !line.trim().is_empty());
    lines.take(MOST_LINES).map(|line| line.chars().take(LONGEST_LINE).collect()).collect()
}

/// Lines are separated by ` | `, and other control characters become blanks.
fn in_one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let joined = lines.collect::<Vec<_>>().join(" | ");
    let shown = joined.chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.take(LONGEST_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(response: &str) -> Result<Vec<String>, String> {
        let all = ["a", "b"].map(str::to_owned).into();
        failed_messages(response.as_bytes(), &all).map(|ids| ids.into_iter().collect())
    }

    /// The rows of AWS's documentation, "Success and failure conditions".
    #[test]
    fn a_response_without_failures_is_a_success_of_all() {
        for response in [
            "",
            " \n",
            "null",
            "{}",
            r#"{"batchItemFailures":[]}"#,
            r#"{"batchItemFailures":null}"#,
            r#"{"statusCode":200}"#,
            r#""done""#,
            r#""{\"statusCode\":200}""#,
            "7",
            "[]",
        ] {
            assert_eq!(failed(response), Ok(vec![]), "{response}");
        }
    }

    #[test]
    fn listed_messages_failed() {
        for (ids, all) in [(vec!["a"], vec!["a"]), (vec!["b", "a", "b"], vec!["a", "b"])] {
            let ids: Vec<_> =
                ids.iter().map(|id| serde_json::json!({ "itemIdentifier": id })).collect();
            let response = serde_json::json!({ "batchItemFailures": ids, "more": 1 });
            assert_eq!(failed(&response.to_string()).unwrap(), all);
        }
    }

    #[test]
    fn a_malformed_response_is_a_failure_of_all() {
        for (response, why) in [
            ("{", "not JSON"),
            ("done", "not JSON"),
            ("{} {}", "not JSON"),
            (r#"{"batchItemFailures":{}}"#, "not a list"),
            (r#"{"batchItemFailures":"a"}"#, "not a list"),
            (r#"{"batchItemFailures":[{"itemIdentifier":""}]}"#, "no itemIdentifier"),
            (r#"{"batchItemFailures":[{"itemIdentifier":null}]}"#, "no itemIdentifier"),
            (r#"{"batchItemFailures":[{"itemIdentifier":7}]}"#, "no itemIdentifier"),
            (r#"{"batchItemFailures":[{"itemIdentifer":"a"}]}"#, "no itemIdentifier"),
            (r#"{"batchItemFailures":["a"]}"#, "not a list of objects"),
            (r#"{"batchItemFailures":[["a"]]}"#, "not a list of objects"),
            (r#"{"batchItemFailures":[null]}"#, "not a list of objects"),
            (r#"{"batchItemFailures":[],"batchItemFailures":[]}"#, "duplicate field"),
            (r#""{\"batchItemFailures\":[{\"itemIdentifier\":\"a\"}]}""#, "return the object"),
            (r#"" {\"batchItemFailures\":{}}""#, "return the object"),
            (r#""{\"batchItemFailures\":[]}""#, "return the object"),
            (r#"{"batchItemFailures":[{"itemIdentifier":"a"},{"itemIdentifier":"c"}]}"#, "\"c\""),
        ] {
            let error = failed(response).unwrap_err();
            assert!(error.contains(why), "{response}: {error}");
        }
    }

    #[test]
    fn an_error_is_shown_in_one_bounded_line() {
        let python = br#"{"errorMessage":"no column\n'id'","errorType":"KeyError","requestId":"r",
            "stackTrace":["  File \"fn.py\", line 3, in handler\n    x\n","  File \"b.py\"\n"]}"#;
        let error = FunctionError::parse(python, None);
        assert_eq!(
            error.reason,
            "KeyError: no column | 'id' | File \"fn.py\", line 3, in handler | x | File \"b.py\""
        );
        assert_eq!(error.stack.len(), 3);
        let node =
            br#"{"errorType":"TypeError","errorMessage":"x","trace":["TypeError: x","    at f"]}"#;
        assert_eq!(FunctionError::parse(node, None).reason, "TypeError: x | TypeError: x | at f");
        for (body, kind, reason) in [
            ("", None, "an error without a message"),
            ("", Some("Runtime.Exit"), "Runtime.Exit"),
            ("{}", None, "an error without a message"),
            ("boom\u{1b}[2J", None, "boom [2J"),
            (r#"{"errorMessage":"m","stackTrace":7}"#, Some("K"), "K: m"),
            (r#"{"errorMessage":7}"#, None, r#"{"errorMessage":7}"#),
        ] {
            assert_eq!(FunctionError::parse(body.as_bytes(), kind).reason, reason, "{body}");
        }
        let long = serde_json::json!({ "errorMessage": "x".repeat(9_000), "stackTrace": vec!["y".repeat(9_000); 99] });
        let error = FunctionError::parse(long.to_string().as_bytes(), None);
        assert_eq!(error.reason.chars().count(), LONGEST_REASON);
        assert!(
            error.stack.len() == MOST_LINES
                && error.stack.iter().all(|it| it.len() == LONGEST_LINE)
        );
    }
}
