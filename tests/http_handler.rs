//! `--handler http://…`: what each answer of the user's server does to the message, and what happens
//! to the server.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leasehold::adapters::http_handler::{HttpBody, HttpHandler, HttpSettings};
use leasehold::job::report::Ended;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::support::http::is_complete;
use crate::support::journey::{Journey, MINUTE, RunResult, S, deletes, exits, queue, queue_with};
use crate::support::object_created;
use crate::support::wire::{Call, WiredQueue};

mod memory;
mod process;
mod shared;

/// A server in the test: it stands for one in another container.
struct Server {
    address: String,
    seen: Arc<Seen>,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: Mutex<Vec<String>>,
    /// A permit for each connection that the client closed before its answer.
    aborted: Semaphore0,
}

/// A semaphore without permits.
struct Semaphore0(Semaphore);

impl Default for Semaphore0 {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

/// An answer of the server.
enum Reply {
    /// These bytes; the connection stays open.
    Bytes(String),
    /// These bytes, and the end of the connection.
    Last(String),
    /// These bytes, when the token is cancelled.
    Once(CancellationToken, String),
    /// One part each 300 milliseconds.
    Slow(Vec<String>),
    /// A header, and then a chunk of 1 MiB after another.
    Endless,
    /// None, until the client closes the connection.
    None,
}

fn status(line: &str, headers: &str, body: &str) -> Reply {
    let length = body.len();
    Reply::Bytes(format!("HTTP/1.1 {line}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"))
}

fn ok() -> Reply {
    status("200 OK", "", "")
}

impl Server {
    async fn start(reply: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, reply)
    }

    fn on(listener: TcpListener, reply: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Self {
        let address = format!("http://{}/work", listener.local_addr().unwrap());
        let (seen, reply) = (Arc::<Seen>::default(), Arc::new(reply));
        let of_server = seen.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (seen, reply) = (of_server.clone(), reply.clone());
                seen.connections.fetch_add(1, Ordering::Relaxed);
                // The client may close the connection at any time.
                tokio::spawn(async move { serve(connection, &seen, &*reply).await });
            }
        });
        Self { address, seen, _serving: AbortOnDropHandle::new(serving) }
    }

    fn requests(&self) -> Vec<String> {
        self.seen.requests.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Relaxed)
    }
}

async fn serve(
    mut connection: TcpStream,
    seen: &Seen,
    reply: &(impl Fn(usize) -> Reply + ?Sized),
) -> std::io::Result<()> {
    loop {
        let mut request = Vec::new();
        while !is_complete(&request) {
            if connection.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let number = {
            let mut requests = seen.requests.lock().unwrap();
            requests.push(String::from_utf8(request).unwrap());
            requests.len()
        };
        match reply(number) {
            Reply::Bytes(bytes) => connection.write_all(bytes.as_bytes()).await?,
            Reply::Last(bytes) => {
                connection.write_all(bytes.as_bytes()).await?;
                return connection.shutdown().await;
            }
            Reply::Once(token, bytes) => {
                token.cancelled().await;
                connection.write_all(bytes.as_bytes()).await?;
            }
            Reply::Slow(parts) => {
                for part in parts {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    connection.write_all(part.as_bytes()).await?;
                }
            }
            Reply::Endless => {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                connection.write_all(head.as_bytes()).await?;
                let chunk = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
                loop {
                    connection.write_all(chunk.as_bytes()).await?;
                }
            }
            Reply::None => {
                let read = connection.read(&mut [0; 16]).await;
                assert!(read.is_err() || read.is_ok_and(|read| read == 0), "one request at a time");
                seen.aborted.0.add_permits(1);
                return Ok(());
            }
        }
    }
}

fn settings() -> HttpSettings {
    HttpSettings {
        body: HttpBody::Job,
        permanent: vec!["400".parse().unwrap(), "420-428".parse().unwrap()],
        ready_timeout: MINUTE,
    }
}

fn journey(queue: &WiredQueue, address: &str, settings: HttpSettings) -> Journey {
    let mut journey = Journey::new(queue, &exits(0));
    journey.command = Arc::new(HttpHandler::new(address.parse().unwrap(), settings, None));
    journey.settings.polling.wait = Duration::ZERO;
    journey
}

async fn run(queue: &WiredQueue, address: &str) -> RunResult {
    journey(queue, address, settings()).run().await
}

fn error(ended: &Ended) -> String {
    ended.error().unwrap_or_default()
}

#[tokio::test]
async fn each_message_is_one_post_on_the_same_connection_and_2xx_deletes_it() {
    let bodies = ["a", "b", "c"].map(object_created);
    let queue = queue_with(&bodies.each_ref().map(String::as_str));
    let server = Server::start(|number| {
        let line = ["200 OK", "202 Accepted", "200 OK"][number - 1];
        status(line, "", "the answer is not used")
    })
    .await;
    let mut journey = journey(&queue, &server.address, settings());
    journey.settings.policy.max_messages = 3;
    let result = journey.run().await;
    assert_eq!((result.outcomes(), deletes(&queue)), (vec!["succeeded"; 3], 3));
    assert_eq!(server.connections(), 1);
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    for (request, key) in requests.iter().zip(["a", "b", "c"]) {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /work HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nx-aws-sqsd-receive-count: 1"), "{head}");
        let job: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&job["key"], &job["version"]), (&key.into(), &1.into()));
        let id = job["message_id"].as_str().unwrap();
        assert!(head.contains(&format!("\r\nx-aws-sqsd-msgid: {id}")), "{head}");
        assert!(job["input"].is_string() && job["output_dir"].is_string(), "{job}");
    }
}

