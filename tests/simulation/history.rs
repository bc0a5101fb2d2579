//! The history of a world, from which the invariants are checked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leasehold::job::delivery::ReceiptHandle;
use tokio::time::Instant;

/// The events of a world.
pub struct History {
    /// `None` if the whole work is fake.
    pub features: Option<Features>,
    pub started: Instant,
    /// All events in order, to compare two runs of a world, or to understand one.
    pub trace: Vec<String>,
    /// The object of each message.
    pub objects: BTreeMap<String, String>,
    /// By pod and message.
    pub works: BTreeMap<(u32, String), WorkHistory>,
    /// The message of each receipt handle.
    pub receipts: BTreeMap<String, String>,
    /// The pod that got each receipt handle.
    pub owners: BTreeMap<String, u32>,
    /// The last receiver of each message.
    pub holder: BTreeMap<String, u32>,
    /// When each pod was asked to stop.
    pub stops: BTreeMap<u32, Instant>,
    /// Running commands, by message.
    pub running: BTreeMap<String, Vec<u32>>,
    /// The end of each lease, by pod and message.
    pub leases: BTreeMap<(u32, String), Instant>,
    /// The records in the store, by object.
    pub records: BTreeMap<String, Record>,
    /// All checkpoints that were ever in the store, by message, in order.
    pub saved: BTreeMap<String, Vec<Saved>>,
    pub violations: Vec<String>,
}

/// The features of the real work beyond running a command.
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

/// The work of one pod on one message.
#[derive(Debug, Default, Clone)]
pub struct WorkHistory {
    /// The time of its last receive of the message.
    pub received: Option<Instant>,
    /// Each end of its work: the time, and whether it was a success without a halt.
    pub ends: Vec<(Instant, bool)>,
    /// The content of the command's checkpoint directory.
    pub state: Option<State>,
    /// The time of earlier deliveries that led to the restored checkpoint.
    pub worked: Duration,
    /// The last start of the command.
    pub started: Option<Instant>,
    /// Whether the command runs without a halt.
    pub at_work: bool,
    /// When the command was halted, if it was.
    pub halted: Option<Instant>,
    /// The results that the store accepted since the command's last start.
    pub published: BTreeSet<String>,
    /// Whether the last end of the work was before the stop of the pod.
    pub ended_before_the_stop: bool,
    /// Whether a request for a result or a record failed since the last receive.
    pub store_failed: bool,
}

impl WorkHistory {
    /// How long the command of this delivery has been running, or ran.
    pub fn ran(&self) -> Duration {
        let started = self.started.expect("a command has started");
        let ended = self.ends.iter().map(|(at, _)| *at).find(|at| *at >= started);
        ended.unwrap_or_else(Instant::now) - started
    }
}

/// The state in a checkpoint directory: the delivery that wrote it, and its number of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub receive: u32,
    pub steps: usize,
}

/// A checkpoint in the store.
#[derive(Debug, Clone)]
pub struct Saved {
    pub key: String,
    /// The delivery that saved it.
    pub by: u32,
    /// `None` if only the time was saved.
    pub state: Option<State>,
    /// The work time of all deliveries until then.
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

impl History {
    pub fn of(features: Option<Features>) -> Self {
        Self {
            features,
            started: Instant::now(),
            trace: Vec::new(),
            objects: BTreeMap::new(),
            works: BTreeMap::new(),
            receipts: BTreeMap::new(),
            owners: BTreeMap::new(),
            holder: BTreeMap::new(),
            stops: BTreeMap::new(),
            running: BTreeMap::new(),
            leases: BTreeMap::new(),
            records: BTreeMap::new(),
            saved: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    pub fn log(&mut self, pod: u32, what: impl AsRef<str>) {
        let at = self.started.elapsed().as_millis();
        self.trace.push(format!("{at:>9} pod {pod} {}", what.as_ref()));
    }

    pub fn violation(&mut self, pod: u32, what: impl AsRef<str>) {
        let at = self.started.elapsed();
        self.violations.push(format!("after {at:?}: pod {pod} {}", what.as_ref()));
    }

    pub fn received(&mut self, pod: u32, message: &str) {
        self.holder.insert(message.to_owned(), pod);
        let work = self.work_of(pod, message);
        // Earlier ends are recognised by their time.
        *work = WorkHistory {
            received: Some(Instant::now()),
            ends: std::mem::take(&mut work.ends),
            ..WorkHistory::default()
        };
    }

    /// The pod and the message of a receipt handle, if a run got it.
    pub fn owner(&self, receipt: &ReceiptHandle) -> Option<(u32, String)> {
        let pod = self.owners.get(receipt.expose())?;
        Some((*pod, self.receipts[receipt.expose()].clone()))
    }

    pub fn features(&self) -> Features {
        self.features.unwrap_or_default()
    }

    pub fn work_of(&mut self, pod: u32, message: &str) -> &mut WorkHistory {
        self.works.entry((pod, message.to_owned())).or_default()
    }

    /// The pod's command for this message has ended.
    pub fn ended(&mut self, pod: u32, message: &str, how: &str, succeeded: bool) {
        self.log(
            pod,
            format!(
                "ends {message}: {how}, {}",
                if succeeded { "a success" } else { "not a success" }
            ),
        );
        let is_before = !self.stops.contains_key(&pod);
        let work = self.work_of(pod, message);
        (work.at_work, work.ended_before_the_stop) = (false, is_before);
        work.ends.push((Instant::now(), succeeded));
    }

    /// Whether the work on the message ended once since its receive, by a success without a halt.
    pub fn has_succeeded(&mut self, pod: u32, message: &str) -> bool {
        let work = self.work_of(pod, message);
        let since = work.received.expect("a received message");
        let ends: Vec<_> = work.ends.iter().filter(|(at, _)| *at >= since).collect();
        matches!(ends[..], [(_, true)])
    }

    pub fn is_done(&self, object: &str) -> bool {
        self.records.get(object).is_some_and(|record| record.state == "done")
    }

    /// A checkpoint is now in the store; it replaces the one with the same key.
    pub fn saved(&mut self, message: &str, saved: Saved) {
        self.deleted(message, &saved.key);
        self.saved.entry(message.to_owned()).or_default().push(saved);
    }

    /// A pod has read the checkpoint.
    pub fn restored(&mut self, pod: u32, message: &str, key: &str) {
        let there = self.saved.get(message).into_iter().flatten();
        let worked = there
            .filter(|saved| saved.key == key && saved.until.is_none())
            .map(|saved| saved.worked)
            .next();
        self.work_of(pod, message).worked = worked.unwrap_or_default();
    }

    pub fn deleted(&mut self, message: &str, key: &str) {
        let all = self.saved.entry(message.to_owned()).or_default();
        for saved in all.iter_mut().filter(|saved| saved.key == key && saved.until.is_none()) {
            saved.until = Some(Instant::now());
        }
    }
}
