//! `leasehold local`.

use std::process::ExitCode;
use std::sync::Arc;

use super::exit::say;
use super::machine::{check_machine, check_threads};
use super::runtime::{block_on, default_format, flush_limit, runner};
use super::signals::stop_requested;
use crate::local;
use crate::ports::Runner;
use crate::settings::environment;
use crate::settings::resolve::LocalConfig;
use crate::telemetry::bars;
use crate::telemetry::logs::{self, LogFormat};

pub fn run_local(config: LocalConfig, own: Option<Arc<dyn Runner>>) -> Result<ExitCode, String> {
    check_threads()?;
    check_machine(&config.work, own.is_none())?;
    let format = config.work.log_format.unwrap_or(default_format(&std::io::stderr()));
    let (screen, above) = bars::screen(format == LogFormat::Text);
    let stop = config.work.settings.stop;
    let _logs = logs::start(format, &config.work.identity, &environment::log_filter(), above, flush_limit(stop));
    let run = async {
        let stopped = stop_requested(None)?;
        let runner = own.map_or_else(runner, Ok)?;
        let summary = local::run(config, runner, screen, stopped).await.map_err(|error| error.to_string())?;
        say(std::io::stdout(), &summary.to_string());
        Ok(ExitCode::from(u8::from(!summary.all_succeeded())))
    };
    block_on(run, stop.tidy())?
}
