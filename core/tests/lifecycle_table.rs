//! Every phase × every event, as one table for review; and properties of all sequences of events.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use leasehold_core::delivery::{
    Delivery, MessageId, ReceiptHandle, Received, Redrive, SqsAttributes,
};
use leasehold_core::keep_reason::{KeepReason, Role};
use leasehold_core::lease::CEILING;
use leasehold_core::lifecycle::{Effect, Event, Job, Limit, NotDeleted, Processed, Step};
use leasehold_core::outcome::{CommandReport, Exit, Failure, Outcome, WorkRecord};
use leasehold_core::policy::Policy;
use leasehold_core::report::{Progress, Report};
use leasehold_core::route::{Checkpointing, JobType, Limits, Match, Task};
use leasehold_core::run_outcome::{ReceiveFailure, RunOutcome};
use leasehold_core::verdict::{
    Completion, Release, Retry, RetryPolicy, Return, Settlement, Verdict,
};
use proptest::prelude::*;

use crate::support::{settings, task};

const S: Duration = Duration::from_secs(1);

fn policy(max_messages: u32) -> Policy {
    // An empty range, so the table has no jitter.
    let limits = Limits {
        ceiling: CEILING,
        retry: RetryPolicy {
            retry: Retry::Backoff { min: 10 * S, max: 10 * S },
            ..settings().policy.limits.retry
        },
        ..settings().policy.limits
    };
    let checkpoint =
        Some(Checkpointing { location: "s3://state/{job_type}".parse().unwrap(), interval: None });
    let long = JobType {
        matches: Match { key: Some("long/**".parse().unwrap()), ..Match::default() },
        object_from: None,
        task: Arc::new(Task { name: "long".to_owned(), checkpoint, ..task() }),
        limits: limits.clone(),
    };
    Policy { job_types: vec![long], limits, max_messages, ..settings().policy }
}

fn received(body: &str) -> Event {
    received_as(body, None)
}

fn received_as(body: &str, payload_failed: Option<KeepReason>) -> Event {
    let delivery = Delivery {
        message_id: MessageId::new("m"),
        receipt: ReceiptHandle::new("r"),
        body: body.to_owned(),
        payload_failed,
        receive_count: 1,
        sent_at: None,
        first_received_at: None,
        group_id: None,
        deduplication_id: None,
        idempotency_key: None,
        traceparent: None,
        attributes: BTreeMap::new(),
        sqs: SqsAttributes::default(),
    };
    Event::Received(Box::new(Received {
        delivery,
        asked_at: S,
        received_at: S,
        redrive: Redrive::Unknown,
    }))
}

const OBJECT_CREATED: &str = include_str!("fixtures/s3-put.json");
const TEST_EVENT: &str = include_str!("fixtures/s3-test-event.json");

fn processed(outcome: Outcome) -> Event {
    Event::Processed(Box::new(Processed { outcome, work: WorkRecord::default() }))
}

fn exited(code: i32) -> Event {
    processed(Outcome::Failed(Failure::Exit(Exit::Code(code), CommandReport::default())))
}

fn kept(why: KeepReason) -> Event {
    Event::Settled(Settlement::Kept(why, Return::After(10 * S)))
}

/// Events cannot be cloned, because a receipt handle has one owner.
type Make = fn() -> Event;

