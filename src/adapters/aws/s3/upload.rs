//! Uploads files, in one request or in parts.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Builder, RequestChecksumCalculation};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart, ObjectCannedAcl,
    StorageClass,
};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::{ByteStream, Length};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::S3;
use super::errors::write_error;
use super::identity::unquoted;
use crate::adapters::aws::{self, Failure};
use crate::job::object_attributes::ObjectAttributes;
use crate::ports::checksum::{Algorithm, Checksum, Hasher};
use crate::ports::{ObjectWriter, Upload, Uploaded};

#[async_trait]
impl ObjectWriter for S3 {
    async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> Result<(), String> {
        let put = self.send(bucket, |config| {
            let put =
                self.client().put_object().bucket(bucket).key(key).content_type("application/json");
            let put = put
                .set_expected_bucket_owner(self.options.expected_owner.clone())
                .set_request_payer(self.payer())
                .set_server_side_encryption(self.encryption())
                .set_ssekms_key_id(self.kms_key())
                .body(bytes.clone().into());
            put.customize().config_override(self.within(config, bytes.len() as u64)).send()
        });
        put.await.map(drop).map_err(|why| write_error(bucket, key, &why))
    }

    async fn upload(
        &self,
        upload: &Upload<'_>,
        halt: &CancellationToken,
    ) -> Result<Uploaded, String> {
        let Upload { bucket, key, .. } = upload;
        let halted = || format!("s3://{bucket}/{key}: the upload was stopped");
        if halt.is_cancelled() {
            return Err(halted());
        }
        if upload.bytes < IN_PARTS_FROM {
            return halt
                .run_until_cancelled(self.upload_whole(upload))
                .await
                .unwrap_or_else(|| Err(halted()));
        }
        // Not cancellable: a begun upload must be completed or aborted, which needs its id.
        let id = self.begin_parts(upload).await?;
        let uploaded = halt
            .run_until_cancelled(self.upload_parts(upload, &id))
            .await
            .unwrap_or_else(|| Err(halted()));
        if uploaded.is_err() {
            self.abort_parts(upload, &id).await;
        }
        uploaded
    }
}

/// An object of this size or more, in bytes, is uploaded in parts, which are retried separately.
const IN_PARTS_FROM: u64 = 32 << 20;

/// The smallest part, in bytes.
const PART: u64 = 16 << 20;

/// The most parts that S3 accepts (S3 User Guide, "Amazon S3 multipart upload limits").
const MOST_PARTS: u64 = 10_000;

/// How many parts are uploaded at the same time.
const STREAMS: usize = 4;

/// The size of a read from a file, in bytes.
const BUFFER: usize = 256 << 10;

/// An upload slower than this, in bytes a second, counts as stalled: its request is cancelled and
/// repeated.
const SLOWEST: u64 = 64 << 10;

/// The slowest speed at which S3 combines parts, in bytes a second: the largest objects take
/// minutes.
const SLOWEST_COMPLETION: u64 = 32 << 20;

/// The limit of an attempt to begin an upload: a stop waits for it.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);

/// The limit of an abort: a stop should not spend more time on it.
const ABORT_LIMIT: Duration = Duration::from_secs(2);

impl S3 {
    /// Limits each attempt at a request that sends `bytes`, so that a missing answer costs little
    /// time compared with the work. The limit starts at a third of the timeout of a read, so that
    /// three attempts take as long as one read.
    fn within(&self, config: Builder, bytes: u64) -> Builder {
        let limit = self.options.timeout / 3 + Duration::from_secs(bytes / SLOWEST);
        config.timeout_config(TimeoutConfig::builder().operation_attempt_timeout(limit).build())
    }

    /// `AWS_REQUEST_CHECKSUM_CALCULATION` can switch this off: some stores do not support
    /// CRC64NVME.
    fn sends_checksums(&self) -> bool {
        self.config.request_checksum_calculation() != Some(RequestChecksumCalculation::WhenRequired)
    }

    async fn upload_whole(&self, upload: &Upload<'_>) -> Result<Uploaded, String> {
        let Upload { bucket, key, path, bytes, content_type, attributes } = *upload;
        let attributes = Attributes::from(attributes);
        let checksum = checksum_of(hash(path, 0..bytes).await?);
        let sent = self.sends_checksums().then(|| checksum.value.clone());
        let file = body(path, 0..bytes).await?;
        let put = self.send(bucket, |config| {
            let put = self.client().put_object().bucket(bucket).key(key).content_type(content_type);
            let put = put
                .set_expected_bucket_owner(self.options.expected_owner.clone())
                .set_request_payer(self.payer())
                .set_checksum_crc64_nvme(sent.clone());
            let put = put
                .set_server_side_encryption(self.encryption())
                .set_ssekms_key_id(self.kms_key())
                .set_storage_class(attributes.storage_class.clone())
                .set_tagging(attributes.tagging.clone())
                .set_acl(attributes.acl.clone())
                .body(reopened(&file));
            put.customize().config_override(self.within(config, bytes)).send()
        });
        let answer = put.await.map_err(|why| write_error(bucket, key, &why))?;
        compare(bucket, key, answer.checksum_crc64_nvme.as_deref(), &checksum)?;
        Ok(Uploaded { etag: answer.e_tag.as_deref().and_then(unquoted), checksum })
    }

