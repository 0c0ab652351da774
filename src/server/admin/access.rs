//! Access to the admin listener: the admin token, and protection against web pages of other
//! origins.
//!
//! A browser on an operator's machine reaches the admin listener too, and any page that it shows
//! may send requests there. Such a page cannot read the responses, but it must not cause a change,
//! and it must not become same-origin by a name that its owner lets resolve to this host (DNS
//! rebinding). A browser adds Basic credentials to requests by itself, so these checks apply with a
//! token too. A bearer token is sent by programs only.

use std::net::IpAddr;
use std::sync::Arc;

use http::Method;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, ORIGIN};
use http::uri::Authority;

use crate::server::admin_token::AdminTokens;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Longest `Authorization` field that is decoded.
const MAX_BASIC_BYTES: usize = 8 * 1024;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Its `Host` is a name that may belong to anyone.
    MisdirectedHost,
    /// It comes from a web page of another origin.
    CrossOrigin,
    /// It has no valid admin token.
    Unauthorized,
}

/// How a request shows that it is an operator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Credential {
    /// No token is configured.
    NotRequired,
    /// The token, sent by a program.
    Bearer,
    /// The token as the password of Basic authentication, sent by a browser.
    Basic,
    /// No token, or another one.
    Invalid,
}

/// The rules of access.
pub struct AccessRules {
    /// The admin tokens; `None` if none is configured.
    tokens: Option<Arc<AdminTokens>>,
    /// Name of this machine, which `Host` may contain.
    host_name: String,
}

impl AccessRules {
    pub fn new(tokens: Option<Arc<AdminTokens>>, host_name: String) -> Self {
        AccessRules { tokens, host_name }
    }

    /// Decides on a request.
    ///
    /// # Errors
    ///
    /// The request is refused.
    pub fn check(
        &self,
        method: &Method,
        host: Option<&str>,
        fields: &HeaderMap,
    ) -> Result<(), Denial> {
        let authorization = fields.get(AUTHORIZATION).map(http::HeaderValue::as_bytes);
        let credential = self.credential(authorization);
        if credential != Credential::Bearer && !self.is_own_host(host) {
            return Err(Denial::MisdirectedHost);
        }
        let changes_state = !matches!(*method, Method::GET | Method::HEAD);
        let is_navigation = fields.get(SEC_FETCH_MODE).is_some_and(|mode| mode == "navigate");
        let is_sent_by_browser = credential == Credential::Basic && !is_navigation;
        if (changes_state || is_sent_by_browser) && is_cross_origin(fields, host) {
            return Err(Denial::CrossOrigin);
        }
        if credential == Credential::Invalid { Err(Denial::Unauthorized) } else { Ok(()) }
    }

    /// Compares digests, in constant time.
    fn credential(&self, authorization: Option<&[u8]>) -> Credential {
        let Some(tokens) = &self.tokens else { return Credential::NotRequired };
        let Some(authorization) = authorization else { return Credential::Invalid };
        let matches = |token: &[u8]| tokens.accepts(token);
        if bearer_token(authorization).is_some_and(matches) {
            return Credential::Bearer;
        }
        match basic_password(authorization) {
            Some(password) if matches(&password) => Credential::Basic,
            _ => Credential::Invalid,
        }
    }

    /// Whether no other host can own the name `host`: it is an address, `localhost` (RFC 6761
    /// section 6.3), or the name of this machine. A request without `Host` was not sent by a
    /// browser.
    fn is_own_host(&self, host: Option<&str>) -> bool {
        let Some(host) = host else { return true };
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host();
        let address =
            name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let name = name.to_ascii_lowercase();
        address.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || name == self.host_name.to_ascii_lowercase()
    }

    /// Whether a client's request id contains the token of the request.
    pub fn is_credential(&self, id: &[u8], fields: &HeaderMap) -> bool {
        if self.tokens.as_ref().is_some_and(|tokens| tokens.accepts(id)) {
            return true;
        }
        let Some(authorization) = fields.get(AUTHORIZATION).map(http::HeaderValue::as_bytes) else {
            return false;
        };
        let password = basic_password(authorization);
        [bearer_token(authorization), password.as_deref()]
            .into_iter()
            .flatten()
            .any(|token| !token.is_empty() && memchr::memmem::find(id, token).is_some())
    }
}

