//! The gateway's own requests to the API: GET, made of a target, a token and validators only.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::time::timeout_at;

use super::fair_queue::{FairQueue, Permit, QueueKey};
use super::{ApiResponse, FAILURE_STATUS, UpstreamError, is_failure};
use crate::api::Token;
use crate::cache::Validators;
use crate::clock;
use crate::config;
use crate::telemetry::Metrics;
use gateway_core::breaker::{Breaker, Circuit, CircuitChange, Outcome};

/// Purpose of a request; a label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    Validate,
    Fetch,
    /// A fetch with a client's query. Its failure says nothing about the availability of the API.
    Bypass,
    ChangeLog,
}

impl RequestKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            RequestKind::Validate => "validate",
            RequestKind::Fetch | RequestKind::Bypass => "fetch",
            RequestKind::ChangeLog => "change_log",
        }
    }
}

/// One of the gateway's own requests.
pub struct Request<'a> {
    pub kind: RequestKind,
    /// Path and query.
    pub target: &'a str,
    /// Bearer token; `None` sends no `Authorization`.
    pub token: Option<&'a Token>,
    /// Validators of a cached response, so that the API may respond with 304.
    pub validators: Option<&'a Validators>,
    /// `Origin` of the client, for an API that responds with CORS fields for it.
    pub origin: Option<&'a HeaderValue>,
    /// Key under which it is queued.
    pub queue_key: QueueKey,
}

/// Sends one request to the API and returns its whole response. [`Connections`](super::Connections)
/// does so over the network; tests implement an API on a clock that they control.
pub trait Transport: Send + Sync + 'static {
    /// # Errors
    ///
    /// There is no usable response. The caller stops waiting at `deadline`; an implementation uses
    /// it to try another address in time and to name the phase that took too long.
    fn exchange(
        &self,
        request: &Request<'_>,
        deadline: Instant,
    ) -> impl Future<Output = Result<ApiResponse, UpstreamError>> + Send;

    /// The addresses of the API that fail, for the log; all of them if none is known to fail.
    fn failing_addresses(&self) -> String {
        String::new()
    }
}

/// Sends the gateway's own requests to the API, bounded in number and in time, through a circuit
/// breaker.
pub struct Client<T> {
    transport: T,
    queue: FairQueue,
    timeout: Duration,
    breaker: Breaker,
    /// Hashes sources of failures for the breaker.
    hasher: RandomState,
    metrics: Arc<Metrics>,
}

impl<T: Transport> Client<T> {
    pub fn new(transport: T, config: &config::Upstream, metrics: Arc<Metrics>) -> Self {
        let failures =
            UpstreamError::ALL.map(UpstreamError::labels).into_iter().chain([FAILURE_STATUS]);
        metrics.create_upstream_errors(failures);
        Client {
            transport,
            queue: FairQueue::new(config.max_in_flight),
            timeout: config.timeout,
            breaker: Breaker::new(config.timeout),
            hasher: RandomState::new(),
            metrics,
        }
    }

    /// Sends a request and returns the response.
    ///
    /// # Errors
    /// There is no usable response within `upstream.timeout`, the wait for a permit included, or
    /// the circuit breaker is open.
    pub async fn get(&self, request: Request<'_>) -> Result<ApiResponse, UpstreamError> {
        let started = clock::now();
        let result = self.send(&request, started).await;
        let took = clock::now().saturating_duration_since(started);
        let failure = match &result {
            Err(error) => Some(error.labels()),
            Ok(response) => is_failure(response.status).then_some(FAILURE_STATUS),
        };
        self.metrics.record_upstream_exchange(request.kind.as_str(), took, failure);
        result
    }

