//! `JOB_RESULT_FILE`: the command's own report, as a sequence of JSON objects.
//!
//! Programs in any language write it, some without a JSON library. An object counts as soon as it
//! is closed, on one line or many, with or without a newline after it. The last valid value of each
//! field counts; an invalid value does not affect other fields, and [`ResultFile::complaints`]
//! names it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::job::outcome::{CommandMetrics, CommandReport};
use crate::job::report::Progress;

/// The content of the file.
#[derive(Debug, Default, PartialEq)]
pub struct ResultFile {
    pub report: CommandReport,
    pub progress: Option<Progress>,
    pub metrics: CommandMetrics,
    /// Invalid parts, each kind once. In a file that is still being written, an incomplete end is
    /// one.
    pub complaints: Vec<String>,
}

/// In characters: a reason goes into logs and a termination message of 4096 bytes.
const MAX_TEXT: usize = 500;

/// How much of an invalid metric's name is quoted, in characters.
const MAX_NAME: usize = 60;

/// In bytes: thousands of lines.
const MAX_TAIL: u64 = 256 * 1024;

/// How many invalid objects may span several lines. After that, each is read to the end of its
/// line.
const MAX_MULTILINE_ERRORS: usize = 50;

/// The most complaints.
const MAX_COMPLAINTS: usize = 5;

impl ResultFile {
    /// Reads only the file's end. A missing file, or one that is not a regular file, counts as
    /// empty.
    pub fn read(path: &Path) -> Self {
        let tail = tail(path).unwrap_or_default();
        let (mut file, objects) = Self::parse(&tail.text);
        if tail.is_cut && objects == 0 {
            file.complain(format!(
                "its last {} KiB contain no complete JSON object",
                MAX_TAIL / 1024
            ));
        }
        file
    }

    /// The same of reports in memory.
    pub fn of(reports: &str) -> Self {
        Self::parse(reports).0
    }

    /// Also returns the number of objects.
    fn parse(text: &str) -> (Self, usize) {
        let (mut file, mut count) = (Self::default(), 0);
        let text = quote_non_numbers(text);
        let text = replace_lone_surrogates(&text);
        let (mut rest, mut multiline_errors) = (&*text, 0);
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == BYTE_ORDER_MARK);
            if rest.is_empty() {
                return (file, count);
            }
            // Objects that are opened on each line and never closed must not be read to the end
            // each time.
            let object = if multiline_errors < MAX_MULTILINE_ERRORS {
                rest
            } else {
                rest.lines().next().unwrap_or_default()
            };
            let mut objects = serde_json::Deserializer::from_str(object)
                .into_iter::<BTreeMap<String, Box<RawValue>>>();
            match objects.next() {
                Some(Ok(fields)) => {
                    rest = &rest[objects.byte_offset()..];
                    count += 1;
                    file.add(&fields);
                }
                Some(Err(error)) => {
                    multiline_errors += usize::from(error.line() > 1);
                    file.complain("not a JSON object".to_owned());
                    rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
                }
                None => return (file, count),
            }
        }
    }

    fn add(&mut self, fields: &BTreeMap<String, Box<RawValue>>) {
        if let Some(delay) = self.field(fields, "retry_after", delay) {
            self.report.retry_after = Some(delay);
        }
        if let Some(reason) = self.field(fields, "reason", text) {
            self.report.reason = Some(reason);
        }
        if let Some(share) = self.field(fields, "progress", share) {
            self.progress.get_or_insert_default().share = Some(share);
        }
        if let Some(text) = self.field(fields, "text", text) {
            self.progress.get_or_insert_default().text = Some(text);
        }
        for (name, value) in self.field(fields, "metrics", numbers).into_iter().flatten() {
            if let Err(why) = self.metrics.set(&name, value) {
                self.complain_about_metric(&name, why);
            }
        }
    }

    /// Once for all metrics: their names may be random.
    fn complain_about_metric(&mut self, name: &str, why: &str) {
        const METRIC: &str = "metric ";
        if !self.complaints.iter().any(|it| it.starts_with(METRIC)) {
            let name: String = name.chars().take(MAX_NAME).collect();
            self.complain(format!("{METRIC}{name:?}: {why}"));
        }
    }

    /// `None` if the field is missing, null or invalid. The error of `read` is the expected type.
    fn field<T>(
        &mut self,
        fields: &BTreeMap<String, Box<RawValue>>,
        name: &str,
        read: fn(&Value) -> Result<T, &'static str>,
    ) -> Option<T> {
        let raw = fields.get(name)?;
        // A raw value that cannot be parsed is too large a number or nested too deeply. It becomes
        // null, which `read` refuses.
        let value = serde_json::from_str(raw.get()).unwrap_or_default();
        let wanted = match read(&value) {
            _ if raw.get() == "null" => return None,
            Ok(value) => return Some(value),
            Err(wanted) => wanted,
        };
        let kind = match raw.get().as_bytes().first() {
            Some(b't' | b'f') => "a boolean",
            Some(b'"') => "a string",
            Some(b'[') => "a list",
            Some(b'{') => "an object",
            Some(_) | None => "a number",
        };
        self.complain(format!("{name} is {kind}, expected {wanted}"));
        None
    }

    fn complain(&mut self, complaint: String) {
        if self.complaints.len() < MAX_COMPLAINTS && !self.complaints.contains(&complaint) {
            self.complaints.push(complaint);
        }
    }
}

