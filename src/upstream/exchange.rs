//! One HTTP/1.1 exchange with the API over one connection: request head and body in, response head
//! and body out, both directions at once.
//!
//! The exchange does not wait itself: [`Exchange::poll_send`] and
//! [`Exchange::poll_event`] make progress, and the caller decides how long and in which order. A
//! dropped exchange closes its connection.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use http1::{
    BodyLength, ChunkedDecoder, FieldLines, HeadLimits, HeadScan, LAST_CHUNK, RequestFraming,
    ResponseHead, write_chunk_head, write_request_head,
};
use tokio::io::AsyncWrite;

use super::connector::Connection;
use super::{MAX_INFORMATIONAL, UpstreamError};
use crate::read_buffer::{self, READ_BYTES};

/// Request bytes that may wait to be written before [`Exchange::is_writable`] is false.
const QUEUE_BYTES_MAX: usize = 64 << 10;

/// Maximum number of bytes of a response that are read at once.
const READ_BYTES_MAX: usize = 64 << 10;

/// Maximum length of a piece of a body that is copied out of the buffer of reads.
const COPY_MAX: usize = 4 << 10;

/// Maximum number of bytes in a TLS record (RFC 8446 section 5.1).
const TLS_RECORD_BYTES_MAX: usize = 16 << 10;

/// What arrives from the API, in this order: interim heads, one head, data, trailers, the end.
#[derive(Debug)]
pub enum Event {
    /// A 1xx response other than 101.
    Interim(ResponseHead),
    /// The final response head. A 101 has no body: [`Exchange::begin_tunnel`] continues.
    Head(ResponseHead),
    /// A piece of the body, never empty.
    Data(Bytes),
    /// Trailer fields of a chunked body.
    Trailers(HeaderMap),
    /// The response is complete.
    End,
}

#[derive(Debug)]
enum Incoming {
    Head {
        interim: usize,
        scan: HeadScan,
    },
    Known(u64),
    Chunked(Box<ChunkedDecoder>),
    UntilClose,
    /// The body is complete; trailers may remain to be reported.
    Complete(Option<HeaderMap>),
    Ended,
}

/// One exchange with the API.
pub struct Exchange {
    connection: Connection,
    method: Method,
    framing: RequestFraming,
    /// Bytes of the request: head, chunks.
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that were written.
    written: usize,
    /// Data of a body behind `outgoing` that is not copied into it.
    outgoing_data: Bytes,
    is_request_complete: bool,
    has_sent: bool,
    /// A write failed; a response may still be there to read.
    has_send_failed: bool,
    /// The sending side is to be closed once everything is written.
    closes_sending: bool,
    is_tunnel: bool,
    /// Bytes of the response that are not reported yet.
    received: BytesMut,
    has_received: bool,
    /// Number of bytes for which the next read has room.
    read_bytes: usize,
    incoming: Incoming,
    is_persistent: bool,
}

impl Exchange {
    /// Queues the head of a request, whose `Host` is that of the connection's address. Nothing is
    /// written before [`Exchange::poll_send`].
    pub fn new(
        connection: Connection,
        method: Method,
        target: &str,
        lines: &FieldLines,
        framing: RequestFraming,
    ) -> Self {
        let mut head = Vec::new();
        write_request_head(
            &mut head,
            &method,
            target,
            &connection.endpoint().origin.authority,
            lines,
            framing,
        );
        let is_request_complete =
            matches!(framing, RequestFraming::None | RequestFraming::Length(0));
        Exchange {
            connection,
            method,
            framing,
            outgoing: head,
            written: 0,
            outgoing_data: Bytes::new(),
            is_request_complete,
            has_sent: false,
            has_send_failed: false,
            closes_sending: false,
            is_tunnel: false,
            received: BytesMut::new(),
            has_received: false,
            read_bytes: READ_BYTES,
            incoming: Incoming::Head { interim: 0, scan: HeadScan::default() },
            is_persistent: false,
        }
    }

    /// Whether any byte of the request may have reached the API.
    pub fn has_sent(&self) -> bool {
        self.has_sent
    }

    /// Whether any byte of a response arrived.
    pub fn has_received(&self) -> bool {
        self.has_received
    }

    /// Whether the API accepts no more of the request. Its response may have arrived all the same.
    pub fn has_send_failed(&self) -> bool {
        self.has_send_failed
    }

    /// Whether everything queued was written.
    pub fn is_sent(&self) -> bool {
        self.unwritten() == 0
    }

    /// Bytes that are queued and not written.
    pub fn unwritten(&self) -> usize {
        self.outgoing.len() - self.written + self.outgoing_data.len()
    }

    /// Whether the response body has arrived whole.
    pub fn is_body_complete(&self) -> bool {
        matches!(self.incoming, Incoming::Complete(_) | Incoming::Ended)
    }

    /// Whether the queue has room for more of the body.
    pub fn is_writable(&self) -> bool {
        self.unwritten() < QUEUE_BYTES_MAX
    }

