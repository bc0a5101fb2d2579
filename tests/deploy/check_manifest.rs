//! `leasehold check --manifest`. Our own manifests are the good example, and each test case is one
//! change of them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

use leasehold::check::manifest::Manifest;
use leasehold::check::{Finding, Severity};
use serde_json::{Value, json};

use super::manifests::build;

pub fn good() -> Vec<Value> {
    static GOOD: OnceLock<Vec<Value>> = OnceLock::new();
    GOOD.get_or_init(|| {
        build(&Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kustomize/overlays/heartbeat"))
    })
    .clone()
}

pub fn findings(objects: &[Value]) -> Vec<Finding> {
    let manifest = Manifest { objects: objects.to_vec(), ..Manifest::default() };
    recorded(manifest.findings().findings)
}

thread_local! {
    /// The rules with findings on this thread.
    pub static RECORDED: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
}

pub fn recorded(findings: Vec<Finding>) -> Vec<Finding> {
    RECORDED.with_borrow_mut(|all| all.extend(findings.iter().map(|finding| finding.id)));
    findings
}

/// Sets a JSON pointer of the ScaledJob to `value`, or removes it (`null`).
pub fn change(objects: &mut [Value], pointer: &str, value: Value) {
    let scaled_job = objects.iter_mut().find(|object| object["kind"] == "ScaledJob").unwrap();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent =
        scaled_job.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer} has no parent"));
    if let Value::Array(list) = parent {
        // As in RFC 6902, `-` is the end.
        let number = if name == "-" { list.len() } else { name.parse().unwrap() };
        list.splice(number..list.len().min(number + 1), [value]);
    } else if value.is_null() {
        parent
            .as_object_mut()
            .unwrap()
            .remove(name)
            .unwrap_or_else(|| panic!("{pointer} does not exist"));
    } else {
        parent[name] = value;
    }
}

pub const JOB: &str = "/spec/jobTargetRef";
pub const POD: &str = "/spec/jobTargetRef/template/spec";
pub const CONTAINER: &str = "/spec/jobTargetRef/template/spec/containers/0";
pub const TRIGGER: &str = "/spec/triggers/0/metadata";

