//! The rules of `leasehold check`: all are documented, each has a test that finds it, and their ids
//! can be used.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use leasehold::check::manifest::{Manifest, Schema};
use leasehold::check::rules::{Explain, Rule};
use leasehold::check::{Finding, Severity};
use nix::pty::{OpenptyResult, openpty};
use serde_json::{Value, json};

use super::check::check;
use super::check_manifest::{CONTAINER, JOB, RECORDED, change, findings, good, recorded};
use super::{check as live, check_manifest, check_variants};

/// Rules that need AWS or a test server: see the tests with a `Cloud` or a `Stack`.
const LIVE_ONLY: [Rule; 20] = [
    Rule::AwsSetup,
    Rule::ClockSkew,
    Rule::QueueNotFound,
    Rule::QueuePermission,
    Rule::QueueUnanswered,
    Rule::PermissionUntried,
    Rule::BucketNotFound,
    Rule::BucketsNotNamed,
    Rule::BucketSilent,
    Rule::EventsMismatch,
    Rule::NotificationsUnseen,
    Rule::ReadPermission,
    Rule::WritePermission,
    Rule::PermissionUnseen,
    Rule::WritesBecomeWork,
    Rule::WritesStartPods,
    Rule::ConditionsIgnored,
    Rule::ConditionsUntried,
    Rule::QueuePolicyUnseen,
    Rule::PushgatewayUnreachable,
];

const CUSTOMARY: &str = "tests/deploy/customary-scaled-job.yaml";

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn ids_are_ascending_and_each_rule_is_complete() {
    let ids: Vec<_> = Rule::ALL.iter().map(|rule| rule.id()).collect();
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    let names: BTreeSet<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
    assert_eq!(names.len(), ids.len());
    for rule in Rule::ALL {
        let id = rule.id().strip_prefix("LH").unwrap();
        assert!(id.len() == 3 && id.parse::<u16>().is_ok(), "{rule}");
        assert!(rule.name().chars().all(|one| one.is_ascii_lowercase() || one == '-'), "{rule}");
        assert!(!rule.summary().ends_with('.') && rule.explanation().len() > 60, "{rule}");
        assert_eq!(rule.id().to_lowercase().parse(), Ok(*rule));
        assert_eq!(rule.name().parse(), Ok(*rule));
        assert!(Explain::Rule(*rule).to_string().contains(rule.explanation()));
    }
}

#[test]
fn the_page_of_findings_is_up_to_date() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/findings.md"))
            .unwrap();
    assert_eq!(
        page,
        text(&check(&["--explain", "all"])),
        "regenerate it: leasehold check --explain all"
    );
}

/// Runs the tests of the findings one after another on this thread, and then those of this file.
#[test]
fn each_rule_can_be_found() {
    check_manifest::each_change_of_the_good_manifest_has_its_finding();
    check_variants::wrong_scaling_is_reported();
    check_variants::pods_that_never_start_end_or_become_ready_are_reported();
    check_variants::wrong_start_commands_are_reported();
    check_variants::settings_are_read_from_every_source();
    check_variants::objects_outside_of_the_file_are_unchecked();
    check_variants::each_scaled_job_of_the_file_is_checked();
    check_variants::a_memory_guard_needs_a_memory_limit();
    check_variants::a_handler_needs_a_server();
    check_variants::a_function_needs_more_than_one_message_and_its_own_output();
    check_variants::a_program_that_is_not_where_the_container_starts_it_is_reported();
    live::each_change_of_the_good_queue_has_its_finding();
    live::at_aws_a_queue_without_a_policy_gets_no_events();
    other_findings_are_reported();
    the_schema_of_a_cluster_is_used();
    without_credentials_no_requests_are_made();
    let found = RECORDED.take();
    let live: BTreeSet<_> = LIVE_ONLY.iter().map(|rule| rule.id()).collect();
    let all: BTreeSet<_> = Rule::ALL.iter().map(|rule| rule.id()).collect();
    let missing: Vec<_> = all.difference(&found).filter(|id| !live.contains(*id)).collect();
    assert!(missing.is_empty(), "no test finds {missing:?}");
    let both: Vec<_> = live.intersection(&found).collect();
    assert!(both.is_empty(), "found without AWS: {both:?}");
}

