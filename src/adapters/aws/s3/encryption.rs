//! Server-side encryption of the objects that are written.

use aws_sdk_s3::types::ServerSideEncryption;
use serde::Deserialize;

/// The headers of every object that is written. Without them, the bucket's default applies; but a
/// bucket policy may refuse objects without them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    pub algorithm: Algorithm,
    /// The bucket's or the account's default key if `None`.
    pub kms_key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Algorithm {
    /// With keys of S3 (SSE-S3)
    #[cfg_attr(feature = "cli", value(name = "AES256"))]
    #[serde(rename = "AES256")]
    Aes256,
    /// With a key of KMS (SSE-KMS)
    #[cfg_attr(feature = "cli", value(name = "aws:kms"))]
    #[serde(rename = "aws:kms")]
    Kms,
    /// With a key of KMS, in two layers (DSSE-KMS)
    #[cfg_attr(feature = "cli", value(name = "aws:kms:dsse"))]
    #[serde(rename = "aws:kms:dsse")]
    KmsDsse,
}

impl From<Algorithm> for ServerSideEncryption {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Aes256 => Self::Aes256,
            Algorithm::Kms => Self::AwsKms,
            Algorithm::KmsDsse => Self::AwsKmsDsse,
        }
    }
}
