//! A container's environment, as far as it is in the file.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{ContainerPath, Manifest, ScaledJob, names};
use crate::check::{Finding, Location, Rule};

/// The longest value in an environment (`MAX_ARG_STRLEN` of Linux). The limit also ends the growth
/// of values that expand others repeatedly.
const LONGEST: usize = 128 * 1024;

/// The placeholder for a text that only the cluster knows.
pub const UNKNOWN: char = '\u{fffc}';

pub fn is_known(text: &str) -> bool {
    !text.contains(UNKNOWN)
}

/// The known variables, and whether others may be set.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    values: BTreeMap<String, String>,
    /// The lines of the manifest that set them.
    lines: BTreeMap<String, u64>,
    /// Whether an object that is not in the file may set any variable.
    pub has_unseen: bool,
}

impl Environment {
    /// The value of a variable; `None` if it is not set.
    pub fn get(&self, name: &str) -> Option<String> {
        let unseen = self.has_unseen.then(|| UNKNOWN.to_string());
        self.values.get(name).cloned().or(unseen)
    }

    /// The value, if it is in the file and not empty.
    pub fn known(&self, name: &str) -> Option<&str> {
        self.values
            .get(name)
            .map(String::as_str)
            .filter(|value| is_known(value) && !value.is_empty())
    }

    /// The line of the file that sets it.
    pub fn line(&self, name: &str) -> Option<u64> {
        self.lines.get(name).copied()
    }

    pub fn set(&mut self, name: &str, value: String) {
        let value = if value.len() > LONGEST { UNKNOWN.to_string() } else { value };
        self.values.insert(name.to_owned(), value);
    }

    /// The variables with leasehold's settings.
    pub fn settings(&self) -> impl Iterator<Item = (&String, &String)> {
        self.values.iter().filter(|(name, _)| name.starts_with("LEASEHOLD_"))
    }

    /// Replaces `$(NAME)` by the variable and `$$` by `$`, as Kubernetes does in `env`, `command`
    /// and `args`.
    pub fn expand(&self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push_str(before);
            rest = after;
            if let Some(after) = rest.strip_prefix('$') {
                expanded.push('$');
                rest = after;
            } else if let Some((name, after)) =
                rest.strip_prefix('(').and_then(|rest| rest.split_once(')'))
            {
                match self.get(name) {
                    Some(value) => expanded.push_str(&value),
                    None => expanded.extend(["$(", name, ")"]),
                }
                rest = after;
            } else {
                expanded.push('$');
            }
            if expanded.len() > LONGEST {
                return UNKNOWN.to_string();
            }
        }
        expanded + rest
    }
}

