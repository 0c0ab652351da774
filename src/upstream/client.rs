//! The gateway's own requests: GET, built from a path and a token alone.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::HeaderValue;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, HOST, IF_MODIFIED_SINCE, IF_NONE_MATCH, USER_AGENT,
};
use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::v1::Connector;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType};
use pingora_http::RequestHeader;
use tokio::time::timeout_at;

use super::breaker::{Breaker, Circuit, Outcome};
use super::peer::Peers;
use super::places::{Payer, Permit, Places};
use super::{
    Answer, IDLE, MAX_INFORMATIONAL, MAX_STALE_CONNECTIONS, UpstreamError, announces_absent_body, came_framed_plainly,
};
use crate::api::Token;
use crate::cache::Validators;
use crate::clock;
use crate::config;
use crate::telemetry::Metrics;

/// What a request is for; a label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Validate,
    Fetch,
    /// A fetch whose target a client chose in part (its query): it says nothing of whether the API is there.
    Bypass,
    ChangeLog,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Validate => "validate",
            Kind::Fetch | Kind::Bypass => "fetch",
            Kind::ChangeLog => "change_log",
        }
    }
}

/// One of the gateway's own requests.
pub struct Request<'a> {
    pub kind: Kind,
    /// Path and query.
    pub target: &'a str,
    /// Whose it is; none: nobody's.
    pub token: Option<&'a Token>,
    /// What is stored already, so that the API may answer 304.
    pub validators: Option<&'a Validators>,
    /// Whom it counts for.
    pub payer: Payer,
}

/// Takes one request to the API and its whole answer back. The gateway's own goes over [`Connections`]; tests put an API
/// of their own here, on a clock that they steer.
pub trait Transport: Send + Sync + 'static {
    /// # Errors
    /// No usable answer. How long it may take is not looked at here.
    fn exchange(&self, request: &Request<'_>) -> impl Future<Output = Result<Answer, UpstreamError>> + Send;
}

/// Sends the gateway's own requests to the API: bounded in number and in time, and not to one that is known to be down.
pub struct Client<T = Connections> {
    transport: T,
    places: Places,
    timeout: Duration,
    breaker: Breaker,
    /// Makes sources of failures for the breaker.
    hasher: RandomState,
    metrics: Arc<Metrics>,
}

impl Client {
    /// Over connections of pingora's.
    pub fn new(config: &config::Upstream, peers: Arc<Peers>, conf: &ServerConf, metrics: Arc<Metrics>) -> Self {
        let connections = Connections {
            connector: Connector::new(Some(ConnectorOptions::from_server_conf(conf))),
            peers,
            max_body: usize::try_from(config.max_body).unwrap_or(usize::MAX),
        };
        Client::over(connections, config, metrics)
    }
}

impl<T: Transport> Client<T> {
    pub fn over(transport: T, config: &config::Upstream, metrics: Arc<Metrics>) -> Self {
        Client {
            transport,
            places: Places::new(config.max_in_flight),
            timeout: config.timeout,
            breaker: Breaker::new(config.timeout),
            hasher: RandomState::new(),
            metrics,
        }
    }

    /// Gets what stands at a path, as its request says.
    ///
    /// # Errors
    /// No usable answer within `upstream.timeout`, waiting for a place included; or none wanted, since the API is known
    /// to be down.
    pub async fn get(&self, request: Request<'_>) -> Result<Answer, UpstreamError> {
        let started = clock::now();
        let result = self.send(&request, started).await;
        let took = clock::now().saturating_duration_since(started);
        self.metrics.upstream_exchange(request.kind.as_str(), took, result.as_ref().err().copied());
        result
    }

