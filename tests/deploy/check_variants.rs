//! `leasehold check --manifest` with variants that a cluster accepts without a warning: mistakes
//! are reported, valid variants are not, and objects outside of the file are unchecked.

use leasehold::check::manifest::{Manifest, Schema};
use leasehold::check::report::Text;
use leasehold::check::{Finding, Severity};
use serde_json::{Value, json};

use super::check_manifest::{CONTAINER, JOB, POD, TRIGGER, change, findings, good};

/// The good manifest with some changes.
fn changed(changes: &[(&str, Value)]) -> Vec<Value> {
    let mut objects = good();
    for (pointer, value) in changes {
        change(&mut objects, pointer, value.clone());
    }
    objects
}

/// Sets a variable of the container to `value`, or removes it (`null`).
fn variable(objects: &mut [Value], name: &str, value: &Value) {
    let scaled_job = objects.iter_mut().find(|object| object["kind"] == "ScaledJob").unwrap();
    let env = scaled_job.pointer_mut(&format!("{CONTAINER}/env")).unwrap().as_array_mut().unwrap();
    env.retain(|variable| variable["name"] != name);
    if !value.is_null() {
        env.push(json!({ "name": name, "value": value }));
    }
}

/// Sets a setting of the ConfigMap to `value`, or removes it (`null`).
fn setting(objects: &mut [Value], name: &str, value: Value) {
    let map = objects
        .iter_mut()
        .find(|object| object["metadata"]["name"] == "leasehold-settings")
        .unwrap();
    if value.is_null() {
        map["data"].as_object_mut().unwrap().remove(name).unwrap();
    } else {
        map["data"][name] = value;
    }
}

#[track_caller]
fn assert_finding(case: &str, objects: &[Value], severity: Severity, text: &str) {
    let findings = super::check_manifest::findings(objects);
    let is_found =
        |finding: &Finding| finding.severity == severity && finding.to_string().contains(text);
    assert!(findings.iter().any(is_found), "{case}: {text:?} is not among {findings:#?}");
    assert!(findings.iter().all(|finding| finding.severity >= severity), "{case}: {findings:#?}");
}

#[track_caller]
fn assert_good(case: &str, objects: &[Value]) {
    assert_eq!(findings(objects), [], "{case}");
}

/// A JSON pointer, its new value, the severity, and a part of the finding.
type Case<'a> = (String, Value, Severity, &'a str);

fn at(root: &str, rest: &str) -> String {
    format!("{root}{rest}")
}

#[track_caller]
fn assert_findings(cases: &[Case]) {
    for (pointer, value, severity, text) in cases {
        assert_finding(
            &format!("{pointer} = {value}"),
            &changed(&[(pointer, value.clone())]),
            *severity,
            text,
        );
    }
}

// Kubernetes 1.36 and KEDA 2.20.2 accepted each of these, or a similar one, without a warning.

