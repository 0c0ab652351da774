//! Limits on connections and requests under way: of the process, of one client address and of one
//! caller.
//!
//! A permit is taken before work begins and released when it ends, on every route and protocol.
//! Hits of the fast path that are written at once take no permit: a thread has one of them at a
//! time.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::listener_kind::ListenerKind;
use crate::cache::CallerId;
use crate::upstream::network_of;

/// Number of locks over which the counts of addresses and callers are spread.
const SHARDS: usize = 16;

/// Minimum share: a client needs a few connections and requests at a time, whatever the limit is.
const MIN_SHARE: usize = 16;

/// A limit that was reached; a label of metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Connections,
    /// The share of the process's file descriptors for connections of clients.
    Descriptors,
    AddressConnections,
    Requests,
    AddressRequests,
    CallerRequests,
}

impl Limit {
    /// The limits on connections.
    pub const OF_CONNECTIONS: [Limit; 3] =
        [Limit::Connections, Limit::Descriptors, Limit::AddressConnections];

    pub const fn as_str(self) -> &'static str {
        match self {
            Limit::Connections => "connections",
            Limit::Descriptors => "descriptors",
            Limit::AddressConnections => "connections_per_address",
            Limit::Requests => "requests",
            Limit::AddressRequests => "requests_per_address",
            Limit::CallerRequests => "requests_per_caller",
        }
    }
}

/// Returns the share of a limit that one address or one caller may use: half of it, at least
/// [`MIN_SHARE`].
pub const fn share(limit: usize) -> usize {
    let half = limit / 2;
    if half < MIN_SHARE { MIN_SHARE } else { half }
}

/// Limits on requests under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    pub all: usize,
    pub address: usize,
    pub caller: usize,
}

impl RequestLimits {
    pub const fn new(max_requests: usize) -> Self {
        RequestLimits {
            all: max_requests,
            address: share(max_requests),
            caller: share(max_requests),
        }
    }
}

/// Counts by key. A key whose count is zero takes no memory.
#[derive(Debug)]
struct Counts<K> {
    shards: [Mutex<HashMap<K, usize, RandomState>>; SHARDS],
    hasher: RandomState,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Counts { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::default() }
    }
}

impl<K: Hash + Eq + Copy> Counts<K> {
    fn shard(&self, key: K) -> &Mutex<HashMap<K, usize, RandomState>> {
        // The upper bits: a map uses the lower ones of the same kind of hash.
        &self.shards[(self.hasher.hash_one(key) >> 60) as usize % SHARDS]
    }

    fn try_add(&self, key: K, limit: usize) -> bool {
        let mut counts = self.shard(key).lock();
        let count = counts.get(&key).copied().unwrap_or_default();
        if count < limit {
            counts.insert(key, count + 1);
        }
        count < limit
    }

    fn remove(&self, key: K) {
        let mut counts = self.shard(key).lock();
        match counts.get_mut(&key) {
            Some(count @ 2..) => *count -= 1,
            _ => drop(counts.remove(&key)),
        }
        // Releases the memory that a flood of addresses took.
        if counts.is_empty() && counts.capacity() > 1024 {
            counts.shrink_to_fit();
        }
    }
}

/// Maximum number of requests over a limit that get a response at a time. Further ones are reset or
/// closed, so that refused clients that read no responses take no memory.
const MAX_REFUSALS: usize = 256;

/// Counts of the connections and requests under way in the process.
#[derive(Debug, Default)]
pub struct Admission {
    public: Arc<ConnectionCounts>,
    admin: Arc<ConnectionCounts>,
    /// Refused connections, in the order of [`Limit::OF_CONNECTIONS`].
    refused: [AtomicU64; Limit::OF_CONNECTIONS.len()],
    streams: Arc<AtomicUsize>,
    connections: Counts<IpAddr>,
    requests: AtomicUsize,
    refusals: AtomicUsize,
    by_address: Counts<IpAddr>,
    by_caller: Counts<CallerId>,
}

/// Counts of the connections of one kind of listener.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    open: AtomicUsize,
    accepted: AtomicU64,
}

impl ConnectionCounts {
    /// Returns the number of open connections that are served.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns the number of connections that were served.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// An open connection in the count of its listeners.
#[derive(Debug)]
pub struct OpenConnection(Arc<ConnectionCounts>);

impl OpenConnection {
    /// Counts an open connection; `None` if there are `max` already.
    pub fn try_new(counts: &Arc<ConnectionCounts>, max: usize) -> Option<Self> {
        let connection = OpenConnection(counts.clone());
        (counts.open.fetch_add(1, Ordering::Relaxed) < max).then_some(connection)
    }

