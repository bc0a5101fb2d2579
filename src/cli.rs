//! The command line: every flag has its `LEASEHOLD_<FLAG>`.

pub mod environment;
mod errors;
pub mod values;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::{BoolishValueParser, Resettable, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use errors::fit_to_print;
use values::{BucketName, InputArg, List, OnStopArg, RetryArg, VisibilityArg, account, attribute, size, time};

use crate::job::place::{Place, Template};
use crate::job::route::EventFilter;
use crate::job_types::JobTypesFile;
use crate::telemetry::logs::LogFormat;
use crate::work::fetch::MissingObject;

/// Holds an SQS message's lease while a command works on its S3 object; deletes it on success only.
#[derive(Debug, Parser)]
#[command(name = "leasehold", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Receive a message, run the command on its object, delete the message if that succeeded
    Run(Box<RunArgs>),
    /// Look for what is wrong with the queue, the permissions and the manifest, without receiving anything
    Check(Box<CheckArgs>),
    /// What run does, without AWS: every file of a folder becomes an object and a message
    Local(Box<LocalArgs>),
    /// Print the JSON Schema of the file that --job-types reads, for editors
    Schema,
    /// Copy this program into a folder, for a container whose image does not have it
    Install(InstallArgs),
    /// Delete from a Pushgateway what pods left there that are gone
    Sweep(SweepArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The SQS queue, standard or FIFO
    #[arg(long, env = "LEASEHOLD_QUEUE_URL", hide_env_values = true, value_name = "URL", required = true)]
    pub queue_url: Option<String>,

    /// How many messages to process side by side; --max-messages is how many in all
    #[arg(long, env = "LEASEHOLD_CONCURRENCY", value_name = "N", default_value = "1", help_heading = RECEIVE)]
    pub concurrency: usize,

    /// The account to which all buckets must belong, those of results and records too
    #[arg(long, env = "LEASEHOLD_EXPECTED_BUCKET_OWNER", value_name = "ACCOUNT", value_parser = account, help_heading = WORK)]
    pub expected_bucket_owner: Option<String>,

    /// How long S3 may take to begin an answer, or to go on with one; then it is asked again. Uploads get a third of it, and
    /// a second more for each 64 KiB
    #[arg(long, env = "LEASEHOLD_S3_TIMEOUT", value_name = "TIME", default_value = "1m", value_parser = time, help_heading = WORK)]
    pub s3_timeout: Duration,

    #[command(flatten)]
    pub places: PlaceArgs,

    #[command(flatten)]
    pub records: RecordArgs,

    #[command(flatten)]
    pub pushgateway: PushgatewayArgs,

    #[command(flatten)]
    pub metrics: MetricsArgs,

    #[command(flatten)]
    pub work: WorkArgs,
}

/// Where in S3 the command's files go.
#[derive(Debug, Clone, Default, Args)]
pub struct PlaceArgs {
    /// Where results go: what the command wrote into JOB_OUTPUT_DIR. PREFIX may have {key}, {name}, {stem},
    /// {message_id} and {job_type} in it
    #[arg(long, env = "LEASEHOLD_OUTPUT", value_name = "s3://BUCKET/PREFIX", help_heading = WORK)]
    pub output: Option<Template>,

    /// Where partial state is kept: what the command wrote into JOB_CHECKPOINT_DIR is there again at the next attempt.
    /// PREFIX as for --output
    #[arg(long, env = "LEASEHOLD_CHECKPOINT", value_name = "s3://BUCKET/PREFIX", help_heading = WORK)]
    pub checkpoint: Option<Template>,

    /// How often it is saved while the command runs [default: only when it ends without success]
    #[arg(long, env = "LEASEHOLD_CHECKPOINT_INTERVAL", value_name = "TIME", value_parser = time, requires = "checkpoint", help_heading = WORK)]
    pub checkpoint_interval: Option<Duration>,
}

/// Where in S3 our own records go.
#[derive(Debug, Clone, Args)]
pub struct RecordArgs {
    /// Where finished work is recorded, so that a redelivery of it is not done again
    #[arg(long, env = "LEASEHOLD_IDEMPOTENCY", value_name = "s3://BUCKET/PREFIX", help_heading = WORK)]
    pub idempotency: Option<Place>,