const BYTE_ORDER_MARK: char = '\u{feff}';

#[derive(Default)]
struct Tail {
    text: String,
    /// The file has more before it, which is not read.
    is_cut: bool,
}

/// The end of the file, from an object's beginning in all usual layouts.
fn tail(path: &Path) -> std::io::Result<Tail> {
    // The command may have created a pipe, and opening or reading it could block forever.
    let mut file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let before = file.metadata()?.len().saturating_sub(MAX_TAIL);
    file.seek(SeekFrom::Start(before))?;
    let mut tail = Vec::new();
    file.take(MAX_TAIL).read_to_end(&mut tail)?;
    let is_cut = before > 0;
    let start = if is_cut { first_boundary(&tail) } else { 0 };
    Ok(Tail { text: String::from_utf8_lossy(&tail[start..]).into_owned(), is_cut })
}

/// The first line's beginning, or that of an object right after another one.
fn first_boundary(tail: &[u8]) -> usize {
    let line = tail.iter().position(|byte| *byte == b'\n').unwrap_or(tail.len());
    let opens = |end: usize| tail[end + 1..].trim_ascii_start().first() == Some(&b'{');
    (0..line).find(|end| tail[*end] == b'}' && opens(*end)).map_or(line, |end| end + 1)
}

/// Quotes `NaN` and the infinities: Python writes them although they are not JSON, and the whole
/// object would be lost.
fn quote_non_numbers(text: &str) -> Cow<'_, str> {
    const NON_NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    if !NON_NUMBERS.iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::with_capacity(text.len() + 64);
    let (mut rest, mut in_text) = (text, false);
    while let Some(c) = rest.chars().next() {
        let word = NON_NUMBERS.iter().find(|word| !in_text && rest.starts_with(**word));
        let length = match (word, c) {
            (Some(word), _) => {
                quoted.extend(["\"", word, "\""]);
                rest = &rest[word.len()..];
                continue;
            }
            // An escaped quote does not end the string.
            (None, '\\') if in_text => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, _) => c.len_utf8(),
        };
        // A string does not span lines.
        in_text = if c == '\n' { false } else { in_text ^ (c == '"') };
        quoted.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    Cow::Owned(quoted)
}

