//! Addresses: of the API, of Redis, of listeners, networks and web origins. Each is parsed once,
//! into its own type. A fault shows the spelling that was probably meant.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use super::diagnostic::Fault;
use super::model::{RedisEndpoint, RedisUrl, UpstreamUrl};

/// Reads `https://host` or `http://host:port`. A path, a query, a fragment or user information is
/// refused: the gateway would ignore it. The text is not repeated in the error, because it may hold
/// a password.
pub(super) fn upstream_url(text: &str) -> Result<UpstreamUrl, Fault> {
    const EXAMPLE: &str = r#"for example "https://api.telecomx.dk""#;
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Fault::new("the URL has no scheme", EXAMPLE));
    };
    let mut faults = UrlFaults::default();
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        _ => {
            faults.add("unsupported scheme", "expected https or http");
            true
        }
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    let extras = [
        ("user information", authority.contains('@')),
        ("a fragment", path.contains('#')),
        ("a query", path.split('#').next().is_some_and(|path| path.contains('?'))),
        ("a path", !matches!(path.split(['?', '#']).next(), Some("" | "/"))),
    ];
    for (extra, _) in extras.iter().filter(|(_, is_present)| *is_present) {
        faults.add(&format!("the URL contains {extra}"), "expected only scheme, host and port");
    }
    let (host, port) = split_port(authority.rsplit('@').next().unwrap_or(authority));
    let port = match port {
        None if tls => Some(443),
        None => Some(80),
        Some(port) => parse_port(port),
    };
    if port.is_none() {
        faults.add("invalid port", "expected 1 to 65535");
    }
    let is_absolute = host.ends_with('.') && !host.ends_with("..");
    let parsed = parse_host(host.strip_suffix('.').filter(|_| is_absolute).unwrap_or(host));
    // Only a name can be absolute: an address followed by a dot is invalid.
    let host = parsed.filter(|host| !is_absolute || host.parse::<IpAddr>().is_err());
    if host.is_none() {
        faults.add("invalid host", "expected a DNS name or an IP address");
    }
    match (host, port) {
        (Some(host), Some(port)) if faults.is_empty() => {
            Ok(UpstreamUrl { tls, host, is_absolute, port })
        }
        _ => Err(faults.into_fault(EXAMPLE)),
    }
}

/// The faults of a URL, reported together.
#[derive(Default)]
struct UrlFaults {
    causes: Vec<String>,
    remedies: Vec<&'static str>,
}

impl UrlFaults {
    fn add(&mut self, cause: &str, remedy: &'static str) {
        self.causes.push(cause.to_owned());
        if !self.remedies.contains(&remedy) {
            self.remedies.push(remedy);
        }
    }

    fn is_empty(&self) -> bool {
        self.causes.is_empty()
    }

    fn into_fault(self, example: &'static str) -> Fault {
        let remedies = self.remedies.into_iter().chain([example]).collect::<Vec<_>>().join(", ");
        Fault::new(self.causes.join(", "), remedies)
    }
}

