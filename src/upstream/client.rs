//! The gateway's own requests: GET, built from a path and a token alone.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::breaker::{Breaker, Circuit, Outcome};
use super::places::{Payer, Permit, Places};
use super::{Answer, UpstreamError};
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

/// Sends one request to the API and returns its whole response. [`Connections`](super::Connections) does so over the
/// network; tests implement an API on a clock that they control.
pub trait Transport: Send + Sync + 'static {
    /// # Errors
    ///
    /// There is no usable response. The caller stops waiting at `deadline`; an implementation uses it
    /// to try another address in time and to name the phase that took too long.
    fn exchange(
        &self,
        request: &Request<'_>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Answer, UpstreamError>> + Send;
}

/// Sends the gateway's own requests to the API: bounded in number and in time, and not to one that is known to be down.
pub struct Client<T> {
    transport: T,
    places: Places,
    timeout: Duration,
    breaker: Breaker,
    /// Makes sources of failures for the breaker.
    hasher: RandomState,
    metrics: Arc<Metrics>,
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
        self.metrics.upstream_exchange(request.kind.as_str(), took, result.as_ref().err().map(|error| error.labels()));
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
        let exchange = timeout_at(deadline.into(), self.transport.exchange(request, deadline)).await;
        let result = exchange.unwrap_or(Err(UpstreamError::Timeout));
        // One that waited long for its place had no time: that says nothing of the API.
        let hurried = result.as_ref().is_err_and(|e| e.as_str() == "timeout") && sent > started + self.timeout / 2;
        let is_local = matches!(result, Err(UpstreamError::Descriptors));
        if let Some(admission) = admission.filter(|_| !hurried && !is_local) {
            let change = admission.record(outcome(&result), self.source(request, &result), clock::now());
            report(change, &result);
        }
        result
    }

    /// The source of a failure, which the breaker counts once. A caller may know several customers for which the API answers
    /// with an error; silence for several customers is taken for the API's own. No client has a part in a connection that
    /// cannot be made: each such failure counts.
    fn source(&self, request: &Request<'_>, result: &Result<Answer, UpstreamError>) -> Option<u64> {
        let target = match result {
            Err(UpstreamError::Resolve | UpstreamError::Connect | UpstreamError::Tls(_)) => return None,
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

/// Logs that the circuit opened or closed.
fn report(change: Option<Circuit>, result: &Result<Answer, UpstreamError>) {
    match (change, result) {
        (Some(Circuit::Open), Err(error)) => {
            tracing::warn!(cause = error.cause(), "circuit breaker opened after consecutive failures of the API");
        }
        (Some(Circuit::Open), Ok(answer)) => {
            let status = answer.status.as_u16();
            tracing::warn!(status, "circuit breaker opened after consecutive failures of the API");
        }
        (Some(_), _) => tracing::info!("circuit breaker closed; requests to the API resumed"),
        (None, _) => {}
    }
}

/// Whether the API was there: what it answered is another matter, unless it says itself that it is not.
fn outcome(result: &Result<Answer, UpstreamError>) -> Outcome {
    match result {
        Ok(answer) if matches!(answer.status.as_u16(), 502..=504) => Outcome::Unreachable,
        Err(
            UpstreamError::Resolve
            | UpstreamError::Connect
            | UpstreamError::Tls(_)
            | UpstreamError::Timeout
            | UpstreamError::BodyTimeout
            | UpstreamError::NoResponse,
        ) => Outcome::Unreachable,
        _ => Outcome::Reached,
    }
}
