//! `leasehold sweep`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use tracing::{error, info};

use super::exit::UNAVAILABLE;
use super::runtime::{block_on, log_style};
use crate::adapters::http::Http;
use crate::settings::environment;
use crate::settings::resolve::{PushgatewayConfig, SweepConfig};
use crate::telemetry::logs::{self, Identity};
use crate::telemetry::panics;
use crate::telemetry::push::{self, Pushgateway, Swept};
use crate::wiring::machine::check_threads;

pub fn sweep(config: SweepConfig) -> Result<ExitCode, String> {
    check_threads()?;
    let SweepConfig { pushgateway: gateway, older_than, log_format } = config;
    let identity =
        Identity { job_id: environment::host_name(), pod_name: environment::host_name() };
    let style = log_style(log_format, &std::io::stdout());
    let filter = logs::filter(environment::log_filter().as_deref(), "info")?;
    let _logs = logs::start(style, &identity, filter, std::io::stdout(), || Duration::from_secs(1));
    panics::log_panics(false);
    let sweep = async {
        match push::sweep(&pushgateway(gateway), older_than, SystemTime::now()).await {
            Ok(Swept { found, deleted, failed }) => {
                info!(found, deleted, failed, "swept");
                Ok(ExitCode::from(u8::from(failed > 0)))
            }
            Err(error) => {
                error!(error, "the Pushgateway could not be swept");
                Ok(ExitCode::from(UNAVAILABLE))
            }
        }
    };
    block_on(|_| sweep, Duration::ZERO)?
}

pub fn pushgateway(config: PushgatewayConfig) -> Pushgateway {
    let PushgatewayConfig { url, job, credentials } = config;
    Pushgateway::new(Http::new(environment::ca_bundle()), &url, job, credentials)
}
