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

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{Span, warn};

use super::batching::{Batch, Batching, Joined, Member, OpenBatches};
use super::progress::ProgressServer;
use super::warm::{self, WarmProcesses};
use crate::job::outcome::Exit;
use crate::ports::{Activity, Command, Exited, Runner, StartError};
use batch::{CommandKey, Ended, FunctionProcess, Message};
pub use function::Source;

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
    /// As many calls as processes.
    batches: Arc<OpenBatches<Message>>,
    /// Processes that wait for an event.
    idle: Mutex<Vec<FunctionProcess>>,
    /// Started with the first process; `None` if it cannot be started.
    progress: OnceCell<Option<ProgressServer>>,
}

impl Lambda {
    pub fn new(processes: WarmProcesses, function: Function, batching: Batching) -> Self {
        Self(Arc::new(Shared {
            processes,
            function,
            batches: Arc::new(OpenBatches::new(batching)),
            idle: Mutex::default(),
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
        let record = match &command.job.s3_record {
            Some(record) => record.clone(),
            None => event::record(&command.job, &body, &self.0.function.source),
        };
        let message =
            Message { record, command, activity: activity.clone(), span: Span::current() };
        let shared = self.0.clone();
        let work = move |batch| async move { shared.work_on(batch).await };
        let mut joined = self.0.batches.join(message, halt.clone(), work);
        let Joined { answered, place } = &mut joined;
        let given_up = async {
            halt.cancelled().await;
            if place.leave() {
                return;
            }
            let given_up_at = Instant::now();
            sleep(stop_grace).await;
            // If all were given up with this one, as in a stop, the process is killed now, and its
            // end is awaited. Otherwise, the function goes on with the others.
            let is_killed =
                place.progress.halted_at.get().is_some_and(|at| *at <= given_up_at + TOGETHER);
            if is_killed {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            biased;
            ended = answered => ended,
            () = given_up => return Ok(Exited::killed()),
            () = place.sets_waiting(&activity) => return Ok(Exited::killed()),
        };
        // An error: a bug in leasehold, after which nothing is known about the work.
        let Ended { exited, reason } = ended.unwrap_or_else(|_| Ok(Ended::killed()))?;
        if let Some(reason) = reason.filter(|_| !halt.is_cancelled()) {
            warm::report(&result_file, &json!({ "reason": reason }));
        }
        Ok(exited)
    }

    async fn finish(&self) {
        self.0.batches.finished().await;
        let idle = std::mem::take(&mut *self.0.idle());
        join_all(idle.iter().map(|process| process.warm.halt())).await;
    }
}

/// In a stop, all messages of a batch are given up within this time. Shorter than the time that the
/// lifecycle allows after the stop grace, a tenth of the reserve, with a grace of 3 s or more.
const TOGETHER: Duration = Duration::from_millis(100);

impl Shared {
    fn idle(&self) -> MutexGuard<'_, Vec<FunctionProcess>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work_on(&self, mut batch: Batch<Message>) {
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
        deal(batch.members, |message| outcome.of(&message.command.job.message_id));
        if stays {
            self.idle().push(process);
        } else {
            // The messages know how it ended.
            let _ = process.warm.halt().await;
        }
    }

    /// An idle process of the same command, or a new one; and whether it is new. One of another
    /// command makes room for it.
    async fn process_for(
        &self,
        batch: &Batch<Message>,
    ) -> Result<(FunctionProcess, bool), StartError> {
        let Some(member) = batch.members.first() else { return Err(no_member()) };
        let (found, other) = {
            let mut idle = self.idle();
            idle.retain(|process| !process.warm.has_ended() && !process.warm.is_halted());
            let key = CommandKey::of(&member.work.command);
            let same = idle.iter().position(|process| process.key == key);
            let found = same.map(|place| idle.swap_remove(place));
            let is_over = found.is_none() && idle.len() > self.batches.free_calls();
            (found, if is_over { idle.pop() } else { None })
        };
        if let Some(process) = found {
            return Ok((process, false));
        }
        if let Some(other) = other {
            // It worked on no message.
            let _ = other.warm.halt().await;
        }
        let (command, reports) = (&member.work.command, self.progress_server().await);
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

fn no_member() -> StartError {
    let (program, why) = ("the function".to_owned(), "no message is left".to_owned());
    StartError { program, why, ends_the_run: false }
}

/// Passes each message its own result.
fn deal(members: Vec<Member<Message>>, result: impl Fn(&Message) -> Result<Ended, StartError>) {
    for member in members {
        let result = result(&member.work);
        member.answer(result);
    }
}

impl Ended {
    fn killed() -> Self {
        Self { exited: Exited::killed(), reason: None }
    }

    fn succeeded() -> Self {
        Self {
            exited: Exited { exit: Exit::Code(0), left_no_writer: true, ..Exited::killed() },
            reason: None,
        }
    }
}

#[cfg(test)]
mod testing {
    use std::path::Path;
    use std::time::Duration;

    use super::function::Source;
    use crate::ports::Command;
    use crate::ports::job_facts::JobFacts;

    pub(super) fn source() -> Source {
        let url = "https://sqs.us-east-2.amazonaws.com/123456789012/my-queue";
        Source::new(Some(url), Some("us-east-2"))
    }

    pub(super) fn job(message_id: &str) -> JobFacts {
        JobFacts::example(message_id, Path::new(""))
    }

    pub(super) fn command(message_id: &str) -> Command {
        Command {
            program: "python3".into(),
            args: ["-m", "awslambdaric", "app.handler"].map(Into::into).into(),
            job: job(message_id),
            variables: None,
            stdin: None,
            fetch: None,
            on_demand: None,
            stop_grace: Duration::ZERO,
        }
    }
}
