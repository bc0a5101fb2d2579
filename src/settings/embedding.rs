//! The command line of a program that embeds leasehold.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, FromArgMatches};

use super::command_line::{checked, command, empty_is_unset};
use super::error::SettingError;
use super::errors::fit_to_print;
use super::given::Values;
use super::in_code::{DEFAULT_BATCH, HANDLER};
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

    /// For a handler that takes several messages at once. The run may receive as many.
    #[must_use]
    pub fn with_batches(mut self) -> Self {
        let most = || OsString::from(DEFAULT_BATCH.to_string());
        self.defaults.extend([("batch-size", most()), ("max-messages", most())]);
        self.takes_batches = true;
        self
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
        for (flag, value) in &self.defaults {
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
        match refuse_command_only(&cli.action, &of_action) {
            Err(complaint) => Err(program.error(ErrorKind::ArgumentConflict, complaint)),
            Ok(()) => Ok(Parsed::Action(Box::new(cli.action), of_action)),
        }
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
    let is_given = |flag: &&str| {
        let source = matches.value_source(&id(flag));
        source.is_some_and(|source| source != ValueSource::DefaultValue)
    };
    no_effect::refuse(&COMMAND_ONLY, command_only().filter(is_given))?;
    no_effect::refuse_command_only(work)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