#[test]
pub fn wrong_scaling_is_reported() {
    use Severity::{Error, Warning};
    assert_findings(&[
        ("/spec/minReplicaCount".into(), json!(12), Error, "so no message can start a Job"),
        ("/spec/minReplicaCount".into(), json!(10), Error, "KEDA keeps 10 Jobs running"),
        ("/spec/maxReplicaCount".into(), json!(0), Error, "Kubernetes rejects"),
        ("/spec/pollingInterval".into(), json!(0), Error, "Kubernetes rejects"),
        (
            "/apiVersion".into(),
            json!("keda.k8s.io/v1alpha1"),
            Error,
            "KEDA ignores keda.k8s.io/v1alpha1",
        ),
        (
            at(TRIGGER, "/awsEndpoint"),
            json!("http://emulator:4566"),
            Error,
            "KEDA uses emulator:4566, but the pods use AWS",
        ),
        ("/spec/rolloutStrategy".into(), json!("immediate"), Error, "instead of rollout.strategy"),
        (
            "/spec/rolloutStrategy".into(),
            json!("Gradual"),
            Error,
            "KEDA does not know the value \"Gradual\"",
        ),
        (
            "/spec/envSourceContainerName".into(),
            json!("worker"),
            Error,
            "the pod has no container worker",
        ),
        (
            "/metadata/annotations".into(),
            json!({ "autoscaling.keda.sh/paused": "true" }),
            Warning,
            "KEDA creates no Job",
        ),
        ("/metadata/annotations".into(), json!({ "a": true }), Error, "true is not a string"),
        (
            "/spec/triggers/0/authenticationRef/name".into(),
            json!("leasehld"),
            Error,
            "did you mean leasehold?",
        ),
        (
            "/spec/triggers/0/authenticationRef/kind".into(),
            json!("ClusterTriggerAuthentication"),
            Error,
            "set kind to Trigger",
        ),
        (
            at(TRIGGER, "/queueURLFromEnv"),
            json!("QUEUE_URL"),
            Error,
            "it is not set there: KEDA creates no Job",
        ),
        (
            at(TRIGGER, "/queueURLFromEnv"),
            json!("LEASEHOLD_WORK_DIR"),
            Error,
            "KEDA counts /work, but the pods receive",
        ),
        (
            at(TRIGGER, "/queueURL"),
            json!("https://sqs.eu-central-1.amazonaws.com/123456789012/other"),
            Error,
            "KEDA counts",
        ),
        (
            at(TRIGGER, "/queueURL"),
            json!("https://sqs.eu-central-1.amazonaws.com/210987654321/leasehold"),
            Error,
            "KEDA counts",
        ),
        (at(TRIGGER, "/queueURL"), json!("other"), Error, "KEDA counts other"),
        (
            at(TRIGGER, "/queueURL"),
            json!("https://sqs.eu-central-1.amazonaws.com/leasehold"),
            Error,
            "https://HOST/ACCOUNT/NAME",
        ),
        (
            at(TRIGGER, "/queueURL"),
            json!("https://sqs.eu-west-1.amazonaws.com/123456789012/leasehold"),
            Error,
            "URL has eu-west-1",
        ),
        (
            at(TRIGGER, "/awsRegion"),
            json!("eu-west-1"),
            Error,
            "it is eu-west-1, but the queue's URL has eu-central-1",
        ),
        (at(TRIGGER, "/queueLength"), json!("0"), Error, "with 0, KEDA never creates a Job"),
        (at(TRIGGER, "/queueLength"), json!("-1"), Error, "with -1, KEDA never creates a Job"),
        (at(TRIGGER, "/queueLength"), json!("one"), Error, "cannot parse \"one\" as a number"),
        (at(TRIGGER, "/queueLength"), json!("1.5"), Error, "cannot parse \"1.5\""),
        (at(TRIGGER, "/queueLength"), json!(""), Error, "it is 5, KEDA's default"),
        (
            at(TRIGGER, "/queueLength"),
            json!("10"),
            Error,
            "one pod for 10 messages, but a pod processes 1",
        ),
        (at(TRIGGER, "/activationQueueLength"), json!("few"), Error, "cannot parse \"few\""),
        (at(TRIGGER, "/scaleOnInFlight"), json!("no"), Error, "cannot parse \"no\""),
        (at(TRIGGER, "/scaleOnInFlight"), json!("False"), Error, "cannot parse \"False\""),
        (
            at(TRIGGER, "/scaleOnDelayed"),
            json!("true"),
            Warning,
            "a delayed message cannot be received",
        ),
    ]);
}

