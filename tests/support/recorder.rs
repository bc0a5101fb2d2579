//! A proxy that forwards requests to a server and records their heads.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// Dropping it stops it.
pub struct Recorder {
    pub endpoint: String,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    _serving: AbortOnDropHandle<()>,
}

impl Recorder {
    /// Forwards to `upstream`, `http://host:port`.
    pub async fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let sent: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let recording = sent.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&upstream).await.unwrap();
                let number = {
                    let mut sent = recording.lock().unwrap();
                    sent.push(Vec::new());
                    sent.len() - 1
                };
                tokio::spawn(forward(client, server, recording.clone(), number));
            }
        });
        Self { endpoint, sent, _serving: AbortOnDropHandle::new(serving) }
    }

    /// The request line and the headers of each request, in lower case.
    pub fn requests(&self) -> Vec<String> {
        let connections: Vec<String> = self
            .sent
            .lock()
            .unwrap()
            .iter()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .collect();
        let heads = connections.iter().flat_map(|connection| {
            connection.match_indices(" HTTP/1.1\r\n").map(|(at, _)| {
                let methods = ["GET ", "PUT ", "POST ", "HEAD ", "DELETE "];
                let starts =
                    methods.iter().filter_map(|method| connection[..at].rfind(method)).max();
                let head = &connection[starts.expect("a method")..];
                head.split("\r\n\r\n").next().unwrap_or_default().to_lowercase()
            })
        });
        heads.collect()
    }
}

async fn forward(
    client: TcpStream,
    server: TcpStream,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    number: usize,
) {
    let (mut requests, mut answers) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = requests.read(&mut buffer).await.unwrap_or(0);
            if length == 0 {
                return to_server.shutdown().await;
            }
            sent.lock().unwrap()[number].extend_from_slice(&buffer[..length]);
            to_server.write_all(&buffer[..length]).await?;
        }
    };
    // Either side may close its connection at any time.
    let _ = tokio::join!(there, tokio::io::copy(&mut from_server, &mut answers));
}
