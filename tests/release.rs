//! The requirements of a release and its workflow: metadata, small packages, pinned actions, and
//! consistent names.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use walkdir::WalkDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn manifest(folder: &str) -> toml::Table {
    fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap().parse().unwrap()
}

fn workflows() -> Vec<(String, String)> {
    let folder = fs::read_dir(root().join(".github/workflows")).unwrap();
    let paths: BTreeSet<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    let named = paths.into_iter().map(|path| {
        (
            path.file_name().unwrap().to_string_lossy().into_owned(),
            fs::read_to_string(&path).unwrap(),
        )
    });
    named.collect()
}

fn run(command: &mut Command) -> Output {
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn all_packages_have_the_metadata_of_a_registry() {
    let workspace = manifest("")["workspace"]["package"].clone();
    for (folder, name) in
        [("", "leasehold"), ("core", "leasehold-core"), ("derive", "leasehold-derive")]
    {
        let package = manifest(folder)["package"].clone();
        assert_eq!(package["name"].as_str(), Some(name));
        assert!(package.get("publish").is_none(), "{name} may be published");
        let description = package["description"].as_str().unwrap();
        assert!(!description.is_empty() && !description.ends_with('.'), "{description}");
        let readme = root().join(folder).join(package["readme"].as_str().unwrap());
        assert!(readme.exists(), "{} is missing", readme.display());
        // The rules of crates.io.
        let keywords: Vec<_> =
            package["keywords"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        assert!((1..=5).contains(&keywords.len()), "{keywords:?}");
        assert!(keywords.iter().all(|keyword| keyword.len() <= 20), "{keywords:?}");
        assert!((1..=5).contains(&package["categories"].as_array().unwrap().len()));
        for inherited in ["version", "edition", "rust-version", "license"] {
            assert!(workspace.get(inherited).is_some());
            assert_eq!(
                package[inherited]["workspace"].as_bool(),
                Some(true),
                "{name}: {inherited}"
            );
        }
    }
    // All are released together.
    for other in ["leasehold-core", "leasehold-derive"] {
        assert_eq!(manifest("")["dependencies"][other]["version"], workspace["version"]);
    }
}

#[test]
fn the_packages_contain_the_sources_and_few_other_files() {
    for (folder, name, others) in [
        (
            "",
            "leasehold",
            &[
                "CHANGELOG.md",
                "README.md",
                "build.rs",
                "examples/embedded.rs",
                "examples/service.rs",
            ][..],
        ),
        ("core", "leasehold-core", &["README.md"]),
        ("derive", "leasehold-derive", &["README.md"]),
    ] {
        let mut list = Command::new(env!("CARGO"));
        let listed = run(list.args([
            "package",
            "--list",
            "--allow-dirty",
            "--locked",
            "--offline",
            "--package",
            name,
        ]));
        let packaged: BTreeSet<String> =
            String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
        let home = root().join(folder);
        let files = WalkDir::new(home.join("src"))
            .into_iter()
            .map(Result::unwrap)
            .filter(|it| it.file_type().is_file());
        let mut expected: BTreeSet<String> = files
            .map(|file| file.path().strip_prefix(&home).unwrap().to_string_lossy().into_owned())
            .collect();
        let always =
            ["Cargo.lock", "Cargo.toml", "Cargo.toml.orig", "LICENSE-APACHE", "LICENSE-MIT"];
        expected.extend(others.iter().chain(&always).map(|name| (*name).to_owned()));
        // This file has the commit, in a git checkout.
        let packaged: BTreeSet<_> =
            packaged.into_iter().filter(|name| name != ".cargo_vcs_info.json").collect();
        assert_eq!(packaged, expected, "{name}");
    }
}

#[test]
fn one_version_of_rust_builds_tests_and_ships() {
    let version = manifest("")["workspace"]["package"]["rust-version"].as_str().unwrap().to_owned();
    let image = format!("rust:{version}-bookworm");
    for path in ["deploy/Dockerfile", ".github/workflows/ci.yml"] {
        assert!(
            fs::read_to_string(root().join(path)).unwrap().contains(&image),
            "{path} does not use {image}"
        );
    }
}

#[test]
fn every_action_is_pinned_by_its_commit() {
    let mut count = 0;
    for (name, text) in workflows() {
        for line in text.lines() {
            let Some((_, action)) =
                line.split_once("uses: ").filter(|(_, action)| !action.starts_with("./"))
            else {
                continue;
            };
            count += 1;
            let (commit, version) =
                action.split_once('@').unwrap().1.split_once(" # v").expect("the version is named");
            assert!(
                commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()),
                "{name}: {action}"
            );
            assert_eq!(version.split('.').count(), 3, "{name}: {action}");
        }
    }
    assert!(count > 5, "only {count} actions were found");
}

#[test]
fn every_job_names_its_permissions() {
    for (name, text) in workflows() {
        let workflow: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(workflow["permissions"], serde_json::json!({}), "{name}");
        for (job, body) in workflow["jobs"].as_object().unwrap() {
            let permissions = body["permissions"]
                .as_object()
                .unwrap_or_else(|| panic!("{name}: {job} names none"));
            // Only a job without a build step may sign, and no job writes to the repository
            // contents.
            let may_sign = permissions.contains_key("id-token");
            assert!(!may_sign || ["publish", "analysis"].contains(&job.as_str()), "{name}: {job}");
            if job != "publish" {
                assert_eq!(permissions["contents"], "read", "{name}: {job}");
            }
            if body.get("uses").is_none() {
                assert!(body["timeout-minutes"].is_u64(), "{name}: {job} has no limit");
            }
        }
    }
}

/// The name of the archive that `cargo binstall` downloads for a target, and the path of the binary
/// in it.
fn binstall_paths(target: &str, version: &str) -> (String, String) {
    let binstall = manifest("")["package"]["metadata"]["binstall"].clone();
    let filled = |field: &str| {
        let template = binstall[field].as_str().unwrap();
        template
            .replace("{ version }", version)
            .replace("{ target }", target)
            .replace("{ bin }", "leasehold")
    };
    let url = filled("pkg-url");
    assert!(url.starts_with(&format!("{{ repo }}/releases/download/v{version}/")), "{url}");
    (url.rsplit_once('/').unwrap().1.to_owned(), filled("bin-dir"))
}

#[test]
fn a_release_has_reproducible_archives_for_binstall() {
    let room = tempfile::tempdir().unwrap();
    let platforms =
        [("linux_amd64", "x86_64-unknown-linux-gnu"), ("linux_arm64", "aarch64-unknown-linux-gnu")];
    for (platform, target) in platforms {
        let folder = room.path().join("out").join(platform);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("leasehold"), target).unwrap();
    }
    for dist in ["dist", "again"] {
        let mut archives = Command::new(".github/archives");
        archives.args([
            "1.2.3".as_ref(),
            room.path().join("out").as_path(),
            &room.path().join(dist),
        ]);
        run(archives.env("SOURCE_DATE_EPOCH", "1800000000"));
    }
    for (_, target) in platforms {
        let (archive, binary) = binstall_paths(target, "1.2.3");
        let packed = |dist: &str| fs::read(room.path().join(dist).join(&archive)).unwrap();
        assert_eq!(packed("dist"), packed("again"));
        let mut tar = Command::new("tar");
        tar.arg("--extract")
            .arg("--to-stdout")
            .arg("--file")
            .arg(room.path().join("dist").join(&archive))
            .arg(binary);
        assert_eq!(String::from_utf8(run(&mut tar).stdout).unwrap(), target);
    }
    assert_eq!(fs::read_dir(room.path().join("dist")).unwrap().count(), 2);
}

/// Runs `.github/notes VERSION` on a changelog.
fn notes(changelog: &str, version: &str) -> Output {
    let mut command = Command::new(root().join(".github/notes"));
    command.arg(version).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(changelog.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn the_notes_of_a_release_are_its_section_of_the_changelog() {
    let changelog = "# Changelog\n\n## Unreleased\n\n- c\n\n## 1.2.30\n\n- b\n\n### More\n\n- m\n\n## 1.2.3\n\n- a\n";
    let of = |version: &str| String::from_utf8(notes(changelog, version).stdout).unwrap();
    assert_eq!(of("1.2.30").trim(), "- b\n\n### More\n\n- m");
    assert_eq!(of("1.2.3").trim(), "- a");
    let missing = notes(changelog, "1.2.4");
    assert!(
        !missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("## 1.2.4")
    );
    // Our own changelog has the same form.
    let own = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(notes(&own, "Unreleased").status.success());
}
