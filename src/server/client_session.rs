//! One request of a client and its response, the same for HTTP/1.1 and HTTP/2.
//!
//! The session reads the body and writes the response; it decides nothing about either. Every error
//! is a [`ClientFailure`].

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Response, StatusCode, Version};
use http1::RequestHead;

use super::disconnect::ClientFailure;
use super::http1_session::Http1Session;
use super::http2_session::Http2Session;

/// Serves requests.
#[async_trait]
pub trait Application: Send + Sync + 'static {
    async fn serve(&self, session: &mut ClientSession);
}

/// A client's request, whose head was read, and the response to it.
pub struct ClientSession {
    request: RequestHead,
    connection: ClientConnection,
    stream: StreamSide,
    has_body: bool,
    /// Status of the final response head, once it was written.
    status: Option<StatusCode>,
    has_written_interim: bool,
    body_bytes_sent: usize,
    write_timeout: Duration,
}

/// The client's connection.
#[derive(Clone, Copy, Debug)]
pub struct ClientConnection {
    pub peer: IpAddr,
    pub is_tls: bool,
}

impl ClientConnection {
    pub fn new(stream: &pingora_core::protocols::Stream, is_tls: bool) -> Self {
        let digest = stream.get_socket_digest();
        let peer = digest.as_ref().and_then(|digest| Some(digest.peer_addr()?.as_inet()?.ip()));
        ClientConnection { peer: peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), is_tls }
    }
}

/// The part of a session that is not the request.
pub enum StreamSide {
    Http1(Box<Http1Session>),
    Http2(Box<Http2Session>),
}

impl StreamSide {
    /// As [`ClientSession::left`].
    pub async fn left(&mut self) {
        match self {
            StreamSide::Http1(session) => session.left().await,
            StreamSide::Http2(session) => session.left().await,
        }
    }
}

impl ClientSession {
    pub fn http1(request: RequestHead, connection: ClientConnection, session: Box<Http1Session>) -> Self {
        let has_body = session.has_unread_body();
        Self::new(request, connection, StreamSide::Http1(session), has_body)
    }

    pub fn http2(request: RequestHead, connection: ClientConnection, session: Box<Http2Session>) -> Self {
        let has_body = session.has_unread_body();
        Self::new(request, connection, StreamSide::Http2(session), has_body)
    }

    fn new(request: RequestHead, connection: ClientConnection, stream: StreamSide, has_body: bool) -> Self {
        ClientSession {
            request,
            connection,
            stream,
            has_body,
            status: None,
            has_written_interim: false,
            body_bytes_sent: 0,
            write_timeout: Duration::from_secs(60),
        }
    }

