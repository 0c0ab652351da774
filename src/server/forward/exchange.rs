//! Exchange of a forwarded request with the API, for every forwarding route.
//!
//! Both directions run at once, and every wait ends when the client disconnects. The response is
//! passed through, redacted (`redacted_response`), or becomes a tunnel after a protocol switch.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Response, StatusCode, Version};
use http1::{BodyLength, ResponseHead};
use tokio::select;
use tokio::time::timeout;

use super::api_request::{ApiRequest, asks_for_websocket};
use super::credentials::take_read_ahead;
use super::redact_for::{RedactFor, restrict_caching};
use super::request_context::{Proxy, RequestContext, end_if_draining};
use crate::api::ApiError;
use crate::clock;
use crate::forward::remove_hop_by_hop;
use crate::reply::Reply;
use crate::server::http::client_failure::ClientFailure;
use crate::server::http::client_session::{ClientSession, WriteProgress};
use crate::server::http::forwarded_head::ForwardedHead;
use crate::telemetry::{self, SampledSpan};
use crate::upstream::{
    self, Event, FAILURE_STATUS, FORWARD_SILENCE, STALE_CONNECTIONS_MAX, UpstreamError, is_failure,
};

/// Maximum time for which the rest of a request body is discarded, so that the response is not lost
/// in a reset (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(1);

/// Maximum length of a request body that is kept, so that it can be sent again when a reused
/// connection turns out closed.
const REPLAY_MAX: usize = 64 << 10;

/// Reason why an exchange failed.
pub enum Failure {
    Upstream(UpstreamError),
    /// The client disconnected, is too slow, or sent a malformed body.
    Client(ClientFailure),
    /// The client may not see the response. The received part is dropped.
    Unredactable(&'static str),
    /// The API switched protocols on a route whose responses are redacted.
    Switched,
    Internal,
}

impl From<ClientFailure> for Failure {
    fn from(failure: ClientFailure) -> Self {
        Failure::Client(failure)
    }
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        Failure::Upstream(error)
    }
}

/// State of a request body that is being sent to the API.
pub struct Upload {
    /// The client may send more of it.
    pub is_open: bool,
    /// All of it was queued.
    is_whole: bool,
    /// Time of the last progress.
    progressed_at: Instant,
    /// The body is one direction of a tunnel.
    is_tunnel: bool,
    /// The part sent so far, for another connection; `None` if it is too long or not repeatable.
    replay: Option<BytesMut>,
}

impl Upload {
    fn new(has_body: bool, is_repeatable: bool, now: Instant) -> Self {
        Upload {
            is_open: has_body,
            is_whole: !has_body,
            progressed_at: now,
            is_tunnel: false,
            replay: is_repeatable.then(BytesMut::new),
        }
    }

    fn push(&mut self, api: &mut upstream::Exchange, piece: Bytes) {
        if let Some(replay) = &mut self.replay {
            if replay.len() + piece.len() > REPLAY_MAX {
                self.replay = None;
            } else {
                replay.extend_from_slice(&piece);
            }
        }
        api.push_body(piece);
    }
}

/// Status and fields of the API's response, including hop-by-hop fields.
pub struct ApiHead {
    pub status: StatusCode,
    pub fields: HeaderMap,
}

/// The API's side of an exchange.
pub struct ApiExchange {
    api: upstream::Exchange,
    pub upload: Upload,
}

impl ApiExchange {
    /// Whether the response body is complete. Its end is often received with its last piece.
    fn is_complete(&mut self) -> bool {
        self.api.is_body_complete() || self.api.take_end()
    }

