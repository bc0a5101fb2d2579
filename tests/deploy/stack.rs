//! The resources of the CloudFormation template on moto, whose IAM can enforce the permissions of a
//! role.

use std::collections::BTreeMap;
use std::path::Path;

use aws_sdk_sqs::config::Credentials;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::aws;
use crate::support::cloud::{Cloud, ExitedRun, Leasehold, eventually};
use crate::support::servers::{Moto, installed};

pub struct Stack {
    pub cloud: Cloud,
    pub worker: Role,
    pub keda: Role,
    moto: Moto,
}

/// A role, as printed by stack.py.
#[derive(Deserialize)]
pub struct Role {
    pub name: String,
    /// The name of its only policy.
    policy: String,
    pub document: Value,
    pub trust: Value,
    pub credentials: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Deployed {
    outputs: BTreeMap<String, String>,
    worker: Role,
    keda: Role,
}

impl Stack {
    pub async fn deploy(parameters: &[&str]) -> Self {
        let moto = Moto::start().await;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/stack.py");
        let deployed = installed("moto", "python")
            .arg(script)
            .arg(moto.endpoint())
            .args(parameters)
            .output()
            .unwrap();
        assert!(deployed.status.success(), "{}", String::from_utf8_lossy(&deployed.stderr));
        let Deployed { mut outputs, worker, keda } =
            serde_json::from_slice(&deployed.stdout).unwrap();
        // For an existing queue the template creates no dead-letter queue.
        let dead_letter_queue_url = outputs.remove("DeadLetterQueueUrl").unwrap_or_default();
        let mut output = |name: &str| outputs.remove(name).unwrap();
        let config = aws::config(&moto.endpoint());
        let s3 = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
        let cloud = Cloud {
            endpoint: moto.endpoint(),
            sqs: aws_sdk_sqs::Client::new(&config),
            s3: aws_sdk_s3::Client::from_conf(s3),
            bucket: output("BucketName"),
            queue_url: output("QueueUrl"),
            dead_letter_queue_url,
            dir: tempfile::tempdir().unwrap(),
        };
        // EventBridge sends no test event.
        let by_eventbridge = |parameter: &&str| {
            *parameter == "Fifo=true" || parameter.starts_with("ExistingBucket=")
        };
        if !parameters.iter().any(by_eventbridge) {
            eventually("S3 sends its test event", async || {
                (cloud.counts().await == (1, 0)).then_some(())
            })
            .await;
        }
        Self { cloud, worker, keda, moto }
    }

    /// Runs `action` while IAM checks every request; before and after, IAM is off.
    pub async fn with_iam<T>(&self, action: impl Future<Output = T>) -> T {
        self.post("/moto-api/reset-auth", "", "0").await;
        let result = action.await;
        self.post("/moto-api/reset-auth", "", "inf").await;
        result
    }

    /// Runs leasehold with the role of the pods, while IAM checks every request.
    pub async fn run_as_worker(&self, flags: &str, script: &str) -> ExitedRun {
        let mut command = self.cloud.command(&[], flags, script);
        command.envs(&self.worker.credentials);
        self.with_iam(Leasehold::start(command).wait()).await
    }

    /// Replaces the policy of a role.
    pub async fn set_policy(&self, role: &Role, document: &Value) {
        let text = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let body = format!(
            "Action=PutRolePolicy&Version=2010-05-08&RoleName={}&PolicyName={}&PolicyDocument={}",
            text(&role.name),
            text(&role.policy),
            text(&document.to_string())
        );
        self.post("/", "iam", &body).await;
    }

    pub fn sqs_as(&self, role: &Role) -> aws_sdk_sqs::Client {
        let of = |name: &str| role.credentials[name].clone();
        let (id, secret, token) =
            (of("AWS_ACCESS_KEY_ID"), of("AWS_SECRET_ACCESS_KEY"), of("AWS_SESSION_TOKEN"));
        let credentials = Credentials::new(id, secret, Some(token), None, "test");
        aws_sdk_sqs::Client::new(&aws::config_as(&self.cloud.endpoint, credentials))
    }

    /// Sends a request to moto itself, or to the service that the signature names.
    async fn post(&self, path: &str, service: &str, body: &str) {
        let mut connection =
            TcpStream::connect(self.moto.endpoint().trim_start_matches("http://")).await.unwrap();
        let form =
            if service.is_empty() { "text/plain" } else { "application/x-www-form-urlencoded" };
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {form}\r\nContent-Length: {}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/{service}/aws4_request\r\n\r\n{body}",
            body.len()
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// The actions that a policy allows, each with the name of its statement.
pub fn actions(document: &Value) -> Vec<(String, String)> {
    let statements = document["Statement"].as_array().unwrap().iter();
    let of = |statement: &Value| -> Vec<(String, String)> {
        let sid = statement["Sid"].as_str().unwrap();
        listed(&statement["Action"]).into_iter().map(|action| (sid.to_owned(), action)).collect()
    };
    statements.flat_map(of).collect()
}

/// The policy without one action of one statement.
pub fn without(document: &Value, sid: &str, action: &str) -> Value {
    let mut document = document.clone();
    let statements = document["Statement"].as_array_mut().unwrap();
    for statement in statements.iter_mut().filter(|statement| statement["Sid"] == sid) {
        let mut remaining: Vec<_> =
            listed(&statement["Action"]).into_iter().filter(|one| one != action).collect();
        if remaining.is_empty() {
            // IAM requires an action; this one has no effect here.
            remaining.push("sqs:ListQueues".to_owned());
        }
        statement["Action"] = remaining.into();
    }
    document
}

/// IAM accepts a single action instead of a list.
fn listed(actions: &Value) -> Vec<String> {
    let one = |action: &Value| action.as_str().unwrap().to_owned();
    actions
        .as_array()
        .map_or_else(|| vec![one(actions)], |actions| actions.iter().map(one).collect())
}
