//! A run through the real supervisor and actors, with an in-memory queue, a fake command, and a
//! clock that may be paused.

use std::fs::OpenOptions;
use std::future::Future;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use super::values::{MINUTE, S, VISIBILITY, settings, task};
use async_trait::async_trait;
use futures_util::stream::{self, StreamExt};
use leasehold::actors::supervisor::{self, World};
use leasehold::adapters::local::memory::{Kind, MemoryQueue};
use leasehold::job::delivery::{Delivery, ReceiptHandle, Redrive};
use leasehold::job::notification::Object;
use leasehold::job::outcome::{Exit, ResourceUsage};
use leasehold::job::report::{DeleteResult, Ended, Observation, Progress, Report};
use leasehold::job::route::Checkpointing;
use leasehold::job::run_outcome::RunOutcome;
use leasehold::job::settings::Settings;
use leasehold::job::verdict::DeletePermit;
use leasehold::ports::clock::Clock;
use leasehold::ports::health::Health;
use leasehold::ports::{
    Activity, Command, DeleteError, Exited, FetchError, ObjectBody, ObjectStore, Outbox, Queue,
    RangeBody, ReceiveError, Runner, StartError, Telemetry, VisibilityError,
};
use leasehold::work::CommandWorker;
use leasehold::work::checkpoint::Checkpoints;
use leasehold::work::fetch::FetchPolicy;
use leasehold::work::idempotency::Idempotency;
use leasehold::work::threads::WorkThreads;
use leasehold::work::workspace::WorkDir;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::bucket::MemoryBucket;
use super::object_created;
use super::records::MemoryRecords;
use super::wire::{Call, Entry, Wire, WiredQueue};

pub const GRACE: Duration = Duration::from_secs(30);

/// A standard queue that moves messages to a dead-letter queue after three receives.
pub fn queue_with(bodies: &[&str]) -> WiredQueue {
    queue_of(Kind::Standard, 3, bodies)
}

pub fn queue_of(kind: Kind, max_receive_count: u32, bodies: &[&str]) -> WiredQueue {
    let queue = Wire::to(MemoryQueue::new(
        kind,
        Redrive::DeadLetter { max_receive_count, queue: "dlq".to_owned() },
    ));
    for body in bodies {
        queue.send(*body);
    }
    queue
}

/// A queue with one message about one object.
pub fn queue() -> WiredQueue {
    queue_with(&[&object_created("k")])
}

/// A command that takes 5 seconds.
pub fn exits(code: i32) -> FakeCommand {
    FakeCommand::new(Does::Exits(5 * S, code))
}

pub fn throttled() -> VisibilityError {
    VisibilityError::Transient("throttled".to_owned())
}

/// The behaviour of a fake command.
#[derive(Clone, Copy)]
pub enum Does {
    /// Takes this long, then exits with this code.
    Exits(Duration, i32),
    /// Takes this long, then dies of this signal.
    Dies(Duration, i32),
    /// Takes this long and exits 0; after TERM it takes the second time, and exits 0 too.
    Succeeds(Duration, Duration),
    /// Works until TERM, then takes this long and exits with this code.
    EndsOnTerm(Duration, i32),
    /// Prints a line at this interval, this many times; then it is silent until TERM.
    Prints(Duration, u32),
    /// Reports progress at this interval, in this many steps; then it exits 0.
    Progresses(Duration, u32),
    /// Takes this long, writes a result file, and exits 0.
    Writes(Duration),
    /// Counts steps in its checkpoint directory, each of this duration; exits 0 after the last.
    Resumes(Duration, u32),
    /// The same, but exits with this code after the last.
    ResumesAndExits(Duration, u32, i32),
    /// Removes or replaces its checkpoint directory; then it takes this long and exits with this
    /// code.
    LosesState(Replacement, Duration, i32),
    /// Never ends, not even after KILL.
    Hangs,
    /// Panics, as a bug in leasehold would.
    Panics,
}

