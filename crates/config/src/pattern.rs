//! The small languages of the configuration: path patterns, selectors, member names, cookie names. They are checked
//! here for what can be said without knowing how they are matched; the redaction module compiles its own.

use super::problem::Wrong;
use telecomx_api::MediaTypePattern;

/// Checks a path pattern: `/`, then segments that are `*` (one segment), `**` (any number of them), a name, or `name.*`
/// (the name with any suffix). Nothing that a path in normal form cannot hold, or the pattern would never match.
pub(super) fn path_pattern(text: &str) -> Result<(), Wrong> {
    let fail =
        |wrong: &str| Err(Wrong::new(format!("{text:?} {wrong}"), r#"for example "/customer/*/name" or "/log/**""#));
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
            _ if !name.bytes().all(is_plain_in_path) => {
                return fail("contains a character that a path in normal form cannot contain");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Response fields that a list of fields to keep must not name, in lower case, and why.
const NOT_KEPT: [(&str, &[&str]); 4] = [
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

/// Checks the name of a response field that may pass: a token (RFC 9110 section 5.1) that is not one of [`NOT_KEPT`].
pub(super) fn kept_field(text: &str) -> Result<(), Wrong> {
    let right = r#"for example "Link""#;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_token) {
        return Err(Wrong::new(format!("invalid field name {text:?}"), right));
    }
    let name = text.to_ascii_lowercase();
    if name.starts_with("access-control-") {
        return Err(Wrong::new(format!("{text:?} is set by [cors], or passes without it"), "remove it"));
    }
    match NOT_KEPT.iter().find(|(_, names)| names.contains(&name.as_str())) {
        Some((why, _)) => Err(Wrong::new(format!("{text:?} {why}"), "remove it")),
        None => Ok(()),
    }
}

/// RFC 3986 `pchar` without the escape and without `;`, which the gateway takes for the start of parameters.
fn is_plain_in_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()+,=:@".contains(&byte)
}

/// Checks a selector: steps with dots between, each `*`, `**`, a member name, or `{a,b}` of names.
pub(super) fn selector(text: &str) -> Result<(), Wrong> {
    let fail = |wrong: &str| {
        Err(Wrong::new(
            format!("{text:?} {wrong}"),
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

/// Checks a pattern of member names: any characters, `*` for any number of them.
pub(super) fn name_pattern(text: &str) -> Result<(), Wrong> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(Wrong::new(format!("invalid name pattern {text:?}"), r#"for example "*password*""#));
    }
    Ok(())
}

/// Checks the name of a member, in full: no pattern.
pub(super) fn member_name(text: &str) -> Result<(), Wrong> {
    if text.is_empty() || text.contains(['*', '{', '}', '.', ',']) || text.chars().any(char::is_control) {
        return Err(Wrong::new(
            format!("invalid member name {text:?}"),
            r#"expected a whole name, for example "integrations""#,
        ));
    }
    Ok(())
}

/// Checks the name of a cookie: a token (RFC 6265, section 4.1.1; RFC 9110, section 5.6.2).
pub(super) fn cookie_name(text: &str) -> Result<(), Wrong> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.bytes().all(is_token) {
        return Ok(());
    }
    Err(Wrong::new(
        format!("invalid cookie name {text:?}"),
        r#"expected letters, digits, `-` and `_`, for example "token", or "" for none"#,
    ))
}

/// A name of something that is named here alone.
pub(super) fn name(text: &str, sample: &str) -> Result<(), Wrong> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(());
    }
    let right = format!("expected up to 64 letters, digits, `.`, `_`, `:` and `-`, for example {sample}");
    Err(Wrong::new(format!("invalid name {text:?}"), right))
}

/// Checks a media type that may pass a redacted route.
pub(super) fn media_type(text: &str) -> Result<(), Wrong> {
    let right = r#"expected a type and a subtype, for example "text/csv" or "image/*""#;
    MediaTypePattern::parse(text).map(drop).map_err(|wrong| Wrong::new(format!("{text:?} {wrong}"), right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_patterns() {
        for text in ["/customer/**", "/porting/*/notify", "/**", "/tools/realtime", "/auth/validateToken", "/a:b"] {
            assert_eq!(path_pattern(text), Ok(()), "{text}");
        }
        for (text, wrong) in [
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
            assert!(path_pattern(text).unwrap_err().wrong.contains(wrong), "{text}");
        }
    }

    #[test]
    fn selectors() {
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
    fn names() {
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
