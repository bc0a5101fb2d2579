//! Settings that have no effect where a Rust function does the work. They are refused, with what to
//! use instead; a snapshot of `tests/library_settings.rs` lists all settings.

use super::error::SettingError;
use super::pod::WorkSettings;
use super::task::TaskSettings;
use crate::job::route::Input;

/// Names of flags without dashes, and what to use instead.
pub type Group = (&'static [&'static str], &'static str);

/// No command, Lambda function or server does the work.
pub const COMMAND_ONLY: [Group; 2] = [
    (&["handler", "http-body", "lambda-event", "ready-timeout"], HANDLER_WORKS),
    (&["permanent-exit-codes", "permanent-http-codes"], FAILURE),
];

const HANDLER_WORKS: &str = "a handler in Rust does the work, and no command runs; remove it";
const FAILURE: &str = "a handler in Rust does the work, and returns Failure::permanent; remove it";

/// The handler takes one job.
pub const BATCHES_ONLY: [Group; 1] = [(
    &["batch-size", "batch-window"],
    "the handler takes one job; use a batch handler, or remove it",
)];

/// A worker reports only to its caller, and does not own the process.
pub const PROGRAM_ONLY: [Group; 4] = [
    (
        &[
            "listen",
            "namespace",
            "push-interval",
            "pushgateway",
            "pushgateway-basic-auth-file",
            "pushgateway-bearer-token-file",
            "pushgateway-job",
        ],
        "only a Program has it; in a Worker, use registry for the metrics",
    ),
    (&["log-format"], "your tracing subscriber writes the log; remove it"),
    (&["memory-guard"], "the memory belongs to your whole process; remove it"),
    (&["termination-log"], "run returns what happened; remove it"),
];

/// Without them, a worker runs until it is stopped.
pub const NEEDS_AN_END: [Group; 1] = [(
    &["max-messages", "wait"],
    "the worker runs until it is stopped; use Worker::max_messages or until_empty",
)];

/// Settings of `local` that a `TestWorker` has in another form, or not at all.
#[cfg(feature = "testing")]
pub const LOCAL_ONLY: [Group; 7] = [
    (&["attempts"], "TestRun::attempts has all attempts; remove it"),
    (
        &["concurrency"],
        "a TestWorker calls its handler for one job or batch after another; remove it",
    ),
    (&["max-receive-count"], "use TestWorker::max_receive_count"),
    (&["outbox"], "TestRun::output has the results; remove it"),
    (&["quiet", "verbose"], "your tracing subscriber writes the log; remove it"),
    (&["rehearse"], "use TestWorker::lose_leases or redeliver"),
    (&["state"], "each run has a folder of its own; remove it"),
];

/// What to use instead of a flag.
pub(super) fn instead(groups: &[Group], flag: &str) -> Option<&'static str> {
    groups.iter().find(|(flags, _)| flags.contains(&flag)).map(|(_, instead)| *instead)
}

/// Refuses a flag of these groups.
pub fn refuse<'a>(
    groups: &[Group],
    given: impl IntoIterator<Item = &'a str>,
) -> Result<(), SettingError> {
    for flag in given {
        if let Some(instead) = instead(groups, flag) {
            return Err(SettingError::NoEffect { setting: format!("--{flag}"), instead });
        }
    }
    Ok(())
}

/// Refuses the values that only a command can use, also in job types.
pub fn refuse_command_only(work: &WorkSettings) -> Result<(), SettingError> {
    if let Some((setting, instead)) = command_only(&work.task, &[]) {
        return Err(SettingError::NoEffect { setting: format!("--{setting}"), instead });
    }
    let Some(file) = &work.job_types else { return Ok(()) };
    for task in &file.job_types {
        let fields = [
            ("command", !task.command.is_empty()),
            ("lambda-event", task.lambda_event.is_some()),
            ("permanent-exit-codes", !task.permanent_exit_codes.is_empty()),
        ];
        if let Some((setting, instead)) = command_only(task, &fields) {
            let flag = setting.split(' ').next().unwrap_or_default();
            let at = task.source.position(&format!("--{flag}"));
            let at = at.in_file(file.path.as_deref().unwrap_or_default());
            let setting = format!("--job-types {at}: {setting}");
            return Err(SettingError::NoEffect { setting, instead });
        }
    }
    Ok(())
}

/// The first of these fields that is set, or the input of a command.
fn command_only(
    task: &TaskSettings,
    fields: &[(&'static str, bool)],
) -> Option<(&'static str, &'static str)> {
    let set = fields.iter().find(|(_, is_set)| *is_set);
    let set =
        set.map(|(field, _)| (*field, instead(&COMMAND_ONLY, field).unwrap_or(HANDLER_WORKS)));
    let stdin = || ("input stdin", "a handler reads Job::stream; use file or none");
    set.or_else(|| (task.input == Some(Input::Stdin)).then(stdin))
}
