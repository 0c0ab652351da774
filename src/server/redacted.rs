//! Exchanges of forwarded requests whose responses are redacted. They run here and not in pingora's proxy, since a
//! response must be whole before it can be redacted, and its head must wait for that.
//!
//! Only for callers below `reveal_to` on the routes of `forward.redact`, and for responses that state an access level
//! themselves. Both directions run at once, and every wait ends when the client leaves. What is neither redacted JSON nor
//! of a listed media type does not reach the client.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT,
    HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
    RANGE, TRANSFER_ENCODING, VARY,
};
use http::{Method, StatusCode, Version};
use pingora_core::ErrorType;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use tokio::select;
use tokio::time::{sleep, sleep_until, timeout, timeout_at};

use super::credentials::take_read_ahead;
use super::disconnect::ClientFailure;
use super::proxy::{Exchange, Proxy, end_if_draining};
use super::response_budget::{Client, MAX_BODY, Reserved, Sending};
use crate::api::{AccessLevel, ApiError, MediaType, MediaTypePattern, Query, accepts_any, error_body};
use crate::config::ForwardRole;
use crate::forward::hop_by_hop;
use crate::offload::{self, MAX_IN_PLACE};
use crate::redact::{Kind, Policy, Redacted, Refusal as Unredactable, redact_or_keep};
use crate::reply::{Reply, is_for_shared_caches, private_cache_control, vary_on_credentials};
use crate::upstream::{
    Backlog, MAX_INFORMATIONAL, MAX_STALE_CONNECTIONS, UpstreamError, came_framed_plainly, has_content_coding,
    write_behind,
};

/// How long the reading of one response may take, waiting for room included.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// Bytes of one write to a client: each has `server.write_timeout`, so that a client who reads steadily gets everything.
const PIECE: usize = 16 << 10;

/// How often a connection of HTTP/1.1 is checked for a reset: a tenth of the second within which an exchange ends.
const RESET_CHECK: Duration = Duration::from_millis(100);

/// How long a client may go on sending a request body that is not read any more, so that its response is not lost in a
/// reset (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(1);

/// The state of a TCP connection that was reset or is closed on both sides (`TCP_CLOSE` of Linux).
const TCP_CLOSED: u8 = 7;

/// Fields that describe the bytes of a body, and so what was removed from it.
const OF_THE_BODY: [&str; 5] = ["etag", "content-md5", "digest", "content-digest", "repr-digest"];

/// Fields by which a request asks for a part of a response, or for none: the API would judge them by bytes that the client
/// must not see.
const OF_THE_UNREDACTED: [HeaderName; 6] =
    [RANGE, IF_RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];

/// A rule of `[[forward.redact]]`, as it applies to one request.
pub struct RedactRule {
    pub role: ForwardRole,
    pub policy: Arc<Policy>,
    pub pass_types: Arc<[MediaTypePattern]>,
}

/// What the response to a forwarded request must go through.
#[derive(Clone)]
pub struct Veil {
    policy: Arc<Policy>,
    /// `None`: the level that the response itself states.
    level: Option<AccessLevel>,
    pass_types: Arc<[MediaTypePattern]>,
}

impl Veil {
    /// `level`: the caller's. `None`: it may see everything.
    pub fn new(rule: RedactRule, level: Option<AccessLevel>) -> Option<Self> {
        let RedactRule { role, policy, pass_types } = rule;
        let level = if role == ForwardRole::Answer { None } else { level };
        let reveals = level.is_some_and(|level| policy.reveals_to(level));
        (!reveals).then_some(Veil { policy, level, pass_types })
    }