/// What replaces a removed directory.
#[derive(Debug, Clone, Copy)]
pub enum Replacement {
    None,
    File,
    Link,
    Empty,
}

/// The resource usage of each fake command.
pub const USED: ResourceUsage = ResourceUsage { cpu: S, peak_memory: Some(1024 * 1024) };

/// A fake command that remembers its runs.
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

    /// One behaviour per run; the last one repeats.
    pub fn sequence(does: impl IntoIterator<Item = Does>) -> Self {
        let mut does: Vec<_> = does.into_iter().collect();
        does.reverse();
        Self { does: Arc::new(Mutex::new(does)), ran: Arc::default() }
    }

    pub fn runs(&self) -> usize {
        self.ran.lock().expect("not poisoned").len()
    }

    /// When the last run ended.
    pub fn ended(&self) -> Instant {
        self.last().ended.expect("an ended run")
    }

    /// The value of this variable in each run.
    pub fn got(&self, name: &str) -> Vec<String> {
        let ran = self.ran.lock().expect("not poisoned");
        let got = ran.iter().filter_map(|ran| {
            ran.command.job.environment().into_iter().find(|(variable, _)| variable == name)
        });
        got.map(|(_, value)| value.into_string().expect("UTF-8")).collect()
    }

    pub fn last(&self) -> Ran {
        self.ran.lock().expect("not poisoned").last().expect("a run").clone()
    }
}

#[async_trait]
impl Runner for FakeCommand {
    async fn run(
        &self,
        command: Command,
        halt: CancellationToken,
        activity: Activity,
    ) -> Result<Exited, StartError> {
        let does = {
            let mut does = self.does.lock().expect("not poisoned");
            if does.len() > 1 { does.pop() } else { does.last().copied() }
        };
        let grace = command.stop_grace;
        let env = command.job.environment();
        let command_env = |name: &str| {
            env.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.clone())
        };
        let result_file = command_env("JOB_RESULT_FILE");
        let index = {
            let mut ran = self.ran.lock().expect("not poisoned");
            ran.push(Ran { command, ended: None });
            ran.len() - 1
        };
        let exit = match does.expect("a behaviour") {
            Does::Exits(after, code) => tokio::select! {
                () = sleep(after) => Exit::Code(code),
                () = halt.cancelled() => Exit::Signal(15),
            },
            Does::Dies(after, signal) => tokio::select! {
                () = sleep(after) => Exit::Signal(signal),
                () = halt.cancelled() => Exit::Signal(15),
            },
            Does::Succeeds(after, ending) => tokio::select! {
                () = sleep(after) => Exit::Code(0),
                exit = exit_on_term(&halt, grace, ending, 0) => exit,
            },
            Does::EndsOnTerm(after, code) => exit_on_term(&halt, grace, after, code).await,
            Does::Prints(every, times) => {
                for _ in 0..times {
                    sleep(every).await;
                    activity.record();
                }
                exit_on_term(&halt, grace, Duration::ZERO, 0).await
            }
            Does::Progresses(every, steps) => {
                let result_file = result_file.expect("always set");
                for step in 1..=steps {
                    sleep(every).await;
                    let line = serde_json::json!({ "progress": f64::from(step) / f64::from(steps), "text": "loading" });
                    let mut file = OpenOptions::new()
                        .append(true)
                        .create(true)
                        .open(&result_file)
                        .expect("writable");
                    writeln!(file, "{line}").expect("writable");
                }
                Exit::Code(0)
            }
            Does::Writes(after) => tokio::select! {
                () = sleep(after) => {
                    let directory = command_env("JOB_OUTPUT_DIR").expect("set");
                    std::fs::write(Path::new(&directory).join("results.csv"), "1;2").expect("writable");
                    Exit::Code(0)
                }
                () = halt.cancelled() => Exit::Signal(15),
            },
            Does::Resumes(step, steps) => {
                let directory = command_env("JOB_CHECKPOINT_DIR").expect("set");
                count_up(Path::new(&directory), &halt, step, steps, 0).await
            }
            Does::ResumesAndExits(step, steps, code) => {
                let directory = command_env("JOB_CHECKPOINT_DIR").expect("set");
                count_up(Path::new(&directory), &halt, step, steps, code).await
            }
            Does::LosesState(replaced, after, code) => {
                let directory = command_env("JOB_CHECKPOINT_DIR").expect("set");
                let moved = Path::new(&directory).with_file_name("moved");
                std::fs::rename(&directory, &moved).expect("the directory exists");
                match replaced {
                    Replacement::None => {}
                    Replacement::File => std::fs::write(&directory, "x").expect("writable"),
                    Replacement::Link => {
                        std::os::unix::fs::symlink(&moved, &directory).expect("writable");
                    }
                    Replacement::Empty => std::fs::create_dir(&directory).expect("writable"),
                }
                tokio::select! {
                    () = sleep(after) => Exit::Code(code),
                    () = halt.cancelled() => Exit::Signal(15),
                }
            }
            Does::Hangs => std::future::pending().await,
            Does::Panics => panic!("a bug, made on purpose"),
        };
        self.ran.lock().expect("not poisoned")[index].ended = Some(Instant::now());
        Ok(Exited {
            exit,
            usage: Some(USED),
            stderr_tail: vec!["the last line".to_owned()],
            out_of_memory: None,
            left_no_writer: true,
        })
    }
}

