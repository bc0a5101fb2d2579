//! The results of the dashboard and the rules for real pods, with a real Pushgateway and a real
//! Prometheus, compared with the events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use leasehold::adapters::http::Http as Client;
use nix::sys::signal::Signal;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::process::Command;

use super::dashboard::{Query, grafana, other_queries, queries};
use super::get;
use crate::support::cloud::{Cloud, GREEDY, Leasehold, eventually};
use crate::support::http::Http;
use crate::support::servers::{Prometheus, Pushgateway};

/// The time range of the dashboard, in seconds: longer than the test takes, and as long as
/// Prometheus keeps a sample, so that a query about the end of the range already has its final
/// result.
const RANGE: u32 = 300;
/// The time of one bar, in seconds.
const INTERVAL: u32 = 10;

/// The result of an expression: a value for each legend, as in Grafana.
type Answer = BTreeMap<String, f64>;

/// The Pushgateway of the pods, and the Prometheus that scrapes it.
struct Observatory {
    gateway: Pushgateway,
    prometheus: Prometheus,
    _platform: Http,
}

impl Observatory {
    /// The fake KEDA metrics are about `queue`.
    async fn start(queue: &str) -> Self {
        let gateway = Pushgateway::start(None).await;
        let platform = include_str!("platform.prom").replace("QUEUE", queue);
        let platform = Http::start(move |_| (200, platform.clone())).await;
        let address = |url: &str| url.trim_start_matches("http://").to_owned();
        let targets = [
            ("pushgateway", &*address(&gateway.url())),
            ("platform", &*address(&platform.endpoint)),
        ];
        let prometheus = Prometheus::start(&targets, &grafana("rules.yml")).await;
        Self { gateway, prometheus, _platform: platform }
    }

    /// A pod that does not wait for messages.
    fn pod(&self, cloud: &Cloud, name: &str, flags: &str, script: &str) -> Leasehold {
        let push =
            format!("--pushgateway {} --push-interval 1s --namespace files", self.gateway.url());
        cloud.run(&format!("{push} --pod-name {name} --wait 0s {flags}"), script)
    }

    async fn ask(&self, path: &str, parameters: &[(&str, String)]) -> Value {
        let encoded = |(name, value): &(&str, String)| {
            format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))
        };
        let form = parameters.iter().map(encoded).collect::<Vec<_>>().join("&");
        let headers = [("content-type", "application/x-www-form-urlencoded".to_owned())];
        let url = format!("{}/api/v1/{path}", self.prometheus.url());
        let answer = Client::new(None)
            .send("POST", &url, &headers, form, Duration::from_secs(10))
            .await
            .unwrap();
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(answer["status"], "success", "{parameters:?}: {answer}");
        answer["data"]["result"].clone()
    }

    /// The result at the time `at`, in seconds since 1970.
    async fn at(&self, at: f64, legend: &str, expr: &str) -> Answer {
        let result =
            self.ask("query", &[("query", expr.to_owned()), ("time", at.to_string())]).await;
        answer(&result, legend, |series| number(&series["value"]))
    }

    /// The sum of the results at each step after `since`.
    async fn summed(&self, since: f64, step: u32, legend: &str, expr: &str) -> Answer {
        let (start, end) = (since + f64::from(step), since + f64::from(RANGE));
        let times =
            [("start", start.to_string()), ("end", end.to_string()), ("step", step.to_string())];
        let result =
            self.ask("query_range", &[&[("query", expr.to_owned())], &times[..]].concat()).await;
        answer(&result, legend, |series| {
            series["values"].as_array().unwrap().iter().map(number).sum()
        })
    }

    /// The recording and alerting rules: names and expressions.
    async fn rules(&self) -> BTreeMap<String, String> {
        let answer = get(&format!("{}/api/v1/rules", self.prometheus.url())).await.unwrap();
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        let groups = answer["data"]["groups"].as_array().unwrap().iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        rules.map(|rule| (text(&rule["name"]), text(&rule["query"]))).collect()
    }

    /// Waits until Prometheus has scraped the current metrics of the Pushgateway.
    async fn wait_for_scrape(&self) {
        let now = unix_now();
        eventually("Prometheus scrapes", async || {
            let seen =
                self.at(unix_now(), "", r#"sum(timestamp(up{job="pushgateway"}) * up)"#).await;
            seen.get("").is_some_and(|seen| *seen > now).then_some(())
        })
        .await;
    }

    async fn wait_for_value(&self, expr: &str, value: f64) {
        let is_seen =
            async || (self.at(unix_now(), "", expr).await.get("") == Some(&value)).then_some(());
        eventually(&format!("{expr} is {value}"), is_seen).await;
    }
}

