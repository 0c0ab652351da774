//! A bound on what the Redis may send: the client library reads a reply whole before it gives it
//! on, however long it is, so a long reply is refused here, as soon as its length is announced. The
//! connection ends with it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest reply, all of its strings together. The longest that is meant is a batch of messages
/// or one value of the shared tier, about 1 MiB each.
const MAX_REPLY: u64 = 2 << 20;

/// Most parts of one reply: a batch of messages has six thousand.
const MAX_PARTS: u64 = 64 << 10;

/// How the refusal of a reply begins.
pub const TOO_LARGE: &str = "a reply is too large";

/// A connection whose replies are bounded.
pub struct Bounded<S> {
    stream: S,
    replies: Replies,
}

impl<S> Bounded<S> {
    pub fn new(stream: S) -> Self {
        Bounded { stream, replies: Replies::default() }
    }
}

/// Where in the replies the last byte was. RESP is a sequence of parts, each of which is a line
/// and, for a string, the bytes that the line announces; the line of an array announces that so
/// many more parts belong to the reply.
#[derive(Default)]
struct Replies {
    /// Bytes of the string that are still to come, the line end behind it included.
    string: u64,
    /// The line so far, as far as it may hold a length.
    line: Vec<u8>,
    /// Parts of this reply that are still to come; 0 between replies.
    parts: u64,
    /// All parts of this reply, and its bytes.
    size: (u64, u64),
}

impl Replies {
    /// The longest line that can hold a length; of longer ones (errors, status) the end is not
    /// kept.
    const MAX_LINE: usize = 32;

    /// Reads on; an error where the reply is too large.
    fn read(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.string > 0 {
                let part = self.string.min(bytes.len() as u64);
                self.string -= part;
                bytes = &bytes[part as usize..];
                if self.string == 0 {
                    self.part_ended();
                }
                continue;
            }
            let end = memchr::memchr(b'\n', bytes);
            let (line, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            self.count(line.len() as u64)?;
            let room = Self::MAX_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&line[..line.len().min(room)]);
            bytes = rest;
            if end.is_some() {
                self.line_ended()?;
            }
        }
        Ok(())
    }

    fn line_ended(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        let Some((kind, length)) = line.split_first() else { return Ok(()) };
        if self.parts == 0 {
            self.parts = 1;
        }
        // -1 announces nothing; what is not a number is the library's to refuse.
        let length = std::str::from_utf8(length).ok().and_then(|text| text.trim().parse::<u64>().ok());
        match (kind, length) {
            (b'$' | b'=' | b'!', Some(length)) => {
                self.count(length)?;
                self.string = length + 2;
                return Ok(());
            }
            (b'*' | b'~' | b'>', Some(parts)) => self.announce(parts)?,
            (b'%' | b'|', Some(pairs)) => self.announce(pairs.saturating_mul(2))?,
            _ => {}
        }
        self.part_ended();
        Ok(())
    }

    fn announce(&mut self, parts: u64) -> io::Result<()> {
        self.size.0 = self.size.0.saturating_add(parts);
        if self.size.0 > MAX_PARTS {
            return Err(io::Error::other(format!("{TOO_LARGE}: more than {MAX_PARTS} parts")));
        }
        self.parts += parts;
        Ok(())
    }

    fn count(&mut self, bytes: u64) -> io::Result<()> {
        self.size.1 = self.size.1.saturating_add(bytes);
        if self.size.1 > MAX_REPLY {
            return Err(io::Error::other(format!("{TOO_LARGE}: more than {MAX_REPLY} bytes")));
        }
        Ok(())
    }

    fn part_ended(&mut self) {
        self.parts = self.parts.saturating_sub(1);
        if self.parts == 0 {
            self.size = (0, 0);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        Poll::Ready(self.replies.read(&into.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
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

    /// Whether the replies pass, in pieces of each length.
    fn passes(text: &[u8]) -> bool {
        let read = |length: usize| {
            let mut replies = Replies::default();
            let read = text.chunks(length).try_for_each(|piece| replies.read(piece)).is_ok();
            if read {
                assert_eq!((replies.parts, replies.size, replies.string), (0, (0, 0), 0), "a whole reply was read");
            }
            read
        };
        let all = [read(1), read(2), read(7), read(4096), read(text.len())];
        assert!(all.iter().all(|one| *one == all[0]), "the same in pieces of every length");
        all[0]
    }

    #[test]
    fn ordinary_replies_pass_and_are_counted_apart() {
        assert!(passes(b"+OK\r\n$-1\r\n*-1\r\n:12\r\n-ERR no\r\n"));
        let one = b"*1\r\n*2\r\n$1\r\nk\r\n*2\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nm\r\n$5\r\n*9\r\nx\r\n*2\r\n$3\r\n1-1\r\n*0\r\n";
        assert!(passes(one));
        assert!(passes(b"%1\r\n$1\r\nk\r\n:1\r\n"));
        let value = [b"$900000\r\n".as_slice(), &vec![b'x'; 900_000], b"\r\n"].concat();
        assert!(passes(&value.repeat(4)), "each reply has the whole bound");
    }

    #[test]
    fn reply_beyond_the_bound_is_refused_when_it_is_announced() {
        let mut replies = Replies::default();
        assert!(replies.read(b"*2\r\n$134217728\r\n").is_err(), "before any of its bytes");
        assert!(Replies::default().read(b"$18446744073709551615\r\n").is_err());
        assert!(Replies::default().read(b"*1000000000\r\n").is_err());
        assert!(Replies::default().read(b"%9223372036854775808\r\n").is_err());
        let part = [b"$900000\r\n".as_slice(), &vec![b'x'; 900_000], b"\r\n"].concat();
        assert!(!passes(&[b"*3\r\n".as_slice(), &part.repeat(3)].concat()), "all parts of a reply count");
        assert!(Replies::default().read(&vec![b'+'; 3 << 20]).is_err(), "a line without an end");
    }
}
