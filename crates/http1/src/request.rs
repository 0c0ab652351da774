//! Writing of requests: the head from typed values, and the framing of chunked bodies.

use http::Method;
use http::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING};

/// End of a chunked body without trailer fields.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Framing of a request's body (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestFraming {
    /// No body and no field that announces one.
    None,
    /// `Content-Length`; zero is written too, for methods that usually have a body.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// Field lines of a request head, made of typed names and checked values.
///
/// They cannot end the head, frame a body or name the host: [`write_request_head`] adds what does.
#[derive(Clone, Debug, Default)]
pub struct FieldLines(Vec<u8>);

impl FieldLines {
    /// Returns an empty list with room for `bytes`.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        FieldLines(Vec::with_capacity(bytes))
    }

    /// Appends a field, its name in title case, as HTTP/1.1 programs usually spell it.
    ///
    /// Skips `Host`, `Content-Length` and `Transfer-Encoding`, and a value with CR, LF or NUL.
    pub fn push(&mut self, name: &HeaderName, value: &[u8]) {
        self.push_parts(name, &[value]);
    }

    /// Like [`FieldLines::push`], with a value in several parts.
    pub fn push_parts(&mut self, name: &HeaderName, parts: &[&[u8]]) {
        // Without branches, so that it is compiled to vector instructions: values are short.
        let ends_line = |part: &&[u8]| {
            let is_odd =
                |byte: u8| u8::from(byte == b'\r') | u8::from(byte == b'\n') | u8::from(byte == 0);
            part.iter().fold(0, |odd, &byte| odd | is_odd(byte)) != 0
        };
        if !parts.iter().any(ends_line) {
            self.push_checked(name, parts);
        }
    }

    /// Like [`FieldLines::push`], with a value that cannot hold CR, LF or NUL.
    pub fn push_value(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.push_checked(name, &[value.as_bytes()]);
    }

    /// `parts`: a value without CR, LF and NUL.
    fn push_checked(&mut self, name: &HeaderName, parts: &[&[u8]]) {
        if matches!(*name, HOST | CONTENT_LENGTH | TRANSFER_ENCODING) {
            return;
        }
        push_title_case(&mut self.0, name);
        self.0.extend_from_slice(b": ");
        parts.iter().for_each(|part| self.0.extend_from_slice(part));
        self.0.extend_from_slice(b"\r\n");
    }
}

/// Appends a request head to `out`.
///
/// No argument can end a line or frame a body in another way than `framing`: see [`FieldLines`],
/// bytes of `target` that are not visible ASCII are percent-encoded, and neither [`Method`] nor
/// [`HeaderValue`] can hold CR, LF or NUL.
pub fn write_request_head(
    out: &mut Vec<u8>,
    method: &Method,
    target: &str,
    host: &HeaderValue,
    lines: &FieldLines,
    framing: RequestFraming,
) {
    debug_assert!(!target.is_empty(), "a target has at least one character");
    out.reserve(method.as_str().len() + target.len() + host.len() + lines.0.len() + 64);
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    push_target(out, target);
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(host.as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&lines.0);
    match framing {
        RequestFraming::None => {}
        RequestFraming::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            push_decimal(out, length);
            out.extend_from_slice(b"\r\n");
        }
        RequestFraming::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of a chunk of `length` bytes; CRLF must follow its data.
///
/// `length` must not be zero: that would be the last chunk, and what follows it the next request.
/// A release build then writes nothing, which makes the body malformed instead.
///
/// # Panics
///
/// In debug builds, if `length` is zero.
pub fn write_chunk_head(out: &mut Vec<u8>, length: usize) {
    debug_assert!(length > 0, "an empty chunk ends the body");
    if length == 0 {
        return;
    }
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[length >> (digit * 4) & 0xf]);
    }
    out.extend_from_slice(b"\r\n");
}

fn push_target(out: &mut Vec<u8>, target: &str) {
    if target.bytes().all(|byte| byte.is_ascii_graphic()) {
        out.extend_from_slice(target.as_bytes());
        return;
    }
    for byte in target.bytes() {
        if byte.is_ascii_graphic() {
            out.push(byte);
        } else {
            let digit = |value: u8| b"0123456789ABCDEF"[usize::from(value)];
            out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 0xf)]);
        }
    }
}

/// Appends a field name in title case, as HTTP/1.1 programs usually spell it.
pub fn push_title_case(out: &mut Vec<u8>, name: &HeaderName) {
    // A `HeaderName` is in lower case.
    let start = out.len();
    out.extend_from_slice(name.as_str().as_bytes());
    let mut begins_word = true;
    for byte in &mut out[start..] {
        if begins_word {
            byte.make_ascii_uppercase();
        }
        begins_word = *byte == b'-';
    }
}

fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use http::header::ACCEPT;

    use super::*;

    #[test]
    fn request_head_has_fields_in_title_case_and_one_framing() {
        let host = HeaderValue::from_static("api");
        let own = HeaderName::from_static("x-request-id");
        let head = |framing| {
            let mut lines = FieldLines::default();
            lines.push(&ACCEPT, b"*/*");
            lines.push_parts(&own, &[b"7", b"", b"8"]);
            let mut out = Vec::new();
            write_request_head(&mut out, &Method::POST, "/a?b", &host, &lines, framing);
            String::from_utf8(out).unwrap()
        };
        let common = "POST /a?b HTTP/1.1\r\nHost: api\r\nAccept: */*\r\nX-Request-Id: 78\r\n";
        assert_eq!(head(RequestFraming::None), format!("{common}\r\n"));
        let length = RequestFraming::Length(u64::MAX);
        assert_eq!(head(length), format!("{common}Content-Length: {}\r\n\r\n", u64::MAX));
        assert_eq!(head(RequestFraming::Length(0)), format!("{common}Content-Length: 0\r\n\r\n"));
        assert_eq!(
            head(RequestFraming::Chunked),
            format!("{common}Transfer-Encoding: chunked\r\n\r\n")
        );
    }

    #[test]
    fn nothing_but_the_framing_can_frame_or_end_the_head() {
        let mut lines = FieldLines::default();
        for (name, value) in [(CONTENT_LENGTH, "5"), (HOST, "b"), (TRANSFER_ENCODING, "chunked")] {
            lines.push(&name, value.as_bytes());
        }
        for value in ["a\r\nX: 1", "a\n", "\r", "a\0"] {
            lines.push(&ACCEPT, value.as_bytes());
            lines.push_parts(&ACCEPT, &[b"a", value.as_bytes()]);
        }
        let mut out = Vec::new();
        let (host, framing) = (HeaderValue::from_static("api"), RequestFraming::None);
        let target = "/a b\r\nX: 1\t\0\u{e6}\x7f?%20";
        write_request_head(&mut out, &Method::GET, target, &host, &lines, framing);
        let head = "GET /a%20b%0D%0AX:%201%09%00%C3%A6%7F?%20 HTTP/1.1\r\nHost: api\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), head);
    }

    #[test]
    fn chunk_head_is_the_length_in_hexadecimal() {
        for length in [1, 9, 15, 16, 255, 256, 4096, 65_535, 1 << 20, usize::MAX] {
            let mut out = Vec::new();
            write_chunk_head(&mut out, length);
            assert_eq!(out, format!("{length:x}\r\n").as_bytes());
        }
    }
}
