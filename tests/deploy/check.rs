//! `leasehold check` as a program, and its findings about queues, buckets and roles. Each test case
//! is one change of the good example.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use aws_sdk_s3::types::{
    Event, EventBridgeConfiguration, FilterRule, FilterRuleName, NotificationConfiguration,
    NotificationConfigurationFilter, QueueConfiguration, S3KeyFilter, ServerSideEncryption,
    ServerSideEncryptionByDefault, ServerSideEncryptionConfiguration, ServerSideEncryptionRule,
};
use aws_sdk_sqs::types::QueueAttributeName;
use leasehold::check::queue::{self, QueueFacts};
use leasehold::check::{Finding, Severity};
use leasehold::job::delivery::Redrive;
use leasehold::settings::command_line::container_args;
use leasehold::settings::resolve::RunConfig;
use serde_json::{Value, json};

use super::check_manifest::{change, good, recorded};
use super::stack::{Stack, without};
use crate::support::cloud::{Cloud, ExitedRun, Leasehold, eventually};
use crate::support::http::Http;
use crate::support::servers::{Ministack, Pushgateway};

pub fn check(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.arg("check").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
}

#[test]
fn a_customary_sample_has_findings() {
    let checked = check(&["--manifest", "tests/deploy/customary-scaled-job.yaml"]);
    assert_eq!(checked.status.code(), Some(78));
    insta::assert_snapshot!(String::from_utf8(checked.stdout).unwrap());
}

#[test]
fn the_exit_code_and_the_json_show_the_severity() {
    let folder = tempfile::tempdir().unwrap();
    let file = |objects: &[Value]| {
        let path = folder.path().join("manifest.yaml");
        // JSON is YAML.
        std::fs::write(
            &path,
            objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n"),
        )
        .unwrap();
        path.to_str().unwrap().to_owned()
    };
    let manifest = file(&good());
    let checked = check(&["--manifest", &manifest, "--strict"]);
    assert_eq!(checked.status.code(), Some(0));
    let output = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(
        output,
        "stop      ScaledJob leasehold, the stop: TERM 0 s → KILL by 110 s → released by 115 s → reported by 117 s \
         → pushed by 119 s → exit by 120 s\n\
         errors: 0, warnings: 0, could not be checked: 0\n"
    );

    let mut objects = good();
    change(&mut objects, "/spec/minReplicaCount", json!(1));
    let manifest = file(&objects);
    assert_eq!(check(&["--manifest", &manifest]).status.code(), Some(0));
    assert_eq!(check(&["--manifest", &manifest, "--strict"]).status.code(), Some(1));

    change(&mut objects, "/spec/rollout", Value::Null);
    let checked = check(&["--manifest", &file(&objects), "--format", "json"]);
    assert_eq!(checked.status.code(), Some(78));
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(report["findings"][0]["severity"], "error");
    assert_eq!(report["findings"][0]["where"], "ScaledJob leasehold, spec.rollout.strategy");
    assert_eq!(report["findings"][1]["severity"], "warning");
    assert_eq!(report["stops"][0]["exit_by_s"], 120.0);
}

#[test]
fn an_unreadable_manifest_is_refused() {
    let checked = check(&["--manifest", "nowhere.yaml"]);
    assert_eq!(checked.status.code(), Some(78));
    assert!(String::from_utf8(checked.stderr).unwrap().contains("nowhere.yaml: No such file"));
    assert_eq!(check(&[]).status.code(), Some(78));
}

const QUEUE_URL: &str = "https://sqs.eu-central-1.amazonaws.com/123456789012/orders";

fn good_queue() -> QueueFacts {
    let attributes = |all: &[(&str, &str)]| {
        all.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    };
    QueueFacts {
        attributes: attributes(&[
            ("MessageRetentionPeriod", "345600"),
            ("QueueArn", "arn:aws:sqs:eu-central-1:123456789012:orders"),
        ]),
        redrive: Redrive::DeadLetter { max_receive_count: 5, queue: "dlq".into() },
        dead_letter: Ok(Some(attributes(&[("MessageRetentionPeriod", "1209600")]))),
    }
}

