//! Every setting, declared once: its flag and its variable `LEASEHOLD_<FLAG>`. Settings in `task`
//! are also fields of the file of job types; `pod` and `cluster` have all others, and `resolve`
//! checks the rules across settings.

#[cfg(feature = "aws")]
mod cluster;
pub mod command_line;
pub mod embedding;
pub mod environment;
mod error;
pub mod errors;
pub mod handler;
pub mod job_types;
mod pod;
pub mod resolve;
mod task;
pub mod values;

use clap::{Parser, Subcommand};

#[cfg(feature = "aws")]
pub use cluster::{CheckFormat, CheckSettings, RunSettings, SweepSettings};
pub use job_types::JobTypesFile;
pub use pod::{InstallSettings, LocalSettings};

/// Runs a command for each SQS message about an S3 object. The message stays hidden while the
/// command works, and is deleted only on success.
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
    /// Receive a message, run the command on its object, and delete the message if the command
    /// succeeded
    #[cfg(feature = "aws")]
    Run(Box<RunSettings>),
    /// Check the queue, the permissions and the manifest for mistakes, without receiving a message
    #[cfg(feature = "aws")]
    Check(Box<CheckSettings>),
    /// Do what run does without AWS: each file in a folder becomes an object and a message
    Local(Box<LocalSettings>),
    /// Print the JSON Schema of the job types file (--job-types), for editors
    Schema,
    /// Copy this program into a folder, for a container whose image does not contain it
    Install(InstallSettings),
    /// Delete metric groups that finished or dead pods left on a Pushgateway
    #[cfg(feature = "aws")]
    Sweep(SweepSettings),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the manual page (roff)
    Man,
    /// Print docs/reference.md
    #[cfg(feature = "aws")]
    #[command(hide = true)]
    Reference,
}

impl Action {
    /// Does it process messages?
    pub fn does_work(&self) -> bool {
        match self {
            #[cfg(feature = "aws")]
            Self::Run(_) => true,
            Self::Local(_) => true,
            #[cfg(feature = "aws")]
            Self::Check(_) | Self::Sweep(_) | Self::Reference => false,
            Self::Schema | Self::Install(_) | Self::Completions { .. } | Self::Man => false,
        }
    }
}

#[cfg(not(feature = "aws"))]
const AFTER_HELP: &str = "\
This build lacks run, check and sweep, which need AWS: `cargo build` makes one that has them.";

#[cfg(feature = "aws")]
const AFTER_HELP: &str = "\
Examples:
  leasehold run --queue-url \"$QUEUE_URL\" -- python process.py
  leasehold local ./inbox --outbox ./results -- ./process.sh
  leasehold check --manifest scaledjob.yaml --queue-url \"$QUEUE_URL\"

Every flag has an environment variable: --queue-url is LEASEHOLD_QUEUE_URL.
AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL and others work as in other AWS tools.
RUST_LOG filters the log, for example RUST_LOG=debug.

Exit codes: 0 success, 1 the command failed, 65 permanent failure,
69 the queue is unavailable, 70 a bug in leasehold, 75 temporary failure,
78 a setting is wrong, 143 stopped.";