/// Reads `redis://host:port/database`, `rediss://` for TLS, or `unix:///path`. User name and
/// password have separate keys. The text is not repeated in the error, because it may hold them.
pub(super) fn redis_url(text: &str) -> Result<RedisUrl, Fault> {
    const EXAMPLE: &str = r#"for example "redis://127.0.0.1:6379", "rediss://redis.example:6379/1" or "unix:///run/redis/redis.sock""#;
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Fault::new("the URL has no scheme", EXAMPLE));
    };
    let mut faults = UrlFaults::default();
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "rediss" => true,
        "redis" => false,
        "unix" if rest.starts_with('/') && rest.len() > 1 && !rest.contains(['?', '#', '\0']) => {
            return Ok(RedisUrl { endpoint: RedisEndpoint::Socket(rest.into()), database: 0 });
        }
        "unix" => return Err(Fault::new("the socket is not an absolute path", EXAMPLE)),
        _ => {
            faults.add("unsupported scheme", "expected redis, rediss or unix");
            true
        }
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    if authority.contains('@') {
        faults.add(
            "the URL contains user information",
            "set cluster.username and cluster.password_file instead",
        );
    }
    let database = match path.strip_prefix('/').unwrap_or(path) {
        "" => Some(0),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    };
    if database.is_none() {
        faults.add("invalid database number", "expected a number after the slash");
    }
    let (host, port) = split_port(authority.rsplit('@').next().unwrap_or(authority));
    let port = port.map_or(Some(REDIS_PORT), parse_port);
    if port.is_none() {
        faults.add("invalid port", "expected 1 to 65535");
    }
    let host = parse_host(host);
    if host.is_none() {
        faults.add("invalid host", "expected a DNS name or an IP address");
    }
    match (host, port, database) {
        (Some(host), Some(port), Some(database)) if faults.is_empty() => {
            Ok(RedisUrl { endpoint: RedisEndpoint::Host { tls, host, port }, database })
        }
        _ => Err(faults.into_fault(EXAMPLE)),
    }
}

/// The default port of Redis.
const REDIS_PORT: u16 = 6379;

/// Splits `host:port`. The colons of `[::1]` belong to the host.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    parse_listen_port(text).filter(|port| *port != 0)
}

/// Parses a port, 0 included.
fn parse_listen_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// Parses a DNS name, an IPv4 address, or an IPv6 address in brackets. Returns it in lower case
/// without brackets.
fn parse_host(text: &str) -> Option<String> {
    if let Some(inner) = text.strip_prefix('[') {
        return inner
            .strip_suffix(']')?
            .parse::<Ipv6Addr>()
            .ok()
            .map(|address| address.to_string());
    }
    // Resolvers read a host whose last label has only digits as an address, so it must be a
    // complete one.
    if text.rsplit('.').next()?.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse::<Ipv4Addr>().ok().map(|address| address.to_string());
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    (text.len() <= 253 && text.split('.').all(label)).then(|| text.to_ascii_lowercase())
}

/// Reads the address of a listener: an IP address and a port. Names are refused, because they may
/// resolve to another address at the next start. With port 0 the system chooses the port.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, Fault> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (cause, example) = if let Ok(address) = text.parse::<IpAddr>() {
        let example = with_brackets(text).unwrap_or(SocketAddr::new(address, 8080));
        ("the port is missing, or the brackets of IPv6", example.to_string())
    } else if let Some(port) = parse_listen_port(text) {
        ("the IP address is missing", format!("127.0.0.1:{port}"))
    } else {
        match split_port(text) {
            (_, None) => ("the port is missing", "127.0.0.1:8080".to_owned()),
            ("", Some(port)) => (
                "the IP address is missing",
                format!("0.0.0.0:{}", parse_listen_port(port).unwrap_or(8080)),
            ),
            (host, Some(port)) => match (host.parse::<IpAddr>(), parse_listen_port(port)) {
                (_, None) => ("the port is not 0 to 65535", "127.0.0.1:8080".to_owned()),
                (Ok(address), Some(port)) => {
                    ("IPv6 needs brackets", SocketAddr::new(address, port).to_string())
                }
                (Err(_), Some(port)) => {
                    ("the host is not an IP address", format!("127.0.0.1:{port}"))
                }
            },
        }
    };
    Err(Fault::new(
        format!("invalid address {text:?}: {cause}"),
        format!("for example {example:?}"),
    ))
}

/// Reads an IPv6 address and a port without brackets, such as `::1:8080`, which is also an address.
fn with_brackets(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    Some(SocketAddr::new(host.parse::<Ipv6Addr>().ok()?.into(), parse_port(port)?))
}

