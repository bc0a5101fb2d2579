//! Real pods, a real server, a network that breaks: 200 objects, and pods that are stopped and
//! KILLed at any moment until the queue is empty. Then every success and every delete must have
//! been told, and none may be missing.
//!
//! ```text
//! pods ──► Breaker ──► microburst ──► Witness ──► ministack
//!          lies        breaks         sees what really comes to the queue
//! ```
//!
//! A seed says what the pods, the network and the commands are to do; how it all interleaves is the
//! machine's. A run that fails prints its seed: `SEED=… tests/run chaos`.

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
/// Nobody ends in the dead-letter queue because pods were killed.
const RECEIVES: u32 = 1000;
/// The pods' `--termination-grace`.
const GRACE: Duration = Duration::from_secs(6);
/// For a machine that is busy with something else.
const MARGIN: Duration = Duration::from_secs(5);
/// No run takes as long, unless something hangs.
const LIMIT: Duration = Duration::from_mins(3);
/// In the environment of all that belongs to a pod.
const MARKER: &str = "CHAOS";

/// What the pods run. A key is the hash of its object: so the command sees whether it got the right
/// bytes, and its last digit says how it behaves. What it does is in a file of its own, named after
/// the delivery.
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
        *7.*) setsid sleep 600 > /dev/null 2>&1 & ;; # forgets a daemon
        *) sleep 0.1 ;;
    esac
    echo "$JOB_KEY" > "$JOB_OUTPUT_DIR/result"
    echo "$JOB_KEY done" >> "$attempt"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_die_and_a_network_that_breaks_lose_nothing_and_delete_only_successes() {
    let seed = asked_for("SEED").unwrap_or_else(|| fastrand::u64(..));
    // Shown if the test fails.
    println!("to run this again: SEED={seed} tests/run chaos");
    timeout(LIMIT, chaos(Rng::with_seed(seed))).await.expect("the queue is empty in time");
}