type Change = Box<dyn Fn(&mut QueueFacts)>;

fn of_queue(facts: &QueueFacts, flags: &str) -> Vec<Finding> {
    let words: Vec<String> =
        flags.split_whitespace().chain(["--", "true"]).map(str::to_owned).collect();
    let variables = BTreeMap::from([("LEASEHOLD_QUEUE_URL".to_owned(), QUEUE_URL.to_owned())]);
    let config = RunConfig::try_from(container_args(&variables, &words).unwrap()).unwrap();
    recorded(queue::findings(QUEUE_URL, facts, &config))
}

#[test]
pub fn each_change_of_the_good_queue_has_its_finding() {
    use Severity::{Error, Unchecked, Warning};
    let dead_letter = |facts: &mut QueueFacts, name: &str, value: &str| {
        let Ok(Some(attributes)) = &mut facts.dead_letter else { unreachable!() };
        attributes.insert(name.into(), value.into());
    };
    let set = |facts: &mut QueueFacts, name: &str, value: &str| {
        drop(facts.attributes.insert(name.into(), value.into()));
    };
    let table: [(&str, Change, Severity, &str); 15] = [
        ("", Box::new(|it| it.redrive = Redrive::None), Error, "there is no dead-letter queue"),
        ("", Box::new(|it| it.redrive = Redrive::Unknown), Unchecked, "RedrivePolicy"),
        (
            "",
            Box::new(|it| {
                it.redrive = Redrive::DeadLetter { max_receive_count: 2, queue: "dlq".into() }
            }),
            Warning,
            "is low",
        ),
        ("", Box::new(|it| it.dead_letter = Ok(None)), Error, "it does not exist"),
        (
            "",
            Box::new(|it| it.dead_letter = Err("not permitted".into())),
            Unchecked,
            "not permitted",
        ),
        (
            "",
            Box::new(move |it| dead_letter(it, "MessageRetentionPeriod", "345600")),
            Warning,
            "is not longer than the 4days",
        ),
        (
            "",
            Box::new(move |it| dead_letter(it, "MessageRetentionPeriod", "345599")),
            Error,
            "is shorter than the 4days",
        ),
        (
            "",
            Box::new(move |it| {
                dead_letter(it, "RedriveAllowPolicy", r#"{"redrivePermission":"denyAll"}"#);
            }),
            Error,
            "does not allow orders",
        ),
        (
            "",
            Box::new(move |it| {
                dead_letter(
                    it,
                    "RedriveAllowPolicy",
                    r#"{"redrivePermission":"byQueue","sourceQueueArns":["arn:other"]}"#,
                );
            }),
            Error,
            "add arn:aws:sqs:eu-central-1:123456789012:orders",
        ),
        (
            "",
            Box::new(move |it| set(it, "MessageRetentionPeriod", "600")),
            Error,
            "expires while it is being processed",
        ),
        (
            "",
            Box::new(move |it| set(it, "MessageRetentionPeriod", "3600")),
            Warning,
            "and never reaches dlq",
        ),
        ("--max-duration 11h --retry-max 12h", Box::new(|_| ()), Warning, "and never reaches dlq"),
        (
            "",
            Box::new(move |it| set(it, "KmsMasterKeyId", "alias/aws/sqs")),
            Error,
            "S3 cannot use the AWS managed key",
        ),
        (
            "",
            Box::new(move |it| set(it, "KmsMasterKeyId", "alias/ours")),
            Unchecked,
            "may use the key alias/ours",
        ),
        (
            "--retry expire --visibility-timeout 12h --max-duration 11h",
            Box::new(|_| ()),
            Warning,
            "5 attempts may take 4days 19h",
        ),
    ];
    assert_eq!(of_queue(&good_queue(), ""), []);
    for (flags, change, severity, text) in table {
        let mut facts = good_queue();
        change(&mut facts);
        let findings = of_queue(&facts, flags);
        assert_eq!(findings.len(), 1, "{text}: {findings:#?}");
        assert_eq!(findings[0].severity, severity, "{text}");
        assert!(
            findings[0].to_string().contains(text),
            "{:?} lacks {text:?}",
            findings[0].to_string()
        );
    }
}

#[test]
pub fn at_aws_a_queue_without_a_policy_gets_no_events() {
    let attributes = good_queue().attributes;
    let found = recorded(queue::sending(QUEUE_URL, &attributes, "incoming").into_iter().collect())
        .remove(0);
    assert!(found.severity == Severity::Error && found.what.contains("bucket incoming"), "{found}");
    assert_eq!(
        queue::sending("http://localhost:4566/123456789012/orders", &attributes, "incoming"),
        None
    );
}

/// `leasehold check --format json` on a live queue.
async fn check_live(
    cloud: &Cloud,
    flags: &str,
    credentials: &BTreeMap<String, String>,
) -> (ExitedRun, Vec<String>) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command
        .args(["check", "--format", "json", "--queue-url", &cloud.queue_url])
        .args(flags.split_whitespace());
    command.env("AWS_ENDPOINT_URL", &cloud.endpoint).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").envs(credentials);
    let exited = Leasehold::start(command).wait().await;
    let report: Value = serde_json::from_str(&exited.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", exited.stderr));
    let text = |finding: &Value| {
        let of = |field: &str| finding[field].as_str().unwrap().to_owned();
        format!("{} {}: {}", of("severity"), of("where"), of("what"))
    };
    let lines = report["findings"].as_array().unwrap().iter().map(text).collect();
    (exited, lines)
}

/// In a store without notifications the check's record cannot become a message, so conditional
/// writes are tested. If the check may not read the notifications, conditional writes are
/// unchecked.
#[tokio::test]
async fn a_store_that_ignores_conditions_is_found_even_without_notifications() {
    let cloud = Cloud::new(5).await;
    let ignores = |status, code: &'static str| {
        Http::start(move |request| {
            let is_notification_request =
                request.lines().next().is_some_and(|line| line.contains("?notification"));
            let answer = if is_notification_request {
                format!("<Error><Code>{code}</Code></Error>")
            } else {
                String::new()
            };
            (if is_notification_request { status } else { 200 }, answer)
        })
    };
    for (server, finding) in [
        (
            ignores(501, "NotImplemented").await,
            "error --idempotency: s3://records/done/leasehold-check.json: the store ignores",
        ),
        (
            ignores(403, "AccessDenied").await,
            "unchecked --idempotency: conditional writes were not tested",
        ),
    ] {
        let endpoint = [("AWS_ENDPOINT_URL_S3".to_owned(), server.endpoint.clone())].into();
        let (_, lines) = check_live(&cloud, "--idempotency s3://records/done", &endpoint).await;
        assert!(lines.iter().any(|line| line.starts_with(finding)), "{lines:#?}");
    }
}

