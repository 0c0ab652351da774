//! Fair queue of requests to the API: bounds those in flight and those that wait, per key.
//!
//! A key is a caller, or the address of clients whose tokens are not known yet. Each key has at
//! most its share of permits. Keys with waiting requests take turns. One key may fill the queue;
//! when it is full, a request of a key with less than its part of the queue replaces the newest
//! request of the key with the most.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::UpstreamError;
use crate::cache::CallerId;

/// Requests that may wait for each permit.
const QUEUE_PER_PERMIT: usize = 16;

/// Divisor of a key's share of the permits: four keys are needed to take all.
const SHARE_DIVISOR: usize = 4;

/// Minimum share of a key, if there are as many permits: a page requests several customers at once.
const SHARE_MIN: usize = 8;

/// Key under which a request is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueKey {
    Caller(CallerId),
    /// Address of a client whose token is not known.
    Address(IpAddr),
    /// The gateway itself.
    Gateway,
}

impl QueueKey {
    /// The key of a client's address.
    pub fn from_address(address: IpAddr) -> Self {
        QueueKey::Address(network_of(address))
    }
}

/// The network that counts as one client wherever clients are limited: an IPv4 address, or the /64
/// of an IPv6 address, because a client can use every address of its network.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (!0 << 64)).into(),
    }
}

/// Permits and the queue for them.
pub struct FairQueue {
    state: Mutex<State>,
    max_in_flight: usize,
    max_waiting: usize,
    share: usize,
}

#[derive(Default)]
struct State {
    in_flight: usize,
    waiting: usize,
    keys: HashMap<QueueKey, KeyState>,
    /// Keys with waiting requests, in the order of their turns; each occurs once.
    turns: VecDeque<QueueKey>,
    next_ticket: u64,
}

#[derive(Default)]
struct KeyState {
    in_flight: usize,
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
    has_turn: bool,
}

/// Permission to send a request. Dropping it grants it to the next waiting request.
pub struct Permit<'a> {
    queue: &'a FairQueue,
    key: QueueKey,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.queue.release(self.key);
    }
}

/// A waiting request. Dropping it leaves the queue, or returns the permit that was granted
/// meanwhile.
struct Ticket<'a> {
    queue: &'a FairQueue,
    key: QueueKey,
    number: u64,
    /// Receives the grant; closed when a request of another key replaced this one.
    granted: oneshot::Receiver<()>,
    taken: bool,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let left = self.queue.leave(self.key, self.number);
        if !left && !self.taken && self.granted.try_recv().is_ok() {
            self.queue.release(self.key);
        }
    }
}

impl FairQueue {
    pub fn new(max_in_flight: usize) -> Self {
        FairQueue {
            state: Mutex::default(),
            max_in_flight,
            max_waiting: max_in_flight.saturating_mul(QUEUE_PER_PERMIT),
            share: (max_in_flight / SHARE_DIVISOR).max(SHARE_MIN.min(max_in_flight)),
        }
    }

