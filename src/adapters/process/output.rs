//! Forwards the command's standard output and error to the log, line by line.

use std::collections::VecDeque;
use std::future::pending;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::task::coop::unconstrained;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info};

use super::structured::StructuredLine;
use crate::job::report::truncate_for_json;
use crate::ports::Activity;

/// How long output may still arrive after the command has ended. Output from before the end is read
/// in milliseconds; after that, a process that the command left running holds the pipe, perhaps
/// forever.
const DRAIN: Duration = Duration::from_secs(2);

/// The longest forwarded line in bytes, both as written and as JSON; the rest is dropped. A
/// container runtime splits records of more than 16 KiB.
pub(super) const MAX_LINE: usize = 8 * 1024;

/// How many pieces of lines are passed on before other work gets its turn.
const PIECES_AT_ONCE: u32 = 128;

/// How long a line that ended in a carriage return waits to be overwritten, for example by the
/// newline of a Windows line ending.
const OVERWRITE: Duration = Duration::from_millis(100);
/// The shortest time between two such lines in the log: a progress bar is drawn ten times a second.
const REDRAW: Duration = Duration::from_secs(10);

/// How many of the last lines of the standard error are kept.
const LAST_LINES: usize = 20;
/// How much of each of them is kept, in characters.
const LAST_LINE_LENGTH: usize = 1000;

/// Forwards the command's output to the log, while it is polled.
pub(super) struct Output {
    /// `None` once both streams are closed and forwarded.
    forwarding: Option<BoxFuture<'static, ()>>,
    enough: CancellationToken,
    stderr_tail: StderrTail,
}

/// The last lines of the standard error.
#[derive(Clone, Default)]
struct StderrTail(Arc<Mutex<VecDeque<String>>>);

impl StderrTail {
    fn add(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line.chars().take(LAST_LINE_LENGTH).collect());
    }
}

impl Output {
    pub(super) fn of(stdout: ChildStdout, stderr: ChildStderr, activity: &Activity) -> Self {
        let enough = CancellationToken::new();
        let stderr_tail = StderrTail::default();
        let tail = stderr_tail.clone();
        let (of_out, of_err) = (activity.clone(), activity.clone());
        let out = forward(stdout, enough.clone(), activity.clone(), move |line| {
            of_out.in_span(|| log("stdout", line));
        });
        let err = forward(stderr, enough.clone(), activity.clone(), move |line| {
            tail.add(line);
            of_err.in_span(|| log("stderr", line));
        });
        // It yields itself. Otherwise a flood of lines would use up the budget of the whole work.
        let forwarding = unconstrained(join(out, err).map(|_| ()));
        Self { forwarding: Some(forwarding.in_current_span().boxed()), enough, stderr_tail }
    }

    pub(super) fn stderr_tail(&self) -> Vec<String> {
        self.stderr_tail.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Whether both streams are closed and forwarded.
    pub(super) fn is_forwarded(&self) -> bool {
        self.forwarding.is_none()
    }

    /// Does `work`, and forwards the output meanwhile.
    pub(super) async fn forward_during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            // First, since the output of a command is complete when the command has ended.
            never = async { self.forwarded().await; pending().await } => never,
            done = work => done,
        }
    }

    /// Waits until both streams are closed and forwarded, but no longer than [`DRAIN`].
    pub(super) async fn drain(&mut self) {
        if timeout(DRAIN, self.forwarded()).await.is_err() {
            self.enough.cancel();
            self.forwarded().await;
        }
    }

    async fn forwarded(&mut self) {
        if let Some(forwarding) = &mut self.forwarding {
            forwarding.await;
            self.forwarding = None;
        }
    }
}

fn log(stream: &'static str, line: &str) {
    if let Some(structured) = StructuredLine::parse(line) {
        structured.log(stream);
    } else {
        info!(target: "command", stream, line);
    }
}

/// Passes on the lines until the stream is closed or `enough` is cancelled. Never holds more than
/// two lines and one chunk.
///
/// A carriage return ends a line, too. If lines overwrite each other on a screen, as those of a
/// progress bar do, only the last counts. A line that stays is passed on after a moment; while more
/// follow, one is passed on every ten seconds.
async fn forward(
    pipe: impl AsyncRead + Unpin,
    enough: CancellationToken,
    activity: Activity,
    mut pass_on: impl FnMut(&str),
) {
    let mut pipe = BufReader::new(pipe);
    let (mut line, mut overwritten, mut pieces) = (Line::default(), Overwritten::new(), 0_u32);
    loop {
        let chunk = tokio::select! {
            chunk = pipe.fill_buf() => chunk,
            () = enough.cancelled() => break,
            line = overwritten.stays() => {
                pass_on(&line.text());
                continue;
            }
        };
        let Ok(chunk @ [_, ..]) = chunk else { break };
        activity.record();
        for piece in chunk.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            match piece {
                [text @ .., b'\n'] => {
                    line.add(text);
                    if let Some(line) = overwritten.completed_by(mem::take(&mut line)) {
                        pass_on(&line.text());
                    }
                }
                [text @ .., b'\r'] => {
                    line.add(text);
                    overwritten.by(mem::take(&mut line));
                }
                text => line.add(text),
            }
            pieces = pieces.wrapping_add(1);
            // A flood of lines must not delay other work on this thread.
            if pieces % PIECES_AT_ONCE == 0 {
                yield_now().await;
            }
        }
        let read = chunk.len();
        pipe.consume(read);
    }
    if let Some(line) = overwritten.completed_by(line).filter(|line| !line.is_empty()) {
        pass_on(&line.text());
    }
}