fn unix_now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The value of a sample, a pair of time and value.
fn number(sample: &Value) -> f64 {
    sample[1].as_str().unwrap().parse().unwrap()
}

fn answer(result: &Value, legend: &str, value: impl Fn(&Value) -> f64) -> Answer {
    let series = result.as_array().unwrap();
    let answer: Answer = series
        .iter()
        .map(|series| (fill_legend(legend, &series["metric"]), value(series)))
        .collect();
    assert_eq!(answer.len(), series.len(), "the legend {legend} is not unique: {result}");
    answer
}

/// A legend with its labels filled in; without a legend, the label values.
fn fill_legend(legend: &str, labels: &Value) -> String {
    let labels = labels.as_object().unwrap();
    if legend.is_empty() {
        let values = labels.values().map(|value| value.as_str().unwrap());
        return values.collect::<Vec<_>>().join(" ");
    }
    let mut text = legend.to_owned();
    while let Some((before, (name, after))) =
        text.split_once("{{").and_then(|(before, rest)| Some((before, rest.split_once("}}")?)))
    {
        text = format!(
            "{before}{}{after}",
            labels.get(name).and_then(Value::as_str).unwrap_or_default()
        );
    }
    text.trim().to_owned()
}

/// A queue for each kind of pod.
struct Queues {
    works: Cloud,
    drains: Cloud,
    empty: Cloud,
    killed: Cloud,
    stopped: Cloud,
    /// Each attempt is the last one.
    poisoned: Cloud,
    lost: Cloud,
    missing: Cloud,
}

impl Queues {
    async fn new() -> Self {
        Self {
            works: Cloud::new(5).await,
            drains: Cloud::new(5).await,
            empty: Cloud::new(5).await,
            killed: Cloud::new(5).await,
            stopped: Cloud::new(5).await,
            poisoned: Cloud::new(1).await,
            lost: Cloud::new(5).await,
            missing: Cloud::new(5).await,
        }
    }
}

#[tokio::test]
async fn every_expression_has_a_result_and_every_count_is_correct() {
    let queues = Queues::new().await;
    let observatory = Observatory::start(&queues.works.bucket).await;
    let queries = queries();

    let (drains, doomed) = before(&observatory, &queues).await;
    let at_work = queries.iter().find(|query| query.legend == "at work now").unwrap();
    let at_work = observatory.at(unix_now(), "", &at_work.of(RANGE)).await;
    assert_eq!(at_work, Answer::from([(String::new(), 2.0)]));
    let mut answered = answered(&observatory, &queries, unix_now()).await;
    doomed.signal(Signal::SIGKILL);
    let _ = doomed.wait_without_reading().await;
    observatory.wait_for_scrape().await;

    let since = unix_now();
    let at = since + f64::from(RANGE);
    within(&observatory, &queues, drains).await;
    assert!(unix_now() < since + f64::from(RANGE) / 2.0, "the test took too long for its queries");

    check_panels(&observatory, &queries, &queues, since).await;
    answered.append(&mut self::answered(&observatory, &queries, at).await);
    let silent = queries
        .iter()
        .map(|query| (&*query.panel, &*query.legend))
        .filter(|asked| !answered.contains(asked));
    // These events did not happen; and "Per day" needs a minute of recordings.
    let silent: Vec<_> =
        silent.filter(|(panel, _)| *panel != "Per day").map(|(_, legend)| legend).collect();
    assert_eq!(silent, ["extend", "delete", "failed pushes"]);
    for query in other_queries() {
        let answer = observatory.at(at, &query.legend, &query.of(RANGE)).await;
        assert!(answer.keys().any(|legend| !legend.is_empty()), "{}: {answer:?}", query.panel);
    }
    let with_before = [
        ("pods launched", 22.0),
        ("messages received", 22.0),
        ("succeeded", 11.0),
        ("pods died silently", 3.0),
    ];
    for (legend, number) in with_before {
        let query = queries.iter().find(|query| query.legend == legend).unwrap();
        let answer = observatory.at(at, "", &query.of(3600)).await;
        assert_eq!(answer, Answer::from([(String::new(), number)]), "{legend}");
    }
    check_rules(&observatory, &queues, since).await;

    let mut sweep = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    sweep.args(["sweep", "--older-than", "0s", "--pushgateway", &observatory.gateway.url()]);
    let swept = Leasehold::start(sweep).expect_exit(0).await;
    assert!(swept.record("swept")["deleted"].as_u64().unwrap() >= 19, "{}", swept.stdout);
    observatory.wait_for_scrape().await;
    let exited =
        observatory.at(unix_now(), "", "count(leasehold_run_finished_timestamp_seconds)").await;
    assert!(exited.is_empty(), "{exited:?}");
    check_panels(&observatory, &queries, &queues, since).await;
}