    async fn send(&self, request: &Request<'_>, started: Instant) -> Result<Answer, UpstreamError> {
        let deadline = started + self.timeout;
        let _place = self.place(request.payer, deadline).await?;
        let counts = request.kind != Kind::Bypass;
        // Again: it may have opened meanwhile, and one at a time finds out. A bypass never does, it waits for no probe.
        let admission = if counts {
            Some(self.breaker.admit(clock::now()).ok_or(UpstreamError::CircuitOpen)?)
        } else if self.breaker.refuses(clock::now()) {
            return Err(UpstreamError::CircuitOpen);
        } else {
            None
        };
        let _counted = self.metrics.fetch_in_flight();
        let sent = clock::now();
        let exchange = timeout_at(deadline.into(), self.transport.exchange(request)).await;
        let result = exchange.unwrap_or(Err(UpstreamError::Timeout));
        // One that waited long for its place had no time: that says nothing of the API.
        let hurried = result.as_ref().is_err_and(|e| *e == UpstreamError::Timeout) && sent > started + self.timeout / 2;
        if let Some(admission) = admission.filter(|_| !hurried) {
            admission.record(outcome(&result), self.source(request, &result), clock::now());
        }
        result
    }

    /// The source of a failure, which the breaker counts once. A caller may know several customers for which the API answers
    /// with an error; silence for several customers is taken for the API's own. No client has a part in a connection that
    /// cannot be made: each such failure counts.
    fn source(&self, request: &Request<'_>, result: &Result<Answer, UpstreamError>) -> Option<u64> {
        let target = match result {
            Err(UpstreamError::Resolve | UpstreamError::Connect | UpstreamError::Tls) => return None,
            Err(_) => Some(request.target),
            // Its target holds the token: before it is known, that is the caller.
            Ok(_) if request.kind == Kind::Validate => return Some(self.hasher.hash_one(request.target)),
            Ok(_) => None,
        };
        Some(self.hasher.hash_one((request.payer, target)))
    }

    /// What requests go over.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The circuit as a request would find it now.
    pub fn circuit(&self) -> Circuit {
        self.breaker.circuit(clock::now())
    }

    /// Whether a request would be refused now, since the API is known to be down.
    pub fn is_circuit_open(&self) -> bool {
        self.breaker.refuses(clock::now())
    }

    /// A place among the requests in flight; payers that wait take turns.
    async fn place(&self, payer: Payer, deadline: Instant) -> Result<Permit<'_>, UpstreamError> {
        // No request waits for a place only to be refused because the API is down.
        if self.breaker.refuses(clock::now()) {
            return Err(UpstreamError::CircuitOpen);
        }
        self.places.acquire(payer, deadline).await
    }
}

/// The way to the API over the network: connections that are kept and used again.
pub struct Connections {
    connector: Connector,
    peers: Arc<Peers>,
    max_body: usize,
}

impl Transport for Connections {
    /// Tries again on a fresh connection as long as it was a kept one that turned out closed: GET is idempotent.
    async fn exchange(&self, request: &Request<'_>) -> Result<Answer, UpstreamError> {
        let peer = self.peers.for_fetch().await?;
        let mut tries = 0;
        loop {
            tries += 1;
            let (mut session, reused) = self.connect(&peer).await?;
            match self.ask(&mut session, request).await {
                Ok(answer) => {
                    if !announces_absent_body(answer.status, &answer.headers) {
                        self.release(session, &peer).await;
                    }
                    return Ok(answer);
                }
                Err(Failed::BeforeAnswer) if reused && tries < MAX_STALE_CONNECTIONS => {}
                Err(Failed::BeforeAnswer) => {
                    session.shutdown().await;
                    return Err(UpstreamError::NoResponse);
                }
                Err(Failed::Within(error)) => {
                    session.shutdown().await;
                    return Err(error);
                }
            }
        }
    }
}

impl Connections {
    async fn ask(&self, session: &mut HttpSession, request: &Request<'_>) -> Result<Answer, Failed> {
        let head = self.head(request).map_err(|_| Failed::Within(UpstreamError::Protocol))?;
        session.write_request_header(Box::new(head)).await.map_err(before)?;
        session.finish_request_body().await.map_err(before)?;
        session.read_response_header().await.map_err(before)?;
        let mut informational = 0;
        while session.response_header().is_some_and(|head| head.status.is_informational()) {
            informational += 1;
            let switched = session.response_header().is_some_and(|head| head.status == 101);
            if switched || informational > MAX_INFORMATIONAL {
                return Err(Failed::Within(UpstreamError::Protocol));
            }
            session.read_response_header().await.map_err(within)?;
        }
        if !came_framed_plainly(session) {
            return Err(Failed::Within(UpstreamError::Protocol));
        }
        let Some(head) = session.response_header() else { return Err(Failed::Within(UpstreamError::Protocol)) };
        let (status, headers) = (head.status, head.headers.clone());
        let declared = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if declared.is_some_and(|length| length > self.max_body) {
            return Err(Failed::Within(UpstreamError::TooLarge));
        }
        let mut body = BytesMut::with_capacity(declared.unwrap_or(0));
        while let Some(chunk) = session.read_response_body().await.map_err(within)? {
            if body.len() + chunk.len() > self.max_body {
                return Err(Failed::Within(UpstreamError::TooLarge));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body: body.freeze() })
    }