    /// The message attribute that says what the sender calls a piece of work [default: a FIFO queue's deduplication
    /// id unless it is made of the body, else the event]
    #[arg(long, env = "LEASEHOLD_IDEMPOTENCY_KEY", value_name = "ATTRIBUTE", requires = "idempotency", value_parser = attribute, help_heading = WORK)]
    pub idempotency_key: Option<String>,

    /// Where each failed attempt leaves a JSON object that says why: PREFIX/MESSAGE_ID/RECEIVE_COUNT.json
    #[arg(long, env = "LEASEHOLD_ATTEMPTS", value_name = "s3://BUCKET/PREFIX", help_heading = REPORT)]
    pub attempts: Option<Place>,
}

#[derive(Debug, Clone, Args)]
pub struct MetricsArgs {
    /// How often to push the metrics to --pushgateway
    #[arg(long, env = "LEASEHOLD_PUSH_INTERVAL", value_name = "TIME", default_value = "15s", value_parser = time, help_heading = METRICS)]
    pub push_interval: Duration,

    /// The namespace in the metrics' key at --pushgateway [default: the pod's]
    #[arg(long, env = "LEASEHOLD_NAMESPACE", value_name = "NAME", help_heading = METRICS)]
    pub namespace: Option<String>,

    /// Serve /metrics, /healthz and /readyz there
    #[arg(long, env = "LEASEHOLD_LISTEN", value_name = "IP:PORT", help_heading = METRICS)]
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Args)]
#[command(mut_arg("queue_url", |arg| arg.required(false).required_unless_present("manifest")))]
#[command(mut_arg("command", |arg| arg.required_unless_present_any(["manifest", "queue_url"])))]
pub struct CheckArgs {
    /// A file of Kubernetes objects, as `kubectl kustomize` prints them: look at its ScaledJobs. Without --queue-url at
    /// nothing else
    #[arg(long, env = "LEASEHOLD_MANIFEST", value_name = "FILE", help_heading = CHECK)]
    pub manifest: Option<PathBuf>,

    /// How the findings are printed
    #[arg(long, env = "LEASEHOLD_FORMAT", value_enum, default_value = "text", help_heading = CHECK)]
    pub format: CheckFormat,

    /// Exit with 1 if there are warnings
    #[arg(long, env = "LEASEHOLD_STRICT", value_parser = BoolishValueParser::new(), help_heading = CHECK)]
    pub strict: bool,

    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// A line for each finding
    Text,
    /// One object
    Json,
}

#[derive(Debug, Args)]
pub struct PushgatewayArgs {
    /// The Prometheus Pushgateway
    #[arg(long, env = "LEASEHOLD_PUSHGATEWAY", hide_env_values = true, value_name = "URL", help_heading = METRICS)]
    pub pushgateway: Option<String>,

    /// The job under which the metrics are kept at --pushgateway
    #[arg(long, env = "LEASEHOLD_PUSHGATEWAY_JOB", value_name = "NAME", default_value = "leasehold", help_heading = METRICS)]
    pub pushgateway_job: String,

    /// A file that holds user:password for --pushgateway
    #[arg(long, env = "LEASEHOLD_PUSHGATEWAY_BASIC_AUTH_FILE", value_name = "FILE", help_heading = METRICS)]
    pub pushgateway_basic_auth_file: Option<PathBuf>,

