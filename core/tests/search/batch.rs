//! The calls of two runs of one pod, as `adapters/batches.rs` combines them: two messages, and
//! requests with an entry for each. Every entry has its own result.
//!
//! Each run is a pod of its own in a world with its own message. What they share is here: requests,
//! faults, and the pod's stop and end. The search without batches covers two pods and one message;
//! here, another pod only receives a message that is visible.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::invariants::{Broken, check_end};
use super::message::{QueueState, Request};
use super::moves::{Move, PodMove};
use super::pod::{Command, Pod};
use super::world::World;
use super::{Setting, asked_for};

/// The complete state.
#[derive(Clone)]
struct Batch {
    /// Each with one run and its message.
    runs: [World; 2],
    /// The requests in flight, with their entries. Other calls wait.
    requests: Vec<Entries>,
    faults: u32,
}

/// Which runs have an entry.
type Entries = [bool; 2];

const BOTH: Entries = [true, true];
const ALL: [Entries; 4] = [[false, false], [true, false], [false, true], BOTH];

/// A possible next step.
#[derive(Clone, Copy, Debug)]
enum Step {
    Tick,
    /// The receive of all runs that wait for a message is answered with these messages.
    Received([bool; 2]),
    /// Its answer is lost, with these messages.
    ReceiveIsLost([bool; 2]),
    /// Something that concerns one run alone.
    Of(usize, PodMove),
    /// A call that waits is sent, with those of its kind.
    Send(usize),
    /// The queue gets a request; the entry of this run fails.
    Arrives(usize, Option<usize>),
    Answered(usize),
    /// No answer comes, or a run gives the request up: this ends it for all of its entries.
    IsLost(usize),
    StrayArrives(usize, usize),
    AnotherPodReceives(usize),
    Stop,
    Kill,
}

impl Batch {
    /// A pod with two runs, which wait for a message.
    fn new(setting: &Setting, faults: u32) -> Self {
        // Its own faults are counted here.
        let started = World::new(World::NO_LIMIT).after(setting, Move::Start(0));
        let run = started.expect("a start breaks no guarantee");
        Self { runs: [run.clone(), run], requests: Vec::new(), faults }
    }

    fn run(&self, i: usize) -> Option<&Pod> {
        self.runs[i].pods[0].as_ref()
    }

    fn request(&self, i: usize) -> Option<Request> {
        self.run(i)?.holding.as_ref()?.request()
    }

    /// Does its call wait for a request?
    fn waits(&self, i: usize) -> bool {
        self.request(i).is_some() && !self.requests.iter().any(|entries| entries[i])
    }

    /// The runs that wait for a message.
    fn polls(&self) -> Entries {
        [0, 1].map(|i| self.run(i).is_some_and(|run| run.poll.is_some()))
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = vec![Step::Tick];
        let can_fail = self.faults > 0;
        let polls = self.polls();
        let is_visible = |i: usize| self.runs[i].message.queue_state == QueueState::Visible;
        if polls != [false; 2] {
            // A run gets the message of its own world.
            let can_bring = [0, 1].map(|i| polls[i] && is_visible(i));
            for brings in ALL.into_iter().filter(|it| (0..2).all(|i| !it[i] || can_bring[i])) {
                steps.push(Step::Received(brings));
                if can_fail {
                    steps.push(Step::ReceiveIsLost(brings));
                }
            }
        }
        for (number, entries) in self.requests.iter().enumerate() {
            let has_arrived = (0..2).any(|i| entries[i] && self.has_answer(i));
            steps.push(if has_arrived {
                Step::Answered(number)
            } else {
                Step::Arrives(number, None)
            });
            if can_fail {
                steps.push(Step::IsLost(number));
                let failing = (0..2).filter(|i| entries[*i] && !has_arrived);
                steps.extend(failing.map(|i| Step::Arrives(number, Some(i))));
            }
        }
        for i in 0..2 {
            steps.extend((0..self.runs[i].strays.len()).map(|stray| Step::StrayArrives(i, stray)));
            if self.waits(i) && !(i == 1 && self.waits(0) && self.are_of_one_kind()) {
                steps.push(Step::Send(i));
            }
            // Before a receive it would be another search.
            if is_visible(i) && self.runs[i].message.receives > 0 {
                steps.push(Step::AnotherPodReceives(i));
            }
            let Some(run) = self.run(i) else { continue };
            if run.command != Command::None {
                steps.push(Step::Of(i, PodMove::CommandExits(0)));
                steps.push(Step::Of(i, PodMove::CommandExits(1)));
            }
            if run.limit.is_some() && can_fail {
                steps.push(Step::Of(i, PodMove::LimitExpires));
            }
        }
        let mut runs = (0..2).filter_map(|i| self.run(i));
        if runs.clone().any(|run| !run.stopped) {
            steps.push(Step::Stop);
        }
        if can_fail && runs.next().is_some() {
            steps.push(Step::Kill);
        }
        steps
    }