impl<'a> ScaledJob<'a> {
    /// The environment of one of the pod's containers; its findings are located at `path`.
    pub fn environment(
        &self,
        path: &ContainerPath,
        container: &Value,
    ) -> (Environment, Vec<Finding>) {
        let mut environment = Environment::default();
        let mut findings = Vec::new();
        for from in container["envFrom"].as_array().into_iter().flatten() {
            let prefix = from["prefix"].as_str().unwrap_or_default();
            for (kind, reference) in
                [("ConfigMap", &from["configMapRef"]), ("Secret", &from["secretRef"])]
            {
                let Some(name) = reference["name"].as_str() else { continue };
                let Some(object) = self.object(kind, name) else {
                    environment.has_unseen = true;
                    if reference["optional"] != true {
                        findings.push(self.missing_object(path.at("envFrom"), kind, name, NO_JOB));
                    }
                    continue;
                };
                let field = |key: &str| {
                    if object["stringData"][key].is_null() { "data" } else { "stringData" }
                };
                for (key, value) in data(object) {
                    let line = self.manifest.line(object, &format!("{}.{key}", field(&key)));
                    let name = format!("{prefix}{key}");
                    environment.lines.extend(line.map(|line| (name.clone(), line)));
                    environment.set(&name, value);
                }
            }
        }
        for (number, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
            let Some(name) = variable["name"].as_str() else { continue };
            let line = path.at(&format!("env[{number}].value")).line;
            let place = Location { name: format!("{}, env {name}", path.name), line };
            environment.lines.extend(line.map(|line| (name.to_owned(), line)));
            let value = match &variable["value"] {
                Value::Null => self.value_from(&place, name, &variable["valueFrom"], &mut findings),
                Value::String(text) => environment.expand(text),
                other
                @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                    // The value may be secret.
                    let what = "its value is not a string, so Kubernetes rejects the object";
                    findings.push(Finding::new(
                        Rule::NotAString,
                        place,
                        what,
                        "write it in quotes",
                    ));
                    other.to_string()
                }
            };
            environment.set(name, value);
        }
        (environment, findings)
    }

    fn value_from(
        &self,
        place: &Location,
        variable: &str,
        from: &Value,
        findings: &mut Vec<Finding>,
    ) -> String {
        let unknown = UNKNOWN.to_string();
        for (kind, reference) in
            [("ConfigMap", &from["configMapKeyRef"]), ("Secret", &from["secretKeyRef"])]
        {
            let (Some(name), Some(key)) = (reference["name"].as_str(), reference["key"].as_str())
            else {
                continue;
            };
            let optional = reference["optional"] == true;
            let Some(object) = self.object(kind, name) else {
                let missing = self.missing_object(place, kind, name, NO_JOB);
                // A missing object is reported only for our own settings, since the command may
                // read others.
                if !optional
                    && (missing.severity == super::Severity::Error
                        || variable.starts_with("LEASEHOLD_"))
                {
                    findings.push(missing);
                }
                return unknown;
            };
            if let Some(value) = data(object).remove(key) {
                return value;
            }
            if !optional {
                let what = format!("{kind} {name} has no key {key}, so its pods never start");
                findings.push(Finding::new(
                    Rule::KeyNotFound,
                    place,
                    what,
                    "correct the key, or add it there",
                ));
            }
            return unknown;
        }
        // A field of the pod is always set, and its value does not matter here.
        let is_set = from.is_null() || from["fieldRef"].is_object();
        if !is_set && variable.starts_with("LEASEHOLD_") {
            let what = "the source of its value is not in the file";
            findings.push(Finding::new(
                Rule::NotInFile,
                place,
                what,
                "run leasehold check in the pod",
            ));
        }
        if from.is_null() { String::new() } else { unknown }
    }

    /// The object with this name in the file, in the ScaledJob's namespace if both have one.
    pub fn object(&self, kind: &str, name: &str) -> Option<&'a Value> {
        self.of_kind(kind).find(|object| object["metadata"]["name"] == name)
    }

    pub fn of_kind(&self, kind: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        let (kind, namespace) = (kind.to_owned(), self.namespace);
        let is_here = move |object: &&Value| {
            let other = object["metadata"]["namespace"].as_str();
            object["kind"] == kind && (namespace.is_none() || other.is_none() || namespace == other)
        };
        self.manifest.objects.iter().filter(is_here)
    }

    /// The finding about a reference to an object that is not in the file: an error if another
    /// object is probably meant, since nothing refers to that one.
    pub fn missing_object(
        &self,
        place: impl Into<Location>,
        kind: &str,
        name: &str,
        effect: &str,
    ) -> Finding {
        let mut referenced = Vec::new();
        references(self.spec, kind, &mut referenced);
        let unused = self
            .of_kind(kind)
            .filter_map(|object| Some((object, object["metadata"]["name"].as_str()?)));
        let unused = unused.filter(|(_, other)| !referenced.contains(other));
        let is_meant = |(object, other): &(&Value, &str)| {
            let is_near = strsim::normalized_damerau_levenshtein(name, other) > 0.6;
            is_near || data(object).keys().any(|key| key.starts_with("LEASEHOLD_"))
        };
        let distance = |(_, other): &(&Value, &str)| strsim::damerau_levenshtein(name, other);
        if let Some((_, meant)) = unused.filter(is_meant).min_by_key(distance) {
            let what = format!("the file has no {kind} {name}: {effect}");
            return Finding::new(
                Rule::ReferenceNotFound,
                place,
                what,
                format!("did you mean {meant}?"),
            );
        }
        let what = format!("settings from {kind} {name} are not in the file");
        Finding::new(Rule::NotInFile, place, what, "render it together with the ScaledJob")
    }
}

