//! Objects in S3, or in anything that speaks its protocol.

pub mod probes;
mod records;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_s3::config::ResponseChecksumValidation;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use aws_smithy_types::byte_stream::{self, Length};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::aws::{self, Failure};
use super::checksum::{Algorithm, Checksum, Hasher};
use super::{ByteStream, FetchError, ObjectBody, ObjectStore, ObjectWriter, Storage, Upload, Uploaded};
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
    /// Touches only buckets of the account `expected_owner`, if it is given.
    pub fn new(config: &SdkConfig, expected_owner: Option<String>) -> Self {
        Self { config: config.clone(), expected_owner, client: OnceLock::new() }
    }

    fn client(&self) -> &aws_sdk_s3::Client {
        self.client.get_or_init(|| {
            // Of an endpoint other than AWS's own no bucket has a host name, so it is put into the path.
            let in_path = aws::custom_endpoint(&self.config, "S3").is_some();
            let config = aws_sdk_s3::config::Builder::from(&self.config)
                .force_path_style(in_path)
                // Whoever reads compares the checksum: the SDK sees only the bytes of one answer.
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
            aws_sdk_s3::Client::from_conf(config.build())
        })
    }

    /// A request for exactly the object that the event told of.
    fn get(&self, object: &Object) -> GetObjectFluentBuilder {
        let get = self.client().get_object().bucket(&object.bucket).key(&object.key);
        let get = get.set_expected_bucket_owner(self.expected_owner.clone());
        match (&object.version_id, &object.etag) {
            (Some(version), _) => get.version_id(version),
            (None, Some(etag)) => get.if_match(format!("\"{etag}\"")),
            (None, None) => get,
        }
    }
}

#[async_trait]
impl ObjectStore for S3 {
    async fn open(&self, object: &Object) -> Result<ObjectBody, FetchError> {
        // The SDK's own parameter would make it check the bytes too.
        let get = self.get(object).customize();
        let get = get.mutate_request(|request| drop(request.headers_mut().insert("x-amz-checksum-mode", "ENABLED")));
        let mut answer = get.send().await.map_err(|error| classified(object, &Failure::of(&error)))?;
        let size = answer.content_length.and_then(|length| length.try_into().ok());
        // Proxies may take the length away. Of another object than was put into the bucket, the event knows nothing.
        let told = object.size.filter(|_| object.version_id.is_some() || object.etag.is_some());
        let untold = || FetchError::Retryable(format!("{}: the answer does not tell its size", named(object)));
        let size = size.or(told).ok_or_else(untold)?;
        Ok(ObjectBody {
            size,
            etag: answer.e_tag.as_deref().map(unquoted).filter(|etag| !etag.is_empty()),
            checksum: checksum(object, &mut answer),
            bytes: chunks(answer.body),
        })
    }

    async fn open_range(&self, object: &Object, range: Range<u64>) -> Result<ByteStream, FetchError> {
        let Range { start, end } = range;
        let get = self.get(object).range(format!("bytes={start}-{}", end - 1));
        let answer = get.send().await.map_err(|error| classified(object, &Failure::of(&error)))?;
        let told = answer.content_range.unwrap_or_default();
        if !told.starts_with(&format!("bytes {start}-")) {
            let what = named(object);
            return Err(FetchError::Retryable(format!("{what}: asked for bytes {start}-, the answer has {told:?}")));
        }
        Ok(chunks(answer.body))
    }
}

/// The checksum that the bytes of an answer must have, if there is one that can be told from them.
fn checksum(object: &Object, answer: &mut GetObjectOutput) -> Option<Checksum> {
    let known = [
        (Algorithm::Crc64Nvme, answer.checksum_crc64_nvme.take()),
        (Algorithm::Crc32C, answer.checksum_crc32_c.take()),
        (Algorithm::Crc32, answer.checksum_crc32.take()),
        (Algorithm::Sha256, answer.checksum_sha256.take()),
        (Algorithm::Sha1, answer.checksum_sha1.take()),
    ];
    let found = known.into_iter().find_map(|(algorithm, value)| Some(Checksum { algorithm, value: value? }));
    // A composite one is a hash of the parts' hashes, `<Base64>-<parts>`: nobody tells where the parts ended.
    let is_composite =
        |found: &Checksum| answer.checksum_type == Some(ChecksumType::Composite) || found.value.contains('-');
    match found {
        Some(found) if !is_composite(&found) => Some(found),
        Some(found) => {
            debug!(object = named(object), checksum = ?found, "a checksum of parts: only the size can be compared");
            None
        }
        None => {
            debug!(object = named(object), "no checksum is kept: only the size can be compared");
            None
        }
    }
}

