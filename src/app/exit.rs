//! Exit codes of our own, and what is said with them.

use std::io::Write;
use std::process::ExitCode;

use anstyle::AnsiColor;

use crate::telemetry::plain::PlainLines;
use crate::telemetry::termination::TerminationMessage;

/// EX_UNAVAILABLE and EX_CONFIG of sysexits(3).
pub const UNAVAILABLE: u8 = 69;
pub const MISCONFIGURED: u8 = 78;

/// A line for the person who asked. That nobody reads it any more (`leasehold … | head`) changes
/// nothing else.
pub fn say(mut to: impl Write, line: &str) {
    let _ = writeln!(to, "{line}");
}

pub fn misconfigured(why: &str) -> TerminationMessage {
    TerminationMessage::new("misconfigured", MISCONFIGURED, why)
}

pub fn refuse(why: &str) -> ExitCode {
    let red = AnsiColor::Red.on_default();
    say(anstream::stderr(), &format!("{red}leasehold:{red:#} {}", PlainLines(why)));
    ExitCode::from(MISCONFIGURED)
}
