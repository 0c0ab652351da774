//! HTTP/2 connections: h2 with limits of our choice, and the task of a connection, which accepts
//! requests, writes what was gathered, and ends floods, stalls and idle connections.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use h2::server::Connection;
use http::Version;
use http::header::{HOST, HeaderValue};
use http1::RequestHead;
use pingora_core::server::ShutdownWatch;
use tokio::task::coop::{consume_budget, unconstrained};
use tokio::time::timeout;

use super::active_requests::{ActiveRequest, ActiveRequests};
use super::client_session::{Application, ClientConnection, ClientSession};
use super::http2_fast_path::{Accepted, Http2FastPath, Outcome};
use super::http2_session::Http2Session;
use super::http2_stream::{Http2Io, Http2Stream, Http2Writer};
use super::timer::Timer;
use crate::clock;

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

/// Time for the last GOAWAY to be written, and for reading on behind it.
const LAST_WRITE: Duration = Duration::from_millis(500);

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

/// Times of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub handshake: Duration,
    /// Without a request under way.
    pub idle: Duration,
    /// While bytes wait to be written and the client accepts none.
    pub write: Duration,
}

/// Accepts the next request, and writes what was gathered before it waits for one.
async fn accept(connection: &mut Connection<Http2Stream, Bytes>, writer: &Http2Writer) -> Option<Accepted> {
    poll_fn(|cx| match connection.poll_accept(cx) {
        Poll::Ready(accepted) => Poll::Ready(accepted.and_then(Result::ok).map(Accepted::from)),
        Poll::Pending => match writer.poll_drain(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(None),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        },
    })
    .await
}

/// Responds to the first request of a connection with what `response` makes, and ends the connection.
/// Takes `longest` at most.
pub async fn refuse(
    io: Http2Io,
    longest: Duration,
    response: impl FnOnce(&http::request::Parts) -> (http::Response<()>, Bytes),
) {
    let _ = timeout(longest, async {
        let mut connection = options().handshake::<_, Bytes>(io.stream).await.ok()?;
        let Accepted { request, respond: mut responder } = accept(&mut connection, &io.writer).await?;
        let (response, body) = response(&request.into_parts().0);
        let mut sender = responder.send_response(response, body.is_empty()).ok()?;
        if !body.is_empty() {
            sender.send_data(body, true).ok()?;
        }
        connection.graceful_shutdown();
        while accept(&mut connection, &io.writer).await.is_some() {}
        Some(())
    })
    .await;
}

