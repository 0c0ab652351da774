//! Syntax of fields that heads and trailer sections share (RFC 9110 section 5).

/// Whether `byte` may be part of a token (RFC 9110 section 5.6.2).
pub const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Whether `byte` may be part of a field value: visible, blank, tab or obs-text.
pub(crate) const fn is_value_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

/// Removes blanks and tabs around a value.
///
/// Not `trim_ascii`, which also removes CR and form feed and so would repair a value that holds
/// them.
pub(crate) fn trim_blanks(value: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let Some(start) = value.iter().position(|byte| !is_blank(byte)) else { return &[] };
    let end = value.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    &value[start..end]
}

/// Whether a field of this name, in lower case, has a meaning in a trailer section.
///
/// False for fields that frame, route, authenticate, modify a request, control a response or
/// describe the content (RFC 9110 section 6.5.1), and for those of one connection: a reader that
/// merges trailers into the head would act on them after the head was judged.
pub(crate) fn may_be_trailer(name: &str) -> bool {
    !matches!(
        name,
        "transfer-encoding"
            | "content-length"
            | "host"
            | "connection"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "upgrade"
            | "authorization"
            | "cookie"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "set-cookie"
            | "www-authenticate"
            | "x-api-key"
            | "cache-control"
            | "expect"
            | "max-forwards"
            | "pragma"
            | "range"
            | "age"
            | "date"
            | "expires"
            | "location"
            | "retry-after"
            | "vary"
            | "content-encoding"
            | "content-range"
            | "content-type"
    ) && !name.starts_with("if-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_around_a_value_are_removed_and_nothing_else() {
        for (value, trimmed) in [
            ("", ""),
            (" \t", ""),
            ("a", "a"),
            (" a b\t", "a b"),
            ("a\r", "a\r"),
            ("\u{c}a ", "\u{c}a"),
        ] {
            assert_eq!(trim_blanks(value.as_bytes()), trimmed.as_bytes(), "{value:?}");
        }
    }

    #[test]
    fn token_and_value_bytes_are_those_of_the_http_crate() {
        for byte in 0..=u8::MAX {
            let name = http::HeaderName::from_bytes(&[b'a', byte]).is_ok();
            assert_eq!(is_token_byte(byte), name, "{byte:#x}");
            let value = http::HeaderValue::from_bytes(&[byte]).is_ok();
            assert_eq!(is_value_byte(byte), value, "{byte:#x}");
        }
    }
}