#[test]
pub fn each_change_of_the_good_manifest_has_its_finding() {
    use Severity::{Error, Unchecked, Warning};
    let at = |root: &str, rest: &str| format!("{root}{rest}");
    let variable = |name: &str, value: &str| {
        let objects = good();
        let scaled_job = objects.iter().find(|object| object["kind"] == "ScaledJob").unwrap();
        let mut env =
            scaled_job.pointer(&at(CONTAINER, "/env")).unwrap().as_array().unwrap().clone();
        env.retain(|variable| variable["name"] != name);
        env.push(json!({ "name": name, "value": value }));
        (at(CONTAINER, "/env"), json!(env))
    };
    let table = [
        (
            ("/spec/cooldownPeriod".into(), json!(300)),
            Error,
            "spec.cooldownPeriod: a ScaledJob has no such field",
        ),
        (
            ("/spec/scaleTargetRef".into(), json!({})),
            Error,
            "jobTargetRef, which holds the spec of a Job",
        ),
        (("/spec/maxReplicas".into(), json!(3)), Error, "did you mean maxReplicaCount?"),
        ((at(JOB, "/pollingInterval"), json!(30)), Error, "move it to spec.pollingInterval"),
        ((at(JOB, "/triggers"), json!([])), Error, "move it to spec.triggers"),
        (("/spec/triggers".into(), Value::Null), Error, "spec.triggers: it is missing"),
        (
            ("/spec/triggers/0/type".into(), json!("aws-sqs")),
            Error,
            "it has no trigger of type aws-sqs-queue",
        ),
        (("/spec/triggers/0/metricType".into(), json!("Value")), Error, "metricType"),
        (
            ("/spec/triggers/0/authenticationRef".into(), Value::Null),
            Error,
            "KEDA has no credentials",
        ),
        (
            ("/spec/triggers/0/authenticationRef/kind".into(), json!("Secret")),
            Error,
            "KEDA does not know the value \"Secret\"",
        ),
        (
            ("/spec/triggers/0/authenticationRef/names".into(), json!("x")),
            Error,
            "did you mean name?",
        ),
        (("/spec/triggers/0/useCachedMetrics".into(), json!(true)), Warning, "it is outdated"),
        (
            ("/spec/triggers/1".into(), json!({ "type": "cron" })),
            Warning,
            "a pod receives from one queue",
        ),
        (("/spec/rolloutStrategy".into(), json!("gradual")), Warning, "write rollout.strategy"),
        (
            ("/spec/rollout/propagationPolicy".into(), json!("orphan")),
            Error,
            "set it to foreground or background",
        ),
        (("/spec/rollout".into(), json!("gradual")), Error, "\"gradual\" is not an object"),
        (("/spec/pollingInterval".into(), json!("10")), Error, "\"10\" is not an integer"),
        (("/spec/envSourceContainerName".into(), json!(1)), Error, "write it in quotes: \"1\""),
        (("/spec/triggers".into(), json!({})), Error, "{} is not a list"),
        (
            ("/spec/scalingStrategy/pendingPodConditions".into(), json!("Ready")),
            Error,
            "is not a list of strings",
        ),
        (
            ("/spec/scalingStrategy/pendingPodConditions".into(), json!(["Ready"])),
            Warning,
            "when a node is lost",
        ),
        (
            ("/spec/scalingStrategy/pendingPodConditions/1".into(), json!("Ready")),
            Warning,
            "when a node is lost",
        ),
        (
            ("/spec/scalingStrategy/pendingPodConditions/0".into(), json!("ready")),
            Error,
            "never sets \"ready\"",
        ),
        (
            ("/spec/scalingStrategy/pendingPodConditions/1".into(), json!("Initialised")),
            Error,
            "sets \"Initialised\"",
        ),
        (
            ("/spec/scalingStrategy/pendingPodConditions/0".into(), json!("Initialized")),
            Warning,
            "creates a second pod",
        ),
        (
            ("/spec/scalingStrategy/pendingPods".into(), json!([])),
            Error,
            "did you mean pendingPodConditions?",
        ),
        (
            ("/spec/scalingStrategy/multipleScalersCalculation".into(), json!("max")),
            Warning,
            "leasehold has one queue",
        ),
        (("/spec/rollout".into(), Value::Null), Error, "rollout.strategy: it is immediate"),
        (
            ("/spec/rollout/strategy".into(), json!("immediate")),
            Error,
            "rollout.strategy: it is immediate",
        ),
        (
            ("/spec/rollout/strategy".into(), json!("default")),
            Error,
            "KEDA does not know the value \"default\"",
        ),
        (("/spec/minReplicaCount".into(), json!(1)), Warning, "minReplicaCount"),
        (
            ("/spec/scalingStrategy/pendingPodConditions".into(), Value::Null),
            Warning,
            "creates a second pod",
        ),
        ((at(CONTAINER, "/readinessProbe"), Value::Null), Warning, "without a readinessProbe"),
        (
            (at(CONTAINER, "/readinessProbe/httpGet/path"), json!("/healthz")),
            Warning,
            "set it to /readyz",
        ),
        ((at(CONTAINER, "/readinessProbe/periodSeconds"), json!(10)), Warning, "periodSeconds"),
        ((at(CONTAINER, "/livenessProbe"), json!({})), Warning, "livenessProbe"),
        ((at(CONTAINER, "/lifecycle"), json!({ "preStop": {} })), Warning, "lifecycle.preStop"),
        (
            (at(CONTAINER, "/lifecycle"), json!({ "stopSignal": "SIGUSR1" })),
            Error,
            "it is SIGUSR1, which starts no graceful shutdown",
        ),
        (
            ("/spec/scalingStrategy".into(), Value::Null),
            Error,
            "new messages wait until running Jobs have ended",
        ),
        (
            ("/spec/scalingStrategy/strategy".into(), json!("eager")),
            Error,
            "messages that other pods are processing",
        ),
        (
            ("/spec/scalingStrategy/strategy".into(), json!("exact")),
            Error,
            "KEDA does not know the value \"exact\"",
        ),
        (
            ("/spec/scalingStrategy/strategy".into(), json!("default")),
            Error,
            "new messages wait until running Jobs",
        ),
        (("/spec/scalingStrategy/strategy".into(), json!("custom")), Unchecked, "your numbers"),
        ((at(TRIGGER, "/scaleOnInFlight"), json!("true")), Error, "each poll creates another Job"),
        ((at(TRIGGER, "/scaleOnInFlight"), Value::Null), Error, "each poll creates another Job"),
        ((at(TRIGGER, "/scaleOnInflight"), json!("false")), Error, "did you mean scaleOnInFlight?"),
        (
            (at(TRIGGER, "/identityOwner"), json!("operator")),
            Warning,
            "a TriggerAuthentication with podIdentity",
        ),
        ((at(TRIGGER, "/queueLength"), Value::Null), Error, "one pod for five messages"),
        ((at(TRIGGER, "/queueLength"), json!(1)), Error, "write it in quotes: \"1\""),
        (
            (at(TRIGGER, "/activationQueueLength"), json!("2")),
            Warning,
            "no Job for 2 messages or fewer",
        ),
        ((at(TRIGGER, "/awsRegion"), Value::Null), Error, "metadata.awsRegion"),
        ((at(TRIGGER, "/queueURLFromEnv"), Value::Null), Error, "metadata.queueURL"),
        ((at(POD, "/restartPolicy"), Value::Null), Error, "KEDA sets OnFailure"),
        (
            (at(POD, "/restartPolicy"), json!("OnFailure")),
            Error,
            "OnFailure restarts the container",
        ),
        ((at(JOB, "/backoffLimit"), Value::Null), Warning, "it is 6, the default"),
        ((at(JOB, "/backoffLimit"), json!(3)), Warning, "it is 3"),
        ((at(JOB, "/parallelism"), json!(2)), Warning, "KEDA counts Jobs"),
        (
            (at(POD, "/terminationGracePeriodSeconds"), json!(60)),
            Error,
            "the shutdown is planned to take 120s",
        ),
        (
            (at(POD, "/terminationGracePeriodSeconds"), Value::Null),
            Error,
            "the kubelet sends SIGKILL after 30s",
        ),
        (
            (at(POD, "/terminationGracePeriodSeconds"), json!(300)),
            Warning,
            "the shutdown uses only 120s of the 300s",
        ),
        (
            (at(JOB, "/activeDeadlineSeconds"), json!(600)),
            Error,
            "spec.jobTargetRef.activeDeadlineSeconds",
        ),
        (
            (at(POD, "/activeDeadlineSeconds"), json!(600)),
            Error,
            "template.spec.activeDeadlineSeconds",
        ),
        (
            (at(POD, "/volumes/2/emptyDir/sizeLimit"), json!("1Gi")),
            Warning,
            "LEASEHOLD_WORK_DIR_LIMIT",
        ),
        (
            (at(CONTAINER, "/envFrom/0/configMapRef/name"), json!("other")),
            Error,
            "did you mean leasehold-settings?",
        ),
        (
            (at(CONTAINER, "/command"), json!(["/leasehold", "run", "--max-duraton=1h"])),
            Error,
            "--max-duraton",
        ),
        (variable("LEASEHOLD_STOP_GRACE", "3m"), Error, "is too long"),
        (variable("LEASEHOLD_MAX_DURATON", "1h"), Error, "did you mean 'LEASEHOLD_MAX_DURATION'?"),
        (variable("LEASEHOLD_WAIT", "0s"), Warning, "a short poll"),
        (variable("LEASEHOLD_VISIBILITY_TIMEOUT", "20s"), Warning, "one slow request"),
        (
            variable("LEASEHOLD_JOB_TYPES", "/types.yaml"),
            Unchecked,
            "/types.yaml is in the container",
        ),
    ];
    assert_eq!(findings(&good()), []);
    for ((pointer, value), severity, text) in table {
        let mut objects = good();
        change(&mut objects, &pointer, value.clone());
        let findings = super::check_manifest::findings(&objects);
        let is_found =
            |finding: &Finding| finding.severity == severity && finding.to_string().contains(text);
        assert!(
            findings.iter().any(is_found),
            "{pointer} = {value}: {text:?} is not among {findings:#?}"
        );
        // Consequences may be reported too, but none may be more severe.
        assert!(
            findings.iter().all(|finding| finding.severity >= severity),
            "{pointer} = {value}: {findings:#?}"
        );
    }
}

