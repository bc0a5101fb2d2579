//! The address of the user's HTTP server (`--handler http://…`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use hyper::Uri;

/// An address within the pod: a server elsewhere could answer "done" for work that it does not own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAddress {
    host: Host,
    port: u16,
    /// With the query.
    path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    /// Not resolved: `/etc/hosts` of an image may lack it.
    Localhost,
    Ip(IpAddr),
}

impl HttpAddress {
    /// For the header `Host`.
    pub fn authority(&self) -> String {
        match (self.host, self.port) {
            (Host::Localhost, 80) => "localhost".to_owned(),
            (Host::Localhost, port) => format!("localhost:{port}"),
            (Host::Ip(IpAddr::V4(ip)), 80) => ip.to_string(),
            (Host::Ip(IpAddr::V6(ip)), 80) => format!("[{ip}]"),
            (Host::Ip(ip), port) => SocketAddr::new(ip, port).to_string(),
        }
    }

    /// The path with the query.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where to connect to, in this order.
    pub fn sockets(&self) -> Vec<SocketAddr> {
        let ips = match self.host {
            Host::Localhost => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Host::Ip(ip) => vec![ip],
        };
        ips.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect()
    }
}

/// Without the query, which may hold a token.
impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "http://{}{path}", self.authority())
    }
}

impl FromStr for HttpAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXAMPLE: &str = "write for example http://127.0.0.1:8080/work";
        let uri: Uri = text.parse().map_err(|_| EXAMPLE)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(EXAMPLE);
        };
        if scheme != "http" {
            return Err("only http is supported, since the server is in this pod");
        }
        if authority.as_str().contains('@') || text.contains('#') {
            return Err("it must not contain a user, a password or a fragment (#)");
        }
        let host = match authority.host().trim_start_matches('[').trim_end_matches(']') {
            name if name.eq_ignore_ascii_case("localhost") => Host::Localhost,
            ip => Host::Ip(ip.parse().ok().filter(IpAddr::is_loopback).ok_or(
                "its host must be 127.0.0.1, [::1] or localhost: leasehold sends work only to a server in its own pod",
            )?),
        };
        let has_port = authority.as_str().len() > authority.host().len();
        let port = match (has_port, authority.port_u16()) {
            (true, Some(port @ 1..)) => port,
            (true, _) => return Err("its port must be a number from 1 to 65535"),
            (false, _) => 80,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { host, port, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_pod_is_accepted() {
        for (text, authority, path, shown) in [
            (
                "http://127.0.0.1:8080/work?k=v",
                "127.0.0.1:8080",
                "/work?k=v",
                "http://127.0.0.1:8080/work",
            ),
            ("http://localhost", "localhost", "/", "http://localhost/"),
            ("http://LOCALHOST:81/", "localhost:81", "/", "http://localhost:81/"),
            ("http://[::1]:9000/a", "[::1]:9000", "/a", "http://[::1]:9000/a"),
            ("http://127.1.2.3/a%20b", "127.1.2.3", "/a%20b", "http://127.1.2.3/a%20b"),
            ("http://[::1]", "[::1]", "/", "http://[::1]/"),
        ] {
            let address: HttpAddress = text.parse().unwrap();
            assert_eq!((&*address.authority(), address.path()), (authority, path), "{text}");
            assert_eq!(address.to_string(), shown);
            assert!(address.sockets().iter().all(|socket| socket.ip().is_loopback()), "{text}");
        }
        for (text, why) in [
            ("", "write for example"),
            ("/work", "write for example"),
            ("127.0.0.1:8080", "write for example"),
            ("http:///work", "write for example"),
            ("http://127.0.0.1:8080/a b", "write for example"),
            ("https://127.0.0.1/", "only http"),
            ("http://user:secret@127.0.0.1/", "user"),
            ("http://127.0.0.1/#part", "fragment"),
            ("http://0.0.0.0:80/", "its host"),
            ("http://10.0.0.7:80/", "its host"),
            ("http://169.254.169.254/latest", "its host"),
            ("http://[::ffff:127.0.0.1]/", "its host"),
            ("http://127.1/", "its host"),
            ("http://2130706433/", "its host"),
            ("http://localhost.evil.example/", "its host"),
            ("http://worker:8080/", "its host"),
            ("http://127.0.0.1:0/", "its port"),
            ("http://127.0.0.1:65536/", "its port"),
            ("http://127.0.0.1:/", "its port"),
        ] {
            let refused = text.parse::<HttpAddress>().unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
