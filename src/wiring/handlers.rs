//! What works on the messages: a command, a Lambda function or an HTTP server.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::adapters::http_handler::HttpHandler;
use crate::adapters::lambda::{Function, Lambda, Source};
use crate::adapters::memory_limit::MemoryCgroup;
use crate::adapters::warm::WarmProcesses;
use crate::ports::Runner;
use crate::settings::environment;
use crate::settings::resolve::WorkConfig;
use crate::settings::values::Handler;

/// The runner for `--handler`; `processes` runs the command.
pub fn for_handler(
    processes: Arc<dyn Runner>,
    work: &WorkConfig,
    concurrency: usize,
    source: Source,
    stop: &CancellationToken,
) -> Arc<dyn Runner> {
    match &work.handler {
        Handler::Command | Handler::Batches => processes,
        Handler::Http(address) => {
            let start = || WarmProcesses::new(processes, &work.work_dir.path, stop);
            let processes = work.http.has_command.then(start);
            Arc::new(HttpHandler::new(address.clone(), work.http.settings.clone(), processes))
        }
        Handler::Lambda => {
            let memory_limit = MemoryCgroup::of_this_process().and_then(|cgroup| cgroup.limit());
            let function = Function { source, memory_limit, is_set: environment::is_set };
            let processes = WarmProcesses::new(processes, &work.work_dir.path, stop);
            Arc::new(Lambda::new(processes, function, work.batch.sharing(concurrency)))
        }
    }
}
