//! Routes a request, writes the gateway's own responses, and ends the record of each request. It decides nothing about caching or
//! redaction.

use std::net::IpAddr;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Response, StatusCode, Version};
use http1::RequestHead;
use tokio::select;
use tokio::time::timeout;

use super::admission::Limit;
use super::client_session::{Application, ClientSession};
use super::disconnect::{ClientFailure, client_closed_request};
use super::exchange::Failure;
use super::head;
use super::http2_head;
use super::request_context::{Exchange, Forwarded, ForwardedValidation, PendingChanges, Proxy, end_if_draining};
use super::state::RequestState;
use super::veil::{RedactRule, Veil};
use crate::api::{
    ApiError, Change, CustomerId, NormalPath, Protected, Query, Refusal, changes, credentials_agree, holds_credential,
    request_id_text,
};
use crate::gateway::NameRequest;
use crate::reply::{CacheStatus, Preflight, Reply, is_preflight, origin_of, requested_fields};
use crate::telemetry::{Record, Route, TRACEPARENT, Trace};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Room for the fields of a reply.
const REPLY_FIELDS: usize = 16;

/// Time to write the response to a request over a limit.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a request goes.
enum Way {
    CustomerName(CustomerId),
    Preflight,
    /// With what it changes, if the API obeys it, and the rule by which its answer is redacted.
    Forward(Vec<Change>, Option<RedactRule>),
}

/// What becomes of a request.
enum Answered {
    Reply(Reply),
    /// The API's answer, redacted if there is a veil.
    Forward(Option<Veil>),
    /// The client left before.
    Left,
}

impl RequestState {
    /// Judges a request's head, whichever protocol it came by, and finds its way; its query comes along.
    fn way<'r>(&self, request: &'r RequestHead, record: &mut Record) -> Result<(Way, Query<'r>), ApiError> {
        if request.version == Version::HTTP_2
            && let Some(error) = http2_head::refusal(&request.fields)
        {
            return Err(error);
        }
        if matches!(request.method, Method::TRACE | Method::CONNECT) {
            return Err(ApiError::MethodNotAllowed);
        }
        if request.version == Version::HTTP_2 {
            head::check_http2(request, self.limits.max_header_bytes)?;
        }
        let (path, query) = (request.path(), request.query());
        let query = Query::unvalidated(query);
        credentials_agree(&request.fields).map_err(ApiError::from)?;
        if path == "*" && request.method == Method::OPTIONS {
            record.route = Route::Forward;
            return Ok((Way::Forward(Vec::new(), None), query));
        }
        record.route = Route::Blocked;
        let protected = Protected { blocked: &self.blocked, redacted: &self.redacted };
        let path = NormalPath::parse(path, protected).map_err(ApiError::BadRequest)?;
        if self.blocked.iter().any(|pattern| path.is(pattern)) {
            return Err(ApiError::Blocked);
        }
        record.route = Route::Forward;
        let (changes, rule) = (changes(&request.method, &request.fields, &path), self.veil_rule(&path));
        let name_of = match path.exact() {
            [customer, id, name] if customer == "customer" && name == "name" => CustomerId::parse(id.as_bytes()),
            _ => None,
        };
        if name_of.is_some() || rule.is_some() || !changes.is_empty() {
            query.validate().map_err(ApiError::BadRequest)?;
        }
        let forward = || Way::Forward(changes, rule);
        let Some(id) = name_of else { return Ok((forward(), query)) };
        let way = match request.method {
            Method::GET | Method::HEAD => {
                record.route = Route::CustomerName;
                Way::CustomerName(id)
            }
            Method::OPTIONS if self.gateway.cors.is_on() && is_preflight(&request.method, &request.fields) => {
                record.route = Route::CustomerName;
                Way::Preflight
            }
            _ => forward(),
        };
        Ok((way, query))
    }

    /// Whether a preflight for a path that the gateway refuses is permitted: only then can a page read the refusal.
    fn permits_refused(&self, error: ApiError, request: &RequestHead) -> bool {
        let cors = &self.gateway.cors;
        is_refused_path(error)
            && cors.is_on()
            && is_preflight(&request.method, &request.fields)
            && origin_of(&request.fields).is_some_and(|origin| cors.allows(origin))
    }

    fn veil_rule(&self, path: &NormalPath) -> Option<RedactRule> {
        let rule = self.redact_rules.iter().find(|rule| path.is(&rule.path))?;
        let log = path.folded().first().is_some_and(|root| root == "log");
        let policy = if log { rule.changes.clone() } else { rule.policy.clone() };
        Some(RedactRule { role: rule.role, policy, pass_types: rule.pass_types.clone() })
    }

    /// The caller's own request id if it is one and holds no credential, else a new one.
    fn request_id(&self, request: &RequestHead) -> HeaderValue {
        let wanted = request.fields.get(X_REQUEST_ID).filter(|value| {
            let text = value.as_bytes();
            request_id_text(text).is_some()
                && !holds_credential(text, listed(&request.fields), request.query(), self.cookie.as_deref())
        });
        let own = || HeaderValue::try_from(self.new_request_id()).unwrap_or(HeaderValue::from_static("0"));
        wanted.cloned().unwrap_or_else(own)
    }

    /// The caller's trace, unless a credential stands in it: it is logged.
    fn trace(&self, request: &RequestHead) -> Option<Trace> {
        let field = request.fields.get(TRACEPARENT)?;
        let (query, cookie) = (request.query(), self.cookie.as_deref());
        if holds_credential(field.as_bytes(), listed(&request.fields), query, cookie) {
            return None;
        }
        Trace::continued(&request.fields, self.new_span())
    }
}

