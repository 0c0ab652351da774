//! The exchange of a forwarded request with the API, for every forwarding route.
//!
//! Both directions run at once, and every wait ends when the client leaves. The response passes as
//! it comes, or is redacted (see `redacted`), or becomes a tunnel after a switch of protocols.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Response, StatusCode, Version};
use http1::{BodyLength, ResponseHead};
use tokio::select;
use tokio::time::timeout;

use super::api_request::{ApiRequest, asks_for_websocket};
use super::client_session::{ClientSession, WriteProgress};
use super::credentials::take_read_ahead;
use super::disconnect::ClientFailure;
use super::forwarded_head::ForwardedHead;
use super::request_context::{Exchange, Proxy, end_if_draining};
use super::veil::{Veil, restrict_caching};
use crate::api::ApiError;
use crate::clock;
use crate::forward::remove_hop_by_hop;
use crate::reply::Reply;
use crate::upstream::{self, Event, FORWARD_SILENCE, STALE_CONNECTIONS_MAX, UpstreamError};

/// Time for which a client may go on sending a request body that is not read any more, so that its
/// response is not lost in a reset (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(1);

/// Maximum length of a request body that is kept, so that it can be sent again when a kept
/// connection turns out closed.
const REPLAY_MAX: usize = 64 << 10;

