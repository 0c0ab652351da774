//! Heads of requests for a customer's name: the parts on which the response depends.
//!
//! The arms of [`Fields::read`] are the fields that change the response, and why. Other fields
//! change nothing. A request that is not read (another route, another query parameter, a repeated
//! field that may occur once) needs a full parse, which leads to the same response.

use std::borrow::Cow;

use crate::{
    CredentialError, CustomerId, Query, cookie_value, decide_credential, holds_credential,
    request_id_text,
};

/// Length of a customer id.
const ID_LENGTH: usize = 24;

/// Maximum number of `X-Forwarded-For` fields. Proxies extend the field or add one each.
const MAX_FORWARDED_FOR: usize = 4;

/// The method of a request for a customer's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRequestMethod {
    Get,
    Head,
    /// A CORS preflight.
    Preflight,
}

/// Settings that decide how a head is read.
#[derive(Clone, Copy, Debug)]
pub struct NameRequestRules<'s> {
    /// The name of the cookie that holds a token.
    pub cookie: Option<&'s str>,
    /// The gateway answers preflights.
    pub answers_preflights: bool,
}

/// The parts of a request head on which a response of the intercepted route depends.
#[derive(Debug, PartialEq, Eq)]
pub struct NameRequestHead<'a> {
    pub method: NameRequestMethod,
    pub customer: CustomerId,
    /// The token of the caller.
    pub credential: Result<Cow<'a, str>, CredentialError>,
    /// The client's request id, if it is valid and holds no credential.
    pub request_id: Option<&'a str>,
    /// `traceparent`, if it holds no credential.
    pub trace: Option<&'a [u8]>,
    forwarded_for: [&'a [u8]; MAX_FORWARDED_FOR],
    forwarded_count: usize,
    pub if_none_match: Option<&'a [u8]>,
    pub cache_control: Option<&'a [u8]>,
    pub pragma: Option<&'a [u8]>,
    pub origin: Option<&'a [u8]>,
    /// Field names of a preflight.
    pub requested_fields: Option<&'a [u8]>,
}

impl<'a> NameRequestHead<'a> {
    /// Reads a head. `fields`: names in any case, and values. `None`: the request takes the
    /// ordinary path.
    pub fn read(
        method: &str,
        target: &'a str,
        fields: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
        rules: NameRequestRules<'_>,
    ) -> Option<Self> {
        let NameRequestRules { cookie, answers_preflights } = rules;
        let (customer, raw_query) = read_target(target)?;
        let query = Query::unvalidated(raw_query);
        if raw_query.is_some() && (query.validate().is_err() || !query.is_plain()) {
            return None;
        }
        let found = Fields::read(fields.clone(), cookie)?;
        let method = match method {
            "GET" => NameRequestMethod::Get,
            "HEAD" => NameRequestMethod::Head,
            "OPTIONS"
                if answers_preflights
                    && found.origin.is_some()
                    && found.requested_method.is_some() =>
            {
                NameRequestMethod::Preflight
            }
            _ => return None,
        };
        let credential =
            decide_credential(found.authorization, found.api_key, &query, || found.cookie_token);
        let is_secret = |text: &[u8]| holds_credential(text, fields.clone(), raw_query, cookie);
        let request_id =
            found.request_id.and_then(request_id_text).filter(|id| !is_secret(id.as_bytes()));
        Some(NameRequestHead {
            method,
            customer,
            credential: credential.map(|(_, token)| token),
            request_id,
            trace: found.trace.filter(|trace| !is_secret(trace)),
            forwarded_for: found.forwarded_for,
            forwarded_count: found.forwarded_count,
            if_none_match: found.if_none_match,
            cache_control: found.cache_control,
            pragma: found.pragma,
            origin: found.origin,
            requested_fields: found.requested_fields,
        })
    }

    /// Returns the values of the `X-Forwarded-For` fields.
    pub fn forwarded_for(&self) -> &[&'a [u8]] {
        &self.forwarded_for[..self.forwarded_count]
    }
}

/// Splits `/customer/{id}/name` into customer and query. `None` for other spellings of the path.
fn read_target(target: &str) -> Option<(CustomerId, Option<&str>)> {
    let rest = target.strip_prefix("/customer/")?;
    let (id, rest) = rest.split_at_checked(ID_LENGTH)?;
    let customer = CustomerId::parse(id.as_bytes())?;
    match rest.strip_prefix("/name")? {
        "" => Some((customer, None)),
        rest => Some((customer, Some(rest.strip_prefix('?')?))),
    }
}

