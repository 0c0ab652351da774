//! The chunked transfer coding (RFC 9112 section 7.1).

use std::ops::Range;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use thiserror::Error;

use crate::field::{is_token_byte, is_value_byte, may_be_trailer, trim_blanks};

/// Maximum length of a chunk-size line with its extensions, and of a trailer line, CRLF included.
///
/// Such lines carry no body. The bound limits what a peer can make the decoder hold.
pub const MAX_LINE_BYTES: usize = 4096;

/// Maximum length of all chunk extensions of a body.
///
/// Without it, a peer could send thousands of bytes to be read for each byte of the body.
pub const MAX_EXTENSION_BYTES: usize = 16 << 10;

/// Maximum length of the trailer section, without the empty line that ends it.
pub const MAX_TRAILER_BYTES: usize = 8 << 10;

/// Maximum number of trailer fields. An entry in a map takes many times the bytes of a short line.
pub const MAX_TRAILER_FIELDS: usize = 100;

/// Maximum number of digits of a chunk size: 60 bits, which no real chunk needs.
const MAX_SIZE_DIGITS: usize = 15;

/// Reason why bytes are not a chunked body that every reader reads alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChunkError {
    /// A byte that the grammar does not allow at its place.
    #[error("malformed chunked body")]
    Malformed,
    /// A line longer than [`MAX_LINE_BYTES`], or a size of too many digits.
    #[error("chunk line too long")]
    LineTooLong,
    /// Chunk extensions longer than [`MAX_EXTENSION_BYTES`].
    #[error("chunk extensions too long")]
    ExtensionsTooLong,
    /// A trailer section longer than [`MAX_TRAILER_BYTES`] or [`MAX_TRAILER_FIELDS`].
    #[error("trailer section too long")]
    TrailersTooLong,
}

/// Result of one call of [`ChunkedDecoder::decode`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of the input that were read: framing and data.
    pub consumed: usize,
    /// Body data within the input; empty if only framing was read.
    pub data: Range<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    SizeLine,
    /// Data of the current chunk that is still to come.
    Data(u64),
    /// The CRLF behind the data of a chunk.
    DataEnd,
    TrailerLine,
    Finished,
    Failed(ChunkError),
}

/// Incremental decoder of one chunked body.
///
/// Chunk extensions are validated and dropped. Trailer fields are validated; those that have no
/// meaning in a trailer section (RFC 9110 section 6.5.1: framing, routing, credentials …) are
/// dropped, the others are kept.
#[derive(Debug, Default)]
pub struct ChunkedDecoder {
    state: State,
    is_strict: bool,
    /// Beginning of a line whose end has not arrived.
    partial_line: Vec<u8>,
    extension_bytes: usize,
    trailer_bytes: usize,
    trailer_fields: usize,
    trailers: HeaderMap,
}

impl ChunkedDecoder {
    /// Returns a decoder that also refuses what RFC 9112 calls bad whitespace, and bytes beyond
    /// ASCII in extensions: for request bodies, where another reader may see something else.
    #[must_use]
    pub fn strict() -> Self {
        ChunkedDecoder { is_strict: true, ..ChunkedDecoder::default() }
    }

    /// Whether the last chunk and the trailer section were read.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// Takes the trailer fields that were read.
    pub fn take_trailers(&mut self) -> HeaderMap {
        std::mem::take(&mut self.trailers)
    }

