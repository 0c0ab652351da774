//! The one shape of request that the lane answers, read from the bytes of its head: `GET /customer/{id}/name` over
//! HTTP/1.1 with a token in `Authorization` or `X-API-Key`, no query, and no field that only a session reads. Pure.
//!
//! It refuses nothing: whatever it is not sure of, it declines, and the ordinary way reads the same bytes from their
//! beginning. What it does read, [`super::head`] lets pass; a fuzz target compares it with pingora's reading.

use crate::api::{CustomerId, Token};

use super::head;

/// The request line around the id.
const BEFORE_ID: &[u8] = b"GET /customer/";
const AFTER_ID: &[u8] = b"/name HTTP/1.1\r\n";

/// Characters of an id.
const ID: usize = 24;

/// Fields of such a request at most; a browser behind two proxies sends about thirty.
const MAX_FIELDS: usize = 64;

/// Fields that a session reads and this module does not: a request with one of them is declined. All
/// other fields are read by neither, so that they change nothing, whatever their names:
///
/// - framing and the connection: `content-length`, `transfer-encoding`, `te`, `trailer`, `upgrade`,
///   `expect`, `proxy-connection`, `keep-alive`
/// - freshness that the client asks for: `cache-control`, `pragma`
/// - the trace that is logged: `traceparent`, `tracestate`
/// - parts of a response: `range`, `if-range`
const DECLINED: [&str; 14] = [
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "proxy-connection",
    "keep-alive",
    "cache-control",
    "pragma",
    "traceparent",
    "tracestate",
    "range",
    "if-range",
];

/// What such a request says.
#[derive(Debug, PartialEq, Eq)]
pub struct Plain<'a> {
    pub customer: CustomerId,
    pub token: &'a str,
    /// The caller's own, if it may be used.
    pub request_id: Option<&'a str>,
    pub forwarded_for: Option<&'a [u8]>,
    pub if_none_match: Option<&'a [u8]>,
    pub origin: Option<&'a [u8]>,
}

impl<'a> Plain<'a> {
    /// Reads a whole head, with its empty line and nothing after it. `None`: declined.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(BEFORE_ID)?;
        let (id, rest) = rest.split_at_checked(ID)?;
        let customer = CustomerId::parse(id)?;
        let rest = rest.strip_prefix(AFTER_ID)?;
        if !head::lines_end_in_crlf(rest) {
            return None;
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let httparse::Status::Complete((length, fields)) = httparse::parse_headers(rest, &mut fields).ok()? else {
            return None;
        };
        if length != rest.len() {
            return None;
        }
        let (mut host, mut authorization, mut connection, mut request_id) = (None, None, None, None);
        let (mut forwarded_for, mut if_none_match, mut origin) = (None, None, None);
        let (mut cookie, mut api_key) = (None, None);
        for httparse::Header { name, value } in fields {
            let place = match name.len() {
                4 if name.eq_ignore_ascii_case("host") => &mut host,
                6 if name.eq_ignore_ascii_case("cookie") => &mut cookie,
                6 if name.eq_ignore_ascii_case("origin") => &mut origin,
                9 if name.eq_ignore_ascii_case("x-api-key") => &mut api_key,
                10 if name.eq_ignore_ascii_case("connection") => &mut connection,
                12 if name.eq_ignore_ascii_case("x-request-id") => &mut request_id,
                13 if name.eq_ignore_ascii_case("authorization") => &mut authorization,
                13 if name.eq_ignore_ascii_case("if-none-match") => &mut if_none_match,
                15 if name.eq_ignore_ascii_case("x-forwarded-for") => &mut forwarded_for,
                _ if head::is_disguised(name) || is_declined(name) => return None,
                _ => continue,
            };
            // Each of them once: what two of them mean is not decided here.
            if place.replace(*value).is_some() {
                return None;
            }
        }
        if !head::is_authority(host?) || !connection.is_none_or(|value| value.eq_ignore_ascii_case(b"keep-alive")) {
            return None;
        }
        let token = match (authorization, api_key) {
            (Some(value), None) => bearer(value)?,
            (None, Some(value)) => visible(value)?,
            _ => return None,
        };
        // The id must hold no credential, of which a cookie may be one; otherwise a cookie next to another
        // credential is not read.
        if cookie.is_some() && request_id.is_some() {
            return None;
        }
        let request_id = request_id.and_then(|value| own_request_id(value, token));
        Some(Plain { customer, token, request_id, forwarded_for, if_none_match, origin })
    }
}

