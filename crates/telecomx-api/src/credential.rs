//! Tokens of a request, and the rule which of them decides.
//!
//! The order is `Authorization: Bearer`, `X-API-Key`, `?token=`, cookie. The first place with a
//! token decides alone. Another scheme in `Authorization` is an error and not a reason to search
//! further: the API might search elsewhere than the gateway does. An empty value is not a token.

use std::borrow::Cow;
use std::fmt;

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE, HeaderName};
use percent_encoding::percent_decode;
use zeroize::Zeroizing;

use super::error::{ApiError, Refusal};
use super::path::Query;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A caller's token. Its `Debug` output is empty, its memory is zeroed when it is dropped, and only
/// [`Token::expose`] returns it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Maximum length of a token in bytes.
    pub const MAX_LEN: usize = 4096;

    /// Parses 1 to [`Token::MAX_LEN`] bytes of visible ASCII, which a field value can contain and
    /// no reader takes for a delimiter.
    pub fn parse(text: &[u8]) -> Option<Self> {
        Self::text(text).map(|text| Token(Zeroizing::new(text.to_owned())))
    }

    /// Returns the text of a token without copying it.
    pub fn text(text: &[u8]) -> Option<&str> {
        // Without branches, so that it is compiled to vector instructions.
        let is_graphic = text.iter().fold(true, |all, byte| all & byte.is_ascii_graphic());
        let is_token = (1..=Self::MAX_LEN).contains(&text.len()) && is_graphic;
        std::str::from_utf8(text).ok().filter(|_| is_token)
    }

    /// Returns the secret, for requests to the API only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Reason why no token was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialError {
    /// No place has a token.
    Missing,
    /// `Authorization` is present and is not `Bearer` with one token.
    NotBearer,
    /// Two different tokens in one place.
    Ambiguous,
    /// The value cannot be a token.
    Malformed,
}

impl From<CredentialError> for ApiError {
    fn from(error: CredentialError) -> Self {
        match error {
            CredentialError::Missing => ApiError::NoCredential,
            CredentialError::NotBearer => ApiError::NotBearer,
            CredentialError::Ambiguous => ApiError::BadRequest(Refusal::AmbiguousCredential),
            CredentialError::Malformed => ApiError::BadRequest(Refusal::MalformedCredential),
        }
    }
}

/// Places of a request that can hold a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialPlace {
    Authorization,
    ApiKey,
    Query,
    Cookie,
    /// The member `token` of a JSON body.
    Body,
}

/// The token that decides, and its place in the request.
#[derive(Clone, Debug)]
pub struct Credential {
    pub token: Token,
    pub place: CredentialPlace,
}

/// Finds the token that decides. `cookie`: the cookie's name; `None`: cookies hold no token.
///
/// # Errors
/// See [`CredentialError`]. Two different `Authorization` or `X-API-Key` are an error, whichever
/// place would decide.
pub fn find_credential(
    headers: &HeaderMap,
    query: &Query<'_>,
    cookie: Option<&str>,
) -> Result<Credential, CredentialError> {
    let (place, token) = find_token(headers, query, cookie)?;
    Ok(Credential { token: Token(Zeroizing::new(token.into_owned())), place })
}

/// As [`find_credential`], without a copy of a token that has its own field.
///
/// # Errors
/// As [`find_credential`].
pub fn with_token<T>(
    headers: &HeaderMap,
    query: &Query<'_>,
    cookie: Option<&str>,
    read: impl FnOnce(&str) -> T,
) -> Result<T, CredentialError> {
    Ok(match find_token(headers, query, cookie)?.1 {
        Cow::Borrowed(token) => read(token),
        Cow::Owned(token) => read(&Zeroizing::new(token)),
    })
}

fn find_token<'h>(
    headers: &'h HeaderMap,
    query: &Query<'_>,
    cookie: Option<&str>,
) -> Result<(CredentialPlace, Cow<'h, str>), CredentialError> {
    let authorization = only_value(headers, &AUTHORIZATION)?;
    let api_key = only_value(headers, &X_API_KEY)?;
    let in_cookie = || cookie.and_then(|name| cookie_values(headers, name).next());
    decide_credential(authorization, api_key, query, in_cookie)
}

