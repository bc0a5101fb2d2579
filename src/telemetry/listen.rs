//! Serves `/metrics` to Prometheus, and `/healthz` and `/readyz` to the kubelet.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::metrics::Metrics;
use crate::actors::vitals::Vitals;
use crate::job::delivery::MessageId;

/// Is a message held? Not any more once a stop was asked for, or once it is being let go.
///
/// For KEDA's `pendingPodConditions: ["ContainersReady"]`: a pod that has not received yet counts as pending, and so does one that is
/// about to leave.
#[derive(Debug)]
pub struct Readiness {
    held: Mutex<HashSet<MessageId>>,
    stop: CancellationToken,
}

impl Readiness {
    /// `stop` is cancelled when a stop is asked for.
    pub fn new(stop: CancellationToken) -> Self {
        Self { held: Mutex::default(), stop }
    }

    pub(super) fn hold(&self, message: &MessageId) {
        self.held().insert(message.clone());
    }

    pub(super) fn let_go(&self, message: &MessageId) {
        self.held().remove(message);
    }

    pub fn is_ready(&self) -> bool {
        !self.stop.is_cancelled() && !self.held().is_empty()
    }

    fn held(&self) -> MutexGuard<'_, HashSet<MessageId>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is served.
pub struct Pages {
    /// None if they are pushed: whoever scraped them as well would count everything twice.
    pub metrics: Option<Arc<Metrics>>,
    pub readiness: Arc<Readiness>,
    pub vitals: Vitals,
}

/// Serves until it is dropped. The error is that of listening on `address`.
pub async fn serve(address: SocketAddr, pages: Pages) -> std::io::Result<AbortOnDropHandle<()>> {
    let listener = TcpListener::bind(address).await?;
    let pages = Arc::new(pages);
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            // Out of file descriptors, or a connection that was closed at once: the next may be better.
            let Ok((connection, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let pages = pages.clone();
            tokio::spawn(async move {
                let answer = service_fn(|request| answer(&pages, request));
                // What breaks is the asker's connection, and it may ask again.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(connection), answer)
                    .await;
            });
        }
    })))
}

async fn answer(pages: &Pages, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()));
    }
    Ok(match (request.uri().path(), &pages.metrics) {
        ("/metrics", Some(metrics)) => text(StatusCode::OK, metrics.text()),
        ("/metrics", None) => {
            let why = "the metrics are pushed (--pushgateway): scraped as well they would count twice\n";
            text(StatusCode::NOT_FOUND, why.to_owned())
        }
        ("/healthz", _) => yes_or_no(pages.vitals.are_good().await, "the actors answer", "an actor does not answer"),
        ("/readyz", _) => yes_or_no(pages.readiness.is_ready(), "a message is held", "no message is held"),
        (_, _) => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".to_owned()),
    })
}

fn yes_or_no(is_so: bool, yes: &str, no: &str) -> Response<Full<Bytes>> {
    if is_so {
        text(StatusCode::OK, format!("{yes}\n"))
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, format!("{no}\n"))
    }
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let version = "text/plain; version=0.0.4; charset=utf-8";
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(version));
    response
}
