//! Connections of clients: admission, TLS, and the reading of request heads.
//!
//! A head is read under one deadline and one size limit, and refused before any session exists if
//! it is malformed. A request that passes becomes a [`ClientSession`].

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use bytes::{Buf, BytesMut};
use http1::{
    BodyLength, ChunkedDecoder, FieldSlots, HeadScan, RequestHead, RequestHeadRef, find_request_end,
};
use pingora_core::protocols::{ALPN, Stream};
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{timeout, timeout_at};

use super::client_session::{Application, ClientConnection, ClientSession};
use super::client_stream::ClientStream;
use super::fast_path::{FastPath, Outcome};
use super::http1_session::{AfterRequest, Http1Session, RequestFraming};
use super::http2_connection::{self, Times};
use super::http2_fast_path::Http2FastPath;
use super::http2_stream::Http2Io;
use super::keepalive_timer::KeepaliveTimer;
use super::linger::{LINGER, close_unread};
use super::proxy_header::{AcceptedConnection, HeaderOutcome};
use super::request_head::head_refusal;
use super::timer::Timer;
use crate::api::{ApiError, NameRequestHead, Refusal};
use crate::clock;
use crate::read_buffer::{self, READ_BYTES};
use crate::server::admission::{ConnectionCounts, ConnectionPermit, Limit, OpenConnection};
use crate::server::descriptors::BurstLog;
use crate::server::listener_kind::ListenerKind;
use crate::server::state::{ActiveState, Limits, RequestState};
use crate::server::tls::ListenerTls;

/// The client connection preface of HTTP/2 (RFC 9113 section 3.4).
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Last bytes of a connection that agreed on HTTP/2 and does not begin with the preface: empty
/// SETTINGS, and GOAWAY with PROTOCOL_ERROR (RFC 9113 sections 3.4 and 6.8).
const H2_PROTOCOL_ERROR: &[u8] = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01";

/// Maximum number of connections over a limit that get a response at a time, unless few descriptors
/// are left ([`Division`]). Further ones are closed without a response.
///
/// [`Division`]: crate::server::descriptors::Division
const MAX_REFUSALS: usize = 256;

/// Maximum number of connections of the admin listener: a few scrapers and operators.
const MAX_ADMIN_CONNECTIONS: usize = 256;

/// The connections of one kind of listener, in front of the application that serves their requests.
pub struct ConnectionHandler<A> {
    app: Arc<A>,
    pub(super) active: Arc<ActiveState>,
    pub(super) kind: ListenerKind,
    /// Connections that are being refused.
    refusals: Arc<ConnectionCounts>,
    /// Log of refusals because few descriptors are left.
    shortages: BurstLog,
    /// Log of refused PROXY headers.
    proxy_headers: BurstLog,
}

/// Outcome of reading one head.
enum HeadOutcome {
    /// A complete head of this length. Further bytes may follow it in the buffer.
    Http1(usize),
    /// The preface of HTTP/2.
    Http2,
    Refused(ApiError),
    /// A part of a head. It is recorded, and the connection closes without a response.
    TimedOut,
    /// The client closed or was idle for too long. No response is sent.
    Closed,
}

/// What happens to an accepted connection.
pub enum AdmitDecision {
    Serve(OpenConnection),
    Refuse(OpenConnection),
}

impl<A: Application> ConnectionHandler<A> {
    pub fn new(app: A, active: Arc<ActiveState>, kind: ListenerKind) -> Self {
        ConnectionHandler {
            app: Arc::new(app),
            active,
            kind,
            refusals: Arc::default(),
            shortages: BurstLog::default(),
            proxy_headers: BurstLog::default(),
        }
    }

    /// Decides on a connection with this descriptor. `None`: it is closed without a response.
    ///
    /// The decision precedes the task of the connection: in a burst, tasks start later than further
    /// connections are accepted.
    pub fn admit(&self, descriptor: RawFd) -> Option<AdmitDecision> {
        let state = self.active.load();
        let limits = state.limits;
        let max_connections = match self.kind {
            ListenerKind::Public => {
                if usize::try_from(descriptor)
                    .is_ok_and(|number| number >= limits.descriptors.clients)
                {
                    return self.count_refusal(Limit::Descriptors).map(AdmitDecision::Refuse);
                }
                limits.max_connections
            }
            ListenerKind::Admin => MAX_ADMIN_CONNECTIONS,
        };
        match OpenConnection::try_new(
            state.process.admission.connections_of(self.kind),
            max_connections,
        ) {
            Some(counted) => Some(AdmitDecision::Serve(counted)),
            None => self.count_refusal(Limit::Connections).map(AdmitDecision::Refuse),
        }
    }

