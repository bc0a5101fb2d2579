//! The request for one object or message. Its headers are those of the daemon of Elastic Beanstalk's
//! worker environments, `aws-sqsd` (AWS Elastic Beanstalk, "Elastic Beanstalk worker environments").

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request};
use serde::Deserialize;

use super::address::HttpAddress;
use crate::ports::job_facts::JobFacts;

/// The body of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum HttpBody {
    /// The content of `JOB_FILE`, as JSON
    #[default]
    Job,
    /// The message's body, as it was sent
    Message,
}

pub(super) fn request(
    address: &HttpAddress,
    job: &JobFacts,
    kind: HttpBody,
    body: Bytes,
    progress_url: Option<&str>,
) -> Request<Full<Bytes>> {
    let mut headers = headers(job);
    headers.insert(CONTENT_TYPE, content_type(job, kind));
    let authority = address.authority();
    let progress = HeaderName::from_static("x-leasehold-progress-url");
    for (name, value) in [(HOST, Some(&*authority)), (progress, progress_url)] {
        if let Some(value) = value.and_then(header_value) {
            headers.insert(name, value);
        }
    }
    let mut request = Request::new(Full::from(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = address.path().parse().expect("a part of a URI");
    *request.headers_mut() = headers;
    request
}

fn content_type(job: &JobFacts, kind: HttpBody) -> HeaderValue {
    let senders = job.message.attributes.get("content-type").filter(|_| kind == HttpBody::Message);
    let senders = senders.filter(|it| it.len() <= LONGEST_VALUE);
    let senders = senders.and_then(|it| header_value(it));
    // The default of aws-sqsd, also for a body that is not JSON.
    senders.unwrap_or(HeaderValue::from_static("application/json"))
}

fn headers(job: &JobFacts) -> HeaderMap {
    let queue = job.message.queue_url.as_deref().and_then(|url| url.rsplit('/').next());
    let first_received_at = job.message.first_received_at;
    let first_received_at =
        first_received_at.map(|at| humantime::format_rfc3339_seconds(at).to_string());
    let count = job.receive_count.to_string();
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    for (name, value) in [
        ("x-aws-sqsd-msgid", Some(&*job.message_id)),
        ("x-aws-sqsd-queue", queue),
        ("x-aws-sqsd-first-received-at", first_received_at.as_deref()),
        ("x-aws-sqsd-receive-count", Some(&*count)),
        ("x-aws-sqsd-sender-id", job.message.sqs.system.get("SenderId").map(String::as_str)),
    ] {
        if let Some(value) = value.and_then(header_value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    add_senders(&mut headers, job);
    headers
}

/// `aws-sqsd` comes first: some workers look for it at the beginning.
const AGENT: &str = concat!("aws-sqsd/2.0 leasehold/", env!("CARGO_PKG_VERSION"));

/// Adds the headers whose values the sender of the message chose. A value that no header can hold,
/// such as one with a line break, and one that is too long are only in the body. Of two names that
/// differ in case, the first counts.
fn add_senders(headers: &mut HeaderMap, job: &JobFacts) {
    let trace = [
        ("traceparent", &job.traceparent),
        ("tracestate", &job.tracestate),
        ("baggage", &job.baggage),
    ];
    let trace =
        trace.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.as_ref()?)));
    let attributes = job.message.attributes.iter();
    let attributes = attributes.map(|(name, value)| (format!("x-aws-sqsd-attr-{name}"), value));
    let mut remaining = LONGEST_TOGETHER;
    for (name, text) in trace.chain(attributes) {
        let length = name.len() + text.len();
        let (Ok(name), Some(value)) = (HeaderName::try_from(name.as_str()), header_value(text))
        else {
            continue;
        };
        if text.len() <= LONGEST_VALUE && length <= remaining && !headers.contains_key(&name) {
            headers.insert(name, value);
            remaining -= length;
        }
    }
}

/// `None` for a line break or another control character. Servers do not agree on the encoding of
/// other characters than those of ASCII.
fn header_value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok().filter(|_| text.is_ascii())
}

