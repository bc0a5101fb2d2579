//! Panics belong in the log, under the name of the part that panicked.

use std::cell::{Cell, RefCell};
use std::panic::{self, PanicHookInfo};

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

/// Where this thread panicked: `file:line`. Known only with the hook of [`log_panics`].
pub fn take_place() -> Option<String> {
    PLACE.take()
}

/// Logs the panics of leasehold, and those of a handler. For other threads of a program that embeds
/// leasehold, the hook that was there before is called.
pub fn log_panics(is_embedded: bool) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        PLACE.set(panic.location().map(|at| format!("{}:{}", at.file(), at.line())));
        match PART.get() {
            Part::Handler => error!(%panic, "the handler panicked"),
            Part::Other if is_embedded => before(panic),
            Part::Leasehold | Part::Other => error!(%panic, "a bug in leasehold"),
        }
    }));
}
