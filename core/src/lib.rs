//! The core: values and decisions, in the order of one message's journey.
//!
//! Architecture invariant: nothing in this crate waits, reads a clock, does input or output or
//! knows about actors. A point in time is a [`Duration`](std::time::Duration) since the run began
//! (its name ends in `_at`), passed in by the caller. So tests can tabulate, search and replay
//! every decision.

pub mod arguments;
pub mod backoff;
pub mod claim;
pub mod delivery;
pub mod event;
pub mod keep_reason;
pub mod keeper;
pub mod key_glob;
pub mod lease;
pub mod lifecycle;
pub mod mount;
pub mod notification;
pub mod object_attributes;
pub mod object_from;
pub mod on_success;
pub mod outcome;
pub mod policy;
pub mod report;
pub mod route;
pub mod run_outcome;
pub mod s3_event;
pub mod s3_location;
pub mod settings;
pub mod stop;
pub mod verdict;
