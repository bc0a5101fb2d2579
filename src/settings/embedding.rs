//! The settings of a program that embeds leasehold: its command line, or only values from its code.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

#[cfg(feature = "testing")]
use super::LocalSettings;
use super::command_line::{checked, command, empty_is_unset};
use super::errors::{fit_to_print, rename_flags};
use super::job_types::JobTypesFile;
use super::pod::WorkSettings;
use super::values::Handler;
use super::{Action, Cli};
#[cfg(feature = "aws")]
use super::{RunSettings, error::SettingError};

/// Values of flags: names without dashes, and values.
pub type Values = Vec<(&'static str, OsString)>;

/// Settings for commands, which a program with a handler refuses.
const OF_COMMANDS: [&str; 6] = [
    "command",
    "permanent_exit_codes",
    "handler",
    "http_body",
    "permanent_http_codes",
    "ready_timeout",
];

/// Settings for batches, and their help.
const OF_BATCHES: [(&str, &str); 2] = [
    ("batch_size", "The most messages in one call of the handler, up to 10"),
    ("batch_window", "How long a call of the handler waits for more messages, up to --batch-size"),
];

/// How many messages a batch handler takes at most, if nothing is set.
pub const DEFAULT_BATCH: usize = 10;

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
    Ours(Box<Action>, ArgMatches),
    /// A subcommand of the program itself: its name and its matches.
    Own(String, ArgMatches),
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
    pub fn parse(&self, mut words: Vec<OsString>) -> Result<Parsed, clap::Error> {
        let mut program = self.command()?;
        if words.get(1).is_some_and(|action| action == "run" || action == "local") {
            if words.iter().any(|word| word == "--") {
                let complaint = "this program does the work itself and takes no COMMAND";
                return Err(program.error(ErrorKind::UnknownArgument, complaint));
            }
            words.extend(dummy());
        }
        let matches = program.try_get_matches_from_mut(words).map_err(fit_to_print)?;
        if let Some((name, own)) = matches.subcommand()
            && self.actions.iter().any(|action| action.get_name() == name)
        {
            return Ok(Parsed::Own(name.to_owned(), own.clone()));
        }
        let mut cli = checked(Cli::from_arg_matches(&matches).map_err(fit_to_print)?)?;
        if self.takes_batches
            && let Some(work) = work_of(&mut cli.action)
            && work.handler == Handler::Command
        {
            work.handler = Handler::Batches;
        }
        let of_action = matches.subcommand().map(|(_, of)| of.clone()).unwrap_or_default();
        match command_only(&cli.action, &of_action) {
            Some(setting) => {
                let complaint =
                    format!("{setting}: this program does the work itself and runs no command");
                Err(program.error(ErrorKind::ArgumentConflict, complaint))
            }
            None => Ok(Parsed::Ours(Box::new(cli.action), of_action)),
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
            for of_commands in OF_COMMANDS {
                action = action.mut_arg(of_commands, |arg| arg.hide(true));
            }
            for (of_batches, help) in OF_BATCHES {
                let hidden = !self.takes_batches;
                action = action.mut_arg(of_batches, |arg| arg.help(help).hide(hidden));
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
        let name = &self.name;
        let rest = super::AFTER_HELP.split_once("\n\nEvery flag").map_or("", |(_, rest)| rest);
        let rest = rest
            .replace("1 the command failed", "1 the handler failed or panicked")
            .replace(", for example RUST_LOG=debug", "");
        format!(
            "Examples:\n  {name} run --queue-url \"$QUEUE_URL\"\n  {name} local ./inbox --outbox ./results\n\nEvery flag{rest}"
        )
    }
}

fn is_work(action: &Command) -> bool {
    ["run", "local"].contains(&action.get_name())
}

/// The derived rule that COMMAND is required cannot be undone, so a dummy satisfies it.
fn dummy() -> [OsString; 2] {
    ["--".into(), "the handler".into()]
}

fn work_of(action: &mut Action) -> Option<&mut WorkSettings> {
    match action {
        #[cfg(feature = "aws")]
        Action::Run(args) => Some(&mut args.work),
        Action::Local(args) => Some(&mut args.work),
        #[cfg(feature = "aws")]
        Action::Check(_) | Action::Sweep(_) | Action::Reference => None,
        Action::Schema | Action::Install(_) | Action::Completions { .. } | Action::Man => None,
    }
}

/// The first setting that was given although it only applies to a command.
fn command_only(action: &Action, matches: &ArgMatches) -> Option<String> {
    let work = match action {
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
    let source = matches.value_source("permanent_exit_codes");
    if source.is_some_and(|source| source != ValueSource::DefaultValue) {
        return Some("--permanent-exit-codes".to_owned());
    }
    work.job_types.as_ref().and_then(command_only_field)
}

/// The first field of a job type that only applies to a command.
fn command_only_field(file: &JobTypesFile) -> Option<String> {
    let path = file.path.as_deref().unwrap_or_default();
    file.job_types.iter().find_map(|task| {
        let has_codes =
            || (!task.permanent_exit_codes.is_empty()).then_some("permanent-exit-codes");
        let setting = (!task.command.is_empty()).then_some("command").or_else(has_codes)?;
        let at = task.source.position(&format!("--{setting}")).in_file(path);
        Some(format!("--job-types {at}: {setting}"))
    })
}

/// The settings of `run` with these values, without a command line and without `LEASEHOLD_`
/// variables.
#[cfg(feature = "aws")]
pub fn run_settings(values: &Values) -> Result<RunSettings, String> {
    if !values.iter().any(|(flag, _)| *flag == "queue-url") {
        return Err(SettingError::NoQueue.to_string());
    }
    let mut settings =
        RunSettings::from_arg_matches(&matches::<RunSettings>(&[], values)?).map_err(first_line)?;
    prepare_batches(&mut settings.work, values);
    let RunSettings { work, metrics, pushgateway, memory_guard, .. } = &settings;
    let unused = [
        ("listen", metrics.listen.is_some()),
        ("pushgateway", pushgateway.pushgateway.is_some()),
        ("memory-guard", memory_guard.is_some()),
        ("termination-log", work.termination_log.is_some()),
        ("log-format", work.log_format.is_some()),
    ];
    if let Some((flag, _)) = unused.into_iter().find(|(_, is_set)| *is_set) {
        return Err(SettingError::OnlyOfAProgram(flag).to_string());
    }
    refuse_command_only(work.job_types.as_ref(), values)?;
    Ok(settings)
}

/// The same for `local`.
#[cfg(feature = "testing")]
pub fn local_settings(inbox: &str, values: &Values) -> Result<LocalSettings, String> {
    let matches = matches::<LocalSettings>(&[inbox], values)?;
    let mut settings = LocalSettings::from_arg_matches(&matches).map_err(first_line)?;
    prepare_batches(&mut settings.work, values);
    refuse_command_only(settings.work.job_types.as_ref(), values)?;
    Ok(settings)
}

/// Code that sets the size or the window of batches has a handler for them.
#[cfg(any(feature = "aws", feature = "testing"))]
fn prepare_batches(work: &mut WorkSettings, values: &Values) {
    let has = |name: &str| values.iter().any(|(flag, _)| *flag == name);
    if has("batch-window") && !has("batch-size") {
        work.batch_size = DEFAULT_BATCH;
    }
    if has("batch-window") || has("batch-size") {
        work.handler = Handler::Batches;
    }
}

fn refuse_command_only(file: Option<&JobTypesFile>, values: &Values) -> Result<(), String> {
    let is_of_commands = |flag: &&str| ["permanent-exit-codes", "handler"].contains(flag);
    let flag = values.iter().map(|(flag, _)| *flag).find(is_of_commands);
    let setting = flag.map(|flag| format!("--{flag}"));
    match setting.or_else(|| file.and_then(command_only_field)) {
        Some(setting) => Err(format!("{setting}: a handler does the work, and no command runs")),
        None => Ok(()),
    }
}

fn matches<A: Args>(positional: &[&str], values: &Values) -> Result<ArgMatches, String> {
    let mut words: Vec<OsString> = positional.iter().map(OsString::from).collect();
    let command = A::augment_args(Command::new("worker")).no_binary_name(true);
    for (flag, value) in values {
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag));
        let takes_values = arg.is_none_or(|arg| arg.get_action().takes_values());
        let mut word = OsString::from(format!("--{flag}"));
        match (takes_values, value.to_str()) {
            (true, _) => {
                word.push("=");
                word.push(value);
            }
            (false, Some("true")) => {}
            (false, Some("false")) => continue,
            (false, _) => return Err(format!("--{flag} must be true or false")),
        }
        words.push(word);
    }
    words.extend(dummy());
    command.args_override_self(true).try_get_matches_from(words).map_err(first_line)
}

fn first_line(error: clap::Error) -> String {
    let text = fit_to_print(error).to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// A complaint with the names that code uses: `max_duration` instead of `--max-duration`.
pub fn as_code(complaint: &str) -> String {
    rename_flags(complaint, |flag| (!flag.is_empty()).then(|| flag.replace('-', "_")))
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
            let Parsed::Ours(action, _) = parse(&program, words).unwrap() else {
                panic!("it is ours")
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
        assert!(
            help.starts_with("Resizes images\n") && help.contains("resize local ./inbox"),
            "{help}"
        );
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
        let Parsed::Ours(_, matches) = parse(&program, "resize local in --database db").unwrap()
        else {
            panic!("local is ours")
        };
        assert_eq!(matches.get_one::<String>("database").map(String::as_str), Some("db"));
        assert!(parse(&program, "resize local in").unwrap_err().contains("--database"));
        let Parsed::Own(name, matches) = parse(&program, "resize migrate 7").unwrap() else {
            panic!("migrate is its own")
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

    #[cfg(feature = "aws")]
    #[test]
    fn values_from_code_have_the_same_defaults_and_complaints() {
        let values = |more: &[(&'static str, &str)]| -> Values {
            [&[QUEUE], more]
                .concat()
                .into_iter()
                .map(|(flag, value)| (flag, value.into()))
                .collect()
        };
        let settings =
            run_settings(&values(&[("max-duration", "2h"), ("accept-raw", "true")])).unwrap();
        assert_eq!(settings.work.task.visibility_timeout, Some(Duration::from_mins(2)));
        assert_eq!(settings.work.task.max_duration, Some(Duration::from_hours(2)));
        assert!(settings.work.accept_raw);
        for (flag, value, complaint) in [
            ("max-duration", "2 fortnights", "max_duration"),
            ("max-durations", "2h", "max_durations"),
            ("accept-raw", "yes", "accept_raw must be true or false"),
            ("listen", ":9464", "listen"),
            ("permanent-exit-codes", "7", "permanent_exit_codes: a handler"),
            ("handler", "lambda", "handler: a handler"),
        ] {
            let error = as_code(&run_settings(&values(&[(flag, value)])).unwrap_err());
            assert!(error.contains(complaint) && !error.contains("--"), "{error}");
        }
    }
}