async fn count_up(
    directory: &Path,
    halt: &CancellationToken,
    step: Duration,
    steps: u32,
    code: i32,
) -> Exit {
    let file = directory.join("steps").join("done");
    std::fs::create_dir_all(file.parent().expect("a parent")).expect("writable");
    let done = || {
        std::fs::read_to_string(&file).ok().map_or(0, |text| text.parse::<u32>().expect("a number"))
    };
    while done() < steps {
        if halt.run_until_cancelled(sleep(step)).await.is_none() {
            return Exit::Signal(15);
        }
        // A save may read the file at any moment.
        let whole = file.with_extension("new");
        std::fs::write(&whole, (done() + 1).to_string()).expect("writable");
        std::fs::rename(whole, &file).expect("writable");
    }
    Exit::Code(code)
}

async fn exit_on_term(
    halt: &CancellationToken,
    grace: Duration,
    after: Duration,
    code: i32,
) -> Exit {
    halt.cancelled().await;
    sleep(after.min(grace)).await;
    if after < grace { Exit::Code(code) } else { Exit::Signal(9) }
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
        let whole = |bytes: &'static [u8]| ObjectBody {
            size: Some(bytes.len() as u64),
            etag: None,
            checksum: None,
            bytes: stream::iter([Ok(bytes.into())]).boxed(),
        };
        self.answer.clone().map(whole)
    }

    async fn open_range(&self, _: &Object, _: Range<u64>) -> Result<RangeBody, FetchError> {
        unreachable!("its streams do not break");
    }
}

/// A queue with hooks before and after each call.
pub struct HookedQueue {
    pub queue: WiredQueue,
    pub before: Hook,
    pub after: Hook,
    /// How many requests for the redrive policy fail.
    pub redrive_failures: AtomicU32,
    pub redrive_delay: Duration,
}

pub type Hook = Box<dyn Fn(Call) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

impl HookedQueue {
    pub fn new(queue: &WiredQueue) -> Self {
        let nothing = || -> Hook { Box::new(|_| Box::pin(async {})) };
        Self {
            queue: queue.clone(),
            before: nothing(),
            after: nothing(),
            redrive_failures: AtomicU32::new(0),
            redrive_delay: Duration::ZERO,
        }
    }
}

#[async_trait]
impl Queue for HookedQueue {
    async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Option<Delivery>, ReceiveError> {
        (self.before)(Call::Receive).await;
        let answer = self.queue.receive(wait, visibility).await;
        (self.after)(Call::Receive).await;
        answer
    }

