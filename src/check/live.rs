//! Collects facts from AWS and the Pushgateway for the other modules. Receives no message, and
//! changes nothing except for `check`'s own record in a store that is not S3. With
//! `--output-sse`, `--output-tags` and the like, it begins an upload and aborts it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::ProvideCredentials;
use aws_types::SdkConfig;

use super::queue::{self, Attributes, QueueFacts};
use super::write_targets::{self, TargetKind, WriteTarget};
use super::{Finding, Rule, Severity};
use crate::adapters::aws::s3::S3;
use crate::adapters::aws::s3::probes::{
    BucketAction, Notification, Notifications, NotificationsError,
};
use crate::adapters::aws::sqs::{self, Sqs, queue_url};
use crate::adapters::aws::{self, LoadError, Permission};
use crate::adapters::http::Http;
use crate::job::delivery::Redrive;
use crate::job::notification::Object;
use crate::job::on_success::OnSuccess;
use crate::job::s3_location::S3Location;
use crate::ports::{FetchError, ObjectStore, RecordError, causes};
use crate::settings::resolve::{PushgatewayConfig, RunConfig};
use crate::telemetry::push::Pushgateway;

/// AWS refuses signatures of a clock that is off by more (AWS General Reference, "Signature Version
/// 4": five minutes).
const SKEW_REFUSED: Duration = Duration::from_mins(5);

/// More than a slow answer can explain.
const SKEW_NOTICED: Duration = Duration::from_secs(30);

/// Findings about everything that a run with these settings would use.
pub async fn findings(
    config: &RunConfig,
    ca_bundle: Option<PathBuf>,
    variables: &[(String, OsString)],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(gateway) = config.pushgateway.clone() {
        findings.extend(check_pushgateway(gateway, ca_bundle.clone()).await);
    }
    let profile = config.s3_profile.as_deref();
    let loaded = async {
        let aws = aws::load(&config.queue_url, ca_bundle.clone(), variables).await?;
        let s3 = aws::load_s3(&aws, profile, ca_bundle, variables).await?;
        Ok::<_, LoadError>((aws, s3))
    };
    let (aws, aws_s3) = match loaded.await {
        Ok(both) => both,
        Err(error) => {
            findings.push(Finding::new(
                Rule::AwsSetup,
                "AWS",
                error.to_string(),
                "correct it: without it, check cannot call AWS",
            ));
            return findings;
        }
    };
    // Reported once, and not for each call.
    if let Some(error) = no_credentials(&aws).await {
        let change = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; in a pod, give the service account a role";
        findings.push(Finding::new(Rule::NoCredentials, "AWS credentials", error, change));
        return findings;
    }
    if let Some(profile) = profile
        && let Some(error) = no_credentials(&aws_s3).await
    {
        let change = "give the profile aws_access_key_id and aws_secret_access_key, or role_arn or credential_process";
        let place = format!("credentials of --s3-profile {profile}");
        findings.push(Finding::new(Rule::NoCredentials, place, error, change));
        return findings;
    }
    let sqs = Sqs::new(&aws, config.queue_url.clone());
    let s3 = S3::with_options(&aws_s3, config.s3.clone());
    findings.extend(check_queue_permissions(&sqs, config).await);
    let Some(attributes) = check_queue(&sqs, config, &mut findings).await else { return findings };
    if config.work.fetch.buckets.is_empty() {
        let change = "name the buckets with --buckets";
        findings.push(Finding::new(
            Rule::BucketsNotNamed,
            "buckets",
            "their notifications and s3:GetObject were not checked",
            change,
        ));
    }
    findings.extend(check_buckets(&s3, &attributes, config).await);
    findings.extend(untried_actions(config));
    findings
}

/// The permissions for `--on-success`, which only a change of a real object could show.
fn untried_actions(config: &RunConfig) -> Vec<Finding> {
    let mut actions: Vec<&OnSuccess> = Vec::new();
    for action in config.work.settings.policy.tasks().filter_map(|task| task.on_success.as_ref()) {
        if !actions.contains(&action) {
            actions.push(action);
        }
    }
    let untried = |action: &&OnSuccess| {
        let calls = match action {
            OnSuccess::Tag { .. } => "s3:GetObjectTagging, s3:PutObjectTagging",
            OnSuccess::Move(_) | OnSuccess::Delete => "s3:DeleteObject",
        };
        Finding::new(
            Rule::PermissionUntried,
            format!("--on-success {action}, {calls}"),
            "it was not called: that would change an object",
            "the pod's role must allow it on the input objects",
        )
    };
    actions.iter().map(untried).collect()
}

