//! A queue and a bucket without a server, for `leasehold local`, for our tests, and for users'
//! tests without a network. They follow the rules of SQS and S3.

pub mod folder;
pub mod memory;
pub mod outbox;
pub mod rehearsal;
pub mod store;
