//! The command line of a program that embeds leasehold.

use std::ffi::OsString;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, FromArgMatches};

#[cfg(feature = "aws")]
use super::RunSettings;
use super::command_line::{checked, command, empty_is_unset};
use super::error::SettingError;
use super::errors::fit_to_print;
use super::given::Values;
use super::in_code::{HANDLER, default_batch};
use super::no_effect::{self, COMMAND_ONLY};
use super::pod::WorkSettings;
use super::values::Handler;
use super::{Action, Cli};

/// Settings for batches, and their help.
const BATCH_SETTINGS: [(&str, &str); 2] = [
    ("batch_size", "The most messages in one call of the handler, up to 10"),
    ("batch_window", "How long a call of the handler waits for more messages, up to --batch-size"),
];

/// How the command line of an embedding program differs from leasehold's.
pub struct Embedding {
    pub name: String,
    pub version: Option<String>,
    pub about: Option<String>,
    /// Defaults of leasehold's flags.
    pub defaults: Values,
    /// Adds the program's own flags to `run` and `local`.
    pub flags: Option<fn(Command) -> Command>,
    /// The program's own subcommands.
    pub actions: Vec<Command>,
    /// Does its handler take several messages at once?
    pub takes_batches: bool,
}

/// What the words of a command line mean.
#[derive(Debug)]
pub enum Parsed {
    /// A subcommand of leasehold, and its matches.
    Action(Box<Action>, ArgMatches),
    /// A subcommand of the program itself: its name and its matches.
    Subcommand(String, ArgMatches),
}

