//! 6 The journey: what an event means now.
//!
//! ```text
//! Receiving ──Received──► Processing ──Processed──► Settling ──Settled──► Receiving again, or Done
//!     │                       │ StopRequested,         ▲
//!     │ QueueEmpty,           │ LeaseLost, Overdue,    │ Processed, Overdue(Halt)
//!     │ ReceiveFailed         ▼ ActorDied              │
//!     └──────► Done        Halting ────────────────────┘
//! ```
//!
//! Architecture invariant: every event has an answer in every phase, written out; an event that comes
//! late or twice changes nothing.

use std::sync::Arc;
use std::time::Duration;

use super::delivery::{Received, Redrive};
use super::keep_reason::{KeepReason, Role};
use super::notification::parse;
use super::outcome::{Failure, Outcome, Timings, WorkRecord};
use super::report::{Ended, Held, Progress, Progressed, Report, Subject};
use super::route::{Content, JobType, Limits, Route, Selection, Task, job_type, route};
use super::run_outcome::{ReceiveFailure, RunOutcome};
use super::verdict::{Completed, Completion, Return, Settlement, Verdict};

/// What is decided before the first event and never changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub selection: Selection,
    /// Is a body that is no S3 notification work as it is?
    pub accept_raw: bool,
    pub job_types: Vec<JobType>,
    /// For messages of no job type; without it they are kept.
    pub task: Option<Arc<Task>>,
    pub limits: Limits,
    pub max_messages: u32,
    /// A FIFO queue keeps the rest of a group waiting behind a kept message: this pod leaves then.
    pub fifo: bool,
}

impl Policy {
    /// All that may be run.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.task.iter().chain(self.job_types.iter().map(|it| &it.task))
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Received(Box<Received>),
    QueueEmpty,
    ReceiveFailed(ReceiveFailure),
    /// The queue has said what becomes of a message that keeps failing. A message need not wait for that.
    RedriveKnown(Redrive),
    /// The work goes on from a checkpoint, after earlier deliveries worked so long.
    Resumed(Duration),
    /// The command says how far it is.
    Progressed(Progress),
    /// The command printed nothing and made no progress for as long as `--stall-timeout`.
    Stalled,
    Processed(Box<Processed>),
    /// The lease lasts until then, on the run's clock, and longer than before.
    Held(Duration),
    /// The lease cannot be proved any more.
    LeaseLost(String),
    /// SQS's ceiling of 12 hours is near: the lease cannot be extended any more.
    LeaseExhausted,
    Settled(Settlement),
    NotDeleted(NotDeleted),
    StopRequested,
    /// What [`Effect::Await`] asked for did not happen in time.
    Overdue(Limit),
    ActorDied(Role),
}

/// The work on a message has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processed {
    pub outcome: Outcome,
    pub work: WorkRecord,
}

impl Processed {
    /// Of work of which nothing else is known.
    pub fn failed(failure: Failure) -> Self {
        Self { outcome: Outcome::Failed(failure), work: WorkRecord::default() }
    }
}

/// A message that was to be deleted is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotDeleted {
    /// A stop came first.
    Withdrawn,
    /// The lease ended first, or the queue says so.
    LeaseLost,
    /// The queue kept failing.
    GaveUp(String),
}

/// Something wished for.
#[derive(Debug, PartialEq)]
pub enum Effect {
    Poll,
    /// Ask for no further message; the answer to the last request is still awaited.
    StopPolling,
    Hold(Box<Received>, Limits),
    Process(Box<Work>),
    /// End the command, and begin nothing more. What has succeeded is still published, within the grace.
    Halt,
    /// Publish nothing more: nobody can prove any more that the message is ours.
    AbortPublish,
    Settle(Verdict),
    /// The stop has begun: issue no delete any more, retry none, and settle within the reserve.
    Withdraw,
    Await(Limit),
    /// The work that is awaited has only so much time left.
    Shorten(Duration),
    Report(Report),
    Leave(RunOutcome),
}

