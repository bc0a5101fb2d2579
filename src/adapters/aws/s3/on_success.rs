//! What `--on-success` does to an object.
//!
//! An object that another one has replaced is never touched. Each request has the eTag as its
//! condition. Not every store enforces that for a delete, so the latest version is read first.

use std::time::Duration;

use aws_sdk_s3::config::Builder;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::types::{Tag, Tagging};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::S3;
use super::errors::{describe, display_uri, fetch_error, write_error};
use super::identity::unquoted;
use crate::adapters::aws::Failure;
use crate::job::notification::Object;
use crate::job::on_success::{ActedOn, OnSuccess};
use crate::job::s3_location::S3Location;
use crate::ports::FetchError;

/// The most tags of an object (S3 User Guide, "Categorizing your objects using tags").
const MOST_TAGS: usize = 10;

/// The largest object that one CopyObject copies, in bytes (S3 API, "CopyObject").
const LARGEST_COPY: u64 = 5 << 30;

/// The slowest speed at which S3 copies, in bytes a second.
const SLOWEST_COPY: u64 = 16 << 20;

/// Characters that a `x-amz-copy-source` has as they are.
const IN_COPY_SOURCE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The latest version of an object.
struct Latest {
    etag: String,
    version_id: Option<String>,
    /// In bytes.
    size: u64,
}

impl S3 {
    /// The error is the reason.
    pub(super) async fn act(&self, object: &Object, action: &OnSuccess) -> Result<ActedOn, String> {
        if let OnSuccess::Tag { key, value } = action
            && object.version_id.is_some()
        {
            return self.tag(object, object.version_id.clone(), key, value).await;
        }
        let latest = match self.latest(object).await? {
            Ok(latest) => latest,
            Err(why) => return Ok(why),
        };
        match action {
            OnSuccess::Tag { key, value } => self.tag(object, latest.version_id, key, value).await,
            OnSuccess::Move(to) => {
                if is_below(object, to) {
                    return Ok(ActedOn::Object);
                }
                match self.copy(object, &latest, to).await? {
                    ActedOn::Object => self.delete_latest(object, &latest).await,
                    other @ (ActedOn::Missing | ActedOn::Overwritten) => Ok(other),
                }
            }
            OnSuccess::Delete => self.delete_latest(object, &latest).await,
        }
    }

    /// The latest version, if it is the one of the event.
    async fn latest(&self, object: &Object) -> Result<Result<Latest, ActedOn>, String> {
        if object.etag.is_none() && object.version_id.is_none() {
            return Err(format!(
                "{}: the event has neither a version nor an eTag, so another object may have replaced it",
                display_uri(object)
            ));
        }
        let current = Object { version_id: None, ..object.clone() };
        let ask = async |range: Option<&str>| {
            let get = self.get(&current).set_range(range.map(str::to_owned));
            let send = |config| get.clone().customize().config_override(config).send();
            self.send(&object.bucket, send).await
        };
        // The first byte only; an empty object has none.
        let answer = match ask(Some("bytes=0-0")).await {
            Err(Failure::Refused { status: 416, .. }) => ask(None).await,
            answer => answer,
        };
        let answer = match answer.map_err(|failure| fetch_error(&current, &failure)) {
            Ok(answer) => answer,
            Err(FetchError::Missing(_)) => return Ok(Err(ActedOn::Missing)),
            Err(FetchError::Overwritten(_)) => return Ok(Err(ActedOn::Overwritten)),
            Err(error) => return Err(error.to_string()),
        };
        let Some(etag) = answer.e_tag.as_deref().and_then(unquoted) else {
            return Err(format!("{}: the answer has no eTag", display_uri(object)));
        };
        let is_other = |asked: &Option<String>, found: Option<&String>| {
            asked.as_ref().is_some_and(|asked| Some(asked) != found)
        };
        if is_other(&object.etag, Some(&etag))
            || is_other(&object.version_id, answer.version_id.as_ref())
        {
            return Ok(Err(ActedOn::Overwritten));
        }
        let whole = answer.content_range.as_deref().and_then(|range| range.rsplit('/').next());
        let size = match whole {
            Some(size) => size.parse().ok(),
            None => answer.content_length.and_then(|size| size.try_into().ok()),
        };
        let size = size.or(object.size).unwrap_or_default();
        Ok(Ok(Latest { etag, version_id: answer.version_id, size }))
    }

