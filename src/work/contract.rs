//! Collects the facts about a job.

use std::ffi::OsString;
use std::path::Path;
use std::time::SystemTime;

use super::workspace::Workspace;
use crate::job::arguments::{BadArgument, Values};
use crate::job::delivery::Redrive;
use crate::job::notification::Record;
use crate::job::report::Subject;
use crate::job::route::Task;
use crate::ports::job_facts::{JobFacts, ObjectFacts};

/// The sources of the facts.
pub struct JobContext<'a> {
    pub job_id: &'a str,
    pub subject: &'a Subject,
    /// `None` if the body itself is the work.
    pub record: Option<&'a Record>,
    pub task: &'a Task,
    /// `None` if the command gets none.
    pub input: Option<&'a Path>,
    /// When the work will be halted.
    pub deadline: SystemTime,
    pub space: &'a Workspace,
}

impl JobContext<'_> {
    /// The arguments of the command, with the values of this job.
    pub fn arguments(&self, facts: &JobFacts) -> Result<Vec<OsString>, BadArgument> {
        let values = Values {
            input: facts.input.as_deref(),
            output_dir: &facts.output_dir,
            object: self.record.map(|record| &record.object),
            message_id: &facts.message_id,
            receive_count: facts.receive_count,
            job_type: &facts.job_type,
            attributes: &self.subject.attributes,
        };
        self.task.command.args.iter().map(|argument| argument.fill(&values)).collect()
    }

    pub fn facts(&self) -> JobFacts {
        let Self { job_id, subject, record, task, input, deadline, space } = self;
        let Subject { message_id, receive_count, redrive, traceparent, .. } = subject;
        let object = record.map(|Record { event, object, .. }| ObjectFacts {
            event: event.clone(),
            bucket: object.bucket.clone(),
            key: object.key.clone(),
            version_id: object.version_id.clone(),
            etag: object.etag.clone(),
            size: object.size,
        });
        JobFacts {
            version: 1,
            id: (*job_id).to_owned(),
            job_type: task.name.clone(),
            message_id: message_id.as_str().to_owned(),
            object,
            receive_count: *receive_count,
            max_receive_count: redrive.max_receive_count(),
            final_attempt: (*redrive != Redrive::Unknown).then(|| redrive.is_final(*receive_count)),
            deadline: *deadline,
            input: input.map(Path::to_owned),
            output_dir: space.output(),
            checkpoint_dir: space.checkpoint(),
            result_file: space.result_file(),
            job_file: space.job_file(),
            temporary: space.tmp(),
            traceparent: traceparent.clone(),
        }
    }
}