/// Events before the time range: two pods that end, one that will be killed before the range
/// begins, and the first half of a pod that continues.
async fn before(observatory: &Observatory, queues: &Queues) -> (Leasehold, Leasehold) {
    let Queues { works, drains, killed, .. } = queues;
    for cloud in [works, works, killed] {
        cloud.put("before", b"x").await;
    }
    for key in ["1", "2", "3", "4", "5"] {
        drains.put(key, b"x").await;
    }
    let drain = r#"
        echo >> begun
        case $(wc -l < begun) in
            3) echo '{"progress":0.5}' >> "$JOB_RESULT_FILE"; until [ -e go ]; do sleep 0.05; done;;
            4) exit 1;;
        esac"#;
    let draining = observatory.pod(drains, "drains", "--max-messages 5", drain);
    let doomed = observatory.pod(killed, "killed-before", "", "sleep 60");
    let ends = ["before-1", "before-2"]
        .map(|name| observatory.pod(works, name, "", "exit 0").expect_exit(0));
    join_all(ends).await;
    observatory.wait_for_value("sum(leasehold_progress_ratio)", 0.5).await;
    observatory.wait_for_value("sum(leasehold_messages_in_flight)", 2.0).await;
    observatory
        .wait_for_value(r#"sum(leasehold_messages_processed_total{outcome="succeeded"})"#, 4.0)
        .await;
    (draining, doomed)
}

