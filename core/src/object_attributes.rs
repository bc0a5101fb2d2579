//! How results are stored: attributes of an object besides its content.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The bucket's defaults apply to an attribute that is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectAttributes {
    pub storage_class: Option<StorageClass>,
    pub tags: Option<Tags>,
    pub acl: Option<CannedAcl>,
}

/// A storage class of S3.
// S3 API, `PutObject`, `x-amz-storage-class`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "settings", derive(serde::Deserialize))]
#[cfg_attr(feature = "settings", serde(rename_all = "SCREAMING_SNAKE_CASE"))]
#[cfg_attr(feature = "cli", value(rename_all = "SCREAMING_SNAKE_CASE"))]
pub enum StorageClass {
    Standard,
    StandardIa,
    OnezoneIa,
    IntelligentTiering,
    GlacierIr,
    Glacier,
    DeepArchive,
    ReducedRedundancy,
}

impl fmt::Display for StorageClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standard => "STANDARD",
            Self::StandardIa => "STANDARD_IA",
            Self::OnezoneIa => "ONEZONE_IA",
            Self::IntelligentTiering => "INTELLIGENT_TIERING",
            Self::GlacierIr => "GLACIER_IR",
            Self::Glacier => "GLACIER",
            Self::DeepArchive => "DEEP_ARCHIVE",
            Self::ReducedRedundancy => "REDUCED_REDUNDANCY",
        })
    }
}

/// A canned ACL of S3.
// S3 User Guide, "Canned ACL".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "settings", derive(serde::Deserialize))]
#[cfg_attr(feature = "settings", serde(rename_all = "kebab-case"))]
pub enum CannedAcl {
    Private,
    PublicRead,
    PublicReadWrite,
    AuthenticatedRead,
    AwsExecRead,
    BucketOwnerRead,
    BucketOwnerFullControl,
}

impl fmt::Display for CannedAcl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::PublicRead => "public-read",
            Self::PublicReadWrite => "public-read-write",
            Self::AuthenticatedRead => "authenticated-read",
            Self::AwsExecRead => "aws-exec-read",
            Self::BucketOwnerRead => "bucket-owner-read",
            Self::BucketOwnerFullControl => "bucket-owner-full-control",
        })
    }
}

/// The tags of an object, written as `KEY=VALUE,KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags(Vec<(String, String)>);

/// S3 User Guide, "Categorizing your storage using tags".
const MOST_TAGS: usize = 10;
const LONGEST_KEY: usize = 128;
const LONGEST_VALUE: usize = 256;

/// RFC 3986, "Unreserved Characters".
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Tags {
    /// As S3 expects them in a header: a URL query.
    pub fn to_query(&self) -> String {
        let encoded = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
        let pairs =
            self.0.iter().map(|(key, value)| format!("{}={}", encoded(key), encoded(value)));
        pairs.collect::<Vec<_>>().join("&")
    }
}

impl FromStr for Tags {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let mut tags: Vec<(String, String)> = Vec::new();
        for tag in text.strip_suffix(',').unwrap_or(text).split(',') {
            let (key, value) = tag
                .split_once('=')
                .ok_or_else(|| format!("{tag:?} is not a tag; write for example team=orders"))?;
            let (key, value) = (key.trim(), value.trim());
            check_tag(key, value)?;
            if tags.iter().any(|(other, _)| other == key) {
                return Err(format!("the tag {key:?} is set twice"));
            }
            tags.push((key.to_owned(), value.to_owned()));
        }
        if tags.len() > MOST_TAGS {
            return Err(format!("an object has at most {MOST_TAGS} tags, not {}", tags.len()));
        }
        Ok(Self(tags))
    }
}

fn check_tag(key: &str, value: &str) -> Result<(), String> {
    let is_allowed = |c: char| c.is_alphanumeric() || " +-=._:/@".contains(c);
    if let Some(c) = key.chars().chain(value.chars()).find(|c| !is_allowed(*c)) {
        return Err(format!(
            "a tag contains {c:?}; S3 allows letters, digits, blanks and + - = . _ : / @"
        ));
    }
    if key.is_empty() || key.chars().count() > LONGEST_KEY {
        return Err(format!("the key of a tag has 1 to {LONGEST_KEY} characters: {key:?}"));
    }
    if value.chars().count() > LONGEST_VALUE {
        return Err(format!("the value of the tag {key:?} is over {LONGEST_VALUE} characters"));
    }
    if key.to_lowercase().starts_with("aws:") {
        return Err(format!("the tag {key:?} begins with aws:, which S3 reserves"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_become_a_query() {
        let query = |text: &str| text.parse::<Tags>().map(|tags| tags.to_query());
        assert_eq!(query("team=orders"), Ok("team=orders".to_owned()));
        assert_eq!(
            query(" cost center=a/b+c , url=x=y,ü=,"),
            Ok("cost%20center=a%2Fb%2Bc&url=x%3Dy&%C3%BC=".to_owned())
        );
    }

    #[test]
    fn tags_that_s3_refuses_are_refused() {
        let long = |length: usize| "x".repeat(length);
        let many = (0..11).map(|n| format!("t{n}=v")).collect::<Vec<_>>().join(",");
        for (text, complaint) in [
            ("", "\"\" is not a tag"),
            ("team", "\"team\" is not a tag; write for example team=orders"),
            ("a=1,,b=2", "\"\" is not a tag"),
            ("=x", "has 1 to 128 characters"),
            ("a=1,a=2", "the tag \"a\" is set twice"),
            ("a=x&y", "a tag contains '&'"),
            ("a=x\r\ny", "a tag contains '\\r'"),
            ("AWS:x=y", "S3 reserves"),
            (&format!("{}=v", long(129)), "has 1 to 128 characters"),
            (&format!("a={}", long(257)), "is over 256 characters"),
            (&many, "at most 10 tags, not 11"),
        ] {
            let error = text.parse::<Tags>().unwrap_err();
            assert!(error.contains(complaint), "{text:?}: {error}");
        }
    }
}