    /// Reads framing up to and including the next piece of data.
    ///
    /// Never consumes bytes behind the body. Call it again with the rest of the input until it
    /// consumes nothing. Where the input is cut makes no difference to the data, the trailers or
    /// the error; each byte is looked at a bounded number of times.
    ///
    /// # Errors
    ///
    /// The body is malformed or exceeds a bound. Every later call returns the same error.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, ChunkError> {
        let result = self.read(input);
        if let Err(error) = result {
            self.state = State::Failed(error);
        }
        result
    }

    fn read(&mut self, input: &[u8]) -> Result<Decoded, ChunkError> {
        if let State::Failed(error) = self.state {
            return Err(error);
        }
        let mut at = 0;
        while at < input.len() {
            match self.state {
                State::Finished => break,
                State::Failed(error) => return Err(error),
                State::Data(remaining) => {
                    let available = input.len() - at;
                    let take = usize::try_from(remaining).map_or(available, |n| n.min(available));
                    let remaining = remaining - take as u64;
                    self.state =
                        if remaining == 0 { State::DataEnd } else { State::Data(remaining) };
                    return Ok(Decoded { consumed: at + take, data: at..at + take });
                }
                State::SizeLine | State::DataEnd | State::TrailerLine => {
                    at += self.read_line(&input[at..])?;
                }
            }
        }
        Ok(Decoded { consumed: at, data: at..at })
    }

    /// Reads up to the end of a line and handles the line if it is complete.
    fn read_line(&mut self, input: &[u8]) -> Result<usize, ChunkError> {
        let room = MAX_LINE_BYTES - self.partial_line.len();
        let window = &input[..input.len().min(room)];
        let newline = memchr::memchr(b'\n', window);
        let piece = &window[..newline.map_or(window.len(), |at| at + 1)];
        self.check_piece(piece)?;
        if newline.is_none() {
            if piece.len() == room {
                return Err(ChunkError::LineTooLong);
            }
            self.partial_line.extend_from_slice(piece);
        } else if self.partial_line.is_empty() {
            self.handle_line(piece)?;
        } else {
            let mut line = std::mem::take(&mut self.partial_line);
            line.extend_from_slice(piece);
            self.handle_line(&line)?;
            line.clear();
            self.partial_line = line;
        }
        Ok(piece.len())
    }

    /// Checks the bytes that continue `partial_line`: the first byte of the line, no control
    /// characters, and CR and LF only together.
    ///
    /// What no later byte can repair is refused before the line is complete.
    fn check_piece(&self, piece: &[u8]) -> Result<(), ChunkError> {
        let mut previous = self.partial_line.last().copied();
        for &byte in piece {
            let fits = match (previous, self.state) {
                (Some(b'\r'), _) => byte == b'\n',
                (Some(_), State::DataEnd) => false,
                (Some(_), _) => byte == b'\r' || is_value_byte(byte),
                (None, State::SizeLine) => byte.is_ascii_hexdigit(),
                (None, State::DataEnd) => byte == b'\r',
                (None, _) => byte == b'\r' || is_token_byte(byte),
            };
            if !fits {
                return Err(ChunkError::Malformed);
            }
            previous = Some(byte);
        }
        Ok(())
    }

    /// Handles one line, which ends with CRLF and holds neither anywhere else.
    fn handle_line(&mut self, line: &[u8]) -> Result<(), ChunkError> {
        let content = line.strip_suffix(b"\r\n").ok_or(ChunkError::Malformed)?;
        self.state = match self.state {
            State::SizeLine => {
                let (size, extensions) = parse_size_line(content, self.is_strict)?;
                self.extension_bytes += extensions;
                if self.extension_bytes > MAX_EXTENSION_BYTES {
                    return Err(ChunkError::ExtensionsTooLong);
                }
                if size == 0 { State::TrailerLine } else { State::Data(size) }
            }
            State::DataEnd if content.is_empty() => State::SizeLine,
            State::TrailerLine if content.is_empty() => State::Finished,
            State::TrailerLine => {
                self.handle_trailer(line.len(), content)?;
                State::TrailerLine
            }
            State::DataEnd | State::Data(_) | State::Finished | State::Failed(_) => {
                return Err(ChunkError::Malformed);
            }
        };
        Ok(())
    }

    fn handle_trailer(&mut self, length: usize, content: &[u8]) -> Result<(), ChunkError> {
        self.trailer_bytes += length;
        self.trailer_fields += 1;
        if self.trailer_bytes > MAX_TRAILER_BYTES || self.trailer_fields > MAX_TRAILER_FIELDS {
            return Err(ChunkError::TrailersTooLong);
        }
        let (name, value) = parse_field_line(content)?;
        if may_be_trailer(name.as_str()) {
            self.trailers.append(name, value);
        }
        Ok(())
    }
}

