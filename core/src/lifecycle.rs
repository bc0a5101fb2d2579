//! The journey of a message: how each event changes the state of a run.
//!
//! ```text
//! Receiving ──Received──► Processing ──Processed──► Settling ──Settled──► Receiving again, or Done
//!     │                       │ StopRequested,         ▲
//!     │ QueueEmpty,           │ LeaseLost, Overdue,    │ Processed, Overdue(Halt)
//!     │ ReceiveFailed         ▼ ActorDied              │
//!     └──────► Done        Halting ────────────────────┘
//! ```
//!
//! Architecture invariant: every phase handles every event explicitly; an event that comes late or
//! twice changes nothing.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::delivery::{Delivery, DeliveryId, ReceiptHandle, Received, Redrive};
use super::keep_reason::{KeepReason, Role};
use super::outcome::{Failure, Outcome, Timings, WorkRecord};
use super::policy::{Assignment, Policy};
use super::report::{Ended, Held, Progress, Progressed, Report, Subject};
use super::route::{Content, Limits, Task};
use super::run_outcome::{ReceiveFailure, RunOutcome};
use super::verdict::{Completed, Return, Settlement, Verdict};

/// An event in the run.
#[derive(Debug, PartialEq)]
pub enum Event {
    Received(Box<Received>),
    QueueEmpty,
    ReceiveFailed(ReceiveFailure),
    /// The queue's redrive policy is known. Work does not wait for this.
    RedriveKnown(Redrive),
    /// The work resumes from a checkpoint; earlier deliveries worked this long.
    Resumed(Duration),
    /// The work waits for the end of other messages' commands, which does not count as its time.
    WaitsForTurn,
    /// Its turn has come after this wait.
    HasTurn(Duration),
    /// The command reported progress.
    Progressed(Progress),
    /// The command printed nothing and reported no progress for `--stall-timeout`.
    Stalled,
    Processed(Box<Processed>),
    /// The lease is new or was extended, and lasts until this time on the run's clock.
    Held(Duration),
    /// The lease can no longer be proved.
    LeaseLost(String),
    /// SQS's ceiling of 12 hours is near: the lease can no longer be extended.
    LeaseExhausted,
    Settled(Settlement),
    NotDeleted(NotDeleted),
    StopRequested,
    /// An [`Effect::Await`] timed out.
    Overdue(Limit),
    ActorDied(Role),
}

/// The work on a message has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Processed {
    pub outcome: Outcome,
    pub work: WorkRecord,
}

impl Processed {
    /// Failed work without further facts.
    pub fn failed(failure: Failure) -> Self {
        Self { outcome: Outcome::Failed(failure), work: WorkRecord::default() }
    }
}

/// Why a delete failed or was not sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotDeleted {
    /// A stop came first.
    Withdrawn,
    /// The lease ended first, by our clock or by the queue's answer.
    LeaseLost,
    /// The queue kept failing.
    GaveUp(String),
}

/// An action for the actors to carry out.
#[derive(Debug, PartialEq)]
pub enum Effect {
    Poll,
    /// Send no further receive request; still wait for the answer to the last one.
    StopPolling,
    Hold(Box<Hold>),
    Process(Box<Work>),
    /// End the command and start no other. Results of successful work are still published, within
    /// the stop grace.
    Halt,
    /// Publish nothing more: the lease can no longer be proved.
    AbortPublish,
    Settle(Verdict),
    /// Shutdown has begun: send and retry no more deletes, and settle within the reserve.
    Withdraw,
    Await(Limit),
    /// The awaited work has only this much time remaining.
    Shorten(Duration),
    /// Nothing is awaited for the moment: the work's time does not run.
    Suspend,
    Report(Report),
    /// The message is deleted, so its checkpoints are no longer needed.
    DropCheckpoints(Arc<Subject>, Arc<Task>),
    EndRun(RunOutcome),
}

/// A timeout. At most one runs at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `--max-duration`, from the receive.
    Work,
    /// From [`Effect::Halt`] until the Processor ends the work.
    Halt,
    /// The pod is exiting and waits for the message to be settled.
    Settle,
    /// The pod is exiting and waits for the answer to its last receive request.
    LastPoll,
}

/// The lease to hold.
#[derive(Debug, PartialEq)]
pub struct Hold {
    pub delivery: DeliveryId,
    pub receipt: ReceiptHandle,
    /// Just before the receive request for this message was sent.
    pub asked_at: Duration,
    pub limits: Limits,
}

