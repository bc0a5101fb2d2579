//! Lambda's Runtime API for one process, on a port of this machine.
//!
//! See <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>. The clients of the
//! languages end if `next` is answered with an error or its connection is closed, so it is held
//! open between events. Extensions, telemetry and streamed responses are not supported.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::response::FunctionError;
use crate::adapters::accept::accept;
use crate::adapters::warm::Serving;

/// An event for the function.
#[derive(Debug)]
pub(super) struct Invocation {
    /// Unique for each event of a process, so that a late answer never belongs to another event.
    pub(super) id: String,
    pub(super) event: String,
    /// In milliseconds since 1970.
    pub(super) deadline: u128,
    pub(super) function_arn: String,
    /// X-Ray's.
    pub(super) trace: Option<String>,
}

/// How an event was answered.
#[derive(Debug)]
pub(super) enum Answer {
    Response(Bytes),
    Error(FunctionError),
    /// The process cannot work: it reports this once, and ends.
    InitError(FunctionError),
}

/// The API, as long as it is not dropped.
pub(super) struct RuntimeApi {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    _server: AbortOnDropHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    /// An event was added.
    added: Notify,
    serving: Serving,
}

#[derive(Default)]
struct State {
    /// The event that `next` returns.
    waiting: Option<Invocation>,
    /// The id of the event in work, and where its answer goes.
    current: Option<(String, oneshot::Sender<Answer>)>,
    /// The ids of the last events that were answered.
    answered: VecDeque<String>,
}

/// The largest response of a function in bytes, as on Lambda.
const LONGEST_BODY: usize = 6 * 1024 * 1024 + 100;

/// A client uses one or two connections. More of them wait.
const MOST_CONNECTIONS: usize = 64;

/// A late answer comes within the next events.
const REMEMBERED: usize = 64;

impl RuntimeApi {
    /// Listens on a free port. Records in `serving` that the process has asked for an event.
    pub(super) async fn start(serving: Serving) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { state: Mutex::default(), added: Notify::new(), serving });
        let server = AbortOnDropHandle::new(tokio::spawn(listen(listener, shared.clone())));
        Ok(Self { address, shared, _server: server })
    }

    /// Passes the event to the process, as soon as it asks for one.
    pub(super) fn invoke(&self, invocation: Invocation) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.shared.state();
            state.current = Some((invocation.id.clone(), answer));
            state.waiting = Some(invocation);
        }
        self.shared.added.notify_one();
        answered
    }

    /// Takes back the event, unless the process has taken it.
    pub(super) fn take_back(&self) -> bool {
        self.shared.state().waiting.take().is_some()
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let connection = accept(&listener).await;
        while connections.try_join_next().is_some() {}
        let shared = shared.clone();
        connections.spawn(async move {
            serve(connection, &shared).await;
            drop(permit);
        });
    }
}

