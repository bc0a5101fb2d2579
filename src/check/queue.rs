//! Checks a queue and its dead-letter queue against the settings of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Finding, Rule, policy};
use crate::adapters::aws::sqs::queue_url;
use crate::job::delivery::Redrive;
use crate::job::route::Limits;
use crate::job::verdict::Retry;
use crate::settings::resolve::RunConfig;

/// The answer of GetQueueAttributes.
pub type Attributes = BTreeMap<String, String>;

/// The known facts about the queues.
#[derive(Debug, Clone)]
pub struct QueueFacts {
    /// The queue's attributes, by their names in SQS's API.
    pub attributes: Attributes,
    /// The redrive policy in the attributes.
    pub redrive: Redrive,
    /// The attributes of the dead-letter queue; `None` if it does not exist, or the reason why they
    /// are unknown.
    pub dead_letter: Result<Option<Attributes>, String>,
}

/// With fewer receives, one bad moment moves a message to the DLQ: stops and crashes use up
/// receives, too.
const FEW_ATTEMPTS: u32 = 3;

/// Findings about the queue `queue_url`.
pub fn findings(queue_url: &str, facts: &QueueFacts, config: &RunConfig) -> Vec<Finding> {
    let name = queue_url::queue_name(queue_url);
    let place = |what: &str| format!("queue {name}, {what}");
    let mut findings = Vec::new();
    let retention = seconds(&facts.attributes, "MessageRetentionPeriod");
    let worst = worst_attempt(config);
    if let Some(retention) = retention.filter(|retention| *retention < worst) {
        findings.push(Finding::new(
            Rule::RetentionBelowAttempt,
            place("MessageRetentionPeriod"),
            format!(
                "{} is shorter than one attempt with its retry delay ({}): the message expires while it is being processed",
                show(retention),
                show(worst)
            ),
            format!("set it above {}, or lower --max-duration and --retry-max", show(worst)),
        ));
    }
    match facts.attributes.get("KmsMasterKeyId") {
        Some(key) if key.ends_with("alias/aws/sqs") => findings.push(Finding::new(Rule::AwsManagedKey, place("KmsMasterKeyId"),
            "S3 cannot use the AWS managed key for SQS, so no event arrives",
            "use SSE-SQS, or your own key with a policy that allows s3.amazonaws.com kms:GenerateDataKey and kms:Decrypt",
        )),
        Some(key) if !key.is_empty() => findings.push(Finding::new(Rule::KmsKeyUnseen, place("KmsMasterKeyId"),
            format!("check cannot see whether S3 and the pod may use the key {key}"),
            "its policy must allow s3.amazonaws.com kms:GenerateDataKey and kms:Decrypt, and the pod's role needs kms:Decrypt",
        )),
        Some(_) | None => {}
    }
    match &facts.redrive {
        Redrive::None => findings.push(Finding::new(
            Rule::NoDeadLetterQueue,
            place("RedrivePolicy"),
            "there is no dead-letter queue: a message that always fails is retried until it expires, and is lost",
            "set a RedrivePolicy with a dead-letter queue and maxReceiveCount 5",
        )),
        Redrive::Unknown => findings.push(Finding::new(
            Rule::QueueUnseen,
            place("RedrivePolicy"),
            "it could not be read",
            "check that it has deadLetterTargetArn and maxReceiveCount",
        )),
        Redrive::DeadLetter { max_receive_count, queue } => {
            if *max_receive_count < FEW_ATTEMPTS {
                findings.push(Finding::new(
                    Rule::FewReceives,
                    place("RedrivePolicy"),
                    format!("maxReceiveCount {max_receive_count} is low: each pod stop and each crash also uses up one receive"),
                    "set it to 5, or to 10 on spot nodes",
                ));
            }
            let all = worst * *max_receive_count;
            if let Some(retention) = retention.filter(|retention| worst <= *retention && *retention < all) {
                findings.push(Finding::new(Rule::RetentionBelowAttempts, place("MessageRetentionPeriod"),
                    format!("{max_receive_count} attempts may take {}, but the message expires after {} and never reaches {queue}",
                        show(all), show(retention)),
                    format!("set it above {}, or lower --max-duration, --retry-max or maxReceiveCount", show(all)),
                ));
            }
            findings.extend(dead_letter(name, queue, facts, retention));
        }
    }
    findings
}

