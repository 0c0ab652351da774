//! Verdicts on field sections of HTTP/2 clients, by the rules that hold for HTTP/1.1 as far as they
//! apply to HTTP/2 (RFC 9113 sections 8.1 to 8.3).
//!
//! A malformed section is a stream error. A request that is well-formed and not served is replaced
//! by one that carries the error in [`REFUSAL_FIELD`], so that the server responds with that error;
//! h2 would reset the stream.

use std::sync::LazyLock;

use http1::{HeadError, MAX_METHOD_BYTES, RequestHeadError, check_origin_form, is_token_byte};

/// Field of a replacement request that carries the error. It is removed from clients' sections.
pub const REFUSAL_FIELD: &str = "x-telecomx-gateway-refusal";

/// Errors of a replaced request. The field carries the index.
const REFUSALS: [RequestHeadError; 7] = [
    RequestHeadError::Head(HeadError::TooLong),
    RequestHeadError::MethodTooLong,
    RequestHeadError::OtherAuthority,
    RequestHeadError::InvalidHost,
    RequestHeadError::Head(HeadError::AmbiguousFraming),
    RequestHeadError::TargetCharacter,
    RequestHeadError::Fragment,
];

/// Fields that a replacement request keeps, because the response to it depends on them.
const PRESERVED_FIELDS: [&str; 3] = ["origin", "x-forwarded-for", "x-request-id"];

/// Bytes of a target that every rule permits. A target with other bytes is checked in full.
static IS_COMMON_IN_PATH: [bool; 256] = {
    let mut is_common = [false; 256];
    let common =
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/-._~?=&%+,:;@!$*()";
    let mut index = 0;
    while index < common.len() {
        is_common[common[index] as usize] = true;
        index += 1;
    }
    is_common
};

/// Decision on a field section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// A stream error of type PROTOCOL_ERROR (section 8.1.1).
    Malformed,
    /// Well-formed and not served.
    Refused(RequestHeadError),
}

/// Class of a field by its own name and value. A field of the dynamic table is classified once.
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
    /// A field that no rule on whole sections concerns.
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
        Field { name, value, kind: FieldKind::classify(name, value) }
    }
}

impl FieldKind {
    fn classify(name: &[u8], value: &[u8]) -> Self {
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
            // Connection-specific fields (section 8.2.2).
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding"
            | b"upgrade" => FieldKind::Malformed,
            b"te" if !value.eq_ignore_ascii_case(b"trailers") => FieldKind::Malformed,
            _ if name == REFUSAL_FIELD.as_bytes() => FieldKind::Refusal,
            _ => FieldKind::Other,
        }
    }
}

/// Judges the field section of a request.
pub fn judge_request<'a>(fields: impl Iterator<Item = Field<'a>>) -> Verdict {
    let mut pseudo = PseudoFields::default();
    let (mut host, mut length) = (None, None);
    let mut refusal = None;
    let mut has_regular_field = false;
    for Field { value, kind, .. } in fields {
        let pseudo_field = match kind {
            FieldKind::Malformed => return Verdict::Malformed,
            FieldKind::Method => &mut pseudo.method,
            FieldKind::Scheme => &mut pseudo.scheme,
            FieldKind::Authority => &mut pseudo.authority,
            FieldKind::Path => &mut pseudo.path,
            FieldKind::Host | FieldKind::ContentLength | FieldKind::Refusal | FieldKind::Other => {
                has_regular_field = true;
                if kind == FieldKind::Host && host.replace(value).is_some() {
                    refusal = Some(RequestHeadError::InvalidHost);
                }
                if kind == FieldKind::ContentLength {
                    let is_number =
                        (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
                    if !is_number || length.replace(value).is_some_and(|before| before != value) {
                        refusal = Some(HeadError::AmbiguousFraming.into());
                    }
                }
                continue;
            }
        };
        // Pseudo-header fields precede regular fields and occur once each (section 8.3).
        if has_regular_field || pseudo_field.replace(value).is_some() {
            return Verdict::Malformed;
        }
    }
    match pseudo.judge(host) {
        Verdict::Pass => refusal.map_or(Verdict::Pass, Verdict::Refused),
        verdict => verdict,
    }
}

/// Judges a trailer section, which has no pseudo-header fields (section 8.1).
pub fn judge_trailers<'a>(mut fields: impl Iterator<Item = Field<'a>>) -> Verdict {
    let is_regular = |kind| {
        matches!(
            kind,
            FieldKind::Host | FieldKind::ContentLength | FieldKind::Refusal | FieldKind::Other
        )
    };
    if fields.all(|field| is_regular(field.kind)) { Verdict::Pass } else { Verdict::Malformed }
}

