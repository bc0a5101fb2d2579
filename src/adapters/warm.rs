//! A warm worker: it is started with the first message, and works on one message after
//! another.
//!
//! Architecture invariant: it is one long run of a [`Runner`], so its process group, its signals,
//! its output and its end are those of a command.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Span, info, warn};

use super::result_file;
use crate::ports::{Activity, Command, Exited, OutOfMemory, Runner, StartError};

/// Starts processes that stay, for the messages of one pod.
pub struct WarmProcesses {
    runner: Arc<dyn Runner>,
    /// The parent of their temporary directories.
    work_dir: PathBuf,
    /// Ends those that are idle.
    stop: CancellationToken,
    /// How many have ended in a row before they took a message.
    failures: Arc<AtomicU32>,
}

/// After this many failures in a row, no further process is started: each of them uses up one
/// receive of a message.
const MOST_FAILURES: u32 = 3;

impl WarmProcesses {
    /// When `stop` is cancelled, each process that is idle, or becomes idle, gets SIGTERM, and SIGKILL
    /// after its stop grace. One that works is ended like a command: by [`WarmProcess::halt`].
    pub fn new(runner: Arc<dyn Runner>, work_dir: &Path, stop: &CancellationToken) -> Self {
        Self { runner, work_dir: work_dir.to_owned(), stop: stop.clone(), failures: Arc::default() }
    }

    /// Has the pod been asked to stop?
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// For the next start.
    pub fn serving(&self) -> Serving {
        Serving { has_served: Arc::default(), failures: self.failures.clone() }
    }

    /// Starts the command with these variables instead of those of its job. Must be called in a
    /// task.
    pub fn start(
        &self,
        command: &Command,
        variables: Vec<(OsString, OsString)>,
        serving: &Serving,
    ) -> Result<WarmProcess, StartError> {
        let program = command.program.to_string_lossy().into_owned();
        if self.failures.load(Ordering::Relaxed) >= MOST_FAILURES {
            return Err(given_up(program, "not started again"));
        }
        let folder = self.folder().map_err(|error| StartError {
            program: program.clone(),
            why: format!("--work-dir {}: {error}", self.work_dir.display()),
            ends_the_run: false,
        })?;
        let tmp = (OsString::from("TMPDIR"), folder.path().as_os_str().to_owned());
        let variables = Some(variables.into_iter().chain([tmp]).collect());
        let command = Command { variables, stdin: None, ..command.clone() };
        let (halt, activity) = (CancellationToken::new(), Activity::default());
        let ((end, ended), (is_working, mut working)) =
            (watch::channel(None), watch::channel(true));
        let run = {
            let (runner, halt, activity) = (self.runner.clone(), halt.clone(), activity.clone());
            let (serving, stop) = (serving.clone(), self.stop.clone());
            async move {
                info!(program, "starting the process for the messages of this pod");
                let stopped_while_idle = async {
                    stop.cancelled().await;
                    // An error means that the process is no longer needed.
                    let _ = working.wait_for(|is_working| !is_working).await;
                    halt.cancel();
                    std::future::pending().await
                };
                let how = tokio::select! {
                    how = runner.run(command, halt.clone(), activity) => how,
                    how = stopped_while_idle => how,
                };
                remove(folder);
                let has_failed =
                    !serving.has_served.load(Ordering::Relaxed) && !stop.is_cancelled();
                let how = if has_failed { counted(&serving.failures, program, how) } else { how };
                // Fails only if the process is no longer needed.
                let _ = end.send(Some(how));
            }
        };
        let run = AbortOnDropHandle::new(tokio::spawn(run));
        Ok(WarmProcess { halt, activity, is_working, ended, _run: run })
    }

    fn folder(&self) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix("leasehold-").tempdir_in(&self.work_dir)
    }
}

/// Whether a process has taken a message, so that its start succeeded.
#[derive(Clone)]
pub struct Serving {
    has_served: Arc<AtomicBool>,
    failures: Arc<AtomicU32>,
}

