//! A scripted HTTP server.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// Answers every request on its own connection; dropping it stops it.
pub struct Http {
    pub endpoint: String,
    _serving: AbortOnDropHandle<()>,
}

impl Http {
    /// `answer` returns status and body for a request: `GET /path HTTP/1.1`, one header per line,
    /// and the body after an empty line.
    pub async fn start(answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                // The client may have closed the connection.
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
    while !is_complete(&request) {
        if connection.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request);
    let (status, body) = answer(&request);
    let length = body.len();
    // S3 answers have an ETag, which must match the requested one.
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

pub fn is_complete(request: &[u8]) -> bool {
    let request = String::from_utf8_lossy(request);
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}
