//! Log records: one flat JSON object a line, or text for a person.

use std::ffi::OsStr;
use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing::{Level, error, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use super::json::Json;
use super::text::{FileNames, Text};

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

/// When it is dropped, it tells how many records were lost and writes what is not yet written, as
/// far as somebody reads it soon.
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
    /// On a thread of its own: where nobody reads, `WorkerGuard` complains of that on the standard
    /// output, where nobody reads, and so would keep the program from ever ending.
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

/// The last record, for which there may have to become room first: it is tried as long as
/// `WorkerGuard` tries.
fn tell(dropped: &ErrorCounter) {
    let dropped_lines = dropped.dropped_lines();
    if dropped_lines == 0 {
        return;
    }
    for _ in 0..10 {
        let before = dropped.dropped_lines();
        warn!(dropped_lines, "log records were lost: the log was not read fast enough");
        if dropped.dropped_lines() == before {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Which records are written: those that `RUST_LOG` asks for (`debug`, or
/// `info,leasehold::actors=debug`), else those that `default` does.
pub fn filter(rust_log: Option<&OsStr>, default: &str) -> Result<Targets, String> {
    let typed = rust_log.unwrap_or(default.as_ref());
    let refused = || {
        format!(
            "RUST_LOG={:?} is not valid: write a level (off, error, warn, info, debug, trace), or several target=level with commas between them",
            typed.to_string_lossy()
        )
    };
    let directives =
        typed.to_str().ok_or_else(refused)?.split(',').map(str::trim).filter(|it| !it.is_empty());
    let mut targets = Targets::new();
    for directive in directives {
        let (target, level) =
            directive.rsplit_once('=').map_or((None, directive), |(at, level)| (Some(at), level));
        // A word alone would be a target, all of whose records are written, and those of nothing
        // else.
        let level: LevelFilter = level.parse().map_err(|_| refused())?;
        targets = match target {
            Some(target)
                if target.contains(|c: char| !(c.is_alphanumeric() || "_-:".contains(c))) =>
            {
                return Err(refused());
            }
            Some(target) => targets.with_target(as_compiled(target), level),
            None => targets.with_default(level),
        };
    }
    let is_quieter = targets.default_level().is_none_or(|level| level < LevelFilter::ERROR);
    let unasked =
        |of: &&str| !is_quieter && !targets.iter().any(|(target, _)| of.starts_with(target));
    let unasked: Vec<_> = CHATTERERS.into_iter().filter(unasked).collect();
    Ok(targets.with_targets(unasked.into_iter().map(|of| (of, LevelFilter::ERROR))))
}

/// Modules of the AWS SDK that log what a `credential_process` wrote to its standard error. The reason
/// of a failure is in our own lines.
const QUOTES_A_PROCESS: [&str; 2] =
    ["aws_config::profile::credentials", "aws_config::meta::credentials"];

/// The AWS SDK's records from there show a whole HTTP answer, where no instance tells it a region.
const QUOTES_AN_ANSWER: &str = "aws_config::imds::region";

/// Only their errors are written, unless they are asked for by name. ractor opens a span around
/// each of its handlers.
const CHATTERERS: [&str; 2] = ["ractor", QUOTES_AN_ANSWER];

/// Modules are known without the one that hides them.
const INSIDE: (&str, &str) = ("leasehold::inside", "leasehold");

fn as_compiled(target: &str) -> String {
    match target.strip_prefix(INSIDE.1) {
        Some(rest) if rest.starts_with("::") && !target.starts_with(INSIDE.0) => {
            format!("{}{rest}", INSIDE.0)
        }
        Some(_) | None => target.to_owned(),
    }
}

pub(super) fn as_known(target: &str) -> String {
    target
        .strip_prefix(INSIDE.0)
        .map_or_else(|| target.to_owned(), |rest| format!("{}{rest}", INSIDE.1))
}

/// How records are written.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    pub format: LogFormat,
    /// Only text has any.
    pub is_coloured: bool,
}

/// Starts logging to `out`.
///
/// Records go through a bounded queue to a thread of their own: a reader that is slow or gone costs
/// records, never the work. At the end what is not written yet has as long as `limit` then says to
/// be read, and a second at most.
pub fn start(
    style: Style,
    identity: &Identity,
    filter: Targets,
    out: impl Write + Send + 'static,
    limit: impl Fn() -> Duration + 'static,
) -> LogGuard {
    let (out, writing) =
        NonBlockingBuilder::default().buffered_lines_limit(QUEUE).thread_name("log").finish(out);
    let guard =
        LogGuard { writing: Some(writing), dropped: out.error_counter(), limit: Box::new(limit) };
    let layer = match style.format {
        LogFormat::Json => {
            let layer =
                fmt::layer().fmt_fields(JsonFields::new()).event_format(Json(identity.clone()));
            layer.with_writer(move || out.clone()).boxed()
        }
        LogFormat::Text => {
            let layer =
                fmt::layer().with_ansi(false).event_format(Text { is_coloured: style.is_coloured });
            FileNames.and_then(layer.with_writer(move || out.clone())).boxed()
        }
    };
    let most = Layer::<Registry>::max_level_hint(&filter).unwrap_or(LevelFilter::TRACE);
    let is_written = filter_fn(move |record| {
        // At this level the SDK logs whole requests, receipt handles included.
        let is_trace = *record.level() == Level::TRACE && record.target().starts_with("aws_");
        let is_of_process =
            QUOTES_A_PROCESS.iter().any(|target| record.target().starts_with(target));
        // Which message a record is about is never left out.
        let is_our_span = record.is_span()
            && record.target().starts_with(INSIDE.0)
            && *record.level() <= Level::INFO;
        !is_trace
            && !is_of_process
            && (is_our_span || filter.would_enable(record.target(), record.level()))
    });
    let is_written = is_written.with_max_level_hint(most.max(LevelFilter::INFO));
    tracing_subscriber::registry().with(layer.with_filter(is_written)).init();
    // A bug is told where everything else is.
    std::panic::set_hook(Box::new(|panic| error!(%panic, "a bug in leasehold")));
    guard
}

/// A line of the command is at most 8 KiB, so this is at most 32 MiB.
const QUEUE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(typed: &str) -> Result<Targets, String> {
        filter(Some(typed.as_ref()), "info")
    }

    #[test]
    fn a_filter_that_is_not_understood_is_refused_and_quoted() {
        for typed in [
            "debgu",
            "leasehold",
            "info,leasehold=loud",
            "a[span{x=1}]=debug",
            "=info=",
            "info;debug",
        ] {
            let refusal = targets(typed).unwrap_err();
            assert!(refusal.contains(&format!("RUST_LOG={typed:?}")), "{refusal}");
        }
        assert!(targets("\u{1b}[2J").unwrap_err().contains(r"\u{1b}[2J"));
    }

    #[test]
    fn records_of_chatterers_are_asked_for_by_name() {
        let is_written = |typed: &str, target: &str, level: Level| {
            targets(typed).unwrap().would_enable(target, &level)
        };
        for typed in ["trace", "debug", "info, leasehold=debug", "warn"] {
            assert!(!is_written(typed, "ractor", Level::WARN), "{typed}");
            assert!(is_written(typed, "ractor", Level::ERROR), "{typed}");
        }
        assert!(!is_written("off", "ractor", Level::ERROR));
        assert!(is_written("info,ractor=debug", "ractor", Level::DEBUG));
        assert!(!is_written("info", QUOTES_AN_ANSWER, Level::WARN));
        assert!(is_written(
            &format!("info,{QUOTES_AN_ANSWER}=warn"),
            QUOTES_AN_ANSWER,
            Level::WARN
        ));
        assert!(is_written(
            "off,leasehold::actors=debug",
            "leasehold::inside::actors::receiver",
            Level::DEBUG
        ));
        assert!(!is_written(
            "off,leasehold::actors=debug",
            "leasehold::inside::work",
            Level::DEBUG
        ));
        assert!(is_written("leasehold=trace", "leasehold::inside::work", Level::TRACE));
        assert!(filter(None, "error").unwrap().would_enable("x", &Level::ERROR));
    }
}