/// Replaces lone surrogates by `\ufffd`: Python writes `\udcff` for a file name's byte that is not
/// UTF-8.
fn replace_lone_surrogates(text: &str) -> Cow<'_, str> {
    if !["\\ud", "\\uD"].iter().any(|half| text.contains(half)) {
        return Cow::Borrowed(text);
    }
    let mut whole = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(backslash) = rest.find('\\') {
        whole.push_str(&rest[..backslash]);
        rest = &rest[backslash..];
        let pair = matches!(
            (utf16_unit(rest), rest.get(6..).and_then(utf16_unit)),
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF))
        );
        let (kept, length) = match utf16_unit(rest) {
            Some(_) if pair => (&rest[..12], 12),
            Some(0xD800..=0xDFFF) => ("\\ufffd", 6),
            Some(_) => (&rest[..6], 6),
            // The escaped character does not begin another escape.
            None => {
                let length = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                (&rest[..length], length)
            }
        };
        whole.push_str(kept);
        rest = &rest[length..];
    }
    whole.push_str(rest);
    Cow::Owned(whole)
}

/// The UTF-16 unit, if the text begins with an escape like `\u00fc`.
fn utf16_unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    // `from_str_radix` would also accept a sign.
    digits
        .bytes()
        .all(|digit| digit.is_ascii_hexdigit())
        .then(|| u16::from_str_radix(digits, 16).ok())?
}

fn text(value: &Value) -> Result<String, &'static str> {
    let text = value.as_str().ok_or("a string")?;
    Ok(text.chars().take(MAX_TEXT).collect())
}

/// Numbers by name. A value that is not a number becomes NaN, which is refused by name.
fn numbers(value: &Value) -> Result<Vec<(String, f64)>, &'static str> {
    let fields = value.as_object().ok_or("an object of numbers")?;
    Ok(fields.iter().map(|(name, it)| (name.clone(), it.as_f64().unwrap_or(f64::NAN))).collect())
}

/// From 0 to 1, or percent.
fn share(value: &Value) -> Result<f64, &'static str> {
    match value.as_f64() {
        Some(share @ 0.0..=1.0) => Ok(share),
        Some(percent) if percent > 1.0 && percent <= 100.0 => Ok(percent / 100.0),
        Some(_) | None => Err("a number from 0 to 1, or up to 100 as percent,"),
    }
}

