//! All integration tests are one binary, so that the AWS SDK is linked once.

#![expect(clippy::unwrap_used, reason = "an unwrap that panics fails the test")]
#![expect(clippy::too_many_lines, reason = "a test is a list of steps and assertions")]

mod support;

mod another_store;
mod architecture;
mod arguments;
mod attempts;
mod batches;
mod chaos;
mod checkpoint;
mod deploy;
mod docs;
mod end_to_end;
mod examples;
mod fixed_paths;
mod hanging_disk;
mod http_handler;
mod idempotency;
mod inherited;
mod job_types;
mod journey;
mod lambda;
mod large_objects;
mod library;
mod library_batch;
mod library_page;
mod library_settings;
mod library_worker;
mod local;
mod memory;
mod memory_vm;
mod metrics;
mod mounts;
mod payloads;
mod prefetch;
mod process;
mod publish;
mod queue_contract;
mod readme;
mod release;
mod s3_requests;
mod scenarios;
mod settings;
mod simulation;
mod terminal;
mod workers_command;
mod workers_message;