/// Values of the fields on which the response depends.
#[derive(Default)]
struct Fields<'a> {
    authorization: Option<&'a [u8]>,
    api_key: Option<&'a [u8]>,
    cookie_token: Option<Cow<'a, [u8]>>,
    if_none_match: Option<&'a [u8]>,
    cache_control: Option<&'a [u8]>,
    pragma: Option<&'a [u8]>,
    origin: Option<&'a [u8]>,
    requested_method: Option<&'a [u8]>,
    requested_fields: Option<&'a [u8]>,
    request_id: Option<&'a [u8]>,
    trace: Option<&'a [u8]>,
    forwarded_for: [&'a [u8]; MAX_FORWARDED_FOR],
    forwarded_count: usize,
}

impl<'a> Fields<'a> {
    /// Reads the fields. `None`: one that may occur once occurs twice.
    fn read(
        fields: impl Iterator<Item = (&'a str, &'a [u8])>,
        cookie: Option<&str>,
    ) -> Option<Self> {
        let mut found = Fields::default();
        for (name, value) in fields {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            let only = match name.len() {
                // Which pages may read the response.
                6 if is("origin") => &mut found.origin,
                // The token, where no other place holds one.
                6 if is("cookie") => {
                    found.cookie_token =
                        found.cookie_token.or_else(|| cookie_value(value, cookie?));
                    continue;
                }
                // What of the response the client accepts from the cache.
                6 if is("pragma") => &mut found.pragma,
                13 if is("cache-control") => &mut found.cache_control,
                // The token.
                9 if is("x-api-key") => &mut found.api_key,
                13 if is("authorization") => &mut found.authorization,
                // The trace and the id that are logged; the id is also in the response.
                11 if is("traceparent") => &mut found.trace,
                12 if is("x-request-id") => &mut found.request_id,
                // Whether the response is 304.
                13 if is("if-none-match") => &mut found.if_none_match,
                // The client's address, for its limits.
                15 if is("x-forwarded-for") => {
                    *found.forwarded_for.get_mut(found.forwarded_count)? = value;
                    found.forwarded_count += 1;
                    continue;
                }
                // What a preflight requests.
                29 if is("access-control-request-method") => &mut found.requested_method,
                30 if is("access-control-request-headers") => &mut found.requested_fields,
                _ => continue,
            };
            if only.replace(value).is_some() {
                return None;
            }
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
    const BEARER: (&str, &str) = ("Authorization", "Bearer t");

    fn read<'a>(
        method: &str,
        target: &'a str,
        fields: &'a [(&'a str, &'a str)],
    ) -> Option<NameRequestHead<'a>> {
        let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
        NameRequestHead::read(
            method,
            target,
            fields,
            NameRequestRules { cookie: Some("token"), answers_preflights: true },
        )
    }

