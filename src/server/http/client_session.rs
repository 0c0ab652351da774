//! One request of a client and its response, over HTTP/1.1 or HTTP/2.
//!
//! The session reads the body and writes the response. It makes no decisions about their content.
//! Every error is a [`ClientFailure`].

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Response, StatusCode, Version};
use http1::RequestHead;
use pin_project_lite::pin_project;

use super::client_failure::ClientFailure;
use super::forwarded_head::ForwardedHead;
use super::http1_session::Http1Session;
use super::http2_session::Http2Session;
use super::min_body_rate::MinBodyRate;
use super::timer::Timer;
use crate::clock;

/// Serves requests.
pub trait Application: Send + Sync + 'static {
    fn serve(&self, session: &mut ClientSession) -> impl Future<Output = ()> + Send;
}

/// A client's request, whose head was read, and its response.
pub struct ClientSession {
    request: RequestHead,
    connection: ClientConnection,
    stream: ProtocolSession,
    has_body: bool,
    /// Status of the final response head if it was written.
    status: Option<StatusCode>,
    has_written_interim: bool,
    body_bytes_sent: usize,
    write_timeout: Duration,
    is_tunnel: bool,
    min_rate: MinBodyRate,
}

/// Time at which the client last accepted a part of a write.
#[derive(Debug, Default)]
pub struct WriteProgress {
    last: Option<(usize, Instant)>,
}

impl WriteProgress {
    /// Returns the time since which this number of bytes is unwritten.
    pub fn moved_at(&mut self, unwritten: usize) -> Instant {
        match self.last {
            Some((before, at)) if before == unwritten => at,
            _ => self.last.insert((unwritten, clock::now())).1,
        }
    }

    /// Counts progress in the other direction, which shows that the client is not idle.
    pub fn touch(&mut self) {
        if let Some((_, at)) = &mut self.last {
            *at = clock::now();
        }
    }
}

/// Properties of the client's connection.
#[derive(Clone, Copy, Debug)]
pub struct ClientConnection {
    pub peer: IpAddr,
    pub is_tls: bool,
}

/// The part of a session that depends on the protocol.
pub enum ProtocolSession {
    Http1(Http1Session),
    Http2(Box<Http2Session>),
}

pin_project! {
    /// Future of [`ClientSession::unless_closed`]. Not an async function, whose future would have
    /// room for `work` twice.
    pub struct UnlessClosed<'s, F> {
        stream: &'s mut ProtocolSession,
        #[pin]
        work: F,
    }
}

impl<F: Future> Future for UnlessClosed<'_, F> {
    type Output = Result<F::Output, ClientFailure>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.work.poll(context) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => this.stream.poll_closed(context).map(|()| Err(ClientFailure::Closed)),
        }
    }
}

impl ProtocolSession {
    /// Waits for `work` until the client disconnects.
    pub fn unless_closed<F: Future>(&mut self, work: F) -> UnlessClosed<'_, F> {
        UnlessClosed { stream: self, work }
    }

    fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            ProtocolSession::Http1(session) => session.poll_closed(context),
            ProtocolSession::Http2(session) => session.poll_closed(context),
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ClientFailure>> {
        match self {
            ProtocolSession::Http1(session) => session.poll_flush(context),
            ProtocolSession::Http2(session) => session.poll_flush(context),
        }
    }
}

impl ClientSession {
    pub fn http1(
        request: RequestHead,
        connection: ClientConnection,
        session: Http1Session,
    ) -> Self {
        let has_body = session.has_unread_body();
        Self::new(request, connection, ProtocolSession::Http1(session), has_body)
    }

    pub fn http2(
        request: RequestHead,
        connection: ClientConnection,
        session: Box<Http2Session>,
    ) -> Self {
        let has_body = session.has_unread_body();
        Self::new(request, connection, ProtocolSession::Http2(session), has_body)
    }

    fn new(
        request: RequestHead,
        connection: ClientConnection,
        stream: ProtocolSession,
        has_body: bool,
    ) -> Self {
        ClientSession {
            request,
            connection,
            stream,
            has_body,
            status: None,
            has_written_interim: false,
            body_bytes_sent: 0,
            write_timeout: Duration::from_secs(60),
            is_tunnel: false,
            min_rate: MinBodyRate::default(),
        }
    }

    /// Returns the HTTP/1.1 half, for the next request of the connection.
    pub fn into_http1(self) -> Option<Http1Session> {
        match self.stream {
            ProtocolSession::Http1(session) => Some(session),
            ProtocolSession::Http2(_) => None,
        }
    }

