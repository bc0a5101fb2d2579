//! S3 locations, as in flags: `s3://BUCKET/PREFIX`. In place of the bucket, the ARN of an access point
//! may stand: `s3://arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/PREFIX`.

use std::fmt;
use std::str::FromStr;

/// A bucket and a prefix in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct S3Location {
    /// A bucket's name, or the ARN of an access point.
    pub bucket: String,
    /// Without a trailing slash; may be empty.
    pub prefix: String,
}

impl S3Location {
    /// The key of `name` at this location.
    pub fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }
}

impl FromStr for S3Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let rest = text.strip_prefix("s3://").ok_or("write for example s3://bucket/prefix")?;
        if rest.contains(char::is_control) {
            return Err("it contains a line break or another control character".to_owned());
        }
        if is_access_point(rest) {
            let (bucket, prefix) = split_access_point(rest)?;
            return Ok(Self { bucket: bucket.to_owned(), prefix: trimmed(prefix) });
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_bucket_name(bucket) {
            return Err(format!(
                "{bucket:?} is not a valid bucket name; write for example s3://bucket/prefix"
            ));
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: trimmed(prefix) })
    }
}

fn trimmed(prefix: &str) -> String {
    prefix.trim_end_matches('/').to_owned()
}

/// Whether a bucket is the ARN of an access point, which no bucket's name can be.
pub fn is_access_point(bucket: &str) -> bool {
    bucket.starts_with("arn:")
}

/// The ARN of an access point, and the prefix after it.
fn split_access_point(text: &str) -> Result<(&str, &str), String> {
    const FORM: &str = "s3://arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/PREFIX";
    let refuse = |why: &str| Err(format!("{text:?} {why}; write {FORM}"));
    let parts: Vec<_> = text.splitn(6, ':').collect();
    let &[_, partition, service, region, account, resource] = parts.as_slice() else {
        return refuse("is not a complete ARN");
    };
    let name = resource.strip_prefix("accesspoint").and_then(|rest| rest.strip_prefix(['/', ':']));
    let Some(name) = name.filter(|_| service == "s3") else {
        return refuse("is not the ARN of an access point of S3");
    };
    if region.is_empty() {
        return refuse("is a multi-region access point, which is not supported");
    }
    // All parts become parts of a host name.
    let is_label = |text: &str| {
        let is_inner =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&text.len())
            && text.bytes().all(is_inner)
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let (name, prefix) = name.split_once('/').unwrap_or((name, ""));
    if ![partition, region, name].into_iter().all(is_label) || !is_account {
        return refuse("is not a valid ARN");
    }
    let arn = text.strip_suffix(prefix).unwrap_or(text);
    Ok((arn.strip_suffix('/').unwrap_or(arn), prefix))
}

/// S3 User Guide, "General purpose bucket naming rules". Older buckets may have capitals and
/// underscores, and up to 255 characters; other stores allow names of fewer than 3.
pub fn is_bucket_name(name: &str) -> bool {
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=255).contains(&name.len())
        && name.bytes().all(is_sound)
        && !name.starts_with('.')
        && !name.contains("..")
}

/// A location with placeholders for values of the job: `s3://results/{job_type}/{stem}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocationTemplate {
    pub bucket: String,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Key,
    Name,
    Stem,
    MessageId,
    JobType,
}

impl Value {
    const ALL: [Self; 5] = [Self::Key, Self::Name, Self::Stem, Self::MessageId, Self::JobType];
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "{key}",
            Self::Name => "{name}",
            Self::Stem => "{stem}",
            Self::MessageId => "{message_id}",
            Self::JobType => "{job_type}",
        })
    }
}

/// The values for the placeholders of a template.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    /// The object's key, if any: `in/orders.csv` has the name `orders.csv` and the stem `orders`.
    pub key: Option<&'a str>,
    pub message_id: &'a str,
    pub job_type: &'a str,
}

impl LocationTemplate {
    /// Does it contain a placeholder that needs an object?
    pub fn needs_object(&self) -> bool {
        self.pieces
            .iter()
            .any(|piece| matches!(piece, Piece::Value(Value::Key | Value::Name | Value::Stem)))
    }