#[test]
pub fn pods_that_never_start_end_or_become_ready_are_reported() {
    use Severity::{Error, Unchecked, Warning};
    assert_findings(&[
        (at(JOB, "/suspend"), json!(true), Error, "they never start a pod"),
        (at(JOB, "/suspend"), json!("true"), Error, "is not a boolean"),
        (at(JOB, "/parallelism"), json!(0), Error, "they never start a pod"),
        (at(JOB, "/completions"), json!(0), Error, "they never start a pod"),
        (at(JOB, "/activeDeadlineSeconds"), json!("300"), Error, "is not an integer"),
        (
            at(POD, "/schedulingGates"),
            json!([{ "name": "quota" }]),
            Error,
            "no pod starts until its scheduling gates",
        ),
        (at(POD, "/nodeSelector"), json!({ "spot": true }), Error, "true is not a string"),
        (
            at(POD, "/containers/1"),
            sidecar(),
            Warning,
            "a Job completes when all its containers have",
        ),
        (
            at(POD, "/volumes/1/configMap/name"),
            json!("leasehold-samples"),
            Error,
            "its pods never start",
        ),
        (
            at(CONTAINER, "/readinessProbe/initialDelaySeconds"),
            json!(60),
            Warning,
            "it is 60: a pod that holds a message",
        ),
        (
            at(CONTAINER, "/readinessProbe/successThreshold"),
            json!(5),
            Warning,
            "it is 5: a pod that holds a message",
        ),
        (at(CONTAINER, "/readinessProbe/httpGet/port"), json!(8080), Error, "it uses port 8080"),
        (
            at(CONTAINER, "/readinessProbe/httpGet/port"),
            json!("http"),
            Error,
            "the container has no port http",
        ),
        (
            at(CONTAINER, "/ports/0/containerPort"),
            json!(9465),
            Error,
            "it uses port 9465, but LEASEHOLD_LISTEN is",
        ),
        (
            at(CONTAINER, "/readinessProbe/httpGet/scheme"),
            json!("HTTPS"),
            Error,
            "leasehold answers only HTTP",
        ),
        (
            at(CONTAINER, "/readinessProbe"),
            json!({ "tcpSocket": { "port": 9464 }, "periodSeconds": 1 }),
            Warning,
            "is open before",
        ),
        (
            at(CONTAINER, "/readinessProbe"),
            json!({ "grpc": { "port": 9464 }, "periodSeconds": 1 }),
            Error,
            "does not answer it",
        ),
        (
            at(CONTAINER, "/startupProbe"),
            json!({ "httpGet": { "path": "/healthz", "port": 9464 } }),
            Warning,
            "startupProbe",
        ),
        (at(CONTAINER, "/args"), json!("--wait 5s"), Error, "args: it is not a list"),
        (
            at(CONTAINER, "/env"),
            json!({ "LEASEHOLD_TERMINATION_GRACE": "120s" }),
            Error,
            "env: it is not a list",
        ),
        (
            at(CONTAINER, "/terminationMessagePath"),
            json!("/tmp/end"),
            Warning,
            "Kubernetes reads /tmp/end",
        ),
        (
            at(CONTAINER, "/volumeMounts/2/mountPath"),
            json!("/scratch"),
            Error,
            "no volume is mounted at /work",
        ),
        (
            at(CONTAINER, "/volumeMounts/2/readOnly"),
            json!(true),
            Error,
            "which is mounted read-only",
        ),
        (
            at(CONTAINER, "/volumeMounts/2/name"),
            json!("sample"),
            Error,
            "which is mounted read-only",
        ),
        (
            at(CONTAINER, "/volumeMounts/1/mountPath"),
            json!("/samples"),
            Unchecked,
            "/sample/job-types.yaml is in the container",
        ),
    ]);
}

#[test]
pub fn wrong_start_commands_are_reported() {
    use Severity::{Error, Warning};
    let shell = |line: &str| json!(["/bin/sh", "-c", line]);
    assert_findings(&[
        (
            at(CONTAINER, "/command"),
            shell("leasehold run -- python3 x.py; echo done"),
            Error,
            "does not pass SIGTERM on",
        ),
        (
            at(CONTAINER, "/command"),
            shell("cd /app && leasehold run -- python3 x.py"),
            Error,
            "does not pass SIGTERM on",
        ),
        (
            at(CONTAINER, "/command"),
            shell("exec leasehold run -- x | tee log"),
            Error,
            "does not pass SIGTERM on",
        ),
        (
            at(CONTAINER, "/command"),
            shell("leasehold run -- x & wait"),
            Error,
            "does not pass SIGTERM on",
        ),
        (
            at(CONTAINER, "/command"),
            shell("leasehold run -- python3 x.py"),
            Warning,
            "without exec",
        ),
        (
            at(CONTAINER, "/command"),
            shell("exec leasehold run --stop-grace 300s -- x"),
            Error,
            "--stop-grace",
        ),
        (
            at(CONTAINER, "/command"),
            shell("exec python3 x.py"),
            Error,
            "it starts python3, not leasehold",
        ),
        (
            at(CONTAINER, "/command"),
            json!(["python3", "/sample/process.py"]),
            Error,
            "it starts python3, not leasehold",
        ),
        (
            at(CONTAINER, "/command"),
            json!(["tini", "--", "python3", "x.py"]),
            Error,
            "it starts python3, not leasehold",
        ),
        (
            at(CONTAINER, "/command"),
            json!(["npm", "run", "start"]),
            Error,
            "it starts npm, not leasehold",
        ),
        (
            at(CONTAINER, "/command"),
            json!(["leasehold", "local", "in"]),
            Error,
            "leasehold local, without run",
        ),
        (
            at(CONTAINER, "/command"),
            json!(["leasehold", "run", "--wait", 5, "--", "x"]),
            Error,
            "5 is not a string",
        ),
    ]);
}