/// What has a limit in time. At most one of them runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `--max-duration`, from the receive.
    Work,
    /// The Processor was told to halt.
    Halt,
    /// The message is to be let go, and the pod is waiting to leave.
    Settle,
    /// The last request for a message is out, and the pod is waiting to leave.
    LastPoll,
}

/// What the Processor is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    pub received: Received,
    pub content: Content,
    pub task: Arc<Task>,
    /// Length of the message's lease with [`Strategy::Heartbeat`](super::lease::Strategy::Heartbeat).
    pub visibility: Duration,
    pub stop_grace: Duration,
    /// When the work will be halted, on the run's clock.
    pub deadline_at: Duration,
}

/// One pod's journey: its messages, one at a time, each to its verdict.
#[derive(Debug, Clone)]
pub struct Job {
    policy: Policy,
    phase: Phase,
    /// How many more messages may be received.
    left: u32,
    /// The last message that was kept, if any.
    kept: Option<KeepReason>,
    leaving: Option<Leaving>,
}

/// Where the journey is.
#[derive(Debug, Clone)]
enum Phase {
    Receiving,
    Processing(InHand),
    /// The work is being ended; why the message is kept is decided.
    Halting(InHand, KeepReason),
    /// The verdict is given; why the message counts as kept should no answer come.
    Settling(InHand, KeepReason),
    Done,
}

/// The run ends after this message, for a reason of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Stopped,
    ActorDied(Role),
}

/// The message in hand.
#[derive(Debug, Clone)]
struct InHand {
    received: Received,
    /// `None` if there is nothing to work on.
    content: Option<Content>,
    /// `None` if there is nothing to run.
    task: Option<Arc<Task>>,
    limits: Limits,
    progress: Option<Progress>,
    work: WorkRecord,
    /// When the verdict was first given.
    judged_at: Option<Duration>,
    /// Was it told that the message will not be deleted?
    letting_go: bool,
}

/// What comes after an event.
#[must_use]
#[derive(Debug)]
pub struct Step {
    pub job: Job,
    pub effects: Vec<Effect>,
}

impl Job {
    /// A run begins by asking for a message.
    pub fn start(policy: Policy) -> Step {
        let job = Self { left: policy.max_messages, policy, phase: Phase::Receiving, kept: None, leaving: None };
        Step { job, effects: vec![Effect::Poll] }
    }

    /// What `event`, which happened at `now` on the run's clock, means.
    pub fn step(self, now: Duration, event: Event) -> Step {
        let Self { policy, phase, left, kept, leaving } = self;
        let run = Run { policy, left, kept, leaving, now };
        match phase {
            Phase::Receiving => run.receiving(event),
            Phase::Processing(hand) => run.processing(hand, event),
            Phase::Halting(hand, why) => run.halting(hand, why, event),
            Phase::Settling(hand, unsettled) => run.settling(hand, unsettled, event),
            Phase::Done => run.stay(Phase::Done),
        }
    }

    /// The phase's name, for logs and for the table of all steps.
    pub fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Receiving => "Receiving",
            Phase::Processing(_) => "Processing",
            Phase::Halting(..) => "Halting",
            Phase::Settling(..) => "Settling",
            Phase::Done => "Done",
        }
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }
}

/// A job between two phases.
struct Run {
    policy: Policy,
    left: u32,
    kept: Option<KeepReason>,
    leaving: Option<Leaving>,
    now: Duration,
}

