//! The job of a pod, shared by all worlds in which it is equal.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hasher};
use std::rc::Rc;
use std::time::Duration;

use leasehold_core::lifecycle::{Effect, Event, Job, Step};

/// A job and its fingerprint: jobs with the same fingerprint are equal.
pub struct Core {
    pub job: Job,
    pub print: u64,
    /// The effects of the step that led to it.
    pub effects: Vec<Effect>,
}

impl Core {
    pub fn of(Step { job, effects }: Step) -> Rc<Self> {
        Rc::new(Self { print: print(&job), job, effects })
    }
}

/// A hash of the [`fmt::Debug`] output.
pub fn print(what: &impl fmt::Debug) -> u64 {
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

/// A cache of steps: many worlds need the same one.
#[derive(Default)]
pub struct Steps(RefCell<HashMap<(u64, u64, Duration), Rc<Core>>>);

impl Steps {
    pub fn after(&self, core: &Core, now: Duration, event: Event) -> Rc<Core> {
        let key = (core.print, print(&event), now);
        let step = || Core::of(core.job.clone().step(now, event));
        self.0.borrow_mut().entry(key).or_insert_with(step).clone()
    }
}
