//! Fast path over HTTP/1.1: serves a request of the intercepted route from its head, without a
//! session and without field maps, in one write.
//!
//! It makes no decisions itself. Identity, freshness, fetches, the fields of the response and its
//! record are shared with the ordinary path, which serves every request that [`NameRequestHead`]
//! rejects.

use std::borrow::Cow;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use http::Method;
use http::header::{HeaderName, HeaderValue};
use pingora_core::protocols::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::select;
use tokio::time::timeout;

use super::client_failure::ClientFailure;
use super::head_writer::{ConnectionOption, HeadWriter};
use super::http1_session::{MAX_BEHIND, RequestFraming};
use crate::api::{ApiError, NameRequestHead, NameRequestMethod};
use crate::cache::{CacheControl, CallerId};
use crate::clock;
use crate::gateway::FastPathRequest;
use crate::process::InFlight;
use crate::reply::{Preflight, Reply};
use crate::server::admission::RequestPermit;
use crate::server::state::RequestState;
use crate::telemetry::{Record, Route, Trace};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Outcome of a request.
pub enum Outcome {
    /// The response was sent at this time, and the connection may serve another request.
    Served(Instant),
    /// The connection has ended.
    Closed,
    /// The response was sent, and the connection must be closed with unread input.
    CloseUnread,
}

/// A request on the fast path and its record.
pub struct FastPathExchange<'a> {
    pub record: Record,
    /// Origin of the page that sent the request.
    pub origin: Option<HeaderValue>,
    method: NameRequestMethod,
    request: FastPathRequest<'a>,
}

/// Result of looking a request up.
pub enum Lookup<'a> {
    /// The response is cached or an error.
    Ready(FastPathExchange<'a>, Reply),
    /// A fetch or a validation for this caller is needed.
    Uncached(FastPathExchange<'a>, CallerId),
}

impl<'a> FastPathExchange<'a> {
    /// Looks up the response to a request. `request_id`: a buffer for the id.
    pub fn look_up(
        state: &RequestState,
        peer: IpAddr,
        head: NameRequestHead<'a>,
        request_id: String,
    ) -> Lookup<'a> {
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
        record.method = match head.method {
            NameRequestMethod::Get => Method::GET,
            NameRequestMethod::Head => Method::HEAD,
            NameRequestMethod::Preflight => Method::OPTIONS,
        };
        let origin = head.origin.and_then(|origin| HeaderValue::from_bytes(origin).ok());
        let NameRequestHead {
            method, customer, credential, if_none_match, requested_fields, ..
        } = head;
        record.customer = Some(customer);
        let wants = CacheControl::from_request_values(head.cache_control, head.pragma);
        let (token, refused) = match credential {
            Ok(token) => (token, None),
            Err(error) => (Cow::Borrowed(""), Some(ApiError::from(error))),
        };
        let request =
            FastPathRequest { customer, token, address, if_none_match, origin: head.origin, wants };
        let mut pending = FastPathExchange { record, origin, method, request };
        if method == NameRequestMethod::Preflight {
            return Lookup::Ready(pending, Preflight::for_name(requested_fields).into());
        }
        if let Some(error) = refused {
            pending.record.error = Some(error);
            return Lookup::Ready(pending, Reply::from(error));
        }
        let now = pending.record.started;
        match state.gateway.try_cached(&pending.request, now) {
            Ok((level, reply)) => {
                pending.record.level = Some(level);
                pending.record.cache = reply.cache_status;
                pending.record.on_fast_path = true;
                Lookup::Ready(pending, reply)
            }
            Err(caller) => Lookup::Uncached(pending, caller),
        }
    }

    /// Returns the body of a response that is an error.
    pub fn error_body(&self, reply: &Reply) -> Option<String> {
        reply.error().map(|error| error.body(&self.record.request_id))
    }

    /// Records the response and returns its body.
    pub fn record_response<'r>(&mut self, reply: &'r Reply, error: Option<&'r str>) -> &'r [u8] {
        self.record.status = reply.status();
        let body = match self.method {
            NameRequestMethod::Head => &[],
            _ => error.map_or(reply.stored_body(), str::as_bytes),
        };
        self.record.body_bytes = body.len();
        body
    }
}

/// A request that is not served at once.
enum Unfinished<'a> {
    Uncached(FastPathExchange<'a>, CallerId),
    /// `written` bytes of head and body were written. The connection may end with the response.
    Unwritten {
        exchange: FastPathExchange<'a>,
        reply: Reply,
        head: Vec<u8>,
        ends: bool,
        written: usize,
    },
}