#[test]
fn other_findings_are_reported() {
    let found = |objects: &[Value], rule: Rule, severity: Severity| {
        let found = findings(objects);
        let is_it = |finding: &&Finding| finding.rule == rule;
        assert_eq!(
            found.iter().find(is_it).map(|finding| finding.severity),
            Some(severity),
            "{rule}: {found:#?}"
        );
    };
    let with = |pointer: &str, value: Value| {
        let mut objects = good();
        change(&mut objects, pointer, value);
        objects
    };
    found(&[], Rule::NoScaledJob, Severity::Error);
    found(&with("/spec/jobTargetRef", Value::Null), Rule::NoJobTarget, Severity::Error);
    found(
        &with(&format!("{JOB}/managedBy"), json!("kueue.x-k8s.io/multikueue")),
        Rule::ManagedElsewhere,
        Severity::Unchecked,
    );
    let gates = json!([{ "conditionType": "example.com/warm" }]);
    let mut objects = with(&format!("{JOB}/template/spec/readinessGates"), gates);
    change(&mut objects, "/spec/scalingStrategy/pendingPodConditions/0", json!("example.com/warm"));
    found(&objects, Rule::ConditionUnseen, Severity::Unchecked);
    let runs = json!({ "exec": { "command": ["true"] }, "periodSeconds": 1 });
    found(
        &with(&format!("{CONTAINER}/readinessProbe"), runs),
        Rule::ReadinessUnseen,
        Severity::Unchecked,
    );
    let mut objects = with(&format!("{CONTAINER}/command"), json!(["python3", "x.py"]));
    change(&mut objects, &format!("{CONTAINER}/env"), json!([]));
    change(&mut objects, &format!("{CONTAINER}/envFrom"), json!([]));
    found(&objects, Rule::LeaseholdNotFound, Severity::Unchecked);
    let env = json!([
        { "name": "LEASEHOLD_QUEUE_URL", "value": "https://sqs.eu-central-1.amazonaws.com/123456789012/leasehold" },
        { "name": "AWS_REGION", "value": "us-east-1" },
    ]);
    found(&with(&format!("{CONTAINER}/env"), env), Rule::PodRegion, Severity::Error);
    // The field may belong to a newer KEDA.
    let objects = with("/spec/podTopology", json!({}));
    found(&objects, Rule::UnknownField, Severity::Warning);
    let unknown = &findings(&objects)[0];
    assert_eq!(unknown.what, "KEDA 2.20 has no such field and ignores it");
    // The value of a variable must be a string.
    for value in [json!(1), json!(true)] {
        let env = json!([{ "name": "DEBUG", "value": value }]);
        found(&with(&format!("{CONTAINER}/env"), env), Rule::NotAString, Severity::Error);
    }
}

/// The output of `kubectl get crd scaledjobs.keda.sh -o yaml`, with few of its fields.
fn cluster(version: &str) -> String {
    let texts = json!({ "type": "array", "items": { "type": "string" } });
    let spec = json!({ "type": "object", "properties": {
        "podTopology": { "type": "string" },
        "triggers": { "type": "array", "items": { "type": "object", "properties": {
            "type": { "type": "string" },
            "metadata": { "type": "object", "additionalProperties": { "type": "string" } },
            "authenticationRef": { "type": "object", "properties": { "name": { "type": "string" } } },
        } } },
        "jobTargetRef": { "type": "object", "properties": {
            "backoffLimit": { "type": "integer", "format": "int32" },
            "parallelism": { "type": "integer" },
            "completions": { "type": "integer" },
            "ttlSecondsAfterFinished": { "type": "integer" },
            "podReplacementPolicy": { "type": "string" },
            "podFailurePolicy": { "type": "object" },
            "template": { "type": "object" },
        } },
        "pollingInterval": { "type": "integer", "minimum": 1 },
        "maxReplicaCount": { "type": "integer", "minimum": 1 },
        "minReplicaCount": { "type": "integer" },
        "successfulJobsHistoryLimit": { "type": "integer" },
        "failedJobsHistoryLimit": { "type": "integer" },
        "rollout": { "type": "object", "properties": { "strategy": { "type": "string" } } },
        "scalingStrategy": { "type": "object", "properties": {
            "strategy": { "type": "string" },
            "pendingPodConditions": texts,
        } },
    } });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": "scaledjobs.keda.sh", "labels": { "app.kubernetes.io/version": version } },
        "spec": { "versions": [
            { "name": "v1alpha1", "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": spec } } } },
        ] },
    })
    .to_string()
}

