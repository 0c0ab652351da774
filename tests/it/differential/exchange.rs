//! One random exchange: what the client sends, and what the API does about it.

use std::fmt;

use super::reader::{Body, Field, has_member};
use crate::support::Random;

/// The field by which a client recognizes a response of the API.
pub const FROM_API: &str = "x-api";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 (RFC 1945).
    Http10,
    Http11,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// How a body is delimited. Over HTTP/2 `Chunked` is a body without `Content-Length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length,
    Chunked,
    /// By the end of the connection; only responses.
    UntilClose,
}

/// Whether and when the client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    Stays,
    /// It ends its sending after the request, and reads the response.
    HalfCloses,
    /// It closes within the request body.
    ClosesInBody,
    /// It resets the connection or the stream within the request body.
    ResetsInBody,
    /// It resets after the request.
    ResetsAfterRequest,
    /// It resets after the head of the response.
    ResetsInResponse,
}

/// Whether another request follows on the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    No,
    AfterResponse,
    /// At once behind the first: pipelined, or another stream.
    AtOnce,
}

/// When the API responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    AfterRequest,
    /// Before it reads the body, which it reads afterwards.
    Early,
    /// Before it reads the body, and it ends the connection.
    EarlyClose,
}

/// What the API does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    CloseBeforeHead,
    ResetBeforeHead,
    /// It closes within the body.
    Truncated,
    /// It resets the connection within the body.
    ResetInBody,
}

/// The API's side.
#[derive(Clone, Debug)]
pub struct Script {
    pub is_http10: bool,
    pub interim: Vec<u16>,
    pub status: u16,
    pub reason: &'static str,
    pub fields: Vec<Field>,
    pub framing: Framing,
    pub content: Body,
    pub timing: Timing,
    pub fault: Fault,
    pub is_slow: bool,
}

impl Script {
    /// Whether a response to that method has a body (RFC 9112 section 6.3).
    pub fn has_body(&self, method: &str) -> bool {
        method != "HEAD" && !matches!(self.status, 204 | 304)
    }

    /// Changes the response to one that a client of HTTP/1.0 understands (RFC 9112 section 6.1, RFC
    /// 9110 section 15.2).
    pub fn suit_http10(&mut self) {
        self.interim.clear();
        if self.framing == Framing::Chunked {
            self.framing = Framing::UntilClose;
        }
    }

    /// Whether the API ends the connection after this response.
    pub fn closes(&self) -> bool {
        (self.is_http10 && !has_member(&self.fields, "connection", "keep-alive"))
            || self.framing == Framing::UntilClose
            || self.timing == Timing::EarlyClose
            || has_member(&self.fields, "connection", "close")
    }
}

#[derive(Clone, Debug)]
pub struct Exchange {
    pub seed: u64,
    pub number: usize,
    pub protocol: Protocol,
    pub method: &'static str,
    pub target: String,
    pub fields: Vec<Field>,
    pub framing: Framing,
    pub content: Body,
    pub has_trailers: bool,
    pub expects: bool,
    pub is_slow: bool,
    pub leaving: Leaving,
    pub next: Next,
    pub script: Script,
}

impl Exchange {
    pub fn random(seed: u64, number: usize) -> Exchange {
        let random = &mut Random::new(seed, number);
        let target = target(random, number);
        let protocols = [
            Protocol::Http10,
            Protocol::Http11,
            Protocol::Http11,
            Protocol::Http2,
            Protocol::Http2,
        ];
        // The library of the HTTP/2 client sends no other characters.
        let is_uri = target.parse::<http::Uri>().is_ok();
        let protocol = random.one_of(if is_uri { &protocols } else { &protocols[..3] });
        let method = method(random);
        let framing = request_framing(random, protocol, method);
        let content = if framing == Framing::None { Vec::new() } else { content(random) };
        let has_body = !content.is_empty();
        let is_http11 = protocol == Protocol::Http11;
        let leaving = leaving(random, protocol, has_body);
        let may_continue = leaving == Leaving::Stays && protocol != Protocol::Http10;
        let next = if may_continue {
            random.one_of(&[Next::No, Next::No, Next::AfterResponse, Next::AtOnce])
        } else {
            Next::No
        };
        Exchange {
            seed,
            number,
            protocol,
            method,
            target,
            fields: request_fields(random, protocol),
            framing,
            has_trailers: framing == Framing::Chunked && random.happens(15),
            expects: is_http11
                && has_body
                && next != Next::AtOnce
                && leaving == Leaving::Stays
                && random.happens(8),
            is_slow: random.happens(10),
            leaving,
            next,
            script: script(random, method, has_body),
            content: Body(content),
        }
    }