/// Events within the time range.
async fn within(observatory: &Observatory, queues: &Queues, drains: Leasehold) {
    let pod = |cloud: &Cloud, name: &str, flags: &str, script: &str| {
        observatory.pod(cloud, name, flags, script)
    };
    let Queues { works, empty, killed, stopped, poisoned, lost, missing, .. } = queues;
    // One after another: a pod without enough CPU does not wait for the queue's redrive policy, and
    // cannot recognise a last attempt.
    for (n, code) in [1, 1, 65, 75].into_iter().enumerate() {
        poisoned.put(&n.to_string(), b"x").await;
        pod(poisoned, &format!("poisoned-{n}"), "", &format!("exit {code}"))
            .expect_exit(code)
            .await;
    }
    queues.drains.touch("go");
    let mut pods = vec![(drains, 1)];
    let reporting = format!(r#"{GREEDY}; echo '{{"metrics":{{"rows":5}}}}' >> "$JOB_RESULT_FILE""#);
    for n in 0..5 {
        works.put(&n.to_string(), b"12345").await;
        pods.push((pod(works, &format!("works-{n}"), "", &reporting), 0));
    }
    for n in 0..3 {
        pods.push((pod(empty, &format!("empty-{n}"), "", "exit 0"), 0));
    }
    missing.sqs.delete_queue().queue_url(&missing.queue_url).send().await.unwrap();
    pods.push((pod(missing, "missing", "", "exit 0"), 78));

    lost.put("k", b"x").await;
    let loses = pod(lost, "loses", "--visibility-timeout 3s", "echo up > up; sleep 60");
    lost.file("up").await;
    lost.sqs.purge_queue().queue_url(&lost.queue_url).send().await.unwrap();
    pods.push((loses, 75));

    let mut stops = Vec::new();
    for name in ["stopped-1", "stopped-2"] {
        stopped.put(name, b"x").await;
        stops.push(pod(stopped, name, "", &format!("echo up > {name}; sleep 60")));
        stopped.file(name).await;
    }
    for pod in stops {
        pod.signal(Signal::SIGTERM);
        pods.push((pod, 143));
    }
    for name in ["killed-1", "killed-2"] {
        killed.put(name, b"x").await;
        let dies = pod(killed, name, "", "sleep 60");
        observatory
            .wait_for_value(
                &format!(r#"sum(leasehold_messages_in_flight{{instance="{name}"}})"#),
                1.0,
            )
            .await;
        dies.signal(Signal::SIGKILL);
        let _ = dies.wait_without_reading().await;
    }
    join_all(pods.into_iter().map(|(pod, code)| pod.expect_exit(code))).await;
    observatory.wait_for_scrape().await;
}

/// The panels and legends with a result.
async fn answered<'a>(
    observatory: &Observatory,
    queries: &'a [Query],
    at: f64,
) -> BTreeSet<(&'a str, &'a str)> {
    let mut answered = BTreeSet::new();
    for query in queries {
        let answer = observatory.at(at, &query.legend, &query.of(RANGE)).await;
        answered.extend((!answer.is_empty()).then_some((&*query.panel, &*query.legend)));
    }
    answered
}

async fn check_panels(observatory: &Observatory, queries: &[Query], queues: &Queues, since: f64) {
    let at = since + f64::from(RANGE);
    for (panel, expected) in expected(queues) {
        let (mut shown, mut shown_by_bars) = (Answer::new(), Answer::new());
        for query in queries.iter().filter(|query| query.panel == panel) {
            shown.extend(observatory.at(at, &query.legend, &query.of(RANGE)).await);
            if query.is_per_bar() {
                shown_by_bars.extend(
                    observatory.summed(since, INTERVAL, &query.legend, &query.of(INTERVAL)).await,
                );
            }
        }
        shown.retain(|legend, _| expected.contains_key(legend));
        assert_eq!(shown, expected, "{panel}");
        shown_by_bars.retain(|legend, _| expected.contains_key(legend));
        assert!(
            shown_by_bars.is_empty() || shown_by_bars == expected,
            "{panel}, its bars: {shown_by_bars:?}"
        );
    }
    let died = queries.iter().find(|query| query.panel == "Ended without reporting").unwrap();
    let died: Vec<_> =
        observatory.at(at, "{{instance}}", &died.of(RANGE)).await.into_keys().collect();
    assert_eq!(died, ["killed-1", "killed-2"]);
}

async fn check_rules(observatory: &Observatory, queues: &Queues, since: f64) {
    let at = since + f64::from(RANGE);
    let rules = observatory.rules().await;
    let mut recordings = rules.iter().filter(|(name, _)| name.ends_with(":increase1m")).peekable();
    assert!(recordings.peek().is_some());
    for (name, expr) in recordings {
        // One value per minute, 15 s after its end.
        let summed = observatory.summed(since + 15.0, 60, "", expr).await;
        let whole =
            expr.replace("[1m] offset 15s", "[300s]").replace("offset 1m15s", "offset 300s");
        let whole = observatory.at(at, "", &whole).await;
        assert!(!whole.is_empty(), "{name}");
        for (labels, number) in &whole {
            assert!(
                (summed[labels] - number).abs() < 1e-6,
                "{name} of {labels}: {}, not {number}",
                summed[labels]
            );
        }
    }

    let files = |queue: &str| format!("files {queue}");
    let failed = |reason: &str| format!("default files {} {reason}", queues.poisoned.bucket);
    let last_attempts = [("command_failed", 2.0), ("permanent", 1.0), ("temporary", 1.0)];
    let alerts: [(&str, Answer); 10] = [
        ("LeaseholdFailures", [(files(&queues.poisoned.bucket), 1.0)].into()),
        (
            "LeaseholdFinalAttemptFailed",
            last_attempts.map(|(reason, number)| (failed(reason), number)).into(),
        ),
        ("LeaseholdLeaseLost", [(files(&queues.lost.bucket), 1.0)].into()),
        ("LeaseholdNoSuccess", [("stuck.fifo".to_owned(), 7.0)].into()),
        ("LeaseholdPodsFindNothing", Answer::new()),
        ("LeaseholdPodDied", [(files(&queues.killed.bucket), 3.0)].into()),
        ("LeaseholdPodNotReady", [(files("waits"), 1.0)].into()),
        ("LeaseholdCrashLoop", Answer::new()),
        ("LeaseholdPushFailures", Answer::new()),
        ("LeaseholdNotSwept", Answer::new()),
    ];
    assert_eq!(alerts.len(), rules.keys().filter(|name| name.starts_with("Leasehold")).count());
    for (name, firing) in alerts {
        let waiting = format!("({})", rules["leasehold:queue_messages"]);
        let expr = rules[name].replace("leasehold:queue_messages", &waiting);
        assert_eq!(observatory.at(at, "", &expr).await, firing, "{name}");
    }
}

/// The expected values in the time range: panels with their legends. 0 is a counter that never
/// increased; an event that never happened has no series.
fn expected(queues: &Queues) -> Vec<(&'static str, Answer)> {
    let expected: [(&str, &[(&str, f64)]); 17] = [
        (
            "Is work being done?",
            &[("pods launched", 18.0), ("messages received", 16.0), ("pods found no message", 4.0)],
        ),
        (
            "Is it succeeding?",
            &[
                ("succeeded", 7.0),
                ("failed", 6.0),
                ("share that failed", 6.0 / 15.0),
                ("stopped", 2.0),
            ],
        ),
        ("Is it keeping up?", &[("waiting now", 12.0), ("received again", 0.0)]),
        (
            "Is anything lost or stuck?",
            &[("leases lost", 1.0), ("last attempts failed", 4.0), ("pods died silently", 2.0)],
        ),
        (
            "Outcomes of the messages",
            &[
                ("succeeded", 7.0),
                ("command_failed", 3.0),
                ("permanent", 1.0),
                ("temporary", 1.0),
                ("stopped", 2.0),
                ("lease_lost", 1.0),
            ],
        ),
        (
            "Pods and their receives",
            &[
                ("launched", 18.0),
                ("messages", 16.0),
                ("found no message", 4.0),
                ("empty requests", 3.0),
            ],
        ),
        (
            "Failures by reason",
            &[("command_failed", 3.0), ("permanent", 1.0), ("temporary", 1.0), ("lease_lost", 1.0)],
        ),
        (
            "Reasons",
            &[("command_failed", 3.0), ("permanent", 1.0), ("temporary", 1.0), ("lease_lost", 1.0)],
        ),
        (
            "Exit codes of the pods",
            &[
                ("exit 0", 8.0),
                ("exit 1", 3.0),
                ("exit 65", 1.0),
                ("exit 75", 2.0),
                ("exit 78", 1.0),
                ("exit 143", 2.0),
            ],
        ),
        (
            "Deletes and releases",
            &[
                ("delete: deleted", 7.0),
                ("release: command_failed", 3.0),
                ("release: permanent", 1.0),
                ("release: temporary", 1.0),
                ("release: stopped", 2.0),
            ],
        ),
        ("Failures and last attempts", &[("comes back", 2.0), ("last attempt", 4.0)]),
        ("Receive counts of the last messages", &[("receive 1", 15.0)]),
        ("Bytes of objects", &[("default", 35.0)]),
        ("Stops", &[("SIGTERM", 2.0)]),
        ("Reporting failures", &[("lost log lines", 0.0)]),
        ("Pods of ScaledJobs by phase", &[("Pending", 1.0), ("Failed", 1.0)]),
        ("Why containers wait or ended", &[("OOMKilled", 1.0), ("waits: ImagePullBackOff", 1.0)]),
    ];
    let owned = |numbers: &[(&str, f64)]| {
        numbers.iter().map(|(legend, number)| ((*legend).to_owned(), *number)).collect()
    };
    let mut expected: Vec<_> =
        expected.into_iter().map(|(panel, numbers)| (panel, owned(numbers))).collect();
    let of = |column: &str, cloud: &Cloud| format!("{column}: {}", cloud.bucket);
    let by_queue = [
        (of("failed", &queues.poisoned), 4.0),
        (of("failed", &queues.drains), 1.0),
        (of("failed", &queues.lost), 1.0),
        (of("succeeded", &queues.works), 5.0),
        (of("succeeded", &queues.drains), 2.0),
        (of("stopped", &queues.stopped), 2.0),
    ];
    expected.push(("By queue and job type", by_queue.into()));
    let poisoned =
        (0..4).map(|n| (format!("{} poisoned-{n}", of("received", &queues.poisoned)), 1.0));
    expected.push(("Pods whose last message had one attempt left, or none", poisoned.collect()));
    expected
}
