//! What the AWS adapters share: one configuration, one HTTP client, one reading of failed calls.
//!
//! Credentials come from the SDK's whole chain: environment, profile, web identity (IRSA), container
//! (ECS, EKS Pod Identity), instance metadata. `AWS_ENDPOINT_URL` and `AWS_ENDPOINT_URL_<SERVICE>` are
//! the SDK's own too.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::ProvideRegion;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::service_config::ServiceConfigKey;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Until a connection stands, its name looked up and TLS agreed.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Until an attempt is answered: a backstop, the callers have limits of their own.
pub const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// Loads the configuration that SQS and S3 share.
///
/// The region is the environment's, else the queue URL's, else the profile's or the instance's. `ca_bundle`
/// is a PEM file of trusted certificates; without one the distribution's is taken.
///
/// Read timeouts stay unset for all: connections are pooled per set of timeouts.
pub async fn load(queue_url: &str, ca_bundle: Option<PathBuf>) -> Result<SdkConfig, LoadError> {
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_LIMIT).operation_attempt_timeout(ATTEMPT_LIMIT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .http_client(OneClient(Arc::new(Clients::new(ca_bundle))))
        .timeout_config(timeouts);
    let of_queue = || region_of(queue_url).map(|region| Region::new(region.to_owned()));
    // Left to the SDK only if neither says it: its chain ends at the instance's metadata, which can take seconds.
    if let Some(region) = EnvironmentVariableRegionProvider::new().region().await.or_else(of_queue) {
        loader = loader.region(region);
    }
    let config = loader.load().await;
    if config.region().is_none() {
        return Err(LoadError::NoRegion);
    }
    // The SDK finds out at each request, and then quotes all of it: the receipt handle too.
    for endpoint in ["SQS", "S3"].into_iter().filter_map(|service| custom_endpoint(&config, service)) {
        if !is_http(&endpoint) {
            return Err(LoadError::Endpoint(endpoint));
        }
    }
    Ok(config)
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("no AWS region is known: set AWS_REGION")]
    NoRegion,
    #[error("AWS_ENDPOINT_URL, or that of a service, is {0:?}; it looks like http://localhost:4566")]
    Endpoint(String),
}

/// The endpoint that the environment or the profile sets for `service` (`SQS`, `S3`), if any.
pub fn custom_endpoint(config: &SdkConfig, service: &str) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id(service).env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    let of_service = config.service_config().and_then(|of| of.load_config(key.expect("all three are set")));
    of_service.or_else(|| config.endpoint_url().map(str::to_owned))
}

/// The region that a queue URL names: `https://sqs.<region>.…`, `https://<region>.queue.amazonaws.com/…`.
pub fn region_of(queue_url: &str) -> Option<&str> {
    let host = host_of(queue_url)?;
    if host == "queue.amazonaws.com" {
        return Some("us-east-1");
    }
    let is_region = |label: &&str| {
        label.matches('-').count() >= 2 && label.ends_with(|last: char| last.is_ascii_digit()) && !label.contains(':')
    };
    let before_queue = host.split_once(".queue.amazonaws.com").map(|(region, _)| region);
    let mut after_sqs = host.split('.').skip_while(|label| !matches!(*label, "sqs" | "sqs-fips")).skip(1);
    before_queue.or_else(|| after_sqs.next()).filter(is_region)
}

/// Host and port of a URL.
pub fn host_of(url: &str) -> Option<&str> {
    url.split_once("://")?.1.split(['/', '?', '#']).next().filter(|host| !host.is_empty())
}

/// A URL that a request can be sent to, as far as its scheme and host say.
pub fn is_http(url: &str) -> bool {
    let host_is_sound = |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
    (url.starts_with("http://") || url.starts_with("https://")) && host_of(url).is_some_and(host_is_sound)
}

/// Why a call failed, as far as all services tell it alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The service, or something on the way to it, answered and said no.
    Refused { code: Option<String>, message: Option<String>, status: u16 },
    /// The call cannot be made like this: no credentials, no CA bundle.
    Misconfigured(String),
    /// No answer, or none that can be read: network, TLS, out of time, or credentials that cannot be had just now.
    Unanswered(String),
}

