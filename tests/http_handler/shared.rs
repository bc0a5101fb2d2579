//! One process of the server for several lanes, whose requests are given up.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use leasehold::adapters::http_handler::{HttpHandler, HttpSettings};
use leasehold::adapters::warm::WarmProcesses;
use leasehold::job::outcome::Exit;
use leasehold::ports::{Activity, Command, Exited, Runner, StartError};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{MINUTE, Reply, S, Seen, Server, ok, serve, settings};
use crate::support::cloud::eventually;
use crate::support::command;
use crate::support::servers::free_port;

/// Stands for the processes of the server. Those after the first answer each request.
struct Processes {
    address: SocketAddr,
    first: First,
    starts: AtomicUsize,
    requests: Arc<AtomicUsize>,
    /// Cancelled by the test, or when a process is halted.
    answer: CancellationToken,
}

/// What the first process does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// It answers when the token is cancelled.
    AnswersLater,
    /// It answers only its second request, when the token is cancelled.
    AnswersTheSecondLater,
    /// It accepts one connection and answers nothing.
    AcceptsOne,
    /// It accepts one connection, whose requests it answers once the token is cancelled.
    ServesOne,
    /// It accepts none.
    AcceptsNone,
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[async_trait]
impl Runner for Processes {
    async fn run(
        &self,
        _: Command,
        halt: CancellationToken,
        _: Activity,
    ) -> Result<Exited, StartError> {
        let is_first = self.starts.fetch_add(1, Ordering::Relaxed) == 0;
        if is_first && self.first == First::AcceptsNone {
            halt.cancelled().await;
            return Ok(Exited::killed());
        }
        let listener = TcpListener::bind(self.address).await.unwrap();
        if is_first && self.first == First::AcceptsOne {
            let (mut connection, _) = listener.accept().await.unwrap();
            drop(listener);
            let _ = connection.read(&mut [0; 16]).await;
            self.requests.fetch_add(1, Ordering::Relaxed);
            halt.cancelled().await;
            return Ok(Exited::killed());
        }
        let (requests, first, answer) = (self.requests.clone(), self.first, self.answer.clone());
        if is_first && self.first == First::ServesOne {
            let (connection, _) = listener.accept().await.unwrap();
            drop(listener);
            let seen = Seen::default();
            let reply = |_| {
                requests.fetch_add(1, Ordering::Relaxed);
                Reply::Once(answer.clone(), OK.to_owned())
            };
            let serving = async { serve(connection, &seen, &reply).await };
            let _ = halt.run_until_cancelled(serving).await;
            return Ok(Exited::killed());
        }
        let _server = Server::on(listener, move |_| {
            let request = requests.fetch_add(1, Ordering::Relaxed) + 1;
            match first {
                _ if !is_first => ok(),
                First::AnswersTheSecondLater if request == 1 => Reply::None,
                First::AnswersLater
                | First::AnswersTheSecondLater
                | First::AcceptsOne
                | First::ServesOne
                | First::AcceptsNone => Reply::Once(answer.clone(), OK.to_owned()),
            }
        });
        halt.cancelled().await;
        // It ends later than its answer.
        self.answer.cancel();
        sleep(Duration::from_secs(1)).await;
        Ok(Exited::killed())
    }
}

type Running = JoinHandle<Result<Exited, StartError>>;

struct Lanes {
    handler: Arc<HttpHandler>,
    processes: Arc<Processes>,
}

impl Lanes {
    fn new(first: First, work_dir: &Path) -> Self {
        Self::ready_within(MINUTE, first, work_dir)
    }

