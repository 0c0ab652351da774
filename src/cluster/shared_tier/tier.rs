//! Lookups and writes of the shared tier. A lookup follows a miss in memory and has a short
//! deadline; a write follows the response and is never waited for.
//!
//! Of several gateways that want the same value, one fetches it and holds a lease; the others look
//! again until they find the value, at most for the time of a fetch, and then fetch themselves. The
//! lease spares the API, it is not a lock: a lost lease costs a second fetch.
//!
//! Values are decrypted ([`crate::cluster::aead`]), then checked against the change index
//! ([`crate::cluster::change_index`]) and their times; a value that fails is a miss.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::encoding::{self, Origin};
use super::store::{Store, StoreError};
use crate::clock;
use crate::cluster::aead::Cipher;
use crate::cluster::change_index::ChangeIndex;
use crate::cluster::server_time::ServerTime;
use crate::telemetry::Metrics;

/// Most writes at a time; further values are not written.
const WRITES_MAX: usize = 256;

/// Longest value. A longer one would take as long as a fetch and delay others.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// Longest encrypted value. A longer one was not written by a gateway.
pub const ENCRYPTED_BYTES_MAX: usize = VALUE_BYTES_MAX + 128;

/// Assumed time of a fetch until one was measured.
const FETCH_TIME_DEFAULT: Duration = Duration::from_millis(50);

/// Shortest wait for another gateway's fetch: a busy machine needs this long to resume a task.
const WAIT_MIN: Duration = Duration::from_millis(10);

/// Longest wait for another gateway's fetch, however slow the API is.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Interval at which a waiting gateway looks again, doubled each time up to the maximum.
const RETRY_INTERVAL_MIN: Duration = Duration::from_millis(2);
const RETRY_INTERVAL_MAX: Duration = Duration::from_millis(25);

/// Kind of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Response,
    Identity,
}

impl Kind {
    /// The label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Response => "answer",
            Kind::Identity => "identity",
        }
    }

    /// The letter in Redis keys.
    const fn letter(self) -> char {
        match self {
            Kind::Response => 'a',
            Kind::Identity => 'i',
        }
    }
}

/// The Redis keys of a value and of its lease. They are keyed digests, from which a reader without
/// the key learns nothing.
#[derive(Clone, Debug)]
pub struct TierKey {
    kind: Kind,
    value: String,
    lease: String,
}

/// When a value was read.
#[derive(Clone, Copy, Debug)]
pub struct ReadTimes {
    /// By the server's clock, after the value was read.
    pub server: ServerTime,
    /// By this gateway's clock, before the request was sent. A value of a certain age by the
    /// server's clock was made that long before this, or later.
    pub local: Instant,
}

/// Whether a value may be used.
pub enum Verdict<V> {
    /// It may be served as it is.
    Fresh(V),
    /// It may be revalidated, or served if the API fails.
    Stale(V),
    Rejected(Rejection),
}

/// Why a value is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// A change is known that the value may precede.
    Changed,
    Expired,
    /// The value cannot be decoded, or is from the future.
    Malformed,
}

impl Rejection {
    const fn as_str(self) -> &'static str {
        match self {
            Rejection::Changed => "changed",
            Rejection::Expired => "expired",
            Rejection::Malformed => "odd",
        }
    }
}

/// Result of a lookup.
pub struct Lookup<V> {
    pub fresh: Option<V>,
    pub stale: Option<V>,
    /// Permission to store what the API answers now.
    pub write_lease: Option<WriteLease>,
}

impl<V> Lookup<V> {
    /// The result if the tier is not used.
    pub fn skipped() -> Self {
        Lookup { fresh: None, stale: None, write_lease: None }
    }

    fn with_lease(self, write_lease: WriteLease) -> Self {
        Lookup { write_lease: Some(write_lease), ..self }
    }
}

/// Derives the Redis keys of values.
pub struct KeyDeriver {
    key: Zeroizing<[u8; 32]>,
    prefix: String,
}

impl KeyDeriver {
    /// `key`: a key of the cluster for this purpose. `prefix`: prefix of every Redis key.
    pub fn new(key: [u8; 32], prefix: &str) -> Self {
        KeyDeriver { key: Zeroizing::new(key), prefix: prefix.to_owned() }
    }

    /// The key of a value that is identified by `parts`.
    pub(super) fn derive(&self, kind: Kind, parts: &[&[u8]]) -> TierKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&[encoding::VERSION, kind.letter() as u8]);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        // 128 bits, so that no two are equal by chance.
        let digest = &hasher.finalize().to_hex()[..32];
        let value = format!("{}{}:{digest}", self.prefix, kind.letter());
        TierKey { kind, lease: format!("{value}:lease"), value }
    }
}

