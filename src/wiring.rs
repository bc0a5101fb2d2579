//! Connects the parts, for the subcommands and for programs that embed leasehold.

#[cfg(feature = "aws")]
pub mod connect;
pub mod handlers;
pub mod machine;
