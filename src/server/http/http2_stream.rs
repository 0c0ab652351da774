//! The byte stream below h2: filters the client's frames and buffers writes.
//!
//! h2 flushes before each DATA frame of 256 bytes or more, which would make each response a system
//! call. Here a flush does nothing: bytes are written when [`BUFFERED_MAX`] of them wait, or when
//! the task of the connection is about to wait ([`Http2Writer::poll_drain`]). Measured with
//! `benches/compare/http2.py`; it can be removed when h2 lets its user decide about flushes.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use http2_fields::Rewriter;
use parking_lot::Mutex;
use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::client_stream::copy_into;
use super::http2_frame_limits::FrameLimiter;
use crate::api::{ApiError, Refusal};
use crate::clock;
use crate::server::state::{ActiveState, RequestState};
use crate::telemetry::Record;

/// Maximum number of buffered bytes: responses to all streams, or two DATA frames of a long body.
const BUFFERED_MAX: usize = 32 << 10;

/// Maximum time for which input is discarded after the last write, so that the write is not lost in
/// a reset of the connection.
const LINGER: Duration = Duration::from_millis(500);

/// Maximum number of discarded bytes: more than can be in flight.
const LINGER_BYTES: usize = 4 << 20;

/// The stream that h2 reads and writes.
pub struct Http2Stream(Arc<Mutex<Shared>>);

/// The writing half for the task of the connection. The lock is never contended: the same task
/// polls h2.
pub struct Http2Writer(Arc<Mutex<Shared>>);

struct Shared {
    stream: Stream,
    /// Bytes that were read before the protocol was known.
    prefix: BytesMut,
    incoming: InboundFilter,
    outgoing: WriteBuffer,
    /// The client has accepted bytes since [`Http2Writer::take_progress`].
    has_progressed: bool,
    /// Timer of the time after the last write.
    linger: Option<Pin<Box<Sleep>>>,
    discarded: usize,
}

/// Both halves of one connection.
pub struct Http2Io {
    pub stream: Http2Stream,
    pub writer: Http2Writer,
}

impl Http2Io {
    /// `prefix`: bytes that were read already, from the preface on. `rewrites_heads`: on the public
    /// listener, whose application recognizes replacement requests.
    pub fn new(
        stream: Stream,
        prefix: BytesMut,
        active: Arc<ActiveState>,
        rewrites_heads: bool,
    ) -> Self {
        let shared = Arc::new(Mutex::new(Shared {
            stream,
            prefix,
            incoming: InboundFilter::new(active, rewrites_heads),
            outgoing: WriteBuffer::default(),
            has_progressed: false,
            linger: None,
            discarded: 0,
        }));
        Http2Io { stream: Http2Stream(shared.clone()), writer: Http2Writer(shared) }
    }
}

impl Http2Writer {
    /// Whether the client sent far more frames than its requests need. Then h2 reads no further
    /// bytes.
    pub fn is_flooded(&self) -> bool {
        self.0.lock().incoming.is_flooded
    }

    /// Whether buffered bytes wait to be written.
    pub fn has_unwritten(&self) -> bool {
        !self.0.lock().outgoing.is_empty()
    }

    /// Writes the buffered bytes. Pending if the client accepts no more.
    pub fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_drain(cx)
    }

    /// Whether the client has accepted bytes since the last call.
    pub fn take_progress(&self) -> bool {
        std::mem::take(&mut self.0.lock().has_progressed)
    }
}

impl fmt::Debug for Http2Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http2Stream")
    }
}

impl AsyncRead for Http2Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Shared { stream, prefix, incoming, .. } = &mut *self.0.lock();
        loop {
            // The task of the connection checks this after each poll.
            if incoming.is_flooded {
                return Poll::Pending;
            }
            if !incoming.passed.is_empty() {
                copy_into(&mut incoming.passed, into);
                return Poll::Ready(Ok(()));
            }
            let before = into.filled().len();
            if prefix.is_empty() {
                ready!(Pin::new(&mut *stream).poll_read(cx, into))?;
            } else {
                copy_into(prefix, into);
            }
            let read = &into.filled()[before..];
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            incoming.read(read);
            into.set_filled(before);
        }
    }
}

impl AsyncWrite for Http2Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let shared = &mut *self.0.lock();
        let accepted = shared.outgoing.poll_write(&mut shared.stream, cx, slices);
        shared.credit_written();
        accepted
    }

    /// `false` makes h2 buffer short DATA frames itself.
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.lock();
        if shared.linger.is_none() {
            ready!(shared.poll_drain(cx))?;
            ready!(Pin::new(&mut shared.stream).poll_shutdown(cx))?;
        }
        shared.poll_linger(cx)
    }
}