fn chunks(body: byte_stream::ByteStream) -> ByteStream {
    let next = |mut body: byte_stream::ByteStream| async {
        let chunk = body.next().await?;
        Some((chunk.map_err(|error| io::Error::other(aws::causes(&error))), body))
    };
    stream::unfold(body, next).boxed()
}

#[async_trait]
impl ObjectWriter for S3 {
    async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> Result<(), String> {
        let put = self.client().put_object().bucket(bucket).key(key).content_type("application/json");
        let put = put.set_expected_bucket_owner(self.expected_owner.clone()).body(bytes.into());
        put.send().await.map(drop).map_err(|error| unwritten(bucket, key, &Failure::of(&error)))
    }

    async fn upload(&self, upload: &Upload<'_>, halt: &CancellationToken) -> Result<Uploaded, String> {
        let Upload { bucket, key, .. } = upload;
        let halted = || format!("s3://{bucket}/{key}: halted");
        if halt.is_cancelled() {
            return Err(halted());
        }
        if upload.bytes < IN_PARTS_FROM {
            return halt.run_until_cancelled(self.upload_whole(upload)).await.unwrap_or_else(|| Err(halted()));
        }
        // Begun, it has to be ended: so its name is waited for.
        let id = self.begin_parts(upload).await?;
        let uploaded = halt.run_until_cancelled(self.upload_parts(upload, &id)).await.unwrap_or_else(|| Err(halted()));
        if uploaded.is_err() {
            self.abort_parts(upload, &id).await;
        }
        uploaded
    }
}

#[async_trait]
impl Storage for S3 {
    async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, String> {
        let list = self.client().list_objects_v2().bucket(bucket).prefix(prefix);
        let list = list.set_expected_bucket_owner(self.expected_owner.clone());
        let mut keys = Vec::new();
        let mut pages = list.into_paginator().send();
        for _ in 0..MOST_PAGES {
            let Some(page) = pages.next().await else { return Ok(keys) };
            let page = page.map_err(|error| {
                let why = Failure::of(&error);
                format!("s3://{bucket}/{prefix}: {}", refused(&why, "s3:ListBucket"))
            })?;
            keys.extend(page.contents.into_iter().flatten().filter_map(|object| object.key));
        }
        Err(format!("s3://{bucket}/{prefix}: there are more than {} objects", keys.len()))
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<(), String> {
        let delete = self.client().delete_object().bucket(bucket).key(key);
        let delete = delete.set_expected_bucket_owner(self.expected_owner.clone());
        delete.send().await.map(drop).map_err(|error| {
            let why = Failure::of(&error);
            format!("s3://{bucket}/{key}: {}", refused(&why, "s3:DeleteObject"))
        })
    }
}

/// A page has a thousand keys. A list must end, whatever the store answers.
const MOST_PAGES: usize = 100;

/// An object of this size or more is uploaded in parts, in bytes: each can be tried again by itself.
const IN_PARTS_FROM: u64 = 32 << 20;

/// The least that a part has, in bytes.
const PART: u64 = 16 << 20;

/// S3 takes no more parts than this (S3 User Guide, "Amazon S3 multipart upload limits").
const MOST_PARTS: u64 = 10_000;

/// How many parts are on their way at a time.
const STREAMS: usize = 4;

/// What is read of a file at a time, in bytes.
const BUFFER: usize = 256 << 10;

/// Until an attempt at one request of an upload is answered; that it stalls is noticed long before.
const UPLOAD_LIMIT: Duration = Duration::from_mins(10);

/// An upload that is given up is not worth more of a stop.
const ABORT_LIMIT: Duration = Duration::from_secs(2);

impl S3 {
    async fn upload_whole(&self, upload: &Upload<'_>) -> Result<Uploaded, String> {
        let Upload { bucket, key, path, bytes, content_type } = *upload;
        let hasher = hashed(path, 0..bytes).await?;
        let put = self.client().put_object().bucket(bucket).key(key).content_type(content_type);
        let put = put.set_expected_bucket_owner(self.expected_owner.clone());
        let put = put.checksum_crc64_nvme(hasher.clone().value()).body(body(path, 0..bytes).await?);
        let answer = put.customize().config_override(patient()).send().await;
        let answer = answer.map_err(|error| unwritten(bucket, key, &Failure::of(&error)))?;
        Ok(Uploaded { etag: answer.e_tag.as_deref().map(unquoted), checksum: checksum_of(hasher) })
    }

