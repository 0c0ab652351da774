//! Addresses as the operator writes them: of the API, of listeners, of networks, of web origins. Each is read here once,
//! into its own type, and what is not quite one is refused with the spelling that was probably meant.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use super::problem::Wrong;
use super::{RedisPlace, RedisUrl, UpstreamUrl};

/// Reads `https://host` or `http://host:port`. A path, a query, a fragment or user information is refused: the gateway
/// adds none to a request, so they would be lost silently. The text is never repeated in the error: it may hold a password.
pub(super) fn upstream_url(text: &str) -> Result<UpstreamUrl, Wrong> {
    const RIGHT: &str = r#"for example "https://api.telecomx.dk""#;
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Wrong::new("the URL has no scheme", RIGHT));
    };
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        _ => return Err(Wrong::new("unsupported scheme", format!("expected https or http, {RIGHT}"))),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    let extra = if authority.contains('@') {
        "user information"
    } else if path.contains('#') {
        "a fragment"
    } else if path.contains('?') {
        "a query"
    } else if !matches!(path, "" | "/") {
        "a path"
    } else {
        ""
    };
    if !extra.is_empty() {
        return Err(Wrong::new(
            format!("the URL contains {extra}"),
            format!("expected only scheme, host and port, {RIGHT}"),
        ));
    }
    let (host, port) = split_port(authority);
    let port = match port {
        None => {
            if tls {
                443
            } else {
                80
            }
        }
        Some(port) => {
            parse_port(port).ok_or_else(|| Wrong::new("invalid port", format!("expected 1 to 65535, {RIGHT}")))?
        }
    };
    let is_absolute = host.ends_with('.') && !host.ends_with("..");
    let parsed = parse_host(host.strip_suffix('.').filter(|_| is_absolute).unwrap_or(host));
    // Only a name can be absolute: an address behind which a dot was written is neither.
    let Some(host) = parsed.filter(|host| !is_absolute || host.parse::<IpAddr>().is_err()) else {
        return Err(Wrong::new("invalid host", format!("expected a DNS name or an IP address, {RIGHT}")));
    };
    Ok(UpstreamUrl { tls, host, is_absolute, port })
}

/// Reads `redis://host:port/database`, `rediss://` for TLS, or `unix:///path`. Names and passwords have keys of their own:
/// the text is never repeated in the error, since it may hold one.
pub(super) fn redis_url(text: &str) -> Result<RedisUrl, Wrong> {
    const RIGHT: &str =
        r#"for example "redis://127.0.0.1:6379", "rediss://redis.example:6379/1" or "unix:///run/redis/redis.sock""#;
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Wrong::new("the URL has no scheme", RIGHT));
    };
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "rediss" => true,
        "redis" => false,
        "unix" if rest.starts_with('/') && rest.len() > 1 && !rest.contains(['?', '#', '\0']) => {
            return Ok(RedisUrl { place: RedisPlace::Socket(rest.into()), database: 0 });
        }
        "unix" => return Err(Wrong::new("the socket is not an absolute path", RIGHT)),
        _ => return Err(Wrong::new("unsupported scheme", format!("expected redis, rediss or unix, {RIGHT}"))),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    if authority.contains('@') {
        let right = "set cluster.username and cluster.password_file instead";
        return Err(Wrong::new("the URL contains user information", right));
    }
    let database = match path.strip_prefix('/').unwrap_or(path) {
        "" => Some(0),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    };
    let Some(database) = database else {
        return Err(Wrong::new("invalid database number", RIGHT));
    };
    let (host, port) = split_port(authority);
    let Some(port) = port.map_or(Some(REDIS_PORT), parse_port) else {
        return Err(Wrong::new("invalid port", format!("expected 1 to 65535, {RIGHT}")));
    };
    let Some(host) = parse_host(host) else {
        return Err(Wrong::new("invalid host", format!("expected a DNS name or an IP address, {RIGHT}")));
    };
    Ok(RedisUrl { place: RedisPlace::Host { tls, host, port }, database })
}

/// Where a Redis listens if nothing else is said.
const REDIS_PORT: u16 = 6379;

/// Splits `host:port`; the colons of `[::1]` belong to the host.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// A DNS name in lower case, an IPv4 address, or an IPv6 address that stood in brackets.
fn parse_host(text: &str) -> Option<String> {
    if let Some(inner) = text.strip_prefix('[') {
        return inner.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(|address| address.to_string());
    }
    // A last label of digits makes it an address for every resolver, so it must be a whole one.
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

/// Reads an address to listen on: an IP address and a port. Names are refused, since what they mean may change
/// between two starts. Port 0 lets the system choose.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, Wrong> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (wrong, right) = if let Ok(address) = text.parse::<IpAddr>() {
        ("the port is missing, or the brackets of IPv6", SocketAddr::new(address, 8080).to_string())
    } else if let Some(port) = parse_port(text) {
        ("the IP address is missing", format!("127.0.0.1:{port}"))
    } else {
        match split_port(text) {
            (_, None) => ("the port is missing", "127.0.0.1:8080".to_owned()),
            ("", Some(port)) => ("the IP address is missing", format!("0.0.0.0:{}", parse_port(port).unwrap_or(8080))),
            (host, Some(port)) => match (host.parse::<IpAddr>(), parse_port(port)) {
                (_, None) => ("the port is not 0 to 65535", "127.0.0.1:8080".to_owned()),
                (Ok(address), Some(port)) => ("IPv6 needs brackets", SocketAddr::new(address, port).to_string()),
                (Err(_), Some(port)) => ("the host is not an IP address", format!("127.0.0.1:{port}")),
            },
        }
    };
    Err(Wrong::new(format!("invalid address {text:?}: {wrong}"), format!("for example {right:?}")))
}

