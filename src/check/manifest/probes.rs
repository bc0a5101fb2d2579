//! The probes and the lifecycle of the container that runs leasehold.

use serde_json::Value;

use super::ContainerPath;
use super::container::Container;
use crate::check::{Finding, Rule};

/// A probe every second is right; beyond this, the next message waits noticeably.
const PROMPT_S: u64 = 2;

/// The signals that start a graceful shutdown.
const STOPS: [&str; 4] = ["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP"];

pub fn findings(container: &Container) -> Vec<Finding> {
    let Container { value, path, .. } = container;
    let mut findings = Vec::new();
    if value["livenessProbe"].is_object() {
        findings.push(Finding::new(
            Rule::KillingProbe,
            path.at("livenessProbe"),
            "when it fails, the kubelet kills the work, and the message loses an attempt",
            "remove it: --max-duration and --stall-timeout stop a command that hangs",
        ));
    }
    if value["startupProbe"].is_object() {
        findings.push(Finding::new(
            Rule::KillingProbe,
            path.at("startupProbe"),
            "the readinessProbe does not run until it succeeds, and when it fails, the kubelet kills the work",
            "remove it",
        ));
    }
    if value["lifecycle"]["preStop"].is_object() {
        findings.push(Finding::new(
            Rule::PreStop,
            path.at("lifecycle.preStop"),
            "it uses up terminationGracePeriodSeconds before leasehold gets SIGTERM",
            "remove it, or lower LEASEHOLD_TERMINATION_GRACE by its duration",
        ));
    }
    if let Some(signal) = value["lifecycle"]["stopSignal"].as_str()
        && !STOPS.contains(&signal)
    {
        findings.push(Finding::new(
            Rule::StopSignal,
            path.at("lifecycle.stopSignal"),
            format!("it is {signal}, which starts no graceful shutdown"),
            "remove it, or set it to SIGTERM",
        ));
    }
    let probe = &value["readinessProbe"];
    if probe.is_object() {
        findings.extend(readiness_target(container, probe));
        findings.extend(readiness_times(path, probe));
    }
    findings
}

/// Whether the probe gets leasehold's answer.
fn readiness_target(container: &Container, probe: &Value) -> Option<Finding> {
    let place = |field: &str| container.path.at(&format!("readinessProbe{field}"));
    let get = &probe["httpGet"];
    if !get.is_object() {
        return Some(other_probe(container, probe));
    }
    let path = get["path"].as_str().unwrap_or("/");
    if path.split('?').next() != Some("/readyz") {
        let what = format!("{path} does not show whether a message is held");
        return Some(Finding::new(Rule::ReadyTooEarly, place(""), what, "set it to /readyz"));
    }
    let never = "so the pod is never ready, and counts as pending as long as it runs";
    if get["scheme"] == "HTTPS" {
        return Some(Finding::new(
            Rule::NeverReady,
            place(".httpGet.scheme"),
            format!("leasehold answers only HTTP, {never}"),
            "remove it",
        ));
    }
    let config = container.config_if_known(&["LEASEHOLD_LISTEN"])?;
    let Some(listen) = config.metrics.listen else {
        let change = "set LEASEHOLD_LISTEN, for example to 0.0.0.0:9464";
        return Some(Finding::new(
            Rule::NeverReady,
            place(""),
            format!("nothing answers it, {never}"),
            change,
        ));
    };
    if listen.ip().is_loopback() && get["host"].is_null() {
        let what =
            format!("leasehold listens on {listen}, which the kubelet does not probe, {never}");
        return Some(Finding::new(
            Rule::NeverReady,
            place(""),
            what,
            format!("set LEASEHOLD_LISTEN to 0.0.0.0:{}", listen.port()),
        ));
    }
    let port = match get["port"].as_str().map(|name| (name, name.parse())) {
        Some((_, Ok(number))) => number,
        Some((name, Err(_))) => {
            let mut ports = container.value["ports"].as_array().into_iter().flatten();
            let port = ports
                .find(|port| port["name"] == name)
                .and_then(|port| port["containerPort"].as_u64());
            let Some(port) = port else {
                let what = format!("the container has no port {name}, {never}");
                let change = format!("set it to {}", listen.port());
                return Some(Finding::new(Rule::NeverReady, place(".httpGet.port"), what, change));
            };
            port
        }
        None => get["port"].as_u64()?,
    };
    (port != u64::from(listen.port())).then(|| {
        let what = format!(
            "it uses port {port}, but LEASEHOLD_LISTEN is {listen}: nothing answers, {never}"
        );
        Finding::new(
            Rule::NeverReady,
            place(".httpGet.port"),
            what,
            format!("set it to {}", listen.port()),
        )
    })
}

/// The finding about a readinessProbe without httpGet.
fn other_probe(container: &Container, probe: &Value) -> Finding {
    let place = |field: &str| container.path.at(&format!("readinessProbe{field}"));
    if probe["exec"].is_object() {
        let what = "it runs a program, and check cannot see whether that program tests that a message is held";
        let change = "use httpGet on /readyz, every second";
        Finding::new(Rule::ReadinessUnseen, place(".exec"), what, change)
    } else if probe["tcpSocket"].is_object() {
        let what = "the port is open before a message is held, so the pod is ready too early, and KEDA creates a second pod for the same message";
        Finding::new(Rule::ReadyTooEarly, place(".tcpSocket"), what, "use httpGet on /readyz")
    } else {
        let what = "leasehold does not answer it, so the pod is never ready, and counts as pending as long as it runs";
        Finding::new(Rule::NeverReady, place(""), what, "use httpGet on /readyz")
    }
}

/// Whether KEDA learns quickly that a message is held.
fn readiness_times(path: &ContainerPath, probe: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut late = |field: &str, value: u64, right: u64| {
        findings.push(Finding::new(
            Rule::ReadyLate,
            path.at(&format!("readinessProbe.{field}")),
            format!(
                "it is {value}: a pod that holds a message counts as pending for that time, and the next message waits"
            ),
            format!("set it to {right}"),
        ));
    };
    let period = probe["periodSeconds"].as_u64().unwrap_or(10);
    if period > PROMPT_S {
        late("periodSeconds", period, 1);
    }
    if let Some(delay) = probe["initialDelaySeconds"].as_u64().filter(|delay| *delay > PROMPT_S) {
        late("initialDelaySeconds", delay, 0);
    }
    if let Some(times) =
        probe["successThreshold"].as_u64().filter(|times| *times > 1 && times * period > PROMPT_S)
    {
        late("successThreshold", times, 1);
    }
    findings
}
