//! Log records as text, for a person at a terminal: the events of each file, without details for
//! machines.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::{self, Write};
use std::hash::{BuildHasher, BuildHasherDefault};
use std::time::SystemTime;

use anstyle::{AnsiColor, Style};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::json::LEVEL;
use super::plain::{Plain, shortened};
use crate::job::report::clock_time;

/// `time LEVEL text field=value …`; a line of the command is `file | line`, and `file ! line` on
/// its standard error. Control characters are escaped. Needs the layer [`FileNames`].
pub struct Text {
    pub is_coloured: bool,
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let coloured = |style: Style| if self.is_coloured { style } else { Style::new() };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = *event.metadata().level();
        let mut spans = context.event_scope().into_iter().flatten();
        let name =
            spans.find_map(|span| span.extensions().get::<FileName>().map(|name| name.0.clone()));
        if let Some(line) = fields.command_line(level) {
            let name = name.unwrap_or_else(|| "command".to_owned());
            let colour = coloured(colour_of(&name));
            if fields.is_stderr {
                let mark = coloured(AnsiColor::Yellow.on_default());
                return writeln!(out, "{colour}{name}{colour:#} {mark}!{mark:#} {}", Plain(&line));
            }
            return writeln!(out, "{colour}{name} |{colour:#} {}", Plain(&line));
        }
        let style = coloured(match level {
            Level::ERROR => AnsiColor::Red.on_default(),
            Level::WARN => AnsiColor::Yellow.on_default(),
            _ if fields.is_success => AnsiColor::Green.on_default(),
            _ => Style::new(),
        });
        let (time, Fields { text, rest, has_key, .. }) = (clock_time(SystemTime::now()), fields);
        write!(out, "{time} {style}{level:5}{style:#} {}{}", Plain(&text), Plain(&rest))?;
        if let Some(name) = name.filter(|_| !has_key && level < Level::DEBUG) {
            write!(out, " key=\"{name}\"")?;
        }
        if level >= Level::DEBUG {
            for span in context.event_scope().into_iter().flatten() {
                if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                    write!(out, " {}{{{}}}", span.name(), Plain(fields))?;
                }
            }
        }
        writeln!(out)
    }
}

/// The same file always has the same colour. Red, yellow and green have other meanings.
fn colour_of(name: &str) -> Style {
    const COLOURS: [AnsiColor; 6] = [
        AnsiColor::Cyan,
        AnsiColor::Magenta,
        AnsiColor::Blue,
        AnsiColor::BrightCyan,
        AnsiColor::BrightMagenta,
        AnsiColor::BrightBlue,
    ];
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(name);
    let number = usize::try_from(hash % COLOURS.len() as u64).unwrap_or_default();
    COLOURS[number].on_default()
}

/// Remembers the file of each span, for the lines of the command.
pub struct FileNames;

/// Safe to print, and at most [`LONGEST_NAME`] columns wide.
struct FileName(String);

const LONGEST_NAME: usize = 32;

impl<S> Layer<S> for FileNames
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut key = Key(None);
        attributes.record(&mut key);
        if let (Some(key), Some(span)) = (key.0, context.span(id)) {
            span.extensions_mut()
                .insert(FileName(shortened(&Plain(&key).to_string(), LONGEST_NAME)));
        }
    }
}

struct Key(Option<String>);

impl Visit for Key {
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "key" {
            self.0 = Some(value.to_owned());
        }
    }
}

/// The fields that only machines need, in JSON.
const FOR_MACHINES: [&str; 17] = [
    "message_id",
    "max_receive_count",
    "bucket",
    "size",
    "objects",
    "body_sha256",
    "trace_id",
    "reason",
    "stream",
    "receive_s",
    "fetch_s",
    "turn_s",
    "command_s",
    "publish_s",
    "settle_s",
    "cpu_s",
    "peak_memory_bytes",
];

#[derive(Default)]
struct Fields {
    text: String,
    /// A line of the command's output.
    line: Option<String>,
    is_stderr: bool,
    is_success: bool,
    has_key: bool,
    /// A line of the command's output that is a JSON object, and its level if that is not the
    /// record's.
    event: Option<Map<String, Value>>,
    command_level: Option<String>,
    rest: String,
}

impl Fields {
    /// What the command printed: its line, or `LEVEL message field=value …`.
    fn command_line(&mut self, level: Level) -> Option<String> {
        let Some(event) = &self.event else { return self.line.take() };
        let level = self.command_level.as_deref().unwrap_or(level.as_str());
        let mut words = Vec::new();
        words.extend((level != Level::INFO.as_str()).then(|| level.to_owned()));
        words.extend((!self.text.is_empty()).then(|| self.text.clone()));
        words.extend(event.iter().map(|(name, value)| format!("{name}={value}")));
        Some(words.join(" "))
    }

