//! Detects successes that do not come from AWS: a captive portal, a proxy or a sidecar may answer
//! 200 with its own page.
//!
//! Such an answer becomes a connection error before the SDK reads it. It must not count as an
//! extended lease, a deleted message or a stored result.
//!
//! | | SQS | S3 |
//! |---|---|---|
//! | request id, at AWS's own hosts | `x-amzn-requestid` | `x-amz-request-id` |
//! | eTag | | of GetObject, PutObject and UploadPart |
//! | a part of the object | | only if the request has a range |
//! | body | empty, or a JSON object of members that SQS has, and none of an error | of PUT and DELETE: empty; of others, GetObject excepted: XML, and not HTML |
//!
//! Other stores send fewer: Google Cloud Storage, Cloudflare R2, Alibaba OSS and Tencent COS name
//! their request ids differently, and some queues have none. So a request id is required only at
//! AWS hosts.

use aws_config::SdkConfig;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::{
    RuntimeComponents, RuntimeComponentsBuilder,
};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::retry::ErrorKind;

use crate::adapters::url::host_of;

/// The service that must have sent the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Sqs,
    S3,
}

/// The HTTP client of a configuration, which rejects answers that do not come from `service`.
pub fn checked(config: &SdkConfig, service: Service) -> Option<SharedHttpClient> {
    config.http_client().map(|inner| SharedHttpClient::new(Checked { inner, service }))
}

/// Whether the host belongs to AWS.
pub fn is_at_aws(url: &str) -> bool {
    let host = host_of(url).unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    [".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".api.amazonwebservices.com.cn"]
        .iter()
        .any(|domain| host.ends_with(domain))
}

#[derive(Debug)]
struct Checked<T> {
    inner: T,
    service: Service,
}

impl HttpClient for Checked<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let inner = self.inner.http_connector(settings, components);
        SharedHttpConnector::new(Checked { inner, service: self.service })
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.inner.validate_base_client_config(components, config)
    }

    fn validate_final_config(
        &self,
        components: &RuntimeComponents,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.inner.validate_final_config(components, config)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.inner.connector_metadata()
    }
}

impl HttpConnector for Checked<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let expected = Expected::of(self.service, &request);
        let answer = self.inner.call(request);
        HttpConnectorFuture::new(async move { expected.checked(answer.await?).await })
    }
}

/// What the answer to a request must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Expected {
    service: Service,
    request_id: bool,
    etag: bool,
    /// The request has a range.
    part: bool,
    body: Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// An object: any bytes, streamed and never held in memory as a whole.
    Object,
    Json,
    Xml,
    Empty,
}

impl Expected {
    fn of(service: Service, request: &HttpRequest) -> Self {
        let is_of = |operation: &str| request.uri().contains(&format!("x-id={operation}"));
        let (etag, body) = match (service, request.method()) {
            (Service::Sqs, _) => (false, Body::Json),
            (Service::S3, "GET") if is_of("GetObject") => (true, Body::Object),
            (Service::S3, "PUT") if is_of("CopyObject") => (false, Body::Xml),
            (Service::S3, "PUT") if request.uri().contains("?tagging") => (false, Body::Empty),
            (Service::S3, "PUT") => (true, Body::Empty),
            (Service::S3, "DELETE") => (false, Body::Empty),
            (Service::S3, _) => (false, Body::Xml),
        };
        let part = request.headers().contains_key("range");
        Self { service, request_id: is_at_aws(request.uri()), etag, part, body }
    }

    /// The unchanged answer, if it is an error of the service or has everything that is expected.
    async fn checked(self, mut answer: HttpResponse) -> Result<HttpResponse, ConnectorError> {
        let status = answer.status();
        let is_object = status.is_success() && self.body == Body::Object;
        if !is_object {
            let body = ByteStream::new(answer.take_body());
            *answer.body_mut() = SdkBody::from(collect(body).await?);
        }
        if !status.is_success() {
            return Ok(answer);
        }
        let problem = self
            .wrong_part(&answer)
            .or_else(|| self.missing_header(&answer))
            .or_else(|| self.body.problem(answer.body().bytes().unwrap_or_default()));
        match problem {
            None => Ok(answer),
            Some(problem) => {
                let name = match self.service {
                    Service::Sqs => "SQS",
                    Service::S3 => "S3",
                };
                let why = format!(
                    "the HTTP {} answer is not from {name}: {problem} (does a proxy or a portal answer instead?)",
                    status.as_u16()
                );
                Err(ConnectorError::other(why.into(), Some(ErrorKind::TransientError)))
            }
        }
    }

    fn wrong_part(self, answer: &HttpResponse) -> Option<String> {
        let (is_part, names_it) =
            (answer.status().as_u16() == 206, answer.headers().contains_key("content-range"));
        if (is_part || names_it) && !self.part {
            Some("it is partial, but the whole was requested".to_owned())
        } else {
            (is_part && !names_it).then(|| "it has no Content-Range".to_owned())
        }
    }

    fn missing_header(self, answer: &HttpResponse) -> Option<String> {
        let request_id = match self.service {
            Service::Sqs => "x-amzn-requestid",
            Service::S3 => "x-amz-request-id",
        };
        let wanted = [(self.request_id, request_id), (self.etag, "etag")];
        let is_missing = |name: &str| {
            answer.headers().get(name).is_none_or(|value| value.trim_matches('"').is_empty())
        };
        let (_, name) =
            wanted.into_iter().find(|(is_wanted, name)| *is_wanted && is_missing(name))?;
        Some(format!("it has no {name}"))
    }
}

impl Body {
    fn problem(self, bytes: &[u8]) -> Option<String> {
        let text = bytes.trim_ascii();
        let begins = |word: &str| {
            text.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word.as_bytes()))
        };
        let (is_right, what) = match self {
            Self::Object => (true, ""),
            Self::Empty => (text.is_empty(), "its body is not empty"),
            Self::Json => {
                let members = || serde_json::from_slice::<serde_json::Map<_, _>>(text).ok();
                let members =
                    if text.is_empty() { Some(serde_json::Map::new()) } else { members() };
                let is_of_sqs = |name: &String| {
                    name.starts_with(|first: char| first.is_ascii_uppercase())
                        && !["Code", "Error", "Errors", "Fault", "Message", "Status"]
                            .contains(&name.as_str())
                };
                match members {
                    None => (false, "its body is not a JSON object"),
                    Some(members) => (
                        members.keys().all(is_of_sqs),
                        "its body has a field that no answer of SQS has",
                    ),
                }
            }
            Self::Xml => {
                let is_html = begins("<html") || begins("<!doctype");
                (text.is_empty() || (text.starts_with(b"<") && !is_html), "its body is not XML")
            }
        };
        (!is_right).then(|| what.to_owned())
    }
}

/// Larger than any answer that is not an object, such as a message of 1 MiB with every byte
/// escaped, or a thousand keys of 1 KiB.
const LONGEST: usize = 16 << 20;

async fn collect(mut body: ByteStream) -> Result<Vec<u8>, ConnectorError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| {
            ConnectorError::other(error.into(), Some(ErrorKind::TransientError))
        })?;
        if bytes.len() + chunk.len() > LONGEST {
            let why = format!("the answer is longer than {} MiB", LONGEST >> 20);
            return Err(ConnectorError::other(why.into(), Some(ErrorKind::TransientError)));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
