//! 5 The work: fetches each object, runs the command on it, publishes what it wrote.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, DerivedActorRef};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use super::tell_when_done;
use crate::job::lifecycle::{Event, Work};
use crate::job::verdict::Role;
use crate::work::Worker;

#[derive(Debug)]
pub enum Message {
    Process(Box<Work>),
    /// End the work: TERM, grace, KILL. That it has ended is told all the same.
    Halt,
}

pub struct Processor {
    pub worker: Arc<dyn Worker>,
    pub supervisor: DerivedActorRef<Event>,
}

#[derive(Default)]
pub struct State {
    /// Dropped first: of an actor that is killed the work ends at once, without a halt.
    work: Option<AbortOnDropHandle<()>>,
    /// Dropping it halts the work.
    halt: Option<DropGuard>,
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
                let halt = CancellationToken::new();
                state.halt = Some(halt.clone().drop_guard());
                let worker = self.worker.clone();
                let supervisor = self.supervisor.clone();
                let work = async move {
                    let tell = move |event| drop(supervisor.cast(event));
                    Event::Processed(Box::new(worker.process(*work, halt, &tell).await))
                };
                state.work = Some(tell_when_done(self.supervisor.clone(), Role::Processor, work));
            }
            Message::Halt => state.halt = None,
        }
        Ok(())
    }

    /// Returns only when the command is gone, so "Processor stopped" means exactly that.
    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.halt = None;
        if let Some(work) = state.work.take() {
            let _ = work.await;
        }
        Ok(())
    }
}