    /// The target of the request that follows on the same connection.
    pub fn next_target(&self) -> String {
        format!("/x/{}/next-request", self.number)
    }

    pub fn next_content(&self) -> String {
        format!("the response to {}", self.next_target())
    }

    /// Whether a proxy may send the request again (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(
            self.method,
            "GET"
                | "HEAD"
                | "PUT"
                | "DELETE"
                | "OPTIONS"
                | "TRACE"
                | "QUERY"
                | "PROPFIND"
                | "REPORT"
        )
    }

    /// The client reads the response to its end.
    pub fn is_read(&self) -> bool {
        matches!(self.leaving, Leaving::Stays | Leaving::HalfCloses)
    }

    /// The whole request leaves the client.
    pub fn is_sent(&self) -> bool {
        !matches!(self.leaving, Leaving::ClosesInBody | Leaving::ResetsInBody)
    }

    /// The head over HTTP/1, with the field that frames the body.
    pub fn http1_head(&self) -> Vec<u8> {
        let version = if self.protocol == Protocol::Http10 { "1.0" } else { "1.1" };
        let mut head =
            format!("{} {} HTTP/{version}\r\nHost: api.example\r\n", self.method, self.target)
                .into_bytes();
        for field in &self.fields {
            head.extend_from_slice(field.name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(&field.value);
            head.extend_from_slice(b"\r\n");
        }
        if self.expects {
            head.extend_from_slice(b"Expect: 100-continue\r\n");
        }
        match self.framing {
            Framing::Length => head.extend_from_slice(
                format!("Content-Length: {}\r\n", self.content.0.len()).as_bytes(),
            ),
            Framing::Chunked => head.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            Framing::None | Framing::UntilClose => {}
        }
        head.extend_from_slice(b"\r\n");
        head
    }

    /// The body over HTTP/1.
    pub fn http1_body(&self) -> Vec<u8> {
        if self.framing != Framing::Chunked {
            return self.content.0.clone();
        }
        let trailer: &[u8] = if self.has_trailers { b"X-Trailer: 1\r\n" } else { b"" };
        chunks(&mut Random::new(!self.seed, self.number), &self.content.0, trailer)
    }
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exchange { protocol, method, target, framing, leaving, next, script, .. } = self;
        let Script { status, framing: response, timing, fault, .. } = script;
        write!(
            f,
            "{protocol:?} {method} {target}, {framing:?}, {leaving:?}, {next:?}; {status}, \
             {response:?}, {timing:?}, {fault:?}"
        )
    }
}