/// Whether two listeners conflict: they have the same port, and the same address or one that
/// includes the other (on Linux `[::]` includes the IPv4 addresses). Port 0 is a different port
/// each time.
pub(super) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let includes = |wide: IpAddr, narrow: IpAddr| {
        wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
    };
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || includes(a.ip(), b.ip()) || includes(b.ip(), a.ip()))
}

/// Reads a network (`10.0.0.0/8`) or a single address. An IPv4-mapped one (`::ffff:10.0.0.0/104`)
/// becomes the IPv4 network, because client addresses are compared in that form.
pub(super) fn network(text: &str) -> Result<IpNet, Fault> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    match text.parse::<IpNet>() {
        Ok(network) if network == network.trunc() => Ok(unmapped(network)),
        Ok(network) => Err(Fault::new(
            format!("{text:?} has bits set after the prefix"),
            format!(
                "expected {:?} or {:?}",
                network.trunc().to_string(),
                network.addr().to_string()
            ),
        )),
        Err(_) => Err(Fault::new(
            format!("invalid network {text:?}"),
            r#"for example "10.0.0.0/8" or "192.0.2.7""#,
        )),
    }
}

/// Returns the IPv4 network of an IPv4-mapped one (RFC 4291 section 2.5.5.2), and any other
/// unchanged.
fn unmapped(network: IpNet) -> IpNet {
    /// Length of `::ffff:0:0`, the prefix of mapped addresses.
    const MAPPED: u8 = 96;
    let IpNet::V6(mapped) = network else { return network };
    let address = mapped.addr().to_ipv4_mapped().zip(mapped.prefix_len().checked_sub(MAPPED));
    let unmapped = address.and_then(|(address, length)| Ipv4Net::new(address, length).ok());
    unmapped.map_or(network, IpNet::V4)
}

/// Reads an origin as browsers send it (RFC 6454 section 6.2): `scheme://host[:port]`, lower case,
/// no trailing slash, no default port. Other spellings would never match.
pub(super) fn origin(text: &str) -> Result<String, Fault> {
    if is_origin(text) {
        return Ok(text.to_owned());
    }
    let mut meant = text.to_ascii_lowercase();
    if let Some((scheme, rest)) = meant.split_once("://") {
        let authority = rest.split('/').next().unwrap_or(rest);
        let default_port = if scheme == "https" { ":443" } else { ":80" };
        meant = format!("{scheme}://{}", authority.strip_suffix(default_port).unwrap_or(authority));
    }
    let meant = if is_origin(&meant) { meant } else { "https://app.example".to_owned() };
    Err(Fault::new(
        format!("{text:?} is not an origin as browsers send it"),
        format!("for example {meant:?}"),
    ))
}

/// Whether an origin is a page of this machine: `http` or `https`, and `localhost`, a name below
/// it, or a loopback address (RFC 6761 section 6.3).
pub fn is_loopback_origin(origin: &[u8]) -> bool {
    let Ok(origin) = std::str::from_utf8(origin) else { return false };
    let Some(("http" | "https", authority)) = origin.split_once("://") else { return false };
    let (host, _) = split_port(authority);
    let is_name = host == "localhost" || host.ends_with(".localhost");
    let is_address = || {
        let address =
            host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        address.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
    };
    is_origin(origin) && (is_name || is_address())
}

fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let (host, port) = split_port(authority);
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte)
        });
    let bare_host = host.trim_start_matches('[').trim_end_matches(']');
    let host_fits = parse_host(host).is_some_and(|written| written == bare_host);
    let port_fits = match (scheme, port) {
        (_, None) => true,
        ("https", Some("443")) | ("http", Some("80")) => false,
        (_, Some(port)) => parse_port(port).is_some_and(|number| number.to_string() == port),
    };
    scheme_fits && host_fits && port_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_url_has_only_scheme_host_and_port() {
        let url = |tls, host: &str, port| UpstreamUrl {
            tls,
            host: host.to_owned(),
            is_absolute: false,
            port,
        };
        for (text, value) in [
            ("https://api.telecomx.dk", url(true, "api.telecomx.dk", 443)),
            ("HTTPS://API.Telecomx.dk/", url(true, "api.telecomx.dk", 443)),
            ("http://127.0.0.1:8081", url(false, "127.0.0.1", 8081)),
            ("http://[::1]:8081", url(false, "::1", 8081)),
            ("http://[2001:DB8::1]", url(false, "2001:db8::1", 80)),
            ("https://sandbox", url(true, "sandbox", 443)),
        ] {
            assert_eq!(upstream_url(text), Ok(value), "{text}");
        }
        for (text, cause) in [
            ("api.telecomx.dk", "no scheme"),
            ("ftp://api.telecomx.dk", "scheme"),
            ("https://api.telecomx.dk/v1", "a path"),
            ("https://api.telecomx.dk\\v1", "a path"),
            ("https://api.telecomx.dk?x=1", "a query"),
            ("https://api.telecomx.dk/#x", "a fragment"),
            ("https://me:pw@api.telecomx.dk", "user information"),
            ("https://api.telecomx.dk:0", "port"),
            ("https://api.telecomx.dk:+80", "port"),
            ("https://api.telecomx.dk:", "port"),
            ("https://", "host"),
            ("https://a b", "host"),
            ("https://a..b", "host"),
            ("https://-a.dk", "host"),
            ("https://[::1", "host"),
            ("https://::1", "host"),
            ("https://300.1.1.1", "host"),
            ("https://bücher.example", "host"),
        ] {
            let error = upstream_url(text).unwrap_err();
            assert!(error.cause.contains(cause), "{text}: {error:?}");
            assert!(!format!("{error:?}").contains("pw"));
        }
    }

    #[test]
    fn url_reports_all_faults() {
        let fault = upstream_url("ftp://me:hunter2@a..b:0/v1?x=1").unwrap_err();
        assert_eq!(
            fault.cause,
            "unsupported scheme, the URL contains user information, the URL contains a query, \
             the URL contains a path, invalid port, invalid host"
        );
        let fault = redis_url("http://me@redis:0/x").unwrap_err();
        assert_eq!(
            fault.cause,
            "unsupported scheme, the URL contains user information, invalid database number, invalid port"
        );
    }

    #[test]
    fn redis_url_is_host_with_database_or_socket() {
        let host = |tls, host: &str, port, database| RedisUrl {
            endpoint: RedisEndpoint::Host { tls, host: host.to_owned(), port },
            database,
        };
        for (text, value, shown) in [
            ("redis://127.0.0.1", host(false, "127.0.0.1", 6379, 0), "redis://127.0.0.1:6379/0"),
            (
                "REDISS://Redis.example:7000/3",
                host(true, "redis.example", 7000, 3),
                "rediss://redis.example:7000/3",
            ),
            ("redis://[::1]/", host(false, "::1", 6379, 0), "redis://[::1]:6379/0"),
        ] {
            assert_eq!(redis_url(text), Ok(value.clone()), "{text}");
            assert_eq!(value.to_string(), shown);
        }
        let socket =
            RedisUrl { endpoint: RedisEndpoint::Socket("/run/redis/s".into()), database: 0 };
        assert_eq!(redis_url("unix:///run/redis/s"), Ok(socket));
        for (text, cause) in [
            ("127.0.0.1:6379", "no scheme"),
            ("http://127.0.0.1", "scheme"),
            ("redis://me:pw@127.0.0.1", "user information"),
            ("redis://127.0.0.1/pw", "database"),
            ("redis://127.0.0.1/1?x", "database"),
            ("redis://127.0.0.1:0", "port"),
            ("redis://", "host"),
            ("unix://socket", "absolute path"),
        ] {
            let error = redis_url(text).unwrap_err();
            assert!(error.cause.contains(cause), "{text}: {error:?}");
            assert!(!format!("{error:?}").contains("pw"));
        }
    }

    #[test]
    fn listen_address_requires_ip_and_port() {
        assert_eq!(listen_address("127.0.0.1:0").unwrap().port(), 0);
        assert!(listen_address("[::]:8080").unwrap().is_ipv6());
        for (text, example) in [
            ("localhost:80", "127.0.0.1:80"),
            ("127.0.0.1", "127.0.0.1:8080"),
            ("::1", "[::1]:8080"),
            ("::1:9000", "[::1]:9000"),
            ("localhost:0", "127.0.0.1:0"),
            (":9000", "0.0.0.0:9000"),
            ("9000", "127.0.0.1:9000"),
            ("127.0.0.1:99999", "127.0.0.1:8080"),
            ("", "127.0.0.1:8080"),
        ] {
            let error = listen_address(text).unwrap_err();
            assert_eq!(error.remedy, format!("for example {example:?}"), "{text}");
            assert!(listen_address(example).is_ok(), "{example}");
        }
    }

    #[test]
    fn including_addresses_overlap() {
        let overlaps = |a: &str, b: &str| overlap(a.parse().unwrap(), b.parse().unwrap());
        assert!(overlaps("127.0.0.1:80", "127.0.0.1:80"));
        assert!(overlaps("127.0.0.1:80", "0.0.0.0:80"));
        assert!(overlaps("[::]:80", "127.0.0.1:80"));
        assert!(!overlaps("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!overlaps("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!overlaps("0.0.0.0:80", "[::1]:80"));
        assert!(!overlaps("127.0.0.1:0", "127.0.0.1:0"));
    }

    #[test]
    fn network_has_no_host_bits() {
        assert_eq!(network("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(network("::1").unwrap().to_string(), "::1/128");
        assert_eq!(network("::ffff:10.0.0.0/104").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("::ffff:192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(network("::ffff:0:0/96").unwrap().to_string(), "0.0.0.0/0");
        assert_eq!(network("::/0").unwrap().to_string(), "::/0");
        assert!(network("::ffff:10.1.0.0/104").is_err());
        assert!(network("10.1.0.0/8").unwrap_err().remedy.contains(r#""10.0.0.0/8""#));
        for text in ["", "10.0.0.0/33", "private", "10.0.0"] {
            assert!(network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn loopback_origin_is_a_page_of_this_machine() {
        let is_loopback = |origin: &str| is_loopback_origin(origin.as_bytes());
        for origin in [
            "http://localhost",
            "http://localhost:5173",
            "https://app.localhost:8443",
            "http://127.0.0.1:3000",
            "http://127.9.9.9:1",
            "http://[::1]:3000",
        ] {
            assert!(is_loopback(origin), "{origin}");
        }
        for origin in [
            "null",
            "",
            "http://localhost.example",
            "http://evil-localhost",
            "http://192.0.2.1",
            "http://localhost:5173/",
            "http://localhost@evil.example",
            "http://evil.example#.localhost",
            "file://localhost",
            "http://127.0.0.1.evil.example",
            "http://[::2]",
            "HTTP://LOCALHOST",
        ] {
            assert!(!is_loopback(origin), "{origin}");
        }
    }

    #[test]
    fn origin_is_as_browsers_send_it() {
        for text in [
            "https://app.example",
            "http://localhost:3000",
            "http://[::1]:3000",
            "capacitor://localhost",
        ] {
            assert_eq!(origin(text).as_deref(), Ok(text));
        }
        for (text, meant) in [
            ("https://App.Example", "https://app.example"),
            ("https://app.example/", "https://app.example"),
            ("https://app.example:443", "https://app.example"),
            ("http://app.example:80/x", "http://app.example"),
            ("app.example", "https://app.example"),
            ("null", "https://app.example"),
            ("https://*.example", "https://app.example"),
            ("https://app.example:0080", "https://app.example"),
        ] {
            assert_eq!(
                origin(text).unwrap_err().remedy,
                format!("for example {meant:?}"),
                "{text}"
            );
        }
    }
}
