//! Request heads: strict parsing, the framing of what follows, and the checks of target and `Host`
//! (RFC 9112 sections 2 to 6).

use std::borrow::Cow;
use std::mem::MaybeUninit;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Version};
use thiserror::Error;

use crate::BodyLength;
use crate::field::is_token_byte;
use crate::head::{ConnectionOptions, HeadError, HeadScan, parse_length};

/// Maximum number of fields of a request head.
pub const MAX_REQUEST_FIELDS: usize = 100;

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

/// Memory for the fields of a head that is parsed, on the stack of the caller.
pub struct FieldSlots<'b>([MaybeUninit<httparse::Header<'b>>; MAX_REQUEST_FIELDS]);

impl FieldSlots<'_> {
    #[must_use]
    pub const fn new() -> Self {
        FieldSlots([const { MaybeUninit::uninit() }; MAX_REQUEST_FIELDS])
    }
}

impl Default for FieldSlots<'_> {
    fn default() -> Self {
        FieldSlots::new()
    }
}

/// A checked request head, in place: every part refers to the bytes that were received.
#[derive(Clone, Copy, Debug)]
pub struct RequestHeadRef<'s, 'b> {
    pub method: &'b str,
    /// The target as received; its form was checked. See [`RequestHeadRef::origin_form`].
    pub target: &'b str,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    fields: &'s [httparse::Header<'b>],
    /// Framing of the body, never [`BodyLength::UntilClose`].
    pub body: BodyLength,
    /// Whether the client accepts another exchange on the connection after this one.
    pub is_persistent: bool,
    /// Always [`Expectation::None`] for HTTP/1.0.
    pub expectation: Expectation,
    /// Whether the head has a field `Upgrade`.
    pub asks_for_upgrade: bool,
}

/// A request head that owns its parts, of any protocol version.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    /// The target in origin form, or `*`.
    pub target: String,
    pub version: Version,
    /// Fields as received, hop-by-hop fields included.
    pub fields: HeaderMap,
}

impl RequestHead {
    /// The path of the target.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&*self.target, |(path, _)| path)
    }

    /// The query of the target, without its `?`.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }
}

/// Length of the empty lines at the beginning of `buffer`, which a server skips before a request
/// (RFC 9112 section 2.2). The caller bounds their number.
#[must_use]
pub fn empty_lines_before_request(buffer: &[u8]) -> usize {
    buffer.chunks_exact(2).take_while(|line| *line == b"\r\n").count() * 2
}

/// Finds the length of the head at the beginning of `buffer`; `None` if more bytes are needed.
///
/// `scan` is new for each head, and remembers what the earlier calls for it looked at.
///
/// # Errors
///
/// The bytes cannot become an acceptable head; the connection must be closed after a response.
pub fn find_request_end(
    scan: &mut HeadScan,
    buffer: &[u8],
    max_bytes: usize,
) -> Result<Option<usize>, RequestHeadError> {
    if buffer.first().is_some_and(|&byte| !is_token_byte(byte)) {
        return Err(HeadError::Malformed.into());
    }
    Ok(scan.find_end(buffer, max_bytes)?)
}

impl<'s, 'b> RequestHeadRef<'s, 'b> {
    /// Parses a whole head, whose end [`find_request_end`] found.
    ///
    /// # Errors
    ///
    /// The bytes are not an acceptable head; the connection must be closed after a response.
    pub fn parse(head: &'b [u8], slots: &'s mut FieldSlots<'b>) -> Result<Self, RequestHeadError> {
        let mut parsed = httparse::Request::new(&mut []);
        let complete = httparse::ParserConfig::default().parse_request_with_uninit_headers(
            &mut parsed,
            head,
            &mut slots.0,
        );
        match complete {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields.into()),
            _ => return Err(unreadable(head)),
        }
        let (Some(method), Some(target), Some(minor_version)) =
            (parsed.method, parsed.path, parsed.version)
        else {
            return Err(HeadError::Malformed.into());
        };
        check_method(method)?;
        let fields: &'s [httparse::Header<'b>] = parsed.headers;
        let found = DecisiveFields::read(fields, minor_version)?;
        check_target(method, target, found.host)?;
        Ok(RequestHeadRef {
            method,
            target,
            version: if minor_version == 0 { Version::HTTP_10 } else { Version::HTTP_11 },
            fields,
            body: found.body(minor_version)?,
            is_persistent: found.connection.is_persistent(minor_version),
            expectation: found.expectation,
            asks_for_upgrade: found.has_upgrade,
        })
    }

    /// Names, in the case in which they were received, and values of the fields.
    pub fn fields(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + Clone + use<'s, 'b> {
        self.fields.iter().map(|field| (field.name, field.value))
    }

    /// The target in origin form, or `*` (RFC 9112 section 3.2).
    #[must_use]
    pub fn origin_form(&self) -> Cow<'b, str> {
        match split_absolute(self.target) {
            None => Cow::Borrowed(self.target),
            Some(absolute) if absolute.path.starts_with('/') => Cow::Borrowed(absolute.path),
            // An empty path is `/` (RFC 9110 section 4.2.3).
            Some(absolute) => Cow::Owned(format!("/{}", absolute.path)),
        }
    }

    /// Copies the head.
    ///
    /// # Errors
    ///
    /// A part is not valid for the `http` crate. It accepts what this parser accepts.
    pub fn to_head(&self) -> Result<RequestHead, RequestHeadError> {
        let mut fields = HeaderMap::with_capacity(self.fields.len());
        for (name, value) in self.fields() {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| HeadError::Malformed)?;
            let value = HeaderValue::from_bytes(value).map_err(|_| HeadError::Malformed)?;
            fields.append(name, value);
        }
        Ok(RequestHead {
            method: Method::from_bytes(self.method.as_bytes()).map_err(|_| HeadError::Malformed)?,
            target: self.origin_form().into_owned(),
            version: self.version,
            fields,
        })
    }
}

