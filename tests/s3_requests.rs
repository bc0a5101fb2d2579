//! The headers of S3 requests, as a proxy between leasehold and the server records them.

use std::collections::BTreeSet;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::aws;
use crate::support::cloud::{Cloud, Leasehold};
use crate::support::http::Http;
use crate::support::https::HttpsProxy;
use crate::support::recorder::Recorder;
use crate::support::servers::{Ministack, Moto};

/// All requests to S3 of a run that uploads results, one of them in parts, and writes a record; and
/// of a run that fails, saves a checkpoint and writes an attempt.
async fn recorded(flags: &str) -> (Vec<String>, aws_sdk_s3::Client, String) {
    let cloud = Cloud::new(5).await;
    let config = aws::config(&Moto::shared().await.endpoint());
    let moto = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
    let moto = aws_sdk_s3::Client::from_conf(moto);
    let bucket = &cloud.bucket;
    moto.create_bucket().bucket(bucket).send().await.unwrap();
    moto.put_object().bucket(bucket).key("k").body(b"x".to_vec().into()).send().await.unwrap();
    let recorder = Recorder::start(&Moto::shared().await.endpoint()).await;
    let flags = format!(
        "--output s3://{bucket}/out --idempotency s3://{bucket}/records --attempts s3://{bucket}/attempts \
         --checkpoint s3://{bucket}/state --retry-min 1s --retry-max 1s {flags}"
    );
    let script = r#"echo x > "$JOB_CHECKPOINT_DIR/state"; test "$JOB_RECEIVE_COUNT" = 2 || exit 1
        cd "$JOB_OUTPUT_DIR"; echo y > small; head -c 34000000 /dev/zero > large"#;
    cloud.put("k", b"x").await;
    for code in [1, 0] {
        let mut command = cloud.command(&[], &flags, script);
        command.env("AWS_ENDPOINT_URL_S3", &recorder.endpoint);
        Leasehold::start(command).expect_exit(code).await;
    }
    (recorder.requests(), moto, cloud.bucket)
}

/// Those whose first line has all these parts.
fn about<'a>(requests: &'a [String], parts: &[&str]) -> Vec<&'a String> {
    let line = |request: &&String| {
        let line = request.lines().next().unwrap();
        parts.iter().all(|part| line.contains(part))
    };
    let found: Vec<_> = requests.iter().filter(line).collect();
    assert!(!found.is_empty(), "no {parts:?} in {requests:#?}");
    found
}

fn assert_all_kinds(requests: &[String]) {
    for parts in [
        &["get /", "/k?"][..],
        &["put /", "/out/small"],
        &["post /", "/out/large?uploads"],
        &["put /", "/out/large?", "partnumber=1"],
        &["post /", "/out/large?", "uploadid="],
        &["put /", "/records/"],
        &["get /", "/records/"],
        &["put /", "/attempts/"],
        &["get /", "/attempts/"],
        &["delete /", "/attempts/"],
        &["put /", "/state/"],
        &["get /", "list-type=2"],
        &["delete /", "/state/"],
    ] {
        about(requests, parts);
    }
}

#[tokio::test]
async fn every_request_accepts_its_costs_if_the_requester_pays() {
    let (requests, ..) = recorded("--request-payer").await;
    assert_all_kinds(&requests);
    for request in requests {
        assert!(request.contains("x-amz-request-payer: requester"), "{request}");
    }
}

#[tokio::test]
async fn no_request_has_headers_that_no_setting_asks_for() {
    let (requests, ..) = recorded("").await;
    assert_all_kinds(&requests);
    for request in requests {
        for header in ["x-amz-request-payer", "x-amz-server-side-encryption", "x-amz-tagging"] {
            assert!(!request.contains(header), "{request}");
        }
        for header in ["x-amz-acl", "x-amz-storage-class"] {
            assert!(!request.contains(header), "{request}");
        }
    }
}