    fn get<'a>(fields: &'a [(&'a str, &'a str)]) -> NameRequestHead<'a> {
        read("GET", TARGET, fields).expect("a request for a name")
    }

    fn token(target: &str, fields: &[(&str, &str)]) -> Result<String, CredentialError> {
        let head = read("GET", target, fields).expect("a request for a name");
        head.credential.map(Cow::into_owned)
    }

    #[test]
    fn token_of_the_first_place_decides() {
        let places =
            [BEARER, ("X-API-Key", "k"), ("Cookie", "a=b; token=c"), ("Cookie", "token=d")];
        assert_eq!(token(TARGET, &places).unwrap(), "t");
        assert_eq!(token(TARGET, &places[1..]).unwrap(), "k");
        assert_eq!(token(TARGET, &places[2..]).unwrap(), "c");
        assert_eq!(token(TARGET, &places[3..]).unwrap(), "d");
        let query = format!("{TARGET}?token=q%31");
        assert_eq!(token(&query, &places[2..]).unwrap(), "q1");
        assert_eq!(token(&query, &[("x-api-key", ""), ("COOKIE", "token=")]).unwrap(), "q1");
        assert_eq!(token(TARGET, &[("cookie", "token=%41%42")]).unwrap(), "AB");
        assert_eq!(token(TARGET, &[("authorization", "bearer  t")]).unwrap(), "t");
    }

    #[test]
    fn credential_that_cannot_be_used_is_an_error() {
        assert_eq!(token(TARGET, &[]), Err(CredentialError::Missing));
        assert_eq!(token(TARGET, &[("Cookie", "_ga=1")]), Err(CredentialError::Missing));
        for value in ["", "Bearer", "Basic t", "Bearer a b", "Bearert"] {
            assert_eq!(
                token(TARGET, &[("Authorization", value)]),
                Err(CredentialError::NotBearer),
                "{value:?}"
            );
        }
        assert_eq!(token(TARGET, &[("X-API-Key", "a b")]), Err(CredentialError::Malformed));
        assert_eq!(token(TARGET, &[("Cookie", "token=\u{e6}")]), Err(CredentialError::Malformed));
        let two = format!("{TARGET}?token=a&token=b");
        assert_eq!(token(&two, &[]), Err(CredentialError::Ambiguous));
    }

    #[test]
    fn request_id_or_trace_with_a_credential_is_ignored() {
        for (fields, is_used) in [
            (&[BEARER][..], true),
            (&[("Authorization", "Bearer id")], false),
            (&[BEARER, ("X-API-Key", "-1")], false),
            (&[BEARER, ("Cookie", "a=b; token=id-1")], false),
            (&[BEARER, ("Cookie", "token=%69d")], false),
            (&[BEARER, ("Cookie", "other=id-1")], true),
        ] {
            let all = [fields, &[("X-Request-Id", "id-1"), ("traceparent", "id-1")]].concat();
            let head = get(&all);
            assert_eq!(
                (head.request_id.is_some(), head.trace.is_some()),
                (is_used, is_used),
                "{fields:?}"
            );
        }
        for id in ["", "a b", "a/b", "\u{e6}"] {
            assert_eq!(get(&[BEARER, ("X-Request-Id", id)]).request_id, None, "{id:?}");
        }
    }

    #[test]
    fn fields_that_decide_are_read_in_any_case_and_order() {
        let fields = [
            ("if-NONE-match", "\"x\""),
            ("x-forwarded-for", "192.0.2.1"),
            ("cache-control", "max-age=0"),
            BEARER,
            ("ORIGIN", "https://a"),
            ("X-Forwarded-For", "192.0.2.2"),
        ];
        let head = get(&fields);
        assert_eq!(head.if_none_match, Some(&b"\"x\""[..]));
        assert_eq!(head.forwarded_for(), [&b"192.0.2.1"[..], b"192.0.2.2"]);
        assert_eq!(
            (head.cache_control, head.origin),
            (Some(&b"max-age=0"[..]), Some(&b"https://a"[..]))
        );
        assert_eq!(get(&[BEARER, ("Pragma", "no-cache")]).pragma, Some(&b"no-cache"[..]));
        assert_eq!(read("HEAD", TARGET, &[BEARER]).unwrap().method, NameRequestMethod::Head);
        let preflight = [("Origin", "https://a"), ("Access-Control-Request-Method", "GET")];
        assert_eq!(
            read("OPTIONS", TARGET, &preflight).unwrap().method,
            NameRequestMethod::Preflight
        );
    }

    #[test]
    fn other_request_is_not_read() {
        for target in [
            "/customer/73469a52f4fd7f77ec7b28cc/name/",
            "/customer/73469a52f4fd7f77ec7b28cc/Name",
            "/customer/73469a52f4fd7f77ec7b28cc/name?a=b",
            "/customer/73469a52f4fd7f77ec7b28cc/name?token=%",
            "/customer/73469a52f4fd7f77ec7b28cc/name?token=a&x",
            "/customer/73469a52f4fd7f77ec7b28c/name",
            "/customer/73469a52f4fd7f77ec7b28ccc/name",
            "/customer/%33469a52f4fd7f77ec7b28/name",
            "//customer/73469a52f4fd7f77ec7b28cc/name",
            "/customer/73469a52f4fd7f77ec7b28cc",
            "*",
            "",
        ] {
            assert_eq!(read("GET", target, &[BEARER]), None, "{target:?}");
        }
        for method in ["get", "POST", "OPTIONS", "DELETE", ""] {
            assert_eq!(read(method, TARGET, &[BEARER]), None, "{method:?}");
        }
        for name in [
            "Authorization",
            "X-API-Key",
            "If-None-Match",
            "Cache-Control",
            "Origin",
            "X-Request-Id",
        ] {
            assert_eq!(
                read("GET", TARGET, &[(name, "Bearer t"), (name, "Bearer t")]),
                None,
                "{name}"
            );
        }
        assert_eq!(read("GET", TARGET, &[("X-Forwarded-For", "a"); MAX_FORWARDED_FOR + 1]), None);
    }

    proptest::proptest! {
        #[test]
        fn other_field_changes_nothing(name in "[a-zA-Z_][a-zA-Z_-]{0,20}", value in "[ -~]{0,20}") {
            let decides = [
                "authorization", "cache-control", "cookie", "if-none-match", "origin", "pragma", "traceparent",
                "x-api-key", "x-forwarded-for", "x-request-id",
            ];
            proptest::prop_assume!(!decides.iter().any(|read| name.eq_ignore_ascii_case(read)));
            let with = [BEARER, (&*name, &*value), ("X-Request-Id", "r")];
            proptest::prop_assert_eq!(get(&with), get(&[BEARER, ("X-Request-Id", "r")]));
        }
    }
}
