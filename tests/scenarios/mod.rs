//! Ways in which programs like this one lose messages, do work twice, hang, or delete what failed.
//!
//! Each was taken from a real defect of a real program, has a number for life, and is a test that is named after
//! it. Virtual time where that is enough; real processes and a real server where they are the point.

mod completion;
mod environment;
mod fetch;
mod lease;
mod partial_state;
mod receive;
mod records;
mod stop;
mod work;

use leasehold::cli::{Action, Cli};
use leasehold::config::RunConfig;
use serde_json::Value;

use crate::support::object_created;

/// One record of a notification.
fn record(key: &str) -> Value {
    let mut body: Value = serde_json::from_str(&object_created(key)).unwrap();
    body["Records"][0].take()
}

/// What `leasehold run` makes of these flags: the settings, or its complaint.
pub fn configured(flags: &str) -> Result<RunConfig, String> {
    use clap::Parser;
    let start = ["leasehold", "run", "--queue-url", "http://localhost:4566/000000000000/q"];
    let words = start.into_iter().chain(flags.split_whitespace()).chain(["--", "true"]);
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    let Action::Run(args) = cli.action else { panic!("it is a run") };
    RunConfig::try_from(*args).map_err(|error| error.to_string())
}
