//! A request head as it came over the wire, judged before anything else reads it: what two readers could read differently is
//! refused here, on every route. Pure.
//!
//! Source: RFC 9112 sections 2.2, 3, 5 and 6. Stricter than it allows recipients to be: no bare LF, no folding, one
//! `Content-Length` or `chunked` and nothing else, no names that other readers take for another's (`X_Forwarded_For`).

use std::borrow::Cow;
use std::sync::LazyLock;

use bytes::{BufMut, BytesMut};
use http::header::{CONTENT_LENGTH, COOKIE};
use http::{HeaderMap, HeaderValue, Uri, Version};
use memchr::memmem::Finder;

use crate::api::{ApiError, Refusal};

/// Prepared once, since every request's is looked for.
static END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));

/// Fields of a request head at most.
pub const MAX_FIELDS: usize = 100;

/// Characters of a method at most; the longest registered one has 17.
pub const MAX_METHOD: usize = 32;

/// Fields that decide who is calling, where to, or how long a body is: no other spelling of them passes.
const DECISIVE: [&str; 14] = [
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

/// Fields that a caller must not have stripped by naming them in `Connection`.
const NOT_NOMINATED: [&str; 6] = ["authorization", "cookie", "x-api-key", "host", "via", "forwarded"];

/// Where a head ends, with its empty line; `None` as long as more must be read.
pub fn end(buffer: &[u8]) -> Option<usize> {
    END.find(buffer).map(|at| at + 4)
}

/// A head that may be passed on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// To be passed on in its place: an absolute target was made an origin-form one.
    pub instead: Option<BytesMut>,
    pub body: BodyFraming,
    /// It asks for another protocol, whose bytes may follow.
    pub upgrade: bool,
}

/// How the body behind a head is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// Bytes; 0 without a body.
    Length(u64),
    Chunked,
}

impl Default for BodyFraming {
    fn default() -> Self {
        BodyFraming::Length(0)
    }
}

/// Judges a whole head.
///
/// # Errors
/// Malformed, ambiguous, too many fields, or a method that is not served.
pub fn judge(head: &[u8]) -> Result<Passed, ApiError> {
    let malformed = ApiError::BadRequest(Refusal::Malformed);
    if !lines_end_in_crlf(head) || head.contains(&0) {
        return Err(malformed);
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(ApiError::HeadTooLarge),
        _ => return Err(unreadable(head)),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(malformed);
    };
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(ApiError::MethodNotAllowed);
    }
    if method.len() > MAX_METHOD {
        return Err(ApiError::NotImplemented);
    }
    let (host, body) = fields_agree(request.headers, minor)?;
    let origin_form = check_target(method, target, host)?;
    let instead = origin_form.map(|target| {
        let mut rewritten = BytesMut::with_capacity(head.len());
        rewritten.put_slice(method.as_bytes());
        rewritten.put_u8(b' ');
        rewritten.put_slice(target.as_bytes());
        let rest = memchr::memmem::find(head, b" HTTP/").unwrap_or(head.len());
        rewritten.put_slice(&head[rest..]);
        rewritten
    });
    let upgrade = request.headers.iter().any(|field| field.name.eq_ignore_ascii_case("upgrade"));
    Ok(Passed { instead, body, upgrade })
}

/// A head that httparse does not read: CONNECT and TRACE still get their own answer.
fn unreadable(head: &[u8]) -> ApiError {
    let target = head.split(|&b| b == b' ').nth(1).unwrap_or_default();
    if target.iter().any(|b| !b.is_ascii_graphic()) {
        return ApiError::BadRequest(Refusal::ControlCharacter);
    }
    ApiError::BadRequest(Refusal::Malformed)
}

/// Every line ends in CRLF, and neither byte of it stands alone.
pub fn lines_end_in_crlf(head: &[u8]) -> bool {
    memchr::memchr2_iter(b'\r', b'\n', head).all(|at| match head[at] {
        b'\n' => at > 0 && head[at - 1] == b'\r',
        _ => head.get(at + 1) == Some(&b'\n'),
    })
}

