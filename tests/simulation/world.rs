//! One world: its queue, its store, its faults, and its pods.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use leasehold::actors::supervisor::{self, World};
use leasehold::adapters::batches::Batches;
use leasehold::adapters::local::memory::{Kind, MemoryQueue, QueueState};
use leasehold::adapters::publish::S3Outbox;
use leasehold::job::delivery::{MessageId, Redrive};
use leasehold::job::lease::Strategy;
use leasehold::job::report::{Observation, Report};
use leasehold::job::route::{Checkpointing, Input, Task};
use leasehold::job::settings::{Polling, Settings};
use leasehold::job::stop::StopPlan;
use leasehold::job::verdict::Retry;
use leasehold::ports::clock::Clock;
use leasehold::ports::health::Health;
use leasehold::ports::{BATCH, DeleteError, Queue, ReceiveError, Telemetry, VisibilityError};
use leasehold::work::checkpoint::Checkpoints;
use leasehold::work::fetch::FetchPolicy;
use leasehold::work::idempotency::Idempotency;
use leasehold::work::threads::WorkThreads;
use leasehold::work::workspace::WorkDir;
use leasehold::work::{CommandWorker, Worker};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::chance::{Chance, FaultLevel};
use super::command::RandomWork;
use super::history::{Features, History};
use super::queue::{CheckedBatches, CheckedQueue};
use super::store::{Fate, SharedStores, Store};
use crate::support::journey::{MINUTE, S, settings, task};
use crate::support::object_created;
use crate::support::wire::{Fault, Wire, WiredQueue};

/// Runs a world; returns its trace and its violations.
pub async fn world(seed: u64) -> (Vec<String>, Vec<String>) {
    let chance = Chance::of(seed);
    let faults =
        [FaultLevel::None, FaultLevel::Moderate, FaultLevel::Severe][chance.number(0..3) as usize];
    let max_receive_count = chance.number(2..6);
    let kind = if chance.one_in(4) { Kind::Fifo } else { Kind::Standard };
    let features = features(&chance);
    let queue = Wire::to(MemoryQueue::new(
        kind,
        Redrive::DeadLetter { max_receive_count, queue: "dlq".to_owned() },
    ));
    let mut history = History::of(features);
    for n in 0..chance.number(1..4) {
        // With the real work, two notifications may be about one object.
        let object = format!("k{}", if features.is_some() { n % 2 } else { n });
        let id = queue.send_in_group(object_created(&object), format!("g{}", n % 2));
        history.objects.insert(id.to_string(), object);
    }
    let sent = history.objects.clone();
    let cluster = Cluster {
        queue: queue.clone(),
        stores: SharedStores::default(),
        work_dir: features.map(|_| Arc::new(memory_dir())),
        chance: chance.clone(),
        faults,
        kind,
        history: Arc::new(Mutex::new(history)),
    };

    let injecting = tokio::spawn(inject_faults(queue.clone(), chance.clone(), faults));
    let mut pods = JoinSet::new();
    let started = Instant::now();
    let mut pod = 0;
    // As KEDA: one pod per visible message, at most three at once. Messages that remain after two
    // days are lost.
    while let Ok(QueueState::Visible) = timeout(48 * 60 * MINUTE, queue.visible_or_drained()).await
    {
        if pods.len() < 3 {
            pod += 1;
            pods.spawn(cluster.clone().run_pod(pod));
        }
        tokio::select! {
            biased;
            Some(ended) = pods.join_next(), if pods.len() == 3 => ended.expect("a pod does not panic"),
            () = sleep(chance.millis(1..5000)) => {}
        }
        while let Some(ended) = pods.try_join_next() {
            ended.expect("a pod does not panic");
        }
        if started.elapsed() > 48 * 60 * MINUTE {
            break;
        }
    }
    injecting.abort();
    pods.join_all().await;

    let mut history = cluster.history.lock().unwrap();
    let mut violations = std::mem::take(&mut history.violations);
    if !queue.is_drained() {
        violations.push(format!("{:?} remain after {:?}", queue.counts(), started.elapsed()));
    }
    let dead = queue.dead_letters();
    for letter in &dead {
        if letter.receive_count < max_receive_count {
            violations.push(format!(
                "{} is a dead letter after {} receives",
                letter.message_id, letter.receive_count
            ));
        }
    }
    let is_dead =
        |message: &str| dead.iter().any(|letter| letter.message_id == MessageId::new(message));
    for (id, object) in &sent {
        let succeeded = history.works.iter().any(|((_, message), work)| {
            message == id && work.ends.iter().any(|(_, succeeded)| *succeeded)
        });
        if !is_dead(id) && !succeeded && !history.is_done(object) {
            violations.push(format!("{id} was deleted without a success"));
        }
    }
    for key in cluster.stores.checkpoints() {
        let message = key.split('/').nth(1).expect("a message");
        // With faults, a lifecycle rule must delete remaining checkpoints.
        if faults == FaultLevel::None && !is_dead(message) {
            violations.push(format!("{key} remains, although its message is done"));
        }
    }
    let violations =
        violations.into_iter().map(|what| format!("{faults:?} {kind:?} {features:?}: {what}"));
    (std::mem::take(&mut history.trace), violations.collect())
}

