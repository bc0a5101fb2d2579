//! Interprets errors of S3, with advice where we know the cure.

use crate::adapters::aws::Failure;
use crate::job::notification::Object;
use crate::ports::FetchError;

/// Why an object was not written.
pub(super) fn write_error(bucket: &str, key: &str, failure: &Failure) -> String {
    let permissions = "s3:PutObject, s3:PutObjectTagging for --output-tags, s3:PutObjectAcl for --output-acl, and kms:GenerateDataKey if it is encrypted with a KMS key";
    format!("s3://{bucket}/{key}: {}", describe(failure, permissions))
}

/// Why a request failed, and which permissions it needs.
pub(super) fn describe(failure: &Failure, permissions: &str) -> String {
    match failure {
        Failure::Refused { code, message, status } => {
            let code = code.clone().unwrap_or_else(|| format!("HTTP {status}"));
            let message = message.as_deref().unwrap_or("no reason given");
            let advice = match code.as_str() {
                "AccessDenied" | "HTTP 403" => format!(
                    " (the pod's role must allow {permissions}; and if --expected-bucket-owner is set, that account must own the bucket)"
                ),
                code if is_of_another_region(code) => format!(" ({OTHER_REGION})"),
                _ if is_about_a_checksum(message) => format!(" ({NO_CHECKSUMS_SENT})"),
                _ => String::new(),
            };
            format!("{code}: {message}{advice}")
        }
        Failure::Misconfigured(why) | Failure::Unanswered(why) => why.clone(),
    }
}

const OTHER_REGION: &str =
    "the bucket is in another region than AWS_REGION: set AWS_REGION to the bucket's region";
const NO_CHECKSUMS_SENT: &str = "if the store does not support this checksum, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required";
const NO_CHECKSUMS_READ: &str =
    "if the store does not support checksums, set AWS_RESPONSE_CHECKSUM_VALIDATION=when_required";

/// A failure of the request that was repeated in the region that an earlier answer had named.
pub(super) fn repeated_in_region(failure: Failure, region: &str) -> Failure {
    match failure {
        Failure::Refused { code, message, status } => {
            let named = code.clone().unwrap_or_else(|| format!("HTTP {status}"));
            // A page without an S3 error code stays as it is.
            if !is_of_another_region(&named) {
                return Failure::Refused { code, message, status };
            }
            let message = message.map(|message| format!("{message}; ")).unwrap_or_default();
            let message = format!(
                "{message}the request was already repeated in {region}, which an earlier answer named"
            );
            Failure::Refused { code: Some(named), message: Some(message), status }
        }
        failure @ (Failure::Misconfigured(_) | Failure::Unanswered(_)) => failure,
    }
}

fn is_of_another_region(code: &str) -> bool {
    matches!(
        code,
        "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException"
            | "HTTP 301"
            | "HTTP 307"
    )
}

/// An error about our signature, which proves nothing about the object: `Please use
/// AWS4-HMAC-SHA256`, `Authorization header is invalid`, `x-amz-content-sha256 must be …`.
pub(super) fn is_about_the_signature(message: &str) -> bool {
    let message = message.to_lowercase();
    ["authorization", "aws4", "x-amz-content-sha256"].iter().any(|text| message.contains(text))
}

/// Some stores refuse headers that they do not know: `Unsupported header 'x-amz-checksum-mode'
/// received for this API call.`
pub(super) fn is_about_a_checksum(message: &str) -> bool {
    message.to_lowercase().contains("checksum")
}

/// An object's name in log and error messages.
pub(super) fn display_uri(object: &Object) -> String {
    let Object { bucket, key, version_id, .. } = object;
    let version =
        version_id.as_ref().map(|version| format!(" (version {version})")).unwrap_or_default();
    format!("s3://{bucket}/{key}{version}")
}

