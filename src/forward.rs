//! Everything else: passed on as it is, with the fields that a gateway owes (RFC 9110 section 7.6).

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{
    CONNECTION, COOKIE, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, Version};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Fields by which other proxies and content delivery networks state a client's address, or the host and scheme that it
/// asked for, in lower case with `-`. Only trusted proxies may set them, and every `X-Forwarded-*` and
/// [`ADDRESS_SUFFIXES`] with them.
const PROXY_CLAIMS: [&str; 29] = [
    "ali-cdn-real-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-ip",
    "cloudfront-forwarded-proto",
    "cloudfront-viewer-address",
    "coming-from",
    "forwarded",
    "forwarded-for",
    "forwarded-for-ip",
    "front-end-https",
    "real-ip",
    "remote-addr",
    "source-ip",
    "true-client",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-coming-from",
    "x-envoy-external-address",
    "x-forward",
    "x-forward-for",
    "x-forward-proto",
    "x-forwarded",
    "x-host",
    "x-http-host-override",
    "x-nf-client-connection-ip",
    "x-originating-ip",
    "x-scheme",
    "x-url-scheme",
];

/// What names of such fields end with: `X-Client-IP`, `True-Client-IP`, `CF-Connecting-IP`, `X-ProxyUser-Ip`,
/// `X-Vercel-Forwarded-For`.
const ADDRESS_SUFFIXES: [&str; 12] = [
    "-client-addr",
    "-client-address",
    "-client-ip",
    "-connecting-ip",
    "-forwarded-for",
    "-proxyuser-ip",
    "-real-ip",
    "-remote-addr",
    "-remote-ip",
    "-src-ip",
    "-true-ip",
    "-user-ip",
];

/// What names begin with by which a server may be given another URL or method than the one that the gateway judged. Proxies
/// add them to requests to servers behind them, so none of a client's has a meaning, trusted or not.
const URL_OVERRIDES: [&str; 4] = ["x-original-", "x-rewrite-", "x-envoy-original-", "x-override-url"];

/// Whose word on addresses is believed.
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    pub fn new(nets: Vec<IpNet>) -> Self {
        TrustedProxies(nets)
    }

    /// Whether an address is one of them.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address))
    }

    /// The client's address: the last hop that is not a trusted proxy, reading `X-Forwarded-For` from its end. Empty
    /// members are ignored (RFC 9110 section 5.6.1); anything else that is not an address ends the reading.
    pub fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let fields: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
        self.caller_by(peer, &fields)
    }

    /// The same, by the values of the fields.
    pub fn caller_by(&self, peer: IpAddr, fields: &[&[u8]]) -> IpAddr {
        let mut caller = peer.to_canonical();
        let hops = fields.iter().rev().flat_map(|value| list_members(value).rev());
        for hop in hops {
            if !self.trusts(caller) {
                break;
            }
            let Some(address) = std::str::from_utf8(hop).ok().and_then(parse_hop) else { break };
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

/// Fields of one hop (RFC 9110 section 7.6.1, RFC 9113 section 8.2.2), in requests and in responses.
const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// The names of the fields that must not be forwarded: those of one hop, and those that `Connection` names.
pub fn hop_by_hop(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    nominated(headers).into_iter().chain(HOP_BY_HOP)
}

/// The members of a field value that is a list of tokens or addresses, without blanks; empty ones are left out
/// (RFC 9110 section 5.6.1). Not for values with quoted strings, in which a comma separates nothing.
pub fn list_members(value: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// The fields that `Connection` names: they are for one hop alone (RFC 9110 section 7.6.1).
pub fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let names = headers.get_all(CONNECTION).iter().flat_map(|value| list_members(value.as_bytes()));
    names.filter_map(|name| HeaderName::from_bytes(name).ok()).collect()
}

/// Whether the gateway removes a client's field of that name before it forwards the request. `trusted`: the peer is a
/// trusted proxy. A server that reads names as environment variables takes `_` for `-`, so both count as `-` here.
fn is_removed(name: &HeaderName, trusted: bool) -> bool {
    let name = name.as_str();
    let dashed = if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) };
    if URL_OVERRIDES.iter().any(|prefix| dashed.starts_with(prefix)) {
        return true;
    }
    !trusted
        && (dashed.starts_with("x-forwarded-")
            || ADDRESS_SUFFIXES.iter().any(|suffix| dashed.ends_with(suffix))
            || PROXY_CLAIMS.contains(&dashed.as_ref()))
}

