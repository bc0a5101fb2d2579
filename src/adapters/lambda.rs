//! Runs Lambda functions: the command is a client of Lambda's Runtime API, and stays for many
//! messages.
//!
//! ```text
//! run (one call for each message) ─► a batch ─► an idle process, or a new one ─► next … response
//!            ▲                                                                            │
//!            └──────────── succeeded or failed, for each message of the batch ◄───────────┘
//! ```
//!
//! Architecture invariant: an invocation succeeds only with a response of the function. Whatever
//! ends the process is a failure of the messages in work, even exit code 0.

mod batch;
mod event;
mod function;
mod response;
mod runtime_api;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::{Notify, OnceCell, Semaphore, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Span, warn};

use super::progress::ProgressServer;
use super::warm::WarmProcesses;
use crate::job::outcome::Exit;
use crate::ports::{Activity, Command, Exited, Runner, StartError};
use batch::{CommandKey, Ended, FunctionProcess, Member};
pub use function::Source;

/// How messages share invocations and processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// The most messages of an invocation.
    pub size: usize,
    /// How long an invocation waits for more messages.
    pub window: Duration,
    /// The most processes.
    pub processes: usize,
}

/// What a function finds beside its event.
#[derive(Debug, Clone)]
pub struct Function {
    pub source: Source,
    /// Of the container, in bytes.
    pub memory_limit: Option<u64>,
    /// Is this variable set in our environment?
    pub is_set: fn(&str) -> bool,
}

/// Runs the functions of one pod.
pub struct Lambda(Arc<Shared>);

struct Shared {
    processes: WarmProcesses,
    function: Function,
    batching: Batching,
    /// Batches that take more messages.
    open: Mutex<Vec<Batch>>,
    /// Processes that wait for an event.
    idle: Mutex<Vec<FunctionProcess>>,
    /// One for each process that works.
    slots: Semaphore,
    /// Started with the first process; `None` if it cannot be started.
    progress: OnceCell<Option<ProgressServer>>,
}

/// Messages for one invocation.
struct Batch {
    key: CommandKey,
    members: Vec<Member>,
    progress: Arc<Progress>,
}

/// How far a batch is.
#[derive(Default)]
struct Progress {
    /// It takes no more messages: it is full, or all of its messages have left it.
    is_closed: Notify,
    /// Its messages go to the function.
    is_sent: CancellationToken,
    /// All its messages were given up, so the process got SIGTERM.
    halted_at: OnceLock<Instant>,
}

/// A message's place in a batch. Dropping it leaves the batch, unless its messages are in work.
struct Place {
    shared: Arc<Shared>,
    progress: Arc<Progress>,
    answered: oneshot::Receiver<Result<Ended, StartError>>,
}

impl Lambda {
    pub fn new(processes: WarmProcesses, function: Function, batching: Batching) -> Self {
        Self(Arc::new(Shared {
            processes,
            function,
            batching,
            open: Mutex::default(),
            idle: Mutex::default(),
            slots: Semaphore::new(batching.processes),
            progress: OnceCell::new(),
        }))
    }
}

#[async_trait]
impl Runner for Lambda {
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        let body = std::fs::read_to_string(&command.job.body_file).map_err(|error| StartError {
            program: command.program.to_string_lossy().into_owned(),
            why: format!("JOB_BODY_FILE {}: {error}", command.job.body_file.display()),
            ends_the_run: false,
        })?;
        let (stop_grace, result_file) = (command.stop_grace, command.job.result_file.clone());
        let (answer, answered) = oneshot::channel();
        let record = match &command.job.s3_record {
            Some(record) => record.clone(),
            None => event::record(&command.job, &body, &self.0.function.source),
        };
        let member = Member {
            record,
            command,
            activity: activity.clone(),
            span: Span::current(),
            halt: halt.clone(),
            joined_at: Instant::now(),
            answer,
        };
        let progress = self.0.clone().join(member);
        let mut place = Place { shared: self.0.clone(), progress: progress.clone(), answered };
        let given_up = async {
            halt.cancelled().await;
            if self.0.leave(&progress) {
                return;
            }
            let given_up_at = Instant::now();
            sleep(stop_grace).await;
            // If all were given up with this one, as in a stop, the process is killed now, and its
            // end is awaited. Otherwise, the function goes on with the others.
            let is_killed =
                progress.halted_at.get().is_some_and(|at| *at <= given_up_at + TOGETHER);
            if is_killed {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            biased;
            ended = &mut place.answered => ended,
            () = given_up => return Ok(Exited::killed()),
            () = waits(&progress, &activity) => return Ok(Exited::killed()),
        };
        // An error: a bug in leasehold, after which nothing is known about the work.
        let Ended { exited, reason } = ended.unwrap_or_else(|_| Ok(Ended::killed()))?;
        if let Some(reason) = reason.filter(|_| !halt.is_cancelled()) {
            report(&result_file, &reason);
        }
        Ok(exited)
    }