    const fn role(&self) -> &'static str {
        match self.level {
            Some(level) => level.as_str(),
            None => "answer",
        }
    }

    async fn redact(&self, body: Bytes) -> Result<Redacted, Unredactable> {
        let (policy, level) = (self.policy.clone(), self.level);
        offload::run(body.len(), move || redact_or_keep(&policy, level, body)).await
    }

    /// What the API's head says of the body.
    fn content(&self, head: &HeaderMap) -> Content {
        let mut types = head.get_all(CONTENT_TYPE).iter().map(|value| MediaType::parse(value.as_bytes()));
        match (types.next(), types.next()) {
            (None, _) => Content::Untyped,
            (Some(Some(one)), None) if one.is_json() => Content::Json,
            (Some(Some(one)), None) if self.pass_types.iter().any(|pattern| pattern.matches(&one)) => {
                Content::Passing { streams: one.is_event_stream() }
            }
            (Some(Some(one)), None) if one.is_event_stream() => Content::EventStream,
            // Several types, or none that can be read: the body itself decides, or nothing passes.
            _ => Content::Other,
        }
    }
}

/// What a response claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Json,
    /// It passes unless it turns out to be JSON. `streams`: its head does not wait for its body.
    Passing {
        streams: bool,
    },
    /// Events, which do not pass, and whose first byte may never come.
    EventStream,
    Untyped,
    Other,
}

/// How such an exchange can fail.
enum Failure {
    Upstream(UpstreamError),
    /// The client left, is too slow, or its request body is broken.
    Client(ClientFailure),
    /// The response may not be shown. What was read of it is dropped.
    Unredactable(&'static str),
    /// The API switched protocols.
    Switched,
    Internal,
}

impl From<Box<pingora_core::Error>> for Failure {
    fn from(_: Box<pingora_core::Error>) -> Self {
        Failure::Internal
    }
}

fn upstream(error: Box<pingora_core::Error>) -> Failure {
    Failure::Upstream(UpstreamError::of(&error))
}

/// A failed read of a request body.
fn broken_body(error: Box<pingora_core::Error>) -> Failure {
    let failure = match error.etype() {
        // pingora's own name for a chunked body that ends early.
        ErrorType::Custom("PREMATURE_BODY_END") => ClientFailure::Closed,
        _ => ClientFailure::from_error(&error),
    };
    Failure::Client(failure)
}

/// A write that failed or was not accepted in time: in either case the client receives nothing more.
fn gone(_: Box<pingora_core::Error>) -> Failure {
    Failure::Client(ClientFailure::Closed)
}

/// A request's body on its way to the API.
struct Upload {
    /// More of it may come.
    is_open: bool,
    /// Everything of it was given to the connection.
    is_whole: bool,
    /// When something of it moved last.
    moved: Instant,
    backlog: Arc<Backlog>,
}

impl Upload {
    fn new(has_body: bool, backlog: Arc<Backlog>) -> Self {
        Upload { is_open: has_body, is_whole: !has_body, moved: Instant::now(), backlog }
    }

