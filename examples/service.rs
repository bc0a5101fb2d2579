//! A service: a small HTTP server and a worker in one process, one runtime and one log.
//! `cargo run --example service -- "$QUEUE_URL" 127.0.0.1:8080`, then `curl 127.0.0.1:8080/metrics`;
//! Ctrl-C ends both.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use leasehold::prometheus::{Registry, TextEncoder};
use leasehold::{Error, Job, Worker};
use tokio::net::TcpListener;

/// What the server and the handler share.
#[derive(Default)]
struct State {
    lines: AtomicU64,
    registry: Registry,
}

async fn count_lines(job: Job, state: Arc<State>) -> Result<(), Error> {
    let lines = job.text().await?.lines().count() as u64;
    tracing::info!(key = job.key, lines, "counted");
    state.lines.fetch_add(lines, Ordering::Relaxed);
    Ok(())
}

fn answer(state: &State, path: &str) -> Response<Full<Bytes>> {
    let (status, text) = match path {
        "/lines" => (StatusCode::OK, state.lines.load(Ordering::Relaxed).to_string()),
        "/metrics" => {
            let text = TextEncoder::new().encode_to_string(&state.registry.gather());
            (StatusCode::OK, text.unwrap_or_default())
        }
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

async fn serve(listener: TcpListener, state: Arc<State>) -> Result<(), Error> {
    loop {
        let (connection, _) = listener.accept().await?;
        let state = state.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<_>| {
                let answer = answer(&state, request.uri().path());
                async move { Ok::<_, Infallible>(answer) }
            });
            http1::Builder::new().serve_connection(TokioIo::new(connection), service).await
        });
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing_subscriber::fmt().init();
    let mut words = std::env::args().skip(1);
    let queue_url = words.next().ok_or("the first argument is the URL of the queue")?;
    let address = words.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let state = Arc::new(State::default());
    let shared = state.clone();
    let worker = Worker::new(move |job| count_lines(job, shared.clone()))
        .queue_url(queue_url)
        .concurrency(4)
        .registry(&state.registry)
        .stop_on_signals();
    worker.check()?;
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving");
    let server = tokio::spawn(serve(listener, state));
    let summary = worker.run().await?;
    tracing::info!(?summary, "stopped");
    server.abort();
    Ok(())
}
