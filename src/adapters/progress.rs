//! `PUT /progress/KEY` on a loopback address: the result file for a warm worker. Such a
//! program may run in another container, without access to the file.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::accept::accept;
use super::result_file::append;
use crate::ports::Activity;
use crate::ports::job_facts::JobFacts;

/// Listens until it is dropped.
pub struct ProgressServer {
    address: SocketAddr,
    jobs: Arc<Jobs>,
    _serving: AbortOnDropHandle<()>,
}

/// The jobs in work. Their keys are random, since one pod may have two deliveries of one message.
/// Several jobs may share a key.
#[derive(Default)]
struct Jobs(Mutex<HashMap<String, Vec<Target>>>);

#[derive(Clone)]
struct Target {
    result_file: PathBuf,
    activity: Activity,
}

/// In bytes.
const LONGEST_REPORT: usize = 16 << 10;
/// In bytes; only the end of the file is read.
const LONGEST_FILE: u64 = 16 << 20;
/// How long a connection may wait for its next request, and a request for its body.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// In bytes; the smallest value that hyper accepts.
const LONGEST_HEAD: usize = 8 << 10;
/// More connections wait.
const MOST_CONNECTIONS: usize = 16;

impl ProgressServer {
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, jobs) = (listener.local_addr()?, Arc::<Jobs>::default());
        let serving = AbortOnDropHandle::new(tokio::spawn(serve(listener, jobs.clone())));
        Ok(Self { address, jobs, _serving: serving })
    }

    /// The address without a key.
    pub fn url(&self) -> String {
        format!("http://{}/progress", self.address)
    }

    /// Accepts reports about the job until the result is dropped.
    pub fn accept(&self, job: &JobFacts, activity: &Activity) -> Accepted {
        self.accept_all(format!("{:032x}", fastrand::u128(..)), [(job, activity)].into_iter())
    }

    /// The same with this key for several jobs, each of which gets every report.
    pub fn accept_all<'a>(
        &self,
        key: String,
        jobs: impl Iterator<Item = (&'a JobFacts, &'a Activity)>,
    ) -> Accepted {
        let target = |(job, activity): (&JobFacts, &Activity)| Target {
            result_file: job.result_file.clone(),
            activity: activity.clone(),
        };
        self.jobs.all().insert(key.clone(), jobs.map(target).collect());
        let url = format!("{}/{key}", self.url());
        Accepted { url, key, jobs: self.jobs.clone() }
    }
}

/// A job whose reports are accepted.
pub struct Accepted {
    pub url: String,
    key: String,
    jobs: Arc<Jobs>,
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.jobs.all().remove(&self.key);
    }
}

impl Jobs {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Vec<Target>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, jobs: Arc<Jobs>) {
    let free = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        let connection = accept(&listener).await;
        let jobs = jobs.clone();
        tokio::spawn(async move {
            serve_connection(connection, &jobs).await;
            drop(permit);
        });
    }
}

async fn serve_connection(connection: TcpStream, jobs: &Jobs) {
    let answer = service_fn(|request| async {
        let (status, text) = match report(jobs, request).await {
            Ok(()) => (StatusCode::NO_CONTENT, String::new()),
            Err((status, why)) => (status, format!("{why}\n")),
        };
        let mut response = Response::new(Full::<Bytes>::from(text));
        *response.status_mut() = status;
        Ok::<_, Infallible>(response)
    });
    // An error breaks only this connection.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(connection), answer)
        .await;
}

