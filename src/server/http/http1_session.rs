//! HTTP/1.1 half of a session: request body, response head and response body.

use std::future::Future;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Response, StatusCode};
use http1::{BodyLength, ChunkedDecoder};
use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::client_failure::ClientFailure;
use super::forwarded_head::ForwardedHead;
use super::head_writer::{ConnectionOption, HEAD_BYTES, HeadWriter};
use super::timer::Timer;
use crate::clock;

/// Maximum number of bytes behind a request that are read before its response. Further bytes wait
/// in the kernel.
pub const MAX_BEHIND: usize = 16 << 10;

/// Number of bytes of a body read at once.
const READ_BYTES: usize = 16 << 10;

/// Length of the queue above which a further piece is not copied into it.
const COPY_MAX: usize = 16 << 10;

/// Interval at which a half-closed connection is checked for a reset: a tenth of the second within
/// which an exchange ends.
const RESET_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// State of a TCP connection that was reset or is closed on both sides (`TCP_CLOSE` of Linux).
const TCP_CLOSED: u8 = 7;

/// One request of a connection.
pub struct Http1Session {
    stream: Stream,
    /// Received bytes behind the head: body, next request.
    received: BytesMut,
    body: RequestBody,
    /// Bytes of the response that wait to be written.
    queue: Vec<u8>,
    /// Number of bytes of `queue` that were written.
    written: usize,
    /// Piece of the body that follows `queue`.
    piece: Bytes,
    response: ResponseBody,
    keeps_alive: bool,
    asks_for_upgrade: bool,
    /// The client has ended its sending direction.
    is_half_closed: bool,
    is_aborted: bool,
    /// Bytes of the final response were written.
    has_begun: bool,
    /// The final head was queued.
    is_final: bool,
    /// Timer of the next check of a half-closed connection.
    reset_check: Option<Pin<Box<Sleep>>>,
    timer: Timer,
}

/// Framing of a request: where it ends, and whether another may follow.
#[derive(Clone, Copy, Debug)]
pub struct RequestFraming {
    pub body: BodyLength,
    pub keeps_alive: bool,
    /// The request asks for a protocol switch. Bytes that the client sends before it has the
    /// response may be of the other protocol (RFC 9110 section 7.8) and are never parsed as a
    /// request.
    pub asks_for_upgrade: bool,
}

enum RequestBody {
    Length(u64),
    Chunked(Box<ChunkedDecoder>),
    Tunnel,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResponseBody {
    /// No body follows, or all of it was queued.
    Done,
    Length,
    Chunked,
    /// The body ends with the connection.
    UntilClose,
}

/// What happens to a connection after a request.
pub enum AfterRequest {
    /// It serves the next request, of which `received` has arrived.
    KeepAlive {
        stream: Stream,
        received: BytesMut,
        timer: Timer,
    },
    /// It is closed with unread input.
    CloseUnread(Stream),
    Close(Stream),
    /// It is dropped in the middle of a response.
    Abort,
}

impl Http1Session {
    /// `received`: the bytes behind the head. `timer`: the timer of the connection.
    pub fn new(stream: Stream, received: BytesMut, framing: RequestFraming, timer: Timer) -> Self {
        let RequestFraming { body, keeps_alive, asks_for_upgrade } = framing;
        let body = match body {
            // Requests are not delimited by the end of their connection.
            BodyLength::None | BodyLength::UntilClose => RequestBody::Done,
            BodyLength::Known(length) => RequestBody::Length(length),
            BodyLength::Chunked => RequestBody::Chunked(Box::new(ChunkedDecoder::strict())),
        };
        Http1Session {
            stream,
            received,
            body,
            queue: Vec::new(),
            written: 0,
            piece: Bytes::new(),
            response: ResponseBody::UntilClose,
            keeps_alive,
            asks_for_upgrade,
            is_half_closed: false,
            is_aborted: false,
            has_begun: false,
            is_final: false,
            reset_check: None,
            timer,
        }
    }

    /// Ends the request.
    pub fn finish_request(self) -> AfterRequest {
        if self.is_aborted {
            return AfterRequest::Abort;
        }
        let is_body_read = matches!(self.body, RequestBody::Done);
        if self.keeps_alive && is_body_read && self.response == ResponseBody::Done {
            return AfterRequest::KeepAlive {
                stream: self.stream,
                received: self.received,
                timer: self.timer,
            };
        }
        if is_body_read && self.received.is_empty() {
            AfterRequest::Close(self.stream)
        } else {
            AfterRequest::CloseUnread(self.stream)
        }
    }

    pub fn close_after(&mut self) {
        self.keeps_alive = false;
    }

