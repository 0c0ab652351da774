//! Places for requests to the API: a bound on those in flight and on those that wait, shared fairly.
//!
//! Each payer (a caller, or the address of tokens that are not known yet) has at most its share in flight. Payers that wait
//! take turns. A payer alone may fill the queue; when it is full, a request of a payer with less than its part of the queue
//! takes the place of the newest request of the payer that waits with most.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::UpstreamError;
use crate::cache::CallerId;

/// Requests that may wait for each place in flight.
const QUEUE_PER_PLACE: usize = 16;

/// A payer's share of the places is this part of them, so that four payers are needed to take all.
const SHARE_DIVISOR: usize = 4;

/// And at least this many, where there are so many: a page asks for several customers at once.
const SHARE_MIN: usize = 8;

/// The party that a request to the API counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Payer {
    Caller(CallerId),
    /// The client's, while its token is not known.
    Address(IpAddr),
    /// The gateway itself, for no client.
    Gateway,
}

impl Payer {
    /// The payer for a client's address. Of an IPv6 address the first 64 bits count, since a client has all of the others.
    pub fn from_address(address: IpAddr) -> Self {
        Payer::Address(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// The places and the queue for them.
pub struct Places {
    state: Mutex<State>,
    max_in_flight: usize,
    max_waiting: usize,
    share: usize,
}

#[derive(Default)]
struct State {
    in_flight: usize,
    waiting: usize,
    payers: HashMap<Payer, Account>,
    /// Payers with requests that wait, in the order of their turns; each occurs once.
    turns: VecDeque<Payer>,
    next_ticket: u64,
}

#[derive(Default)]
struct Account {
    in_flight: usize,
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
    has_turn: bool,
}

/// A place in flight; dropping it gives it to the next request that waits.
pub struct Permit<'a> {
    places: &'a Places,
    payer: Payer,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.places.release(self.payer);
    }
}

/// A request in the queue; dropping it leaves the queue, or gives back the place that it was granted meanwhile.
struct Ticket<'a> {
    places: &'a Places,
    payer: Payer,
    number: u64,
    /// Answered with the grant; closed when another payer's request took the place in the queue.
    granted: oneshot::Receiver<()>,
    taken: bool,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let left = self.places.leave(self.payer, self.number);
        if !left && !self.taken && self.granted.try_recv().is_ok() {
            self.places.release(self.payer);
        }
    }
}

impl Places {
    pub fn new(max_in_flight: usize) -> Self {
        Places {
            state: Mutex::default(),
            max_in_flight,
            max_waiting: max_in_flight.saturating_mul(QUEUE_PER_PLACE),
            share: (max_in_flight / SHARE_DIVISOR).max(SHARE_MIN.min(max_in_flight)),
        }
    }

    /// Waits for a place until `deadline`.
    ///
    /// # Errors
    /// [`UpstreamError::QueueFull`]: there is no room to wait, or no place in time.
    pub async fn acquire(&self, payer: Payer, deadline: Instant) -> Result<Permit<'_>, UpstreamError> {
        let Some((number, granted)) = self.enter(payer)? else { return Ok(Permit { places: self, payer }) };
        let mut ticket = Ticket { places: self, payer, number, granted, taken: false };
        match timeout_at(deadline.into(), &mut ticket.granted).await {
            Ok(Ok(())) => {
                ticket.taken = true;
                Ok(Permit { places: self, payer })
            }
            // Its place in the queue was taken, or it is too late.
            Ok(Err(_)) | Err(_) => Err(UpstreamError::QueueFull),
        }
    }

    /// Takes a place (`None`) or joins the queue.
    fn enter(&self, payer: Payer) -> Result<Option<(u64, oneshot::Receiver<()>)>, UpstreamError> {
        let mut locked = self.state.lock();
        let state = &mut *locked;
        let account = state.payers.get(&payer);
        let (in_flight, waiting) = account.map_or((0, 0), |account| (account.in_flight, account.waiting.len()));
        // Requests wait only where all places or all of their payer's share are taken, so none is overtaken here.
        if state.in_flight < self.max_in_flight && in_flight < self.share_of(payer) {
            state.in_flight += 1;
            state.payers.entry(payer).or_default().in_flight += 1;
            return Ok(None);
        }
        if state.waiting >= self.max_waiting && !state.evict_for(waiting, self.max_waiting) {
            return Err(UpstreamError::QueueFull);
        }
        let number = state.next_ticket;
        state.next_ticket += 1;
        state.waiting += 1;
        let (grant, granted) = oneshot::channel();
        let account = state.payers.entry(payer).or_default();
        account.waiting.push_back((number, grant));
        if !std::mem::replace(&mut account.has_turn, true) {
            state.turns.push_back(payer);
        }
        Ok(Some((number, granted)))
    }

    fn share_of(&self, payer: Payer) -> usize {
        if payer == Payer::Gateway { self.max_in_flight } else { self.share }
    }

    /// Leaves the queue; whether the ticket was still in it.
    fn leave(&self, payer: Payer, number: u64) -> bool {
        let mut state = self.state.lock();
        let Some(account) = state.payers.get_mut(&payer) else { return false };
        // Numbers grow along the queue.
        let Ok(at) = account.waiting.binary_search_by_key(&number, |(number, _)| *number) else { return false };
        account.waiting.remove(at);
        state.waiting -= 1;
        state.forget_if_idle(payer);
        true
    }

    /// Gives a place back, and grants it to the next request.
    fn release(&self, payer: Payer) {
        let mut locked = self.state.lock();
        let state = &mut *locked;
        state.in_flight -= 1;
        if let Some(account) = state.payers.get_mut(&payer) {
            account.in_flight -= 1;
        }
        state.forget_if_idle(payer);
        for _ in 0..state.turns.len() {
            let Some(next) = state.turns.pop_front() else { return };
            let share = self.share_of(next);
            let Some(account) = state.payers.get_mut(&next) else { continue };
            if account.in_flight >= share && !account.waiting.is_empty() {
                state.turns.push_back(next);
                continue;
            }
            let granted = account.waiting.pop_front();
            account.in_flight += usize::from(granted.is_some());
            account.has_turn = !account.waiting.is_empty();
            if account.has_turn {
                state.turns.push_back(next);
            }
            let Some((_, grant)) = granted else {
                state.forget_if_idle(next);
                continue;
            };
            state.in_flight += 1;
            state.waiting -= 1;
            // Under the lock, so that a ticket that is dropped knows whether it was granted.
            let _ = grant.send(());
            return;
        }
    }
}