/// Checks the fields against each other; returns the value of `Host` and the framing of the body.
fn fields_agree<'a>(fields: &[httparse::Header<'a>], minor: u8) -> Result<(Option<&'a [u8]>, BodyFraming), ApiError> {
    let framing = ApiError::BadRequest(Refusal::Framing);
    let (mut host, mut length, mut coding) = (None, None, None);
    for field in fields {
        let name = field.name;
        if is_disguised(name) {
            return Err(ApiError::BadRequest(Refusal::Malformed));
        } else if name.eq_ignore_ascii_case("host") {
            if host.replace(field.value).is_some() {
                return Err(ApiError::BadRequest(Refusal::MissingHost));
            }
        } else if name.eq_ignore_ascii_case("content-length") {
            let digits = (1..=18).contains(&field.value.len()) && field.value.iter().all(u8::is_ascii_digit);
            let value =
                if digits { field.value.iter().fold(0, |value, b| value * 10 + u64::from(b - b'0')) } else { 0 };
            if !digits || length.replace(value).is_some() {
                return Err(framing);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            let chunked = field.value.eq_ignore_ascii_case(b"chunked");
            if !chunked || minor == 0 || coding.replace(()).is_some() {
                return Err(framing);
            }
        } else if name.eq_ignore_ascii_case("connection") && nominates_protected(field.value) {
            return Err(ApiError::BadRequest(Refusal::ConnectionNominates));
        }
    }
    if length.is_some() && coding.is_some() {
        return Err(framing);
    }
    let body = if coding.is_some() { BodyFraming::Chunked } else { BodyFraming::Length(length.unwrap_or(0)) };
    match host {
        Some(value) if is_authority(value) => Ok((host, body)),
        None if minor == 0 => Ok((None, body)),
        _ => Err(ApiError::BadRequest(Refusal::MissingHost)),
    }
}

/// The number of fields of a message. HTTP/2 may send each cookie as a field, for the sake of compression (RFC 9113
/// section 8.2.3); the message has one.
pub fn count_fields(version: Version, fields: &HeaderMap) -> usize {
    let cookies = if version == Version::HTTP_2 { fields.get_all(COOKIE).iter().count() } else { 0 };
    fields.len() - cookies.saturating_sub(1)
}

/// Judges the target and the fields of a request that came over HTTP/2, which has framing of its own: what HTTP/1.1 behind
/// the gateway could read in another way is refused.
///
/// # Errors
/// Another scheme than `http` and `https`, blanks around a value (RFC 9113 section 8.2.1), a name that other readers take
/// for another's, or more than one length.
pub fn judge_http2(uri: &Uri, fields: &HeaderMap) -> Result<(), ApiError> {
    if uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Err(ApiError::BadRequest(Refusal::OtherAuthority));
    }
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if fields.values().map(HeaderValue::as_bytes).any(|value| is_blank(value.first()) || is_blank(value.last())) {
        return Err(ApiError::BadRequest(Refusal::Malformed));
    }
    if fields.keys().any(|name| is_disguised(name.as_str())) {
        return Err(ApiError::BadRequest(Refusal::Malformed));
    }
    if fields.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return Err(ApiError::BadRequest(Refusal::Framing));
    }
    Ok(())
}

/// Whether a name is one of the decisive ones but for `_` in place of `-`.
pub fn is_disguised(name: &str) -> bool {
    name.contains('_') && {
        let dashed = name.replace('_', "-");
        DECISIVE.iter().any(|decisive| dashed.eq_ignore_ascii_case(decisive))
    }
}

/// Whether a `Connection` value names a field that must not be stripped.
pub fn nominates_protected(value: &[u8]) -> bool {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).any(|name| {
        NOT_NOMINATED.iter().any(|protected| name.eq_ignore_ascii_case(protected.as_bytes()))
            || name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case(b"x-forwarded-"))
    })
}

/// A host and perhaps a port, of the characters that those may have.
pub fn is_authority(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~:[]%".contains(b))
}

/// Longest target that the HTTP library behind this check accepts.
pub const MAX_TARGET: usize = u16::MAX as usize - 1;

/// Checks the request target; returns the origin form of one that came in absolute form.
fn check_target<'a>(method: &str, target: &'a str, host: Option<&[u8]>) -> Result<Option<Cow<'a, str>>, ApiError> {
    let refuse = |refusal| Err(ApiError::BadRequest(refusal));
    if !target.bytes().all(|b| b.is_ascii_graphic()) {
        return refuse(Refusal::ControlCharacter);
    }
    if target.contains('#') {
        return refuse(Refusal::Fragment);
    }
    let origin_form = if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        None
    } else {
        Some(origin_form(target, host)?)
    };
    check_origin_form(origin_form.as_deref().unwrap_or(target)).map_err(ApiError::BadRequest)?;
    Ok(origin_form)
}

