//! Helpers shared by the tests of the core and of the program.

use std::sync::Arc;
use std::time::Duration;

use leasehold_core::lease::{CEILING, Strategy};
use leasehold_core::object_attributes::ObjectAttributes;
use leasehold_core::policy::Policy;
use leasehold_core::route::{CommandLine, Input, LambdaEvent, Limits, Selection, Task};
use leasehold_core::settings::{Polling, Settings};
use leasehold_core::stop::StopPlan;
use leasehold_core::verdict::{OnStop, Retry, RetryPolicy};

pub const S: Duration = Duration::from_secs(1);
pub const MINUTE: Duration = Duration::from_mins(1);
/// The visibility timeout of a run without any flags.
pub const VISIBILITY: Duration = Duration::from_mins(2);

/// A command called `command`, without any flags.
pub fn task() -> Task {
    let command = CommandLine { program: "command".into(), args: Vec::new() };
    Task {
        name: Task::DEFAULT.to_owned(),
        command,
        input: Input::File,
        lambda_event: LambdaEvent::Sqs,
        input_at: None,
        output_at: None,
        missing_object: None,
        stall_timeout: None,
        output: None,
        output_attributes: ObjectAttributes::default(),
        on_success: None,
        checkpoint: None,
    }
}

/// The settings of a run without any flags.
pub fn settings() -> Settings {
    Settings {
        policy: Policy {
            selection: Selection::default(),
            accept_raw: false,
            object_from: None,
            job_types: Vec::new(),
            task: Some(Arc::new(task())),
            limits: Limits {
                ceiling: CEILING,
                strategy: Strategy::Heartbeat,
                visibility: VISIBILITY,
                max_duration: 10 * MINUTE,
                stop_grace: 20 * S,
                retry: RetryPolicy {
                    retry: Retry::Backoff { min: 10 * S, max: 15 * MINUTE },
                    on_stop: OnStop::Release,
                    permanent_exit_codes: vec![65],
                },
            },
            max_messages: 1,
            fifo: false,
        },
        polling: Polling { wait: 10 * S, longest_poll: 10 * S, give_up: 2 * MINUTE },
        stop: StopPlan { termination_grace: 30 * S, reserve: 10 * S },
    }
}

/// A number from a variable of the test's environment.
#[expect(clippy::disallowed_methods, reason = "the environment of the test, not of the program")]
pub fn asked_for(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// An S3 notification about one object.
pub fn object_created(key: &str) -> String {
    serde_json::json!({ "Records": [{
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": "inbox" }, "object": { "key": key, "size": 4, "eTag": "e", "sequencer": "1" } },
    }]})
    .to_string()
}