#[test]
fn the_schema_of_a_cluster_is_used() {
    let against = |version: &str, pointer: &str, value: Value| {
        let mut objects = good();
        if !pointer.is_empty() {
            change(&mut objects, pointer, value);
        }
        let schema = Schema::of_cluster(&cluster(version)).unwrap();
        let found =
            recorded(Manifest { objects, schema, ..Manifest::default() }.findings().findings);
        found.into_iter().map(|finding| (finding.rule, finding.severity)).collect::<Vec<_>>()
    };
    assert_eq!(against("2.21.0", "", Value::Null), []);
    assert_eq!(against("2.18.3", "", Value::Null), [(Rule::OldKeda, Severity::Warning)]);
    assert_eq!(against("", "", Value::Null), []);
    assert_eq!(against("2.21.0", "/spec/podTopology", json!("x")), []);
    assert_eq!(
        against("2.21.0", "/spec/podTopology", json!(1)),
        [(Rule::WrongType, Severity::Error)]
    );
    assert_eq!(
        against("2.21.0", "/spec/unheardOf", json!(1)),
        [(Rule::UnknownField, Severity::Error)]
    );
    assert_eq!(
        against("2.21.0", &format!("{JOB}/backofLimit"), json!(1)),
        [(Rule::MisspelledField, Severity::Error)]
    );
    // The rules beyond the schema still apply.
    assert_eq!(
        against("2.21.0", "/spec/cooldownPeriod", json!(1)),
        [(Rule::ForeignField, Severity::Error)]
    );
    assert_eq!(
        against("2.21.0", &format!("{JOB}/pollingInterval"), json!(1)),
        [(Rule::NestedTooDeep, Severity::Error)]
    );
    assert_eq!(
        against("2.21.0", "/metadata/annotations", json!({ "a": 1 })),
        [(Rule::WrongType, Severity::Error)]
    );
    for text in [
        "",
        "kind: X",
        "metadata: {name: scaledjobs.keda.sh}",
        "a: [",
        &cluster("2").replace("v1alpha1", "v1"),
    ] {
        assert!(Schema::of_cluster(text).is_err(), "{text}");
    }

    let folder = tempfile::tempdir().unwrap();
    let crd = folder.path().join("crd.yaml");
    std::fs::write(&crd, cluster("2.21.0")).unwrap();
    let checked = check(&["--manifest", CUSTOMARY, "--crd", crd.to_str().unwrap()]);
    assert!(checked.status.code() == Some(78) && text(&checked).contains("LH110"), "{checked:?}");
    let checked = check(&["--manifest", CUSTOMARY, "--crd", CUSTOMARY]);
    assert_eq!(checked.status.code(), Some(78));
    assert!(
        String::from_utf8(checked.stderr).unwrap().contains("it has no CustomResourceDefinition")
    );
}

#[test]
fn without_credentials_no_requests_are_made() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args([
        "check",
        "--format",
        "json",
        "--queue-url",
        "https://sqs.eu-west-1.amazonaws.com/123456789012/orders",
    ]);
    command
        .args(["--", "no-such-command"])
        .env_clear()
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("PATH", "/bin");
    let checked = command.output().unwrap();
    assert_eq!(checked.status.code(), Some(78));
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let ids: Vec<_> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["LH001", "LH004"], "{report}");
    assert!(
        report["findings"][0]["what"].as_str().unwrap().contains("no credentials found in chain"),
        "{report}"
    );
    recorded(vec![
        Finding::new(Rule::NoCredentials, "", "", ""),
        Finding::new(Rule::Machine, "", "", ""),
    ]);
}