/// Findings about the buckets that a run reads from or writes to.
async fn check_buckets(s3: &S3, attributes: &Attributes, config: &RunConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    let arn = attributes.get("QueueArn").map(String::as_str);
    let targets = write_targets::all(config);
    let sources: BTreeSet<&str> = config.work.fetch.buckets.iter().map(String::as_str).collect();
    let buckets = &sources | &targets.iter().map(|one| one.to.bucket.as_str()).collect();
    let (mut key_prefix, mut missing, mut quiet) = (String::new(), BTreeSet::new(), Vec::new());
    for bucket in buckets {
        let of_bucket: Vec<&WriteTarget> =
            targets.iter().filter(|one| one.to.bucket == bucket).collect();
        let notifications = match s3.notifications(bucket).await {
            Ok(Some(notifications)) => Ok(notifications),
            Ok(None) => {
                findings.push(missing_bucket(bucket, sources.contains(bucket), &of_bucket));
                missing.insert(bucket);
                continue;
            }
            Err(why) => Err(why),
        };
        if let (Ok(notifications), Some(arn)) = (&notifications, arn)
            && let Some(first) = notifications.to(arn).next()
        {
            key_prefix.clone_from(&first.prefix);
            findings.extend(queue::sending(&config.queue_url, attributes, bucket));
        }
        findings.extend(check_encryption(s3, bucket).await);
        if sources.contains(bucket) {
            findings.extend(check_source(s3, bucket, &notifications, arn, config).await);
        }
        let is_quiet = |one: &&&WriteTarget| match (&notifications, arn) {
            (Ok(notifications), Some(arn)) => {
                !notifications.others
                    && write_targets::findings(
                        one,
                        notifications,
                        arn,
                        &config.work.settings.policy.selection.events,
                    )
                    .is_empty()
            }
            (Ok(notifications), None) => {
                !notifications.others && notifications.to_queues.is_empty()
            }
            (Err(NotificationsError::NotImplemented(_)), _) => true,
            (Err(NotificationsError::Unknown(_)), _) => false,
        };
        quiet.extend(of_bucket.iter().filter(is_quiet).map(|one| (*one).clone()));
        findings.extend(check_write_targets(bucket, &of_bucket, notifications, arn, config));
    }
    for one in targets.iter().filter(|one| !missing.contains(one.to.bucket.as_str())) {
        findings.extend(check_write_permissions(s3, one, &key_prefix).await);
    }
    let recorded = config
        .records
        .idempotency
        .as_ref()
        .filter(|place| !missing.contains(place.bucket.as_str()));
    if let Some(place) = recorded {
        let is_quiet = quiet.iter().any(|one| one.kind == TargetKind::Idempotency);
        findings.extend(conditional_writes(s3, place, is_quiet).await);
    }
    findings
}

/// Why no credentials were found. Each inner error adds detail; the lines after the first only list
/// the providers.
async fn no_credentials(aws: &SdkConfig) -> Option<String> {
    let error = aws.credentials_provider()?.provide_credentials().await.err()?;
    let lines = causes::chain(&error)
        .map(|error| error.to_string().lines().next().unwrap_or_default().to_owned());
    Some(lines.collect::<Vec<_>>().join(": "))
}

/// The queue's attributes, empty if they are unknown; `None` if the queue does not exist.
async fn check_queue(
    sqs: &Sqs,
    config: &RunConfig,
    findings: &mut Vec<Finding>,
) -> Option<Attributes> {
    match sqs.attributes(&config.queue_url).await {
        Ok(Some(attributes)) => {
            let redrive = sqs::redrive_in(attributes.get("RedrivePolicy").map(String::as_str));
            let dead_letter = match &redrive {
                Redrive::DeadLetter { queue, .. } => {
                    sqs.attributes(&sibling_url(&config.queue_url, queue)).await
                }
                Redrive::None | Redrive::Unknown => Ok(None),
            };
            let facts = QueueFacts { attributes, redrive, dead_letter };
            findings.extend(queue::findings(&config.queue_url, &facts, config));
            Some(facts.attributes)
        }
        Ok(None) => {
            let change = "check --queue-url, its account and its region";
            let place = format!("queue {}", queue_url::queue_name(&config.queue_url));
            findings.push(Finding::new(Rule::QueueNotFound, place, "it does not exist", change));
            None
        }
        Err(why) => {
            let change = "allow sqs:GetQueueAttributes: without it, leasehold does not know which attempt is the last";
            findings.push(Finding::new(Rule::QueueUnseen, "the queue's attributes", why, change));
            Some(Attributes::new())
        }
    }
}