    /// Counts a connection over a limit. `None`: too many are being refused, so that this one is
    /// closed without a response.
    fn count_refusal(&self, limit: Limit) -> Option<OpenConnection> {
        let state = self.active.load();
        if self.kind == ListenerKind::Public {
            state.process.metrics.count_over_limit(limit.as_str());
            state.process.admission.record_refused_connection(limit);
        }
        if limit == Limit::Descriptors
            && let Some(refused) = self.shortages.record(clock::now())
        {
            tracing::warn!(refused, "refused connections because few file descriptors are left");
        }
        // A count apart from the served connections, so that a flood of refusals keeps no client
        // out.
        OpenConnection::try_new(&self.refusals, MAX_REFUSALS.min(state.limits.descriptors.refusals))
    }

    /// Takes a permit within the share of the client's address, if the address has a share.
    fn address_permit(&self, client: IpAddr) -> Result<Option<ConnectionPermit>, Limit> {
        if self.kind == ListenerKind::Admin {
            return Ok(None);
        }
        let state = self.active.load();
        let Some(address) = state.limited_address(client) else { return Ok(None) };
        state.process.admission.connection(address, state.limits.address_connections).map(Some)
    }

    /// Reads the PROXY header of a listed peer. `None`: the connection has ended.
    async fn read_proxy_header(
        &self,
        mut connection: AcceptedConnection,
        is_tls: bool,
        longest: Duration,
    ) -> Option<AcceptedConnection> {
        let keepalive = KeepaliveTimer::new(self.active.process.lifecycle.clone());
        match connection.read_proxy_header(keepalive, longest).await {
            HeaderOutcome::Complete => return Some(connection),
            HeaderOutcome::Closed => {}
            HeaderOutcome::TimedOut => self.record_timeout(&connection.received),
            HeaderOutcome::Malformed => {
                let AcceptedConnection { stream, received, client: peer } = connection;
                self.warn_of_proxy_header(Refusal::MissingProxyHeader, peer);
                let error = ApiError::BadRequest(Refusal::MissingProxyHeader);
                // A TLS client could not read a response in cleartext.
                if is_tls && !is_cleartext_request(&received) {
                    self.record_refusal(error, &received);
                } else {
                    self.refuse_in_protocol(stream, received, error).await;
                }
            }
        }
        None
    }

    /// Logs the peer of a refused PROXY header, which may be a load balancer that is not listed.
    fn warn_of_proxy_header(&self, refusal: Refusal, peer: IpAddr) {
        if let Some(refused) = self.proxy_headers.record(clock::now()) {
            tracing::warn!(
                refused,
                %peer,
                cause = refusal.as_str(),
                "refused connections because of their PROXY header; check server.proxy_protocol"
            );
        }
    }

    /// Does the TLS handshake on a TLS listener. Returns the stream and the bytes that were read of
    /// it. `None`: the handshake failed, or a request without TLS was refused.
    pub(super) async fn terminate_tls(
        &self,
        connection: AcceptedConnection,
        tls: Option<&ListenerTls>,
    ) -> Option<(Stream, BytesMut)> {
        let AcceptedConnection { mut stream, mut received, client } = connection;
        let Some(tls) = tls else { return Some((stream, received)) };
        let deadline = clock::now() + self.active.load().limits.header_timeout;
        if received.is_empty() {
            received.reserve(READ_BYTES);
            // A failed read fails in the handshake too, which counts the reason.
            let _ = timeout_at(deadline.into(), stream.read_buf(&mut received)).await;
        }
        let refusal = if proxy_protocol::has_signature(&received) {
            Some(Refusal::UnexpectedProxyHeader)
        } else {
            is_cleartext_request(&received).then_some(Refusal::RequiresTls)
        };
        if let Some(refusal) = refusal {
            tls.handshake_failed("protocol");
            if refusal == Refusal::UnexpectedProxyHeader {
                self.warn_of_proxy_header(refusal, client);
            }
            Box::pin(self.refuse(stream, ApiError::BadRequest(refusal), &received)).await;
            return None;
        }
        let remaining = deadline.saturating_duration_since(clock::now());
        stream.put_back(received);
        // Boxed, because the future takes 12 KiB that an established connection does not need.
        let stream = Box::pin(tls.handshake(*stream, remaining)).await?;
        Some((stream, BytesMut::new()))
    }