async fn serve(connection: TcpStream, shared: &Shared) {
    // Otherwise the kernel delays the second part of an answer by 40 ms.
    let _ = connection.set_nodelay(true);
    let answer = service_fn(|request| async { Ok::<_, Infallible>(shared.answer(request).await) });
    // An error breaks only this connection, and the client may reconnect. A connection may be idle
    // for as long as the function works.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), answer).await;
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match (request.method(), parts.as_slice()) {
            (&Method::GET, ["2018-06-01", "runtime", "invocation", "next"]) => {
                event(self.next().await)
            }
            (&Method::POST, ["2018-06-01", "runtime", "invocation", id, "response" | "error"])
                if !self.is_in_work(id) =>
            {
                discard(request).await;
                self.not_in_work(id)
            }
            (&Method::POST, ["2018-06-01", "runtime", "invocation", id, "response"]) => {
                self.response(id, request).await
            }
            (&Method::POST, ["2018-06-01", "runtime", "invocation", id, "error"]) => {
                let error = reported(request).await;
                self.settle(id, Answer::Error(error))
            }
            (&Method::POST, ["2018-06-01", "runtime", "init", "error"]) => {
                let error = reported(request).await;
                let current = self.state().current.take();
                if let Some((_, answer)) = current {
                    // Fails only if all messages were given up.
                    let _ = answer.send(Answer::InitError(error));
                }
                accepted()
            }
            _ => refused(
                StatusCode::NOT_FOUND,
                "UnsupportedEndpoint",
                "leasehold serves the Runtime API of 2018-06-01, without extensions, telemetry and SnapStart",
            ),
        }
    }

    /// Waits for the next event, without limit.
    async fn next(&self) -> Invocation {
        self.serving.record();
        {
            let mut state = self.state();
            if state.waiting.is_none()
                && let Some((id, answer)) = state.current.take()
            {
                let why = "the function asked for the next event without an answer to this one";
                // Fails only if all messages were given up.
                let _ = answer.send(Answer::Error(FunctionError::new(why)));
                state.remember(id);
            }
        }
        loop {
            // Not held over the wait.
            let waiting = self.state().waiting.take();
            if let Some(invocation) = waiting {
                return invocation;
            }
            self.added.notified().await;
        }
    }

    async fn response(&self, id: &str, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.headers().contains_key("lambda-runtime-function-response-mode") {
            let why = "the function streams its response, which leasehold does not support";
            self.settle(id, Answer::Error(FunctionError::new(why)));
            return refused(StatusCode::FORBIDDEN, "UnsupportedResponseMode", why);
        }
        match Limited::new(request.into_body(), LONGEST_BODY).collect().await {
            Ok(body) => self.settle(id, Answer::Response(body.to_bytes())),
            Err(error) => {
                let why = format!("the function's response is over 6 MiB, or broken: {error}");
                self.settle(id, Answer::Error(FunctionError::new(why.as_str())));
                refused(StatusCode::PAYLOAD_TOO_LARGE, "Function.ResponseSizeTooLarge", &why)
            }
        }
    }

    /// Passes on the first answer to the event in work.
    fn settle(&self, id: &str, answer: Answer) -> Response<Full<Bytes>> {
        let mut state = self.state();
        if !state.is_in_work(id) {
            drop(state);
            return self.not_in_work(id);
        }
        if let Some((id, to)) = state.current.take() {
            // Fails only if all messages were given up.
            let _ = to.send(answer);
            state.remember(id);
        }
        accepted()
    }

    fn is_in_work(&self, id: &str) -> bool {
        self.state().is_in_work(id)
    }

    /// A late answer is accepted and ignored: clients end if it is refused.
    fn not_in_work(&self, id: &str) -> Response<Full<Bytes>> {
        if self.state().answered.iter().any(|it| it == id) {
            return accepted();
        }
        let why = "no event has this request id";
        refused(StatusCode::BAD_REQUEST, "InvalidRequestID", why)
    }
}

impl State {
    /// Has the process taken the event with this id, and not answered it?
    fn is_in_work(&self, id: &str) -> bool {
        self.waiting.is_none() && self.current.as_ref().is_some_and(|(current, _)| current == id)
    }

    fn remember(&mut self, id: String) {
        if self.answered.len() == REMEMBERED {
            self.answered.pop_front();
        }
        self.answered.push_back(id);
    }
}

/// Reads the body without keeping it: a client that still sends would miss the answer.
async fn discard(request: Request<Incoming>) {
    let mut body = Limited::new(request.into_body(), LONGEST_BODY);
    while let Some(Ok(_)) = body.frame().await {}
}

/// The error in the body of a request. A body that is too long or breaks off is an error, too.
async fn reported(request: Request<Incoming>) -> FunctionError {
    let kind = request.headers().get("lambda-runtime-function-error-type");
    let kind = kind.and_then(|kind| kind.to_str().ok()).map(str::to_owned);
    match Limited::new(request.into_body(), LONGEST_BODY).collect().await {
        Ok(body) => FunctionError::parse(&body.to_bytes(), kind.as_deref()),
        Err(error) => FunctionError::new(format!("an error whose report is not readable: {error}")),
    }
}

fn event(invocation: Invocation) -> Response<Full<Bytes>> {
    let Invocation { id, event, deadline, function_arn, trace } = invocation;
    let mut response = json_response(StatusCode::OK, event);
    let headers = [
        ("lambda-runtime-aws-request-id", Some(id)),
        ("lambda-runtime-deadline-ms", Some(deadline.to_string())),
        ("lambda-runtime-invoked-function-arn", Some(function_arn)),
        ("lambda-runtime-trace-id", trace),
    ];
    for (name, value) in headers {
        // A sender's trace may have characters that a header cannot have.
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}

fn accepted() -> Response<Full<Bytes>> {
    json_response(StatusCode::ACCEPTED, json!({ "status": "OK" }).to_string())
}

fn refused(status: StatusCode, kind: &str, message: &str) -> Response<Full<Bytes>> {
    let error = json!({ "errorType": kind, "errorMessage": message });
    json_response(status, error.to_string())
}

fn json_response(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