type Refusal = (StatusCode, &'static str);

async fn report(jobs: &Jobs, request: Request<Incoming>) -> Result<(), Refusal> {
    if !matches!(*request.method(), Method::PUT | Method::POST) {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "only PUT is supported"));
    }
    let key = request.uri().path().strip_prefix("/progress/").unwrap_or_default();
    let targets = jobs.all().get(key).cloned();
    let targets = targets.ok_or((StatusCode::NOT_FOUND, "no request with this URL is in work"))?;
    let body = Limited::new(request.into_body(), LONGEST_REPORT).collect();
    let body = timeout(IDLE_LIMIT, body).await;
    let body = body.map_err(|_| (StatusCode::REQUEST_TIMEOUT, "the body is not complete"))?;
    let body = body.map_err(|_| (StatusCode::PAYLOAD_TOO_LARGE, "it has more than 16 KiB"))?;
    let fields: Map<String, Value> = serde_json::from_slice(&body.to_bytes())
        .map_err(|_| (StatusCode::BAD_REQUEST, "it is not a JSON object"))?;
    let report = Value::Object(fields);
    let mut is_taken = false;
    for target in &targets {
        if append(&target.result_file, &report, LONGEST_FILE).is_ok() {
            target.activity.record();
            is_taken = true;
        }
    }
    if !is_taken {
        // The jobs may have ended meanwhile, and their files are removed with their directories.
        return Err((StatusCode::INSUFFICIENT_STORAGE, "the result file cannot take it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn job(message_id: &str, home: &Path) -> JobFacts {
        JobFacts::example(message_id, home)
    }

    async fn send(url: &str, method: &str, body: &str) -> String {
        let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let length = body.len();
        let request = format!(
            "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        let mut connection = TcpStream::connect(host).await.unwrap();
        let mut answer = Vec::new();
        // A refused body may end in a reset.
        let _ = connection.write_all(request.as_bytes()).await;
        let _ = connection.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn a_report_is_a_line_of_the_result_file_while_the_job_is_in_work() {
        let home = tempfile::tempdir().unwrap();
        let server = ProgressServer::start().await.unwrap();
        let (activity, job) = (Activity::default(), job("m", home.path()));
        let accepted = server.accept(&job, &activity);
        let url = accepted.url.clone();
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        assert_eq!(send(&url, "PUT", "{\"progress\":\n 0.5}").await, "204");
        assert!(activity.take());
        for (method, body, status) in [
            ("GET", "", "405"),
            ("PUT", "", "400"),
            ("PUT", "[1]", "400"),
            ("PUT", "{", "400"),
            ("PUT", &format!("{{\"text\": \"{}\"}}", "x".repeat(LONGEST_REPORT)), "413"),
        ] {
            assert_eq!(send(&url, method, body).await, status, "{method} {body:.20}");
        }
        assert_eq!(send(&format!("{}/other", server.url()), "PUT", "{}").await, "404");
        assert!(!activity.take());
        assert_eq!(std::fs::read_to_string(&job.result_file).unwrap(), "{\"progress\":0.5}\n");
        std::fs::write(&job.result_file, vec![b'\n'; (16 << 20) + 1]).unwrap();
        assert_eq!(send(&url, "PUT", "{}").await, "507");
        drop(accepted);
        assert_eq!(send(&url, "PUT", "{}").await, "404");
    }

    #[tokio::test]
    async fn the_end_of_one_delivery_does_not_end_the_reports_of_another() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = ProgressServer::start().await.unwrap();
        let accept = |home: &Path| server.accept(&job("m", home), &Activity::default());
        let (ended, in_work) = (accept(first.path()), accept(second.path()));
        drop(ended);
        assert_eq!(send(&in_work.url, "PUT", "{}").await, "204");
        assert!(second.path().join("result.jsonl").exists());
        assert!(!first.path().join("result.jsonl").exists());
    }

    #[tokio::test]
    async fn a_report_about_several_jobs_goes_to_each_that_is_left() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = ProgressServer::start().await.unwrap();
        let jobs = [job("a", one.path()), job("b", other.path())];
        let activities = [Activity::default(), Activity::default()];
        let _accepted = server.accept_all("id".to_owned(), jobs.iter().zip(&activities));
        let url = format!("{}/id", server.url());
        assert_eq!(send(&url, "PUT", "{}").await, "204");
        assert!(activities.iter().all(Activity::take));
        one.close().unwrap();
        assert_eq!(send(&url, "PUT", "{}").await, "204");
        assert_eq!(activities.each_ref().map(Activity::take), [false, true]);
        assert_eq!(std::fs::read_to_string(&jobs[1].result_file).unwrap(), "{}\n{}\n");
        other.close().unwrap();
        assert_eq!(send(&url, "PUT", "{}").await, "507");
    }

    #[tokio::test]
    async fn slow_clients_do_not_stop_the_server() {
        let home = tempfile::tempdir().unwrap();
        let server = ProgressServer::start().await.unwrap();
        let accepted = server.accept(&job("m", home.path()), &Activity::default());
        let mut slow = Vec::new();
        for _ in 0..MOST_CONNECTIONS - 1 {
            let mut connection = TcpStream::connect(server.address).await.unwrap();
            connection.write_all(b"PUT /progress/x HTTP/1.1\r\nX: ").await.unwrap();
            slow.push(connection);
        }
        assert_eq!(send(&accepted.url, "PUT", "{}").await, "204");
    }
}
