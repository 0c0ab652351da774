//! Single flight: one task per key at a time. A request that arrives while it runs waits for the
//! same result. The task ends with the last request that waits for it, unless it runs in the
//! background.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Number of locks that the keys are spread over, so that flights of different keys rarely wait for
/// one lock.
const SHARDS: usize = 64;

type ResultReceiver<V> = watch::Receiver<Option<V>>;
type Shards<K, V> = Arc<[Mutex<HashMap<K, Flight<V>>>]>;

/// Tasks under way, by key.
pub struct SingleFlight<K, V> {
    shards: Shards<K, V>,
    hasher: RandomState,
}

struct Flight<V> {
    result: ResultReceiver<V>,
    demand: Arc<Demand>,
    task: AbortHandle,
    /// Number of requests that wait for the result.
    waiting: usize,
    /// Whether the task continues without a request that waits for it.
    in_background: bool,
}

/// Combined options of the requests that wait for a flight. It may grow while the flight runs.
#[derive(Debug, Default)]
pub struct Demand {
    store: AtomicBool,
}

impl Demand {
    /// Whether the result may be stored: at least one request permits it.
    pub fn allows_storing(&self) -> bool {
        self.store.load(Ordering::Relaxed)
    }
}

/// Options of a request that starts or joins a flight.
#[derive(Clone, Copy, Debug)]
pub struct JoinOptions {
    /// Whether the flight continues without a client that waits for it.
    pub in_background: bool,
    /// Whether the result may be stored.
    pub store: bool,
}

impl JoinOptions {
    /// A client waits for the result, which may be stored.
    pub const FOREGROUND: JoinOptions = JoinOptions { in_background: false, store: true };
    /// No client waits for the result, which may be stored.
    pub const BACKGROUND: JoinOptions = JoinOptions { in_background: true, store: true };
}

/// Whether a request started the flight or joined it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
}

/// One request that waits for the result. Dropping the last one cancels a flight that is not in the
/// background.
pub struct Waiter<K: Hash + Eq, V> {
    result: ResultReceiver<V>,
    flight: FlightRef<K, V>,
}

impl<K: Hash + Eq, V: Clone> Waiter<K, V> {
    /// Waits for the result; `None` if the task ended without one, because it panicked or the
    /// runtime stops.
    pub async fn result(mut self) -> Option<V> {
        self.result.wait_for(Option::is_some).await.ok().and_then(|result| result.clone())
    }
}

impl<K: Hash + Eq, V> Drop for Waiter<K, V> {
    fn drop(&mut self) {
        let FlightRef { shards, shard, key, demand } = &self.flight;
        let mut flights = shards[*shard].lock();
        let Some(flight) =
            flights.get_mut(key).filter(|flight| Arc::ptr_eq(&flight.demand, demand))
        else {
            return;
        };
        flight.waiting -= 1;
        if flight.waiting > 0 || flight.in_background {
            return;
        }
        // Removed under the lock: from here on a request starts a flight instead of joining one
        // that ends.
        let flight = flights.remove(key);
        drop(flights);
        if let Some(flight) = flight {
            flight.task.abort();
        }
    }
}

/// Reference to a flight. Its `demand` identifies it, since another flight may have the key by now.
struct FlightRef<K: Hash + Eq, V> {
    shards: Shards<K, V>,
    shard: usize,
    key: K,
    demand: Arc<Demand>,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect();
        SingleFlight { shards, hasher: RandomState::new() }
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the flight of a key, or starts one that runs `work`.
    pub fn join_or_spawn<F>(
        &self,
        key: &K,
        options: JoinOptions,
        work: impl FnOnce(Arc<Demand>) -> F,
    ) -> (Role, Waiter<K, V>)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        let reference =
            |demand| FlightRef { shards: self.shards.clone(), shard, key: key.clone(), demand };
        let mut flights = self.shards[shard].lock();
        if let Some(flight) = flights.get_mut(key) {
            flight.waiting += 1;
            flight.in_background |= options.in_background;
            flight.demand.store.fetch_or(options.store, Ordering::Relaxed);
            let waiter =
                Waiter { result: flight.result.clone(), flight: reference(flight.demand.clone()) };
            return (Role::Follower, waiter);
        }
        let (sender, result) = watch::channel(None);
        let demand = Arc::new(Demand { store: AtomicBool::new(options.store) });
        let removal = RemoveOnDrop(reference(demand.clone()));
        // Boxed, because the task would be moved with it, and be too large for the allocator's
        // lists of aligned memory.
        let work = Box::pin(work(demand.clone()));
        let task = tokio::spawn(async move {
            let removal = removal;
            let output = work.await;
            // Removed before the waiters wake: one that asks again must not join this flight.
            drop(removal);
            let _ = sender.send(Some(output));
        });
        let (task, in_background) = (task.abort_handle(), options.in_background);
        let flight = Flight {
            result: result.clone(),
            demand: demand.clone(),
            task,
            waiting: 1,
            in_background,
        };
        flights.insert(key.clone(), flight);
        (Role::Leader, Waiter { result, flight: reference(demand) })
    }
}