/// The `Cookie` field of a request to the API: one, with everything that the client sent. A client may send a field for each
/// cookie over HTTP/2, and servers behind HTTP/1.1 read the first or the last (RFC 9113 section 8.2.3). `None`: there are not
/// several.
pub fn joined_cookies(headers: &HeaderMap) -> Option<HeaderValue> {
    let values = headers.get_all(COOKIE);
    values.iter().nth(1)?;
    let crumbs: Vec<&[u8]> =
        values.iter().map(|value| trim_crumb(value.as_bytes())).filter(|crumb| !crumb.is_empty()).collect();
    HeaderValue::from_bytes(&crumbs.join(&b"; "[..])).ok()
}

/// Without blanks and semicolons around it, which would join to an empty cookie.
fn trim_crumb(mut crumb: &[u8]) -> &[u8] {
    while let [b';' | b' ' | b'\t', rest @ ..] | [rest @ .., b';' | b' ' | b'\t'] = crumb {
        crumb = rest;
    }
    crumb
}

/// The protocol version of a request as `Via` states it (RFC 9110 section 7.6.3).
const fn received_protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9 telecomx-gateway",
        Version::HTTP_10 => "1.0 telecomx-gateway",
        Version::HTTP_2 => "2 telecomx-gateway",
        Version::HTTP_3 => "3 telecomx-gateway",
        // `Version` is open; HTTP/1.1 is the only one left that the gateway speaks.
        _ => "1.1 telecomx-gateway",
    }
}

/// What a forwarded request says of where it came from.
pub struct Hop<'a> {
    pub peer: IpAddr,
    pub trusted: &'a TrustedProxies,
    /// The caller speaks TLS to the gateway.
    pub tls: bool,
    pub version: Version,
    pub request_id: &'a HeaderValue,
}