    /// Passes the next piece of the request body to the API. Pending if the body is not open, the
    /// client sends nothing or the API accepts nothing.
    fn poll_upload(
        &mut self,
        context: &mut Context<'_>,
        session: &mut ClientSession,
    ) -> Poll<Result<(), ClientFailure>> {
        let ApiExchange { api, upload } = self;
        let (had_room, queued) = (api.is_writable(), api.unwritten());
        let _ = api.poll_send(context);
        if !had_room && api.unwritten() < queued {
            // The client's time starts when there is room for its data. Until then the API's
            // progress counts.
            upload.progressed_at = clock::now();
        }
        if api.has_send_failed() {
            // The API may have sent a response before it closed.
            upload.is_open = false;
        }
        if !upload.is_open || !api.is_writable() {
            return Poll::Pending;
        }
        match ready!(session.poll_body(context))? {
            None => {
                api.finish_body();
                (upload.is_open, upload.is_whole, upload.progressed_at) =
                    (false, true, clock::now());
            }
            // A part of a chunk head, or an empty frame.
            Some(piece) if piece.is_empty() => {}
            Some(piece) => {
                upload.push(api, piece);
                upload.progressed_at = clock::now();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for the next part of the response while the request body is sent. Ends when the client
    /// disconnects. `since`: when the wait began; `None` until there is one.
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        session: &mut ClientSession,
        since: &mut Option<Instant>,
        body_timeout: Duration,
    ) -> Poll<Result<Event, Failure>> {
        loop {
            let uploaded = self.poll_upload(context, session)?;
            if let Poll::Ready(event) = self.api.poll_event(context) {
                return Poll::Ready(event.map_err(Failure::from));
            }
            if uploaded.is_ready() {
                continue;
            }
            let Upload { is_open, progressed_at, is_tunnel, .. } = self.upload;
            let is_reading = is_open && self.api.is_writable();
            if !is_reading && session.poll_closed(context).is_ready() {
                return Poll::Ready(Err(Failure::Client(ClientFailure::Closed)));
            }
            let waits_for_client = is_reading && !is_tunnel;
            let deadline = if waits_for_client {
                progressed_at + body_timeout
            } else {
                let since = *since.get_or_insert_with(clock::now);
                since.max(progressed_at) + FORWARD_SILENCE
            };
            return session.timer().poll(context, deadline).map(|()| match waits_for_client {
                true => Err(Failure::Client(ClientFailure::TimedOut)),
                false => Err(UpstreamError::Timeout.into()),
            });
        }
    }

    /// Writes queued bytes to the client while the request body is sent. Otherwise a client that
    /// sends everything before it reads would wait for the API, and the API for the client.
    async fn flush(&mut self, session: &mut ClientSession) -> Result<(), ClientFailure> {
        let mut progress = WriteProgress::default();
        poll_fn(|context| {
            loop {
                if let Poll::Ready(flushed) = session.poll_flush(context, &mut progress) {
                    return Poll::Ready(flushed);
                }
                if !self.upload.is_open {
                    return Poll::Pending;
                }
                ready!(self.poll_upload(context, session))?;
                progress.touch();
            }
        })
        .await
    }

    /// Passes the rest of the client's data in a tunnel after the API has ended its direction,
    /// until the client ends too or is silent.
    async fn finish_tunnel(&mut self, session: &mut ClientSession) {
        poll_fn(|context| {
            loop {
                match self.poll_upload(context, session) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending
                        if !self.upload.is_open
                            && (self.api.is_sent() || self.api.has_send_failed()) =>
                    {
                        return Poll::Ready(());
                    }
                    Poll::Pending => {
                        return session
                            .timer()
                            .poll(context, self.upload.progressed_at + FORWARD_SILENCE);
                    }
                }
            }
        })
        .await;
    }
}

impl Proxy {
    /// Forwards a request and passes the response to the client, redacted by `redact_for`.
    pub async fn forward(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        redact_for: Option<&RedactFor>,
    ) -> Result<(), Failure> {
        let started = clock::now();
        let result = self.exchange(session, context, redact_for, started).await;
        let ended = result.as_ref().map_or_else(|_| clock::now(), |&(_, ended)| ended);
        let metrics = context.state.gateway.metrics().clone();
        let failed = match &result {
            Ok((status, _)) => is_failure(*status).then_some(FAILURE_STATUS),
            Err(Failure::Upstream(error)) => Some(error.labels()),
            Err(Failure::Switched) => Some(UpstreamError::Protocol.labels()),
            Err(_) => None,
        };
        let duration = ended.saturating_duration_since(started);
        metrics.record_upstream_exchange("forward", duration, failed);
        if let Some(span) = context.record.trace.as_ref().and_then(SampledSpan::from_trace) {
            metrics.add_forward_exemplar(span, duration);
        }
        let Err(failure) = result else { return Ok(()) };
        let is_open = matches!(
            failure,
            Failure::Client(_)
                | Failure::Upstream(UpstreamError::Timeout | UpstreamError::BodyTimeout)
        );
        self.on_upstream_failure(context, is_open);
        session.close_after();
        let can_respond = session.retract_head();
        let error = match failure {
            Failure::Client(failure) => failure.record(&mut context.record).filter(|_| can_respond),
            Failure::Upstream(error) => {
                context.record.cause = Some(error.cause());
                Some(ApiError::from(error))
            }
            Failure::Unredactable(reason) => {
                metrics.count_redaction_failure(reason);
                context.record.cause = Some(reason);
                Some(ApiError::RedactionFailed)
            }
            Failure::Switched => {
                context.record.cause = Some("upgrade");
                Some(ApiError::NoUpgrade)
            }
            Failure::Internal => Some(ApiError::Internal),
        };
        context.record.error = error;
        match error {
            Some(error) if can_respond => self.write(session, context, &Reply::from(error)).await,
            // The client has left, or the head was sent: the response can only be aborted.
            _ => {
                session.abort();
                Ok(())
            }
        }
    }

