//! A cached response with its deadlines.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use http::header::{ETAG, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED};

use crate::freshness::Lifetime;
use crate::invalidation::EntryGenerations;
use crate::reply::{ApiFields, Representation};

/// A redacted response of the API with its deadlines.
pub struct Entry {
    pub representation: Representation,
    /// The API's validators, for conditional requests.
    pub validators: Option<Box<Validators>>,
    /// Fields of the API that are sent with the representation.
    pub fields: ApiFields,
    /// Time at which the API was asked.
    pub fetched_at: Instant,
    /// `Age` of the response when it arrived, in seconds.
    initial_age: u32,
    lifetime: CompactLifetime,
    /// Generations when the fetch began. Once one of them has changed, the entry is invalid.
    pub generations: EntryGenerations,
    /// Milliseconds after `fetched_at` until which the API is not asked again, because it failed.
    backoff: AtomicU32,
}

/// Time of a fetch, and the `Age` of its response.
#[derive(Clone, Copy, Debug)]
pub struct FetchTime {
    /// Time at which the API was asked.
    pub at: Instant,
    pub initial_age: Duration,
}

/// A lifetime in whole milliseconds, rounded down. Takes a third of the memory of [`Lifetime`]; the
/// maximum of 49 days exceeds every configurable time.
struct CompactLifetime {
    fresh: u32,
    stale_while_revalidate: u32,
    stale_if_error: u32,
}

impl From<Lifetime> for CompactLifetime {
    fn from(Lifetime { fresh, stale_while_revalidate, stale_if_error }: Lifetime) -> Self {
        let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        CompactLifetime {
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
    /// Returns the validators of a response; `None` if it has neither.
    pub fn from_headers(headers: &HeaderMap) -> Option<Box<Self>> {
        // Copied: a value shares the memory of the whole head that was read.
        let copied = |name: HeaderName| HeaderValue::from_bytes(headers.get(name)?.as_bytes()).ok();
        let (etag, last_modified) = (copied(ETAG), copied(LAST_MODIFIED));
        (etag.is_some() || last_modified.is_some())
            .then(|| Box::new(Validators { etag, last_modified }))
    }
}

/// How an entry may be used at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    Fresh,
    /// Stale; may be served while a fetch runs in the background.
    StaleWhileRevalidate,
    /// Stale; may be served only if the API fails.
    StaleIfError,
    /// Must not be served.
    Expired,
}

impl Entry {
    pub fn new(
        representation: Representation,
        validators: Option<Box<Validators>>,
        fields: ApiFields,
        fetched: FetchTime,
        lifetime: Lifetime,
        generations: EntryGenerations,
    ) -> Self {
        // `Age` has whole seconds; a part of one counts as one.
        let FetchTime { at: fetched_at, initial_age } = fetched;
        let seconds = initial_age.as_secs() + u64::from(initial_age.subsec_nanos() > 0);
        Entry {
            representation,
            validators,
            fields,
            fetched_at,
            initial_age: u32::try_from(seconds).unwrap_or(u32::MAX),
            lifetime: lifetime.into(),
            generations,
            backoff: AtomicU32::new(0),
        }
    }

    /// `Age` of the response when it arrived.
    pub fn initial_age(&self) -> Duration {
        Duration::from_secs(self.initial_age.into())
    }

    pub fn lifetime(&self) -> Lifetime {
        let CompactLifetime { fresh, stale_while_revalidate, stale_if_error } = self.lifetime;
        let time = |milliseconds: u32| Duration::from_millis(milliseconds.into());
        Lifetime {
            fresh: time(fresh),
            stale_while_revalidate: time(stale_while_revalidate),
            stale_if_error: time(stale_if_error),
        }
    }

    /// Current age, that before its arrival included (RFC 9111 section 4.2.3).
    pub fn age(&self, now: Instant) -> Duration {
        self.initial_age() + now.saturating_duration_since(self.fetched_at)
    }

    /// How the entry may be used now.
    pub fn freshness(&self, now: Instant) -> Freshness {
        let age = now.saturating_duration_since(self.fetched_at);
        let Lifetime { fresh, stale_while_revalidate, stale_if_error } = self.lifetime();
        match age {
            age if age < fresh => Freshness::Fresh,
            age if age < fresh + stale_while_revalidate => Freshness::StaleWhileRevalidate,
            age if age < fresh + stale_if_error => Freshness::StaleIfError,
            _ => Freshness::Expired,
        }
    }

    /// Whether the entry may be served if the API fails.
    pub fn may_serve_on_error(&self, now: Instant) -> bool {
        let Lifetime { fresh, stale_if_error, .. } = self.lifetime();
        now.saturating_duration_since(self.fetched_at) < fresh + stale_if_error
    }

    /// Remaining freshness in whole seconds, rounded down; negative once the entry is stale.
    pub fn ttl(&self, now: Instant) -> i64 {
        let fresh_until = self.fetched_at + self.lifetime().fresh;
        match fresh_until.checked_duration_since(now) {
            Some(left) => left.as_secs() as i64,
            None => -(now.duration_since(fresh_until).as_secs_f64().ceil() as i64),
        }
    }

    /// Notes that the API failed: it is not asked again for this entry during `duration`.
    pub fn back_off(&self, now: Instant, duration: Duration) {
        let until = now.saturating_duration_since(self.fetched_at) + duration;
        self.backoff.store(u32::try_from(until.as_millis()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Whether the API is not to be asked for this entry now.
    pub fn is_backing_off(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.fetched_at).as_millis();
        age < u128::from(self.backoff.load(Ordering::Relaxed))
    }
}