/// Every event, with every payload that is handled differently.
fn events() -> Vec<(&'static str, Make)> {
    vec![
        ("Received(object created)", || received(OBJECT_CREATED)),
        ("Received(test event)", || received(TEST_EVENT)),
        ("Received(no notification)", || received("hello")),
        ("QueueEmpty", || Event::QueueEmpty),
        ("ReceiveFailed(gave up)", || Event::ReceiveFailed(ReceiveFailure::GaveUp("503".into()))),
        ("ReceiveFailed(misconfigured)", || {
            Event::ReceiveFailed(ReceiveFailure::Misconfigured("no queue".into()))
        }),
        ("RedriveKnown", || {
            Event::RedriveKnown(Redrive::DeadLetter {
                max_receive_count: 3,
                queue: "dlq".to_owned(),
            })
        }),
        ("Resumed(a while)", || Event::Resumed(100 * S)),
        ("Resumed(all its time)", || Event::Resumed(10_000 * S)),
        ("WaitsForTurn", || Event::WaitsForTurn),
        ("HasTurn(after a while)", || Event::HasTurn(100 * S)),
        ("Progressed", || Event::Progressed(Progress { share: Some(0.4), text: None })),
        ("Stalled", || Event::Stalled),
        ("Processed(finished)", || processed(Outcome::Finished)),
        ("Processed(exit 1)", || exited(1)),
        ("Processed(exit 65)", || exited(65)),
        ("Processed(exit 75)", || exited(75)),
        ("Processed(fetch failed)", || processed(Outcome::Failed(Failure::Fetch("503".into())))),
        ("Processed(publish failed)", || {
            processed(Outcome::Failed(Failure::Publish("503".into())))
        }),
        ("Processed(not recorded)", || processed(Outcome::Failed(Failure::Record("503".into())))),
        ("Processed(superseded)", || processed(Outcome::Failed(Failure::Superseded("412".into())))),
        ("Processed(objects gone)", || processed(Outcome::ObjectsGone)),
        ("Processed(already done)", || processed(Outcome::AlreadyDone)),
        ("Processed(panicked)", || processed(Outcome::Failed(Failure::Panicked("a bug".into())))),
        ("Processed(halted)", || processed(Outcome::Failed(Failure::Halted))),
        ("Held", || Event::Held(61 * S)),
        ("LeaseLost", || Event::LeaseLost("expired".into())),
        ("LeaseExhausted", || Event::LeaseExhausted),
        ("Settled(deleted)", || Event::Settled(Settlement::Deleted(Completion::Succeeded))),
        ("Settled(deleted: already done)", || {
            Event::Settled(Settlement::Deleted(Completion::AlreadyDone))
        }),
        ("Settled(kept: command failed)", || kept(KeepReason::CommandFailed(Exit::Code(1)))),
        ("Settled(kept: stopped)", || kept(KeepReason::Stopped)),
        ("Settled(kept: handed over)", || kept(KeepReason::HandedOver)),
        ("Settled(kept: lease lost)", || kept(KeepReason::LeaseLost("superseded".into()))),
        ("NotDeleted(withdrawn)", || Event::NotDeleted(NotDeleted::Withdrawn)),
        ("NotDeleted(lease lost)", || Event::NotDeleted(NotDeleted::LeaseLost)),
        ("NotDeleted(gave up)", || Event::NotDeleted(NotDeleted::GaveUp("503".into()))),
        ("StopRequested", || Event::StopRequested),
        ("Overdue(Work)", || Event::Overdue(Limit::Work)),
        ("Overdue(Halt)", || Event::Overdue(Limit::Halt)),
        ("Overdue(Settle)", || Event::Overdue(Limit::Settle)),
        ("Overdue(LastPoll)", || Event::Overdue(Limit::LastPoll)),
        ("ActorDied(Receiver)", || Event::ActorDied(Role::Receiver)),
        ("ActorDied(VisibilityHeartbeat)", || Event::ActorDied(Role::VisibilityHeartbeat)),
        ("ActorDied(Processor)", || Event::ActorDied(Role::Processor)),
        ("ActorDied(Reporter)", || Event::ActorDied(Role::Reporter)),
    ]
}

/// The phases, each as the events that lead to it.
fn phases() -> Vec<(&'static str, Vec<Make>)> {
    let got: Make = || received(OBJECT_CREATED);
    let superseded: Make = || processed(Outcome::Failed(Failure::Superseded("412".into())));
    let got_long: Make = || received(&OBJECT_CREATED.replace("incoming/", "long/"));
    vec![
        ("Receiving", vec![]),
        ("Receiving, asked to stop", vec![|| Event::StopRequested]),
        ("Processing", vec![got]),
        ("Halting, asked to stop", vec![got, || Event::StopRequested]),
        ("Halting, timed out", vec![got, || Event::Overdue(Limit::Work)]),
        ("Halting, stalled", vec![got, || Event::Stalled]),
        ("Halting, lease lost", vec![got, || Event::LeaseLost("expired".into())]),
        ("Halting, at SQS's ceiling", vec![got, || Event::LeaseExhausted]),
        (
            "Halting, at SQS's ceiling, of a job type with a checkpoint",
            vec![got_long, || Event::LeaseExhausted],
        ),
        (
            "Settling a delete of a job type with a checkpoint",
            vec![got_long, || processed(Outcome::Finished)],
        ),
        ("Settling a success", vec![got, || processed(Outcome::Finished)]),
        (
            "Settling a success, asked to stop",
            vec![got, || processed(Outcome::Finished), || Event::StopRequested],
        ),
        ("Settling work that another pod has claimed", vec![got, superseded]),
        ("Settling a failure", vec![got, || exited(1)]),
        ("Done", vec![|| Event::QueueEmpty]),
    ]
}

