//! Redacts our credentials from answers: a server or a proxy may repeat them, and the log quotes
//! answers.

use std::cmp::Reverse;

use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

pub const REDACTED: &str = "[redacted]";

/// The text without these secrets, plain or encoded.
pub fn redacted<S: AsRef<str>>(text: &str, secrets: &[S]) -> String {
    let encoded = |secret: &S| {
        let secret = secret.as_ref();
        let json = serde_json::Value::from(secret).to_string();
        let xml = secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        [
            secret.to_owned(),
            STANDARD.encode(secret).trim_end_matches('=').to_owned(),
            URL_SAFE.encode(secret).trim_end_matches('=').to_owned(),
            in_url(secret, NON_ALPHANUMERIC, str::to_owned),
            in_url(secret, NON_ALPHANUMERIC, str::to_lowercase),
            in_url(secret, RESERVED, str::to_owned),
            in_url(secret, RESERVED, str::to_lowercase),
            json[1..json.len() - 1].to_owned(),
            json[1..json.len() - 1].replace('/', "\\/"),
            xml.replace('"', "&quot;"),
            xml.replace('"', "&#34;").replace('\'', "&#39;"),
            xml.replace('"', "&quot;").replace('\'', "&#x27;").replace('/', "&#x2F;"),
            hex::encode(secret),
        ]
    };
    let mut forms: Vec<String> =
        secrets.iter().flat_map(encoded).filter(|form| !form.is_empty()).collect();
    // A longer form may contain a shorter one.
    forms.sort_by_key(|form| Reverse(form.len()));
    forms.iter().fold(text.to_owned(), |text, form| text.replace(form, REDACTED))
}

/// Percent-encodes; `escape` formats an escape, whose digits may be lowercase.
fn in_url(secret: &str, set: &'static AsciiSet, escape: impl Fn(&str) -> String) -> String {
    let parts = utf8_percent_encode(secret, set);
    parts.map(|part| if part.starts_with('%') { escape(part) } else { part.to_owned() }).collect()
}

/// The characters that RFC 3986 requires to be encoded.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The secrets in a request to AWS: its signature or token, and its session token. The secret key
/// is never sent.
pub fn secrets_of(request: &HttpRequest) -> Vec<String> {
    let headers = ["authorization", "x-amz-security-token", "x-aws-ec2-metadata-token"];
    let mut secrets: Vec<String> =
        headers.iter().filter_map(|name| request.headers().get(name)).map(str::to_owned).collect();
    // `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…`, `Bearer …`
    if let Some(last) =
        request.headers().get("authorization").and_then(|value| value.split_whitespace().last())
    {
        secrets.push(last.to_owned());
        secrets.extend(last.strip_prefix("Signature=").map(str::to_owned));
    }
    // STS gets the pod's token in a form field.
    let form =
        request.body().bytes().and_then(|body| std::str::from_utf8(body).ok()).unwrap_or_default();
    let token = form.split('&').find_map(|field| field.strip_prefix("WebIdentityToken="));
    secrets.extend(token.map(|token| percent_decode_str(token).decode_utf8_lossy().into_owned()));
    secrets.retain(|secret| secret.len() >= SHORTEST);
    secrets
}

/// All secrets of AWS are longer. Emulators use tokens such as `test`, which also occurs in plain
/// text.
const SHORTEST: usize = 8;

/// The answer without the request's secrets. Reads the whole body.
pub async fn without_secrets(
    mut answer: HttpResponse,
    secrets: &[String],
) -> Result<HttpResponse, ConnectorError> {
    let repeated: Vec<_> =
        answer.headers().iter().filter(|(_, value)| redacted(value, secrets) != *value).collect();
    let repeated: Vec<String> = repeated.into_iter().map(|(name, _)| name.to_owned()).collect();
    for name in repeated {
        answer.headers_mut().remove(name);
    }
    let body = ByteStream::new(std::mem::replace(answer.body_mut(), SdkBody::taken()));
    let body = body.collect().await.map_err(|error| ConnectorError::io(error.into()))?.into_bytes();
    let text = String::from_utf8_lossy(&body);
    let shown = redacted(&text, secrets);
    if shown == text {
        *answer.body_mut() = SdkBody::from(body);
    } else {
        // The SDK compares the length, which has changed.
        answer.headers_mut().remove("content-length");
        *answer.body_mut() = SdkBody::from(shown);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "IQoJ/b3Jp+Z2luX2Vj==";

    fn request() -> HttpRequest {
        let mut request =
            HttpRequest::new(SdkBody::from("Action=A&WebIdentityToken=eyJh.b%2Bc&Version=1"));
        let authorization =
            "AWS4-HMAC-SHA256 Credential=AKID/s3, SignedHeaders=a;b, Signature=0123456789abcdef";
        request.headers_mut().insert("authorization", authorization);
        request.headers_mut().insert("x-amz-security-token", TOKEN);
        request
    }

    async fn answered(body: impl Into<SdkBody>) -> HttpResponse {
        let mut answer = HttpResponse::new(403.try_into().unwrap(), body.into());
        answer.headers_mut().insert("content-length", "7");
        answer.headers_mut().insert("x-amzn-query-error", format!("{TOKEN};Sender"));
        answer.headers_mut().insert("x-amz-request-id", "r");
        without_secrets(answer, &secrets_of(&request())).await.unwrap()
    }

    #[tokio::test]
    async fn secrets_that_an_answer_repeats_are_redacted() {
        let request = request();
        let authorization = request.headers().get("authorization").unwrap();
        for repeated in [
            authorization.to_owned(),
            TOKEN.to_owned(),
            "Signature=0123456789abcdef".to_owned(),
            "the signature 0123456789abcdef".to_owned(),
            "eyJh.b+c".to_owned(),
            "eyJh.b%2Bc".to_owned(),
            "eyJh.b%2bc".to_owned(),
            "eyJh%2Eb%2Bc".to_owned(),
            serde_json::json!({ "authorization": authorization, "token": TOKEN }).to_string(),
            TOKEN.replace('/', "\\/"),
            utf8_percent_encode(TOKEN, NON_ALPHANUMERIC).to_string(),
            STANDARD.encode(TOKEN),
        ] {
            let answer = answered(format!("<Code>Denied</Code> {repeated} <Host/>")).await;
            let text = String::from_utf8(answer.body().bytes().unwrap().to_vec()).unwrap();
            assert!(
                text.starts_with("<Code>Denied</Code> ") && text.ends_with(" <Host/>"),
                "{text}"
            );
            assert!(text.contains(REDACTED), "{repeated}: {text}");
            for part in ["IQoJ", "b3Jp", "Signature=", "0123456789", "eyJh", "SVFvSi"] {
                assert!(!text.contains(part), "{repeated}: {text}");
            }
            assert_eq!(answer.headers().get("content-length"), None);
            assert_eq!(answer.headers().get("x-amzn-query-error"), None);
            assert_eq!(answer.headers().get("x-amz-request-id"), Some("r"));
        }
    }

    #[tokio::test]
    async fn an_answer_without_secrets_stays_unchanged() {
        let answer = answered(SdkBody::from(&b"\xff\x00 7"[..])).await;
        assert_eq!(answer.body().bytes(), Some(&b"\xff\x00 7"[..]));
        assert_eq!(answer.headers().get("content-length"), Some("7"));
        let mut request = HttpRequest::new(SdkBody::empty());
        request.headers_mut().insert("x-amz-security-token", "test");
        assert_eq!(secrets_of(&request), Vec::<String>::new());
    }
}
