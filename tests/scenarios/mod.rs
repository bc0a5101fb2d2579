//! Ways in which programs like this one lose messages, do work twice, hang, or delete failed work.
//!
//! `README.md` in this folder lists them: each comes from a real defect of a real program and has a
//! permanent number, which is part of its test's name. The tests use virtual time where possible,
//! real processes and a real server where necessary.

mod completion;
mod environment;
mod fetch;
mod lease;
mod on_success;
mod partial_state;
mod receive;
mod records;
mod stop;
mod work;

use std::collections::BTreeMap;

use leasehold::settings::resolve::RunConfig;
use leasehold::settings::{Action, Cli};
use serde_json::Value;

use crate::support::object_created;

/// A row without a test of its number must name an existing test.
#[test]
fn each_row_of_the_list_has_a_test_and_each_test_a_row() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = std::fs::read_to_string(root.join("tests/scenarios/README.md")).unwrap();
    let rows: BTreeMap<u32, &str> = list
        .lines()
        .filter_map(|line| Some((line.strip_prefix("| ")?.split(' ').next()?.parse().ok()?, line)))
        .collect();
    assert!(
        rows.keys().copied().eq(1..=u32::try_from(rows.len()).unwrap()),
        "a number is missing: {:?}",
        rows.keys()
    );

    let sources =
        ["tests", "src"].into_iter().flat_map(|folder| walkdir::WalkDir::new(root.join(folder)));
    let sources =
        sources.map(Result::unwrap).filter(|it| it.path().extension().is_some_and(|it| it == "rs"));
    let code: String = sources.map(|it| std::fs::read_to_string(it.path()).unwrap()).collect();
    let is_a_test = |number: u32| code.contains(&format!("fn s{number:02}_"));
    for (number, row) in &rows {
        // The row names a test, or its prefix, or a module of unit tests.
        let exists = |name: &str| {
            name.rsplit_once("::").is_some_and(|(_, last)| {
                code.contains(&format!("fn {}", last.trim_end_matches('…')))
                    || code.contains(&format!("mod {last};"))
            })
        };
        assert!(is_a_test(*number) || row.split('`').any(exists), "no test for this row: {row}");
    }
    for number in 1..200 {
        assert!(!is_a_test(number) || rows.contains_key(&number), "test s{number:02} has no row");
    }
}

/// One record of a notification.
fn record(key: &str) -> Value {
    let mut body: Value = serde_json::from_str(&object_created(key)).unwrap();
    body["Records"][0].take()
}

/// The settings that `leasehold run` derives from these flags, or its error.
pub fn configured(flags: &str) -> Result<RunConfig, String> {
    use clap::Parser;
    let start = ["leasehold", "run", "--queue-url", "http://localhost:4566/000000000000/q"];
    let words = start.into_iter().chain(flags.split_whitespace()).chain(["--", "true"]);
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    let Action::Run(args) = cli.action else { panic!("not a run") };
    RunConfig::try_from(*args).map_err(|error| error.to_string())
}
