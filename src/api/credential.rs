//! Where a caller's token stands, and which one decides when there are several.
//!
//! The order is `Authorization: Bearer`, `X-API-Key`, `?token=`, a cookie. The first one present decides alone: a wrong
//! scheme in `Authorization` is an error, never a reason to look further, since the API might look elsewhere than we do.

use std::fmt;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderValue};
use zeroize::Zeroizing;

use super::error::{ApiError, Refusal};
use super::path::Query;

/// A caller's token. It prints nothing, its memory is zeroed when it is dropped, and [`Token::expose`] is the one way to
/// read it.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// The longest token that is looked at, in bytes.
    pub const MAX_LEN: usize = 4096;

    /// Takes 1 to [`Token::MAX_LEN`] bytes of visible ASCII: what can stand in a field value and in no other way be
    /// read as a delimiter.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if !(1..=Self::MAX_LEN).contains(&text.len()) || !text.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        std::str::from_utf8(text).ok().map(|text| Token(Zeroizing::new(text.to_owned())))
    }

    /// The secret itself, for the API and for nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Why no token was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialError {
    /// None of the places holds one.
    Missing,
    /// `Authorization` is there and is not `Bearer` and one token.
    NotBearer,
    /// Two different ones in one place.
    Ambiguous,
    /// One stands there that cannot be a token.
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

/// Finds the token that decides. `cookie`: the cookie's name, or none when cookies are not looked at.
///
/// # Errors
/// See [`CredentialError`]. Two different `Authorization` or `X-API-Key` are an error whichever would decide.
pub fn find_credential(headers: &HeaderMap, query: &Query<'_>, cookie: Option<&str>) -> Result<Token, CredentialError> {
    let authorization = only_value(headers, AUTHORIZATION.as_str())?;
    let api_key = only_value(headers, "x-api-key")?;
    if let Some(value) = authorization {
        return bearer(value).ok_or(CredentialError::NotBearer);
    }
    if let Some(value) = api_key {
        return Token::parse(value).ok_or(CredentialError::Malformed);
    }
    if let Some(value) = query.token().map_err(|_| CredentialError::Ambiguous)? {
        return Token::parse(&value).ok_or(CredentialError::Malformed);
    }
    if let Some(value) = cookie.and_then(|name| cookie_value(headers, name)) {
        return Token::parse(value).ok_or(CredentialError::Malformed);
    }
    Err(CredentialError::Missing)
}

/// Whether no place holds two different credentials; for requests that are passed on as they are.
///
/// # Errors
/// [`CredentialError::Ambiguous`].
pub fn credentials_agree(headers: &HeaderMap) -> Result<(), CredentialError> {
    only_value(headers, AUTHORIZATION.as_str())?;
    only_value(headers, "x-api-key").map(drop)
}

/// Whether a text holds a credential of the request, from whichever place.
pub fn holds_credential(text: &[u8], headers: &HeaderMap, query: Option<&str>, cookie: Option<&str>) -> bool {
    let within = |credential: &[u8]| !credential.is_empty() && memchr::memmem::find(text, credential).is_some();
    let last_word = |value: &HeaderValue| {
        value.as_bytes().trim_ascii().rsplit(|b| b.is_ascii_whitespace()).next().is_some_and(within)
    };
    headers.get_all(AUTHORIZATION).iter().any(last_word)
        || headers.get_all("x-api-key").iter().any(|value| within(value.as_bytes().trim_ascii()))
        || Query::parse(query).is_ok_and(|query| query.tokens().any(|token| within(&token)))
        || cookie.and_then(|name| cookie_value(headers, name)).is_some_and(within)
}

/// The value of a field that may stand more than once as long as it says the same.
fn only_value<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a [u8]>, CredentialError> {
    let mut values = headers.get_all(name).iter().map(|value| value.as_bytes());
    let Some(first) = values.next() else { return Ok(None) };
    if values.all(|value| value == first) { Ok(Some(first)) } else { Err(CredentialError::Ambiguous) }
}

/// `Bearer` in any letter case (RFC 9110 section 11.1), one or more spaces, one token.
fn bearer(value: &[u8]) -> Option<Token> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") || rest.first() != Some(&b' ') {
        return None;
    }
    Token::parse(rest.trim_ascii())
}

/// The first cookie of that name (RFC 6265 section 5.4: the most specific comes first).
fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|&b| b == b';')).find_map(|pair| {
        let at = memchr::memchr(b'=', pair)?;
        let (key, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        let value = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
        (key == name.as_bytes() && !value.is_empty()).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(fields: &[(&'static str, &str)], query: &str) -> Result<String, CredentialError> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let query = Query::parse(Some(query)).unwrap();
        find_credential(&headers, &query, Some("token")).map(|token| token.expose().to_owned())
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
    fn what_is_not_bearer_does_not_fall_through() {
        for value in ["Basic YTpi", "Bearer", "Bearer ", "Bearer a b", "Bearera", "", "Bearer \u{e6}"] {
            let fields = [("authorization", value), ("x-api-key", "b")];
            assert_eq!(find(&fields, ""), Err(CredentialError::NotBearer), "{value:?}");
        }
        assert_eq!(find(&[("authorization", "bEARER  a")], "").unwrap(), "a");
    }

    #[test]
    fn two_that_differ_are_ambiguous_and_two_alike_are_one() {
        assert_eq!(
            find(&[("authorization", "Bearer a"), ("authorization", "Bearer b")], ""),
            Err(CredentialError::Ambiguous)
        );
        assert_eq!(find(&[("authorization", "Bearer a"), ("authorization", "Bearer a")], "").unwrap(), "a");
        let behind = [("authorization", "Bearer a"), ("x-api-key", "b"), ("x-api-key", "c")];
        assert_eq!(find(&behind, ""), Err(CredentialError::Ambiguous));
        assert_eq!(find(&[], "token=a&token=b"), Err(CredentialError::Ambiguous));
    }

    #[test]
    fn a_text_holds_the_token_that_is_found_in_whatever_blanks() {
        let query = Query::parse(None).unwrap();
        for value in ["Bearer abc", "bearer \t abc", "Bearer abc ", "Bearer abc\t"] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(find_credential(&headers, &query, None).unwrap().expose(), "abc", "{value:?}");
            assert!(holds_credential(b"xabcx", &headers, None, None), "{value:?}");
            assert!(!holds_credential(b"ab", &headers, None, None), "{value:?}");
        }
    }

    #[test]
    fn a_token_prints_nothing() {
        let token = Token::parse(b"very-secret").unwrap();
        assert!(!format!("{token:?}").contains("secret"));
        assert!(Token::parse(&[b'a'; Token::MAX_LEN + 1]).is_none());
    }
}
