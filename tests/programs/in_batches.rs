//! A program whose handler takes several jobs at once.

use leasehold::{Error, Job, Program};

async fn handle(jobs: Vec<Job>) -> Vec<Result<(), Error>> {
    println!("printed by the handler");
    tracing::info!(jobs = jobs.len(), "handling");
    jobs.iter().map(|_| Ok(())).collect()
}

fn main() -> std::process::ExitCode {
    Program::batch(handle).main()
}