impl Failure {
    pub fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        if let SdkError::ServiceError(answer) = error {
            let status = answer.raw().status();
            // For the SDK that is an error of the service too.
            if status.is_success() {
                let why = causes(error);
                return Self::Unanswered(format!(
                    "HTTP {} came with something that cannot be read: {why}",
                    status.as_u16()
                ));
            }
            return Self::Refused {
                code: answer.err().code().map(str::to_owned),
                message: answer.err().message().map(one_line),
                status: status.as_u16(),
            };
        }
        if let SdkError::ConstructionFailure(_) = error {
            return Self::Misconfigured(causes(error));
        }
        Self::of_unanswered(error)
    }

    /// Credentials and CA bundles fail where the network does; the difference is in the error's sources.
    fn of_unanswered(error: &(dyn Error + 'static)) -> Self {
        let why = causes(error);
        if sources(error).any(<dyn Error>::is::<CaBundleError>) {
            return Self::Misconfigured(why);
        }
        let Some(credentials) = sources(error).find_map(<dyn Error>::downcast_ref::<CredentialsError>) else {
            let advice = "AWS_CA_BUNDLE or SSL_CERT_FILE names the trusted certificates";
            return Self::Unanswered(if why.contains("UnknownIssuer") { format!("{why} ({advice})") } else { why });
        };
        if let CredentialsError::CredentialsNotLoaded(_) = credentials {
            let advice =
                "give the pod a role (IRSA, EKS Pod Identity) or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
            return Self::Misconfigured(format!("no credentials: {advice}"));
        }
        if credentials.source().is_some_and(<dyn Error>::is::<std::io::Error>) {
            let file = "the file of AWS_WEB_IDENTITY_TOKEN_FILE or AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
            return Self::Misconfigured(format!("{why} ({file})"));
        }
        let is_refused = ["AccessDenied", "IMDS is disabled"].iter().any(|text| why.contains(text));
        if is_refused || matches!(credentials, CredentialsError::InvalidConfiguration(_)) {
            return Self::Misconfigured(why);
        }
        // STS, the Pod Identity agent or the instance's metadata does not answer.
        Self::Unanswered(format!("no credentials for now: {why}"))
    }
}

/// The causes of an SDK's error on one line, without its own "dispatch failure: other" and the like.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut line: Vec<String> = Vec::new();
    for source in sources(error).skip(1).filter(|source| !source.is::<ConnectorError>()) {
        let text = one_line(&source.to_string());
        if !line.last().is_some_and(|last| last.contains(&text)) {
            line.push(text);
        }
    }
    if line.is_empty() { error.to_string() } else { line.join(": ") }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An error and what caused it, outermost first.
fn sources<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The one HTTP client of all services and of the credential chain.
#[derive(Debug)]
struct OneClient(Arc<Clients>);

impl HttpClient for OneClient {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let (clients, settings, components) = (self.0.clone(), settings.clone(), components.clone());
        SharedHttpConnector::new(ByScheme { clients, settings, components })
    }
}

/// Sends a request by plain TCP or by TLS, as its URL says.
#[derive(Debug)]
struct ByScheme {
    clients: Arc<Clients>,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpConnector for ByScheme {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = if request.uri().starts_with("https:") { self.clients.tls() } else { Ok(&self.clients.plain) };
        match client {
            Ok(client) => client.http_connector(&self.settings, &self.components).call(request),
            Err(error) => HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        }
    }
}

#[derive(Debug)]
struct Clients {
    ca_bundle: Option<PathBuf>,
    /// Never through a proxy: credentials of containers and instances are served here.
    plain: SharedHttpClient,
    /// Made for the first https request: reading the certificates takes as long as all the rest of the start.
    tls: OnceLock<Result<SharedHttpClient, CaBundleError>>,
}

impl Clients {
    fn new(ca_bundle: Option<PathBuf>) -> Self {
        Self { ca_bundle, plain: Builder::new().build_http(), tls: OnceLock::new() }
    }

    fn tls(&self) -> Result<&SharedHttpClient, CaBundleError> {
        self.tls.get_or_init(|| trusted(self.ca_bundle.as_deref()).map(tls_client)).as_ref().map_err(Clone::clone)
    }
}

