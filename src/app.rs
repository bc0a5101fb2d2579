//! The program, with one file per subcommand. Wiring only: arguments → configuration → ports
//! → supervisor → signals → exit code.

#[cfg(feature = "check")]
mod check;
mod exit;
#[cfg(feature = "local")]
mod local;
#[cfg(feature = "check")]
pub mod reference;
#[cfg(feature = "aws")]
mod run;
mod runtime;
pub mod signals;
#[cfg(feature = "pushgateway")]
mod sweep;

use std::process::ExitCode;
use std::sync::Arc;

#[cfg(feature = "aws")]
use crate::adapters::aws::sqs::prepare;
use crate::adapters::batching::Batching;
use crate::adapters::process::guard;
use crate::install::install;
use crate::ports::Runner;
#[cfg(feature = "check")]
use crate::settings::JobTypesFile;
use crate::settings::errors::as_given;
#[cfg(feature = "local")]
use crate::settings::resolve::LocalConfig;
#[cfg(feature = "aws")]
use crate::settings::resolve::RunConfig;
#[cfg(feature = "pushgateway")]
use crate::settings::resolve::SweepConfig;
use crate::settings::{Action, Cli, command_line, environment};
use crate::telemetry::termination::TerminationLog;
use crate::wiring::machine::ThreadCheck;
#[cfg(feature = "check")]
use check::check;
pub use exit::refuse;
use exit::{MISCONFIGURED, misconfigured, print};
#[cfg(feature = "local")]
use local::run_local;
#[cfg(feature = "aws")]
use run::run;
use signals::Inherited;
#[cfg(feature = "pushgateway")]
use sweep::sweep;

/// The program that runs: leasehold, or one that embeds it.
pub struct Host {
    pub name: String,
    /// The whole command line.
    pub command: Box<dyn Fn() -> clap::Command>,
    pub is_embedded: bool,
    /// Does the work, if no command does.
    pub in_process: Option<InProcess>,
}

/// Makes the runner of a function that is part of the program.
pub type InProcess = Box<dyn FnOnce(Batching) -> Arc<dyn Runner>>;

/// What the command line asks for.
pub enum Start {
    Perform(Action, Host),
    /// A subcommand of the embedding program itself.
    Subcommand(Box<dyn FnOnce() -> ExitCode>),
}

/// The program `leasehold`; only for its `main`.
pub fn program() -> ExitCode {
    let signals = signals::block();
    let argument = std::env::args_os().nth(1);
    guard(argument.as_deref()).unwrap_or_else(|| {
        main(signals, NAME, || {
            let Cli { action } = command_line::parse()?;
            let (name, command) = (NAME.to_owned(), Box::new(command_line::command));
            Ok(Start::Perform(action, Host { name, command, is_embedded: false, in_process: None }))
        })
    })
}

const NAME: &str = "leasehold";

/// The whole program. `signals` is the result of [`signals::block`] on the first line of `main`;
/// `parse` reads the command line and the files that it names.
pub fn main(
    signals: Inherited,
    name: &str,
    parse: impl FnOnce() -> Result<Start, clap::Error>,
) -> ExitCode {
    let action = std::env::args_os().nth(1).unwrap_or_default();
    // Only `run` and `local` hold messages.
    let holds_messages = action == "run" || action == "local";
    if !holds_messages {
        signals.restore();
    }
    // This may start the program again, so the standard input must not have been read.
    if let Err(why) = environment::without_empty_aws_variables() {
        TerminationLog::Kubernetes.write(&misconfigured(&why));
        return refuse(name, &why);
    }
    // Beside the parsing of the command line.
    let threads = holds_messages.then(|| {
        ThreadCheck::start(move || {
            #[cfg(feature = "aws")]
            if action == "run" {
                prepare();
            }
        })
    });
    match parse() {
        Ok(Start::Perform(action, host)) => perform(action, host, threads),
        Ok(Start::Subcommand(action)) => action(),
        Err(answer) => {
            // It is not an error if the reader of `--help` is gone.
            let _ = answer.print();
            if answer.use_stderr() {
                TerminationLog::Kubernetes.write(&misconfigured(&answer.to_string()));
                ExitCode::from(MISCONFIGURED)
            } else {
                ExitCode::SUCCESS
            }
        }
    }
}

fn perform(action: Action, host: Host, threads: Option<ThreadCheck>) -> ExitCode {
    let Host { name, command, in_process, .. } = host;
    let refuse = |why: String| refuse(&name, &why);
    match action {
        #[cfg(feature = "aws")]
        Action::Run(args) => {
            let termination_log = args.work.termination_log.clone();
            RunConfig::try_from(*args)
                .map_err(|error| as_given(&error.to_string()))
                .and_then(|config| run(config, in_process, threads))
                .unwrap_or_else(|why| {
                    let termination_log =
                        termination_log.map_or(TerminationLog::Kubernetes, TerminationLog::At);
                    termination_log.write(&misconfigured(&why));
                    refuse(why)
                })
        }
        #[cfg(feature = "check")]
        Action::Check(args) => check(*args, !host.is_embedded).unwrap_or_else(refuse),
        #[cfg(feature = "check")]
        Action::Schema => {
            let schema =
                serde_json::to_string_pretty(&JobTypesFile::schema()).expect("a schema is JSON");
            print(std::io::stdout(), &schema);
            ExitCode::SUCCESS
        }
        Action::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), name, &mut script);
            print(std::io::stdout(), &String::from_utf8_lossy(&script));
            ExitCode::SUCCESS
        }
        Action::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command())
                .render(&mut page)
                .expect("writing to memory does not fail");
            print(std::io::stdout(), &String::from_utf8_lossy(&page));
            ExitCode::SUCCESS
        }
        #[cfg(feature = "check")]
        Action::Reference => {
            print(std::io::stdout(), reference::reference().trim_end());
            ExitCode::SUCCESS
        }
        #[cfg(feature = "local")]
        Action::Local(args) => LocalConfig::try_from(*args)
            .map_err(|error| as_given(&error.to_string()))
            .and_then(|config| run_local(config, in_process, threads))
            .unwrap_or_else(refuse),
        Action::Install(args) => match install(&args.folder, &name) {
            Ok(path) => {
                print(std::io::stdout(), &format!("installed {}", path.display()));
                ExitCode::SUCCESS
            }
            Err(error) => refuse(format!("cannot install into {}: {error}", args.folder.display())),
        },
        #[cfg(feature = "pushgateway")]
        Action::Sweep(args) => SweepConfig::try_from(args)
            .map_err(|error| as_given(&error.to_string()))
            .and_then(sweep)
            .unwrap_or_else(refuse),
    }
}
