//! Can the work be done on this machine? What can be seen to be wrong before a message is received
//! costs no message an attempt.

use std::path::Path;

use crate::adapters::process::find_program;
use crate::job::route::Task;
use crate::settings::resolve::WorkConfig;

/// Is every command there, and can files be made where the work needs them?
pub fn check_machine(work: &WorkConfig, runs_commands: bool) -> Result<(), String> {
    for task in work.settings.policy.tasks().filter(|_| runs_commands) {
        find_program(&task.command.program).map_err(|why| match &work.job_types_file {
            Some(file) if task.name != Task::DEFAULT => {
                let name = &task.name;
                format!("job type {name} of {file}: {why}: add the command to this image, or correct it in {file}")
            }
            Some(_) | None => format!("the command: {why}"),
        })?;
    }
    check_work_dir(&work.work_dir.path).map_err(|error| work.work_dir.failed(&error))
}

/// Only making something there proves that it can be done: some file systems say that they may be
/// written, and take nothing.
fn check_work_dir(path: &Path) -> std::io::Result<()> {
    tempfile::Builder::new().prefix("leasehold-").tempdir_in(path)?.close()
}

/// A limit of processes (`ulimit -u`, the pod's pids) is one of threads too, and what cannot be
/// started later would hang or panic in the midst of the work. So all are started once, at the same
/// time.
pub fn check_threads() -> Result<(), String> {
    let mut started = Vec::new();
    let refused = loop {
        match std::thread::Builder::new().stack_size(64 << 10).spawn(std::thread::park) {
            Ok(thread) => started.push(thread),
            Err(error) => break Some(error),
        }
        if started.len() == THREADS {
            break None;
        }
    };
    let count = started.len();
    for thread in started {
        thread.thread().unpark();
        let _ = thread.join();
    }
    match refused {
        None => Ok(()),
        Some(error) => Err(format!(
            "only {count} of {THREADS} threads can be started ({error}): raise the limit of processes (ulimit -u, or the \
             pod's pids limit)"
        )),
    }
}

/// Two for the runtime, one for the log, two for what blocks (files, names to look up), and the
/// command's process.
const THREADS: usize = 6;
