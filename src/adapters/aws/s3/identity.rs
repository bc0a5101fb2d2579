//! Checks that a store's answer is about the object in the event.

use super::errors::display_uri;
use crate::job::notification::Object;
use crate::ports::FetchError;

/// The object's identity in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// The answer has S3's request id. Other stores may send none, and a proxy's own answer has
    /// none.
    pub(super) is_of_s3: bool,
    pub(super) version_id: Option<String>,
    /// Without quotes.
    pub(super) etag: Option<String>,
    /// In bytes.
    pub(super) size: Option<u64>,
}

impl Identity {
    /// Compares it with the event: the version, else the eTag, and the size.
    pub(super) fn check(&self, object: &Object) -> Result<(), FetchError> {
        let differs = |what: &str, is: &str, expected: &str| {
            let why = format!(
                "{}: {what} is {is} in the answer, but {expected} in the event",
                display_uri(object)
            );
            if self.is_of_s3 && object.version_id.is_none() && object.etag.is_some() {
                FetchError::Overwritten(why)
            } else {
                FetchError::Retryable(format!(
                    "{why} (does a proxy or a portal answer instead of the store?)"
                ))
            }
        };
        let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
        let is_version = match (&object.version_id, &self.version_id) {
            (Some(expected), Some(is)) if is != expected => {
                return Err(differs("the version", is, expected));
            }
            (Some(_), Some(_)) => true,
            (Some(_), None) | (None, _) => false,
        };
        match &object.etag {
            Some(expected) if !is_version && self.etag.as_ref() != Some(expected) => {
                return Err(differs("the eTag", &or_none(&self.etag), expected));
            }
            Some(_) | None => {}
        }
        match (self.expected_size(object), self.size) {
            // With the right eTag the object was not overwritten: the answer was truncated.
            (Some(expected), Some(is)) if is != expected => Err(FetchError::Retryable(format!(
                "{}: the size is {is} in the answer, but {expected} in the event (does a proxy or a portal answer instead of the store, or truncate the answer?)",
                display_uri(object)
            ))),
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// The size that the answer must have, if the event's size is reliable. Some stores send a size
    /// of 0, or the size on their disks, and an event without version and eTag means the current
    /// object: such a size is compared only with an answer without a request id.
    pub(super) fn expected_size(&self, object: &Object) -> Option<u64> {
        let is_pinned = object.version_id.is_some() || object.etag.is_some();
        object.size.filter(|size| *size > 0 && (object.is_from_aws && is_pinned || !self.is_of_s3))
    }
}

/// An eTag without its quotes and without the prefix of a weak eTag, which a proxy adds if it
/// recompresses an answer.
pub(super) fn unquoted(etag: &str) -> Option<String> {
    let etag = etag.trim();
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    (!etag.is_empty()).then(|| etag.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version_id: Option<&str>, etag: Option<&str>, size: Option<u64>) -> Object {
        let (version_id, etag) = (version_id.map(str::to_owned), etag.map(str::to_owned));
        Object { version_id, etag, size, ..Object::named("b", "k") }
    }

    fn checked(
        object: &Object,
        is_of_s3: bool,
        version_id: Option<&str>,
        etag: &str,
        size: u64,
    ) -> &'static str {
        let (version_id, etag) = (version_id.map(str::to_owned), unquoted(etag));
        match (Identity { is_of_s3, version_id, etag, size: Some(size) }).check(object) {
            Ok(()) => "is it",
            Err(FetchError::Overwritten(_)) => "overwritten",
            Err(FetchError::Retryable(_)) => "retryable",
            Err(error @ (FetchError::Missing(_) | FetchError::Permanent(_))) => panic!("{error}"),
        }
    }

    #[test]
    fn an_answer_must_match_the_object_in_the_event() {
        let (pinned, version, size) = (
            object(None, Some("e"), Some(5)),
            object(Some("v"), Some("e"), Some(5)),
            object(None, None, Some(5)),
        );
        for is_of_s3 in [true, false] {
            assert_eq!(checked(&pinned, is_of_s3, None, "\"e\"", 5), "is it");
            assert_eq!(checked(&pinned, is_of_s3, None, "W/\"e\"", 5), "is it");
            assert_eq!(checked(&version, is_of_s3, Some("v"), "\"e\"", 5), "is it");
            assert_eq!(checked(&version, is_of_s3, None, "\"e\"", 5), "is it");
            assert_eq!(checked(&version, is_of_s3, Some("w"), "\"e\"", 5), "retryable");
            assert_eq!(checked(&version, is_of_s3, None, "\"f\"", 5), "retryable");
            assert_eq!(checked(&size, is_of_s3, None, "\"f\"", 5), "is it");
        }
        assert_eq!(checked(&pinned, true, None, "\"f\"", 5), "overwritten");
        assert_eq!(checked(&pinned, false, None, "\"f\"", 5), "retryable");
    }

    #[test]
    fn the_size_in_an_aws_event_is_compared_if_it_has_a_version_or_an_etag() {
        for (size, is) in
            [(Some(5), "retryable"), (Some(7), "is it"), (Some(0), "is it"), (None, "is it")]
        {
            for (version, etag) in [(None, Some("e")), (Some("v"), Some("e")), (Some("v"), None)] {
                let object = Object { is_from_aws: true, ..object(version, etag, size) };
                for is_of_s3 in [true, false] {
                    assert_eq!(checked(&object, is_of_s3, version, "e", 7), is, "{object:?}");
                }
            }
        }
        let current = Object { is_from_aws: true, ..object(None, None, Some(5)) };
        assert_eq!(checked(&current, true, None, "e", 7), "is it");
        assert_eq!(checked(&current, false, None, "e", 7), "retryable");
    }

    #[test]
    fn the_size_in_another_stores_event_is_compared_if_the_answer_has_no_request_id() {
        for (size, of_s3, of_a_proxy) in
            [(Some(5), "is it", "retryable"), (Some(0), "is it", "is it"), (None, "is it", "is it")]
        {
            for etag in [Some("e"), None] {
                let object = object(None, etag, size);
                assert_eq!(checked(&object, true, None, "e", 7), of_s3, "{object:?}");
                assert_eq!(checked(&object, false, None, "e", 7), of_a_proxy, "{object:?}");
            }
        }
    }
}