    /// Nothing of a caller's request but the token travels.
    fn head(&self, request: &Request<'_>) -> pingora_core::Result<RequestHeader> {
        let mut head = RequestHeader::build("GET", request.target.as_bytes(), Some(7))?;
        head.insert_header(HOST, self.peers.authority().clone())?;
        if let Some(token) = request.token {
            let bearer = zeroize::Zeroizing::new(format!("Bearer {}", token.expose()));
            // Visible ASCII is a field value.
            let mut value = HeaderValue::from_str(&bearer).map_err(|_| Error::new_str("token"))?;
            value.set_sensitive(true);
            head.insert_header(AUTHORIZATION, value)?;
        }
        head.insert_header(ACCEPT, "application/json")?;
        head.insert_header(ACCEPT_ENCODING, "identity")?;
        head.insert_header(USER_AGENT, concat!("telecomx-gateway/", env!("CARGO_PKG_VERSION")))?;
        if let Some(etag) = request.validators.and_then(|validators| validators.etag.as_ref()) {
            head.insert_header(IF_NONE_MATCH, etag)?;
        }
        if let Some(date) = request.validators.and_then(|validators| validators.last_modified.as_ref()) {
            head.insert_header(IF_MODIFIED_SINCE, date)?;
        }
        Ok(head)
    }

    /// A connection, and whether it was a kept one.
    ///
    /// # Errors
    /// No connection, or no TLS, within `upstream.connect_timeout`.
    pub async fn connect(&self, peer: &HttpPeer) -> Result<(HttpSession, bool), UpstreamError> {
        if let Some(kept) = self.connector.reused_http_session(peer).await {
            return Ok((HttpSession::H1(kept), true));
        }
        // Apart: what it takes to connect is ten times the rest of a fetch, and most fetches find a kept connection.
        let connected = Box::pin(self.connector.get_http_session(peer)).await;
        connected.map(|(session, reused)| (HttpSession::H1(session), reused)).map_err(|error| {
            self.peers.failed_to_connect();
            match UpstreamError::of(&error) {
                // It ended before anything was sent over it.
                UpstreamError::Truncated => UpstreamError::NoResponse,
                error => error,
            }
        })
    }

    /// Keeps a connection whose exchange is over, if it can be used again.
    pub async fn release(&self, session: HttpSession, peer: &HttpPeer) {
        if let HttpSession::H1(h1) = session {
            self.connector.release_http_session(h1, peer, Some(IDLE)).await;
        }
    }
}

/// Whether the API was there: what it answered is another matter, unless it says itself that it is not.
fn outcome(result: &Result<Answer, UpstreamError>) -> Outcome {
    match result {
        Ok(answer) if matches!(answer.status.as_u16(), 502..=504) => Outcome::Unreachable,
        Err(
            UpstreamError::Resolve
            | UpstreamError::Connect
            | UpstreamError::Tls
            | UpstreamError::Timeout
            | UpstreamError::NoResponse,
        ) => Outcome::Unreachable,
        _ => Outcome::Reached,
    }
}

/// Whether any of an answer was there when it failed.
enum Failed {
    BeforeAnswer,
    Within(UpstreamError),
}

fn before(error: Box<pingora_core::Error>) -> Failed {
    match error.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError => Failed::BeforeAnswer,
        _ => Failed::Within(UpstreamError::of(&error)),
    }
}

fn within(error: Box<pingora_core::Error>) -> Failed {
    Failed::Within(UpstreamError::of(&error))
}
