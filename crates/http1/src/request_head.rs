//! Request heads: strict parsing, the framing of what follows, and the checks of target and `Host`
//! (RFC 9112 sections 2 to 6).

use std::borrow::Cow;
use std::mem::MaybeUninit;

use http::header::{CONNECTION, EXPECT, HOST, HeaderValue};
use http::{HeaderMap, Method, Version};
use thiserror::Error;

use crate::BodyLength;
use crate::field::is_token_byte;
use crate::head::{FieldFraming, Fields, HeadError, HeadLimits, HeadScan, MAX_FIELDS};

/// Maximum length of a method; the longest registered one has 17 characters.
pub const MAX_METHOD_BYTES: usize = 32;

/// Maximum length of a target, which is what `http::Uri` can hold.
pub const MAX_TARGET_BYTES: usize = u16::MAX as usize - 1;

/// Fields that decide who the client is, where to or how long a body is.
///
/// Some servers read `_` in a name as `-`, so no other spelling of these is accepted.
const DECISIVE_FIELDS: [&str; 14] = [
    "authorization",
    "x-api-key",
    "cookie",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-request-id",
    "upgrade",
];

/// Fields that a client must not have removed by a `Connection` option of their name.
const PROTECTED_FIELDS: [&str; 8] = [
    "authorization",
    "cookie",
    "x-api-key",
    "host",
    "via",
    "forwarded",
    "content-length",
    "transfer-encoding",
];

/// Reason why bytes are not an acceptable request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestHeadError {
    /// What a response head can be refused for too.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// CONNECT or TRACE: a proxy that does not serve them would have to frame them differently.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// The method is longer than [`MAX_METHOD_BYTES`].
    #[error("method too long")]
    MethodTooLong,
    /// A character in the target that must be percent-encoded.
    #[error("invalid character in the request target")]
    TargetCharacter,
    /// The target has a fragment, which a client keeps to itself.
    #[error("fragment in the request target")]
    Fragment,
    /// The target is longer than [`MAX_TARGET_BYTES`].
    #[error("request target too long")]
    TargetTooLong,
    /// Neither origin form, nor absolute form, nor `*` for OPTIONS.
    #[error("malformed request target")]
    TargetForm,
    /// The absolute form names another scheme than http or https, or another authority than `Host`.
    #[error("request target and host differ")]
    OtherAuthority,
    /// `Host` is missing, repeated or not a host with an optional port.
    #[error("missing or malformed host")]
    InvalidHost,
    /// A field that decides something, with `_` in its name in place of `-`.
    #[error("misspelled field name")]
    DisguisedField,
    /// A `Connection` option names a field that must reach the next server.
    #[error("protected field named in connection")]
    ProtectedFieldNamed,
}

/// What the `Expect` fields ask for (RFC 9110 section 10.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    None,
    /// `100-continue`: the client waits for an interim response before it sends the body.
    Continue,
    /// Another expectation; 417 is the response to it.
    Unknown,
}

/// A parsed request head.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    /// The target as received; its form was checked. See [`RequestHead::origin_form`].
    pub target: String,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// Fields as received, hop-by-hop fields included.
    pub fields: HeaderMap,
    /// Framing of the body, never [`BodyLength::UntilClose`].
    pub body: BodyLength,
    /// Whether the client accepts another exchange on the connection after this one.
    pub is_persistent: bool,
    /// Always [`Expectation::None`] for HTTP/1.0.
    pub expectation: Expectation,
}

/// Length of the empty lines at the beginning of `buffer`, which a server skips before a request
/// (RFC 9112 section 2.2). The caller bounds their number.
#[must_use]
pub fn empty_lines_before_request(buffer: &[u8]) -> usize {
    buffer.chunks_exact(2).take_while(|line| *line == b"\r\n").count() * 2
}

impl RequestHead {
    /// Parses the head at the beginning of `buffer`.
    ///
    /// Returns the head and its length, or `None` if more bytes are needed. A reader that receives
    /// the head in pieces uses [`RequestHead::resume`], which does not begin again each time.
    ///
    /// # Errors
    ///
    /// The bytes cannot become an acceptable head; the connection must be closed after a response.
    pub fn parse(
        buffer: &[u8],
        limits: &HeadLimits,
    ) -> Result<Option<(Self, usize)>, RequestHeadError> {
        Self::resume(&mut HeadScan::default(), buffer, limits)
    }

