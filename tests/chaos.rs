//! Real pods, a real server, a faulty network: 200 objects, and pods that are stopped and KILLed at
//! any moment until the queue is empty. Then each object must be processed, and the deletes, the
//! commands and the logs must agree.
//!
//! ```text
//! pods ──► FaultyProxy ──► microburst ──► Witness ──► ministack
//!          faults          faults         records the calls that arrive
//! ```
//!
//! A seed determines the actions of the pods, the network and the commands, but not their
//! interleaving. A failed run prints its seed: `SEED=… tests/run chaos`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::asked_for;
use crate::support::aws;
use crate::support::cloud::{Cloud, ExitedRun, Leasehold, eventually, is_alive};
use crate::support::servers::Microburst;

const MESSAGES: usize = 200;
const PODS: usize = 8;
/// So many that killed pods send no message to the dead-letter queue.
const RECEIVES: u32 = 1000;
/// The pods' `--termination-grace`.
const GRACE: Duration = Duration::from_secs(6);
/// For a busy machine.
const MARGIN: Duration = Duration::from_secs(5);
/// Only a run that hangs takes this long.
const LIMIT: Duration = Duration::from_mins(3);
/// A variable in the environment of all processes of a pod.
const MARKER: &str = "CHAOS";

/// The command of the pods. A key is the hash of its object, so the command can check its bytes,
/// and the last digit selects its behaviour. It logs to a file named after the delivery.
const SCRIPT: &str = r#"
    attempt=attempts/$JOB_MESSAGE_ID.$JOB_RECEIVE_COUNT
    echo "$JOB_ID $JOB_KEY start" > "$attempt"
    echo "$JOB_KEY  $JOB_INPUT" | sha256sum --check --status || { echo "$JOB_KEY broken" >> "$attempt"; exit 9; }
    case $JOB_KEY.$JOB_RECEIVE_COUNT in
        *[01].[12]) exit 1 ;;
        *2.1) exit 65 ;;
        *3.1) exit 75 ;;
        *4.1) kill -KILL $$ ;;
        *5.*) sleep 4 ;; # longer than a lease
        *6.*) trap '' TERM; sleep 1 ;;
        *7.*) setsid sleep 600 > /dev/null 2>&1 & ;; # leaves a daemon behind
        *) sleep 0.1 ;;
    esac
    echo "$JOB_KEY" > "$JOB_OUTPUT_DIR/result"
    echo "$JOB_KEY done" >> "$attempt"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_die_and_a_faulty_network_lose_nothing_and_delete_only_successes() {
    let seed = asked_for("SEED").unwrap_or_else(|| fastrand::u64(..));
    // Printed if the test fails.
    println!("to run this again: SEED={seed} tests/run chaos");
    timeout(LIMIT, chaos(Rng::with_seed(seed))).await.expect("the queue is empty within the limit");
}

