//! The application of the public listener: serves a request by its route, writes the gateway's own
//! responses, and ends the record of each request. It makes no decision about caching or redaction.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Response, StatusCode, Version};
use http1::RequestHead;
use tokio::time::timeout;

use super::admission::Limit;
use super::forward::credentials::NotForwarded;
use super::forward::exchange::Failure;
use super::forward::redact_for::RedactFor;
use super::forward::request_context::{
    Forwarded, ForwardedValidation, PendingChanges, Proxy, RequestContext, end_if_draining,
};
use super::http::client_failure::ClientFailure;
use super::http::client_session::{Application, ClientSession};
use super::routing::RouteTarget;
use super::state::RequestState;
use crate::api::{ApiError, CustomerId, Query, Refusal, holds_credential, request_id_text};
use crate::clock;
use crate::gateway::NameRequest;
use crate::reply::{CacheStatus, Preflight, Reply, origin_of, requested_fields};
use crate::telemetry::{Record, TRACEPARENT, Trace};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Initial capacity for the fields of a reply.
const REPLY_FIELDS: usize = 16;

/// Maximum time to write the response to a request over a limit.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How the gateway responds to a request.
enum Action {
    Reply(Reply),
    /// With the API's response, redacted if there is a [`RedactFor`].
    Forward(Option<RedactFor>),
    /// Not at all, or with an error that the client can still receive.
    ClientFailed(ClientFailure),
}

impl RequestState {
    /// Returns the client's request id, or a new one if the client's is invalid or holds a
    /// credential.
    fn request_id(&self, request: &RequestHead) -> HeaderValue {
        let wanted = request.fields.get(X_REQUEST_ID).filter(|value| {
            let text = value.as_bytes();
            request_id_text(text).is_some()
                && !holds_credential(
                    text,
                    listed(&request.fields),
                    request.query(),
                    self.cookie.as_deref(),
                )
        });
        let own = || {
            HeaderValue::try_from(self.new_request_id()).unwrap_or(HeaderValue::from_static("0"))
        };
        wanted.cloned().unwrap_or_else(own)
    }

    /// Returns the client's trace unless it holds a credential, because it is logged.
    fn trace(&self, request: &RequestHead) -> Option<Trace> {
        let field = request.fields.get(TRACEPARENT)?;
        let (query, cookie) = (request.query(), self.cookie.as_deref());
        if holds_credential(field.as_bytes(), listed(&request.fields), query, cookie) {
            return None;
        }
        Trace::from_headers(&request.fields, self.new_span())
    }
}

impl Proxy {
    /// Decides how to respond to a request.
    async fn decide(&self, session: &mut ClientSession, context: &mut RequestContext) -> Action {
        let request = session.request();
        let state = context.state.clone();
        match state.route(request, &mut context.record) {
            Ok(RouteTarget::CustomerName(customer)) => {
                // Boxed, as in `prepare_forward`: most requests need no room for this future.
                let reply = Box::pin(self.respond_to_name(session, context, customer)).await;
                reply.map_or_else(Action::ClientFailed, Action::Reply)
            }
            Ok(RouteTarget::Forward(changes, rule)) => {
                match self.prepare_forward(session, context, changes, rule).await {
                    Ok(redact_for) => Action::Forward(redact_for),
                    Err(NotForwarded::Refused(error)) => Action::Reply(self.refuse(error, context)),
                    Err(NotForwarded::Client(failure)) => Action::ClientFailed(failure),
                }
            }
            Ok(RouteTarget::Preflight) => {
                Action::Reply(Preflight::for_name(requested_fields(&request.fields)).into())
            }
            Err(error) if state.permits_preflight_of_refused(error, request) => {
                Action::Reply(Preflight::for_error(requested_fields(&request.fields)).into())
            }
            Err(error) => Action::Reply(self.refuse(error, context)),
        }
    }

    /// Returns the response to a request for a customer's name, unless the client disconnects.
    async fn respond_to_name(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        customer: CustomerId,
    ) -> Result<Reply, ClientFailure> {
        let RequestContext { address, has_body, .. } = *context;
        let (request, client) = session.split();
        let query = Query::unvalidated(request.query());
        let request =
            NameRequest { customer, query: &query, headers: &request.fields, address, has_body };
        let gateway = context.state.gateway.clone();
        client.unless_closed(gateway.respond(&request, &mut context.record)).await
    }

    /// Records an error and returns its response.
    fn refuse(&self, error: ApiError, context: &mut RequestContext) -> Reply {
        context.record.error = Some(error);
        Reply::from(error)
    }

    pub(super) async fn write(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        reply: &Reply,
    ) -> Result<(), Failure> {
        let request = session.request();
        let is_head_request = request.method == Method::HEAD;
        let origin = origin_of(&request.fields).cloned();
        if context.has_body
            || reply.error().is_some_and(|error| error.status() == StatusCode::BAD_REQUEST)
        {
            // An unread body must not be parsed as the next request.
            session.close_after();
        }
        end_if_draining(session, context);
        let mut response = Response::new(());
        *response.status_mut() = reply.status();
        let fields = response.headers_mut();
        fields.reserve(REPLY_FIELDS);
        reply.fields(
            &context.state.gateway.cors,
            origin.as_ref(),
            &context.record.request_id,
            |name, value| {
                // Appended: a field of the API may occur several times.
                fields.append(name, value.to_header());
            },
        );
        fields.insert(X_REQUEST_ID, context.request_id.clone());
        let body =
            if is_head_request { Bytes::new() } else { reply.body(&context.record.request_id) };
        context.record.body_bytes = body.len();
        session.write_head(response, body.is_empty()).await?;
        if body.is_empty() {
            Ok(())
        } else {
            session.write_body(body, true).await.map_err(Failure::from)
        }
    }
}

