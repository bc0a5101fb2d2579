//! `leasehold local`.

use std::process::ExitCode;
use std::sync::Arc;

use super::exit::say;
use super::machine::{check_machine, check_threads};
use super::runtime::{block_on, flush_limit, log_style, runner};
use super::signals::stop_requested;
use crate::cli::environment;
use crate::config::LocalConfig;
use crate::local;
use crate::ports::Runner;
use crate::telemetry::bars;
use crate::telemetry::logs::{self, LogFormat};

pub fn run_local(config: LocalConfig, own: Option<Arc<dyn Runner>>) -> Result<ExitCode, String> {
    check_threads()?;
    check_machine(&config.work, own.is_none())?;
    let style = log_style(config.work.log_format, &std::io::stderr());
    let filter = logs::filter(environment::log_filter().as_deref(), "info")?;
    let (screen, above) = bars::screen(style.format == LogFormat::Text);
    let stop = config.work.settings.stop;
    let _logs = logs::start(style, &config.work.identity, filter, above, flush_limit(stop));
    let run = async {
        let stopped = stop_requested(None)?;
        let runner = own.map_or_else(runner, Ok)?;
        let summary = local::run(config, runner, screen, stopped).await.map_err(|error| error.to_string())?;
        say(std::io::stdout(), &summary.to_string());
        Ok(ExitCode::from(u8::from(!summary.all_succeeded())))
    };
    block_on(run, stop.tidy())?
}
