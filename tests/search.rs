//! The core, exhaustively: all that two pods can do to one message, up to a stated number of steps.
//!
//! Everything here is a value: the message, as a model of SQS's rules (those of `ports/memory.rs`); and two pods at
//! a time, each a real [`Job`], with a real [`Lease`] and a real [`Completed`], whose hands are played here as
//! `actors/` do it. What may happen next is a list of [`Move`]s, and every one of them is tried, in every order.
//!
//! Nothing is timely here: a tick may pass between any two moves, so a process that is frozen, an answer that is late
//! and a timer that fires late are all among what is tried.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use leasehold::job::delivery::{Delivery, MessageId, ReceiptHandle, Received, Redrive};
use leasehold::job::lease::{CEILING, Lease, Strategy};
use leasehold::job::lifecycle::{Effect, Event, Job, Limit, NotDeleted, Policy, Processed, Step};
use leasehold::job::report::{Report, Spent};
use leasehold::job::route::EventFilter;
use leasehold::job::verdict::{
    Completed, Exit, Failure, KeepReason, OnStop, Outcome, ReceiveFailure, Release, Retry, RetryPolicy, Return, Role,
    RunOutcome, Said, Settlement, Verdict,
};
use leasehold::ports::memory::Kind;

use crate::support::object_created;

const S: Duration = Duration::from_secs(1);

/// After so many receives the next one makes it a dead letter.
const MAX_RECEIVES: u32 = 2;

/// What is decided before the first move.
struct Setting {
    kind: Kind,
    policy: Policy,
    strategy: Strategy,
    visibility: Duration,
    tick: Duration,
    steps: Steps,
}

impl Setting {
    /// A lease of three ticks, so that a beat is due at each.
    fn new() -> Self {
        let retry = RetryPolicy {
            retry: Retry::Backoff { min: 10 * S, max: 10 * S },
            on_stop: OnStop::Release,
            permanent_exit_codes: vec![65],
        };
        let policy =
            Policy { events: EventFilter::default(), retry, max_duration: 60 * S, max_messages: 1, fifo: false };
        Self {
            kind: Kind::Standard,
            policy,
            strategy: Strategy::Heartbeat,
            visibility: 30 * S,
            tick: 10 * S,
            steps: Steps::default(),
        }
    }

    /// No message is ever hidden for longer than this.
    fn longest_hidden(&self) -> Duration {
        match self.strategy {
            Strategy::Heartbeat => self.visibility,
            Strategy::Fixed(length) => length,
        }
    }
}