/// What a failed GetObject means for the message.
pub(super) fn fetch_error(object: &Object, failure: &Failure) -> FetchError {
    let what = format!("object {}", display_uri(object));
    match failure {
        Failure::Refused { code: Some(code), message, status } => {
            let message = message.as_deref().unwrap_or("no reason given");
            refused_fetch(object, code, message, *status)
        }
        // Errors of S3 have a code. A proxy's page has none, and proves nothing about the object.
        Failure::Refused { code: None, status, .. } => {
            let why = match status {
                403 => format!("HTTP 403 {}", read_permissions(object)),
                301 | 307 => format!("HTTP {status} ({OTHER_REGION})"),
                _ => format!(
                    "HTTP {status}, without an S3 error code (does a proxy or a portal answer instead of the store?)"
                ),
            };
            FetchError::Retryable(format!("{what} could not be fetched: {why}"))
        }
        Failure::Misconfigured(why) if object.key.trim().is_empty() => {
            FetchError::Permanent(format!(
                "{what}: its key has only blanks, and the AWS SDK cannot request such a key: {why}"
            ))
        }
        Failure::Misconfigured(why) => {
            FetchError::Retryable(format!("{what} cannot be requested: {why}"))
        }
        Failure::Unanswered(why) => {
            FetchError::Retryable(format!("{what} could not be requested: {why}"))
        }
    }
}

/// What an error of S3 means for the message.
fn refused_fetch(object: &Object, code: &str, message: &str, status: u16) -> FetchError {
    let what = format!("object {}", display_uri(object));
    let reason = format!("{code}: {}", message.trim_end_matches('.'));
    match (code, status) {
        ("InvalidObjectState", _) => FetchError::Permanent(format!(
            "{what} is archived and must be restored first: {reason}"
        )),
        ("InvalidRequest" | "InvalidArgument", 400) if is_about_a_checksum(message) => {
            FetchError::Retryable(format!(
                "{what} could not be fetched: {reason} ({NO_CHECKSUMS_READ})"
            ))
        }
        ("InvalidRequest" | "InvalidArgument", 400) if is_about_the_signature(message) => {
            FetchError::Retryable(format!(
                "{what} could not be fetched: {reason} (check the endpoint and the credentials)"
            ))
        }
        // Encrypted with a customer-provided key; an invalid version id; a key that is too long or
        // invalid.
        (
            "InvalidRequest"
            | "InvalidArgument"
            | "InvalidVersionId"
            | "KeyTooLongError"
            | "InvalidBucketName"
            | "InvalidURI"
            | "XMinioInvalidObjectName",
            400,
        ) => FetchError::Permanent(format!("{what} cannot be read: {reason}")),
        (_, 405) => {
            FetchError::Permanent(format!("{what} is a delete marker, not an object: {reason}"))
        }
        (_, 412) => {
            FetchError::Overwritten(format!("{what} was overwritten since the event: {reason}"))
        }
        ("NoSuchBucket", _) => {
            FetchError::Retryable(format!("bucket {} does not exist: {reason}", object.bucket))
        }
        (_, 404) => FetchError::Missing(format!("{what} is missing: {reason}")),
        ("AccessDenied", _) => FetchError::Retryable(format!(
            "no permission to read {what}: {reason} {}",
            read_permissions(object)
        )),
        (code, _) if is_of_another_region(code) => {
            FetchError::Retryable(format!("{what} could not be fetched: {reason} ({OTHER_REGION})"))
        }
        _ => FetchError::Retryable(format!("{what} could not be fetched: HTTP {status}, {reason}")),
    }
}

