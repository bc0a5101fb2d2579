//! The walls between the layers. That of the core is held by the compiler: it is a crate, and depends on nothing that could wait, read
//! a clock or reach the world.

use std::fs;
use std::path::{Path, PathBuf};

/// Each file below `folder` of the sources, as its path there and its code without comments.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = walkdir::WalkDir::new(root.join(folder)).into_iter().map(|entry| entry.expect("src is readable"));
    let files = files.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "rs"));
    let read = |path: &Path| {
        let text = fs::read_to_string(path).expect("src is readable");
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
    };
    let sources: Vec<_> = files
        .map(|entry| (entry.path().strip_prefix(&root).expect("below src").to_owned(), read(entry.path())))
        .collect();
    assert!(!sources.is_empty(), "nothing below src/{folder}");
    sources
}

fn assert_free_of(folder: &str, words: &[&str], except: &[&str]) {
    for (path, code) in sources(folder) {
        if except.iter().any(|file| path == Path::new(file)) {
            continue;
        }
        for word in words {
            assert!(!code.contains(word), "src/{} names {word}", path.display());
        }
    }
}

#[test]
fn ports_know_neither_the_work_nor_the_actors() {
    assert_free_of("ports", &["crate::work", "crate::actors", "crate::telemetry", "ractor"], &[]);
}

#[test]
fn the_work_knows_no_actors() {
    assert_free_of("work", &["crate::actors", "crate::telemetry", "ractor"], &[]);
}

#[test]
fn the_actors_know_the_world_through_its_ports_only() {
    let adapters = ["ports::memory", "ports::folder", "ports::aws", "ports::sqs", "ports::s3", "ports::process"];
    assert_free_of("actors", &adapters, &[]);
    assert_free_of("actors", &["aws_", "crate::telemetry", "crate::cli"], &[]);
}

#[test]
fn what_reports_and_what_is_configured_knows_no_actors() {
    for folder in ["telemetry", "check", "cli", "config", "cli.rs", "config.rs", "job_types.rs"] {
        assert_free_of(folder, &["crate::actors", "ractor::"], &[]);
    }
}

#[test]
fn each_sdk_has_one_home() {
    assert_free_of("", &["aws_sdk_sqs"], &["ports/sqs.rs"]);
    let s3 = ["ports/s3.rs", "ports/s3/probes.rs", "ports/s3/records.rs", "ports/s3/regions.rs", "ports/s3/upload.rs"];
    assert_free_of("", &["aws_sdk_s3"], &s3);
    let shared = ["ports/aws.rs", "ports/aws/answers.rs", "ports/aws/environment.rs", "ports/sqs.rs", "ports/s3.rs"];
    assert_free_of("", &["aws_config"], &shared);
}

#[test]
fn only_one_module_starts_or_signals_a_process() {
    let process = ["ports/process.rs", "ports/process/orphans.rs", "ports/process/guard.rs"];
    assert_free_of("", &["process::Command", "killpg", "signal::kill"], &process);
    assert_free_of("", &["sys::signal"], &[process[0], process[1], process[2], "app/signals.rs"]);
}

/// The files that README names under "Read the code in an hour", in its order, without their tests.
#[test]
fn the_hour() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let (_, hour) = readme.split_once("## Read the code in an hour").expect("the section");
    let files = hour.lines().filter_map(|line| {
        let (number, item) = line.split_once(". [`")?;
        number.parse::<u32>().ok()?;
        Some(item.split_once('`')?.0)
    });
    let lines = |file: &str| {
        let text = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        text.lines().take_while(|line| *line != "#[cfg(test)]").count()
    };
    let lines: Vec<_> = files.map(|file| (file, lines(file))).collect();
    assert!(lines.len() > 5, "{lines:?}");
    assert!(lines.iter().map(|(_, lines)| lines).sum::<usize>() < 2000, "{lines:?}");
}