#[tokio::test]
async fn results_have_their_attributes_and_everything_is_encrypted() {
    let key = "arn:aws:kms:us-east-1:123456789012:key/0123abcd";
    let flags = format!(
        "--output-sse aws:kms --output-sse-kms-key {key} --output-storage-class STANDARD_IA \
         --output-tags team=orders,cost-center=a/b --output-acl bucket-owner-full-control"
    );
    let (requests, moto, bucket) = recorded(&flags).await;
    assert_all_kinds(&requests);
    let encryption = [
        "x-amz-server-side-encryption: aws:kms".to_owned(),
        format!("x-amz-server-side-encryption-aws-kms-key-id: {key}"),
    ];
    let attributes = [
        "x-amz-storage-class: standard_ia".to_owned(),
        "x-amz-tagging: team=orders&cost-center=a%2fb".to_owned(),
        "x-amz-acl: bucket-owner-full-control".to_owned(),
    ];
    for request in &requests {
        let line = request.lines().next().unwrap();
        let is_part = line.contains("partnumber=");
        let creates = (line.starts_with("put ") && !is_part) || line.contains("?uploads");
        for header in &encryption {
            assert_eq!(request.contains(header), creates, "{header}: {request}");
        }
        for header in &attributes {
            let is_result = creates && line.contains("/out/");
            assert_eq!(request.contains(header), is_result, "{header}: {request}");
        }
    }
    for name in ["out/small", "out/large"] {
        let head = moto.head_object().bucket(&bucket).key(name).send().await.unwrap();
        assert_eq!(head.storage_class().unwrap().as_str(), "STANDARD_IA", "{name}");
        assert_eq!(head.server_side_encryption().unwrap().as_str(), "aws:kms", "{name}");
        let tags = moto.get_object_tagging().bucket(&bucket).key(name).send().await.unwrap();
        let mut tags: Vec<_> =
            tags.tag_set().iter().map(|tag| format!("{}={}", tag.key(), tag.value())).collect();
        tags.sort();
        assert_eq!(tags, ["cost-center=a/b", "team=orders"], "{name}");
    }
}

#[tokio::test]
async fn a_job_type_has_its_own_attributes_of_results() {
    let cloud = Cloud::new(5).await;
    let results = format!("{}-results", cloud.bucket);
    cloud.s3.create_bucket().bucket(&results).send().await.unwrap();
    let types = format!(
        "job-types:\n  - name: archived\n    match: {{ key: 'old/**' }}\n    output: s3://{results}/archive\n    \
         output-storage-class: GLACIER_IR\n    output-tags: kept=long\n  - name: plain\n    match: {{ key: 'new/**' }}\n    \
         output: s3://{results}/out\n"
    );
    std::fs::write(cloud.dir.path().join("types.yaml"), types).unwrap();
    let recorder = Recorder::start(&cloud.endpoint).await;
    for key in ["old/a", "new/b"] {
        cloud.put(key, b"x").await;
        let flags = "--job-types types.yaml --output-tags kept=short --output s3://unused/x";
        let script = r#"echo y > "$JOB_OUTPUT_DIR/y""#;
        let mut command = cloud.command(&[], flags, script);
        command.env("AWS_ENDPOINT_URL_S3", &recorder.endpoint);
        Leasehold::start(command).expect_exit(0).await;
    }
    let requests = recorder.requests();
    let archived = about(&requests, &["put /", "/archive/y"])[0];
    assert!(archived.contains("x-amz-storage-class: glacier_ir"), "{archived}");
    assert!(archived.contains("x-amz-tagging: kept=long"), "{archived}");
    let plain = about(&requests, &["put /", "/out/y"])[0];
    assert!(!plain.contains("x-amz-storage-class"), "{plain}");
    assert!(plain.contains("x-amz-tagging: kept=short"), "{plain}");
}

#[tokio::test]
async fn attributes_that_cannot_work_are_refused_at_start() {
    let cloud = Cloud::new(5).await;
    for (flags, why) in [
        ("--output-tags a=b", "--output-tags has no effect without --output"),
        ("--output-acl private", "--output-acl has no effect without --output"),
        ("--output s3://b --output-tags a", "write for example team=orders"),
        ("--output s3://b --output-storage-class COLD", "possible values: STANDARD, STANDARD_IA"),
        ("--output s3://b --output-acl everyone", "bucket-owner-full-control"),
        ("--output-sse aes256", "possible values: AES256, aws:kms, aws:kms:dsse"),
        ("--output-sse-kms-key alias/a", "--output-sse <ALGORITHM>"),
        (
            "--output-sse AES256 --output-sse-kms-key alias/a",
            "--output-sse-kms-key has no effect with --output-sse AES256",
        ),
    ] {
        let exited = Leasehold::start(cloud.command(&[], flags, "true")).expect_exit(78).await;
        assert!(exited.stderr.contains(why), "{flags}: {}", exited.stderr);
    }
}

