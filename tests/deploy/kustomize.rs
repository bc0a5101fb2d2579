//! The manifests: every overlay and component builds, and Kubernetes and KEDA accept each object as
//! intended.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use leasehold::settings::command_line::command;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::manifests::{build, checked, complaints, only};
use crate::support::servers::installed;

const OVERLAYS: [&str; 4] = ["heartbeat", "fixed", "spot", "local"];

const COMPONENTS: [&str; 10] = [
    "network-policy",
    "irsa",
    "pod-identity",
    "pushgateway",
    "service-monitor",
    "pod-monitor",
    "prometheus-rule",
    "dashboard",
    "mountpoint",
    "ephemeral-volume",
];

fn kustomize() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kustomize")
}

pub fn overlay(name: &str) -> Vec<Value> {
    build(&kustomize().join("overlays").join(name))
}

/// The objects of a user's kustomization; it refers to our folders as `../PATH`.
pub fn user(kustomization: &str) -> Vec<Value> {
    let folder = TempDir::new().unwrap();
    let copied = Command::new("cp").arg("-R").arg(kustomize()).arg(folder.path()).status().unwrap();
    assert!(copied.success());
    let own = folder.path().join("kustomize/own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("kustomization.yaml"), kustomization).unwrap();
    build(&own)
}

fn with_components(components: &[&str]) -> Vec<Value> {
    let components: Vec<_> =
        components.iter().map(|name| format!("../components/{name}")).collect();
    user(&json!({ "resources": ["../base"], "components": components }).to_string())
}

fn folders(below: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(kustomize().join(below)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn container(objects: &[Value]) -> &Value {
    &only(objects, "ScaledJob")["spec"]["jobTargetRef"]["template"]["spec"]["containers"][0]
}

fn env<'a>(objects: &'a [Value], name: &str) -> &'a str {
    let env = container(objects)["env"].as_array().unwrap();
    env.iter().find(|variable| variable["name"] == name).unwrap()["value"].as_str().unwrap()
}

#[test]
fn kubectl_is_new_enough() {
    let version = installed("kubernetes", "kubectl")
        .args(["version", "--client", "--output=json"])
        .output()
        .unwrap();
    let version: Value = serde_json::from_slice(&version.stdout).unwrap();
    let minor = version["clientVersion"]["minor"].as_str().unwrap();
    let is_new = minor.trim_end_matches('+').parse::<u32>().unwrap() >= 27;
    assert!(
        is_new,
        "kubectl 1.{minor} cannot build these: 1.27 or later is needed; Debian 12's 1.20 is too old"
    );
}

#[test]
fn every_overlay_is_valid() {
    assert_eq!(folders("overlays"), OVERLAYS.map(str::to_owned).into());
    let objects = OVERLAYS.map(overlay).concat();
    assert_eq!(complaints(&objects), [""; 0]);
}

#[test]
fn every_component_is_valid_alone_and_combined() {
    assert_eq!(folders("components"), COMPONENTS.map(str::to_owned).into());
    let alone = COMPONENTS.map(|name| with_components(&[name])).concat();
    assert_eq!(complaints(&[alone, with_components(&COMPONENTS)].concat()), [""; 0]);
}

/// deploy/kustomize/README.md: its kustomization, and its tables of overlays and components.
#[test]
fn the_page_has_a_valid_kustomization_and_names_every_folder() {
    let page = std::fs::read_to_string(kustomize().join("README.md")).unwrap();
    let (_, block) = page.split_once("```yaml\n").unwrap();
    let objects = user(block.split("```").next().unwrap());
    assert_eq!(complaints(&objects), [""; 0]);
    let (code, output) = checked(&objects);
    assert_eq!(code, Some(0), "{output}");

    let rows = |title: &str| -> BTreeSet<String> {
        let (_, section) = page.split_once(&format!("\n## {title}\n")).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        rows.map(str::to_owned).collect()
    };
    assert_eq!(
        (rows("Overlays"), rows("Components")),
        (folders("overlays"), folders("components"))
    );
}

/// The references of objects to others: the other's kind, and the pointer to its name.
const REFERENCES: [(&str, &str); 12] = [
    ("ConfigMap", "/spec/jobTargetRef/template/spec/containers/0/envFrom/0/configMapRef/name"),
    ("ConfigMap", "/spec/jobTargetRef/template/spec/volumes/1/configMap/name"),
    (
        "ConfigMap",
        "/spec/jobTemplate/spec/template/spec/containers/0/env/0/valueFrom/configMapKeyRef/name",
    ),
    ("Secret", "/spec/jobTargetRef/template/spec/containers/0/envFrom/1/secretRef/name"),
    ("Secret", "/spec/secretTargetRef/0/name"),
    ("Secret", "/spec/secretTargetRef/1/name"),
    ("ServiceAccount", "/spec/jobTargetRef/template/spec/serviceAccountName"),
    ("TriggerAuthentication", "/spec/triggers/0/authenticationRef/name"),
    ("Deployment", "/spec/selector/app.kubernetes.io~1name"),
    ("Deployment", "/spec/selector/matchLabels/app.kubernetes.io~1name"),
    ("Deployment", "/spec/podSelector/matchLabels/app.kubernetes.io~1name"),
    ("Deployment", "/spec/egress/2/to/0/podSelector/matchLabels/app.kubernetes.io~1name"),
];

/// Checks each reference, and returns their number.
fn check_references(objects: &[Value]) -> usize {
    let names = |kind: &str| -> Vec<&Value> {
        objects
            .iter()
            .filter(|object| object["kind"] == kind)
            .map(|object| &object["metadata"]["name"])
            .collect()
    };
    let mut found = 0;
    for (kind, path) in REFERENCES {
        for object in objects {
            let Some(name) = object.pointer(path).filter(|_| object["kind"] != "PodMonitor") else {
                continue;
            };
            found += 1;
            assert!(
                names(kind).contains(&name),
                "{} refers to the {kind} {name}; there are {:?}",
                object["kind"],
                names(kind)
            );
        }
    }
    found
}

#[test]
fn every_referenced_name_exists_also_with_a_prefix() {
    // The Pushgateway is selected by its label, which a prefix does not change.
    assert_eq!(check_references(&overlay("local")), 12);
    let prefixed = user(r#"{ "resources": ["../overlays/local"], "namePrefix": "orders-" }"#);
    let of_the_pushgateway = ["Service", "Deployment", "NetworkPolicy"];
    let is_other = |object: &Value| !of_the_pushgateway.iter().any(|kind| object["kind"] == *kind);
    let objects: Vec<_> = prefixed.into_iter().filter(is_other).collect();
    assert_eq!(check_references(&objects), 8);
    assert_eq!(only(&objects, "ScaledJob")["metadata"]["name"], "orders-leasehold");
}

#[test]
fn the_defaults_are_right_for_keda() {
    for name in OVERLAYS {
        let objects = overlay(name);
        let spec = &only(&objects, "ScaledJob")["spec"];
        assert_eq!(
            spec["scalingStrategy"],
            json!({ "strategy": "accurate", "pendingPodConditions": ["ContainersReady"] }),
            "{name}"
        );
        let metadata = &spec["triggers"][0]["metadata"];
        assert_eq!(
            (&metadata["queueLength"], &metadata["scaleOnInFlight"]),
            (&json!("1"), &json!("false"))
        );
        assert_eq!(spec["rollout"], json!({ "strategy": "gradual" }));
        assert_eq!((&spec["minReplicaCount"], &spec["maxReplicaCount"]), (&json!(0), &json!(10)));
        let pod = &spec["jobTargetRef"]["template"]["spec"];
        assert_eq!(
            (&spec["jobTargetRef"]["backoffLimit"], &pod["restartPolicy"]),
            (&json!(0), &json!("Never"))
        );
        assert_eq!(
            pod["containers"].as_array().unwrap().len(),
            1,
            "KEDA reads the environment of the first container"
        );
        let probe = &pod["containers"][0]["readinessProbe"];
        assert_eq!((&probe["periodSeconds"], &probe["failureThreshold"]), (&json!(1), &json!(1)));
        assert_eq!(pod["containers"][0]["livenessProbe"], Value::Null);
    }
}

#[test]
fn every_container_has_minimal_privileges() {
    let objects = with_components(&COMPONENTS);
    let mut pods = vec![&only(&objects, "ScaledJob")["spec"]["jobTargetRef"]["template"]["spec"]];
    pods.push(&only(&objects, "Deployment")["spec"]["template"]["spec"]);
    let sweep = overlay("heartbeat");
    pods.push(&only(&sweep, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]);
    for pod in pods {
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["enableServiceLinks"], false);
        let containers = [&pod["initContainers"], &pod["containers"]]
            .into_iter()
            .filter_map(Value::as_array)
            .flatten();
        for container in containers {
            assert_eq!(
                container["securityContext"],
                json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                })
            );
            assert!(
                container["resources"]["requests"].is_object()
                    && container["resources"]["limits"].is_object()
            );
        }
    }
}

