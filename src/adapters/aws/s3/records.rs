//! Records in S3: small objects with conditional writes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::S3;
use super::errors::{describe, is_about_a_checksum, is_about_the_signature};
use super::headers::Header;
use crate::adapters::aws::Failure;
use crate::ports::{Condition, Entry, RecordError, Records};

#[async_trait]
impl Records for S3 {
    async fn read(&self, bucket: &str, key: &str) -> Result<Option<Entry>, RecordError> {
        let get = self.client().get_object().bucket(bucket).key(key);
        let get = get
            .set_expected_bucket_owner(self.options.expected_owner.clone())
            .set_request_payer(self.payer());
        let date = Header::new("date");
        let answer = self.send(bucket, |config| {
            get.clone().customize().config_override(config).interceptor(date.clone()).send()
        });
        let answer = match answer.await {
            Ok(answer) => answer,
            Err(failure) if is_missing(&failure) => return Ok(None),
            Err(failure) => {
                let permission = "s3:GetObject, and s3:ListBucket to recognise a missing record";
                return Err(failed(bucket, key, &failure, permission));
            }
        };
        let age = age(date.value().as_deref(), answer.last_modified);
        let etag = answer.e_tag.unwrap_or_default();
        let (mut body, mut bytes) = (answer.body, Vec::new());
        while let Some(chunk) = body.next().await {
            let chunk = chunk
                .map_err(|error| RecordError::Retryable(format!("s3://{bucket}/{key}: {error}")))?;
            if bytes.len() + chunk.len() > LONGEST {
                let why = format!(
                    "s3://{bucket}/{key}: it is longer than {LONGEST} bytes, the limit of a record"
                );
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
        let etag = self.write_if(bucket, key, &bytes, condition).await?;
        if !self.enforces_conditions.load(Ordering::Relaxed) {
            self.prove_conditions(bucket, key, &bytes).await?;
            self.enforces_conditions.store(true, Ordering::Relaxed);
        }
        Ok(etag)
    }
}

impl S3 {
    /// Some stores accept a condition and ignore it, so two pods would own the same work. The first
    /// record is therefore written again, on conditions that do not hold. If a store accepts that
    /// write, it only writes the same bytes again.
    pub(super) async fn prove_conditions(
        &self,
        bucket: &str,
        key: &str,
        bytes: &[u8],
    ) -> Result<(), RecordError> {
        let not_absent = self.write_if(bucket, key, bytes, Condition::Absent);
        let not_unchanged = self.write_if(bucket, key, bytes, Condition::Unchanged(NO_ETAG));
        let (not_absent, not_unchanged) = tokio::join!(not_absent, not_unchanged);
        for (header, answer) in [("If-None-Match", not_absent), ("If-Match", not_unchanged)] {
            match answer {
                Err(RecordError::ConditionFailed) => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    return Err(RecordError::ConditionsUnsupported(format!(
                        "s3://{bucket}/{key}: the store ignores {header}, so two pods could own the same work: {ELSEWHERE}"
                    )));
                }
            }
        }
        Ok(())
    }

    pub(super) async fn write_if(
        &self,
        bucket: &str,
        key: &str,
        bytes: &[u8],
        condition: Condition<'_>,
    ) -> Result<String, RecordError> {
        let answer = self.send(bucket, |config| {
            let put =
                self.client().put_object().bucket(bucket).key(key).content_type("application/json");
            let put = put
                .set_expected_bucket_owner(self.options.expected_owner.clone())
                .set_request_payer(self.payer())
                .set_server_side_encryption(self.encryption())
                .set_ssekms_key_id(self.kms_key())
                .body(bytes.to_vec().into());
            let put = match condition {
                Condition::Absent => put.if_none_match("*"),
                Condition::Unchanged(etag) => put.if_match(etag),
            };
            put.customize().config_override(config).send()
        });
        match answer.await {
            Ok(answer) => Ok(answer.e_tag.unwrap_or_default()),
            // If-Match on a deleted object gets 404.
            Err(failure)
                if matches!(failure, Failure::Refused { status: 412, .. })
                    || is_missing(&failure) =>
            {
                Err(RecordError::ConditionFailed)
            }
            // A store that has enforced conditions supports them.
            Err(failure)
                if is_permanent(&failure) && !self.enforces_conditions.load(Ordering::Relaxed) =>
            {
                Err(RecordError::ConditionsUnsupported(format!(
                    "s3://{bucket}/{key}: {} (the store may not support If-None-Match and If-Match: {ELSEWHERE})",
                    describe(&failure, "s3:PutObject")
                )))
            }
            Err(failure) => Err(failed(bucket, key, &failure, "s3:PutObject")),
        }
    }
}

/// In bytes: larger than a record with an escaped key of 1,024 bytes and all other fields.
const LONGEST: usize = 64 << 10;
const ELSEWHERE: &str =
    "keep the records (--idempotency) in a store that supports both, such as S3";
/// An eTag that no record has.
const NO_ETAG: &str = "\"00000000000000000000000000000000\"";

/// The bucket exists, but the requested object or configuration does not.
pub(super) fn is_missing(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused { status: 404, code: Some(code), .. } if code != "NoSuchBucket")
}