    /// Like [`RequestHead::parse`], with the progress of the earlier calls for the same head.
    ///
    /// `scan` is new for each head.
    ///
    /// # Errors
    ///
    /// As [`RequestHead::parse`].
    pub fn resume(
        scan: &mut HeadScan,
        buffer: &[u8],
        limits: &HeadLimits,
    ) -> Result<Option<(Self, usize)>, RequestHeadError> {
        if buffer.first().is_some_and(|&byte| !is_token_byte(byte)) {
            return Err(HeadError::Malformed.into());
        }
        let Some(length) = scan.find_end(buffer, limits.max_bytes)? else { return Ok(None) };
        parse_head(&buffer[..length], limits).map(|head| Some((head, length)))
    }

    /// The target in origin form, or `*` (RFC 9112 section 3.2).
    #[must_use]
    pub fn origin_form(&self) -> Cow<'_, str> {
        match split_absolute(&self.target) {
            None => Cow::Borrowed(&self.target),
            Some(absolute) if absolute.path.starts_with('/') => Cow::Borrowed(absolute.path),
            // An empty path is `/` (RFC 9110 section 4.2.3).
            Some(absolute) => Cow::Owned(format!("/{}", absolute.path)),
        }
    }
}

/// Parses a whole head, whose line ends were checked.
fn parse_head(head: &[u8], limits: &HeadLimits) -> Result<RequestHead, RequestHeadError> {
    let mut storage = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let complete = httparse::ParserConfig::default().parse_request_with_uninit_headers(
        &mut parsed,
        head,
        &mut storage,
    );
    match complete {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields.into()),
        _ => return Err(HeadError::Malformed.into()),
    }
    let (Some(method), Some(target), Some(minor_version)) =
        (parsed.method, parsed.path, parsed.version)
    else {
        return Err(HeadError::Malformed.into());
    };
    let method = parse_method(method)?;
    let fields = Fields::from_parsed(parsed.headers, minor_version, limits)?;
    if fields.map.keys().any(|name| is_disguised(name.as_str())) {
        return Err(RequestHeadError::DisguisedField);
    }
    if fields.map.get_all(CONNECTION).iter().any(names_protected_field) {
        return Err(RequestHeadError::ProtectedFieldNamed);
    }
    let host = parse_host(&fields.map, minor_version)?;
    check_target(&method, target, host)?;
    let body = match fields.framing {
        FieldFraming::Unspecified | FieldFraming::Length(0) => BodyLength::None,
        FieldFraming::Length(length) => BodyLength::Known(length),
        FieldFraming::Chunked => BodyLength::Chunked,
    };
    Ok(RequestHead {
        method,
        target: target.to_owned(),
        version: if minor_version == 0 { Version::HTTP_10 } else { Version::HTTP_11 },
        body,
        is_persistent: fields.connection.is_persistent(minor_version),
        expectation: parse_expectation(&fields.map, minor_version),
        fields: fields.map,
    })
}

fn parse_method(method: &str) -> Result<Method, RequestHeadError> {
    match method {
        "CONNECT" | "TRACE" => Err(RequestHeadError::MethodNotAllowed),
        _ if method.len() > MAX_METHOD_BYTES => Err(RequestHeadError::MethodTooLong),
        _ => Ok(Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed)?),
    }
}

/// Whether a name is a decisive one with `_` in place of `-`.
fn is_disguised(name: &str) -> bool {
    name.contains('_') && DECISIVE_FIELDS.contains(&&*name.replace('_', "-"))
}

fn names_protected_field(connection: &HeaderValue) -> bool {
    connection.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii).any(|option| {
        PROTECTED_FIELDS.iter().any(|name| option.eq_ignore_ascii_case(name.as_bytes()))
            || option.get(..12).is_some_and(|start| start.eq_ignore_ascii_case(b"x-forwarded-"))
    })
}

