//! Kubernetes objects: built by kustomize, and checked for fields that Kubernetes or KEDA would
//! refuse or ignore.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::slice;

use leasehold::check::Severity;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::servers::installed;

/// The objects of the kustomization in `folder`.
pub fn build(folder: &Path) -> Vec<Value> {
    let built = run(installed("kubernetes", "kubectl").arg("kustomize").arg(folder), "");
    assert!(
        built.status.success(),
        "{}: {}",
        folder.display(),
        String::from_utf8_lossy(&built.stderr)
    );
    objects(&String::from_utf8(built.stdout).unwrap())
}

/// The objects in a text, parsed as YAML 1.1, as by kubectl and Helm.
pub fn objects(yaml: &str) -> Vec<Value> {
    const TO_JSON: &str = "import json, sys, yaml; print(json.dumps([one for one in yaml.safe_load_all(sys.stdin) if one]))";
    let converted = run(installed("kubernetes", "python").args(["-c", TO_JSON]), yaml);
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    serde_json::from_slice(&converted.stdout).unwrap()
}

/// The exit code and the output of `leasehold check --manifest - --strict`.
pub fn checked(objects: &[Value]) -> (Option<i32>, String) {
    let mut check = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    check.args(["check", "--strict", "--manifest", "-"]);
    let documents: Vec<_> = objects.iter().map(Value::to_string).collect();
    let checked = run(&mut check, &documents.join("\n---\n"));
    let output = String::from_utf8([checked.stdout, checked.stderr].concat()).unwrap();
    (checked.status.code(), output)
}

/// Runs a program with this standard input.
pub fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program is installed");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// The only object of this kind.
pub fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<_> = objects.iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

/// The oldest Kubernetes whose schema accepts our objects (before, a `podFailurePolicy` without
/// conditions was refused), and the newest one with a schema.
const KUBERNETES: [&str; 2] = ["1.29", "1.37"];

/// The errors of the objects, strictly parsed: one line each, with the object's name.
pub fn complaints(objects: &[Value]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut core = Vec::new();
    for object in objects {
        let name = object["metadata"]["name"].as_str().unwrap();
        let refused = match object["kind"].as_str().unwrap() {
            "ScaledJob" => {
                let job = &object["spec"]["jobTargetRef"];
                core.push(
                    json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name }, "spec": job }),
                );
                let findings = super::check_manifest::findings(slice::from_ref(object)).into_iter();
                // Only of this object: settings from other objects are unchecked here.
                let findings = findings.filter(|finding| finding.severity != Severity::Unchecked);
                complaints.extend(findings.map(|finding| finding.to_string()));
                read::<Value>(object)
            }
            "TriggerAuthentication" => read::<TriggerAuthentication>(object),
            "PodMonitor" => read::<PodMonitor>(object),
            "ServiceMonitor" => read::<ServiceMonitor>(object),
            "PrometheusRule" => read::<PrometheusRule>(object),
            _ => {
                core.push(object.clone());
                Ok(())
            }
        };
        complaints.extend(refused.err().map(|error| format!("{} {name}: {error}", object["kind"])));
    }
    // JSON is YAML.
    let documents: Vec<_> = core.iter().map(Value::to_string).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(documents.join("\n---\n").as_bytes()).unwrap();
    for version in KUBERNETES {
        let mut validate = installed("kubernetes", "kubernetes-validate");
        let validated =
            run(validate.args(["--strict", "--quiet", "-k", version]).arg(file.path()), "");
        // A kind without a schema is only a warning, but a complaint here.
        let output = String::from_utf8([validated.stdout, validated.stderr].concat()).unwrap();
        assert!(validated.status.success() || !output.is_empty(), "it fails without output");
        complaints.extend(output.lines().map(str::to_owned));
    }
    complaints
}

fn read<Spec: DeserializeOwned>(object: &Value) -> Result<(), serde_json::Error> {
    serde_json::from_value::<Object<Spec>>(object.clone()).map(drop)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct Object<Spec> {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct Metadata {
    name: String,
    namespace: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

/// As in KEDA 2.20, with the AWS credentials that we use.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct TriggerAuthentication {
    pod_identity: Option<PodIdentity>,
    secret_target_ref: Option<Vec<SecretTargetRef>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct PodIdentity {
    provider: Provider,
    identity_owner: Option<IdentityOwner>,
    role_arn: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Provider {
    Aws,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum IdentityOwner {
    Keda,
    Workload,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct SecretTargetRef {
    parameter: String,
    name: String,
    key: String,
}

/// As in the Prometheus Operator, with the fields that we use.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct PodMonitor {
    selector: Selector,
    pod_metrics_endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct ServiceMonitor {
    selector: Selector,
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct PrometheusRule {
    groups: Vec<RuleGroup>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct RuleGroup {
    name: String,
    interval: Option<String>,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct Rule {
    alert: Option<String>,
    record: Option<String>,
    expr: String,
    #[serde(rename = "for")]
    lasting: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "read to be checked")]
struct Endpoint {
    port: String,
    interval: Option<String>,
    honor_labels: Option<bool>,
}
