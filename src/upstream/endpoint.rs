//! The addresses of the API, their health, and the choice between them.
//!
//! A request takes the less busy of two addresses chosen at random. An address that fails is left
//! out for a growing time, so that its failures cost one probe each time instead of a share of all
//! requests. The last address is never left out. This module performs no input or output, and time
//! is an argument.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderValue;
use parking_lot::Mutex;

/// First time for which an address is left out; doubled at each further ejection.
const EJECTION_MIN: Duration = Duration::from_secs(1);

/// Longest time for which an address is left out. An address that works again is found within it.
const EJECTION_MAX: Duration = Duration::from_secs(30);

/// Time after which a request that tries an ejected address again counts as failed if it has no
/// response.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Consecutive failed exchanges (reset, closed or 502 to 504) after which an address is left out.
///
/// A failure to connect counts at once, since it cannot have been caused by one request.
const EXCHANGE_FAILURES_MAX: u32 = 5;

/// One URL of `upstream.url`: what requests to its addresses need.
#[derive(Debug)]
pub struct Origin {
    pub is_tls: bool,
    /// Name for SNI and verification, without a trailing dot; or an address.
    pub host: String,
    /// Whether the name was written with a trailing dot, so that lookups do not complete it.
    pub is_absolute: bool,
    pub port: u16,
    /// Value of `Host`.
    pub authority: HeaderValue,
}

/// One address of the API.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique in this process; the key of its kept connections.
    pub id: u64,
    pub address: SocketAddr,
    pub origin: Arc<Origin>,
    in_flight: AtomicUsize,
    /// Open connections, idle ones included.
    open: Arc<AtomicUsize>,
    /// Whether `health` differs from that of an address without failures.
    is_suspect: AtomicBool,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    /// Failed exchanges since the last response.
    failures: u32,
    /// Ejections since the last response.
    ejections: u32,
    /// Until then the address is not chosen. Afterwards one request at a time tries it.
    ejected_until: Option<Instant>,
    /// Until then one request tries an address whose ejection has ended.
    probed_until: Option<Instant>,
}

impl Health {
    /// Ejects the address from now on, twice as long as the last time.
    fn eject(&mut self, now: Instant) {
        let pause = EJECTION_MIN * (1 << self.ejections.min(8));
        self.ejections += 1;
        self.ejected_until = Some(now + pause.min(EJECTION_MAX));
        self.probed_until = None;
    }
}

/// Health of an address, as shown to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    Healthy,
    /// Failed recently, but chosen again.
    Suspect,
    Ejected,
}

impl EndpointState {
    pub const fn as_str(self) -> &'static str {
        match self {
            EndpointState::Healthy => "healthy",
            EndpointState::Suspect => "suspect",
            EndpointState::Ejected => "ejected",
        }
    }
}

/// What happened to a request at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointOutcome {
    /// A response, unless it says that the API is unavailable.
    Answered,
    /// The connection could not be opened, TLS included.
    ConnectFailed,
    /// The connection ended before a response, or the response was 502, 503 or 504.
    ExchangeFailed,
}

impl Endpoint {
    fn new(address: SocketAddr, origin: Arc<Origin>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Endpoint {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            address,
            origin,
            in_flight: AtomicUsize::new(0),
            open: Arc::default(),
            is_suspect: AtomicBool::new(false),
            health: Mutex::default(),
        }
    }

