//! One task per key at a time. Who comes while it runs waits for the same result; who leaves takes nothing down, since the
//! work runs in a task of its own. Waiters are woken, not polling.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Locks that the keys are spread over, so that no lock is shared by all requests.
const SHARDS: usize = 64;

type Landed<V> = watch::Receiver<Option<V>>;
/// Shards, so that flights of different keys rarely wait for one lock.
type Board<K, V> = Arc<[Mutex<HashMap<K, Landed<V>>>]>;

/// Work under way, by key.
pub struct Flights<K, V> {
    shards: Board<K, V>,
    hasher: RandomState,
}

/// Whether a caller began the work or came while it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boarded {
    Led,
    Joined,
}

/// Somebody who waits for the result.
pub struct Waiter<V>(Landed<V>);

impl<V: Clone> Waiter<V> {
    /// The result, or `None` when the task ended without one (it panicked, or the runtime stops).
    pub async fn result(mut self) -> Option<V> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone())
    }
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
    /// Joins the task of that key, or begins one with `work`.
    pub fn board<F>(&self, key: &K, work: impl FnOnce() -> F) -> (Boarded, Waiter<V>)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        let mut shard = self.shards[index].lock();
        if let Some(landed) = shard.get(key) {
            return (Boarded::Joined, Waiter(landed.clone()));
        }
        let (land, landed) = watch::channel(None);
        shard.insert(key.clone(), landed.clone());
        drop(shard);
        let closing = Closing { shards: self.shards.clone(), index, key: key.clone() };
        let work = work();
        tokio::spawn(async move {
            let closing = closing;
            let result = work.await;
            // Off the board first, then wake: who is woken and asks again must not meet this flight.
            drop(closing);
            let _ = land.send(Some(result));
        });
        (Boarded::Led, Waiter(landed))
    }
}

/// Takes the flight off the board, also when the task panics.
struct Closing<K: Hash + Eq, V> {
    shards: Board<K, V>,
    index: usize,
    key: K,
}

impl<K: Hash + Eq, V> Drop for Closing<K, V> {
    fn drop(&mut self) {
        self.shards[self.index].lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn one_task_serves_all_who_wait_and_outlives_who_began_it() {
        let flights: Flights<u32, u32> = Flights::default();
        let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let work = || {
            let (runs, gate) = (runs.clone(), gate.clone());
            async move {
                gate.notified().await;
                runs.fetch_add(1, Ordering::SeqCst) as u32 + 41
            }
        };
        let (boarded, leader) = flights.board(&1, work);
        assert_eq!(boarded, Boarded::Led);
        let waiters: Vec<_> = (0..10).map(|_| flights.board(&1, work)).collect();
        assert!(waiters.iter().all(|(boarded, _)| *boarded == Boarded::Joined));
        drop(leader);
        gate.notify_one();
        for (_, waiter) in waiters {
            assert_eq!(waiter.result().await, Some(41));
        }
        assert_eq!(flights.board(&1, work).0, Boarded::Led);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_panic_ends_the_wait_and_the_next_may_try() {
        let flights: Flights<u32, u32> = Flights::default();
        let (_, waiter) = flights.board(&1, || async { panic!("on purpose") });
        assert_eq!(waiter.result().await, None);
        let (boarded, waiter) = flights.board(&1, || async { 7 });
        assert_eq!((boarded, waiter.result().await), (Boarded::Led, Some(7)));
    }
}
