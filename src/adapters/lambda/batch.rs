//! The messages of an invocation, the process that works on them, and the result of each message.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{Span, info_span};

use super::Function;
use super::event::event;
use super::function::{Source, variables};
use super::response::{FunctionError, failed_messages};
use super::runtime_api::{Answer, Invocation, RuntimeApi};
use crate::adapters::batching::{Batch, Member, Work};
use crate::adapters::progress::ProgressServer;
use crate::adapters::warm::{WarmProcess, WarmProcesses};
use crate::job::outcome::Exit;
use crate::ports::job_facts::JobFacts;
use crate::ports::{Activity, Command, Exited, StartError};

/// A message of an invocation.
pub(super) struct Message {
    pub(super) record: Value,
    pub(super) command: Command,
    pub(super) activity: Activity,
    pub(super) span: Span,
}

impl Work for Message {
    type Answer = Result<Ended, StartError>;

    fn goes_with(&self, other: &Self) -> bool {
        CommandKey::of(&self.command) == CommandKey::of(&other.command)
    }

    /// The wait does not count for the deadline.
    fn has_waited(&mut self, time: Duration) {
        self.command.job.deadline += time;
    }
}

/// How the work on a message ended.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) exited: Exited,
    pub(super) reason: Option<String>,
}

/// Messages with the same key can share an invocation and a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandKey(OsString, Vec<OsString>, Duration);

impl CommandKey {
    pub(super) fn of(command: &Command) -> Self {
        Self(command.program.clone(), command.args.clone(), command.stop_grace)
    }
}

/// A process with its own Runtime API.
pub(super) struct FunctionProcess {
    pub(super) key: CommandKey,
    pub(super) warm: WarmProcess,
    api: RuntimeApi,
}

/// The result of an invocation.
pub(super) enum Outcome {
    /// The ids of the messages that failed, or the reason why all of them failed.
    Response(Result<BTreeSet<String>, String>),
    Error(FunctionError),
    /// The process has ended or was halted.
    Ended(Result<Exited, StartError>, Option<FunctionError>),
}

impl FunctionProcess {
    pub(super) async fn start(
        processes: &WarmProcesses,
        function: &Function,
        command: &Command,
        progress: Option<&ProgressServer>,
    ) -> Result<Self, StartError> {
        let serving = processes.serving();
        let api = RuntimeApi::start(serving.clone()).await.map_err(|error| StartError {
            program: command.program.to_string_lossy().into_owned(),
            why: format!("the Runtime API cannot listen on 127.0.0.1: {error}"),
            ends_the_run: false,
        })?;
        let Function { source, memory_limit, is_set } = function;
        let address = api.address.to_string();
        let mut variables = variables(command, source, *memory_limit, &address, *is_set);
        // Without the id of the event, which the function has as its request id.
        variables.extend(progress.map(|it| (JobFacts::PROGRESS_URL.into(), it.url().into())));
        let warm = processes.start(command, variables, &serving)?;
        Ok(Self { key: CommandKey::of(command), warm, api })
    }

    /// Takes back the event, unless the process has taken it.
    pub(super) fn take_back(&self) -> bool {
        self.api.take_back()
    }

    /// Works on the messages, and accepts reports of their progress. When all of them are given up,
    /// the process is halted.
    pub(super) async fn invoke(
        &self,
        batch: &mut Batch<Message>,
        source: &Source,
        progress_server: Option<&ProgressServer>,
    ) -> Outcome {
        let Batch { members, progress } = batch;
        let ids: BTreeSet<String> =
            members.iter().map(|member| member.work.command.job.message_id.clone()).collect();
        let activities = members.iter().map(|member| member.work.activity.clone()).collect();
        self.warm.works_on(activities, span(members));
        let invocation = invocation(members, source);
        let jobs = members.iter().map(|member| (&member.work.command.job, &member.work.activity));
        let _accepted =
            progress_server.map(|server| server.accept_all(invocation.id.clone(), jobs));
        let mut answered = self.api.invoke(invocation);
        let outcome = tokio::select! {
            biased;
            // In this order: what a process answers after SIGTERM proves nothing.
            answer = &mut answered => match answer {
                _ if self.warm.is_halted() => Outcome::Ended(self.warm.halt().await, None),
                Ok(Answer::Response(response)) => {
                    Outcome::Response(failed_messages(&response, &ids))
                }
                Ok(Answer::Error(error)) => Outcome::Error(error),
                Ok(Answer::InitError(error)) => Outcome::Ended(self.warm.halt().await, Some(error)),
                // The API has ended, which is a bug in leasehold.
                Err(_) => Outcome::Ended(self.warm.halt().await, None),
            },
            ended = self.warm.ended() => Outcome::Ended(ended, None),
            _ = join_all(members.iter_mut().map(Member::given_up)) => {
                // Set once: an event that was taken back may go to another process.
                progress.halted_at.get_or_init(Instant::now);
                Outcome::Ended(self.warm.halt().await, None)
            }
        };
        self.warm.is_idle();
        outcome
    }
}

/// The span of the message; a batch of several has only their number.
fn span(members: &[Member<Message>]) -> Span {
    match members {
        [member] => member.work.span.clone(),
        several => info_span!(parent: None, "batch", messages = several.len()),
    }
}