    /// Keeps the other tags.
    async fn tag(
        &self,
        object: &Object,
        version_id: Option<String>,
        key: &str,
        value: &str,
    ) -> Result<ActedOn, String> {
        let get = self.client().get_object_tagging().bucket(&object.bucket).key(&object.key);
        let get = get
            .set_version_id(version_id.clone())
            .set_expected_bucket_owner(self.options.expected_owner.clone())
            .set_request_payer(self.payer());
        let answer = self
            .send(&object.bucket, |config| get.clone().customize().config_override(config).send());
        let permission = match version_id {
            Some(_) => "s3:GetObjectTagging and s3:GetObjectVersionTagging",
            None => "s3:GetObjectTagging",
        };
        let mut tags = match answer.await {
            Ok(answer) => answer.tag_set,
            Err(failure) => return acted_on(object, &failure, permission),
        };
        if tags.iter().any(|tag| tag.key == key && tag.value == value) {
            return Ok(ActedOn::Object);
        }
        tags.retain(|tag| tag.key != key);
        if tags.len() == MOST_TAGS {
            return Err(format!(
                "{}: it has {MOST_TAGS} tags, and S3 allows no more",
                display_uri(object)
            ));
        }
        let tag = Tag::builder().key(key).value(value).build();
        tags.push(tag.map_err(|error| error.to_string())?);
        let tagging = Tagging::builder().set_tag_set(Some(tags)).build();
        let tagging = tagging.map_err(|error| error.to_string())?;
        let put = self.client().put_object_tagging().bucket(&object.bucket).key(&object.key);
        let put = put
            .tagging(tagging)
            .set_version_id(version_id.clone())
            .set_expected_bucket_owner(self.options.expected_owner.clone())
            .set_request_payer(self.payer());
        let answer = self
            .send(&object.bucket, |config| put.clone().customize().config_override(config).send());
        let permission = match version_id {
            Some(_) => "s3:PutObjectTagging and s3:PutObjectVersionTagging",
            None => "s3:PutObjectTagging",
        };
        match answer.await {
            Ok(_) => Ok(ActedOn::Object),
            Err(failure) => acted_on(object, &failure, permission),
        }
    }

    async fn copy(
        &self,
        object: &Object,
        latest: &Latest,
        to: &S3Location,
    ) -> Result<ActedOn, String> {
        if latest.size > LARGEST_COPY {
            return Err(format!(
                "{}: it is larger than 5 GiB, and leasehold cannot move it: use delete or tag, or move it in the command",
                display_uri(object)
            ));
        }
        let key = to.key(&object.key);
        let encoded = |text: &str| utf8_percent_encode(text, IN_COPY_SOURCE).to_string();
        let version = latest.version_id.as_deref().filter(|version| *version != "null");
        let version =
            version.map(|version| format!("?versionId={}", encoded(version))).unwrap_or_default();
        let copy = self
            .client()
            .copy_object()
            .copy_source(format!("{}/{}{version}", object.bucket, encoded(&object.key)))
            .copy_source_if_match(format!("\"{}\"", latest.etag))
            .bucket(&to.bucket)
            .key(&key);
        let copy = copy
            .set_expected_bucket_owner(self.options.expected_owner.clone())
            .set_request_payer(self.payer())
            .set_expected_source_bucket_owner(self.options.expected_owner.clone())
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.kms_key());
        let limit = self.options.timeout + Duration::from_secs(latest.size / SLOWEST_COPY);
        let within = |config: Builder| {
            config.timeout_config(TimeoutConfig::builder().operation_attempt_timeout(limit).build())
        };
        let answer = self.send(&to.bucket, |config| {
            copy.clone().customize().config_override(within(config)).send()
        });
        match answer.await {
            Ok(answer)
                if answer.copy_object_result.as_ref().is_some_and(|it| it.e_tag.is_some()) =>
            {
                Ok(ActedOn::Object)
            }
            Ok(_) => Err(format!("s3://{}/{key}: the answer does not confirm the copy", to.bucket)),
            Err(Failure::Refused { status: 412, .. }) => Ok(ActedOn::Overwritten),
            Err(failure) => Err(write_error(&to.bucket, &key, &failure)),
        }
    }

    /// In a versioned bucket this writes a delete marker, and the version stays.
    async fn delete_latest(&self, object: &Object, latest: &Latest) -> Result<ActedOn, String> {
        let delete = self.client().delete_object().bucket(&object.bucket).key(&object.key);
        let delete = delete
            .if_match(format!("\"{}\"", latest.etag))
            .set_expected_bucket_owner(self.options.expected_owner.clone())
            .set_request_payer(self.payer());
        let answer = self.send(&object.bucket, |config| {
            delete.clone().customize().config_override(config).send()
        });
        match answer.await {
            Ok(_) => Ok(ActedOn::Object),
            Err(failure) => acted_on(object, &failure, "s3:DeleteObject"),
        }
    }
}

