//! A proxy for https that answers in place of AWS.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_util::task::AbortOnDropHandle;

use super::http::is_complete;

/// Answers each request with 200 and no body; dropping it stops it.
pub struct HttpsProxy {
    pub endpoint: String,
    /// To be trusted, PEM.
    pub certificate: String,
    requests: Arc<Mutex<Vec<String>>>,
    _serving: AbortOnDropHandle<()>,
}

impl HttpsProxy {
    pub async fn start(host: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let tls =
            tls.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let tls = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let recording = requests.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(connection, tls.clone(), recording.clone()));
            }
        });
        let certificate = made.cert.pem();
        Self { endpoint, certificate, requests, _serving: AbortOnDropHandle::new(serving) }
    }

    /// All requests so far, those to the proxy itself (`CONNECT`), too.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve(
    mut connection: TcpStream,
    tls: TlsAcceptor,
    requests: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let request = read(&mut connection).await?;
    requests.lock().unwrap().push(request);
    connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    let mut connection = tls.accept(connection).await?;
    let request = read(&mut connection).await?;
    requests.lock().unwrap().push(request);
    let answer = "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nx-amz-request-id: r\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    connection.write_all(answer.as_bytes()).await?;
    connection.shutdown().await
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut request = Vec::new();
    while !is_complete(&request) && from.read_buf(&mut request).await? > 0 {}
    Ok(String::from_utf8_lossy(&request).into_owned())
}
