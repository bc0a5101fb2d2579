//! The client of the user's server: one request at a time on a connection, which is closed when the
//! request is dropped.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER, TRANSFER_ENCODING};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::address::HttpAddress;
use super::answer::Answer;
use crate::ports::{Activity, causes};

pub(super) struct Client {
    address: HttpAddress,
    /// Open connections without a request.
    idle: Arc<Idle>,
}

#[derive(Default)]
struct Idle(Mutex<Vec<Connection>>);

/// Closed when it is dropped.
struct Connection {
    requests: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<()>,
    idle_since: Instant,
}

/// How long a connection is kept for the next request: shorter than the keep-alive of the usual
/// servers (gunicorn: 2 s), since a server that closes it at the same moment would leave open
/// whether it got the request.
const LONGEST_IDLE: Duration = Duration::from_secs(1);

/// How long a connection to this pod may take.
const CONNECT: Duration = Duration::from_secs(5);

/// In bytes: an answer beyond it is not read to its end.
const LONGEST_ANSWER: u64 = 16 << 20;
/// How many of them are kept for the reason of a failure.
const FIRST: usize = 4 << 10;

impl Client {
    pub(super) fn new(address: HttpAddress) -> Self {
        Self { address, idle: Arc::default() }
    }

    /// Is a connection to the server open, or does it accept one? It is kept for the next request.
    pub(super) async fn connects(&self) -> bool {
        let connection = match self.reuse().await {
            Some(connection) => Ok(connection),
            None => self.connect().await,
        };
        let does = connection.is_ok();
        if let Ok(connection) = connection {
            self.keep(connection);
        }
        does
    }

    /// Does the server accept a new connection?
    pub(super) async fn accepts(&self) -> bool {
        self.connect().await.is_ok()
    }

    /// Closes the connections without a request: their server has ended.
    pub(super) fn close_idle(&self) {
        self.idle.all().clear();
    }

    /// Sends the request and reads the whole answer; the error is the reason for a missing one.
    /// Each part of the answer is a sign of life.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        activity: &Activity,
    ) -> Result<Answer, String> {
        let mut request = Some(request);
        if let Some(mut reused) = self.reuse().await
            && let Some(unsent) = request.take()
        {
            match reused.requests.try_send_request(unsent).await {
                Ok(response) => return self.read(reused, response, activity).await,
                // The server closed the connection before it got anything: this request was not
                // sent. In any other case, the server may have begun the work.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = Some(unsent),
                    None => return Err(shown(&error.into_error())),
                },
            }
        }
        let Some(request) = request else { return Err("the request was sent".to_owned()) };
        let mut connection = self.connect().await.map_err(|error| {
            format!("the server does not accept connections at {}: {error}", self.address)
        })?;
        let response = connection.requests.send_request(request).await;
        let response = response.map_err(|error| shown(&error))?;
        self.read(connection, response, activity).await
    }

    async fn reuse(&self) -> Option<Connection> {
        loop {
            let last = self.idle.all().pop();
            let mut connection = last?;
            if connection.is_fresh() && connection.requests.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    async fn connect(&self) -> io::Result<Connection> {
        let sockets = self.address.sockets();
        let connecting = timeout(CONNECT, TcpStream::connect(&*sockets));
        let stream = connecting.await.map_err(|_| io::ErrorKind::TimedOut)??;
        stream.set_nodelay(true)?;
        let handshake = Builder::new().handshake(TokioIo::new(stream));
        let (requests, connection) = handshake.await.map_err(io::Error::other)?;
        let driver = tokio::spawn(async move {
            // The request gets the error.
            let _ = connection.await;
        });
        let (driver, idle_since) = (AbortOnDropHandle::new(driver), Instant::now());
        Ok(Connection { requests, _driver: driver, idle_since })
    }

    /// For the next request, if that comes in time: a server with one thread may serve no other
    /// connection before this one is closed.
    fn keep(&self, connection: Connection) {
        self.idle.all().push(Connection { idle_since: Instant::now(), ..connection });
        let idle = Arc::downgrade(&self.idle);
        tokio::spawn(async move {
            sleep(LONGEST_IDLE).await;
            if let Some(idle) = idle.upgrade() {
                idle.all().retain(Connection::is_fresh);
            }
        });
    }

    async fn read(
        &self,
        connection: Connection,
        response: Response<Incoming>,
        activity: &Activity,
    ) -> Result<Answer, String> {
        let status = response.status();
        let header = |name: HeaderName| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let retry_after = header(RETRY_AFTER);
        let is_page = header(CONTENT_TYPE).is_some_and(|it| it.starts_with("text/html"));
        let has_length = response.body().size_hint().exact().is_some();
        let has_proven_end = has_length || is_chunked(response.headers());
        let (mut body, mut first, mut length) = (response.into_body(), Vec::new(), 0_u64);
        while let Some(frame) = body.frame().await {
            activity.record();
            let frame = frame.map_err(|error| shown(&error))?;
            let Some(chunk) = frame.data_ref() else { continue };
            first.extend(chunk.iter().take(FIRST - first.len()));
            length += chunk.len() as u64;
            if length > LONGEST_ANSWER {
                return Err(format!(
                    "the server's answer is larger than {} MiB: write results into output_dir",
                    LONGEST_ANSWER >> 20
                ));
            }
        }
        if !has_proven_end && length > 0 && status.is_success() {
            return Err(format!(
                "the server answered {status} without the length of its body, so a body that breaks off looks complete: send Content-Length or Transfer-Encoding: chunked"
            ));
        }
        self.keep(connection);
        let text = if is_page { String::new() } else { String::from_utf8_lossy(&first).into() };
        Ok(Answer { status, retry_after, text, has_proven_end })
    }
}

impl Idle {
    fn all(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn is_fresh(&self) -> bool {
        self.idle_since.elapsed() < LONGEST_IDLE
    }
}

/// Is chunked the last encoding, so that the body has an end of its own?
fn is_chunked(headers: &HeaderMap) -> bool {
    let last = headers.get_all(TRANSFER_ENCODING).iter().next_back();
    let last = last.and_then(|it| it.to_str().ok()?.rsplit(',').next());
    last.is_some_and(|encoding| encoding.trim().eq_ignore_ascii_case("chunked"))
}

/// hyper's error without its causes is often only "error reading a body from connection".
fn shown(error: &hyper::Error) -> String {
    format!("the server did not answer completely: {}", causes::on_one_line(error))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_idle_connection_is_closed_without_another_request() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let client = Client::new(address.parse().unwrap());
        assert!(client.connects().await);
        let (mut connection, _) = listener.accept().await.unwrap();
        let read = timeout(Duration::from_mins(1), connection.read(&mut [0; 16])).await;
        assert_eq!(read.expect("the connection stays open").unwrap(), 0);
    }
}