/// Work for the Processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    pub subject: Arc<Subject>,
    pub content: Content,
    /// The message's body.
    pub body: String,
    pub task: Arc<Task>,
    /// The length of the lease with [`Strategy::Heartbeat`](super::lease::Strategy::Heartbeat).
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
    remaining: u32,
    /// The last message that was kept, if any.
    kept: Option<KeepReason>,
    /// How many messages in a row were kept because their command could not be started.
    not_started: u32,
    exiting: Option<Exiting>,
}

/// The current step of the journey.
#[derive(Debug, Clone)]
enum Phase {
    Receiving,
    Processing(InFlight),
    /// The work is being ended; the message will be kept for this reason.
    Halting(InFlight, KeepReason),
    /// The verdict is sent; without an answer, the message counts as kept for this reason.
    Settling(InFlight, KeepReason),
    Done,
}

/// Why the run ends after this message, independent of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exiting {
    Stopped,
    ActorDied(Role),
}

/// The message in flight.
#[derive(Debug, Clone)]
struct InFlight {
    subject: Arc<Subject>,
    /// `--max-duration` counts from here.
    received_at: Duration,
    /// How long earlier deliveries worked.
    worked: Duration,
    /// How long the work waited for its turn, which does not count.
    waited: Duration,
    /// The task, if the next delivery can resume from a checkpoint.
    checkpointed: Option<Arc<Task>>,
    limits: Limits,
    progress: Option<Progress>,
    work: WorkRecord,
    /// When the first verdict was sent.
    judged_at: Option<Duration>,
    /// Was [`Report::Releasing`] sent?
    releasing: bool,
}

/// Splits the delivery: the handle goes to the lease's keeper, and the body to the work, if any.
fn split(
    delivery: Delivery,
    redrive: Redrive,
    assignment: &Assignment,
) -> (Subject, ReceiptHandle, String) {
    let Delivery {
        message_id,
        receipt,
        body,
        payload_failed: _,
        receive_count,
        sent_at,
        first_received_at,
        group_id,
        deduplication_id,
        idempotency_key,
        traceparent,
        attributes,
        sqs,
    } = delivery;
    let (records, job_type) = match assignment {
        Assignment::Work(content, task) => (content.records(), Some(task.name.clone())),
        Assignment::Keep(_, records) => (&records[..], None),
        Assignment::NothingToDo(_) => (&[][..], None),
    };
    let subject = Subject {
        message_id,
        receive_count,
        redrive,
        sent_at,
        first_received_at,
        group_id,
        deduplication_id,
        idempotency_key,
        traceparent,
        attributes,
        sqs,
        body_sha256: hex::encode(Sha256::digest(&body)),
        job_type,
        objects: records.iter().map(|record| record.object.clone()).collect(),
    };
    (subject, receipt, body)
}

/// The result of an event.
#[must_use]
#[derive(Debug)]
pub struct Step {
    pub job: Job,
    pub effects: Vec<Effect>,
}

impl Job {
    /// Starts a run by requesting a message.
    pub fn start(policy: Policy) -> Step {
        let job = Self {
            remaining: policy.max_messages,
            policy,
            phase: Phase::Receiving,
            kept: None,
            not_started: 0,
            exiting: None,
        };
        Step { job, effects: vec![Effect::Poll] }
    }

    /// Handles `event`, which happened at `now` on the run's clock.
    pub fn step(self, now: Duration, event: Event) -> Step {
        let Self { policy, phase, remaining, kept, not_started, exiting } = self;
        let run = Run { policy, remaining, kept, not_started, exiting, now };
        match phase {
            Phase::Receiving => run.receiving(event),
            Phase::Processing(current) => run.processing(current, event),
            Phase::Halting(current, why) => run.halting(current, why, event),
            Phase::Settling(current, unsettled) => run.settling(current, unsettled, event),
            Phase::Done => run.stay(Phase::Done),
        }
    }

    /// The phase's name, for logs and the table of all steps.
    pub fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Receiving => "Receiving",
            Phase::Processing(_) => "Processing",
            Phase::Halting(..) => "Halting",
            Phase::Settling(..) => "Settling",
            Phase::Done => "Done",
        }
    }

    pub fn is_exiting(&self) -> bool {
        self.exiting.is_some()
    }
}

