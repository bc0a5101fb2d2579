//! Validates a queue's URL and reads its parts.

use crate::adapters::aws::{self, answers};
use crate::adapters::url;

/// Checks the form of a queue URL: scheme, host, and a path of at least two parts, the last of
/// which is a queue name.
pub fn check_queue_url(queue_url: &str) -> Result<(), String> {
    let is_name = |name: &str| {
        let plain = name.strip_suffix(".fifo").unwrap_or(name);
        !plain.is_empty()
            && name.len() <= 80
            && plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let path = &queue_url[origin_of(queue_url).len()..];
    let problem = if url::has_userinfo(queue_url) {
        "contains a user or a password"
    } else if !url::is_url(queue_url) {
        "does not begin with http:// or https:// and a host"
    } else if path.split('/').count() < 3 || !is_name(queue_name(path)) {
        "does not end in /account/queue-name"
    } else {
        return Ok(());
    };
    Err(format!(
        "the queue URL {:?} {problem}; write for example https://sqs.eu-west-1.amazonaws.com/123456789012/my-queue",
        url::without_userinfo(queue_url)
    ))
}

/// The names of FIFO queues, and only theirs, end in `.fifo`.
pub fn is_fifo(queue_url: &str) -> bool {
    queue_url.strip_suffix(".fifo").is_some()
}

/// Whether this is a queue at AWS, and not at another server with its API.
pub fn is_at_aws(queue_url: &str) -> bool {
    answers::is_at_aws(queue_url)
}

/// The last part of a queue's URL.
pub fn queue_name(queue_url: &str) -> &str {
    queue_url.rsplit('/').next().unwrap_or(queue_url)
}

/// Scheme, host and port of a URL.
pub(super) fn origin_of(url: &str) -> &str {
    let path = url
        .split_once("://")
        .and_then(|(_, rest)| rest.find('/').map(|at| rest.len() - at))
        .unwrap_or(0);
    &url[..url.len() - path]
}

/// Whether the SDK derives this host from the region. It does not for hosts of VPC endpoints, of
/// FIPS, or outside AWS.
pub(super) fn is_aws_default(queue_url: &str) -> bool {
    let (Some(host), Some(region)) = (url::host_of(queue_url), aws::region_of(queue_url)) else {
        return false;
    };
    let host = host.strip_suffix(".cn").unwrap_or(host);
    host == format!("sqs.{region}.amazonaws.com")
        || host == format!("{region}.queue.amazonaws.com")
        || host == "queue.amazonaws.com"
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE_URL: &str = "https://sqs.eu-west-1.amazonaws.com/123456789012/jobs";

    #[test]
    fn a_queue_url_is_checked() {
        for good in [
            QUEUE_URL,
            "http://localhost:4566/000000000000/my_queue-1.fifo",
            "http://sqs:9324/queue/q",
        ] {
            assert_eq!(check_queue_url(good), Ok(()));
        }
        for bad in [
            "",
            "my-queue",
            "arn:aws:sqs:eu-west-1:123456789012:my-queue",
            "sqs.eu-west-1.amazonaws.com/123456789012/q",
            "https:///123456789012/q",
            "https://sqs.eu-west-1.amazonaws.com",
            "https://sqs.eu-west-1.amazonaws.com/q",
            "https://sqs.eu-west-1.amazonaws.com/123456789012/",
            "https://sqs.eu-west-1.amazonaws.com/123456789012/q ",
            "https://sqs.eu-west-1.amazonaws.com/123456789012/q?x=y",
            "https://user:secret@sqs.eu-west-1.amazonaws.com/123456789012/q",
            "user:secret@localhost/123456789012/q",
        ] {
            let refused = check_queue_url(bad).expect_err(bad);
            assert!(
                refused.contains("write for example https://sqs.") && !refused.contains("secret"),
                "{refused}"
            );
        }
        assert!(is_fifo("https://sqs.eu-west-1.amazonaws.com/1/q.fifo") && !is_fifo(QUEUE_URL));
    }

    #[test]
    fn the_sdk_derives_only_default_aws_hosts() {
        for default in [
            QUEUE_URL,
            "https://sqs.cn-north-1.amazonaws.com.cn/1/q",
            "https://queue.amazonaws.com/1/q",
        ] {
            assert!(is_aws_default(default), "{default}");
        }
        for (url, origin) in [
            ("http://localhost:4566/1/q", "http://localhost:4566"),
            (
                "https://vpce-0a.sqs.eu-west-1.vpce.amazonaws.com/1/q",
                "https://vpce-0a.sqs.eu-west-1.vpce.amazonaws.com",
            ),
            (
                "https://sqs-fips.us-east-2.amazonaws.com/1/q",
                "https://sqs-fips.us-east-2.amazonaws.com",
            ),
        ] {
            assert_eq!(origin_of(url), origin);
            assert!(!is_aws_default(url), "{url}");
        }
    }
}
