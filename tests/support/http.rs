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
    /// `answer` gives status and body for a request's head: `GET /path HTTP/1.1`, and a header a line.
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

async fn serve(mut connection: TcpStream, answer: &impl Fn(&str) -> (u16, String)) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if connection.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = answer(&String::from_utf8_lossy(&request));
    let length = body.len();
    let head = format!("HTTP/1.1 {status} As the test says\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    connection.write_all((head + &body).as_bytes()).await?;
    connection.shutdown().await
}