/// S3 checks the permissions for tags, ACLs and keys when an upload begins.
#[tokio::test]
async fn check_tries_the_headers_of_results_and_leaves_nothing() {
    let cloud = Cloud::new(5).await;
    let recorder = Recorder::start(&cloud.endpoint).await;
    let check = async |endpoint: &str| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_leasehold"));
        command.args(["check", "--format", "json", "--queue-url", &cloud.queue_url]);
        command.args(["--output", &format!("s3://{}/out", cloud.bucket)]);
        command.args(["--checkpoint", &format!("s3://{}/state", cloud.bucket)]);
        command.args(["--output-sse", "AES256", "--output-tags", "a=b", "--", "true"]);
        let run = cloud.command(&[], "", "");
        command.envs(run.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("AWS_ENDPOINT_URL_S3", endpoint);
        Leasehold::start(command).wait().await.stdout
    };
    let found = check(&recorder.endpoint).await;
    assert!(!found.contains("s3:PutObjectTagging"), "{found}");
    let requests = recorder.requests();
    let begun = about(&requests, &["post /", "?uploads"]);
    assert_eq!(begun.len(), 2, "{begun:#?}");
    for request in begun {
        assert!(request.contains("x-amz-server-side-encryption: aes256"), "{request}");
        let is_output = request.lines().next().unwrap().contains("/out/");
        assert_eq!(request.contains("x-amz-tagging: a=b"), is_output, "{request}");
    }
    let remaining = cloud.s3.list_multipart_uploads().bucket(&cloud.bucket).send().await.unwrap();
    assert!(remaining.uploads().is_empty(), "{remaining:?}");

    let denying = Http::start(|request| {
        let code = if request.lines().next().unwrap().contains("?uploads") {
            "AccessDenied"
        } else {
            "NoSuchKey"
        };
        let status = if code == "NoSuchKey" { 404 } else { 403 };
        (status, format!("<Error><Code>{code}</Code><Message>no</Message></Error>"))
    })
    .await;
    let found: serde_json::Value = serde_json::from_str(&check(&denying.endpoint).await).unwrap();
    let text = found.to_string();
    assert_eq!(text.matches("s3:PutObjectTagging for --output-tags").count(), 2, "{text}");
}

/// The actions that S3 demands for the headers of a request that creates an object, besides
/// s3:PutObject, as its documentation of PutObject and CreateMultipartUpload lists them.
fn actions_of_headers(request: &str) -> BTreeSet<&'static str> {
    let is_multipart = request.lines().next().unwrap().contains("?uploads");
    let key = "\nx-amz-server-side-encryption-aws-kms-key-id:";
    [
        ("\nx-amz-tagging:", "s3:PutObjectTagging", true),
        ("\nx-amz-acl:", "s3:PutObjectAcl", true),
        (key, "kms:GenerateDataKey", true),
        // S3 decrypts the parts to join them.
        (key, "kms:Decrypt", is_multipart),
    ]
    .into_iter()
    .filter(|(header, _, applies)| *applies && request.contains(header))
    .map(|(_, action, _)| action)
    .collect()
}

