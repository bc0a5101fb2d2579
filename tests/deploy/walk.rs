//! The path of a new user: every command of "Steps" in deploy/first-file.md, with moto in
//! place of AWS, and without a registry and a cluster. Then the pod of the manifests is run.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use aws_config::Region;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::manifests::{build, complaints, only};
use crate::support::aws;
use crate::support::cloud::Leasehold;
use crate::support::servers::{Moto, free_port, installed};

/// The commands of a section of deploy/first-file.md.
fn commands(section: &str) -> String {
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/first-file.md"))
            .unwrap();
    let (_, section) = page.split_once(&format!("\n## {section}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks.collect()
}

/// Moto loses the outputs of a stack that was created by a change set, as `deploy` does.
const AWS: &str = r#"[ "$1 $2" = "cloudformation deploy" ] || exec AWS "$@"
shift 2
while [ $# -gt 0 ]; do
    case $1 in
        --template-file) template=$2 ;;
        --parameter-overrides) parameter=$2 ;;
        *) others="$others $1 $2" ;;
    esac
    shift 2
done
exec AWS cloudformation create-stack $others --template-body "file://$template" \
    --parameters "ParameterKey=${parameter%%=*},ParameterValue=${parameter#*=}""#;

/// A copy of the repository, and stand-ins for the programs that need a registry or a cluster.
struct Walkthrough {
    folder: TempDir,
    moto: Moto,
}