async fn chaos(mut rng: Rng) {
    let cloud = Cloud::new(RECEIVES).await;
    let attempts = cloud.dir.path().join("attempts");
    std::fs::create_dir(&attempts).unwrap();
    let witness = Arc::new(Witness { attempts: attempts.clone(), seen: Mutex::default() });
    let watching = witness.clone();
    let watched = start_proxy(&cloud.endpoint, move |client, server| {
        forward(watching.clone(), client, server)
    })
    .await;
    let network = Microburst::start(&watched, &faults(&mut rng)).await;
    let proxy = Arc::new(FaultyProxy::new(rng.fork()));
    let proxying = proxy.clone();
    let endpoint = start_proxy(&network.endpoint(), move |client, server| {
        serve_with_faults(proxying.clone(), client, server)
    })
    .await;
    cloud.s3.create_bucket().bucket(results_of(&cloud)).send().await.unwrap();
    let behind = network.endpoint();
    let (keys, ()) = tokio::join!(put_objects(&cloud, &mut rng), aws::warm_up(&behind));

    let pods = run_pods(&cloud, &endpoint, &mut rng).await;

    assert_eq!((cloud.counts().await, cloud.dead_letters().await), ((0, 0), (0, 0)));
    assert_eq!(
        published(&cloud).await,
        keys,
        "each object has its result, as its command wrote it"
    );
    let attempts = read_attempts(&attempts);
    let seen = std::mem::take(&mut *witness.seen.lock().unwrap());
    judge(&keys, &pods, &attempts, &seen);
    assert_eq!(
        unused_rules(&network.endpoint()).await,
        [Value::Null; 0],
        "unused rules prove nothing"
    );
    let injected = proxy.injected.lock().unwrap().clone();
    assert_eq!(
        injected.len(),
        ProxyFault::ALL.len() * FAULTY_CALLS.len(),
        "each fault must occur for each call: {injected:?}"
    );
    assert_eq!(surviving_processes(&cloud), [""; 0], "processes of ended pods");

    let warnings = pods.iter().map(Pod::warnings).sum::<usize>();
    println!(
        "{} pods, {} KILLed, {} asked to stop; {} deliveries, {} attempts, {} successes, {} deletes, {warnings} warnings",
        pods.len(),
        pods.iter().filter(|pod| pod.was_killed()).count(),
        pods.iter().filter(|pod| pod.signalled == Some(Signal::SIGTERM)).count(),
        seen.deliveries.len(),
        attempts.len(),
        attempts.values().filter(|attempt| attempt.done).count(),
        seen.deletes.len(),
    );
}

/// The faults of the network for each kind of call: each fault hits the first call, and then one in
/// a random number of calls.
fn faults(rng: &mut Rng) -> Vec<Value> {
    let lost_request = json!({ "reset": true });
    let lost_answer = json!({ "response": { "abort_bytes": 0 } });
    let cut_answer = json!({ "response": { "abort_frac": 0.5 } });
    let corrupt = json!({ "response": { "corrupt_bytes": 8 } });
    let slow = json!({ "response": { "bandwidth_kbps": 256 } });
    // Longer than the timeout of a request under a short lease.
    let late = json!({ "latency": { "min": 300, "max": 1800 } });
    let throttled = json!({ "error": { "code": "ThrottlingException", "status": 400 } });
    let unavailable = json!({ "error": { "code": "ServiceUnavailable", "status": 503 } });
    let slow_down = json!({ "error": { "code": "SlowDown", "status": 503 } });

    let of_sqs = [&lost_request, &lost_answer, &corrupt, &late, &throttled, &unavailable];
    let of_s3 = [&lost_request, &cut_answer, &corrupt, &late, &slow, &slow_down];
    let calls = [
        ("sqs", "ReceiveMessage", of_sqs),
        ("sqs", "ChangeMessageVisibility", of_sqs),
        ("sqs", "DeleteMessage", of_sqs),
        ("s3", "GetObject", of_s3),
    ];
    let rules = calls.into_iter().flat_map(|(service, operation, faults)| {
        faults.map(|fault| {
            let mut rule = fault.clone();
            rule["service"] = service.into();
            rule["operation"] = operation.into();
            rule["sequence"] = json!({ "fail": 1, "pass": rng.u32(15..35) });
            rule
        })
    });
    rules.collect()
}

/// The rules of the network that were never applied.
async fn unused_rules(endpoint: &str) -> Vec<Value> {
    let mut network = BufReader::new(
        TcpStream::connect(endpoint.strip_prefix("http://").unwrap()).await.unwrap(),
    );
    network
        .write_all(b"GET /_microburst/rules HTTP/1.1\r\nHost: microburst\r\n\r\n")
        .await
        .unwrap();
    let answer = Message::read(&mut network).await.unwrap();
    let rules: Vec<Value> = serde_json::from_slice(&answer.body).unwrap();
    rules.into_iter().filter(|rule| rule["fired_count"].as_u64().unwrap() == 0).collect()
}