impl Embedding {
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: None,
            about: None,
            defaults: Vec::new(),
            flags: None,
            actions: Vec::new(),
            takes_batches: false,
        }
    }

    /// For a handler that takes several messages at once.
    #[must_use]
    pub fn with_batches(self) -> Self {
        Self { takes_batches: true, ..self }
    }

    /// The value that the code sets for a flag.
    fn set<T: FromStr>(&self, flag: &str) -> Option<T> {
        let (_, value) = self.defaults.iter().rev().find(|(name, _)| *name == flag)?;
        value.to_str()?.parse().ok()
    }

    /// The defaults of all flags that differ from leasehold's.
    fn all_defaults(&self) -> Values {
        let amounts = Amounts {
            concurrency: self.set("concurrency").unwrap_or(1),
            prefetch: self.set("prefetch").unwrap_or(0),
            batch_size: self.set("batch-size"),
            max_messages: self.set("max-messages"),
        };
        let (batch_size, max_messages) = amounts.with_defaults(self.takes_batches);
        let mut all: Values = vec![
            ("batch-size", batch_size.to_string().into()),
            ("max-messages", max_messages.to_string().into()),
        ];
        all.extend(self.defaults.iter().cloned());
        all
    }

    /// The program's whole command line. An error is a mistake in the program.
    pub fn command(&self) -> Result<Command, clap::Error> {
        let version = self
            .version
            .clone()
            .unwrap_or_else(|| format!("(built with leasehold {})", env!("CARGO_PKG_VERSION")));
        let mut program = empty_is_unset(command())
            .name(&self.name)
            .bin_name(&self.name)
            .version(version)
            .after_help(self.after_help())
            .mut_subcommands(|action| self.described(action));
        let about = "Processes each SQS message about an S3 object. The message stays hidden \
                     meanwhile, and is deleted only on success.";
        program = program.about(self.about.clone().unwrap_or_else(|| about.to_owned()));
        let defaults = self.defaults.iter().map(|(flag, _)| *flag);
        if let Err(error) = no_effect::refuse(&COMMAND_ONLY, defaults) {
            return Err(program.error(ErrorKind::ArgumentConflict, error));
        }
        for (flag, value) in &self.all_defaults() {
            let is_it = |arg: &Arg| arg.get_long() == Some(flag);
            if !program.get_subcommands().any(|action| action.get_arguments().any(is_it)) {
                let complaint = format!(
                    "this program sets a default for --{flag}, which is not a flag of leasehold"
                );
                return Err(program.error(ErrorKind::UnknownArgument, complaint));
            }
            let with_default = |arg: Arg| {
                if is_it(&arg) { arg.default_value(value.clone()).required(false) } else { arg }
            };
            program = program.mut_subcommands(|action| action.mut_args(with_default));
        }
        for action in &self.actions {
            if program.get_subcommands().any(|ours| ours.get_name() == action.get_name()) {
                let complaint = format!(
                    "this program has the subcommand {0}, and leasehold has one of that name: rename it",
                    action.get_name()
                );
                return Err(program.error(ErrorKind::ArgumentConflict, complaint));
            }
            program = program.subcommand(action.clone());
        }
        self.with_flags(program)
    }

    fn with_flags(&self, mut program: Command) -> Result<Command, clap::Error> {
        let Some(add) = self.flags else { return Ok(program) };
        let own = add(Command::new("own"));
        let is_taken = |own: &&Arg| {
            let same = |ours: &Arg| {
                ours.get_id() == own.get_id()
                    || own.get_long().is_some() && ours.get_long() == own.get_long()
            };
            let mut actions = program.get_subcommands().filter(|action| is_work(action));
            actions.any(|action| action.get_arguments().any(same))
        };
        if let Some(taken) = own.get_arguments().find(is_taken) {
            let complaint = format!(
                "this program has the flag --{}, and leasehold has one of that name: rename it",
                taken.get_long().unwrap_or(taken.get_id().as_str())
            );
            return Err(program.error(ErrorKind::ArgumentConflict, complaint));
        }
        Ok(program.mut_subcommands(|action| if is_work(&action) { add(action) } else { action }))
    }

    /// Parses `words`, which begin with the program's name. The program takes no COMMAND.
    pub fn parse(&self, words: Vec<OsString>) -> Result<Parsed, clap::Error> {
        let mut program = self.command()?;
        let is_work = words.get(1).is_some_and(|action| action == "run" || action == "local");
        if is_work && words.iter().any(|word| word == "--") {
            let complaint = "this program does the work itself and takes no COMMAND";
            return Err(program.error(ErrorKind::UnknownArgument, complaint));
        }
        let matches = program.try_get_matches_from_mut(words).map_err(fit_to_print)?;
        if let Some((name, arguments)) = matches.subcommand()
            && self.actions.iter().any(|action| action.get_name() == name)
        {
            return Ok(Parsed::Subcommand(name.to_owned(), arguments.clone()));
        }
        let mut cli = checked(Cli::from_arg_matches(&matches).map_err(fit_to_print)?)?;
        if let Some(work) = work_of(&mut cli.action) {
            work.task.command = vec![HANDLER.into()];
            if self.takes_batches && work.handler == Handler::Command {
                work.handler = Handler::Batches;
            }
        }
        let of_action = matches.subcommand().map(|(_, of)| of.clone()).unwrap_or_default();
        #[cfg(feature = "aws")]
        if let Some(run) = run_of(&mut cli.action) {
            self.adapt(run, &of_action);
        }
        match refuse_command_only(&cli.action, &of_action) {
            Err(complaint) => Err(program.error(ErrorKind::ArgumentConflict, complaint)),
            Ok(()) => Ok(Parsed::Action(Box::new(cli.action), of_action)),
        }
    }

    /// The amounts that are set decide about those that are not.
    #[cfg(feature = "aws")]
    fn adapt(&self, run: &mut RunSettings, matches: &ArgMatches) {
        let is_set = |flag: &str| {
            is_given(matches, flag) || self.defaults.iter().any(|(name, _)| *name == flag)
        };
        let amounts = Amounts {
            concurrency: run.concurrency,
            prefetch: run.prefetch,
            batch_size: Some(run.work.batch_size).filter(|_| is_set("batch-size")),
            max_messages: Some(run.work.max_messages).filter(|_| is_set("max-messages")),
        };
        (run.work.batch_size, run.work.max_messages) = amounts.with_defaults(self.takes_batches);
    }

    /// The help of a subcommand, without what only a command has.
    fn described(&self, action: Command) -> Command {
        let name = action.get_name().to_owned();
        let mut action = match name.as_str() {
            "run" => action
                .about("Receive a message, process its object, and delete the message on success")
                .after_help(self.after_help()),
            _ => action,
        };
        if is_work(&action) {
            for flag in command_only() {
                action = action.mut_arg(id(flag), |arg| arg.hide(true));
            }
            // A new one, as the derived rule that it is required cannot be removed.
            action = action.mut_arg("command", |arg| {
                let parser = arg.get_value_parser().clone();
                Arg::new("command").last(true).num_args(0..).value_parser(parser).hide(true)
            });
            for (setting, help) in BATCH_SETTINGS {
                let hidden = !self.takes_batches;
                action = action.mut_arg(setting, |arg| arg.help(help).hide(hidden));
            }
        }
        action.mut_args(|arg| {
            let rewritten = |text: String| {
                let text = text.replace("the command", "the handler");
                text.replace("your command handles", "your handler handles")
                    .replace("`leasehold`", &format!("`{}`", self.name))
            };
            let (help, long) = (arg.get_help().map(ToString::to_string), arg.get_long_help());
            let long = long.map(ToString::to_string);
            let arg = help.map(rewritten).map_or(arg.clone(), |help| arg.help(help));
            long.map(rewritten).map_or(arg.clone(), |long| arg.long_help(long))
        })
    }

    fn after_help(&self) -> String {
        let examples = [
            (cfg!(feature = "aws"), "run --queue-url \"$QUEUE_URL\""),
            (cfg!(feature = "local"), "local ./inbox --outbox ./results"),
        ];
        let mut help = "Examples:".to_owned();
        for (_, words) in examples.into_iter().filter(|(is_built, _)| *is_built) {
            help.extend(["\n  ", &self.name, " ", words]);
        }
        // Without AWS, leasehold's own help has only a hint about its build.
        if let Some(at) = super::AFTER_HELP.find("Every flag") {
            let rest = super::AFTER_HELP[at..]
                .replace("1 the command failed", "1 the handler failed or panicked")
                .replace(", for example RUST_LOG=debug", "");
            help.extend(["\n\n", &rest]);
        }
        help
    }
}

