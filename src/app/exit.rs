//! The program's own exit codes, and the messages for them.

use std::io::Write;
use std::process::ExitCode;

use anstyle::AnsiColor;

use crate::telemetry::plain::PlainLines;
use crate::telemetry::termination::TerminationMessage;

/// EX_UNAVAILABLE and EX_CONFIG of sysexits(3).
pub const UNAVAILABLE: u8 = 69;
pub const MISCONFIGURED: u8 = 78;

/// Prints a line for the user. Errors are ignored: the reader may be gone (`leasehold … | head`).
pub fn print(mut to: impl Write, line: &str) {
    let _ = writeln!(to, "{line}");
}

pub fn misconfigured(why: &str) -> TerminationMessage {
    TerminationMessage::new("misconfigured", MISCONFIGURED, why)
}

/// `program` is the name of this program.
pub fn refuse(program: &str, why: &str) -> ExitCode {
    let red = AnsiColor::Red.on_default();
    print(anstream::stderr(), &format!("{red}{program}:{red:#} {}", PlainLines(why)));
    ExitCode::from(MISCONFIGURED)
}
