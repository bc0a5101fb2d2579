//! Values as they are written, on the command line and in the file of job types alike.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::{AddrParseError, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::job::s3_location::is_bucket_name;

/// Values with commas between them, as people write them: with blanks, and perhaps a comma at the
/// end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T: FromStr<Err: Display>> FromStr for List<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let list = text.trim();
        let list = list.strip_suffix(',').unwrap_or(list);
        let values = list.split(',').map(|value| {
            let value = value.trim();
            let value = Some(value)
                .filter(|value| !value.is_empty())
                .ok_or("a value between commas is empty")?;
            value.parse().map_err(|error| format!("{value}: {error}"))
        });
        values.collect::<Result<_, _>>().map(Self)
    }
}

/// The name of a bucket, without `s3://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketName(pub String);

impl FromStr for BucketName {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if is_bucket_name(name) {
            Ok(Self(name.to_owned()))
        } else {
            Err("this is not a valid bucket name")
        }
    }
}

/// The number of an AWS account.
pub fn account(text: &str) -> Result<String, &'static str> {
    let number = text.trim();
    let is_one = number.len() == 12 && number.bytes().all(|byte| byte.is_ascii_digit());
    if is_one { Ok(number.to_owned()) } else { Err("an AWS account is a number of 12 digits") }
}

/// The name of a profile of the shared AWS files.
pub fn profile(text: &str) -> Result<String, &'static str> {
    let name = text.trim();
    if name.is_empty() || name.contains(|c: char| c.is_control() || "[]".contains(c)) {
        return Err("write the name of a profile, as in [profile NAME] of ~/.aws/config");
    }
    Ok(name.to_owned())
}

/// A key of KMS: its ARN, its id, or its alias.
pub fn kms_key(text: &str) -> Result<String, &'static str> {
    let key = text.trim();
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b":/_-".contains(&byte);
    if (1..=2048).contains(&key.len()) && key.bytes().all(is_sound) {
        Ok(key.to_owned())
    } else {
        Err("write for example arn:aws:kms:eu-west-1:123456789012:key/0123abcd-…")
    }
}

/// The name of a message attribute (SQS API, `MessageAttributeValue`).
pub fn attribute(text: &str) -> Result<String, &'static str> {
    let name = text.trim();
    let is_sound = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let is_one = (1..=256).contains(&name.len()) && name.chars().all(is_sound);
    if is_one {
        Ok(name.to_owned())
    } else {
        Err("a message attribute's name is 1 to 256 letters, digits, _, - or .")
    }
}

/// `90s`, `2h30m`; a year at most, since no message lives longer than two weeks.
pub fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write for example 90s, 10m or 2h30m"))?;
    if time > LONGEST { Err("it is longer than a year".to_owned()) } else { Ok(time) }
}

const LONGEST: Duration = Duration::from_hours(366 * 24);

/// `500Mi`, `20Gi`, as in Kubernetes.
pub fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|error| format!("{error}; write for example 500Mi or 20Gi"))
}

/// `IP:PORT`, or `:PORT` on all addresses.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    let all = text.strip_prefix(':').and_then(|port| port.parse().ok());
    let wrong =
        |error: AddrParseError| format!("{error}; write for example :9464 or 127.0.0.1:9464");
    all.map_or_else(|| text.parse().map_err(wrong), |port| Ok((Ipv4Addr::UNSPECIFIED, port).into()))
}

/// In a file: what has its own text.
pub fn text<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(D::Error::custom)
}

pub fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    time(&String::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

/// A command.
pub fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<OsString>, D::Error> {
    let words: Vec<String> = Deserialize::deserialize(from)?;
    if words.is_empty() {
        return Err(D::Error::custom("the command is empty"));
    }
    Ok(words.into_iter().map(OsString::from).collect())
}

pub fn codes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<List<u8>>, D::Error> {
    Ok(vec![List(Deserialize::deserialize(from)?)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_their_units() {
        assert_eq!(time("2h30m"), Ok(Duration::from_mins(150)));
        assert_eq!(time("366d"), Ok(LONGEST));
        assert!(time("90").unwrap_err().contains("2h30m"));
        for text in ["367d", "9000y", "18446744073709551615s"] {
            assert_eq!(time(text), Err("it is longer than a year".to_owned()), "{text}");
        }
    }

    #[test]
    fn lists_are_written_as_people_write_them() {
        let codes = |text: &str| text.parse::<List<u8>>().map(|list| list.0);
        for text in ["65,66", "65, 66", " 65 ,66, ", "65,66,"] {
            assert_eq!(codes(text), Ok(vec![65, 66]), "{text}");
        }
        for text in ["", ",", "65,,66", "65;66", "256", "-1"] {
            assert!(codes(text).is_err(), "{text}");
        }
        let buckets: List<BucketName> = "one, two".parse().unwrap();
        assert_eq!(buckets.0, ["one", "two"].map(|name| BucketName(name.to_owned())));
        assert!(
            "s3://one".parse::<List<BucketName>>().unwrap_err().contains("not a valid bucket name")
        );
    }

    #[test]
    fn names_and_numbers_are_what_aws_takes() {
        assert_eq!(account("123456789012\n"), Ok("123456789012".to_owned()));
        assert_eq!(attribute(" order-id "), Ok("order-id".to_owned()));
        assert_eq!(profile(" r2 "), Ok("r2".to_owned()));
        let key = "arn:aws:kms:eu-west-1:123456789012:alias/results";
        assert_eq!(kms_key(key), Ok(key.to_owned()));
        assert!(kms_key("").is_err() && kms_key("a\nb").is_err() && kms_key("a b").is_err());
        for text in ["", " ", "[profile r2]", "a\nb"] {
            assert!(profile(text).is_err(), "{text}");
        }
        for text in ["", "abc", "12345678901", "1234567890123"] {
            assert!(account(text).is_err(), "{text}");
        }
        for text in ["", "a b", "a\nb", &"x".repeat(257)] {
            assert!(attribute(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_as_in_kubernetes() {
        for (text, bytes) in
            [("20Gi", 20 << 30), ("500Mi", 500 << 20), ("1500M", 1_500_000_000), ("123", 123)]
        {
            assert_eq!(size(text), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "much", "10 parsecs", "-1"] {
            assert!(size(text).unwrap_err().contains("20Gi"), "{text}");
        }
    }
}
