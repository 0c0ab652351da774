//! Syntax of fields that response heads and trailer sections share (RFC 9110 section 5).

/// Whether `byte` may be part of a token (RFC 9110 section 5.6.2).
pub(crate) const fn is_token_byte(byte: u8) -> bool {
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

/// Whether every line of `head` ends with CRLF and neither character occurs anywhere else.
pub(crate) fn has_only_crlf_line_ends(head: &[u8]) -> bool {
    memchr::memchr2_iter(b'\r', b'\n', head).all(|at| match head[at] {
        b'\n' => at > 0 && head[at - 1] == b'\r',
        _ => head.get(at + 1) == Some(&b'\n'),
    })
}
