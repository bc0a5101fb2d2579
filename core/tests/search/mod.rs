//! The core, exhaustively: all that two pods can do to one message.
//!
//! Everything here is a value: the message and its record, as models of SQS's rules (those of `the
//! queue in memory`) and of S3's conditional writes; and two pods at a time, each with the three
//! machines that are shipped: a `Job`, a `Keeper` of the lease and a `Claim` of the record. What
//! may happen next is a list of [`Move`]s, and every one of them is tried, in every order.
//!
//! Nothing is timely here: a tick may pass between any two moves, so a process that is frozen, an
//! answer that is late and a timer that fires late are all among what is tried.
//!
//! From each world that is reached, if all goes well from there on, the message has to end: deleted
//! after a success, or as a dead letter.
//!
//! A search goes on until nothing is new, or as deep as CI has time for; `SEARCH_ALL=1 cargo test
//! search` takes away that limit.
//!
//! `message`, `pod` and `world` say what there is, `moves` and `acting` what happens, `invariants`
//! what must hold.

mod acting;
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
use leasehold_core::lifecycle::Policy;
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

/// What a stop has after the command's end.
const RESERVE: Duration = Duration::from_secs(10);

/// What is decided before the first move.
struct Setting {
    kind: Kind,
    policy: Policy,
    tick: Duration,
    /// Is the work recorded? Then the queue answers at once, and what may happen is what happens to
    /// the work, its record and the pods: the first search has all that may happen to the rest.
    records: bool,
    steps: Steps,
}

impl Setting {
    /// A lease of three ticks, so that a beat is due at each.
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

/// What a search has looked at.
#[derive(Debug)]
struct Searched {
    worlds: usize,
    /// How many moves it took to reach the last of them.
    depth: usize,
    /// Is there no other world?
    is_complete: bool,
}

/// As deep as this in CI, and to the end if all is asked for.
fn up_to(moves: usize) -> usize {
    if asked_for("SEARCH_ALL").is_some() { usize::MAX } else { moves }
}

/// Tries all moves from each world, breadth first, and looks at no world twice.
fn search(name: &str, setting: &Setting, faults: u32, deepest: usize) -> Searched {
    let start = World::new(faults);
    let mut seen = HashSet::from([start.key(setting)]);
    let (mut stopped, mut ends) = (HashSet::new(), HashSet::new());
    // How each world came to be, for whoever has to understand a failure.
    let mut trail: Vec<(usize, Move)> = vec![(0, Move::Tick)];
    let mut edge = vec![(0, start)];
    let mut depth = 0;
    while depth < deepest && !edge.is_empty() {
        let mut next = Vec::new();
        for (came, world) in edge {
            for chosen in world.moves(setting) {
                let after = world.after(setting, chosen).and_then(|after| {
                    let key = after.key(setting);
                    if !seen.insert(key) {
                        return Ok(());
                    }
                    if let Move::Of(i, PodMove::Stop) = chosen {
                        // What the other pod does is nothing to this.
                        let mut alone = world.clone();
                        alone.pods[1 - i] = None;
                        if stopped.insert(alone.key(setting)) {
                            check_stop(setting, &alone, i)?;
                        }
                    }
                    check_end(setting, &after, &mut ends)?;
                    trail.push((came, chosen));
                    next.push((trail.len() - 1, after));
                    Ok(())
                });
                if let Err(broken) = after {
                    let mut moves = vec![chosen];
                    let mut at = came;
                    while at != 0 {
                        moves.push(trail[at].1);
                        at = trail[at].0;
                    }
                    moves.reverse();
                    panic!("{name}: {broken}, after {} moves: {moves:?}", moves.len());
                }
            }
        }
        edge = next;
        depth += 1;
    }
    let searched = Searched { worlds: seen.len(), depth, is_complete: edge.is_empty() };
    let Searched { worlds, depth, is_complete } = searched;
    let faults = if faults == World::NO_LIMIT {
        "any faults".to_owned()
    } else {
        format!("{faults} faults")
    };
    let end = if is_complete { "all there are" } else { "as far as was asked for" };
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

/// Whatever may happen, in whatever order, as far as there is time for it.
#[test]
fn no_order_of_moves_breaks_a_guarantee() {
    let searched = search("standard", &Setting::new(), World::NO_LIMIT, 11);
    assert!(searched.worlds > 100_000, "{searched:?}");
}

/// One thing goes wrong, and each pod may be asked to stop. 13 moves are as far as to the success
/// of a second pod, after the first one was KILLed; with 43 there is nothing new.
#[test]
fn no_single_fault_breaks_a_guarantee() {
    let searched = search("standard", &Setting::new(), 1, up_to(13));
    assert!(searched.worlds > 120_000, "{searched:?}");
    let searched = search("FIFO", &Setting::fifo(), 1, up_to(9));
    assert!(searched.worlds > 5_000, "{searched:?}");
}

/// Nothing goes wrong, but all of it may take any time, and each pod may be asked to stop: all
/// worlds that there are.
#[test]
fn no_delay_breaks_a_guarantee() {
    let searched = search("standard", &Setting::new(), 0, usize::MAX);
    assert!(searched.is_complete && searched.worlds > 400_000, "{searched:?}");
    let searched = search("FIFO", &Setting::fifo(), 0, up_to(13));
    assert!(searched.worlds > 10_000, "{searched:?}");
}

#[test]
fn no_setting_breaks_a_guarantee() {
    let mut left_to_expire = Setting::new();
    left_to_expire.policy.limits.strategy = Strategy::Fixed(40 * S);
    left_to_expire.policy.limits.retry.retry = Retry::Expire;
    left_to_expire.policy.limits.retry.on_stop = OnStop::Expire;

    let mut twice = Setting::new();
    twice.policy.max_messages = 2;

    for (name, setting) in
        [("FIFO", Setting::fifo()), ("left to expire", left_to_expire), ("two messages", twice)]
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
    let searched = search("at the ceiling", &setting, 1, up_to(11));
    assert!(searched.worlds > 60_000, "{searched:?}");
}

/// Work that is recorded, and one fault: a KILL, a request to the store that is not answered (it
/// may come through all the same, then or later), or a limit that is over; and each pod may be
/// asked to stop. 16 moves are as far as to the success of a pod that took over from one that was
/// KILLed.
#[test]
fn no_single_fault_breaks_what_a_record_promises() {
    let searched = search("with records", &Setting::with_records(), 1, up_to(16));
    assert!(searched.worlds > 120_000, "{searched:?}");
}

/// Nothing goes wrong, but all of it may take any time: a pod that is frozen loses its record, and
/// comes back.
#[test]
fn no_delay_breaks_what_a_record_promises() {
    let searched = search("with records", &Setting::with_records(), 0, up_to(17));
    assert!(searched.worlds > 50_000, "{searched:?}");
}
