//! Background resolution of the names in `upstream.url`.
//!
//! A thread looks the names up when their records expire and when a connection failed, one lookup
//! of a name at a time and at most one a second. Requests use the addresses that are known and
//! never wait for a lookup, except for the first one. A lookup that fails takes no known address
//! away, and one without a reply delays no other: neither that of another name nor that of the
//! other family.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;
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

/// Time that a lookup of one family of addresses still has after the other one found some.
///
/// Some name servers drop queries for AAAA records. This delays the first requests by no more than
/// that.
const OTHER_FAMILY_WAIT: Duration = Duration::from_millis(500);

/// A family of addresses. Each is looked up separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Addresses of a name, and until when they may be used.
#[derive(Clone, Debug)]
pub struct Records {
    /// Empty if the name has none of this family.
    pub addresses: Vec<IpAddr>,
    pub valid_until: Instant,
}

/// Looks up the addresses of a name.
pub trait Lookup: Send + Sync + 'static {
    /// `name` ends with a dot if it must not be completed by the search list of the system.
    fn lookup(
        &self,
        name: &str,
        family: Family,
    ) -> impl Future<Output = io::Result<Records>> + Send;
}

/// Lookup by DNS and the hosts file, as the system's configuration says.
///
/// The configuration is read for each lookup, so that a change of `/etc/resolv.conf` or
/// `/etc/hosts` needs no restart.
pub struct SystemLookup;