/// The last line that ended in a carriage return.
struct Overwritten {
    line: Option<Line>,
    /// When to pass on the line that is current by then.
    due_at: Instant,
    passed_on_at: Option<Instant>,
    /// Whether the line on the screen has been passed on.
    is_passed_on: bool,
}

impl Overwritten {
    fn new() -> Self {
        Self { line: None, due_at: Instant::now(), passed_on_at: None, is_passed_on: false }
    }

    /// A blank line only clears the line on the screen.
    fn by(&mut self, line: Line) {
        if line.is_blank() {
            return;
        }
        if self.line.is_none() {
            let now = Instant::now();
            let redraw_at = self.passed_on_at.map_or(now, |passed_on_at| passed_on_at + REDRAW);
            self.due_at = redraw_at.max(now + OVERWRITE);
        }
        (self.line, self.is_passed_on) = (Some(line), false);
    }

    /// The line to pass on at a newline: `line`, or the overwritten one if `line` is empty
    /// (`\r\n`); `None` if that was already passed on.
    fn completed_by(&mut self, line: Line) -> Option<Line> {
        let (overwritten, is_passed_on) = (self.line.take(), mem::take(&mut self.is_passed_on));
        if !line.is_empty() {
            return Some(line);
        }
        overwritten.or((!is_passed_on).then_some(line))
    }

    async fn stays(&mut self) -> Line {
        if self.line.is_none() {
            return pending().await;
        }
        sleep_until(self.due_at).await;
        (self.passed_on_at, self.is_passed_on) = (Some(Instant::now()), true);
        self.line.take().unwrap_or_default()
    }
}

/// The beginning of a line, and how much of the rest was dropped.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    cut: usize,
}

impl Line {
    fn add(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(MAX_LINE - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.cut += bytes.len() - kept;
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn is_blank(&self) -> bool {
        self.bytes.trim_ascii().is_empty()
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let kept = truncate_for_json(&text, MAX_LINE);
        match self.cut + text.len() - kept.len() {
            0 => kept.to_owned(),
            cut => format!("{kept} [truncated: {cut} more bytes]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};
    use tokio::time::sleep;

    use super::*;

    /// Writes each part after its pause, in milliseconds, then closes. Returns the lines that were
    /// passed on, and when, in milliseconds.
    async fn passed_on(parts: &[(u64, &str)]) -> Vec<(u128, String)> {
        let (mut theirs, ours) = duplex(64 * 1024);
        let started = Instant::now();
        let mut lines = Vec::new();
        let forwarding = forward(ours, CancellationToken::new(), Activity::default(), |line| {
            lines.push((started.elapsed().as_millis(), line.to_owned()));
        });
        let writing = async move {
            for (pause, part) in parts {
                sleep(Duration::from_millis(*pause)).await;
                theirs.write_all(part.as_bytes()).await.unwrap();
            }
        };
        tokio::join!(forwarding, writing);
        lines
    }

    async fn lines(text: &str) -> Vec<String> {
        passed_on(&[(0, text)]).await.into_iter().map(|(_, line)| line).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_last_of_overwritten_lines_is_passed_on() {
        for (text, whole) in [
            ("one\ntwo", vec!["one", "two"]),
            ("one\r\n\r\ntwo\r\n", vec!["one", "", "two"]),
            ("10%\r20%\r100%\ndone\n", vec!["100%", "done"]),
            ("\r10%\r20%\r100%\n", vec!["100%"]),
            ("10%\r20%\r", vec!["20%"]),
            ("10%\r20%\r     \r", vec!["20%"]),
            ("10%\r     \rdone\n", vec!["done"]),
            ("\r\r\n", vec![""]),
            ("", vec![]),
        ] {
            assert_eq!(lines(text).await, whole, "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_progress_bar_is_logged_every_ten_seconds() {
        let bars: Vec<String> = (0..=300).map(|n| format!("\r{n}|")).collect();
        let mut parts: Vec<_> = bars.iter().map(|bar| (90, &**bar)).collect();
        parts.push((0, "\nend\n"));
        let lines = passed_on(&parts).await;
        let texts: Vec<_> = lines.iter().map(|(_, line)| &**line).collect();
        assert_eq!(texts.last(), Some(&"end"));
        assert_eq!(texts[texts.len() - 2], "300|");
        // After 0.1, 10.1 and 20.1 s.
        assert_eq!(texts.len(), 5, "{lines:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_bar_that_stays_is_logged_at_once_and_only_once() {
        let lines = passed_on(&[
            (0, "1%\r"),
            (60_000, "\n"),
            (0, "2%\r"),
            (1_000, "3%\r"),
            (60_000, "4%\r\n"),
        ])
        .await;
        let lines: Vec<_> = lines.iter().map(|(at, line)| (*at, &**line)).collect();
        assert_eq!(lines, [(100, "1%"), (60_100, "2%"), (70_100, "3%"), (121_000, "4%")]);
    }

    #[tokio::test(start_paused = true)]
    async fn every_line_fits_as_json() {
        for character in ["x", "\u{1b}", "\\", "\u{fffd}", "\u{1F600}"] {
            let line = &lines(&(character.repeat(100_000) + "\n")).await[0];
            let length = serde_json::to_string(line).unwrap().len();
            assert!((MAX_LINE - 10..MAX_LINE + 50).contains(&length), "{character:?}: {length}");
            let (kept, cut) = line.split_once(" [truncated: ").unwrap();
            let cut: usize = cut.strip_suffix(" more bytes]").unwrap().parse().unwrap();
            let lost = if character == "\u{1F600}" || character == "\u{fffd}" { 8 } else { 0 };
            assert!(
                (100_000 * character.len()).abs_diff(kept.len() + cut) <= lost,
                "{} {cut}",
                kept.len()
            );
        }
    }
}
