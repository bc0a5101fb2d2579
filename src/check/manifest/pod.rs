//! What Kubernetes does to the pod, and how long it lets it live.

use std::time::Duration;

use serde_json::Value;

use super::ScaledJob;
use crate::check::Finding;
use crate::config::RunConfig;
use crate::job::lease::CEILING;

impl ScaledJob<'_> {
    pub fn pod(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let inside = self.containers().any(|container| container["restartPolicy"].is_string());
        let place = self.at("spec.jobTargetRef.template.spec.restartPolicy");
        match self.pod["restartPolicy"].as_str() {
            Some("Never") => {}
            None => findings.push(Finding::error(
                place,
                format!(
                    "it is missing{}, so KEDA sets OnFailure: the container is started again, finds nothing, and the Job \
                     completes although the work failed",
                    if inside { " (the container's own is another field)" } else { "" }
                ),
                "set it to Never, of the pod",
            )),
            Some(other) => findings.push(Finding::error(
                place,
                format!("{other} starts the container again, which receives another message or cannot start at all"),
                "set it to Never",
            )),
        }
        if self.job["backoffLimit"].as_u64() != Some(0) {
            findings.push(Finding::warning(
                self.at("spec.jobTargetRef.backoffLimit"),
                format!(
                    "{}: a retry by the Job is a new pod that receives another message; SQS retries already",
                    self.job["backoffLimit"]
                        .as_u64()
                        .map_or_else(|| "it is 6, the default".to_owned(), |limit| format!("it is {limit}"))
                ),
                "set it to 0",
            ));
        }
        for field in ["parallelism", "completions"] {
            if self.job[field].as_u64().is_some_and(|count| count > 1) {
                findings.push(Finding::warning(
                    self.at(&format!("spec.jobTargetRef.{field}")),
                    "KEDA counts Jobs, not pods: the others find nothing",
                    "set it to 1",
                ));
            }
        }
        findings
    }

    pub fn probes(&self, place: &str, container: &Value) -> Vec<Finding> {
        let mut findings = Vec::new();
        if container["livenessProbe"].is_object() {
            findings.push(Finding::warning(
                format!("{place}, livenessProbe"),
                "when it fails the work is killed, and the message's attempt is lost",
                "remove it: a command that hangs is what --max-duration and --stall-timeout are for",
            ));
        }
        let probe = &container["readinessProbe"];
        let path = &probe["httpGet"]["path"];
        if probe.is_object() && path.is_string() && path != "/readyz" {
            findings.push(Finding::warning(
                format!("{place}, readinessProbe"),
                format!("{path} does not tell whether a message is held"),
                "ask /readyz",
            ));
        }
        if path == "/readyz" && !self.listens(container) {
            findings.push(Finding::error(
                format!("{place}, readinessProbe"),
                "nothing answers it, so the pod never is ready, and counts as pending as long as it runs",
                "set LEASEHOLD_LISTEN, for example to 0.0.0.0:9464",
            ));
        }
        if probe.is_object() && probe["periodSeconds"].as_u64().unwrap_or(10) > 2 {
            findings.push(Finding::warning(
                format!("{place}, readinessProbe.periodSeconds"),
                "until it is asked, a pod that holds a message counts as pending",
                "set it to 1",
            ));
        }
        if container["lifecycle"]["preStop"].is_object() {
            findings.push(Finding::warning(
                format!("{place}, lifecycle.preStop"),
                "its time is taken from terminationGracePeriodSeconds before leasehold gets TERM",
                "remove it, or lower LEASEHOLD_TERMINATION_GRACE by what it takes",
            ));
        }
        findings
    }

    /// The times that the pod and the Job allow, against those that leasehold was told.
    pub fn budgets(&self, place: &str, container: &Value, config: &RunConfig) -> Vec<Finding> {
        let mut findings = Vec::new();
        let settings = &config.work.settings;
        let stop = settings.policy.limits.stop_grace + settings.stop.reserve;
        let types = settings.policy.job_types.iter().map(|job_type| job_type.limits.stop_grace + settings.stop.reserve);
        let stop = types.fold(stop, Duration::max).max(settings.polling.longest_poll + settings.stop.reserve);
        let grace = Duration::from_secs(self.pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(30));
        if stop > grace {
            findings.push(Finding::error(
                self.at("spec.jobTargetRef.template.spec.terminationGracePeriodSeconds"),
                format!("the stop is planned to take {stop:?}, and the kubelet kills after {grace:?}: the message is not released"),
                format!("set it to {} or more, or LEASEHOLD_TERMINATION_GRACE to {}s", seconds(stop), grace.as_secs()),
            ));
        } else if stop < grace {
            findings.push(Finding::warning(
                format!("{place}, LEASEHOLD_TERMINATION_GRACE"),
                format!("the stop takes {stop:?} of the {grace:?} that the pod has"),
                format!("set it to {}s, so that the command gets the rest", grace.as_secs()),
            ));
        }
        let longest = settings.policy.job_types.iter().map(|job_type| job_type.limits.max_duration);
        let longest = longest.fold(settings.policy.limits.max_duration, Duration::max).min(CEILING);
        let rounds = settings.policy.max_messages.div_ceil(u32::try_from(config.concurrency).unwrap_or(1).max(1));
        let whole = (settings.polling.wait + longest) * rounds + stop;
        for (field, deadline) in [
            ("spec.jobTargetRef.activeDeadlineSeconds", &self.job["activeDeadlineSeconds"]),
            ("spec.jobTargetRef.template.spec.activeDeadlineSeconds", &self.pod["activeDeadlineSeconds"]),
        ] {
            if let Some(deadline) = deadline.as_u64().filter(|deadline| Duration::from_secs(*deadline) < whole) {
                findings.push(Finding::error(
                    self.at(field),
                    format!("after {deadline}s the pod is stopped, although its work may take {whole:?} with the stop"),
                    format!("remove it, or set it above {}", seconds(whole)),
                ));
            }
        }
        findings.extend(self.work_dir(place, container, config));
        findings
    }

    fn work_dir(&self, place: &str, container: &Value, config: &RunConfig) -> Option<Finding> {
        let mounts = container["volumeMounts"].as_array()?;
        let holds = |mount: &&Value| {
            mount["mountPath"].as_str().is_some_and(|path| config.work.work_dir.path.starts_with(path))
        };
        let volume = &mounts.iter().find(holds)?["name"];
        let volume = self.pod["volumes"].as_array()?.iter().find(|one| one["name"] == *volume)?;
        let size = volume["emptyDir"]["sizeLimit"].as_str()?;
        let size: bytesize::ByteSize = size.parse().ok()?;
        let fits = config.work.work_dir.limit.is_some_and(|limit| limit <= size.as_u64());
        (!fits).then(|| {
            Finding::warning(
                format!("{place}, LEASEHOLD_WORK_DIR_LIMIT"),
                format!("it is not within the sizeLimit {size} of the work directory's volume, over which the pod is evicted"),
                "set it to the sizeLimit",
            )
        })
    }
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