fn parse_host(fields: &HeaderMap, minor_version: u8) -> Result<Option<&[u8]>, RequestHeadError> {
    let mut hosts = fields.get_all(HOST).iter().map(HeaderValue::as_bytes);
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if Authority::parse(host, 0).is_some() => Ok(Some(host)),
        // RFC 9112 section 3.2.2 requires none of HTTP/1.0.
        (None, None) if minor_version == 0 => Ok(None),
        _ => Err(RequestHeadError::InvalidHost),
    }
}

fn parse_expectation(fields: &HeaderMap, minor_version: u8) -> Expectation {
    let mut values = fields.get_all(EXPECT).iter().map(HeaderValue::as_bytes);
    match (values.next(), values.next()) {
        (None, _) => Expectation::None,
        _ if minor_version == 0 => Expectation::None,
        (Some(value), None) if value.eq_ignore_ascii_case(b"100-continue") => Expectation::Continue,
        _ => Expectation::Unknown,
    }
}

fn check_target(
    method: &Method,
    target: &str,
    host: Option<&[u8]>,
) -> Result<(), RequestHeadError> {
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(RequestHeadError::TargetCharacter);
    }
    if target.contains('#') {
        return Err(RequestHeadError::Fragment);
    }
    let is_origin_form = target.starts_with('/');
    let is_asterisk = target == "*" && *method == Method::OPTIONS;
    let path = if is_origin_form || is_asterisk { target } else { check_absolute(target, host)? };
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    // The characters that `http::Uri` does not accept either.
    if path.contains(['<', '>', '`']) || query.contains(['"', '<', '>']) {
        return Err(RequestHeadError::TargetCharacter);
    }
    if target.len() > MAX_TARGET_BYTES {
        return Err(RequestHeadError::TargetTooLong);
    }
    Ok(())
}

/// A target in absolute form.
struct Absolute<'a> {
    scheme: &'a str,
    authority: &'a str,
    path: &'a str,
}

fn split_absolute(target: &str) -> Option<Absolute<'_>> {
    if target.starts_with('/') {
        return None;
    }
    let (scheme, rest) = target.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '\\']).unwrap_or(rest.len()));
    Some(Absolute { scheme, authority, path })
}

/// Checks an absolute-form target against `Host`; returns its path and query.
fn check_absolute<'a>(target: &'a str, host: Option<&[u8]>) -> Result<&'a str, RequestHeadError> {
    let absolute = split_absolute(target).ok_or(RequestHeadError::TargetForm)?;
    let default_port = match absolute.scheme {
        scheme if scheme.eq_ignore_ascii_case("http") => 80,
        scheme if scheme.eq_ignore_ascii_case("https") => 443,
        _ => return Err(RequestHeadError::OtherAuthority),
    };
    let wanted = Authority::parse(absolute.authority.as_bytes(), default_port)
        .ok_or(RequestHeadError::OtherAuthority)?;
    if host.is_some_and(|host| Authority::parse(host, default_port).as_ref() != Some(&wanted)) {
        return Err(RequestHeadError::OtherAuthority);
    }
    match absolute.path.bytes().next() {
        None | Some(b'/' | b'?') => Ok(absolute.path),
        Some(_) => Err(RequestHeadError::TargetForm),
    }
}

/// Host and port of an authority.
#[derive(PartialEq, Eq)]
struct Authority {
    host: String,
    port: u16,
}

impl Authority {
    /// Parses `host`, `host:` or `host:port`; an IPv6 address is in brackets.
    fn parse(text: &[u8], default_port: u16) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (host, port) = match text.rfind(':').filter(|at| !text[*at..].contains(']')) {
            Some(at) => (&text[..at], &text[at + 1..]),
            None => (text, ""),
        };
        let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => is_made_of(address, b":.%-_~"),
            None => is_made_of(host, b".%-_~"),
        };
        if !is_host || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let port = if port.is_empty() { default_port } else { port.parse().ok()? };
        Some(Authority { host: host.to_ascii_lowercase(), port })
    }
}