    async fn change_visibility(
        &self,
        receipt: &ReceiptHandle,
        visibility: Duration,
    ) -> Result<(), VisibilityError> {
        (self.before)(Call::ChangeVisibility(visibility)).await;
        let answer = self.queue.change_visibility(receipt, visibility).await;
        (self.after)(Call::ChangeVisibility(visibility)).await;
        answer
    }

    async fn delete(
        &self,
        receipt: &ReceiptHandle,
        permit: DeletePermit,
    ) -> Result<(), DeleteError> {
        (self.before)(Call::Delete).await;
        let answer = self.queue.delete(receipt, permit).await;
        (self.after)(Call::Delete).await;
        answer
    }

    async fn redrive(&self) -> Result<Redrive, String> {
        sleep(self.redrive_delay).await;
        let is_silent = |remaining: u32| remaining.checked_sub(1);
        match self.redrive_failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_silent) {
            Ok(_) => Err("503".to_owned()),
            Err(_) => self.queue.redrive().await,
        }
    }
}

/// Telemetry that remembers its reports, or fails.
#[derive(Default)]
pub struct FakeTelemetry {
    pub reports: Mutex<Vec<Report>>,
    pub observations: Mutex<Vec<Observation>>,
    pub panics: bool,
    pub hangs: bool,
}

#[async_trait]
impl Telemetry for FakeTelemetry {
    async fn report(&self, report: &Report) {
        assert!(!self.panics, "a bug, made on purpose");
        if self.hangs {
            std::future::pending::<()>().await;
        }
        self.reports.lock().expect("not poisoned").push(report.clone());
    }

    fn record(&self, observation: Observation) {
        self.observations.lock().expect("not poisoned").push(observation);
    }
}

/// One run.
pub struct Journey {
    pub queue: Arc<dyn Queue>,
    pub command: Arc<dyn Runner>,
    pub store: Arc<dyn ObjectStore>,
    pub fetch: FetchPolicy,
    pub outbox: Option<Arc<dyn Outbox>>,
    pub telemetry: Arc<FakeTelemetry>,
    pub settings: Settings,
    pub concurrency: usize,
    /// How many of the commands may run at the same time, if fewer than `concurrency`.
    pub turns: Option<Arc<Semaphore>>,
    /// The storage for checkpoints, if enabled, and the interval of saves.
    pub checkpoints: Option<(MemoryBucket, Option<Duration>)>,
    /// The records of finished work, if enabled.
    pub records: Option<MemoryRecords>,
    work_dir: TempDir,
}

/// The result of a run.
pub struct RunResult {
    pub outcome: RunOutcome,
    pub took: Duration,
    pub telemetry: Arc<FakeTelemetry>,
}

impl FakeTelemetry {
    pub fn ended(&self) -> Vec<Ended> {
        let reports = self.reports.lock().expect("not poisoned");
        let ended = reports.iter().filter_map(|report| match report {
            Report::Ended(ended) => Some((**ended).clone()),
            Report::Started(_) | Report::Held(_) | Report::Progressed(_) | Report::Releasing(_) => {
                None
            }
        });
        ended.collect()
    }

    /// The reported progress, in order.
    pub fn progress(&self) -> Vec<Progress> {
        let reports = self.reports.lock().expect("not poisoned");
        let progress = reports.iter().filter_map(|report| match report {
            Report::Progressed(progressed) => Some(progressed.progress.clone()),
            Report::Started(_) | Report::Held(_) | Report::Releasing(_) | Report::Ended(_) => None,
        });
        progress.collect()
    }

    /// The counted results of deletes, in order.
    pub fn delete_results(&self) -> Vec<DeleteResult> {
        let observations = self.observations.lock().expect("not poisoned");
        let results = observations.iter().filter_map(|observation| match observation {
            Observation::Delete(result) => Some(*result),
            Observation::ReceivedNothing
            | Observation::ReceiveFailed
            | Observation::Extend(_)
            | Observation::LeaseRemaining(_) => None,
        });
        results.collect()
    }

    /// The outcomes of all its messages, in order.
    pub fn outcomes(&self) -> Vec<&'static str> {
        self.ended().iter().map(Ended::outcome).collect()
    }
}