fn missing_bucket(bucket: &str, is_source: bool, targets: &[&WriteTarget]) -> Finding {
    let named = is_source.then(|| "--buckets".to_owned());
    let named: Vec<_> = named.into_iter().chain(targets.iter().map(ToString::to_string)).collect();
    let what = format!("it does not exist, but is set by {}", named.join(", "));
    Finding::new(
        Rule::BucketNotFound,
        format!("bucket {bucket}"),
        what,
        "create it, or correct its name",
    )
}

/// Checks that the store enforces conditional writes. Tests it only if the test record does not
/// become a message.
async fn conditional_writes(s3: &S3, place: &S3Location, is_quiet: bool) -> Option<Finding> {
    if is_quiet {
        return check_conditions(s3, place).await;
    }
    (!s3.is_at_aws()).then(|| {
        let what = "conditional writes were not tested: the test record might become a message";
        let change = "allow s3:GetBucketNotification, so that check can see that the test record does not become a message; the first record of a run tests it, too";
        Finding::new(Rule::ConditionsUntried, "--idempotency", what, change)
    })
}

/// Without conditional writes, two pods could own the same work.
async fn check_conditions(s3: &S3, place: &S3Location) -> Option<Finding> {
    let key = place.key("leasehold-check.json");
    match s3.check_conditions(&place.bucket, &key).await {
        Ok(()) => None,
        Err(RecordError::ConditionsUnsupported(why)) => {
            let change = "keep the records in a store that supports If-None-Match and If-Match";
            Some(Finding::new(Rule::ConditionsIgnored, "--idempotency", why, change))
        }
        Err(
            error @ (RecordError::ConditionFailed
            | RecordError::Refused(_)
            | RecordError::Retryable(_)),
        ) => {
            let change = "allow s3:PutObject there; the first record of a run tests it, too";
            let what = format!("conditional writes could not be tested: {error}");
            Some(Finding::new(Rule::ConditionsUntried, "--idempotency", what, change))
        }
    }
}

/// Whether files that a run writes into a bucket become messages.
fn check_write_targets(
    bucket: &str,
    targets: &[&WriteTarget],
    notifications: Result<Notifications, NotificationsError>,
    queue_arn: Option<&str>,
    config: &RunConfig,
) -> Vec<Finding> {
    let place = format!("bucket {bucket}, notifications");
    let allow = "allow s3:GetBucketNotification to the identity that runs check";
    let all = targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let look = format!("check that files written there do not become messages of the queue: {all}");
    match (notifications, queue_arn) {
        (Ok(notifications), Some(arn)) => {
            let work = &config.work.settings.policy.selection.events;
            let mut findings: Vec<_> = targets
                .iter()
                .flat_map(|one| write_targets::findings(one, &notifications, arn, work))
                .collect();
            if notifications.others && !targets.is_empty() {
                let what = "it also notifies EventBridge or SNS, and check cannot see whether they notify the queue";
                findings.push(Finding::new(Rule::NotificationsUnseen, place, what, look));
            }
            findings
        }
        (Ok(_), None) if targets.is_empty() => Vec::new(),
        (Ok(_), None) => {
            vec![Finding::new(
                Rule::NotificationsUnseen,
                place,
                "the queue's ARN is not known, so its notifications could not be recognised",
                look,
            )]
        }
        (Err(why), _) if targets.is_empty() => {
            vec![Finding::new(
                Rule::NotificationsUnseen,
                place,
                why.to_string(),
                format!("{allow}; the pod does not need it"),
            )]
        }
        (Err(why), _) => {
            vec![Finding::new(
                Rule::NotificationsUnseen,
                place,
                why.to_string(),
                format!("{allow}, or {look}"),
            )]
        }
    }
}

