//! Checks the fields of a ScaledJob against the schema, and finds wrong fields that many samples
//! contain.

use serde_json::Value;

use super::environment::quoted;
use super::schema::Schema;
use super::{ScaledJob, names};
use crate::check::{Finding, Location, Rule, Severity};

/// Fields of a ScaledJob that have no effect or are deprecated (KEDA's documentation and
/// deprecation notices), and what to do instead. The paths have no numbers, so that they match all
/// items.
const OUTDATED: [(&str, &str); 6] = [
    ("spec.rolloutStrategy", "write rollout.strategy"),
    (
        "spec.scalingStrategy.multipleScalersCalculation",
        "remove it: a ScaledJob of leasehold has one queue",
    ),
    (
        "spec.triggers.useCachedMetrics",
        "remove it: it has no effect on a ScaledJob, which reads the queue at each poll",
    ),
    (
        "spec.triggers.metadata.identityOwner",
        "refer to a TriggerAuthentication with podIdentity instead",
    ),
    (
        "spec.triggers.metadata.awsAccessKeyIDFromEnv",
        "refer to a TriggerAuthentication with secretTargetRef instead",
    ),
    (
        "spec.triggers.metadata.awsSecretAccessKeyFromEnv",
        "refer to a TriggerAuthentication with secretTargetRef instead",
    ),
];

/// Fields of other kinds, mostly of ScaledObjects, and what to do instead.
const FOREIGN: [(&str, &str); 6] = [
    ("spec.cooldownPeriod", "remove it: a Job ends by itself, so a cooldown has no effect"),
    ("spec.scaleTargetRef", "use jobTargetRef, which holds the spec of a Job"),
    ("spec.fallback", "remove it"),
    ("spec.advanced", "remove it; a ScaledJob has scalingStrategy instead"),
    ("spec.idleReplicaCount", "remove it"),
    // The schema has this field, since other triggers share it.
    ("spec.triggers.metricType", "remove it: a ScaledJob does not have it"),
];

/// Above this similarity, a name counts as misspelled (normalised Damerau-Levenshtein similarity,
/// in lower case).
const SIMILAR: f64 = 0.5;

/// Finds fields that KEDA or Kubernetes would ignore or refuse.
pub fn findings(scaled_job: &ScaledJob) -> Vec<Finding> {
    let at = |field: &str| scaled_job.at(field);
    let schema = &scaled_job.manifest.schema;
    let mut walk = Walk { at: &at, schema, findings: Vec::new() };
    // A CustomResourceDefinition has no fields for the object's own metadata.
    let own = Schema::default();
    let of_metadata = &own.root()["properties"]["metadata"];
    for (path, value, known) in [
        ("metadata", scaled_job.metadata, of_metadata),
        ("spec", scaled_job.spec, &schema.root()["properties"]["spec"]),
    ] {
        if !value.is_null() {
            walk.value(path, value, known);
        }
    }
    let mut findings = walk.findings;
    let of_spec = &schema.root()["properties"]["spec"]["properties"];
    let of_job = &of_spec["jobTargetRef"]["properties"];
    for field in
        names(scaled_job.job).filter(|field| !of_spec[*field].is_null() && of_job[*field].is_null())
    {
        let place = scaled_job.at(&format!("spec.jobTargetRef.{field}"));
        findings.retain(|finding| finding.place != place.name);
        let what = "it is nested too deep: the spec of a Job has no such field";
        let change = format!("move it to spec.{field}, beside jobTargetRef");
        findings.push(Finding::new(Rule::NestedTooDeep, place, what, change));
    }
    if scaled_job.job.is_null() {
        let change = "write a Job's spec there";
        findings.push(Finding::new(
            Rule::NoJobTarget,
            scaled_job.at("spec.jobTargetRef"),
            "it is missing",
            change,
        ));
    }
    findings
}

/// Findings about a trigger's metadata at `path`. No CustomResourceDefinition has these fields.
pub fn check_trigger(scaled_job: &ScaledJob, path: &str, metadata: &Value) -> Vec<Finding> {
    let at = |field: &str| scaled_job.at(field);
    let schema = Schema::default();
    let mut walk = Walk { at: &at, schema: &schema, findings: Vec::new() };
    if !metadata.is_null() {
        walk.value(path, metadata, schema.trigger_metadata());
    }
    walk.findings
}

/// Walks through a value and its schema side by side, as deep as the value.
struct Walk<'a> {
    at: &'a dyn Fn(&str) -> Location,
    schema: &'a Schema,
    findings: Vec<Finding>,
}