    async fn begin_parts(&self, upload: &Upload<'_>) -> Result<String, String> {
        let Upload { bucket, key, content_type, .. } = *upload;
        let begin = self.client().create_multipart_upload().bucket(bucket).key(key).content_type(content_type);
        let begin = begin.set_expected_bucket_owner(self.expected_owner.clone());
        let begin = begin.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).checksum_type(ChecksumType::FullObject);
        let answer = begin.send().await.map_err(|error| unwritten(bucket, key, &Failure::of(&error)))?;
        answer.upload_id.ok_or_else(|| format!("s3://{bucket}/{key}: the upload got no id"))
    }

    async fn upload_parts(&self, upload: &Upload<'_>, id: &str) -> Result<Uploaded, String> {
        let Upload { bucket, key, bytes, .. } = *upload;
        let part = PART.max(bytes.div_ceil(MOST_PARTS));
        let ranges = (0..bytes.div_ceil(part)).map(|n| n * part..((n + 1) * part).min(bytes));
        let parts = (1..).zip(ranges).map(|(number, range)| self.upload_part(upload, id, number, range));
        // In order, whichever is ready first.
        let parts: Vec<_> = stream::iter(parts).buffered(STREAMS).try_collect().await?;

        let mut whole = Hasher::new(Algorithm::Crc64Nvme);
        for (_, hasher) in &parts {
            whole.append(hasher);
        }
        let parts =
            CompletedMultipartUpload::builder().set_parts(Some(parts.into_iter().map(|(part, _)| part).collect()));
        let complete = self.client().complete_multipart_upload().bucket(bucket).key(key).upload_id(id);
        let complete = complete.set_expected_bucket_owner(self.expected_owner.clone()).multipart_upload(parts.build());
        let complete = complete.set_mpu_object_size(bytes.try_into().ok()).customize().config_override(patient());
        let answer = complete.send().await.map_err(|error| unwritten(bucket, key, &Failure::of(&error)))?;
        let whole = checksum_of(whole);
        // Each part was compared by S3; of the whole, some servers know only a hash of the parts' hashes.
        match answer.checksum_crc64_nvme.filter(|value| !value.contains('-')) {
            Some(value) if value != whole.value => {
                Err(format!("s3://{bucket}/{key}: CRC64NVME of what was put together is {value}, not {}", whole.value))
            }
            Some(_) | None => Ok(Uploaded { etag: answer.e_tag.as_deref().map(unquoted), checksum: whole }),
        }
    }

    async fn upload_part(
        &self,
        upload: &Upload<'_>,
        id: &str,
        number: i32,
        range: Range<u64>,
    ) -> Result<(CompletedPart, Hasher), String> {
        let Upload { bucket, key, path, .. } = *upload;
        let hasher = hashed(path, range.clone()).await?;
        let checksum = hasher.clone().value();
        let part = self.client().upload_part().bucket(bucket).key(key).upload_id(id).part_number(number);
        let part = part.set_expected_bucket_owner(self.expected_owner.clone());
        let part = part.checksum_crc64_nvme(&checksum).body(body(path, range).await?);
        let answer = part.customize().config_override(patient()).send().await;
        let answer = answer.map_err(|error| unwritten(bucket, key, &Failure::of(&error)))?;
        let part = CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag).checksum_crc64_nvme(checksum);
        Ok((part.build(), hasher))
    }

    /// So that nobody pays for parts of what will never be an object.
    async fn abort_parts(&self, upload: &Upload<'_>, id: &str) {
        let Upload { bucket, key, .. } = *upload;
        let abort = self.client().abort_multipart_upload().bucket(bucket).key(key).upload_id(id);
        let abort = abort.set_expected_bucket_owner(self.expected_owner.clone()).send();
        let why = match tokio::time::timeout(ABORT_LIMIT, abort).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => unwritten(bucket, key, &Failure::of(&error)),
            Err(_) => format!("s3://{bucket}/{key}: no answer within {ABORT_LIMIT:?}"),
        };
        warn!(why, "parts of an upload are left: a lifecycle rule with AbortIncompleteMultipartUpload removes them");
    }
}

