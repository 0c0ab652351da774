//! What response heads and request heads share: bounds, the search for the end, and the fields
//! that frame a body.

use std::ops::Range;
use std::sync::LazyLock;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use memchr::memmem;
use thiserror::Error;

use crate::field::is_token_byte;

/// Number of fields for which parsing reserves stack memory; the highest possible limit.
pub(crate) const MAX_FIELDS: usize = 256;

/// Bounds of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Maximum length in bytes, the empty line included.
    pub max_bytes: usize,
    /// Maximum number of fields, at most 256.
    pub max_fields: usize,
}

impl Default for HeadLimits {
    /// 64 KiB and 256 fields: four times what Node accepts, eight times what nginx accepts of an
    /// upstream by default.
    fn default() -> Self {
        HeadLimits { max_bytes: 64 << 10, max_fields: MAX_FIELDS }
    }
}

/// Reason why bytes are not an acceptable head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// The bytes do not begin like an HTTP/1 response.
    #[error("not an HTTP/1 response")]
    NotHttp,
    /// A byte that the grammar does not allow at its place, or a line end other than CRLF.
    #[error("malformed head")]
    Malformed,
    /// The head is longer than [`HeadLimits::max_bytes`].
    #[error("head too long")]
    TooLong,
    /// The head has more fields than [`HeadLimits::max_fields`].
    #[error("too many fields in the head")]
    TooManyFields,
    /// A status code outside of 100 to 599 (RFC 9110 section 15).
    #[error("invalid status code")]
    InvalidStatus,
    /// Two readers could see different ends of the body: several or odd lengths, an unknown
    /// transfer coding, a length and a coding, a coding in HTTP/1.0, or a body that an interim
    /// response announces.
    #[error("ambiguous framing of the body")]
    AmbiguousFraming,
}

/// Search for the end of a head that arrives in pieces.
///
/// It looks at each byte once, however small the pieces are.
#[derive(Clone, Debug, Default)]
pub struct HeadScan {
    /// Bytes of the head in which every line end is CRLF and no empty line occurs.
    scanned: usize,
}

impl HeadScan {
    /// Finds the length of the head at the beginning of `buffer`, the empty line included.
    ///
    /// Returns `None` if more bytes are needed. The next call must pass the same bytes and what
    /// arrived behind them.
    ///
    /// # Errors
    ///
    /// A CR, LF or NUL that does not belong to a CRLF, or no end within `max_bytes`.
    pub fn find_end(
        &mut self,
        buffer: &[u8],
        max_bytes: usize,
    ) -> Result<Option<usize>, HeadError> {
        let window = &buffer[..buffer.len().min(max_bytes)];
        if self.scanned == 0
            && let Some(end) = EMPTY_LINE.find(window).map(|at| at + EMPTY_LINE.needle().len())
            && has_only_line_ends(&window[..end])
        {
            // The usual head arrives whole. The loop below takes 3 times the instructions.
            return Ok(Some(end));
        }
        let start = self.scanned.min(window.len());
        for at in memchr::memchr3_iter(b'\r', b'\n', 0, &window[start..]).map(|at| start + at) {
            match (window[at], window.get(at + 1)) {
                (b'\r', None) if window.len() < max_bytes => {
                    self.scanned = at;
                    return Ok(None);
                }
                (b'\r', Some(b'\n')) => {}
                (b'\n', _) if window[..at].ends_with(b"\r") => {
                    if window[..at].ends_with(b"\r\n\r") {
                        return Ok(Some(at + 1));
                    }
                }
                (b'\r', None) => return Err(HeadError::TooLong),
                _ => return Err(HeadError::Malformed),
            }
        }
        if window.len() == max_bytes {
            return Err(HeadError::TooLong);
        }
        self.scanned = window.len();
        Ok(None)
    }
}

/// Finds the line end and the empty line that end a head.
static EMPTY_LINE: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new(b"\r\n\r\n"));

/// Whether each CR and LF is part of a CRLF, and no byte is NUL, in a head that ends with CRLF.
///
/// Without branches, so that it is compiled to vector instructions.
fn has_only_line_ends(head: &[u8]) -> bool {
    let pairs = head.iter().zip(&head[1..]);
    let is_odd = pairs.fold(0, |odd, (&byte, &next)| {
        odd | u8::from((byte == b'\r') != (next == b'\n')) | u8::from(byte == 0)
    });
    is_odd == 0 && head[0] != b'\n'
}

/// Fields of a head, in the bytes that were received.
///
/// Every name is a token and every value has only the bytes that a field value may have.
#[derive(Clone, Debug, Default)]
pub struct RawFields {
    head: Box<[u8]>,
    spans: Vec<FieldSpan>,
}

#[derive(Clone, Debug)]
struct FieldSpan {
    name: Range<usize>,
    value: Range<usize>,
}

impl RawFields {
    /// Names, in the letter case in which they were sent, and values, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.spans
            .iter()
            .map(|FieldSpan { name, value }| (&self.head[name.clone()], &self.head[value.clone()]))
    }

    /// Values of the fields of a name, in any letter case.
    pub fn get_all<'f>(&'f self, name: &HeaderName) -> impl Iterator<Item = &'f [u8]> {
        let name = name.as_str().as_bytes();
        self.iter()
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Copies the fields into a map.
    #[must_use]
    pub fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.spans.len());
        for (name, value) in self.iter() {
            // Parsing has checked both, as the test of the bytes of the http crate shows.
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
            {
                map.append(name, value);
            }
        }
        debug_assert_eq!(map.len(), self.spans.len(), "every field that was parsed is valid");
        map
    }
}

/// Result of reading the fields of a head.
pub(crate) struct Fields {
    pub(crate) raw: RawFields,
    pub(crate) framing: FieldFraming,
    pub(crate) connection: ConnectionOptions,
}