    fn has_answer(&self, i: usize) -> bool {
        let holding = self.run(i).and_then(|run| run.holding.as_ref());
        holding.is_some_and(|holding| holding.answer.is_some())
    }

    /// Are the calls of both runs deletes, or changes of the visibility?
    fn are_of_one_kind(&self) -> bool {
        let is_delete = |i| self.request(i).map(|request| request == Request::Delete);
        is_delete(0) == is_delete(1)
    }

    fn deletes_both(&self) -> bool {
        self.requests.contains(&BOTH) && (0..2).all(|i| self.request(i) == Some(Request::Delete))
    }

    fn after(&self, setting: &Setting, step: Step) -> Result<Self, Broken> {
        let mut batch = self.clone();
        match step {
            Step::Tick => {
                for i in 0..2 {
                    batch.act(setting, i, Move::Tick)?;
                }
            }
            Step::Received(brings) => batch.received(setting, brings, PodMove::PollIsAnswered)?,
            Step::ReceiveIsLost(brings) => {
                batch.faults -= 1;
                batch.received(setting, brings, PodMove::PollFails)?;
            }
            Step::Of(i, chosen) => {
                batch.faults -= u32::from(chosen.is_fault());
                batch.act(setting, i, Move::Of(0, chosen))?;
            }
            Step::Send(i) => batch.send(setting, i)?,
            Step::Arrives(number, failing) => {
                let entries = batch.requests[number];
                for i in (0..2).filter(|i| entries[*i]) {
                    if failing == Some(i) {
                        batch.faults -= 1;
                        batch.fails_alone(setting, number, i)?;
                    } else {
                        let arrives = PodMove::CallArrives { hides_again: false };
                        batch.act(setting, i, Move::Of(0, arrives))?;
                    }
                }
            }
            Step::Answered(number) => batch.end(setting, number, PodMove::CallIsAnswered)?,
            Step::IsLost(number) => {
                batch.faults -= 1;
                batch.end(setting, number, PodMove::CallFails)?;
            }
            Step::StrayArrives(i, stray) => batch.act(setting, i, Move::StrayArrives(stray))?,
            Step::AnotherPodReceives(i) => {
                let world = &mut batch.runs[i];
                let _ = world.message.receive(setting, world.now);
                world.check(setting)?;
            }
            Step::Stop => batch.both(setting, PodMove::Stop)?,
            Step::Kill => {
                batch.faults -= 1;
                batch.both(setting, PodMove::Kill)?;
            }
        }
        batch.tidy(setting)?;
        Ok(batch)
    }

    /// Each run has its own world: the other one does not change.
    fn act(&mut self, setting: &Setting, i: usize, chosen: Move) -> Result<(), Broken> {
        self.runs[i] = self.runs[i].after(setting, chosen)?;
        Ok(())
    }

    /// Concerns the whole pod.
    fn both(&mut self, setting: &Setting, chosen: PodMove) -> Result<(), Broken> {
        for i in 0..2 {
            if self.run(i).is_some() {
                self.act(setting, i, Move::Of(0, chosen))?;
            }
        }
        Ok(())
    }

    fn received(
        &mut self,
        setting: &Setting,
        brings: [bool; 2],
        then: PodMove,
    ) -> Result<(), Broken> {
        let polls = self.polls();
        for i in (0..2).filter(|i| polls[*i]) {
            if brings[i] {
                self.act(setting, i, Move::Of(0, PodMove::PollArrives))?;
            }
            self.act(setting, i, Move::Of(0, then))?;
        }
        Ok(())
    }

