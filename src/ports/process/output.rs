//! The command's standard output and error on their way into the log, line by line.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info};

use crate::ports::Pulse;

/// How long output may still come after the command has ended. What was written before its end is read in
/// milliseconds; after that, something the command left behind holds the pipe, perhaps for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// How long a forwarded line may be, in bytes; the rest of it is dropped.
const MAX_LINE: usize = 8 * 1024;

/// How many of the last lines of the standard error are kept, and how much of each, in characters.
const LAST_LINES: usize = 20;
const LAST_LINE_LENGTH: usize = 1000;

/// The command's output on its way into the log.
pub(super) struct Output {
    forwarders: JoinSet<()>,
    enough: CancellationToken,
    last_words: LastWords,
}

/// The last lines of the standard error.
#[derive(Clone, Default)]
struct LastWords(Arc<Mutex<VecDeque<String>>>);

impl LastWords {
    fn add(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line.chars().take(LAST_LINE_LENGTH).collect());
    }
}

impl Output {
    pub(super) fn of(stdout: ChildStdout, stderr: ChildStderr, pulse: &Pulse) -> Self {
        let (mut forwarders, enough) = (JoinSet::new(), CancellationToken::new());
        let last_words = LastWords::default();
        forwarders.spawn(forward(stdout, "stdout", enough.clone(), pulse.clone(), None).in_current_span());
        forwarders.spawn(
            forward(stderr, "stderr", enough.clone(), pulse.clone(), Some(last_words.clone())).in_current_span(),
        );
        Self { forwarders, enough, last_words }
    }

    pub(super) fn last_words(&self) -> Vec<String> {
        self.last_words.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Waits until both streams have been closed and forwarded, and no longer than [`DRAIN`].
    pub(super) async fn drain(&mut self) {
        if timeout(DRAIN, async { while self.forwarders.join_next().await.is_some() {} }).await.is_err() {
            self.enough.cancel();
            while self.forwarders.join_next().await.is_some() {}
        }
    }
}

/// Logs line by line until the stream is closed or it is `enough`. Never holds more than one line and one chunk.
async fn forward(
    pipe: impl AsyncRead + Unpin,
    stream: &'static str,
    enough: CancellationToken,
    pulse: Pulse,
    last_words: Option<LastWords>,
) {
    let mut pipe = BufReader::new(pipe);
    let (mut line, mut cut) = (Vec::new(), 0);
    loop {
        let chunk = tokio::select! {
            chunk = pipe.fill_buf() => chunk,
            () = enough.cancelled() => break,
        };
        let Ok(chunk @ [_, ..]) = chunk else { break };
        pulse.beat();
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let kept = text.len().min(MAX_LINE - line.len());
            line.extend_from_slice(&text[..kept]);
            cut += text.len() - kept;
            if text.len() < piece.len() {
                tell(stream, &line, cut, last_words.as_ref());
                line.clear();
                cut = 0;
                // A flood must not keep this thread from the heartbeat.
                tokio::task::coop::consume_budget().await;
            }
        }
        let read = chunk.len();
        pipe.consume(read);
    }
    if !line.is_empty() {
        tell(stream, &line, cut, last_words.as_ref());
    }
}

fn tell(stream: &'static str, line: &[u8], cut: usize, last_words: Option<&LastWords>) {
    let text = String::from_utf8_lossy(line);
    if let Some(last_words) = last_words {
        last_words.add(&text);
    }
    let marker = if cut > 0 { format!(" [cut here: {cut} more bytes]") } else { String::new() };
    info!(target: "command", stream, line = %format_args!("{text}{marker}"));
}
