//! Generates `docs/reference.md` from the program's own definitions.

use std::fmt::{self, Display, Write};

use clap::{Arg, ArgAction, Command};
use serde_json::Value;

use crate::job::keep_reason::Visible;
use crate::job::report::keep_reasons;
use crate::job::run_outcome::{ReceiveFailure, RunOutcome};
use crate::settings::{JobTypesFile, command_line};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::records::FIELDS;

/// The page, in Markdown.
pub fn reference() -> String {
    let mut page = String::new();
    write(&mut page).expect("writing to a string does not fail");
    page
}

fn write(page: &mut String) -> fmt::Result {
    writeln!(page, "# Reference\n")?;
    writeln!(
        page,
        "This page is printed by `leasehold reference`; a test compares it with the program.\n"
    )?;
    writeln!(page, "## Command line\n")?;
    writeln!(
        page,
        "Every flag can be set by a variable, too: `--queue-url` by `LEASEHOLD_QUEUE_URL`. A flag overrides its"
    )?;
    writeln!(
        page,
        "variable, and an empty variable counts as unset. An unknown `LEASEHOLD_*` variable is an error."
    )?;
    let program = command_line::command();
    for action in program.get_subcommands().filter(|action| !action.is_hide_set()) {
        subcommand(page, action)?;
    }
    writeln!(page, "\n## Job types\n")?;
    writeln!(
        page,
        "The YAML, JSON or TOML file for `--job-types`. `leasehold schema` prints its JSON Schema.\n"
    )?;
    job_types(page)?;
    writeln!(page, "\n## Outcomes\n")?;
    outcomes(page)?;
    writeln!(page, "\n## Exit codes\n")?;
    exit_codes(page)?;
    writeln!(page, "\n## Log fields\n")?;
    writeln!(
        page,
        "The stable fields of the JSON log, which has one record per line. A field without a value is left out. Other records\nhave further fields, which may change with the texts.\n"
    )?;
    table(
        page,
        ["field", "meaning"],
        FIELDS.map(|(name, meaning)| [code(name), meaning.to_owned()]),
    )?;
    writeln!(page, "\n## Metrics\n")?;
    writeln!(page, "All metrics have the label `queue`.\n")?;
    let metrics = Metrics::described().into_iter().map(|(metric, kind)| {
        let labels: Vec<_> = metric.variable_labels.iter().map(code).collect();
        [code(&metric.fq_name), kind.to_owned(), labels.join(" "), metric.help]
    });
    table(page, ["metric", "type", "labels", "meaning"], metrics)
}

fn subcommand(page: &mut String, action: &Command) -> fmt::Result {
    let about = action.get_about().map(ToString::to_string).unwrap_or_default();
    writeln!(page, "\n### leasehold {}\n\n{about}.\n", action.get_name())?;
    let shown = |arg: &&Arg| !arg.is_hide_set() && arg.get_id() != "help";
    for arg in action.get_positionals().filter(shown) {
        writeln!(page, "- `{}`: {}", value_name(arg), text(arg))?;
    }
    let mut headings: Vec<&str> = Vec::new();
    for arg in action.get_opts().chain(action.get_arguments()).filter(shown) {
        let heading = arg.get_help_heading().unwrap_or("Options");
        if arg.get_long().is_some() && !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        writeln!(page, "\n**{heading}**\n")?;
        let flags = action.get_arguments().filter(shown).filter_map(|arg| {
            let is_here = arg.get_help_heading().unwrap_or("Options") == heading;
            let flag = arg.get_long().filter(|_| is_here)?;
            let value = if matches!(arg.get_action(), ArgAction::SetTrue) {
                String::new()
            } else {
                value_name(arg)
            };
            Some([code(format!("--{flag} {value}").trim_end()), default(arg), text(arg)])
        });
        table(page, ["flag", "default", "meaning"], flags.collect::<Vec<_>>())?;
    }
    Ok(())
}

fn job_types(page: &mut String) -> fmt::Result {
    let schema = JobTypesFile::schema().to_value();
    let defs = &schema["$defs"];
    let fields = |of: &Value, prefix: &str| -> Vec<[String; 2]> {
        let fields = of["properties"].as_object().into_iter().flatten();
        let field = |(name, field): (&String, &Value)| {
            let defined = field["$ref"]
                .as_str()
                .and_then(|path| path.rsplit('/').next())
                .map(|name| &defs[name]);
            let meaning =
                field["description"].as_str().or(defined.and_then(|it| it["description"].as_str()));
            [code(format!("{prefix}{name}")), one_line(meaning.unwrap_or_default())]
        };
        fields.map(field).collect()
    };
    let mut rows = fields(&defs["JobType"], "");
    rows.extend(fields(&defs["Match"], "match."));
    rows.sort();
    table(page, ["field", "meaning"], rows)
}