impl Proxy {
    /// The gateway's own answer, or how the API's is passed on.
    async fn answer(&self, session: &mut ClientSession, exchange: &mut Exchange) -> Answered {
        let request = session.request();
        let (shared, address) = (exchange.state.clone(), exchange.address);
        match shared.way(request, &mut exchange.record) {
            Ok((Way::CustomerName(customer), _)) => {
                let answered = self.answer_name(session, exchange, customer, address).await;
                answered.map_or(Answered::Left, Answered::Reply)
            }
            Ok((Way::Forward(changes, rule), _)) => {
                match self.prepare_forward(session, exchange, changes, rule, address).await {
                    Ok(veil) => Answered::Forward(veil),
                    Err(error) => Answered::Reply(self.refused(error, exchange)),
                }
            }
            Ok((Way::Preflight, _)) => Answered::Reply(Preflight::for_name(requested_fields(&request.fields)).into()),
            Err(error) if shared.permits_refused(error, request) => {
                Answered::Reply(Preflight::for_error(requested_fields(&request.fields)).into())
            }
            Err(error) => Answered::Reply(self.refused(error, exchange)),
        }
    }

    /// The response to a request for a customer's name, unless the client leaves before.
    async fn answer_name(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        customer: CustomerId,
        address: IpAddr,
    ) -> Option<Reply> {
        let has_body = exchange.has_body;
        let (request, client) = session.split();
        let query = Query::unvalidated(request.query());
        let ask = NameRequest { customer, query: &query, headers: &request.fields, address, has_body };
        let gateway = exchange.state.gateway.clone();
        select! {
            biased;
            reply = gateway.respond(&ask, &mut exchange.record) => Some(reply),
            () = client.left() => None,
        }
    }

    fn refused(&self, error: ApiError, exchange: &mut Exchange) -> Reply {
        exchange.record.error = Some(error);
        Reply::from(error)
    }

    pub(super) async fn write(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        reply: &Reply,
    ) -> Result<(), Failure> {
        let request = session.request();
        let head_only = request.method == Method::HEAD;
        let origin = origin_of(&request.fields).cloned();
        if exchange.has_body || reply.error().is_some_and(|error| error.status() == StatusCode::BAD_REQUEST) {
            // A body that nobody reads must not be read as the next request.
            session.close_after();
        }
        end_if_draining(session, exchange);
        let mut response = Response::new(());
        *response.status_mut() = reply.status();
        let fields = response.headers_mut();
        fields.reserve(REPLY_FIELDS);
        reply.fields(&exchange.state.gateway.cors, origin.as_ref(), |name, value| {
            // Appended: a field of the API's may occur several times.
            fields.append(name, value.to_header());
        });
        fields.insert(X_REQUEST_ID, exchange.request_id.clone());
        let body = if head_only { Bytes::new() } else { reply.body() };
        exchange.record.body_bytes = body.len();
        session.write_head(response, body.is_empty()).await?;
        if body.is_empty() { Ok(()) } else { session.write_body(body, true).await.map_err(Failure::from) }
    }
}

impl Proxy {
    /// Takes a place among the requests under way.
    fn admit(&self, session: &ClientSession, exchange: &mut Exchange) -> Result<(), Limit> {
        let (request, state) = (session.request(), &exchange.state);
        let query = Query::unvalidated(request.query());
        let credential = state.gateway.credential(&request.fields, &query).ok();
        let caller = credential.map(|credential| state.gateway.caller_of(&credential.token));
        let (limits, address) = (state.limits.requests, state.limited_address(exchange.address));
        let place = state.process.admission.request(limits, address, caller)?;
        exchange.place = Some(place);
        Ok(())
    }

    /// Refuses a request over a limit: with a response, or, in a flood of them, by resetting its stream.
    async fn refuse_over_limit(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        limit: Limit,
    ) -> Result<(), Failure> {
        exchange.state.gateway.metrics().over_limit(limit.as_str());
        exchange.record.cause = Some(limit.as_str());
        let reply = self.refused(ApiError::Unavailable, exchange);
        exchange.record.status = reply.status();
        exchange.refusal = exchange.state.process.admission.refusal();
        session.close_after();
        if exchange.refusal.is_some() {
            session.set_write_timeout(REFUSAL_TIMEOUT);
            return self.write(session, exchange, &reply).await;
        }
        session.refuse();
        Ok(())
    }