#[tokio::test]
async fn each_kind_of_failure_keeps_the_message() {
    for (line, headers, body, outcome, delay, reason) in [
        (
            "500 Internal Server Error",
            "",
            "no disk",
            "command_failed",
            None,
            "500 Internal Server Error: no disk",
        ),
        (
            "500 Oops",
            "Content-Type: text/html\r\n",
            "<h1>",
            "command_failed",
            None,
            "500 Internal Server Error",
        ),
        ("302 Found", "Location: /elsewhere\r\n", "", "command_failed", None, "302 Found"),
        ("304 Not Modified", "", "", "command_failed", None, "304 Not Modified"),
        ("404 Not Found", "", "", "command_failed", None, "404 Not Found"),
        ("400 Bad Request", "Retry-After: 5\r\n", "no\ncolumn", "permanent", Some(0), "no column"),
        ("422 Unprocessable Content", "", "", "permanent", Some(0), "422"),
        ("503 Service Unavailable", "Retry-After: 120\r\n", "busy", "temporary", Some(120), "busy"),
        ("429 Too Many Requests", "Retry-After: 999999999\r\n", "", "temporary", None, "429"),
        (
            "503 Service Unavailable",
            "Retry-After: Fri, 01 Jan 1999 00:00:00 GMT\r\n",
            "",
            "temporary",
            Some(0),
            "503",
        ),
    ] {
        let (queue, line, headers, body) =
            (queue(), line.to_owned(), headers.to_owned(), body.to_owned());
        let of_server = (line.clone(), headers, body);
        let server = Server::start(move |_| status(&of_server.0, &of_server.1, &of_server.2)).await;
        let result = run(&queue, &server.address).await;
        assert_eq!((result.outcomes(), deletes(&queue)), (vec![outcome], 0), "{line}");
        assert_eq!(server.requests().len(), 1, "{line}");
        let error = error(&result.ended()[0]);
        assert!(error.contains("the server answered") && error.contains(reason), "{line}: {error}");
        let delay = delay.map(|delay| Call::ChangeVisibility(delay * S));
        let calls: Vec<_> = queue.calls().into_iter().map(|entry| entry.call).collect();
        assert!(delay.is_none_or(|delay| calls.contains(&delay)), "{line}: {calls:?}");
    }
}

#[tokio::test]
async fn without_retry_after_a_temporary_failure_has_the_usual_backoff() {
    let queue = queue();
    let server = Server::start(|_| status("503 Service Unavailable", "", "")).await;
    let result = run(&queue, &server.address).await;
    assert_eq!(result.outcomes(), ["temporary"]);
    let calls = queue.calls();
    let last = calls.iter().rev().find_map(|entry| match entry.call {
        Call::ChangeVisibility(to) => Some(to),
        Call::Receive | Call::Delete => None,
    });
    assert!(last.is_some_and(|delay| (S..=20 * S).contains(&delay)), "{last:?}");
}

#[tokio::test]
async fn an_answer_that_is_slow_counts_and_one_that_breaks_off_does_not() {
    let parts = ["HTTP/1.1 200 OK\r\nContent-Le", "ngth: 6\r\n\r\n", "abc", "def"];
    let (first, last) = (queue(), queue());
    let server =
        Server::start(move |_| Reply::Slow(parts.iter().map(|it| (*it).to_owned()).collect()));
    assert_eq!(run(&first, &server.await.address).await.outcomes(), ["succeeded"]);
    for cut in [
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "SSH-2.0-OpenSSH_9.9\r\n",
        "",
    ] {
        let server = Server::start(move |_| Reply::Last(cut.to_owned())).await;
        let queue = queue();
        let result = run(&queue, &server.address).await;
        assert_eq!((result.outcomes(), deletes(&queue)), (vec!["command_failed"], 0), "{cut}");
        let error = error(&result.ended()[0]);
        assert!(error.contains("the server did not answer completely"), "{cut}: {error}");
        // Nothing shows whether the server has begun the work: another attempt is another delivery.
        assert_eq!(server.requests().len(), 1, "{cut}");
    }
    drop(last);
}

#[tokio::test]
async fn a_huge_answer_is_not_read_to_its_end() {
    let queue = queue();
    let server = Server::start(|_| Reply::Endless).await;
    let result = run(&queue, &server.address).await;
    assert_eq!((result.outcomes(), deletes(&queue)), (vec!["command_failed"], 0));
    assert!(error(&result.ended()[0]).contains("larger than 16 MiB"));
}

