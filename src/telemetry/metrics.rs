//! The metrics of a run, for Prometheus.
//!
//! A pod counts from zero and is gone after one message, so `rate()` over these is meaningless;
//! `grafana/README.md` has expressions that work. Labels come from closed sets: no key, no message
//! id, no error text. With one job type there are at most 70 series, since a Pushgateway keeps them
//! for every pod.
//!
//! Names, types and help texts must never change: a Pushgateway refuses a push that disagrees with
//! another group.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, Opts,
    Registry, TextEncoder,
};

use super::attempts::DIED;
use crate::job::keep_reason::{Severity, Visible};
use crate::job::outcome::{CommandMetrics, WorkRecord};
use crate::job::report::{Ended, Observation, Progressed, Subject};
use crate::job::route::Task;
use crate::job::verdict::{Completion, Return, Settlement};

/// The metrics of one process.
pub struct Metrics {
    registry: Registry,
    /// `None` if the log is not ours.
    dropped: Option<Dropped>,
    run_finished: GaugeVec,
    run_exit_code: GaugeVec,
    messages_received: Counter,
    messages_in_flight: Gauge,
    message_retries: Counter,
    empty_receives: Counter,
    receive_errors: Counter,
    first_receive_lag: Histogram,
    receive_count: GaugeVec,
    max_receive_count: GaugeVec,
    messages_processed: CounterVec,
    failures: CounterVec,
    processing_duration: HistogramVec,
    phase: CounterVec,
    object_bytes: CounterVec,
    progress: GaugeVec,
    command_cpu: CounterVec,
    command_peak_memory: GaugeVec,
    command_result: GaugeVec,
    /// The names in `command_result`.
    result_names: Mutex<BTreeSet<String>>,
    log_lines_dropped: Counter,
    visibility_extensions: CounterVec,
    lease_remaining: GaugeVec,
    leases_lost: Counter,
    releases: CounterVec,
    deletes: CounterVec,
    work_discarded: CounterVec,
    stops: CounterVec,
    pushes: CounterVec,
    push_interval: GaugeVec,
}

/// Counts the lost log records.
pub type Dropped = Box<dyn Fn() -> usize + Send + Sync>;

impl Metrics {
    /// The metrics of a run that begins `now`. `queue` is the queue's name, a label of every
    /// metric; `dropped` counts the lost log records.
    pub fn new(queue: &str, dropped: Option<Dropped>, now: SystemTime) -> Self {
        Self::define(&Definitions::new(queue), dropped, now)
    }

    /// The name, type, help and labels of each metric.
    pub fn described() -> Vec<(Desc, &'static str)> {
        let of = Definitions { described: Some(RefCell::default()), ..Definitions::new("") };
        drop(Self::define(&of, None, SystemTime::UNIX_EPOCH));
        of.described.map(RefCell::into_inner).unwrap_or_default()
    }

