//! Field sections of HTTP/2 clients, judged before h2 reads them, by the rules that hold
//! for HTTP/1.1 as far as those apply. Pure.
//!
//! Source: RFC 9113 sections 8.1 to 8.3. A malformed section is a stream error. A request that is
//! well-formed but not served is replaced by one that the gateway answers with its own error, on
//! the usual way: h2 would reset its stream.

use std::sync::LazyLock;

use http1::{MAX_METHOD_BYTES, RequestHeadError, check_origin_form, is_token_byte};

use crate::api::{ApiError, Refusal};

/// Names a request that was replaced. A client's field of this name is dropped.
pub const REFUSAL_FIELD: &str = "x-telecomx-gateway-refusal";

/// The errors that a replaced request names, by their place.
const REFUSALS: [ApiError; 7] = [
    ApiError::HeadTooLarge,
    ApiError::NotImplemented,
    ApiError::BadRequest(Refusal::OtherAuthority),
    ApiError::BadRequest(Refusal::MissingHost),
    ApiError::BadRequest(Refusal::Framing),
    ApiError::BadRequest(Refusal::ControlCharacter),
    ApiError::BadRequest(Refusal::Fragment),
];

/// Fields that go on with a replaced request: they decide about the response to it.
const KEPT: [&str; 3] = ["origin", "x-forwarded-for", "x-request-id"];

/// Characters of a target that no rule concerns: it is looked at more closely if it has others.
static IS_USUAL_IN_PATH: [bool; 256] = {
    let mut is_usual = [false; 256];
    let usual = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/-._~?=&%+,:;@!$*()";
    let mut place = 0;
    while place < usual.len() {
        is_usual[usual[place] as usize] = true;
        place += 1;
    }
    is_usual
};

/// What becomes of a field section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// A stream error of type PROTOCOL_ERROR (section 8.1.1).
    Malformed,
    /// Well-formed, and refused.
    Refused(ApiError),
}

/// What a field says by itself. A field of the dynamic table is classified once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    Malformed,
    Method,
    Scheme,
    Authority,
    Path,
    Host,
    ContentLength,
    /// [`REFUSAL_FIELD`].
    Refusal,
    /// No rule about a whole section concerns it.
    Other,
}

/// A field of a section.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    pub name: &'a [u8],
    pub value: &'a [u8],
    pub kind: FieldKind,
}

impl<'a> Field<'a> {
    pub fn new(name: &'a [u8], value: &'a [u8]) -> Self {
        Field { name, value, kind: FieldKind::of(name, value) }
    }
}

impl FieldKind {
    fn of(name: &[u8], value: &[u8]) -> Self {
        if memchr::memchr3(0, b'\r', b'\n', value).is_some() {
            return FieldKind::Malformed;
        }
        match name {
            b":method" => return FieldKind::Method,
            b":scheme" => return FieldKind::Scheme,
            b":authority" => return FieldKind::Authority,
            b":path" => return FieldKind::Path,
            _ if !is_valid_name(name) || has_outer_blank(value) => return FieldKind::Malformed,
            _ => {}
        }
        match name {
            b"host" => FieldKind::Host,
            b"content-length" => FieldKind::ContentLength,
            // Fields of one connection (section 8.2.2).
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
                FieldKind::Malformed
            }
            b"te" if !value.eq_ignore_ascii_case(b"trailers") => FieldKind::Malformed,
            _ if name == REFUSAL_FIELD.as_bytes() => FieldKind::Refusal,
            _ => FieldKind::Other,
        }
    }
}

/// Judges the head of a request.
pub fn judge_request<'a>(fields: impl Iterator<Item = Field<'a>>) -> Verdict {
    let mut pseudo = Pseudo::default();
    let (mut host, mut length) = (None, None);
    let mut refusal = None;
    let mut regular = false;
    for Field { value, kind, .. } in fields {
        let place = match kind {
            FieldKind::Malformed => return Verdict::Malformed,
            FieldKind::Method => &mut pseudo.method,
            FieldKind::Scheme => &mut pseudo.scheme,
            FieldKind::Authority => &mut pseudo.authority,
            FieldKind::Path => &mut pseudo.path,
            FieldKind::Host | FieldKind::ContentLength | FieldKind::Refusal | FieldKind::Other => {
                regular = true;
                if kind == FieldKind::Host && host.replace(value).is_some() {
                    refusal = Some(ApiError::BadRequest(Refusal::MissingHost));
                }
                if kind == FieldKind::ContentLength {
                    let digits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
                    if !digits || length.replace(value).is_some_and(|before| before != value) {
                        refusal = Some(ApiError::BadRequest(Refusal::Framing));
                    }
                }
                continue;
            }
        };
        // They come first, once each (section 8.3).
        if regular || place.replace(value).is_some() {
            return Verdict::Malformed;
        }
    }
    match pseudo.judge(host) {
        Verdict::Pass => refusal.map_or(Verdict::Pass, Verdict::Refused),
        verdict => verdict,
    }
}

