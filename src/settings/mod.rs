//! Every setting, declared once: a flag, its variable `LEASEHOLD_<FLAG>` and, of what a job type may say otherwise, the field of the
//! file that `--job-types` names. `task` has the latter, `pod` all others, `resolve` the rules across them.

pub mod command_line;
pub mod environment;
mod error;
pub mod errors;
pub mod job_types;
mod pod;
pub mod resolve;
mod task;
mod values;

use clap::{Parser, Subcommand};

pub use job_types::JobTypesFile;
pub use pod::{CheckFormat, CheckSettings, InstallSettings, LocalSettings, RunSettings, SweepSettings};

/// Holds an SQS message's lease while a command works on its S3 object; deletes it on success only.
#[derive(Debug, Parser)]
#[command(
    name = "leasehold",
    version = env!("BUILD_VERSION"),
    max_term_width = 110,
    disable_help_subcommand = true,
    after_help = AFTER_HELP
)]
pub struct Cli {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Receive a message, run the command on its object, delete the message if that succeeded
    Run(Box<RunSettings>),
    /// Look for what is wrong with the queue, the permissions and the manifest, without receiving a message
    Check(Box<CheckSettings>),
    /// What run does, without AWS: every file of a folder becomes an object and a message
    Local(Box<LocalSettings>),
    /// Print the JSON Schema of the file that --job-types reads, for editors
    Schema,
    /// Copy this program into a folder, for a container whose image does not have it
    Install(InstallSettings),
    /// Delete metric groups that finished or dead pods left on a Pushgateway
    Sweep(SweepSettings),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the manual page, in roff
    Man,
    /// Print docs/reference.md
    #[command(hide = true)]
    Reference,
}

const AFTER_HELP: &str = "\
Examples:
  leasehold run --queue-url \"$QUEUE_URL\" -- python process.py
  leasehold local ./inbox --outbox ./results -- ./process.sh
  leasehold check --manifest scaledjob.yaml --queue-url \"$QUEUE_URL\"

Every flag can be given as a variable: --queue-url as LEASEHOLD_QUEUE_URL.
The AWS SDK reads AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL and others.
RUST_LOG filters the log, for example RUST_LOG=debug.

Exit codes: 0 success, 1 the command failed, 65 permanent failure,
69 the queue is unavailable, 70 a bug in leasehold, 75 temporary failure,
78 a setting is wrong, 143 stopped.";