    /// Returns the status of the response and the time of its end.
    async fn exchange(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        redact_for: Option<&RedactFor>,
        started: Instant,
    ) -> Result<(StatusCode, Instant), Failure> {
        let sent = self.send_request(session, context, redact_for, started).await;
        context.record.api = Some(telemetry::ApiExchange {
            status: sent.as_ref().ok().map(|(_, head)| head.status),
            duration: clock::now().saturating_duration_since(started),
        });
        let (mut side, head) = sent?;
        let status = head.status;
        if is_failure(status) {
            context.record.cause = Some(FAILURE_STATUS.cause);
        }
        if let Some(origin) = context.state.gateway.forwarded_origin(&session.request().fields) {
            context.state.gateway.learn_cors(origin, &head.fields.to_map());
        }
        self.on_upstream_head(session, context, status);
        match redact_for {
            Some(redact_for) => {
                let head = ApiHead { status: head.status, fields: head.fields.to_map() };
                self.pass_restricted(session, context, redact_for, &mut side, &head).await?;
            }
            None => self.pass_unchanged(session, context, &mut side, head).await?,
        }
        let ApiExchange { mut api, upload } = side;
        let ended = clock::now();
        if upload.is_tunnel {
            return Ok((status, ended));
        }
        let is_request_sent = upload.is_whole && api.is_sent() && !api.has_send_failed();
        api.finish_reading();
        if let Some(connection) = api.into_reusable() {
            context.state.process.connector.keep(connection, ended);
        }
        if !is_request_sent {
            linger(session).await;
        }
        Ok((status, ended))
    }

    /// Sends the request and reads the final head of its response.
    ///
    /// A reused connection that turns out closed is replaced if the request may be repeated: no
    /// part of a response arrived, and the method is idempotent (RFC 9110 section 9.2.2) or nothing
    /// was sent. An address that fails is replaced under the same conditions.
    async fn send_request(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        redact_for: Option<&RedactFor>,
        started: Instant,
    ) -> Result<(ApiExchange, ResponseHead), Failure> {
        let has_body = session.has_body();
        let request = ApiRequest::new(session, context, redact_for);
        let is_idempotent = request.method.is_idempotent();
        let connector = context.state.process.connector.clone();
        let read_ahead = take_read_ahead(context);
        let mut upload = Upload::new(has_body, true, started);
        let mut has_continued = false;
        let mut queued = if has_body { read_ahead } else { Bytes::new() };
        let (mut tried, mut stale) = (Vec::new(), 0);
        loop {
            let opening = connector.open(&tried, stale >= STALE_CONNECTIONS_MAX);
            let connection = session.unless_closed(opening).await??;
            let is_reused = connection.is_reused;
            let endpoint = connection.endpoint().clone();
            let mut api = request.start(connection);
            if !queued.is_empty() {
                upload.push(&mut api, std::mem::take(&mut queued));
            }
            if upload.is_whole {
                api.finish_body();
            }
            let mut side = ApiExchange { api, upload };
            // Routes may be slow: only an address that fails for other requests too is given up.
            let may_give_up = is_idempotent && connector.has_untried(&[endpoint.id]);
            let head = select! {
                head = self.read_head(session, context, &mut side, &mut has_continued) => head,
                () = connector.ejected(&endpoint, &tried), if may_give_up => Err(UpstreamError::Timeout.into()),
            };
            let failure = match head {
                Ok(head) => {
                    connector.record_status(&endpoint, head.status);
                    side.upload.replay = None;
                    return Ok((side, head));
                }
                Err(failure) => failure,
            };
            let has_no_response = !side.api.has_received();
            let is_closed =
                matches!(failure, Failure::Upstream(UpstreamError::Truncated)) && has_no_response;
            let is_given_up = matches!(failure, Failure::Upstream(UpstreamError::Timeout))
                && has_no_response
                && may_give_up;
            let may_repeat = (is_closed || is_given_up)
                && !session.has_written_interim()
                && side.upload.replay.is_some()
                && (is_idempotent || !side.api.has_sent());
            let is_stale = is_reused && is_closed;
            if !is_stale {
                tried.push(endpoint.id);
            }
            if is_closed && !is_reused {
                connector.record_failed_exchange(&endpoint, "no_response");
            }
            if !may_repeat || (!is_stale && !connector.has_untried(&tried)) {
                return Err(if is_closed { UpstreamError::NoResponse.into() } else { failure });
            }
            stale += usize::from(is_stale);
            upload = side.upload;
            upload.is_open = !upload.is_whole;
            queued = upload.replay.replace(BytesMut::new()).unwrap_or_default().freeze();
        }
    }

