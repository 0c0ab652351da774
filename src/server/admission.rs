//! Limits on what is under way: connections and requests, in the process, of one client address and
//! of one caller. A place is taken before work begins and given back when it ends, on every route
//! and protocol.
//!
//! Hits that the fast path writes at once take no place: of those a thread has one at a time.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use crate::cache::CallerId;

/// Locks over which the counts of addresses and callers are spread.
const SHARDS: usize = 16;

/// No share is smaller: a client needs a few connections and requests at a time, whatever the limit
/// is.
const MIN_SHARE: usize = 16;

/// The limit that was reached; a label of metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Connections,
    /// The part of the process's file descriptors that clients' connections may use.
    Descriptors,
    AddressConnections,
    Requests,
    AddressRequests,
    CallerRequests,
}

impl Limit {
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

/// The part of a limit that one address or one caller may use: half of it, and never less than
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
        RequestLimits { all: max_requests, address: share(max_requests), caller: share(max_requests) }
    }
}

/// Counts by key. A key that has nothing under way takes no memory.
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
        // What a flood of addresses took is given back.
        if counts.is_empty() && counts.capacity() > 1024 {
            counts.shrink_to_fit();
        }
    }
}

/// Addresses that are limited together: one of IPv4, a network of 64 bits of IPv6, of which a
/// client has as many as it wants.
fn limited_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Requests over a limit that get a response at a time. Those beyond are reset or closed, so that a
/// client that reads no responses takes no memory by being refused.
const MAX_REFUSALS: usize = 256;

/// What is under way in the process.
#[derive(Debug, Default)]
pub struct Admission {
    connections: Counts<IpAddr>,
    requests: AtomicUsize,
    refusals: AtomicUsize,
    by_address: Counts<IpAddr>,
    by_caller: Counts<CallerId>,
}

impl Admission {
    /// A place for a connection within the share of its address.
    ///
    /// # Errors
    /// The address uses its share.
    pub fn connection(self: &Arc<Self>, address: IpAddr, limit: usize) -> Result<ConnectionPlace, Limit> {
        let address = limited_address(address);
        if !self.connections.try_add(address, limit) {
            return Err(Limit::AddressConnections);
        }
        Ok(ConnectionPlace { admission: self.clone(), address })
    }

    /// A place for a request. `address`: of the client; `None` where it is a trusted proxy's own.
    ///
    /// # Errors
    /// As many are under way as may be.
    pub fn request(
        self: &Arc<Self>,
        limits: RequestLimits,
        address: Option<IpAddr>,
        caller: Option<CallerId>,
    ) -> Result<RequestPlace, Limit> {
        // What was counted before a refusal is given back when the place is dropped.
        let mut place = RequestPlace { admission: self.clone(), address: None, caller: None };
        if self.requests.fetch_add(1, Ordering::Relaxed) >= limits.all {
            return Err(Limit::Requests);
        }
        if let Some(address) = address.map(limited_address) {
            if !self.by_address.try_add(address, limits.address) {
                return Err(Limit::AddressRequests);
            }
            place.address = Some(address);
        }
        if let Some(caller) = caller {
            if !self.by_caller.try_add(caller, limits.caller) {
                return Err(Limit::CallerRequests);
            }
            place.caller = Some(caller);
        }
        Ok(place)
    }

    /// Counts a request that is under way already and cannot be refused any more.
    pub fn started_request(self: &Arc<Self>) -> RequestPlace {
        self.requests.fetch_add(1, Ordering::Relaxed);
        RequestPlace { admission: self.clone(), address: None, caller: None }
    }

    /// A place for the response to a request over a limit; `None` if too many are being written.
    pub fn refusal(self: &Arc<Self>) -> Option<RefusalPlace> {
        let place = RefusalPlace(self.clone());
        (self.refusals.fetch_add(1, Ordering::Relaxed) < MAX_REFUSALS).then_some(place)
    }
}

/// A refusal that is being written, as long as it lives.
#[derive(Debug)]
pub struct RefusalPlace(Arc<Admission>);

impl Drop for RefusalPlace {
    fn drop(&mut self) {
        self.0.refusals.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection within the share of its address, as long as it lives.
#[derive(Debug)]
pub struct ConnectionPlace {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.admission.connections.remove(self.address);
    }
}

/// A request under way, as long as it lives.
#[derive(Debug)]
pub struct RequestPlace {
    admission: Arc<Admission>,
    address: Option<IpAddr>,
    caller: Option<CallerId>,
}

impl Drop for RequestPlace {
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
        // A trusted proxy's own address has no share, and neither has a request without a
        // credential.
        let c = [admission.request(limits, None, None).unwrap(), admission.request(limits, None, None).unwrap()];
        assert_eq!(ask("192.0.2.2", 3).unwrap_err(), Limit::Requests);
        drop((a, b, c));
        // Refusals leave nothing behind.
        assert_eq!(admission.requests.load(Ordering::Relaxed), 0);
        assert!(admission.by_address.shards.iter().all(|shard| shard.lock().is_empty()));
        assert!(admission.by_caller.shards.iter().all(|shard| shard.lock().is_empty()));
        assert!(ask("192.0.2.2", 3).is_ok());
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_a_limit() {
        let admission = Arc::new(Admission::default());
        let held = admission.connection(address("2001:db8:1:2::1"), 1).unwrap();
        assert_eq!(admission.connection(address("2001:db8:1:2:ffff::9"), 1).unwrap_err(), Limit::AddressConnections);
        assert!(admission.connection(address("2001:db8:1:3::1"), 1).is_ok());
        drop(held);
        assert!(admission.connection(address("2001:db8:1:2:ffff::9"), 1).is_ok());
    }
}
