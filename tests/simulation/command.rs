//! What the pods work: the whole work pretended, or only the command of the real one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::job::lifecycle::{Event, Processed, Work};
use leasehold::job::outcome::{CommandReport, Exit, Failure, Outcome, WorkRecord};
use leasehold::ports::{Activity, Command, Exited, Runner, StartError};
use leasehold::work::halt::Halt;
use leasehold::work::workspace::Removals;
use leasehold::work::{ReportEvent, Worker};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::chance::Chance;
use super::chronicle::{Chronicle, State};

/// What a command writes that succeeds.
pub const RESULTS: [&str; 2] = ["a.csv", "b.csv"];

/// How many steps a command takes that keeps its state.
const STEPS: usize = 6;

/// Work of random length and end.
#[derive(Clone)]
pub struct RandomWork {
    pub chance: Chance,
    pub pod: u32,
    pub longest: Duration,
    pub max_duration: Duration,
    /// Does its task say a checkpoint?
    pub keeps_state: bool,
    pub chronicle: Arc<Mutex<Chronicle>>,
}

/// Work is over when its future is, dropped or not: so are real commands, by their guard.
struct Running<'a> {
    of: &'a RandomWork,
    message: &'a str,
}

impl<'a> Running<'a> {
    fn start(of: &'a RandomWork, message: &'a str) -> Self {
        let mut chronicle = of.chronicle.lock().unwrap();
        chronicle.note(of.pod, format!("works on {message}"));
        chronicle.works_on_nothing_that_another_holds(of.pod, message);
        chronicle.running.entry(message.to_owned()).or_default().push(of.pod);
        let seen = chronicle.seen(of.pod, message);
        (seen.at_work, seen.started) = (true, Some(Instant::now()));
        Self { of, message }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut chronicle = self.of.chronicle.lock().unwrap();
        chronicle
            .running
            .entry(self.message.to_owned())
            .or_default()
            .retain(|pod| *pod != self.of.pod);
        chronicle.seen(self.of.pod, self.message).at_work = false;
    }
}

impl RandomWork {
    /// Goes on until `ends` does, or until it is halted and some time after.
    async fn work(
        &self,
        message: &str,
        stop_grace: Duration,
        halt: &CancellationToken,
        ends: impl Future<Output = Exit>,
    ) -> Exit {
        let running = Running::start(self, message);
        let (exit, halted) = tokio::select! {
            biased;
            () = halt.cancelled() => {
                {
                    let mut chronicle = self.chronicle.lock().unwrap();
                    chronicle.note(self.pod, format!("halts {message}"));
                    chronicle.ends_within_its_max_duration(self.pod, message, self.max_duration);
                    let seen = chronicle.seen(self.pod, message);
                    (seen.at_work, seen.halted) = (false, Some(Instant::now()));
                }
                let ending = self.chance.millis(0..40_000);
                sleep(ending.min(stop_grace)).await;
                // Many programs exit 0 on TERM, half way; that proves nothing.
                (if ending < stop_grace { Exit::Code(0) } else { Exit::Signal(9) }, true)
            }
            exit = ends => (exit, false),
        };
        drop(running);
        let mut chronicle = self.chronicle.lock().unwrap();
        if !halted {
            chronicle.ends_within_its_max_duration(self.pod, message, self.max_duration);
        }
        chronicle.ended(self.pod, message, &format!("{exit:?}"), exit == Exit::Code(0) && !halted);
        exit
    }

    fn exit(&self) -> Exit {
        match self.chance.number(0..6) {
            0..=2 => Exit::Code(0),
            3 => Exit::Code(65),
            4 => Exit::Code(75),
            _ => Exit::Signal(9),
        }
    }
}

