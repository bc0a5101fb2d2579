//! The CloudFormation template: it is valid, creates the needed resources in moto, and its roles
//! have exactly the needed permissions.

use std::collections::BTreeSet;
use std::path::Path;

use aws_sdk_s3::types::{EventBridgeConfiguration, NotificationConfiguration};
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Value, json};

use super::stack::{Stack, actions, without};
use crate::support::cloud::{Cloud, Leasehold, eventually};
use crate::support::http::Http;
use crate::support::servers::installed;

#[test]
fn the_linter_finds_nothing() {
    let template =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/cloudformation/leasehold.yaml");
    let linted = installed("moto", "cfn-lint").arg(template).output().unwrap();
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
}

#[tokio::test]
async fn an_object_in_the_bucket_of_the_template_is_processed() {
    let stack = Stack::deploy(&["MaxReceiveCount=7"]).await;
    let cloud = &stack.cloud;
    cloud.put("elsewhere/not work", b"x").await;
    cloud.put("in/Zürich.csv", b"a,b\n").await;
    eventually("S3 has sent its events", async || (cloud.counts().await == (2, 0)).then_some(()))
        .await;
    let exited =
        stack.run_as_worker("--max-messages 9 --wait 1s", r#"cat "$JOB_INPUT" > seen"#).await;
    assert_eq!(
        (exited.code(), cloud.counts().await),
        (0, (0, 0)),
        "{}{}",
        exited.stdout,
        exited.stderr
    );
    assert_eq!(std::fs::read(cloud.dir.path().join("seen")).unwrap(), b"a,b\n");
    let mut outcomes: Vec<_> =
        exited.log.iter().filter_map(|record| record["outcome"].as_str()).collect();
    outcomes.dedup();
    assert_eq!(
        outcomes,
        ["test_event", "succeeded"],
        "S3's test event comes first, and no event from other prefixes"
    );

    let asked = cloud
        .sqs
        .get_queue_attributes()
        .queue_url(&cloud.queue_url)
        .attribute_names(QueueAttributeName::All);
    let queue = asked.send().await.unwrap().attributes.unwrap();
    let redrive: Value = serde_json::from_str(&queue[&QueueAttributeName::RedrivePolicy]).unwrap();
    assert_eq!(redrive["maxReceiveCount"].to_string().trim_matches('"'), "7");
    assert_eq!(queue[&QueueAttributeName::ReceiveMessageWaitTimeSeconds], "20");
    let asked = cloud.sqs.get_queue_attributes().queue_url(&cloud.dead_letter_queue_url);
    let dead_letters =
        asked.attribute_names(QueueAttributeName::All).send().await.unwrap().attributes.unwrap();
    let retention = |queue: &std::collections::HashMap<QueueAttributeName, String>| -> u32 {
        queue[&QueueAttributeName::MessageRetentionPeriod].parse().unwrap()
    };
    assert!(
        retention(&dead_letters) > retention(&queue),
        "the age of a dead letter counts from its first send"
    );
}

/// A FIFO queue, or an existing bucket: EventBridge sends events with the prefix and the suffix.
#[tokio::test]
async fn eventbridge_sends_to_a_fifo_queue_and_for_an_existing_bucket() {
    for parameters in
        [&["Fifo=true", "Suffix=.csv"][..], &["ExistingBucket=incoming", "Suffix=.csv"]]
    {
        let stack = Stack::deploy(parameters).await;
        let cloud = &stack.cloud;
        if cloud.bucket == "incoming" {
            // The parameter's description requires this.
            let on = EventBridgeConfiguration::builder().build();
            let on = NotificationConfiguration::builder().event_bridge_configuration(on).build();
            let put = cloud.s3.put_bucket_notification_configuration().bucket(&cloud.bucket);
            put.notification_configuration(on).send().await.unwrap();
        }
        assert_eq!(cloud.queue_url.contains("leasehold.fifo"), parameters[0] == "Fifo=true");
        for key in ["elsewhere/a.csv", "in/a.txt", "in/a.csv"] {
            cloud.put(key, b"x").await;
        }
        eventually("EventBridge sends", async || (cloud.counts().await.0 == 1).then_some(())).await;
        let exited = stack.run_as_worker("--max-messages 2 --wait 1s", "true").await;
        assert_eq!(
            (exited.code(), cloud.counts().await),
            (0, (0, 0)),
            "{parameters:?}: {}{}",
            exited.stdout,
            exited.stderr
        );
        assert_eq!(exited.record("message deleted")["key"], "in/a.csv");
    }
}

/// An existing queue is not changed: the stack creates the roles, and a bucket if there is none.
#[tokio::test]
async fn an_existing_queue_is_used_and_not_changed() {
    const QUEUE: &str = "ExistingQueueArn=arn:aws:sqs:us-east-1:123456789012:orders";
    for parameters in [&[QUEUE][..], &[QUEUE, "ExistingBucket=incoming"]] {
        let stack = Stack::deploy(parameters).await;
        let cloud = &stack.cloud;
        assert!(cloud.queue_url.ends_with("/123456789012/orders"), "{}", cloud.queue_url);
        assert_eq!(cloud.dead_letter_queue_url, "");
        let asked = cloud.sqs.get_queue_attributes().queue_url(&cloud.queue_url);
        let queue = asked
            .attribute_names(QueueAttributeName::All)
            .send()
            .await
            .unwrap()
            .attributes
            .unwrap();
        assert!(!queue.contains_key(&QueueAttributeName::RedrivePolicy), "{queue:?}");

        drain(cloud).await;
        if parameters.len() == 1 {
            put_work(cloud, 1).await;
        } else {
            cloud.put("in/k", b"x").await;
            cloud.send(created(&cloud.bucket, &json!({ "key": "in/k" }))).await;
        }
        let exited = stack.run_as_worker("--wait 1s", "true").await;
        assert_eq!(
            (exited.code(), cloud.counts().await),
            (0, (0, 0)),
            "{parameters:?}: {}{}",
            exited.stdout,
            exited.stderr
        );
        let attributes =
            stack.sqs_as(&stack.keda).get_queue_attributes().queue_url(&cloud.queue_url);
        assert!(stack.with_iam(attributes.send()).await.is_ok(), "KEDA reads its length");
    }
}

/// The features of leasehold that use AWS.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Feature {
    Work,
    Versions,
    Retries,
    MissingObjects,
    Attempts,
    Output,
    Idempotency,
    Checkpoints,
}