    pub fn request(&self) -> &RequestHead {
        &self.request
    }

    pub fn request_mut(&mut self) -> &mut RequestHead {
        &mut self.request
    }

    pub fn peer(&self) -> IpAddr {
        self.connection.peer
    }

    pub fn is_tls(&self) -> bool {
        self.connection.is_tls
    }

    pub fn is_http2(&self) -> bool {
        matches!(self.stream, ProtocolSession::Http2(_))
    }

    /// Whether the client supports informational responses, which HTTP/1.0 lacks (RFC 9110 section
    /// 15.2).
    pub fn supports_interim(&self) -> bool {
        self.request.version != Version::HTTP_10
    }

    /// Returns the status of the final response head if it was written.
    pub fn status_written(&self) -> Option<StatusCode> {
        self.status
    }

    /// Whether an informational response was written.
    pub fn has_written_interim(&self) -> bool {
        self.has_written_interim
    }

    /// Returns the number of bytes of the response body that were queued.
    pub fn body_bytes_sent(&self) -> usize {
        self.body_bytes_sent
    }

    /// Sets the maximum time for which the client may accept no byte of a response.
    pub fn set_write_timeout(&mut self, longest: Duration) {
        self.write_timeout = longest;
    }

    /// Ends the connection after this response.
    pub fn close_after(&mut self) {
        if let ProtocolSession::Http1(session) = &mut self.stream {
            session.close_after();
        }
    }

    /// Whether the request has a body, read or not.
    pub fn has_body(&self) -> bool {
        self.has_body
    }

    /// Reads the next piece of the request body; `None` at its end.
    ///
    /// # Errors
    ///
    /// The client disconnected, or the body is malformed or slower than [`MinBodyRate`] permits.
    pub async fn read_body(&mut self) -> Result<Option<Bytes>, ClientFailure> {
        poll_fn(|context| self.poll_body(context)).await
    }

    /// As [`ClientSession::read_body`].
    ///
    /// # Errors
    ///
    /// As [`ClientSession::read_body`].
    pub fn poll_body(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ClientFailure>> {
        let piece = ready!(match &mut self.stream {
            ProtocolSession::Http1(session) => session.poll_body(context),
            ProtocolSession::Http2(session) => session.poll_body(context),
        })?;
        if let Some(piece) = &piece
            && !self.is_tunnel
            && !self.min_rate.record(piece.len(), clock::now())
        {
            return Poll::Ready(Err(ClientFailure::TimedOut));
        }
        Poll::Ready(Ok(piece))
    }

    /// Ready when the client resets its stream or connection. A half-closed connection is not a
    /// disconnect.
    pub fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_closed(context)
    }

