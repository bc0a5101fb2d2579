//! The program, with one file per subcommand. Wiring only: arguments → configuration → ports
//! → supervisor → signals → exit code.

#[cfg(feature = "aws")]
mod check;
mod exit;
mod local;
mod machine;
#[cfg(feature = "aws")]
pub mod reference;
#[cfg(feature = "aws")]
mod run;
mod runtime;
pub mod signals;
#[cfg(feature = "aws")]
mod sweep;

use std::process::ExitCode;
use std::sync::Arc;

use crate::adapters::process::guard;
use crate::install::install;
use crate::ports::Runner;
use crate::settings::JobTypesFile;
use crate::settings::errors::as_given;
use crate::settings::resolve::LocalConfig;
#[cfg(feature = "aws")]
use crate::settings::resolve::{RunConfig, SweepConfig};
use crate::settings::{Action, Cli, command_line, environment};
use crate::telemetry::termination::TerminationLog;
#[cfg(feature = "aws")]
use check::check;
use exit::{MISCONFIGURED, misconfigured, print, refuse};
use local::run_local;
#[cfg(feature = "aws")]
use run::run;
use signals::Inherited;
#[cfg(feature = "aws")]
use sweep::sweep;

/// The program `leasehold`; only for its `main`.
pub fn program() -> ExitCode {
    let signals = signals::block();
    let argument = std::env::args_os().nth(1);
    guard(argument.as_deref()).unwrap_or_else(|| main(signals, command_line::parse, None))
}

/// The whole program. Runs the user's command, or `in_process` if it is given. `signals` is the
/// result of [`signals::block`] on the first line of `main`; `parse` reads the command line and the
/// files that it names.
pub fn main(
    signals: Inherited,
    parse: impl FnOnce() -> Result<Cli, clap::Error>,
    in_process: Option<Arc<dyn Runner>>,
) -> ExitCode {
    // Only `run` and `local` hold messages.
    if !std::env::args_os().nth(1).is_some_and(|action| action == "run" || action == "local") {
        signals.restore();
    }
    // This may start the program again, so the standard input must not have been read.
    if let Err(why) = environment::without_empty_aws_variables() {
        TerminationLog::Kubernetes.write(&misconfigured(&why));
        return refuse(&why);
    }
    match parse() {
        Ok(Cli { action }) => perform(action, in_process),
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

fn perform(action: Action, in_process: Option<Arc<dyn Runner>>) -> ExitCode {
    match action {
        #[cfg(feature = "aws")]
        Action::Run(args) => {
            let termination_log = args.work.termination_log.clone();
            RunConfig::try_from(*args)
                .map_err(|error| as_given(&error.to_string()))
                .and_then(|config| run(config, in_process))
                .unwrap_or_else(|why| {
                    let termination_log =
                        termination_log.map_or(TerminationLog::Kubernetes, TerminationLog::At);
                    termination_log.write(&misconfigured(&why));
                    refuse(&why)
                })
        }
        #[cfg(feature = "aws")]
        Action::Check(args) => {
            check(*args, in_process.is_none()).unwrap_or_else(|why| refuse(&why))
        }
        Action::Schema => {
            let schema =
                serde_json::to_string_pretty(&JobTypesFile::schema()).expect("a schema is JSON");
            print(std::io::stdout(), &schema);
            ExitCode::SUCCESS
        }
        Action::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command_line::command(), "leasehold", &mut script);
            print(std::io::stdout(), &String::from_utf8_lossy(&script));
            ExitCode::SUCCESS
        }
        Action::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command_line::command())
                .render(&mut page)
                .expect("writing to memory does not fail");
            print(std::io::stdout(), &String::from_utf8_lossy(&page));
            ExitCode::SUCCESS
        }
        #[cfg(feature = "aws")]
        Action::Reference => {
            print(std::io::stdout(), reference::reference().trim_end());
            ExitCode::SUCCESS
        }
        Action::Local(args) => LocalConfig::try_from(*args)
            .map_err(|error| as_given(&error.to_string()))
            .and_then(|config| run_local(config, in_process))
            .unwrap_or_else(|why| refuse(&why)),
        Action::Install(args) => match install(&args.folder) {
            Ok(path) => {
                print(std::io::stdout(), &format!("installed {}", path.display()));
                ExitCode::SUCCESS
            }
            Err(error) => {
                refuse(&format!("cannot install into {}: {error}", args.folder.display()))
            }
        },
        #[cfg(feature = "aws")]
        Action::Sweep(args) => SweepConfig::try_from(args)
            .map_err(|error| as_given(&error.to_string()))
            .and_then(sweep)
            .unwrap_or_else(|why| refuse(&why)),
    }
}