    /// A file that holds the bearer token for --pushgateway
    #[arg(long, env = "LEASEHOLD_PUSHGATEWAY_BEARER_TOKEN_FILE", value_name = "FILE", conflicts_with = "pushgateway_basic_auth_file", help_heading = METRICS)]
    pub pushgateway_bearer_token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct SweepArgs {
    #[command(flatten)]
    pub pushgateway: PushgatewayArgs,

    /// How long ago a pod must have finished, or fallen silent; several scrape intervals of Prometheus
    #[arg(long, env = "LEASEHOLD_OLDER_THAN", value_name = "TIME", default_value = "10m", value_parser = time)]
    pub older_than: Duration,

    /// [default: text on a terminal, else json]
    #[arg(long, env = "LEASEHOLD_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
pub struct LocalArgs {
    /// The folder whose files are to be processed, or one file
    pub inbox: PathBuf,

    /// Where results go: what the command wrote into JOB_OUTPUT_DIR, in a folder named after the file
    #[arg(long, env = "LEASEHOLD_OUTBOX", value_name = "DIR")]
    pub outbox: Option<PathBuf>,

    /// How many files to process side by side, as that many pods would
    #[arg(long, env = "LEASEHOLD_CONCURRENCY", value_name = "N", default_value = "1")]
    pub concurrency: usize,

    /// Log every step, and list all files in the end, those that succeeded too
    #[arg(long, short, env = "LEASEHOLD_VERBOSE", value_parser = BoolishValueParser::new(), conflicts_with = "quiet")]
    pub verbose: bool,

    /// Log nothing but errors, and print nothing but the totals
    #[arg(long, short, env = "LEASEHOLD_QUIET", value_parser = BoolishValueParser::new())]
    pub quiet: bool,

    #[command(flatten)]
    pub work: WorkArgs,
}

#[derive(Debug, Args)]
pub struct InstallArgs {
    /// The folder that gets the file `leasehold`: a volume that both containers mount
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub struct WorkArgs {
    /// How the message is kept invisible to others while the work runs
    #[arg(long, env = "LEASEHOLD_VISIBILITY", value_enum, default_value = "heartbeat", help_heading = LEASE)]
    pub visibility: VisibilityArg,

    /// Length of the lease; extended at each third of it
    #[arg(long, env = "LEASEHOLD_VISIBILITY_TIMEOUT", value_name = "TIME", default_value = "2m", value_parser = time, help_heading = LEASE)]
    pub visibility_timeout: Duration,

    /// How long the work on one message may take, from the receive; then it is halted and retried
    #[arg(long, env = "LEASEHOLD_MAX_DURATION", value_name = "TIME", default_value = "10m", value_parser = time, help_heading = LEASE)]
    pub max_duration: Duration,

    /// How long the command may print nothing and report no progress; then it is halted and retried [default: any time]
    #[arg(long, env = "LEASEHOLD_STALL_TIMEOUT", value_name = "TIME", value_parser = time, help_heading = LEASE)]
    pub stall_timeout: Option<Duration>,

    /// How long to wait for a message before the queue counts as empty [default: 10s; local: 0s]
    #[arg(long, env = "LEASEHOLD_WAIT", value_name = "TIME", value_parser = time, help_heading = RECEIVE)]
    pub wait: Option<Duration>,

    /// How many messages to process, one after another, before leaving
    #[arg(long, env = "LEASEHOLD_MAX_MESSAGES", value_name = "N", default_value = "1", help_heading = RECEIVE)]
    pub max_messages: u32,

    /// Which S3 events are work; messages about others are deleted
    #[arg(long, env = "LEASEHOLD_EVENTS", value_name = "EVENT,...", default_value_t, help_heading = RECEIVE)]
    pub events: EventFilter,

    /// A body that is not an S3 notification is work as it is: the command gets it as its input
    #[arg(long, env = "LEASEHOLD_ACCEPT_RAW", value_parser = BoolishValueParser::new(), help_heading = RECEIVE)]
    pub accept_raw: bool,

    /// An empty object whose key ends in / is work too: consoles make one for a folder
    #[arg(long, env = "LEASEHOLD_ACCEPT_FOLDERS", value_parser = BoolishValueParser::new(), help_heading = RECEIVE)]
    pub accept_folders: bool,

    /// How long errors of the queue are retried before leaving with exit code 69
    #[arg(long, env = "LEASEHOLD_RECEIVE_GIVE_UP", value_name = "TIME", default_value = "2m", value_parser = time, help_heading = RECEIVE)]
    pub receive_give_up: Duration,

    /// Where files live while they are processed [default: the system's temporary directory]
    #[arg(long, env = "LEASEHOLD_WORK_DIR", value_name = "DIR", default_value_os_t = std::env::temp_dir(), hide_default_value = true, help_heading = WORK)]
    pub work_dir: PathBuf,

    /// How much may be in there, as an emptyDir's sizeLimit says it; what does not fit is not fetched [default: what is free]
    #[arg(long, env = "LEASEHOLD_WORK_DIR_LIMIT", value_name = "SIZE", value_parser = size, help_heading = WORK)]
    pub work_dir_limit: Option<ByteSize>,

    /// A file of job types: commands and settings for some of the messages, YAML or TOML
    #[arg(long, env = "LEASEHOLD_JOB_TYPES", value_name = "FILE", value_parser = JobTypesFile::load, help_heading = WORK)]
    pub job_types: Option<JobTypesFile>,

    /// How the command gets the object
    #[arg(long, env = "LEASEHOLD_INPUT", value_enum, default_value = "file", help_heading = WORK)]
    pub input: InputArg,

    /// What to make of an object that is gone or was overwritten [default: retry if gone, fail if overwritten]
    #[arg(long, env = "LEASEHOLD_MISSING_OBJECT", value_enum, help_heading = WORK)]
    pub missing_object: Option<MissingObject>,

    /// The buckets to read from; objects of others are a permanent failure [default: any]
    #[arg(long, env = "LEASEHOLD_BUCKETS", value_name = "BUCKET,...", help_heading = WORK)]
    pub buckets: Vec<List<BucketName>>,

    /// Exit codes with which the command says that this input will never work
    #[arg(long, env = "LEASEHOLD_PERMANENT_EXIT_CODES", value_name = "CODE,...", default_value = "65", help_heading = WORK)]
    pub permanent_exit_codes: Vec<List<u8>>,

    /// The pod's terminationGracePeriodSeconds
    #[arg(long, env = "LEASEHOLD_TERMINATION_GRACE", value_name = "TIME", default_value = "30s", value_parser = time, help_heading = STOP)]
    pub termination_grace: Duration,

    /// What the command gets between TERM and KILL [default: the termination grace less min(10s, a third of it)]
    #[arg(long, env = "LEASEHOLD_STOP_GRACE", value_name = "TIME", value_parser = time, help_heading = STOP)]
    pub stop_grace: Option<Duration>,

    /// After SIGTERM: make the message visible at once, or let its lease run out
    #[arg(long, env = "LEASEHOLD_ON_STOP", value_enum, default_value = "release", help_heading = STOP)]
    pub on_stop: OnStopArg,

    /// After a failure: make the message visible after a growing delay, or let its lease run out
    #[arg(long, env = "LEASEHOLD_RETRY", value_enum, default_value = "backoff", help_heading = RETRY)]
    pub retry: RetryArg,

    /// The shortest delay of a retry [default: 10s; local: 1s]
    #[arg(long, env = "LEASEHOLD_RETRY_MIN", value_name = "TIME", value_parser = time, help_heading = RETRY)]
    pub retry_min: Option<Duration>,

    /// The longest delay of a retry [default: 15m; local: 5s]
    #[arg(long, env = "LEASEHOLD_RETRY_MAX", value_name = "TIME", value_parser = time, help_heading = RETRY)]
    pub retry_max: Option<Duration>,

    /// Who we are, in every log record [default: the host name]
    #[arg(long, env = "LEASEHOLD_JOB_ID", value_name = "ID", default_value_t = environment::host_name(), hide_default_value = true, help_heading = REPORT)]
    pub job_id: String,

    /// The pod, in every log record [default: the host name, which in Kubernetes is the pod's]
    #[arg(long, env = "LEASEHOLD_POD_NAME", value_name = "NAME", default_value_t = environment::host_name(), hide_default_value = true, help_heading = REPORT)]
    pub pod_name: String,

    /// [default: text on a terminal, else json]
    #[arg(long, env = "LEASEHOLD_LOG_FORMAT", value_enum, help_heading = REPORT)]
    pub log_format: Option<LogFormat>,

    /// Where the last record goes as well [default: /dev/termination-log, if it exists]
    #[arg(long, env = "LEASEHOLD_TERMINATION_LOG", value_name = "FILE", help_heading = REPORT)]
    pub termination_log: Option<PathBuf>,

    /// What to run on each object; with --job-types on those of no job type, or on none
    #[arg(last = true, required_unless_present = "job_types", value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

const CHECK: &str = "Check";
const LEASE: &str = "Lease";
const RECEIVE: &str = "Receive";
const WORK: &str = "Work";
const STOP: &str = "Stop";
const RETRY: &str = "Retry";
const REPORT: &str = "Report";
const METRICS: &str = "Metrics and probes";

/// The flags and variables given, parsed one by one. What does not parse is told with the flag's name.
pub fn parse() -> Result<Cli, clap::Error> {
    let matches = empty_is_unset(Cli::command()).try_get_matches().map_err(fit_to_print)?;
    checked(Cli::from_arg_matches(&matches).map_err(fit_to_print)?)
}

/// Charts set variables to nothing where they mean that they are not set.
fn empty_is_unset(program: Command) -> Command {
    let empty: Vec<OsString> =
        environment::all().filter_map(|(name, value)| value.is_empty().then(|| name.into())).collect();
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

/// The same for a program that does the work itself: there is no COMMAND, and flags may have other defaults, given as
/// their names without dashes and their values. `words` begin with the program's own.
pub fn parse_without_command(
    name: &'static str,
    defaults: &[(&'static str, &'static str)],
    mut words: Vec<OsString>,
) -> Result<Cli, clap::Error> {
    let hidden = |action: Command| {
        action.mut_arg("command", |arg| arg.hide(true)).mut_arg("permanent_exit_codes", |arg| arg.hide(true))
    };
    let mut program = empty_is_unset(Cli::command()).name(name).bin_name(name);
    program = program.mut_subcommand("run", hidden).mut_subcommand("local", hidden);
    for &(flag, value) in defaults {
        let is_it = |arg: &Arg| arg.get_long() == Some(flag);
        if !program.get_subcommands().any(|action| action.get_arguments().any(is_it)) {
            let complaint = format!("this program gives --{flag} a default, but there is no such flag");
            return Err(program.error(ErrorKind::UnknownArgument, complaint));
        }
        let with_default = |arg: Arg| if is_it(&arg) { arg.default_value(value).required(false) } else { arg };
        program = program.mut_subcommands(|action| action.mut_args(with_default));
    }
    if words.get(1).is_some_and(|action| action == "run" || action == "local") {
        if words.iter().any(|word| word == "--") {
            let complaint = "this program does the work itself: it takes no COMMAND";
            return Err(program.error(ErrorKind::UnknownArgument, complaint));
        }
        // clap can be told that an argument is not required only where it was told that it is.
        words.extend(["--".into(), "the work".into()]);
    }
    let matches = program.try_get_matches_from_mut(words).map_err(fit_to_print)?;
    let cli = checked(Cli::from_arg_matches(&matches).map_err(fit_to_print)?)?;
    match commands_business(&cli, &matches) {
        Some(setting) => {
            let complaint = format!("{setting}: this program does the work itself, there is no command to say that of");
            Err(program.error(ErrorKind::ArgumentConflict, complaint))
        }
        None => Ok(cli),
    }
}

/// A setting that is said and makes sense for a command only.
fn commands_business(cli: &Cli, matches: &ArgMatches) -> Option<String> {
    let work = match &cli.action {
        Action::Run(args) => &args.work,
        Action::Local(args) => &args.work,
        // It would read a container of this program as one of leasehold's.
        Action::Check(args) => return args.manifest.as_ref().map(|_| "--manifest".to_owned()),
        Action::Schema | Action::Install(_) | Action::Sweep(_) => return None,
    };
    let said = matches.subcommand()?.1.value_source("permanent_exit_codes");
    if said.is_some_and(|source| source != ValueSource::DefaultValue) {
        return Some("--permanent-exit-codes".to_owned());
    }
    work.job_types.iter().flat_map(|file| &file.job_types).find_map(|entry| {
        let said = entry.command.as_ref().map(|_| "command");
        let setting = said.or(entry.permanent_exit_codes.as_ref().map(|_| "permanent-exit-codes"))?;
        Some(format!("--job-types, {}: {setting}", entry.said_at.what(&format!("--{setting}"))))
    })
}

fn checked(cli: Cli) -> Result<Cli, clap::Error> {
    if let Some(complaint) = environment::unknown_variable(environment::all().map(|(name, _)| name)) {
        return Err(Cli::command().error(ErrorKind::UnknownArgument, complaint));
    }
    Ok(cli)
}

/// The flags of `run` as a container has them: its `LEASEHOLD_*` variables, and the words after `run`, which outrank them.
/// Our own environment plays no part.
pub fn container_args(variables: &BTreeMap<String, String>, words: &[String]) -> Result<RunArgs, String> {
    if let Some(complaint) = environment::unknown_variable(variables.keys().cloned()) {
        return Err(complaint);
    }
    let command = RunArgs::augment_args(Command::new("run")).no_binary_name(true).args_override_self(true);
    let from_environment: Vec<OsString> = command
        .get_arguments()
        .filter_map(|arg| {
            let value = variables.get(arg.get_env()?.to_str()?).filter(|value| !value.is_empty())?;
            let flag = format!("--{}", arg.get_long()?);
            if matches!(arg.get_action(), ArgAction::SetTrue) {
                let is_set = BoolishValueParser::new().parse_ref(&command, Some(arg), OsStr::new(value));
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
    RunArgs::from_arg_matches(&matches).map_err(first_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_its_own_has_defaults_that_a_flag_outranks() {
        let parse = |defaults: &[(&'static str, &'static str)], words: &str| {
            let words = words.split(' ').map(OsString::from).collect();
            parse_without_command("resize", defaults, words).map_err(|error| error.to_string())
        };
        let longest = |cli: Result<Cli, String>| {
            let Action::Run(args) = cli.unwrap().action else { panic!("it is run") };
            args.work.max_duration
        };
        let defaults =
            [("max-duration", "2h"), ("queue-url", "https://sqs.us-east-1.amazonaws.com/1/q"), ("accept-raw", "true")];
        assert_eq!(longest(parse(&defaults, "resize run")), Duration::from_hours(2));
        assert_eq!(longest(parse(&defaults, "resize run --max-duration 3h")), Duration::from_hours(3));
        assert!(matches!(parse(&defaults, "resize local in").unwrap().action, Action::Local(_)));

        let error = |defaults: &[_], words: &str| parse(defaults, words).unwrap_err();
        assert!(error(&[("max-durations", "2h")], "resize run").contains("gives --max-durations a default"));
        assert!(error(&[("max-duration", "2 fortnights")], "resize local in").contains("--max-duration"));
        assert!(error(&[], "resize run -- true").contains("takes no COMMAND"));
        assert!(
            error(&[], "resize local in --permanent-exit-codes 1").contains("--permanent-exit-codes: this program")
        );
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("types.yaml");
        std::fs::write(&file, "job-types:\n- name: a\n  command: [b]\n").unwrap();
        let said = error(&[], &format!("resize local in --job-types {}", file.display()));
        assert!(said.contains("--job-types, line 3 column 12: command: this program does"), "{said}");
        assert!(error(&[], "resize check --manifest m.yaml").contains("--manifest: this program"));
        assert!(error(&[], "resize run").contains("Usage: resize run"));
        assert!(error(&defaults, "resize run --help").contains("[default: 2h]"));
    }

    #[test]
    fn every_flag_has_its_variable() {
        Cli::command().debug_assert();
        for action in Cli::command().get_subcommands() {
            for arg in action.get_arguments() {
                let Some(flag) = arg.get_long().filter(|flag| *flag != "help") else { continue };
                let variable = format!("LEASEHOLD_{}", flag.replace('-', "_").to_uppercase());
                assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(variable.as_str()));
            }
        }
    }
}
