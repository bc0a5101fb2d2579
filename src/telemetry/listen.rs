//! Serves `/metrics` to Prometheus, and `/healthz` and `/readyz` to the kubelet.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::metrics::Metrics;
use super::readiness::Readiness;
use crate::adapters::accept::accept;
use crate::ports::health::Health;

/// The data for the pages.
pub struct Pages {
    /// None if they are pushed: scraping them, too, would count them twice.
    pub metrics: Option<Arc<Metrics>>,
    pub readiness: Arc<Readiness>,
    pub health: Health,
}

/// Serves the pages until the handle is dropped. Fails if it cannot listen on `address`.
pub async fn serve(address: SocketAddr, pages: Pages) -> std::io::Result<AbortOnDropHandle<()>> {
    let listener = TcpListener::bind(address).await?;
    let pages = Arc::new(pages);
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        let mut connections = Connections::default();
        loop {
            let connection = accept(&listener).await;
            let pages = pages.clone();
            connections.add(tokio::spawn(async move {
                let answer = service_fn(|request| answer(&pages, request));
                // An error breaks only this connection, and the client may reconnect.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(IDLE_LIMIT)
                    .max_buf_size(LONGEST_REQUEST)
                    .serve_connection(TokioIo::new(connection), answer)
                    .await;
            }));
        }
    })))
}

/// The open connections, oldest first. Each takes a file descriptor, and the lease needs some, too.
/// If there are too many, the oldest is closed, so that slow clients do not block a probe.
#[derive(Default)]
struct Connections(VecDeque<AbortOnDropHandle<()>>);

impl Connections {
    fn add(&mut self, connection: JoinHandle<()>) {
        self.0.retain(|connection| !connection.is_finished());
        if self.0.len() >= MOST_CONNECTIONS {
            self.0.pop_front();
        }
        self.0.push_back(AbortOnDropHandle::new(connection));
    }
}

const MOST_CONNECTIONS: usize = 16;

/// How long a connection may wait for its next request.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// In bytes; the smallest value that hyper accepts.
const LONGEST_REQUEST: usize = 8 << 10;

async fn answer(
    pages: &Pages,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET is supported\n".to_owned()));
    }
    Ok(match (request.uri().path(), &pages.metrics) {
        ("/metrics", Some(metrics)) => text(StatusCode::OK, metrics.text()),
        ("/metrics", None) => {
            let why = "the metrics are pushed to --pushgateway: scraping them, too, would count them twice\n";
            text(StatusCode::NOT_FOUND, why.to_owned())
        }
        ("/healthz", _) => health_page(
            pages.health.is_healthy().await,
            "the actors answer",
            "an actor does not answer",
        ),
        ("/readyz", _) => {
            health_page(pages.readiness.is_ready(), "a message is held", "no message is held")
        }
        (_, _) => text(
            StatusCode::NOT_FOUND,
            "not found; the pages are /metrics, /healthz and /readyz\n".to_owned(),
        ),
    })
}

fn health_page(is_so: bool, yes: &str, no: &str) -> Response<Full<Bytes>> {
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
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(version));
    response
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn served() -> (SocketAddr, AbortOnDropHandle<()>) {
        let free =
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let readiness = Arc::new(Readiness::new(CancellationToken::new()));
        let pages = Pages { metrics: None, readiness, health: Health::default() };
        (free, serve(free, pages).await.unwrap())
    }

    #[tokio::test]
    async fn many_slow_clients_do_not_block_a_probe() {
        let (address, _serving) = served().await;
        let mut slow = Vec::new();
        for _ in 0..5 * MOST_CONNECTIONS {
            let mut connection = TcpStream::connect(address).await.unwrap();
            connection.write_all(b"GET /healthz HTTP/1.1\r\nX: ").await.unwrap();
            slow.push(connection);
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        // All but the newest are closed; bytes sent to them are answered by a reset.
        for (number, connection) in slow.iter_mut().enumerate().take(4 * MOST_CONNECTIONS) {
            let closed = connection.read(&mut [0; 64]).await;
            assert!(closed.is_err() || closed.is_ok_and(|read| read == 0), "{number}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_disconnected() {
        let (address, _serving) = served().await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut answer = Vec::new();
        // An answer of 408 may come first.
        silent.read_to_end(&mut answer).await.unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn a_request_that_is_too_long_is_refused() {
        let (address, _serving) = served().await;
        let mut long = TcpStream::connect(address).await.unwrap();
        let _ = long
            .write_all(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(64 << 10)).as_bytes())
            .await;
        let mut answer = Vec::new();
        // The rest of the request may be answered by a reset.
        let _ = long.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
}