/// Whether S3 may send the events of this bucket to the queue.
pub fn sending(queue_url: &str, attributes: &Attributes, bucket: &str) -> Option<Finding> {
    let place = format!("queue {}, Policy", queue_url::queue_name(queue_url));
    let arn = attributes.get("QueueArn").map_or("", String::as_str);
    let may_send = match attributes.get("Policy").filter(|policy| !policy.is_empty()) {
        Some(policy) => policy::lets_s3_send(policy, arn, bucket),
        // Other servers than AWS need no policy.
        None => Some(!queue_url::is_at_aws(queue_url)),
    };
    let change = format!(
        "allow s3.amazonaws.com sqs:SendMessage with the condition that aws:SourceArn is the ARN of bucket {bucket}"
    );
    match may_send {
        Some(true) => None,
        Some(false) => {
            let what =
                format!("S3 may not send to the queue, so no event of bucket {bucket} arrives");
            Some(Finding::new(Rule::QueuePolicy, place, what, change))
        }
        None => {
            let what = format!(
                "check cannot see whether S3 may send events of bucket {bucket}: the policy has conditions that check does not know"
            );
            Some(Finding::new(Rule::QueuePolicyUnseen, place, what, change))
        }
    }
}

fn dead_letter(
    name: &str,
    queue: &str,
    facts: &QueueFacts,
    retention: Option<Duration>,
) -> Vec<Finding> {
    let place = |what: &str| format!("dead-letter queue {queue}{what}");
    let attributes = match &facts.dead_letter {
        Ok(Some(attributes)) => attributes,
        Ok(None) => {
            return vec![Finding::new(
                Rule::DeadLetterQueueNotFound,
                place(""),
                format!("it does not exist: SQS cannot move failed messages from {name} to it"),
                "create it, or correct deadLetterTargetArn in the queue's RedrivePolicy",
            )];
        }
        Err(why) => {
            return vec![Finding::new(
                Rule::QueueUnseen,
                place(""),
                why,
                format!(
                    "check that it keeps messages longer than {name}, and that it allows {name} as its source"
                ),
            )];
        }
    };
    let mut findings = Vec::new();
    let kept = seconds(attributes, "MessageRetentionPeriod");
    // In FIFO queues, the retention restarts with the move.
    if let (Some(kept), Some(retention), false) = (kept, retention, queue_url::is_fifo(name))
        && kept <= retention
    {
        let place = place(", MessageRetentionPeriod");
        let [kept_for, in_queue] = [kept, retention].map(show);
        let counts = "and the retention counts from the first send: a dead letter may expire before or soon after it arrives";
        let change = "set it to 14 days (1209600)";
        findings.push(if kept < retention {
            let what = format!("{kept_for} is shorter than the {in_queue} of {name}, {counts}");
            Finding::new(Rule::DeadLetterRetention, place, what, change)
        } else {
            // Equal by default.
            let what = format!("{kept_for} is not longer than the {in_queue} of {name}, {counts}");
            Finding::new(Rule::DeadLetterRetentionEqual, place, what, change)
        });
    }
    let arn = facts.attributes.get("QueueArn").map_or("", String::as_str);
    if attributes.get("RedriveAllowPolicy").is_some_and(|policy| !allows(policy, arn)) {
        findings.push(Finding::new(
            Rule::RedriveNotAllowed,
            place(", RedriveAllowPolicy"),
            format!("it does not allow {name} as its source"),
            format!("add {arn} to its sourceQueueArns"),
        ));
    }
    findings
}

/// Whether this policy (`{"redrivePermission": "byQueue", "sourceQueueArns": […]}`) accepts the
/// queue's dead letters.
fn allows(policy: &str, arn: &str) -> bool {
    let Ok(policy) = serde_json::from_str::<serde_json::Value>(policy) else { return true };
    match policy["redrivePermission"].as_str() {
        Some("denyAll") => false,
        Some("byQueue") => policy["sourceQueueArns"]
            .as_array()
            .is_some_and(|arns| arns.iter().any(|one| one == arn)),
        Some(_) | None => true,
    }
}

/// The longest duration of one attempt, until the message is visible again.
fn worst_attempt(config: &RunConfig) -> Duration {
    let settings = &config.work.settings;
    let limits = settings
        .policy
        .job_types
        .iter()
        .map(|job_type| &job_type.limits)
        .chain([&settings.policy.limits]);
    let hidden_after = |limits: &Limits| match limits.retry.retry {
        Retry::Backoff { max, .. } => max,
        Retry::Expire => limits.visibility,
    };
    let longest = limits.map(|limits| {
        limits.max_duration + settings.stop.total(limits.stop_grace) + hidden_after(limits)
    });
    longest.max().unwrap_or_default()
}

fn seconds(attributes: &Attributes, name: &str) -> Option<Duration> {
    attributes.get(name)?.parse().ok().map(Duration::from_secs)
}

fn show(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