/// Whether both cannot be bound in one process: the same port, and the same address or one that includes the other.
/// (`[::]` includes the IPv4 addresses too, as Linux binds it.) Port 0 is another port each time.
pub(super) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let includes = |wide: IpAddr, narrow: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4());
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || includes(a.ip(), b.ip()) || includes(b.ip(), a.ip()))
}

/// Reads a network (`10.0.0.0/8`) or a single address. An IPv4-mapped one (`::ffff:10.0.0.0/104`) is the IPv4 network,
/// since addresses of clients are compared in that form.
pub(super) fn network(text: &str) -> Result<IpNet, Wrong> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    match text.parse::<IpNet>() {
        Ok(network) if network == network.trunc() => Ok(unmapped(network)),
        Ok(network) => Err(Wrong::new(
            format!("{text:?} has bits set after the prefix"),
            format!("expected {:?} or {:?}", network.trunc().to_string(), network.addr().to_string()),
        )),
        Err(_) => Err(Wrong::new(format!("invalid network {text:?}"), r#"for example "10.0.0.0/8" or "192.0.2.7""#)),
    }
}

/// The IPv4 network of an IPv4-mapped one (RFC 4291 section 2.5.5.2); any other as it is.
fn unmapped(network: IpNet) -> IpNet {
    /// Length of `::ffff:0:0`, the prefix of mapped addresses.
    const MAPPED: u8 = 96;
    let IpNet::V6(mapped) = network else { return network };
    let address = mapped.addr().to_ipv4_mapped().zip(mapped.prefix_len().checked_sub(MAPPED));
    let unmapped = address.and_then(|(address, length)| Ipv4Net::new(address, length).ok());
    unmapped.map_or(network, IpNet::V4)
}

/// Reads an origin exactly as browsers write it in `Origin` (RFC 6454, section 6.2): `scheme://host[:port]`, lower case,
/// no trailing slash, no port that is the scheme's own. What a browser never sends would never match.
pub(super) fn origin(text: &str) -> Result<String, Wrong> {
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
    Err(Wrong::new(format!("{text:?} is not an origin as browsers send it"), format!("for example {meant:?}")))
}

fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let (host, port) = split_port(authority);
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte));
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
    fn upstream_is_scheme_host_and_port_alone() {
        let url = |tls, host: &str, port| UpstreamUrl { tls, host: host.to_owned(), is_absolute: false, port };
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
        for (text, wrong) in [
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
            assert!(error.wrong.contains(wrong), "{text}: {error:?}");
            assert!(!format!("{error:?}").contains("pw"));
        }
    }

    #[test]
    fn a_redis_is_a_host_with_a_database_or_a_socket() {
        let host = |tls, host: &str, port, database| RedisUrl {
            place: RedisPlace::Host { tls, host: host.to_owned(), port },
            database,
        };
        for (text, value, shown) in [
            ("redis://127.0.0.1", host(false, "127.0.0.1", 6379, 0), "redis://127.0.0.1:6379/0"),
            ("REDISS://Redis.example:7000/3", host(true, "redis.example", 7000, 3), "rediss://redis.example:7000/3"),
            ("redis://[::1]/", host(false, "::1", 6379, 0), "redis://[::1]:6379/0"),
        ] {
            assert_eq!(redis_url(text), Ok(value.clone()), "{text}");
            assert_eq!(value.to_string(), shown);
        }
        let socket = RedisUrl { place: RedisPlace::Socket("/run/redis/s".into()), database: 0 };
        assert_eq!(redis_url("unix:///run/redis/s"), Ok(socket));
        for (text, wrong) in [
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
            assert!(error.wrong.contains(wrong), "{text}: {error:?}");
            assert!(!format!("{error:?}").contains("pw"));
        }
    }

    #[test]
    fn listeners_are_addresses_with_ports() {
        assert_eq!(listen_address("127.0.0.1:0").unwrap().port(), 0);
        assert!(listen_address("[::]:8080").unwrap().is_ipv6());
        for (text, right) in [
            ("localhost:80", "127.0.0.1:80"),
            ("127.0.0.1", "127.0.0.1:8080"),
            ("::1", "[::1]:8080"),
            (":9000", "0.0.0.0:9000"),
            ("9000", "127.0.0.1:9000"),
            ("127.0.0.1:99999", "127.0.0.1:8080"),
            ("", "127.0.0.1:8080"),
        ] {
            let error = listen_address(text).unwrap_err();
            assert_eq!(error.right, format!("for example {right:?}"), "{text}");
            assert!(listen_address(right).is_ok(), "{right}");
        }
    }

    #[test]
    fn addresses_that_include_each_other_overlap() {
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
    fn networks_are_whole() {
        assert_eq!(network("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(network("::1").unwrap().to_string(), "::1/128");
        assert_eq!(network("::ffff:10.0.0.0/104").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("::ffff:192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(network("::ffff:0:0/96").unwrap().to_string(), "0.0.0.0/0");
        assert_eq!(network("::/0").unwrap().to_string(), "::/0");
        assert!(network("::ffff:10.1.0.0/104").is_err());
        assert!(network("10.1.0.0/8").unwrap_err().right.contains(r#""10.0.0.0/8""#));
        for text in ["", "10.0.0.0/33", "private", "10.0.0"] {
            assert!(network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn origins_are_as_browsers_send_them() {
        for text in ["https://app.example", "http://localhost:3000", "http://[::1]:3000", "capacitor://localhost"] {
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
            assert_eq!(origin(text).unwrap_err().right, format!("for example {meant:?}"), "{text}");
        }
    }
}
