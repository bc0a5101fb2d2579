//! Thousands of random worlds: the real actors, an in-memory queue, virtual time.
//!
//! Each world has a few messages, pods that are started as by KEDA, stopped and KILLed at any
//! instant, and a queue that fails, is slow, or loses answers. In some worlds the work is the real
//! one of `work/`, with records, checkpoints and results in a store with the same faults, and only
//! the command is fake.
//!
//! A seed determines its world, so `SEED=… cargo test simulation` replays a failed one and prints
//! its trace; `SEEDS=100000` runs more worlds.
//!
//! `world` sets up a world and starts the pods, `queue`, `store` and `command` are their
//! environment, `history` records the events, and `invariants` checks them.

mod chance;
mod command;
mod history;
mod invariants;
mod queue;
mod store;
mod world;

use crate::support::asked_for;
use world::world;

/// Runs the world of this seed; returns its trace and its violations.
fn run_seed(seed: u64) -> (Vec<String>, Vec<String>) {
    // File operations on other threads must be deterministic: one at a time, and their results are
    // seen only when all tasks are idle.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .global_queue_interval(u32::MAX)
        .build()
        .unwrap();
    // This generator makes the jitter of the retries.
    fastrand::seed(seed);
    runtime.block_on(async { tokio::spawn(world(seed)).await.unwrap() })
}

#[test]
fn no_world_loses_a_message_or_violates_an_invariant() {
    let seeds = match asked_for("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked_for("SEEDS").unwrap_or(2000),
    };
    let mut failed = Vec::new();
    for seed in seeds {
        let (trace, violations) = run_seed(seed);
        if asked_for("SEED").is_some() {
            println!("{}", trace.join("\n"));
        }
        if !violations.is_empty() {
            failed.push(format!("SEED={seed}\n  {}", violations.join("\n  ")));
        }
        if failed.len() == 5 {
            break;
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Otherwise no failure could be replayed. Worlds with checkpoints are left out: they are packed on
/// threads, whose end has no order among the other events of its millisecond.
#[test]
fn the_same_seed_gives_the_same_world() {
    let mut compared = 0;
    for seed in 0..60 {
        let ((once, _), (again, _)) = (run_seed(seed), run_seed(seed));
        if once.iter().any(|line| line.contains(".tar")) {
            continue;
        }
        compared += 1;
        let differs = once.iter().zip(&again).position(|(once, again)| once != again);
        if let Some(at) = differs {
            panic!("SEED={seed} differs at {at}: {} or {}", once[at], again[at]);
        }
        assert!(
            once.len() == again.len() && once.len() > 3,
            "SEED={seed}: {} and {}",
            once.len(),
            again.len()
        );
    }
    assert!(compared > 30, "only {compared} worlds");
}
