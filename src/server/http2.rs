//! HTTP/2 connections: h2 with limits of our choice, an accept loop that ends floods, and the
//! stream below h2 that counts frames and lets the last GOAWAY arrive.
//!
//! pingora's loop sets no limit on control frames and cannot end a connection with a reason.

use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::Reason;
use http::header::{HOST, HeaderValue};
use http::{Method, Version};
use http1::RequestHead;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

use super::client_session::{Application, ClientConnection, ClientSession};
use super::frames::Frames;
use super::http2_rewrite::Rewriter;
use super::http2_session::Http2Session;
use super::setup::{Current, Setup};
use crate::api::{ApiError, Refusal};
use crate::clock;
use crate::telemetry::Record;

/// Streams open at a time. Browsers queue further requests; 64 of them fill any link that matters
/// here.
pub const MAX_STREAMS: u32 = 64;

/// Bytes of a response that h2 holds for one stream, because the client reads slower than it
/// permits.
const SEND_BUFFER: usize = 32 << 10;

/// Bytes of request bodies that wait to be read, of one stream and of one connection: what RFC 9113
/// begins with.
const WINDOW: u32 = 65_535;

/// Bytes of one frame that a client sends: the smallest limit that RFC 9113 permits.
const MAX_FRAME: u32 = 16 << 10;

/// Bytes of a request head without compression; `server.max_header_bytes` applies as well.
const MAX_HEAD: u32 = 64 << 10;

/// Streams of one connection that may fail by the client's mistakes. A client that does not attack
/// makes none.
const MAX_MALFORMED: usize = 32;

/// Requests that a client resets before the gateway has looked at them (CVE-2023-44487): h2's own
/// default.
const MAX_RESET_BEFORE_ACCEPT: usize = 20;

/// Streams that the gateway reset and still remembers, so that late frames are not an error; and
/// how long.
const MAX_RESET_REMEMBERED: usize = 32;
const RESET_REMEMBERED: Duration = Duration::from_secs(1);

/// Time for the last GOAWAY to be written, and time to read on so that it is not lost in a reset of
/// the connection.
const LAST_WRITE: Duration = Duration::from_millis(500);
const LINGER: Duration = Duration::from_millis(500);

/// Bytes that are discarded meanwhile: what may be on its way. A client that sends more has no use
/// for the reason.
const LINGER_BYTES: usize = 4 << 20;

/// Every limit that h2's server takes. `docs/ARCHITECTURE.md` (Bounds) lists them.
fn options() -> h2::server::Builder {
    let mut options = h2::server::Builder::new();
    options
        .max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        .max_local_error_reset_streams(Some(MAX_MALFORMED))
        .max_pending_accept_reset_streams(MAX_RESET_BEFORE_ACCEPT)
        .max_concurrent_reset_streams(MAX_RESET_REMEMBERED)
        .reset_stream_duration(RESET_REMEMBERED);
    options
}

/// Streams that are being served.
struct Active {
    count: AtomicUsize,
    none: Notify,
}

/// One stream that is being served.
struct Guard(Arc<Active>);

impl Guard {
    fn new(active: &Arc<Active>) -> Self {
        active.count.fetch_add(1, Ordering::Relaxed);
        Guard(active.clone())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.none.notify_one();
        }
    }
}

impl Active {
    /// Completes when no stream has been served for that long.
    async fn idle(&self, longest: Duration) {
        while self.count.load(Ordering::Relaxed) != 0 {
            self.none.notified().await;
        }
        sleep(longest).await;
    }
}

/// Times of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub handshake: Duration,
    pub idle: Duration,
}

/// Answers the first request of a connection with what `response` makes, and ends the connection. Takes `longest` at most.
pub async fn refuse(
    stream: Stream,
    longest: Duration,
    response: impl FnOnce(&http::request::Parts) -> (http::Response<()>, Bytes),
) {
    let _ = timeout(longest, async {
        let mut connection = options().handshake::<_, Bytes>(stream).await.ok()?;
        let (request, mut responder) = connection.accept().await?.ok()?;
        let (response, body) = response(&request.into_parts().0);
        let mut sender = responder.send_response(response, body.is_empty()).ok()?;
        if !body.is_empty() {
            sender.send_data(body, true).ok()?;
        }
        connection.graceful_shutdown();
        while connection.accept().await.is_some() {}
        Some(())
    })
    .await;
}