async fn chaos(mut rng: Rng) {
    let cloud = Cloud::new(RECEIVES).await;
    let attempts = cloud.dir.path().join("attempts");
    std::fs::create_dir(&attempts).unwrap();
    let witness = Arc::new(Witness { attempts: attempts.clone(), seen: Mutex::default() });
    let watching = witness.clone();
    let watched = in_front_of(&cloud.endpoint, move |client, server| {
        pass_on(watching.clone(), client, server)
    })
    .await;
    let network = Microburst::start(&watched, &faults(&mut rng)).await;
    let breaker = Arc::new(Breaker::new(rng.fork()));
    let lying = breaker.clone();
    let endpoint = in_front_of(&network.endpoint(), move |client, server| {
        lie_to(lying.clone(), client, server)
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
        "each object has its result, and that is what its command wrote"
    );
    let attempts = read_attempts(&attempts);
    let seen = std::mem::take(&mut *witness.seen.lock().unwrap());
    judge(&keys, &pods, &attempts, &seen);
    assert_eq!(
        idle_faults(&network.endpoint()).await,
        [Value::Null; 0],
        "a network that breaks nothing proves nothing"
    );
    let lies = breaker.lies.lock().unwrap().clone();
    assert_eq!(
        lies.len(),
        Lie::ALL.len() * LIED_ABOUT.len(),
        "a liar that does not lie proves nothing: {lies:?}"
    );
    assert_eq!(survivors(&cloud), [""; 0], "processes of pods that are gone");

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

/// What the network does to each kind of call: each fault hits the first call, and from then on one
/// in so many.
fn faults(rng: &mut Rng) -> Vec<Value> {
    let lost_request = json!({ "reset": true });
    let lost_answer = json!({ "response": { "abort_bytes": 0 } });
    let cut_answer = json!({ "response": { "abort_frac": 0.5 } });
    let corrupt = json!({ "response": { "corrupt_bytes": 8 } });
    let slow = json!({ "response": { "bandwidth_kbps": 256 } });
    // Longer than a try may take, when the lease is a short one.
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

/// The rules of the network that have not broken anything.
async fn idle_faults(endpoint: &str) -> Vec<Value> {
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

/// What microburst does not do to a call: an answer that is not AWS's, or that never comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lie {
    /// A captive portal says 200. The call does not come through.
    Portal,
    /// A proxy breaks an answer and makes it a page of its own, with 200. The call came through.
    PortalAfter,
    /// 500, although it was done.
    ErrorAfter,
    /// The call does not come through, and there is no answer.
    Silence,
    /// It comes through, and there is no answer.
    SilenceAfter,
    /// It comes through, and the connection ends.
    LostAfter,
}

impl Lie {
    const ALL: [Self; 6] = [
        Self::Portal,
        Self::PortalAfter,
        Self::ErrorAfter,
        Self::Silence,
        Self::SilenceAfter,
        Self::LostAfter,
    ];
}

/// Calls that are lied about. Of a receive that is not answered its pod waits for ten seconds:
/// microburst loses enough of them.
const LIED_ABOUT: [&str; 4] = ["ChangeMessageVisibility", "DeleteMessage", "GET", "PUT"];

/// Lies about one call in so many.
struct Breaker {
    rng: Mutex<Rng>,
    /// What was lied about, how.
    lies: Mutex<BTreeSet<(&'static str, Lie)>>,
}

impl Breaker {
    fn new(rng: Rng) -> Self {
        Self { rng: Mutex::new(rng), lies: Mutex::default() }
    }

    /// Each lie is told about the first calls of each kind, and from then on about one in so many.
    fn lies_about(&self, request: &Message) -> Option<Lie> {
        let kind = LIED_ABOUT.into_iter().find(|kind| {
            let is_method = request.head.starts_with(&format!("{kind} /"));
            is_method || request.call(kind).is_some()
        })?;
        let mut lies = self.lies.lock().unwrap();
        let mut rng = self.rng.lock().unwrap();
        let untold = Lie::ALL.into_iter().find(|lie| !lies.contains(&(kind, *lie)));
        let lie = match untold {
            Some(untold) if rng.u8(0..3) == 0 => untold,
            _ if rng.u8(0..30) == 0 => Lie::ALL[rng.usize(0..Lie::ALL.len())],
            _ => return None,
        };
        lies.insert((kind, lie));
        Some(lie)
    }
}

/// One connection, until either side ends it.
async fn lie_to(breaker: Arc<Breaker>, client: TcpStream, upstream: String) -> Option<()> {
    let mut client = BufReader::new(client);
    let mut server = BufReader::new(TcpStream::connect(upstream).await.ok()?);
    loop {
        let request = Message::read(&mut client).await?;
        let lie = breaker.lies_about(&request);
        if lie == Some(Lie::Silence) {
            // Until it is the client that ends the connection.
            let _ = client.read_u8().await;
            return None;
        }
        if lie == Some(Lie::Portal) {
            portal("200 OK").write(&mut client).await?;
            continue;
        }
        request.write(&mut server).await?;
        let (answer, is_complete) = Message::read_some(&mut server).await?;
        match lie {
            None | Some(Lie::Portal | Lie::Silence) => {
                answer.write(&mut client).await?;
                // Microburst ends answers in their midst; then so do we.
                is_complete.then_some(())?;
            }
            Some(Lie::PortalAfter) => portal("200 OK").write(&mut client).await?,
            Some(Lie::ErrorAfter) => portal("500 Internal Server Error").write(&mut client).await?,
            Some(Lie::SilenceAfter) => {
                let _ = client.read_u8().await;
                return None;
            }
            Some(Lie::LostAfter) => return None,
        }
    }
}

/// An answer of something that is not AWS.
fn portal(status: &str) -> Message {
    let body = b"<html><body>Please sign in to this network.</body></html>".to_vec();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Message { head, body }
}

/// Puts the objects, of which a few are large, and returns their keys when all their notifications
/// are in the queue.
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
    // A notification comes a moment after its put was answered.
    let all = (MESSAGES.try_into().unwrap(), 0);
    eventually("the queue has all notifications", async || {
        (cloud.counts().await == all).then_some(())
    })
    .await;
    keys
}

/// Where the commands' results go; the queue hears nothing of it.
fn results_of(cloud: &Cloud) -> String {
    format!("{}-results", cloud.bucket)
}

/// The keys that have their result, which must be what the command wrote.
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

/// Starts pods as KEDA does, one a message and so many at most, until the queue is empty and all of
/// them are gone.
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

/// `leasehold` as PID 1 of a container: when it is gone, so is everything in there.
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
    // Some answers never come: the pods are not to wait for each as long as they would for a slow
    // store.
    command.args(["--s3-timeout", "2s"]);
    command.args(["--output", &format!("s3://{}/of/{{key}}", results_of(cloud))]);
    command.args(["--", "sh", "-c", SCRIPT]).current_dir(cloud.dir.path());
    command.env("AWS_ENDPOINT_URL", endpoint).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    command.env(MARKER, &cloud.endpoint);
    command
}

/// What comes to a pod from outside.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Nothing,
    /// A signal, so long after it could be heard.
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

/// A pod that is gone.
struct Pod {
    name: String,
    /// With what, if that came before its end.
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
        // The init of a container hears no signal but KILL before it has asked for it.
        let init = loop {
            match init_below(outside) {
                Some(init) => break init,
                None => sleep(Duration::from_millis(10)).await,
            }
        };
        while signal != Signal::SIGKILL && !catches(init, signal) {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(after).await;
        match kill(Pid::from_raw(init), signal) {
            Ok(()) => signal,
            // It has left by itself.
            Err(_) => std::future::pending().await,
        }
    };
    let signalled = tokio::select! {
        exited = &mut exited => return Pod { name, signalled: None, exited },
        signal = signalled => signal,
    };
    let Ok(exited) = timeout(GRACE + MARGIN, exited).await else {
        panic!("{name} lives {:?} after {signalled}, its grace is {GRACE:?}", GRACE + MARGIN);
    };
    Pod { name, signalled: Some(signalled), exited }
}

/// The process with which the container begins, by its number out here: the only child of
/// `unshare`.
fn init_below(unshare: i32) -> Option<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // It is younger, so most processes need no look.
    pids.find(|pid| {
        *pid > unshare && status(*pid, "PPid:").is_some_and(|parent| parent == unshare.to_string())
    })
}

fn catches(pid: i32, signal: Signal) -> bool {
    let caught = status(pid, "SigCgt:").and_then(|caught| u64::from_str_radix(&caught, 16).ok());
    caught.is_some_and(|caught| caught & (1 << (signal as u32 - 1)) != 0)
}

fn status(pid: i32, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix(field))?.trim().to_owned())
}

