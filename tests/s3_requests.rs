//! The headers of S3 requests, as a proxy between leasehold and the server records them.

use crate::support::aws;
use crate::support::cloud::{Cloud, Leasehold};
use crate::support::recorder::Recorder;
use crate::support::servers::Moto;

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