/// A client for https that trusts `certificates` (PEM) and heeds `HTTPS_PROXY` and `NO_PROXY`.
fn tls_client(certificates: Vec<u8>) -> SharedHttpClient {
    let trust = TrustStore::empty().with_pem_certificate(certificates);
    let context = TlsContext::builder().with_trust_store(trust).build().expect("certificates are not looked at yet");
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(ProxyConfig::from_env());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context.clone()).build()
    })
}

/// Where distributions keep their certificates: Debian and Alpine, Fedora and Amazon Linux, SUSE, others.
const CA_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum CaBundleError {
    #[error(
        "no CA bundle is where distributions keep it ({}): install ca-certificates or set AWS_CA_BUNDLE",
        CA_BUNDLES[0]
    )]
    None,
    #[error("the CA bundle {0} cannot be read: {1} (set AWS_CA_BUNDLE or SSL_CERT_FILE to another)")]
    Unreadable(PathBuf, String),
    #[error("the CA bundle {0} holds no certificate (set AWS_CA_BUNDLE or SSL_CERT_FILE to another)")]
    Empty(PathBuf),
}

/// The certificates of the configured bundle, else of the first that is there.
fn trusted(configured: Option<&Path>) -> Result<Vec<u8>, CaBundleError> {
    let usual = || CA_BUNDLES.iter().map(Path::new).find(|path| path.exists());
    let path = configured.or_else(usual).ok_or(CaBundleError::None)?;
    let bundle = std::fs::read(path).map_err(|error| CaBundleError::Unreadable(path.into(), error.to_string()))?;
    let usable = usable(&String::from_utf8_lossy(&bundle));
    if usable.is_empty() { Err(CaBundleError::Empty(path.into())) } else { Ok(usable.into_bytes()) }
}

/// The certificates that rustls can read: the SDK panics at the first that it cannot.
fn usable(bundle: &str) -> String {
    let is_usable = |section: &&str| {
        CertificateDer::from_pem_slice(section.as_bytes())
            .is_ok_and(|certificate| RootCertStore::empty().add(certificate).is_ok())
    };
    bundle.split_inclusive("-----END CERTIFICATE-----").filter(is_usable).collect()
}

/// Configurations for the adapters' tests, without environment or network.
#[cfg(test)]
pub(super) mod testing {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_credential_types::Credentials;
    use aws_credential_types::provider::SharedCredentialsProvider;
    use aws_smithy_runtime_api::client::http::http_client_fn;
    use aws_smithy_types::body::SdkBody;

    use super::*;

    /// Gives the same answer to every request and counts them.
    #[derive(Debug, Clone)]
    pub struct Canned {
        status: u16,
        query_error: Option<&'static str>,
        body: String,
        pub requests: Arc<AtomicUsize>,
    }

    impl Canned {
        /// `query_error` is the value of the header that carries SQS's older error codes.
        pub fn new(status: u16, query_error: Option<&'static str>, body: impl Into<String>) -> Self {
            Self { status, query_error, body: body.into(), requests: Arc::default() }
        }

        pub fn config(&self) -> SdkConfig {
            let connector = SharedHttpConnector::new(self.clone());
            config(http_client_fn(move |_, _| connector.clone()))
        }
    }

