//! A limit on the replies of Redis. The client library reads a reply of any length into memory
//! before it returns it, so this stream fails as soon as the reply announces a length beyond the
//! limit. The connection ends with that.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest reply. The longest that gateways cause are a batch of messages and one value of the
/// shared tier, about 1 MiB each.
const REPLY_BYTES_MAX: u64 = 2 << 20;

/// Most elements of one reply: a batch of messages has six thousand.
const REPLY_ELEMENTS_MAX: u64 = 64 << 10;

/// How the error of a reply beyond the limit begins.
pub const TOO_LARGE: &str = "a reply is too large";

/// A stream from Redis that fails at a reply beyond the limit.
pub struct LimitedStream<S> {
    stream: S,
    parser: ReplyParser,
}

impl<S> LimitedStream<S> {
    pub fn new(stream: S) -> Self {
        LimitedStream { stream, parser: ReplyParser::default() }
    }
}

/// Position in the replies. RESP is a sequence of elements, each of which is a line and, for a
/// string, as many bytes as the line announces. The line of an array announces how many more
/// elements belong to the reply.
#[derive(Default)]
struct ReplyParser {
    /// Bytes of the string that were not read yet, including its line end.
    string_left: u64,
    /// The line so far, cut to a length that may hold a number.
    line: Vec<u8>,
    /// Elements of this reply that were not read yet; 0 between replies.
    elements_left: u64,
    /// All elements of this reply.
    elements: u64,
    /// All bytes of this reply.
    bytes: u64,
}

impl ReplyParser {
    /// Longest line that can hold a number; longer ones (errors, status) are cut.
    const LINE_BYTES_MAX: usize = 32;

    /// Parses the next bytes; fails at a reply beyond the limit.
    fn read(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.string_left > 0 {
                let part = self.string_left.min(bytes.len() as u64);
                self.string_left -= part;
                bytes = &bytes[part as usize..];
                if self.string_left == 0 {
                    self.end_element();
                }
                continue;
            }
            let end = memchr::memchr(b'\n', bytes);
            let (line, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            self.count(line.len() as u64)?;
            let room = Self::LINE_BYTES_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&line[..line.len().min(room)]);
            bytes = rest;
            if end.is_some() {
                self.end_line()?;
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        let Some((kind, length)) = line.split_first() else { return Ok(()) };
        if self.elements_left == 0 {
            self.elements_left = 1;
        }
        // -1 is a null; the library rejects a line that holds no number.
        let length =
            std::str::from_utf8(length).ok().and_then(|text| text.trim().parse::<u64>().ok());
        match (kind, length) {
            (b'$' | b'=' | b'!', Some(length)) => {
                self.count(length)?;
                self.string_left = length + 2;
                return Ok(());
            }
            (b'*' | b'~' | b'>', Some(elements)) => self.announce(elements)?,
            (b'%' | b'|', Some(pairs)) => self.announce(pairs.saturating_mul(2))?,
            _ => {}
        }
        self.end_element();
        Ok(())
    }

    fn announce(&mut self, elements: u64) -> io::Result<()> {
        self.elements = self.elements.saturating_add(elements);
        if self.elements > REPLY_ELEMENTS_MAX {
            let error = format!("{TOO_LARGE}: more than {REPLY_ELEMENTS_MAX} elements");
            return Err(io::Error::other(error));
        }
        self.elements_left += elements;
        Ok(())
    }

    fn count(&mut self, bytes: u64) -> io::Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > REPLY_BYTES_MAX {
            let error = format!("{TOO_LARGE}: more than {REPLY_BYTES_MAX} bytes");
            return Err(io::Error::other(error));
        }
        Ok(())
    }

    fn end_element(&mut self) {
        self.elements_left = self.elements_left.saturating_sub(1);
        if self.elements_left == 0 {
            (self.elements, self.bytes) = (0, 0);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LimitedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        Poll::Ready(self.parser.read(&into.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LimitedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the replies are within the limit, read in chunks of several lengths.
    fn is_accepted(text: &[u8]) -> bool {
        let read = |length: usize| {
            let mut parser = ReplyParser::default();
            let accepted = text.chunks(length).try_for_each(|chunk| parser.read(chunk)).is_ok();
            if accepted {
                let ReplyParser { string_left, elements_left, elements, bytes, .. } = parser;
                let left = [string_left, elements_left, elements, bytes];
                assert_eq!(left, [0; 4], "a whole reply was read");
            }
            accepted
        };
        let all = [read(1), read(2), read(7), read(4096), read(text.len())];
        assert!(all.iter().all(|one| *one == all[0]), "the same in chunks of every length");
        all[0]
    }

    #[test]
    fn replies_within_the_limit_are_counted_separately() {
        assert!(is_accepted(b"+OK\r\n$-1\r\n*-1\r\n:12\r\n-ERR no\r\n"));
        let messages = b"*1\r\n*2\r\n$1\r\nk\r\n*2\r\n*2\r\n$3\r\n1-0\r\n\
            *2\r\n$1\r\nm\r\n$5\r\n*9\r\nx\r\n*2\r\n$3\r\n1-1\r\n*0\r\n";
        assert!(is_accepted(messages));
        assert!(is_accepted(b"%1\r\n$1\r\nk\r\n:1\r\n"));
        let value = [b"$900000\r\n".as_slice(), &vec![b'x'; 900_000], b"\r\n"].concat();
        assert!(is_accepted(&value.repeat(4)), "each reply has the whole limit");
    }

    #[test]
    fn reply_beyond_the_limit_fails_when_announced() {
        let mut parser = ReplyParser::default();
        assert!(parser.read(b"*2\r\n$134217728\r\n").is_err(), "before any of its bytes");
        assert!(ReplyParser::default().read(b"$18446744073709551615\r\n").is_err());
        assert!(ReplyParser::default().read(b"*1000000000\r\n").is_err());
        assert!(ReplyParser::default().read(b"%9223372036854775808\r\n").is_err());
        let string = [b"$900000\r\n".as_slice(), &vec![b'x'; 900_000], b"\r\n"].concat();
        assert!(
            !is_accepted(&[b"*3\r\n".as_slice(), &string.repeat(3)].concat()),
            "all elements of a reply count"
        );
        assert!(
            ReplyParser::default().read(&vec![b'+'; 3 << 20]).is_err(),
            "a line without an end"
        );
    }
}
