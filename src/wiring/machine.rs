//! Checks that the work can run on this machine. A problem that is found before the first receive
//! does not use up an attempt of a message.

use std::path::Path;

use crate::adapters::process::find_program;
use crate::job::route::Task;
use crate::settings::resolve::WorkConfig;
use crate::work::fixed_paths::FixedPaths;

/// Checks that every command exists, that files can be created in the work directory, and links at
/// the fixed paths, and that buckets are mounted.
pub fn check_machine(work: &WorkConfig, runs_commands: bool) -> Result<(), String> {
    let has_server = work.handler.is_http() && !work.http.has_command;
    for task in work.settings.policy.tasks().filter(|_| runs_commands && !has_server) {
        find_program(&task.command.program).map_err(|why| match &work.job_types_file {
            Some(file) if task.name != Task::DEFAULT => {
                let name = &task.name;
                format!("job type {name} of {file}: {why}: add the command to this image, or correct it in {file}")
            }
            Some(_) | None => format!("the command: {why}"),
        })?;
    }
    check_work_dir(&work.work_dir.path).map_err(|error| work.work_dir.failed(&error))?;
    if let Some(mount) = work.fetch.mounts.iter().find(|mount| !mount.directory.is_dir()) {
        return Err(format!("--mount {mount}: there is no such directory: mount the bucket there"));
    }
    work.settings.policy.tasks().try_for_each(|task| FixedPaths::check(task, &work.work_dir.path))
}

/// Creates a folder, since only that proves that it is possible: some file systems claim to be
/// writable but refuse every write.
fn check_work_dir(path: &Path) -> std::io::Result<()> {
    tempfile::Builder::new().prefix("leasehold-").tempdir_in(path)?.close()
}

/// A limit of processes (`ulimit -u`, the pod's pids) also limits threads, and a failed start would
/// hang or panic during the work. So this starts all threads once, at the same time.
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
    for thread in &started {
        thread.thread().unpark();
    }
    for thread in started {
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

/// One each for the work, the log and DNS, two for files, and the command's process.
const THREADS: usize = 6;