/// The pseudo-header fields of a request.
#[derive(Default)]
struct PseudoFields<'a> {
    method: Option<&'a [u8]>,
    scheme: Option<&'a [u8]>,
    authority: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
}

impl PseudoFields<'_> {
    fn judge(&self, host: Option<&[u8]>) -> Verdict {
        let Some(method) = self
            .method
            .filter(|method| !method.is_empty() && method.iter().all(|b| is_token_byte(*b)))
        else {
            return Verdict::Malformed;
        };
        if method == b"CONNECT" {
            // Section 8.5. The server refuses it with 405.
            let is_valid = self.scheme.is_none() && self.path.is_none() && self.authority.is_some();
            return if is_valid { Verdict::Pass } else { Verdict::Malformed };
        }
        let (Some(scheme), Some(path)) = (self.scheme, self.path.filter(|path| !path.is_empty()))
        else {
            return Verdict::Malformed;
        };
        if method.len() > MAX_METHOD_BYTES {
            return Verdict::Refused(RequestHeadError::MethodTooLong);
        }
        if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
            return Verdict::Refused(RequestHeadError::OtherAuthority);
        }
        if path.contains(&b'#') {
            return Verdict::Refused(RequestHeadError::Fragment);
        }
        // h2 resets the stream of such a target; over HTTP/1.1 it is refused with 400.
        if !path.iter().all(|byte| IS_COMMON_IN_PATH[usize::from(*byte)]) {
            let target = std::str::from_utf8(path).unwrap_or_default();
            if target.is_empty()
                || check_origin_form(target) == Err(RequestHeadError::TargetCharacter)
            {
                return Verdict::Refused(RequestHeadError::TargetCharacter);
            }
        }
        match (self.authority, host) {
            (None, None) => Verdict::Refused(RequestHeadError::InvalidHost),
            (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
                Verdict::Refused(RequestHeadError::OtherAuthority)
            }
            (Some(one), _) | (None, Some(one)) if one.contains(&b'@') => {
                Verdict::Refused(RequestHeadError::OtherAuthority)
            }
            _ => Verdict::Pass,
        }
    }
}

/// Whether a name is a token in lower case (section 8.2.1).
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

/// Whether a section has a field of the name [`REFUSAL_FIELD`].
pub fn has_refusal_field<'a>(mut fields: impl Iterator<Item = Field<'a>>) -> bool {
    fields.any(|field| field.kind == FieldKind::Refusal)
}

/// Returns the names and values of a section without [`REFUSAL_FIELD`].
pub fn without_refusal_field<'a>(
    fields: impl Iterator<Item = Field<'a>>,
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    fields.filter(|field| field.kind != FieldKind::Refusal).map(|field| (field.name, field.value))
}

/// Returns the fields of the request that replaces a refused one.
pub fn replacement_request<'a>(
    error: RequestHeadError,
    fields: impl Iterator<Item = Field<'a>> + Clone,
) -> Vec<(&'a [u8], &'a [u8])> {
    const INDEXES: &[u8; REFUSALS.len()] = b"0123456";
    let index = REFUSALS.iter().position(|refusal| *refusal == error).unwrap_or(2);
    let is_served = |method: &&[u8]| {
        method.len() <= MAX_METHOD_BYTES && !matches!(*method, b"CONNECT" | b"TRACE")
    };
    let method = fields.clone().find(|field| field.kind == FieldKind::Method);
    let mut replacement: Vec<(&[u8], &[u8])> = vec![
        (b":method", method.map(|field| field.value).filter(is_served).unwrap_or(b"GET")),
        (b":scheme", b"http"),
        (b":authority", b"refused.invalid"),
        (b":path", b"/"),
        (REFUSAL_FIELD.as_bytes(), &INDEXES[index..=index]),
    ];
    let preserved =
        fields.filter(|field| PRESERVED_FIELDS.iter().any(|name| name.as_bytes() == field.name));
    replacement.extend(preserved.map(|field| (field.name, field.value)));
    replacement
}

/// Returns the error that a replacement request carries.
pub fn refusal(fields: &http::HeaderMap) -> Option<RequestHeadError> {
    let index = fields.get(REFUSAL_FIELD)?.to_str().ok()?.parse::<usize>().ok()?;
    REFUSALS.get(index).copied()
}

#[cfg(test)]
#[rustfmt::skip]
#[path = "../../../fuzz/oracles/request_head.rs"]
#[expect(dead_code, reason = "the oracle reads heads of HTTP/1.1 too")]
mod oracle;

#[cfg(test)]
mod tests {
    use super::*;

    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/x")];

