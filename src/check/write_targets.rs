//! The S3 locations to which a run writes, against the notifications of their buckets: written
//! files must not become work.

use std::collections::BTreeSet;
use std::fmt;

use super::{Finding, Rule, Severity};
use crate::adapters::aws::s3::probes::{BucketAction, Notification, Notifications};
use crate::job::object_attributes::ObjectAttributes;
use crate::job::on_success::OnSuccess;
use crate::job::route::{EventFilter, Task};
use crate::job::s3_location::{LocationTemplate, S3Location, Values};
use crate::settings::resolve::RunConfig;

/// The kind of files that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    Output,
    Moved,
    Checkpoint,
    Idempotency,
    Attempts,
}

impl TargetKind {
    /// The events that S3 can send about these files.
    fn events(self) -> &'static [&'static str] {
        const PUT: &str = "ObjectCreated:Put";
        const IN_PARTS: &str = "ObjectCreated:CompleteMultipartUpload";
        match self {
            Self::Output => &[PUT, IN_PARTS],
            Self::Moved => &["ObjectCreated:Copy"],
            Self::Checkpoint => {
                &[PUT, IN_PARTS, "ObjectRemoved:Delete", "ObjectRemoved:DeleteMarkerCreated"]
            }
            Self::Attempts => &[PUT, "ObjectRemoved:Delete", "ObjectRemoved:DeleteMarkerCreated"],
            Self::Idempotency => &[PUT],
        }
    }

    /// The suffix of the keys; the command chooses the names of results.
    fn ending(self) -> Option<&'static str> {
        match self {
            Self::Output | Self::Moved => None,
            Self::Checkpoint => Some(".tar"),
            Self::Idempotency | Self::Attempts => Some(".json"),
        }
    }

    /// The testable actions that the pod's role needs, and the severity if one is denied.
    pub fn needs(self) -> &'static [(BucketAction, Severity)] {
        use Severity::{Error, Warning};
        match self {
            // Without Abort, the parts of failed uploads remain.
            Self::Output => &[(BucketAction::Put, Error), (BucketAction::Abort, Warning)],
            Self::Moved => &[(BucketAction::Put, Error)],
            Self::Checkpoint => &[
                (BucketAction::List, Error),
                (BucketAction::Get, Error),
                (BucketAction::Put, Error),
                (BucketAction::Abort, Warning),
            ],
            // Without List, S3 answers 403 for a missing record.
            Self::Idempotency => &[
                (BucketAction::List, Warning),
                (BucketAction::Get, Error),
                (BucketAction::Put, Error),
            ],
            // The work succeeds anyway.
            Self::Attempts => &[
                (BucketAction::List, Warning),
                (BucketAction::Get, Warning),
                (BucketAction::Put, Warning),
            ],
        }
    }
}

/// The flag's name.
impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Output => "output",
            Self::Moved => "on-success",
            Self::Checkpoint => "checkpoint",
            Self::Idempotency => "idempotency",
            Self::Attempts => "attempts",
        })
    }
}

/// A location to which tasks write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteTarget {
    pub kind: TargetKind,
    pub to: LocationTemplate,
    pub attributes: ObjectAttributes,
    /// The tasks' names.
    pub by: Vec<String>,
}

/// All locations to which a run with these settings writes.
pub fn all(config: &RunConfig) -> Vec<WriteTarget> {
    let tasks = || config.work.settings.policy.tasks();
    let of_all = |kind, place: &Option<_>| {
        let by = tasks().map(|task| task.name.clone()).collect();
        let attributes = ObjectAttributes::default();
        place.clone().map(|to: S3Location| WriteTarget { kind, to: to.into(), attributes, by })
    };
    let mut all = Vec::new();
    all.extend(of_all(TargetKind::Idempotency, &config.records.idempotency));
    all.extend(of_all(TargetKind::Attempts, &config.records.attempts));
    for task in tasks() {
        let target = |kind, to, attributes| WriteTarget {
            kind,
            to,
            attributes,
            by: vec![task.name.clone()],
        };
        let output = task
            .output
            .clone()
            .map(|to| target(TargetKind::Output, to, task.output_attributes.clone()));
        let moved = match &task.on_success {
            Some(OnSuccess::Move(to)) => Some(target(
                TargetKind::Moved,
                LocationTemplate::from(to.clone()),
                ObjectAttributes::default(),
            )),
            Some(OnSuccess::Tag { .. } | OnSuccess::Delete) | None => None,
        };
        let checkpoint = task
            .checkpoint
            .clone()
            .map(|how| target(TargetKind::Checkpoint, how.location, ObjectAttributes::default()));
        for target in output.into_iter().chain(moved).chain(checkpoint) {
            match all.iter_mut().find(|other| other.is_same_place(&target)) {
                Some(same) => same.by.extend(target.by),
                None => all.push(target),
            }
        }
    }
    all
}

