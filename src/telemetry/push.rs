//! Pushes the metrics to a Prometheus Pushgateway, and deletes the groups of finished or dead pods.
//!
//! Each pod has one group with the key `job`, `namespace` and `instance`: pods never overwrite each
//! other, and each push replaces the pod's previous one. A Pushgateway keeps groups forever, hence
//! [`sweep`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::metrics::Metrics;
use crate::adapters::http::secrets::{self, REDACTED};
use crate::adapters::http::{Answer, AnswerLimit, Http};

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(3);

/// The limits of the list of all groups.
const LISTING: AnswerLimit = AnswerLimit { time: Duration::from_secs(30), bytes: 64 << 20 };

/// A Pushgateway, and the job name of this program's groups.
#[derive(Debug)]
pub struct Pushgateway {
    http: Http,
    /// Without a trailing slash; may have a path.
    url: String,
    job: String,
    credentials: Option<Credentials>,
}

/// A file with credentials. It is read at each request: secrets are rotated while pods run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// `user:password`
    Basic(PathBuf),
    Bearer(PathBuf),
}

/// The labels of one group, including the job.
type Group = BTreeMap<String, String>;

impl Pushgateway {
    pub fn new(http: Http, url: &str, job: String, credentials: Option<Credentials>) -> Self {
        Self { http, url: url.trim_end_matches('/').to_owned(), job, credentials }
    }

    /// Checks that the Pushgateway is ready. The error is the reason why it is not.
    pub async fn reach(&self) -> Result<(), String> {
        self.send("GET", "/-/ready", String::new(), LIMIT.into()).await.map(drop)
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: String,
        limit: AnswerLimit,
    ) -> Result<Answer, String> {
        let mut secret = None;
        let mut headers = vec![("content-type", "text/plain; version=0.0.4".to_owned())];
        if let Some(credentials) = &self.credentials {
            let read = credentials
                .read()
                .map_err(|error| format!("the credentials cannot be read: {error}"))?;
            headers.push(("authorization", read.header()));
            secret = Some(read);
        }
        let url = format!("{}{path}", self.url);
        let answer = self.http.send(method, &url, &headers, body, limit).await?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let text =
            secret.map_or_else(|| answer.body.clone(), |secret| secret.redacted(&answer.body));
        let text: String =
            text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
        let text: String = text.chars().flat_map(escaped).collect();
        Err(format!("HTTP {}: {text}", answer.status))
    }
}

impl Credentials {
    /// The file at `path`, which must have `user:password`.
    pub fn basic(path: &str) -> Result<Self, String> {
        Self::Basic(path.into()).readable()
    }

    /// The file at `path`, which must have a token.
    pub fn bearer(path: &str) -> Result<Self, String> {
        Self::Bearer(path.into()).readable()
    }

    fn readable(self) -> Result<Self, String> {
        self.read().map(|_| self)
    }

    pub fn read(&self) -> Result<Secret, String> {
        let (Self::Basic(path) | Self::Bearer(path)) = self;
        let text =
            std::fs::read_to_string(path).map_err(|error| error.to_string())?.trim().to_owned();
        if text.chars().any(char::is_control) {
            return Err("it has more than one line".to_owned());
        }
        Ok(match self {
            Self::Basic(_) => Secret::Basic(text),
            Self::Bearer(_) => Secret::Bearer(text),
        })
    }
}

/// The content of a credentials file. It must never appear in a log or a message.
pub enum Secret {
    /// `user:password`
    Basic(String),
    Bearer(String),
}

impl Secret {
    /// The value of the header `Authorization`.
    fn header(&self) -> String {
        match self {
            Self::Basic(text) => format!("Basic {}", STANDARD.encode(text)),
            Self::Bearer(text) => format!("Bearer {text}"),
        }
    }

    /// A server's answer without the secret, plain or encoded. If the secret is too short to be
    /// distinguished from other words, the whole answer is redacted.
    fn redacted(&self, answer: &str) -> String {
        let (Self::Basic(text) | Self::Bearer(text)) = self;
        let password = match self {
            Self::Basic(text) => text.split_once(':').map(|(_, password)| password),
            Self::Bearer(_) => None,
        };
        let secrets: Vec<&str> = [Some(text.as_str()), password]
            .into_iter()
            .flatten()
            .filter(|it| !it.is_empty())
            .collect();
        if secrets.iter().any(|secret| secret.len() < SHORTEST_SECRET) {
            return REDACTED.to_owned();
        }
        secrets::redacted(answer, &secrets)
    }
}

/// The character, escaped if it controls a terminal.
fn escaped(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

/// A shorter secret cannot be distinguished from other words.
const SHORTEST_SECRET: usize = 4;

/// The path of a group. Values that are not valid in a path are encoded in the Pushgateway's way.
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
    // The job must come first.
    let job = group.iter().filter(|(name, _)| *name == "job");
    let rest = group.iter().filter(|(name, _)| *name != "job");
    format!("/metrics{}", job.chain(rest).map(part).collect::<String>())
}