    pub fn abort(&mut self) {
        self.keeps_alive = false;
        self.is_aborted = true;
    }

    /// Continues as a tunnel after a 101 response. The connection ends with the tunnel.
    pub fn begin_tunnel(&mut self) {
        self.body = RequestBody::Tunnel;
        self.response = ResponseBody::UntilClose;
        self.keeps_alive = false;
    }

    /// Returns the timer of the connection.
    pub fn timer(&mut self) -> &mut Timer {
        &mut self.timer
    }

    pub fn has_unread_body(&self) -> bool {
        !matches!(self.body, RequestBody::Done)
    }

    pub fn poll_body(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ClientFailure>> {
        loop {
            if let Some(read) = self.take_received()? {
                return Poll::Ready(Ok(read));
            }
            self.received.reserve(READ_BYTES);
            let reading = pin!(self.stream.read_buf(&mut self.received));
            match ready!(reading.poll(context)) {
                Ok(1..) => {}
                Ok(0) if matches!(self.body, RequestBody::Tunnel) => {
                    self.body = RequestBody::Done;
                    return Poll::Ready(Ok(None));
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(ClientFailure::Closed)),
            }
        }
    }

    /// Takes the next piece of the body from the received bytes. `None`: more bytes are needed;
    /// `Some(None)`: the body has ended.
    fn take_received(&mut self) -> Result<Option<Option<Bytes>>, ClientFailure> {
        match &mut self.body {
            RequestBody::Done => return Ok(Some(None)),
            _ if self.received.is_empty() => return Ok(None),
            RequestBody::Tunnel => return Ok(Some(Some(self.received.split().freeze()))),
            RequestBody::Length(left) => {
                let available = self.received.len();
                let part = usize::try_from(*left).map_or(available, |left| left.min(available));
                *left -= part as u64;
                if *left == 0 {
                    self.body = RequestBody::Done;
                }
                return Ok(Some(Some(self.received.split_to(part).freeze())));
            }
            RequestBody::Chunked(decoder) => {
                let decoded =
                    decoder.decode(&self.received).map_err(|_| ClientFailure::Malformed)?;
                let mut piece = self.received.split_to(decoded.consumed);
                if !decoded.data.is_empty() {
                    piece.truncate(decoded.data.end);
                    piece.advance(decoded.data.start);
                    return Ok(Some(Some(piece.freeze())));
                }
                if !decoder.is_finished() {
                    return Ok(None);
                }
            }
        }
        self.body = RequestBody::Done;
        Ok(Some(None))
    }

    pub fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_half_closed && ready!(self.poll_behind(context)).is_err() {
            return Poll::Ready(());
        }
        // The client ended its sending direction, or sent so much that no more is read.
        let check = self.reset_check.get_or_insert_with(|| Box::pin(sleep(Duration::ZERO)));
        while check.as_mut().poll(context).is_ready() {
            let digest = self.stream.get_socket_digest();
            let state =
                digest.as_ref().and_then(|digest| digest.tcp_info()).map(|info| info.tcpi_state);
            if state == Some(TCP_CLOSED) {
                return Poll::Ready(());
            }
            check.as_mut().reset((clock::now() + RESET_CHECK_INTERVAL).into());
        }
        Poll::Pending
    }

