//! Connections to the API: an idle one if there is one, otherwise a new one to a healthy address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::StatusCode;
use rustix::net::sockopt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until};
use tokio_rustls::TlsConnector;

use super::anchors::TrustError;
use super::endpoint::{Endpoint, EndpointOutcome, EndpointState, Endpoints, InFlight, Origin};
use super::pool::{Pool, PoolLimits};
use super::resolver::{Lookup, Resolver, SystemLookup};
use super::stream::Stream;
use super::tls::{self, TlsFailure};
use super::{UpstreamError, is_descriptor_error};
use crate::clock;
use crate::config;

/// Time after which connecting also tries the next address (RFC 8305 section 5,
/// "Connection Attempt Delay").
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Time after which a connection ends if the peer's kernel acknowledges nothing, neither data nor
/// keepalive probes (`TCP_USER_TIMEOUT`). Four retransmissions fit into it.
const SILENT_PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a request that waits for a response checks whether its address was ejected meanwhile.
const EJECTION_CHECK: Duration = Duration::from_millis(500);

/// Longest wait for a lookup when every known address has failed.
const REFRESH_WAIT: Duration = Duration::from_millis(500);

/// Maximum number of addresses that one request tries to connect to.
const ATTEMPTS_MAX: usize = 8;

/// An open connection to the API that carries one exchange at a time.
pub struct Connection {
    pub stream: Stream,
    /// Whether it carried an exchange before, so that the API may have closed it meanwhile.
    pub is_reused: bool,
    in_flight: InFlight,
}

impl Connection {
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        self.in_flight.endpoint()
    }
}

/// Opens and keeps connections to the addresses of the API.
pub struct Connector {
    endpoints: Arc<Endpoints>,
    resolver: Resolver,
    pool: Arc<Pool>,
    tls: Option<arc_swap::ArcSwap<ClientConfig>>,
    connect_timeout: Duration,
    opened: AtomicU64,
    reused: AtomicU64,
}

impl Connector {
    /// # Errors
    ///
    /// A file that the configuration names cannot be used, or there is no trust anchor for `https`.
    pub fn new(config: &config::Upstream) -> Result<Self, TrustError> {
        Self::with_lookup(config, SystemLookup)
    }

    fn with_lookup(config: &config::Upstream, lookup: impl Lookup) -> Result<Self, TrustError> {
        let origins = config.urls.iter().map(origin).collect::<Result<Vec<_>, _>>()?;
        let tls = config.is_tls().then(|| tls::client_config(config)).transpose()?;
        let endpoints = Arc::new(Endpoints::default());
        let resolver = Resolver::start(&origins, endpoints.clone(), lookup).map_err(|error| {
            TrustError(format!("upstream.url: cannot start the resolver: {error}"))
        })?;
        let limits = PoolLimits {
            keepalive_timeout: config.keepalive_timeout,
            max_idle: config.max_idle_connections,
        };
        Ok(Connector {
            endpoints,
            resolver,
            pool: Pool::new(limits),
            tls: tls.map(arc_swap::ArcSwap::new),
            connect_timeout: config.connect_timeout,
            opened: AtomicU64::new(0),
            reused: AtomicU64::new(0),
        })
    }

    /// Reads trust anchors and the client certificate again. New connections use them.
    ///
    /// # Errors
    ///
    /// As [`Connector::new`]; the previous files stay in use.
    pub fn reload_tls(&self, config: &config::Upstream) -> Result<(), TrustError> {
        if let Some(current) = &self.tls {
            current.store(tls::client_config(config)?);
        }
        Ok(())
    }

