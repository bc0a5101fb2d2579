//! The handler `http`: sends each object or message as a POST to the user's server in this pod,
//! which stays for all of them. The contract is that of Elastic Beanstalk's worker environments.
//!
//! The server is the process that the command starts, or it runs in another container of the pod.

mod address;
mod answer;
mod client;
mod request;
mod server;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use address::HttpAddress;
pub use answer::StatusRange;
use client::Client;
pub use request::HttpBody;
use request::request;
use server::{RequestInWork, Server};

use super::progress::ProgressServer;
use super::warm::{self, WarmProcess, WarmProcesses};
use crate::job::outcome::Exit;
use crate::ports::job_facts::JobFacts;
use crate::ports::{Activity, Command, Exited, Runner, StartError};

/// The settings of the handler `http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    pub body: HttpBody,
    /// The status codes of permanent failures.
    pub permanent: Vec<StatusRange>,
    /// How long the server may take to accept connections.
    pub ready_timeout: Duration,
}

/// Sends requests to the user's server.
pub struct HttpHandler {
    address: HttpAddress,
    settings: HttpSettings,
    client: Client,
    /// `None` if the server runs in another container.
    server: Option<Server>,
    /// Started with the first message; `None` if it cannot be started.
    progress: OnceCell<Option<ProgressServer>>,
}

impl HttpHandler {
    /// `processes` starts the server; without it, the server runs in another container.
    pub fn new(
        address: HttpAddress,
        settings: HttpSettings,
        processes: Option<WarmProcesses>,
    ) -> Self {
        let client = Client::new(address.clone());
        Self {
            address,
            settings,
            client,
            server: processes.map(Server::new),
            progress: OnceCell::new(),
        }
    }

    /// Waits until the server accepts connections, and gives it the request if it is a process of
    /// this pod.
    async fn ready(
        &self,
        command: &Command,
        activity: &Activity,
    ) -> Result<Option<RequestInWork<'_>>, NotReady> {
        let Some(server) = &self.server else {
            let ready = self.accepts_connections().await;
            return Ok(ready.map(|()| None).map_err(|why| self.start_error(why))?);
        };
        loop {
            let process = match server.running().await {
                Some(process) => process,
                None => self.start(server, command).await?,
            };
            // Another request may have ended the process meanwhile.
            if self.process_accepts_connections(server, &process).await?
                && let Some(in_work) = server.works_on(process, activity.clone())
            {
                return Ok(Some(in_work));
            }
        }
    }

    /// If not, the caller looks again at which process runs.
    async fn process_accepts_connections(
        &self,
        server: &Server,
        process: &Arc<WarmProcess>,
    ) -> Result<bool, NotReady> {
        let ready = tokio::select! {
            biased;
            ready = self.accepts_connections() => ready,
            ended = process.ended() => {
                let exited = ended?;
                if exited.out_of_memory.is_some() {
                    return Err(NotReady::Ended(exited));
                }
                if process.is_halted() {
                    return Ok(false);
                }
                return Err(self.start_error(ended_before(START, exited.exit)).into());
            }
        };
        let Err(why) = ready else { return Ok(true) };
        // A process that works on another request is ready, and only has no room for this one.
        let Some(ended) = server.end_unused(process) else { return Ok(false) };
        // The error of the process counts if it is the last of several.
        ended.await?;
        Err(self.start_error(why).into())
    }

    async fn start(
        &self,
        server: &Server,
        command: &Command,
    ) -> Result<Arc<WarmProcess>, StartError> {
        self.client.close_idle();
        if self.client.connects().await && server.running().await.is_none() {
            self.client.close_idle();
            return Err(self.start_error(format!(
                "another server accepts connections at {} already: remove the command after --, or choose another port",
                self.address
            )));
        }
        server.start(command)
    }

    async fn accepts_connections(&self) -> Result<(), String> {
        let (address, ready_timeout) = (&self.address, self.settings.ready_timeout);
        let waiting = async {
            let (started, mut warned_at) = (Instant::now(), Instant::now());
            while !self.client.connects().await {
                if warned_at.elapsed() >= WARN_INTERVAL {
                    warn!(%address, waited = ?started.elapsed(), "the server does not accept connections yet");
                    warned_at = Instant::now();
                }
                sleep(READY_INTERVAL).await;
            }
        };
        timeout(ready_timeout, waiting).await.map_err(|_| {
            format!(
                "no server accepted connections at {address} within --ready-timeout {}: correct the port in --handler, or raise --ready-timeout",
                humantime::format_duration(ready_timeout)
            )
        })
    }

    async fn answer(&self, job: &JobFacts, activity: &Activity) -> Result<Exited, String> {
        let (address, HttpSettings { body: kind, permanent, .. }) = (&self.address, &self.settings);
        let progress = self.progress.get_or_init(start_progress).await;
        let progress = progress.as_ref().map(|progress| progress.accept(job, activity));
        let progress_url = progress.as_ref().map(|progress| progress.url.as_str());
        let body = match kind {
            HttpBody::Job => Bytes::from(with_progress(job, progress_url)),
            HttpBody::Message => {
                let read = tokio::fs::read(&job.body_file).await;
                read.map_err(|error| format!("{}: {error}", job.body_file.display()))?.into()
            }
        };
        let request = request(address, job, *kind, body, progress_url);
        let answer = self.client.send(request, activity).await?;
        if answer.status.is_success() && !answer.has_proven_end {
            // The end of the server's process may be seen meanwhile.
            sleep(CRASH).await;
            if !self.client.accepts().await {
                return Err("the server ended before its answer was complete".to_owned());
            }
        }
        let judged = answer.judge(permanent, SystemTime::now());
        if let Some(reason) = judged.reason {
            let retry_after = judged.retry_after.map(|delay| delay.as_secs());
            warm::report(
                &job.result_file,
                &json!({ "reason": reason, "retry_after": retry_after }),
            );
        }
        Ok(Exited { left_no_writer: true, ..exited(judged.exit) })
    }

    fn start_error(&self, why: String) -> StartError {
        StartError { program: self.address.to_string(), why, ends_the_run: false }
    }
}

