//! `--memory-guard` and the server in this pod: the container's memory is a folder, as in a cgroup.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use clap::Parser;
use leasehold::adapters::http_handler::HttpHandler;
use leasehold::adapters::memory_limit::{MemoryCgroup, MemoryLimited};
use leasehold::adapters::warm::WarmProcesses;
use leasehold::job::outcome::Exit;
use leasehold::ports::{Activity, Command, Exited, Runner, StartError};
use leasehold::settings::resolve::RunConfig;
use leasehold::settings::{Action, Cli};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{MINUTE, Reply, Server, ok, settings};
use crate::support::cloud::eventually;
use crate::support::journey::{Journey, deletes, exits, queue_with};
use crate::support::object_created;
use crate::support::servers::free_port;
use crate::support::wire::WiredQueue;

const LIMIT: u64 = 1000 << 20;

/// A container and the server in it, whose memory is free again after its end.
struct Container {
    cgroup: TempDir,
    address: SocketAddr,
    starts: AtomicUsize,
    requests: AtomicUsize,
    ends: AtomicUsize,
    grows: Grows,
}

/// When the first process uses too much.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grows {
    /// Before it accepts connections.
    AtItsStart,
    /// While it works on its first request.
    AtWork,
    /// While it works on two requests.
    AtTwoRequests,
    /// After its first answer, when the test says so.
    Idle,
}

impl Container {
    fn new(grows: Grows) -> Arc<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let this = Self {
            cgroup: tempfile::tempdir().unwrap(),
            address,
            starts: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            ends: AtomicUsize::new(0),
            grows,
        };
        this.write("memory.max", &LIMIT.to_string());
        this.write("memory.stat", "inactive_file 0");
        this.write("memory.events", "oom_kill 0");
        this.uses(10);
        Arc::new(this)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.cgroup.path().join(name), text).unwrap();
    }

    /// In percent of the limit.
    fn uses(&self, percent: u64) {
        self.write("memory.current", &(LIMIT / 100 * percent).to_string());
    }

    /// A run with `lanes` whose server is limited.
    fn journey(self: &Arc<Self>, queue: &WiredQueue, lanes: usize) -> Journey {
        let cgroup = MemoryCgroup::find(self.cgroup.path(), "0::/").unwrap();
        let limited = MemoryLimited::new(Arc::new(Process(self.clone())), cgroup, Some(90));
        let mut journey = Journey::new(queue, &exits(0));
        let stop = CancellationToken::new();
        let warm = WarmProcesses::new(Arc::new(limited), self.cgroup.path(), &stop);
        let address = format!("http://{}/", self.address).parse().unwrap();
        journey.command = Arc::new(HttpHandler::new(address, settings(), Some(warm)));
        journey.settings.policy.max_messages = 2;
        journey.concurrency = lanes;
        journey
    }
}

struct Process(Arc<Container>);

#[async_trait]
impl Runner for Process {
    async fn run(
        &self,
        _: Command,
        halt: CancellationToken,
        _: Activity,
    ) -> Result<Exited, StartError> {
        let container = self.0.clone();
        let is_first = container.starts.fetch_add(1, Ordering::Relaxed) == 0;
        let grows = container.grows;
        if is_first && grows == Grows::AtItsStart {
            container.uses(95);
        } else {
            let listener = TcpListener::bind(container.address).await.unwrap();
            let of_server = container.clone();
            let server = Server::on(listener, move |_| {
                let requests = of_server.requests.fetch_add(1, Ordering::Relaxed) + 1;
                if grows == Grows::Idle || !is_first {
                    return ok();
                }
                if grows == Grows::AtWork || requests == 2 {
                    of_server.uses(95);
                }
                Reply::None
            });
            halt.cancelled().await;
            drop(server);
        }
        halt.cancelled().await;
        container.uses(10);
        container.ends.fetch_add(1, Ordering::Relaxed);
        // A code that says nothing about the message.
        Ok(Exited { exit: Exit::Code(65), ..Exited::killed() })
    }
}

fn two_messages() -> WiredQueue {
    let bodies = ["a", "b"].map(object_created);
    queue_with(&bodies.each_ref().map(String::as_str))
}

#[tokio::test]
async fn a_server_that_reaches_the_guard_at_work_keeps_its_message_and_is_started_again() {
    for grows in [Grows::AtItsStart, Grows::AtWork] {
        let (queue, container) = (two_messages(), Container::new(grows));
        let result = container.journey(&queue, 1).run().await;
        assert_eq!(result.outcomes(), ["out_of_memory", "succeeded"]);
        assert_eq!((deletes(&queue), container.starts.load(Ordering::Relaxed)), (1, 2));
        let error = super::error(&result.ended()[0]);
        assert!(error.contains("950.0 MiB of 1000.0 MiB are in use"), "{error}");
        assert!(error.contains("the limit of --memory-guard is 90%"), "{error}");
        let before = match grows {
            Grows::AtItsStart => "before it accepted connections",
            Grows::AtWork | Grows::AtTwoRequests | Grows::Idle => "before its answer was complete",
        };
        assert!(error.contains(before), "{error}");
    }
}

#[tokio::test]
async fn a_server_at_the_guard_keeps_the_messages_of_all_lanes() {
    let (queue, container) = (two_messages(), Container::new(Grows::AtTwoRequests));
    let result = container.journey(&queue, 2).run().await;
    assert_eq!((result.outcomes(), deletes(&queue)), (vec!["out_of_memory"; 2], 0));
    assert_eq!(container.starts.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_server_that_reaches_the_guard_while_it_is_idle_uses_up_no_receive() {
    let (queue, container) = (queue_with(&[&object_created("a")]), Container::new(Grows::Idle));
    let mut journey = container.journey(&queue, 1);
    journey.settings.polling.wait = MINUTE;
    let grows = async {
        eventually("the first message is deleted", async || (deletes(&queue) == 1).then_some(()))
            .await;
        container.uses(95);
        eventually("the server ends", async || {
            (container.ends.load(Ordering::Relaxed) == 1).then_some(())
        })
        .await;
        queue.send(object_created("b"));
    };
    let (result, ()) = tokio::join!(journey.run(), grows);
    assert_eq!((result.outcomes(), deletes(&queue)), (vec!["succeeded"; 2], 2));
    assert_eq!(container.starts.load(Ordering::Relaxed), 2);
}

#[test]
fn a_guard_of_a_server_in_another_container_is_refused_at_start() {
    let run = |command: &[&str]| {
        let queue = ["leasehold", "run", "--queue-url", "http://localhost:4566/000000000000/q"];
        let flags = ["--handler", "http://127.0.0.1:8080/", "--memory-guard", "90%"];
        let cli = Cli::try_parse_from(queue.iter().chain(&flags).chain(command)).unwrap();
        let Action::Run(args) = cli.action else { panic!("not a run") };
        RunConfig::try_from(*args).map(drop).map_err(|error| error.to_string())
    };
    assert!(run(&[]).unwrap_err().contains("--memory-guard has no effect on a server in another"));
    assert_eq!(run(&["--", "server"]), Ok(()));
}
