//! Objects in S3, or in anything that speaks its protocol.

use std::sync::OnceLock;

use async_trait::async_trait;
use aws_config::SdkConfig;

use super::aws::{self, Failure};
use super::{FetchError, ObjectBody, ObjectStore, ObjectWriter};
use crate::job::notification::Object;

/// The buckets of S3.
///
/// The SDK's retries are on (3 attempts in all, `AWS_MAX_ATTEMPTS`): to read again harms nobody. They end
/// when the headers are here; an error while the body is read is the reader's.
pub struct S3 {
    config: SdkConfig,
    expected_owner: Option<String>,
    /// Made when it is first needed: a pod that finds no message does without.
    client: OnceLock<aws_sdk_s3::Client>,
}

impl S3 {
    /// Reads only from buckets of the account `expected_owner`, if it is given.
    pub fn new(config: &SdkConfig, expected_owner: Option<String>) -> Self {
        Self { config: config.clone(), expected_owner, client: OnceLock::new() }
    }

    fn client(&self) -> &aws_sdk_s3::Client {
        self.client.get_or_init(|| {
            // Of an endpoint other than AWS's own no bucket has a host name, so it is put into the path.
            let in_path = aws::custom_endpoint(&self.config, "S3").is_some();
            let config = aws_sdk_s3::config::Builder::from(&self.config).force_path_style(in_path).build();
            aws_sdk_s3::Client::from_conf(config)
        })
    }
}

#[async_trait]
impl ObjectStore for S3 {
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError> {
        let get = self.client().get_object().bucket(&object.bucket).key(&object.key);
        let get = get.set_expected_bucket_owner(self.expected_owner.clone());
        let get = match (&object.version_id, &object.etag) {
            (Some(version), _) => get.version_id(version),
            (None, Some(etag)) => get.if_match(format!("\"{etag}\"")),
            (None, None) => get,
        };
        let answer = get.send().await.map_err(|error| classified(object, &Failure::of(&error)))?;
        Ok(ObjectBody {
            size: answer.content_length.and_then(|length| length.try_into().ok()),
            bytes: Box::pin(answer.body.into_async_read()),
        })
    }
}

#[async_trait]
impl ObjectWriter for S3 {
    async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> Result<(), String> {
        let put = self.client().put_object().bucket(bucket).key(key).content_type("application/json");
        let put = put.set_expected_bucket_owner(self.expected_owner.clone()).body(bytes.into());
        put.send().await.map(drop).map_err(|error| match Failure::of(&error) {
            Failure::Refused { code, message, status } => {
                let (code, message) = (code.unwrap_or_else(|| format!("HTTP {status}")), message.unwrap_or_default());
                format!("s3://{bucket}/{key}: {code}: {message} (the pod's role must allow s3:PutObject)")
            }
            Failure::Misconfigured(why) | Failure::Unanswered(why) => format!("s3://{bucket}/{key}: {why}"),
        })
    }
}