impl Serving {
    pub fn record(&self) {
        self.has_served.store(true, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
    }
}

/// Counts a process that ended before it took a message.
fn counted(
    failures: &AtomicU32,
    program: String,
    how: Result<Exited, StartError>,
) -> Result<Exited, StartError> {
    if failures.fetch_add(1, Ordering::Relaxed) + 1 < MOST_FAILURES {
        return how;
    }
    let last = match how {
        Ok(Exited { exit, out_of_memory: None, .. }) => format!("the last one with {exit}"),
        Ok(Exited {
            out_of_memory: Some(OutOfMemory::Guard(why) | OutOfMemory::Kernel(why)),
            ..
        }) => {
            format!("the last one ran out of memory: {why}")
        }
        Err(error) => error.why,
    };
    Err(given_up(program, &last))
}

fn given_up(program: String, last: &str) -> StartError {
    let why = format!(
        "it ended {MOST_FAILURES} times in a row before it took a message ({last}): correct what it does at its start; its output is in the log"
    );
    StartError { program, why, ends_the_run: true }
}

/// On another thread, since it may contain many files: a stop has no time to wait for it. What is
/// left when leasehold ends stays in the work directory.
fn remove(folder: TempDir) {
    tokio::task::spawn_blocking(move || {
        let path = folder.path().to_owned();
        if let Err(error) = folder.close() {
            warn!(path = %path.display(), %error, "the temporary files of the process cannot be removed");
        }
    });
}

/// The process of a warm worker. Dropping it kills the process.
pub struct WarmProcess {
    halt: CancellationToken,
    activity: Activity,
    is_working: watch::Sender<bool>,
    ended: watch::Receiver<Option<Result<Exited, StartError>>>,
    _run: AbortOnDropHandle<()>,
}

impl WarmProcess {
    /// Its output belongs to the messages with these activities, and to the span, until the next
    /// call.
    pub fn works_on(&self, activities: Vec<Activity>, span: Span) {
        self.is_working.send_replace(true);
        self.activity.works_on(activities, span);
    }

    /// Its work is done, until the next [`works_on`](Self::works_on).
    pub fn is_idle(&self) {
        self.is_working.send_replace(false);
    }

    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Was it asked to end? An answer after that proves nothing.
    pub fn is_halted(&self) -> bool {
        self.halt.is_cancelled()
    }

    /// Waits for its end. May be called several times, and cancelled.
    pub async fn ended(&self) -> Result<Exited, StartError> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(how)) => how.clone(),
            // Its task panicked, which killed it.
            Ok(None) | Err(_) => Ok(Exited::killed()),
        }
    }

    /// Ends it: SIGTERM, and SIGKILL after the stop grace. Returns when all its processes have
    /// ended.
    pub async fn halt(&self) -> Result<Exited, StartError> {
        self.halt.cancel();
        self.ended().await
    }
}