/// The fast path of one HTTP/1.1 connection.
pub struct FastPath {
    peer: IpAddr,
    /// Buffer for request ids.
    request_id: String,
    /// Bytes that arrived behind the request during a fetch.
    behind: BytesMut,
}

/// Counts of a request that waits for the API.
struct UnderWay {
    _busy: InFlight,
    _permit: Option<RequestPermit>,
}

impl FastPath {
    pub fn new(peer: IpAddr) -> Self {
        FastPath { peer, request_id: String::new(), behind: BytesMut::new() }
    }

    /// Serves a request without a body. A connection has no room for the future, which few of its
    /// requests need.
    ///
    /// # Errors
    ///
    /// The request is not served at once; the future serves the rest.
    pub fn serve<'a>(
        &'a mut self,
        state: &'a RequestState,
        stream: &'a mut Stream,
        head: NameRequestHead<'a>,
        framing: RequestFraming,
    ) -> Result<Outcome, Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>> {
        let served = self.serve_at_once(state, stream, head, framing);
        served.map_err(|unfinished| {
            Box::pin(self.finish(state, stream, unfinished, framing)) as Pin<Box<_>>
        })
    }

    /// Serves a cached response if the connection accepts all of it at once, which it usually does:
    /// then no timer is needed, and no drain can interrupt the write.
    fn serve_at_once<'a>(
        &mut self,
        state: &RequestState,
        stream: &mut Stream,
        head: NameRequestHead<'a>,
        framing: RequestFraming,
    ) -> Result<Outcome, Box<Unfinished<'a>>> {
        let request_id = std::mem::take(&mut self.request_id);
        let (mut exchange, reply) =
            match FastPathExchange::look_up(state, self.peer, head, request_id) {
                Lookup::Ready(exchange, reply) => (exchange, reply),
                Lookup::Uncached(exchange, caller) => {
                    return Err(Box::new(Unfinished::Uncached(exchange, caller)));
                }
            };
        let error = exchange.error_body(&reply);
        let body = exchange.record_response(&reply, error.as_deref());
        let (head, ends) = self.head(state, &reply, &exchange, framing);
        let mut whole = Buf::chain(&head[..], body);
        let polled = pin!(async {
            stream.write_all_buf(&mut whole).await?;
            stream.flush().await
        })
        // It is polled again with the task's waker if it is not ready.
        .poll(&mut Context::from_waker(Waker::noop()));
        match polled {
            Poll::Ready(Ok(())) if !ends => Ok(Outcome::Served(self.end_served(state, exchange))),
            Poll::Ready(Err(_)) => Ok(end_failed(ClientFailure::Closed, exchange.record, state)),
            Poll::Ready(Ok(())) | Poll::Pending => {
                let written = head.len() + body.len() - whole.remaining();
                let rest = Unfinished::Unwritten { exchange, reply, head, ends, written };
                Err(Box::new(rest))
            }
        }
    }

    /// Serves the rest of a request.
    async fn finish(
        &mut self,
        state: &RequestState,
        stream: &mut Stream,
        unfinished: Box<Unfinished<'_>>,
        framing: RequestFraming,
    ) -> Outcome {
        let (mut exchange, reply, begun, _under_way) = match *unfinished {
            Unfinished::Unwritten { exchange, reply, head, ends, written } => {
                (exchange, reply, Some((head, ends, written)), None)
            }
            Unfinished::Uncached(mut exchange, caller) => {
                match self.wait_for_response(state, stream, &mut exchange, caller).await {
                    Some((reply, under_way)) => (exchange, reply, None, Some(under_way)),
                    None => return end_failed(ClientFailure::Closed, exchange.record, state),
                }
            }
        };
        let error = exchange.error_body(&reply);
        let body = exchange.record_response(&reply, error.as_deref());
        let (head, ends, written) = begun.unwrap_or_else(|| {
            let (head, ends) = self.head(state, &reply, &exchange, framing);
            (head, ends, 0)
        });
        let mut rest = Buf::chain(&head[..], body);
        rest.advance(written);
        if let Err(failure) = write(state, stream, &mut rest).await {
            return end_failed(failure, exchange.record, state);
        }
        let ended = self.end_served(state, exchange);
        if ends && !self.behind.is_empty() {
            return Outcome::CloseUnread;
        }
        if ends {
            let _ = timeout(state.limits.write_timeout, stream.shutdown()).await;
            return Outcome::Closed;
        }
        Outcome::Served(ended)
    }

    /// Ends the record of a request whose response was sent, and returns the time.
    fn end_served(&mut self, state: &RequestState, exchange: FastPathExchange<'_>) -> Instant {
        let ended = exchange.record.end(state.gateway.metrics(), state.access);
        self.request_id = exchange.record.request_id;
        ended
    }

    /// Waits for a response that is not cached. `None`: the client disconnected.
    async fn wait_for_response(
        &mut self,
        state: &RequestState,
        stream: &mut Stream,
        pending: &mut FastPathExchange<'_>,
        caller: CallerId,
    ) -> Option<(Reply, UnderWay)> {
        let busy = state.process.lifecycle.begin_request();
        let limited = state.limited_address(pending.request.address);
        let permit =
            match state.process.admission.request(state.limits.requests, limited, Some(caller)) {
                Ok(permit) => permit,
                Err(limit) => {
                    state.gateway.metrics().count_over_limit(limit.as_str());
                    pending.record.cause = Some(limit.as_str());
                    pending.record.error = Some(ApiError::Unavailable);
                    return Some((
                        Reply::from(ApiError::Unavailable),
                        UnderWay { _busy: busy, _permit: None },
                    ));
                }
            };
        let FastPathExchange { record, request, .. } = pending;
        let reply = select! {
            biased;
            reply = state.gateway.respond_uncached(request, caller, record) => Some(reply),
            () = client_closed_connection(stream, &mut self.behind) => None,
        };
        reply.map(|reply| (reply, UnderWay { _busy: busy, _permit: Some(permit) }))
    }

    /// Takes the bytes that arrived behind the request.
    pub fn take_behind(&mut self) -> BytesMut {
        std::mem::take(&mut self.behind)
    }

    /// Returns the head of a response, and whether the connection ends with it: while the process
    /// drains, responses announce the end of their connection.
    fn head(
        &self,
        state: &RequestState,
        reply: &Reply,
        exchange: &FastPathExchange<'_>,
        framing: RequestFraming,
    ) -> (Vec<u8>, bool) {
        let is_switched = framing.asks_for_upgrade && !self.behind.is_empty();
        let ends = !framing.keeps_alive || is_switched || state.process.lifecycle.is_draining();
        let mut out = Vec::new();
        let mut head = HeadWriter::begin(&mut out, reply.status());
        reply.fields(
            &state.gateway.cors,
            exchange.origin.as_ref(),
            &exchange.record.request_id,
            |name, value| {
                head.field_with(name, |out| value.append_to(out));
            },
        );
        head.field(&X_REQUEST_ID, exchange.record.request_id.as_bytes());
        head.finish(ConnectionOption::for_final(!ends));
        (out, ends)
    }
}

