//! Forwarded answers that hold the same secrets: exchanged here rather than by pingora, since an answer must be whole
//! before it can be redacted, and its head must wait for that.
//!
//! Only for callers below `reveal_to` on the routes of `forward.redact`, and for answers that state a role themselves.
//! Request bodies are streamed; answers that are JSON are held within a bound; all else passes as it comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, IF_RANGE, RANGE, TRANSFER_ENCODING,
};
use http::{Method, StatusCode, Version};
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout_at;

use super::credentials::take_read_ahead;
use super::proxy::{Exchange, Proxy};
use crate::api::{AccessLevel, ApiError, Refusal};
use crate::forward::hop_by_hop;
use crate::redact::{Policy, Redacted, Refusal as Unredactable, redact, redact_by_answer};
use crate::reply::Reply;
use crate::upstream::{MAX_INFORMATIONAL, MAX_STALE_CONNECTIONS, UpstreamError, came_framed_plainly};

/// The largest answer that is redacted: a list of 500 full customers is about a tenth of it.
const MAX_BODY: usize = 16 << 20;

/// Large answers that are held at a time, so that their memory has a bound too.
pub const MAX_HELD: usize = 16;

/// Answers up to here need no place: with `server.max_connections` they have a bound as it is.
const SMALL: usize = 64 << 10;

/// How long the reading of one answer may take, waiting for a place included.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// Fields that tell of the bytes of a body, and so of what was taken away.
const OF_THE_BODY: [&str; 6] = ["etag", "content-md5", "digest", "content-digest", "repr-digest", "accept-ranges"];

/// What the answer of a forwarded request must go through.
#[derive(Clone)]
pub enum Veil {
    /// For a caller of this level.
    Level(Arc<Policy>, AccessLevel),
    /// For the level that the answer itself states.
    Answer(Arc<Policy>),
}

impl Veil {
    const fn role(&self) -> &'static str {
        match self {
            Veil::Level(_, level) => level.as_str(),
            Veil::Answer(_) => "answer",
        }
    }

    fn redact(&self, body: Bytes) -> Result<Redacted, Unredactable> {
        match self {
            Veil::Level(policy, level) => redact(policy, *level, body),
            Veil::Answer(policy) => redact_by_answer(policy, body),
        }
    }
}

/// How such an exchange can fail.
enum Failure {
    Upstream(UpstreamError),
    /// The caller is gone, or its body is broken.
    Caller,
    Unredactable(&'static str),
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

impl Proxy {
    /// Exchanges a request with the API, and gives its caller what may be seen of the answer.
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
            _ => None,
        };
        metrics.upstream_exchange("forward", started.elapsed(), failed);
        let Err(failure) = result else { return Ok(()) };
        let is_open = matches!(failure, Failure::Caller | Failure::Upstream(UpstreamError::Timeout));
        self.response_failed(exchange, is_open);
        session.set_keepalive(None);
        let error = match failure {
            Failure::Upstream(error) => {
                exchange.record.cause = Some(error.as_str());
                ApiError::from(error)
            }
            Failure::Caller => {
                exchange.record.cause = Some("caller");
                ApiError::BadRequest(Refusal::Malformed)
            }
            Failure::Unredactable(reason) => {
                metrics.redaction_failed(reason);
                exchange.record.cause = Some(reason);
                ApiError::RedactionFailed
            }
            Failure::Internal => ApiError::Internal,
        };
        exchange.record.error = Some(error);
        if session.response_written().is_some_and(|written| !written.status.is_informational()) {
            // The head is out: the answer can only be cut.
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
        let (mut api, peer) = self.ask_veiled(session, exchange).await?;
        let head = api.response_header().ok_or(Failure::Internal)?.clone();
        self.response_begun(session, exchange, head.status);
        if head.status == StatusCode::SWITCHING_PROTOCOLS || !came_framed_plainly(&api) {
            return Err(Failure::Upstream(UpstreamError::Protocol));
        }
        let bodyless = session.req_header().method == Method::HEAD
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if bodyless {
            let mut response = self.response(&head, exchange)?;
            // They would tell of bytes that this caller does not get.
            OF_THE_BODY.iter().for_each(|name| drop(response.remove_header(*name)));
            response.remove_header(&CONTENT_LENGTH);
            self.response_complete(exchange);
            session.write_response_header(Box::new(response), true).await.map_err(|_| Failure::Caller)?;
        } else {
            self.pass_body(session, exchange, veil, &mut api, &head).await?;
        }
        exchange.setup.gateway.connections().release(api, &peer).await;
        Ok(())
    }

    /// Sends the request and reads the head of its answer.
    async fn ask_veiled(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
    ) -> Result<(HttpSession, Arc<HttpPeer>), Failure> {
        let has_body = !session.as_downstream_mut().is_body_empty();
        let head = self.veiled_request(session, exchange, has_body)?;
        // Sent again only where nothing of it can have been obeyed: a kept connection that turned out closed.
        let repeatable = !has_body && head.method.is_idempotent();
        let shared = exchange.setup.clone();
        let peer = shared.peers.for_forward().await.map_err(Failure::Upstream)?;
        let mut stale_connections = 0;
        loop {
            let (mut api, reused) = shared.gateway.connections().connect(&peer).await.map_err(Failure::Upstream)?;
            if let HttpSession::H1(h1) = &mut api {
                h1.read_timeout = peer.options.read_timeout;
                h1.write_timeout = peer.options.write_timeout;
            }
            let sent = self.send_veiled(session, exchange, &mut api, head.clone(), has_body).await;
            match sent {
                Ok(()) => return Ok((api, peer)),
                Err(Failure::Upstream(UpstreamError::Truncated))
                    if reused && repeatable && stale_connections < MAX_STALE_CONNECTIONS =>
                {
                    stale_connections += 1;
                }
                Err(failure) => {
                    api.shutdown().await;
                    return Err(failure);
                }
            }
        }
    }

    async fn send_veiled(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        api: &mut HttpSession,
        head: RequestHeader,
        has_body: bool,
    ) -> Result<(), Failure> {
        api.write_request_header(Box::new(head)).await.map_err(upstream)?;
        if has_body {
            if session.req_header().headers.contains_key(EXPECT) {
                session.as_downstream_mut().write_continue_response().await.map_err(|_| Failure::Caller)?;
            }
            let read_ahead = take_read_ahead(exchange);
            if !read_ahead.is_empty() {
                api.write_request_body(read_ahead, false).await.map_err(upstream)?;
            }
            let body = session.as_downstream_mut();
            while let Some(chunk) = body.read_request_body().await.map_err(|_| Failure::Caller)? {
                if !exchange.pace.keeps_up(chunk.len(), Instant::now()) {
                    return Err(Failure::Caller);
                }
                // Nothing comes where the head of a chunk came in part, or an empty frame. Written, it would be the last
                // chunk, and what follows it a request of its own.
                if chunk.is_empty() {
                    continue;
                }
                api.write_request_body(chunk, false).await.map_err(upstream)?;
            }
        }
        api.finish_request_body().await.map_err(upstream)?;
        let mut informational = 0;
        loop {
            api.read_response_header().await.map_err(upstream)?;
            let status = api.response_header().ok_or(Failure::Internal)?.status;
            informational += 1;
            match status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                true if informational > MAX_INFORMATIONAL => return Err(Failure::Upstream(UpstreamError::Protocol)),
                true => {}
                false => return Ok(()),
            }
        }
    }