    /// Chooses an address and returns a connection to it: a kept one unless `only_fresh`.
    ///
    /// `tried` holds the addresses at which this request failed already; they are used only if
    /// there is no other.
    ///
    /// # Errors
    ///
    /// No address is known, or no address could be connected to within `upstream.connect_timeout`.
    pub async fn open(&self, tried: &[u64], only_fresh: bool) -> Result<Connection, UpstreamError> {
        let now = clock::now();
        let deadline = now + self.connect_timeout;
        let endpoint = self.choose_or_wait(tried, now).await?;
        if !only_fresh && let Some(stream) = self.pool.take(endpoint.id, now) {
            self.reused.fetch_add(1, Ordering::Relaxed);
            return Ok(Connection { stream, is_reused: true, in_flight: endpoint.begin() });
        }
        // Boxed: the future of connecting is many times larger than that of an exchange, and most
        // exchanges find a kept connection.
        Box::pin(self.connect(endpoint, tried, deadline)).await
    }

    /// Chooses an address; waits only if the name was never resolved.
    ///
    /// # Errors
    ///
    /// No address is known.
    async fn choose_or_wait(
        &self,
        tried: &[u64],
        now: Instant,
    ) -> Result<Arc<Endpoint>, UpstreamError> {
        if let Some(endpoint) = self.choose(tried, now) {
            return Ok(endpoint);
        }
        self.resolver.first_round(now + self.connect_timeout).await;
        self.choose(tried, clock::now()).ok_or(UpstreamError::Resolve)
    }

    /// Records that an exchange at an address failed before its end.
    pub fn record_failed_exchange(&self, endpoint: &Endpoint, cause: &'static str) {
        report(endpoint, endpoint.record(EndpointOutcome::ExchangeFailed, clock::now()), cause);
        // The name may have other addresses by now.
        self.resolver.request_refresh();
    }

    /// Records what the status of a response says of its address.
    pub fn record_status(&self, endpoint: &Endpoint, status: StatusCode) {
        let outcome = match status.as_u16() {
            502..=504 => EndpointOutcome::ExchangeFailed,
            _ => EndpointOutcome::Answered,
        };
        report(endpoint, endpoint.record(outcome, clock::now()), "status");
    }

    /// Records that a connection to an address failed, and makes a lookup due.
    fn record_failed_connect(&self, endpoint: &Endpoint, cause: &'static str, now: Instant) {
        report(endpoint, endpoint.record(EndpointOutcome::ConnectFailed, now), cause);
        self.resolver.request_refresh();
    }

    /// The addresses as the operator sees them.
    pub fn addresses(&self) -> Vec<AddressStatus> {
        let now = clock::now();
        let idle = self.pool.idle_by_endpoint();
        let status = |endpoint: &Arc<Endpoint>| AddressStatus {
            name: endpoint.short_name(),
            address: endpoint.address,
            host: endpoint.origin.host.clone(),
            state: endpoint.state(now),
            in_flight: endpoint.in_flight(),
            open: endpoint.open_connections(),
            idle: idle.get(&endpoint.id).copied().unwrap_or(0),
        };
        self.endpoints.load().iter().map(status).collect()
    }

    /// Connections opened and exchanges on kept connections, since the start.
    pub fn connection_counts(&self) -> (u64, u64) {
        (self.opened.load(Ordering::Relaxed), self.reused.load(Ordering::Relaxed))
    }

    /// Time since every name in `upstream.url` was last resolved; `None` if that never succeeded,
    /// or if there is no name.
    pub fn resolution_age(&self) -> Option<Duration> {
        self.resolver.age(clock::now())
    }

    /// Keeps the connection of an exchange that left nothing unread. `now`: when it ended.
    pub fn keep(&self, connection: Connection, now: Instant) {
        let Connection { stream, in_flight, .. } = connection;
        self.pool.put(in_flight.endpoint().id, stream, now);
    }

    /// Whether there is an address that is not in `tried`.
    pub fn has_untried(&self, tried: &[u64]) -> bool {
        self.endpoints.load().iter().any(|endpoint| !tried.contains(&endpoint.id))
    }

    /// Whether there is an address without recent failures that is not in `tried`.
    pub fn has_healthy(&self, tried: &[u64]) -> bool {
        let endpoints = self.endpoints.load();
        let mut untried = endpoints.iter().filter(|endpoint| !tried.contains(&endpoint.id));
        untried.any(|endpoint| endpoint.is_healthy())
    }