/// Removes the flight, also when its task panics.
struct RemoveOnDrop<K: Hash + Eq, V>(FlightRef<K, V>);

impl<K: Hash + Eq, V> Drop for RemoveOnDrop<K, V> {
    fn drop(&mut self) {
        let FlightRef { shards, shard, key, demand } = &self.0;
        let mut flights = shards[*shard].lock();
        if flights.get(key).is_some_and(|flight| Arc::ptr_eq(&flight.demand, demand)) {
            flights.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn flight_serves_all_waiters_without_its_leader() {
        let flights: SingleFlight<u32, u32> = SingleFlight::default();
        let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let work = |_| {
            let (runs, gate) = (runs.clone(), gate.clone());
            async move {
                gate.notified().await;
                runs.fetch_add(1, Ordering::SeqCst) as u32 + 41
            }
        };
        let (role, leader) = flights.join_or_spawn(&1, JoinOptions::FOREGROUND, work);
        assert_eq!(role, Role::Leader);
        let waiters: Vec<_> =
            (0..10).map(|_| flights.join_or_spawn(&1, JoinOptions::FOREGROUND, work)).collect();
        assert!(waiters.iter().all(|(role, _)| *role == Role::Follower));
        drop(leader);
        gate.notify_one();
        for (_, waiter) in waiters {
            assert_eq!(waiter.result().await, Some(41));
        }
        assert_eq!(flights.join_or_spawn(&1, JoinOptions::FOREGROUND, work).0, Role::Leader);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn panic_ends_the_wait_and_the_next_request_leads() {
        let flights: SingleFlight<u32, u32> = SingleFlight::default();
        let (_, waiter) =
            flights.join_or_spawn(&1, JoinOptions::FOREGROUND, |_| async { panic!("on purpose") });
        assert_eq!(waiter.result().await, None);
        let (role, waiter) = flights.join_or_spawn(&1, JoinOptions::FOREGROUND, |_| async { 7 });
        assert_eq!((role, waiter.result().await), (Role::Leader, Some(7)));
    }

    /// Sends when it is dropped, which is when its task was cancelled or ended.
    struct Ended(Option<tokio::sync::oneshot::Sender<()>>);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.take().map(|ended| ended.send(()));
        }
    }

    #[tokio::test]
    async fn flight_ends_with_its_last_waiter_and_not_before() {
        let flights: SingleFlight<u32, u32> = SingleFlight::default();
        let (ended, end) = tokio::sync::oneshot::channel();
        let ended = Ended(Some(ended));
        let (_, first) = flights.join_or_spawn(&1, JoinOptions::FOREGROUND, |_| async move {
            let _ended = ended;
            std::future::pending().await
        });
        let (role, second) = flights.join_or_spawn(&1, JoinOptions::FOREGROUND, |_| async { 0 });
        assert_eq!(role, Role::Follower);
        drop(first);
        tokio::task::yield_now().await;
        assert_eq!(
            flights.join_or_spawn(&1, JoinOptions::FOREGROUND, |_| async { 0 }).0,
            Role::Follower
        );
        drop(second);
        end.await.expect("the task is dropped");
        let (role, waiter) = flights.join_or_spawn(&1, JoinOptions::FOREGROUND, |_| async { 7 });
        assert_eq!((role, waiter.result().await), (Role::Leader, Some(7)));
    }

    #[tokio::test]
    async fn background_flight_continues_without_a_waiter() {
        for joins_later in [false, true] {
            let flights: SingleFlight<u32, ()> = SingleFlight::default();
            let (gate, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let (opened, ran) = (gate.clone(), done.clone());
            let first = if joins_later { JoinOptions::FOREGROUND } else { JoinOptions::BACKGROUND };
            let (_, waiter) = flights.join_or_spawn(&1, first, |_| async move {
                opened.notified().await;
                ran.notify_one();
            });
            if joins_later {
                drop(flights.join_or_spawn(&1, JoinOptions::BACKGROUND, |_| async {}));
            }
            drop(waiter);
            gate.notify_one();
            done.notified().await;
        }
    }

    #[tokio::test]
    async fn flight_may_store_once_one_request_allows_it() {
        let flights: SingleFlight<u32, bool> = SingleFlight::default();
        let no_store = JoinOptions { store: false, ..JoinOptions::FOREGROUND };
        let gate = Arc::new(Notify::new());
        let work = |demand: Arc<Demand>| {
            let gate = gate.clone();
            async move {
                gate.notified().await;
                demand.allows_storing()
            }
        };
        for (joiner, stores) in [(no_store, false), (JoinOptions::FOREGROUND, true)] {
            let (_, first) = flights.join_or_spawn(&1, no_store, work);
            let (_, second) = flights.join_or_spawn(&1, joiner, work);
            gate.notify_one();
            assert_eq!((first.result().await, second.result().await), (Some(stores), Some(stores)));
        }
    }
}