/// The error of a head that `httparse` does not accept.
fn unreadable(head: &[u8]) -> RequestHeadError {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let target = line.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
    if target.iter().all(u8::is_ascii_graphic) {
        HeadError::Malformed.into()
    } else {
        RequestHeadError::TargetCharacter
    }
}

fn check_method(method: &str) -> Result<(), RequestHeadError> {
    match method {
        "CONNECT" | "TRACE" => Err(RequestHeadError::MethodNotAllowed),
        _ if method.len() > MAX_METHOD_BYTES => Err(RequestHeadError::MethodTooLong),
        _ => Ok(()),
    }
}

/// What the fields say about the message and the connection.
struct DecisiveFields<'b> {
    host: Option<&'b [u8]>,
    length: Option<u64>,
    is_chunked: bool,
    connection: ConnectionOptions,
    expectation: Expectation,
    has_upgrade: bool,
}

impl<'b> DecisiveFields<'b> {
    /// Reads every field once.
    fn read(fields: &[httparse::Header<'b>], minor_version: u8) -> Result<Self, RequestHeadError> {
        let mut found = DecisiveFields {
            host: None,
            length: None,
            is_chunked: false,
            connection: ConnectionOptions::default(),
            expectation: Expectation::None,
            has_upgrade: false,
        };
        for field in fields {
            let name = field.name;
            match name.len() {
                4 if name.eq_ignore_ascii_case("host") => {
                    let other = found.host.replace(field.value);
                    other.map_or(Ok(()), |_| Err(RequestHeadError::InvalidHost))?;
                }
                6 if name.eq_ignore_ascii_case("expect") && minor_version > 0 => {
                    let is_first = found.expectation == Expectation::None;
                    let is_continue = field.value.eq_ignore_ascii_case(b"100-continue");
                    found.expectation = match is_first && is_continue {
                        true => Expectation::Continue,
                        false => Expectation::Unknown,
                    };
                }
                7 if name.eq_ignore_ascii_case("upgrade") => found.has_upgrade = true,
                10 if name.eq_ignore_ascii_case("connection") => {
                    if names_protected_field(field.value) {
                        return Err(RequestHeadError::ProtectedFieldNamed);
                    }
                    found.connection.add(field.value);
                }
                14 if name.eq_ignore_ascii_case("content-length") => {
                    let length = parse_length(field.value).ok_or(HeadError::AmbiguousFraming)?;
                    if found.length.replace(length).is_some() {
                        return Err(HeadError::AmbiguousFraming.into());
                    }
                }
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    let is_chunked = field.value.eq_ignore_ascii_case(b"chunked");
                    if !is_chunked || std::mem::replace(&mut found.is_chunked, true) {
                        return Err(HeadError::AmbiguousFraming.into());
                    }
                }
                _ if is_disguised_field(name) => return Err(RequestHeadError::DisguisedField),
                _ => {}
            }
        }
        match found.host {
            Some(host) if Authority::parse(host, 0).is_some() => Ok(found),
            // RFC 9112 section 3.2.2 requires none of HTTP/1.0.
            None if minor_version == 0 => Ok(found),
            _ => Err(RequestHeadError::InvalidHost),
        }
    }

    fn body(&self, minor_version: u8) -> Result<BodyLength, RequestHeadError> {
        match (self.length, self.is_chunked) {
            (None | Some(0), false) => Ok(BodyLength::None),
            (Some(length), false) => Ok(BodyLength::Known(length)),
            (None, true) if minor_version > 0 => Ok(BodyLength::Chunked),
            _ => Err(HeadError::AmbiguousFraming.into()),
        }
    }
}

