//! The fast path over HTTP/2: a response that is known at once is given in the connection's own
//! task, without a session and a task for its stream.
//!
//! As over HTTP/1.1 ([`super::fast_path`]) it decides nothing itself. A request that waits for the
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
use super::client_session::{ClientConnection, WriteProgress};
use super::disconnect::ClientFailure;
use super::fast_path::{Begun, Pending, give_up};
use super::fast_path_head::FastPathHead;
use super::head::is_usual_http2;
use super::http2_session::Http2Session;
use super::state::RequestState;
use crate::api::ApiError;
use crate::reply::Reply;
use crate::telemetry::Record;

const X_REQUEST_ID: http::HeaderName = http::HeaderName::from_static("x-request-id");

/// Fields of a response, for which its map has room.
const FIELDS: usize = 16;

/// A request and where its response is written to.
pub struct Accepted {
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
}

impl From<(Request<RecvStream>, SendResponse<Bytes>)> for Accepted {
    fn from((request, respond): (Request<RecvStream>, SendResponse<Bytes>)) -> Self {
        Accepted { request, respond }
    }
}

/// What became of a request.
pub enum Outcome {
    /// It was answered at that time.
    Served(Instant),
    /// It is answered, but the client's window has no room for the body yet.
    Writes(Unwritten),
    /// It takes the ordinary path.
    Declined(Accepted),
}

/// The fast path of one connection.
pub struct Http2FastPath<'a> {
    client: ClientConnection,
    state: Cache<&'a ArcSwap<RequestState>, Arc<RequestState>>,
    /// The id of a request, whose memory is kept for the next one.
    request_id: String,
}

impl<'a> Http2FastPath<'a> {
    pub fn new(client: ClientConnection, state: Cache<&'a ArcSwap<RequestState>, Arc<RequestState>>) -> Self {
        Http2FastPath { client, state, request_id: String::new() }
    }

    /// Serves a request whose response is known.
    pub fn serve(&mut self, accepted: Accepted) -> Outcome {
        let state = self.state.load();
        let Some(head) = read(state, &accepted.request) else { return Outcome::Declined(accepted) };
        let request_id = std::mem::take(&mut self.request_id);
        let (mut pending, reply) = match Pending::begin(state, self.client.peer, head, request_id) {
            Begun::Ready(pending, reply) => (pending, reply),
            Begun::Waits(pending, _) => {
                self.request_id = pending.record.request_id;
                return Outcome::Declined(accepted);
            }
        };
        let body = body(&reply, &mut pending);
        let response = response(state, &reply, &pending);
        let Pending { record, .. } = pending;
        let Accepted { request, mut respond } = accepted;
        match send(&mut respond, response, &body) {
            Sent::Whole => {
                let ended = record.end(state.gateway.metrics(), state.access);
                self.request_id = record.request_id;
                Outcome::Served(ended)
            }
            Sent::Head(stream) => {
                let state = state.clone();
                Outcome::Writes(Unwritten { state, body, record, received: request.into_body(), respond, stream })
            }
            Sent::Reset => {
                let ended = record.started;
                give_up(ClientFailure::Closed, record, state);
                Outcome::Served(ended)
            }
        }
    }
}

/// Reads a request. `None`: it takes the ordinary path.
fn read<'r>(state: &RequestState, request: &'r Request<RecvStream>) -> Option<FastPathHead<'r>> {
    if !state.fast_path || !request.body().is_end_stream() {
        return None;
    }
    let target = request.uri().path_and_query()?.as_str();
    // Looked at first, since most other requests end here.
    if !target.starts_with("/customer/") {
        return None;
    }
    // A list, since an iterator over the map cannot begin again.
    let fields: Vec<_> = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    if !is_usual_http2(target, &fields, state.limits.max_header_bytes) {
        return None;
    }
    let fields = fields.iter().copied();
    FastPathHead::read(request.method().as_str(), target, fields, state.fast_path_rules())
}

/// The body that is written, and its length in the record.
fn body(reply: &Reply, pending: &mut Pending<'_>) -> Bytes {
    let error = reply.error().map(ApiError::body);
    if pending.respond(reply, error.as_deref()).is_empty() { Bytes::new() } else { reply.body() }
}

fn response(state: &RequestState, reply: &Reply, pending: &Pending<'_>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = reply.status();
    let mut fields = HeaderMap::with_capacity(FIELDS);
    reply.fields(&state.gateway.cors, pending.origin.as_ref(), |name, value| {
        // Appended: a field of the API's may occur several times.
        fields.append(name.clone(), value.to_header());
    });
    if let Ok(mut id) = HeaderValue::from_str(&pending.record.request_id) {
        // It never comes again: in the table of the compression it would take the place of others.
        id.set_sensitive(true);
        fields.append(X_REQUEST_ID, id);
    }
    fields.append(DATE, get_cached_date());
    *response.headers_mut() = fields;
    response
}

/// What h2 accepted of a response.
enum Sent {
    Whole,
    Head(SendStream<Bytes>),
    /// The client has reset the stream.
    Reset,
}

fn send(respond: &mut SendResponse<Bytes>, response: Response<()>, body: &Bytes) -> Sent {
    let Ok(mut stream) = respond.send_response(response, body.is_empty()) else { return Sent::Reset };
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
    /// Writes the body as the client accepts it, and ends the record.
    pub async fn write(self, active: ActiveRequest) {
        let Unwritten { state, body, record, received, respond, stream } = self;
        let _under_way = (state.process.lifecycle.begin_request(), state.process.admission.started_request());
        let mut session = Http2Session::resumed(received, respond, stream, active);
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
                give_up(failure, record, &state);
            }
        }
    }
}