    /// The request as the API gets it: as pingora would send it, but for a whole answer without a coding.
    fn veiled_request(
        &self,
        session: &Session,
        exchange: &Exchange,
        has_body: bool,
    ) -> pingora_core::Result<RequestHeader> {
        let from = session.req_header();
        let mut head = from.clone();
        head.set_version(Version::HTTP_11);
        for name in hop_by_hop(&from.headers).chain([EXPECT, RANGE, IF_RANGE]) {
            head.remove_header(&name);
        }
        self.set_forward_fields(session, &mut head, exchange)?;
        head.insert_header(ACCEPT_ENCODING, "identity")?;
        if has_body && !head.headers.contains_key(CONTENT_LENGTH) {
            head.insert_header(TRANSFER_ENCODING, "chunked")?;
        }
        Ok(head)
    }

    /// The API's head as the caller gets it, but for what depends on the body.
    fn response(&self, head: &ResponseHeader, exchange: &Exchange) -> pingora_core::Result<ResponseHeader> {
        let mut response = head.clone();
        for name in hop_by_hop(&head.headers) {
            response.remove_header(&name);
        }
        response.set_version(Version::HTTP_11);
        Self::set_answer_fields(&mut response, exchange)?;
        Ok(response)
    }

    async fn pass_body(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        veil: &Veil,
        api: &mut HttpSession,
        head: &ResponseHeader,
    ) -> Result<(), Failure> {
        let mut held = BytesMut::new();
        let mut ended = false;
        // A few bytes tell what it is; blanks in front do not.
        while looks(&held).is_none() && held.len() < SMALL {
            match api.read_response_body().await.map_err(upstream)? {
                Some(chunk) => held.extend_from_slice(&chunk),
                None => {
                    ended = true;
                    break;
                }
            }
        }
        let declared = head.headers.get(CONTENT_TYPE).is_some_and(|value| is_json(value.as_bytes()));
        let coded = head.headers.get(CONTENT_ENCODING).is_some_and(|value| value.as_bytes() != b"identity");
        // So many blanks and nothing else are no harmless beginning.
        let json = declared || coded || looks(&held).unwrap_or(!ended && !held.is_empty());
        if held.is_empty() || !json {
            return self.stream_body(session, exchange, api, head, held.freeze(), ended).await;
        }
        if coded {
            return Err(Failure::Unredactable("content_coding"));
        }
        if head.status == StatusCode::PARTIAL_CONTENT {
            return Err(Failure::Unredactable("partial"));
        }
        let setup = exchange.setup.clone();
        let place = if ended { None } else { hold(api, &mut held, &setup.held).await? };
        let before = held.freeze();
        self.response_piece(exchange, &before);
        self.response_complete(exchange);
        let redacted = veil.redact(before.clone()).map_err(|refusal| Failure::Unredactable(refusal.as_str()))?;
        let body = redacted.into_bytes();
        exchange.setup.gateway.metrics.redacted(veil.role());
        let mut response = self.response(head, exchange)?;
        if body != before {
            OF_THE_BODY.iter().for_each(|name| drop(response.remove_header(*name)));
        }
        drop(before);
        response.insert_header(CONTENT_LENGTH, body.len())?;
        session.write_response_header(Box::new(response), body.is_empty()).await.map_err(|_| Failure::Caller)?;
        if !body.is_empty() {
            session.write_response_body(Some(body), true).await.map_err(|_| Failure::Caller)?;
        }
        drop(place);
        Ok(())
    }