    /// Counts a request in flight until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Counts an open connection until the guard is dropped.
    pub fn open_connection(&self) -> OpenConnection {
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self.open.clone())
    }

    pub fn open_connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Name for metrics, which must not show addresses: 8 hexadecimal digits of a digest of address
    /// and host, the same in every process.
    pub fn short_name(&self) -> String {
        let digest = blake3::hash(format!("{} {}", self.address, self.origin.host).as_bytes());
        digest.to_hex().as_str()[..8].to_owned()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether nothing failed since the last response.
    pub fn is_healthy(&self) -> bool {
        !self.is_suspect.load(Ordering::Relaxed)
    }

    pub fn state(&self, now: Instant) -> EndpointState {
        if !self.is_suspect.load(Ordering::Relaxed) {
            return EndpointState::Healthy;
        }
        match self.health.lock().ejected_until {
            Some(until) if now < until => EndpointState::Ejected,
            _ => EndpointState::Suspect,
        }
    }

    /// Whether a request may choose this address now.
    fn is_available(&self, now: Instant) -> bool {
        if !self.is_suspect.load(Ordering::Relaxed) {
            return true;
        }
        let mut health = self.health.lock();
        if health.probed_until.is_some_and(|until| now >= until) {
            // The request that tried the address got no response in this time.
            health.eject(now);
        }
        let is_over = health.ejected_until.is_none_or(|until| now >= until);
        is_over && health.probed_until.is_none()
    }

    /// Notes that a request was sent to this address: while it tries one whose ejection has ended,
    /// no other does.
    fn claim(&self, now: Instant) {
        if self.is_suspect.load(Ordering::Relaxed) {
            let mut health = self.health.lock();
            if health.ejected_until.is_some_and(|until| now >= until) {
                health.probed_until = Some(now + PROBE_TIMEOUT);
            }
        }
    }

    /// Records what happened to a request at this address. Returns whether the address was ejected
    /// or is healthy again, each once.
    pub fn record(&self, outcome: EndpointOutcome, now: Instant) -> Option<EndpointState> {
        if outcome == EndpointOutcome::Answered {
            // The usual case writes to no memory that threads share.
            if !self.is_suspect.load(Ordering::Relaxed) {
                return None;
            }
            let before = std::mem::take(&mut *self.health.lock());
            self.is_suspect.store(false, Ordering::Relaxed);
            return before.ejected_until.map(|_| EndpointState::Healthy);
        }
        let mut health = self.health.lock();
        if health.ejected_until.is_some_and(|until| now < until) {
            // A request that began before the ejection says nothing new.
            return None;
        }
        self.is_suspect.store(true, Ordering::Relaxed);
        health.failures += 1;
        let was_ejected = health.ejected_until.is_some();
        let is_due =
            outcome == EndpointOutcome::ConnectFailed || health.failures >= EXCHANGE_FAILURES_MAX;
        if was_ejected || is_due {
            health.eject(now);
            return (!was_ejected).then_some(EndpointState::Ejected);
        }
        None
    }
}