    /// Waits for a permit until `deadline`.
    ///
    /// # Errors
    /// [`UpstreamError::QueueFull`]: there is no room to wait, or no permit in time.
    pub async fn acquire(
        &self,
        key: QueueKey,
        deadline: Instant,
    ) -> Result<Permit<'_>, UpstreamError> {
        let Some((number, granted)) = self.enter(key)? else {
            return Ok(Permit { queue: self, key });
        };
        let mut ticket = Ticket { queue: self, key, number, granted, taken: false };
        match timeout_at(deadline.into(), &mut ticket.granted).await {
            Ok(Ok(())) => {
                ticket.taken = true;
                Ok(Permit { queue: self, key })
            }
            // Another request replaced it, or it is too late.
            Ok(Err(_)) | Err(_) => Err(UpstreamError::QueueFull),
        }
    }

    /// Takes a permit (`None`) or joins the queue.
    fn enter(&self, key: QueueKey) -> Result<Option<(u64, oneshot::Receiver<()>)>, UpstreamError> {
        let mut locked = self.state.lock();
        let state = &mut *locked;
        let key_state = state.keys.get(&key);
        let (in_flight, waiting) =
            key_state.map_or((0, 0), |key_state| (key_state.in_flight, key_state.waiting.len()));
        // Requests wait only while all permits or all of their key's share are taken, so this
        // request overtakes none.
        if state.in_flight < self.max_in_flight && in_flight < self.share_of(key) {
            state.in_flight += 1;
            state.keys.entry(key).or_default().in_flight += 1;
            return Ok(None);
        }
        if state.waiting >= self.max_waiting && !state.evict_for(waiting, self.max_waiting) {
            return Err(UpstreamError::QueueFull);
        }
        let number = state.next_ticket;
        state.next_ticket += 1;
        state.waiting += 1;
        let (grant, granted) = oneshot::channel();
        let key_state = state.keys.entry(key).or_default();
        key_state.waiting.push_back((number, grant));
        if !std::mem::replace(&mut key_state.has_turn, true) {
            state.turns.push_back(key);
        }
        Ok(Some((number, granted)))
    }

    fn share_of(&self, key: QueueKey) -> usize {
        if key == QueueKey::Gateway { self.max_in_flight } else { self.share }
    }

    /// Leaves the queue. Returns whether the ticket was still in it.
    fn leave(&self, key: QueueKey, number: u64) -> bool {
        let mut state = self.state.lock();
        let Some(key_state) = state.keys.get_mut(&key) else { return false };
        // Numbers grow along the queue.
        let Ok(at) = key_state.waiting.binary_search_by_key(&number, |(number, _)| *number) else {
            return false;
        };
        key_state.waiting.remove(at);
        state.waiting -= 1;
        state.remove_if_idle(key);
        true
    }

    /// Returns a permit and grants it to the next request.
    fn release(&self, key: QueueKey) {
        let mut locked = self.state.lock();
        let state = &mut *locked;
        state.in_flight -= 1;
        if let Some(key_state) = state.keys.get_mut(&key) {
            key_state.in_flight -= 1;
        }
        state.remove_if_idle(key);
        for _ in 0..state.turns.len() {
            let Some(next) = state.turns.pop_front() else { return };
            let share = self.share_of(next);
            let Some(key_state) = state.keys.get_mut(&next) else { continue };
            if key_state.in_flight >= share && !key_state.waiting.is_empty() {
                state.turns.push_back(next);
                continue;
            }
            let granted = key_state.waiting.pop_front();
            key_state.in_flight += usize::from(granted.is_some());
            key_state.has_turn = !key_state.waiting.is_empty();
            if key_state.has_turn {
                state.turns.push_back(next);
            }
            let Some((_, grant)) = granted else {
                state.remove_if_idle(next);
                continue;
            };
            state.in_flight += 1;
            state.waiting -= 1;
            // Under the lock, so that a dropped ticket detects whether it was granted.
            let _ = grant.send(());
            return;
        }
    }
}

impl State {
    /// Makes room in a full queue for a key with `waiting` requests, by removing the newest request
    /// of the key with the most. Returns whether it did.
    fn evict_for(&mut self, waiting: usize, max_waiting: usize) -> bool {
        let keys = self.turns.len().max(1);
        // Cheap for the key that fills the queue: only other keys cause a search.
        if waiting >= max_waiting / keys {
            return false;
        }
        let longest = self.keys.iter().max_by_key(|(_, key_state)| key_state.waiting.len());
        let Some(key) = longest
            .filter(|(_, key_state)| key_state.waiting.len() > waiting + 1)
            .map(|(key, _)| *key)
        else {
            return false;
        };
        // The waiting request notices the dropped sender.
        let evicted =
            self.keys.get_mut(&key).and_then(|key_state| key_state.waiting.pop_back()).is_some();
        self.waiting -= usize::from(evicted);
        evicted
    }

