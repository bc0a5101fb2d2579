//! The configuration that the AWS adapters share, and the classification of failed calls.
//!
//! Credentials come from the SDK's whole chain: environment, profile, web identity (IRSA),
//! container (ECS, EKS Pod Identity), instance metadata. The SDK also reads `AWS_ENDPOINT_URL` and
//! `AWS_ENDPOINT_URL_<SERVICE>`.

pub mod answers;
mod credentials;
mod environment;
mod profile;
pub mod s3;
pub mod sqs;

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub use aws_config::SdkConfig;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::identity::IdentityCache;
use aws_config::meta::region::ProvideRegion;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::service_config::ServiceConfigKey;

use super::http::{self, CaBundleError, OneClient};
use super::url::{host_of, is_url, without_userinfo};
use crate::ports::causes::chain;
use credentials::Profile;
pub use profile::load_s3;

/// The limit of a connection attempt, including DNS and TLS.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// The limit of an attempt: a backstop, since the callers have their own limits.
pub const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// Loads the configuration that SQS and S3 share.
///
/// The region is the environment's, else the queue URL's, else the profile's or the instance's.
/// `ca_bundle` is a PEM file of trusted certificates; without one the distribution's is used.
/// `variables` are the environment, without empty variables: the SDK would take an empty one for a
/// value.
///
/// Read timeouts stay unset: connections are pooled per set of timeouts.
pub async fn load(
    queue_url: &str,
    ca_bundle: Option<PathBuf>,
    variables: &[(String, OsString)],
) -> Result<SdkConfig, LoadError> {
    environment::check(variables).await?;
    let mut loader = loader(ca_bundle.as_ref());
    let of_queue = || region_of(queue_url).map(|region| Region::new(region.to_owned()));
    // The SDK's chain is the last choice: it ends at the instance metadata, which can take seconds.
    if let Some(region) = EnvironmentVariableRegionProvider::new().region().await.or_else(of_queue)
    {
        loader = loader.region(region);
    }
    let config = loader.load().await;
    check(&config, ca_bundle.as_ref())?;
    let profile = variables.iter().find(|(name, value)| name == "AWS_PROFILE" && !value.is_empty());
    let profile = profile.map(|(_, value)| Profile {
        setting: "AWS_PROFILE",
        name: value.to_string_lossy().into_owned(),
    });
    let has_web_identity = variables.iter().any(|(name, _)| name == "AWS_WEB_IDENTITY_TOKEN_FILE");
    let chain = SharedCredentialsProvider::new(credentials::chain(&config, has_web_identity));
    let credentials = SharedCredentialsProvider::new(credentials::Checked::new(chain, profile));
    Ok(config.into_builder().credentials_provider(credentials).build())
}

fn loader(ca_bundle: Option<&PathBuf>) -> ConfigLoader {
    aws_config::defaults(BehaviorVersion::v2026_01_12())
        .http_client(OneClient::new(ca_bundle.cloned()))
        .no_credentials()
        .timeout_config(time_limits())
}

fn time_limits() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_LIMIT)
        .operation_attempt_timeout(ATTEMPT_LIMIT)
        .build()
}

/// The credentials, the region and the endpoints of an embedding program's configuration, with our
/// own connections and our own cache of credentials: those that another runtime drives or refreshes
/// could wait for a handler, and a heartbeat with it.
pub fn with_own_connections(
    config: &SdkConfig,
    ca_bundle: Option<PathBuf>,
) -> Result<SdkConfig, LoadError> {
    check(config, ca_bundle.as_ref())?;
    let own = config.clone().into_builder().timeout_config(time_limits());
    let own = own.identity_cache(IdentityCache::lazy().build());
    Ok(own.http_client(OneClient::new(ca_bundle)).build())
}

