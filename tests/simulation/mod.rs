//! Thousands of random worlds: the real actors, a queue in memory, virtual time.
//!
//! In each, a few messages, and pods that are started as KEDA would, stopped and KILLed at any
//! instant, with a queue that fails, is slow, loses answers. In some of them the work is the real
//! one of `work/`, with records, checkpoints and results in a store that does the same, and only
//! the command pretends.
//!
//! A seed says everything about a world, so a failing one is replayed with `SEED=… cargo test
//! simulation`, which tells what happened there; `SEEDS=100000` looks at more of them.
//!
//! `world` says what there is and starts the pods, `queue`, `store` and `command` are what they
//! meet, `chronicle` is what happened, and `invariants` what must hold.

mod chance;
mod chronicle;
mod command;
mod invariants;
mod queue;
mod store;
mod world;

use crate::support::asked_for;
use world::world;

/// What happened in the world of this seed, and what was broken there.
fn of_seed(seed: u64) -> (Vec<String>, Vec<String>) {
    // What is done on other threads, with files, is waited for: one at a time, and heard of only
    // when all tasks idle.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .global_queue_interval(u32::MAX)
        .build()
        .unwrap();
    // The pauses between tries are jittered by this one.
    fastrand::seed(seed);
    runtime.block_on(async { tokio::spawn(world(seed)).await.unwrap() })
}

#[test]
fn no_world_loses_a_message_or_breaks_a_guarantee() {
    let seeds = match asked_for("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked_for("SEEDS").unwrap_or(2000),
    };
    let mut failed = Vec::new();
    for seed in seeds {
        let (happened, broken) = of_seed(seed);
        if asked_for("SEED").is_some() {
            println!("{}", happened.join("\n"));
        }
        if !broken.is_empty() {
            failed.push(format!("SEED={seed}\n  {}", broken.join("\n  ")));
        }
        if failed.len() == 5 {
            break;
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Or else no failure could be replayed.
#[test]
fn the_same_seed_is_the_same_world() {
    for seed in 0..40 {
        let ((once, _), (again, _)) = (of_seed(seed), of_seed(seed));
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
}
