//! The Helm chart: it renders the same objects as the kustomize overlays, and its values are
//! validated.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use leasehold::settings::command_line::command;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;

use super::kustomize::{overlay, user};
use super::manifests::{checked, complaints, objects, only, run};
use crate::support::cloud::{Cloud, Leasehold};
use crate::support::servers::installed;

const QUEUE_URL: &str = "https://sqs.eu-central-1.amazonaws.com/123456789012/leasehold";

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/helm/leasehold")
}

#[derive(Deserialize)]
struct Report {
    lint: Vec<Value>,
    rendered: Vec<Result<BTreeMap<String, String>, String>>,
}

/// Lints the chart, and renders it with each of these values; adds `queueUrl`.
fn report(name: &str, values: &[Value]) -> Report {
    let releases: Vec<_> = values
        .iter()
        .map(|values| {
            let mut values = values.clone();
            values.as_object_mut().unwrap().entry("queueUrl").or_insert(QUEUE_URL.into());
            json!({ "name": name, "namespace": "leasehold", "values": values })
        })
        .collect();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/render.py");
    let output =
        run(installed("helm", "python").arg(script).arg(chart()), &json!(releases).to_string());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The objects of one release, including those of `helm test`.
fn release(files: &BTreeMap<String, String>) -> Vec<Value> {
    let manifests = files.iter().filter(|(name, _)| !name.ends_with("NOTES.txt"));
    objects(&manifests.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n---\n"))
}

fn render(values: &Value) -> Vec<Value> {
    release(report("leasehold", std::slice::from_ref(values)).rendered[0].as_ref().unwrap())
}

fn is_helm_test(object: &Value) -> bool {
    object["metadata"]["annotations"]["helm.sh/hook"] == "test"
}

/// Removes the labels of the release.
fn without_release(value: &Value) -> Value {
    const OF_THE_RELEASE: [&str; 5] = [
        "app.kubernetes.io/instance",
        "app.kubernetes.io/managed-by",
        "app.kubernetes.io/version",
        "app.kubernetes.io/part-of",
        "helm.sh/chart",
    ];
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(name, _)| !OF_THE_RELEASE.contains(&name.as_str()));
            let kept = kept.map(|(name, value)| (name.clone(), without_release(value)));
            let is_kept = |(name, value): &(String, Value)| {
                !["labels", "matchLabels"].contains(&name.as_str())
                    || value.as_object().is_some_and(|it| !it.is_empty())
            };
            Value::Object(kept.filter(is_kept).collect())
        }
        Value::Array(values) => values.iter().map(without_release).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// The objects by kind and name.
fn by_name(objects: &[Value]) -> BTreeMap<String, Value> {
    let named = objects.iter().map(|object| {
        let name = format!(
            "{} {}",
            object["kind"].as_str().unwrap(),
            object["metadata"]["name"].as_str().unwrap()
        );
        (name, without_release(object))
    });
    named.collect()
}

/// Sets of values, each with the equivalent kustomization.
fn equivalents() -> Vec<(&'static str, Value, Vec<Value>)> {
    let own = |text: &str| user(text);
    let secret = "leasehold-aws";
    vec![
        (
            "heartbeat",
            json!({ "settings": { "visibility": "heartbeat", "visibility-timeout": "2m" } }),
            overlay("heartbeat"),
        ),
        (
            "fixed",
            json!({ "settings": { "visibility": "fixed", "max-duration": "10m" } }),
            overlay("fixed"),
        ),
        (
            "spot",
            json!({
                "settings": {
                    "checkpoint": "s3://leasehold-123456789012-eu-central-1/checkpoints",
                    "checkpoint-interval": "1m",
                },
                "terminationGracePeriodSeconds": 90,
                "podAnnotations": {
                    "karpenter.sh/do-not-disrupt": "true",
                    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                },
            }),
            overlay("spot"),
        ),
        (
            "local",
            json!({
                "queueUrl": "http://emulator.leasehold.svc.cluster.local:4566/000000000000/leasehold",
                "region": "us-east-1",
                "endpointUrl": "http://emulator.leasehold.svc.cluster.local:4566",
                "envFrom": [{ "secretRef": { "name": secret } }],
                "keda": { "authentication": { "podIdentity": null, "secretTargetRef": [
                    { "parameter": "awsAccessKeyID", "name": secret, "key": "AWS_ACCESS_KEY_ID" },
                    { "parameter": "awsSecretAccessKey", "name": secret, "key": "AWS_SECRET_ACCESS_KEY" },
                ] } },
                "networkPolicy": { "podIdentityAgent": false, "egress": [{ "ports": [{ "port": 4566 }] }] },
            }),
            // The chart does not create a Secret.
            overlay("local").into_iter().filter(|object| object["kind"] != "Secret").collect(),
        ),
        (
            "observed",
            json!({
                "serviceAccount": { "annotations": {
                    "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/leasehold-worker",
                    "eks.amazonaws.com/sts-regional-endpoints": "true",
                } },
                "networkPolicy": { "podIdentityAgent": false },
                "metrics": {
                    "serviceMonitor": { "enabled": true },
                    "prometheusRule": { "enabled": true },
                    "dashboard": { "enabled": true },
                },
            }),
            own(
                "{resources: [../base], components: [../components/irsa, ../components/network-policy, \
                 ../components/pushgateway, ../components/service-monitor, ../components/prometheus-rule, \
                 ../components/dashboard]}",
            ),
        ),
        (
            "scraped",
            json!({ "metrics": { "podMonitor": { "enabled": true } } }),
            own(
                "{resources: [../base], components: [../components/network-policy, ../components/pod-identity, \
                 ../components/pod-monitor]}",
            ),
        ),
        (
            "own work",
            json!({
                "image": "orders:7",
                "leaseholdImage": "mirror/leasehold:0.1.0",
                "command": ["python3", "/app/process.py", "--strict"],
                "settings": { "max-duration": "1h", "max-messages": 5, "accept-folders": true, "events": ["ObjectCreated:Put", "ObjectCreated:Copy"] },
                "keda": { "maxReplicaCount": 50, "pollingInterval": 5 },
                "workDir": { "size": "50Gi" },
                "resources": { "requests": { "cpu": "2", "memory": "4Gi" }, "limits": { "memory": "4Gi" } },
                "env": [{ "name": "MODE", "value": "fast" }],
                "volumes": [{ "name": "models", "persistentVolumeClaim": { "claimName": "models" } }],
                "volumeMounts": [{ "name": "models", "mountPath": "/models", "readOnly": true }],
                "extraContainers": [{ "name": "proxy", "image": "proxy:1", "args": ["--quiet"] }],
                "nodeSelector": { "pool": "jobs" },
            }),
            own(OWN_WORK),
        ),
        (
            "volumes",
            json!({
                "mountpoint": { "bucket": "leasehold-123456789012-eu-central-1" },
                "workDir": { "storageClass": "default", "size": "100Gi" },
            }),
            own(
                "{resources: [../base], components: [../components/network-policy, ../components/pod-identity, \
                 ../components/pushgateway, ../components/mountpoint, ../components/ephemeral-volume], \
                 transformers: [../last-ephemeral]}",
            ),
        ),
    ]
}

const OWN_WORK: &str = r#"
resources: [../base]
components: [../components/network-policy, ../components/pod-identity, ../components/pushgateway]
images:
- {name: leasehold, newName: mirror/leasehold}
patches:
- patch: |-
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: leasehold-sample, namespace: leasehold}
    $patch: delete