    /// Waits for `work` until the client disconnects.
    pub fn unless_closed<F: Future>(&mut self, work: F) -> UnlessClosed<'_, F> {
        self.stream.unless_closed(work)
    }

    /// Returns the timer of this session, for one wait at a time.
    pub fn timer(&mut self) -> &mut Timer {
        match &mut self.stream {
            ProtocolSession::Http1(session) => session.timer(),
            ProtocolSession::Http2(session) => session.timer(),
        }
    }

    /// Returns the request, and the protocol half to observe while a response is produced.
    pub fn split(&mut self) -> (&RequestHead, &mut ProtocolSession) {
        (&self.request, &mut self.stream)
    }

    /// Writes an informational response other than 101.
    ///
    /// # Errors
    ///
    /// The client disconnected or is too slow.
    pub async fn write_interim(&mut self, head: Response<()>) -> Result<(), ClientFailure> {
        self.has_written_interim = true;
        match &mut self.stream {
            ProtocolSession::Http1(session) => session.queue_interim(&head),
            ProtocolSession::Http2(session) => session.write_interim(head)?,
        }
        self.flush().await
    }

    /// Queues the final head. `is_end`: no body follows, and the head is written at once. Otherwise
    /// it is written with the first piece of the body, or by [`ClientSession::flush`].
    ///
    /// # Errors
    ///
    /// The client disconnected or is too slow.
    pub async fn write_head(
        &mut self,
        head: Response<()>,
        is_end: bool,
    ) -> Result<(), ClientFailure> {
        self.status = Some(head.status());
        match &mut self.stream {
            ProtocolSession::Http1(session) => {
                session.queue_head(&head, self.request.method == Method::HEAD);
                if !is_end {
                    return Ok(());
                }
                session.queue_end();
            }
            ProtocolSession::Http2(session) => return session.write_head(head, is_end),
        }
        self.flush().await
    }

    /// As [`ClientSession::write_head`] for a forwarded response.
    ///
    /// # Errors
    ///
    /// The client disconnected or is too slow.
    pub async fn write_forwarded_head(
        &mut self,
        head: ForwardedHead,
        is_end: bool,
    ) -> Result<(), ClientFailure> {
        self.status = Some(head.status);
        match &mut self.stream {
            ProtocolSession::Http1(session) => {
                session.queue_forwarded_head(&head, self.request.method == Method::HEAD);
                if !is_end {
                    return Ok(());
                }
                session.queue_end();
            }
            ProtocolSession::Http2(session) => {
                return session.write_head(head.into_response(), is_end);
            }
        }
        self.flush().await
    }

    /// Writes a piece of the body. `is_end`: it is the last.
    ///
    /// # Errors
    ///
    /// The client disconnected or is too slow.
    pub async fn write_body(&mut self, piece: Bytes, is_end: bool) -> Result<(), ClientFailure> {
        self.queue_body(piece, is_end);
        self.flush().await
    }

    /// Queues a piece of the body. Nothing may be queued after it until all is written. `is_end`:
    /// it is the last.
    pub fn queue_body(&mut self, piece: Bytes, is_end: bool) {
        self.body_bytes_sent += piece.len();
        match &mut self.stream {
            ProtocolSession::Http1(session) => {
                session.queue_body(piece);
                if is_end {
                    session.queue_end();
                }
            }
            ProtocolSession::Http2(session) => session.queue_body(piece, is_end),
        }
    }

    /// Writes the queue. Ends if the client accepts no byte for `server.write_timeout`.
    ///
    /// # Errors
    ///
    /// The client disconnected or is too slow.
    pub async fn flush(&mut self) -> Result<(), ClientFailure> {
        let mut progress = WriteProgress::default();
        poll_fn(|context| self.poll_flush(context, &mut progress)).await
    }

    /// As [`ClientSession::flush`]. `progress` is new for each flush.
    ///
    /// # Errors
    ///
    /// As [`ClientSession::flush`].
    pub fn poll_flush(
        &mut self,
        context: &mut Context<'_>,
        progress: &mut WriteProgress,
    ) -> Poll<Result<(), ClientFailure>> {
        if let Poll::Ready(flushed) = self.stream.poll_flush(context) {
            return Poll::Ready(flushed);
        }
        let unwritten = match &self.stream {
            ProtocolSession::Http1(session) => session.unwritten(),
            ProtocolSession::Http2(session) => session.unwritten(),
        };
        let deadline = progress.moved_at(unwritten) + self.write_timeout;
        self.timer().poll(context, deadline).map(|()| Err(ClientFailure::TimedOut))
    }

    /// Continues as a tunnel after a 101 response.
    pub fn begin_tunnel(&mut self) {
        self.is_tunnel = true;
        if let ProtocolSession::Http1(session) = &mut self.stream {
            session.begin_tunnel();
        }
    }

    /// Ends the gateway's sending direction of a tunnel. The client may continue to send.
    pub async fn end_sending(&mut self) {
        let deadline = clock::now() + self.write_timeout;
        poll_fn(|context| {
            if let ProtocolSession::Http1(session) = &mut self.stream
                && session.poll_end_sending(context).is_pending()
            {
                return session.timer().poll(context, deadline);
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Removes a queued head, so that another response can be sent. Returns whether no byte of a
    /// final response was written.
    pub fn retract_head(&mut self) -> bool {
        let is_possible = match &mut self.stream {
            ProtocolSession::Http1(session) => session.retract_head(),
            ProtocolSession::Http2(_) => self.status.is_none(),
        };
        if is_possible {
            self.status = None;
            self.body_bytes_sent = 0;
        }
        is_possible
    }

    /// Aborts the response.
    pub fn abort(&mut self) {
        match &mut self.stream {
            ProtocolSession::Http1(session) => session.abort(),
            ProtocolSession::Http2(session) => session.reset(h2::Reason::INTERNAL_ERROR),
        }
    }

    /// Refuses a request that was not processed, in a flood of them.
    pub fn refuse(&mut self) {
        match &mut self.stream {
            ProtocolSession::Http1(session) => session.abort(),
            // The client may repeat the request (RFC 9113 section 8.7).
            ProtocolSession::Http2(session) => session.reset(h2::Reason::REFUSED_STREAM),
        }
    }
}
