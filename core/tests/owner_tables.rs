//! The `Keeper` of a lease and the `Claim` of an idempotency record: every state × every input, as
//! two tables for review.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::time::Duration;

use leasehold_core::claim::{self, Claim, RecordState, Request, StoredRecord};
use leasehold_core::delivery::{
    Delivery, DeliveryId, MessageId, ReceiptHandle, Received, Redrive, SqsAttributes,
};
use leasehold_core::keep_reason::KeepReason;
use leasehold_core::keeper::{self, Answer, Input, Keeper};
use leasehold_core::lease::{CEILING, Lease, Strategy};
use leasehold_core::lifecycle::{Effect, Event, Job, Processed};
use leasehold_core::outcome::Outcome;
use leasehold_core::verdict::{Release, Verdict};

use crate::support::object_created;
use crate::support::settings;

const S: Duration = Duration::from_secs(1);

/// One step of a path: the clock advances, or an input arrives.
#[derive(Clone)]
enum Then<I> {
    /// Advance the clock to this time. Actions that become due are started, but not answered.
    At(Duration),
    Input(I),
}
use Then::{At, Input as In};

enum Does {
    /// An action, as text.
    This(String),
    /// Wait for an input, at most until then.
    Wait(Option<Duration>),
}

/// A state machine that depends only on inputs and the time.
trait Machine: Clone {
    type Input: Clone;
    fn handle(&mut self, now: Duration, input: Self::Input);
    fn next(&mut self, now: Duration) -> Does;
    /// Can this input arrive now?
    fn accepts(&self, input: &Self::Input) -> bool;

    /// All its actions until it waits, and until when it waits.
    fn does(&mut self, now: Duration) -> (Vec<String>, Option<Duration>) {
        let mut done = Vec::new();
        loop {
            match self.next(now) {
                Does::Wait(until) => return (done, until),
                Does::This(what) => done.push(what),
            }
        }
    }

    fn walk(&mut self, path: Vec<Then<Self::Input>>) -> Duration {
        let mut now = Duration::ZERO;
        self.does(now);
        for then in path {
            match then {
                At(at) => now = at,
                In(input) => self.handle(now, input),
            }
            self.does(now);
        }
        now
    }
}

fn table<M: Machine>(
    start: &M,
    states: Vec<(&str, Vec<Then<M::Input>>)>,
    happens: &[(&str, Then<M::Input>)],
) -> String {
    let mut table = "Inputs that are not listed change nothing.\n".to_owned();
    for (name, path) in states {
        writeln!(table, "\n{name}").unwrap();
        let mut machine = start.clone();
        let at = machine.walk(path);
        let (_, waited_until) = machine.does(at);
        for (what, then) in happens {
            let (mut machine, mut now) = (machine.clone(), at);
            match then.clone() {
                // Only if an action is due.
                At(_) => match waited_until {
                    Some(until) => now = until,
                    None => continue,
                },
                In(input) if machine.accepts(&input) => machine.handle(now, input),
                In(_) => continue,
            }
            let (done, until) = machine.does(now);
            if done.is_empty() && until == waited_until {
                continue;
            }
            // Delays have jitter.
            let wait = match until {
                Some(until) if until.subsec_nanos() > 0 => {
                    format!("wait for {}", pause(until - now))
                }
                Some(until) => format!("wait until {until:?}"),
                None => "wait".to_owned(),
            };
            writeln!(table, "  {what:24} {}", [done, vec![wait]].concat().join(", ")).unwrap();
        }
    }
    table
}

fn pause(pause: Duration) -> &'static str {
    if pause < S { "less than 1s" } else { "some seconds" }
}

impl Machine for Keeper {
    type Input = Input;

    fn handle(&mut self, now: Duration, input: Input) {
        Self::handle(self, now, input);
    }

    fn accepts(&self, input: &Input) -> bool {
        match input {
            Input::Answered(_) => self.state().call.is_some(),
            Input::Verdict(_) | Input::Withdraw => true,
        }
    }

    fn next(&mut self, now: Duration) -> Does {
        Does::This(match Self::next(self, now) {
            keeper::Next::Wait { until } => return Does::Wait(until),
            keeper::Next::Extend { by, limit } => format!("Extend({by:?}) within {limit:?}"),
            keeper::Next::Release { delay, limit } => {
                format!("Release({delay:?}) within {limit:?}")
            }
            keeper::Next::Delete { limit, .. } => format!("Delete within {limit:?}"),
            keeper::Next::Report(event) => debug(&event),
            keeper::Next::Observe(observation) => format!("count {}", debug(&observation)),
            keeper::Next::Settled(settlement) => format!("Settled({})", debug(&settlement)),
        })
    }
}