/// Serves one connection to its end. `fast_path`: on the public listener. Returns whether it ended because of a flood of frames.
pub async fn serve<A: Application>(
    app: &Arc<A>,
    io: Http2Io,
    client: ClientConnection,
    times: Times,
    mut fast_path: Option<Http2FastPath<'_>>,
    draining: &ShutdownWatch,
) -> bool {
    let handshake = options().handshake::<_, Bytes>(io.stream);
    let Ok(Ok(connection)) = timeout(times.handshake, handshake).await else { return false };
    let mut task = ConnectionTask::new(connection, io.writer, times);
    let mut shutdown = draining.clone();
    let mut drain = pin!(async move {
        // An error: the process ends without a drain.
        let _ = shutdown.changed().await;
    });
    while let Some(accepted) = poll_fn(|cx| task.poll_next(cx, drain.as_mut())).await {
        let outcome = match &mut fast_path {
            Some(fast_path) => fast_path.serve(accepted),
            None => Outcome::Declined(accepted),
        };
        match outcome {
            Outcome::Served(at) => {
                task.accepted_at = at;
                // Other connections of the thread get their turn, however many requests are waiting.
                consume_budget().await;
            }
            Outcome::Writes(unwritten) => {
                task.accepted_at = clock::now();
                tokio::spawn(unwritten.write(ActiveRequest::new(&task.active)));
            }
            Outcome::Declined(Accepted { request, respond }) => {
                task.accepted_at = clock::now();
                let (parts, body) = request.into_parts();
                let session = Box::new(Http2Session::new(body, respond, ActiveRequest::new(&task.active)));
                let mut session = ClientSession::http2(request_head(parts), client, session);
                let app = app.clone();
                tokio::spawn(async move { app.serve(&mut session).await });
            }
        }
    }
    task.flooded
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

/// The state of a connection's task.
struct ConnectionTask {
    connection: Connection<Http2Stream, Bytes>,
    writer: Http2Writer,
    active: Arc<ActiveRequests>,
    times: Times,
    /// The last request was accepted.
    accepted_at: Instant,
    /// The client has accepted nothing of what was gathered since then.
    stalled_at: Option<Instant>,
    /// The task let others run before it writes.
    has_yielded: bool,
    is_draining: bool,
    flooded: bool,
    /// A GOAWAY is the last thing that is written; until then.
    end: Option<Instant>,
    timer: Timer,
}

impl ConnectionTask {
    fn new(connection: Connection<Http2Stream, Bytes>, writer: Http2Writer, times: Times) -> Self {
        let now = clock::now();
        ConnectionTask {
            connection,
            writer,
            active: Arc::new(ActiveRequests::new(now)),
            times,
            accepted_at: now,
            stalled_at: None,
            has_yielded: false,
            is_draining: false,
            flooded: false,
            end: None,
            timer: Timer::default(),
        }
    }

    /// The next request; `None` when the connection has ended or is to be dropped.
    fn poll_next(&mut self, cx: &mut Context<'_>, drain: Pin<&mut impl Future<Output = ()>>) -> Poll<Option<Accepted>> {
        let mut drain = drain;
        loop {
            if self.writer.is_flooded() && !self.flooded {
                self.flooded = true;
                self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                self.end = Some(clock::now() + LAST_WRITE);
            }
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok(accepted))) => return Poll::Ready(Some(accepted.into())),
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending if self.writer.is_flooded() && !self.flooded => {}
                // Looked at when the task waits, not for each request.
                Poll::Pending if !self.is_draining && pin!(unconstrained(drain.as_mut())).poll(cx).is_ready() => {
                    self.is_draining = true;
                    self.connection.graceful_shutdown();
                }
                Poll::Pending => break,
            }
        }
        if self.poll_write(cx).is_err() || self.is_overdue(cx) {
            return Poll::Ready(None);
        }
        Poll::Pending
    }

    /// Writes what was gathered. Requests in other tasks may be about to respond, so these run first,
    /// once.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        if !self.writer.has_gathered() {
            self.stalled_at = None;
            return Ok(());
        }
        if !self.has_yielded && !self.active.is_none() {
            self.has_yielded = true;
            cx.waker().wake_by_ref();
            return Ok(());
        }
        self.has_yielded = false;
        match self.writer.poll_drain(cx) {
            Poll::Ready(drained) => {
                self.stalled_at = None;
                drained
            }
            Poll::Pending => {
                if self.writer.take_progress() || self.stalled_at.is_none() {
                    self.stalled_at = Some(clock::now());
                }
                Ok(())
            }
        }
    }

    /// Whether a deadline has passed: of the last GOAWAY, of a write without progress, of an idle
    /// connection. Otherwise the task is woken at the next one.
    fn is_overdue(&mut self, cx: &mut Context<'_>) -> bool {
        let stalled = self.stalled_at.map(|since| since + self.times.write);
        let early = [self.end, stalled].into_iter().flatten().min();
        let mut idle_since = self.accepted_at.max(self.active.last_end());
        loop {
            let idle = idle_since + self.times.idle;
            let deadline = early.unwrap_or(idle).min(idle);
            if self.timer.poll(cx, deadline).is_pending() {
                return false;
            }
            if early == Some(deadline) || self.active.is_none() {
                self.active.set_stalled(stalled == Some(deadline));
                return true;
            }
            // A request is under way.
            idle_since = clock::now();
        }
    }
}
