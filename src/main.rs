//! The program `leasehold`: see [`leasehold::app`].

use std::process::ExitCode;

fn main() -> ExitCode {
    leasehold::app::main(leasehold::cli::parse(), None)
}
