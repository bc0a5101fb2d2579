//! The names of S3 events, and filters for them.

use std::fmt;
use std::str::FromStr;

/// The events of S3 (S3 API, `Event` of a notification configuration).
///
/// A closed list, because a name with a typo would match nothing, and a message without work is
/// deleted. The family's `*` covers names that S3 adds later.
const S3_EVENTS: [&str; 31] = [
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

/// Further events of other stores: MinIO ("Bucket notifications"), and Ceph ("S3 bucket
/// notifications compatibility"). A message about one of these that is not in `--events` is kept:
/// only S3's own events are known to need no work.
const OTHER_STORES_EVENTS: [&str; 27] = [
    "BucketCreated:*",
    "BucketRemoved:*",
    "LifecycleDelMarkerExpiration:Delete",
    "ObjectAccessed:*",
    "ObjectAccessed:Attributes",
    "ObjectAccessed:Get",
    "ObjectAccessed:GetLegalHold",
    "ObjectAccessed:GetRetention",
    "ObjectAccessed:Head",
    "ObjectCreated:DeleteTagging",
    "ObjectCreated:PutLegalHold",
    "ObjectCreated:PutRetention",
    "ObjectCreated:PutTagging",
    "ObjectLifecycle:*",
    "ObjectLifecycle:Expiration:*",
    "ObjectLifecycle:Transition:*",
    "ObjectRemoved:DeleteAllVersions",
    "ObjectRemoved:NoOP",
    "ObjectSynced:*",
    "ObjectTransition:*",
    "ObjectTransition:Complete",
    "ObjectTransition:Failed",
    "Replication:OperationCompletedReplication",
    "Scanner:*",
    "Scanner:BigPrefix",
    "Scanner:LargeVersions",
    "Scanner:ManyVersions",
];

/// MinIO reports changes of an object's metadata as `ObjectCreated`. They create no object, and a
/// job that tags its object would start itself again, so they are work only if they are named.
const METADATA_CHANGES: [&str; 4] = [
    "ObjectCreated:DeleteTagging",
    "ObjectCreated:PutLegalHold",
    "ObjectCreated:PutRetention",
    "ObjectCreated:PutTagging",
];

/// After these events the object no longer exists.
const REMOVALS: [&str; 5] = [
    "LifecycleDelMarkerExpiration:",
    "LifecycleExpiration:",
    "ObjectLifecycle:Expiration:",
    "ObjectRemoved:",
    "ReducedRedundancyLostObject",
];

fn known() -> impl Iterator<Item = &'static str> {
    S3_EVENTS.into_iter().chain(OTHER_STORES_EVENTS)
}

/// Is it an S3 event (without `s3:`), or a new one of a known family?
pub fn is_s3(event: &str) -> bool {
    S3_EVENTS.iter().any(|known| match known.split_once(':') {
        Some((family, _)) => is_in_family(family, event),
        None => event == *known,
    })
}

/// Is it `family:name`, with a name?
fn is_in_family(family: &str, event: &str) -> bool {
    event
        .strip_prefix(family)
        .and_then(|rest| rest.strip_prefix(':'))
        .is_some_and(|name| !name.is_empty())
}

/// The error for an unknown event. It is quoted only if it looks like a name: the body may contain
/// private data.
pub(super) fn unknown(event: &str) -> String {
    let looks_like_a_name = event.len() <= 64
        && event.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.".contains(&byte));
    let event = if looks_like_a_name { format!(" {event}") } else { String::new() };
    format!(
        "unknown S3 event{event}; a sender other than S3 must use S3's event names, such as ObjectCreated:Put"
    )
}

/// Which events are work (`--events`): S3's names, a `*` for all of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter(Vec<&'static str>);

impl EventFilter {
    /// Is an event of this name (without `s3:`) work?
    pub fn is_work(&self, event: &str) -> bool {
        self.0.iter().any(|wanted| match wanted.strip_suffix(":*") {
            Some(family) => is_in_family(family, event) && !METADATA_CHANGES.contains(&event),
            None => event == *wanted,
        })
    }

    /// Can an event of this family (`ObjectCreated:*`) or name be work?
    pub fn overlaps(&self, wanted: &str) -> bool {
        let family = wanted.strip_suffix('*');
        self.is_work(wanted)
            || family.is_some_and(|family| self.0.iter().any(|ours| ours.starts_with(family)))
    }

    /// Its events after which the object no longer exists.
    pub fn removals(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().copied().filter(|wanted| {
            REMOVALS
                .iter()
                .any(|removal| wanted.starts_with(removal) || *wanted == "ObjectLifecycle:*")
        })
    }