    #[expect(clippy::too_many_lines, reason = "a list, an entry for each metric")]
    fn define(of: &Definitions, dropped: Option<Dropped>, now: SystemTime) -> Self {
        let build_info = of.gauges(
            "build_info",
            "Always 1; the label version is the version of leasehold.",
            &["version"],
        );
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        of.counter("jobs_launched_total", "Runs started, one per pod.").inc();
        of.gauge("run_started_timestamp_seconds", "Start time of the run, in seconds since 1970.")
            .set(unix(now));
        Self {
            run_finished: of.gauges(
                "run_finished_timestamp_seconds",
                "End time of the run, in seconds since 1970; missing while it runs, and for a pod that ended without reporting.",
                &[],
            ),
            run_exit_code: of.gauges("run_exit_code", "Exit code of a run that ended.", &[]),
            messages_received: of.counter("messages_received_total", "Messages received."),
            messages_in_flight: of.gauge("messages_in_flight", "Messages in flight in this pod now."),
            message_retries: of.counter("message_retries_total", "Messages received with a receive count above 1."),
            empty_receives: of.counter("empty_receives_total", "Receive requests that returned no message."),
            receive_errors: of.counter("receive_errors_total", "Receive requests that failed and were retried."),
            first_receive_lag: of.histogram(
                "first_receive_lag_seconds",
                "Time from a message's send to its first receive, in seconds.",
                &[5.0, 30.0, 300.0, 3600.0],
            ),
            receive_count: of.gauges(
                "receive_count",
                "Receive count of the last message; 1 is the first receive.",
                &[],
            ),
            max_receive_count: of.gauges(
                "max_receive_count",
                "Number of receives after which the queue moves a message to its dead-letter queue (maxReceiveCount); missing if it has none.",
                &[],
            ),
            messages_processed: of.counters(
                "messages_processed_total",
                "Messages settled, by outcome.",
                &["job_type", "outcome"],
            ),
            failures: of.counters(
                "failures_total",
                "Messages kept because of a failure (not because of a stop), by reason and by whether this was the last attempt before the dead-letter queue.",
                &["job_type", "reason", "final_attempt"],
            ),
            processing_duration: of.histograms(
                "processing_duration_seconds",
                "Time from a message's receive to its settlement, in seconds; only for messages with work.",
                &["job_type"],
                &[10.0, 60.0, 600.0, 3600.0, 14_400.0, 43_200.0],
            ),
            phase: of.counters(
                "phase_seconds_total",
                "Time spent on messages, in seconds, by phase: receive (mostly waiting), fetch, command, publish, settle.",
                &["job_type", "phase"],
            ),
            object_bytes: of.counters(
                "object_bytes_total",
                "Bytes of the objects that were processed.",
                &["job_type"],
            ),
            progress: of.gauges(
                "progress_ratio",
                "Progress that the command reported for the last message, from 0 to 1; missing if it reports none.",
                &["job_type"],
            ),
            command_cpu: of.counters(
                "command_cpu_seconds_total",
                "User and system CPU time of the commands, in seconds.",
                &["job_type"],
            ),
            command_peak_memory: of.gauges(
                "command_peak_memory_bytes",
                "Peak memory of the largest process of the last message's commands, in bytes.",
                &["job_type"],
            ),
            command_result: of.gauges(
                "command_result",
                "Numbers that the command reported for the last message that succeeded, by name.",
                &["job_type", "name"],
            ),
            result_names: Mutex::default(),
            log_lines_dropped: of.counter(
                "log_lines_dropped_total",
                "Log records lost because the log was not read fast enough.",
            ),
            visibility_extensions: of.counters(
                "visibility_extensions_total",
                "Extensions of the visibility timeout, by result: extended, failed (and retried), lease_lost, at_ceiling (SQS's limit of 12 hours).",
                &["result"],
            ),
            lease_remaining: of.gauges(
                "lease_remaining_seconds",
                "Remaining time of the lease at the verdict on the last message, in seconds.",
                &[],
            ),
            leases_lost: of.counter("leases_lost_total", "Leases that ended before their message was settled."),
            releases: of.counters(
                "releases_total",
                "Messages made visible again before the end of their visibility timeout, by the reason why they were kept.",
                &["cause"],
            ),
            deletes: of.counters(
                "deletes_total",
                "Deletes, by result: deleted, failed (and retried), refused, lease_lost, withdrawn (not sent).",
                &["result"],
            ),
            work_discarded: of.counters(
                "work_discarded_seconds_total",
                "Time spent on work that has to be repeated, in seconds, by reason.",
                &["job_type", "reason"],
            ),
            stops: of.counters("stops_total", "Stop requests, by signal.", &["signal"]),
            push_interval: of.gauges(
                "push_interval_seconds",
                "Interval between pushes, in seconds; a pod that has not pushed for much longer is gone.",
                &[],
            ),
            pushes: of.counters("pushes_total", "Pushes to the Pushgateway, by result: pushed, failed.", &["result"]),
            dropped,
            registry: of.registry.clone(),
        }
    }