fn walk(max_messages: u32, events: impl IntoIterator<Item = Event>) -> Job {
    events
        .into_iter()
        .fold(Job::start(policy(max_messages)).job, |job, event| job.step(2 * S, event).job)
}

fn describe(effect: &Effect) -> String {
    match effect {
        Effect::Hold(..) => "Hold".to_owned(),
        Effect::Process(_) => "Process".to_owned(),
        Effect::Settle(Verdict::Delete(completed)) => {
            format!("Settle(Delete({:?}))", completed.why())
        }
        Effect::Settle(Verdict::Keep(why, release)) => {
            format!("Settle(Keep({}, {release:?}))", why.label())
        }
        Effect::Shorten(remaining) => format!("Shorten({remaining:?})"),
        Effect::Suspend => "Suspend".to_owned(),
        Effect::Report(Report::Started(_)) => "Report(Started)".to_owned(),
        Effect::Report(Report::Held(held)) => format!("Report(Held({:?}))", held.remaining),
        Effect::Report(Report::Progressed(_)) => "Report(Progressed)".to_owned(),
        Effect::Report(Report::Releasing(_)) => "Report(Releasing)".to_owned(),
        Effect::Report(Report::Ended(ended)) => format!("Report(Ended({}))", ended.outcome()),
        Effect::DropCheckpoints(..) => "DropCheckpoints".to_owned(),
        Effect::EndRun(outcome) => format!("EndRun({})", outcome.exit_code()),
        Effect::Poll
        | Effect::StopPolling
        | Effect::Halt
        | Effect::AbortPublish
        | Effect::Withdraw
        | Effect::Await(_) => {
            format!("{effect:?}")
        }
    }
}

#[test]
fn every_phase_handles_every_event() {
    let mut table = String::new();
    for (name, path) in phases() {
        writeln!(table, "{name}").unwrap();
        for (event_name, event) in events() {
            let job = walk(2, path.iter().map(|make| make()));
            let (before, was_exiting) = (job.phase(), job.is_exiting());
            let Step { job, effects } = job.step(3 * S, event());
            if effects.is_empty() && job.phase() == before && job.is_exiting() == was_exiting {
                continue;
            }
            let exiting = if job.is_exiting() { ", exiting" } else { "" };
            let effects: Vec<_> = effects.iter().map(describe).collect();
            writeln!(table, "  {event_name:32} {}{exiting}: {}", job.phase(), effects.join(", "))
                .unwrap();
        }
        table.push('\n');
    }
    insta::assert_snapshot!(
        "table",
        format!("Events that are not listed change nothing.\n\n{table}")
    );
}

#[test]
fn a_kept_message_of_a_fifo_queue_ends_the_run() {
    let policy = Policy { fifo: true, ..policy(10) };
    let job = [received(OBJECT_CREATED), exited(1)]
        .into_iter()
        .fold(Job::start(policy).job, |job, event| job.step(2 * S, event).job);
    let effects = job.step(3 * S, kept(KeepReason::CommandFailed(Exit::Code(1)))).effects;
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::EndRun(outcome) if outcome.exit_code() == 1))
    );
}

/// The next messages would probably be kept, too.
#[test]
fn three_commands_in_a_row_that_cannot_be_started_end_the_run() {
    let not_started = || {
        let why = KeepReason::CommandNotStarted("missing".to_owned());
        [received(OBJECT_CREATED), exited(1), kept(why)]
    };
    let failed =
        || [received(OBJECT_CREATED), exited(1), kept(KeepReason::CommandFailed(Exit::Code(1)))];
    let phase = |started: &[bool]| {
        let events = started.iter().flat_map(|it| if *it { failed() } else { not_started() });
        walk(10, events).phase()
    };
    assert_eq!(phase(&[false, false]), "Receiving");
    assert_eq!(phase(&[false, false, false]), "Done");
    assert_eq!(phase(&[false, false, true, false, false]), "Receiving");
    assert_eq!(phase(&[true, true, true, true]), "Receiving");
}

#[test]
fn the_exit_code_is_that_of_the_last_kept_message() {
    let message = |code, why| [received(OBJECT_CREATED), exited(code), kept(why)];
    let success = [
        received(OBJECT_CREATED),
        processed(Outcome::Finished),
        Event::Settled(Settlement::Deleted(Completion::Succeeded)),
    ];
    let events: Vec<Event> = message(1, KeepReason::CommandFailed(Exit::Code(1)))
        .into_iter()
        .chain(message(65, KeepReason::Permanent(Exit::Code(65))))
        .chain(success)
        .collect();
    let effects = walk(10, events).step(3 * S, Event::QueueEmpty).effects;
    let Some(Effect::EndRun(RunOutcome::Kept(KeepReason::Permanent(_)))) = effects.last() else {
        panic!("{effects:?}");
    };
}