    /// Whether the API's connection is where the next request can begin.
    fn is_done(&self) -> bool {
        self.is_whole && !self.backlog.has_failed() && self.backlog.is_empty()
    }
}

/// The parts of a response, in their order.
#[derive(Clone, Copy)]
enum Part {
    Head,
    Body,
}

async fn read_part(api: &mut HttpSession, part: Part) -> pingora_core::Result<Option<Bytes>> {
    match part {
        Part::Head => api.read_response_header().await.map(|()| None),
        Part::Body => api.read_response_body().await,
    }
}

/// The API's side of an exchange.
struct ApiSide {
    api: HttpSession,
    peer: Arc<HttpPeer>,
    upload: Upload,
    /// How long the API may be silent.
    silence: Duration,
}

impl Proxy {
    /// Exchanges a request with the API, and gives its client what it may see of the response.
    pub(super) async fn pass_veiled(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        veil: &Veil,
    ) -> pingora_core::Result<()> {
        let started = Instant::now();
        let result = self.exchange_veiled(session, exchange, veil).await;
        let metrics = exchange.setup.gateway.metrics.clone();
        let failed = match &result {
            Err(Failure::Upstream(error)) => Some(*error),
            Err(Failure::Switched) => Some(UpstreamError::Protocol),
            _ => None,
        };
        metrics.upstream_exchange("forward", started.elapsed(), failed);
        let Err(failure) = result else { return Ok(()) };
        let is_open = matches!(failure, Failure::Client(_) | Failure::Upstream(UpstreamError::Timeout));
        self.response_failed(exchange, is_open);
        session.set_keepalive(None);
        let error = match failure {
            Failure::Client(failure) => match failure.record(&mut exchange.record) {
                Some(error) => error,
                None => {
                    session.as_downstream_mut().shutdown().await;
                    return Ok(());
                }
            },
            Failure::Upstream(error) => {
                exchange.record.cause = Some(error.as_str());
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
        if session.response_written().is_some_and(|written| !written.status.is_informational()) {
            // The head is out: the response can only be cut.
            session.as_downstream_mut().shutdown().await;
            return Ok(());
        }
        self.write(session, exchange, &Reply::from(error)).await
    }

    async fn exchange_veiled(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        veil: &Veil,
    ) -> Result<(), Failure> {
        let mut side = self.ask_veiled(session, exchange, veil).await?;
        match self.answer_veiled(session, exchange, veil, &mut side).await {
            Ok(()) if side.upload.is_done() => {
                side.upload.backlog.end();
                exchange.setup.gateway.connections().release(side.api, &side.peer).await;
                Ok(())
            }
            Ok(()) => {
                side.api.shutdown().await;
                linger(session).await;
                Ok(())
            }
            Err(failure) => {
                side.api.shutdown().await;
                Err(failure)
            }
        }
    }

    /// Sends the request, and reads the head of its response, of informational ones too.
    async fn ask_veiled(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        veil: &Veil,
    ) -> Result<ApiSide, Failure> {
        let has_body = !session.as_downstream_mut().is_body_empty();
        let head = self.veiled_request(session, exchange, veil, has_body)?;
        // Sent again only where nothing of it can have been obeyed: a kept connection that turned out closed.
        let repeatable = !has_body && head.method.is_idempotent();
        let shared = exchange.setup.clone();
        let peer = or_left(session, shared.peers.for_forward()).await?.map_err(Failure::Upstream)?;
        let mut stale_connections = 0;
        loop {
            let connecting = shared.gateway.connections().connect(&peer);
            let (api, reused) = or_left(session, connecting).await?.map_err(Failure::Upstream)?;
            let (mut api, backlog) = if has_body { write_behind(api, &peer) } else { (api, Arc::default()) };
            if let HttpSession::H1(h1) = &mut api {
                h1.write_timeout = peer.options.write_timeout;
            }
            let silence = peer.options.read_timeout.unwrap_or(LONGEST_HOLD);
            let upload = Upload::new(has_body, backlog);
            let mut side = ApiSide { api, peer: peer.clone(), upload, silence };
            match self.send_veiled(session, exchange, &mut side, head.clone()).await {
                Ok(()) => return Ok(side),
                Err(Failure::Upstream(UpstreamError::Truncated))
                    if reused && repeatable && stale_connections < MAX_STALE_CONNECTIONS =>
                {
                    stale_connections += 1;
                }
                Err(failure) => {
                    side.api.shutdown().await;
                    return Err(failure);
                }
            }
        }
    }

    async fn send_veiled(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        head: RequestHeader,
    ) -> Result<(), Failure> {
        let mut expects_continue = head.headers.contains_key(EXPECT);
        or_left(session, side.api.write_request_header(Box::new(head))).await?.map_err(upstream)?;
        let read_ahead = take_read_ahead(exchange);
        if side.upload.is_open && !read_ahead.is_empty() {
            side.api.write_request_body(read_ahead, false).await.map_err(upstream)?;
        }
        if !side.upload.is_open {
            or_left(session, side.api.finish_request_body()).await?.map_err(upstream)?;
        }
        let mut informational = 0;
        loop {
            self.receive(session, exchange, side, Part::Head).await?;
            let Some(head) = side.api.response_header() else { return Err(Failure::Internal) };
            if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(());
            }
            informational += 1;
            if informational > MAX_INFORMATIONAL {
                return Err(Failure::Upstream(UpstreamError::Protocol));
            }
            let is_continue = head.status == StatusCode::CONTINUE;
            // HTTP/1.0 knows none (RFC 9110 section 15.2), and pingora writes none over HTTP/2.
            let passes = session.req_header().version == Version::HTTP_11 && (!is_continue || expects_continue);
            expects_continue &= !is_continue;
            if passes {
                let head = informational_head(head);
                session.write_response_header(Box::new(head), false).await.map_err(gone)?;
            }
        }
    }

    /// Reads the next part of the response. Meanwhile the request's body goes on, and the client may leave.
    async fn receive(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        part: Part,
    ) -> Result<Option<Bytes>, Failure> {
        enum Event {
            Piece(Option<Bytes>),
            Progress,
        }
        let since = Instant::now();
        let body_timeout = exchange.setup.limits.body_timeout();
        let ApiSide { api, upload, silence, .. } = side;
        loop {
            if upload.is_open && upload.backlog.has_failed() {
                // What the API said before it closed is still to be read.
                upload.is_open = false;
            }
            let (is_open, has_room) = (upload.is_open, upload.backlog.has_room());
            let reads_body = is_open && has_room;
            let deadline = if reads_body { upload.moved + body_timeout } else { since.max(upload.moved) + *silence };
            let event = select! {
                read = read_part(api, part) => return read.map_err(upstream),
                event = request_piece(session, reads_body) => Event::Piece(event?),
                () = upload.backlog.progress(), if !upload.backlog.is_empty() => Event::Progress,
                () = sleep_until(deadline.into()) => {
                    return Err(if reads_body { Failure::Client(ClientFailure::TimedOut) } else { Failure::Upstream(UpstreamError::Timeout) });
                }
            };
            let now = Instant::now();
            match event {
                Event::Piece(None) => {
                    api.finish_request_body().await.map_err(upstream)?;
                    (upload.is_open, upload.is_whole, upload.moved) = (false, true, now);
                }
                Event::Piece(Some(piece)) => {
                    if !exchange.pace.keeps_up(piece.len(), now) {
                        return Err(Failure::Client(ClientFailure::TimedOut));
                    }
                    // Nothing comes where the head of a chunk came in part, or an empty frame. Written, it would be the
                    // last chunk, and what follows it a request of its own.
                    if !piece.is_empty() {
                        api.write_request_body(piece, false).await.map_err(upstream)?;
                        upload.moved = now;
                    }
                }
                // What the client sends counts from when there is room for it; until then the API's progress counts.
                Event::Progress if !has_room => upload.moved = now,
                Event::Progress => {}
            }
        }
    }

    /// The request as the API gets it: as pingora would send it, except that it asks for a whole response without a coding
    /// and of a type that can be shown.
    fn veiled_request(
        &self,
        session: &Session,
        exchange: &Exchange,
        veil: &Veil,
        has_body: bool,
    ) -> pingora_core::Result<RequestHeader> {
        let from = session.req_header();
        let mut head = from.clone();
        head.set_version(Version::HTTP_11);
        for name in hop_by_hop(&from.headers).chain(OF_THE_UNREDACTED) {
            head.remove_header(&name);
        }
        let expects =
            from.headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if !has_body || !expects || from.version == Version::HTTP_10 {
            head.remove_header(&EXPECT);
        }
        self.set_forward_fields(session, &mut head, exchange)?;
        head.insert_header(ACCEPT_ENCODING, "identity")?;
        let accept = from.headers.get_all(ACCEPT).iter().map(HeaderValue::as_bytes);
        if !accepts_any(accept, &veil.pass_types) {
            head.insert_header(ACCEPT, "application/json")?;
        }
        if has_body && !head.headers.contains_key(CONTENT_LENGTH) {
            head.insert_header(TRANSFER_ENCODING, "chunked")?;
        }
        Ok(head)
    }

    /// The API's head as the client gets it, except for what depends on the body.
    fn response(&self, head: &ResponseHeader, exchange: &Exchange) -> pingora_core::Result<ResponseHeader> {
        let mut response = head.clone();
        for name in hop_by_hop(&head.headers).chain([ACCEPT_RANGES]) {
            response.remove_header(&name);
        }
        response.set_version(Version::HTTP_11);
        restrict_caching(&mut response)?;
        Self::set_answer_fields(&mut response, exchange)?;
        Ok(response)
    }

    /// Gives the client what it may see of the response whose head was read.
    async fn answer_veiled(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        veil: &Veil,
        side: &mut ApiSide,
    ) -> Result<(), Failure> {
        let head = side.api.response_header().ok_or(Failure::Internal)?.clone();
        self.response_begun(session, exchange, head.status);
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::Switched);
        }
        // A 304 answers a condition that was not sent.
        if head.status == StatusCode::NOT_MODIFIED || !came_framed_plainly(&side.api) {
            return Err(Failure::Upstream(UpstreamError::Protocol));
        }
        match self.pass_body(session, exchange, veil, side, &head).await {
            Err(Failure::Unredactable(reason)) if head.status.as_u16() >= 400 && !has_begun(session) => {
                if !head.status.is_server_error() {
                    exchange.setup.gateway.metrics.redaction_failed(reason);
                }
                exchange.record.cause = Some(reason);
                self.pass_error(session, exchange, side, &head).await
            }
            other => other,
        }
    }

