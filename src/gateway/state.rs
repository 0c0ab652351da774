//! State that a reload of the configuration keeps.

use std::sync::Arc;

use super::fetch_result::{FetchError, Fetched};
use super::l1::L1Cache;
use crate::cache::{Cache, CallerIds, EntryGenerations, Generations, Key, SingleFlight};
use crate::cluster::Tier;
use crate::identity::Identities;
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
    pub client: Arc<Client<T>>,
    /// Shared tier of the cluster, if one is configured.
    pub tier: Option<Arc<Tier>>,
}