/// Refuses a configuration that no request could use.
fn check(config: &SdkConfig, ca_bundle: Option<&PathBuf>) -> Result<(), LoadError> {
    match config.region() {
        None => return Err(LoadError::NoRegion),
        Some(region) if !environment::is_region(region.as_ref()) => {
            let why = format!(
                "is {:?}; it must be the name of a region, such as eu-west-1",
                region.as_ref()
            );
            return Err(LoadError::Setting { name: "the region".to_owned(), why });
        }
        Some(_) => {}
    }
    // The SDK reports a bad endpoint at each request, and quotes the whole request, including the
    // receipt handle.
    for endpoint in ["SQS", "S3"].into_iter().filter_map(|service| custom_endpoint(config, service))
    {
        if !is_url(&endpoint) || !environment::is_endpoint(&endpoint) {
            return Err(LoadError::Endpoint(endpoint));
        }
    }
    // Only S3 needs this check: a bad CA bundle stops the first call to the queue, before a message
    // is received.
    if let Some(path) = ca_bundle
        && !custom_endpoint(config, "S3").is_some_and(|endpoint| endpoint.starts_with("http:"))
    {
        http::check_ca_bundle(path)?;
    }
    environment::check_addressing(config)?;
    environment::check_variants(config)
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("the AWS region is not set: set AWS_REGION")]
    NoRegion,
    #[error("{name} {why}")]
    Setting { name: String, why: String },
    #[error("AWS_ENDPOINT_URL, or endpoint_url of the profile, or that of a service, is {:?}, which is not the URL of a server; write for example http://localhost:4566", without_userinfo(.0))]
    Endpoint(String),
    #[error(transparent)]
    CaBundle(#[from] CaBundleError),
}

/// The endpoint that the environment or the profile sets for `service` (`SQS`, `S3`), if any.
pub fn custom_endpoint(config: &SdkConfig, service: &str) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id(service)
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build();
    let of_service =
        config.service_config().and_then(|of| of.load_config(key.expect("all three are set")));
    of_service.or_else(|| config.endpoint_url().map(str::to_owned))
}

/// Whether requests have the bucket in the path, instead of the host name. `addressing_style` in
/// the profile's section `s3` or `AWS_S3_ADDRESSING_STYLE` decides; by default, custom endpoints
/// get the path style, since few of them support virtual-hosted buckets.
pub fn is_path_style(config: &SdkConfig) -> bool {
    match addressing_style(config).as_deref() {
        Some("path") => true,
        Some("virtual") => false,
        Some(_) | None => custom_endpoint(config, "S3").is_some(),
    }
}

fn addressing_style(config: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("S3")
        .env("AWS_S3_ADDRESSING_STYLE")
        .profile("s3")
        .build();
    let value = config.service_config()?.load_config(key.expect("all three are set"))?;
    // The value of a section is its lines.
    let of_section = value.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "addressing_style").then(|| value.trim())
    });
    of_section
        .or_else(|| Some(value.trim()).filter(|value| !value.contains('=')))
        .map(str::to_lowercase)
}

/// The region that a queue URL names: `https://sqs.<region>.…`,
/// `https://<region>.queue.amazonaws.com/…`.
pub fn region_of(queue_url: &str) -> Option<&str> {
    let host = host_of(queue_url)?;
    if host == "queue.amazonaws.com" {
        return Some("us-east-1");
    }
    let is_region = |label: &&str| {
        label.matches('-').count() >= 2
            && label.ends_with(|last: char| last.is_ascii_digit())
            && !label.contains(':')
    };
    let before_queue = host.split_once(".queue.amazonaws.com").map(|(region, _)| region);
    let mut after_sqs =
        host.split('.').skip_while(|label| !matches!(*label, "sqs" | "sqs-fips")).skip(1);
    before_queue.or_else(|| after_sqs.next()).filter(is_region)
}

