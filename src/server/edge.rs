//! Connections of clients: TLS, limits, and the reading of request heads within one deadline and one size.
//!
//! What is malformed is refused in the API's shape. A request that passes becomes a [`ClientSession`].

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http::Method;
use http::header::{DATE, HeaderName, HeaderValue};
use http1::{BodyLength, ChunkedDecoder, FieldSlots, HeadScan, RequestHead, RequestHeadRef, find_request_end};
use pingora_core::protocols::http::date::get_cached_date;
use pingora_core::protocols::{ALPN, Stream};
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{timeout, timeout_at};

use super::admission::{ConnectionPlace, Limit};
use super::certificate::Certificate;
use super::client_session::{Application, ClientConnection, ClientSession};
use super::descriptors::BurstLog;
use super::fast_path::{FastPath, Outcome};
use super::fast_path_head::FastPathHead;
use super::head::head_refusal;
use super::http1_session::{After, Http1Session, RequestFraming};
use super::http2::{self, Times};
use super::http2_fast_path::Http2FastPath;
use super::http2_stream::Http2Io;
use super::idle::Idle;
use super::response_writer::{ConnectionOption, HeadWriter};
use super::side::Side;
use super::state::{ActiveState, Limits, RequestState};
use super::timer::Timer;
use super::wrapped::Wrapped;
use crate::api::{ApiError, Refusal};
use crate::clock;
use crate::reply::{Reply, origin_in, origin_of};
use crate::telemetry::Record;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The first bytes of HTTP/2 (RFC 9113 section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What ends a connection that agreed on HTTP/2 and does not begin with its preface: empty SETTINGS,
/// and GOAWAY with PROTOCOL_ERROR (RFC 9113 sections 3.4 and 6.8).
const H2_PROTOCOL_ERROR: &[u8] =
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01";

/// Bytes read at once: a usual head whole.
const READ: usize = 4096;

/// How long a client whose request is not read to its end may go on sending before the connection is closed, in all and
/// without a byte; without it, the response could be lost in a reset (RFC 9112 section 9.6).
const MAX_LINGER: Duration = Duration::from_secs(5);
const LINGER: Duration = Duration::from_secs(1);

/// Connections over a limit that get a response at a time, unless few descriptors are left
/// ([`Division`]); those beyond are closed without a response.
///
/// [`Division`]: super::descriptors::Division
const MAX_TURNED_AWAY: usize = 256;

/// Connections that the admin listener serves at a time: a few scrapers and people.
const MAX_ADMIN_CONNECTIONS: usize = 256;

/// The connections of one side, in front of the application that serves their requests.
pub struct Edge<A> {
    app: Arc<A>,
    active: Arc<ActiveState>,
    side: Side,
    connections: Arc<AtomicUsize>,
    turned_away: Arc<AtomicUsize>,
    /// Refusals because few descriptors are left.
    shortages: BurstLog,
}

enum Head {
    /// A whole head of that length; something may have come behind it.
    Http1(usize),
    Http2,
    Refused(ApiError),
    /// A part of a head. It is recorded, and the connection closes without a response.
    TimedOut,
    /// Nothing to answer: the caller left, or idled for too long.
    Gone,
}

impl<A: Application> Edge<A> {
    pub fn new(app: A, active: Arc<ActiveState>, side: Side) -> Self {
        let (connections, turned_away) = (Arc::default(), Arc::default());
        Edge { app: Arc::new(app), active, side, connections, turned_away, shortages: BurstLog::default() }
    }

    /// The connection in plain: as it is, or within TLS. `None`: there was no handshake, or not in time.
    /// An HTTP request without TLS is answered with 400.
    async fn in_plain(&self, mut stream: Stream, tls: Option<&Certificate>) -> Option<Stream> {
        let Some(certificate) = tls else { return Some(stream) };
        let deadline = Instant::now() + self.active.load().limits.header_timeout;
        let mut read = BytesMut::with_capacity(READ);
        // What fails or ends here fails in the handshake too, which counts why.
        let _ = timeout_at(deadline.into(), stream.read_buf(&mut read)).await;
        // Methods begin with a letter, records of TLS do not (RFC 8446 section 5.1).
        if read.first().is_some_and(u8::is_ascii_uppercase) {
            certificate.handshake_failed("protocol");
            Box::pin(self.refuse(stream, ApiError::BadRequest(Refusal::RequiresTls), &read)).await;
            return None;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        // Apart: it takes 12 KiB, for which a connection needs no room once it is established.
        Box::pin(certificate.handshake(Wrapped::rewound(stream, read), left)).await
    }

    /// Decides on a connection with this descriptor, before it gets a task: in a burst, tasks that
    /// refuse start later than further connections are accepted. `None`: it is closed.
    pub fn admit(&self, descriptor: RawFd) -> Option<Admitted> {
        let limits = self.active.load().limits;
        let max_connections = match self.side {
            Side::Public => {
                if usize::try_from(descriptor).is_ok_and(|number| number >= limits.descriptors.clients) {
                    return self.refusal(Limit::Descriptors).map(Admitted::Refused);
                }
                limits.max_connections
            }
            Side::Admin => MAX_ADMIN_CONNECTIONS,
        };
        match Counted::below(&self.connections, max_connections) {
            Some(counted) => Some(Admitted::Served(counted)),
            None => self.refusal(Limit::Connections).map(Admitted::Refused),
        }
    }

    /// Counts a connection over a limit. `None`: so many are being refused that it is closed
    /// without a response.
    fn refusal(&self, limit: Limit) -> Option<Counted> {
        let state = self.active.load();
        if self.side == Side::Public {
            state.process.metrics.over_limit(limit.as_str());
        }
        if limit == Limit::Descriptors
            && let Some(refused) = self.shortages.record(clock::now())
        {
            tracing::warn!(refused, "refused connections because few file descriptors are left");
        }
        // Counted apart from the served ones, or a flood of refusals would keep other clients out.
        Counted::below(&self.turned_away, MAX_TURNED_AWAY.min(state.limits.descriptors.refusals))
    }

    /// Reads one head into a buffer that may hold a part of it. `first`: on a fresh connection, where HTTP/2 may begin.
    /// `since`: when the connection, or the wait for its next request, began.
    async fn read_head(
        limits: Limits,
        stream: &mut Stream,
        buffer: &mut BytesMut,
        idle: &mut Idle,
        first: bool,
        since: Instant,
    ) -> Head {
        let longest = if first { limits.header_timeout } else { limits.keepalive_timeout };
        // What was read behind the request before is looked at first.
        skip_empty_lines(buffer);
        if buffer.is_empty() && !idle.read(stream, buffer, since, longest).await {
            return Head::Gone;
        }
        let (mut deadline, mut scan) = (None, HeadScan::default());
        loop {
            if first && H2_PREFACE.starts_with(&buffer[..buffer.len().min(H2_PREFACE.len())]) {
                if buffer.len() >= H2_PREFACE.len() {
                    return Head::Http2;
                }
            } else {
                skip_empty_lines(buffer);
                // A lone CR may become an empty line.
                if buffer[..] != *b"\r" {
                    match find_request_end(&mut scan, buffer, limits.max_header_bytes) {
                        Ok(Some(end)) => return Head::Http1(end),
                        Ok(None) => {}
                        Err(error) => return Head::Refused(head_refusal(error)),
                    }
                }
            }
            buffer.reserve(READ);
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + limits.header_timeout);
            match timeout_at(deadline.into(), stream.read_buf(buffer)).await {
                Ok(Ok(1..)) => {}
                // The start of an HTTP/2 preface is no request yet, and an empty line neither.
                Err(_) if !H2_PREFACE.starts_with(buffer) => return Head::TimedOut,
                _ => return Head::Gone,
            }
        }
    }

    /// Takes a place within the share of the client's address, where connections have shares.
    fn address_place(&self, stream: &Stream) -> Result<Option<ConnectionPlace>, Limit> {
        if self.side == Side::Admin {
            return Ok(None);
        }
        let state = self.active.load();
        let digest = stream.get_socket_digest();
        let peer = digest.as_ref().and_then(|digest| Some(digest.peer_addr()?.as_inet()?.ip()));
        let Some(address) = peer.and_then(|peer| state.limited_address(peer)) else { return Ok(None) };
        state.process.admission.connection(address, state.limits.address_connections).map(Some)
    }

    /// Refuses a connection over a limit with a response.
    async fn refuse_connection(&self, stream: Stream, tls: Option<&Certificate>) {
        if let Some(stream) = self.in_plain(stream, tls).await {
            self.turn_away(stream).await;
        }
    }

    /// Answers a connection beyond the limit with 503, in the protocol that it speaks. The request is awaited for
    /// [`LINGER`], since protocol and origin are in its head; then the 503 is sent without it.
    async fn turn_away(&self, mut stream: Stream) {
        let deadline = Instant::now() + LINGER;
        let mut head = BytesMut::with_capacity(READ);
        loop {
            let read = timeout_at(deadline.into(), stream.read_buf(&mut head)).await;
            if head.starts_with(H2_PREFACE) {
                return self.refuse_http2(stream, head, ApiError::Unavailable).await;
            }
            let more = matches!(read, Ok(Ok(1..))) && head.len() < 4 * READ;
            let is_whole = memchr::memmem::find(&head, b"\r\n\r\n").is_some();
            if !more || (is_whole && !H2_PREFACE.starts_with(&head)) {
                return self.refuse(stream, ApiError::Unavailable, &head).await;
            }
        }
    }

    /// The record of a request that the connection layer refuses.
    fn refused(&self, error: ApiError, reply: &Reply, method: Option<Method>) -> Record {
        let mut record = Record::begin(Instant::now());
        record.status = reply.status();
        record.error = Some(error);
        record.request_id = self.active.load().new_request_id();
        record.body_bytes = reply.body().len();
        record.method = method.unwrap_or(record.method);
        record
    }

    fn end(&self, record: &Record) {
        let state = self.active.load();
        if self.side == Side::Public {
            record.end(state.gateway.metrics(), state.access);
        }
    }

    /// Answers the first request of an HTTP/2 connection with an error, and ends the connection.
    async fn refuse_http2(&self, stream: Stream, read: BytesMut, error: ApiError) {
        let io = Http2Io::new(stream, read, self.active.clone(), false);
        http2::refuse(io, LINGER, |request| {
            let reply = Reply::from(error);
            let mut record = self.refused(error, &reply, Some(request.method.clone()));
            let mut response = http::Response::new(());
            *response.status_mut() = reply.status();
            let headers = response.headers_mut();
            reply.fields(&self.active.load().gateway.cors, origin_of(&request.headers), |name, value| {
                headers.insert(name, value.to_header());
            });
            headers.extend(HeaderValue::try_from(&record.request_id).map(|id| (X_REQUEST_ID, id)));
            headers.insert(DATE, get_cached_date());
            let body = if request.method == Method::HEAD { Bytes::new() } else { reply.body() };
            record.body_bytes = body.len();
            self.end(&record);
            (response, body)
        })
        .await;
    }

    /// Records a request whose head did not arrive in time; no response is sent.
    fn record_timeout(&self, head: &[u8]) {
        let error = ApiError::RequestTimeout;
        let record = self.refused(error, &Reply::from(error), method_of(head));
        self.end(&Record { body_bytes: 0, ..record });
    }

    /// Answers without a session, and ends the connection so that the answer arrives. `head`: what was read of the
    /// request.
    async fn refuse(&self, stream: Stream, error: ApiError, head: &[u8]) {
        let reply = Reply::from(error);
        let method = method_of(head);
        let body = if method == Some(Method::HEAD) { Bytes::new() } else { reply.body() };
        let mut record = self.refused(error, &reply, method);
        record.body_bytes = body.len();
        let origin = if self.side == Side::Public { origin_in(head) } else { None };
        let mut answer = Vec::new();
        let mut head = HeadWriter::begin(&mut answer, reply.status());
        reply.fields(&self.active.load().gateway.cors, origin.as_ref(), |name, value| {
            head.field_with(name, |out| value.append_to(out));
        });
        head.field(&X_REQUEST_ID, record.request_id.as_bytes());
        head.finish(ConnectionOption::Close);
        answer.extend_from_slice(&body);
        self.end(&record);
        Self::send_last(stream, &answer).await;
    }

    /// Sends the last bytes of a connection, and ends it so that they arrive.
    async fn send_last(mut stream: Stream, last: &[u8]) {
        let written = timeout(LINGER, async {
            stream.write_all(last).await?;
            stream.flush().await
        });
        if matches!(written.await, Ok(Ok(()))) {
            close_unread(stream).await;
        }
    }

    /// Serves HTTP/2. `read` is what was read already, beginning with the preface.
    async fn serve_http2(
        &self,
        stream: Stream,
        connection: ClientConnection,
        read: BytesMut,
        limits: Limits,
        draining: &ShutdownWatch,
    ) {
        let io = Http2Io::new(stream, read, self.active.clone(), self.side == Side::Public);
        let times =
            Times { handshake: limits.header_timeout, idle: limits.keepalive_timeout, write: limits.write_timeout };
        let fast_path = (self.side == Side::Public).then(|| Http2FastPath::new(connection, self.active.watched()));
        if http2::serve(&self.app, io, connection, times, fast_path, draining).await {
            self.active.process.metrics.over_limit("http2_frames");
        }
    }
}

/// The method that a head begins with, which need not be complete or well formed.
fn method_of(head: &[u8]) -> Option<Method> {
    head.split(|&byte| byte == b' ').next().and_then(|name| Method::from_bytes(name).ok())
}

/// Passes over empty lines before a request line (RFC 9112 section 2.2).
fn skip_empty_lines(buffer: &mut BytesMut) {
    while buffer.starts_with(b"\r\n") {
        buffer.advance(2);
    }
}

/// Closes a connection whose client may still be sending: ends the gateway's side, and reads for a while what comes, so
/// that no reset overtakes the response. Every connection with unread data is closed here.
async fn close_unread(mut stream: Stream) {
    let reading = async {
        // It may have ended already.
        let _ = AsyncWriteExt::shutdown(&mut stream).await;
        // On the heap: every connection has room for this future, and few need it.
        let mut sink = vec![0; READ];
        while let Ok(Ok(1..)) = timeout(LINGER, stream.read(&mut sink)).await {}
    };
    let _ = timeout(MAX_LINGER, reading).await;
}

/// A parsed request of HTTP/1.
enum Parsed<'f, 'b> {
    Fast {
        fast_path: &'f mut FastPath,
        head: FastPathHead<'b>,
        framing: RequestFraming,
    },
    /// For a session.
    Other(RequestHead, RequestFraming),
}

/// Parses the head of a request, behind which `behind` was received. `fast_path`: what it may take.
///
/// # Errors
/// The head is refused.
fn parse<'f, 'b>(
    head: &'b [u8],
    behind: &[u8],
    state: &RequestState,
    fast_path: Option<&'f mut FastPath>,
) -> Result<Parsed<'f, 'b>, ApiError> {
    let mut slots = FieldSlots::new();
    let parsed = RequestHeadRef::parse(head, &mut slots).map_err(head_refusal)?;
    let framing = RequestFraming {
        body: parsed.body,
        keeps_alive: parsed.is_persistent,
        asks_for_upgrade: parsed.asks_for_upgrade,
    };
    if let Some(fast_path) = fast_path
        && parsed.body == BodyLength::None
        && let Some(head) = FastPathHead::read(parsed.method, parsed.target, parsed.fields(), state.fast_path_rules())
    {
        return Ok(Parsed::Fast { fast_path, head, framing });
    }
    if parsed.body == BodyLength::Chunked {
        check_chunks(behind).map_err(|_| ApiError::BadRequest(Refusal::Framing))?;
    }
    Ok(Parsed::Other(parsed.to_head().map_err(head_refusal)?, framing))
}

/// Checks what came of a chunked body already, so that a malformed one is refused before any of the
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

/// A connection, counted as long as it lives.
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// None if there are `most` already.
    fn below(count: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let counted = Counted(count.clone());
        (count.fetch_add(1, Ordering::Relaxed) < most).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What happens to an accepted connection.
pub enum Admitted {
    Served(Counted),
    Refused(Counted),
}

impl<A: Application> Edge<A> {
    /// Serves a connection to its end. `tls`: what it begins with, spoken here, so that a handshake is counted as a
    /// connection and has the deadline of a head. `draining`: answers say that the connection ends.
    pub async fn serve(
        &self,
        stream: Stream,
        admitted: Admitted,
        tls: Option<&Certificate>,
        draining: &ShutdownWatch,
    ) -> Option<Stream> {
        let counted = match admitted {
            Admitted::Served(counted) => counted,
            Admitted::Refused(_counted) => {
                Box::pin(self.refuse_connection(stream, tls)).await;
                return None;
            }
        };
        let _place = match self.address_place(&stream) {
            Ok(place) => place,
            Err(limit) => {
                drop(counted);
                let _counted = self.refusal(limit)?;
                Box::pin(self.refuse_connection(stream, tls)).await;
                return None;
            }
        };
        let mut stream = self.in_plain(stream, tls).await?;
        let connection = ClientConnection::new(&stream, tls.is_some());
        // Over TLS the protocol is what ALPN agreed on, and HTTP/1.1 without it; in plain the first bytes
        // decide.
        let agreed = tls.map(|_| stream.selected_alpn_proto().unwrap_or(ALPN::H1));
        let mut fast_path = (self.side == Side::Public).then(|| FastPath::new(connection.peer));
        let mut state = self.active.watched();
        let mut idle = Idle::new(state.load().process.lifecycle.clone());
        let mut timer = Timer::default();
        let (mut first, mut since) = (true, Instant::now());
        let mut buffer = BytesMut::new();
        loop {
            let limits = state.load().limits;
            buffer.reserve(READ);
            let end = match Self::read_head(limits, &mut stream, &mut buffer, &mut idle, first, since).await {
                Head::Http1(_) | Head::Refused(_) if first && agreed == Some(ALPN::H2) => {
                    Self::send_last(stream, H2_PROTOCOL_ERROR).await;
                    return None;
                }
                Head::Http1(end) => end,
                Head::Http2 if agreed == Some(ALPN::H1) => {
                    Box::pin(self.refuse(stream, ApiError::BadRequest(Refusal::Malformed), &buffer)).await;
                    return None;
                }
                Head::Http2 => {
                    Box::pin(self.serve_http2(stream, connection, buffer, limits, draining)).await;
                    return None;
                }
                Head::Refused(error) => {
                    Box::pin(self.refuse(stream, error, &buffer)).await;
                    return None;
                }
                Head::TimedOut => {
                    self.record_timeout(&buffer);
                    return None;
                }
                Head::Gone => return None,
            };
            first = false;
            let current = state.load();
            // Pipelined requests take the ordinary path.
            let allowed = fast_path.as_mut().filter(|_| current.fast_path && buffer.len() == end);
            let (head, mut framing) = match parse(&buffer[..end], &buffer[end..], current, allowed) {
                Ok(Parsed::Fast { fast_path, head, framing }) => {
                    since = match fast_path.serve(current, &mut stream, head, framing).await {
                        Outcome::Served(at) => at,
                        Outcome::Closed => return None,
                        Outcome::CloseUnread => {
                            Box::pin(close_unread(stream)).await;
                            return None;
                        }
                    };
                    buffer.clear();
                    buffer.extend_from_slice(&fast_path.take_behind());
                    if buffer.capacity() > READ {
                        // An unusual head: its memory is not held while the connection idles.
                        buffer = BytesMut::new();
                    }
                    continue;
                }
                Ok(Parsed::Other(head, framing)) => (head, framing),
                Err(error) => {
                    Box::pin(self.refuse(stream, error, &buffer)).await;
                    return None;
                }
            };
            let received = buffer.split_off(end);
            buffer.clear();
            // While the process drains, responses say that their connection ends.
            framing.keeps_alive &= !*draining.borrow();
            let session = Box::new(Http1Session::new(stream, received, framing, timer));
            let mut session = ClientSession::http1(head, connection, session);
            // Apart, so that an idle connection is no larger for what its requests need.
            Box::pin(self.app.serve(&mut session)).await;
            match session.into_http1()?.finish_request() {
                After::Next { stream: kept, received, timer: same } => {
                    stream = kept;
                    buffer = received;
                    timer = same;
                }
                After::CloseUnread(stream) => {
                    close_unread(stream).await;
                    return None;
                }
                After::Close(mut stream) => {
                    let _ = timeout(LINGER, stream.shutdown()).await;
                    return None;
                }
                After::Aborted => return None,
            }
            since = Instant::now();
        }
    }
}
