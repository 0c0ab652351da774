//! HTTP/2 half of a session: one stream of the `h2` library.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, DATE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, Response};
use pingora_core::protocols::http::date::get_cached_date;

use super::active_requests::ActiveRequest;
use super::client_failure::ClientFailure;
use super::timer::Timer;

/// Connection-specific fields of HTTP/1.1, which HTTP/2 forbids (RFC 9113 section 8.2.2).
const CONNECTION_FIELDS: [HeaderName; 3] = [CONNECTION, TRANSFER_ENCODING, UPGRADE];

/// One stream.
pub struct Http2Session {
    body: RecvStream,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
    active: ActiveRequest,
    /// Piece of the body that the client's window does not permit yet.
    queued: Bytes,
    /// The response ends after `queued`.
    is_end_queued: bool,
    timer: Timer,
}

impl Http2Session {
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>, active: ActiveRequest) -> Self {
        Http2Session {
            body,
            respond,
            send: None,
            active,
            queued: Bytes::new(),
            is_end_queued: false,
            timer: Timer::default(),
        }
    }

    /// Creates the session of a stream whose response head was written.
    pub fn with_sent_head(
        body: RecvStream,
        respond: SendResponse<Bytes>,
        send: SendStream<Bytes>,
        active: ActiveRequest,
    ) -> Self {
        Http2Session { send: Some(send), ..Http2Session::new(body, respond, active) }
    }

    pub fn has_unread_body(&self) -> bool {
        !self.body.is_end_stream()
    }

    pub fn poll_body(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ClientFailure>> {
        let Some(piece) = ready!(self.body.poll_data(context)) else {
            return Poll::Ready(Ok(None));
        };
        let piece = piece.map_err(|error| classify(&error))?;
        // Fails only for more bytes than were received.
        let _ = self.body.flow_control().release_capacity(piece.len());
        Poll::Ready(Ok(Some(piece)))
    }

    pub fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.send {
            Some(send) => send.poll_reset(context),
            None => self.respond.poll_reset(context),
        };
        reset.map(drop)
    }

    pub fn write_interim(&mut self, head: Response<()>) -> Result<(), ClientFailure> {
        self.respond.send_informational(http2_head(head, false)).map_err(|error| classify(&error))
    }

    pub fn write_head(&mut self, head: Response<()>, is_end: bool) -> Result<(), ClientFailure> {
        let sent = self.respond.send_response(http2_head(head, true), is_end);
        self.send = Some(sent.map_err(|error| classify(&error))?);
        Ok(())
    }

    /// Queues a piece of the body. Nothing may be queued after it until all is written.
    pub fn queue_body(&mut self, piece: Bytes, is_end: bool) {
        debug_assert!(self.queued.is_empty(), "the piece before it is written");
        self.queued = piece;
        self.is_end_queued = is_end;
    }

    /// Returns the number of queued bytes that h2 has not accepted.
    pub fn unwritten(&self) -> usize {
        self.queued.len()
    }

    /// Passes the queue to h2 as the client's window permits. Ready when all of it is passed.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ClientFailure>> {
        if self.queued.is_empty() && !self.is_end_queued {
            return Poll::Ready(Ok(()));
        }
        let Some(send) = &mut self.send else { return Poll::Ready(Err(ClientFailure::Closed)) };
        while !self.queued.is_empty() {
            send.reserve_capacity(self.queued.len());
            let capacity = match send.capacity() {
                0 => match ready!(send.poll_capacity(context)) {
                    Some(Ok(capacity)) => capacity,
                    _ if self.active.is_stalled() => {
                        return Poll::Ready(Err(ClientFailure::TimedOut));
                    }
                    _ => return Poll::Ready(Err(ClientFailure::Closed)),
                },
                capacity => capacity,
            };
            let part = self.queued.split_to(capacity.min(self.queued.len()));
            let is_last = self.is_end_queued && self.queued.is_empty();
            send.send_data(part, is_last).map_err(|error| classify(&error))?;
            if is_last {
                self.is_end_queued = false;
                return Poll::Ready(Ok(()));
            }
        }
        if std::mem::take(&mut self.is_end_queued) {
            send.send_data(Bytes::new(), true).map_err(|error| classify(&error))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Returns the timer of the stream.
    pub fn timer(&mut self) -> &mut Timer {
        &mut self.timer
    }

    pub fn reset(&mut self, reason: Reason) {
        match &mut self.send {
            Some(send) => send.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}

/// Converts a response head to HTTP/2.
fn http2_head(mut response: Response<()>, is_final: bool) -> Response<()> {
    let headers = response.headers_mut();
    for name in CONNECTION_FIELDS {
        headers.remove(name);
    }
    if is_final && !headers.contains_key(DATE) {
        headers.insert(DATE, get_cached_date());
    }
    response
}

fn classify(error: &h2::Error) -> ClientFailure {
    // A reset by h2 itself: the body is longer or shorter than announced.
    if error.is_reset() && !error.is_remote() {
        ClientFailure::Malformed
    } else {
        ClientFailure::Closed
    }
}
