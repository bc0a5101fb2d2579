//! The calls of one kind that wait for a request.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{BATCH, PATIENCE, Shared};

/// A kind of call.
pub(super) trait Kind: Sized + Send + 'static {
    type Answer: Send + 'static;

    fn line(shared: &Shared) -> &Line<Self>;

    /// Until when the calls wait for others that may come soon.
    fn gathers_until(_: &Shared, _: &Calls<Self>) -> Option<Instant> {
        None
    }

    /// Removes the calls of the next request, and those that must not be sent.
    fn next(shared: &Shared, waiting: &mut Calls<Self>) -> Vec<Pending<Self>>;

    /// Sends one request, and answers all of its calls.
    fn send(shared: &Arc<Shared>, calls: Vec<Pending<Self>>) -> impl Future<Output = ()> + Send;
}

pub(super) type Calls<K> = VecDeque<Pending<K>>;

/// Until when a request with room waits for further calls: as long after its last call as that came
/// after `since`.
pub(super) fn as_long_again<K: Kind>(waiting: &Calls<K>, since: Instant) -> Option<Instant> {
    let (first, last) = (waiting.front()?, waiting.back()?);
    let gap = last.since.saturating_duration_since(since);
    let until = (last.since + gap).min(first.since + PATIENCE);
    Some(until).filter(|_| waiting.len() < BATCH)
}

/// A call that waits for its answer. If it is dropped, its caller gets none.
pub(super) struct Pending<K: Kind> {
    pub(super) call: K,
    pub(super) number: u64,
    pub(super) since: Instant,
    pub(super) reply: oneshot::Sender<K::Answer>,
}

impl<K: Kind> Pending<K> {
    pub(super) fn answer(self, answer: K::Answer) {
        let _ = self.try_answer(answer);
    }

    /// Returns the answer if the caller has stopped waiting.
    pub(super) fn try_answer(self, answer: K::Answer) -> Result<(), K::Answer> {
        self.reply.send(answer)
    }
}

pub(super) struct Line<K: Kind>(Mutex<Waiting<K>>);

pub(super) struct Waiting<K: Kind> {
    /// By number, so in the order of the calls.
    calls: Calls<K>,
    /// The number of the next call.
    next: u64,
    /// How many tasks send requests.
    senders: usize,
}

impl<K: Kind> Default for Line<K> {
    fn default() -> Self {
        Self(Mutex::new(Waiting { calls: VecDeque::new(), next: 0, senders: 0 }))
    }
}

impl<K: Kind> Line<K> {
    /// Adds a call; returns its number and its answer.
    pub(super) fn join(&self, call: K) -> (u64, oneshot::Receiver<K::Answer>) {
        let (reply, answer) = oneshot::channel();
        let mut line = self.lock();
        let number = line.next;
        line.next += 1;
        line.calls.push_back(Pending { call, number, since: Instant::now(), reply });
        (number, answer)
    }

    /// Adds a call again, before those that came later.
    pub(super) fn join_again(&self, call: Pending<K>) {
        let mut line = self.lock();
        let at = line.calls.partition_point(|other| other.number < call.number);
        line.calls.insert(at, call);
    }

    /// Counts a new sender, if `must_start`.
    pub(super) fn begin(&self, must_start: impl Fn(&mut Waiting<K>) -> bool) -> bool {
        let mut line = self.lock();
        let starts = must_start(&mut line);
        line.senders += usize::from(starts);
        starts
    }

    /// The calls of a sender's next request, chosen by `next`; `None`, and one sender less, if none
    /// wait.
    pub(super) fn take(
        &self,
        next: impl Fn(&mut Calls<K>) -> Vec<Pending<K>>,
    ) -> Option<Vec<Pending<K>>> {
        let mut line = self.lock();
        line.calls.retain(|call| !call.reply.is_closed());
        let calls = next(&mut line.calls);
        if calls.is_empty() {
            line.senders = line.senders.saturating_sub(1);
        }
        Some(calls).filter(|calls| !calls.is_empty())
    }

    /// Looks at the calls that wait.
    pub(super) fn look<T>(&self, at: impl Fn(&Calls<K>) -> T) -> T {
        at(&self.lock().calls)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<K>> {
        self.0.lock().expect("nothing panics while holding it")
    }
}

impl<K: Kind> Waiting<K> {
    /// Is no request in flight?
    pub(super) fn is_idle(&self) -> bool {
        self.senders == 0
    }

    /// Does this call still wait for a request?
    pub(super) fn waits(&self, number: u64) -> bool {
        self.calls.iter().any(|call| call.number == number)
    }
}