    /// Queues a piece of the body. An empty piece is ignored: it would end a chunked body.
    pub fn push_body(&mut self, data: Bytes) {
        if data.is_empty() || self.is_request_complete {
            return;
        }
        self.flatten();
        if self.written >= QUEUE_BYTES_MAX {
            // A queue that is never empty does not grow for what was written.
            self.outgoing.drain(..self.written);
            self.written = 0;
        }
        match self.framing {
            RequestFraming::Chunked => {
                write_chunk_head(&mut self.outgoing, data.len());
                self.outgoing.extend_from_slice(&data);
                self.outgoing.extend_from_slice(b"\r\n");
            }
            RequestFraming::None | RequestFraming::Length(_) if self.outgoing.is_empty() => {
                self.outgoing_data = data;
            }
            RequestFraming::None | RequestFraming::Length(_) => {
                self.outgoing.extend_from_slice(&data)
            }
        }
    }

    /// Ends the body. With a declared length the caller has pushed exactly that many bytes.
    pub fn finish_body(&mut self) {
        if !self.is_request_complete && self.framing == RequestFraming::Chunked {
            self.flatten();
            self.outgoing.extend_from_slice(LAST_CHUNK);
        }
        self.is_request_complete = true;
        self.closes_sending = self.is_tunnel;
    }

    fn flatten(&mut self) {
        if !self.outgoing_data.is_empty() {
            self.outgoing.extend_from_slice(&self.outgoing_data);
            self.outgoing_data.clear();
        }
    }

