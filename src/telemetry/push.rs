//! Pushes the metrics to a Prometheus Pushgateway, and sweeps away what pods left there.
//!
//! One group for each pod, `job`, `namespace` and `instance` its key: pods never overwrite each other, and each push replaces
//! what the pod pushed before. A Pushgateway keeps groups for ever, hence [`sweep`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::metrics::Metrics;
use crate::ports::http::{Answer, Http};

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(3);

/// A Pushgateway, and the job name under which this program's groups are kept there.
#[derive(Debug)]
pub struct Pushgateway {
    http: Http,
    /// Without a slash at its end; may have a path.
    url: String,
    job: String,
    credentials: Option<Credentials>,
}

/// A file that says who we are. It is read at each request: secrets are rotated while pods run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// `user:password`
    Basic(PathBuf),
    Bearer(PathBuf),
}

/// Labels that name one group, the job among them.
type Group = BTreeMap<String, String>;

impl Pushgateway {
    pub fn new(http: Http, url: &str, job: String, credentials: Option<Credentials>) -> Self {
        Self { http, url: url.trim_end_matches('/').to_owned(), job, credentials }
    }

    /// Asks whether it is ready. The error says why it is not.
    pub async fn reach(&self) -> Result<(), String> {
        self.send("GET", "/-/ready", String::new()).await.map(drop)
    }

    async fn send(&self, method: &str, path: &str, body: String) -> Result<Answer, String> {
        let mut headers = vec![("content-type", "text/plain; version=0.0.4".to_owned())];
        if let Some(credentials) = &self.credentials {
            let header = credentials.header().map_err(|error| format!("the credentials cannot be read: {error}"))?;
            headers.push(("authorization", header));
        }
        let url = format!("{}{path}", self.url);
        let answer = self.http.send(method, &url, &headers, body, LIMIT).await?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let words: String = answer.body.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
        Err(format!("HTTP {}: {words}", answer.status))
    }
}

impl Credentials {
    /// The value of the header `Authorization`.
    pub fn header(&self) -> Result<String, String> {
        let (Self::Basic(path) | Self::Bearer(path)) = self;
        let secret = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        Ok(match self {
            Self::Basic(_) => format!("Basic {}", STANDARD.encode(secret.trim())),
            Self::Bearer(_) => format!("Bearer {}", secret.trim()),
        })
    }
}

/// The path of a group. A value that a path cannot hold is encoded as the Pushgateway wants it.
fn path(group: &Group) -> String {
    let part = |(name, value): (&String, &String)| {
        if value.is_empty() {
            format!("/{name}@base64/=")
        } else if value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            format!("/{name}/{value}")
        } else {
            format!("/{name}@base64/{}", URL_SAFE.encode(value))
        }
    };
    // The job comes first, wherever its name would be in the alphabet.
    let job = group.iter().filter(|(name, _)| *name == "job");
    let rest = group.iter().filter(|(name, _)| *name != "job");
    format!("/metrics{}", job.chain(rest).map(part).collect::<String>())
}

/// Pushes at once, then every interval, and a last time when it is told to.
pub struct Pusher {
    last: Arc<Notify>,
    pushing: AbortOnDropHandle<()>,
}

impl Pusher {
    /// `namespace` and `instance` tell this pod from others.
    pub fn start(
        gateway: Pushgateway,
        metrics: Arc<Metrics>,
        namespace: Option<String>,
        instance: String,
        interval: Duration,
    ) -> Self {
        let labels = [("job", Some(gateway.job.clone())), ("namespace", namespace), ("instance", Some(instance))];
        let group: Group = labels.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        metrics.pushes_every(interval);
        let last = Arc::new(Notify::new());
        let is_last = last.clone();
        let pushing = tokio::spawn(async move {
            let (path, mut failing) = (path(&group), false);
            loop {
                let pushed = gateway.send("PUT", &path, metrics.text()).await;
                metrics.pushed(pushed.is_ok());
                // An outage is told once, not every interval.
                match pushed {
                    Ok(_) if failing => info!("the metrics are pushed again"),
                    Err(ref error) if !failing => {
                        warn!(error, "the metrics could not be pushed, and this will be tried again");
                    }
                    Ok(_) | Err(_) => {}
                }
                failing = pushed.is_err();
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = is_last.notified() => break,
                }
            }
            if let Err(error) = gateway.send("PUT", &path, metrics.text()).await {
                warn!(error, "the last metrics could not be pushed");
            }
        });
        Self { last, pushing: AbortOnDropHandle::new(pushing) }
    }

    /// The last push, given up after `limit`. A push that is out is awaited first, so that it cannot overwrite the last one.
    pub async fn finish(self, limit: Duration) {
        self.last.notify_one();
        if tokio::time::timeout(limit, self.pushing).await.is_err() {
            warn!("the last metrics could not be pushed within {limit:?}");
        }
    }
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Groups of our job.
    pub found: usize,
    pub deleted: usize,
    pub failed: usize,
}

