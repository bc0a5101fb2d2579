//! A checkpoint as one file: a tar archive of `JOB_CHECKPOINT_DIR`.
//!
//! ```text
//! leasehold.json   version, and how long the command has worked
//! data/…           the files of the directory
//! ```
//!
//! Anyone with access to the bucket may have written an archive. It is checked while it is read, so
//! that it can neither write outside the directory nor use up the pod's memory. An error names the
//! entry's number and the problem; it never quotes names or bytes of the state.

mod format;
mod pack;
mod unpack;

pub use format::{ArchiveInfo, Identity, OUT_OF_TIME, Packed, Unpacked};
pub use pack::pack;
pub use unpack::unpack;

#[cfg(test)]
mod tests;
