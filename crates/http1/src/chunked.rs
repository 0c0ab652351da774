//! The chunked transfer coding (RFC 9112 section 7.1).

use std::ops::Range;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use thiserror::Error;

use crate::field::{is_token_byte, is_value_byte};

/// Maximum length of a chunk-size line with its extensions, and of a trailer line, CRLF included.
///
/// Such lines carry no body. The bound limits what a peer can make the decoder hold.
pub const MAX_LINE_BYTES: usize = 4096;

/// Maximum length of the trailer section.
pub const MAX_TRAILER_BYTES: usize = 16 << 10;

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
    /// A trailer section longer than [`MAX_TRAILER_BYTES`].
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
}

/// Incremental decoder of one chunked body.
///
/// Chunk extensions are validated and dropped. Trailer fields are validated and kept.
#[derive(Debug, Default)]
pub struct ChunkedDecoder {
    state: State,
    /// Beginning of a line whose end has not arrived.
    partial_line: Vec<u8>,
    trailer_bytes: usize,
    trailers: HeaderMap,
}

impl ChunkedDecoder {
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
    /// consumes nothing.
    ///
    /// # Errors
    ///
    /// The body is malformed or exceeds a bound. The decoder must not be used afterwards.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, ChunkError> {
        let mut at = 0;
        while at < input.len() {
            match self.state {
                State::Finished => break,
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
        let max = if self.state == State::DataEnd { 2 } else { MAX_LINE_BYTES };
        let room = max - self.partial_line.len();
        let window = &input[..input.len().min(room)];
        let Some(newline) = memchr::memchr(b'\n', window) else {
            if window.len() == room {
                return Err(if max == 2 { ChunkError::Malformed } else { ChunkError::LineTooLong });
            }
            self.partial_line.extend_from_slice(window);
            // Refuse what no later byte can repair, so that a peer learns of it at once.
            check_line_beginning(self.state, &self.partial_line)?;
            return Ok(window.len());
        };
        let piece = &window[..=newline];
        if self.partial_line.is_empty() {
            self.handle_line(piece)?;
        } else {
            let mut line = std::mem::take(&mut self.partial_line);
            line.extend_from_slice(piece);
            self.handle_line(&line)?;
        }
        Ok(piece.len())
    }

    /// Handles one line, which ends with LF.
    fn handle_line(&mut self, line: &[u8]) -> Result<(), ChunkError> {
        let content = line.strip_suffix(b"\r\n").ok_or(ChunkError::Malformed)?;
        self.state = match self.state {
            State::SizeLine => match parse_size_line(content)? {
                0 => State::TrailerLine,
                size => State::Data(size),
            },
            State::DataEnd if content.is_empty() => State::SizeLine,
            State::TrailerLine if content.is_empty() => State::Finished,
            State::TrailerLine => {
                self.trailer_bytes += line.len();
                if self.trailer_bytes > MAX_TRAILER_BYTES {
                    return Err(ChunkError::TrailersTooLong);
                }
                let (name, value) = parse_field_line(content)?;
                self.trailers.append(name, value);
                State::TrailerLine
            }
            State::DataEnd | State::Data(_) | State::Finished => return Err(ChunkError::Malformed),
        };
        Ok(())
    }
}

/// Checks the beginning of a line whose end has not arrived: its first byte, and that CR is last.
fn check_line_beginning(state: State, line: &[u8]) -> Result<(), ChunkError> {
    let Some((&first, rest)) = line.split_first() else { return Ok(()) };
    let first_fits = match state {
        State::SizeLine => first.is_ascii_hexdigit(),
        State::DataEnd => first == b'\r',
        _ => first == b'\r' || is_token_byte(first),
    };
    let inner_cr = match rest.split_last() {
        Some((_, middle)) => first == b'\r' || middle.contains(&b'\r'),
        None => false,
    };
    if first_fits && !inner_cr { Ok(()) } else { Err(ChunkError::Malformed) }
}

/// Parses `chunk-size [ chunk-ext ]` (RFC 9112 sections 7.1 and 7.1.1).
fn parse_size_line(line: &[u8]) -> Result<u64, ChunkError> {
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
    while !rest.is_empty() {
        rest = parse_extension(rest)?;
    }
    Ok(size)
}

/// Parses one `BWS ";" BWS name [ BWS "=" BWS value ]` and returns what follows.
///
/// Blanks are only accepted where the grammar has bad whitespace: not at the end of the line.
fn parse_extension(input: &[u8]) -> Result<&[u8], ChunkError> {
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
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
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

    /// Decodes `input` in pieces of at most `step` bytes; returns the body and what follows it.
    fn decode(input: &[u8], step: usize) -> Result<(Vec<u8>, HeaderMap, usize), ChunkError> {
        let mut decoder = ChunkedDecoder::default();
        let mut body = Vec::new();
        let mut at = 0;
        while at < input.len() && !decoder.is_finished() {
            let piece = &input[at..input.len().min(at + step)];
            let Decoded { consumed, data } = decoder.decode(piece)?;
            body.extend_from_slice(&piece[data]);
            at += consumed;
        }
        if decoder.is_finished() {
            Ok((body, decoder.take_trailers(), at))
        } else {
            Err(ChunkError::Malformed)
        }
    }

    #[test]
    fn chunked_body_decodes_alike_however_it_is_cut() {
        let body = b"5;a=b;c=\"d;\\\"e\"\r\nhello\r\nA \t; x\r\n0123456789\r\n0\r\nX-A: 1\r\nx-a:2 \r\n\r\nrest";
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
            "1000000000000000\r\n",
        ] {
            for step in [1, 2, 3, 64] {
                assert!(decode(wrong.as_bytes(), step).is_err(), "{wrong:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn chunk_lines_and_trailers_are_bounded() {
        let long = format!("5;{}", "a".repeat(MAX_LINE_BYTES));
        assert_eq!(decode(long.as_bytes(), 1000), Err(ChunkError::LineTooLong));
        let many = format!("0\r\n{}\r\n", "X: 1\r\n".repeat(MAX_TRAILER_BYTES / 6 + 1));
        assert_eq!(decode(many.as_bytes(), 1000), Err(ChunkError::TrailersTooLong));
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
        fn chunked_decoding_does_not_depend_on_pieces(input in "[0-9a-f;=\"\r\n X:]{0,60}", step in 1usize..9) {
            let whole = decode(input.as_bytes(), usize::MAX / 2);
            let pieces = decode(input.as_bytes(), step);
            prop_assert_eq!(whole.is_ok(), pieces.is_ok());
            if let (Ok(whole), Ok(pieces)) = (whole, pieces) {
                prop_assert_eq!(whole, pieces);
            }
        }
    }
}