/// How many messages a run takes, at the same time and in all; `None` where nothing is set.
struct Amounts {
    concurrency: usize,
    prefetch: usize,
    batch_size: Option<usize>,
    max_messages: Option<u32>,
}

impl Amounts {
    /// The size of a batch, and the number of messages: by default, a run takes as many as it can take
    /// at the same time.
    fn with_defaults(self, takes_batches: bool) -> (usize, u32) {
        let Self { concurrency, prefetch, batch_size, max_messages } = self;
        let default = if takes_batches { default_batch(concurrency, max_messages) } else { 1 };
        let batch_size = batch_size.unwrap_or(default);
        let at_once = concurrency.saturating_mul(batch_size).saturating_add(prefetch).max(1);
        let most = || u32::try_from(at_once).unwrap_or(u32::MAX);
        (batch_size, max_messages.unwrap_or_else(most))
    }
}

fn is_work(action: &Command) -> bool {
    ["run", "local"].contains(&action.get_name())
}

fn work_of(action: &mut Action) -> Option<&mut WorkSettings> {
    match action {
        #[cfg(feature = "aws")]
        Action::Run(args) => Some(&mut args.work),
        #[cfg(feature = "local")]
        Action::Local(args) => Some(&mut args.work),
        #[cfg(feature = "check")]
        Action::Check(_) | Action::Schema | Action::Reference => None,
        #[cfg(feature = "pushgateway")]
        Action::Sweep(_) => None,
        Action::Install(_) | Action::Completions { .. } | Action::Man => None,
    }
}