/// The message, as SQS has it.
#[derive(Clone, Hash)]
struct Message {
    standing: Standing,
    /// How often it was received. A delivery's receipt is the count that it had.
    receives: u32,
    received_at: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Standing {
    Visible,
    Hidden { until: Duration },
    Deleted,
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Request {
    Change(Duration),
    Delete,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Answer {
    Ok,
    NotInFlight,
    AtCeiling,
    Refused,
}

impl Message {
    fn receive(&mut self, setting: &Setting, now: Duration) -> Option<u32> {
        if self.standing != Standing::Visible {
            return None;
        }
        if self.receives == MAX_RECEIVES {
            self.standing = Standing::Dead;
            return None;
        }
        self.standing = Standing::Hidden { until: now + setting.visibility };
        self.receives += 1;
        self.received_at = now;
        Some(self.receives)
    }

    /// `hides_again`: whether an extension that comes too late hides the message again is disputed.
    fn answer(&mut self, kind: Kind, now: Duration, receipt: u32, request: Request, hides_again: bool) -> Answer {
        let stale = receipt != self.receives;
        match (request, self.standing) {
            (Request::Change(_), Standing::Deleted | Standing::Dead) => Answer::NotInFlight,
            (Request::Change(to), Standing::Hidden { .. }) if !stale => {
                if now + to > self.received_at + CEILING {
                    return Answer::AtCeiling;
                }
                self.hide(now, to);
                Answer::Ok
            }
            (Request::Delete, Standing::Hidden { .. }) if !stale => {
                self.standing = Standing::Deleted;
                Answer::Ok
            }
            (Request::Change(_), Standing::Hidden { .. } | Standing::Visible) if kind == Kind::Fifo => {
                Answer::NotInFlight
            }
            (Request::Delete, Standing::Hidden { .. } | Standing::Visible) if kind == Kind::Fifo => Answer::Refused,
            (Request::Change(to), Standing::Visible) if !stale && hides_again => {
                self.hide(now, to);
                Answer::Ok
            }
            (Request::Delete, Standing::Visible) if !stale => {
                self.standing = Standing::Deleted;
                Answer::Ok
            }
            // A yes that means nothing.
            (Request::Change(_) | Request::Delete, _) => Answer::Ok,
        }
    }

    fn hide(&mut self, now: Duration, to: Duration) {
        self.standing = if to.is_zero() { Standing::Visible } else { Standing::Hidden { until: now + to } };
    }

    fn is_gone(&self) -> bool {
        matches!(self.standing, Standing::Deleted | Standing::Dead)
    }
}

/// A job and its fingerprint: two with the same one are the same.
struct Core {
    job: Job,
    print: u64,
    /// What it wished for when it came to be. They stay here, because a [`Completed`] cannot be copied.
    effects: Vec<Effect>,
}

impl Core {
    fn of(Step { job, effects }: Step) -> Rc<Self> {
        Rc::new(Self { print: print(&job), job, effects })
    }

    fn verdict(&self) -> &Verdict {
        for effect in &self.effects {
            if let Effect::Settle(verdict) = effect {
                return verdict;
            }
        }
        unreachable!("only who gave one is asked for it")
    }

    fn completed(&self) -> &Completed {
        match self.verdict() {
            Verdict::Delete(completed) => completed,
            Verdict::Keep(..) => unreachable!("only who wished for a delete is asked for it"),
        }
    }
}

/// A hash of what [`fmt::Debug`] writes.
fn print(what: &impl fmt::Debug) -> u64 {
    struct Print(DefaultHasher);
    impl Write for Print {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.write(text.as_bytes());
            Ok(())
        }
    }
    let mut print = Print(DefaultHasher::new());
    write!(print, "{what:?}").unwrap();
    print.0.finish()
}

/// Every step of a job that was ever asked for: the same one is asked for in many worlds.
#[derive(Default)]
struct Steps(RefCell<HashMap<(u64, u64, Duration), Rc<Core>>>);

impl Steps {
    fn after(&self, core: &Core, now: Duration, event: &Event) -> Rc<Core> {
        let step = || Core::of(core.job.clone().step(now, event.clone()));
        self.0.borrow_mut().entry((core.print, print(event), now)).or_insert_with(step).clone()
    }
}

/// One pod: a job and its hands. Points in time within the job and its lease are on the run's clock.
#[derive(Clone)]
struct Pod {
    started_at: Duration,
    core: Rc<Core>,
    poll: Option<Poll>,
    finishing: bool,
    keeper: Option<Keeper>,
    command: Command,
    limit: Option<Limit>,
    /// The command has succeeded under the receipt that is held.
    succeeded: bool,
    stopped: bool,
}

/// A request for a message is out.
#[derive(Clone, Copy, Hash)]
struct Poll {
    asked_at: Duration,
    /// The receipt on its way back, if it brings the message.
    brings: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Command {
    None,
    Running,
    Halting,
}

/// The VisibilityHeartbeat's task, see there.
#[derive(Clone)]
struct Keeper {
    receipt: u32,
    lease: Lease,
    withdrawn: bool,
    /// Not taken yet, because a beat is out.
    verdict: Option<Rc<Core>>,
    doing: Doing,
    /// The call that is out.
    call: Option<Call>,
}

#[derive(Clone)]
enum Doing {
    Holding,
    Deleting { verdict: Rc<Core>, give_up_at: Duration },
    Releasing { why: KeepReason, delay: Duration, give_up_at: Duration },
}

#[derive(Clone, Copy, Hash)]
struct Call {
    request: Request,
    asked_at: Duration,
    /// Given by the queue and on its way back; none as long as the request has not come through.
    answer: Option<Answer>,
}

/// All there is.
#[derive(Clone)]
struct World {
    now: Duration,
    message: Message,
    pods: [Option<Pod>; 2],
    /// Requests for whose answer nobody waits any more; they may still come through.
    strays: Vec<(u32, Request)>,
    /// Receipts under which a command succeeded, as bits.
    successes: u32,
    /// How much may still go wrong; [`World::NO_LIMIT`] is never used up.
    faults: u32,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Move {
    Tick,
    StrayComesThrough(usize),
    Start(usize),
    Of(usize, PodMove),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum PodMove {
    PollComesThrough,
    PollIsAnswered,
    PollFails,
    PollingGivesUp,
    CallComesThrough {
        hides_again: bool,
    },
    CallIsAnswered,
    /// No answer, in time or at all, or one that says nothing. The request may have come through, or may later.
    CallFails,
    Beats,
    RetriesDelete,
    CommandExits(i32),
    CommandStalls,
    LimitIsOver,
    Stop,
    Kill,
    Dies(Role),
}

impl PodMove {
    /// Is this something that goes wrong?
    fn is_fault(self) -> bool {
        match self {
            Self::PollFails
            | Self::PollingGivesUp
            | Self::CallFails
            | Self::CommandStalls
            | Self::LimitIsOver
            | Self::Kill
            | Self::Dies(_) => true,
            Self::CallComesThrough { hides_again } => hides_again,
            Self::PollComesThrough
            | Self::PollIsAnswered
            | Self::CallIsAnswered
            | Self::Beats
            | Self::RetriesDelete
            | Self::CommandExits(_)
            | Self::Stop => false,
        }
    }
}

type Broken = String;

impl World {
    const NO_LIMIT: u32 = u32::MAX;

    fn new(faults: u32) -> Self {
        let message = Message { standing: Standing::Visible, receives: 0, received_at: Duration::ZERO };
        Self { now: Duration::ZERO, message, pods: [None, None], strays: Vec::new(), successes: 0, faults }
    }

    /// All that may happen next.
    fn moves(&self, setting: &Setting) -> Vec<Move> {
        let mut moves = Vec::new();
        if self.message.is_gone() && self.pods.iter().all(Option::is_none) {
            return moves;
        }
        moves.push(Move::Tick);
        moves.extend((0..self.strays.len()).map(Move::StrayComesThrough));
        if let Some(free) = self.pods.iter().position(Option::is_none)
            && !self.message.is_gone()
        {
            moves.push(Move::Start(free));
        }
        for (i, pod) in self.pods.iter().enumerate() {
            if let Some(pod) = pod {
                pod.moves(self, setting, |pod_move| {
                    if self.faults > 0 || !pod_move.is_fault() {
                        moves.push(Move::Of(i, pod_move));
                    }
                });
            }
        }
        moves
    }

    /// What is after a move; or which guarantee it broke.
    fn after(&self, setting: &Setting, chosen: Move) -> Result<Self, Broken> {
        let mut world = self.clone();
        match chosen {
            Move::Tick => world.now += setting.tick,
            Move::StrayComesThrough(i) => {
                let (receipt, request) = world.strays.remove(i);
                world.comes_through(setting, receipt, request, false)?;
            }
            Move::Start(i) => {
                let pod = Pod {
                    started_at: world.now,
                    core: Core::of(Job::start(setting.policy.clone())),
                    poll: None,
                    finishing: false,
                    keeper: None,
                    command: Command::None,
                    limit: None,
                    succeeded: false,
                    stopped: false,
                };
                let mut acting = Acting {
                    setting,
                    world: &mut world,
                    pod,
                    over: None,
                    told: Vec::new(),
                    delete_was_answered: false,
                };
                acting.carry_out()?;
                let pod = acting.pod;
                world.pods[i] = Some(pod);
            }
            Move::Of(i, chosen) => {
                let pod = world.pods[i].take().expect("only a pod that runs has moves");
                if chosen.is_fault() && world.faults != Self::NO_LIMIT {
                    world.faults = world.faults.saturating_sub(1);
                }
                let mut acting = Acting {
                    setting,
                    world: &mut world,
                    pod,
                    over: None,
                    told: Vec::new(),
                    delete_was_answered: false,
                };
                let lives = acting.act(chosen)?;
                let pod = acting.pod;
                world.pods[i] = lives.then_some(pod);
            }
        }
        world.tidy();
        world.check(setting)?;
        Ok(world)
    }

    fn comes_through(
        &mut self,
        setting: &Setting,
        receipt: u32,
        request: Request,
        hides_again: bool,
    ) -> Result<Answer, Broken> {
        let was_gone = self.message.is_gone();
        let answer = self.message.answer(setting.kind, self.now, receipt, request, hides_again);
        if self.message.standing == Standing::Deleted && !was_gone && self.successes & (1 << receipt) == 0 {
            return Err(format!("receipt {receipt} deleted the message without a success"));
        }
        Ok(answer)
    }

    /// Worlds that differ only in what makes no difference any more become the same.
    fn tidy(&mut self) {
        if matches!(self.message.standing, Standing::Hidden { until } if until <= self.now) {
            self.message.standing = Standing::Visible;
        }
        let (is_gone, receives) = (self.message.is_gone(), self.message.receives);
        self.strays.retain(|(receipt, _)| !is_gone && *receipt == receives);
        self.strays.sort_unstable_by_key(|(_, request)| match request {
            Request::Change(to) => Some(*to),
            Request::Delete => None,
        });
        self.strays.dedup();
    }

    /// The guarantees.
    fn check(&self, setting: &Setting) -> Result<(), Broken> {
        if let Standing::Hidden { until } = self.message.standing
            && until > self.now + setting.longest_hidden()
        {
            return Err(format!("the message is hidden until {until:?}"));
        }
        let mut working = 0;
        for pod in self.pods.iter().flatten() {
            if let Some(believed) = pod.believes(self.now) {
                let is_so = match self.message.standing {
                    // By this pod, whose answer is still out: a delete has been checked already.
                    Standing::Deleted => true,
                    Standing::Hidden { .. } => believed == self.message.receives,
                    Standing::Visible | Standing::Dead => false,
                };
                if !is_so {
                    return Err(format!(
                        "receipt {believed} is believed held, but the message is {:?}",
                        self.message.standing
                    ));
                }
                working += u32::from(pod.command != Command::None);
            }
            let lost = pod.keeper.as_ref().is_some_and(|keeper| keeper.lease.expires_at().is_none());
            if lost && pod.core.job.phase() == "Processing" {
                return Err("the lease is lost, and the work goes on".to_owned());
            }
            if pod.stopped && pod.command == Command::Running {
                return Err("the pod was asked to stop, and the work goes on".to_owned());
            }
        }
        if working > 1 {
            return Err("two commands run while both pods believe that the message is theirs".to_owned());
        }
        Ok(())
    }

    /// Points in time matter only as seen from now, and which of two pods is which does not.
    fn key(&self, setting: &Setting) -> u64 {
        let mut pods = self.pods.each_ref().map(|pod| pod.as_ref().map(|pod| pod.key(setting, self.now)));
        pods.sort_unstable();
        let mut hasher = DefaultHasher::new();
        let standing = match self.message.standing {
            Standing::Hidden { until } => Standing::Hidden { until: until - self.now },
            same @ (Standing::Visible | Standing::Deleted | Standing::Dead) => same,
        };
        let room = room(setting, self.now, self.message.received_at);
        // Only the last receipt deletes.
        let has_succeeded = self.successes & (1 << self.message.receives) != 0;
        (standing, self.message.receives, room, has_succeeded, &self.strays, self.faults, pods).hash(&mut hasher);
        hasher.finish()
    }
}

impl Pod {
    fn moves(&self, world: &World, setting: &Setting, mut add: impl FnMut(PodMove)) {
        if let Some(poll) = &self.poll {
            if poll.brings.is_none() && world.message.standing == Standing::Visible {
                add(PodMove::PollComesThrough);
            }
            add(PodMove::PollIsAnswered);
            add(PodMove::PollFails);
            add(PodMove::PollingGivesUp);
        }
        if let Some(keeper) = &self.keeper {
            match &keeper.call {
                Some(Call { answer: None, request, .. }) => {
                    add(PodMove::CallComesThrough { hides_again: false });
                    let is_late =
                        world.message.standing == Standing::Visible && world.message.receives == keeper.receipt;
                    if is_late && *request != Request::Delete && setting.kind == Kind::Standard {
                        add(PodMove::CallComesThrough { hides_again: true });
                    }
                    add(PodMove::CallFails);
                }
                Some(Call { answer: Some(_), .. }) => {
                    add(PodMove::CallIsAnswered);
                    add(PodMove::CallFails);
                }
                None => {
                    if keeper.next_beat_at().is_some_and(|at| at <= world.now - self.started_at) {
                        add(PodMove::Beats);
                    }
                    if matches!(keeper.doing, Doing::Deleting { .. }) {
                        add(PodMove::RetriesDelete);
                    }
                }
            }
        }
        if self.command != Command::None {
            add(PodMove::CommandExits(0));
            add(PodMove::CommandExits(1));
        }
        if self.command == Command::Running {
            add(PodMove::CommandStalls);
        }
        if self.limit.is_some() {
            add(PodMove::LimitIsOver);
        }
        if !self.stopped {
            add(PodMove::Stop);
        }
        add(PodMove::Kill);
        for role in [Role::Receiver, Role::VisibilityHeartbeat, Role::Processor] {
            add(PodMove::Dies(role));
        }
    }

    /// The receipt under which this pod believes that the message is its own, and does not let go of it.
    fn believes(&self, now: Duration) -> Option<u32> {
        let keeper = self.keeper.as_ref()?;
        let holds = matches!(keeper.doing, Doing::Holding | Doing::Deleting { .. });
        (holds && keeper.lease.is_held(now - self.started_at)).then_some(keeper.receipt)
    }

    fn key(&self, setting: &Setting, now: Duration) -> u64 {
        let mut hasher = DefaultHasher::new();
        let limit = self.limit.map(|limit| limit as u8);
        (self.core.print, self.finishing, self.command, limit, self.succeeded, self.stopped).hash(&mut hasher);
        // A lease that was asked for longer ago than it lasts is none, however long ago it was.
        self.poll.map(|poll| (poll.brings, (now - poll.asked_at).min(setting.visibility))).hash(&mut hasher);
        let age = now - self.started_at;
        let in_future = |at: Duration| at.saturating_sub(age);
        if let Some(Keeper { receipt, lease, withdrawn, verdict, doing, call }) = &self.keeper {
            let is_held = lease.is_held(age);
            (receipt, lease.expires_at().map(in_future), lease.next_beat_at().map(in_future)).hash(&mut hasher);
            (room(setting, now, self.started_at), withdrawn).hash(&mut hasher);
            // When it was asked for makes a difference to an extension, and to no other call.
            call.map(|call| (call.request, call.answer, is_held.then_some(age - call.asked_at))).hash(&mut hasher);
            let verdict = verdict.as_deref().map(|verdict| match verdict.verdict() {
                Verdict::Delete(_) => "delete",
                Verdict::Keep(why, _) => why.label(),
            });
            let doing = match doing {
                Doing::Holding => None,
                Doing::Deleting { give_up_at, .. } => Some((None, in_future(*give_up_at))),
                Doing::Releasing { delay, give_up_at, .. } => Some((Some(*delay), in_future(*give_up_at))),
            };
            (verdict, doing).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// What is left of the twelve hours; as long as it is far more than a lease, how much makes no difference.
fn room(setting: &Setting, now: Duration, received_at: Duration) -> Duration {
    CEILING.saturating_sub(now - received_at).min(100 * setting.visibility)
}

impl Keeper {
    /// On the run's clock; a try that failed is made again at any time.
    fn next_beat_at(&self) -> Option<Duration> {
        let beats = matches!(self.doing, Doing::Holding | Doing::Deleting { .. });
        let next_at = self.lease.next_beat_at().filter(|_| beats);
        self.lease.expires_at().filter(|_| beats).map(|end| next_at.unwrap_or(end).min(end))
    }
}

/// A pod while it does something.
struct Acting<'a> {
    setting: &'a Setting,
    world: &'a mut World,
    pod: Pod,
    /// How its run ended.
    over: Option<RunOutcome>,
    /// To the supervisor, in order.
    told: Vec<Event>,
    delete_was_answered: bool,
}

impl Acting<'_> {
    /// Does the pod go on after this?
    fn act(&mut self, chosen: PodMove) -> Result<bool, Broken> {
        match chosen {
            PodMove::PollComesThrough => {
                let brings = self.world.message.receive(self.setting, self.world.now);
                self.poll_mut().brings = brings;
            }
            PodMove::PollIsAnswered => {
                let poll = *self.poll_mut();
                self.pod.poll = None;
                self.told.push(poll.brings.map_or(Event::QueueEmpty, |receipt| self.received(poll, receipt)));
            }
            PodMove::PollFails if self.pod.finishing => {
                self.pod.poll = None;
                self.told.push(Event::QueueEmpty);
            }
            PodMove::PollFails => self.poll(),
            PodMove::PollingGivesUp => {
                self.pod.poll = None;
                self.told.push(Event::ReceiveFailed(ReceiveFailure::GaveUp(String::new())));
            }
            PodMove::CallComesThrough { hides_again } => {
                let (receipt, request) = (self.keeper().receipt, self.call().request);
                let answer = self.world.comes_through(self.setting, receipt, request, hides_again)?;
                self.call().answer = Some(answer);
            }
            PodMove::CallIsAnswered => {
                let answer = self.call().answer;
                self.answered(answer)?;
            }
            PodMove::CallFails => {
                self.let_stray();
                self.answered(None)?;
            }
            PodMove::Beats => {
                self.beat();
                self.after_beat()?;
            }
            PodMove::RetriesDelete => self.delete()?,
            PodMove::CommandExits(code) => self.command_exits(code),
            PodMove::CommandStalls => self.told.push(Event::Stalled),
            PodMove::LimitIsOver => {
                let limit = self.pod.limit.take().expect("one runs");
                self.told.push(Event::Overdue(limit));
            }
            PodMove::Stop => {
                self.pod.stopped = true;
                self.told.push(Event::StopRequested);
            }
            PodMove::Kill => {
                self.let_stray();
                return Ok(false);
            }
            PodMove::Dies(role) => {
                match role {
                    Role::Receiver => self.pod.poll = None,
                    Role::VisibilityHeartbeat => {
                        self.let_stray();
                        self.pod.keeper = None;
                    }
                    Role::Processor => self.pod.command = Command::None,
                    Role::Reporter => {}
                }
                self.told.push(Event::ActorDied(role));
            }
        }
        while !self.told.is_empty() {
            let event = self.told.remove(0);
            let now = self.world.now - self.pod.started_at;
            self.pod.core = self.setting.steps.after(&self.pod.core, now, &event);
            self.carry_out()?;
        }
        if self.over.is_some() != (self.pod.core.job.phase() == "Done") {
            return Err("done without leaving, or the other way round".to_owned());
        }
        if self.over.is_some() {
            self.let_stray();
        }
        Ok(self.over.is_none())
    }

    fn carry_out(&mut self) -> Result<(), Broken> {
        let core = self.pod.core.clone();
        for effect in &core.effects {
            match effect {
                Effect::Poll => {
                    if self.pod.stopped {
                        return Err("a message is asked for after the stop".to_owned());
                    }
                    self.pod.limit = None;
                    self.poll();
                }
                Effect::StopPolling => self.pod.finishing = true,
                Effect::Hold(received) => {
                    let receipt = received.delivery.receive_count;
                    let lease = Lease::taken(self.setting.strategy, self.setting.visibility, received.asked_at);
                    self.pod.succeeded = false;
                    self.pod.keeper = Some(Keeper {
                        receipt,
                        lease,
                        withdrawn: false,
                        verdict: None,
                        doing: Doing::Holding,
                        call: None,
                    });
                }
                Effect::Process(_) if self.pod.stopped || self.pod.command != Command::None => {
                    return Err("a command is started after the stop, or beside another one".to_owned());
                }
                Effect::Process(_) => self.pod.command = Command::Running,
                Effect::Halt if self.pod.command == Command::Running => self.pod.command = Command::Halting,
                Effect::Settle(_) => self.settle(core.clone())?,
                Effect::Withdraw => self.withdraw()?,
                Effect::Await(limit) => self.pod.limit = Some(*limit),
                Effect::Report(Report::Ended(ended)) => {
                    let is_deleted = matches!(ended.settlement, Settlement::Deleted(_));
                    if is_deleted && !self.delete_was_answered {
                        return Err("a message is told to be deleted, and nobody said so".to_owned());
                    }
                }
                Effect::Halt | Effect::Report(_) => {}
                Effect::Leave(outcome) => self.over = Some(outcome.clone()),
            }
        }
        Ok(())
    }

    /// The run's clock is set to zero: it may have begun at any time.
    fn poll(&mut self) {
        self.pod.started_at = self.world.now;
        self.pod.poll = Some(Poll { asked_at: self.world.now, brings: None });
    }

    fn poll_mut(&mut self) -> &mut Poll {
        self.pod.poll.as_mut().expect("a poll is out")
    }

    fn keeper(&mut self) -> &mut Keeper {
        self.pod.keeper.as_mut().expect("a message is held")
    }

    fn call(&mut self) -> &mut Call {
        self.keeper().call.as_mut().expect("a call is out")
    }

    fn now(&self) -> Duration {
        self.world.now - self.pod.started_at
    }

    fn received(&self, poll: Poll, receipt: u32) -> Event {
        let delivery = Delivery {
            message_id: MessageId::new("m"),
            receipt: ReceiptHandle::new(receipt.to_string()),
            body: object_created("k"),
            receive_count: receipt,
            traceparent: None,
        };
        let redrive = Redrive::DeadLetter { max_receive_count: MAX_RECEIVES, queue: "dlq".to_owned() };
        let asked_at = poll.asked_at - self.pod.started_at;
        Event::Received(Box::new(Received { delivery, asked_at, received_at: asked_at, redrive }))
    }

    /// Many programs exit 0 on TERM, half way.
    fn command_exits(&mut self, code: i32) {
        if code == 0 && self.pod.command == Command::Running {
            self.pod.succeeded = true;
            if let Some(keeper) = &self.pod.keeper {
                self.world.successes |= 1 << keeper.receipt;
            }
        }
        self.pod.command = Command::None;
        let exit = Exit::Code(code);
        let outcome = if code == 0 { Outcome::Finished } else { Outcome::Failed(Failure::Exit(exit, Said::default())) };
        let (said, last_words, spent) = (None, Vec::new(), Spent::default());
        self.told.push(Event::Processed(Processed { outcome, exit: Some(exit), said, last_words, spent, used: None }));
    }

    /// Nobody waits any more for the call that is out.
    fn let_stray(&mut self) {
        let Some(keeper) = &mut self.pod.keeper else { return };
        if let Some(Call { request, answer: None, .. }) = keeper.call.take() {
            self.world.strays.push((keeper.receipt, request));
        }
    }

    fn send(&mut self, request: Request) {
        let asked_at = self.now();
        self.keeper().call = Some(Call { request, asked_at, answer: None });
    }

    // From here on as `Keeper` in `actors/heartbeat.rs`.

    fn settle(&mut self, verdict: Rc<Core>) -> Result<(), Broken> {
        // An actor that died hears nothing.
        let Some(keeper) = &mut self.pod.keeper else { return Ok(()) };
        keeper.verdict = Some(verdict);
        if keeper.call.is_none() { self.judged() } else { Ok(()) }
    }

    fn judged(&mut self) -> Result<(), Broken> {
        let now = self.now();
        let Some(verdict) = self.keeper().verdict.take() else { return Ok(()) };
        match verdict.verdict() {
            Verdict::Keep(why, Release::Expire) => self.kept(why.clone(), Return::Unknown),
            Verdict::Keep(why, Release::After(delay)) => {
                let (why, delay) = (why.clone(), *delay);
                self.keeper().doing = Doing::Releasing { why, delay, give_up_at: now + 10 * S };
                self.release();
            }
            Verdict::Delete(_) => {
                let give_up_at = now + self.setting.visibility;
                self.keeper().doing = Doing::Deleting { verdict, give_up_at };
                self.delete()?;
            }
        }
        Ok(())
    }

    fn kept(&mut self, why: KeepReason, comes_back: Return) {
        self.pod.keeper = None;
        self.told.push(Event::Settled(Settlement::Kept(why, comes_back)));
    }

    fn withdraw(&mut self) -> Result<(), Broken> {
        let Some(keeper) = &mut self.pod.keeper else { return Ok(()) };
        keeper.withdrawn = true;
        if keeper.call.is_none() && matches!(keeper.doing, Doing::Deleting { .. }) { self.delete() } else { Ok(()) }
    }

    fn not_deleted(&mut self, why: NotDeleted) {
        self.keeper().doing = Doing::Holding;
        self.told.push(Event::NotDeleted(why));
    }

    fn delete(&mut self) -> Result<(), Broken> {
        let now = self.now();
        let keeper = self.pod.keeper.as_ref().expect("a message is held");
        let Doing::Deleting { verdict, .. } = &keeper.doing else { unreachable!("there was a verdict") };
        if keeper.withdrawn {
            self.not_deleted(NotDeleted::Withdrawn);
        } else if let Some(permit) = verdict.completed().permit(&keeper.lease, now) {
            let its_own = permit.receipt().expose() == keeper.receipt.to_string();
            let holds = self.pod.believes(self.world.now).is_some();
            if !(its_own && holds && self.pod.succeeded && !self.pod.stopped) {
                return Err("a delete without a success, without the lease or after the stop".to_owned());
            }
            self.send(Request::Delete);
        } else {
            self.not_deleted(NotDeleted::LeaseLost);
        }
        Ok(())
    }

    fn release(&mut self) {
        let now = self.now();
        let keeper = self.pod.keeper.as_ref().expect("a message is held");
        let Doing::Releasing { why, delay, .. } = &keeper.doing else { unreachable!("there was a verdict") };
        if keeper.lease.is_held(now) {
            let delay = keeper.lease.release_delay(*delay, now);
            self.send(Request::Change(delay));
        } else {
            let why = why.clone();
            self.kept(why, Return::Unknown);
        }
    }

    fn beat(&mut self) {
        let now = self.now();
        let keeper = self.keeper();
        if !keeper.lease.is_held(now) {
            self.lose();
        } else if let Some(by) = keeper.lease.extension(now) {
            self.send(Request::Change(by));
        } else {
            self.exhausted();
        }
    }

    fn lose(&mut self) {
        self.keeper().lease = self.keeper().lease.lost();
        self.told.push(Event::LeaseLost(String::new()));
    }

    fn exhausted(&mut self) {
        self.keeper().lease = self.keeper().lease.without_beats();
        self.told.push(Event::LeaseExhausted);
    }

    /// The call that is out has ended: with the queue's answer, or with none that says anything.
    fn answered(&mut self, answer: Option<Answer>) -> Result<(), Broken> {
        let now = self.now();
        let keeper = self.keeper();
        let call = keeper.call.take();
        match (&keeper.doing, call.map(|call| call.request), answer) {
            (Doing::Releasing { why, delay, give_up_at }, _, answer) => {
                let (why, delay) = (why.clone(), *delay);
                match answer {
                    Some(Answer::Ok) => self.kept(why, Return::After(delay)),
                    Some(Answer::NotInFlight | Answer::AtCeiling | Answer::Refused) => self.kept(why, Return::Unknown),
                    None if now >= *give_up_at => self.kept(why, Return::Unknown),
                    None => self.release(),
                }
                Ok(())
            }
            (Doing::Deleting { verdict, give_up_at }, None | Some(Request::Delete), answer) => match answer {
                Some(Answer::Ok) => {
                    let why = verdict.completed().why();
                    // Asked for while the lease was held; but if the answer comes after its end, then the message may be
                    // somebody else's, and this yes means nothing. Then the message is told to be deleted, and comes back.
                    if keeper.lease.is_held(now) && self.world.message.standing != Standing::Deleted {
                        return Err("the queue said in time that the message is deleted, and it is not".to_owned());
                    }
                    self.delete_was_answered = true;
                    self.pod.keeper = None;
                    self.told.push(Event::Settled(Settlement::Deleted(why)));
                    Ok(())
                }
                Some(Answer::Refused | Answer::NotInFlight | Answer::AtCeiling) => {
                    self.not_deleted(NotDeleted::LeaseLost);
                    Ok(())
                }
                None if now >= *give_up_at => {
                    self.not_deleted(NotDeleted::GaveUp(String::new()));
                    Ok(())
                }
                None => self.after_beat(),
            },
            (Doing::Holding | Doing::Deleting { .. }, _, answer) => {
                match (answer, call) {
                    (Some(Answer::Ok), Some(Call { request: Request::Change(by), asked_at, .. }))
                        if keeper.lease.is_held(now) =>
                    {
                        keeper.lease = keeper.lease.extended(asked_at, by);
                    }
                    (Some(Answer::Ok | Answer::NotInFlight | Answer::Refused), _) => self.lose(),
                    (Some(Answer::AtCeiling), _) => self.exhausted(),
                    (None, _) => {}
                }
                self.after_beat()
            }
        }
    }

    fn after_beat(&mut self) -> Result<(), Broken> {
        let keeper = self.keeper();
        if keeper.call.is_some() {
            return Ok(());
        }
        match keeper.doing {
            Doing::Holding => self.judged(),
            Doing::Deleting { .. } if keeper.withdrawn || keeper.next_beat_at().is_none() => self.delete(),
            Doing::Deleting { .. } | Doing::Releasing { .. } => Ok(()),
        }
    }
}

/// The moves of a kind world: everything asked is answered, the work succeeds, and nobody waits in vain.
fn kind_move(world: &World) -> Option<Move> {
    let kind = |(i, pod): (usize, &Option<Pod>)| {
        let pod = pod.as_ref()?;
        let call = pod.keeper.as_ref().and_then(|keeper| keeper.call);
        let chosen = match (pod.poll, call, pod.command) {
            (Some(Poll { brings: None, .. }), _, _) if world.message.standing == Standing::Visible => {
                PodMove::PollComesThrough
            }
            (Some(_), _, _) => PodMove::PollIsAnswered,
            (None, Some(Call { answer: None, .. }), _) => PodMove::CallComesThrough { hides_again: false },
            (None, Some(Call { answer: Some(_), .. }), _) => PodMove::CallIsAnswered,
            (None, None, Command::Running | Command::Halting) => PodMove::CommandExits(0),
            (None, None, Command::None) => match pod.keeper.as_ref().map(|keeper| &keeper.doing) {
                Some(Doing::Deleting { .. }) => PodMove::RetriesDelete,
                _ => PodMove::LimitIsOver,
            },
        };
        Some(Move::Of(i, chosen))
    };
    world.pods.iter().enumerate().find_map(kind)
}

/// Nothing is answered any more and the command does not end: only time goes on.
fn dead_move(world: &World, i: usize) -> Move {
    let limited = world.pods[i].as_ref().is_some_and(|pod| pod.limit.is_some());
    if limited { Move::Of(i, PodMove::LimitIsOver) } else { Move::Tick }
}

/// Once asked to stop a pod ends: without any further tick in a kind world, and by its limits alone in a dead one.
/// A message in hand, or on its way, is then visible at once, if that was asked for.
fn check_stop(setting: &Setting, before: &World, i: usize) -> Result<(), Broken> {
    let stopped = before.after(setting, Move::Of(i, PodMove::Stop))?;
    let mut dead = stopped.clone();
    for _ in 0..6 {
        if dead.pods[i].is_some() {
            dead = dead.after(setting, dead_move(&dead, i))?;
        }
    }
    let mut kind = stopped;
    for _ in 0..12 {
        if let Some(chosen) = kind_move(&kind) {
            kind = kind.after(setting, chosen)?;
        }
    }
    if dead.pods[i].is_some() || kind.pods[i].is_some() {
        return Err("a pod that was asked to stop does not end".to_owned());
    }
    let comes_back = before.pods[i].as_ref().is_some_and(|pod| match pod.core.job.phase() {
        // Unless the answer that brought it was lost: then nobody has its receipt.
        "Receiving" => pod.poll.is_some_and(|poll| {
            let may_bring =
                poll.brings == Some(before.message.receives) || before.message.standing == Standing::Visible;
            may_bring && before.now < poll.asked_at + setting.visibility
        }),
        "Processing" => pod.believes(before.now).is_some(),
        _ => false,
    });
    let is_hidden = matches!(kind.message.standing, Standing::Hidden { .. });
    if comes_back && is_hidden && setting.policy.retry.on_stop == OnStop::Release {
        return Err("a pod that was asked to stop leaves its message hidden".to_owned());
    }
    Ok(())
}

/// If from here on all goes well, then the message ends: deleted after a success, or as a dead letter.
fn check_end(setting: &Setting, world: &World) -> Result<(), Broken> {
    let mut world = world.clone();
    for _ in 0..60 {
        let chosen = match (kind_move(&world), world.message.standing) {
            (Some(chosen), _) => chosen,
            (None, Standing::Visible) => Move::Start(0),
            (None, Standing::Hidden { .. }) => Move::Tick,
            (None, Standing::Deleted | Standing::Dead) => return Ok(()),
        };
        world = world.after(setting, chosen)?;
    }
    Err("the message does not end, although all goes well".to_owned())
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
    left_to_expire.strategy = Strategy::Fixed(40 * S);
    left_to_expire.policy.retry.retry = Retry::Expire;
    left_to_expire.policy.retry.on_stop = OnStop::Expire;

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
    let setting = Setting { visibility: 9 * hour, tick: 3 * hour, ..Setting::new() };
    let worlds = search(&setting, 1, 11);
    assert!(worlds > 60_000, "only {worlds} worlds");
}