/// About every fourth world has the real work, with some of its features.
fn features(chance: &Chance) -> Option<Features> {
    if !chance.one_in(4) {
        return None;
    }
    let interval = chance.one_in(2).then(|| chance.millis(1000..200_000));
    let [records, results, state] = [(); 3].map(|()| !chance.one_in(3));
    Some(Features { records, results, state, interval: interval.filter(|_| state) })
}

/// A directory in memory, if the system has one.
fn memory_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary directory")
}

/// Injects random faults into the queue.
async fn inject_faults(queue: WiredQueue, chance: Chance, faults: FaultLevel) {
    let slowest = match faults {
        FaultLevel::None => return,
        FaultLevel::Moderate => 800,
        FaultLevel::Severe => 300_000,
    };
    let unclear = || VisibilityError::Unclear("503".to_owned());
    loop {
        sleep(chance.millis(0..60_000)).await;
        for _ in 0..chance.number(0..4) {
            let (slow, kind) = (chance.millis(0..slowest), chance.number(0..10));
            // A batch fails as a whole if each of its entries does.
            let times = if chance.one_in(8) { BATCH } else { 1 };
            for _ in 0..times {
                match kind {
                    0 => {
                        queue
                            .fault_receive(Fault::Error(ReceiveError::Transient("503".to_owned())));
                    }
                    1 if faults == FaultLevel::Severe => {
                        queue.fault_receive(Fault::AnswerLost(ReceiveError::Transient(
                            "reset".to_owned(),
                        )));
                    }
                    2 => queue.fault_change_visibility(Fault::Error(VisibilityError::Transient(
                        "throttled".to_owned(),
                    ))),
                    3 => queue.fault_change_visibility(Fault::AnswerLost(unclear())),
                    9 => queue.fault_change_visibility(Fault::Error(unclear())),
                    4 => queue.fault_change_visibility(Fault::RequestDelayed(slow)),
                    5 => queue.fault_change_visibility(Fault::AnswerDelayed(slow)),
                    6 => queue.fault_delete(Fault::Error(DeleteError::Transient("503".to_owned()))),
                    7 => queue.fault_delete(Fault::AnswerLost(DeleteError::Transient(
                        "reset".to_owned(),
                    ))),
                    _ => queue.fault_delete(Fault::AnswerDelayed(slow)),
                }
            }
        }
    }
}

/// The environment of the pods.
#[derive(Clone)]
struct Cluster {
    queue: WiredQueue,
    stores: SharedStores,
    /// Only with the real work.
    work_dir: Option<Arc<TempDir>>,
    chance: Chance,
    faults: FaultLevel,
    kind: Kind,
    history: Arc<Mutex<History>>,
}