/// Judges trailers: no pseudo-header field may be among them (section 8.1).
pub fn judge_trailers<'a>(mut fields: impl Iterator<Item = Field<'a>>) -> Verdict {
    let is_regular =
        |kind| matches!(kind, FieldKind::Host | FieldKind::ContentLength | FieldKind::Refusal | FieldKind::Other);
    if fields.all(|field| is_regular(field.kind)) { Verdict::Pass } else { Verdict::Malformed }
}

/// The pseudo-header fields of a request.
#[derive(Default)]
struct Pseudo<'a> {
    method: Option<&'a [u8]>,
    scheme: Option<&'a [u8]>,
    authority: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
}

impl Pseudo<'_> {
    fn judge(&self, host: Option<&[u8]>) -> Verdict {
        let refuse = |refusal| Verdict::Refused(ApiError::BadRequest(refusal));
        let Some(method) = self.method.filter(|method| !method.is_empty() && method.iter().all(|b| is_token_byte(*b)))
        else {
            return Verdict::Malformed;
        };
        if method == b"CONNECT" {
            // Section 8.5. It is refused later, with 405.
            let right = self.scheme.is_none() && self.path.is_none() && self.authority.is_some();
            return if right { Verdict::Pass } else { Verdict::Malformed };
        }
        let (Some(scheme), Some(path)) = (self.scheme, self.path.filter(|path| !path.is_empty())) else {
            return Verdict::Malformed;
        };
        if method.len() > MAX_METHOD_BYTES {
            return Verdict::Refused(ApiError::NotImplemented);
        }
        if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
            return refuse(Refusal::OtherAuthority);
        }
        if path.contains(&b'#') {
            return refuse(Refusal::Fragment);
        }
        // What h2 would reset the stream for, and HTTP/1.1 refuses as well.
        if !path.iter().all(|byte| IS_USUAL_IN_PATH[usize::from(*byte)]) {
            let target = std::str::from_utf8(path).unwrap_or_default();
            if target.is_empty() || check_origin_form(target) == Err(RequestHeadError::TargetCharacter) {
                return refuse(Refusal::ControlCharacter);
            }
        }
        match (self.authority, host) {
            (None, None) => refuse(Refusal::MissingHost),
            (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => refuse(Refusal::OtherAuthority),
            (Some(one), _) | (None, Some(one)) if one.contains(&b'@') => refuse(Refusal::OtherAuthority),
            _ => Verdict::Pass,
        }
    }
}

/// Section 8.2.1: a token in lower case.
fn is_valid_name(name: &[u8]) -> bool {
    static IS_VALID: LazyLock<[bool; 256]> = LazyLock::new(|| {
        std::array::from_fn(|byte| {
            u8::try_from(byte).is_ok_and(|byte| is_token_byte(byte) && !byte.is_ascii_uppercase())
        })
    });
    let is_valid = &*IS_VALID;
    !name.is_empty() && name.iter().all(|byte| is_valid[usize::from(*byte)])
}

fn has_outer_blank(value: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_blank(value.first()) || is_blank(value.last())
}

/// Whether a section that passes has a field that could be mistaken for the gateway's own mark.
pub fn has_mark<'a>(mut fields: impl Iterator<Item = Field<'a>>) -> bool {
    fields.any(|field| field.kind == FieldKind::Refusal)
}

/// The fields of a section that passes: without the gateway's own mark.
pub fn passed<'a>(fields: impl Iterator<Item = Field<'a>>) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    fields.filter(|field| field.kind != FieldKind::Refusal).map(|field| (field.name, field.value))
}

