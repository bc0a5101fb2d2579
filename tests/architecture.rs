//! The walls between the layers. That of the core is held by the compiler: it is a crate, and
//! depends on nothing that could wait, read a clock or reach the world.

use std::fs;
use std::path::{Path, PathBuf};

/// Each file below `folder` of the sources, as its path there and its code without comments.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = walkdir::WalkDir::new(root.join(folder))
        .into_iter()
        .map(|entry| entry.expect("src is readable"));
    let files =
        files.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "rs"));
    let read = |path: &Path| {
        let text = fs::read_to_string(path).expect("src is readable");
        text.lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let sources: Vec<_> = files
        .map(|entry| {
            (entry.path().strip_prefix(&root).expect("below src").to_owned(), read(entry.path()))
        })
        .collect();
    assert!(!sources.is_empty(), "nothing below src/{folder}");
    sources
}

fn assert_free_of(folder: &str, words: &[&str], except: &[&str]) {
    for (path, code) in sources(folder) {
        if except.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        for word in words {
            assert!(!code.contains(word), "src/{} names {word}", path.display());
        }
    }
}

#[test]
fn ports_and_adapters_know_neither_the_work_nor_the_actors() {
    assert_free_of("ports", &["crate::adapters"], &[]);
    for folder in ["ports", "adapters"] {
        assert_free_of(
            folder,
            &["crate::work", "crate::actors", "crate::telemetry", "ractor"],
            &[],
        );
    }
}

#[test]
fn the_work_knows_no_actors() {
    assert_free_of(
        "work",
        &["crate::actors", "crate::adapters", "crate::telemetry", "ractor"],
        &[],
    );
}

#[test]
fn the_actors_know_the_world_through_its_ports_only() {
    assert_free_of(
        "actors",
        &["crate::adapters", "aws_", "crate::telemetry", "crate::settings"],
        &[],
    );
}

#[test]
fn what_reports_and_what_is_configured_knows_no_actors() {
    for folder in ["telemetry", "check", "settings"] {
        assert_free_of(folder, &["crate::actors", "ractor::"], &[]);
    }
}

#[test]
fn each_sdk_has_one_home() {
    // The log names the SDK's targets that it must not write.
    let home = &["adapters/aws.rs", "adapters/aws", "telemetry/logs.rs"];
    assert_free_of("", &["aws_sdk_sqs", "aws_sdk_s3", "aws_config"], home);
    assert_free_of("adapters/aws/sqs", &["aws_sdk_s3"], &[]);
    assert_free_of("adapters/aws/s3", &["aws_sdk_sqs"], &[]);
}

#[test]
fn only_one_module_starts_or_signals_a_process() {
    let process = ["adapters/process.rs", "adapters/process"];
    assert_free_of("", &["process::Command", "killpg", "signal::kill"], &process);
    assert_free_of("", &["sys::signal"], &[process[0], process[1], "app/signals.rs"]);
}

/// The files that docs/architecture.md names under "Read the code in an hour", in its order,
/// without their tests.
#[test]
fn the_hour() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let (_, hour) = page.split_once("## Read the code in an hour").expect("the section");
    let files = hour.lines().filter_map(|line| {
        let (number, item) = line.split_once(". [`")?;
        number.parse::<u32>().ok()?;
        Some(item.split_once('`')?.0)
    });
    let length = |file: &str| {
        let text =
            fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        text.split("#[cfg(test)]\n").next().map_or(0, str::len)
    };
    let lengths: Vec<_> = files.map(|file| (file, length(file))).collect();
    assert!(lengths.len() > 5, "{lengths:?}");
    // About 2,000 full lines of 45 characters: bytes do not change with the width of a line.
    assert!(lengths.iter().map(|(_, length)| length).sum::<usize>() < 90_000, "{lengths:?}");
}
