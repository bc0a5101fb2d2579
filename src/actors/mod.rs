//! Four actors that carry out the core's effects, and the supervisor they report to: a star, not a
//! chain.
//!
//! ```text
//!                       Supervisor     (Job, Event) ── Job::step ──► (Job, [Effect])
//!      Poll │   ▲       │       ▲           │    ▲          │
//!           │   │ Hold, │       │   Process,│    │          │ Report
//!           ▼   │ Settle▼       │      Halt ▼    │          ▼
//!        Receiver   VisibilityHeartbeat   Processor     Reporter
//! ```
//!
//! The four never send messages to each other. All events go to the supervisor's mailbox, which
//! gives them one order, and one pure function decides what follows (`job::lifecycle`).
//!
//! Architecture invariant: a handler does not wait for input or output. It starts an owned task that
//! reports (`report_when_done`) and returns, so a stop is always handled. Two exceptions have a
//! limit: the Reporter writes one report after another, and at the end of a run the supervisor waits
//! for its actors.

pub mod heartbeat;
pub mod processor;
pub mod receiver;
pub mod reporter;
pub mod supervisor;

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use ractor::DerivedActorRef;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::job::keep_reason::Role;
use crate::job::lifecycle::Event;

/// Reports the event of `work` to the supervisor, and aborts it when dropped; a panic in it counts as
/// the actor's death.
fn report_when_done(
    supervisor: DerivedActorRef<Event>,
    role: Role,
    work: JoinHandle<Event>,
) -> AbortOnDropHandle<()> {
    let work = AbortOnDropHandle::new(work);
    AbortOnDropHandle::new(tokio::spawn(async move {
        let event = work.await.unwrap_or(Event::ActorDied(role));
        // Fails only if the supervisor has ended, which outlives its actors.
        let _ = supervisor.cast(event);
    }))
}

/// The backoff between tries of one call: doubling, with jitter, without end; the caller has a
/// limit.
fn backoff(first: Duration, longest: Duration) -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(first)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
}
