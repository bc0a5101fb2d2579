//! The files of deploy/regenerate are up to date, and equivalent to their sources.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::kustomize::overlay;
use super::manifests::{checked, complaints, objects};
use crate::support::servers::installed;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

const WRITTEN: [&str; 8] = [
    "deploy/helm/leasehold/files/dashboard.json",
    "deploy/helm/leasehold/files/sample-job-types.yaml",
    "deploy/helm/leasehold/files/process.py",
    "deploy/helm/leasehold/files/rules.yml",
    "deploy/helm/leasehold/values.schema.json",
    "deploy/install.yaml",
    "deploy/kustomize/components/dashboard/dashboard.json",
    "deploy/kustomize/components/prometheus-rule/prometheus-rule.yaml",
];

#[test]
fn every_generated_file_is_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-R")
        .args(["deploy", "docs", "grafana"].map(|name| root().join(name)))
        .arg(folder.path());
    assert!(copy.status().unwrap().success());
    for file in WRITTEN.iter().filter(|file| !file.ends_with("schema.json")) {
        fs::remove_file(folder.path().join(file)).unwrap();
    }
    let kubectl = installed("kubernetes", "kubectl").get_program().to_owned();
    let script = folder.path().join("deploy/regenerate");
    let written =
        installed("kubernetes", "python").arg(script).env("KUBECTL", kubectl).output().unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    for file in WRITTEN {
        let read = |folder: &Path| fs::read(folder.join(file)).unwrap();
        assert!(read(root()) == read(folder.path()), "{file} is outdated: run deploy/regenerate");
    }
}

#[test]
fn the_file_to_paste_is_the_default_overlay_and_its_namespace() {
    let text = fs::read_to_string(root().join("deploy/install.yaml")).unwrap();
    let mut pasted = objects(&text);
    let namespace = pasted.remove(0);
    assert_eq!(
        (&namespace["kind"], &namespace["metadata"]["name"]),
        (&"Namespace".into(), &"leasehold".into())
    );
    assert_eq!(pasted, overlay("heartbeat"));
    let (code, output) = checked(&pasted);
    assert!(
        code == Some(0) && output.ends_with("errors: 0, warnings: 0, could not be checked: 0\n"),
        "{output}"
    );
    assert_eq!(complaints(&[vec![namespace], pasted].concat()), [""; 0]);

    let edits = text.matches(" # EDIT: ").count();
    let page = fs::read_to_string(root().join("deploy/README.md")).unwrap();
    assert!(edits == 7 && page.contains("seven marked lines"), "{edits}");
    assert!(text.contains(&format!("Change the {edits} lines with \"EDIT\"")), "{edits}");
    let others = text.lines().filter(|line| !line.contains("EDIT") && !line.starts_with('#'));
    for mine in ["123456789012", "eu-central-1", "image: leasehold", "image: python"] {
        let remaining: Vec<_> = others.clone().filter(|line| line.contains(mine)).collect();
        assert_eq!(remaining, [""; 0], "{mine} must be changed by the user, but has no mark");
    }
}
