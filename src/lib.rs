//! leasehold supervises the work on SQS messages about S3 objects: it receives a message, holds its
//! lease during the work, deletes it only on success, and never deletes during a graceful shutdown.
//! As a library, it does so for a [`Handler`]: an async function.
//!
//! ```no_run
//! use leasehold::{Error, Job};
//!
//! async fn resize(job: Job) -> Result<(), Error> {
//!     let image = job.bytes().await?;
//!     tracing::info!(bytes = image.len(), attempt = job.receive_count, "resizing");
//!     Ok(())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     leasehold::main(resize)
//! }
//! ```
//!
//! It needs two dependencies, leasehold and tracing. `cargo run -- local src` tries it on the files
//! of a folder, and `cargo run -- run --queue-url "$QUEUE_URL"` processes a message.
//!
//! There are two entry points. A [`Program`] is a whole program with leasehold's command line, log and
//! signals. A [`Worker`] runs beside the other tasks of a service: it has no command line and no
//! global state. A [`Failure`] decides when a message is retried. With the feature `testing`,
//! `testing::TestWorker` tests a handler without AWS.
//!
//! The rules for commands apply to handlers, too: the lease, the verdicts, the stop, results,
//! checkpoints. The difference is that a handler cannot be killed: after the stop grace, it is
//! dropped at its next `.await`. One that reaches no `.await` is abandoned when the process ends.
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
//!   functions over values. Start with `job::lifecycle`, and then see in `job::verdict` what permits
//!   a delete.
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
//! - `wiring` connects the parts for `app`, which is the program, and for `library`, the public API
//!   at the root of this crate: its `in_process` runs a handler like a command.
//!
//! Architecture invariant: `job ← ports ← work ← actors ← app`, and `ports ← adapters ← app`;
//! `tests/architecture.rs` enforces it.

// Only the full build uses everything.
#![cfg_attr(not(all(feature = "check", feature = "local")), allow(unused))]

/// The modules that are not the API. They are private, so that the compiler finds unused code. Our
/// tests, which are other crates, get access by the feature `internals`.
#[path = ""]
mod inside {
    pub mod actors;
    pub mod adapters;
    #[cfg(feature = "cli")]
    pub mod app;
    #[cfg(feature = "check")]
    pub mod check;
    #[cfg(feature = "cli")]
    pub mod install;
    pub mod library;
    #[cfg(feature = "local")]
    pub mod local;
    pub mod ports;
    pub mod settings;
    pub mod telemetry;
    pub mod wiring;
    pub mod work;

    pub use leasehold_core as job;
}

#[cfg(not(feature = "internals"))]
#[expect(clippy::wildcard_imports, reason = "re-exports all modules under their names")]
use inside::*;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub use inside::*;

#[cfg(feature = "cli")]
pub use clap;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use inside::app::program;
#[cfg(feature = "testing")]
pub use inside::library::testing;
pub use inside::library::{
    BatchHandler, Batches, Error, Failure, Handler, Job, MissingObject, OnSuccess, OneJob, Outcome,
};
#[cfg(feature = "cli")]
pub use inside::library::{Program, main};
#[cfg(feature = "aws")]
pub use inside::library::{RunError, SettingsError, Summary, Worker};
pub use prometheus;
pub use tokio_util::sync::CancellationToken;
