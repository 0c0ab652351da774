//! Fast path over HTTP/2: a cached response is sent in the task of the connection, without a
//! session and a task for its stream.
//!
//! As over HTTP/1.1 ([`super::fast_path`]), it makes no decisions itself. A request that needs the
//! API takes the ordinary path.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::{DATE, HeaderMap, HeaderValue};
use http::{Request, Response};
use pingora_core::protocols::http::date::get_cached_date;

use super::active_requests::ActiveRequest;
use super::client_failure::ClientFailure;
use super::client_session::{ClientConnection, WriteProgress};
use super::fast_path::{FastPathExchange, Lookup, end_failed};
use super::http2_session::Http2Session;
use super::request_head::passes_check_http2;
use crate::api::NameRequestHead;
use crate::reply::Reply;
use crate::server::state::RequestState;
use crate::telemetry::Record;

const X_REQUEST_ID: http::HeaderName = http::HeaderName::from_static("x-request-id");

/// Initial capacity for the fields of a response.
const RESPONSE_FIELDS: usize = 12;

/// An accepted request and its response stream.
pub struct Accepted {
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
}

impl From<(Request<RecvStream>, SendResponse<Bytes>)> for Accepted {
    fn from((request, respond): (Request<RecvStream>, SendResponse<Bytes>)) -> Self {
        Accepted { request, respond }
    }
}

/// Outcome of a request.
pub enum Outcome {
    /// The response was sent at this time.
    Served(Instant),
    /// The head was sent. The client's window has no room for the body yet.
    Unwritten(Unwritten),
    /// It takes the ordinary path.
    NotEligible(Accepted),
}

/// The fast path of one connection.
pub struct Http2FastPath<'a> {
    client: ClientConnection,
    state: Cache<&'a ArcSwap<RequestState>, Arc<RequestState>>,
    /// Buffer for request ids, reused by the next request.
    request_id: String,
}

impl<'a> Http2FastPath<'a> {
    pub fn new(
        client: ClientConnection,
        state: Cache<&'a ArcSwap<RequestState>, Arc<RequestState>>,
    ) -> Self {
        Http2FastPath { client, state, request_id: String::new() }
    }

    /// Serves a request if its response is cached or an error.
    pub fn serve(&mut self, accepted: Accepted) -> Outcome {
        let state = self.state.load();
        let Some(head) = read(state, &accepted.request) else {
            return Outcome::NotEligible(accepted);
        };
        let request_id = std::mem::take(&mut self.request_id);
        let (mut pending, reply) =
            match FastPathExchange::look_up(state, self.client.peer, head, request_id) {
                Lookup::Ready(pending, reply) => (pending, reply),
                Lookup::Uncached(pending, _) => {
                    self.request_id = pending.record.request_id;
                    return Outcome::NotEligible(accepted);
                }
            };
        let body = body(&reply, &mut pending);
        let response = response(state, &reply, &pending);
        let FastPathExchange { record, .. } = pending;
        let Accepted { request, mut respond } = accepted;
        match send(&mut respond, response, &body) {
            Sent::Whole => {
                let ended = record.end(state.gateway.metrics(), state.access);
                self.request_id = record.request_id;
                Outcome::Served(ended)
            }
            Sent::Head(stream) => {
                let state = state.clone();
                Outcome::Unwritten(Unwritten {
                    state,
                    body,
                    record,
                    received: request.into_body(),
                    respond,
                    stream,
                })
            }
            Sent::Reset => {
                let ended = record.started;
                end_failed(ClientFailure::Closed, record, state);
                Outcome::Served(ended)
            }
        }
    }
}

/// Reads a request. `None`: it takes the ordinary path.
fn read<'r>(state: &RequestState, request: &'r Request<RecvStream>) -> Option<NameRequestHead<'r>> {
    if !state.fast_path || !request.body().is_end_stream() {
        return None;
    }
    let target = request.uri().path_and_query()?.as_str();
    // Checked first, because it excludes most other requests.
    if !target.starts_with("/customer/") {
        return None;
    }
    // A list, because the iterator of the map cannot be cloned.
    let fields: Vec<_> =
        request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    if !passes_check_http2(target, &fields, state.limits.max_header_bytes) {
        return None;
    }
    let fields = fields.iter().copied();
    NameRequestHead::read(request.method().as_str(), target, fields, state.fast_path_rules())
}

/// Returns the body of the response and records its length.
fn body(reply: &Reply, pending: &mut FastPathExchange<'_>) -> Bytes {
    let error = pending.error_body(reply);
    if pending.record_response(reply, error.as_deref()).is_empty() {
        return Bytes::new();
    }
    reply.body(&pending.record.request_id)
}

fn response(state: &RequestState, reply: &Reply, pending: &FastPathExchange<'_>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = reply.status();
    let mut fields = HeaderMap::with_capacity(RESPONSE_FIELDS);
    reply.fields(
        &state.gateway.cors,
        pending.origin.as_ref(),
        &pending.record.request_id,
        |name, value| {
            // Appended: a field of the API may occur several times.
            fields.append(name.clone(), value.to_header());
        },
    );
    if let Ok(mut id) = HeaderValue::from_str(&pending.record.request_id) {
        // Not indexed: it never recurs, and would evict other entries of the compression table.
        id.set_sensitive(true);
        fields.append(X_REQUEST_ID, id);
    }
    fields.append(DATE, get_cached_date());
    *response.headers_mut() = fields;
    response
}

/// The part of a response that h2 accepted.
enum Sent {
    Whole,
    Head(SendStream<Bytes>),
    /// The client has reset the stream.
    Reset,
}

fn send(respond: &mut SendResponse<Bytes>, response: Response<()>, body: &Bytes) -> Sent {
    let Ok(mut stream) = respond.send_response(response, body.is_empty()) else {
        return Sent::Reset;
    };
    if body.is_empty() {
        return Sent::Whole;
    }
    stream.reserve_capacity(body.len());
    if stream.capacity() < body.len() {
        return Sent::Head(stream);
    }
    match stream.send_data(body.clone(), true) {
        Ok(()) => Sent::Whole,
        Err(_) => Sent::Reset,
    }
}

/// A response whose body waits for the client's window.
pub struct Unwritten {
    state: Arc<RequestState>,
    body: Bytes,
    record: Record,
    received: RecvStream,
    respond: SendResponse<Bytes>,
    stream: SendStream<Bytes>,
}

impl Unwritten {
    /// Writes the body as the window permits, and ends the record.
    pub async fn write(self, active: ActiveRequest) {
        let Unwritten { state, body, record, received, respond, stream } = self;
        let _under_way =
            (state.process.lifecycle.begin_request(), state.process.admission.started_request());
        let mut session = Http2Session::with_sent_head(received, respond, stream, active);
        session.queue_body(body, true);
        let mut progress = WriteProgress::default();
        let written = poll_fn(|context| {
            if let Poll::Ready(written) = session.poll_flush(context) {
                return Poll::Ready(written);
            }
            let deadline = progress.moved_at(session.unwritten()) + state.limits.write_timeout;
            session.timer().poll(context, deadline).map(|()| Err(ClientFailure::TimedOut))
        });
        match written.await {
            Ok(()) => {
                record.end(state.gateway.metrics(), state.access);
            }
            Err(failure) => {
                session.reset(h2::Reason::INTERNAL_ERROR);
                end_failed(failure, record, &state);
            }
        }
    }
}
