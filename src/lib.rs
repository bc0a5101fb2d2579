//! leasehold supervises the work on one SQS message in one pod: it receives the message, holds its lease
//! while a command works on the S3 object, deletes it on success only, and turns SIGTERM into an ordered
//! stop that never deletes.
//!
//! ```text
//! message in ─► parsed ─► routed ─► held ─► object fetched ─► command run ─► outputs published ─► judged ─► deleted or released ─► reported
//! Receiver      job/      job/      Visibility   └────────────── Processor ─────────────────┘      job/     VisibilityHeartbeat   Reporter
//!                                   Heartbeat
//! ```
//!
//! The tour, in the order of that journey:
//!
//! - [`job`] is the core: what an event means now, as pure functions over values. Start with
//!   [`job::lifecycle`], and then see in [`job::verdict`] why nothing but success can delete.
//! - [`actors`] are four actors that carry out the core's effects, and the supervisor they report to.
//! - [`work`] is what the Processor does: fetch, run, publish, and the contract with the command.
//! - [`ports`] is the world, in our own words, and its adapters: SQS, S3, processes; a queue in memory
//!   and a folder as a bucket, which obey the same rules.
//! - [`telemetry`] is what a run reports: logs, metrics, the termination message, the probes' answers.
//! - [`check`] says what is wrong with the queue and the manifest before anything is received.
//! - [`cli`], [`job_types`] and [`config`] are the way in; [`local`] runs the same actors on a folder; [`install`] brings the binary
//!   into an image that does not have it.
//!
//! - [`app`] is the program, and [`library`] the way to one whose work is a Rust function.
//!
//! Architecture invariant: `job ← ports ← work ← actors ← main`; `tests/architecture.rs` holds the walls.

pub mod actors;
pub mod app;
pub mod check;
pub mod cli;
pub mod config;
pub mod install;
pub mod job;
pub mod job_types;
pub mod library;
pub mod local;
pub mod ports;
pub mod telemetry;
pub mod work;
