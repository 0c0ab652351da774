//! Background resolution of the names in `upstream.url`.
//!
//! A thread looks the names up when their records expire and when a connection failed, one lookup of
//! a name at a time and at most one a second. Requests use the addresses that are known and never
//! wait for a lookup, except for the first one. A lookup that fails takes no known address away.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::proto::rr::Name;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep_until, timeout, timeout_at};

use super::endpoint::{Endpoints, Origin};
use crate::clock;

/// Longest time between two lookups, whatever the TTL of the records.
const INTERVAL_MAX: Duration = Duration::from_secs(30);

/// Shortest time between two lookups, whatever the TTL of the records and however many connections
/// fail.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Time after which a lookup counts as failed.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of a name, and until when they may be used.
pub struct Records {
    pub addresses: Vec<IpAddr>,
    pub valid_until: Instant,
}

/// Looks up the addresses of a name.
pub trait Lookup: Send + Sync + 'static {
    /// `name` ends with a dot if it must not be completed by the search list of the system.
    fn lookup(&self, name: &str) -> impl Future<Output = io::Result<Records>> + Send;
}

/// Lookup by DNS and the hosts file, as the system's configuration says.
///
/// The configuration is read for each lookup, so that a change of `/etc/resolv.conf` or
/// `/etc/hosts` needs no restart.
pub struct SystemLookup;

impl Lookup for SystemLookup {
    async fn lookup(&self, name: &str) -> io::Result<Records> {
        let mut builder = TokioResolver::builder_tokio().map_err(io::Error::other)?;
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        options.cache_size = 0;
        let name = Name::from_ascii(name).map_err(io::Error::other)?;
        let found = builder.build().map_err(io::Error::other)?.lookup_ip(name).await;
        let found = found.map_err(io::Error::other)?;
        Ok(Records { addresses: found.iter().collect(), valid_until: found.valid_until() })
    }
}

/// A name that is looked up, with the addresses found last.
struct NamedOrigin {
    origin: Arc<Origin>,
    lookup_name: String,
    addresses: Vec<IpAddr>,
}

/// Result of the last round of lookups.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    number: u64,
    is_running: bool,
    /// End of the last round in which every name had an address.
    succeeded_at: Option<Instant>,
}

struct Shared {
    is_stopped: AtomicBool,
    wake: Notify,
}

/// Keeps [`Endpoints`] up to date.
pub struct Resolver {
    shared: Arc<Shared>,
    rounds: Option<watch::Receiver<Round>>,
    last_refresh: Mutex<Option<Instant>>,
}

impl Resolver {
    /// Fills `endpoints` with the addresses of `origins` and keeps looking up those that are names.
    ///
    /// # Errors
    ///
    /// The thread or its runtime cannot be created.
    pub fn start(origins: &[Arc<Origin>], endpoints: Arc<Endpoints>, lookup: impl Lookup) -> io::Result<Self> {
        let shared = Arc::new(Shared { is_stopped: AtomicBool::new(false), wake: Notify::new() });
        let mut known: Vec<NamedOrigin> = origins.iter().map(NamedOrigin::new).collect();
        publish(&endpoints, &known);
        let has_names = known.iter().any(|named| named.addresses.is_empty());
        let rounds = if has_names {
            let (sender, receiver) = watch::channel(Round::default());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread_shared = shared.clone();
            let run = move || {
                runtime.block_on(run(&mut known, &endpoints, &lookup, &thread_shared, &sender));
            };
            std::thread::Builder::new().name("resolver".into()).spawn(run)?;
            Some(receiver)
        } else {
            None
        };
        Ok(Resolver { shared, rounds, last_refresh: Mutex::new(None) })
    }

    /// Makes a lookup due, because a connection failed. At most one a second happens.
    pub fn request_refresh(&self) {
        self.shared.wake.notify_one();
    }

    /// Waits until the first round of lookups has ended.
    pub async fn first_round(&self, deadline: Instant) {
        let Some(mut rounds) = self.rounds.clone() else { return };
        let first = rounds.wait_for(|round| round.number > 0);
        let _ = timeout_at(deadline.into(), first).await;
    }

    /// Makes a lookup due and waits for its end, or for that of one that is under way. Returns false
    /// if none may happen so soon again.
    pub async fn refresh(&self, deadline: Instant, now: Instant) -> bool {
        let Some(mut rounds) = self.rounds.clone() else { return false };
        let Round { number: before, is_running, .. } = *rounds.borrow();
        if !is_running {
            let mut last = self.last_refresh.lock();
            if last.is_some_and(|last| now < last + INTERVAL_MIN) {
                return false;
            }
            *last = Some(now);
            self.request_refresh();
        }
        let next = rounds.wait_for(|round| round.number > before);
        timeout_at(deadline.into(), next).await.is_ok()
    }

    /// Time since every name was last resolved; `None` if no name was ever, or if there is no name.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let succeeded_at = self.rounds.as_ref()?.borrow().succeeded_at;
        succeeded_at.map(|at| now.saturating_duration_since(at))
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        self.shared.wake.notify_one();
    }
}

impl NamedOrigin {
    fn new(origin: &Arc<Origin>) -> Self {
        let addresses = origin.host.parse().ok().into_iter().collect();
        let dot = if origin.is_absolute { "." } else { "" };
        let lookup_name = format!("{}{dot}", origin.host);
        NamedOrigin { origin: origin.clone(), lookup_name, addresses }
    }

    fn is_name(&self) -> bool {
        self.origin.host.parse::<IpAddr>().is_err()
    }
}

fn publish(endpoints: &Endpoints, known: &[NamedOrigin]) {
    endpoints.replace(known.iter().flat_map(|named| {
        let socket = |ip: &IpAddr| (SocketAddr::new(*ip, named.origin.port), named.origin.clone());
        named.addresses.iter().map(socket)
    }));
}

async fn run(
    known: &mut [NamedOrigin],
    endpoints: &Endpoints,
    lookup: &impl Lookup,
    shared: &Shared,
    rounds: &watch::Sender<Round>,
) {
    while !shared.is_stopped.load(Ordering::Relaxed) {
        let started = clock::now();
        rounds.send_modify(|round| round.is_running = true);
        let mut due = started + INTERVAL_MAX;
        let mut is_complete = true;
        for named in known.iter_mut().filter(|named| named.is_name()) {
            match timeout(LOOKUP_TIMEOUT, lookup.lookup(&named.lookup_name)).await {
                Ok(Ok(records)) if !records.addresses.is_empty() => {
                    named.addresses = records.addresses;
                    due = due.min(records.valid_until);
                }
                _ => {
                    is_complete = false;
                    due = due.min(started + INTERVAL_MIN);
                }
            }
        }
        publish(endpoints, known);
        rounds.send_modify(|round| {
            round.number += 1;
            round.is_running = false;
            if is_complete {
                round.succeeded_at = Some(clock::now());
            }
        });
        tokio::select! {
            () = sleep_until(due.into()) => {}
            () = shared.wake.notified() => {}
        }
        if !shared.is_stopped.load(Ordering::Relaxed) {
            sleep_until((started + INTERVAL_MIN).into()).await;
        }
    }
}