impl Run {
    /// A request for a message is out.
    fn receiving(mut self, event: Event) -> Step {
        match event {
            Event::Received(received) => self.received(*received),
            Event::ReceiveFailed(failure) if self.leaving.is_none() => {
                self.leave(Some(RunOutcome::ReceiveFailed(failure)))
            }
            // Whoever is stopping did not want a message any more.
            Event::QueueEmpty | Event::ReceiveFailed(_) | Event::Overdue(Limit::LastPoll) => self.leave(None),
            Event::StopRequested if self.leaving.is_none() => self.last_poll(Leaving::Stopped),
            Event::ActorDied(role @ Role::Processor) if self.leaving.is_none() => {
                self.last_poll(Leaving::ActorDied(role))
            }
            // Nobody is left to tell of a message, or to let go of one.
            Event::ActorDied(role @ (Role::Receiver | Role::VisibilityHeartbeat)) => {
                self.leaving = Some(Leaving::ActorDied(role));
                self.leave(None)
            }
            Event::StopRequested
            | Event::RedriveKnown(_)
            | Event::Resumed(_)
            | Event::Progressed(_)
            | Event::Stalled
            | Event::Processed(_)
            | Event::Held(_)
            | Event::LeaseLost(_)
            | Event::LeaseExhausted
            | Event::Settled(_)
            | Event::NotDeleted(_)
            | Event::Overdue(Limit::Work | Limit::Halt | Limit::Settle)
            | Event::ActorDied(Role::Processor | Role::Reporter) => self.stay(Phase::Receiving),
        }
    }

    /// The work runs.
    fn processing(mut self, mut hand: InHand, event: Event) -> Step {
        match event {
            Event::Resumed(worked) => {
                let deadline_at = hand.received.received_at + hand.limits.max_duration;
                let left = deadline_at.saturating_sub(worked).saturating_sub(self.now);
                self.go(Phase::Processing(hand), vec![Effect::Shorten(left)])
            }
            Event::Progressed(progress) => {
                hand.progress = Some(progress.clone());
                let progressed = Progressed { subject: hand.subject(), progress };
                self.go(Phase::Processing(hand), vec![Effect::Report(Report::Progressed(Box::new(progressed)))])
            }
            Event::RedriveKnown(redrive) => self.stay(Phase::Processing(hand.redriven(redrive))),
            Event::Held(until) => {
                let held = hand.held(until.saturating_sub(self.now));
                self.go(Phase::Processing(hand), vec![held])
            }
            Event::Stalled => self.halt(hand, KeepReason::Stalled),
            Event::Processed(processed) => {
                let Processed { outcome, work } = *processed;
                let verdict = hand.limits.retry.judge(&hand.received.delivery, outcome);
                hand.processed(work);
                self.settle(hand, verdict)
            }
            Event::LeaseLost(why) => self.halt(hand, KeepReason::LeaseLost(why)).and_abort_publish(),
            Event::LeaseExhausted if hand.resumes() => self.halt(hand, KeepReason::HandedOver),
            Event::LeaseExhausted => self.halt(hand, KeepReason::LeaseExhausted),
            Event::Overdue(Limit::Work) => self.halt(hand, KeepReason::TimedOut),
            Event::StopRequested => {
                self.leaving = Some(Leaving::Stopped);
                self.halt(hand, KeepReason::Stopped)
            }
            Event::ActorDied(role @ Role::Processor) => {
                self.leaving = Some(Leaving::ActorDied(role));
                self.keep(hand, KeepReason::ActorDied(role))
            }
            Event::ActorDied(role @ Role::Receiver) => {
                self.leaving = Some(Leaving::ActorDied(role));
                self.halt(hand, KeepReason::ActorDied(role))
            }
            Event::ActorDied(role @ Role::VisibilityHeartbeat) => {
                self.leaving = Some(Leaving::ActorDied(role));
                self.halt(hand, KeepReason::ActorDied(role)).and_abort_publish()
            }
            Event::Received(_)
            | Event::QueueEmpty
            | Event::ReceiveFailed(_)
            | Event::Settled(_)
            | Event::NotDeleted(_)
            | Event::Overdue(Limit::Halt | Limit::Settle | Limit::LastPoll)
            | Event::ActorDied(Role::Reporter) => self.stay(Phase::Processing(hand)),
        }
    }

