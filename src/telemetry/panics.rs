//! Panics belong in the log, under the name of the part that panicked.

use std::cell::{Cell, RefCell};
use std::panic::{self, PanicHookInfo};
use std::sync::Once;

use tracing::error;

/// To which part of the program a thread belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Leasehold,
    Handler,
    /// Neither leasehold nor the handler started it.
    Other,
}

thread_local! {
    static PART: Cell<Part> = const { Cell::new(Part::Other) };
    /// Where this thread panicked last.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Marks this thread as one of leasehold.
pub fn mark_ours() {
    PART.set(Part::Leasehold);
}

/// Marks this thread as one of a handler.
pub fn mark_handlers() {
    PART.set(Part::Handler);
}

/// Where this thread panicked: `file:line`. Known only with a hook of this module.
pub fn take_place() -> Option<String> {
    PLACE.take()
}

fn record_place(panic: &PanicHookInfo<'_>) {
    PLACE.set(panic.location().map(|at| format!("{}:{}", at.file(), at.line())));
}

/// Records the places of panics from now on, and calls the hook that was there before.
pub fn record_places() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            record_place(panic);
            before(panic);
        }));
    });
}

/// Logs the panics of leasehold, and those of a handler. For other threads of a program that embeds
/// leasehold, the hook that was there before is called.
pub fn log_panics(is_embedded: bool) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        record_place(panic);
        match PART.get() {
            Part::Handler => error!(%panic, "the handler panicked"),
            Part::Other if is_embedded => before(panic),
            Part::Leasehold | Part::Other => error!(%panic, "a bug in leasehold"),
        }
    }));
}