/// The servers here check only s3:PutObject for these requests. So the documented permissions are
/// compared with the headers that leasehold sends.
#[tokio::test]
async fn each_attribute_needs_exactly_the_documented_permissions() {
    let page = include_str!("../docs/results.md");
    let key = "arn:aws:kms:us-east-1:123456789012:key/0123abcd";
    for (flag, value) in [
        ("--output-sse", "aws:kms"),
        ("--output-sse-kms-key", key),
        ("--output-storage-class", "STANDARD_IA"),
        ("--output-tags", "team=orders"),
        ("--output-acl", "bucket-owner-full-control"),
    ] {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{flag}` |"))).unwrap();
        let documented: BTreeSet<_> = row
            .split('`')
            .filter(|word| word.starts_with("s3:") || word.starts_with("kms:"))
            .collect();
        let algorithm = if flag == "--output-sse-kms-key" { "--output-sse aws:kms" } else { "" };
        let (requests, ..) = recorded(&format!("{algorithm} {flag} {value}")).await;
        let needed: BTreeSet<_> =
            requests.iter().flat_map(|request| actions_of_headers(request)).collect();
        assert_eq!(needed, documented, "{flag}");
    }
}

#[tokio::test]
async fn results_that_a_permission_forbids_are_not_published_and_the_message_is_kept() {
    for (flag, action) in [
        ("--output-tags a=b", "s3:PutObjectTagging"),
        ("--output-acl private", "s3:PutObjectAcl"),
        ("--output-sse aws:kms --output-sse-kms-key alias/a", "kms:GenerateDataKey"),
    ] {
        let cloud = Cloud::new(5).await;
        cloud.put("k", b"x").await;
        let s3 = Http::start(move |request| {
            if actions_of_headers(&request.to_lowercase()).contains(action) {
                (403, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>".to_owned())
            } else {
                (200, String::new())
            }
        })
        .await;
        for (flag, code) in [(flag, 75), ("", 0)] {
            let flags = format!("--input none --output s3://results/out --retry-min 0s {flag}");
            let mut command = cloud.command(&[], &flags, r#"echo y > "$JOB_OUTPUT_DIR/y""#);
            command.env("AWS_ENDPOINT_URL_S3", &s3.endpoint);
            let exited = Leasehold::start(command).expect_exit(code).await;
            if code == 0 {
                exited.record("message deleted");
            } else {
                let kept = exited.record("message kept");
                assert_eq!(kept["outcome"], "publish_failed", "{kept}");
                assert!(kept["error"].as_str().unwrap().contains(action), "{kept}");
            }
        }
    }
}

/// Such a policy is common. A user of IAM must obey it, unlike the server's root user.
#[tokio::test]
async fn a_bucket_that_demands_encryption_accepts_everything_that_is_written() {
    let server = Ministack::strict().await;
    let cloud = Cloud::at(server.endpoint(), 5).await;
    let (id, secret) = user_of(&server.endpoint(), "worker", &["s3:*", "sqs:*"]).await;
    let bucket = format!("{}-encrypted", cloud.bucket);
    cloud.s3.create_bucket().bucket(&bucket).send().await.unwrap();
    let policy = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Deny", "Principal": "*", "Action": "s3:PutObject",
        "Resource": format!("arn:aws:s3:::{bucket}/*"),
        "Condition": { "StringNotEquals": { "s3:x-amz-server-side-encryption": "aws:kms" } },
    }] });
    cloud.s3.put_bucket_policy().bucket(&bucket).policy(policy.to_string()).send().await.unwrap();
    let places = format!(
        "--output s3://{bucket}/out --idempotency s3://{bucket}/records --attempts s3://{bucket}/attempts \
         --checkpoint s3://{bucket}/state --retry-min 1s --retry-max 1s"
    );
    let key = "arn:aws:kms:us-east-1:000000000000:key/0123abcd";
    let encrypted = format!("{places} --output-sse aws:kms --output-sse-kms-key {key}");
    let script = r#"echo x > "$JOB_CHECKPOINT_DIR/state"; echo y > "$JOB_OUTPUT_DIR/y"
        test "$JOB_RECEIVE_COUNT" = 3"#;
    cloud.put("k", b"x").await;
    // Without the headers not even the record of the work can be written.
    for (flags, code) in [(&places, 75), (&encrypted, 1), (&encrypted, 0)] {
        let mut command = cloud.command(&[], flags, script);
        command.env("AWS_ACCESS_KEY_ID", &id).env("AWS_SECRET_ACCESS_KEY", &secret);
        let exited = Leasehold::start(command).expect_exit(code).await;
        let denied = exited.stdout.contains("AccessDenied");
        assert_eq!(denied, code == 75, "{}", exited.stdout);
    }
    let listed = cloud.s3.list_objects_v2().bucket(&bucket).send().await.unwrap();
    let keys: Vec<_> = listed.contents().iter().filter_map(|object| object.key()).collect();
    for folder in ["attempts/", "out/", "records/"] {
        assert!(keys.iter().any(|key| key.starts_with(folder)), "{folder}: {keys:?}");
    }
}

