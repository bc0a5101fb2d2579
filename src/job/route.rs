//! 3 Routed: which of the records are work, of which job type they are, so what is run on them and within which limits.

use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use globset::{GlobBuilder, GlobMatcher};

use super::lease::Strategy;
use super::notification::{Notification, Record};
use super::place::Template;
use super::verdict::{Nothing, RetryPolicy};

/// What can be asked for: all that S3 itself can be asked for (S3 API, `Event` of a notification
/// configuration).
///
/// A closed list, because a name with a typo would match nothing, and a message in which nothing is work
/// is deleted. A name that S3 adds one day is covered by its family's `*`.
const KNOWN: [&str; 31] = [
    "IntelligentTiering",
    "LifecycleExpiration:*",
    "LifecycleExpiration:Delete",
    "LifecycleExpiration:DeleteMarkerCreated",
    "LifecycleTransition",
    "ObjectAcl:Put",
    "ObjectAnnotation:*",
    "ObjectAnnotation:Delete",
    "ObjectAnnotation:Put",
    "ObjectCreated:*",
    "ObjectCreated:CompleteMultipartUpload",
    "ObjectCreated:Copy",
    "ObjectCreated:Post",
    "ObjectCreated:Put",
    "ObjectRemoved:*",
    "ObjectRemoved:Delete",
    "ObjectRemoved:DeleteMarkerCreated",
    "ObjectRestore:*",
    "ObjectRestore:Completed",
    "ObjectRestore:Delete",
    "ObjectRestore:Post",
    "ObjectRetention:Put",
    "ObjectTagging:*",
    "ObjectTagging:Delete",
    "ObjectTagging:Put",
    "ReducedRedundancyLostObject",
    "Replication:*",
    "Replication:OperationFailedReplication",
    "Replication:OperationMissedThreshold",
    "Replication:OperationNotTracked",
    "Replication:OperationReplicatedAfterThreshold",
];

/// Which events are work (`--events`): S3's names, a `*` for all of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter(Vec<&'static str>);

impl EventFilter {
    /// Is an event of this name (without `s3:`) work?
    pub fn is_work(&self, event: &str) -> bool {
        self.0.iter().any(|asked| match asked.strip_suffix('*') {
            Some(family) => event.starts_with(family),
            None => event == *asked,
        })
    }

    /// Can an event of this family (`ObjectCreated:*`) or name be work?
    pub fn overlaps(&self, asked: &str) -> bool {
        let family = asked.strip_suffix('*');
        self.is_work(asked) || family.is_some_and(|family| self.0.iter().any(|ours| ours.starts_with(family)))
    }

    /// The first event that the other asks for and this does not.
    pub fn first_not_covered(&self, other: &Self) -> Option<&'static str> {
        other.0.iter().find(|asked| !self.is_work(asked)).copied()
    }
}

/// There is an object to work on: it was created, or it came back from an archive.
impl Default for EventFilter {
    fn default() -> Self {
        Self(vec!["ObjectCreated:*", "ObjectRestore:Completed"])
    }
}

impl fmt::Display for EventFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// Why a list of events cannot be a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEventFilter {
    #[error("an event name is empty; expected names such as {}", EventFilter::default())]
    Empty,
    #[error("{name} is no event of S3; did you mean {nearest}?")]
    Unknown { name: String, nearest: &'static str },
}

impl FromStr for EventFilter {
    type Err = BadEventFilter;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        list.split(',').map(|name| known(name.trim())).collect::<Result<_, _>>().map(Self)
    }
}

fn known(name: &str) -> Result<&'static str, BadEventFilter> {
    if name.is_empty() {
        return Err(BadEventFilter::Empty);
    }
    let bare = name.strip_prefix("s3:").unwrap_or(name);
    if let Some(known) = KNOWN.iter().find(|known| **known == bare) {
        return Ok(known);
    }
    let distance = |known: &&&str| strsim::damerau_levenshtein(&bare.to_lowercase(), &known.to_lowercase());
    let nearest = KNOWN.iter().min_by_key(distance).expect("the list is not empty");
    Err(BadEventFilter::Unknown { name: name.to_owned(), nearest })
}

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

    fn takes(&self, Record { event, object }: &Record) -> bool {
        self.bucket.as_ref().is_none_or(|bucket| *bucket == object.bucket)
            && self.key.as_ref().is_none_or(|key| key.0.is_match(&object.key))
            && self.event.as_ref().is_none_or(|events| events.is_work(event))
    }
}

/// A pattern for a whole key: `*` and `?` stand for what is within one folder, `**` for folders.
#[derive(Clone)]
pub struct KeyGlob(GlobMatcher);

impl FromStr for KeyGlob {
    type Err = String;

    fn from_str(glob: &str) -> Result<Self, String> {
        let glob = GlobBuilder::new(glob).literal_separator(true).build().map_err(|error| error.to_string())?;
        Ok(Self(glob.compile_matcher()))
    }
}

impl PartialEq for KeyGlob {
    fn eq(&self, other: &Self) -> bool {
        self.0.glob() == other.0.glob()
    }
}

impl fmt::Debug for KeyGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.glob().glob())
    }
}

