//! Fields of forwarded messages: hop-by-hop fields, client addresses and `Via` (RFC 9110 section
//! 7.6).

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HeaderName, HeaderValue, VIA};
use http::{HeaderMap, Version};
use http1::FieldLines;
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Fields by which other proxies and content delivery networks state a client's address, or the
/// host and scheme that it asked for, in lower case with `-`. Only trusted proxies may set them,
/// and every `X-Forwarded-*` and [`ADDRESS_SUFFIXES`] with them.
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

/// Suffixes of such fields: `X-Client-IP`, `True-Client-IP`, `CF-Connecting-IP`, `X-ProxyUser-Ip`,
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

/// Prefixes of fields by which a server may take another URL or method than the one that the
/// gateway checked. Proxies add them for the servers behind them, so they have no meaning from any
/// client, trusted or not.
const URL_OVERRIDES: [&str; 4] =
    ["x-original-", "x-rewrite-", "x-envoy-original-", "x-override-url"];

/// Networks of proxies that may state a client's address.
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    pub fn new(nets: Vec<IpNet>) -> Self {
        TrustedProxies(nets)
    }

    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address))
    }

    /// The client's address: the last hop that is not a trusted proxy, reading `X-Forwarded-For`
    /// from its end. Empty members are ignored (RFC 9110 section 5.6.1); anything else that is not
    /// an address ends the reading.
    pub fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.trusts(peer) {
            return peer.to_canonical();
        }
        let fields: Vec<&[u8]> =
            headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
        self.client_address_from(peer, &fields)
    }

    /// As [`TrustedProxies::client_address`], from the values of `X-Forwarded-For`.
    pub fn client_address_from(&self, peer: IpAddr, fields: &[&[u8]]) -> IpAddr {
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

/// Parses an address as proxies write it: bare, with a port, or in brackets.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split(']').next());
    bracketed
        .unwrap_or(text)
        .parse()
        .ok()
        .or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|a| a.ip()))
}

/// Whether a field is for one hop only, in requests and in responses, whatever `Connection` names
/// (RFC 9110 section 7.6.1, RFC 9113 section 8.2.2). `name`: in any letter case.
fn is_hop_by_hop(name: &[u8]) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    match name.len() {
        2 => is("te"),
        7 => is("trailer") || is("upgrade"),
        10 => is("connection") || is("keep-alive"),
        14 => is("http2-settings"),
        16 => is("proxy-connection"),
        17 => is("transfer-encoding"),
        18 => is("proxy-authenticate"),
        19 => is("proxy-authorization"),
        _ => false,
    }
}

/// The fields of a head that must not be forwarded: those of one hop, and those that `Connection`
/// names.
pub struct HopByHop<'a> {
    /// Fields that `Connection` names, besides those that are always hop-by-hop.
    named: Vec<&'a [u8]>,
}

impl<'a> HopByHop<'a> {
    /// `connection`: the values of the `Connection` fields.
    pub fn new(connection: impl Iterator<Item = &'a [u8]>) -> Self {
        let named = connection
            .flat_map(list_members)
            .filter(|member| !member.eq_ignore_ascii_case(b"keep-alive"));
        HopByHop { named: named.collect() }
    }

    /// As [`HopByHop::new`], from a map of fields.
    pub fn from_map(fields: &'a HeaderMap) -> Self {
        HopByHop::new(fields.get_all(CONNECTION).iter().map(HeaderValue::as_bytes))
    }

    /// Whether a field must not be forwarded. `Content-Length` frames the body, whatever
    /// `Connection` names.
    pub fn contains(&self, name: &[u8]) -> bool {
        let is_named = |member: &&[u8]| member.eq_ignore_ascii_case(name);
        is_hop_by_hop(name)
            || (self.named.iter().any(is_named)
                && !name.eq_ignore_ascii_case(CONTENT_LENGTH.as_str().as_bytes()))
    }
}

/// Removes the fields that must not be forwarded.
pub fn remove_hop_by_hop(fields: &mut HeaderMap) {
    let hop_by_hop = HopByHop::from_map(fields);
    let is_removed = |name: &&HeaderName| hop_by_hop.contains(name.as_str().as_bytes());
    let removed: Vec<HeaderName> = fields.keys().filter(is_removed).cloned().collect();
    for name in removed {
        fields.remove(name);
    }
}