/// Checks that a target is what the HTTP library behind this check accepts, so that every refusal
/// is the gateway's own.
///
/// # Errors
/// A character that must be escaped, or too many of them.
pub fn check_origin_form(target: &str) -> Result<(), Refusal> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if !target.bytes().all(|b| b.is_ascii_graphic())
        || path.contains(['<', '>', '`'])
        || query.contains(['"', '<', '>'])
    {
        return Err(Refusal::ControlCharacter);
    }
    if target.len() > MAX_TARGET { Err(Refusal::TargetTooLong) } else { Ok(()) }
}

/// The origin form of an absolute-form target whose authority is that of `Host`. HTTP/1.0 requires
/// no `Host` (RFC 9112 section 3.2.2).
fn origin_form<'a>(target: &'a str, host: Option<&[u8]>) -> Result<Cow<'a, str>, ApiError> {
    let refuse = |refusal| Err(ApiError::BadRequest(refusal));
    let Some((scheme, rest)) = target.split_once("://") else { return refuse(Refusal::Malformed) };
    let default_port = match scheme {
        _ if scheme.eq_ignore_ascii_case("http") => 80,
        _ if scheme.eq_ignore_ascii_case("https") => 443,
        _ => return refuse(Refusal::OtherAuthority),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '\\']).unwrap_or(rest.len()));
    let wanted = Authority::parse(authority.as_bytes(), default_port);
    let agrees = host.is_none_or(|host| Authority::parse(host, default_port) == wanted);
    if wanted.is_none() || !agrees {
        return refuse(Refusal::OtherAuthority);
    }
    match path.bytes().next() {
        Some(b'/') => Ok(Cow::Borrowed(path)),
        // An empty path is `/` (RFC 9110 section 4.2.3).
        None | Some(b'?') => Ok(Cow::Owned(format!("/{path}"))),
        _ => refuse(Refusal::Malformed),
    }
}

/// Host and port of an authority.
#[derive(PartialEq, Eq)]
struct Authority {
    host: String,
    port: u16,
}

impl Authority {
    /// Reads `host`, `host:` or `host:port`; an IPv6 address is in brackets.
    fn parse(text: &[u8], default_port: u16) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| is_authority(text.as_bytes()))?;
        let (host, port) = match text.rfind(':').filter(|at| !text[*at..].contains(']')) {
            Some(at) => (&text[..at], &text[at + 1..]),
            None => (text, ""),
        };
        let port = if port.is_empty() { default_port } else { port.parse().ok()? };
        (!host.is_empty()).then(|| Authority { host: host.to_ascii_lowercase(), port })
    }
}