fn is_made_of(text: &str, others: &[u8]) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || others.contains(&byte);
    !text.is_empty() && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1";
    const HOST_A: &str = "Host: a\r\n";

    fn parse(line: &str, fields: &str) -> Result<RequestHead, RequestHeadError> {
        let limits = HeadLimits { max_bytes: 80 << 10, max_fields: 100 };
        let head = format!("{line}\r\n{fields}\r\n");
        let parsed = RequestHead::parse(head.as_bytes(), &limits);
        parsed.map(|parsed| parsed.expect("the head is whole").0)
    }

    #[test]
    fn request_head_in_pieces_needs_more_until_its_empty_line() {
        let text = "POST /x?y=%20 HTTP/1.1\r\nHost: a\r\nX: 1\r\nx: 2\r\nContent-Length: 5\r\n\r\n";
        let limits = HeadLimits::default();
        let mut scan = HeadScan::default();
        for cut in 0..text.len() {
            let parsed = RequestHead::resume(&mut scan, &text.as_bytes()[..cut], &limits).unwrap();
            assert!(parsed.is_none(), "{cut}");
        }
        let whole = format!("{text}hello");
        let (head, length) =
            RequestHead::resume(&mut scan, whole.as_bytes(), &limits).unwrap().unwrap();
        assert_eq!(length, text.len());
        assert_eq!((head.method.as_str(), head.target.as_str()), ("POST", "/x?y=%20"));
        assert_eq!((head.version, head.body), (Version::HTTP_11, BodyLength::Known(5)));
        assert_eq!(head.fields.get_all("x").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(head.is_persistent);
        assert_eq!(head.expectation, Expectation::None);
    }

    #[test]
    fn request_framing_persistence_and_expectation_follow_the_fields() {
        use BodyLength::{Chunked, Known, None};
        use Expectation::{Continue, Unknown};
        let nothing = Expectation::None;
        for (version, fields, body, persistent, expectation) in [
            ("1.1", "", None, true, nothing),
            ("1.1", "Content-Length: 0\r\n", None, true, nothing),
            ("1.1", "Content-Length: 0123\r\n", Known(123), true, nothing),
            ("1.1", "transfer-encoding:CHUNKED\r\n", Chunked, true, nothing),
            ("1.1", "Connection: x, Close\r\n", None, false, nothing),
            ("1.1", "Connection: keep-alive, Upgrade\r\nUpgrade: x\r\n", None, true, nothing),
            ("1.0", "", None, false, nothing),
            ("1.0", "Content-Length: 5\r\nConnection: keep-alive\r\n", Known(5), true, nothing),
            ("1.1", "Content-Length: 5\r\nExpect: 100-Continue\r\n", Known(5), true, Continue),
            ("1.1", "Expect: 100-continue, x\r\n", None, true, Unknown),
            ("1.1", "Expect: 100-continue\r\nExpect: x\r\n", None, true, Unknown),
            ("1.1", "Expect: 200-ok\r\n", None, true, Unknown),
            ("1.1", "Expect:\r\n", None, true, Unknown),
            ("1.0", "Content-Length: 5\r\nExpect: 100-continue\r\n", Known(5), false, nothing),
        ] {
            let line = format!("POST / HTTP/{version}");
            let head = parse(&line, &format!("{HOST_A}{fields}")).unwrap();
            let found = (head.body, head.is_persistent, head.expectation);
            assert_eq!(found, (body, persistent, expectation), "{version} {fields:?}");
        }
    }

    #[test]
    fn absolute_target_of_the_same_host_has_an_origin_form() {
        for (target, host, origin_form) in [
            ("/x?y=http://b/", "Host: a\r\n", "/x?y=http://b/"),
            ("HTTP://A", "Host: a\r\n", "/"),
            ("http://a:80/x", "Host: a\r\n", "/x"),
            ("http://a/x", "Host: a:80\r\n", "/x"),
            ("http://a:/x", "Host: a\r\n", "/x"),
            ("https://a:443/x", "Host: A\r\n", "/x"),
            ("http://a:8080/x", "Host: a:8080\r\n", "/x"),
            ("http://a?x=1", "Host: a\r\n", "/?x=1"),
            ("http://[::1]:80/x", "Host: [::1]\r\n", "/x"),
        ] {
            let head = parse(&format!("GET {target} HTTP/1.1"), host).unwrap();
            assert_eq!(head.target, target);
            assert_eq!(head.origin_form(), origin_form, "{target}");
        }
        assert_eq!(parse("GET http://b/x HTTP/1.0", "").unwrap().origin_form(), "/x");
        assert_eq!(parse("OPTIONS * HTTP/1.1", HOST_A).unwrap().origin_form(), "*");
    }

    #[test]
    fn target_that_is_accepted_is_accepted_by_the_http_crate() {
        for byte in b'!'..=b'~' {
            for (before, after) in [("/x", "y"), ("/x?q=", "y"), ("/x?", ""), ("/", "")] {
                let target = format!("{before}{}{after}", char::from(byte));
                let library = target.parse::<http::uri::PathAndQuery>();
                let library = library.is_ok_and(|read| read.as_str() == target);
                let head = parse(&format!("GET {target} HTTP/1.1"), HOST_A);
                assert_eq!(head.is_ok(), library, "{target}");
            }
        }
        for length in [MAX_TARGET_BYTES, MAX_TARGET_BYTES + 1] {
            let target = format!("/?{}", "x".repeat(length - 2));
            let library = target.parse::<http::uri::PathAndQuery>().is_ok();
            let head = parse(&format!("GET {target} HTTP/1.1"), HOST_A);
            assert_eq!(head.is_ok(), library, "{length}");
        }
    }

    #[test]
    fn request_head_that_two_readers_could_read_differently_is_refused() {
        use HeadError::{AmbiguousFraming, Malformed};
        use RequestHeadError::*;
        let (malformed, framing) = (Head(Malformed), Head(AmbiguousFraming));
        for (line, fields, error) in [
            ("GET http://evil/ HTTP/1.1", HOST_A, OtherAuthority),
            ("GET http://a@evil/ HTTP/1.1", HOST_A, OtherAuthority),
            ("GET ftp://a/ HTTP/1.1", HOST_A, OtherAuthority),
            ("GET http://a:81/ HTTP/1.1", HOST_A, OtherAuthority),
            ("GET https://a/ HTTP/1.1", "Host: a:80\r\n", OtherAuthority),
            ("GET http://a:443/ HTTP/1.1", HOST_A, OtherAuthority),
            ("GET http://a:99999/ HTTP/1.1", HOST_A, OtherAuthority),
            ("GET http:///x HTTP/1.1", HOST_A, OtherAuthority),
            ("GET http://u@b/ HTTP/1.0", "", OtherAuthority),
            ("GET http://a:80:80/ HTTP/1.1", HOST_A, OtherAuthority),
            ("GET http://a\\x HTTP/1.1", HOST_A, TargetForm),
            ("GET a HTTP/1.1", HOST_A, TargetForm),
            ("GET * HTTP/1.1", HOST_A, TargetForm),
            ("GET a:80 HTTP/1.1", HOST_A, TargetForm),
            ("GET /x#y HTTP/1.1", HOST_A, Fragment),
            ("GET /x?q=\"y HTTP/1.1", HOST_A, TargetCharacter),
            ("GET /x<y HTTP/1.1", HOST_A, TargetCharacter),
            ("CONNECT a:443 HTTP/1.1", HOST_A, MethodNotAllowed),
            ("TRACE / HTTP/1.1", HOST_A, MethodNotAllowed),
            (GET, "", InvalidHost),
            (GET, "Host:\r\n", InvalidHost),
            (GET, "Host: a\r\nHost: a\r\n", InvalidHost),
            (GET, "Host: a b\r\n", InvalidHost),
            (GET, "Host: a, b\r\n", InvalidHost),
            (GET, "Host: a/b\r\n", InvalidHost),
            (GET, "Host: u@a\r\n", InvalidHost),
            (GET, "Host: a:b\r\n", InvalidHost),
            (GET, "Host: a:80:80\r\n", InvalidHost),
            (GET, "Host: a:99999\r\n", InvalidHost),
            (GET, "Host: [::1\r\n", InvalidHost),
            (GET, "Host: ::1\r\n", InvalidHost),
            (GET, "Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n", framing),
            (GET, "Host: a\r\nContent-Length: 1, 1\r\n", framing),
            (GET, "Host: a\r\nContent-Length: +1\r\n", framing),
            (GET, "Host: a\r\nContent-Length:\r\n", framing),
            (GET, "Host: a\r\nContent-Length: 1234567890123456789\r\n", framing),
            (GET, "Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n", framing),
            (GET, "Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", framing),
            (GET, "Host: a\r\nTransfer-Encoding: xchunked\r\n", framing),
            (GET, "Host: a\r\nTransfer-Encoding: \x0bchunked\r\n", malformed),
            ("GET / HTTP/1.0", "Transfer-Encoding: chunked\r\n", framing),
            (GET, "Host: a\r\nContent_Length: 1\r\n", DisguisedField),
            (GET, "Host: a\r\nX_Api_Key: 1\r\n", DisguisedField),
            (GET, "Host: a\r\nX-Forwarded_For: 1\r\n", DisguisedField),
            (GET, "Host: a\r\nConnection: close, Authorization\r\n", ProtectedFieldNamed),
            (GET, "Host: a\r\nConnection: X-Forwarded-For\r\n", ProtectedFieldNamed),
            (
                GET,
                "Host: a\r\nConnection: x\r\nConnection: content-length\r\n",
                ProtectedFieldNamed,
            ),
            (GET, "Host: a\r\nX: 1\r\n folded\r\n", malformed),
            (GET, " Host: a\r\n", malformed),
            (GET, "Host: a\r\nX : 1\r\n", malformed),
            (GET, "Host: a\r\nX\u{e6}: 1\r\n", malformed),
            (GET, "Host: a\nX: 1\r\n", malformed),
            (GET, "Host: a\r\nX: 1\r2\r\n", malformed),
            (GET, "Host: a\r\nX: \0\r\n", malformed),
            ("GET / HTTP/1.2", HOST_A, malformed),
            ("GET / HTTP/2.0", HOST_A, malformed),
            ("GET / http/1.1", HOST_A, malformed),
            ("GET /", HOST_A, malformed),
            ("GET  / HTTP/1.1", HOST_A, malformed),
            ("GET /  HTTP/1.1", HOST_A, malformed),
            ("GET / HTTP/1.1 ", HOST_A, malformed),
            ("GET\t/ HTTP/1.1", HOST_A, malformed),
            ("G(T / HTTP/1.1", HOST_A, malformed),
            (" GET / HTTP/1.1", HOST_A, malformed),
            ("\r\nGET / HTTP/1.1", HOST_A, malformed),
            ("\x16\x03\x01", HOST_A, malformed),
        ] {
            assert_eq!(parse(line, fields).err(), Some(error), "{line:?} {fields:?}");
        }
        let error = parse("GET /\u{e6} HTTP/1.1", HOST_A).unwrap_err();
        assert!([malformed, TargetCharacter].contains(&error), "{error}");
    }

    #[test]
    fn request_head_is_bounded_in_fields_and_method() {
        let hundred = format!("{HOST_A}{}", "X: 1\r\n".repeat(99));
        assert!(parse(GET, &hundred).is_ok());
        let error = parse(GET, &format!("{hundred}X: 1\r\n")).err();
        assert_eq!(error, Some(HeadError::TooManyFields.into()));
        let method = |length| parse(&format!("{} / HTTP/1.1", "A".repeat(length)), HOST_A);
        assert_eq!(method(MAX_METHOD_BYTES).unwrap().method.as_str().len(), MAX_METHOD_BYTES);
        assert_eq!(method(MAX_METHOD_BYTES + 1).err(), Some(RequestHeadError::MethodTooLong));
        let long = format!("{HOST_A}X: {}\r\n", "a".repeat(80 << 10));
        assert_eq!(parse(GET, &long).err(), Some(HeadError::TooLong.into()));
    }

    #[test]
    fn empty_lines_before_a_request_are_counted_whole() {
        for (bytes, length) in
            [("", 0), ("\r", 0), ("\r\n", 2), ("\r\n\r", 2), ("\r\n\r\nGET", 4), ("\n", 0)]
        {
            assert_eq!(empty_lines_before_request(bytes.as_bytes()), length, "{bytes:?}");
        }
    }
}
