//! The requests of `leasehold check` about a bucket. Only [`S3::check_conditions`] writes an object.

use std::fmt;
use std::path::Path;

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, FilterRule, FilterRuleName};

use super::S3;
use super::records::is_missing;
use crate::adapters::aws::{self, Failure, Permission, answers};
use crate::job::object_attributes::ObjectAttributes;
use crate::job::s3_location::is_access_point;
use crate::ports::{Condition, RecordError, Upload};

/// The targets to which a bucket sends its events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notifications {
    pub to_queues: Vec<Notification>,
    /// EventBridge, or SNS topics.
    pub others: bool,
}

impl Notifications {
    /// The rules that send events to this queue.
    pub fn to(&self, queue_arn: &str) -> impl Iterator<Item = &Notification> {
        self.to_queues.iter().filter(move |one| one.queue_arn == queue_arn)
    }
}

/// A rule that sends the events of some keys to a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The name that S3 or the author of the rule chose; may be empty.
    pub id: String,
    pub queue_arn: String,
    /// Such as `ObjectCreated:*`.
    pub events: Vec<String>,
    /// The prefix and the suffix of the keys; may be empty.
    pub prefix: String,
    pub suffix: String,
}

impl Notification {
    /// Whether the rule covers events of this name (`ObjectCreated:Put`).
    pub fn covers(&self, event: &str) -> bool {
        self.events.iter().any(|covered| match covered.strip_suffix('*') {
            Some(family) => event.starts_with(family),
            None => event == covered,
        })
    }
}

/// Why a bucket's notifications are unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotificationsError {
    /// The store does not support notifications.
    #[error("{0}")]
    NotImplemented(String),
    #[error("{0}")]
    Unknown(String),
}

impl S3 {
    /// The bucket's event notifications; `None` if the bucket does not exist.
    pub async fn notifications(
        &self,
        bucket: &str,
    ) -> Result<Option<Notifications>, NotificationsError> {
        if is_access_point(bucket) {
            let why = "an access point does not show the notifications of its bucket";
            return Err(NotificationsError::Unknown(why.to_owned()));
        }
        let request = self.client().get_bucket_notification_configuration().bucket(bucket);
        let request = request.set_expected_bucket_owner(self.options.expected_owner.clone());
        let answer =
            self.send(bucket, |config| request.clone().customize().config_override(config).send());
        let answer = match answer.await {
            Ok(answer) => answer,
            Err(failure) => {
                let why = reason(&failure);
                return match failure {
                    Failure::Refused { code: Some(code), .. } if code == "NoSuchBucket" => Ok(None),
                    Failure::Refused { code: Some(code), status, .. }
                        if (status == 501 || code == "NotImplemented") && !self.is_at_aws() =>
                    {
                        Err(NotificationsError::NotImplemented(why))
                    }
                    Failure::Refused { .. }
                    | Failure::Misconfigured(_)
                    | Failure::Unanswered(_) => Err(NotificationsError::Unknown(why)),
                };
            }
        };
        let others = answer.event_bridge_configuration.is_some()
            || !answer.topic_configurations().is_empty();
        let to_queues = answer.queue_configurations.unwrap_or_default().into_iter().map(|one| {
            let rules = one.filter.and_then(|filter| filter.key?.filter_rules).unwrap_or_default();
            let value = |name: &str| {
                // S3 accepts the names in any case, and returns them as they were given.
                let is_it = |rule: &&FilterRule| {
                    rule.name().is_some_and(|is| is.as_str().eq_ignore_ascii_case(name))
                };
                rules.iter().find(is_it).and_then(FilterRule::value).unwrap_or_default().to_owned()
            };
            Notification {
                id: one.id.unwrap_or_default(),
                queue_arn: one.queue_arn,
                events: one
                    .events
                    .iter()
                    .map(|event| event.as_str().trim_start_matches("s3:").to_owned())
                    .collect(),
                prefix: value(FilterRuleName::Prefix.as_str()),
                suffix: value(FilterRuleName::Suffix.as_str()),
            }
        });
        Ok(Some(Notifications { to_queues: to_queues.collect(), others }))
    }