    fn remove_if_idle(&mut self, key: QueueKey) {
        let is_idle =
            |key_state: &KeyState| key_state.in_flight == 0 && key_state.waiting.is_empty();
        if self.keys.get(&key).is_some_and(is_idle) {
            let key_state = self.keys.remove(&key);
            if key_state.is_some_and(|key_state| key_state.has_turn) {
                self.turns.retain(|turn| *turn != key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use super::*;

    fn key(number: u8) -> QueueKey {
        QueueKey::Address(IpAddr::from([127, 0, 0, number]))
    }

    type Waiting<'a> =
        std::pin::Pin<Box<dyn Future<Output = Result<Permit<'a>, UpstreamError>> + 'a>>;

    /// Polls once.
    fn now<'a>(waiting: &mut Waiting<'a>) -> Option<Result<Permit<'a>, UpstreamError>> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    /// A request that has joined the queue.
    fn waiting(queue: &FairQueue, key: QueueKey) -> Waiting<'_> {
        let mut waiting: Waiting<'_> =
            Box::pin(queue.acquire(key, Instant::now() + Duration::from_secs(3600)));
        assert!(now(&mut waiting).is_none(), "it does not wait");
        waiting
    }

    async fn take(queue: &FairQueue, key: QueueKey) -> Permit<'_> {
        queue.acquire(key, Instant::now()).await.expect("a free permit")
    }

    #[test]
    fn key_has_at_most_its_share_in_flight() {
        for (max, share) in [(1, 1), (4, 4), (8, 8), (16, 8), (32, 8), (256, 64), (1000, 250)] {
            assert_eq!(FairQueue::new(max).share, share, "{max}");
        }
    }

    #[tokio::test]
    async fn share_limits_a_key_although_permits_are_free() {
        let queue = FairQueue::new(16);
        let mut taken = Vec::new();
        for _ in 0..8 {
            taken.push(take(&queue, key(1)).await);
        }
        let mut ninth = waiting(&queue, key(1));
        let _other = take(&queue, key(2)).await;
        drop(taken.pop());
        assert!(now(&mut ninth).is_some_and(|permit| permit.is_ok()));
    }

    #[tokio::test]
    async fn keys_take_turns() {
        let queue = FairQueue::new(1);
        let first = take(&queue, key(1)).await;
        let mut many: Vec<_> = (0..3).map(|_| waiting(&queue, key(1))).collect();
        let mut other = waiting(&queue, key(2));
        drop(first);
        let second = now(&mut many[0]).expect("its turn").ok();
        assert!(now(&mut other).is_none());
        drop(second);
        assert!(now(&mut many[1]).is_none());
        let third = now(&mut other).expect("the other key has its turn");
        drop(third);
        assert!(now(&mut many[1]).is_some());
    }

    #[tokio::test]
    async fn full_queue_makes_room_for_a_key_with_less() {
        let queue = FairQueue::new(1);
        let _first = take(&queue, key(1)).await;
        let mut many: Vec<_> = (0..QUEUE_PER_PERMIT).map(|_| waiting(&queue, key(1))).collect();
        assert!(queue.acquire(key(1), Instant::now()).await.is_err());
        let _other = waiting(&queue, key(2));
        let newest = many.last_mut().expect("requests that wait");
        assert!(matches!(now(newest), Some(Err(UpstreamError::QueueFull))));
        many.pop();
        assert!(many.iter_mut().all(|one| now(one).is_none()));
    }

    #[tokio::test]
    async fn dropped_request_returns_everything() {
        let queue = FairQueue::new(1);
        let first = take(&queue, key(1)).await;
        let leaves = waiting(&queue, key(2));
        let granted = waiting(&queue, key(3));
        drop(leaves);
        drop(first);
        // Granted, and dropped before it took the permit.
        drop(granted);
        let state = queue.state.lock();
        assert_eq!(
            (state.in_flight, state.waiting, state.keys.len(), state.turns.len()),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn addresses_of_one_ipv6_prefix_are_one_key() {
        let of = |text: &str| QueueKey::from_address(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
