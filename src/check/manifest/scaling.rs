//! How many Jobs KEDA makes.

use serde_json::Value;

use super::ScaledJob;
use super::fields::{self, METADATA};
use crate::check::Finding;

/// The conditions that are true on every pod that works (Kubernetes, "Pod Lifecycle", "Pod conditions").
const CONDITIONS: [&str; 5] =
    ["PodScheduled", "PodReadyToStartContainers", "Initialized", WAIT_FOR_A_PROBE[0], WAIT_FOR_A_PROBE[1]];

/// Those of them that follow the readinessProbe.
const WAIT_FOR_A_PROBE: [&str; 2] = ["ContainersReady", "Ready"];

impl ScaledJob<'_> {
    pub fn scaling(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        match self.spec["rollout"]["strategy"].as_str() {
            None | Some("immediate") => findings.push(Finding::error(
                self.at("spec.rollout.strategy"),
                "it is immediate, KEDA's default: each edit of this object stops every pod that works",
                "set it to gradual",
            )),
            Some(_) => {}
        }
        if self.spec["minReplicaCount"].as_u64().is_some_and(|count| count > 0) {
            findings.push(Finding::warning(
                self.at("spec.minReplicaCount"),
                "so many Jobs are kept running at all times, which find the queue empty at every poll",
                "set it to 0",
            ));
        }
        let scaling = &self.spec["scalingStrategy"];
        if scaling["strategy"] == "default" {
            findings.push(Finding::warning(
                self.at("spec.scalingStrategy.strategy"),
                "KEDA 2.20.0 and 2.20.1 refuse \"default\", although it is what they do without it",
                "remove it",
            ));
        }
        findings.extend(self.pending_conditions());
        findings
    }

    /// Which pods KEDA counts as pending: those without all of these conditions.
    fn pending_conditions(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let place = || self.at("spec.scalingStrategy.pendingPodConditions");
        let scaling = &self.spec["scalingStrategy"];
        let conditions: Vec<&str> =
            scaling["pendingPodConditions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let gates = self.pod["readinessGates"].as_array().into_iter().flatten();
        let gates: Vec<_> = gates.map(|gate| &gate["conditionType"]).collect();
        for condition in &conditions {
            if gates.iter().any(|gate| *gate == condition) {
                let what = format!("whether and when somebody sets {condition} could not be seen");
                findings.push(Finding::unchecked(place(), what, "[ContainersReady] needs nobody else"));
            } else if !CONDITIONS.contains(condition) {
                let what = format!(
                    "Kubernetes never sets {condition:?} to true on a pod that works, so KEDA counts every running Job \
                     as pending and starts none for the next message"
                );
                findings.push(Finding::error(place(), what, "set it to [ContainersReady]"));
            }
        }
        if conditions.contains(&"Ready") {
            findings.push(Finding::warning(
                place(),
                "when a node is lost, Kubernetes sets only Ready to False: KEDA counts each dead pod as pending and starts \
                 no Job for its message until the Node object is removed",
                "set it to [ContainersReady], which stays as it was",
            ));
        }
        let waits = conditions.iter().any(|condition| WAIT_FOR_A_PROBE.contains(condition));
        if waits && !self.containers().any(|container| container["readinessProbe"].is_object()) {
            findings.push(Finding::warning(
                place(),
                "without a readinessProbe a pod is ready as soon as it runs, and gets a twin before it has received",
                "give the container a readinessProbe on /readyz, every second",
            ));
        }
        if scaling["strategy"] == "accurate" && !waits {
            findings.push(Finding::warning(
                place(),
                "a pod that runs but has not received yet gets a twin",
                "set it to [ContainersReady], with a readinessProbe on /readyz",
            ));
        }
        findings
    }

    pub fn triggers(&self) -> Vec<Finding> {
        let Some(triggers) = self.spec["triggers"].as_array() else {
            let change = "add an aws-sqs-queue trigger there, beside jobTargetRef";
            return vec![Finding::error(self.at("spec.triggers"), "it is missing: nothing starts a Job", change)];
        };
        let of_sqs = |trigger: &&(usize, &Value)| trigger.1["type"] == "aws-sqs-queue";
        let numbered: Vec<_> = triggers.iter().enumerate().collect();
        let of_sqs: Vec<_> = numbered.iter().filter(of_sqs).collect();
        if of_sqs.is_empty() {
            return vec![Finding::error(self.at("spec.triggers"), "none is of type aws-sqs-queue", "add one")];
        }
        let mut findings: Vec<_> = of_sqs.iter().flat_map(|(number, trigger)| self.trigger(*number, trigger)).collect();
        if triggers.len() > 1 {
            findings.push(Finding::warning(
                self.at("spec.triggers"),
                "a pod receives from one queue: for what the others count it finds nothing",
                "give each queue a ScaledJob of its own",
            ));
        }
        findings
    }

    fn trigger(&self, number: usize, trigger: &Value) -> Vec<Finding> {
        let mut findings = Vec::new();
        let metadata = &trigger["metadata"];
        let place = |field: &str| self.at(&format!("spec.triggers[{number}].{field}"));
        fields::object(
            &|field| self.at(field),
            &format!("spec.triggers[{number}].metadata"),
            metadata,
            METADATA,
            &mut findings,
        );
        let value = |name: &str| metadata[name].as_str().map_or_else(|| metadata[name].to_string(), str::to_owned);
        let is_set = |name: &str| !metadata[name].is_null();
        if !is_set("queueURL") && !is_set("queueURLFromEnv") {
            findings.push(Finding::error(
                place("metadata.queueURL"),
                "it is missing",
                "set it, or queueURLFromEnv: LEASEHOLD_QUEUE_URL",
            ));
        }
        if !is_set("awsRegion") {
            findings.push(Finding::error(
                place("metadata.awsRegion"),
                "it is missing, and KEDA needs it",
                "set it to the queue's region",
            ));
        }
        let as_itself = trigger["authenticationRef"]["name"].is_string()
            || is_set("awsAccessKeyIDFromEnv")
            || value("identityOwner") == "operator";
        if !as_itself {
            findings.push(Finding::error(
                place("authenticationRef"),
                "it is missing, so KEDA has nothing to sign with, and never learns the queue's length",
                "name a TriggerAuthentication, for example with podIdentity: {provider: aws}",
            ));
        }
        if !is_set("queueLength") {
            findings.push(Finding::error(
                place("metadata.queueLength"),
                "it is 5, KEDA's default: one pod for five messages",
                "set it to \"1\", or to --max-messages",
            ));
        }
        if is_set("activationQueueLength") && value("activationQueueLength") != "0" {
            findings.push(Finding::warning(
                place("metadata.activationQueueLength"),
                format!("{} messages or fewer never start a Job", value("activationQueueLength")),
                "remove it",
            ));
        }
        findings.extend(self.pairing(&place("metadata.scaleOnInFlight"), value("scaleOnInFlight") != "false"));
        findings
    }

    /// Which strategies count messages in flight, and which must not.
    fn pairing(&self, place: &str, in_flight: bool) -> Option<Finding> {
        let strategy = &self.spec["scalingStrategy"]["strategy"];
        match (strategy.as_str(), in_flight) {
            (Some("accurate"), true) => Some(Finding::error(
                place,
                "with strategy accurate and \"true\", KEDA's default, each poll makes a Job for each message that is worked on",
                "set it to \"false\"",
            )),
            (None | Some("default"), false) => Some(Finding::error(
                place,
                "with the default strategy and \"false\" new messages wait until running Jobs have ended",
                "set scalingStrategy.strategy to accurate, with pendingPodConditions [ContainersReady]",
            )),
            (Some("eager"), _) => Some(Finding::error(
                self.at("spec.scalingStrategy.strategy"),
                "eager makes Jobs for messages that others work on",
                "set it to accurate, with scaleOnInFlight \"false\"",
            )),
            (Some("custom"), _) => Some(Finding::unchecked(
                self.at("spec.scalingStrategy.strategy"),
                "what custom does depends on numbers of yours",
                "accurate with scaleOnInFlight \"false\" makes one Job a message",
            )),
            // The pairs that go together; and what is no strategy is told where the fields are.
            (None | Some(_), _) => None,
        }
    }
}