    async fn send(
        &self,
        request: &Request<'_>,
        started: Instant,
    ) -> Result<ApiResponse, UpstreamError> {
        let deadline = started + self.timeout;
        let _permit = self.acquire_permit(request.queue_key, deadline).await?;
        let counts = request.kind != RequestKind::Bypass;
        // Checked again: it may have opened during the wait, and admits one probe at a time. A
        // bypass is never a probe.
        let breaker_permit = if counts {
            Some(self.breaker.try_acquire(clock::now()).ok_or(UpstreamError::CircuitOpen)?)
        } else if self.breaker.is_open(clock::now()) {
            return Err(UpstreamError::CircuitOpen);
        } else {
            None
        };
        let _counted = self.metrics.track_fetch();
        let sent = clock::now();
        let exchange =
            timeout_at(deadline.into(), self.transport.exchange(request, deadline)).await;
        let result = exchange.unwrap_or(Err(UpstreamError::Timeout));
        // After a long wait for its permit, a request had too little time: that says nothing about
        // the API.
        let had_no_time = result.as_ref().is_err_and(|e| e.as_str() == "timeout")
            && sent > started + self.timeout / 2;
        let is_local = matches!(result, Err(UpstreamError::Descriptors));
        if let Some(breaker_permit) = breaker_permit.filter(|_| !had_no_time && !is_local) {
            let change = breaker_permit.record(
                outcome(&result),
                self.source(request, &result),
                clock::now(),
            );
            self.log_change(change, &result);
        }
        result
    }

    /// Writes the audit line of an outage's start or end.
    fn log_change(
        &self,
        change: Option<CircuitChange>,
        result: &Result<ApiResponse, UpstreamError>,
    ) {
        match change {
            Some(CircuitChange::Opened { failures }) => tracing::warn!(
                target: "audit",
                kind = result.as_ref().err().map_or("status", |error| error.as_str()),
                cause = result.as_ref().err().map_or("status", |error| error.cause()),
                status = result.as_ref().ok().map(|response| response.status.as_u16()),
                address = self.transport.failing_addresses(),
                failures,
                "circuit breaker opened: the API is not asked, except by single requests that probe it"
            ),
            Some(CircuitChange::Closed { duration }) => tracing::info!(
                target: "audit",
                open_seconds = duration.as_secs_f64(),
                "circuit breaker closed: requests to the API resumed"
            ),
            None => {}
        }
    }

    /// Source of a failure, which the breaker counts once. Error responses to one caller count
    /// once, for whichever customers, since a client may know several that cause them. Missing
    /// responses count once per caller and target. Failed connections have no source and count each
    /// time, since no client can cause them.
    fn source(
        &self,
        request: &Request<'_>,
        result: &Result<ApiResponse, UpstreamError>,
    ) -> Option<u64> {
        let target = match result {
            Err(UpstreamError::Resolve | UpstreamError::Connect | UpstreamError::Tls(_)) => {
                return None;
            }
            Err(_) => Some(request.target),
            // The target holds the token, which identifies the caller.
            Ok(_) if request.kind == RequestKind::Validate => {
                return Some(self.hasher.hash_one(request.target));
            }
            Ok(_) => None,
        };
        Some(self.hasher.hash_one((request.queue_key, target)))
    }

    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// State of the circuit breaker as a request would find it now.
    pub fn circuit(&self) -> Circuit {
        self.breaker.circuit(clock::now())
    }

    /// Whether the circuit breaker would reject a request now.
    pub fn is_circuit_open(&self) -> bool {
        self.breaker.is_open(clock::now())
    }

    /// Waits for a permit to send a request.
    async fn acquire_permit(
        &self,
        queue_key: QueueKey,
        deadline: Instant,
    ) -> Result<Permit<'_>, UpstreamError> {
        // No request waits for a permit only to be rejected by the breaker.
        if self.breaker.is_open(clock::now()) {
            return Err(UpstreamError::CircuitOpen);
        }
        self.queue.acquire(queue_key, deadline).await
    }
}

/// Whether the API could be reached. Its response does not matter, unless it is 502, 503 or 504.
fn outcome(result: &Result<ApiResponse, UpstreamError>) -> Outcome {
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