/// Faults that microburst does not have: an answer that is not from AWS, or a missing answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ProxyFault {
    /// A captive portal answers 200. The request does not arrive.
    Portal,
    /// A proxy replaces the answer by its own page, with 200. The request arrives.
    PortalAfter,
    /// The answer is 500, although the request was carried out.
    ErrorAfter,
    /// The request does not arrive, and there is no answer.
    Silence,
    /// The request arrives, and there is no answer.
    SilenceAfter,
    /// The request arrives, and the connection ends.
    LostAfter,
}

impl ProxyFault {
    const ALL: [Self; 6] = [
        Self::Portal,
        Self::PortalAfter,
        Self::ErrorAfter,
        Self::Silence,
        Self::SilenceAfter,
        Self::LostAfter,
    ];
}

/// The calls with these faults. Not the receive: a pod waits ten seconds for its answer, and
/// microburst loses enough of them.
const FAULTY_CALLS: [&str; 4] = ["ChangeMessageVisibility", "DeleteMessage", "GET", "PUT"];

/// Injects a fault into some calls.
struct FaultyProxy {
    rng: Mutex<Rng>,
    /// The injected faults, by call.
    injected: Mutex<BTreeSet<(&'static str, ProxyFault)>>,
}

impl FaultyProxy {
    fn new(rng: Rng) -> Self {
        Self { rng: Mutex::new(rng), injected: Mutex::default() }
    }

    /// Each fault is used early for each kind of call, then for about one call in thirty.
    fn next_fault(&self, request: &Message) -> Option<ProxyFault> {
        let kind = FAULTY_CALLS.into_iter().find(|kind| {
            let is_method = request.head.starts_with(&format!("{kind} /"));
            is_method || request.call(kind).is_some()
        })?;
        let mut injected = self.injected.lock().unwrap();
        let mut rng = self.rng.lock().unwrap();
        let unused = ProxyFault::ALL.into_iter().find(|fault| !injected.contains(&(kind, *fault)));
        let fault = match unused {
            Some(unused) if rng.u8(0..3) == 0 => unused,
            _ if rng.u8(0..30) == 0 => ProxyFault::ALL[rng.usize(0..ProxyFault::ALL.len())],
            _ => return None,
        };
        injected.insert((kind, fault));
        Some(fault)
    }
}

/// One connection, until either side ends it.
async fn serve_with_faults(
    proxy: Arc<FaultyProxy>,
    client: TcpStream,
    upstream: String,
) -> Option<()> {
    let mut client = BufReader::new(client);
    let mut server = BufReader::new(TcpStream::connect(upstream).await.ok()?);
    loop {
        let request = Message::read(&mut client).await?;
        let fault = proxy.next_fault(&request);
        if fault == Some(ProxyFault::Silence) {
            // Wait until the client closes the connection.
            let _ = client.read_u8().await;
            return None;
        }
        if fault == Some(ProxyFault::Portal) {
            portal("200 OK").write(&mut client).await?;
            continue;
        }
        request.write(&mut server).await?;
        let (answer, is_complete) = Message::read_partial(&mut server).await?;
        match fault {
            None | Some(ProxyFault::Portal | ProxyFault::Silence) => {
                answer.write(&mut client).await?;
                // Microburst truncates answers; pass that on.
                is_complete.then_some(())?;
            }
            Some(ProxyFault::PortalAfter) => portal("200 OK").write(&mut client).await?,
            Some(ProxyFault::ErrorAfter) => {
                portal("500 Internal Server Error").write(&mut client).await?;
            }
            Some(ProxyFault::SilenceAfter) => {
                let _ = client.read_u8().await;
                return None;
            }
            Some(ProxyFault::LostAfter) => return None,
        }
    }
}

/// An answer that is not from AWS.
fn portal(status: &str) -> Message {
    let body = b"<html><body>Please sign in to this network.</body></html>".to_vec();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Message { head, body }
}

/// Puts the objects, a few of them large, and returns their keys when all notifications are in the
/// queue.
async fn put_objects(cloud: &Cloud, rng: &mut Rng) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for n in 0..MESSAGES {
        let mut bytes = vec![0; if n % 10 == 0 { 100_000 } else { rng.usize(16..1000) }];
        rng.fill(&mut bytes);
        let key = hex::encode(Sha256::digest(&bytes));
        cloud.put(&key, &bytes).await;
        keys.insert(key);
    }
    assert_eq!(keys.len(), MESSAGES);
    // A notification follows shortly after the answer to its put.
    let all = (MESSAGES.try_into().unwrap(), 0);
    eventually("the queue has all notifications", async || {
        (cloud.counts().await == all).then_some(())
    })
    .await;
    keys
}

