//! What `check --explain` says.

use super::*;

/// The words, however the lines are broken.
fn explained(extra: &str) -> String {
    explain(&with(extra).unwrap()).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn says(text: &str, sentences: &[&str]) {
    for sentence in sentences {
        assert!(text.contains(sentence), "{sentence:?} is not said in\n{text}");
    }
}

#[test]
fn the_defaults_in_words() {
    let text = explained("");
    says(
        &text,
        &[
            "API https://api.telecomx.dk",
            "callers 127.0.0.1:8080, HTTP/1.1 and h2c, not encrypted",
            "its word is trusted for 60s; from 30s on it is asked again behind the answers",
            "a token revoked elsewhere is served for at most 60s more",
            "while the API cannot be asked, a known token is trusted for at most 3m",
            "GET and HEAD /customer/{id}/name with no query but `token`; nothing else",
            "one caller's token, in one role, for one customer; never shared between tokens",
            "200: 60s, up to 10 % of it less",
            "404: 10s 403: 5s others: not kept",
            "oldest 90s in usual times, 6m while the API fails",
            "NO_LOGIN redacted, see below PERSONAL redacted, see below VIEWER redacted, see below MANAGER redacted, see \
             below OWNER redacted, see below RESELLER everything: the API's own bytes RESELLER_ADMIN everything: the \
             API's own bytes ADMIN everything: the API's own bytes",
            "under integrations, customerIntegrations, at any depth, only this is seen: **.enabled",
            "names that fit *password*, *secret*",
            "a secret is taken out, name and value",
            "/customer/** by the caller's role: under the roots",
            "/auth/** by the role in the answer: under the roots",
            "blocked /porting/*/notify: 403",
            "10000 connections; 2048 requests at once; heads of 32KiB within 10s; idle for 60s",
            "descriptors 22048 at least (LimitNOFILE, ulimits); with fewer, fewer connections",
            "memory 256MiB of entries",
        ],
    );
    assert!(!text.contains('!'), "the defaults need no warning: {text}");
}

#[test]
fn what_is_dangerous_is_pointed_out() {
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
    says(
        &text,
        &[
            "! Callers from elsewhere reach a listener without TLS.",
            "! Every address is a trusted proxy",
            "! Roles below RESELLER see integration secrets: reveal_to is NO_LOGIN.",
            "! Nothing is redacted for anyone.",
            "! The selector ** shows everything",
            "! Nothing is blocked",
            "! No rule for /customer/**",
            "! No rule for /auth/**",
        ],
    );
    assert!(!text.contains("No rule for /log/**"));
}

#[test]
fn what_is_switched_off_is_said_to_be() {
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
    says(
        &text,
        &[
            "the API is asked on every request",
            "?token=; the first that is there counts",
            "invalid not remembered",
            "200: not kept",
            "403: not kept",
            "stale never",
            "while the API cannot be asked, no token is trusted longer than that",
        ],
    );
}

#[test]
fn it_fits_a_terminal() {
    let text = explain(&with("").unwrap());
    for line in text.lines() {
        // Only one word may be longer than the rest of a line.
        assert!(line.chars().count() <= 80 || line.split_whitespace().count() == 1, "{line}");
        assert!(!line.ends_with(' '));
    }
}
