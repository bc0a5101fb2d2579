//! How the work on each object is handed to the user's program.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::error::SettingError;
use super::task::WORK;
use super::values::{List, time};
use crate::adapters::http_handler::{HttpAddress, HttpBody, HttpSettings, StatusRange};

#[derive(Debug, Clone, Default, Args)]
pub struct HandlerSettings {
    /// Start the command for each object (command), or send each object to a server in this pod
    /// (http://127.0.0.1:PORT/PATH), which the command starts once
    #[arg(long, value_name = "HANDLER", default_value_t, help_heading = WORK, hide_short_help = true)]
    pub handler: Handler,

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

/// The program that gets the work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Handler {
    /// The command is started for each object.
    #[default]
    Command,
    /// A server in this pod gets a request for each object.
    Http(HttpAddress),
}

impl fmt::Display for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command => f.write_str("command"),
            Self::Http(address) => address.fmt(f),
        }
    }
}

impl FromStr for Handler {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "command" => Ok(Self::Command),
            url if url.contains("://") => url.parse().map(Self::Http),
            _ => Err("write command, or a URL such as http://127.0.0.1:8080/work"),
        }
    }
}

/// The checked handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandlerConfig {
    Command,
    /// Does the command start the server? Otherwise, another container does.
    Http {
        settings: HttpSettings,
        has_command: bool,
    },
}

const READY_TIMEOUT: Duration = Duration::from_mins(2);

impl HandlerSettings {
    /// The address of the server, if one gets the work.
    pub(super) fn server(&self) -> Option<String> {
        match &self.handler {
            Handler::Http(address) => Some(address.to_string()),
            Handler::Command => None,
        }
    }

    pub(super) fn check(
        self,
        has_command: bool,
        has_job_types: bool,
    ) -> Result<HandlerConfig, SettingError> {
        let Self { handler, http_body, permanent_http_codes, ready_timeout } = self;
        let flags = [
            ("--http-body", http_body.is_some()),
            ("--permanent-http-codes", !permanent_http_codes.is_empty()),
            ("--ready-timeout", ready_timeout.is_some()),
        ];
        let address = match handler {
            Handler::Http(address) => address,
            Handler::Command => {
                return match flags.into_iter().find(|(_, is_set)| *is_set) {
                    Some((flag, _)) => Err(SettingError::NoHttpHandler(flag)),
                    None if !has_command && !has_job_types => Err(SettingError::NoCommandToStart),
                    None => Ok(HandlerConfig::Command),
                };
            }
        };
        if ready_timeout == Some(Duration::ZERO) {
            return Err(SettingError::Zero("ready-timeout"));
        }
        let settings = HttpSettings {
            address,
            body: http_body.unwrap_or_default(),
            permanent: permanent_http_codes.into_iter().flat_map(|list| list.0).collect(),
            ready_timeout: ready_timeout.unwrap_or(READY_TIMEOUT),
        };
        Ok(HandlerConfig::Http { settings, has_command })
    }
}