/// Also if its body is work.
#[test]
fn a_message_whose_payload_could_not_be_read_is_kept() {
    let why = KeepReason::FetchFailed("403".to_owned());
    let job = Job::start(policy(1)).job;
    let effects = job.step(S, received_as(OBJECT_CREATED, Some(why.clone()))).effects;
    let settle = Effect::Settle(Verdict::Keep(why, Release::After(10 * S)));
    assert!(effects.contains(&settle), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Process(_))), "{effects:?}");
}

/// Otherwise, the run could receive the same message again and again in place of the others.
#[test]
fn a_permanent_failure_waits_if_the_run_receives_more_messages() {
    let redrive = Redrive::DeadLetter { max_receive_count: 3, queue: "dlq".to_owned() };
    let released = |policy: Policy| {
        let before = [received(OBJECT_CREATED), Event::RedriveKnown(redrive.clone())];
        let start = Job::start(policy).job;
        let job = before.into_iter().fold(start, |job, event| job.step(2 * S, event).job);
        let effects = job.step(3 * S, exited(65)).effects;
        let settle = effects.into_iter().find_map(|effect| {
            if let Effect::Settle(Verdict::Keep(_, release)) = effect {
                Some(release)
            } else {
                None
            }
        });
        settle.expect("it is kept")
    };
    assert_eq!(released(policy(2)), Release::After(5 * S));
    assert_eq!(released(policy(1)), Release::After(Duration::ZERO));
    // A run on a FIFO queue ends with a kept message.
    assert_eq!(released(Policy { fifo: true, ..policy(2) }), Release::After(Duration::ZERO));
}

#[test]
fn a_message_that_arrives_after_the_stop_is_released_immediately() {
    let effects = walk(1, [Event::StopRequested]).step(3 * S, received(OBJECT_CREATED)).effects;
    let expected =
        Effect::Settle(Verdict::Keep(KeepReason::Stopped, Release::After(Duration::ZERO)));
    assert!(effects.contains(&expected), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Process(_))), "{effects:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// With events in any order, each message gets at most one delete, only after success or
    /// without work to do, and never after a stop, a lost lease or an actor's death.
    #[test]
    fn no_sequence_of_events_deletes_without_success(picks in prop::collection::vec(0..events().len(), 0..40)) {
        let events = events();
        let mut job = Job::start(policy(3)).job;
        // Since the last receive; `ended`, since the start.
        let (mut succeeded, mut invalidated, mut ended, mut deletes) = (false, false, false, 0);
        for pick in picks {
            let (name, event) = events[pick];
            let event = event();
            let phase = job.phase();
            if let (Event::Received(got), "Receiving") = (&event, phase) {
                (succeeded, invalidated, deletes) = (got.delivery.body == TEST_EVENT, false, 0);
            }
            if let (Event::Processed(processed), "Processing") = (&event, phase) {
                succeeded = matches!(processed.outcome, Outcome::Finished | Outcome::ObjectsGone | Outcome::AlreadyDone);
            }
            let invalidates = matches!(
                event,
                Event::LeaseLost(_) | Event::LeaseExhausted | Event::Stalled | Event::Overdue(Limit::Work)
            );
            invalidated |= invalidates && phase == "Processing";
            let ends = matches!(event, Event::StopRequested | Event::ActorDied(_));
            ended |= ends && event != Event::ActorDied(Role::Reporter);
            let Step { job: next, effects } = job.step(3 * S, event);
            for effect in &effects {
                if let Effect::Settle(Verdict::Delete(_)) = effect {
                    deletes += 1;
                    prop_assert!(succeeded && !invalidated && !ended && deletes == 1, "a delete after {name} in {phase}");
                }
            }
            job = next;
        }
    }

    /// After a stop request, no path polls or starts work.
    #[test]
    fn a_stopped_job_takes_no_new_work(picks in prop::collection::vec(0..events().len(), 0..40)) {
        let events = events();
        let mut job = walk(3, [received(OBJECT_CREATED), Event::StopRequested]);
        for pick in picks {
            let (name, event) = events[pick];
            let event = event();
            let Step { job: next, effects } = job.step(3 * S, event);
            for effect in &effects {
                prop_assert!(!matches!(effect, Effect::Poll | Effect::Process(_)), "{effect:?} after {name}");
            }
            job = next;
        }
    }
}