fn outcomes(page: &mut String) -> fmt::Result {
    let deleted = [
        ("succeeded", "the command exited 0 and its results were published"),
        ("already_done", "the idempotency record shows that an earlier delivery finished the work"),
        ("test_event", "S3's test event"),
        ("ignored", "the message has no event to process, see `--events`"),
        ("objects_gone", "the objects no longer exist, and `--missing-object ignore` is set"),
    ];
    let deleted = deleted.map(|(label, meaning)| {
        [code(label), "deleted".to_owned(), "0".to_owned(), meaning.to_owned()]
    });
    let kept = keep_reasons().into_iter().map(|reason| {
        let row = reason.row();
        let visible = match row.visible {
            Visible::AtOnce => "visible at once",
            Visible::AfterStop => "visible as set by `--on-stop`",
            Visible::Soon => {
                "visible at once, or after 5s if the run receives more messages; without a dead-letter queue, after a backoff"
            }
            Visible::AfterBackoff => "visible after a backoff, see `--retry`",
            Visible::ByItself => "visible when its visibility timeout ends",
        };
        [
            code(row.label),
            format!("kept; {visible}"),
            row.exit_code.to_string(),
            one_line(&reason.to_string()),
        ]
    });
    table(page, ["outcome", "message", "exit code", "meaning"], deleted.into_iter().chain(kept))
}

fn exit_codes(page: &mut String) -> fmt::Result {
    let mut codes: Vec<(u8, Vec<&str>)> = Vec::new();
    for reason in keep_reasons() {
        let row = reason.row();
        match codes.iter_mut().find(|(code, _)| *code == row.exit_code) {
            Some((_, labels)) => labels.push(row.label),
            None => codes.push((row.exit_code, vec![row.label])),
        }
    }
    let of = |failure| RunOutcome::ReceiveFailed(failure).exit_code();
    codes.push((
        RunOutcome::Finished.exit_code(),
        vec!["all messages were deleted, or there was none"],
    ));
    codes.push((
        of(ReceiveFailure::GaveUp(String::new())),
        vec!["no message could be received for --receive-give-up"],
    ));
    codes.push((
        of(ReceiveFailure::Misconfigured(String::new())),
        vec!["a setting, the queue's URL or a permission is wrong"],
    ));
    codes.sort();
    table(
        page,
        ["exit code", "outcome of the last message that was kept, or how the run ended"],
        codes.into_iter().map(|(code, labels)| [code.to_string(), labels.join(", ")]),
    )
}

fn table<const N: usize>(
    page: &mut String,
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> fmt::Result {
    writeln!(page, "| {} |\n|{}", head.join(" | "), "---|".repeat(N))?;
    rows.into_iter().try_for_each(|row| {
        writeln!(page, "| {} |", row.map(|cell| cell.replace('|', "\\|")).join(" | "))
    })
}

fn code(text: impl Display) -> String {
    format!("`{text}`")
}

/// A paragraph may lack the period at its end.
fn one_line(text: &str) -> String {
    let paragraphs =
        text.split("\n\n").map(|it| it.split_whitespace().collect::<Vec<_>>().join(" "));
    paragraphs
        .reduce(|all, next| format!("{}. {next}", all.trim_end_matches('.')))
        .unwrap_or_default()
}

fn value_name(arg: &Arg) -> String {
    arg.get_value_names()
        .map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        .unwrap_or_default()
}

fn default(arg: &Arg) -> String {
    if arg.is_hide_default_value_set() || matches!(arg.get_action(), ArgAction::SetTrue) {
        return String::new();
    }
    let values: Vec<_> =
        arg.get_default_values().iter().map(|value| code(value.display())).collect();
    values.join(" ")
}

/// The help of an argument, with its possible values.
fn text(arg: &Arg) -> String {
    let help = arg
        .get_long_help()
        .or(arg.get_help())
        .map(|help| one_line(&help.to_string()))
        .unwrap_or_default();
    let values = arg.get_possible_values();
    if values.is_empty() || matches!(arg.get_action(), ArgAction::SetTrue) {
        return help;
    }
    let values = values.iter().map(|value| match value.get_help() {
        Some(meaning) => format!("`{}`: {meaning}", value.get_name()),
        None => code(value.get_name()),
    });
    let values = values.collect::<Vec<_>>().join("; ");
    if help.is_empty() { values } else { format!("{help}. {values}") }
}