/// Limits in bytes. Many servers refuse a request whose headers are larger than 8 KiB.
const LONGEST_VALUE: usize = 1024;
const LONGEST_TOGETHER: usize = 4096;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::job::delivery::SqsAttributes;
    use crate::ports::job_facts::MessageFacts;

    fn job(attributes: &[(&str, &str)]) -> JobFacts {
        let attributes = attributes.iter().map(|(name, it)| ((*name).to_owned(), (*it).to_owned()));
        let url = "https://sqs.eu-central-1.amazonaws.com/123456789012/orders";
        JobFacts {
            message: MessageFacts {
                sqs: SqsAttributes {
                    system: [("SenderId".to_owned(), "AIDA:sender".to_owned())].into(),
                    ..SqsAttributes::default()
                },
                queue_url: Some(url.to_owned()),
                first_received_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)),
                attributes: attributes.collect(),
                ..MessageFacts::default()
            },
            receive_count: 3,
            traceparent: Some("00-1-2-01".to_owned()),
            ..JobFacts::example("m-1", Path::new(""))
        }
    }

    fn sent(kind: HttpBody, attributes: &[(&str, &str)]) -> Vec<(String, String)> {
        let address = "http://127.0.0.1:8080/work?a=b".parse().unwrap();
        let request = request(
            &address,
            &job(attributes),
            kind,
            Bytes::new(),
            Some("http://127.0.0.1:9/progress/m"),
        );
        assert_eq!(
            (request.method(), request.uri().to_string()),
            (&Method::POST, "/work?a=b".to_owned())
        );
        let headers = request.headers().iter();
        headers.map(|(name, it)| (name.to_string(), it.to_str().unwrap().to_owned())).collect()
    }

    fn value<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
        headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn the_headers_are_those_of_elastic_beanstalk() {
        let headers = sent(HttpBody::Job, &[("tenant", "7"), ("Content-Type", "text/csv")]);
        for (name, expected) in [
            ("host", "127.0.0.1:8080"),
            ("content-type", "application/json"),
            ("x-aws-sqsd-msgid", "m-1"),
            ("x-aws-sqsd-queue", "orders"),
            ("x-aws-sqsd-first-received-at", "1994-11-06T08:49:37Z"),
            ("x-aws-sqsd-receive-count", "3"),
            ("x-aws-sqsd-sender-id", "AIDA:sender"),
            ("x-aws-sqsd-attr-tenant", "7"),
            ("traceparent", "00-1-2-01"),
            ("x-leasehold-progress-url", "http://127.0.0.1:9/progress/m"),
        ] {
            assert_eq!(value(&headers, name), Some(expected), "{name}");
        }
        assert!(value(&headers, "user-agent").unwrap().starts_with("aws-sqsd/"));
    }

    #[test]
    fn a_message_has_the_content_type_of_its_sender() {
        for (senders, sent_type) in
            [("text/csv", "text/csv"), ("a\r\nHost: b", "application/json"), ("", "")]
        {
            let headers = sent(HttpBody::Message, &[("content-type", senders)]);
            assert_eq!(value(&headers, "content-type"), Some(sent_type), "{senders:?}");
        }
        let headers = sent(HttpBody::Message, &[]);
        assert_eq!(value(&headers, "content-type"), Some("application/json"));
    }

    #[test]
    fn values_that_no_header_can_hold_are_left_out() {
        let long = "x".repeat(LONGEST_VALUE + 1);
        let headers = sent(
            HttpBody::Job,
            &[
                ("lines", "1\r\nX-Aws-Sqsd-Msgid: other"),
                ("nul", "\0"),
                ("umlaut", "ü"),
                ("long", &long),
                ("na me", "x"),
                ("A", "first"),
                ("a", "second"),
            ],
        );
        let attributes = headers.iter().filter(|(name, _)| name.contains("-attr-"));
        let attributes: Vec<_> = attributes.collect();
        assert_eq!(attributes, [&("x-aws-sqsd-attr-a".to_owned(), "first".to_owned())]);
        assert_eq!(value(&headers, "x-aws-sqsd-msgid"), Some("m-1"));
    }

    #[test]
    fn the_headers_of_the_sender_have_a_limit_together() {
        let text = "x".repeat(LONGEST_VALUE);
        let names: Vec<_> = (0..10).map(|number| number.to_string()).collect();
        let attributes: Vec<_> = names.iter().map(|name| (&**name, &*text)).collect();
        let headers = sent(HttpBody::Job, &attributes);
        assert_eq!(headers.iter().filter(|(name, _)| name.contains("-attr-")).count(), 3);
    }
}