#[test]
fn repeated_values_are_copies() {
    let objects = overlay("heartbeat");
    assert_eq!(env(&objects, "LEASEHOLD_TERMINATION_GRACE"), "120s");
    assert_eq!(env(&objects, "LEASEHOLD_WORK_DIR_LIMIT"), "2Gi");
    assert_eq!(env(&overlay("spot"), "LEASEHOLD_TERMINATION_GRACE"), "90s");

    // A user's patch is applied first.
    let objects = user(
        r"
resources: [../overlays/heartbeat]
patches:
- target: {kind: ScaledJob}
  patch: |-
    - {op: replace, path: /spec/jobTargetRef/template/spec/terminationGracePeriodSeconds, value: 3600}
    - {op: replace, path: /spec/jobTargetRef/template/spec/volumes/2/emptyDir/sizeLimit, value: 50Gi}
- target: {kind: ConfigMap, name: leasehold-settings}
  patch: |-
    - {op: replace, path: /data/AWS_REGION, value: ap-southeast-2}
transformers: [../last]
",
    );
    assert_eq!(env(&objects, "LEASEHOLD_TERMINATION_GRACE"), "3600s");
    assert_eq!(env(&objects, "LEASEHOLD_WORK_DIR_LIMIT"), "50Gi");
    assert_eq!(container(&objects)["resources"]["requests"]["ephemeral-storage"], "50Gi");
    let trigger = &only(&objects, "ScaledJob")["spec"]["triggers"][0]["metadata"];
    assert_eq!(
        (&trigger["awsRegion"], &trigger["queueURLFromEnv"]),
        (&json!("ap-southeast-2"), &json!("LEASEHOLD_QUEUE_URL"))
    );
    assert_eq!(complaints(&objects), [""; 0]);
}