    fn ready_within(ready_timeout: Duration, first: First, work_dir: &Path) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let (starts, requests) = (AtomicUsize::new(0), Arc::default());
        let answer = CancellationToken::new();
        let processes = Arc::new(Processes { address, first, starts, requests, answer });
        let warm = WarmProcesses::new(processes.clone(), work_dir, &CancellationToken::new());
        let address = format!("http://{address}/").parse().unwrap();
        let settings = HttpSettings { ready_timeout, ..settings() };
        Self { handler: Arc::new(HttpHandler::new(address, settings, Some(warm))), processes }
    }

    fn run(&self) -> (CancellationToken, Running) {
        let command = command("server");
        let (handler, halt) = (self.handler.clone(), CancellationToken::new());
        let halted = halt.clone();
        let run = async move { handler.run(command, halted, Activity::default()).await };
        (halt, tokio::spawn(run))
    }

    async fn has_requests(&self, count: usize) {
        let requests = &self.processes.requests;
        eventually("the server got a request", async || {
            (requests.load(Ordering::Relaxed) >= count).then_some(())
        })
        .await;
    }

    fn starts(&self) -> usize {
        self.processes.starts.load(Ordering::Relaxed)
    }
}

async fn exit(running: Running) -> Exit {
    let ended = timeout(MINUTE, running).await.expect("the request does not end").unwrap();
    ended.expect("the server can be started").exit
}

#[tokio::test]
async fn the_answer_of_a_process_that_was_halted_meanwhile_is_not_a_success() {
    let home = tempfile::tempdir().unwrap();
    let lanes = Lanes::new(First::AnswersLater, home.path());
    let (_halt, running) = lanes.run();
    lanes.has_requests(1).await;
    let (exit, ()) = tokio::join!(exit(running), lanes.handler.finish());
    assert_eq!(exit, Exit::Signal(9));
}

#[tokio::test]
async fn a_request_that_waits_for_the_end_of_a_process_gets_the_next_one() {
    let home = tempfile::tempdir().unwrap();
    let lanes = Lanes::new(First::AnswersTheSecondLater, home.path());
    let (halt, first) = lanes.run();
    lanes.has_requests(1).await;
    let (_halt, works) = lanes.run();
    lanes.has_requests(2).await;
    halt.cancel();
    assert_eq!(exit(first).await, Exit::Signal(15));
    let (_halt, waits) = lanes.run();
    sleep(Duration::from_millis(200)).await;
    assert!(!waits.is_finished());
    lanes.processes.answer.cancel();
    assert_eq!(exit(works).await, Exit::Code(0));
    assert_eq!(exit(waits).await, Exit::Code(0));
    assert_eq!(lanes.starts(), 2);
}

#[tokio::test]
async fn a_request_whose_process_is_ended_by_another_one_gets_the_next_process() {
    let home = tempfile::tempdir().unwrap();
    let lanes = Lanes::new(First::AcceptsOne, home.path());
    let (halt, first) = lanes.run();
    lanes.has_requests(1).await;
    let (_halt, connects) = lanes.run();
    sleep(Duration::from_millis(200)).await;
    halt.cancel();
    exit(first).await;
    assert_eq!(exit(connects).await, Exit::Code(0));
    assert_eq!(lanes.starts(), 2);
}

/// The server has room for one connection, and its work takes longer than `--ready-timeout`.
#[tokio::test]
async fn a_request_waits_while_the_process_works_on_another_one() {
    let home = tempfile::tempdir().unwrap();
    let lanes = Lanes::ready_within(2 * S, First::ServesOne, home.path());
    let (_halt, works) = lanes.run();
    lanes.has_requests(1).await;
    let (_halt, waits) = lanes.run();
    sleep(5 * S).await;
    assert!(!works.is_finished() && !waits.is_finished());
    lanes.processes.answer.cancel();
    assert_eq!(exit(works).await, Exit::Code(0));
    assert_eq!(exit(waits).await, Exit::Code(0));
    assert_eq!(lanes.starts(), 1);
}

#[tokio::test]
async fn a_process_that_accepts_no_connection_ends_and_its_request_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    let lanes = Lanes::ready_within(S / 5, First::AcceptsNone, home.path());
    let (_halt, running) = lanes.run();
    let ended = timeout(MINUTE, running).await.expect("the request does not end").unwrap();
    let error = ended.unwrap_err();
    assert!(error.why.contains("within --ready-timeout 200ms"), "{error}");
    assert_eq!(lanes.starts(), 1);
}
