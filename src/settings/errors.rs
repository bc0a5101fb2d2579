//! Prints errors with the names that the user gave (flag, variable or field), without passwords and
//! without control characters.

use std::error::Error;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::command_line::variable;
use super::environment;
use super::error::rename_flags;
use crate::adapters::url::without_userinfo;
use crate::telemetry::plain::{Plain, PlainLines};

/// The same error, safe to print on a terminal and in a log.
pub(super) fn fit_to_print(error: clap::Error) -> clap::Error {
    // Its text speaks of arguments, also for a variable.
    if error.kind() == ErrorKind::InvalidUtf8
        && std::env::args_os().all(|word| word.to_str().is_some())
        && let Some(name) = environment::not_utf8()
    {
        let why = format!("{name} is not UTF-8: correct its value\n");
        return clap::Error::raw(ErrorKind::InvalidUtf8, why);
    }
    let error = without_secrets(error);
    let text = error.to_string();
    let as_given = as_given(&text);
    if as_given == text {
        return error;
    }
    clap::Error::raw(error.kind(), as_given.trim_start_matches("error: "))
}

/// Replaces a flag's name by its variable's if the flag was set by the variable and not on the
/// command line.
pub fn as_given(text: &str) -> String {
    let words: Vec<OsString> = std::env::args_os().collect();
    let is_word = |flag: &str| {
        words.iter().filter_map(|word| word.to_str()?.strip_prefix("--")).any(|word| {
            word.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
    };
    let variables: Vec<String> =
        environment::all().filter(|(_, value)| !value.is_empty()).map(|(name, _)| name).collect();
    // clap quotes flags.
    rename_flags(text, &['(', '[', '\''], |flag| {
        Some(variable(flag)).filter(|name| variables.contains(name) && !is_word(flag))
    })
}

fn without_secrets(mut error: clap::Error) -> clap::Error {
    let mut changed = Vec::new();
    for (kind, value) in error.context() {
        let ContextValue::String(text) = value else { continue };
        let shown = Plain(&without_userinfo(text)).to_string();
        if shown != *text {
            changed.push((kind, shown));
        }
    }
    let has_changed = !changed.is_empty();
    for (kind, shown) in changed {
        error.insert(kind, ContextValue::String(shown));
        // The suggestion quotes the same value.
        error.remove(ContextKind::Suggested);
    }
    // The value parser's own message may quote a part of the value, and cannot be replaced in
    // place.
    let Some(why) = error.source().map(ToString::to_string) else { return error };
    let shown = PlainLines(&why).to_string();
    if !has_changed && shown == why {
        return error;
    }
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        Some(_) | None => "",
    };
    let (value, flag) = (text(ContextKind::InvalidValue), text(ContextKind::InvalidArg));
    let why = if value.contains(WITHOUT) { String::new() } else { format!(": {shown}") };
    let message = format!(
        "invalid value '{value}' for '{flag}'{why}\n\nFor more information, try '--help'.\n"
    );
    clap::Error::raw(error.kind(), message)
}

/// The mark that [`without_userinfo`] puts in the place of a user and password.
const WITHOUT: &str = "[redacted]@";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    fn complaint(words: &[&str]) -> String {
        let all = ["leasehold", "run", "--queue-url", "https://h/1/q"].iter().chain(words);
        let error = fit_to_print(Cli::command().try_get_matches_from(all).unwrap_err());
        // With colours, as on a terminal.
        let text = error.render().ansi().to_string();
        for part in ["s3cr3t", "\u{1b}[2J", "\u{9b}"] {
            assert!(!text.contains(part), "{words:?}: {text:?}");
        }
        error.to_string()
    }

    #[test]
    fn a_password_in_a_value_is_not_repeated() {
        for (flag, value) in [
            ("--output", "https://user:s3cr3t@bucket/x"),
            ("--output", "s3://user:s3cr3t@bucket/x"),
            ("--output", "s3://user:s3cr3t%40bucket/x"),
            ("--attempts", "s3://user:s3/cr3t@bucket/x"),
            ("--listen", "http://user:s3cr3t@127.0.0.1:1"),
            ("--buckets", "https://user:s3cr3t@bucket"),
            ("--concurrency", "user:s3cr3t@1"),
            ("--input", "user:s3cr3t@file"),
        ] {
            let flag_and_value = format!("{flag}={value}");
            let text = complaint(&[&flag_and_value, "--", "true"]);
            assert!(text.contains("[redacted]@") && text.contains(flag), "{text}");
        }
        assert!(complaint(&["user:s3cr3t@h"]).contains("unexpected argument '[redacted]@h'"));
    }

    #[test]
    fn control_characters_are_escaped() {
        for words in [
            &["--output", "s3://\u{1b}[2J", "--", "true"][..],
            &["--\u{1b}[2J"],
            &["--wait", "\u{9b}2J"],
            &["\u{1b}[2J"],
        ] {
            let text = complaint(words);
            assert!(text.contains("\\u{1b}[2J") || text.contains("\\u{9b}2J"), "{text}");
        }
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("types.yaml");
        std::fs::write(&file, "job-types:\n- {name: a, \"b\\e[2J\": 1}\n").unwrap();
        let text = complaint(&["--job-types", file.to_str().unwrap()]);
        assert!(text.contains("--job-types") && text.contains("b\\u{1b}[2J"), "{text}");
    }

    #[test]
    fn an_error_names_the_variable_that_set_the_flag() {
        let name = |flag: &str| (flag == "wait").then(|| "LEASEHOLD_WAIT".to_owned());
        let renamed = rename_flags(
            "error: invalid value '90' for '--wait <TIME>' -- see --wait-long, --help, --",
            &['\''],
            name,
        );
        assert_eq!(
            renamed,
            "error: invalid value '90' for 'LEASEHOLD_WAIT <TIME>' -- see --wait-long, --help, --"
        );
    }

    #[test]
    fn an_error_without_secrets_is_unchanged() {
        let complaint = |words: &[&str]| Cli::command().try_get_matches_from(words).unwrap_err();
        for words in [
            &["leasehold", "run", "--wait", "90"][..],
            &["leasehold", "run", "--wiat", "1s"],
            &["leasehold", "rum"],
        ] {
            assert_eq!(fit_to_print(complaint(words)).to_string(), complaint(words).to_string());
        }
    }
}