- patch: |-
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: leasehold-settings, namespace: leasehold}
    data:
      LEASEHOLD_JOB_TYPES: null
      LEASEHOLD_MAX_DURATION: 1h
      LEASEHOLD_MAX_MESSAGES: "5"
      LEASEHOLD_ACCEPT_FOLDERS: "true"
      LEASEHOLD_EVENTS: ObjectCreated:Put,ObjectCreated:Copy
- target: {kind: ScaledJob}
  patch: |-
    - {op: replace, path: /spec/maxReplicaCount, value: 50}
    - {op: replace, path: /spec/pollingInterval, value: 5}
    - {op: replace, path: /spec/triggers/0/metadata/queueLength, value: "5"}
    - {op: add, path: /spec/jobTargetRef/template/spec/nodeSelector, value: {pool: jobs}}
    - {op: add, path: /spec/jobTargetRef/template/spec/initContainers/-, value: {name: proxy, image: "proxy:1", args: [--quiet], restartPolicy: Always}}
    - {op: replace, path: /spec/jobTargetRef/template/spec/volumes/2/emptyDir/sizeLimit, value: 50Gi}
    - {op: remove, path: /spec/jobTargetRef/template/spec/volumes/1}
    - {op: add, path: /spec/jobTargetRef/template/spec/volumes/-, value: {name: models, persistentVolumeClaim: {claimName: models}}}
    - {op: replace, path: /spec/jobTargetRef/template/spec/containers/0/image, value: "orders:7"}
    - {op: replace, path: /spec/jobTargetRef/template/spec/containers/0/command, value: [/opt/leasehold/leasehold, run, --, python3, /app/process.py, --strict]}
    - {op: replace, path: /spec/jobTargetRef/template/spec/containers/0/resources, value: {requests: {cpu: "2", memory: 4Gi}, limits: {memory: 4Gi}}}
    - {op: add, path: /spec/jobTargetRef/template/spec/containers/0/env/-, value: {name: MODE, value: fast}}
    - {op: remove, path: /spec/jobTargetRef/template/spec/containers/0/volumeMounts/1}
    - {op: add, path: /spec/jobTargetRef/template/spec/containers/0/volumeMounts/-, value: {name: models, mountPath: /models, readOnly: true}}
