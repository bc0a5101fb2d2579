//! The command line, and the environment variables that set its flags.

#[cfg(feature = "check")]
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use clap::builder::{BoolishValueParser, Resettable, TypedValueParser};
use clap::error::ErrorKind;
#[cfg(feature = "aws")]
use clap::{ArgAction, Args};
use clap::{Command, CommandFactory, FromArgMatches};

#[cfg(feature = "aws")]
use super::RunSettings;
use super::errors::fit_to_print;
use super::pod::CHECK;
use super::{Cli, environment};

/// Parses this process's command line and variables. An error names the flag or variable that was
/// given.
pub fn parse() -> Result<Cli, clap::Error> {
    let words: Vec<OsString> = std::env::args_os().collect();
    #[cfg(feature = "aws")]
    if let Some(parsed) = parse_run(&words, &environment::all().collect::<Vec<_>>()) {
        return parsed;
    }
    let matches = empty_is_unset(command()).try_get_matches_from(words).map_err(fit_to_print)?;
    checked(Cli::from_arg_matches(&matches).map_err(fit_to_print)?)
}

/// Parses `run` without building the other subcommands: every pod starts with it, and building
/// takes longer than parsing. `None` if the result depends on the other subcommands: for a help
/// text, or to suggest a variable instead of an unknown one.
#[cfg(feature = "aws")]
fn parse_run(
    words: &[OsString],
    variables: &[(String, OsString)],
) -> Option<Result<Cli, clap::Error>> {
    if words.get(1)? != "run" {
        return None;
    }
    let run = with_variables(RunSettings::augment_args(Command::new("run")));
    let is_known =
        |name: &str| run.get_arguments().any(|arg| arg.get_env() == Some(OsStr::new(name)));
    if !variables.iter().all(|(name, _)| !environment::is_ours(name) || is_known(name)) {
        return None;
    }
    let program = empty_is_unset(Command::new("leasehold").subcommand(run));
    let parsed =
        program.try_get_matches_from(words).and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        // The help text shows the whole program.
        Err(error) if error.kind() == ErrorKind::DisplayHelp => None,
        parsed => Some(parsed.map_err(fit_to_print)),
    }
}

/// The program's command line, with a variable for each flag.
pub fn command() -> Command {
    Cli::command().mut_subcommands(with_variables).mut_subcommands(hide_run_flags)
}

/// `check --help` shows only its own flags, and refers to `run --help` for the others.
fn hide_run_flags(check: Command) -> Command {
    if check.get_name() != "check" {
        return check;
    }
    check.mut_args(|arg| {
        let is_own = arg.get_help_heading() == Some(CHECK)
            || matches!(arg.get_id().as_str(), "help" | "queue_url");
        if is_own { arg } else { arg.hide(true) }
    })
}

fn with_variables(action: Command) -> Command {
    action.mut_args(|arg| match arg.get_long() {
        Some(flag) if flag != "help" => {
            let variable = variable(flag);
            arg.env(variable).hide_env(true)
        }
        Some(_) | None => arg,
    })
}

/// The variable of a flag. `flag` is the name without dashes.
pub fn variable(flag: &str) -> String {
    // Each start converts all flags: `format!` would take a third more instructions.
    let mut name = ["LEASEHOLD_", flag].concat();
    name.make_ascii_uppercase();
    name.replace('-', "_")
}

/// Treats an empty variable as unset: many charts leave a variable empty when its value is missing.
pub(super) fn empty_is_unset(program: Command) -> Command {
    let empty: Vec<OsString> = environment::all()
        .filter_map(|(name, value)| value.is_empty().then(|| name.into()))
        .collect();
    if empty.is_empty() {
        return program;
    }
    program.mut_subcommands(move |action| {
        action.mut_args(|arg| {
            let is_empty = |variable: &OsStr| empty.iter().any(|name| name == variable);
            if arg.get_env().is_some_and(is_empty) { arg.env(Resettable::Reset) } else { arg }
        })
    })
}

