//! One pod: a real job with a real lease, and hands that are played.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use leasehold::job::lease::{CEILING, Lease};
use leasehold::job::lifecycle::Limit;
use leasehold::job::verdict::{KeepReason, Verdict};

use super::Setting;
use super::message::{Answer, Request};
use super::records::{Record, Work};
use super::steps::Core;

/// One pod: a job and its hands. Points in time within the job and its lease are on the run's clock.
#[derive(Clone)]
pub struct Pod {
    pub started_at: Duration,
    pub core: Rc<Core>,
    pub poll: Option<Poll>,
    pub finishing: bool,
    pub keeper: Option<Keeper>,
    pub command: Command,
    /// With records only.
    pub work: Option<Work>,
    pub limit: Option<Limit>,
    /// The command has succeeded under the receipt that is held.
    pub succeeded: bool,
    pub stopped: bool,
}

/// A request for a message is out.
#[derive(Clone, Copy, Hash)]
pub struct Poll {
    pub asked_at: Duration,
    /// The receipt on its way back, if it brings the message.
    pub brings: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    None,
    Running,
    Halting,
}

/// The VisibilityHeartbeat's task, see there.
#[derive(Clone)]
pub struct Keeper {
    pub receipt: u32,
    pub lease: Lease,
    pub withdrawn: bool,
    /// Not taken yet, because a beat is out.
    pub verdict: Option<Rc<Core>>,
    pub doing: Doing,
    /// The call that is out.
    pub call: Option<Call>,
}

#[derive(Clone)]
pub enum Doing {
    Holding,
    Deleting { verdict: Rc<Core>, give_up_at: Duration },
    Releasing { why: KeepReason, delay: Duration, give_up_at: Duration },
}

#[derive(Clone, Copy, Hash)]
pub struct Call {
    pub request: Request,
    pub asked_at: Duration,
    /// Given by the queue and on its way back; none as long as the request has not come through.
    pub answer: Option<Answer>,
}

impl Pod {
    /// The receipt under which this pod believes that the message is its own, and does not let go of it.
    pub fn believes(&self, now: Duration) -> Option<u32> {
        let keeper = self.keeper.as_ref()?;
        let holds = matches!(keeper.doing, Doing::Holding | Doing::Deleting { .. });
        (holds && keeper.lease.is_held(now - self.started_at)).then_some(keeper.receipt)
    }

    pub fn key(&self, setting: &Setting, record: &Record, now: Duration) -> u64 {
        let mut hasher = DefaultHasher::new();
        let limit = self.limit.map(|limit| limit as u8);
        (self.core.print, self.finishing, self.command, limit, self.succeeded, self.stopped).hash(&mut hasher);
        if let Some(work) = &self.work {
            work.hash(record, now, &mut hasher);
        }
        // A lease that was asked for longer ago than it lasts is none, however long ago it was.
        self.poll.map(|poll| (poll.brings, (now - poll.asked_at).min(setting.visibility()))).hash(&mut hasher);
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
pub fn room(setting: &Setting, now: Duration, received_at: Duration) -> Duration {
    CEILING.saturating_sub(now - received_at).min(100 * setting.visibility())
}

impl Keeper {
    /// On the run's clock; a try that failed is made again at any time.
    pub fn next_beat_at(&self) -> Option<Duration> {
        let beats = matches!(self.doing, Doing::Holding | Doing::Deleting { .. });
        let next_at = self.lease.next_beat_at().filter(|_| beats);
        self.lease.expires_at().filter(|_| beats).map(|end| next_at.unwrap_or(end).min(end))
    }
}