/// The bucket for results, which sends no notifications.
fn results_of(cloud: &Cloud) -> String {
    format!("{}-results", cloud.bucket)
}

/// The keys with a result; asserts its content.
async fn published(cloud: &Cloud) -> BTreeSet<String> {
    let bucket = results_of(cloud);
    let listed = cloud.s3.list_objects_v2().bucket(&bucket).send().await.unwrap();
    let mut published = BTreeSet::new();
    for object in listed.contents.unwrap_or_default() {
        let name = object.key.unwrap();
        let answer = cloud.s3.get_object().bucket(&bucket).key(&name).send().await.unwrap();
        let text = String::from_utf8(answer.body.collect().await.unwrap().to_vec()).unwrap();
        assert_eq!(name, format!("of/{}/result", text.trim_end()));
        published.insert(text.trim_end().to_owned());
    }
    published
}

/// Starts pods as KEDA does, one per message up to a maximum, until the queue is empty and all pods
/// have ended.
async fn run_pods(cloud: &Cloud, endpoint: &str, rng: &mut Rng) -> Vec<Pod> {
    let mut running = JoinSet::new();
    let mut pods = Vec::new();
    loop {
        let (visible, in_flight) = cloud.counts().await;
        while running.len() < PODS.min((visible + in_flight) as usize) {
            let name = format!("pod-{}", pods.len() + running.len());
            let command = pod(cloud, endpoint, &name, rng);
            let fate = Fate::any(rng);
            running.spawn(async move { live(name, Leasehold::start(command), fate).await });
        }
        let Some(pod) = running.join_next().await else { return pods };
        pods.push(pod.unwrap());
    }
}

/// `leasehold` as PID 1 of a container: when it ends, all processes in the container end.
fn pod(cloud: &Cloud, endpoint: &str, name: &str, rng: &mut Rng) -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--fork",
        "--pid",
        "--mount-proc",
        "--kill-child=KILL",
        "--",
    ]);
    command.arg(env!("CARGO_BIN_EXE_leasehold")).args(["run", "--queue-url", &cloud.queue_url]);
    command.args(["--job-id", name, "--visibility-timeout", &format!("{}s", rng.u8(3..=5))]);
    command.args(["--max-messages", &rng.u8(1..=5).to_string(), "--wait", "1s"]);
    command.args([
        "--termination-grace",
        &format!("{}s", GRACE.as_secs()),
        "--retry-min",
        "1s",
        "--retry-max",
        "2s",
    ]);
    command.arg("--termination-log").arg(cloud.dir.path().join(name));
    command.arg("--work-dir").arg(cloud.dir.path());
    // Some answers never come; the default timeout for a slow store would take too long.
    command.args(["--s3-timeout", "2s"]);
    command.args(["--output", &format!("s3://{}/of/{{key}}", results_of(cloud))]);
    command.args(["--", "sh", "-c", SCRIPT]).current_dir(cloud.dir.path());
    command.env("AWS_ENDPOINT_URL", endpoint).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    command.env(MARKER, &cloud.endpoint);
    command
}

/// The signal that a pod gets, if any.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Nothing,
    /// A signal, this long after the pod handles it.
    Signal(Signal, Duration),
}

impl Fate {
    fn any(rng: &mut Rng) -> Self {
        let after = Duration::from_millis(rng.u64(0..2500));
        match rng.u8(0..10) {
            0..3 => Self::Signal(Signal::SIGKILL, after),
            3..6 => Self::Signal(Signal::SIGTERM, after),
            _ => Self::Nothing,
        }
    }
}