    async fn pass_body(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        veil: &Veil,
        side: &mut ApiSide,
        head: &ResponseHeader,
    ) -> Result<(), Failure> {
        let content = veil.content(&head.headers);
        let is_head = session.req_header().method == Method::HEAD;
        if head.status == StatusCode::NO_CONTENT {
            return self.pass_head(session, exchange, head, false).await;
        }
        if has_content_coding(&head.headers) {
            return Err(Failure::Unredactable("content_coding"));
        }
        if head.status == StatusCode::PARTIAL_CONTENT {
            return Err(Failure::Unredactable("partial"));
        }
        if content == Content::EventStream {
            return Err(Failure::Unredactable("media_type"));
        }
        if is_head {
            let is_empty = head.headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() == b"0");
            return match content {
                Content::Passing { .. } => self.pass_head(session, exchange, head, true).await,
                Content::Other if !is_empty => Err(Failure::Unredactable("media_type")),
                _ => self.pass_head(session, exchange, head, false).await,
            };
        }
        if let Content::Passing { streams: true } = content {
            self.begin_stream(session, exchange, head).await?;
        }
        let mut held = BytesMut::new();
        let mut ended = false;
        // A few bytes show what it is; blanks in front do not.
        while looks_like_json(&held).is_none() && held.len() < MAX_IN_PLACE {
            match self.receive(session, exchange, side, Part::Body).await? {
                Some(chunk) => held.extend_from_slice(&chunk),
                None => {
                    ended = true;
                    break;
                }
            }
        }
        let is_json = match looks_like_json(&held) {
            Some(json) => json || content == Content::Json,
            // So many blanks and nothing else are not a harmless beginning.
            None => !held.is_empty() && (content == Content::Json || !ended),
        };
        if is_json {
            if has_begun(session) {
                return Err(Failure::Unredactable("media_type"));
            }
            return self.pass_redacted(session, exchange, veil, side, head, (held, ended)).await;
        }
        match content {
            Content::Passing { .. } => self.pass_stream(session, exchange, side, head, (held.freeze(), ended)).await,
            // Nothing is there to be seen.
            _ if held.is_empty() && head.status.as_u16() < 400 => {
                self.pass_stream(session, exchange, side, head, (Bytes::new(), ended)).await
            }
            _ => Err(Failure::Unredactable("media_type")),
        }
    }

    /// A response without a body. `described`: the body that is not sent would be the API's own.
    async fn pass_head(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        head: &ResponseHeader,
        described: bool,
    ) -> Result<(), Failure> {
        let mut response = self.response(head, exchange)?;
        if !described {
            // They would describe bytes that this client does not get.
            OF_THE_BODY.iter().for_each(|name| drop(response.remove_header(*name)));
            response.remove_header(&CONTENT_LENGTH);
        }
        self.response_complete(exchange);
        end_if_draining(session, exchange);
        session.write_response_header(Box::new(response), true).await.map_err(gone)
    }

    /// An error in the API's shape, with the API's status and fields, in place of a body that may not be shown.
    async fn pass_error(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        head: &ResponseHeader,
    ) -> Result<(), Failure> {
        let mut response = self.response(head, exchange)?;
        OF_THE_BODY.iter().for_each(|name| drop(response.remove_header(*name)));
        response.remove_header(&CONTENT_ENCODING);
        response.remove_header("content-language");
        response.remove_header("content-disposition");
        response.insert_header(CONTENT_TYPE, "application/json; charset=utf-8")?;
        let body = error_body(head.status);
        response.insert_header(CONTENT_LENGTH, body.len())?;
        // The connection is not used again: the rest of the body is on it.
        side.upload.is_whole = false;
        self.response_complete(exchange);
        end_if_draining(session, exchange);
        let body = if session.req_header().method == Method::HEAD { Bytes::new() } else { Bytes::from(body) };
        self.write_whole(session, side, response, body).await
    }

    /// Reads a body to its end, redacts it and sends it.
    async fn pass_redacted(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        veil: &Veil,
        side: &mut ApiSide,
        head: &ResponseHeader,
        (held, ended): (BytesMut, bool),
    ) -> Result<(), Failure> {
        let (before, reserved) = self.hold(session, exchange, side, head, (held, ended)).await?;
        self.response_piece(exchange, &before);
        let redacted = or_left(session, veil.redact(before)).await?;
        let redacted = redacted.map_err(|refusal| Failure::Unredactable(refusal.as_str()))?;
        let _sending: Option<Sending> = reserved.map(Reserved::into_sending);
        let (removed, kind) = (redacted.has_removed(), redacted.kind());
        let body = redacted.into_bytes();
        if kind == Kind::OtherJson && is_string_with_json(&body) {
            return Err(Failure::Unredactable("json_in_a_string"));
        }
        exchange.setup.gateway.metrics.redacted(veil.role());
        let mut response = self.response(head, exchange)?;
        if removed {
            OF_THE_BODY.iter().for_each(|name| drop(response.remove_header(*name)));
        }
        response.insert_header(CONTENT_LENGTH, body.len())?;
        self.response_complete(exchange);
        end_if_draining(session, exchange);
        self.write_whole(session, side, response, body).await
    }

    /// Reads a body to its end. A large one needs room first, so that the memory of all has a bound; one that drips has a
    /// deadline, so that it does not keep its room.
    async fn hold(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        head: &ResponseHeader,
        (mut held, ended): (BytesMut, bool),
    ) -> Result<(Bytes, Option<Reserved>), Failure> {
        if ended {
            return Ok((held.freeze(), None));
        }
        let declared = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if declared.is_some_and(|length| length > MAX_BODY) {
            return Err(Failure::Unredactable("too_large"));
        }
        let clients = exchange.clients(session);
        let deadline = Instant::now() + LONGEST_HOLD;
        let mut reserved = None;
        let reading = async {
            while let Some(chunk) = self.receive(session, exchange, side, Part::Body).await? {
                if held.len() + chunk.len() > MAX_BODY {
                    return Err(Failure::Unredactable("too_large"));
                }
                if reserved.is_none() && held.len() + chunk.len() > MAX_IN_PLACE {
                    let budget = &exchange.setup.responses;
                    let room = budget.reserve(&clients, declared.unwrap_or(MAX_BODY));
                    reserved = Some(or_left(session, room).await?.map_err(|_| Failure::Internal)?);
                }
                held.extend_from_slice(&chunk);
            }
            Ok(())
        };
        timeout_at(deadline.into(), reading).await.unwrap_or(Err(Failure::Upstream(UpstreamError::Timeout)))?;
        if let Some(reserved) = reserved.as_mut() {
            reserved.shrink_to(held.len());
        }
        Ok((held.freeze(), reserved))
    }

    /// Writes the head of a response that passes as it comes.
    async fn begin_stream(
        &self,
        session: &mut Session,
        exchange: &Exchange,
        head: &ResponseHeader,
    ) -> Result<(), Failure> {
        let mut response = self.response(head, exchange)?;
        match session.req_header().version {
            _ if response.headers.contains_key(CONTENT_LENGTH) => {}
            Version::HTTP_11 => response.insert_header(TRANSFER_ENCODING, "chunked")?,
            // The body ends with the connection.
            _ => session.set_keepalive(None),
        }
        end_if_draining(session, exchange);
        session.write_response_header(Box::new(response), false).await.map_err(gone)
    }

    /// Passes a body as it comes. What it changes is invalidated before its last piece is written.
    async fn pass_stream(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        head: &ResponseHeader,
        (first, mut ended): (Bytes, bool),
    ) -> Result<(), Failure> {
        if side.upload.is_open {
            // Its end may come first: then what is still sent of the request is not read.
            session.set_keepalive(None);
        }
        if !has_begun(session) {
            self.begin_stream(session, exchange, head).await?;
        }
        let mut piece = Some(first);
        while let Some(bytes) = piece {
            let is_last = ended || is_body_read(&mut side.api);
            if is_last {
                self.response_complete(exchange);
            }
            write_pieces(session, bytes).await.map_err(gone)?;
            if ended {
                break;
            }
            piece = self.receive(session, exchange, side, Part::Body).await?;
            ended = is_last;
        }
        self.response_complete(exchange);
        session.write_response_body(None, true).await.map_err(gone)
    }

    /// Writes a response that is whole.
    async fn write_whole(
        &self,
        session: &mut Session,
        side: &ApiSide,
        response: ResponseHeader,
        body: Bytes,
    ) -> Result<(), Failure> {
        if side.upload.is_open {
            session.set_keepalive(None);
        }
        session.write_response_header(Box::new(response), body.is_empty()).await.map_err(gone)?;
        write_pieces(session, body).await.map_err(gone)?;
        session.write_response_body(None, true).await.map_err(gone)
    }
}

