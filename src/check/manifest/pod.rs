//! Restarts, retries, time limits and the work directory of the pod.

use std::time::Duration;

use serde_json::Value;

use super::ScaledJob;
use super::container::Container;
use super::files::Mount;
use crate::check::{Finding, Rule};
use crate::job::lease::CEILING;
use crate::settings::resolve::RunConfig;

/// The default of a Job's `managedBy`.
const JOB_CONTROLLER: &str = "kubernetes.io/job-controller";

impl ScaledJob<'_> {
    pub fn pod(&self) -> Vec<Finding> {
        let mut findings: Vec<_> = self.restarts().into_iter().chain(self.retries()).collect();
        for field in ["parallelism", "completions"] {
            let count = self.job[field].as_u64();
            if count.is_some_and(|count| count > 1) {
                findings.push(Finding::new(
                    Rule::SeveralPods,
                    self.at(&format!("spec.jobTargetRef.{field}")),
                    "KEDA counts Jobs, not pods: the other pods find no message",
                    "set it to 1",
                ));
            }
            if count == Some(0) {
                findings.push(Finding::new(
                    Rule::NoPod,
                    self.at(&format!("spec.jobTargetRef.{field}")),
                    "it is 0: KEDA creates Jobs, but they never start a pod",
                    "set it to 1",
                ));
            }
        }
        if self.job["suspend"] == true {
            findings.push(Finding::new(
                Rule::NoPod,
                self.at("spec.jobTargetRef.suspend"),
                "KEDA creates Jobs, but they never start a pod",
                "remove it; to pause, annotate the ScaledJob with autoscaling.keda.sh/paused: \"true\"",
            ));
        }
        if let Some(manager) =
            self.job["managedBy"].as_str().filter(|manager| *manager != JOB_CONTROLLER)
        {
            findings.push(Finding::new(
                Rule::ManagedElsewhere,
                self.at("spec.jobTargetRef.managedBy"),
                format!("Kubernetes does not start the pods, and check cannot see whether {manager} does"),
                "remove it",
            ));
        }
        if self.pod["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
            findings.push(Finding::new(
                Rule::NoPod,
                self.at("spec.jobTargetRef.template.spec.schedulingGates"),
                "no pod starts until its scheduling gates are removed; until then, its Job counts as pending",
                "remove them",
            ));
        }
        findings
    }

    /// Restarts of the container by the kubelet.
    fn restarts(&self) -> Option<Finding> {
        let inside = self.containers().any(|container| container["restartPolicy"].is_string());
        let place = self.at("spec.jobTargetRef.template.spec.restartPolicy");
        match self.pod["restartPolicy"].as_str() {
            Some("Never") => None,
            None => Some(Finding::new(
                Rule::RestartPolicy,
                place,
                format!(
                    "it is missing{}, so KEDA sets OnFailure: the container is restarted, finds no message, and the Job completes although the work failed",
                    if inside { " (the container's restartPolicy is another field)" } else { "" }
                ),
                "set restartPolicy: Never in the spec of the pod",
            )),
            Some(other) => Some(Finding::new(
                Rule::RestartPolicy,
                place,
                format!(
                    "{other} restarts the container, which then receives another message or cannot start at all"
                ),
                "set it to Never",
            )),
        }
    }

    /// Retries of the pod by the Job.
    fn retries(&self) -> Option<Finding> {
        (self.job["backoffLimit"].as_u64() != Some(0)).then(|| {
            Finding::new(
                Rule::JobRetries,
                self.at("spec.jobTargetRef.backoffLimit"),
                format!(
                    "{}: a retry by the Job is a new pod that receives another message; SQS already retries",
                    self.job["backoffLimit"]
                        .as_u64()
                        .map_or_else(|| "it is 6, the default".to_owned(), |limit| format!("it is {limit}"))
                ),
                "set it to 0",
            )
        })
    }

    /// Findings about containers other than the one that runs leasehold.
    /// Does another container run at the same time: a native sidecar, or a second one?
    pub fn runs_beside(&self, container: &Value) -> bool {
        let init_containers = self.pod["initContainers"].as_array().into_iter().flatten();
        let is_sidecar = |it: &&Value| it["restartPolicy"] == "Always";
        init_containers
            .filter(is_sidecar)
            .chain(self.containers())
            .any(|it| !std::ptr::eq(it, container))
    }

    pub fn second_containers(&self, container: &Container) -> Vec<Finding> {
        let others = self.containers().filter(|other| !std::ptr::eq(*other, container.value));
        let finding = |other: &Value| {
            Finding::new(
                Rule::SecondContainer,
                self.path_of(other).whole(),
                "a Job completes when all its containers have exited: if this one keeps running after leasehold, the Job never completes, and one message waits for each such Job",
                "move it to initContainers, with restartPolicy: Always; Kubernetes then stops it after leasehold",
            )
        };
        others.map(finding).collect()
    }

    /// Compares the time limits of the pod and the Job with leasehold's settings.
    pub fn time_limits(&self, container: &Container) -> Vec<Finding> {
        let mut findings = Vec::new();
        let grace =
            Duration::from_secs(self.pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(30));
        if let Some(config) =
            container.config_if_known(&["LEASEHOLD_TERMINATION_GRACE", "LEASEHOLD_STOP_GRACE"])
        {
            let stop = longest_stop(config);
            if stop > grace {
                findings.push(Finding::new(Rule::GraceTooShort, self.at("spec.jobTargetRef.template.spec.terminationGracePeriodSeconds"),
                    format!("the shutdown is planned to take {stop:?}, but the kubelet sends SIGKILL after {grace:?}: the message is not released"),
                    format!("set it to {} or more, or LEASEHOLD_TERMINATION_GRACE to {}s", seconds(stop), grace.as_secs()),
                ));
            } else if stop < grace {
                findings.push(Finding::new(
                    Rule::GraceUnused,
                    container.variable("LEASEHOLD_TERMINATION_GRACE"),
                    format!("the shutdown uses only {stop:?} of the {grace:?} that the pod has"),
                    format!(
                        "set it to {}s, so that the command has more time to exit",
                        grace.as_secs()
                    ),
                ));
            }
        }
        if let Some(config) =
            container.config_if_known(&["LEASEHOLD_MAX_DURATION", "LEASEHOLD_MAX_MESSAGES"])
        {
            let settings = &config.work.settings;
            let longest =
                settings.policy.job_types.iter().map(|job_type| job_type.limits.max_duration);
            let longest =
                longest.fold(settings.policy.limits.max_duration, Duration::max).min(CEILING);
            let rounds = settings
                .policy
                .max_messages
                .div_ceil(u32::try_from(config.concurrency).unwrap_or(1).max(1));
            let whole = (settings.polling.wait + longest)
                .saturating_mul(rounds)
                .saturating_add(longest_stop(config));
            for (field, deadline) in [
                ("spec.jobTargetRef.activeDeadlineSeconds", &self.job["activeDeadlineSeconds"]),
                (
                    "spec.jobTargetRef.template.spec.activeDeadlineSeconds",
                    &self.pod["activeDeadlineSeconds"],
                ),
            ] {
                if let Some(deadline) =
                    deadline.as_u64().filter(|deadline| Duration::from_secs(*deadline) < whole)
                {
                    findings.push(Finding::new(
                        Rule::DeadlineTooShort,
                        self.at(field),
                        format!(
                            "Kubernetes stops the pod after {deadline}s, but its work and the shutdown may take {whole:?}"
                        ),
                        format!("remove it, or set it above {}", seconds(whole)),
                    ));
                }
            }
        }
        findings
    }

    /// Whether leasehold can write to its work directory, and knows its size limit.
    pub fn work_dir(&self, container: &Container) -> Vec<Finding> {
        let mut findings = Vec::new();
        let Some(config) = container.config_if_known(&["LEASEHOLD_WORK_DIR"]) else {
            return findings;
        };
        let path = &config.work.work_dir.path;
        let place = container.variable("LEASEHOLD_WORK_DIR");
        let exits = "every pod exits with code 78";
        let change = "mount an emptyDir, and set LEASEHOLD_WORK_DIR to its mountPath";
        let Some(Mount { volume, rest, is_read_only, .. }) = self.mount(container.value, path)
        else {
            if container.value["securityContext"]["readOnlyRootFilesystem"] == true {
                let what = format!(
                    "the root file system is read-only, and no volume is mounted at {}: {exits}",
                    path.display()
                );
                findings.push(Finding::new(Rule::WorkDirUnusable, place, what, change));
            }
            return findings;
        };
        let name = volume["name"].as_str().unwrap_or_default();
        if is_read_only {
            let what = format!(
                "{} is on the volume {name}, which is mounted read-only: {exits}",
                path.display()
            );
            findings.push(Finding::new(Rule::WorkDirUnusable, place, what, change));
            return findings;
        }
        // An init container that mounts the volume may create the directory.
        let init_containers = self.pod["initContainers"].as_array().into_iter().flatten();
        let mut mounts =
            init_containers.filter_map(|container| container["volumeMounts"].as_array()).flatten();
        let may_be_created = mounts.any(|mount| mount["name"] == *name);
        if volume["emptyDir"].is_object() && !rest.as_os_str().is_empty() && !may_be_created {
            let what = format!(
                "the volume {name} is empty when a pod starts, so {} does not exist: {exits}",
                rest.display()
            );
            findings.push(Finding::new(
                Rule::WorkDirUnusable,
                place,
                what,
                "set it to the volume's mountPath",
            ));
        }
        let size = volume["emptyDir"]["sizeLimit"]
            .as_str()
            .and_then(|size| size.parse::<bytesize::ByteSize>().ok());
        let limited = container.config_if_known(&["LEASEHOLD_WORK_DIR_LIMIT"]);
        if let (Some(size), Some(config)) = (size, limited)
            && config.work.work_dir.limit.is_none_or(|limit| limit > size.as_u64())
        {
            findings.push(Finding::new(Rule::WorkDirLimit, container.variable("LEASEHOLD_WORK_DIR_LIMIT"),
                format!("it is over {size}, the sizeLimit of the work directory's volume: Kubernetes evicts a pod that exceeds the sizeLimit"),
                "set it to the sizeLimit",
            ));
        }
        findings
    }
}

/// The planned duration of the longest stop.
fn longest_stop(config: &RunConfig) -> Duration {
    let settings = &config.work.settings;
    let types = settings.policy.job_types.iter().map(|job_type| job_type.limits.stop_grace);
    let stop = types
        .fold(settings.policy.limits.stop_grace, Duration::max)
        .max(settings.polling.longest_poll);
    settings.stop.total(stop)
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
