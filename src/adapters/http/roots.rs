//! The few certificates of a CA bundle that AWS's hosts need.
//!
//! A distribution's bundle has about 140 certificates. Parsing them takes longer than the rest of
//! the start, and the SDK parses them once more.

use std::error::Error;
use std::io;

use memchr::memmem;

/// The first lines of [Amazon's root certificates](https://www.amazontrust.com/repository/): Amazon
/// Root CA 1 to 4. Each contains the certificate's serial number.
const AMAZON_ROOTS: [&[u8]; 4] = [
    b"MIIDQTCCAimgAwIBAgITBmyfz5m/jAo54vB4ikPmljZbyjANBgkqhkiG9w0BAQsF\n",
    b"MIIFQTCCAymgAwIBAgITBmyf0pY1hp8KD+WGePhbJruKNzANBgkqhkiG9w0BAQwF\n",
    b"MIIBtjCCAVugAwIBAgITBmyf1XSXNmY/Owua2eiedgPySjAKBggqhkjOPQQDAjA5\n",
    b"MIIB8jCCAXigAwIBAgITBmyf18G7EEwpQ+Vxe3ssyBrBDjAKBggqhkjOPQQDAzA5\n",
];
const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----\n";
const END: &[u8] = b"-----END CERTIFICATE-----\n";

/// Those of Amazon's roots that the bundle (PEM) trusts; empty if it trusts none.
pub fn amazon_roots(bundle: &[u8]) -> Vec<u8> {
    let certificates = AMAZON_ROOTS.iter().filter_map(|line| {
        let start = memmem::find(bundle, line)?;
        let length = memmem::find(&bundle[start..], END)? + END.len();
        bundle[..start].ends_with(BEGIN).then(|| &bundle[start - BEGIN.len()..start + length])
    });
    certificates.collect::<Vec<_>>().concat()
}

/// Whether the certificate of this https URL's host is usually signed by Amazon.
pub fn is_amazons(url: &str) -> bool {
    let authority = url.strip_prefix("https://").and_then(|rest| rest.split(['/', '?']).next());
    let host = authority.map(|it| it.split_once(':').map_or(it, |(host, _)| host));
    host.is_some_and(|host| host.ends_with(".amazonaws.com") || host.ends_with(".api.aws"))
}

/// Whether a request failed because the server's certificate is not trusted.
pub fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    // The source of an I/O error is the source of its content, not the content itself.
    let content = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    content.is_some_and(|content| is_untrusted(content)) || error.source().is_some_and(is_untrusted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_amazons_roots_are_taken_from_a_bundle() {
        let pem = |lines: &[u8]| [BEGIN, lines, b"QUJD\n", END].concat();
        let (first, third) = (pem(AMAZON_ROOTS[0]), pem(AMAZON_ROOTS[2]));
        let other = pem(b"MIIBbzCCARWgAwIBAgIUVhAExumwYnG/s6XNegjPuyL4yjAKBggqhkjOPQQDAjA5\n");
        let bundle = [b"# a comment\n", &*other, &third, &other, &first, &other].concat();
        assert_eq!(amazon_roots(&bundle), [first, third].concat());
        assert_eq!(amazon_roots(&other), b"");
        assert_eq!(amazon_roots(b""), b"");
        let unfinished = [BEGIN, AMAZON_ROOTS[1], b"QUJD\n"].concat();
        assert_eq!(amazon_roots(&unfinished), b"");
        assert_eq!(amazon_roots(&[AMAZON_ROOTS[1], END].concat()), b"");
    }

    #[test]
    fn amazons_hosts_are_recognised() {
        let amazons = [
            "https://sqs.eu-central-1.amazonaws.com/",
            "https://inbox.s3.eu-central-1.amazonaws.com/a/b?x-id=GetObject",
            "https://sqs.eu-central-1.api.aws:443",
        ];
        for url in amazons {
            assert!(is_amazons(url), "{url}");
        }
        let others = [
            "https://sqs.cn-north-1.amazonaws.com.cn/",
            "https://amazonaws.com.example.com/",
            "https://example.com/?x=.amazonaws.com",
            "http://sqs.eu-central-1.amazonaws.com/",
            "",
        ];
        for url in others {
            assert!(!is_amazons(url), "{url}");
        }
    }
}