/// What a tier is made of.
pub struct TierDeps {
    pub store: Arc<dyn Store>,
    pub change_index: Arc<ChangeIndex>,
    pub cipher: Arc<Cipher>,
    pub keys: KeyDeriver,
    /// Deadline of one operation of the store that a request waits for.
    pub timeout: Duration,
    pub metrics: Arc<Metrics>,
}

/// The shared tier.
pub struct Tier {
    store: Arc<dyn Store>,
    change_index: Arc<ChangeIndex>,
    cipher: Arc<Cipher>,
    pub keys: KeyDeriver,
    timeout: Duration,
    metrics: Arc<Metrics>,
    writes: Arc<Semaphore>,
    /// Time of the slowest recent fetch, in microseconds.
    fetch_micros: AtomicU64,
}

impl Tier {
    pub fn new(deps: TierDeps) -> Self {
        let TierDeps { store, change_index, cipher, keys, timeout, metrics } = deps;
        metrics.create_tier_series();
        Tier {
            store,
            change_index,
            cipher,
            keys,
            timeout,
            metrics,
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            fetch_micros: AtomicU64::new(to_micros(FETCH_TIME_DEFAULT)),
        }
    }

    /// The changes that values are checked against.
    pub fn change_index(&self) -> &ChangeIndex {
        &self.change_index
    }

    /// Records how long a fetch took, which limits how long others wait for one.
    pub fn record_fetch_time(&self, time: Duration) {
        let (now, before) = (to_micros(time), self.fetch_micros.load(Ordering::Relaxed));
        // The maximum decays slowly; a lost update of a concurrent call does not matter.
        self.fetch_micros.store(now.max(before - before / 8 + now / 8), Ordering::Relaxed);
    }

    /// How long to wait for another gateway's fetch: as long as an own one would take.
    fn max_wait(&self) -> Duration {
        let fetch_time = Duration::from_micros(self.fetch_micros.load(Ordering::Relaxed));
        fetch_time.clamp(WAIT_MIN, WAIT_MAX)
    }

    /// Looks up a value. Without a fresh one it acquires a lease to fetch it, or waits for the
    /// gateway that holds the lease.
    pub async fn get_or_lease<V>(
        self: &Arc<Self>,
        key: &TierKey,
        evaluate: impl Fn(&[u8], ReadTimes) -> Verdict<V>,
    ) -> Lookup<V> {
        let started = clock::now();
        let lookup = self.search(key, started, evaluate).await;
        let duration = clock::now().saturating_duration_since(started);
        self.metrics.observe_tier_lookup(key.kind.as_str(), duration);
        lookup
    }

    /// Begins a write without a lookup, for a value that is fetched in any case.
    pub async fn begin_write(self: &Arc<Self>, key: &TierKey) -> Option<WriteLease> {
        let position = self.change_index.position()?;
        match self.store.get(&key.value, self.timeout).await {
            Ok((_, requested_at)) => {
                Some(self.write_lease(key, Origin { position, requested_at }, false))
            }
            Err(error) => {
                self.metrics.count_tier_error(error.as_str());
                None
            }
        }
    }

    async fn search<V>(
        self: &Arc<Self>,
        key: &TierKey,
        started: Instant,
        evaluate: impl Fn(&[u8], ReadTimes) -> Verdict<V>,
    ) -> Lookup<V> {
        let (kind, give_up_at) = (key.kind.as_str(), started + self.max_wait());
        let mut retry_interval = RETRY_INTERVAL_MIN;
        let mut lookup = Lookup::skipped();
        let mut has_waited = false;
        loop {
            // Taken before a request that follows a miss is sent to the API.
            let Some(position) = self.change_index.position() else {
                self.metrics.count_tier_lookup(kind, "skipped");
                return lookup;
            };
            let local = clock::now();
            let (value, server) = match self.store.get(&key.value, self.timeout).await {
                Ok(read) => read,
                Err(error) => {
                    self.metrics.count_tier_error(error.as_str());
                    self.metrics.count_tier_lookup(kind, "error");
                    return lookup;
                }
            };
            let read = ReadTimes { server, local };
            let result = match value.map(|value| self.decrypt(key, &value, read, &evaluate)) {
                None => "miss",
                Some(Err(error)) => error,
                Some(Ok(Verdict::Rejected(rejection))) => rejection.as_str(),
                Some(Ok(Verdict::Stale(value))) => {
                    lookup.stale = Some(value);
                    "stale"
                }
                Some(Ok(Verdict::Fresh(value))) => {
                    self.metrics.count_tier_lookup(kind, if has_waited { "waited" } else { "hit" });
                    lookup.fresh = Some(value);
                    return lookup;
                }
            };
            let origin = Origin { position, requested_at: server };
            let lease = self.store.lease(&key.lease, self.max_wait(), self.timeout).await;
            let is_leased = match lease {
                Ok(is_leased) => is_leased,
                // A request does not wait for a server that does not reply.
                Err(error) => {
                    self.metrics.count_tier_error(error.as_str());
                    self.metrics.count_tier_lookup(kind, result);
                    return lookup.with_lease(self.write_lease(key, origin, false));
                }
            };
            let left = give_up_at.saturating_duration_since(clock::now());
            if is_leased || left.is_zero() {
                self.metrics.count_tier_lookup(kind, if is_leased { result } else { "in_vain" });
                // A lease that outlasts a fetch is released with the value: its holder is gone, or
                // no gateway took it.
                return lookup.with_lease(self.write_lease(key, origin, true));
            }
            has_waited = true;
            tokio::time::sleep(retry_interval.min(left)).await;
            retry_interval = (retry_interval * 2).min(RETRY_INTERVAL_MAX);
        }
    }

