//! The program `leasehold`: see [`leasehold::app`].

use std::process::ExitCode;

use leasehold::app::{self, signals};
use leasehold::cli;
use leasehold::ports::process::guard;

fn main() -> ExitCode {
    let signals = signals::block();
    let argument = std::env::args_os().nth(1);
    guard(argument.as_deref()).unwrap_or_else(|| app::main(signals, cli::parse, None))
}
