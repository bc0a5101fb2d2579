//! docs/existing-cluster.md: its diff and its statements match the files and the program, and its
//! result processes a file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tokio::process::Command;

use super::check_manifest::findings;
use super::manifests::{checked, complaints, objects, only};
use crate::support::cloud::{Cloud, Leasehold, eventually};
use crate::support::servers::free_port;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The blocks of the page in this language.
fn blocks(language: &str) -> Vec<String> {
    let page = read("docs/existing-cluster.md");
    let fence = format!("```{language}\n");
    let opened = page.split(&fence).skip(1);
    opened.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// The file before and after the change: the diff shows all of it.
fn sides() -> (String, String) {
    let diffs = blocks("diff");
    let [diff] = &diffs[..] else { panic!("the page has one diff") };
    let mut lines = diff.lines();
    let head: Vec<_> = lines.by_ref().take(3).collect();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for line in lines {
        match line.split_at(1) {
            (" ", text) => {
                before.push(text);
                after.push(text);
            }
            ("-", text) => before.push(text),
            ("+", text) => after.push(text),
            _ => panic!("{line}"),
        }
    }
    let hunk = format!("@@ -1,{} +1,{} @@", before.len(), after.len());
    assert_eq!(head, ["--- scaled-job.yaml", "+++ scaled-job.yaml", &hunk]);
    (before.join("\n") + "\n", after.join("\n") + "\n")
}

/// All objects of the page, with the ScaledJob as it is after the change.
fn assembled() -> Vec<Value> {
    let (_, after) = sides();
    [vec![after], blocks("yaml")].concat().iter().flat_map(|block| objects(block)).collect()
}

#[test]
fn the_diff_turns_a_typical_file_into_ours() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = sides();
    let (file, diff) = (folder.path().join("scaled-job.yaml"), folder.path().join("diff"));
    fs::write(&file, &before).unwrap();
    fs::write(&diff, blocks("diff").concat()).unwrap();
    let patched = std::process::Command::new("patch")
        .arg("--quiet")
        .arg("-i")
        .arg(&diff)
        .current_dir(&folder)
        .status();
    assert!(patched.unwrap().success());
    assert_eq!(fs::read_to_string(file).unwrap(), after);
    let shipped = read("deploy/existing-cluster/scaled-job.yaml");
    assert_eq!(shipped.split_once('\n').unwrap().1, after, "the first line names its source");
}

#[test]
fn the_page_names_the_findings_of_the_old_file() {
    let (before, _) = sides();
    let before = [vec![before], blocks("yaml")]
        .concat()
        .iter()
        .flat_map(|block| objects(block))
        .collect::<Vec<_>>();
    let found: BTreeSet<_> =
        findings(&before).into_iter().map(|finding| finding.id.to_owned()).collect();
    let page = read("docs/existing-cluster.md");
    let named: BTreeSet<_> = page
        .split("](findings.md#")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap().to_owned())
        .collect();
    assert_eq!(found, named);
}

#[test]
fn the_result_passes_every_check() {
    let objects = assembled();
    let (code, output) = checked(&objects);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.ends_with("errors: 0, warnings: 0, could not be checked: 0\n"), "{output}");
    assert_eq!(complaints(&objects), [""; 0]);

    // The page describes this result for a TriggerAuthentication in another file.
    let without_authentication: Vec<_> =
        objects.into_iter().filter(|object| object["kind"] != "TriggerAuthentication").collect();
    let (code, output) = checked(&without_authentication);
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("\nunchecked[") || output.starts_with("unchecked["), "{output}");
}

#[tokio::test]
async fn the_result_processes_a_file() {
    let objects = assembled();
    let pod = &only(&objects, "ScaledJob")["spec"]["jobTargetRef"]["template"]["spec"];
    let cloud = Cloud::new(5).await;
    let volume = tempfile::tempdir().unwrap();
    let place = |path: &Value| {
        path.as_str().unwrap().replace("/opt/leasehold", volume.path().to_str().unwrap())
    };

    // The init container.
    let args = pod["initContainers"][0]["args"].as_array().unwrap();
    let install = Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .args(args.iter().map(place))
        .output()
        .await
        .unwrap();
    assert!(install.status.success(), "{}", String::from_utf8_lossy(&install.stderr));

    // The program of the page, which does not use SQS.
    let program = cloud.dir.path().join("process.py");
    fs::write(
        &program,
        "import os\nopen('seen', 'wb').write(open(os.environ['JOB_INPUT'], 'rb').read())\n",
    )
    .unwrap();
    let container = &pod["containers"][0];
    let command: Vec<_> = container["command"].as_array().unwrap().iter().map(place).collect();
    let (last, words) = command.split_last().unwrap();
    assert_eq!(
        (&words[1..], last.as_str()),
        (&["run", "--", "python3"].map(String::from)[..], "/app/process.py")
    );
    let mut pod = Command::new(&words[0]);
    pod.args(&words[1..]).arg(program).current_dir(cloud.dir.path());
    for variable in container["env"].as_array().unwrap() {
        let value = match variable["name"].as_str().unwrap() {
            "LEASEHOLD_QUEUE_URL" => cloud.queue_url.clone(),
            "LEASEHOLD_LISTEN" => format!("127.0.0.1:{}", free_port()),
            _ => variable["value"].as_str().unwrap().to_owned(),
        };
        pod.env(variable["name"].as_str().unwrap(), value);
    }
    pod.env("LEASEHOLD_TERMINATION_LOG", cloud.dir.path().join("termination-log"));
    pod.env("AWS_ENDPOINT_URL", &cloud.endpoint).env("AWS_REGION", "us-east-1");
    pod.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");

    cloud.put("in/report.csv", b"a,b\n").await;
    eventually("S3 has sent its event", async || (cloud.counts().await.0 > 0).then_some(())).await;
    let exited = Leasehold::start(pod).expect_exit(0).await;
    assert_eq!(exited.record("message deleted")["key"], "in/report.csv");
    assert_eq!(fs::read(cloud.dir.path().join("seen")).unwrap(), b"a,b\n");
}