    pub fn started(&self, subject: &Subject, now: SystemTime) {
        self.messages_received.inc();
        self.messages_in_flight.inc();
        self.receive_count.with_label_values::<&str>(&[]).set(subject.receive_count.into());
        if let Some(max) = subject.redrive.max_receive_count() {
            self.max_receive_count.with_label_values::<&str>(&[]).set(max.into());
        }
        match subject.sent_at {
            _ if subject.receive_count > 1 => self.message_retries.inc(),
            // With two clocks, the receive may seem to come before the send.
            Some(sent_at) => self
                .first_receive_lag
                .observe(seconds(now.duration_since(sent_at).unwrap_or_default())),
            None => {}
        }
    }

    pub fn progressed(&self, progressed: &Progressed) {
        if let Some(share) = progressed.progress.share {
            self.progress.with_label_values(&[job_type(&progressed.subject)]).set(share);
        }
    }

    pub fn ended(&self, ended: &Ended) {
        let Ended { subject, settlement, work, .. } = ended;
        let WorkRecord { timings, usage, metrics, .. } = work;
        let job_type = job_type(subject);
        self.messages_in_flight.dec();
        self.messages_processed.with_label_values(&[job_type, ended.outcome()]).inc();
        if subject.job_type.is_some() {
            self.processing_duration.with_label_values(&[job_type]).observe(seconds(timings.total));
            let bytes: u64 = subject.objects.iter().filter_map(|object| object.size).sum();
            #[expect(
                clippy::cast_precision_loss,
                reason = "a metric's value is a float; exact up to 8 PiB"
            )]
            self.object_bytes.with_label_values(&[job_type]).inc_by(bytes as f64);
        }
        if let Some(used) = usage {
            self.command_cpu.with_label_values(&[job_type]).inc_by(seconds(used.cpu));
            #[expect(
                clippy::cast_precision_loss,
                reason = "a metric's value is a float; exact up to 8 PiB"
            )]
            match used.peak_memory {
                Some(bytes) => {
                    self.command_peak_memory.with_label_values(&[job_type]).set(bytes as f64);
                }
                // An error means that the metric was never set.
                None => drop(self.command_peak_memory.remove_label_values(&[job_type])),
            }
        }
        let phases = [
            ("receive", timings.receive),
            ("fetch", timings.fetch),
            ("command", timings.command),
            ("publish", timings.publish),
            ("settle", timings.settle),
        ];
        for (phase, spent) in phases {
            self.phase.with_label_values(&[job_type, phase]).inc_by(seconds(spent));
        }
        if *settlement == Settlement::Deleted(Completion::Succeeded) {
            self.reported(job_type, metrics);
        }
        let Settlement::Kept(reason, returns) = settlement else { return };
        let discarded = seconds(timings.fetch + timings.command + timings.publish);
        self.work_discarded.with_label_values(&[job_type, reason.label()]).inc_by(discarded);
        if let Return::After(_) = returns {
            self.releases.with_label_values(&[reason.label()]).inc();
        }
        let row = reason.row();
        if row.visible == Visible::ByItself {
            self.leases_lost.inc();
        }
        if row.severity != Severity::AsPlanned {
            let is_final = subject.redrive.is_final(subject.receive_count);
            self.failures
                .with_label_values(&[
                    job_type,
                    reason.label(),
                    if is_final { "true" } else { "false" },
                ])
                .inc();
        }
    }

    /// An earlier attempt on this message ended without a report.
    pub fn died(&self, subject: &Subject, attempt: u32) {
        let job_type = job_type(subject);
        let is_final = if subject.redrive.is_final(attempt) { "true" } else { "false" };
        self.messages_processed.with_label_values(&[job_type, DIED]).inc();
        self.failures.with_label_values(&[job_type, DIED, is_final]).inc();
    }

    /// Of all messages together, the first names count: a Pushgateway keeps every series.
    fn reported(&self, job_type: &str, metrics: &CommandMetrics) {
        let mut names = self.result_names.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in metrics.iter() {
            if !names.contains(name) {
                if names.len() == CommandMetrics::MOST {
                    continue;
                }
                names.insert(name.to_owned());
            }
            self.command_result.with_label_values(&[job_type, name]).set(value);
        }
    }

    pub fn record(&self, observation: Observation) {
        match observation {
            Observation::ReceivedNothing => self.empty_receives.inc(),
            Observation::ReceiveFailed => self.receive_errors.inc(),
            Observation::Extend(extension) => {
                self.visibility_extensions.with_label_values(&[extension.label()]).inc();
            }
            Observation::Delete(delete) => self.deletes.with_label_values(&[delete.label()]).inc(),
            Observation::LeaseRemaining(left) => {
                self.lease_remaining.with_label_values::<&str>(&[]).set(seconds(left));
            }
        }
    }

    /// `signal` is its name: `SIGTERM`.
    pub fn stopped(&self, signal: &str) {
        self.stops.with_label_values(&[signal]).inc();
    }

    /// The run ended `now`.
    pub fn finished(&self, exit_code: u8, now: SystemTime) {
        self.run_finished.with_label_values::<&str>(&[]).set(unix(now));
        self.run_exit_code.with_label_values::<&str>(&[]).set(exit_code.into());
    }

    /// Sets the interval between pushes.
    pub fn pushes_every(&self, interval: Duration) {
        self.push_interval.with_label_values::<&str>(&[]).set(seconds(interval));
    }

    /// Counts a push, by its result.
    pub fn pushed(&self, is_pushed: bool) {
        self.pushes.with_label_values(&[if is_pushed { "pushed" } else { "failed" }]).inc();
    }

    /// In Prometheus' text format, version 0.0.4, without timestamps (a Pushgateway refuses those).
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Only a metric without a name or a series is an error, and a registry has none.
        let _ = TextEncoder::new().encode(&self.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    fn gather(&self) -> Vec<MetricFamily> {
        if let Some(dropped) = &self.dropped {
            self.log_lines_dropped.reset();
            #[expect(clippy::cast_precision_loss, reason = "a metric's value is a float")]
            self.log_lines_dropped.inc_by(dropped() as f64);
        }
        self.registry.gather()
    }
}