    /// The beginning of every key at this location that is known before a job exists. `key_begins`
    /// is the known beginning of the object's key.
    pub fn beginning(&self, key_begins: &str, job_type: &str) -> String {
        let mut beginning = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => beginning.push_str(text),
                Piece::Value(Value::JobType) => beginning.push_str(job_type),
                Piece::Value(Value::Key) => return beginning + key_begins,
                Piece::Value(Value::Name | Value::Stem | Value::MessageId) => return beginning,
            }
        }
        if beginning.is_empty() { beginning } else { beginning + "/" }
    }

    pub fn fill(&self, values: Values<'_>) -> S3Location {
        let key = values.key.unwrap_or_default();
        let (name, stem) = name_and_stem(key);
        let text = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Value(Value::Key) => key.to_owned(),
            Piece::Value(Value::Name) => name.to_owned(),
            Piece::Value(Value::Stem) => stem.to_owned(),
            Piece::Value(Value::MessageId) => values.message_id.to_owned(),
            Piece::Value(Value::JobType) => values.job_type.to_owned(),
        };
        let prefix: String = self.pieces.iter().map(text).collect();
        S3Location { bucket: self.bucket.clone(), prefix: prefix.trim_end_matches('/').to_owned() }
    }
}

/// The values of `{name}` and `{stem}`.
pub(super) fn name_and_stem(key: &str) -> (&str, &str) {
    let name = key.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    // A leading dot does not begin an extension.
    (name, name.rfind('.').filter(|dot| *dot > 0).map_or(name, |dot| &name[..dot]))
}

/// A location without placeholders: the same for each job.
impl From<S3Location> for LocationTemplate {
    fn from(S3Location { bucket, prefix }: S3Location) -> Self {
        Self { bucket, pieces: vec![Piece::Text(prefix)] }
    }
}

impl fmt::Display for LocationTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/", self.bucket)?;
        self.pieces.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Value(value) => value.fmt(f),
        })
    }
}