/// Findings about files in `target` that become messages of the queue `queue_arn`. `notifications`
/// are those of the bucket, and `work` are the events that are processed.
pub fn findings(
    target: &WriteTarget,
    notifications: &Notifications,
    queue_arn: &str,
    work: &EventFilter,
) -> Vec<Finding> {
    let bucket = &target.to.bucket;
    let mut findings = Vec::new();
    for notification in notifications.to(queue_arn) {
        let Some(is_certain) = target.is_notified(notification) else { continue };
        let events = target.kind.events().iter().filter(|event| notification.covers(event));
        let events: Vec<_> = events.copied().collect();
        if events.is_empty() {
            continue;
        }
        let cause = format!(
            "bucket {bucket} notifies the queue by its notification {}",
            shown(notification)
        );
        let change = "write to another bucket or prefix, or narrow the notification's prefix to the input objects";
        let place = target.to_string();
        findings.push(match (events.iter().any(|event| work.is_work(event)), is_certain) {
            (true, true) => {
                let what = format!(
                    "files written there become messages, so each job creates another one: {cause}"
                );
                Finding::new(Rule::WritesBecomeWork, place, what, change)
            }
            (true, false) => {
                let what =
                    format!("files written there become messages if their keys match: {cause}");
                Finding::new(Rule::WritesBecomeWork, place, what, change)
                    .with_severity(Severity::Warning)
            }
            (false, _) => {
                let what = format!(
                    "files written there start pods that find no work ({}): {cause}",
                    events.join(", ")
                );
                Finding::new(Rule::WritesStartPods, place, what, change)
            }
        });
    }
    findings
}

impl WriteTarget {
    /// Whether both are the same but for the tasks that write there.
    fn is_same_place(&self, other: &Self) -> bool {
        (self.kind, &self.to, &self.attributes) == (other.kind, &other.to, &other.attributes)
    }

    /// Keys like those of written files, but without an object. `key_prefix` is the prefix of the
    /// input objects.
    pub fn samples(&self, key_prefix: &str) -> BTreeSet<String> {
        let key = format!("{key_prefix}{NO_NAME}");
        let name = match self.kind {
            TargetKind::Output => NO_NAME.to_owned(),
            TargetKind::Moved => key.clone(),
            TargetKind::Checkpoint => format!("{NO_NAME}/0/0.tar"),
            TargetKind::Idempotency => format!("{NO_NAME}.json"),
            TargetKind::Attempts => format!("{NO_NAME}/0.json"),
        };
        let sample = |job_type| {
            self.to.fill(Values { key: Some(&key), message_id: NO_NAME, job_type }).key(&name)
        };
        self.by.iter().map(|task| sample(task)).collect()
    }

    /// Whether the written keys match a notification's prefix and suffix. `None` if not; false if
    /// it depends on the job or on the names that the command chooses.
    fn is_notified(&self, notification: &Notification) -> Option<bool> {
        let Notification { prefix, suffix, .. } = notification;
        let begin = self.by.iter().filter_map(|task| {
            // The key of an input object of this notification begins with `prefix`.
            let beginning = self.to.beginning(prefix, task);
            let is_certain = beginning.starts_with(prefix);
            (is_certain || prefix.starts_with(&beginning)).then_some(is_certain)
        });
        let end = match self.kind.ending() {
            _ if suffix.is_empty() => Some(true),
            Some(ending) if ending.ends_with(suffix) => Some(true),
            Some(ending) if !suffix.ends_with(ending) => None,
            Some(_) | None => Some(false),
        };
        Some(begin.max()? && end?)
    }
}

/// A name that no object, message or file has.
const NO_NAME: &str = "leasehold-check";

/// In the words of the setting.
impl fmt::Display for WriteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, to, by, .. } = self;
        let of_types =
            matches!(kind, TargetKind::Output | TargetKind::Moved | TargetKind::Checkpoint)
                && !by.iter().any(|name| name == Task::DEFAULT);
        if of_types {
            write!(f, "job type {}, {kind} {to}", by.join(", "))
        } else {
            write!(f, "--{kind} {to}")
        }
    }
}

/// `"results" (ObjectCreated:* of in/*.csv)`
fn shown(notification: &Notification) -> String {
    let Notification { id, events, prefix, suffix, .. } = notification;
    format!("{id:?} ({} of {prefix}*{suffix})", events.join(", "))
}
