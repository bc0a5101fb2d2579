//! docs/library.md as its readers follow it: in new packages, with exactly the dependencies that it
//! lists.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::docs::Page;
use crate::support::cloud::{Cloud, Leasehold};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The blocks of the page in this language.
fn blocks(language: &str) -> Vec<String> {
    let page = Page::read(Path::new("docs/library.md"));
    let blocks = page.blocks.into_iter().filter(|block| block.language.starts_with(language));
    blocks.map(|block| block.text).collect()
}

/// Target directory of this test, so that most dependencies have been built.
fn target() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(3).unwrap().to_owned()
}

const LONGEST_BUILD: Duration = Duration::from_mins(30);

/// Runs cargo, and expects no warnings.
async fn cargo(folder: &Path, words: &[&str]) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(words).current_dir(folder).env("CARGO_TARGET_DIR", target());
    // As this package's own profile has it for dependencies.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "false");
    cargo.kill_on_drop(true);
    // Other tests use its target directory, too, which it waits for.
    let ran = timeout(LONGEST_BUILD, cargo.output()).await.expect("a build in time").unwrap();
    let printed = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && !printed.contains("warning"), "{words:?}: {printed}");
}

/// A new package with these dependencies. Until this version is in the registry, and while it
/// changes, its sources are here.
async fn package(home: &Path, name: &str, dependencies: &[&str]) -> PathBuf {
    cargo(home, &["new", "--quiet", "--vcs", "none", name]).await;
    let folder = home.join(name);
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let (package, _) = manifest.split_once("[dependencies]").unwrap();
    let sources = format!("[patch.crates-io]\nleasehold = {{ path = {ROOT:?} }}\n");
    let parts = [&[package], dependencies, &[&sources]].concat();
    fs::write(folder.join("Cargo.toml"), parts.join("\n")).unwrap();
    // The versions that have been downloaded.
    fs::copy(Path::new(ROOT).join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    fs::create_dir_all(folder.join("src/bin")).unwrap();
    fs::create_dir_all(folder.join("tests")).unwrap();
    folder
}

fn is_of_a_worker(block: &str) -> bool {
    block.contains("= Worker::")
}

#[tokio::test]
async fn the_programs_of_the_page_work_in_a_new_package() {
    let (home, dependencies) = (tempfile::tempdir().unwrap(), blocks("toml"));
    let [program, _worker, tests] = &dependencies[..] else { panic!("{dependencies:?}") };
    let folder = package(home.path(), "of-the-page", &[program, tests]).await;
    let code = blocks("rust");
    fs::write(folder.join("src/main.rs"), &code[0]).unwrap();
    for (number, block) in code.iter().enumerate().skip(1).filter(|(_, it)| !is_of_a_worker(it)) {
        let (file, attribute) = match block {
            it if it.contains("fn main()") => (format!("src/bin/program{number}.rs"), ""),
            it if it.contains("#[tokio::test") => ("tests/page.rs".to_owned(), ""),
            _ => ("src/lib.rs".to_owned(), "#![allow(dead_code)]\n"),
        };
        assert!(!folder.join(&file).exists(), "a second block for {file}");
        fs::write(folder.join(file), format!("{attribute}{block}")).unwrap();
    }
    // It builds the programs, too.
    cargo(&folder, &["test", "--offline", "--quiet", "--test", "page"]).await;

    let cloud = Cloud::new(5).await;
    cloud.put("a.txt", b"1\n2\n3\n").await;
    let mut run = Command::new(target().join("debug/of-the-page"));
    run.args(["run", "--queue-url", &cloud.queue_url]).current_dir(cloud.dir.path());
    run.envs(cloud.environment());
    let exited = Leasehold::start(run).expect_exit(0).await;
    let counted = exited.record("counted");
    assert_eq!((&counted["key"], &counted["lines"]), (&"a.txt".into(), &3.into()));
    assert_eq!(cloud.counts().await, (0, 0));

    let mut local = Command::new(target().join("debug/of-the-page"));
    local.args(["local", "src"]).current_dir(&folder);
    let exited = Leasehold::start(local).expect_exit(0).await;
    assert!(exited.stdout.contains("files succeeded"), "{}{}", exited.stdout, exited.stderr);
}

#[tokio::test]
async fn the_workers_of_the_page_need_only_the_dependencies_beside_them() {
    let (home, dependencies) = (tempfile::tempdir().unwrap(), blocks("toml"));
    let folder = package(home.path(), "workers-of-the-page", &[&dependencies[1]]).await;
    let workers: Vec<_> =
        blocks("rust").into_iter().filter(|block| is_of_a_worker(block)).collect();
    assert!(workers.len() > 1);
    for (number, worker) in workers.iter().enumerate() {
        fs::write(folder.join(format!("src/bin/worker{number}.rs")), worker).unwrap();
    }
    cargo(&folder, &["check", "--offline", "--quiet"]).await;
}
