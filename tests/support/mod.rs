//! Helpers that the tests share.

pub mod aws;
pub mod bucket;
pub mod cloud;
pub mod http;
pub mod https;
pub mod journey;
pub mod logs;
pub mod recorder;
pub mod records;
pub mod servers;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use leasehold::ports::Command;
use leasehold::ports::job_facts::JobFacts;
use tempfile::TempDir;

#[path = "../../core/tests/support.rs"]
mod values;
pub mod wire;

pub use values::*;

/// The facts of an arbitrary job; each job has its own directory.
pub fn facts() -> JobFacts {
    static JOBS: AtomicU32 = AtomicU32::new(0);
    static HOME: LazyLock<TempDir> =
        LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));
    let home = HOME.path().join(JOBS.fetch_add(1, Ordering::Relaxed).to_string());
    std::fs::create_dir(&home).expect("a new directory");
    JobFacts::example("m", &home)
}

/// A command without arguments, for a runner that ends it at once.
pub fn command(program: &str) -> Command {
    Command {
        program: program.into(),
        args: Vec::new(),
        job: facts(),
        variables: None,
        stdin: None,
        fetch: None,
        on_demand: None,
        stop_grace: Duration::ZERO,
    }
}