    /// The first event of `other` that this filter does not cover.
    pub fn first_not_covered(&self, other: &Self) -> Option<&'static str> {
        other.0.iter().find(|wanted| !self.is_work(wanted)).copied()
    }
}

/// Events after which an object can be fetched: it was created, or restored from an archive.
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
    #[error("unknown S3 event {name}; did you mean {nearest}?")]
    Unknown { name: String, nearest: &'static str },
}

/// Names separated by commas, with optional blanks and an optional comma at the end.
impl FromStr for EventFilter {
    type Err = BadEventFilter;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let list = list.trim();
        let list = list.strip_suffix(',').unwrap_or(list);
        list.split(',').map(|name| parse(name.trim())).collect::<Result<_, _>>().map(Self)
    }
}

fn parse(name: &str) -> Result<&'static str, BadEventFilter> {
    if name.is_empty() {
        return Err(BadEventFilter::Empty);
    }
    let bare = name.strip_prefix("s3:").unwrap_or(name);
    if let Some(known) = known().find(|known| *known == bare) {
        return Ok(known);
    }
    let distance =
        |known: &&str| strsim::damerau_levenshtein(&bare.to_lowercase(), &known.to_lowercase());
    let nearest = known().min_by_key(distance).expect("the list is not empty");
    Err(BadEventFilter::Unknown { name: name.to_owned(), nearest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(list: &str) -> Result<EventFilter, String> {
        list.parse().map_err(|error: BadEventFilter| error.to_string())
    }

    #[test]
    fn a_star_matches_every_name_of_its_family_only() {
        let created = filter("ObjectCreated:*").unwrap();
        for (event, is_work) in [
            ("ObjectCreated:Put", true),
            ("ObjectCreated:NewSinceThisWasWritten", true),
            ("ObjectCreatedLater:Put", false),
            ("NoObjectCreated:Put", false),
            ("ObjectRemoved:Delete", false),
            ("ObjectCreated:", false),
            ("ObjectCreated", false),
            ("ObjectCreated:PutTagging", false),
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
    fn a_filter_survives_a_round_trip_through_text() {
        assert_eq!(filter(&EventFilter::default().to_string()), Ok(EventFilter::default()));
        assert_eq!(
            filter(" s3:ObjectCreated:* ,\tObjectRestore:Completed"),
            Ok(EventFilter::default())
        );
        assert_eq!(
            filter("ObjectCreated:*, ObjectRestore:Completed, "),
            Ok(EventFilter::default())
        );
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
            assert_eq!(
                filter(typo),
                Err(format!("unknown S3 event {typo}; did you mean {nearest}?"))
            );
        }
    }

    #[test]
    fn an_empty_name_is_refused() {
        for list in ["", " ", ",", "ObjectCreated:*,,", "ObjectCreated:*,,ObjectRemoved:*"] {
            assert_eq!(list.parse::<EventFilter>(), Err(BadEventFilter::Empty), "{list:?}");
        }
    }

    #[test]
    fn events_of_other_stores_are_not_s3_events() {
        for event in [
            "ObjectCreated:Put",
            "ObjectRemoved:NewSinceThisWasWritten",
            "LifecycleTransition",
            "ObjectAcl:Put",
        ] {
            assert!(is_s3(event), "{event}");
        }
        for event in [
            "ObjectCreated",
            "ObjectCreatedPut",
            "ObjectCreated:",
            "PutObject",
            "ObjectAccessed:Get",
            "s3:x",
            "",
        ] {
            assert!(!is_s3(event), "{event}");
        }
    }

    #[test]
    fn metadata_changes_are_work_only_if_named() {
        assert!(filter("ObjectCreated:PutTagging").unwrap().is_work("ObjectCreated:PutTagging"));
        assert!(filter("ObjectAccessed:*").unwrap().is_work("ObjectAccessed:Get"));
    }

    #[test]
    fn removals_are_distinguished_from_events_with_an_object() {
        let removals = |list: &str| filter(list).unwrap().removals().collect::<Vec<_>>();
        assert_eq!(removals("ObjectCreated:*,ObjectRemoved:Delete"), ["ObjectRemoved:Delete"]);
        assert_eq!(removals("LifecycleExpiration:*"), ["LifecycleExpiration:*"]);
        assert!(removals("ObjectCreated:*,ObjectRestore:Completed,ObjectTagging:Put").is_empty());
    }

    #[test]
    fn an_unknown_event_is_quoted_only_if_it_looks_like_a_name() {
        assert!(unknown("ObjectCreatedPut").starts_with("unknown S3 event ObjectCreatedPut;"));
        for strange in ["\u{1b}[2J", "my secret", &"x".repeat(65)] {
            assert!(unknown(strange).starts_with("unknown S3 event;"), "{strange}");
        }
    }
}
