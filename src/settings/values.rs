//! Parsers of values, for the command line and for the file of job types.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::{AddrParseError, Ipv4Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::adapters::http_handler::HttpAddress;
use crate::job::arguments::Argument;
use crate::job::mount::Mount;
use crate::job::s3_location::is_bucket_name;

/// Values separated by commas. Blanks, and a comma at the end, are accepted.
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

/// An absolute path that is not the root, without `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbsolutePath(pub PathBuf);

impl FromStr for AbsolutePath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = Path::new(text.trim());
        let mut parts = path.components();
        let is_absolute = parts.next() == Some(Component::RootDir);
        let is_sound = |part: Component<'_>| matches!(part, Component::Normal(_));
        if !is_absolute || parts.clone().next().is_none() || !parts.all(is_sound) {
            return Err("it must be an absolute path without .., such as /opt/ml/input/data.csv");
        }
        if text.contains(char::is_control) {
            return Err("it contains a line break or another control character");
        }
        // Without slashes at the end.
        Ok(Self(path.components().collect()))
    }
}

/// A bucket, or a part of it, and the directory where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketMount(pub Mount);

impl FromStr for BucketMount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A prefix may contain an equals sign: `s3://tables/day=3=/tables`.
        let at = text.rfind("=/").ok_or("write for example s3://bucket/prefix=/mnt/bucket")?;
        let directory: AbsolutePath = text[at + 1..].parse()?;
        Ok(Self(Mount { location: text[..at].parse()?, directory: directory.0 }))
    }
}

/// What works on the messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handler {
    /// A new process of the command for each object.
    Command,
    /// The command is a Lambda function, and stays for many messages.
    Lambda,
    /// A server in this pod gets a request for each object.
    Http(HttpAddress),
    /// A function of an embedding program takes several messages at once. Not a value of the flag.
    Batches,
}

impl FromStr for Handler {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "command" => Ok(Self::Command),
            "lambda" => Ok(Self::Lambda),
            url if url.contains("://") => url.parse().map(Self::Http),
            _ => Err("write command, lambda, or a URL such as http://127.0.0.1:8080/work"),
        }
    }
}

impl Handler {
    /// Does one process work on many messages?
    pub fn is_warm(&self) -> bool {
        match self {
            Self::Command | Self::Batches => false,
            Self::Lambda | Self::Http(_) => true,
        }
    }

    pub fn is_http(&self) -> bool {
        matches!(self, Self::Http(_))
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

/// `95%`, from 1 to 99.
pub fn percent(text: &str) -> Result<u8, &'static str> {
    let number = text.trim().strip_suffix('%').unwrap_or(text.trim());
    let percent = number.parse().ok().filter(|percent| (1..=99).contains(percent));
    percent.ok_or("write a share from 1% to 99%")
}

/// The value of the AWS CLI's `--request-payer`, or one of a flag's variable.
pub fn is_requester(text: &str) -> Result<bool, &'static str> {
    match text.trim().to_ascii_lowercase().as_str() {
        "requester" | "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("write requester, or leave the value out: only the requester can pay"),
    }
}

/// `IP:PORT`, or `:PORT` on all addresses.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    let all = text.strip_prefix(':').and_then(|port| port.parse().ok());
    let wrong =
        |error: AddrParseError| format!("{error}; write for example :9464 or 127.0.0.1:9464");
    all.map_or_else(|| text.parse().map_err(wrong), |port| Ok((Ipv4Addr::UNSPECIFIED, port).into()))
}

/// Deserializes any value that is parsed from text.
pub fn text<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(D::Error::custom)
}

pub fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    time(&String::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

/// A command, as a list of words.
pub fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<OsString>, D::Error> {
    let words: Vec<String> = Deserialize::deserialize(from)?;
    let words: Vec<_> = words.into_iter().map(OsString::from).collect();
    let (program, arguments) =
        words.split_first().ok_or_else(|| D::Error::custom("the command is empty"))?;
    // Again later; here for its place in the file.
    Argument::parse_all(program, arguments).map_err(D::Error::custom)?;
    Ok(words)
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
    fn lists_may_have_blanks_and_a_trailing_comma() {
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
    fn a_handler_is_a_word() {
        assert_eq!("command".parse(), Ok(Handler::Command));
        assert_eq!(" lambda\n".parse(), Ok(Handler::Lambda));
        assert!("http://127.0.0.1/".parse::<Handler>().is_ok_and(|handler| handler.is_http()));
        for text in ["", "Lambda", "http", "http://192.168.0.1/"] {
            assert!(text.parse::<Handler>().is_err(), "{text}");
        }
    }

    #[test]
    fn fixed_paths_are_absolute() {
        let path = |text: &str| text.parse::<AbsolutePath>().map(|path| path.0);
        assert_eq!(path("/opt/ml//input/./x/"), Ok("/opt/ml/input/x".into()));
        for text in ["", "/", "//", "input", "./input", "/a/../b", "/a\nb"] {
            assert!(path(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mounts_are_a_location_and_a_directory() {
        let mounts = |text: &str| {
            let list: Result<List<BucketMount>, _> = text.parse();
            list.map(|list| list.0.iter().map(|mount| mount.0.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(
            mounts("s3://in=/in/, s3://in/day=3/x=/mnt/x"),
            Ok(vec!["s3://in=/in".to_owned(), "s3://in/day=3/x=/mnt/x".to_owned()])
        );
        for text in ["s3://in", "in=/in", "s3://in=in", "s3://in=/", "s3://in=/a/../b", "=/in"] {
            assert!(mounts(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_the_requester_can_be_the_payer() {
        for text in ["requester", "Requester\n", "true", "1"] {
            assert_eq!(is_requester(text), Ok(true), "{text}");
        }
        assert_eq!(is_requester("false"), Ok(false));
        for text in ["", "owner", "requester pays"] {
            assert!(is_requester(text).is_err(), "{text}");
        }
    }

    #[test]
    fn accounts_and_attributes_follow_the_rules_of_aws() {
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
    fn sizes_use_the_units_of_kubernetes() {
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