/// Whether a name is that of a decisive field with `_` in place of `-`.
#[must_use]
pub fn is_disguised_field(name: &str) -> bool {
    let is_same = |decisive: &&str| {
        name.len() == decisive.len()
            && name.bytes().zip(decisive.bytes()).all(|(byte, other)| {
                byte.eq_ignore_ascii_case(&other) || (byte == b'_' && other == b'-')
            })
    };
    memchr::memchr(b'_', name.as_bytes()).is_some() && DECISIVE_FIELDS.iter().any(is_same)
}

/// Whether a value of `Connection` names a field that must reach the next server.
#[must_use]
pub fn names_protected_field(connection: &[u8]) -> bool {
    connection.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).any(|option| {
        PROTECTED_FIELDS.iter().any(|name| option.eq_ignore_ascii_case(name.as_bytes()))
            || option.get(..12).is_some_and(|start| start.eq_ignore_ascii_case(b"x-forwarded-"))
    })
}

fn check_target(method: &str, target: &str, host: Option<&[u8]>) -> Result<(), RequestHeadError> {
    if !is_graphic(target) {
        return Err(RequestHeadError::TargetCharacter);
    }
    if target.contains('#') {
        return Err(RequestHeadError::Fragment);
    }
    let is_origin_form = target.starts_with('/') || (target == "*" && method == "OPTIONS");
    check_origin_form(if is_origin_form { target } else { check_absolute(target, host)? })
}

/// Checks the characters and the length of a target in origin form: what `http::Uri` accepts.
///
/// # Errors
///
/// A character that must be percent-encoded, or too many of them.
pub fn check_origin_form(target: &str) -> Result<(), RequestHeadError> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if !is_graphic(target)
        || memchr::memchr3(b'<', b'>', b'`', path.as_bytes()).is_some()
        || memchr::memchr3(b'"', b'<', b'>', query.as_bytes()).is_some()
    {
        return Err(RequestHeadError::TargetCharacter);
    }
    if target.len() > MAX_TARGET_BYTES {
        return Err(RequestHeadError::TargetTooLong);
    }
    Ok(())
}

/// Whether a text consists of visible ASCII. Without branches, so that it is compiled to vector
/// instructions.
fn is_graphic(text: &str) -> bool {
    text.bytes().fold(true, |all, byte| all & byte.is_ascii_graphic())
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
struct Authority<'a> {
    host: &'a str,
    port: u16,
}

impl PartialEq for Authority<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.port == other.port && self.host.eq_ignore_ascii_case(other.host)
    }
}

impl<'a> Authority<'a> {
    /// Parses `host`, `host:` or `host:port`; an IPv6 address is in brackets.
    fn parse(text: &'a [u8], default_port: u16) -> Option<Self> {
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
        Some(Authority { host, port })
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

    fn parse(
        line: &str,
        fields: &str,
    ) -> Result<RequestHeadRef<'static, 'static>, RequestHeadError> {
        let head: &'static str = format!("{line}\r\n{fields}\r\n").leak();
        let end = find_request_end(&mut HeadScan::default(), head.as_bytes(), 80 << 10)?;
        assert_eq!(end, Some(head.len()), "the head is whole");
        RequestHeadRef::parse(head.as_bytes(), Box::leak(Box::default()))
    }

    #[test]
    fn request_head_in_pieces_needs_more_until_its_empty_line() {
        let text = "POST /x?y=%20 HTTP/1.1\r\nHost: a\r\nX: 1\r\nx: 2\r\nContent-Length: 5\r\n\r\n";
        let mut scan = HeadScan::default();
        for cut in 0..text.len() {
            let end = find_request_end(&mut scan, &text.as_bytes()[..cut], 1 << 10);
            assert_eq!(end, Ok(None), "{cut}");
        }
        let whole = format!("{text}hello");
        let end = find_request_end(&mut scan, whole.as_bytes(), 1 << 10);
        assert_eq!(end, Ok(Some(text.len())));
        let mut slots = FieldSlots::new();
        let head = RequestHeadRef::parse(text.as_bytes(), &mut slots).unwrap();
        assert_eq!((head.method, head.target), ("POST", "/x?y=%20"));
        assert_eq!((head.version, head.body), (Version::HTTP_11, BodyLength::Known(5)));
        let owned = head.to_head().unwrap();
        assert_eq!(owned.fields.get_all("x").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!((owned.path(), owned.query()), ("/x", Some("y=%20")));
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
        assert_eq!(method(MAX_METHOD_BYTES).unwrap().method.len(), MAX_METHOD_BYTES);
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
