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
use crate::ports::job_facts::{JobFacts, MessageFacts, ObjectFacts};

/// The sources of the facts.
pub struct JobContext<'a> {
    pub job_id: &'a str,
    pub queue_url: Option<&'a str>,
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
        let Self { job_id, queue_url, subject, record, task, input, deadline, space } = self;
        let Subject { message_id, receive_count, redrive, traceparent, .. } = subject;
        let object = record.map(|Record { event, time, region, object, .. }| ObjectFacts {
            event: event.clone(),
            event_time: time.clone(),
            region: region.clone(),
            bucket: object.bucket.clone(),
            key: object.key.clone(),
            version_id: object.version_id.clone(),
            etag: object.etag.clone(),
            size: object.size,
            sequencer: object.sequencer.clone(),
        });
        let attribute = |name: &str| subject.attributes.get(name);
        // W3C Trace Context, section 3.3: a tracestate belongs to the traceparent beside it.
        let is_senders = traceparent.is_some() && attribute("traceparent") == traceparent.as_ref();
        JobFacts {
            version: 1,
            id: (*job_id).to_owned(),
            job_type: task.name.clone(),
            message_id: message_id.as_str().to_owned(),
            message: MessageFacts {
                message_group_id: subject.group_id.clone(),
                message_deduplication_id: subject.deduplication_id.clone(),
                sent_at: subject.sent_at,
                first_received_at: subject.first_received_at,
                queue_url: queue_url.map(str::to_owned),
                attributes: subject.attributes.clone(),
                sqs: subject.sqs.clone(),
            },
            object,
            receive_count: *receive_count,
            max_receive_count: redrive.max_receive_count(),
            final_attempt: (*redrive != Redrive::Unknown).then(|| redrive.is_final(*receive_count)),
            deadline: *deadline,
            input: input.map(Path::to_owned),
            output_dir: space.output(),
            checkpoint_dir: space.checkpoint(),
            result_file: space.result_file(),
            body_file: space.body_file(),
            s3_record: None,
            job_file: space.job_file(),
            temporary: space.tmp(),
            traceparent: traceparent.clone(),
            tracestate: attribute("tracestate").filter(|_| is_senders).cloned(),
            baggage: attribute("baggage").cloned(),
        }
    }
}