#[test]
fn a_finding_has_the_line_of_its_field() {
    let yaml = "kind: List\nitems:\n- kind: ConfigMap\n  metadata: {name: c}\n  data:\n    LEASEHOLD_WAIT: 0s\n- apiVersion: keda.sh/v1alpha1\n  kind: \
                ScaledJob\n  metadata: {name: j}\n  spec:\n    minReplicaCount: 1\n    triggers:\n    - type: aws-sqs-queue\n      metadata:\n        \
                awsRegion: eu-west-1\n        queueLength: \"0\"\n    jobTargetRef:\n      template:\n        spec:\n          containers:\n          \
                - name: c\n            command: [leasehold, run, --]\n            env:\n            - name: LEASEHOLD_QUEUE_URL\n              value: \
                https://sqs.eu-west-1.amazonaws.com/123456789012/q\n            - name: LEASEHOLD_VISIBILITY_TIMEOUT\n              value: 20s\n            \
                envFrom: [{configMapRef: {name: c}}]\n            livenessProbe: {}\n";
    let found = Manifest::parse("a.yaml", yaml, Schema::default()).unwrap().findings().findings;
    for (rule, line) in [
        (Rule::ShortPoll, 6),
        (Rule::RolloutImmediate, 10),
        (Rule::IdleJobs, 11),
        (Rule::NoAuthentication, 13),
        (Rule::NoQueueUrl, 14),
        (Rule::QueueLengthZero, 16),
        (Rule::JobRetries, 17),
        (Rule::RestartPolicy, 19),
        (Rule::ShortLease, 27),
        (Rule::KillingProbe, 29),
    ] {
        let one = found
            .iter()
            .find(|finding| finding.rule == rule)
            .unwrap_or_else(|| panic!("{rule}: {found:#?}"));
        assert_eq!((one.file.as_deref(), one.line), (Some("a.yaml"), Some(line)), "{rule}");
    }
    // Sorted by severity, then by line.
    let order: Vec<_> = found.iter().map(|finding| (finding.severity, finding.line)).collect();
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn findings_are_ignored_by_id_or_name() {
    let all = check(&["--manifest", CUSTOMARY]);
    assert!(text(&all).contains("\nerrors: 6, warnings: 1, "), "{}", text(&all));
    let ignore =
        ["--ignore", "LH109,lh110", "--ignore", "rollout-immediate", "--ignore", "LH201,LH301"];
    let checked = check(&[&["--manifest", CUSTOMARY], &ignore[..]].concat());
    assert!(
        checked.status.code() == Some(0) && text(&checked).contains("\nerrors: 0, warnings: 1, "),
        "{checked:?}"
    );
    let checked = check(&[&["--manifest", CUSTOMARY, "--strict"], &ignore[..]].concat());
    assert_eq!(checked.status.code(), Some(1));
    for (wrong, nearest) in [("LH0222", "LH222"), ("rolout-immediate", "rollout-immediate")] {
        let checked = check(&["--manifest", CUSTOMARY, "--ignore", wrong]);
        assert_eq!((checked.status.code(), &checked.stdout[..]), (Some(78), &b""[..]), "{wrong}");
        let output = String::from_utf8(checked.stderr).unwrap();
        assert!(output.contains(&format!("did you mean {nearest}?")), "{output}");
    }
}

#[test]
fn a_rule_can_be_explained() {
    let explained = check(&["--explain", "LH222"]);
    assert_eq!(explained.status.code(), Some(0));
    assert!(
        text(&explained).starts_with("error[LH222] rollout-immediate: An edit of the ScaledJob"),
        "{explained:?}"
    );
    assert_eq!(check(&["--explain", "LH9"]).status.code(), Some(78));
}

#[test]
fn standard_input_is_a_manifest() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(["check", "--manifest", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let manifest = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(CUSTOMARY)).unwrap();
    child.stdin.take().unwrap().write_all(&manifest).unwrap();
    let checked = text(&child.wait_with_output().unwrap());
    assert!(
        checked.contains("error[LH110] stdin:21: ScaledJob customary, spec.cooldownPeriod: "),
        "{checked}"
    );
}

#[test]
fn colours_are_for_terminals() {
    assert!(!text(&check(&["--manifest", CUSTOMARY])).contains('\u{1b}'), "into a pipe");
    for (variable, red) in [("SOME", true), ("NO_COLOR", false)] {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        command
            .args(["check", "--manifest", CUSTOMARY])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("TERM", "xterm");
        command
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR")
            .env(variable, "1")
            .stdout(Stdio::from(slave));
        let mut child = command.spawn().unwrap();
        drop(command);
        let (mut screen, mut some, mut master) =
            (String::new(), [0; 4096], std::fs::File::from(master));
        // A terminal without a writer returns an error.
        while let Ok(read @ 1..) = master.read(&mut some) {
            screen.push_str(&String::from_utf8_lossy(&some[..read]));
        }
        child.wait().unwrap();
        assert_eq!(screen.contains("\u{1b}[31merror[LH110]"), red, "{screen:?}");
        assert!(screen.contains("errors: 6"), "{screen:?}");
    }
}

/// The parts of SARIF 2.1.0 that we write, by its specification (sections 3.13 to 3.52).
#[test]
fn the_log_is_sarif() {
    let words = json!({ "type": "object", "required": ["text"], "properties": { "text": { "type": "string", "minLength": 1 } } });
    let level = json!({ "enum": ["none", "note", "warning", "error"] });
    let rule = json!({
        "type": "object",
        "required": ["id", "name", "shortDescription", "help", "defaultConfiguration"],
        "additionalProperties": false,
        "properties": {
            "id": { "pattern": "^LH[0-9]{3}$" },
            "name": { "type": "string" },
            "shortDescription": words,
            "help": words,
            "defaultConfiguration": { "properties": { "level": level } },
        },
    });
    let physical = json!({
        "type": "object",
        "required": ["artifactLocation"],
        "properties": {
            "artifactLocation": { "required": ["uri"], "properties": { "uri": { "type": "string", "pattern": "^[^ \\\\]+$" } } },
            "region": { "required": ["startLine"], "properties": { "startLine": { "type": "integer", "minimum": 1 } } },
        },
    });
    let logical = json!({ "type": "array", "items": { "required": ["fullyQualifiedName"] } });
    let result = json!({
        "type": "object",
        "required": ["ruleId", "ruleIndex", "level", "message", "locations"],
        "additionalProperties": false,
        "properties": {
            "ruleId": { "type": "string" },
            "ruleIndex": { "type": "integer", "minimum": 0 },
            "level": level,
            "message": words,
            "locations": { "type": "array", "minItems": 1, "items": {
                "type": "object",
                "additionalProperties": false,
                "properties": { "physicalLocation": physical, "logicalLocations": logical },
            } },
        },
    });
    let driver = json!({ "required": ["name", "semanticVersion", "rules"], "properties": { "rules": { "items": rule } } });
    let run = json!({
        "required": ["tool", "results"],
        "properties": { "tool": { "properties": { "driver": driver } }, "results": { "type": "array", "items": result } },
    });
    let schema = json!({
        "type": "object",
        "required": ["$schema", "version", "runs"],
        "properties": { "version": { "const": "2.1.0" }, "runs": { "type": "array", "minItems": 1, "items": run } },
    });
    let log: Value =
        serde_json::from_slice(&check(&["--manifest", CUSTOMARY, "--format", "sarif"]).stdout)
            .unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let wrong: Vec<_> = validator.iter_errors(&log).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let run = &log["runs"][0];
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 7);
    for result in results {
        let number = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(run["tool"]["driver"]["rules"][number]["id"], result["ruleId"]);
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], CUSTOMARY);
        assert!(place["region"]["startLine"].is_u64(), "{result}");
    }
}
