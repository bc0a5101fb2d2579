//! Which records are work, and their job type, command and limits.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::arguments::{Argument, UnknownPlaceholder};
use super::event;
pub use super::event::{BadEventFilter, EventFilter};
pub use super::key_glob::KeyGlob;
use super::lease::Strategy;
use super::notification::{Notification, Record, message, parse};
use super::object_attributes::ObjectAttributes;
use super::object_from::ObjectFrom;
use super::on_success::OnSuccess;
use super::outcome::NoWorkReason;
use super::policy::Policy;
use super::s3_location::LocationTemplate;
use super::verdict::RetryPolicy;

/// A kind of message, with its task and limits.
#[derive(Debug, Clone, PartialEq)]
pub struct JobType {
    pub matches: Match,
    /// Where a message that is not an S3 notification names its objects.
    pub object_from: Option<ObjectFrom>,
    pub task: Arc<Task>,
    pub limits: Limits,
}

/// Which messages a job type takes: every condition that is set must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Match {
    pub bucket: Option<String>,
    pub key: Option<KeyGlob>,
    pub event: Option<EventFilter>,
}

impl Match {
    /// Does it match every message?
    pub fn matches_all(&self) -> bool {
        *self == Self::default()
    }

    fn matches(&self, Record { event, object, .. }: &Record) -> bool {
        self.bucket.as_ref().is_none_or(|bucket| *bucket == object.bucket)
            && self.key.as_ref().is_none_or(|key| key.matches(&object.key))
            && self.event.as_ref().is_none_or(|events| events.is_work(event))
    }
}

/// The first job type that matches the message; `None` if none does. A message is one piece of
/// work, so all its objects must match the same type; the error names two that differ. A body has
/// no object, so only a type without conditions matches it.
pub fn job_type<'a>(
    types: &'a [JobType],
    content: &Content,
) -> Result<Option<&'a JobType>, String> {
    let records = match content {
        Content::Objects(records) => records,
        Content::Body => return Ok(types.iter().find(|it| it.matches.matches_all())),
    };
    let mut matching =
        records.iter().map(|record| types.iter().find(|it| it.matches.matches(record)));
    let first = matching.next().flatten();
    let name =
        |it: Option<&JobType>| it.map_or(Task::DEFAULT, |it| it.task.name.as_str()).to_owned();
    match matching.map(name).find(|other| *other != name(first)) {
        None => Ok(first),
        Some(other) => {
            Err(format!("its objects match different job types, {} and {other}", name(first)))
        }
    }
}

/// The objects of a message that is not an S3 notification, and its job type.
#[derive(Debug, PartialEq)]
pub struct Found<'a> {
    pub records: Vec<Record>,
    /// `None` for the task of messages without a job type.
    pub job_type: Result<Option<&'a JobType>, String>,
}

/// Finds the objects by the job types' [`ObjectFrom`], in their order, and then by `otherwise`. A
/// job type takes the message if it matches all objects that its own pointers find. The error is
/// the last reason why nothing is found, if anything was searched.
pub fn find_objects<'a>(
    types: &'a [JobType],
    otherwise: Option<&ObjectFrom>,
    body: &str,
) -> Result<Found<'a>, Option<String>> {
    // A body without JSON has its own reason.
    let Ok(message) = message(body) else { return Err(None) };
    let (mut unmatched, mut why) = (None, None);
    for job_type in types {
        let Some(from) = &job_type.object_from else { continue };
        let records = match from.records(&message) {
            Ok(records) => records,
            Err(reason) => {
                why = Some(reason.to_string());
                continue;
            }
        };
        let matching = records.iter().filter(|record| job_type.matches.matches(record)).count();
        if matching == records.len() {
            return Ok(Found { records, job_type: Ok(Some(job_type)) });
        }
        if matching > 0 {
            let why = format!("job type {} matches only some of its objects", job_type.task.name);
            return Ok(Found { records, job_type: Err(why) });
        }
        unmatched = Some(records);
    }
    match (otherwise.map(|from| from.records(&message)), unmatched) {
        (Some(Ok(records)), _) => Ok(Found { records, job_type: Ok(None) }),
        (None | Some(Err(_)), Some(records)) => {
            let why = "no job type matches it, and no other --object-from finds its object";
            Ok(Found { records, job_type: Err(why.to_owned()) })
        }
        (Some(Err(why)), None) => Err(Some(why.to_string())),
        (None, None) => Err(why),
    }
}

impl Policy {
    /// Is this a message that names objects, or S3's test event? If not, the payload of the Extended
    /// Client is the job's object itself.
    pub fn understands(&self, payload: &str) -> bool {
        match parse(payload) {
            Ok(Notification::Test | Notification::Records(_)) => true,
            // Another pointer, which is not followed.
            Ok(Notification::Objects(_)) => false,
            Err(_) => find_objects(&self.job_types, self.object_from.as_ref(), payload).is_ok(),
        }
    }
}