    /// The work is being ended: a command by TERM, and what has succeeded by being published. Whatever it says from now on,
    /// the message is kept.
    fn halting(mut self, mut hand: InHand, why: KeepReason, event: Event) -> Step {
        match event {
            Event::Processed(processed) => {
                hand.processed(processed.work);
                self.keep(hand, why)
            }
            // A Processor that does not answer is as good as dead: it gets no further message.
            Event::Overdue(Limit::Halt) => {
                self.leaving = self.leaving.or(Some(Leaving::ActorDied(Role::Processor)));
                self.keep(hand, why)
            }
            Event::ActorDied(role @ Role::Processor) => {
                self.leaving = Some(Leaving::ActorDied(role));
                self.keep(hand, why)
            }
            // The reason changes, because nobody is left who could let go of the message.
            Event::ActorDied(role @ Role::VisibilityHeartbeat) => {
                self.leaving = Some(Leaving::ActorDied(role));
                self.stay(Phase::Halting(hand, KeepReason::ActorDied(role))).and_abort_publish()
            }
            Event::LeaseLost(_) => self.stay(Phase::Halting(hand, why)).and_abort_publish(),
            Event::ActorDied(role @ Role::Receiver) => {
                self.leaving = Some(Leaving::ActorDied(role));
                self.stay(Phase::Halting(hand, why))
            }
            Event::StopRequested => {
                self.leaving = self.leaving.or(Some(Leaving::Stopped));
                self.stay(Phase::Halting(hand, why))
            }
            Event::RedriveKnown(redrive) => self.stay(Phase::Halting(hand.redriven(redrive), why)),
            Event::Held(until) => {
                let held = hand.held(until.saturating_sub(self.now));
                self.go(Phase::Halting(hand, why), vec![held])
            }
            Event::Received(_)
            | Event::QueueEmpty
            | Event::ReceiveFailed(_)
            | Event::Resumed(_)
            | Event::Progressed(_)
            | Event::Stalled
            | Event::LeaseExhausted
            | Event::Settled(_)
            | Event::NotDeleted(_)
            | Event::Overdue(Limit::Work | Limit::Settle | Limit::LastPoll)
            | Event::ActorDied(Role::Reporter) => self.stay(Phase::Halting(hand, why)),
        }
    }

    /// The VisibilityHeartbeat deletes the message or lets it go.
    fn settling(mut self, hand: InHand, unsettled: KeepReason, event: Event) -> Step {
        match event {
            Event::Settled(settlement) => self.settled(hand, settlement),
            Event::RedriveKnown(redrive) => self.stay(Phase::Settling(hand.redriven(redrive), unsettled)),
            Event::NotDeleted(NotDeleted::Withdrawn) => {
                let why = match self.leaving {
                    Some(Leaving::ActorDied(role)) => KeepReason::ActorDied(role),
                    Some(Leaving::Stopped) | None => KeepReason::Stopped,
                };
                self.keep_after_all(hand, why)
            }
            Event::NotDeleted(NotDeleted::LeaseLost) => self.keep_after_all(hand, KeepReason::LostAfterSuccess),
            Event::NotDeleted(NotDeleted::GaveUp(why)) => self.keep_after_all(hand, KeepReason::DeleteFailed(why)),
            Event::Overdue(Limit::Settle) => self.settled(hand, Settlement::Kept(unsettled, Return::Unknown)),
            Event::ActorDied(role @ Role::VisibilityHeartbeat) => {
                self.leaving = Some(Leaving::ActorDied(role));
                self.settled(hand, Settlement::Kept(KeepReason::ActorDied(role), Return::Unknown))
            }
            Event::StopRequested if self.leaving.is_none() => self.withdraw(hand, unsettled, Leaving::Stopped),
            Event::ActorDied(role @ (Role::Receiver | Role::Processor)) if self.leaving.is_none() => {
                self.withdraw(hand, unsettled, Leaving::ActorDied(role))
            }
            Event::StopRequested
            | Event::Received(_)
            | Event::QueueEmpty
            | Event::ReceiveFailed(_)
            | Event::Resumed(_)
            | Event::Progressed(_)
            | Event::Stalled
            | Event::Processed(_)
            | Event::Held(_)
            | Event::LeaseLost(_)
            | Event::LeaseExhausted
            | Event::Overdue(Limit::Work | Limit::Halt | Limit::LastPoll)
            | Event::ActorDied(Role::Receiver | Role::Processor | Role::Reporter) => {
                self.stay(Phase::Settling(hand, unsettled))
            }
        }
    }