/// The work as a whole.
#[async_trait]
impl Worker for RandomWork {
    async fn process(&self, work: Work, halt: Halt, tell: &ReportEvent, _: &Removals) -> Processed {
        let message = work.subject.message_id.to_string();
        let length = self.chance.millis(0..u64::try_from(self.longest.as_millis()).unwrap());
        let stalls = self.chance.one_in(8);
        let (exit, stop_grace) = (self.exit(), work.stop_grace);
        let ends = async {
            sleep(length).await;
            if stalls {
                tell(Event::Stalled);
                std::future::pending::<()>().await;
            }
            exit
        };
        let exit = self.work(&message, stop_grace, &halt.requested, ends).await;
        let succeeded = exit == Exit::Code(0);
        let outcome = if succeeded {
            Outcome::Finished
        } else {
            Outcome::Failed(Failure::Exit(exit, CommandReport::default()))
        };
        Processed { outcome, work: WorkRecord { exit: Some(exit), ..WorkRecord::default() } }
    }
}

/// The command of the real work.
#[async_trait]
impl Runner for RandomWork {
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        _: Activity,
    ) -> Result<Exited, StartError> {
        let env = command.job.environment();
        let env: BTreeMap<_, _> = env
            .iter()
            .map(|(name, value)| (name.to_str().unwrap(), value.to_str().unwrap()))
            .collect();
        let message = env["JOB_MESSAGE_ID"];
        let receive: u32 = env["JOB_RECEIVE_COUNT"].parse().unwrap();
        let directory =
            env.get("JOB_CHECKPOINT_DIR").map(PathBuf::from).filter(|_| self.keeps_state);
        let found = directory.as_deref().map_or(Ok(None), State::read);
        let found = {
            let mut chronicle = self.chronicle.lock().unwrap();
            let found = found.unwrap_or_else(|half| {
                chronicle
                    .breaks(self.pod, format!("finds half of a checkpoint of {message}: {half}"));
                None
            });
            let object = chronicle.objects[message].clone();
            chronicle.note(self.pod, format!("starts with {message} from {found:?}"));
            chronicle.does_nothing_again_that_is_recorded_as_done(self.pod, &object);
            chronicle.has_the_record(self.pod, &object, "starts a command");
            if directory.is_some() {
                chronicle.goes_on_from_what_was_saved_last(self.pod, message, receive, found);
            }
            let seen = chronicle.seen(self.pod, message);
            (seen.state, seen.halted) = (found, None);
            seen.published.clear();
            found
        };
        let ends = async {
            let longest = u64::try_from(self.longest.as_millis()).unwrap();
            let Some(directory) = &directory else {
                sleep(self.chance.millis(1..longest)).await;
                return self.exit();
            };
            for steps in found.map_or(0, |found| found.steps) + 1..=STEPS {
                sleep(self.chance.millis(1..longest / 3)).await;
                let state = State { receive, steps };
                state.write(directory);
                self.chronicle.lock().unwrap().seen(self.pod, message).state = Some(state);
                if self.chance.one_in(12) {
                    return Exit::Signal(9);
                }
            }
            self.exit()
        };
        let exit = self.work(message, command.stop_grace, &halt, ends).await;
        if let (Some(directory), Exit::Code(0)) = (env.get("JOB_OUTPUT_DIR"), exit) {
            for name in RESULTS {
                fs::write(Path::new(directory).join(name), message).expect("writable");
            }
        }
        Ok(Exited { exit, usage: None, stderr_tail: Vec::new() })
    }
}

/// In two files, which are longer at each step: at no step are both what they were, and half of
/// them is seen.
impl State {
    const FILES: [&str; 2] = ["one", "two"];

    fn write(self, directory: &Path) {
        for name in Self::FILES {
            fs::write(directory.join(name), format!("{} {}", self.receive, "x".repeat(self.steps)))
                .expect("writable");
        }
    }

    /// `None` if there is nothing; what there is, if it is not what was written.
    fn read(directory: &Path) -> Result<Option<Self>, String> {
        let there = Self::FILES.map(|name| fs::read_to_string(directory.join(name)).ok());
        let whole = match &there {
            [None, None] => return Ok(None),
            [Some(one), Some(two)] if one == two => one.split_once(' '),
            _ => None,
        };
        let state = whole.and_then(|(receive, steps)| {
            Some(Self { receive: receive.parse().ok()?, steps: steps.len() })
        });
        state.map(Some).ok_or_else(|| format!("{there:?}"))
    }
}