    /// The connection of HTTP/1.1, for its next request.
    pub fn into_http1(self) -> Option<Box<Http1Session>> {
        match self.stream {
            StreamSide::Http1(session) => Some(session),
            StreamSide::Http2(_) => None,
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
        matches!(self.stream, StreamSide::Http2(_))
    }

    /// Whether the client can receive informational responses: not HTTP/1.0 (RFC 9110 section 15.2).
    pub fn knows_interim(&self) -> bool {
        self.request.version != Version::HTTP_10
    }

    /// Status of the final response head, if it was written.
    pub fn status_written(&self) -> Option<StatusCode> {
        self.status
    }

    /// Whether an informational response was written.
    pub fn has_written_interim(&self) -> bool {
        self.has_written_interim
    }

    /// Bytes of the response body that were given to the connection.
    pub fn body_bytes_sent(&self) -> usize {
        self.body_bytes_sent
    }

    /// Time for which the client may accept nothing of a response.
    pub fn set_write_timeout(&mut self, longest: Duration) {
        self.write_timeout = longest;
    }

    /// Ends the connection after this response.
    pub fn close_after(&mut self) {
        if let StreamSide::Http1(session) = &mut self.stream {
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
    /// The client left, or the body is malformed.
    pub async fn read_body(&mut self) -> Result<Option<Bytes>, ClientFailure> {
        match &mut self.stream {
            StreamSide::Http1(session) => session.read_body().await,
            StreamSide::Http2(session) => session.read_body().await,
        }
    }

    /// Completes when the client resets its stream or connection. The end of its sending alone is not
    /// a disconnect.
    pub async fn left(&mut self) {
        self.stream.left().await;
    }

    /// The request, and the client's side to watch while a response is made.
    pub fn split(&mut self) -> (&RequestHead, &mut StreamSide) {
        (&self.request, &mut self.stream)
    }

    /// Writes an informational response other than 101.
    ///
    /// # Errors
    ///
    /// The client left or is too slow.
    pub async fn write_interim(&mut self, head: Response<()>) -> Result<(), ClientFailure> {
        self.has_written_interim = true;
        match &mut self.stream {
            StreamSide::Http1(session) => session.write_interim(&head, self.write_timeout).await,
            StreamSide::Http2(session) => session.write_interim(head),
        }
    }

    /// Queues the final head. With `is_end` no body follows, and it is written at once; otherwise
    /// with the first piece of the body, or by [`ClientSession::flush`].
    ///
    /// # Errors
    ///
    /// The client left or is too slow.
    pub async fn write_head(&mut self, head: Response<()>, is_end: bool) -> Result<(), ClientFailure> {
        self.status = Some(head.status());
        match &mut self.stream {
            StreamSide::Http1(session) => {
                session.queue_head(&head, self.request.method == Method::HEAD);
                if is_end { session.finish(self.write_timeout).await } else { Ok(()) }
            }
            StreamSide::Http2(session) => session.write_head(head, is_end),
        }
    }

    /// Writes a piece of the body. With `is_end` it is the last one.
    ///
    /// # Errors
    ///
    /// The client left or is too slow.
    pub async fn write_body(&mut self, piece: Bytes, is_end: bool) -> Result<(), ClientFailure> {
        self.body_bytes_sent += piece.len();
        match &mut self.stream {
            StreamSide::Http1(session) => {
                session.queue_body(piece);
                if is_end { session.finish(self.write_timeout).await } else { session.flush(self.write_timeout).await }
            }
            StreamSide::Http2(session) => session.write_body(piece, is_end, self.write_timeout).await,
        }
    }

    /// Writes what is queued.
    ///
    /// # Errors
    ///
    /// The client left or is too slow.
    pub async fn flush(&mut self) -> Result<(), ClientFailure> {
        match &mut self.stream {
            StreamSide::Http1(session) => session.flush(self.write_timeout).await,
            StreamSide::Http2(_) => Ok(()),
        }
    }

    /// Continues as a tunnel behind a 101 response: what the client sends is data until it ends.
    pub fn begin_tunnel(&mut self) {
        if let StreamSide::Http1(session) = &mut self.stream {
            session.begin_tunnel();
        }
    }

    /// Takes back a head of which nothing was written, so that another response can be given. Returns
    /// whether no byte of a final response was written.
    pub fn retract_head(&mut self) -> bool {
        let is_possible = match &mut self.stream {
            StreamSide::Http1(session) => session.retract_head(),
            StreamSide::Http2(_) => self.status.is_none(),
        };
        if is_possible {
            self.status = None;
            self.body_bytes_sent = 0;
        }
        is_possible
    }

    /// Ends the exchange without a whole response.
    pub fn abort(&mut self) {
        match &mut self.stream {
            StreamSide::Http1(session) => session.abort(),
            StreamSide::Http2(session) => session.reset(h2::Reason::INTERNAL_ERROR),
        }
    }

    /// Refuses a request that was not processed, in a flood of them.
    pub fn refuse(&mut self) {
        match &mut self.stream {
            StreamSide::Http1(session) => session.abort(),
            // The client may send it again (RFC 9113 section 8.7).
            StreamSide::Http2(session) => session.reset(h2::Reason::REFUSED_STREAM),
        }
    }
}