impl Exchange {
    /// Whose shares of memory a large response counts in.
    fn clients(&self, session: &Session) -> Vec<Client> {
        let request = session.req_header();
        let peer = session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip());
        let peer = peer.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let address = Client::Address(self.setup.trusted.caller(peer, &request.headers));
        let gateway = &self.setup.gateway;
        let found = gateway.credential(&request.headers, &Query::unvalidated(request.uri.query()));
        let caller = found.ok().map(|credential| Client::Caller(gateway.caller_of(&credential.token)));
        caller.into_iter().chain([address]).collect()
    }
}

/// Makes a response private to its caller: it depends on the access level.
pub(super) fn restrict_caching(response: &mut ResponseHeader) -> pingora_core::Result<()> {
    let names: Vec<HeaderName> = response.headers.keys().filter(|name| is_for_shared_caches(name)).cloned().collect();
    for name in names {
        response.remove_header(&name);
    }
    response.insert_header(CACHE_CONTROL, private_cache_control(&response.headers))?;
    response.insert_header(VARY, vary_on_credentials(&response.headers))
}

/// An informational head as it may be passed on.
fn informational_head(head: &ResponseHeader) -> ResponseHeader {
    let mut passed = head.clone();
    for name in hop_by_hop(&head.headers).chain([CONTENT_LENGTH]) {
        passed.remove_header(&name);
    }
    passed
}