#[test]
pub fn keda_reads_the_environment_of_the_first_container() {
    let mut objects = good();
    let scaled_job = objects.iter_mut().find(|object| object["kind"] == "ScaledJob").unwrap();
    let containers =
        scaled_job.pointer_mut(&at(POD, "/containers")).unwrap().as_array_mut().unwrap();
    containers.insert(0, sidecar());
    assert_finding(
        "a sidecar before it",
        &objects,
        Severity::Error,
        "set envSourceContainerName to leasehold",
    );
    change(&mut objects, "/spec/envSourceContainerName", json!("leasehold"));
    assert_finding(
        "and the name",
        &objects,
        Severity::Warning,
        "a Job completes when all its containers have",
    );
}

fn sidecar() -> Value {
    json!({ "name": "proxy", "image": "envoy", "env": [{ "name": "A", "value": "1" }] })
}

#[test]
pub fn settings_are_read_from_every_source() {
    use Severity::{Error, Unchecked, Warning};
    let assert_setting =
        |case: &str, change: &dyn Fn(&mut Vec<Value>), severity: Severity, text: &str| {
            let mut objects = good();
            change(&mut objects);
            assert_finding(case, &objects, severity, text);
        };
    let in_settings = |name: &'static str, value: Value| {
        move |objects: &mut Vec<Value>| setting(objects, name, value.clone())
    };
    let in_env = |name: &'static str, value: Value| {
        move |objects: &mut Vec<Value>| variable(objects, name, &value)
    };
    assert_setting(
        "listens elsewhere",
        &in_settings("LEASEHOLD_LISTEN", json!("0.0.0.0:9000")),
        Error,
        "it uses port 9464",
    );
    assert_setting(
        "listens inside",
        &in_settings("LEASEHOLD_LISTEN", json!("127.0.0.1:9464")),
        Error,
        "which the kubelet does not probe",
    );
    assert_setting(
        "no work directory",
        &in_settings("LEASEHOLD_WORK_DIR", Value::Null),
        Error,
        "no volume is mounted at /tmp",
    );
    assert_setting(
        "a folder that does not exist",
        &in_settings("LEASEHOLD_WORK_DIR", json!("/work/a")),
        Error,
        "so a does not exist",
    );
    assert_setting(
        "an emulator",
        &in_settings("AWS_ENDPOINT_URL", json!("http://emulator:4566")),
        Error,
        "KEDA uses AWS, but the pods",
    );
    assert_setting(
        "a number as a setting",
        &in_settings("LEASEHOLD_MAX_MESSAGES", json!(1)),
        Error,
        "ConfigMap leasehold-settings, data.",
    );
    assert_setting(
        "another region",
        &in_settings("AWS_REGION", json!("us-east-1")),
        Error,
        "the pod's AWS_REGION is us-east-1",
    );
    assert_setting(
        "job types elsewhere",
        &in_settings("LEASEHOLD_JOB_TYPES", json!("/sample/t.yaml")),
        Error,
        "has no t.yaml",
    );
    assert_setting(
        "a termination log",
        &in_env("LEASEHOLD_TERMINATION_LOG", json!("/work/end")),
        Warning,
        "leasehold writes /work/end",
    );
    assert_setting(
        "a number",
        &in_env("LEASEHOLD_TERMINATION_GRACE", json!(120)),
        Error,
        "its value is not a string",
    );
    let mut objects = good();
    variable(&mut objects, "DB_PASSWORD", &json!(53_731_337));
    let findings = format!("{:?}", super::check_manifest::findings(&objects));
    assert!(findings.contains("env DB_PASSWORD") && !findings.contains("53731337"), "{findings}");
    assert_setting("a boolean", &in_env("DEBUG", json!(true)), Error, "its value is not a string");
    let init =
        |objects: &mut Vec<Value>| change(objects, &at(POD, "/initContainers/0/args/0"), json!(1));
    assert_setting(
        "a number in an init container",
        &init,
        Error,
        "container install, command: 1 is not a string",
    );
    assert_setting(
        "a missing key",
        &reference("configMapKeyRef", "leasehold-settings", "NO_KEY"),
        Error,
        "has no key NO_KEY",
    );
    assert_setting(
        "a missing map",
        &reference("configMapKeyRef", "leasehold-setting", "AWS_REGION"),
        Unchecked,
        "ConfigMap leasehold-setting",
    );
    assert_setting(
        "a field of the node",
        &reference("resourceFieldRef", "", ""),
        Unchecked,
        "the source of its value",
    );
    assert_setting(
        "a secret",
        &reference("secretKeyRef", "limits", "max"),
        Unchecked,
        "settings from Secret limits are not in the file",
    );
}