impl Proxy {
    /// Takes a permit for a request under way.
    fn admit(&self, session: &ClientSession, context: &mut RequestContext) -> Result<(), Limit> {
        let (request, state) = (session.request(), &context.state);
        let query = Query::unvalidated(request.query());
        let caller = state.gateway.requesting_caller(&request.fields, &query);
        let (limits, address) = (state.limits.requests, state.limited_address(context.address));
        let permit = state.process.admission.request(limits, address, caller)?;
        context.permit = Some(permit);
        Ok(())
    }

    /// Refuses a request over a limit: with a response, or in a flood by resetting its stream.
    async fn refuse_over_limit(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        limit: Limit,
    ) -> Result<(), Failure> {
        context.state.gateway.metrics().count_over_limit(limit.as_str());
        context.record.cause = Some(limit.as_str());
        let reply = self.refuse(ApiError::Unavailable, context);
        context.record.status = reply.status();
        context.refusal_permit = context.state.process.admission.refusal();
        session.close_after();
        if context.refusal_permit.is_some() {
            session.set_write_timeout(REFUSAL_TIMEOUT);
            return self.write(session, context, &reply).await;
        }
        session.refuse();
        Ok(())
    }

    /// Adds the gateway's fields of every forwarded response.
    pub(super) fn set_gateway_fields(response: &mut Response<()>, context: &RequestContext) {
        let fields = response.headers_mut();
        fields.append(CACHE_STATUS, CacheStatus::BYPASS);
        fields.insert(X_REQUEST_ID, context.request_id.clone());
    }
}

/// Returns names and values of fields.
fn listed(fields: &HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}

/// Whether a request announces a body. Over HTTP/2 no field is needed for one.
fn has_body(session: &ClientSession) -> bool {
    let request = session.request();
    let is_empty = |value: &HeaderValue| {
        !value.is_empty() && value.as_bytes().iter().all(|&digit| digit == b'0')
    };
    let length = request.fields.get(CONTENT_LENGTH).is_some_and(|value| !is_empty(value));
    length
        || request.fields.contains_key(TRANSFER_ENCODING)
        || (request.version == Version::HTTP_2 && session.has_body())
}

/// Whether a request with `Content-Length: 0` has no body. Over HTTP/2 DATA frames may still follow
/// the head, after the request would have been forwarded as complete, so that its end is awaited.
async fn has_declared_length(session: &mut ClientSession, wait: Duration) -> bool {
    let request = session.request();
    let is_declared_empty = request.version == Version::HTTP_2
        && request.fields.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() == b"0");
    if !is_declared_empty {
        return true;
    }
    let ending = async {
        loop {
            match session.read_body().await {
                Ok(None) => return true,
                Ok(Some(piece)) if piece.is_empty() => {}
                _ => return false,
            }
        }
    };
    timeout(wait, ending).await.unwrap_or(false)
}

impl Application for Proxy {
    async fn serve(&self, session: &mut ClientSession) {
        let mut context = self.begin(session);
        if let Err(failure) = self.respond(session, &mut context).await {
            self.fail(session, &mut context, failure).await;
        }
        self.finish(session, context);
    }
}

impl Proxy {
    fn begin(&self, session: &mut ClientSession) -> RequestContext {
        let state = self.0.load();
        let busy = state.process.lifecycle.begin_request();
        session.set_write_timeout(state.limits.write_timeout);
        let request_id = state.request_id(session.request());
        let mut record = Record::begin(clock::now());
        record.method = session.request().method.clone();
        record.request_id = request_id.to_str().unwrap_or_default().to_owned();
        record.trace = state.trace(session.request());
        let address = state.trusted.client_address(session.peer(), &session.request().fields);
        RequestContext {
            state,
            record,
            request_id,
            address,
            changes: PendingChanges::default(),
            forwarded: Forwarded::default(),
            validation: ForwardedValidation::default(),
            is_judged_invalid: false,
            read_ahead: Bytes::new(),
            has_body: has_body(session),
            depends_on_level: false,
            permit: None,
            refusal_permit: None,
            _busy: busy,
        }
    }

    async fn respond(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
    ) -> Result<(), Failure> {
        if let Err(limit) = self.admit(session, context) {
            return self.refuse_over_limit(session, context, limit).await;
        }
        if !has_declared_length(session, context.state.limits.header_timeout).await {
            let reply = self.refuse(ApiError::BadRequest(Refusal::Framing), context);
            return self.write(session, context, &reply).await;
        }
        match self.decide(session, context).await {
            Action::Reply(reply) => self.write(session, context, &reply).await,
            Action::Forward(redact_for) => {
                self.forward(session, context, redact_for.as_ref()).await
            }
            Action::ClientFailed(failure) => Err(Failure::Client(failure)),
        }
    }

    /// Ends a request that failed on the client's side or within the gateway.
    async fn fail(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        failure: Failure,
    ) {
        // Before the response: a later request of the client must not be served an entry from
        // before.
        self.on_upstream_failure(context, true);
        session.close_after();
        let error = match failure {
            Failure::Client(failure) => failure.record(&mut context.record),
            _ => Some(ApiError::Internal),
        };
        let Some(error) = error.filter(|_| session.retract_head()) else {
            return session.abort();
        };
        context.record.error = Some(error);
        context.record.status = error.status();
        if self.write(session, context, &Reply::from(error)).await.is_err() {
            session.abort();
        }
    }

    fn finish(&self, session: &ClientSession, mut context: RequestContext) {
        if let Some(status) = session.status_written()
            && !context.record.client_closed
        {
            context.record.status = status;
        }
        context.record.body_bytes = context.record.body_bytes.max(session.body_bytes_sent());
        context.record.end(context.state.gateway.metrics(), context.state.access);
    }
}
