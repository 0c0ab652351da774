//! Head of a forwarded request as the API receives it: the client's fields that may pass, and the
//! gateway's fields. Performs no input or output.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST,
    HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, RANGE, UPGRADE,
};
use http::{HeaderMap, Method, Version};
use http1::{FieldLines, RequestFraming, RequestHead};

use super::credentials::X_API_KEY;
use super::redact_for::RedactFor;
use super::request_context::RequestContext;
use crate::api::accepts_any;
use crate::forward::{Hop, HopByHop, push_cookies};
use crate::server::http::client_session::ClientSession;
use crate::telemetry::{TRACEPARENT, TRACESTATE, Trace};
use crate::upstream;

/// Initial capacity for the fields of a request. Most need less.
const LINES_BYTES: usize = 1024;

/// A request to the API without `Host`, which depends on the connection.
pub struct ApiRequest {
    pub method: Method,
    target: String,
    lines: FieldLines,
    framing: RequestFraming,
}

impl ApiRequest {
    /// Converts a client's request. With `redact_for` it requests a complete response without a
    /// content coding, of a media type that may pass.
    pub fn new(
        session: &ClientSession,
        context: &RequestContext,
        redact_for: Option<&RedactFor>,
    ) -> Self {
        let request = session.request();
        let fields = &request.fields;
        let hop = Hop {
            peer: session.peer(),
            is_trusted: context.state.trusted.trusts(session.peer()),
            is_tls: session.is_tls(),
            version: request.version,
            request_id: &context.request_id,
        };
        let trace = context.record.trace.as_ref().and_then(Trace::field);
        let credentials = context.forwarded_credentials();
        let passing = PassingFields {
            hop: &hop,
            hop_by_hop: HopByHop::from_map(fields),
            has_trace: trace.is_some(),
            expects_continue: session.has_body() && expects_continue(request),
            passes_credentials: credentials.is_all(),
            redact_for,
        };
        let mut lines = FieldLines::with_capacity(LINES_BYTES);
        for (name, value) in fields {
            if passing.contains(name) {
                lines.push_value(name, value);
            }
        }
        credentials.push_single(&mut lines, fields);
        push_cookies(&mut lines, &credentials.cookies(fields));
        hop.push_fields(&mut lines, fields);
        if let Some(trace) = trace {
            lines.push(&TRACEPARENT, trace.as_bytes());
        }
        match redact_for {
            Some(redact_for) => push_accepted(&mut lines, fields, redact_for),
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
    pub fn start(&self, connection: upstream::Connection) -> upstream::Exchange {
        upstream::Exchange::new(
            connection,
            self.method.clone(),
            &self.target,
            &self.lines,
            self.framing,
        )
    }
}

/// Filter of the client's fields that pass unchanged.
struct PassingFields<'a> {
    hop: &'a Hop<'a>,
    hop_by_hop: HopByHop<'a>,
    has_trace: bool,
    expects_continue: bool,
    /// Every credential is forwarded; otherwise at most one, which is written separately.
    passes_credentials: bool,
    redact_for: Option<&'a RedactFor>,
}

impl PassingFields<'_> {
    fn contains(&self, name: &HeaderName) -> bool {
        match *name {
            // Written by `upstream::Exchange`, or below with what decides them.
            HOST | CONTENT_LENGTH | COOKIE => false,
            AUTHORIZATION => self.passes_credentials,
            EXPECT => self.expects_continue,
            // They refer to bytes that the client must not see.
            RANGE | IF_RANGE | IF_MATCH | IF_NONE_MATCH | IF_MODIFIED_SINCE
            | IF_UNMODIFIED_SINCE
                if self.redact_for.is_some() =>
            {
                false
            }
            ACCEPT | ACCEPT_ENCODING if self.redact_for.is_some() => false,
            _ if *name == X_API_KEY => self.passes_credentials,
            _ if *name == TRACEPARENT => false,
            _ if *name == TRACESTATE && !self.has_trace => false,
            _ => !self.hop_by_hop.contains(name.as_str().as_bytes()) && !self.hop.removes(name),
        }
    }
}

/// Writes `Accept` of a request whose response is redacted: JSON, unless the client accepts a type
/// that may pass.
fn push_accepted(lines: &mut FieldLines, fields: &HeaderMap, redact_for: &RedactFor) {
    lines.push(&ACCEPT_ENCODING, b"identity");
    let accepted = || fields.get_all(ACCEPT).iter().map(HeaderValue::as_bytes);
    if accepts_any(accepted(), redact_for.pass_types()) {
        accepted().for_each(|value| lines.push(&ACCEPT, value));
    } else {
        lines.push(&ACCEPT, b"application/json");
    }
}

/// Requests the protocol switch that the client requests.
fn push_upgrade(lines: &mut FieldLines, fields: &HeaderMap) {
    if let Some(protocol) = fields.get(UPGRADE) {
        lines.push(&UPGRADE, protocol.as_bytes());
        lines.push(&CONNECTION, b"upgrade");
    }
}

/// Whether a request asks for a switch to WebSocket. No other protocol passes: after a switch to
/// HTTP/2 or TLS the API would receive requests that the gateway does not see.
pub fn asks_for_websocket(request: &RequestHead) -> bool {
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

/// Returns the framing of the request body towards the API.
fn framing(request: &RequestHead, has_body: bool) -> RequestFraming {
    let declared =
        request.fields.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    match declared {
        Some(length) => RequestFraming::Length(length),
        None if has_body => RequestFraming::Chunked,
        // A method that usually has a body states that it is empty (RFC 9110 section 8.6).
        None if matches!(request.method, Method::POST | Method::PUT | Method::PATCH) => {
            RequestFraming::Length(0)
        }
        None => RequestFraming::None,
    }
}
