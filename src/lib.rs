//! leasehold supervises the work on one SQS message in one pod: it receives the message, holds its
//! lease while the work on the S3 object goes on, deletes it on success only, and turns SIGTERM
//! into an ordered stop that never deletes. As a library it does so for a Rust function instead of
//! a command:
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
//! Such a program has leasehold's own command line, less the COMMAND: `my-program run --queue-url
//! …`, `my-program local ./inbox`. Everything holds for it that holds for a command: the lease, the
//! verdicts, the stop, results, checkpoints. It runs on threads of its own, so that a function
//! which computes for minutes costs no lease. The difference is that a function cannot be KILLed:
//! after `--stop-grace` it is dropped at its next `.await`, and one that comes to none is left
//! behind when the process ends.
//!
//! # The tour of the inside
//!
//! No promise is made about any of it from version to version.
//!
//! ```text
//! message in ─► parsed ─► routed ─► held ─► object fetched ─► command run ─► outputs published ─► judged ─► deleted or released ─► reported
//! Receiver      job/      job/      Visibility   └────────────── Processor ─────────────────┘      job/     VisibilityHeartbeat   Reporter
//!                                   Heartbeat
//! ```
//!
//! The tour, in the order of that journey:
//!
//! - `job` is the core, a crate of its own (`core/`): what an event means now, as pure functions
//!   over values. Start with `job::lifecycle`, and then see in `job::verdict` why nothing but
//!   success can delete.
//! - `actors` are four actors that carry out the core's effects, and the supervisor they report to.
//! - `work` is what the Processor does: fetch, run, publish, and the contract with the command.
//! - `ports` is the world, in our own words.
//! - `adapters` are what is behind it: SQS, S3, processes; a queue in memory and a folder as a
//!   bucket, which obey the same rules.
//! - `telemetry` is what a run reports: logs, metrics, the termination message, the probes'
//!   answers.
//! - `check` says what is wrong with the queue and the manifest before anything is received.
//! - `settings` is the way in: each flag, declared once; `local` runs the same actors on a folder;
//!   `install` brings the binary into an image that does not have it.
//!
//! - `app` is the program, and `library` what is at the root of this crate.
//!
//! Architecture invariant: `job ← ports ← work ← actors ← app`, and `ports ← adapters ← app`;
//! `tests/architecture.rs` holds the walls.

// Only the full build uses everything.
#![cfg_attr(not(feature = "aws"), allow(dead_code, unused_imports))]

/// All that is not the API: the files beside this one. Nobody else sees it, and so the compiler
/// finds what nothing uses; only our own tests, which are other crates, look inside, by the feature
/// `internals`.
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
#[expect(clippy::wildcard_imports, reason = "its modules have their names here, too")]
use inside::*;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub use inside::*;

#[doc(hidden)]
pub use inside::app::program;
pub use inside::library::{CancellationToken, Failure, Job, Program, Work, async_trait, main};