    impl HttpConnector for Canned {
        fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
            self.requests.fetch_add(1, Ordering::Relaxed);
            let status = self.status.try_into().expect("a test's status is valid");
            let mut response = HttpResponse::new(status, SdkBody::from(self.body.as_str()));
            if let Some(code) = self.query_error {
                response.headers_mut().insert("x-amzn-query-error", code);
            }
            HttpConnectorFuture::ready(Ok(response))
        }
    }

    /// The real client.
    pub fn real(ca_bundle: Option<PathBuf>) -> SdkConfig {
        config(OneClient(Arc::new(Clients::new(ca_bundle))))
    }

    fn config(client: impl HttpClient + 'static) -> SdkConfig {
        let credentials =
            Credentials::builder().access_key_id("a").secret_access_key("s").provider_name("test").build();
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::from_static("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .http_client(client)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use aws_smithy_runtime_api::client::runtime_components::RuntimeComponentsBuilder;
    use aws_smithy_types::config_bag::ConfigBag;
    use aws_smithy_types::error::ErrorMetadata;

    use super::*;

    #[test]
    fn a_queue_url_names_its_region() {
        let table = [
            ("https://sqs.eu-west-1.amazonaws.com/123456789012/q", Some("eu-west-1")),
            ("https://sqs.us-gov-west-1.amazonaws.com/123456789012/q", Some("us-gov-west-1")),
            ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q", Some("cn-north-1")),
            ("https://eu-west-1.queue.amazonaws.com/123456789012/q", Some("eu-west-1")),
            ("https://queue.amazonaws.com/123456789012/q", Some("us-east-1")),
            ("https://sqs-fips.us-east-2.amazonaws.com/123456789012/q", Some("us-east-2")),
            ("https://sqs.eu-west-1.api.aws/123456789012/q", Some("eu-west-1")),
            ("https://vpce-0a1b-2c3d.sqs.eu-west-1.vpce.amazonaws.com/123456789012/q", Some("eu-west-1")),
            ("http://sqs.eu-west-1.localhost.localstack.cloud:4566/000000000000/q", Some("eu-west-1")),
            ("http://localhost:4566/000000000000/q", None),
            ("http://sqs.my-own-host:9324/queue/q", None),
            ("http://sqs:9324/queue/q", None),
            ("arn:aws:sqs:eu-west-1:123456789012:q", None),
            ("", None),
        ];
        for (queue_url, region) in table {
            assert_eq!(region_of(queue_url), region, "{queue_url}");
        }
    }

    #[test]
    fn an_endpoint_needs_scheme_and_host() {
        for good in ["http://localhost:4566", "https://[::1]:443/", "http://a.b/c d", "https://x?y"] {
            assert!(is_http(good), "{good}");
        }
        for bad in ["localhost:4566", "//localhost", "http://", "http:///q", "ftp://a/b", "http://a b/c", "http://u@h/"]
        {
            assert!(!is_http(bad), "{bad}");
        }
    }

    #[test]
    fn a_bundle_is_freed_of_what_would_make_the_sdk_panic() {
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
        let mixed = format!("{not_base64}{not_a_certificate}# a comment\n{GOOD}\n{not_base64}{GOOD}{unfinished}");
        let left = usable(&mixed);
        assert_eq!(left.matches("BEGIN").count(), 2);
        assert!(left.contains(GOOD));
        assert_eq!(usable(""), "");
        // The SDK parses it when the connector is made, and would panic here.
        let client = tls_client(left.into_bytes());
        assert!(client.validate_base_client_config(&RuntimeComponentsBuilder::new("test"), &ConfigBag::base()).is_ok());
    }

    #[test]
    fn credentials_are_told_from_the_network() {
        let of = |source: Box<dyn Error + Send + Sync>| {
            Failure::of(&SdkError::<ErrorMetadata, HttpResponse>::dispatch_failure(ConnectorError::other(source, None)))
        };
        let io = || std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let hopeless: [CredentialsError; 4] = [
            CredentialsError::not_loaded("nothing is set"),
            CredentialsError::invalid_configuration("a loop in the profile"),
            CredentialsError::provider_error(io()),
            CredentialsError::provider_error("unhandled error (AccessDenied)"),
        ];
        for error in hopeless {
            let text = format!("{error:?}");
            assert!(matches!(of(error.into()), Failure::Misconfigured(_)), "{text}");
        }
        let may_pass: [Box<dyn Error + Send + Sync>; 4] = [
            CredentialsError::provider_error("503 from STS").into(),
            CredentialsError::provider_timed_out(CONNECT_LIMIT).into(),
            CredentialsError::unhandled("connection refused").into(),
            io().into(),
        ];
        for error in may_pass {
            let text = format!("{error:?}");
            assert!(matches!(of(error), Failure::Unanswered(_)), "{text}");
        }
    }

    #[test]
    fn causes_are_one_line_without_the_sdks_frame() {
        let io = std::io::Error::other("first line\n  second line");
        let error = SdkError::<ErrorMetadata, HttpResponse>::dispatch_failure(ConnectorError::io(io.into()));
        assert_eq!(Failure::of(&error), Failure::Unanswered("first line second line".into()));
    }
}
