//! The boundaries between the layers. The core is a separate crate, whose dependencies do not wait and
//! do no I/O; clippy refuses the functions of the standard library that do (`core/clippy.toml`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each source file below `folder`, as its path and its code without comments.
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

fn assert_without(folder: &str, words: &[&str], except: &[&str]) {
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
fn ports_and_adapters_use_neither_the_work_nor_the_actors() {
    assert_without("ports", &["crate::adapters"], &[]);
    for folder in ["ports", "adapters"] {
        assert_without(
            folder,
            &["crate::work", "crate::actors", "crate::telemetry", "ractor"],
            &[],
        );
    }
}

#[test]
fn the_work_does_not_use_the_actors() {
    assert_without(
        "work",
        &["crate::actors", "crate::adapters", "crate::telemetry", "ractor"],
        &[],
    );
}

#[test]
fn the_actors_use_only_the_ports() {
    assert_without(
        "actors",
        &["crate::adapters", "aws_", "crate::telemetry", "crate::settings"],
        &[],
    );
}

#[test]
fn telemetry_and_settings_do_not_use_the_actors() {
    for folder in ["telemetry", "check", "settings"] {
        assert_without(folder, &["crate::actors", "ractor::"], &[]);
    }
}

#[test]
fn the_wiring_and_the_library_do_not_use_the_command_line() {
    assert_without("wiring", &["crate::app", "crate::local", "clap::"], &[]);
    assert_without("library", &["crate::local", "crate::app", "clap::"], &["library/program.rs"]);
}

#[test]
fn each_sdk_is_used_in_one_place() {
    // The log names the SDK's targets that it must not write.
    let home = &["adapters/aws.rs", "adapters/aws", "telemetry/logs.rs"];
    assert_without("", &["aws_sdk_sqs", "aws_sdk_s3", "aws_config"], home);
    assert_without("adapters/aws/sqs", &["aws_sdk_s3"], &[]);
    assert_without("adapters/aws/s3", &["aws_sdk_sqs"], &[]);
}

#[test]
fn only_one_module_starts_or_signals_a_process() {
    let process = ["adapters/process.rs", "adapters/process"];
    assert_without("", &["process::Command", "killpg", "signal::kill"], &process);
    assert_without("", &["sys::signal"], &[process[0], process[1], "app/signals.rs"]);
}

/// A program that embeds a `Worker` does not compile what only the command line needs.
#[test]
fn a_worker_needs_no_crate_of_the_command_line() {
    let crates = |features: &str| {
        let mut tree = Command::new(env!("CARGO"));
        tree.args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none"]);
        tree.args(["--format", "{p}", "--no-default-features", "--features", features]);
        let tree = tree.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let names = String::from_utf8(tree.stdout).unwrap();
        names.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    };
    let worker: BTreeSet<String> = crates("aws");
    assert!(worker.contains("aws-sdk-sqs") && worker.contains("prometheus"), "{worker:?}");
    for of_the_command_line in [
        "anstream",
        "clap",
        "clap_builder",
        "comfy-table",
        "console",
        "indicatif",
        "schemars",
        "serde-saphyr",
        "toml",
        "tracing-subscriber",
    ] {
        assert!(!worker.contains(of_the_command_line), "{of_the_command_line}");
    }
    // The pod's command line needs neither bars nor a schema.
    let pod: BTreeSet<String> = crates("cli,aws,job-types,listen,pushgateway");
    assert!(pod.contains("clap") && pod.contains("serde-saphyr"), "{pod:?}");
    for of_others in ["comfy-table", "indicatif", "schemars"] {
        assert!(!pod.contains(of_others), "{of_others}");
    }
}

/// The files that docs/architecture.md names under "Read the code in an hour", in its order,
/// without their tests.
#[test]
fn the_code_can_be_read_in_an_hour() {
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
