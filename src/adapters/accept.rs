//! Connections of the small servers in this process.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// The next connection. If there is none because the process is out of file descriptors, or because
/// it was closed at once, a later accept may succeed.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        if let Ok((connection, _)) = listener.accept().await {
            return connection;
        }
        sleep(PAUSE).await;
    }
}

const PAUSE: Duration = Duration::from_millis(100);