    /// Writes what is queued; ready once the queue is empty or a write failed.
    ///
    /// A failure is not an error: a response may have arrived, and without one
    /// [`Exchange::poll_event`] reports the end of the connection.
    pub fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while !self.is_sent() && !self.has_send_failed {
            let stream = Pin::new(&mut self.connection.stream);
            let is_data = self.written == self.outgoing.len();
            let mut bytes: &[u8] =
                if is_data { &self.outgoing_data } else { &self.outgoing[self.written..] };
            if !self.has_sent {
                // Of several TLS records, the first may have been sent when a later one fails.
                bytes = &bytes[..bytes.len().min(TLS_RECORD_BYTES_MAX)];
            }
            match ready!(stream.poll_write(context, bytes)) {
                Ok(0) | Err(_) => self.has_send_failed = true,
                Ok(count) => {
                    self.has_sent = true;
                    if is_data {
                        self.outgoing_data.advance(count);
                    } else {
                        self.written += count;
                        if self.written == self.outgoing.len() {
                            self.outgoing.clear();
                            self.written = 0;
                        }
                    }
                }
            }
        }
        let stream = Pin::new(&mut self.connection.stream);
        let flushed = if self.closes_sending && !self.has_send_failed {
            ready!(stream.poll_shutdown(context))
        } else {
            ready!(stream.poll_flush(context))
        };
        self.has_send_failed |= flushed.is_err();
        Poll::Ready(())
    }

    /// Reports what arrives next.
    ///
    /// # Errors
    ///
    /// `Truncated` if the connection ended within the response or before it; `Protocol` if the
    /// response is malformed, ambiguous, or has too many interim responses.
    pub fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, UpstreamError>> {
        loop {
            if let Some(event) = self.parse()? {
                return Poll::Ready(Ok(event));
            }
            let count = match ready!(self.poll_fill(context)) {
                Ok(count) => count,
                Err(_) => return Poll::Ready(Err(UpstreamError::Truncated)),
            };
            if count == 0 {
                if matches!(self.incoming, Incoming::UntilClose) {
                    self.incoming = Incoming::Complete(None);
                    continue;
                }
                return Poll::Ready(Err(UpstreamError::Truncated));
            }
            self.has_received = true;
        }
    }

    /// Writes the queue while waiting for the next event.
    ///
    /// # Errors
    ///
    /// As [`Exchange::poll_event`].
    pub async fn next_event(&mut self) -> Result<Event, UpstreamError> {
        poll_fn(|context| {
            let _ = self.poll_send(context);
            self.poll_event(context)
        })
        .await
    }

    /// Continues behind a 101 response as a tunnel: what is pushed is written as it is, and what
    /// arrives is data until the API ends it. [`Exchange::finish_body`] closes the sending side.
    pub fn begin_tunnel(&mut self) {
        self.framing = RequestFraming::Length(u64::MAX);
        self.is_request_complete = false;
        self.is_persistent = false;
        self.is_tunnel = true;
        self.incoming = Incoming::UntilClose;
    }

    /// Whether bytes of the response were received that are not reported yet.
    pub fn has_unread(&self) -> bool {
        !self.received.is_empty()
    }

    /// Reads the end of a chunked body without trailers if it was received already, as it usually
    /// is with the last piece. Returns whether the response has ended.
    pub fn take_end(&mut self) -> bool {
        const END: &[u8] = b"\r\n0\r\n\r\n";
        if let Incoming::Chunked(decoder) = &mut self.incoming
            && *self.received == *END
            && decoder.decode(END).is_ok()
            && decoder.is_finished()
        {
            self.received.clear();
            self.incoming = Incoming::Ended;
        }
        matches!(self.incoming, Incoming::Ended)
    }

    /// Notes that the caller needs no further event, although the end was not reported yet.
    pub fn finish_reading(&mut self) {
        if matches!(self.incoming, Incoming::Complete(_)) {
            self.incoming = Incoming::Ended;
        }
    }

    /// Returns the connection if another exchange may follow on it.
    ///
    /// Not if the request was not written whole, if the response was not read whole or does not
    /// permit it, or if bytes follow that belong to no request.
    pub fn into_reusable(self) -> Option<Connection> {
        let is_done = matches!(self.incoming, Incoming::Ended)
            && self.is_persistent
            && self.is_request_complete
            && self.unwritten() == 0
            && self.received.is_empty();
        is_done.then_some(self.connection)
    }

    /// Makes an event of the bytes that arrived, or returns `None` if more are needed.
    fn parse(&mut self) -> Result<Option<Event>, UpstreamError> {
        match &mut self.incoming {
            Incoming::Head { interim, scan } => {
                let limits = HeadLimits::default();
                let parsed = ResponseHead::resume(scan, &self.received, &self.method, &limits);
                let Some((head, length)) = parsed.map_err(|_| UpstreamError::Protocol)? else {
                    return Ok(None);
                };
                self.received.advance(length);
                if head.is_interim() {
                    *scan = HeadScan::default();
                    *interim += 1;
                    if *interim > MAX_INFORMATIONAL {
                        return Err(UpstreamError::Protocol);
                    }
                    return Ok(Some(Event::Interim(head)));
                }
                self.is_persistent = head.is_persistent;
                self.incoming = match head.body {
                    _ if head.status == StatusCode::SWITCHING_PROTOCOLS => Incoming::Ended,
                    BodyLength::None => Incoming::Complete(None),
                    BodyLength::Known(length) => Incoming::Known(length),
                    BodyLength::Chunked => Incoming::Chunked(Box::default()),
                    BodyLength::UntilClose => Incoming::UntilClose,
                };
                Ok(Some(Event::Head(head)))
            }
            Incoming::Known(left) => {
                if self.received.is_empty() {
                    return Ok(None);
                }
                let available = self.received.len();
                let take = usize::try_from(*left).map_or(available, |left| left.min(available));
                *left -= take as u64;
                if *left == 0 {
                    self.incoming = Incoming::Complete(None);
                }
                Ok(Some(Event::Data(take_data(&mut self.received, 0..take, take))))
            }
            Incoming::Chunked(decoder) => {
                let decoded =
                    decoder.decode(&self.received).map_err(|_| UpstreamError::Protocol)?;
                if decoder.is_finished() {
                    self.received.advance(decoded.consumed);
                    let trailers = decoder.take_trailers();
                    self.incoming = Incoming::Complete(Some(trailers).filter(|t| !t.is_empty()));
                    return self.parse();
                }
                let data = take_data(&mut self.received, decoded.data, decoded.consumed);
                Ok(Some(data).filter(|data| !data.is_empty()).map(Event::Data))
            }
            Incoming::UntilClose => {
                if self.received.is_empty() {
                    return Ok(None);
                }
                let all = self.received.len();
                Ok(Some(Event::Data(take_data(&mut self.received, 0..all, all))))
            }
            Incoming::Complete(trailers) => match trailers.take() {
                Some(trailers) => Ok(Some(Event::Trailers(trailers))),
                None => {
                    self.incoming = Incoming::Ended;
                    Ok(Some(Event::End))
                }
            },
            Incoming::Ended => Ok(Some(Event::End)),
        }
    }

    /// Reads once. A read that fills its buffer is followed by a larger one: a long body then takes
    /// an eighth of the reads, and its pieces are not copied.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read_bytes > READ_BYTES {
            self.received.reserve(self.read_bytes);
        }
        let read = read_buffer::poll_read(&mut self.connection.stream, &mut self.received, context);
        if let Poll::Ready(Ok(count)) = read {
            self.read_bytes = match count >= self.read_bytes {
                true => (self.read_bytes * 4).min(READ_BYTES_MAX),
                false => (self.read_bytes / 2).max(READ_BYTES),
            };
        }
        read
    }
}

/// Removes the first `consumed` bytes and returns `data`, a part of them. A short piece is copied,
/// so that the memory of `received` serves the next read of this thread.
fn take_data(received: &mut BytesMut, data: Range<usize>, consumed: usize) -> Bytes {
    if data.len() > COPY_MAX {
        let mut piece = received.split_to(consumed);
        piece.truncate(data.end);
        piece.advance(data.start);
        return piece.freeze();
    }
    let piece = Bytes::copy_from_slice(&received[data]);
    received.advance(consumed);
    read_buffer::release(received);
    piece
}
