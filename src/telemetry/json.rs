//! Log records as JSON, one object per line, for machines. Only the fields in [`NESTED`] are objects.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};
use tracing::{Event, Subscriber};
use tracing_serde::fields::AsMap;
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
        let mut fields = fields(event);
        let Identity { job_id, pod_name } = &self.0;
        fields.push(("job_id".to_owned(), Value::from(job_id.as_str())));
        fields.push(("pod_name".to_owned(), Value::from(pod_name.as_str())));
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let formatted =
                extensions.get::<FormattedFields<JsonFields>>().map_or("", |it| it.fields.as_str());
            let of_span: Map<String, Value> = serde_json::from_str(formatted).unwrap_or_default();
            fields.extend(of_span);
            fields.push(("name".to_owned(), Value::from(span.name())));
        }
        // The innermost value of a name wins.
        let mut seen = BTreeSet::new();
        let mut separator = '{';
        for (name, value) in fields.iter().filter(|(name, _)| seen.insert(name.as_str())) {
            write!(out, "{separator}{}:{value}", Value::from(name.as_str()))?;
            separator = ',';
        }
        writeln!(out, "}}")
    }
}

/// Fields whose text is a JSON object, which becomes a part of the record.
pub(super) const NESTED: [&str; 2] = ["metrics", "event"];

/// A level that is shown instead of the record's: a filter must not drop what the command printed.
pub(super) const LEVEL: &str = "command_level";

/// The fields that people look for come first.
fn fields(event: &Event<'_>) -> Vec<(String, Value)> {
    let mut now = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    let metadata = event.metadata();
    let of_event = serde_json::to_value(event.field_map()).ok();
    let mut rest = match of_event {
        Some(Value::Object(fields)) => fields,
        Some(_) | None => Map::new(),
    };
    for name in NESTED {
        let text = rest.get(name).and_then(Value::as_str);
        if let Some(object) = text.and_then(|text| serde_json::from_str(text).ok()) {
            rest.insert(name.to_owned(), Value::Object(object));
        }
    }
    let level = rest.remove(LEVEL).unwrap_or_else(|| metadata.level().as_str().into());
    let mut fields = vec![("timestamp", Value::from(now)), ("level", level)];
    fields.extend(
        ["message", "outcome", "key"]
            .into_iter()
            .filter_map(|name| Some((name, rest.remove(name)?))),
    );
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
    fields
        .chain(rest)
        .chain([("target".to_owned(), Value::from(as_known(metadata.target())))])
        .collect()
}