    /// Receives bytes behind the request, until the client ends its sending direction or
    /// [`MAX_BEHIND`] is reached.
    fn poll_behind(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // Usually nothing has arrived: zeroing the buffer would cost more than the poll.
        let mut piece = [const { MaybeUninit::uninit() }; 4096];
        while self.received.len() < MAX_BEHIND {
            let mut into = ReadBuf::uninit(&mut piece);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut into))?;
            if into.filled().is_empty() {
                self.is_half_closed = true;
                break;
            }
            self.received.extend_from_slice(into.filled());
        }
        Poll::Ready(Ok(()))
    }

    /// Queues an informational head.
    pub fn queue_interim(&mut self, response: &Response<()>) {
        let mut head = HeadWriter::begin(&mut self.queue, response.status());
        response.headers().iter().for_each(|(name, value)| head.field(name, value.as_bytes()));
        head.finish_without_date(ConnectionOption::Unstated);
    }

    /// Ends the gateway's sending direction. The client may continue to send.
    pub fn poll_end_sending(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // It fails only for a closed connection, which the next read reports.
        Pin::new(&mut self.stream).poll_shutdown(context).map(drop)
    }

    /// Queues a head and decides the framing of its body. `is_head_request`: the request method is
    /// HEAD.
    pub fn queue_head(&mut self, response: &Response<()>, is_head_request: bool) {
        let (status, fields) = (response.status(), response.headers());
        let framing = if fields.contains_key(TRANSFER_ENCODING) {
            ResponseBody::Chunked
        } else if fields.contains_key(CONTENT_LENGTH) {
            ResponseBody::Length
        } else {
            ResponseBody::UntilClose
        };
        self.begin_response(status, framing, is_head_request);
        let mut head = HeadWriter::begin(&mut self.queue, status);
        fields.iter().for_each(|(name, value)| head.field(name, value.as_bytes()));
        if status == StatusCode::SWITCHING_PROTOCOLS {
            // `Connection: upgrade` is among the fields.
            head.finish_without_date(ConnectionOption::Unstated);
        } else {
            head.finish(ConnectionOption::for_final(self.keeps_alive));
        }
    }

    /// As [`Http1Session::queue_head`] for a forwarded response.
    pub fn queue_forwarded_head(&mut self, forwarded: &ForwardedHead, is_head_request: bool) {
        let framing = if forwarded.is_chunked {
            ResponseBody::Chunked
        } else if forwarded.has_length() {
            ResponseBody::Length
        } else {
            ResponseBody::UntilClose
        };
        self.begin_response(forwarded.status, framing, is_head_request);
        // A short body is copied behind the head, and both leave in one write.
        let body_bytes = if forwarded.body_bytes <= COPY_MAX { forwarded.body_bytes } else { 0 };
        self.queue.reserve(HEAD_BYTES + body_bytes);
        let mut head = HeadWriter::begin(&mut self.queue, forwarded.status);
        forwarded.write_fields(&mut head);
        head.finish(ConnectionOption::for_final(self.keeps_alive));
    }

    /// Decides the framing of the body of a head that is about to be queued.
    fn begin_response(&mut self, status: StatusCode, framing: ResponseBody, is_head_request: bool) {
        self.is_final = true;
        let has_no_body = is_head_request
            || matches!(
                status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::SWITCHING_PROTOCOLS
            );
        self.response = if has_no_body { ResponseBody::Done } else { framing };
        let is_switched =
            self.asks_for_upgrade && (self.has_unread_body() || !self.received.is_empty());
        self.keeps_alive &= self.response != ResponseBody::UntilClose && !is_switched;
    }

    /// Removes a queued head. Returns whether no byte of it was written.
    pub fn retract_head(&mut self) -> bool {
        if self.has_begun {
            return false;
        }
        self.queue.clear();
        self.written = 0;
        self.piece.clear();
        self.response = ResponseBody::UntilClose;
        true
    }

    /// Queues a piece of the body. Nothing may be queued after it until all is written.
    pub fn queue_body(&mut self, piece: Bytes) {
        debug_assert!(self.piece.is_empty(), "the piece before it is written");
        if piece.is_empty() || self.response == ResponseBody::Done {
            return;
        }
        let is_chunked = self.response == ResponseBody::Chunked;
        if is_chunked {
            http1::write_chunk_head(&mut self.queue, piece.len());
        }
        if is_chunked || self.queue.len() + piece.len() <= COPY_MAX {
            self.queue.extend_from_slice(&piece);
        } else {
            self.piece = piece;
        }
        if is_chunked {
            self.queue.extend_from_slice(b"\r\n");
        }
    }

    /// Queues the end of the response.
    pub fn queue_end(&mut self) {
        if self.response == ResponseBody::Chunked {
            self.queue.extend_from_slice(http1::LAST_CHUNK);
        }
        self.response = ResponseBody::Done;
    }

    /// Returns the number of queued bytes that are not written.
    pub fn unwritten(&self) -> usize {
        self.queue.len() - self.written + self.piece.len()
    }

    /// Writes the queue. Ready when all of it is written.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ClientFailure>> {
        while self.unwritten() > 0 {
            let stream = Pin::new(&mut self.stream);
            let head = &self.queue[self.written..];
            let written = if head.is_empty() {
                ready!(stream.poll_write(context, &self.piece))
            } else if self.piece.is_empty() {
                ready!(stream.poll_write(context, head))
            } else {
                let slices = [std::io::IoSlice::new(head), std::io::IoSlice::new(&self.piece)];
                ready!(stream.poll_write_vectored(context, &slices))
            };
            let Ok(count @ 1..) = written else { return Poll::Ready(Err(ClientFailure::Closed)) };
            self.has_begun |= self.is_final;
            let of_queue = count.min(self.queue.len() - self.written);
            self.written += of_queue;
            self.piece.advance(count - of_queue);
            if self.written == self.queue.len() {
                self.queue.clear();
                self.written = 0;
            }
        }
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        Poll::Ready(flushed.map_err(|_| ClientFailure::Closed))
    }
}