transformers: [../last]
"#;

#[test]
fn the_chart_makes_the_objects_of_the_overlays() {
    let equivalents = equivalents();
    let values: Vec<_> = equivalents.iter().map(|(_, values, _)| values.clone()).collect();
    let report = report("leasehold", &values);
    let problems: Vec<_> =
        report.lint.iter().filter(|message| message["severity"].as_u64() > Some(1)).collect();
    assert_eq!(problems, [&Value::Null; 0]);

    let mut all = Vec::new();
    for ((name, _, by_kustomize), files) in equivalents.iter().zip(&report.rendered) {
        let objects = release(files.as_ref().unwrap_or_else(|why| panic!("{name}: {why}")));
        let (tests, objects): (Vec<_>, Vec<_>) = objects.into_iter().partition(is_helm_test);
        assert_eq!(tests.len(), 1, "{name}");
        let (by_helm, by_kustomize) = (by_name(&objects), by_name(by_kustomize));
        assert_eq!(
            by_helm.keys().collect::<Vec<_>>(),
            by_kustomize.keys().collect::<Vec<_>>(),
            "{name}"
        );
        for (object, by_helm) in &by_helm {
            assert_same(name, object, by_helm, &by_kustomize[object]);
        }
        let (code, output) = checked(&objects);
        assert_eq!(code, Some(0), "{name}: {output}");
        all.extend(objects.into_iter().chain(tests));
    }
    assert_eq!(complaints(&all), [""; 0]);
}

/// Reports the first difference of two objects, instead of printing both.
fn assert_same(name: &str, object: &str, by_helm: &Value, by_kustomize: &Value) {
    fn first_difference(path: &str, a: &Value, b: &Value) -> Option<String> {
        match (a, b) {
            (Value::Object(left), Value::Object(right)) => {
                let names: BTreeSet<_> = left.keys().chain(right.keys()).collect();
                names.into_iter().find_map(|name| {
                    first_difference(&format!("{path}/{name}"), &a[name], &b[name])
                })
            }
            (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
                let pairs = left.iter().zip(right).enumerate();
                pairs
                    .into_iter()
                    .find_map(|(at, (a, b))| first_difference(&format!("{path}/{at}"), a, b))
            }
            _ => (a != b).then(|| format!("{path}: Helm {a}, kustomize {b}")),
        }
    }
    let difference = first_difference("", by_helm, by_kustomize);
    assert_eq!(difference, None, "{name}: {object}");
}