/// SQS hides a message for 12 hours at most; then the next pod resumes.
#[test]
fn a_deadline_above_twelve_hours_is_enough() {
    for (hours, is_enough) in [(11, false), (13, true)] {
        let mut objects = good();
        change(&mut objects, &format!("{JOB}/activeDeadlineSeconds"), json!(hours * 3600));
        for (name, value) in
            [("LEASEHOLD_CHECKPOINT", "s3://state/of"), ("LEASEHOLD_MAX_DURATION", "30h")]
        {
            let scaled_job =
                objects.iter_mut().find(|object| object["kind"] == "ScaledJob").unwrap();
            let env = scaled_job
                .pointer_mut(&format!("{CONTAINER}/env"))
                .unwrap()
                .as_array_mut()
                .unwrap();
            env.retain(|variable| variable["name"] != name);
            env.push(json!({ "name": name, "value": value }));
        }
        let findings = super::check_manifest::findings(&objects);
        assert_eq!(findings.is_empty(), is_enough, "{hours} h: {findings:#?}");
    }
}

#[test]
fn our_overlays_have_no_findings() {
    for overlay in ["fixed", "spot", "local"] {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kustomize/overlays").join(overlay);
        let findings = super::check_manifest::findings(&build(&folder));
        assert!(
            findings.iter().all(|finding| finding.severity == Severity::Unchecked),
            "{overlay}: {findings:#?}"
        );
    }
}
