//! What holds for every answer of every test: no undocumented field, no secret, no token.

use std::collections::BTreeSet;

use super::client::Response;
use super::documents::{MARKER, TOKEN_MARKER};

/// Which way an answer came about; that decides which fields it may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The intercepted route, errors included.
    Intercepted,
    /// Everything else on the public port: what the origin sent, and what the gateway adds.
    Forwarded,
    /// The admin listener.
    Admin,
}

const INTERCEPTED: [&str; 25] = [
    "cache-status",
    "age",
    "etag",
    "content-type",
    "content-length",
    "cache-control",
    "vary",
    "x-request-id",
    "date",
    "connection",
    "keep-alive",
    "retry-after",
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-expose-headers",
    "access-control-max-age",
    // The default of `cache.keep_fields`, and the field that tests add to it.
    "content-language",
    "link",
    "deprecation",
    "sunset",
    "ratelimit",
    "ratelimit-policy",
    "x-kept",
];

/// Framing and switching, which belong to the connection and not to what the origin sent.
const FORWARDED_TOO: [&str; 3] = ["transfer-encoding", "upgrade", "via"];

const ADMIN: [&str; 10] = [
    "content-type",
    "content-length",
    "cache-control",
    "content-security-policy",
    "x-content-type-options",
    "date",
    "connection",
    "keep-alive",
    "transfer-encoding",
    "x-request-id",
];

/// Panics with the answer when it holds what it must not.
pub(super) fn check(
    response: &Response,
    kind: Kind,
    revealed: bool,
    origin_sent: &BTreeSet<String>,
) {
    for (name, _) in &response.headers {
        let name = name.to_ascii_lowercase();
        let allowed = match kind {
            Kind::Intercepted => INTERCEPTED.contains(&name.as_str()),
            Kind::Forwarded => {
                INTERCEPTED.contains(&name.as_str())
                    || FORWARDED_TOO.contains(&name.as_str())
                    || origin_sent.contains(&name)
            }
            Kind::Admin => ADMIN.contains(&name.as_str()),
        };
        // RFC 9110, sections 11.6.1 and 10.2.1: each of these two statuses requires a field.
        let demanded = (response.status == 401 && name == "www-authenticate")
            || (response.status == 405 && name == "allow")
            || ((300..400).contains(&response.status) && name == "location");
        assert!(allowed || demanded, "field {name:?} was never promised ({kind:?}): {response:#?}");
    }
    assert!(response.all("content-length").len() <= 1, "two lengths: {response:#?}");
    let framed_twice = response.header("content-length").is_some()
        && response.header("transfer-encoding").is_some();
    assert!(!framed_twice, "a length and a transfer coding: {response:#?}");
    assert!(revealed || !holds(&response.head, MARKER), "a secret in the head: {response:#?}");
    assert!(revealed || !holds(&response.body, MARKER), "a secret in the body: {response:#?}");
    assert!(!holds(&response.head, TOKEN_MARKER), "a token in the head: {response:#?}");
}

/// Panics when text for operators (a log, metrics, statistics) holds a secret or a token.
pub(super) fn check_for_operators(what: &str, text: &str) {
    for marker in [MARKER, TOKEN_MARKER] {
        let found = text.lines().find(|line| holds(line.as_bytes(), marker));
        assert!(found.is_none(), "{what} holds a secret or a token ({marker}): {found:?}");
    }
}

/// Letter case aside, so that normalizing does not hide anything.
fn holds(bytes: &[u8], marker: &str) -> bool {
    bytes.windows(marker.len()).any(|window| window.eq_ignore_ascii_case(marker.as_bytes()))
}
