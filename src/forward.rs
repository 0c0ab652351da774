//! Everything else: passed on as it is, with the fields that a gateway owes (RFC 9110 section 7.6).

use std::net::IpAddr;

use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, VIA};
use http::{HeaderMap, Version};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A caller's own word on these would travel as if a proxy had said it.
const UNBELIEVED: [&str; 1] = ["x-forwarded-host"];

/// Whose word on addresses is believed.
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    pub fn new(nets: Vec<IpNet>) -> Self {
        TrustedProxies(nets)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(&address))
    }

    /// The caller's address: the last hop that is not a trusted proxy, reading `X-Forwarded-For` from its end. What cannot
    /// be read as an address ends the reading.
    pub fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let fields: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
        self.caller_by(peer, &fields)
    }

    /// The same, by the values of the fields.
    pub fn caller_by(&self, peer: IpAddr, fields: &[&[u8]]) -> IpAddr {
        let mut caller = peer.to_canonical();
        let hops = fields.iter().rev().flat_map(|value| value.rsplit(|&b| b == b','));
        for hop in hops {
            if !self.trusts(caller) {
                break;
            }
            let Some(address) = std::str::from_utf8(hop).ok().and_then(|hop| parse_hop(hop.trim())) else { break };
            caller = address.to_canonical();
        }
        caller
    }
}

/// An address as proxies write it: bare, with a port, or in brackets.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split(']').next());
    bracketed.unwrap_or(text).parse().ok().or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|a| a.ip()))
}

/// The fields that `Connection` names: they are for one hop alone (RFC 9110 section 7.6.1).
pub fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let names = headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|&b| b == b','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect()
}

/// What a forwarded request says of where it came from.
pub struct Hop<'a> {
    pub peer: IpAddr,
    pub trusted: &'a TrustedProxies,
    /// The caller speaks TLS to the gateway.
    pub tls: bool,
    pub version: Version,
    pub authority: &'a HeaderValue,
    pub request_id: &'a HeaderValue,
}

/// The fields to set on a request to the API, in place of those of the same names; and the names to take away.
pub fn request_fields(hop: &Hop<'_>, headers: &HeaderMap) -> (Vec<(HeaderName, HeaderValue)>, &'static [&'static str]) {
    let peer = hop.peer.to_canonical();
    let believed = hop.trusted.trusts(peer);
    // Behind what other hops said, in one field.
    let append = |name: &HeaderName, last: &str| {
        let mut text = Vec::new();
        for value in headers.get_all(name).iter().filter(|value| !value.is_empty()) {
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b", ");
        }
        text.extend_from_slice(last.as_bytes());
        HeaderValue::try_from(text).ok()
    };
    let address = peer.to_string();
    let forwarded_for = if believed { append(&X_FORWARDED_FOR, &address) } else { HeaderValue::try_from(address).ok() };
    let own_proto = if hop.tls { HeaderValue::from_static("https") } else { HeaderValue::from_static("http") };
    let told_proto =
        headers.get(X_FORWARDED_PROTO).filter(|value| believed && matches!(value.as_bytes(), b"http" | b"https"));
    let received = if hop.version == Version::HTTP_2 { "2 telecomx-gateway" } else { "1.1 telecomx-gateway" };
    let mut fields = vec![
        (HOST, hop.authority.clone()),
        (X_FORWARDED_PROTO, told_proto.cloned().unwrap_or(own_proto)),
        (X_REQUEST_ID, hop.request_id.clone()),
    ];
    fields.extend(forwarded_for.map(|value| (X_FORWARDED_FOR, value)));
    fields.extend(append(&VIA, received).map(|value| (VIA, value)));
    let taken_away = if believed { &[][..] } else { &UNBELIEVED };
    (fields, taken_away)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).fold(
            HeaderMap::new(),
            |mut map, (name, value)| {
                map.append(name, value);
                map
            },
        )
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted = TrustedProxies::new(vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
        let caller = |peer: &str, fields: &[(&'static str, &'static str)]| {
            trusted.caller(peer.parse().unwrap(), &headers(fields)).to_string()
        };
        assert_eq!(caller("192.0.2.1", &[("x-forwarded-for", "198.51.100.7")]), "192.0.2.1");
        assert_eq!(caller("127.0.0.1", &[("x-forwarded-for", "198.51.100.7")]), "198.51.100.7");
        assert_eq!(caller("127.0.0.1", &[("x-forwarded-for", "203.0.113.9, 198.51.100.7, 10.1.2.3")]), "198.51.100.7");
        assert_eq!(
            caller("127.0.0.1", &[("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "10.1.2.3")]),
            "203.0.113.9"
        );
        assert_eq!(caller("127.0.0.1", &[("x-forwarded-for", "203.0.113.9, nonsense")]), "127.0.0.1");
        assert_eq!(caller("::ffff:127.0.0.1", &[("x-forwarded-for", "[2001:db8::1]:443")]), "2001:db8::1");
        assert_eq!(caller("127.0.0.1", &[]), "127.0.0.1");
    }
}