/// Has the object been moved there before? A moved object may start another job.
fn is_below(object: &Object, to: &S3Location) -> bool {
    let below = object.key.strip_prefix(&to.prefix);
    object.bucket == to.bucket
        && (to.prefix.is_empty() || below.is_some_and(|rest| rest.starts_with('/')))
}

/// Only an answer of S3 itself, with an error code, says something about the object.
fn acted_on(object: &Object, failure: &Failure, permission: &str) -> Result<ActedOn, String> {
    match failure {
        Failure::Refused { code: Some(code), status: 404, .. } if code != "NoSuchBucket" => {
            Ok(ActedOn::Missing)
        }
        Failure::Refused { code: Some(_), status: 405, .. } => Ok(ActedOn::Missing),
        Failure::Refused { code: Some(_), status: 412, .. } => Ok(ActedOn::Overwritten),
        Failure::Refused { .. } | Failure::Misconfigured(_) | Failure::Unanswered(_) => {
            Err(format!("{}: {}", display_uri(object), describe(failure, permission)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::super::testing::Canned;
    use super::*;

    fn object() -> Object {
        Object {
            etag: Some("e".into()),
            size: Some(5),
            is_from_aws: true,
            ..Object::named("b", "in/a b")
        }
    }

    async fn act(server: &Canned, object: &Object, action: &str) -> Result<ActedOn, String> {
        S3::new(&server.config(), None).act(object, &action.parse().unwrap()).await
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_answer_of_s3_says_that_the_object_is_gone() {
        let page = "<html>Sign in to the network</html>";
        let error = |code| format!("<Error><Code>{code}</Code></Error>");
        for (server, expected) in [
            (Canned::new(404, None, error("NoSuchKey")), Some(ActedOn::Missing)),
            (Canned::new(412, None, error("PreconditionFailed")), Some(ActedOn::Overwritten)),
            (Canned::new(200, None, "").header("etag", "\"other\""), Some(ActedOn::Overwritten)),
            (Canned::new(404, None, error("NoSuchBucket")), None),
            (Canned::new(403, None, error("AccessDenied")), None),
            (Canned::new(404, None, page), None),
            (Canned::new(412, None, page), None),
        ] {
            for action in ["delete", "tag=a:b", "move=s3://done/in"] {
                let answer = act(&server, &object(), action).await;
                assert_eq!(answer.clone().ok(), expected, "{action}: {answer:?}");
            }
        }
    }

    #[tokio::test]
    async fn an_event_that_pins_no_object_has_no_action() {
        let server = Canned::new(200, None, "");
        let answer = act(&server, &Object { etag: None, ..object() }, "delete").await;
        assert!(answer.is_err_and(|why| why.contains("neither a version nor an eTag")));
        assert_eq!(server.requests.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn each_change_has_the_etag_as_its_condition() {
        let sent = |server: &Canned, name: &str| {
            server.sent.lock().unwrap().iter().any(|header| header == name)
        };
        let server = Canned::new(200, None, "");
        assert_eq!(act(&server, &object(), "delete").await, Ok(ActedOn::Object));
        assert!(sent(&server, "if-match"));
        // A copy that is not confirmed is not followed by a delete.
        let answer = act(&server, &object(), "move=s3://done/in").await;
        assert!(answer.is_err_and(|why| why.contains("does not confirm the copy")));
        assert!(sent(&server, "x-amz-copy-source-if-match"));
    }

    #[tokio::test]
    async fn an_object_over_5_gib_is_not_moved() {
        let server = Canned::new(200, None, "").header("content-range", "bytes 0-0/5368709121");
        let answer = act(&server, &object(), "move=s3://done/in").await;
        assert!(answer.is_err_and(|why| why.contains("larger than 5 GiB")));
        assert_eq!(server.requests.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn an_object_that_was_moved_before_stays() {
        for (to, is_below) in
            [("s3://b/in", true), ("s3://b", true), ("s3://b/i", false), ("s3://c/in", false)]
        {
            let server = Canned::new(200, None, "");
            let answer = act(&server, &object(), &format!("move={to}")).await;
            assert_eq!(answer.is_ok(), is_below, "{to}: {answer:?}");
            assert_eq!(server.requests.load(Ordering::Relaxed) == 1, is_below, "{to}");
        }
    }
}
