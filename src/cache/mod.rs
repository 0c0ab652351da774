//! What was answered before: redacted representations, per caller and customer, bounded in bytes and in time.
//!
//! Nothing unredacted can be stored, since only [`crate::redact`] makes what an entry is made of. Whether an entry may be
//! given is decided here and nowhere else: by its times and by the generations of what it was made from.

mod alike;
mod flight;
mod freshness;
mod generations;
mod key;
mod renewals;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::{ETAG, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED};
use moka::notification::RemovalCause;

use alike::Alike;
pub use flight::{Boarded, Demand, Flights, Joining, Waiter};
pub use freshness::{CacheControl, Lifetime, NotStored, initial_age, is_silent, lifetime};
pub use generations::{
    Announce, CallerMarks, EmployeeSlot, EntryMarks, Generations, IdentityMarks, Scope, ValidationMarks,
};
pub use key::{CallerId, CallerIds, IdHasher, Key};
pub use renewals::Renewals;

use crate::api::CustomerId;
use crate::memory;
use crate::reply::{ApiFields, Representation};

/// Memory of an entry beside its body: key, entry, and moka's own bookkeeping, as measured with
/// 1 KB documents and rounded up.
const ENTRY_OVERHEAD: usize = 600;

/// A stored answer and its times.
pub struct Entry {
    pub representation: Representation,
    /// The API's own validators, for asking whether anything changed.
    pub validators: Option<Box<Validators>>,
    /// The fields of the API's that are sent with it.
    pub fields: ApiFields,
    /// When the API was asked for it.
    pub fetched_at: Instant,
    /// How old the answer was by its own word, in seconds, to which the time since then is added.
    initial_age: u32,
    lifetime: Stored,
    /// What it was made from, as of when its fetch began.
    pub marks: EntryMarks,
    /// Milliseconds after `fetched_at` before which the API is not asked again, since it just failed.
    pause: AtomicU32,
}

/// A lifetime in whole milliseconds, cut to them: an entry has a third of its size for it.
struct Stored {
    fresh: u32,
    stale_while_revalidate: u32,
    stale_if_error: u32,
}

impl Stored {
    /// 49 days at most: longer than anything that is configured.
    fn of(Lifetime { fresh, stale_while_revalidate, stale_if_error }: Lifetime) -> Self {
        let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        Stored {
            fresh: milliseconds(fresh),
            stale_while_revalidate: milliseconds(stale_while_revalidate),
            stale_if_error: milliseconds(stale_if_error),
        }
    }
}

/// `ETag` and `Last-Modified` as the API sent them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validators {
    pub etag: Option<HeaderValue>,
    pub last_modified: Option<HeaderValue>,
}

impl Validators {
    /// Those of an answer, if it has any.
    pub fn of(headers: &HeaderMap) -> Option<Box<Self>> {
        // Copied: a value of a head that was read holds all that was read with it.
        let copied = |name: HeaderName| HeaderValue::from_bytes(headers.get(name)?.as_bytes()).ok();
        let (etag, last_modified) = (copied(ETAG), copied(LAST_MODIFIED));
        (etag.is_some() || last_modified.is_some()).then(|| Box::new(Validators { etag, last_modified }))
    }
}

/// How an entry may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Fresh,
    /// Stale, and may be given while a refresh runs.
    WhileRevalidating,
    /// Stale, and may be given only if the API cannot be asked.
    IfError,
    /// Of no use any more.
    Dead,
}

impl Entry {
    pub fn new(
        representation: Representation,
        validators: Option<Box<Validators>>,
        fields: ApiFields,
        (fetched_at, initial_age): (Instant, Duration),
        lifetime: Lifetime,
        marks: EntryMarks,
    ) -> Self {
        // Whole seconds as they are said; a part of one counts as one.
        let seconds = initial_age.as_secs() + u64::from(initial_age.subsec_nanos() > 0);
        let (initial_age, lifetime) = (u32::try_from(seconds).unwrap_or(u32::MAX), Stored::of(lifetime));
        Entry { representation, validators, fields, fetched_at, initial_age, lifetime, marks, pause: AtomicU32::new(0) }
    }

    /// How old the answer was by its own word.
    pub fn initial_age(&self) -> Duration {
        Duration::from_secs(self.initial_age.into())
    }

    /// For how long it may be used, and how.
    pub fn lifetime(&self) -> Lifetime {
        let Stored { fresh, stale_while_revalidate, stale_if_error } = self.lifetime;
        let time = |milliseconds: u32| Duration::from_millis(milliseconds.into());
        Lifetime {
            fresh: time(fresh),
            stale_while_revalidate: time(stale_while_revalidate),
            stale_if_error: time(stale_if_error),
        }
    }

    /// How old it is, counted from the API (RFC 9111 section 4.2.3).
    pub fn age(&self, now: Instant) -> Duration {
        self.initial_age() + now.saturating_duration_since(self.fetched_at)
    }

    /// How it may be used now.
    pub fn usable(&self, now: Instant) -> Use {
        let age = now.saturating_duration_since(self.fetched_at);
        let Lifetime { fresh, stale_while_revalidate, stale_if_error } = self.lifetime();
        match age {
            age if age < fresh => Use::Fresh,
            age if age < fresh + stale_while_revalidate => Use::WhileRevalidating,
            age if age < fresh + stale_if_error => Use::IfError,
            _ => Use::Dead,
        }
    }

    /// Whether it may be given while the API cannot be asked.
    pub fn usable_if_error(&self, now: Instant) -> bool {
        let Lifetime { fresh, stale_if_error, .. } = self.lifetime();
        now.saturating_duration_since(self.fetched_at) < fresh + stale_if_error
    }