/// After as many messages in a row whose command could not be started, the run ends: a program or a work
/// directory that is missing would use up a receive of each message in the queue.
pub const MOST_NOT_STARTED: u32 = 3;

/// A job between two phases.
struct Run {
    policy: Policy,
    remaining: u32,
    kept: Option<KeepReason>,
    not_started: u32,
    exiting: Option<Exiting>,
    now: Duration,
}

impl Run {
    /// A receive request is in flight.
    fn receiving(mut self, event: Event) -> Step {
        match event {
            Event::Received(received) => self.received(*received),
            Event::ReceiveFailed(failure) if self.exiting.is_none() => {
                self.end_run(Some(RunOutcome::ReceiveFailed(failure)))
            }
            // While exiting, no message was wanted.
            Event::QueueEmpty | Event::ReceiveFailed(_) | Event::Overdue(Limit::LastPoll) => {
                self.end_run(None)
            }
            Event::StopRequested if self.exiting.is_none() => self.last_poll(Exiting::Stopped),
            Event::ActorDied(role @ Role::Processor) if self.exiting.is_none() => {
                self.last_poll(Exiting::ActorDied(role))
            }
            // Without these actors, no message can be received or released.
            Event::ActorDied(role @ (Role::Receiver | Role::VisibilityHeartbeat)) => {
                self.exiting = Some(Exiting::ActorDied(role));
                self.end_run(None)
            }
            Event::StopRequested
            | Event::RedriveKnown(_)
            | Event::Resumed(_)
            | Event::WaitsForTurn
            | Event::HasTurn(_)
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
    fn processing(mut self, mut current: InFlight, event: Event) -> Step {
        match event {
            Event::Resumed(worked) => {
                current.worked = worked;
                let remaining = current.deadline_at().saturating_sub(self.now);
                self.go(Phase::Processing(current), vec![Effect::Shorten(remaining)])
            }
            Event::WaitsForTurn => self.go(Phase::Processing(current), vec![Effect::Suspend]),
            Event::HasTurn(waited) => {
                current.waited += waited;
                let remaining = current.deadline_at().saturating_sub(self.now);
                self.go(Phase::Processing(current), vec![Effect::Shorten(remaining)])
            }
            Event::Progressed(progress) => {
                current.progress = Some(progress.clone());
                let progressed = Progressed { subject: current.subject.clone(), progress };
                self.go(
                    Phase::Processing(current),
                    vec![Effect::Report(Report::Progressed(Box::new(progressed)))],
                )
            }
            Event::RedriveKnown(redrive) => {
                self.stay(Phase::Processing(current.with_redrive(redrive)))
            }
            Event::Held(until) => {
                let held = current.held(until.saturating_sub(self.now));
                self.go(Phase::Processing(current), vec![held])
            }
            Event::Stalled => self.halt(current, KeepReason::Stalled),
            Event::Processed(processed) => {
                let Processed { outcome, work } = *processed;
                let Subject { redrive, .. } = &*current.subject;
                let delivery = current.subject.delivery();
                let verdict = current.limits.retry.judge(&delivery, redrive, outcome);
                current.processed(work);
                self.settle(current, verdict)
            }
            Event::LeaseLost(why) => {
                self.halt(current, KeepReason::LeaseLost(why)).and_abort_publish()
            }
            Event::LeaseExhausted if current.checkpointed.is_some() => {
                self.halt(current, KeepReason::HandedOver)
            }
            Event::LeaseExhausted => self.halt(current, KeepReason::LeaseExhausted),
            Event::Overdue(Limit::Work) => self.halt(current, KeepReason::TimedOut),
            Event::StopRequested => {
                self.exiting = Some(Exiting::Stopped);
                self.halt(current, KeepReason::Stopped)
            }
            Event::ActorDied(role @ Role::Processor) => {
                self.exiting = Some(Exiting::ActorDied(role));
                self.keep(current, KeepReason::ActorDied(role))
            }
            Event::ActorDied(role @ Role::Receiver) => {
                self.exiting = Some(Exiting::ActorDied(role));
                self.halt(current, KeepReason::ActorDied(role))
            }
            Event::ActorDied(role @ Role::VisibilityHeartbeat) => {
                self.exiting = Some(Exiting::ActorDied(role));
                self.halt(current, KeepReason::ActorDied(role)).and_abort_publish()
            }
            Event::Received(_)
            | Event::QueueEmpty
            | Event::ReceiveFailed(_)
            | Event::Settled(_)
            | Event::NotDeleted(_)
            | Event::Overdue(Limit::Halt | Limit::Settle | Limit::LastPoll)
            | Event::ActorDied(Role::Reporter) => self.stay(Phase::Processing(current)),
        }
    }

    /// The work is being ended: a running command gets TERM, and results of successful work are
    /// published. The message is kept, whatever the outcome.
    fn halting(mut self, mut current: InFlight, why: KeepReason, event: Event) -> Step {
        match event {
            Event::Processed(processed) => {
                current.processed(processed.work);
                self.keep(current, why)
            }
            // A Processor that does not answer is treated as dead: it gets no further message.
            Event::Overdue(Limit::Halt) => {
                self.exiting = self.exiting.or(Some(Exiting::ActorDied(Role::Processor)));
                self.keep(current, why)
            }
            Event::ActorDied(role @ Role::Processor) => {
                self.exiting = Some(Exiting::ActorDied(role));
                self.keep(current, why)
            }
            // The reason changes, because no other actor can release the message.
            Event::ActorDied(role @ Role::VisibilityHeartbeat) => {
                self.exiting = Some(Exiting::ActorDied(role));
                self.stay(Phase::Halting(current, KeepReason::ActorDied(role))).and_abort_publish()
            }
            Event::LeaseLost(_) => self.stay(Phase::Halting(current, why)).and_abort_publish(),
            Event::ActorDied(role @ Role::Receiver) => {
                self.exiting = Some(Exiting::ActorDied(role));
                self.stay(Phase::Halting(current, why))
            }
            Event::StopRequested => {
                self.exiting = self.exiting.or(Some(Exiting::Stopped));
                self.stay(Phase::Halting(current, why))
            }
            Event::RedriveKnown(redrive) => {
                self.stay(Phase::Halting(current.with_redrive(redrive), why))
            }
            Event::Held(until) => {
                let held = current.held(until.saturating_sub(self.now));
                self.go(Phase::Halting(current, why), vec![held])
            }
            Event::Received(_)
            | Event::QueueEmpty
            | Event::ReceiveFailed(_)
            | Event::Resumed(_)
            | Event::WaitsForTurn
            | Event::HasTurn(_)
            | Event::Progressed(_)
            | Event::Stalled
            | Event::LeaseExhausted
            | Event::Settled(_)
            | Event::NotDeleted(_)
            | Event::Overdue(Limit::Work | Limit::Settle | Limit::LastPoll)
            | Event::ActorDied(Role::Reporter) => self.stay(Phase::Halting(current, why)),
        }
    }

    /// The VisibilityHeartbeat deletes or releases the message.
    fn settling(mut self, current: InFlight, unsettled: KeepReason, event: Event) -> Step {
        match event {
            Event::Settled(settlement) => self.settled(current, settlement),
            Event::RedriveKnown(redrive) => {
                self.stay(Phase::Settling(current.with_redrive(redrive), unsettled))
            }
            Event::NotDeleted(NotDeleted::Withdrawn) => {
                let why = match self.exiting {
                    Some(Exiting::ActorDied(role)) => KeepReason::ActorDied(role),
                    Some(Exiting::Stopped) | None => KeepReason::Stopped,
                };
                self.keep_instead(current, why)
            }
            Event::NotDeleted(NotDeleted::LeaseLost) => {
                self.keep_instead(current, KeepReason::LostAfterSuccess)
            }
            Event::NotDeleted(NotDeleted::GaveUp(why)) => {
                self.keep_instead(current, KeepReason::DeleteFailed(why))
            }
            Event::Overdue(Limit::Settle) => {
                self.settled(current, Settlement::Kept(unsettled, Return::Unknown))
            }
            Event::ActorDied(role @ Role::VisibilityHeartbeat) => {
                self.exiting = Some(Exiting::ActorDied(role));
                self.settled(
                    current,
                    Settlement::Kept(KeepReason::ActorDied(role), Return::Unknown),
                )
            }
            Event::StopRequested if self.exiting.is_none() => {
                self.withdraw(current, unsettled, Exiting::Stopped)
            }
            Event::ActorDied(role @ (Role::Receiver | Role::Processor))
                if self.exiting.is_none() =>
            {
                self.withdraw(current, unsettled, Exiting::ActorDied(role))
            }
            Event::StopRequested
            | Event::Received(_)
            | Event::QueueEmpty
            | Event::ReceiveFailed(_)
            | Event::Resumed(_)
            | Event::WaitsForTurn
            | Event::HasTurn(_)
            | Event::Progressed(_)
            | Event::Stalled
            | Event::Processed(_)
            | Event::Held(_)
            | Event::LeaseLost(_)
            | Event::LeaseExhausted
            | Event::Overdue(Limit::Work | Limit::Halt | Limit::LastPoll)
            | Event::ActorDied(Role::Receiver | Role::Processor | Role::Reporter) => {
                self.stay(Phase::Settling(current, unsettled))
            }
        }
    }

    fn received(mut self, received: Received) -> Step {
        self.remaining = self.remaining.saturating_sub(1);
        let Received { delivery, asked_at, received_at, redrive } = received;
        let id = delivery.id();
        let (assignment, limits) = self.policy.assign(&delivery);
        let (subject, receipt, body) = split(delivery, redrive, &assignment);
        let subject = Arc::new(subject);
        let timings =
            Timings { receive: received_at.saturating_sub(asked_at), ..Timings::default() };
        let hold = Hold { delivery: id.clone(), receipt, asked_at, limits: limits.clone() };
        let hold = Effect::Hold(Box::new(hold));
        let started = Effect::Report(Report::Started(subject.clone()));
        let mut current = InFlight {
            subject: subject.clone(),
            received_at,
            worked: Duration::ZERO,
            waited: Duration::ZERO,
            checkpointed: None,
            limits,
            progress: None,
            work: WorkRecord { timings, ..WorkRecord::default() },
            judged_at: None,
            releasing: false,
        };
        let mut step = match assignment {
            _ if self.exiting.is_some() => self.keep(current, KeepReason::Stopped),
            Assignment::Keep(why, _) => self.keep(current, why),
            Assignment::NothingToDo(why) => {
                self.settle(current, Verdict::Delete(Completed::nothing_to_do(&id, why)))
            }
            Assignment::Work(content, task) => {
                current.checkpointed = task.checkpoint.is_some().then(|| task.clone());
                let Limits { visibility, stop_grace, max_duration, .. } = current.limits;
                let deadline_at = received_at + max_duration;
                let work =
                    Work { subject, content, body, task, visibility, stop_grace, deadline_at };
                self.go(
                    Phase::Processing(current),
                    vec![Effect::Process(Box::new(work)), Effect::Await(Limit::Work)],
                )
            }
        };
        step.effects.splice(0..0, [hold, started]);
        step
    }

    fn last_poll(mut self, why: Exiting) -> Step {
        self.exiting = Some(why);
        self.go(Phase::Receiving, vec![Effect::StopPolling, Effect::Await(Limit::LastPoll)])
    }

    fn withdraw(mut self, current: InFlight, unsettled: KeepReason, why: Exiting) -> Step {
        self.exiting = Some(why);
        self.go(
            Phase::Settling(current, unsettled),
            vec![Effect::Withdraw, Effect::Await(Limit::Settle)],
        )
    }

    fn halt(self, mut current: InFlight, why: KeepReason) -> Step {
        let mut effects = vec![Effect::Halt, Effect::Await(Limit::Halt)];
        effects.extend(current.reports_release());
        self.go(Phase::Halting(current, why), effects)
    }

    fn keep(self, current: InFlight, why: KeepReason) -> Step {
        if why == KeepReason::ActorDied(Role::VisibilityHeartbeat) {
            return self.settled(current, Settlement::Kept(why, Return::Unknown));
        }
        let Subject { redrive, .. } = &*current.subject;
        let verdict = current.limits.retry.keep(&current.subject.delivery(), redrive, why);
        self.settle(current, verdict)
    }

    /// A [`Limit::Settle`] that runs already is not restarted.
    fn keep_instead(self, current: InFlight, why: KeepReason) -> Step {
        let mut step = self.keep(current, why);
        step.effects.retain(|effect| *effect != Effect::Await(Limit::Settle));
        step
    }

    fn settle(self, mut current: InFlight, verdict: Verdict) -> Step {
        let continues = matches!(&verdict, Verdict::Keep(why, _) if self.continues_after(why));
        let verdict = if continues { verdict.behind_other_messages() } else { verdict };
        current.judged_at = current.judged_at.or(Some(self.now));
        let unsettled = match &verdict {
            Verdict::Delete(_) => KeepReason::DeleteFailed(
                "no answer within the time left for the shutdown".to_owned(),
            ),
            Verdict::Keep(why, _) => why.clone(),
        };
        let releasing =
            if let Verdict::Keep(..) = &verdict { current.reports_release() } else { None };
        let mut effects = vec![Effect::Settle(verdict)];
        effects.extend(releasing);
        if self.exiting.is_some() {
            effects.push(Effect::Await(Limit::Settle));
        }
        self.go(Phase::Settling(current, unsettled), effects)
    }

    fn settled(mut self, current: InFlight, settlement: Settlement) -> Step {
        let (subject, checkpointed) = (current.subject.clone(), current.checkpointed.clone());
        let mut effects = vec![Effect::Report(Report::Ended(Box::new(
            current.ended(self.now, settlement.clone()),
        )))];
        self.not_started = match &settlement {
            Settlement::Kept(KeepReason::CommandNotStarted(_), _) => self.not_started + 1,
            Settlement::Kept(..) | Settlement::Deleted(_) => 0,
        };
        let continues = match settlement {
            Settlement::Deleted(_) => {
                effects.extend(checkpointed.map(|task| Effect::DropCheckpoints(subject, task)));
                self.may_receive()
            }
            Settlement::Kept(why, _) => {
                let continues = self.continues_after(&why);
                self.kept = Some(why);
                continues
            }
        };
        let mut step = if continues {
            self.go(Phase::Receiving, vec![Effect::Poll])
        } else {
            self.end_run(None)
        };
        step.effects.splice(0..0, effects);
        step
    }

    fn may_receive(&self) -> bool {
        self.remaining > 0 && self.exiting.is_none()
    }

    /// Does the run receive more messages after it kept one for this reason?
    fn continues_after(&self, why: &KeepReason) -> bool {
        let can_start = self.not_started < MOST_NOT_STARTED;
        self.may_receive() && can_start && !why.row().ends_the_run && !self.policy.fifo
    }

    /// Ends the run; `failed` is a reason unrelated to any message.
    fn end_run(self, failed: Option<RunOutcome>) -> Step {
        let outcome = match (self.exiting, failed, &self.kept) {
            (Some(Exiting::ActorDied(role)), _, _) => RunOutcome::ActorDied(role),
            (_, Some(failed), _) => failed,
            (_, None, Some(why)) => RunOutcome::Kept(why.clone()),
            (_, None, None) => RunOutcome::Finished,
        };
        self.go(Phase::Done, vec![Effect::EndRun(outcome)])
    }

    fn stay(self, phase: Phase) -> Step {
        self.go(phase, Vec::new())
    }

    fn go(self, phase: Phase, effects: Vec<Effect>) -> Step {
        let Self { policy, remaining, kept, not_started, exiting, now: _ } = self;
        Step { job: Job { policy, phase, remaining, kept, not_started, exiting }, effects }
    }
}

impl Step {
    fn and_abort_publish(mut self) -> Self {
        self.effects.insert(0, Effect::AbortPublish);
        self
    }
}

impl InFlight {
    /// When the work is halted.
    fn deadline_at(&self) -> Duration {
        (self.received_at + self.limits.max_duration + self.waited).saturating_sub(self.worked)
    }

    fn held(&self, remaining: Duration) -> Effect {
        Effect::Report(Report::Held(Box::new(Held { subject: self.subject.clone(), remaining })))
    }

    fn with_redrive(mut self, redrive: Redrive) -> Self {
        Arc::make_mut(&mut self.subject).redrive = redrive;
        self
    }

    /// At most once.
    fn reports_release(&mut self) -> Option<Effect> {
        let was_reported = std::mem::replace(&mut self.releasing, true);
        (!was_reported).then(|| Effect::Report(Report::Releasing(self.subject.message_id.clone())))
    }

    fn processed(&mut self, work: WorkRecord) {
        let timings = Timings { receive: self.work.timings.receive, ..work.timings };
        self.work = WorkRecord { timings, ..work };
    }

    fn ended(self, now: Duration, settlement: Settlement) -> Ended {
        let timings = Timings {
            settle: self
                .judged_at
                .map_or(Duration::ZERO, |judged_at| now.saturating_sub(judged_at)),
            total: now.saturating_sub(self.received_at),
            ..self.work.timings
        };
        Ended {
            subject: self.subject,
            settlement,
            progress: self.progress,
            work: WorkRecord { timings, ..self.work },
        }
    }
}