#[test]
pub fn job_types_are_read_as_they_are_mounted() {
    let mounted = |file: &str, mount: Value, items: Value| {
        let mut objects = changed(&[(&at(CONTAINER, "/volumeMounts/1"), mount)]);
        change(&mut objects, &at(POD, "/volumes/1/configMap/items"), items);
        setting(&mut objects, "LEASEHOLD_JOB_TYPES", json!(file));
        objects
    };
    let alone =
        json!({ "name": "sample", "mountPath": "/etc/types.yaml", "subPath": "job-types.yaml" });
    let renamed = json!([{ "key": "job-types.yaml", "path": "a/types.yaml" }]);
    let whole = json!({ "name": "sample", "mountPath": "/sample" });
    let mut cases = [
        mounted(
            "/etc/types.yaml",
            alone,
            json!([{ "key": "job-types.yaml", "path": "job-types.yaml" }]),
        ),
        mounted("/sample/a/types.yaml", whole.clone(), renamed.clone()),
    ];
    for objects in &mut cases {
        assert_good("unchanged", objects);
        let map = objects
            .iter_mut()
            .find(|object| object["metadata"]["name"] == "leasehold-sample")
            .unwrap();
        map["data"]["job-types.yaml"] = json!("job-types: [{name: csv, max-duraton: 5m}]");
        assert_finding("a typo in it", objects, Severity::Error, "max-duraton");
    }
    let objects = mounted("/sample/job-types.yaml", whole, renamed);
    assert_finding(
        "under its old name",
        &objects,
        Severity::Error,
        "/sample/job-types.yaml does not exist",
    );
}

/// Sets LEASEHOLD_MAX_DURATION by a reference.
fn reference(
    kind: &'static str,
    name: &'static str,
    key: &'static str,
) -> impl Fn(&mut Vec<Value>) {
    move |objects| {
        let scaled_job = objects.iter_mut().find(|object| object["kind"] == "ScaledJob").unwrap();
        let env =
            scaled_job.pointer_mut(&format!("{CONTAINER}/env")).unwrap().as_array_mut().unwrap();
        let from = json!({ kind: { "name": name, "key": key } });
        env.push(json!({ "name": "LEASEHOLD_MAX_DURATION", "valueFrom": from }));
    }
}

/// An object that the file does not have is not an error, but unchecked.
#[test]
pub fn objects_outside_of_the_file_are_unchecked() {
    let only_unchecked = |case: &str, objects: &[Value], text: &str| {
        assert_finding(case, objects, Severity::Unchecked, text);
    };
    let others =
        |kind: &str| good().into_iter().filter(|object| object["kind"] != kind).collect::<Vec<_>>();
    only_unchecked(
        "without settings",
        &others("ConfigMap"),
        "settings from ConfigMap leasehold-settings",
    );
    only_unchecked(
        "without authentication",
        &others("TriggerAuthentication"),
        "TriggerAuthentication leasehold is not",
    );
    let secret = json!([{ "secretRef": { "name": "settings" } }]);
    let mut objects = changed(&[(&format!("{CONTAINER}/envFrom"), secret.clone())]);
    objects.retain(|object| object["kind"] != "ConfigMap");
    change(&mut objects, &format!("{CONTAINER}/env"), json!([]));
    only_unchecked("all from a Secret", &objects, "settings from Secret settings");
    let optional = json!([{ "configMapRef": { "name": "leasehold-settings" } }, { "configMapRef": { "name": "x", "optional": true } }]);
    assert_good("an optional one", &changed(&[(&format!("{CONTAINER}/envFrom"), optional)]));

    for (command, text) in [
        (json!(["/app/start.sh"]), "the script /app/start.sh is not in the file"),
        (json!(["sh", "/app/start"]), "the script /app/start is not in the file"),
        (
            json!(["/docker-entrypoint.sh", "leasehold", "run", "--", "x"]),
            "passes signals on to leasehold",
        ),
        (json!(["sh", "-c", "$START"]), "the line that sh gets"),
        (
            json!(["sh", "-c", "trap 'kill $!' TERM; leasehold run -- x & wait"]),
            "whether the traps of sh",
        ),
        (json!(["/app/resize", "run"]), "check cannot see whether /app/resize runs leasehold"),
        (Value::Null, "the image's entrypoint is not in the file"),
    ] {
        only_unchecked(
            &command.to_string(),
            &changed(&[(&format!("{CONTAINER}/command"), command.clone())]),
            text,
        );
    }
    let mut objects = changed(&[(&format!("{CONTAINER}/command"), Value::Null)]);
    change(&mut objects, &format!("{CONTAINER}/args"), json!(["python3", "process.py"]));
    only_unchecked("only arguments", &objects, "it gets these words as arguments");
    change(
        &mut objects,
        &format!("{CONTAINER}/args"),
        json!(["run", "--", "python3", "process.py"]),
    );
    assert_good("arguments for our own image", &objects);
    change(
        &mut objects,
        &format!("{CONTAINER}/args"),
        json!(["run", "--max-duraton=1h", "--", "python3"]),
    );
    assert_finding("arguments that are wrong", &objects, Severity::Error, "--max-duraton");
}

