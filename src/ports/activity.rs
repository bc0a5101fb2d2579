//! What running work shows of itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use tokio::sync::watch;
use tracing::Span;

/// Set whenever a command prints something, or waits for its turn.
#[derive(Debug, Clone, Default)]
pub struct Activity {
    is_recorded: Arc<AtomicBool>,
    /// Only for work in this process.
    reports: Arc<Mutex<Reports>>,
    /// Only for a process that works on one message after another.
    current: Arc<Mutex<Option<CurrentWork>>>,
    waits: Arc<watch::Sender<bool>>,
}

/// What a process that stays works on, or worked on last.
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
    /// The last value of each field, and of each metric.
    fields: Map<String, Value>,
    /// How many there have been.
    count: u64,
}

/// The most metrics that are kept: more than are reported.
const MAX_METRICS: usize = 100;

/// The longest text that is kept, in bytes: more than is reported.
const MAX_TEXT: usize = 4096;

impl Activity {
    /// Work in this process reports these fields of `JOB_RESULT_FILE`.
    pub fn report(&self, fields: Value) {
        self.record();
        let Value::Object(fields) = fields else { return };
        let mut reports = lock(&self.reports);
        reports.count += 1;
        for (name, mut value) in fields {
            if let Value::String(text) = &mut value {
                text.truncate(text.floor_char_boundary(MAX_TEXT));
            }
            match (reports.fields.get_mut(&name), value) {
                (Some(Value::Object(before)), Value::Object(more)) => {
                    let more = more.into_iter();
                    for (name, value) in more {
                        if before.len() < MAX_METRICS || before.contains_key(&name) {
                            before.insert(name, value);
                        }
                    }
                }
                (_, value) => drop(reports.fields.insert(name, value)),
            }
        }
    }

    /// How many reports there have been, and the last value of each field as JSON; `None` if there are
    /// only `known`.
    pub fn reports_after(&self, known: u64) -> Option<(u64, String)> {
        let reports = lock(&self.reports);
        let fields = || serde_json::to_string(&reports.fields).unwrap_or_default();
        (reports.count > known).then(|| (reports.count, fields()))
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_value_of_each_field_and_of_each_metric_is_kept() {
        let activity = Activity::default();
        assert_eq!(activity.reports_after(0), None);
        activity.report(json!({ "metrics": { "rows": 1, "bytes": 7 } }));
        for number in 0..100_000 {
            activity.report(json!({ "progress": number }));
        }
        activity.report(json!({ "metrics": { "rows": 2 } }));
        assert!(activity.take());
        let fields = "{\"metrics\":{\"bytes\":7,\"rows\":2},\"progress\":99999}".to_owned();
        assert_eq!(activity.reports_after(100_001), Some((100_002, fields)));
        assert_eq!(activity.reports_after(100_002), None);
    }

    #[test]
    fn a_handler_that_reports_without_end_takes_a_bounded_memory() {
        let activity = Activity::default();
        for number in 0..10_000 {
            activity.report(json!({ "metrics": { format!("m{number}"): 1 } }));
        }
        activity.report(json!({ "text": "é".repeat(1 << 20) }));
        let (_, fields) = activity.reports_after(0).unwrap();
        let fields: Value = serde_json::from_str(&fields).unwrap();
        assert_eq!(fields["metrics"].as_object().unwrap().len(), MAX_METRICS);
        assert_eq!(fields["text"].as_str().unwrap().len(), MAX_TEXT);
    }
}