/// Also if a user's patch replaces `resources`, the pod requests ephemeral storage.
#[test]
fn resources_may_be_replaced_completely() {
    for (resources, kept) in [
        ("{}", "/requests"),
        ("{limits: {memory: 8Gi}}", "/limits/memory"),
        ("{requests: {cpu: 2}}", "/requests/cpu"),
        ("{requests: {cpu: 2, memory: 4Gi}, limits: {memory: 4Gi}}", "/requests/memory"),
    ] {
        let objects = user(&format!(
            r"
resources: [../overlays/heartbeat]
patches:
- target: {{kind: ScaledJob}}
  patch: |-
    - {{op: replace, path: /spec/jobTargetRef/template/spec/containers/0/resources, value: {resources}}}
transformers: [../last]
"
        ));
        let container = container(&objects);
        assert_eq!(container["resources"]["requests"]["ephemeral-storage"], "2Gi", "{resources}");
        assert!(container["resources"].pointer(kept).is_some(), "{resources}");
        let pod = &only(&objects, "ScaledJob")["spec"]["jobTargetRef"]["template"]["spec"];
        assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
        assert_eq!(complaints(&objects), [""; 0], "{resources}");
    }
}

#[test]
fn every_setting_is_known_to_leasehold() {
    let actions = command();
    let known: BTreeSet<_> = actions
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
        .filter_map(|arg| arg.get_env()?.to_str())
        .collect();
    for name in OVERLAYS {
        let objects = overlay(name);
        let settings = objects
            .iter()
            .find(|object| object["metadata"]["name"] == "leasehold-settings")
            .unwrap();
        let settings = settings["data"].as_object().unwrap().keys().map(String::as_str);
        let env = container(&objects)["env"]
            .as_array()
            .unwrap()
            .iter()
            .map(|variable| variable["name"].as_str().unwrap());
        for setting in settings.chain(env).filter(|name| name.starts_with("LEASEHOLD_")) {
            assert!(known.contains(setting), "{name}: {setting}");
        }
    }
}

#[test]
fn prometheus_accepts_the_scrape_settings() {
    let file = kustomize().join("components/pushgateway/scrape-config.yaml");
    let checked = Command::new("promtool").args(["check", "config"]).arg(&file).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert!(std::fs::read_to_string(file).unwrap().contains("\n  honor_labels: true\n"));
}

#[test]
fn a_pod_that_is_scraped_does_not_push() {
    let objects = with_components(&["network-policy", "pushgateway", "pod-monitor"]);
    let settings =
        objects.iter().find(|object| object["metadata"]["name"] == "leasehold-settings").unwrap();
    assert!(settings["data"].get("LEASEHOLD_PUSHGATEWAY").is_none());
    assert!(!objects.iter().any(|object| object["kind"] == "CronJob"), "a sweep is not needed");
    assert_eq!(
        policy(&objects, "leasehold")["ingress"],
        json!([{ "ports": [{ "port": "metrics" }] }])
    );
}

#[test]
fn with_pod_identity_the_network_policy_allows_the_agent() {
    let agent = json!({
        "to": [{ "ipBlock": { "cidr": "169.254.170.23/32" } }, { "ipBlock": { "cidr": "fd00:ec2::23/128" } }],
        "ports": [{ "port": 80 }],
    });
    let allows_agent = |objects: &[Value]| {
        policy(objects, "leasehold")["egress"].as_array().unwrap().contains(&agent)
    };
    assert!(allows_agent(&with_components(&["network-policy", "pod-identity"])));
    assert!(!allows_agent(&with_components(&["network-policy"])));
    for (name, has_agent) in
        [("heartbeat", true), ("fixed", true), ("spot", true), ("local", false)]
    {
        assert_eq!(allows_agent(&overlay(name)), has_agent, "{name}");
    }
}