/// Whether a KMS key is needed, too.
async fn check_encryption(s3: &S3, bucket: &str) -> Option<Finding> {
    let place = format!("bucket {bucket}, encryption");
    let needs = "the pod's role needs kms:Decrypt to read and kms:GenerateDataKey to write";
    match s3.default_kms_key(bucket).await {
        Ok(None) => None,
        Ok(Some(key)) => {
            let what = format!("check cannot see whether the pod may use the KMS key {key}");
            Some(Finding::new(
                Rule::KmsKeyUnseen,
                place,
                what,
                format!("{needs}, and the key's policy must allow both"),
            ))
        }
        Err(why) => Some(Finding::new(
            Rule::KmsKeyUnseen,
            place,
            why,
            format!("if it uses a KMS key, {needs}"),
        )),
    }
}

/// Whether the role may write where a run writes.
async fn check_write_permissions(s3: &S3, target: &WriteTarget, key_prefix: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for key in target.samples(key_prefix) {
        let mut may_list = true;
        for (action, severity) in target.kind.needs() {
            let place = format!("{target}, {action}");
            let with_headers = *action == BucketAction::Put && s3.sends_headers(&target.attributes);
            let permission = if with_headers {
                s3.probe_headers(&target.to.bucket, &key, &target.attributes).await
            } else {
                s3.probe(*action, &target.to.bucket, &key).await
            };
            match permission {
                Permission::Allowed => {}
                Permission::Denied(why) if *action == BucketAction::Get && !may_list => {
                    let why = format!(
                        "{why} (without s3:ListBucket, S3 answers 403 for a missing object, too)"
                    );
                    findings.push(Finding::new(
                        Rule::PermissionUnseen,
                        place,
                        why,
                        "allow s3:ListBucket, then run check again",
                    ));
                }
                Permission::Denied(why) => {
                    may_list &= *action != BucketAction::List;
                    let change = if with_headers {
                        "allow it in the pod's role, with s3:PutObjectTagging for --output-tags, s3:PutObjectAcl for --output-acl, and kms:GenerateDataKey and kms:Decrypt for --output-sse-kms-key; or correct the flag, or the bucket's name or region"
                    } else {
                        "allow it in the pod's role, or correct the bucket's name or region"
                    };
                    let finding = Finding::new(Rule::WritePermission, place, why, change);
                    findings.push(finding.with_severity(*severity));
                }
                Permission::Unknown(why) => {
                    let change = "check the endpoint, then run check again";
                    findings.push(Finding::new(Rule::PermissionUnseen, place, why, change));
                }
            }
        }
    }
    if matches!(target.kind, TargetKind::Checkpoint | TargetKind::Attempts) {
        let what = "it was not called: in a versioned bucket, deleting a missing object leaves a delete marker";
        findings.push(Finding::new(
            Rule::PermissionUntried,
            format!("{target}, s3:DeleteObject"),
            what,
            "the pod's role must allow it",
        ));
    }
    findings
}

/// SQS requires a dead-letter queue to be in the same account and region.
fn sibling_url(queue_url: &str, name: &str) -> String {
    format!("{}{name}", &queue_url[..queue_url.len() - queue_url::queue_name(queue_url).len()])
}

async fn check_queue_permissions(sqs: &Sqs, config: &RunConfig) -> Vec<Finding> {
    let place =
        |call: &str| format!("queue {}, sqs:{call}", queue_url::queue_name(&config.queue_url));
    let mut findings = vec![Finding::new(
        Rule::PermissionUntried,
        place("ReceiveMessage"),
        "it was not called, since a receive counts as an attempt; kms:Decrypt, which an encrypted queue needs, was not tested either",
        "the pod's role must allow them",
    )];
    for (call, answer) in [
        ("ChangeMessageVisibility", sqs.probe_change_visibility().await),
        ("DeleteMessage", sqs.probe_delete().await),
    ] {
        match answer.permission {
            Permission::Allowed => {}
            Permission::Denied(why) => {
                findings.push(Finding::new(
                    Rule::QueuePermission,
                    place(call),
                    why,
                    "allow it in the pod's role",
                ));
            }
            Permission::Unknown(why) => {
                findings.push(Finding::new(
                    Rule::QueueUnanswered,
                    place(call),
                    why,
                    "check the endpoint and the credentials",
                ));
            }
        }
        findings.extend(answer.date.and_then(|date| check_clock(date, SystemTime::now())));
    }
    findings
}

