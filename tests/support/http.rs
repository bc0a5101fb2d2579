//! A server that answers as a test says.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// Answers every request, each on a connection of its own; gone when dropped.
pub struct Http {
    pub endpoint: String,
    _serving: AbortOnDropHandle<()>,
}

impl Http {
    /// `answer` gives status and body for a request: `GET /path HTTP/1.1`, a header a line, and
    /// after an empty line the body.
    pub async fn start(answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                // Whoever does not wait for the answer is not our concern.
                let _ = serve(connection, &answer).await;
            }
        });
        Self { endpoint, _serving: AbortOnDropHandle::new(serving) }
    }
}

async fn serve(
    mut connection: TcpStream,
    answer: &impl Fn(&str) -> (u16, String),
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !is_whole(&request) {
        if connection.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request);
    let (status, body) = answer(&request);
    let length = body.len();
    // Without an ETag no answer is taken for one of S3, and none for the object of another one.
    let etag = request
        .lines()
        .find_map(|line| line.strip_prefix("if-match: "))
        .unwrap_or("\"of the test\"");
    let head = format!(
        "HTTP/1.1 {status} As the test says\r\nContent-Length: {length}\r\nETag: {etag}\r\nConnection: close\r\n\r\n"
    );
    connection.write_all((head + &body).as_bytes()).await?;
    connection.shutdown().await
}

fn is_whole(request: &[u8]) -> bool {
    let request = String::from_utf8_lossy(request);
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}