    /// Counts the connection as served, after the last limit was checked.
    pub fn record_accepted(&self) {
        self.0.accepted.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// Returns the counts of the connections of a kind of listener.
    pub fn connections_of(&self, kind: ListenerKind) -> &Arc<ConnectionCounts> {
        match kind {
            ListenerKind::Public => &self.public,
            ListenerKind::Admin => &self.admin,
        }
    }

    /// Counts a connection on the public listener that is refused because of a limit.
    pub fn record_refused_connection(&self, limit: Limit) {
        if let Some(index) = Limit::OF_CONNECTIONS.iter().position(|other| *other == limit) {
            self.refused[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of connections that were refused because of a limit.
    pub fn refused_connections(&self, limit: Limit) -> u64 {
        let index = Limit::OF_CONNECTIONS.iter().position(|other| *other == limit);
        index.map_or(0, |index| self.refused[index].load(Ordering::Relaxed))
    }

    /// Returns the number of requests under way.
    pub fn requests_in_flight(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Returns the count of HTTP/2 streams with a request under way.
    pub fn streams(&self) -> &Arc<AtomicUsize> {
        &self.streams
    }

    /// Returns the number of HTTP/2 streams with a request under way.
    pub fn open_streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Takes a permit for a connection within the share of its address.
    ///
    /// # Errors
    ///
    /// The address has used its share.
    pub fn connection(
        self: &Arc<Self>,
        address: IpAddr,
        limit: usize,
    ) -> Result<ConnectionPermit, Limit> {
        let address = network_of(address);
        if !self.connections.try_add(address, limit) {
            return Err(Limit::AddressConnections);
        }
        Ok(ConnectionPermit { admission: self.clone(), address })
    }

    /// Takes a permit for a request. `address`: the client's; `None` for a trusted proxy's own.
    ///
    /// # Errors
    ///
    /// A limit is reached.
    pub fn request(
        self: &Arc<Self>,
        limits: RequestLimits,
        address: Option<IpAddr>,
        caller: Option<CallerId>,
    ) -> Result<RequestPermit, Limit> {
        // Counts taken before a refusal are released when the permit is dropped.
        let mut permit = RequestPermit { admission: self.clone(), address: None, caller: None };
        if self.requests.fetch_add(1, Ordering::Relaxed) >= limits.all {
            return Err(Limit::Requests);
        }
        if let Some(address) = address.map(network_of) {
            if !self.by_address.try_add(address, limits.address) {
                return Err(Limit::AddressRequests);
            }
            permit.address = Some(address);
        }
        if let Some(caller) = caller {
            if !self.by_caller.try_add(caller, limits.caller) {
                return Err(Limit::CallerRequests);
            }
            permit.caller = Some(caller);
        }
        Ok(permit)
    }

    /// Counts a request that is already being served.
    pub fn started_request(self: &Arc<Self>) -> RequestPermit {
        self.requests.fetch_add(1, Ordering::Relaxed);
        RequestPermit { admission: self.clone(), address: None, caller: None }
    }

    /// Takes a permit for the response to a request over a limit; `None` if too many are being
    /// written.
    pub fn refusal(self: &Arc<Self>) -> Option<RefusalPermit> {
        let permit = RefusalPermit(self.clone());
        (self.refusals.fetch_add(1, Ordering::Relaxed) < MAX_REFUSALS).then_some(permit)
    }
}

/// A refusal that is being written.
#[derive(Debug)]
pub struct RefusalPermit(Arc<Admission>);

impl Drop for RefusalPermit {
    fn drop(&mut self) {
        self.0.refusals.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection within the share of its address.
#[derive(Debug)]
pub struct ConnectionPermit {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.admission.connections.remove(self.address);
    }
}

/// A request under way.
#[derive(Debug)]
pub struct RequestPermit {
    admission: Arc<Admission>,
    address: Option<IpAddr>,
    caller: Option<CallerId>,
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.admission.requests.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.address {
            self.admission.by_address.remove(address);
        }
        if let Some(caller) = self.caller {
            self.admission.by_caller.remove(caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn caller(number: u8) -> Option<CallerId> {
        Some(CallerId::from_bytes([number; 32]))
    }

    #[test]
    fn share_is_half_of_the_limit_with_a_floor() {
        for (limit, part) in [(1, 16), (16, 16), (33, 16), (60, 30), (10_000, 5_000)] {
            assert_eq!(share(limit), part, "{limit}");
        }
    }

    #[test]
    fn requests_are_limited_by_process_address_and_caller() {
        let admission = Arc::new(Admission::default());
        let limits = RequestLimits { all: 6, address: 4, caller: 2 };
        let ask = |text, number| admission.request(limits, Some(address(text)), caller(number));
        let a = [ask("192.0.2.1", 1).unwrap(), ask("192.0.2.1", 1).unwrap()];
        assert_eq!(ask("192.0.2.2", 1).unwrap_err(), Limit::CallerRequests);
        let b = [ask("192.0.2.1", 2).unwrap(), ask("192.0.2.1", 2).unwrap()];
        assert_eq!(ask("192.0.2.1", 3).unwrap_err(), Limit::AddressRequests);
        assert_eq!(ask("::ffff:192.0.2.1", 3).unwrap_err(), Limit::AddressRequests);
        // Neither the address of a trusted proxy nor a request without a credential has a share.
        let c = [
            admission.request(limits, None, None).unwrap(),
            admission.request(limits, None, None).unwrap(),
        ];
        assert_eq!(ask("192.0.2.2", 3).unwrap_err(), Limit::Requests);
        drop((a, b, c));
        // A refusal leaves no count behind.
        assert_eq!(admission.requests.load(Ordering::Relaxed), 0);
        assert!(admission.by_address.shards.iter().all(|shard| shard.lock().is_empty()));
        assert!(admission.by_caller.shards.iter().all(|shard| shard.lock().is_empty()));
        assert!(ask("192.0.2.2", 3).is_ok());
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_a_limit() {
        let admission = Arc::new(Admission::default());
        let held = admission.connection(address("2001:db8:1:2::1"), 1).unwrap();
        assert_eq!(
            admission.connection(address("2001:db8:1:2:ffff::9"), 1).unwrap_err(),
            Limit::AddressConnections
        );
        assert!(admission.connection(address("2001:db8:1:3::1"), 1).is_ok());
        drop(held);
        assert!(admission.connection(address("2001:db8:1:2:ffff::9"), 1).is_ok());
    }
}
