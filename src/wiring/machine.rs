//! Checks that the work can run on this machine. A problem that is found before the first receive
//! does not use up an attempt of a message.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Builder;

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

pub fn check_threads() -> Result<(), String> {
    ThreadCheck::start(|| ()).finish()
}

/// A limit of processes (`ulimit -u`, the pod's pids) also limits threads, and a failed start would
/// hang or panic during the work. So this starts all threads once, at the same time: a sixth of the
/// time to the first receive, so on a thread of its own, while the command line is parsed.
pub struct ThreadCheck {
    is_done: Receiver<Result<(), String>>,
}

impl ThreadCheck {
    /// Then, on the same thread, `then` prepares what else the start will need.
    pub fn start(then: impl FnOnce() + Send + 'static) -> Self {
        let (done, is_done) = sync_channel(1);
        let check = done.clone();
        let check = move || {
            // A command line without work does not wait for it.
            let _ = check.send(start_threads(THREADS - 1));
            then();
        };
        if let Err(error) = Builder::new().spawn(check) {
            let _ = done.send(Err(too_few(0, &error)));
        }
        Self { is_done }
    }

    /// Waits for the result. Before it, no other thread should be started.
    pub fn finish(self) -> Result<(), String> {
        self.is_done.recv().unwrap_or_else(|_| Err("the check of the threads panicked".to_owned()))
    }
}

/// Starts threads that end together.
fn start_threads(count: usize) -> Result<(), String> {
    let mut started = Vec::with_capacity(count);
    let refused = loop {
        if started.len() == count {
            break None;
        }
        match Builder::new().stack_size(64 << 10).spawn(std::thread::park) {
            Ok(thread) => started.push(thread),
            Err(error) => break Some(error),
        }
    };
    let running = 1 + started.len();
    for thread in &started {
        thread.thread().unpark();
    }
    for thread in started {
        let _ = thread.join();
    }
    refused.map_or(Ok(()), |error| Err(too_few(running, &error)))
}

fn too_few(running: usize, error: &std::io::Error) -> String {
    format!(
        "only {running} of {THREADS} threads can be started ({error}): raise the limit of processes (ulimit -u, or the \
         pod's pids limit)"
    )
}

/// One each for the work, the log and DNS, two for files, and two for processes: the command, and the
/// guard that ends commands if leasehold is killed and is not PID 1.
const THREADS: usize = 7;
