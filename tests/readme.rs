//! The README's table of outcomes and exit codes matches the program.

use std::collections::BTreeMap;

use leasehold::job::outcome::NoWorkReason;
use leasehold::job::report::{keep_reasons, outcome_label};
use leasehold::job::run_outcome::{ReceiveFailure, RunOutcome};
use leasehold::job::verdict::{Completion, Return, Settlement};

/// Every settlement of a message, and its exit code.
fn settlements() -> Vec<(Settlement, u8)> {
    let completions = [
        Completion::Succeeded,
        Completion::AlreadyDone,
        Completion::NothingToDo(NoWorkReason::TestEvent),
        Completion::NothingToDo(NoWorkReason::Ignored),
        Completion::NothingToDo(NoWorkReason::ObjectsGone),
    ];
    let deleted =
        completions.map(|why| (Settlement::Deleted(why), RunOutcome::Finished.exit_code()));
    let kept = keep_reasons().into_iter().map(|why| {
        let exit_code = RunOutcome::Kept(why.clone()).exit_code();
        (Settlement::Kept(why, Return::Unknown), exit_code)
    });
    deleted.into_iter().chain(kept).collect()
}

#[test]
fn each_exit_code_has_its_outcomes() {
    let mut codes: BTreeMap<u8, Vec<&str>> = BTreeMap::new();
    for (settlement, exit_code) in settlements() {
        codes.entry(exit_code).or_default().push(outcome_label(&settlement));
    }
    let why = String::new;
    for failure in [ReceiveFailure::GaveUp(why()), ReceiveFailure::Misconfigured(why())] {
        codes.entry(RunOutcome::ReceiveFailed(failure).exit_code()).or_default();
    }
    for outcomes in codes.values_mut() {
        outcomes.sort_unstable();
    }

    let readme = include_str!("../README.md");
    let (_, table) = readme
        .split_once("| code | means | outcomes |\n|---|---|---|\n")
        .expect("the table of exit codes");
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let documented: BTreeMap<u8, Vec<&str>> = rows
        .map(|row| {
            let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            let mut outcomes: Vec<_> = cells[2].split('`').skip(1).step_by(2).collect();
            outcomes.sort_unstable();
            (cells[0].parse().unwrap(), outcomes)
        })
        .collect();
    assert_eq!(documented, codes);
}