/// Why a call failed, in terms that all services share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The service, or a proxy in front of it, answered with an error.
    Refused { code: Option<String>, message: Option<String>, status: u16 },
    /// The call cannot be made like this: no credentials, no CA bundle.
    Misconfigured(String),
    /// No readable answer: network, TLS, timeout, or credentials that are unavailable for now.
    Unanswered(String),
}

/// Whether a call is allowed; the text is the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    Allowed,
    Denied(String),
    Unknown(String),
}

impl Failure {
    pub fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        if let SdkError::ServiceError(answer) = error {
            let status = answer.raw().status();
            // The SDK reports an unreadable success as a service error, too.
            if status.is_success() {
                let why = causes(error);
                return Self::Unanswered(format!(
                    "the body of an HTTP {} answer cannot be read: {why}",
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

    /// Credentials and CA bundles fail where the network does; the difference is in the error's
    /// sources.
    fn of_unanswered(error: &(dyn Error + 'static)) -> Self {
        let why = causes(error);
        // The SDK's endpoint rules begin their errors with this prefix.
        if chain(error).any(<dyn Error>::is::<CaBundleError>)
            || why.starts_with("Invalid Configuration: ")
        {
            return Self::Misconfigured(why);
        }
        let Some(credentials) =
            chain(error).find_map(<dyn Error>::downcast_ref::<CredentialsError>)
        else {
            let advice = "set AWS_CA_BUNDLE or SSL_CERT_FILE to the trusted certificates";
            return Self::Unanswered(if why.contains("UnknownIssuer") {
                format!("{why} ({advice})")
            } else {
                why
            });
        };
        if let CredentialsError::CredentialsNotLoaded(_) = credentials {
            let advice = "give the pod a role (IRSA, EKS Pod Identity) or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
            return Self::Misconfigured(format!("no credentials: {advice}"));
        }
        if credentials.source().is_some_and(<dyn Error>::is::<std::io::Error>) {
            let file = "check the file that AWS_WEB_IDENTITY_TOKEN_FILE or AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE names";
            return Self::Misconfigured(format!("{why} ({file})"));
        }
        let is_refused = ["AccessDenied", "IMDS is disabled"].iter().any(|text| why.contains(text));
        if is_refused || matches!(credentials, CredentialsError::InvalidConfiguration(_)) {
            return Self::Misconfigured(why);
        }
        // STS, the Pod Identity agent or the instance metadata does not answer.
        Self::Unanswered(format!("no credentials at the moment: {why}"))
    }
}

/// Whether a call that failed may still have taken effect. A call that was never sent, or that the
/// service rejected, has not.
pub fn may_have_succeeded<E>(error: &SdkError<E, HttpResponse>) -> bool
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ConstructionFailure(_) => false,
        SdkError::DispatchFailure(_) => {
            let never_sent = |source: &(dyn Error + 'static)| {
                let connecting = source.downcast_ref::<hyper_util::client::legacy::Error>();
                source.is::<CredentialsError>()
                    || source.is::<CaBundleError>()
                    || connecting.is_some_and(hyper_util::client::legacy::Error::is_connect)
            };
            !chain(error).any(never_sent)
        }
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status();
            let throttled = answer.err().code().is_some_and(|code| code.contains("Throttl"));
            (status.is_server_error() || status.is_success()) && !throttled
        }
        SdkError::TimeoutError(_) | SdkError::ResponseError(_) | _ => true,
    }
}

/// The causes of an SDK error on one line, without wrappers such as "dispatch failure: other".
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut line: Vec<String> = Vec::new();
    for source in chain(error).skip(1).filter(|source| !source.is::<ConnectorError>()) {
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

/// Configurations for the adapters' tests, without environment or network.
#[cfg(test)]
pub(super) mod testing {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use aws_credential_types::Credentials;
    use aws_smithy_runtime_api::client::http::{
        HttpClient, HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
    use aws_smithy_types::body::SdkBody;

    use super::*;

    /// Gives the same answer to every request and counts them.
    #[derive(Debug, Clone)]
    pub struct Canned {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
        after: Duration,
        pub requests: Arc<AtomicUsize>,
        /// The names of the last request's headers.
        pub sent: Arc<Mutex<Vec<String>>>,
        /// The last request's address.
        pub uri: Arc<Mutex<String>>,
        /// The bodies of all requests.
        pub bodies: Arc<Mutex<Vec<String>>>,
    }

    impl Canned {
        /// `query_error` is the value of the header that carries SQS's older error codes.
        pub fn new(
            status: u16,
            query_error: Option<&'static str>,
            body: impl Into<String>,
        ) -> Self {
            // AWS always sends these headers.
            let sent = [("x-amzn-requestid", "r"), ("x-amz-request-id", "r"), ("etag", "\"e\"")];
            let sent = sent.into_iter().chain(query_error.map(|code| ("x-amzn-query-error", code)));
            let headers = sent.map(|(name, value)| (name, value.to_owned())).collect();
            let body = body.into();
            Self {
                status,
                headers,
                body,
                after: Duration::ZERO,
                requests: Arc::default(),
                sent: Arc::default(),
                uri: Arc::default(),
                bodies: Arc::default(),
            }
        }

        /// Sets this header, or removes it if the value is empty.
        pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
            self.headers.retain(|(other, _)| *other != name);
            self.headers.extend(Some((name, value.into())).filter(|(_, value)| !value.is_empty()));
            self
        }

        /// Answers each request after this delay.
        pub fn after(self, after: Duration) -> Self {
            Self { after, ..self }
        }

        pub fn config(&self) -> SdkConfig {
            let connector = SharedHttpConnector::new(self.clone());
            config(http_client_fn(move |_, _| connector.clone()))
        }
    }

    impl HttpConnector for Canned {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            self.requests.fetch_add(1, Ordering::Relaxed);
            let sent = request.headers().iter().map(|(name, _)| name.to_owned()).collect();
            *self.sent.lock().unwrap() = sent;
            request.uri().clone_into(&mut self.uri.lock().unwrap());
            let body = String::from_utf8_lossy(request.body().bytes().unwrap_or_default()).into();
            self.bodies.lock().unwrap().push(body);
            let status = self.status.try_into().expect("a test's status is valid");
            let mut response = HttpResponse::new(status, SdkBody::from(self.body.as_str()));
            for (name, value) in &self.headers {
                response.headers_mut().insert(*name, value.clone());
            }
            let after = self.after;
            HttpConnectorFuture::new(async move {
                tokio::time::sleep(after).await;
                Ok(response)
            })
        }
    }

    /// The real client.
    pub fn real(ca_bundle: Option<PathBuf>) -> SdkConfig {
        config(OneClient::new(ca_bundle))
    }

    fn config(client: impl HttpClient + 'static) -> SdkConfig {
        let credentials = Credentials::builder()
            .access_key_id("a")
            .secret_access_key("s")
            .provider_name("test")
            .build();
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
            (
                "https://vpce-0a1b-2c3d.sqs.eu-west-1.vpce.amazonaws.com/123456789012/q",
                Some("eu-west-1"),
            ),
            (
                "http://sqs.eu-west-1.localhost.localstack.cloud:4566/000000000000/q",
                Some("eu-west-1"),
            ),
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
    fn bad_credentials_are_a_misconfiguration_and_network_errors_are_not() {
        let of = |source: Box<dyn Error + Send + Sync>| {
            Failure::of(&SdkError::<ErrorMetadata, HttpResponse>::dispatch_failure(
                ConnectorError::other(source, None),
            ))
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
    fn causes_are_one_line_without_the_sdks_wrappers() {
        let io = std::io::Error::other("first line\n  second line");
        let error = SdkError::<ErrorMetadata, HttpResponse>::dispatch_failure(ConnectorError::io(
            io.into(),
        ));
        assert_eq!(Failure::of(&error), Failure::Unanswered("first line second line".into()));
    }
}
