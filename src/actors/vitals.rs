//! Do the actors answer? For `/healthz`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ractor::ActorRef;
use ractor::rpc::CallResult;

use super::supervisor::Message;

/// A supervisor's handlers return at once, so an answer later than this is none.
const LIMIT: Duration = Duration::from_secs(1);

/// The supervisors that run now, for whoever wants to know whether they live.
#[derive(Clone, Default)]
pub struct Vitals(Arc<Mutex<Vec<ActorRef<Message>>>>);

impl Vitals {
    pub(super) fn add(&self, supervisor: ActorRef<Message>) {
        self.supervisors().push(supervisor);
    }

    pub(super) fn remove(&self, supervisor: &ActorRef<Message>) {
        self.supervisors().retain(|other| other.get_id() != supervisor.get_id());
    }

    /// Does each of them answer, and do all its hands live? True as well while none runs.
    pub async fn are_good(&self) -> bool {
        let supervisors = self.supervisors().clone();
        for supervisor in supervisors {
            if !matches!(supervisor.call(Message::AreYouWell, Some(LIMIT)).await, Ok(CallResult::Success(true))) {
                return false;
            }
        }
        true
    }

    fn supervisors(&self) -> MutexGuard<'_, Vec<ActorRef<Message>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