    /// Serves a connection to its end. `draining`: from then on, responses announce the end of
    /// their connection.
    ///
    /// PROXY header and TLS handshake are read here, so that they count as a connection and have
    /// the deadline of a head.
    pub async fn serve(
        &self,
        stream: Box<ClientStream>,
        decision: AdmitDecision,
        tls: Option<&ListenerTls>,
        draining: &ShutdownWatch,
    ) {
        let is_tls = tls.is_some();
        let mut connection = AcceptedConnection::new(stream);
        if self.kind == ListenerKind::Public
            && self.active.load().requires_proxy_header(connection.client)
        {
            let longest = match decision {
                AdmitDecision::Serve(_) => self.active.load().limits.header_timeout,
                AdmitDecision::Refuse(_) => LINGER,
            };
            // Boxed, so that other connections have no room for this future.
            match Box::pin(self.read_proxy_header(connection, is_tls, longest)).await {
                Some(with_client) => connection = with_client,
                None => return,
            }
        }
        let open = match decision {
            AdmitDecision::Serve(open) => open,
            AdmitDecision::Refuse(_refusal) => {
                return Box::pin(self.refuse_over_limit(connection, tls)).await;
            }
        };
        let client = ClientConnection { peer: connection.client, is_tls };
        let _permit = match self.address_permit(client.peer) {
            Ok(permit) => permit,
            Err(limit) => {
                drop(open);
                let Some(_refusal) = self.count_refusal(limit) else { return };
                return Box::pin(self.refuse_over_limit(connection, tls)).await;
            }
        };
        open.record_accepted();
        let Some((stream, received)) = self.terminate_tls(connection, tls).await else { return };
        self.serve_requests(stream, received, client, draining).await;
    }

    /// Serves the requests of a connection: of HTTP/1 one after another, of HTTP/2 all.
    async fn serve_requests(
        &self,
        mut stream: Stream,
        received: BytesMut,
        client: ClientConnection,
        draining: &ShutdownWatch,
    ) {
        // Over TLS, ALPN decides the protocol (HTTP/1.1 without it). In cleartext the first bytes
        // do.
        let alpn = client.is_tls.then(|| stream.selected_alpn_proto().unwrap_or(ALPN::H1));
        let mut connection = Http1Connection {
            client,
            fast_path: (self.kind == ListenerKind::Public).then(|| FastPath::new(client.peer)),
            state: self.active.watched(),
            keepalive: KeepaliveTimer::new(self.active.process.lifecycle.clone()),
            timer: Timer::default(),
            buffer: received,
            is_first: true,
            since: clock::now(),
        };
        loop {
            let end = match connection.read_head(&mut stream).await {
                HeadOutcome::Http1(_) | HeadOutcome::Refused(_)
                    if connection.is_first && alpn == Some(ALPN::H2) =>
                {
                    return Box::pin(Self::send_last(stream, H2_PROTOCOL_ERROR)).await;
                }
                HeadOutcome::Http1(end) => end,
                HeadOutcome::Http2 if alpn == Some(ALPN::H1) => {
                    let error = ApiError::BadRequest(Refusal::Malformed);
                    return Box::pin(self.refuse(stream, error, &connection.buffer)).await;
                }
                HeadOutcome::Http2 => {
                    let Http1Connection { buffer, .. } = connection;
                    return Box::pin(self.serve_http2(stream, client, buffer, draining)).await;
                }
                HeadOutcome::Refused(error) => {
                    if error == ApiError::BadRequest(Refusal::UnexpectedProxyHeader) {
                        self.warn_of_proxy_header(Refusal::UnexpectedProxyHeader, client.peer);
                    }
                    return Box::pin(self.refuse(stream, error, &connection.buffer)).await;
                }
                HeadOutcome::TimedOut => return self.record_timeout(&connection.buffer),
                HeadOutcome::Closed => return,
            };
            connection.is_first = false;
            stream = match connection.serve_request(self, stream, end, draining).await {
                Some(stream) => stream,
                None => return,
            };
        }
    }

