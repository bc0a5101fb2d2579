//! A queue and a bucket without a server: for `leasehold local`, our own tests, and users' tests
//! without a network. They obey the rules of the real ones.

pub mod folder;
pub mod memory;
pub mod outbox;
pub mod rehearsal;
pub mod store;