/// Decides which value of a request is its token. `authorization`, `api_key`: the values of these
/// fields; `cookie`: the value of the first token cookie that is not empty.
///
/// # Errors
/// See [`CredentialError`].
pub fn decide_credential<'a>(
    authorization: Option<&'a [u8]>,
    api_key: Option<&'a [u8]>,
    query: &Query<'_>,
    cookie: impl FnOnce() -> Option<Cow<'a, [u8]>>,
) -> Result<(CredentialPlace, Cow<'a, str>), CredentialError> {
    if let Some(value) = authorization {
        let token = bearer(value).ok_or(CredentialError::NotBearer)?;
        return Ok((CredentialPlace::Authorization, Cow::Borrowed(token)));
    }
    let (place, value) = if let Some(key) = api_key.filter(|value| !value.is_empty()) {
        (CredentialPlace::ApiKey, Cow::Borrowed(key))
    } else if let Some(value) =
        query.token().map_err(|_| CredentialError::Ambiguous)?.filter(|value| !value.is_empty())
    {
        (CredentialPlace::Query, Cow::Owned(value))
    } else {
        (CredentialPlace::Cookie, cookie().ok_or(CredentialError::Missing)?)
    };
    let token = match &value {
        Cow::Borrowed(value) => Token::text(value).map(Cow::Borrowed),
        Cow::Owned(value) => Token::text(value).map(|text| Cow::Owned(text.to_owned())),
    };
    Ok((place, token.ok_or(CredentialError::Malformed)?))
}

/// Finds every token of the header fields and the query, in each place and under each name that an
/// API could read as `token`. For a logout: it may end any of them.
///
/// # Errors
/// A place holds something that cannot be read as a token: the API may know whose it is.
pub fn find_all_tokens(
    headers: &HeaderMap,
    query: &Query<'_>,
    cookie: Option<&str>,
) -> Result<Vec<Token>, CredentialError> {
    let mut tokens = Vec::new();
    for value in headers.get_all(AUTHORIZATION) {
        let value = value.as_bytes().trim_ascii();
        if !value.is_empty() && !value.eq_ignore_ascii_case(b"bearer") {
            let token = bearer(value).and_then(|token| Token::parse(token.as_bytes()));
            tokens.push(token.ok_or(CredentialError::NotBearer)?);
        }
    }
    let keys = headers.get_all("x-api-key").iter().map(|value| Cow::Borrowed(value.as_bytes()));
    let cookies = cookie.into_iter().flat_map(|name| cookie_values(headers, name));
    for value in keys.chain(query.token_aliases().map(Cow::Owned)).chain(cookies) {
        if !value.trim_ascii().is_empty() {
            tokens.push(Token::parse(&value).ok_or(CredentialError::Malformed)?);
        }
    }
    Ok(tokens)
}

/// Returns the values of all cookies that can be tokens, whatever their names: the API may know its
/// token cookie by another name than the gateway.
pub fn find_cookie_tokens(headers: &HeaderMap) -> impl Iterator<Item = Token> {
    cookie_pairs(headers).filter_map(|(_, value)| Token::parse(&decode_cookie(value)))
}

/// Why the member `token` of a JSON body cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// The body is not JSON as every parser reads it.
    NotJson,
    /// The member cannot be a token, or several members differ.
    Credential(CredentialError),
}

/// Reads the member `token` of a JSON object. `None`: the body has no such member.
///
/// # Errors
/// See [`BodyError`].
pub fn read_body_token(body: &[u8]) -> Result<Option<Token>, BodyError> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let values = if body.trim_ascii().first() == Some(&b'{') {
        serde_json::from_slice::<TokenMembers>(body).map_err(|_| BodyError::NotJson)?.0
    } else {
        serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(|_| BodyError::NotJson)?;
        Vec::new()
    };
    let mut token: Option<Token> = None;
    for value in values {
        // Falsy values of JavaScript are not a token for an API written in it.
        let text = match &value {
            serde_json::Value::String(text) if text.is_empty() => continue,
            serde_json::Value::Null | serde_json::Value::Bool(false) => continue,
            serde_json::Value::String(text) => text.as_bytes(),
            _ => return Err(BodyError::Credential(CredentialError::Malformed)),
        };
        let read = Token::parse(text).ok_or(BodyError::Credential(CredentialError::Malformed))?;
        if token.is_some_and(|other| other != read) {
            return Err(BodyError::Credential(CredentialError::Ambiguous));
        }
        token = Some(read);
    }
    Ok(token)
}