    /// The KMS key with which a bucket encrypts objects by default. The error is the reason why it
    /// is unknown.
    pub async fn default_kms_key(&self, bucket: &str) -> Result<Option<String>, String> {
        if is_access_point(bucket) {
            return Err("an access point does not show the encryption of its bucket".to_owned());
        }
        let request = self.client().get_bucket_encryption().bucket(bucket);
        let request = request.set_expected_bucket_owner(self.options.expected_owner.clone());
        let answer =
            self.send(bucket, |config| request.clone().customize().config_override(config).send());
        let rules = match answer.await {
            Ok(answer) => {
                answer.server_side_encryption_configuration.map(|all| all.rules).unwrap_or_default()
            }
            // Missing: none has been set.
            Err(failure) if is_missing(&failure) => Vec::new(),
            Err(failure) => return Err(reason(&failure)),
        };
        let mut keys =
            rules.into_iter().filter_map(|rule| rule.apply_server_side_encryption_by_default);
        let key = keys.find(|one| one.sse_algorithm.as_str().starts_with("aws:kms"));
        Ok(key.map(|key| key.kms_master_key_id.unwrap_or_else(|| "aws/s3".to_owned())))
    }

    /// Whether this is S3, and not another store.
    pub fn is_at_aws(&self) -> bool {
        aws::custom_endpoint(&self.config, "S3")
            .is_none_or(|endpoint| answers::is_at_aws(&endpoint))
    }

    /// Checks that the store enforces the conditions of writes. S3 does, and gets no request. In
    /// other stores, this writes the record `key` if it does not exist, and keeps it.
    pub async fn check_conditions(&self, bucket: &str, key: &str) -> Result<(), RecordError> {
        const RECORD: &[u8] = br#"{"written_by":"leasehold check"}"#;
        if self.is_at_aws() {
            return Ok(());
        }
        match self.write_if(bucket, key, RECORD, Condition::Absent).await {
            Ok(_) | Err(RecordError::ConditionFailed) => {
                self.prove_conditions(bucket, key, RECORD).await
            }
            Err(error) => Err(error),
        }
    }

    /// Whether objects with these attributes have headers that need permissions of their own.
    pub fn sends_headers(&self, attributes: &ObjectAttributes) -> bool {
        self.options.encryption.is_some() || *attributes != ObjectAttributes::default()
    }

    /// Whether we may write an object with the headers of these attributes. Begins an upload in
    /// parts, whose request has these headers, and aborts it.
    pub async fn probe_headers(
        &self,
        bucket: &str,
        key: &str,
        attributes: &ObjectAttributes,
    ) -> Permission {
        let upload = Upload {
            bucket,
            key,
            path: Path::new(""),
            bytes: 0,
            content_type: "application/octet-stream",
            attributes: Some(attributes),
        };
        match self.create_upload(&upload).await {
            Ok(id) => {
                self.abort_parts(&upload, &id.unwrap_or_default()).await;
                Permission::Allowed
            }
            Err(failure) => permission(bucket, key, &failure),
        }
    }