/// Parses `chunk-size [ chunk-ext ]` (RFC 9112 sections 7.1 and 7.1.1).
///
/// Returns the size and the length of the extensions.
fn parse_size_line(line: &[u8], is_strict: bool) -> Result<(u64, usize), ChunkError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits == 0 {
        return Err(ChunkError::Malformed);
    }
    if digits > MAX_SIZE_DIGITS {
        return Err(ChunkError::LineTooLong);
    }
    let size = line[..digits]
        .iter()
        .fold(0, |size, &digit| size << 4 | u64::from((digit as char).to_digit(16).unwrap_or(0)));
    let mut rest = &line[digits..];
    if is_strict && !rest.is_ascii() {
        return Err(ChunkError::Malformed);
    }
    while !rest.is_empty() {
        rest = parse_extension(rest, is_strict)?;
    }
    Ok((size, line.len() - digits))
}

/// Parses one `BWS ";" BWS name [ BWS "=" BWS value ]` and returns what follows.
///
/// Blanks are only accepted where the grammar has bad whitespace: not at the end of the line.
fn parse_extension(input: &[u8], is_strict: bool) -> Result<&[u8], ChunkError> {
    let skip_blanks = |input| if is_strict { input } else { skip_blanks(input) };
    let rest = skip_blanks(input).strip_prefix(b";").ok_or(ChunkError::Malformed)?;
    let rest = parse_token(skip_blanks(rest))?;
    match skip_blanks(rest).strip_prefix(b"=") {
        None => Ok(rest),
        Some(value) => match skip_blanks(value).strip_prefix(b"\"") {
            Some(quoted) => parse_quoted(quoted),
            None => parse_token(skip_blanks(value)),
        },
    }
}

fn skip_blanks(input: &[u8]) -> &[u8] {
    let blanks = input.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    &input[blanks..]
}

fn parse_token(input: &[u8]) -> Result<&[u8], ChunkError> {
    match input.iter().take_while(|&&byte| is_token_byte(byte)).count() {
        0 => Err(ChunkError::Malformed),
        length => Ok(&input[length..]),
    }
}

/// Parses the rest of a quoted string, whose opening quote was read (RFC 9110 section 5.6.4).
fn parse_quoted(mut input: &[u8]) -> Result<&[u8], ChunkError> {
    loop {
        match input {
            [b'"', rest @ ..] => return Ok(rest),
            [b'\\', byte, rest @ ..] if is_value_byte(*byte) => input = rest,
            [byte, rest @ ..] if *byte != b'\\' && is_value_byte(*byte) => input = rest,
            _ => return Err(ChunkError::Malformed),
        }
    }
}

