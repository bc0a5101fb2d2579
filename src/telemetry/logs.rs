//! The log: one JSON object per line, or text for a person.

use std::ffi::OsStr;
use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing::{Level, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use super::json::Json;
use super::metrics::Dropped;
use super::text::{FileNames, Text};
pub use super::{Identity, LogFormat};

/// On drop, logs how many records were lost, and writes the remaining ones, as long as the reader
/// is fast enough.
pub struct LogGuard {
    writing: Option<WorkerGuard>,
    /// `None` if the log is not ours.
    dropped: Option<ErrorCounter>,
    limit: Box<dyn Fn() -> Duration>,
}

impl LogGuard {
    /// The counter of records that were lost because the log was not read fast enough.
    pub fn dropped(&self) -> Option<Dropped> {
        let dropped = self.dropped.clone()?;
        Some(Box::new(move || dropped.dropped_lines()))
    }
}

impl Drop for LogGuard {
    /// On a separate thread: if the log has no reader, `WorkerGuard` writes a complaint to the
    /// standard output, which may block forever, too.
    fn drop(&mut self) {
        let (writing, Some(dropped)) = (self.writing.take(), self.dropped.take()) else { return };
        let (done, is_done) = mpsc::channel();
        let flush = move || {
            log_dropped(&dropped);
            drop(writing);
            // The receiver is gone after a timeout.
            let _ = done.send(());
        };
        if thread::Builder::new().name("flush".to_owned()).spawn(flush).is_ok() {
            let _ = is_done.recv_timeout((self.limit)());
        }
    }
}

/// Logs the number of lost records. The queue may be full, so it is tried as long as `WorkerGuard`
/// tries.
fn log_dropped(dropped: &ErrorCounter) {
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

/// Which records are written: from `RUST_LOG` (`debug`, or `info,leasehold::actors=debug`), else
/// from `default`.
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
        // `Targets` would take a single unknown word for a target, and write only its records.
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
    let is_unnamed =
        |of: &&str| !is_quieter && !targets.iter().any(|(target, _)| of.starts_with(target));
    let unnamed: Vec<_> = VERBOSE_TARGETS.into_iter().filter(is_unnamed).collect();
    Ok(targets.with_targets(unnamed.into_iter().map(|of| (of, LevelFilter::ERROR))))
}

/// Modules of the AWS SDK that log the standard error of a `credential_process`. Our own log lines
/// have the reason of a failure.
const QUOTES_A_PROCESS: [&str; 2] =
    ["aws_config::profile::credentials", "aws_config::meta::credentials"];

/// A module of the AWS SDK that logs a whole HTTP response if the instance metadata has no region.
const QUOTES_AN_ANSWER: &str = "aws_config::imds::region";

/// Only errors of these targets are written, unless the filter names them. ractor opens a span
/// around each of its handlers.
const VERBOSE_TARGETS: [&str; 2] = ["ractor", QUOTES_AN_ANSWER];

/// The names of our modules in the log omit the private module that contains them.
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
    /// Only for text.
    pub is_coloured: bool,
}

/// Starts logging to `out`.
///
/// Records go through a bounded queue to a separate thread: a reader that is slow or gone loses
/// records, but never delays the work. At the end, the remaining records are written within
/// `limit`, and within a second at most.
///
/// If the program that embeds leasehold has a subscriber already, that one gets all records.
pub fn start(
    style: Style,
    identity: &Identity,
    filter: Targets,
    out: impl Write + Send + 'static,
    limit: impl Fn() -> Duration + 'static,
) -> LogGuard {
    if tracing::dispatcher::has_been_set() {
        return LogGuard { writing: None, dropped: None, limit: Box::new(limit) };
    }
    let (out, writing) =
        NonBlockingBuilder::default().buffered_lines_limit(QUEUE).thread_name("log").finish(out);
    let dropped = Some(out.error_counter());
    let guard = LogGuard { writing: Some(writing), dropped, limit: Box::new(limit) };
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
        // Our spans have the message's fields, which are never left out.
        let is_our_span = record.is_span()
            && record.target().starts_with(INSIDE.0)
            && *record.level() <= Level::INFO;
        !is_trace
            && !is_of_process
            && (is_our_span || filter.would_enable(record.target(), record.level()))
    });
    let is_written = is_written.with_max_level_hint(most.max(LevelFilter::INFO));
    tracing_subscriber::registry().with(layer.with_filter(is_written)).init();
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
    fn an_invalid_filter_is_refused_and_quoted() {
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
    fn records_of_verbose_targets_need_their_name_in_the_filter() {
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
