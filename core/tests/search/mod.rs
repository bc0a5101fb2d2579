//! An exhaustive search of the core: all that two pods can do to one message.
//!
//! Everything here is a value: the message and its record, as models of SQS's rules (those of the
//! queue in memory) and of S3's conditional writes; and two pods at a time, each with the three
//! state machines of the program: a `Job`, a `Keeper` of the lease and a `Claim` of the record. The
//! possible next steps are a list of [`Move`]s, and the search tries every one, in every order.
//!
//! A tick may pass between any two moves, so the search includes a frozen process, a late answer
//! and a late timer.
//!
//! From each reached world, without further faults, the message must end: deleted after a success,
//! or as a dead letter.
//!
//! A search ends when it finds no new world, or at a depth that CI has time for; `SEARCH_ALL=1
//! cargo test search` removes that limit.
//!
//! `message`, `pod` and `world` hold the state, `moves` and `acting` change it, `invariants` checks
//! it. `batch` searches two messages of one pod whose calls go together.

mod acting;
mod batch;
mod invariants;
mod message;
mod moves;
mod pod;
mod records;
mod steps;
mod world;

use std::collections::HashSet;
use std::time::Duration;

use leasehold_core::lease::Strategy;
use leasehold_core::policy::Policy;
use leasehold_core::route::Limits;
use leasehold_core::verdict::{OnStop, Retry, RetryPolicy};
use message::Kind;

use crate::support::asked_for;
use crate::support::settings;

use invariants::{check_end, check_stop};
use moves::{Move, PodMove};
use steps::Steps;
use world::World;

const S: Duration = Duration::from_secs(1);

/// The time of a stop after the command's end.
const RESERVE: Duration = Duration::from_secs(10);

/// The settings of a search.
struct Setting {
    kind: Kind,
    policy: Policy,
    tick: Duration,
    /// Is the work recorded? Then the queue answers immediately, and all moves concern the work,
    /// its record and the pods. The searches without records cover the queue.
    records: bool,
    steps: Steps,
}

impl Setting {
    /// A lease of three ticks, so that an extension is due at each.
    fn new() -> Self {
        let Policy { limits, .. } = settings().policy;
        let retry =
            RetryPolicy { retry: Retry::Backoff { min: 10 * S, max: 10 * S }, ..limits.retry };
        let limits = Limits { visibility: 30 * S, max_duration: 60 * S, retry, ..limits };
        Self {
            kind: Kind::Standard,
            policy: Policy { limits, ..settings().policy },
            tick: 10 * S,
            records: false,
            steps: Steps::default(),
        }
    }

    fn visibility(&self) -> Duration {
        self.policy.limits.visibility
    }

    /// No message is ever hidden for longer than this.
    fn longest_hidden(&self) -> Duration {
        match self.policy.limits.strategy {
            Strategy::Heartbeat => self.visibility(),
            Strategy::Fixed(length) => length,
        }
    }
}

/// The result of a search.
#[derive(Debug)]
struct Searched {
    worlds: usize,
    /// The number of moves to the last of them.
    depth: usize,
    /// Were all worlds reached?
    is_complete: bool,
}

/// The depth in CI; unlimited with `SEARCH_ALL`.
fn depth_limit(moves: usize) -> usize {
    if asked_for("SEARCH_ALL").is_some() { usize::MAX } else { moves }
}

/// Tries all moves from each world, breadth first, and each world once.
fn search(name: &str, setting: &Setting, faults: u32, max_depth: usize) -> Searched {
    let start = World::new(faults);
    let mut seen = HashSet::from([start.key(setting)]);
    let (mut stopped, mut ends) = (HashSet::new(), HashSet::new());
    // The path to each world, for the report of a failure.
    let mut trail: Vec<(usize, Move)> = vec![(0, Move::Tick)];
    let mut frontier = vec![(0, start)];
    let mut depth = 0;
    while depth < max_depth && !frontier.is_empty() {
        let mut next = Vec::new();
        for (parent, world) in frontier {
            for chosen in world.moves(setting) {
                let after = world.after(setting, chosen).and_then(|after| {
                    let key = after.key(setting);
                    if !seen.insert(key) {
                        return Ok(());
                    }
                    if let Move::Of(i, PodMove::Stop) = chosen {
                        // The other pod does not matter for this check.
                        let mut single = world.clone();
                        single.pods[1 - i] = None;
                        if stopped.insert(single.key(setting)) {
                            check_stop(setting, &single, i)?;
                        }
                    }
                    check_end(setting, &after, &mut ends)?;
                    trail.push((parent, chosen));
                    next.push((trail.len() - 1, after));
                    Ok(())
                });
                if let Err(broken) = after {
                    let mut moves = vec![chosen];
                    let mut at = parent;
                    while at != 0 {
                        moves.push(trail[at].1);
                        at = trail[at].0;
                    }
                    moves.reverse();
                    panic!("{name}: {broken}, after {} moves: {moves:?}", moves.len());
                }
            }
        }
        frontier = next;
        depth += 1;
    }
    let searched = Searched { worlds: seen.len(), depth, is_complete: frontier.is_empty() };
    let Searched { worlds, depth, is_complete } = searched;
    let faults = if faults == World::NO_LIMIT {
        "any faults".to_owned()
    } else {
        format!("{faults} faults")
    };
    let end = if is_complete { "complete" } else { "up to the limit" };
    println!("{name}, {faults}: {worlds} worlds within {depth} moves, {end}");
    searched
}