/// A chunked body with chunks of odd sizes, in every spelling (RFC 9112 section 7.1).
pub fn chunks(random: &mut Random, content: &[u8], trailer: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut rest = content;
    while !rest.is_empty() {
        let limit = random.one_of(&[1, 2, 17, 255, 4_097, 65_536]);
        let (chunk, later) = rest.split_at(rest.len().min(1 + random.below(limit)));
        rest = later;
        let extension = random.one_of(&["", "", "", ";a", ";a=b", ";a=\"b;c\""]);
        let size = chunk.len();
        let line = match random.below(4) {
            0 => format!("{size:X}{extension}\r\n"),
            1 => format!("00{size:x}{extension}\r\n"),
            _ => format!("{size:x}{extension}\r\n"),
        };
        body.extend_from_slice(line.as_bytes());
        body.extend_from_slice(chunk);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n");
    body.extend_from_slice(trailer);
    body.extend_from_slice(b"\r\n");
    body
}

fn method(random: &mut Random) -> &'static str {
    let usual = ["GET", "GET", "GET", "HEAD", "POST", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let unusual = ["REPORT", "PROPFIND", "QUERY", "FOO", "M-SEARCH", "get", "TRACE"];
    if random.happens(90) { random.one_of(&usual) } else { random.one_of(&unusual) }
}

fn request_framing(random: &mut Random, protocol: Protocol, method: &str) -> Framing {
    let percent =
        if matches!(method, "POST" | "PUT" | "PATCH" | "REPORT" | "QUERY") { 90 } else { 12 };
    if !random.happens(percent) || method == "TRACE" {
        return Framing::None;
    }
    // HTTP/1.0 has no transfer codings (RFC 9112 section 6.1).
    if protocol == Protocol::Http10 || random.happens(50) {
        Framing::Length
    } else {
        Framing::Chunked
    }
}

fn leaving(random: &mut Random, protocol: Protocol, has_body: bool) -> Leaving {
    let in_body = [Leaving::ClosesInBody, Leaving::ResetsInBody];
    match random.below(100) {
        0..=3 if protocol != Protocol::Http2 => Leaving::HalfCloses,
        4..=7 if has_body => random.one_of(&in_body),
        8..=9 => Leaving::ResetsAfterRequest,
        10..=11 => Leaving::ResetsInResponse,
        _ => Leaving::Stays,
    }
}

fn content(random: &mut Random) -> Vec<u8> {
    const HIDDEN: &[u8] = b"GET /x/hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut content = Vec::new();
    for _ in 0..random.below(4) {
        match random.below(12) {
            0 => content.extend_from_slice(HIDDEN),
            1 => content.extend_from_slice(b"0\r\n\r\n"),
            2 => {
                content.extend((0..random.below(9_000)).map(|_| random.byte()).collect::<Vec<u8>>())
            }
            3 if random.happens(20) => {
                let block: Vec<u8> = (0..1 + random.below(1_000)).map(|_| random.byte()).collect();
                content.extend(block.repeat(1 + random.below(300)));
            }
            _ => content.extend((0..=random.below(60)).map(|_| random.byte()).collect::<Vec<u8>>()),
        }
    }
    content
}

fn target(random: &mut Random, number: usize) -> String {
    let segments = [
        "a",
        "A",
        "name",
        "customer",
        "a.b",
        "~user",
        "a-b_c",
        "a+b",
        "a:b",
        "@",
        "!$&'()*+,;=",
        "%20",
        "%C3%A6",
        "%41",
        "%7E",
        "a%2Fb",
        "%2e",
        "..",
        ".",
        "",
        "%00",
        "%zz",
        "a|b",
        "a\"b",
        "a<b>",
        "{id}",
        "a\\b",
        "a^b",
        "`",
        "%3F",
        "%23",
    ];
    let mut target = format!("/x/{number}");
    for _ in 0..random.below(4) {
        let usual = random.happens(93);
        let known = if usual { &segments[..15] } else { &segments[..] };
        target.push('/');
        target.push_str(random.one_of(known));
    }
    let queries = [
        "?",
        "?a=1",
        "?a=b&a=c",
        "?q=%20+%2B",
        "?a[]=1&b[c]=2",
        "?x=/../y",
        "?a?b",
        "?%7B%7D",
        "?a=1&&b",
        "?a=\"b\"",
        "?a={b}",
        "?ü",
    ];
    if random.happens(40) {
        let known = if random.happens(93) { &queries[..9] } else { &queries[..] };
        target.push_str(random.one_of(known));
    }
    target
}

/// A value for a field without a meaning.
fn value(random: &mut Random) -> Vec<u8> {
    match random.below(9) {
        0 => Vec::new(),
        1 => b"a, b,, c".to_vec(),
        2 => b"\"quoted, \\\" string\"".to_vec(),
        3 => b"inner\ttab  and blanks".to_vec(),
        4 => b"caf\xe9".to_vec(),
        5 => "æøå".as_bytes().to_vec(),
        6 => vec![b'v'; 1 + random.below(3_000)],
        _ => b"value".to_vec(),
    }
}

fn request_fields(random: &mut Random, protocol: Protocol) -> Vec<Field> {
    let known = [
        ("accept", "*/*"),
        ("accept", "application/json"),
        ("accept-language", "da, en;q=0.8"),
        ("accept-encoding", "gzip, br"),
        ("user-agent", "test/1"),
        ("referer", "https://page.example/a?b"),
        ("content-type", "application/json"),
        ("content-type", "text/plain"),
        ("content-encoding", "gzip"),
        ("authorization", "Basic YTpi"),
        ("range", "bytes=0-9"),
        ("if-none-match", "\"a\", W/\"b\""),
        ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("cache-control", "no-cache"),
        ("pragma", "no-cache"),
        ("priority", "u=1, i"),
        ("te", "trailers"),
        ("dnt", "1"),
        ("sec-fetch-mode", "cors"),
        ("from", "a@b.example"),
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("warning", "299 - \"a\""),
        ("cookie", "a=1; b=2"),
        ("max-forwards", "5"),
        ("content-language", "da"),
        ("prefer", "return=minimal"),
        ("idempotency-key", "\"8e03978e\""),
    ];
    let own = [
        ("via", "1.1 other"),
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "a.example"),
        ("forwarded", "for=203.0.113.9"),
        ("x-request-id", "0123456789abcdef"),
        ("x-real-ip", "203.0.113.9"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("x-original-url", "/other"),
    ];
    let of_hop = [
        ("connection", "close"),
        ("connection", "keep-alive"),
        ("connection", "x-hop"),
        ("connection", "x-hop, close"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("trailer", "x-trailer"),
        ("upgrade", "example/1"),
        ("proxy-authorization", "Basic YTpi"),
        ("te", "trailers, deflate;q=0.5"),
    ];
    let plain = ["x-a", "x-b", "x-under_score", "x.dot", "x!#$%&'*+-.^_`|~", "x-hop", "x-repeated"];
    let mut fields = Vec::new();
    let mut add = |(name, value): (&str, &str)| fields.push(Field::new(name, value));
    (0..random.below(7)).for_each(|_| add(random.one_of(&known)));
    if random.happens(10) {
        add(random.one_of(&own));
    }
    if random.happens(12) && protocol != Protocol::Http2 {
        add(random.one_of(&of_hop));
    }
    for _ in 0..random.below(3) {
        let name = random.one_of(&plain);
        fields.push(Field::new(name, value(random)));
    }
    if random.happens(6) {
        (0..1 + random.below(4))
            .for_each(|number| fields.push(Field::new("cookie", format!("c{number}=1"))));
    }
    // Fields that a client may send once (RFC 9110 section 5.3).
    let once = [
        "content-type",
        "authorization",
        "range",
        "date",
        "from",
        "referer",
        "user-agent",
        "max-forwards",
        "if-modified-since",
        "connection",
        "te",
        "content-encoding",
        "content-language",
        "upgrade",
        "idempotency-key",
    ];
    let mut seen = std::collections::HashSet::new();
    fields.retain(|field| !once.contains(&&*field.name) || seen.insert(field.name.clone()));
    fields
}

fn script(random: &mut Random, method: &str, has_body: bool) -> Script {
    let is_http10 = random.happens(5);
    let status = status(random);
    let framing = response_framing(random, method, status, is_http10);
    let content =
        if framing == Framing::None || status == 205 { Vec::new() } else { content(random) };
    let interim = match random.below(100) {
        _ if is_http10 => Vec::new(),
        0..=3 => vec![random.one_of(&[102, 103])],
        4 => vec![103, 103, 102],
        _ => Vec::new(),
    };
    let timing = match random.below(100) {
        // A response until the end of the connection is complete when the API ends it.
        0..=5 if has_body && framing != Framing::UntilClose => Timing::Early,
        0..=9 if has_body && !is_http10 => Timing::EarlyClose,
        _ => Timing::AfterRequest,
    };
    let in_body =
        method != "HEAD" && status != 304 && !content.is_empty() && framing != Framing::UntilClose;
    let fault = match random.below(100) {
        0 | 1 if timing == Timing::AfterRequest => {
            random.one_of(&[Fault::CloseBeforeHead, Fault::ResetBeforeHead])
        }
        2 | 3 if in_body && timing == Timing::AfterRequest => Fault::Truncated,
        4 if in_body && timing == Timing::AfterRequest => Fault::ResetInBody,
        _ => Fault::None,
    };
    Script {
        is_http10,
        interim,
        status,
        reason: random.one_of(&["OK", "OK", "", "Some Reason", "caf\u{e9}"]),
        fields: response_fields(random, status),
        framing,
        content: Body(content),
        timing,
        fault,
        is_slow: random.happens(10),
    }
}

fn status(random: &mut Random) -> u16 {
    let others = [
        200, 201, 202, 203, 204, 204, 205, 206, 207, 226, 299, 300, 301, 302, 303, 304, 304, 307,
        308, 400, 401, 403, 404, 405, 406, 409, 410, 413, 416, 418, 421, 422, 425, 428, 429, 431,
        451, 499, 500, 501, 502, 503, 504, 505, 507, 511, 599,
    ];
    if random.happens(60) { 200 } else { random.one_of(&others) }
}

fn response_framing(random: &mut Random, method: &str, status: u16, is_http10: bool) -> Framing {
    match status {
        204 => return Framing::None,
        304 => return random.one_of(&[Framing::None, Framing::Length]),
        205 => return Framing::Length,
        _ => {}
    }
    match random.below(10) {
        0 => Framing::UntilClose,
        1 if method == "HEAD" => Framing::None,
        2..=5 if !is_http10 => Framing::Chunked,
        _ => Framing::Length,
    }
}

fn response_fields(random: &mut Random, status: u16) -> Vec<Field> {
    let known = [
        ("content-type", "application/json"),
        ("content-type", "text/plain; charset=utf-8"),
        ("cache-control", "no-store"),
        ("cache-control", "max-age=60"),
        ("etag", "\"a\""),
        ("etag", "W/\"b\""),
        ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("expires", "0"),
        ("vary", "accept"),
        ("content-encoding", "gzip"),
        ("content-language", "da"),
        ("retry-after", "1"),
        ("age", "7"),
        ("server", "api/1"),
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("set-cookie", "a=1; Path=/"),
        ("set-cookie", "b=2; Secure"),
        ("location", "/x/elsewhere"),
        ("location", "http://api.example:1/x"),
        ("refresh", "1; url=/x"),
        ("link", "</a>; rel=preload"),
        ("warning", "199 - \"a\""),
        ("www-authenticate", "Basic realm=\"a\""),
        ("access-control-allow-origin", "*"),
        ("alt-svc", "h3=\":443\""),
        ("content-disposition", "attachment; filename=\"a\""),
        ("x-powered-by", "api"),
        ("accept-ranges", "bytes"),
        ("p3p", "a"),
        ("strict-transport-security", "max-age=1"),
        ("allow", "GET"),
        ("content-location", "/x/y"),
        ("pragma", "no-cache"),
    ];
    let own = [("via", "1.1 api"), ("x-request-id", "from-the-api")];
    let of_hop = [
        ("connection", "close"),
        ("connection", "keep-alive"),
        ("connection", "x-hop"),
        ("keep-alive", "timeout=5"),
        ("trailer", "x-trailer"),
        ("upgrade", "example/1"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authenticate", "Basic realm=\"a\""),
    ];
    let plain = ["x-a", "x-b", "x-under_score", "x.dot", "x-hop", "x-repeated"];
    let mut fields = Vec::new();
    let mut add = |(name, value): (&str, &str)| fields.push(Field::new(name, value));
    (0..random.below(7)).for_each(|_| add(random.one_of(&known)));
    if random.happens(5) {
        add(random.one_of(&own));
    }
    if random.happens(10) {
        add(random.one_of(&of_hop));
    }
    for _ in 0..random.below(3) {
        let name = random.one_of(&plain);
        fields.push(Field::new(name, value(random)));
    }
    let several = [
        "set-cookie",
        "cache-control",
        "vary",
        "link",
        "x-a",
        "x-b",
        "x-repeated",
        "via",
        "warning",
    ];
    let mut seen = std::collections::HashSet::new();
    fields.retain(|field| several.contains(&&*field.name) || seen.insert(field.name.clone()));
    // A body would belong to no representation.
    fields.retain(|field| status != 205 || field.name != "content-encoding");
    fields
}
