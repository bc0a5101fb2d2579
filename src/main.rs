//! The program `leasehold`: see [`leasehold::app`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let signals = leasehold::app::signals::block();
    leasehold::app::main(signals, leasehold::cli::parse(), None)
}