/// The fields that the gateway sets on a request to the API, in place of those of the same names; and the names of the
/// client's fields that it removes first.
pub fn request_fields(hop: &Hop<'_>, headers: &HeaderMap) -> (Vec<(HeaderName, HeaderValue)>, Vec<HeaderName>) {
    let peer = hop.peer.to_canonical();
    let believed = hop.trusted.trusts(peer);
    let removed = headers.keys().filter(|name| is_removed(name, believed)).cloned().collect();
    // Appended to what other hops stated, in one field.
    let append = |name: &HeaderName, last: &str| {
        let stated = headers.get_all(name).iter().flat_map(|value| list_members(value.as_bytes()));
        let members: Vec<&[u8]> = stated.chain([last.as_bytes()]).collect();
        HeaderValue::try_from(members.join(&b", "[..])).ok()
    };
    let address = peer.to_string();
    let forwarded_for = if believed { append(&X_FORWARDED_FOR, &address) } else { HeaderValue::try_from(address).ok() };
    let own_proto = if hop.tls { HeaderValue::from_static("https") } else { HeaderValue::from_static("http") };
    let told_proto =
        headers.get(X_FORWARDED_PROTO).filter(|value| believed && matches!(value.as_bytes(), b"http" | b"https"));
    let mut fields =
        vec![(X_FORWARDED_PROTO, told_proto.cloned().unwrap_or(own_proto)), (X_REQUEST_ID, hop.request_id.clone())];
    fields.extend(forwarded_for.map(|value| (X_FORWARDED_FOR, value)));
    fields.extend(append(&VIA, received_protocol(hop.version)).map(|value| (VIA, value)));
    (fields, removed)
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

    #[test]
    fn empty_members_of_x_forwarded_for_are_ignored() {
        let trusted = TrustedProxies::new(vec!["127.0.0.0/8".parse().unwrap()]);
        let client = |fields: &[&[u8]]| trusted.caller_by("127.0.0.1".parse().unwrap(), fields).to_string();
        for fields in [
            &[&b"198.51.100.7, "[..]][..],
            &[b",198.51.100.7"],
            &[b"203.0.113.9,, ,198.51.100.7"],
            &[b"203.0.113.9, 198.51.100.7,\t,"],
            &[b"198.51.100.7", b""],
            &[b"", b"198.51.100.7", b" , "],
        ] {
            assert_eq!(client(fields), "198.51.100.7", "{fields:?}");
        }
        assert_eq!(client(&[b"", b","]), "127.0.0.1");
    }

    #[test]
    fn x_forwarded_for_and_via_are_rebuilt_without_empty_members() {
        let trusted = TrustedProxies::new(vec!["127.0.0.0/8".parse().unwrap()]);
        let value = HeaderValue::from_static("x");
        for (version, via) in [
            (Version::HTTP_10, "1.0 telecomx-gateway"),
            (Version::HTTP_11, "1.1 telecomx-gateway"),
            (Version::HTTP_2, "2 telecomx-gateway"),
        ] {
            let hop =
                Hop { peer: "127.0.0.1".parse().unwrap(), trusted: &trusted, tls: false, version, request_id: &value };
            let sent = headers(&[("x-forwarded-for", " ,198.51.100.7,, "), ("via", ""), ("via", "1.0 a,,2 b")]);
            let fields = HeaderMap::from_iter(request_fields(&hop, &sent).0);
            assert_eq!(fields[X_FORWARDED_FOR], "198.51.100.7, 127.0.0.1");
            assert_eq!(fields[VIA], format!("1.0 a, 2 b, {via}"));
        }
    }

    #[test]
    fn address_fields_need_trust_and_url_fields_never_pass() {
        let names = |list: &[&'static str]| -> Vec<HeaderName> {
            list.iter().map(|name| HeaderName::from_static(name)).collect()
        };
        for name in names(&["x-original-url", "x-rewrite-url", "x-original-uri", "x_original_url", "x-original-host"]) {
            assert!(is_removed(&name, true) && is_removed(&name, false), "{name}");
        }
        for name in names(&[
            "forwarded",
            "x-real-ip",
            "x_real_ip",
            "x-client-ip",
            "true-client-ip",
            "cf-connecting-ip",
            "fastly-client-ip",
            "x-cluster-client-ip",
            "x-envoy-external-address",
            "x-proxyuser-ip",
            "x-forwarded-port",
            "x-forwarded-prefix",
            "x-forwarded-server",
            "x-forwarded-host",
            "x-forwarded-anything",
        ]) {
            assert!(!is_removed(&name, true) && is_removed(&name, false), "{name}");
        }
        for name in
            names(&["accept", "referer", "x-recipient", "x-zip", "via", "x-ip-list", "original", "x-request-id"])
        {
            assert!(!is_removed(&name, false), "{name}");
        }
    }

    #[test]
    fn cookie_fields_join_to_one() {
        let joined = |values: &[&'static str]| {
            let fields: Vec<_> = values.iter().map(|value| ("cookie", *value)).collect();
            joined_cookies(&headers(&fields)).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(joined(&["a=1", "b=2", "c=3"]).as_deref(), Some("a=1; b=2; c=3"));
        assert_eq!(joined(&["a=1; ", "", " b=2;", ";c=3"]).as_deref(), Some("a=1; b=2; c=3"));
        assert_eq!(joined(&["a=1"]), None);
        assert_eq!(joined(&[]), None);
    }
}