/// An open connection to an address.
#[derive(Debug)]
pub struct OpenConnection(Arc<AtomicUsize>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request in flight at an address.
#[derive(Debug)]
pub struct InFlight(Arc<Endpoint>);

impl InFlight {
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The addresses known at present.
#[derive(Debug, Default)]
pub struct Endpoints(ArcSwap<Vec<Arc<Endpoint>>>);

impl Endpoints {
    pub fn load(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.0.load_full()
    }

    /// Replaces the addresses. Addresses that stay keep their health and their connections.
    pub fn replace(&self, found: impl IntoIterator<Item = (SocketAddr, Arc<Origin>)>) {
        let known = self.load();
        let mut next: Vec<Arc<Endpoint>> = Vec::new();
        for (address, origin) in found {
            let is_same =
                |e: &&Arc<Endpoint>| e.address == address && Arc::ptr_eq(&e.origin, &origin);
            if next.iter().any(|endpoint| is_same(&endpoint)) {
                continue;
            }
            let kept = known.iter().find(is_same).cloned();
            next.push(kept.unwrap_or_else(|| Arc::new(Endpoint::new(address, origin))));
        }
        self.0.store(Arc::new(next));
    }

    /// Chooses the less busy of two addresses drawn at random, of those not in `tried`.
    ///
    /// Ejected addresses are left out, but never more than two thirds of all.
    pub fn choose(&self, tried: &[u64], now: Instant) -> Option<Arc<Endpoint>> {
        let all = self.0.load();
        // The usual case: one address, healthy or not.
        if let [only] = all.as_slice() {
            return (!tried.contains(&only.id)).then(|| only.clone());
        }
        let untried: Vec<_> = all.iter().filter(|endpoint| !tried.contains(&endpoint.id)).collect();
        let mut candidates: Vec<_> =
            untried.iter().copied().filter(|e| e.is_available(now)).collect();
        let available_min = all.len().div_ceil(3).min(untried.len());
        if candidates.len() < available_min {
            let mut ejected: Vec<_> =
                untried.iter().copied().filter(|e| !e.is_available(now)).collect();
            ejected.sort_by_key(|endpoint| endpoint.health.lock().ejected_until);
            let missing = available_min - candidates.len();
            candidates.extend(ejected.into_iter().take(missing));
        }
        let chosen = match candidates.as_slice() {
            [] => return None,
            [only] => *only,
            several => {
                let first = random_below(several.len());
                let second = (first + 1 + random_below(several.len() - 1)) % several.len();
                let (first, second) = (several[first], several[second]);
                if second.in_flight() < first.in_flight() { second } else { first }
            }
        };
        chosen.claim(now);
        Some(chosen.clone())
    }
}

/// A number below `bound`, spread well enough to balance load (splitmix64).
fn random_below(bound: usize) -> usize {
    thread_local!(static STATE: Cell<u64> = Cell::new(seed()));
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from(((mixed >> 32) * bound as u64) >> 32).unwrap_or(0)
}

/// Differs between threads and processes, so that they do not choose in step.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    // Without entropy the choice is the same everywhere, which costs balance and nothing else.
    let _ = getrandom::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn endpoints(count: u8) -> Endpoints {
        let endpoints = Endpoints::default();
        let origin = Arc::new(Origin {
            is_tls: false,
            host: "api.example".into(),
            is_absolute: false,
            port: 80,
            authority: HeaderValue::from_static("api.example"),
        });
        endpoints
            .replace((1..=count).map(|n| (SocketAddr::from(([10, 0, 0, n], 80)), origin.clone())));
        endpoints
    }

    fn counts(endpoints: &Endpoints, now: Instant) -> HashMap<u64, usize> {
        let mut counts = HashMap::new();
        for _ in 0..300 {
            *counts.entry(endpoints.choose(&[], now).unwrap().id).or_default() += 1;
        }
        counts
    }

    #[test]
    fn choice_spreads_over_healthy_addresses() {
        let endpoints = endpoints(3);
        let counts = counts(&endpoints, Instant::now());
        assert!(counts.len() == 3 && counts.values().all(|&count| count > 50), "{counts:?}");
    }

    #[test]
    fn choice_prefers_the_less_busy_of_two() {
        let endpoints = endpoints(2);
        let all = endpoints.load();
        let _busy = all[0].begin();
        for _ in 0..20 {
            assert_eq!(endpoints.choose(&[], Instant::now()).unwrap().id, all[1].id);
        }
    }

    #[test]
    fn failed_connect_ejects_for_a_growing_time_with_one_probe() {
        let endpoints = endpoints(2);
        let all = endpoints.load();
        let mut now = Instant::now();
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            all[0].record(EndpointOutcome::ConnectFailed, now);
            let end = now + Duration::from_secs(expected);
            assert_eq!(all[0].state(now), EndpointState::Ejected);
            assert!(!counts(&endpoints, end - Duration::from_millis(1)).contains_key(&all[0].id));
            // One probe, until it reports or its time is over.
            assert_eq!(counts(&endpoints, end).get(&all[0].id), Some(&1));
            now = end + Duration::from_millis(1);
        }
        all[0].record(EndpointOutcome::Answered, now);
        assert_eq!(all[0].state(now), EndpointState::Healthy);
        assert!(counts(&endpoints, now)[&all[0].id] > 50);
    }

    #[test]
    fn probe_without_report_ejects_again() {
        let endpoints = endpoints(2);
        let all = endpoints.load();
        let now = Instant::now();
        all[0].record(EndpointOutcome::ConnectFailed, now);
        let end = now + EJECTION_MIN;
        assert_eq!(counts(&endpoints, end).get(&all[0].id), Some(&1));
        let given_up = end + PROBE_TIMEOUT;
        assert_eq!(counts(&endpoints, given_up).get(&all[0].id), None);
        assert_eq!(all[0].state(given_up), EndpointState::Ejected);
        assert_eq!(counts(&endpoints, given_up + 2 * EJECTION_MIN).get(&all[0].id), Some(&1));
    }

    #[test]
    fn exchanges_eject_only_after_several_failures_in_a_row() {
        let endpoints = endpoints(2);
        let all = endpoints.load();
        let now = Instant::now();
        for _ in 0..2 {
            for _ in 1..EXCHANGE_FAILURES_MAX {
                all[0].record(EndpointOutcome::ExchangeFailed, now);
            }
            assert_eq!(all[0].state(now), EndpointState::Suspect);
            all[0].record(EndpointOutcome::Answered, now);
        }
        for _ in 0..EXCHANGE_FAILURES_MAX {
            all[0].record(EndpointOutcome::ExchangeFailed, now);
        }
        assert_eq!(all[0].state(now), EndpointState::Ejected);
    }

    #[test]
    fn one_third_of_the_addresses_always_stays() {
        let now = Instant::now();
        for (count, left) in [(1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (7, 3)] {
            let endpoints = endpoints(count);
            for endpoint in endpoints.load().iter() {
                endpoint.record(EndpointOutcome::ConnectFailed, now);
            }
            assert_eq!(counts(&endpoints, now).len(), left, "{count}");
        }
    }

    #[test]
    fn replaced_addresses_keep_their_health() {
        let endpoints = endpoints(2);
        let before = endpoints.load();
        let now = Instant::now();
        before[0].record(EndpointOutcome::ConnectFailed, now);
        let origin = before[0].origin.clone();
        let new = SocketAddr::from(([10, 0, 0, 9], 80));
        endpoints.replace([
            (new, origin.clone()),
            (before[0].address, origin.clone()),
            (new, origin),
        ]);
        let after = endpoints.load();
        assert_eq!(after.len(), 2);
        assert!(Arc::ptr_eq(&after[1], &before[0]));
        assert_eq!(endpoints.choose(&[], now).unwrap().id, after[0].id);
        assert_eq!(endpoints.choose(&[after[0].id], now).unwrap().id, before[0].id);
        assert!(endpoints.choose(&[after[0].id, before[0].id], now).is_none());
    }
}
