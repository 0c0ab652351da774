//! The chunked body of a request as it comes over the wire, watched before pingora reads it: what two readers could read
//! differently ends the connection. Pure.
//!
//! Source: RFC 9112 section 7.1. Stricter than it allows recipients to be: no size without digits, no blanks around it or
//! within an extension, extensions by their grammar, CRLF at each end, trailers that are fields. Nothing is kept: a body
//! streams through.

/// The digits of a chunk's size: 60 bits, so that no reader's arithmetic overflows.
const MAX_DIGITS: usize = 15;

/// A chunk's size with its extensions, or one trailer: more than any client sends.
const MAX_LINE: usize = 4096;

/// All trailers: as much as a usual head.
const MAX_TRAILERS: usize = 16 << 10;

/// The body could be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubtful;

/// Where in the body it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    /// The first character of an extension's name.
    NameStart,
    Name,
    /// The first character of an extension's value.
    ValueStart,
    Value,
    Quoted,
    /// The character behind a backslash of a quoted string.
    Escaped,
    /// Behind the closing quote: another extension, or the end of the line.
    QuotedEnd,
    /// The LF that ends the line of a size.
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    /// The first byte of a trailer, or of the empty line that ends the body.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    LastLf,
    /// What comes now is no part of the body.
    Behind,
}

/// The watch over one body.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    at: At,
    /// Of the chunk: what its digits said, then what is left of it.
    size: u64,
    /// Bytes of the line so far.
    line: usize,
    trailers: usize,
}

impl Chunks {
    /// Reads the next bytes of the connection; returns how many of them belong to the body.
    ///
    /// # Errors
    /// Two readers could read this differently.
    pub fn read(&mut self, all: &[u8]) -> Result<usize, Doubtful> {
        let mut bytes = all;
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.at {
                At::Behind => break,
                At::Data => {
                    let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                    bytes = &bytes[left.min(bytes.len())..];
                    self.size -= (rest.len() + 1 - bytes.len()) as u64;
                    if self.size == 0 {
                        self.at = At::DataCr;
                    }
                }
                _ => {
                    self.step(byte)?;
                    bytes = rest;
                }
            }
        }
        Ok(all.len() - bytes.len())
    }

    /// Whether the body has ended.
    pub fn is_over(&self) -> bool {
        self.at == At::Behind
    }

    fn step(&mut self, byte: u8) -> Result<(), Doubtful> {
        self.line += 1;
        if self.line > MAX_LINE {
            return Err(Doubtful);
        }
        self.at = match (self.at, byte) {
            (At::Size, digit) if digit.is_ascii_hexdigit() && self.line <= MAX_DIGITS => {
                self.size = self.size << 4 | u64::from((digit as char).to_digit(16).unwrap_or_default());
                At::Size
            }
            (At::Size, b';') if self.line > 1 => At::NameStart,
            (At::Size, b'\r') if self.line > 1 => At::SizeEnd,
            // RFC 9112 section 7.1.1, without the blanks that it calls bad.
            (At::NameStart | At::Name, byte) if is_token(byte) => At::Name,
            (At::Name, b'=') => At::ValueStart,
            (At::ValueStart, b'"') => At::Quoted,
            (At::ValueStart | At::Value, byte) if is_token(byte) => At::Value,
            (At::Quoted, b'"') => At::QuotedEnd,
            (At::Quoted, b'\\') => At::Escaped,
            // Not beyond ASCII, which the grammar allows: a size is followed by nothing that needs it.
            (At::Quoted | At::Escaped, b'\t' | b' '..=b'~') => At::Quoted,
            (At::Name | At::Value | At::QuotedEnd, b';') => At::NameStart,
            (At::Name | At::Value | At::QuotedEnd, b'\r') => At::SizeEnd,
            (At::SizeEnd, b'\n') => self.begin(if self.size == 0 { At::TrailerStart } else { At::Data }),
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => self.begin(At::Size),
            (At::TrailerStart, b'\r') => At::LastLf,
            (At::TrailerStart | At::TrailerName, byte) if is_token(byte) => At::TrailerName,
            (At::TrailerName, b':') => At::TrailerValue,
            (At::TrailerValue, b'\r') => At::TrailerEnd,
            (At::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => At::TrailerValue,
            (At::TrailerEnd, b'\n') => {
                self.trailers += self.line;
                if self.trailers > MAX_TRAILERS {
                    return Err(Doubtful);
                }
                self.begin(At::TrailerStart)
            }
            (At::LastLf, b'\n') => At::Behind,
            _ => return Err(Doubtful),
        };
        Ok(())
    }

    /// A new line, or the data behind one.
    fn begin(&mut self, at: At) -> At {
        self.line = 0;
        at
    }
}