/// Compares SQS's clock with ours.
fn check_clock(theirs: SystemTime, ours: SystemTime) -> Option<Finding> {
    let skew = theirs.duration_since(ours).unwrap_or_else(|error| error.duration());
    let what = || format!("it differs from the clock of SQS by {}s", skew.as_secs());
    let change = "synchronise it, with chrony or the Amazon Time Sync Service";
    if skew > SKEW_REFUSED {
        let what = format!("{}, and AWS refuses signatures that are more than 5m off", what());
        Some(Finding::new(Rule::ClockSkew, "this machine's clock", what, change))
    } else {
        let drifts = || Finding::new(Rule::ClockSkew, "this machine's clock", what(), change);
        (skew > SKEW_NOTICED).then(|| drifts().with_severity(Severity::Warning))
    }
}

/// Findings about a bucket from which a run reads objects.
async fn check_source(
    s3: &S3,
    bucket: &str,
    notifications: &Result<Notifications, NotificationsError>,
    queue_arn: Option<&str>,
    config: &RunConfig,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let place = format!("bucket {bucket}");
    let mut prefix = String::new();
    if let (Ok(notifications), Some(arn)) = (notifications, queue_arn) {
        let to_us: Vec<_> = notifications.to(arn).collect();
        if let Some(first) = to_us.first() {
            prefix.clone_from(&first.prefix);
        }
        let policy = &config.work.settings.policy;
        let is_work = |one: &&Notification| {
            one.events.iter().any(|event| policy.selection.events.overlaps(event))
        };
        if to_us.is_empty() && notifications.others {
            let what = "it notifies EventBridge or SNS, but not the queue itself";
            findings.push(Finding::new(
                Rule::NotificationsUnseen,
                place.as_str(),
                what,
                "check that their rule or subscription reaches the queue",
            ));
        } else if to_us.is_empty() && policy.finds_objects() {
            // Other senders name its objects.
        } else if to_us.is_empty() {
            let change = format!("add a notification to {arn}");
            findings.push(Finding::new(
                Rule::BucketSilent,
                place.as_str(),
                "it does not notify the queue of new objects",
                change,
            ));
        } else if !to_us.iter().any(is_work) {
            let change = "make the notification's events and --events agree";
            findings.push(Finding::new(
                Rule::EventsMismatch,
                place.as_str(),
                "--events includes none of the events that it sends, so all their messages are deleted",
                change,
            ));
        }
    }
    let absent = Object::named(bucket, format!("{prefix}leasehold-check/no-such-object"));
    match s3.open(&absent).await {
        Ok(_) | Err(FetchError::Missing(_)) => {}
        Err(
            FetchError::Retryable(why) | FetchError::Permanent(why) | FetchError::Overwritten(why),
        ) => {
            let change = "allow s3:GetObject, and s3:ListBucket, without which S3 answers 403 for a missing object";
            findings.push(Finding::new(
                Rule::ReadPermission,
                format!("{place}, s3:GetObject"),
                why,
                change,
            ));
        }
    }
    findings
}

async fn check_pushgateway(
    config: PushgatewayConfig,
    ca_bundle: Option<PathBuf>,
) -> Option<Finding> {
    let PushgatewayConfig { url, job, credentials } = config;
    let asked = Pushgateway::new(Http::new(ca_bundle), &url, job, credentials).reach().await;
    let change = "correct --pushgateway, or start the Pushgateway; a run works without it, but its metrics are lost";
    asked.err().map(|why| {
        Finding::new(Rule::PushgatewayUnreachable, format!("--pushgateway {url}"), why, change)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Severity::{Error, Warning};
    use super::*;

    #[test]
    fn a_wrong_clock_is_reported_in_both_directions() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(1);
        let found = |seconds: i64| {
            let skew = Duration::from_secs(seconds.unsigned_abs());
            check_clock(if seconds < 0 { now - skew } else { now + skew }, now)
                .map(|finding| finding.severity)
        };
        for (seconds, severity) in [
            (0, None),
            (-30, None),
            (31, Some(Warning)),
            (-31, Some(Warning)),
            (301, Some(Error)),
            (-301, Some(Error)),
        ] {
            assert_eq!(found(seconds), severity, "{seconds}");
        }
    }

    #[test]
    fn a_dead_letter_queue_has_the_url_of_its_source_with_another_name() {
        assert_eq!(
            sibling_url("https://sqs.eu-west-1.amazonaws.com/1/orders", "dlq"),
            "https://sqs.eu-west-1.amazonaws.com/1/dlq"
        );
    }
}