impl State {
    /// Makes room in a full queue for a payer with so many requests in it; whether it did. The newest request of the payer
    /// with most is the one that leaves.
    fn evict_for(&mut self, waiting: usize, max_waiting: usize) -> bool {
        let payers = self.turns.len().max(1);
        // Cheap for the payer that fills the queue: only another one causes a search.
        if waiting >= max_waiting / payers {
            return false;
        }
        let longest = self.payers.iter().max_by_key(|(_, account)| account.waiting.len());
        let Some(payer) = longest.filter(|(_, account)| account.waiting.len() > waiting + 1).map(|(payer, _)| *payer)
        else {
            return false;
        };
        // The sender is dropped, which the request that waits sees.
        let evicted = self.payers.get_mut(&payer).and_then(|account| account.waiting.pop_back()).is_some();
        self.waiting -= usize::from(evicted);
        evicted
    }

    fn forget_if_idle(&mut self, payer: Payer) {
        let is_idle = |account: &Account| account.in_flight == 0 && account.waiting.is_empty();
        if self.payers.get(&payer).is_some_and(is_idle) {
            let account = self.payers.remove(&payer);
            if account.is_some_and(|account| account.has_turn) {
                self.turns.retain(|turn| *turn != payer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use super::*;

    fn payer(number: u8) -> Payer {
        Payer::Address(IpAddr::from([127, 0, 0, number]))
    }

    type Waiting<'a> = std::pin::Pin<Box<dyn Future<Output = Result<Permit<'a>, UpstreamError>> + 'a>>;

    /// Polls once.
    fn now<'a>(waiting: &mut Waiting<'a>) -> Option<Result<Permit<'a>, UpstreamError>> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    /// A request that has joined the queue.
    fn waiting(places: &Places, payer: Payer) -> Waiting<'_> {
        let mut waiting: Waiting<'_> = Box::pin(places.acquire(payer, Instant::now() + Duration::from_secs(3600)));
        assert!(now(&mut waiting).is_none(), "it does not wait");
        waiting
    }

    async fn take(places: &Places, payer: Payer) -> Permit<'_> {
        places.acquire(payer, Instant::now()).await.expect("a free place")
    }

    #[test]
    fn payer_has_at_most_its_share_in_flight() {
        for (max, share) in [(1, 1), (4, 4), (8, 8), (16, 8), (32, 8), (256, 64), (1000, 250)] {
            assert_eq!(Places::new(max).share, share, "{max}");
        }
    }

    #[tokio::test]
    async fn share_is_a_bound_though_places_are_free() {
        let places = Places::new(16);
        let mut taken = Vec::new();
        for _ in 0..8 {
            taken.push(take(&places, payer(1)).await);
        }
        let mut ninth = waiting(&places, payer(1));
        let _other = take(&places, payer(2)).await;
        drop(taken.pop());
        assert!(now(&mut ninth).is_some_and(|permit| permit.is_ok()));
    }

    #[tokio::test]
    async fn payers_take_turns() {
        let places = Places::new(1);
        let first = take(&places, payer(1)).await;
        let mut many: Vec<_> = (0..3).map(|_| waiting(&places, payer(1))).collect();
        let mut other = waiting(&places, payer(2));
        drop(first);
        let second = now(&mut many[0]).expect("its turn").ok();
        assert!(now(&mut other).is_none());
        drop(second);
        assert!(now(&mut many[1]).is_none());
        let third = now(&mut other).expect("the other payer's turn");
        drop(third);
        assert!(now(&mut many[1]).is_some());
    }

    #[tokio::test]
    async fn full_queue_makes_room_for_a_payer_with_less() {
        let places = Places::new(1);
        let _first = take(&places, payer(1)).await;
        let mut many: Vec<_> = (0..QUEUE_PER_PLACE).map(|_| waiting(&places, payer(1))).collect();
        assert!(places.acquire(payer(1), Instant::now()).await.is_err());
        let _other = waiting(&places, payer(2));
        let newest = many.last_mut().expect("requests that wait");
        assert!(matches!(now(newest), Some(Err(UpstreamError::QueueFull))));
        many.pop();
        assert!(many.iter_mut().all(|one| now(one).is_none()));
    }

    #[tokio::test]
    async fn request_that_leaves_gives_everything_back() {
        let places = Places::new(1);
        let first = take(&places, payer(1)).await;
        let leaves = waiting(&places, payer(2));
        let granted = waiting(&places, payer(3));
        drop(leaves);
        drop(first);
        // Granted, and left before it took the place.
        drop(granted);
        let state = places.state.lock();
        assert_eq!((state.in_flight, state.waiting, state.payers.len(), state.turns.len()), (0, 0, 0, 0));
    }

    #[test]
    fn client_with_a_prefix_of_addresses_is_one_payer() {
        let of = |text: &str| Payer::from_address(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
