//! Log records as JSON, one object per line, for machines. Only the fields in [`NESTED`] are objects.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::ops::Range;

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::logs::{Identity, as_known};

/// Formats the fields of the record, then the identity, then the fields of its spans. Needs
/// [`JsonFields`] as the field formatter.
pub struct Json(pub Identity);

impl<S> FormatEvent<S, JsonFields> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut record = Record::of(event);
        let Identity { job_id, pod_name } = &self.0;
        record.add("job_id", job_id);
        record.add("pod_name", pod_name);
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let formatted =
                extensions.get::<FormattedFields<JsonFields>>().map_or("", |it| it.fields.as_str());
            let of_span: Map<String, Value> = serde_json::from_str(formatted).unwrap_or_default();
            for (name, value) in of_span {
                record.add(name, &value);
            }
            record.add("name", span.name());
        }
        record.write(&mut out)
    }
}

/// Fields whose text is a JSON object, which becomes a part of the record.
pub(super) const NESTED: [&str; 2] = ["metrics", "event"];

/// A level that is shown instead of the record's: a filter must not drop what the command printed.
pub(super) const LEVEL: &str = "command_level";

/// The fields that people look for come first, then the others by name.
const FIRST: [&str; 3] = ["message", "outcome", "key"];

/// The fields of a record in their order, each with its value as JSON in `values`.
struct Record {
    values: Vec<u8>,
    fields: Vec<(Cow<'static, str>, Range<usize>)>,
    /// Kept from field to field for its memory.
    text: String,
}

impl Record {
    fn of(event: &Event<'_>) -> Self {
        let (values, fields) = (Vec::with_capacity(1024), Vec::with_capacity(40));
        let mut record = Self { values, fields, text: String::new() };
        event.record(&mut record);
        let rank =
            |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
        record.fields.sort_by(|(one, _), (other, _)| {
            (rank(one), one.as_ref()).cmp(&(rank(other), other.as_ref()))
        });
        let metadata = event.metadata();
        let mut now = String::with_capacity(32);
        // Writing to a string does not fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut now));
        let timestamp = record.value(&now);
        let shown = record.fields.iter().position(|(name, _)| name == LEVEL);
        let level = match shown {
            Some(at) => record.fields.remove(at).1,
            None => record.value(metadata.level().as_str()),
        };
        record.fields.splice(0..0, [("timestamp".into(), timestamp), ("level".into(), level)]);
        record.add("target", &as_known(metadata.target()));
        record
    }

    fn add(&mut self, name: impl Into<Cow<'static, str>>, value: &(impl Serialize + ?Sized)) {
        let value = self.value(value);
        self.fields.push((name.into(), value));
    }

    fn value(&mut self, value: &(impl Serialize + ?Sized)) -> Range<usize> {
        let from = self.values.len();
        if serde_json::to_writer(&mut self.values, value).is_err() {
            self.values.truncate(from);
            self.values.extend_from_slice(b"null");
        }
        from..self.values.len()
    }

    /// The innermost value of a name wins.
    fn write(&self, out: &mut Writer<'_>) -> fmt::Result {
        let values = str::from_utf8(&self.values).map_err(|_| fmt::Error)?;
        let mut separator = '{';
        for (at, (name, value)) in self.fields.iter().enumerate() {
            if self.fields[..at].iter().any(|(before, _)| before == name) {
                continue;
            }
            out.write_char(separator)?;
            if is_plain(name) {
                write!(out, "\"{name}\":")?;
            } else {
                write!(out, "{}:", Value::from(name.as_ref()))?;
            }
            out.write_str(&values[value.clone()])?;
            separator = ',';
        }
        out.write_str("}\n")
    }
}

/// Whether the name is the same as JSON.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
}

impl Visit for Record {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let name = field.name();
        let nested = Some(name).filter(|name| NESTED.contains(name));
        match nested.and_then(|_| serde_json::from_str::<Map<String, Value>>(value).ok()) {
            Some(object) => self.add(name, &object),
            None => self.add(name, value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        // Writing to a string fails only if the value's own formatting does.
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text);
        self.text = text;
    }
}