/// A character of a field's name or of a method (RFC 9110 section 5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::request_head_oracle as oracle;

    fn judged(line: &str, fields: &str) -> Result<Option<String>, ApiError> {
        let head = format!("{line}\r\n{fields}\r\n");
        judge(head.as_bytes()).map(|passed| passed.instead.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()))
    }

    proptest::proptest! {
        /// The fuzz target `request_head` compares the same for longer.
        #[test]
        fn head_that_passes_has_one_reading(
            fields in proptest::collection::vec(
                (
                    proptest::sample::select(&["Host", "Content-Length", "Transfer-Encoding", "X", "x y", ""][..]),
                    proptest::sample::select(&[":", ": ", " :", ":\t", "\r\n", "\n", ""][..]),
                    proptest::sample::select(&["a", "5", "chunked", "CHUNKED", "+5", "", "a\rb", "a\nb", "\0"][..]),
                ),
                0..5,
            ),
            version in proptest::sample::select(&["1.1", "1.0", "1.2"][..]),
        ) {
            let fields: String = fields.iter().map(|(name, colon, value)| format!("{name}{colon}{value}\r\n")).collect();
            let head = format!("POST /x HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
            if let Ok(passed) = judge(head.as_bytes()) {
                let framing = oracle::framing(head.as_bytes());
                proptest::prop_assert!(framing.is_some(), "{:?}", head);
                proptest::prop_assert_eq!(passed.body == BodyFraming::Chunked, framing == Some(oracle::Framing::Chunked), "{:?}", head);
            }
        }
    }

    const GET: &str = "GET / HTTP/1.1";
    const HOST: &str = "Host: a\r\n";

    #[test]
    fn plain_heads_pass_as_they_came() {
        for (line, fields) in [
            (GET, "Host: a:80\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"),
            ("POST /x?y HTTP/1.1", "Host: a\r\nContent-Length: 10\r\n"),
            ("POST /x HTTP/1.1", "Host: a\r\nTransfer-Encoding: Chunked\r\n"),
            ("GET / HTTP/1.0", ""),
            ("OPTIONS * HTTP/1.1", HOST),
            (GET, "Host: a\r\nX_Other: 1\r\n"),
        ] {
            assert_eq!(judged(line, fields), Ok(None), "{line} {fields}");
        }
    }

    #[test]
    fn head_states_the_framing_of_its_body() {
        let body = |fields: &str| judge(format!("POST / HTTP/1.1\r\n{HOST}{fields}\r\n").as_bytes()).unwrap().body;
        for chunked in ["Transfer-Encoding: chunked\r\n", "TRANSFER-encoding:CHUNKED\r\n"] {
            assert_eq!(body(chunked), BodyFraming::Chunked);
        }
        assert_eq!(body("Content-Length: 0123\r\n"), BodyFraming::Length(123));
        assert_eq!(body("Content-Length: 999999999999999999\r\n"), BodyFraming::Length(999_999_999_999_999_999));
        assert_eq!(body(""), BodyFraming::Length(0));
    }

    #[test]
    fn an_absolute_target_of_the_same_host_becomes_a_path() {
        let rewritten = judged("GET http://a/x?y=%20 HTTP/1.1", HOST).unwrap().unwrap();
        assert_eq!(rewritten, "GET /x?y=%20 HTTP/1.1\r\nHost: a\r\n\r\n");
        for (target, host, origin_form) in [
            ("HTTP://A", "Host: a\r\n", "/"),
            ("http://a:80/x", "Host: a\r\n", "/x"),
            ("http://a/x", "Host: a:80\r\n", "/x"),
            ("http://a:/x", "Host: a\r\n", "/x"),
            ("https://a:443/x", "Host: A\r\n", "/x"),
            ("http://a:8080/x", "Host: a:8080\r\n", "/x"),
            ("http://a?x=1", "Host: a\r\n", "/?x=1"),
            ("http://[::1]:80/x", "Host: [::1]\r\n", "/x"),
        ] {
            let rewritten = judged(&format!("GET {target} HTTP/1.1"), host).unwrap().unwrap();
            assert!(rewritten.starts_with(&format!("GET {origin_form} HTTP/1.1\r\n")), "{target}: {rewritten}");
        }
        let rewritten = judged("GET http://b/x HTTP/1.0", "").unwrap().unwrap();
        assert_eq!(rewritten, "GET /x HTTP/1.0\r\n\r\n");
    }

    #[test]
    fn target_that_is_accepted_is_accepted_by_the_library() {
        for byte in b'!'..=b'~' {
            for (before, after) in [("/x", "y"), ("/x?q=", "y"), ("/x?", ""), ("/", "")] {
                let target = format!("{before}{}{after}", char::from(byte));
                let library = target.parse::<http::uri::PathAndQuery>().is_ok_and(|read| read.as_str() == target);
                assert_eq!(check_target("GET", &target, None).is_ok(), library, "{target}");
            }
        }
        for length in [MAX_TARGET - 1, MAX_TARGET, MAX_TARGET + 1, MAX_TARGET + 2] {
            let target = format!("/?{}", "x".repeat(length - 2));
            let library = target.parse::<http::uri::PathAndQuery>().is_ok();
            assert_eq!(check_target("GET", &target, None).is_ok(), library, "{length}");
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for (line, fields, refusal) in [
            ("GET http://evil/ HTTP/1.1", HOST, Refusal::OtherAuthority),
            ("GET http://a@evil/ HTTP/1.1", HOST, Refusal::OtherAuthority),
            ("GET ftp://a/ HTTP/1.1", HOST, Refusal::OtherAuthority),
            ("GET http://a:81/ HTTP/1.1", HOST, Refusal::OtherAuthority),
            ("GET https://a/ HTTP/1.1", "Host: a:80\r\n", Refusal::OtherAuthority),
            ("GET http://a:443/ HTTP/1.1", HOST, Refusal::OtherAuthority),
            ("GET http://a:99999/ HTTP/1.1", HOST, Refusal::OtherAuthority),
            ("GET http:///x HTTP/1.1", HOST, Refusal::OtherAuthority),
            ("GET http://u@b/ HTTP/1.0", "", Refusal::OtherAuthority),
            ("GET http://a\\x HTTP/1.1", HOST, Refusal::Malformed),
            ("GET /x?q=\"y HTTP/1.1", HOST, Refusal::ControlCharacter),
            ("GET /x<y HTTP/1.1", HOST, Refusal::ControlCharacter),
            ("GET * HTTP/1.1", HOST, Refusal::Malformed),
            ("GET a HTTP/1.1", HOST, Refusal::Malformed),
            ("GET /x#y HTTP/1.1", HOST, Refusal::Fragment),
            ("GET /\u{e6} HTTP/1.1", HOST, Refusal::ControlCharacter),
            (GET, "", Refusal::MissingHost),
            (GET, "Host:\r\n", Refusal::MissingHost),
            (GET, "Host: a\r\nHost: a\r\n", Refusal::MissingHost),
            (GET, "Host: a b\r\n", Refusal::MissingHost),
            (GET, "Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n", Refusal::Framing),
            (GET, "Host: a\r\nContent-Length: 1, 1\r\n", Refusal::Framing),
            (GET, "Host: a\r\nContent-Length: +1\r\n", Refusal::Framing),
            (GET, "Host: a\r\nContent-Length:\r\n", Refusal::Framing),
            (GET, "Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n", Refusal::Framing),
            (GET, "Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", Refusal::Framing),
            (GET, "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Refusal::Framing),
            (GET, "Host: a\r\nTransfer-Encoding: xchunked\r\n", Refusal::Framing),
            ("GET / HTTP/1.0", "Transfer-Encoding: chunked\r\n", Refusal::Framing),
            (GET, "Host: a\r\nContent_Length: 1\r\n", Refusal::Malformed),
            (GET, "Host: a\r\nX_Api_Key: 1\r\n", Refusal::Malformed),
            (GET, "Host: a\r\nX: 1\r\n folded\r\n", Refusal::Malformed),
            (GET, "Host: a\r\nX : 1\r\n", Refusal::Malformed),
            (GET, "Host: a\nX: 1\r\n", Refusal::Malformed),
            (GET, "Host: a\r\nX: 1\r2\r\n", Refusal::Malformed),
            (GET, "Host: a\r\nX: \0\r\n", Refusal::Malformed),
            ("GET / HTTP/1.2", HOST, Refusal::Malformed),
            ("GET  / HTTP/1.1", HOST, Refusal::Malformed),
            (GET, "Host: a\r\nConnection: close, Authorization\r\n", Refusal::ConnectionNominates),
            (GET, "Host: a\r\nConnection: X-Forwarded-For\r\n", Refusal::ConnectionNominates),
        ] {
            assert_eq!(judged(line, fields), Err(ApiError::BadRequest(refusal)), "{line:?} {fields:?}");
        }
    }

    #[test]
    fn too_many_fields_and_methods_that_are_not_served() {
        let hundred = format!("{HOST}{}", "X: 1\r\n".repeat(99));
        assert_eq!(judged(GET, &hundred), Ok(None));
        assert_eq!(judged(GET, &format!("{hundred}X: 1\r\n")), Err(ApiError::HeadTooLarge));
        assert_eq!(judged("TRACE / HTTP/1.1", HOST), Err(ApiError::MethodNotAllowed));
        let long = |length: usize| judged(&format!("{} / HTTP/1.1", "A".repeat(length)), HOST);
        assert_eq!((long(MAX_METHOD), long(MAX_METHOD + 1)), (Ok(None), Err(ApiError::NotImplemented)));
        assert_eq!(judged("CONNECT a:443 HTTP/1.1", HOST), Err(ApiError::MethodNotAllowed));
    }
}
