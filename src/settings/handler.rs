//! The settings of `--handler http://…`.

use std::time::Duration;

use super::error::SettingError;
use super::given::Settings;
use super::task::WORK;
use super::values::{Handler, List, time};
use crate::adapters::http_handler::{HttpBody, HttpSettings, StatusRange};

#[derive(Debug, Clone, Default, Settings)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct HttpFlags {
    /// The body of a request to an http:// handler [default: job]
    #[arg(long, value_enum, help_heading = WORK, hide_short_help = true)]
    pub http_body: Option<HttpBody>,

    /// Status codes with which an http:// handler reports a permanent failure, which a retry cannot
    /// fix: codes and ranges such as 400-499 [default: none]
    #[arg(long, value_name = "CODE,...", help_heading = WORK, hide_short_help = true)]
    pub permanent_http_codes: Vec<List<StatusRange>>,

    /// How long the server of an http:// handler may take to accept connections [default: 2m]
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = WORK, hide_short_help = true)]
    pub ready_timeout: Option<Duration>,
}

/// The checked settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    pub settings: HttpSettings,
    /// Does the command start the server? Otherwise, another container does.
    pub has_command: bool,
}

const READY_TIMEOUT: Duration = Duration::from_mins(2);

impl HttpFlags {
    pub(super) fn check(
        self,
        handler: &Handler,
        has_command: bool,
    ) -> Result<HttpConfig, SettingError> {
        let Self { http_body, permanent_http_codes, ready_timeout } = self;
        for (flag, is_set) in [
            ("--http-body", http_body.is_some()),
            ("--permanent-http-codes", !permanent_http_codes.is_empty()),
            ("--ready-timeout", ready_timeout.is_some()),
        ] {
            if is_set && !handler.is_http() {
                return Err(SettingError::NoHttpHandler(flag));
            }
        }
        if ready_timeout == Some(Duration::ZERO) {
            return Err(SettingError::Zero("ready-timeout"));
        }
        let settings = HttpSettings {
            body: http_body.unwrap_or_default(),
            permanent: permanent_http_codes.into_iter().flat_map(|list| list.0).collect(),
            ready_timeout: ready_timeout.unwrap_or(READY_TIMEOUT),
        };
        Ok(HttpConfig { settings, has_command })
    }
}
