//! Any query and fields of a request: the first line is the query, every other one `name: value`.
//! The reference reading lists the content of each place, in the order of the places, and takes the
//! first that is not empty.
//!
//! What must hold: no panic; token or error are those of the reference, a token has 1 to 4096
//! visible ASCII characters; a lower place does not count if a higher one is not empty; the request
//! contains the token.

#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use telecomx_api::{
    CredentialError, Query, Token, credentials_agree, find_credential, holds_credential,
};

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|&byte| byte == b'\n');
    let Ok(query) = std::str::from_utf8(lines.next().unwrap_or_default()) else { return };
    let Ok(parsed) = Query::parse(Some(query)) else { return };
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.windows(2).position(|pair| pair == b": ") else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(&line[colon + 2..]);
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    for cookie in [None, Some("token")] {
        let found = find_credential(&headers, &parsed, cookie);
        let outcome = found
            .as_ref()
            .map(|found| found.token.expose().as_bytes().to_vec())
            .map_err(|error| *error);
        assert_eq!(outcome, judge(&headers, query, cookie));
        let list = || headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        if let Ok(found) = found {
            let token = found.token;
            assert!((1..=Token::MAX_LEN).contains(&token.expose().len()));
            assert!(credentials_agree(&headers).is_ok());
            assert!(holds_credential(token.expose().as_bytes(), list(), Some(query), cookie));
        }
    }
    let kept = parsed.without_tokens(false);
    let rest = Query::parse(Some(&kept)).expect("what is left of a query is one");
    assert_eq!((rest.token(), rest.token_aliases().next()), (Ok(None), None));
});

fn judge(
    headers: &HeaderMap,
    query: &str,
    cookie: Option<&str>,
) -> Result<Vec<u8>, CredentialError> {
    let values = |name: &str| -> Vec<Vec<u8>> {
        headers.get_all(name).iter().map(|v| v.as_bytes().to_vec()).collect()
    };
    let (authorization, api_key) = (values("authorization"), values("x-api-key"));
    for place in [&authorization, &api_key] {
        one(place)?;
    }
    if !authorization.is_empty() {
        return bearer(&authorization[0]).ok_or(CredentialError::NotBearer);
    }
    let mut places = vec![api_key, query_tokens(query)];
    places.extend(cookie.map(|name| cookie_tokens(&values("cookie"), name)));
    let place = places
        .iter()
        .find(|place| place.iter().any(|value| !value.is_empty()))
        .ok_or(CredentialError::Missing)?;
    one(place)?;
    visible(&place[0]).ok_or(CredentialError::Malformed)
}

fn one(place: &[Vec<u8>]) -> Result<(), CredentialError> {
    if place.windows(2).all(|pair| pair[0] == pair[1]) {
        Ok(())
    } else {
        Err(CredentialError::Ambiguous)
    }
}

fn visible(token: &[u8]) -> Option<Vec<u8>> {
    let right = !token.is_empty()
        && token.len() <= 4096
        && !token.iter().any(|byte| *byte <= b' ' || *byte >= 127);
    right.then(|| token.to_vec())
}

/// Two words with a space in between.
fn bearer(value: &[u8]) -> Option<Vec<u8>> {
    let words: Vec<&[u8]> =
        value.split(|byte| b" \t".contains(byte)).filter(|word| !word.is_empty()).collect();
    let scheme = String::from_utf8_lossy(value.get(..7)?).to_ascii_lowercase();
    if scheme == "bearer " && words.len() == 2 { visible(words[1]) } else { None }
}

fn query_tokens(query: &str) -> Vec<Vec<u8>> {
    let mut tokens = Vec::new();
    for parameter in query.split('&') {
        let mut sides = parameter.splitn(2, '=');
        if decode(sides.next().unwrap_or_default()) == b"token" {
            tokens.push(decode(sides.next().unwrap_or_default()));
        }
    }
    tokens
}

/// Every `%` has its two digits: the query was parsed.
fn decode(text: &str) -> Vec<u8> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(&piece[..2], 16).expect("two digits"));
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    bytes
}

/// Returns the first that is not empty.
fn cookie_tokens(fields: &[Vec<u8>], name: &str) -> Vec<Vec<u8>> {
    for pair in fields.join(&b';').split(|byte| *byte == b';') {
        // Any byte is a character here, and back.
        let pair: String = pair.iter().map(|byte| char::from(*byte)).collect();
        let Some((key, value)) = pair.split_once('=') else { continue };
        let blank = [' ', '\t'];
        let mut value = value.trim_matches(blank);
        if value.len() >= 2 && value.starts_with('"') && value.ends_with('"') {
            value = &value[1..value.len() - 1];
        }
        if key.trim_matches(blank) == name && !value.is_empty() {
            let escapes = value.split('%').skip(1);
            let valid = |piece: &str| {
                piece.len() >= 2 && piece.bytes().take(2).all(|digit| digit.is_ascii_hexdigit())
            };
            let raw = || value.chars().map(|letter| letter as u8).collect();
            // Any byte is a character here, and back.
            let decoded = || decode(&value.replace(|letter: char| !letter.is_ascii(), "%ff"));
            return vec![if escapes.clone().count() > 0 && escapes.into_iter().all(valid) {
                decoded()
            } else {
                raw()
            }];
        }
    }
    Vec::new()
}
