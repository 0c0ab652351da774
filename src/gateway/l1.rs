//! Per-thread L1 cache in front of the shared identity and response caches.
//!
//! A lookup in the shared maps costs a hash, two misses of the processor's caches, a record of the
//! read and a look at the clock; a lookup here costs none of them. Nothing is decided here: a
//! result is checked as if it had been looked up in the shared maps, by its deadlines, the current
//! generations and the versions of its slots. Results hold entries weakly, so that an entry which
//! the response cache evicted uses no memory. Each result expires after some uses, so that the
//! response cache sees which entries are in use.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::api::CustomerId;
use crate::cache::{CallerId, Entry};
use crate::identity::ValidatedIdentity;

/// Number of sets of two slots. A slot takes some 130 bytes, so a thread uses at most 512 KiB.
const SETS: usize = 1 << 11;

/// Uses of a result before the shared caches are asked again.
const USES_MAX: u8 = 32;

/// Time for which a result is used before the shared caches are asked again.
const RESULT_AGE_MAX: Duration = Duration::from_secs(1);

/// Key of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L1Key {
    pub caller: CallerId,
    pub customer: CustomerId,
    /// The client's address, if identities are bound to addresses (`identity.send_client_ip`).
    pub address: Option<IpAddr>,
    pub policy: u64,
}

/// Identity and entry of an earlier lookup, with the versions of their slots before it.
#[derive(Clone)]
pub struct LookupResult {
    pub identity: Arc<ValidatedIdentity>,
    pub identity_version: u32,
    pub entry: Weak<Entry>,
    pub entry_version: u32,
}

struct Slot {
    gateway: u64,
    key: L1Key,
    result: LookupResult,
    stored_at: Instant,
    uses_left: u8,
}

impl Slot {
    fn is_for(&self, gateway: u64, key: &L1Key) -> bool {
        self.gateway == gateway && self.key == *key
    }
}

type Slots = Box<[[Option<Slot>; 2]]>;

thread_local!(static SLOTS: RefCell<Slots> = RefCell::new((0..SETS).map(|_| [None, None]).collect()));

/// One gateway's part of the L1 caches of all threads.
pub struct L1Cache {
    /// Distinguishes the gateways of a process, which may know callers by the same digests.
    gateway: u64,
}

impl Default for L1Cache {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        L1Cache { gateway: NEXT.fetch_add(1, Ordering::Relaxed) }
    }
}

impl L1Cache {
    /// Returns what `check` makes of the result for `key`, if this thread has one. `digest`: a
    /// uniform hash of the key.
    pub fn find<R>(
        &self,
        key: &L1Key,
        digest: u64,
        now: Instant,
        check: impl FnOnce(&LookupResult) -> Option<R>,
    ) -> Option<R> {
        SLOTS.with_borrow_mut(|slots| {
            let set = &mut slots[set_index(digest)];
            let slot = set.iter_mut().flatten().find(|slot| slot.is_for(self.gateway, key))?;
            if slot.uses_left == 0
                || now.saturating_duration_since(slot.stored_at) >= RESULT_AGE_MAX
            {
                return None;
            }
            slot.uses_left -= 1;
            check(&slot.result)
        })
    }

    /// Stores the result of a lookup in the shared caches.
    pub fn insert(&self, key: &L1Key, digest: u64, now: Instant, result: LookupResult) {
        SLOTS.with_borrow_mut(|slots| {
            let [first, second] = &mut slots[set_index(digest)];
            let is_usable = |slot: &Option<Slot>| {
                slot.as_ref().is_none_or(|slot| slot.is_for(self.gateway, key))
            };
            // The slot of this key, else an empty one, else the older of the set.
            let stored_at = |slot: &Option<Slot>| slot.as_ref().map(|slot| slot.stored_at);
            let slot = match (is_usable(first), is_usable(second)) {
                (true, _) => first,
                (false, true) => second,
                (false, false) if stored_at(first) <= stored_at(second) => first,
                (false, false) => second,
            };
            *slot = Some(Slot {
                gateway: self.gateway,
                key: *key,
                result,
                stored_at: now,
                uses_left: USES_MAX,
            });
        });
    }
}

fn set_index(digest: u64) -> usize {
    digest as usize % SETS
}