    /// Whole seconds for which it is still fresh; negative for how long it is stale. Rounded away from freshness.
    pub fn ttl(&self, now: Instant) -> i64 {
        let fresh_until = self.fetched_at + self.lifetime().fresh;
        match fresh_until.checked_duration_since(now) {
            Some(left) => left.as_secs() as i64,
            None => -(now.duration_since(fresh_until).as_secs_f64().ceil() as i64),
        }
    }

    /// The API failed just now: it is not asked again for this entry before `pause` is over.
    pub fn pause(&self, now: Instant, pause: Duration) {
        let until = now.saturating_duration_since(self.fetched_at) + pause;
        self.pause.store(u32::try_from(until.as_millis()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Whether such a pause is on.
    pub fn is_paused(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.fetched_at).as_millis();
        age < u128::from(self.pause.load(Ordering::Relaxed))
    }
}

/// Told why entries went, and how many.
type Evicted = dyn Fn(&'static str, u64) + Send + Sync;

/// Stored answers.
pub struct Cache {
    /// Replaced as a whole when everything is dropped: removing a million entries one by one would be done by those who look for
    /// others meanwhile.
    store: ArcSwap<Store>,
    renewals: Renewals,
    hasher: IdHasher,
    capacity: u64,
    idle: Duration,
    evicted: Arc<Evicted>,
}

struct Store {
    entries: moka::sync::Cache<Key, Arc<Entry>, IdHasher>,
    alike: Arc<Alike>,
}

impl Store {
    fn new(capacity: u64, idle: Duration, evicted: &Arc<Evicted>) -> Self {
        let (alike, evicted) = (Arc::new(Alike::default()), evicted.clone());
        let stored = alike.clone();
        let entries = moka::sync::Cache::builder()
            .max_capacity(capacity)
            .weigher(|_key: &Key, entry: &Arc<Entry>| {
                let size = entry.representation.body().len() + entry.fields.size() + ENTRY_OVERHEAD;
                u32::try_from(size).unwrap_or(u32::MAX)
            })
            .time_to_idle(idle)
            .eviction_listener(move |_key, entry: Arc<Entry>, cause| {
                stored.let_go(&entry.representation);
                if let Some(cause) = cause_name(cause) {
                    evicted(cause, 1);
                }
            })
            .build_with_hasher(IdHasher::default());
        Store { entries, alike }
    }
}

impl Cache {
    /// `max_bytes`: memory of all entries, bookkeeping included. `idle`: how long an entry is kept that nobody asks for; of no use
    /// longer than an entry may be given. `evicted`: told why entries went, and how many.
    pub fn new(max_bytes: u64, idle: Duration, evicted: impl Fn(&'static str, u64) + Send + Sync + 'static) -> Self {
        let evicted: Arc<Evicted> = Arc::new(evicted);
        let store = ArcSwap::from_pointee(Store::new(max_bytes, idle, &evicted));
        let (renewals, hasher) = (Renewals::default(), IdHasher::default());
        Cache { store, renewals, hasher, capacity: max_bytes, idle, evicted }
    }

    /// The entry of that key, if nothing that it was made from has changed since.
    pub fn get(&self, key: &Key, marks: EntryMarks) -> Option<Arc<Entry>> {
        self.store.load().entries.get(key).filter(|entry| entry.marks == marks)
    }

    /// The answer as it is stored for others too, if one of them was given the same.
    pub fn one_of(&self, representation: Representation) -> Representation {
        self.store.load().alike.one_of(representation)
    }

    /// Stores an entry, in the place of the one before.
    pub fn put(&self, key: Key, entry: Arc<Entry>) {
        self.store.load().entries.insert(key, entry);
        self.renewals.renewed(self.digest(&key.caller, &key.customer));
    }

    /// Drops an entry.
    pub fn drop_entry(&self, key: &Key) {
        self.store.load().entries.invalidate(key);
        self.renewals.renewed(self.digest(&key.caller, &key.customer));
    }

    /// A digest of whose answer of what it is, by which renewals are counted.
    pub fn digest(&self, caller: &CallerId, customer: &CustomerId) -> u64 {
        self.hasher.hash_one((caller, customer))
    }

    /// How often something was put in the place of that digest, or taken away from there.
    pub fn renewals(&self, digest: u64) -> u32 {
        self.renewals.count(digest)
    }

    /// Drops everything at once. Nobody waits for the memory to be given back.
    pub fn clear(&self) {
        let before = self.store.swap(Arc::new(Store::new(self.capacity, self.idle, &self.evicted)));
        let evicted = self.evicted.clone();
        let dropping = move || {
            // Linux counts niceness for each thread: those who answer go first. Where it may not be changed, it is as it was.
            let _ = rustix::process::nice(19);
            before.entries.run_pending_tasks();
            evicted("purged", before.entries.entry_count());
            drop(before);
            memory::give_back();
        };
        // Where no thread can be had, the closure is dropped, and what it holds with it.
        let _ = std::thread::Builder::new().name("dropping".into()).spawn(dropping);
    }

    /// Entries, bytes and capacity in bytes, up to date.
    pub fn usage(&self) -> (u64, u64, u64) {
        let store = self.store.load();
        store.entries.run_pending_tasks();
        (store.entries.entry_count(), store.entries.weighted_size(), self.capacity)
    }
}

/// The name of a cause for metrics; a replaced entry was not evicted.
fn cause_name(cause: RemovalCause) -> Option<&'static str> {
    match cause {
        RemovalCause::Expired => Some("expired"),
        RemovalCause::Size => Some("size"),
        RemovalCause::Explicit => Some("purged"),
        RemovalCause::Replaced => None,
    }
}