#[test]
pub fn a_secret_of_the_file_is_read() {
    let from = json!([{ "configMapRef": { "name": "leasehold-settings" } }, { "secretRef": { "name": "more" }, "prefix": "LEASEHOLD_" }]);
    let mut objects = changed(&[(&format!("{CONTAINER}/envFrom"), from)]);
    // 9h
    objects.push(json!({ "kind": "Secret", "metadata": { "name": "more" }, "data": { "MAX_DURATION": "OWg=" } }));
    assert_good("a longer time", &objects);
    change(&mut objects, &format!("{JOB}/activeDeadlineSeconds"), json!(9000));
    assert_finding("and a deadline", &objects, Severity::Error, "stops the pod after 9000s");
    objects.pop();
    objects.push(json!({ "kind": "Secret", "metadata": { "name": "more" }, "stringData": { "MAX_DURATION": "30m" } }));
    assert_good("a shorter time", &objects);
    // In another namespace.
    objects.last_mut().unwrap()["metadata"]["namespace"] = json!("elsewhere");
    assert_finding("elsewhere", &objects, Severity::Unchecked, "settings from Secret more");
}

#[test]
pub fn each_scaled_job_of_the_file_is_checked() {
    let scaled_job = |name: &str, url: &str| {
        let mut object = good().into_iter().find(|object| object["kind"] == "ScaledJob").unwrap();
        object["metadata"]["name"] = json!(name);
        let mut objects = vec![object];
        variable(&mut objects, "LEASEHOLD_QUEUE_URL", &json!(url));
        objects.pop().unwrap()
    };
    let mut objects = good();
    let other = "https://sqs.eu-central-1.amazonaws.com/123456789012/other";
    objects.push(scaled_job("second", other));
    assert_good("two queues", &objects);
    objects.push(scaled_job("third", other));
    assert_finding(
        "one queue for two",
        &objects,
        Severity::Warning,
        "ScaledJob second has the same queue",
    );

    let text = json!({ "kind": "List", "items": [{ "kind": "ScaledJobList", "items": good() }] })
        .to_string();
    let manifest = Manifest::parse("list.yaml", &text, Schema::default()).unwrap();
    assert_good("a list of lists", &manifest.objects);
}

