//! A run through the real supervisor and actors, with a queue in memory, a command that only pretends, and a
//! clock that may be paused.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::actors::receiver::Polling;
use leasehold::actors::supervisor::{self, Settings, StopBudget, World};
use leasehold::job::lease::Strategy;
use leasehold::job::lifecycle::{Policy, RunOutcome};
use leasehold::job::notification::Object;
use leasehold::job::report::{Ended, Report};
use leasehold::job::route::EventFilter;
use leasehold::job::verdict::{Exit, OnStop, Retry, RetryPolicy};
use leasehold::ports::clock::Clock;
use leasehold::ports::memory::{Call, Entry, MemoryQueue};
use leasehold::ports::{Command, Exited, FetchError, ObjectBody, ObjectStore, Queue, Runner, StartError, Telemetry};
use leasehold::work::fetch::FetchPolicy;
use leasehold::work::{Bench, CommandLine};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub const S: Duration = Duration::from_secs(1);
pub const MINUTE: Duration = Duration::from_mins(1);
pub const VISIBILITY: Duration = Duration::from_mins(2);
pub const GRACE: Duration = Duration::from_secs(30);

/// The settings of a run without any flags.
pub fn settings() -> Settings {
    Settings {
        policy: Policy {
            events: EventFilter::default(),
            retry: RetryPolicy {
                retry: Retry::Backoff { min: 10 * S, max: 15 * MINUTE },
                on_stop: OnStop::Release,
                permanent_exit_codes: vec![65],
            },
            max_duration: 10 * MINUTE,
            max_messages: 1,
            fifo: false,
        },
        strategy: Strategy::Heartbeat,
        polling: Polling { visibility: VISIBILITY, wait: 10 * S, longest_poll: 10 * S, give_up: 2 * MINUTE },
        stop: StopBudget { grace: 20 * S, reserve: 10 * S },
    }
}

/// What a pretended command does.
#[derive(Clone, Copy)]
pub enum Does {
    /// Takes so long, and exits so.
    Exits(Duration, i32),
    /// Works until TERM, then takes so long, and exits so.
    EndsOnTerm(Duration, i32),
    /// Not even KILL seems to help.
    Hangs,
    /// A bug in us.
    Panics,
}

/// A command that only pretends, and remembers.
#[derive(Clone)]
pub struct FakeCommand {
    does: Arc<Mutex<Vec<Does>>>,
    pub ran: Arc<Mutex<Vec<Ran>>>,
}

#[derive(Clone)]
pub struct Ran {
    pub command: Command,
    pub ended: Option<Instant>,
}

impl FakeCommand {
    pub fn new(does: Does) -> Self {
        Self::sequence([does])
    }

    /// One after another; the last one for ever.
    pub fn sequence(does: impl IntoIterator<Item = Does>) -> Self {
        let mut does: Vec<_> = does.into_iter().collect();
        does.reverse();
        Self { does: Arc::new(Mutex::new(does)), ran: Arc::default() }
    }

    pub fn runs(&self) -> usize {
        self.ran.lock().expect("not poisoned").len()
    }

    pub fn last(&self) -> Ran {
        self.ran.lock().expect("not poisoned").last().expect("it ran").clone()
    }
}

#[async_trait]
impl Runner for FakeCommand {
    async fn run(&self, command: Command, halt: CancellationToken) -> Result<Exited, StartError> {
        let does = {
            let mut does = self.does.lock().expect("not poisoned");
            if does.len() > 1 { does.pop() } else { does.last().copied() }
        };
        let grace = command.stop_grace;
        let index = {
            let mut ran = self.ran.lock().expect("not poisoned");
            ran.push(Ran { command, ended: None });
            ran.len() - 1
        };
        let exit = match does.expect("a command does something") {
            Does::Exits(after, code) => tokio::select! {
                () = sleep(after) => Exit::Code(code),
                () = halt.cancelled() => Exit::Signal(15),
            },
            Does::EndsOnTerm(after, code) => {
                halt.cancelled().await;
                sleep(after.min(grace)).await;
                if after < grace { Exit::Code(code) } else { Exit::Signal(9) }
            }
            Does::Hangs => std::future::pending().await,
            Does::Panics => panic!("a bug, made on purpose"),
        };
        self.ran.lock().expect("not poisoned")[index].ended = Some(Instant::now());
        Ok(Exited { exit, last_words: vec!["last words".to_owned()] })
    }
}

/// A store that has every object, or fails.
pub struct FakeStore {
    pub answer: Result<&'static [u8], FetchError>,
    pub after: Duration,
}