/// Splits a list of tokens or addresses and omits empty members (RFC 9110 section 5.6.1). Not for
/// lists with quoted strings, which may hold commas.
pub fn list_members(value: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Fields that `Connection` names: they are for one hop only (RFC 9110 section 7.6.1).
pub fn connection_options(headers: &HeaderMap) -> Vec<HeaderName> {
    let names = headers.get_all(CONNECTION).iter().flat_map(|value| list_members(value.as_bytes()));
    names.filter_map(|name| HeaderName::from_bytes(name).ok()).collect()
}

/// Whether the gateway removes a client's field of that name before it forwards a request.
/// `trusted`: the peer is a trusted proxy. A server that reads names as environment variables
/// treats `_` as `-`, so both count as `-`.
fn is_removed(name: &HeaderName, trusted: bool) -> bool {
    let name = name.as_str();
    let dashed =
        if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) };
    if dashed.starts_with("x-") && URL_OVERRIDES.iter().any(|prefix| dashed.starts_with(prefix)) {
        return true;
    }
    !trusted
        && (dashed.starts_with("x-forwarded-")
            || ADDRESS_SUFFIXES.iter().any(|suffix| dashed.ends_with(suffix))
            || PROXY_CLAIMS.contains(&dashed.as_ref()))
}

/// Writes one `Cookie` field with all cookies of the client. Over HTTP/2 a client may send one
/// field per cookie, of which HTTP/1.1 servers read only the first or the last (RFC 9113 section
/// 8.2.3).
pub fn push_cookies(lines: &mut FieldLines, values: &[Cow<'_, [u8]>]) {
    match values {
        [] => {}
        [one] => lines.push(&COOKIE, one),
        several => {
            let crumbs =
                several.iter().map(|value| trim_crumb(value)).filter(|crumb| !crumb.is_empty());
            lines.push(&COOKIE, &crumbs.collect::<Vec<_>>().join(&b"; "[..]));
        }
    }
}

/// Removes surrounding blanks and semicolons, which would add an empty cookie.
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
        // `Version` is non-exhaustive; the gateway supports no other version.
        _ => "1.1 telecomx-gateway",
    }
}

/// The client's hop, as a forwarded request describes it.
pub struct Hop<'a> {
    pub peer: IpAddr,
    /// Whether the peer is a trusted proxy.
    pub is_trusted: bool,
    /// Whether the client's connection uses TLS.
    pub is_tls: bool,
    pub version: Version,
    pub request_id: &'a HeaderValue,
}

impl Hop<'_> {
    /// Whether the gateway removes a client's field of that name: the API would trust it, or the
    /// gateway sets it itself (see [`Hop::push_fields`]).
    pub fn removes(&self, name: &HeaderName) -> bool {
        matches!(name.as_str(), "via" | "x-forwarded-for" | "x-forwarded-proto" | "x-request-id")
            || is_removed(name, self.is_trusted)
    }

    /// Writes the fields that the gateway sets on a request to the API. `fields`: the client's.
    pub fn push_fields(&self, lines: &mut FieldLines, fields: &HeaderMap) {
        let mut value = Vec::with_capacity(64);
        if self.is_trusted {
            append_members(&mut value, fields, &X_FORWARDED_FOR);
        }
        append_address(&mut value, self.peer.to_canonical());
        lines.push(&X_FORWARDED_FOR, &value);
        let own: &[u8] = if self.is_tls { b"https" } else { b"http" };
        let stated = if self.is_trusted {
            fields.get(X_FORWARDED_PROTO).map(HeaderValue::as_bytes)
        } else {
            None
        };
        lines.push(
            &X_FORWARDED_PROTO,
            stated.filter(|stated| matches!(*stated, b"http" | b"https")).unwrap_or(own),
        );
        value.clear();
        append_members(&mut value, fields, &VIA);
        value.extend_from_slice(received_protocol(self.version).as_bytes());
        lines.push(&VIA, &value);
        lines.push_value(&X_REQUEST_ID, self.request_id);
    }
}

/// Appends the members of a field that other hops set, each followed by a comma.
fn append_members(value: &mut Vec<u8>, fields: &HeaderMap, name: &HeaderName) {
    for member in fields.get_all(name).iter().flat_map(|field| list_members(field.as_bytes())) {
        value.extend_from_slice(member);
        value.extend_from_slice(b", ");
    }
}

