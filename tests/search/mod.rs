//! The core, exhaustively: all that two pods can do to one message, up to a stated number of steps.
//!
//! Everything here is a value: the message, as a model of SQS's rules (those of `ports/memory.rs`); and two pods at
//! a time, each a real [`Job`], with a real [`Lease`] and a real [`Completed`], whose hands are played here as
//! `actors/` do it. What may happen next is a list of [`Move`]s, and every one of them is tried, in every order.
//!
//! Nothing is timely here: a tick may pass between any two moves, so a process that is frozen, an answer that is late
//! and a timer that fires late are all among what is tried.
//!
//! `message`, `pod` and `world` say what there is, `moves` and `hands` what happens, `invariants` what must hold.

mod hands;
mod invariants;
mod message;
mod moves;
mod pod;
mod records;
mod steps;
mod world;

use std::collections::HashSet;
use std::time::Duration;

use leasehold::job::lease::Strategy;
use leasehold::job::lifecycle::Policy;
use leasehold::job::route::Limits;
use leasehold::job::verdict::{OnStop, Retry, RetryPolicy};
use leasehold::ports::memory::Kind;

use crate::support::journey::settings;

use invariants::{check_end, check_stop};
use moves::{Move, PodMove};
use steps::Steps;
use world::World;

const S: Duration = Duration::from_secs(1);

/// What is decided before the first move.
struct Setting {
    kind: Kind,
    policy: Policy,
    tick: Duration,
    /// Is the work recorded? Then the queue answers at once, and what may happen is what happens to the work, its record and
    /// the pods: the first search has all that may happen to the rest.
    records: bool,
    steps: Steps,
}

impl Setting {
    /// A lease of three ticks, so that a beat is due at each.
    fn new() -> Self {
        let Policy { limits, .. } = settings().policy;
        let retry = RetryPolicy { retry: Retry::Backoff { min: 10 * S, max: 10 * S }, ..limits.retry };
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

/// Tries all moves from each world, breadth first, and looks at no world twice. Returns how many there are.
fn search(setting: &Setting, faults: u32, depth: usize) -> usize {
    let start = World::new(faults);
    let mut seen = HashSet::from([start.key(setting)]);
    let mut stopped = HashSet::new();
    // How each world came to be, for whoever has to understand a failure.
    let mut trail: Vec<(usize, Move)> = vec![(0, Move::Tick)];
    let mut edge = vec![(0, start)];
    for _ in 0..depth {
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
                    if key % 16 == 0 {
                        check_end(setting, &after)?;
                    }
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
                    panic!("{broken}, after {} moves: {moves:?}", moves.len());
                }
            }
        }
        edge = next;
    }
    seen.len()
}

/// Whatever may happen, in whatever order: 11 moves, 110,000 worlds.
#[test]
fn no_order_of_moves_breaks_a_guarantee() {
    let worlds = search(&Setting::new(), World::NO_LIMIT, 11);
    assert!(worlds > 100_000, "only {worlds} worlds");
}

/// One thing goes wrong, and each pod may be asked to stop: 13 moves, 130,000 worlds. That is as far as to the success of
/// a second pod, after the first one was KILLed.
#[test]
fn no_single_fault_breaks_a_guarantee() {
    let worlds = search(&Setting::new(), 1, 13);
    assert!(worlds > 120_000, "only {worlds} worlds");
}

/// Nothing goes wrong, but all of it may take any time, and each pod may be asked to stop: 17 moves, 87,000 worlds.
#[test]
fn no_delay_breaks_a_guarantee() {
    let worlds = search(&Setting::new(), 0, 17);
    assert!(worlds > 80_000, "only {worlds} worlds");
}

/// 9 moves each; 22,000, 13,000 and 22,000 worlds.
#[test]
fn no_setting_breaks_a_guarantee() {
    let mut fifo = Setting::new();
    fifo.kind = Kind::Fifo;
    fifo.policy.fifo = true;

    let mut left_to_expire = Setting::new();
    left_to_expire.policy.limits.strategy = Strategy::Fixed(40 * S);
    left_to_expire.policy.limits.retry.retry = Retry::Expire;
    left_to_expire.policy.limits.retry.on_stop = OnStop::Expire;

    let mut twice = Setting::new();
    twice.policy.max_messages = 2;

    for (name, setting) in [("fifo", fifo), ("left to expire", left_to_expire), ("two messages", twice)] {
        let worlds = search(&setting, World::NO_LIMIT, 9);
        assert!(worlds > 10_000, "{name}: only {worlds} worlds");
    }
}

/// A lease of nine hours, so that the second beat meets the ceiling of twelve, and one fault: 11 moves, 77,000 worlds.
#[test]
fn the_ceiling_breaks_no_guarantee() {
    let hour = Duration::from_hours(1);
    let mut setting = Setting { tick: 3 * hour, ..Setting::new() };
    setting.policy.limits.visibility = 9 * hour;
    let worlds = search(&setting, 1, 11);
    assert!(worlds > 60_000, "only {worlds} worlds");
}

/// Work that is recorded, and one fault: a KILL, a request to the store that is not answered (it may come through all the
/// same, then or later), or a limit that is over; and each pod may be asked to stop. 16 moves, which is as far as to the success
/// of a pod that took over from one that was KILLed, and 138,000 worlds.
#[test]
fn no_single_fault_breaks_what_a_record_promises() {
    let setting = Setting { tick: 20 * S, records: true, ..Setting::new() };
    let worlds = search(&setting, 1, 16);
    assert!(worlds > 120_000, "only {worlds} worlds");
}

/// Nothing goes wrong, but all of it may take any time: a pod that is frozen loses its record, and comes back. 17 moves,
/// 57,000 worlds.
#[test]
fn no_delay_breaks_what_a_record_promises() {
    let setting = Setting { tick: 20 * S, records: true, ..Setting::new() };
    let worlds = search(&setting, 0, 17);
    assert!(worlds > 50_000, "only {worlds} worlds");
}
