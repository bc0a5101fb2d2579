//! A minimal SQS and S3 for `benches/run`, which answers at once from memory.
//!
//! `null_server MESSAGES OBJECT_BYTES [LATENCY_MS]` prints its port. It returns each message once,
//! about one object of this size, and prints the time of the first receive, in nanoseconds since
//! 1970. With a latency, each answer of SQS takes this long. `GET /requests` returns a line for each
//! request to SQS so far, its action, and `GET /received` one for each message, when it was received.

use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, thread};

struct World {
    messages: usize,
    received: AtomicUsize,
    /// In nanoseconds since 1970.
    received_at: Mutex<Vec<u128>>,
    latency: Duration,
    requests: Mutex<Vec<String>>,
    is_asked: AtomicBool,
    object: Vec<u8>,
}

fn main() {
    let given = |at| env::args().nth(at).and_then(|it| it.parse().ok());
    let number = |at| given(at).expect("null_server MESSAGES OBJECT_BYTES [LATENCY_MS]");
    let world = Arc::new(World {
        messages: number(1),
        received: AtomicUsize::new(0),
        received_at: Mutex::default(),
        latency: Duration::from_millis(given(3).unwrap_or(0) as u64),
        requests: Mutex::default(),
        is_asked: AtomicBool::new(false),
        object: vec![b'x'; number(2)],
    });
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("a bound port").port());
    for connection in listener.incoming().flatten() {
        let world = world.clone();
        // A client may disconnect at any time.
        thread::spawn(move || drop(world.serve(connection)));
    }
}

impl World {
    fn serve(&self, connection: TcpStream) -> Result<()> {
        connection.set_nodelay(true)?;
        let (mut requests, mut answers) = (BufReader::new(connection.try_clone()?), connection);
        loop {
            let (mut head, mut line) = (String::new(), String::new());
            while requests.read_line(&mut line)? > 2 {
                head.push_str(&line.to_ascii_lowercase());
                line.clear();
            }
            if head.is_empty() {
                return Ok(());
            }
            let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let length = header("content-length:").and_then(|it| it.parse().ok()).unwrap_or_default();
            let mut body = vec![0; length];
            requests.read_exact(&mut body)?;
            let body = String::from_utf8_lossy(&body);
            let target = header("x-amz-target:");
            if let Some(action) = target {
                self.requests.lock().expect("no panic").push(action.replace("amazonsqs.", ""));
                thread::sleep(self.latency);
            }
            match target {
                Some("amazonsqs.receivemessage") => answer(&mut answers, "", self.received(&body).as_bytes())?,
                Some("amazonsqs.deletemessagebatch" | "amazonsqs.changemessagevisibilitybatch") => {
                    answer(&mut answers, "", all_succeeded(&body).as_bytes())?;
                }
                Some(_) => answer(&mut answers, "", b"{}")?,
                None if head.starts_with("get /requests ") => {
                    answer(&mut answers, "", self.requests.lock().expect("no panic").join("\n").as_bytes())?;
                }
                None if head.starts_with("get /received ") => {
                    let times = self.received_at.lock().expect("no panic").iter().map(u128::to_string).collect::<Vec<_>>();
                    answer(&mut answers, "", times.join("\n").as_bytes())?;
                }
                None => self.object(&mut answers, header("range:"))?,
            }
        }
    }

    fn received(&self, request: &str) -> String {
        if !self.is_asked.swap(true, Ordering::Relaxed) {
            println!("{}", now());
        }
        let most = number_after(request, r#""MaxNumberOfMessages":"#).unwrap_or(1);
        let first = self.received.fetch_add(most, Ordering::Relaxed);
        let messages: Vec<_> = (first..self.messages.min(first + most)).map(|number| self.message(number)).collect();
        self.received_at.lock().expect("no panic").extend(messages.iter().map(|_| now()));
        if messages.is_empty() { "{}".to_owned() } else { format!(r#"{{"Messages":[{}]}}"#, messages.join(",")) }
    }

    fn message(&self, number: usize) -> String {
        let size = self.object.len();
        let body = format!(
            r#"{{"Records":[{{"eventVersion":"2.1","eventSource":"aws:s3","eventName":"ObjectCreated:Put","s3":{{"bucket":{{"name":"inbox"}},"object":{{"key":"k","size":{size},"eTag":"e"}}}}}}]}}"#
        );
        let body = body.replace('"', "\\\"");
        format!(
            r#"{{"MessageId":"m{number}","ReceiptHandle":"r{number}","Body":"{body}","Attributes":{{"ApproximateReceiveCount":"1"}}}}"#
        )
    }

    /// `range` has the form `bytes=0-99`.
    fn object(&self, to: &mut TcpStream, range: Option<&str>) -> Result<()> {
        let size = self.object.len();
        let Some((first, last)) = range.and_then(bounds) else {
            return answer(to, "etag: \"e\"\r\n", &self.object);
        };
        let end = size.min(last + 1);
        let body = &self.object[first..end];
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\netag: \"e\"\r\ncontent-range: bytes {first}-{}/{size}\r\ncontent-length: {}\r\n\r\n",
            end - 1,
            body.len()
        );
        to.write_all(head.as_bytes())?;
        to.write_all(body)
    }
}

/// In nanoseconds since 1970.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_nanos()
}

fn number_after(text: &str, name: &str) -> Option<usize> {
    let (_, value) = text.split_once(name)?;
    value.split(|next: char| !next.is_ascii_digit()).next()?.parse().ok()
}

/// The answer to a batch, with its ids, which are numbers.
fn all_succeeded(request: &str) -> String {
    let ids = request.split(r#""Id":""#).skip(1).filter_map(|entry| entry.split('"').next());
    let entries: Vec<_> = ids.map(|id| format!(r#"{{"Id":"{id}"}}"#)).collect();
    format!(r#"{{"Successful":[{}],"Failed":[]}}"#, entries.join(","))
}

fn bounds(range: &str) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

fn answer(to: &mut TcpStream, headers: &str, body: &[u8]) -> Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n", body.len());
    to.write_all(&[head.as_bytes(), body].concat())
}