impl Setting {
    fn fifo() -> Self {
        let mut fifo = Self::new();
        fifo.kind = Kind::Fifo;
        fifo.policy.fifo = true;
        fifo
    }

    fn with_records() -> Self {
        Self { tick: 20 * S, records: true, ..Self::new() }
    }
}

/// Any number of faults, in any order, to a limited depth.
#[test]
fn no_order_of_moves_breaks_a_guarantee() {
    let searched = search("standard", &Setting::new(), World::NO_LIMIT, 11);
    assert!(searched.worlds > 100_000, "{searched:?}");
}

/// One fault, and each pod may be asked to stop. 13 moves reach the success of a second pod after
/// the first one was KILLed; after 43 moves, no new world appears.
#[test]
fn no_single_fault_breaks_a_guarantee() {
    let searched = search("standard", &Setting::new(), 1, depth_limit(13));
    assert!(searched.worlds > 120_000, "{searched:?}");
    let searched = search("FIFO", &Setting::fifo(), 1, depth_limit(9));
    assert!(searched.worlds > 5_000, "{searched:?}");
}

/// No faults, but everything may take any time, and each pod may be asked to stop: all worlds.
#[test]
fn no_delay_breaks_a_guarantee() {
    let searched = search("standard", &Setting::new(), 0, usize::MAX);
    assert!(searched.is_complete && searched.worlds > 400_000, "{searched:?}");
    let searched = search("FIFO", &Setting::fifo(), 0, depth_limit(13));
    assert!(searched.worlds > 10_000, "{searched:?}");
}

#[test]
fn no_setting_breaks_a_guarantee() {
    let mut expiring = Setting::new();
    expiring.policy.limits.strategy = Strategy::Fixed(40 * S);
    expiring.policy.limits.retry.retry = Retry::Expire;
    expiring.policy.limits.retry.on_stop = OnStop::Expire;

    let mut twice = Setting::new();
    twice.policy.max_messages = 2;

    for (name, setting) in
        [("FIFO", Setting::fifo()), ("expiring", expiring), ("two messages", twice)]
    {
        let searched = search(name, &setting, World::NO_LIMIT, 9);
        assert!(searched.worlds > 10_000, "{searched:?}");
    }
}

/// A lease of nine hours, so that the second extension meets the ceiling of twelve, and one fault.
#[test]
fn the_ceiling_breaks_no_guarantee() {
    let hour = Duration::from_hours(1);
    let mut setting = Setting { tick: 3 * hour, ..Setting::new() };
    setting.policy.limits.visibility = 9 * hour;
    let searched = search("at the ceiling", &setting, 1, depth_limit(11));
    assert!(searched.worlds > 60_000, "{searched:?}");
}

/// Recorded work, and one fault: a KILL, a request to the store without an answer (it may still
/// succeed, then or later), or a limit that has expired; and each pod may be asked to stop. 16
/// moves reach the success of a pod that took over from one that was KILLed.
#[test]
fn no_single_fault_breaks_the_guarantees_of_a_record() {
    let searched = search("with records", &Setting::with_records(), 1, depth_limit(16));
    assert!(searched.worlds > 120_000, "{searched:?}");
}

/// No faults, but everything may take any time: a frozen pod loses its record, and resumes.
#[test]
fn no_delay_breaks_the_guarantees_of_a_record() {
    let searched = search("with records", &Setting::with_records(), 0, depth_limit(17));
    assert!(searched.worlds > 50_000, "{searched:?}");
}
