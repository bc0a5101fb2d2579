//! What happens to an object after its work succeeded (`--on-success`).

use std::fmt;
use std::str::FromStr;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::s3_location::S3Location;

/// An action on the object of finished work. To repeat it is harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnSuccess {
    /// Adds this tag to the object's tags.
    Tag {
        key: String,
        value: String,
    },
    /// Moves the object to the same key below this location.
    Move(S3Location),
    Delete,
}

/// The result of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActedOn {
    /// It is done, or was done before.
    Object,
    /// The object does not exist; an earlier delivery may have removed it.
    Missing,
    /// Another version is the latest one, and must not be lost.
    Overwritten,
}

impl OnSuccess {
    /// Does a redelivery of the message find no object?
    pub fn removes(&self) -> bool {
        match self {
            Self::Move(_) | Self::Delete => true,
            Self::Tag { .. } => false,
        }
    }
}

const FORMS: &str = "write tag=KEY:VALUE, move=s3://BUCKET/PREFIX or delete";

/// S3's limits, in characters (S3 User Guide, "Categorizing your objects using tags").
const LONGEST_TAG_KEY: usize = 128;
const LONGEST_TAG_VALUE: usize = 256;

impl FromStr for OnSuccess {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "delete" {
            return Ok(Self::Delete);
        }
        match text.split_once('=') {
            Some(("tag", tag)) => parse_tag(tag),
            Some(("move", to)) if to.contains(['{', '}']) => {
                Err("a location for move has no placeholders: the key is kept".to_owned())
            }
            Some(("move", to)) => to.parse().map(Self::Move),
            Some(_) | None => Err(FORMS.to_owned()),
        }
    }
}

/// A colon in the key, and blanks at the end, are percent-encoded. A tag has no percent signs.
fn parse_tag(tag: &str) -> Result<OnSuccess, String> {
    let (key, value) = tag.split_once(':').ok_or(FORMS)?;
    let decoded = |text| percent_decode_str(text).decode_utf8().map_err(|error| error.to_string());
    let (key, value) = (decoded(key)?, decoded(value)?);
    let is_allowed = |c: char| c.is_alphanumeric() || c == ' ' || "+-=._:/@".contains(c);
    if key.is_empty() || key.chars().count() > LONGEST_TAG_KEY {
        return Err(format!("a tag's key has 1 to {LONGEST_TAG_KEY} characters"));
    }
    if value.chars().count() > LONGEST_TAG_VALUE {
        return Err(format!("a tag's value has at most {LONGEST_TAG_VALUE} characters"));
    }
    if !key.chars().chain(value.chars()).all(is_allowed) {
        return Err("a tag has only letters, digits, spaces and + - = . _ : / @".to_owned());
    }
    if key.to_ascii_lowercase().starts_with("aws:") || key.eq_ignore_ascii_case("aws") {
        return Err("a tag's key must not begin with aws:, which is reserved".to_owned());
    }
    Ok(OnSuccess::Tag { key: key.into_owned(), value: value.into_owned() })
}

/// So that it is read again as it is.
fn encoded(text: &str, is_key: bool) -> String {
    let (inner, blanks) = text.split_at(text.trim_end().len());
    let inner = inner.replace('%', "%25");
    let inner = if is_key { inner.replace(':', "%3A") } else { inner };
    format!("{inner}{}", utf8_percent_encode(blanks, NON_ALPHANUMERIC))
}

/// As in the flag.
impl fmt::Display for OnSuccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag { key, value } => {
                write!(f, "tag={}:{}", encoded(key, true), encoded(value, false))
            }
            Self::Move(S3Location { bucket, prefix }) => write!(f, "move=s3://{bucket}/{prefix}"),
            Self::Delete => f.write_str("delete"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_parsed_and_printed() {
        for text in ["delete", "tag=state:done", "tag=a b:", "tag=k:v:w", "move=s3://done/in/2026"]
        {
            let action: OnSuccess = text.parse().unwrap();
            assert_eq!(action.to_string(), text);
            assert_eq!(action.removes(), !text.starts_with("tag"), "{text}");
        }
        assert_eq!(
            " move=s3://done/ ".parse::<OnSuccess>().unwrap().to_string(),
            "move=s3://done/"
        );
    }

    #[test]
    fn every_tag_can_be_written() {
        for (key, value) in [("a:b", "c:d"), (" k ", " v "), ("k", "  "), ("in state", "very done")]
        {
            let tag = OnSuccess::Tag { key: key.to_owned(), value: value.to_owned() };
            assert_eq!(tag.to_string().parse(), Ok(tag));
        }
        assert_eq!("tag=a%3Ab:c ".parse::<OnSuccess>().unwrap().to_string(), "tag=a%3Ab:c");
        for (key, value) in [("k", "100%"), ("k%20", ""), ("k", "v\n")] {
            let tag = OnSuccess::Tag { key: key.to_owned(), value: value.to_owned() };
            assert!(tag.to_string().parse::<OnSuccess>().is_err(), "{tag}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        let long_key = format!("tag={}:v", "k".repeat(129));
        let long_value = format!("tag=k:{}", "v".repeat(257));
        for text in [
            "",
            "keep",
            "delete=1",
            "tag",
            "tag=",
            "tag=k",
            "tag=:v",
            "tag=k:v\nx",
            "tag=k&a=b:v",
            "tag=k:%FF",
            "tag=k:100%",
            "tag=aws:v",
            "tag=AWS:k:v",
            &long_key,
            &long_value,
            "move",
            "move=done",
            "move=s3://",
            "move=s3://b/{key}",
            "move=s3://b/a\u{0}",
        ] {
            assert!(text.parse::<OnSuccess>().is_err(), "{text:?}");
        }
    }
}