/// Writes the rest of a response.
async fn write(
    state: &RequestState,
    stream: &mut Stream,
    rest: &mut impl Buf,
) -> Result<(), ClientFailure> {
    let _busy =
        (state.process.lifecycle.begin_request(), state.process.admission.started_request());
    let longest = state.limits.write_timeout;
    while rest.has_remaining() {
        match timeout(longest, stream.write_buf(rest)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => return Err(ClientFailure::Closed),
            Err(_) => return Err(ClientFailure::TimedOut),
        }
    }
    let flushed = timeout(longest, stream.flush()).await.map_err(|_| ClientFailure::TimedOut)?;
    flushed.map_err(|_| ClientFailure::Closed)
}

/// Ends the record of a request whose client disconnected or is too slow.
pub fn end_failed(failure: ClientFailure, mut record: Record, state: &RequestState) -> Outcome {
    // The response has begun, so that no error can follow.
    let _ = failure.record(&mut record);
    record.end(state.gateway.metrics(), state.access);
    Outcome::Closed
}

/// Completes when the client resets its connection. Input is kept in `behind`. A half-closed
/// connection is not a disconnect.
async fn client_closed_connection(stream: &mut Stream, behind: &mut BytesMut) {
    while behind.len() < MAX_BEHIND {
        match stream.read_buf(behind).await {
            Ok(1..) => {}
            Ok(0) => break,
            Err(_) => return,
        }
    }
    std::future::pending().await
}
