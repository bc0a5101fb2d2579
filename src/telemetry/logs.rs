//! Log records: one flat JSON object a line, or text for a person.

use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use json_subscriber::JsonLayer;
use tracing::{Level, Subscriber, error, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use super::text::Text;
use crate::adapters::aws::QUOTES_A_PROCESS;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Json,
    Text,
}

/// Who speaks, in every record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub job_id: String,
    pub pod_name: String,
}

/// When it is dropped, it tells how many records were lost and writes what is not yet written, as far as somebody
/// reads it soon.
pub struct LogGuard {
    writing: Option<WorkerGuard>,
    dropped: ErrorCounter,
    limit: Box<dyn Fn() -> Duration>,
}

impl LogGuard {
    /// Counts the records that were lost, because nobody read those before them in time.
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}

impl Drop for LogGuard {
    /// On a thread of its own: where nobody reads, `WorkerGuard` complains of that on the standard output, where
    /// nobody reads, and so would keep the program from ever ending.
    fn drop(&mut self) {
        let (writing, dropped) = (self.writing.take(), self.dropped());
        let (done, is_done) = mpsc::channel();
        let flush = move || {
            tell(&dropped);
            drop(writing);
            // Whoever waited for it may be gone.
            let _ = done.send(());
        };
        if thread::Builder::new().name("flush".to_owned()).spawn(flush).is_ok() {
            let _ = is_done.recv_timeout((self.limit)());
        }
    }
}

/// The last record, for which there may have to become room first: it is tried as long as `WorkerGuard` tries.
fn tell(dropped: &ErrorCounter) {
    let dropped_lines = dropped.dropped_lines();
    if dropped_lines == 0 {
        return;
    }
    for _ in 0..10 {
        let before = dropped.dropped_lines();
        warn!(dropped_lines, "records were lost: nobody read the log in time");
        if dropped.dropped_lines() == before {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Starts logging to `out`.
///
/// Records go through a bounded queue to a thread of their own: a reader that is slow or gone costs records,
/// never the work. `filter` is what `RUST_LOG` says: `debug`, or `info,leasehold::actors=debug`. At the end what is not
/// written yet has as long as `limit` then says to be read, and a second at most.
pub fn start(
    format: LogFormat,
    identity: &Identity,
    filter: &str,
    out: impl Write + Send + 'static,
    limit: impl Fn() -> Duration + 'static,
) -> LogGuard {
    let (out, writing) = NonBlockingBuilder::default().buffered_lines_limit(QUEUE).thread_name("log").finish(out);
    let guard = LogGuard { writing: Some(writing), dropped: out.error_counter(), limit: Box::new(limit) };
    let layer = match format {
        LogFormat::Json => json(identity, move || out.clone()).boxed(),
        LogFormat::Text => fmt::layer().with_ansi(false).event_format(Text).with_writer(move || out.clone()).boxed(),
    };
    let filter: Targets = filter.parse().unwrap_or_else(|_| Targets::new().with_default(Level::INFO));
    let no_secrets = filter_fn(|record| {
        // At this level the SDK logs whole requests, receipt handles included.
        let is_trace = *record.level() == Level::TRACE && record.target().starts_with("aws_");
        let is_of_process = QUOTES_A_PROCESS.iter().any(|target| record.target().starts_with(target));
        !is_trace && !is_of_process
    });
    tracing_subscriber::registry().with(filter).with(layer.with_filter(no_secrets)).init();
    // A bug is told where everything else is.
    std::panic::set_hook(Box::new(|panic| error!(%panic, "a bug in leasehold")));
    guard
}

/// A line of the command is at most 8 KiB, so this is at most 32 MiB.
const QUEUE: usize = 4096;

fn json<S, W>(
    identity: &Identity,
    out: impl Fn() -> W + Send + Sync + 'static,
) -> JsonLayer<S, impl Fn() -> W + Send + Sync + 'static>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write + 'static,
{
    let mut layer = JsonLayer::new(out);
    layer.with_timer("timestamp", fmt::time::SystemTime);
    layer.with_level("level");
    layer.with_flattened_event();
    layer.with_top_level_flattened_span_list();
    layer.with_target("target");
    layer.add_static_field("job_id", identity.job_id.clone().into());
    layer.add_static_field("pod_name", identity.pod_name.clone().into());
    layer
}