/// Whether the head of the final response was written.
fn has_begun(session: &Session) -> bool {
    session.response_written().is_some_and(|written| !written.status.is_informational())
}

/// Whether nothing more comes of a response's body.
fn is_body_read(api: &mut HttpSession) -> bool {
    match api {
        HttpSession::H1(h1) => h1.is_body_done(),
        _ => false,
    }
}

/// Writes in pieces, each of which has the write timeout.
pub(super) async fn write_pieces(session: &mut Session, mut body: Bytes) -> pingora_core::Result<()> {
    while !body.is_empty() {
        let piece = body.split_to(body.len().min(PIECE));
        session.write_response_body(Some(piece), false).await?;
    }
    Ok(())
}

/// The next piece of a request's body if it is to be read, else nothing; an error where the client leaves.
async fn request_piece(session: &mut Session, reads_body: bool) -> Result<Option<Bytes>, Failure> {
    if reads_body {
        return session.as_downstream_mut().read_request_body().await.map_err(broken_body);
    }
    client_left(session).await;
    Err(Failure::Client(ClientFailure::Closed))
}

/// Waits for `work` unless the client leaves.
async fn or_left<T>(session: &mut Session, work: impl Future<Output = T>) -> Result<T, Failure> {
    select! {
        biased;
        done = work => Ok(done),
        () = client_left(session) => Err(Failure::Client(ClientFailure::Closed)),
    }
}

