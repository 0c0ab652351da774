//! The fast path: a request of the intercepted route is answered from its head, without a session
//! and without maps of fields, in one write.
//!
//! It decides nothing itself. Identity, freshness, fetches, the fields of the response and its
//! record are those of the ordinary path, which takes every request that [`FastPathHead`] does not
//! read.

use std::borrow::Cow;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use http::Method;
use http::header::{HeaderName, HeaderValue};
use pingora_core::protocols::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::select;
use tokio::time::timeout;

use super::admission::RequestPlace;
use super::disconnect::{ClientFailure, client_closed_request};
use super::fast_path_head::{FastPathHead, Wanted};
use super::http1_session::{MAX_BEHIND, RequestFraming};
use super::response_writer::{ConnectionOption, HeadWriter};
use super::state::RequestState;
use crate::api::ApiError;
use crate::cache::CallerId;
use crate::clock;
use crate::gateway::FastPathRequest;
use crate::process::InFlight;
use crate::reply::{Preflight, Reply};
use crate::telemetry::{Record, Route, Trace};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What became of a request.
pub enum Outcome {
    /// It was answered at that time, and its connection may serve another.
    Served(Instant),
    /// The connection ended, by the client or after the response.
    Closed,
    /// It was answered, and its connection ends, although the client may still be sending.
    CloseUnread,
}

/// A request on the fast path, and what is known of it.
pub struct Pending<'a> {
    pub record: Record,
    /// The page that sent it.
    pub origin: Option<HeaderValue>,
    wanted: Wanted,
    request: FastPathRequest<'a>,
}

