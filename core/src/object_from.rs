//! The objects of a message in the sender's own form (`--object-from`).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use super::notification::{
    NotANotification, Record, Sent, bucket, for_header, invalid, named, size_of, text_of, unquoted,
};
use super::s3_location::is_bucket_name;

/// Where a message names its objects: `bucket=/detail/bucket,key=/detail/key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectFrom {
    /// An array with one object per entry; the other pointers then begin at the entry.
    list: Option<Pointer>,
    name: Name,
    version: Option<Pointer>,
    etag: Option<Pointer>,
    size: Option<Pointer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Parts {
        bucket: Bucket,
        key: Pointer,
    },
    /// `s3://bucket/key`
    Uri(Pointer),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Bucket {
    Always(String),
    At(Pointer),
}

/// A JSON Pointer (RFC 6901): `/detail/key`, or empty for the whole value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pointer(String);

/// A body of 1 MiB may have hundreds of thousands of entries, which would not fit a small pod.
const MOST: usize = 10_000;

impl ObjectFrom {
    /// The objects that the message names, at least one. Their keys are not decoded: only S3
    /// encodes keys.
    pub fn records(&self, message: &Value) -> Result<Vec<Record>, NotANotification> {
        let Some(list) = &self.list else { return Ok(vec![self.record(message)?]) };
        let entries = list.of(message).and_then(Value::as_array);
        let entries = entries.ok_or_else(|| invalid(format!("{list} is not an array")))?;
        match entries.len() {
            0 => return Err(invalid(format!("{list} is empty"))),
            1..=MOST => {}
            more => {
                return Err(invalid(format!("{list} has {more} entries; at most {MOST} are read")));
            }
        }
        let of = |(i, entry)| {
            self.record(entry).map_err(|why| invalid(format!("in entry {i} of {list}: {why}")))
        };
        entries.iter().enumerate().map(of).collect()
    }

    fn record(&self, json: &Value) -> Result<Record, NotANotification> {
        let (bucket, key) = match &self.name {
            Name::Parts { bucket: Bucket::Always(bucket), key } => {
                (bucket.clone(), key.required(json)?.into_owned())
            }
            Name::Parts { bucket: Bucket::At(at), key } => {
                (bucket(at.required(json)?)?, key.required(json)?.into_owned())
            }
            Name::Uri(uri) => {
                let text = uri.required(json)?;
                let parts = text.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
                let (name, key) =
                    parts.ok_or_else(|| invalid(format!("{uri} is not s3://bucket/key")))?;
                (bucket(Cow::Borrowed(name))?, key.to_owned())
            }
        };
        let header = |pointer: &Option<Pointer>| match pointer {
            Some(at) => for_header(text_of(at.of(json), &at.to_string())?, &at.to_string()),
            None => Ok(None),
        };
        named(Sent {
            bucket,
            key,
            version_id: header(&self.version)?,
            etag: header(&self.etag)?.and_then(|etag| unquoted(&etag)),
            size: self.size.as_ref().and_then(|at| size_of(at.of(json)?)),
        })
    }
}

impl Pointer {
    fn of<'a>(&self, json: &'a Value) -> Option<&'a Value> {
        json.pointer(&self.0)
    }

    fn required<'a>(&self, json: &'a Value) -> Result<Cow<'a, str>, NotANotification> {
        let text = text_of(self.of(json), &self.to_string())?;
        text.ok_or_else(|| invalid(format!("{self} is missing")))
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "the whole value" } else { &self.0 })
    }
}

impl FromStr for Pointer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_escaped = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        if !text.is_empty() && !text.starts_with('/') || !is_escaped {
            return Err(format!(
                "{text:?} is not a JSON Pointer; write for example /detail/key (~1 for a slash in a name, ~0 for a tilde)"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// `field=pointer`, separated by commas.
impl FromStr for ObjectFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FIELDS: [&str; 7] = ["bucket", "key", "uri", "version", "etag", "size", "list"];
        let mut values = [const { None::<&str> }; FIELDS.len()];
        for part in text.split(',').map(str::trim) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let number =
                FIELDS.iter().position(|field| *field == name.trim()).ok_or_else(|| {
                    format!("unknown field {name:?}; the fields are {}", FIELDS.join(", "))
                })?;
            if !part.contains('=') || values[number].replace(value.trim()).is_some() {
                return Err(format!("{name} must be set once; {EXAMPLE}"));
            }
        }
        let [of_bucket, key, uri, version, etag, size, list] = values;
        let pointer = |text: Option<&str>| text.map(str::parse::<Pointer>).transpose();
        let name = match (of_bucket, key, uri) {
            (Some(of_bucket), Some(key), None) => {
                let bucket = match of_bucket {
                    constant if is_bucket_name(constant) => Bucket::Always(constant.to_owned()),
                    at if at.starts_with('/') => Bucket::At(at.parse()?),
                    other => {
                        return Err(format!(
                            "{other:?} is neither a bucket name nor a JSON Pointer, such as /detail/bucket"
                        ));
                    }
                };
                Name::Parts { bucket, key: key.parse()? }
            }
            (None, None, Some(uri)) => Name::Uri(uri.parse()?),
            _ => return Err(format!("set bucket and key, or uri; {EXAMPLE}")),
        };
        let (version, etag, size) = (pointer(version)?, pointer(etag)?, pointer(size)?);
        Ok(Self { list: pointer(list)?, name, version, etag, size })
    }
}

