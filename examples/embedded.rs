//! A whole program with a flag and a subcommand of its own:
//! `cargo run --example embedded -- local examples/inbox --min-lines 1`

use std::process::ExitCode;

use leasehold::clap::{self, Command};
use leasehold::{Error, Failure, Job, Program};

#[derive(clap::Args)]
struct Flags {
    /// Refuse files with fewer lines
    #[arg(long, default_value = "0")]
    min_lines: usize,
}

async fn count_lines(job: Job, min_lines: usize) -> Result<(), Error> {
    let lines = job.text().await?.lines().count();
    if lines < min_lines {
        return Err(Failure::permanent(format!("the file has only {lines} lines")).into());
    }
    tracing::info!(key = job.key, lines, "counted");
    Ok(())
}

fn main() -> ExitCode {
    Program::with_flags(|Flags { min_lines }| move |job| count_lines(job, min_lines))
        .name("embedded")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Counts the lines of files")
        .subcommand(Command::new("limits").about("Print the limits"), |_| {
            println!("files of any size");
            ExitCode::SUCCESS
        })
        .main()
}
