//! State that a reload of the configuration keeps.

use std::sync::Arc;

use super::fetch_result::{FetchError, Fetched};
use super::l1::L1Cache;
use crate::cache::{Cache, CallerIds, Entry, EntryGenerations, Generations, Key, SingleFlight};
use crate::cluster::Tier;
use crate::identity::Identities;
use crate::reply::ApiCors;
use crate::telemetry::Metrics;
use crate::upstream::Client;

/// Key of a fetch under way: key and generations of the entry, and whether it bypasses the shared
/// tier. A request that limits the age of its response does not join a fetch that may answer from
/// the shared tier.
pub(super) type FlightKey = (Key, EntryGenerations, bool);

/// Fetches under way.
pub(super) type Fetches = SingleFlight<FlightKey, Result<Fetched, FetchError>>;

/// Caches, counters and connections, shared by the gateways of successive configurations.
pub(super) struct SharedState<T> {
    pub cache: Arc<Cache>,
    pub identities: Arc<Identities<T>>,
    pub metrics: Arc<Metrics>,
    pub generations: Arc<Generations>,
    pub callers: CallerIds,
    pub fetches: Fetches,
    pub l1: L1Cache,
    /// CORS fields of the API's latest responses.
    pub api_cors: Arc<ApiCors>,
    pub client: Arc<Client<T>>,
    /// Shared tier of the cluster, if one is configured.
    pub tier: Option<Arc<Tier>>,
}

impl<T> SharedState<T> {
    /// Returns the entry of a key, or that of `policy`, which serves every origin.
    pub fn find_entry(
        &self,
        key: &Key,
        policy: u64,
        generations: EntryGenerations,
    ) -> Option<Arc<Entry>> {
        self.cache.get(key, generations).or_else(|| {
            if key.policy == policy {
                return None;
            }
            let entry = self.cache.get(&Key { policy, ..*key }, generations)?;
            self.api_cors.serves_every_origin(&entry.fields).then_some(entry)
        })
    }
}
