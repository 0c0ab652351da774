//! The shared tier: what one gateway of a fleet asked the API for, the others need not ask for. Looked at when memory has
//! nothing, within a deadline of its own; written behind the answer, never before it.
//!
//! One gateway at a time fetches what several want: it holds a lease, the others look again until they find its value, for
//! no longer than a fetch takes, and then fetch themselves. A lease is a kindness to the API, not a lock: losing one costs
//! a second fetch.
//!
//! Nothing here decides what is right: values are opened ([`super::seal`]), judged by their place in the stream of changes
//! ([`super::ledger`]) and by their times, and whatever is odd is a miss.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::ledger::Ledger;
use super::seal::Sealer;
use super::wire::{self, Origin, ServerTime};
use crate::clock;
use crate::telemetry::Metrics;

/// Values being written behind answers; beyond, one is not written.
const MAX_WRITING: usize = 256;

/// Larger values are not shared: they would take as long as a fetch, and keep others waiting behind them.
const MAX_VALUE: usize = 1 << 20;

/// And with their seal they are shorter than this. What is longer there nobody put there who may.
pub const MAX_SEALED: usize = MAX_VALUE + 128;

/// How long a fetch takes, as long as none was seen.
const FIRST_GUESS: Duration = Duration::from_millis(50);

/// One waits so long even if fetches are quicker: a busy machine needs that much to come back to a task.
const LEAST_PATIENCE: Duration = Duration::from_millis(10);

/// And no longer than this, however slow the API is.
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);

/// Between two looks of one who waits for another gateway's value, at first; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// What holds the values.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The value of that name, and the server's time when it looked. `within`: how long it may take.
    async fn get(&self, name: &str, within: Duration) -> Result<(Option<Vec<u8>>, ServerTime), StoreError>;
    /// Takes a lease, unless somebody holds it.
    async fn lease(&self, name: &str, life: Duration, within: Duration) -> Result<bool, StoreError>;
    /// Stores a value for so long at most, and gives a lease back. Nobody waits for it.
    async fn put(&self, name: &str, value: Vec<u8>, life: Duration, lease: Option<&str>) -> Result<(), StoreError>;
    /// Removes a value, or a lease.
    async fn remove(&self, name: &str) -> Result<(), StoreError>;
}

/// Why the store did not do as it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// It took too long.
    Timeout,
    /// There is no connection, or it is known to be of no use.
    Unavailable,
    /// It said no: no memory left, no permission, another command was expected.
    Refused,
}

impl StoreError {
    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            StoreError::Timeout => "timeout",
            StoreError::Unavailable => "unavailable",
            StoreError::Refused => "refused",
        }
    }
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Answer,
    Identity,
}

impl Kind {
    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Answer => "answer",
            Kind::Identity => "identity",
        }
    }

    /// The letter for it in names.
    const fn letter(self) -> char {
        match self {
            Kind::Answer => 'a',
            Kind::Identity => 'i',
        }
    }
}

/// What a value stands under: a keyed digest, which tells nothing to those without the key.
#[derive(Clone, Debug)]
pub struct Name {
    kind: Kind,
    value: String,
    lease: String,
}

/// When a value was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// By the server's clock, when it looked.
    pub server: ServerTime,
    /// By our own, before it was asked. What is `age` old by the server's clock was made `age` before this, or later.
    pub sent: Instant,
}

/// What is to be thought of a value.
pub enum Judged<V> {
    /// It may be given as it is.
    Usable(V),
    /// It may be asked about, or given where the API fails.
    Stale(V),
    /// Nothing may be made of it.
    Void(Void),
}

/// Why nothing may be made of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Void {
    /// A change is known that it may be from before.
    Changed,
    /// Its time is over.
    Expired,
    /// It cannot be understood, or says what it must not.
    Odd,
}

impl Void {
    const fn as_str(self) -> &'static str {
        match self {
            Void::Changed => "changed",
            Void::Expired => "expired",
            Void::Odd => "odd",
        }
    }
}

/// What a lookup came to.
pub struct Looked<V> {
    /// A value that may be given as it is.
    pub usable: Option<V>,
    /// One that is stale.
    pub stale: Option<V>,
    /// For putting there what the API says now.
    pub writing: Option<Writing>,
}