/// `queueUrl` is the only required value.
#[test]
fn one_value_is_enough_and_the_release_name_is_in_every_name() {
    let report = report(
        "orders",
        &[json!({}), json!({ "region": "", "queueUrl": "http://emulator:4566/0/q" })],
    );
    let objects = release(report.rendered[0].as_ref().unwrap());
    for object in &objects {
        assert!(
            object["metadata"]["name"].as_str().unwrap().starts_with("orders-leasehold"),
            "{object}"
        );
    }
    let (code, output) = checked(&objects);
    assert!(
        code == Some(0) && output.ends_with("errors: 0, warnings: 0, could not be checked: 0\n"),
        "{output}"
    );
    assert!(report.rendered[1].as_ref().unwrap_err().contains("region is required"));
}

/// deploy/helm/README.md: its first four values, and its other examples.
#[test]
fn the_values_of_the_page_are_accepted() {
    let page = std::fs::read_to_string(chart().parent().unwrap().join("README.md")).unwrap();
    let blocks: Vec<_> =
        page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let values: Vec<_> = blocks.iter().flat_map(|block| super::manifests::objects(block)).collect();
    assert_eq!((values.len(), values[0].as_object().unwrap().len()), (3, 4));
    for rendered in report("orders", &values).rendered {
        let (code, output) = checked(&release(&rendered.unwrap()));
        assert!(
            code == Some(0)
                && output.ends_with("errors: 0, warnings: 0, could not be checked: 0\n"),
            "{output}"
        );
    }
}

#[test]
fn job_types_become_a_file_with_or_without_a_command() {
    let job_types = json!([{ "name": "csv", "match": { "key": "in/**/*.csv" }, "command": ["true"], "max-duration": "5m" }]);
    for (values, command) in [
        (
            json!({ "jobTypes": job_types, "command": ["false"] }),
            json!(["/opt/leasehold/leasehold", "run", "--", "false"]),
        ),
        (json!({ "jobTypes": job_types }), json!(["/opt/leasehold/leasehold", "run"])),
    ] {
        let objects = render(&values);
        let is_file = |object: &&Value| object["metadata"]["name"] == "leasehold-job-types";
        let file =
            objects.iter().find(is_file).unwrap()["data"]["job-types.yaml"].as_str().unwrap();
        assert_eq!(super::manifests::objects(file), [json!({ "job-types": job_types })]);
        let container = &only(&objects, "ScaledJob")["spec"]["jobTargetRef"]["template"]["spec"]["containers"]
            [0];
        assert_eq!(container["command"], command);
        assert_eq!(container["volumeMounts"][1]["mountPath"], "/etc/leasehold");
        let (code, output) = checked(&objects);
        assert_eq!(code, Some(0), "{output}");
    }
}

#[test]
fn misspelt_or_invalid_values_are_refused() {
    let cases = [
        (json!({ "queueURL": "x" }), "queueURL"),
        (json!({ "queueUrl": "orders" }), "queueUrl"),
        (json!({ "settings": { "max-durations": "1h" } }), "max-durations"),
        (json!({ "settings": { "termination-grace": "1h" } }), "termination-grace"),
        (json!({ "keda": { "maxReplicas": 3 } }), "maxReplicas"),
        (json!({ "keda": { "maxReplicaCount": 0 } }), "maxReplicaCount"),
        (json!({ "keda": { "pollingInterval": "10" } }), "pollingInterval"),
        (json!({ "networkPolicy": false }), "networkPolicy"),
        (json!({ "command": "python3 process.py" }), "command"),
        (json!({ "workDir": { "sizeLimit": "2Gi" } }), "sizeLimit"),
        (json!({ "serviceAccount": { "anotations": {} } }), "anotations"),
        (json!({ "extraContainers": [{ "image": "x" }] }), "extraContainers"),
        (json!({ "podAnnotations": { "x": true } }), "podAnnotations"),
        (json!({ "metrics": { "prometheusRule": { "runbookUrl": "a#b" } } }), "runbookUrl"),
    ];
    let values: Vec<_> = cases.iter().map(|(values, _)| values.clone()).collect();
    for ((values, name), rendered) in cases.iter().zip(report("leasehold", &values).rendered) {
        let why = rendered.expect_err(&values.to_string());
        assert!(why.contains(name), "{values}: {why}");
    }
}