/// Whether the store reports that it does not support the request. A proxy's page has no error
/// code. 304 is not a valid answer to a write.
fn is_permanent(failure: &Failure) -> bool {
    match failure {
        Failure::Refused { status: 304, .. }
        | Failure::Refused { code: Some(_), status: 405 | 501, .. } => true,
        Failure::Refused { code: Some(code), message, status: 400 } => {
            let message = message.as_deref().unwrap_or_default();
            matches!(code.as_str(), "InvalidArgument" | "InvalidRequest" | "NotImplemented")
                && !is_about_the_signature(message)
                && !is_about_a_checksum(message)
        }
        Failure::Refused { .. } | Failure::Misconfigured(_) | Failure::Unanswered(_) => false,
    }
}

/// All other errors are retryable: 409 is a conflict with a concurrent write.
fn failed(bucket: &str, key: &str, failure: &Failure, permissions: &str) -> RecordError {
    let why = format!("s3://{bucket}/{key}: {}", describe(failure, permissions));
    match failure {
        Failure::Refused { status: 403, .. } => RecordError::Refused(why),
        failure if is_permanent(failure) => RecordError::Refused(why),
        Failure::Refused { .. } | Failure::Misconfigured(_) | Failure::Unanswered(_) => {
            RecordError::Retryable(why)
        }
    }
}

/// The time since `then` by the store's clock; zero if it is unknown.
fn age(date: Option<&str>, then: Option<DateTime>) -> Duration {
    let now = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
    let seconds = now.zip(then).map(|(now, then)| now.secs().saturating_sub(then.secs()));
    Duration::from_secs(seconds.and_then(|seconds| seconds.try_into().ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::super::testing::Canned;
    use super::*;

    #[tokio::test]
    async fn a_store_that_ignores_conditions_is_detected_at_the_first_record() {
        let server = Canned::new(200, None, "");
        let s3 = S3::new(&server.config(), None);
        for requests in [3, 6] {
            let written = s3.write("b", "k", b"{}".to_vec(), Condition::Absent).await;
            let why =
                "s3://b/k: the store ignores If-None-Match, so two pods could own the same work";
            assert!(
                matches!(&written, Err(RecordError::ConditionsUnsupported(text)) if text.starts_with(why)),
                "{written:?}"
            );
            assert_eq!(server.requests.load(Ordering::Relaxed), requests);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_support_conditions_is_reported_at_once() {
        let error = |code: &str, message: &str| {
            format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>")
        };
        let not_implemented = error(
            "NotImplemented",
            "A header you provided implies functionality that is not implemented",
        );
        let unsupported = error("InvalidArgument", "Unsupported header If-None-Match");
        for (status, body, is_permanent) in [
            (501, not_implemented.clone(), true),
            (400, not_implemented, true),
            (400, unsupported, true),
            (400, error("InvalidRequest", "If-None-Match"), true),
            (405, error("MethodNotAllowed", "No."), true),
            (304, String::new(), true),
            (400, error("InvalidRequest", "Please use AWS4-HMAC-SHA256."), false),
            (400, error("RequestTimeout", "Idle."), false),
            (409, error("ConditionalRequestConflict", "Another write."), false),
            (501, "<html>Not here</html>".to_owned(), false),
            (503, error("SlowDown", "Slow down."), false),
        ] {
            let s3 = S3::new(&Canned::new(status, None, body.as_str()).config(), None);
            let written = s3.write("b", "k", b"{}".to_vec(), Condition::Absent).await.unwrap_err();
            assert_eq!(
                matches!(written, RecordError::ConditionsUnsupported(_)),
                is_permanent,
                "{body}: {written:?}"
            );
            let advice =
                "keep the records (--idempotency) in a store that supports both, such as S3";
            assert_eq!(written.to_string().contains(advice), is_permanent, "{written}");
            // A store that has enforced them gets the same request again.
            s3.enforces_conditions.store(true, Ordering::Relaxed);
            let written = s3.write("b", "k", b"{}".to_vec(), Condition::Absent).await.unwrap_err();
            assert_eq!(
                matches!(written, RecordError::Refused(_)),
                is_permanent,
                "{body}: {written:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_written_record_without_an_etag_is_retryable() {
        let s3 = S3::new(&Canned::new(200, None, "").header("etag", "").config(), None);
        let written = s3.write("b", "k", b"{}".to_vec(), Condition::Absent).await;
        assert!(matches!(written, Err(RecordError::Retryable(_))), "{written:?}");
    }
}