    fn received(mut self, received: Received) -> Step {
        self.left = self.left.saturating_sub(1);
        let routed = match parse(&received.delivery.body) {
            Ok(notification) => route(notification, &self.policy.selection),
            Err(_) if self.policy.accept_raw => Ok(Route::Work(Content::Body)),
            Err(why) => Err(why.to_string()),
        };
        let mut limits = self.policy.limits.clone();
        let (content, task, verdict) = match routed {
            Ok(Route::Work(content)) => {
                let picked = job_type(&self.policy.job_types, &content).and_then(|job_type| {
                    limits = job_type.map_or(&self.policy.limits, |it| &it.limits).clone();
                    let task = job_type.map(|it| &it.task).or(self.policy.task.as_ref());
                    task.cloned().ok_or_else(|| "none takes it, and there is no command for all others".to_owned())
                });
                match picked {
                    Ok(task) => (Some(content), Some(task), None),
                    Err(why) => {
                        let verdict = limits.retry.keep(&received.delivery, KeepReason::NoJobType(why));
                        (Some(content), None, Some(verdict))
                    }
                }
            }
            Ok(Route::Nothing(why)) => {
                (None, None, Some(Verdict::Delete(Completed::new(&received.delivery, Completion::NothingToDo(why)))))
            }
            Err(why) => (None, None, Some(limits.retry.keep(&received.delivery, KeepReason::NotANotification(why)))),
        };
        let hold = Effect::Hold(Box::new(received.clone()), limits.clone());
        let receive = received.received_at.saturating_sub(received.asked_at);
        let timings = Timings { receive, ..Timings::default() };
        let hand = InHand {
            work: WorkRecord { timings, ..WorkRecord::default() },
            received,
            content,
            task,
            limits,
            progress: None,
            judged_at: None,
            letting_go: false,
        };
        let started = Effect::Report(Report::Started(hand.subject()));
        let mut step = if self.leaving.is_some() {
            self.keep(hand, KeepReason::Stopped)
        } else if let Some(verdict) = verdict {
            self.settle(hand, verdict)
        } else {
            let work = Work {
                received: hand.received.clone(),
                content: hand.content.clone().expect("what is not settled is worked on"),
                task: hand.task.clone().expect("what is worked on has a task"),
                visibility: hand.limits.visibility,
                stop_grace: hand.limits.stop_grace,
                deadline_at: hand.received.received_at + hand.limits.max_duration,
            };
            self.go(Phase::Processing(hand), vec![Effect::Process(Box::new(work)), Effect::Await(Limit::Work)])
        };
        step.effects.splice(0..0, [hold, started]);
        step
    }

    fn last_poll(mut self, why: Leaving) -> Step {
        self.leaving = Some(why);
        self.go(Phase::Receiving, vec![Effect::StopPolling, Effect::Await(Limit::LastPoll)])
    }

    fn withdraw(mut self, hand: InHand, unsettled: KeepReason, why: Leaving) -> Step {
        self.leaving = Some(why);
        self.go(Phase::Settling(hand, unsettled), vec![Effect::Withdraw, Effect::Await(Limit::Settle)])
    }

    fn halt(self, mut hand: InHand, why: KeepReason) -> Step {
        let mut effects = vec![Effect::Halt, Effect::Await(Limit::Halt)];
        effects.extend(hand.letting_go());
        self.go(Phase::Halting(hand, why), effects)
    }

    fn keep(self, hand: InHand, why: KeepReason) -> Step {
        if why == KeepReason::ActorDied(Role::VisibilityHeartbeat) {
            return self.settled(hand, Settlement::Kept(why, Return::Unknown));
        }
        let verdict = hand.limits.retry.keep(&hand.received.delivery, why);
        self.settle(hand, verdict)
    }

    /// A limit for the settlement that runs already goes on running.
    fn keep_after_all(self, hand: InHand, why: KeepReason) -> Step {
        let mut step = self.keep(hand, why);
        step.effects.retain(|effect| *effect != Effect::Await(Limit::Settle));
        step
    }