/// The effect of a container whose environment KEDA cannot read.
const NO_JOB: &str = "KEDA sets the ScaledJob's Ready condition to False and creates no Job";

pub const NO_POD: &str = "its pods never start";

/// How to write a value as a string. Only an integer shows how it was written: `on` is true, and
/// 0755 is a fraction.
pub fn quoted(value: &Value) -> String {
    if value.is_i64() || value.is_u64() {
        format!("write it in quotes: \"{value}\"")
    } else {
        "write it in quotes".to_owned()
    }
}

/// The names of objects of this kind to which `value` refers.
fn references<'a>(value: &'a Value, kind: &str, names: &mut Vec<&'a str>) {
    let fields: &[(&str, &str)] = match kind {
        "ConfigMap" => {
            &[("configMapRef", "name"), ("configMapKeyRef", "name"), ("configMap", "name")]
        }
        "Secret" => &[
            ("secretRef", "name"),
            ("secretKeyRef", "name"),
            ("secret", "secretName"),
            ("secret", "name"),
        ],
        "TriggerAuthentication" | "ClusterTriggerAuthentication" => {
            &[("authenticationRef", "name")]
        }
        _ => &[],
    };
    match value {
        Value::Object(object) => {
            for (field, value) in object {
                let of_field = fields.iter().filter(|(of, _)| of == field);
                names.extend(of_field.filter_map(|(_, name)| value[name].as_str()));
                references(value, kind, names);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| references(value, kind, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

impl Manifest {
    /// The values in a ConfigMap or a Secret that are not strings.
    pub(super) fn non_strings(&self, object: &Value) -> Vec<Finding> {
        let kind = object["kind"].as_str().filter(|kind| matches!(*kind, "ConfigMap" | "Secret"));
        let Some(kind) = kind else { return Vec::new() };
        let name = object["metadata"]["name"].as_str().unwrap_or("without a name");
        let of = |field: &str| {
            let values = object[field].as_object().into_iter().flatten();
            let non_strings = values.filter(|(_, value)| !value.is_string() && !value.is_null());
            let finding = |(key, _): (&String, &Value)| {
                let field = format!("{field}.{key}");
                let place = Location {
                    name: format!("{kind} {name}, {field}"),
                    line: self.line(object, &field),
                };
                // Its value may be secret.
                let what = "it is not a string, so Kubernetes rejects the object";
                Finding::new(Rule::NotAString, place, what, "write it in quotes")
            };
            non_strings.map(finding).collect::<Vec<_>>()
        };
        [of("data"), of("stringData")].concat()
    }
}

/// The values of a ConfigMap or a Secret.
pub fn data(object: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let decoded = |value: &Value| {
        let bytes = STANDARD.decode(value.as_str()?.split_whitespace().collect::<String>()).ok()?;
        String::from_utf8(bytes).ok()
    };
    let is_secret = object["kind"] == "Secret";
    let of_data = names(&object["data"]).map(|key| {
        let value = &object["data"][key];
        let value = if is_secret {
            decoded(value).unwrap_or_else(|| UNKNOWN.to_string())
        } else {
            text(value)
        };
        (key.to_owned(), value)
    });
    let of_string_data =
        names(&object["stringData"]).map(|key| (key.to_owned(), text(&object["stringData"][key])));
    of_data.chain(of_string_data).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_as_in_kubernetes() {
        let mut environment = Environment::default();
        environment.set("A", "1".into());
        environment.set("SECRET", UNKNOWN.to_string());
        for (text, expanded) in [
            ("x$(A)y", "x1y"),
            ("$(A)$(A)", "11"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$A ${A} $", "$A ${A} $"),
            ("$(A", "$(A"),
            ("--key=$(SECRET)", "--key=\u{fffc}"),
        ] {
            assert_eq!(environment.expand(text), expanded, "{text}");
        }
        environment.has_unseen = true;
        assert_eq!(environment.expand("$(B)"), UNKNOWN.to_string());
        // Each value is twice as long as the one before, and the sixtieth would exceed any memory.
        for _ in 0..60 {
            environment.set("A", environment.expand("$(A)$(A)"));
        }
        assert!(!is_known(&environment.expand("$(A)")));
    }
}