/// What the runs of one pod share.
#[derive(Clone)]
struct Pod {
    queue: Arc<dyn Queue>,
    fate: Fate,
    clock: Clock,
    killed_after: Option<Duration>,
}

impl Cluster {
    /// About every third pod works on several messages at a time.
    async fn run_pod(self, pod: u32) {
        let Self { ref queue, ref chance, faults, kind, ref history, .. } = self;
        let runs = if chance.one_in(3) { chance.number(2..5) } else { 1 };
        let fate = Fate {
            chance: chance.clone(),
            faults: if history.lock().unwrap().features.is_some() {
                faults
            } else {
                FaultLevel::None
            },
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        };
        let clock = Clock::start();
        let queue: Arc<dyn Queue> = if runs == 1 {
            Arc::new(queue.clone())
        } else {
            let checked = CheckedBatches { queue: queue.clone(), history: history.clone() };
            let (fifo, runs) = (kind == Kind::Fifo, runs as usize);
            Arc::new(Batches::new(Arc::new(checked), clock, fifo, runs, fate.stop.clone()))
        };
        let stopped_after =
            (faults != FaultLevel::None && chance.one_in(3)).then(|| chance.millis(0..600_000));
        let killed_after =
            (faults == FaultLevel::Severe && chance.one_in(4)).then(|| chance.millis(0..600_000));
        let stopping = fate.stop.clone();
        let _stopping = stopped_after.map(|after| {
            AbortOnDropHandle::new(tokio::spawn(async move {
                sleep(after).await;
                stopping.cancel();
            }))
        });
        let shared = Pod { queue, fate, clock, killed_after };
        let runs = (0..runs).map(|run| self.clone().run(10 * pod + run, shared.clone()));
        let runs: Vec<_> = runs.collect();
        drop(shared);
        join_all(runs).await;
    }

    async fn run(self, pod: u32, shared: Pod) {
        let Self { ref chance, kind, ref history, .. } = self;
        let Pod { queue, fate, clock, killed_after } = shared;
        let features = history.lock().unwrap().features;
        let visibility = Duration::from_secs(u64::from(chance.number(3..180)));
        let grace = Duration::from_secs(u64::from(chance.number(3..60)));
        let reserve = (grace / 3).min(10 * S);
        let max_duration = chance.millis(1000..900_000);
        let longest_poll =
            Duration::from_secs((visibility / 3).min(grace - reserve).min(20 * S).as_secs());
        let mut settings: Settings = settings();
        settings.policy.fifo = kind == Kind::Fifo;
        settings.policy.max_messages = chance.number(1..4);
        settings.policy.limits.max_duration = max_duration;
        if chance.one_in(4) {
            settings.policy.limits.retry.retry = Retry::Expire;
        }
        settings.policy.limits.stop_grace = grace - reserve;
        settings.stop = StopPlan { termination_grace: grace, reserve };
        settings.policy.limits.visibility = visibility;
        if chance.one_in(4) {
            let length = Duration::from_secs((max_duration + grace).as_secs() + 1);
            settings.policy.limits.strategy = Strategy::Fixed(length);
        }
        settings.polling = Polling { wait: longest_poll, longest_poll, give_up: MINUTE };
        let checkpoint =
            features.filter(|features| features.state).map(|Features { interval, .. }| {
                let location = "s3://state/of".parse().expect("a location");
                Checkpointing { location, interval }
            });
        let results = features.is_some_and(|features| features.results);
        let output =
            results.then(|| "s3://results/{key}/{message_id}".parse().expect("a location"));
        let task = Arc::new(Task { input: Input::None, output, checkpoint, ..task() });
        settings.policy.task = Some(task);

        let work = RandomWork {
            chance: chance.clone(),
            pod,
            longest: max_duration.mul_f64(1.3),
            max_duration,
            keeps_state: features.is_some_and(|features| features.state),
            history: history.clone(),
        };
        let stop_grace = settings.policy.limits.stop_grace;
        let telemetry = PodTelemetry { pod, max_duration, stop_grace, history: history.clone() };
        let worker: Arc<dyn Worker> = match features {
            Some(features) => Arc::new(self.real_work(features, work, &fate, clock)),
            None => Arc::new(work),
        };
        let world = World {
            queue: Arc::new(CheckedQueue {
                queue,
                pod,
                fate: fate.clone(),
                history: history.clone(),
            }),
            worker,
            telemetry: Arc::new(telemetry),
            clock,
            work_threads: WorkThreads::Shared,
            health: Health::default(),
        };

        let stop = {
            let (history, stop) = (history.clone(), fate.stop.clone());
            async move {
                stop.cancelled().await;
                let mut history = history.lock().unwrap();
                history.log(pod, "is asked to stop");
                history.stops.insert(pod, Instant::now());
            }
        };
        let run = fate.kill.run_until_cancelled(supervisor::run(world, settings, stop));
        let ended = match killed_after {
            None => run.await,
            Some(after) => timeout(after, run).await.ok().flatten(),
        };
        let mut history = history.lock().unwrap();
        let Some(outcome) = ended else {
            // A KILLed pod has no outcome.
            return history.log(pod, "is KILLed");
        };
        history.log(pod, format!("exits: {outcome:?}"));
        history.check_stop_within_grace(pod, grace);
        if outcome.exit_code() == 70 {
            history.violation(pod, format!("ended with {outcome:?}"));
        }
    }