    async fn begin_parts(&self, upload: &Upload<'_>) -> Result<String, String> {
        let Upload { bucket, key, .. } = *upload;
        let id = self.create_upload(upload).await.map_err(|why| write_error(bucket, key, &why))?;
        id.ok_or_else(|| format!("s3://{bucket}/{key}: the answer has no upload id"))
    }

    /// The id of a new upload in parts, if the answer has one. The attributes of the object are in
    /// this request, and not in those of the parts.
    pub(super) async fn create_upload(
        &self,
        upload: &Upload<'_>,
    ) -> Result<Option<String>, Failure> {
        let Upload { bucket, key, content_type, attributes, .. } = *upload;
        let attributes = Attributes::from(attributes);
        let begin = self
            .client()
            .create_multipart_upload()
            .bucket(bucket)
            .key(key)
            .content_type(content_type);
        let begin = begin
            .set_expected_bucket_owner(self.options.expected_owner.clone())
            .set_request_payer(self.payer());
        let begin = begin
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.kms_key())
            .set_storage_class(attributes.storage_class)
            .set_tagging(attributes.tagging)
            .set_acl(attributes.acl);
        let begin = if self.sends_checksums() {
            begin
                .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
                .checksum_type(ChecksumType::FullObject)
        } else {
            begin
        };
        let limit = TimeoutConfig::builder()
            .operation_attempt_timeout(BEGIN_LIMIT.min(self.options.timeout))
            .build();
        let answer = self.send(bucket, |config| {
            begin.clone().customize().config_override(config.timeout_config(limit.clone())).send()
        });
        Ok(answer.await?.upload_id)
    }

    async fn upload_parts(&self, upload: &Upload<'_>, id: &str) -> Result<Uploaded, String> {
        let Upload { bytes, .. } = *upload;
        let part = PART.max(bytes.div_ceil(MOST_PARTS));
        let ranges = (0..bytes.div_ceil(part)).map(|n| n * part..((n + 1) * part).min(bytes));
        let parts =
            (1..).zip(ranges).map(|(number, range)| self.upload_part(upload, id, number, range));
        // `buffered` keeps the order of the parts.
        let parts: Vec<_> = stream::iter(parts).buffered(STREAMS).try_collect().await?;

        let mut whole = Hasher::new(Algorithm::Crc64Nvme);
        for (_, hasher) in &parts {
            whole.append(hasher);
        }
        let parts = parts.into_iter().map(|(part, _)| part).collect();
        self.complete_parts(upload, id, parts, &checksum_of(whole)).await
    }

    async fn complete_parts(
        &self,
        upload: &Upload<'_>,
        id: &str,
        parts: Vec<CompletedPart>,
        whole: &Checksum,
    ) -> Result<Uploaded, String> {
        let Upload { bucket, key, bytes, .. } = *upload;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts));
        let complete =
            self.client().complete_multipart_upload().bucket(bucket).key(key).upload_id(id);
        let complete = complete
            .set_expected_bucket_owner(self.options.expected_owner.clone())
            .set_request_payer(self.payer())
            .multipart_upload(parts.build());
        // A store without our checksums may not know this parameter, either.
        let size = bytes.try_into().ok().filter(|_| self.sends_checksums());
        let complete = complete.set_mpu_object_size(size);
        let limit = self.options.timeout / 3 + Duration::from_secs(bytes / SLOWEST_COMPLETION);
        let limit = TimeoutConfig::builder().operation_attempt_timeout(limit).build();
        let answer = self.send(bucket, |config| {
            complete
                .clone()
                .customize()
                .config_override(config.timeout_config(limit.clone()))
                .send()
        });
        let answer = answer.await.map_err(|why| write_error(bucket, key, &why))?;
        let etag = answer.e_tag.as_deref().and_then(unquoted);
        if etag.is_none() {
            return Err(format!(
                "s3://{bucket}/{key}: the answer to CompleteMultipartUpload has no eTag"
            ));
        }
        // S3 has verified each part. For the whole, some servers return only a hash of the parts'
        // hashes.
        compare(bucket, key, answer.checksum_crc64_nvme.as_deref(), whole)?;
        Ok(Uploaded { etag, checksum: whole.clone() })
    }

    async fn upload_part(
        &self,
        upload: &Upload<'_>,
        id: &str,
        number: i32,
        range: Range<u64>,
    ) -> Result<(CompletedPart, Hasher), String> {
        let Upload { bucket, key, path, .. } = *upload;
        let hasher = hash(path, range.clone()).await?;
        let checksum = checksum_of(hasher.clone());
        let sent = self.sends_checksums().then(|| checksum.value.clone());
        let (bytes, file) = (range.end - range.start, body(path, range).await?);
        let part = self.send(bucket, |config| {
            let part = self
                .client()
                .upload_part()
                .bucket(bucket)
                .key(key)
                .upload_id(id)
                .part_number(number);
            let part = part
                .set_expected_bucket_owner(self.options.expected_owner.clone())
                .set_request_payer(self.payer());
            let part = part.set_checksum_crc64_nvme(sent.clone()).body(reopened(&file));
            part.customize().config_override(self.within(config, bytes)).send()
        });
        let answer = part.await.map_err(|why| write_error(bucket, key, &why))?;
        compare(bucket, key, answer.checksum_crc64_nvme.as_deref(), &checksum)?;
        let part = CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag)
            .set_checksum_crc64_nvme(sent);
        Ok((part.build(), hasher))
    }

    /// The parts of an incomplete upload cost money until it is aborted.
    pub(super) async fn abort_parts(&self, upload: &Upload<'_>, id: &str) {
        let Upload { bucket, key, .. } = *upload;
        let abort = self.client().abort_multipart_upload().bucket(bucket).key(key).upload_id(id);
        let abort = abort
            .set_expected_bucket_owner(self.options.expected_owner.clone())
            .set_request_payer(self.payer());
        let abort =
            self.send(bucket, |config| abort.clone().customize().config_override(config).send());
        let why = match tokio::time::timeout(ABORT_LIMIT, abort).await {
            Ok(Ok(_)) => return,
            Ok(Err(why)) => write_error(bucket, key, &why),
            Err(_) => format!("s3://{bucket}/{key}: no answer within {ABORT_LIMIT:?}"),
        };
        warn!(
            why,
            "an incomplete upload could not be aborted: a lifecycle rule with AbortIncompleteMultipartUpload removes its parts"
        );
    }
}