/// The values of the members `token` of a JSON object, each time the name occurs.
struct TokenMembers(Vec<serde_json::Value>);

impl<'de> serde::Deserialize<'de> for TokenMembers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> serde::de::Visitor<'de> for Members {
            type Value = TokenMembers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<TokenMembers, A::Error> {
                let mut values = Vec::new();
                while let Some(name) = map.next_key::<Cow<'_, str>>()? {
                    if name == "token" {
                        values.push(map.next_value()?);
                    } else {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    }
                }
                Ok(TokenMembers(values))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Checks that no place has two different credentials, for requests that are forwarded unchanged.
///
/// # Errors
/// [`CredentialError::Ambiguous`].
pub fn credentials_agree(headers: &HeaderMap) -> Result<(), CredentialError> {
    only_value(headers, &AUTHORIZATION)?;
    only_value(headers, &X_API_KEY).map(drop)
}

/// Whether a text contains a credential of the request from any place. `fields`: names in any
/// letter case, and values.
pub fn holds_credential<'a>(
    text: &[u8],
    fields: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    query: Option<&str>,
    cookie: Option<&str>,
) -> bool {
    let within = |credential: &[u8]| {
        !credential.is_empty() && memchr::memmem::find(text, credential).is_some()
    };
    let in_cookie = |(name, value): (&[u8], &[u8])| {
        Some(name) == cookie.map(str::as_bytes) && (within(value) || within(&decode_cookie(value)))
    };
    let in_field = |(name, value): (&str, &[u8])| match name.len() {
        6 if name.eq_ignore_ascii_case("cookie") => {
            value.split(|&b| b == b';').filter_map(read_cookie).any(in_cookie)
        }
        9 if name.eq_ignore_ascii_case("x-api-key") => within(value.trim_ascii()),
        13 if name.eq_ignore_ascii_case("authorization") => {
            value.trim_ascii().rsplit(|b| b.is_ascii_whitespace()).next().is_some_and(within)
        }
        _ => false,
    };
    fields.into_iter().any(in_field)
        || Query::unvalidated(query).token_aliases().any(|token| within(&token))
}

/// Returns the value of a field, which may occur several times with the same value.
fn only_value<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a [u8]>, CredentialError> {
    let mut values = headers.get_all(name).iter().map(|value| value.as_bytes());
    let Some(first) = values.next() else { return Ok(None) };
    if values.all(|value| value == first) {
        Ok(Some(first))
    } else {
        Err(CredentialError::Ambiguous)
    }
}

/// Returns the token of `Bearer` in any letter case (RFC 9110 section 11.1), after one or more
/// spaces.
pub fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") || rest.first() != Some(&b' ') {
        return None;
    }
    Token::text(rest.trim_ascii())
}

/// Returns the value of the first non-empty cookie of this name in a `Cookie` field.
pub fn cookie_value<'a>(field: &'a [u8], name: &str) -> Option<Cow<'a, [u8]>> {
    let pairs = field.split(|&b| b == b';').filter_map(read_cookie);
    let mut values = pairs.filter(|(other, value)| *other == name.as_bytes() && !value.is_empty());
    values.next().map(|(_, value)| decode_cookie(value))
}

/// Returns names and unquoted values of all cookies in the order of the fields.
fn cookie_pairs(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let fields = headers.get_all(COOKIE).iter();
    fields.flat_map(|value| value.as_bytes().split(|&b| b == b';')).filter_map(read_cookie)
}

fn read_cookie(pair: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b'=', pair)?;
    let (name, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
    let unquoted = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
    Some((name, unquoted.unwrap_or(value)))
}

/// Returns the non-empty values of the cookies of this name. The first decides (RFC 6265 section
/// 5.4: the most specific one comes first).
fn cookie_values<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = Cow<'a, [u8]>> {
    let values = cookie_pairs(headers)
        .filter(move |(other, value)| *other == name.as_bytes() && !value.is_empty());
    values.map(|(_, value)| decode_cookie(value))
}

/// Percent-decodes the value of a cookie, as Express and others encode it. A value with an invalid
/// escape was not encoded.
fn decode_cookie(value: &[u8]) -> Cow<'_, [u8]> {
    let is_escape = |at: usize| {
        value.get(at + 1..at + 3).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit))
    };
    let mut escapes = memchr::memchr_iter(b'%', value);
    if escapes.all(is_escape) { percent_decode(value).into() } else { Cow::Borrowed(value) }
}