    /// Serves HTTP/2. `received` begins with the preface.
    async fn serve_http2(
        &self,
        stream: Stream,
        client: ClientConnection,
        received: BytesMut,
        draining: &ShutdownWatch,
    ) {
        // The state is not held, so that a reload replaces it while the connection is open.
        let limits = self.active.load().limits;
        let admission = self.active.process.admission.clone();
        let is_public = self.kind == ListenerKind::Public;
        let io = Http2Io::new(stream, received, self.active.clone(), is_public);
        let times = Times {
            handshake: limits.header_timeout,
            idle: limits.keepalive_timeout,
            write: limits.write_timeout,
        };
        let fast_path = is_public.then(|| Http2FastPath::new(client, self.active.watched()));
        let streams = admission.streams();
        let served =
            http2_connection::serve(&self.app, io, client, times, streams, fast_path, draining);
        if served.await {
            self.active.process.metrics.count_over_limit("http2_frames");
        }
    }
}

/// A connection of HTTP/1, between its requests.
struct Http1Connection<'h> {
    client: ClientConnection,
    fast_path: Option<FastPath>,
    state: Cache<&'h ArcSwap<RequestState>, Arc<RequestState>>,
    keepalive: KeepaliveTimer,
    timer: Timer,
    /// Received bytes that no request has consumed.
    buffer: BytesMut,
    /// No request was read yet, so that HTTP/2 may begin.
    is_first: bool,
    /// When the connection, or the wait for its next request, began.
    since: Instant,
}

impl<'h> Http1Connection<'h> {
    /// Reads one head into the buffer, which may hold a part of it.
    async fn read_head(&mut self, stream: &mut Stream) -> HeadOutcome {
        let Http1Connection { state, keepalive, buffer, is_first, since, .. } = self;
        let limits: Limits = state.load().limits;
        let max_idle = if *is_first { limits.header_timeout } else { limits.keepalive_timeout };
        if !*is_first {
            skip_empty_lines(buffer);
        }
        if buffer.is_empty() && !keepalive.read(stream, buffer, *since, max_idle).await {
            return HeadOutcome::Closed;
        }
        let (mut deadline, mut scan) = (None, HeadScan::default());
        loop {
            if *is_first && H2_PREFACE.starts_with(&buffer[..buffer.len().min(H2_PREFACE.len())]) {
                if buffer.len() >= H2_PREFACE.len() {
                    return HeadOutcome::Http2;
                }
            } else if *is_first && proxy_protocol::has_signature(buffer) {
                let refusal = Refusal::UnexpectedProxyHeader;
                return HeadOutcome::Refused(ApiError::BadRequest(refusal));
            } else if !(*is_first && proxy_protocol::V2_SIGNATURE.starts_with(buffer)) {
                skip_empty_lines(buffer);
                // A lone CR may become an empty line.
                if buffer[..] != *b"\r" {
                    match find_request_end(&mut scan, buffer, limits.max_header_bytes) {
                        Ok(Some(end)) => return HeadOutcome::Http1(end),
                        Ok(None) => {}
                        Err(error) => return HeadOutcome::Refused(head_refusal(error)),
                    }
                }
            }
            buffer.reserve(READ_BYTES);
            let deadline = *deadline.get_or_insert_with(|| clock::now() + limits.header_timeout);
            match timeout_at(deadline.into(), stream.read_buf(buffer)).await {
                Ok(Ok(1..)) => {}
                // A part of the HTTP/2 preface is not a request yet, and neither is an empty line.
                Err(_) if !H2_PREFACE.starts_with(buffer) && !is_blank(buffer) => {
                    return HeadOutcome::TimedOut;
                }
                _ => return HeadOutcome::Closed,
            }
        }
    }

    /// Serves the request whose head ends at `end` of the buffer. Returns the stream if the
    /// connection stays open.
    async fn serve_request<A: Application>(
        &mut self,
        handler: &ConnectionHandler<A>,
        mut stream: Stream,
        end: usize,
        draining: &ShutdownWatch,
    ) -> Option<Stream> {
        let state = self.state.load();
        // Pipelined requests take the ordinary path.
        let fast_path =
            self.fast_path.as_mut().filter(|_| state.fast_path && self.buffer.len() == end);
        let (head, framing) =
            match parse(&self.buffer[..end], &self.buffer[end..], state, fast_path) {
                Ok(ParsedHead::FastPath { fast_path, head, framing }) => {
                    let outcome = match fast_path.serve(state, &mut stream, head, framing) {
                        Ok(outcome) => outcome,
                        Err(rest) => rest.await,
                    };
                    match outcome {
                        Outcome::Served(at) => self.since = at,
                        Outcome::Closed => return None,
                        Outcome::CloseUnread => {
                            Box::pin(close_unread(stream)).await;
                            return None;
                        }
                    }
                    self.buffer.clear();
                    self.buffer.extend_from_slice(&fast_path.take_behind());
                    read_buffer::release(&mut self.buffer);
                    return Some(stream);
                }
                Ok(ParsedHead::Full(head, framing)) => (head, framing),
                Err(error) => {
                    Box::pin(handler.refuse(stream, error, &self.buffer)).await;
                    return None;
                }
            };
        // Boxed, so that an idle connection has no room for a session.
        Box::pin(self.serve_session(&handler.app, stream, head, framing, end, draining)).await
    }