/// The token behind `Bearer`.
fn bearer_token(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// The password of Basic authentication (RFC 7617); the user name is ignored.
fn basic_password(authorization: &[u8]) -> Option<Vec<u8>> {
    let (scheme, encoded) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") || encoded.len() > MAX_BASIC_BYTES {
        return None;
    }
    let pair = decode_base64(encoded.trim_ascii())?;
    let colon = pair.iter().position(|&byte| byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// Decodes base64 (RFC 4648 section 4), with or without padding.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    let digits = &text[..end];
    if text.len() - end > 2 || digits.len() % 4 == 1 {
        return None;
    }
    let mut decoded = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for &digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        decoded.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(decoded)
}

/// Whether a page of another origin sent a request. Browsers send `Sec-Fetch-Site` (W3C Fetch
/// Metadata) over connections that they trust, and `Origin` with every request that changes
/// something. Other clients send neither.
fn is_cross_origin(fields: &HeaderMap, host: Option<&str>) -> bool {
    if let Some(site) = fields.get(SEC_FETCH_SITE) {
        return !matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    let Some(origin) = fields.get(ORIGIN) else { return false };
    let origin = origin.to_str().unwrap_or_default();
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    !authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Option<&str> = Some("127.0.0.1:9090");

    fn fields(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    fn rules(token: Option<&[u8]>) -> AccessRules {
        AccessRules::new(token.map(AdminTokens::for_test), "gateway-1".into())
    }

    #[test]
    fn own_hosts_are_addresses_localhost_and_the_machine() {
        let rules = rules(None);
        for own in [
            "127.0.0.1:9090",
            "127.0.0.1",
            "[::1]:9090",
            "localhost:9090",
            "LOCALHOST",
            "a.localhost:1",
            "10.1.2.3",
            "Gateway-1:9090",
        ] {
            assert!(rules.is_own_host(Some(own)), "{own}");
        }
        assert!(rules.is_own_host(None));
        for other in [
            "rebound.example:9090",
            "localhost.example",
            "127.0.0.1.example:9090",
            "notlocalhost",
            "gateway-1.example",
            "",
            "a b",
        ] {
            assert!(!rules.is_own_host(Some(other)), "{other}");
        }
    }

    #[test]
    fn fetch_metadata_and_origin_identify_other_pages() {
        let is_other = |pairs: &[(&'static str, &str)]| is_cross_origin(&fields(pairs), OWN);
        assert!(!is_other(&[]), "curl");
        for own in ["same-origin", "none"] {
            assert!(!is_other(&[("sec-fetch-site", own)]), "{own}");
        }
        for other in ["cross-site", "same-site", "", "new"] {
            assert!(
                is_other(&[("sec-fetch-site", other), ("origin", "http://127.0.0.1:9090")]),
                "{other}"
            );
        }
        assert!(!is_other(&[("origin", "http://127.0.0.1:9090")]));
        for other in [
            "null",
            "http://127.0.0.1:9091",
            "http://127.0.0.1",
            "https://page.example",
            "127.0.0.1:9090",
        ] {
            assert!(is_other(&[("origin", other)]), "{other}");
        }
    }

    #[test]
    fn basic_credentials_are_subject_to_the_browser_checks() {
        let rules = rules(Some(b"secret:token"));
        let basic = ("authorization", "Basic b3BlcmF0b3I6c2VjcmV0OnRva2Vu");
        let check = |method, host, pairs: &[(&'static str, &str)]| {
            rules.check(&method, host, &fields(pairs))
        };
        assert_eq!(check(Method::GET, OWN, &[basic]), Ok(()));
        assert_eq!(
            check(Method::GET, Some("rebound.example"), &[basic]),
            Err(Denial::MisdirectedHost)
        );
        assert_eq!(
            check(Method::GET, OWN, &[basic, ("sec-fetch-site", "cross-site")]),
            Err(Denial::CrossOrigin)
        );
        let link = [basic, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(check(Method::GET, OWN, &link), Ok(()), "a link on another page");
        assert_eq!(check(Method::POST, OWN, &link), Err(Denial::CrossOrigin));
        let bearer = ("authorization", "bearer secret:token");
        assert_eq!(check(Method::GET, Some("gateway.example"), &[bearer]), Ok(()));
        for wrong in
            ["Bearer secret", "Basic b3BlcmF0b3I6c2VjcmV0", "Basic !", "secret:token", "Basic "]
        {
            assert_eq!(
                check(Method::GET, OWN, &[("authorization", wrong)]),
                Err(Denial::Unauthorized),
                "{wrong}"
            );
        }
        assert_eq!(check(Method::GET, OWN, &[]), Err(Denial::Unauthorized));
        assert_eq!(check(Method::GET, Some("rebound.example"), &[]), Err(Denial::MisdirectedHost));
    }

    #[test]
    fn base64_is_decoded_strictly() {
        for (encoded, decoded) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob")]
        {
            assert_eq!(
                decode_base64(encoded.as_bytes()).as_deref(),
                Some(decoded.as_bytes()),
                "{encoded}"
            );
        }
        for wrong in ["Z", "Zg===", "Zm9v Yg", "Zm9-", "Zg=g"] {
            assert_eq!(decode_base64(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