impl<V> Looked<V> {
    pub fn nothing() -> Self {
        Looked { usable: None, stale: None, writing: None }
    }
}

/// The keys of names, kept as what they are for.
pub struct Names {
    key: Zeroizing<[u8; 32]>,
    prefix: String,
}

impl Names {
    /// `key`: of the fleet, for names alone. `prefix`: of every name in the server.
    pub fn new(key: [u8; 32], prefix: &str) -> Self {
        Names { key: Zeroizing::new(key), prefix: prefix.to_owned() }
    }

    /// The name of what is told apart by these parts.
    pub fn of(&self, kind: Kind, parts: &[&[u8]]) -> Name {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&[wire::VERSION, kind.letter() as u8]);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        // 128 bits: two that are the same by chance are not to be met with.
        let digest = &hasher.finalize().to_hex()[..32];
        let value = format!("{}{}:{digest}", self.prefix, kind.letter());
        Name { kind, lease: format!("{value}:lease"), value }
    }
}

/// The shared tier.
pub struct Tier {
    store: Arc<dyn Store>,
    ledger: Arc<Ledger>,
    sealer: Arc<Sealer>,
    pub names: Names,
    metrics: Arc<Metrics>,
    writing: Arc<Semaphore>,
    /// How long the slowest of the last fetches took, in microseconds.
    slowest: AtomicU64,
    /// How long the store may take for one thing.
    deadline: Duration,
}

impl Tier {
    /// `deadline`: how long the store may take for one thing; then it is done without.
    pub fn new(
        store: Arc<dyn Store>,
        (ledger, sealer, names): (Arc<Ledger>, Arc<Sealer>, Names),
        deadline: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let slowest = AtomicU64::new(micros(FIRST_GUESS));
        let writing = Arc::new(Semaphore::new(MAX_WRITING));
        Tier { store, ledger, sealer, names, metrics, writing, slowest, deadline }
    }

    /// The changes that values are judged by.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// A fetch that had an answer took so long: by that is measured how long one is waited for.
    pub fn fetched_in(&self, time: Duration) {
        let (now, before) = (micros(time), self.slowest.load(Ordering::Relaxed));
        // What was slow once is forgotten slowly; two at once may forget a little more, or less.
        self.slowest.store(now.max(before - before / 8 + now / 8), Ordering::Relaxed);
    }

    /// How long another gateway's fetch is waited for: as long as one's own would take.
    fn patience(&self) -> Duration {
        let slowest = Duration::from_micros(self.slowest.load(Ordering::Relaxed));
        slowest.clamp(LEAST_PATIENCE, LONGEST_PATIENCE)
    }

    /// Looks for a value; where there is none that may be given, takes a lease to fetch it, or waits for who has it.
    pub async fn look<V>(self: &Arc<Self>, name: &Name, judge: impl Fn(&[u8], Seen) -> Judged<V>) -> Looked<V> {
        let started = clock::now();
        let looked = self.search(name, started, judge).await;
        self.metrics.tier_lookup_took(name.kind.as_str(), clock::now().saturating_duration_since(started));
        looked
    }

    /// For putting there what the API is asked for in any case.
    pub async fn begin(self: &Arc<Self>, name: &Name) -> Option<Writing> {
        let position = self.ledger.position()?;
        match self.store.get(&name.value, self.deadline).await {
            Ok((_, asked_at)) => Some(self.writing(name, Origin { position, asked_at }, false)),
            Err(error) => {
                self.metrics.tier_failed(error.as_str());
                None
            }
        }
    }

