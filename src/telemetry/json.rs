//! Log records as JSON, one flat object per line, for machines.

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

/// The fields that people look for come first.
fn fields(event: &Event<'_>) -> Vec<(String, Value)> {
    let mut now = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    let metadata = event.metadata();
    let mut fields =
        vec![("timestamp", Value::from(now)), ("level", Value::from(metadata.level().as_str()))];
    let of_event = serde_json::to_value(event.field_map()).ok();
    let mut rest = match of_event {
        Some(Value::Object(fields)) => fields,
        Some(_) | None => Map::new(),
    };
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