    fn record(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        match field.name() {
            "message" => self.text = value.to_string(),
            "line" => self.line = Some(value.to_string()),
            "event" => self.event = serde_json::from_str(&value.to_string()).ok(),
            LEVEL => self.command_level = Some(value.to_string()),
            "metrics" => {
                let numbers: BTreeMap<String, f64> =
                    serde_json::from_str(&value.to_string()).unwrap_or_default();
                for (name, number) in numbers {
                    let _ = write!(self.rest, " {name}={number}");
                }
            }
            name if FOR_MACHINES.contains(&name) => {}
            // Writing to a string does not fail.
            name => drop(write!(self.rest, " {name}={value}")),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match (field.name(), value) {
            ("stream", "stderr") => self.is_stderr = true,
            ("outcome", "succeeded") => self.is_success = true,
            ("key", _) => self.has_key = true,
            _ => {}
        }
        match field.name() {
            "line" | "message" | "outcome" | "event" | "metrics" | LEVEL => {
                self.record(field, format_args!("{value}"));
            }
            _ => self.record(field, format_args!("{value:?}")),
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.record(field, format_args!("{value:.3}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::{error, info, info_span, warn};
    use tracing_subscriber::fmt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The logged lines.
    fn logged(is_coloured: bool, log: impl FnOnce()) -> Vec<String> {
        let screen = Screen::default();
        let out = screen.clone();
        let layer = fmt::layer()
            .with_ansi(false)
            .event_format(Text { is_coloured })
            .with_writer(move || out.clone());
        let subscriber = tracing_subscriber::registry().with(FileNames).with(layer);
        tracing::subscriber::with_default(subscriber, log);
        let text = String::from_utf8(screen.0.lock().unwrap().clone()).unwrap();
        text.split_terminator('\n').map(str::to_owned).collect()
    }

    #[test]
    fn a_record_is_one_line_without_control_characters() {
        const EVIL: &str = "a\u{1b}[2J\r\n\u{9b}1m\u{202e}b";
        let lines = logged(false, || {
            let _span = info_span!("work", key = EVIL, error = %EVIL).entered();
            info!(stream = "stdout", line = EVIL);
            info!(stream = "stderr", line = %EVIL);
            info!(key = EVIL, error = %EVIL, outcome = EVIL, "text");
            info!("{EVIL}");
            tracing::debug!(processes = ?EVIL, "a look");
        });
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert!(
            lines.iter().all(|line| line.chars().all(|c| !(c.is_control() || c == '\u{202e}'))),
            "{lines:?}"
        );
        let shown: usize =
            lines.iter().map(|line| line.matches(r"\u{1b}[2J\r\n\u{9b}1m\u{202e}b").count()).sum();
        assert_eq!(shown, 12, "{lines:?}");
    }

    #[test]
    fn a_line_of_the_command_begins_with_its_file() {
        let mut lines = logged(false, || {
            let span = info_span!("work", key = "a.csv");
            span.in_scope(|| {
                info!(stream = "stdout", line = "hello");
                info!(stream = "stderr", line = "oops");
                warn!("late");
            });
            info_span!("work", key = "long/".repeat(20) + "end.csv")
                .in_scope(|| info!(stream = "stdout", line = "hello"));
            info!(stream = "stdout", line = "no file");
        });
        assert!(lines.remove(2).ends_with("WARN  late key=\"a.csv\""));
        assert_eq!(
            lines,
            [
                "a.csv | hello",
                "a.csv ! oops",
                "long/long/long/…ong/long/end.csv | hello",
                "command | no file"
            ]
        );
    }

    #[test]
    fn a_json_line_of_the_command_is_printed_compactly() {
        let lines = logged(false, || {
            let _span = info_span!("work", key = "a.csv").entered();
            let event = r#"{"rows":5,"at":{"line":3},"file":"b\u001b.csv"}"#;
            warn!(target: "command", stream = "stdout", event, message = "slow");
            info!(target: "command", stream = "stderr", event, command_level = "DEBUG");
            info!(metrics = r#"{"rows":5.0,"share":0.25}"#, "message deleted");
        });
        let fields = r#"at={"line":3} file="b\u001b.csv" rows=5"#;
        assert_eq!(lines[0], format!("a.csv | WARN slow {fields}"));
        assert_eq!(lines[1], format!("a.csv ! DEBUG {fields}"));
        assert!(lines[2].contains("message deleted rows=5 share=0.25"), "{lines:?}");
    }

    #[test]
    fn colours_mean_something() {
        let log = || {
            error!("e");
            warn!("w");
            info!(outcome = "succeeded", "s");
            info!("i");
            info_span!("work", key = "a.csv")
                .in_scope(|| info!(stream = "stdout", line = "\u{1b}[2J"));
        };
        let colours = [
            "\u{1b}[31mERROR\u{1b}[0m e",
            "\u{1b}[33mWARN \u{1b}[0m w",
            "\u{1b}[32mINFO \u{1b}[0m s",
        ];
        let lines = logged(true, log);
        assert!(lines.iter().zip(colours).all(|(line, colour)| line.contains(colour)), "{lines:?}");
        assert!(lines[3].ends_with("Z INFO  i"), "{lines:?}");
        assert!(
            lines[4].starts_with("\u{1b}[") && lines[4].ends_with(" |\u{1b}[0m \\u{1b}[2J"),
            "{lines:?}"
        );
        assert!(logged(false, log).iter().all(|line| !line.contains('\u{1b}')));
    }
}
