//! A program whose work is a Rust function: `cargo run --example embedded -- local examples/inbox`

use std::process::ExitCode;

use leasehold::{Failure, Job, Work, async_trait};

struct CountLines;

#[async_trait]
impl Work for CountLines {
    async fn process(&self, job: Job) -> Result<(), Failure> {
        let text = tokio::fs::read_to_string(job.input()?).await?;
        println!("{}: {} lines", job.key.unwrap_or_default(), text.lines().count());
        Ok(())
    }
}

fn main() -> ExitCode {
    leasehold::main(CountLines)
}