    /// Reads the final head. Passes informational responses to clients that support them.
    async fn read_head(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        side: &mut ApiExchange,
        has_continued: &mut bool,
    ) -> Result<ResponseHead, Failure> {
        loop {
            let head = match self.receive(session, context, side).await? {
                Event::Head(head) => {
                    take_arrived_body(session, side).await?;
                    return Ok(head);
                }
                Event::Interim(head) => head,
                Event::Data(_) | Event::Trailers(_) | Event::End => {
                    return Err(UpstreamError::Protocol.into());
                }
            };
            let is_continue = head.status == StatusCode::CONTINUE;
            let passes = session.supports_interim() && !(is_continue && *has_continued);
            *has_continued |= is_continue;
            if passes {
                session.write_interim(interim_head(head)).await?;
            }
        }
    }

    /// Waits for the next part of the response.
    async fn receive(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        side: &mut ApiExchange,
    ) -> Result<Event, Failure> {
        let mut since = None;
        let body_timeout = context.state.limits.body_timeout();
        poll_fn(|context| side.poll_receive(context, session, &mut since, body_timeout)).await
    }

    /// Reads the next piece of the response body; `None` at its end.
    pub async fn receive_body(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        side: &mut ApiExchange,
    ) -> Result<Option<Bytes>, Failure> {
        loop {
            let received =
                self.receive(session, context, side).await.map_err(|failure| match failure {
                    Failure::Upstream(UpstreamError::Timeout) => UpstreamError::BodyTimeout.into(),
                    other => other,
                });
            match received? {
                Event::Data(data) => return Ok(Some(data)),
                Event::End => return Ok(None),
                // Trailer fields do not pass, and `Trailer` does not announce them.
                Event::Trailers(_) => {}
                Event::Interim(_) | Event::Head(_) => return Err(UpstreamError::Protocol.into()),
            }
        }
    }

    /// Passes the response through.
    async fn pass_unchanged(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        side: &mut ApiExchange,
        head: ResponseHead,
    ) -> Result<(), Failure> {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.tunnel(session, context, side, head).await;
        }
        let is_end = matches!(head.body, BodyLength::None | BodyLength::Known(0));
        if is_end {
            self.on_upstream_end(context);
        }
        if context.depends_on_level {
            let mut response = passed_head(head);
            restrict_caching(&mut response);
            Self::set_gateway_fields(&mut response, context);
            if response.status() == StatusCode::NO_CONTENT {
                response.headers_mut().remove(CONTENT_LENGTH);
            }
            if !is_end {
                frame(session, &mut response);
            }
            end_after_response(session, context, side);
            session.write_head(response, is_end).await?;
        } else {
            let mut forwarded = ForwardedHead::new(head, context.request_id.clone());
            if !is_end && !forwarded.has_length() {
                forwarded.is_chunked = frames_in_chunks(session);
            }
            end_after_response(session, context, side);
            session.write_forwarded_head(forwarded, is_end).await?;
        }
        if is_end {
            return Ok(());
        }
        self.pass_pieces(session, context, side, Bytes::new(), false).await
    }

    /// Passes both directions through after the API has switched protocols.
    async fn tunnel(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        side: &mut ApiExchange,
        head: ResponseHead,
    ) -> Result<(), Failure> {
        let is_asked = asks_for_websocket(session.request());
        let protocol = head
            .fields
            .get_all(&UPGRADE)
            .next()
            .and_then(|protocol| HeaderValue::from_bytes(protocol).ok());
        let Some(protocol) = protocol.filter(|_| is_asked) else {
            return Err(UpstreamError::Protocol.into());
        };
        let mut response = passed_head(head);
        if context.depends_on_level {
            restrict_caching(&mut response);
        }
        Self::set_gateway_fields(&mut response, context);
        let fields = response.headers_mut();
        fields.remove(CONTENT_LENGTH);
        fields.insert(UPGRADE, protocol);
        fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        self.on_upstream_end(context);
        session.write_head(response, false).await?;
        session.begin_tunnel();
        session.flush().await?;
        side.api.begin_tunnel();
        side.upload = Upload::new(true, false, clock::now());
        side.upload.is_tunnel = true;
        while let Some(piece) = self.receive_body(session, context, side).await? {
            write_piece(session, side, piece, false).await?;
        }
        session.end_sending().await;
        side.finish_tunnel(session).await;
        session.write_body(Bytes::new(), true).await.map_err(Failure::from)
    }