/// Pushes at once, then at every interval, and a last time at [`Self::finish`].
pub struct Pusher {
    last: Arc<Notify>,
    last_limit: Duration,
    pushing: AbortOnDropHandle<()>,
}

impl Pusher {
    /// `namespace` and `instance` identify this pod. `last_limit` is the limit of the last push,
    /// including the wait for a running one.
    pub fn start(
        gateway: Pushgateway,
        metrics: Arc<Metrics>,
        namespace: Option<String>,
        instance: String,
        interval: Duration,
        last_limit: Duration,
    ) -> Self {
        let labels = [
            ("job", Some(gateway.job.clone())),
            ("namespace", namespace),
            ("instance", Some(instance)),
        ];
        let group: Group = labels
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect();
        metrics.pushes_every(interval);
        let last = Arc::new(Notify::new());
        let is_last = last.clone();
        let pushing = tokio::spawn(async move {
            let (path, mut failing) = (path(&group), false);
            loop {
                let pushed = gateway.send("PUT", &path, metrics.text(), LIMIT.into()).await;
                metrics.pushed(pushed.is_ok());
                // An outage is logged once, not at every interval.
                match pushed {
                    Ok(_) if failing => info!("pushing the metrics succeeds again"),
                    Err(ref error) if !failing => {
                        warn!(error, "pushing the metrics failed and will be retried");
                    }
                    Ok(_) | Err(_) => {}
                }
                failing = pushed.is_err();
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = is_last.notified() => break,
                }
            }
            if let Err(error) = gateway.send("PUT", &path, metrics.text(), last_limit.into()).await
            {
                warn!(error, "the last metrics could not be pushed");
            }
        });
        Self { last, last_limit, pushing: AbortOnDropHandle::new(pushing) }
    }

    /// Pushes a last time. Waits for a running push first, so that it cannot overwrite the last
    /// one.
    pub async fn finish(self) {
        self.last.notify_one();
        if tokio::time::timeout(self.last_limit, self.pushing).await.is_err() {
            warn!("the last metrics could not be pushed within {:?}", self.last_limit);
        }
    }
}

/// The result of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Groups of our job.
    pub found: usize,
    pub deleted: usize,
    pub failed: usize,
}

/// Deletes the groups of pods that finished more than `older_than` ago, and of pods that ended
/// without reporting: those silent for `older_than` and for 20 of their push intervals. Groups of
/// other jobs are not touched.
pub async fn sweep(
    gateway: &Pushgateway,
    older_than: Duration,
    now: SystemTime,
) -> Result<Swept, String> {
    let answer = gateway.send("GET", "/api/v1/metrics", String::new(), LISTING).await?;
    if !answer.is_whole {
        return Err(format!(
            "{}: the list of its groups is longer than {} bytes",
            gateway.url, LISTING.bytes
        ));
    }
    let groups: Groups = serde_json::from_str(&answer.body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!(
            "{} does not answer as a Pushgateway does: the list of groups is not valid at {line}:{column}",
            gateway.url
        )
    })?;
    // Groups of other jobs may have any shape.
    let groups = groups.data.unwrap_or_default().into_iter().filter_map(|group| Pushed::of(&group));
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut swept = Swept::default();
    for group in groups.filter(|group| group.labels.get("job") == Some(&gateway.job)) {
        swept.found += 1;
        if !group.is_stale(older_than, now) {
            continue;
        }
        match gateway.send("DELETE", &path(&group.labels), String::new(), LIMIT.into()).await {
            Ok(_) => swept.deleted += 1,
            Err(error) => {
                swept.failed += 1;
                warn!(
                    instance = group.labels.get("instance"),
                    error, "a group could not be deleted"
                );
            }
        }
    }
    Ok(swept)
}

/// After this many push intervals without a push, a pod counts as dead.
const SILENT_INTERVALS: f64 = 20.0;

/// A Pushgateway's answer to `GET /api/v1/metrics`.
#[derive(Deserialize)]
struct Groups {
    data: Option<Vec<Value>>,
}

/// The relevant parts of a group. Unknown values are `None`.
struct Pushed {
    labels: Group,
    /// When the group was last pushed, in seconds since 1970 by the gateway's clock.
    last_push_at: Option<f64>,
    finished_at: Option<f64>,
    push_interval: Option<f64>,
}

impl Pushed {
    /// `None` if the labels are unknown: a metric named `labels` replaces them.
    fn of(group: &Value) -> Option<Self> {
        let labels = group.get("labels")?.as_object()?.iter();
        let labels = labels.map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        let value = |metric: &str| {
            let value = group.get(metric)?.get("metrics")?.get(0)?.get("value")?;
            value
                .as_f64()
                .or_else(|| value.as_str()?.parse().ok())
                .filter(|value: &f64| value.is_finite())
        };
        Some(Self {
            labels: labels.collect::<Option<_>>()?,
            last_push_at: value("push_time_seconds"),
            finished_at: value("leasehold_run_finished_timestamp_seconds"),
            push_interval: value("leasehold_push_interval_seconds"),
        })
    }
}