async fn set(cloud: &Cloud, queue_url: &str, name: QueueAttributeName, value: &str) {
    let set = cloud.sqs.set_queue_attributes().queue_url(queue_url).attributes(name, value);
    set.send().await.unwrap();
}

#[tokio::test]
async fn a_live_queue_is_checked_without_a_receive() {
    let cloud = Cloud::new(5).await;
    let no_role = BTreeMap::new();
    let gateway = Pushgateway::start(None).await;
    cloud.send("untouched".into()).await;
    let dlq = cloud.dead_letter_queue_url.clone();
    set(&cloud, &dlq, QueueAttributeName::MessageRetentionPeriod, "1209600").await;
    let flags = format!("--buckets {} --pushgateway {}", cloud.bucket, gateway.url());
    let (exited, lines) = check_live(&cloud, &flags, &no_role).await;
    assert_eq!(exited.code(), 0, "{lines:#?}");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(
        lines[0].starts_with("unchecked") && lines[0].contains("sqs:ReceiveMessage"),
        "{lines:#?}"
    );

    let with_key =
        ServerSideEncryptionByDefault::builder().sse_algorithm(ServerSideEncryption::AwsKms);
    let with_key = with_key.kms_master_key_id("alias/ours").build().unwrap();
    let rule = ServerSideEncryptionRule::builder()
        .apply_server_side_encryption_by_default(with_key)
        .build();
    let encryption = ServerSideEncryptionConfiguration::builder().rules(rule).build().unwrap();
    let put = cloud.s3.put_bucket_encryption().bucket(&cloud.bucket);
    put.server_side_encryption_configuration(encryption).send().await.unwrap();
    let (_, lines) = check_live(&cloud, &flags, &no_role).await;
    let is_found = |line: &String| {
        line.starts_with("unchecked") && line.contains("may use the KMS key alias/ours")
    };
    assert!(lines.len() == 2 && lines.iter().any(is_found), "{lines:#?}");

    set(&cloud, &dlq, QueueAttributeName::MessageRetentionPeriod, "3600").await;
    set(&cloud, &cloud.queue_url, QueueAttributeName::MessageRetentionPeriod, "7200").await;
    let events = "--events ObjectRemoved:* --input none";
    let wrong = "--pushgateway http://127.0.0.1:1 --output s3://no-such-bucket/out";
    let wrong = format!("--buckets {},no-such-bucket {wrong} {events}", cloud.bucket);
    let (exited, lines) = check_live(&cloud, &wrong, &no_role).await;
    assert_eq!(exited.code(), 78);
    for text in [
        "1h is shorter than the 2h",
        "so all their messages are deleted",
        "--pushgateway http://127.0.0.1:1",
        "and never reaches",
        "error bucket no-such-bucket: it does not exist, but is set by --buckets, --output s3://no-such-bucket/out",
    ] {
        assert!(lines.iter().any(|line| line.contains(text)), "{text}: {lines:#?}");
    }
    assert_eq!(cloud.counts().await, (1, 0), "the message was received");
}