/// A pod that has ended.
struct Pod {
    name: String,
    /// The signal that it got before its end.
    signalled: Option<Signal>,
    exited: ExitedRun,
}

impl Pod {
    fn was_killed(&self) -> bool {
        self.signalled == Some(Signal::SIGKILL)
    }

    fn warnings(&self) -> usize {
        self.exited.log.iter().filter(|record| record["level"] == "WARN").count()
    }
}

async fn live(name: String, run: Leasehold, fate: Fate) -> Pod {
    let outside = run.pid();
    let exited = run.wait();
    tokio::pin!(exited);
    let signalled = async {
        let Fate::Signal(signal, after) = fate else { return std::future::pending().await };
        // The init of a container ignores all signals except KILL until it handles them.
        let init = loop {
            match container_init(outside) {
                Some(init) => break init,
                None => sleep(Duration::from_millis(10)).await,
            }
        };
        while signal != Signal::SIGKILL && !handles_signal(init, signal) {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(after).await;
        match kill(Pid::from_raw(init), signal) {
            Ok(()) => signal,
            // The pod has already exited.
            Err(_) => std::future::pending().await,
        }
    };
    let signalled = tokio::select! {
        exited = &mut exited => return Pod { name, signalled: None, exited },
        signal = signalled => signal,
    };
    let Ok(exited) = timeout(GRACE + MARGIN, exited).await else {
        panic!("{name} is alive {:?} after {signalled}, its grace is {GRACE:?}", GRACE + MARGIN);
    };
    Pod { name, signalled: Some(signalled), exited }
}

/// The outer pid of the container's init: the only child of `unshare`.
fn container_init(unshare: i32) -> Option<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // The child has a higher pid, so most processes are skipped.
    pids.find(|pid| {
        *pid > unshare && status(*pid, "PPid:").is_some_and(|parent| parent == unshare.to_string())
    })
}

fn handles_signal(pid: i32, signal: Signal) -> bool {
    let caught = status(pid, "SigCgt:").and_then(|caught| u64::from_str_radix(&caught, 16).ok());
    caught.is_some_and(|caught| caught & (1 << (signal as u32 - 1)) != 0)
}

fn status(pid: i32, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix(field))?.trim().to_owned())
}

/// One delivery of one message: its id and its receive count.
type Delivery = (String, u64);

/// The log of a command about one delivery.
#[derive(Debug)]
struct Attempt {
    pod: String,
    key: String,
    done: bool,
}

fn read_attempts(folder: &Path) -> BTreeMap<Delivery, Attempt> {
    let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let attempts = files.filter_map(|file| {
        let (id, count) = file
            .file_name()
            .to_str()
            .unwrap()
            .rsplit_once('.')
            .map(|(id, n)| (id.to_owned(), n.parse()))?;
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(!text.contains("broken"), "a command got wrong bytes: {text}");
        // KILLed before the first line.
        let (pod, rest) = text.split_once(' ')?;
        let key = rest.split(' ').next().unwrap().to_owned();
        let done = text.ends_with(&format!("\n{key} done\n"));
        Some(((id, count.unwrap()), Attempt { pod: pod.to_owned(), key, done }))
    });
    attempts.collect()
}

/// The pods' calls that arrived at the queue.
#[derive(Default)]
struct Seen {
    /// By receipt handle.
    deliveries: BTreeMap<String, Delivery>,
    deletes: Vec<Delete>,
}

#[derive(Debug)]
struct Delete {
    of: Delivery,
    /// Whether the command had succeeded when the request came.
    after_success: bool,
    accepted: bool,
}

/// A proxy right in front of the queue: the requests that it sees have arrived.
struct Witness {
    attempts: PathBuf,
    seen: Mutex<Seen>,
}