impl Walkthrough {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let copy = ["deploy", "CHANGELOG.md"].map(|name| repository.join(name));
        assert!(
            std::process::Command::new("cp")
                .arg("-R")
                .args(copy)
                .arg(folder.path())
                .status()
                .unwrap()
                .success()
        );
        let programs = folder.path().join("programs");
        fs::create_dir(&programs).unwrap();
        let aws = installed("aws", "aws");
        let log_call = r#"echo "$(basename "$0") $*" >> "$CALLS""#;
        for (name, script) in [
            ("aws", AWS.replace("AWS", &aws.get_program().display().to_string())),
            ("docker", log_call.to_owned()),
            ("helm", log_call.to_owned()),
            ("kubectl", log_call.to_owned()),
        ] {
            fs::write(programs.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { folder, moto: Moto::start().await }
    }

    /// Runs a shell script and returns its output.
    async fn sh(&self, script: &str) -> String {
        let path = format!("{}:/usr/bin:/bin", self.folder.path().join("programs").display());
        let mut command = Command::new("sh");
        command.args(["-euc", script]).current_dir(self.folder.path()).env("PATH", path);
        command
            .env("CALLS", self.folder.path().join("calls"))
            .env("AWS_ENDPOINT_URL", self.moto.endpoint());
        command
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_PAGER", "");
        let done = command.output().await.unwrap();
        let (stdout, stderr) =
            (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
        assert!(done.status.success(), "{stdout}{stderr}");
        stdout
    }
}

#[tokio::test]
async fn the_first_file_page_leads_to_a_processed_file() {
    let newcomer = Walkthrough::new().await;
    newcomer.sh(&commands("Steps")).await;
    let calls = fs::read_to_string(newcomer.folder.path().join("calls")).unwrap();
    assert!(calls.contains("\nkubectl apply -k deploy/kustomize/own\n"), "{calls}");

    let objects = build(&newcomer.folder.path().join("deploy/kustomize/own"));
    assert_eq!(complaints(&objects), [""; 0]);
    let pod = &only(&objects, "ScaledJob")["spec"]["jobTargetRef"]["template"]["spec"];
    let built = calls.lines().find_map(|call| call.strip_prefix("docker push ")).unwrap();
    assert_eq!(pod["initContainers"][0]["image"], built, "the pushed image is the one that runs");

    // The container's environment, with local folders and ports.
    let config = |name: &str| {
        objects.iter().find(|object| object["metadata"]["name"] == name).unwrap()["data"].clone()
    };
    let mut env: BTreeMap<String, String> =
        serde_json::from_value(config("leasehold-settings")).unwrap();
    for variable in pod["containers"][0]["env"].as_array().unwrap() {
        let value = variable["value"].as_str().unwrap_or("by the downward API");
        env.insert(variable["name"].as_str().unwrap().to_owned(), value.to_owned());
    }
    assert_eq!(
        (env["AWS_REGION"].as_str(), env["LEASEHOLD_TERMINATION_GRACE"].as_str()),
        ("eu-central-1", "120s")
    );
    let (queue_url, place) =
        (env["LEASEHOLD_QUEUE_URL"].clone(), env["LEASEHOLD_ATTEMPTS"].clone());
    assert!(queue_url.ends_with("/123456789012/leasehold"), "{queue_url}");
    let work_dir = tempfile::tempdir().unwrap();
    env.insert("LEASEHOLD_WORK_DIR".to_owned(), work_dir.path().display().to_string());
    env.insert("LEASEHOLD_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port()));
    env.insert("LEASEHOLD_PUSHGATEWAY".to_owned(), format!("http://127.0.0.1:{}", free_port()));

    // Moto's CloudFormation ignores the bucket's notifications.
    let bucket = place.strip_prefix("s3://").unwrap().split('/').next().unwrap();
    let entry = json!({
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": bucket }, "object": { "key": "in/CHANGELOG.md" } },
    });
    let body = json!({ "Records": [entry] });
    let config_of_region =
        aws::config(&newcomer.moto.endpoint()).into_builder().region(Region::new("eu-central-1"));
    let sqs = aws_sdk_sqs::Client::new(&config_of_region.build());
    sqs.send_message().queue_url(&queue_url).message_body(body.to_string()).send().await.unwrap();

    let sample = |name: &str| {
        fs::write(work_dir.path().join(name), config("leasehold-sample")[name].as_str().unwrap())
            .unwrap();
        work_dir.path().join(name)
    };
    let script = sample("process.py");
    assert_eq!(env["LEASEHOLD_JOB_TYPES"], "/sample/job-types.yaml");
    env.insert("LEASEHOLD_JOB_TYPES".to_owned(), sample("job-types.yaml").display().to_string());
    let command: Vec<String> =
        serde_json::from_value(pod["containers"][0]["command"].clone()).unwrap();
    assert_eq!(command[1..], ["run", "--", "python3", "/sample/process.py"]);
    let mut pod = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    pod.args(&command[1..4])
        .arg(script)
        .envs(&env)
        .env("AWS_ENDPOINT_URL", newcomer.moto.endpoint());
    pod.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    pod.env("LEASEHOLD_TERMINATION_LOG", work_dir.path().join("termination-log"));
    let exited = Leasehold::start(pod).expect_exit(0).await;
    assert_eq!(exited.record("message deleted")["key"], "in/CHANGELOG.md");
    let printed =
        exited.log.iter().find_map(|record| record.get("event")).expect("the sample's output");
    let lines =
        fs::read_to_string(newcomer.folder.path().join("CHANGELOG.md")).unwrap().lines().count();
    assert_eq!(printed["lines"], lines);
    assert_fluent_bit_reads(&exited.log[0]);
}

/// Compares the configuration with a log record, without Fluent Bit, which is in no registry that
/// tests may use.
fn assert_fluent_bit_reads(record: &Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/fluent-bit");
    let setting = |file: &str, name: &str| {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap();
        line.trim().to_owned()
    };
    assert_eq!(setting("parsers.conf", "Format"), "json");
    let timestamp = record[setting("parsers.conf", "Time_Key")].as_str().unwrap();
    // Fluent Bit's %L is a fraction of a second, which is %f to Python.
    let format = setting("parsers.conf", "Time_Format").replace("%L", "%f");
    let parse = "import datetime, sys; datetime.datetime.strptime(sys.argv[1], sys.argv[2])";
    let parsed =
        installed("kubernetes", "python").args(["-c", parse, timestamp, &format]).status().unwrap();
    assert!(parsed.success(), "{timestamp}");
    // The multiline parsers' key is `log`; that of the parser `cri` is `message`.
    assert_eq!(setting("inputs.conf", "multiline.parser"), "docker, cri");
    assert_eq!(setting("filters.conf", "Key_Name"), "log");
    assert_eq!(setting("filters.conf", "Parser "), setting("parsers.conf", "Name"));
    // The kubelet's name for a log of these pods.
    let log = "/var/log/containers/leasehold-x7k2p-9f4qd_leasehold_leasehold-0123abcd.log";
    let tag = setting("inputs.conf", "Tag").replace('*', &log[1..].replace('/', "."));
    let fits = |pattern: &str, text: &str| {
        globset::Glob::new(pattern).unwrap().compile_matcher().is_match(text)
    };
    assert!(
        fits(&setting("inputs.conf", "Path"), log) && fits(&setting("filters.conf", "Match"), &tag),
        "{tag}"
    );
}
