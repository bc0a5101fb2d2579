//! Thousands of random worlds: the real actors, a queue in memory, virtual time.
//!
//! In each, a few messages, and pods that are started as KEDA would, stopped and KILLed at any instant, with
//! a queue that fails, is slow, loses answers. A seed says everything about a world, so a failing one is
//! replayed with `SEED=… cargo test simulation`; `SEEDS=100000` looks at more of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::actors::receiver::Polling;
use leasehold::actors::supervisor::{self, Settings, StopBudget, World};
use leasehold::actors::vitals::Vitals;
use leasehold::job::delivery::{Delivery, MessageId, ReceiptHandle, Redrive};
use leasehold::job::lease::Strategy;
use leasehold::job::lifecycle::{Event, Processed, Work};
use leasehold::job::report::Spent;
use leasehold::job::verdict::{DeletePermit, Exit, Failure, Outcome, Retry, Said};
use leasehold::ports::clock::Clock;
use leasehold::ports::memory::{Fault, Kind, MemoryQueue, Standing};
use leasehold::ports::{DeleteError, Queue, ReceiveError, VisibilityError};
use leasehold::work::{Tell, Worker};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::journey::{FakeTelemetry, MINUTE, S, settings};
use crate::support::object_created;

/// Chance, from a seed.
#[derive(Clone)]
struct Chance(Arc<Mutex<fastrand::Rng>>);

impl Chance {
    fn of(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    fn one_in(&self, n: u32) -> bool {
        self.number(0..n) == 0
    }

    fn number(&self, range: Range<u32>) -> u32 {
        self.0.lock().unwrap().u32(range)
    }

    fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.0.lock().unwrap().u64(range))
    }
}

/// What one pod did with one message; what the invariants are made of.
#[derive(Debug, Default, Clone)]
struct Seen {
    /// Each end of its work: when it came, and whether it was a success that nobody had halted.
    ends: Vec<(Instant, bool)>,
    /// When it received the message last.
    received: Option<Instant>,
}

/// All that happened in a world.
#[derive(Default)]
struct Chronicle {
    /// By pod and message.
    seen: BTreeMap<(u32, String), Seen>,
    /// Which message a receipt handle is for.
    receipts: BTreeMap<String, String>,
    /// Who received a message last.
    holder: BTreeMap<String, u32>,
    /// When a pod was asked to stop.
    stops: BTreeMap<u32, Instant>,
    /// Commands that run now, by message.
    running: BTreeMap<String, Vec<u32>>,
    /// Until when a pod may believe that a message is its own, by pod and message.
    leases: BTreeMap<(u32, String), Instant>,
    broken: Vec<String>,
}

/// The queue as one pod sees it, with every call held against the rules.
struct Watched {
    queue: MemoryQueue,
    pod: u32,
    chronicle: Arc<Mutex<Chronicle>>,
}

#[async_trait]
impl Queue for Watched {
    async fn receive(&self, wait: Duration, visibility: Duration) -> Result<Option<Delivery>, ReceiveError> {
        let asked_at = Instant::now();
        let got = self.queue.receive(wait, visibility).await?;
        if let Some(delivery) = &got {
            let mut chronicle = self.chronicle.lock().unwrap();
            let id = delivery.message_id.to_string();
            chronicle.receipts.insert(delivery.receipt.expose().to_owned(), id.clone());
            chronicle.holder.insert(id.clone(), self.pod);
            chronicle.leases.insert((self.pod, id.clone()), asked_at + visibility);
            chronicle.seen.entry((self.pod, id)).or_default().received = Some(Instant::now());
        }
        Ok(got)
    }

    async fn change_visibility(&self, receipt: &ReceiptHandle, visibility: Duration) -> Result<(), VisibilityError> {
        let asked_at = Instant::now();
        let answer = self.queue.change_visibility(receipt, visibility).await;
        let mut chronicle = self.chronicle.lock().unwrap();
        let message = chronicle.receipts[receipt.expose()].clone();
        let lease = chronicle.leases.get_mut(&(self.pod, message)).expect("it received what it extends");
        match answer {
            // A success that comes too late tells nothing.
            Ok(()) if Instant::now() < *lease => *lease = asked_at + visibility,
            Err(VisibilityError::NotInFlight(_)) => *lease = Instant::now(),
            Ok(()) | Err(VisibilityError::AtCeiling(_) | VisibilityError::Transient(_)) => {}
        }
        answer
    }