#[test]
fn settings_accepts_every_flag_that_the_chart_does_not_set() {
    let schema = std::fs::read_to_string(chart().join("values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let taken: BTreeSet<_> = schema["properties"]["settings"]["properties"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let actions = command();
    let run = actions.get_subcommands().find(|action| action.get_name() == "run").unwrap();
    let of_the_chart = [
        "queue-url",
        "job-types",
        "termination-grace",
        "work-dir",
        "work-dir-limit",
        "pushgateway",
        "listen",
        "job-id",
        "pod-name",
        "namespace",
        "termination-log",
    ];
    let flags =
        run.get_arguments().filter(|flag| flag.get_env().is_some()).filter_map(clap::Arg::get_long);
    let flags: BTreeSet<_> = flags.filter(|flag| !of_the_chart.contains(flag)).collect();
    assert_eq!(taken, flags, "run deploy/regenerate");
}

#[test]
fn the_versions_match_the_program() {
    let read = |name: &str| std::fs::read_to_string(chart().join(name)).unwrap();
    let [chart] = &objects(&read("Chart.yaml"))[..] else { panic!("one document") };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(version), &json!(version)));
    assert!(read("values.yaml").contains(&format!("\nleaseholdImage: leasehold:{version}\n")));
}

#[test]
fn the_notes_have_the_next_steps() {
    let values = [json!({}), json!({ "command": ["true"] })];
    for rendered in report("orders", &values).rendered {
        let notes = rendered.unwrap().remove("leasehold/templates/NOTES.txt").unwrap();
        for line in
            ["helm test orders --namespace leasehold --logs", "describe scaledjob orders-leasehold"]
        {
            assert!(notes.contains(line), "{notes}");
        }
    }
}

/// The pod of `helm test`, with local folders.
#[tokio::test]
async fn helm_test_checks_the_queue_without_a_receive() {
    let cloud = Cloud::new(5).await;
    let values = json!({
        "queueUrl": cloud.queue_url,
        "endpointUrl": cloud.endpoint,
        "region": "us-east-1",
        "command": ["true"],
        "settings": { "buckets": [cloud.bucket] },
        "pushgateway": { "enabled": false },
    });
    let objects = render(&values);
    let container =
        &objects.iter().find(|object| is_helm_test(object)).unwrap()["spec"]["containers"][0];
    assert_eq!(container["command"], json!(["/opt/leasehold/leasehold", "check"]));
    let is_settings = |object: &&Value| object["metadata"]["name"] == "leasehold-settings";
    let settings = &objects.iter().find(is_settings).unwrap()["data"];
    let mut settings: BTreeMap<String, String> = serde_json::from_value(settings.clone()).unwrap();
    for variable in container["env"].as_array().unwrap() {
        let value = variable["value"].as_str().unwrap_or("by the downward API");
        settings.insert(variable["name"].as_str().unwrap().to_owned(), value.to_owned());
    }
    settings.insert("LEASEHOLD_WORK_DIR".to_owned(), cloud.dir.path().display().to_string());
    let mut check = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    check
        .arg("check")
        .envs(&settings)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test");
    cloud.put("in/k", b"x").await;
    let exited = Leasehold::start(check).wait().await;
    assert_eq!(exited.code(), 0, "{}{}", exited.stdout, exited.stderr);
    assert_eq!(cloud.counts().await.1, 0, "a message was received");
}