fn invocation(members: &[Member<Message>], source: &Source) -> Invocation {
    let jobs = || members.iter().map(|member| &member.work.command.job);
    let deadline = jobs().map(|job| job.deadline).min().unwrap_or(UNIX_EPOCH);
    // A trace belongs to one message.
    let trace = match members {
        [member] => trace(&member.work.command),
        _ => None,
    };
    Invocation {
        id: new_id(),
        event: event(members.iter().map(|member| &member.work.record)),
        deadline: deadline.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis(),
        function_arn: source.function_arn(),
        trace,
    }
}

/// A random UUID (RFC 9562, version 4): a redelivered message gets another one, so that a late
/// answer to its first delivery does not count for the second.
fn new_id() -> String {
    uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid().to_string()
}

/// The message's X-Ray header, or its traceparent in the form of X-Ray.
fn trace(command: &Command) -> Option<String> {
    let header = command.job.message.sqs.system.get("AWSTraceHeader");
    header.cloned().or_else(|| {
        let parts: Vec<&str> = command.job.traceparent.as_deref()?.split('-').collect();
        let [_, trace, parent, flags] = parts.as_slice() else { return None };
        let (time, unique) = trace.split_at_checked(8)?;
        let sampled = u8::from(flags.ends_with(['1', '3', '5', '7', '9', 'b', 'd', 'f']));
        Some(format!("Root=1-{time}-{unique};Parent={parent};Sampled={sampled}"))
    })
}

impl Outcome {
    /// The result of one message of those in the invocation.
    pub(super) fn of(&self, message_id: &str) -> Result<Ended, StartError> {
        match self {
            Self::Response(Ok(ids)) if !ids.contains(message_id) => Ok(Ended::succeeded()),
            Self::Response(Ok(_)) => {
                Ok(failed("the function reported the message in batchItemFailures"))
            }
            Self::Response(Err(why)) => Ok(failed(why)),
            Self::Error(error) => Ok(of_error(error)),
            Self::Ended(Err(error), _) => Err(error.clone()),
            Self::Ended(Ok(exited), Some(error)) => Ok(Ended {
                exited: Exited { exit: failure(exited.exit), usage: None, ..exited.clone() },
                reason: Some(format!("the function did not start: {}", error.reason)),
            }),
            Self::Ended(Ok(exited), None) => Ok(Ended {
                exited: Exited { exit: failure(exited.exit), usage: None, ..exited.clone() },
                reason: Some(format!(
                    "the function's process ended before it answered: {}",
                    exited.exit
                )),
            }),
        }
    }
}

fn of_error(error: &FunctionError) -> Ended {
    let mut ended = failed(&error.reason);
    ended.exited.stderr_tail.clone_from(&error.stack);
    ended
}

fn failed(reason: &str) -> Ended {
    let exited = Exited { exit: Exit::Code(1), ..Exited::killed() };
    Ended { exited, reason: Some(reason.to_owned()) }
}

/// The exit codes of a command have meanings for one message; those of a process that works on many
/// are only failures.
fn failure(exit: Exit) -> Exit {
    match exit {
        Exit::Code(_) | Exit::Handler(_) => Exit::Code(1),
        Exit::Signal(signal) => Exit::Signal(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::command;
    use super::*;

    fn exits(outcome: &Outcome) -> Vec<Exit> {
        ["a", "b"].map(|id| outcome.of(id).unwrap().exited.exit).into()
    }

    #[test]
    fn only_a_response_is_a_success() {
        let (good, bad) = (Exit::Code(0), Exit::Code(1));
        let ids = ["a", "b"].map(str::to_owned).into();
        let response = |text: &str| Outcome::Response(failed_messages(text.as_bytes(), &ids));
        assert_eq!(exits(&response("{}")), [good, good]);
        assert_eq!(
            exits(&response(r#"{"batchItemFailures":[{"itemIdentifier":"b"}]}"#)),
            [good, bad]
        );
        assert_eq!(
            exits(&response(r#"{"batchItemFailures":[{"itemIdentifier":"c"}]}"#)),
            [bad, bad]
        );
        assert_eq!(exits(&Outcome::Error(FunctionError::new("x"))), [bad, bad]);
        for (code, exit) in [(0, bad), (65, bad), (75, bad), (1, bad)] {
            let exited = Exited { exit: Exit::Code(code), ..Exited::killed() };
            assert_eq!(exits(&Outcome::Ended(Ok(exited.clone()), None)), [exit, exit]);
            let init = Some(FunctionError::new("x"));
            assert_eq!(exits(&Outcome::Ended(Ok(exited), init)), [exit, exit]);
        }
        let killed = Outcome::Ended(Ok(Exited::killed()), None);
        assert_eq!(exits(&killed), [Exit::Signal(9), Exit::Signal(9)]);
    }

    #[test]
    fn each_invocation_has_its_own_uuid() {
        let (one, other) = (new_id(), new_id());
        assert_ne!(one, other);
        let parts: Vec<_> = one.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12], "{one}");
        assert!(one[14..].starts_with('4') && "89ab".contains(&one[19..20]), "{one}");
    }

    #[test]
    fn a_traceparent_becomes_an_xray_header() {
        let mut traced = command("m");
        assert_eq!(trace(&traced), None);
        traced.job.traceparent =
            Some("00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01".to_owned());
        let header = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1";
        assert_eq!(trace(&traced).as_deref(), Some(header));
    }
}
