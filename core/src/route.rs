//! 3 Routed: which of the records are work, of which job type they are, so what is run on them and
//! within which limits.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use super::event;
pub use super::event::{BadEventFilter, EventFilter};
pub use super::key_glob::KeyGlob;
use super::lease::Strategy;
use super::notification::{Notification, Record};
use super::outcome::NoWorkReason;
use super::s3_location::LocationTemplate;
use super::verdict::RetryPolicy;

/// Messages of a kind, and how they are worked on.
#[derive(Debug, Clone, PartialEq)]
pub struct JobType {
    pub matches: Match,
    pub task: Arc<Task>,
    pub limits: Limits,
}

/// Which messages: all that is said must be so.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Match {
    pub bucket: Option<String>,
    pub key: Option<KeyGlob>,
    pub event: Option<EventFilter>,
}

impl Match {
    /// Does it leave nothing for others?
    pub fn takes_all(&self) -> bool {
        *self == Self::default()
    }

    fn takes(&self, Record { event, object, .. }: &Record) -> bool {
        self.bucket.as_ref().is_none_or(|bucket| *bucket == object.bucket)
            && self.key.as_ref().is_none_or(|key| key.matches(&object.key))
            && self.event.as_ref().is_none_or(|events| events.is_work(event))
    }
}

/// The first of them that takes a message; `None` if none does. A message is one piece of work, so
/// all its objects must be of one type: the error says which are not. A body has no object, so only
/// a type that takes all takes it.
pub fn job_type<'a>(
    types: &'a [JobType],
    content: &Content,
) -> Result<Option<&'a JobType>, String> {
    let records = match content {
        Content::Objects(records) => records,
        Content::Body(_) => return Ok(types.iter().find(|it| it.matches.takes_all())),
    };
    let mut taken = records.iter().map(|record| types.iter().find(|it| it.matches.takes(record)));
    let first = taken.next().flatten();
    let name =
        |it: Option<&JobType>| it.map_or(Task::DEFAULT, |it| it.task.name.as_str()).to_owned();
    match taken.map(name).find(|other| *other != name(first)) {
        None => Ok(first),
        Some(other) => {
            Err(format!("its objects match different job types, {} and {other}", name(first)))
        }
    }
}

/// What is run on a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The job type's, or [`Task::DEFAULT`].
    pub name: String,
    pub command: CommandLine,
    pub input: Input,
    /// Where nothing is said, a deleted object is retried, and one that was overwritten is a
    /// failure.
    pub missing_object: Option<MissingObject>,
    /// How long the command may give no sign of life; for ever if `None`.
    pub stall_timeout: Option<Duration>,
    /// Where in S3 results go, if they go there.
    pub output: Option<LocationTemplate>,
    /// Where partial state is kept, if it is: the next pod can go on then, when SQS's ceiling is
    /// near, and `--max-duration` is the time of all deliveries together.
    pub checkpoint: Option<Checkpointing>,
}

/// Partial state is kept between deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpointing {
    pub location: LocationTemplate,
    /// How often it is saved while the command runs; only at the end if `None`.
    pub interval: Option<Duration>,
}

impl Task {
    /// The name of what is run on messages of no job type.
    pub const DEFAULT: &str = "default";
}

/// The user's command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    pub program: OsString,
    pub args: Vec<OsString>,
}

/// How to treat an object that was deleted or overwritten since the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "settings", derive(clap::ValueEnum, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "settings", serde(rename_all = "kebab-case"))]
pub enum MissingObject {
    /// Keep the message and retry: the object may come back
    Retry,
    /// Keep the message as a permanent failure, until it goes to the dead-letter queue
    Fail,
    /// Delete the message: there is nothing to do
    Ignore,
}

/// How the command gets what it works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "settings", derive(clap::ValueEnum, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "settings", serde(rename_all = "kebab-case"))]
pub enum Input {
    /// As a file; its path is in JOB_INPUT
    File,
    /// As a file, and also on standard input
    Stdin,
    /// Not at all: the object is not downloaded
    None,
}

/// The limits within which a message is held and worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub strategy: Strategy,
    /// Length of the lease with [`Strategy::Heartbeat`].
    pub visibility: Duration,
    /// How long the queue hides a message in all: [`CEILING`](super::lease::CEILING), or less in a
    /// rehearsal.
    pub ceiling: Duration,
    pub max_duration: Duration,
    /// What the command gets between TERM and KILL.
    pub stop_grace: Duration,
    pub retry: RetryPolicy,
}

/// What a message is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In the notification's order; never empty.
    Objects(Vec<Record>),
    /// The body itself, which is not an S3 notification (`--accept-raw`).
    Body(String),
}

impl Content {
    /// None for a body.
    pub fn records(&self) -> &[Record] {
        match self {
            Self::Objects(records) => records,
            Self::Body(_) => &[],
        }
    }
}

/// What a message asks of us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Work(Content),
    Nothing(NoWorkReason),
}

/// Which records are work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    pub events: EventFilter,
    /// Is an empty object whose key ends in `/` work, as consoles and file browsers make one for a
    /// folder?
    pub folders: bool,
}

/// Picks the records that are work. The error names an event that nobody knows: that a message asks
/// for nothing may only be said of events that S3 has.
pub fn route(notification: Notification, selection: &Selection) -> Result<Route, String> {
    let records = match notification {
        Notification::Test => return Ok(Route::Nothing(NoWorkReason::TestEvent)),
        Notification::Records(records) => records,
    };
    let Selection { events, folders } = selection;
    if let Some(unknown) =
        records.iter().find(|it| !events.is_work(&it.event) && !event::is_s3(&it.event))
    {
        return Err(event::unknown(&unknown.event));
    }
    // Some stores say a size of 0 of what is not empty.
    let is_empty =
        |record: &Record| record.object.etag.as_deref().is_none_or(|etag| etag == ETAG_OF_NOTHING);
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
const ETAG_OF_NOTHING: &str = "d41d8cd98f00b204e9800998ecf8427e";