impl Shared {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let drained = self.outgoing.poll_drain(&mut self.stream, cx);
        self.credit_written();
        drained
    }

    /// Credits written bytes, which the client may acknowledge with frames.
    fn credit_written(&mut self) {
        let written = self.outgoing.take_written();
        if written > 0 {
            self.incoming.frames.credit_written(written);
            self.has_progressed = true;
        }
    }

    /// Discards input until the client closes, for at most [`LINGER`]. Closing a connection with
    /// unread bytes resets it, and the client may lose the last response (RFC 9112 section 9.6).
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let linger = self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut sink = [0; 4096];
        loop {
            if self.discarded > LINGER_BYTES || linger.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut sink);
            match ready!(pin!(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.discarded += buffer.filled().len(),
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// Filter of the bytes that the client sends.
struct InboundFilter {
    frames: FrameLimiter,
    /// On the public listener.
    rewriter: Option<Rewriter>,
    /// Bytes that h2 reads next.
    passed: BytesMut,
    /// State for the records of malformed requests.
    active: Arc<ActiveState>,
    is_flooded: bool,
}

impl InboundFilter {
    fn new(active: Arc<ActiveState>, rewrites_heads: bool) -> Self {
        InboundFilter {
            frames: FrameLimiter::new(clock::now()),
            rewriter: rewrites_heads.then(Rewriter::default),
            passed: BytesMut::new(),
            active,
            is_flooded: false,
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let mut is_permitted = self.frames.read(bytes, clock::now()).is_ok();
        if let Some(rewriter) = &mut self.rewriter {
            is_permitted &= rewriter.read(bytes, &mut self.passed).is_ok();
            for method in rewriter.take_malformed() {
                record_malformed(&self.active.load(), &method);
            }
        } else {
            self.passed.extend_from_slice(bytes);
        }
        self.is_flooded = !is_permitted;
    }
}

/// Records a malformed request or trailer section, whose stream h2 resets.
fn record_malformed(state: &RequestState, method: &[u8]) {
    let error = ApiError::BadRequest(Refusal::Malformed);
    let mut record = Record::begin(clock::now());
    record.method = http::Method::from_bytes(method).unwrap_or_default();
    record.status = error.status();
    record.error = Some(error);
    record.cause = Some("http2_stream_error");
    record.request_id = state.new_request_id();
    record.end(state.gateway.metrics(), state.access);
}

/// Buffered bytes of responses.
#[derive(Default)]
struct WriteBuffer {
    /// Holds no memory while it is empty: most connections are idle.
    bytes: Vec<u8>,
    /// Number of bytes at the beginning that were written.
    start: usize,
    /// Number of written bytes since [`WriteBuffer::take_written`].
    written: usize,
    /// The stream may hold accepted bytes, as TLS does.
    is_unflushed: bool,
}

impl WriteBuffer {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && !self.is_unflushed
    }

    fn take_written(&mut self) -> usize {
        std::mem::take(&mut self.written)
    }

    /// Buffers bytes and returns their number. Beyond [`BUFFERED_MAX`] it writes to the stream
    /// first, and is pending while the stream accepts none.
    fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered = slices.iter().map(|slice| slice.len()).sum::<usize>();
        loop {
            let waiting = self.bytes.len() - self.start;
            if waiting + offered <= BUFFERED_MAX {
                self.append(slices, offered);
                return Poll::Ready(Ok(offered));
            }
            // Half of a long body is written without a copy.
            let count = ready!(self.poll_write_through(stream, cx, slices))?;
            if count > waiting {
                return Poll::Ready(Ok(count - waiting));
            }
        }
    }

    /// Writes the buffered bytes and the slices after them.
    fn poll_write_through<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        const EMPTY: &[u8] = &[];
        let mut all = [IoSlice::new(EMPTY); 4];
        all[0] = IoSlice::new(&self.bytes[self.start..]);
        for (place, slice) in all[1..].iter_mut().zip(slices) {
            *place = IoSlice::new(slice);
        }
        let all = &all[usize::from(self.bytes.is_empty())..=slices.len().min(3)];
        let count = ready!(Pin::new(stream).poll_write_vectored(cx, all))?;
        self.advance(count)?;
        Poll::Ready(Ok(count))
    }

    /// Writes all buffered bytes and flushes the stream.
    fn poll_drain<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.bytes.is_empty() {
            let count = ready!(Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.start..]))?;
            self.advance(count)?;
        }
        if self.is_unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Accounts for bytes that the stream accepted, buffered ones first.
    fn advance(&mut self, count: usize) -> io::Result<()> {
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += count;
        self.is_unflushed = true;
        self.start = self.bytes.len().min(self.start + count);
        if self.start == self.bytes.len() {
            self.bytes = Vec::new();
            self.start = 0;
        }
        Ok(())
    }

    fn append(&mut self, slices: &[IoSlice<'_>], count: usize) {
        if self.bytes.is_empty() {
            // The full size at once, instead of in steps that copy.
            self.bytes.reserve_exact(BUFFERED_MAX);
        } else if self.bytes.len() + count > self.bytes.capacity() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        for slice in slices {
            self.bytes.extend_from_slice(slice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepts as many bytes as `room` says, and records the size of each write.
    #[derive(Default)]
    struct Client {
        room: usize,
        received: Vec<u8>,
        writes: Vec<usize>,
        flushes: usize,
    }

    impl AsyncWrite for Client {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Poll::Pending;
            }
            self.room -= count;
            self.received.extend_from_slice(&bytes[..count]);
            self.writes.push(count);
            Poll::Ready(Ok(count))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all = slices.iter().flat_map(|slice| slice.to_vec()).collect::<Vec<_>>();
            self.poll_write(cx, &all)
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn write(gathered: &mut WriteBuffer, client: &mut Client, slices: &[&[u8]]) -> Poll<usize> {
        let slices: Vec<_> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        gathered
            .poll_write(client, &mut Context::from_waker(std::task::Waker::noop()), &slices)
            .map(Result::unwrap)
    }

    fn drain(gathered: &mut WriteBuffer, client: &mut Client) -> Poll<()> {
        gathered
            .poll_drain(client, &mut Context::from_waker(std::task::Waker::noop()))
            .map(Result::unwrap)
    }

    #[test]
    fn writes_are_buffered_until_the_task_waits() {
        let (mut gathered, mut client) =
            (WriteBuffer::default(), Client { room: usize::MAX, ..Client::default() });
        for _ in 0..8 {
            assert_eq!(
                write(&mut gathered, &mut client, &[b"head", &[b'x'; 1000]]),
                Poll::Ready(1004)
            );
        }
        assert!(client.writes.is_empty() && gathered.take_written() == 0);
        assert_eq!(drain(&mut gathered, &mut client), Poll::Ready(()));
        assert_eq!(
            (&client.writes[..], client.flushes, gathered.take_written()),
            (&[8032][..], 1, 8032)
        );
        assert!(
            gathered.is_empty() && gathered.bytes.capacity() == 0,
            "an idle connection holds no memory"
        );
        // Nothing is left to flush.
        assert_eq!(drain(&mut gathered, &mut client), Poll::Ready(()));
        assert_eq!(client.flushes, 1);
    }

    #[test]
    fn long_body_is_written_in_pieces_of_the_limit() {
        let (mut gathered, mut client) =
            (WriteBuffer::default(), Client { room: usize::MAX, ..Client::default() });
        let frame = [b'x'; 16 << 10];
        for _ in 0..64 {
            assert_eq!(
                write(&mut gathered, &mut client, &[b"123456789", &frame]),
                Poll::Ready(9 + frame.len())
            );
        }
        assert_eq!(drain(&mut gathered, &mut client), Poll::Ready(()));
        assert_eq!(client.received.len(), 64 * (9 + frame.len()));
        assert_eq!(client.writes, [2 * (9 + frame.len()); 32]);
    }

    #[test]
    fn stalled_client_buffers_at_most_the_limit() {
        let (mut gathered, mut client) = (WriteBuffer::default(), Client::default());
        let sent: Vec<u8> = (0..3 * BUFFERED_MAX).map(|number| number as u8).collect();
        let mut accepted = 0;
        while let Poll::Ready(count) =
            write(&mut gathered, &mut client, &[&sent[accepted..accepted + 1000]])
        {
            accepted += count;
        }
        assert!(
            accepted <= BUFFERED_MAX && gathered.bytes.capacity() <= BUFFERED_MAX,
            "{accepted}"
        );
        assert_eq!(drain(&mut gathered, &mut client), Poll::Pending);
        // A slow client: the order is kept, and each byte is counted once.
        let mut written = 0;
        while accepted < sent.len() {
            client.room += 333;
            let piece = &sent[accepted..sent.len().min(accepted + 1500)];
            if let Poll::Ready(count) =
                write(&mut gathered, &mut client, &[&piece[..7], &piece[7..]])
            {
                accepted += count;
            }
            written += gathered.take_written();
            assert!(gathered.bytes.capacity() <= BUFFERED_MAX);
        }
        client.room = usize::MAX;
        assert_eq!(drain(&mut gathered, &mut client), Poll::Ready(()));
        assert_eq!(client.received, sent);
        assert_eq!(written + gathered.take_written(), sent.len());
    }
}