#[test]
pub fn valid_variants_have_no_findings() {
    let shell = |words: &[&str]| json!(words);
    for (pointer, value) in [
        ("/spec/envSourceContainerName".into(), json!("leasehold")),
        ("/metadata/annotations".into(), json!({ "autoscaling.keda.sh/paused": "false" })),
        (
            at(TRIGGER, "/queueURL"),
            json!("https://sqs.eu-central-1.amazonaws.com/123456789012/leasehold"),
        ),
        (
            at(TRIGGER, "/queueURL"),
            json!("https://eu-central-1.queue.amazonaws.com/123456789012/leasehold"),
        ),
        (at(TRIGGER, "/queueURL"), json!("leasehold")),
        (at(TRIGGER, "/queueLength"), json!(" 1 ")),
        (at(JOB, "/suspend"), json!(false)),
        (at(JOB, "/parallelism"), json!(1)),
        (
            at(POD, "/initContainers/1"),
            json!({ "name": "proxy", "image": "envoy", "restartPolicy": "Always" }),
        ),
        (at(CONTAINER, "/readinessProbe/httpGet/port"), json!(9464)),
        (at(CONTAINER, "/readinessProbe/httpGet/port"), json!("9464")),
        (at(CONTAINER, "/terminationMessagePath"), json!("/dev/termination-log")),
        // The kubelet creates a subPath.
        (at(CONTAINER, "/volumeMounts/2/subPath"), json!("a")),
        (
            at(CONTAINER, "/command"),
            shell(&["/bin/sh", "-c", "cd /sample && exec leasehold run -- python3 process.py"]),
        ),
        (
            at(CONTAINER, "/command"),
            shell(&["bash", "-euo", "pipefail", "-c", "exec leasehold run -- x"]),
        ),
        (
            at(CONTAINER, "/command"),
            shell(&["sh", "-c", "exec \"$@\"", "sh", "leasehold", "run", "--", "x"]),
        ),
        (at(CONTAINER, "/command"), shell(&["tini", "-g", "--", "leasehold", "run", "--", "x"])),
        (at(CONTAINER, "/command"), shell(&["env", "A=b", "leasehold", "run", "--", "x"])),
        (
            at(CONTAINER, "/command"),
            shell(&["leasehold", "run", "--max-duration=$(LEASEHOLD_MAX_DURATION)", "--", "x"]),
        ),
    ] {
        assert_good(&format!("{pointer} = {value}"), &changed(&[(&pointer, value.clone())]));
    }
    // A temporary directory by TMPDIR.
    let mut objects = good();
    setting(&mut objects, "LEASEHOLD_WORK_DIR", Value::Null);
    setting(&mut objects, "TMPDIR", json!("/work"));
    assert_good("TMPDIR", &objects);
    // Five messages per pod.
    let mut objects = changed(&[(&format!("{TRIGGER}/queueLength"), json!("5"))]);
    setting(&mut objects, "LEASEHOLD_MAX_MESSAGES", json!("5"));
    assert_good("queueLength 5", &objects);
    // The outdated field works without the new one.
    let mut objects = changed(&[("/spec/rollout", Value::Null)]);
    change(&mut objects, "/spec/rolloutStrategy", json!("gradual"));
    assert_finding("rolloutStrategy", &objects, Severity::Warning, "write rollout.strategy");
}

/// Any value in any place must not cause a panic.
#[test]
fn no_manifest_breaks_the_check() {
    fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    pointers(
                        value,
                        &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")),
                        all,
                    );
                }
            }
            Value::Array(items) => {
                for (number, value) in items.iter().enumerate() {
                    pointers(value, &format!("{at}/{number}"), all);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let nonsense = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!("--"),
        json!("$($(A))$"),
        json!("ü=\u{fffc}"),
        json!([null, [], {}]),
        json!({ "name": 1, "items": "x" }),
    ];
    let good = good();
    let is_read =
        |object: &Value| ["ScaledJob", "ConfigMap"].iter().any(|kind| object["kind"] == *kind);
    for (number, object) in good.iter().enumerate().filter(|(_, object)| is_read(object)) {
        let mut all = Vec::new();
        pointers(object, "", &mut all);
        for pointer in all {
            for value in &nonsense {
                let mut objects = good.clone();
                *objects[number].pointer_mut(&pointer).unwrap() = value.clone();
                let manifest = Manifest { objects, ..Manifest::default() };
                let _ = Text { findings: &manifest.findings(), is_coloured: false }.to_string();
            }
        }
    }
    // Also for any shell command.
    for line in [
        "",
        " ",
        ";;",
        "&&",
        "exec",
        "|",
        "exec exec exec",
        "env",
        "tini",
        "busybox",
        "sh -c",
        "sh -c 'sh -c \"$@\"' a b",
        "A=1",
    ] {
        for command in [json!(["sh", "-c", line]), json!(line.split(' ').collect::<Vec<_>>())] {
            let objects = changed(&[(&at(CONTAINER, "/command"), command)]);
            let manifest = Manifest { objects, ..Manifest::default() };
            let _ = Text { findings: &manifest.findings(), is_coloured: false }.to_string();
        }
    }
}

#[test]
pub fn a_memory_guard_needs_a_memory_limit() {
    let mut objects = good();
    variable(&mut objects, "LEASEHOLD_MEMORY_GUARD", &json!("90%"));
    assert_good("with a limit", &objects);
    change(&mut objects, &at(CONTAINER, "/resources"), json!({ "requests": { "memory": "1Gi" } }));
    let text = "--memory-guard 90% has no limit to compare with";
    assert_finding("without a limit", &objects, Severity::Error, text);
}