    /// Waits until `endpoint` is ejected while there is a healthy address that is not in `tried`.
    pub async fn ejected(&self, endpoint: &Endpoint, tried: &[u64]) {
        loop {
            sleep(EJECTION_CHECK).await;
            let is_ejected = endpoint.state(clock::now()) == EndpointState::Ejected;
            let is_next =
                |other: &&Arc<Endpoint>| other.id != endpoint.id && !tried.contains(&other.id);
            if is_ejected
                && self.endpoints.load().iter().filter(is_next).any(|other| other.is_healthy())
            {
                return;
            }
        }
    }

    fn choose(&self, tried: &[u64], now: Instant) -> Option<Arc<Endpoint>> {
        self.endpoints.choose(tried, now).or_else(|| self.endpoints.choose(&[], now))
    }

    /// Connects to `first`, and to further addresses when that fails or takes longer than
    /// [`ATTEMPT_DELAY`]. The first connection that is ready is used.
    async fn connect(
        &self,
        first: Arc<Endpoint>,
        tried: &[u64],
        deadline: Instant,
    ) -> Result<Connection, UpstreamError> {
        let mut tried = tried.to_vec();
        tried.push(first.id);
        let mut next = Some(first);
        let mut attempts = FuturesUnordered::new();
        let mut pending: Vec<Attempt> = Vec::new();
        let mut error = UpstreamError::Connect;
        let mut has_refreshed = false;
        loop {
            if let Some(endpoint) = next.take() {
                let attempt = Attempt::new(endpoint);
                attempts.push(self.attempt(attempt.clone()));
                pending.push(attempt);
            }
            tokio::select! {
                Some((endpoint, result)) = attempts.next() => {
                    let now = clock::now();
                    pending.retain(|other| other.endpoint.id != endpoint.id);
                    match result {
                        Ok(stream) => {
                            // An address that took so long that another one was ready first is
                            // silent or slow. The next requests do not begin with it.
                            let is_late = |other: &&Attempt| now >= other.since + ATTEMPT_DELAY;
                            for late in pending.iter().filter(is_late) {
                                self.record_failed_connect(&late.endpoint, "slow_connect", now);
                            }
                            self.opened.fetch_add(1, Ordering::Relaxed);
                            return Ok(Connection { stream, is_reused: false, in_flight: endpoint.begin() });
                        }
                        Err(UpstreamError::Descriptors) => return Err(UpstreamError::Descriptors),
                        Err(failure) => {
                            self.record_failed_connect(&endpoint, failure.cause(), now);
                            // The attempt that came furthest says most: TLS failed behind TCP.
                            if !matches!(error, UpstreamError::Tls(_)) {
                                error = failure;
                            }
                        }
                    }
                }
                () = sleep(ATTEMPT_DELAY) => {
                    // Slow, so that the name may have other addresses by now.
                    self.resolver.request_refresh();
                }
                () = sleep_until(deadline.into()) => {
                    let now = clock::now();
                    for late in &pending {
                        self.record_failed_connect(&late.endpoint, "connect_timeout", now);
                    }
                    let is_in_tls = pending.iter().any(|late| late.is_in_tls.load(Ordering::Relaxed));
                    return Err(if is_in_tls { UpstreamError::Tls(TlsFailure::TimedOut) } else { error });
                }
            }
            if tried.len() < ATTEMPTS_MAX {
                next = self.endpoints.choose(&tried, clock::now());
            }
            if next.is_none() && attempts.is_empty() {
                next = self.choose_after_refresh(&tried, deadline, &mut has_refreshed).await;
                if next.is_none() {
                    return Err(error);
                }
            }
            if let Some(endpoint) = &next {
                tried.push(endpoint.id);
            }
        }
    }

    /// Chooses another address after every known one has failed: the name may have others by now.
    /// At most one refresh per request.
    async fn choose_after_refresh(
        &self,
        tried: &[u64],
        deadline: Instant,
        has_refreshed: &mut bool,
    ) -> Option<Arc<Endpoint>> {
        let now = clock::now();
        let wait = deadline.min(now + REFRESH_WAIT);
        if *has_refreshed || !self.resolver.refresh(wait, now).await {
            return None;
        }
        *has_refreshed = true;
        self.endpoints.choose(tried, clock::now())
    }