/// What the head of a request leads to.
pub enum Begun<'a> {
    /// The response is known.
    Ready(Pending<'a>, Reply),
    /// A fetch, or a validation, for that caller comes first.
    Waits(Pending<'a>, CallerId),
}

impl<'a> Pending<'a> {
    /// Begins a request that was read from its head. `request_id`: a string whose memory is used.
    pub fn begin(state: &RequestState, peer: IpAddr, head: FastPathHead<'a>, request_id: String) -> Begun<'a> {
        let address = state.trusted.client_address_from(peer, head.forwarded_for());
        let mut record = Record::begin(clock::now());
        record.route = Route::CustomerName;
        record.request_id = request_id;
        record.request_id.clear();
        match head.request_id {
            Some(own) => record.request_id.push_str(own),
            None => state.append_request_id(&mut record.request_id),
        }
        record.trace = head.trace.and_then(|field| Trace::parse(field, state.new_span()));
        record.method = match head.wanted {
            Wanted::Get => Method::GET,
            Wanted::Head => Method::HEAD,
            Wanted::Preflight => Method::OPTIONS,
        };
        let origin = head.origin.and_then(|origin| HeaderValue::from_bytes(origin).ok());
        let FastPathHead { wanted, customer, credential, if_none_match, wants, requested_fields, .. } = head;
        let (token, refused) = match credential {
            Ok(token) => (token, None),
            Err(error) => (Cow::Borrowed(""), Some(ApiError::from(error))),
        };
        let request = FastPathRequest { customer, token, address, if_none_match, wants };
        let mut pending = Pending { record, origin, wanted, request };
        if wanted == Wanted::Preflight {
            return Begun::Ready(pending, Preflight::for_name(requested_fields).into());
        }
        if let Some(error) = refused {
            pending.record.error = Some(error);
            return Begun::Ready(pending, Reply::from(error));
        }
        let now = pending.record.started;
        match state.gateway.try_cached(&pending.request, now) {
            Ok((level, reply)) => {
                pending.record.level = Some(level);
                pending.record.cache = reply.cache_status;
                pending.record.on_fast_path = true;
                Begun::Ready(pending, reply)
            }
            Err(caller) => Begun::Waits(pending, caller),
        }
    }

    /// Notes the response in the record, and returns its body.
    pub fn respond<'r>(&mut self, reply: &'r Reply, error: Option<&'r str>) -> &'r [u8] {
        self.record.status = reply.status();
        let body = match self.wanted {
            Wanted::Head => &[],
            _ => error.map_or(reply.stored_body(), str::as_bytes),
        };
        self.record.body_bytes = body.len();
        body
    }
}

/// The fast path of one connection of HTTP/1.1.
pub struct FastPath {
    peer: IpAddr,
    /// The head of a response, and its request's id; their memory is kept for the next ones.
    answer: Vec<u8>,
    request_id: String,
    /// Bytes that came behind the request while the API was asked.
    behind: BytesMut,
}

/// Held while a request waits for the API.
type UnderWay = (InFlight, Option<RequestPlace>);

impl FastPath {
    pub fn new(peer: IpAddr) -> Self {
        FastPath { peer, answer: Vec::new(), request_id: String::new(), behind: BytesMut::new() }
    }

    /// Serves a request without a body.
    pub async fn serve(
        &mut self,
        state: &RequestState,
        stream: &mut Stream,
        head: FastPathHead<'_>,
        framing: RequestFraming,
    ) -> Outcome {
        let request_id = std::mem::take(&mut self.request_id);
        let (mut pending, reply, _under_way) = match Pending::begin(state, self.peer, head, request_id) {
            Begun::Ready(pending, reply) => (pending, reply, None),
            Begun::Waits(mut pending, caller) => {
                // Apart, so that a connection is no larger for what few of its requests need.
                let waiting = Box::pin(self.wait(state, stream, &mut pending, caller));
                match waiting.await {
                    Some((reply, under_way)) => (pending, reply, Some(under_way)),
                    None => return give_up(ClientFailure::Closed, pending.record, state),
                }
            }
        };
        let error = reply.error().map(ApiError::body);
        let body = pending.respond(&reply, error.as_deref());
        // While the process drains, responses say that their connection ends.
        let is_switched = framing.asks_for_upgrade && !self.behind.is_empty();
        let ends = !framing.keeps_alive || is_switched || state.process.lifecycle.is_draining();
        self.write_head(state, &reply, &pending, ends);
        if let Err(failure) = self.write(state, stream, body).await {
            return give_up(failure, pending.record, state);
        }
        let ended = pending.record.end(state.gateway.metrics(), state.access);
        self.request_id = pending.record.request_id;
        if ends && !self.behind.is_empty() {
            return Outcome::CloseUnread;
        }
        if ends {
            let _ = timeout(state.limits.write_timeout, stream.shutdown()).await;
            return Outcome::Closed;
        }
        Outcome::Served(ended)
    }

    /// The response to a request that is not cached. `None`: the client left.
    async fn wait(
        &mut self,
        state: &RequestState,
        stream: &mut Stream,
        pending: &mut Pending<'_>,
        caller: CallerId,
    ) -> Option<(Reply, UnderWay)> {
        let busy = state.process.lifecycle.begin_request();
        let limited = state.limited_address(pending.request.address);
        let place = match state.process.admission.request(state.limits.requests, limited, Some(caller)) {
            Ok(place) => place,
            Err(limit) => {
                state.gateway.metrics().over_limit(limit.as_str());
                pending.record.cause = Some(limit.as_str());
                pending.record.error = Some(ApiError::Unavailable);
                return Some((Reply::from(ApiError::Unavailable), (busy, None)));
            }
        };
        let Pending { record, request, .. } = pending;
        let reply = select! {
            biased;
            reply = state.gateway.respond_uncached(request, caller, record) => Some(reply),
            () = client_left(stream, &mut self.behind) => None,
        };
        reply.map(|reply| (reply, (busy, Some(place))))
    }

    /// What came behind the request that was answered.
    pub fn take_behind(&mut self) -> BytesMut {
        std::mem::take(&mut self.behind)
    }

    /// Head and body in one write.
    async fn write(&self, state: &RequestState, stream: &mut Stream, body: &[u8]) -> Result<(), ClientFailure> {
        let mut whole = Buf::chain(&self.answer[..], body);
        let at_once = {
            let mut writing = pin!(async {
                stream.write_all_buf(&mut whole).await?;
                stream.flush().await
            });
            // Mostly the connection takes it at once: no timer is needed then, and no drain can overtake it.
            poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx))).await
        };
        if let Poll::Ready(written) = at_once {
            return written.map_err(|_| ClientFailure::Closed);
        }
        let _busy = (state.process.lifecycle.begin_request(), state.process.admission.started_request());
        let longest = state.limits.write_timeout;
        while whole.has_remaining() {
            match timeout(longest, stream.write_buf(&mut whole)).await {
                Ok(Ok(1..)) => {}
                Ok(_) => return Err(ClientFailure::Closed),
                Err(_) => return Err(ClientFailure::TimedOut),
            }
        }
        let flushed = timeout(longest, stream.flush()).await.map_err(|_| ClientFailure::TimedOut)?;
        flushed.map_err(|_| ClientFailure::Closed)
    }

    fn write_head(&mut self, state: &RequestState, reply: &Reply, pending: &Pending<'_>, ends: bool) {
        self.answer.clear();
        let mut head = HeadWriter::begin(&mut self.answer, reply.status());
        reply.fields(&state.gateway.cors, pending.origin.as_ref(), |name, value| {
            head.field_with(name, |out| value.append_to(out));
        });
        head.field(&X_REQUEST_ID, pending.record.request_id.as_bytes());
        head.finish(ConnectionOption::for_final(!ends));
    }
}

/// Ends the record of a request whose client left or is too slow.
pub fn give_up(failure: ClientFailure, mut record: Record, state: &RequestState) -> Outcome {
    record.cause = Some(failure.as_str());
    if failure == ClientFailure::Closed {
        record.client_closed = true;
        record.status = client_closed_request();
        record.error = None;
    }
    record.end(state.gateway.metrics(), state.access);
    Outcome::Closed
}

/// Completes when the client resets its connection. What it sends meanwhile is kept; the end of its sending alone is not a
/// disconnect.
async fn client_left(stream: &mut Stream, behind: &mut BytesMut) {
    while behind.len() < MAX_BEHIND {
        match stream.read_buf(behind).await {
            Ok(1..) => {}
            Ok(0) => break,
            Err(_) => return,
        }
    }
    std::future::pending().await
}