/// Refuses unknown variables.
pub(super) fn checked(cli: Cli) -> Result<Cli, clap::Error> {
    if let Some(complaint) = environment::unknown_variable(environment::all().map(|(name, _)| name))
    {
        return Err(Cli::command().error(ErrorKind::UnknownArgument, complaint));
    }
    Ok(cli)
}

/// Parses the settings of a container that runs `leasehold run`: its `LEASEHOLD_*` variables, and
/// the words after `run`, which take precedence. This process's environment is not used.
#[cfg(feature = "check")]
pub fn container_args(
    variables: &BTreeMap<String, String>,
    words: &[String],
) -> Result<RunSettings, String> {
    if let Some(complaint) = environment::unknown_variable(variables.keys().cloned()) {
        return Err(complaint);
    }
    let command = with_variables(RunSettings::augment_args(Command::new("run")))
        .no_binary_name(true)
        .args_override_self(true);
    let from_environment: Vec<OsString> = command
        .get_arguments()
        .filter_map(|arg| {
            let value =
                variables.get(arg.get_env()?.to_str()?).filter(|value| !value.is_empty())?;
            let flag = format!("--{}", arg.get_long()?);
            if matches!(arg.get_action(), ArgAction::SetTrue) {
                let is_set =
                    BoolishValueParser::new().parse_ref(&command, Some(arg), OsStr::new(value));
                return is_set.unwrap_or(false).then(|| flag.into());
            }
            Some(format!("{flag}={value}").into())
        })
        .collect();
    let command = command.mut_args(|arg| arg.env(Resettable::Reset));
    let words = from_environment.into_iter().chain(words.iter().map(OsString::from));
    let first_line = |error: clap::Error| {
        let text = fit_to_print(error).to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    };
    let matches = command.try_get_matches_from(words).map_err(first_line)?;
    RunSettings::from_arg_matches(&matches).map_err(first_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_path_for_run_gives_the_same_result() {
        let variable = |name: &str| vec![(name.to_owned(), OsString::from("1"))];
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let text = |parsed: Result<Cli, clap::Error>| match parsed {
            Ok(cli) => format!("{cli:?}"),
            Err(error) => error.to_string(),
        };
        for line in [
            "leasehold run --queue-url https://sqs.us-east-1.amazonaws.com/1/q -- true",
            "leasehold run --queue-url https://sqs.us-east-1.amazonaws.com/1/q --wait 3s -- true --wait",
            "/usr/bin/leasehold run",
            "leasehold run -- true",
            "leasehold run --queue-url",
            "leasehold run --queue-ur x",
            "leasehold run --no-such-flag",
            "leasehold run --queue-url x --wait never",
            "leasehold run --queue-url x --queue-url y -- true",
            "leasehold run true",
            "leasehold run --version",
        ] {
            let all =
                empty_is_unset(command()).try_get_matches_from(words(line)).map_err(fit_to_print);
            let all = all.and_then(|matches| Cli::from_arg_matches(&matches).map_err(fit_to_print));
            assert_eq!(text(parse_run(&words(line), &[]).expect(line)), text(all), "{line}");
        }
        let run = words("leasehold run -- true");
        assert!(parse_run(&run, &variable("LEASEHOLD_WAIT")).is_some());
        assert!(parse_run(&run, &variable("LEASEHOLD_SERVICE_HOST")).is_some());
        assert!(parse_run(&run, &variable("LEASEHOLD_WIAT")).is_none());
        assert!(parse_run(&run, &variable("LEASEHOLD_INBOX")).is_none());
        for other in [
            "leasehold",
            "leasehold local in",
            "leasehold --help",
            "leasehold run --help",
            "leasehold run -h",
        ] {
            assert!(parse_run(&words(other), &[]).is_none(), "{other}");
        }
    }

    #[test]
    fn every_flag_has_a_variable() {
        command().debug_assert();
        for action in command().get_subcommands() {
            for arg in action.get_arguments() {
                let Some(flag) = arg.get_long().filter(|flag| *flag != "help") else { continue };
                assert_eq!(
                    arg.get_env().and_then(|env| env.to_str()),
                    Some(variable(flag).as_str())
                );
            }
        }
    }
}