    /// Adds what the gateway states on every forwarded response.
    pub(super) fn set_answer_fields(response: &mut Response<()>, exchange: &Exchange) {
        let fields = response.headers_mut();
        fields.append(CACHE_STATUS, CacheStatus::BYPASS);
        fields.insert(X_REQUEST_ID, exchange.request_id.clone());
    }
}

/// Names and values of fields.
fn listed(fields: &HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}

/// Whether the gateway refuses every request for a path, whatever else it says.
const fn is_refused_path(error: ApiError) -> bool {
    matches!(
        error,
        ApiError::Blocked | ApiError::BadRequest(Refusal::AliasPath | Refusal::BrokenEscape | Refusal::PathTooLong)
    )
}

/// Whether a request announces a body, of whatever length. Over HTTP/2 it need not say so in a field.
fn has_body(session: &ClientSession) -> bool {
    let request = session.request();
    let is_empty = |value: &HeaderValue| !value.is_empty() && value.as_bytes().iter().all(|&digit| digit == b'0');
    let length = request.fields.get(CONTENT_LENGTH).is_some_and(|value| !is_empty(value));
    length
        || request.fields.contains_key(TRANSFER_ENCODING)
        || (request.version == Version::HTTP_2 && session.has_body())
}

/// Whether a request that tells of a body of no length sends none. Over HTTP/2 it may still do, after its fields: it would
/// have been passed on by then, whole as told. Only reading shows it.
async fn ends_as_told(session: &mut ClientSession, wait: Duration) -> bool {
    let request = session.request();
    let told = request.version == Version::HTTP_2
        && request.fields.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() == b"0");
    if !told {
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

#[async_trait]
impl Application for Proxy {
    async fn serve(&self, session: &mut ClientSession) {
        let mut exchange = self.begin(session);
        if let Err(failure) = self.respond(session, &mut exchange).await {
            self.fail(session, &mut exchange, failure).await;
        }
        self.finish(session, exchange);
    }
}

impl Proxy {
    fn begin(&self, session: &mut ClientSession) -> Exchange {
        let state = self.0.load();
        let busy = state.process.lifecycle.begin_request();
        session.set_write_timeout(state.limits.write_timeout);
        let request_id = state.request_id(session.request());
        let mut record = Record::begin(Instant::now());
        record.method = session.request().method.clone();
        record.request_id = request_id.to_str().unwrap_or_default().to_owned();
        record.trace = state.trace(session.request());
        let address = state.trusted.client_address(session.peer(), &session.request().fields);
        Exchange {
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
            place: None,
            refusal: None,
            _busy: busy,
        }
    }

    async fn respond(&self, session: &mut ClientSession, exchange: &mut Exchange) -> Result<(), Failure> {
        if let Err(limit) = self.admit(session, exchange) {
            return self.refuse_over_limit(session, exchange, limit).await;
        }
        if !ends_as_told(session, exchange.state.limits.header_timeout).await {
            let reply = self.refused(ApiError::BadRequest(Refusal::Framing), exchange);
            return self.write(session, exchange, &reply).await;
        }
        match self.answer(session, exchange).await {
            Answered::Reply(reply) => self.write(session, exchange, &reply).await,
            Answered::Forward(veil) => self.forward(session, exchange, veil.as_ref()).await,
            Answered::Left => Err(Failure::Client(ClientFailure::Closed)),
        }
    }

    /// Ends an exchange that failed on the client's side, or within the gateway.
    async fn fail(&self, session: &mut ClientSession, exchange: &mut Exchange, failure: Failure) {
        // Before the client knows of it: what begins after that must not meet what was before.
        self.response_failed(exchange, true);
        session.close_after();
        let error = match failure {
            Failure::Client(failure) => failure.record(&mut exchange.record),
            _ => Some(ApiError::Internal),
        };
        let Some(error) = error.filter(|_| session.retract_head()) else {
            return session.abort();
        };
        exchange.record.error = Some(error);
        exchange.record.status = error.status();
        if self.write(session, exchange, &Reply::from(error)).await.is_err() {
            session.abort();
        }
    }

    fn finish(&self, session: &ClientSession, mut exchange: Exchange) {
        if exchange.record.client_closed {
            exchange.record.status = client_closed_request();
        } else if let Some(status) = session.status_written() {
            exchange.record.status = status;
        }
        exchange.record.body_bytes = exchange.record.body_bytes.max(session.body_bytes_sent());
        exchange.record.end(exchange.state.gateway.metrics(), exchange.state.access);
    }
}
