//! `leasehold local`.

use std::io::{IsTerminal, stderr, stdout};
use std::process::ExitCode;
use std::sync::Arc;

use console::Term;
use tokio_util::sync::CancellationToken;

use super::InProcess;
use super::exit::print;
use super::runtime::{
    block_on, check_handler, finish, flush_limit, is_coloured, log_style, longest_stop_grace,
    runner,
};
use super::signals::{self, Reaction, stop_requested};
use crate::adapters::lambda::Source;
use crate::local::{self, Killable, Page};
use crate::settings::environment;
use crate::settings::resolve::{LocalConfig, Verbosity};
use crate::telemetry::bars;
use crate::telemetry::logs::{self, LogFormat};
use crate::telemetry::panics;
use crate::wiring::handlers::for_handler;
use crate::wiring::machine::{ThreadCheck, check_machine, check_threads};

pub fn run_local(
    config: LocalConfig,
    in_process: Option<InProcess>,
    threads: Option<ThreadCheck>,
) -> Result<ExitCode, String> {
    let in_process = in_process.map(|make| make(config.work.batch.sharing(config.concurrency)));
    threads.map_or_else(check_threads, ThreadCheck::finish)?;
    check_machine(&config.work, in_process.is_none())?;
    check_handler(&config.work, in_process.is_some())?;
    let (stop, verbosity) = (config.work.settings.stop, config.verbosity);
    let style = log_style(config.work.log_format, &stderr());
    let is_watched = style.format == LogFormat::Text && stderr().is_terminal();
    let filter =
        logs::filter(environment::log_filter().as_deref(), &default_filter(verbosity, is_watched))?;
    let (screen, above) = bars::screen(is_watched && verbosity != Verbosity::Quiet);
    let logs = logs::start(style, &config.work.identity, filter, above, flush_limit(stop));
    panics::log_panics(in_process.is_some());
    let run = |work_threads| async {
        let kill = CancellationToken::new();
        let work = in_process.as_ref().map_or("the command", |runner| runner.name());
        let stop_grace = longest_stop_grace(&config.work.settings.policy);
        let reaction = Reaction { work, stop_grace, kill: Some(kill.clone()) };
        let stopped = stop_requested(None, &reaction)?;
        let processes = Arc::new(Killable { runner: in_process.map_or_else(runner, Ok)?, kill });
        let source = Source::new(None, None);
        let runner = for_handler(processes, &config.work, config.concurrency, source, &stopped);
        let summary = local::run(config, runner.clone(), work_threads, screen, stopped).await;
        finish(runner.as_ref(), stop_grace + stop.actor()).await;
        summary.map_err(|error| error.to_string())
    };
    let summary = block_on(run, stop.tidy())??;
    // Writes the remaining log records before the summary.
    drop(logs);
    let columns = Term::stdout().size_checked().map(|(_, columns)| columns);
    let page = Page {
        columns: columns.filter(|_| stdout().is_terminal()),
        is_coloured: is_coloured(&stdout()),
    };
    print(stdout(), &summary.text(verbosity, page));
    let code = signals::exit_code().unwrap_or(u8::from(!summary.all_succeeded()));
    Ok(ExitCode::from(code))
}

/// A user who watches the bars sees only failures and the command's output.
fn default_filter(verbosity: Verbosity, is_watched: bool) -> String {
    let signals = signals::TARGET;
    match verbosity {
        Verbosity::Quiet => format!("error,{signals}=info"),
        Verbosity::Normal if is_watched => format!("warn,command=info,{signals}=info"),
        Verbosity::Normal | Verbosity::Verbose => "info".to_owned(),
    }
}