const EXAMPLE: &str = "write for example bucket=/detail/bucket,key=/detail/key";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::notification::Object;

    fn objects(from: &str, message: &Value) -> Result<Vec<Object>, String> {
        let records = from.parse::<ObjectFrom>().unwrap().records(message);
        let records = records.map_err(|why| why.to_string())?;
        Ok(records.into_iter().map(|record| record.object).collect())
    }

    fn names(from: &str, message: &Value) -> Result<Vec<(String, String)>, String> {
        let objects = objects(from, message)?;
        Ok(objects.into_iter().map(|object| (object.bucket, object.key)).collect())
    }

    fn name(bucket: &str, key: &str) -> (String, String) {
        (bucket.to_owned(), key.to_owned())
    }

    #[test]
    fn objects_are_found_by_pointers() {
        let message = json!({
            "detail": { "bucket": "b", "key": "a+b%20c", "a/b": { "~": 7 } },
            "uri": "s3://b/x/ü y",
            "keys": ["k", "l"],
            "files": [{ "at": "s3://b/k" }, { "at": "s3://c/l" }],
        });
        for (from, expected) in [
            ("bucket=/detail/bucket,key=/detail/key", vec![name("b", "a+b%20c")]),
            ("key=/detail/key, bucket=other", vec![name("other", "a+b%20c")]),
            ("bucket=b,key=/detail/a~1b/~0", vec![name("b", "7")]),
            ("bucket=b,key=/keys/1", vec![name("b", "l")]),
            ("uri=/uri", vec![name("b", "x/ü y")]),
            ("list=/keys,bucket=b,key=", vec![name("b", "k"), name("b", "l")]),
            ("list=/files,uri=/at", vec![name("b", "k"), name("c", "l")]),
        ] {
            assert_eq!(names(from, &message), Ok(expected), "{from}");
        }
    }

    #[test]
    fn versions_and_sizes_are_as_in_an_event() {
        let from = "bucket=b,key=/k,version=/v,etag=/e,size=/n";
        let object = |message: Value| objects(from, &message).unwrap().remove(0);
        let full = object(json!({"k": "k", "v": "3", "e": "\"abc\"", "n": "48"}));
        assert_eq!(full.version_id.as_deref(), Some("3"));
        assert_eq!((full.etag.as_deref(), full.size), (Some("abc"), Some(48)));
        let bare = object(json!({"k": "k", "v": null, "e": "", "n": -1}));
        assert_eq!((bare.version_id, bare.etag, bare.size), (None, None, None));
        let why = objects(from, &json!({"k": "k", "v": "a\nb"})).unwrap_err();
        assert!(why.starts_with("/v is longer"), "{why}");
    }

    #[test]
    fn a_message_without_the_object_is_refused_by_its_pointer() {
        let message =
            json!({ "secret": "hunter2", "empty": "", "none": [], "some": ["s3://b/k", 1.5] });
        for (from, complaint) in [
            ("bucket=b,key=/k", "/k is missing"),
            ("bucket=/b,key=/secret", "/b is missing"),
            ("bucket=b,key=/empty", "/empty is missing"),
            ("bucket=b,key=/none", "/none is not a string"),
            ("bucket=b,key=", "the whole value is not a string"),
            ("uri=/secret", "/secret is not s3://bucket/key"),
            ("list=/secret,uri=", "/secret is not an array"),
            ("list=/none,uri=", "/none is empty"),
            ("list=/some,uri=", "in entry 1 of /some: the whole value is not a string"),
        ] {
            let why = names(from, &message).unwrap_err();
            assert!(why.contains(complaint) && !why.contains("hunter2"), "{from}: {why}");
        }
        for uri in ["s3://b/", "s3://b", "s3:///k", "s3://a b/k", "https://b/k", "s3://arn:aws/k"] {
            assert!(names("uri=/u", &json!({ "u": uri })).is_err(), "{uri}");
        }
        let many = |count| json!({ "l": vec!["s3://b/k"; count] });
        assert_eq!(names("list=/l,uri=", &many(MOST)).unwrap().len(), MOST);
        let why = names("list=/l,uri=", &many(MOST + 1)).unwrap_err();
        assert_eq!(why, "/l has 10001 entries; at most 10000 are read");
        let long = "k".repeat(1025);
        assert!(names("bucket=b,key=/k", &json!({ "k": long })).is_err());
    }

    #[test]
    fn a_value_that_cannot_find_an_object_is_refused() {
        for (text, complaint) in [
            ("", "unknown field \"\""),
            ("key=/k", "set bucket and key, or uri"),
            ("bucket=/b", "set bucket and key, or uri"),
            ("bucket=/b,key=/k,uri=/u", "set bucket and key, or uri"),
            ("bucket=/b,key=/k,key=/l", "key must be set once"),
            ("bucket=/b,key", "key must be set once"),
            ("bucket=/b,key=k", "\"k\" is not a JSON Pointer"),
            ("bucket=/b,key=/~2", "\"/~2\" is not a JSON Pointer"),
            ("bucket=,key=/k", "\"\" is neither a bucket name"),
            ("bucket=a b,key=/k", "\"a b\" is neither a bucket name"),
            ("buckets=/b,key=/k", "unknown field \"buckets\"; the fields are bucket, key, uri"),
        ] {
            let why = text.parse::<ObjectFrom>().unwrap_err();
            assert!(why.contains(complaint), "{text}: {why}");
        }
    }
}
