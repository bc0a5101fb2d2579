//! Log records as text, for a person at a terminal: what happened to which file, without a machine's details.

use std::fmt::{self, Write};

use super::plain::Plain;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// `time LEVEL text field=value …`; a line of the command is shown behind a bar. Control characters are shown as such,
/// wherever they come from.
pub struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        SystemTime.format_time(&mut out)?;
        write!(out, " {:5} ", event.metadata().level())?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { text, line, rest } = fields;
        match line {
            Some(line) => write!(out, "| {}", Plain(&line))?,
            None => write!(out, "{}{}", Plain(&text), Plain(&rest))?,
        }
        if *event.metadata().level() >= Level::DEBUG {
            for span in context.event_scope().into_iter().flatten() {
                if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                    write!(out, " {}{{{}}}", span.name(), Plain(fields))?;
                }
            }
        }
        writeln!(out)
    }
}

/// What only a machine that reads JSON wants.
const FOR_MACHINES: [&str; 16] = [
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
    "command_s",
    "publish_s",
    "settle_s",
    "cpu_s",
    "peak_memory_bytes",
];

#[derive(Default)]
struct Fields {
    text: String,
    /// Of the command.
    line: Option<String>,
    rest: String,
}

impl Fields {
    fn record(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        match field.name() {
            "message" => self.text = value.to_string(),
            "line" => self.line = Some(value.to_string()),
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
        match field.name() {
            "line" | "message" | "outcome" => self.record(field, format_args!("{value}")),
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

    use tracing::{info, info_span};

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

    #[test]
    fn a_record_is_one_line_and_moves_no_cursor_whoever_wrote_what_is_in_it() {
        const EVIL: &str = "a\u{1b}[2J\r\n\u{9b}1m\u{202e}b";
        let screen = Screen::default();
        let out = screen.clone();
        let subscriber = tracing_subscriber::fmt().event_format(Text).with_writer(move || out.clone());
        tracing::subscriber::with_default(subscriber.with_max_level(Level::DEBUG).finish(), || {
            let _span = info_span!("work", key = EVIL, error = %EVIL).entered();
            info!(stream = "stdout", line = EVIL);
            info!(stream = "stdout", line = %EVIL);
            info!(key = EVIL, error = %EVIL, outcome = EVIL, "said");
            info!("{EVIL}");
            tracing::debug!(processes = ?EVIL, "a look");
        });
        let text = String::from_utf8(screen.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.chars().all(|c| c == '\n' || !(c.is_control() || c == '\u{202e}')), "{text:?}");
        assert_eq!(text.matches(r"\u{1b}[2J\r\n\u{9b}1m\u{202e}b").count(), 9, "{text}");
    }
}