/// Appends an address. IPv4 is formatted here, since its `Display` takes 1,300 instructions.
fn append_address(value: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            for (at, octet) in v4.octets().into_iter().enumerate() {
                if at > 0 {
                    value.push(b'.');
                }
                value.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        IpAddr::V6(v6) => value.extend_from_slice(v6.to_string().as_bytes()),
    }
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

    /// The lines as they are written.
    fn text(lines: &FieldLines) -> String {
        let (mut out, host) = (Vec::new(), HeaderValue::from_static("a"));
        http1::write_request_head(
            &mut out,
            &http::Method::GET,
            "/",
            &host,
            lines,
            http1::RequestFraming::None,
        );
        let text = String::from_utf8(out).unwrap();
        let fields = text.strip_prefix("GET / HTTP/1.1\r\nHost: a\r\n").unwrap();
        fields.strip_suffix("\r\n").unwrap().to_owned()
    }

    #[test]
    fn fields_of_one_hop_are_removed_and_no_others() {
        let mut fields = headers(&[
            ("connection", "Keep-Alive, X-One ,content-length"),
            ("keep-alive", "timeout=5"),
            ("x-one", "1"),
            ("connection", "close"),
            ("close", "1"),
            ("x-two", "2"),
            ("content-length", "3"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("proxy-connection", "x"),
            ("proxy-authenticate", "x"),
            ("proxy-authorization", "x"),
            ("x-two", "4"),
        ]);
        remove_hop_by_hop(&mut fields);
        let left: Vec<_> =
            fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(
            [("x-two", "2"), ("content-length", "3"), ("x-two", "4")]
                .iter()
                .all(|field| left.contains(field))
        );
    }

    #[test]
    fn client_address_needs_trusted_proxies() {
        let trusted = TrustedProxies::new(vec![
            "127.0.0.0/8".parse().unwrap(),
            "10.0.0.0/8".parse().unwrap(),
        ]);
        let client = |peer: &str, fields: &[(&'static str, &'static str)]| {
            trusted.client_address(peer.parse().unwrap(), &headers(fields)).to_string()
        };
        assert_eq!(client("192.0.2.1", &[("x-forwarded-for", "198.51.100.7")]), "192.0.2.1");
        assert_eq!(client("127.0.0.1", &[("x-forwarded-for", "198.51.100.7")]), "198.51.100.7");
        assert_eq!(
            client("127.0.0.1", &[("x-forwarded-for", "203.0.113.9, 198.51.100.7, 10.1.2.3")]),
            "198.51.100.7"
        );
        assert_eq!(
            client(
                "127.0.0.1",
                &[("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "10.1.2.3")]
            ),
            "203.0.113.9"
        );
        assert_eq!(
            client("127.0.0.1", &[("x-forwarded-for", "203.0.113.9, nonsense")]),
            "127.0.0.1"
        );
        assert_eq!(
            client("::ffff:127.0.0.1", &[("x-forwarded-for", "[2001:db8::1]:443")]),
            "2001:db8::1"
        );
        assert_eq!(client("127.0.0.1", &[]), "127.0.0.1");
    }

    #[test]
    fn empty_members_of_x_forwarded_for_are_ignored() {
        let trusted = TrustedProxies::new(vec!["127.0.0.0/8".parse().unwrap()]);
        let client = |fields: &[&[u8]]| {
            trusted.client_address_from("127.0.0.1".parse().unwrap(), fields).to_string()
        };
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
        let value = HeaderValue::from_static("x");
        for (version, via) in [
            (Version::HTTP_10, "1.0 telecomx-gateway"),
            (Version::HTTP_11, "1.1 telecomx-gateway"),
            (Version::HTTP_2, "2 telecomx-gateway"),
        ] {
            let hop = Hop {
                peer: "127.0.0.1".parse().unwrap(),
                is_trusted: true,
                is_tls: false,
                version,
                request_id: &value,
            };
            let sent = headers(&[
                ("x-forwarded-for", " ,198.51.100.7,, "),
                ("via", ""),
                ("via", "1.0 a,,2 b"),
            ]);
            let mut lines = FieldLines::default();
            hop.push_fields(&mut lines, &sent);
            assert_eq!(
                text(&lines),
                format!(
                    "X-Forwarded-For: 198.51.100.7, 127.0.0.1\r\nX-Forwarded-Proto: http\r\n\
                     Via: 1.0 a, 2 b, {via}\r\nX-Request-Id: x\r\n"
                )
            );
        }
    }

    #[test]
    fn address_fields_need_trust_and_url_fields_never_pass() {
        let names = |list: &[&'static str]| -> Vec<HeaderName> {
            list.iter().map(|name| HeaderName::from_static(name)).collect()
        };
        for name in names(&[
            "x-original-url",
            "x-rewrite-url",
            "x-original-uri",
            "x_original_url",
            "x-original-host",
        ]) {
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
        for name in names(&[
            "accept",
            "referer",
            "x-recipient",
            "x-zip",
            "via",
            "x-ip-list",
            "original",
            "x-request-id",
        ]) {
            assert!(!is_removed(&name, false), "{name}");
        }
    }

    #[test]
    fn cookie_fields_join_to_one() {
        let joined = |values: &[&'static str]| {
            let values: Vec<Cow<'_, [u8]>> =
                values.iter().map(|value| Cow::Borrowed(value.as_bytes())).collect();
            let mut lines = FieldLines::default();
            push_cookies(&mut lines, &values);
            text(&lines)
        };
        assert_eq!(joined(&["a=1", "b=2", "c=3"]), "Cookie: a=1; b=2; c=3\r\n");
        assert_eq!(joined(&["a=1; ", "", " b=2;", ";c=3"]), "Cookie: a=1; b=2; c=3\r\n");
        assert_eq!(joined(&["a=1;"]), "Cookie: a=1;\r\n");
        assert_eq!(joined(&[]), "");
    }
}