/// Waits until the client resets its stream or its connection. A connection of HTTP/1.1 that is closed for writing alone
/// still takes its response.
async fn client_left(session: &mut Session) {
    if let Some(idle) = session.as_downstream_mut().watch_h2_stream_close() {
        let _ = idle.await;
        return;
    }
    let digest = match session.as_downstream() {
        ServerSession::H1(h1) => h1.digest().socket_digest.clone(),
        _ => None,
    };
    loop {
        let state = digest.as_ref().and_then(|digest| digest.tcp_info()).map(|info| info.tcpi_state);
        if state == Some(TCP_CLOSED) {
            return;
        }
        sleep(RESET_CHECK).await;
    }
}

/// Reads what the client still sends of a request body, for a moment.
async fn linger(session: &mut Session) {
    let downstream = session.as_downstream_mut();
    if !matches!(downstream, ServerSession::H1(_)) {
        return;
    }
    let _ = timeout(LINGER, async {
        if downstream.finish_body().await.is_ok() {
            while let Ok(Some(_)) = downstream.read_request_body().await {}
        }
    })
    .await;
}

/// Whether a body looks like JSON that could hold a secret: an object or an array. `None`: nothing but blanks so far. A
/// byte-order mark, and the zero bytes of wider encodings, are looked past.
fn looks_like_json(body: &[u8]) -> Option<bool> {
    let is_blank = |b: &u8| b.is_ascii_whitespace() || matches!(b, 0 | 0x0b | 0xef | 0xbb | 0xbf | 0xfe | 0xff);
    let first = body.iter().find(|b| !is_blank(b))?;
    Some(matches!(first, b'{' | b'['))
}