/// What a failed GetObject means for the message, and what to change where we know it.
fn classified(object: &Object, failure: &Failure) -> FetchError {
    let Object { bucket, key, version_id, .. } = object;
    let version = version_id.as_ref().map(|version| format!(" (version {version})")).unwrap_or_default();
    let what = format!("object s3://{bucket}/{key}{version}");
    let (code, message, status) = match failure {
        Failure::Refused { code, message, status } => {
            (code.as_deref().unwrap_or("no code"), message.as_deref().unwrap_or("no reason given"), *status)
        }
        Failure::Misconfigured(why) => return FetchError::Retryable(format!("{what} cannot be asked for: {why}")),
        Failure::Unanswered(why) => return FetchError::Retryable(format!("{what} could not be asked for: {why}")),
    };
    let words = format!("{code}: {}", message.trim_end_matches('.'));
    match (code, status) {
        ("InvalidObjectState", _) => {
            FetchError::Permanent(format!("{what} is archived and must be restored first: {words}"))
        }
        (_, 412) => FetchError::Overwritten(format!("{what} was overwritten since the event: {words}")),
        ("NoSuchBucket", _) => FetchError::Retryable(format!("bucket {bucket} does not exist: {words}")),
        (_, 404) => FetchError::Missing(format!("{what} is missing: {words}")),
        ("AccessDenied", _) | ("no code", 403) => {
            let action = if version_id.is_some() { "s3:GetObjectVersion" } else { "s3:GetObject" };
            FetchError::Retryable(format!(
                "{what} may not be read: {words} (the pod's role must allow {action}, and kms:Decrypt if it is \
                 encrypted with a KMS key; without s3:ListBucket a missing object is answered like this too)"
            ))
        }
        ("PermanentRedirect" | "AuthorizationHeaderMalformed", _) => {
            FetchError::Retryable(format!("{what} is in another region than AWS_REGION says: {words}"))
        }
        _ => FetchError::Retryable(format!("{what} was not given: HTTP {status}, {words}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::super::aws::testing::Canned;
    use super::*;

    fn object(version: Option<&str>) -> Object {
        Object {
            bucket: "b".into(),
            key: "k".into(),
            version_id: version.map(str::to_owned),
            etag: None,
            size: None,
            sequencer: None,
        }
    }

    #[test]
    fn a_failed_get_says_what_it_means_and_what_to_change() {
        let refused = |version, status, code: &str| {
            let failure = Failure::Refused { code: Some(code.into()), message: Some("Said S3.".into()), status };
            match classified(&object(version), &failure) {
                FetchError::Retryable(text) => ("retryable", text),
                FetchError::Permanent(text) => ("permanent", text),
                FetchError::Missing(text) => ("missing", text),
                FetchError::Overwritten(text) => ("overwritten", text),
            }
        };
        let table = [
            (None, 404, "NoSuchKey", "missing", "object s3://b/k is missing: NoSuchKey: Said S3"),
            (Some("v"), 404, "NoSuchVersion", "missing", "object s3://b/k (version v) is missing: "),
            (None, 404, "NoSuchBucket", "retryable", "bucket b does not exist: "),
            (None, 412, "PreconditionFailed", "overwritten", "object s3://b/k was overwritten since the event: "),
            (None, 403, "InvalidObjectState", "permanent", "object s3://b/k is archived and must be restored first: "),
            (None, 403, "AccessDenied", "retryable", "object s3://b/k may not be read: AccessDenied: Said S3 "),
            (None, 403, "AccessDenied", "retryable", "must allow s3:GetObject, and"),
            (Some("v"), 403, "AccessDenied", "retryable", "must allow s3:GetObjectVersion, and"),
            (None, 403, "AccessDenied", "retryable", "without s3:ListBucket a missing object"),
            (
                None,
                301,
                "PermanentRedirect",
                "retryable",
                "object s3://b/k is in another region than AWS_REGION says: ",
            ),
            (None, 503, "SlowDown", "retryable", "object s3://b/k was not given: HTTP 503, SlowDown: Said S3"),
        ];
        for (version, status, code, kind, part) in table {
            let (is, text) = refused(version, status, code);
            assert_eq!(is, kind, "{text}");
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        let unanswered = classified(&object(None), &Failure::Unanswered("refused".into()));
        assert_eq!(unanswered, FetchError::Retryable("object s3://b/k could not be asked for: refused".into()));
    }

    #[tokio::test]
    async fn an_object_is_a_stream_of_its_bytes() {
        let server = Canned::new(200, None, "some bytes");
        let mut body = S3::new(&server.config(), None).open(&object(None)).await.unwrap();
        let mut text = String::new();
        body.bytes.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "some bytes");
    }

    #[tokio::test]
    async fn errors_are_classified_as_they_come_over_the_wire() {
        let body = "<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>";
        let error = S3::new(&Canned::new(404, None, body).config(), None).open(&object(None)).await.err();
        let text = "object s3://b/k is missing: NoSuchKey: The specified key does not exist";
        assert_eq!(error, Some(FetchError::Missing(text.into())));
        let error = S3::new(&Canned::new(412, None, "").config(), None).open(&object(None)).await.err();
        assert!(matches!(error, Some(FetchError::Overwritten(_))), "{error:?}");
    }
}