/// A new user of IAM that may do these actions: its access key and secret.
async fn user_of(endpoint: &str, name: &str, actions: &[&str]) -> (String, String) {
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": actions, "Resource": "*" }
    ] });
    let policy = utf8_percent_encode(&policy.to_string(), NON_ALPHANUMERIC).to_string();
    let mut answer = String::new();
    for request in [
        format!("Action=CreateUser&UserName={name}"),
        format!("Action=PutUserPolicy&UserName={name}&PolicyName=p&PolicyDocument={policy}"),
        format!("Action=CreateAccessKey&UserName={name}"),
    ] {
        answer = iam(endpoint, &request).await;
    }
    let text = |tag: &str| {
        let (_, rest) = answer.split_once(&format!("<{tag}>")).expect(&answer);
        rest.split_once('<').unwrap().0.to_owned()
    };
    (text("AccessKeyId"), text("SecretAccessKey"))
}

/// No server here has access points, so a proxy answers in place of AWS.
#[tokio::test]
async fn results_and_attempts_go_through_an_access_point() {
    const HOST: &str = "orders-123456789012.s3-accesspoint.eu-central-1.amazonaws.com";
    let cloud = Cloud::new(5).await;
    let proxy = HttpsProxy::start(HOST).await;
    let certificate = cloud.dir.path().join("ca.pem");
    std::fs::write(&certificate, &proxy.certificate).unwrap();
    for (resource, code) in [("accesspoint/orders", 0), ("accesspoint:orders", 1)] {
        cloud.put("k", b"x").await;
        let arn = format!("arn:aws:s3:eu-central-1:123456789012:{resource}");
        let flags = format!(
            "--input none --retry-min 1h --retry-max 1h --output s3://{arn}/out/{{stem}} --attempts s3://{arn}/attempts"
        );
        let script = format!(r#"echo y > "$JOB_OUTPUT_DIR/y"; exit {code}"#);
        let mut command = cloud.command(&[], &flags, &script);
        command.env_remove("AWS_ENDPOINT_URL").env("AWS_ENDPOINT_URL_SQS", &cloud.endpoint);
        command.env("AWS_CA_BUNDLE", &certificate).env("HTTPS_PROXY", &proxy.endpoint);
        let exited = Leasehold::start(command).expect_exit(code).await;
        if code == 0 {
            let manifest = exited.record("message deleted")["manifest"].to_string();
            assert!(manifest.contains(&format!("s3://{arn}/out/k/y")), "{manifest}");
        }
    }
    let requests = proxy.requests();
    let connect = format!("CONNECT {HOST}:443 HTTP/1.1");
    let (connects, requests): (Vec<_>, Vec<_>) =
        requests.iter().partition(|request| request.starts_with("CONNECT "));
    assert!(connects.iter().all(|it| it.lines().next() == Some(connect.as_str())), "{connects:?}");
    let number = |line: &str| requests.iter().filter(|it| it.starts_with(line)).count();
    assert_eq!(number("PUT /out/k/y?"), 1, "{requests:?}");
    // The failure, and each start unless the machine is too busy; and the success.
    assert!((1..=3).contains(&number("PUT /attempts/")), "{requests:?}");
    assert_eq!(number("DELETE /attempts/"), 1, "{requests:?}");
    for request in requests {
        assert!(request.contains("/eu-central-1/s3/aws4_request"), "{request}");
    }
}

/// For AWS's hosts, at first only Amazon's roots are parsed.
#[tokio::test]
async fn a_proxy_with_a_ca_of_its_own_is_trusted_if_the_bundle_has_both() {
    const HOST: &str = "orders-123456789012.s3-accesspoint.eu-central-1.amazonaws.com";
    let cloud = Cloud::new(5).await;
    let proxy = HttpsProxy::start(HOST).await;
    let bundle = cloud.dir.path().join("ca.pem");
    std::fs::write(&bundle, format!("{AMAZON_ROOT_CA_3}{}", proxy.certificate)).unwrap();
    cloud.put("k", b"x").await;
    let arn = "arn:aws:s3:eu-central-1:123456789012:accesspoint/orders";
    let script = r#"echo y > "$JOB_OUTPUT_DIR/y""#;
    let flags = format!("--input none --output s3://{arn}/out");
    let mut command = cloud.command(&[], &flags, script);
    command.env_remove("AWS_ENDPOINT_URL").env("AWS_ENDPOINT_URL_SQS", &cloud.endpoint);
    command.env("AWS_CA_BUNDLE", &bundle).env("HTTPS_PROXY", &proxy.endpoint);
    Leasehold::start(command).expect_exit(0).await.record("message deleted");
    let requests = proxy.requests();
    let methods: Vec<_> = requests.iter().filter_map(|it| it.split(' ').next()).collect();
    assert_eq!(methods, ["CONNECT", "CONNECT", "PUT"]);
}

/// From <https://www.amazontrust.com/repository/>.
const AMAZON_ROOT_CA_3: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBtjCCAVugAwIBAgITBmyf1XSXNmY/Owua2eiedgPySjAKBggqhkjOPQQDAjA5\n\
MQswCQYDVQQGEwJVUzEPMA0GA1UEChMGQW1hem9uMRkwFwYDVQQDExBBbWF6b24g\n\
Um9vdCBDQSAzMB4XDTE1MDUyNjAwMDAwMFoXDTQwMDUyNjAwMDAwMFowOTELMAkG\n\
A1UEBhMCVVMxDzANBgNVBAoTBkFtYXpvbjEZMBcGA1UEAxMQQW1hem9uIFJvb3Qg\n\
Q0EgMzBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCmXp8ZBf8ANm+gBG1bG8lKl\n\
ui2yEujSLtf6ycXYqm0fc4E7O5hrOXwzpcVOho6AF2hiRVd9RFgdszflZwjrZt6j\n\
QjBAMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgGGMB0GA1UdDgQWBBSr\n\
ttvXBp43rDCGB5Fwx5zEGbF4wDAKBggqhkjOPQQDAgNJADBGAiEA4IWSoxe3jfkr\n\
BqWTrBqYaGFy+uGh0PsceGCmQ5nFuMQCIQCcAu/xlJyzlvnrxir4tiz+OpAUFteM\n\
YyRIHN8wfdVoOw==\n\
-----END CERTIFICATE-----\n";

#[tokio::test]
async fn other_arns_are_refused_at_start() {
    let cloud = Cloud::new(5).await;
    for (flag, arn, why) in [
        ("--output", "arn:aws:s3::123456789012:accesspoint/a.mrap", "multi-region access point"),
        ("--checkpoint", "arn:aws:s3:::bucket", "not the ARN of an access point"),
        ("--idempotency", "arn:aws:s3:eu-west-1:1:accesspoint/a", "not a valid ARN"),
        ("--attempts", "arn:aws:s3", "not a complete ARN"),
        ("--buckets", "arn:aws:s3:eu-west-1:123456789012:accesspoint/a", "not a valid bucket name"),
    ] {
        let place = if flag == "--buckets" { arn.to_owned() } else { format!("s3://{arn}") };
        let command = cloud.command(&[], &format!("{flag} {place}"), "true");
        let exited = Leasehold::start(command).expect_exit(78).await;
        assert!(exited.stderr.contains(why), "{flag}: {}", exited.stderr);
    }
}

/// Calls IAM, for which there is no SDK here. The server does not verify the signature.
async fn iam(endpoint: &str, request: &str) -> String {
    let body = format!("Version=2010-05-08&{request}");
    let request = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\nAuthorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/iam/aws4_request, \
         SignedHeaders=host, Signature=x\r\n\r\n{body}",
        body.len()
    );
    let mut connection = TcpStream::connect(endpoint.trim_start_matches("http://")).await.unwrap();
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}