/// Advice on the permissions to read an object.
fn read_permissions(object: &Object) -> String {
    let action = if object.version_id.is_some() { "s3:GetObjectVersion" } else { "s3:GetObject" };
    format!(
        "(the pod's role must allow {action}, and kms:Decrypt if it is encrypted with a KMS key; without s3:ListBucket, S3 answers 403 for a missing object, too)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: Option<&str>) -> Object {
        Object { version_id: version.map(str::to_owned), ..Object::named("b", "k") }
    }

    #[test]
    fn a_failed_get_has_its_class_and_advice() {
        let refused = |version, status, code: &str| {
            let failure = Failure::Refused {
                code: Some(code.into()),
                message: Some("S3 error text.".into()),
                status,
            };
            match fetch_error(&object(version), &failure) {
                FetchError::Retryable(text) => ("retryable", text),
                FetchError::Permanent(text) => ("permanent", text),
                FetchError::Missing(text) => ("missing", text),
                FetchError::Overwritten(text) => ("overwritten", text),
            }
        };
        #[rustfmt::skip]
        let table = [
            (None, 404, "NoSuchKey", "missing", "object s3://b/k is missing: NoSuchKey: S3 error text"),
            (Some("v"), 404, "NoSuchVersion", "missing", "object s3://b/k (version v) is missing: "),
            (None, 404, "NoSuchBucket", "retryable", "bucket b does not exist: "),
            (None, 412, "PreconditionFailed", "overwritten", "object s3://b/k was overwritten since the event: "),
            (None, 403, "InvalidObjectState", "permanent", "object s3://b/k is archived and must be restored first: "),
            (None, 403, "AccessDenied", "retryable", "no permission to read object s3://b/k: AccessDenied: S3 error text "),
            (None, 403, "AccessDenied", "retryable", "must allow s3:GetObject, and"),
            (Some("v"), 403, "AccessDenied", "retryable", "must allow s3:GetObjectVersion, and"),
            (None, 403, "AccessDenied", "retryable", "without s3:ListBucket, S3 answers 403"),
            (None, 301, "PermanentRedirect", "retryable", "is in another region than AWS_REGION: set AWS_REGION to"),
            (None, 400, "InvalidRequest", "permanent", "object s3://b/k cannot be read: InvalidRequest: "),
            (Some("v"), 400, "InvalidArgument", "permanent", "s3://b/k (version v) cannot be read: "),
            (None, 400, "InvalidURI", "permanent", "object s3://b/k cannot be read: "),
            (None, 400, "XMinioInvalidObjectName", "permanent", "object s3://b/k cannot be read: "),
            (
                Some("v"),
                405,
                "MethodNotAllowed",
                "permanent",
                "s3://b/k (version v) is a delete marker, not an object: ",
            ),
            (None, 400, "ExpiredToken", "retryable", "object s3://b/k could not be fetched: HTTP 400, ExpiredToken: "),
            (
                None,
                400,
                "RequestTimeout",
                "retryable",
                "object s3://b/k could not be fetched: HTTP 400, RequestTimeout: ",
            ),
            (None, 503, "SlowDown", "retryable", "object s3://b/k could not be fetched: HTTP 503, SlowDown: S3 error text"),
        ];
        for (version, status, code, kind, part) in table {
            let (is, text) = refused(version, status, code);
            assert_eq!(is, kind, "{text}");
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        let blanks = Object { key: "  ".into(), ..object(None) };
        let unsent = Failure::Misconfigured("key was missing".into());
        assert!(matches!(fetch_error(&blanks, &unsent), FetchError::Permanent(_)));
        assert!(matches!(fetch_error(&object(None), &unsent), FetchError::Retryable(_)));
        let unanswered = fetch_error(&object(None), &Failure::Unanswered("refused".into()));
        assert_eq!(
            unanswered,
            FetchError::Retryable("object s3://b/k could not be requested: refused".into())
        );
    }

    #[test]
    fn a_refused_signature_is_retryable() {
        for message in [
            "Authorization header is invalid",
            "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
            "Missing required header for this request: x-amz-content-sha256",
        ] {
            for code in ["InvalidRequest", "InvalidArgument"] {
                let failure = Failure::Refused {
                    code: Some(code.into()),
                    message: Some(message.into()),
                    status: 400,
                };
                let error = fetch_error(&object(None), &failure);
                assert!(matches!(error, FetchError::Retryable(_)), "{error:?}");
            }
        }
    }

    #[test]
    fn an_error_without_an_s3_code_is_retryable() {
        for (status, part) in [
            (404, "without an S3 error code"),
            (412, "without an S3 error code"),
            (403, "must allow s3:GetObject,"),
        ] {
            let failure = Failure::Refused { code: None, message: None, status };
            let error = fetch_error(&object(None), &failure);
            assert!(
                matches!(&error, FetchError::Retryable(why) if why.contains(part)),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_store_without_our_checksums_is_retryable_and_gets_advice() {
        let message = "Unsupported header 'x-amz-checksum-mode' received for this API call.";
        let failure = Failure::Refused {
            code: Some("InvalidArgument".into()),
            message: Some(message.into()),
            status: 400,
        };
        let error = fetch_error(&object(None), &failure);
        assert!(
            matches!(&error, FetchError::Retryable(why) if why.contains("AWS_RESPONSE_CHECKSUM_VALIDATION=when_required")),
            "{error:?}"
        );
        let error = write_error("b", "k", &failure);
        assert!(error.contains("AWS_REQUEST_CHECKSUM_CALCULATION=when_required"), "{error}");
    }
}