/// The attributes of an object in the SDK's types.
struct Attributes {
    storage_class: Option<StorageClass>,
    tagging: Option<String>,
    acl: Option<ObjectCannedAcl>,
}

impl From<Option<&ObjectAttributes>> for Attributes {
    fn from(attributes: Option<&ObjectAttributes>) -> Self {
        let of = attributes.cloned().unwrap_or_default();
        Self {
            storage_class: of.storage_class.map(|class| class.to_string().as_str().into()),
            tagging: of.tags.map(|tags| tags.to_query()),
            acl: of.acl.map(|acl| acl.to_string().as_str().into()),
        }
    }
}

/// The checksum is computed before the upload, so that the stored bytes must match the disk's.
async fn hash(path: &Path, range: Range<u64>) -> Result<Hasher, String> {
    let of = path.to_owned();
    let hashed =
        tokio::task::spawn_blocking(move || Hasher::hash_file(Algorithm::Crc64Nvme, &of, range))
            .await;
    hashed
        .map_err(io::Error::from)
        .and_then(|hashed| hashed)
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// A body that reads the file while it is sent, and again for each retry.
async fn body(path: &Path, range: Range<u64>) -> Result<SdkBody, String> {
    let body = ByteStream::read_from().path(path).buffer_size(BUFFER);
    let body =
        body.offset(range.start).length(Length::Exact(range.end - range.start)).build().await;
    body.map(ByteStream::into_inner)
        .map_err(|error| format!("{}: {}", path.display(), aws::causes(&error)))
}

fn reopened(body: &SdkBody) -> ByteStream {
    ByteStream::new(body.try_clone().expect("a file can be read again"))
}

fn checksum_of(hasher: Hasher) -> Checksum {
    Checksum { algorithm: Algorithm::Crc64Nvme, value: hasher.value() }
}

/// Compares the checksum of the stored object with that of the sent bytes.
fn compare(bucket: &str, key: &str, stored: Option<&str>, sent: &Checksum) -> Result<(), String> {
    match stored.filter(|value| !value.contains('-')) {
        Some(stored) if stored != sent.value => Err(format!(
            "s3://{bucket}/{key}: CRC64NVME of the stored object is {stored}, expected {}",
            sent.value
        )),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Canned;
    use super::*;

    /// Stores without our checksums refuse newer headers of S3, too.
    #[tokio::test]
    async fn no_headers_that_only_s3_supports_are_sent_if_checksums_are_switched_off() {
        let path = Path::new("big");
        let upload = Upload {
            bucket: "b",
            key: "k",
            path,
            bytes: 34_000_000,
            content_type: "text/plain",
            attributes: None,
        };
        for (calculation, is_sent) in [
            (RequestChecksumCalculation::WhenSupported, true),
            (RequestChecksumCalculation::WhenRequired, false),
        ] {
            let server = Canned::new(
                200,
                None,
                "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>",
            );
            let config =
                server.config().into_builder().request_checksum_calculation(calculation).build();
            let whole = checksum_of(Hasher::new(Algorithm::Crc64Nvme));
            let uploaded =
                S3::new(&config, None).complete_parts(&upload, "id", Vec::new(), &whole).await;
            assert!(uploaded.is_ok(), "{:?}", uploaded.err());
            let sent = server.sent.lock().unwrap();
            let has = |text: &str| sent.iter().any(|name| name.contains(text));
            assert_eq!(has("x-amz-mp-object-size"), is_sent, "{sent:?}");
            assert!(is_sent || !has("checksum"), "{sent:?}");
        }
    }
}
