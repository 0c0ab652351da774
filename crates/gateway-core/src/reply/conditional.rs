//! `If-None-Match` (RFC 9110 section 13.1.2).

use http::{HeaderMap, header::IF_NONE_MATCH};

/// Whether a client's `If-None-Match` matches this validator, by weak comparison. A value that is
/// not a list of entity tags matches nothing.
pub fn if_none_match(headers: &HeaderMap, etag: &[u8]) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().any(|value| matches_etag(value.as_bytes(), etag))
}

/// As [`if_none_match`], for the value of one field. Empty list members are ignored (RFC 9110
/// section 5.6.1).
pub fn matches_etag(value: &[u8], etag: &[u8]) -> bool {
    if value.trim_ascii() == b"*" {
        return true;
    }
    let mut list = skip_empty_members(value);
    while !list.is_empty() {
        let opaque = list.strip_prefix(b"W/").unwrap_or(list);
        if opaque.first() != Some(&b'"') {
            return false;
        }
        let Some(end) = memchr::memchr(b'"', &opaque[1..]).map(|at| at + 2) else { return false };
        if &opaque[..end] == etag {
            return true;
        }
        let rest = opaque[end..].trim_ascii_start();
        if !rest.is_empty() && rest[0] != b',' {
            return false;
        }
        list = skip_empty_members(rest);
    }
    false
}

/// Skips commas and blanks at the start of a list.
fn skip_empty_members(mut list: &[u8]) -> &[u8] {
    while let [b',' | b' ' | b'\t', rest @ ..] = list {
        list = rest;
    }
    list
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn if_none_match_reads_lists_weak_tags_and_star() {
        let etag = b"\"abc\"";
        let matches = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.append(IF_NONE_MATCH, HeaderValue::from_static(value));
            if_none_match(&headers, etag)
        };
        for yes in [
            "\"abc\"",
            "W/\"abc\"",
            "*",
            "\"x\", \"abc\"",
            "\"a,b\",W/\"abc\" , \"y\"",
            " \"abc\" ",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for yes in [
            ",\"abc\"",
            ", ,\"abc\"",
            "\"x\",,\"abc\"",
            "\"x\", ,\t,\"abc\"",
            "\"abc\",",
            "\"abc\" , ,",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in [",", "\"x\",,", "\"x\" \"abc\"", "*,"] {
            assert!(!matches(no), "{no}");
        }
        for no in ["abc", "\"ab\"", "", "\"abc", "\"x\" \"", "x, \"abc\"", "\"*\"", "\"\"abc\"\""] {
            assert!(!matches(no), "{no}");
        }
    }
}