/// A NetworkPolicy's spec.
fn policy<'a>(objects: &'a [Value], name: &str) -> &'a Value {
    let is_it =
        |object: &&Value| object["kind"] == "NetworkPolicy" && object["metadata"]["name"] == name;
    &objects.iter().find(is_it).unwrap()["spec"]
}

/// As documented: no connection to the pods, and from them only to these ports.
#[test]
fn the_network_is_as_closed_as_documented() {
    for (name, ports) in [
        ("heartbeat", json!([53, 53, 443, 9091, 80])),
        ("fixed", json!([53, 53, 443, 9091, 80])),
        ("spot", json!([53, 53, 443, 9091, 80])),
        ("local", json!([53, 53, 443, 9091, 4566])),
    ] {
        let objects = overlay(name);
        let pods = policy(&objects, "leasehold");
        assert_eq!(
            (&pods["policyTypes"], &pods["ingress"]),
            (&json!(["Ingress", "Egress"]), &json!([])),
            "{name}"
        );
        let rules = pods["egress"].as_array().unwrap().iter();
        let open: Value = rules
            .flat_map(|rule| rule["ports"].as_array().unwrap())
            .map(|port| port["port"].clone())
            .collect();
        assert_eq!(open, ports, "{name}");

        let pushgateway = policy(&objects, "leasehold-pushgateway");
        assert_eq!(
            (&pushgateway["policyTypes"], &pushgateway["egress"]),
            (&json!(["Ingress", "Egress"]), &json!([]))
        );
        let [rule] = &pushgateway["ingress"].as_array().unwrap()[..] else {
            panic!("{name}: {pushgateway}")
        };
        assert_eq!(
            (&rule["ports"], rule["from"].as_array().unwrap().len()),
            (&json!([{ "port": 9091 }]), 2)
        );
        assert_eq!(rule["from"][0]["podSelector"], pods["podSelector"], "the pods may push");
        let from_prometheus = &rule["from"][1];
        assert!(
            from_prometheus["namespaceSelector"].is_object()
                && from_prometheus["podSelector"].is_object()
        );
        let workload = &only(&objects, "Deployment")["spec"]["template"]["metadata"]["labels"];
        assert_eq!(
            pushgateway["podSelector"]["matchLabels"]["app.kubernetes.io/name"],
            workload["app.kubernetes.io/name"]
        );
    }
}

#[test]
fn mistakes_of_customary_samples_are_refused() {
    let good = only(&overlay("heartbeat"), "ScaledJob").clone();
    let cases = [
        (
            "/spec",
            "cooldownPeriod",
            json!(300),
            "spec.cooldownPeriod: a ScaledJob has no such field",
        ),
        (
            "/spec",
            "scaleTargetRef",
            json!({ "name": "worker" }),
            "spec.scaleTargetRef: a ScaledJob has no such field",
        ),
        ("/spec", "triggers", json!([]), "it has no trigger of type aws-sqs-queue"),
        ("/spec/rollout", "strategy", json!("default"), "KEDA does not know the value \"default\""),
        ("/spec/triggers/0/metadata", "queueLength", json!(1), "1 is not a string"),
        (
            "/spec/triggers/0/metadata",
            "scaleOnInflight",
            json!("false"),
            "did you mean scaleOnInFlight?",
        ),
        ("/spec/jobTargetRef", "pollingInterval", json!(30), "'pollingInterval' was unexpected"),
        (
            "/spec/jobTargetRef/template/spec",
            "gracePeriod",
            json!(30),
            "'gracePeriod' was unexpected",
        ),
        ("/spec/jobTargetRef/template/spec/containers/0", "image", json!({}), "image: "),
    ];
    let mut objects = vec![good.clone()];
    for (number, (path, field, value, _)) in cases.iter().enumerate() {
        let mut wrong = good.clone();
        wrong.pointer_mut(path).unwrap()[field] = value.clone();
        wrong["metadata"]["name"] = format!("case-{number}").into();
        objects.push(wrong);
    }
    let complaints = complaints(&objects);
    for (number, (_, field, _, complaint)) in cases.iter().enumerate() {
        let name = format!("case-{number}");
        let refused =
            complaints.iter().any(|line| line.contains(&name) && line.contains(complaint));
        assert!(refused, "{field}: {complaints:#?}");
    }
    assert!(
        complaints.iter().all(|line| line.contains("case-")),
        "the good one is refused: {complaints:#?}"
    );
}
