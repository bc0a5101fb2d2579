//! The command line, and the environment variables that set its flags.

#[cfg(feature = "aws")]
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use clap::builder::{BoolishValueParser, Resettable, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};
#[cfg(feature = "aws")]
use clap::{ArgAction, Args};

#[cfg(feature = "aws")]
use super::RunSettings;
use super::errors::fit_to_print;
use super::pod::CHECK;
use super::{Action, Cli, environment};

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
    format!("LEASEHOLD_{}", flag.replace('-', "_").to_uppercase())
}

/// Treats an empty variable as unset: many charts leave a variable empty when its value is missing.
fn empty_is_unset(program: Command) -> Command {
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

/// Parses the command line of a program that does the work itself: it takes no COMMAND, and may
/// have other defaults (flag names without dashes, and values). `words` begins with the program's
/// name.
pub fn parse_without_command(
    name: &'static str,
    defaults: &[(&'static str, &'static str)],
    mut words: Vec<OsString>,
) -> Result<Cli, clap::Error> {
    let hidden = |action: Command| {
        if !["run", "local"].contains(&action.get_name()) {
            return action;
        }
        action
            .mut_arg("command", |arg| arg.hide(true))
            .mut_arg("permanent_exit_codes", |arg| arg.hide(true))
    };
    let mut program = empty_is_unset(command()).name(name).bin_name(name);
    program = program.mut_subcommands(hidden);
    for &(flag, value) in defaults {
        let is_it = |arg: &Arg| arg.get_long() == Some(flag);
        if !program.get_subcommands().any(|action| action.get_arguments().any(is_it)) {
            let complaint = format!(
                "this program sets a default for --{flag}, which is not a flag of leasehold"
            );
            return Err(program.error(ErrorKind::UnknownArgument, complaint));
        }
        let with_default =
            |arg: Arg| if is_it(&arg) { arg.default_value(value).required(false) } else { arg };
        program = program.mut_subcommands(|action| action.mut_args(with_default));
    }
    if words.get(1).is_some_and(|action| action == "run" || action == "local") {
        if words.iter().any(|word| word == "--") {
            let complaint = "this program does the work itself and takes no COMMAND";
            return Err(program.error(ErrorKind::UnknownArgument, complaint));
        }
        // The derived rule that COMMAND is required cannot be undone here, so a dummy satisfies it.
        words.extend(["--".into(), "the work".into()]);
    }
    let matches = program.try_get_matches_from_mut(words).map_err(fit_to_print)?;
    let cli = checked(Cli::from_arg_matches(&matches).map_err(fit_to_print)?)?;
    match command_only_setting(&cli, &matches) {
        Some(setting) => {
            let complaint =
                format!("{setting}: this program does the work itself and runs no command");
            Err(program.error(ErrorKind::ArgumentConflict, complaint))
        }
        None => Ok(cli),
    }
}

/// The first setting that was given although it only applies to a command.
fn command_only_setting(cli: &Cli, matches: &ArgMatches) -> Option<String> {
    let work = match &cli.action {
        #[cfg(feature = "aws")]
        Action::Run(args) => &args.work,
        Action::Local(args) => &args.work,
        // The check would expect leasehold's own command line in the container.
        #[cfg(feature = "aws")]
        Action::Check(args) => return args.manifest.as_ref().map(|_| "--manifest".to_owned()),
        #[cfg(feature = "aws")]
        Action::Sweep(_) | Action::Reference => return None,
        Action::Schema | Action::Install(_) | Action::Completions { .. } | Action::Man => {
            return None;
        }
    };
    let source = matches.subcommand()?.1.value_source("permanent_exit_codes");
    if source.is_some_and(|source| source != ValueSource::DefaultValue) {
        return Some("--permanent-exit-codes".to_owned());
    }
    let file = work.job_types.as_ref()?;
    let path = file.path.as_deref().unwrap_or_default();
    file.job_types.iter().find_map(|task| {
        let has_codes =
            || (!task.permanent_exit_codes.is_empty()).then_some("permanent-exit-codes");
        let setting = (!task.command.is_empty()).then_some("command").or_else(has_codes)?;
        let at = task.source.position(&format!("--{setting}")).in_file(path);
        Some(format!("--job-types {at}: {setting}"))
    })
}

fn checked(cli: Cli) -> Result<Cli, clap::Error> {
    if let Some(complaint) = environment::unknown_variable(environment::all().map(|(name, _)| name))
    {
        return Err(Cli::command().error(ErrorKind::UnknownArgument, complaint));
    }
    Ok(cli)
}

/// Parses the settings of a container that runs `leasehold run`: its `LEASEHOLD_*` variables, and
/// the words after `run`, which take precedence. This process's environment is not used.
#[cfg(feature = "aws")]
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flag_overrides_the_default_of_an_embedding_program() {
        let parse = |defaults: &[(&'static str, &'static str)], words: &str| {
            let words = words.split(' ').map(OsString::from).collect();
            parse_without_command("resize", defaults, words).map_err(|error| error.to_string())
        };
        let longest = |cli: Result<Cli, String>| {
            let Action::Run(args) = cli.unwrap().action else { panic!("it is run") };
            args.work.task.max_duration.unwrap()
        };
        let defaults = [
            ("max-duration", "2h"),
            ("queue-url", "https://sqs.us-east-1.amazonaws.com/1/q"),
            ("accept-raw", "true"),
        ];
        assert_eq!(longest(parse(&defaults, "resize run")), Duration::from_hours(2));
        assert_eq!(
            longest(parse(&defaults, "resize run --max-duration 3h")),
            Duration::from_hours(3)
        );
        assert!(matches!(parse(&defaults, "resize local in").unwrap().action, Action::Local(_)));

        let error = |defaults: &[_], words: &str| parse(defaults, words).unwrap_err();
        assert!(
            error(&[("max-durations", "2h")], "resize run")
                .contains("sets a default for --max-durations")
        );
        assert!(
            error(&[("max-duration", "2 fortnights")], "resize local in")
                .contains("--max-duration")
        );
        assert!(error(&[], "resize run -- true").contains("takes no COMMAND"));
        assert!(
            error(&[], "resize local in --permanent-exit-codes 1")
                .contains("--permanent-exit-codes: this program")
        );
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("types.yaml");
        std::fs::write(&file, "job-types:\n- name: a\n  command: [b]\n").unwrap();
        let text = error(&[], &format!("resize local in --job-types {}", file.display()));
        assert!(
            text.contains("types.yaml, line 3 column 12: command: this program does"),
            "{text}"
        );
        assert!(error(&[], "resize check --manifest m.yaml").contains("--manifest: this program"));
        assert!(error(&[], "resize run").contains("Usage: resize run"));
        assert!(error(&defaults, "resize run --help").contains("[default: 2h]"));
    }

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
