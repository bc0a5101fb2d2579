//! The server that the user's command starts: one process for all messages of the pod, also for
//! those that are processed at the same time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tracing::Span;

use crate::adapters::warm::{Serving, WarmProcess, WarmProcesses};
use crate::ports::{Activity, Command, Exited, StartError};

pub(super) struct Server {
    processes: WarmProcesses,
    current: Mutex<Option<Current>>,
}

struct Current {
    process: Arc<WarmProcess>,
    serving: Serving,
    requests: Vec<Arc<Request>>,
    /// It may still work on a request without an answer: it gets no new request, and ends after the
    /// others.
    is_retired: bool,
}

struct Request {
    activity: Activity,
    span: Span,
}

impl Server {
    pub(super) fn new(processes: WarmProcesses) -> Self {
        Self { processes, current: Mutex::default() }
    }

    /// The process for the next request, if one runs. Waits for the end of one that ends.
    pub(super) async fn running(&self) -> Option<Arc<WarmProcess>> {
        loop {
            let (process, is_retired) = {
                let current = self.current();
                let current = current.as_ref()?;
                (current.process.clone(), current.is_retired)
            };
            if !is_retired && !process.has_ended() && !process.is_halted() {
                return Some(process);
            }
            let _ = process.ended().await;
            self.forget(&process);
        }
    }

    /// Starts the process, unless another request has just done so.
    pub(super) fn start(&self, command: &Command) -> Result<Arc<WarmProcess>, StartError> {
        let mut current = self.current();
        if let Some(current) = &*current {
            return Ok(current.process.clone());
        }
        let serving = self.processes.serving();
        let process = Arc::new(self.processes.start(command, Vec::new(), &serving)?);
        *current = Some(Current {
            process: process.clone(),
            serving,
            requests: Vec::new(),
            is_retired: false,
        });
        Ok(process)
    }

    /// It accepts connections, so its start succeeded. Until the result is dropped, the output of
    /// the process belongs to this request, too. `None` if the process ends or was replaced, so it
    /// must get no new request.
    pub(super) fn works_on(
        &self,
        process: Arc<WarmProcess>,
        activity: Activity,
    ) -> Option<RequestInWork<'_>> {
        let mut current = self.current();
        let current = current.as_mut().filter(|it| it.is(&process) && !it.is_retired)?;
        if process.is_halted() {
            return None;
        }
        let request = Arc::new(Request { activity, span: Span::current() });
        current.serving.record();
        current.requests.push(request.clone());
        current.assign_output();
        Some(RequestInWork { server: self, process, request, is_answered: false })
    }

    /// Ends a process that works on no request, and gives it no further one. `None` if it works.
    pub(super) fn end_unused(
        &self,
        process: &Arc<WarmProcess>,
    ) -> Option<impl Future<Output = Result<Exited, StartError>>> {
        if let Some(current) = self.current().as_mut().filter(|it| it.is(process)) {
            if !current.requests.is_empty() {
                return None;
            }
            current.is_retired = true;
        }
        Some(process.halt())
    }

    /// Ends the process.
    pub(super) async fn end(&self) {
        let process = self.current().as_ref().map(|current| current.process.clone());
        if let Some(process) = process {
            let _ = process.halt().await;
            self.forget(&process);
        }
    }

    fn forget(&self, process: &Arc<WarmProcess>) {
        let mut current = self.current();
        if current.as_ref().is_some_and(|it| it.is(process)) {
            *current = None;
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    fn is(&self, process: &Arc<WarmProcess>) -> bool {
        Arc::ptr_eq(&self.process, process)
    }

    /// Its output shows signs of life of all requests, and belongs to a message if there is only
    /// one.
    fn assign_output(&self) {
        let activities = self.requests.iter().map(|request| request.activity.clone()).collect();
        match &*self.requests {
            [] => self.process.is_idle(),
            [only] => self.process.works_on(activities, only.span.clone()),
            [..] => self.process.works_on(activities, Span::none()),
        }
    }
}

/// A request that the process works on. If it is dropped without its answer, the process may still
/// work on it, so the process ends: now, or after its other requests.
pub(super) struct RequestInWork<'a> {
    server: &'a Server,
    pub(super) process: Arc<WarmProcess>,
    request: Arc<Request>,
    is_answered: bool,
}

impl RequestInWork<'_> {
    pub(super) fn answered(mut self) {
        self.is_answered = true;
    }

    /// Waits for the end of the process, unless it works on other requests, too. In a stop, all
    /// requests wait, so that no message is released before.
    pub(super) async fn halt(self) {
        let (server, process) = (self.server, self.process.clone());
        drop(self);
        if process.is_halted() || server.processes.is_stopping() {
            let _ = process.ended().await;
            server.forget(&process);
        }
    }
}

impl Drop for RequestInWork<'_> {
    fn drop(&mut self) {
        let mut current = self.server.current();
        let Some(current) = current.as_mut().filter(|it| it.is(&self.process)) else { return };
        current.requests.retain(|request| !Arc::ptr_eq(request, &self.request));
        current.assign_output();
        current.is_retired |= !self.is_answered;
        if current.is_retired && current.requests.is_empty() {
            // Sends SIGTERM; the next request waits for the end.
            let _ = self.process.halt().now_or_never();
        }
    }
}
