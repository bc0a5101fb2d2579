//! Metrics and log records: their values and targets, and that they never change an outcome.

mod accuracy;
mod counts;
mod dashboard;
mod probes;
mod pushgateway;
mod records;

use std::time::Duration;

use leasehold::adapters::http::{Answer, Http};

/// A request to a local server.
async fn get(url: &str) -> Result<Answer, String> {
    Http::new(None).send("GET", url, &[], "", Duration::from_secs(5)).await
}

/// The value of the only series in `text` with this name and these labels; `queue`, which all have,
/// is omitted.
fn value(text: &str, series: &str) -> Option<f64> {
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels: Vec<&str> =
        labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()).collect();
    let is_it = |line: &&str| {
        let (of, _) = line.rsplit_once(' ').unwrap();
        let (is, given) = of.split_once('{').unwrap_or((of, ""));
        is == name && labels.iter().all(|label| given.contains(label))
    };
    let mut found =
        text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).filter(is_it);
    let value = found.next()?.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(found.next().is_none(), "several series {series} in\n{text}");
    Some(value)
}