    fn decrypt<V>(
        &self,
        key: &TierKey,
        encrypted: &[u8],
        read: ReadTimes,
        evaluate: &impl Fn(&[u8], ReadTimes) -> Verdict<V>,
    ) -> Result<Verdict<V>, &'static str> {
        match self.cipher.decrypt(key.value.as_bytes(), encrypted) {
            Ok(value) => Ok(evaluate(&value, read)),
            Err(error) => {
                let reason = error.as_str();
                tracing::warn!(reason, "failed to decrypt a value of the shared tier");
                self.metrics.count_tier_error(reason);
                Err(reason)
            }
        }
    }

    fn write_lease(self: &Arc<Self>, key: &TierKey, origin: Origin, is_leased: bool) -> WriteLease {
        WriteLease { tier: self.clone(), key: key.clone(), origin, is_leased }
    }
}

/// Permission to store a value, with the time and position from before it is requested, and the
/// lease if one was acquired. If it is dropped unused, it releases the lease.
pub struct WriteLease {
    tier: Arc<Tier>,
    key: TierKey,
    /// Origin of a value that is requested from the API from now on.
    pub(super) origin: Origin,
    is_leased: bool,
}

impl WriteLease {
    /// Stores a value in a separate task.
    pub(super) fn put(mut self, value: impl FnOnce() -> Vec<u8> + Send + 'static, ttl: Duration) {
        let is_leased = std::mem::take(&mut self.is_leased);
        self.spawn_write("write", move |tier, key| async move {
            let value = value();
            if value.len() > VALUE_BYTES_MAX {
                return Err("too_large");
            }
            let encrypted =
                tier.cipher.encrypt(key.value.as_bytes(), &value).map_err(|_| "no_randomness")?;
            let lease = is_leased.then_some(key.lease.as_str());
            tier.store.put(&key.value, encrypted, ttl, lease).await.map_err(StoreError::as_str)
        });
    }

    /// Removes the stored value, which the API no longer sends.
    pub fn remove(self) {
        self.spawn_write("remove", |tier, key| async move {
            tier.store.remove(&key.value).await.map_err(StoreError::as_str)
        });
    }

    fn spawn_write<F>(&self, operation: &'static str, write: impl FnOnce(Arc<Tier>, TierKey) -> F)
    where
        F: Future<Output = Result<(), &'static str>> + Send + 'static,
    {
        let (tier, kind) = (self.tier.clone(), self.key.kind.as_str());
        let Ok(permit) = tier.writes.clone().try_acquire_owned() else {
            tier.metrics.count_tier_error("too_many");
            tier.metrics.count_tier_write(kind, operation, "error");
            return;
        };
        let write = write(tier.clone(), self.key.clone());
        tokio::spawn(async move {
            let result = write.await;
            if let Err(reason) = result {
                tier.metrics.count_tier_error(reason);
            }
            tier.metrics.count_tier_write(
                kind,
                operation,
                if result.is_ok() { "ok" } else { "error" },
            );
            drop(permit);
        });
    }
}

impl Drop for WriteLease {
    fn drop(&mut self) {
        if self.is_leased {
            self.spawn_write("release", |tier, key| async move {
                tier.store.remove(&key.lease).await.map_err(StoreError::as_str)
            });
        }
    }
}

fn to_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
}
