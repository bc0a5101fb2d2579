//! Objects in S3, or in another store with its API.

pub mod encryption;
mod errors;
mod headers;
mod identity;
mod on_success;
pub mod probes;
mod records;
mod regions;
mod upload;

use std::error::Error;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Builder, ResponseChecksumValidation, StalledStreamProtectionConfig};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::operation::RequestId;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::types::{ChecksumType, RequestPayer, ServerSideEncryption};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::byte_stream;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream::{self, StreamExt};
use tracing::{debug, info};

use super::answers::{self, Service};
use crate::adapters::aws::{self, Failure};
use crate::job::notification::Object;
use crate::job::on_success::{ActedOn, OnSuccess};
use crate::ports::checksum::{Algorithm, Checksum};
use crate::ports::{ByteStream, FetchError, ObjectBody, ObjectStore, RangeBody, Storage};
use encryption::Encryption;
use errors::{describe, display_uri, fetch_error, repeated_in_region};
use headers::Header;
use identity::{Identity, unquoted};
use regions::Regions;

/// The buckets of S3.
///
/// The SDK's retries are on (3 attempts in all, `AWS_MAX_ATTEMPTS`), since reading twice is
/// harmless. They end when the headers have arrived; the reader handles errors in the body.
pub struct S3 {
    config: SdkConfig,
    options: Options,
    regions: Regions,
    /// Whether a write has proved that the store enforces conditions.
    enforces_conditions: AtomicBool,
    /// Created on first use: a pod that finds no message needs none.
    client: OnceLock<aws_sdk_s3::Client>,
}

/// What all requests have in common.
#[derive(Debug, Clone)]
pub struct Options {
    /// The account that must own all buckets, if it is given.
    pub expected_owner: Option<String>,
    /// Whether we accept the costs of requests to buckets whose requester pays.
    pub request_payer: bool,
    /// Of every object that is written.
    pub encryption: Option<Encryption>,
    /// How long S3 may take to begin or to continue an answer.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { expected_owner: None, request_payer: false, encryption: None, timeout: TIMEOUT }
    }
}

/// The same as in boto3.
const TIMEOUT: Duration = Duration::from_mins(1);

impl S3 {
    /// Uses only buckets of the account `expected_owner`, if it is given.
    #[cfg_attr(not(feature = "internals"), expect(dead_code, reason = "for tests"))]
    pub fn new(config: &SdkConfig, expected_owner: Option<String>) -> Self {
        Self::with_options(config, Options { expected_owner, ..Options::default() })
    }

    pub fn with_options(config: &SdkConfig, options: Options) -> Self {
        Self {
            config: config.clone(),
            options,
            regions: Regions::default(),
            enforces_conditions: AtomicBool::default(),
            client: OnceLock::new(),
        }
    }

    fn payer(&self) -> Option<RequestPayer> {
        self.options.request_payer.then_some(RequestPayer::Requester)
    }

    fn encryption(&self) -> Option<ServerSideEncryption> {
        self.options.encryption.as_ref().map(|encryption| encryption.algorithm.into())
    }

    fn kms_key(&self) -> Option<String> {
        self.options.encryption.as_ref()?.kms_key.clone()
    }

    fn client(&self) -> &aws_sdk_s3::Client {
        self.client.get_or_init(|| {
            let timeouts =
                self.config.timeout_config().map(TimeoutConfig::to_builder).unwrap_or_default();
            let stalls =
                StalledStreamProtectionConfig::enabled().grace_period(self.options.timeout);
            let config = Builder::from(&self.config)
                .timeout_config(timeouts.operation_attempt_timeout(self.options.timeout).build())
                .stalled_stream_protection(stalls.build())
                .force_path_style(aws::is_path_style(&self.config))
                // The reader verifies the checksum: the SDK sees only the bytes of one answer.
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
            let config = match answers::checked(&self.config, Service::S3) {
                Some(client) => config.http_client(client),
                None => config,
            };
            aws_sdk_s3::Client::from_conf(config.build())
        })
    }

    /// Sends a request about a bucket, and repeats it if the answer names another region for the
    /// bucket.
    async fn send<T, E, F>(
        &self,
        bucket: &str,
        request: impl Fn(Builder) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + Error + 'static,
    {
        let error = match request(self.regions.config(bucket)).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let used = self.regions.of(bucket).or_else(|| self.config.region().cloned());
        let error = match regions::named(&error).filter(|region| Some(region) != used.as_ref()) {
            Some(region) => {
                info!(bucket, %region, "the bucket is in another region than AWS_REGION: using that region");
                self.regions.learn(bucket, region);
                match request(self.regions.config(bucket)).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => error,
                }
            }
            None => error,
        };
        let failure = Failure::of(&error);
        Err(match self.regions.of(bucket) {
            Some(region) => repeated_in_region(failure, region.as_ref()),
            None => failure,
        })
    }

