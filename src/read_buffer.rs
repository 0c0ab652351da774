//! Reads from a connection that holds memory only while it has bytes.
//!
//! Most polls of a connection find no bytes. Each thread keeps one spare buffer for them, so that
//! neither an idle connection nor a poll needs an allocation.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Number of bytes read at once. A typical head is shorter.
pub const READ_BYTES: usize = 8 << 10;

thread_local! {
    static SPARE: Cell<Option<BytesMut>> = const { Cell::new(None) };
}

/// Reads once. Returns the number of bytes, 0 at the end. A buffer that stays empty has no memory
/// afterwards.
pub fn poll_read(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if buffer.capacity() == 0 {
        *buffer = SPARE.take().unwrap_or_default();
    }
    buffer.reserve(READ_BYTES);
    let read = pin!(stream.read_buf(buffer)).poll(context);
    release(buffer);
    read
}

/// Takes the memory of an empty buffer.
pub fn release(buffer: &mut BytesMut) {
    if buffer.is_empty() {
        let mut spare = std::mem::take(buffer);
        if spare.capacity() == 0 {
            // Never used, or all of it consumed.
            return;
        }
        // The capacity then counts what was in front of the bytes that were consumed last.
        spare.reserve(READ_BYTES);
        // The memory of a long head is freed.
        if spare.capacity() <= READ_BYTES {
            SPARE.set(Some(spare));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Buf;

    use super::*;

    fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> Option<usize> {
        match poll_read(stream, buffer, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(read) => Some(read.unwrap()),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn buffer_has_memory_only_while_it_holds_bytes() {
        use tokio::io::AsyncWriteExt;
        let (mut client, mut stream) = tokio::io::duplex(64);
        let mut buffer = BytesMut::new();
        for text in ["abc", "defg"] {
            assert_eq!(read(&mut stream, &mut buffer), None);
            assert_eq!(buffer.capacity(), 0);
            client.write_all(text.as_bytes()).await.unwrap();
            assert_eq!(read(&mut stream, &mut buffer), Some(text.len()));
            assert_eq!(buffer, text, "nothing of an earlier use");
            assert!(buffer.capacity() >= READ_BYTES);
            buffer.clear();
            release(&mut buffer);
            assert_eq!(buffer.capacity(), 0);
        }
        drop(client);
        assert_eq!(read(&mut stream, &mut buffer), Some(0));
    }

    #[test]
    fn memory_of_a_long_head_is_not_kept() {
        SPARE.set(None);
        release(&mut BytesMut::with_capacity(READ_BYTES + 1));
        assert!(SPARE.take().is_none());
        let mut consumed = BytesMut::zeroed(2 * READ_BYTES);
        consumed.advance(2 * READ_BYTES - 1);
        consumed.clear();
        release(&mut consumed);
        assert!(SPARE.take().is_none());
        release(&mut BytesMut::with_capacity(READ_BYTES));
        release(&mut BytesMut::new());
        assert!(SPARE.take().is_some());
    }

    #[test]
    fn memory_in_front_of_consumed_bytes_is_used_again() {
        let mut consumed = BytesMut::with_capacity(READ_BYTES);
        consumed.resize(READ_BYTES - 1, 0);
        let memory = consumed.as_ptr();
        consumed.advance(READ_BYTES - 1);
        release(&mut consumed);
        let spare = SPARE.take().expect("a spare buffer");
        assert_eq!((spare.as_ptr(), spare.capacity()), (memory, READ_BYTES));
    }

    #[tokio::test]
    async fn partial_message_stays_in_the_buffer() {
        use tokio::io::AsyncWriteExt;
        let (mut client, mut stream) = tokio::io::duplex(64);
        let mut buffer = BytesMut::new();
        client.write_all(b"abc").await.unwrap();
        assert_eq!(read(&mut stream, &mut buffer), Some(3));
        assert_eq!(read(&mut stream, &mut buffer), None);
        release(&mut buffer);
        assert_eq!(buffer, "abc");
    }
}