/// This frees storage before a lifecycle rule does; it is not required.
const CLEANUP: [(&str, &str); 2] =
    [("Output", "s3:AbortMultipartUpload"), ("Checkpoints", "s3:AbortMultipartUpload")];

impl Feature {
    const ALL: [Self; 8] = [
        Self::Work,
        Self::Versions,
        Self::Retries,
        Self::MissingObjects,
        Self::Attempts,
        Self::Output,
        Self::Idempotency,
        Self::Checkpoints,
    ];

    /// The required actions, with the statement that allows them.
    fn needs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Work => &[
                ("Messages", "sqs:ReceiveMessage"),
                ("Messages", "sqs:DeleteMessage"),
                ("Messages", "sqs:GetQueueAttributes"),
                ("Objects", "s3:GetObject"),
            ],
            Self::Versions => &[("Objects", "s3:GetObjectVersion")],
            Self::Retries => &[("Messages", "sqs:ChangeMessageVisibility")],
            Self::MissingObjects => &[("MissingObjects", "s3:ListBucket")],
            Self::Attempts => &[
                ("Attempts", "s3:GetObject"),
                ("Attempts", "s3:PutObject"),
                ("Attempts", "s3:DeleteObject"),
            ],
            Self::Output => &[("Output", "s3:PutObject")],
            Self::Idempotency => {
                &[("Idempotency", "s3:GetObject"), ("Idempotency", "s3:PutObject")]
            }
            Self::Checkpoints => &[
                ("Checkpoints", "s3:GetObject"),
                ("Checkpoints", "s3:PutObject"),
                ("Checkpoints", "s3:DeleteObject"),
            ],
        }
    }

    /// Whether the feature works; `forbidden` is the removed action.
    async fn works(self, stack: &Stack, forbidden: Option<(&str, &str)>) -> Result<(), String> {
        let cloud = &stack.cloud;
        drain(cloud).await;
        let flags =
            "--receive-give-up 1s --retry-min 1s --retry-max 1s --wait 1s --visibility-timeout 12s";
        let check = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        match self {
            Self::Work => {
                put_work(cloud, 1).await;
                let exited = stack.run_as_worker(flags, "true").await;
                check(exited.code() == 0 && cloud.counts().await == (0, 0), &exited.stdout)?;
                check(exited.record("message deleted")["max_receive_count"] == 5, &exited.stdout)
            }
            Self::Versions => {
                let put = cloud
                    .s3
                    .put_object()
                    .bucket(&cloud.bucket)
                    .key("in/k")
                    .body(b"first".to_vec().into());
                let version = put.send().await.unwrap().version_id.unwrap();
                put_work(cloud, 2).await;
                drain(cloud).await;
                cloud
                    .send(created(&cloud.bucket, &json!({ "key": "in/k", "versionId": version })))
                    .await;
                let exited = stack.run_as_worker(flags, r#"cp "$JOB_INPUT" version"#).await;
                let got = std::fs::read(cloud.dir.path().join("version")).unwrap_or_default();
                check(exited.code() == 0 && got == b"first", &exited.stdout)
            }
            Self::Retries => {
                put_work(cloud, 1).await;
                let exited = stack.run_as_worker(flags, "exit 3").await;
                let next = exited.record("message kept")["next"].as_str().unwrap_or_default();
                // "by" or "when" would mean that the message was not released.
                let released = ["visible again by", "visible again when"]
                    .iter()
                    .all(|words| !next.contains(words));
                check(exited.code() == 1 && released, &exited.stdout)
            }
            Self::MissingObjects => {
                // Moto always answers 404 for a missing object; S3 answers 403 to a caller that may
                // not list.
                let may_list = forbidden != Some(("MissingObjects", "s3:ListBucket"));
                let (status, code) =
                    if may_list { (404, "NoSuchKey") } else { (403, "AccessDenied") };
                let s3 =
                    Http::start(move |_| (status, format!("<Error><Code>{code}</Code></Error>")))
                        .await;
                cloud.send(created(&cloud.bucket, &json!({ "key": "in/gone" }))).await;
                let mut command =
                    cloud.command(&[], &format!("{flags} --missing-object ignore"), "true");
                command.envs(&stack.worker.credentials).env("AWS_ENDPOINT_URL_S3", &s3.endpoint);
                let exited = stack.with_iam(Leasehold::start(command).wait()).await;
                check(exited.code() == 0 && exited.stdout.contains("objects_gone"), &exited.stdout)
            }
            Self::Attempts => {
                put_work(cloud, 1).await;
                let flags = format!("{flags} --attempts s3://{}/attempts", cloud.bucket);
                let exited = stack.run_as_worker(&flags, "exit 3").await;
                let kept = exited.record("message kept");
                let folder = format!("attempts/{}/", kept["message_id"].as_str().unwrap());
                eventually("the message is visible", async || {
                    (cloud.counts().await.0 == 1).then_some(())
                })
                .await;
                // The second attempt reads the record of the first, and leaves none.
                let again = stack.run_as_worker(&flags, "sleep 2").await;
                check(!again.stdout.contains("the record of an earlier attempt"), &again.stdout)?;
                let listed = cloud.s3.list_objects_v2().bucket(&cloud.bucket).prefix(&folder);
                let listed = listed.send().await.unwrap();
                let keys: Vec<_> = listed.contents().iter().filter_map(|it| it.key()).collect();
                check(keys == [format!("{folder}1.json")], &format!("{keys:?}{}", exited.stdout))
            }
            Self::Output => {
                put_work(cloud, 1).await;
                let flags = format!("{flags} --output s3://{}/out", cloud.bucket);
                let exited =
                    stack.run_as_worker(&flags, r#"echo x > "$JOB_OUTPUT_DIR/result""#).await;
                check(exited.code() == 0, &exited.stdout)?;
                let get =
                    cloud.s3.get_object().bucket(&cloud.bucket).key("out/result").send().await;
                check(get.is_ok(), &exited.stdout)
            }
            Self::Idempotency => {
                let put = cloud
                    .s3
                    .put_object()
                    .bucket(&cloud.bucket)
                    .key("in/k")
                    .body(b"x".to_vec().into());
                let version = put.send().await.unwrap().version_id.unwrap();
                eventually("S3 has sent its events", async || {
                    (cloud.counts().await.0 > 0).then_some(())
                })
                .await;
                drain(cloud).await;
                let flags = format!("{flags} --idempotency s3://{}/done", cloud.bucket);
                for outcome in ["succeeded", "already_done"] {
                    cloud
                        .send(created(
                            &cloud.bucket,
                            &json!({ "key": "in/k", "versionId": version, "sequencer": "1" }),
                        ))
                        .await;
                    let exited = stack.run_as_worker(&flags, "true").await;
                    let ended =
                        exited.log.iter().find(|record| record["message"] == "message deleted");
                    check(
                        exited.code() == 0
                            && ended.is_some_and(|ended| ended["outcome"] == outcome),
                        &exited.stdout,
                    )?;
                }
                Ok(())
            }
            Self::Checkpoints => {
                put_work(cloud, 1).await;
                let flags = format!("{flags} --checkpoint s3://{}/checkpoints", cloud.bucket);
                let script = r#"cat "$JOB_CHECKPOINT_DIR/half" && exit 0; echo half > "$JOB_CHECKPOINT_DIR/half"; exit 3"#;
                let kept = stack.run_as_worker(&flags, script).await;
                check(kept.code() == 1, &kept.stdout)?;
                eventually("the message is visible", async || {
                    (cloud.counts().await.0 == 1).then_some(())
                })
                .await;
                let exited = stack.run_as_worker(&flags, script).await;
                check(exited.code() == 0, &exited.stdout)?;
                let listed = cloud
                    .s3
                    .list_objects_v2()
                    .bucket(&cloud.bucket)
                    .prefix("checkpoints/")
                    .send()
                    .await;
                check(listed.unwrap().key_count == Some(0), "the checkpoint is not deleted")
            }
        }
    }
}

/// Puts an object, and waits for this many messages, since S3 is slow to notify. There can be more,
/// if the put was retried.
async fn put_work(cloud: &Cloud, messages: u32) {
    cloud.put("in/k", b"x").await;
    eventually("S3 has sent its events", async || {
        let visible = cloud.counts().await.0;
        if visible > messages {
            delete_messages(cloud, 1).await;
        }
        (visible == messages).then_some(())
    })
    .await;
}

/// Deletes all messages, including hidden ones. (A purge is allowed only once a minute.)
async fn drain(cloud: &Cloud) {
    eventually("the queue is empty", async || {
        delete_messages(cloud, 10).await;
        (cloud.counts().await == (0, 0)).then_some(())
    })
    .await;
}

async fn delete_messages(cloud: &Cloud, at_most: i32) {
    let asked = cloud.sqs.receive_message().queue_url(&cloud.queue_url).wait_time_seconds(0);
    for message in
        asked.max_number_of_messages(at_most).send().await.unwrap().messages.unwrap_or_default()
    {
        let delete = cloud.sqs.delete_message().queue_url(&cloud.queue_url);
        delete.receipt_handle(message.receipt_handle.unwrap()).send().await.unwrap();
    }
}

fn created(bucket: &str, object: &Value) -> String {
    let entry = json!({
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": bucket }, "object": object },
    });
    json!({ "Records": [entry] }).to_string()
}

#[tokio::test]
async fn the_role_of_the_pods_has_exactly_the_needed_permissions() {
    let stack = Stack::deploy(&["IdempotencyPrefix=done/", "CheckpointPrefix=checkpoints/"]).await;
    let document = &stack.worker.document;
    let allowed: BTreeSet<_> = actions(document).into_iter().collect();
    let needed = Feature::ALL.iter().flat_map(|feature| feature.needs()).chain(&CLEANUP);
    let needed: BTreeSet<_> =
        needed.map(|(sid, action)| ((*sid).to_owned(), (*action).to_owned())).collect();
    assert_eq!(allowed, needed);

    for feature in Feature::ALL {
        let works = feature.works(&stack, None).await;
        assert!(works.is_ok(), "{feature:?} does not work: {works:?}");
        for (sid, action) in feature.needs() {
            stack.set_policy(&stack.worker, &without(document, sid, action)).await;
            let works = feature.works(&stack, Some((sid, action))).await;
            assert!(works.is_err(), "{feature:?} works without {action} of {sid}");
        }
        stack.set_policy(&stack.worker, document).await;
    }
}

/// No other cluster, in this or another account, may assume the roles: the service names the
/// cluster that it acts for.
#[tokio::test]
async fn the_roles_trust_one_cluster_and_one_service_account() {
    let source = |cluster: &str| {
        json!({
            "StringEquals": { "aws:SourceAccount": "123456789012" },
            "ArnLike": { "aws:SourceArn": format!("arn:aws:eks:us-east-1:123456789012:cluster/{cluster}") },
        })
    };
    let oidc = "OidcProvider=oidc.eks.us-east-1.amazonaws.com/id/ABC";
    for (parameters, cluster) in [
        (&["ClusterName=prod"][..], "prod"),
        (&[], "*"),
        (&["ClusterName=prod", oidc], "prod"),
        (&[oidc], "*"),
    ] {
        let stack = Stack::deploy(parameters).await;
        for (role, subject) in
            [(&stack.worker, "leasehold:leasehold"), (&stack.keda, "keda:keda-operator")]
        {
            let statements = role.trust["Statement"].as_array().unwrap();
            assert_eq!(statements[0]["Condition"], source(cluster), "{parameters:?}");
            let web_identity = json!({ "StringEquals": {
                "oidc.eks.us-east-1.amazonaws.com/id/ABC:aud": "sts.amazonaws.com",
                "oidc.eks.us-east-1.amazonaws.com/id/ABC:sub": format!("system:serviceaccount:{subject}"),
            } });
            let others: Vec<_> =
                statements[1..].iter().map(|statement| &statement["Condition"]).collect();
            assert_eq!(
                others,
                if parameters.contains(&oidc) { vec![&web_identity] } else { vec![] },
                "{parameters:?}"
            );
        }
    }
}

/// A parameter must not change the meaning of a policy, and plain HTTP is denied.
#[test]
fn parameters_are_bounded_and_the_policies_demand_tls() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = folder.join("tests/deploy/template.py");
    let template = folder.join("deploy/cloudformation/leasehold.yaml");
    let checked = installed("moto", "python").arg(script).arg(template).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[tokio::test]
async fn the_role_of_keda_may_only_read_the_queue_length() {
    let stack = Stack::deploy(&[]).await;
    let sqs = stack.sqs_as(&stack.keda);
    let url = &stack.cloud.queue_url;
    let length = async || {
        let asked = sqs.get_queue_attributes().queue_url(url);
        let asked = asked.attribute_names(QueueAttributeName::ApproximateNumberOfMessages);
        stack.with_iam(asked.send()).await.is_ok()
    };
    assert!(length().await);
    assert!(stack.with_iam(sqs.receive_message().queue_url(url).send()).await.is_err());
    assert!(stack.with_iam(sqs.purge_queue().queue_url(url).send()).await.is_err());
    let dead_letters = sqs.get_queue_attributes().queue_url(&stack.cloud.dead_letter_queue_url);
    assert!(stack.with_iam(dead_letters.send()).await.is_err(), "another queue");
    assert_eq!(
        actions(&stack.keda.document),
        [("Length".to_owned(), "sqs:GetQueueAttributes".to_owned())]
    );
    stack
        .set_policy(&stack.keda, &without(&stack.keda.document, "Length", "sqs:GetQueueAttributes"))
        .await;
    assert!(!length().await);
}