fn is_declined(name: &str) -> bool {
    DECLINED.iter().any(|declined| name.eq_ignore_ascii_case(declined))
}

/// The token of a usual spelling: others are declined, not refused.
fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    visible(token).filter(|_| scheme.eq_ignore_ascii_case(b"Bearer "))
}

fn visible(token: &[u8]) -> Option<&str> {
    let is_token = (1..=Token::MAX_LEN).contains(&token.len()) && token.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(token).ok().filter(|_| is_token)
}

/// The caller's own request id, by the rule that holds for every request: else the answer has a new one.
fn own_request_id<'a>(value: &'a [u8], token: &str) -> Option<&'a str> {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
    let right = (1..=128).contains(&value.len())
        && value.iter().all(allowed)
        && memchr::memmem::find(value, token.as_bytes()).is_none();
    std::str::from_utf8(value).ok().filter(|_| right)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "GET /customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.1\r\n";
    const WHO: &str = "Host: a\r\nAuthorization: Bearer t\r\n";

    fn read(line: &str, fields: &str) -> bool {
        let head = format!("{line}{fields}\r\n");
        Plain::read(head.as_bytes()).is_some()
    }

    #[test]
    fn what_usual_callers_send_is_read() {
        for fields in [
            "",
            "Accept: */*\r\nUser-Agent: curl/8\r\nConnection: Keep-Alive\r\n",
            "X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 198.51.100.7\r\n",
            "Origin: https://app.example\r\nCookie: _ga=1\r\nReferer: https://app.example/\r\n",
            "X-Forwarded-Scheme: https\r\nX-Amzn-Trace-Id: Root=1\r\nCF-Ray: 1\r\nx-envoy-attempt-count: 1\r\n",
            "X-HTTP-Method-Override: POST\r\nSec-WebSocket-Key: x\r\nAnything: else\r\nContent-Type: x\r\n",
            "If-None-Match: \"x\"\r\nSec-Fetch-Mode: cors\r\nsec-ch-ua: a\r\nAccept: text/html\r\nAccept: */*\r\n",
        ] {
            assert!(read(LINE, &format!("{WHO}{fields}")), "{fields:?}");
        }
        let head = "GET /customer/73469A52F4FD7F77EC7B28CC/name HTTP/1.1\r\nhost:a:80\r\nAUTHORIZATION: Bearer abc \r\n\
             X-Request-ID: r-1\r\nX-Forwarded-For: 192.0.2.1\r\nIf-None-Match: *\r\n\r\n";
        let plain = Plain {
            customer: CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap(),
            token: "abc",
            request_id: Some("r-1"),
            forwarded_for: Some(b"192.0.2.1"),
            if_none_match: Some(b"*"),
            origin: None,
        };
        assert_eq!(Plain::read(head.as_bytes()), Some(plain));
    }

    #[test]
    fn a_request_id_that_is_none_or_holds_the_token_is_not_used() {
        for (id, used) in [("r", true), ("a b", false), ("", false), ("x-secret-x", false), ("secre", true)] {
            let head = format!("{LINE}Host: a\r\nAuthorization: Bearer secret\r\nX-Request-Id: {id}\r\n\r\n");
            assert_eq!(Plain::read(head.as_bytes()).unwrap().request_id.is_some(), used, "{id:?}");
        }
    }

    #[test]
    fn token_in_a_key_or_behind_another_spelling_of_bearer_is_read() {
        for (field, token) in [("X-API-Key: abc", "abc"), ("authorization: bearer abc", "abc")] {
            let head = format!("{LINE}Host: a\r\n{field}\r\nOrigin: https://a\r\n\r\n");
            let plain = Plain::read(head.as_bytes()).expect("a request for the fast path");
            assert_eq!((plain.token, plain.origin), (token, Some(&b"https://a"[..])), "{field}");
        }
        assert!(!read(LINE, "Host: a\r\nX-API-Key: a b\r\n"));
    }

    proptest::proptest! {
        #[test]
        fn field_that_is_not_in_the_table_changes_nothing(name in "[a-zA-Z][a-zA-Z-]{0,20}", value in "[ -~]{0,20}") {
            let read: [&str; 10] = [
                "host", "connection", "authorization", "x-request-id", "if-none-match", "x-forwarded-for", "origin", "cookie",
                "x-api-key", "",
            ];
            proptest::prop_assume!(!is_declined(&name) && !read.iter().any(|read| name.eq_ignore_ascii_case(read)));
            let without = format!("{LINE}{WHO}\r\n");
            let with = format!("{LINE}{WHO}{name}: {value}\r\n\r\n");
            proptest::prop_assert_eq!(Plain::read(with.as_bytes()), Plain::read(without.as_bytes()));
        }
    }

    #[test]
    fn every_other_line_is_declined() {
        for line in [
            "HEAD /customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.1\r\n",
            "get /customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.1\r\n",
            "GET /customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.0\r\n",
            "GET /customer/73469a52f4fd7f77ec7b28cc/name  HTTP/1.1\r\n",
            "GET /customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.1\n",
            "GET /customer/73469a52f4fd7f77ec7b28cc/name?a=b HTTP/1.1\r\n",
            "GET /customer/73469a52f4fd7f77ec7b28cc/name? HTTP/1.1\r\n",
            "GET /customer/73469a52f4fd7f77ec7b28cc/name/ HTTP/1.1\r\n",
            "GET /customer/73469a52f4fd7f77ec7b28cc/Name HTTP/1.1\r\n",
            "GET /customer/73469a52f4fd7f77ec7b28c/name HTTP/1.1\r\n",
            "GET /customer/73469a52f4fd7f77ec7b28ccc/name HTTP/1.1\r\n",
            "GET /customer/%33469a52f4fd7f77ec7b28/name HTTP/1.1\r\n",
            "GET http://a/customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.1\r\n",
            "\r\nGET /customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.1\r\n",
        ] {
            assert!(!read(line, WHO), "{line:?}");
        }
    }

    #[test]
    fn every_field_that_could_matter_is_declined() {
        for fields in [
            "",
            "Host: a\r\n",
            "Authorization: Bearer t\r\n",
            "Host:\r\nAuthorization: Bearer t\r\n",
            "Host: a b\r\nAuthorization: Bearer t\r\n",
            "Host: a\r\nAuthorization: Bearer\r\n",
            "Host: a\r\nAuthorization: Bearer  t\r\n",
            "Host: a\r\nAuthorization: Bearer t u\r\n",
            "Host: a\r\nAuthorization: Bearer \u{e6}\r\n",
            "Host: a\r\nAuthorization: Basic t\r\n",
            "Host: a\r\nAuthorization:\tBearer t\r\n x\r\n",
        ] {
            assert!(!read(LINE, fields), "{fields:?}");
        }
        for field in [
            "Host: a",
            "Authorization: Bearer t",
            "X-API-Key: x",
            "Content-Length: 0",
            "Transfer-Encoding: chunked",
            "Content_Length: 0",
            "X_Forwarded_For: a",
            "Connection: close",
            "Connection: keep-alive, x",
            "Connection: keep-alive\r\nConnection: keep-alive",
            "Upgrade: h2c",
            "Expect: 100-continue",
            "TE: trailers",
            "Trailer: x",
            "Range: bytes=0-1",
            "If-Range: \"x\"",
            "Cache-Control: no-cache",
            "Pragma: no-cache",
            "traceparent: 00-0-0-00",
            "X-Forwarded-For: a\r\nX-Forwarded-For: b",
            "X-Request-Id: a\r\nX-Request-Id: b",
            "X-Request-Id: a\r\nCookie: token=x",
            "Origin: https://a\r\nOrigin: https://b",
            "Cookie: a=b\r\nCookie: c=d",
            "x_request_id: a",
            "If-None-Match: a\r\nIf-None-Match: b",
            "Accept: a\r\n folded",
            "Accept : a",
            "Accept: a\rb",
            "Accept: a\nb: c",
            "Accept: \0",
        ] {
            assert!(!read(LINE, &format!("{WHO}{field}\r\n")), "{field:?}");
        }
        assert!(!read(LINE, &format!("{WHO}{}", "Accept: a\r\n".repeat(MAX_FIELDS))));
        assert!(!read(LINE, &format!("{WHO}\r\nGET / HTTP/1.1\r\n")), "a second request behind it");
    }
}