/// Why no server accepts connections.
enum NotReady {
    Start(StartError),
    /// Its process ran out of memory.
    Ended(Exited),
}

impl From<StartError> for NotReady {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

async fn start_progress() -> Option<ProgressServer> {
    let server = ProgressServer::start().await;
    server
        .inspect_err(|error| warn!(%error, "progress_url is not available, only result_file"))
        .ok()
}

/// The content of `JOB_FILE`, with `progress_url`.
fn with_progress(job: &JobFacts, url: Option<&str>) -> String {
    let json = job.to_json();
    match (url, json.strip_suffix('}')) {
        (Some(url), Some(fields)) => format!("{fields},\"progress_url\":{}}}", json!(url)),
        (_, _) => json,
    }
}

/// How often to try to connect to a server that starts.
const READY_INTERVAL: Duration = Duration::from_millis(50);
const WARN_INTERVAL: Duration = Duration::from_secs(30);

/// A server that crashes closes its connections before its end can be seen.
const CRASH: Duration = Duration::from_secs(1);

#[async_trait]
impl Runner for HttpHandler {
    /// When this returns without an answer, the process of the server has ended, unless it works on
    /// other messages, too. A server in another container gets no signal: its connection is closed.
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        let in_work = tokio::select! {
            biased;
            () = halt.cancelled() => return Ok(exited(HALTED)),
            ready = signs_of_life(&activity, self.ready(&command, &activity)) => match ready {
                Ok(in_work) => in_work,
                Err(NotReady::Start(error)) => return Err(error),
                Err(NotReady::Ended(ended)) => {
                    return Ok(crashed(&command.job, Ok(ended), START));
                }
            },
        };
        let process = in_work.as_ref().map(|in_work| in_work.process.clone());
        let mut ended = pin!(async {
            match &process {
                Some(process) => process.ended().await,
                None => std::future::pending().await,
            }
        });
        let exited = tokio::select! {
            biased;
            () = halt.cancelled() => exited(HALTED),
            answer = self.answer(&command.job, &activity) => match answer {
                // The process was halted meanwhile, as by --memory-guard: its answer proves nothing, and
                // the reason is that of its end.
                _ if process.as_ref().is_some_and(|process| process.is_halted()) => {
                    crashed(&command.job, ended.await, ANSWER)
                }
                Ok(exited) => {
                    if let Some(in_work) = in_work {
                        in_work.answered();
                    }
                    return Ok(exited);
                }
                Err(why) if process.is_none() => failed(&command.job, &why),
                Err(why) => match timeout(CRASH, &mut ended).await {
                    Ok(ended) => crashed(&command.job, ended, ANSWER),
                    Err(_) => failed(&command.job, &why),
                },
            },
            ended = &mut ended => crashed(&command.job, ended, ANSWER),
        };
        if let Some(in_work) = in_work {
            in_work.halt().await;
        }
        Ok(exited)
    }

    async fn finish(&self) {
        if let Some(server) = &self.server {
            server.end().await;
        }
    }
}

/// The start of a server has a limit of its own, and so have the requests that it may wait for: it
/// never counts as a stall.
async fn signs_of_life<T>(activity: &Activity, start: impl Future<Output = T>) -> T {
    let mut start = pin!(start);
    loop {
        activity.record();
        if let Ok(started) = timeout(READY_INTERVAL, &mut start).await {
            return started;
        }
    }
}

/// Not counted: a halt has its own reason.
const HALTED: Exit = Exit::Signal(15);

fn exited(exit: Exit) -> Exited {
    Exited { exit, ..Exited::killed() }
}

fn failed(job: &JobFacts, why: &str) -> Exited {
    warm::report(&job.result_file, &json!({ "reason": why }));
    exited(Exit::Code(1))
}

/// What a server does if it does not end before.
const START: &str = "it accepted connections";
const ANSWER: &str = "its answer was complete";

fn ended_before(event: &str, exit: Exit) -> String {
    format!("the server ended with {exit} before {event}")
}

/// The process of the server ended before this event: a failure, also with exit code 0.
fn crashed(job: &JobFacts, ended: Result<Exited, StartError>, before: &str) -> Exited {
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => Exited { stderr_tail: vec![error.to_string()], ..exited(Exit::Code(1)) },
    };
    warm::report(&job.result_file, &json!({ "reason": ended_before(before, ended.exit) }));
    let exit = match ended.exit {
        Exit::Code(_) | Exit::Handler(_) => Exit::Code(1),
        Exit::Signal(signal) => Exit::Signal(signal),
    };
    Exited { exit, usage: None, ..ended }
}
