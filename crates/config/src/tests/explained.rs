//! The text of `check --explain`.

use super::*;

/// The explanation without line breaks.
fn explained(extra: &str) -> String {
    explain(&with(extra).unwrap(), &[]).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn contains_all(text: &str, sentences: &[&str]) {
    for sentence in sentences {
        assert!(text.contains(sentence), "{sentence:?} is not in\n{text}");
    }
}

#[test]
fn explain_describes_the_defaults() {
    let text = explained("");
    contains_all(
        &text,
        &[
            "API https://api.telecomx.dk",
            "clients 127.0.0.1:8080, HTTP/1.1 and h2c, cleartext",
            "from Authorization: Bearer, X-API-Key, ?token=, cookie `token`; the first one present",
            "the result is cached for 60s and renewed in the background after 30s",
            "a token revoked elsewhere works for at most 60s more",
            "while the API is unreachable, a cached token is accepted for at most 3m",
            "to GET and HEAD /customer/{id}/name without query parameters other than `token`",
            "token, access level and customer; never shared between tokens",
            "200: 60s, shortened at random by up to 10 %",
            "404: 10s 403: 5s others: not cached",
            "oldest 90s, or 6m while the API fails",
            "NO_LOGIN redacted, see below PERSONAL redacted, see below VIEWER redacted, see below MANAGER redacted, see \
             below OWNER redacted, see below RESELLER receives the API's bytes unchanged RESELLER_ADMIN receives the \
             API's bytes unchanged ADMIN receives the API's bytes unchanged",
            "under integrations, customerIntegrations, at any depth, only these members are visible: **.enabled",
            "names that match *password*, *secret*",
            "a secret is removed, name and value",
            "/customer/** by the caller's access level: under the roots",
            "/auth/** by the access level in the response: under the roots",
            "blocked /porting/*/notify: 403",
            "10000 connections; 2048 requests under way; heads of 32KiB within 10s; idle for 75s",
            "descriptors at least 22048 (LimitNOFILE, ulimits); fewer reduce the connections",
            "memory 256MiB for the cache",
        ],
    );
    assert!(!text.contains('!'), "the defaults need no warning: {text}");
}

#[test]
fn explain_shows_warnings() {
    let text = explained(
        r#"
        [server]
        listen = ["0.0.0.0:8080"]
        trusted_proxies = ["0.0.0.0/0"]
        [redaction]
        reveal_to = "NO_LOGIN"
        public = ["**"]
        [forward]
        blocked = []
        [[forward.redact]]
        path = "/log/**"
        "#,
    );
    contains_all(
        &text,
        &[
            "! A cleartext listener can be reached from other machines.",
            "! Every address is a trusted proxy",
            "! Access levels below RESELLER see integration secrets: reveal_to is NO_LOGIN.",
            "! Nothing is redacted for any access level.",
            "! The selector ** reveals everything",
            "! Nothing is blocked",
            "! No rule for /customer/**",
            "! No rule for /auth/**",
        ],
    );
    assert!(!text.contains("No rule for /log/**"));
}

#[test]
fn explain_describes_disabled_features() {
    let text = explained(
        r#"
        [identity]
        ttl = "0s"
        stale_if_error = "0s"
        negative_ttl = "0s"
        cookie = ""
        [cache]
        ttl = "0s"
        forbidden_ttl = "0s"
        stale_while_revalidate = "0s"
        stale_if_error = "0s"
        "#,
    );
    contains_all(
        &text,
        &[
            "by the API for every request",
            "?token=; the first one present is used",
            "invalid validated each time",
            "200: not cached",
            "403: not cached",
            "stale never",
            "while the API is unreachable, no token is accepted longer than that",
        ],
    );
}

#[test]
fn explain_fits_80_columns() {
    let text = explain(&with("").unwrap(), &[]);
    for line in text.lines() {
        // Only one word may be longer than the rest of a line.
        assert!(line.chars().count() <= 80 || line.split_whitespace().count() == 1, "{line}");
        assert!(!line.ends_with(' '));
    }
}
