//! All integration tests, in one binary: linking the AWS SDK once is enough.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::too_many_lines, reason = "a test is a list of what is done and what is seen")]

mod support;

mod architecture;
mod chaos;
mod checkpoint;
mod deploy;
mod docs;
mod end_to_end;
mod examples;
mod idempotency;
mod job_types;
mod journey;
mod library;
mod local;
mod metrics;
mod process;
mod publish;
mod queue_contract;
mod readme;
mod release;
mod scenarios;
mod settings;
mod simulation;
mod terminal;