/// The command for a message, and how to run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The job type's name, or [`Task::DEFAULT`].
    pub name: String,
    pub command: CommandLine,
    pub input: Input,
    /// With `--handler lambda`.
    pub lambda_event: LambdaEvent,
    /// Where a link to the input is, while the command runs.
    pub input_at: Option<PathBuf>,
    /// Where a link to the directory for results is, while the command runs.
    pub output_at: Option<PathBuf>,
    /// If `None`, a deleted object is retried, and an overwritten one is a failure.
    pub missing_object: Option<MissingObject>,
    /// How long the command may show no activity; without a limit if `None`.
    pub stall_timeout: Option<Duration>,
    /// The S3 location for results, if any.
    pub output: Option<LocationTemplate>,
    /// The attributes of objects there.
    pub output_attributes: ObjectAttributes,
    /// What happens to the object after its work succeeded; nothing if `None`.
    pub on_success: Option<OnSuccess>,
    /// Where partial state is kept, if anywhere. With it, the next pod can resume when SQS's
    /// ceiling is near, and `--max-duration` covers all deliveries together.
    pub checkpoint: Option<Checkpointing>,
}

/// How partial state is kept between deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpointing {
    pub location: LocationTemplate,
    /// How often it is saved while the command runs; only at the end if `None`.
    pub interval: Option<Duration>,
}

impl Task {
    /// The task's name for messages without a job type.
    pub const DEFAULT: &str = "default";
}

/// The user's command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    pub program: OsString,
    pub args: Vec<Argument>,
}

impl CommandLine {
    pub fn parse(program: OsString, words: &[OsString]) -> Result<Self, UnknownPlaceholder> {
        let args = Argument::parse_all(&program, words)?;
        Ok(Self { program, args })
    }
}

/// How to treat an object that was deleted or overwritten since the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "settings", derive(serde::Deserialize))]
#[cfg_attr(feature = "settings", serde(rename_all = "kebab-case"))]
pub enum MissingObject {
    /// Keep the message and retry: the object may come back
    Retry,
    /// Keep the message as a permanent failure, until it goes to the dead-letter queue
    Fail,
    /// Delete the message: there is nothing to do
    Ignore,
}

/// How the command gets its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "settings", derive(serde::Deserialize))]
#[cfg_attr(feature = "settings", serde(rename_all = "kebab-case"))]
pub enum Input {
    /// As a file; its path is in JOB_INPUT
    File,
    /// As a file, and also on standard input
    Stdin,
    /// As a file of a mounted bucket, see --mount: the object is not downloaded
    Mount,
    /// Not at all: the object is not downloaded
    None,
}

/// What a Lambda function gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "settings", derive(serde::Deserialize))]
#[cfg_attr(feature = "settings", serde(rename_all = "kebab-case"))]
pub enum LambdaEvent {
    /// The event of Lambda's event source mapping for SQS
    #[default]
    Sqs,
    /// S3's event about the object, as for a function that S3 invokes
    S3,
}

/// The limits within which a message is held and worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub strategy: Strategy,
    /// Length of the lease with [`Strategy::Heartbeat`].
    pub visibility: Duration,
    /// How long the queue hides a message in total: [`CEILING`](super::lease::CEILING), or less in
    /// a rehearsal.
    pub ceiling: Duration,
    pub max_duration: Duration,
    /// The command's time between TERM and KILL.
    pub stop_grace: Duration,
    pub retry: RetryPolicy,
}

/// The input of the work on a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In the notification's order; never empty.
    Objects(Vec<Record>),
    /// The body itself, which is not an S3 notification (`--accept-raw`).
    Body,
}

impl Content {
    /// Empty for a body.
    pub fn records(&self) -> &[Record] {
        match self {
            Self::Objects(records) => records,
            Self::Body => &[],
        }
    }
}

/// The result of routing a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Work(Content),
    Nothing(NoWorkReason),
}

/// Which records are work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    pub events: EventFilter,
    /// Is an empty object whose key ends in `/` work? Consoles and file browsers create one for a
    /// folder.
    pub folders: bool,
}

/// Selects the records that are work. The error names an unknown event: only S3's own events are
/// known to need no work.
pub fn route(notification: Notification, selection: &Selection) -> Result<Route, String> {
    let records = match notification {
        Notification::Test => return Ok(Route::Nothing(NoWorkReason::TestEvent)),
        Notification::Objects(records) => return Ok(Route::Work(Content::Objects(records))),
        Notification::Records(records) => records,
    };
    let Selection { events, folders } = selection;
    if let Some(unknown) =
        records.iter().find(|it| !events.is_work(&it.event) && !event::is_s3(&it.event))
    {
        return Err(event::unknown(&unknown.event));
    }
    // Some stores send a size of 0 for objects that are not empty.
    let is_empty =
        |record: &Record| record.object.etag.as_deref().is_none_or(|etag| etag == EMPTY_ETAG);
    let is_folder =
        |it: &Record| it.object.size == Some(0) && it.object.key.ends_with('/') && is_empty(it);
    let work: Vec<_> = records
        .into_iter()
        .filter(|it| events.is_work(&it.event) && (*folders || !is_folder(it)))
        .collect();
    Ok(if work.is_empty() {
        Route::Nothing(NoWorkReason::Ignored)
    } else {
        Route::Work(Content::Objects(work))
    })
}

/// The MD5 of no bytes.
const EMPTY_ETAG: &str = "d41d8cd98f00b204e9800998ecf8427e";
