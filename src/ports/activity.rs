//! What running work shows of itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tracing::Span;

/// Whether work prints something or waits for its turn, and what work in this process reports.
#[derive(Debug, Clone, Default)]
pub struct Activity {
    is_recorded: Arc<AtomicBool>,
    /// Only for work in this process.
    reports: Arc<Mutex<Reports>>,
    /// Only for a process that works on one message after another.
    current: Arc<Mutex<Option<CurrentWork>>>,
    waits: Arc<watch::Sender<bool>>,
}

/// What a warm worker works on, or worked on last.
#[derive(Debug)]
struct CurrentWork {
    /// Of its messages.
    activities: Vec<Activity>,
    /// The span of the lines that it prints.
    span: Span,
}

/// What work in this process reports, as a command writes it into `JOB_RESULT_FILE`.
#[derive(Debug, Default)]
struct Reports {
    /// The last value of each field.
    fields: Map<String, Value>,
    /// The last value of each metric, in the order of their first reports: only the first few count.
    metrics: Vec<(String, Value)>,
    /// How many there have been.
    count: u64,
}

/// The most metrics that are kept: more than are reported, since some names are not valid.
const MAX_METRICS: usize = 100;

/// The longest text that is kept, in bytes: more than is reported.
const MAX_TEXT: usize = 4096;

impl Activity {
    /// Work in this process reports a field of `JOB_RESULT_FILE`. A null, which stands for a number
    /// that is not finite, replaces no value.
    pub fn report(&self, field: &str, mut value: Value) {
        self.record();
        let mut reports = lock(&self.reports);
        reports.count += 1;
        if let Value::String(text) = &mut value {
            cut(text);
        }
        if !(value.is_null() && reports.fields.contains_key(field)) {
            reports.fields.insert(field.to_owned(), value);
        }
    }

    /// Work in this process reports one of its metrics.
    pub fn report_metric(&self, name: &str, value: f64) {
        self.record();
        let mut reports = lock(&self.reports);
        reports.count += 1;
        let metrics = &mut reports.metrics;
        if let Some((_, before)) = metrics.iter_mut().find(|(before, _)| before == name) {
            if value.is_finite() {
                *before = value.into();
            }
        } else if metrics.len() < MAX_METRICS {
            let mut name = name.to_owned();
            cut(&mut name);
            metrics.push((name, value.into()));
        }
    }

    /// How many reports there have been, and the last values as lines of JSON; `None` if there are
    /// only `known`.
    pub fn reports_after(&self, known: u64) -> Option<(u64, String)> {
        let reports = lock(&self.reports);
        if reports.count <= known {
            return None;
        }
        let metrics =
            reports.metrics.iter().map(|(name, value)| json!({ "metrics": { name: value } }));
        let objects = std::iter::once(Value::Object(reports.fields.clone())).chain(metrics);
        let lines: Vec<String> = objects.map(|object| object.to_string()).collect();
        Some((reports.count, lines.join("\n")))
    }

    pub fn record(&self) {
        self.is_recorded.store(true, Ordering::Relaxed);
        for of_message in self.current().iter().flat_map(|current| &current.activities) {
            of_message.is_recorded.store(true, Ordering::Relaxed);
        }
    }

    /// Was there activity since the last call?
    pub fn take(&self) -> bool {
        self.is_recorded.swap(false, Ordering::Relaxed)
    }

    /// From now on, the run waits for the end of other work, which does not count as its own time;
    /// or it has its turn.
    pub fn set_waiting(&self, waits: bool) {
        self.waits.send_replace(waits);
    }

    /// Whether it waits.
    pub fn waiting(&self) -> watch::Receiver<bool> {
        self.waits.subscribe()
    }

    /// From now on, the process works on messages with these activities, and its lines belong to
    /// the span: a line may be read after the work.
    pub fn works_on(&self, activities: Vec<Self>, span: Span) {
        *self.current() = Some(CurrentWork { activities, span });
    }

    /// Calls `log` in the span of the last work, if there was one.
    pub fn in_span(&self, log: impl FnOnce()) {
        let span = self.current().as_ref().map(|current| current.span.clone());
        span.unwrap_or_else(Span::none).in_scope(log);
    }

    fn current(&self) -> MutexGuard<'_, Option<CurrentWork>> {
        lock(&self.current)
    }
}

fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text.shrink_to_fit();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_each_field_and_of_each_metric_is_kept() {
        let activity = Activity::default();
        assert_eq!(activity.reports_after(0), None);
        activity.report_metric("rows", 1.0);
        activity.report_metric("bytes", 7.0);
        for number in 0..100_000 {
            activity.report("progress", number.into());
        }
        activity.report("progress", Value::Null);
        activity.report_metric("rows", 2.5);
        activity.report_metric("bytes", f64::NAN);
        assert!(activity.take());
        let lines =
            "{\"progress\":99999}\n{\"metrics\":{\"rows\":2.5}}\n{\"metrics\":{\"bytes\":7.0}}";
        assert_eq!(activity.reports_after(100_004), Some((100_005, lines.to_owned())));
        assert_eq!(activity.reports_after(100_005), None);
    }

    #[test]
    fn a_handler_that_reports_without_end_takes_a_bounded_memory() {
        let activity = Activity::default();
        for number in 0..10_000 {
            activity.report_metric(&format!("m{number}{}", "x".repeat(10_000)), 1.0);
        }
        activity.report("text", "é".repeat(1 << 20).into());
        let reports = lock(&activity.reports);
        assert_eq!(reports.metrics.len(), MAX_METRICS);
        assert!(reports.metrics.iter().all(|(name, _)| name.capacity() <= MAX_TEXT));
        let Value::String(text) = &reports.fields["text"] else { panic!("{:?}", reports.fields) };
        assert_eq!(text.len(), MAX_TEXT);
        assert!(text.capacity() < 2 * MAX_TEXT);
    }
}
