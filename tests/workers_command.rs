//! The examples of workers with arguments, fixed paths and a mounted bucket run as their manifests
//! say.

use std::fs;
use std::path::{Path, PathBuf};

use aws_sdk_sqs::types::MessageAttributeValue;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::cloud::{Cloud, ExitedRun, Leasehold};

fn home(example: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/workers").join(example)
}

/// A bucket for the input, and one for the results.
async fn cloud() -> (Cloud, String) {
    let cloud = Cloud::new(5).await;
    let results = format!("{}-results", cloud.bucket);
    cloud.s3.create_bucket().bucket(&results).send().await.unwrap();
    (cloud, results)
}

/// Runs the container of the example's manifest, with other paths and buckets.
async fn run(
    cloud: &Cloud,
    example: &str,
    replaced: &[(&str, &str)],
    variables: &[(&str, &Path)],
) -> ExitedRun {
    let manifest = fs::read_to_string(home(example).join("scaledjob.yaml")).unwrap();
    let manifest: Value = serde_saphyr::from_str(&manifest).unwrap();
    let container = &manifest["spec"]["jobTargetRef"]["template"]["spec"]["containers"][0];
    let words =
        ["command", "args"].map(|name| container[name].as_array().unwrap().clone()).concat();
    let app = home(example).display().to_string();
    let word = |word: &Value| {
        let word = word.as_str().unwrap().replace("/app", &app);
        replaced.iter().fold(word, |word, (from, to)| word.replace(from, to))
    };
    assert_eq!(words[0], "leasehold");
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(words[1..].iter().map(word)).envs(variables.iter().copied());
    command.env("LEASEHOLD_QUEUE_URL", &cloud.queue_url);
    command.env("LEASEHOLD_WORK_DIR", cloud.dir.path());
    command.env("LEASEHOLD_TERMINATION_LOG", cloud.dir.path().join("termination-log"));
    command.env("AWS_ENDPOINT_URL", &cloud.endpoint).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    Leasehold::start(command).expect_exit(0).await
}

async fn result(cloud: &Cloud, bucket: &str, key: &str) -> String {
    let object = cloud.s3.get_object().bucket(bucket).key(key).send().await.expect("the result");
    let bytes = object.body.collect().await.unwrap().into_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn the_program_with_arguments_gets_the_paths_and_the_attribute_of_the_message() {
    let (cloud, results) = cloud().await;
    // In a bucket that sends no notification of its own.
    let texts = format!("{}-texts", cloud.bucket);
    cloud.s3.create_bucket().bucket(&texts).send().await.unwrap();
    let put = cloud.s3.put_object().bucket(&texts).key("in/-poem.txt");
    put.body(b"one\ntwo\n".to_vec().into()).send().await.unwrap();
    let body = json!({ "Records": [{
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": texts }, "object": { "key": "in/-poem.txt" } },
    }] });
    let first = MessageAttributeValue::builder().data_type("Number").string_value("7").build();
    let send = cloud.sqs.send_message().queue_url(&cloud.queue_url).message_body(body.to_string());
    send.message_attributes("first", first.unwrap()).send().await.unwrap();

    run(&cloud, "arguments", &[("s3://results", &format!("s3://{results}"))], &[]).await;
    let numbered = result(&cloud, &results, "in/-poem.txt/-poem.numbered").await;
    assert_eq!(numbered, "# -poem.txt\n7: one\n8: two\n");
}

#[tokio::test]
async fn the_program_with_fixed_paths_finds_its_files_there() {
    let (cloud, results) = cloud().await;
    cloud.put("monday.csv", b"name,amount\nAda,3\nBob,4\n").await;
    let processing = cloud.dir.path().join("opt/ml/processing");
    let replaced = [
        ("s3://results", &*format!("s3://{results}")),
        ("/opt/ml/processing", processing.to_str().unwrap()),
    ];
    run(&cloud, "fixed-paths", &replaced, &[("PROCESSING_HOME", &processing)]).await;
    assert_eq!(result(&cloud, &results, "monday/total.txt").await, "7\n");
    assert!(fs::symlink_metadata(processing.join("output")).is_err());
}

#[tokio::test]
async fn the_program_with_a_mount_reads_the_object_below_it() {
    let (cloud, results) = cloud().await;
    let film = "frame ".repeat(2_000);
    cloud.put("in/short.film", film.as_bytes()).await;
    let mount = cloud.dir.path().join("s3");
    fs::create_dir_all(mount.join("in")).unwrap();
    fs::write(mount.join("in/short.film"), &film).unwrap();
    let replaced = [
        ("s3://results", &*format!("s3://{results}")),
        ("s3://films=/s3", &*format!("s3://{}={}", cloud.bucket, mount.display())),
    ];
    let exited = run(&cloud, "mount", &replaced, &[]).await;
    assert_eq!(result(&cloud, &results, "in/short.film/first-page").await, film[..4096]);
    let line = format!("4096 of 12000 bytes of {}", mount.join("in/short.film").display());
    assert!(exited.log.iter().any(|record| record["line"] == line), "{}", exited.stdout);
}

#[test]
fn each_of_these_examples_has_a_short_readme() {
    for example in ["arguments", "fixed-paths", "http-server", "mount"] {
        let readme = fs::read_to_string(home(example).join("README.md")).unwrap();
        let lines =
            readme.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        assert_eq!(lines, 5, "{example}/README.md");
    }
}