    /// What is not JSON passes as it comes.
    async fn stream_body(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        api: &mut HttpSession,
        head: &ResponseHeader,
        first: Bytes,
        ended: bool,
    ) -> Result<(), Failure> {
        let mut response = self.response(head, exchange)?;
        match session.req_header().version {
            _ if response.headers.contains_key(CONTENT_LENGTH) => {}
            Version::HTTP_11 => response.insert_header(TRANSFER_ENCODING, "chunked")?,
            // The body ends with the connection.
            _ => session.set_keepalive(None),
        }
        session.write_response_header(Box::new(response), false).await.map_err(|_| Failure::Caller)?;
        if !first.is_empty() {
            session.write_response_body(Some(first), false).await.map_err(|_| Failure::Caller)?;
        }
        if !ended {
            while let Some(chunk) = api.read_response_body().await.map_err(upstream)? {
                session.write_response_body(Some(chunk), false).await.map_err(|_| Failure::Caller)?;
            }
        }
        self.response_complete(exchange);
        session.write_response_body(None, true).await.map_err(|_| Failure::Caller)
    }
}

/// Reads a body to its end. A large one needs a place first, so that the memory of all has a bound; one that drips has a
/// deadline, so that it does not keep its place.
async fn hold<'a>(
    api: &mut HttpSession,
    held: &mut BytesMut,
    places: &'a Semaphore,
) -> Result<Option<SemaphorePermit<'a>>, Failure> {
    let deadline = Instant::now() + LONGEST_HOLD;
    let mut place = None;
    let reading = async {
        while let Some(chunk) = api.read_response_body().await.map_err(upstream)? {
            if held.len() + chunk.len() > MAX_BODY {
                return Err(Failure::Unredactable("too_large"));
            }
            if place.is_none() && held.len() + chunk.len() > SMALL {
                place = Some(places.acquire().await.map_err(|_| Failure::Internal)?);
            }
            held.extend_from_slice(&chunk);
        }
        Ok(())
    };
    timeout_at(deadline.into(), reading).await.unwrap_or(Err(Failure::Upstream(UpstreamError::Timeout)))?;
    Ok(place)
}

/// Whether a body looks like JSON that could hold a secret: an object or an array. `None`: nothing but blanks so far. A
/// byte-order mark, and the zero bytes of wider encodings, are looked past.
fn looks(body: &[u8]) -> Option<bool> {
    let first = body.iter().find(|b| !b.is_ascii_whitespace() && !matches!(b, 0 | 0xef | 0xbb | 0xbf | 0xfe | 0xff))?;
    Some(matches!(first, b'{' | b'['))
}

/// `application/json`, `text/json`, `application/problem+json` and the like.
pub(super) fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|&b| b == b';' || b == b',').next().unwrap_or_default().trim_ascii();
    let subtype = essence.rsplit(|&b| b == b'/').next().unwrap_or_default().to_ascii_lowercase();
    subtype == b"json" || subtype.ends_with(b"+json") || subtype.starts_with(b"json") || subtype == b"x-json"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_json_is_taken_for_it() {
        for yes in ["{", " \n[", "\u{feff}{", "\0{\0"] {
            assert_eq!(looks(yes.as_bytes()), Some(true), "{yes:?}");
        }
        for no in ["id;name", "\"a\"", "<html>", "1"] {
            assert_eq!(looks(no.as_bytes()), Some(false), "{no:?}");
        }
        assert_eq!(looks(b" \r\n"), None);
        for yes in ["application/json", "Application/JSON; charset=utf-8", "application/hal+json", "text/json"] {
            assert!(is_json(yes.as_bytes()), "{yes}");
        }
        assert!(!is_json(b"text/csv") && !is_json(b""));
    }
}
