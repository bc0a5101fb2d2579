//! The public API: work that is a Rust function instead of a command.

#![warn(missing_docs)]

mod failure;
pub mod handler;
pub mod in_process;
mod job;
mod outcome;
#[cfg(feature = "cli")]
mod program;
mod settings;
#[cfg(feature = "aws")]
mod summary;
#[cfg(feature = "testing")]
pub mod testing;
pub mod threads;
#[cfg(feature = "aws")]
mod worker;

pub use failure::{Error, Failure};
pub use handler::{BatchHandler, Batches, Handler, OneJob};
pub use job::Job;
pub use outcome::Outcome;
#[cfg(feature = "cli")]
pub use program::{Program, main};
pub use settings::{MissingObject, OnSuccess};
#[cfg(feature = "aws")]
pub use summary::Summary;
#[cfg(feature = "aws")]
pub use worker::{RunError, SettingsError, Worker};
