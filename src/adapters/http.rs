//! The HTTP client of this program: plain, or TLS that trusts the configured certificates.
//!
//! AWS and, through [`Http`], all other servers get their requests from the SDK's client, so there
//! is one TLS library, one CA bundle and one proxy configuration.

mod roots;
pub mod secrets;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector, ConnectorBuilder};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use http_body_util::Limited;
use roots::{amazon_roots, is_amazons, is_untrusted};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrets::{secrets_of, without_secrets};

use super::url::without_userinfo;
use crate::ports::causes;

/// Sends requests to servers that are not AWS.
#[derive(Debug)]
pub struct Http {
    ca_bundle: Option<PathBuf>,
    plain: Connector,
    /// Created for the first https request.
    tls: OnceLock<Result<Connector, CaBundleError>>,
}

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Truncated if it is too long.
    pub body: String,
    pub is_whole: bool,
}

/// The limits of an answer.
#[derive(Debug, Clone, Copy)]
pub struct AnswerLimit {
    pub time: Duration,
    pub bytes: usize,
}

impl From<Duration> for AnswerLimit {
    /// With a default limit in bytes, which is enough for every error text.
    fn from(time: Duration) -> Self {
        Self { time, bytes: 1 << 20 }
    }
}

impl Http {
    /// `ca_bundle` is a PEM file of trusted certificates; without one the distribution's is used.
    pub fn new(ca_bundle: Option<PathBuf>) -> Self {
        Self { ca_bundle, plain: Connector::builder().build_http(), tls: OnceLock::new() }
    }

    /// Sends one request and reads its answer within the limits. The error is the reason for a
    /// missing answer.
    pub async fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&'static str, String)],
        body: impl Into<SdkBody>,
        limit: impl Into<AnswerLimit>,
    ) -> Result<Answer, String> {
        let AnswerLimit { time, bytes } = limit.into();
        let mut request = HttpRequest::new(body.into());
        let set = request.set_method(method).map_err(|error| error.to_string());
        set.and_then(|()| {
            request.set_uri(url).map_err(|error| format!("{}: {error}", without_userinfo(url)))
        })?;
        for (name, value) in headers {
            request
                .headers_mut()
                .try_insert(*name, value.clone())
                .map_err(|error| format!("{name}: {error}"))?;
        }
        let exchange = async {
            let answer = self
                .connector(url)?
                .call(request)
                .await
                .map_err(|error| causes::on_one_line(&error))?;
            let status = answer.status().as_u16();
            let (mut rest, mut body, mut is_whole) =
                (ByteStream::new(answer.into_body()), Vec::new(), true);
            while let Some(chunk) = rest.next().await {
                let chunk = chunk.map_err(|error| causes::on_one_line(&error))?;
                let wanted = chunk.len().min(bytes - body.len());
                body.extend_from_slice(&chunk[..wanted]);
                if wanted < chunk.len() {
                    is_whole = false;
                    break;
                }
            }
            Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned(), is_whole })
        };
        tokio::time::timeout(time, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {time:?}")))
    }

    fn connector(&self, url: &str) -> Result<&Connector, String> {
        if !url.starts_with("https:") {
            return Ok(&self.plain);
        }
        let tls = self.tls.get_or_init(|| {
            let context = tls_context(trusted(self.ca_bundle.as_deref())?);
            Ok(tls_connector(Connector::builder(), &context))
        });
        tls.as_ref().map_err(CaBundleError::to_string)
    }
}

/// The one HTTP client of all AWS services and of the credential chain.
#[derive(Debug)]
pub struct OneClient(Arc<Clients>);

impl OneClient {
    /// `ca_bundle` is a PEM file of trusted certificates; without one the distribution's is used.
    pub fn new(ca_bundle: Option<PathBuf>) -> Self {
        Self(Arc::new(Clients {
            ca_bundle,
            plain: Builder::new().build_http(),
            tls: OnceLock::new(),
            amazons: OnceLock::new(),
            needs_bundle: AtomicBool::new(false),
        }))
    }
}

impl HttpClient for OneClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let (clients, settings, components) =
            (self.0.clone(), settings.clone(), components.clone());
        SharedHttpConnector::new(ByScheme { clients, settings, components })
    }
}

/// Sends a request by plain TCP or by TLS, depending on its URL.
#[derive(Debug, Clone)]
struct ByScheme {
    clients: Arc<Clients>,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpConnector for ByScheme {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let is_object = request.uri().contains("x-id=GetObject");
        // S3 may report a failure with status 200.
        let may_fail_late = request.method() == "POST" && request.uri().contains("uploadId=");
        let secrets = secrets_of(&request);
        let answer = self.send(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await?;
            let is_success = answer.status().is_success();
            // Objects are streamed; all other answers are read into memory as a whole.
            let answer =
                if is_object && is_success { return Ok(answer) } else { answer.map(bounded) };
            let is_quoted = !is_success || may_fail_late;
            if is_quoted { without_secrets(answer, &secrets).await } else { Ok(answer) }
        })
    }
}