/// Reason why an exchange failed.
pub(super) enum Failure {
    Upstream(UpstreamError),
    /// The client left, is too slow, or its request body is broken.
    Client(ClientFailure),
    /// The response may not be shown. What was read of it is dropped.
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

/// The body of a request on its way to the API.
pub(super) struct Upload {
    /// More of it may come from the client.
    pub(super) is_open: bool,
    /// All of it was queued.
    is_whole: bool,
    /// When a part of it moved last.
    moved: Instant,
    /// It is one direction of a tunnel.
    is_tunnel: bool,
    /// What was sent of it so far, for another connection; `None`: too much, or not repeatable.
    replay: Option<BytesMut>,
}

impl Upload {
    fn new(has_body: bool, is_repeatable: bool) -> Self {
        Upload {
            is_open: has_body,
            is_whole: !has_body,
            moved: clock::now(),
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

/// Status and fields of the API's response, hop-by-hop fields included.
pub(super) struct ApiHead {
    pub(super) status: StatusCode,
    pub(super) fields: HeaderMap,
}

/// The API's side of an exchange.
pub(super) struct ApiSide {
    api: upstream::Exchange,
    pub(super) upload: Upload,
}

impl ApiSide {
    /// Whether no more of the response body will come. Its end is often received with its last piece.
    fn ends_here(&mut self) -> bool {
        self.api.is_body_complete() || self.api.take_end()
    }

    /// Passes the next piece of the request body to the API; pending if it is not open, or if the
    /// client sends or the API accepts nothing at present.
    fn poll_upload(
        &mut self,
        context: &mut Context<'_>,
        session: &mut ClientSession,
    ) -> Poll<Result<(), ClientFailure>> {
        let ApiSide { api, upload } = self;
        let (had_room, queued) = (api.is_writable(), api.unwritten());
        let _ = api.poll_send(context);
        if !had_room && api.unwritten() < queued {
            // What the client sends counts from when there is room for it; until then the API's
            // progress counts.
            upload.moved = clock::now();
        }
        if api.has_send_failed() {
            // What the API sent before it closed is still to be read.
            upload.is_open = false;
        }
        if !upload.is_open || !api.is_writable() {
            return Poll::Pending;
        }
        match ready!(session.poll_body(context))? {
            None => {
                api.finish_body();
                (upload.is_open, upload.is_whole, upload.moved) = (false, true, clock::now());
            }
            // Empty where the head of a chunk came in part, or an empty frame.
            Some(piece) if piece.is_empty() => {}
            Some(piece) => {
                upload.push(api, piece);
                upload.moved = clock::now();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for the next part of the response. Meanwhile the request's body goes on, and the client
    /// may leave. `since`: when the wait began.
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        session: &mut ClientSession,
        since: Instant,
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
            let Upload { is_open, moved, is_tunnel, .. } = self.upload;
            let is_reading = is_open && self.api.is_writable();
            if !is_reading && session.poll_left(context).is_ready() {
                return Poll::Ready(Err(Failure::Client(ClientFailure::Closed)));
            }
            let waits_for_client = is_reading && !is_tunnel;
            let deadline = if waits_for_client { moved + body_timeout } else { since.max(moved) + FORWARD_SILENCE };
            return session.timer().poll(context, deadline).map(|()| match waits_for_client {
                true => Err(Failure::Client(ClientFailure::TimedOut)),
                false => Err(UpstreamError::Timeout.into()),
            });
        }
    }

    /// Writes what is queued for the client. Meanwhile the request's body goes on: a client that
    /// sends everything before it reads would wait for the API otherwise, and the API for it.
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

    /// Passes what the client still sends in a tunnel in which the API sends no more, until it ends
    /// or is silent.
    async fn finish_tunnel(&mut self, session: &mut ClientSession) {
        poll_fn(|context| {
            loop {
                match self.poll_upload(context, session) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending if !self.upload.is_open && (self.api.is_sent() || self.api.has_send_failed()) => {
                        return Poll::Ready(());
                    }
                    Poll::Pending => return session.timer().poll(context, self.upload.moved + FORWARD_SILENCE),
                }
            }
        })
        .await;
    }
}

impl Proxy {
    /// Forwards a request, and gives its client what it may see of the response: all of it, or what
    /// `veil` leaves.
    pub(super) async fn forward(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        veil: Option<&Veil>,
    ) -> Result<(), Failure> {
        let started = clock::now();
        let result = self.exchange(session, exchange, veil).await;
        let metrics = exchange.state.gateway.metrics().clone();
        let failed = match &result {
            Err(Failure::Upstream(error)) => Some(*error),
            Err(Failure::Switched) => Some(UpstreamError::Protocol),
            _ => None,
        };
        metrics.upstream_exchange("forward", started.elapsed(), failed.map(UpstreamError::labels));
        let Err(failure) = result else { return Ok(()) };
        let is_open = matches!(
            failure,
            Failure::Client(_) | Failure::Upstream(UpstreamError::Timeout | UpstreamError::BodyTimeout)
        );
        self.response_failed(exchange, is_open);
        session.close_after();
        let error = match failure {
            Failure::Client(failure) => match failure.record(&mut exchange.record) {
                Some(error) => error,
                None => {
                    session.abort();
                    return Ok(());
                }
            },
            Failure::Upstream(error) => {
                exchange.record.cause = Some(error.cause());
                ApiError::from(error)
            }
            Failure::Unredactable(reason) => {
                metrics.redaction_failed(reason);
                exchange.record.cause = Some(reason);
                ApiError::RedactionFailed
            }
            Failure::Switched => {
                exchange.record.cause = Some("upgrade");
                ApiError::NoUpgrade
            }
            Failure::Internal => ApiError::Internal,
        };
        exchange.record.error = Some(error);
        if !session.retract_head() {
            // The head is out: the response can only be cut.
            session.abort();
            return Ok(());
        }
        self.write(session, exchange, &Reply::from(error)).await
    }

    async fn exchange(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        veil: Option<&Veil>,
    ) -> Result<(), Failure> {
        let (mut side, head) = self.ask(session, exchange, veil).await?;
        self.response_begun(session, exchange, head.status);
        match veil {
            Some(veil) => {
                let head = ApiHead { status: head.status, fields: head.fields.to_map() };
                self.answer_veiled(session, exchange, veil, &mut side, &head).await?;
            }
            None => self.answer_plain(session, exchange, &mut side, head).await?,
        }
        let ApiSide { mut api, upload } = side;
        if upload.is_tunnel {
            return Ok(());
        }
        let is_request_sent = upload.is_whole && api.is_sent() && !api.has_send_failed();
        api.finish_reading();
        if let Some(connection) = api.into_reusable() {
            exchange.state.process.connector.keep(connection);
        }
        if !is_request_sent {
            linger(session).await;
        }
        Ok(())
    }

    /// Sends the request and reads the final head of its response.
    ///
    /// A kept connection that turns out closed is replaced if the request may be repeated: nothing
    /// of a response arrived, and the method is idempotent (RFC 9110 section 9.2.2) or nothing was
    /// sent. Likewise an address that fails is replaced by another.
    async fn ask(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        veil: Option<&Veil>,
    ) -> Result<(ApiSide, ResponseHead), Failure> {
        let has_body = session.has_body();
        let request = ApiRequest::new(session, exchange, veil);
        let is_idempotent = request.method.is_idempotent();
        let connector = exchange.state.process.connector.clone();
        let read_ahead = take_read_ahead(exchange);
        let mut upload = Upload::new(has_body, true);
        let mut has_continued = false;
        let mut queued = if has_body { read_ahead } else { Bytes::new() };
        let (mut tried, mut stale) = (Vec::new(), 0);
        loop {
            let opening = connector.open(&tried, stale >= STALE_CONNECTIONS_MAX);
            let connection = or_left(session, opening).await??;
            let is_reused = connection.is_reused;
            let endpoint = connection.endpoint().clone();
            let mut api = request.start(connection);
            if !queued.is_empty() {
                upload.push(&mut api, std::mem::take(&mut queued));
            }
            if upload.is_whole {
                api.finish_body();
            }
            let mut side = ApiSide { api, upload };
            // Slow routes are legitimate: only an address that fails for others too is given up.
            let may_give_up = is_idempotent && connector.has_untried(&[endpoint.id]);
            let head = select! {
                head = self.read_head(session, exchange, &mut side, &mut has_continued) => head,
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
            let is_closed = matches!(failure, Failure::Upstream(UpstreamError::Truncated)) && has_no_response;
            let is_given_up =
                matches!(failure, Failure::Upstream(UpstreamError::Timeout)) && has_no_response && may_give_up;
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

    /// Reads the final head. Informational responses pass if the client knows them.
    async fn read_head(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        has_continued: &mut bool,
    ) -> Result<ResponseHead, Failure> {
        loop {
            let head = match self.receive(session, exchange, side).await? {
                Event::Head(head) => {
                    take_arrived_body(session, side).await?;
                    return Ok(head);
                }
                Event::Interim(head) => head,
                Event::Data(_) | Event::Trailers(_) | Event::End => return Err(UpstreamError::Protocol.into()),
            };
            let is_continue = head.status == StatusCode::CONTINUE;
            let passes = session.knows_interim() && !(is_continue && *has_continued);
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
        exchange: &mut Exchange,
        side: &mut ApiSide,
    ) -> Result<Event, Failure> {
        let since = clock::now();
        let body_timeout = exchange.state.limits.body_timeout();
        poll_fn(|context| side.poll_receive(context, session, since, body_timeout)).await
    }

    /// Reads the next piece of the response body; `None` at its end.
    pub(super) async fn receive_body(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        side: &mut ApiSide,
    ) -> Result<Option<Bytes>, Failure> {
        loop {
            let received = self.receive(session, exchange, side).await.map_err(|failure| match failure {
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

    /// Passes the response as it comes.
    async fn answer_plain(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        head: ResponseHead,
    ) -> Result<(), Failure> {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.tunnel(session, exchange, side, head).await;
        }
        let is_end = matches!(head.body, BodyLength::None | BodyLength::Known(0));
        if is_end {
            self.response_complete(exchange);
        }
        if exchange.depends_on_level {
            let mut response = passed_head(head);
            restrict_caching(&mut response);
            Self::set_answer_fields(&mut response, exchange);
            if response.status() == StatusCode::NO_CONTENT {
                response.headers_mut().remove(CONTENT_LENGTH);
            }
            if !is_end {
                frame(session, &mut response);
            }
            end_after_response(session, exchange, side);
            session.write_head(response, is_end).await?;
        } else {
            let mut forwarded = ForwardedHead::new(head, exchange.request_id().clone());
            if !is_end && !forwarded.has_length() {
                forwarded.is_chunked = frames_in_chunks(session);
            }
            end_after_response(session, exchange, side);
            session.write_forwarded_head(forwarded, is_end).await?;
        }
        if is_end {
            return Ok(());
        }
        self.pass_pieces(session, exchange, side, Bytes::new(), false).await
    }

    /// Passes both directions as they come, after the API has switched protocols.
    async fn tunnel(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        head: ResponseHead,
    ) -> Result<(), Failure> {
        let is_asked = asks_for_websocket(session.request());
        let protocol = head.fields.get_all(&UPGRADE).next().and_then(|protocol| HeaderValue::from_bytes(protocol).ok());
        let Some(protocol) = protocol.filter(|_| is_asked) else {
            return Err(UpstreamError::Protocol.into());
        };
        let mut response = passed_head(head);
        if exchange.depends_on_level {
            restrict_caching(&mut response);
        }
        Self::set_answer_fields(&mut response, exchange);
        let fields = response.headers_mut();
        fields.remove(CONTENT_LENGTH);
        fields.insert(UPGRADE, protocol);
        fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        self.response_complete(exchange);
        session.write_head(response, false).await?;
        session.begin_tunnel();
        session.flush().await?;
        side.api.begin_tunnel();
        side.upload = Upload::new(true, false);
        side.upload.is_tunnel = true;
        while let Some(piece) = self.receive_body(session, exchange, side).await? {
            write_piece(session, side, piece, false).await?;
        }
        session.end_sending().await;
        side.finish_tunnel(session).await;
        session.write_body(Bytes::new(), true).await.map_err(Failure::from)
    }

    /// Writes the head of a response whose body passes as it comes, framed for the client's
    /// protocol version.
    pub(super) async fn write_stream_head(
        &self,
        session: &mut ClientSession,
        exchange: &Exchange,
        side: &ApiSide,
        mut response: Response<()>,
    ) -> Result<(), Failure> {
        frame(session, &mut response);
        end_after_response(session, exchange, side);
        session.write_head(response, false).await.map_err(Failure::from)
    }

    /// Passes a body as it comes, after `first`. What it changes is invalidated before its last piece
    /// is written.
    pub(super) async fn pass_pieces(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        first: Bytes,
        is_ended: bool,
    ) -> Result<(), Failure> {
        let mut piece = Some(first);
        while let Some(bytes) = piece {
            self.response_piece(exchange, &bytes);
            let is_last = is_ended || side.ends_here();
            if is_last {
                self.response_complete(exchange);
                return write_piece(session, side, bytes, true).await.map_err(Failure::from);
            }
            // The head does not wait for a body that comes later.
            if !bytes.is_empty() || !side.api.has_unread() {
                write_piece(session, side, bytes, false).await?;
            }
            piece = self.receive_body(session, exchange, side).await?;
        }
        self.response_complete(exchange);
        session.write_body(Bytes::new(), true).await.map_err(Failure::from)
    }

    /// Writes a response that is whole.
    pub(super) async fn write_whole(
        &self,
        session: &mut ClientSession,
        side: &ApiSide,
        response: Response<()>,
        body: Bytes,
    ) -> Result<(), Failure> {
        if side.upload.is_open {
            session.close_after();
        }
        session.write_head(response, body.is_empty()).await?;
        if body.is_empty() { Ok(()) } else { session.write_body(body, true).await.map_err(Failure::from) }
    }
}

/// Reads what has arrived of the request body when its response begins. The end of the body is often
/// there already: then the connection of the client can stay open.
async fn take_arrived_body(session: &mut ClientSession, side: &mut ApiSide) -> Result<(), Failure> {
    while side.upload.is_open {
        match poll_fn(|context| Poll::Ready(side.poll_upload(context, session))).await {
            Poll::Ready(uploaded) => uploaded?,
            Poll::Pending => break,
        }
    }
    Ok(())
}

/// Ends the client's connection after this response if its request may be incomplete by then, or if
/// the process drains.
fn end_after_response(session: &mut ClientSession, exchange: &Exchange, side: &ApiSide) {
    if side.upload.is_open {
        // The response may end first: then what the client still sends is not read.
        session.close_after();
    }
    end_if_draining(session, exchange);
}

/// Whether a body of unknown length is sent in chunks, by the client's protocol version.
fn frames_in_chunks(session: &mut ClientSession) -> bool {
    let is_chunked = session.request().version == Version::HTTP_11;
    if !is_chunked {
        // The body ends with the connection (RFC 9112 section 6.3), or with the stream.
        session.close_after();
    }
    is_chunked
}

/// Frames a body that passes as it comes.
fn frame(session: &mut ClientSession, response: &mut Response<()>) {
    if !response.headers().contains_key(CONTENT_LENGTH) && frames_in_chunks(session) {
        response.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// The API's head as it may pass: without the fields of its hop.
pub(super) fn passed_head(head: ResponseHead) -> Response<()> {
    response_of(head.status, head.fields.to_map())
}

/// A response without the fields of its hop.
pub(super) fn response_of(status: StatusCode, mut fields: HeaderMap) -> Response<()> {
    remove_hop_by_hop(&mut fields);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}

/// An informational head as it may pass.
fn interim_head(head: ResponseHead) -> Response<()> {
    let mut passed = passed_head(head);
    passed.headers_mut().remove(CONTENT_LENGTH);
    passed
}

/// Writes a piece of a response body while the request's body goes on. With `is_end` it is the last
/// one.
async fn write_piece(
    session: &mut ClientSession,
    side: &mut ApiSide,
    piece: Bytes,
    is_end: bool,
) -> Result<(), ClientFailure> {
    session.queue_body(piece, is_end);
    side.flush(session).await
}

/// Waits for `work` unless the client leaves.
pub(super) async fn or_left<T>(session: &mut ClientSession, work: impl Future<Output = T>) -> Result<T, Failure> {
    let mut work = pin!(work);
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => session.poll_left(context).map(|()| Err(Failure::Client(ClientFailure::Closed))),
    })
    .await
}

/// Reads what the client still sends of a request body, for a moment.
async fn linger(session: &mut ClientSession) {
    if session.is_http2() {
        return;
    }
    let _ = timeout(LINGER, async { while let Ok(Some(_)) = session.read_body().await {} }).await;
}