/// Deletes the groups of pods that finished more than `older_than` ago, and of pods that died without a last word: silent
/// for that long too, and for 20 of their own push intervals. Groups of other jobs are not touched.
pub async fn sweep(gateway: &Pushgateway, older_than: Duration, now: SystemTime) -> Result<Swept, String> {
    let answer = gateway.send("GET", "/api/v1/metrics", String::new()).await?;
    let groups: Groups = serde_json::from_str(&answer.body)
        .map_err(|error| format!("{} answers as no Pushgateway does: {error}", gateway.url))?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut swept = Swept::default();
    for group in groups.data.iter().filter(|group| group.labels.get("job") == Some(&gateway.job)) {
        swept.found += 1;
        if !group.is_left_over(older_than, now) {
            continue;
        }
        match gateway.send("DELETE", &path(&group.labels), String::new()).await {
            Ok(_) => swept.deleted += 1,
            Err(error) => {
                swept.failed += 1;
                warn!(instance = group.labels.get("instance"), error, "a group could not be deleted");
            }
        }
    }
    Ok(swept)
}

/// After so many push intervals without a push a pod counts as dead.
const SILENT_INTERVALS: f64 = 20.0;

/// What a Pushgateway answers to `GET /api/v1/metrics`.
#[derive(Deserialize)]
struct Groups {
    data: Vec<Pushed>,
}

#[derive(Deserialize)]
struct Pushed {
    labels: Group,
    /// When it was last pushed, in seconds since 1970 by the gateway's clock.
    push_time_seconds: Family,
    leasehold_run_finished_timestamp_seconds: Option<Family>,
    leasehold_push_interval_seconds: Option<Family>,
}

#[derive(Deserialize)]
struct Family {
    metrics: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    value: String,
}

impl Family {
    fn value(&self) -> Option<f64> {
        self.metrics.first()?.value.parse().ok()
    }
}

impl Pushed {
    fn is_left_over(&self, older_than: Duration, now: f64) -> bool {
        let older_than = older_than.as_secs_f64();
        let value = |family: &Option<Family>| family.as_ref().and_then(Family::value);
        if let Some(finished_at) = value(&self.leasehold_run_finished_timestamp_seconds) {
            return finished_at + older_than < now;
        }
        let silent = SILENT_INTERVALS * value(&self.leasehold_push_interval_seconds).unwrap_or_default();
        self.push_time_seconds.value().is_some_and(|pushed_at| pushed_at + silent.max(older_than) < now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_groups_path_begins_with_its_job_and_holds_any_value() {
        let group = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            path(&labels.collect())
        };
        assert_eq!(group(&[("instance", "pod-1"), ("job", "leasehold")]), "/metrics/job/leasehold/instance/pod-1");
        assert_eq!(group(&[("instance", "a/b c"), ("job", "")]), "/metrics/job@base64/=/instance@base64/YS9iIGM=");
    }

    #[test]
    fn a_group_is_left_over_when_its_pod_is_surely_gone() {
        let is_left_over = |finished: Option<&str>, pushed: &str, interval: Option<&str>| {
            let family = |value: &str| Family { metrics: vec![Sample { value: value.to_owned() }] };
            let pushed = Pushed {
                labels: Group::new(),
                push_time_seconds: family(pushed),
                leasehold_run_finished_timestamp_seconds: finished.map(family),
                leasehold_push_interval_seconds: interval.map(family),
            };
            pushed.is_left_over(Duration::from_mins(10), 10_000.0)
        };
        assert!(is_left_over(Some("9399"), "9399", Some("15")), "it finished long enough ago");
        assert!(!is_left_over(Some("9401"), "9401", Some("15")), "it finished just now");
        assert!(is_left_over(None, "9399", Some("15")), "it died without a last word");
        assert!(!is_left_over(None, "9401", Some("15")), "it was heard of just now");
        assert!(!is_left_over(None, "9399", Some("60")), "it pushes so seldom that it may live");
        assert!(is_left_over(None, "8799", Some("60")), "it would have pushed by now");
    }
}