/// A character of a field's name (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::server::chunked_oracle as oracle;

    fn whole(body: &[u8]) -> Result<bool, Doubtful> {
        let mut chunks = Chunks::default();
        chunks.read(body).map(|_| chunks.is_over())
    }

    #[test]
    fn plain_bodies_pass() {
        for body in [
            "0\r\n\r\n",
            "5\r\nabcde\r\n0\r\n\r\n",
            "00a\r\n0123456789\r\nA\r\n0123456789\r\n000\r\n\r\n",
            "5;name=value;other=\"a b\"\r\nabcde\r\n0;x\r\n\r\n",
            "5;a\r\nabcde\r\n0;a;b=c\r\n\r\n",
            "5;a=\"b;c\"\r\nabcde\r\n0\r\n\r\n",
            "5;a=\"\"\r\nabcde\r\n0\r\n\r\n",
            "5;a=\"b\\\"c\\\\\";d\r\nabcde\r\n0\r\n\r\n",
            "1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n",
            "0\r\nX-Sum: a\tb \u{e6}\r\nEmpty:\r\n\r\n",
            "0\r\n\r\nwhat comes behind, \0 and all",
        ] {
            assert_eq!(whole(body.as_bytes()), Ok(true), "{body:?}");
        }
        assert_eq!(whole(b"5\r\nabcd"), Ok(false));
        assert_eq!(Chunks::default().read(b"1\r\na\r\n0\r\n\r\nGET /"), Ok(11));
    }

    #[test]
    fn what_two_readers_could_read_differently_is_doubtful() {
        let long = format!("5;{}\r\n", "x".repeat(MAX_LINE));
        let trailers = format!("0\r\n{}", format!("X: {}\r\n", "y".repeat(4000)).repeat(5));
        for body in [
            "\r\nabcde\r\n0\r\n\r\n",
            ";x\r\n",
            "5 \r\nabcde\r\n",
            " 5\r\nabcde\r\n",
            "5 ;x\r\nabcde\r\n",
            "0x5\r\nabcde\r\n",
            "+5\r\n",
            "-5\r\n",
            "5,5\r\n",
            "g\r\n",
            "1000000000000000\r\n",
            "0000000000000005\r\nabcde\r\n",
            "5;\r\nabcde\r\n",
            "5;;a\r\n",
            "5;a;\r\n",
            "5;a=\r\n",
            "5;=b\r\n",
            "5;a==b\r\n",
            "5;a@b=[]\r\n",
            "5;a b\r\n",
            "5; a\r\n",
            "5;a =b\r\n",
            "5;a= b\r\n",
            "5;a=\"\r\n",
            "5;a=\"b\\\"\r\n",
            "5;a=\"b\"c\r\n",
            "5;a=\"b\" \r\n",
            "5;a=b\"c\"\r\n",
            "5;\"a\"=b\r\n",
            "5;a=\"\u{1}\"\r\n",
            "5;a=\"\\\u{1}\"\r\n",
            "5;a=\"\u{e6}\"\r\n",
            "5;\u{1}\r\n",
            "5;\0\r\n",
            "5;\u{7f}\r\n",
            "5;\u{e6}\r\n",
            "5;a\nabcde\r\n",
            "5\nabcde\n0\n\n",
            "5\rabcde",
            "5\r\nabcdeXX0\r\n\r\n",
            "5\r\nabcdef\r\n0\r\n\r\n",
            "5\r\nabcde\n0\r\n\r\n",
            "5\r\nabcde\r\r\n0\r\n\r\n",
            "0\r\nX y\r\n\r\n",
            "0\r\nX : y\r\n\r\n",
            "0\r\n: y\r\n\r\n",
            "0\r\nX: y\r\n folded\r\n\r\n",
            "0\r\nX: y\n\r\n",
            "0\r\nX: \0\r\n\r\n",
            "0\r\n\n",
            "0\r\n\r\r\n",
            &long,
            &trailers,
        ] {
            assert_eq!(whole(body.as_bytes()), Err(Doubtful), "{body:?}");
        }
    }

    proptest! {
        /// The fuzz target `chunked` compares the same for longer.
        #[test]
        fn second_reading_of_a_chunked_body_agrees(
            words in prop::collection::vec(
                prop::sample::select(&["0", "5", "a", "1F", "\r", "\n", "\r\n", ";", "=", "\"", "\\", "abcde", "x", ":", " ", "\t", "\0", "@", "\u{e6}"][..]),
                0..30,
            ),
        ) {
            let body = words.concat();
            let judged = whole(body.as_bytes());
            match oracle::read(body.as_bytes()) {
                oracle::Reading::Whole => prop_assert_eq!(judged, Ok(true), "{:?}", body),
                oracle::Reading::Wrong => prop_assert_eq!(judged, Err(Doubtful), "{:?}", body),
                oracle::Reading::Unfinished => prop_assert_ne!(judged, Ok(true), "{:?}", body),
            }
        }

        /// However it is cut into pieces, the judgement is the same; and what was put together by the rules passes.
        #[test]
        fn pieces_make_no_difference(
            chunks in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), "(;[a-z]{1,5}(=[a-z]{1,5})?)?"), 0..5),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            cuts in prop::collection::vec(1_usize..20, 1..30),
        ) {
            let mut body = Vec::new();
            for (data, extension) in &chunks {
                body.extend_from_slice(format!("{:x}{extension}\r\n", data.len()).as_bytes());
                body.extend_from_slice(data);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\nX: y\r\n\r\n");
            if let Some((at, byte)) = damage {
                let at = at.index(body.len());
                body[at] = byte;
            } else {
                prop_assert_eq!(whole(&body), Ok(true));
            }
            let mut pieces = Chunks::default();
            let (mut rest, mut cuts, mut judged) = (&body[..], cuts.iter().cycle(), Ok(0));
            while !rest.is_empty() && judged.is_ok() {
                let (piece, behind) = rest.split_at(rest.len().min(*cuts.next().expect("at least one cut")));
                judged = pieces.read(piece);
                rest = behind;
            }
            prop_assert_eq!(judged.map(|_| pieces.at == At::Behind), whole(&body));
        }
    }
}
