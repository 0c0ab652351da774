//! The HTTP/2 side of a session: one stream of the `h2` library.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, DATE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, Response};
use pingora_core::protocols::http::date::get_cached_date;
use tokio::time::timeout;

use super::disconnect::ClientFailure;
use super::http2::ActiveRequest;

/// Fields of HTTP/1.1 connections, which HTTP/2 does not have (RFC 9113 section 8.2.2).
const OF_A_CONNECTION: [HeaderName; 3] = [CONNECTION, TRANSFER_ENCODING, UPGRADE];

/// One stream.
pub struct Http2Session {
    body: RecvStream,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
    active: ActiveRequest,
}

impl Http2Session {
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>, active: ActiveRequest) -> Self {
        Http2Session { body, respond, send: None, active }
    }

    pub fn has_unread_body(&self) -> bool {
        !self.body.is_end_stream()
    }

    pub async fn read_body(&mut self) -> Result<Option<Bytes>, ClientFailure> {
        let Some(piece) = self.body.data().await else { return Ok(None) };
        let piece = piece.map_err(|error| classify(&error))?;
        // Fails only for more than was received.
        let _ = self.body.flow_control().release_capacity(piece.len());
        Ok(Some(piece))
    }

    pub async fn left(&mut self) {
        let _ = match &mut self.send {
            Some(send) => poll_fn(|context| send.poll_reset(context)).await,
            None => poll_fn(|context| self.respond.poll_reset(context)).await,
        };
    }

    pub fn write_interim(&mut self, head: Response<()>) -> Result<(), ClientFailure> {
        self.respond.send_informational(response(head, false)).map_err(|error| classify(&error))
    }

    pub fn write_head(&mut self, head: Response<()>, is_end: bool) -> Result<(), ClientFailure> {
        let sent = self.respond.send_response(response(head, true), is_end);
        self.send = Some(sent.map_err(|error| classify(&error))?);
        Ok(())
    }

    /// Writes a piece as the client's window permits; each part without progress may take `longest`.
    pub async fn write_body(&mut self, mut piece: Bytes, is_end: bool, longest: Duration) -> Result<(), ClientFailure> {
        let Some(send) = &mut self.send else { return Err(ClientFailure::Closed) };
        while !piece.is_empty() {
            send.reserve_capacity(piece.len());
            let capacity = match send.capacity() {
                0 => {
                    let waiting = timeout(longest, poll_fn(|context| send.poll_capacity(context)));
                    match waiting.await {
                        Ok(Some(Ok(capacity))) => capacity,
                        Ok(_) if self.active.is_stalled() => return Err(ClientFailure::TimedOut),
                        Ok(_) => return Err(ClientFailure::Closed),
                        Err(_) => return Err(ClientFailure::TimedOut),
                    }
                }
                capacity => capacity,
            };
            let part = piece.split_to(capacity.min(piece.len()));
            let is_last = is_end && piece.is_empty();
            send.send_data(part, is_last).map_err(|error| classify(&error))?;
            if is_last {
                return Ok(());
            }
        }
        if is_end {
            send.send_data(Bytes::new(), true).map_err(|error| classify(&error))?;
        }
        Ok(())
    }

    pub fn reset(&mut self, reason: Reason) {
        match &mut self.send {
            Some(send) => send.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}

/// The head as HTTP/2 has it.
fn response(mut response: Response<()>, is_final: bool) -> Response<()> {
    let headers = response.headers_mut();
    for name in OF_A_CONNECTION {
        headers.remove(name);
    }
    if is_final && !headers.contains_key(DATE) {
        headers.insert(DATE, get_cached_date());
    }
    response
}

fn classify(error: &h2::Error) -> ClientFailure {
    // Detected by the library: the body is longer or shorter than announced.
    if error.is_reset() && !error.is_remote() { ClientFailure::Malformed } else { ClientFailure::Closed }
}