#[tokio::test]
async fn a_request_without_an_answer_ends_with_max_duration() {
    let queue = queue();
    let server = Server::start(|_| Reply::None).await;
    let mut journey = journey(&queue, &server.address, settings());
    journey.settings.policy.limits.max_duration = S;
    let result = journey.run().await;
    assert_eq!((result.outcomes(), deletes(&queue)), (vec!["timed_out"], 0));
    let aborted = tokio::time::timeout(MINUTE, server.seen.aborted.0.acquire()).await;
    assert!(aborted.is_ok(), "the connection was not closed");
}

#[tokio::test]
async fn a_stop_closes_the_connection_and_nothing_is_deleted() {
    let queue = queue();
    let server = Server::start(|_| Reply::None).await;
    let seen = server.seen.clone();
    let once_it_works = async move {
        let is_asked = async {
            while seen.requests.lock().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(MINUTE, is_asked).await.expect("the server gets a request");
    };
    let result = journey(&queue, &server.address, settings()).run_until(once_it_works).await;
    assert_eq!((result.outcomes(), deletes(&queue)), (vec!["stopped"], 0));
    let aborted = tokio::time::timeout(MINUTE, server.seen.aborted.0.acquire()).await;
    assert!(aborted.is_ok(), "the connection was not closed");
}

#[tokio::test]
async fn a_server_that_closes_its_connection_after_each_answer_gets_every_message() {
    let bodies = ["a", "b", "c"].map(object_created);
    let queue = queue_with(&bodies.each_ref().map(String::as_str));
    let server =
        Server::start(|_| Reply::Last("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()))
            .await;
    let mut journey = journey(&queue, &server.address, settings());
    journey.settings.policy.max_messages = 3;
    let result = journey.run().await;
    assert_eq!((result.outcomes(), deletes(&queue)), (vec!["succeeded"; 3], 3));
    assert_eq!((server.connections(), server.requests().len()), (3, 3));
}

#[tokio::test]
async fn a_success_whose_body_ends_with_the_connection_counts_only_if_the_body_is_empty() {
    for (answer, outcome, reason) in [
        ("HTTP/1.0 200 OK\r\n\r\n", "succeeded", ""),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "succeeded", ""),
        ("HTTP/1.0 200 OK\r\n\r\n1 %", "command_failed", "send Content-Length"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx", "command_failed", "chunked"),
        ("HTTP/1.0 503 Busy\r\n\r\nloading", "temporary", "loading"),
    ] {
        let queue = queue();
        let server = Server::start(move |_| Reply::Last(answer.to_owned())).await;
        let result = run(&queue, &server.address).await;
        assert_eq!(result.outcomes(), [outcome], "{answer}");
        assert_eq!(deletes(&queue), usize::from(outcome == "succeeded"), "{answer}");
        let error = error(&result.ended()[0]);
        assert!(error.contains(reason), "{answer}: {error}");
    }
}

#[tokio::test]
async fn each_lane_has_one_request_at_a_time() {
    let bodies = ["a", "b", "c", "d"].map(object_created);
    let queue = queue_with(&bodies.each_ref().map(String::as_str));
    let reply = || Reply::Slow(vec!["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()]);
    let server = Server::start(move |_| reply()).await;
    let mut journey = journey(&queue, &server.address, settings());
    (journey.concurrency, journey.settings.policy.max_messages) = (2, 4);
    let result = journey.run().await;
    assert_eq!((result.outcomes(), deletes(&queue)), (vec!["succeeded"; 4], 4));
    assert!(server.connections() <= 3, "{}", server.connections());
}

#[tokio::test]
async fn a_server_that_starts_later_is_waited_for_and_one_that_never_starts_is_an_error() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap();
    drop(free);
    let (late, never) = (queue(), queue());
    let starting = async {
        tokio::time::sleep(S).await;
        Server::on(TcpListener::bind(port).await.unwrap(), |_| ok())
    };
    let address = format!("http://{port}/");
    let (result, server) = tokio::join!(run(&late, &address), starting);
    assert_eq!((result.outcomes(), deletes(&late)), (vec!["succeeded"], 1));
    drop(server);

    let settings = HttpSettings { ready_timeout: S, ..settings() };
    let result = journey(&never, &address, settings).run().await;
    assert_eq!((result.outcomes(), deletes(&never)), (vec!["command_not_started"], 0));
    let error = error(&result.ended()[0]);
    assert!(error.contains("no server accepted connections at http://127.0.0.1:"), "{error}");
    assert!(error.contains("--ready-timeout 1s"), "{error}");
}

#[tokio::test]
async fn the_body_may_be_the_message_as_its_sender_wrote_it() {
    let body = object_created("k ü");
    let queue = queue_with(&[&body]);
    let server = Server::start(|_| ok()).await;
    let settings = HttpSettings { body: HttpBody::Message, ..settings() };
    let result = journey(&queue, &server.address, settings).run().await;
    assert_eq!((result.outcomes(), deletes(&queue)), (vec!["succeeded"], 1));
    let requests = server.requests();
    let (head, sent) = requests[0].split_once("\r\n\r\n").unwrap();
    assert_eq!(sent, body);
    assert!(head.contains("\r\ncontent-type: application/json"), "{head}");
}
