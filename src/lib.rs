//! leasehold supervises the work on one SQS message in one pod: it receives the message, holds its
//! lease during the work on the S3 object, deletes it only on success, and turns SIGTERM into a
//! graceful shutdown that never deletes. As a library, it does so for a Rust function instead of a
//! command:
//!
//! ```no_run
//! use leasehold::{Failure, Job, Work, async_trait};
//!
//! struct Resize;
//!
//! #[async_trait]
//! impl Work for Resize {
//!     async fn process(&self, job: Job) -> Result<(), Failure> {
//!         let image = tokio::fs::read(job.input()?).await?;
//!         println!("{} bytes of {:?}, attempt {}", image.len(), job.key, job.receive_count);
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     leasehold::main(Resize)
//! }
//! ```
//!
//! Such a program has leasehold's command line without the COMMAND: `my-program run --queue-url …`,
//! `my-program local ./inbox`. The rules for commands apply to functions, too: the lease, the
//! verdicts, the stop, results, checkpoints. A function runs on separate threads, so that one which
//! computes for minutes does not lose its lease. The difference is that a function cannot be
//! killed: after `--stop-grace` it is dropped at its next `.await`. A function that reaches no
//! `.await` is abandoned when the process ends.
//!
//! # A tour of the internals
//!
//! The internals may change in any version.
//!
//! ```text
//! message in ─► parsed ─► routed ─► held ─► object fetched ─► command run ─► outputs published ─► judged ─► deleted or released ─► reported
//! Receiver      job/      job/      Visibility   └────────────── Processor ─────────────────┘      job/     VisibilityHeartbeat   Reporter
//!                                   Heartbeat
//! ```
//!
//! The modules, in the order of that journey:
//!
//! - `job` is the core, a separate crate (`core/`): it maps states and events to decisions, in pure
//!   functions over values. Start with `job::lifecycle`, and then see in `job::verdict` why only
//!   success can delete.
//! - `actors` are four actors that carry out the core's effects, and the supervisor they report to.
//! - `work` has the stages of the Processor: fetch, run, publish, and the contract with the
//!   command.
//! - `ports` are traits for the outside world.
//! - `adapters` implement the ports: SQS, S3, processes; a queue in memory and a folder as a
//!   bucket, which follow the same rules.
//! - `telemetry` has the reports of a run: logs, metrics, the termination message, the probes'
//!   answers.
//! - `check` finds problems of the queue and the manifest before the first receive.
//! - `settings` declares each flag once; `local` runs the same actors on a folder; `install` copies
//!   the binary into an image that does not have it.
//! - `app` is the program, and `library` the public API at the root of this crate.
//!
//! Architecture invariant: `job ← ports ← work ← actors ← app`, and `ports ← adapters ← app`;
//! `tests/architecture.rs` enforces it.

// Only the full build uses everything.
#![cfg_attr(not(feature = "aws"), allow(dead_code, unused_imports))]

/// The modules that are not the API. They are private, so that the compiler finds unused code. Our
/// tests, which are other crates, get access by the feature `internals`.
#[path = ""]
mod inside {
    pub mod actors;
    pub mod adapters;
    pub mod app;
    #[cfg(feature = "aws")]
    pub mod check;
    pub mod install;
    pub mod library;
    pub mod local;
    pub mod ports;
    pub mod settings;
    pub mod telemetry;
    pub mod work;

    pub use leasehold_core as job;
}

#[cfg(not(feature = "internals"))]
#[expect(clippy::wildcard_imports, reason = "re-exports all modules under their names")]
use inside::*;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub use inside::*;

#[doc(hidden)]
pub use inside::app::program;
pub use inside::library::{CancellationToken, Failure, Job, Program, Work, async_trait, main};