fn debug(what: &impl Debug) -> String {
    format!("{what:?}").replace("\"503\"", "..")
}

/// The proof of success, which only the core can make.
fn success() -> Verdict {
    let delivery = Delivery {
        message_id: MessageId::new("m"),
        receipt: ReceiptHandle::new("r"),
        body: object_created("k"),
        payload_failed: None,
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
    let received = Received { delivery, asked_at: S, received_at: S, redrive: Redrive::Unknown };
    let mut processed = Processed::failed(leasehold_core::outcome::Failure::Halted);
    processed.outcome = Outcome::Finished;
    let job = Job::start(settings().policy).job.step(S, Event::Received(Box::new(received))).job;
    let effects = job.step(2 * S, Event::Processed(Box::new(processed))).effects;
    let verdict = effects
        .into_iter()
        .find_map(|effect| if let Effect::Settle(it) = effect { Some(it) } else { None });
    verdict.expect("it succeeded")
}

#[test]
fn the_keeper_handles_every_input_in_every_state() {
    let keep = |release| Input::Verdict(Verdict::Keep(KeepReason::Stopped, release));
    let answered = |answer| In(Input::Answered(answer));
    let failed = || answered(Answer::Failed("503".to_owned()));
    let delete = || In(Input::Verdict(success()));
    let happens = [
        ("due", At(S)),
        ("Verdict(delete)", delete()),
        ("Verdict(keep)", In(keep(Release::After(10 * S)))),
        ("Verdict(keep, expire)", In(keep(Release::Expire))),
        ("Withdraw", In(Input::Withdraw)),
        ("Accepted", answered(Answer::Accepted)),
        ("NotInFlight", answered(Answer::NotInFlight("503".to_owned()))),
        ("AtCeiling", answered(Answer::AtCeiling("503".to_owned()))),
        ("Failed", failed()),
        ("NotSent", answered(Answer::NotSent("stopping".to_owned()))),
        ("Unclear", answered(Answer::Unclear("503".to_owned()))),
    ];
    let states = vec![
        ("Holding", vec![]),
        ("Holding, an extension is in flight", vec![At(10 * S)]),
        (
            "Holding, an extension is in flight and the lease has ended meanwhile",
            vec![At(10 * S), At(30 * S)],
        ),
        ("Holding, an extension failed", vec![At(10 * S), failed()]),
        ("Holding, the lease has ended", vec![At(30 * S)]),
        (
            "Holding, near SQS's ceiling",
            vec![At(10 * S), answered(Answer::AtCeiling("503".to_owned()))],
        ),
        ("Holding, an extension is in flight and a success waits", vec![At(10 * S), delete()]),
        ("Deleting", vec![At(5 * S), delete()]),
        ("Deleting, withdrawn meanwhile", vec![At(5 * S), delete(), In(Input::Withdraw)]),
        ("Deleting, to be retried", vec![At(5 * S), delete(), failed()]),
        (
            "Deleting, an extension is in flight",
            vec![At(9 * S), delete(), At(10 * S), failed(), At(11 * S)],
        ),
        ("Releasing", vec![At(5 * S), In(keep(Release::After(10 * S)))]),
        ("Releasing, to be retried", vec![At(5 * S), In(keep(Release::After(10 * S))), failed()]),
        ("Done", vec![At(5 * S), In(keep(Release::Expire))]),
    ];
    insta::assert_snapshot!("keeper", table(&keeper(), states, &happens));
}

fn keeper() -> Keeper {
    let lease = Lease::taken(Strategy::Heartbeat, 30 * S, Duration::ZERO);
    let delivery = DeliveryId { message_id: MessageId::new("m"), receive_count: 1 };
    Keeper::new(delivery, lease, 30 * S, CEILING - 3600 * S)
}

#[test]
fn a_release_without_an_answer_is_given_up_when_the_lease_ends() {
    let refused = || In(Input::Answered(Answer::Failed("403".to_owned())));
    let release = In(Input::Verdict(Verdict::Keep(KeepReason::Stopped, Release::After(S))));
    let mut keeper = keeper();
    let at = keeper.walk(vec![At(29 * S + S * 9 / 10), refused(), release, refused()]);
    assert_eq!(keeper.does(at), (vec![], Some(30 * S)));
}

impl Machine for Claim {
    type Input = claim::Input;

    fn handle(&mut self, now: Duration, input: claim::Input) {
        Self::handle(self, now, input);
    }

    fn accepts(&self, input: &claim::Input) -> bool {
        use claim::Answer::{
            ConditionFailed, Failed, Read, Refused, Unreadable, Unsupported, Written,
        };
        match (self.state().call.map(|call| call.request), input) {
            (None, claim::Input::Answered(_))
            | (Some(Request::Read), claim::Input::Answered(Written(_) | ConditionFailed))
            | (Some(Request::Write(_)), claim::Input::Answered(Read(_) | Unreadable(_))) => false,
            (
                Some(_),
                claim::Input::Answered(
                    Written(_) | ConditionFailed | Read(_) | Unreadable(_) | Refused(_)
                    | Unsupported(_) | Failed(_),
                ),
            )
            | (_, claim::Input::Succeeded | claim::Input::Ended) => true,
        }
    }

    fn next(&mut self, now: Duration) -> Does {
        if self.state().call.is_some() {
            return Does::Wait(None);
        }
        Does::This(match Self::next(self, now) {
            claim::Next::Wait { until } => {
                return Does::Wait(Some(until).filter(|at| *at < Duration::MAX));
            }
            claim::Next::Read { limit } => format!("Read within {limit:?}"),
            claim::Next::Write { state, if_match, limit } => {
                format!(
                    "Write({state:?}) over {} within {limit:?}",
                    if_match.as_deref().unwrap_or("nothing")
                )
            }
            claim::Next::Report(claim::Report::Reached(milestone)) => debug(&milestone),
            claim::Next::Report(report) => debug(&report),
        })
    }
}

#[test]
fn the_claim_handles_every_input_in_every_state() {
    use claim::{Answer, Input};

    let answered = |answer| In(Input::Answered(answer));
    let read_answer = |state, is_ours, age| {
        let (owner, etag) = (if is_ours { "us" } else { "them" }.to_owned(), "seen".to_owned());
        answered(Answer::Read(Some(StoredRecord {
            state,
            is_ours,
            owner,
            etag,
            age,
            time_to_live: 30 * S,
        })))
    };
    let written = || answered(Answer::Written("ours".to_owned()));
    let failed = || answered(Answer::Failed("503".to_owned()));
    let refused = || answered(Answer::ConditionFailed);
    let happens = [
        ("due", At(S)),
        ("Written", written()),
        ("ConditionFailed", refused()),
        ("Read(nothing)", answered(Answer::Read(None))),
        ("Read(theirs)", read_answer(RecordState::InProgress, false, 5 * S)),
        ("Read(theirs, expired)", read_answer(RecordState::InProgress, false, 40 * S)),
        ("Read(ours)", read_answer(RecordState::InProgress, true, 5 * S)),
        ("Read(released)", read_answer(RecordState::Released, false, 5 * S)),
        ("Read(done)", read_answer(RecordState::Done, false, 5 * S)),
        ("Refused", answered(Answer::Refused("503".to_owned()))),
        ("Unreadable", answered(Answer::Unreadable("503".to_owned()))),
        ("Unsupported", answered(Answer::Unsupported("503".to_owned()))),
        ("Failed", failed()),
        ("Succeeded", In(Input::Succeeded)),
        ("Ended", In(Input::Ended)),
    ];
    let taken = || read_answer(RecordState::InProgress, false, 5 * S);
    let states = vec![
        ("Claiming", vec![]),
        ("Claiming, to be retried", vec![failed()]),
        ("Reading", vec![refused()]),
        ("Reading, another pod has it", vec![refused(), taken()]),
        ("Reading again", vec![refused(), taken(), At(10 * S)]),
        ("Held", vec![written()]),
        ("Held, a refresh is in flight", vec![written(), At(10 * S)]),
        (
            "Held, a refresh is in flight and the record has expired meanwhile",
            vec![written(), At(10 * S), At(30 * S)],
        ),
        ("Held, a refresh was refused", vec![written(), At(10 * S), refused()]),
        (
            "Held, its new eTag was read",
            vec![written(), At(10 * S), refused(), read_answer(RecordState::InProgress, true, S)],
        ),
        ("Held, a refresh failed", vec![written(), At(10 * S), failed()]),
        ("Recording", vec![written(), At(5 * S), In(Input::Succeeded)]),
        ("Recording, to be retried", vec![written(), At(5 * S), In(Input::Succeeded), failed()]),
        ("Recording, refused", vec![written(), At(5 * S), In(Input::Succeeded), refused()]),
        ("Recording, expired", vec![written(), At(5 * S), In(Input::Succeeded), At(40 * S)]),
        ("Releasing", vec![written(), At(5 * S), In(Input::Ended)]),
        ("Done", vec![written(), At(5 * S), In(Input::Ended), written()]),
    ];
    let claim = Claim::new(
        DeliveryId { message_id: MessageId::new("m"), receive_count: 1 },
        30 * S,
        Duration::ZERO,
    );
    insta::assert_snapshot!("claim", table(&claim, states, &happens));
}