/// For each policy the test also sends an event, to see whether it arrives.
#[tokio::test]
async fn the_queue_policy_decides_whether_s3_may_send() {
    let server = Ministack::strict().await;
    let cloud = Cloud::at(server.endpoint(), 5).await;
    set(
        &cloud,
        &cloud.dead_letter_queue_url,
        QueueAttributeName::MessageRetentionPeriod,
        "1209600",
    )
    .await;
    let arn = cloud.queue_arn().await;
    let account = arn.split(':').nth(4).unwrap();
    let bucket = format!("arn:aws:s3:::{}", cloud.bucket);
    let allow = |part: &str, value: Value| {
        let mut statement = json!({
            "Effect": "Allow",
            "Principal": { "Service": "s3.amazonaws.com" },
            "Action": "sqs:SendMessage",
            "Resource": arn,
            "Condition": { "ArnEquals": { "aws:SourceArn": bucket }, "StringEquals": { "aws:SourceAccount": account } },
        });
        statement[part] = value;
        statement
    };
    let deny = |part: &str, value: Value| {
        let mut statement = allow("Effect", json!("Deny"));
        statement["Principal"] = json!("*");
        statement[part] = value;
        statement
    };
    let good = allow("Effect", json!("Allow"));
    for (number, (statements, arrives)) in [
        (vec![good.clone()], true),
        (vec![allow("Action", json!(["SQS:Send*", "sqs:ReceiveMessage"]))], true),
        (vec![allow("Action", json!("sqs:ReceiveMessage"))], false),
        (vec![allow("Principal", json!("*"))], true),
        (
            vec![allow(
                "Principal",
                json!({ "Service": ["sns.amazonaws.com", "s3.amazonaws.com"] }),
            )],
            true,
        ),
        (vec![allow("Principal", json!({ "Service": "sns.amazonaws.com" }))], false),
        (vec![allow("Resource", json!(format!("{arn}-dlq")))], false),
        (vec![allow("Resource", json!("arn:aws:sqs:*"))], true),
        (
            vec![allow(
                "Condition",
                json!({ "ArnLike": { "aws:SourceArn": "arn:aws:s3:*:*:e2e-?*" } }),
            )],
            true,
        ),
        (
            vec![allow(
                "Condition",
                json!({ "StringEquals": { "aws:SourceArn": "arn:aws:s3:::e2e-*" } }),
            )],
            false,
        ),
        (
            vec![allow(
                "Condition",
                json!({ "ArnEquals": { "AWS:SourceArn": ["arn:aws:s3:::a", bucket] } }),
            )],
            true,
        ),
        (
            vec![allow(
                "Condition",
                json!({ "ArnEquals": { "aws:SourceArn": "arn:aws:s3:::another" } }),
            )],
            false,
        ),
        (vec![good.clone(), deny("Condition", json!({}))], false),
        (
            vec![
                good.clone(),
                deny("Condition", json!({ "ArnEquals": { "aws:SourceArn": "arn:aws:s3:::x" } })),
            ],
            true,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let with = async |statements: &[Value]| {
            let policy = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
            set(&cloud, &cloud.queue_url, QueueAttributeName::Policy, &policy).await;
        };
        with(&statements).await;
        let (exited, lines) =
            check_live(&cloud, &format!("--buckets {}", cloud.bucket), &BTreeMap::new()).await;
        let errors: Vec<_> = lines.iter().filter(|line| line.contains(", Policy: ")).collect();
        if arrives {
            assert!(errors.is_empty() && exited.code() == 0, "{statements:#?}: {lines:#?}");
        } else {
            assert!(
                errors.len() == 1 && errors[0].starts_with("error") && exited.code() == 78,
                "{statements:#?}: {lines:#?}"
            );
        }
        cloud.put(&format!("first-{number}"), b"x").await;
        with(std::slice::from_ref(&good)).await;
        cloud.put(&format!("second-{number}"), b"x").await;
        let wanted = format!("second-{number}");
        let mut bodies = Vec::new();
        while !bodies.iter().any(|body: &String| body.contains(&wanted)) {
            bodies.push(eventually("an event", async || another_message(&cloud).await).await);
        }
        assert_eq!(
            bodies.iter().any(|body| body.contains(&format!("first-{number}"))),
            arrives,
            "{statements:#?}"
        );
    }
}

/// Replaces the bucket's notification to the queue by one like `ObjectCreated:* of in/*.csv`.
async fn notify(cloud: &Cloud, notification: &str) {
    let (events, keys) = notification.split_once(" of ").unwrap();
    let (prefix, suffix) = keys.split_once('*').unwrap();
    let rules = [(FilterRuleName::Prefix, prefix), (FilterRuleName::Suffix, suffix)];
    let rules = rules.into_iter().filter(|(_, value)| !value.is_empty());
    let rules =
        rules.map(|(name, value)| FilterRule::builder().name(name).value(value).build()).collect();
    let filter = S3KeyFilter::builder().set_filter_rules(Some(rules)).build();
    let to_queue = QueueConfiguration::builder().id("ours").queue_arn(cloud.queue_arn().await);
    let to_queue = to_queue.filter(NotificationConfigurationFilter::builder().key(filter).build());
    let events =
        events.split('+').map(|event| Event::from(format!("s3:{event}").as_str())).collect();
    let to_queue = to_queue.set_events(Some(events)).build().unwrap();
    let all = NotificationConfiguration::builder().queue_configurations(to_queue).build();
    let put = cloud.s3.put_bucket_notification_configuration().bucket(&cloud.bucket);
    put.notification_configuration(all).send().await.unwrap();
    // This removes the test event from S3.
    cloud.sqs.purge_queue().queue_url(&cloud.queue_url).send().await.unwrap();
}

/// For each finding a run shows whether it is true.
#[tokio::test]
async fn written_objects_must_not_become_work() {
    let result = r#"mkdir -p "$JOB_OUTPUT_DIR/in"; echo x > "$JOB_OUTPUT_DIR/in/result.csv""#;
    let state = r#"echo x > "$JOB_CHECKPOINT_DIR/half"; exit 3"#;
    let all = "ObjectCreated:* of *";
    let inbox = "ObjectCreated:* of in/*";
    for (notification, flags, script, finding, makes_work) in [
        (all, "--output s3://{}/out", result, "error --output s3://{}/out", true),
        (all, "--attempts s3://{}/attempts", "exit 65", "error --attempts s3://{}/attempts", true),
        (all, "--idempotency s3://{}/done", "true", "error --idempotency s3://{}/done", true),
        (all, "--checkpoint s3://{}/state", state, "error --checkpoint s3://{}/state", true),
        (inbox, "--output s3://{}/in/done", result, "error --output s3://{}/in/done", true),
        (inbox, "--output s3://{}/{key}", result, "error --output s3://{}/{key}", true),
        (inbox, "--output s3://{}/in-{key}", result, "", false),
        (
            inbox,
            "--output s3://{}/out --attempts s3://{}/inn --checkpoint s3://{}/i/n",
            result,
            "",
            false,
        ),
        // It depends on the file names of the command.
        (inbox, "--output s3://{}", result, "warning --output s3://{}/", true),
        (
            "ObjectCreated:* of *.csv",
            "--output s3://{}/out",
            result,
            "warning --output s3://{}/out",
            true,
        ),
        ("ObjectCreated:* of *.csv", "--attempts s3://{}/attempts", "exit 65", "", false),
        (
            "ObjectCreated:* of *.json",
            "--attempts s3://{}/attempts",
            "exit 65",
            "error --attempts",
            true,
        ),
        (
            "ObjectRemoved:* of *",
            "--attempts s3://{}/attempts",
            "true",
            "warning --attempts s3://{}/attempts: files written there start pods that find no work (ObjectRemoved:Delete",
            true,
        ),
        ("ObjectCreated:Copy of *", "--output s3://{}/out", result, "", false),
        (
            "ObjectCreated:Copy+ObjectRemoved:* of *",
            "--checkpoint s3://{}/state --max-messages 2 --retry-max 1s --wait 3s",
            // The second attempt succeeds, and its checkpoint is deleted.
            r#"cat "$JOB_CHECKPOINT_DIR/half" && exit 0; echo half > "$JOB_CHECKPOINT_DIR/half"; exit 3"#,
            "warning --checkpoint s3://{}/state: files written there start pods that find no work (ObjectRemoved:Delete",
            true,
        ),
    ] {
        let case = format!("{notification}: {flags}");
        let cloud = Cloud::new(5).await;
        set(
            &cloud,
            &cloud.dead_letter_queue_url,
            QueueAttributeName::MessageRetentionPeriod,
            "1209600",
        )
        .await;
        cloud.put("in/k", b"x").await;
        notify(&cloud, notification).await;
        let named = |text: &str| text.replace("{}", &cloud.bucket);
        let (exited, lines) = check_live(&cloud, &named(flags), &BTreeMap::new()).await;
        let of_places: Vec<_> =
            lines.iter().filter(|line| line.contains("files written there")).collect();
        assert!(!lines.iter().any(|line| line.contains("s3:PutObject")), "{case}: {lines:#?}");
        if finding.is_empty() {
            assert!(of_places.is_empty(), "{case}: {of_places:#?}");
        } else {
            assert!(
                of_places.len() == 1 && of_places[0].starts_with(&named(finding)),
                "{case}: {of_places:#?}"
            );
            assert!(
                of_places[0].contains("notification \"ours\" (Object"),
                "{case}: {of_places:#?}"
            );
        }
        assert_eq!(exited.code(), if finding.starts_with("error") { 78 } else { 0 }, "{case}");

        let record = json!({
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "s3": { "bucket": { "name": cloud.bucket }, "object": { "key": "in/k" } },
        });
        cloud.send(json!({ "Records": [record] }).to_string()).await;
        let run = format!("--input none --retry-min 1s {}", named(flags));
        cloud.run(&run, script).wait().await;
        // S3 may be slow to notify: the event of a copy comes after all others.
        if !makes_work {
            let copy = cloud.s3.copy_object().bucket(&cloud.bucket).key("in/copy.csv");
            copy.copy_source(format!("{}/in/k", cloud.bucket)).send().await.unwrap();
        }
        let made =
            eventually(&format!("{case}: a message"), async || another_message(&cloud).await).await;
        assert_eq!(!made.contains("in/copy.csv"), makes_work, "{case}: {made}");
    }
}

#[tokio::test]
async fn events_through_eventbridge_are_unchecked() {
    let cloud = Cloud::new(5).await;
    let through = EventBridgeConfiguration::builder().build();
    let all = NotificationConfiguration::builder().event_bridge_configuration(through).build();
    let put = cloud.s3.put_bucket_notification_configuration().bucket(&cloud.bucket);
    put.notification_configuration(all).send().await.unwrap();
    let flags = format!("--output s3://{0}/out --attempts s3://{0}/attempts", cloud.bucket);
    let (_, lines) = check_live(&cloud, &flags, &BTreeMap::new()).await;
    let expected = format!(
        "unchecked bucket {}, notifications: it also notifies EventBridge or SNS",
        cloud.bucket
    );
    assert_eq!(lines.iter().filter(|line| line.starts_with(&expected)).count(), 1, "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("become messages, so")), "{lines:#?}");
}

/// A moved object would be processed and moved again.
#[tokio::test]
async fn a_move_into_the_bucket_of_the_input_is_reported() {
    let cloud = Cloud::new(5).await;
    let action = format!("move=s3://{}/done", cloud.bucket);
    let flags = format!("--buckets {} --on-success {action} --missing-object ignore", cloud.bucket);
    let (exited, lines) = check_live(&cloud, &flags, &BTreeMap::new()).await;
    assert_eq!(exited.code(), 78, "{lines:#?}");
    let loops =
        format!("error --on-success s3://{}/done: files written there become", cloud.bucket);
    assert!(lines.iter().any(|line| line.starts_with(&loops)), "{lines:#?}");
    let untried = format!("--on-success {action}, s3:DeleteObject: it was not called");
    assert!(lines.iter().any(|line| line.contains(&untried)), "{lines:#?}");
}

/// A message that is not about the processed object.
async fn another_message(cloud: &Cloud) -> Option<String> {
    let asked = cloud.sqs.receive_message().queue_url(&cloud.queue_url);
    let bodies = asked
        .send()
        .await
        .unwrap()
        .messages
        .unwrap_or_default()
        .into_iter()
        .filter_map(|one| one.body);
    bodies.into_iter().find(|body| !body.contains(r#""in/k""#))
}

#[tokio::test]
async fn missing_permissions_of_the_role_are_reported() {
    let stack = Stack::deploy(&[]).await;
    let credentials = &stack.worker.credentials;
    let flags = format!("--buckets {}", stack.cloud.bucket);
    let (_, lines) = stack.with_iam(check_live(&stack.cloud, &flags, credentials)).await;
    assert!(lines.iter().all(|line| !line.starts_with("error")), "{lines:#?}");
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("unchecked bucket") && line.contains("notifications")),
        "{lines:#?}"
    );
    for action in ["sqs:DeleteMessage", "sqs:ChangeMessageVisibility"] {
        let (sid, _) = super::stack::actions(&stack.worker.document)
            .into_iter()
            .find(|(_, one)| one == action)
            .unwrap();
        stack.set_policy(&stack.worker, &without(&stack.worker.document, &sid, action)).await;
        let (exited, lines) = stack.with_iam(check_live(&stack.cloud, &flags, credentials)).await;
        let errors: Vec<_> = lines.iter().filter(|line| line.starts_with("error")).collect();
        assert!(errors.len() == 1 && errors[0].contains(action), "{action}: {lines:#?}");
        assert_eq!(exited.code(), 78);
    }
}

/// The checks leave no object, no started upload and no delete marker in the bucket.
#[tokio::test]
async fn missing_permissions_for_writes_are_reported() {
    let stack = Stack::deploy(&["IdempotencyPrefix=done/", "CheckpointPrefix=checkpoints/"]).await;
    let (cloud, credentials) = (&stack.cloud, &stack.worker.credentials);
    let document = &stack.worker.document;
    let bucket = &cloud.bucket;
    let before = cloud.counts().await;
    let mut credentials = credentials.clone();
    credentials.insert("AWS_MAX_ATTEMPTS".to_owned(), "1".to_owned());
    let places = format!(
        "--output s3://{bucket}/out/{{key}} --attempts s3://{bucket}/attempts --idempotency s3://{bucket}/done \
         --checkpoint s3://{bucket}/checkpoints/{{job_type}}/{{stem}}"
    );
    let of_places = async |flags: &str| {
        let (_, lines) = stack.with_iam(check_live(cloud, flags, &credentials)).await;
        // The role may not read the notifications, so conditional writes are not tested.
        let is_of_place = |line: &String| {
            (line.contains(" --") || line.contains(" job type "))
                && !line.starts_with("unchecked --idempotency: ")
        };
        // Moto has no proper answer about a missing upload.
        let lines = lines.into_iter().filter(|line| !line.ends_with("HTTP 500: no reason given"));
        lines.filter(is_of_place).collect::<Vec<_>>()
    };
    let lines = of_places(&places).await;
    assert!(lines.iter().all(|line| line.starts_with("unchecked")), "{lines:#?}");
    let untried = [
        format!("unchecked --attempts s3://{bucket}/attempts, s3:DeleteObject: "),
        format!(
            "unchecked --checkpoint s3://{bucket}/checkpoints/{{job_type}}/{{stem}}, s3:DeleteObject: "
        ),
    ];
    let is_untried = |line: &String| untried.iter().any(|untried| line.starts_with(untried));
    assert_eq!(lines.iter().filter(|line| is_untried(line)).count(), 2, "{lines:#?}");

    for (sid, action, expected) in [
        ("Output", "s3:PutObject", &["error --output"][..]),
        ("Output", "s3:AbortMultipartUpload", &["warning --output"]),
        ("Attempts", "s3:GetObject", &["warning --attempts"]),
        ("Attempts", "s3:PutObject", &["warning --attempts"]),
        ("Checkpoints", "s3:GetObject", &["error --checkpoint"]),
        ("Checkpoints", "s3:PutObject", &["error --checkpoint"]),
        ("Checkpoints", "s3:AbortMultipartUpload", &["warning --checkpoint"]),
        ("Idempotency", "s3:GetObject", &["error --idempotency"]),
        ("Idempotency", "s3:PutObject", &["error --idempotency"]),
        (
            "MissingObjects",
            "s3:ListBucket",
            &["error --checkpoint", "warning --attempts", "warning --idempotency"],
        ),
    ] {
        stack.set_policy(&stack.worker, &without(document, sid, action)).await;
        let lines: Vec<_> =
            of_places(&places).await.into_iter().filter(|line| !is_untried(line)).collect();
        let is_found = |(line, expected): (&String, &&str)| {
            line.starts_with(*expected) && line.contains(action)
        };
        assert!(
            lines.len() == expected.len() && lines.iter().zip(expected).all(is_found),
            "{sid}, {action}: {lines:#?}"
        );
    }
    stack.set_policy(&stack.worker, document).await;

    let types = cloud.dir.path().join("types.yaml");
    let text = format!(
        "job-types: [{{name: videos, command: [\"true\"], output: \"s3://{bucket}/elsewhere\"}}]"
    );
    std::fs::write(&types, text).unwrap();
    let lines =
        of_places(&format!("--job-types {} --output s3://{bucket}/out", types.display())).await;
    let expected = format!(
        "error job type videos, output s3://{bucket}/elsewhere, s3:PutObject: s3://{bucket}/elsewhere/"
    );
    assert!(lines.len() == 2 && lines[0].starts_with(&expected), "{lines:#?}");

    let versions = cloud.s3.list_object_versions().bucket(bucket).send().await.unwrap();
    assert!(versions.versions().is_empty() && versions.delete_markers().is_empty(), "{versions:?}");
    assert_eq!(
        cloud.s3.list_multipart_uploads().bucket(bucket).send().await.unwrap().uploads(),
        []
    );
    assert_eq!(cloud.counts().await, before);
}