    /// A request for exactly the object in the event.
    fn get(&self, object: &Object) -> GetObjectFluentBuilder {
        let get = self.client().get_object().bucket(&object.bucket).key(&object.key);
        let get = get
            .set_expected_bucket_owner(self.options.expected_owner.clone())
            .set_request_payer(self.payer());
        match (&object.version_id, &object.etag) {
            (Some(version), _) => get.version_id(version),
            (None, Some(etag)) => get.if_match(format!("\"{etag}\"")),
            (None, None) => get,
        }
    }

    /// `AWS_RESPONSE_CHECKSUM_VALIDATION` can switch this off: some stores refuse requests for
    /// checksums.
    fn requests_checksums(&self) -> bool {
        self.config.response_checksum_validation() != Some(ResponseChecksumValidation::WhenRequired)
    }
}

#[async_trait]
impl ObjectStore for S3 {
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError> {
        // S3 allows such keys, but the SDK takes them for empty and sends no request.
        if object.key.trim().is_empty() {
            let why = format!(
                "object {}: its key has only blanks, and the AWS SDK cannot request such a key",
                display_uri(object)
            );
            return Err(FetchError::Permanent(why));
        }
        let (get, encoding) = (self.get(object), Header::new("transfer-encoding"));
        let answer = self.send(&object.bucket, |config| {
            let get = get.clone().customize().config_override(config).interceptor(encoding.clone());
            // With the SDK's own parameter, the SDK would verify the bytes, too.
            let get = if self.requests_checksums() {
                get.mutate_request(|request| {
                    drop(request.headers_mut().insert("x-amz-checksum-mode", "ENABLED"));
                })
            } else {
                get
            };
            get.send()
        });
        let mut answer = answer.await.map_err(|failure| fetch_error(object, &failure))?;
        let identity = Identity {
            is_of_s3: answer.request_id().is_some(),
            version_id: answer.version_id.clone(),
            etag: answer.e_tag.as_deref().and_then(unquoted),
            size: answer.content_length.and_then(|length| length.try_into().ok()),
        };
        identity.check(object)?;
        let checksum = checksum(object, &mut answer);
        let ends_by_itself =
            encoding.value().is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked"));
        let size = match identity.size.or_else(|| identity.expected_size(object)) {
            Some(size) => Some(size),
            // The end is marked, or the checksum detects a truncated body.
            None if ends_by_itself || checksum.is_some() => None,
            None => {
                let unknown = || {
                    FetchError::Retryable(format!(
                        "{}: the answer has no size",
                        display_uri(object)
                    ))
                };
                Some(object.size.filter(|size| *size > 0).ok_or_else(unknown)?)
            }
        };
        Ok(ObjectBody { size, etag: identity.etag, checksum, bytes: chunks(answer.body) })
    }

    async fn open_range(
        &self,
        object: &Object,
        range: Range<u64>,
    ) -> Result<RangeBody, FetchError> {
        let Range { start, end } = range;
        let end = if end == u64::MAX { String::new() } else { (end - 1).to_string() };
        let get = self.get(object).range(format!("bytes={start}-{end}"));
        let range = Header::new("content-range");
        let answer = self.send(&object.bucket, |config| {
            get.clone().customize().config_override(config).interceptor(range.clone()).send()
        });
        let answer = match answer.await {
            Ok(answer) => answer,
            // All bytes had arrived, only the end of the body had not.
            Err(Failure::Refused { status: 416, .. })
                if range.value().as_deref().and_then(size_of_all) == Some(start) =>
            {
                return Ok(RangeBody { start, size: Some(start), bytes: stream::empty().boxed() });
            }
            Err(failure) => return Err(fetch_error(object, &failure)),
        };
        let what = display_uri(object);
        let etag = answer.e_tag.as_deref().and_then(unquoted);
        if object.etag.is_some() && etag != object.etag {
            let why =
                format!("{what} was overwritten during the download: its eTag is now {etag:?}");
            return Err(FetchError::Overwritten(why));
        }
        let (begins, size) = match answer.content_range.as_deref() {
            // A server without support for ranges sends the whole object.
            None => (0, answer.content_length.and_then(|length| length.try_into().ok())),
            Some(range) => {
                content_range(range).filter(|(begins, _)| *begins == start).ok_or_else(|| {
                    FetchError::Retryable(format!(
                        "{what}: requested bytes {start}-, but the answer has {range:?}"
                    ))
                })?
            }
        };
        Ok(RangeBody { start: begins, size, bytes: chunks(answer.body) })
    }

