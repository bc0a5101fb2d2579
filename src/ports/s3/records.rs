//! Records in S3: small objects, written on a condition.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::DateTime;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::date_time::Format;

use super::{S3, refused};
use crate::ports::aws::Failure;
use crate::ports::{Condition, Entry, RecordError, Records};

#[async_trait]
impl Records for S3 {
    async fn read(&self, bucket: &str, key: &str) -> Result<Option<Entry>, RecordError> {
        let get = self.client().get_object().bucket(bucket).key(key);
        let get = get.set_expected_bucket_owner(self.expected_owner.clone());
        let date = DateHeader::default();
        let answer = match get.customize().interceptor(date.clone()).send().await {
            Ok(answer) => answer,
            Err(error) => {
                let failure = Failure::of(&error);
                if is_missing(&failure) {
                    return Ok(None);
                }
                let permission = "s3:GetObject, and s3:ListBucket to tell a record that is not there";
                return Err(failed(bucket, key, &failure, permission));
            }
        };
        let age = date.since(answer.last_modified);
        let etag = answer.e_tag.unwrap_or_default();
        let (mut body, mut bytes) = (answer.body, Vec::new());
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| RecordError::Retryable(format!("s3://{bucket}/{key}: {error}")))?;
            if bytes.len() + chunk.len() > LONGEST {
                let why = format!("s3://{bucket}/{key}: it is longer than the {LONGEST} bytes of a record");
                return Err(RecordError::Retryable(why));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(Entry { bytes, etag, age }))
    }

    async fn write(
        &self,
        bucket: &str,
        key: &str,
        bytes: Vec<u8>,
        condition: Condition<'_>,
    ) -> Result<String, RecordError> {
        let put = self.client().put_object().bucket(bucket).key(key).content_type("application/json");
        let put = put.set_expected_bucket_owner(self.expected_owner.clone()).body(bytes.into());
        let put = match condition {
            Condition::Absent => put.if_none_match("*"),
            Condition::Unchanged(etag) => put.if_match(etag),
        };
        match put.send().await {
            Ok(answer) => Ok(answer.e_tag.unwrap_or_default()),
            Err(error) => {
                let failure = Failure::of(&error);
                let is_changed = matches!(failure, Failure::Refused { status: 412, .. });
                // If-Match on an object that is gone is answered by 404.
                let is_refused = is_changed || is_missing(&failure);
                Err(if is_refused {
                    RecordError::ConditionFailed
                } else {
                    failed(bucket, key, &failure, "s3:PutObject")
                })
            }
        }
    }
}

/// In bytes: more than a key of 1,024 bytes, escaped, and all other fields need.
const LONGEST: usize = 64 << 10;

/// The bucket is there, and what is asked of it is not.
pub(super) fn is_missing(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused { status: 404, code, .. } if code.as_deref() != Some("NoSuchBucket"))
}

/// Everything but a missing permission may pass: 409 is a conflict with a write at the same time.
fn failed(bucket: &str, key: &str, failure: &Failure, permissions: &str) -> RecordError {
    let why = format!("s3://{bucket}/{key}: {}", refused(failure, permissions));
    match failure {
        Failure::Refused { status: 403, .. } => RecordError::Refused(why),
        Failure::Refused { .. } | Failure::Misconfigured(_) | Failure::Unanswered(_) => RecordError::Retryable(why),
    }
}

/// What the store's own clock said, which the SDK does not tell.
#[derive(Debug, Clone, Default)]
struct DateHeader(Arc<Mutex<Option<DateTime>>>);

impl DateHeader {
    /// Zero if it is not known.
    fn since(&self, then: Option<DateTime>) -> Duration {
        let now = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = now.zip(then).map(|(now, then)| now.secs().saturating_sub(then.secs()));
        Duration::from_secs(seconds.and_then(|seconds| seconds.try_into().ok()).unwrap_or_default())
    }
}

impl Intercept for DateHeader {
    fn name(&self) -> &'static str {
        "DateHeader"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date;
        Ok(())
    }
}