impl RunResult {
    pub fn ended(&self) -> Vec<Ended> {
        self.telemetry.ended()
    }

    pub fn outcomes(&self) -> Vec<&'static str> {
        self.telemetry.outcomes()
    }
}

impl Journey {
    pub fn new(queue: &WiredQueue, command: &FakeCommand) -> Self {
        Self {
            queue: Arc::new(queue.clone()),
            command: Arc::new(command.clone()),
            store: Arc::new(FakeStore::default()),
            fetch: FetchPolicy::default(),
            outbox: None,
            telemetry: Arc::default(),
            settings: settings(),
            concurrency: 1,
            turns: None,
            checkpoints: None,
            records: None,
            work_dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    pub async fn run(self) -> RunResult {
        self.run_until(std::future::pending()).await
    }

    /// Runs, with a stop request after this long.
    pub async fn run_and_stop_after(self, after: Duration) -> RunResult {
        self.run_until(sleep(after)).await
    }

    pub async fn run_until(self, stop: impl Future<Output = ()> + Send + 'static) -> RunResult {
        // No run of these tests takes longer than a day.
        self.run_for(24 * 60 * MINUTE, stop).await.expect("the run ends")
    }

    /// Runs, with a KILL after this long: the grace has ended, or the node is lost. `None` if the
    /// KILL came before the end.
    pub async fn run_for(
        mut self,
        killed_after: Duration,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Option<RunResult> {
        let clock = Clock::start();
        let policy = &mut self.settings.policy;
        let checkpoints = self.checkpoints.map(|(storage, interval)| {
            let location = "s3://state/of".parse().expect("a location");
            Arc::make_mut(policy.task.as_mut().expect("a task")).checkpoint =
                Some(Checkpointing { location, interval });
            Checkpoints { storage: Arc::new(storage), clock }
        });
        let idempotency = self.records.map(|records| Idempotency {
            records: Arc::new(records),
            location: "s3://records/done".parse().expect("a location"),
            queue: "queue".to_owned(),
            owner: "pod".to_owned(),
            clock,
        });
        let worker = CommandWorker {
            checkpoints,
            idempotency,
            store: self.store,
            runner: self.command,
            turns: self.turns,
            fetch: self.fetch,
            outbox: self.outbox,
            work_dir: WorkDir { path: self.work_dir.path().to_owned(), limit: None },
            job_id: "job".to_owned(),
            queue_url: None,
            clock,
        };
        let telemetry = self.telemetry.clone();
        let world = World {
            queue: self.queue,
            worker: Arc::new(worker),
            telemetry: self.telemetry,
            clock,
            work_threads: WorkThreads::Shared,
            health: Health::default(),
        };
        let started = Instant::now();
        let run = async {
            if self.concurrency == 1 {
                return supervisor::run(world, self.settings, stop).await;
            }
            let token = CancellationToken::new();
            let stopper = token.clone();
            let _stopper = AbortOnDropHandle::new(tokio::spawn(async move {
                stop.await;
                stopper.cancel();
            }));
            supervisor::run_concurrently(world, self.settings, self.concurrency, token).await
        };
        let outcome = timeout(killed_after, run).await.ok()?;
        let remaining = std::fs::read_dir(self.work_dir.path()).expect("readable").count();
        assert_eq!(remaining, 0, "the work directory is not empty");
        Some(RunResult { outcome, took: started.elapsed(), telemetry })
    }
}

pub fn deletes(queue: &WiredQueue) -> usize {
    queue.calls().iter().filter(|entry| entry.call == Call::Delete).count()
}

/// Each visibility change: the time of its request since `from`, and the new timeout.
pub fn changes(queue: &WiredQueue, from: Instant) -> Vec<(Duration, Duration)> {
    let change = |entry: Entry| match entry.call {
        Call::ChangeVisibility(to) => Some((entry.asked_at - from, to)),
        Call::Receive | Call::Delete => None,
    };
    queue.calls().into_iter().filter_map(change).collect()
}