/// `300`, `"300"`, `"5m"` or `"PT5M"`.
fn delay(value: &Value) -> Result<Duration, &'static str> {
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
    let delay = match value {
        Value::Number(number) => number.as_f64().and_then(seconds),
        Value::String(text) => {
            let text = text.trim();
            let number = || text.parse().ok().and_then(seconds);
            number().or_else(|| humantime::parse_duration(text).ok()).or_else(|| iso_8601(text))
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    delay.ok_or("a number of seconds (300) or a time (\"5m\", \"PT5M\")")
}

/// Weeks, days, hours, minutes and seconds; months have no fixed length.
fn iso_8601(text: &str) -> Option<Duration> {
    const DATE: &[(char, f64)] = &[('W', 604_800.0), ('D', 86_400.0)];
    const TIME: &[(char, f64)] = &[('H', 3600.0), ('M', 60.0), ('S', 1.0)];
    let text = text.to_ascii_uppercase();
    let (date, time) = match text.strip_prefix('P')?.split_once('T') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (text.strip_prefix('P')?, ""),
    };
    if date.is_empty() && time.is_empty() {
        return None;
    }
    let seconds = |mut part: &str, units: &[(char, f64)]| {
        let mut sum = 0.0;
        for (unit, length) in units {
            if let Some((number, rest)) = part.split_once(*unit) {
                let is_plain = number.chars().all(|c| c.is_ascii_digit() || c == '.');
                sum += number.parse::<f64>().ok().filter(|_| is_plain)? * length;
                part = rest;
            }
        }
        part.is_empty().then_some(sum)
    };
    Duration::try_from_secs_f64(seconds(date, DATE)? + seconds(time, TIME)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: Duration = Duration::from_mins(1);

    fn read(bytes: impl AsRef<[u8]>) -> ResultFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        ResultFile::read(file.path())
    }

    fn reason(bytes: impl AsRef<[u8]>) -> Option<String> {
        let ResultFile { report, complaints, .. } = read(bytes);
        assert_eq!(complaints, [""; 0]);
        report.reason
    }

    #[test]
    fn the_last_value_of_each_field_counts() {
        let file = read(
            "{\"retry_after\":\"5m\",\"progress\":0.1}\n{\"retry_after\":120}\n{\"reason\":\"no columns\"}\n",
        );
        assert_eq!(
            (file.report.retry_after, file.report.reason.as_deref()),
            (Some(2 * M), Some("no columns"))
        );
        assert_eq!(file.progress, Some(Progress { share: Some(0.1), text: None }));
        assert_eq!(reason("{\"reason\":\"a\"}\n{\"reason\":null}\n").as_deref(), Some("a"));
        assert_eq!(
            reason("{\"reason\":\"a\",\"reason\":\"b\",\"else\":[1]}").as_deref(),
            Some("b")
        );
        assert_eq!(ResultFile::read(Path::new("/nonexistent")), ResultFile::default());
        assert_eq!(ResultFile::read(Path::new("/")), ResultFile::default());
        assert_eq!(read(" \r\n\n"), ResultFile::default());
    }

    #[test]
    fn an_object_counts_in_any_layout() {
        let bad = Some("bad \u{fc}");
        let pretty = "{\r\n  \"reason\": \"bad \u{fc}\",\r\n  \"progress\": 0.5\r\n}\r\n";
        for text in [
            "{\"reason\":\"bad \u{fc}\"}",
            "{\"reason\":\"a\"}\n{\"reason\":\"bad \u{fc}\"}",
            "{\"reason\":\"a\"}{\"reason\":\"bad \\u00fc\"}",
            "\u{feff}{\"reason\":\"bad \u{fc}\"}\r\n",
            "{\"reason\":\"a\"}\n\u{feff}{\"reason\":\"bad \u{fc}\"}\n",
            pretty,
            &format!("{{\"reason\":\"a\"}}\n{pretty}"),
        ] {
            assert_eq!(reason(text).as_deref(), bad, "{text}");
        }
        assert_eq!(reason(b"{\"reason\":\"bad \xe4\"}").as_deref(), Some("bad \u{fffd}"));
    }

    #[test]
    fn a_line_that_is_not_an_object_is_skipped() {
        for (text, complaints) in [
            ("{\"reason\":\"a\"}\n{\"reason\":\"b", 1),
            ("nonsense\n{\"reason\":\"a\"}\nmore\n", 1),
            ("{'reason': 'b'}\n{\"reason\":\"a\"}", 1),
            ("[{\"reason\":\"b\"}]\n{\"reason\":\"a\"}\n7\n\"text\"\nnull\n", 1),
            ("{\"reason\":\n{\"reason\":\"a\"}", 1),
        ] {
            let file = read(text);
            assert_eq!(
                (file.report.reason.as_deref(), file.complaints.len()),
                (Some("a"), complaints),
                "{text}"
            );
        }
        // Unclosed objects are read once; to the end from each line would take minutes.
        for (line, times) in
            [("{\"a\":[\n", 30_000), ("{\"a\":{\n", 30_000), ("[", 250_000), ("\"\n", 100_000)]
        {
            let file = read(line.repeat(times) + "x\n{\"reason\":\"a\"}");
            assert_eq!(
                (file.report.reason.as_deref(), file.complaints.len()),
                (Some("a"), 1),
                "{line}"
            );
        }
    }

    #[test]
    fn an_invalid_field_is_named_and_does_not_affect_others() {
        for (field, value, kind) in [
            ("retry_after", "\"tomorrow\"", "a string"),
            ("retry_after", "-1", "a number"),
            ("retry_after", "1e999", "a number"),
            ("retry_after", "NaN", "a string"),
            ("retry_after", "true", "a boolean"),
            ("retry_after", "[300]", "a list"),
            ("retry_after", ("[".repeat(500) + &"]".repeat(500)).as_str(), "a list"),
            ("progress", "\"40%\"", "a string"),
            ("progress", "-Infinity", "a string"),
            ("progress", "-0.1", "a number"),
            ("progress", "101", "a number"),
            ("progress", "{\"done\":1}", "an object"),
            ("text", "7", "a number"),
        ] {
            let file = read(
                format!("{{\"reason\":\"say \\\"NaN\\\", NaN\",\"{field}\":{value}}}\n").repeat(3),
            );
            assert_eq!(file.report.reason.as_deref(), Some("say \"NaN\", NaN"), "{field} {value}");
            assert_eq!((file.report.retry_after, file.progress), (None, None), "{field} {value}");
            let [complaint] = &file.complaints[..] else { panic!("once: {:?}", file.complaints) };
            assert!(complaint.starts_with(&format!("{field} is {kind}, expected ")));
        }
        let file =
            read("{\"retry_after\":\"5m\"}\n{\"retry_after\":\"soon\",\"reason\":[\"a\"]}\n");
        assert_eq!(
            (file.report.retry_after, file.report.reason, file.complaints.len()),
            (Some(5 * M), None, 2)
        );
    }

    #[test]
    fn a_delay_is_seconds_or_a_time() {
        let delay = |value: &str| read(format!("{{\"retry_after\":{value}}}")).report.retry_after;
        for value in [
            "300",
            "300.0",
            "3e2",
            "\"300\"",
            "\" 300 \"",
            "\"5m\"",
            "\"4m 60s\"",
            "\"PT5M\"",
            "\"pt300s\"",
            "\"PT4M60.0S\"",
        ] {
            assert_eq!(delay(value), Some(5 * M), "{value}");
        }
        assert_eq!(delay("\"P1DT2H\""), Some(26 * 60 * M));
        assert_eq!((delay("\"P1W\""), delay("0")), (Some(7 * 24 * 60 * M), Some(Duration::ZERO)));
        for value in [
            "\"\"",
            "\"P\"",
            "\"PT\"",
            "\"P5M\"",
            "\"PT5\"",
            "\"PT-5M\"",
            "\"PT5M3H\"",
            "\"-300\"",
            "\"inf\"",
            "\"1e300\"",
            "1e300",
        ] {
            assert_eq!(delay(value), None, "{value}");
        }
    }

    #[test]
    fn progress_is_a_number_from_0_to_1_or_percent_and_a_text() {
        let progress =
            |text: &str| read(text).progress.map(|progress| (progress.share, progress.text));
        let loading = Some("loading".to_owned());
        assert_eq!(
            progress("{\"progress\":0.4,\"text\":\"loading\"}\n"),
            Some((Some(0.4), loading.clone()))
        );
        assert_eq!(
            progress("{\"text\":\"loading\"}\n{\"progress\":1}\n"),
            Some((Some(1.0), loading))
        );
        for (number, share) in [("0", 0.0), ("1", 1.0), ("40", 0.4), ("1.5", 0.015), ("100", 1.0)] {
            assert_eq!(
                progress(&format!("{{\"progress\":{number}}}")),
                Some((Some(share), None)),
                "{number}"
            );
        }
        assert_eq!(progress("{\"reason\":\"no columns\"}\n"), None);
    }

    #[test]
    fn an_invalid_metric_costs_only_itself_and_one_complaint() {
        let metrics = |text: &str| {
            let file = read(text);
            let all: Vec<_> =
                file.metrics.iter().map(|(name, value)| format!("{name}={value}")).collect();
            (all.join(" "), file.complaints)
        };
        let none: Vec<String> = Vec::new();
        assert_eq!(
            metrics("{\"metrics\":{\"rows\":4,\"ms\":1.5}}\n{\"metrics\":{\"rows\":5}}"),
            ("ms=1.5 rows=5".to_owned(), none)
        );
        for bad in
            ["\"ro\\nws\":1", "\"a\":\"1\"", "\"a\":null", "\"a\":NaN", "\"a\":[1]", "\"\":1"]
        {
            let (all, complaints) = metrics(
                &format!("{{\"metrics\":{{\"rows\":5,{bad}}},\"progress\":1}}\n").repeat(3),
            );
            assert_eq!((all.as_str(), complaints.len()), ("rows=5", 1), "{bad}");
            assert!(complaints[0].starts_with("metric ") && !complaints[0].contains('\n'));
        }
        let many: Vec<_> = (0..99).map(|n| format!("{{\"metrics\":{{\"n{n}\":{n}}}}}")).collect();
        let (all, complaints) = metrics(&many.join("\n"));
        assert_eq!(all, "n0=0 n1=1 n2=2 n3=3 n4=4 n5=5 n6=6 n7=7");
        assert_eq!(complaints, ["metric \"n8\": there are 8 names already"]);
        let (_, complaints) = metrics("{\"metrics\":[5]}");
        assert_eq!(complaints, ["metrics is a list, expected an object of numbers"]);
    }

    #[test]
    fn a_pipe_does_not_block() {
        let home = tempfile::tempdir().unwrap();
        let pipe = home.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(Box::new(ResultFile::read(&pipe))));
        assert_eq!(
            is_done.recv_timeout(Duration::from_secs(20)),
            Ok(Box::new(ResultFile::default()))
        );
    }

    #[test]
    fn only_the_end_of_a_long_file_is_read() {
        let lines = "{\"reason\":\"first\"}\n".to_owned() + &"{\"progress\":0.5}\n".repeat(100_000);
        let file = read(&lines);
        assert_eq!((file.report.reason, file.complaints), (None, vec![]));
        assert_eq!(file.progress.and_then(|progress| progress.share), Some(0.5));
    }

    #[test]
    fn a_long_file_needs_no_lines() {
        for between in ["", " ", "\t\r"] {
            for end in ["", "\n"] {
                let object = format!("{{\"progress\":0.5}}{between}");
                let file = read(
                    object.repeat(30_000) + "{\"reason\":\"down\",\"retry_after\":\"5m\"}" + end,
                );
                assert_eq!(
                    (file.report.reason.as_deref(), file.report.retry_after),
                    (Some("down"), Some(5 * M))
                );
                assert_eq!(file.complaints, [""; 0]);
            }
        }
    }

    #[test]
    fn an_object_longer_than_the_tail_is_reported() {
        for end in ["]}", "]}\n", "]", ""] {
            let file = read(
                "{\"reason\":\"down\",\"rows\":[".to_owned() + &"1,".repeat(200_000) + "1" + end,
            );
            assert_eq!(
                file.complaints,
                ["its last 256 KiB contain no complete JSON object"],
                "{end:?}"
            );
        }
        // Objects without known fields are valid.
        assert_eq!(read("{\"step\":1}\n".repeat(30_000)), ResultFile::default());
    }

    #[test]
    fn a_lone_surrogate_is_replaced() {
        for (written, read) in [
            (r"a\udcffb", "a\u{fffd}b"),
            (r"a\uD83Db", "a\u{fffd}b"),
            (r"\ud83d\ude00", "\u{1f600}"),
            (r"\ud83d\ud83d\ude00", "\u{fffd}\u{1f600}"),
            (r"\ud83d\u0041\udcff", "\u{fffd}A\u{fffd}"),
            (r"\\udcff", r"\udcff"),
            (r"\\\udcff", "\\\u{fffd}"),
        ] {
            assert_eq!(
                reason(format!("{{\"a\\udcff\":1,\"reason\":\"{written}\"}}")).as_deref(),
                Some(read),
                "{written}"
            );
        }
        for broken in [r"\ud", r"\ud8\u00", r"\ud+00", "\\ud\u{fc}\u{fc}"] {
            let file = read(format!("{{\"reason\":\"{broken}\"}}\n{{\"reason\":\"a\"}}"));
            assert_eq!(file.report.reason.as_deref(), Some("a"), "{broken}");
        }
    }
}
