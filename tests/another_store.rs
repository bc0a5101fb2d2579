//! Objects and results in another store than the queue's, with their own credentials.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::aws;
use crate::support::cloud::{Cloud, Leasehold};
use crate::support::recorder::Recorder;
use crate::support::servers::{Ministack, Moto};

/// A store that has nothing in common with the queue's, with one object.
struct Store {
    recorder: Recorder,
    s3: aws_sdk_s3::Client,
}

impl Store {
    async fn with_object(bucket: &str, key: &str, bytes: &[u8]) -> Self {
        let upstream = Moto::shared().await.endpoint();
        let config = aws::config(&upstream);
        let s3 = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
        let s3 = aws_sdk_s3::Client::from_conf(s3);
        s3.create_bucket().bucket(bucket).send().await.unwrap();
        s3.put_object().bucket(bucket).key(key).body(bytes.to_vec().into()).send().await.unwrap();
        Self { recorder: Recorder::start(&upstream).await, s3 }
    }

    async fn text(&self, bucket: &str, key: &str) -> String {
        let got = self.s3.get_object().bucket(bucket).key(key).send().await.unwrap();
        String::from_utf8(got.body.collect().await.unwrap().to_vec()).unwrap()
    }
}

/// A queue with a message about an object that only the other store has, and a recorder before the
/// queue.
async fn queue_about(bucket: &str, key: &str) -> (Cloud, Recorder) {
    let cloud = Cloud::new(5).await;
    let s3 = json!({ "bucket": { "name": bucket }, "object": { "key": key } });
    let record = json!({ "eventName": "ObjectCreated:Put", "s3": s3 });
    cloud.send(json!({ "Records": [record] }).to_string()).await;
    let recorder = Recorder::start(&Ministack::shared().await.endpoint()).await;
    (cloud, recorder)
}

/// Writes a file of the user, and returns its path.
fn file(cloud: &Cloud, name: &str, text: &str) -> PathBuf {
    let path = cloud.dir.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/workers/another-store")
}

#[tokio::test]
async fn the_example_reads_and_writes_the_other_store_with_its_credentials() {
    let store = Store::with_object("of-the-example", "in/text.txt", b"one two one\n").await;
    let (cloud, queue) = queue_about("of-the-example", "in/text.txt").await;
    let manifest: Value =
        serde_saphyr::from_str(&fs::read_to_string(example().join("scaled-job.yaml")).unwrap())
            .unwrap();
    let pod = &manifest["spec"]["jobTargetRef"]["template"]["spec"];
    let variables = pod["containers"][0]["env"].as_array().unwrap();
    let mount = pod["containers"][0]["volumeMounts"][0]["mountPath"].as_str().unwrap();

    let credentials = fs::read_to_string(example().join("credentials")).unwrap();
    let url = credentials.lines().find_map(|line| line.strip_prefix("endpoint_url = ")).unwrap();
    file(&cloud, "credentials", &credentials.replace(url, &store.recorder.endpoint));
    let flags = "--output s3://of-the-example/results/{stem}";
    let mut command = cloud.command(&[], flags, "");
    let script = example().join("count.sh");
    command = with_command(&command, &["sh", script.to_str().unwrap()]);
    command.env("AWS_ENDPOINT_URL", &queue.endpoint);
    for variable in variables {
        let value = variable["value"].as_str().unwrap();
        let value = value.replace(mount, cloud.dir.path().to_str().unwrap());
        command.env(variable["name"].as_str().unwrap(), value);
    }
    Leasehold::start(command).expect_exit(0).await;

    let words = store.text("of-the-example", "results/text/words.txt").await;
    let words: Vec<_> = words.split_whitespace().collect();
    assert_eq!(words, ["2", "one", "1", "two"]);
    let of_store = store.recorder.requests();
    assert!(of_store.len() >= 2, "{of_store:?}");
    for request in of_store {
        assert!(request.contains("credential=r2_access_key_id/"), "{request}");
        assert!(request.contains("/auto/s3/aws4_request"), "{request}");
    }
    let of_queue = queue.requests();
    assert!(of_queue.iter().any(|request| request.contains("deletemessage")), "{of_queue:?}");
    for request in of_queue {
        assert!(request.contains("credential=test/"), "{request}");
        assert!(request.contains("/us-east-1/sqs/aws4_request"), "{request}");
    }
}

