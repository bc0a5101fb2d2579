//! The implementations of the ports: SQS and S3, a queue in memory and a folder as a bucket, the
//! payloads of long messages, the command's processes.
//!
//! Architecture invariant: only `aws` (and `http`, its client) uses an SDK, and only `process`
//! starts or signals a process.

pub mod accept;
#[cfg(feature = "aws")]
pub mod aws;
#[cfg(any(feature = "aws", feature = "internals"))]
pub mod batches;
pub mod batching;
#[cfg(feature = "aws")]
pub mod http;
pub mod http_handler;
pub mod lambda;
pub mod local;
pub mod memory_limit;
#[cfg(any(feature = "aws", feature = "internals"))]
pub mod payloads;
pub mod process;
pub mod progress;
pub mod publish;
mod result_file;
pub mod url;
pub mod warm;