    /// The real work, set up as in `app.rs`.
    fn real_work(
        &self,
        features: Features,
        command: RandomWork,
        fate: &Fate,
        clock: Clock,
    ) -> CommandWorker {
        let Self { chance, faults, .. } = self;
        let pod = command.pod;
        let cut_off = (*faults != FaultLevel::None && chance.one_in(5)).then(|| {
            let from = Instant::now() + chance.millis(0..600_000);
            from..from + chance.millis(0..600_000)
        });
        let store = Arc::new(Store {
            stores: self.stores.clone(),
            pod,
            fate: fate.clone(),
            cut_off,
            history: self.history.clone(),
        });
        let idempotency = features.records.then(|| Idempotency {
            records: store.clone(),
            location: "s3://records/done".parse().expect("a location"),
            queue: "queue".to_owned(),
            owner: format!("pod {pod}"),
            clock,
        });
        let work_dir =
            self.work_dir.as_ref().expect("the real work has a directory").path().to_owned();
        CommandWorker {
            store: store.clone(),
            runner: Arc::new(command),
            turns: None,
            fetch: FetchPolicy::default(),
            checkpoints: Some(Checkpoints { storage: store.clone(), clock }),
            idempotency,
            outbox: Some(Arc::new(S3Outbox { writer: store })),
            work_dir: WorkDir { path: work_dir, limit: None },
            job_id: format!("pod {pod}"),
            queue_url: None,
            clock,
        }
    }
}

/// The telemetry of one pod.
struct PodTelemetry {
    pod: u32,
    max_duration: Duration,
    stop_grace: Duration,
    history: Arc<Mutex<History>>,
}

#[async_trait]
impl Telemetry for PodTelemetry {
    async fn report(&self, report: &Report) {
        let Report::Ended(ended) = report else { return };
        let mut history = self.history.lock().unwrap();
        let message = ended.subject.message_id.to_string();
        history.log(self.pod, format!("reports {message}: {:?}", ended.settlement));
        history.check_timeout_not_early(self.pod, &message, &ended.settlement, self.max_duration);
        if history.features.is_some() {
            history.check_finished_work_is_published(
                self.pod,
                &message,
                &ended.settlement,
                self.stop_grace,
            );
        }
    }

    fn record(&self, _: Observation) {}
}