impl Witness {
    /// Called before the request is forwarded to the queue.
    fn is_after_success(&self, request: &Message) -> Option<bool> {
        let (id, count) = self.delivery_to_delete(request)?;
        let attempt = std::fs::read_to_string(self.attempts.join(format!("{id}.{count}")))
            .unwrap_or_default();
        Some(attempt.ends_with(" done\n"))
    }

    fn delivery_to_delete(&self, request: &Message) -> Option<Delivery> {
        let body = request.call("DeleteMessage")?;
        let receipt = body["ReceiptHandle"].as_str().unwrap();
        let delivery = self.seen.lock().unwrap().deliveries.get(receipt).cloned();
        Some(delivery.unwrap_or_else(|| ("an unknown receipt handle".to_owned(), 0)))
    }

    /// Called before the answer is forwarded to the pod.
    fn answered(&self, request: &Message, after_success: Option<bool>, answer: &Message) {
        let accepted = answer.head.starts_with("HTTP/1.1 200");
        if request.call("ReceiveMessage").is_some() && accepted {
            let answer: Value = serde_json::from_slice(&answer.body).unwrap();
            for message in answer["Messages"].as_array().into_iter().flatten() {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                let count =
                    text(&message["Attributes"]["ApproximateReceiveCount"]).parse().unwrap();
                let delivery = (text(&message["MessageId"]), count);
                self.seen
                    .lock()
                    .unwrap()
                    .deliveries
                    .insert(text(&message["ReceiptHandle"]), delivery);
            }
        }
        if let (Some(of), Some(after_success)) = (self.delivery_to_delete(request), after_success) {
            self.seen.lock().unwrap().deletes.push(Delete { of, after_success, accepted });
        }
    }
}

/// An HTTP request or answer.
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    /// The body, if this is a call of this name.
    fn call(&self, name: &str) -> Option<Value> {
        let target = format!("amazonsqs.{name}\r\n").to_lowercase();
        self.head
            .to_lowercase()
            .contains(&target)
            .then(|| serde_json::from_slice(&self.body).unwrap())
    }

    /// The next message of a connection; `None` at its end.
    async fn read(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<Self> {
        Self::read_partial(stream)
            .await
            .and_then(|(message, is_complete)| is_complete.then_some(message))
    }

    /// The same with a possibly incomplete body, and whether it is complete.
    async fn read_partial(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<(Self, bool)> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.ok()? == 0 {
                return None;
            }
        }
        let lowercase = head.to_lowercase();
        let header =
            |name: &str| lowercase.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let mut body = Vec::new();
        if header("transfer-encoding:").is_some() {
            // microburst sends a GET with an empty chunked body.
            while !body.ends_with(b"0\r\n\r\n") {
                if stream.read_until(b'\n', &mut body).await.ok()? == 0 {
                    return Some((Self { head, body }, false));
                }
            }
            return Some((Self { head, body }, true));
        }
        let length = header("content-length:").map_or(0, |length| length.parse().unwrap());
        let is_complete = stream
            .take(length)
            .read_to_end(&mut body)
            .await
            .is_ok_and(|read| read as u64 == length);
        Some((Self { head, body }, is_complete))
    }

    async fn write(&self, stream: &mut (impl AsyncWriteExt + Unpin)) -> Option<()> {
        stream.write_all(self.head.as_bytes()).await.ok()?;
        stream.write_all(&self.body).await.ok()
    }
}

/// Starts a proxy in front of `upstream` that passes each connection to `serve`; returns its
/// endpoint.
async fn start_proxy<F>(
    upstream: &str,
    serve: impl Fn(TcpStream, String) -> F + Send + 'static,
) -> String
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let upstream = upstream.strip_prefix("http://").unwrap().to_owned();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(client, upstream.clone()));
        }
    });
    endpoint
}