    async fn delete(&self, permit: DeletePermit<'_>) -> Result<(), DeleteError> {
        {
            let mut chronicle = self.chronicle.lock().unwrap();
            let id = chronicle.receipts[permit.receipt().expose()].clone();
            let seen = chronicle.seen.get(&(self.pod, id.clone())).cloned().unwrap_or_default();
            let since = seen.received.expect("it received what it deletes");
            let ends: Vec<_> = seen.ends.iter().filter(|(at, _)| *at >= since).collect();
            if !matches!(ends[..], [(_, true)]) {
                chronicle.broken.push(format!("pod {} deletes {id} without a success", self.pod));
            }
            if let Some(stop) = chronicle.stops.get(&self.pod)
                && *stop < Instant::now()
            {
                let late = stop.elapsed();
                chronicle.broken.push(format!("pod {} deletes {id} {late:?} after its stop", self.pod));
            }
            if chronicle.holder[&id] != self.pod {
                let holder = chronicle.holder[&id];
                chronicle.broken.push(format!("pod {} deletes {id}, which pod {holder} holds", self.pod));
            }
        }
        self.queue.delete(permit).await
    }

    async fn redrive(&self) -> Redrive {
        self.queue.redrive().await
    }
}

/// Work of random length and end.
struct RandomWork {
    chance: Chance,
    pod: u32,
    longest: Duration,
    stop_grace: Duration,
    chronicle: Arc<Mutex<Chronicle>>,
}

/// Work is over when its future is, dropped or not: so are real commands, by their guard.
struct Running<'a> {
    of: &'a RandomWork,
    message: String,
}

impl<'a> Running<'a> {
    fn start(of: &'a RandomWork, message: &str) -> Self {
        let mut chronicle = of.chronicle.lock().unwrap();
        let running = chronicle.running.entry(message.to_owned()).or_default();
        running.push(of.pod);
        let running = running.clone();
        for pod in running.iter().filter(|pod| **pod != of.pod) {
            // Whose lease was lost, by force of the weather, may still be ending its command. Nobody else.
            let lease = chronicle.leases[&(*pod, message.to_owned())];
            if Instant::now() < lease {
                let what = format!("pod {} works on {message}, whose lease pod {pod} holds", of.pod);
                chronicle.broken.push(what);
            }
        }
        Self { of, message: message.to_owned() }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut chronicle = self.of.chronicle.lock().unwrap();
        chronicle.running.entry(self.message.clone()).or_default().retain(|pod| *pod != self.of.pod);
    }
}

#[async_trait]
impl Worker for RandomWork {
    async fn process(&self, work: Work, halt: CancellationToken, tell: &Tell) -> Processed {
        let message = work.received.delivery.message_id.to_string();
        let running = Running::start(self, &message);
        let length = self.chance.millis(0..u64::try_from(self.longest.as_millis()).unwrap());
        let exit = match self.chance.number(0..6) {
            0..=2 => Exit::Code(0),
            3 => Exit::Code(65),
            4 => Exit::Code(75),
            _ => Exit::Signal(9),
        };
        let stalls = self.chance.one_in(8);
        let ends = async {
            sleep(length).await;
            if stalls {
                tell(Event::Stalled);
                std::future::pending::<()>().await;
            }
        };
        let (exit, halted) = tokio::select! {
            biased;
            () = halt.cancelled() => {
                let ending = self.chance.millis(0..40_000);
                sleep(ending.min(self.stop_grace)).await;
                // Many programs exit 0 on TERM, half way; that proves nothing.
                (if ending < self.stop_grace { Exit::Code(0) } else { Exit::Signal(9) }, true)
            }
            () = ends => (exit, false),
        };
        drop(running);
        let succeeded = exit == Exit::Code(0);
        let mut chronicle = self.chronicle.lock().unwrap();
        let ends = &mut chronicle.seen.entry((self.pod, message)).or_default().ends;
        ends.push((Instant::now(), succeeded && !halted));
        let outcome = if succeeded { Outcome::Finished } else { Outcome::Failed(Failure::Exit(exit, Said::default())) };
        Processed {
            outcome,
            exit: Some(exit),
            said: None,
            last_words: Vec::new(),
            spent: Spent::default(),
            used: None,
            published: None,
        }
    }
}