    async fn act_on(&self, object: &Object, action: &OnSuccess) -> Result<ActedOn, String> {
        self.act(object, action).await
    }
}

/// The offset of an answer's first byte, and the object's size if it is known: `bytes 5-9/10`,
/// `bytes 5-9/*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, if size == "*" { None } else { Some(size.parse().ok()?) }))
}

/// The object's size, from the answer to a range beyond its end: `bytes */10`.
fn size_of_all(text: &str) -> Option<u64> {
    text.strip_prefix("bytes */")?.parse().ok()
}

/// The checksum of an answer's bytes, if the answer has one of the whole object.
fn checksum(object: &Object, answer: &mut GetObjectOutput) -> Option<Checksum> {
    let known = [
        (Algorithm::Crc64Nvme, 8, answer.checksum_crc64_nvme.take()),
        (Algorithm::Crc32C, 4, answer.checksum_crc32_c.take()),
        (Algorithm::Crc32, 4, answer.checksum_crc32.take()),
        (Algorithm::Sha256, 32, answer.checksum_sha256.take()),
        (Algorithm::Sha1, 20, answer.checksum_sha1.take()),
    ];
    // Some stores send placeholders instead of checksums.
    let is_checksum = |length: usize, value: &str| {
        BASE64_STANDARD.decode(value).is_ok_and(|bytes| bytes.len() == length)
    };
    let is_composite = answer.checksum_type == Some(ChecksumType::Composite);
    let found = known.into_iter().find_map(|(algorithm, length, value)| {
        // A composite checksum, `<Base64>-<parts>`, is a hash of the parts' hashes, and the parts'
        // boundaries are unknown.
        let value = value.filter(|value| !is_composite && is_checksum(length, value))?;
        Some(Checksum { algorithm, value })
    });
    if found.is_none() {
        debug!(
            object = display_uri(object),
            "the answer has no checksum of the whole object: only the size is compared"
        );
    }
    found
}

fn chunks(body: byte_stream::ByteStream) -> ByteStream {
    let next = |mut body: byte_stream::ByteStream| async {
        let chunk = body.next().await?;
        Some((chunk.map_err(|error| io::Error::other(aws::causes(&error))), body))
    };
    stream::unfold(body, next).boxed()
}

/// A page has a thousand keys. The limit ends the listing, whatever the store answers.
const MOST_PAGES: usize = 100;

