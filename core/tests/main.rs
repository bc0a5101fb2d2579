//! The tests of the core: no server, no process, no clock.

#![expect(clippy::unwrap_used, reason = "a test that cannot continue has failed")]

mod lifecycle_table;
mod notification;
mod owner_tables;
mod search;
mod support;