impl ByScheme {
    fn send(&self, request: HttpRequest) -> HttpConnectorFuture {
        if !request.uri().starts_with("https:") {
            return self.send_by(&self.clients.plain, request);
        }
        let Some(amazons) = self.clients.amazons(request.uri()) else {
            return self.send_by_tls(request);
        };
        let again = request.try_clone();
        let (sent, this) = (self.send_by(amazons, request), self.clone());
        HttpConnectorFuture::new(async move {
            match sent.await {
                Err(error) if is_untrusted(&error) => {
                    this.clients.needs_bundle.store(true, Ordering::Relaxed);
                    this.send_by_tls(again.ok_or(error)?).await
                }
                answer => answer,
            }
        })
    }

    fn send_by_tls(&self, request: HttpRequest) -> HttpConnectorFuture {
        match self.clients.tls() {
            Ok(client) => self.send_by(client, request),
            Err(error) => HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        }
    }

    fn send_by(&self, client: &SharedHttpClient, request: HttpRequest) -> HttpConnectorFuture {
        client.http_connector(&self.settings, &self.components).call(request)
    }
}

fn bounded(body: SdkBody) -> SdkBody {
    SdkBody::from_body_1_x(Limited::new(body, LONGEST_ANSWER))
}

/// In bytes; larger than a message of 1 MiB, escaped, or a thousand keys.
const LONGEST_ANSWER: usize = 16 << 20;

#[derive(Debug)]
struct Clients {
    ca_bundle: Option<PathBuf>,
    /// Never through a proxy: credentials of containers and instances are served here.
    plain: SharedHttpClient,
    /// Created for the first https request to a host that is not AWS's: parsing the certificates
    /// takes as long as the rest of the start.
    tls: OnceLock<Result<SharedHttpClient, CaBundleError>>,
    /// Trusts only Amazon's roots; `None` if the bundle has none of them.
    amazons: OnceLock<Option<SharedHttpClient>>,
    /// An AWS host's certificate was signed by another CA of the bundle: that of a proxy which reads
    /// TLS, or of a service that imitates AWS.
    needs_bundle: AtomicBool,
}

impl Clients {
    fn tls(&self) -> Result<&SharedHttpClient, CaBundleError> {
        self.tls
            .get_or_init(|| trusted(self.ca_bundle.as_deref()).map(tls_client))
            .as_ref()
            .map_err(Clone::clone)
    }

    /// The client for AWS's hosts, if this URL's is one.
    fn amazons(&self, url: &str) -> Option<&SharedHttpClient> {
        if !is_amazons(url) || self.needs_bundle.load(Ordering::Relaxed) {
            return None;
        }
        let client = self.amazons.get_or_init(|| {
            let (bundle, _) = bundle(self.ca_bundle.as_deref()).ok()?;
            let roots = usable(amazon_roots(&bundle));
            (!roots.is_empty()).then(|| tls_client(roots))
        });
        client.as_ref()
    }
}

/// A client for https that trusts `certificates` (PEM).
fn tls_client(certificates: Vec<u8>) -> SharedHttpClient {
    let context = tls_context(certificates);
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder();
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        tls_connector(connector, &context)
    })
}

fn tls_context(certificates: Vec<u8>) -> TlsContext {
    let trust = TrustStore::empty().with_pem_certificate(certificates);
    TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .expect("the builder does not parse the certificates")
}

/// Respects `HTTPS_PROXY` and `NO_PROXY`.
fn tls_connector(connector: ConnectorBuilder, context: &TlsContext) -> Connector {
    let connector = connector.proxy_config(ProxyConfig::from_env());
    connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context.clone()).build()
}

/// Where distributions keep their certificates: Debian and Alpine, Fedora and Amazon Linux, SUSE,
/// others.
const CA_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaBundleError {
    #[error(
        "no CA bundle found in {}: install ca-certificates or set AWS_CA_BUNDLE",
        CA_BUNDLES[0]
    )]
    None,
    #[error("the CA bundle {0} cannot be read: {1} (correct AWS_CA_BUNDLE or SSL_CERT_FILE)")]
    Unreadable(PathBuf, String),
    #[error("the CA bundle {0} contains no certificate (correct AWS_CA_BUNDLE or SSL_CERT_FILE)")]
    Empty(PathBuf),
}

/// The configured bundle, else the distribution's, and its path.
fn bundle(configured: Option<&Path>) -> Result<(Vec<u8>, &Path), CaBundleError> {
    let usual = || CA_BUNDLES.iter().map(Path::new).find(|path| path.exists());
    let path = configured.or_else(usual).ok_or(CaBundleError::None)?;
    Ok((read(path)?, path))
}