/// Parses `field-name ":" OWS field-value OWS` (RFC 9112 section 5).
fn parse_field_line(line: &[u8]) -> Result<(HeaderName, HeaderValue), ChunkError> {
    let colon = memchr::memchr(b':', line).ok_or(ChunkError::Malformed)?;
    let (name, value) = (&line[..colon], trim_blanks(&line[colon + 1..]));
    if !name.iter().all(|&byte| is_token_byte(byte)) {
        return Err(ChunkError::Malformed);
    }
    let name = HeaderName::from_bytes(name).map_err(|_| ChunkError::Malformed)?;
    let value = HeaderValue::from_bytes(value).map_err(|_| ChunkError::Malformed)?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Why a body was not read to its end.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Stop {
        Unfinished,
        Refused(ChunkError),
    }

    /// Decodes `input` in pieces of at most `step` bytes; returns data, trailers and length.
    fn decode(input: &[u8], step: usize) -> Result<(Vec<u8>, HeaderMap, usize), Stop> {
        let mut decoder = ChunkedDecoder::default();
        let mut body = Vec::new();
        let mut at = 0;
        while at < input.len() && !decoder.is_finished() {
            let piece = &input[at..input.len().min(at.saturating_add(step))];
            let Decoded { consumed, data } = decoder.decode(piece).map_err(Stop::Refused)?;
            body.extend_from_slice(&piece[data]);
            at += consumed;
        }
        if !decoder.is_finished() {
            return Err(Stop::Unfinished);
        }
        Ok((body, decoder.take_trailers(), at))
    }

    #[test]
    fn strict_decoder_refuses_bad_whitespace_and_bytes_beyond_ascii() {
        for line in ["5 ;a", "5; a", "5;a =b", "5;a= b", "5;a=\"\u{e6}\""] {
            let body = format!("{line}\r\nabcde\r\n0\r\n\r\n");
            assert!(ChunkedDecoder::default().decode(body.as_bytes()).is_ok(), "{line}");
            assert!(ChunkedDecoder::strict().decode(body.as_bytes()).is_err(), "{line}");
        }
        assert!(ChunkedDecoder::strict().decode(b"5;a=\"b c\";d\r\nabcde").is_ok());
    }

    #[test]
    fn chunked_body_decodes_alike_however_it_is_cut() {
        let body = b"5;a=b;c=\"d;\\\"e\"\r\nhello\r\nA \t; x\r\n0123456789\r\n\
            0\r\nX-A: 1\r\nx-a:2 \r\n\r\nrest";
        for step in 1..body.len() {
            let (data, trailers, consumed) = decode(body, step).unwrap();
            assert_eq!(data, b"hello0123456789", "step {step}");
            assert_eq!(consumed, body.len() - 4);
            assert_eq!(trailers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        }
    }

    #[test]
    fn chunked_body_with_odd_framing_is_refused() {
        for wrong in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "+5\r\nhello",
            " 5\r\nhello",
            "5 \r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello",
            "5\nhello\r\n",
            "5\r\r\nhello",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhelloX\r\n",
            "5;\r\nhello\r\n0\r\n\r\n",
            "5;a@b=[]\r\nhello\r\n0\r\n\r\n",
            "5;a=\"\r\nhello\r\n0\r\n\r\n",
            "5;a=\r\nhello\r\n0\r\n\r\n",
            "5;=b\r\nhello\r\n0\r\n\r\n",
            "5;a=\"b\"c\r\nhello\r\n0\r\n\r\n",
            "5;a \r\nhello\r\n0\r\n\r\n",
            "0\r\nX: a\nY: b\r\n\r\n",
            "0\r\n: a\r\n\r\n",
            "0\r\nX : a\r\n\r\n",
            "0\r\n X: a\r\n\r\n",
            "0\r\nX\r\n\r\n",
            "0\r\nX: \0\r\n\r\n",
            "0\r\nX: a\r\r\n\r\n",
            "0\r\nX: a\x0c\r\n\r\n",
            "0\r\nX:\x0ba\r\n\r\n",
            "0\r\nX: a\x7f\r\n\r\n",
            "0\r\nX: a\r\n folded\r\n\r\n",
            "0\r\nX: a\r\n\r\r\n",
            "0\r\nX: a\r\n\n",
            "0\r\n\n",
            "0\n\r\n",
            "0;\0\r\n\r\n",
            "0;a=\"\x7f\"\r\n\r\n",
            "1000000000000000\r\n",
            "fffffffffffffffff\r\n",
            "5\r\nhello\r\r\n0\r\n\r\n",
            "5\r\nhello\r\n\r\n0\r\n\r\n",
            "5\r\nhello\r\n 0\r\n\r\n",
        ] {
            let whole = decode(wrong.as_bytes(), usize::MAX).unwrap_err();
            assert_ne!(whole, Stop::Unfinished, "{wrong:?}");
            for step in 1..wrong.len() {
                assert_eq!(decode(wrong.as_bytes(), step), Err(whole), "{wrong:?}, step {step}");
            }
        }
    }

    #[test]
    fn chunk_lines_and_trailers_are_bounded() {
        let refused = |body: &str, error| {
            for step in [1, 7, 1000, usize::MAX] {
                let result = decode(body.as_bytes(), step);
                assert_eq!(result, Err(Stop::Refused(error)), "step {step}");
            }
        };
        let read = |body: &str| decode(body.as_bytes(), 1000).unwrap();
        let extension = |length| format!("5;{}", "a".repeat(length - 2));
        read(&format!("{}\r\nhello\r\n0\r\n\r\n", extension(MAX_LINE_BYTES - 2)));
        refused(&extension(MAX_LINE_BYTES), ChunkError::LineTooLong);
        refused(&format!("{}\r\n", extension(MAX_LINE_BYTES - 1)), ChunkError::LineTooLong);
        refused(&format!("0\r\nX: {}", "a".repeat(MAX_LINE_BYTES)), ChunkError::LineTooLong);
        let chunks = "1;abcdefg\r\nx\r\n".repeat(MAX_EXTENSION_BYTES / 8);
        assert_eq!(read(&format!("{chunks}0\r\n\r\n")).0.len(), MAX_EXTENSION_BYTES / 8);
        refused(&format!("{chunks}0;a\r\n\r\n"), ChunkError::ExtensionsTooLong);
        let trailers = |count| format!("0\r\n{}\r\n", "X: 1\r\n".repeat(count));
        assert_eq!(read(&trailers(MAX_TRAILER_FIELDS)).1.len(), MAX_TRAILER_FIELDS);
        refused(&trailers(MAX_TRAILER_FIELDS + 1), ChunkError::TrailersTooLong);
        let line = format!("X: {}\r\n", "a".repeat(1019));
        let long = format!("0\r\n{}", line.repeat(MAX_TRAILER_BYTES / 1024));
        assert_eq!(read(&format!("{long}\r\n")).1.len(), MAX_TRAILER_BYTES / 1024);
        refused(&format!("{long}X:\r\n"), ChunkError::TrailersTooLong);
    }

    #[test]
    fn chunked_decoder_stays_failed_after_an_error() {
        let mut decoder = ChunkedDecoder::default();
        assert_eq!(decoder.decode(b"5\r\nhelloX"), Ok(Decoded { consumed: 8, data: 3..8 }));
        assert_eq!(decoder.decode(b"X"), Err(ChunkError::Malformed));
        assert_eq!(decoder.decode(b"\r\n0\r\n\r\n"), Err(ChunkError::Malformed));
        assert_eq!(decoder.decode(b""), Err(ChunkError::Malformed));
        assert!(!decoder.is_finished());
    }

    #[test]
    fn trailer_field_that_must_be_in_a_head_is_dropped() {
        let fields = [
            "Content-Length: 5",
            "transfer-encoding: chunked",
            "HOST: b",
            "Connection: close",
            "Trailer: X",
            "Content-Type: text/html",
            "Content-Encoding: gzip",
            "Content-Range: bytes 0-1/2",
            "Cache-Control: public",
            "Set-Cookie: a=b",
            "Authorization: Bearer x",
            "Location: /",
            "Server-Timing: a",
            "X-Sum: 1",
        ];
        let body = format!("0\r\n{}\r\n\r\n", fields.join("\r\n"));
        let (_, trailers, _) = decode(body.as_bytes(), 5).unwrap();
        let names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["server-timing", "x-sum"]);
    }

    #[test]
    fn chunk_size_may_have_leading_zeros_and_either_case() {
        for body in
            ["000000000000005\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n000000000000000\r\n\r\n"]
        {
            assert_eq!(decode(body.as_bytes(), 3).unwrap().0, b"hello");
        }
        for size in ["aB", "Ab", "AB", "ab"] {
            let body = format!("{size}\r\n{}\r\n0\r\n\r\n", "x".repeat(0xab));
            assert_eq!(decode(body.as_bytes(), 3).unwrap().0.len(), 0xab);
        }
        let mut decoder = ChunkedDecoder::default();
        assert_eq!(decoder.decode(b"fffffffffffffff\r\nx").unwrap().data, 17..18);
    }

    proptest! {
        #[test]
        fn chunked_body_round_trips(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..80), 0..8),
            step in 1usize..40,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                crate::write_chunk_head(&mut wire, chunk.len());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(crate::LAST_CHUNK);
            let (data, trailers, consumed) = decode(&wire, step).unwrap();
            prop_assert_eq!(data, chunks.concat());
            prop_assert_eq!(consumed, wire.len());
            prop_assert!(trailers.is_empty());
        }

        #[test]
        fn chunked_decoding_does_not_depend_on_pieces(
            input in "[0-9a-f;=\"\r\n X:]{0,60}",
            step in 1usize..9,
        ) {
            let whole = decode(input.as_bytes(), usize::MAX);
            prop_assert_eq!(decode(input.as_bytes(), step), whole);
        }
    }
}