    /// Whether we may do this with an object of such a key. `key` must not exist.
    ///
    /// S3 checks permissions before existence. So requests for an object or a multipart upload that
    /// does not exist reveal the permissions, and change nothing.
    pub async fn probe(&self, action: BucketAction, bucket: &str, key: &str) -> Permission {
        let (client, owner) = (self.client(), self.options.expected_owner.clone());
        let folder = key.rfind('/').map_or("", |slash| &key[..=slash]);
        let failure = match action {
            BucketAction::List => {
                let list = client.list_objects_v2().bucket(bucket).prefix(folder).max_keys(1);
                let list = list.set_expected_bucket_owner(owner).set_request_payer(self.payer());
                self.send(bucket, |config| list.clone().customize().config_override(config).send())
                    .await
                    .err()
            }
            BucketAction::Get => {
                let get = client
                    .get_object()
                    .bucket(bucket)
                    .key(key)
                    .set_expected_bucket_owner(owner)
                    .set_request_payer(self.payer());
                self.send(bucket, |config| get.clone().customize().config_override(config).send())
                    .await
                    .err()
            }
            BucketAction::Put => {
                let part = CompletedPart::builder().part_number(1).e_tag(NO_UPLOAD).build();
                let parts = CompletedMultipartUpload::builder().parts(part).build();
                let put =
                    client.complete_multipart_upload().bucket(bucket).key(key).upload_id(NO_UPLOAD);
                let put = put
                    .multipart_upload(parts)
                    .set_expected_bucket_owner(owner)
                    .set_request_payer(self.payer());
                self.send(bucket, |config| put.clone().customize().config_override(config).send())
                    .await
                    .err()
            }
            BucketAction::Abort => {
                let abort =
                    client.abort_multipart_upload().bucket(bucket).key(key).upload_id(NO_UPLOAD);
                let abort = abort.set_expected_bucket_owner(owner).set_request_payer(self.payer());
                self.send(bucket, |config| abort.clone().customize().config_override(config).send())
                    .await
                    .err()
            }
        };
        match &failure {
            None => Permission::Allowed,
            Some(Failure::Refused { status: 404, code, .. })
                if code.as_deref() != Some("NoSuchBucket") =>
            {
                Permission::Allowed
            }
            Some(failure) => permission(bucket, key, failure),
        }
    }
}

fn permission(bucket: &str, key: &str, failure: &Failure) -> Permission {
    let what = format!("s3://{bucket}/{key}: {}", reason(failure));
    match failure {
        Failure::Refused { status: ..500, .. } => Permission::Denied(what),
        Failure::Refused { .. } | Failure::Misconfigured(_) | Failure::Unanswered(_) => {
            Permission::Unknown(what)
        }
    }
}

/// An upload id that does not exist in any bucket.
const NO_UPLOAD: &str = "leasehold-check";

/// An action that [`S3::probe`] can check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketAction {
    List,
    Get,
    Put,
    Abort,
}

/// IAM's name of the action.
impl fmt::Display for BucketAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List => "s3:ListBucket",
            Self::Get => "s3:GetObject",
            Self::Put => "s3:PutObject",
            Self::Abort => "s3:AbortMultipartUpload",
        })
    }
}

