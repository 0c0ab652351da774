//! What this thread answered with lately: found again without the maps that all threads share, each of whose lookups costs a
//! hash, two misses of the processor's caches, a record of the read and a look at the clock.
//!
//! Nothing is decided here. Whatever is found is judged as if it had been looked up: by its times, by the generations of now, and
//! by whether something else was put in its place. It holds no answer in memory that the cache has given up, and every so
//! often it finds nothing on purpose, so that the cache knows what is in use.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::api::CustomerId;
use crate::cache::{CallerId, Entry};
use crate::identity::Vouched;

/// Pairs of places; a place takes some 130 bytes, so a thread has half a mebibyte at most.
const PAIRS: usize = 1 << 11;

/// Finds from a place before the cache is asked again, and for how long it is not.
const USES: u8 = 32;
const LONGEST: Duration = Duration::from_secs(1);

/// What is asked, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub caller: CallerId,
    pub customer: CustomerId,
    /// The caller's address, where an identity holds for one alone.
    pub address: Option<IpAddr>,
    pub policy: u64,
}

/// What was found: both parts with the count of what took their place before.
#[derive(Clone)]
pub struct Found {
    pub vouched: Arc<Vouched>,
    pub identity_count: u32,
    pub entry: Weak<Entry>,
    pub entry_count: u32,
}

struct Place {
    home: u64,
    wanted: Wanted,
    found: Found,
    since: Instant,
    uses: u8,
}

type Places = Box<[[Option<Place>; 2]]>;

thread_local!(static PLACES: RefCell<Places> = RefCell::new((0..PAIRS).map(|_| [None, None]).collect()));

/// One gateway's part of it, in every thread.
pub struct Near {
    /// Threads may serve several gateways, whose callers may be known by the same digests.
    home: u64,
}

impl Default for Near {
    fn default() -> Self {
        static HOMES: AtomicU64 = AtomicU64::new(0);
        Near { home: HOMES.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Near {
    /// What was found for that lately, if `judge` takes it. `digest`: of what is wanted, spread over all of its bits.
    pub fn find<R>(
        &self,
        wanted: &Wanted,
        digest: u64,
        now: Instant,
        judge: impl FnOnce(&Found) -> Option<R>,
    ) -> Option<R> {
        PLACES.with_borrow_mut(|places| {
            let pair = &mut places[pair(digest)];
            let is_its = |place: &&mut Place| place.home == self.home && place.wanted == *wanted;
            let place = pair.iter_mut().flatten().find(is_its)?;
            if place.uses == 0 || now.saturating_duration_since(place.since) >= LONGEST {
                return None;
            }
            place.uses -= 1;
            judge(&place.found)
        })
    }

    /// It was found, by looking for it.
    pub fn keep(&self, wanted: &Wanted, digest: u64, now: Instant, found: Found) {
        PLACES.with_borrow_mut(|places| {
            let [first, second] = &mut places[pair(digest)];
            let is_its =
                |place: &Option<Place>| place.as_ref().is_none_or(|it| it.home == self.home && it.wanted == *wanted);
            // Its own place, else an empty one, else that of the pair that was looked up longer ago.
            let since = |place: &Option<Place>| place.as_ref().map(|place| place.since);
            let place = match (is_its(first), is_its(second)) {
                (true, _) => first,
                (false, true) => second,
                (false, false) if since(first) <= since(second) => first,
                (false, false) => second,
            };
            *place = Some(Place { home: self.home, wanted: *wanted, found, since: now, uses: USES });
        });
    }
}

fn pair(digest: u64) -> usize {
    digest as usize % PAIRS
}