impl FromStr for LocationTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let S3Location { bucket, prefix } = text.parse()?;
        let known = || Value::ALL.map(|value| value.to_string()).join(", ");
        let mut pieces = Vec::new();
        let mut rest = prefix.as_str();
        while let Some(brace) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(brace);
            let end = from.find('}').filter(|end| *end > 0);
            let name = &from[..=end.ok_or_else(|| {
                format!("unmatched brace in {text}; the placeholders are {}", known())
            })?];
            let value = Value::ALL.into_iter().find(|value| value.to_string() == name);
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Value(value.ok_or_else(|| {
                format!("unknown placeholder {name}; the placeholders are {}", known())
            })?));
            rest = &from[name.len()..];
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self { bucket, pieces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_bucket_and_a_prefix() {
        let location = |bucket: &str, prefix: &str| S3Location {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        assert_eq!("s3://b/attempts/of/orders/".parse(), Ok(location("b", "attempts/of/orders")));
        assert_eq!("s3://b".parse(), Ok(location("b", "")));
        for text in
            ["b/attempts", "s3:///attempts", "https://b/attempts", "", "s3://b{key}/x", "s3://a b"]
        {
            assert!(
                text.parse::<S3Location>().unwrap_err().contains("s3://bucket/prefix"),
                "{text}"
            );
        }
    }

    #[test]
    fn an_access_point_stands_for_its_bucket() {
        for arn in [
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/orders",
            "arn:aws:s3:eu-west-1:123456789012:accesspoint:orders",
            "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/a-1",
        ] {
            for (after, prefix) in [("", ""), ("/", ""), ("/out", "out"), ("/a/{key}/", "a/{key}")]
            {
                let location: S3Location = format!("s3://{arn}{after}").parse().unwrap();
                assert_eq!((location.bucket.as_str(), location.prefix.as_str()), (arn, prefix));
            }
            let template: LocationTemplate = format!("s3://{arn}/out/{{stem}}").parse().unwrap();
            let values = Values { key: Some("in/a.csv"), message_id: "m", job_type: "t" };
            assert_eq!(template.fill(values).key("x"), "out/a/x");
            assert_eq!(template.to_string(), format!("s3://{arn}/out/{{stem}}"));
        }
        // The alias of an access point is like a bucket's name.
        let alias = "s3://orders-4ekqd5nyb7wfqjxmrhrn6gnsnb1bweuw1b-s3alias/out";
        assert_eq!(alias.parse::<S3Location>().unwrap().prefix, "out");
    }

    #[test]
    fn an_arn_of_anything_else_is_refused() {
        for (arn, complaint) in [
            ("arn:aws:s3:::bucket/prefix", "is not the ARN of an access point of S3"),
            ("arn:aws:s3::123456789012:accesspoint/orders.mrap", "is a multi-region access point"),
            (
                "arn:aws:s3-outposts:eu-west-1:123456789012:outpost/o/accesspoint/a",
                "is not the ARN",
            ),
            ("arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/a", "is not the ARN"),
            ("arn:aws:s3:eu-west-1", "is not a complete ARN"),
            ("arn:aws:s3:eu-west-1:1:accesspoint/a", "is not a valid ARN"),
            ("arn:aws:s3:eu-west-1:123456789012:accesspoint/", "is not a valid ARN"),
            ("arn:aws:s3:eu-west-1:123456789012:accesspoint/a.evil.example", "is not a valid ARN"),
            ("arn:aws:s3:evil.example:123456789012:accesspoint/a", "is not a valid ARN"),
            ("arn:aws:s3:eu-west-1:123456789012:accesspoint/{key}", "is not a valid ARN"),
        ] {
            let error = format!("s3://{arn}").parse::<S3Location>().unwrap_err();
            assert!(error.contains(complaint) && error.contains("accesspoint/NAME"), "{error}");
        }
        assert!(!is_bucket_name("arn:aws:s3:eu-west-1:123456789012:accesspoint/orders"));
    }

    #[test]
    fn a_key_is_below_the_prefix() {
        let key = |location: &str| location.parse::<S3Location>().unwrap().key("x/y");
        assert_eq!((key("s3://b/p/"), key("s3://b")), ("p/x/y".to_owned(), "x/y".to_owned()));
    }

    #[test]
    fn a_template_is_filled_for_each_job() {
        let filled = |template: &str, key: &str| {
            let values = Values { key: Some(key), message_id: "m-1", job_type: "orders" };
            template.parse::<LocationTemplate>().unwrap().fill(values).prefix
        };
        for (template, key, prefix) in [
            ("s3://b", "in/a.csv", ""),
            ("s3://b/out/", "in/a.csv", "out"),
            ("s3://b/out/{key}", "in/a.csv", "out/in/a.csv"),
            ("s3://b/{job_type}/{message_id}/", "in/a.csv", "orders/m-1"),
            ("s3://b/{name}-{stem}", "in/a.tar.gz", "a.tar.gz-a.tar"),
            ("s3://b/{stem}", "in/plain", "plain"),
            ("s3://b/{stem}", ".hidden", ".hidden"),
            ("s3://b/{name}", "folder/", "folder"),
            ("s3://b/x{name}", "/", "x"),
            ("s3://b/{key}", "a{name}b", "a{name}b"),
            ("s3://b/{stem}", "ü b/ö.é", "ö"),
        ] {
            assert_eq!(filled(template, key), prefix, "{template} {key}");
        }
    }

    #[test]
    fn a_template_has_a_known_beginning() {
        let begins = |template: &str| {
            template.parse::<LocationTemplate>().unwrap().beginning("in/", "orders")
        };
        for (template, beginning) in [
            ("s3://b", ""),
            ("s3://b/out/", "out/"),
            ("s3://b/out-{message_id}/x", "out-"),
            ("s3://b/{job_type}", "orders/"),
            ("s3://b/{job_type}/of/{stem}", "orders/of/"),
            ("s3://b/done/{key}", "done/in/"),
            ("s3://b/{name}", ""),
        ] {
            assert_eq!(begins(template), beginning, "{template}");
            let template = template.trim_end_matches('/');
            assert_eq!(
                template.parse::<LocationTemplate>().unwrap().to_string().trim_end_matches('/'),
                template
            );
        }
    }

    #[test]
    fn a_template_that_cannot_be_filled_is_refused() {
        for (template, complaint) in [
            (
                "s3://b/{keys}",
                "unknown placeholder {keys}; the placeholders are {key}, {name}, {stem}, {message_id}, {job_type}",
            ),
            ("s3://b/{}", "unknown placeholder {};"),
            ("s3://b/{key", "unmatched brace in s3://b/{key; the placeholders are {key}, "),
            ("s3://b/key}", "unmatched brace"),
            ("s3://b/{{key}}", "unknown placeholder {{key};"),
            ("s3://{key}/x", "\"{key}\" is not a valid bucket name"),
        ] {
            let error = template.parse::<LocationTemplate>().unwrap_err();
            assert!(error.contains(complaint), "{template}: {error}");
        }
    }
}