fn reason(failure: &Failure) -> String {
    match failure {
        Failure::Refused { code, message, status } => {
            let code = code.clone().unwrap_or_else(|| format!("HTTP {status}"));
            format!("{code}: {}", message.as_deref().unwrap_or("no reason given"))
        }
        Failure::Misconfigured(why) | Failure::Unanswered(why) => why.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::super::testing::Canned;
    use super::*;

    #[tokio::test]
    async fn a_missing_object_or_upload_means_that_the_action_is_allowed() {
        for (status, code, is) in [
            (404, "NoSuchUpload", "allowed"),
            (404, "NoSuchKey", "allowed"),
            (403, "AccessDenied", "denied"),
            (403, "InvalidAccessKeyId", "denied"),
            (404, "NoSuchBucket", "denied"),
            (301, "PermanentRedirect", "denied"),
            (501, "NotImplemented", "unknown"),
        ] {
            for action in
                [BucketAction::List, BucketAction::Get, BucketAction::Put, BucketAction::Abort]
            {
                let body =
                    format!("<Error><Code>{code}</Code><Message>S3 error text</Message></Error>");
                let permission = S3::new(&Canned::new(status, None, body).config(), None)
                    .probe(action, "b", "out/k")
                    .await;
                let (permission, why) = match permission {
                    Permission::Allowed => {
                        ("allowed", format!("s3://b/out/k: {code}: S3 error text"))
                    }
                    Permission::Denied(why) => ("denied", why),
                    Permission::Unknown(why) => ("unknown", why),
                };
                assert_eq!(
                    (permission, why),
                    (is, format!("s3://b/out/k: {code}: S3 error text")),
                    "{action}"
                );
            }
        }
    }

    /// S3 capitalises the names in a filter, unlike its API.
    #[tokio::test]
    async fn a_notification_is_read_as_s3_writes_it() {
        let body = r#"<NotificationConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><QueueConfiguration>
            <Id>results</Id><Queue>arn:aws:sqs:eu-west-1:1:q</Queue><Event>s3:ObjectCreated:*</Event>
            <Filter><S3Key><FilterRule><Name>Prefix</Name><Value>in/</Value></FilterRule>
            <FilterRule><Name>Suffix</Name><Value>.csv</Value></FilterRule></S3Key></Filter>
            </QueueConfiguration></NotificationConfiguration>"#;
        let found =
            S3::new(&Canned::new(200, None, body).config(), None).notifications("b").await.unwrap();
        let notification = Notification {
            id: "results".into(),
            queue_arn: "arn:aws:sqs:eu-west-1:1:q".into(),
            events: vec!["ObjectCreated:*".into()],
            prefix: "in/".into(),
            suffix: ".csv".into(),
        };
        assert_eq!(
            found,
            Some(Notifications { to_queues: vec![notification.clone()], others: false })
        );
        let found = found.unwrap();
        assert!(
            notification.covers("ObjectCreated:Put")
                && !notification.covers("ObjectRemoved:Delete")
        );
        assert!(
            found.to("arn:aws:sqs:eu-west-1:1:q").eq([&notification])
                && found.to("another").next().is_none()
        );
    }

    #[tokio::test]
    async fn the_bucket_behind_an_access_point_is_not_asked() {
        let server = Canned::new(200, None, "");
        let s3 = S3::new(&server.config(), None);
        let arn = "arn:aws:s3:eu-west-1:123456789012:accesspoint/orders";
        let unknown = s3.notifications(arn).await.unwrap_err();
        assert!(
            matches!(&unknown, NotificationsError::Unknown(why) if why.contains("access point"))
        );
        assert!(s3.default_kms_key(arn).await.unwrap_err().contains("access point"));
        assert_eq!(server.requests.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_without_notifications_is_recognised() {
        for (status, code, endpoint, is_without) in [
            (501, "NotImplemented", "http://store:9000", true),
            (400, "NotImplemented", "http://store:9000", true),
            (501, "NotImplemented", "https://s3.eu-west-1.amazonaws.com", false),
            (403, "AccessDenied", "http://store:9000", false),
            (503, "SlowDown", "http://store:9000", false),
        ] {
            let server = Canned::new(status, None, format!("<Error><Code>{code}</Code></Error>"));
            let config = server.config().into_builder().endpoint_url(endpoint).build();
            let error = S3::new(&config, None).notifications("b").await.unwrap_err();
            assert_eq!(
                matches!(error, NotificationsError::NotImplemented(_)),
                is_without,
                "{error:?}"
            );
        }
    }

    #[tokio::test]
    async fn another_store_than_s3_must_enforce_conditions() {
        let refused = "<Error><Code>PreconditionFailed</Code></Error>";
        for (server, endpoint, is, requests) in [
            (Canned::new(412, None, refused), "http://store:9000", "enforced", 3),
            (Canned::new(200, None, ""), "http://store:9000", "ignored", 3),
            (
                Canned::new(403, None, "<Error><Code>AccessDenied</Code></Error>"),
                "http://store:9000",
                "unknown",
                1,
            ),
            (
                Canned::new(200, None, ""),
                "https://bucket.vpce-1.s3.eu-west-1.vpce.amazonaws.com",
                "enforced",
                0,
            ),
        ] {
            let config = server.config().into_builder().endpoint_url(endpoint).build();
            let conditions = match S3::new(&config, None).check_conditions("b", "k").await {
                Ok(()) => "enforced",
                Err(RecordError::ConditionsUnsupported(_)) => "ignored",
                Err(
                    RecordError::ConditionFailed
                    | RecordError::Refused(_)
                    | RecordError::Retryable(_),
                ) => "unknown",
            };
            assert_eq!(
                (conditions, server.requests.load(Ordering::Relaxed)),
                (is, requests),
                "{endpoint}"
            );
        }
    }
}
