//! The work: fetches each object, runs the command on it, publishes its output.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef, DerivedActorRef};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::report_when_done;
use crate::job::keep_reason::Role;
use crate::job::lifecycle::{Event, Processed, Work};
use crate::job::outcome::Failure;
use crate::job::report::Subject;
use crate::job::route::Task;
use crate::work::Worker;
use crate::work::halt::{Halt, HaltOnDrop};
use crate::work::threads::WorkThreads;
use crate::work::workspaces::Workspaces;

#[derive(Debug)]
pub enum Message {
    Process(Box<Work>),
    /// End the work: TERM, grace, KILL. Results of successful work are still published, and the end
    /// is reported.
    Halt,
    /// Publish nothing more.
    AbortPublish,
    /// The message is deleted: drop its checkpoints.
    DropCheckpoints(Arc<Subject>, Arc<Task>),
}

pub struct Processor {
    pub worker: Arc<dyn Worker>,
    pub supervisor: DerivedActorRef<Event>,
    pub workspaces: Workspaces,
    pub threads: WorkThreads,
    /// The time limit for dropping the checkpoints of one message.
    pub checkpoint_drop: Duration,
}

#[derive(Default)]
pub struct State {
    /// Dropped first: the work of a killed actor ends immediately, without a halt.
    work: Option<AbortOnDropHandle<()>>,
    /// Dropping it halts the work.
    halt: Option<HaltOnDrop>,
    /// Tasks that drop checkpoints, in parallel to the next message.
    dropping: JoinSet<()>,
}

impl Actor for Processor {
    type Msg = Message;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<State, ActorProcessingErr> {
        Ok(State::default())
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Process(work) => {
                let halt = Halt::default();
                // Waking another thread takes longer than much of the work that cannot block.
                let threads = if self.worker.may_block(&work) {
                    self.threads.handle()
                } else {
                    Handle::current()
                };
                state.halt = Some(halt.clone().on_drop());
                let (worker, workspaces) = (self.worker.clone(), self.workspaces.clone());
                let supervisor = self.supervisor.clone();
                let work = async move {
                    let report_event = move |event| drop(supervisor.cast(event));
                    // A panic on one message must not affect others. Unwinding has dropped what the
                    // work held, including its command.
                    let processing = worker.process(*work, halt, &report_event, &workspaces);
                    let processed = AssertUnwindSafe(processing).catch_unwind().await;
                    Event::Processed(Box::new(
                        processed.unwrap_or_else(|panic| panicked(panic.as_ref())),
                    ))
                };
                let supervisor = self.supervisor.clone();
                state.work =
                    Some(report_when_done(supervisor, Role::Processor, threads.spawn(work)));
            }
            Message::Halt => state.halt.iter().for_each(|guard| guard.halt().request()),
            Message::AbortPublish => state.halt.iter().for_each(|guard| guard.halt().abort()),
            Message::DropCheckpoints(subject, task) => {
                while state.dropping.try_join_next().is_some() {}
                let (worker, limit) = (self.worker.clone(), self.checkpoint_drop);
                state
                    .dropping
                    .spawn(async move { worker.drop_checkpoints(&subject, &task, limit).await });
            }
        }
        Ok(())
    }

    /// Returns only when the command has ended, so that "Processor stopped" implies it.
    async fn post_stop(
        &self,
        _: ActorRef<Message>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.halt = None;
        if let Some(work) = state.work.take() {
            let _ = work.await;
        }
        while state.dropping.join_next().await.is_some() {}
        Ok(())
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Processed {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let why = text
        .and_then(|text| text.lines().next())
        .unwrap_or("no reason given")
        .chars()
        .take(LONGEST_REASON)
        .collect();
    Processed::failed(Failure::Panicked(why))
}

/// The log has the full text.
const LONGEST_REASON: usize = 200;