impl Pushed {
    fn is_stale(&self, older_than: Duration, now: f64) -> bool {
        let older_than = older_than.as_secs_f64();
        if let Some(finished_at) = self.finished_at {
            return finished_at + older_than < now;
        }
        let silent = SILENT_INTERVALS * self.push_interval.unwrap_or_default();
        self.last_push_at.is_some_and(|pushed_at| pushed_at + silent.max(older_than) < now)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_groups_path_begins_with_its_job_and_can_encode_any_value() {
        let group = |labels: &[(&str, &str)]| {
            let labels =
                labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            path(&labels.collect())
        };
        assert_eq!(
            group(&[("instance", "pod-1"), ("job", "leasehold")]),
            "/metrics/job/leasehold/instance/pod-1"
        );
        assert_eq!(
            group(&[("instance", "a/b c"), ("job", "")]),
            "/metrics/job@base64/=/instance@base64/YS9iIGM="
        );
    }

    #[test]
    fn a_group_is_stale_when_its_pod_is_certainly_gone() {
        let is_stale = |finished: Option<&str>, pushed: &str, interval: Option<&str>| {
            let family = |value: &str| json!({ "type": "GAUGE", "metrics": [{ "labels": {}, "value": value }] });
            let mut group =
                json!({ "labels": { "job": "leasehold" }, "push_time_seconds": family(pushed) });
            if let Some(finished) = finished {
                group["leasehold_run_finished_timestamp_seconds"] = family(finished);
            }
            if let Some(interval) = interval {
                group["leasehold_push_interval_seconds"] = family(interval);
            }
            Pushed::of(&group).unwrap().is_stale(Duration::from_mins(10), 10_000.0)
        };
        assert!(is_stale(Some("9399"), "9399", Some("15")), "it finished long enough ago");
        assert!(!is_stale(Some("9401"), "9401", Some("15")), "it finished just now");
        assert!(is_stale(None, "9399", Some("15")), "it ended without reporting");
        assert!(!is_stale(None, "9401", Some("15")), "it pushed just now");
        assert!(!is_stale(None, "9399", Some("60")), "it pushes rarely, so it may be alive");
        assert!(is_stale(None, "8799", Some("60")), "it would have pushed by now");
    }

    #[test]
    fn a_group_of_another_shape_is_ignored() {
        let family =
            json!({ "type": "GAUGE", "help": "", "metrics": [{ "labels": {}, "value": "1" }] });
        for group in [
            json!(null),
            json!("x"),
            json!({}),
            json!({ "labels": null }),
            json!({ "labels": family, "push_time_seconds": family }),
            json!({ "labels": { "job": 7 } }),
        ] {
            assert!(Pushed::of(&group).is_none(), "{group}");
        }
        for unknown in [
            json!(null),
            json!(7),
            json!({ "metrics": [] }),
            json!({ "metrics": [{ "count": "1" }] }),
        ] {
            let pushed = Pushed::of(
                &json!({ "labels": { "job": "leasehold" }, "push_time_seconds": unknown }),
            );
            assert!(!pushed.unwrap().is_stale(Duration::ZERO, 1e12), "{unknown}");
        }
    }

    #[test]
    fn secrets_that_a_server_repeats_are_redacted() {
        let basic = Secret::Basic("user:p<4>&\"s/s".to_owned());
        let bearer = Secret::Bearer("token-of-ours".to_owned());
        for (secret, answer) in [
            (&basic, basic.header()),
            (&basic, "user:p<4>&\"s/s".to_owned()),
            (&basic, "the password p<4>&\"s/s is wrong".to_owned()),
            (&basic, "p%3C4%3E%26%22s%2Fs".to_owned()),
            (&basic, "p&lt;4&gt;&amp;&#34;s/s".to_owned()),
            (&basic, r#"{"password":"p<4>&\"s/s"}"#.to_owned()),
            (&basic, STANDARD.encode("p<4>&\"s/s")),
            (&bearer, bearer.header()),
            (&bearer, URL_SAFE.encode("token-of-ours")),
        ] {
            let shown = secret.redacted(&answer);
            assert!(shown.contains(REDACTED), "{shown}");
            for part in ["s/s", "s%2Fs", "token", "dXNlc", "cDw0", "dG9r"] {
                assert!(!shown.contains(part), "{shown}");
            }
        }
        assert_eq!(bearer.redacted("inconsistent help"), "inconsistent help");
        assert_eq!(Secret::Basic("user:a".to_owned()).redacted("a bad day"), REDACTED);
    }
}