#[cfg(feature = "aws")]
fn run_of(action: &mut Action) -> Option<&mut RunSettings> {
    match action {
        Action::Run(args) => Some(args),
        #[cfg(feature = "check")]
        Action::Check(args) => Some(&mut args.run),
        #[cfg(feature = "local")]
        Action::Local(_) => None,
        #[cfg(feature = "check")]
        Action::Schema | Action::Reference => None,
        #[cfg(feature = "pushgateway")]
        Action::Sweep(_) => None,
        Action::Install(_) | Action::Completions { .. } | Action::Man => None,
    }
}

/// Is the flag set on the command line, or by its variable?
fn is_given(matches: &ArgMatches, flag: &str) -> bool {
    matches.value_source(&id(flag)).is_some_and(|source| source != ValueSource::DefaultValue)
}

/// The flags that only a command has, without dashes.
fn command_only() -> impl Iterator<Item = &'static str> {
    COMMAND_ONLY.iter().flat_map(|(flags, _)| *flags).copied()
}

/// clap's name of a flag.
fn id(flag: &str) -> String {
    flag.replace('-', "_")
}

/// Refuses what only a command can use.
fn refuse_command_only(action: &Action, matches: &ArgMatches) -> Result<(), SettingError> {
    let work: &WorkSettings = match action {
        #[cfg(feature = "aws")]
        Action::Run(args) => &args.work,
        #[cfg(feature = "local")]
        Action::Local(args) => &args.work,
        // The check would expect leasehold's own command line in the container.
        #[cfg(feature = "check")]
        Action::Check(args) if args.manifest.is_some() => {
            let instead = "it expects leasehold's own command line in the containers; remove it";
            return Err(SettingError::NoEffect { setting: "--manifest".to_owned(), instead });
        }
        #[cfg(feature = "check")]
        Action::Check(args) => &args.run.work,
        #[cfg(feature = "check")]
        Action::Schema | Action::Reference => return Ok(()),
        #[cfg(feature = "pushgateway")]
        Action::Sweep(_) => return Ok(()),
        Action::Install(_) | Action::Completions { .. } | Action::Man => return Ok(()),
    };
    let given = command_only().filter(|flag| is_given(matches, flag));
    no_effect::refuse(&COMMAND_ONLY, given)?;
    no_effect::refuse_command_only(work)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    #[cfg(feature = "aws")]
    use crate::settings::resolve::RunConfig;

    fn parse(embedding: &Embedding, words: &str) -> Result<Parsed, String> {
        embedding
            .parse(words.split(' ').map(OsString::from).collect())
            .map_err(|error| error.to_string())
    }

    fn with_defaults(defaults: &[(&'static str, &str)]) -> Embedding {
        let defaults = defaults.iter().map(|(flag, value)| (*flag, value.into())).collect();
        Embedding { defaults, ..Embedding::new("resize") }
    }

    const QUEUE: (&str, &str) = ("queue-url", "https://sqs.us-east-1.amazonaws.com/1/q");

    #[cfg(feature = "aws")]
    #[test]
    fn a_flag_overrides_the_default_of_an_embedding_program() {
        let program = with_defaults(&[("max-duration", "2h"), QUEUE, ("accept-raw", "true")]);
        let longest = |words: &str| {
            let Parsed::Action(action, _) = parse(&program, words).unwrap() else {
                panic!("it is an action")
            };
            let Action::Run(args) = *action else { panic!("it is run") };
            args.work.task.max_duration.unwrap()
        };
        assert_eq!(longest("resize run"), Duration::from_hours(2));
        assert_eq!(longest("resize run --max-duration 3h"), Duration::from_hours(3));
        assert!(parse(&program, "resize run --help").unwrap_err().contains("[default: 2h]"));
        assert!(parse(&program, "resize local in").is_ok());
    }

    /// The amounts of a run: the size of a batch, all messages, prefetched ones.
    #[cfg(feature = "aws")]
    fn amounts(program: &Embedding, words: &str) -> (usize, u32, usize) {
        let Parsed::Action(action, _) = parse(program, words).unwrap() else {
            panic!("it is an action")
        };
        let Action::Run(args) = *action else { panic!("it is run") };
        let amounts = (args.work.batch_size, args.work.max_messages, args.prefetch);
        RunConfig::try_from(*args).unwrap();
        amounts
    }

    #[cfg(feature = "aws")]
    #[test]
    fn a_run_takes_as_many_messages_as_at_the_same_time_if_nothing_else_is_set() {
        for (set, words, expected) in [
            (&[][..], "", (1, 1, 0)),
            (&[("concurrency", "4")], "", (1, 4, 0)),
            (&[("concurrency", "4")], " --prefetch 2", (1, 6, 2)),
            (&[("prefetch", "1")], " --concurrency 2", (1, 3, 1)),
            (&[("concurrency", "4"), ("max-messages", "9")], "", (1, 9, 0)),
            (&[("concurrency", "4")], " --max-messages 9", (1, 9, 0)),
        ] {
            let program = with_defaults(&[&[QUEUE], set].concat());
            assert_eq!(
                amounts(&program, &format!("resize run{words}")),
                expected,
                "{set:?}{words}"
            );
        }
        for (set, words, expected) in [
            (&[][..], "", (10, 10, 0)),
            (&[("batch-size", "5")], "", (5, 5, 0)),
            (&[("concurrency", "2")], "", (10, 20, 0)),
            (&[("concurrency", "2")], " --batch-size 3 --prefetch 1", (3, 7, 1)),
            (&[("max-messages", "5")], "", (5, 5, 0)),
            (&[("max-messages", "5")], " --concurrency 2", (2, 5, 0)),
            (&[("max-messages", "100")], " --batch-size 4", (4, 100, 0)),
        ] {
            let program = with_defaults(&[&[QUEUE], set].concat()).with_batches();
            assert_eq!(
                amounts(&program, &format!("resize run{words}")),
                expected,
                "{set:?}{words}"
            );
        }
        let program = with_defaults(&[QUEUE, ("batch-size", "5")]).with_batches();
        let help = parse(&program, "resize run --help").unwrap_err();
        assert_eq!(help.matches("[default: 5]").count(), 2, "{help}");
        let program = with_defaults(&[QUEUE, ("concurrency", "4"), ("max-messages", "2")]);
        let Parsed::Action(action, _) = parse(&program, "resize run").unwrap() else { panic!() };
        let Action::Run(args) = *action else { panic!("it is run") };
        let refused = RunConfig::try_from(*args).unwrap_err();
        assert!(matches!(refused, SettingError::Concurrency { .. }), "{refused}");
    }

    #[test]
    fn a_mistake_names_the_setting() {
        let error =
            |defaults: &[_], words: &str| parse(&with_defaults(defaults), words).unwrap_err();
        assert!(
            error(&[("max-durations", "2h")], "resize run")
                .contains("sets a default for --max-durations")
        );
        assert!(
            error(&[("max-duration", "2 fortnights")], "resize local in")
                .contains("--max-duration")
        );
        assert!(error(&[], "resize local in -- true").contains("takes no COMMAND"));
        for flag in command_only() {
            let refused = format!("--{flag} has no effect here: a handler in Rust");
            let in_code = error(&[(flag, "1")], "resize local in");
            assert!(in_code.contains(&refused), "{in_code}");
        }
        for (words, refused) in [
            ("--handler lambda", "--handler has no effect here"),
            ("--lambda-event s3", "--lambda-event has no effect here"),
            ("--permanent-exit-codes 1", "--permanent-exit-codes has no effect here"),
            ("--input stdin", "--input stdin has no effect here: a handler reads Job::stream"),
        ] {
            let given = error(&[], &format!("resize local in {words}"));
            assert!(given.contains(refused), "{given}");
            #[cfg(feature = "check")]
            {
                let checked = format!("resize check --queue-url {} {words}", QUEUE.1);
                let checked = error(&[], &checked);
                assert!(checked.contains(refused), "{checked}");
            }
        }
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("types.yaml");
        for (field, refused) in [
            ("command: [b]", "line 3 column 12: command has no effect here"),
            ("lambda-event: s3", "line 3 column 17: lambda-event has no effect here"),
            ("permanent-exit-codes: [7]", "line 3 column 25: permanent-exit-codes has no"),
            ("input: stdin", "line 3 column 10: input stdin has no effect here"),
        ] {
            std::fs::write(&file, format!("job-types:\n- name: a\n  {field}\n")).unwrap();
            let text = error(&[], &format!("resize local in --job-types {}", file.display()));
            assert!(text.contains(&format!("types.yaml, {refused}")), "{text}");
        }
        assert!(error(&[], "resize local").contains("Usage: resize local"));
    }

    #[test]
    fn the_help_speaks_of_the_program_and_its_handler() {
        let program = Embedding {
            version: Some("1.2.3".to_owned()),
            about: Some("Resizes images".to_owned()),
            ..Embedding::new("resize")
        };
        assert_eq!(parse(&program, "resize --version").unwrap_err(), "resize 1.2.3\n");
        let help = parse(&program, "resize --help").unwrap_err();
        assert!(help.starts_with("Resizes images\n"), "{help}");
        assert_eq!(help.contains("resize local ./inbox"), cfg!(feature = "local"), "{help}");
        assert_eq!(help.contains("resize run --queue-url"), cfg!(feature = "aws"), "{help}");
        let has_rest = help.contains("\n\nEvery flag has an environment variable");
        assert_eq!(has_rest, help.contains("Every flag"), "{help}");
        let of_local = parse(&program, "resize local --help").unwrap_err();
        assert!(of_local.contains("the handler") && !of_local.contains("COMMAND"), "{of_local}");
        for text in [help, of_local, parse(&program, "resize install --help").unwrap_err()] {
            assert!(!text.contains("the command") && !text.contains("`leasehold`"), "{text}");
        }
    }

    #[test]
    fn a_program_has_its_own_flags_and_subcommands() {
        fn database(action: Command) -> Command {
            action.arg(Arg::new("database").long("database").required(true))
        }
        let program = Embedding {
            flags: Some(database),
            actions: vec![Command::new("migrate").arg(Arg::new("to"))],
            ..Embedding::new("resize")
        };
        let Parsed::Action(_, matches) = parse(&program, "resize local in --database db").unwrap()
        else {
            panic!("local is an action")
        };
        assert_eq!(matches.get_one::<String>("database").map(String::as_str), Some("db"));
        assert!(parse(&program, "resize local in").unwrap_err().contains("--database"));
        let Parsed::Subcommand(name, matches) = parse(&program, "resize migrate 7").unwrap() else {
            panic!("migrate is a subcommand of the program")
        };
        assert_eq!(
            (name.as_str(), matches.get_one::<String>("to").unwrap().as_str()),
            ("migrate", "7")
        );
    }

    #[test]
    fn a_name_that_leasehold_has_is_refused() {
        fn wait(action: Command) -> Command {
            action.arg(Arg::new("mine").long("wait"))
        }
        let flags = Embedding { flags: Some(wait), ..Embedding::new("resize") };
        assert!(parse(&flags, "resize local in").unwrap_err().contains("has the flag --wait"));
        let actions =
            Embedding { actions: vec![Command::new("local")], ..Embedding::new("resize") };
        let complaint = parse(&actions, "resize local in").unwrap_err();
        assert!(complaint.contains("has the subcommand local"), "{complaint}");
    }
}