/// Removes the cookies of this name from a `Cookie` field. The first non-empty one remains if
/// `keep` is set, which is then cleared. `None`: no cookie remains.
pub fn strip_cookie(field: &[u8], name: &str, keep: &mut bool) -> Option<Vec<u8>> {
    let mut rest: Vec<&[u8]> = Vec::new();
    for pair in field.split(|&b| b == b';') {
        let stays = match read_cookie(pair) {
            Some((other, value)) if other == name.as_bytes() => {
                !value.is_empty() && std::mem::take(keep)
            }
            _ => !pair.trim_ascii().is_empty(),
        };
        if stays {
            rest.push(pair.trim_ascii());
        }
    }
    (!rest.is_empty()).then(|| rest.join(&b"; "[..]))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn find(fields: &[(&'static str, &str)], query: &str) -> Result<String, CredentialError> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let query = Query::parse(Some(query)).unwrap();
        find_credential(&headers, &query, Some("token"))
            .map(|found| found.token.expose().to_owned())
    }

    #[test]
    fn the_documented_order_decides() {
        let all = [("authorization", "Bearer a"), ("x-api-key", "b"), ("cookie", "x=1; token=d")];
        assert_eq!(find(&all, "token=c").unwrap(), "a");
        assert_eq!(find(&all[1..], "token=c").unwrap(), "b");
        assert_eq!(find(&all[2..], "token=c").unwrap(), "c");
        assert_eq!(find(&all[2..], "").unwrap(), "d");
        assert_eq!(find(&[], ""), Err(CredentialError::Missing));
    }

    #[test]
    fn other_scheme_than_bearer_is_an_error() {
        for value in
            ["Basic YTpi", "Bearer", "Bearer ", "Bearer a b", "Bearera", "", "Bearer \u{e6}"]
        {
            let fields = [("authorization", value), ("x-api-key", "b")];
            assert_eq!(find(&fields, ""), Err(CredentialError::NotBearer), "{value:?}");
        }
        assert_eq!(find(&[("authorization", "bEARER  a")], "").unwrap(), "a");
    }

    #[test]
    fn different_values_are_ambiguous_and_equal_ones_are_one() {
        assert_eq!(
            find(&[("authorization", "Bearer a"), ("authorization", "Bearer b")], ""),
            Err(CredentialError::Ambiguous)
        );
        assert_eq!(
            find(&[("authorization", "Bearer a"), ("authorization", "Bearer a")], "").unwrap(),
            "a"
        );
        let behind = [("authorization", "Bearer a"), ("x-api-key", "b"), ("x-api-key", "c")];
        assert_eq!(find(&behind, ""), Err(CredentialError::Ambiguous));
        assert_eq!(find(&[], "token=a&token=b"), Err(CredentialError::Ambiguous));
    }

    #[test]
    fn token_between_blanks_is_found_in_a_text() {
        let query = Query::parse(None).unwrap();
        for value in ["Bearer abc", "bearer \t abc", "Bearer abc ", "Bearer abc\t"] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(
                find_credential(&headers, &query, None).unwrap().token.expose(),
                "abc",
                "{value:?}"
            );
            let fields = || headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
            assert!(holds_credential(b"xabcx", fields(), None, None), "{value:?}");
            assert!(!holds_credential(b"ab", fields(), None, None), "{value:?}");
        }
    }

    #[test]
    fn token_has_no_debug_output() {
        let token = Token::parse(b"very-secret").unwrap();
        assert!(!format!("{token:?}").contains("secret"));
        assert!(Token::parse(&[b'a'; Token::MAX_LEN + 1]).is_none());
    }

    #[test]
    fn empty_value_is_not_a_token() {
        for (fields, query) in [
            (&[("x-api-key", "")][..], ""),
            (&[], "token="),
            (&[], "token=&token="),
            (&[], "token"),
            (&[("cookie", "token=")], ""),
            (&[("cookie", "token=\"\"; a=b")], ""),
        ] {
            assert_eq!(find(fields, query), Err(CredentialError::Missing), "{fields:?} {query}");
            assert_eq!(find(&[fields, &[("cookie", "token=d")]].concat(), query).unwrap(), "d");
        }
    }

    #[test]
    fn cookie_is_decoded_if_every_escape_is_valid() {
        for (value, token) in [
            ("a%2Bb", "a+b"),
            ("\"a%2fb\"", "a/b"),
            ("a%3D%3d", "a=="),
            ("a%2", "a%2"),
            ("a%zz%2B", "a%zz%2B"),
            ("a==", "a=="),
            ("a%252B", "a%2B"),
        ] {
            assert_eq!(
                find(&[("cookie", &format!("token={value}"))], "").unwrap(),
                token,
                "{value}"
            );
        }
        for malformed in ["a%20b", "a%00", "%ff"] {
            let found = find(&[("cookie", &format!("token={malformed}"))], "");
            assert_eq!(found, Err(CredentialError::Malformed), "{malformed}");
        }
    }

    #[test]
    fn every_token_of_a_request_is_found() {
        let all = |fields: &[(&'static str, &str)], query: &str| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_str(value).unwrap());
            }
            let query = Query::parse(Some(query)).unwrap();
            let tokens = find_all_tokens(&headers, &query, Some("token"))?;
            Ok::<_, CredentialError>(
                tokens.iter().map(|token| token.expose().to_owned()).collect::<Vec<_>>().join(" "),
            )
        };
        let fields = [
            ("authorization", "Bearer a"),
            ("x-api-key", "b"),
            ("cookie", "token=c; token=d; x=y"),
        ];
        assert_eq!(
            all(&fields, "token=e&token[]=f&Token=g&%74oken=h&x=z").unwrap(),
            "a b e f g h c d"
        );
        for empty in ["", "Bearer", "Bearer "] {
            assert_eq!(
                all(&[("authorization", empty), ("x-api-key", "")], "token=&token=x").unwrap(),
                "x"
            );
        }
        for (fields, query) in [
            (&[("authorization", "Basic x")][..], "token=a"),
            (&[("authorization", "a")], ""),
            (&[("x-api-key", "a b")], "token=a"),
            (&[], "token=a&token[]=%20b"),
            (&[("cookie", "token=a%20b")], "token=a"),
        ] {
            assert!(all(fields, query).is_err(), "{fields:?} {query}");
        }
    }

    #[test]
    fn body_token_is_read_or_refused() {
        let read = |body: &str| {
            read_body_token(body.as_bytes())
                .map(|token| token.map(|token| token.expose().to_owned()))
        };
        for (body, token) in [
            (r#"{"token":"a"}"#, Some("a")),
            ("\u{feff} {\"x\":{\"token\":\"b\"},\"\\u0074oken\":\"a\"}", Some("a")),
            (r#"{"token":"a","token":"a"}"#, Some("a")),
            (r#"{"token":"","x":1}"#, None),
            (r#"{"token":null}"#, None),
            (r#"[{"token":"a"}]"#, None),
            ("3", None),
        ] {
            assert_eq!(read(body), Ok(token.map(str::to_owned)), "{body}");
        }
        for (body, error) in [
            (r#"{"token":"a","token":"b"}"#, CredentialError::Ambiguous),
            (r#"{"token":["a"]}"#, CredentialError::Malformed),
            (r#"{"token":7}"#, CredentialError::Malformed),
            (r#"{"token":"a b"}"#, CredentialError::Malformed),
        ] {
            assert_eq!(read(body), Err(BodyError::Credential(error)), "{body}");
        }
        for body in ["", "{", "{'token':'a'}", r#"{"token":"a"} x"#, "token=a"] {
            assert_eq!(read(body), Err(BodyError::NotJson), "{body}");
        }
    }

    #[test]
    fn cookies_of_a_name_are_stripped_from_a_field() {
        let strip = |field: &str, mut keep: bool| {
            strip_cookie(field.as_bytes(), "token", &mut keep)
                .map(|rest| String::from_utf8(rest).unwrap())
        };
        assert_eq!(strip("a=b; token=1; c=d;token=2", false).as_deref(), Some("a=b; c=d"));
        assert_eq!(
            strip("a=b; token=; token=1; c=d;token=2", true).as_deref(),
            Some("a=b; token=1; c=d")
        );
        assert_eq!(strip("token=1; ", false), None);
        assert_eq!(strip("tokens=1; x", false).as_deref(), Some("tokens=1; x"));
    }
}