/// The fields of a request that stands in for a refused one.
pub fn replaced<'a>(error: ApiError, fields: impl Iterator<Item = Field<'a>> + Clone) -> Vec<(&'a [u8], &'a [u8])> {
    const PLACES: &[u8; 7] = b"0123456";
    let place = REFUSALS.iter().position(|refusal| *refusal == error).unwrap_or(2);
    let is_method = |value: &&[u8]| value.len() <= MAX_METHOD_BYTES && !matches!(*value, b"CONNECT" | b"TRACE");
    let method = fields.clone().find(|field| field.kind == FieldKind::Method).map(|field| field.value);
    let mut list: Vec<(&[u8], &[u8])> = vec![
        (b":method", method.filter(is_method).unwrap_or(b"GET")),
        (b":scheme", b"http"),
        (b":authority", b"refused.invalid"),
        (b":path", b"/"),
        (REFUSAL_FIELD.as_bytes(), &PLACES[place..=place]),
    ];
    let kept = fields.filter(|field| KEPT.iter().any(|kept| kept.as_bytes() == field.name));
    list.extend(kept.map(|field| (field.name, field.value)));
    list
}

/// The error that a replaced request names.
pub fn refusal(fields: &http::HeaderMap) -> Option<ApiError> {
    let place = fields.get(REFUSAL_FIELD)?.to_str().ok()?.parse::<usize>().ok()?;
    REFUSALS.get(place).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::request_head_oracle as oracle;

    const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/x")];

    fn judged(fields: &[(&str, &str)]) -> Verdict {
        judge_request(fields.iter().map(|(name, value)| Field::new(name.as_bytes(), value.as_bytes())))
    }

    fn with(more: &[(&str, &str)]) -> Verdict {
        judged(&[&GET, more].concat())
    }

    /// The request with another value of one pseudo-header field; `None`: without it.
    fn changed(name: &str, value: Option<&str>) -> Verdict {
        let fields: Vec<_> = GET
            .iter()
            .filter_map(|(key, old)| if *key == name { value.map(|value| (*key, value)) } else { Some((*key, *old)) })
            .collect();
        judged(&fields)
    }

    /// RFC 9113 section 8.1.1 and the sections that it names.
    #[test]
    fn malformed_requests_are_stream_errors() {
        for field in [
            ("X-Upper", "1"),
            ("", "1"),
            ("x a", "1"),
            ("x:", "1"),
            ("x\u{7f}", "1"),
            ("x\u{e6}", "1"),
            ("x", "a\0b"),
            ("x", "a\rb"),
            ("x", "a\nb"),
            ("x", " a"),
            ("x", "a "),
            ("x", "\ta"),
            ("x", "a\t"),
            ("x", " "),
            ("connection", "close"),
            ("proxy-connection", "close"),
            ("keep-alive", "1"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "x"),
            ("te", "gzip"),
            (":path", "/y"),
            (":status", "200"),
            (":protocol", "websocket"),
            (":unknown", "x"),
        ] {
            assert_eq!(with(&[field]), Verdict::Malformed, "{field:?}");
            assert_eq!(with(&[("a", "b"), field]), Verdict::Malformed, "{field:?} behind another");
            let trailers = [field].into_iter().map(|(name, value)| Field::new(name.as_bytes(), value.as_bytes()));
            assert_eq!(judge_trailers(trailers), Verdict::Malformed, "{field:?} in trailers");
        }
        for name in [":method", ":scheme", ":path"] {
            assert_eq!(changed(name, None), Verdict::Malformed, "without {name}");
        }
        assert_eq!(changed(":path", Some("")), Verdict::Malformed);
        for method in ["", "GE T", "GET /x", "G\u{e6}T"] {
            assert_eq!(changed(":method", Some(method)), Verdict::Malformed, "{method:?}");
        }
        // A regular field before a pseudo-header field; CONNECT with a path.
        assert_eq!(judged(&[&[("a", "b")], &GET[..]].concat()), Verdict::Malformed);
        assert_eq!(changed(":method", Some("CONNECT")), Verdict::Malformed);
    }

    #[test]
    fn well_formed_requests_that_are_not_served_are_refused() {
        let refused = |refusal| Verdict::Refused(ApiError::BadRequest(refusal));
        for scheme in ["ftp", "", "h", "wss"] {
            assert_eq!(changed(":scheme", Some(scheme)), refused(Refusal::OtherAuthority), "{scheme:?}");
        }
        assert_eq!(changed(":authority", None), refused(Refusal::MissingHost));
        assert_eq!(changed(":authority", Some("a@x")), refused(Refusal::OtherAuthority));
        assert_eq!(with(&[("host", "y")]), refused(Refusal::OtherAuthority));
        assert_eq!(with(&[("host", "x:80")]), refused(Refusal::OtherAuthority));
        assert_eq!(with(&[("host", "x"), ("host", "x")]), refused(Refusal::MissingHost));
        assert_eq!(changed(":path", Some("/a#b")), refused(Refusal::Fragment));
        for path in ["/a b", "/a\tb", "/a\u{7f}", "/\u{e6}", "/a<b", "/a>b", "/a`b", "/a?\"", "/a?<"] {
            assert_eq!(changed(":path", Some(path)), refused(Refusal::ControlCharacter), "{path:?}");
        }
        for lengths in [&["x"][..], &["+1"], &[""], &["1", "2"], &["1,1"], &["1000000000000000000"]] {
            let fields: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
            assert_eq!(with(&fields), refused(Refusal::Framing), "{lengths:?}");
        }
        assert_eq!(changed(":method", Some(&"A".repeat(33))), Verdict::Refused(ApiError::NotImplemented));
    }

    #[test]
    fn requests_of_usual_clients_pass() {
        assert_eq!(judged(&GET), Verdict::Pass);
        for more in [
            &[("host", "x")][..],
            &[("host", "X")],
            &[("te", "trailers"), ("cookie", "a=1"), ("cookie", "b=2")],
            &[("content-length", "5"), ("content-length", "5")],
            &[("x", ""), ("y", "a b\tc"), ("z", "\u{e6}")],
        ] {
            assert_eq!(with(more), Verdict::Pass, "{more:?}");
        }
        assert_eq!(changed(":scheme", Some("HTTPS")), Verdict::Pass);
        assert_eq!(judged(&[GET[0], GET[1], GET[3], ("host", "x")]), Verdict::Pass);
        assert_eq!(judged(&[(":method", "CONNECT"), (":authority", "x:443")]), Verdict::Pass);
        assert_eq!(judge_trailers([Field::new(b"x-sum", b"1")].into_iter()), Verdict::Pass);
    }

    proptest::proptest! {
        /// The fuzz target `request_head` compares the same for longer.
        #[test]
        fn second_reading_of_an_http2_head_agrees(
            fields in proptest::collection::vec(
                (
                    proptest::sample::select(&[
                        ":method", ":scheme", ":authority", ":path", ":status", "host", "content-length", "te", "connection", "X", "x", "",
                    ][..]),
                    proptest::sample::select(&[
                        "GET", "http", "HTTPS", "x", "X", "/", "/a b", "5", "6", "trailers", " y", "y\t", "", "a@x", "a\0", "CONNECT",
                    ][..]),
                ),
                0..6,
            ),
            whole in proptest::bool::ANY,
        ) {
            let fields: Vec<_> = if whole { [&GET, &fields[..]].concat() } else { fields };
            let owned: Vec<_> =
                fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
            let fault = oracle::http2_fault(&owned);
            proptest::prop_assert_eq!(judged(&fields) == Verdict::Pass, fault.is_none(), "{:?} {:?}", fields, fault);
        }
    }

    #[test]
    fn refusal_travels_in_a_field_that_clients_cannot_send() {
        for error in REFUSALS {
            let sent = [Field::new(b":method", b"HEAD"), Field::new(b"x", b"y"), Field::new(b"origin", b"o")];
            let list = replaced(error, sent.into_iter());
            let mut map = http::HeaderMap::new();
            for (name, value) in &list[4..] {
                let name = http::HeaderName::from_bytes(name).unwrap();
                map.append(name, http::HeaderValue::from_bytes(value).unwrap());
            }
            assert_eq!(refusal(&map), Some(error));
            assert_eq!((list[0].1, map.get("origin").is_some(), map.get("x")), (&b"HEAD"[..], true, None));
            assert_eq!(judge_request(list.into_iter().map(|(name, value)| Field::new(name, value))), Verdict::Pass);
        }
        let sent = [Field::new(REFUSAL_FIELD.as_bytes(), b"0"), Field::new(b"x", b"y")];
        assert!(has_mark(sent.into_iter()) && !has_mark(sent[1..].iter().copied()));
        assert_eq!(passed(sent.into_iter()).collect::<Vec<_>>(), [(&b"x"[..], &b"y"[..])]);
    }
}