impl Walk<'_> {
    fn value(&mut self, path: &str, value: &Value, known: &Value) {
        let name = without_numbers(path);
        if let Some((_, change)) = OUTDATED.iter().find(|(outdated, _)| *outdated == name) {
            let what = "it is outdated, or has no effect for a queue";
            return self.push(Rule::OutdatedField, path, what, *change);
        }
        if known["x-kubernetes-int-or-string"] == true {
            return;
        }
        let refused =
            |what: &str| format!("{value} is not {what}, so Kubernetes rejects the object");
        match known["type"].as_str() {
            Some("object") if !value.is_object() => {
                let change = "write an object, with fields and values";
                self.push(Rule::WrongType, path, format!("{value} is not an object"), change);
            }
            Some("object") => self.object(path, value, known),
            Some("array") => {
                let of_strings = known["items"]["type"] == "string";
                match value.as_array() {
                    Some(items) if !of_strings || items.iter().all(Value::is_string) => {
                        for (number, item) in items.iter().enumerate() {
                            self.value(&format!("{path}[{number}]"), item, &known["items"]);
                        }
                    }
                    Some(_) | None => {
                        let what = refused(if of_strings { "a list of strings" } else { "a list" });
                        self.push(Rule::WrongType, path, what, "write it as a list");
                    }
                }
            }
            Some("string") if !value.is_string() => {
                self.push(Rule::WrongType, path, refused("a string"), quoted(value));
            }
            Some("integer") if !value.is_i64() && !value.is_u64() => {
                self.push(
                    Rule::WrongType,
                    path,
                    refused("an integer"),
                    "write a number without quotes",
                );
            }
            Some("boolean") if !value.is_boolean() => {
                self.push(
                    Rule::WrongType,
                    path,
                    refused("a boolean"),
                    "write true or false without quotes",
                );
            }
            Some(_) | None => self.limits(path, value, known),
        }
    }

    fn object(&mut self, path: &str, value: &Value, known: &Value) {
        let is_open =
            known["properties"].is_null() || known["x-kubernetes-preserve-unknown-fields"] == true;
        for (name, value) in
            value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null())
        {
            let path = format!("{path}.{name}");
            let foreign = without_numbers(&path);
            if let Some((_, change)) =
                FOREIGN.iter().find(|(foreign_path, _)| *foreign_path == foreign)
            {
                let what =
                    "a ScaledJob has no such field: it is ignored, or rejected by kubectl apply";
                self.push(Rule::ForeignField, &path, what, *change);
            } else if let Some(known) =
                known["properties"].get(name).or(known.get("additionalProperties"))
            {
                self.value(&path, value, known);
            } else if !is_open {
                self.unknown(&path, name, &known["properties"]);
            }
        }
    }

    fn unknown(&mut self, path: &str, name: &str, known: &Value) {
        let name = name.to_lowercase();
        let likeness =
            |known: &str| strsim::normalized_damerau_levenshtein(&known.to_lowercase(), &name);
        let near = names(known)
            .map(|known| (likeness(known), known))
            .max_by(|one, other| one.0.total_cmp(&other.0));
        if let Some((_, near)) = near.filter(|(likeness, _)| *likeness > SIMILAR) {
            let change = format!("did you mean {near}?");
            return self.push(
                Rule::MisspelledField,
                path,
                "KEDA has no such field and ignores it",
                change,
            );
        }
        let (whose, severity, change) = if self.schema.is_of_cluster {
            ("the cluster's KEDA".to_owned(), Severity::Error, "remove it")
        } else {
            let change =
                "remove it, or check against your cluster's CustomResourceDefinition with --crd";
            (format!("KEDA {}", self.schema.version()), Rule::UnknownField.severity(), change)
        };
        let what = format!("{whose} has no such field and ignores it");
        let finding = Finding::new(Rule::UnknownField, (self.at)(path), what, change);
        self.findings.push(finding.with_severity(severity));
    }

    /// Checks the limits of a value of the right type.
    fn limits(&mut self, path: &str, value: &Value, known: &Value) {
        if let Some(values) = known["enum"].as_array().filter(|values| !values.contains(value)) {
            let values: Vec<_> = values.iter().filter_map(Value::as_str).collect();
            let change = format!("set it to {}", values.join(" or "));
            self.push(
                Rule::UnknownValue,
                path,
                format!("KEDA does not know the value {value}"),
                change,
            );
        }
        let least = known["minimum"].as_i64();
        if let Some(least) =
            least.filter(|least| value.as_i64().is_some_and(|value| value < *least))
        {
            let what = format!("it is {value}, so Kubernetes rejects the object");
            self.push(Rule::BelowMinimum, path, what, format!("set it to {least} or more"));
        }
    }

    fn push(&mut self, rule: Rule, path: &str, what: impl Into<String>, change: impl Into<String>) {
        self.findings.push(Finding::new(rule, (self.at)(path), what, change));
    }
}

/// `spec.triggers[0].name` as `spec.triggers.name`.
fn without_numbers(path: &str) -> String {
    path.split('.')
        .map(|part| part.split_once('[').map_or(part, |(name, _)| name))
        .collect::<Vec<_>>()
        .join(".")
}