/// One connection, until either side ends it.
async fn forward(witness: Arc<Witness>, client: TcpStream, upstream: String) -> Option<()> {
    let mut client = BufReader::new(client);
    let mut server = BufReader::new(TcpStream::connect(upstream).await.unwrap());
    loop {
        let request = Message::read(&mut client).await?;
        let after_success = witness.is_after_success(&request);
        request.write(&mut server).await?;
        let answer = Message::read(&mut server).await?;
        witness.answered(&request, after_success, &answer);
        answer.write(&mut client).await?;
    }
}

/// The calls at the queue, the logs of the commands and the records of the pods must agree.
fn judge(
    keys: &BTreeSet<String>,
    pods: &[Pod],
    attempts: &BTreeMap<Delivery, Attempt>,
    seen: &Seen,
) {
    // Each message is deleted once, by a delivery whose work had succeeded.
    let too_early: Vec<_> = seen.deletes.iter().filter(|delete| !delete.after_success).collect();
    assert!(too_early.is_empty(), "deleted before their work succeeded: {too_early:?}");
    let deleted: BTreeSet<_> =
        seen.deletes.iter().filter(|delete| delete.accepted).map(|delete| &delete.of).collect();
    let messages: BTreeSet<_> = deleted.iter().map(|(id, _)| id).collect();
    assert_eq!(
        (deleted.len(), messages.len()),
        (MESSAGES, MESSAGES),
        "accepted deletes, and deleted messages"
    );
    let worked_on: BTreeSet<_> =
        deleted.iter().map(|delivery| attempts[*delivery].key.clone()).collect();
    assert_eq!(&worked_on, keys, "each object's work has succeeded");

    // Each processed delivery has one record, unless its pod was KILLed.
    let mut records: BTreeMap<Delivery, &Value> = BTreeMap::new();
    for record in pods.iter().flat_map(|pod| &pod.exited.log) {
        if record["message"] == "message deleted" || record["message"] == "message kept" {
            let id = record["message_id"].as_str().unwrap().to_owned();
            let delivery = (id, record["receive_count"].as_u64().unwrap());
            assert_eq!(records.insert(delivery, record), None, "two records of one delivery");
        }
    }
    for (delivery, attempt) in attempts {
        let Some(record) = records.get(delivery) else {
            let pod =
                pods.iter().find(|pod| pod.name == attempt.pod).expect("a pod that was started");
            let ExitedRun { stdout, stderr, .. } = &pod.exited;
            let output = format!(
                "{:?}, exited with {}:\n{stdout}{stderr}",
                pod.signalled,
                pod.exited.code()
            );
            assert!(pod.was_killed(), "{delivery:?}: {attempt:?}, and no record; {output}");
            continue;
        };
        let is_deleted = deleted.contains(delivery);
        let is_consistent = match record["outcome"].as_str().unwrap() {
            "succeeded" => is_deleted,
            // A pod without an answer to its delete does not know whether it was carried out.
            "lost_after_success" | "delete_failed" | "publish_failed" => attempt.done,
            "stopped" => true,
            "lease_lost" => !is_deleted,
            _ => !attempt.done,
        };
        assert!(is_consistent, "{delivery:?}: {attempt:?}, and {record}");
    }
    let mut successes = records.iter().filter(|(_, record)| record["outcome"] == "succeeded");
    assert!(
        successes.all(|(delivery, _)| attempts.contains_key(delivery)),
        "a record of a success without a command"
    );

    for Pod { name, exited, .. } in pods.iter().filter(|pod| !pod.was_killed()) {
        let ExitedRun { stdout, stderr, .. } = exited;
        let as_documented = [0, 1, 65, 75, 143].contains(&exited.code());
        assert!(
            as_documented && stderr.is_empty(),
            "{name} exited with {}:\n{stdout}{stderr}",
            exited.code()
        );
        assert!(!stdout.contains("a bug in leasehold"), "{stdout}");
    }
}

/// The command lines of the pods' remaining processes.
fn surviving_processes(cloud: &Cloud) -> Vec<String> {
    let marker = format!("{MARKER}={}", cloud.endpoint);
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let remaining = pids.filter(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
            && is_alive(*pid)
    });
    remaining
        .map(|pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default())
        .collect()
}