/// Bytes on their way may take longer than an answer.
fn patient() -> aws_sdk_s3::config::Builder {
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(UPLOAD_LIMIT).build();
    aws_sdk_s3::Config::builder().timeout_config(timeouts)
}

/// Before it is sent, so that what is stored is what was on the disk.
async fn hashed(path: &Path, range: Range<u64>) -> Result<Hasher, String> {
    let of = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || Hasher::of_file(Algorithm::Crc64Nvme, &of, range)).await;
    hashed.map_err(io::Error::from).and_then(|hashed| hashed).map_err(|error| format!("{}: {error}", path.display()))
}

/// Read while it is sent, and again if it has to be sent again.
async fn body(path: &Path, range: Range<u64>) -> Result<byte_stream::ByteStream, String> {
    let body = byte_stream::ByteStream::read_from().path(path).buffer_size(BUFFER);
    let body = body.offset(range.start).length(Length::Exact(range.end - range.start)).build().await;
    body.map_err(|error| format!("{}: {}", path.display(), aws::causes(&error)))
}

fn checksum_of(hasher: Hasher) -> Checksum {
    Checksum { algorithm: Algorithm::Crc64Nvme, value: hasher.value() }
}

fn unquoted(etag: &str) -> String {
    etag.trim_matches('"').to_owned()
}

/// Why an object was not written, and what to change where we know it.
fn unwritten(bucket: &str, key: &str, failure: &Failure) -> String {
    let permissions = "s3:PutObject, and kms:GenerateDataKey if it is encrypted with a KMS key";
    format!("s3://{bucket}/{key}: {}", refused(failure, permissions))
}

/// Why a request failed, and which permissions it needs.
fn refused(failure: &Failure, permissions: &str) -> String {
    match failure {
        Failure::Refused { code, message, status } => {
            let code = code.clone().unwrap_or_else(|| format!("HTTP {status}"));
            let message = message.as_deref().unwrap_or("no reason given");
            match code.as_str() {
                "AccessDenied" | "HTTP 403" => format!(
                    "{code}: {message} (the pod's role must allow {permissions}; and if --expected-bucket-owner is said, \
                     the bucket must be of that account)"
                ),
                _ => format!("{code}: {message}"),
            }
        }
        Failure::Misconfigured(why) | Failure::Unanswered(why) => why.clone(),
    }
}

fn named(object: &Object) -> String {
    let Object { bucket, key, version_id, .. } = object;
    let version = version_id.as_ref().map(|version| format!(" (version {version})")).unwrap_or_default();
    format!("s3://{bucket}/{key}{version}")
}

/// What a failed GetObject means for the message, and what to change where we know it.
fn classified(object: &Object, failure: &Failure) -> FetchError {
    let Object { bucket, version_id, .. } = object;
    let what = format!("object {}", named(object));
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

    #[test]
    fn only_a_checksum_of_the_whole_is_told() {
        let told = |answer: GetObjectOutput| checksum(&object(None), &mut { answer });
        let is = |algorithm, value: &str| Some(Checksum { algorithm, value: value.to_owned() });
        let answer = GetObjectOutput::builder;
        assert_eq!(told(answer().checksum_crc64_nvme("a=").build()), is(Algorithm::Crc64Nvme, "a="));
        assert_eq!(told(answer().checksum_crc32("a=").build()), is(Algorithm::Crc32, "a="));
        assert_eq!(told(answer().checksum_crc32_c("a=").build()), is(Algorithm::Crc32C, "a="));
        assert_eq!(told(answer().checksum_sha1("a=").build()), is(Algorithm::Sha1, "a="));
        let whole = answer().checksum_sha256("a=").checksum_type(ChecksumType::FullObject);
        assert_eq!(told(whole.build()), is(Algorithm::Sha256, "a="));
        assert_eq!(told(answer().checksum_crc32("a=-3").build()), None);
        assert_eq!(told(answer().checksum_crc32("a=").checksum_type(ChecksumType::Composite).build()), None);
        assert_eq!(told(answer().build()), None);
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