fn read(path: &Path) -> Result<Vec<u8>, CaBundleError> {
    std::fs::read(path).map_err(|error| CaBundleError::Unreadable(path.into(), error.to_string()))
}

/// The certificates of the bundle.
fn trusted(configured: Option<&Path>) -> Result<Vec<u8>, CaBundleError> {
    let (bundle, path) = bundle(configured)?;
    let usable = usable(bundle);
    if usable.is_empty() { Err(CaBundleError::Empty(path.into())) } else { Ok(usable) }
}

/// Checks that the bundle contains a certificate. Whether they are valid shows when they are used:
/// parsing all of them takes as long as the rest of the start.
pub fn check_ca_bundle(path: &Path) -> Result<(), CaBundleError> {
    let bundle = read(path)?;
    if has_certificate(&bundle) { Ok(()) } else { Err(CaBundleError::Empty(path.into())) }
}

/// The certificates that rustls can parse, since the SDK panics at any other. In nearly every
/// bundle these are all, and the bundle stays unchanged.
fn usable(bundle: Vec<u8>) -> Vec<u8> {
    let is_readable =
        |certificate: CertificateDer<'_>| RootCertStore::empty().add(certificate).is_ok();
    let all_are_usable =
        CertificateDer::pem_slice_iter(&bundle).all(|section| section.is_ok_and(is_readable));
    if all_are_usable && has_certificate(&bundle) {
        return bundle;
    }
    let is_usable =
        |section: &&str| CertificateDer::from_pem_slice(section.as_bytes()).is_ok_and(is_readable);
    let text = String::from_utf8_lossy(&bundle);
    text.split_inclusive("-----END CERTIFICATE-----")
        .filter(is_usable)
        .collect::<String>()
        .into_bytes()
}

fn has_certificate(bundle: &[u8]) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    bundle.windows(BEGIN.len()).any(|window| window == BEGIN)
}

#[cfg(test)]
mod tests {
    use aws_smithy_runtime_api::client::runtime_components::RuntimeComponentsBuilder;
    use aws_smithy_types::config_bag::ConfigBag;

    use super::*;

    #[test]
    fn certificates_at_which_the_sdk_would_panic_are_removed() {
        const GOOD: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBbzCCARWgAwIBAgIUVhAExumwYnG/s6XNegjPuyL4yjYwCgYIKoZIzj0EAwIw\n\
        DDEKMAgGA1UEAwwBdDAgFw0yNjExMjIwNjMxNTBaGA8yMTI2MTAyOTA2MzE1MFow\n\
        DDEKMAgGA1UEAwwBdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABFFy2OhMa4VR\n\
        Tgk99HdZKEaTzsITNmZoEzgzQ0wnUOn1avzaMmuxF9KB9I3f7V7JaPF/lAjYsLcq\n\
        G25FBmEmTl6jUzBRMB0GA1UdDgQWBBQEgKYsKpcCM2F2gtjsMuA0S/q1ODAfBgNV\n\
        HSMEGDAWgBQEgKYsKpcCM2F2gtjsMuA0S/q1ODAPBgNVHRMBAf8EBTADAQH/MAoG\n\
        CCqGSM49BAMCA0gAMEUCIQCA7Refjh/WHLUXu0WDN3Nk2hTN4NQ59Ip8uk4USVF4\n\
        RwIgAWvMtXWpn3M91x8Ydtvk0aIHQm5JtQZ1I4ic9+NAgDo=\n\
        -----END CERTIFICATE-----";
        let not_base64 = "-----BEGIN CERTIFICATE-----\n****\n-----END CERTIFICATE-----\n";
        let not_a_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let unfinished = "\n-----BEGIN CERTIFICATE-----\nAAAA\n";
        let mixed = format!(
            "{not_base64}{not_a_certificate}# a comment\n{GOOD}\n{not_base64}{GOOD}{unfinished}"
        );
        let remaining = String::from_utf8(usable(mixed.into_bytes())).unwrap();
        assert_eq!(remaining.matches("BEGIN").count(), 2);
        assert!(remaining.contains(GOOD));
        for unusable in ["", "# no certificate\n", not_base64, not_a_certificate, unfinished] {
            assert_eq!(usable(unusable.as_bytes().to_vec()), b"", "{unusable}");
        }
        let good = format!("{GOOD}\n# \u{fffd}\n{GOOD}\n");
        assert_eq!(usable(good.clone().into_bytes()), good.into_bytes());
        // The SDK parses the bundle when it creates the connector, and would panic here.
        let client = tls_client(remaining.into_bytes());
        assert!(
            client
                .validate_base_client_config(
                    &RuntimeComponentsBuilder::new("test"),
                    &ConfigBag::base()
                )
                .is_ok()
        );
    }
}
