//! What running work shows of itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
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
    /// The latest lines.
    lines: String,
    /// How many there have been.
    count: u64,
}

/// In bytes: thousands of lines.
pub const MAX_REPORTS: usize = 256 * 1024;

impl Activity {
    /// Work in this process reports a JSON object. Only the latest [`MAX_REPORTS`] count, and no object
    /// of more than half of that.
    pub fn report(&self, object: &Value) {
        const HALF: usize = MAX_REPORTS / 2;

        self.record();
        let line = format!("{object}\n");
        if line.len() > HALF {
            return;
        }
        let mut reports = lock(&self.reports);
        let lines = &mut reports.lines;
        if lines.len() + line.len() > MAX_REPORTS {
            // So many that most of the following lines move nothing.
            let end = lines.bytes().skip(HALF).position(|byte| byte == b'\n');
            lines.drain(..end.map_or(lines.len(), |end| HALF + end + 1));
        }
        lines.push_str(&line);
        reports.count += 1;
    }

    /// How many reports there have been, and the latest of them; `None` if there are only `known`.
    pub fn reports_after(&self, known: u64) -> Option<(u64, String)> {
        let reports = lock(&self.reports);
        (reports.count > known).then(|| (reports.count, reports.lines.clone()))
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
    fn reports_are_lines_and_each_is_new_once() {
        let activity = Activity::default();
        assert_eq!(activity.reports_after(0), None);
        activity.report(&json!({"a": 1}));
        activity.report(&json!({"b": "2\n"}));
        assert!(activity.take());
        let lines = "{\"a\":1}\n{\"b\":\"2\\n\"}\n".to_owned();
        assert_eq!(activity.reports_after(0), Some((2, lines.clone())));
        assert_eq!(activity.reports_after(1), Some((2, lines)));
        assert_eq!(activity.reports_after(2), None);
    }

    #[test]
    fn a_handler_that_reports_without_end_takes_a_bounded_memory() {
        let activity = Activity::default();
        let long = "é".repeat(MAX_REPORTS / 10);
        for number in 0..40 {
            activity.report(&json!({ "number": number, "long": long }));
        }
        let (count, lines) = activity.reports_after(0).unwrap();
        assert_eq!(count, 40);
        assert!(lines.len() <= MAX_REPORTS, "{}", lines.len());
        let numbers: Vec<Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(numbers.len() > 1 && numbers.last().unwrap()["number"] == 39);
        activity.report(&json!("x".repeat(MAX_REPORTS)));
        assert_eq!(activity.reports_after(0), Some((count, lines)));
    }
}