    async fn search<V>(
        self: &Arc<Self>,
        name: &Name,
        started: Instant,
        judge: impl Fn(&[u8], Seen) -> Judged<V>,
    ) -> Looked<V> {
        let (kind, give_up) = (name.kind.as_str(), started + self.patience());
        let mut pause = FIRST_PAUSE;
        let mut looked = Looked::nothing();
        let mut waited = false;
        loop {
            // Before the API is asked by whoever finds nothing.
            let Some(position) = self.ledger.position() else {
                self.metrics.tier_asked(kind, "skipped");
                return looked;
            };
            let sent = clock::now();
            let (value, server) = match self.store.get(&name.value, self.deadline).await {
                Ok(found) => found,
                Err(error) => {
                    self.metrics.tier_failed(error.as_str());
                    self.metrics.tier_asked(kind, "error");
                    return looked;
                }
            };
            let result = match value.map(|sealed| self.open(name, &sealed, Seen { server, sent }, &judge)) {
                None => "miss",
                Some(Err(unopened)) => unopened,
                Some(Ok(Judged::Void(why))) => why.as_str(),
                Some(Ok(Judged::Stale(value))) => {
                    looked.stale = Some(value);
                    "stale"
                }
                Some(Ok(Judged::Usable(value))) => {
                    self.metrics.tier_asked(kind, if waited { "waited" } else { "hit" });
                    looked.usable = Some(value);
                    return looked;
                }
            };
            let origin = Origin { position, asked_at: server };
            let leased = match self.store.lease(&name.lease, self.patience(), self.deadline).await {
                Ok(leased) => leased,
                // Nobody is kept waiting by a server that does not say.
                Err(error) => {
                    self.metrics.tier_failed(error.as_str());
                    self.metrics.tier_asked(kind, result);
                    looked.writing = Some(self.writing(name, origin, false));
                    return looked;
                }
            };
            let left = give_up.saturating_duration_since(clock::now());
            if leased || left.is_zero() {
                self.metrics.tier_asked(kind, if leased { result } else { "in_vain" });
                looked.writing = Some(self.writing(name, origin, leased));
                return looked;
            }
            waited = true;
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn open<V>(
        &self,
        name: &Name,
        sealed: &[u8],
        seen: Seen,
        judge: &impl Fn(&[u8], Seen) -> Judged<V>,
    ) -> Result<Judged<V>, &'static str> {
        let value = self.sealer.open(name.value.as_bytes(), sealed).map_err(|unopened| {
            tracing::warn!(reason = unopened.as_str(), "failed to decrypt a value of the shared tier");
            self.metrics.tier_failed(unopened.as_str());
            unopened.as_str()
        })?;
        Ok(judge(&value, seen))
    }

    fn writing(self: &Arc<Self>, name: &Name, origin: Origin, leased: bool) -> Writing {
        Writing { tier: self.clone(), name: name.clone(), origin, leased }
    }
}

/// Leave to put a value there: from when it is, and the lease where one was taken. Dropped without having been used, it
/// gives the lease back.
pub struct Writing {
    tier: Arc<Tier>,
    name: Name,
    /// Where a value that the API is asked for from here on stands.
    pub origin: Origin,
    leased: bool,
}

impl Writing {
    /// Puts a value there, behind whoever waits for it.
    pub fn put(mut self, value: impl FnOnce() -> Vec<u8> + Send + 'static, life: Duration) {
        let leased = std::mem::take(&mut self.leased);
        self.behind("write", move |tier, name| async move {
            let value = value();
            if value.len() > MAX_VALUE {
                return Err("too_large");
            }
            let sealed = tier.sealer.seal(name.value.as_bytes(), &value).map_err(|_| "no_randomness")?;
            let lease = leased.then_some(name.lease.as_str());
            tier.store.put(&name.value, sealed, life, lease).await.map_err(StoreError::as_str)
        });
    }

    /// Takes away what stands there: it is not what the API says now.
    pub fn remove(self) {
        self.behind(
            "remove",
            |tier, name| async move { tier.store.remove(&name.value).await.map_err(StoreError::as_str) },
        );
    }

    fn behind<F>(&self, what: &'static str, work: impl FnOnce(Arc<Tier>, Name) -> F)
    where
        F: Future<Output = Result<(), &'static str>> + Send + 'static,
    {
        let (tier, kind) = (self.tier.clone(), self.name.kind.as_str());
        let Ok(place) = tier.writing.clone().try_acquire_owned() else {
            tier.metrics.tier_failed("too_many");
            tier.metrics.tier_wrote(kind, what, "error");
            return;
        };
        let work = work(tier.clone(), self.name.clone());
        tokio::spawn(async move {
            let result = work.await;
            if let Err(kind) = result {
                tier.metrics.tier_failed(kind);
            }
            tier.metrics.tier_wrote(kind, what, if result.is_ok() { "ok" } else { "error" });
            drop(place);
        });
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.leased {
            self.behind("release", |tier, name| async move {
                tier.store.remove(&name.lease).await.map_err(StoreError::as_str)
            });
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
}