    /// Serves a request with a session. Returns the stream if the connection stays open.
    async fn serve_session<A: Application>(
        &mut self,
        app: &Arc<A>,
        stream: Stream,
        head: RequestHead,
        mut framing: RequestFraming,
        end: usize,
        draining: &ShutdownWatch,
    ) -> Option<Stream> {
        let mut received = std::mem::take(&mut self.buffer);
        if received.len() == end {
            // Not advanced, so that the capacity still shows a long head.
            received.clear();
            read_buffer::release(&mut received);
        } else {
            received.advance(end);
        }
        // While the process drains, responses announce the end of their connection.
        framing.keeps_alive &= !*draining.borrow();
        let timer = std::mem::take(&mut self.timer);
        let session = Http1Session::new(stream, received, framing, timer);
        let mut session = ClientSession::http1(head, self.client, session);
        app.serve(&mut session).await;
        match session.into_http1()?.finish_request() {
            AfterRequest::KeepAlive { stream, received, timer } => {
                self.buffer = received;
                self.timer = timer;
                self.since = clock::now();
                Some(stream)
            }
            AfterRequest::CloseUnread(stream) => {
                close_unread(stream).await;
                None
            }
            AfterRequest::Close(mut stream) => {
                let _ = timeout(LINGER, stream.shutdown()).await;
                None
            }
            AfterRequest::Abort => None,
        }
    }
}

/// Skips empty lines in front of a request line (RFC 9112 section 2.2).
fn skip_empty_lines(buffer: &mut BytesMut) {
    while buffer.starts_with(b"\r\n") {
        buffer.advance(2);
    }
}

/// Whether the bytes are empty lines only.
fn is_blank(bytes: &[u8]) -> bool {
    bytes.chunks(2).all(|line| line == b"\r\n")
}

/// Whether a client sent a request without TLS: methods begin with a letter, TLS records do not
/// (RFC 8446 section 5.1).
fn is_cleartext_request(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_uppercase)
}

/// A parsed head of HTTP/1.
enum ParsedHead<'f, 'b> {
    FastPath {
        fast_path: &'f mut FastPath,
        head: NameRequestHead<'b>,
        framing: RequestFraming,
    },
    /// For a session.
    Full(RequestHead, RequestFraming),
}

/// Parses the head of a request, behind which `behind` was received. `fast_path`: the fast path, if
/// the request may take it.
fn parse<'f, 'b>(
    head: &'b [u8],
    behind: &[u8],
    state: &RequestState,
    fast_path: Option<&'f mut FastPath>,
) -> Result<ParsedHead<'f, 'b>, ApiError> {
    let mut slots = FieldSlots::new();
    let parsed = RequestHeadRef::parse(head, &mut slots).map_err(head_refusal)?;
    let framing = RequestFraming {
        body: parsed.body,
        keeps_alive: parsed.is_persistent,
        asks_for_upgrade: parsed.asks_for_upgrade,
    };
    if let Some(fast_path) = fast_path
        && parsed.body == BodyLength::None
        && let Some(head) = NameRequestHead::read(
            parsed.method,
            parsed.target,
            parsed.fields(),
            state.fast_path_rules(),
        )
    {
        return Ok(ParsedHead::FastPath { fast_path, head, framing });
    }
    if parsed.body == BodyLength::Chunked {
        check_chunks(behind).map_err(|_| ApiError::BadRequest(Refusal::Framing))?;
    }
    Ok(ParsedHead::Full(parsed.to_head().map_err(head_refusal)?, framing))
}

/// Checks the received part of a chunked body, so that a malformed one is refused before any of the
/// request is forwarded.
fn check_chunks(mut received: &[u8]) -> Result<(), http1::ChunkError> {
    let mut decoder = ChunkedDecoder::strict();
    while !received.is_empty() && !decoder.is_finished() {
        let decoded = decoder.decode(received)?;
        if decoded.consumed == 0 {
            break;
        }
        received = &received[decoded.consumed..];
    }
    Ok(())
}
