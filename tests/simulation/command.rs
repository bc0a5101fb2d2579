//! The work of the pods: completely fake, or the real one with a fake command.

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
use leasehold::work::workspaces::Workspaces;
use leasehold::work::{ReportEvent, Worker};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::chance::Chance;
use super::history::{History, State};

/// The results of a successful command.
pub const RESULTS: [&str; 2] = ["a.csv", "b.csv"];

/// The number of steps of a command with a checkpoint.
const STEPS: usize = 6;

/// Work of random length and end.
#[derive(Clone)]
pub struct RandomWork {
    pub chance: Chance,
    pub pod: u32,
    pub longest: Duration,
    pub max_duration: Duration,
    /// Whether its task has a checkpoint.
    pub keeps_state: bool,
    pub history: Arc<Mutex<History>>,
}

/// Work ends with its future, also if that is dropped, as real commands do through their guard.
struct Running<'a> {
    of: &'a RandomWork,
    message: &'a str,
}

impl<'a> Running<'a> {
    fn start(of: &'a RandomWork, message: &'a str) -> Self {
        let mut history = of.history.lock().unwrap();
        history.log(of.pod, format!("works on {message}"));
        history.check_exclusive_work(of.pod, message);
        history.running.entry(message.to_owned()).or_default().push(of.pod);
        let work = history.work_of(of.pod, message);
        (work.at_work, work.started) = (true, Some(Instant::now()));
        Self { of, message }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut history = self.of.history.lock().unwrap();
        history
            .running
            .entry(self.message.to_owned())
            .or_default()
            .retain(|pod| *pod != self.of.pod);
        history.work_of(self.of.pod, self.message).at_work = false;
    }
}

impl RandomWork {
    /// Works until `ends`, or until some time after a halt.
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
                    let mut history = self.history.lock().unwrap();
                    history.log(self.pod, format!("halts {message}"));
                    history.check_max_duration(self.pod, message, self.max_duration);
                    let work = history.work_of(self.pod, message);
                    (work.at_work, work.halted) = (false, Some(Instant::now()));
                }
                let ending = self.chance.millis(0..40_000);
                sleep(ending.min(stop_grace)).await;
                // Many programs exit 0 on TERM without having finished.
                (if ending < stop_grace { Exit::Code(0) } else { Exit::Signal(9) }, true)
            }
            exit = ends => (exit, false),
        };
        drop(running);
        let mut history = self.history.lock().unwrap();
        if !halted {
            history.check_max_duration(self.pod, message, self.max_duration);
        }
        history.ended(self.pod, message, &format!("{exit:?}"), exit == Exit::Code(0) && !halted);
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
    async fn process(
        &self,
        work: Work,
        halt: Halt,
        tell: &ReportEvent,
        _: &Workspaces,
    ) -> Processed {
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
            let mut history = self.history.lock().unwrap();
            let found = found.unwrap_or_else(|half| {
                history.violation(
                    self.pod,
                    format!("finds a partial checkpoint of {message}: {half}"),
                );
                None
            });
            let object = history.objects[message].clone();
            history.log(self.pod, format!("starts with {message} from {found:?}"));
            history.check_not_done(self.pod, &object);
            history.check_record_owner(self.pod, &object, "starts a command");
            if directory.is_some() {
                history.check_restored_checkpoint(self.pod, message, receive, found);
            }
            let work = history.work_of(self.pod, message);
            (work.state, work.halted) = (found, None);
            work.published.clear();
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
                self.history.lock().unwrap().work_of(self.pod, message).state = Some(state);
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
        Ok(Exited { exit, left_no_writer: true, ..Exited::killed() })
    }
}

/// The state is in two files that grow at each step, so that a partial state is detected.
impl State {
    const FILES: [&str; 2] = ["one", "two"];

    fn write(self, directory: &Path) {
        for name in Self::FILES {
            fs::write(directory.join(name), format!("{} {}", self.receive, "x".repeat(self.steps)))
                .expect("writable");
        }
    }

    /// `None` without files; an error with their content if they differ.
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
