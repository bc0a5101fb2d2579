//! A checkpoint as one file: a tar archive of `JOB_CHECKPOINT_DIR`.
//!
//! ```text
//! leasehold.json   version, and how long the command has worked
//! data/…           what was in the directory
//! ```
//!
//! An archive may have been written by anybody with access to the bucket. It is checked while it is
//! read, so that it neither leads to another place nor uses up the pod's memory. An error says what
//! is wrong with which entry; it never quotes names or bytes of the state.

mod format;
mod pack;
mod unpack;

pub use format::{About, Identity, NO_TIME, Packed, Unpacked};
pub use pack::pack;
pub use unpack::unpack;

#[cfg(test)]
mod tests;