    async fn finish(&self) {
        // Until no batch is in work.
        let processes = u32::try_from(self.0.batching.processes).unwrap_or(u32::MAX);
        let _all = self.0.slots.acquire_many(processes).await;
        let idle = std::mem::take(&mut *self.0.idle());
        join_all(idle.iter().map(|process| process.warm.halt())).await;
    }
}

/// In a stop, all messages of a batch are given up within this time. Shorter than the time that the
/// lifecycle allows after the stop grace, a tenth of the reserve, with a grace of 3 s or more.
const TOGETHER: Duration = Duration::from_millis(100);

/// The wait for a process and for more messages is not the work's time. Never returns.
async fn waits(progress: &Progress, activity: &Activity) {
    if timeout(AT_ONCE, progress.is_sent.cancelled()).await.is_err() {
        activity.set_waiting(true);
        progress.is_sent.cancelled().await;
        activity.set_waiting(false);
    }
    std::future::pending::<()>().await;
}

/// Most messages find an idle process: a wait that is shorter than this is not reported.
const AT_ONCE: Duration = Duration::from_millis(10);

/// Reports the reason like a command. An error must not fail the work.
fn report(result_file: &Path, reason: &str) {
    let file = OpenOptions::new().append(true).create(true).open(result_file);
    let _ = file.and_then(|mut file| writeln!(file, "{}", json!({ "reason": reason })));
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Vec<Batch>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<FunctionProcess>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the message to an open batch, or opens one.
    fn join(self: Arc<Self>, member: Member) -> Arc<Progress> {
        let key = CommandKey::of(&member.command);
        let size = self.batching.size;
        let mut open = self.open();
        let with_room = |batch: &&mut Batch| batch.key == key && batch.members.len() < size;
        if let Some(batch) = open.iter_mut().find(with_room) {
            batch.members.push(member);
            if batch.members.len() == size {
                batch.progress.is_closed.notify_one();
            }
            return batch.progress.clone();
        }
        let progress = Arc::<Progress>::default();
        if size == 1 {
            progress.is_closed.notify_one();
        }
        open.push(Batch { key, members: vec![member], progress: progress.clone() });
        drop(open);
        // Not in the span of one message.
        let working = progress.clone();
        tokio::spawn(async move { self.work_on_batch(&working).await });
        progress
    }

    /// Removes the messages that were given up from the batch, if it is still open; returns whether
    /// it is.
    fn leave(&self, progress: &Arc<Progress>) -> bool {
        let mut open = self.open();
        let is_it = |batch: &Batch| Arc::ptr_eq(&batch.progress, progress);
        let Some(place) = open.iter().position(is_it) else { return false };
        open[place].members.retain(|member| !member.is_given_up());
        if open[place].members.is_empty() {
            open.remove(place);
            progress.is_closed.notify_one();
        }
        true
    }

    /// Waits for a process and for more messages, and works on them.
    async fn work_on_batch(&self, progress: &Arc<Progress>) {
        let due_at = Instant::now() + self.batching.window;
        let Ok(_slot) = self.slots.acquire().await else { return };
        tokio::select! {
            () = progress.is_closed.notified() => {}
            () = sleep_until(due_at) => {}
        }
        let Some(mut batch) = self.take_open(progress) else { return };
        batch.members.retain(|member| !member.is_given_up());
        if batch.members.is_empty() {
            return;
        }
        progress.is_sent.cancel();
        batch.members.iter_mut().for_each(Member::has_its_turn);
        let (process, outcome) = loop {
            let (process, is_new) = match self.process_for(&batch).await {
                Ok(process) => process,
                Err(error) => return deal(batch.members, |_| Err(error.clone())),
            };
            let reports = self.progress_server().await;
            let outcome = process.invoke(&mut batch, &self.function.source, reports).await;
            // An idle process may end just before it gets the event: then another one takes it.
            let is_untouched = !is_new && process.take_back();
            if !is_untouched || batch.members.iter().all(Member::is_given_up) {
                break (process, outcome);
            }
        };
        let stays = !process.warm.has_ended() && !process.warm.is_halted();
        deal(batch.members, |id| outcome.of(id));
        if stays {
            self.idle().push(process);
        } else {
            // The messages know how it ended.
            let _ = process.warm.halt().await;
        }
    }

    fn take_open(&self, progress: &Arc<Progress>) -> Option<Batch> {
        let mut open = self.open();
        let place = open.iter().position(|batch| Arc::ptr_eq(&batch.progress, progress))?;
        Some(open.remove(place))
    }

    /// An idle process of the same command, or a new one; and whether it is new. One of another
    /// command makes room for it.
    async fn process_for(&self, batch: &Batch) -> Result<(FunctionProcess, bool), StartError> {
        let (found, other) = {
            let mut idle = self.idle();
            idle.retain(|process| !process.warm.has_ended() && !process.warm.is_halted());
            let same = idle.iter().position(|process| process.key == batch.key);
            let found = same.map(|place| idle.swap_remove(place));
            let is_over = found.is_none() && idle.len() > self.slots.available_permits();
            (found, if is_over { idle.pop() } else { None })
        };
        if let Some(process) = found {
            return Ok((process, false));
        }
        if let Some(other) = other {
            // It worked on no message.
            let _ = other.warm.halt().await;
        }
        let Some(member) = batch.members.first() else { return Err(no_member()) };
        let (command, reports) = (&member.command, self.progress_server().await);
        let started =
            FunctionProcess::start(&self.processes, &self.function, command, reports).await?;
        Ok((started, true))
    }

    async fn progress_server(&self) -> Option<&ProgressServer> {
        let start = async || {
            let server = ProgressServer::start().await;
            server.inspect_err(|error| warn!(%error, "the function cannot report progress")).ok()
        };
        self.progress.get_or_init(start).await.as_ref()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.answered.close();
        self.shared.leave(&self.progress);
    }
}