/// How rough a world is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Weather {
    /// Nothing fails, nobody is stopped.
    Calm,
    /// Calls fail and are slow, but no answer takes as long as a lease.
    Rough,
    /// Answers later than a lease, pods KILLed.
    Wild,
}

async fn world(seed: u64) -> Vec<String> {
    let chance = Chance::of(seed);
    let weather = [Weather::Calm, Weather::Rough, Weather::Wild][chance.number(0..3) as usize];
    let max_receive_count = chance.number(2..6);
    let kind = if chance.one_in(4) { Kind::Fifo } else { Kind::Standard };
    let queue = MemoryQueue::new(kind, Redrive::DeadLetter { max_receive_count, queue: "dlq".to_owned() });
    let messages = chance.number(1..4);
    let sent: Vec<MessageId> =
        (0..messages).map(|n| queue.send_in_group(object_created(&format!("k{n}")), format!("g{}", n % 2))).collect();
    let chronicle = Arc::new(Mutex::new(Chronicle::default()));

    let fault = weather_of(queue.clone(), chance.clone(), weather);
    let storm = tokio::spawn(fault);
    let mut pods = JoinSet::new();
    let started = Instant::now();
    let mut pod = 0;
    // KEDA: a pod a visible message, at most three at once. What is left after two days is lost.
    while let Ok(Standing::Visible) = timeout(48 * 60 * MINUTE, queue.visible_or_drained()).await {
        if pods.len() < 3 {
            pod += 1;
            pods.spawn(run_pod(pod, queue.clone(), chance.clone(), weather, kind, chronicle.clone()));
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
    storm.abort();
    pods.join_all().await;

    let mut chronicle = std::mem::take(&mut *chronicle.lock().unwrap());
    let mut broken = std::mem::take(&mut chronicle.broken);
    if !queue.is_drained() {
        broken.push(format!("{:?} are left after {:?}", queue.counts(), started.elapsed()));
    }
    let dead = queue.dead_letters();
    for letter in &dead {
        if letter.receive_count < max_receive_count {
            broken.push(format!("{} is dead after {} receives", letter.message_id, letter.receive_count));
        }
    }
    for id in &sent {
        let is_dead = dead.iter().any(|letter| letter.message_id == *id);
        let succeeded = chronicle
            .seen
            .iter()
            .any(|((_, message), seen)| message == id.as_str() && seen.ends.iter().any(|(_, succeeded)| *succeeded));
        if !is_dead && !succeeded {
            broken.push(format!("{id} is gone without a success"));
        }
    }
    broken.into_iter().map(|what| format!("{weather:?} {kind:?}: {what}")).collect()
}

/// Faults, as they come.
async fn weather_of(queue: MemoryQueue, chance: Chance, weather: Weather) {
    let slowest = match weather {
        Weather::Calm => return,
        Weather::Rough => 800,
        Weather::Wild => 300_000,
    };
    let transient = || VisibilityError::Transient("503".to_owned());
    loop {
        sleep(chance.millis(0..60_000)).await;
        for _ in 0..chance.number(0..4) {
            let slow = chance.millis(0..slowest);
            match chance.number(0..9) {
                0 => queue.fault_receive(Fault::Error(ReceiveError::Transient("503".to_owned()))),
                1 if weather == Weather::Wild => {
                    queue.fault_receive(Fault::AnswerLost(ReceiveError::Transient("reset".to_owned())));
                }
                2 => queue.fault_change_visibility(Fault::Error(transient())),
                3 => queue.fault_change_visibility(Fault::AnswerLost(transient())),
                4 => queue.fault_change_visibility(Fault::RequestDelayed(slow)),
                5 => queue.fault_change_visibility(Fault::AnswerDelayed(slow)),
                6 => queue.fault_delete(Fault::Error(DeleteError::Transient("503".to_owned()))),
                7 => queue.fault_delete(Fault::AnswerLost(DeleteError::Transient("reset".to_owned()))),
                _ => queue.fault_delete(Fault::AnswerDelayed(slow)),
            }
        }
    }
}

async fn run_pod(
    pod: u32,
    queue: MemoryQueue,
    chance: Chance,
    weather: Weather,
    kind: Kind,
    chronicle: Arc<Mutex<Chronicle>>,
) {
    let visibility = Duration::from_secs(u64::from(chance.number(3..180)));
    let grace = Duration::from_secs(u64::from(chance.number(3..60)));
    let reserve = (grace / 3).min(10 * S);
    let max_duration = chance.millis(1000..900_000);
    let longest_poll = Duration::from_secs((visibility / 3).min(grace - reserve).min(20 * S).as_secs());
    let mut settings: Settings = settings();
    settings.policy.fifo = kind == Kind::Fifo;
    settings.policy.max_messages = chance.number(1..4);
    settings.policy.limits.max_duration = max_duration;
    if chance.one_in(4) {
        settings.policy.limits.retry.retry = Retry::Expire;
    }
    settings.policy.limits.stop_grace = grace - reserve;
    settings.stop = StopBudget { reserve };
    settings.policy.limits.visibility = visibility;
    if chance.one_in(4) {
        settings.policy.limits.strategy = Strategy::Fixed(Duration::from_secs((max_duration + grace).as_secs() + 1));
    }
    settings.polling = Polling { wait: longest_poll, longest_poll, give_up: MINUTE };

    let clock = Clock::start();
    let worker = RandomWork {
        chance: chance.clone(),
        pod,
        longest: max_duration.mul_f64(1.3),
        stop_grace: settings.policy.limits.stop_grace,
        chronicle: chronicle.clone(),
    };
    let world = World {
        queue: Arc::new(Watched { queue, pod, chronicle: chronicle.clone() }),
        worker: Arc::new(worker),
        telemetry: Arc::new(FakeTelemetry::default()),
        clock,
        vitals: Vitals::default(),
    };

    let stopped_after = (weather != Weather::Calm && chance.one_in(3)).then(|| chance.millis(0..600_000));
    let killed_after = (weather == Weather::Wild && chance.one_in(4)).then(|| chance.millis(0..600_000));
    let stop = {
        let chronicle = chronicle.clone();
        async move {
            let Some(after) = stopped_after else { return std::future::pending().await };
            sleep(after).await;
            chronicle.lock().unwrap().stops.insert(pod, Instant::now());
        }
    };
    let run = supervisor::run(world, settings, stop);
    let outcome = match killed_after {
        None => run.await,
        Some(after) => match timeout(after, run).await {
            Ok(outcome) => outcome,
            // What the pod would have said, it cannot say any more.
            Err(_) => return,
        },
    };
    let mut chronicle = chronicle.lock().unwrap();
    if let Some(stop) = chronicle.stops.get(&pod)
        && stop.elapsed() > grace
    {
        let took = stop.elapsed();
        chronicle.broken.push(format!("pod {pod} stopped in {took:?}, its grace is {grace:?}"));
    }
    if outcome.exit_code() == 70 {
        chronicle.broken.push(format!("pod {pod} ended with {outcome:?}"));
    }
}

/// A number from the environment of the test.
#[expect(clippy::disallowed_methods, reason = "the environment of the test, not of the program")]
fn asked_for(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn no_world_loses_a_message_or_breaks_a_guarantee() {
    let seeds = match asked_for("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked_for("SEEDS").unwrap_or(2000),
    };
    let mut failed = Vec::new();
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        // The pauses between tries are jittered by this one.
        fastrand::seed(seed);
        let broken = runtime.block_on(world(seed));
        if !broken.is_empty() {
            failed.push(format!("SEED={seed}\n  {}", broken.join("\n  ")));
        }
        if failed.len() == 5 {
            break;
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
