//! HTTP/2 connections: h2 with the gateway's limits, and the task of a connection, which accepts
//! requests, writes buffered bytes, and ends floods, stalled writes and idle connections.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
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

/// Maximum number of open streams. Browsers queue further requests, and 64 saturate the link.
pub const MAX_STREAMS: u32 = 64;

/// Maximum number of response bytes that h2 buffers for one stream whose client reads slower than
/// its window permits.
const SEND_BUFFER: usize = 32 << 10;

/// Flow-control window of a stream and of a connection: the initial value of RFC 9113.
const WINDOW: u32 = 65_535;

/// Maximum length of a frame: the lowest value that RFC 9113 permits.
const MAX_FRAME: u32 = 16 << 10;

/// Maximum size of a request head without compression. `server.max_header_bytes` applies too.
const MAX_HEAD: u32 = 64 << 10;

/// Maximum number of streams of a connection that may fail by errors of the client. A correct
/// client makes none.
const MAX_MALFORMED: usize = 32;

/// Maximum number of requests that were reset before they were accepted (CVE-2023-44487): the
/// default of h2.
const MAX_RESET_BEFORE_ACCEPT: usize = 20;

/// Maximum number of reset streams whose late frames are not an error, and for how long.
const MAX_RESET_REMEMBERED: usize = 32;
const RESET_REMEMBERED: Duration = Duration::from_secs(1);

/// Maximum time to write the last GOAWAY.
const GOAWAY_TIMEOUT: Duration = Duration::from_millis(500);

/// Returns the builder with every limit that the server of h2 has. `docs/ARCHITECTURE.md` (Bounds)
/// lists them.
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

/// Timeouts of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub handshake: Duration,
    /// Maximum time without a request under way.
    pub idle: Duration,
    /// Maximum time for which the client may accept no byte of a pending write.
    pub write: Duration,
}

/// Accepts the next request. Writes buffered bytes before it waits.
async fn accept(
    connection: &mut Connection<Http2Stream, Bytes>,
    writer: &Http2Writer,
) -> Option<Accepted> {
    poll_fn(|cx| match connection.poll_accept(cx) {
        Poll::Ready(accepted) => Poll::Ready(accepted.and_then(Result::ok).map(Accepted::from)),
        Poll::Pending => match writer.poll_drain(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(None),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        },
    })
    .await
}

/// Responds to the first request of a connection with the result of `response`, and ends the
/// connection. Takes at most `longest`.
pub async fn refuse(
    io: Http2Io,
    longest: Duration,
    response: impl FnOnce(&http::request::Parts) -> (http::Response<()>, Bytes),
) {
    let _ = timeout(longest, async {
        let mut connection = options().handshake::<_, Bytes>(io.stream).await.ok()?;
        let Accepted { request, respond: mut responder } =
            accept(&mut connection, &io.writer).await?;
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

/// Serves one connection to its end. `fast_path`: on the public listener. Returns whether it ended
/// because of a flood of frames.
pub async fn serve<A: Application>(
    app: &Arc<A>,
    io: Http2Io,
    client: ClientConnection,
    times: Times,
    streams: &Arc<AtomicUsize>,
    mut fast_path: Option<Http2FastPath<'_>>,
    draining: &ShutdownWatch,
) -> bool {
    let handshake = options().handshake::<_, Bytes>(io.stream);
    let Ok(Ok(connection)) = timeout(times.handshake, handshake).await else { return false };
    let mut task = ConnectionTask::new(connection, io.writer, times, streams.clone());
    let mut shutdown = draining.clone();
    let mut drain = pin!(async move {
        // An error means that the process ends without a drain.
        let _ = shutdown.changed().await;
    });
    while let Some(accepted) = poll_fn(|cx| task.poll_next(cx, drain.as_mut())).await {
        let outcome = match &mut fast_path {
            Some(fast_path) => fast_path.serve(accepted),
            None => Outcome::NotEligible(accepted),
        };
        match outcome {
            Outcome::Served(at) => {
                task.accepted_at = at;
                // Yields to other connections of the thread, however many requests are waiting.
                consume_budget().await;
            }
            Outcome::Unwritten(unwritten) => {
                task.accepted_at = clock::now();
                tokio::spawn(unwritten.write(ActiveRequest::new(&task.active)));
            }
            Outcome::NotEligible(Accepted { request, respond }) => {
                task.accepted_at = clock::now();
                let (parts, body) = request.into_parts();
                let session =
                    Box::new(Http2Session::new(body, respond, ActiveRequest::new(&task.active)));
                let mut session = ClientSession::http2(request_head(parts), client, session);
                let app = app.clone();
                // Boxed, because the task would be moved with it twice.
                tokio::spawn(async move { Box::pin(app.serve(&mut session)).await });
            }
        }
    }
    task.flooded
}

/// Converts the head of a request. `:authority` replaces `Host` (RFC 9113 section 8.3.1).
fn request_head(parts: http::request::Parts) -> RequestHead {
    let mut fields = parts.headers;
    let authority =
        parts.uri.authority().and_then(|name| HeaderValue::from_str(name.as_str()).ok());
    if let Some(authority) = authority {
        fields.insert(HOST, authority);
    }
    let target =
        parts.uri.path_and_query().map_or_else(String::new, |target| target.as_str().to_owned());
    RequestHead { method: parts.method, target, version: Version::HTTP_2, fields }
}

/// State of the task of a connection.
struct ConnectionTask {
    connection: Connection<Http2Stream, Bytes>,
    writer: Http2Writer,
    active: Arc<ActiveRequests>,
    times: Times,
    /// Time at which the last request was accepted.
    accepted_at: Instant,
    /// Time since which the client has accepted no byte of a pending write.
    stalled_at: Option<Instant>,
    /// The task has yielded to other tasks since the last write.
    has_yielded: bool,
    is_draining: bool,
    flooded: bool,
    /// Deadline of the last GOAWAY.
    end: Option<Instant>,
    timer: Timer,
}

impl ConnectionTask {
    fn new(
        connection: Connection<Http2Stream, Bytes>,
        writer: Http2Writer,
        times: Times,
        streams: Arc<AtomicUsize>,
    ) -> Self {
        let now = clock::now();
        ConnectionTask {
            connection,
            writer,
            active: Arc::new(ActiveRequests::new(now, streams)),
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

    /// Returns the next request; `None` when the connection has ended or must be dropped.
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        drain: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Option<Accepted>> {
        let mut drain = drain;
        loop {
            if self.writer.is_flooded() && !self.flooded {
                self.flooded = true;
                self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                self.end = Some(clock::now() + GOAWAY_TIMEOUT);
            }
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok(accepted))) => return Poll::Ready(Some(accepted.into())),
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending if self.writer.is_flooded() && !self.flooded => {}
                // Checked when the task waits, not for each request.
                Poll::Pending
                    if !self.is_draining
                        && pin!(unconstrained(drain.as_mut())).poll(cx).is_ready() =>
                {
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

    /// Writes buffered bytes. Yields once before that, because requests in other tasks may be about
    /// to respond.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        if !self.writer.has_unwritten() {
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

    /// Whether a deadline has passed: of the last GOAWAY, of a stalled write, of an idle
    /// connection. Otherwise the task is woken at the next deadline.
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
