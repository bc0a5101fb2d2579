//! A program as it should not be, and still has to work: a `Program` within a runtime and with a
//! subscriber of its own. Its handler panics for a key that begins with `panic`.

use leasehold::{Error, Job, Program};

async fn handle(job: Job) -> Result<(), Error> {
    assert!(!job.key.unwrap_or_default().starts_with("panic"), "no such film");
    tracing::info!("handled");
    Ok(())
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    if std::env::args().any(|word| word == "local") && std::env::args().any(|word| word == "-v") {
        tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    }
    Program::new(handle).main()
}