impl Default for FakeStore {
    fn default() -> Self {
        Self { answer: Ok(b"data"), after: Duration::ZERO }
    }
}

#[async_trait]
impl ObjectStore for FakeStore {
    async fn open(&self, _: &Object) -> Result<ObjectBody, FetchError> {
        sleep(self.after).await;
        self.answer.clone().map(|bytes| ObjectBody { size: Some(bytes.len() as u64), bytes: Box::pin(bytes) })
    }
}

/// Remembers what was told; or fails at it.
#[derive(Default)]
pub struct FakeTelemetry {
    pub told: Mutex<Vec<Report>>,
    pub panics: bool,
}

#[async_trait]
impl Telemetry for FakeTelemetry {
    async fn tell(&self, report: &Report) {
        assert!(!self.panics, "a bug, made on purpose");
        self.told.lock().expect("not poisoned").push(report.clone());
    }
}

/// One run.
pub struct Journey {
    pub queue: MemoryQueue,
    pub command: FakeCommand,
    pub store: FakeStore,
    pub fetch: FetchPolicy,
    pub telemetry: Arc<FakeTelemetry>,
    pub settings: Settings,
    work_dir: TempDir,
}

/// A run that is over.
pub struct Arrived {
    pub outcome: RunOutcome,
    pub took: Duration,
    pub telemetry: Arc<FakeTelemetry>,
}

impl FakeTelemetry {
    pub fn ended(&self) -> Vec<Ended> {
        let told = self.told.lock().expect("not poisoned");
        let ended = told.iter().filter_map(|report| match report {
            Report::Ended(ended) => Some((**ended).clone()),
            Report::Started(_) | Report::Left(_) => None,
        });
        ended.collect()
    }

    /// The outcomes of all its messages, in order.
    pub fn outcomes(&self) -> Vec<&'static str> {
        self.ended().iter().map(Ended::outcome).collect()
    }
}

impl Arrived {
    pub fn ended(&self) -> Vec<Ended> {
        self.telemetry.ended()
    }

    pub fn outcomes(&self) -> Vec<&'static str> {
        self.telemetry.outcomes()
    }
}

impl Journey {
    pub fn new(queue: &MemoryQueue, command: &FakeCommand) -> Self {
        Self {
            queue: queue.clone(),
            command: command.clone(),
            store: FakeStore::default(),
            fetch: FetchPolicy::default(),
            telemetry: Arc::default(),
            settings: settings(),
            work_dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    pub async fn run(self) -> Arrived {
        self.run_until(std::future::pending()).await
    }

    /// Asked to stop after this long.
    pub async fn run_and_stop_after(self, after: Duration) -> Arrived {
        self.run_until(sleep(after)).await
    }

    pub async fn run_until(self, stop: impl Future<Output = ()> + Send + 'static) -> Arrived {
        let clock = Clock::start();
        let bench = Bench {
            store: Arc::new(self.store),
            runner: Arc::new(self.command),
            fetch: self.fetch,
            outbox: None,
            command: CommandLine { program: "command".into(), args: Vec::new() },
            work_dir: self.work_dir.path().to_owned(),
            job_id: "job".to_owned(),
            stop_grace: self.settings.stop.grace,
            clock,
        };
        let queue: Arc<dyn Queue> = Arc::new(self.queue);
        let world = World { queue, worker: Arc::new(bench), telemetry: self.telemetry.clone(), clock };
        let started = Instant::now();
        // No journey of these tests is longer than a day.
        let limit = Duration::from_hours(24);
        let run = supervisor::run(world, self.settings, stop);
        let outcome = tokio::time::timeout(limit, run).await.expect("the run ends");
        let left = std::fs::read_dir(self.work_dir.path()).expect("readable").count();
        assert_eq!(left, 0, "something was left in the work directory");
        Arrived { outcome, took: started.elapsed(), telemetry: self.telemetry }
    }
}

pub fn deletes(queue: &MemoryQueue) -> usize {
    queue.calls().iter().filter(|entry| entry.call == Call::Delete).count()
}

/// Each change of visibility: when it was asked for, since `from`, and to what.
pub fn changes(queue: &MemoryQueue, from: Instant) -> Vec<(Duration, Duration)> {
    let change = |entry: Entry| match entry.call {
        Call::ChangeVisibility(to) => Some((entry.asked_at - from, to)),
        Call::Receive | Call::Delete => None,
    };
    queue.calls().into_iter().filter_map(change).collect()
}
