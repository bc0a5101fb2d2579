//! The runner of `--handler`.

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::adapters::http_handler::HttpHandler;
use crate::adapters::warm::WarmProcesses;
use crate::ports::Runner;
use crate::settings::handler::HandlerConfig;

/// A runner, and what must end after the last message.
pub struct Handled {
    pub runner: Arc<dyn Runner>,
    http: Option<Arc<HttpHandler>>,
}

impl Handled {
    /// `commands` starts processes. A process that stays is ended when `stop` is cancelled.
    pub fn new(
        handler: &HandlerConfig,
        commands: Arc<dyn Runner>,
        work_dir: &Path,
        stop: &CancellationToken,
    ) -> Self {
        match handler {
            HandlerConfig::Command => Self { runner: commands, http: None },
            HandlerConfig::Http { settings, has_command } => {
                let processes = has_command.then(|| WarmProcesses::new(commands, work_dir, stop));
                let http = Arc::new(HttpHandler::new(settings.clone(), processes));
                Self { runner: http.clone(), http: Some(http) }
            }
        }
    }

    /// Ends a process that stays: SIGTERM, and SIGKILL after the stop grace.
    pub async fn end(self) {
        if let Some(http) = self.http {
            http.end().await;
        }
    }
}