#[async_trait]
impl Storage for S3 {
    async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, String> {
        let list = self.client().list_objects_v2().bucket(bucket).prefix(prefix);
        let list = list
            .set_expected_bucket_owner(self.options.expected_owner.clone())
            .set_request_payer(self.payer());
        let (mut keys, mut next) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let page = list.clone().set_continuation_token(next);
            let page =
                self.send(bucket, |config| page.clone().customize().config_override(config).send());
            let page = page.await.map_err(|why| {
                format!("s3://{bucket}/{prefix}: {}", describe(&why, "s3:ListBucket"))
            })?;
            keys.extend(page.contents.into_iter().flatten().filter_map(|object| object.key));
            next = page.next_continuation_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(keys);
            }
        }
        Err(format!("s3://{bucket}/{prefix}: there are more than {} objects", keys.len()))
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<(), String> {
        let delete = self.client().delete_object().bucket(bucket).key(key);
        let delete = delete
            .set_expected_bucket_owner(self.options.expected_owner.clone())
            .set_request_payer(self.payer());
        let answer =
            self.send(bucket, |config| delete.clone().customize().config_override(config).send());
        answer
            .await
            .map(drop)
            .map_err(|why| format!("s3://{bucket}/{key}: {}", describe(&why, "s3:DeleteObject")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use futures_util::TryStreamExt;

    use super::super::testing::{Canned, real};
    use super::*;
    use crate::ports::{ObjectWriter, Upload};

    fn object(etag: Option<&str>, size: Option<u64>) -> Object {
        let etag = etag.map(str::to_owned);
        Object { etag, size, ..Object::named("b", "k") }
    }

    fn s3(server: &Canned) -> S3 {
        S3::new(&server.config(), None)
    }

    #[test]
    fn only_a_checksum_of_the_whole_object_is_compared() {
        let found = |answer: GetObjectOutput| checksum(&object(None, None), &mut { answer });
        let is = |algorithm, value: &str| Some(Checksum { algorithm, value: value.to_owned() });
        let answer = GetObjectOutput::builder;
        let (crc32, crc64) = ("AAAAAA==", "AAAAAAAAAAA=");
        let (sha1, sha256) =
            ("2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(
            found(answer().checksum_crc64_nvme(crc64).build()),
            is(Algorithm::Crc64Nvme, crc64)
        );
        assert_eq!(found(answer().checksum_crc32(crc32).build()), is(Algorithm::Crc32, crc32));
        assert_eq!(found(answer().checksum_crc32_c(crc32).build()), is(Algorithm::Crc32C, crc32));
        assert_eq!(found(answer().checksum_sha1(sha1).build()), is(Algorithm::Sha1, sha1));
        let whole = answer().checksum_sha256(sha256).checksum_type(ChecksumType::FullObject);
        assert_eq!(found(whole.build()), is(Algorithm::Sha256, sha256));
        assert_eq!(found(answer().checksum_crc32("AAAAAA==-3").build()), None);
        assert_eq!(
            found(answer().checksum_crc32(crc32).checksum_type(ChecksumType::Composite).build()),
            None
        );
        for nonsense in ["", "not known", "AAAA", crc64] {
            assert_eq!(found(answer().checksum_crc32(nonsense).build()), None, "{nonsense}");
        }
        assert_eq!(found(answer().build()), None);
    }

    #[test]
    fn a_content_range_has_the_offset_and_the_size() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 0-0/*"), Some((0, None)));
        for nonsense in
            ["", "bytes", "bytes 5", "bytes 5-9", "bytes */10", "items 5-9/10", "bytes 5-9/x"]
        {
            assert_eq!(content_range(nonsense), None, "{nonsense}");
        }
    }

    #[tokio::test]
    async fn errors_are_classified_as_they_come_over_the_wire() {
        let body = "<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>";
        let error = s3(&Canned::new(404, None, body)).open(&object(None, None)).await.err();
        let text = "object s3://b/k is missing: NoSuchKey: The specified key does not exist";
        assert_eq!(error, Some(FetchError::Missing(text.into())));
        let body = "<Error><Code>PreconditionFailed</Code></Error>";
        let error = s3(&Canned::new(412, None, body)).open(&object(None, None)).await.err();
        assert!(matches!(error, Some(FetchError::Overwritten(_))), "{error:?}");
    }

    /// A portal's page with status 200 or 404 proves nothing about an object.
    #[tokio::test(start_paused = true)]
    async fn a_page_of_a_portal_is_neither_an_object_nor_its_absence() {
        const PAGE: &str = "<html>Sign in to the network</html>";
        for (status, server) in [
            (200, Canned::new(200, None, PAGE).header("etag", "").header("x-amz-request-id", "")),
            (200, Canned::new(200, None, PAGE).header("x-amz-request-id", "")),
            (200, Canned::new(200, None, PAGE).header("etag", "\"\"")),
            (404, Canned::new(404, None, PAGE)),
        ] {
            let error = s3(&server).open(&object(Some("e"), Some(5))).await.err();
            assert!(
                matches!(&error, Some(FetchError::Retryable(why)) if why.contains(&status.to_string())),
                "{error:?}"
            );
        }
    }

    /// Even with the right eTag.
    #[tokio::test(start_paused = true)]
    async fn a_part_of_an_object_is_not_taken_for_the_whole() {
        let event = Object { is_from_aws: true, ..object(Some("e"), Some(5)) };
        let good = |status, body: &str| {
            Canned::new(status, None, body).header("content-length", body.len().to_string())
        };
        for (server, problem) in [
            (
                good(206, "hel").header("content-range", "bytes 0-2/5"),
                "it is partial, but the whole was requested",
            ),
            (
                good(206, "hello").header("content-range", "bytes 0-4/5"),
                "it is partial, but the whole was requested",
            ),
            (good(206, "hel"), "it is partial, but the whole was requested"),
            (
                good(200, "hel").header("content-range", "bytes 0-2/5"),
                "it is partial, but the whole was requested",
            ),
            (good(200, "hel"), "the size is 3 in the answer, but 5 in the event"),
            (good(200, ""), "the size is 0 in the answer, but 5 in the event"),
        ] {
            let error = s3(&server).open(&event).await.err();
            assert!(
                matches!(&error, Some(FetchError::Retryable(why)) if why.contains(problem)),
                "{error:?}"
            );
        }
        let unnamed = s3(&good(206, "llo")).open_range(&event, 2..5).await.err();
        assert!(
            matches!(&unnamed, Some(FetchError::Retryable(why)) if why.contains("it has no Content-Range")),
            "{unnamed:?}"
        );
        // A chunked answer has no size; only the event has one.
        let chunked =
            good(200, "hel").header("content-length", "").header("transfer-encoding", "chunked");
        let body = s3(&chunked).open(&event).await.map_err(|error| error.to_string()).unwrap();
        assert_eq!(body.size, Some(5));
        let other = Object { is_from_aws: false, ..event };
        let body =
            s3(&good(200, "hel")).open(&other).await.map_err(|error| error.to_string()).unwrap();
        assert_eq!(body.size, Some(3));
    }

    /// If the connection breaks after the last byte of a body of unknown length, nothing remains to
    /// be read.
    #[tokio::test]
    async fn a_range_that_begins_at_the_end_is_empty() {
        let refused = "<Error><Code>InvalidRange</Code></Error>";
        for (range, is_empty) in [
            ("bytes */5", true),
            ("bytes */4", false),
            ("bytes */6", false),
            ("bytes */x", false),
            ("", false),
        ] {
            let server = Canned::new(416, None, refused).header("content-range", range);
            let followed = s3(&server).open_range(&object(Some("e"), None), 5..u64::MAX).await;
            let followed = followed.map_err(|error| error.to_string());
            assert_eq!(followed.is_ok(), is_empty, "{range}: {:?}", followed.err());
            if let Ok(RangeBody { start, size, bytes }) = followed {
                assert_eq!((start, size, bytes.count().await), (5, Some(5), 0));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unconfirmed_upload_has_failed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "result").unwrap();
        let path = file.path();
        let upload = Upload {
            bucket: "b",
            key: "k",
            path,
            bytes: 6,
            content_type: "text/plain",
            attributes: None,
        };
        let uploaded = async |server: Canned| {
            let s3 = s3(&server);
            let uploaded = s3.upload(&upload, &tokio_util::sync::CancellationToken::new()).await;
            (uploaded.map(|uploaded| uploaded.etag), s3.put("b", "k", b"{}".to_vec()).await)
        };
        let good = || Canned::new(200, None, "");
        assert_eq!(uploaded(good()).await, (Ok(Some("e".to_owned())), Ok(())));
        for (server, problem) in [
            (good().header("etag", ""), "it has no etag"),
            (good().header("x-amz-request-id", ""), "it has no x-amz-request-id"),
            (Canned::new(200, None, "<html>Sign in</html>"), "its body is not empty"),
        ] {
            let (uploaded, put) = uploaded(server).await;
            assert!(uploaded.as_ref().is_err_and(|why| why.contains(problem)), "{uploaded:?}");
            assert!(put.as_ref().is_err_and(|why| why.contains(problem)), "{put:?}");
        }
        let (other, _) = uploaded(good().header("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=")).await;
        assert!(
            other
                .as_ref()
                .is_err_and(|why| why.contains("CRC64NVME of the stored object is AAAAAAAAAAA=")),
            "{other:?}"
        );
    }

    /// The wait for an answer that never comes is a fraction of the default time for the work, and
    /// the request is repeated.
    #[tokio::test(start_paused = true)]
    async fn the_wait_for_an_answer_is_limited_by_the_size_of_the_request() {
        let never = Canned::new(200, None, "").after(Duration::from_hours(1));
        let began = tokio::time::Instant::now();
        s3(&never).put("b", "k", b"{}".to_vec()).await.unwrap_err();
        assert_eq!(never.requests.load(Ordering::Relaxed), 3);
        assert!(began.elapsed() < Duration::from_secs(70), "{:?}", began.elapsed());
        let (late, began) = (
            Canned::new(200, None, "late").after(Duration::from_secs(50)),
            tokio::time::Instant::now(),
        );
        let body = s3(&late)
            .open(&object(Some("e"), Some(4)))
            .await
            .map_err(|error| error.to_string())
            .unwrap();
        assert_eq!(body.bytes.try_collect::<Vec<_>>().await.unwrap().concat(), b"late");
        assert_eq!(began.elapsed().as_secs(), 50);
        let options = Options { timeout: Duration::from_secs(40), ..Options::default() };
        let impatient = S3::with_options(&late.config(), options);
        impatient.open(&object(None, None)).await.err().unwrap();
        assert_eq!(late.requests.load(Ordering::Relaxed), 4);
    }

    /// The ARN's region wins over the client's, and an endpoint that wants the bucket in the path
    /// still gets an access point in the host name.
    #[tokio::test]
    async fn an_access_point_is_in_the_host_name() {
        let arn = "arn:aws:s3:eu-central-1:123456789012:accesspoint/orders";
        for (endpoint, host) in [
            (None, "https://orders-123456789012.s3-accesspoint.eu-central-1.amazonaws.com"),
            (Some("http://store.example:9000"), "http://orders-123456789012.store.example:9000"),
        ] {
            let server = Canned::new(200, None, "");
            let mut config = server.config().into_builder();
            config.set_endpoint_url(endpoint.map(str::to_owned));
            S3::new(&config.build(), None).put(arn, "out/k", b"{}".to_vec()).await.unwrap();
            let uri = server.uri.lock().unwrap().clone();
            assert_eq!(uri, format!("{host}/out/k?x-id=PutObject"));
        }
    }

    /// S3 names the bucket's region, and this and all later requests use it.
    #[tokio::test]
    async fn requests_follow_a_bucket_to_its_region() {
        let moved =
            "<Error><Code>AuthorizationHeaderMalformed</Code><Region>ap-south-1</Region></Error>";
        for (server, region) in [
            (
                Canned::new(301, None, "").header("x-amz-bucket-region", "us-west-2"),
                Some("us-west-2"),
            ),
            (Canned::new(400, None, moved), Some("ap-south-1")),
            (Canned::new(301, None, "").header("x-amz-bucket-region", "evil.example/"), None),
            (Canned::new(301, None, ""), None),
            (Canned::new(301, None, "").header("x-amz-bucket-region", "eu-west-1"), None),
        ] {
            let s3 = s3(&server);
            let error = s3.open(&object(None, None)).await.err().unwrap().to_string();
            assert_eq!(s3.regions.of("b").as_ref().map(AsRef::as_ref), region, "{error}");
            assert_eq!(
                server.requests.load(Ordering::Relaxed),
                if region.is_some() { 2 } else { 1 },
                "{error}"
            );
            assert!(error.contains("the bucket is in another region than AWS_REGION"), "{error}");
            let again = s3.open(&object(None, None)).await.err().unwrap().to_string();
            assert_eq!(
                server.requests.load(Ordering::Relaxed),
                if region.is_some() { 3 } else { 2 },
                "{error}"
            );
            for error in [error, again] {
                let there = region.map(|region| {
                    format!("the request was already repeated in {region}, which an earlier answer named")
                });
                assert_eq!(
                    error.contains("the request was already repeated in"),
                    region.is_some(),
                    "{error}"
                );
                assert!(error.contains(&there.unwrap_or_default()), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn secret_headers_that_an_endpoint_repeats_are_not_in_the_failure() {
        use aws_credential_types::Credentials;
        use aws_credential_types::provider::SharedCredentialsProvider;
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let mut heads = Vec::new();
            for status in ["403 Forbidden", "200 OK"] {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(connection.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let body = format!(
                    "<Error><Code>AccessDenied</Code><Message>denied {head}</Message></Error>"
                );
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                connection.write_all(answer.as_bytes()).await.unwrap();
                heads.push(head);
            }
            heads
        });
        let credentials =
            Credentials::new("AKID", "key", Some("token-of-the-session".to_owned()), None, "test");
        let config = real(None)
            .into_builder()
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(endpoint)
            .build();
        let config = aws_sdk_s3::config::Builder::from(&config)
            .force_path_style(true)
            .retry_config(aws_sdk_s3::config::retry::RetryConfig::disabled())
            .build();
        let client = aws_sdk_s3::Client::from_conf(config);
        let read = client.get_object().bucket("b").key("k").send().await.unwrap_err();
        let finished = client
            .complete_multipart_upload()
            .bucket("b")
            .key("k")
            .upload_id("u")
            .send()
            .await
            .unwrap_err();
        let failures = [Failure::of(&read), Failure::of(&finished)];
        for (head, failure) in server.await.unwrap().iter().zip(failures) {
            assert!(head.contains("token-of-the-session") && head.contains("Signature="), "{head}");
            let text = format!("{failure:?}");
            assert!(text.contains("denied") && text.contains("AccessDenied"), "{text}");
            assert!(
                !text.contains("token-of-the-session") && !text.contains("Signature="),
                "{text}"
            );
        }
    }
}
