//! Cache of redacted responses per caller and customer, bounded in bytes and in time.
//!
//! An entry holds only what [`crate::redact`] made, so that nothing unredacted is stored. Whether
//! an entry may be used is decided here and nowhere else: by its deadlines and by the generations
//! of what it was made from.

mod single_flight;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use moka::notification::RemovalCause;

pub use gateway_core::entry::{Entry, FetchTime, Freshness, Validators};
pub use gateway_core::freshness::{
    CacheControl, Lifetime, NotStored, has_no_freshness_info, initial_age, lifetime,
};
use gateway_core::intern::BodyInterner;
pub use gateway_core::invalidation::{
    CallerGenerations, EmployeeSlot, EntryGenerations, Generations, IdentityGenerations,
    PublishInvalidation, Scope, ValidationGenerations,
};
pub use gateway_core::key::{CallerId, CallerIds, IdHasher, Key};
pub use gateway_core::versions::SlotVersions;
pub use single_flight::{Demand, JoinOptions, Role, SingleFlight, Waiter};

use crate::allocator;
use crate::api::CustomerId;
use crate::reply::Representation;

/// Memory of an entry besides its body: key, entry, and moka's bookkeeping. Measured with documents
/// of 1 KB and rounded up.
const ENTRY_OVERHEAD: usize = 600;

/// Reports a cause of evictions and their number.
type OnEviction = dyn Fn(&'static str, u64) + Send + Sync;

/// Cache of redacted responses.
pub struct Cache {
    /// Replaced as a whole by [`Cache::clear`]: if a million entries were removed one by one,
    /// lookups would do that work meanwhile.
    store: ArcSwap<Store>,
    versions: SlotVersions,
    hasher: IdHasher,
    capacity: u64,
    time_to_idle: Duration,
    on_eviction: Arc<OnEviction>,
}

struct Store {
    entries: moka::sync::Cache<Key, Arc<Entry>, IdHasher>,
    interner: Arc<BodyInterner>,
}

impl Store {
    fn new(capacity: u64, time_to_idle: Duration, on_eviction: &Arc<OnEviction>) -> Self {
        let (interner, on_eviction) = (Arc::new(BodyInterner::default()), on_eviction.clone());
        let entry_interner = interner.clone();
        let entries = moka::sync::Cache::builder()
            .max_capacity(capacity)
            .weigher(|_key: &Key, entry: &Arc<Entry>| {
                let size = entry.representation.body().len() + entry.fields.size() + ENTRY_OVERHEAD;
                u32::try_from(size).unwrap_or(u32::MAX)
            })
            .time_to_idle(time_to_idle)
            .eviction_listener(move |_key, entry: Arc<Entry>, cause| {
                entry_interner.release(&entry.representation);
                if let Some(cause) = cause_label(cause) {
                    on_eviction(cause, 1);
                }
            })
            .build_with_hasher(IdHasher::default());
        Store { entries, interner }
    }
}

impl Cache {
    /// `capacity`: bytes of all entries, bookkeeping included. `time_to_idle`: time after which an
    /// unused entry is evicted; longer than any entry may be used. `on_eviction`: receives a cause
    /// and a number of entries.
    pub fn new(
        capacity: u64,
        time_to_idle: Duration,
        on_eviction: impl Fn(&'static str, u64) + Send + Sync + 'static,
    ) -> Self {
        let on_eviction: Arc<OnEviction> = Arc::new(on_eviction);
        Cache {
            store: ArcSwap::from_pointee(Store::new(capacity, time_to_idle, &on_eviction)),
            versions: SlotVersions::default(),
            hasher: IdHasher::default(),
            capacity,
            time_to_idle,
            on_eviction,
        }
    }

    /// Returns the entry of a key, unless something that it was made from has changed since.
    pub fn get(&self, key: &Key, generations: EntryGenerations) -> Option<Arc<Entry>> {
        self.store.load().entries.get(key).filter(|entry| entry.generations == generations)
    }

    /// Returns the equal representation of another entry if there is one, so that both share
    /// memory.
    pub fn intern(&self, representation: Representation) -> Representation {
        self.store.load().interner.intern(representation)
    }

    /// Stores an entry and replaces the previous one of its key.
    pub fn insert(&self, key: Key, entry: Arc<Entry>) {
        self.store.load().entries.insert(key, entry);
        self.versions.bump(self.slot_digest(&key.caller, &key.customer));
    }

    pub fn remove(&self, key: &Key) {
        self.store.load().entries.invalidate(key);
        self.versions.bump(self.slot_digest(&key.caller, &key.customer));
    }

    /// Hash of caller and customer, by which [`Cache::version`] counts.
    pub fn slot_digest(&self, caller: &CallerId, customer: &CustomerId) -> u64 {
        self.hasher.hash_one((caller, customer))
    }

    /// Version of a slot: changes whenever an entry of that digest is stored or removed.
    pub fn version(&self, slot_digest: u64) -> u32 {
        self.versions.get(slot_digest)
    }

    /// Removes all entries at once. Their memory is released in a separate thread.
    pub fn clear(&self) {
        let before = self.store.swap(Arc::new(Store::new(
            self.capacity,
            self.time_to_idle,
            &self.on_eviction,
        )));
        let on_eviction = self.on_eviction.clone();
        let release = move || {
            // Linux counts niceness per thread: threads that serve requests take precedence. If it
            // cannot be changed, this thread only competes with them.
            let _ = rustix::process::nice(19);
            before.entries.run_pending_tasks();
            on_eviction("purged", before.entries.entry_count());
            drop(before);
            allocator::release_unused();
        };
        // If no thread can be created, the closure is dropped here, and the entries with it.
        let _ = std::thread::Builder::new().name("dropping".into()).spawn(release);
    }

    /// Number of entries, their bytes and the capacity in bytes, up to date.
    pub fn usage(&self) -> (u64, u64, u64) {
        let store = self.store.load();
        store.entries.run_pending_tasks();
        (store.entries.entry_count(), store.entries.weighted_size(), self.capacity)
    }
}

/// Label of an eviction's cause for metrics; `None` for a replaced entry, which was not evicted.
fn cause_label(cause: RemovalCause) -> Option<&'static str> {
    match cause {
        RemovalCause::Expired => Some("expired"),
        RemovalCause::Size => Some("size"),
        RemovalCause::Explicit => Some("purged"),
        RemovalCause::Replaced => None,
    }
}