/// The metrics of a run as a part of another registry.
pub struct Collected {
    metrics: Arc<Metrics>,
    described: Vec<Desc>,
}

impl Collected {
    /// `queue` is the one of [`Metrics::new`].
    pub fn new(metrics: Arc<Metrics>, queue: &str) -> Self {
        let described = Metrics::described().into_iter().map(|(of, _)| {
            // With the label, a registry accepts the metrics of several queues.
            let labels = [("queue".to_owned(), queue.to_owned())].into();
            Desc::new(of.fq_name, of.help, of.variable_labels, labels).expect("they were valid")
        });
        Self { metrics, described: described.collect() }
    }
}

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        self.described.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.metrics.gather()
    }
}

/// Creates metrics and registers them.
struct Definitions {
    registry: Registry,
    /// The list of metrics, if it was requested.
    described: Option<RefCell<Vec<(Desc, &'static str)>>>,
}

impl Definitions {
    fn new(queue: &str) -> Self {
        let labels = Some([("queue".to_owned(), queue.to_owned())].into());
        let registry = Registry::new_custom(None, labels).expect("a label's name is fixed");
        Self { registry, described: None }
    }

    fn registered<M: Collector + Clone + 'static>(
        &self,
        kind: &'static str,
        metric: prometheus::Result<M>,
    ) -> M {
        let metric = metric.expect("names and labels are fixed, and a test creates all metrics");
        if let Some(described) = &self.described {
            described
                .borrow_mut()
                .extend(metric.desc().into_iter().cloned().map(|desc| (desc, kind)));
        }
        self.registry.register(Box::new(metric.clone())).expect("names are unique");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> Counter {
        self.registered("counter", Counter::with_opts(opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.registered("counter", CounterVec::new(opts(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.registered("gauge", Gauge::with_opts(opts(name, help)))
    }

    /// Has no value until it is set, even without labels.
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.registered("gauge", GaugeVec::new(opts(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.registered("histogram", Histogram::with_opts(opts))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.registered("histogram", HistogramVec::new(opts, labels))
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("leasehold_{name}"), help)
}

/// Rounded to milliseconds.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

fn unix(at: SystemTime) -> f64 {
    seconds(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// Messages without work count as those without a job type.
fn job_type(subject: &Subject) -> &str {
    subject.job_type.as_deref().unwrap_or(Task::DEFAULT)
}
