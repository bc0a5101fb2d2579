//! The fields that a ScaledJob has: those of KEDA 2.20's CustomResourceDefinition, and the metadata of its trigger
//! `aws-sqs-queue`.

use serde_json::Value;

use super::environment::quoted;
use super::{ScaledJob, names};
use crate::check::Finding;

/// A field's name, and what belongs there.
pub type Field = (&'static str, Shape);

pub enum Shape {
    /// Whatever else looks at it.
    Any,
    Text,
    Texts,
    /// Names with texts.
    TextMap,
    Truth,
    Number,
    /// A number from 1 on.
    Positive,
    OneOf(&'static [&'static str]),
    Object(&'static [Field]),
    List(&'static [Field]),
    /// It is there, and is found in many samples, but does nothing or is on its way out: what to do instead.
    Outdated(&'static str),
    /// It is none, but of other kinds, and is found in many samples: what is true instead.
    Foreign(&'static str),
}

use Shape::{Any, Foreign, List, Number, Object, OneOf, Outdated, Positive, Text, TextMap, Texts, Truth};

const SPEC: &[Field] = &[
    ("jobTargetRef", Any),
    ("triggers", List(TRIGGER)),
    ("pollingInterval", Positive),
    ("successfulJobsHistoryLimit", Number),
    ("failedJobsHistoryLimit", Number),
    ("rollout", Object(ROLLOUT)),
    ("rolloutStrategy", Outdated("write rollout.strategy")),
    ("envSourceContainerName", Text),
    ("minReplicaCount", Number),
    ("maxReplicaCount", Positive),
    ("scalingStrategy", Object(SCALING_STRATEGY)),
    ("cooldownPeriod", Foreign("a Job ends when its work does, there is nothing to cool down: remove it")),
    ("scaleTargetRef", Foreign("a ScaledJob has jobTargetRef, a whole Job's spec: write that")),
    ("fallback", Foreign("remove it")),
    ("advanced", Foreign("remove it; what a ScaledJob has is scalingStrategy")),
    ("idleReplicaCount", Foreign("remove it")),
];

const ROLLOUT: &[Field] =
    &[("strategy", OneOf(&["gradual", "immediate"])), ("propagationPolicy", OneOf(&["foreground", "background"]))];

const SCALING_STRATEGY: &[Field] = &[
    ("strategy", OneOf(&["accurate", "default", "custom", "eager"])),
    ("pendingPodConditions", Texts),
    ("customScalingQueueLengthDeduction", Number),
    ("customScalingRunningJobPercentage", Text),
    ("multipleScalersCalculation", Outdated("remove it: there is one queue")),
];

const TRIGGER: &[Field] = &[
    ("type", Text),
    ("name", Text),
    // Another one for each type.
    ("metadata", Any),
    ("authenticationRef", Object(AUTHENTICATION_REF)),
    ("useCachedMetrics", Outdated("remove it: a ScaledJob asks at each poll")),
    ("metricType", Foreign("a ScaledJob may not have it: remove it")),
];

const AUTHENTICATION_REF: &[Field] =
    &[("name", Text), ("kind", OneOf(&["TriggerAuthentication", "ClusterTriggerAuthentication"]))];

pub const METADATA: &[Field] = &[
    ("queueURL", Text),
    ("queueURLFromEnv", Text),
    ("queueLength", Text),
    ("activationQueueLength", Text),
    ("awsRegion", Text),
    ("awsEndpoint", Text),
    ("scaleOnInFlight", Text),
    ("scaleOnDelayed", Text),
    ("identityOwner", Outdated("refer to a TriggerAuthentication with podIdentity instead")),
    ("awsAccessKeyIDFromEnv", Outdated("refer to a TriggerAuthentication with secretTargetRef instead")),
    ("awsSecretAccessKeyFromEnv", Outdated("refer to a TriggerAuthentication with secretTargetRef instead")),
];

/// Those that are looked at of what is Kubernetes' own; of the others it says itself what is wrong.
const JOB: &[Field] = &[
    ("backoffLimit", Number),
    ("parallelism", Number),
    ("completions", Number),
    ("activeDeadlineSeconds", Number),
    ("ttlSecondsAfterFinished", Number),
    ("suspend", Truth),
];
const POD: &[Field] =
    &[("terminationGracePeriodSeconds", Number), ("activeDeadlineSeconds", Number), ("nodeSelector", TextMap)];
const METADATA_OF_OBJECT: &[Field] = &[("labels", TextMap), ("annotations", TextMap)];

/// What KEDA or Kubernetes would ignore or refuse.
pub fn findings(scaled_job: &ScaledJob) -> Vec<Finding> {
    let mut findings = Vec::new();
    let at = |field: &str| scaled_job.at(field);
    object(&at, "spec", scaled_job.spec, SPEC, &mut findings);
    let template = &scaled_job.job["template"];
    for (path, value, known) in [
        ("metadata", scaled_job.metadata, METADATA_OF_OBJECT),
        ("spec.jobTargetRef", scaled_job.job, JOB),
        ("spec.jobTargetRef.template.metadata", &template["metadata"], METADATA_OF_OBJECT),
        ("spec.jobTargetRef.template.spec", &template["spec"], POD),
    ] {
        for (name, shape) in known.iter().filter(|(name, _)| !value[*name].is_null()) {
            field(&at, &format!("{path}.{name}"), &value[*name], shape, &mut findings);
        }
    }
    for field in names(scaled_job.job).filter(|field| real(SPEC).any(|real| real == *field)) {
        findings.push(Finding::error(
            scaled_job.at(&format!("spec.jobTargetRef.{field}")),
            "it is nested too deep: a Job has no such field",
            format!("move it to spec.{field}, beside jobTargetRef"),
        ));
    }
    if scaled_job.job.is_null() {
        let change = "write a Job's spec there";
        findings.push(Finding::error(scaled_job.at("spec.jobTargetRef"), "it is missing", change));
    }
    findings
}

/// What of `value`, which is at `path`, is not as `known` says. `at` makes a path a place.
pub fn object(
    at: &dyn Fn(&str) -> String,
    path: &str,
    value: &Value,
    known: &'static [Field],
    findings: &mut Vec<Finding>,
) {
    let Some(fields) = value.as_object() else {
        if !value.is_null() {
            findings.push(Finding::error(
                at(path),
                format!("{value} is not an object"),
                "write fields and their values",
            ));
        }
        return;
    };
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        let path = format!("{path}.{name}");
        if let Some((_, shape)) = known.iter().find(|(known, _)| known == name) {
            field(at, &path, value, shape, findings);
        } else {
            let change = format!("did you mean {}?", nearest(name, known));
            findings.push(Finding::error(at(&path), "KEDA has no such field, and ignores it", change));
        }
    }
}

fn field(at: &dyn Fn(&str) -> String, path: &str, value: &Value, shape: &'static Shape, findings: &mut Vec<Finding>) {
    let refused = |what: &str| format!("{value} is not {what}, and Kubernetes refuses it");
    let not_a_number =
        || (!value.is_u64()).then(|| Finding::error(at(path), refused("an integer"), "write a number without quotes"));
    let found = match shape {
        Any => None,
        Text => (!value.is_string()).then(|| Finding::error(at(path), refused("a string"), quoted(value))),
        Texts => {
            let is_list = value.as_array().is_some_and(|all| all.iter().all(Value::is_string));
            (!is_list).then(|| Finding::error(at(path), refused("a list of strings"), "write it as one"))
        }
        TextMap => {
            for (name, value) in value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
                field(at, &format!("{path}.{name}"), value, &Text, findings);
            }
            (!value.is_object()).then(|| Finding::error(at(path), refused("an object"), "write names and texts"))
        }
        Truth => (!value.is_boolean())
            .then(|| Finding::error(at(path), refused("a boolean"), "write true or false without quotes")),
        Positive if value == 0 => {
            Some(Finding::error(at(path), "it is 0, and Kubernetes refuses the object", "set it to 1 or more"))
        }
        Number | Positive => not_a_number(),
        OneOf(values) => (!values.iter().any(|one| value == one)).then(|| {
            let change = format!("set it to {}", values.join(" or "));
            Finding::error(at(path), format!("KEDA has no {value}"), change)
        }),
        Object(known) => {
            object(at, path, value, known, findings);
            None
        }
        List(known) => match value.as_array() {
            Some(all) => {
                for (number, one) in all.iter().enumerate() {
                    object(at, &format!("{path}[{number}]"), one, known, findings);
                }
                None
            }
            None => Some(Finding::error(at(path), refused("a list"), "write it as one")),
        },
        Outdated(change) => Some(Finding::warning(at(path), "it is outdated, or means nothing for a queue", *change)),
        Foreign(change) => {
            Some(Finding::error(at(path), "no field of a ScaledJob: ignored, or refused by kubectl apply", *change))
        }
    };
    findings.extend(found);
}

/// The names of the fields that are what they seem.
fn real(fields: &'static [Field]) -> impl Iterator<Item = &'static str> {
    fields.iter().filter(|(_, shape)| !matches!(shape, Foreign(_))).map(|(name, _)| *name)
}

fn nearest(name: &str, known: &'static [Field]) -> &'static str {
    let distance = |known: &&str| strsim::damerau_levenshtein(&known.to_lowercase(), &name.to_lowercase());
    real(known).min_by_key(distance).unwrap_or_default()
}
