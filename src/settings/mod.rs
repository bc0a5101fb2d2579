//! Every setting, declared once: its flag and its variable `LEASEHOLD_<FLAG>`. Settings in `task`
//! are also fields of the file of job types; `pod` and `cluster` have all others, and `resolve`
//! checks the rules across settings.

#[cfg(feature = "aws")]
mod cluster;
#[cfg(feature = "cli")]
pub mod command_line;
#[cfg(feature = "cli")]
pub mod embedding;
pub mod environment;
pub mod error;
#[cfg(feature = "cli")]
pub mod errors;
pub mod given;
pub mod handler;
pub mod in_code;
pub mod job_types;
pub mod no_effect;
mod pod;
pub mod resolve;
mod task;
pub mod values;

#[cfg(feature = "cli")]
use clap::{Parser, Subcommand};

#[cfg(feature = "aws")]
pub use cluster::RunSettings;
#[cfg(feature = "pushgateway")]
pub use cluster::SweepSettings;
#[cfg(feature = "check")]
pub use cluster::{CheckFormat, CheckSettings};
pub use job_types::JobTypesFile;
#[cfg(feature = "cli")]
pub use pod::InstallSettings;
pub use pod::LocalSettings;

/// Runs a command for each SQS message about an S3 object. The message stays hidden while the
/// command works, and is deleted only on success.
#[cfg(feature = "cli")]
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

#[cfg(feature = "cli")]
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Receive a message, run the command on its object, and delete the message if the command
    /// succeeded
    #[cfg(feature = "aws")]
    Run(Box<RunSettings>),
    /// Check the queue, the permissions and the manifest for mistakes, without receiving a message
    #[cfg(feature = "check")]
    Check(Box<CheckSettings>),
    /// Do what run does without AWS: each file in a folder becomes an object and a message
    #[cfg(feature = "local")]
    Local(Box<LocalSettings>),
    /// Print the JSON Schema of the job types file (--job-types), for editors
    #[cfg(feature = "check")]
    Schema,
    /// Copy this program into a folder, for a container whose image does not contain it
    Install(InstallSettings),
    /// Delete metric groups that finished or dead pods left on a Pushgateway
    #[cfg(feature = "pushgateway")]
    Sweep(SweepSettings),
    /// Print a completion script for a shell
    Completions {
        /// The shell that reads the script
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff)
    Man,
    /// Print docs/reference.md
    #[cfg(feature = "check")]
    #[command(hide = true)]
    Reference,
}

#[cfg(feature = "cli")]
impl Action {
    /// Does it process messages?
    pub fn does_work(&self) -> bool {
        match self {
            #[cfg(feature = "aws")]
            Self::Run(_) => true,
            #[cfg(feature = "local")]
            Self::Local(_) => true,
            #[cfg(feature = "check")]
            Self::Check(_) | Self::Schema | Self::Reference => false,
            #[cfg(feature = "pushgateway")]
            Self::Sweep(_) => false,
            Self::Install(_) | Self::Completions { .. } | Self::Man => false,
        }
    }
}

#[cfg(not(feature = "aws"))]
const AFTER_HELP: &str = "\
This build lacks run, check and sweep, which need AWS: `cargo build` makes one that has them.";

/// What follows the examples.
#[cfg(feature = "aws")]
macro_rules! after_help {
    ($examples:literal) => {
        concat!(
            $examples,
            "\n\n\
Every flag has an environment variable: --queue-url is LEASEHOLD_QUEUE_URL.
AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL and others work as in other AWS tools.
RUST_LOG filters the log, for example RUST_LOG=debug.

Exit codes: 0 success, 1 the command failed, 65 permanent failure,
69 the queue is unavailable, 70 a bug in leasehold, 75 temporary failure,
78 a setting is wrong, 143 stopped."
        )
    };
}

#[cfg(all(feature = "check", feature = "local"))]
const AFTER_HELP: &str = after_help!(
    "\
Examples:
  leasehold run --queue-url \"$QUEUE_URL\" -- python process.py
  leasehold local ./inbox --outbox ./results -- ./process.sh
  leasehold check --manifest scaledjob.yaml --queue-url \"$QUEUE_URL\""
);

#[cfg(all(feature = "aws", not(all(feature = "check", feature = "local"))))]
const AFTER_HELP: &str = after_help!(
    "\
Example:
  leasehold run --queue-url \"$QUEUE_URL\" -- python process.py

This build lacks commands, such as local or check: `cargo build` makes one that has them."
);
