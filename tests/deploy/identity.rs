//! How a pod gets its role: by IRSA from an STS, by EKS Pod Identity from an agent, both scripted;
//! only their credentials give access to the queue and the bucket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::process::Command;

use super::stack::Stack;
use crate::support::cloud::{ExitedRun, Leasehold, eventually};
use crate::support::http::Http;

const ROLE: &str = "arn:aws:iam::123456789012:role/leasehold-worker";

const EXPIRES: &str = "2099-01-01T00:00:00Z";

/// The recorded requests.
type Requests = Arc<Mutex<Vec<String>>>;

async fn run(stack: &Stack, prepare: impl FnOnce(&mut Command)) -> ExitedRun {
    stack.cloud.put("in/k", b"x").await;
    eventually("S3 has sent its events", async || {
        (stack.cloud.counts().await == (2, 0)).then_some(())
    })
    .await;
    // More than one, because of S3's test event.
    let flags = "--max-messages 3 --wait 1s --receive-give-up 2s";
    let mut command = stack.cloud.command(&[], flags, r#"cat "$JOB_INPUT" > seen"#);
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let token = stack.cloud.dir.path().join("token");
    std::fs::write(&token, "the pod's token").unwrap();
    prepare(&mut command);
    stack.with_iam(Leasehold::start(command).wait()).await
}

fn assert_processed(stack: &Stack, exited: &ExitedRun) {
    assert_eq!(exited.code(), 0, "{}{}", exited.stdout, exited.stderr);
    assert_eq!(
        exited.log.iter().filter(|record| record["outcome"] == "succeeded").count(),
        1,
        "{}",
        exited.stdout
    );
    assert!(stack.cloud.dir.path().join("seen").exists());
}

fn sts(
    credentials: &BTreeMap<String, String>,
    requests: &Requests,
) -> impl Fn(&str) -> (u16, String) + use<> {
    let answer = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{}</AccessKeyId>\
         <SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken><Expiration>{EXPIRES}</Expiration>\
         </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        credentials["AWS_ACCESS_KEY_ID"],
        credentials["AWS_SECRET_ACCESS_KEY"],
        credentials["AWS_SESSION_TOKEN"]
    );
    recording_answer(requests, answer)
}

/// Answers with `answer`, and records the requests.
fn recording_answer(requests: &Requests, answer: String) -> impl Fn(&str) -> (u16, String) + use<> {
    let recording = requests.clone();
    move |request| {
        recording.lock().unwrap().push(request.to_owned());
        (200, answer.clone())
    }
}

#[tokio::test]
async fn irsa_exchanges_the_token_of_the_pod() {
    let stack = Stack::deploy(&["OidcProvider=oidc.eks.us-east-1.amazonaws.com/id/ABC"]).await;
    let trust = &stack.worker.trust["Statement"][1]["Condition"]["StringEquals"];
    let subject = "system:serviceaccount:leasehold:leasehold";
    assert_eq!(
        trust["oidc.eks.us-east-1.amazonaws.com/id/ABC:sub"], subject,
        "the ServiceAccount of the manifests"
    );

    let requests = Requests::default();
    let sts = Http::start(sts(&stack.worker.credentials, &requests)).await;
    let exited = run(&stack, |command| {
        // As set by the webhook of EKS.
        command.env("AWS_ROLE_ARN", ROLE).env("AWS_STS_REGIONAL_ENDPOINTS", "regional");
        command.env("AWS_WEB_IDENTITY_TOKEN_FILE", stack.cloud.dir.path().join("token"));
        command.env("AWS_ENDPOINT_URL_STS", &sts.endpoint);
    })
    .await;
    assert_processed(&stack, &exited);
    let requests = requests.lock().unwrap();
    assert!(
        requests[0].contains("WebIdentityToken=the+pod%27s+token")
            || requests[0].contains("WebIdentityToken=the%20pod%27s%20token"),
        "{}",
        requests[0]
    );
    assert_eq!(requests.len(), 1, "SQS and S3 share one set of credentials");
}

#[tokio::test]
async fn a_refusal_of_sts_ends_the_run_with_its_message() {
    let stack = Stack::deploy(&[]).await;
    let refusal = "<ErrorResponse><Error><Code>ExpiredTokenException</Code><Message>Token expired</Message></Error></ErrorResponse>";
    let sts = Http::start(|_| (400, refusal.to_owned())).await;
    let exited = run(&stack, |command| {
        command.env("AWS_ROLE_ARN", ROLE).env("AWS_ENDPOINT_URL_STS", &sts.endpoint);
        command.env("AWS_WEB_IDENTITY_TOKEN_FILE", stack.cloud.dir.path().join("token"));
    })
    .await;
    assert_eq!(exited.code(), 69, "{}{}", exited.stdout, exited.stderr);
    assert!(exited.stdout.contains("ExpiredTokenException"), "{}", exited.stdout);
    let (visible, in_flight) = stack.cloud.counts().await;
    assert!(visible > 0 && in_flight == 0, "a message was received");
}

#[tokio::test]
async fn pod_identity_exchanges_the_token_of_the_pod() {
    let stack = Stack::deploy(&[]).await;
    assert_eq!(
        stack.worker.trust["Statement"][0]["Principal"],
        json!({ "Service": "pods.eks.amazonaws.com" })
    );
    assert_eq!(stack.worker.trust["Statement"].as_array().unwrap().len(), 1);

    let answer = json!({
        "AccessKeyId": stack.worker.credentials["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": stack.worker.credentials["AWS_SECRET_ACCESS_KEY"],
        "Token": stack.worker.credentials["AWS_SESSION_TOKEN"],
        "AccountId": "123456789012",
        "Expiration": EXPIRES,
    });
    let requests = Requests::default();
    let agent = Http::start(recording_answer(&requests, answer.to_string())).await;
    let exited = run(&stack, |command| {
        // As set by EKS, except for the address of the agent.
        command.env(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            format!("{}/v1/credentials", agent.endpoint),
        );
        command.env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", stack.cloud.dir.path().join("token"));
    })
    .await;
    assert_processed(&stack, &exited);
    let requests = requests.lock().unwrap();
    assert!(requests[0].starts_with("GET /v1/credentials HTTP/1.1"), "{}", requests[0]);
    assert!(
        requests[0].to_lowercase().contains("authorization: the pod's token"),
        "{}",
        requests[0]
    );
}