/// Serves one connection to its end. Returns whether it ended because of a flood of frames.
pub async fn serve<A: Application>(
    app: &Arc<A>,
    stream: Stream,
    client: ClientConnection,
    flood: &Notify,
    times: Times,
    draining: &ShutdownWatch,
) -> bool {
    let handshake = options().handshake::<_, Bytes>(stream);
    let Ok(Ok(mut connection)) = timeout(times.handshake, handshake).await else { return false };
    let active = Arc::new(Active { count: AtomicUsize::new(0), none: Notify::new() });
    let (mut shutdown, mut drains) = (draining.clone(), false);
    let mut flooded = false;
    let mut end = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = flood.notified(), if !flooded => {
                flooded = true;
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                end = Some(Instant::now() + LAST_WRITE);
                continue;
            }
            _ = shutdown.changed(), if !drains => {
                drains = true;
                connection.graceful_shutdown();
                continue;
            }
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => return flooded,
            accepted = connection.accept() => accepted,
            // Started again with each stream that comes.
            () = active.idle(times.idle) => return flooded,
        };
        let Some(Ok((request, respond))) = accepted else { return flooded };
        let (parts, body) = request.into_parts();
        let session = Box::new(Http2Session::new(body, respond));
        let mut session = ClientSession::http2(request_head(parts), client, session);
        let (app, guard) = (app.clone(), Guard::new(&active));
        tokio::spawn(async move {
            let _guard = guard;
            app.serve(&mut session).await;
        });
    }
}

/// The head of a request. Its `:authority` becomes `Host`, which it replaces (RFC 9113 section
/// 8.3.1).
fn request_head(parts: http::request::Parts) -> RequestHead {
    let mut fields = parts.headers;
    let authority = parts.uri.authority().and_then(|name| HeaderValue::from_str(name.as_str()).ok());
    if let Some(authority) = authority {
        fields.insert(HOST, authority);
    }
    let target = parts.uri.path_and_query().map_or_else(String::new, |target| target.as_str().to_owned());
    RequestHead { method: parts.method, target, version: Version::HTTP_2, fields }
}

/// Records a malformed request or trailers, for which h2 resets the stream.
fn record_malformed(setup: &Setup, method: &[u8]) {
    let error = ApiError::BadRequest(Refusal::Malformed);
    let mut record = Record::begin(clock::now());
    record.method = Method::from_bytes(method).unwrap_or_default();
    record.status = error.status();
    record.error = Some(error);
    record.cause = Some("http2_stream_error");
    record.request_id = setup.new_request_id();
    record.end(&setup.gateway.metrics, setup.access);
}

/// The watch over the frames of one connection, below h2.
pub struct Watch {
    frames: Frames,
    /// Judges heads, on the public listener.
    rewriter: Option<Rewriter>,
    /// What h2 gets next.
    out: BytesMut,
    /// For the records of malformed requests.
    current: Arc<Current>,
    flood: Arc<Notify>,
    flooded: bool,
    /// While the connection lingers after its last write.
    linger: Option<Pin<Box<Sleep>>>,
    discarded: usize,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("flooded", &self.flooded).finish_non_exhaustive()
    }
}

impl Watch {
    /// `judges_heads`: on the public listener, whose application knows the requests that stand in
    /// for refused ones.
    pub fn new(flood: Arc<Notify>, current: Arc<Current>, judges_heads: bool) -> Self {
        Watch {
            frames: Frames::new(clock::now()),
            rewriter: judges_heads.then(Rewriter::default),
            out: BytesMut::new(),
            current,
            flood,
            flooded: false,
            linger: None,
            discarded: 0,
        }
    }

    /// Whether a flood came: nothing more is to be read.
    pub const fn is_flooded(&self) -> bool {
        self.flooded
    }

    /// Takes what was read, which `rest` gives to h2. A flood is ended by the accept loop.
    pub fn read(&mut self, bytes: &[u8]) {
        let mut is_right = self.frames.read(bytes, clock::now()).is_ok();
        if let Some(rewriter) = &mut self.rewriter {
            is_right &= rewriter.read(bytes, &mut self.out).is_ok();
            for method in rewriter.take_malformed() {
                record_malformed(&self.current.load(), &method);
            }
        } else {
            self.out.extend_from_slice(bytes);
        }
        if !is_right {
            self.flooded = true;
            self.flood.notify_one();
        }
    }

    /// What h2 has not got yet.
    pub fn rest(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    pub fn wrote(&mut self, bytes: usize) {
        self.frames.wrote(bytes);
    }

    /// Whether the last write is done.
    pub const fn lingers(&self) -> bool {
        self.linger.is_some()
    }

    /// Reads on and discards until the client closes, or for half a second. A connection that is
    /// closed with unread bytes is reset, and the client loses what it has not read (RFC 9112
    /// section 9.6).
    pub fn poll_linger(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let linger = self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut sink = [0; 4096];
        loop {
            if self.discarded > LINGER_BYTES || linger.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut sink);
            match ready!(pin!(&mut *stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.discarded += buffer.filled().len(),
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