    /// Writes the head of a response whose body is passed through, framed for the client's protocol
    /// version.
    pub async fn write_stream_head(
        &self,
        session: &mut ClientSession,
        context: &RequestContext,
        side: &ApiExchange,
        mut response: Response<()>,
    ) -> Result<(), Failure> {
        frame(session, &mut response);
        end_after_response(session, context, side);
        session.write_head(response, false).await.map_err(Failure::from)
    }

    /// Passes a body through, after `first`. Changes of the request are invalidated before the last
    /// piece is written.
    pub async fn pass_pieces(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        side: &mut ApiExchange,
        first: Bytes,
        is_ended: bool,
    ) -> Result<(), Failure> {
        let mut piece = Some(first);
        while let Some(bytes) = piece {
            self.on_upstream_body(context, &bytes);
            let is_last = is_ended || side.is_complete();
            if is_last {
                self.on_upstream_end(context);
                return write_piece(session, side, bytes, true).await.map_err(Failure::from);
            }
            // The head does not wait for the first piece of the body.
            if !bytes.is_empty() || !side.api.has_unread() {
                write_piece(session, side, bytes, false).await?;
            }
            piece = self.receive_body(session, context, side).await?;
        }
        self.on_upstream_end(context);
        session.write_body(Bytes::new(), true).await.map_err(Failure::from)
    }

    /// Writes a complete response.
    pub async fn write_whole(
        &self,
        session: &mut ClientSession,
        side: &ApiExchange,
        response: Response<()>,
        body: Bytes,
    ) -> Result<(), Failure> {
        if side.upload.is_open {
            session.close_after();
        }
        session.write_head(response, body.is_empty()).await?;
        if body.is_empty() {
            Ok(())
        } else {
            session.write_body(body, true).await.map_err(Failure::from)
        }
    }
}

/// Reads the part of the request body that arrived before the response. It is often the end: then
/// the client's connection can stay open.
async fn take_arrived_body(
    session: &mut ClientSession,
    side: &mut ApiExchange,
) -> Result<(), Failure> {
    while side.upload.is_open {
        match poll_fn(|context| Poll::Ready(side.poll_upload(context, session))).await {
            Poll::Ready(uploaded) => uploaded?,
            Poll::Pending => break,
        }
    }
    Ok(())
}

/// Ends the client's connection after this response if the request body may be incomplete by then,
/// or if the process drains.
fn end_after_response(session: &mut ClientSession, context: &RequestContext, side: &ApiExchange) {
    if side.upload.is_open {
        // The response may end before the request body, whose rest is not read then.
        session.close_after();
    }
    end_if_draining(session, context);
}

/// Whether a body of unknown length is sent in chunks. Otherwise the connection ends with it.
fn frames_in_chunks(session: &mut ClientSession) -> bool {
    let is_chunked = session.request().version == Version::HTTP_11;
    if !is_chunked {
        // The body ends with the connection (RFC 9112 section 6.3), or with the stream.
        session.close_after();
    }
    is_chunked
}

/// Frames a body that is passed through.
fn frame(session: &mut ClientSession, response: &mut Response<()>) {
    if !response.headers().contains_key(CONTENT_LENGTH) && frames_in_chunks(session) {
        response.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Returns the API's head without hop-by-hop fields.
pub fn passed_head(head: ResponseHead) -> Response<()> {
    response_of(head.status, head.fields.to_map())
}

/// Returns a response without hop-by-hop fields.
pub fn response_of(status: StatusCode, mut fields: HeaderMap) -> Response<()> {
    remove_hop_by_hop(&mut fields);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}

/// Returns an informational head without hop-by-hop fields and length.
fn interim_head(head: ResponseHead) -> Response<()> {
    let mut passed = passed_head(head);
    passed.headers_mut().remove(CONTENT_LENGTH);
    passed
}

/// Writes a piece of a response body while the request body is sent. `is_end`: it is the last
/// piece.
async fn write_piece(
    session: &mut ClientSession,
    side: &mut ApiExchange,
    piece: Bytes,
    is_end: bool,
) -> Result<(), ClientFailure> {
    session.queue_body(piece, is_end);
    side.flush(session).await
}

/// Discards the rest of a request body for up to [`LINGER`].
async fn linger(session: &mut ClientSession) {
    if session.is_http2() {
        return;
    }
    let _ = timeout(LINGER, async { while let Ok(Some(_)) = session.read_body().await {} }).await;
}