    /// As in the program: a stop withdraws deletes that wait, and each needs a permit that is valid
    /// when the request is sent.
    fn send(&mut self, setting: &Setting, first: usize) -> Result<(), Broken> {
        let takes_both = self.waits(0) && self.waits(1) && self.are_of_one_kind();
        let mut entries = [false; 2];
        for i in (0..2).filter(|i| *i == first || takes_both) {
            let run = self.run(i).expect("it waits");
            let holding = run.holding.as_ref().expect("it waits");
            let now = self.runs[i].now - run.started_at;
            let is_permitted = !run.stopped && holding.keeper.state().lease.is_held(now);
            if self.request(i) == Some(Request::Delete) && !is_permitted {
                self.act(setting, i, Move::Of(0, PodMove::CallHasNoEffect))?;
            } else {
                entries[i] = true;
            }
        }
        for i in [0, 1] {
            if !entries[i] || self.request(i) != Some(Request::Delete) {
                continue;
            }
            let run = self.run(i).expect("it has an entry");
            let is_proven = run.held_receipt(self.runs[i].now).is_some() && run.succeeded;
            if run.stopped || !is_proven {
                return Err("a delete is sent after a stop, or without its proof".to_owned());
            }
        }
        if entries != [false; 2] {
            self.requests.push(entries);
        }
        Ok(())
    }

    /// One entry has an error: nothing was changed.
    fn fails_alone(&mut self, setting: &Setting, number: usize, i: usize) -> Result<(), Broken> {
        self.requests[number][i] = false;
        self.act(setting, i, Move::Of(0, PodMove::CallHasNoEffect))
    }

    fn end(&mut self, setting: &Setting, number: usize, how: PodMove) -> Result<(), Broken> {
        let entries = self.requests.remove(number);
        for i in (0..2).filter(|i| entries[*i]) {
            self.act(setting, i, Move::Of(0, how))?;
        }
        Ok(())
    }

    /// Whatever is due is done at once; the search without batches covers its delay.
    fn tidy(&mut self, setting: &Setting) -> Result<(), Broken> {
        for i in 0..2 {
            let acts = |world: &World| {
                let run = world.pods[0].as_ref();
                let holding = run.and_then(|run| Some((run, run.holding.as_ref()?)));
                holding.is_some_and(|(run, holding)| holding.acts(world.now - run.started_at))
            };
            while acts(&self.runs[i]) {
                self.act(setting, i, Move::Of(0, PodMove::KeeperActs))?;
            }
        }
        let ended = [0, 1].map(|i| self.request(i).is_none());
        for entries in &mut self.requests {
            for (is_entry, has_ended) in entries.iter_mut().zip(ended) {
                *is_entry &= !has_ended;
            }
        }
        self.requests.retain(|entries| *entries != [false; 2]);
        Ok(())
    }

    /// The order of the two runs does not matter.
    fn key(&self, setting: &Setting) -> u64 {
        let mut runs = [0, 1].map(|i| {
            let is_sent = self.requests.iter().any(|entries| entries[i]);
            (self.runs[i].key(setting), is_sent)
        });
        runs.sort_unstable();
        let mut hasher = DefaultHasher::new();
        (runs, self.requests.contains(&BOTH), self.faults).hash(&mut hasher);
        hasher.finish()
    }
}

/// Every order of steps, breadth first. Returns how many worlds there are, and in how many of them a
/// request deletes both messages.
fn search(setting: &Setting, faults: u32, depth: usize) -> (usize, usize) {
    let start = Batch::new(setting, faults);
    let (mut seen, mut ends) = (HashSet::from([start.key(setting)]), HashSet::new());
    let (mut frontier, mut deleting) = (vec![(Vec::new(), start)], 0);
    for _ in 0..depth {
        let mut next = Vec::new();
        for (path, batch) in frontier {
            for step in batch.steps() {
                let path: Vec<Step> = path.iter().copied().chain([step]).collect();
                let after = batch.after(setting, step).and_then(|after| {
                    if seen.insert(after.key(setting)) {
                        for world in &after.runs {
                            check_end(setting, world, &mut ends)?;
                        }
                        deleting += usize::from(after.deletes_both());
                        next.push((path.clone(), after));
                    }
                    Ok(())
                });
                if let Err(broken) = after {
                    panic!("{broken}, after {path:?}");
                }
            }
        }
        frontier = next;
    }
    println!("batches, {faults} faults: {} worlds within {depth} steps", seen.len());
    (seen.len(), deleting)
}

/// Two messages in one receive; their extensions, deletes and releases in one request each; and
/// faults: an entry that fails alone, an answer that is lost, a KILL. Seven steps reach the delete of
/// both, and eleven after an extension.
#[test]
fn no_batch_breaks_a_guarantee() {
    let is_long = asked_for("SEARCH_ALL").is_some();
    for (faults, depth, longer) in [(0, 12, 20), (1, 9, 12), (2, 8, 10)] {
        let depth = if is_long { longer } else { depth };
        let (worlds, deleting) = search(&Setting::new(), faults, depth);
        assert!(worlds > 30_000 && deleting > 100, "{worlds}, {deleting}");
    }
}
