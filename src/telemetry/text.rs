//! Log records as text, for a person at a terminal: what happened to which file, without a machine's details.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// `time LEVEL text field=value …`; a line of the command is shown as it is, behind a bar.
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
            Some(line) => write!(out, "| {line}")?,
            None => write!(out, "{text}{rest}")?,
        }
        if *event.metadata().level() >= Level::DEBUG {
            for span in context.event_scope().into_iter().flatten() {
                if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                    write!(out, " {}{{{fields}}}", span.name())?;
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
    "said",
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