/// The first of them that takes a message; `None` if none does. A message is one piece of work, so all its objects
/// must be of one type: the error says which are not. A body has no object, so only a type that takes all takes it.
pub fn job_type<'a>(types: &'a [JobType], content: &Content) -> Result<Option<&'a JobType>, String> {
    let records = match content {
        Content::Objects(records) => records,
        Content::Body => return Ok(types.iter().find(|it| it.matches.takes_all())),
    };
    let mut taken = records.iter().map(|record| types.iter().find(|it| it.matches.takes(record)));
    let first = taken.next().flatten();
    let name = |it: Option<&JobType>| it.map_or(Task::DEFAULT, |it| it.task.name.as_str()).to_owned();
    match taken.map(name).find(|other| *other != name(first)) {
        None => Ok(first),
        Some(other) => Err(format!("its objects are of different job types, {} and {other}", name(first))),
    }
}

/// What is run on a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The job type's, or [`Task::DEFAULT`].
    pub name: String,
    pub command: CommandLine,
    pub input: Input,
    /// How long the command may give no sign of life; for ever if `None`.
    pub stall_timeout: Option<Duration>,
    /// Where in S3 results go, if they go there.
    pub output: Option<Template>,
    /// Where partial state is kept, if it is: the next pod can go on then, when SQS's ceiling is near, and `--max-duration` is
    /// the time of all deliveries together.
    pub checkpoint: Option<Checkpointing>,
}

/// Partial state is kept between deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpointing {
    pub place: Template,
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

/// How the command gets what it works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// As a file.
    File,
    /// As a file that is its standard input, too.
    Stdin,
    /// Not at all: it is not even fetched.
    None,
}

/// The limits within which a message is held and worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub strategy: Strategy,
    /// Length of the lease with [`Strategy::Heartbeat`].
    pub visibility: Duration,
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
    /// The body itself, which is no S3 notification (`--accept-raw`).
    Body,
}

impl Content {
    /// None for a body.
    pub fn records(&self) -> &[Record] {
        match self {
            Self::Objects(records) => records,
            Self::Body => &[],
        }
    }
}

/// What a message asks of us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Work(Content),
    Nothing(Nothing),
}

/// Picks the records that are work.
pub fn route(notification: Notification, events: &EventFilter) -> Route {
    let records = match notification {
        Notification::Test => return Route::Nothing(Nothing::TestEvent),
        Notification::Records(records) => records,
    };
    let work: Vec<_> = records.into_iter().filter(|record| events.is_work(&record.event)).collect();
    if work.is_empty() { Route::Nothing(Nothing::Ignored) } else { Route::Work(Content::Objects(work)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(list: &str) -> Result<EventFilter, String> {
        list.parse().map_err(|error: BadEventFilter| error.to_string())
    }

    #[test]
    fn a_star_stands_for_all_of_a_family_and_for_nothing_else() {
        let created = filter("ObjectCreated:*").unwrap();
        for (event, is_work) in [
            ("ObjectCreated:Put", true),
            ("ObjectCreated:NewSinceThisWasWritten", true),
            ("ObjectCreatedLater:Put", false),
            ("NoObjectCreated:Put", false),
            ("ObjectRemoved:Delete", false),
            ("", false),
        ] {
            assert_eq!(created.is_work(event), is_work, "{event}");
        }
        assert_eq!(created.first_not_covered(&filter("ObjectCreated:Copy").unwrap()), None);
        let put = filter("ObjectCreated:Put").unwrap();
        assert_eq!(put.first_not_covered(&created), Some("ObjectCreated:*"));
        assert!(put.is_work("ObjectCreated:Put") && !put.is_work("ObjectCreated:PutTagging"));
    }

    #[test]
    fn a_filter_reads_what_it_writes() {
        assert_eq!(filter(&EventFilter::default().to_string()), Ok(EventFilter::default()));
        assert_eq!(filter(" s3:ObjectCreated:* ,\tObjectRestore:Completed"), Ok(EventFilter::default()));
        assert_eq!(EventFilter::default().to_string(), "ObjectCreated:*,ObjectRestore:Completed");
    }

    #[test]
    fn a_typo_is_refused_with_the_nearest_name() {
        for (typo, nearest) in [
            ("ObjectCreate:*", "ObjectCreated:*"),
            ("ObjectCreated", "ObjectCreated:*"),
            ("OBJECTCREATED:PUT", "ObjectCreated:Put"),
            ("ObjectCreated:Putt", "ObjectCreated:Put"),
            ("s3:ObjectRestored:Completed", "ObjectRestore:Completed"),
            ("LifecycleTransition:*", "LifecycleTransition"),
        ] {
            assert_eq!(filter(typo), Err(format!("{typo} is no event of S3; did you mean {nearest}?")));
        }
    }

    #[test]
    fn an_empty_name_is_refused() {
        for list in ["", " ", ",", "ObjectCreated:*,", "ObjectCreated:*,,ObjectRemoved:*"] {
            assert_eq!(list.parse::<EventFilter>(), Err(BadEventFilter::Empty), "{list:?}");
        }
    }
}