/// Appends a line to the result file of a job. An error must not fail the work.
pub(super) fn report(file: &Path, line: &Value) {
    let _ = result_file::append(file, line, u64::MAX);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::job::outcome::Exit;
    use crate::ports::job_facts::JobFacts;

    const SOON: Duration = Duration::from_mins(1);

    /// A process that ends as its program's name says, when it is halted or after no time.
    struct Fake;

    #[async_trait::async_trait]
    impl Runner for Fake {
        async fn run(
            &self,
            command: Command,
            halt: CancellationToken,
            activity: Activity,
        ) -> Result<Exited, StartError> {
            activity.record();
            let exit = match command.program.to_str().unwrap() {
                "stays" => {
                    halt.cancelled().await;
                    Exit::Signal(15)
                }
                code => Exit::Code(code.parse().unwrap()),
            };
            Ok(Exited { exit, ..Exited::killed() })
        }
    }

    fn command(program: &str) -> Command {
        Command {
            program: program.into(),
            args: Vec::new(),
            job: JobFacts::example("m", Path::new("")),
            variables: None,
            stdin: None,
            fetch: None,
            on_demand: None,
            stop_grace: Duration::ZERO,
        }
    }

    fn processes(work_dir: &Path, stop: &CancellationToken) -> WarmProcesses {
        WarmProcesses::new(Arc::new(Fake), work_dir, stop)
    }

    async fn exit(process: &WarmProcess) -> Result<Exit, StartError> {
        timeout(SOON, process.ended()).await.unwrap().map(|ended| ended.exit)
    }

    #[tokio::test]
    async fn the_third_process_in_a_row_that_takes_no_message_is_the_last() {
        let (home, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let processes = processes(home.path(), &stop);
        let serving = processes.serving();
        let start =
            |program: &str| processes.start(&command(program), Vec::new(), &processes.serving());
        for _ in 0..2 {
            assert_eq!(exit(&start("1").unwrap()).await, Ok(Exit::Code(1)));
        }
        // One that took a message resets the count.
        let served = processes.start(&command("stays"), Vec::new(), &serving).unwrap();
        serving.record();
        assert_eq!(timeout(SOON, served.halt()).await.unwrap().unwrap().exit, Exit::Signal(15));
        for _ in 0..2 {
            assert_eq!(exit(&start("7").unwrap()).await, Ok(Exit::Code(7)));
        }
        let error = exit(&start("7").unwrap()).await.unwrap_err();
        assert!(error.ends_the_run && error.why.contains("exit code 7"), "{error}");
        let error = start("stays").map(drop).unwrap_err();
        assert!(error.ends_the_run && error.why.contains("3 times in a row"), "{error}");
    }

    #[tokio::test]
    async fn a_stop_ends_every_process_once_it_is_idle_and_is_not_its_failure() {
        let (home, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let processes = processes(home.path(), &stop);
        let start =
            |_| processes.start(&command("stays"), Vec::new(), &processes.serving()).unwrap();
        let started: Vec<_> = (0..4).map(start).collect();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 4);
        stop.cancel();
        for process in &started {
            assert!(!process.has_ended() && !process.is_halted(), "it works");
            process.is_idle();
            assert_eq!(exit(process).await, Ok(Exit::Signal(15)));
        }
        becomes_empty(home.path()).await;
    }

    async fn becomes_empty(folder: &Path) {
        timeout(SOON, async {
            while fs::read_dir(folder).unwrap().next().is_some() {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }

    /// All threads for blocking work are busy, as with a file system that hangs.
    #[test]
    fn the_end_of_a_process_does_not_wait_for_the_removal_of_its_files() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (release, released) = std::sync::mpsc::channel::<()>();
        runtime.block_on(async {
            let (home, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
            let processes = processes(home.path(), &stop);
            let process = processes.start(&command("0"), Vec::new(), &processes.serving()).unwrap();
            tokio::task::spawn_blocking(move || released.recv());
            assert_eq!(exit(&process).await, Ok(Exit::Code(0)));
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
            release.send(()).unwrap();
            becomes_empty(home.path()).await;
        });
    }

    #[tokio::test]
    async fn output_is_activity_of_the_messages_in_work() {
        let (of_process, of_message) = (Activity::default(), Activity::default());
        of_process.record();
        of_process.works_on(vec![of_message.clone()], Span::none());
        assert!(!of_message.take());
        of_process.record();
        assert!(of_message.take());
        of_process.works_on(Vec::new(), Span::none());
        of_process.record();
        assert!(!of_message.take());
    }

    #[tokio::test]
    async fn a_dropped_process_is_removed_with_its_files() {
        let (home, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let processes = processes(home.path(), &stop);
        let started = processes.start(&command("stays"), Vec::new(), &processes.serving());
        drop(started.unwrap());
        becomes_empty(home.path()).await;
    }
}
