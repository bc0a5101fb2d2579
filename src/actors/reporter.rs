//! Forwards the reports of a run, one after another.
//!
//! A report may take time: the attempt record of a message is written to S3, within a limit. Only
//! the last step of a stop waits for the Reporter, and its death changes no verdict.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::job::report::Report;
use crate::ports::Telemetry;

#[derive(Debug)]
pub enum Message {
    Report(Report),
}

pub struct Reporter {
    pub telemetry: Arc<dyn Telemetry>,
}

impl Actor for Reporter {
    type Msg = Message;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let Message::Report(report) = message;
        self.telemetry.report(&report).await;
        Ok(())
    }
}
