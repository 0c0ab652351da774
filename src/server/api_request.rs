//! A forwarded request as the API receives it: the client's fields that may pass, read once, and the
//! fields that the gateway states. Performs no input or output.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue,
    IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, UPGRADE,
};
use http::{HeaderMap, Method, Version};
use http1::{FieldLines, RequestFraming, RequestHead};

use super::client_session::ClientSession;
use super::credentials::X_API_KEY;
use super::request_context::Exchange;
use super::veil::Veil;
use crate::api::accepts_any;
use crate::forward::{Hop, HopByHop, push_cookies};
use crate::telemetry::{TRACEPARENT, TRACESTATE, Trace};
use crate::upstream;

/// Room for the fields of a request: most take less.
const LINES_BYTES: usize = 1024;

/// A request for the API. Only `Host` is missing, which each connection decides.
pub(super) struct ApiRequest {
    pub(super) method: Method,
    target: String,
    lines: FieldLines,
    framing: RequestFraming,
}

impl ApiRequest {
    /// Reads a client's request. With `veil` it asks for a whole response without a coding and of a
    /// type that can be shown.
    pub(super) fn new(session: &ClientSession, exchange: &Exchange, veil: Option<&Veil>) -> Self {
        let request = session.request();
        let fields = &request.fields;
        let hop = Hop {
            peer: session.peer(),
            is_trusted: exchange.state.trusted.trusts(session.peer()),
            is_tls: session.is_tls(),
            version: request.version,
            request_id: exchange.request_id(),
        };
        let trace = exchange.record.trace.as_ref().and_then(Trace::field);
        let credentials = exchange.forwarded_credentials();
        let passing = Passing {
            hop: &hop,
            hop_by_hop: HopByHop::from_map(fields),
            has_trace: trace.is_some(),
            expects_continue: session.has_body() && expects_continue(request),
            passes_credentials: credentials.is_all(),
            veil,
        };
        let mut lines = FieldLines::with_capacity(LINES_BYTES);
        for (name, value) in fields {
            if passing.contains(name) {
                lines.push(name, value.as_bytes());
            }
        }
        credentials.push_single(&mut lines, fields);
        push_cookies(&mut lines, &credentials.cookies(fields));
        hop.push_fields(&mut lines, fields);
        if let Some(trace) = trace {
            lines.push(&TRACEPARENT, trace.as_bytes());
        }
        match veil {
            Some(veil) => push_accepted(&mut lines, fields, veil),
            None if asks_for_websocket(request) => push_upgrade(&mut lines, fields),
            None => {}
        }
        ApiRequest {
            method: request.method.clone(),
            target: credentials.target(&request.target).into_owned(),
            lines,
            framing: framing(request, session.has_body()),
        }
    }

    /// Queues the request on a connection.
    pub(super) fn start(&self, connection: upstream::Connection) -> upstream::Exchange {
        upstream::Exchange::new(connection, self.method.clone(), &self.target, &self.lines, self.framing)
    }
}

/// The fields of a client's request that pass as they are.
struct Passing<'a> {
    hop: &'a Hop<'a>,
    hop_by_hop: HopByHop<'a>,
    has_trace: bool,
    expects_continue: bool,
    /// Every credential travels; otherwise at most one, which is written apart.
    passes_credentials: bool,
    veil: Option<&'a Veil>,
}

impl Passing<'_> {
    fn contains(&self, name: &HeaderName) -> bool {
        match *name {
            // Written by the upstream exchange, or below with what decides them.
            HOST | CONTENT_LENGTH | COOKIE => false,
            AUTHORIZATION => self.passes_credentials,
            EXPECT => self.expects_continue,
            // The API would judge them by bytes that the client must not see.
            RANGE | IF_RANGE | IF_MATCH | IF_NONE_MATCH | IF_MODIFIED_SINCE | IF_UNMODIFIED_SINCE
                if self.veil.is_some() =>
            {
                false
            }
            ACCEPT | ACCEPT_ENCODING if self.veil.is_some() => false,
            _ if *name == X_API_KEY => self.passes_credentials,
            _ if *name == TRACEPARENT => false,
            _ if *name == TRACESTATE && !self.has_trace => false,
            _ => !self.hop_by_hop.contains(name.as_str().as_bytes()) && !self.hop.removes(name),
        }
    }
}

/// States what a response that is redacted may be: JSON, unless the client asks for a type that passes.
fn push_accepted(lines: &mut FieldLines, fields: &HeaderMap, veil: &Veil) {
    lines.push(&ACCEPT_ENCODING, b"identity");
    let accepted = || fields.get_all(ACCEPT).iter().map(HeaderValue::as_bytes);
    if accepts_any(accepted(), veil.pass_types()) {
        accepted().for_each(|value| lines.push(&ACCEPT, value));
    } else {
        lines.push(&ACCEPT, b"application/json");
    }
}

/// Asks for the switch of protocols that the client asks for.
fn push_upgrade(lines: &mut FieldLines, fields: &HeaderMap) {
    if let Some(protocol) = fields.get(UPGRADE) {
        lines.push(&UPGRADE, protocol.as_bytes());
        lines.push(&CONNECTION, b"upgrade");
    }
}

/// Whether a request asks for a switch to websocket. No other protocol passes: behind a switch to
/// HTTP/2 or TLS the API would receive requests that the gateway does not see.
pub(super) fn asks_for_websocket(request: &RequestHead) -> bool {
    let mut protocols = request.fields.get_all(UPGRADE).iter();
    let (first, second) = (protocols.next(), protocols.next());
    request.version == Version::HTTP_11
        && second.is_none()
        && first.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Whether a client waits for an interim response before it sends its body.
fn expects_continue(request: &RequestHead) -> bool {
    let expectation = request.fields.get(EXPECT).map(HeaderValue::as_bytes);
    request.version != Version::HTTP_10
        && expectation.is_some_and(|expectation| expectation.eq_ignore_ascii_case(b"100-continue"))
}

/// The framing of the request's body towards the API.
fn framing(request: &RequestHead, has_body: bool) -> RequestFraming {
    let declared = request.fields.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    match declared {
        Some(length) => RequestFraming::Length(length),
        None if has_body => RequestFraming::Chunked,
        // A method that usually has a body says that there is none (RFC 9110 section 8.6).
        None if matches!(request.method, Method::POST | Method::PUT | Method::PATCH) => RequestFraming::Length(0),
        None => RequestFraming::None,
    }
}