    fn settle(self, mut hand: InHand, verdict: Verdict) -> Step {
        hand.judged_at = hand.judged_at.or(Some(self.now));
        let unsettled = match &verdict {
            Verdict::Delete(_) => KeepReason::DeleteFailed("no answer within the time left for the stop".to_owned()),
            Verdict::Keep(why, _) => why.clone(),
        };
        let letting_go = if let Verdict::Keep(..) = &verdict { hand.letting_go() } else { None };
        let mut effects = vec![Effect::Settle(verdict)];
        effects.extend(letting_go);
        if self.leaving.is_some() {
            effects.push(Effect::Await(Limit::Settle));
        }
        self.go(Phase::Settling(hand, unsettled), effects)
    }

    fn settled(mut self, hand: InHand, settlement: Settlement) -> Step {
        let ended = Effect::Report(Report::Ended(Box::new(hand.ended(self.now, settlement.clone()))));
        let go_on = match settlement {
            Settlement::Deleted(_) => true,
            Settlement::Kept(why, _) => {
                let go_on = !why.row().ends_the_run && !self.policy.fifo;
                self.kept = Some(why);
                go_on
            }
        };
        let mut step = if go_on && self.left > 0 && self.leaving.is_none() {
            self.go(Phase::Receiving, vec![Effect::Poll])
        } else {
            self.leave(None)
        };
        step.effects.insert(0, ended);
        step
    }

    /// The run is over; `failed` if for a reason that no message had.
    fn leave(self, failed: Option<RunOutcome>) -> Step {
        let outcome = match (self.leaving, failed, &self.kept) {
            (Some(Leaving::ActorDied(role)), _, _) => RunOutcome::ActorDied(role),
            (_, Some(failed), _) => failed,
            (_, None, Some(why)) => RunOutcome::Kept(why.clone()),
            (_, None, None) => RunOutcome::Finished,
        };
        self.go(Phase::Done, vec![Effect::Leave(outcome)])
    }

    fn stay(self, phase: Phase) -> Step {
        self.go(phase, Vec::new())
    }

    fn go(self, phase: Phase, effects: Vec<Effect>) -> Step {
        let Self { policy, left, kept, leaving, now: _ } = self;
        Step { job: Job { policy, phase, left, kept, leaving }, effects }
    }
}

impl Step {
    fn and_abort_publish(mut self) -> Self {
        self.effects.insert(0, Effect::AbortPublish);
        self
    }
}

impl InHand {
    fn held(&self, remaining: Duration) -> Effect {
        Effect::Report(Report::Held(Box::new(Held { subject: self.subject(), remaining })))
    }

    fn subject(&self) -> Subject {
        let records = self.content.as_ref().map_or(&[][..], Content::records);
        Subject::new(&self.received, records, self.task.as_ref().map(|task| task.name.clone()))
    }

    fn redriven(mut self, redrive: Redrive) -> Self {
        self.received.redrive = redrive;
        self
    }

    /// Can the next delivery go on where this one ends?
    fn resumes(&self) -> bool {
        self.task.as_ref().is_some_and(|task| task.checkpoint.is_some())
    }

    /// To be told once.
    fn letting_go(&mut self) -> Option<Effect> {
        let told = std::mem::replace(&mut self.letting_go, true);
        (!told).then(|| Effect::Report(Report::LettingGo(self.received.delivery.message_id.clone())))
    }

    fn processed(&mut self, work: WorkRecord) {
        let timings = Timings { receive: self.work.timings.receive, ..work.timings };
        self.work = WorkRecord { timings, ..work };
    }

    fn ended(self, now: Duration, settlement: Settlement) -> Ended {
        let timings = Timings {
            settle: self.judged_at.map_or(Duration::ZERO, |judged_at| now.saturating_sub(judged_at)),
            total: now.saturating_sub(self.received.received_at),
            ..self.work.timings
        };
        Ended {
            subject: self.subject(),
            settlement,
            progress: self.progress,
            work: WorkRecord { timings, ..self.work },
        }
    }
}
