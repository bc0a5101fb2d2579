//! The settings of a run, and the task that they give to a message.

use std::sync::Arc;

use super::delivery::Delivery;
use super::keep_reason::KeepReason;
use super::notification::{Record, parse};
use super::object_from::ObjectFrom;
use super::outcome::NoWorkReason;
use super::route::{
    Content, JobType, Limits, Route, Selection, Task, find_objects, job_type, route,
};

/// The decisions that are made before the first event and never change.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub selection: Selection,
    /// Is a body that is not an S3 notification work?
    pub accept_raw: bool,
    /// Where a message that is neither an S3 notification nor work of a job type names its objects.
    pub object_from: Option<ObjectFrom>,
    pub job_types: Vec<JobType>,
    /// For messages without a job type; if `None`, they are kept.
    pub task: Option<Arc<Task>>,
    pub limits: Limits,
    pub max_messages: u32,
    /// A kept message blocks the rest of its group on a FIFO queue, so this pod exits after it.
    pub fifo: bool,
}

impl Policy {
    /// The assignment for a message, and the limits for holding it.
    pub(super) fn assign(&self, delivery: &Delivery) -> (Assignment, Limits) {
        let otherwise = |assignment| (assignment, self.limits.clone());
        if let Some(why) = &delivery.payload_failed {
            return otherwise(Assignment::Keep(why.clone(), Vec::new()));
        }
        let body = &delivery.body;
        let routed = match parse(body) {
            Ok(notification) => route(notification, &self.selection),
            Err(why) => match find_objects(&self.job_types, self.object_from.as_ref(), body) {
                Ok(found) => {
                    return self.assign_to(Content::Objects(found.records), found.job_type);
                }
                Err(_) if self.accept_raw => Ok(Route::Work(Content::Body)),
                Err(Some(not_found)) => Err(format!("{why}; --object-from: {not_found}")),
                Err(None) => Err(why.to_string()),
            },
        };
        match routed {
            Ok(Route::Work(content)) => {
                let job_type = job_type(&self.job_types, &content);
                self.assign_to(content, job_type)
            }
            Ok(Route::Nothing(why)) => otherwise(Assignment::NothingToDo(why)),
            Err(why) => otherwise(Assignment::Keep(KeepReason::NotANotification(why), Vec::new())),
        }
    }

    /// The assignment of this content to a job type, or to the task of other messages.
    fn assign_to(
        &self,
        content: Content,
        job_type: Result<Option<&JobType>, String>,
    ) -> (Assignment, Limits) {
        let (task, limits) = match job_type {
            Ok(Some(job_type)) => (Ok(job_type.task.clone()), &job_type.limits),
            Ok(None) => {
                let none = || {
                    "no job type matches it, and no COMMAND is set for other messages".to_owned()
                };
                (self.task.clone().ok_or_else(none), &self.limits)
            }
            Err(why) => (Err(why), &self.limits),
        };
        let assignment = match task {
            Ok(task) => Assignment::Work(content, task),
            Err(why) => Assignment::Keep(KeepReason::NoJobType(why), content.records().to_vec()),
        };
        (assignment, limits.clone())
    }

    /// Can a message that is not an S3 notification name its objects?
    pub fn finds_objects(&self) -> bool {
        self.object_from.is_some() || self.job_types.iter().any(|it| it.object_from.is_some())
    }

    /// All tasks that this policy can run.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.task.iter().chain(self.job_types.iter().map(|it| &it.task))
    }
}

/// What to do with a message.
pub(super) enum Assignment {
    Work(Content, Arc<Task>),
    NothingToDo(NoWorkReason),
    Keep(KeepReason, Vec<Record>),
}
