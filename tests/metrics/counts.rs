//! The metrics of one pod.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use leasehold::job::delivery::{MessageId, Redrive, SqsAttributes};
use leasehold::job::keep_reason::KeepReason;
use leasehold::job::notification::Object;
use leasehold::job::outcome::{Exit, ResourceUsage, Timings, WorkRecord};
use leasehold::job::report::{
    DeleteResult, Ended, ExtendResult, Observation, Progress, Progressed, Subject,
};
use leasehold::job::verdict::{Completion, Return, Settlement};
use leasehold::telemetry::metrics::Metrics;

use super::value;

const S: Duration = Duration::from_secs(1);

fn metrics() -> Metrics {
    Metrics::new("orders", Some(Box::new(|| 0)), SystemTime::UNIX_EPOCH + 1_000 * S)
}

fn subject(receive_count: u32) -> Subject {
    let object = Object { size: Some(1_000_000), ..Object::named("inbox", "k") };
    Subject {
        job_type: Some("default".to_owned()),
        message_id: MessageId::new("m"),
        receive_count,
        redrive: Redrive::DeadLetter { max_receive_count: 3, queue: "orders-dlq".to_owned() },
        sent_at: Some(SystemTime::UNIX_EPOCH + 988 * S),
        first_received_at: None,
        group_id: None,
        deduplication_id: None,
        idempotency_key: None,
        traceparent: None,
        attributes: BTreeMap::new(),
        sqs: SqsAttributes::default(),
        body_sha256: String::new(),
        objects: vec![object],
    }
}

fn ended(receive_count: u32, settlement: Settlement) -> Ended {
    Ended {
        subject: Arc::new(subject(receive_count)),
        settlement,
        progress: None,
        work: WorkRecord {
            exit: Some(Exit::Code(1)),
            timings: Timings {
                receive: S / 2,
                fetch: 2 * S,
                turn: Duration::ZERO,
                command: 70 * S,
                publish: S,
                settle: S / 100,
                total: Duration::from_millis(73_010),
            },
            usage: Some(ResourceUsage { cpu: 60 * S, peak_memory: Some(5_000_000) }),
            ..WorkRecord::default()
        },
    }
}

/// Records every kind of observation and report.
fn record_everything(metrics: &Metrics) {
    for observation in [
        Observation::ReceivedNothing,
        Observation::ReceiveFailed,
        Observation::Extend(ExtendResult::Extended),
        Observation::Extend(ExtendResult::Failed),
        Observation::Extend(ExtendResult::LeaseLost),
        Observation::Extend(ExtendResult::AtCeiling),
        Observation::Delete(DeleteResult::Deleted),
        Observation::Delete(DeleteResult::Failed),
        Observation::LeaseRemaining(80 * S),
    ] {
        metrics.record(observation);
    }
    let failed = KeepReason::CommandFailed(Exit::Code(1));
    metrics.started(&subject(1), SystemTime::UNIX_EPOCH + 1_000 * S);
    metrics.ended(&ended(1, Settlement::Kept(failed.clone(), Return::After(10 * S))));
    metrics.started(&subject(3), SystemTime::UNIX_EPOCH + 1_100 * S);
    let mut succeeded = ended(3, Settlement::Deleted(Completion::Succeeded));
    succeeded.work.metrics.set("rows", 5.0).unwrap();
    metrics.ended(&succeeded);
    let progress = Progress { share: Some(0.4), text: None };
    metrics.progressed(&Progressed { subject: Arc::new(subject(3)), progress });
    metrics.stopped("SIGTERM");
    metrics.pushes_every(15 * S);
    metrics.pushed(true);
    metrics.pushed(false);
    metrics.finished(0, SystemTime::UNIX_EPOCH + 1_200 * S);
}

/// A Pushgateway answers 400 to a push whose types or help texts differ from those of another
/// group, so they can never change: this test shows a clash between two versions of leasehold.
#[test]
fn names_types_and_help_texts_do_not_change() {
    let metrics = metrics();
    record_everything(&metrics);
    let text = metrics.text().replace(env!("CARGO_PKG_VERSION"), "VERSION");
    insta::assert_snapshot!(text);
}

#[test]
fn one_pod_has_few_series() {
    let metrics = metrics();
    record_everything(&metrics);
    let text = metrics.text();
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series <= 70, "{series} series");
}

#[test]
fn the_numbers_of_a_success_are_the_last_values_of_few_names() {
    let metrics = metrics();
    let end = |settlement: Settlement, names: &[&str], value: f64| {
        let mut ended = ended(1, settlement);
        for name in names {
            ended.work.metrics.set(name, value).unwrap();
        }
        metrics.ended(&ended);
    };
    let succeeded = || Settlement::Deleted(Completion::Succeeded);
    end(succeeded(), &["rows"], 4.0);
    end(succeeded(), &["rows"], 5.0);
    let temporary = KeepReason::Temporary(Exit::Code(75));
    end(Settlement::Kept(temporary, Return::Unknown), &["rows", "failed"], 6.0);
    end(succeeded(), &["a", "b", "c", "d", "e", "f", "g", "h"], 1.0);
    let text = metrics.text();
    let of = |name: &str| value(&text, &format!("leasehold_command_result{{name=\"{name}\"}}"));
    assert_eq!((of("rows"), of("failed"), of("g"), of("h")), (Some(5.0), None, Some(1.0), None));
}

#[test]
fn failures_stops_and_last_attempts_have_separate_series() {
    let metrics = metrics();
    let failed = || KeepReason::CommandFailed(Exit::Code(1));
    for (receive_count, why, returns) in [
        (1, failed(), Return::After(S)),
        (3, failed(), Return::After(S)),
        (1, KeepReason::Stopped, Return::After(Duration::ZERO)),
        (1, KeepReason::LeaseLost("late".to_owned()), Return::Unknown),
    ] {
        metrics.started(&subject(receive_count), SystemTime::UNIX_EPOCH + 1_000 * S);
        metrics.ended(&ended(receive_count, Settlement::Kept(why, returns)));
    }
    let text = metrics.text();
    let of = |series: &str| value(&text, &format!("leasehold_{series}"));
    assert_eq!(of(r#"failures_total{reason="command_failed",final_attempt="false"}"#), Some(1.0));
    assert_eq!(of(r#"failures_total{reason="command_failed",final_attempt="true"}"#), Some(1.0));
    assert_eq!(of(r#"failures_total{reason="stopped"}"#), None);
    assert_eq!(of(r#"messages_processed_total{outcome="stopped"}"#), Some(1.0));
    assert_eq!(of(r#"work_discarded_seconds_total{reason="stopped"}"#), Some(73.0));
    assert_eq!(of(r#"releases_total{cause="stopped"}"#), Some(1.0));
    assert_eq!(of(r#"releases_total{cause="lease_lost"}"#), None);
    assert_eq!((of("leases_lost_total"), of("messages_in_flight")), (Some(1.0), Some(0.0)));
    assert_eq!(
        (of("messages_received_total"), of("message_retries_total")),
        (Some(4.0), Some(1.0))
    );
    assert_eq!(of("first_receive_lag_seconds_count"), Some(3.0));
    assert_eq!(of("first_receive_lag_seconds_sum"), Some(36.0));
}