#[test]
pub fn a_handler_needs_a_server() {
    let mut objects = good();
    setting(&mut objects, "LEASEHOLD_JOB_TYPES", Value::Null);
    variable(&mut objects, "LEASEHOLD_MAX_MESSAGES", &json!("1"));
    let without_server = json!(["leasehold", "run", "--handler", "http://127.0.0.1:8080/"]);
    let with_server =
        json!(["leasehold", "run", "--handler", "http://127.0.0.1:8080/", "--", "./server"]);
    change(&mut objects, &at(CONTAINER, "/command"), with_server);
    assert_finding("one message", &objects, Severity::Warning, "but the pod ends after one");
    variable(&mut objects, "LEASEHOLD_MAX_MESSAGES", &json!("10"));
    assert_good("started by the command", &objects);
    change(&mut objects, &at(CONTAINER, "/command"), without_server);
    let text = "no server accepts the requests of --handler";
    assert_finding("without one", &objects, Severity::Error, text);
    let sidecar = json!([{ "name": "server", "image": "worker:1", "restartPolicy": "Always" }]);
    change(&mut objects, &at(POD, "/initContainers"), sidecar);
    assert_good("in a sidecar", &objects);
}

#[test]
pub fn a_function_needs_more_than_one_message_and_its_own_output() {
    let mut objects = installed();
    variable(&mut objects, "LEASEHOLD_HANDLER", &json!("lambda"));
    variable(&mut objects, "LEASEHOLD_MAX_MESSAGES", &json!("1"));
    let text = "but the pod ends after one";
    assert_finding("one message", &objects, Severity::Warning, text);
    variable(&mut objects, "LEASEHOLD_MAX_MESSAGES", &json!("10"));
    variable(&mut objects, "LEASEHOLD_OUTPUT", &json!("s3://results/of"));
    let text = "the function does not know the directory";
    assert_finding("results", &objects, Severity::Warning, text);
}

/// The base of kustomize, started as docs/existing-cluster.md does it.
fn installed() -> Vec<Value> {
    let mut objects = good();
    setting(&mut objects, "LEASEHOLD_JOB_TYPES", Value::Null);
    let install = json!([{
        "name": "install",
        "image": "registry.example.com/leasehold:0.1.0",
        "args": ["install", "/opt/leasehold"],
        "volumeMounts": [{ "name": "program", "mountPath": "/opt/leasehold" }],
    }]);
    change(&mut objects, &at(POD, "/initContainers"), install);
    change(&mut objects, &at(POD, "/volumes/-"), json!({ "name": "program", "emptyDir": {} }));
    let mount = json!({ "name": "program", "mountPath": "/opt/leasehold", "readOnly": true });
    change(&mut objects, &at(CONTAINER, "/volumeMounts/-"), mount);
    let command = json!(["/opt/leasehold/leasehold", "run", "--", "python3", "process.py"]);
    change(&mut objects, &at(CONTAINER, "/command"), command);
    objects
}

#[test]
pub fn a_program_that_is_not_where_the_container_starts_it_is_reported() {
    assert_good("as documented", &installed());
    let init = at(POD, "/initContainers/0");
    let last_mount = at(CONTAINER, "/volumeMounts/-");
    let command = |words: &[&str]| (at(CONTAINER, "/command"), json!(words));
    for ((pointer, value), text) in [
        ((at(POD, "/initContainers"), json!([])), "no init container installs leasehold at"),
        ((at(&init, "/args/0"), json!("instal")), "runs leasehold instal, which does not exist"),
        ((at(&init, "/args/1"), json!("/opt/lease")), "no init container installs leasehold at"),
        (command(&["/opt/leasehold", "run", "--", "x"]), "is the directory of the volume program"),
        (command(&["/opt/other/leasehold", "run", "--", "x"]), "is on no volume"),
        (command(&["/opt/leasehold/leasehold", "run", "--"]), "no command follows run --"),
        (command(&["/opt/leasehold/leasehold", "run"]), "no command follows run --"),
        (
            (last_mount, json!({ "name": "gone", "mountPath": "/gone" })),
            "mounts the volume \"gone\"",
        ),
    ] {
        let mut objects = installed();
        change(&mut objects, &pointer, value.clone());
        assert_finding(&format!("{pointer} = {value}"), &objects, Severity::Error, text);
    }
    // Another program may copy it.
    let mut objects = installed();
    change(&mut objects, &at(&init, "/command"), json!(["cp", "/leasehold", "/opt/leasehold/"]));
    assert_good("cp", &objects);
}