    /// Opens one connection, TLS included.
    async fn attempt(&self, attempt: Attempt) -> (Arc<Endpoint>, Result<Stream, UpstreamError>) {
        let result = self.handshake(&attempt).await;
        (attempt.endpoint, result)
    }

    async fn handshake(&self, attempt: &Attempt) -> Result<Stream, UpstreamError> {
        let Endpoint { address, origin, .. } = &*attempt.endpoint;
        let tcp = TcpStream::connect(address).await.map_err(|error| {
            if is_descriptor_error(&error) {
                UpstreamError::Descriptors
            } else {
                UpstreamError::Connect
            }
        })?;
        let open = attempt.endpoint.open_connection();
        set_options(&tcp);
        let Some(tls) = self.tls.as_ref().filter(|_| origin.is_tls) else {
            return Ok(Stream::tcp(tcp, open));
        };
        attempt.is_in_tls.store(true, Ordering::Relaxed);
        let name = ServerName::try_from(origin.host.clone())
            .map_err(|_| UpstreamError::Tls(TlsFailure::WrongName))?;
        let connected = TlsConnector::from(tls.load_full()).connect(name, tcp).await;
        connected
            .map(|stream| Stream::tls(stream, open))
            .map_err(|error| UpstreamError::Tls(TlsFailure::from_io(&error)))
    }
}

/// Logs that an address was ejected, or that it is healthy again.
fn report(endpoint: &Endpoint, change: Option<EndpointState>, cause: &'static str) {
    let (address, host) = (endpoint.address, &endpoint.origin.host);
    match change {
        Some(EndpointState::Ejected) => {
            tracing::warn!(target: "audit", %address, host, cause, "address of the API ejected after failures");
        }
        Some(_) => tracing::info!(target: "audit", %address, host, "address of the API recovered"),
        None => {}
    }
}

/// One address of the API, for metrics and the status page.
#[derive(Clone, Debug)]
pub struct AddressStatus {
    /// Name for metrics: [`Endpoint::short_name`].
    pub name: String,
    pub address: SocketAddr,
    pub host: String,
    pub state: EndpointState,
    /// Requests under way.
    pub in_flight: usize,
    /// Open connections, idle ones included.
    pub open: usize,
    pub idle: usize,
}

/// Sets the options of a new connection. Each only improves it, so that a failure has no
/// consequence.
fn set_options(tcp: &TcpStream) {
    // Heads and chunks are written whole; waiting for more would only delay them.
    let _ = tcp.set_nodelay(true);
    // A peer that vanished is noticed although no response is due for a long time.
    let _ = sockopt::set_tcp_user_timeout(
        tcp,
        u32::try_from(SILENT_PEER_TIMEOUT.as_millis()).unwrap_or(0),
    );
    let _ = sockopt::set_tcp_keepidle(tcp, SILENT_PEER_TIMEOUT);
    let _ = sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(1));
    let _ = sockopt::set_socket_keepalive(tcp, true);
}

/// One attempt to connect.
#[derive(Clone)]
struct Attempt {
    endpoint: Arc<Endpoint>,
    since: Instant,
    /// Whether TCP is connected and the TLS handshake runs.
    is_in_tls: Arc<AtomicBool>,
}

impl Attempt {
    fn new(endpoint: Arc<Endpoint>) -> Self {
        Attempt { endpoint, since: clock::now(), is_in_tls: Arc::new(AtomicBool::new(false)) }
    }
}

fn origin(url: &config::UpstreamUrl) -> Result<Arc<Origin>, TrustError> {
    let authority = url.authority();
    Ok(Arc::new(Origin {
        is_tls: url.tls,
        host: url.host.clone(),
        is_absolute: url.is_absolute,
        port: url.port,
        authority: http::HeaderValue::try_from(authority)
            .map_err(|error| TrustError(format!("upstream.url: {error}")))?,
    }))
}
