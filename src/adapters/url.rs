//! URLs of servers: validation, and forms that are safe to show.

/// Host and port of a URL.
pub fn host_of(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    authority.rsplit('@').next().filter(|host| !host.is_empty())
}

/// Whether the scheme and the host of a URL are valid. A URL with a user or a password is not
/// valid, since it would show them wherever it is written.
pub fn is_url(url: &str) -> bool {
    let host_is_sound = |host: &str| {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !host.ends_with(']') && port.parse::<u16>().is_ok() => name,
            Some(_) if host.starts_with('[') && host.ends_with(']') => host,
            Some(_) => return false,
            None => host,
        };
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte))
    };
    let is_http = url.starts_with("http://") || url.starts_with("https://");
    is_http && !has_userinfo(url) && host_of(url).is_some_and(host_is_sound)
}

/// Whether a URL contains a user, and maybe a password.
pub fn has_userinfo(url: &str) -> bool {
    url.split_once("://")
        .map_or(url, |(_, rest)| rest)
        .split(['/', '?', '#'])
        .next()
        .is_some_and(|it| it.contains('@'))
}

/// A URL for a log or a message: without user and password, encoded or not.
pub fn without_userinfo(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    // A password may contain any character, even a slash.
    let ends = rest.rfind('@').map(|at| at + 1).max(rest.rfind("%40").map(|at| at + 3));
    match ends.map(|end| &rest[end..]) {
        Some(rest) if scheme.is_empty() => format!("[redacted]@{rest}"),
        Some(rest) => format!("{scheme}://[redacted]@{rest}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_needs_scheme_and_host() {
        for good in ["http://localhost:4566", "https://[::1]:443/", "http://a.b/c d", "https://x?y"]
        {
            assert!(is_url(good), "{good}");
        }
        for bad in [
            "localhost:4566",
            "//localhost",
            "http://",
            "http:///q",
            "ftp://a/b",
            "http://a b/c",
            "http://u@h/",
            "http://user:pass/word@h/",
            "http://h:port/",
            "http://h:/",
            "http://:80/",
            "http://[::1]x/",
        ] {
            assert!(!is_url(bad), "{bad}");
        }
    }

    #[test]
    fn a_url_is_written_without_user_and_password() {
        for (url, written) in [
            ("http://h:9091/path", "http://h:9091/path"),
            ("http://user:secret@h:9091/path", "http://[redacted]@h:9091/path"),
            ("http://user:se/c#r@et@h:9091", "http://[redacted]@h:9091"),
            ("https://secret@h", "https://[redacted]@h"),
            ("user:secret@h:9091", "[redacted]@h:9091"),
            ("http://user%3Asecret%40h:9091", "http://[redacted]@h:9091"),
            ("", ""),
        ] {
            assert_eq!(without_userinfo(url), written);
        }
        assert_eq!(host_of("http://user:secret@h:9091/q"), Some("h:9091"));
    }
}
