//! Single flight: one task per key at a time. A request that arrives while it runs waits for the same result. The task ends
//! with the last request that waits for it, unless it runs in the background.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Locks that the keys are spread over, so that no lock is shared by all requests.
const SHARDS: usize = 64;

type Landed<V> = watch::Receiver<Option<V>>;
/// Shards, so that flights of different keys rarely wait for one lock.
type Board<K, V> = Arc<[Mutex<HashMap<K, Flight<V>>>]>;

/// Work in progress, by key.
pub struct Flights<K, V> {
    shards: Board<K, V>,
    hasher: RandomState,
}

struct Flight<V> {
    landed: Landed<V>,
    demand: Arc<Demand>,
    task: AbortHandle,
    waiting: usize,
    /// It continues without a request that waits for it.
    in_background: bool,
}

/// What the requests that wait for a flight want of it. It may grow while the flight runs.
#[derive(Debug, Default)]
pub struct Demand {
    store: AtomicBool,
}

impl Demand {
    /// Whether the result may be stored: a request that waits for it did not forbid it.
    pub fn allows_storing(&self) -> bool {
        self.store.load(Ordering::Relaxed)
    }
}

/// What a request wants when it starts or joins a flight.
#[derive(Clone, Copy, Debug)]
pub struct Joining {
    /// No client waits for it: the flight continues in any case.
    pub in_background: bool,
    /// The result may be stored.
    pub store: bool,
}

impl Joining {
    /// A client waits for the result, which may be stored.
    pub const WAITING: Joining = Joining { in_background: false, store: true };
    /// No client waits for the result, which may be stored.
    pub const BACKGROUND: Joining = Joining { in_background: true, store: true };
}

/// Whether a request started the flight or joined it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boarded {
    Led,
    Joined,
}

/// One request that waits for the result. Dropping the last one cancels a flight that is not in the background.
pub struct Waiter<K: Hash + Eq, V> {
    landed: Landed<V>,
    place: Place<K, V>,
}

impl<K: Hash + Eq, V: Clone> Waiter<K, V> {
    /// The result, or `None` when the task ended without one (it panicked, or the runtime stops).
    pub async fn result(mut self) -> Option<V> {
        self.landed.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone())
    }
}

impl<K: Hash + Eq, V> Drop for Waiter<K, V> {
    fn drop(&mut self) {
        let Place { shards, index, key, demand } = &self.place;
        let mut shard = shards[*index].lock();
        let Some(flight) = shard.get_mut(key).filter(|flight| Arc::ptr_eq(&flight.demand, demand)) else { return };
        flight.waiting -= 1;
        if flight.waiting > 0 || flight.in_background {
            return;
        }
        // Removed under the lock: from here on a request starts a flight instead of joining one that ends.
        let flight = shard.remove(key);
        drop(shard);
        if let Some(flight) = flight {
            flight.task.abort();
        }
    }
}

/// Where a flight is found, and which one it is: another one may have taken its key.
struct Place<K: Hash + Eq, V> {
    shards: Board<K, V>,
    index: usize,
    key: K,
    demand: Arc<Demand>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Flights { shards: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect(), hasher: RandomState::new() }
    }
}

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the task of that key, or starts one with `work`.
    pub fn board<F>(&self, key: &K, joining: Joining, work: impl FnOnce(Arc<Demand>) -> F) -> (Boarded, Waiter<K, V>)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        let place = |demand| Place { shards: self.shards.clone(), index, key: key.clone(), demand };
        let mut shard = self.shards[index].lock();
        if let Some(flight) = shard.get_mut(key) {
            flight.waiting += 1;
            flight.in_background |= joining.in_background;
            flight.demand.store.fetch_or(joining.store, Ordering::Relaxed);
            let waiter = Waiter { landed: flight.landed.clone(), place: place(flight.demand.clone()) };
            return (Boarded::Joined, waiter);
        }
        let (land, landed) = watch::channel(None);
        let demand = Arc::new(Demand { store: AtomicBool::new(joining.store) });
        let closing = Closing(place(demand.clone()));
        let work = work(demand.clone());
        let task = tokio::spawn(async move {
            let closing = closing;
            let result = work.await;
            // Off the board first, then wake: a request that is woken and asks again must not meet this flight.
            drop(closing);
            let _ = land.send(Some(result));
        });
        let (task, in_background) = (task.abort_handle(), joining.in_background);
        let flight = Flight { landed: landed.clone(), demand: demand.clone(), task, waiting: 1, in_background };
        shard.insert(key.clone(), flight);
        (Boarded::Led, Waiter { landed, place: place(demand) })
    }
}

