//! Values as they are written, on the command line and in the file of job types alike.

use std::time::Duration;

use bytesize::ByteSize;
use clap::ValueEnum;
use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VisibilityArg {
    /// A short lease, extended at each third of it
    Heartbeat,
    /// One extension to --max-duration and the stop, right after the receive
    Fixed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InputArg {
    /// As a file, whose path is in JOB_INPUT
    File,
    /// As its standard input, too
    Stdin,
    /// Not at all: it is not fetched
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnStopArg {
    Release,
    Expire,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryArg {
    Backoff,
    Expire,
}

/// `90s`, `2h30m`; a year at most, since no message lives longer than two weeks.
pub fn time(text: &str) -> Result<Duration, String> {
    let time =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 90s, 10m or 2h30m"))?;
    if time > LONGEST { Err("it is over a year".to_owned()) } else { Ok(time) }
}

const LONGEST: Duration = Duration::from_hours(366 * 24);

/// `500Mi`, `20Gi`, as in Kubernetes.
pub fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|error| format!("{error}; write for example 500Mi or 20Gi"))
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
            assert_eq!(time(text), Err("it is over a year".to_owned()), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_as_in_kubernetes() {
        for (text, bytes) in [("20Gi", 20 << 30), ("500Mi", 500 << 20), ("1500M", 1_500_000_000), ("123", 123)] {
            assert_eq!(size(text), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "much", "10 parsecs", "-1"] {
            assert!(size(text).unwrap_err().contains("20Gi"), "{text}");
        }
    }
}