fn no_member() -> StartError {
    let (program, why) = ("the function".to_owned(), "no message is left".to_owned());
    StartError { program, why, ends_the_run: false }
}

/// Passes each message its own result.
fn deal(members: Vec<Member>, result: impl Fn(&str) -> Result<Ended, StartError>) {
    for member in members {
        // Fails only for a message that was given up.
        let _ = member.answer.send(result(&member.command.job.message_id));
    }
}

impl Ended {
    fn killed() -> Self {
        Self { exited: Exited::killed(), reason: None }
    }

    fn succeeded() -> Self {
        Self { exited: Exited { exit: Exit::Code(0), ..Exited::killed() }, reason: None }
    }
}

#[cfg(test)]
mod testing {
    use std::time::Duration;

    use super::function::Source;
    use crate::ports::Command;
    use crate::ports::job_facts::JobFacts;

    pub(super) fn source() -> Source {
        let url = "https://sqs.us-east-2.amazonaws.com/123456789012/my-queue";
        Source::new(Some(url), Some("us-east-2"))
    }

    pub(super) fn job(message_id: &str) -> JobFacts {
        JobFacts::example(message_id)
    }

    pub(super) fn command(message_id: &str) -> Command {
        Command {
            program: "python3".into(),
            args: ["-m", "awslambdaric", "app.handler"].map(Into::into).into(),
            job: job(message_id),
            variables: None,
            stdin: None,
            fetch: None,
            stop_grace: Duration::ZERO,
        }
    }
}