/// Takes the flight off the board, also when the task panics.
struct Closing<K: Hash + Eq, V>(Place<K, V>);

impl<K: Hash + Eq, V> Drop for Closing<K, V> {
    fn drop(&mut self) {
        let Place { shards, index, key, demand } = &self.0;
        let mut shard = shards[*index].lock();
        if shard.get(key).is_some_and(|flight| Arc::ptr_eq(&flight.demand, demand)) {
            shard.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn one_task_serves_all_who_wait_and_outlives_who_began_it() {
        let flights: Flights<u32, u32> = Flights::default();
        let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let work = |_| {
            let (runs, gate) = (runs.clone(), gate.clone());
            async move {
                gate.notified().await;
                runs.fetch_add(1, Ordering::SeqCst) as u32 + 41
            }
        };
        let (boarded, leader) = flights.board(&1, Joining::WAITING, work);
        assert_eq!(boarded, Boarded::Led);
        let waiters: Vec<_> = (0..10).map(|_| flights.board(&1, Joining::WAITING, work)).collect();
        assert!(waiters.iter().all(|(boarded, _)| *boarded == Boarded::Joined));
        drop(leader);
        gate.notify_one();
        for (_, waiter) in waiters {
            assert_eq!(waiter.result().await, Some(41));
        }
        assert_eq!(flights.board(&1, Joining::WAITING, work).0, Boarded::Led);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_panic_ends_the_wait_and_the_next_may_try() {
        let flights: Flights<u32, u32> = Flights::default();
        let (_, waiter) = flights.board(&1, Joining::WAITING, |_| async { panic!("on purpose") });
        assert_eq!(waiter.result().await, None);
        let (boarded, waiter) = flights.board(&1, Joining::WAITING, |_| async { 7 });
        assert_eq!((boarded, waiter.result().await), (Boarded::Led, Some(7)));
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
        let flights: Flights<u32, u32> = Flights::default();
        let (ended, end) = tokio::sync::oneshot::channel();
        let ended = Ended(Some(ended));
        let (_, first) = flights.board(&1, Joining::WAITING, |_| async move {
            let _ended = ended;
            std::future::pending().await
        });
        let (boarded, second) = flights.board(&1, Joining::WAITING, |_| async { 0 });
        assert_eq!(boarded, Boarded::Joined);
        drop(first);
        tokio::task::yield_now().await;
        assert_eq!(flights.board(&1, Joining::WAITING, |_| async { 0 }).0, Boarded::Joined);
        drop(second);
        end.await.expect("the task is dropped");
        let (boarded, waiter) = flights.board(&1, Joining::WAITING, |_| async { 7 });
        assert_eq!((boarded, waiter.result().await), (Boarded::Led, Some(7)));
    }

    #[tokio::test]
    async fn background_flight_continues_without_a_waiter() {
        for joins_later in [false, true] {
            let flights: Flights<u32, ()> = Flights::default();
            let (gate, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let (opened, ran) = (gate.clone(), done.clone());
            let first = if joins_later { Joining::WAITING } else { Joining::BACKGROUND };
            let (_, waiter) = flights.board(&1, first, |_| async move {
                opened.notified().await;
                ran.notify_one();
            });
            if joins_later {
                drop(flights.board(&1, Joining::BACKGROUND, |_| async {}));
            }
            drop(waiter);
            gate.notify_one();
            done.notified().await;
        }
    }

    #[tokio::test]
    async fn flight_may_store_once_one_request_allows_it() {
        let flights: Flights<u32, bool> = Flights::default();
        let silent = Joining { store: false, ..Joining::WAITING };
        let gate = Arc::new(Notify::new());
        let work = |demand: Arc<Demand>| {
            let gate = gate.clone();
            async move {
                gate.notified().await;
                demand.allows_storing()
            }
        };
        for (joiner, stores) in [(silent, false), (Joining::WAITING, true)] {
            let (_, first) = flights.board(&1, silent, work);
            let (_, second) = flights.board(&1, joiner, work);
            gate.notify_one();
            assert_eq!((first.result().await, second.result().await), (Some(stores), Some(stores)));
        }
    }
}