/// Framing that the fields announce, whatever method and status say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldFraming {
    /// Neither `Content-Length` nor `Transfer-Encoding`.
    Unspecified,
    Length(u64),
    Chunked,
}

/// What the `Connection` fields say about the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
}

impl Fields {
    /// Reads fields that were parsed from `head`.
    pub(crate) fn from_parsed(
        head: &[u8],
        parsed: &[httparse::Header<'_>],
        minor_version: u8,
        limits: &HeadLimits,
    ) -> Result<Self, HeadError> {
        if parsed.len() > limits.max_fields {
            return Err(HeadError::TooManyFields);
        }
        let mut spans = Vec::with_capacity(parsed.len());
        let mut framing = FieldFraming::Unspecified;
        let mut connection = ConnectionOptions::default();
        let span = |part: &[u8]| {
            let start = part.as_ptr().addr() - head.as_ptr().addr();
            start..start + part.len()
        };
        for field in parsed {
            let name = field.name.as_bytes();
            match name.len() {
                10 if name.eq_ignore_ascii_case(b"connection") => connection.add(field.value),
                14 if name.eq_ignore_ascii_case(b"content-length") => {
                    let length = parse_length(field.value).ok_or(HeadError::AmbiguousFraming)?;
                    framing.set(FieldFraming::Length(length))?;
                }
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                    if minor_version == 0 || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(HeadError::AmbiguousFraming);
                    }
                    framing.set(FieldFraming::Chunked)?;
                }
                _ => {}
            }
            // An empty value need not be a part of the head.
            let value = if field.value.is_empty() { 0..0 } else { span(field.value) };
            spans.push(FieldSpan { name: span(name), value });
        }
        let raw = RawFields { head: head.into(), spans };
        Ok(Fields { raw, framing, connection })
    }
}

impl FieldFraming {
    /// Notes what a field announces; only one may.
    fn set(&mut self, announced: FieldFraming) -> Result<(), HeadError> {
        match std::mem::replace(self, announced) {
            FieldFraming::Unspecified => Ok(()),
            _ => Err(HeadError::AmbiguousFraming),
        }
    }
}

/// Parses a length of 1 to 18 digits, without sign, blanks or a list.
pub(crate) fn parse_length(value: &[u8]) -> Option<u64> {
    if !(1..=18).contains(&value.len()) {
        return None;
    }
    value.iter().try_fold(0, |length: u64, &digit| {
        digit.is_ascii_digit().then(|| length * 10 + u64::from(digit - b'0'))
    })
}

impl ConnectionOptions {
    /// Adds the options of a further `Connection` field.
    pub(crate) fn add(&mut self, value: &[u8]) {
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            // What is not a token may be a `close` that this parser does not recognize.
            self.close |= option.eq_ignore_ascii_case(b"close")
                || !option.iter().all(|&byte| is_token_byte(byte));
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// Whether the sender wants to keep the connection (RFC 9112 section 9.3).
    pub(crate) fn is_persistent(self, minor_version: u8) -> bool {
        !self.close && (minor_version >= 1 || self.keep_alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &[u8], step: usize, max_bytes: usize) -> Result<Option<usize>, HeadError> {
        let mut scan = HeadScan::default();
        let mut arrived = 0;
        loop {
            arrived = text.len().min(arrived + step);
            let found = scan.find_end(&text[..arrived], max_bytes)?;
            if found.is_some() || arrived == text.len() {
                return Ok(found);
            }
        }
    }

    #[test]
    fn head_end_is_found_however_the_head_is_cut() {
        use HeadError::{Malformed, TooLong};
        for (text, found) in [
            ("", Ok(None)),
            ("a\r\n\r", Ok(None)),
            ("a\r\n\r\n", Ok(Some(5))),
            ("a\r\n\r\nb\n\r\0", Ok(Some(5))),
            ("a\0\r\n\r\n", Err(Malformed)),
            ("\na\r\n\r\n", Err(Malformed)),
            ("a\nb\r\n\r\n", Err(Malformed)),
            ("a\rb\r\n\r\n", Err(Malformed)),
            ("a\r\r\n\r\n", Err(Malformed)),
            ("a\r\nb\r\n\r\n", Ok(Some(8))),
            ("\r\n\r\n", Ok(Some(4))),
            ("a\n", Err(Malformed)),
            ("\n", Err(Malformed)),
            ("a\rb", Err(Malformed)),
            ("a\r\r\n", Err(Malformed)),
            ("a\r\n\n", Err(Malformed)),
            ("a\0", Err(Malformed)),
            ("a\r\0", Err(Malformed)),
            ("abcdefghijkl", Err(TooLong)),
            ("abcdefgh\r\n\r\n", Ok(Some(12))),
            ("abcdefghi\r\n\r\n", Err(TooLong)),
            ("abcdefghij\r\n\r\n", Err(TooLong)),
            ("abcdefghijk\r\n", Err(TooLong)),
            ("abcdefghijklm\n", Err(TooLong)),
        ] {
            for step in 1..=text.len().max(1) {
                assert_eq!(scan(text.as_bytes(), step, 12), found, "{text:?} in steps of {step}");
            }
        }
    }

    /// The bound on time: a head of `n` bytes in pieces of one byte is not looked at `n²` times.
    #[test]
    fn head_scan_looks_at_most_twice_at_a_byte() {
        let text = "a\r\n".repeat(1000);
        let mut scan = HeadScan::default();
        for end in 1..=text.len() {
            assert_eq!(scan.find_end(&text.as_bytes()[..end], 1 << 20), Ok(None));
            assert!(scan.scanned + 1 >= end);
        }
    }
}
