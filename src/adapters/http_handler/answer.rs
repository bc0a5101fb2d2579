//! What the answer of the user's server means, as the exit of a command.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;

use crate::job::lease::CEILING;
use crate::job::outcome::Exit;

/// The answer of the user's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<String>,
    /// The beginning of its body; empty if that is a page for a browser.
    pub(super) text: String,
    /// `false` if its body ends with the connection, which also ends when the server is killed.
    pub(super) has_proven_end: bool,
}

/// The same as an exit and a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) exit: Exit,
    /// `None` for a success.
    pub(super) reason: Option<String>,
    pub(super) retry_after: Option<Duration>,
}

/// Status codes of permanent failures: one, or a range such as `400-499`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

impl FromStr for StatusRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.trim().parse().ok();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err("write a status code such as 422, or a range such as 400-499");
        };
        if first > last || first < 300 || last > 599 {
            return Err("a failure has a status code from 300 to 599");
        }
        if first == last && TEMPORARY.contains(&first) {
            return Err("429 and 503 mean that a later attempt may succeed");
        }
        Ok(Self { first, last })
    }
}

/// Too Many Requests, Service Unavailable: also in a range of permanent failures.
const TEMPORARY: [u16; 2] = [429, 503];

impl Answer {
    /// `now` is for a date in `Retry-After`.
    pub(super) fn judge(&self, permanent: &[StatusRange], now: SystemTime) -> Judged {
        let status = self.status.as_u16();
        let is_permanent = permanent.iter().any(|it| (it.first..=it.last).contains(&status));
        let code = match status {
            200..300 => 0,
            _ if TEMPORARY.contains(&status) => 75,
            _ if is_permanent => 65,
            _ => 1,
        };
        let retry_after = self.retry_after.as_deref().filter(|_| code == 75);
        Judged {
            exit: Exit::Code(code),
            reason: (code != 0).then(|| self.reason()),
            retry_after: retry_after.and_then(|text| delay(text, now)),
        }
    }

    fn reason(&self) -> String {
        let text: Vec<_> = self.text.split_whitespace().collect();
        let text = text.join(" ").replace(char::is_control, "");
        let text: String = text.chars().take(LONGEST_REASON).collect();
        let separator = if text.is_empty() { "" } else { ": " };
        format!("the server answered {}{separator}{text}", self.status)
    }
}

/// In characters: it goes into logs and into a termination message of 4096 bytes.
const LONGEST_REASON: usize = 400;

/// Seconds, or a date (RFC 9110, section 10.2.3); at most SQS's 12 hours.
fn delay(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let seconds = || {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than a number has are more than 12 hours, too.
        is_number.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
    };
    let until = |at: SystemTime| at.duration_since(now).unwrap_or_default();
    let date = || httpdate::parse_http_date(text).ok().map(until);
    seconds().or_else(date).map(|delay| delay.min(CEILING))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    /// Sun, 06 Nov 1994 08:49:37 GMT
    const NOW: Duration = Duration::from_secs(784_111_777);

    fn judged(status: u16, retry_after: Option<&str>, text: &str, permanent: &str) -> Judged {
        let permanent: Vec<StatusRange> =
            permanent.split_terminator(',').map(|range| range.parse().unwrap()).collect();
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: retry_after.map(str::to_owned),
            text: text.to_owned(),
            has_proven_end: true,
        };
        answer.judge(&permanent, SystemTime::UNIX_EPOCH + NOW)
    }

    #[test]
    fn only_2xx_is_a_success() {
        for (status, permanent, code) in [
            (200, "", 0),
            (204, "300-599", 0),
            (299, "", 0),
            (101, "", 1),
            (300, "", 1),
            (302, "", 1),
            (302, "300-399", 65),
            (400, "", 1),
            (400, "400", 65),
            (422, "400,422", 65),
            (418, "400,422", 1),
            (404, "400-499", 65),
            (429, "", 75),
            (429, "400-499", 75),
            (503, "500-599", 75),
            (500, "", 1),
            (599, "500-599", 65),
            (999, "", 1),
        ] {
            let exit = judged(status, None, "", permanent).exit;
            assert_eq!(exit, Exit::Code(code), "{status} with {permanent:?}");
        }
    }

    #[test]
    fn the_delay_is_seconds_or_a_date_and_has_a_limit() {
        for (text, delay) in [
            ("0", Some(Duration::ZERO)),
            (" 90 ", Some(90 * S)),
            ("43201", Some(CEILING)),
            ("99999999999999999999999999", Some(CEILING)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60 * S)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60 * S)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(Duration::ZERO)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(CEILING)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(judged(503, Some(text), "", "").retry_after, delay, "{text:?}");
        }
        assert_eq!(judged(500, Some("90"), "", "").retry_after, None);
    }

    #[test]
    fn the_reason_is_one_short_line() {
        let reason = |status, text| judged(status, None, text, "").reason;
        assert_eq!(reason(200, "done"), None);
        assert_eq!(reason(500, "").unwrap(), "the server answered 500 Internal Server Error");
        assert_eq!(
            reason(400, "  no\r\n\tsuch \u{1b}[2Jcolumn\n").unwrap(),
            "the server answered 400 Bad Request: no such [2Jcolumn"
        );
        assert_eq!(reason(500, &"ü ".repeat(9_000)).unwrap().matches('ü').count(), 200);
    }

    #[test]
    fn a_range_has_only_codes_of_failures() {
        for good in ["400", "400-499", " 400 - 499 ", "300-599"] {
            assert!(good.parse::<StatusRange>().is_ok(), "{good}");
        }
        for bad in ["", "4xx", "200", "200-299", "499-400", "600", "400-", "429", "503", "-1"] {
            assert!(bad.parse::<StatusRange>().is_err(), "{bad}");
        }
    }
}