/// The same command line with other words after `--`.
fn with_command(command: &Command, words: &[&str]) -> Command {
    let command = command.as_std();
    let mut other = Command::new(command.get_program());
    other.args(command.get_args().take_while(|word| *word != "--")).arg("--").args(words);
    other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    other.current_dir(command.get_current_dir().unwrap());
    other
}

#[tokio::test]
async fn the_credentials_are_loaded_once_and_a_services_section_names_the_endpoint() {
    let store = Store::with_object("of-a-process", "k", b"x").await;
    let (cloud, _queue) = queue_about("of-a-process", "k").await;
    let calls = cloud.dir.path().join("calls");
    let answer = r#"{"Version":1,"AccessKeyId":"FROMPROCESS","SecretAccessKey":"s"}"#;
    let program = format!("#!/bin/sh\necho call >> {}\necho '{answer}'\n", calls.display());
    let program = file(&cloud, "process", &program);
    let config = format!(
        "[default]\nendpoint_url = http://127.0.0.1:1\n[profile minio]\nregion = elsewhere-1\n\
         credential_process = sh {}\nservices = of-minio\n\
         [services of-minio]\ns3 =\n  endpoint_url = {}\n",
        program.display(),
        store.recorder.endpoint
    );
    let config = file(&cloud, "config", &config);
    let flags =
        "--s3-profile minio --output s3://of-a-process/out --idempotency s3://of-a-process/records";
    let mut command = cloud.command(&[], flags, r#"echo y > "$JOB_OUTPUT_DIR/y"; env > seen"#);
    command.env("AWS_CONFIG_FILE", config);
    Leasehold::start(command).expect_exit(0).await;

    assert_eq!(store.text("of-a-process", "out/y").await, "y\n");
    let requests = store.recorder.requests();
    assert!(requests.len() >= 5, "{requests:?}");
    for request in requests {
        assert!(request.contains("credential=fromprocess/"), "{request}");
        assert!(request.contains("/elsewhere-1/s3/"), "{request}");
    }
    assert_eq!(fs::read_to_string(calls).unwrap(), "call\n");
    // The command gets the pod's environment as it is.
    let seen = fs::read_to_string(cloud.dir.path().join("seen")).unwrap();
    assert!(seen.contains("AWS_ACCESS_KEY_ID=test\n") && !seen.contains("AWS_PROFILE"), "{seen}");
}

#[tokio::test]
async fn a_missing_profile_is_refused_before_a_message_is_received() {
    let (cloud, _queue) = queue_about("b", "k").await;
    let config = file(&cloud, "config", "[profile minio]\nregion = a-1\n[profile r2]\n");
    let start = |profile: &str| {
        let mut command = cloud.command(&[], &format!("--s3-profile {profile}"), "true");
        command.env("AWS_CONFIG_FILE", &config);
        command.env("AWS_SHARED_CREDENTIALS_FILE", cloud.dir.path().join("credentials"));
        command
    };
    let exited = Leasehold::start(start("r3")).expect_exit(78).await;
    let dir = cloud.dir.path().display();
    let why = format!(
        "--s3-profile is \"r3\", but neither {dir}/config nor {dir}/credentials has this profile; their profiles are \"minio\", \"r2\""
    );
    assert!(exited.stderr.contains(&why), "{}", exited.stderr);
    assert_eq!(cloud.counts().await, (1, 0));

    // A profile without credentials: the message stays, and check reports it.
    let exited = Leasehold::start(start("minio")).expect_exit(75).await;
    assert!(exited.stdout.contains("--s3-profile is \\\"minio\\\""), "{}", exited.stdout);
    let mut check = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    check.args(["check", "--queue-url", &cloud.queue_url, "--s3-profile", "minio"]);
    check.args(["--", "true"]);
    check.envs(start("minio").as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
    let checked = Leasehold::start(check).wait().await;
    assert!(checked.stdout.contains("credentials of --s3-profile minio"), "{}", checked.stdout);
}