/// Whether a document is one string that can hold a document itself, which nothing redacts.
fn is_string_with_json(document: &[u8]) -> bool {
    let is_string = document.trim_ascii_start().first() == Some(&b'"');
    is_string && (document.iter().any(|b| matches!(b, b'{' | b'[')) || memchr::memmem::find(document, b"\\u").is_some())
}

/// Whether a media type is JSON or one of its relatives.
pub(super) fn is_json(content_type: &[u8]) -> bool {
    let first = content_type.split(|&byte| byte == b',').next().unwrap_or_default();
    MediaType::parse(first).is_some_and(|media_type| media_type.is_json())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_that_begin_like_json_are_taken_for_it() {
        for yes in ["{", " \n[", "\u{feff}{", "\0{\0", "\u{b}{"] {
            assert_eq!(looks_like_json(yes.as_bytes()), Some(true), "{yes:?}");
        }
        for no in ["id;name", "\"a\"", "<html>", "1", "\u{1e}{"] {
            assert_eq!(looks_like_json(no.as_bytes()), Some(false), "{no:?}");
        }
        assert_eq!(looks_like_json(b" \r\n"), None);
        assert!(is_string_with_json(br#" "{\"a\":1}""#) && is_string_with_json(br#""\u007b\u007d""#));
        assert!(!is_string_with_json(br#""plain""#) && !is_string_with_json(b"{}"));
    }
}
