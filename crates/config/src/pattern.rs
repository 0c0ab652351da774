//! Grammars of the configuration: path patterns, selectors, names of members, cookies and fields.

use super::diagnostic::Fault;
use telecomx_api::MediaTypePattern;

/// Checks a path pattern: `/`, then segments that are `*` (one segment), `**` (any number of them),
/// a name, or `name.*` (the name with any suffix). Nothing that a path in normal form cannot hold,
/// or the pattern would never match.
pub(super) fn path_pattern(text: &str) -> Result<(), Fault> {
    let fail =
        |cause: &str| Err(Fault::new(format!("{text:?} {cause}"), r#"for example "/customer/*/name" or "/log/**""#));
    let Some(segments) = text.strip_prefix('/') else {
        return fail("does not start with `/`");
    };
    for segment in segments.split('/') {
        match segment {
            "*" | "**" => {}
            "" => return fail("has an empty segment or a trailing slash"),
            "." | ".." => return fail("has a dot segment, which a path in normal form cannot contain"),
            _ => {}
        }
        let name = segment.strip_suffix(".*").unwrap_or(segment);
        match name {
            "*" | "**" => {}
            "" => return fail("has a segment `.*` without a name before it"),
            _ if name.contains('*') => return fail("mixes `*` with other characters in one segment"),
            _ if !name.bytes().all(is_path_character) => {
                return fail("contains a character that a path in normal form cannot contain");
            }
            _ => {}
        }
    }
    Ok(())
}

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
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_token) {
        return Err(Fault::new(format!("invalid field name {text:?}"), remedy));
    }
    let name = text.to_ascii_lowercase();
    if name.starts_with("access-control-") {
        return Err(Fault::new(format!("{text:?} is set by [cors], or passes without it"), "remove it"));
    }
    match FORBIDDEN_FIELDS.iter().find(|(_, names)| names.contains(&name.as_str())) {
        Some((why, _)) => Err(Fault::new(format!("{text:?} {why}"), "remove it")),
        None => Ok(()),
    }
}

/// RFC 3986 `pchar` without escapes and without `;`, which starts parameters.
fn is_path_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()+,=:@".contains(&byte)
}

/// Checks a selector: steps with dots between, each `*`, `**`, a member name, or `{a,b}` of names.
pub(super) fn selector(text: &str) -> Result<(), Fault> {
    let fail = |cause: &str| {
        Err(Fault::new(
            format!("{text:?} {cause}"),
            r#"for example "**.economic.accrual" or "**.ms365.{tenantId,verified}""#,
        ))
    };
    if text.contains(['[', ']']) {
        return fail("contains brackets, which arrays do not need");
    }
    let mut inside = false;
    for character in text.chars() {
        match (character, inside) {
            ('{', false) => inside = true,
            ('}', true) => inside = false,
            ('{' | '}', _) => return fail("has unbalanced braces"),
            ('.', true) => return fail("has a dot inside braces"),
            (',', false) => return fail("has a comma outside braces"),
            (other, _) if other.is_control() => return fail("contains a control character"),
            _ => {}
        }
    }
    if inside {
        return fail("has unbalanced braces");
    }
    for step in text.split('.') {
        let names = match step.strip_prefix('{') {
            Some(rest) => match rest.strip_suffix('}') {
                Some(names) => names,
                None => return fail("has braces in a part of a step"),
            },
            None if matches!(step, "*" | "**") => continue,
            None => step,
        };
        for name in names.split(',') {
            if name.is_empty() {
                return fail("has an empty step or name");
            }
            if name.contains(['*', '{', '}']) {
                return fail("mixes `*` or braces with other characters in one step");
            }
            if name.trim() != name {
                return fail("has a space around a name");
            }
        }
    }
    Ok(())
}

/// Checks a pattern of member names, in which `*` matches any number of characters.
pub(super) fn name_pattern(text: &str) -> Result<(), Fault> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(Fault::new(format!("invalid name pattern {text:?}"), r#"for example "*password*""#));
    }
    Ok(())
}

/// Checks the name of a member, which is not a pattern.
pub(super) fn member_name(text: &str) -> Result<(), Fault> {
    if text.is_empty() || text.contains(['*', '{', '}', '.', ',']) || text.chars().any(char::is_control) {
        return Err(Fault::new(
            format!("invalid member name {text:?}"),
            r#"expected a whole name, for example "integrations""#,
        ));
    }
    Ok(())
}

/// Checks the name of a cookie: a token (RFC 6265, section 4.1.1; RFC 9110, section 5.6.2).
pub(super) fn cookie_name(text: &str) -> Result<(), Fault> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.bytes().all(is_token) {
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
    let remedy = format!("expected up to 64 letters, digits, `.`, `_`, `:` and `-`, for example {example}");
    Err(Fault::new(format!("invalid name {text:?}"), remedy))
}

/// Checks a media type that may pass a redacted route.
pub(super) fn media_type(text: &str) -> Result<(), Fault> {
    let remedy = r#"expected a type and a subtype, for example "text/csv" or "image/*""#;
    MediaTypePattern::parse(text).map(drop).map_err(|cause| Fault::new(format!("{text:?} {cause}"), remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_pattern_accepts_normal_paths_only() {
        for text in ["/customer/**", "/porting/*/notify", "/**", "/tools/realtime", "/auth/validateToken", "/a:b"] {
            assert_eq!(path_pattern(text), Ok(()), "{text}");
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
        for text in ["**.enabled", "a", "**", "a.*.b", "**.ms365.{tenantId,verified}", "{a,b}.c", "a-b._id"] {
            assert_eq!(selector(text), Ok(()), "{text}");
        }
        for text in [
            "", ".a", "a.", "a..b", "a.{b", "a.b}", "a.{b,}", "a.{}", "a.{b.c}", "a.{{b}}", "x{a,b}", "{a,b}x", "a*",
            "***", "{*}", "a,b", "a. b", "a[0]", "a\n",
        ] {
            assert!(selector(text).is_err(), "{text}");
        }
    }

    #[test]
    fn name_grammars_are_checked() {
        assert!(name_pattern("*password*").is_ok() && name_pattern("*").is_ok());
        assert!(name_pattern("").is_err() && name_pattern("a\n").is_err());
        assert!(member_name("customerIntegrations").is_ok());
        for text in ["", "*", "a.b", "a,b", "{a}"] {
            assert!(member_name(text).is_err(), "{text}");
        }
        assert!(cookie_name("").is_ok() && cookie_name("__Host-token").is_ok());
        for text in ["a b", "a;b", "a=b", "tøken", "a\"b"] {
            assert!(cookie_name(text).is_err(), "{text}");
        }
    }
}