/// One delivery of one message: its id and its receive count.
type Delivery = (String, u64);

/// What a command did with a delivery.
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
        assert!(!text.contains("broken"), "a command was given wrong bytes: {text}");
        // KILLed before it had said a word.
        let (pod, rest) = text.split_once(' ')?;
        let key = rest.split(' ').next().unwrap().to_owned();
        let done = text.ends_with(&format!("\n{key} done\n"));
        Some(((id, count.unwrap()), Attempt { pod: pod.to_owned(), key, done }))
    });
    attempts.collect()
}

/// What the queue saw of the pods.
#[derive(Default)]
struct Seen {
    /// By receipt handle.
    deliveries: BTreeMap<String, Delivery>,
    deletes: Vec<Delete>,
}

#[derive(Debug)]
struct Delete {
    of: Delivery,
    /// Had the command succeeded when the request came?
    after_success: bool,
    accepted: bool,
}

/// Stands right in front of the queue: what it sees has come through.
struct Witness {
    attempts: PathBuf,
    seen: Mutex<Seen>,
}

impl Witness {
    /// Asked before the request goes on to the queue.
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
        Some(delivery.unwrap_or_else(|| ("a receipt handle that nobody was given".to_owned(), 0)))
    }

    /// Told before the answer goes on to the pod.
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
    /// The body, if it is a call of this name.
    fn call(&self, name: &str) -> Option<Value> {
        let target = format!("amazonsqs.{name}\r\n").to_lowercase();
        self.head
            .to_lowercase()
            .contains(&target)
            .then(|| serde_json::from_slice(&self.body).unwrap())
    }

    /// The next one of a connection; none if that ends first.
    async fn read(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<Self> {
        Self::read_some(stream)
            .await
            .and_then(|(message, is_complete)| is_complete.then_some(message))
    }

    /// The same, with as much of its body as there is; and whether that is all.
    async fn read_some(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<(Self, bool)> {
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
            // microburst sends a GET like this, with nothing in it.
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

/// Stands in front of the server at `upstream`, and hands each connection to `serve`; returns
/// where.
async fn in_front_of<F>(
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
async fn pass_on(witness: Arc<Witness>, client: TcpStream, upstream: String) -> Option<()> {
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

/// What the queue saw, what the commands did and what the pods told must be the same story.
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
        "deletes, and messages deleted"
    );
    let worked_on: BTreeSet<_> =
        deleted.iter().map(|delivery| attempts[*delivery].key.clone()).collect();
    assert_eq!(&worked_on, keys, "each object's work has succeeded");

    // Each delivery that was worked on has one record, unless its pod was KILLed.
    let mut records: BTreeMap<Delivery, &Value> = BTreeMap::new();
    for record in pods.iter().flat_map(|pod| &pod.exited.log) {
        if record["message"] == "message deleted" || record["message"] == "message kept" {
            let id = record["message_id"].as_str().unwrap().to_owned();
            let delivery = (id, record["receive_count"].as_u64().unwrap());
            assert_eq!(records.insert(delivery, record), None, "told twice");
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
        let is_as_told = match record["outcome"].as_str().unwrap() {
            "succeeded" => is_deleted,
            // Whether the delete was done is not known to a pod that was not answered, or that
            // stopped asking.
            "lost_after_success" | "delete_failed" | "publish_failed" => attempt.done,
            "stopped" => true,
            "lease_lost" => !is_deleted,
            _ => !attempt.done,
        };
        assert!(is_as_told, "{delivery:?}: {attempt:?}, and {record}");
    }
    let mut told = records.iter().filter(|(_, record)| record["outcome"] == "succeeded");
    assert!(
        told.all(|(delivery, _)| attempts.contains_key(delivery)),
        "a success is told that no command had"
    );

    for Pod { name, exited, .. } in pods.iter().filter(|pod| !pod.was_killed()) {
        let ExitedRun { stdout, stderr, .. } = exited;
        let as_documented = [0, 1, 65, 75, 143].contains(&exited.code());
        assert!(
            as_documented && stderr.is_empty(),
            "{name} left with {}:\n{stdout}{stderr}",
            exited.code()
        );
        assert!(!stdout.contains("a bug in leasehold"), "{stdout}");
    }
}

/// The command lines of what is left of the pods.
fn survivors(cloud: &Cloud) -> Vec<String> {
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
