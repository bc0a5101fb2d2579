//! What happened in a world; what the invariants are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// All that happened in a world.
pub struct Chronicle {
    /// None where the whole work is pretended.
    pub features: Option<Features>,
    pub started: Instant,
    /// In order, for whoever compares two runs of a world, or has to understand one.
    pub trace: Vec<String>,
    /// The object that each message is about.
    pub objects: BTreeMap<String, String>,
    /// By pod and message.
    pub seen: BTreeMap<(u32, String), Seen>,
    /// Which message a receipt handle is for.
    pub receipts: BTreeMap<String, String>,
    /// Who received a message last.
    pub holder: BTreeMap<String, u32>,
    /// When a pod was asked to stop.
    pub stops: BTreeMap<u32, Instant>,
    /// Commands that run now, by message.
    pub running: BTreeMap<String, Vec<u32>>,
    /// Until when a pod may believe that a message is its own, by pod and message.
    pub leases: BTreeMap<(u32, String), Instant>,
    /// The records as the store has them, by the object whose work they are about.
    pub records: BTreeMap<String, Record>,
    /// Each checkpoint that ever was in the store, by message, in order.
    pub saved: BTreeMap<String, Vec<Saved>>,
    pub broken: Vec<String>,
}

/// What the real work does beyond running a command.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// `--idempotency`.
    pub records: bool,
    /// `--output`.
    pub results: bool,
    /// `--checkpoint`.
    pub state: bool,
    /// `--checkpoint-interval`.
    pub interval: Option<Duration>,
}

/// What one pod did with one message.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// When it received the message last.
    pub received: Option<Instant>,
    /// Each end of its work: when it came, and whether it was a success that nobody had halted.
    pub ends: Vec<(Instant, bool)>,
    /// What the command has in its checkpoint directory.
    pub state: Option<State>,
    /// How long earlier deliveries worked on what the command goes on from.
    pub worked: Duration,
    /// When the command was started last.
    pub started: Option<Instant>,
    /// Does the command run, and was not told to end?
    pub at_work: bool,
    /// When it was told to end, if it was.
    pub halted: Option<Instant>,
    /// The results that the store has taken since the command's last start.
    pub published: BTreeSet<String>,
    /// Did its work end last before the pod was asked to stop?
    pub ended_before_the_stop: bool,
    /// Did a request for a result or a record fail since the message was received?
    pub store_failed: bool,
}

impl Seen {
    /// How long the command of this delivery has run, or ran.
    pub fn ran(&self) -> Duration {
        let started = self.started.expect("nothing is saved before a command has run");
        let ended = self.ends.iter().map(|(at, _)| *at).find(|at| *at >= started);
        ended.unwrap_or_else(Instant::now) - started
    }
}

/// What a command keeps in its checkpoint directory: who wrote it, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub receive: u32,
    pub steps: usize,
}

/// A checkpoint in the store.
#[derive(Debug, Clone)]
pub struct Saved {
    pub key: String,
    /// By which delivery.
    pub by: u32,
    /// `None` if nothing but its time was there to save.
    pub state: Option<State>,
    /// How long was worked until then, by all deliveries.
    pub worked: Duration,
    pub from: Instant,
    pub until: Option<Instant>,
}

/// A record in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub pod: u32,
    pub message: String,
    pub nonce: String,
    pub state: String,
}

impl Chronicle {
    pub fn of(features: Option<Features>) -> Self {
        Self {
            features,
            started: Instant::now(),
            trace: Vec::new(),
            objects: BTreeMap::new(),
            seen: BTreeMap::new(),
            receipts: BTreeMap::new(),
            holder: BTreeMap::new(),
            stops: BTreeMap::new(),
            running: BTreeMap::new(),
            leases: BTreeMap::new(),
            records: BTreeMap::new(),
            saved: BTreeMap::new(),
            broken: Vec::new(),
        }
    }

    pub fn note(&mut self, pod: u32, what: impl AsRef<str>) {
        let at = self.started.elapsed().as_millis();
        self.trace.push(format!("{at:>9} pod {pod} {}", what.as_ref()));
    }

    pub fn breaks(&mut self, pod: u32, what: impl AsRef<str>) {
        let at = self.started.elapsed();
        self.broken.push(format!("after {at:?}: pod {pod} {}", what.as_ref()));
    }

    pub fn received(&mut self, pod: u32, message: &str) {
        self.holder.insert(message.to_owned(), pod);
        let seen = self.seen(pod, message);
        // How its work ended before tells by its time that it was before.
        *seen = Seen {
            received: Some(Instant::now()),
            ends: std::mem::take(&mut seen.ends),
            ..Seen::default()
        };
    }

    pub fn features(&self) -> Features {
        self.features.unwrap_or_default()
    }

    pub fn seen(&mut self, pod: u32, message: &str) -> &mut Seen {
        self.seen.entry((pod, message.to_owned())).or_default()
    }

    /// The command that this pod runs for this message has ended.
    pub fn ended(&mut self, pod: u32, message: &str, how: &str, succeeded: bool) {
        self.note(
            pod,
            format!(
                "ends {message}: {how}, {}",
                if succeeded { "a success" } else { "no success" }
            ),
        );
        let is_before = !self.stops.contains_key(&pod);
        let seen = self.seen(pod, message);
        (seen.at_work, seen.ended_before_the_stop) = (false, is_before);
        seen.ends.push((Instant::now(), succeeded));
    }

    /// How the work on the message ended since it was received: once, and by a success that nobody
    /// had halted?
    pub fn has_succeeded(&mut self, pod: u32, message: &str) -> bool {
        let seen = self.seen(pod, message);
        let since = seen.received.expect("it was received");
        let ends: Vec<_> = seen.ends.iter().filter(|(at, _)| *at >= since).collect();
        matches!(ends[..], [(_, true)])
    }

    pub fn is_done(&self, object: &str) -> bool {
        self.records.get(object).is_some_and(|record| record.state == "done")
    }

    /// A checkpoint is in the store now, in place of the one with the same key.
    pub fn saved(&mut self, message: &str, saved: Saved) {
        self.dropped(message, &saved.key);
        self.saved.entry(message.to_owned()).or_default().push(saved);
    }

    /// A pod has read the checkpoint.
    pub fn restored(&mut self, pod: u32, message: &str, key: &str) {
        let there = self.saved.get(message).into_iter().flatten();
        let worked = there
            .filter(|saved| saved.key == key && saved.until.is_none())
            .map(|saved| saved.worked)
            .next();
        self.seen(pod, message).worked = worked.unwrap_or_default();
    }

    pub fn dropped(&mut self, message: &str, key: &str) {
        let all = self.saved.entry(message.to_owned()).or_default();
        for saved in all.iter_mut().filter(|saved| saved.key == key && saved.until.is_none()) {
            saved.until = Some(Instant::now());
        }
    }
}