    fn judged(fields: &[(&str, &str)]) -> Verdict {
        judge_request(
            fields.iter().map(|(name, value)| Field::new(name.as_bytes(), value.as_bytes())),
        )
    }

    fn with(more: &[(&str, &str)]) -> Verdict {
        judged(&[&GET, more].concat())
    }

    /// The request with another value of one pseudo-header field; `None`: without it.
    fn changed(name: &str, value: Option<&str>) -> Verdict {
        let fields: Vec<_> = GET
            .iter()
            .filter_map(|(key, old)| {
                if *key == name { value.map(|value| (*key, value)) } else { Some((*key, *old)) }
            })
            .collect();
        judged(&fields)
    }

    /// RFC 9113 section 8.1.1 and the sections that it names.
    #[test]
    fn malformed_section_is_a_stream_error() {
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
            let trailers = [field]
                .into_iter()
                .map(|(name, value)| Field::new(name.as_bytes(), value.as_bytes()));
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
    fn well_formed_request_that_is_not_served_is_refused() {
        let refused = |error: RequestHeadError| Verdict::Refused(error);
        for scheme in ["ftp", "", "h", "wss"] {
            assert_eq!(
                changed(":scheme", Some(scheme)),
                refused(RequestHeadError::OtherAuthority),
                "{scheme:?}"
            );
        }
        assert_eq!(changed(":authority", None), refused(RequestHeadError::InvalidHost));
        assert_eq!(changed(":authority", Some("a@x")), refused(RequestHeadError::OtherAuthority));
        assert_eq!(with(&[("host", "y")]), refused(RequestHeadError::OtherAuthority));
        assert_eq!(with(&[("host", "x:80")]), refused(RequestHeadError::OtherAuthority));
        assert_eq!(with(&[("host", "x"), ("host", "x")]), refused(RequestHeadError::InvalidHost));
        assert_eq!(changed(":path", Some("/a#b")), refused(RequestHeadError::Fragment));
        for path in
            ["/a b", "/a\tb", "/a\u{7f}", "/\u{e6}", "/a<b", "/a>b", "/a`b", "/a?\"", "/a?<"]
        {
            assert_eq!(
                changed(":path", Some(path)),
                refused(RequestHeadError::TargetCharacter),
                "{path:?}"
            );
        }
        for lengths in [&["x"][..], &["+1"], &[""], &["1", "2"], &["1,1"], &["1000000000000000000"]]
        {
            let fields: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
            assert_eq!(with(&fields), refused(HeadError::AmbiguousFraming.into()), "{lengths:?}");
        }
        assert_eq!(
            changed(":method", Some(&"A".repeat(33))),
            Verdict::Refused(RequestHeadError::MethodTooLong)
        );
    }

    #[test]
    fn request_of_a_common_client_passes() {
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
        /// The fuzz target `request_head` makes the same comparison.
        #[test]
        fn verdict_agrees_with_the_oracle(
            fields in proptest::collection::vec(
                (
                    proptest::sample::select(&[
                        ":method", ":scheme", ":authority", ":path", ":status", "host",
                        "content-length", "te", "connection", "X", "x", "",
                    ][..]),
                    proptest::sample::select(&[
                        "GET", "http", "HTTPS", "x", "X", "/", "/a b", "5", "6", "trailers",
                        " y", "y\t", "", "a@x", "a\0", "CONNECT",
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
    fn refusal_field_of_a_client_is_removed() {
        for error in REFUSALS {
            let sent = [
                Field::new(b":method", b"HEAD"),
                Field::new(b"x", b"y"),
                Field::new(b"origin", b"o"),
            ];
            let list = replacement_request(error, sent.into_iter());
            let mut map = http::HeaderMap::new();
            for (name, value) in &list[4..] {
                let name = http::HeaderName::from_bytes(name).unwrap();
                map.append(name, http::HeaderValue::from_bytes(value).unwrap());
            }
            assert_eq!(refusal(&map), Some(error));
            assert_eq!(
                (list[0].1, map.get("origin").is_some(), map.get("x")),
                (&b"HEAD"[..], true, None)
            );
            assert_eq!(
                judge_request(list.into_iter().map(|(name, value)| Field::new(name, value))),
                Verdict::Pass
            );
        }
        let sent = [Field::new(REFUSAL_FIELD.as_bytes(), b"0"), Field::new(b"x", b"y")];
        assert!(
            has_refusal_field(sent.into_iter()) && !has_refusal_field(sent[1..].iter().copied())
        );
        assert_eq!(
            without_refusal_field(sent.into_iter()).collect::<Vec<_>>(),
            [(&b"x"[..], &b"y"[..])]
        );
    }
}
