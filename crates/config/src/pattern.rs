//! Grammars of the configuration: path patterns, selectors, names of members, cookies and fields.

use super::diagnostic::Fault;
use redact::Rule;
use telecomx_api::{MediaTypePattern, PathPattern, is_token};

/// Response fields that `cache.keep_fields` must not name, in lower case, with the reason.
const FORBIDDEN_FIELDS: [(&str, &[&str]); 4] = [
    (
        "is a hop-by-hop field",
        &[
            "connection",
            "keep-alive",
            "proxy-connection",
            "proxy-authenticate",
            "proxy-authentication-info",
            "proxy-authorization",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
        ],
    ),
    ("is a credential of one client", &["set-cookie", "set-cookie2"]),
    (
        "is set by the gateway itself",
        &[
            "age",
            "allow",
            "cache-control",
            "cache-status",
            "content-length",
            "content-type",
            "date",
            "etag",
            "location",
            "retry-after",
            "vary",
            "www-authenticate",
            "x-request-id",
        ],
    ),
    (
        "describes a body that redaction may change",
        &[
            "accept-ranges",
            "content-digest",
            "content-encoding",
            "content-md5",
            "content-range",
            "digest",
            "expires",
            "last-modified",
            "pragma",
            "repr-digest",
        ],
    ),
];

/// Checks the name of a response field that may pass: a token (RFC 9110 section 5.1) that is not
/// one of [`FORBIDDEN_FIELDS`].
pub(super) fn kept_field(text: &str) -> Result<(), Fault> {
    let remedy = r#"for example "Link""#;
    if !is_token(text) {
        return Err(Fault::new(format!("invalid field name {text:?}"), remedy));
    }
    let name = text.to_ascii_lowercase();
    if name.starts_with("access-control-") {
        return Err(Fault::new(
            format!("{text:?} is set by [cors], or passes without it"),
            "remove it",
        ));
    }
    match FORBIDDEN_FIELDS.iter().find(|(_, names)| names.contains(&name.as_str())) {
        Some((why, _)) => Err(Fault::new(format!("{text:?} {why}"), "remove it")),
        None => Ok(()),
    }
}

/// Checks a rule of the redaction by the grammar of the redactor.
pub(super) fn redaction_rule(text: &str, rule: Rule) -> Result<(), Fault> {
    let example = match rule {
        Rule::Root => r#"for example "integrations""#,
        Rule::Public => r#"for example "**.economic.accrual" or "**.ms365.{tenantId,verified}""#,
        Rule::SecretName => r#"for example "*password*""#,
    };
    rule.check(text).map_err(|cause| Fault::new(format!("invalid rule {text:?}: {cause}"), example))
}

/// Parses a path pattern by the grammar of the router.
pub(super) fn path_pattern(text: &str) -> Result<PathPattern, Fault> {
    let example = r#"for example "/customer/*/name" or "/log/**""#;
    PathPattern::parse(text).map_err(|cause| Fault::new(format!("{text:?} {cause}"), example))
}

/// Checks the name of a cookie: a token (RFC 6265, section 4.1.1), or nothing.
pub(super) fn cookie_name(text: &str) -> Result<(), Fault> {
    if text.is_empty() || is_token(text) {
        return Ok(());
    }
    Err(Fault::new(
        format!("invalid cookie name {text:?}"),
        r#"expected letters, digits, `-` and `_`, for example "token", or "" for none"#,
    ))
}

/// Checks a name that only the configuration defines.
pub(super) fn name(text: &str, example: &str) -> Result<(), Fault> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(());
    }
    let remedy =
        format!("expected up to 64 letters, digits, `.`, `_`, `:` and `-`, for example {example}");
    Err(Fault::new(format!("invalid name {text:?}"), remedy))
}

/// Checks a media type that may pass a redacted route.
pub(super) fn media_type(text: &str) -> Result<(), Fault> {
    let remedy = r#"expected a type and a subtype, for example "text/csv" or "image/*""#;
    MediaTypePattern::parse(text)
        .map(drop)
        .map_err(|cause| Fault::new(format!("{text:?} {cause}"), remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_pattern_accepts_normal_paths_only() {
        for text in [
            "/customer/**",
            "/porting/*/notify",
            "/**",
            "/tools/realtime",
            "/auth/validateToken",
            "/a:b",
        ] {
            assert_eq!(path_pattern(text).unwrap().to_string(), text);
        }
        for (text, cause) in [
            ("customer/**", "start"),
            ("", "start"),
            ("/", "empty"),
            ("/a//b", "empty"),
            ("/a/", "empty"),
            ("/a/../b", "dot segment"),
            ("/a**", "mixes"),
            ("/a/b*", "mixes"),
            ("/***", "mixes"),
            ("/a%20b", "normal form"),
            ("/a?b", "normal form"),
            ("/a;b", "normal form"),
            ("/a\\b", "normal form"),
            ("/ø", "normal form"),
        ] {
            assert!(path_pattern(text).unwrap_err().cause.contains(cause), "{text}");
        }
    }

    #[test]
    fn selector_grammar_is_checked() {
        for text in
            ["**.enabled", "a", "**", "a.*.b", "**.ms365.{tenantId,verified}", "{a,b}.c", "a-b._id"]
        {
            assert_eq!(redaction_rule(text, Rule::Public), Ok(()), "{text}");
        }
        for text in [
            "", ".a", "a.", "a..b", "a.{b", "a.b}", "a.{b,}", "a.{}", "a.{b.c}", "a.{{b}}",
            "x{a,b}", "{a,b}x", "a*", "***", "{*}", "a,b", "a. b", "a[0]", "a\n",
        ] {
            assert!(redaction_rule(text, Rule::Public).is_err(), "{text}");
        }
    }

    #[test]
    fn name_grammars_are_checked() {
        assert!(redaction_rule("*password*", Rule::SecretName).is_ok());
        assert!(
            redaction_rule("", Rule::SecretName).is_err()
                && redaction_rule("*", Rule::SecretName).is_err()
        );
        assert!(redaction_rule("customerIntegrations", Rule::Root).is_ok());
        for text in ["", "*", "a.b", "a,b", "{a}"] {
            assert!(redaction_rule(text, Rule::Root).is_err(), "{text}");
        }
        assert!(cookie_name("").is_ok() && cookie_name("__Host-token").is_ok());
        for text in ["a b", "a;b", "a=b", "tøken", "a\"b"] {
            assert!(cookie_name(text).is_err(), "{text}");
        }
    }
}
