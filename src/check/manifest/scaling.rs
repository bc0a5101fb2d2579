//! How many Jobs KEDA creates.

use serde_json::Value;

use super::ScaledJob;
use crate::check::{Finding, Location, Rule};

/// The conditions that are true on every running pod (Kubernetes, "Pod Lifecycle", "Pod
/// conditions").
const CONDITIONS: [&str; 5] = [
    "PodScheduled",
    "PodReadyToStartContainers",
    "Initialized",
    WAIT_FOR_A_PROBE[0],
    WAIT_FOR_A_PROBE[1],
];

/// The conditions that depend on the readinessProbe.
const WAIT_FOR_A_PROBE: [&str; 2] = ["ContainersReady", "Ready"];

impl ScaledJob<'_> {
    pub fn scaling(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(self.rollout());
        findings.extend(self.replicas());
        if let Some(paused) = self.metadata["annotations"]["autoscaling.keda.sh/paused"]
            .as_str()
            .filter(|value| !is_false(value))
        {
            findings.push(Finding::new(
                Rule::Paused,
                self.at("metadata.annotations"),
                format!("autoscaling.keda.sh/paused is {paused:?}: KEDA creates no Job"),
                "remove it to process messages",
            ));
        }
        let scaling = &self.spec["scalingStrategy"];
        if scaling["strategy"] == "default" {
            findings.push(Finding::new(
                Rule::DefaultStrategy,
                self.at("spec.scalingStrategy.strategy"),
                "KEDA 2.20.0 and 2.20.1 reject the value \"default\", although it is the default",
                "remove it",
            ));
        }
        findings.extend(self.pending_conditions());
        findings.extend(self.old_keda());
        findings
    }

    /// A cluster's schema has its KEDA's version. KEDA before 2.19 ignored pending Jobs near
    /// maxReplicaCount (kedacore/keda#7329).
    fn old_keda(&self) -> Option<Finding> {
        let schema = &self.manifest.schema;
        let is_old = schema.major_and_minor()? < (2, 19)
            && self.spec["scalingStrategy"]["strategy"] == "accurate";
        is_old.then(|| {
            let what = format!(
                "KEDA {} with strategy accurate ignores pending Jobs near maxReplicaCount, and creates pods that find no message",
                schema.version()
            );
            Finding::new(Rule::OldKeda, self.at("spec.scalingStrategy.strategy"), what, "update KEDA to 2.19 or newer")
        })
    }

    /// Whether an edit of the object stops running pods.
    fn rollout(&self) -> Option<Finding> {
        let new = self.spec["rollout"]["strategy"].as_str();
        // KEDA prefers the outdated field.
        let old = self.spec["rolloutStrategy"].as_str().filter(|strategy| !strategy.is_empty());
        let place = |field: &str| self.at(&format!("spec.{field}"));
        match (old, new) {
            (Some("gradual"), _) | (None, Some("gradual")) => None,
            (Some("immediate"), Some("gradual")) => Some(Finding::new(
                Rule::RolloutImmediate,
                place("rolloutStrategy"),
                "KEDA uses this outdated field, which is immediate, instead of rollout.strategy: each edit of this object stops every pod that is processing a message",
                "remove it",
            )),
            (Some("immediate"), _) => Some(Finding::new(
                Rule::RolloutImmediate,
                place("rolloutStrategy"),
                "it is immediate: each edit of this object stops every pod that is processing a message",
                "remove it, and set rollout.strategy to gradual",
            )),
            (None, None | Some("immediate")) => Some(Finding::new(
                Rule::RolloutImmediate,
                place("rollout.strategy"),
                "it is immediate, KEDA's default: each edit of this object stops every pod that is processing a message",
                "set it to gradual",
            )),
            (Some(old), _) => {
                let what = format!("KEDA does not know the value {old:?}");
                Some(Finding::new(
                    Rule::UnknownValue,
                    place("rolloutStrategy"),
                    what,
                    "remove it, and set rollout.strategy to gradual",
                ))
            }
            // `fields` reports the unknown value.
            (None, Some(_)) => None,
        }
    }

    fn replicas(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let least = self.spec["minReplicaCount"].as_u64().unwrap_or(0);
        let most = self.spec["maxReplicaCount"].as_u64().unwrap_or(100);
        if least > 0 {
            findings.push(Finding::new(
                Rule::IdleJobs,
                self.at("spec.minReplicaCount"),
                "KEDA always keeps this many Jobs running, and they find the queue empty at every poll",
                "set it to 0",
            ));
        }
        if least >= most && most > 0 {
            findings.push(Finding::new(Rule::NoRoom, self.at("spec.maxReplicaCount"),
                format!(
                    "KEDA keeps {most} Jobs running without messages (minReplicaCount {least}), so no message can start a Job"
                ),
                "set minReplicaCount to 0",
            ));
        }
        findings
    }

    /// KEDA counts a pod as pending until all of these conditions are true.
    fn pending_conditions(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let place = || self.at("spec.scalingStrategy.pendingPodConditions");
        let scaling = &self.spec["scalingStrategy"];
        let conditions: Vec<&str> = scaling["pendingPodConditions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let gates = self.pod["readinessGates"].as_array().into_iter().flatten();
        let gates: Vec<_> = gates.map(|gate| &gate["conditionType"]).collect();
        for condition in &conditions {
            if gates.iter().any(|gate| *gate == condition) {
                let what = format!("check cannot see when {condition} is set");
                findings.push(Finding::new(
                    Rule::ConditionUnseen,
                    place(),
                    what,
                    "set it to [ContainersReady], which Kubernetes sets itself",
                ));
            } else if !CONDITIONS.contains(condition) {
                let what = format!(
                    "Kubernetes never sets {condition:?} to true on a running pod, so KEDA counts every running Job as pending and creates none for the next message"
                );
                findings.push(Finding::new(
                    Rule::UnknownCondition,
                    place(),
                    what,
                    "set it to [ContainersReady]",
                ));
            }
        }
        if conditions.contains(&"Ready") {
            findings.push(Finding::new(Rule::ReadyCondition, place(),
                "when a node is lost, Kubernetes sets only Ready to False: KEDA counts each dead pod as pending and creates no Job for its message until the Node object is removed",
                "set it to [ContainersReady], which does not change when a node is lost",
            ));
        }
        let waits = conditions.iter().any(|condition| WAIT_FOR_A_PROBE.contains(condition));
        if waits && !self.containers().any(|container| container["readinessProbe"].is_object()) {
            findings.push(Finding::new(
                Rule::NoReadinessProbe,
                place(),
                "without a readinessProbe, a pod is ready as soon as it runs, and KEDA creates a second pod for the message that it is about to receive",
                "give the container a readinessProbe on /readyz, every second",
            ));
        }
        if scaling["strategy"] == "accurate" && !waits {
            findings.push(Finding::new(
                Rule::NoPendingCondition,
                place(),
                "KEDA creates a second pod for the message that a running pod is about to receive",
                "set it to [ContainersReady], with a readinessProbe on /readyz",
            ));
        }
        findings
    }

    /// Whether the strategy and scaleOnInFlight fit together.
    pub fn check_strategy(&self, place: &Location, in_flight: bool) -> Option<Finding> {
        let strategy = &self.spec["scalingStrategy"]["strategy"];
        match (strategy.as_str(), in_flight) {
            (Some("accurate"), true) => Some(Finding::new(
                Rule::InFlightCounted,
                place,
                "with strategy accurate and \"true\", KEDA's default, each poll creates another Job for each message that is being processed",
                "set it to \"false\"",
            )),
            (None | Some("default"), false) => Some(Finding::new(
                Rule::InFlightNotCounted,
                place,
                "with the default strategy and \"false\", new messages wait until running Jobs have ended",
                "set scalingStrategy.strategy to accurate, with pendingPodConditions [ContainersReady]",
            )),
            (Some("eager"), _) => Some(Finding::new(
                Rule::EagerStrategy,
                self.at("spec.scalingStrategy.strategy"),
                "strategy eager creates Jobs for messages that other pods are processing",
                "set it to accurate, with scaleOnInFlight \"false\"",
            )),
            (Some("custom"), _) => Some(Finding::new(
                Rule::CustomStrategy,
                self.at("spec.scalingStrategy.strategy"),
                "the effect of strategy custom depends on your numbers",
                "use accurate with scaleOnInFlight \"false\", which creates one Job per message",
            )),
            // Valid pairs; `fields` reports unknown strategies.
            (None | Some(_), _) => None,
        }
    }
}

/// Go's spellings of false, with which KEDA reads an annotation.
fn is_false(text: &str) -> bool {
    matches!(text, "0" | "f" | "F" | "false" | "FALSE" | "False")
}