impl Lookup for SystemLookup {
    async fn lookup(&self, name: &str, family: Family) -> io::Result<Records> {
        let mut builder = TokioResolver::builder_tokio().map_err(io::Error::other)?;
        let options = builder.options_mut();
        options.ip_strategy = match family {
            Family::V4 => LookupIpStrategy::Ipv4Only,
            Family::V6 => LookupIpStrategy::Ipv6Only,
        };
        options.cache_size = 0;
        let name = Name::from_ascii(name).map_err(io::Error::other)?;
        match builder.build().map_err(io::Error::other)?.lookup_ip(name).await {
            Ok(found) => {
                Ok(Records { addresses: found.iter().collect(), valid_until: found.valid_until() })
            }
            Err(error) if error.is_no_records_found() => {
                Ok(Records { addresses: Vec::new(), valid_until: clock::now() + INTERVAL_MAX })
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// A name that is looked up, with the addresses found last.
struct NamedOrigin {
    origin: Arc<Origin>,
    lookup_name: String,
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
}

/// Result of looking up a name; `None` for a family whose lookup failed.
#[derive(Default)]
struct Found {
    v4: Option<Records>,
    v6: Option<Records>,
}

/// Result of the last round of lookups.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    number: u64,
    is_running: bool,
    /// Whether any address is known, although the first round may still run.
    has_addresses: bool,
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
    pub fn start(
        origins: &[Arc<Origin>],
        endpoints: Arc<Endpoints>,
        lookup: impl Lookup,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { is_stopped: AtomicBool::new(false), wake: Notify::new() });
        let mut known: Vec<NamedOrigin> = origins.iter().map(NamedOrigin::new).collect();
        publish(&endpoints, &known);
        let has_names = known.iter().any(NamedOrigin::is_name);
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

    /// Waits until an address is known or the first round of lookups has ended.
    pub async fn first_round(&self, deadline: Instant) {
        let Some(mut rounds) = self.rounds.clone() else { return };
        let first = rounds.wait_for(|round| round.number > 0 || round.has_addresses);
        let _ = timeout_at(deadline.into(), first).await;
    }

    /// Makes a lookup due and waits for its end, or for that of one that is under way. Returns
    /// false if none may happen so soon again.
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
        let dot = if origin.is_absolute { "." } else { "" };
        let lookup_name = format!("{}{dot}", origin.host);
        let (v4, v6) = origin.host.parse::<IpAddr>().into_iter().partition(IpAddr::is_ipv4);
        NamedOrigin { origin: origin.clone(), lookup_name, v4, v6 }
    }

    fn is_name(&self) -> bool {
        self.origin.host.parse::<IpAddr>().is_err()
    }

    fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.v6.iter().chain(&self.v4)
    }

    /// Replaces the addresses by what was found. A family that could not be looked up keeps its
    /// addresses, and so does a name without any. Returns until when the result may be used; `None`
    /// if the lookup failed.
    fn replace(&mut self, found: Found) -> Option<Instant> {
        let is_empty =
            |records: &Option<Records>| records.as_ref().is_none_or(|r| r.addresses.is_empty());
        if is_empty(&found.v4) && is_empty(&found.v6) {
            return None;
        }
        let mut valid_until = None;
        for (records, addresses) in [(found.v4, &mut self.v4), (found.v6, &mut self.v6)] {
            let Some(records) = records else { continue };
            if !records.addresses.is_empty() {
                valid_until = valid_until.into_iter().chain([records.valid_until]).min();
            }
            *addresses = records.addresses;
        }
        valid_until
    }
}

/// Looks up both families of a name at once.
async fn look_up(lookup: &impl Lookup, name: &str) -> Found {
    let family =
        async |family| timeout(LOOKUP_TIMEOUT, lookup.lookup(name, family)).await.ok()?.ok();
    let (v4, v6) = (pin!(family(Family::V4)), pin!(family(Family::V6)));
    match select(v4, v6).await {
        Either::Left((v4, v6)) => Found { v6: with_other(v4.as_ref(), v6).await, v4 },
        Either::Right((v6, v4)) => Found { v4: with_other(v6.as_ref(), v4).await, v6 },
    }
}

/// Waits for the second family: only a moment if the first one has addresses.
async fn with_other(
    first: Option<&Records>,
    second: impl Future<Output = Option<Records>>,
) -> Option<Records> {
    let is_found = first.is_some_and(|records| !records.addresses.is_empty());
    timeout(if is_found { OTHER_FAMILY_WAIT } else { LOOKUP_TIMEOUT }, second).await.ok()?
}

fn publish(endpoints: &Endpoints, known: &[NamedOrigin]) {
    endpoints.replace(known.iter().flat_map(|named| {
        let socket = |ip: &IpAddr| (SocketAddr::new(*ip, named.origin.port), named.origin.clone());
        named.addresses().map(socket)
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
        let due = run_round(known, endpoints, lookup, rounds).await;
        rounds.send_modify(|round| {
            round.number += 1;
            round.is_running = false;
            if due.is_some() {
                round.succeeded_at = Some(clock::now());
            }
        });
        let due = due.map_or(started, |due| due.min(started + INTERVAL_MAX));
        tokio::select! {
            () = sleep_until(due.into()) => {}
            () = shared.wake.notified() => {}
        }
        if !shared.is_stopped.load(Ordering::Relaxed) {
            sleep_until((started + INTERVAL_MIN).into()).await;
        }
    }
}

/// Looks up every name once and publishes the addresses of each as soon as they are known. Returns
/// when the first of them expire; `None` if a name has none.
async fn run_round(
    known: &mut [NamedOrigin],
    endpoints: &Endpoints,
    lookup: &impl Lookup,
    rounds: &watch::Sender<Round>,
) -> Option<Instant> {
    let names = known.iter().enumerate().filter(|(_, named)| named.is_name());
    let names: Vec<_> = names.map(|(at, named)| (at, named.lookup_name.clone())).collect();
    let look_up_at = async |(at, name): &(usize, String)| (*at, look_up(lookup, name).await);
    let mut lookups: FuturesUnordered<_> = names.iter().map(look_up_at).collect();
    let mut expiries = Vec::new();
    while let Some((at, found)) = lookups.next().await {
        expiries.push(known[at].replace(found));
        publish(endpoints, known);
        rounds.send_if_modified(|round| {
            let has_addresses = known.iter().any(|named| named.addresses().next().is_some());
            std::mem::replace(&mut round.has_addresses, has_addresses) != has_addresses
        });
    }
    // `None` precedes every time: one name that failed makes the next round due.
    expiries.into_iter().min().flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::AtomicUsize;

    use http::HeaderValue;
    use tokio::time::sleep;

    use super::*;

    const TTL: Duration = Duration::from_secs(5);
    const SILENT: Duration = Duration::from_secs(3600);

    /// A reply to a lookup: the addresses, or a failure, after a time.
    type Reply = (Option<&'static [&'static str]>, Duration);

    const fn found(addresses: &'static [&'static str]) -> Reply {
        (Some(addresses), Duration::ZERO)
    }

    const FAILED: Reply = (None, Duration::ZERO);

    /// A name server whose replies a test changes.
    #[derive(Default)]
    struct NameServer {
        replies: Mutex<HashMap<(String, bool), Reply>>,
        ttl: Mutex<Duration>,
        lookups: AtomicUsize,
        running: AtomicUsize,
        running_max: AtomicUsize,
    }

    impl Lookup for Arc<NameServer> {
        async fn lookup(&self, name: &str, family: Family) -> io::Result<Records> {
            self.lookups.fetch_add(1, Ordering::Relaxed);
            let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
            self.running_max.fetch_max(running, Ordering::Relaxed);
            let key = (name.to_owned(), family == Family::V4);
            let (addresses, delay) = self.replies.lock().get(&key).copied().unwrap_or(found(&[]));
            sleep(delay).await;
            self.running.fetch_sub(1, Ordering::Relaxed);
            let addresses = addresses.ok_or(io::ErrorKind::NotFound)?;
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            Ok(Records { addresses, valid_until: clock::now() + *self.ttl.lock() })
        }
    }

    struct Scene {
        server: Arc<NameServer>,
        endpoints: Arc<Endpoints>,
        resolver: Resolver,
    }

    impl Scene {
        /// Runs the lookups on the paused clock of the test.
        fn start(hosts: &[&str], replies: &[(&str, Reply, Reply)]) -> Scene {
            let server = Arc::new(NameServer::default());
            *server.ttl.lock() = TTL;
            let scene_server = server.clone();
            let origins: Vec<_> = hosts.iter().map(|host| origin(host)).collect();
            let mut known: Vec<_> = origins.iter().map(NamedOrigin::new).collect();
            let endpoints = Arc::new(Endpoints::default());
            let shared =
                Arc::new(Shared { is_stopped: AtomicBool::new(false), wake: Notify::new() });
            let (sender, receiver) = watch::channel(Round::default());
            publish(&endpoints, &known);
            let (task_endpoints, task_shared) = (endpoints.clone(), shared.clone());
            let resolver =
                Resolver { shared, rounds: Some(receiver), last_refresh: Mutex::new(None) };
            let scene = Scene { server: scene_server, endpoints, resolver };
            for (name, v4, v6) in replies {
                scene.set(name, *v4, *v6);
            }
            tokio::spawn(async move {
                run(&mut known, &task_endpoints, &server, &task_shared, &sender).await
            });
            scene
        }

        fn set(&self, name: &str, v4: Reply, v6: Reply) {
            let mut replies = self.server.replies.lock();
            replies.insert((name.to_owned(), true), v4);
            replies.insert((name.to_owned(), false), v6);
        }

        fn addresses(&self) -> Vec<String> {
            let mut all: Vec<_> =
                self.endpoints.load().iter().map(|e| e.address.ip().to_string()).collect();
            all.sort();
            all
        }

        fn lookups(&self) -> usize {
            self.server.lookups.load(Ordering::Relaxed)
        }

        async fn first(&self) -> Duration {
            let started = clock::now();
            self.resolver.first_round(started + SILENT).await;
            clock::now() - started
        }
    }

    fn origin(host: &str) -> Arc<Origin> {
        let is_absolute = host.ends_with('.');
        Arc::new(Origin {
            is_tls: false,
            host: host.trim_end_matches('.').to_owned(),
            is_absolute,
            port: 80,
            authority: HeaderValue::from_static("api.example"),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn lookup_is_due_when_records_expire_within_bounds() {
        for (ttl, expected) in [(0, 1), (5, 5), (300, 30)] {
            let scene = Scene::start(&["a"], &[("a", found(&["10.0.0.1"]), found(&[]))]);
            *scene.server.ttl.lock() = Duration::from_secs(ttl);
            scene.first().await;
            sleep(Duration::from_millis(10)).await;
            assert_eq!(scene.lookups(), 2);
            sleep(Duration::from_secs(expected) - Duration::from_millis(20)).await;
            assert_eq!(scene.lookups(), 2, "{ttl}");
            sleep(Duration::from_millis(20)).await;
            assert_eq!(scene.lookups(), 4, "{ttl}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failed_or_empty_lookup_keeps_the_addresses() {
        let scene = Scene::start(&["a"], &[("a", found(&["10.0.0.1"]), found(&["::1"]))]);
        scene.first().await;
        for (v4, v6) in
            [(FAILED, FAILED), (found(&[]), found(&[])), ((None, SILENT), (None, SILENT))]
        {
            scene.set("a", v4, v6);
            sleep(Duration::from_secs(20)).await;
            assert_eq!(scene.addresses(), ["10.0.0.1", "::1"]);
        }
        // One family alone fails: the other one follows its records.
        scene.set("a", found(&["10.0.0.2"]), FAILED);
        sleep(Duration::from_secs(20)).await;
        assert_eq!(scene.addresses(), ["10.0.0.2", "::1"]);
        // A family without records is gone if the other one has some.
        scene.set("a", found(&["10.0.0.2"]), found(&[]));
        sleep(Duration::from_secs(20)).await;
        assert_eq!(scene.addresses(), ["10.0.0.2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_lookup_of_one_family_delays_the_other_briefly() {
        let scene = Scene::start(&["a"], &[("a", found(&["10.0.0.1"]), (None, SILENT))]);
        assert!(scene.first().await <= OTHER_FAMILY_WAIT);
        assert_eq!(scene.addresses(), ["10.0.0.1"]);
        // The same again at each expiry.
        sleep(Duration::from_secs(12)).await;
        assert_eq!((scene.addresses(), scene.lookups()), (vec!["10.0.0.1".to_owned()], 6));
    }

    #[tokio::test(start_paused = true)]
    async fn silent_lookup_of_one_name_delays_no_other_name() {
        let silent = (None, SILENT);
        let scene = Scene::start(
            &["a", "b"],
            &[("a", silent, silent), ("b", found(&["10.0.0.2"]), found(&[]))],
        );
        assert!(scene.first().await < Duration::from_millis(10));
        assert_eq!(scene.addresses(), ["10.0.0.2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_first_lookup_is_repeated_each_second() {
        let scene = Scene::start(&["a"], &[("a", FAILED, FAILED)]);
        scene.first().await;
        assert!(scene.addresses().is_empty());
        sleep(Duration::from_millis(3500)).await;
        assert_eq!(scene.lookups(), 8);
        assert!(scene.resolver.age(clock::now()).is_none());
        scene.set("a", found(&["10.0.0.1"]), found(&[]));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(scene.addresses(), ["10.0.0.1"]);
        assert!(scene.resolver.age(clock::now()).is_some_and(|age| age < Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn refreshes_happen_once_a_second_one_at_a_time() {
        let slow = (Some(&["10.0.0.1"][..]), Duration::from_millis(100));
        let scene = Scene::start(&["a"], &[("a", slow, slow)]);
        scene.first().await;
        let before = scene.lookups();
        for _ in 0..1000 {
            scene.resolver.request_refresh();
            sleep(Duration::from_millis(5)).await;
        }
        let rounds = (scene.lookups() - before) / 2;
        assert!((4..=6).contains(&rounds), "{rounds}");
        assert_eq!(scene.server.running_max.load(Ordering::Relaxed), 2, "one of each family");
    }

    #[tokio::test(start_paused = true)]
    async fn refresh_waits_for_its_result_and_not_again_at_once() {
        let scene = Scene::start(&["a"], &[("a", found(&["10.0.0.1"]), found(&[]))]);
        scene.first().await;
        sleep(Duration::from_secs(2)).await;
        scene.set("a", found(&["10.0.0.9"]), found(&[]));
        let now = clock::now();
        assert!(scene.resolver.refresh(now + TTL, now).await);
        assert_eq!(scene.addresses(), ["10.0.0.9"]);
        assert!(!scene.resolver.refresh(now + TTL, now).await);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_known_without_a_lookup() {
        let scene = Scene::start(&["192.0.2.1", "2001:db8::1"], &[]);
        assert_eq!(scene.addresses(), ["192.0.2.1", "2001:db8::1"]);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(scene.lookups(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn absolute_name_is_looked_up_with_its_dot() {
        let scene =
            Scene::start(&["a.example."], &[("a.example.", found(&["10.0.0.1"]), found(&[]))]);
        scene.first().await;
        assert_eq!(scene.addresses(), ["10.0.0.1"]);
    }
}
